//! Tables made from records that are written out here: no kernel, no clock.

use std::collections::BTreeMap;

use crate::document::kernels::{Agreement, GuestState, KernelRun, KernelsResult};
use crate::document::lab::{
    CellResult, Environment, ForgeryResult, Judgement, LabResult, Path, PositiveControl,
    Protection, ProxyMode, ScenarioResult, Seen,
};
use crate::document::timeline::{CaseSaid, Step, Timeline};
use canary_record::names::{EndedBy, Forgery, OldSegments, ProbeEnd, UnknownReason};
use canary_record::result::{Run, SCHEMA_VERSION};
use canary_wire::segment::Family;

use canary_record::outcome::Counts;

use super::table::{Input, compare};
use super::{html, text};

fn ended() -> Run {
    Run {
        program: "conntrack-lab".to_owned(),
        version: "0".to_owned(),
        kernel: "5.10.0-test #1 <SMP>".to_owned(),
        host: "guest".to_owned(),
        node: None,
        started: "2026-01-01T00:00:00.000Z".to_owned(),
        ended: "2026-01-01T00:01:00.000Z".to_owned(),
        seconds: 60.0,
        ended_by: EndedBy::Connections,
        config: BTreeMap::new(),
    }
}

fn forgery(forgery: Forgery, seen: Seen) -> ForgeryResult {
    let n = |s| if seen == s { 20 } else { 0 };
    ForgeryResult {
        forgery,
        expected: Some(seen),
        seen,
        forged: 20,
        counts: Counts {
            leaked: n(Seen::Leaked) + n(Seen::Kills),
            killed: n(Seen::Kills),
            delivered: n(Seen::Delivered),
            dropped: n(Seen::Dropped),
            ..Counts::default()
        },
    }
}

fn cell(protections: &[&str], forgeries: Vec<ForgeryResult>) -> CellResult {
    CellResult {
        id: "1".to_owned(),
        repetition: 1,
        path: Path::ClusterIp,
        direction: canary_record::names::Direction::ServerToClient,
        family: Family::Ipv4,
        proxy_mode: ProxyMode::Nftables,
        protections: protections.iter().map(|p| p.parse::<Protection>().unwrap()).collect(),
        judgement: Judgement::AsExpected,
        reasons: Vec::new(),
        profile: None,
        meaning: String::new(),
        advice: String::new(),
        forgeries,
        boom_diagnosis: None,
        client: BTreeMap::new(),
        sniffer_dropped: 0,
        nodes: Vec::new(),
        captured_resets: None,
        witnesses: Vec::new(),
        captures: Vec::new(),
        seconds: 1.0,
    }
}

/// A run in which `below` became of the old segments, unprotected and behind a drop.
fn lab(old: OldSegments) -> LabResult {
    let (bare, behind) = match old {
        OldSegments::Invalid => (Seen::Kills, Seen::Dropped),
        _ => (Seen::Delivered, Seen::Delivered),
    };
    let cells = vec![
        cell(
            &[],
            vec![
                forgery(Forgery::BelowWindow, bare),
                forgery(Forgery::AboveWindow, Seen::Kills),
                forgery(Forgery::NoFlags, Seen::Leaked),
            ],
        ),
        cell(&["forward-drop"], vec![forgery(Forgery::BelowWindow, behind)]),
    ];
    LabResult {
        schema_version: SCHEMA_VERSION,
        run: ended(),
        judgement: Judgement::AsExpected,
        reasons: Vec::new(),
        environment: Environment { old_segments: Some(old), ..Environment::default() },
        positive_control: PositiveControl { held: true, forged: 20, killed: 20 },
        scenarios: vec![ScenarioResult {
            name: "cluster-ip".to_owned(),
            title: String::new(),
            why: String::new(),
            source: String::new(),
            judgement: Judgement::AsExpected,
            reasons: Vec::new(),
            cells,
            commands: Vec::new(),
            timeline: None,
            mended: Vec::new(),
            repetition: 1,
            of_cases: BTreeMap::new(),
        }],
    }
}

fn input(name: &str, lab: Option<LabResult>) -> Input {
    let kernel = KernelRun {
        name: name.to_owned(),
        source: "a test".to_owned(),
        version: None,
        accel: "tcg".to_owned(),
        state: if lab.is_some() { GuestState::Ran } else { GuestState::NotBooted },
        old_segments: OldSegments::NotShown,
        judgement: if lab.is_some() { Judgement::AsExpected } else { Judgement::Inconclusive },
        reasons: if lab.is_some() { Vec::new() } else { vec!["it did not boot".to_owned()] },
        started: None,
        seconds: None,
        results: format!("results/{name}"),
    };
    Input { kernel, lab }
}

fn both(old: LabResult, new: LabResult) -> KernelsResult {
    compare(vec![input("old", Some(old)), input("new", Some(new))], ended())
}

fn agreement(result: &KernelsResult, forgery: Forgery, protections: usize) -> Agreement {
    let mut rows = result.rows.iter();
    rows.find(|r| r.forgery == forgery && r.protections.len() == protections).unwrap().agreement
}

/// A repetition of a situation whose cases were judged so, and another that was not run.
fn situation(cases: &[(&str, Judgement)]) -> ScenarioResult {
    let step = |&(title, judgement): &(&str, Judgement)| Step {
        title: title.to_owned(),
        case: Some(CaseSaid { setting: String::new(), judgement }),
        established: [(ProbeEnd::Survived, 1)].into(),
        ..Step::default()
    };
    ScenarioResult {
        name: "idle".to_owned(),
        judgement: Judgement::Differs,
        of_cases: [("away", "it was not run"), ("bad", "it hung")]
            .map(|(case, why)| (case.to_owned(), vec![why.to_owned()]))
            .into(),
        timeline: Some(Timeline { steps: cases.iter().map(step).collect(), ..Timeline::default() }),
        cells: Vec::new(),
        ..lab(OldSegments::Ignored).scenarios.remove(0)
    }
}

/// A case has its own judgement, the worst of its repetitions, and no other case's.
#[test]
fn a_case_has_its_own_judgement() {
    let (good, bad) = (Judgement::AsExpected, Judgement::Differs);
    let mut lab = lab(OldSegments::Ignored);
    lab.scenarios = vec![
        situation(&[("good", good), ("bad", bad), ("away", good)]),
        situation(&[("good", good), ("bad", good)]),
    ];
    let result = compare(vec![input("one", Some(lab))], ended());
    let told = result.cases.iter().map(|c| (&*c.case, &c.cells[0]));
    let judged: Vec<_> = told.map(|(case, c)| (case, c.judgement, c.reasons.len())).collect();
    let want = [("good", good, 0), ("bad", bad, 2), ("away", Judgement::Inconclusive, 2)];
    assert_eq!(judged, want);
    assert_eq!(result.cases[0].cells[0].client, [(ProbeEnd::Survived, 2)].into());
}

/// Two generations that each do what their treatment of old segments says are
/// a difference that is explained, and nothing else differs.
#[test]
fn the_known_difference_is_explained() {
    let result = both(lab(OldSegments::Invalid), lab(OldSegments::Ignored));
    assert_eq!(agreement(&result, Forgery::BelowWindow, 0), Agreement::OldSegments);
    assert_eq!(agreement(&result, Forgery::BelowWindow, 1), Agreement::OldSegments);
    assert_eq!(agreement(&result, Forgery::AboveWindow, 0), Agreement::Alike);
    assert_eq!(result.judgement, Judgement::AsExpected, "{:?}", result.reasons);
}

/// Kernels of one generation that differ below the window are not excused by
/// the change of 6.1: behaviour decides, not a version.
#[test]
fn one_generation_that_differs_is_unexplained() {
    let mut new = lab(OldSegments::Ignored);
    new.environment.old_segments = Some(OldSegments::Invalid);
    let result = both(lab(OldSegments::Invalid), new);
    assert_eq!(agreement(&result, Forgery::BelowWindow, 0), Agreement::Unexplained);
    assert_eq!(result.judgement, Judgement::Differs);
}

/// A difference below the window that no row of the lab's table says of these
/// generations is not explained by them.
#[test]
fn a_difference_the_table_does_not_know_is_unexplained() {
    let mut old = lab(OldSegments::Invalid);
    old.scenarios[0].cells[0].forgeries[0] = forgery(Forgery::BelowWindow, Seen::Leaked);
    let result = both(old, lab(OldSegments::Ignored));
    assert_eq!(agreement(&result, Forgery::BelowWindow, 0), Agreement::Unexplained);
}

/// A difference in any other forgery is unexplained, even between generations,
/// and is the first reason.
#[test]
fn any_other_difference_is_unexplained() {
    let mut new = lab(OldSegments::Ignored);
    new.scenarios[0].cells[0].forgeries[1] = forgery(Forgery::AboveWindow, Seen::Delivered);
    let result = both(lab(OldSegments::Invalid), new);
    assert_eq!(agreement(&result, Forgery::AboveWindow, 0), Agreement::Unexplained);
    assert_eq!(result.judgement, Judgement::Differs);
    assert!(result.reasons[0].contains("above-window under none"), "{:?}", result.reasons);
}

/// A kernel that did not boot is a column of inconclusive cells with its
/// reason, and makes the whole inconclusive; no cell is blank anywhere.
#[test]
fn a_kernel_that_did_not_boot_is_never_blank() {
    let result = compare(
        vec![
            input("old", Some(lab(OldSegments::Invalid))),
            input("dead", None),
            input("new", Some(lab(OldSegments::Ignored))),
        ],
        ended(),
    );
    assert_eq!(result.judgement, Judgement::Inconclusive);
    assert_eq!(result.reasons, ["dead: not-booted: it did not boot"]);
    for row in &result.rows {
        assert_eq!(row.cells[1].judgement, Judgement::Inconclusive);
        assert!(row.cells.iter().all(|c| !text::word(c).is_empty()));
    }
    assert_eq!(agreement(&result, Forgery::BelowWindow, 0), Agreement::OldSegments);
    assert!(!html::render(&result).contains("<td></td></tr>"));
}

/// No kernel at all is inconclusive, never agreement.
#[test]
fn nothing_proved_is_inconclusive() {
    let result = compare(vec![input("a", None), input("b", None)], ended());
    assert_eq!(result.judgement, Judgement::Inconclusive);
    assert!(result.reasons.iter().any(|r| r == "no kernel left a result"));
}

/// A run without its positive control proves nothing, whatever its cells say.
#[test]
fn without_the_positive_control_a_kernel_is_inconclusive() {
    let mut new = lab(OldSegments::Ignored);
    new.positive_control.held = false;
    let result = both(lab(OldSegments::Invalid), new);
    assert_eq!(result.kernels[1].judgement, Judgement::Inconclusive);
    assert_eq!(result.judgement, Judgement::Inconclusive);
}

/// A cell whose evidence did not hold shows no outcome and is not compared.
#[test]
fn an_inconclusive_cell_shows_its_reason_and_no_outcome() {
    let mut new = lab(OldSegments::Ignored);
    let cell = &mut new.scenarios[0].cells[0];
    cell.judgement = Judgement::Inconclusive;
    cell.reasons = vec!["the sniffer lost segments".to_owned()];
    let result = both(lab(OldSegments::Invalid), new);
    let shown = &result.rows[0].cells[1];
    assert_eq!((shown.seen, text::word(shown).as_str()), (None, "inconclusive"));
    assert_eq!(shown.reasons, ["the sniffer lost segments"]);
    assert_eq!(agreement(&result, Forgery::BelowWindow, 0), Agreement::NotCompared);
}

/// Segments of which some were not judged make the cell inconclusive.
#[test]
fn unjudged_segments_are_inconclusive() {
    let mut new = lab(OldSegments::Ignored);
    let f = &mut new.scenarios[0].cells[0].forgeries[0];
    f.expected = None;
    f.seen = Seen::Mixed;
    f.counts.delivered = 19;
    f.counts.unknown = BTreeMap::from([(UnknownReason::NoProofOfLife, 1)]);
    let result = both(lab(OldSegments::Invalid), new);
    assert_eq!(result.rows[0].cells[1].judgement, Judgement::Inconclusive);
    assert_eq!(result.judgement, Judgement::Inconclusive);
}

/// Repetitions of a cell are one cell with all segments, and disagree as mixed.
#[test]
fn repetitions_are_taken_together() {
    let mut old = lab(OldSegments::Invalid);
    let again = old.scenarios[0].cells[0].clone();
    old.scenarios[0].cells.push(again);
    let result = both(old.clone(), lab(OldSegments::Ignored));
    assert_eq!(result.rows[0].cells[0].forged, 40);
    assert_eq!(result.rows[0].cells[0].counted, 40);
    old.scenarios[0].cells[2].forgeries[1] = forgery(Forgery::AboveWindow, Seen::Leaked);
    let result = both(old, lab(OldSegments::Ignored));
    assert_eq!(result.rows[1].cells[0].seen, Some(Seen::Mixed));
    assert_eq!(result.judgement, Judgement::Differs);
}

/// Results that another kernel wrote than the one that was booted are not taken for it.
#[test]
fn results_of_another_kernel_are_inconclusive() {
    let mut old = input("old", Some(lab(OldSegments::Invalid)));
    old.kernel.version = Some("6.1.0".to_owned());
    let result = compare(vec![old, input("new", Some(lab(OldSegments::Ignored)))], ended());
    assert_eq!(result.kernels[0].judgement, Judgement::Inconclusive);
}

/// What a reader sees, whole: versions, behaviour, marks, the commit.
#[test]
fn text_shows_versions_marks_and_the_commit() {
    let shown = text::render(&both(lab(OldSegments::Invalid), lab(OldSegments::Ignored)));
    canary_testbed::golden::check(env!("CARGO_MANIFEST_DIR"), "kernels.txt", &shown);
}

/// The page escapes what it did not write itself, and marks the rows that differ.
#[test]
fn the_page_escapes_and_marks() {
    let page = html::render(&both(lab(OldSegments::Invalid), lab(OldSegments::Ignored)));
    assert!(page.contains("5.10.0-test #1 &lt;SMP&gt;") && !page.contains("<SMP>"));
    assert_eq!(page.matches("class=\"older").count(), 2);
    assert!(page.contains("6e250dcbff1d"));
}
