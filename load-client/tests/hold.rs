//! hold over real sockets.

mod common;

use std::time::Duration;

use canary_common::outcome::Errno;
use canary_common::result::load::{Cause, LoadResult};
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
