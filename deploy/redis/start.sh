#!/bin/sh
# redis-server with the users of users.acl and their passwords, for containers:
#     start.sh users.acl [redis.conf] [--option value ...]
# PSEG_SCHEDULER_PASSWORD, PSEG_WORKER_PASSWORD, PSEG_MONITOR_PASSWORD, PSEG_AUTOSCALER_PASSWORD: of the
# users. One that is not set leaves its user without a way in. REDIS_PASSWORD: of `default`, which may do everything; not set: off.
# Only hashes are written, to a file of /tmp that nobody else can read.
set -eu
users=$1
shift
umask 077
file=$(mktemp /tmp/users.XXXXXX)
hash() { printf '%s' "$1" | sha256sum | cut -d ' ' -f 1; }
script=
for name in scheduler worker monitor autoscaler; do
    eval "password=\${PSEG_$(printf %s "$name" | tr a-z A-Z)_PASSWORD:-}"
    [ -n "$password" ] && script="$script;s/^\\(user pseg-$name on resetpass\\)/\\1 #$(hash "$password")/"
done
sed "${script#;}" "$users" >"$file"
if [ -n "${REDIS_PASSWORD:-}" ]; then
    echo "user default on #$(hash "$REDIS_PASSWORD") ~* &* +@all" >>"$file"
else
    echo "user default off" >>"$file"
fi
unset REDIS_PASSWORD PSEG_SCHEDULER_PASSWORD PSEG_WORKER_PASSWORD PSEG_MONITOR_PASSWORD PSEG_AUTOSCALER_PASSWORD password
exec redis-server "$@" --aclfile "$file"
