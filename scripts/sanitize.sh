#!/usr/bin/env bash
# sanitize.sh [thread|address]...: the kernel tests, without libtorch, under Rust's sanitizers: data races between the threads
# that share a kernel's output, reads and writes out of bounds. Needs a nightly Rust with the component rust-src; it builds
# the standard library anew. libtorch itself cannot be watched: it is not built with a sanitizer.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=x86_64-unknown-linux-gnu
sysroot=$(rustc +nightly --print sysroot 2>/dev/null) && [ -d "$sysroot/lib/rustlib/src/rust/library" ] || {
    echo "make sanitize: needs a nightly Rust: rustup toolchain install nightly --profile minimal --component rust-src" >&2
    exit 1
}
[ $# -gt 0 ] || set -- thread address
# Fewer random cases: each takes several times as long.
export PROPTEST_CASES=${PROPTEST_CASES:-16}
export LIBTORCH=/nonexistent
for sanitizer in "$@"; do
    RUSTFLAGS="-Zsanitizer=$sanitizer" CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/sanitize-$sanitizer \
        cargo +nightly test --quiet -Zbuild-std --target "$target" --no-default-features --test 'kernel_*' --test qat_kernel
done
