//! The only processes: tools with a deadline, programs that run beside each
//! other, and the wait for all of them. Nothing that was started outlives its
//! handle.

mod interrupt;
mod process;
mod tools;

use canary_record::names::EndedBy;

use crate::os::OsError;

pub use interrupt::{Interrupt, supervise};
pub use process::{Call, Output, Process, Ready, foreground, memory};
pub use tools::{TOOLS, Tools};

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// A tool that the lab needs is not installed.
    #[error("{tool} is missing: install the Debian package {package} (or put it on PATH)")]
    Missing {
        /// What was looked for.
        tool: String,
        /// Where Debian keeps it.
        package: &'static str,
    },
    /// It ended with a failure.
    #[error("{command} failed ({status}): {stderr}")]
    Failed {
        /// The whole command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// It took too long and was killed.
    #[error("{command} did not end within {seconds} s and was killed: {stderr}")]
    Deadline {
        /// The whole command line.
        command: String,
        /// The time that it had.
        seconds: f64,
        /// What it said until then.
        stderr: String,
    },
    /// It ended, or was silent, before it was ready.
    #[error("{command} did not become ready: {stderr}")]
    NotReady {
        /// The whole command line.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// It ended, or was silent, before it had said something.
    #[error("{command} did not say '{message}': {said}")]
    NotSaid {
        /// The whole command line.
        command: String,
        /// The message of the event.
        message: String,
        /// What it said.
        said: String,
    },
    /// A signal asked the lab to end.
    #[error("interrupted by {0}")]
    Interrupted(EndedBy),
    /// It could not be started, read or waited for.
    #[error(transparent)]
    Os(#[from] OsError),
}
