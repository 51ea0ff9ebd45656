#!/bin/sh
# Tells Kubernetes which worker to stop first where several may go: the idle ones, then those that have
# had their work for the shortest time. It asks each worker's /metrics and writes the pod's annotation
# controller.kubernetes.io/pod-deletion-cost, by which a ReplicaSet chooses (lowest first).
#
#     pod-costs.sh [--once]
#
# Needs kubectl, with the rights to get, list and patch pods, and curl. Variables, with their defaults:
#     PSEG_SELECTOR=app.kubernetes.io/name=pseg-worker   the workers' pods, in kubectl's own namespace
#     PSEG_METRICS_PORT=9465                             of their --metrics-listen
#     PSEG_EVERY_S=15                                    seconds from one look to the next
#
# Costs come in steps, so that a pod is patched when its state changes and not at every look: Kubernetes
# warns of annotations that follow a measure. A worker that does not answer keeps what it has.
set -u
annotation=controller.kubernetes.io/pod-deletion-cost
selector=${PSEG_SELECTOR:-app.kubernetes.io/name=pseg-worker}
port=${PSEG_METRICS_PORT:-9465}
every=${PSEG_EVERY_S:-15}

# The cost of the worker at address $1; fails if it does not tell.
cost_of() {
    curl -fsS --noproxy '*' --max-time 2 "http://$1:$port/metrics" 2>/dev/null | awk '
        $1 == "pseg_worker_jobs_held" { held = $2; n++ }
        $1 == "pseg_worker_oldest_job_seconds" { age = $2; n++ }
        END {
            if (n < 2) exit 1
            if (held == 0) cost = 0
            else if (age < 15) cost = 10
            else if (age < 60) cost = 20
            else if (age < 240) cost = 30
            else if (age < 960) cost = 40
            else cost = 50
            print cost
        }'
}

look() {
    pods=$(kubectl get pods -l "$selector" --field-selector status.phase=Running -o \
        'jsonpath={range .items[*]}{.metadata.name}{" "}{.status.podIP}{" "}{.metadata.annotations.controller\.kubernetes\.io/pod-deletion-cost}{"\n"}{end}') \
        || return 1
    printf '%s\n' "$pods" | {
        rc=0
        while read -r name ip old; do
            [ -n "$ip" ] || continue
            case $ip in *:*) ip="[$ip]" ;; esac
            new=$(cost_of "$ip") || continue
            [ "$new" = "${old:-0}" ] || kubectl annotate --overwrite pod "$name" "$annotation=$new" </dev/null || rc=1
        done
        exit "$rc"
    }
}

if [ "${1-}" = --once ]; then
    look
    exit
fi
trap 'exit 0' TERM INT
while :; do
    look || echo "pod-costs: the look failed; the next one is in $every s" >&2
    sleep "$every" & # in the background, so that SIGTERM does not wait for it
    wait $!
done
