#!/bin/sh
# What `cmake --install` leaves works by itself, wherever it is moved: sh install_test.sh CMAKE BUILD ROOT
set -eu
cmake=$1 build=$2 root=$3
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
fail() { echo "FAILED: $*"; exit 1; }
for name in $(env | sed -n 's/^\(PSEG_[A-Z0-9_]*\)=.*/\1/p'); do unset "$name"; done

# Once with a prefix, once staged for a package: the same files.
"$cmake" --install "$build" --prefix "$run/prefix" >"$run/log" 2>&1 || { cat "$run/log"; fail "cmake --install"; }
DESTDIR=$run/stage "$cmake" --install "$build" --prefix /usr >"$run/log" 2>&1 || { cat "$run/log"; fail "DESTDIR"; }
diff -r "$run/prefix" "$run/stage/usr" || fail "a staged installation differs"
rm -r "$run/stage"
(cd "$run/prefix" && find . -type f | sort) >"$run/files"
for file in bin/pseg bin/pseg-scheduler bin/pseg-worker libexec/pseg/pseg-run libexec/pseg/pseg-devices \
    libexec/pseg/pseg-scenes libexec/pseg/pseg-data libexec/pseg/pseg-bench share/pseg/models/scenes/pseg.json \
    share/pseg/models/scenes/vision/model.safetensors share/pseg/models/scenes/text/merges.txt \
    share/pseg/proto/pseg/v1/pseg.proto share/pseg/proto/google/rpc/status.proto share/doc/pseg/LICENSE \
    share/doc/pseg/docs/config.md; do
    grep -qx "./$file" "$run/files" || fail "$file is not installed"
done
if grep -vE '^\./(bin|libexec/pseg|share/pseg|share/doc/pseg)/' "$run/files"; then fail "these belong elsewhere"; fi
if find "$run/prefix" -name 'test_*' -o -name 'fuzz_*' | grep .; then fail "tests are installed"; fi

# Moved, and called through a link from somewhere else.
mkdir -p "$run/else/where" "$run/links"
mv "$run/prefix" "$run/else/where/pseg"
bin=$run/else/where/pseg/bin
ln -s "$bin/pseg" "$run/links/pseg"
cp "$root/docs/example/scene.png" "$run/scene.png"
cd "$run"
"$bin/pseg" --help >help || fail "pseg --help"
for command in segment submit get wait cancel list models quarantine key run devices scenes data bench; do
    grep -q "^  $command " help || fail "pseg --help does not tell of $command"
    links/pseg $command --help >out || fail "pseg $command --help"
    [ -s out ] || fail "pseg $command --help is empty"
done
"$bin/pseg-scheduler" --version >out && "$bin/pseg-worker" --version >>out || fail "--version"
links/pseg scenes --out drawn --count 1 --size 64 >out || fail "pseg scenes"
links/pseg devices >out || fail "pseg devices"

# The engine: the model in the box and the kernels, with nothing of the build or source tree in sight
# where the system lets us hide them.
cat >segment.sh <<'END'
set -eu
for folder in $HIDDEN; do mount -t tmpfs none "$folder"; done
links/pseg run --image scene.png --prompt "the small red circle" --out result
END
hidden="$build"
case $build in "$root"/*) hidden=$root ;; *) hidden="$build $root" ;; esac
case $run in "$build"/* | "$root"/*) hidden= ;; esac
if [ -n "$hidden" ] && unshare -rm true 2>/dev/null; then
    HIDDEN=$hidden unshare -rm sh segment.sh >out 2>&1 || { cat out; fail "pseg run without build and source"; }
    echo "build and source were hidden"
else
    HIDDEN='' sh segment.sh >out 2>&1 || { cat out; fail "pseg run"; }
    echo "note: no user namespaces; build and source were in sight"
fi
for file in original mask overlay; do [ -s result/$file.png ] || fail "no $file.png"; done
# It was the installed model that ran: without it there is none, though the source has one.
mv else/where/pseg/share/pseg/models models
status=0
links/pseg run --image scene.png --prompt "a star" --out result2 2>err || status=$?
[ $status = 2 ] && grep -q MODEL_MISSING err || fail "without its model pseg run ended with $status: $(cat err)"
links/pseg run --model "$run/models/scenes" --image scene.png --prompt "the small red circle" --out result3 >out ||
    fail "a model given as a folder"
cmp result/mask.png result3/mask.png || fail "the masks differ"
# Without its helper programs, pseg names what is missing.
rm else/where/pseg/libexec/pseg/pseg-devices
status=0
links/pseg devices 2>err || status=$?
[ $status = 3 ] && grep -q "pseg-devices.*libexec" err || fail "without pseg-devices: $status: $(cat err)"
echo "1 passed, 0 failed"
