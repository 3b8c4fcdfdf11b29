//! What each kernel left in its folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::document::kernels::{GuestRecord, GuestState, KernelRun};
use crate::document::lab::{Judgement, LabResult};
use canary_record::names::OldSegments;
use canary_record::result::SCHEMA_VERSION;

use super::table::Input;

/// A folder is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not the record it should be.
    #[error("{path} is not a record of this version: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// Neither a guest's folder nor a lab run's.
    #[error(
        "{0}: neither guest.json nor results.json is in it: name a folder that lab/kernels/all or conntrack-lab run wrote"
    )]
    Neither(PathBuf),
}

/// Reads one kernel's folder: a guest's (guest.json, and the lab's results
/// under lab/), or that of a plain `conntrack-lab run` on a machine's own kernel.
pub fn folder(dir: &Path) -> Result<Input, ReadError> {
    let guest = dir.join("guest.json");
    if guest.is_file() {
        let record: GuestRecord = json(&guest)?;
        return of_guest(record, &dir.join("lab"));
    }
    let results = dir.join("results.json");
    if !results.is_file() {
        return Err(ReadError::Neither(dir.to_owned()));
    }
    let lab: LabResult = json(&results)?;
    let name = dir.file_name().map_or_else(|| dir.to_string_lossy(), |n| n.to_string_lossy());
    let mut kernel = kernel(name.into_owned(), dir);
    "this machine's own".clone_into(&mut kernel.source);
    kernel.state = GuestState::Ran;
    Ok(checked(kernel, lab))
}

fn of_guest(record: GuestRecord, results: &Path) -> Result<Input, ReadError> {
    let mut kernel = kernel(record.name, results);
    kernel.source = record.source;
    kernel.accel = record.accel;
    kernel.version = (!record.booted.is_empty()).then_some(record.booted);
    if record.starts > 1 {
        kernel.reasons.push(format!(
            "started {} times: the guest died before the lab began, no cell was repeated",
            record.starts
        ));
    }
    let file = results.join("results.json");
    let status = record.status;
    // 124 and 125 are lab/kernels/run's own; a guest that ran has the lab's status.
    kernel.state = match (status, file.is_file()) {
        (124, _) => GuestState::OutOfTime,
        (_, true) => GuestState::Ran,
        (_, false) if kernel.version.is_none() => GuestState::NotBooted,
        (_, false) => GuestState::NoResult,
    };
    match kernel.state {
        GuestState::Ran => {
            // Those with which the lab ends a whole run (canary_runtime::exit).
            if ![0, 10, 11].contains(&status) {
                kernel
                    .reasons
                    .insert(0, format!("the run broke off (status {status}): see kernel.log"));
                kernel.judgement = Judgement::Inconclusive;
            }
            return Ok(checked(kernel, json(&file)?));
        }
        GuestState::OutOfTime => {
            let text =
                format!("stopped after {} s; what it had proved by then is shown", record.seconds);
            kernel.reasons.insert(0, text);
            kernel.judgement = Judgement::Inconclusive;
            if file.is_file() {
                return Ok(checked(kernel, json(&file)?));
            }
        }
        GuestState::NotBooted => {
            let text = format!(
                "the kernel did not get as far as a command (status {status}): see kernel.log"
            );
            kernel.reasons.insert(0, text);
        }
        GuestState::NoResult => {
            let text = format!("the lab left no results (status {status}): see output.log");
            kernel.reasons.insert(0, text);
        }
    }
    kernel.judgement = Judgement::Inconclusive;
    Ok(Input { kernel, lab: None })
}

/// Results of another version are not compared.
fn checked(mut kernel: KernelRun, lab: LabResult) -> Input {
    if lab.schema_version == SCHEMA_VERSION {
        return Input { kernel, lab: Some(lab) };
    }
    let text = format!(
        "results of schema version {}, this program reads {SCHEMA_VERSION}",
        lab.schema_version
    );
    kernel.reasons.insert(0, text);
    kernel.state = GuestState::NoResult;
    kernel.judgement = Judgement::Inconclusive;
    Input { kernel, lab: None }
}

fn kernel(name: String, results: &Path) -> KernelRun {
    KernelRun {
        name,
        source: String::new(),
        version: None,
        accel: String::new(),
        state: GuestState::NotBooted,
        old_segments: OldSegments::NotShown,
        judgement: Judgement::AsExpected,
        reasons: Vec::new(),
        started: None,
        seconds: None,
        results: results.display().to_string(),
    }
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ReadError> {
    let text = fs::read(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&text)
        .map_err(|source| ReadError::Json { path: path.to_owned(), source })
}
