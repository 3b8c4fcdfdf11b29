//! observe in a namespace with conntrack, and the metrics of the admin port.

use std::time::Duration;

use canary_record::prometheus;
use canary_record::result::observe::{ObserveResult, SourceState};
use canary_testbed::programs::{Running, load_client};
use canary_testbed::test::{Bed, wait_for};
use canary_testbed::topology::Topology;
use nix::sys::signal::Signal;

use crate::accounts::{run, stop};

/// observe, ready.
fn observe(bed: &Bed, options: &[&str]) -> Running<ObserveResult> {
    let program = load_client(&[&["observe"], options].concat()).unwrap();
    bed.start("host", program.ending_with())
}

/// Entries appear in the samples and in the metrics, from every source.
pub(crate) fn sees_entries_come() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    bed.rule("host", "ct state new counter");
    let observe = observe(&bed, &["--interval", "50ms", "--admin", "127.0.0.1:9100"]);
    let r = run(&bed, "churn --target tcp://127.0.0.1:8080 --connections 300").result;
    assert_eq!(r.ok, 300);
    let mut page = String::new();
    wait_for("300 entries in the metrics", || {
        page = bed.sh("host", "curl -s http://127.0.0.1:9100/metrics");
        prometheus::value(&page, "load_conntrack_entries").is_some_and(|n| n >= 300.0)
    });
    for name in ["limit", "drop_total", "early_drop_total", "insert_failed_total", "invalid_total"]
    {
        assert!(page.contains(&format!("\nload_conntrack_{name} ")), "{name}: {page}");
    }
    assert_eq!(bed.sh("host", "curl -s http://127.0.0.1:9100/readyz"), "ready\n");
    let ended = observe.stop(Duration::from_secs(2)).unwrap();
    assert_eq!(ended.code(), 0);
    let r = ended.result;
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
pub(crate) fn fills_a_table_and_keeps_it() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    bed.rule("host", "ct state new counter");
    let observe = observe(&bed, &["--interval", "20ms", "--admin", "127.0.0.1:9100"]);
    let limit: f64 =
        bed.sh("host", "cat /proc/sys/net/netfilter/nf_conntrack_max").trim().parse().unwrap();
    let entries =
        || bed.sh("host", "cat /proc/sys/net/netfilter/nf_conntrack_count").trim().parse::<u64>();
    let (wanted, part) = (600, 600.5 / limit);
    let churn = bed.load(
        &format!("churn --target tcp://127.0.0.1:8080 --fill http://127.0.0.1:9100 --fill-to {part:.9} --log json"),
    );
    let text = || churn.printed();
    wait_for("a filled table", || text().contains("the table is filled"));
    bed.sh("host", "conntrack -F 2>/dev/null");
    wait_for("a table filled again", || entries().unwrap() >= wanted);
    let observed = observe.stop(Duration::from_secs(2)).unwrap();
    assert_eq!(observed.code(), 0);
    wait_for("the loss in the log", || text().contains("the table is not seen"));
    bed.sh("host", "conntrack -F 2>/dev/null");
    let attempts = || bed.counted("host")[0];
    let before = attempts();
    std::thread::sleep(Duration::from_millis(300));
    // The follower's own attempts to see the table, and nothing else.
    assert!(attempts() - before < 20, "{before} {}", attempts());
    let ended = stop(churn);
    assert_eq!(ended.code(), 0);
    let r = ended.result;
    assert!(r.ok >= 2 * wanted - 20 && r.ok == r.attempts, "{} {:?}", r.ok, r.failures);
    assert!(r.reasons.iter().any(|r| r.starts_with("the table had 600 of ")), "{:?}", r.reasons);
    let seen = observed.result;
    // The follower's own connection, and that of the one before.
    assert!((wanted..wanted + 5).contains(&seen.most_entries), "{}", seen.most_entries);
}

/// A segment that conntrack calls INVALID moves the difference.
pub(crate) fn counts_invalid_segments() {
    let bed = Bed::new(Topology::single);
    bed.rule("host", "ct state invalid counter");
    let observe = observe(&bed, &["--interval", "50ms"]);
    // An ICMP echo reply that nobody asked for.
    bed.sh("host", "echo $(id -g) $(id -g) > /proc/sys/net/ipv4/ping_group_range");
    bed.within("host", || {
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
    assert!(bed.counted("host")[0] >= 7);
    observe.signal(Signal::SIGINT);
    let ended = observe.end(Duration::from_secs(2)).unwrap();
    assert_eq!(ended.code(), 0);
    let r = ended.result;
    assert!(r.difference.invalid >= 7, "{:?}", r.difference);
    let by_cpu: u64 = r.difference_by_cpu.iter().map(|c| c.counters.invalid).sum();
    assert_eq!(by_cpu, r.difference.invalid);
}
