//! The comparison as plain text.

use std::fmt::Write as _;

use crate::document::kernels::{
    Agreement, KernelCase, KernelCaseCell, KernelCell, KernelRow, KernelRun, KernelsResult,
};
use crate::document::lab::{Judgement, Seen};
use canary_record::names::OldSegments;

use super::table::{explanation, groups};
use crate::report::text::paragraph;

/// Lines that a terminal shows whole.
const WIDTH: usize = 100;

/// One cell in one word: what was seen, marked where it is not what the
/// scenario expects, or why nothing was. Never empty.
pub(crate) fn word(cell: &KernelCell) -> String {
    let seen = match cell.seen {
        None => return cell.judgement.to_string(),
        Some(Seen::Kills) => "KILLS".to_owned(),
        Some(Seen::KillsLater) => "KILLS LATER".to_owned(),
        Some(Seen::Hangs) => "HANGS".to_owned(),
        Some(seen) => seen.to_string(),
    };
    if cell.judgement == Judgement::Differs { seen + " (not as expected)" } else { seen }
}

/// A case in a few words: how its connections ended, marked where that is not expected.
pub(crate) fn case_word(cell: &KernelCaseCell) -> String {
    let ends: Vec<_> = cell.client.iter().map(|(end, n)| format!("{end} {n}")).collect();
    match (ends.is_empty(), cell.judgement) {
        (true, judgement) => judgement.to_string(),
        (false, Judgement::AsExpected) => ends.join(", "),
        (false, Judgement::Differs) => ends.join(", ") + " (not as expected)",
        (false, judgement) => format!("{} ({judgement})", ends.join(", ")),
    }
}

/// The behaviour that names a kernel's generation.
pub(crate) const fn behaviour(old: OldSegments) -> &'static str {
    match old {
        OldSegments::Invalid => "INVALID (before 6.1)",
        OldSegments::Ignored => "ignored (since 6.1)",
        OldSegments::NotShown => "not shown",
    }
}

/// How a row is marked beside its kernels.
pub(crate) const fn mark(agreement: Agreement) -> &'static str {
    match agreement {
        Agreement::Alike => "",
        Agreement::OldSegments => "*",
        Agreement::Unexplained => "!",
        Agreement::NotCompared => "-",
    }
}

pub(crate) fn render(result: &KernelsResult) -> String {
    let mut out = String::new();
    let kernels = result.kernels.iter().map(kernel_line);
    let head = ["kernel", "below the window", "ran", "judgement", "version", "source"];
    columns(&mut out, std::iter::once(head.map(str::to_owned).to_vec()).chain(kernels));
    for kernel in &result.kernels {
        for reason in &kernel.reasons {
            let _ = writeln!(out, "  {}: {reason}", kernel.name);
        }
    }
    for group in groups(&result.rows) {
        let first = &group[0];
        let _ = writeln!(
            out,
            "\npath {}, {}, {}, {} rules, {}",
            first.path,
            first.direction,
            first.family,
            first.proxy_mode,
            segments(group)
        );
        let mut head = vec![String::new(), "protection".to_owned(), "forgery".to_owned()];
        head.extend(result.kernels.iter().map(|k| k.name.clone()));
        columns(&mut out, std::iter::once(head).chain(group.iter().map(row_line)));
    }
    if !result.cases.is_empty() {
        out.push_str("\nsituations: how the client's connections ended\n");
        let mut head = vec!["scenario".to_owned(), "case".to_owned()];
        head.extend(result.kernels.iter().map(|k| k.name.clone()));
        let line = |c: &KernelCase| {
            let mut line = vec![c.scenario.clone(), c.case.clone()];
            line.extend(c.cells.iter().map(case_word));
            line
        };
        columns(&mut out, std::iter::once(head).chain(result.cases.iter().map(line)));
    }
    let marks = [Agreement::OldSegments, Agreement::Unexplained];
    for agreement in marks {
        if result.rows.iter().any(|r| r.agreement == agreement) {
            out.push('\n');
            paragraph(&mut out, &format!("{} ", mark(agreement)), explanation(agreement), WIDTH);
        }
    }
    let _ = writeln!(out, "\n{}: {}", result.judgement, held(&result.rows));
    for reason in &result.reasons {
        let _ = writeln!(out, "  {reason}");
    }
    out
}

fn kernel_line(kernel: &KernelRun) -> Vec<String> {
    let ran = match (kernel.seconds, kernel.accel.as_str()) {
        (None, _) => kernel.state.to_string(),
        (Some(s), "") => format!("{s:.0} s"),
        (Some(s), accel) => format!("{s:.0} s, {accel}"),
    };
    vec![
        kernel.name.clone(),
        behaviour(kernel.old_segments).to_owned(),
        ran,
        kernel.judgement.to_string(),
        kernel.version.clone().unwrap_or_else(|| "unknown".to_owned()),
        kernel.source.clone(),
    ]
}

fn row_line(row: &KernelRow) -> Vec<String> {
    let mut line =
        vec![mark(row.agreement).to_owned(), row.protections.to_string(), row.forgery.to_string()];
    line.extend(row.cells.iter().map(word));
    line
}

/// How many cells are as their scenario expects, of all kernels together.
pub(crate) fn held(rows: &[KernelRow]) -> String {
    let cells = || rows.iter().flat_map(|r| &r.cells);
    let held = cells().filter(|c| c.judgement == Judgement::AsExpected).count();
    format!("{held} of {} cells as expected", cells().count())
}

/// How many segments the cells of these rows rest on.
pub(crate) fn segments(rows: &[KernelRow]) -> String {
    let forged = rows.iter().flat_map(|r| &r.cells).filter(|c| c.seen.is_some()).map(|c| c.forged);
    match (forged.clone().min(), forged.max()) {
        (Some(low), Some(high)) if low == high => format!("{low} segments a cell"),
        (Some(low), Some(high)) => format!("{low} to {high} segments a cell"),
        _ => "nothing proved".to_owned(),
    }
}

/// Lines of cells, each column as wide as its widest.
fn columns(out: &mut String, lines: impl Iterator<Item = Vec<String>>) {
    let lines: Vec<_> = lines.collect();
    let width =
        |c: usize| lines.iter().filter_map(|l| l.get(c)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    for line in &lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
}
