#!/bin/sh
# drop-invalid.sh: drops TCP segments that conntrack calls INVALID, before the node routes them, until SIGTERM.
#
# In a table of its own where the node has nft, so that it goes as a whole and no other program's
# flush takes it along; else in mangle PREROUTING of iptables and ip6tables. HOST names another
# way into the node for tests, DIR another place for its own files, IPV6 the file that tells IPv6.
set -u
: "${HOST:=nsenter -t 1 -m -n --}" "${DIR:=/tmp}" "${IPV6:=/proc/net/if_inet6}"
ready=$DIR/ready error=$DIR/error
log() { echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $*"; }
on_host() { $HOST "$@" 2>"$error"; }

nft_table='table inet conntrack_canary_drop {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		meta l4proto tcp ct state invalid counter drop
	}
}'
nft_in() { echo "$nft_table" | on_host nft -f -; }
nft_there() { on_host nft list table inet conntrack_canary_drop >/dev/null; }
nft_out() { on_host nft delete table inet conntrack_canary_drop; }
nft_list() { on_host nft list tables; }

# A kernel without IPv6 (ipv6.disable=1) has no tables for it, and nothing to drop.
families() {
    echo iptables
    [ ! -e "$IPV6" ] || echo ip6tables
}
rule() { # rule TABLES ACTION...
    tables=$1
    shift
    on_host "$tables" -w -t mangle "$@" -p tcp -m conntrack --ctstate INVALID -m comment --comment conntrack-canary-drop -j DROP
}
iptables_in() {
    for t in $(families); do
        rule "$t" -C PREROUTING || rule "$t" -I PREROUTING 1 || return 1
    done
}
iptables_there() {
    for t in $(families); do
        rule "$t" -C PREROUTING || return 1
    done
}
iptables_out() {
    for t in $(families); do
        while rule "$t" -C PREROUTING; do rule "$t" -D PREROUTING || return 1; done
    done
}
iptables_list() {
    for t in $(families); do
        on_host "$t" -w -t mangle -S PREROUTING || return 1
    done
}

# Takes the rules out, and looks: where it cannot, nobody knows whether they are gone.
remove() {
    why=
    "${with}_out" || why=$(cat "$error")
    if ! left=$("${with}_list"); then
        log "NOT KNOWN TO BE REMOVED: cannot look: $(cat "$error")"
        return 1
    fi
    case $left in *conntrack[_-]canary[_-]drop*)
        log "NOT REMOVED: $why"
        return 1
        ;;
    esac
    log "removed"
}
sleeper=
stop() {
    trap '' TERM INT
    [ -z "$sleeper" ] || { kill -KILL "$sleeper"; wait "$sleeper"; } 2>/dev/null
    rm -f "$ready"
    remove
    exit $?
}
if on_host nft --version >/dev/null; then with=nft; else with=iptables; fi
trap stop TERM INT
while :; do
    # A container that was killed left its rules; somebody may have flushed them.
    if ! "${with}_there"; then
        if ! "${with}_in" || ! "${with}_there"; then
            log "cannot drop INVALID with $with: $(cat "$error")"
            # One family may have its rule.
            remove
            exit 1
        fi
        log "INVALID TCP segments are dropped in PREROUTING, with $with"
    fi
    : >"$ready"
    sleep 5 &
    sleeper=$!
    wait "$sleeper"
done
