//! What stands on the screen, as wide as the terminal: a table of forgery by
//! protection with a sentence a row, and the steps of what has steps.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::document::lab::{
    ForgeryResult, Judgement, LabResult, Mend, Mended, ScenarioResult, Seen,
};
use crate::document::timeline::{Step, Timeline};
use canary_record::names::{Forgery, OldSegments};

use super::words::{self, counts};
use crate::judge::rows::{self as fold, Row};
use crate::observed::together;
use crate::scenario::POSITIVE_CONTROL;

/// Between two columns.
const GAP: &str = "  ";

/// How wide the text may be: the terminal's own width; COLUMNS or 100 where there is none.
#[must_use]
pub fn width() -> usize {
    let columns = || std::env::var("COLUMNS").ok().and_then(|n| n.parse().ok());
    let width = terminal_size::terminal_size_of(std::io::stdout())
        .map(|(width, _)| usize::from(width.0))
        .or_else(columns)
        .unwrap_or(100);
    // Numbers beyond these serve nobody; a terminal without a size says 0.
    if width == 0 { 100 } else { width.clamp(80, 200) }
}

/// The whole report.
#[must_use]
pub fn render(result: &LabResult, width: usize) -> String {
    let mut out = String::new();
    for scenario in &result.scenarios {
        if let Some(timeline) = &scenario.timeline {
            stages(&mut out, scenario, timeline, width);
        } else {
            table(&mut out, scenario, width);
        }
    }
    summary(&mut out, result, width);
    out
}

/// A paragraph: `first` before its first line, as much space before the others.
pub(crate) fn paragraph(out: &mut String, first: &str, text: &str, width: usize) {
    let rest = " ".repeat(first.chars().count());
    let options = textwrap::Options::new(width)
        .initial_indent(first)
        .subsequent_indent(&rest)
        // Names of rules, files and sysctls are copied from here.
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    let _ = writeln!(out, "{}", textwrap::fill(text.trim(), options));
}

fn table(out: &mut String, scenario: &ScenarioResult, width: usize) {
    out.push('\n');
    paragraph(out, "", &format!("{}: {}", scenario.name, scenario.title), width);
    for reason in &scenario.reasons {
        paragraph(out, "  ! ", reason, width);
    }
    let rows = fold::rows(&scenario.cells);
    let forgeries: BTreeSet<Forgery> =
        rows.iter().flat_map(|r| r.forgeries.keys().copied()).collect();
    if forgeries.is_empty() {
        for cell in &scenario.cells {
            paragraph(out, "  ", &format!("{}: {}", cell.id, cell.reasons.join("; ")), width);
        }
        return;
    }
    let several = rows.iter().any(|r| r.route != rows[0].route);
    let rows: Vec<_> = rows.iter().map(|r| (label(r, several), r)).collect();
    let heads: Vec<_> = forgeries.iter().map(ToString::to_string).collect();
    let body: Vec<Vec<String>> = rows
        .iter()
        .map(|(_, row)| forgeries.iter().map(|f| outcome(row.forgeries.get(f))).collect())
        .collect();
    let columns: Vec<usize> = heads
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let cells = body.iter().filter_map(|row| row.get(i)).map(String::len);
            head(name).into_iter().map(str::len).chain(cells).max().unwrap_or(0)
        })
        .collect();
    let layout = Layout::of(&rows, &columns, width);
    if matches!(layout, Layout::Above) {
        let _ = writeln!(out, "{GAP}protection");
    }
    let top = heads.iter().map(|h| head(h).len()).max().unwrap_or(1);
    for line in 0..top {
        // Heads of one line stand at the bottom.
        let part = |h: &String| -> String {
            let parts = head(h);
            (line + parts.len())
                .checked_sub(top)
                .and_then(|n| parts.get(n))
                .copied()
                .unwrap_or_default()
                .to_owned()
        };
        let label = if line + 1 == top { "protection" } else { "" };
        layout.line(out, label, &heads.iter().map(part).collect::<Vec<_>>(), &columns);
    }
    for ((label, row), cells) in rows.iter().zip(&body) {
        layout.row(out, label, cells, &columns);
        if row.judgement != Judgement::AsExpected {
            let text = format!("{} in {}", row.judgement, count(row.cells.len()));
            paragraph(out, "    ! ", &text, width);
        }
        for cell in row.cells.iter().filter(|c| !c.reasons.is_empty()) {
            paragraph(out, "    ! ", &format!("{}: {}", cell.id, cell.reasons.join("; ")), width);
        }
    }
    let expected = scenario.cells.iter().filter(|c| c.judgement == Judgement::AsExpected).count();
    let _ = writeln!(out, "  = {expected} of {} as expected", count(scenario.cells.len()));
    // What to do about the control is no advice on what was asked for.
    if scenario.name != POSITIVE_CONTROL {
        meanings(out, &rows, width);
    }
}

fn count(n: usize) -> String {
    words::count(n as u64, "cell", "cells")
}

/// A forgery's name, in two lines where it has two words.
fn head(name: &str) -> Vec<&str> {
    name.split_inclusive('-').collect()
}

/// Where a row's protections stand.
enum Layout {
    /// In a column, broken after a plus where that is narrower than the longest.
    Column(usize),
    /// On a line of their own: a column would be too narrow for one of them.
    Above,
}

impl Layout {
    fn of(rows: &[(String, &Row<'_>)], columns: &[usize], width: usize) -> Self {
        let cells: usize = columns.iter().map(|c| c + GAP.len()).sum();
        let room = width.saturating_sub(cells + GAP.len());
        let longest = |of: &dyn Fn(&str) -> usize| rows.iter().map(|(label, _)| of(label)).max();
        let whole = longest(&str::len).unwrap_or(0).max("protection".len());
        let part = longest(&|l| parts(l).iter().map(String::len).max().unwrap_or(0));
        let part = (part.unwrap_or(0) + GAP.len()).max("protection".len());
        if part <= room { Self::Column(whole.min(room)) } else { Self::Above }
    }

    fn row(&self, out: &mut String, label: &str, cells: &[String], columns: &[usize]) {
        let Self::Column(width) = self else {
            let _ = writeln!(out, "{GAP}{label}");
            return self.line(out, "", cells, columns);
        };
        let mut lines: Vec<String> = Vec::new();
        for part in parts(label) {
            match lines.last_mut() {
                Some(line) if line.len() + 1 + part.len() <= *width => {
                    line.push(' ');
                    line.push_str(&part);
                }
                // Set in, so that it is not taken for a row.
                Some(_) => lines.push(format!("{GAP}{part}")),
                None => lines.push(part),
            }
        }
        for (n, line) in lines.iter().enumerate() {
            self.line(out, line, if n == 0 { cells } else { &[] }, columns);
        }
    }

    fn line(&self, out: &mut String, label: &str, cells: &[String], columns: &[usize]) {
        let mut line = match self {
            Self::Column(width) => format!("{GAP}{label:<width$}"),
            Self::Above => GAP.to_owned(),
        };
        for (cell, width) in cells.iter().zip(columns) {
            let _ = write!(line, "{GAP}{cell:<width$}");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// What a label may be broken into: each protection with the plus that follows it.
fn parts(label: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for word in label.split(' ') {
        match parts.last_mut() {
            Some(last) if word == "+" => last.push_str(" +"),
            _ => parts.push(word.to_owned()),
        }
    }
    parts
}

/// What a row is called: its protections, with its path where there are several, and whose it is where
/// another row has the same.
fn label(row: &Row<'_>, several: bool) -> String {
    let mut name = format!("{:#}", row.protections);
    if several {
        name = format!("{}: {name}", words::route(row.route));
    }
    if row.unanimous {
        return name;
    }
    let whose: Vec<_> = row.variants.iter().map(|v| format!("{} {}", v.0, v.1)).collect();
    format!("{name} ({})", whose.join(", "))
}

/// A sentence or two for every row, said once for all rows that share it.
fn meanings(out: &mut String, rows: &[(String, &Row<'_>)], width: usize) {
    let said = together(rows.iter().map(|(label, row)| {
        let cell = row.cells[0];
        (format!("{} {}", cell.meaning, cell.advice).trim().to_owned(), label.as_str())
    }));
    for (sentence, labels) in said.iter().filter(|(sentence, _)| !sentence.is_empty()) {
        paragraph(out, "  * ", &format!("{}: {sentence}", labels.join("; ")), width);
    }
}

/// `KILLS 50/50`: what kills stands out without colour.
fn outcome(sum: Option<&ForgeryResult>) -> String {
    let Some(sum) = sum else { return "not tried".to_owned() };
    match sum.seen {
        Seen::Kills => format!("KILLS {}/{}", sum.counts.killed, sum.forged),
        Seen::Leaked => "leaked".to_owned(),
        Seen::Delivered => "delivered".to_owned(),
        Seen::Dropped => "dropped".to_owned(),
        Seen::Rejected => "REJECTED".to_owned(),
        Seen::KillsLater => "KILLS LATER".to_owned(),
        Seen::Hangs => "HANGS".to_owned(),
        Seen::NoConnection => "no connect".to_owned(),
        Seen::Mixed => "MIXED".to_owned(),
    }
}

fn stages(out: &mut String, s: &ScenarioResult, timeline: &Timeline, width: usize) {
    out.push('\n');
    paragraph(out, "", &format!("{}: {} ({})", s.called(), s.title, s.judgement), width);
    // A case that ran says itself why it is not as expected.
    let why = |step: &Step, note: &str| {
        let reason = note.strip_suffix('.').map(|why| format!("{}: {why}", step.title));
        reason.filter(|reason| s.reasons.contains(reason))
    };
    let mut said = BTreeSet::new();
    for step in &timeline.steps {
        said.extend(step.notes.iter().filter_map(|note| why(step, note)));
    }
    for reason in s.reasons.iter().filter(|reason| !said.contains(*reason)) {
        paragraph(out, "  ! ", reason, width);
    }
    let inner = " ".repeat(12);
    let marked = format!("{:>10}! ", "");
    for (n, step) in timeline.steps.iter().enumerate() {
        match &step.case {
            Some(case) => {
                let title = format!("{} ({})", step.title, case.setting);
                paragraph(out, &format!("  case {:<5}", n + 1), &title, width);
            }
            None => paragraph(out, &format!("  {:6.1} s  ", step.t), &step.title, width),
        }
        for c in &step.changes {
            paragraph(out, &inner, &format!("{}: {} -> {}", c.what, c.from, c.to), width);
        }
        let established = counts(step.established.iter().map(|(c, n)| (c.as_str(), *n)));
        let boom = counts(step.boom.iter().map(|(c, n)| (c.as_str(), *n)));
        let failed = counts(step.new_failures.iter().map(|(c, n)| (c.as_str(), *n)));
        let (new_ok, new) = (step.new_ok, step.new_attempts);
        let counts = match &step.case {
            // Its connections are all of one kind.
            Some(_) => format!("connections: {established}; boom-server: {boom}"),
            None => format!(
                "new: {new_ok} of {new} succeeded, failed: {failed}; established: {established}; \
                 boom-server: {boom}"
            ),
        };
        paragraph(out, &inner, &counts, width);
        for note in &step.notes {
            let mark = if why(step, note).is_some() { &marked } else { &inner };
            paragraph(out, mark, note, width);
        }
    }
    mended(out, &s.mended, width);
    for s in &timeline.statements {
        paragraph(out, &format!("  {:<14} ", s.finding), &s.claim, width);
        for e in &s.evidence {
            paragraph(out, &" ".repeat(17), e, width);
        }
    }
    for reason in &timeline.reasons {
        paragraph(out, "  weakened: ", reason, width);
    }
}

fn mended(out: &mut String, mended: &[Mended], width: usize) {
    for case in mended {
        paragraph(out, "  mends: ", &case.case, width);
        for m in &case.mends {
            let lost = format!("{} of {} lost", m.lost, case.connections);
            let said = match (m.mend, &m.why) {
                (_, Some(why)) => why.clone(),
                (Mend::AsItIs, None) => lost,
                (_, None) => format!("{lost}: {}", words::effect(m.effect).1),
            };
            paragraph(out, &format!("    {:<18} ", m.mend), &said, width);
        }
        if case.helpless() {
            let _ = writeln!(out, "    none of these helps");
        }
    }
}

fn summary(out: &mut String, result: &LabResult, width: usize) {
    let control = &result.positive_control;
    out.push('\n');
    paragraph(out, "", &format!("Kernel: {}", result.run.kernel), width);
    let old = match result.environment.old_segments {
        Some(OldSegments::Ignored) => {
            "since 6.1 (what is below the window is ignored, not INVALID)"
        }
        Some(OldSegments::Invalid) => "before 6.1 (what is below the window is INVALID)",
        Some(OldSegments::NotShown) | None => "not shown by this run",
    };
    paragraph(out, "", &format!("Generation by behaviour: {old}"), width);
    let text = if control.forged == 0 {
        "Positive control: not tried, no above-window segment met an unprotected connection".into()
    } else {
        format!(
            "Positive control: {} of {} above-window segments reset an unprotected connection",
            words::grouped(control.killed),
            words::grouped(control.forged)
        )
    };
    paragraph(out, "", &text, width);
    let cells = || result.scenarios.iter().flat_map(|s| &s.cells);
    let expected = cells().filter(|c| c.judgement == Judgement::AsExpected).count();
    let expected = words::grouped(expected as u64);
    let beside = words::beside_cells(result, |s| s.judgement == Judgement::AsExpected);
    let mut parts = Vec::new();
    if cells().count() > 0 || beside.is_empty() {
        let alone =
            result.scenarios.iter().all(|s| s.cells.is_empty() || s.name == POSITIVE_CONTROL);
        let what = if alone { " (the control)" } else { "" };
        parts.push(format!("{expected} of {}{what} as expected", count(cells().count())));
    }
    parts.extend(
        beside.iter().map(|(n, all)| format!("{} of {all} as expected", words::grouped(*n))),
    );
    let skipped = result.scenarios.iter().filter(|s| s.judgement == Judgement::Skipped).count();
    if skipped > 0 {
        parts.push(format!("{skipped} SKIPPED"));
    }
    let text = format!(
        "{}: {}, in {:.0} s",
        match result.judgement {
            Judgement::AsExpected => "EVERY EXPECTATION HELD",
            Judgement::Differs => "SOMETHING DIFFERS FROM ITS EXPECTATION",
            Judgement::Inconclusive => "INCONCLUSIVE",
            Judgement::Skipped => "SKIPPED",
        },
        parts.join(", "),
        result.run.seconds
    );
    paragraph(out, "", &text, width);
    for reason in result.reasons.iter().take(20) {
        paragraph(out, "  - ", &in_short(result, reason, width), width);
    }
    if result.reasons.len() > 20 {
        let _ = writeln!(out, "  - and {} more, in results.json", result.reasons.len() - 20);
    }
}

/// The beginning of a reason that stands whole with its scenario or cell: of a case's, of its title too.
fn in_short(result: &LabResult, reason: &str, width: usize) -> String {
    /// Characters of a case's title.
    const TITLE: usize = 28;
    // One line, beside the dash and the dots.
    let most = width.min(100).saturating_sub(8);
    for s in &result.scenarios {
        let Some(rest) = reason.strip_prefix(&format!("{}: ", s.called())) else { continue };
        let of =
            |title: &&String| rest.strip_prefix(&***title).is_some_and(|r| r.starts_with(": "));
        if let Some(title) = s.of_cases.keys().filter(of).max_by_key(|title| title.len()) {
            let case = format!("{}: {}: ", s.called(), beginning(title, TITLE));
            let room = most.saturating_sub(case.chars().count()).max(most / 3);
            return case + &beginning(&rest[title.len() + 2..], room);
        }
        return beginning(reason, most);
    }
    let of = |name: &str| reason.strip_prefix(name).is_some_and(|rest| rest.starts_with(": "));
    if result.scenarios.iter().any(|s| s.cells.iter().any(|c| of(&c.id))) {
        return beginning(reason, most);
    }
    reason.to_owned()
}

/// As many words as fit.
fn beginning(text: &str, most: usize) -> String {
    match &*textwrap::wrap(text, most) {
        [begin, _, ..] => format!("{begin} ..."),
        _ => text.to_owned(),
    }
}
