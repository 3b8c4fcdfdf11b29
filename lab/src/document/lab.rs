//! What the lab found: every cell of its matrix, with the evidence beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::timeline::Timeline;
use canary_record::names;
use canary_record::names::{Diagnosis, Direction, Forgery, OldSegments, ProbeEnd};
use canary_record::outcome::Counts;
use canary_record::result::Run;
use canary_record::result::witness::CauseCount;
use canary_runtime::exit::Exit;
pub use canary_testbed::model::{At, NodeEvidence, Path, Protection, ProtectionKind, ProxyMode};
use canary_wire::segment::Family;

/// A set of protections, as it was written. Equal sets are equal when [`sorted`](Self::sorted).
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Protections(Vec<Protection>);

impl Protections {
    /// In the one order that makes equal sets equal.
    #[must_use]
    pub fn sorted(&self) -> Self {
        self.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether any of them drops INVALID segments.
    #[must_use]
    pub fn drop(&self) -> bool {
        self.iter().any(|p| p.kind != ProtectionKind::Liberal)
    }
}

impl std::ops::Deref for Protections {
    type Target = [Protection];
    fn deref(&self) -> &[Protection] {
        &self.0
    }
}

impl FromIterator<Protection> for Protections {
    fn from_iter<I: IntoIterator<Item = Protection>>(list: I) -> Self {
        Self(list.into_iter().collect())
    }
}

/// `liberal+forward-drop`; with `{:#}` as a reader likes it.
impl fmt::Display for Protections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(ToString::to_string).collect();
        match &*names {
            [] => f.pad("none"),
            names => f.pad(&names.join(if f.alternate() { " + " } else { "+" })),
        }
    }
}

names! {
    /// What became of every forged segment of one kind in one cell.
    pub enum Seen {
        /// All reached the client's own socket.
        Delivered = "delivered",
        /// All leaked, no connection ended by it.
        Leaked = "leaked",
        /// All leaked and reset their connections.
        Kills = "kills",
        /// All dropped, the connections alive.
        Dropped = "dropped",
        /// All answered by a node's own RST; nothing reached the client.
        Rejected = "rejected",
        /// All reached the client's own socket, and all these connections were reset later:
        /// the conntrack entry was poisoned.
        KillsLater = "kills-later",
        /// All reached the client's own socket, and all these connections hung afterwards.
        Hangs = "hangs",
        /// No connection came to be, so nothing was forged.
        NoConnection = "no-connection",
        /// Not all the same, or not all judged.
        Mixed = "mixed",
    }
}

names! {
    /// What a path under a protection does with INVALID segments, as a row of
    /// the table of forgeries and outcomes.
    pub enum Profile {
        /// They leak, and reset connections.
        Unprotected = "unprotected",
        /// be_liberal alone: those with bad flags still leak.
        LiberalOnly = "liberal-only",
        /// They are dropped.
        Dropped = "dropped",
        /// Translated where be_liberal can, dropped otherwise.
        LiberalAndDropped = "liberal-and-dropped",
        /// Nothing is translated: every segment arrives as it is.
        NotTranslated = "not-translated",
        /// No connection can be made at all.
        NoConnection = "no-connection",
    }
}

names! {
    /// What people try against resets and hangs.
    pub enum Mend {
        /// Nothing: the situation as it is.
        AsItIs = "as-it-is",
        /// be_liberal.
        Liberal = "liberal",
        /// INVALID dropped in FORWARD.
        ForwardDrop = "forward-drop",
        /// INVALID dropped in INPUT.
        InputDrop = "input-drop",
        /// INVALID dropped in PREROUTING.
        PreroutingDrop = "prerouting-drop",
        /// be_liberal, and INVALID dropped in FORWARD and INPUT.
        LiberalAndDrops = "liberal-and-drops",
        /// The drops of the situation taken away.
        NoDrop = "no-drop",
        /// 5 days for established connections, an hour for half-closed ones.
        LongerTimeouts = "longer-timeouts",
        /// Both directions take one way.
        SymmetricRoute = "symmetric-route",
    }
}

names! {
    /// What a mend does to a situation.
    pub enum Effect {
        /// No connection is lost any more.
        Helps = "helps",
        /// Fewer are lost.
        HelpsPartly = "helps-partly",
        /// As many are lost, or as few.
        DoesNothing = "does-nothing",
        /// More are lost.
        Harms = "harms",
        /// It could not be tried, or its run proves nothing.
        NotShown = "not-shown",
    }
}

/// A case of a scenario under each mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mended {
    /// The case's title.
    pub case: String,
    /// Its connections.
    pub connections: u64,
    /// Each mend that applies, the situation as it is first.
    pub mends: Vec<MendResult>,
}

impl Mended {
    /// The mends that help, wholly or partly.
    pub fn helping(&self) -> impl Iterator<Item = Mend> {
        let helps = |m: &&MendResult| matches!(m.effect, Effect::Helps | Effect::HelpsPartly);
        self.mends.iter().filter(helps).map(|m| m.mend)
    }

    /// Whether connections are lost as it is, and no mend that was tried helps.
    #[must_use]
    pub fn helpless(&self) -> bool {
        let base = self.mends.iter().find(|m| m.mend == Mend::AsItIs && m.why.is_none());
        base.is_some_and(|m| m.lost > 0) && self.helping().next().is_none()
    }
}

/// What one mend did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MendResult {
    /// Which.
    pub mend: Mend,
    /// Connections lost: they did not survive for the client, or the server saw them reset.
    pub lost: u64,
    /// Against the situation as it is.
    pub effect: Effect,
    /// Why it could not be tried, or proves nothing.
    pub why: Option<String>,
}

names! {
    /// How an observation compares with its expectation; the worst first.
    #[derive(Default)]
    pub enum Judgement {
        /// Proved, and not as expected.
        Differs = "differs",
        /// Nothing was proved; the reasons say why.
        #[default]
        Inconclusive = "inconclusive",
        /// Not run here; the reasons say why and what would mend it.
        Skipped = "skipped",
        /// As the scenario expects, all evidence agreeing.
        AsExpected = "as-expected",
    }
}

impl Judgement {
    /// The worse of two.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        self.min(other)
    }
}

impl From<Judgement> for Exit {
    fn from(judgement: Judgement) -> Self {
        match judgement {
            Judgement::AsExpected => Self::Ok,
            Judgement::Differs => Self::Vulnerable,
            Judgement::Inconclusive | Judgement::Skipped => Self::Inconclusive,
        }
    }
}

/// The document that `conntrack-lab run` writes to results.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LabResult {
    /// [`canary_record::result::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how.
    pub run: Run,
    /// The worst of all scenarios; inconclusive without a positive control.
    pub judgement: Judgement,
    /// Why, most important first; also what weakens the judgement.
    pub reasons: Vec<String>,
    /// The machine.
    pub environment: Environment,
    /// Shows that this run could have found the fault.
    pub positive_control: PositiveControl,
    /// In the order that they were run.
    pub scenarios: Vec<ScenarioResult>,
}

/// What the run depended on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// Versions as the tools themselves give them, by name.
    pub tools: BTreeMap<String, String>,
    /// True in a user namespace of the lab's own, false as root of the host.
    pub user_namespace: bool,
    /// Processors that this process may use.
    pub cpus: u64,
    /// nf_conntrack_max, which every network namespace shares.
    pub conntrack_max: Option<u64>,
    /// The kernel's generation by what it did here with segments below the window.
    pub old_segments: Option<OldSegments>,
}

/// The unprotected ClusterIP cells, without whose resets no run proves anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PositiveControl {
    /// True when every such cell reset every connection that above-window was forged on.
    pub held: bool,
    /// above-window segments forged on unprotected ClusterIP paths.
    pub forged: u64,
    /// Connections that they reset.
    pub killed: u64,
}

/// One scenario, run once or several times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScenarioResult {
    /// Its name, as `conntrack-lab list` shows it.
    pub name: String,
    /// One line on what it is.
    pub title: String,
    /// Why its expectation should hold.
    pub why: String,
    /// Where that is known from.
    pub source: String,
    /// The worst of its cells.
    pub judgement: Judgement,
    /// Why it was skipped or could not be judged.
    pub reasons: Vec<String>,
    /// Why a case of a situation is not as expected, or was not run, by its title.
    #[serde(default)]
    pub of_cases: BTreeMap<String, Vec<String>>,
    /// Which one of several it is, from 1, where each has a result of its own: of situations and of what
    /// goes through stages. Cells say theirs.
    #[serde(default = "first")]
    pub repetition: u32,
    /// Its cells, each repetition by itself.
    pub cells: Vec<CellResult>,
    /// What to type as root to build the same by hand.
    pub commands: Vec<CommandList>,
    /// What it showed over time, where the scenario has steps.
    #[serde(default)]
    pub timeline: Option<Timeline>,
    /// Its cases under each mend, where that was asked for.
    #[serde(default)]
    pub mended: Vec<Mended>,
}

const fn first() -> u32 {
    1
}

impl ScenarioResult {
    /// Its name, with the number of the repetition after the first.
    #[must_use]
    pub fn called(&self) -> String {
        match self.repetition {
            0 | 1 => self.name.clone(),
            n => format!("{} (repetition {n})", self.name),
        }
    }
}

/// Commands to repeat a set-up, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandList {
    /// What they set up.
    pub title: String,
    /// Shell commands.
    pub lines: Vec<String>,
}

/// One path under one set of protections: one run of boom-server and load-client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CellResult {
    /// The cell's files are under `cells/ID/`.
    pub id: String,
    /// 1 for the first time.
    pub repetition: u32,
    /// The way from client to server.
    pub path: Path,
    /// Which way segments were forged.
    #[serde(default)]
    pub direction: Direction,
    /// IP family.
    pub family: Family,
    /// Whose rules.
    pub proxy_mode: ProxyMode,
    /// What protects; empty for none.
    pub protections: Protections,
    /// Observation against expectation.
    pub judgement: Judgement,
    /// Why, where it is not as expected.
    pub reasons: Vec<String>,
    /// The row of the table that the observations make, if they make one.
    pub profile: Option<Profile>,
    /// What it means, in a sentence.
    pub meaning: String,
    /// What to do, in a sentence; empty where nothing needs doing.
    pub advice: String,
    /// By forgery, in the scenario's order.
    pub forgeries: Vec<ForgeryResult>,
    /// boom-server's own diagnosis of this path.
    pub boom_diagnosis: Option<Diagnosis>,
    /// How load-client's connections ended.
    pub client: BTreeMap<ProbeEnd, u64>,
    /// Segments that boom-server's raw sockets lost.
    pub sniffer_dropped: u64,
    /// What each node was set to and counted meanwhile.
    pub nodes: Vec<NodeEvidence>,
    /// RSTs in a capture at the server pod that answer a forged segment, by forgery:
    /// counted by another reader than boom-server. Absent without a capture.
    pub captured_resets: Option<BTreeMap<Forgery, u64>>,
    /// What the kernel itself said on each node, by load-client's witness: a second judge.
    #[serde(default)]
    pub witnesses: Vec<WitnessSaid>,
    /// Captures kept.
    pub captures: Vec<Capture>,
    /// How long the cell took.
    pub seconds: f64,
}

/// What one node's witness made of the kernel's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WitnessSaid {
    /// The node.
    pub node: String,
    /// Connections by what ended them.
    pub connections: Vec<CauseCount>,
    /// Resets that were provoked and ended nothing.
    pub harmless: u64,
    /// Resets on connections that were closing when the witness looked, and those that belong to no
    /// segment that it knows: where it looked late, any of what was ended. And what conntrack ignored,
    /// as a SYN from the port of a connection that was ended: two on one port count as one.
    #[serde(default)]
    pub uncertain: u64,
    /// Where the client had connected to: each address of a connection that was ended.
    pub services: Vec<String>,
    /// The kernel's texts, each number in them written N, and how often each came.
    pub texts: BTreeMap<String, u64>,
    /// What it lost, or why it could not watch.
    pub weak: Vec<String>,
}

/// One kind of forged segment in one cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForgeryResult {
    /// What was forged.
    pub forgery: Forgery,
    /// What should become of it on this kernel; absent where the scenario says nothing.
    pub expected: Option<Seen>,
    /// What became of it.
    pub seen: Seen,
    /// Segments forged.
    pub forged: u64,
    /// What became of them.
    #[serde(flatten)]
    pub counts: Counts,
}

impl ForgeryResult {
    /// Nothing forged yet.
    #[must_use]
    pub fn none(forgery: Forgery) -> Self {
        Self { forgery, expected: None, seen: Seen::Mixed, forged: 0, counts: Counts::default() }
    }

    /// Adds another cell's, of the same forgery. What they do not agree on is mixed.
    pub fn add(&mut self, other: &Self) {
        if self.seen != other.seen {
            self.seen = Seen::Mixed;
        }
        self.expected = self.expected.or(other.expected);
        self.forged += other.forged;
        self.counts += &other.counts;
    }

    /// What became of how many, in words.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 5] {
        let counts = &self.counts;
        [
            ("killed", counts.killed),
            ("leaked, harmless", counts.leaked.saturating_sub(counts.killed)),
            ("delivered", counts.delivered),
            ("dropped", counts.dropped),
            ("not proved", counts.unknown.values().sum()),
        ]
    }

    /// How many of the forged bear out what was seen.
    #[must_use]
    pub const fn agreeing(&self) -> u64 {
        match self.seen {
            Seen::Kills => self.counts.killed,
            Seen::Leaked => self.counts.leaked,
            Seen::Delivered | Seen::KillsLater | Seen::Hangs => self.counts.delivered,
            Seen::Dropped => self.counts.dropped,
            Seen::Rejected => self.counts.rejected,
            Seen::NoConnection | Seen::Mixed => 0,
        }
    }

    /// Against its expectation, in a cell whose evidence holds.
    #[must_use]
    pub fn judgement(&self) -> Judgement {
        match self.expected {
            Some(expected) if expected != self.seen => Judgement::Differs,
            _ if self.seen == Seen::Mixed && !self.counts.unknown.is_empty() => {
                Judgement::Inconclusive
            }
            _ => Judgement::AsExpected,
        }
    }
}

/// A packet capture that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capture {
    /// The forgery whose connection it shows; absent for a whole cell.
    pub forgery: Option<Forgery>,
    /// The host it was taken in.
    pub host: String,
    /// The file, relative to results.json.
    pub file: String,
    /// Packets in it.
    pub packets: u64,
    /// What the kernel said of the forged segment, where a witness heard it. Where no witness has
    /// this very segment, what it said of all of its kind: each number written N.
    #[serde(default)]
    pub kernel: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A difference outweighs everything, doubt outweighs success.
    #[test]
    fn the_worst_judgement_wins() {
        use Judgement::{AsExpected, Differs, Inconclusive, Skipped};
        assert_eq!(AsExpected.worse(Inconclusive), Inconclusive);
        assert_eq!(Differs.worse(Inconclusive), Differs);
        assert_eq!(Skipped.worse(AsExpected), Skipped);
    }
}
