# Sourced by the scripts: a Python from 3.10 on, in $PYTHON if that is set.
# shellcheck shell=bash

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

find_python() {
    local candidates=(python3 python3.13 python3.12 python3.11 python3.10) candidate
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "Python 3.10 or newer is needed, and ${candidates[0]} is not (name one in PYTHON)"
}
