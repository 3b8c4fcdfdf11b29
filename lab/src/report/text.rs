//! The table on the screen: forgery by protection, and a sentence a row.

use std::fmt::Write as _;

use canary_common::outcome::OldSegments;
use canary_common::result::lab::{
    CellResult, ForgeryResult, Judgement, LabResult, ScenarioResult, Seen,
};

/// The whole report.
#[must_use]
pub fn render(result: &LabResult) -> String {
    let mut out = String::new();
    for scenario in &result.scenarios {
        table(&mut out, scenario);
    }
    summary(&mut out, result);
    out
}

fn table(out: &mut String, scenario: &ScenarioResult) {
    let _ = writeln!(out, "\n{}: {}", scenario.name, scenario.title);
    for reason in &scenario.reasons {
        let _ = writeln!(out, "  {reason}");
    }
    let Some(first) = scenario.cells.iter().find(|c| !c.forgeries.is_empty()) else {
        for cell in &scenario.cells {
            let _ = writeln!(out, "  {}: {}", cell.id, cell.reasons.join("; "));
        }
        return;
    };
    let protections: Vec<_> = scenario.cells.iter().map(protections).collect();
    let width = protections.iter().map(String::len).max().unwrap_or(0).max("protection".len());
    let _ = write!(out, "  {:<9} {:<6} {:<width$}", "rules", "family", "protection");
    for f in &first.forgeries {
        let _ = write!(out, "  {:<12}", f.forgery);
    }
    let _ = writeln!(out, "  judgement");
    for (cell, protection) in scenario.cells.iter().zip(&protections) {
        let _ = write!(out, "  {:<9} {:<6} {protection:<width$}", cell.front_end, cell.family);
        for f in &cell.forgeries {
            let _ = write!(out, "  {:<12}", outcome(f));
        }
        let _ = writeln!(out, "  {}", cell.judgement);
        for reason in &cell.reasons {
            let _ = writeln!(out, "      ! {reason}");
        }
    }
    meanings(out, &scenario.cells, &protections);
}

/// A sentence for every protection, once where the rows agree.
fn meanings(out: &mut String, cells: &[CellResult], protections: &[String]) {
    let mut said: Vec<(&str, String)> = Vec::new();
    for (cell, protection) in cells.iter().zip(protections) {
        let sentence = format!("{} {}", cell.meaning, cell.advice).trim().to_owned();
        let new = (protection.as_str(), sentence);
        if !new.1.is_empty() && !said.contains(&new) {
            said.push(new);
        }
    }
    for (protection, sentence) in said {
        let _ = writeln!(out, "  * {protection}: {sentence}");
    }
}

/// What protects a cell, `none` where nothing does.
#[must_use]
pub fn protections(cell: &CellResult) -> String {
    let names: Vec<_> = cell.protections.iter().map(ToString::to_string).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(" + ") }
}

/// `KILLS 50/50`: what kills stands out without colour.
fn outcome(f: &ForgeryResult) -> String {
    match f.seen {
        Seen::Kills => format!("KILLS {}/{}", f.killed, f.forged),
        Seen::Leaked => "leaked".to_owned(),
        Seen::Delivered => "delivered".to_owned(),
        Seen::Dropped => "dropped".to_owned(),
        Seen::NoConnection => "no connect".to_owned(),
        Seen::Mixed => "MIXED".to_owned(),
    }
}

fn summary(out: &mut String, result: &LabResult) {
    let control = &result.positive_control;
    let _ = writeln!(out, "\nKernel: {}", result.run.kernel);
    let old = match result.environment.old_segments {
        Some(OldSegments::Ignored) => {
            "since 6.1 (what is below the window is ignored, not INVALID)"
        }
        Some(OldSegments::Invalid) => "before 6.1 (what is below the window is INVALID)",
        Some(OldSegments::NotShown) | None => "not shown by this run",
    };
    let _ = writeln!(out, "Generation by behaviour: {old}");
    let _ = writeln!(
        out,
        "Positive control: {} of {} above-window segments reset an unprotected connection",
        control.killed, control.forged
    );
    let cells = || result.scenarios.iter().flat_map(|s| &s.cells);
    let expected = cells().filter(|c| c.judgement == Judgement::AsExpected).count();
    let _ = writeln!(
        out,
        "{}: {expected} of {} cells as expected, in {:.0} s",
        match result.judgement {
            Judgement::AsExpected => "EVERY EXPECTATION HELD",
            Judgement::Differs => "SOMETHING DIFFERS FROM ITS EXPECTATION",
            Judgement::Inconclusive => "INCONCLUSIVE",
            Judgement::Skipped => "SKIPPED",
        },
        cells().count(),
        result.run.seconds
    );
    for reason in result.reasons.iter().take(20) {
        let _ = writeln!(out, "  - {reason}");
    }
    if result.reasons.len() > 20 {
        let _ = writeln!(out, "  - and {} more, in results.json", result.reasons.len() - 20);
    }
}
