#!/usr/bin/env bash
# install.sh PREFIX [FOLDER]: puts libjitquant.so, its headers, a CMake package and a pkg-config file under PREFIX. FOLDER
# holds the libraries that cargo built (default: target/release). `make install PREFIX=…` builds first and then runs this.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prefix=${1:?install.sh PREFIX [FOLDER]}
built=${2:-${CARGO_TARGET_DIR:-$root/target}/release}
libtorch=${LIBTORCH:-$root/.libtorch/torch}

number() {
    # Not every version of libtorch has both.
    { cat "$libtorch"/include/torch/{headeronly,csrc/api/include/torch}/version.h 2>/dev/null || true; } |
        sed -nE "s/^#define TORCH_VERSION_$1 ([0-9]+)/\1/p" | head -n 1
}
version=$(sed -nE 's/^version = "(.*)"/\1/p' "$root/Cargo.toml" | head -n 1)
torch_version="$(number MAJOR).$(number MINOR).$(number PATCH)"

fill() {
    sed -e "s/@VERSION@/$version/g" -e "s/@TORCH_VERSION@/$torch_version/g" "$root/cmake/$1.in" >"$prefix/$2/$1"
}

mkdir -p "$prefix"/{include,lib/cmake/jitquant,lib/pkgconfig}
install -m 644 "$root"/include/jitquant.{h,hpp} "$prefix/include/"
# Beside and renamed: a program that runs with the old library keeps it.
install -m 755 "$built/libjitquant.so" "$prefix/lib/.libjitquant.so.new"
mv "$prefix/lib/.libjitquant.so.new" "$prefix/lib/libjitquant.so"
# Small, and without libtorch: it is built here.
"${CXX:-c++}" -std=c++17 -O2 -fPIC -shared -fvisibility=hidden -Wl,-soname,libjitquant_preload.so \
    "$root/preload/preload.cpp" -o "$prefix/lib/.libjitquant_preload.so.new" -ldl
mv "$prefix/lib/.libjitquant_preload.so.new" "$prefix/lib/libjitquant_preload.so"
fill jitquantConfig.cmake lib/cmake/jitquant
fill jitquantConfigVersion.cmake lib/cmake/jitquant
fill jitquant.pc lib/pkgconfig
echo "installed jitquant $version for libtorch $torch_version in $prefix"
