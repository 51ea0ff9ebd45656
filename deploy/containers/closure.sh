#!/bin/sh
# Copies programs, and all that they need at run time, into a folder that an image may consist of:
#     sh closure.sh DEST FILE-OR-FOLDER...
# Each file keeps its place; with an ELF file come the libraries that ldd names, with a folder all that
# is in it. What is loaded by name at run time (OpenCL drivers, libvips' modules) must be named. Of each
# package that gave a file, Debian's record and copyright notice come too, where scanners look for them
# in images without a package manager (var/lib/dpkg/status.d). DEST gets the user 65532 and a /tmp.
set -eu
[ $# -ge 2 ] || { echo "usage: closure.sh DEST FILE-OR-FOLDER..." >&2; exit 2; }
dest=$1
shift
list=$(mktemp)
trap 'rm -f "$list"' EXIT

# A file's path without links among its folders: /lib is one on Debian.
plain() { echo "$(cd "$(dirname "$1")" && pwd -P)/$(basename "$1")"; }

# The file itself; of a link also what it leads to.
add() {
    at=$(plain "$1")
    echo "$at" >>"$list"
    while [ -L "$at" ]; do
        to=$(readlink "$at")
        case $to in /*) at=$to ;; *) at=$(dirname "$at")/$to ;; esac
        at=$(plain "$at")
        echo "$at" >>"$list"
    done
}

for given; do
    [ -e "$given" ] || { echo "closure.sh: there is no $given" >&2; exit 1; }
    find "$given" ! -type d >"$list.found"
    [ -s "$list.found" ] || echo "$given" >"$list.found"
    while read -r file; do
        add "$file"
        case $(head -c 4 "$file" | tr -d '\177') in ELF) ;; *) continue ;; esac
        ldd "$file" >"$list.ldd" 2>/dev/null || continue # not a dynamic one
        # A plug-in may need its neighbour, which is loaded by then.
        for missing in $(sed -n 's/^\t*\([^ ]*\) => not found$/\1/p' "$list.ldd"); do
            [ ! -e "$(dirname "$file")/$missing" ] || continue
            echo "closure.sh: $file needs $missing, which is not installed" >&2
            exit 1
        done
        for library in $(sed -nE 's/^[^/]*(\/[^ ]+) \(0x[0-9a-f]+\)$/\1/p' "$list.ldd"); do add "$library"; done
    done <"$list.found"
done
rm -f "$list.found" "$list.ldd"
sort -u "$list" -o "$list"

mkdir -p "$dest"
for folder in bin sbin lib lib64; do
    mkdir -p "$dest/usr/$folder"
    ln -sfn "usr/$folder" "$dest/$folder"
done
while read -r file; do
    mkdir -p "$dest$(dirname "$file")"
    cp -Pp "$file" "$dest$file"
done <"$list"

# dpkg knows some files by their place before /lib and /usr/lib became one.
mkdir -p "$dest/var/lib/dpkg/status.d"
sed 'p; s#^/usr/#/#' "$list" | xargs dpkg -S 2>/dev/null | sed -n 's/: \/.*//p' | tr -d ' ' | tr , '\n' | sort -u |
    while read -r package; do
        name=${package%%:*}
        dpkg-query -s "$package" >"$dest/var/lib/dpkg/status.d/$name"
        [ -e "/usr/share/doc/$name/copyright" ] || continue
        mkdir -p "$dest/usr/share/doc/$name"
        cp -L "/usr/share/doc/$name/copyright" "$dest/usr/share/doc/$name/"
    done

mkdir -p "$dest/etc" "$dest/tmp"
chmod 1777 "$dest/tmp"
cp -Lr /etc/ld.so.conf /etc/ld.so.conf.d /etc/os-release "$dest/etc/"
ldconfig -r "$dest"
echo 'hosts: files dns' >"$dest/etc/nsswitch.conf"
printf '%s\n' 'root:x:0:0:root:/:/sbin/nologin' 'pseg:x:65532:65532:pseg:/tmp:/sbin/nologin' >"$dest/etc/passwd"
printf '%s\n' 'root:x:0:' 'pseg:x:65532:' >"$dest/etc/group"
