//! What has been claimed about a full table, and what a run makes of it: pure.

use std::collections::BTreeMap;
use std::fmt;

use canary_common::outcome::ProbeEnd;
use canary_common::result::observe::ConntrackCounters;
use canary_common::result::timeline::{FailureClass, Finding, Statement};
use serde::Deserialize;

use crate::causes::listed;

/// A claim, by the name that scenario files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// New connections time out.
    NewConnectionsTimeOut,
    /// New connections are reset.
    NewConnectionsAreReset,
    /// Established connections are lost.
    EstablishedConnectionsAreLost,
    /// The canary's resets come with load alone.
    ResetsNeedLoad,
    /// be_liberal makes room.
    LiberalFreesAFullTable,
    /// be_liberal ends the canary's resets.
    LiberalCuresTheResets,
    /// A bigger table takes the same load.
    BiggerTableCures,
    /// Shorter timeouts take the same load.
    ShorterTimeoutsCure,
    /// Early drop of half-open entries resets.
    EarlyDropResets,
    /// A closing entry evicted from a full table resets.
    EvictionResetsClosingConnections,
    /// be_liberal and a drop of INVALID save such connections.
    LiberalAndDropsSaveEvicted,
    /// An established timeout shorter than the silence resets.
    ShortTimeoutsResetIdleConnections,
}

impl Claim {
    /// Every claim, in the order of the report.
    pub const ALL: [Self; 12] = [
        Self::NewConnectionsTimeOut,
        Self::NewConnectionsAreReset,
        Self::EstablishedConnectionsAreLost,
        Self::ResetsNeedLoad,
        Self::LiberalFreesAFullTable,
        Self::LiberalCuresTheResets,
        Self::BiggerTableCures,
        Self::ShorterTimeoutsCure,
        Self::EarlyDropResets,
        Self::EvictionResetsClosingConnections,
        Self::LiberalAndDropsSaveEvicted,
        Self::ShortTimeoutsResetIdleConnections,
    ];

    /// The claim and who makes it.
    const fn text(self) -> (&'static str, &'static str, &'static str) {
        const POST: &str = "the blog post that this suite grew from";
        const KERNEL: &str = "nf_conntrack_core.c";
        match self {
            Self::NewConnectionsTimeOut => (
                "new-connections-time-out",
                "A full table drops the SYN of new connections, which time out.",
                KERNEL,
            ),
            Self::NewConnectionsAreReset => (
                "new-connections-are-reset",
                "A full table makes new connections end with Connection reset by peer.",
                POST,
            ),
            Self::EstablishedConnectionsAreLost => (
                "established-connections-are-lost",
                "A full table ends established connections.",
                POST,
            ),
            Self::ResetsNeedLoad => (
                "resets-need-load",
                "The resets that boom-server provokes come with saturation.",
                POST,
            ),
            Self::LiberalFreesAFullTable => (
                "liberal-frees-a-full-table",
                "be_liberal=1 cures the failures of a full table.",
                POST,
            ),
            Self::LiberalCuresTheResets => (
                "liberal-cures-the-resets",
                "be_liberal=1 cures the resets that boom-server provokes out of window.",
                POST,
            ),
            Self::BiggerTableCures => (
                "bigger-table-cures",
                "A bigger table takes the load that filled the smaller one.",
                POST,
            ),
            Self::ShorterTimeoutsCure => (
                "shorter-timeouts-cure",
                "Shorter timeouts for closing states take the load that filled the table.",
                POST,
            ),
            Self::EarlyDropResets => (
                "early-drop-resets",
                "Half-open entries dropped early make new connections end with a reset.",
                "nf_conntrack_core.c: early_drop()",
            ),
            Self::EvictionResetsClosingConnections => (
                "eviction-resets-closing-connections",
                "Saturation alone resets connections: those half closed whose entry is evicted from a full table.",
                "nf_conntrack_core.c: gc_worker_can_early_drop()",
            ),
            Self::LiberalAndDropsSaveEvicted => (
                "liberal-and-drops-save-evicted",
                "be_liberal=1 and INVALID dropped save connections whose entry was evicted.",
                "nf_conntrack_proto_tcp.c: tcp_new(), nf_ct_tcp_loose",
            ),
            Self::ShortTimeoutsResetIdleConnections => (
                "short-timeouts-reset-idle-connections",
                "An established timeout shorter than a silence resets the connection when the server speaks next.",
                "nf_conntrack_proto_tcp.c: tcp_new(), nf_ct_tcp_loose",
            ),
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().0)
    }
}

/// Which step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but the canary.
    NoLoad,
    /// So many clients.
    Clients,
    /// More connections than the table has room for.
    Load,
    /// The table stays full.
    Full,
    /// The same with be_liberal=1.
    FullLiberal,
    /// An empty table, be_liberal=1.
    Liberal,
    /// [`Kind::Load`] in a bigger table.
    Bigger,
    /// [`Kind::Load`] with shorter timeouts.
    Shorter,
    /// Established timeout shorter than a silence.
    Expiry,
}

/// What a step showed.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Which.
    pub kind: Kind,
    /// The limit meanwhile.
    pub limit: u64,
    /// The most entries seen.
    pub peak: u64,
    /// New connections of the load.
    pub attempts: u64,
    /// Of those, failed.
    pub failures: BTreeMap<FailureClass, u64>,
    /// The connections that the step is about: those held, or half closed.
    pub group: BTreeMap<ProbeEnd, u64>,
    /// Segments that boom-server forged.
    pub forged: u64,
    /// RSTs that it attributed to them.
    pub attributed: u64,
    /// What conntrack counted on the node.
    pub conntrack: ConntrackCounters,
}

impl Shown {
    fn failed(&self, class: FailureClass) -> u64 {
        self.failures.get(&class).copied().unwrap_or(0)
    }

    /// Full enough that connections failed for it. A table hovers at its limit.
    #[must_use]
    pub fn full(&self) -> bool {
        self.peak * 100 >= self.limit * 99
    }

    fn ended(&self, end: ProbeEnd) -> u64 {
        self.group.get(&end).copied().unwrap_or(0)
    }
}

/// A place of the eviction experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// A table full of established connections.
    Full,
    /// The same with be_liberal=1 and INVALID dropped.
    Protected,
    /// The same, and new connections take what room there is.
    Contested,
    /// The cause removed: a table nine tenths full.
    Room,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Full, Self::Protected, Self::Contested, Self::Room];

    /// Its name in those of files and hosts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Protected => "protected",
            Self::Contested => "contested",
            Self::Room => "room",
        }
    }
}

/// What became of half-closed transfers in one place.
#[derive(Clone, Debug)]
pub struct Evicted {
    /// Which.
    pub case: Case,
    /// The limit.
    pub limit: u64,
    /// The most entries seen.
    pub most: u64,
    /// The fewest since the table was full.
    pub least: u64,
    /// SYNs that had no answer.
    pub refused: u64,
    /// How the half-closed transfers ended.
    pub half_closed: BTreeMap<ProbeEnd, u64>,
    /// How the established connections beside them ended.
    pub established: BTreeMap<ProbeEnd, u64>,
    /// Segments of the transfers that reached the client untranslated, by its capture.
    pub untranslated: u64,
    /// RSTs to them that reached the server, by its capture.
    pub resets: u64,
    /// When the first transfer ended, in seconds since the table was full.
    pub after_s: Option<f64>,
}

impl Evicted {
    fn ended(&self, end: ProbeEnd) -> u64 {
        self.half_closed.get(&end).copied().unwrap_or(0)
    }

    /// The numbers in a sentence or two.
    #[must_use]
    pub fn words(&self) -> String {
        let when = self.after_s.map_or_else(String::new, |s| format!(" first after {s:.1} s,"));
        format!(
            "Half-closed transfers: {};{when} established connections: {}. {} to {} of {} entries, {} SYNs \
             without an answer. Captured: {} segments that reached the client untranslated, {} RSTs that \
             reached the server.",
            listed(&self.half_closed),
            listed(&self.established),
            self.most,
            self.least,
            self.limit,
            self.refused,
            self.untranslated,
            self.resets
        )
    }
}

/// The most connections that are held to fill a table.
pub const MOST_HELD: u64 = 20_000;

/// What a run showed.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Step by step.
    pub steps: Vec<Shown>,
    /// Whether the limit could be changed.
    pub can_resize: bool,
    /// Whether the table could be filled with established connections.
    pub can_hold: bool,
    /// Place by place, where it could.
    pub evicted: Vec<Evicted>,
}

impl Facts {
    fn evicted(&self, case: Case) -> Option<&Evicted> {
        self.evicted.iter().find(|e| e.case == case)
    }

    fn of(&self, kinds: &[Kind]) -> Vec<&Shown> {
        self.steps.iter().filter(|s| kinds.contains(&s.kind)).collect()
    }
}

/// What the facts make of every claim.
#[must_use]
pub fn find(facts: &Facts) -> Vec<(Claim, Statement)> {
    Claim::ALL
        .into_iter()
        .map(|claim| {
            let (finding, evidence) = one(claim, facts);
            let (_, text, source) = claim.text();
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
    if claim.needs_a_full_table() { full_table(claim, facts) } else { other(claim, facts) }
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
        Claim::EarlyDropResets => {
            let early = sum(&|s| s.conntrack.early_drop);
            let finding = match (early, resets) {
                (0, _) => Finding::NotShown,
                (_, 0) => Finding::DoesNotHold,
                // Something reset; that it was this is not shown.
                _ => Finding::NotShown,
            };
            (
                finding,
                format!(
                    "Full table: {early} entries dropped early, {resets} of {attempts} new connections reset."
                ),
            )
        }
        _ => never(),
    }
}

/// The transfers in a full table against those in one with room.
fn eviction(facts: &Facts) -> (Finding, String) {
    let (Some(full), Some(room)) = (facts.evicted(Case::Full), facts.evicted(Case::Room)) else {
        return never();
    };
    let lost = |e: &Evicted| e.ended(ProbeEnd::Reset) + e.ended(ProbeEnd::Hung);
    let finding = match (full.ended(ProbeEnd::Reset), lost(full), lost(room)) {
        // A reset without an untranslated segment would be another's.
        (1.., _, 0) if full.untranslated > 0 && full.resets > 0 => Finding::Holds,
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
        _ if claim.not_tried(facts) => (
            Finding::NotShown,
            if facts.can_resize {
                format!(
                    "Too many entries to fill the table with established connections: \
                     --host-table-size of {MOST_HELD} at most."
                )
            } else {
                "The host's limit can only be changed by root with --host-table-size.".to_owned()
            },
        ),
        Claim::BiggerTableCures => same_load(facts, Kind::Bigger),
        Claim::EvictionResetsClosingConnections => eviction(facts),
        Claim::LiberalAndDropsSaveEvicted => saved(facts),
        Claim::ShorterTimeoutsCure => same_load(facts, Kind::Shorter),
        Claim::ShortTimeoutsResetIdleConnections => match facts.of(&[Kind::Expiry]).first() {
            Some(s) => (
                if s.ended(ProbeEnd::Reset) > 0 {
                    Finding::Holds
                } else {
                    refuted(s.ended(ProbeEnd::Survived) > 0)
                },
                format!(
                    "Idle for longer than the timeout, then the server spoke: {}.",
                    listed(&s.group)
                ),
            ),
            None => never(),
        },
        _ => never(),
    }
}

impl Claim {
    const fn needs_a_full_table(self) -> bool {
        matches!(
            self,
            Self::NewConnectionsTimeOut
                | Self::NewConnectionsAreReset
                | Self::EstablishedConnectionsAreLost
                | Self::LiberalFreesAFullTable
                | Self::EarlyDropResets
        )
    }

    /// Whether a run cannot show it, whatever it does: its limit is what it is.
    #[must_use]
    pub const fn not_tried(self, facts: &Facts) -> bool {
        match self {
            Self::BiggerTableCures => !facts.can_resize,
            Self::EvictionResetsClosingConnections | Self::LiberalAndDropsSaveEvicted => {
                !facts.can_hold
            }
            _ => false,
        }
    }
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
