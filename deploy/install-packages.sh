#!/bin/sh
# Installs those of the listed Debian packages that are missing: sh install-packages.sh LIST...
# Does nothing, and needs no rights, when all are there.
set -eu

missing= optional=
for list in "$@"; do
    for package in $(sed 's/#.*//' "$list"); do
        state=$(dpkg-query -W -f '${Status}' "${package%\?}" 2>/dev/null || true)
        [ "$state" = "install ok installed" ] && continue
        case $package in
        *\?) optional="$optional ${package%\?}" ;;
        *) missing="$missing $package" ;;
        esac
    done
done
# An optional package that the known lists do not have is no reason to ask for rights again.
available=
for package in $optional; do
    [ -n "$missing" ] || apt-cache show "$package" >/dev/null 2>&1 && available="$available $package"
done
[ -n "$missing$available" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: these Debian packages are needed and apt-get is not here:$missing$available" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1; then
    as_root="sudo"
else
    echo "error: not root and no sudo; install these packages first:$missing$available" >&2
    exit 1
fi
[ -z "$missing" ] || echo "installing:$missing" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt_install() {
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1
}
# The lists of a fresh machine are empty or old: try as it is, then with new lists.
# shellcheck disable=SC2086
if [ -n "$missing" ] && ! apt_install $missing; then
    $as_root apt-get update >/dev/null 2>&1 || true
    if ! apt_install $missing; then
        tail -n 20 "$log" >&2
        echo "error: apt-get could not install:$missing" >&2
        exit 1
    fi
fi
for package in $optional; do
    if apt-cache show "$package" >/dev/null 2>&1; then
        echo "installing: $package" >&2
        apt_install "$package" || echo "note: could not install $package; tests that need it are skipped" >&2
    fi
done
