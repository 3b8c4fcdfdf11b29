//! hold over real sockets.

use std::time::Duration;

use canary_record::names::Errno;
use canary_record::result::load::{Cause, LoadResult};
use canary_testbed::programs::document;
use canary_testbed::test::{Bed, wait_for};
use canary_testbed::topology::Topology;

use crate::accounts::{check_sum, end, failed, read_line, run, short_of_files, stop, write};

fn established(bed: &Bed) -> usize {
    bed.sh("host", "ss -Htn state established dport = :8080").lines().count()
}

/// As many as asked for are held, talked on, and closed in order at the end.
pub(crate) fn holds_and_talks() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let ran = run(
        &bed,
        "hold --target tcp://127.0.0.1:8080 --connections 200 --duration 2s --interval 300ms",
    );
    let h = ran.result.hold.unwrap();
    assert_eq!((ran.code(), ran.result.attempts, ran.result.ok), (0, 200, 200));
    assert_eq!((h.wanted, h.most_open, h.open_at_end, h.lost, h.replaced), (200, 200, 200, 0, 0));
    assert!(h.exchanges >= 600, "{}", h.exchanges);
}

/// When the server dies every connection is lost, in a class; when it is back
/// every place is filled again.
pub(crate) fn replaces_what_is_lost() {
    let bed = Bed::new(Topology::single);
    let serve = bed.serve("127.0.0.1:8080");
    let hold = bed.load("hold --target tcp://127.0.0.1:8080 --connections 100 --interval 200ms");
    wait_for("100 connections", || established(&bed) == 100);
    drop(serve);
    wait_for("their loss", || established(&bed) == 0);
    let _serve = bed.serve("127.0.0.1:8080");
    wait_for("100 new ones", || established(&bed) == 100);
    let ended = stop(hold);
    assert_eq!(ended.code(), 10, "lost>0 is the default threshold");
    let r = ended.result;
    let h = r.hold.unwrap();
    // A dying server may still take some of the first replacements with it.
    assert!((100..200).contains(&h.lost), "{}", h.lost);
    assert_eq!((h.replaced, h.most_open, h.open_at_end), (h.lost, 100, 100));
    let lost = failed(&r, |p, c| p != "connect" && c != Cause::Interrupted);
    assert_eq!(lost, h.lost, "{:?}", r.failures);
}

/// A reset and a silence each have their own class.
pub(crate) fn resets_and_silence_are_told_apart() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let hold = bed.load(
        "hold --target tcp://127.0.0.1:8080 --connections 50 --interval 200ms --timeout 300ms --duration 2500ms",
    );
    wait_for("50 connections", || established(&bed) == 50);
    bed.rule("host", "ip daddr 127.0.0.1 tcp dport 8080 tcp flags & psh == psh numgen inc mod 2 == 0 reject with tcp reset");
    bed.rule("host", "ip daddr 127.0.0.1 tcp dport 8080 tcp flags & psh == psh drop");
    let ended = end(hold);
    assert_eq!(ended.code(), 10);
    let (r, text) = (ended.result, ended.text);
    let resets = failed(&r, |_, c| c == Cause::Errno(Errno::Econnreset));
    let stalls = failed(&r, |p, c| p == "receive" && c == Cause::Stall);
    assert!(resets >= 20 && stalls >= 10, "{:?}", r.failures);
    assert!(text.contains("Connection reset by peer"));
}

/// A target that accepts and never answers proves nothing: the exchanges that the end of the run
/// cuts short are neither well ended nor lost.
pub(crate) fn a_silent_target_proves_nothing() {
    let bed = Bed::new(Topology::single);
    bed.server("host", 81, |_s| std::thread::sleep(Duration::from_secs(60)));
    let ran = run(
        &bed,
        "hold --target tcp://127.0.0.1:81 --connections 20 --interval 10ms --timeout 60s --duration 500ms",
    );
    let cut = failed(&ran.result, |p, c| p == "receive" && c == Cause::Interrupted);
    let h = ran.result.hold.unwrap();
    assert_eq!((ran.code(), cut, ran.result.ok), (11, 20, 0), "{:?}", ran.result.failures);
    assert_eq!((h.most_open, h.exchanges, h.lost), (20, 0, 0));
}

/// An exchange under way when the run ends is answered first.
pub(crate) fn the_end_waits_for_answers() {
    let bed = Bed::new(Topology::single);
    bed.server("host", 81, |mut s| {
        loop {
            let line = read_line(&mut s);
            std::thread::sleep(Duration::from_millis(200));
            write(&mut s, line.as_bytes());
        }
    });
    let r = run(
        &bed,
        "hold --target tcp://127.0.0.1:81 --connections 5 --interval 10ms --duration 500ms",
    )
    .result;
    assert_eq!((r.ok, r.hold.unwrap().lost), (5, 0), "{:?}", r.failures);
}

/// However many places there are, handshakes that fail are no busy loop: refused ones are as
/// many as may be under way at once, and a limit of this host is met once for all places.
pub(crate) fn failing_handshakes_are_no_busy_loop() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let ran = run(&bed, "hold --target tcp://127.0.0.1:9 --connections 5000 --duration 1200ms");
    let attempts = ran.result.attempts;
    assert!((512..=3 * 512).contains(&attempts), "{attempts}");
    let words = "hold --target tcp://127.0.0.1:8080 --connections 500 --duration 1200ms";
    let out = short_of_files(&bed, 40, words);
    assert_eq!(out.status.code(), Some(11), "fewer were held than asked for");
    let r: LoadResult = document(&out.stdout).unwrap();
    check_sum(&r);
    let limit = failed(&r, |_, c| c == Cause::Errno(Errno::Emfile));
    assert!((1..=3).contains(&limit) && r.ok > 10, "{:?}", r.failures);
}

/// A target that ends every connection at once is asked no more often than one that refuses.
pub(crate) fn connections_lost_at_once_are_no_busy_loop() {
    let bed = Bed::new(Topology::single);
    bed.server("host", 82, drop);
    let r = run(&bed, "hold --target tcp://127.0.0.1:82 --connections 10 --duration 1200ms").result;
    assert!((20..=30).contains(&r.attempts), "{}", r.attempts);
    check_sum(&r);
}

/// An exchange that is late because the one before had no answer yet is counted from when it was
/// due (no coordinated omission).
pub(crate) fn a_pause_shows_in_every_exchange_due_meanwhile() {
    let bed = Bed::new(Topology::single);
    bed.server("host", 81, |mut s| {
        let mut pause = Duration::from_secs(1);
        loop {
            let line = read_line(&mut s);
            std::thread::sleep(std::mem::take(&mut pause));
            write(&mut s, line.as_bytes());
        }
    });
    let r = run(
        &bed,
        "hold --target tcp://127.0.0.1:81 --connections 1 --interval 100ms --duration 1500ms",
    )
    .result;
    // Some 10 of 15 were due during the pause.
    assert!(r.total_latency.p50_us > 100_000, "{:?}", r.total_latency);
}
