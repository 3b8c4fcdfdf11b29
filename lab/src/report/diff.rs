//! What changed from one run to another: two machines, two kernels, two days. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use crate::document::lab::{
    CellResult, Judgement, LabResult, Path, Protections, ProxyMode, ScenarioResult, Seen,
};
use crate::document::timeline as statement;
use canary_record::names::{Forgery, ProbeEnd};
use canary_runtime::exit::Exit;
use canary_wire::segment::Family;

use super::words::count;

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    scenario: String,
    part: Part,
}

/// The parts of a scenario that have a verdict of their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// One forgery on one path under one set of protections. A cell that forged
    /// nothing is one by itself.
    Cell {
        path: Path,
        family: Family,
        proxy_mode: ProxyMode,
        protections: Protections,
        forgery: Option<Forgery>,
    },
    /// A scenario that goes through stages, as a whole.
    Stages,
    /// How the connections of one of its stages ended.
    Stage(String),
    /// A claim about it.
    Claim(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.scenario)?;
        match &self.part {
            Part::Stages => f.write_str("all stages"),
            Part::Stage(text) | Part::Claim(text) => f.write_str(text),
            Part::Cell { path, family, proxy_mode, protections, forgery } => {
                write!(f, "{path} {family} {proxy_mode}, ")?;
                match &**protections {
                    [] => f.write_str("no protection")?,
                    _ => write!(f, "{protections:#}")?,
                }
                match forgery {
                    Some(forgery) => write!(f, ", {forgery}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// What one run says of a key, over its repetitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was seen: what became of segments, every way in which any connection ended, what
    /// became of a claim. Absent where nothing was proved.
    pub seen: Option<Vec<&'static str>>,
    /// Against the expectation.
    pub judgement: Judgement,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.seen {
            Some(seen) => write!(f, "{} ({})", seen.join(" and "), self.judgement),
            None => write!(f, "nothing proved ({})", self.judgement),
        }
    }
}

/// The comparison of two runs, the older first.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    /// Proved in both, and not the same.
    pub changed: Vec<(Key, Finding, Finding)>,
    /// Proved in one alone: no statement.
    pub unproved: Vec<(Key, Finding, Finding)>,
    /// In the second alone.
    pub new: Vec<(Key, Finding)>,
    /// In the first alone.
    pub gone: Vec<(Key, Finding)>,
    /// Proved in both, and the same.
    pub same: u64,
    /// Why the runs cannot be compared, or what weakens it.
    pub doubts: Vec<String>,
    /// What else differs between the runs, which may be the cause.
    pub context: Vec<String>,
    incomparable: bool,
}

/// Compares two runs.
#[must_use]
pub fn compare(a: &LabResult, b: &LabResult) -> Diff {
    let mut diff = Diff { context: context(a, b), ..Diff::default() };
    if a.schema_version != b.schema_version {
        diff.doubts.push(format!(
            "the records are of different versions ({} and {}): run the older again",
            a.schema_version, b.schema_version
        ));
        diff.incomparable = true;
        return diff;
    }
    for (name, run) in [("first", a), ("second", b)] {
        if !run.positive_control.held {
            diff.doubts.push(format!(
                "the {name} run has no positive control ({} of {} reset): it proves nothing",
                run.positive_control.killed, run.positive_control.forged
            ));
            diff.incomparable = true;
        }
    }
    let before = findings(a);
    let mut after = findings(b);
    for (key, old) in before {
        let Some(new) = after.remove(&key) else {
            diff.gone.push((key, old));
            continue;
        };
        match (&old.seen, &new.seen) {
            (Some(a), Some(b)) => {
                // A claim has no judgement but that of its whole scenario.
                let own = !matches!(key.part, Part::Claim(_));
                if a == b && (!own || old.judgement == new.judgement) {
                    diff.same += 1;
                } else {
                    diff.changed.push((key, old, new));
                }
            }
            (None, None) => {}
            _ => diff.unproved.push((key, old, new)),
        }
    }
    diff.new = after.into_iter().collect();
    if diff.same == 0 && diff.changed.is_empty() {
        diff.doubts.push("nothing was proved in both runs".to_owned());
        diff.incomparable = true;
    }
    diff
}

fn context(a: &LabResult, b: &LabResult) -> Vec<String> {
    let mut context = Vec::new();
    let mut differs = |what: &str, a: &str, b: &str| {
        if a != b {
            context.push(format!("{what}: {a} -> {b}"));
        }
    };
    differs("kernel", &a.run.kernel, &b.run.kernel);
    differs("conntrack-lab", &a.run.version, &b.run.version);
    let old = |r: &LabResult| r.environment.old_segments.map_or("not shown", |o| o.as_str());
    differs("segments below the window", old(a), old(b));
    let none = String::new();
    let tools: BTreeSet<_> = a.environment.tools.keys().chain(b.environment.tools.keys()).collect();
    for tool in tools {
        let of = |r: &'_ LabResult| r.environment.tools.get(tool).unwrap_or(&none).clone();
        differs(tool, &of(a), &of(b));
    }
    differs("judgement", a.judgement.as_str(), b.judgement.as_str());
    context
}

fn findings(result: &LabResult) -> BTreeMap<Key, Finding> {
    let mut found: BTreeMap<Key, Finding> = BTreeMap::new();
    for scenario in &result.scenarios {
        let mut add = |part: Part, finding: Finding| {
            let key = Key { scenario: scenario.name.clone(), part };
            let joined = match found.remove(&key) {
                Some(old) => join(&key.part, old, finding),
                None => finding,
            };
            found.insert(key, joined);
        };
        for cell in &scenario.cells {
            for (forgery, finding) in of_cell(cell) {
                let part = Part::Cell {
                    path: cell.path,
                    family: cell.family,
                    proxy_mode: cell.proxy_mode,
                    protections: cell.protections.sorted(),
                    forgery,
                };
                add(part, finding);
            }
        }
        for (part, finding) in of_stages(scenario) {
            add(part, finding);
        }
    }
    found
}

/// A scenario that goes through stages: itself, its claims, and where it makes none the
/// ends of its connections. (Beside claims those are of a table that fills, where the last
/// few connections may end either way.)
fn of_stages(scenario: &ScenarioResult) -> Vec<(Part, Finding)> {
    let Some(timeline) = &scenario.timeline else { return Vec::new() };
    let judgement = scenario.judgement;
    let run = || vec!["run"];
    let mut parts = vec![(Part::Stages, Finding { seen: proved(judgement).then(run), judgement })];
    for s in &timeline.statements {
        let shown = s.finding != statement::Finding::NotShown;
        let seen = shown.then(|| vec![s.finding.as_str()]);
        let claim = s.claim.trim_end_matches('.').to_owned();
        parts.push((Part::Claim(claim), Finding { seen, judgement }));
    }
    if timeline.statements.is_empty() {
        for step in &timeline.steps {
            let ends = step.established.iter().filter(|(_, n)| **n > 0).map(|(e, _)| e.as_str());
            // A case's own: another case of its scenario may differ.
            let judgement = step.case.as_ref().map_or(judgement, |case| case.judgement);
            let seen = proved(judgement).then(|| ends.collect());
            parts.push((Part::Stage(step.title.clone()), Finding { seen, judgement }));
        }
    }
    parts
}

const fn proved(judgement: Judgement) -> bool {
    matches!(judgement, Judgement::AsExpected | Judgement::Differs)
}

fn of_cell(cell: &CellResult) -> Vec<(Option<Forgery>, Finding)> {
    let proved = proved(cell.judgement);
    if cell.forgeries.is_empty() {
        return vec![(None, Finding { seen: None, judgement: cell.judgement })];
    }
    cell.forgeries
        .iter()
        .map(|f| {
            // The forgery's own judgement: its cell may differ because of another.
            let judgement = match f.expected {
                _ if !proved => cell.judgement,
                Some(expected) if expected != f.seen => Judgement::Differs,
                Some(_) | None => Judgement::AsExpected,
            };
            let seen = proved.then(|| vec![f.seen.as_str()]);
            (Some(f.forgery), Finding { seen, judgement })
        })
        .collect()
}

/// Two repetitions of one key.
fn join(part: &Part, a: Finding, b: Finding) -> Finding {
    let seen = match (part, a.seen, b.seen) {
        (_, Some(a), Some(b)) if a == b => Some(a),
        (Part::Cell { .. }, Some(_), Some(_)) => Some(vec![Seen::Mixed.as_str()]),
        (Part::Stage(_), Some(a), Some(b)) => {
            let ends = ProbeEnd::ALL.iter().map(|end| end.as_str());
            Some(ends.filter(|end| a.contains(end) || b.contains(end)).collect())
        }
        // A claim that held once and once did not is shown by neither.
        _ => None,
    };
    Finding { seen, judgement: a.judgement.worse(b.judgement) }
}

impl Diff {
    /// 10 when a verdict changed; 11 when the runs cannot be compared or
    /// something was proved in one alone, or was proved in the first and is not in the second;
    /// 0 when nothing changed.
    #[must_use]
    pub fn exit(&self) -> Exit {
        if self.incomparable {
            Exit::Inconclusive
        } else if !self.changed.is_empty() {
            Exit::Vulnerable
        } else if !self.unproved.is_empty() || self.gone.iter().any(|(_, old)| old.seen.is_some()) {
            Exit::Inconclusive
        } else {
            Exit::Ok
        }
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        let mut list = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                let _ = writeln!(out, "{title}:\n  {}", lines.join("\n  "));
            }
        };
        let both = |v: &[(Key, Finding, Finding)]| -> Vec<_> {
            v.iter().map(|(k, a, b)| format!("{k}: {a} -> {b}")).collect()
        };
        let one = |v: &[(Key, Finding)]| -> Vec<_> {
            v.iter().map(|(k, a)| format!("{k}: {a}")).collect()
        };
        list("Doubts", self.doubts.clone());
        list("The runs themselves", self.context.clone());
        list("Changed", both(&self.changed));
        list("Proved in one run alone", both(&self.unproved));
        list("New", one(&self.new));
        list("Gone", one(&self.gone));
        f.write_str(&out)?;
        write!(
            f,
            "{}, {} unchanged, {} proved in one run alone, {} new, {} gone",
            count(self.changed.len() as u64, "verdict changed", "verdicts changed"),
            self.same,
            self.unproved.len(),
            self.new.len(),
            self.gone.len()
        )
    }
}
