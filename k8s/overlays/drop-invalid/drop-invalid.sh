#!/bin/sh
# drop-invalid.sh: drops TCP segments that conntrack calls INVALID, before the node routes them, until SIGTERM.
#
# In a table of its own where the node has nft, so that it goes as a whole and no other program's
# flush takes it along; else in mangle PREROUTING of iptables and ip6tables. HOST names another
# way into the node for tests, DIR another place for its own files.
set -u
: "${HOST:=nsenter -t 1 -m -n --}" "${DIR:=/tmp}"
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

rule() { # rule TABLES ACTION...
    tables=$1
    shift
    on_host "$tables" -w -t mangle "$@" -p tcp -m conntrack --ctstate INVALID -m comment --comment conntrack-canary-drop -j DROP
}
iptables_in() {
    for t in iptables ip6tables; do
        rule $t -C PREROUTING || rule $t -I PREROUTING 1 || return 1
    done
}
iptables_there() { rule iptables -C PREROUTING && rule ip6tables -C PREROUTING; }
iptables_out() {
    for t in iptables ip6tables; do
        while rule $t -C PREROUTING; do rule $t -D PREROUTING || return 1; done
    done
}

sleeper=
stop() {
    trap '' TERM INT
    [ -z "$sleeper" ] || { kill "$sleeper"; wait "$sleeper"; } 2>/dev/null
    rm -f "$ready"
    if "${with}_out" || ! "${with}_there"; then
        log "removed"
        exit 0
    fi
    log "NOT REMOVED: $(cat "$error")"
    exit 1
}
if on_host nft --version >/dev/null; then with=nft; else with=iptables; fi
trap stop TERM INT
while :; do
    # A container that was killed left its rules; somebody may have flushed them.
    if ! "${with}_there"; then
        if ! "${with}_in" || ! "${with}_there"; then
            log "cannot drop INVALID with $with: $(cat "$error")"
            exit 1
        fi
        log "INVALID TCP segments are dropped in PREROUTING, with $with"
    fi
    : >"$ready"
    sleep 5 &
    sleeper=$!
    wait "$sleeper"
done
