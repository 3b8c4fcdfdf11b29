//! The state machine under arbitrary segments. `BOOM_CASES` says how many runs
//! (5,000 unless told; `make properties`, part of `make test`, runs a million).

#[path = "support/drive.rs"]
mod drive;

use proptest::prelude::*;
use proptest::test_runner::Config;

fn cases() -> u32 {
    std::env::var("BOOM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000)
}

/// Handshakes often enough that the later states are reached.
fn step() -> impl Strategy<Value = [u8; 10]> {
    let syn = any::<[u8; 10]>().prop_map(|mut s| {
        s[2] = 2;
        s[3] = 0;
        s[0] &= 0x3f;
        s
    });
    let ack = any::<[u8; 10]>().prop_map(|mut s| {
        s[2] = 16;
        s[3] = 1;
        s[0] &= 0x3f;
        s
    });
    let rst = any::<[u8; 10]>().prop_map(|mut s| {
        s[2] = 4 | (s[2] & 16);
        s[0] &= 0x3f;
        s
    });
    prop_oneof![2 => syn, 3 => ack, 1 => rst, 2 => any::<[u8; 10]>()]
}

proptest! {
    #![proptest_config(Config { cases: cases(), failure_persistence: None, ..Config::default() })]

    /// Whatever comes, in whatever order: every forged segment is judged once, a
    /// leak needs its RST, dropped needs the probe, the table is bounded and empties.
    #[test]
    fn arbitrary_segments_break_no_rule(steps in proptest::collection::vec(step(), 0..24)) {
        let bytes = steps.concat();
        prop_assert_eq!(drive::drive(&bytes), Ok(()));
    }
}

/// The fuzzers' corpus holds on every change, without a fuzzer.
#[test]
fn the_corpus_holds() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/flow");
    let mut runs = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(drive::drive(&std::fs::read(&path).unwrap()), Ok(()), "{}", path.display());
        runs += 1;
    }
    assert!(runs >= 8);
}
