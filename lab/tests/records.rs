//! What other programs read of a run: JUnit XML, the comparison of two runs, the
//! record and its schema.

mod fixture;

use std::fs;
use std::path::Path;

use canary_record::names::{Forgery, ProbeEnd};
use canary_runtime::exit::Exit;
use canary_testbed::exec::Call;
use conntrack_lab::document::lab::{Judgement, LabResult, Seen};
use conntrack_lab::document::timeline::{CaseSaid, Finding};
use conntrack_lab::report::{diff, junit};
use fixture::{fixture, result, skipped, with_timeline};
use roxmltree::{Document, Node};

/// JUnit has a case for each cell; what differs fails, what proves nothing is an
/// error, and the totals are those of the cases.
#[test]
fn junit_says_the_same() {
    let mut r = result();
    r.scenarios[0].cells[0].judgement = Judgement::Differs;
    r.scenarios[0].cells[0].reasons = vec!["one".into(), "two".into()];
    r.scenarios[0].cells[1].judgement = Judgement::Inconclusive;
    r.scenarios[0].judgement = Judgement::Differs;
    r.scenarios.push(skipped());
    let xml = junit::render(&r);
    let doc = Document::parse(&xml).unwrap();
    let root = doc.root_element();
    assert!(root.has_tag_name("testsuites"));
    let sum = |name: &str| root.attribute(name).unwrap().parse::<usize>().unwrap();
    let count = |name: &str| doc.descendants().filter(|n| n.has_tag_name(name)).count();
    assert_eq!((sum("tests"), count("testcase")), (5, 5), "control, three cells, one skipped");
    assert_eq!((sum("failures"), count("failure")), (1, 1));
    assert_eq!((sum("errors"), count("error")), (1, 1));
    assert_eq!((sum("skipped"), count("skipped")), (1, 1));
    for suite in root.children().filter(Node::is_element) {
        assert!(suite.has_tag_name("testsuite"));
        let cases = suite.children().filter(|n| n.has_tag_name("testcase"));
        assert_eq!(suite.attribute("tests").unwrap().parse(), Ok(cases.count()));
        let time: jiff::Timestamp = suite.attribute("timestamp").unwrap().parse().unwrap();
        assert_eq!(time, r.run.started.parse().unwrap());
    }
    let failure = doc.descendants().find(|n| n.has_tag_name("failure")).unwrap();
    assert_eq!(failure.attribute("message"), Some("one"));
    assert_eq!(failure.text(), Some("one\ntwo"));
    let case = failure.parent().unwrap();
    assert_eq!(case.attribute("classname"), Some("generations.cluster-ip.nftables.ipv4"));
}

/// A run compared with itself has no change.
#[test]
fn the_same_run_is_no_change() {
    let diff = diff::compare(&result(), &result());
    assert_eq!((diff.exit(), diff.same, diff.changed.len()), (Exit::Ok, 18, 0));
}

/// A verdict that changed is named with both sides and ends with 10.
#[test]
fn a_changed_verdict_is_named() {
    let mut newer = result();
    let f = &mut newer.scenarios[0].cells[0].forgeries[1];
    assert_eq!((f.forgery, f.seen), (Forgery::BelowWindow, Seen::Kills));
    (f.seen, f.expected) = (Seen::Delivered, Some(Seen::Delivered));
    newer.run.kernel = "6.12".into();
    let diff = diff::compare(&result(), &newer);
    assert_eq!((diff.exit(), diff.same, diff.changed.len()), (Exit::Vulnerable, 17, 1));
    let said = diff.to_string();
    let line = "generations: cluster-ip ipv4 nftables, no protection, below-window: \
                kills (as-expected) -> delivered (as-expected)";
    assert!(said.contains(line), "{said}");
    assert!(said.contains("kernel: 5.10"), "{said}");
}

/// A scenario that goes through stages is compared as a whole, by its claims, and where it
/// makes none by how the connections of each stage ended.
#[test]
fn stages_are_compared() {
    let staged = |r: &mut LabResult| r.scenarios.last_mut().unwrap().timeline.take().unwrap();
    let old = with_timeline();
    assert_eq!(diff::compare(&old, &old.clone()).same, 18 + 2, "the whole, and one claim");
    let mut newer = old.clone();
    newer.scenarios.last_mut().unwrap().timeline.as_mut().unwrap().statements[0].finding =
        Finding::Holds;
    let found = diff::compare(&old, &newer);
    assert_eq!((found.exit(), found.changed.len()), (Exit::Vulnerable, 1));
    let said = found.to_string();
    let line = "saturation: A full table resets connections: \
                does-not-hold (as-expected) -> holds (as-expected)";
    assert!(said.contains(line), "{said}");

    let (mut a, mut b) = (old.clone(), old);
    for (r, ends) in [
        (&mut a, [(ProbeEnd::Survived, 20), (ProbeEnd::Hung, 0)]),
        (&mut b, [(ProbeEnd::Survived, 19), (ProbeEnd::Hung, 1)]),
    ] {
        let mut t = staged(r);
        t.statements.clear();
        t.steps[1].established = ends.into();
        r.scenarios.last_mut().unwrap().timeline = Some(t);
    }
    let found = diff::compare(&a, &b);
    assert_eq!((found.exit(), found.changed.len()), (Exit::Vulnerable, 1));
    let said = found.to_string();
    let line = "Full table: survived (as-expected) -> survived and hung (as-expected)";
    assert!(said.contains(line), "{said}");
}

/// A case is compared by its own judgement, whatever the others of its situation are: of two that stay as
/// they were, one as expected, nothing has changed, and one that turned is named alone.
#[test]
fn cases_are_compared_by_their_own_judgement() {
    let mut old = with_timeline();
    let s = old.scenarios.last_mut().unwrap();
    s.judgement = Judgement::Differs;
    let t = s.timeline.as_mut().unwrap();
    t.statements.clear();
    for (n, step) in t.steps.iter_mut().enumerate() {
        let judgement = if n == 0 { Judgement::AsExpected } else { Judgement::Differs };
        step.case = Some(CaseSaid { setting: String::new(), judgement });
        step.established = [(ProbeEnd::Survived, 20)].into();
    }
    let titles: Vec<_> = t.steps.iter().map(|s| s.title.clone()).collect();
    let cases = |r: &mut LabResult, judgement| {
        let t = r.scenarios.last_mut().unwrap().timeline.as_mut().unwrap();
        t.steps[0].case.as_mut().unwrap().judgement = judgement;
    };
    let mut newer = old.clone();
    cases(&mut newer, Judgement::Differs);
    let found = diff::compare(&old, &newer);
    assert_eq!((found.exit(), found.changed.len()), (Exit::Vulnerable, 1));
    let line = format!("saturation: {}: survived (as-expected) -> survived (differs)", titles[0]);
    assert!(found.to_string().contains(&line), "{found}");
    cases(&mut newer, Judgement::Inconclusive);
    let found = diff::compare(&old, &newer);
    assert_eq!((found.exit(), found.unproved.len()), (Exit::Inconclusive, 1), "{found}");
}

/// What is repeated has a number in JUnit, a situation as a cell has.
#[test]
fn repetitions_have_numbers_in_junit() {
    let mut r = with_timeline();
    let mut again = r.scenarios.last().unwrap().clone();
    again.repetition = 2;
    r.scenarios.push(again);
    let xml = junit::render(&r);
    let doc = Document::parse(&xml).unwrap();
    let names = |tag: &str| {
        let nodes = doc.descendants().filter(|n| n.has_tag_name(tag));
        nodes.filter_map(|n| n.attribute("name").map(str::to_owned)).collect::<Vec<_>>()
    };
    for (tag, name) in [
        ("testsuite", "saturation (repetition 2)"),
        ("testcase", "the scenario as a whole (repetition 2)"),
    ] {
        assert_eq!(names(tag).iter().filter(|n| *n == name).count(), 1, "{:?}", names(tag));
    }
}

/// A situation's cases are JUnit's, each with its own judgement, and one that was not run proves nothing;
/// of the situation as a whole there is a case only where something is wrong with none of them.
#[test]
fn a_situations_cases_are_in_junit() {
    let mut r = with_timeline();
    let s = r.scenarios.last_mut().unwrap();
    let t = s.timeline.as_mut().unwrap();
    t.statements.clear();
    t.steps.truncate(2);
    for (step, judgement) in t.steps.iter_mut().zip([Judgement::AsExpected, Judgement::Differs]) {
        step.case = Some(CaseSaid { setting: String::new(), judgement });
    }
    let [good, bad] = [0, 1].map(|n| t.steps[n].title.clone());
    s.judgement = Judgement::Differs;
    s.reasons = vec![format!("{bad}: it hung"), "away: no room".to_owned()];
    s.of_cases = [(good.clone(), ""), (bad.clone(), "it hung"), ("away".to_owned(), "no room")]
        .map(|(title, why)| (title, Vec::from_iter((!why.is_empty()).then(|| why.to_owned()))))
        .into();
    let said = |r: &LabResult| {
        let xml = junit::render(r);
        let doc = Document::parse(&xml).unwrap();
        let of = |n: &Node<'_, '_>| n.attribute("classname") == Some("saturation");
        let each = doc.descendants().filter(of).map(|n| {
            let child = n.children().find(Node::is_element);
            let name = n.attribute("name").unwrap().to_owned();
            (
                name,
                child.map(|c| {
                    format!("{}: {}", c.tag_name().name(), c.attribute("message").unwrap())
                }),
            )
        });
        each.collect::<Vec<_>>()
    };
    let mut cases = vec![
        ("away".to_owned(), Some("error: no room".to_owned())),
        (good, None),
        (bad, Some("failure: it hung".to_owned())),
    ];
    cases.sort();
    assert_eq!(said(&r), cases);

    r.scenarios.last_mut().unwrap().reasons.push("ended by SIGINT".into());
    cases.push(("the scenario as a whole".to_owned(), Some("error: ended by SIGINT".to_owned())));
    assert_eq!(said(&r), cases);
}

/// Every scenario that goes through stages has a JUnit case of its own, passed or not.
#[test]
fn stages_are_in_junit() {
    let mut r = with_timeline();
    for (judgement, element) in
        [(Judgement::AsExpected, None), (Judgement::Differs, Some("failure"))]
    {
        let s = r.scenarios.last_mut().unwrap();
        s.judgement = judgement;
        s.reasons = vec!["one claim did not hold".into()];
        let xml = junit::render(&r);
        let doc = Document::parse(&xml).unwrap();
        let case = doc
            .descendants()
            .find(|n| n.has_tag_name("testcase") && n.attribute("classname") == Some("saturation"));
        let child = case.unwrap().children().find(Node::is_element);
        assert_eq!(child.map(|n| n.tag_name().name()), element);
    }
}

/// A claim that stays as it was is no change because another of its scenario differs, and one
/// that was shown by neither run says nothing.
#[test]
fn a_claim_has_a_change_of_its_own() {
    let mut old = with_timeline();
    let timeline = |r: &mut LabResult| r.scenarios.last_mut().unwrap().timeline.take().unwrap();
    let mut t = timeline(&mut old);
    let mut other = t.statements[0].clone();
    (other.claim, other.finding) = ("Another".into(), Finding::NotShown);
    t.statements.push(other);
    old.scenarios.last_mut().unwrap().timeline = Some(t);
    let mut newer = old.clone();
    newer.scenarios.last_mut().unwrap().judgement = Judgement::Differs;
    let found = diff::compare(&old, &newer);
    assert_eq!((found.changed.len(), found.unproved.len()), (1, 0), "{found}");
    assert!(found.to_string().contains("all stages: run (as-expected) -> run (differs)"));
}

/// What the first run proved and the second does not have is no agreement.
#[test]
fn what_is_gone_is_not_the_same() {
    let mut newer = result();
    newer.scenarios[0].cells.pop();
    let diff = diff::compare(&result(), &newer);
    assert_eq!((diff.exit(), diff.gone.len(), diff.same), (Exit::Inconclusive, 6, 12));
}

/// Cells that were not run are an error of their own, also beside one that differs.
#[test]
fn junit_tells_missing_cells_beside_failures() {
    let mut r = result();
    r.scenarios[0].cells[0].judgement = Judgement::Differs;
    r.scenarios[0].judgement = Judgement::Differs;
    r.scenarios[0].reasons = vec!["28 cells were not run".into()];
    let xml = junit::render(&r);
    let doc = Document::parse(&xml).unwrap();
    let error = doc.descendants().find(|n| n.has_tag_name("error")).unwrap();
    assert_eq!(error.attribute("message"), Some("28 cells were not run"));
    assert_eq!(doc.descendants().filter(|n| n.has_tag_name("failure")).count(), 1);
}

/// What one run alone proved is neither a change nor the same.
#[test]
fn an_unproved_cell_is_no_comparison() {
    let mut newer = result();
    newer.scenarios[0].cells[0].judgement = Judgement::Inconclusive;
    let diff = diff::compare(&result(), &newer);
    assert_eq!((diff.exit(), diff.unproved.len(), diff.changed.len()), (Exit::Inconclusive, 6, 0));
}

/// Without a positive control in both, or with nothing in common, there is no comparison.
#[test]
fn incomparable_runs_prove_nothing() {
    let mut blind = result();
    blind.positive_control.held = false;
    assert_eq!(diff::compare(&result(), &blind).exit(), Exit::Inconclusive);
    let mut other = result();
    other.scenarios[0].name = "another".into();
    let diff = diff::compare(&result(), &other);
    assert_eq!((diff.exit(), diff.new.len(), diff.gone.len()), (Exit::Inconclusive, 18, 18));
    let mut later = result();
    later.schema_version += 1;
    assert_eq!(diff::compare(&result(), &later).exit(), Exit::Inconclusive);
}

fn lab(args: &[&Path]) -> (i32, String, String) {
    let args: Vec<_> = args.iter().map(|a| a.display().to_string()).collect();
    let lab = Path::new(env!("CARGO_BIN_EXE_conntrack-lab"));
    let done = Call::new(lab, &args).output().unwrap();
    (done.status.code().unwrap(), done.stdout, done.stderr)
}

/// `report DIR` and `diff A B` do what the functions do; a directory that is no
/// run is wrong usage, in one line.
#[test]
fn the_command_line_reports_and_compares() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture().join("results.json"), dir.path().join("results.json")).unwrap();
    let (code, out, _) = lab(&["report".as_ref(), dir.path()]);
    assert_eq!(code, 0);
    assert!(out.contains("report.html") && out.contains("junit.xml"), "{out}");
    assert!(dir.path().join("report.html").exists() && dir.path().join("junit.xml").exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing else is left");

    let (code, out, _) = lab(&["diff".as_ref(), &fixture(), dir.path()]);
    assert_eq!(code, 0, "{out}");
    let mut changed = result();
    changed.scenarios[0].cells[0].forgeries[1].seen = Seen::Dropped;
    fs::write(dir.path().join("results.json"), serde_json::to_vec(&changed).unwrap()).unwrap();
    let (code, out, _) = lab(&["diff".as_ref(), &fixture(), dir.path()]);
    assert_eq!(code, 10, "{out}");

    fs::write(dir.path().join("results.json"), "{}").unwrap();
    let (code, _, said) = lab(&["diff".as_ref(), &fixture(), dir.path()]);
    assert_eq!((code, said.lines().count()), (2, 1), "{said}");
    let (code, _, said) = lab(&["report".as_ref(), "/nowhere".as_ref()]);
    assert_eq!((code, said.lines().count()), (2, 1), "{said}");
    assert!(said.contains("/nowhere/results.json"), "{said}");
}

/// schema/lab.json is the schema of the record, and a real result obeys it.
#[test]
fn results_obey_their_schema() {
    let schema = schemars::schema_for!(LabResult);
    canary_testbed::golden::schema("lab.json", &schema);
    let validator = jsonschema::validator_for(schema.as_value()).unwrap();
    let real = fs::read(fixture().join("results.json")).unwrap();
    let real: serde_json::Value = serde_json::from_slice(&real).unwrap();
    let errors: Vec<_> = validator.iter_errors(&real).map(|e| e.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
    let drawn = serde_json::to_value(with_timeline()).unwrap();
    assert!(validator.is_valid(&drawn));
    // The schema would notice a wrong document.
    assert!(!validator.is_valid(&serde_json::json!({"schema_version": 1})));
}
