//! The one file here that touches files: a run's directory in, its report.html
//! and junit.xml out, and two directories compared.

use std::fs;
use std::path::{Path, PathBuf};

use crate::document::lab::LabResult;
use crate::wrong::{Wrong, usage};
use canary_runtime::output::write_file;

use super::diff::{self, Diff};
use super::html::{self, Captures};
use super::junit;
use super::ladder::Packet;
use canary_testbed::capture;
use serde::de::DeserializeOwned;

pub(crate) fn bytes(path: &Path, mend: &str) -> Result<Vec<u8>, Wrong> {
    fs::read(path).map_err(|e| usage(format!("cannot read {}: {e}{mend}", path.display())))
}

pub(crate) fn json<T: DeserializeOwned>(path: &Path, what: &str, mend: &str) -> Result<T, Wrong> {
    serde_json::from_slice(&bytes(path, mend)?)
        .map_err(|e| usage(format!("{} is not a {what}: {e}", path.display())))
}

/// Reads a run's results.json.
pub fn read(dir: &Path) -> Result<LabResult, Wrong> {
    let mend = "; name a directory that `conntrack-lab run` wrote";
    json(&dir.join("results.json"), "result of conntrack-lab run", mend)
}

/// Writes report.html and junit.xml beside results.json. A capture that is
/// missing or broken is missing on the page, which says so.
pub fn write(dir: &Path, result: &LabResult) -> Result<Vec<PathBuf>, Wrong> {
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
pub fn compare(a: &Path, b: &Path) -> Result<Diff, Wrong> {
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
