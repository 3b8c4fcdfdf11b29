//! hold over real sockets.

mod common;

use std::time::Duration;

use canary_record::names::Errno;
use canary_record::result::load::{Cause, LoadResult};
use common::{Ns, check_sum, failed, last, privileged, wait_for};

fn established(ns: &Ns) -> usize {
    ns.sh("ss -Htn state established dport = :8080").lines().count()
}

/// As many as asked for are held, talked on, and closed in order at the end.
#[test]
fn holds_and_talks() {
    if !privileged("holds_and_talks") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    let ran = ns
        .run("hold --target tcp://127.0.0.1:8080 --connections 200 --duration 2s --interval 300ms");
    let h = ran.result.hold.unwrap();
    assert_eq!((ran.code, ran.result.attempts, ran.result.ok), (0, 200, 200));
    assert_eq!((h.wanted, h.most_open, h.open_at_end, h.lost, h.replaced), (200, 200, 200, 0, 0));
    assert!(h.exchanges >= 600, "{}", h.exchanges);
}

/// When the server dies every connection is lost, in a class; when it is back
/// every place is filled again.
#[test]
fn replaces_what_is_lost() {
    if !privileged("replaces_what_is_lost") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let serve = ns.serve();
    let mut hold =
        ns.start("hold --target tcp://127.0.0.1:8080 --connections 100 --interval 200ms", &out);
    wait_for("100 connections", || established(&ns) == 100);
    drop(serve);
    wait_for("their loss", || established(&ns) == 0);
    let _serve = ns.serve();
    wait_for("100 new ones", || established(&ns) == 100);
    hold.signal("TERM");
    assert_eq!(hold.wait(Duration::from_secs(2)), 10, "lost>0 is the default threshold");
    let r: LoadResult = last(&std::fs::read_to_string(&out).unwrap());
    check_sum(&r);
    let h = r.hold.unwrap();
    // A dying server may still take some of the first replacements with it.
    assert!((100..200).contains(&h.lost), "{}", h.lost);
    assert_eq!((h.replaced, h.most_open, h.open_at_end), (h.lost, 100, 100));
    let lost = failed(&r, |p, c| p != "connect" && c != Cause::Interrupted);
    assert_eq!(lost, h.lost, "{:?}", r.failures);
}

/// A reset and a silence each have their own class.
#[test]
fn resets_and_silence_are_told_apart() {
    if !privileged("resets_and_silence_are_told_apart") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let _serve = ns.serve();
    let mut hold = ns.start(
        "hold --target tcp://127.0.0.1:8080 --connections 50 --interval 200ms --timeout 300ms --duration 2500ms",
        &out,
    );
    wait_for("50 connections", || established(&ns) == 50);
    ns.rule("ip daddr 127.0.0.1 tcp dport 8080 tcp flags & psh == psh numgen inc mod 2 == 0 reject with tcp reset");
    ns.rule("ip daddr 127.0.0.1 tcp dport 8080 tcp flags & psh == psh drop");
    assert_eq!(hold.wait(Duration::from_secs(10)), 10);
    let text = std::fs::read_to_string(&out).unwrap();
    let r: LoadResult = last(&text);
    check_sum(&r);
    let resets = failed(&r, |_, c| c == Cause::Errno(Errno::Econnreset));
    let stalls = failed(&r, |p, c| p == "receive" && c == Cause::Stall);
    assert!(resets >= 20 && stalls >= 10, "{:?}", r.failures);
    assert!(text.contains("Connection reset by peer"));
}

/// A target that accepts and never answers proves nothing: the exchanges that the end of the run
/// cuts short are neither well ended nor lost.
#[test]
fn a_silent_target_proves_nothing() {
    if !privileged("a_silent_target_proves_nothing") {
        return;
    }
    let ns = Ns::new();
    ns.server(81, |_s| std::thread::sleep(Duration::from_secs(60)));
    let ran = ns.run("hold --target tcp://127.0.0.1:81 --connections 20 --interval 10ms --timeout 60s --duration 500ms");
    let cut = failed(&ran.result, |p, c| p == "receive" && c == Cause::Interrupted);
    let h = ran.result.hold.unwrap();
    assert_eq!((ran.code, cut, ran.result.ok), (11, 20, 0), "{:?}", ran.result.failures);
    assert_eq!((h.most_open, h.exchanges, h.lost), (20, 0, 0));
}

/// An exchange under way when the run ends is answered first.
#[test]
fn the_end_waits_for_answers() {
    if !privileged("the_end_waits_for_answers") {
        return;
    }
    let ns = Ns::new();
    ns.server(81, |mut s| {
        loop {
            let line = common::read_line(&mut s);
            std::thread::sleep(Duration::from_millis(200));
            common::write(&mut s, line.as_bytes());
        }
    });
    let r = ns
        .run("hold --target tcp://127.0.0.1:81 --connections 5 --interval 10ms --duration 500ms")
        .result;
    assert_eq!((r.ok, r.hold.unwrap().lost), (5, 0), "{:?}", r.failures);
}

/// However many places there are, handshakes that fail are no busy loop: refused ones are as
/// many as may be under way at once, and a limit of this host is met once for all places.
#[test]
fn failing_handshakes_are_no_busy_loop() {
    if !privileged("failing_handshakes_are_no_busy_loop") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    let ran = ns.run("hold --target tcp://127.0.0.1:9 --connections 5000 --duration 1200ms");
    let attempts = ran.result.attempts;
    assert!((512..=3 * 512).contains(&attempts), "{attempts}");
    let out = ns
        .command("prlimit")
        .args(["--nofile=40:40", common::BIN, "hold", "--target", "tcp://127.0.0.1:8080"])
        .args(["--connections", "500", "--duration", "1200ms"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(11), "fewer were held than asked for");
    let r: LoadResult = last(&String::from_utf8(out.stdout).unwrap());
    check_sum(&r);
    let limit = failed(&r, |_, c| c == Cause::Errno(Errno::Emfile));
    assert!((1..=3).contains(&limit) && r.ok > 10, "{:?}", r.failures);
}

/// A target that ends every connection at once is asked no more often than one that refuses.
#[test]
fn connections_lost_at_once_are_no_busy_loop() {
    if !privileged("connections_lost_at_once_are_no_busy_loop") {
        return;
    }
    let ns = Ns::new();
    ns.server(82, drop);
    let r = ns.run("hold --target tcp://127.0.0.1:82 --connections 10 --duration 1200ms").result;
    assert!((20..=30).contains(&r.attempts), "{}", r.attempts);
    check_sum(&r);
}

/// An exchange that is late because the one before had no answer yet is counted from when it was
/// due (no coordinated omission).
#[test]
fn a_pause_shows_in_every_exchange_due_meanwhile() {
    if !privileged("a_pause_shows_in_every_exchange_due_meanwhile") {
        return;
    }
    let ns = Ns::new();
    ns.server(81, |mut s| {
        let mut pause = Duration::from_secs(1);
        loop {
            let line = common::read_line(&mut s);
            std::thread::sleep(std::mem::take(&mut pause));
            common::write(&mut s, line.as_bytes());
        }
    });
    let r = ns
        .run("hold --target tcp://127.0.0.1:81 --connections 1 --interval 100ms --duration 1500ms")
        .result;
    // Some 10 of 15 were due during the pause.
    assert!(r.total_latency.p50_us > 100_000, "{:?}", r.total_latency);
}
