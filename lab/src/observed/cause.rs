//! What the cases of another cause showed.

use std::collections::BTreeMap;

use canary_record::names::Forgery;
use canary_record::outcome::Counts;

use crate::document::timeline::{Change, FailureClass};
use canary_record::names::ProbeEnd;
use canary_record::result::boom::{BoomResult, OutcomeCount};
use canary_record::result::observe::ConntrackCounters;
use canary_record::result::witness::WitnessResult;

/// How connections stood after a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct After {
    /// What was done, in words.
    pub what: String,
    /// How connections had ended by then; one that goes on has survived.
    pub client: BTreeMap<ProbeEnd, u64>,
    /// What became of the segments that the client forged in it.
    pub forged: Vec<OutcomeCount>,
}

/// What a case showed.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it began, in seconds since the scenario did.
    pub t: f64,
    /// Connections.
    pub connections: u64,
    /// How they ended for the client.
    pub client: BTreeMap<ProbeEnd, u64>,
    /// The failed ones, by class.
    pub failures: BTreeMap<FailureClass, u64>,
    /// boom-server's result at each endpoint.
    pub boom: Vec<BoomResult>,
    /// Each step of the case, in order.
    pub steps: Vec<After>,
    /// Entries that were there before and gone after a deletion.
    pub deleted: u64,
    /// What load-client's witness said of the kernel's words on each node, where one listened.
    pub witnesses: Vec<(String, WitnessResult)>,
    /// What was changed.
    pub changes: Vec<Change>,
    /// What conntrack counted on the client's node.
    pub conntrack: ConntrackCounters,
}

impl Seen {
    /// A number of boom-server's, over all endpoints.
    #[must_use]
    pub fn sum(&self, of: fn(&BoomResult) -> u64) -> u64 {
        self.boom.iter().map(of).sum()
    }

    /// How many of a forgery were forged, and what became of them.
    #[must_use]
    pub fn forged(&self, forgery: Forgery) -> (u64, Counts) {
        forged(self.boom.iter().flat_map(|b| &b.outcomes), forgery)
    }
}

/// How many of a forgery were forged, and what became of them.
pub fn forged<'a>(
    outcomes: impl Iterator<Item = &'a OutcomeCount> + Clone,
    forgery: Forgery,
) -> (u64, Counts) {
    let of = outcomes.filter(|o| o.forgery == forgery);
    (of.clone().map(|o| o.forged).sum(), of.map(|o| &o.counts).sum())
}
