//! A run's account from its first cell to its end. Every part is judged once, when it ends; a
//! cell whose expectation depends on the kernel's generation waits until a cell has shown that.

use crate::document::lab::{
    CellResult, CommandList, Environment, Judgement, LabResult, ScenarioResult,
};
use canary_record::names::OldSegments;
use canary_record::result::{Run, SCHEMA_VERSION};

use super::{cause, cell, conclude, mends, positive_control, saturation};
use crate::observed::cause::Seen;
use crate::observed::cell::{Done, Key};
use crate::observed::saturation::Filled;
use crate::scenario::{Body, Scenario};

/// A scenario of the run, and what the machine has to say of it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) scenario: Scenario,
    /// Why it cannot be run here, where it cannot.
    pub(crate) skipped: Option<String>,
    /// What to type to build its hosts.
    pub(crate) commands: CommandList,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
    repeat: u32,
    result: LabResult,
    /// Of which scenario and repetition each result is; of all repetitions for cells.
    slots: Vec<(usize, u32)>,
    /// Which cells there are, beside the results of the same slot.
    keys: Vec<Vec<Key>>,
    waiting: Vec<Done>,
}

impl Ledger {
    /// The account of a run in which nothing has ended yet.
    pub(crate) fn new(
        entries: Vec<Entry>,
        repeat: u32,
        environment: Environment,
        run: Run,
    ) -> Self {
        let mut slots = Vec::new();
        for (n, entry) in entries.iter().enumerate() {
            match entry.scenario.body {
                Body::Matrix(_) => slots.push((n, 0)),
                Body::Cause(_) | Body::Saturation(_) => {
                    slots.extend((1..=repeat).map(|repetition| (n, repetition)));
                }
            }
        }
        let scenarios: Vec<_> = slots
            .iter()
            .filter_map(|(n, repetition)| Some(not_run(entries.get(*n)?, repeat, *repetition)))
            .collect();
        let result = LabResult {
            schema_version: SCHEMA_VERSION,
            run,
            judgement: Judgement::Inconclusive,
            reasons: Vec::new(),
            environment,
            positive_control: positive_control(&scenarios),
            scenarios,
        };
        let keys = vec![Vec::new(); slots.len()];
        Self { entries, repeat, result, slots, keys, waiting: Vec::new() }
    }

    /// A cell has ended. Gives what could be judged since, this cell or others.
    pub(crate) fn cell(&mut self, done: Done) -> Vec<CellResult> {
        if self.result.environment.old_segments.is_none() {
            let matrix = self.entries.get(done.key.scenario).and_then(|e| e.scenario.matrix());
            self.result.environment.old_segments =
                matrix.and_then(|m| cell::tells_generation(m, &done));
        }
        self.waiting.push(done);
        let known = self.kernel().is_some();
        let (now, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|done| known || !self.depends_on_generation(done.key));
        self.waiting = later;
        self.judge(now)
    }

    pub(crate) fn cause(
        &mut self,
        scenario: usize,
        repetition: u32,
        seen: &[Result<Seen, String>],
        mended: &[Result<Seen, String>],
    ) {
        let Some((Body::Cause(body), result)) = self.open(scenario, repetition) else { return };
        cause::result(body, seen, result);
        if !mended.is_empty() {
            result.mended = mends::table(body, mended);
        }
    }

    pub(crate) fn saturation(&mut self, scenario: usize, repetition: u32, filled: Filled) {
        let Some((Body::Saturation(body), result)) = self.open(scenario, repetition) else {
            return;
        };
        saturation::result(body, filled, result);
    }

    /// No cell is still to come: what waited is judged on a kernel of unknown generation.
    pub(crate) fn close(&mut self) -> Vec<CellResult> {
        let waiting = std::mem::take(&mut self.waiting);
        self.judge(waiting)
    }

    pub(crate) fn result(&mut self, run: Run) -> &LabResult {
        self.result.run = run;
        self.result.positive_control = positive_control(&self.result.scenarios);
        (self.result.judgement, self.result.reasons) =
            conclude(&self.result.scenarios, &self.result.positive_control);
        &self.result
    }

    const fn kernel(&self) -> Option<OldSegments> {
        self.result.environment.old_segments
    }

    fn depends_on_generation(&self, key: Key) -> bool {
        let matrix = self.entries.get(key.scenario).and_then(|e| e.scenario.matrix());
        matrix.is_some_and(|m| m.cells.get(key.plan).is_some_and(|c| m.depends_on_generation(c)))
    }

    fn judge(&mut self, cells: Vec<Done>) -> Vec<CellResult> {
        cells.into_iter().filter_map(|done| self.enter(done)).collect()
    }

    /// Judges a cell and puts it where it belongs in its scenario.
    fn enter(&mut self, done: Done) -> Option<CellResult> {
        let (key, kernel) = (done.key, self.kernel());
        let entry = self.entries.get(key.scenario)?;
        let matrix = entry.scenario.matrix()?;
        let judged = cell::result(matrix, matrix.cells.get(key.plan)?, done, kernel);
        let slot = self.slots.iter().position(|(n, _)| *n == key.scenario)?;
        let (keys, result) = (self.keys.get_mut(slot)?, self.result.scenarios.get_mut(slot)?);
        let at = keys.partition_point(|k| *k < key);
        keys.insert(at, key);
        result.cells.insert(at, judged.clone());
        let missing = (matrix.cells() * self.repeat as usize).saturating_sub(result.cells.len());
        let worst = result.cells.iter().map(|c| c.judgement).reduce(Judgement::worse)?;
        (result.judgement, result.reasons) = match missing {
            0 => (worst, Vec::new()),
            n => (worst.worse(Judgement::Inconclusive), vec![format!("{n} cells were not run")]),
        };
        Some(judged)
    }

    fn open(&mut self, scenario: usize, repetition: u32) -> Option<(&Body, &mut ScenarioResult)> {
        let slot = self.slots.iter().position(|s| *s == (scenario, repetition))?;
        let entry = self.entries.get(scenario)?;
        Some((&entry.scenario.body, self.result.scenarios.get_mut(slot)?))
    }
}

/// What there is of a scenario before its first cell has ended, or its steps have.
fn not_run(entry: &Entry, repeat: u32, repetition: u32) -> ScenarioResult {
    let about = &entry.scenario.about;
    let (judgement, why) = match (&entry.skipped, entry.scenario.matrix()) {
        (Some(why), _) => (Judgement::Skipped, format!("skipped: {why}")),
        (None, Some(matrix)) => {
            let cells = matrix.cells() * repeat as usize;
            (Judgement::Inconclusive, format!("{cells} cells were not run"))
        }
        (None, None) => (Judgement::Inconclusive, "not run".to_owned()),
    };
    ScenarioResult {
        name: about.name.clone(),
        title: about.title.clone(),
        why: about.why.clone(),
        source: about.source.clone(),
        judgement,
        reasons: vec![why],
        commands: vec![entry.commands.clone()],
        repetition: repetition.max(1),
        ..ScenarioResult::default()
    }
}

#[cfg(test)]
mod tests;
