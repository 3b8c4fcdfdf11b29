//! What load-client counted.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Run;
use crate::hist::LatencySummary;
use crate::outcome::{Errno, Phase, ProbeEnd, Verdict};

/// The document that `load-client churn`, `hold` and `probe` end with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadResult {
    /// [`super::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how.
    pub run: Run,
    /// Whether every threshold held.
    pub verdict: Verdict,
    /// Why, most important first; also what weakens the verdict.
    pub reasons: Vec<String>,
    /// Connections begun. Equal to the sum of all classes.
    pub attempts: u64,
    /// Ended as they should.
    pub ok: u64,
    /// Ended otherwise, in exactly one class each.
    pub failures: Vec<FailureCount>,
    /// How each probed connection ended; empty for churn and hold.
    pub probe: BTreeMap<ProbeEnd, u64>,
    /// From the start of connect() to the handshake's end.
    pub connect_latency: LatencySummary,
    /// From the intended start to the end of the exchange.
    pub total_latency: LatencySummary,
    /// Octets of answers that were read.
    #[serde(default)]
    pub bytes_received: u64,
    /// Connections that this program itself closed with RST (`--close rst`); never counted as
    /// the network's resets.
    #[serde(default)]
    pub own_resets: u64,
}

/// Connections of one class of failure.
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
