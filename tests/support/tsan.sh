#!/bin/sh
# ThreadSanitizer over what has threads of its own, and no gRPC in the same process:
#     cmake --preset tsan && cmake --build --preset tsan && sh tests/support/tsan.sh build/release build/tsan
# The queue, metrics, the base and a worker's threads by their tests; a whole worker behind a scheduler of the release build;
# `pseg batch` against a server in Python.
# libgrpc orders its events by mutexes of its own, which the sanitizer does not see: a scheduler built with it
# shows races between the core's threads, and between them and everyone who takes an event.
set -eu
release=$(cd "$1" && pwd)
tsan=$(cd "$2" && pwd)
cd "$(dirname "$0")/../.."
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
# A worker whose grace is over ends with a thread on the device, by intent.
export TSAN_OPTIONS="exitcode=66:log_path=$run/report:ignore_noninstrumented_modules=1:report_thread_leaks=0"

for test in base conf job metrics queue queue_replies queue_redis queue_random serve; do
    echo "== $test" >&2
    "$tsan/tests/test_$test" >"$run/out" 2>&1 || { status=$?; [ $status = 77 ] || { tail -n 30 "$run/out" >&2; exit 1; }; }
done

# The worker finds model and decoders by its own place. Decoders are locked in, where the sanitizer's runtime
# cannot live: those of the release build.
mkdir "$run/bin"
ln -s "$release"/bin/* "$run/bin/"
rm "$run/bin/pseg-worker"
ln -s "$tsan/bin/pseg-worker" "$run/bin/pseg-worker"
cp "$release/bin/pseg-decode" "$tsan/bin/pseg-decode"
for test in api_jobs api_masks api_prepare api_process; do
    echo "== $test" >&2
    /usr/bin/python3 -B "tests/integration/${test}_test.py" "$run/bin" "$release/gen/pseg.desc" >"$run/out" 2>&1 ||
        { tail -n 30 "$run/out" >&2; exit 1; }
done

# Its own threads are seen, and gRPC's are not looked at.
echo "== batch" >&2
rm "$run/bin/pseg"
ln -s "$tsan/bin/pseg" "$run/bin/pseg"
/usr/bin/python3 -B tests/integration/batch_test.py "$run/bin" "$release/gen/pseg.desc" >"$run/out" 2>&1 ||
    { tail -n 30 "$run/out" >&2; exit 1; }

if ls "$run"/report* >/dev/null 2>&1; then
    grep -h -A 12 'WARNING: ThreadSanitizer' "$run"/report* | head -n 200 >&2
    exit 66
fi
echo "no races"
