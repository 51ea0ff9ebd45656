#!/bin/sh
# Installs what the tests need, builds, and runs every test through CTest:
#     sh deploy/test.sh [--quick]
# 1. gcc, Release: every test.   2. gcc, ASan + UBSan: every test but those labelled `slow`.
# 3. clang: builds without a warning.   --quick stops after the first.
set -eu
cd "$(dirname "$0")/.."
jobs=$(nproc)

sh deploy/install-packages.sh deploy/packages-build.txt deploy/packages-test.txt

build() { # PRESET
    echo "== $1: build" >&2
    cmake --preset "$1" >"build/$1.log" 2>&1 || { tail -n 40 "build/$1.log" >&2; exit 1; }
    cmake --build --preset "$1" -j "$jobs" >"build/$1.log" 2>&1 || {
        grep -E 'error|FAILED|warning' "build/$1.log" | head -n 40 >&2
        exit 1
    }
}
# A test that fails beside others, on a machine that has more to do, is run once more, alone, and told: what fails
# alone has failed.
tests() { # PRESET [CTEST'S ARGUMENTS]
    preset=$1
    shift
    echo "== $preset: test" >&2
    ctest --test-dir "build/$preset" --output-on-failure -j "$jobs" "$@" && return
    echo "== $preset: what failed, alone" >&2
    ctest --test-dir "build/$preset" --output-on-failure --rerun-failed
}
mkdir -p build
build release
tests release
[ "${1:-}" = --quick ] && exit 0

build sanitize
tests sanitize -LE slow

build clang
echo "all builds and tests passed"
