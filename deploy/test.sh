#!/bin/sh
# Installs what the tests need, builds, and runs every test through CTest:
#     sh deploy/test.sh [--quick | --tsan [REGEX] | --valgrind [REGEX]]
# 1. gcc, Release: every test.   2. gcc, ASan + UBSan: every test but those labelled `slow`.
# 3. clang: builds without a warning.   --quick stops after the first.
# --tsan and --valgrind do something else instead, for an hour or several: every test that can be run so, under
# ThreadSanitizer or valgrind (docs/testing.md). REGEX: tests by name.
set -eu
cd "$(dirname "$0")/.."
jobs=$(nproc)
case "${1:-}" in
"" | --quick | --tsan | --valgrind) ;;
*)
    echo "error: unknown argument $1: --quick, --tsan or --valgrind" >&2
    exit 2
    ;;
esac

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
under() { # TOOL PRESET REGEX
    build "$2"
    exec python3 tests/support/under.py "$1" "build/$2" -j "$jobs" -R "$3"
}
mkdir -p build
case "${1:-}" in
--tsan) under tsan tsan "${2:-}" ;;
--valgrind)
    command -v valgrind >/dev/null || { echo "error: there is no valgrind here: install its package" >&2; exit 1; }
    under valgrind release "${2:-}"
    ;;
esac
build release
tests release
[ "${1:-}" = --quick ] && exit 0

build sanitize
tests sanitize -LE slow

build clang
echo "all builds and tests passed"
