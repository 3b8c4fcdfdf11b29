#!/bin/sh
# tune.sh FILE DIR: sets the conntrack sysctls that FILE names, reads each one
# back, waits for SIGTERM and puts the old values back.
#
# FILE: one NAME=VALUE a line, # begins a comment. DIR: where the old values are
# kept while they are changed, so that a container that was killed and started
# again restores the node's own values and not its own. SYSCTL and MODULE name
# other places for tests.
set -u
file=$1 dir=$2
sysctl=${SYSCTL:-/proc/sys/net/netfilter}
module=${MODULE:-/sys/module/nf_conntrack/parameters}
message=${TERMINATION_LOG:-/dev/termination-log}

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

# Puts back every value that was saved.
restore() {
    failed=
    for saved in "$dir"/nf_conntrack_*; do
        [ -e "$saved" ] || continue
        name=${saved##*/} old=$(cat "$saved")
        if put "$name" "$old"; then
            log "$name restored to $old"
            rm -f "$saved"
        else
            failed="$failed $name"
        fi
    done
    [ -z "$failed" ] || end 1 "NOT RESTORED:$failed; the old values are in $dir on the node"
}

sleeper=
stop() {
    trap '' TERM INT
    [ -z "$sleeper" ] || { kill "$sleeper"; wait "$sleeper"; } 2>/dev/null
    rm -f "$dir/ready"
    restore
    end 0 "restored"
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
