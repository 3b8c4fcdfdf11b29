//! Exit codes, the same for every program.

use std::fmt::Display;
use std::process::ExitCode;

use canary_record::names::{LoadVerdict, Verdict};

/// How a program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Protected, or within every threshold.
    Ok = 0,
    /// It could not do its job.
    Failed = 1,
    /// The command line or a file it names is wrong; nothing was done.
    Usage = 2,
    /// Vulnerable, or a threshold was crossed.
    Vulnerable = 10,
    /// The run proved nothing.
    Inconclusive = 11,
}

impl Exit {
    /// The same where a result that was asked for is `lost`: no success, but what was found stands.
    #[must_use]
    pub const fn unless(self, lost: bool) -> Self {
        match self {
            Self::Ok if lost => Self::Failed,
            exit => exit,
        }
    }
}

/// The command line, or what it names, is wrong: [`Exit::Usage`], where any other error is
/// [`Exit::Failed`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// How a program that ran ends; why it failed goes to stderr.
#[must_use]
pub fn code<E: Display>(ran: Result<Exit, E>, is_usage: impl Fn(&E) -> bool) -> ExitCode {
    let exit = ran.unwrap_or_else(|e| {
        eprintln!("error: {e:#}");
        if is_usage(&e) { Exit::Usage } else { Exit::Failed }
    });
    exit.into()
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Verdict> for Exit {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Protected => Self::Ok,
            Verdict::Vulnerable => Self::Vulnerable,
            Verdict::Inconclusive => Self::Inconclusive,
        }
    }
}

impl From<LoadVerdict> for Exit {
    fn from(verdict: LoadVerdict) -> Self {
        match verdict {
            LoadVerdict::WithinThresholds => Self::Ok,
            LoadVerdict::ThresholdCrossed => Self::Vulnerable,
            LoadVerdict::Inconclusive => Self::Inconclusive,
        }
    }
}
