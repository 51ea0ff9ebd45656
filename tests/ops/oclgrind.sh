#!/bin/sh
# Runs a test program in Oclgrind, which interprets kernels and reports races between work-items,
# accesses outside of buffers and wrong API calls. Usage: oclgrind.sh LOGFILE PROGRAM [ARGS...]
# Exit 77: there is no oclgrind. --uninitialized is not asked for: Oclgrind 21.10 does not know LLVM's
# `freeze` there and stops at it.
log=$1
shift
command -v oclgrind >/dev/null 2>&1 || { echo "skipped: no oclgrind"; exit 77; }
rm -f "$log"
oclgrind --check-api --data-races --max-errors 20 --log "$log" "$@" || exit 1
if [ -s "$log" ]; then
    head -60 "$log"
    exit 1
fi
