# shellcheck shell=sh disable=SC2154
# For k8s/tests/cluster: POSIX shell and kubectl, nothing else.
# The script that reads this sets me, here (this folder), ns, context and dry.

say() { printf '%s\n' "$*" >&2; }
die() {
    status=$1
    shift
    say "$me: $*"
    exit "$status"
}

# k ARGUMENTS...: kubectl in the chosen context, never waiting for ever.
k() { kubectl ${context:+--context "$context"} --request-timeout="${request_timeout:-30s}" "$@"; }

# change ARGUMENTS...: a kubectl that changes something; only told when dry.
change() {
    if [ -n "${dry:-}" ]; then
        echo "would run: kubectl $*"
        # What it would have read.
        case " $* " in *" -f - "*) cat >/dev/null ;; esac
    else
        k "$@"
    fi
}

# unused NAMESPACE [HINT]: ends this unless it is certain that there is none: it is deleted at the end.
unused() {
    found=$(k get namespace "$1" --ignore-not-found -o name) || die 1 "cannot tell whether namespace $1 exists"
    [ -z "$found" ] || die 1 "namespace $1 exists${2:+: $2}"
}

# The time in seconds, for deadlines.
now() { date +%s; }

# images BOOM_IMAGE LOAD_IMAGE: replaces the images' names in manifests where the user named others.
images() {
    sed -e "s|image: conntrack-canary/boom-server:.*|image: ${1:-&}|" \
        -e "s|image: conntrack-canary/load-client:.*|image: ${2:-&}|" \
        -e 's|image: image: |image: |'
}

# A container's result document: the last line of its log. The kubelet counts the lines of its own
# file, where the runtime has cut long lines into pieces of 16 KiB: --tail=1 gives the last piece.
last_line() { k -n "$ns" logs "$1" -c "$2" --tail=100 2>/dev/null | tail -n 1; }

# flat: JSON documents, one a line, as `PATH VALUE` lines.
flat() { awk -f "$here/json.awk"; }

# --- the results of pods that are scaled away. A log goes with its pod, and so does its status
# (which a kubelet before 1.22 may drop). So the clients linger: with their result written they
# stay until it was read and they are dismissed, and no longer than this.
linger=180
load_pods='app.kubernetes.io/name=load-client'
let_linger() {
    k -n "$ns" set env deployment/load-client LOAD_LINGER="${linger}s" >/dev/null &&
        k -n "$ns" patch deployment load-client -p "{\"spec\":{\"template\":{\"spec\":{\"terminationGracePeriodSeconds\":$((linger + 10))}}}}" >/dev/null
}
no_load_pods() { [ -z "$(k -n "$ns" get pods -l "$load_pods" -o name 2>/dev/null || echo unknown)" ]; }
results_in() { find "$1" -name '*.json' | grep -c .; }
# collect DIR N: the results of N load-clients that have been told to end, as DIR/POD.json each, until
# all are there or the pods are gone; fails when one is missing.
collect() {
    mkdir -p "$1"
    collect_end=$(($(now) + linger))
    until [ "$(results_in "$1")" -ge "$2" ]; do
        [ "$(now)" -lt "$collect_end" ] || return 1
        # [pod/NAME/CONTAINER] LINE; a result is a whole document, whatever came before it.
        request_timeout=10s k -n "$ns" logs -l "$load_pods" --tail=100 --prefix --ignore-errors 2>/dev/null |
            awk -v dir="$1" '$2 ~ /^\{"schema_version"/ && /\}$/ {
                split($1, p, "/"); document = $0; sub(/^[^ ]* /, "", document)
                print document >(dir "/" p[2] ".json.part"); close(dir "/" p[2] ".json.part") }'
        for part in "$1"/*.json.part; do [ ! -e "$part" ] || mv "$part" "${part%.part}"; done
        ! no_load_pods || break
        sleep 1
    done
    [ "$(results_in "$1")" -ge "$2" ]
}
# dismiss: load-clients whose results were collected, which need not linger to the end.
dismiss() { k -n "$ns" delete pods -l "$load_pods" --force --grace-period=0 --wait=false >/dev/null 2>&1; }
# accepted: connections that the load's target has accepted.
accepted() {
    target=$(k -n "$ns" get pod -l app=load-target -o 'jsonpath={.items[0].metadata.name}' 2>/dev/null)
    k get --raw "/api/v1/namespaces/$ns/pods/$target:9100/proxy/metrics" 2>/dev/null |
        awk '$1 == "load_accepted_total" { printf "%.0f\n", $2 }'
}

# node_life: each node, whether it is ready, and since when that is so.
node_life() { k get nodes -o 'jsonpath={range .items[*]}{.metadata.name}{" "}{.status.conditions[?(@.type=="Ready")].status}{" "}{.status.conditions[?(@.type=="Ready")].lastTransitionTime}{";"}{end}' 2>/dev/null; }
# away BEFORE NOW: the nodes that are not ready, or were not for a while.
away() {
    printf '%s' "$2" | awk -v was=";$1" 'BEGIN { RS = ";" }
        NF && ($2 != "True" || was != ";" && !index(was, ";" $0 ";")) { printf "%s ", $1 }'
}
