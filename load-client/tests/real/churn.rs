//! churn over real sockets: every way in which connections fail, each in its
//! own class, and the sum of all classes equal to the attempts.

use std::time::{Duration, Instant};

use canary_record::names::Errno;
use canary_record::result::load::{Cause, LoadResult, SeriesPoint};
use canary_testbed::programs::{Running, document, load_client};
use canary_testbed::test::{Bed, wait_for};
use canary_testbed::topology::Topology;
use nix::sys::signal::Signal;

use crate::accounts::{
    check_sum, end, failed, read_line, run, short_of_files, stop, with_file, write,
};
use crate::lifecycle::catches_term;

/// A tcp churn of a number makes exactly that number, closed with FIN.
pub(crate) fn tcp_makes_exactly_what_was_asked() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let r = run(&bed, "churn --target tcp://127.0.0.1:8080 --connections 3001").result;
    assert_eq!((r.attempts, r.ok, r.own_resets), (3001, 3001, 0));
    assert_eq!((r.connect_latency.count, r.total_latency.count), (3001, 3001));
}

/// --close rst sends one RST for each connection, counted as the program's own
/// and never as the network's.
pub(crate) fn own_resets_are_the_programs_own() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    bed.rule("host", "tcp dport 8080 tcp flags & rst == rst counter");
    let ran = run(
        &bed,
        "churn --target tcp://127.0.0.1:8080 --connections 1000 --close rst --fail-on reset>0",
    );
    assert_eq!((ran.code(), ran.result.ok, ran.result.own_resets), (0, 1000, 1000));
    assert_eq!(bed.counted("host"), [1000]);
    let ran = run(&bed, "churn --target http://127.0.0.1:8080/ --connections 200 --close rst");
    assert_eq!((ran.code(), ran.result.ok, ran.result.own_resets), (0, 200, 200));
}

/// A connection without an answer is closed as the others are, and its RST is the program's own;
/// one that the network reset is not reset again.
pub(crate) fn resets_of_what_stalled_are_the_programs_own() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    bed.server("host", 8081, |_s| std::thread::sleep(Duration::from_secs(60)));
    bed.rule("host", "tcp dport { 8080, 8081 } tcp flags & rst == rst counter");
    let r = run(
        &bed,
        "churn --target http://127.0.0.1:8081/ --connections 20 --close rst --timeout 300ms",
    )
    .result;
    assert_eq!(failed(&r, |p, c| p == "receive" && c == Cause::Stall), 20, "{:?}", r.failures);
    assert_eq!((r.own_resets, bed.counted("host")), (20, vec![20]));
    bed.rule("host", "tcp dport 8080 tcp flags & psh == psh reject with tcp reset");
    let r = run(&bed, "churn --target http://127.0.0.1:8080/ --connections 20 --close rst").result;
    assert_eq!(failed(&r, |_, c| c == Cause::Errno(Errno::Econnreset)), 20, "{:?}", r.failures);
    assert_eq!((r.own_resets, bed.counted("host")), (0, vec![20]));
}

/// An http churn reads every body to its end.
pub(crate) fn http_reads_every_octet() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let r = run(&bed, "churn --target http://127.0.0.1:8080/x --connections 500").result;
    assert_eq!((r.ok, r.bytes_received), (500, 500 * 1024));
}

/// A request carries the ACK of its handshake: of the client's packets one alone is no more
/// than an ACK, that of the whole answer.
pub(crate) fn http_sends_no_packet_too_many() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    bed.rule("host", "tcp dport 8080 tcp flags == ack meta length 52 counter");
    bed.rule("host", "tcp dport 8080 tcp flags == syn counter");
    let r = run(&bed, "churn --target http://127.0.0.1:8080/ --connections 1000").result;
    assert_eq!(r.ok, 1000);
    let counted = bed.counted("host");
    assert_eq!(counted[1], 1000);
    // A quarter more, where an answer came in two pieces; otherwise there are twice as many.
    assert!(counted[0] < 1250, "{} ACKs alone", counted[0]);
}

/// An answer that ends before its Content-Length is an early EOF, one with an
/// error status or without HTTP a wrong answer.
pub(crate) fn short_and_wrong_answers_have_their_classes() {
    let bed = Bed::new(Topology::single);
    for (port, answer, cause) in [
        (81, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort", Cause::EarlyEof),
        (82, "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", Cause::BadAnswer),
        (83, "hello\r\n\r\n", Cause::BadAnswer),
        (84, "", Cause::EarlyEof),
    ] {
        bed.server("host", port, move |mut s| {
            while read_line(&mut s).len() > 2 {}
            write(&mut s, answer.as_bytes());
        });
        let args = format!("churn --target http://127.0.0.1:{port}/ --connections 20");
        let ran = run(&bed, &args);
        let counted = failed(&ran.result, |p, c| p == "receive" && c == cause);
        assert_eq!(counted, 20, "{answer}: {:?}", ran.result.failures);
        assert_eq!(ran.code(), 11, "nothing succeeded: the run proved nothing");
    }
    // Until the end of the connection is a legal length too (RFC 9112, section 6.3).
    bed.server("host", 85, |mut s| {
        while read_line(&mut s).len() > 2 {}
        write(&mut s, b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc");
    });
    let r = run(&bed, "churn --target http://127.0.0.1:85/ --connections 20").result;
    assert_eq!((r.ok, r.bytes_received), (20, 60));
}

/// A refusing target is counted, and does not become a busy loop.
pub(crate) fn refused_is_no_busy_loop() {
    let bed = Bed::new(Topology::single);
    let ran = run(&bed, "churn --target tcp://127.0.0.1:8080 --duration 1s");
    let refused =
        failed(&ran.result, |p, c| p == "connect" && c == Cause::Errno(Errno::Econnrefused));
    assert_eq!((ran.code(), refused), (11, ran.result.attempts));
    assert!((10..20_000).contains(&ran.result.attempts), "{}", ran.result.attempts);
}

/// With a rate a refusing target does not thin the load: the schedule is kept.
pub(crate) fn a_schedule_is_kept_while_refused() {
    let bed = Bed::new(Topology::single);
    let r = run(&bed, "churn --target tcp://127.0.0.1:8080 --rate 1000 --duration 1s").result;
    assert!((900..=1000).contains(&r.attempts), "{}", r.attempts);
}

/// What was due while as many as allowed were in progress, and never begun, is counted and said.
pub(crate) fn what_was_never_begun_is_counted() {
    let bed = Bed::new(Topology::single);
    bed.server("host", 81, |_s| std::thread::sleep(Duration::from_secs(60)));
    let r = run(&bed, "churn --target http://127.0.0.1:81/ --rate 200 --duration 1s --concurrency 2 --workers 1 --timeout 300ms")
        .result;
    assert!(r.attempts < 20, "{}", r.attempts);
    assert_eq!(r.attempts + r.never_begun, 200);
    let said = format!("{} connections were due and never begun", r.never_begun);
    assert!(r.reasons.iter().any(|why| why.contains(&said)), "{:?}", r.reasons);
}

/// Where a worker cannot be had nothing begins.
pub(crate) fn all_workers_or_none() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    bed.rule("host", "tcp dport 8080 tcp flags & (syn | ack) == syn counter");
    let words = "churn --target tcp://127.0.0.1:8080 --workers 64 --connections 64";
    let out = short_of_files(&bed, 30, words);
    let stderr = out.stderr;
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot start a worker: Too many open files"), "{stderr}");
    assert_eq!(bed.counted("host"), [0]);
}

/// A dropped SYN is a stall of the connect, a dropped answer one of the receive.
pub(crate) fn silence_is_a_stall_of_its_phase() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    bed.rule("host", "tcp sport 8080 tcp flags & psh == psh drop");
    let ran = run(
        &bed,
        "churn --target http://127.0.0.1:8080/ --connections 30 --timeout 300ms --fail-on stall>0",
    );
    assert_eq!(failed(&ran.result, |p, c| p == "receive" && c == Cause::Stall), 30);
    assert_eq!(ran.code(), 10);
    bed.rule("host", "tcp dport 8080 tcp flags & syn == syn drop");
    let ran = run(
        &bed,
        "churn --target tcp://127.0.0.1:8080 --connections 30 --timeout 300ms --fail-on stall>0",
    );
    assert_eq!(failed(&ran.result, |p, c| p == "connect" && c == Cause::Stall), 30);
    assert_eq!(ran.code(), 11);
}

/// A table without room drops SYNs, which is a stall of the connect and no reset; with room
/// again every connection succeeds. A rule counts the entries here, since the real limit is
/// every namespace's: `make soak` fills a real table.
pub(crate) fn a_full_table_is_a_stall_of_the_connect() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    bed.rule("host", "tcp dport 8080 ct state new ct count over 40 counter drop");
    let hold = bed.load("hold --target tcp://127.0.0.1:8080 --connections 40");
    wait_for("40 held connections", || {
        bed.sh("host", "ss -Htn state established dport = :8080").lines().count() == 40
    });
    let line =
        "churn --target tcp://127.0.0.1:8080 --connections 30 --timeout 300ms --fail-on reset>0";
    let ran = run(&bed, line);
    assert_eq!(failed(&ran.result, |p, c| p == "connect" && c == Cause::Stall), 30);
    assert_eq!(ran.code(), 11);
    assert!(bed.counted("host")[0] >= 30);
    assert_eq!(stop(hold).code(), 0);
    let ran = run(&bed, line);
    assert_eq!((ran.code(), ran.result.ok), (0, 30));
}

/// With half the SYNs dropped, every connection is ok or timed out.
pub(crate) fn half_the_syns_dropped() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    bed.rule("host", "tcp dport 8080 tcp flags & (syn | ack) == syn numgen random mod 2 == 0 drop");
    let r = run(
        &bed,
        "churn --target tcp://127.0.0.1:8080 --rate 500 --connections 1000 --timeout 500ms",
    )
    .result;
    let stalls = failed(&r, |p, c| p == "connect" && c == Cause::Stall);
    assert_eq!(r.ok + stalls, 1000);
    assert!((300..700).contains(&stalls), "{stalls}");
}

/// ECONNRESET is written to the log in the words that people grep for, at a
/// bounded rate, with the count of those held back.
pub(crate) fn resets_are_logged_in_the_known_words() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    // The first data segment of each connection is answered with RST.
    bed.rule("host", "tcp dport 8080 tcp flags & psh == psh reject with tcp reset");
    let ran =
        run(&bed, "churn --target http://127.0.0.1:8080/ --connections 400 --fail-on reset>0");
    let resets = failed(&ran.result, |_, c| c == Cause::Errno(Errno::Econnreset));
    assert_eq!((ran.code(), resets), (10, 400));
    let lines: Vec<serde_json::Value> = ran
        .text
        .lines()
        .filter(|l| l.contains("Connection reset by peer") || l.contains("held_back"))
        .map(|l| serde_json::from_str(l).unwrap())
        .filter(|v: &serde_json::Value| v["level"] == "WARN")
        .collect();
    let written =
        lines.iter().filter(|v| v["message"] == "Connection reset by peer").count() as u64;
    let held_back: u64 = lines.iter().filter_map(|v| v["held_back"].as_u64()).sum();
    assert!(written > 0 && written < 100, "{written}");
    assert_eq!(written + held_back, 400);
}

/// Exhausted ports and open files are this host's limits, said before the start
/// and counted apart.
pub(crate) fn local_limits_are_counted_apart() {
    let bed = Bed::new(Topology::single);
    bed.server("host", 81, |mut s| {
        while read_line(&mut s).len() > 2 {}
        std::thread::sleep(Duration::from_secs(5));
    });
    bed.sh("host", "echo 40000 40049 > /proc/sys/net/ipv4/ip_local_port_range");
    let ran = run(
        &bed,
        "churn --target http://127.0.0.1:81/ --concurrency 100 --connections 100 --timeout 500ms",
    );
    let ports = failed(&ran.result, |_, c| c == Cause::Errno(Errno::Eaddrnotavail));
    assert!(ports >= 50, "{:?}", ran.result.failures);
    assert!(
        ran.result
            .failures
            .iter()
            .all(|f| f.local == matches!(f.cause, Cause::Errno(Errno::Eaddrnotavail)))
    );
    let p = ran.result.preflight.unwrap();
    assert_eq!((p.ports, p.open_connections), (50, 50));
    assert!(p.warnings[0].contains("more than the 50 local ports"), "{:?}", p.warnings);

    bed.sh("host", "echo 20000 60000 > /proc/sys/net/ipv4/ip_local_port_range");
    let words =
        "churn --target http://127.0.0.1:81/ --concurrency 64 --connections 64 --timeout 500ms";
    let r: LoadResult = document(&short_of_files(&bed, 40, words).stdout).unwrap();
    check_sum(&r);
    assert!(failed(&r, |_, c| c == Cause::Errno(Errno::Emfile)) > 0, "{:?}", r.failures);
    assert_eq!(failed(&r, |_, c| c == Cause::Errno(Errno::Econnreset)), 0);
}

/// The server is killed and comes back: the accounts hold, and the whole load is back.
pub(crate) fn recovers_with_its_server() {
    let bed = Bed::new(Topology::single);
    let serve = bed.serve("127.0.0.1:8080");
    let churn = bed.load("churn --target http://127.0.0.1:8080/ --rate 500 --timeout 500ms");
    for flag in ["fin", "rst"] {
        bed.rule("host", &format!("tcp sport 8080 tcp flags & {flag} == {flag} counter"));
    }
    let more = |kind: usize, n| {
        let before = bed.counted("host")[kind];
        wait_for("more of them", || bed.counted("host")[kind] >= before + n);
    };
    let (closed, refused) = (0, 1);
    more(closed, 300);
    drop(serve);
    more(refused, 300);
    let _serve = bed.serve("127.0.0.1:8080");
    let back = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    // Three seconds' worth: two whole ones are among them.
    more(closed, 1500);
    let ended = stop(churn);
    assert_eq!(ended.code(), 0);
    let r = ended.result;
    assert!(failed(&r, |_, c| c == Cause::Errno(Errno::Econnrefused)) > 100, "{:?}", r.failures);
    let whole = |p: &SeriesPoint| p.at > back && p.failed == 0 && p.ok >= 450;
    assert!(r.series.points.iter().any(whole), "{:?}", r.series);
}

/// With --linger the result is out before the program ends, which another signal does.
pub(crate) fn lingers_after_its_result() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    bed.rule("host", "tcp sport 8080 tcp flags & fin == fin counter");
    let words = "churn --target tcp://127.0.0.1:8080 --rate 50 --linger 1h --log json";
    let mut churn = bed.load(words);
    wait_for("connections that ended", || bed.counted("host")[0] >= 5);
    churn.signal(Signal::SIGTERM);
    wait_for("the result", || churn.printed().contains("\"ended_by\":\"sigterm\""));
    check_sum(&document::<LoadResult>(&churn.printed()).unwrap());
    assert!(churn.runs().unwrap(), "ended with its result");
    assert_eq!(stop(churn).code(), 0);
}

/// A name that has no address yet, as a Service's just after its creation, is asked for again;
/// without --resolve-timeout it is wrong usage at once.
pub(crate) fn a_name_may_come_late() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let hosts = bed.file("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let start = |options: &[&str]| {
        let target = ["churn", "--target", "tcp://late.invalid:8080", "--connections", "3"];
        let program = load_client(&[&target, options].concat()).unwrap();
        let program = with_file(program, &hosts, "/etc/hosts");
        program.start(bed.testbed(), "host", &bed.file("late.log")).unwrap()
    };
    let wait = |running: Running<LoadResult>, seconds| {
        running.wait(Duration::from_secs(seconds)).unwrap().code()
    };
    assert_eq!(wait(start(&[]), 5), Some(2));
    let mut waiting = start(&["--resolve-timeout", "1h"]);
    std::thread::sleep(Duration::from_millis(600));
    assert!(waiting.runs().unwrap(), "ended before the name was there");
    // In place: the file is mounted.
    std::fs::write(&hosts, "127.0.0.1 localhost late.invalid\n").unwrap();
    let ended = end(waiting);
    assert_eq!((ended.code(), ended.result.ok), (0, 3));
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let given_up = start(&["--resolve-timeout", "1h"]);
    wait_for("signals are caught", || catches_term(&given_up));
    given_up.signal(Signal::SIGTERM);
    assert_eq!(wait(given_up, 2), Some(2));
}

/// SIGTERM ends a run whose connections all hang, with a full result, within 2 s.
pub(crate) fn sigterm_ends_within_two_seconds() {
    let bed = Bed::new(Topology::single);
    let file = bed.file("r.json");
    bed.server("host", 81, |mut s| {
        let _ = read_line(&mut s);
        std::thread::sleep(Duration::from_secs(60));
    });
    let args = format!(
        "churn --target http://127.0.0.1:81/ --concurrency 20 --timeout 60s --output {}",
        file.display()
    );
    let churn = bed.load(&args);
    wait_for("20 connections", || {
        bed.sh("host", "ss -Htn state established dport = :81").lines().count() >= 20
    });
    let at = Instant::now();
    let told = stop(churn).result;
    assert!(at.elapsed() < Duration::from_secs(2));
    let r: LoadResult = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(r, told);
    assert_eq!(r.run.ended_by, canary_record::names::EndedBy::Sigterm);
    assert_eq!(failed(&r, |p, c| p == "receive" && c == Cause::Interrupted), 20);
}

/// Connections leave from every address named, by turns.
pub(crate) fn several_source_addresses() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    for n in 2..5 {
        bed.rule("host", &format!("ip saddr 127.0.0.{n} tcp flags & (syn | ack) == syn counter"));
    }
    let r = run(&bed, "churn --target tcp://127.0.0.1:8080 --connections 300 --source-ip 127.0.0.2,127.0.0.3,127.0.0.4").result;
    assert_eq!(r.ok, 300);
    assert_eq!(bed.counted("host"), [100, 100, 100]);
}

/// A server that pauses for 300 ms makes the latencies of an open loop show the
/// pause for every connection that was due meanwhile (no coordinated omission).
pub(crate) fn a_pause_shows_in_an_open_loop() {
    let bed = Bed::new(Topology::single);
    let serve = bed.serve("127.0.0.1:8080");
    bed.rule("host", "tcp sport 8080 tcp flags & fin == fin counter");
    let churn = bed.load(
        "churn --target http://127.0.0.1:8080/ --rate 400 --duration 2s --concurrency 4 --workers 2",
    );
    wait_for("connections", || bed.counted("host")[0] >= 100);
    serve.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(500));
    serve.signal(Signal::SIGCONT);
    let r = end(churn).result;
    // 4 connections were in progress; some 200 were due during the pause.
    assert_eq!(r.attempts + r.never_begun, 800);
    assert!(r.total_latency.p90_us > 100_000, "{}", r.total_latency.p90_us);
}
