//! A run of `kubectl conntrack experiment`, from what it collected to the lab's own result and report: pure
//! but for [`run`].

pub mod journal;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::document::add;
use crate::document::lab::{Environment, Judgement, LabResult, PositiveControl, ScenarioResult};
use crate::document::timeline::{FailureClass, Finding, Statement, Step, Timeline};
use canary_record::names::{EndedBy, Outcome};
use canary_record::result::load::LoadResult;
use canary_record::result::{Origin, Run, SCHEMA_VERSION, Setting};
use canary_runtime::output::ResultFile;

use self::journal::{Fact, Journal, Reading, StepRecord};
use crate::judge::saturation::findings;
use crate::observed::saturation::{Facts, Kind, Shown};
use crate::report::folder;
use crate::scenario::claims::Claim;
use crate::wrong::{Wrong, usage};

/// Judges what is under `dir`/raw, and writes results.json and the report beside it.
pub fn run(dir: &Path) -> Result<LabResult, Wrong> {
    let raw = dir.join("raw");
    let read = |name: &str| {
        let mend = "; name a directory that kubectl conntrack experiment wrote";
        let bytes = folder::bytes(&raw.join(name), mend)?;
        Ok::<_, Wrong>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let journal = Journal::read(&read("journal")?).map_err(usage)?;
    let samples = journal::samples(&read("samples")?).map_err(usage)?;
    let mut doubts = Vec::new();
    let results: Vec<_> = (0..journal.steps.len())
        .map(|n| results(&raw.join(format!("step-{n}")), &mut doubts))
        .collect();
    let result = judge(&journal, &samples, &results, doubts);
    ResultFile::prepare(&dir.join("results.json"))?.write(&result)?;
    folder::write(dir, &result)?;
    Ok(result)
}

/// The clients' result documents of one step. What is none is said and left out.
fn results(dir: &Path, doubts: &mut Vec<String>) -> Vec<LoadResult> {
    let mut files: Vec<_> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|f| f.path()).collect();
    files.sort();
    let mut results = Vec::new();
    for file in files {
        let name = file.display();
        let document = |bytes: Vec<u8>| LoadResult::read(&bytes).map_err(|e| e.to_string());
        match fs::read(&file).map_err(|e| e.to_string()).and_then(document) {
            Ok(result) => results.push(result),
            Err(why) => doubts.push(format!("{name} is no result of load-client: {why}")),
        }
    }
    results
}

fn judge(
    journal: &Journal,
    readings: &[Reading],
    results: &[Vec<LoadResult>],
    unread: Vec<String>,
) -> LabResult {
    let mut reasons: Vec<String> = journal.doubts.iter().cloned().chain(unread).collect();
    let steps: Vec<_> = journal
        .steps
        .iter()
        .zip(results)
        .map(|(record, results)| step(record, readings, results, journal, &mut reasons))
        .collect();
    let (seconds, ended_by) = journal.end.unwrap_or((journal.last, EndedBy::Error));
    if journal.end.is_none() {
        reasons.push("the run was cut: its journal has no end".to_owned());
    }
    if !steps.iter().any(|s| s.step.boom.contains_key(&Outcome::Delivered)) {
        reasons.push(
            "boom-server saw no forged segment delivered: the positive control is missing"
                .to_owned(),
        );
    }
    // The first step in which nothing protects: behind a drop there is none, and a reset shows that
    // there was no drop.
    let held_off = journal.value(Fact::HoldOffDrop) == "1";
    let bare =
        steps.iter().filter(|s| s.kind != Kind::Liberal).find(|s| held_off || s.attributed > 0);
    let control = PositiveControl {
        held: bare.is_some_and(|s| s.attributed > 0),
        forged: bare.map_or(0, |s| s.forged),
        killed: bare.map_or(0, |s| s.attributed),
    };
    if held_off && !control.held {
        reasons.push(
            "INVALID was not dropped, and yet no above-window segment reset its connection"
                .to_owned(),
        );
    }
    let judgement =
        if reasons.is_empty() { Judgement::AsExpected } else { Judgement::Inconclusive };
    let mut timeline = Timeline {
        statements: statements(&steps, journal),
        reasons: vec![
            "the series counts the canary client: the attempts of the load are in the steps"
                .to_owned(),
        ],
        ..Timeline::default()
    };
    for pair in readings.windows(2) {
        timeline.push(pair[1].since(&pair[0]).sample);
    }
    timeline.steps = steps.into_iter().map(|s| s.step).collect();
    let most = journal.steps.iter().map(|s| s.clients).max().unwrap_or(0);
    LabResult {
        schema_version: SCHEMA_VERSION,
        run: Run {
            program: "kubectl conntrack experiment".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: journal.value(Fact::Kernel).to_owned(),
            host: journal.value(Fact::Context).to_owned(),
            node: None,
            started: journal.value(Fact::Started).to_owned(),
            ended: journal.value(Fact::Ended).to_owned(),
            seconds,
            ended_by,
            config: [Fact::Clients, Fact::Seconds, Fact::TableSize, Fact::HoldOffDrop]
                .map(|fact| {
                    let value = Some(journal.value(fact).to_owned());
                    (fact.to_string(), Setting { value, origin: Origin::Derived })
                })
                .into(),
        },
        judgement,
        reasons: reasons.clone(),
        environment: Environment {
            tools: [("kubernetes".to_owned(), journal.value(Fact::Kubernetes).to_owned())].into(),
            ..Environment::default()
        },
        positive_control: control,
        scenarios: vec![ScenarioResult {
            name: "cluster-saturation".to_owned(),
            title: format!("Load from 0 to {most} clients on a real cluster"),
            why: "The blog post scales its clients until the conntrack table is full".to_owned(),
            source: "kubectl conntrack experiment".to_owned(),
            judgement,
            reasons,
            repetition: 1,
            timeline: Some(timeline),
            ..ScenarioResult::default()
        }],
    }
}

fn title(record: &StepRecord, journal: &Journal) -> String {
    let clients = record.clients;
    match record.kind {
        Kind::Load => {
            format!("a table of {} entries, {clients} clients", journal.value(Fact::TableSize))
        }
        Kind::Liberal => format!("be_liberal on every node, {clients} clients"),
        _ => format!("{clients} clients"),
    }
}

fn step(
    record: &StepRecord,
    readings: &[Reading],
    results: &[LoadResult],
    journal: &Journal,
    reasons: &mut Vec<String>,
) -> Shown {
    let title = title(record, journal);
    // The sample before the step is what its counts begin from.
    let (from, to) = (record.from.unwrap_or(f64::MAX), record.to.unwrap_or(journal.last));
    let first = readings.partition_point(|r| r.sample.t <= from).saturating_sub(1);
    let beyond = readings.partition_point(|r| r.sample.t <= to).max(first);
    let within = &readings[first..beyond];
    let grown: Vec<_> = within.windows(2).map(|w| w[1].since(&w[0])).collect();
    let sum = |of: fn(&Reading) -> u64| grown.iter().map(of).sum::<u64>();
    let mut step = Step {
        title: title.clone(),
        notes: Vec::new(),
        new_attempts: results.iter().map(|r| r.attempts).sum(),
        new_ok: results.iter().map(|r| r.ok).sum(),
        ..record.step.clone()
    };
    for result in results {
        add(&mut step.new_failures, &result.classes());
    }
    let mut became = BTreeMap::new();
    for Reading { sample, above, .. } in &grown {
        add(&mut became, above);
        add(&mut step.boom, &sample.boom);
        step.conntrack = step.conntrack.plus(sample.conntrack);
    }
    if grown.is_empty() {
        reasons.push(format!("{title}: no sample of it could be read"));
    }
    let collected = results.len();
    if record.clients > 0 {
        step.notes.push(format!("{collected} of {} results collected.", record.clients));
        if collected != record.clients as usize {
            reasons.push(format!("{title}: {collected} of {} results collected", record.clients));
        }
        match record.accepted.and_then(|(before, after)| after.checked_sub(before)) {
            None => reasons.push(format!("{title}: the target's own count could not be read")),
            // Neither side's word alone: what succeeded was accepted, what was accepted had
            // been begun.
            Some(n) if (step.new_ok..=step.new_attempts).contains(&n) => {
                step.notes.push(format!("The target accepted {n} connections."));
            }
            Some(n) => reasons.push(format!(
                "{title}: {} begun and {} succeeded by the clients' count, but the target accepted {n}",
                step.new_attempts, step.new_ok
            )),
        }
    }
    let (forged, killed) = (sum(|r| r.forged), sum(|r| r.killed));
    // What only an unprotected path does: the proof that this run could have seen the fault.
    step.notes.push(format!("{killed} of {forged} above-window segments reset their connection."));
    step.notes.extend(record.step.notes.iter().cloned());
    let tables = || within.iter().map(|r| (r.sample.limit, r.sample.entries));
    let limit = tables().map(|(limit, _)| limit).min().unwrap_or(0);
    Shown {
        kind: record.kind,
        limit,
        peak: tables().filter(|(l, _)| *l == limit).map(|(_, n)| n).max().unwrap_or(0),
        forged,
        above: became,
        attributed: killed,
        lost: sum(|r| r.lost),
        step,
    }
}

/// The claims that such a run can say something about, by the lab's own rules.
fn statements(steps: &[Shown], journal: &Journal) -> Vec<Statement> {
    const OURS: [Claim; 4] = [
        Claim::NewConnectionsTimeOut,
        Claim::NewConnectionsAreReset,
        Claim::ResetsNeedLoad,
        Claim::LiberalCuresTheResets,
    ];
    let facts = Facts { steps: steps.to_vec(), ..Facts::default() };
    let mut all: Vec<_> = findings::find(&facts)
        .into_iter()
        .filter(|(claim, _)| OURS.contains(claim))
        .map(|(_, statement)| statement)
        .collect();
    let loads = journal.steps.iter().zip(steps).filter(|(_, s)| s.kind == Kind::Clients);
    if let Some((record, most)) = loads.max_by_key(|(record, _)| record.clients) {
        let resets = most.failed(FailureClass::Reset);
        all.push(Statement {
            claim: format!("Scaling the load to {} clients resets connections.", record.clients),
            source: "the blog post that this suite grew from".to_owned(),
            finding: match (resets, most.step.new_ok) {
                (0, 0) => Finding::NotShown,
                (0, _) => Finding::DoesNotHold,
                _ => Finding::Holds,
            },
            evidence: vec![format!(
                "{resets} of {} connections of the load were reset.",
                most.step.new_attempts
            )],
        });
    }
    all
}

#[cfg(test)]
mod tests;
