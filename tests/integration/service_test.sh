#!/bin/sh
# The whole path, with real processes: sh service_test.sh BIN
# Every wait is a poll with a deadline; everything started here ends with it.
set -eu
bin=$1
command -v redis-server >/dev/null 2>&1 || { echo "skipped: no redis-server"; exit 77; }
run=$(mktemp -d)
pids=
finish() {
    status=$?
    trap - EXIT
    for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
    if [ "$status" != 0 ]; then for f in "$run"/*.log; do echo "== $f"; tail -n 15 "$f"; done; fi
    rm -rf "$run"
    exit "$status"
}
trap finish EXIT
fail() { echo "FAILED: $*"; exit 1; }

# until_true SECONDS WHAT COMMAND...
until_true() {
    seconds=$1 what=$2 n=0
    shift 2
    until "$@" >/dev/null 2>&1; do
        n=$((n + 1))
        [ "$n" -le $((seconds * 20)) ] || fail "$what did not happen within $seconds s"
        sleep 0.05
    done
}
start() { # NAME COMMAND... : $started is the process
    name=$1
    shift
    rm -f "$run/$name.ready"
    "$@" --ready-file "$run/$name.ready" >>"$run/$name.log" 2>&1 &
    started=$!
    pids="$started $pids"
    until_true 60 "$name getting ready" test -s "$run/$name.ready"
}
# expect STATUS PART COMMAND... : exit status, and one line on standard error that holds PART
expect() {
    want=$1 part=$2
    shift 2
    got=0
    "$@" >"$run/out.log" 2>"$run/err.log" || got=$?
    [ "$got" = "$want" ] || fail "$* ended with $got, not $want: $(cat "$run/err.log")"
    grep -q "$part" "$run/err.log" || fail "$* did not say $part but: $(cat "$run/err.log")"
    [ "$(wc -l <"$run/err.log")" = 1 ] || fail "$* said more than one line"
}

redis-server --port 0 --unixsocket "$run/redis.sock" --dir "$run" --appendonly yes --save '' >"$run/redis.log" 2>&1 &
pids=$!
until_true 20 "redis getting ready" redis-cli -s "$run/redis.sock" ping
start scheduler "$bin/pseg-scheduler" --redis "unix:$run/redis.sock" --listen 127.0.0.1:0 --lease-ms 1000
scheduler=$started
PSEG_SERVER=$(cat "$run/scheduler.ready")
export PSEG_SERVER
pseg=$bin/pseg image=docs/example/scene.png

# No worker yet: jobs wait, and can be cancelled.
job=$($pseg submit --image $image --prompt "a red circle" --label batch=7)
$pseg get "$job" --json | grep -q '"QUEUED"' || fail "a job without a worker is not queued"
$pseg cancel "$job" | grep -q CANCELLED || fail "a queued job was not cancelled at once"
expect 5 JOB_CANCELLED $pseg wait "$job"

# One image, two phrases: the service and the single process give the same files.
start worker "$bin/pseg-worker" --redis "unix:$run/redis.sock" --model scenes --lease-ms 1000
worker=$started
$pseg segment --image $image --prompt "the small red circle" --prompt "the striped yellow circle" --out "$run/a" --side-by-side >"$run/a.log"
"$pseg" run --image $image --prompt "the small red circle" --prompt "the striped yellow circle" --out "$run/b" --side-by-side >"$run/b.log"
diff -r "$run/a" "$run/b" || fail "pseg segment and pseg run differ"
cmp "$run/a/original.png" $image || fail "the original is not the original"
$pseg models | grep -q "scenes .*1 worker, default" || fail "the model is not listed"

# Every encoding of a mask, and repeating with a request id.
job=$($pseg submit --image $image --prompt "the small red circle" --request-id same-1)
[ "$job" = "$($pseg submit --image $image --prompt "the small red circle" --request-id same-1)" ] || fail "a repeat made a new job"
expect 1 REQUEST_ID_REUSED $pseg submit --image $image --prompt "another" --request-id same-1
$pseg wait "$job" >"$run/wait.log"
for encoding in png rle bits polygon float16; do
    $pseg get "$job" --mask 0 --encoding $encoding --out "$run/mask.$encoding" >/dev/null
    [ -s "$run/mask.$encoding" ] || fail "no mask as $encoding"
done
cmp "$run/mask.png" "$run/a/mask-0.png" || fail "the mask fetched as PNG is another"
[ "$(wc -c <"$run/mask.bits")" = 6272 ] || fail "packed bits of 224 x 224 are not 6272 bytes"
[ "$(wc -c <"$run/mask.float16")" = 100352 ] || fail "float16 of 224 x 224 is not 100352 bytes"
expect 3 MASK_NOT_FOUND $pseg get "$job" --mask 5
$pseg list --state SUCCEEDED --json | grep -q "$job" || fail "the job is not listed"

# Mistakes: one line, the right status.
head -c 2000 $image >"$run/cut.png"
expect 2 IMAGE_UNDECODABLE $pseg segment --image "$run/cut.png" --prompt x --out "$run/c"
expect 3 FILE_NOT_FOUND $pseg segment --image /no/such.png --prompt x
expect 2 IMAGE_FORMAT_UNSUPPORTED $pseg submit --image README.md --prompt x
expect 2 PROMPT_EMPTY $pseg submit --image $image --prompt " "
expect 2 PROMPT_NOT_TEXT $pseg submit --image $image --prompt "$(printf 'a\377b')"
expect 2 PROMPT_TOO_LONG $pseg submit --image $image --prompt "$(yes word | head -n 10000 | tr '\n' ' ')"
expect 3 MODEL_UNKNOWN $pseg submit --image $image --prompt x --model nothing
expect 3 JOB_NOT_FOUND $pseg get jobs/00000000000000000000000000000000
expect 2 NAME_INVALID $pseg get nonsense
expect 2 CONFIG_INVALID $pseg submit --colour red
expect 2 ADDRESS_IN_USE "$bin/pseg-scheduler" --redis "unix:$run/redis.sock" --listen "$PSEG_SERVER" --log-level error
expect 2 MODEL_MISSING "$bin/pseg-worker" --redis "unix:$run/redis.sock" --model /no/model --log-level error
expect 4 SERVER_UNAVAILABLE $pseg models --server 127.0.0.1:1
# A truncated image that passes the client: the job fails with the reason, and the worker lives on.
job=$($pseg submit --image "$run/cut.png" --prompt x)
expect 5 JOB_FAILED $pseg wait "$job"
$pseg get "$job" --json | grep -q "cannot be decoded" || fail "the failed job does not tell why"

# A worker killed with jobs in hand: another does them all.
kill -STOP "$worker"
jobs=
for i in 1 2 3; do jobs="$jobs $($pseg submit --image $image --prompt "a star $i")"; done
kill -9 "$worker"
start worker2 "$bin/pseg-worker" --redis "unix:$run/redis.sock" --model scenes --lease-ms 1000
worker=$started
for job in $jobs; do $pseg wait "$job" --timeout-ms 60s >>"$run/wait.log" || fail "$job was lost with its worker"; done

# Redis away: calls fail in time and say so; back again: the job that was stored is there.
redis_pid=$(cat "$run/redis.pid" 2>/dev/null || redis-cli -s "$run/redis.sock" info server | sed -n 's/process_id:\([0-9]*\).*/\1/p')
kill -9 "$redis_pid"
expect 4 BROKER_UNAVAILABLE $pseg list --timeout-ms 10s
redis-server --port 0 --unixsocket "$run/redis.sock" --dir "$run" --appendonly yes --save '' >>"$run/redis.log" 2>&1 &
pids="$! $pids"
until_true 30 "the service coming back" $pseg get "$job"
$pseg segment --image $image --prompt "the small red circle" --out "$run/d" >/dev/null || fail "no segmentation after redis came back"

# Both stop in peace.
kill "$worker"
wait "$worker" || fail "the worker did not end with 0"
kill "$scheduler"
wait "$scheduler" || fail "the scheduler did not end with 0"
echo "1 passed, 0 failed"
