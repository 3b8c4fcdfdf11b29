//! What a run's facts make of what has been claimed: pure.

use crate::document::timeline::{FailureClass, Finding, Statement, TableSeries, TableSpeed};
use canary_record::names::{Outcome, ProbeEnd};

use super::super::witness;
use super::claims;
use crate::observed::saturation::{Case, Evicted, Facts, HalfOpen, Kind, OnItsWay, Pace, Shown};
use crate::observed::{listed, number};
use crate::scenario::claims::Claim;

/// A finding, and the numbers that say so, one line each.
pub(super) type Told = (Finding, String);

/// What the facts make of every claim.
pub(crate) fn find(facts: &Facts) -> Vec<(Claim, Statement)> {
    let one = |claim: &Claim| {
        let (finding, evidence) = judge(*claim, facts);
        let (text, source) = claims::words(*claim);
        let statement = Statement {
            claim: text.to_owned(),
            source: source.to_owned(),
            finding,
            evidence: evidence.lines().map(str::to_owned).collect(),
        };
        (*claim, statement)
    };
    Claim::ALL.iter().map(one).collect()
}

fn judge(claim: Claim, facts: &Facts) -> Told {
    let (needs, find) = claims::judged(claim);
    // What a load happened to show, where no table could be filled for it.
    let chance = claim == Claim::EarlyDropBeforeSynAckResets && !facts.can_hold;
    let told = match (chance.then(|| by_chance(facts)).flatten(), needs.missing(facts)) {
        (Some(told), _) => Some(told),
        (None, Some(why)) => Some((Finding::NotShown, why)),
        (None, None) => find(facts),
    };
    told.unwrap_or_else(|| (Finding::NotShown, "This run did not get so far.".to_owned()))
}

fn sum<'a>(steps: impl Iterator<Item = &'a Shown>, of: impl Fn(&Shown) -> u64) -> u64 {
    steps.map(of).sum()
}

fn timeouts<'a>(steps: impl Iterator<Item = &'a Shown>) -> u64 {
    sum(steps, |s| s.failed(FailureClass::ConnectTimeout))
}

/// A finding on connects that timed out in each of these groups of steps. Where conntrack refused
/// nothing meanwhile, they had another cause: a processor too slow, a segment that was lost.
fn of_timeouts<'a, I>(groups: impl IntoIterator<Item = I>, (finding, text): Told) -> Told
where
    I: Iterator<Item = &'a Shown> + Clone,
{
    let had_no_part = |steps: I| timeouts(steps.clone()) > 0 && sum(steps, Shown::refused) == 0;
    if groups.into_iter().any(had_no_part) {
        let why = "Conntrack refused no packet where connects timed out (drop, insert_failed, \
                   chain_too_long): they had another cause.";
        return (Finding::NotShown, format!("{text}\n{why}"));
    }
    (finding, text)
}

pub(super) fn new_connections_time_out(facts: &Facts) -> Told {
    let timeouts = timeouts(facts.full());
    let drop = sum(facts.full(), |s| s.step.conntrack.drop);
    let attempts = sum(facts.full(), |s| s.step.new_attempts);
    let text = format!(
        "Full table: {timeouts} of {attempts} connects timed out; conntrack's drop count grew by {drop}."
    );
    of_timeouts([facts.full()], (holds(timeouts > 0 && drop > 0), text))
}

pub(super) fn new_connections_are_reset(facts: &Facts) -> Told {
    let timeouts = timeouts(facts.full());
    let resets = sum(facts.full(), |s| s.failed(FailureClass::Reset));
    let attempts = sum(facts.full(), |s| s.step.new_attempts);
    let text =
        format!("Full table: {resets} of {attempts} new connections reset, {timeouts} timed out.");
    let told = (seen(resets > 0, timeouts > 0), text);
    // A reset shows it, whatever timed out beside it.
    if resets > 0 { told } else { of_timeouts([facts.full()], told) }
}

pub(super) fn established_are_lost(facts: &Facts) -> Option<Told> {
    let group = &facts.full().last()?.step.established;
    let lost = group.iter().any(|(end, n)| *end != ProbeEnd::Survived && *n > 0);
    let text =
        format!("Connections established before, at the end of the full table: {}.", listed(group));
    Some((seen(lost, number(group, ProbeEnd::Survived) > 0), text))
}

pub(super) fn without_load(facts: &Facts) -> Option<Told> {
    let s = facts.step(Kind::NoLoad).filter(|s| s.forged > 0)?;
    let text = format!(
        "No load: {} segments forged, {} RSTs attributed to them, {} of {} entries.",
        s.forged, s.attributed, s.peak, s.limit
    );
    Some((seen(false, s.attributed > 0), text))
}

pub(super) fn liberal_cures(facts: &Facts) -> Option<Told> {
    let (b, a) = (facts.step(Kind::NoLoad)?, facts.step(Kind::Liberal)?);
    let above = |outcome| number(&a.above, outcome);
    let saw = listed(&a.above);
    let text = format!(
        "RSTs attributed: {} of {} forged before, {} of {} with be_liberal=1. Above the window then: {saw}.",
        b.attributed, b.forged, a.attributed, a.forged
    );
    let (finding, why) = match (b.attributed, a.attributed) {
        (0, _) => (Finding::NotShown, "Without be_liberal nothing was reset either.".to_owned()),
        (_, 1..) => return Some((Finding::DoesNotHold, text)),
        // No RST is silence: the client's answers say that it was not lost on the way.
        (_, 0) if above(Outcome::Delivered) == 0 || above(Outcome::Unknown) > 0 => {
            (Finding::NotShown, "Silence proves nothing: all of these have to be known.".to_owned())
        }
        (_, 0) if a.lost > 0 => (
            Finding::NotShown,
            format!(
                "boom-server's raw sockets lost {} segments, which may have been RSTs.",
                a.lost
            ),
        ),
        (_, 0) => return Some((Finding::Holds, text)),
    };
    Some((finding, format!("{text}\n{why}")))
}

/// The transfers in a full table against those in one with room.
pub(super) fn eviction(facts: &Facts) -> Option<Told> {
    let (full, room) = (facts.evicted(Case::Full)?, facts.evicted(Case::NearlyFull)?);
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
    Some((finding, text.join("\n")))
}

/// Resets while the table is full: of connections that lost their entries, not of those that
/// found no room.
pub(super) fn saturation(facts: &Facts) -> Told {
    let new = sum(facts.full(), |s| s.failed(FailureClass::Reset));
    // Each with its own controls.
    let parts = [eviction(facts), early_drop(facts, OnItsWay::Ack)];
    let found = parts.map(|told| told.map_or(Finding::NotShown, |(finding, _)| finding));
    let finding = match (facts.full().next().is_none(), new) {
        (true, _) => Finding::NotShown,
        (_, 1..) => Finding::Holds,
        _ if found.contains(&Finding::Holds) => Finding::HoldsForAnotherReason,
        _ if found.contains(&Finding::NotShown) => Finding::NotShown,
        _ => Finding::DoesNotHold,
    };
    let reset = |n: Option<u64>| n.map_or("not tried".to_owned(), |n| format!("{n} reset"));
    let text = format!(
        "New connections that met the full table: {new} reset.\n\
         Half-closed ones whose entry was evicted: {}.\n\
         Half-open ones whose entry was dropped early: {}.\n\
         The resets that boom-server provokes need no load at all.",
        reset(facts.evicted(Case::Full).map(|e| e.ended(ProbeEnd::Reset))),
        reset(facts.half_open(OnItsWay::Ack).map(|h| h.ended(ProbeEnd::Reset)))
    );
    (finding, text)
}

/// The median of the second over the first of each pair, between the bounds in which it lies with 95%:
/// the sign test's, so that no round of a busy moment decides. None of too few pairs.
fn ratio(pairs: impl Iterator<Item = [f64; 2]>) -> Option<[f64; 3]> {
    let mut ratios: Vec<_> = pairs.map(|[first, second]| second / first).collect();
    ratios.sort_by(f64::total_cmp);
    let n = ratios.len();
    // How many of n coins fall on one side: as many on either end of the list are left out.
    let (mut left_out, mut chance, mut below) = (0, 0.5_f64.powi(i32::try_from(n).ok()?), 0.0);
    while left_out < n {
        below += chance;
        if below > 0.025 {
            break;
        }
        left_out += 1;
        chance *= (n - left_out + 1) as f64 / left_out as f64;
    }
    let low = left_out.checked_sub(1)?;
    Some([ratios[low], ratios[n / 2], ratios[n - 1 - low]])
}

/// A gain that is worth a word.
const GAIN: f64 = 1.05;

/// Rounds with be_liberal=1 against those with 0 beside them.
pub(super) fn faster(facts: &Facts) -> Option<Told> {
    if facts.pace.is_empty() {
        return None;
    }
    let mut lines = vec![format!(
        "{} pairs of rounds on one processor, be_liberal 0 and 1 by turns:",
        facts.pace.len()
    )];
    let mut line = |what: &str, digits: usize, unit: &str, of: &dyn Fn(&Pace) -> f64| {
        let side = |n: usize| median(facts.pace.iter().map(|pair| of(&pair[n])));
        let found = ratio(facts.pace.iter().map(|pair| [of(&pair[0]), of(&pair[1])]));
        lines.push(format!(
            "{what}: {:.digits$} and {:.digits$} {unit}, {}",
            side(0),
            side(1),
            in_words(found)
        ));
        found
    };
    let transfers = line("one transfer", 0, "MiB a second", &|p| p.octets / MIB);
    line("processor time", 0, "microseconds for a MiB", &|p| p.cpu * MIB / 1e3);
    line("new connections", 0, "a second", &|p| p.connects);
    line("processor time", 1, "microseconds for a new connection", &|p| p.connect_cpu / 1e3);
    let finding = match transfers {
        Some([low, ..]) if low >= GAIN => Finding::Holds,
        Some([.., high]) if high < GAIN => Finding::DoesNotHold,
        _ => Finding::NotShown,
    };
    if finding == Finding::NotShown {
        lines.push(UNSTEADY.to_owned());
    }
    Some((finding, lines.join("\n")))
}

const UNSTEADY: &str =
    "The rounds differ too much to tell: a machine that does nothing else tells more.";

fn median(of: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<_> = of.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn in_words(ratio: Option<[f64; 3]>) -> String {
    let Some([low, median, high]) = ratio else { return "too few pairs for a ratio".to_owned() };
    format!("ratio {median:.3}, with 95% between {low:.3} and {high:.3}")
}

/// The same clients in smaller and smaller tables.
pub(super) fn smaller(facts: &Facts) -> Told {
    let steps = || facts.steps.iter().filter(|s| s.kind == Kind::Smaller);
    let full = || steps().filter(|s| s.full());
    let resets = sum(full(), |s| s.failed(FailureClass::Reset));
    let finding = match (resets, timeouts(full())) {
        (1.., _) => Finding::Holds,
        (0, 1..) => Finding::DoesNotHold,
        (0, 0) => Finding::NotShown,
    };
    let one = |s: &Shown| {
        format!(
            "{} entries: {} of {} new connections timed out, {} reset; connections made before: {}; \
             boom-server: {} of {} forged segments reset.",
            s.limit,
            s.failed(FailureClass::ConnectTimeout),
            s.step.new_attempts,
            s.failed(FailureClass::Reset),
            listed(&s.step.established),
            s.attributed,
            s.forged
        )
    };
    let told = (finding, steps().map(one).collect::<Vec<_>>().join("\n"));
    if resets > 0 { told } else { of_timeouts([full()], told) }
}

/// A loss that is worth a word.
const LOSS: f64 = 0.9;

/// The biggest table against the smallest with the same few entries, by turns. What entries cost is
/// told beside it: they are there for connections, whatever the limit is.
pub(super) fn harm(facts: &Facts) -> Option<Told> {
    let [small, big] = facts.turns.first()?;
    let of = |series| facts.tables.iter().filter(move |t| t.series == series);
    let pairs =
        |of: fn(&TableSpeed) -> f64| facts.turns.iter().map(move |t| [of(&t[0]), of(&t[1])]);
    let packets = ratio(pairs(|t| t.packets_per_second));
    let connects = ratio(pairs(|t| t.connections_per_second));
    let mut lines = vec![
        format!(
            "{} entries in {} and in {} buckets, {} pairs of rounds by turns:",
            small.entries,
            small.buckets,
            big.buckets,
            facts.turns.len()
        ),
        format!("packets a second: {}", in_words(packets)),
        format!("new connections a second: {}", in_words(connects)),
    ];
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
    let finding = match (packets, connects) {
        (Some([.., high]), _) | (_, Some([.., high])) if high < LOSS => Finding::Holds,
        (Some([packets, ..]), Some([connects, ..])) if packets >= LOSS && connects >= LOSS => {
            Finding::DoesNotHold
        }
        _ => Finding::NotShown,
    };
    if finding == Finding::NotShown {
        lines.push(UNSTEADY.to_owned());
    }
    Some((finding, lines.join("\n")))
}

const MIB: f64 = 1_048_576.0;

pub(super) fn saved(facts: &Facts) -> Option<Told> {
    let e = facts.evicted(Case::Protected)?;
    // Without an eviction nothing was there to be saved from.
    let lost = e.ended(ProbeEnd::Reset) + e.ended(ProbeEnd::Hung);
    Some((seen(false, lost > 0), e.words()))
}

pub(super) fn liberal_full(facts: &Facts) -> Option<Told> {
    let (b, a) = (facts.step(Kind::Full)?, facts.step(Kind::FullLiberal)?);
    if !(a.full() && b.full()) || a.step.new_attempts == 0 {
        let text = "The table was not full, or no connect was tried, before or with be_liberal=1.";
        return Some((Finding::NotShown, text.to_owned()));
    }
    let n = |s: &Shown| s.failed(FailureClass::ConnectTimeout);
    let text = format!(
        "Connects timed out: {} of {} before, {} of {} with be_liberal=1.",
        n(b),
        b.step.new_attempts,
        n(a),
        a.step.new_attempts
    );
    let finding = seen(n(a) == 0 && n(b) > 0, n(a) > 0);
    Some(of_timeouts([b, a].map(std::iter::once), (finding, text)))
}

/// The witness' words on each step and place against what else is known of it.
pub(super) fn told_apart(facts: &Facts) -> Option<Told> {
    let mut lines = Vec::new();
    let mut doubts = Vec::new();
    for heard in &facts.heard {
        lines.push(format!("{}: {}", heard.place, heard.words()));
        let of = heard.witness.as_ref().map(|w| witness::in_a_table(heard, w)).unwrap_or_default();
        doubts.extend(of.into_iter().map(|d| format!("{}: {d}.", heard.place)));
    }
    if facts.heard.is_empty() {
        return None;
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
    Some((finding, doubts.join("\n")))
}

/// Connections whose entry expired, and then somebody spoke.
pub(super) fn expiry(facts: &Facts, kind: Kind, speaker: &str) -> Option<Told> {
    let group = &facts.step(kind)?.step.established;
    let text =
        format!("Idle for longer than the timeout, then the {speaker} spoke: {}.", listed(group));
    let n = |end| number(group, end);
    Some((seen(n(ProbeEnd::Reset) > 0, n(ProbeEnd::Survived) > 0), text))
}

/// Half-open entries that a load's own SYNs dropped early.
fn by_chance(facts: &Facts) -> Option<Told> {
    let early = sum(facts.full(), |s| s.step.conntrack.early_drop);
    let resets = sum(facts.full(), |s| s.failed(FailureClass::Reset));
    let attempts = sum(facts.full(), |s| s.step.new_attempts);
    let text = format!(
        "Full table: {early} entries dropped early, 0 of {attempts} new connections reset."
    );
    // Where some were reset, this does not show that it was for that.
    (early > 0 && resets == 0).then_some((Finding::DoesNotHold, text))
}

/// Handshakes whose entry was dropped against the same without others' SYNs.
pub(super) fn early_drop(facts: &Facts, case: OnItsWay) -> Option<Told> {
    let h = facts.half_open(case)?;
    let finding = match h.ended(ProbeEnd::Reset) {
        _ if !h.shows_something() => Finding::NotShown,
        0 => Finding::DoesNotHold,
        // The client's RST comes first, to a SYN ACK that reached it untranslated.
        n if h.captured.show(n) => Finding::Holds,
        _ => Finding::NotShown,
    };
    Some((finding, h.words()))
}

pub(super) fn saved_half_open(facts: &Facts) -> Option<Told> {
    let bare = facts.half_open(OnItsWay::Ack)?;
    let saved = facts.half_open(OnItsWay::AckProtected)?;
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
    Some((finding, text))
}

/// The load that made connections fail, under other circumstances.
pub(super) fn same_load(facts: &Facts, kind: Kind) -> Option<Told> {
    let (b, a) = (facts.step(Kind::Load)?, facts.step(kind)?);
    let failed = |s: &Shown| s.failed(FailureClass::ConnectTimeout);
    let text = format!(
        "{} of {} connects timed out with {} of {} entries; {} of {} with {} of {}.",
        failed(b),
        b.step.new_attempts,
        b.peak,
        b.limit,
        failed(a),
        a.step.new_attempts,
        a.peak,
        a.limit
    );
    if !b.full() {
        return Some((
            Finding::NotShown,
            format!("{text}\nThat load did not fill the first table."),
        ));
    }
    let finding = match (failed(b), failed(a)) {
        (0, _) => Finding::NotShown,
        // As many connections as the table has room for must have been tried.
        (_, 0) if a.step.new_attempts > b.limit => Finding::Holds,
        (_, 0) => Finding::NotShown,
        _ => Finding::DoesNotHold,
    };
    Some(of_timeouts([b, a].map(std::iter::once), (finding, text)))
}

const fn holds(it: bool) -> Finding {
    if it { Finding::Holds } else { Finding::DoesNotHold }
}

/// What was seen says so; or what was seen refutes it; or neither was seen.
const fn seen(it: bool, otherwise: bool) -> Finding {
    match (it, otherwise) {
        (true, _) => Finding::Holds,
        (false, true) => Finding::DoesNotHold,
        (false, false) => Finding::NotShown,
    }
}

#[cfg(test)]
mod tests;
