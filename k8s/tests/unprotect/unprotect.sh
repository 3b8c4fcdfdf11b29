#!/bin/sh
# unprotect.sh: accepts INVALID packets ahead of kube-proxy's drop until SIGTERM.
#
# kube-proxy (iptables mode) drops INVALID in KUBE-FORWARD and puts that rule back
# at every sync when somebody removes it. This leaves kube-proxy's rules alone: an
# ACCEPT at the top of FORWARD ends the walk before the jump to KUBE-FORWARD. Where
# kube-proxy puts its jump above it, as on a node that has just begun, it goes back
# to the top. In nftables mode kube-proxy drops nothing, and there is nothing to hold off.
set -u
rule() {
    for tables in iptables ip6tables; do
        nsenter -t 1 -m -n -- "$tables" -w "$@" -m conntrack --ctstate INVALID \
            -m comment --comment conntrack-canary-unprotect -j ACCEPT 2>/tmp/error || [ "$tables" = ip6tables ] || return 1
    done
}
on_top() { nsenter -t 1 -m -n -- iptables -w -S FORWARD 1 | grep -q conntrack-canary-unprotect; }
sleeper=
stop() {
    trap '' TERM INT
    [ -z "$sleeper" ] || { kill -KILL "$sleeper"; wait "$sleeper"; } 2>/dev/null
    rm -f /tmp/ready
    rule -D FORWARD && echo "restored: kube-proxy's drop is in force again"
    exit 0
}
trap stop TERM INT
nsenter -t 1 -m -n -- iptables -w -S 2>/dev/null | grep -q 'ctstate INVALID -j DROP' ||
    echo "kube-proxy drops no INVALID packets here (not in iptables mode, or be_liberal was set when it started): nothing to hold off"
rule -C FORWARD 2>/dev/null || rule -I FORWARD 1 || {
    cat /tmp/error >&2
    echo "cannot insert the rule" >&2
    exit 1
}
: >/tmp/ready
echo "ready: INVALID packets are accepted at the top of FORWARD"
while :; do
    sleep 2 &
    sleeper=$!
    wait "$sleeper"
    on_top || {
        rule -D FORWARD
        rule -I FORWARD 1
    }
done
