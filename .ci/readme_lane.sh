#!/usr/bin/env bash
# Lane of .ci/run: the commands that the README gives its readers, taken from the README itself.
set -euo pipefail
. .ci/common.sh
trap report_failure EXIT
cd "$work/readme"

# Optional packages come first, so that the README's test command finds them and the parity tests run.
install_parity() {
    # CRNN_CI_TORCH_ARGS is a list of arguments: it is meant to be split.
    # shellcheck disable=SC2086
    if ! pip install -q torch==2.13.0 numpy ${CRNN_CI_TORCH_ARGS:-}; then
        echo "!!!! PyTorch could not be installed: the parity tests with it will be SKIPPED."
        echo "!!!! Set CRNN_CI_TORCH_ARGS to the pip arguments that find a CPU build."
        result "SKIPPED  parity with PyTorch: it could not be installed"
    fi
    if ! pip install -q onnx onnxruntime h5py matplotlib; then
        echo "!!!! ONNX, ONNX Runtime, h5py or matplotlib could not be installed: their tests will be SKIPPED."
        result "SKIPPED  tests with ONNX, ONNX Runtime, h5py or matplotlib: not all could be installed"
    fi
    # Keras computes with PyTorch where that is installed.
    if ! pip install -q keras mypy basedpyright cython setuptools; then
        echo "!!!! Keras, a type checker or Cython could not be installed: parity with Keras, typing or the build go UNTESTED."
        result "SKIPPED  parity with Keras, the typing tests or the build's: not all could be installed"
    fi
}

run_readme() {
    local command
    command=$(python .ci/readme_command.py "$1")
    printf '$ %s\n' "$command"
    bash -euo pipefail -c "$command"
}

run_tests() {
    run_readme "Run the tests" 2>&1 | tee "$work/tests.log"
}

install_and_train() {
    run_readme "Install and train"
    crnn info ./*.safetensors
}

step "README lane: fresh environment" new_venv "$work/tests-venv"
path=$PATH
export PATH=$work/tests-venv/bin:$path
step "optional packages for the parity tests" install_parity
step "README: run the tests" run_tests
step "instruction sets the tests exercised" python .ci/isas.py "$work/tests.log"

# The first command of the README has an environment of its own: the editable install must not help it.
step "another fresh environment" new_venv "$work/train-venv"
export PATH=$work/train-venv/bin:$path
step "README: install and train" install_and_train
