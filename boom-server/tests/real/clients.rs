//! Clients and handshakes of other kinds than the usual one, and a clock that is stepped.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use canary_record::names::Forgery;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::paths::row;
use crate::rig::{Rig, VIP4, VIP6, exchange, output, sh};

const SOON: Duration = Duration::from_secs(20);

/// Every forgery without protection and with both, for a client whose namespace has
/// `sysctls`, and whose connections `ss` describes with `shows` and not with `hides`.
fn client_with(sysctls: &str, shows: &str, hides: &str) {
    let rig = Rig::new();
    let c = rig.name('c');
    sh(&format!("ip netns exec {c} sysctl -qw {sysctls}"));
    let boom = rig.boom(&["--forge=control", "--on-reset=count"]);
    let held = rig.connect(VIP4, 1);
    let told = output(&format!("ip netns exec {c} ss -tinH"));
    assert!(told.contains(shows) && (hides.is_empty() || !told.contains(hides)), "{told}");
    drop(held);
    boom.signal(nix::sys::signal::Signal::SIGTERM);
    boom.end(SOON);
    for vip in [VIP4, VIP6] {
        row(&rig, vip, 4, false, false);
        row(&rig, vip, 4, true, true);
    }
}

/// The largest window scale there is (RFC 7323, section 2.3: 14): above the window is
/// above a window of that scale.
#[test]
fn windows_scaled_by_14() {
    client_with("net.ipv4.tcp_rmem='4096 131072 1073741824'", ",14 ", "");
}

/// A client without window scaling.
#[test]
fn windows_not_scaled() {
    client_with("net.ipv4.tcp_window_scaling=0", "bytes_acked", "wscale");
}

/// A client without timestamps: the forged segments carry none either.
#[test]
fn no_timestamps() {
    client_with("net.ipv4.tcp_timestamps=0", "bytes_acked", " ts ");
}

/// A client without selective acknowledgment.
#[test]
fn no_selective_acknowledgment() {
    client_with("net.ipv4.tcp_sack=0", "bytes_acked", " sack ");
}

/// Handshakes whose first SYN-ACK is lost: SYN and SYN-ACK come twice, the client's
/// answer to the second one is not taken for one to a forged segment.
#[test]
fn retransmitted_handshakes_are_judged() {
    const N: usize = 12;
    let rig = Rig::new();
    let n = rig.name('n');
    let options = ["--forge=control,above-window", "--on-reset=count", "--connections=12"];
    let mut boom = rig.boom(&options);
    sh(&format!(
        "ip netns exec {n} nft 'add rule inet f fw tcp flags & (syn|ack) == syn|ack counter drop'"
    ));
    let to = SockAddr::from(VIP4.parse::<SocketAddr>().unwrap());
    let sockets: Vec<Socket> = rig.within('c', || {
        let one = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            let begun = socket.connect(&to).unwrap_err();
            assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
            socket
        };
        (0..N).map(|_| one()).collect()
    });
    let begun = Instant::now();
    let lost = format!("ip netns exec {n} nft list chain inet f fw");
    while !output(&lost).contains(&format!("packets {N} ")) {
        assert!(begun.elapsed() < Duration::from_millis(900), "{}", output(&lost));
    }
    rig.protect(false, false);
    boom.wait_for("settled");
    let alive = sockets.into_iter().filter(|s| {
        s.set_nonblocking(false).unwrap();
        exchange(&TcpStream::from(s.try_clone().unwrap())).is_ok()
    });
    assert_eq!(alive.count(), N / 2);
    let (_, result, _) = boom.end(SOON);
    for o in &result.outcomes {
        let control = o.forgery == Forgery::Control;
        let cell = if control { (0, 0, 6, 0) } else { (6, 6, 0, 0) };
        assert_eq!(
            (o.counts.leaked, o.counts.killed, o.counts.delivered, o.counts.dropped),
            cell,
            "{o:?}"
        );
    }
    assert_eq!(result.outcomes.len(), 2);
}

/// A client that closes before anything was forged: nothing is, and nothing is judged.
#[test]
fn a_client_that_closes_first_is_let_alone() {
    let rig = Rig::new();
    let options = ["--forge=above-window", "--forge-delay=400ms", "--connections=3"];
    let boom = rig.boom(&options);
    drop(rig.connect(VIP4, 3));
    let (status, result, _) = boom.end(SOON);
    assert_eq!((result.connections.handshakes, result.connections.forged), (3, 0));
    assert_eq!((result.outcomes.len(), status.code()), (0, Some(11)));
    let told = "nothing was forged: 3 connections ended before, or were let alone";
    assert_eq!(result.reasons[0], told);
}

/// A wall clock that is stepped by an hour, either way, is told; judgements are right.
#[test]
fn a_stepped_clock_is_told() {
    for (step, told) in [("+3600", "stepped by 3600."), ("-3600", "stepped by -3600.")] {
        let rig = Rig::new();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "+0").unwrap();
        let stamp = format!("FAKETIME_TIMESTAMP_FILE={}", file.path().display());
        // Debian keeps the library in the directory of the machine's kind.
        let library = output("dpkg -L libfaketime | grep -m 1 'libfaketime\\.so\\.1$'");
        let preload = format!("LD_PRELOAD={}", library.trim());
        let env = ["env", &preload, &stamp, "FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1"];
        let options = ["--forge=control,above-window", "--on-reset=count", "--connections=8"];
        let mut boom = rig.boom_under(&env, &options);
        let mut held = rig.connect(VIP4, 4);
        std::fs::write(file.path(), step).unwrap();
        held.extend(rig.connect(VIP4, 4));
        boom.wait_for("settled");
        assert_eq!(held.iter().filter(|s| exchange(s).is_ok()).count(), 4);
        drop(held);
        let (_, result, _) = boom.end(SOON);
        assert!(result.reasons.iter().any(|r| r.contains(told)), "{:?}", result.reasons);
        let judged: Vec<_> =
            result.outcomes.iter().map(|o| (o.counts.delivered, o.counts.killed)).collect();
        assert_eq!(judged, [(4, 0), (0, 4)]);
        let most = result.handshake_to_forge.max_us;
        assert!(most < 10_000_000, "{most} us from the handshake to the forged segment");
    }
}
