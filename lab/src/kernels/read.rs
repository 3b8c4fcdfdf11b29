//! What each kernel left in its folder.

use std::path::Path;

use crate::document::kernels::{GuestRecord, GuestState, KernelRun};
use crate::document::lab::{Judgement, LabResult};
use canary_record::result::SCHEMA_VERSION;
use serde::de::DeserializeOwned;

use super::table::Input;
use crate::report::folder;
use crate::wrong::{Wrong, usage};

/// Reads one kernel's folder: a guest's (guest.json, and the lab's results
/// under lab/), or that of a plain `conntrack-lab run` on a machine's own kernel.
pub(crate) fn folder(dir: &Path) -> Result<Input, Wrong> {
    if let Some(record) = document(&dir.join("guest.json"))? {
        return of_guest(record, &dir.join("lab"));
    }
    let Some(lab) = document(&dir.join("results.json"))? else {
        return Err(usage(format!(
            "{}: neither guest.json nor results.json is in it: name a folder that lab/kernels/all or \
             conntrack-lab run wrote",
            dir.display()
        )));
    };
    let name = dir.file_name().map_or_else(|| dir.to_string_lossy(), |n| n.to_string_lossy());
    let mut kernel = kernel(name.into_owned(), dir);
    "this machine's own".clone_into(&mut kernel.source);
    kernel.state = GuestState::Ran;
    Ok(checked(kernel, Some(lab)))
}

fn document<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Wrong> {
    let read = || folder::json(path, "record of this version", "");
    path.is_file().then(read).transpose()
}

fn of_guest(record: GuestRecord, results: &Path) -> Result<Input, Wrong> {
    let GuestRecord { name, source, accel, booted, status, starts, seconds } = record;
    let version = (!booted.is_empty()).then_some(booted);
    let mut kernel = KernelRun { source, version, accel, ..kernel(name, results) };
    if starts > 1 {
        kernel.reasons.push(format!(
            "started {starts} times: the guest died before the lab began, no cell was repeated"
        ));
    }
    let lab = document(&results.join("results.json"))?;
    // 124 and 125 are lab/kernels/run's own; a guest that ran has the lab's status.
    let (state, why) = match (status, &lab) {
        (124, _) => {
            let why = format!("stopped after {seconds} s; what it had proved by then is shown");
            (GuestState::OutOfTime, Some(why))
        }
        // Those with which the lab ends a whole run (canary_runtime::exit).
        (0 | 10 | 11, Some(_)) => (GuestState::Ran, None),
        (_, Some(_)) => {
            let why = format!("the run broke off (status {status}): see kernel.log");
            (GuestState::Ran, Some(why))
        }
        (_, None) if kernel.version.is_none() => {
            let why = format!(
                "the kernel did not get as far as a command (status {status}): see kernel.log"
            );
            (GuestState::NotBooted, Some(why))
        }
        (_, None) => {
            let why = format!("the lab left no results (status {status}): see output.log");
            (GuestState::NoResult, Some(why))
        }
    };
    kernel.state = state;
    if let Some(why) = why {
        doubt(&mut kernel, why);
    }
    Ok(checked(kernel, lab))
}

fn doubt(kernel: &mut KernelRun, why: String) {
    kernel.reasons.insert(0, why);
    kernel.judgement = Judgement::Inconclusive;
}

/// Results of another version are not compared.
fn checked(mut kernel: KernelRun, lab: Option<LabResult>) -> Input {
    match lab {
        Some(LabResult { schema_version, .. }) if schema_version != SCHEMA_VERSION => {
            let why = format!(
                "results of schema version {schema_version}, this program reads {SCHEMA_VERSION}"
            );
            doubt(&mut kernel, why);
            kernel.state = GuestState::NoResult;
            Input { kernel, lab: None }
        }
        lab => Input { kernel, lab },
    }
}

fn kernel(name: String, results: &Path) -> KernelRun {
    KernelRun {
        name,
        judgement: Judgement::AsExpected,
        results: results.display().to_string(),
        ..KernelRun::default()
    }
}
