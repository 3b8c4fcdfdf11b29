//! The versioned records that every program emits. Their JSON Schema is
//! committed under `schema/`; a test holds it equal to these types.
//!
//! Counts are of connections unless a field says otherwise; times are RFC 3339
//! in UTC; durations carry their unit in the name.

pub mod boom;
pub mod load;
pub mod observe;
pub mod serve;
pub mod witness;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::EndedBy;

/// The version of every record here. It grows by one when a field changes its
/// meaning or goes; new fields alone do not change it.
pub const SCHEMA_VERSION: u32 = 2;

/// A text that is no document of this version.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no such document at all.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Another version's, whose fields may mean something else.
    #[error("schema_version {0}, this program reads {SCHEMA_VERSION}")]
    Version(u32),
    /// Its own sum, of so many attempts, is wrong.
    #[error("its classes do not add up to its attempts")]
    Sum(u64),
}

/// Reads a document of this version.
pub fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, ReadError> {
    #[derive(Deserialize)]
    struct Versioned {
        schema_version: u32,
    }
    match serde_json::from_slice::<Versioned>(json)?.schema_version {
        SCHEMA_VERSION => Ok(serde_json::from_slice(json)?),
        other => Err(ReadError::Version(other)),
    }
}

/// The options of a run by name, those that are not set included.
pub type Config = BTreeMap<String, Setting>;

/// What one option is set to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Setting {
    /// As the command line takes it; several values with commas between them; null where the
    /// option is not set.
    pub value: Option<String>,
    /// Where it comes from.
    #[serde(flatten)]
    pub origin: Origin,
}

/// Where the value of an option comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The command line.
    CommandLine,
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// Worked out by the program at its start, from the other options and the machine.
    Derived,
}

/// Who ran, where, when, with what, and why it ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// The program: `boom-server`, `load-client churn`, `conntrack-lab`, ...
    pub program: String,
    /// Its version.
    pub version: String,
    /// The kernel's release and version, as uname gives them.
    pub kernel: String,
    /// The host's name; in Kubernetes the pod's.
    pub host: String,
    /// NODE_NAME where the environment gives it.
    pub node: Option<String>,
    /// When the run began.
    pub started: String,
    /// When it ended; of a run that goes on, when this was written.
    pub ended: String,
    /// Seconds between the two, by the monotonic clock.
    pub seconds: f64,
    /// Why it ended.
    pub ended_by: EndedBy,
    /// Every option.
    pub config: Config,
}

/// Measures one run, from its start to its [`Run`] record.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: jiff::Timestamp,
    monotonic: std::time::Instant,
}

impl Clock {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { started: jiff::Timestamp::now(), monotonic: std::time::Instant::now() }
    }

    /// When it was started.
    #[must_use]
    pub const fn began(&self) -> std::time::Instant {
        self.monotonic
    }

    /// The second since 1970 at `now`.
    #[must_use]
    pub fn second(&self, now: std::time::Instant) -> u64 {
        let since = now.saturating_duration_since(self.monotonic).as_millis() as u64;
        (self.started.as_millisecond().cast_unsigned() + since) / 1000
    }

    /// The record of a run that ends now.
    #[must_use]
    pub fn run(&self, program: &str, version: &str, ended_by: EndedBy, config: Config) -> Run {
        let (kernel, host) = nix_uname();
        Run {
            program: program.to_owned(),
            version: version.to_owned(),
            kernel,
            host,
            node: std::env::var("NODE_NAME").ok().filter(|n| !n.is_empty()),
            started: rfc3339(self.started),
            ended: rfc3339(jiff::Timestamp::now()),
            seconds: self.monotonic.elapsed().as_secs_f64(),
            ended_by,
            config,
        }
    }
}

/// A time as results spell it: UTC, milliseconds.
fn rfc3339(t: jiff::Timestamp) -> String {
    format!("{t:.3}")
}

/// Seconds from one time to another, both as results spell them.
#[must_use]
pub fn seconds_between(started: &str, ended: &str) -> Option<f64> {
    let time = |s: &str| s.parse::<jiff::Timestamp>().ok();
    Some(time(ended)?.duration_since(time(started)?).as_secs_f64())
}

fn nix_uname() -> (String, String) {
    match nix::sys::utsname::uname() {
        Ok(u) => (
            format!("{} {}", u.release().to_string_lossy(), u.version().to_string_lossy()),
            u.nodename().to_string_lossy().into_owned(),
        ),
        Err(e) => (format!("unknown: uname: {e}"), String::new()),
    }
}
