//! ctnetlink and procfs of a real kernel, in a host of the testbed.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use canary_conntrack::rules::{self, Rules};
use canary_conntrack::stat;
use canary_conntrack::table::{Entry, Status, Table, TcpState, Tuple};
use canary_record::result::witness::RuleAction;
use canary_testbed::test::{Bed, needs_root};
use canary_testbed::topology::Topology;

canary_testbed::tests![
    entries_are_found,
    entries_are_added,
    a_flush_deletes_all,
    both_sources_agree,
    rules_of_invalid_are_read,
    rules_that_are_not_read_are_named,
    legacy_tables_are_named,
    chains_are_read,
];

/// Runs `job` in a host where conntrack follows loopback.
fn tracked(job: impl FnOnce() + Send) {
    let bed = Bed::new(Topology::single);
    let chain = "chain c { type filter hook input priority 0; ct state new counter; };";
    bed.sh("host", &format!("nft 'table inet t {{ {chain} }}'"));
    bed.within("host", job);
}

fn connection(listen: &str) -> (TcpListener, TcpStream, Tuple) {
    let server = TcpListener::bind(listen).unwrap();
    let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let tuple =
        Tuple { source: client.local_addr().unwrap(), destination: server.local_addr().unwrap() };
    (server, client, tuple)
}

fn is_of(entry: &Entry, address: SocketAddr) -> bool {
    entry.original.source == address
}

/// A connection is found by either direction and among all, in both families, and what is not there
/// is no error.
fn entries_are_found() {
    tracked(|| {
        let mut table = Table::open().unwrap();
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let (_server, _client, tuple) = connection(listen);
            let entry = table.get(tuple).unwrap().expect("an entry");
            assert_eq!(entry.original, tuple);
            assert_eq!(entry.state, Some(TcpState::Established));
            assert!(!entry.is_translated());
            assert_eq!(table.get(tuple.reversed()).unwrap().map(|e| e.original), Some(tuple));
            assert!(table.dump().unwrap().iter().any(|e| is_of(e, tuple.source)));
            table.flush().unwrap();
            assert_eq!(table.get(tuple).unwrap(), None);
        }
    });
}

/// What is added is an established connection like one that packets made, in both families.
fn entries_are_added() {
    tracked(|| {
        let mut table = Table::open().unwrap();
        for (source, destination) in
            [("198.18.0.1:1", "198.18.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")]
        {
            let [source, destination] = [source, destination].map(|a| a.parse().unwrap());
            let tuple = Tuple { source, destination };
            assert!(table.add(tuple, Duration::from_secs(60)).unwrap());
            let entry = table.get(tuple).unwrap().expect("an entry");
            assert_eq!((entry.original, entry.state), (tuple, Some(TcpState::Established)));
            assert!(entry.status.contains(Status::SeenReply | Status::Assured));
            assert!(entry.timeout.is_some_and(|t| t <= Duration::from_secs(60)));
        }
    });
}

/// Without a tuple every entry goes, and the count says so.
fn a_flush_deletes_all() {
    tracked(|| {
        let mut table = Table::open().unwrap();
        let _held: Vec<_> = (0..5).map(|_| connection("127.0.0.1:0")).collect();
        let (entries, limit) = table.usage().unwrap();
        assert_eq!(entries, 5);
        assert!(limit.is_some_and(|l| l > 0));
        table.flush().unwrap();
        assert_eq!(table.usage().unwrap().0, 0);
        assert_eq!(table.dump().unwrap(), []);
    });
}

/// Both sources give the same counters for the same CPUs.
fn both_sources_agree() {
    tracked(|| {
        let _held = connection("127.0.0.1:0");
        let path = format!("/proc/thread-self/net/{}", stat::STAT);
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(Table::open().unwrap().counters().unwrap(), stat::counters(&text).unwrap());
    });
}

/// The rules of a host, without the legacy tables: their names are for the user namespace's own root
/// to read, and an ordinary user's tests have none.
fn rules(bed: &Bed) -> Rules {
    let mut rules = bed.within("host", || rules::of_invalid().unwrap());
    rules.unread.retain(|u| !u.contains("tables_names: Permission denied"));
    rules
}

/// Rules that drop INVALID or answer it with a reset are read with their counters, whichever tool
/// wrote them; rules about anything else are not.
fn rules_of_invalid_are_read() {
    let bed = Bed::new(Topology::single);
    assert_eq!(rules(&bed), Rules::default());
    bed.sh(
        "host",
        "nft 'table inet t { chain c { type filter hook forward priority 0; \
         ct state new counter drop; ct state invalid counter packets 7 bytes 300 drop; \
         ct state established,related accept; tcp dport 9 drop; \
         ct state { new, invalid } counter; ct state invalid log; \
         meta l4proto tcp ct state invalid reject with tcp reset; }; }'",
    );
    bed.sh("host", "iptables-nft -A INPUT -m conntrack --ctstate INVALID,NEW -j DROP");
    bed.sh("host", "iptables-nft -A INPUT -m conntrack ! --ctstate INVALID -j DROP");
    bed.sh("host", "ip6tables-nft -A OUTPUT -m conntrack --ctstate NEW -j DROP");
    bed.sh("host", "ip6tables-nft -A INPUT -m conntrack --ctstate INVALID -j DROP");
    bed.sh(
        "host",
        "nft 'table ip6 t { chain c { type filter hook forward priority 0; \
         ct state invalid counter packets 3 bytes 9 drop; }; }'",
    );
    let rules = rules(&bed);
    let mut found: Vec<_> = rules
        .acting
        .iter()
        .map(|r| (&*r.family, &*r.table, &*r.chain, r.action, r.packets))
        .collect();
    found.sort_by_key(|f| (f.0, f.1, f.4.is_none()));
    let expected = [
        ("inet", "t", "c", RuleAction::Drop, Some(7)),
        ("inet", "t", "c", RuleAction::Reset, None),
        ("ip", "filter", "INPUT", RuleAction::Drop, Some(0)),
        ("ip6", "filter", "INPUT", RuleAction::Drop, Some(0)),
        ("ip6", "t", "c", RuleAction::Drop, Some(3)),
    ];
    assert_eq!(found, expected);
    assert_eq!(rules.unread, Vec::<String>::new());
}

/// What may act on INVALID and is not read is named: sets, maps of verdicts, comparisons, jumps. What
/// accepts by a set is no such rule.
fn rules_that_are_not_read_are_named() {
    let bed = Bed::new(Topology::single);
    bed.sh(
        "host",
        "nft 'table ip6 t { chain d { }; chain c { type filter hook forward priority 0; \
         ct state { established, related } accept; ct state vmap { invalid : drop, new : accept }; \
         ct state { new, invalid } counter drop; ct state != established reject with tcp reset; \
         ct state invalid jump d; ct state invalid log; }; }'",
    );
    let Rules { acting, unread, resets } = rules(&bed);
    assert_eq!((acting, resets), (Vec::new(), true));
    let how: Vec<_> = unread.iter().map(|u| u.split_once(" (").unwrap()).collect();
    assert!(how.iter().all(|(rule, _)| rule.starts_with("ip6 t c handle ")), "{how:?}");
    let asks = "asks a set, a map or a comparison)";
    let how: Vec<_> = how.iter().map(|h| h.1).collect();
    assert_eq!(how, [asks, asks, asks, "jumps)"]);
}

/// Legacy iptables' tables, which nf_tables does not have, are named.
fn legacy_tables_are_named() {
    needs_root("the kernel gives their names to nobody else");
    let bed = Bed::new(Topology::single);
    assert_eq!(rules(&bed), Rules::default());
    bed.sh("host", "iptables-legacy -A FORWARD -m conntrack --ctstate INVALID -j DROP");
    assert_eq!(rules(&bed).unread, ["legacy iptables' tables of ip (filter)"]);
}

/// Chains are read with their tables, whichever tool and family they are of.
fn chains_are_read() {
    let bed = Bed::new(Topology::single);
    assert_eq!(bed.within("host", || rules::chains().unwrap()), []);
    bed.sh("host", "nft 'table ip6 kube-proxy { chain services { }; }'");
    bed.sh("host", "iptables-nft -t nat -N KUBE-SVC-A");
    let found = bed.within("host", || rules::chains().unwrap());
    for (table, chain) in [("kube-proxy", "services"), ("nat", "KUBE-SVC-A")] {
        assert!(found.contains(&(table.to_owned(), chain.to_owned())), "{found:?}");
    }
}
