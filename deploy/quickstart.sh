#!/bin/sh
# From a clone to a mask: installs what is missing, builds a release, starts a Redis server, a
# scheduler and a worker of its own, segments one image through gRPC, and stops them all again.
#     sh deploy/quickstart.sh [--image FILE --prompt TEXT] [--out DIR]
set -eu
start_dir=$(pwd)
cd "$(dirname "$0")/.."
root=$(pwd)

image= prompt= out="$start_dir/pseg-quickstart"
usage() {
    echo "usage: sh deploy/quickstart.sh [--image FILE --prompt TEXT] [--out DIR]" >&2
    exit 2
}
absolute() { case $1 in /*) echo "$1" ;; *) echo "$start_dir/$1" ;; esac; }
while [ $# -gt 0 ]; do
    case $1 in
    --help|-h) sed -n '2,4s/^# \{0,1\}//p' "$root/deploy/quickstart.sh"; exit 0 ;;
    --image|--prompt|--out) [ $# -ge 2 ] || usage ;;
    *) echo "error: unknown option $1" >&2; usage ;;
    esac
    case $1 in
    --image) image=$(absolute "$2") ;;
    --prompt) prompt=$2 ;;
    --out) out=$(absolute "$2") ;;
    esac
    shift 2
done
if [ -n "$image" ] && [ -z "$prompt" ]; then echo "error: --image needs --prompt TEXT" >&2; exit 2; fi
if [ -n "$image" ] && [ ! -r "$image" ]; then echo "error: cannot read $image" >&2; exit 2; fi
if [ -z "$image" ]; then
    image=$root/docs/example/scene.png
    [ -n "$prompt" ] || prompt=$(cat "$root/docs/example/prompt.txt")
fi

sh deploy/install-packages.sh deploy/packages-build.txt

build=$root/build/quickstart
mkdir -p "$root/build"
if [ ! -f "$build/build.ninja" ]; then
    echo "configuring ..."
    cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPSEG_TESTS=OFF \
        >"$root/build/quickstart.log" 2>&1 || { tail -n 30 "$root/build/quickstart.log" >&2; exit 1; }
fi
echo "building ..."
cmake --build "$build" >"$root/build/quickstart.log" 2>&1 || { tail -n 30 "$root/build/quickstart.log" >&2; exit 1; }

run=$(mktemp -d)
pids=
stop() {
    status=$?
    trap - EXIT INT TERM
    # The worker and the scheduler first, so that neither complains about a lost Redis.
    for pid in $pids; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$run"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Each program writes its address to the file named by --ready-file once it serves.
start() { # NAME COMMAND...
    name=$1
    shift
    "$@" >"$run/$name.log" 2>&1 &
    pid=$!
    pids="$pid $pids"
    while [ ! -s "$run/$name.ready" ]; do
        if ! kill -0 "$pid" 2>/dev/null; then
            echo "error: $name did not start:" >&2
            tail -n 5 "$run/$name.log" >&2
            exit 1
        fi
        sleep 0.05
    done
}

echo "starting Redis, scheduler and worker ..."
redis-server --port 0 --unixsocket "$run/redis.sock" --dir "$run" --appendonly yes --save '' \
    --maxmemory-policy noeviction >"$run/redis.log" 2>&1 &
pids=$!
until redis-cli -s "$run/redis.sock" ping >/dev/null 2>&1; do
    kill -0 "$pids" 2>/dev/null || { echo "error: redis-server did not start:" >&2; tail -n 5 "$run/redis.log" >&2; exit 1; }
    sleep 0.05
done
start scheduler "$build/bin/pseg-scheduler" --redis "unix:$run/redis.sock" --listen 127.0.0.1:0 \
    --ready-file "$run/scheduler.ready"
start worker "$build/bin/pseg-worker" --redis "unix:$run/redis.sock" --model "$root/deploy/models/scenes" \
    --ready-file "$run/worker.ready"

"$build/bin/pseg" segment --server "$(cat "$run/scheduler.ready")" --image "$image" --prompt "$prompt" --out "$out"
