//! The testbed itself, with real packets.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use canary_testbed::model::Path;
use canary_testbed::network::wire::Network;
use canary_testbed::network::{Conditions, Fate, KINDS, Share};
use canary_testbed::tap::Tap;
use canary_testbed::test::{Bed, SOON};
use canary_testbed::topology::Topology;
use canary_wire::segment::Family;

canary_testbed::tests![
    a_service_is_translated,
    hosts_are_apart,
    hosts_go_with_their_testbed,
    what_came_before_a_filter_is_no_loss,
    a_clean_network_carries_all,
    a_bad_network_does_what_it_says,
];

/// What a client sends to the Service arrives at the server pod.
fn a_service_is_translated() {
    let bed = Bed::path(Path::ClusterIp);
    for family in [Family::Ipv4, Family::Ipv6] {
        let pod = std::net::SocketAddr::new(bed.testbed().topology.service.pod.of(family), 9000);
        let listener = bed.within("server", || std::net::TcpListener::bind(pod).unwrap());
        let client = bed.connect(bed.target(family), 1);
        let (server, _) = listener.accept().unwrap();
        assert_eq!(server.local_addr().unwrap(), pod);
        assert_eq!(client[0].peer_addr().unwrap(), bed.target(family));
    }
}

/// A host has its own links and no others.
fn hosts_are_apart() {
    let bed = Bed::new(Topology::single);
    assert_eq!(
        bed.sh("host", "ls /sys/class/net | wc -l; ip -o link | wc -l").lines().last(),
        Some("1")
    );
}

/// No host outlives its testbed: what all namespaces share would fill up.
fn hosts_go_with_their_testbed() {
    let bed = Bed::new(Topology::single);
    let name = bed.testbed().topology.full("host");
    let named = || canary_testbed::netns::names().contains(&name);
    assert!(named());
    drop(bed);
    assert!(!named());
}

/// A capture that begins amid other traffic is whole: what tcpdump received before its filter was in place
/// is not of it. That there was such traffic, its own numbers show.
fn what_came_before_a_filter_is_no_loss() {
    let bed = Bed::new(Topology::pair);
    let (dir, on) = (tempfile::tempdir().unwrap(), AtomicBool::new(true));
    let other = bed.within("client", || {
        let socket = UdpSocket::bind("198.18.65.10:0").unwrap();
        socket.connect("198.18.65.20:9").unwrap();
        socket
    });
    std::thread::scope(|threads| {
        // Bounded: ends with the captures, or by itself.
        threads.spawn(|| {
            (0..50_000_000).take_while(|_| on.load(Ordering::Relaxed)).for_each(|_| {
                let _ = other.send(b"other");
            });
        });
        let unfiltered = (0..20).any(|n| {
            let file = dir.path().join(format!("{n}.pcap"));
            let mut tap = Tap::start(bed.testbed(), "server", "eth0", "tcp", &file).unwrap();
            tap.wait_ready(SOON).unwrap();
            let (_, lost) = tap.stop(SOON).unwrap();
            assert_eq!(lost, None);
            let said = std::fs::read_to_string(dir.path().join("tcpdump-server.log")).unwrap();
            !said.contains("\n0 packets received by filter")
        });
        on.store(false, Ordering::Relaxed);
        assert!(unfiltered, "no packet came before a filter");
    });
}

/// Sends `n` octets each way, over IPv4 and IPv6; they arrive as they were.
fn transfer(bed: &Bed, n: usize) {
    for host in ["client", "server"] {
        // No burst is more than the socket buffer of an ordinary user's network.
        bed.sh(host, "sysctl -qw net.ipv4.tcp_rmem='4096 32768 32768'");
    }
    let body: Vec<u8> = (0..n).map(|i| (i / 7) as u8).collect();
    let carry = |mut from: &TcpStream, mut to: &TcpStream| {
        let mut got = vec![0; n];
        to.set_read_timeout(Some(SOON)).unwrap();
        std::thread::scope(|s| {
            s.spawn(|| from.write_all(&body).unwrap());
            to.read_exact(&mut got).unwrap();
        });
        assert!(got == body);
    };
    for family in [Family::Ipv4, Family::Ipv6] {
        let to = bed.target(family);
        let listener = bed.within("server", || TcpListener::bind(to).unwrap());
        let client = bed.within("client", || TcpStream::connect_timeout(&to, SOON).unwrap());
        let (server, _) = listener.accept().unwrap();
        carry(&client, &server);
        carry(&server, &client);
    }
}

/// A clean network carries every frame, whatever the hosts offload.
fn a_clean_network_carries_all() {
    let bed = Bed::new(|prefix| Topology::pair(prefix).through_a_network());
    let network = Network::start(bed.testbed(), KINDS[0].1).unwrap();
    transfer(&bed, 1 << 20);
    let damaged = "nstat -asz TcpInCsumErrors | awk '/Tcp/ { print $2 }'";
    for host in ["client", "server"] {
        assert_eq!(bed.sh(host, damaged), "0\n", "wrong checksums at the {host}");
    }
    let report = network.stop().unwrap();
    for tally in [&report.left, &report.right] {
        // 4 MiB in segments of at most 1448 octets, half of them each way.
        assert!(tally.packets > 1400 && tally.sent == tally.packets, "{report}");
    }
    assert_eq!(report.missed, 0, "{report}");
}

/// Each kind of harm comes to pass, is counted, and TCP gets over it.
fn a_bad_network_does_what_it_says() {
    let bed = Bed::new(|prefix| Topology::pair(prefix).through_a_network());
    let few = Share::percent(3);
    let all =
        Conditions { truncate: few, lose: few, jitter: Duration::from_millis(2), ..KINDS[5].1 };
    let network = Network::start(bed.testbed(), all).unwrap();
    transfer(&bed, 200_000);
    let report = network.stop().unwrap();
    for t in [&report.left, &report.right] {
        for (what, n) in [
            ("lost", t.lost),
            ("duplicated", t.duplicated),
            ("reordered", t.reordered),
            ("truncated", t.truncated),
        ] {
            assert!(n > 0, "nothing was {what}: {report}");
        }
        assert!(t.longest > Duration::from_millis(1), "{report}");
        let named = |what: fn(&Fate) -> bool| t.events.iter().filter(|e| what(&e.1)).count() as u64;
        assert_eq!(named(|f| f.lost), t.lost);
    }
    assert_eq!(report.missed, 0, "{report}");
}
