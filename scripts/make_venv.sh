#!/bin/sh
# make_venv.sh PYTHON FOLDER: a virtual environment with pip in FOLDER, or one line on why there is none.
# Debian ships Python without ensurepip; where that is so and apt may be used, its package is installed first.
set -eu
python=${1:-}
folder=$2

if [ -z "$python" ]; then
    echo "No Python found: install Python 3.11 or newer, or name one with PYTHON=/path/to/python." >&2
    exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is $("$python" --version), but 3.11 or newer is needed: name one with PYTHON=/path/to/python." >&2
    exit 2
fi
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    if command -v apt-get >/dev/null; then
        $sudo apt-get update -qq >&2 && $sudo apt-get install -y -qq "python$version-venv" >&2 || true
    fi
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        echo "$python has no ensurepip: install the package python$version-venv, then run this again." >&2
        exit 2
    fi
fi
"$python" -m venv "$folder"
