#!/usr/bin/env bash
# test.sh: every check of this repository, each under a heading with its time. A failed check does not stop the ones after
# it; the exit status and the last lines say what failed. `make test` sets up first and then runs this.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=scripts/step.sh
. scripts/step.sh

log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0
failed=()

check() {
    if step "$@"; then
        passed=$((passed + 1))
    else
        failed+=("$1")
    fi
}

# clang-format 14, Debian 12's, decides. Other versions break some lines differently: what they would change is printed only.
clang_format() {
    local tool=clang-format files
    if command -v clang-format-14 >/dev/null 2>&1; then
        tool=clang-format-14
    fi
    mapfile -t files < <(find cpp crates include preload src tests benches examples -type f \
        \( -name '*.h' -o -name '*.hpp' -o -name '*.c' -o -name '*.cc' -o -name '*.cpp' \) 2>/dev/null | LC_ALL=C sort)
    if [ ${#files[@]} -eq 0 ]; then
        echo "    no C++ files"
    elif "$tool" --version | grep -q 'version 14\.'; then
        "$tool" --dry-run -Werror "${files[@]}"
    else
        "$tool" --dry-run "${files[@]}"
        echo "    this is $("$tool" --version), not version 14, which decides: the lines above are no failure"
    fi
}

# cargo_test NAME OPTION...: builds quietly (a compiler's messages are printed all the same), then runs: a heading a test
# binary, a dot a test.
cargo_test() {
    echo "run: $1" >>"$log"
    shift
    cargo test --quiet --no-run "$@" && cargo test --no-fail-fast "$@" -- --quiet 2>&1 | tee -a "$log"
}

# With LIBTORCH pointing nowhere, a build that succeeds did not use libtorch. In a folder of its own, or each run would
# build twice what depends on LIBTORCH.
without_libtorch() {
    LIBTORCH=/nonexistent CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/no-libtorch "$@"
}

rustdoc() {
    RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps -p jitquant -p jitquant-kernels -p jitquant-runtime
}

# The default features come last: target/debug is left with the complete library and program.
check "rustfmt" cargo fmt --all --check
check "clang-format" clang_format
# Needs no network but for advisories, which a run that has one looks at: `cargo deny check`.
if cargo deny --version >/dev/null 2>&1; then
    check "cargo deny" cargo deny --log-level error --offline check licenses bans sources
fi
check "clippy, no features" without_libtorch cargo clippy --quiet --no-default-features -p jitquant -p jitquant-kernels -p jitquant-runtime -p jitquant-runtime-c --all-targets -- -D warnings
check "tests, no features (no libtorch)" without_libtorch cargo_test "without libtorch" --no-default-features -p jitquant -p jitquant-kernels -p jitquant-runtime -p jitquant-runtime-c
check "clippy, without tch" cargo clippy --quiet --no-default-features --features cli --all-targets -- -D warnings
check "clippy, default features" cargo clippy --quiet --workspace --all-targets -- -D warnings
check "tests, default features, with documentation tests" cargo_test "default features"
check "rustdoc" rustdoc

printf '\n==> Summary (%d s)\n' "$SECONDS"
printf '    checks: %d passed, %d failed\n' "$passed" "${#failed[@]}"
if [ ${#failed[@]} -gt 0 ]; then
    printf '    FAILED: %s\n' "${failed[@]}"
fi
# Adds up each run's "test result:" lines: the number stands before "passed;", "failed;", "ignored;".
awk 'function report() {
         if (run) printf "    tests, %s: %d passed, %d failed, %d ignored\n", run, sum["passed;"], sum["failed;"], sum["ignored;"]
         delete sum
     }
     /^run: / { report(); run = substr($0, 6) }
     /^test result: / { for (i = 2; i <= NF; i++) if ($i ~ /^(passed|failed|ignored);$/) sum[$i] += $(i - 1) }
     END { report() }' "$log"
[ ${#failed[@]} -eq 0 ]
