#!/usr/bin/env bash
# Tests the operators from Python, with a PyTorch of their own: what `make test-python` runs after the build.
# JITQUANT_PYTHON_VENV names an environment that has torch 2.13.0 and pytest already; nothing is installed into it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
requirements=$root/tests/python/requirements.txt
venv=${JITQUANT_PYTHON_VENV:-$root/.venv-python}
python=${PYTHON:-python3}

fail() {
    echo "make test-python: $*" >&2
    exit 1
}

if [ -z "${JITQUANT_PYTHON_VENV:-}" ]; then
    # The stamp holds the list that was installed, so a changed pin or an interrupted installation is done again.
    stamp=$venv/installed.txt
    if [ ! -f "$stamp" ] || ! cmp --quiet "$requirements" "$stamp"; then
        echo "Installing PyTorch into $venv (about 1.8 GB to download, 5 GB on disk)"
        [ -x "$venv/bin/pip" ] || "$python" -m venv --clear "$venv" ||
            fail "no venv made with $python; on Debian or Ubuntu: apt-get install python3 python3-venv"
        "$venv/bin/pip" install --disable-pip-version-check --quiet --requirement "$requirements" ||
            fail "pip could not install $requirements (see above)"
        cp "$requirements" "$stamp"
    fi
fi
"$venv/bin/python" -c 'import torch, pytest' || fail "$venv has no torch or no pytest (see above)"

export JITQUANT_LIBRARY=${JITQUANT_LIBRARY:-$root/target/debug/libjitquant.so}
[ -f "$JITQUANT_LIBRARY" ] || fail "no $JITQUANT_LIBRARY; 'make test-python' builds it"
cd "$root"
exec env PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/python "$@"
