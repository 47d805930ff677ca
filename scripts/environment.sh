# Sourced by scripts/tune and scripts/test: finds or makes a Python that has what a job needs.
# Everything that it says goes to stderr.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
host_python=${PYTHON:-python3}

say() { echo "$*" >&2; }

can_import() { # PYTHON MODULE...
    "$1" -c 'import importlib.util, sys; sys.exit(not all(importlib.util.find_spec(m) for m in sys.argv[1:]))' \
        "${@:2}" 2>/dev/null
}

sees_cuda() { # PYTHON
    can_import "$1" torch triton && "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null
}

# make_environment NAME CONSTRAINTS VENV_OPTION MODULES... -- PACKAGES...
# Leaves the Python to use in $python. A half-made environment is never used: the stamp comes last.
make_environment() {
    local folder="$root/.venv-$1" constraints="$root/scripts/constraints/$2.txt" option=$3
    shift 3
    local modules=() stamp
    while [ "$1" != -- ]; do modules+=("$1"); shift; done
    shift
    stamp="$(cksum <"$constraints") $option $*"
    python="$folder/bin/python"
    if [ "$(cat "$folder/complete" 2>/dev/null)" = "$stamp" ] && can_import "$python" "${modules[@]}"; then
        return
    fi
    say "Setting up ${folder##*/} (once): $*"
    "$host_python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        say "error: Python 3.10 or newer is needed; name one with PYTHON=..."
        exit 1
    }
    rm -rf "$folder"
    # shellcheck disable=SC2086
    "$host_python" -m venv $option "$folder" >&2 || {
        say "error: $host_python cannot make a virtual environment (Debian: install python3-venv)"
        exit 1
    }
    "$python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" "$@" >&2
    echo "$stamp" >"$folder/complete"
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }
