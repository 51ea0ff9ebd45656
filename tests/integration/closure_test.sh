#!/bin/sh
# What deploy/containers/closure.sh copies is enough: programs run with nothing else in sight.
#     sh closure_test.sh CMAKE BUILD ROOT
set -eu
cmake=$1 build=$2 root=$3
fail() { echo "FAILED: $*"; exit 1; }
skip() { echo "skipped: $*"; exit 77; }
unshare -rm true 2>/dev/null || skip "no namespaces here"
[ -e /etc/debian_version ] || skip "closures are made on Debian"
for name in $(env | sed -n 's/^\(PSEG_[A-Z0-9_]*\)=.*/\1/p'); do unset "$name"; done
run=$(mktemp -d -p /var/tmp) # not below /tmp, which is another one inside
trap 'rm -rf "$run"' EXIT
DESTDIR=$run/stage "$cmake" --install "$build" --strip --prefix /usr >"$run/log" 2>&1 || { cat "$run/log"; fail "cmake --install"; }
usr=$run/stage/usr
closure() {
    image=$run/$1
    shift
    sh "$root/deploy/containers/closure.sh" "$image" "$@" >"$run/log" 2>&1 || { cat "$run/log"; fail "closure of $*"; }
}
# Inside, as a container engine has it: /proc, /sys and a few devices, a root that is not written to.
cat >"$run/inside.sh" <<'E2'
set -eu
image=$1
shift
chroot=$(command -v chroot || echo /usr/sbin/chroot)
for folder in proc sys dev; do
    mkdir -p "$image/$folder"
    mount --rbind "/$folder" "$image/$folder"
done
mount -t tmpfs none "$image/tmp"
[ ! -d "$image/in" ] || cp -r "$image/in/." "$image/tmp/"
exec env -i PATH=/usr/bin HOME=/tmp PSEG_CACHE=/tmp/cache POCL_CACHE_DIR=/tmp/pocl TMPDIR=/tmp "$chroot" "$image" "$@"
E2
inside() { unshare -rm sh "$run/inside.sh" "$image" "$@" </dev/null; }

if sh "$root/deploy/containers/closure.sh" "$run/none" "$run/no-such-file" >"$run/log" 2>&1; then fail "a missing file is taken"; fi
grep -q "there is no $run/no-such-file" "$run/log" || fail "a missing file is not named"

closure scheduler "$usr/bin/pseg-scheduler" /etc/ssl/certs/ca-certificates.crt
inside "$usr/bin/pseg-scheduler" --version >"$run/out" 2>&1 || { cat "$run/out"; fail "pseg-scheduler --version"; }
grep -q '^pseg-scheduler ' "$run/out" || fail "pseg-scheduler says: $(cat "$run/out")"
grep -q '^Package: libgrpc' "$image"/var/lib/dpkg/status.d/libgrpc* || fail "libgrpc's record is missing"
[ -s "$image/usr/share/doc/libhiredis0.14/copyright" ] || [ -z "$(ls "$image"/var/lib/dpkg/status.d/libhiredis0.14 2>/dev/null)" ] ||
    fail "libhiredis' copyright notice is missing"
grep -q '^pseg:x:65532:' "$image/etc/passwd" || fail "there is no user"

. "$root/deploy/containers/worker-files.sh"
closure worker "$usr" $(worker_files)
mkdir -p "$image/in"
cp "$root/docs/example/scene.png" "$image/in/"
inside "$usr/bin/pseg" run --image /tmp/scene.png --prompt "a star" --out /tmp/result >"$run/out" 2>&1 && fail "a driver out of nowhere"
grep -qi 'opencl' "$run/out" || { cat "$run/out"; fail "it does not say that an OpenCL driver is missing"; }

pocl_files >"$run/pocl" || skip "no PoCL here; the scheduler's and the worker's own files are enough"
closure worker $(cat "$run/pocl")
inside "$usr/bin/pseg" run --image /tmp/scene.png --prompt "the small red circle" --out /tmp/result >"$run/out" 2>&1 || { cat "$run/out"; fail "pseg run"; }
grep -q 'predicted IoU' "$run/out" || { cat "$run/out"; fail "no mask"; }
cat "$run/out"
du -sm "$run/scheduler" "$run/worker"
