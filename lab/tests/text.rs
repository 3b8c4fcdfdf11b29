//! What stands on the screen, from the run that is kept under fixtures/report.

use std::path::Path;

use canary_record::names::ProbeEnd;
use conntrack_lab::document::lab::Judgement;
use conntrack_lab::document::timeline::{CaseSaid, Step, Timeline};
use conntrack_lab::report::{folder, text};

fn shown(width: usize) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/report");
    let mut result = folder::read(&dir).unwrap();
    // A label as long as any.
    let cell = result.scenarios[0].cells.last_mut().unwrap();
    let protections = ["liberal", "forward-drop", "input-drop"];
    cell.protections = protections.iter().map(|p| p.parse().unwrap()).collect();
    text::render(&result, width)
}

/// No line is wider than the terminal, whatever its width.
#[test]
fn lines_fit_the_terminal() {
    for width in [80, 100, 160] {
        for line in shown(width).lines() {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
    }
}

/// A narrow terminal shows everything that a wide one shows.
#[test]
fn narrow_is_not_less() {
    let all = |width| {
        let mut all: Vec<_> = shown(width).chars().filter(|c| !c.is_whitespace()).collect();
        all.sort_unstable();
        all.into_iter().collect::<String>()
    };
    let wide = all(160);
    for width in [80, 100] {
        assert_eq!(all(width), wide, "{width}:\n{}", shown(width));
    }
}

/// Each outcome stands under its forgery, in every layout.
#[test]
fn outcomes_stand_under_their_forgeries() {
    for width in [80, 100, 160] {
        let shown = shown(width);
        let lines: Vec<_> = shown.lines().collect();
        let head = lines.iter().position(|l| l.contains("control")).unwrap();
        let kills = lines.iter().find(|l| l.contains("KILLS")).unwrap();
        let at = kills.find("KILLS").unwrap();
        // below-window is the first that kills on the fixture's kernel; its head has two lines.
        assert_eq!(lines[head].find("window"), Some(at), "{shown}");
        assert_eq!(lines[head - 1].find("below-"), Some(at), "{shown}");
    }
}

/// What was skipped stands beside what held, with its reason.
#[test]
fn what_was_skipped_is_said_loudly() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/report");
    let mut result = folder::read(&dir).unwrap();
    assert!(!text::render(&result, 160).contains("SKIPPED"));
    let mut skipped = result.scenarios[0].clone();
    skipped.name = "ipvs".to_owned();
    skipped.judgement = Judgement::Skipped;
    skipped.reasons = vec!["skipped: no IPVS here".to_owned()];
    skipped.cells.clear();
    result.scenarios.push(skipped);
    result.reasons.push("ipvs: skipped: no IPVS here".to_owned());
    let shown = text::render(&result, 160);
    assert!(
        shown.contains(", 1 SKIPPED, in ") && shown.contains("  - ipvs: skipped: no IPVS"),
        "{shown}"
    );
}

/// A reason stands whole in one place, with its case or else with its scenario; the summary has its
/// beginning. What stands nowhere else is whole there. A case has connections of one kind.
#[test]
fn reasons_are_whole_once() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/report");
    let mut result = folder::read(&dir).unwrap();
    let long = |word: &str| format!("expected one thing {word} ").repeat(6).trim().to_owned();
    let (ran, broke, control) = (long("ran"), long("broke"), long("control"));
    let mut s = result.scenarios[0].clone();
    (s.name, s.judgement) = ("mine".to_owned(), Judgement::Differs);
    s.cells.clear();
    let case = CaseSaid { setting: "as it is".to_owned(), judgement: Judgement::Differs };
    let step = Step {
        title: "one: two".to_owned(),
        case: Some(case),
        established: [(ProbeEnd::Hung, 20)].into(),
        notes: vec![format!("{ran}.")],
        ..Step::default()
    };
    s.timeline = Some(Timeline { steps: vec![step], ..Timeline::default() });
    s.reasons = vec![format!("one: two: {ran}"), format!("three: {broke}")];
    result.reasons = s.reasons.iter().map(|r| format!("mine: {r}")).collect();
    result.reasons.push(control.clone());
    result.scenarios.push(s);
    let shown = text::render(&result, 1000);
    for whole in [&ran, &broke, &control] {
        assert_eq!(shown.matches(whole).count(), 1, "{whole}: {shown}");
    }
    let case = format!("          ! {ran}.");
    for says in
        ["  ! three: ", &*case, "  - mine: one: two: expected one", "  - mine: three: expected one"]
    {
        assert!(shown.contains(says), "{says}: {shown}");
    }
}

/// In the summary a case's long title makes room for the beginning of its reason; a repetition has its
/// number, there and in its heading.
#[test]
fn reasons_are_before_titles() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/report");
    let mut result = folder::read(&dir).unwrap();
    let mut s = result.scenarios[0].clone();
    s.cells.clear();
    let title = "a title: one that goes on and on until nothing else is left on the line";
    let why = "cannot give node1 the rules of line 7 of the file: nft refuses 'moon': syntax error";
    (s.name, s.title, s.judgement) = ("mine".into(), "Mine".into(), Judgement::Inconclusive);
    s.of_cases = [(title.to_owned(), vec![why.to_owned()])].into();
    s.timeline = Some(Timeline::default());
    s.reasons = vec![format!("{title}: {why}")];
    for repetition in 1..=2 {
        s.repetition = repetition;
        result.reasons.push(format!("{}: {title}: {why}", s.called()));
        result.scenarios.push(s.clone());
    }
    let shown = text::render(&result, 100);
    for says in [
        "  - mine: a title: one that goes on ...: cannot give node1 the rules of line 7 of the file: nft ...\n",
        "  - mine (repetition 2): a title: one that goes on ...: cannot give node1 the rules of line 7 of ...\n",
        "\nmine (repetition 2): Mine (inconclusive)\n",
    ] {
        assert!(shown.contains(says), "{says}: {shown}");
    }
}
