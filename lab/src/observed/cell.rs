//! What one cell of a matrix showed.

use crate::document::lab::{Capture, NodeEvidence, ProxyMode};
use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use canary_record::result::witness::WitnessResult;
use canary_testbed::capture::Reset;
use canary_wire::segment::Family;

/// Which cell of a run; in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Its scenario's number in the run.
    pub(crate) scenario: usize,
    /// 1 for the first time.
    pub(crate) repetition: u32,
    pub(crate) proxy_mode: ProxyMode,
    pub(crate) family: Family,
    /// Its number in the scenario.
    pub(crate) plan: usize,
}

/// A cell that was run, or why it could not be.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) key: Key,
    /// Its files are under `cells/ID/`.
    pub(crate) id: String,
    pub(crate) shown: Result<Shown, String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) boom: BoomResult,
    pub(crate) load: LoadResult,
    pub(crate) nodes: Vec<NodeEvidence>,
    /// RSTs that answer a forged segment, from the server pod's capture.
    pub(crate) resets: Option<Vec<Reset>>,
    /// What each node's witness made of the kernel's words; none where it could not watch.
    pub(crate) witnesses: Vec<(String, WitnessResult)>,
    pub(crate) captures: Vec<Capture>,
    /// What weakens the cell without deciding it.
    pub(crate) notes: Vec<String>,
    pub(crate) seconds: f64,
}
