//! Clients and handshakes of other kinds than the usual one, and a clock that is stepped.

use std::io::Read as _;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use canary_record::names::Forgery;
use canary_testbed::model::Path;
use canary_testbed::programs::{Ended, boom_server};
use canary_testbed::test::{Bed, SOON, exchange};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::paths::{VIP4, VIP6, row};

/// Every forgery without protection and with both, for a client whose namespace has
/// `sysctls`, and whose connections `ss` describes with `shows` and not with `hides`.
fn client_with(sysctls: &str, shows: &str, hides: &str) {
    let bed = Bed::path(Path::SameNode);
    bed.sh("client", &format!("sysctl -qw {sysctls}"));
    let boom = bed.boom(&["--forge=control", "--on-reset=count"]);
    let held = bed.connect(VIP4, 1);
    let told = bed.sh("client", "ss -tinH");
    assert!(told.contains(shows) && (hides.is_empty() || !told.contains(hides)), "{told}");
    drop(held);
    boom.stop(SOON).unwrap();
    for vip in [VIP4, VIP6] {
        row(&bed, vip, 4, false, false);
        row(&bed, vip, 4, true, true);
    }
}

/// The largest window scale there is (RFC 7323, section 2.3: 14): above the window is
/// above a window of that scale.
pub(crate) fn windows_scaled_by_14() {
    client_with("net.ipv4.tcp_rmem='4096 131072 1073741824'", ",14 ", "");
}

/// A client without window scaling.
pub(crate) fn windows_not_scaled() {
    client_with("net.ipv4.tcp_window_scaling=0", "bytes_acked", "wscale");
}

/// A client without timestamps: the forged segments carry none either.
pub(crate) fn no_timestamps() {
    client_with("net.ipv4.tcp_timestamps=0", "bytes_acked", " ts ");
}

/// A client without selective acknowledgment.
pub(crate) fn no_selective_acknowledgment() {
    client_with("net.ipv4.tcp_sack=0", "bytes_acked", " sack ");
}

/// Handshakes whose first SYN-ACK is lost: SYN and SYN-ACK come twice, the client's
/// answer to the second one is not taken for one to a forged segment.
pub(crate) fn retransmitted_handshakes_are_judged() {
    const N: usize = 12;
    let bed = Bed::path(Path::SameNode);
    let options = ["--forge=control,above-window", "--on-reset=count", "--connections=12"];
    let mut boom = bed.boom(&options);
    let hook = "type filter hook forward priority filter;";
    let rule = "tcp flags & (syn|ack) == syn|ack counter drop";
    bed.sh("node1", &format!("nft 'table inet t {{ chain fw {{ {hook} {rule}; }}; }}'"));
    let to = SockAddr::from(VIP4.parse::<SocketAddr>().unwrap());
    let sockets: Vec<Socket> = bed.within("client", || {
        let one = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            let begun = socket.connect(&to).unwrap_err();
            assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
            socket
        };
        (0..N).map(|_| one()).collect()
    });
    let begun = Instant::now();
    let lost = || bed.sh("node1", "nft list table inet t");
    while !lost().contains(&format!("packets {N} ")) {
        assert!(begun.elapsed() < Duration::from_millis(900), "{}", lost());
    }
    bed.sh("node1", "nft delete table inet t");
    boom.wait_for("settled").unwrap();
    let alive = sockets.into_iter().filter(|s| {
        s.set_nonblocking(false).unwrap();
        exchange(&TcpStream::from(s.try_clone().unwrap())).is_ok()
    });
    assert_eq!(alive.count(), N / 2);
    let result = boom.end(SOON).unwrap().result;
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
pub(crate) fn a_client_that_closes_first_is_let_alone() {
    let bed = Bed::path(Path::SameNode);
    let options = ["--forge=above-window", "--forge-delay=400ms", "--connections=3"];
    let boom = bed.boom(&options);
    drop(bed.connect(VIP4, 3));
    let Ended { status, result, .. } = boom.end(SOON).unwrap();
    assert_eq!((result.connections.handshakes, result.connections.forged), (3, 0));
    assert_eq!((result.outcomes.len(), status.code()), (0, Some(11)));
    let told = "nothing was forged: 3 connections ended before, or were let alone";
    assert_eq!(result.reasons[0], told);
}

/// Clients that send FIN before the forged segment reaches them, as `nc` with nothing to send
/// does: 195 of 200 leaks are seen, whether they wait for the server's FIN or not.
pub(crate) fn leaks_to_clients_that_close_at_once_are_seen() {
    const N: u64 = 200;
    for waits in [true, false] {
        let bed = Bed::path(Path::SameNode);
        let options = ["--forge=above-window", "--on-reset=count", "--connections=200"];
        let mut boom = bed.boom(&options);
        let to: SocketAddr = VIP4.parse().unwrap();
        bed.within("client", || {
            for _ in 0..N {
                let mut stream = TcpStream::connect(to).unwrap();
                // The reset may have been there first.
                let _ = stream.shutdown(Shutdown::Write);
                if waits {
                    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                    let _ = stream.read(&mut [0; 1]);
                }
            }
        });
        boom.wait_for("settled").unwrap();
        let result = boom.end(SOON).unwrap().result;
        let [outcome] = &result.outcomes[..] else { panic!("one forgery") };
        assert_eq!(outcome.forged, N);
        assert!(outcome.counts.leaked >= 195, "waits {waits}: {outcome:?}");
        println!("waits {waits}: {} of {N} leaks seen", outcome.counts.leaked);
    }
}

/// Clients that close by RST where nothing translates, one reset in two lost: what resets the
/// forged segment is a host that has closed, never a leak.
pub(crate) fn clients_that_close_by_reset_leak_nothing() {
    const N: u64 = 200;
    let bed = Bed::path(Path::SameNode);
    let hook = "type filter hook prerouting priority raw;";
    let rule = "iifname to-client tcp flags & rst == rst numgen inc mod 2 == 0 counter drop";
    bed.sh("node1", &format!("nft 'table inet t {{ chain pre {{ {hook} {rule}; }}; }}'"));
    let options = ["--forge=control,above-window,ack-ahead,syn-fin", "--on-reset=count"];
    let mut boom = bed.boom(
        &options
            .map(str::to_owned)
            .into_iter()
            .chain([format!("--connections={N}")])
            .collect::<Vec<_>>(),
    );
    let to: SocketAddr = "198.18.65.20:9000".parse().unwrap();
    bed.within("client", || {
        for _ in 0..N {
            let stream = TcpStream::connect(to).unwrap();
            Socket::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    boom.wait_for("settled").unwrap();
    let result = boom.end(SOON).unwrap().result;
    let reset: u64 = result.outcomes.iter().map(|o| o.counts.leaked + o.counts.rejected).sum();
    assert_eq!((reset, result.resets.attributed), (0, 0), "{:?}", result.outcomes);
    let lost = bed.sh("node1", "nft list table inet t");
    assert!(!lost.contains("packets 0 "), "no reset was lost: {lost}");
}

/// A wall clock that is stepped by an hour, either way, is told; judgements are right.
pub(crate) fn a_stepped_clock_is_told() {
    for (step, told) in [("+3600", "stepped by 3600."), ("-3600", "stepped by -3600.")] {
        let bed = Bed::path(Path::SameNode);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "+0").unwrap();
        let stamp = format!("FAKETIME_TIMESTAMP_FILE={}", file.path().display());
        // Debian keeps the library in the directory of the machine's kind.
        let library = bed.sh("client", "dpkg -L libfaketime | grep -m 1 'libfaketime\\.so\\.1$'");
        let preload = format!("LD_PRELOAD={}", library.trim());
        let env = ["env", &preload, &stamp, "FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1"];
        let options = ["--forge=control,above-window", "--on-reset=count", "--connections=8"];
        let mut boom = bed.start("server", boom_server(&options).unwrap().under(&env));
        let mut held = bed.connect(VIP4, 4);
        std::fs::write(file.path(), step).unwrap();
        held.extend(bed.connect(VIP4, 4));
        boom.wait_for("settled").unwrap();
        assert_eq!(held.iter().filter(|s| exchange(s).is_ok()).count(), 4);
        drop(held);
        let result = boom.end(SOON).unwrap().result;
        assert!(result.reasons.iter().any(|r| r.contains(told)), "{:?}", result.reasons);
        let judged: Vec<_> =
            result.outcomes.iter().map(|o| (o.counts.delivered, o.counts.killed)).collect();
        assert_eq!(judged, [(4, 0), (0, 4)]);
        let most = result.handshake_to_forge.max_us;
        assert!(most < 10_000_000, "{most} us from the handshake to the forged segment");
    }
}
