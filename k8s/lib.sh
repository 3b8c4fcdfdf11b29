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
        sed -n 's/.*"forgery":"\([^"]*\)".*"forged":\([0-9]*\),[^{]*"leaked":\([0-9]*\),[^{]*"killed":\([0-9]*\),[^{]*"delivered":\([0-9]*\),[^{]*"dropped":\([0-9]*\).*/\1 \2 \3 \5 \6 \4/p' |
        awk '{ f[$1] += $2; l[$1] += $3; d[$1] += $4; x[$1] += $5; k[$1] += $6
               if (!seen[$1]++) order[++n] = $1 }
             END { for (i = 1; i <= n; i++) { o = order[i]; print o, f[o], l[o], d[o], x[o], k[o] } }'
}

# --- the results of pods that are scaled away. The last line of a log is the result, and a
# pod's log goes with the pod; its status may go without a last word as well (kubelets before
# 1.22). So the clients linger: with their result written they stay until it was read.

load_pods='app.kubernetes.io/name=load-client'
# let_linger SECONDS: load-clients stay that long after their result.
let_linger() {
    k -n "$ns" set env deployment/load-client LOAD_LINGER="${1}s" >/dev/null &&
        k -n "$ns" patch deployment load-client -p "{\"spec\":{\"template\":{\"spec\":{\"terminationGracePeriodSeconds\":$(($1 + 10))}}}}" >/dev/null
}
no_load_pods() { [ -z "$(k -n "$ns" get pods -l "$load_pods" -o name 2>/dev/null || echo unknown)" ]; }
# collect FILE N SECONDS: the results of N load-clients that have been told to end, one a line,
# in that time at most; fails when one is missing.
collect() {
    : >"$1"
    collect_end=$(($(now) + $3))
    until [ "$(grep -c . "$1")" -ge "$2" ]; do
        [ "$(now)" -lt "$collect_end" ] || return 1
        k -n "$ns" logs -l "$load_pods" --tail=1 --max-log-requests=500 --ignore-errors 2>/dev/null |
            grep '^{"schema_version".*"program":"load-client churn".*}$' >"$1.new"
        cat "$1" "$1.new" | awk '{ match($0, /"host":"[^"]*"/); h = substr($0, RSTART, RLENGTH); if (!seen[h]++) print }' >"$1.part"
        mv "$1.part" "$1"
        rm -f "$1.new"
        ! no_load_pods || break
        sleep 1
    done
    [ "$(grep -c . "$1")" -ge "$2" ]
}
# dismiss: load-clients whose results were collected, which need not linger to the end.
dismiss() { k -n "$ns" delete pods -l "$load_pods" --force --grace-period=0 --wait=false >/dev/null 2>&1; }
# counts FILE: of all results together, NAME VALUE lines: results (whose classes add up to their
# attempts), attempts, ok, and each class of failure as results.json names it.
counts() {
    awk '{
        # The first of each name: the series has such fields too.
        match($0, /"attempts":[0-9]+/); a = substr($0, RSTART + 11, RLENGTH - 11) + 0
        match($0, /"ok":[0-9]+/); o = substr($0, RSTART + 5, RLENGTH - 5) + 0
        all = o; line = $0; split("", f)
        while (match(line, /\{"phase":"[^"]*","cause":("[^"]*"|\{[^}]*\}),"local":[a-z]*,"count":[0-9]+\}/)) {
            x = substr(line, RSTART, RLENGTH); line = substr(line, RSTART + RLENGTH)
            c = "other"
            if (x ~ /"local":true/) c = "local-limit"
            else if (x ~ /"(ECONNRESET|EPIPE)"/) c = "reset"
            else if (x ~ /"ECONNREFUSED"/) c = "refused"
            else if (x ~ /"phase":"connect"/ && x ~ /"(stall|ETIMEDOUT)"/) c = "connect-timeout"
            else if (x ~ /"(stall|ETIMEDOUT)"/) c = "hung"
            else if (x ~ /"(early-eof|bad-answer)"/) c = "bad-answer"
            match(x, /"count":[0-9]+/); n = substr(x, RSTART + 8, RLENGTH - 8) + 0
            f[c] += n; all += n
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
