//! What the cases of another cause showed.

use std::collections::BTreeMap;
use std::time::Duration;

use canary_record::names::Forgery;
use canary_record::outcome::Counts;

use crate::document::timeline::{Change, FailureClass};
use canary_record::names::ProbeEnd;
use canary_record::result::boom::{BoomResult, OutcomeCount};
use canary_record::result::observe::ConntrackCounters;
use canary_record::result::witness::WitnessResult;

/// How connections stood after a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct After {
    pub(crate) what: String,
    /// How connections had ended by then; one that goes on has survived.
    pub(crate) client: BTreeMap<ProbeEnd, u64>,
    /// What became of the segments that the client forged in it.
    pub(crate) forged: Vec<OutcomeCount>,
    /// Entries of the client's node that were gone after it, where it is of those.
    pub(crate) gone: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// When it began, in seconds since the scenario did.
    pub(crate) t: f64,
    pub(crate) connections: u64,
    /// How long they waited for progress.
    pub(crate) patience: Duration,
    /// Of these connections how many had no known judgement when the step that made them ended.
    pub(crate) own_unknown: BTreeMap<Forgery, u64>,
    /// How they ended for the client.
    pub(crate) client: BTreeMap<ProbeEnd, u64>,
    pub(crate) failures: BTreeMap<FailureClass, u64>,
    /// Where and by which errno those failed whose class does not say it.
    pub(crate) errors: BTreeMap<String, u64>,
    /// What the counters of hosts' own rules say in the end, and what captures lost.
    pub(crate) rules: Vec<String>,
    pub(crate) boom: Vec<BoomResult>,
    pub(crate) steps: Vec<After>,
    /// What load-client's witness said of the kernel's words on each node, where one listened.
    pub(crate) witnesses: Vec<(String, WitnessResult)>,
    pub(crate) changes: Vec<Change>,
    /// What was not measured as a whole.
    pub(crate) doubts: Vec<String>,
    /// What conntrack counted on the client's node.
    pub(crate) conntrack: ConntrackCounters,
}

impl Seen {
    /// A number of boom-server's, over all endpoints.
    pub(crate) fn sum(&self, of: fn(&BoomResult) -> u64) -> u64 {
        self.boom.iter().map(of).sum()
    }

    /// Connections that were reset for a server, those among them that its application never had: an
    /// RST may come before accept().
    pub(crate) fn reset_at_servers(&self) -> u64 {
        self.sum(|b| b.connections.reset_seen_by_application + b.connections.reset_before_accept)
    }

    /// RSTs that came to a server and are not shown to be a forged segment's: those too of connections
    /// that boom-server has forgotten because they were closed.
    pub(crate) fn other_resets(&self) -> u64 {
        self.sum(|b| b.resets.poisoned + b.resets.unattributed + b.resets.unknown_connection)
    }

    /// Of how many connections that are not the case's own nobody knows what became of the forged segment.
    pub(crate) fn others_unknown(&self, forgery: Forgery) -> u64 {
        let unknown: u64 = self.forged(forgery).1.unknown.values().sum();
        unknown.saturating_sub(self.own_unknown.get(&forgery).copied().unwrap_or_default())
    }

    /// How many of a forgery were forged, and what became of them.
    pub(crate) fn forged(&self, forgery: Forgery) -> (u64, Counts) {
        forged(self.boom.iter().flat_map(|b| &b.outcomes), forgery)
    }
}

/// How many of a forgery were forged, and what became of them.
pub(crate) fn forged<'a>(
    outcomes: impl Iterator<Item = &'a OutcomeCount> + Clone,
    forgery: Forgery,
) -> (u64, Counts) {
    let of = outcomes.filter(|o| o.forgery == forgery);
    (of.clone().map(|o| o.forged).sum(), of.map(|o| &o.counts).sum())
}
