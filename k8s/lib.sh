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

# --- the results of pods that are scaled away. The last line of a log is the result, and
# a pod's log goes with the pod: it is followed from before, and read again at the end,
# because neither alone gets every last line.

# follow FILE: every load-client's log, until it is ended; a broken stream is taken up again.
# To be run in the background.
follow() {
    trap 'kill "$stream" 2>/dev/null; exit' TERM
    while :; do
        kubectl --context "$context" -n "$ns" logs -f -l app.kubernetes.io/name=load-client --prefix --tail=5 \
            --max-log-requests=500 --ignore-errors >>"$1" 2>/dev/null &
        stream=$!
        wait "$stream"
        sleep 1
    done
}
# gather FILE: the last lines, again and again while there are pods, for 90 s at most.
gather() {
    gather_end=$(($(now) + 90))
    while [ "$(now)" -lt "$gather_end" ] && [ -n "$(k -n "$ns" get pods -l app.kubernetes.io/name=load-client -o name 2>/dev/null || echo unknown)" ]; do
        k -n "$ns" logs -l app.kubernetes.io/name=load-client --prefix --tail=1 --max-log-requests=500 --ignore-errors >>"$1" 2>/dev/null
    done
}
# results FILE: one result for each pod.
results() {
    sed -n 's/^\[pod[^]]*\] \({"schema_version".*"program":"load-client churn".*}\)$/\1/p' "$1" |
        awk '{ match($0, /"host":"[^"]*"/); h = substr($0, RSTART, RLENGTH); if (!seen[h]++) print }'
}
