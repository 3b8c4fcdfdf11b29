//! boom-server forges TCP segments that conntrack calls INVALID towards every
//! client that connects, and tells from the answers whether the client's node
//! protects its connections from them (Kubernetes issue #74839).
//!
//! [`canary_forge`] forges, judges and counts; `page` and `report` are pure; `listener`, `accept` and `echo` have the
//! ordinary connections, `engine` is the thread that joins them, `run` the order of steps.

mod accept;
mod config;
mod echo;
mod engine;
mod events;
mod kill;
mod listener;
mod metrics;
mod netstat;
mod page;
mod report;
mod run;
mod stall;

pub use config::Config;

use std::process::ExitCode;

use canary_runtime::cli;
use canary_runtime::exit::{self, Usage};

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    match cli::effective() {
        Ok((config, options)) => exit::code(run::run(config, options), anyhow::Error::is::<Usage>),
        Err(code) => code,
    }
}
