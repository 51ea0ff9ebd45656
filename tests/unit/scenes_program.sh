#!/bin/sh
# The program pseg-scenes: what it writes, how it refuses, its exit statuses. $1: the program.
set -u
program=$1
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
faults=0

fault() {
    echo "fault: $*"
    faults=$((faults + 1))
}

# refused STATUS WORDS ARGUMENTS...: one line on standard error with WORDS, nothing on output.
refused() {
    status=$1 words=$2
    shift 2
    "$program" "$@" >"$dir/out" 2>"$dir/err"
    got=$?
    [ $got -eq "$status" ] || fault "$*: exit status $got, expected $status"
    [ ! -s "$dir/out" ] || fault "$*: wrote to standard output"
    [ "$(wc -l <"$dir/err")" -eq 1 ] || fault "$*: not one line: $(cat "$dir/err")"
    grep -q -- "$words" "$dir/err" || fault "$*: '$words' is not in: $(cat "$dir/err")"
}

refused 2 "give --out DIR, or --raw"
refused 2 "exclude each other" --raw --out "$dir/x"
refused 2 "63" --out "$dir/x" --size 63
refused 2 "1025" --out "$dir/x" --size 1025
refused 2 "0" --out "$dir/x" --count 0
refused 2 "-1" --out "$dir/x" --seed -1
refused 2 "many" --out "$dir/x" --count many
refused 2 "--colour" --out "$dir/x" --colour
refused 2 "needs a value" --out
refused 2 "more" --out "$dir/x" more
[ ! -e "$dir/x" ] || fault "a refused command made its folder"
: >"$dir/file"
"$program" --out "$dir/file" --count 1 2>"$dir/err" && fault "wrote into a file as a folder"
grep -q "$dir/file" "$dir/err" || fault "the file at fault is not named: $(cat "$dir/err")"
"$program" --raw --count 1 2>"$dir/err" >/dev/full && fault "did not see a full disk"
grep -q "standard output" "$dir/err" || fault "full disk: $(cat "$dir/err")"

"$program" --help >"$dir/help" || fault "--help fails"
grep -q -- "--seed" "$dir/help" || fault "--help does not name --seed"

# A scene of a run is the scene of its seed alone, and runs repeat themselves.
"$program" --raw --seed 5 --count 2 --size 64 >"$dir/two" || fault "--raw fails"
{ "$program" --raw --seed 5 --count 1 --size 64; "$program" --raw --seed 6 --count 1 --size 64; } |
    cmp -s - "$dir/two" || fault "scenes depend on the run"

"$program" --out "$dir/set" --seed 5 --count 2 --size 64 --json >"$dir/out" || fault "--out fails"
grep -q '"seed":5,"count":2,"size":64,' "$dir/out" || fault "summary: $(cat "$dir/out")"
[ "$(wc -l <"$dir/set/scenes.jsonl")" -eq 2 ] || fault "scenes.jsonl has not two lines"
for name in images/000005.png images/000006.png masks/000005_1.png masks/000006_3.png; do
    [ "$(head -c 4 "$dir/set/$name" | tail -c 3)" = PNG ] || fault "$name is no PNG"
done
[ $faults -eq 0 ]
