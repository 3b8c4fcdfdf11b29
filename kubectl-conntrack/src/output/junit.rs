//! A test suite for each part of a result, a test case for each row: what is vulnerable fails, what
//! is not proved is an error.

use canary_record::names::Verdict;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::{Part, Sheet};

pub(crate) fn junit(sheet: &Sheet) -> anyhow::Result<String> {
    let mut report = Report::new(sheet.command);
    for part in &sheet.parts {
        report.add_test_suite(suite(part));
    }
    if !sheet.reasons.is_empty() {
        let mut run = TestSuite::new("run");
        run.add_test_cases(sheet.reasons.iter().map(|r| weakens("complete", sheet.verdict, r)));
        report.add_test_suite(run);
    }
    Ok(report.to_string()?)
}

fn suite(part: &Part) -> TestSuite {
    let mut suite = TestSuite::new(part.title.clone());
    if !part.facts.is_empty() {
        suite.add_property(("facts", part.facts.as_str()));
    }
    suite.add_test_cases(part.reasons.iter().map(|r| weakens("tried", part.verdict, r)));
    for t in &part.tables {
        for row in &t.rows {
            let first = row.cells.first().map_or("", String::as_str);
            let end = row.cells.last().cloned().unwrap_or_default();
            let name = format!("{first} {}", t.title);
            suite.add_test_case(case(name.trim_end(), row.verdict, end));
        }
        let name = format!("proved {}", t.title);
        suite.add_test_cases(t.reasons.iter().map(|r| weakens(name.trim_end(), part.verdict, r)));
    }
    suite
}

/// What is said beside a verdict: a note where all is well, else why something is not proved. What is
/// vulnerable fails where it was found.
fn weakens(name: &str, verdict: Verdict, reason: &str) -> TestCase {
    let verdict = match verdict {
        Verdict::Protected => Verdict::Protected,
        _ => Verdict::Inconclusive,
    };
    case(name, verdict, reason.to_owned())
}

fn case(name: &str, verdict: Verdict, end: String) -> TestCase {
    let kind = match verdict {
        Verdict::Protected => return TestCase::new(name, TestCaseStatus::success()),
        Verdict::Vulnerable => NonSuccessKind::Failure,
        Verdict::Inconclusive => NonSuccessKind::Error,
    };
    let mut status = TestCaseStatus::non_success(kind);
    status.set_type(verdict.as_str()).set_message(end);
    TestCase::new(name, status)
}
