//! What one cell of a matrix showed.

use crate::document::lab::{Capture, NodeEvidence, ProxyMode};
use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use canary_record::result::witness::WitnessResult;
use canary_testbed::capture::Reset;
use canary_wire::segment::Family;

/// Which cell of a run; in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its scenario's number in the run.
    pub scenario: usize,
    /// 1 for the first time.
    pub repetition: u32,
    /// Whose rules.
    pub proxy_mode: ProxyMode,
    /// IP family.
    pub family: Family,
    /// Its number in the scenario.
    pub plan: usize,
}

/// A cell that was run, or why it could not be.
#[derive(Clone, Debug)]
pub struct Done {
    /// Which.
    pub key: Key,
    /// Its files are under `cells/ID/`.
    pub id: String,
    /// What it showed.
    pub shown: Result<Shown, String>,
    /// Captures kept.
    pub captures: Vec<Capture>,
}

/// What a cell showed.
#[derive(Clone, Debug)]
pub struct Shown {
    /// boom-server's result.
    pub boom: BoomResult,
    /// load-client's result.
    pub load: LoadResult,
    /// What the nodes counted.
    pub nodes: Vec<NodeEvidence>,
    /// RSTs that answer a forged segment, from the server pod's capture.
    pub resets: Option<Vec<Reset>>,
    /// What each node's witness made of the kernel's words; none where it could not watch.
    pub witnesses: Vec<(String, WitnessResult)>,
    /// What weakens the cell without deciding it.
    pub notes: Vec<String>,
    /// The time it took.
    pub seconds: f64,
}
