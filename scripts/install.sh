#!/usr/bin/env bash
# install.sh PREFIX [FOLDER]: puts libjitquant.so, its headers, a CMake package and a pkg-config file under PREFIX. FOLDER
# holds the libraries that cargo built (default: target/release). `make install PREFIX=…` builds first and then runs this.
# install.sh --remove PREFIX: takes away what an installation put there.
# With DESTDIR set all goes below that folder, for who makes packages; the files are as they are without it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
version=$(sed -nE 's/^version = "(.*)"/\1/p' "$root/Cargo.toml" | head -n 1)
abi=$(sed -nE 's/^#define JQ_ABI_VERSION ([0-9]+)/\1/p' "$root/include/jitquant.h")
runtime_abi=$(sed -nE 's/^#define JQR_ABI_VERSION ([0-9]+)/\1/p' "$root/include/jitquant_runtime.h")
# All that is installed, relative to PREFIX.
files=(
    include/jitquant.h
    include/jitquant.hpp
    include/jitquant_runtime.h
    lib/libjitquant.so
    "lib/libjitquant.so.$abi"
    "lib/libjitquant.so.$abi.debug"
    lib/libjitquant_preload.so
    lib/libjitquant_runtime.so
    "lib/libjitquant_runtime.so.$runtime_abi"
    lib/cmake/jitquant/jitquantConfig.cmake
    lib/cmake/jitquant/jitquantConfigVersion.cmake
    lib/pkgconfig/jitquant.pc
    lib/pkgconfig/jitquant_runtime.pc
    share/licenses/jitquant/LICENSE-APACHE
    share/licenses/jitquant/LICENSE-MIT
)

if [ "${1:-}" = --remove ]; then
    prefix=${DESTDIR:-}${2:?install.sh --remove PREFIX}
    for file in "${files[@]}"; do
        rm -f "$prefix/$file"
    done
    # Others may have files in the folders above.
    for folder in lib/cmake/jitquant share/licenses/jitquant; do
        rmdir "$prefix/$folder" 2>/dev/null || true
    done
    echo "removed jitquant from $prefix"
    exit
fi

prefix=${DESTDIR:-}${1:?install.sh PREFIX [FOLDER]}
built=${2:-${CARGO_TARGET_DIR:-$root/target}/release}
libtorch=$(cd "${LIBTORCH:-$root/.libtorch/torch}" && pwd)

number() {
    # Not every version of libtorch has both.
    { cat "$libtorch"/include/torch/{headeronly,csrc/api/include/torch}/version.h 2>/dev/null || true; } |
        sed -nE "s/^#define TORCH_VERSION_$1 ([0-9]+)/\1/p" | head -n 1
}
torch_version="$(number MAJOR).$(number MINOR).$(number PATCH)"

fill() {
    sed -e "s/@VERSION@/$version/g" -e "s/@TORCH_VERSION@/$torch_version/g" -e "s/@ABI@/$abi/g" \
        -e "s|@LIBTORCH@|$libtorch|g" "$root/cmake/$1.in" >"$prefix/$2/$1"
}

# Beside and renamed: a program that runs with the old library keeps it.
place() {
    chmod 755 "$1"
    mv "$1" "$2"
}

for file in "${files[@]}"; do
    mkdir -p "$(dirname "$prefix/$file")"
done
install -m 644 "$root"/include/jitquant{.h,.hpp,_runtime.h} "$prefix/include/"
library=$prefix/lib/libjitquant.so.$abi
new=$prefix/lib/.libjitquant.so.new
# What debuggers need lies beside.
objcopy --only-keep-debug "$built/libjitquant.so" "$library.debug"
chmod 644 "$library.debug"
strip --strip-unneeded "$built/libjitquant.so" -o "$new"
objcopy --add-gnu-debuglink="$library.debug" "$new"
place "$new" "$library"
ln -sfn "libjitquant.so.$abi" "$prefix/lib/libjitquant.so"
# Small, and without libtorch: it is built here.
new=$prefix/lib/.libjitquant_preload.so.new
"${CXX:-c++}" -std=c++17 -O2 -fPIC -shared -fvisibility=hidden -Wl,-soname,libjitquant_preload.so -s \
    -I "$root/include" "$root/preload/preload.cpp" -o "$new" -ldl
place "$new" "$prefix/lib/libjitquant_preload.so"
# The runtime without libtorch, where it was built.
if [ -f "$built/libjitquant_runtime_c.so" ]; then
    new=$prefix/lib/.libjitquant_runtime.so.new
    strip --strip-unneeded "$built/libjitquant_runtime_c.so" -o "$new"
    place "$new" "$prefix/lib/libjitquant_runtime.so.$runtime_abi"
    ln -sfn "libjitquant_runtime.so.$runtime_abi" "$prefix/lib/libjitquant_runtime.so"
    fill jitquant_runtime.pc lib/pkgconfig
fi
fill jitquantConfig.cmake lib/cmake/jitquant
fill jitquantConfigVersion.cmake lib/cmake/jitquant
fill jitquant.pc lib/pkgconfig
install -m 644 "$root"/LICENSE-{APACHE,MIT} "$prefix/share/licenses/jitquant/"
echo "installed jitquant $version for libtorch $torch_version in $prefix"
