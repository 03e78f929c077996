#!/usr/bin/env bash
# generated.sh [COUNT [JOBS [TEST]]]   checks COUNT generated models (10,000), in JOBS processes at a time (as many as there are
#                                      cores). TEST is insert_observers (the default), which compares our passes with libtorch's,
#                                      or functionalize: INT8 models that write in place, change lists and keep state.
#
# Each process draws 100 models of its own, checks them all the way from observers to the INT8 model, and ends: libtorch keeps
# every type it has ever compiled, so that one process with all the models would become slower and larger. The exit status is 0
# where none differed; the log of a process that found one is printed, with the model made as small as it could be.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
count=${1:-10000}
jobs=${2:-$(nproc)}
test=${3:-insert_observers}
each=100
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

program=${JITQUANT_GENERATED_PROGRAM:-}
if [ -z "$program" ]; then
    program=$(cargo test --no-run --test "$test" --message-format=json | sed -nE \
        's/.*"name":"'"$test"'".*"executable":"([^"]+)".*/\1/p')
fi
export logs program each
export OMP_NUM_THREADS=1

# one NUMBER: a process with `each` models; its log is kept where one differed.
one() {
    JITQUANT_GENERATED=$each "$program" random_models >"$logs/$1" 2>&1 || return 1
    echo "$1"
}
export -f one

runs=$(((count + each - 1) / each))
done_=0
failed=0
while read -r _; do
    done_=$((done_ + 1))
    printf '\r%d of %d models' $((done_ * each)) $((runs * each)) >&2
done < <(seq "$runs" | xargs -P "$jobs" -I{} bash -c 'one {} || true')
echo >&2
failed=$((runs - done_))
if [ "$failed" -gt 0 ]; then
    grep -L '^test result: ok' "$logs"/* | while read -r log; do cat "$log"; done
    echo "generated: $failed of $runs processes found a model that differs" >&2
    exit 1
fi
echo "generated: $((runs * each)) models, none differs"
