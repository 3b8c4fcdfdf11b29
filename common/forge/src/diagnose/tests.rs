use super::*;
use canary_record::names::UnknownReason;
use proptest::prelude::*;

const CONTEXT: Context = Context {
    min_forged: 20,
    direction: Direction::ServerToClient,
    called_here: 0,
    called_elsewhere: 0,
    handshakes: 50,
};

/// (forgery, leaked, delivered, dropped)
type Cell = (Forgery, u64, u64, u64);

fn rows(cells: &[Cell]) -> Vec<OutcomeCount> {
    let row = |&(forgery, leaked, delivered, dropped): &Cell| OutcomeCount {
        forgery,
        family: Family::Ipv4,
        class: ClientClass::Pod,
        forged: leaked + delivered + dropped,
        counts: Counts { leaked, delivered, dropped, ..Counts::default() },
    };
    cells.iter().map(row).collect()
}

fn one(cells: &[Cell]) -> PathDiagnosis {
    paths(&rows(cells), &CONTEXT).remove(0)
}

use Forgery::{AboveWindow, AckAhead, BelowWindow, Control, NoFlags, SynFin};

/// An unprotected node since Linux 6.1, as measured.
#[test]
fn unprotected() {
    let d = one(&[(Control, 0, 50, 0), (BelowWindow, 0, 50, 0), (AboveWindow, 50, 0, 0)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Unprotected, Verdict::Vulnerable));
    assert_eq!(d.old_segments, OldSegments::Ignored);
    assert_eq!((d.judged, d.leaked), (50, 50));
}

/// Before Linux 6.1 what lies below the window leaks too.
#[test]
fn a_kernel_before_6_1() {
    let d = one(&[(BelowWindow, 50, 0, 0), (AboveWindow, 50, 0, 0)]);
    assert_eq!(d.old_segments, OldSegments::Invalid);
    assert_eq!((d.judged, d.leaked), (100, 100));
}

/// INVALID dropped on the path.
#[test]
fn dropped() {
    let d = one(&[
        (Control, 0, 50, 0),
        (BelowWindow, 0, 50, 0),
        (AboveWindow, 0, 0, 50),
        (SynFin, 0, 0, 50),
    ]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Dropped, Verdict::Protected));
    assert_eq!(d.old_segments, OldSegments::Ignored);
}

/// be_liberal alone leaks bad flags, and is vulnerable once those are tried.
#[test]
fn bad_flags_leak_where_the_window_is_not_checked() {
    let d = one(&[(AboveWindow, 0, 50, 0)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Delivered, Verdict::Protected));
    assert!(d.reasons.iter().any(|r| r.contains("bad flags were not tried")), "{:?}", d.reasons);
    let d = one(&[(AboveWindow, 0, 50, 0), (SynFin, 50, 0, 0)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Partly, Verdict::Vulnerable));
    assert_eq!(d.old_segments, OldSegments::NotShown);
}

/// Bad flags dropped where the window is not checked: be_liberal and a drop, or a firewall.
#[test]
fn bad_flags_dropped() {
    let d = one(&[(BelowWindow, 0, 50, 0), (AboveWindow, 0, 50, 0), (SynFin, 0, 0, 50)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::BadFlagsDropped, Verdict::Protected));
    assert_eq!(d.old_segments, OldSegments::NotShown);
}

/// Where even bad flags arrive, the address that the client called tells whether something
/// translates; without it the facts have no name.
#[test]
fn what_arrives_is_named_by_the_address_called() {
    let all = rows(&[(AboveWindow, 0, 50, 0), (SynFin, 0, 50, 0)]);
    for (called_here, called_elsewhere, named) in [
        (50, 0, Diagnosis::NotTranslated),
        (0, 50, Diagnosis::TranslatedUnchecked),
        (0, 0, Diagnosis::Delivered),
        (25, 25, Diagnosis::Delivered),
    ] {
        let d = &paths(&all, &Context { called_here, called_elsewhere, ..CONTEXT })[0];
        assert_eq!((d.diagnosis, d.verdict), (named, Verdict::Protected));
    }
}

/// be_liberal is named only where `no-flags` leaks: a flowtable passes that on.
#[test]
fn a_flowtable_is_told_from_be_liberal() {
    let window = (AboveWindow, 0, 50, 0);
    let d = one(&[window, (SynFin, 50, 0, 0), (NoFlags, 50, 0, 0)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Liberal, Verdict::Vulnerable));
    let d = one(&[window, (SynFin, 50, 0, 0)]);
    assert_eq!(d.diagnosis, Diagnosis::Partly, "no-flags was not tried");
    let d = one(&[window, (SynFin, 50, 0, 0), (NoFlags, 0, 0, 50)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Flowtable, Verdict::Vulnerable));
}

/// A leaked control, an answer to what has no flags, a leak where nothing translates: each
/// contradicts every other reading.
#[test]
fn contradictions_forbid_a_verdict() {
    let protected = [(Control, 0, 50, 0), (AboveWindow, 0, 0, 50)];
    assert_eq!(one(&protected).verdict, Verdict::Protected);
    for (cells, word) in [
        ([(Control, 1, 49, 0), (AboveWindow, 0, 0, 50)].to_vec(), "control"),
        ([(Control, 1, 49, 0), (AboveWindow, 50, 0, 0)].to_vec(), "control"),
        ([protected[0], protected[1], (NoFlags, 0, 1, 49)].to_vec(), "without any flag"),
    ] {
        let d = one(&cells);
        assert_eq!(d.verdict, Verdict::Inconclusive);
        assert!(d.reasons[0].contains(word), "{:?}", d.reasons);
    }
    let mut leaked = rows(&[(Control, 0, 50, 0), (AboveWindow, 50, 0, 0)]);
    let here = Context { called_here: 50, ..CONTEXT };
    assert_eq!(paths(&leaked, &here)[0].verdict, Verdict::Inconclusive);
    // A masqueraded path has a node to leak to, whatever address was called.
    leaked[1].counts.leaked_to_node = 50;
    let d = &paths(&leaked, &here)[0];
    assert_eq!(d.verdict, Verdict::Vulnerable);
    assert!(d.reasons[0].contains("addressed to a node") && d.reasons[1].contains("INPUT"));
}

/// One client that called the pod's own address says nothing of the others, which were killed before
/// they could say what they had called.
#[test]
fn a_caller_of_the_pod_does_not_clear_the_service() {
    let leaked = rows(&[(Control, 0, 50, 0), (AboveWindow, 50, 0, 0)]);
    let d = &paths(&leaked, &Context { called_here: 1, ..CONTEXT })[0];
    assert_eq!(d.verdict, Verdict::Vulnerable, "{:?}", d.reasons);
    // Nor does it name what it met.
    let arrived = rows(&[(AboveWindow, 0, 50, 0), (SynFin, 0, 50, 0)]);
    let d = &paths(&arrived, &Context { called_here: 1, ..CONTEXT })[0];
    assert_eq!(d.diagnosis, Diagnosis::Delivered);
}

/// What a node rejects never reached the client, and ends connections all the same.
#[test]
fn a_reject_is_no_leak_and_no_protection() {
    let mut all = rows(&[(Control, 0, 50, 0), (AboveWindow, 0, 0, 0)]);
    all[1].counts.rejected = 50;
    let d = &paths(&all, &CONTEXT)[0];
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Rejected, Verdict::Vulnerable));
    assert!(d.reasons.iter().all(|r| !r.contains("reached the client")), "{:?}", d.reasons);
    assert!(d.reasons[0].contains(RISK));
}

/// The original's forgery alone shows nothing on a new kernel: never protected.
#[test]
fn below_window_alone_proves_nothing() {
    let d = one(&[(Control, 0, 50, 0), (BelowWindow, 0, 50, 0)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Inconclusive, Verdict::Inconclusive));
    assert_eq!(d.judged, 0);
    assert!((d.leak_rate_upper_95 - 1.0).abs() < f64::EPSILON);
}

/// Silence to everything may be a broken path: without a control nothing is protected.
#[test]
fn protected_needs_the_control() {
    let d = one(&[(AboveWindow, 0, 0, 50)]);
    assert_eq!(d.verdict, Verdict::Inconclusive);
    assert!(d.reasons[0].contains("positive control"), "{:?}", d.reasons);
}

/// An overshoot that reset connections through a poisoned entry makes the path vulnerable.
#[test]
fn a_poisoned_entry_is_a_vulnerable_path() {
    let mut all = rows(&[(Control, 0, 50, 0), (Forgery::Overshoot, 0, 50, 0)]);
    assert_eq!(paths(&all, &CONTEXT)[0].verdict, Verdict::Inconclusive);
    all[1].counts.killed_later = 3;
    let d = &paths(&all, &CONTEXT)[0];
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Unprotected, Verdict::Vulnerable));
    assert!(d.reasons[0].ends_with("3 of 50 connections were reset"), "{:?}", d.reasons);
}

/// Each class of clients and each family has a diagnosis and a bound of its own: a
/// protected one lends nothing to a masqueraded one.
#[test]
fn classes_and_families_are_told_apart() {
    let mut all = Vec::new();
    for (class, family, cells) in [
        (ClientClass::Pod, Family::Ipv4, [(Control, 0, 9, 0), (AboveWindow, 0, 0, 1000)]),
        (ClientClass::Pod, Family::Ipv6, [(Control, 0, 9, 0), (AboveWindow, 0, 0, 20)]),
        (ClientClass::Node, Family::Ipv4, [(Control, 0, 9, 0), (AboveWindow, 50, 0, 0)]),
        (ClientClass::Outside, Family::Ipv4, [(Control, 0, 9, 0), (AboveWindow, 0, 1000, 0)]),
    ] {
        let rows = rows(&cells).into_iter();
        all.extend(rows.map(|row| OutcomeCount { class, family, ..row }));
    }
    let found: Vec<_> = paths(&all, &CONTEXT)
        .iter()
        .map(|p| (p.class, p.family, p.diagnosis, (p.leak_rate_upper_95 * 1e4).round() as u32))
        .collect();
    assert_eq!(
        found,
        [
            (ClientClass::Pod, Family::Ipv4, Diagnosis::Dropped, 30),
            (ClientClass::Node, Family::Ipv4, Diagnosis::Unprotected, 10_000),
            (ClientClass::Outside, Family::Ipv4, Diagnosis::Delivered, 30),
            (ClientClass::Pod, Family::Ipv6, Diagnosis::Dropped, 1391),
        ]
    );
}

/// Too few are too few.
#[test]
fn protected_needs_enough() {
    let d = one(&[(Control, 0, 50, 0), (AboveWindow, 0, 0, 19)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Dropped, Verdict::Inconclusive));
}

/// The silence of no-flags tells nothing, its leak does.
#[test]
fn no_flags_counts_only_when_it_leaks() {
    let d = one(&[(Control, 0, 50, 0), (NoFlags, 0, 0, 50)]);
    assert_eq!(d.diagnosis, Diagnosis::Inconclusive);
    let d = one(&[(Control, 0, 50, 0), (NoFlags, 1, 0, 49)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Partly, Verdict::Vulnerable));
}

/// The safe set finds the fault, and says what it stands for.
#[test]
fn the_safe_set_finds_the_fault() {
    let d = one(&[(Control, 0, 50, 0), (AckAhead, 50, 0, 0)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Unprotected, Verdict::Vulnerable));
    assert_eq!((d.judged, d.leaked), (0, 0));
    let d = one(&[(Control, 0, 50, 0), (AckAhead, 0, 0, 50)]);
    assert_eq!((d.diagnosis, d.verdict), (Diagnosis::Dropped, Verdict::Inconclusive));
}

/// One bad path is enough, one unproved path keeps from 'protected', none is nothing.
#[test]
fn the_worst_path_decides() {
    let mut all = rows(&[(BelowWindow, 0, 50, 0), (AboveWindow, 0, 0, 50)]);
    assert_eq!(overall(&paths(&all, &CONTEXT), &[]), Verdict::Protected);
    let doubt = ["segments were lost".to_owned()];
    assert_eq!(overall(&paths(&all, &CONTEXT), &doubt), Verdict::Inconclusive);
    let mut other = rows(&[(AboveWindow, 0, 0, 50)]);
    other[0].family = Family::Ipv6;
    other[0].counts.unknown.insert(UnknownReason::ClosedEarly, 3);
    all.append(&mut other);
    assert_eq!(overall(&paths(&all, &CONTEXT), &[]), Verdict::Inconclusive);
    all[2].counts.leaked = 1;
    assert_eq!(overall(&paths(&all, &CONTEXT), &[]), Verdict::Vulnerable);
    assert_eq!(overall(&[], &[]), Verdict::Inconclusive);
}

/// The exact bound: the rule of three in the limit, and values of R's binom.test
/// (alternative "less") for others.
#[test]
fn the_bound_is_exact() {
    for (k, n, bound) in [
        (0, 1, 0.95),
        (0, 20, 0.139_108),
        (0, 1000, 0.002_991_25),
        (1, 10, 0.394_163),
        (5, 10, 0.777_559),
        (50, 50, 1.0),
        (0, 0, 1.0),
    ] {
        assert!((upper_95(k, n) - bound).abs() < 1e-5, "{k} of {n}: {}", upper_95(k, n));
    }
}

/// The same bound by the sum over every term.
fn by_the_whole_sum(k: u64, n: u64) -> f64 {
    let at_most = |p: f64| {
        let mut log_term = n as f64 * (1.0 - p).ln();
        (0..=k).fold(0.0, |sum, i| {
            let term = log_term.exp();
            log_term += ((n - i) as f64 / (i + 1) as f64).ln() + p.ln() - (1.0 - p).ln();
            sum + term
        })
    };
    let (mut low, mut high) = (k as f64 / n as f64, 1.0);
    for _ in 0..60 {
        let mid = f64::midpoint(low, high);
        if at_most(mid) > 0.05 { low = mid } else { high = mid }
    }
    high
}

proptest! {
    /// The terms that are left out do not change it.
    #[test]
    fn the_bound_is_that_of_the_whole_sum(n in 2u64..600, part in 0.0..1.0) {
        let k = 1 + ((n - 2) as f64 * part) as u64;
        let (bound, whole) = (upper_95(k, n), by_the_whole_sum(k, n));
        prop_assert!((bound - whole).abs() < 1e-9, "{} of {}: {} {}", k, n, bound, whole);
    }
}

/// Of millions of judgements the bound is the normal one in the limit.
#[test]
fn the_bound_of_millions() {
    let (k, n) = (4_000_000, 12_000_000);
    let bound = upper_95(k, n);
    let p = k as f64 / n as f64;
    let normal = p + 1.644_854 * (p * (1.0 - p) / n as f64).sqrt();
    assert!((bound - normal).abs() < 1e-6, "{bound} {normal}");
}
