//! JUnit XML, as CI systems read it: a test case for each cell and each case of a situation. Pure.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::document::lab::{CellResult, Judgement, LabResult, ScenarioResult};

/// The document.
#[must_use]
pub fn render(result: &LabResult) -> String {
    let mut report = Report::new("conntrack-lab");
    report.add_test_suite(control(result));
    report.add_test_suites(result.scenarios.iter().map(|s| scenario(result, s)));
    let seconds =
        report.test_suites.iter().flat_map(|s| &s.test_cases).filter_map(|c| c.time).sum();
    report.set_time(seconds);
    report.to_string().unwrap_or_else(|e| unreachable!("a String takes everything: {e}"))
}

/// Without the positive control no other case means anything: it is one itself.
fn control(result: &LabResult) -> TestSuite {
    let c = &result.positive_control;
    let judgement = match result.judgement {
        _ if c.held => Judgement::AsExpected,
        // Where the run says itself that it needs none.
        Judgement::AsExpected if c.forged == 0 => Judgement::Skipped,
        _ => Judgement::Inconclusive,
    };
    let reason = format!(
        "{} of {} above-window segments reset an unprotected ClusterIP connection",
        c.killed, c.forged
    );
    let name = "unprotected ClusterIP resets";
    suite(
        result,
        "positive-control",
        vec![case("positive-control", name, 0.0, judgement, &[reason])],
    )
}

fn scenario(result: &LabResult, s: &ScenarioResult) -> TestSuite {
    let mut cases: Vec<_> = s
        .cells
        .iter()
        .map(|cell| {
            let class = format!("{}.{}.{}.{}", s.name, cell.path, cell.proxy_mode, cell.family);
            case(&class, &name(cell), cell.seconds, cell.judgement, &cell.reasons)
        })
        .collect();
    let step = |title: &str| s.timeline.iter().flat_map(|t| &t.steps).find(|s| s.title == title);
    let judged = |title: &String| {
        let of = step(title).and_then(|s| s.case.as_ref());
        of.map_or(Judgement::Inconclusive, |c| c.judgement)
    };
    cases.extend(s.of_cases.iter().map(|(title, reasons)| {
        case(&s.name, &again(title, s.repetition), 0.0, judged(title), reasons)
    }));
    // What is wrong with the scenario and with none of these is a case too, and so are cells that
    // were not run beside others that differ.
    let each = s.cells.iter().map(|c| c.judgement).chain(s.of_cases.keys().map(judged));
    let is_of = |reason: &str, title: &str| {
        reason.strip_prefix(title).is_some_and(|rest| rest.starts_with(": "))
    };
    let beside = |reason: &&String| !s.of_cases.keys().any(|title| is_of(reason, title));
    let reasons: Vec<_> = s.reasons.iter().filter(beside).cloned().collect();
    let own = match each.reduce(Judgement::worse) {
        Some(worst) if worst == s.judgement => {
            (!reasons.is_empty()).then_some(Judgement::Inconclusive)
        }
        _ => Some(s.judgement),
    };
    let whole = again("the scenario as a whole", s.repetition);
    cases.extend(own.map(|j| case(&s.name, &whole, 0.0, j, &reasons)));
    suite(result, &s.called(), cases)
}

fn name(cell: &CellResult) -> String {
    again(&format!("{:#}", cell.protections.sorted()), cell.repetition)
}

/// Told apart from the same before it.
fn again(name: &str, repetition: u32) -> String {
    if repetition > 1 { format!("{name} (repetition {repetition})") } else { name.to_owned() }
}

fn suite(result: &LabResult, name: &str, cases: Vec<TestCase>) -> TestSuite {
    let mut suite = TestSuite::new(name);
    // A result is a file like any other: a time that is none is left out.
    suite.timestamp = result.run.started.parse().ok();
    suite.set_time(cases.iter().filter_map(|c| c.time).sum());
    suite.extra.insert("hostname".into(), result.run.host.as_str().into());
    suite.add_property(("kernel", result.run.kernel.as_str()));
    suite.add_property(("version", result.run.version.as_str()));
    suite.add_test_cases(cases);
    suite
}

fn case(
    class: &str,
    name: &str,
    seconds: f64,
    judgement: Judgement,
    reasons: &[String],
) -> TestCase {
    let mut status = match judgement {
        Judgement::AsExpected => TestCaseStatus::success(),
        Judgement::Differs => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Judgement::Inconclusive => TestCaseStatus::non_success(NonSuccessKind::Error),
        Judgement::Skipped => TestCaseStatus::skipped(),
    };
    if judgement != Judgement::AsExpected {
        status.set_message(reasons.first().map_or(judgement.as_str(), String::as_str));
    }
    if matches!(judgement, Judgement::Differs | Judgement::Inconclusive) {
        status.set_type(judgement.as_str()).set_description(reasons.join("\n"));
    }
    let mut case = TestCase::new(name, status);
    case.set_classname(class);
    case.set_time(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    case
}
