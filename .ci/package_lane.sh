#!/usr/bin/env bash
# Lane of .ci/run: the files that users install.
set -euo pipefail
. .ci/common.sh
trap report_failure EXIT
cd "$work/package"

build_environment() {
    new_venv "$work/build-venv"
    "$work/build-venv/bin/pip" install -q --group build
}

# The wheel is built from the source distribution, so a file missing from MANIFEST.in shows here.
build_wheel() {
    if ! python -m build --outdir "$work/dist" >"$work/build.log" 2>&1; then
        tail -n 60 "$work/build.log"
        return 1
    fi
    ls -l "$work/dist"
    if [ "$(uname -s)" = Linux ]; then
        auditwheel repair --strip -w "$work/wheelhouse" "$work"/dist/*.whl
    else
        mkdir "$work/wheelhouse"
        cp "$work"/dist/*.whl "$work/wheelhouse"
    fi
}

# Nothing of the checkout but its tests: `import crnn` can only find the wheel, without any optional package. The tests
# of the documentation stay out, because they look into the checkout.
test_wheel() {
    mkdir "$work/outside"
    cp -r tests benchmarks examples conftest.py pyproject.toml "$work/outside"
    new_venv "$work/wheel-venv"
    cd "$work/outside"
    export PATH=$work/wheel-venv/bin:$PATH
    local wheels=("$work"/wheelhouse/*.whl)
    pip install -q "${wheels[0]}[test]"
    python -c 'import crnn; crnn.show_config(); print(crnn.__file__)'
    python -m pytest --ignore=tests/test_docs.py
    crnn train --epochs 1 --out smoke.safetensors
    crnn generate smoke.safetensors -n 3 --seed 1
}

step "package lane: environment for building" build_environment
export PATH=$work/build-venv/bin:$PATH
step "source distribution and wheel" build_wheel
step "contents of the wheel" python .ci/check_wheel.py "$work"/wheelhouse/*.whl
step "the wheel outside the checkout" test_wheel
