#!/usr/bin/env bash
# sanitize.sh [operators|address|thread]...: the kernel tests, without libtorch, under Rust's sanitizers (data races between the
# threads that share a kernel's output, reads and writes out of bounds), and the whole library with libtorch under the address
# sanitizer, while every native operator is called with arguments that nobody means, CASES times (6,000) from SEED (1).
# Needs a nightly Rust; with its component rust-src the standard library is watched as well. libtorch itself is not built with a
# sanitizer, but its memory is watched where our code, Rust or C++, reads or writes it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=x86_64-unknown-linux-gnu
sysroot=$(rustc +nightly --print sysroot 2>/dev/null) || {
    echo "make sanitize: needs a nightly Rust: rustup toolchain install nightly --profile minimal --component rust-src" >&2
    exit 1
}
build_std=()
[ ! -d "$sysroot/lib/rustlib/src/rust/library" ] || build_std=(-Zbuild-std)
[ $# -gt 0 ] || set -- operators address thread
folder=${CARGO_TARGET_DIR:-target}

kernels() {
    if [ "$1" = thread ] && [ ${#build_std[@]} -eq 0 ]; then
        echo "make sanitize: races are seen with the component rust-src only: rustup component add --toolchain nightly rust-src" >&2
        exit 1
    fi
    # Fewer random cases: each takes several times as long.
    PROPTEST_CASES=${PROPTEST_CASES:-16} LIBTORCH=/nonexistent \
        RUSTFLAGS="-Zsanitizer=$1" CARGO_TARGET_DIR=$folder/sanitize-$1 \
        cargo +nightly test --quiet "${build_std[@]}" --target "$target" --package jitquant-kernels \
        --test kernels
}

# A huge allocation fails, as it does without the sanitizer; libtorch keeps what it has until the end.
operators() {
    export LIBTORCH=${LIBTORCH:-$PWD/.libtorch/torch} RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR=$folder/sanitize-operators
    export CXXFLAGS_x86_64_unknown_linux_gnu="-fsanitize=address -fno-omit-frame-pointer"
    # Frames are large with the sanitizer.
    export RUST_MIN_STACK=${RUST_MIN_STACK:-100000000}
    export ASAN_OPTIONS=${ASAN_OPTIONS:-allocator_may_return_null=1:max_allocation_size_mb=4096:detect_leaks=0}
    local project=(--manifest-path fuzz/operators/Cargo.toml --target "$target") log
    cargo +nightly test --quiet "${project[@]}"
    log=$(mktemp)
    # Each case is printed before it is tried: the last one is that which ended the process.
    cargo +nightly run --quiet "${project[@]}" -- "${CASES:-6000}" "${SEED:-1}" 2>"$log" || {
        tail -n 60 "$log" >&2
        rm -f "$log"
        exit 1
    }
    rm -f "$log"
}

for sanitizer in "$@"; do
    case $sanitizer in
    operators) operators ;;
    *) kernels "$sanitizer" ;;
    esac
done
