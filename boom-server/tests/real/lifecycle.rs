//! How boom-server begins and ends: real processes, real namespaces.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::rig::{Rig, VIP4, VIP6, exchange, sh};
use canary_record::names::{EndedBy, Verdict};
use canary_record::result::boom::BoomResult;
use canary_wire::segment::{Emit, Flags};
use canary_wire::seq::Seq;
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const SOON: Duration = Duration::from_secs(20);

fn run(rig: &Rig, wrap: &[&str], args: &[&str]) -> Output {
    Command::new("timeout")
        .args(["20", "ip", "netns", "exec", &rig.name('s')])
        .args(wrap)
        .arg(env!("CARGO_BIN_EXE_boom-server"))
        .args(args)
        .output()
        .expect("boom-server")
}

/// One line on stderr, the status, and nothing on stdout.
fn refuses(out: &Output, status: i32, words: &[&str]) {
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "");
    for word in words {
        assert!(err.contains(word), "{word}: {err}");
    }
}

/// The first attributed reset ends the program with status 10, the words that
/// Kubernetes' test looks for, and a message that names forgery and peer.
#[test]
fn a_reset_ends_it_with_10() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let message = dir.path().join("termination");
    let boom =
        rig.boom(&["--forge", "above-window", "--termination-log", message.to_str().unwrap()]);
    let client = rig.connect(VIP4, 1);
    let (status, result, log) = boom.end(SOON);
    assert_eq!((status.code(), result.run.ended_by), (Some(10), EndedBy::Reset));
    assert!(log.contains("connection established"));
    assert_eq!(log.matches("ERROR: the client's RST").count(), 1);
    let message = std::fs::read_to_string(message).unwrap();
    let peer = client[0].local_addr().unwrap().to_string();
    for word in ["vulnerable", "above-window", &peer] {
        assert!(message.contains(word), "{word}: {message}");
    }
}

/// No leak, no ERROR anywhere in the log.
#[test]
fn no_error_without_a_leak() {
    let rig = Rig::new();
    rig.protect(true, false);
    let mut boom = rig.boom(&["--connections", "4", "--min-forged", "2"]);
    let held = rig.connect(VIP4, 4);
    for s in &held {
        exchange(s).unwrap();
    }
    boom.wait_for("settled");
    drop(held);
    let (status, _, log) = boom.end(SOON);
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains("ERROR") && log.contains("connection established"), "{log}");
}

/// Both signals end it within two seconds, with a result that proves nothing.
#[test]
fn signals_end_it_with_a_result() {
    let rig = Rig::new();
    for (signal, by) in [(Signal::SIGTERM, EndedBy::Sigterm), (Signal::SIGINT, EndedBy::Sigint)] {
        let boom = rig.boom(&["--forge", "control"]);
        let held = rig.connect(VIP4, 3);
        let begun = Instant::now();
        boom.signal(signal);
        let (status, result, _) = boom.end(Duration::from_secs(2));
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!((status.code(), result.run.ended_by), (Some(11), by));
        assert_eq!(result.verdict, Verdict::Inconclusive);
        drop(held);
    }
}

/// `--duration` without a client proves nothing, and says so.
#[test]
fn nothing_proved_is_11() {
    let rig = Rig::new();
    let (status, result, _) = rig.boom(&["--duration", "200ms"]).end(SOON);
    assert_eq!((status.code(), result.run.ended_by), (Some(11), EndedBy::Duration));
    assert_eq!(result.reasons[0], "nothing was forged: no client connected");
}

/// No thread keeps a capability, and none can come back.
#[test]
fn capabilities_are_gone_on_every_thread() {
    let rig = Rig::new();
    let boom = rig.boom(&["--duration", "10s"]);
    let tasks: Vec<_> = std::fs::read_dir(format!("/proc/{}/task", boom.pid())).unwrap().collect();
    assert!(tasks.len() >= 2, "the engine has a thread of its own");
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let value = |key: &str| {
            let line = status.lines().find(|l| l.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&value(set), 16), Ok(0), "{set}");
        }
        assert_eq!(value("NoNewPrivs"), "1");
    }
    boom.signal(Signal::SIGTERM);
    boom.end(SOON);
}

/// Without CAP_NET_RAW: one line that tells how to grant it, status 1.
#[test]
fn a_missing_capability_is_told() {
    let rig = Rig::new();
    let wrap = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-all"];
    refuses(&run(&rig, &wrap, &[]), 1, &["CAP_NET_RAW", "setcap"]);
}

/// A port in use is told with the option that names it.
#[test]
fn a_port_in_use_is_told() {
    let rig = Rig::new();
    let boom = rig.boom(&["--duration", "20s"]);
    refuses(&run(&rig, &[], &["--admin=none"]), 1, &["--listen", "[::]:9000", "in use"]);
    boom.signal(Signal::SIGTERM);
    boom.end(SOON);
}

/// An output that cannot be written is refused before anything is done.
#[test]
fn an_impossible_output_is_refused() {
    let rig = Rig::new();
    refuses(&run(&rig, &[], &["--output=/nowhere/r.json"]), 2, &["--output", "/nowhere/r.json"]);
}

/// A directory that only CAP_DAC_OVERRIDE could write in, which is gone by the end, is
/// refused at the beginning; one of this user's is not.
#[test]
fn an_output_in_anothers_directory_is_refused() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let option = format!("--output={}", dir.path().join("r.json").display());
    rig.boom(&["--duration=100ms", &option]).end(SOON);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    std::os::unix::fs::chown(dir.path(), Some(65_534), None).unwrap();
    refuses(&run(&rig, &[], &[&option]), 2, &["--output", "r.json", "Permission denied"]);
}

/// Connections made without a pause, from before the beginning to after the end, are all
/// counted on both sides: neither end is a doubt.
#[test]
fn a_steady_load_is_no_doubt() {
    let rig = Rig::new();
    rig.protect(true, true);
    let to: SocketAddr = VIP4.parse().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                rig.within('c', || {
                    let (mut held, begun) = (VecDeque::new(), Instant::now());
                    while !stop.load(Ordering::Relaxed) && begun.elapsed() < SOON {
                        // Refused while nobody listens.
                        held.extend(TcpStream::connect_timeout(&to, Duration::from_secs(5)));
                        held.drain(..held.len().saturating_sub(100));
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            });
        }
        let results: Vec<_> = (0..4)
            .map(|_| {
                let mut boom = rig.boom(&["--forge=control,above-window", "--events=all"]);
                for _ in 0..200 {
                    boom.wait_for("judged");
                }
                boom.signal(Signal::SIGTERM);
                boom.end(Duration::from_secs(2))
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        for (status, result, _) in results {
            let c = result.connections;
            assert!(c.handshakes >= 200 && c.accepted == c.handshakes, "{c:?}");
            assert_eq!(status.code(), Some(0), "{:?}", result.reasons);
        }
    });
}

/// Nobody can connect before the raw sockets are open: held up where the output is
/// prepared, between them and listen(), the port is still closed.
#[test]
fn it_listens_last() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.json");
    // Opening it to write waits for a reader.
    let pipe = dir.path().join("r.json.part");
    sh(&format!("mkfifo {}", pipe.display()));
    let options = ["--admin=[::]:9100", "--forge=control", "--connections=1", "--output"];
    let options = [&options[..], &[path.to_str().unwrap()]].concat();
    std::thread::scope(|s| {
        let boom = s.spawn(|| rig.boom(&options));
        let early = rig.within('s', || {
            let begun = Instant::now();
            while TcpStream::connect("127.0.0.1:9100").is_err() && begun.elapsed() < SOON {
                std::thread::sleep(Duration::from_millis(10));
            }
            TcpStream::connect("127.0.0.1:9000").map_err(|e| e.kind())
        });
        let _reader = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
        let boom = boom.join().unwrap();
        assert_eq!(early.err(), Some(ErrorKind::ConnectionRefused));
        drop(rig.connect(VIP4, 1));
        let (_, result, _) = boom.end(SOON);
        assert_eq!((result.connections.accepted, result.connections.handshakes), (1, 1));
    });
}

/// Connections that were never accepted are missing in the result, and are a doubt.
#[test]
fn what_is_not_accepted_is_a_doubt() {
    let rig = Rig::new();
    let options = ["--forge=control", "--on-reset=count"];
    let boom = rig.boom_under(&["prlimit", "--nofile=32:32"], &options);
    let held = rig.connect(VIP4, 60);
    boom.signal(Signal::SIGTERM);
    let (status, result, _) = boom.end(Duration::from_secs(2));
    drop(held);
    let c = result.connections;
    assert!(c.handshakes == 60 && c.accepted < 60, "{c:?}");
    let told = "60 handshakes seen: not every connection was judged";
    assert!(result.reasons.iter().any(|r| r.contains(told)), "{:?}", result.reasons);
    assert_eq!(status.code(), Some(11));
}

/// A disk that is full at the end costs the file, not the result.
#[test]
fn a_full_disk_is_in_the_result() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.json");
    std::os::unix::fs::symlink("/dev/full", dir.path().join("r.json.part")).unwrap();
    let termination = dir.path().join("no/such/log");
    let boom = rig.boom(&[
        "--duration",
        "100ms",
        "--output",
        path.to_str().unwrap(),
        "--termination-log",
        termination.to_str().unwrap(),
    ]);
    let (status, result, _) = boom.end(SOON);
    assert_eq!(status.code(), Some(11));
    let reasons = result.reasons.join("\n");
    assert!(reasons.contains("No space left on device"), "{reasons}");
    assert!(reasons.contains("no/such/log"), "{reasons}");
}

/// A stdout that nobody reads holds up no connection and no judgement, and not the end.
#[test]
fn an_unread_stdout_holds_up_nothing() {
    const N: usize = 600;
    let rig = Rig::new();
    rig.protect(true, false);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("result.json");
    let connections = N.to_string();
    let mut args =
        vec!["--events=all", "--forge=control,above-window", "--connections", &connections];
    args.extend(["--hold=1s", "--output", file.to_str().unwrap()]);
    let boom = rig.boom_unread(&[], &args);
    // Two lines each: several times what a pipe holds.
    let held = rig.connect(VIP4, N);
    for s in &held {
        exchange(s).unwrap();
    }
    drop(held);
    let status = boom.status(SOON);
    let result: BoomResult = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(result.connections.forged, N as u64);
    let judged: u64 = result.outcomes.iter().map(|o| o.counts.delivered + o.counts.dropped).sum();
    assert_eq!(judged, N as u64, "{:?}", result.outcomes);
    // Protected, but the result could not be printed.
    assert_eq!((result.verdict, status.code()), (Verdict::Protected, Some(1)));
}

/// Out of file descriptors it goes on when there are some again, and says so.
#[test]
fn it_survives_running_out_of_file_descriptors() {
    let rig = Rig::new();
    let boom = rig
        .boom_under(&["prlimit", "--nofile=32:32"], &["--forge", "control", "--on-reset", "count"]);
    let held = rig.connect(VIP4, 60);
    let late = held.last().unwrap();
    late.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    (&*late).write_all(b"echo\n").unwrap();
    assert!((&*late).read(&mut [0; 8]).is_err(), "accepted beyond the limit");
    let mut held = held;
    let late = held.pop().unwrap();
    drop(held);
    exchange(&late).unwrap_or_else(|e| assert_eq!(e.to_string(), ""));
    drop(late);
    boom.signal(Signal::SIGTERM);
    let (_, result, _) = boom.end(Duration::from_secs(2));
    assert!(result.connections.accept_errors > 0);
    assert!(result.connections.accept_errors < 200, "a busy loop: {:?}", result.connections);
    assert_eq!((result.connections.accepted, result.connections.handshakes), (60, 60));
    assert!(result.reasons.iter().any(|r| r.contains("accept failed")), "{:?}", result.reasons);
}

/// The admin port: ready once the sniffer is there, metrics by family, the verdict so far.
#[test]
fn the_admin_port_tells() {
    let rig = Rig::new();
    let boom = rig.boom(&["--admin=[::]:9100", "--forge", "control", "--on-reset", "count"]);
    let held = rig.connect(VIP4, 5);
    let get = |path: &str| {
        rig.within('s', || {
            let mut s = TcpStream::connect("127.0.0.1:9100").unwrap();
            s.write_all(
                format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
            )
            .unwrap();
            let mut text = String::new();
            s.read_to_string(&mut text).unwrap();
            text
        })
    };
    assert!(get("/readyz").starts_with("HTTP/1.1 200"));
    let lines = [
        "boom_outcomes_total{forgery=\"control\",family=\"ipv4\",class=\"unclassified\",outcome=\"delivered\"} 5",
        "boom_handshakes_total 5",
        "boom_connections_accepted_total 5",
        "boom_sniffer_dropped_total 0",
        "boom_handshake_to_forge_seconds_bucket{le=\"0.001\"}",
        "boom_build_info{version=",
    ];
    // Accepting and judging are counted apart, and published in their own time.
    let begun = Instant::now();
    let mut metrics = get("/metrics");
    while let Some(missing) = lines.iter().find(|l| !metrics.contains(**l)) {
        assert!(begun.elapsed() < SOON, "{missing}: {metrics}");
        std::thread::sleep(Duration::from_millis(50));
        metrics = get("/metrics");
    }
    assert!(get("/verdict").contains("\"verdict\":\"inconclusive\""));
    drop(held);
    boom.signal(Signal::SIGTERM);
    boom.end(SOON);
}

/// A flood of bad segments from strangers changes no count but their own: every
/// flag byte, every truncation, wrong lengths and checksums.
#[test]
fn bad_segments_change_nothing() {
    bad_segments(VIP4, "198.18.1.2", "198.18.2.2");
}

/// The same in IPv6.
#[test]
fn bad_ipv6_segments_change_nothing() {
    bad_segments(VIP6, "fd00:1::2", "fd00:2::2");
}

fn bad_segments(vip: &str, client: &str, server: &str) {
    let rig = Rig::new();
    let mut boom = rig.boom(&["--forge", "control", "--on-reset", "count", "--connections", "6"]);
    let held = rig.connect(vip, 5);
    let (client, server): (IpAddr, IpAddr) = (client.parse().unwrap(), server.parse().unwrap());
    let (domain, header) = match server {
        IpAddr::V4(_) => (Domain::IPV4, 20),
        IpAddr::V6(_) => (Domain::IPV6, 40),
    };
    rig.within('c', || {
        let raw = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
        let peer = SockAddr::from(SocketAddr::new(server, 0));
        let mut packet = Vec::new();
        let stranger = |port, flags, options, packet: &mut Vec<u8>| {
            let emit = Emit {
                src: SocketAddr::new(client, port),
                dst: SocketAddr::new(server, 9000),
                seq: Seq(1),
                ack: Seq(2),
                flags: Flags(flags),
                window: 9,
                options,
                payload: &[0xff; 9],
            };
            emit.packet(packet);
        };
        // A handshake by a stranger would be one: SYN alone, and only that, is left out.
        for flags in (0..=255u8).filter(|f| f & 0x3f != 2) {
            stranger(20_000 + u16::from(flags), flags, &[8, 40, 3], &mut packet);
            raw.send_to(&packet, &peer).unwrap();
        }
        // Every truncation of the longest header, with a SYN's flags. The checksum is wrong
        // from the first octet on.
        for cut in 0..=60 {
            for data_offset in [0x00, 0x40, 0x50, 0xf0] {
                stranger(30_000 + cut as u16, Flags::SYN.0, &[1; 40], &mut packet);
                packet[header + 12] = data_offset;
                packet.truncate(header + cut);
                if header == 40 {
                    packet[4..6].copy_from_slice(&(cut as u16).to_be_bytes());
                }
                raw.send_to(&packet, &peer).unwrap();
            }
        }
    });
    // A last connection: what came before it has been read when it is judged.
    let last = rig.connect(vip, 1);
    boom.wait_for("settled");
    for s in held.iter().chain(&last) {
        exchange(s).unwrap();
    }
    drop((held, last));
    let (status, result, _) = boom.end(SOON);
    assert_eq!(status.code(), Some(11));
    assert_eq!(result.outcomes.len(), 1);
    assert_eq!((result.outcomes[0].counts.delivered, result.connections.handshakes), (6, 6));
    assert_eq!((result.resets.attributed, result.sniffer.dropped), (0, 0));
    assert!(result.sniffer.malformed > 0 && result.resets.unknown_connection > 0);
}
