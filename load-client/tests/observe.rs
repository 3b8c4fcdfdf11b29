//! observe in a namespace with conntrack, and the metrics of the admin port.

mod common;

use std::time::Duration;

use canary_common::result::observe::{ObserveResult, SourceState};
use common::{Ns, last, privileged, wait_for};

/// Entries appear in the samples and in the metrics, from every source.
#[test]
fn sees_entries_come() {
    if !privileged("sees_entries_come") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let _serve = ns.serve();
    ns.rule("ct state new counter");
    let mut observe = ns.start("observe --interval 50ms --admin 127.0.0.1:9100", &out);
    wait_for("ready", || std::fs::read_to_string(&out).unwrap().contains("\"message\":\"ready\""));
    let r = ns.run("churn --target tcp://127.0.0.1:8080 --connections 300").result;
    assert_eq!(r.ok, 300);
    let mut page = String::new();
    wait_for("300 entries in the metrics", || {
        page = ns.sh("curl -s http://127.0.0.1:9100/metrics");
        let line = page.lines().find_map(|l| l.strip_prefix("conntrack_entries "));
        line.is_some_and(|n| n.parse::<f64>().unwrap() >= 300.0)
    });
    for name in ["limit", "drop_total", "early_drop_total", "insert_failed_total", "invalid_total"]
    {
        assert!(page.contains(&format!("\nconntrack_{name} ")), "{name}: {page}");
    }
    assert_eq!(ns.sh("curl -s http://127.0.0.1:9100/readyz"), "ready\n");
    observe.signal("TERM");
    assert_eq!(observe.wait(Duration::from_secs(2)), 0);
    let r: ObserveResult = last(&std::fs::read_to_string(&out).unwrap());
    assert!(r.sources.values().all(|s| *s == SourceState::Read), "{:?}", r.sources);
    assert_eq!(r.sources.len(), 3);
    assert_eq!(r.first.entries, 0);
    assert!(r.most_entries >= 300 && r.last.limit > 0);
    assert!(r.samples.is_sorted_by(|a, b| a.t < b.t));
    assert!(r.samples.iter().any(|s| s.entries >= 300));
    assert_eq!(r.reasons, Vec::<String>::new());
}

/// A segment that conntrack calls INVALID moves the difference.
#[test]
fn counts_invalid_segments() {
    if !privileged("counts_invalid_segments") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    ns.rule("ct state invalid counter");
    let mut observe = ns.start("observe --interval 50ms", &out);
    wait_for("ready", || std::fs::read_to_string(&out).unwrap().contains("\"message\":\"ready\""));
    // An ICMP echo reply that nobody asked for.
    ns.sh("echo 0 0 > /proc/sys/net/ipv4/ping_group_range");
    ns.inside(|| {
        let raw = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::RAW,
            Some(socket2::Protocol::ICMPV4),
        )
        .unwrap();
        let to = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        for _ in 0..7 {
            // Type 0 (echo reply), code 0, checksum 0xfffe for identifier 1 and sequence 0.
            raw.send_to(&[0, 0, 0xff, 0xfe, 0, 1, 0, 0], &to.into()).unwrap();
        }
    });
    assert!(ns.counted()[0] >= 7);
    observe.signal("INT");
    assert_eq!(observe.wait(Duration::from_secs(2)), 0);
    let r: ObserveResult = last(&std::fs::read_to_string(&out).unwrap());
    assert!(r.difference.invalid >= 7, "{:?}", r.difference);
    let by_cpu: u64 = r.difference_by_cpu.iter().map(|c| c.counters.invalid).sum();
    assert_eq!(by_cpu, r.difference.invalid);
}
