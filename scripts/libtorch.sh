#!/usr/bin/env bash
# libtorch.sh check      exit status 0 if the libtorch to build against is complete; says what is wrong otherwise
# libtorch.sh install    downloads the wheels of libtorch.lock and puts them into .libtorch/, replacing what is there
#
# An exported LIBTORCH is used as it is. So is a .libtorch that is a symbolic link: both belong to someone else.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
target=$root/.libtorch
lock=$here/libtorch.lock
version=$(sed -n 's/^torch==\([^ ]*\).*/\1/p' "$lock")
# wheels (540 MB), what is unpacked from them (520 MB), and room to spare
needed_mb=1300

# status 2 = nothing that setup could repair
fail() {
    printf 'libtorch: %s\n' "$*" >&2
    exit 2
}

# What .libtorch was made from; a change to either file makes it outdated.
stamp() {
    cat "$lock" "$here/libtorch_unpack.py" | sha256sum | cut -d' ' -f1
}

# check_foreign NAME FOLDER: a libtorch that setup did not install.
check_foreign() {
    local name=$1 folder=$2 found=
    case $folder in
    /*) ;;
    *) fail "$name must be an absolute path, not '$folder'. Unset it to use the pinned libtorch $version." ;;
    esac
    local file
    for file in include/torch/script.h include/torch/csrc/api/include/torch/torch.h lib/libtorch_cpu.so lib/libc10.so; do
        if [ "$file" = include/torch/script.h ] && [ -e "$folder/include/torch/csrc/api/include/torch/script.h" ]; then
            continue
        fi
        [ -s "$folder/$file" ] || fail "$name is $folder, which has no $file. It must name the folder that holds include/ and lib/ of libtorch $version; without it, that is downloaded."
    done
    if [ -s "$folder/build-version" ]; then
        found=$(cat "$folder/build-version")
    elif [ -s "$folder/version.py" ]; then
        found=$(sed -n "s/^__version__ = '\([^']*\)'.*/\1/p" "$folder/version.py")
    fi
    if [ -n "$found" ] && [ "${found%%+*}" != "$version" ]; then
        printf 'libtorch: %s is version %s; jitquant is built and tested with %s (the tch feature accepts another only with LIBTORCH_BYPASS_VERSION_CHECK=1)\n' \
            "$folder" "$found" "$version" >&2
    fi
}

check() {
    if [ -n "${LIBTORCH+set}" ]; then
        [ -n "$LIBTORCH" ] || fail "LIBTORCH is set but empty. Unset it, or name the folder that holds include/ and lib/."
        check_foreign LIBTORCH "$LIBTORCH"
        return 0
    fi
    if [ -L "$target" ]; then
        check_foreign "the link .libtorch" "$(readlink -m "$target")/torch"
        return 0
    fi
    if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
        fail "the pinned libtorch is for x86-64 Linux, and this is $(uname -s) on $(uname -m).
    Install libtorch $version for this machine (PyPI's torch==$version wheel holds it) and export LIBTORCH=/path/to/torch.
    Kernels and observers need no libtorch: cargo test --no-default-features"
    fi
    if [ ! -d "$target" ]; then
        echo "libtorch $version is not installed"
        return 1
    fi
    if [ "$(cat "$target/STAMP" 2>/dev/null)" != "$(stamp)" ]; then
        echo "the libtorch in .libtorch/ is incomplete or not the pinned $version"
        return 1
    fi
    local damaged
    damaged=$(cd "$target" && LC_ALL=C comm -23 <(LC_ALL=C sort MANIFEST) <(find . -type f -printf '%s %P\n' | LC_ALL=C sort))
    if [ -n "$damaged" ]; then
        printf 'the libtorch in .libtorch/ is damaged; missing or of the wrong size:\n'
        head -n 5 <<<"$damaged" | while read -r _ file; do printf '    %s\n' "$file"; done
        return 1
    fi
}

# Prints a command that runs pip: the local one, or one from a throw-away virtual environment in folder $1. Nothing is
# installed with it, so an "externally managed" Python is no obstacle.
pip_python() {
    if python3 -m pip --version >/dev/null 2>&1; then
        echo python3
    elif python3 -m venv "$1" >/dev/null 2>&1; then
        echo "$1/bin/python"
    else
        fail "python3 has neither pip nor venv (Debian package python3-venv); one of them is needed to download libtorch"
    fi
}

download() {
    local work=$1 free_mb python bar=off
    free_mb=$(df -Pm "$root" | awk 'NR == 2 { print $4 }')
    if [ "$free_mb" -lt "$needed_mb" ]; then
        fail "$free_mb MB are free in $root; the download needs $needed_mb MB (half of it only for the moment)"
    fi
    python=$(pip_python "$work/venv")
    [ ! -t 1 ] || bar=on
    # TMPDIR: pip keeps a wheel there while it arrives, and /tmp is often too small for this one.
    mkdir -p "$work/tmp" "$work/wheels" "$work/new"
    if ! TMPDIR=$work/tmp PIP_REQUIRE_VIRTUALENV=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-60} \
        "$python" -m pip download --quiet --progress-bar "$bar" --no-cache-dir --no-deps --require-hashes \
        --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 \
        --dest "$work/wheels" --requirement "$lock"; then
        fail "the download failed (pip says why above). Run the same command again, or export LIBTORCH=/path/to/libtorch-$version."
    fi
    "$python" "$here/libtorch_unpack.py" "$work/wheels" "$work/new"
    stamp >"$work/new/STAMP"
}

work=
install() {
    # Two runs at once: the second waits, and then finds the work done.
    exec 9<"$lock"
    flock 9 || true
    if check >/dev/null; then
        return 0
    fi
    # what a killed run left behind
    rm -rf "$root"/.libtorch.part.*
    work=$(mktemp -d "$root/.libtorch.part.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    download "$work"
    if [ -e "$target" ]; then
        mv "$target" "$work/old"
    fi
    mv "$work/new" "$target"
    check
}

case ${1-} in
check) check ;;
install) install ;;
*)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
