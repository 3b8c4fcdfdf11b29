//! probe against a server that speaks boom-server's protocol, well or badly.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use canary_record::names::ProbeEnd;
use canary_record::probe::{Body, BodyHash, Line, Request};
use canary_record::result::load::LoadResult;
use canary_testbed::programs::Ended;
use canary_testbed::test::Bed;
use canary_testbed::topology::Topology;

use crate::accounts::{read_line, run, write};

/// How the server misbehaves.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// One octet is wrong.
    Flip,
    /// The last octet is missing.
    Short,
    /// No answer.
    Silence,
    /// Closed with unread data: the kernel sends RST.
    Reset,
}

/// The reference server of the tests: std sockets, no code of the program's.
fn answer(mut s: TcpStream, fault: Fault) {
    if fault == Fault::Reset {
        let mut one = [0];
        let _ = s.read(&mut one);
        return;
    }
    let line = read_line(&mut s);
    let reply = match Line::read(&line).map(|l| l.request) {
        Some(Request::Answer { delay, length, seed }) => {
            std::thread::sleep(delay);
            let mut body = vec![0; length as usize];
            Body::new(seed).fill(&mut body);
            body
        }
        Some(Request::Take { length, .. }) => {
            let mut body = vec![0; length as usize];
            if s.read_exact(&mut body).is_err() {
                return;
            }
            let mut hash = BodyHash::default();
            hash.update(&body);
            format!("ok {}\n", hash.hex()).into_bytes()
        }
        None => line.into_bytes(),
    };
    match fault {
        Fault::Flip => {
            let mut reply = reply;
            let last = reply.len() - 2;
            reply[last] ^= 1;
            write(&mut s, &reply);
        }
        Fault::Short => write(&mut s, &reply[..reply.len() - 1]),
        Fault::Silence => std::thread::sleep(Duration::from_secs(30)),
        Fault::None | Fault::Reset => write(&mut s, &reply),
    }
    // Until the client closes.
    if fault != Fault::Short {
        let _ = read_line(&mut s);
    }
}

fn probe(bed: &Bed, fault: Fault, more: &str) -> Ended<LoadResult> {
    bed.server("host", 9000, move |s| answer(s, fault));
    run(
        bed,
        &format!(
            "probe --target tcp://127.0.0.1:9000 --connections 10 --delay 50ms --timeout 700ms {more}"
        ),
    )
}

const PATTERNS: [&str; 5] = [
    "--pattern idle",
    "--pattern request",
    "--pattern slow-answer --answer-delay 300ms",
    "--pattern download --body-size 300KiB",
    "--pattern upload --body-size 300KiB",
];

/// Every pattern survives a server that answers well.
pub(crate) fn every_pattern_survives() {
    for pattern in PATTERNS {
        let ran = probe(&Bed::new(Topology::single), Fault::None, pattern);
        assert_eq!(ran.code(), 0, "{pattern}");
        assert_eq!(ran.result.probe, [(ProbeEnd::Survived, 10)].into(), "{pattern}");
    }
}

/// One wrong octet, in a body or in the hash of one, is corruption.
pub(crate) fn a_wrong_octet_is_corruption() {
    for pattern in ["--pattern request", "--pattern upload --body-size 1KiB"] {
        let ran = probe(&Bed::new(Topology::single), Fault::Flip, pattern);
        assert_eq!(ran.code(), 10, "{pattern}");
        assert_eq!(ran.result.probe, [(ProbeEnd::Corrupted, 10)].into(), "{pattern}");
    }
}

/// A close before the last octet is an early end, silence a hang, RST a reset.
pub(crate) fn every_end_has_its_name() {
    for (fault, end) in [
        (Fault::Short, ProbeEnd::EarlyEof),
        (Fault::Silence, ProbeEnd::Hung),
        (Fault::Reset, ProbeEnd::Reset),
    ] {
        let ran = probe(&Bed::new(Topology::single), fault, "--pattern request");
        assert_eq!(ran.code(), 10, "{end}");
        assert_eq!(ran.result.probe, [(end, 10)].into());
    }
}

/// No listener, or no answer to the SYN: nothing was proved, exit code 11.
pub(crate) fn nothing_made_proves_nothing() {
    let bed = Bed::new(Topology::single);
    let args = "probe --target tcp://127.0.0.1:9000 --connections 5 --delay 0s --timeout 300ms";
    let ran = run(&bed, args);
    assert_eq!((ran.code(), ran.result.probe), (11, [(ProbeEnd::Refused, 5)].into()));
    bed.rule("host", "tcp dport 9000 tcp flags & syn == syn drop");
    let ran = run(&bed, args);
    assert_eq!((ran.code(), ran.result.probe), (11, [(ProbeEnd::TimedOut, 5)].into()));
}

/// The latency of connect() is that of every handshake, whatever became of the connection.
pub(crate) fn connections_that_failed_later_had_a_handshake() {
    let ran = probe(&Bed::new(Topology::single), Fault::Reset, "--pattern request");
    assert_eq!((ran.result.ok, ran.result.connect_latency.count), (0, 10));
}

/// Whoever holds the port before boom-server does, as kube-proxy a node port, is waited out and not
/// counted with --await-answer; without it its silence is a hang.
pub(crate) fn an_answer_is_awaited() {
    for (wait, silent) in [("10s", 0), ("0s", 3)] {
        let bed = Bed::new(Topology::single);
        let seen = Arc::<AtomicU32>::default();
        bed.server("host", 9000, move |s| {
            let early = seen.fetch_add(1, Ordering::Relaxed) < 3;
            answer(s, if early { Fault::Silence } else { Fault::None });
        });
        let ran = run(
            &bed,
            &format!(
                "probe --target tcp://127.0.0.1:9000 --connections 10 --delay 50ms --timeout 700ms \
                 --await-answer {wait}"
            ),
        );
        let hung = ran.result.probe.get(&ProbeEnd::Hung).copied().unwrap_or(0);
        assert_eq!((hung, ran.result.attempts), (silent, 10), "--await-answer {wait}");
        let before = ran.result.run.config.get("connections-before-an-answer");
        let before = before.and_then(|s| s.value.as_deref());
        assert_eq!(before, (silent == 0).then_some("3"), "--await-answer {wait}");
    }
}
