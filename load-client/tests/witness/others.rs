//! Rules and listeners that others have on the node: they work as before, and are taken for nothing else.

use std::path::PathBuf;

use canary_record::result::witness::{Cause, Direction};
use canary_testbed::exec::{Call, Process, Ready};
use canary_testbed::model::Path;
use canary_testbed::test::{Bed, SOON, wait_for};

use super::{both, complete, end, forged, killed, only, watch};

/// LOG, NFLOG and TRACE rules that others have on the node do what they did: the counters move,
/// the listener of the NFLOG rule's group gets its packets, the trace is seen, and none of it is
/// taken for conntrack's words.
pub(super) fn rules_of_others_work_as_before() {
    let bed = Bed::path(Path::SameNode);
    bed.sh(
        "node1",
        "nft 'table inet o { chain p { type filter hook prerouting priority -350; \
         tcp dport 80 counter log prefix \"mine\"; tcp dport 80 counter log group 7; \
         tcp dport 80 meta nftrace set 1; }; }'",
    );
    let trace = beside(&bed, "echo begun; exec nft monitor trace", "trace.log", "begun");
    let (nflog, group) = listen_on(&bed, 7);
    let witness = watch(&bed, "node1");
    let boom = forged(&bed, &both(&bed)[..1], 6, "--forge=above-window");
    wait_for("the trace", || trace.printed().contains("trace id"));
    wait_for("the NFLOG rule's packets", || {
        std::fs::metadata(&nflog).is_ok_and(|m| m.len() > 1000)
    });
    drop((trace, group));
    let w = end(witness).result;
    complete(&w);
    assert_eq!(killed(&boom), 6);
    assert_eq!(only(&w, Cause::AnsweredByClient, Direction::ServerToClient), 6);
    assert_eq!(w.messages.foreign, 0);
    let rules = bed.sh("node1", "nft list table inet o");
    assert!(!rules.contains("packets 0 "), "{rules}");
}

/// A program of somebody else on node1, once it has said `ready`.
fn beside(bed: &Bed, line: &str, log: &str, ready: &'static str) -> Process {
    let ready = Ready::Text(ready);
    let mut process = bed.testbed().start("node1", Call::sh(line), &bed.file(log), ready).unwrap();
    process.wait_ready(SOON).unwrap();
    process
}

/// Somebody who listens on a group of NFLOG, and the file of what comes there.
fn listen_on(bed: &Bed, group: u16) -> (PathBuf, Process) {
    let file = bed.file(&format!("nflog-{group}.pcap"));
    let tcpdump = format!("exec tcpdump -Z root -n -U -i nflog:{group} -w {} 2>&1", file.display());
    let process = beside(bed, &tcpdump, &format!("tcpdump-{group}.log"), "listening on");
    (file, process)
}

/// The same of legacy iptables: LOG and NFLOG rules do what they did. Its TRACE has no logger of its own:
/// its lines come to whoever has group 0, are counted as foreign, and are taken for nobody's end.
pub(super) fn legacy_rules_of_others_work_as_before() {
    let bed = Bed::path(Path::SameNode);
    bed.sh(
        "node1",
        "rule() { iptables-legacy -t raw -A PREROUTING -p tcp --dport 80 -j \"$@\"; }; \
         rule LOG --log-prefix mine; rule NFLOG --nflog-group 8; rule TRACE",
    );
    let (nflog, group) = listen_on(&bed, 8);
    let witness = watch(&bed, "node1");
    let boom = forged(&bed, &both(&bed)[..1], 6, "--forge=above-window");
    wait_for("the NFLOG rule's packets", || {
        std::fs::metadata(&nflog).is_ok_and(|m| m.len() > 1000)
    });
    drop(group);
    let w = end(witness).result;
    complete(&w);
    assert_eq!(killed(&boom), 6);
    assert_eq!(only(&w, Cause::AnsweredByClient, Direction::ServerToClient), 6);
    assert!(w.messages.foreign > 6, "{:?}", w.messages);
    let rules = bed.sh("node1", "iptables-legacy-save -c -t raw");
    let counted =
        |target: &str| rules.lines().any(|l| l.contains(target) && !l.starts_with("[0:0]"));
    assert!(["LOG", "NFLOG", "TRACE"].iter().all(|t| counted(&format!("-j {t}"))), "{rules}");
}

/// What comes on group 0 from a rule, or of another protocol, is counted apart.
pub(super) fn foreign_messages_are_told_apart() {
    let bed = Bed::path(Path::SameNode);
    bed.sh(
        "node1",
        "nft 'table inet o { chain p { type filter hook prerouting priority -350; \
         tcp dport 80 counter log group 0 prefix \"theirs\"; }; }'",
    );
    let witness = watch(&bed, "node1");
    let boom = forged(&bed, &both(&bed)[..1], 3, "--forge=above-window");
    let w = end(witness).result;
    complete(&w);
    assert!(w.messages.foreign > 3, "{:?}", w.messages);
    assert_eq!(killed(&boom), only(&w, Cause::AnsweredByClient, Direction::ServerToClient));
}
