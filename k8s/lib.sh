# shellcheck shell=sh disable=SC2154
# Shared by k8s/diagnose and k8s/experiment: POSIX shell and kubectl, nothing else.
# The script that reads this sets me, ns, context and dry.

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

# The time in seconds, for deadlines.
now() { date +%s; }

# images BOOM_IMAGE LOAD_IMAGE: replaces the images' names in manifests where the user named others.
images() {
    sed -e "s|image: conntrack-canary/boom-server:.*|image: ${1:-&}|" \
        -e "s|image: conntrack-canary/load-client:.*|image: ${2:-&}|" \
        -e 's|image: image: |image: |'
}

# last_line POD CONTAINER: the result document, which is the last line of a program's log.
last_line() { k -n "$ns" logs "$1" -c "$2" --tail=1 2>/dev/null || :; }

# probe_end NAME: one count of load-client's "probe":{...}; 0 where it is not there.
probe_end() {
    n=$(sed -n 's/.*"probe":{\([^}]*\)}.*/\1/p' | tr ',' '\n' | sed -n 's/^"'"$1"'":\([0-9]*\)$/\1/p')
    echo "${n:-0}"
}

# outcomes: boom-server's counts, one line for each forgery: NAME FORGED LEAKED DELIVERED DROPPED KILLED
outcomes() {
    sed -n 's/.*"outcomes":\[\(.*\)\],"resets".*/\1/p' | sed 's/{"forgery"/\n&/g' |
        sed -n 's/.*"forgery":"\([^"]*\)".*"forged":\([0-9]*\),"leaked":\([0-9]*\),"killed":\([0-9]*\),"delivered":\([0-9]*\),"dropped":\([0-9]*\).*/\1 \2 \3 \5 \6 \4/p' |
        awk '{ f[$1] += $2; l[$1] += $3; d[$1] += $4; x[$1] += $5; k[$1] += $6
               if (!seen[$1]++) order[++n] = $1 }
             END { for (i = 1; i <= n; i++) { o = order[i]; print o, f[o], l[o], d[o], x[o], k[o] } }'
}

# --- the results of pods that are scaled away. A pod's log goes with the pod, and a stream of
# it may break before its last line. Its termination message is in its status, and says every
# count; a finalizer keeps the status until it was read.

load_pods='app.kubernetes.io/name=load-client'
# keep_ends: pods of load-client that end stay, as status alone, until let_go.
keep_ends() {
    k -n "$ns" patch deployment load-client -p '{"spec":{"template":{"metadata":{"finalizers":["conntrack-canary/result"]}}}}' >/dev/null
}
# ends: NAME, exit status and termination message of every load-client.
ends() {
    k -n "$ns" get pods -l "$load_pods" -o 'jsonpath={range .items[*]}{.metadata.name}{"\t"}{.status.containerStatuses[0].state.terminated.exitCode}{"\t"}{.status.containerStatuses[0].state.terminated.message}{"\n"}{end}' 2>/dev/null
}
# collect FILE SECONDS: every end, in that time at most; fails when one is missing.
collect() {
    collect_end=$(($(now) + $2))
    until ends >"$1.part" && mv "$1.part" "$1" && awk -F'\t' '$2 == "" { exit 1 }' "$1"; do
        [ "$(now)" -lt "$collect_end" ] || return 1
        sleep 1
    done
}
# follow FILE: the pods' logs, whose last lines are the result documents; in the background.
# What a broken stream loses is their latencies and course, no count.
follow() {
    trap 'kill "$stream" 2>/dev/null; exit' TERM
    while :; do
        kubectl --context "$context" -n "$ns" logs -f -l "$load_pods" --prefix --tail=5 \
            --max-log-requests=500 --ignore-errors >>"$1" 2>/dev/null &
        stream=$!
        wait "$stream"
        sleep 1
    done
}
# let_go: the pods that keep_ends kept.
let_go() {
    kept=$(k -n "$ns" get pods -l "$load_pods" -o name 2>/dev/null) || return 1
    # shellcheck disable=SC2086 # a list of names
    [ -z "$kept" ] || k -n "$ns" patch $kept --type merge -p '{"metadata":{"finalizers":null}}' >/dev/null 2>&1
}
no_load_pods() { [ -z "$(k -n "$ns" get pods -l "$load_pods" -o name 2>/dev/null || echo unknown)" ]; }
# drop_namespace: deletes it, with every pod that keep_ends keeps; in 100 s at most.
drop_namespace() {
    k delete namespace "$ns" --ignore-not-found --wait=false >/dev/null || return 1
    drop_end=$(($(now) + 100))
    while k get namespace "$ns" >/dev/null 2>&1; do
        [ "$(now)" -lt "$drop_end" ] || return 1
        let_go
        sleep 1
    done
}
# counts FILE: of all ends together, NAME VALUE lines: results (whose classes add up to their
# attempts), attempts, ok, and each class of failure as results.json names it.
counts() {
    awk -F'\t' '$3 ~ / \([0-9]+ connections in .*; [0-9]+ ok\)/ {
        n = split($3, part, "; ")
        match(part[1], /\([0-9]+ /); a = substr(part[1], RSTART + 1) + 0
        o = part[2] + 0; all = o; split("", f)
        for (i = 3; i <= n; i++) {
            if (part[i] !~ /^[A-Za-z ]+ in (resolve|connect|send|receive|close): [0-9]+( \(a limit of this host\))?$/) continue
            c = part[i]; sub(/.*: /, "", c); c += 0; all += c
            x = "other"
            if (part[i] ~ /limit of this host/) x = "local-limit"
            else if (part[i] ~ /^(ECONNRESET|EPIPE) /) x = "reset"
            else if (part[i] ~ /^ECONNREFUSED /) x = "refused"
            else if (part[i] ~ /^(stall|ETIMEDOUT) in connect/) x = "connect-timeout"
            else if (part[i] ~ /^(stall|ETIMEDOUT) /) x = "hung"
            else if (part[i] ~ /^(early EOF|wrong answer) /) x = "bad-answer"
            f[x] += c
        }
        if (all != a) next
        results++; attempts += a; ok += o
        for (x in f) sum[x] += f[x]
    } END {
        printf "results %d\nattempts %.0f\nok %.0f\n", results, attempts, ok
        for (x in sum) printf "fail.%s %.0f\n", x, sum[x]
    }' "$1"
}
# count NAME FILE: one of counts' values.
count() { counts "$2" | awk -v n="$1" '$1 == n { v = $2 } END { print v + 0 }'; }
# accepted: connections that the load's target has accepted.
accepted() {
    target=$(k -n "$ns" get pod -l app=load-target -o 'jsonpath={.items[0].metadata.name}' 2>/dev/null)
    k get --raw "/api/v1/namespaces/$ns/pods/$target:9100/proxy/metrics" 2>/dev/null |
        awk '$1 == "load_accepted_total" { printf "%.0f\n", $2 }'
}
