//! How boom-server begins and ends: real processes, real namespaces.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::paths::{VIP4, VIP6};
use canary_record::names::{EndedBy, Verdict};
use canary_record::result::boom::BoomResult;
use canary_testbed::exec::Output;
use canary_testbed::model::Path;
use canary_testbed::programs::{Ended, Program, boom_server};
use canary_testbed::test::{Bed, SOON, exchange, needs_root};
use canary_wire::segment::{Emit, Flags};
use canary_wire::seq::Seq;
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

fn run(bed: &Bed, wrap: &[&str], args: &[&str]) -> Output {
    let program = Program::<BoomResult>::new("boom-server", args).unwrap();
    bed.run("server", &program.under(wrap).call().deadline(SOON))
}

/// One line on stderr, the status, and nothing on stdout.
fn refuses(out: &Output, status: i32, words: &[&str]) {
    let err = &out.stderr;
    assert_eq!(out.status.code(), Some(status), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert_eq!(out.stdout, "");
    for word in words {
        assert!(err.contains(word), "{word}: {err}");
    }
}

/// The first attributed reset ends the program with status 10, the words that
/// Kubernetes' test looks for, and a message that names direction, forgery and peer.
pub(crate) fn a_reset_ends_it_with_10() {
    let bed = Bed::path(Path::SameNode);
    let dir = tempfile::tempdir().unwrap();
    let message = dir.path().join("termination");
    let boom =
        bed.boom(&["--forge", "above-window", "--termination-log", message.to_str().unwrap()]);
    let client = bed.connect(VIP4, 1);
    let Ended { status, result, text: log } = boom.end(SOON).unwrap();
    assert_eq!((status.code(), result.run.ended_by), (Some(10), EndedBy::Reset));
    assert!(log.contains("connection established"));
    assert_eq!(log.matches("ERROR: the client's RST").count(), 1);
    let message = std::fs::read_to_string(message).unwrap();
    let peer = client[0].local_addr().unwrap().to_string();
    assert!(message.starts_with("vulnerable (server-to-client): "), "{message}");
    for word in ["above-window", &peer] {
        assert!(message.contains(word), "{word}: {message}");
    }
}

/// No leak, no ERROR anywhere in the log.
pub(crate) fn no_error_without_a_leak() {
    let bed = Bed::path(Path::SameNode);
    bed.protect(&["forward-drop"]);
    let mut boom = bed.boom(&["--connections", "4", "--min-forged", "2"]);
    let held = bed.connect(VIP4, 4);
    for s in &held {
        exchange(s).unwrap();
    }
    boom.wait_for("settled").unwrap();
    drop(held);
    let Ended { status, text: log, .. } = boom.end(SOON).unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains("ERROR") && log.contains("connection established"), "{log}");
}

/// Both signals end it within two seconds, with a result that proves nothing.
pub(crate) fn signals_end_it_with_a_result() {
    let bed = Bed::path(Path::SameNode);
    for (signal, by) in [(Signal::SIGTERM, EndedBy::Sigterm), (Signal::SIGINT, EndedBy::Sigint)] {
        let boom = bed.boom(&["--forge", "control"]);
        let held = bed.connect(VIP4, 3);
        let begun = Instant::now();
        boom.signal(signal);
        let Ended { status, result, .. } = boom.end(Duration::from_secs(2)).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!((status.code(), result.run.ended_by), (Some(11), by));
        assert_eq!(result.verdict, Verdict::Inconclusive);
        drop(held);
    }
}

/// `--duration` without a client proves nothing, and says so.
pub(crate) fn nothing_proved_is_11() {
    let bed = Bed::path(Path::SameNode);
    let Ended { status, result, .. } = bed.boom(&["--duration", "200ms"]).end(SOON).unwrap();
    assert_eq!((status.code(), result.run.ended_by), (Some(11), EndedBy::Duration));
    assert_eq!(result.reasons[0], "nothing was forged: no client connected, not one SYN came");
}

/// No thread keeps a capability, and none can come back.
pub(crate) fn capabilities_are_gone_on_every_thread() {
    let bed = Bed::path(Path::SameNode);
    let boom = bed.boom(&["--duration", "10s"]);
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
    boom.stop(SOON).unwrap();
}

/// Without CAP_NET_RAW: one line that tells how to grant it, status 1.
pub(crate) fn a_missing_capability_is_told() {
    let bed = Bed::path(Path::SameNode);
    let wrap = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-all"];
    refuses(&run(&bed, &wrap, &[]), 1, &["CAP_NET_RAW", "setcap"]);
}

/// A port in use is told with the option that names it.
pub(crate) fn a_port_in_use_is_told() {
    let bed = Bed::path(Path::SameNode);
    let boom = bed.boom(&["--duration", "20s"]);
    refuses(&run(&bed, &[], &["--admin=none"]), 1, &["--listen", "[::]:9000", "in use"]);
    boom.stop(SOON).unwrap();
}

/// An output that cannot be written is refused before anything is done.
pub(crate) fn an_impossible_output_is_refused() {
    let bed = Bed::path(Path::SameNode);
    refuses(&run(&bed, &[], &["--output=/nowhere/r.json"]), 2, &["--output", "/nowhere/r.json"]);
}

/// A directory that only CAP_DAC_OVERRIDE could write in, which is gone by the end, is
/// refused at the beginning; one of this user's is not.
pub(crate) fn an_output_in_anothers_directory_is_refused() {
    needs_root("the directory of another user");
    let bed = Bed::path(Path::SameNode);
    let dir = tempfile::tempdir().unwrap();
    let option = format!("--output={}", dir.path().join("r.json").display());
    bed.boom(&["--duration=100ms", &option]).end(SOON).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    std::os::unix::fs::chown(dir.path(), Some(65_534), None).unwrap();
    refuses(&run(&bed, &[], &[&option]), 2, &["--output", "r.json", "Permission denied"]);
}

/// Connections made without a pause, from before the beginning to after the end, are all
/// counted on both sides: neither end is a doubt.
pub(crate) fn a_steady_load_is_no_doubt() {
    let bed = Bed::path(Path::SameNode);
    bed.protect(&["forward-drop", "liberal"]);
    let to: SocketAddr = VIP4.parse().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                bed.within("client", || {
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
                let mut boom = bed.boom(&["--forge=control,above-window", "--events=all"]);
                for _ in 0..200 {
                    boom.wait_for("judged").unwrap();
                }
                boom.stop(Duration::from_secs(2)).unwrap()
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        for Ended { status, result, .. } in results {
            let c = result.connections;
            assert!(c.handshakes >= 200 && c.accepted == c.handshakes, "{c:?}");
            assert_eq!(status.code(), Some(0), "{:?}", result.reasons);
        }
    });
}

/// Nobody can connect before the raw sockets are open: the handshake of whoever has tried
/// without a pause since before the beginning is seen.
pub(crate) fn it_listens_last() {
    let bed = Bed::path(Path::SameNode);
    std::thread::scope(|s| {
        let boom = s.spawn(|| bed.boom(&["--forge=control", "--connections=1"]));
        let first = bed.within("server", || {
            let begun = Instant::now();
            loop {
                match TcpStream::connect("127.0.0.1:9000") {
                    Err(e) if begun.elapsed() < SOON => {
                        assert_eq!(e.kind(), ErrorKind::ConnectionRefused);
                    }
                    other => return other,
                }
            }
        });
        drop(first.unwrap());
        let result = boom.join().unwrap().end(SOON).unwrap().result;
        assert_eq!((result.connections.accepted, result.connections.handshakes), (1, 1));
    });
}

/// boom-server with 32 file descriptors.
fn short_of_files(options: &[&str]) -> Program<BoomResult> {
    boom_server(options).unwrap().under(&["prlimit", "--nofile=32:32"])
}

/// Connections that were never accepted are missing in the result, and are a doubt.
pub(crate) fn what_is_not_accepted_is_a_doubt() {
    let bed = Bed::path(Path::SameNode);
    let options = ["--forge=control", "--on-reset=count"];
    let boom = bed.start("server", short_of_files(&options));
    let held = bed.connect(VIP4, 60);
    let Ended { status, result, .. } = boom.stop(Duration::from_secs(2)).unwrap();
    drop(held);
    let c = result.connections;
    assert!(c.handshakes == 60 && c.accepted < 60, "{c:?}");
    let told = "60 handshakes seen: not every connection was judged";
    assert!(result.reasons.iter().any(|r| r.contains(told)), "{:?}", result.reasons);
    assert_eq!(status.code(), Some(11));
}

/// A disk that is full at the end costs the file, not the result.
pub(crate) fn a_full_disk_is_in_the_result() {
    let bed = Bed::path(Path::SameNode);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.json");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let termination = dir.path().join("no/such/log");
    let boom = bed.boom(&[
        "--duration",
        "100ms",
        "--output",
        path.to_str().unwrap(),
        "--termination-log",
        termination.to_str().unwrap(),
    ]);
    let Ended { status, result, .. } = boom.end(SOON).unwrap();
    assert_eq!(status.code(), Some(11));
    let reasons = result.reasons.join("\n");
    assert!(reasons.contains("No space left on device"), "{reasons}");
    assert!(reasons.contains("no/such/log"), "{reasons}");
}

/// A stdout that nobody reads holds up no connection and no judgement, and not the end.
pub(crate) fn an_unread_stdout_holds_up_nothing() {
    const N: usize = 600;
    let bed = Bed::path(Path::SameNode);
    bed.protect(&["forward-drop"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("result.json");
    let connections = N.to_string();
    let mut args =
        vec!["--events=all", "--forge=control,above-window", "--connections", &connections];
    args.extend(["--hold=1s", "--output", file.to_str().unwrap()]);
    let (out, pipe) = std::io::pipe().unwrap();
    let program = boom_server(&args).unwrap();
    let boom = program.start_into(pipe, bed.testbed(), "server", &bed.file("log")).unwrap();
    let mut lines = BufReader::new(out).lines();
    while !lines.next().expect("boom-server ended").unwrap().contains("\"message\":\"ready\"") {}
    // Two lines each: several times what a pipe holds.
    let held = bed.connect(VIP4, N);
    for s in &held {
        exchange(s).unwrap();
    }
    // Held to the end: what a client closes early is not judged.
    let status = boom.wait(Duration::from_secs(60)).unwrap();
    drop(held);
    let result: BoomResult = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(result.connections.forged, N as u64);
    let judged: u64 = result.outcomes.iter().map(|o| o.counts.delivered + o.counts.dropped).sum();
    assert_eq!(judged, N as u64, "{:?}", result.outcomes);
    // Protected, but the result could not be printed.
    assert_eq!((result.verdict, status.code()), (Verdict::Protected, Some(1)));
}

/// Out of file descriptors it goes on when there are some again, and says so.
pub(crate) fn it_survives_running_out_of_file_descriptors() {
    let bed = Bed::path(Path::SameNode);
    let boom = bed.start("server", short_of_files(&["--forge", "control", "--on-reset", "count"]));
    let held = bed.connect(VIP4, 60);
    let late = held.last().unwrap();
    late.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    (&*late).write_all(b"echo\n").unwrap();
    assert!((&*late).read(&mut [0; 8]).is_err(), "accepted beyond the limit");
    let mut held = held;
    let late = held.pop().unwrap();
    drop(held);
    exchange(&late).unwrap_or_else(|e| assert_eq!(e.to_string(), ""));
    drop(late);
    let result = boom.stop(Duration::from_secs(2)).unwrap().result;
    assert!(result.connections.accept_errors > 0);
    assert!(result.connections.accept_errors < 200, "a busy loop: {:?}", result.connections);
    assert_eq!((result.connections.accepted, result.connections.handshakes), (60, 60));
    assert!(result.reasons.iter().any(|r| r.contains("accept failed")), "{:?}", result.reasons);
}

/// The admin port: ready once the sniffer is there, metrics by family, the verdict so far.
pub(crate) fn the_admin_port_tells() {
    let bed = Bed::path(Path::SameNode);
    let boom = bed.boom(&["--admin=[::]:9100", "--forge", "control", "--on-reset", "count"]);
    let held = bed.connect(VIP4, 5);
    let get = |path: &str| {
        bed.within("server", || {
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
    has_rows(&metrics);
    let verdict = get("/verdict");
    for told in ["\"verdict\":\"inconclusive\"", "\"ended_by\":\"running\""] {
        assert!(verdict.contains(told), "{told}: {verdict}");
    }
    let page = get("/");
    for told in ["content-type: text/html", "So far: <strong class=\"doubt\">", ">control</th>"] {
        assert!(page.contains(told), "{told}: {page}");
    }
    drop(held);
    boom.stop(SOON).unwrap();
}

/// The reference has a row for each metric, with the labels that it bears.
fn has_rows(metrics: &str) {
    let reference = include_str!("../../../docs/reference/metrics.md");
    for line in metrics.lines().filter(|l| l.starts_with("boom_")) {
        let (name, labels) = line.split_once(['{', ' ']).unwrap();
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        let labels = labels.split(',').filter_map(|l| Some(l.split_once("=\"")?.0));
        let labels: Vec<_> = labels.filter(|label| *label != "le").collect();
        let row = format!("| `{name}` | {} |", labels.join(", ")).replace("  ", " ");
        assert!(reference.contains(&row), "{row}: {line}");
    }
}

/// A flood of bad segments from elsewhere changes no count but their own: every
/// flag byte, every truncation, wrong lengths and checksums.
pub(crate) fn bad_segments_change_nothing() {
    bad_segments(VIP4, "198.18.65.10", "198.18.65.20");
}

/// The same in IPv6.
pub(crate) fn bad_ipv6_segments_change_nothing() {
    bad_segments(VIP6, "fd00:65::10", "fd00:65::20");
}

fn bad_segments(vip: &str, client: &str, server: &str) {
    let bed = Bed::path(Path::SameNode);
    let mut boom = bed.boom(&["--forge", "control", "--on-reset", "count", "--connections", "6"]);
    let held = bed.connect(vip, 5);
    let (client, server): (IpAddr, IpAddr) = (client.parse().unwrap(), server.parse().unwrap());
    let (domain, header) = match server {
        IpAddr::V4(_) => (Domain::IPV4, 20),
        IpAddr::V6(_) => (Domain::IPV6, 40),
    };
    bed.within("client", || {
        let raw = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
        let peer = SockAddr::from(SocketAddr::new(server, 0));
        let mut packet = Vec::new();
        let crafted = |port, flags, options, packet: &mut Vec<u8>| {
            let emit = Emit {
                src: SocketAddr::new(client, port),
                dst: SocketAddr::new(server, 9000),
                class: 0,
                seq: Seq(1),
                ack: Seq(2),
                flags: Flags(flags),
                window: 9,
                options,
                payload: &[0xff; 9],
            };
            emit.packet(packet);
        };
        // A handshake by nobody known would be one: SYN alone, and only that, is left out.
        for flags in (0..=255u8).filter(|f| f & 0x3f != 2) {
            crafted(20_000 + u16::from(flags), flags, &[8, 40, 3], &mut packet);
            raw.send_to(&packet, &peer).unwrap();
        }
        // Every truncation of the longest header, with a SYN's flags. The checksum is wrong
        // from the first octet on.
        for cut in 0..=60 {
            for data_offset in [0x00, 0x40, 0x50, 0xf0] {
                crafted(30_000 + cut as u16, Flags::SYN.0, &[1; 40], &mut packet);
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
    let last = bed.connect(vip, 1);
    boom.wait_for("settled").unwrap();
    for s in held.iter().chain(&last) {
        exchange(s).unwrap();
    }
    drop((held, last));
    let Ended { status, result, .. } = boom.end(SOON).unwrap();
    assert_eq!(status.code(), Some(11));
    assert_eq!(result.outcomes.len(), 1);
    assert_eq!((result.outcomes[0].counts.delivered, result.connections.handshakes), (6, 6));
    assert_eq!((result.resets.attributed, result.sniffer.dropped), (0, 0));
    assert!(result.sniffer.malformed > 0 && result.resets.unknown_connection > 0);
}
