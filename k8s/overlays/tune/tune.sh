#!/bin/sh
# tune.sh FILE DIR: sets the conntrack sysctls that FILE names, reads each one
# back, waits for SIGTERM and puts the old values back.
#
# FILE: one NAME=VALUE a line, # begins a comment. DIR: where the old values are
# kept while they are changed, so that a container that was killed and started
# again restores the node's own values and not its own. LINGER: how many seconds
# it stays after it put them back, so that its log can be read. SYSCTL and MODULE
# name other places for tests, KUBE_PROXY another metrics endpoint.
#
# kube-proxy decides once, at its start, whether to drop INVALID: not where
# be_liberal is 1. A kube-proxy that started while this was in force dropped
# nothing: be_liberal 0 again would leave the node with neither, and is refused.
set -u
file=$1 dir=$2
sysctl=${SYSCTL:-/proc/sys/net/netfilter}
module=${MODULE:-/sys/module/nf_conntrack/parameters}
message=${TERMINATION_LOG:-/dev/termination-log}
kube_proxy=${KUBE_PROXY:-127.0.0.1 10249}
liberal=nf_conntrack_tcp_be_liberal

log() { echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $*"; }
end() {
    log "$2"
    echo "$2" 2>/dev/null >"$message" || :
    exit "$1"
}

# The file behind a name. Only conntrack's own: nothing with a slash or a dot.
path() {
    case $1 in
    nf_conntrack_buckets) echo "$module/hashsize" ;;
    nf_conntrack_[a-z0-9_]*)
        case $1 in *[!a-z0-9_]*) return 1 ;; esac
        echo "$sysctl/$1"
        ;;
    *) return 1 ;;
    esac
}

# put NAME VALUE: writes and reads back.
put() {
    p=$(path "$1") || return 1
    echo "$2" 2>/dev/null >"$p"
    now=$(cat "$p" 2>/dev/null)
    [ "$now" = "$2" ] && return 0
    # The kernel rounds the number of buckets up to what fills whole pages.
    [ "$1" = nf_conntrack_buckets ] && [ "${now:-0}" -ge "$2" ] && [ "${now:-0}" -lt $(($2 + 4096)) ]
}

# When kube-proxy started, in its own words; nothing where it cannot be read.
# By nc: some builds of busybox have a wget that cannot look up even an address.
proxy_start() {
    # shellcheck disable=SC2086 # an address and a port
    printf 'GET /metrics HTTP/1.0\r\n\r\n' | nc -w 2 $kube_proxy 2>/dev/null |
        sed -n 's/^process_start_time_seconds //p'
}

# would_expose NAME VALUE: true where VALUE takes be_liberal away from a node whose
# kube-proxy started under it. Where that cannot be told, it is said.
would_expose() {
    [ "$1" = "$liberal" ] && [ "$2" = 0 ] && [ "$(cat "$(path "$1")")" != 0 ] || return 1
    began=$(cat "$dir/proxy-start" 2>/dev/null) started=$(proxy_start)
    if [ -z "$began" ] || [ -z "$started" ]; then
        log "WARNING: kube-proxy's start cannot be read; if it started while $liberal was 1, this node now has no protection: restart kube-proxy"
        return 1
    fi
    [ "$began" != "$started" ]
}

# Puts back every value that was saved.
restore() {
    failed=
    for saved in "$dir"/nf_conntrack_*; do
        [ -e "$saved" ] || continue
        name=${saved##*/} old=$(cat "$saved")
        if would_expose "$name" "$old"; then
            log "$name stays 1: kube-proxy started while it was set and drops nothing. Set it to $old, then restart kube-proxy"
            failed="$failed $name"
            rm -f "$saved"
            continue
        fi
        if put "$name" "$old"; then
            log "$name restored to $old"
            rm -f "$saved"
        else
            failed="$failed $name"
        fi
    done
    rm -f "$dir/proxy-start"
    [ -z "$failed" ] || end 1 "NOT RESTORED:$failed; see the log above"
}

sleeper=
stop() {
    trap '' TERM INT
    [ -z "$sleeper" ] || { kill -KILL "$sleeper"; wait "$sleeper"; } 2>/dev/null
    rm -f "$dir/ready"
    status=0
    (restore) || status=$?
    [ "$status" -ne 0 ] || log restored
    [ "$status" -ne 0 ] || echo restored 2>/dev/null >"$message" || :
    sleep "${LINGER:-0}"
    exit "$status"
}

trap stop TERM INT
umask 077
mkdir -p "$dir" || end 1 "cannot create $dir"
rm -f "$dir/ready"

done_with=
while IFS= read -r line || [ -n "$line" ]; do
    line=${line%%#*}
    line=$(echo "$line" | tr -d ' \t\r')
    [ -n "$line" ] || continue
    name=${line%%=*} value=${line#*=}
    case $value in '' | *[!0-9]*) restore; end 2 "values.env: '$line': write NAME=NUMBER" ;; esac
    p=$(path "$name") || { restore; end 2 "values.env: '$name' is not a conntrack sysctl"; }
    [ -e "$p" ] || { restore; end 1 "$name: this node has no $p; is nf_conntrack loaded?"; }
    old=$(cat "$p")
    if [ "$name" = "$liberal" ]; then
        # Without this program's own mark be_liberal is the node's protection, and kube-proxy has left its drop out.
        if [ "$value" = 0 ] && [ "$old" != 0 ] && [ ! -e "$dir/$name" ]; then
            restore
            end 1 "$name is $old on this node: kube-proxy drops nothing then, and 0 would leave it without protection"
        fi
        [ -e "$dir/proxy-start" ] || proxy_start >"$dir/proxy-start"
    fi
    # An older run's saved value is the node's own; this one's reading may not be.
    if [ -e "$dir/$name" ]; then old=$(cat "$dir/$name"); else echo "$old" >"$dir/$name"; fi
    put "$name" "$value" || {
        now=$(cat "$p")
        restore
        end 1 "$name: set to $value, read back $now: not allowed here (a node inside a container?) or out of range"
    }
    log "$name set from $old to $value"
    done_with="$done_with $name=$value"
done <"$file"
[ -n "$done_with" ] || end 2 "values.env names nothing to set"
: >"$dir/ready"
log "ready:$done_with"
# A signal interrupts wait, not sleep.
while :; do
    sleep 3600 &
    sleeper=$!
    wait "$sleeper"
done
