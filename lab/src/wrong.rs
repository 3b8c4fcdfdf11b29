//! Why the lab cannot do what it was asked for, and what it says meanwhile.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::Path;

use canary_runtime::exit::Exit;
use canary_runtime::output::OutputError;

/// What is wrong, and how the program ends for it.
#[derive(Debug, thiserror::Error)]
#[error("{1}")]
pub struct Wrong(pub Exit, String);

/// It could not do its job.
pub(crate) fn failed(e: impl Display) -> Wrong {
    Wrong(Exit::Failed, e.to_string())
}

/// The command line, or a file that it names, is wrong.
pub(crate) fn usage(e: impl Display) -> Wrong {
    Wrong(Exit::Usage, e.to_string())
}

/// What `path`, to be written, met.
pub(crate) fn unwritten(path: &Path) -> impl FnOnce(io::Error) -> Wrong {
    move |e| failed(format!("cannot write {}: {e}", path.display()))
}

/// A line on stderr. It may be closed, which must end neither a run nor what puts the host right.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

impl From<OutputError> for Wrong {
    fn from(e: OutputError) -> Self {
        failed(e)
    }
}
