//! A conntrack table that fills: the experiment of the blog post that this
//! suite grew from, step by step, and what of it holds on this kernel.
//!
//! [`claims`] are what is to be judged, [`facts`] what a run showed and
//! [`findings`] the judgement: pure. [`bench`] runs the steps, [`eviction`] and
//! [`half_open`] some of them, in places that [`stage`] builds; [`streams`] are the
//! connections that were there before, [`table`] sets the host's limit.

pub mod bench;
pub mod claims;
pub mod cluster;
pub mod eviction;
pub mod facts;
pub mod findings;
pub mod half_open;
pub mod series;
pub mod stage;
pub mod streams;
pub mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use crate::document::lab::{CommandList, Judgement, Path as NetPath, ScenarioResult};
use crate::document::timeline::{Finding, Statement, Timeline};
use serde::Deserialize;

use crate::causes::legal_name;
use crate::cell::Setting;
use crate::exec::ExecError;
use crate::place::PlaceError;
use crate::scenario::ScenarioError;
use crate::topology::{Step, Topology};
use bench::Bench;
use claims::Claim;
use facts::Facts;
use table::Control;

/// The steps' measures, and what they should show.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Saturation {
    /// `saturation`.
    pub kind: Kind,
    /// Its name: lower-case letters, digits and hyphens.
    pub name: String,
    /// One line on what it is.
    pub title: String,
    /// Why the expectation should hold.
    pub why: String,
    /// Where that is known from.
    pub source: String,
    /// Clients of each step that only loads: source addresses of the client pod.
    pub clients: Vec<u32>,
    /// How long each step lasts.
    pub seconds: u32,
    /// Established connections that are there throughout.
    pub held: u32,
    /// Half-closed transfers in each place of the eviction experiment.
    pub half_closed: u32,
    /// How long the garbage collector may take; it comes at least once a minute.
    pub closing_seconds: u32,
    /// Connections of the step that fills the table, as a part of its limit.
    pub load: f64,
    /// What should be found.
    pub expect: BTreeMap<Claim, Finding>,
}

/// Tells this file from those of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A [`Saturation`].
    Saturation,
}

/// The most source addresses that the client pod gets.
pub const MOST_CLIENTS: u32 = 50;

/// Reads one scenario. `file` names it in errors.
pub fn parse(file: &str, text: &str) -> Result<Saturation, ScenarioError> {
    let s: Saturation = toml::from_str(text)
        .map_err(|e| ScenarioError::Toml { file: file.to_owned(), message: e.to_string() })?;
    let senseless =
        |what: &str| Err(ScenarioError::Senseless { file: file.to_owned(), what: what.to_owned() });
    if !legal_name(&s.name) {
        return senseless("name: use lower-case letters, digits and hyphens");
    }
    if s.clients.iter().any(|n| !(1..=MOST_CLIENTS).contains(n)) {
        return senseless("clients: use 1 to 50");
    }
    for (field, value, range) in [
        ("seconds", s.seconds, 1..=60),
        ("held", s.held, 1..=500),
        ("half-closed", s.half_closed, 1..=500),
        ("closing-seconds", s.closing_seconds, 1..=600),
    ] {
        if !range.contains(&value) {
            return senseless(&format!("{field}: use {} to {}", range.start(), range.end()));
        }
    }
    if !(0.01..=3.0).contains(&s.load) {
        return senseless("load: use 0.01 to 3");
    }
    Ok(s)
}

/// Runs it. Without `control` the host's limit is what it is.
pub fn run(
    s: &Saturation,
    setting: &Setting,
    dir: &Path,
    prefix: &str,
    control: Option<&Control>,
) -> ScenarioResult {
    let begun = Instant::now();
    let mut timeline = Timeline::default();
    let mut facts = Facts::default();
    let mut reasons = Vec::new();
    let mut judgement = Judgement::AsExpected;
    let dir = dir.join("cells").join(&s.name);
    let mut bench = Bench::new(s, setting, &dir, prefix, begun);
    if let Err(e) = bench.run(control, &mut timeline, &mut facts) {
        judgement = Judgement::Inconclusive;
        reasons.push(e.to_string());
        if !matches!(e, PlaceError::Exec(ExecError::Interrupted(_))) {
            timeline.reasons.push("the run broke off".to_owned());
        }
    }
    let found = findings::find(&facts);
    let (here, why) = judge(&s.expect, &found, &facts);
    reasons.extend(why);
    timeline.statements = found.into_iter().map(|(_, statement)| statement).collect();
    ScenarioResult {
        name: s.name.clone(),
        title: s.title.clone(),
        why: s.why.clone(),
        source: s.source.clone(),
        judgement: judgement.worse(here),
        reasons,
        cells: Vec::new(),
        commands: vec![CommandList {
            title: "hosts and links; the Service's further ports are in cells/saturation"
                .to_owned(),
            lines: stage::topology(Topology::new(NetPath::SameNode, ""))
                .steps
                .iter()
                .map(Step::shell)
                .collect(),
        }],
        timeline: Some(timeline),
    }
}

/// Compares what was found with what is expected. What this run could not show
/// decides nothing where its table could not be changed; the reason says so.
#[must_use]
pub fn judge(
    expect: &BTreeMap<Claim, Finding>,
    found: &[(Claim, Statement)],
    facts: &Facts,
) -> (Judgement, Vec<String>) {
    let mut judgement = Judgement::AsExpected;
    let mut reasons = Vec::new();
    for (claim, expected) in expect {
        let Some((_, s)) = found.iter().find(|(c, _)| c == claim) else { continue };
        if s.finding == *expected {
            continue;
        }
        let evidence = s.evidence.join(" ");
        if s.finding == Finding::NotShown && claim.not_tried(facts) {
            reasons.push(format!("{claim}: not tried: {evidence}"));
            continue;
        }
        let here = if s.finding == Finding::NotShown {
            Judgement::Inconclusive
        } else {
            Judgement::Differs
        };
        judgement = judgement.worse(here);
        reasons.push(format!("{claim}: expected {expected}, found {}: {evidence}", s.finding));
    }
    (judgement, reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measures out of range and claims that nobody makes are refused.
    #[test]
    fn senseless_files_are_refused() {
        let text = include_str!("../scenarios/saturation.toml");
        assert!(parse("x", text).is_ok());
        for (from, to, says) in [
            ("clients = [10, 20, 50]", "clients = [51]", "use 1 to 50"),
            ("\nseconds = 4", "\nseconds = 0", "seconds: use 1 to 60"),
            ("load = 1.1", "load = 9", "use 0.01 to 3"),
            ("liberal-cures-the-resets", "liberal-cures-all", "liberal-cures-all"),
            ("\nheld = 40", "\nheld = 501", "held: use 1 to 500"),
        ] {
            let e = parse("x", &text.replace(from, to)).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
    }

    /// A finding that is not the expected one differs; one that is missing proves nothing.
    #[test]
    fn findings_are_compared() {
        let statement = |finding| Statement {
            claim: "c".into(),
            source: "s".into(),
            finding,
            evidence: vec!["e".into()],
        };
        let claim = Claim::NewConnectionsTimeOut;
        let expect = [(claim, Finding::Holds)].into();
        let facts = Facts::default();
        for (finding, judgement) in [
            (Finding::Holds, Judgement::AsExpected),
            (Finding::DoesNotHold, Judgement::Differs),
            (Finding::NotShown, Judgement::Inconclusive),
        ] {
            let (j, why) = judge(&expect, &[(claim, statement(finding))], &facts);
            assert_eq!(j, judgement);
            assert_eq!(why.is_empty(), j == Judgement::AsExpected);
        }
        // A table that this run may not change is no doubt about the rest.
        let expect = [(Claim::BiggerTableCures, Finding::Holds)].into();
        let found = [(Claim::BiggerTableCures, statement(Finding::NotShown))];
        assert_eq!(judge(&expect, &found, &facts).0, Judgement::AsExpected);
        let facts = Facts { can_resize: true, ..Facts::default() };
        assert_eq!(judge(&expect, &found, &facts).0, Judgement::Inconclusive);
    }
}
