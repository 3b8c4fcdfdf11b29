//! Real packets through the real conntrack: every forgery against every
//! protection of the client's node, in both families. `BOOM_MATRIX=1000` makes
//! it a thousand connections a cell.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use canary_record::names::{Diagnosis, Forgery};
use canary_record::result::boom::BoomResult;
use canary_testbed::model::Path;
use canary_testbed::programs::Ended;
use canary_testbed::test::{Bed, exchange};

/// The Service's addresses.
pub(crate) const VIP4: &str = "198.19.0.10:80";
pub(crate) const VIP6: &str = "[fd00:19::10]:80";

/// (leaked, killed, delivered, dropped) of n.
type Cell = [u64; 4];

fn expected(drop: bool, liberal: bool, f: Forgery, n: u64) -> Cell {
    let (leaked, killed, delivered, dropped) =
        ([n, 0, 0, 0], [n, n, 0, 0], [0, 0, n, 0], [0, 0, 0, n]);
    match f {
        // An overshoot is let be too, and poisons the entry (since Linux 6.1).
        Forgery::Control | Forgery::BelowWindow | Forgery::Overshoot => delivered,
        Forgery::AboveWindow | Forgery::AckAhead if liberal => delivered,
        _ if drop => dropped,
        Forgery::AboveWindow | Forgery::SynFin => killed,
        Forgery::AckAhead | Forgery::NoFlags => leaked,
    }
}

fn six_forgeries() -> Vec<Forgery> {
    Forgery::ALL.iter().copied().filter(|f| *f != Forgery::Overshoot).collect()
}

fn matrix(vip: &str) {
    let n: u64 = std::env::var("BOOM_MATRIX").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let bed = Bed::path(Path::SameNode);
    for (drop, liberal) in [(false, false), (true, false), (false, true), (true, true)] {
        row(&bed, vip, n, drop, liberal);
    }
}

/// `n` connections for each of the six forgeries, under one protection.
pub(crate) fn row(bed: &Bed, vip: &str, n: u64, drop: bool, liberal: bool) {
    let forgeries = six_forgeries();
    let names: Vec<_> = forgeries.iter().map(ToString::to_string).collect();
    let total = n as usize * forgeries.len();
    let wanted = [("forward-drop", drop), ("liberal", liberal)];
    let wanted: Vec<_> = wanted.iter().filter(|p| p.1).map(|p| p.0).collect();
    bed.protect(&wanted);
    let mut boom = bed.boom(&[
        "--forge",
        &names.join(","),
        "--on-reset",
        "count",
        "--connections",
        &total.to_string(),
        "--min-forged",
        &n.min(8).to_string(),
        // Thousands of exchanges, one after another.
        "--hold=60s",
    ]);
    let mut held = Vec::new();
    for _ in 0..total.div_ceil(100) {
        held.extend(bed.connect(vip, 100.min(total - held.len())));
    }
    boom.wait_for("settled").unwrap();
    let reset = held.iter().filter(|s| exchange(s).is_err()).count() as u64;
    drop_all(held);
    let Ended { status, result, .. } = boom.end(Duration::from_secs(60)).unwrap();

    let mut killed = 0;
    for o in &result.outcomes {
        let cell = expected(drop, liberal, o.forgery, n);
        killed += cell[1];
        assert_eq!(
            [o.counts.leaked, o.counts.killed, o.counts.delivered, o.counts.dropped],
            cell,
            "{} with drop {drop}, liberal {liberal}: {o:?}",
            o.forgery
        );
    }
    assert_eq!(result.outcomes.len(), forgeries.len());
    // What the client and the server's application and TCP saw agrees with the judgement.
    let c = result.connections;
    assert_eq!((reset, c.reset_seen_by_application + c.reset_before_accept), (killed, killed));
    assert_eq!((c.accepted + c.reset_before_accept, c.handshakes), (total as u64, total as u64));
    let vulnerable = !drop;
    assert_eq!(status.code(), Some(if vulnerable { 10 } else { 0 }), "{:?}", result.reasons);
    let diagnosis = match (drop, liberal) {
        (false, false) => Diagnosis::Unprotected,
        (true, false) => Diagnosis::Dropped,
        (false, true) => Diagnosis::Liberal,
        (true, true) => Diagnosis::BadFlagsDropped,
    };
    assert_eq!(result.paths[0].diagnosis, diagnosis);
    valid(&result);
    println!(
        "{vip}, drop {drop}, liberal {liberal}: {n} of {n} in each of {} cells",
        forgeries.len()
    );
}

fn drop_all<T>(_: T) {}

/// The result satisfies the committed schema.
fn valid(result: &BoomResult) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/boom-server.json");
    let schema = std::fs::read_to_string(path).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let value = serde_json::to_value(result).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
    assert_eq!(errors, [] as [String; 0]);
}

/// Every cell of the design's table holds for IPv4, without one exception.
pub(crate) fn matrix_ipv4() {
    matrix(VIP4);
}

/// And for IPv6.
pub(crate) fn matrix_ipv6() {
    matrix(VIP6);
}

/// What is called safe ends no connection, however many: `BOOM_SAFE=100000` for as many as
/// that under load, where unprotected INVALID segments leak all the while.
pub(crate) fn safe_segments_end_nothing() {
    let n: u64 = std::env::var("BOOM_SAFE").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let bed = Bed::path(Path::SameNode);
    // A port again once its TIME_WAIT is a second old.
    bed.sh(
        "client",
        "sysctl -qw net.ipv4.tcp_tw_reuse=1 net.ipv4.ip_local_port_range='1024 65535'",
    );
    let boom = bed.boom(&["--forge=safe", "--on-reset=count"]);
    let words =
        format!("churn --target tcp://{VIP4} --connections {n} --rate 2000 --concurrency 1000");
    let churned = bed.load(&words).end(Duration::from_secs(600)).unwrap().result;
    let result = boom.stop(Duration::from_secs(60)).unwrap().result;
    let killed: u64 = result.outcomes.iter().map(|o| o.counts.killed).sum();
    let leaked: u64 = result.outcomes.iter().map(|o| o.counts.leaked).sum();
    assert_eq!(result.connections.forged, n, "{:?}", result.connections);
    assert!(leaked > n / 3, "{:?}", result.outcomes);
    assert_eq!(killed, 0, "{:?}", result.outcomes);
    assert_eq!(result.connections.reset_seen_by_application, 0, "{:?}", result.resets);
    assert_eq!((churned.ok, churned.failures.len()), (n, 0), "{:?}", churned.failures);
    println!("{n} connections, {leaked} leaks, none ended");
}

/// An overshoot is delivered and poisons the entry: the next answer is reset.
pub(crate) fn an_overshoot_kills_later() {
    let bed = Bed::path(Path::SameNode);
    let mut boom = bed.boom(&["--forge", "overshoot", "--on-reset", "count", "--connections", "5"]);
    let held = bed.connect(VIP4, 5);
    // Only what is sent after the forged segment meets the poisoned entry.
    boom.wait_for("settled").unwrap();
    let kinds: BTreeMap<String, usize> = held.iter().fold(BTreeMap::new(), |mut m, s| {
        let end = exchange(s).map_or_else(|e| e.kind().to_string(), |()| "ok".to_owned());
        *m.entry(end).or_default() += 1;
        m
    });
    assert_eq!(kinds, BTreeMap::from([("connection reset".to_owned(), 5)]));
    drop_all(held);
    let Ended { status, result, .. } = boom.end(Duration::from_secs(30)).unwrap();
    assert_eq!((result.outcomes[0].counts.delivered, result.outcomes[0].counts.leaked), (5, 0));
    // Their numbers are the answer's, not the forged segment's: poisoned, not leaked.
    assert_eq!((result.resets.poisoned, result.outcomes[0].counts.killed_later), (5, 5));
    assert_eq!((result.resets.attributed, result.resets.unattributed), (0, 0));
    assert_eq!(result.paths[0].diagnosis, Diagnosis::Unprotected);
    assert!(result.paths[0].reasons[0].contains("after an overshoot"), "{:?}", result.reasons);
    assert_eq!(status.code(), Some(10));
}

/// One port used over and over, each connection reset by its client: what comes late
/// from one is not blamed on the next, and a client's own reset is never an ERROR.
pub(crate) fn a_port_used_again_is_another_connection() {
    use socket2::{Domain, Socket, Type};
    const TIMES: u64 = 50;
    let bed = Bed::path(Path::SameNode);
    let boom = bed.boom(&["--forge=control,below-window", "--events=all"]);
    let bind: std::net::SocketAddr = "198.18.65.10:40000".parse().unwrap();
    let to: std::net::SocketAddr = VIP4.parse().unwrap();
    bed.within("client", || {
        for _ in 0..TIMES {
            let begun = Instant::now();
            let socket = loop {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_reuse_address(true).unwrap();
                socket.bind(&bind.into()).unwrap();
                match socket.connect(&to.into()) {
                    // What another test has forked holds the last one open until its exec.
                    Err(e) if e.kind() == ErrorKind::AddrNotAvailable => {
                        assert!(begun.elapsed() < Duration::from_secs(5), "{e}");
                    }
                    done => break done.map(|()| socket).unwrap(),
                }
            };
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    // The last one is answered, so everything before it has come.
    exchange(&bed.connect(VIP4, 1)[0]).unwrap();
    let Ended { result, text: log, .. } = boom.stop(Duration::from_secs(30)).unwrap();
    // A reset may overtake the server's half of a handshake: accept() sees none then either.
    let c = result.connections;
    assert_eq!(c.handshakes, c.accepted);
    // Where the SYN came twice the client has reset before its turn.
    let calm = result.handshakes.repeated_syns;
    let forged = c.accepted.saturating_sub(calm)..=c.accepted;
    assert!(forged.contains(&c.forged), "{c:?} {:?} {:?}", result.handshakes, result.resets);
    assert!(c.accepted > TIMES / 2, "{c:?}");
    assert_eq!(result.resets.attributed, 0);
    assert!(
        result.outcomes.iter().all(|o| o.counts.leaked + o.counts.dropped == 0),
        "{:?}",
        result.outcomes
    );
    let judged: u64 = result
        .outcomes
        .iter()
        .map(|o| o.counts.delivered + o.counts.unknown.values().sum::<u64>())
        .sum();
    assert_eq!(judged, result.connections.forged);
    // The clients' own, and those that a forged segment draws from a port closed by then.
    assert!(result.resets.unattributed + result.resets.unknown_connection >= c.accepted - 1);
    assert!(log.contains("connection established") && !log.contains("ERROR"), "{log}");
}

/// With SYN cookies the server keeps nothing until the ACK, and window scale and
/// SACK travel in the timestamp: each connection is seen and judged all the same.
/// Nothing lethal is forged: a client's next segment makes a new connection out of
/// the cookie of one that was reset.
pub(crate) fn syn_cookies_hide_no_connection() {
    let bed = Bed::path(Path::SameNode);
    bed.sh("server", "sysctl -qw net.ipv4.tcp_syncookies=2");
    let options = ["--forge=control,ack-ahead", "--on-reset=count", "--connections=40"];
    let mut boom = bed.boom(&options);
    let mut held = bed.connect(VIP4, 20);
    held.extend(bed.connect(VIP6, 20));
    boom.wait_for("settled").unwrap();
    for s in &held {
        exchange(s).unwrap();
    }
    drop_all(held);
    let result = boom.end(Duration::from_secs(30)).unwrap().result;
    let count = "nstat -asz TcpExtSyncookiesRecv | awk '/Recv/ {print $2}'";
    assert_eq!(bed.sh("server", count).trim(), "40", "cookies came back");
    let c = result.connections;
    assert_eq!((c.accepted, c.handshakes, c.forged), (40, 40, 40));
    for o in &result.outcomes {
        let control = o.forgery == Forgery::Control;
        let cell = if control { [0, 0, 10, 0] } else { [10, 0, 0, 0] };
        assert_eq!(
            [o.counts.leaked, o.counts.killed, o.counts.delivered, o.counts.dropped],
            cell,
            "{o:?}"
        );
    }
    assert_eq!(result.outcomes.len(), 4);
}

/// Gives the server pod 198.18.65.21 too.
fn second_address(bed: &Bed) {
    bed.sh("server", "ip addr add 198.18.65.21/32 dev eth0");
    bed.sh("node1", "ip route add 198.18.65.21/32 dev to-server");
}

/// POD_IP names what is judged for: a connection to another of the pod's addresses
/// is accepted and let alone, and one to a named address is judged beside it.
pub(crate) fn connections_to_other_addresses_are_let_alone() {
    let bed = Bed::path(Path::SameNode);
    second_address(&bed);
    let mut boom = bed.boom(&[
        "--forge=above-window",
        "--on-reset=count",
        "--connections=4",
        "--pod-ip=198.18.65.20",
        "--pod-ips=198.18.65.20,fd00:65::20",
    ]);
    let held: Vec<_> = [VIP4, VIP6, "198.18.65.21:9000", "198.18.65.21:9000"]
        .iter()
        .flat_map(|to| bed.connect(to, 1))
        .collect();
    boom.wait_for("settled").unwrap();
    let ends: Vec<_> = held.iter().map(|s| exchange(s).is_ok()).collect();
    assert_eq!(ends, [false, false, true, true]);
    drop_all(held);
    let result = boom.end(Duration::from_secs(30)).unwrap().result;
    assert_eq!((result.connections.handshakes, result.connections.forged), (4, 2));
    let words = "2 connections came to 198.18.65.21 ";
    assert!(result.reasons.iter().any(|r| r.contains(words)), "{:?}", result.reasons);
    assert!(!result.reasons.iter().any(|r| r.contains("none of these")), "{:?}", result.reasons);
}

/// Nor is one that another process accepts on the same port of another address.
pub(crate) fn connections_of_another_process_are_let_alone() {
    let bed = Bed::path(Path::SameNode);
    second_address(&bed);
    let other = bed.within("server", || std::net::TcpListener::bind("198.18.65.21:9000").unwrap());
    let listen = "--listen=198.18.65.20:9000,[fd00:65::20]:9000";
    let mut boom =
        bed.boom(&[listen, "--forge=above-window", "--on-reset=count", "--connections=2"]);
    let held = bed.connect("198.18.65.21:9000", 5);
    let own = [bed.connect(VIP4, 1), bed.connect(VIP6, 1)];
    boom.wait_for("settled").unwrap();
    assert!(own.iter().all(|s| exchange(&s[0]).is_err()));
    for client in &held {
        let (mut stream, _) = other.accept().unwrap();
        stream.write_all(&[7; 10]).unwrap();
        exchange(client).unwrap();
    }
    drop_all(held);
    let result = boom.end(Duration::from_secs(30)).unwrap().result;
    let c = result.connections;
    assert_eq!((c.handshakes, c.forged, c.accepted), (2, 2, 2));
}

/// A POD_IP that is no address of this pod is told, with those that are.
pub(crate) fn a_foreign_pod_ip_is_told() {
    let bed = Bed::path(Path::SameNode);
    let boom = bed.boom(&["--pod-ip=198.18.65.77", "--connections=1", "--forge=control"]);
    let held = bed.connect(VIP4, 1);
    drop_all(held);
    let Ended { status, result, text: log } = boom.end(Duration::from_secs(30)).unwrap();
    let reasons = result.reasons.join("\n");
    for word in
        ["name 198.18.65.77", "198.18.65.20", "fd00:65::20", "1 connections came to 198.18.65.20"]
    {
        assert!(reasons.contains(word), "{word}: {reasons}");
    }
    assert!(log.contains("\"WARN\""), "{log}");
    assert_eq!(status.code(), Some(11));
}

/// A pod address is not translated: every segment arrives, even with bad flags.
pub(crate) fn a_pod_address_is_not_translated() {
    let bed = Bed::path(Path::SameNode);
    let mut boom = bed.boom(&[
        "--forge",
        "control,above-window,syn-fin",
        "--on-reset",
        "count",
        "--connections",
        "30",
        "--min-forged",
        "10",
        "--pod-cidr",
        "198.18.0.0/16",
    ]);
    // No NAT rule on this path, but conntrack sees it: the answer still finds the socket.
    let held = bed.connect("198.18.65.20:9000", 30);
    boom.wait_for("settled").unwrap();
    // The clients say which address they called.
    let asks = |mut s: &TcpStream| {
        s.write_all(b"answer 0 4 1 198.18.65.20:9000\n")?;
        s.read_exact(&mut [0; 4])
    };
    let reset = held.iter().filter(|s| asks(s).is_err()).count();
    drop_all(held);
    let Ended { status, result, .. } = boom.end(Duration::from_secs(30)).unwrap();
    assert_eq!((reset, status.code()), (0, Some(0)), "{:?}", result.reasons);
    assert_eq!(result.paths[0].diagnosis, Diagnosis::NotTranslated);
    assert_eq!((result.connections.called_here, result.connections.called_elsewhere), (30, 0));
    assert_eq!(result.paths[0].class.as_str(), "pod");
}
