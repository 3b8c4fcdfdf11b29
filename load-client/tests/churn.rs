//! churn over real sockets: every way in which connections fail, each in its
//! own class, and the sum of all classes equal to the attempts.

mod common;

use std::time::{Duration, Instant};

use canary_record::names::Errno;
use canary_record::result::load::{Cause, LoadResult};
use common::{Ns, check_sum, failed, last, privileged, wait_for};

/// A tcp churn of a number makes exactly that number, closed with FIN.
#[test]
fn tcp_makes_exactly_what_was_asked() {
    if !privileged("tcp_makes_exactly_what_was_asked") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    let r = ns.run("churn --target tcp://127.0.0.1:8080 --connections 3001").result;
    assert_eq!((r.attempts, r.ok, r.own_resets), (3001, 3001, 0));
    assert_eq!((r.connect_latency.count, r.total_latency.count), (3001, 3001));
}

/// --close rst sends one RST for each connection, counted as the program's own
/// and never as the network's.
#[test]
fn own_resets_are_the_programs_own() {
    if !privileged("own_resets_are_the_programs_own") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    ns.rule("tcp dport 8080 tcp flags & rst == rst counter");
    let ran = ns.run(
        "churn --target tcp://127.0.0.1:8080 --connections 1000 --close rst --fail-on reset>0",
    );
    assert_eq!((ran.code, ran.result.ok, ran.result.own_resets), (0, 1000, 1000));
    assert_eq!(ns.counted(), [1000]);
    let ran = ns.run("churn --target http://127.0.0.1:8080/ --connections 200 --close rst");
    assert_eq!((ran.code, ran.result.ok, ran.result.own_resets), (0, 200, 200));
}

/// A connection without an answer is closed as the others are, and its RST is the program's own;
/// one that the network reset is not reset again.
#[test]
fn resets_of_what_stalled_are_the_programs_own() {
    if !privileged("resets_of_what_stalled_are_the_programs_own") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    ns.server(8081, |_s| std::thread::sleep(Duration::from_secs(60)));
    ns.rule("tcp dport { 8080, 8081 } tcp flags & rst == rst counter");
    let r = ns
        .run("churn --target http://127.0.0.1:8081/ --connections 20 --close rst --timeout 300ms")
        .result;
    assert_eq!(failed(&r, |p, c| p == "receive" && c == Cause::Stall), 20, "{:?}", r.failures);
    assert_eq!((r.own_resets, ns.counted()), (20, vec![20]));
    ns.rule("tcp dport 8080 tcp flags & psh == psh reject with tcp reset");
    let r = ns.run("churn --target http://127.0.0.1:8080/ --connections 20 --close rst").result;
    assert_eq!(failed(&r, |_, c| c == Cause::Errno(Errno::Econnreset)), 20, "{:?}", r.failures);
    assert_eq!((r.own_resets, ns.counted()), (0, vec![20]));
}

/// An http churn reads every body to its end.
#[test]
fn http_reads_every_octet() {
    if !privileged("http_reads_every_octet") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    let r = ns.run("churn --target http://127.0.0.1:8080/x --connections 500").result;
    assert_eq!((r.ok, r.bytes_received), (500, 500 * 1024));
}

/// A request carries the ACK of its handshake: of the client's packets one alone is no more
/// than an ACK, that of the whole answer.
#[test]
fn http_sends_no_packet_too_many() {
    if !privileged("http_sends_no_packet_too_many") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    ns.rule("tcp dport 8080 tcp flags == ack meta length 52 counter");
    ns.rule("tcp dport 8080 tcp flags == syn counter");
    let r = ns.run("churn --target http://127.0.0.1:8080/ --connections 1000").result;
    assert_eq!(r.ok, 1000);
    let counted = ns.counted();
    assert_eq!(counted[1], 1000);
    // A quarter more, where an answer came in two pieces; otherwise there are twice as many.
    assert!(counted[0] < 1250, "{} ACKs alone", counted[0]);
}

/// An answer that ends before its Content-Length is an early EOF, one with an
/// error status or without HTTP a wrong answer.
#[test]
fn short_and_wrong_answers_have_their_classes() {
    if !privileged("short_and_wrong_answers_have_their_classes") {
        return;
    }
    let ns = Ns::new();
    for (port, answer, cause) in [
        (81, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort", Cause::EarlyEof),
        (82, "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", Cause::BadAnswer),
        (83, "hello\r\n\r\n", Cause::BadAnswer),
        (84, "", Cause::EarlyEof),
    ] {
        ns.server(port, move |mut s| {
            while common::read_line(&mut s).len() > 2 {}
            common::write(&mut s, answer.as_bytes());
        });
        let args = format!("churn --target http://127.0.0.1:{port}/ --connections 20");
        let ran = ns.run(&args);
        let counted = failed(&ran.result, |p, c| p == "receive" && c == cause);
        assert_eq!(counted, 20, "{answer}: {:?}", ran.result.failures);
        assert_eq!(ran.code, 11, "nothing succeeded: the run proved nothing");
    }
    // Until the end of the connection is a legal length too (RFC 9112, section 6.3).
    ns.server(85, |mut s| {
        while common::read_line(&mut s).len() > 2 {}
        common::write(&mut s, b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc");
    });
    let r = ns.run("churn --target http://127.0.0.1:85/ --connections 20").result;
    assert_eq!((r.ok, r.bytes_received), (20, 60));
}

/// A refusing target is counted, and does not become a busy loop.
#[test]
fn refused_is_no_busy_loop() {
    if !privileged("refused_is_no_busy_loop") {
        return;
    }
    let ns = Ns::new();
    let ran = ns.run("churn --target tcp://127.0.0.1:8080 --duration 1s");
    let refused =
        failed(&ran.result, |p, c| p == "connect" && c == Cause::Errno(Errno::Econnrefused));
    assert_eq!((ran.code, refused), (11, ran.result.attempts));
    assert!((10..20_000).contains(&ran.result.attempts), "{}", ran.result.attempts);
}

/// With a rate a refusing target does not thin the load: the schedule is kept.
#[test]
fn a_schedule_is_kept_while_refused() {
    if !privileged("a_schedule_is_kept_while_refused") {
        return;
    }
    let ns = Ns::new();
    let r = ns.run("churn --target tcp://127.0.0.1:8080 --rate 1000 --duration 1s").result;
    assert!((900..=1000).contains(&r.attempts), "{}", r.attempts);
}

/// What was due while as many as allowed were in progress, and never begun, is counted and said.
#[test]
fn what_was_never_begun_is_counted() {
    if !privileged("what_was_never_begun_is_counted") {
        return;
    }
    let ns = Ns::new();
    ns.server(81, |_s| std::thread::sleep(Duration::from_secs(60)));
    let r = ns
        .run("churn --target http://127.0.0.1:81/ --rate 200 --duration 1s --concurrency 2 --workers 1 --timeout 300ms")
        .result;
    assert!(r.attempts < 20, "{}", r.attempts);
    assert_eq!(r.attempts + r.never_begun, 200);
    let said = format!("{} connections were due and never begun", r.never_begun);
    assert!(r.reasons.iter().any(|why| why.contains(&said)), "{:?}", r.reasons);
}

/// Where a worker cannot be had nothing begins.
#[test]
fn all_workers_or_none() {
    if !privileged("all_workers_or_none") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    ns.rule("tcp dport 8080 tcp flags & (syn | ack) == syn counter");
    let out = ns
        .command("prlimit")
        .args(["--nofile=30:30", common::BIN, "churn", "--target", "tcp://127.0.0.1:8080"])
        .args(["--workers", "64", "--connections", "64"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot start a worker: Too many open files"), "{stderr}");
    assert_eq!(ns.counted(), [0]);
}

/// A dropped SYN is a stall of the connect, a dropped answer one of the receive.
#[test]
fn silence_is_a_stall_of_its_phase() {
    if !privileged("silence_is_a_stall_of_its_phase") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    ns.rule("tcp sport 8080 tcp flags & psh == psh drop");
    let ran = ns.run(
        "churn --target http://127.0.0.1:8080/ --connections 30 --timeout 300ms --fail-on stall>0",
    );
    assert_eq!(failed(&ran.result, |p, c| p == "receive" && c == Cause::Stall), 30);
    assert_eq!(ran.code, 10);
    ns.rule("tcp dport 8080 tcp flags & syn == syn drop");
    let ran = ns.run(
        "churn --target tcp://127.0.0.1:8080 --connections 30 --timeout 300ms --fail-on stall>0",
    );
    assert_eq!(failed(&ran.result, |p, c| p == "connect" && c == Cause::Stall), 30);
    assert_eq!(ran.code, 11);
}

/// A table without room drops SYNs, which is a stall of the connect and no reset; with room
/// again every connection succeeds. A rule counts the entries here, since the real limit is
/// every namespace's: `make soak` fills a real table.
#[test]
fn a_full_table_is_a_stall_of_the_connect() {
    if !privileged("a_full_table_is_a_stall_of_the_connect") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let _serve = ns.serve();
    ns.rule("tcp dport 8080 ct state new ct count over 40 counter drop");
    let mut hold =
        ns.start("hold --target tcp://127.0.0.1:8080 --connections 40", &dir.path().join("hold"));
    wait_for("40 held connections", || {
        ns.sh("ss -Htn state established dport = :8080").lines().count() == 40
    });
    let line =
        "churn --target tcp://127.0.0.1:8080 --connections 30 --timeout 300ms --fail-on reset>0";
    let ran = ns.run(line);
    assert_eq!(failed(&ran.result, |p, c| p == "connect" && c == Cause::Stall), 30);
    assert_eq!(ran.code, 11);
    assert!(ns.counted()[0] >= 30);
    hold.signal("TERM");
    assert_eq!(hold.wait(Duration::from_secs(2)), 0);
    let ran = ns.run(line);
    assert_eq!((ran.code, ran.result.ok), (0, 30));
}

/// With half the SYNs dropped, every connection is ok or timed out.
#[test]
fn half_the_syns_dropped() {
    if !privileged("half_the_syns_dropped") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    ns.rule("tcp dport 8080 tcp flags & (syn | ack) == syn numgen random mod 2 == 0 drop");
    let r = ns
        .run("churn --target tcp://127.0.0.1:8080 --rate 500 --connections 1000 --timeout 500ms")
        .result;
    let stalls = failed(&r, |p, c| p == "connect" && c == Cause::Stall);
    assert_eq!(r.ok + stalls, 1000);
    assert!((300..700).contains(&stalls), "{stalls}");
}

/// ECONNRESET is written to the log in the words that people grep for, at a
/// bounded rate, with the count of those held back.
#[test]
fn resets_are_logged_in_the_known_words() {
    if !privileged("resets_are_logged_in_the_known_words") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    // The first data segment of each connection is answered with RST.
    ns.rule("tcp dport 8080 tcp flags & psh == psh reject with tcp reset");
    let ran = ns.run("churn --target http://127.0.0.1:8080/ --connections 400 --fail-on reset>0");
    let resets = failed(&ran.result, |_, c| c == Cause::Errno(Errno::Econnreset));
    assert_eq!((ran.code, resets), (10, 400));
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
#[test]
fn local_limits_are_counted_apart() {
    if !privileged("local_limits_are_counted_apart") {
        return;
    }
    let ns = Ns::new();
    ns.server(81, |mut s| {
        while common::read_line(&mut s).len() > 2 {}
        std::thread::sleep(Duration::from_secs(5));
    });
    ns.sh("echo 40000 40049 > /proc/sys/net/ipv4/ip_local_port_range");
    let ran = ns.run(
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

    ns.sh("echo 20000 60000 > /proc/sys/net/ipv4/ip_local_port_range");
    let out = ns
        .command("prlimit")
        .args(["--nofile=40:40", common::BIN, "churn", "--target", "http://127.0.0.1:81/"])
        .args(["--concurrency", "64", "--connections", "64", "--timeout", "500ms"])
        .output()
        .unwrap();
    let r: LoadResult = last(&String::from_utf8(out.stdout).unwrap());
    check_sum(&r);
    assert!(failed(&r, |_, c| c == Cause::Errno(Errno::Emfile)) > 0, "{:?}", r.failures);
    assert_eq!(failed(&r, |_, c| c == Cause::Errno(Errno::Econnreset)), 0);
}

/// The server is killed and comes back: the accounts hold, and the load is back
/// within a second.
#[test]
fn recovers_within_a_second() {
    if !privileged("recovers_within_a_second") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let serve = ns.serve();
    let mut churn =
        ns.start("churn --target http://127.0.0.1:8080/ --rate 500 --timeout 500ms", &out);
    std::thread::sleep(Duration::from_millis(1200));
    drop(serve);
    std::thread::sleep(Duration::from_millis(800));
    let _serve = ns.serve();
    let back = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    std::thread::sleep(Duration::from_millis(3500));
    churn.signal("TERM");
    assert_eq!(churn.wait(Duration::from_secs(2)), 0);
    let r: LoadResult = last(&std::fs::read_to_string(&out).unwrap());
    check_sum(&r);
    assert!(failed(&r, |_, c| c == Cause::Errno(Errno::Econnrefused)) > 100, "{:?}", r.failures);
    let whole = r.series.points.iter().find(|p| p.at == back + 2).unwrap();
    assert_eq!(whole.failed, 0, "{:?}", r.series);
    assert!(whole.ok >= 450, "{:?}", r.series);
}

/// With --linger the result is out before the program ends, which another signal does.
#[test]
fn lingers_after_its_result() {
    if !privileged("lingers_after_its_result") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut churn =
        ns.start("churn --target tcp://127.0.0.1:8080 --rate 50 --linger 1h --log json", &out);
    let text = || std::fs::read_to_string(&out).unwrap();
    wait_for("the first event", || !text().is_empty());
    churn.signal("TERM");
    wait_for("the result", || text().contains("\"ended_by\":\"sigterm\""));
    check_sum(&last::<LoadResult>(&text()));
    assert!(churn.0.try_wait().unwrap().is_none(), "ended with its result");
    churn.signal("TERM");
    assert_eq!(churn.wait(Duration::from_secs(2)), 0);
}

/// A name that has no address yet, as a Service's just after its creation, is asked for again;
/// without --resolve-timeout it is wrong usage at once.
#[test]
fn a_name_may_come_late() {
    if !privileged("a_name_may_come_late") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    let dir = tempfile::tempdir().unwrap();
    let (hosts, out) = (dir.path().join("hosts"), dir.path().join("out"));
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let start = |options: &str| {
        let line = format!(
            "mount --bind {} /etc/hosts && exec {} churn --target tcp://late.invalid:8080 --connections 3 {options}",
            hosts.display(),
            common::BIN
        );
        let mut c = ns.command("unshare");
        c.args(["--mount", "sh", "-c", &line]);
        c.stdout(std::fs::File::create(&out).unwrap()).stderr(std::process::Stdio::null());
        common::Running(c.spawn().unwrap())
    };
    assert_eq!(start("").wait(Duration::from_secs(5)), 2);
    let mut waiting = start("--resolve-timeout 1h");
    std::thread::sleep(Duration::from_millis(600));
    assert!(waiting.0.try_wait().unwrap().is_none(), "ended before the name was there");
    // In place: the file is mounted.
    std::fs::write(&hosts, "127.0.0.1 localhost late.invalid\n").unwrap();
    assert_eq!(waiting.wait(Duration::from_secs(5)), 0);
    assert_eq!(last::<LoadResult>(&std::fs::read_to_string(&out).unwrap()).ok, 3);
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let mut given_up = start("--resolve-timeout 1h");
    std::thread::sleep(Duration::from_millis(300));
    given_up.signal("TERM");
    assert_eq!(given_up.wait(Duration::from_secs(2)), 2);
}

/// SIGTERM ends a run whose connections all hang, with a full result, within 2 s.
#[test]
fn sigterm_ends_within_two_seconds() {
    if !privileged("sigterm_ends_within_two_seconds") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let (out, file) = (dir.path().join("out"), dir.path().join("r.json"));
    ns.server(81, |mut s| {
        let _ = common::read_line(&mut s);
        std::thread::sleep(Duration::from_secs(60));
    });
    let args = format!(
        "churn --target http://127.0.0.1:81/ --concurrency 20 --timeout 60s --output {}",
        file.display()
    );
    let mut churn = ns.start(&args, &out);
    wait_for("20 connections", || {
        ns.sh("ss -Htn state established dport = :81").lines().count() >= 20
    });
    let at = Instant::now();
    churn.signal("TERM");
    churn.wait(Duration::from_secs(2));
    assert!(at.elapsed() < Duration::from_secs(2));
    let r: LoadResult = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    check_sum(&r);
    assert_eq!(r, last(&std::fs::read_to_string(&out).unwrap()));
    assert_eq!(r.run.ended_by, canary_record::names::EndedBy::Sigterm);
    assert_eq!(failed(&r, |p, c| p == "receive" && c == Cause::Interrupted), 20);
}

/// Connections leave from every address named, by turns.
#[test]
fn several_source_addresses() {
    if !privileged("several_source_addresses") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    for n in 2..5 {
        ns.rule(&format!("ip saddr 127.0.0.{n} tcp flags & (syn | ack) == syn counter"));
    }
    let r = ns.run("churn --target tcp://127.0.0.1:8080 --connections 300 --source-ip 127.0.0.2,127.0.0.3,127.0.0.4").result;
    assert_eq!(r.ok, 300);
    assert_eq!(ns.counted(), [100, 100, 100]);
}

/// A server that pauses for 300 ms makes the latencies of an open loop show the
/// pause for every connection that was due meanwhile (no coordinated omission).
#[test]
fn a_pause_shows_in_an_open_loop() {
    if !privileged("a_pause_shows_in_an_open_loop") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let serve = ns.serve();
    let mut churn = ns.start(
        "churn --target http://127.0.0.1:8080/ --rate 400 --duration 2s --concurrency 4 --workers 2",
        &out,
    );
    std::thread::sleep(Duration::from_millis(700));
    serve.signal("STOP");
    std::thread::sleep(Duration::from_millis(500));
    serve.signal("CONT");
    churn.wait(Duration::from_secs(5));
    let r: LoadResult = last(&std::fs::read_to_string(&out).unwrap());
    check_sum(&r);
    // 4 connections were in progress; some 200 were due during the pause.
    assert_eq!(r.attempts, 800);
    assert!(r.total_latency.p90_us > 100_000, "{}", r.total_latency.p90_us);
}
