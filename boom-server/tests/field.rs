//! Networks of which people reported that they mislead such a tool, with real packets: what must
//! not be said there, and beside it the same network without its peculiarity. Clients that close
//! by RST or FIN are in `real/clients.rs`, the client's direction in load-client's tests, entries
//! that are lost in the lab's scenarios.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use canary_record::names::{Direction, Forgery, Outcome, ProbeEnd, Verdict};
use canary_record::result::boom::BoomResult;
use canary_testbed::model::Path;
use canary_testbed::programs::Ended;
use canary_testbed::test::{Bed, SOON};
use canary_wire::segment::{Emit, Family, Flags, Segment};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

canary_testbed::tests![
    a_duplicated_ack_hides_no_kill,
    a_window_update_is_no_answer,
    protected_names_its_direction,
    a_proxy_in_the_pod_is_told,
    a_node_that_rejects_is_told,
    handshakes_that_a_drop_breaks_are_told,
    renumbered_answers_are_not_silence,
    downloads_that_a_drop_hangs_are_told,
];

const ALL: &str = "control,below-window,above-window,ack-ahead,no-flags,syn-fin";
const POD: &str = "198.18.66.20:9000";

fn load(bed: &Bed, host: &str, table: &str) {
    bed.sh(host, &format!("nft 'table ip field {{ {table}; }}'"));
}

/// `n` idle connections, from the handshake until all is judged; what boom-server says of them.
fn judged(bed: &Bed, forge: &str, target: &str, n: u64) -> Ended<BoomResult> {
    let (forge, connections) = (format!("--forge={forge}"), format!("--connections={n}"));
    let options = [&forge, &connections, "--on-reset=count", "--min-forged=5", "--duration=40s"];
    let mut boom = bed.boom(&options);
    let probe = bed.load(&format!(
        "probe --target tcp://{target} --connections {n} --pattern idle --delay 60s"
    ));
    boom.wait_for("settled").unwrap();
    probe.signal(Signal::SIGUSR1);
    probe.end(3 * SOON).unwrap();
    boom.end(3 * SOON).unwrap()
}

fn count(result: &BoomResult, forgery: Forgery, outcome: Outcome) -> u64 {
    let rows = result.outcomes.iter().filter(|o| o.forgery == forgery);
    rows.map(|o| o.counts.of(outcome)).sum()
}

/// A network that duplicates the last ACK of every handshake: it is no answer, and what kills is
/// seen to. The same with a drop in place is protected.
fn a_duplicated_ack_hides_no_kill() {
    let hook = "type filter hook postrouting priority 300;";
    let rule = "oifname to-server tcp flags & (syn|ack|fin|rst|psh) == ack ip length < 61 \
                counter dup to 198.18.66.20 device to-server;";
    for (protections, code) in [(&[][..], 10), (&["forward-drop"], 0)] {
        let bed = Bed::path(Path::ClusterIp);
        bed.protect(protections);
        load(&bed, "node2", &format!("chain copies {{ {hook} {rule} }}"));
        let ended = judged(&bed, ALL, &bed.target(Family::Ipv4).to_string(), 60);
        assert_eq!(ended.code(), code, "{:?}", ended.result.reasons);
        assert!(!bed.sh("node2", "nft list table ip field").contains("packets 0 "), "none doubled");
    }
}

/// Clients that send a window update right after the handshake, as macOS does: where the drop
/// takes every forged segment none is called delivered, and where be_liberal is set all are.
fn a_window_update_is_no_answer() {
    const N: u64 = 20;
    for (protection, outcome) in
        [("forward-drop", Outcome::Dropped), ("liberal", Outcome::Delivered)]
    {
        let bed = Bed::path(Path::ClusterIp);
        bed.protect(&[protection]);
        let connections = format!("--connections={N}");
        let mut boom = bed.boom(&["--forge=above-window", "--on-reset=count", &connections]);
        let target = bed.target(Family::Ipv4);
        let held: Vec<_> = bed.within("client", || (0..N).map(|_| updating(target)).collect());
        boom.wait_for("settled").unwrap();
        drop(held);
        let result = boom.end(SOON).unwrap().result;
        let right = count(&result, Forgery::AboveWindow, outcome);
        assert_eq!(right, N, "{protection}: {:?}", result.outcomes);
    }
}

/// A connection, and an acknowledgment that changes nothing but the window.
fn updating(target: SocketAddr) -> TcpStream {
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
    raw.set_read_timeout(Some(SOON)).unwrap();
    let stream = TcpStream::connect(target).unwrap();
    let own = stream.local_addr().unwrap();
    let mut buf = [0; 200];
    let (seq, ack) = loop {
        let n = (&raw).read(&mut buf).unwrap();
        let Ok(seg) = Segment::parse_ipv4(&buf[..n], n) else { continue };
        if seg.dst.port() == own.port() && seg.flags == Flags::SYN.with(Flags::ACK) {
            break (seg.ack, seg.seq.add(1));
        }
    };
    let emit = Emit {
        src: own,
        dst: target,
        class: 0,
        seq,
        ack,
        flags: Flags::ACK,
        window: 2058,
        options: &[],
        payload: &[],
    };
    let mut packet = Vec::new();
    emit.packet(&mut packet);
    let out = Protocol::from(libc::IPPROTO_RAW);
    let out = Socket::new(Domain::IPV4, Type::RAW, Some(out)).unwrap();
    out.send_to(&packet, &SockAddr::from(SocketAddr::new(target.ip(), 0))).unwrap();
    stream
}

/// A node port with a drop in FORWARD: the verdict says that it is of the server's segments alone,
/// for those of the client go to INPUT.
fn protected_names_its_direction() {
    let bed = Bed::path(Path::NodePortLocal);
    bed.protect(&["forward-drop"]);
    let target = bed.target(Family::Ipv4).to_string();
    let result = judged(&bed, ALL, &target, 60).result;
    assert_eq!(result.verdict, Verdict::Protected, "{:?}", result.reasons);
    assert_eq!(result.direction, Direction::ServerToClient);
    let ran = {
        let boom = bed.boom(&["--forge=none", "--on-reset=count"]);
        let words = format!("probe --target tcp://{target} --connections 20 --forge above-window");
        let ran = bed.loaded(&words);
        boom.stop(SOON).unwrap();
        ran
    };
    let record = ran.result.forge.unwrap();
    assert_eq!(
        (record.direction, record.verdict),
        (Direction::ClientToServer, Verdict::Vulnerable),
        "{record:?}"
    );
}

/// A sidecar in the pod takes the connections over and opens its own, from a loopback address:
/// the path was not measured. Without the sidecar it is vulnerable.
fn a_proxy_in_the_pod_is_told() {
    for (proxied, code) in [(true, 11), (false, 10)] {
        let bed = Bed::path(Path::ClusterIp);
        if proxied {
            let hook = "type nat hook prerouting priority -100;";
            let rule = "iifname eth0 tcp dport 9000 redirect to :15006;";
            load(&bed, "server", &format!("chain mesh {{ {hook} {rule} }}"));
            let listener = bed.within("server", || TcpListener::bind("0.0.0.0:15006").unwrap());
            let host = bed.testbed().topology.full("server");
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let host = host.clone();
                    std::thread::spawn(move || proxy(stream, &host));
                }
            });
        }
        let ended = judged(&bed, ALL, &bed.target(Family::Ipv4).to_string(), 60);
        assert_eq!(ended.code(), code, "{:?}", ended.result.reasons);
        let told = ended.result.reasons.iter().any(|r| r.contains("a proxy"));
        assert_eq!(told, proxied, "{:?}", ended.result.reasons);
    }
}

/// Passes one connection on to the server, as coming from 127.0.0.6.
fn proxy(mut client: TcpStream, host: &str) -> Option<()> {
    let server = canary_testbed::netns::Host::open(host).ok()?.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 6], 0)).into()).ok()?;
        socket.connect(&POD.parse::<SocketAddr>().ok()?.into()).ok()?;
        Some(TcpStream::from(socket))
    });
    let mut server = server.ok()??;
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    std::io::copy(&mut server, &mut client).ok()?;
    client.flush().ok()
}

/// A node that answers INVALID with a reset of its own: rejected, never "reached the client", and
/// the client's interface saw none of them. Without the rule they leak to it.
fn a_node_that_rejects_is_told() {
    for rejects in [true, false] {
        let bed = Bed::path(Path::ClusterIp);
        if rejects {
            let hook = "type filter hook forward priority 0;";
            let rule = "ct state invalid counter reject with tcp reset;";
            load(&bed, "node1", &format!("chain fw {{ {hook} {rule} }}"));
        }
        let hook = "type filter hook prerouting priority -300;";
        load(&bed, "client", &format!("chain pre {{ {hook} ip saddr 198.18.66.20 counter; }}"));
        let result = judged(&bed, ALL, &bed.target(Family::Ipv4).to_string(), 60).result;
        let seen = bed.sh("client", "nft list table ip field");
        let (rejected, leaked) = (
            count(&result, Forgery::AboveWindow, Outcome::Rejected),
            count(&result, Forgery::AboveWindow, Outcome::Leaked),
        );
        assert_eq!((rejected, leaked), if rejects { (10, 0) } else { (0, 10) }, "{result:?}");
        assert_eq!(seen.contains("packets 0 "), rejects, "{seen}");
        assert_eq!(result.verdict, Verdict::Vulnerable);
        let reached = result.reasons.iter().any(|r| r.contains("reached the client"));
        assert_eq!(reached, !rejects, "{:?}", result.reasons);
    }
}

/// Answers take another way back, and the client's node drops INVALID: it sees half of each
/// handshake and drops its end. SYNs came, and the result says so. Without the drop all is well.
fn handshakes_that_a_drop_breaks_are_told() {
    for drops in [true, false] {
        let bed = Bed::path(Path::ClusterIp);
        let client = bed.testbed().topology.full("client");
        bed.sh("node2", &format!("ip link add back type veth peer name back netns {client}"));
        bed.sh("node2", "ip addr add 198.18.70.1/24 dev back && ip link set back up");
        bed.sh("client", "ip addr add 198.18.70.2/24 dev back && ip link set back up");
        bed.sh("node2", "ip route replace 198.18.65.0/24 via 198.18.70.2");
        if drops {
            let hook = "type filter hook forward priority 0;";
            load(&bed, "node1", &format!("chain fw {{ {hook} ct state invalid counter drop; }}"));
        }
        let boom = bed.boom(&["--forge", ALL, "--on-reset=count", "--min-forged=5"]);
        let probe = bed.load(&format!(
            "probe --target tcp://{POD} --connections 30 --pattern idle --delay 6s --timeout 5s"
        ));
        probe.end(3 * SOON).unwrap();
        let result = boom.stop(SOON).unwrap().result;
        let finished = result.connections.handshakes;
        assert_eq!(finished, if drops { 0 } else { 30 }, "{:?}", result.reasons);
        let reasons = result.reasons.join("; ");
        assert!(!reasons.contains("no client connected"), "{reasons}");
        assert_eq!(reasons.contains("30 SYNs came"), drops, "{reasons}");
    }
}

/// SYNPROXY gives the server other numbers than the client has, and leaves INVALID segments as
/// they are: the client answers them with blocks that name octets never sent. No rule drops
/// anything there. The same with a rule that does, and without SYNPROXY, is called dropped.
fn renumbered_answers_are_not_silence() {
    let bed = Bed::path(Path::ClusterIp);
    bed.sh("node2", "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0");
    let raw = "type filter hook prerouting priority -300;";
    let syn = "iifname eth0 tcp dport 9000 tcp flags & (fin|syn|rst|ack) == syn notrack;";
    let hook = "type filter hook forward priority 0;";
    let proxy = "iifname eth0 tcp dport 9000 ct state invalid,untracked counter \
                 synproxy mss 1460 wscale 7 timestamp sack-perm;";
    load(&bed, "node2", &format!("chain raw {{ {raw} {syn} }}; chain fw {{ {hook} {proxy} }}"));
    let result = judged(&bed, "control,ack-ahead", POD, 60).result;
    assert!(!bed.sh("node2", "nft list table ip field").contains("packets 0 "));
    for forgery in [Forgery::Control, Forgery::AckAhead] {
        assert_eq!(count(&result, forgery, Outcome::Dropped), 0, "{:?}", result.outcomes);
    }

    let bed = Bed::path(Path::ClusterIp);
    load(&bed, "node2", &format!("chain fw {{ {hook} ct state invalid counter drop; }}"));
    let result = judged(&bed, "control,ack-ahead", POD, 60).result;
    let dropped = count(&result, Forgery::AckAhead, Outcome::Dropped);
    assert_eq!(dropped, 30, "{:?}", result.outcomes);
}

/// The answers pass conntrack by, as with an offload, and INVALID is dropped: the drop takes what
/// nobody forged, downloads hang, and "protected" is not said. be_liberal cures that.
fn downloads_that_a_drop_hangs_are_told() {
    for liberal in [false, true] {
        let bed = Bed::path(Path::ClusterIp);
        let value = u8::from(liberal);
        bed.sh("node2", &format!("sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal={value}"));
        let raw = "type filter hook prerouting priority -300;";
        let past =
            "iifname to-server tcp flags & (fin|syn|rst) == 0 ip length > 60 counter notrack;";
        let hook = "type filter hook forward priority 0;";
        let fw = "ct state untracked accept; ct state invalid counter drop;";
        load(&bed, "node2", &format!("chain raw {{ {raw} {past} }}; chain fw {{ {hook} {fw} }}"));
        let boom = bed.boom(&["--forge", ALL, "--on-reset=count", "--min-forged=5", "--hold=3s"]);
        let probe = bed.load(&format!(
            "probe --target tcp://{POD} --connections 60 --pattern download --timeout 6s"
        ));
        let ends = probe.end(3 * SOON).unwrap().result.probe;
        let result = boom.stop(SOON).unwrap().result;
        let hung =
            ends.iter().filter(|(end, _)| **end == ProbeEnd::Hung).map(|(_, n)| n).sum::<u64>();
        assert_eq!(hung > 0, !liberal, "{ends:?}");
        if !liberal {
            assert_ne!(result.verdict, Verdict::Protected, "{:?}", result.reasons);
            assert!(result.reasons.iter().any(|r| r.contains("hang")), "{:?}", result.reasons);
        }
    }
}
