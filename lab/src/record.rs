//! results.json while the run goes on. Whoever finds it after a run that was cut sees that
//! it did not end, and what was not run.

use std::path::Path;

use crate::document::lab::{Judgement, LabResult, ScenarioResult};
use canary_record::names::EndedBy;
use canary_runtime::output::{OutputError, ResultFile};

use crate::runner;
use crate::staged::Staged;

/// The file, and what is still to come.
#[derive(Debug)]
pub struct Record {
    file: ResultFile,
    later: Vec<ScenarioResult>,
}

impl Record {
    /// A record in `dir` of a run that has `staged` scenarios after its cells.
    pub fn prepare(dir: &Path, staged: &[Staged], repeat: u32) -> Result<Self, OutputError> {
        let file = ResultFile::prepare(&dir.join("results.json"))?;
        let each = || staged.iter().map(|s| unfinished(s, "not run"));
        Ok(Self { file, later: (0..repeat).flat_map(|_| each()).collect() })
    }

    /// `one` has been run.
    pub fn done(&mut self, one: &str) {
        if let Some(at) = self.later.iter().position(|s| s.name == one) {
            self.later.remove(at);
        }
    }

    /// Keeps what is known so far. What could not be written may be written with the next
    /// result; that the last is counts.
    pub fn so_far(&self, result: &LabResult) {
        let mut result = result.clone();
        self.complete(&mut result);
        if result.run.ended_by == EndedBy::Completed {
            result.run.ended_by = EndedBy::Error;
        }
        let _ = self.file.write(&result);
    }

    /// The end: what was not run until now will not be.
    pub fn end(self, result: &mut LabResult) -> Result<(), OutputError> {
        self.complete(result);
        self.file.write(result)
    }

    fn complete(&self, result: &mut LabResult) {
        result.scenarios.extend(self.later.iter().cloned());
        (result.judgement, result.reasons) =
            runner::conclude(&result.scenarios, &result.positive_control);
    }
}

/// What there is of a scenario that did not come to its end.
pub(crate) fn unfinished(staged: &Staged, why: &str) -> ScenarioResult {
    ScenarioResult {
        name: staged.name().to_owned(),
        title: staged.title().to_owned(),
        why: String::new(),
        source: String::new(),
        judgement: Judgement::Inconclusive,
        reasons: vec![why.to_owned()],
        cells: Vec::new(),
        commands: Vec::new(),
        timeline: None,
    }
}

#[cfg(test)]
mod tests {
    use crate::document::lab::{Environment, PositiveControl};
    use canary_record::result::Clock;

    use super::*;

    /// A record that is cut says that the run did not end and what was not run; at the end
    /// nothing of that is left.
    #[test]
    fn a_cut_record_claims_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let read = || -> LabResult {
            serde_json::from_slice(&std::fs::read(dir.path().join("results.json")).unwrap())
                .unwrap()
        };
        let staged = crate::staged::shipped().unwrap();
        let one = &staged[..1];
        let done = || ScenarioResult {
            judgement: Judgement::AsExpected,
            reasons: Vec::new(),
            ..unfinished(&one[0], "")
        };
        let mut result = LabResult {
            schema_version: canary_record::result::SCHEMA_VERSION,
            run: Clock::start().run("conntrack-lab run", "0", EndedBy::Completed, [].into()),
            judgement: Judgement::AsExpected,
            reasons: Vec::new(),
            environment: Environment::default(),
            positive_control: PositiveControl { held: true, forged: 1, killed: 1 },
            scenarios: Vec::new(),
        };
        let mut record = Record::prepare(dir.path(), one, 2).unwrap();
        record.done(one[0].name());
        result.scenarios.push(done());
        record.so_far(&result);
        let cut = read();
        assert_eq!((cut.run.ended_by, cut.judgement), (EndedBy::Error, Judgement::Inconclusive));
        assert_eq!(cut.scenarios[1].reasons, ["not run"]);
        assert!(cut.reasons[0].ends_with("not run"), "{:?}", cut.reasons);
        record.done(one[0].name());
        result.scenarios.push(done());
        record.end(&mut result).unwrap();
        let whole = read();
        assert_eq!(
            (whole.run.ended_by, whole.judgement),
            (EndedBy::Completed, Judgement::AsExpected)
        );
        assert_eq!(whole.scenarios.len(), 2);
    }

    /// Where nothing but the added control ran, nothing was shown.
    #[test]
    fn a_skipped_scenario_beside_the_added_control_is_skipped() {
        let control = PositiveControl { held: true, forged: 1, killed: 1 };
        let named = |name: &str, judgement| ScenarioResult {
            name: name.to_owned(),
            judgement,
            reasons: Vec::new(),
            ..unfinished(&crate::staged::shipped().unwrap()[0], "")
        };
        let skipped = named("same-node-bridge", Judgement::Skipped);
        let added = named(crate::scenario::POSITIVE_CONTROL, Judgement::AsExpected);
        let other = named("cluster-ip", Judgement::AsExpected);
        let judged = |all: &[ScenarioResult]| runner::conclude(all, &control).0;
        assert_eq!(judged(&[added.clone(), skipped.clone()]), Judgement::Skipped);
        assert_eq!(judged(&[added, skipped, other]), Judgement::AsExpected);
    }
}
