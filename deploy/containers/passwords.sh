#!/bin/sh
# Passwords for the Redis users of compose.yaml, on standard output.
set -eu
for name in SCHEDULER WORKER MONITOR; do
    echo "PSEG_${name}_PASSWORD=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
done
