#!/usr/bin/env bash
# matrix.sh [VERSION...]   builds libjitquant.so against several versions of libtorch and runs the tests that need only the
#                          library, C and C++: 2.9.1, 2.11.0, 2.13.0 and 2.15.0 where none is named.
#
# Downloads 540 to 900 MB for each version from PyPI, once, into .libtorch-VERSION/, where 0.5 GB stays; builds in
# target/matrix/VERSION/. At the end each library is also opened in the libtorch before it and after it, which it has to refuse.
# Prints a table. The exit status is 0 where everything passed.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
root=$PWD
versions=("$@")
[ $# -gt 0 ] || versions=(2.9.1 2.11.0 2.13.0 2.15.0)
tests=(plugin cpp_header cpp_app c_app capi zero_touch executors)
report=$root/target/matrix
mkdir -p "$report"

wheels() {
    local folder=$1
    shift
    # TMPDIR: pip keeps a wheel there while it arrives, and /tmp is often too small for these.
    TMPDIR=$folder python3 -m pip download --quiet --no-cache-dir --only-binary=:all: --python-version 3.11 \
        --implementation cp --abi cp311 --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
        --platform manylinux2014_x86_64 --dest "$folder" "$@"
}

# download VERSION FOLDER: headers and libraries of libtorch, and the two CUDA libraries that libtorch_cpu.so is linked with.
# Which wheels hold those two, torch's own wheel says: directly up to 2.10, through cuda-toolkit later.
download() {
    local version=$1 folder=$2 parts=$2/wheels metadata cuda
    mkdir -p "$parts" && wheels "$parts" --no-deps "torch==$version" || return 1
    metadata=$(unzip -p "$parts/torch-$version-"*.whl '*.dist-info/METADATA') || return 1
    mapfile -t cuda < <(sed -nE 's/^Requires-Dist: (nvidia-cuda-(runtime|cupti)(-cu[0-9]+)?) ?\(?==([0-9.]+).*/\1==\4/p' \
        <<<"$metadata")
    if [ ${#cuda[@]} -eq 0 ]; then
        mapfile -t cuda < <(sed -nE 's/^Requires-Dist: cuda-toolkit\[.*\] ?==([0-9.]+).*/cuda-toolkit[cudart,cupti]==\1/p' \
            <<<"$metadata")
    fi
    if [ ${#cuda[@]} -eq 0 ]; then
        echo "matrix: torch $version says nowhere which CUDA runtime it needs" >&2
        return 1
    fi
    wheels "$parts" "${cuda[@]}" || return 1
    local wheel
    for wheel in "$parts"/*.whl; do
        unzip -qo "$wheel" 'torch/include/*' torch/lib/libtorch_cpu.so torch/lib/libc10.so 'torch/lib/lib*.so.[0-9]*' \
            'nvidia/*/lib/libcudart.so*' 'nvidia/*/lib/libcupti.so*' -d "$folder" 2>/dev/null
    done
    [ -s "$folder/torch/lib/libtorch_cpu.so" ] || return 1
    rm -rf "$parts"
    echo "$version" >"$folder/torch/build-version"
}

# libtorch_of VERSION: the folder with its include/ and lib/.
libtorch_of() {
    if [ "$(cat .libtorch/torch/build-version 2>/dev/null)" = "$1" ]; then
        echo "$root/.libtorch/torch"
    else
        echo "$root/.libtorch-$1/torch"
    fi
}

cargo_for() {
    local version=$1
    shift
    LIBTORCH=$(libtorch_of "$version") CARGO_TARGET_DIR=$report/$version cargo "$@" \
        --no-default-features --features torch
}

library_of() {
    echo "$report/$1/debug/libjitquant.so"
}

# counts LOG: what passed of what ran, from cargo's "test result" lines.
counts() {
    awk '/^test result: / { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i - 1); if ($i ~ /^failed/) f += $(i - 1) } }
         END { printf "%d of %d", p, p + f }' "$1"
}

failed=0
declare -A row
for version in "${versions[@]}"; do
    echo "==> libtorch $version"
    folder=$(libtorch_of "$version")
    if [ ! -s "$folder/build-version" ] && ! download "$version" "$root/.libtorch-$version"; then
        row[$version]="not downloaded | |"
        failed=1
        continue
    fi
    if ! cargo_for "$version" build --lib; then
        row[$version]="no | |"
        failed=1
        continue
    fi
    row[$version]="yes |"
    log=$report/$version.log
    # shellcheck disable=SC2046
    cargo_for "$version" test --no-fail-fast $(printf -- '--test %s ' "${tests[@]}") 2>&1 | tee "$log"
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
    row[$version]+=" $(counts "$log") |"
done

# others VERSION OTHER: whether the library for VERSION refuses the libtorch OTHER.
others() {
    [ -e "$(library_of "$1")" ] && [ -e "$(library_of "$2")" ] || return 0
    echo "==> the library for $1 in libtorch $2"
    if JITQUANT_OTHER_LIBRARY=$(library_of "$1") cargo_for "$2" test --test plugin another_version; then
        row[$1]+=" refuses $2"
    else
        row[$1]+=" DOES NOT REFUSE $2"
        failed=1
    fi
}

# Each library in the libtorch before it and after it.
for ((i = 1; i < ${#versions[@]}; i++)); do
    others "${versions[i]}" "${versions[i - 1]}"
    others "${versions[i - 1]}" "${versions[i]}"
done

printf '\n| libtorch | builds | tests passed | another libtorch |\n| --- | --- | --- | --- |\n'
for version in "${versions[@]}"; do
    printf '| %s | %s |\n' "$version" "${row[$version]}"
done
exit "$failed"
