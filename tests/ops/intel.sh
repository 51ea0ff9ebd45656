#!/bin/sh
# Runs a test program on Intel's OpenCL runtime for CPUs, a second implementation beside PoCL.
#     sh tests/ops/intel.sh VENV PROGRAM [ARGS...]
# VENV: made by  python3 -m venv VENV && VENV/bin/pip install intel-opencl-rt intel-cmplr-lib-rt
# Exit 77: it is not there. Not part of CI: its compiler takes minutes for all kernels.
set -eu
venv=$(cd "$1" 2>/dev/null && pwd) || { echo "skipped: no folder $1"; exit 77; }
shift
[ -e "$venv/lib/libintelocl.so" ] || { echo "skipped: no Intel OpenCL runtime in $venv"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/icd" "$work/lib" "$work/cache"
echo "$venv/lib/libintelocl.so" >"$work/icd/intel.icd"
# Its libraries without its loader: the programs have theirs.
for lib in "$venv"/lib/lib*.so*; do
    case $lib in *libOpenCL*) ;; *) ln -s "$lib" "$work/lib/" ;; esac
done
OCL_ICD_VENDORS="$work/icd" LD_LIBRARY_PATH="$work/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    XDG_CACHE_HOME="${XDG_CACHE_HOME:-$work/cache}" "$@"
