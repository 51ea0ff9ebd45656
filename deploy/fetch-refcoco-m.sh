#!/bin/sh
# Fetches RefCOCO-m (1,190 photos, 2,080 masks, 5,598 phrases; about 610 MB) from the Hugging Face hub
# into a folder that `pseg data check`, `pseg train` and `pseg eval` take as it is.
#
#     sh deploy/fetch-refcoco-m.sh [DIR]            # default: refcoco-m
#
# What was fetched is not fetched again, and a file that was cut off goes on where it ended. Each file
# is compared with the size and the SHA-256 that the hub tells for it. Needs curl and python3.
# Licence: MIT (data set card); the photos are COCO's, each under its own Flickr terms.
# HF_ENDPOINT names a mirror, HF_TOKEN is sent if it is set, REVISION picks a commit (default: main).
set -eu
dir=${1:-refcoco-m}
hub=${HF_ENDPOINT:-https://huggingface.co}
repo=moondream/refcoco-m
revision=${REVISION:-main}

fail() { echo "error: $*" >&2; exit 1; }
command -v curl >/dev/null || fail "curl is not installed"
command -v python3 >/dev/null || fail "python3 is not installed"
mkdir -p "$dir" || fail "cannot make the folder $dir"

get() { # get URL FILE: goes on with FILE if a part is there
    if [ -n "${HF_TOKEN:-}" ]; then
        curl -fL --retry 5 --retry-delay 2 -C - -H "Authorization: Bearer $HF_TOKEN" -o "$2" "$1"
    else
        curl -fL --retry 5 --retry-delay 2 -C - -o "$2" "$1"
    fi
}

# Which files there are, with the size and the SHA-256 of each: "SIZE SHA256 PATH" a line.
rm -f "$dir/.tree.json"
get "$hub/api/datasets/$repo/tree/$revision?recursive=true" "$dir/.tree.json" ||
    fail "cannot ask $hub for the files of $repo; is the internet there?"
python3 - "$dir/.tree.json" >"$dir/.files" <<'END' || fail "the hub's answer is not a list of files"
import json
import sys
for f in json.load(open(sys.argv[1])):
    if f["type"] == "file" and f["path"].endswith(".parquet"):
        print(f["size"], f.get("lfs", {}).get("oid", "-"), f["path"])
END
rm "$dir/.tree.json"
[ -s "$dir/.files" ] || fail "$repo has no parquet files at revision $revision"

while read -r size sum path; do
    file=$dir/$(basename "$path")
    if [ ! -f "$file" ]; then
        # A complete part would be refused by the server as a range beyond the end.
        if [ ! -f "$file.part" ] || [ "$(wc -c <"$file.part")" -ne "$size" ]; then
            echo "fetching $path ($((size / 1000000)) MB)"
            get "$hub/datasets/$repo/resolve/$revision/$path" "$file.part" </dev/null ||
                fail "$path was cut off; start again to go on"
        fi
        have=$(wc -c <"$file.part")
        [ "$have" -eq "$size" ] || { rm "$file.part"; fail "$path has $have bytes, expected $size; it was removed, start again"; }
        if [ "$sum" != - ]; then
            got=$(sha256sum "$file.part" | cut -d' ' -f1)
            [ "$got" = "$sum" ] || { rm "$file.part"; fail "$path has SHA-256 $got, expected $sum; it was removed, start again"; }
        fi
        mv "$file.part" "$file"
    fi
    echo "$file: good"
done <"$dir/.files"
rm "$dir/.files"
echo "next: pseg data check $dir"
