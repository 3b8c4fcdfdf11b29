//! What a target served.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Run;

/// The document that `load-client serve` ends with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServeResult {
    /// [`super::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how.
    pub run: Run,
    /// What weakens these numbers.
    pub reasons: Vec<String>,
    /// Connections accepted.
    pub accepted: u64,
    /// HTTP answers, of which a connection may have many or none.
    pub answers: u64,
    /// Errors of accept(): limits of this host, each of which left connections waiting.
    pub accept_errors: u64,
}
