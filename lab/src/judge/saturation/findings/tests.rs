use std::collections::BTreeMap;

use canary_record::result::observe::ConntrackCounters;
use canary_record::result::witness::{InTable, WitnessResult};

use super::*;
use crate::document::timeline::Step;
use crate::judge::witness::tests::silent;
use crate::observed::saturation::{Captured, Heard};

fn step(kind: Kind) -> Shown {
    Shown {
        kind,
        limit: 1000,
        peak: 1000,
        forged: 10,
        above: [(Outcome::Leaked, 5)].into(),
        attributed: 5,
        lost: 0,
        step: Step {
            new_attempts: 1100,
            new_failures: [(FailureClass::ConnectTimeout, 100)].into(),
            established: [(ProbeEnd::Survived, 40)].into(),
            conntrack: ConntrackCounters {
                drop: 300,
                early_drop: 2,
                ..ConntrackCounters::default()
            },
            ..Step::default()
        },
    }
}

fn evicted(case: Case) -> Evicted {
    let lost = if case == Case::NearlyFull { 0 } else { 60 };
    Evicted {
        case,
        limit: 1000,
        most: 1000,
        least: 940,
        refused: 3,
        half_closed: [(ProbeEnd::Reset, lost), (ProbeEnd::Survived, 60 - lost)].into(),
        established: [(ProbeEnd::Survived, 40)].into(),
        captured: Captured { untranslated: lost, resets: lost, lost: None },
        after_s: None,
    }
}

fn half_open(case: OnItsWay) -> HalfOpen {
    let (late, reset) = match case {
        OnItsWay::SynAck => (20, 0),
        OnItsWay::Ack => (0, 20),
        OnItsWay::AckProtected => (0, 0),
    };
    HalfOpen {
        case,
        alone: [(ProbeEnd::Survived, 60)].into(),
        ends: [(ProbeEnd::Survived, 60 - reset), (ProbeEnd::Reset, reset)].into(),
        late,
        others: 100,
        early: 45,
        captured: Captured { untranslated: 30, resets: 30, lost: None },
    }
}

/// The smallest and the biggest with few entries, whose packets a second are `big`, and two full ones.
fn tables(big: f64) -> Vec<TableSpeed> {
    let table = |series, buckets, packets_per_second, memory| TableSpeed {
        series,
        buckets,
        entries: if buckets == 2000 { 2000 } else { 1000 },
        packets_per_second,
        connections_per_second: 10.0,
        memory,
    };
    vec![
        table(TableSeries::FewEntries, 1000, 100.0, None),
        table(TableSeries::FewEntries, 4000, big, None),
        table(TableSeries::Full, 1000, 90.0, Some(100_000)),
        table(TableSeries::Full, 2000, 90.0, Some(428_000)),
        table(TableSeries::FewerBuckets, 100, 50.0, None),
    ]
}

/// A witness that tells of the full table what the counters do.
fn heard() -> Heard {
    let conntrack = ConntrackCounters { drop: 300, ..ConntrackCounters::default() };
    Heard {
        place: "full".to_owned(),
        target: "198.19.0.10:80".to_owned(),
        witness: Ok(WitnessResult { table: InTable::of(&conntrack), ..silent() }),
        conntrack,
        killed: 0,
        unknown: 0,
        shows: vec![InTable::Full],
        resets: None,
    }
}

fn facts() -> Facts {
    let fine = |kind, peak| {
        let step = step(kind);
        Shown { peak, step: Step { new_failures: BTreeMap::new(), ..step.step.clone() }, ..step }
    };
    let reset = [(ProbeEnd::Reset, 40)].into();
    let mut expired = fine(Kind::Expiry, 40);
    expired.step.established = reset;
    Facts {
        steps: vec![
            fine(Kind::NoLoad, 10),
            step(Kind::Load),
            step(Kind::Full),
            step(Kind::FullLiberal),
            Shown {
                attributed: 0,
                above: [(Outcome::Delivered, 5)].into(),
                ..fine(Kind::Liberal, 10)
            },
            Shown { limit: 600, peak: 600, ..step(Kind::Smaller) },
            Shown { limit: 4000, ..fine(Kind::Bigger, 1100) },
            fine(Kind::Shorter, 300),
            expired,
            fine(Kind::ExpiryClient, 40),
        ],
        can_resize: true,
        can_hold: true,
        evicted: Case::ALL.iter().map(|c| evicted(*c)).collect(),
        half_open: OnItsWay::ALL.iter().map(|c| half_open(*c)).collect(),
        heard: vec![heard()],
        pace: vec![[Pace { octets: 100.0, cpu: 10.0, connects: 50.0, connect_cpu: 9.0 }; 2]; 9],
        turns: turns(&tables(100.0), 9),
        tables: tables(100.0),
    }
}

/// Pairs of rounds of the first two tables.
fn turns(tables: &[TableSpeed], n: usize) -> Vec<[TableSpeed; 2]> {
    vec![[tables[0], tables[1]]; n]
}

fn finding(facts: &Facts, claim: Claim) -> Finding {
    find(facts).into_iter().find(|(c, _)| *c == claim).unwrap().1.finding
}

/// What the usual numbers make of every claim.
#[test]
fn every_claim_has_its_finding() {
    use Finding::{DoesNotHold, Holds, HoldsForAnotherReason};
    let expected = [
        Holds,
        DoesNotHold,
        HoldsForAnotherReason,
        DoesNotHold,
        DoesNotHold,
        DoesNotHold,
        Holds,
        Holds,
        DoesNotHold,
        DoesNotHold,
        Holds,
        DoesNotHold,
        Holds,
        Holds,
        Holds,
        DoesNotHold,
        Holds,
        DoesNotHold,
        Holds,
        DoesNotHold,
    ];
    let found: Vec<_> = find(&facts()).into_iter().map(|(_, s)| s.finding).collect();
    assert_eq!(found, expected);
}

/// Other numbers turn each of them round.
#[test]
fn every_finding_can_be_otherwise() {
    use Finding::{DoesNotHold, Holds};
    type Change = fn(&mut Shown);
    let cases: [(Claim, Kind, Change, Finding); 10] = [
        (Claim::NewConnectionsTimeOut, Kind::Load, |s| s.step.conntrack.drop = 0, Holds),
        (
            Claim::NewConnectionsAreReset,
            Kind::Full,
            |s| {
                s.step.new_failures.insert(FailureClass::Reset, 1);
            },
            Holds,
        ),
        (
            Claim::EstablishedConnectionsAreLost,
            Kind::FullLiberal,
            |s| {
                s.step.established.insert(ProbeEnd::Hung, 1);
            },
            Holds,
        ),
        (Claim::LiberalFreesAFullTable, Kind::FullLiberal, |s| s.step.new_failures.clear(), Holds),
        (Claim::LiberalCuresTheResets, Kind::Liberal, |s| s.attributed = 1, DoesNotHold),
        (
            Claim::BiggerTableCures,
            Kind::Bigger,
            |s| {
                s.step.new_failures.insert(FailureClass::ConnectTimeout, 1);
            },
            DoesNotHold,
        ),
        (
            Claim::ShorterTimeoutsCure,
            Kind::Shorter,
            |s| {
                s.step.new_failures.insert(FailureClass::ConnectTimeout, 1);
            },
            DoesNotHold,
        ),
        (
            Claim::ShortTimeoutsResetIdleConnections,
            Kind::Expiry,
            |s| s.step.established = [(ProbeEnd::Survived, 40)].into(),
            DoesNotHold,
        ),
        (
            Claim::ShortTimeoutsResetIdleClients,
            Kind::ExpiryClient,
            |s| s.step.established = [(ProbeEnd::Reset, 40)].into(),
            Holds,
        ),
        (Claim::ResetsNeedLoad, Kind::NoLoad, |s| s.attributed = 0, Finding::NotShown),
    ];
    for (claim, kind, change, expected) in cases {
        let mut facts = facts();
        change(facts.steps.iter_mut().find(|s| s.kind == kind).unwrap());
        assert_eq!(finding(&facts, claim), expected, "{claim}");
    }
}

/// Connects that time out while conntrack refuses nothing had another cause: they decide no claim. A
/// reset does, whatever timed out beside it.
#[test]
fn a_timeout_that_conntrack_had_no_part_in_decides_nothing() {
    let cases: [(Claim, &[Kind]); 7] = [
        (Claim::NewConnectionsTimeOut, &[Kind::Load, Kind::Full, Kind::FullLiberal]),
        (Claim::NewConnectionsAreReset, &[Kind::Load, Kind::Full, Kind::FullLiberal]),
        (Claim::LiberalFreesAFullTable, &[Kind::FullLiberal]),
        (Claim::SmallerTableResets, &[Kind::Smaller]),
        (Claim::BiggerTableCures, &[Kind::Bigger]),
        (Claim::ShorterTimeoutsCure, &[Kind::Shorter]),
        (Claim::ShorterTimeoutsCure, &[Kind::Load]),
    ];
    for (claim, kinds) in cases {
        let mut facts = facts();
        for s in facts.steps.iter_mut().filter(|s| kinds.contains(&s.kind)) {
            s.step.new_failures.insert(FailureClass::ConnectTimeout, 1);
        }
        let decided = finding(&facts, claim);
        assert_ne!(decided, Finding::NotShown, "{claim}");
        for s in facts.steps.iter_mut().filter(|s| kinds.contains(&s.kind)) {
            s.step.conntrack.drop = 0;
        }
        let (_, said) = find(&facts).into_iter().find(|(c, _)| *c == claim).unwrap();
        assert_eq!(said.finding, Finding::NotShown, "{claim}");
        assert!(said.evidence.iter().any(|e| e.contains("another cause")), "{:?}", said.evidence);
    }
    let mut facts = facts();
    let bigger = facts.steps.iter_mut().find(|s| s.kind == Kind::Bigger).unwrap();
    bigger.step.new_failures.insert(FailureClass::ConnectTimeout, 1);
    (bigger.step.conntrack.drop, bigger.step.conntrack.chain_too_long) = (0, 1);
    assert_eq!(finding(&facts, Claim::BiggerTableCures), Finding::DoesNotHold);
    let smaller = facts.steps.iter_mut().find(|s| s.kind == Kind::Smaller).unwrap();
    smaller.step.conntrack.drop = 0;
    smaller.step.new_failures.insert(FailureClass::Reset, 1);
    assert_eq!(finding(&facts, Claim::SmallerTableResets), Finding::Holds);
}

/// be_liberal cures where segments above the window arrive, every one is known, and no RST can have
/// been lost; silence is no cure.
#[test]
fn silence_is_no_cure() {
    let of = |change: fn(&mut Shown)| {
        let mut facts = facts();
        change(facts.steps.iter_mut().find(|s| s.kind == Kind::Liberal).unwrap());
        finding(&facts, Claim::LiberalCuresTheResets)
    };
    assert_eq!(of(|_| ()), Finding::Holds);
    assert_eq!(of(|s| s.above.clear()), Finding::NotShown);
    let dropped = |s: &mut Shown| s.above = [(Outcome::Dropped, 5)].into();
    assert_eq!(of(dropped), Finding::NotShown);
    let unknown = |s: &mut Shown| {
        s.above.insert(Outcome::Unknown, 1);
    };
    assert_eq!(of(unknown), Finding::NotShown);
    assert_eq!(of(|s| s.lost = 1), Finding::NotShown);
    // An RST is no silence.
    assert_eq!(of(|s| (s.lost, s.attributed) = (1, 1)), Finding::DoesNotHold);
}

/// What takes the load that filled the table is told by a table that the load did fill.
#[test]
fn a_cure_needs_a_table_that_was_full() {
    for claim in [Claim::BiggerTableCures, Claim::ShorterTimeoutsCure] {
        let mut facts = facts();
        assert_eq!(finding(&facts, claim), Finding::Holds, "{claim}");
        facts.steps.iter_mut().find(|s| s.kind == Kind::Load).unwrap().peak = 900;
        assert_eq!(finding(&facts, claim), Finding::NotShown, "{claim}");
    }
}

/// A table that was never full shows nothing of a full table.
#[test]
fn no_full_table_no_finding() {
    let mut facts = facts();
    for s in &mut facts.steps {
        s.peak = 500;
    }
    for claim in
        Claim::ALL.iter().copied().filter(|c| claims::judged(*c).0 == claims::Needs::FullTable)
    {
        assert_eq!(finding(&facts, claim), Finding::NotShown, "{claim}");
    }
}

/// Half-closed transfers that hang are no reset, those that nothing befell show nothing, and
/// where the cause was removed nothing may befall them.
#[test]
fn only_an_eviction_of_a_full_table_counts() {
    let claim = Claim::EvictionResetsClosingConnections;
    for (case, ends, expected) in [
        (Case::Full, [(ProbeEnd::Hung, 29), (ProbeEnd::Survived, 31)], Finding::DoesNotHold),
        (Case::Full, [(ProbeEnd::Hung, 0), (ProbeEnd::Survived, 60)], Finding::NotShown),
        (Case::NearlyFull, [(ProbeEnd::Reset, 1), (ProbeEnd::Survived, 59)], Finding::NotShown),
    ] {
        let mut facts = facts();
        facts.evicted.iter_mut().find(|e| e.case == case).unwrap().half_closed = ends.into();
        assert_eq!(finding(&facts, claim), expected, "{case:?} {ends:?}");
    }
    let mut facts = facts();
    facts.evicted[0].captured.untranslated = 0;
    assert_eq!(finding(&facts, claim), Finding::NotShown, "a reset by something else");
    let mut facts = self::facts();
    facts.evicted[0].captured.lost = Some("9 of 10 captured".to_owned());
    assert_eq!(finding(&facts, claim), Finding::NotShown, "a capture with losses");
}

/// Where the protected transfers lost nothing, nothing was there to be saved from.
#[test]
fn no_eviction_no_protection() {
    let mut facts = facts();
    let e = facts.evicted.iter_mut().find(|e| e.case == Case::Protected).unwrap();
    e.half_closed = [(ProbeEnd::Survived, 60)].into();
    assert_eq!(finding(&facts, Claim::LiberalAndDropsSaveEvicted), Finding::NotShown);
}

/// A few connections that all succeed do not show that the load would.
#[test]
fn too_small_a_load_shows_nothing() {
    let mut facts = facts();
    facts.steps.iter_mut().find(|s| s.kind == Kind::Shorter).unwrap().step.new_attempts = 900;
    assert_eq!(finding(&facts, Claim::ShorterTimeoutsCure), Finding::NotShown);
    assert!(find(&Facts::default()).iter().all(|(_, s)| s.finding == Finding::NotShown));
}

/// Half-open entries: a reset counts with its capture alone, and nothing counts where no entry
/// was dropped or where handshakes failed that nothing disturbed.
#[test]
fn only_an_early_drop_counts() {
    use Finding::{DoesNotHold, Holds, NotShown};
    type Change = fn(&mut HalfOpen);
    let ack = Claim::EarlyDropBeforeAckResets;
    let cases: [(Claim, OnItsWay, Change, Finding); 9] = [
        (Claim::EarlyDropBeforeSynAckResets, OnItsWay::SynAck, reset, Holds),
        (Claim::EarlyDropBeforeSynAckResets, OnItsWay::SynAck, |h| h.early = 0, NotShown),
        (ack, OnItsWay::Ack, |h| h.ends = h.alone.clone(), DoesNotHold),
        (ack, OnItsWay::Ack, |h| h.captured.resets = 0, NotShown),
        (ack, OnItsWay::Ack, |h| h.captured.untranslated = 0, NotShown),
        (ack, OnItsWay::Ack, |h| h.captured.lost = Some("9 of 10".into()), NotShown),
        (ack, OnItsWay::Ack, |h| h.alone = [(ProbeEnd::Hung, 1)].into(), NotShown),
        (Claim::DropsSaveHalfOpen, OnItsWay::AckProtected, reset, DoesNotHold),
        (Claim::DropsSaveHalfOpen, OnItsWay::Ack, |h| h.ends = h.alone.clone(), NotShown),
    ];
    for (claim, case, change, expected) in cases {
        let mut facts = facts();
        change(facts.half_open.iter_mut().find(|h| h.case == case).unwrap());
        assert_eq!(finding(&facts, claim), expected, "{claim}");
    }
}

fn reset(h: &mut HalfOpen) {
    h.ends = [(ProbeEnd::Reset, 20)].into();
}

/// Without a limit of its own a run says what its load showed by chance, or that it could not try.
#[test]
fn an_ordinary_user_is_told_why() {
    let mut facts = Facts { can_resize: false, can_hold: false, half_open: Vec::new(), ..facts() };
    let claim = Claim::EarlyDropBeforeSynAckResets;
    assert_eq!(finding(&facts, claim), Finding::DoesNotHold);
    for s in &mut facts.steps {
        s.step.conntrack.early_drop = 0;
    }
    for claim in [claim, Claim::EarlyDropBeforeAckResets, Claim::DropsSaveHalfOpen] {
        assert!(claims::judged(claim).0.not_tried(&facts));
        let (_, s) = find(&facts).into_iter().find(|(c, _)| *c == claim).unwrap();
        assert_eq!(s.finding, Finding::NotShown);
        assert!(s.evidence[0].contains("as root with --host-table-size"), "{:?}", s.evidence);
    }
}

/// Resets under a full table are of those that lost their entries; where new connections are reset,
/// the claim holds as it stands; where nobody is, it does not. What was not tried, or without its own
/// control, decides nothing.
#[test]
fn saturation_resets_for_another_reason() {
    let claim = Claim::SaturationResets;
    let mut facts = facts();
    assert_eq!(finding(&facts, claim), Finding::HoldsForAnotherReason);
    facts.steps[2].step.new_failures.insert(FailureClass::Reset, 1);
    assert_eq!(finding(&facts, claim), Finding::Holds);
    facts.steps[2].step.new_failures.remove(&FailureClass::Reset);
    let half_open = facts.half_open.iter_mut().find(|h| h.case == OnItsWay::Ack).unwrap();
    half_open.ends = half_open.alone.clone();
    facts.evicted[0].captured.untranslated = 0;
    assert_eq!(finding(&facts, claim), Finding::NotShown, "resets by something else");
    facts.evicted[0].half_closed = [(ProbeEnd::Hung, 60)].into();
    assert_eq!(finding(&facts, claim), Finding::DoesNotHold);
    facts.half_open.clear();
    assert_eq!(finding(&facts, claim), Finding::NotShown, "not tried");
    facts.evicted.clear();
    assert_eq!(finding(&facts, claim), Finding::NotShown, "not tried");
}

/// The median of the rounds is compared: those that something else slowed down, or a lucky one, say
/// nothing. Where they differ too much, or are too few, nothing is said.
#[test]
fn be_liberal_is_faster_where_its_rounds_are() {
    let claim = Claim::LiberalIsFaster;
    let with = |gains: &[f64]| {
        let mut facts = facts();
        facts.pace.truncate(gains.len());
        for (pair, gain) in facts.pace.iter_mut().zip(gains) {
            pair[1].octets = 100.0 * gain;
        }
        finding(&facts, claim)
    };
    assert_eq!(with(&[1.0; 9]), Finding::DoesNotHold);
    assert_eq!(with(&[1.0, 1.0, 1.0, 1.5, 1.0, 1.0, 0.5, 1.0, 1.0]), Finding::DoesNotHold);
    assert_eq!(with(&[1.1, 1.2, 1.1, 0.7, 1.1, 1.1, 1.1, 1.1, 1.3]), Finding::Holds);
    assert_eq!(with(&[1.1, 1.2, 1.0, 0.7, 1.1, 1.0, 1.1, 1.0, 1.3]), Finding::NotShown);
    assert_eq!(with(&[1.1; 5]), Finding::NotShown);
    assert_eq!(with(&[]), Finding::NotShown);
}

/// The bounds are those of the sign test: of 6 pairs the outermost, of 45 the 16th from either end.
#[test]
fn a_median_lies_between_its_bounds() {
    let of = |n: u32| ratio((1..=n).rev().map(|k| [1.0, f64::from(k)]));
    assert_eq!(of(5), None);
    assert_eq!(of(6), Some([1.0, 4.0, 6.0]));
    assert_eq!(of(45), Some([16.0, 23.0, 30.0]));
}

/// A bigger table harms where it is slower with the same entries; without a measurement nothing is
/// said. Resets in a smaller table would hold the post's claim.
#[test]
fn tables_of_other_sizes_are_compared() {
    let harm = |big, n| {
        let tables = tables(big);
        let facts = Facts { turns: turns(&tables, n), tables, ..facts() };
        find(&facts).into_iter().find(|(c, _)| *c == Claim::BiggerTableHarms).unwrap().1
    };
    for (big, finding) in
        [(100.0, Finding::DoesNotHold), (91.0, Finding::DoesNotHold), (89.0, Finding::Holds)]
    {
        let said = harm(big, 9);
        assert_eq!(said.finding, finding, "{big}");
        assert!(said.evidence[5].contains("320 octets an entry"), "{:?}", said.evidence);
        assert!(said.evidence[6].contains("10.0 for each bucket"), "{:?}", said.evidence);
    }
    assert_eq!(harm(100.0, 5).finding, Finding::NotShown, "too few pairs");
    assert_eq!(harm(100.0, 0).finding, Finding::NotShown);
    let mut facts = facts();
    let smaller = facts.steps.iter_mut().find(|s| s.kind == Kind::Smaller).unwrap();
    smaller.step.new_failures.insert(FailureClass::Reset, 1);
    assert_eq!(finding(&facts, Claim::SmallerTableResets), Finding::Holds);
    facts.steps.retain(|s| s.kind != Kind::Smaller);
    assert_eq!(finding(&facts, Claim::SmallerTableResets), Finding::NotShown);
}

/// A witness that contradicts anything, or had no full table to tell of, shows nothing; one that
/// could not watch was not tried.
#[test]
fn a_witness_that_contradicts_shows_nothing() {
    let of = |change: &dyn Fn(&mut Heard)| {
        let mut facts = facts();
        change(&mut facts.heard[0]);
        (
            finding(&facts, Claim::WitnessTellsApart),
            claims::judged(Claim::WitnessTellsApart).0.not_tried(&facts),
        )
    };
    assert_eq!(of(&|_| {}), (Finding::Holds, false));
    assert_eq!(of(&|h| h.killed = 1), (Finding::NotShown, false));
    assert_eq!(of(&|h| h.shows.clear()), (Finding::NotShown, false));
    assert_eq!(of(&|h| h.witness = Err("somebody else listens".into())), (Finding::NotShown, true));
}
