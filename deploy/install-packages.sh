#!/bin/sh
# Installs those of the listed Debian packages that are missing: sh install-packages.sh LIST...
# Does nothing, and needs no rights, when all are there.
set -eu

missing=
for list in "$@"; do
    for package in $(sed 's/#.*//' "$list"); do
        state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
        [ "$state" = "install ok installed" ] || missing="$missing $package"
    done
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: these Debian packages are needed and apt-get is not here:$missing" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1; then
    as_root="sudo"
else
    echo "error: not root and no sudo; install these packages first:$missing" >&2
    exit 1
fi
echo "installing:$missing" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >"$log" 2>&1
}
# The lists of a fresh machine are empty or old: try as it is, then with new lists.
if ! install; then
    $as_root apt-get update >/dev/null 2>&1 || true
    if ! install; then
        tail -n 20 "$log" >&2
        echo "error: apt-get could not install:$missing" >&2
        exit 1
    fi
fi
