//! From each kernel's results to one table: pure.

use std::collections::BTreeMap;

use crate::document::add;
use crate::document::kernels::{
    Agreement, GuestState, KernelCase, KernelCaseCell, KernelCell, KernelRow, KernelRun,
    KernelsResult,
};
use crate::document::lab::{
    CellResult, ForgeryResult, Judgement, LabResult, Path, Profile, Protections, ProxyMode, Seen,
};
use canary_record::names::{Direction, Forgery, OldSegments};
use canary_record::result::{Run, SCHEMA_VERSION};
use canary_wire::segment::Family;

use crate::scenario::matrix::row as row_of;

/// What one kernel left, as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// The kernel as far as it is known without the lab's results.
    pub(crate) kernel: KernelRun,
    pub(crate) lab: Option<LabResult>,
}

/// What a row is, whatever the kernel.
type Key = (Path, Direction, Family, ProxyMode, Protections, Forgery);

pub(crate) fn compare(inputs: Vec<Input>, run: Run) -> KernelsResult {
    let rows: Vec<KernelRow> = keys(&inputs).into_iter().map(|key| row(key, &inputs)).collect();
    let cases = cases(&inputs);
    let kernels: Vec<KernelRun> = inputs.into_iter().map(judge_kernel).collect();
    let (judgement, reasons) = judge(&kernels, &rows);
    KernelsResult { schema_version: SCHEMA_VERSION, run, judgement, reasons, kernels, rows, cases }
}

/// The cases of situations that any kernel has run, in the order of the first that has.
fn cases(inputs: &[Input]) -> Vec<KernelCase> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    let all = inputs.iter().filter_map(|i| i.lab.as_ref()).flat_map(|lab| &lab.scenarios);
    for s in all.filter(|s| s.cells.is_empty()) {
        for step in s.timeline.iter().flat_map(|t| &t.steps).filter(|step| step.case.is_some()) {
            let name = (s.name.as_str(), step.title.as_str());
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let case = |(scenario, case): (&str, &str)| KernelCase {
        scenario: scenario.to_owned(),
        case: case.to_owned(),
        cells: inputs.iter().map(|input| case_cell(input, scenario, case)).collect(),
    };
    names.into_iter().map(case).collect()
}

/// All repetitions of a case together; the worst judgement of it alone.
fn case_cell(input: &Input, scenario: &str, case: &str) -> KernelCaseCell {
    let (mut client, mut reasons, mut judgement) = (BTreeMap::new(), Vec::new(), None);
    let all = input.lab.iter().flat_map(|lab| &lab.scenarios).filter(|s| s.name == scenario);
    for s in all {
        let step = s.timeline.iter().flat_map(|t| &t.steps).find(|step| step.title == case);
        let here = match (step.and_then(|step| step.case.as_ref()), s.judgement) {
            (Some(said), _) => said.judgement,
            (None, Judgement::Skipped) => Judgement::Skipped,
            (None, _) => Judgement::Inconclusive,
        };
        judgement = Some(judgement.map_or(here, |before| here.worse(before)));
        if let Some(step) = step {
            add(&mut client, &step.established);
        }
        reasons.extend(s.of_cases.get(case).into_iter().flatten().cloned());
    }
    KernelCaseCell { client, judgement: judgement.unwrap_or(Judgement::Inconclusive), reasons }
}

/// Every row that any kernel has, in the order that the lab ran them.
fn keys(inputs: &[Input]) -> Vec<Key> {
    let mut seen = BTreeMap::new();
    for (cell, forgery) in inputs.iter().filter_map(|i| i.lab.as_ref()).flat_map(results) {
        let next = seen.len();
        seen.entry(key(cell, forgery)).or_insert(next);
    }
    let mut keys: Vec<_> = seen.into_iter().collect();
    keys.sort_by_key(|(_, order)| *order);
    keys.into_iter().map(|(key, _)| key).collect()
}

fn results(lab: &LabResult) -> impl Iterator<Item = (&CellResult, &ForgeryResult)> {
    lab.scenarios
        .iter()
        .flat_map(|s| &s.cells)
        .flat_map(|cell| cell.forgeries.iter().map(move |forgery| (cell, forgery)))
}

fn key(cell: &CellResult, forgery: &ForgeryResult) -> Key {
    let CellResult { path, direction, family, proxy_mode, protections, .. } = cell;
    (*path, *direction, *family, *proxy_mode, protections.sorted(), forgery.forgery)
}

/// Rows that differ in protections and forgery alone.
pub(super) fn groups(rows: &[KernelRow]) -> impl Iterator<Item = &[KernelRow]> {
    let of = |r: &KernelRow| (r.path, r.direction, r.family, r.proxy_mode);
    rows.chunk_by(move |a, b| of(a) == of(b))
}

fn row(key: Key, inputs: &[Input]) -> KernelRow {
    let cells: Vec<KernelCell> = inputs.iter().map(|input| cell(&key, input)).collect();
    let proved: Vec<_> = cells
        .iter()
        .zip(inputs)
        .filter_map(|(cell, input)| Some((cell.seen?, old_segments(input))))
        .collect();
    let (path, direction, family, proxy_mode, protections, forgery) = key;
    let agreement = agreement(forgery, &proved);
    KernelRow { path, direction, family, proxy_mode, protections, forgery, cells, agreement }
}

/// One kernel's cell of one row: all repetitions together.
fn cell(key: &Key, input: &Input) -> KernelCell {
    let nothing = |why: &str| KernelCell { reasons: vec![why.to_owned()], ..KernelCell::default() };
    let Some(lab) = &input.lab else {
        return nothing("this kernel left no results");
    };
    let all: Vec<_> = results(lab).filter(|(c, f)| self::key(c, f) == *key).collect();
    let sum = all.iter().map(|(_, f)| (*f).clone()).reduce(|mut sum, more| {
        sum.add(&more);
        sum
    });
    let Some(sum) = sum else { return nothing("this kernel's run has no such cell") };
    let judgement =
        all.iter().map(|(c, f)| judge_forgery(c, f)).fold(Judgement::AsExpected, Judgement::worse);
    let proved = matches!(judgement, Judgement::AsExpected | Judgement::Differs);
    let reasons = match judgement {
        Judgement::AsExpected => Vec::new(),
        _ => all.iter().flat_map(|(c, _)| c.reasons.clone()).collect(),
    };
    KernelCell {
        seen: proved.then_some(sum.seen),
        judgement,
        forged: sum.forged,
        counted: sum.agreeing(),
        reasons,
    }
}

/// A cell's evidence holds for all its forgeries; an expectation for one.
fn judge_forgery(cell: &CellResult, forgery: &ForgeryResult) -> Judgement {
    match cell.judgement {
        Judgement::Skipped | Judgement::Inconclusive => cell.judgement,
        Judgement::AsExpected | Judgement::Differs => forgery.judgement(),
    }
}

/// The kernel's generation by its own behaviour, as its run showed it.
fn old_segments(input: &Input) -> OldSegments {
    let environment = input.lab.as_ref().map(|lab| &lab.environment);
    environment.and_then(|e| e.old_segments).unwrap_or_default()
}

/// Whether what the kernels saw is alike, differs as their generations do, or
/// differs without an explanation.
///
/// Explained is what one row of the lab's own table says of each generation
/// (tcp_in_window(), commit 6e250dcbff1d): no outcome is excused by a version.
fn agreement(forgery: Forgery, proved: &[(Seen, OldSegments)]) -> Agreement {
    let Some((first, rest)) = proved.split_first() else { return Agreement::NotCompared };
    if rest.is_empty() {
        return Agreement::NotCompared;
    }
    if rest.iter().all(|(seen, _)| *seen == first.0) {
        return Agreement::Alike;
    }
    let explained = Profile::ALL.iter().any(|profile| {
        proved.iter().all(|(seen, old)| row_of(*profile, forgery, Some(*old)) == Some(*seen))
    });
    if explained { Agreement::OldSegments } else { Agreement::Unexplained }
}

/// Adds to the kernel what its run says of it.
fn judge_kernel(input: Input) -> KernelRun {
    let old_segments = old_segments(&input);
    let Input { mut kernel, lab } = input;
    kernel.old_segments = old_segments;
    let Some(lab) = lab else {
        kernel.judgement = Judgement::Inconclusive;
        return kernel;
    };
    kernel.judgement = kernel.judgement.worse(lab.judgement);
    // The guest's own word and the lab's must be of the same kernel.
    if kernel.version.as_ref().is_some_and(|v| *v != lab.run.kernel) {
        kernel.judgement = kernel.judgement.worse(Judgement::Inconclusive);
        kernel.reasons.push(format!("the results are of another kernel: {}", lab.run.kernel));
    }
    // The lab says itself why it has none.
    if !lab.positive_control.held {
        kernel.judgement = kernel.judgement.worse(Judgement::Inconclusive);
        if lab.reasons.is_empty() {
            kernel.reasons.push("no positive control".to_owned());
        }
    }
    kernel.version = Some(lab.run.kernel);
    kernel.started = Some(lab.run.started);
    kernel.seconds = Some(lab.run.seconds);
    kernel.reasons.extend(lab.reasons);
    kernel
}

/// The judgement of the whole, most important reason first.
fn judge(kernels: &[KernelRun], rows: &[KernelRow]) -> (Judgement, Vec<String>) {
    let mut found: Vec<(Judgement, String)> = Vec::new();
    let unexplained = rows.iter().filter(|r| r.agreement == Agreement::Unexplained);
    for row in unexplained {
        let title = title(row);
        found.push((Judgement::Differs, format!("the kernels differ, unexplained: {title}")));
    }
    for (index, kernel) in kernels.iter().enumerate() {
        let name = &kernel.name;
        if kernel.state != GuestState::Ran {
            let why = kernel.reasons.first().map_or("no reason given", String::as_str);
            found.push((Judgement::Inconclusive, format!("{name}: {}: {why}", kernel.state)));
            continue;
        }
        for judgement in [Judgement::Differs, Judgement::Inconclusive, Judgement::Skipped] {
            let cells = rows.iter().filter(|r| r.cells[index].judgement == judgement).count();
            if cells > 0 {
                found.push((judgement, format!("{name}: {cells} cells {judgement}")));
            }
        }
        if kernel.judgement != Judgement::AsExpected {
            let why = kernel.reasons.first().map_or("no reason given", String::as_str);
            found.push((
                kernel.judgement,
                format!("{name}: the lab says {}: {why}", kernel.judgement),
            ));
        }
    }
    if rows.is_empty() {
        found.push((Judgement::Inconclusive, "no kernel left a result".to_owned()));
    } else if kernels.len() < 2 {
        found.push((Judgement::Inconclusive, "one kernel alone: nothing to compare".to_owned()));
    }
    let worst = found.iter().map(|(j, _)| *j).fold(Judgement::AsExpected, Judgement::worse);
    found.sort_by_key(|(j, _)| *j);
    (worst, found.into_iter().map(|(_, text)| text).collect())
}

pub(crate) fn title(row: &KernelRow) -> String {
    format!(
        "{} under {} ({}, {}, {}, {})",
        row.forgery, row.protections, row.path, row.direction, row.family, row.proxy_mode
    )
}

/// Why a row's kernels differ, for a reader; empty where they do not.
pub(crate) const fn explanation(agreement: Agreement) -> &'static str {
    match agreement {
        Agreement::Alike | Agreement::NotCompared => "",
        Agreement::OldSegments => {
            "Before Linux 6.1 tcp_in_window() (net/netfilter/nf_conntrack_proto_tcp.c) calls a segment \
             below the window INVALID: it is not translated back, and leaks or is dropped by a rule. \
             Since commit 6e250dcbff1d it is ignored: the entry stays as it is, the segment is \
             translated and delivered. Which of the two a kernel does was seen in its own run, not \
             taken from its version."
        }
        Agreement::Unexplained => {
            "Nothing known explains this difference: read the captures of both cells before believing it."
        }
    }
}
