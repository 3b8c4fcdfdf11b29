//! What a run's facts make of what has been claimed: pure.

use crate::document::timeline::{FailureClass, Finding, Statement, TableSeries, TableSpeed};
use canary_record::names::ProbeEnd;

use super::super::witness;
use super::claims;
use crate::observed::listed;
use crate::observed::saturation::{
    Case, Evicted, Facts, HalfOpen, Kind, MOST_HELD, OnItsWay, Pace, Shown,
};
use crate::scenario::claims::Claim;

/// What the facts make of every claim.
#[must_use]
pub fn find(facts: &Facts) -> Vec<(Claim, Statement)> {
    Claim::ALL
        .iter()
        .copied()
        .map(|claim| {
            let (finding, evidence) = one(claim, facts);
            let (text, source) = claims::words(claim);
            let statement = Statement {
                claim: text.to_owned(),
                source: source.to_owned(),
                finding,
                evidence: evidence.lines().map(str::to_owned).collect(),
            };
            (claim, statement)
        })
        .collect()
}

const FULL: &[Kind] = &[Kind::Load, Kind::Full, Kind::FullLiberal];

fn one(claim: Claim, facts: &Facts) -> (Finding, String) {
    if claims::needs_a_full_table(claim) { full_table(claim, facts) } else { other(claim, facts) }
}

fn full_table(claim: Claim, facts: &Facts) -> (Finding, String) {
    let full: Vec<_> = facts.of(FULL).into_iter().filter(|s| s.full()).collect();
    let sum = |of: &dyn Fn(&Shown) -> u64| full.iter().map(|s| of(s)).sum::<u64>();
    let attempts = sum(&|s| s.attempts);
    let timeouts = sum(&|s| s.failed(FailureClass::ConnectTimeout));
    let resets = sum(&|s| s.failed(FailureClass::Reset));
    if full.is_empty() {
        return (Finding::NotShown, "The table was never full in this run.".to_owned());
    }
    match claim {
        Claim::NewConnectionsTimeOut => {
            let drop = sum(&|s| s.conntrack.drop);
            (
                holds(timeouts > 0 && drop > 0),
                format!(
                    "Full table: {timeouts} of {attempts} connects timed out; conntrack's drop count grew by {drop}."
                ),
            )
        }
        Claim::NewConnectionsAreReset => (
            if resets > 0 { Finding::Holds } else { refuted(timeouts > 0) },
            format!(
                "Full table: {resets} of {attempts} new connections reset, {timeouts} timed out."
            ),
        ),
        Claim::EstablishedConnectionsAreLost => {
            let Some(last) = full.last() else {
                return never();
            };
            let ended: u64 =
                last.group.iter().filter(|(e, _)| **e != ProbeEnd::Survived).map(|(_, n)| n).sum();
            (
                if ended > 0 {
                    Finding::Holds
                } else {
                    refuted(last.ended(ProbeEnd::Survived) > 0)
                },
                format!(
                    "Connections established before, at the end of the full table: {}.",
                    listed(&last.group)
                ),
            )
        }
        Claim::LiberalFreesAFullTable => liberal_full(facts),
        _ => never(),
    }
}

/// The transfers in a full table against those in one with room.
fn eviction(facts: &Facts) -> (Finding, String) {
    let (Some(full), Some(room)) = (facts.evicted(Case::Full), facts.evicted(Case::NearlyFull))
    else {
        return never();
    };
    let lost = |e: &Evicted| e.ended(ProbeEnd::Reset) + e.ended(ProbeEnd::Hung);
    let finding = match (full.ended(ProbeEnd::Reset), lost(full), lost(room)) {
        // A reset without an untranslated segment would be another's.
        (1.., _, 0) if full.captured.show(1) => Finding::Holds,
        (0, 1.., 0) => Finding::DoesNotHold,
        // Also where transfers were lost with room in the table: then it was not that.
        _ => Finding::NotShown,
    };
    let mut text = vec![format!("Full table, SYNs refused: {}", full.words())];
    if let Some(contested) = facts.evicted(Case::Contested) {
        text.push(format!("New connections waiting for the room: {}", contested.words()));
    }
    text.push(format!("The cause removed, a table nine tenths full: {}", room.words()));
    let text = text.join("\n");
    (finding, text)
}

/// Resets while the table is full: of connections that lost their entries, not of those that
/// found no room.
fn saturation(facts: &Facts) -> (Finding, String) {
    let full: Vec<_> = facts.of(FULL).into_iter().filter(|s| s.full()).collect();
    let new: u64 = full.iter().map(|s| s.failed(FailureClass::Reset)).sum();
    let closing = facts.evicted(Case::Full).map_or(0, |e| e.ended(ProbeEnd::Reset));
    let half_open = facts.half_open(OnItsWay::Ack).map_or(0, |h| h.ended(ProbeEnd::Reset));
    let finding = match (full.is_empty(), new, closing + half_open) {
        (true, ..) => Finding::NotShown,
        (_, 1.., _) => Finding::Holds,
        (_, 0, 1..) => Finding::HoldsForAnotherReason,
        (_, 0, 0) => Finding::DoesNotHold,
    };
    let text = format!(
        "New connections that met the full table: {new} reset.\n\
         Half-closed ones whose entry was evicted: {closing} reset.\n\
         Half-open ones whose entry was dropped early: {half_open} reset.\n\
         The resets that boom-server provokes need no load at all."
    );
    (finding, text)
}

/// A gain that is worth a word.
const GAIN: f64 = 1.05;

/// The best round with be_liberal=1 against the best one with 0: whatever else the machine does
/// makes a round slower, never faster.
fn faster(facts: &Facts) -> (Finding, String) {
    if facts.pace.is_empty() {
        return never();
    }
    let best = |of: fn(&Pace) -> f64| {
        let most = |liberal: usize| {
            facts.pace.iter().map(|pair| of(&pair[liberal])).fold(f64::MIN, f64::max)
        };
        [most(0), most(1)]
    };
    let octets = best(|p| p.octets);
    // The least is the best.
    let cpu = best(|p| -p.cpu).map(|n| -n);
    let connects = best(|p| p.connects);
    let connect_cpu = best(|p| -p.connect_cpu).map(|n| -n);
    let ratio = |[off, on]: [f64; 2]| on / off;
    let text = format!(
        "The best of {} rounds each, by turns, be_liberal 0 and 1:\n\
         one transfer: {:.0} and {:.0} MiB a second, ratio {:.3}\n\
         processor time: {:.0} and {:.0} microseconds for a MiB, ratio {:.3}\n\
         new connections: {:.0} and {:.0} a second, ratio {:.3}\n\
         processor time: {:.1} and {:.1} microseconds for a new connection, ratio {:.3}",
        facts.pace.len(),
        octets[0] / MIB,
        octets[1] / MIB,
        ratio(octets),
        cpu[0] * MIB / 1e3,
        cpu[1] * MIB / 1e3,
        ratio(cpu),
        connects[0],
        connects[1],
        ratio(connects),
        connect_cpu[0] / 1e3,
        connect_cpu[1] / 1e3,
        ratio(connect_cpu)
    );
    (holds(ratio(octets) >= GAIN), text)
}

/// The same clients in smaller and smaller tables.
fn smaller(facts: &Facts) -> (Finding, String) {
    let steps = facts.of(&[Kind::Smaller]);
    let full: Vec<_> = steps.iter().filter(|s| s.full()).collect();
    let sum = |class| full.iter().map(|s| s.failed(class)).sum::<u64>();
    let finding = match (sum(FailureClass::Reset), sum(FailureClass::ConnectTimeout)) {
        (1.., _) => Finding::Holds,
        (0, 1..) => Finding::DoesNotHold,
        (0, 0) => Finding::NotShown,
    };
    let one = |s: &&Shown| {
        format!(
            "{} entries: {} of {} new connections timed out, {} reset; connections made before: {}; \
             boom-server: {} of {} forged segments reset.",
            s.limit,
            s.failed(FailureClass::ConnectTimeout),
            s.attempts,
            s.failed(FailureClass::Reset),
            listed(&s.group),
            s.attributed,
            s.forged
        )
    };
    (finding, steps.iter().map(one).collect::<Vec<_>>().join("\n"))
}

/// A loss that is worth a word.
const LOSS: f64 = 0.9;

/// The biggest table against the smallest with the same few entries, by turns. What entries cost is
/// told beside it: they are there for connections, whatever the limit is.
fn harm(facts: &Facts) -> (Finding, String) {
    let of = |series| facts.tables.iter().filter(move |t| t.series == series);
    let few: Vec<_> = of(TableSeries::FewEntries).collect();
    let [small, big] = few[..] else { return never() };
    let packets = big.packets_per_second / small.packets_per_second;
    let connects = big.connections_per_second / small.connections_per_second;
    let mut lines = vec![format!(
        "{} entries in {} and in {} buckets, by turns: {:.0} and {:.0} packets a second, ratio {packets:.3}; \
         {:.0} and {:.0} new connections a second, ratio {connects:.3}",
        small.entries,
        small.buckets,
        big.buckets,
        small.packets_per_second,
        big.packets_per_second,
        small.connections_per_second,
        big.connections_per_second
    )];
    let speeds = |t: &TableSpeed| {
        format!(
            "{:.0} packets and {:.0} new connections a second",
            t.packets_per_second, t.connections_per_second
        )
    };
    for t in of(TableSeries::Full) {
        lines.push(format!("{} entries, as many buckets: {}", t.entries, speeds(t)));
    }
    // What else came and went before matters less, the more entries there are.
    let full: Vec<_> = of(TableSeries::Full).filter(|t| t.memory.is_some()).collect();
    if let [.., less, more] = full[..] {
        let grown = more.memory.unwrap_or(0).saturating_sub(less.memory.unwrap_or(0));
        let entries = more.entries.saturating_sub(less.entries).max(1);
        let octets = grown.saturating_sub(more.buckets.saturating_sub(less.buckets) * 8) as f64
            / entries as f64;
        lines.push(format!(
            "Memory from {} to {} entries: {octets:.0} octets an entry, and 8 a bucket",
            less.entries, more.entries
        ));
    }
    for t in of(TableSeries::FewerBuckets) {
        lines.push(format!(
            "{} entries, {:.1} for each bucket: {}",
            t.entries,
            t.load(),
            speeds(t)
        ));
    }
    (holds(packets < LOSS || connects < LOSS), lines.join("\n"))
}

const MIB: f64 = 1_048_576.0;

fn saved(facts: &Facts) -> (Finding, String) {
    let Some(e) = facts.evicted(Case::Protected) else { return never() };
    let finding = match (e.ended(ProbeEnd::Reset), e.ended(ProbeEnd::Hung)) {
        // Without an eviction nothing was there to be saved from.
        (0, 0) => Finding::NotShown,
        _ => Finding::DoesNotHold,
    };
    (finding, e.words())
}

fn liberal_full(facts: &Facts) -> (Finding, String) {
    let (before, after) = (facts.of(&[Kind::Full]), facts.of(&[Kind::FullLiberal]));
    let (Some(b), Some(a)) = (before.first(), after.first()) else { return never() };
    if !(a.full() && b.full()) || a.attempts == 0 {
        return never();
    }
    let n = |s: &Shown| s.failed(FailureClass::ConnectTimeout);
    let finding = if n(a) > 0 {
        Finding::DoesNotHold
    } else if n(b) > 0 {
        Finding::Holds
    } else {
        Finding::NotShown
    };
    (
        finding,
        format!(
            "Connects timed out: {} of {} before, {} of {} with be_liberal=1.",
            n(b),
            b.attempts,
            n(a),
            a.attempts
        ),
    )
}

fn other(claim: Claim, facts: &Facts) -> (Finding, String) {
    match claim {
        Claim::ResetsNeedLoad => match facts.of(&[Kind::NoLoad]).first() {
            Some(s) if s.forged > 0 => (
                if s.attributed > 0 { Finding::DoesNotHold } else { Finding::NotShown },
                format!(
                    "No load: {} segments forged, {} RSTs attributed to them, {} of {} entries.",
                    s.forged, s.attributed, s.peak, s.limit
                ),
            ),
            _ => never(),
        },
        Claim::LiberalCuresTheResets => {
            let (before, after) = (facts.of(&[Kind::NoLoad]), facts.of(&[Kind::Liberal]));
            let (Some(b), Some(a)) = (before.first(), after.first()) else { return never() };
            let finding = match (b.attributed, a.forged, a.attributed) {
                (0, _, _) | (_, 0, _) => Finding::NotShown,
                (_, _, 0) => Finding::Holds,
                _ => Finding::DoesNotHold,
            };
            (
                finding,
                format!(
                    "RSTs attributed: {} of {} forged before, {} of {} with be_liberal=1.",
                    b.attributed, b.forged, a.attributed, a.forged
                ),
            )
        }
        // What a load happened to show, where no table could be filled for it.
        Claim::EarlyDropBeforeSynAckResets if !facts.can_hold && by_chance(facts).is_some() => {
            by_chance(facts).unwrap_or_else(never)
        }
        Claim::WitnessTellsApart if claims::not_tried(claim, facts) => {
            let why = facts.heard.iter().find_map(|h| h.witness.as_ref().err());
            why.map_or_else(never, |why| (Finding::NotShown, why.clone()))
        }
        _ if claims::not_tried(claim, facts) => (
            Finding::NotShown,
            if facts.can_resize {
                format!(
                    "Too many entries to fill the table with established connections: \
                     --host-table-size of {MOST_HELD} at most."
                )
            } else {
                "This needs another limit than the host's: run it as root with --host-table-size=4000."
                    .to_owned()
            },
        ),
        Claim::EarlyDropBeforeSynAckResets => early_drop(facts, OnItsWay::SynAck),
        Claim::EarlyDropBeforeAckResets => early_drop(facts, OnItsWay::Ack),
        Claim::DropsSaveHalfOpen => saved_half_open(facts),
        Claim::BiggerTableCures => same_load(facts, Kind::Bigger),
        Claim::SmallerTableResets => smaller(facts),
        Claim::BiggerTableHarms => harm(facts),
        Claim::EvictionResetsClosingConnections => eviction(facts),
        Claim::SaturationResets => saturation(facts),
        Claim::LiberalIsFaster => faster(facts),
        Claim::LiberalAndDropsSaveEvicted => saved(facts),
        Claim::ShorterTimeoutsCure => same_load(facts, Kind::Shorter),
        Claim::ShortTimeoutsResetIdleConnections => expiry(facts, Kind::Expiry, "server"),
        Claim::WitnessTellsApart => told_apart(facts),
        Claim::ShortTimeoutsResetIdleClients => expiry(facts, Kind::ExpiryClient, "client"),
        _ => never(),
    }
}

/// The witness' words on each step and place against what else is known of it.
fn told_apart(facts: &Facts) -> (Finding, String) {
    let mut lines = Vec::new();
    let mut doubts = Vec::new();
    for heard in &facts.heard {
        lines.push(format!("{}: {}", heard.place, heard.words()));
        let of = heard.witness.as_ref().map(|w| witness::in_a_table(heard, w)).unwrap_or_default();
        doubts.extend(of.into_iter().map(|d| format!("{}: {d}.", heard.place)));
    }
    let finding = if !doubts.is_empty() {
        Finding::NotShown
    } else if facts.heard.iter().all(|h| h.shows.is_empty()) {
        doubts.push("The table was never full in this run.".to_owned());
        Finding::NotShown
    } else {
        Finding::Holds
    };
    doubts.extend(lines);
    (finding, doubts.join("\n"))
}

/// Connections whose entry expired, and then somebody spoke.
fn expiry(facts: &Facts, kind: Kind, speaker: &str) -> (Finding, String) {
    let Some(s) = facts.of(&[kind]).first().copied() else { return never() };
    let finding = if s.ended(ProbeEnd::Reset) > 0 {
        Finding::Holds
    } else {
        refuted(s.ended(ProbeEnd::Survived) > 0)
    };
    (
        finding,
        format!(
            "Idle for longer than the timeout, then the {speaker} spoke: {}.",
            listed(&s.group)
        ),
    )
}

/// Half-open entries that a load's own SYNs dropped early.
fn by_chance(facts: &Facts) -> Option<(Finding, String)> {
    let full: Vec<_> = facts.of(FULL).into_iter().filter(|s| s.full()).collect();
    let sum = |of: &dyn Fn(&Shown) -> u64| full.iter().map(|s| of(s)).sum::<u64>();
    let (early, resets) =
        (sum(&|s| s.conntrack.early_drop), sum(&|s| s.failed(FailureClass::Reset)));
    // Where some were reset, this does not show that it was for that.
    (early > 0 && resets == 0).then(|| {
        let attempts = sum(&|s| s.attempts);
        (
            Finding::DoesNotHold,
            format!(
                "Full table: {early} entries dropped early, 0 of {attempts} new connections reset."
            ),
        )
    })
}

/// Handshakes whose entry was dropped against the same without others' SYNs.
fn early_drop(facts: &Facts, case: OnItsWay) -> (Finding, String) {
    let Some(h) = facts.half_open(case) else { return never() };
    let finding = match h.ended(ProbeEnd::Reset) {
        _ if !h.shows_something() => Finding::NotShown,
        0 => Finding::DoesNotHold,
        // The client's RST comes first, to a SYN ACK that reached it untranslated.
        n if h.captured.show(n) => Finding::Holds,
        _ => Finding::NotShown,
    };
    (finding, h.words())
}

fn saved_half_open(facts: &Facts) -> (Finding, String) {
    let (Some(bare), Some(saved)) =
        (facts.half_open(OnItsWay::Ack), facts.half_open(OnItsWay::AckProtected))
    else {
        return never();
    };
    let n = |h: &HalfOpen| h.ended(ProbeEnd::Reset);
    let finding = match (n(bare), n(saved)) {
        _ if !(bare.shows_something() && saved.shows_something()) => Finding::NotShown,
        // Nothing was there to be saved from.
        (0, _) => Finding::NotShown,
        (_, 0) => Finding::Holds,
        _ => Finding::DoesNotHold,
    };
    let hung = |h: &HalfOpen| h.ended(ProbeEnd::Hung);
    let text = format!(
        "Reset: {} without it, {} with it; without an answer: {} and {}.\n{}",
        n(bare),
        n(saved),
        hung(bare),
        hung(saved),
        saved.words()
    );
    (finding, text)
}

/// The load that made connections fail, under other circumstances.
fn same_load(facts: &Facts, kind: Kind) -> (Finding, String) {
    let (before, after) = (facts.of(&[Kind::Load]), facts.of(&[kind]));
    let (Some(b), Some(a)) = (before.first(), after.first()) else { return never() };
    let failed = |s: &Shown| s.failed(FailureClass::ConnectTimeout);
    let text = format!(
        "{} of {} connects timed out with {} of {} entries; {} of {} with {} of {}.",
        failed(b),
        b.attempts,
        b.peak,
        b.limit,
        failed(a),
        a.attempts,
        a.peak,
        a.limit
    );
    let finding = match (failed(b), failed(a)) {
        (0, _) => Finding::NotShown,
        // As many connections as the table has room for must have been tried.
        (_, 0) if a.attempts > b.limit => Finding::Holds,
        (_, 0) => Finding::NotShown,
        _ => Finding::DoesNotHold,
    };
    (finding, text)
}

const fn holds(it: bool) -> Finding {
    if it { Finding::Holds } else { Finding::DoesNotHold }
}

const fn refuted(it: bool) -> Finding {
    if it { Finding::DoesNotHold } else { Finding::NotShown }
}

fn never() -> (Finding, String) {
    (Finding::NotShown, "This run did not get so far.".to_owned())
}

#[cfg(test)]
mod tests;
