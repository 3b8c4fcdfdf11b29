//! boom-server forges TCP segments that conntrack calls INVALID towards every
//! client that connects, and tells from the answers whether the client's node
//! protects its connections from them (Kubernetes issue #74839).
//!
//! [`canary_forge`] forges, judges and counts; [`page`] and [`report`] are pure; [`listener`], [`accept`] and [`echo`] have the ordinary connections,
//! [`engine`] is the thread that joins them, [`run`] the order of steps.

pub mod accept;
pub mod config;
pub mod echo;
pub mod engine;
pub mod events;
pub mod kill;
pub mod listener;
pub mod metrics;
pub mod netstat;
pub mod page;
pub mod report;
pub mod run;
pub mod stall;

use std::process::ExitCode;

use canary_runtime::{cli, exit::Exit};

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let (config, options) = match cli::effective() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    match run::run(&config, options) {
        Ok(exit) => exit.into(),
        Err(e) => {
            eprintln!("error: {e}");
            e.exit().into()
        }
    }
}

impl run::RunError {
    /// Bad input is 2, everything else 1.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Output(_) => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}
