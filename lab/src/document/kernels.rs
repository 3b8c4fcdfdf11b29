//! The same experiment on several kernels, side by side.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::lab::{Judgement, Path, Protections, ProxyMode, Seen};
use canary_record::names;
use canary_record::names::{Direction, Forgery, OldSegments, ProbeEnd};
use canary_record::result::Run;
use canary_wire::segment::Family;

names! {
    /// How far a kernel came.
    #[derive(Default)]
    pub enum GuestState {
        /// The lab ran to its end.
        Ran = "ran",
        /// The kernel could not be fetched or started.
        #[default]
        NotBooted = "not-booted",
        /// The guest, or the lab in it, ended without a result.
        NoResult = "no-result",
        /// It was stopped at its deadline.
        OutOfTime = "out-of-time",
    }
}

/// What `lab/kernels/all` leaves beside each kernel's results, in `guest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestRecord {
    /// What the kernel is called here: a generation, or a name of one's own.
    pub name: String,
    /// Where the kernel came from: suite, package and version, or a file; empty if it did not come.
    pub source: String,
    /// `kvm` or `tcg`; empty if it was not started.
    pub accel: String,
    /// The guest's `uname -rv`; empty if it did not get as far as a command.
    pub booted: String,
    /// The status that the guest's command, or the start itself, ended with: 124 out of
    /// time, 125 the guest ended before its command.
    pub status: i32,
    /// How often it was started. A second time only when the first died before the lab began.
    pub starts: u32,
    /// Seconds from the (last) start to the end.
    pub seconds: u64,
}

/// The document that `conntrack-lab kernels` writes to kernels.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KernelsResult {
    /// [`canary_record::result::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how: of the comparison, not of the runs compared.
    pub run: Run,
    /// The worst of all kernels and rows: a difference that nothing explains is `differs`.
    pub judgement: Judgement,
    /// Why, most important first.
    pub reasons: Vec<String>,
    /// The kernels, in the order of the columns.
    pub kernels: Vec<KernelRun>,
    /// The table.
    pub rows: Vec<KernelRow>,
    /// The cases of situations.
    #[serde(default)]
    pub cases: Vec<KernelCase>,
}

/// One case of a situation, on every kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelCase {
    /// The scenario's name.
    pub scenario: String,
    /// The case's title.
    pub case: String,
    /// One for each kernel, in the order of [`KernelsResult::kernels`].
    pub cells: Vec<KernelCaseCell>,
}

/// What one kernel made of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelCaseCell {
    /// How the client's connections ended; empty where the case was not run.
    pub client: BTreeMap<ProbeEnd, u64>,
    /// Against the scenario's expectation; inconclusive where the kernel has no such result.
    pub judgement: Judgement,
    /// Why it is not as expected.
    pub reasons: Vec<String>,
}

/// One kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KernelRun {
    /// What it is called here.
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// Its release and full version, by its own word; absent if it never ran.
    pub version: Option<String>,
    /// `kvm`, `tcg`, or empty for a machine's own kernel.
    pub accel: String,
    /// How far it came.
    pub state: GuestState,
    /// What it does with segments below the window, by what it did.
    pub old_segments: OldSegments,
    /// The lab's own judgement of this kernel's run.
    pub judgement: Judgement,
    /// Why, and what weakens it.
    pub reasons: Vec<String>,
    /// When the lab ran there (RFC 3339, UTC).
    pub started: Option<String>,
    /// How long the lab ran there.
    pub seconds: Option<f64>,
    /// The folder of its results, for `conntrack-lab diff`.
    pub results: String,
}

/// One forgery on one path under one set of protections, on every kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelRow {
    /// The way from client to server.
    pub path: Path,
    /// Which way segments were forged.
    pub direction: Direction,
    /// IP family.
    pub family: Family,
    /// Whose rules.
    pub proxy_mode: ProxyMode,
    /// What protects; empty for none.
    pub protections: Protections,
    /// What was forged.
    pub forgery: Forgery,
    /// One for each kernel, in the order of [`KernelsResult::kernels`].
    pub cells: Vec<KernelCell>,
    /// What the kernels that proved something make of it together.
    pub agreement: Agreement,
}

names! {
    /// Whether the generations agree on a row.
    pub enum Agreement {
        /// All that proved something saw the same.
        Alike = "alike",
        /// They differ as their treatment of old segments says (commit 6e250dcbff1d).
        OldSegments = "old-segments",
        /// They differ, and nothing known explains it.
        Unexplained = "unexplained",
        /// Fewer than two kernels proved something.
        NotCompared = "not-compared",
    }
}

/// One cell of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelCell {
    /// What became of the segments; absent where nothing was proved.
    pub seen: Option<Seen>,
    /// Against the scenario's expectation; inconclusive where the kernel has no such result.
    pub judgement: Judgement,
    /// Segments forged.
    pub forged: u64,
    /// How many of them ended as `seen` says.
    pub counted: u64,
    /// Why it is not as expected.
    pub reasons: Vec<String>,
}
