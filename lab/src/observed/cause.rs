//! What the cases of another cause showed.

use std::collections::BTreeMap;

use crate::document::timeline::{Change, FailureClass};
use canary_record::names::ProbeEnd;
use canary_record::result::boom::BoomResult;
use canary_record::result::observe::ConntrackCounters;

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
    /// boom-server's result.
    pub boom: BoomResult,
    /// Entries that were there before and gone after a deletion.
    pub deleted: u64,
    /// What was changed.
    pub changes: Vec<Change>,
    /// What conntrack counted on the client's node.
    pub conntrack: ConntrackCounters,
}
