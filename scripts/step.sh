#!/usr/bin/env bash
# step.sh TITLE COMMAND...: runs the command under a heading and says how long it took. Sourced, it defines `step`.

step() {
    local title=$1 start=$SECONDS status=0
    shift
    printf '\n==> %s\n' "$title"
    "$@" || status=$?
    if [ $status -eq 0 ]; then
        printf '    done in %d s: %s\n' $((SECONDS - start)) "$title"
    else
        printf '    FAILED after %d s (exit status %d): %s\n' $((SECONDS - start)) $status "$title" >&2
    fi
    return $status
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    step "$@"
fi
