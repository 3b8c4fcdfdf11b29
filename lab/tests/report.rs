//! What the report shows, from its DOM: rendered from a run on Linux 5.10 that
//! is kept under fixtures/report, and from changes to it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use canary_common::exit::Exit;
use canary_common::outcome::{Forgery, Outcome, ProbeEnd};
use canary_common::result::lab::{FrontEnd, Judgement, LabResult, ScenarioResult, Seen};
use canary_common::result::timeline::{
    Change, FailureClass, Finding, Statement, Step, Timeline, TimelineSample,
};
use conntrack_lab::report::{diff, folder, junit};
use roxmltree::{Document, Node, ParsingOptions};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/report")
}

fn result() -> LabResult {
    folder::read(&fixture()).unwrap()
}

/// The page of `result`, with the fixture's captures beside it.
fn page(result: &LabResult) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("captures")).unwrap();
    for file in fs::read_dir(fixture().join("captures")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join("captures").join(file.file_name())).unwrap();
    }
    folder::write(dir.path(), result).unwrap();
    fs::read_to_string(dir.path().join("report.html")).unwrap()
}

fn parse(page: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(page, options).unwrap()
}

/// A node's text with its white space made single.
fn text(node: Node<'_, '_>) -> String {
    let parts: Vec<_> = node.descendants().filter(Node::is_text).filter_map(|n| n.text()).collect();
    parts.join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn has_class(node: Node<'_, '_>, class: &str) -> bool {
    node.attribute("class").is_some_and(|c| c.split(' ').any(|c| c == class))
}

fn by_id<'a>(doc: &'a Document<'_>, id: &str) -> Node<'a, 'a> {
    let found = doc.descendants().find(|n| n.attribute("id") == Some(id));
    found.unwrap_or_else(|| panic!("no element #{id}"))
}

fn of_class<'a>(doc: &'a Document<'_>, class: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    doc.descendants().filter(move |n| has_class(*n, class))
}

/// The text of the first table cell under `column` in the row that begins with `row`.
fn cell(doc: &Document<'_>, row: &str, column: &str) -> String {
    for table in doc.descendants().filter(|n| n.has_tag_name("table")) {
        let rows: Vec<_> = table.descendants().filter(|n| n.has_tag_name("tr")).collect();
        let cells = |r: Node<'_, '_>| -> Vec<String> {
            r.children().filter(Node::is_element).map(text).collect()
        };
        let head = cells(rows[0]);
        let Some(at) = head.iter().position(|h| h.starts_with(column)) else { continue };
        if let Some(found) = rows.iter().map(|r| cells(*r)).find(|c| c[0].starts_with(row)) {
            return found[at].clone();
        }
    }
    panic!("no cell {row} / {column}");
}

/// The first thing on the page is the verdict, then the positive control with its numbers.
#[test]
fn verdict_and_positive_control_come_first() {
    let page = page(&result());
    let doc = parse(&page);
    let first = doc.descendants().find(|n| n.has_tag_name("h1")).unwrap();
    assert_eq!(first.attribute("id"), Some("verdict"));
    assert!(text(first).starts_with("Reproduced:"), "{}", text(first));
    assert!(text(first).contains("all 3 cells behaved as expected"), "{}", text(first));
    let control = text(by_id(&doc, "positive-control"));
    assert!(control.contains("held") && control.contains("20 of 20"), "{control}");
    assert!(text(by_id(&doc, "finding")).contains("FORWARD drop"));
}

/// Without its positive control the page claims nothing, whatever the cells say.
#[test]
fn without_a_positive_control_nothing_is_claimed() {
    let mut r = result();
    r.positive_control.held = false;
    r.positive_control.killed = 3;
    for judgement in [Judgement::AsExpected, Judgement::Inconclusive] {
        r.judgement = judgement;
        let page = page(&r);
        let doc = parse(&page);
        assert!(text(by_id(&doc, "verdict")).starts_with("Nothing is proved"));
        let control = text(by_id(&doc, "positive-control"));
        assert!(control.contains("did not hold: 3 of 20"), "{control}");
        assert!(!doc.descendants().any(|n| n.attribute("id") == Some("finding")));
    }
}

/// A run over time alone, as k8s/experiment writes one, has no cells to speak of: the verdict
/// is of its steps.
#[test]
fn a_run_without_cells_speaks_of_its_steps() {
    let mut r = result();
    for s in &mut r.scenarios {
        s.cells.clear();
    }
    for (judgement, says) in [
        (Judgement::AsExpected, "Every step ran"),
        (Judgement::Differs, "A step did not show"),
        (Judgement::Inconclusive, "Not all is proved"),
    ] {
        r.judgement = judgement;
        let page = page(&r);
        let verdict = text(by_id(&parse(&page), "verdict"));
        assert!(verdict.starts_with(says), "{verdict}");
        assert!(!verdict.contains("cell"), "{verdict}");
    }
}

/// The matrix shows what became of each forgery, in words and numbers.
#[test]
fn the_matrix_shows_every_outcome() {
    let page = page(&result());
    let doc = parse(&page);
    for (row, column, expected) in [
        ("No protection", "control", "✓ delivered 20 of 20"),
        ("No protection", "above-window", "✕ kills 20 of 20"),
        ("No protection", "below-window", "✕ kills 20 of 20"),
        ("No protection", "ack-ahead", "△ leaks 20 of 20"),
        ("FORWARD drop", "above-window", "⊘ dropped 20 of 20"),
        ("be_liberal", "syn-fin", "✕ kills 20 of 20"),
        ("be_liberal", "above-window", "✓ delivered 20 of 20"),
        ("Pod to ClusterIP, other node", "be_liberal", "✕ resets by syn-fin"),
        ("Pod to ClusterIP, other node", "FORWARD drop", "✓ safe"),
    ] {
        assert_eq!(cell(&doc, row, column), expected, "{row} / {column}");
    }
}

/// No outcome is told by its colour alone: every one has a symbol and a word.
#[test]
fn colour_is_never_the_only_carrier() {
    let page = page(&result());
    let doc = parse(&page);
    let cells: Vec<_> = of_class(&doc, "o").filter(|n| !has_class(*n, "not-tried")).collect();
    assert!(cells.len() >= 21, "{}", cells.len());
    for cell in cells {
        let symbol = cell.descendants().find(|n| has_class(*n, "sym")).map(text);
        let word = cell.descendants().find(|n| n.has_tag_name("b")).map(text);
        assert!(symbol.is_some_and(|s| !s.is_empty()), "{}", text(cell));
        assert!(word.is_some_and(|w| w.len() > 3), "{}", text(cell));
    }
}

/// The ladder is drawn from the captures: the forged segment reaches the client
/// from an address it never called, and its RST kills.
#[test]
fn the_ladder_tells_how_a_connection_dies() {
    let page = page(&result());
    let doc = parse(&page);
    let ladder = of_class(&doc, "ladder").next().unwrap();
    let events: Vec<_> = ladder.descendants().filter(|n| has_class(*n, "event")).collect();
    let part = |event: Node<'_, '_>, class: &str| {
        text(event.descendants().find(|n| has_class(*n, class)).unwrap())
    };
    let syn = events[0];
    assert!(part(syn, "c").ends_with("→ 198.19.0.10:80"), "{}", part(syn, "c"));
    assert!(part(syn, "s").ends_with("→ 198.18.66.20:9000"), "{}", part(syn, "s"));
    let forged = events.iter().position(|e| has_class(*e, "forged")).unwrap();
    let (forged, kill) = (events[forged], events[forged + 1]);
    assert!(part(forged, "c").starts_with("198.18.66.20:9000 →"), "{}", part(forged, "c"));
    assert!(forged.descendants().any(|n| has_class(n, "odd")));
    assert!(part(forged, "say").contains("0x7FFFC000 above"), "{}", part(forged, "say"));
    assert!(part(forged, "say").contains("does not translate it back"));
    assert!(has_class(kill, "kill"), "{}", text(kill));
    assert_eq!(part(kill, "nums"), "RST · seq 1");
    assert!(part(kill, "say").contains("RFC 5961"));
}

/// A leaked segment whose RST the server ignores is not called a kill.
#[test]
fn a_harmless_leak_is_no_kill() {
    let page = page(&result());
    let doc = parse(&page);
    let details = doc.descendants().filter(|n| n.has_tag_name("details"));
    let harmless =
        details.into_iter().find(|d| text(*d).starts_with("ack-ahead: Pod to ClusterIP")).unwrap();
    assert!(harmless.descendants().any(|n| has_class(n, "answer")));
    assert!(!harmless.descendants().any(|n| has_class(n, "kill")));
    assert!(text(harmless).contains("the server ignores it"));
}

/// A capture that is not there is missed aloud.
#[test]
fn a_missing_capture_is_said() {
    let dir = tempfile::tempdir().unwrap();
    folder::write(dir.path(), &result()).unwrap();
    let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
    let doc = parse(&page);
    assert!(of_class(&doc, "ladder").next().is_none());
    assert!(page.contains("The captures named in results.json are not beside it"));
}

/// The page needs nothing beside it and runs nothing.
#[test]
fn the_page_is_self_contained() {
    let page = page(&result());
    let doc = parse(&page);
    let files: BTreeSet<String> = result()
        .scenarios
        .iter()
        .flat_map(|s| &s.cells)
        .flat_map(|c| &c.captures)
        .map(|c| c.file.clone())
        .collect();
    for node in doc.descendants().filter(Node::is_element) {
        let name = node.tag_name().name();
        let loads = ["script", "link", "img", "iframe", "object", "embed", "base", "image", "use"];
        assert!(!loads.contains(&name), "<{name}>");
        for a in node.attributes() {
            assert!(!a.name().starts_with("on") && a.name() != "src", "{}", a.name());
            if a.name() == "href" {
                let inside = a.value().starts_with('#') || files.contains(a.value());
                assert!(inside, "{}", a.value());
            }
        }
    }
    let style = text(doc.descendants().find(|n| n.has_tag_name("style")).unwrap());
    assert!(!style.contains("url(") && !style.contains("@import"));
    assert!(style.contains("prefers-color-scheme: dark") && style.contains("@media print"));
}

/// HTML reads the page as XML does: nothing but a void element closes itself,
/// except in drawings.
#[test]
fn html_and_xml_agree() {
    let page = page(&result());
    let doc = parse(&page);
    assert!(page.starts_with("<!DOCTYPE html>"));
    for node in doc.descendants().filter(Node::is_element) {
        let drawn = node.ancestors().any(|n| n.has_tag_name("svg"));
        let closed = page[node.range()].ends_with("/>");
        let void = ["meta", "br", "hr"].contains(&node.tag_name().name());
        assert!(drawn || closed == void, "{}", &page[node.range()]);
    }
}

/// The page can be read without eyes and walked without a mouse.
#[test]
fn the_page_is_accessible() {
    let page = page(&with_timeline());
    let doc = parse(&page);
    let elements = || doc.descendants().filter(Node::is_element);
    assert_eq!(doc.root_element().attribute("lang"), Some("en"));
    for landmark in ["header", "nav", "main", "footer"] {
        assert_eq!(elements().filter(|n| n.has_tag_name(landmark)).count(), 1, "{landmark}");
    }
    let skip = elements().find(|n| n.has_tag_name("a")).unwrap();
    assert_eq!(skip.attribute("href"), Some("#main"), "the first link skips to the report");
    let mut level = 0;
    let headings = ["h1", "h2", "h3", "h4", "h5", "h6"];
    for n in elements() {
        if let Some(at) = headings.iter().position(|h| n.has_tag_name(*h)) {
            assert!(at <= level, "{} skips a level", text(n));
            level = at + 1;
        }
        if n.has_tag_name("table") {
            let first = n.children().find(Node::is_element).unwrap();
            assert!(first.has_tag_name("caption") && !text(first).is_empty(), "{}", text(n));
            // It scrolls in a container of its own, which the keyboard can reach.
            let parent = n.parent().unwrap();
            assert!(has_class(parent, "wide") && parent.attribute("tabindex") == Some("0"));
            assert!(parent.attribute("aria-label").is_some());
        }
        if n.has_tag_name("th") {
            assert!(n.attribute("scope").is_some(), "{}", text(n));
        }
        if n.attribute("role") == Some("img") {
            let named = n.attribute("aria-labelledby").unwrap();
            assert!(named.split(' ').all(|id| !text(by_id(&doc, id)).is_empty()));
        }
    }
    let ids: Vec<_> = elements().filter_map(|n| n.attribute("id")).collect();
    let once: BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), once.len(), "an id stands twice");
    for to in elements().filter_map(|n| n.attribute("href")?.strip_prefix('#')) {
        assert!(once.contains(&to), "#{to} leads nowhere");
    }
}

/// What comes from outside is text, wherever it stands.
#[test]
fn everything_is_escaped() {
    const NASTY: &str = "<script>alert(1)</script>]]>\"'&amp;\u{1b}";
    let mut r = with_timeline();
    r.run.kernel = NASTY.into();
    r.run.host = NASTY.into();
    r.run.version = NASTY.into();
    r.run.started = NASTY.into();
    r.reasons = vec![NASTY.into()];
    r.environment.tools.insert(NASTY.into(), NASTY.into());
    r.run.config.insert(NASTY.into(), NASTY.into());
    for s in &mut r.scenarios {
        for field in [&mut s.name, &mut s.title, &mut s.why, &mut s.source] {
            *field = NASTY.into();
        }
        s.reasons = vec![NASTY.into()];
        for list in &mut s.commands {
            list.title = NASTY.into();
            list.lines = vec![NASTY.into()];
        }
        for c in &mut s.cells {
            for field in [&mut c.id, &mut c.meaning, &mut c.advice] {
                *field = NASTY.into();
            }
            c.reasons = vec![NASTY.into()];
            c.nodes[0].node = NASTY.into();
            c.nodes[0].drop_rules.insert(NASTY.into(), 1);
            c.captures.iter_mut().for_each(|k| k.host.push_str(NASTY));
        }
    }
    r.scenarios.truncate(1);
    let page = page(&r);
    let doc = parse(&page);
    assert!(!doc.descendants().any(|n| n.has_tag_name("script")));
    let shown = NASTY.replace('\u{1b}', "\u{fffd}");
    assert!(text(by_id(&doc, "repeat").parent().unwrap()).contains(&shown));
    let xml = junit::render(&r);
    let suite = Document::parse(&xml).unwrap();
    assert!(suite.descendants().any(|n| n.attribute("name") == Some(shown.as_str())));
}

/// What saw the same shares a row, what did not is marked.
#[test]
fn rows_fold_where_equal_and_part_where_not() {
    let mut r = result();
    let cells = &mut r.scenarios[0].cells;
    let mut same = cells[0].clone();
    same.front_end = FrontEnd::Iptables;
    let mut other = cells[1].clone();
    other.front_end = FrontEnd::Iptables;
    other.forgeries[5].seen = Seen::Kills;
    cells.extend([same, other]);
    let page = page(&r);
    let doc = parse(&page);
    assert_eq!(cell(&doc, "No protection iptables, nftables", "above-window"), "✕ kills 40 of 40");
    let parted: Vec<_> = of_class(&doc, "differ").map(|n| text(n.parent().unwrap())).collect();
    assert_eq!(parted.len(), 2, "{parted:?}");
    assert!(parted.iter().all(|p| p.starts_with("FORWARD drop")), "{parted:?}");
}

/// What was lost, skipped or not proved stands before the numbers that it weakens.
#[test]
fn weaknesses_are_said_beside_the_numbers() {
    let mut r = result();
    r.judgement = Judgement::Inconclusive;
    r.scenarios[0].cells[1].judgement = Judgement::Inconclusive;
    r.scenarios[0].cells[1].reasons = vec!["the counters disagree".into()];
    r.scenarios[0].cells[2].sniffer_dropped = 7;
    r.scenarios[0].cells[2].captured_resets = None;
    r.scenarios.push(skipped());
    let page = page(&r);
    let doc = parse(&page);
    let said = text(by_id(&doc, "doubts").parent().unwrap());
    for expected in
        ["lost 7 segments", "no br_netfilter: modprobe", "1 cell without a whole capture"]
    {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(cell(&doc, "FORWARD drop", "above-window").contains("? not proved"));
    assert!(cell(&doc, "Pod to ClusterIP", "FORWARD drop").contains("not proved"));
    assert!(page.contains("the counters disagree"));
    assert!(page.find("id=\"doubts\"") < page.find("id=\"overview\""));
}

fn skipped() -> ScenarioResult {
    ScenarioResult {
        name: "same-node-bridge".into(),
        title: "Through a bridge".into(),
        why: String::new(),
        source: String::new(),
        judgement: Judgement::Skipped,
        reasons: vec!["no br_netfilter: modprobe br_netfilter".into()],
        cells: Vec::new(),
        commands: Vec::new(),
        timeline: None,
    }
}

fn with_timeline() -> LabResult {
    let mut t = Timeline::default();
    for i in 1..=40_u32 {
        let full = i > 20;
        t.push(TimelineSample {
            t: f64::from(i),
            interval_s: 1.0,
            entries: u64::from(60 * i.min(20)),
            limit: 1200,
            attempts: 50,
            ok: if full { 10 } else { 50 },
            failures: [(FailureClass::ConnectTimeout, if full { 40 } else { 0 })].into(),
            ..TimelineSample::default()
        });
    }
    t.steps = vec![
        Step { title: "Baseline".into(), new_attempts: 1000, new_ok: 1000, ..Step::default() },
        Step {
            t: 20.0,
            title: "Full table".into(),
            changes: vec![Change {
                what: "nf_conntrack_max".into(),
                from: "262144".into(),
                to: "1200".into(),
            }],
            new_attempts: 1000,
            new_ok: 200,
            new_failures: [(FailureClass::ConnectTimeout, 800)].into(),
            established: [(ProbeEnd::Survived, 371), (ProbeEnd::Hung, 29)].into(),
            boom: [(Outcome::Delivered, 5)].into(),
            ..Step::default()
        },
    ];
    t.statements = vec![Statement {
        claim: "A full table resets connections".into(),
        source: "the blog post".into(),
        finding: Finding::DoesNotHold,
        evidence: vec!["0 of 800 failures were resets.".into()],
    }];
    let mut r = result();
    r.scenarios.push(ScenarioResult {
        name: "saturation".into(),
        title: "A table that fills up".into(),
        judgement: Judgement::AsExpected,
        reasons: Vec::new(),
        timeline: Some(t),
        ..skipped()
    });
    r
}

/// A run over time is drawn, its steps are marked and tabled, its claims judged.
#[test]
fn a_run_over_time_is_shown() {
    let page = page(&with_timeline());
    let doc = parse(&page);
    let chart = of_class(&doc, "chart").next().unwrap();
    assert_eq!(chart.descendants().filter(|n| has_class(*n, "step")).count(), 2);
    let summary = text(chart.descendants().find(|n| n.has_tag_name("desc")).unwrap());
    assert!(summary.contains("connect timed out at most 40"), "{summary}");
    assert_eq!(cell(&doc, "2. Full table", "Changed"), "nf_conntrack_max 262144 → 1200");
    assert_eq!(cell(&doc, "2. Full table", "failed"), "connect timed out 800");
    assert_eq!(cell(&doc, "2. Full table", "Established"), "survived 371, hung 29");
    let claim = cell(&doc, "A full table resets connections", "On this kernel");
    assert_eq!(claim, "✕ does not hold");
}

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
        assert_eq!(suite.attribute("timestamp").unwrap().len(), "2026-01-01T00:00:00".len());
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
    let done = Command::new(env!("CARGO_BIN_EXE_conntrack-lab")).args(args).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (done.status.code().unwrap(), text(&done.stdout), text(&done.stderr))
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
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schema/lab.json");
    let schema = schemars::schema_for!(LabResult);
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap(), "lab.json: run with UPDATE_GOLDEN=1");
    let validator = jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap();
    let real = fs::read(fixture().join("results.json")).unwrap();
    let real: serde_json::Value = serde_json::from_slice(&real).unwrap();
    let errors: Vec<_> = validator.iter_errors(&real).map(|e| e.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
    let drawn = serde_json::to_value(with_timeline()).unwrap();
    assert!(validator.is_valid(&drawn));
    // The schema would notice a wrong document.
    assert!(!validator.is_valid(&serde_json::json!({"schema_version": 1})));
}
