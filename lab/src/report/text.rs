//! The table on the screen: forgery by protection, and a sentence a row.

use std::fmt::Write as _;

use canary_common::outcome::OldSegments;
use canary_common::result::lab::{
    CellResult, ForgeryResult, Judgement, LabResult, ScenarioResult, Seen,
};

use crate::staged;

/// The whole report.
#[must_use]
pub fn render(result: &LabResult) -> String {
    let mut out = String::new();
    for scenario in &result.scenarios {
        if scenario.timeline.is_some() {
            out.push_str(&staged::text(scenario));
        } else {
            table(&mut out, scenario);
        }
    }
    summary(&mut out, result);
    out
}

fn table(out: &mut String, scenario: &ScenarioResult) {
    let _ = writeln!(out, "\n{}: {}", scenario.name, scenario.title);
    for reason in &scenario.reasons {
        let _ = writeln!(out, "  {reason}");
    }
    let rows = rows(&scenario.cells);
    let Some(first) = rows.iter().map(|r| r.cells[0]).find(|c| !c.forgeries.is_empty()) else {
        for cell in &scenario.cells {
            let _ = writeln!(out, "  {}: {}", cell.id, cell.reasons.join("; "));
        }
        return;
    };
    let width = rows.iter().map(|r| r.label.len()).max().unwrap_or(0).max("protection".len());
    let _ = write!(out, "  {:<width$}", "protection");
    for f in &first.forgeries {
        let _ = write!(out, "  {:<12}", f.forgery);
    }
    let _ = writeln!(out, "  judgement");
    for row in &rows {
        let _ = write!(out, "  {:<width$}", row.label);
        let n = row.cells[0].forgeries.len();
        for i in 0..n {
            let all = row.cells.iter().filter_map(|c| c.forgeries.get(i));
            let _ = write!(out, "  {:<12}", outcome(all));
        }
        let _ = writeln!(out, "  {} in {}", row.cells[0].judgement, cells(row.cells.len()));
        for cell in row.cells.iter().filter(|c| !c.reasons.is_empty()) {
            let _ = writeln!(out, "      ! {}: {}", cell.id, cell.reasons.join("; "));
        }
    }
    meanings(out, &rows);
}

fn cells(n: usize) -> String {
    if n == 1 { "1 cell".to_owned() } else { format!("{n} cells") }
}

/// Cells of the same protections that showed the same: families, front ends
/// and repetitions folded together.
struct Row<'a> {
    label: String,
    cells: Vec<&'a CellResult>,
}

fn rows(cells: &[CellResult]) -> Vec<Row<'_>> {
    let seen = |c: &CellResult| -> Vec<_> { c.forgeries.iter().map(|f| f.seen).collect() };
    let mut rows: Vec<Row<'_>> = Vec::new();
    for cell in cells {
        let same = rows.iter_mut().find(|r| {
            let first = r.cells[0];
            first.protections == cell.protections
                && first.judgement == cell.judgement
                && seen(first) == seen(cell)
        });
        match same {
            Some(row) => row.cells.push(cell),
            None => rows.push(Row { label: protections(cell), cells: vec![cell] }),
        }
    }
    // A row that is not alone in its protections says whose it is.
    let labels: Vec<_> = rows.iter().map(|r| r.label.clone()).collect();
    for row in &mut rows {
        if labels.iter().filter(|l| **l == row.label).count() > 1 {
            let mut whose: Vec<_> =
                row.cells.iter().map(|c| format!("{} {}", c.front_end, c.family)).collect();
            whose.dedup();
            row.label = format!("{} ({})", row.label, whose.join(", "));
        }
    }
    rows
}

/// A sentence or two for every row, said once for all rows that share it.
fn meanings(out: &mut String, rows: &[Row<'_>]) {
    let mut said: Vec<(String, Vec<&str>)> = Vec::new();
    for row in rows {
        let cell = row.cells[0];
        let sentence = format!("{} {}", cell.meaning, cell.advice).trim().to_owned();
        match said.iter_mut().find(|(s, _)| *s == sentence) {
            _ if sentence.is_empty() => {}
            Some((_, labels)) => labels.push(&row.label),
            None => said.push((sentence, vec![&row.label])),
        }
    }
    for (sentence, labels) in said {
        let _ = writeln!(out, "  * {}: {sentence}", labels.join("; "));
    }
}

/// What protects a cell, `none` where nothing does.
#[must_use]
pub fn protections(cell: &CellResult) -> String {
    let names: Vec<_> = cell.protections.iter().map(ToString::to_string).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(" + ") }
}

/// `KILLS 50/50`: what kills stands out without colour.
fn outcome<'a>(all: impl Iterator<Item = &'a ForgeryResult>) -> String {
    let (mut killed, mut forged, mut seen) = (0, 0, Seen::Mixed);
    for f in all {
        killed += f.killed;
        forged += f.forged;
        seen = f.seen;
    }
    match seen {
        Seen::Kills => format!("KILLS {killed}/{forged}"),
        Seen::Leaked => "leaked".to_owned(),
        Seen::Delivered => "delivered".to_owned(),
        Seen::Dropped => "dropped".to_owned(),
        Seen::KillsLater => "KILLS LATER".to_owned(),
        Seen::Hangs => "HANGS".to_owned(),
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
    let timed: Vec<_> = result.scenarios.iter().filter(|s| s.timeline.is_some()).collect();
    let held = timed.iter().filter(|s| s.judgement == Judgement::AsExpected).count();
    let staged = if timed.is_empty() {
        String::new()
    } else {
        format!(", {held} of {} scenarios with stages", timed.len())
    };
    let _ = writeln!(
        out,
        "{}: {expected} of {} cells as expected{staged}, in {:.0} s",
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
