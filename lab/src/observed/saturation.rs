//! What a run showed, as far as a claim needs it.

use std::collections::BTreeMap;

use crate::document::timeline::{FailureClass, Step, TableSpeed, Timeline};
use canary_record::names;
use canary_record::names::{Outcome, ProbeEnd};
use canary_record::result::observe::ConntrackCounters;
use canary_record::result::witness::{InTable, WitnessResult};

use super::{listed, number};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
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
    /// The most clients in a table with a smaller limit.
    Smaller,
    /// [`Kind::Load`] in a bigger table.
    Bigger,
    /// [`Kind::Load`] with shorter timeouts.
    Shorter,
    /// Established timeout shorter than a silence, the server speaks.
    Expiry,
    /// The same, the client speaks.
    ExpiryClient,
}

#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) kind: Kind,
    /// The limit meanwhile.
    pub(crate) limit: u64,
    /// The most entries seen.
    pub(crate) peak: u64,
    pub(crate) forged: u64,
    /// What became of the segments above the window.
    pub(crate) above: BTreeMap<Outcome, u64>,
    /// RSTs that boom-server attributed to what it forged.
    pub(crate) attributed: u64,
    /// Segments that its raw sockets lost.
    pub(crate) lost: u64,
    /// As the timeline has it. Its established connections are those that it is about: held, or half
    /// closed.
    pub(crate) step: Step,
}

impl Shown {
    pub(crate) fn failed(&self, class: FailureClass) -> u64 {
        number(&self.step.new_failures, class)
    }

    /// Packets of the client's that conntrack refused, whatever for.
    pub(crate) fn refused(&self) -> u64 {
        let c = &self.step.conntrack;
        c.drop + c.insert_failed + c.chain_too_long
    }

    /// Full enough that connections failed for it. A table hovers at its limit.
    pub(crate) fn full(&self) -> bool {
        self.peak * 100 >= self.limit * 99
    }
}

/// What captures at both ends show of connections that lost their entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Captured {
    /// Segments that reached the client untranslated.
    pub(crate) untranslated: u64,
    /// RSTs to them that reached the server.
    pub(crate) resets: u64,
    /// What tcpdump lost, by its own count: then the numbers are no evidence.
    pub(crate) lost: Option<String>,
}

impl Captured {
    /// Whether they are whole and show as many of both as `n` resets need.
    pub(crate) fn show(&self, n: u64) -> bool {
        self.lost.is_none() && self.untranslated >= n && self.resets >= n
    }

    fn words(&self) -> String {
        let lost = match &self.lost {
            Some(lost) => format!(" (no evidence, for the capture is not whole: {lost})"),
            None => String::new(),
        };
        format!(
            "Captured: {} segments that reached the client untranslated, {} RSTs that reached the \
             server{lost}.",
            self.untranslated, self.resets
        )
    }
}

names! {
    /// A place of the eviction experiment, by its name in those of files and hosts.
    #[derive(Default)]
    pub enum Case {
        /// A table full of established connections.
        #[default]
        Full = "full",
        /// The same with be_liberal=1 and INVALID dropped.
        Protected = "protected",
        /// The same, and new connections take what room there is.
        Contested = "contested",
        /// The cause removed: a table nine tenths full.
        NearlyFull = "nearly-full",
    }
}

/// What became of half-closed transfers in one case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evicted {
    pub(crate) case: Case,
    pub(crate) limit: u64,
    /// The most entries seen.
    pub(crate) most: u64,
    /// The fewest since the table was full.
    pub(crate) least: u64,
    /// SYNs that had no answer.
    pub(crate) refused: u64,
    pub(crate) half_closed: BTreeMap<ProbeEnd, u64>,
    pub(crate) established: BTreeMap<ProbeEnd, u64>,
    pub(crate) captured: Captured,
    /// When the first transfer ended, in seconds since the table was full.
    pub(crate) after_s: Option<f64>,
}

impl Evicted {
    /// Of the connections that it is about, those that ended so.
    pub(crate) fn ended(&self, end: ProbeEnd) -> u64 {
        number(&self.half_closed, end)
    }

    pub(crate) fn words(&self) -> String {
        let when = self.after_s.map_or_else(String::new, |s| format!(" first after {s:.1} s,"));
        format!(
            "Half-closed transfers: {};{when} established connections: {}. {} to {} of {} entries, {} SYNs \
             without an answer. {}",
            listed(&self.half_closed),
            listed(&self.established),
            self.most,
            self.least,
            self.limit,
            self.refused,
            self.captured.words()
        )
    }
}

names! {
    /// Which segment of a handshake is on its way while others find the table full, by its name in
    /// those of files and hosts.
    pub enum OnItsWay {
        /// The server's SYN ACK.
        SynAck = "syn-ack",
        /// The client's ACK.
        Ack = "ack",
        /// The same with be_liberal=1 and INVALID dropped.
        AckProtected = "protected",
    }
}

/// What became of handshakes whose entries may be dropped early.
#[derive(Clone, Debug)]
pub(crate) struct HalfOpen {
    pub(crate) case: OnItsWay,
    /// How those ended that nothing else disturbed.
    pub(crate) alone: BTreeMap<ProbeEnd, u64>,
    /// How the others ended.
    pub(crate) ends: BTreeMap<ProbeEnd, u64>,
    /// Of these, connected after another SYN.
    pub(crate) late: u64,
    /// SYNs that found the table full meanwhile.
    pub(crate) others: u64,
    /// Entries dropped early for them.
    pub(crate) early: u64,
    pub(crate) captured: Captured,
}

impl HalfOpen {
    /// Of the connections that it is about, those that ended so.
    pub(crate) fn ended(&self, end: ProbeEnd) -> u64 {
        number(&self.ends, end)
    }

    /// Whether all of those that nothing else disturbed lived, and entries were dropped for others.
    pub(crate) fn shows_something(&self) -> bool {
        self.early > 0 && self.alone.keys().all(|end| *end == ProbeEnd::Survived)
    }

    pub(crate) fn words(&self) -> String {
        let late = match self.late {
            0 => String::new(),
            n => format!(" ({n} connected after another SYN)"),
        };
        let room = match self.case {
            OnItsWay::SynAck => "before it came",
            OnItsWay::Ack | OnItsWay::AckProtected => "after the server had repeated its SYN ACK",
        };
        format!(
            "{} entries dropped early for {} SYNs meanwhile, room again {room}: {}{late}. {} Without those \
             SYNs: {}.",
            self.early,
            self.others,
            listed(&self.ends),
            self.captured.words(),
            listed(&self.alone)
        )
    }
}

/// What load-client's witness on the node made of a step or a place, and what else is known of that.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    /// The step's title.
    pub(crate) place: String,
    /// The Service of boom-server's connections.
    pub(crate) target: String,
    /// What it said, or why there was none.
    pub(crate) witness: Result<WitnessResult, String>,
    /// What conntrack counted, as this program read it.
    pub(crate) conntrack: ConntrackCounters,
    /// Connections that boom-server ended by what it forged.
    pub(crate) killed: u64,
    /// Segments that it forged and of which it does not know what they did.
    pub(crate) unknown: u64,
    /// What the connections themselves showed of the table.
    pub(crate) shows: Vec<InTable>,
    /// RSTs that reached the server of half-open connections, where they were captured whole.
    pub(crate) resets: Option<u64>,
}

impl Heard {
    pub(crate) fn words(&self) -> String {
        let w = match &self.witness {
            Ok(w) => w,
            Err(why) => return format!("No witness: {why}."),
        };
        let ends = w.connections.iter().map(|c| format!("{} {}", c.count, c.cause));
        let table = w.table.iter().map(|(what, n)| format!("{n} {what}"));
        let half_open = match w.half_open_resets {
            0 => None,
            n => Some(format!("{n} resets to SYN ACKs without an entry")),
        };
        let all: Vec<_> = ends.chain(table).chain(half_open).collect();
        let all = if all.is_empty() { "nothing".to_owned() } else { all.join(", ") };
        format!("The witness on the node: {all}.")
    }
}

/// The most connections that are held to fill a table.
pub(crate) const MOST_HELD: u64 = 20_000;

#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) steps: Vec<Shown>,
    pub(crate) can_resize: bool,
    /// Whether the table could be filled with established connections.
    pub(crate) can_hold: bool,
    /// By case, where there were any.
    pub(crate) evicted: Vec<Evicted>,
    /// Half-open entries dropped early, segment by segment, where it could.
    pub(crate) half_open: Vec<HalfOpen>,
    /// What the witness on the node heard, step by step and place by place.
    pub(crate) heard: Vec<Heard>,
    /// Rounds with be_liberal 0 and 1, in pairs.
    pub(crate) pace: Vec<[Pace; 2]>,
    /// Rounds with the same entries in the smallest table and in the biggest, in pairs.
    pub(crate) turns: Vec<[TableSpeed; 2]>,
    /// The best rounds of each table.
    pub(crate) tables: Vec<TableSpeed>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pace {
    /// Octets of one connection in a second.
    pub(crate) octets: f64,
    /// Processor time of both ends and of the nodes between them for an octet, in nanoseconds.
    pub(crate) cpu: f64,
    /// New connections in a second, one after another.
    pub(crate) connects: f64,
    /// Processor time of both ends and of the nodes between them for one of these, in nanoseconds.
    pub(crate) connect_cpu: f64,
}

impl Facts {
    pub(crate) fn evicted(&self, case: Case) -> Option<&Evicted> {
        self.evicted.iter().find(|e| e.case == case)
    }

    pub(crate) fn half_open(&self, case: OnItsWay) -> Option<&HalfOpen> {
        self.half_open.iter().find(|h| h.case == case)
    }

    pub(crate) fn step(&self, kind: Kind) -> Option<&Shown> {
        self.steps.iter().find(|s| s.kind == kind)
    }

    /// Those in which the load filled the table, and it was full.
    pub(crate) fn full(&self) -> impl Iterator<Item = &Shown> + Clone {
        let load = |s: &&Shown| matches!(s.kind, Kind::Load | Kind::Full | Kind::FullLiberal);
        self.steps.iter().filter(load).filter(|s| s.full())
    }
}

/// Everything that a run showed until it ended, or broke off.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filled {
    pub(crate) timeline: Timeline,
    /// As far as a claim needs it.
    pub(crate) facts: Facts,
    pub(crate) broken: Option<String>,
}

impl Filled {
    /// Adds a step or a place, and what was heard there.
    pub(crate) fn add(&mut self, mut step: Step, heard: Heard) {
        step.notes.push(heard.words());
        self.timeline.steps.push(step);
        self.facts.heard.push(heard);
    }
}
