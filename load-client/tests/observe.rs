//! observe in a namespace with conntrack, and the metrics of the admin port.

mod common;

use std::time::Duration;

use canary_record::result::load::LoadResult;
use canary_record::result::observe::{ObserveResult, SourceState};
use common::{Ns, check_sum, last, privileged, wait_for};

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

/// A table is filled to the part asked for, not beyond, and filled again when it was emptied;
/// when it is seen no more, nothing begins.
#[test]
fn fills_a_table_and_keeps_it() {
    if !privileged("fills_a_table_and_keeps_it") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let (seen, out) = (dir.path().join("seen"), dir.path().join("out"));
    let _serve = ns.serve();
    ns.rule("ct state new counter");
    let mut observe = ns.start("observe --interval 20ms --admin 127.0.0.1:9100", &seen);
    wait_for("ready", || std::fs::read_to_string(&seen).unwrap().contains("\"message\":\"ready\""));
    let limit: f64 = ns.sh("cat /proc/sys/net/netfilter/nf_conntrack_max").trim().parse().unwrap();
    let entries = || ns.sh("cat /proc/sys/net/netfilter/nf_conntrack_count").trim().parse::<u64>();
    let (wanted, part) = (600, 600.5 / limit);
    let mut churn = ns.start(
        &format!("churn --target tcp://127.0.0.1:8080 --fill http://127.0.0.1:9100 --fill-to {part:.9} --log json"),
        &out,
    );
    let text = || std::fs::read_to_string(&out).unwrap();
    wait_for("a filled table", || text().contains("the table is filled"));
    ns.sh("conntrack -F 2>/dev/null");
    wait_for("a table filled again", || entries().unwrap() >= wanted);
    observe.signal("TERM");
    assert_eq!(observe.wait(Duration::from_secs(2)), 0);
    wait_for("the loss in the log", || text().contains("the table is not seen"));
    ns.sh("conntrack -F 2>/dev/null");
    let attempts = || ns.counted()[0];
    let before = attempts();
    std::thread::sleep(Duration::from_millis(300));
    // The follower's own attempts to see the table, and nothing else.
    assert!(attempts() - before < 20, "{before} {}", attempts());
    churn.signal("TERM");
    assert_eq!(churn.wait(Duration::from_secs(2)), 0);
    let r: LoadResult = last(&text());
    check_sum(&r);
    assert!(r.ok >= 2 * wanted - 20 && r.ok == r.attempts, "{} {:?}", r.ok, r.failures);
    assert!(r.reasons.iter().any(|r| r.starts_with("the table had 600 of ")), "{:?}", r.reasons);
    let seen: ObserveResult = last(&std::fs::read_to_string(&seen).unwrap());
    // The follower's own connection, and that of the one before.
    assert!((wanted..wanted + 5).contains(&seen.most_entries), "{}", seen.most_entries);
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
