//! ctnetlink and procfs of a real kernel, in a network namespace of the test's own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use canary_conntrack::stat;
use canary_conntrack::table::{Entry, Key, Table, TcpState, Tuple};
use nix::sched::{CloneFlags, unshare};

/// Moves this thread into a network namespace where conntrack follows loopback; false, said
/// loudly, where that is not allowed.
fn namespace(test: &str) -> bool {
    if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
        assert!(!nix::unistd::geteuid().is_root(), "unshare: {e}");
        eprintln!("SKIPPED {test}: needs root to make a network namespace: {e}");
        return false;
    }
    let rules = "ip link set lo up && nft 'add table inet t; add chain inet t c { type filter \
        hook input priority 0; }; add rule inet t c ct state new counter'";
    assert!(Command::new("sh").args(["-c", rules]).status().unwrap().success());
    true
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

/// A connection is found by either direction and among all, in both families; deleted, it is
/// gone, and what is not there is no error.
#[test]
fn entries_are_found_and_deleted() {
    if !namespace("entries_are_found_and_deleted") {
        return;
    }
    let mut table = Table::open().unwrap();
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let (_server, _client, tuple) = connection(listen);
        let entry = table.get(Key::Original(tuple)).unwrap().expect("an entry");
        assert_eq!(entry.original, tuple);
        assert_eq!(entry.state, Some(TcpState::Established));
        assert!(!entry.is_translated());
        assert_eq!(
            table.get(Key::Reply(tuple.reversed())).unwrap().map(|e| e.original),
            Some(tuple)
        );
        assert!(table.dump().unwrap().iter().any(|e| is_of(e, tuple.source)));
        assert!(table.delete(Key::Original(tuple)).unwrap());
        assert_eq!(table.get(Key::Original(tuple)).unwrap(), None);
        assert!(!table.delete(Key::Original(tuple)).unwrap());
    }
}

/// Without a tuple every entry goes, and the count says so.
#[test]
fn a_flush_deletes_all() {
    if !namespace("a_flush_deletes_all") {
        return;
    }
    let mut table = Table::open().unwrap();
    let _held: Vec<_> = (0..5).map(|_| connection("127.0.0.1:0")).collect();
    let (entries, limit) = table.usage().unwrap();
    assert_eq!(entries, 5);
    assert!(limit.is_some_and(|l| l > 0));
    table.flush().unwrap();
    assert_eq!(table.usage().unwrap().0, 0);
    assert_eq!(table.dump().unwrap(), []);
}

/// Both sources give the same counters for the same CPUs.
#[test]
fn both_sources_agree() {
    if !namespace("both_sources_agree") {
        return;
    }
    let _held = connection("127.0.0.1:0");
    let path = format!("/proc/thread-self/net/{}", stat::STAT);
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(Table::open().unwrap().counters().unwrap(), stat::counters(&text).unwrap());
}
