//! What load-client counted.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::boom::{OutcomeCount, PathDiagnosis, Resets, Sniffer};
use super::{ReadError, Run};
use crate::hist::LatencySummary;
use crate::names::{Direction, Errno, FailureClass, LoadVerdict, Phase, ProbeEnd, Verdict};

/// The document that `load-client churn`, `hold` and `probe` end with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadResult {
    /// [`super::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how; of merged results from the first begin to the last end.
    pub run: Run,
    /// Whether every threshold held.
    pub verdict: LoadVerdict,
    /// Why, most important first; also what weakens the verdict.
    pub reasons: Vec<String>,
    /// Connections begun. Equal to the sum of all classes.
    pub attempts: u64,
    /// The time in which connections began, in seconds: none begins after `--duration`, so that
    /// the end of those in progress is no part of it.
    pub begun_s: f64,
    /// Due by the schedule of a `--rate` and never begun, so not among the attempts.
    #[serde(default)]
    pub never_begun: u64,
    /// Ended as they should.
    pub ok: u64,
    /// Ended otherwise, in exactly one class each.
    pub failures: Vec<FailureCount>,
    /// How each probed connection ended; empty for churn and hold.
    #[schemars(extend("propertyNames" = {"enum": ProbeEnd::ALL}))]
    pub probe: BTreeMap<ProbeEnd, u64>,
    /// From the start of connect() to the handshake's end.
    pub connect_latency: LatencySummary,
    /// From the intended start to the end of the exchange; in a `hold`, of every keep-alive
    /// exchange.
    pub total_latency: LatencySummary,
    /// Octets of answers that were read.
    #[serde(default)]
    pub bytes_received: u64,
    /// Connections that this program itself closed with RST (`--close rst`); never counted as
    /// the network's resets.
    #[serde(default)]
    pub own_resets: u64,
    /// Each `--fail-on`, and whether it was crossed.
    #[serde(default)]
    pub thresholds: Vec<ThresholdRecord>,
    /// The run over time, bounded in length.
    #[serde(default)]
    pub series: Series,
    /// What this host's limits allow, read before the start; none where it was not asked.
    #[serde(default)]
    pub preflight: Option<Preflight>,
    /// What became of held connections; none but for `hold`.
    #[serde(default)]
    pub hold: Option<HoldRecord>,
    /// What became of the segments that this program forged towards the server; none but for
    /// `probe --forge`.
    #[serde(default)]
    pub forge: Option<ForgeRecord>,
    /// How many results were merged into this one; 1 for a result of its own.
    #[serde(default = "one")]
    pub merged: u32,
}

/// What became of the segments that a client forged on its own connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForgeRecord {
    /// Which way they went: what the verdict covers.
    pub direction: Direction,
    /// Why nothing was forged, where nothing could be: the direction is untried.
    pub untried: Option<String>,
    /// Of this direction.
    pub verdict: Verdict,
    /// Why, most important first; also what weakens it.
    pub reasons: Vec<String>,
    /// What forbids `protected`, whatever the outcomes say; also among the reasons.
    pub doubts: Vec<String>,
    /// How many above-window segments `protected` needs in each family.
    pub min_forged: u64,
    /// One diagnosis for each IP family.
    pub paths: Vec<PathDiagnosis>,
    /// What became of the forged segments.
    pub outcomes: Vec<OutcomeCount>,
    /// RSTs that were received on the connections.
    pub resets: Resets,
    /// The raw socket.
    pub sniffer: Sniffer,
    /// Not judged when the run ended.
    pub unjudged: u64,
}

const fn one() -> u32 {
    1
}

/// A threshold of `--fail-on`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThresholdRecord {
    /// As it was written.
    pub expression: String,
    /// What was measured, in the expression's own unit (microseconds for latencies).
    pub measured: f64,
    /// True when it fails the run.
    pub crossed: bool,
}

/// Counts over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Series {
    /// The width of every point in seconds: doubled when the series was full.
    pub width_s: u64,
    /// Points with anything in them, oldest first.
    pub points: Vec<SeriesPoint>,
}

/// What happened in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeriesPoint {
    /// Its begin in seconds since 1970 (UTC), a multiple of the width.
    pub at: u64,
    /// Connections begun.
    pub attempts: u64,
    /// Ended as they should.
    pub ok: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// Of those, by a limit of this host.
    pub local: u64,
    /// The 99th percentile of the total latency in microseconds, rounded up to the next of 4
    /// steps an octave; in a merged result the greatest of all.
    pub p99_us: u64,
}

/// The limits of this host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Preflight {
    /// Local ports for each pair of source address and target (`ip_local_port_range`).
    pub ports: u64,
    /// Source addresses.
    pub sources: u64,
    /// Open files that this process may have (RLIMIT_NOFILE, raised to its hard limit).
    pub open_files: u64,
    /// `tcp_tw_reuse`: 0 never, 1 always, 2 on loopback alone.
    pub tw_reuse: u64,
    /// Connections a second that the ports allow for ever when this side closes first;
    /// none when nothing is left in TIME_WAIT.
    pub lasting_rate: Option<f64>,
    /// Connections that can be open at once.
    pub open_connections: u64,
    /// Where the load asked for goes beyond these.
    pub warnings: Vec<String>,
}

/// What became of held connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HoldRecord {
    /// Connections to be held.
    pub wanted: u64,
    /// The most that were open at once.
    pub most_open: u64,
    /// Open when the run ended.
    pub open_at_end: u64,
    /// Established and lost before the end; their classes are among the failures.
    pub lost: u64,
    /// Established in the place of a lost one.
    pub replaced: u64,
    /// Keep-alive exchanges that were answered.
    pub exchanges: u64,
}

impl AddAssign for HoldRecord {
    fn add_assign(&mut self, other: Self) {
        add_each!(self += other: wanted, most_open, open_at_end, lost, replaced, exchanges);
    }
}

/// Connections that failed in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailureCount {
    /// Where it ended.
    pub phase: Phase,
    /// How it ended.
    pub cause: Cause,
    /// True for a limit of this host, which says nothing of the network.
    pub local: bool,
    /// Connections.
    pub count: u64,
}

impl FailureCount {
    /// `count` connections that failed so.
    #[must_use]
    pub const fn new(phase: Phase, cause: Cause, count: u64) -> Self {
        Self { phase, cause, local: cause.is_local(), count }
    }

    /// What it looked like to the application.
    #[must_use]
    pub const fn class(&self) -> FailureClass {
        FailureClass::of(self.phase, self.cause)
    }
}

impl FailureClass {
    /// What a connection that ended in `phase` by `cause` looked like to the application.
    #[must_use]
    pub const fn of(phase: Phase, cause: Cause) -> Self {
        match (phase, cause) {
            _ if cause.is_local() => Self::LocalLimit,
            (_, Cause::Errno(Errno::Econnreset | Errno::Epipe)) => Self::Reset,
            (_, Cause::Errno(Errno::Econnrefused)) => Self::Refused,
            (Phase::Connect, Cause::Stall | Cause::Errno(Errno::Etimedout)) => Self::ConnectTimeout,
            // ETIMEDOUT there: retransmissions without an answer until the kernel gave up.
            (_, Cause::Stall | Cause::Errno(Errno::Etimedout)) => Self::Hung,
            (_, Cause::EarlyEof) => Self::EarlyEof,
            (_, Cause::BadAnswer) => Self::BadAnswer,
            (_, Cause::Interrupted) => Self::Interrupted,
            (_, Cause::Errno(_)) => Self::Other,
        }
    }
}

impl LoadResult {
    /// Reads a document, and holds its counts against one another.
    pub fn read(json: &[u8]) -> Result<Self, ReadError> {
        let result: Self = super::read(json)?;
        if result.adds_up() { Ok(result) } else { Err(ReadError::Sum(result.attempts)) }
    }

    /// The law of the accounts: every attempt ended in exactly one class. A document for
    /// which it does not hold was damaged.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        self.attempts == self.ok + self.failures.iter().map(|f| f.count).sum::<u64>()
    }

    /// Connections that failed, by class.
    #[must_use]
    pub fn classes(&self) -> BTreeMap<FailureClass, u64> {
        let mut classes = BTreeMap::new();
        for f in &self.failures {
            *classes.entry(f.class()).or_default() += f.count;
        }
        classes
    }
}

impl fmt::Display for FailureCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = if self.local { " (a limit of this host)" } else { "" };
        write!(f, "{} in {}: {}{local}", self.cause.words(), self.phase, self.count)
    }
}

impl Cause {
    /// Every cause.
    pub fn all() -> impl Iterator<Item = Self> {
        let others = [Self::EarlyEof, Self::Stall, Self::BadAnswer, Self::Interrupted];
        Errno::ALL.iter().copied().map(Self::Errno).chain(others)
    }

    /// True for a limit of this host, which says nothing of the network.
    #[must_use]
    pub const fn is_local(self) -> bool {
        matches!(self, Self::Errno(e) if e.is_local_limit())
    }

    /// The cause whose [`words`](Self::words) these are.
    #[must_use]
    pub fn from_words(words: &str) -> Option<Self> {
        Self::all().find(|c| c.words() == words)
    }

    /// What a person reads, and metrics have as a label.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Errno(e) => e.as_str(),
            Self::EarlyEof => "early EOF",
            Self::Stall => "stall",
            Self::BadAnswer => "wrong answer",
            Self::Interrupted => "interrupted",
        }
    }
}

/// How a connection failed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The kernel's error.
    Errno(Errno),
    /// The peer closed before the exchange was complete.
    EarlyEof,
    /// No progress within the deadline.
    Stall,
    /// An answer that was not what was asked for.
    BadAnswer,
    /// Cut short by the end of the run.
    Interrupted,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A timeout of the handshake and one after it are different, and a limit of this host is
    /// no failure of the network, in whatever phase it is met.
    #[test]
    fn classes_tell_a_full_table_from_a_hang_and_from_a_limit() {
        let errno = Cause::Errno;
        for (phase, cause, class) in [
            (Phase::Connect, Cause::Stall, FailureClass::ConnectTimeout),
            (Phase::Connect, errno(Errno::Etimedout), FailureClass::ConnectTimeout),
            (Phase::Receive, Cause::Stall, FailureClass::Hung),
            (Phase::Receive, errno(Errno::Etimedout), FailureClass::Hung),
            (Phase::Send, errno(Errno::Epipe), FailureClass::Reset),
            (Phase::Connect, errno(Errno::Econnrefused), FailureClass::Refused),
            (Phase::Connect, errno(Errno::Eaddrnotavail), FailureClass::LocalLimit),
            (Phase::Receive, errno(Errno::Enospc), FailureClass::LocalLimit),
            (Phase::Receive, Cause::EarlyEof, FailureClass::EarlyEof),
            (Phase::Receive, Cause::Interrupted, FailureClass::Interrupted),
            (Phase::Resolve, errno(Errno::Unknown), FailureClass::Other),
        ] {
            assert_eq!(FailureClass::of(phase, cause), class, "{phase} {cause:?}");
            let local = class == FailureClass::LocalLimit;
            assert_eq!(FailureCount::new(phase, cause, 1).local, local);
        }
    }

    /// Every cause is read back from its words as itself.
    #[test]
    fn every_cause_is_read_back() {
        for cause in Cause::all() {
            assert_eq!(Cause::from_words(cause.words()), Some(cause));
        }
        assert_eq!(Cause::from_words("luck"), None);
    }
}
