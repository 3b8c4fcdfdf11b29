//! What the operating system refused.

use std::io;

/// An operation on the system failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct OsError {
    what: String,
    source: io::Error,
}

impl OsError {
    /// What kind of refusal it was.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// For `map_err`: names the operation and its object.
pub fn os<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> OsError {
    let what = what.into();
    move |source| OsError { what, source: source.into() }
}

/// The same with a reason that is no errno.
pub fn wrong<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    what: impl Into<String>,
) -> impl FnOnce(E) -> OsError {
    let what = what.into();
    move |why| OsError { what, source: io::Error::other(why) }
}
