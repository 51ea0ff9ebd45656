#!/bin/sh
# valgrind's memcheck over the service's parts, leaks and all, with a build that has no sanitizer:
#     sh tests/support/valgrind.sh build/release
# Suppressed is what libraries do inside themselves (valgrind.supp). The engine is left out: PoCL compiles its
# kernels for instructions that valgrind does not know.
set -eu
build=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
out=$(mktemp)
trap 'rm -f "$out"' EXIT
check="valgrind --quiet --error-exitcode=99 --leak-check=full --show-leak-kinds=definite,indirect
    --errors-for-leak-kinds=definite,indirect --child-silent-after-fork=yes --suppressions=tests/support/valgrind.supp"

for test in base conf job metrics mask queue queue_replies queue_redis validate safetensors; do
    echo "== $test" >&2
    $check "$build/tests/test_$test" >"$out" 2>&1 || { status=$?; [ $status = 77 ] || { tail -n 60 "$out" >&2; exit 1; }; }
done
for corpus in redis proto job rle keyfile; do
    echo "== fuzz_$corpus" >&2
    $check "$build/tests/fuzz_$corpus" --mutations 3 "tests/fuzz/${corpus}_corpus" >"$out" 2>&1 ||
        { tail -n 60 "$out" >&2; exit 1; }
done
echo "no errors, no leaks"
