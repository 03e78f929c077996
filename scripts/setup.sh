#!/usr/bin/env bash
# setup.sh [test]: makes a fresh Debian or Ubuntu machine that has cargo ready to build jitquant, and with `test` to check
# it too. It looks first and changes only what is missing: a second run takes less than a second.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
purpose=${1:-build}
SECONDS=0

fail() {
    printf '\nsetup: %s\n' "$*" >&2
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

check_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    have cargo || fail "cargo is not installed (or not on PATH). jitquant needs Rust $wanted or newer, from https://rustup.rs:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
    found=$(cd "$root" && rustc --version | cut -d' ' -f2) || fail "rustc does not run; 'rustup default stable' installs a toolchain"
    if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
        fail "Rust $found is too old: jitquant needs $wanted or newer. 'rustup update stable', or see https://rustup.rs
    (a distribution's own cargo package is often older)"
    fi
    [ "$purpose" = test ] || return 0
    local component
    for component in rustfmt clippy; do
        if ! (cd "$root" && "cargo-${component/rustfmt/fmt}" --version) >/dev/null 2>&1; then
            have rustup || fail "Rust's $component is not installed; it comes with Rust, or from your distribution's package of that name"
            rustup component add "$component"
        fi
    done
}

# The Debian packages that are missing, one a line. $1 says whether libtorch has to be downloaded.
missing_packages() {
    local download=$1
    have make || echo make
    if ! have "${CXX:-c++}" || ! have "${CC:-cc}"; then
        echo g++
    fi
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ ! -e /etc/debian_version ] || echo ca-certificates
    if [ "$download" = yes ] && ! python3 -m pip --version >/dev/null 2>&1 && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        python3 -c '' 2>/dev/null || echo python3
        echo python3-venv
    fi
    [ "$purpose" != test ] || have clang-format || have clang-format-14 || echo clang-format
    [ "$purpose" != test ] || have cmake || echo cmake
    [ "$purpose" != test ] || have pkg-config || echo pkg-config
}

# install_packages COMMAND-PREFIX...
install_packages() {
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq "${packages[@]}")
    printf '==> Installing Debian packages: %s\n' "${packages[*]}"
    # A fresh image has no package lists, an old one has lists that name versions long gone.
    "$@" "${install[@]}" >/dev/null 2>&1 || {
        "$@" apt-get update -qq && "$@" "${install[@]}" >/dev/null
    } || fail "apt-get could not install: ${packages[*]}"
}

check_rust

download=no
if ! reason=$("$here/libtorch.sh" check); then
    [ -n "$reason" ] || exit 1
    download=yes
fi

mapfile -t packages < <(missing_packages "$download")
if [ ${#packages[@]} -gt 0 ]; then
    if have apt-get && [ "$(id -u)" = 0 ]; then
        install_packages
    elif have apt-get && have sudo && sudo -n true 2>/dev/null; then
        install_packages sudo -n
    elif have apt-get; then
        fail "these Debian packages are missing: ${packages[*]}
    Install them, then run the same command again:
    sudo apt-get update && sudo apt-get install --no-install-recommends ${packages[*]}"
    else
        fail "these are missing (names of the Debian packages): ${packages[*]}
    Install what your system calls them, then run the same command again."
    fi
fi
# The report's page is tried in a browser where there is one. Debian has Chromium as a package (124 MB); where it cannot be
# installed, the test says that it was skipped.
if [ "$purpose" = test ] && ! have chromium && ! have google-chrome && [ "$(id -u)" = 0 ] &&
    grep -qs "^ID=debian" /etc/os-release && have apt-get; then
    printf '==> Installing Chromium, for the test of the report (124 MB)\n'
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq chromium; } \
        >/dev/null 2>&1 ||
        echo "setup: Chromium could not be installed; the test of the report's page will be skipped" >&2
fi
if ! echo | "${CXX:-c++}" -std=c++20 -fsyntax-only -x c++ - 2>/dev/null; then
    fail "the C++ compiler ${CXX:-c++} knows no -std=c++20: g++ 10 or clang 10 is the least"
fi

if [ -n "${LIBTORCH_USE_PYTORCH+set}" ]; then
    echo "setup: LIBTORCH_USE_PYTORCH is set: torch-sys will ask Python for its libtorch, not use LIBTORCH. Unset it unless you mean that." >&2
fi
if [ $download = yes ]; then
    printf '==> Setting up libtorch: %s\n    downloading three wheels from PyPI, 540 MB\n' "$reason"
    "$here/libtorch.sh" install
fi
printf 'setup: ready (%d s), libtorch is %s\n' "$SECONDS" "${LIBTORCH:-.libtorch/torch}"
