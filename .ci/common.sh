# What both lanes of .ci/run share. Sourced with $work, a scratch folder, in the environment.
# shellcheck shell=bash
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 CRNN_WERROR=1
# Logs are read by programs too: no colours, whatever the service around this asks for.
unset FORCE_COLOR PY_COLORS
export NO_COLOR=1
python=${CRNN_CI_PYTHON:-python3}
current=

# step NAME COMMAND...: announce, run, time. A failure ends the script (set -e stays in force inside COMMAND, which it
# would not under `COMMAND ||`), and the exit trap says which step it was.
step() {
    current=$1
    local began=$SECONDS
    printf '\n=== %s\n' "$current"
    shift
    "$@"
    printf '=== %s: done in %d s\n' "$current" "$((SECONDS - began))"
    result "ok       $current ($((SECONDS - began)) s)"
    current=
}

result() {
    echo "$1" >>"$work/results"
}

report_failure() {
    local code=$?
    if [ -n "$current" ]; then
        printf '=== %s: FAILED with exit code %d\n' "$current" "$code"
        result "FAILED   $current"
    fi
}

describe_machine() {
    uname -srm
    grep -m1 'model name' /proc/cpuinfo || true
    echo "cores: $(nproc)"
    "$python" --version
    "$python" .ci/isas.py
}

# A compiler, Python's headers and the venv module are all that a fresh Debian or Ubuntu may lack.
need_system_packages() {
    local header
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
    if command -v cc >/dev/null && command -v make >/dev/null && [ -f "$header" ] &&
        "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        cc --version | head -n 1
    elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -qy gcc libc6-dev make python3-dev python3-venv
    else
        echo "please install: gcc libc6-dev make python3-dev python3-venv"
        return 1
    fi
}

# Tracked files as they stand in the folder, so that nothing built or forgotten there can help.
copy_checkout() {
    local target
    for target; do
        mkdir -p "$target"
        git ls-files -z | tar --null -T - -cf - | tar -xf - -C "$target"
    done
}

new_venv() {
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install -q --upgrade pip
}
