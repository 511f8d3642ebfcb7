#!/usr/bin/env bash
# Lane of .ci/run: style and types, then the C core alone under sanitizers.
set -euo pipefail
. .ci/common.sh
trap report_failure EXIT
cd "$work/core"

lint_environment() {
    new_venv "$work/lint-venv"
    "$work/lint-venv/bin/pip" install -q --group lint numpy scipy
}

step "core lane: environment for the linters" lint_environment
export PATH=$work/lint-venv/bin:$PATH
step "ruff" ruff check .
step "mypy" mypy
step "C core without optimisation" make -C csrc plain
step "C tests under AddressSanitizer and UndefinedBehaviorSanitizer" make -C csrc asan
