//! Scenarios that go through stages instead of cells: other causes, saturation.
//! Their files say so by `kind`.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::channel;

use crate::document::lab::{LabResult, ScenarioResult};
use canary_record::names::EndedBy;
use canary_record::result::Clock;

use crate::causes::{self, Cause};
use crate::cell::Setting;
use crate::record::{Record, unfinished};
use crate::runner::Plan;
use crate::saturation::table::Control;
use crate::saturation::{self, Saturation};
use crate::scenario::ScenarioError;

/// The shipped ones.
const SHIPPED: &[&str] = &[
    include_str!("../scenarios/entry-deleted.toml"),
    include_str!("../scenarios/endpoint-replaced.toml"),
    include_str!("../scenarios/mtu-black-hole.toml"),
    include_str!("../scenarios/close-unread.toml"),
    include_str!("../scenarios/saturation.toml"),
];

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Staged {
    /// Another cause.
    Cause(Cause),
    /// A table that fills.
    Saturation(Saturation),
}

impl Staged {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Cause(c) => &c.name,
            Self::Saturation(s) => &s.name,
        }
    }

    /// One line on what it is.
    #[must_use]
    pub fn title(&self) -> &str {
        match self {
            Self::Cause(c) => &c.title,
            Self::Saturation(s) => &s.title,
        }
    }

    /// Whether a run that names no scenario has it: saturation takes minutes
    /// and the whole machine.
    #[must_use]
    pub fn by_default(&self) -> bool {
        matches!(self, Self::Cause(_))
    }
}

/// Reads one, or None where the text is a scenario of the matrix.
pub fn parse(file: &str, text: &str) -> Result<Option<Staged>, ScenarioError> {
    let kind = toml::from_str::<toml::Table>(text).ok().and_then(|t| t.get("kind").cloned());
    match kind.as_ref().map(toml::Value::as_str) {
        None => Ok(None),
        Some(Some("cause")) => causes::parse(file, text).map(|c| Some(Staged::Cause(c))),
        Some(Some("saturation")) => {
            saturation::parse(file, text).map(|s| Some(Staged::Saturation(s)))
        }
        Some(_) => Err(ScenarioError::Senseless {
            file: file.to_owned(),
            what: "kind: use cause or saturation, or leave it out for a matrix".to_owned(),
        }),
    }
}

/// The scenarios in the binary.
pub fn shipped() -> Result<Vec<Staged>, ScenarioError> {
    Ok(SHIPPED
        .iter()
        .map(|text| parse("(shipped)", text))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect())
}

/// Takes the names that are ours and leaves the others. With no name at all:
/// those of a default run.
pub fn choose(names: &[String]) -> Result<(Vec<Staged>, Vec<String>), ScenarioError> {
    let shipped = shipped()?;
    if names.is_empty() {
        return Ok((shipped.into_iter().filter(Staged::by_default).collect(), Vec::new()));
    }
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for name in names {
        let found = if Path::new(name).extension().is_some_and(|e| e == "toml") {
            // What cannot be read is said by whom it is left to.
            match std::fs::read_to_string(name) {
                Ok(text) => parse(name, &text)?,
                Err(_) => None,
            }
        } else {
            shipped.iter().find(|s| s.name() == name).cloned()
        };
        match found {
            Some(staged) => ours.push(staged),
            None => others.push(name.clone()),
        }
    }
    Ok((ours, others))
}

/// Runs all, as often as the plan says, and keeps each result as soon as it is there. After a
/// signal nothing more begins.
pub fn run_all(
    staged: &[Staged],
    plan: &Plan,
    clock: &Clock,
    control: Option<&Control>,
    record: &mut Record,
    result: &mut LabResult,
) {
    let signalled = || plan.setting.interrupt.signalled();
    let first = result.scenarios.len();
    let mut keep = |more: ScenarioResult| {
        record.done(&more.name);
        result.scenarios.push(more);
        record.so_far(result);
    };
    for repetition in 1..=plan.repeat {
        let dir = if plan.repeat > 1 {
            plan.dir.join(format!("repetition-{repetition}"))
        } else {
            plan.dir.clone()
        };
        let one = |n: usize, one: &Staged| {
            // A closed stderr must not stop the run.
            let _ = writeln!(std::io::stderr(), "{}: {}", one.name(), one.title());
            run(one, &plan.setting, &dir, &format!("s{repetition}-{n}-"), control)
        };
        // Causes mostly wait: side by side. Saturation has the machine for itself.
        let (causes, alone): (Vec<_>, Vec<_>) =
            staged.iter().enumerate().partition(|(_, s)| matches!(s, Staged::Cause(_)));
        std::thread::scope(|scope| {
            if signalled().is_some() {
                return;
            }
            let (tell, told) = channel();
            for (n, s) in causes {
                let (one, tell) = (&one, tell.clone());
                scope.spawn(move || {
                    let shown = catch_unwind(AssertUnwindSafe(|| one(n, s)))
                        .unwrap_or_else(|_| unfinished(s, "its thread broke off"));
                    // Whoever listens does so to the end.
                    let _ = tell.send(shown);
                });
            }
            drop(tell);
            told.into_iter().for_each(&mut keep);
        });
        for (n, s) in alone {
            if signalled().is_none() {
                keep(one(n, s));
            }
        }
    }
    // Causes end in any order; two runs of the same are told alike.
    result.scenarios[first..].sort_by_key(|one| staged.iter().position(|s| s.name() == one.name));
    result.run = clock.run(
        "conntrack-lab run",
        env!("CARGO_PKG_VERSION"),
        signalled().unwrap_or(EndedBy::Completed),
        plan.config.clone(),
    );
}

/// Runs one.
fn run(
    staged: &Staged,
    setting: &Setting,
    dir: &Path,
    prefix: &str,
    control: Option<&Control>,
) -> ScenarioResult {
    match staged {
        Staged::Cause(cause) => causes::play::run(cause, setting, dir, prefix),
        Staged::Saturation(s) => saturation::run(s, setting, dir, prefix, control),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every shipped file is legal, and a default run leaves saturation out.
    #[test]
    fn shipped_files_are_legal() {
        let all = shipped().unwrap();
        assert_eq!(all.len(), SHIPPED.len());
        let (ours, others) = choose(&[]).unwrap();
        assert!(others.is_empty());
        assert_eq!(ours.len(), all.len() - 1);
        assert!(ours.iter().all(|s| s.name() != "saturation"));
    }

    /// Names of the matrix are left, a wrong kind and an unknown field are refused.
    #[test]
    fn names_are_told_apart() {
        let names = ["cluster-ip".to_owned(), "saturation".to_owned()];
        let (ours, others) = choose(&names).unwrap();
        assert_eq!((ours.len(), others), (1, vec!["cluster-ip".to_owned()]));
        assert!(parse("x", "kind = \"moon\"").unwrap_err().to_string().contains("use cause"));
        let text = SHIPPED[0].replace("title =", "titel =");
        assert!(parse("x", &text).unwrap_err().to_string().contains("titel"));
        assert_eq!(parse("x", "name = \"a\"").unwrap(), None);
    }
}
