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
pub use tools::{TOOLS, find};

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It ended with a failure, took too long and was killed, or did not say what it should.
    #[error("{command} {how}: {said}")]
    Program {
        /// The whole command line.
        command: String,
        /// How it went wrong.
        how: String,
        /// What it said until then.
        said: String,
    },
    /// A signal asked the lab to end.
    #[error("interrupted by {0}")]
    Interrupted(EndedBy),
    /// It could not be started, read or waited for.
    #[error(transparent)]
    Os(#[from] OsError),
}
