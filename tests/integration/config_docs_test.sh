#!/bin/sh
# docs/config.md agrees with the programs: sh config_docs_test.sh BIN ROOT
set -eu
bin=$1 root=$2
page=$(mktemp)
trap 'rm -f "$page"' EXIT
sh "$root/deploy/config-docs.sh" "$bin" >"$page"
if ! diff -u "$root/docs/config.md" "$page"; then
    echo "FAILED: docs/config.md is stale; write it again with: cmake --build BUILD --target config-docs"
    exit 1
fi
# The script cannot lose a program or an option unseen: every flag in any help stands on the page.
for words in "pseg-scheduler" "pseg-worker" "pseg segment" "pseg submit" "pseg get" "pseg wait" \
    "pseg cancel" "pseg list" "pseg models" "pseg watch" "pseg top" "pseg run" "pseg eval" "pseg devices" "pseg scenes" \
    "pseg data check" "pseg bench engine" "pseg bench ops" "pseg bench service" "pseg bench train"; do
    grep -qx "## $words" "$page" || { echo "FAILED: no section $words"; exit 1; }
    # shellcheck disable=SC2086
    flags=$("$bin/"$words --help | sed -n 's/^  *\(-[a-z], \)\{0,1\}\(--[a-z0-9-]*\) .*/\2/p')
    [ -n "$flags" ] || { echo "FAILED: no options in the help of $words"; exit 1; }
    for flag in $flags; do
        grep -q "^| \`$flag\`" "$page" || { echo "FAILED: $words $flag is not on the page"; exit 1; }
    done
done
# Variables read past the tables are listed too.
grep -rhoE 'conf_env\("[A-Z_]+"\)|"PSEG_[A-Z_]+_DIR"' "$root/worker" "$root/common" "$root/scheduler" "$root/client" \
    --include='*.[ch]' | grep -oE '[A-Z_]{4,}' | sort -u | while read -r name; do
    grep -q "\`$name\`" "$page" || { echo "FAILED: the variable $name is not on the page"; exit 1; }
done
echo "1 passed, 0 failed"
