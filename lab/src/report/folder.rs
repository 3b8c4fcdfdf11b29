//! The one file here that touches files: a run's directory in, its report.html
//! and junit.xml out, and two directories compared.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::document::lab::LabResult;
use canary_runtime::exit::Exit;
use canary_runtime::output::{OutputError, write_file};

use super::diff::{self, Diff};
use super::html::{self, Captures};
use super::junit;
use super::ladder::Packet;
use canary_testbed::capture;
use serde::de::DeserializeOwned;

/// A directory is not what it should be, or what is made of it cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}{mend}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to name instead.
        mend: &'static str,
    },
    /// A file is not the document that it should be.
    #[error("{path} is not a {what}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// Where and what.
        source: serde_json::Error,
    },
    /// It is wrong in another way.
    #[error("{0}")]
    Wrong(String),
    /// A file could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The same of what is no file.
    #[error("cannot write {path}: {source}")]
    Write {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FolderError {
    /// A directory that is none is wrong usage, one that cannot be written a failure.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Read { .. } | Self::Json { .. } | Self::Wrong(_) => Exit::Usage,
            Self::Output(_) | Self::Write { .. } => Exit::Failed,
        }
    }

    /// What `path`, to be written, met.
    pub fn write(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { path: path.into(), source }
    }
}

/// Reads a file.
pub fn bytes(path: &Path, mend: &'static str) -> Result<Vec<u8>, FolderError> {
    fs::read(path).map_err(|source| FolderError::Read { path: path.to_owned(), source, mend })
}

/// Reads a document.
pub fn json<T: DeserializeOwned>(
    path: &Path,
    what: &'static str,
    mend: &'static str,
) -> Result<T, FolderError> {
    serde_json::from_slice(&bytes(path, mend)?).map_err(|source| FolderError::Json {
        path: path.to_owned(),
        what,
        source,
    })
}

/// Reads a run's results.json.
pub fn read(dir: &Path) -> Result<LabResult, FolderError> {
    let mend = "; name a directory that `conntrack-lab run` wrote";
    json(&dir.join("results.json"), "result of conntrack-lab run", mend)
}

/// Writes report.html and junit.xml beside results.json. A capture that is
/// missing or broken is missing on the page, which says so.
pub fn write(dir: &Path, result: &LabResult) -> Result<Vec<PathBuf>, FolderError> {
    let mut written = Vec::new();
    for (name, text) in [
        ("report.html", html::render(result, &captures(dir, result))),
        ("junit.xml", junit::render(result)),
    ] {
        let path = dir.join(name);
        write_file(&path, text)?;
        written.push(path);
    }
    Ok(written)
}

/// Compares two runs, the older first.
pub fn compare(a: &Path, b: &Path) -> Result<Diff, FolderError> {
    Ok(diff::compare(&read(a)?, &read(b)?))
}

/// The captures of single connections that a result names, as far as they are there.
fn captures(dir: &Path, result: &LabResult) -> Captures {
    let mut found = Captures::new();
    for cell in html::cells(result) {
        for capture in cell.captures.iter().filter(|c| c.forgery.is_some()) {
            // A result is a file like any other: it may not name files outside its directory.
            let inside = Path::new(&capture.file)
                .components()
                .all(|c| matches!(c, std::path::Component::Normal(_)));
            let read = || -> Option<Vec<Packet>> {
                let bytes = fs::read(dir.join(&capture.file)).ok()?;
                let mut packets = Vec::new();
                capture::each_segment(&bytes, |s, p| {
                    packets.push(Packet::new(p.timestamp.as_secs_f64(), s));
                })
                .ok()?;
                Some(packets)
            };
            if inside && let Some(packets) = read() {
                found.insert(capture.file.clone(), packets);
            }
        }
    }
    found
}
