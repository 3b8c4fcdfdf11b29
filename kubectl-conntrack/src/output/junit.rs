//! A test suite for each node, a test case for each path: what is vulnerable fails, what is not
//! proved is an error.

use canary_record::names::Verdict;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::table::{facts, path_end};
use crate::report::DiagnoseResult;
use crate::verdict::NodeRow;

/// The report's text.
pub fn junit(result: &DiagnoseResult) -> anyhow::Result<String> {
    let mut report = Report::new("kubectl conntrack diagnose");
    for node in &result.nodes {
        report.add_test_suite(suite(node));
    }
    if !result.reasons.is_empty() {
        let mut run = TestSuite::new("run");
        for reason in &result.reasons {
            run.add_test_case(case("complete", Verdict::Inconclusive, reason.clone()));
        }
        report.add_test_suite(run);
    }
    Ok(report.to_string()?)
}

fn suite(node: &NodeRow) -> TestSuite {
    let mut suite = TestSuite::new(node.name.clone());
    suite.add_property(("node", facts(node).as_str()));
    for reason in &node.reasons {
        suite.add_test_case(case("tried", Verdict::Inconclusive, reason.clone()));
    }
    for f in &node.families {
        for p in &f.paths {
            suite.add_test_case(case(&format!("{} {}", p.path, p.family), p.verdict, path_end(p)));
        }
        let own = |r: &&String| !f.paths.iter().any(|p| r.starts_with(&format!("{}: ", p.path)));
        for reason in f.reasons.iter().filter(own).filter(|_| f.verdict == Verdict::Inconclusive) {
            suite.add_test_case(case(&format!("proved {}", f.family), f.verdict, reason.clone()));
        }
    }
    suite
}

fn case(name: &str, verdict: Verdict, end: String) -> TestCase {
    let status = match verdict {
        Verdict::Protected => TestCaseStatus::success(),
        Verdict::Vulnerable => failed(NonSuccessKind::Failure, verdict, end),
        Verdict::Inconclusive => failed(NonSuccessKind::Error, verdict, end),
    };
    TestCase::new(name.to_owned(), status)
}

fn failed(kind: NonSuccessKind, verdict: Verdict, end: String) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_type(verdict.as_str()).set_message(end);
    status
}
