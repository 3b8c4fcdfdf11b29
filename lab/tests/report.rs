//! What the report shows, from its DOM: rendered from a run on Linux 5.10 that
//! is kept under fixtures/report, and from changes to it.

mod fixture;

use std::collections::BTreeSet;
use std::fs;

use conntrack_lab::document::lab::{Judgement, LabResult, ProxyMode, ScenarioResult, Seen};
use conntrack_lab::document::timeline::Timeline;
use conntrack_lab::report::{self, folder, junit};
use fixture::{fixture, result, skipped, with_timeline};
use roxmltree::{Document, Node, ParsingOptions};

/// The page of `result`, with the fixture's captures beside it.
fn html(result: &LabResult) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("captures")).unwrap();
    for file in fs::read_dir(fixture().join("captures")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join("captures").join(file.file_name())).unwrap();
    }
    folder::write(dir.path(), result).unwrap();
    fs::read_to_string(dir.path().join("report.html")).unwrap()
}

/// The page as XML: its void elements closed, its script as it stands.
fn page(result: &LabResult) -> String {
    let html = html(result);
    let mut page = String::new();
    for (n, part) in html.split('<').enumerate() {
        if n > 0 {
            page.push('<');
        }
        match part.split_once('>') {
            Some((tag, text)) if ["meta ", "input "].iter().any(|v| tag.starts_with(v)) => {
                page.extend([tag, "/>", text]);
            }
            _ => page.push_str(part),
        }
    }
    page.replace("<script>", "<script><![CDATA[").replace("</script>", "]]></script>")
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

/// A run that tried no protection recommends none, and says so.
#[test]
fn without_a_protection_none_is_recommended() {
    let mut r = result();
    r.scenarios[0].cells.truncate(1);
    let page = page(&r);
    let doc = parse(&page);
    let advice = text(by_id(&doc, "do").parent().unwrap());
    assert!(advice.ends_with("so this run recommends none."), "{advice}");
}

/// Where only a scenario with stages differs, the verdict names that.
#[test]
fn a_scenario_with_stages_that_differs_is_in_the_verdict() {
    let mut r = fixture::with_timeline();
    r.judgement = Judgement::Differs;
    r.scenarios.last_mut().unwrap().judgement = Judgement::Differs;
    let page = page(&r);
    let doc = parse(&page);
    let verdict = text(by_id(&doc, "verdict"));
    assert!(verdict.starts_with("1 of 1 scenario with stages did not behave"), "{verdict}");
}

/// What gave no answer is counted by its kind, beside what behaved as expected.
#[test]
fn what_gave_no_answer_is_in_the_verdict() {
    let mut r = fixture::with_timeline();
    r.judgement = Judgement::Inconclusive;
    let timeline = Some(Timeline::default());
    let broken = ScenarioResult { name: "broken-off".into(), timeline, ..fixture::skipped() };
    r.scenarios.push(ScenarioResult { judgement: Judgement::Inconclusive, ..broken });
    let verdict = report::html::verdict(&r);
    assert_eq!(
        verdict,
        "Not all is proved: 3 of 3 cells and 1 of 1 scenario with stages behaved as expected, \
         1 of 1 situation gave no answer."
    );
    r.scenarios.pop();
    assert!(report::html::verdict(&r).ends_with(", and not all was run."));
}

/// The page and the terminal call situations the same: one whose cases all broke off is one too.
#[test]
fn situations_are_called_so_everywhere() {
    let mut r = fixture::with_timeline();
    r.judgement = Judgement::AsExpected;
    for name in ["entry-deleted", "broken-off"] {
        let timeline = Some(Timeline::default());
        r.scenarios.push(ScenarioResult { name: name.into(), timeline, ..fixture::skipped() });
        r.scenarios.last_mut().unwrap().judgement = Judgement::AsExpected;
    }
    let page = page(&r);
    let verdict = text(by_id(&parse(&page), "verdict"));
    assert!(
        verdict.contains("all 3 cells and 2 situations and 1 scenario with stages behaved as"),
        "{verdict}"
    );
    let shown = report::text::render(&r, 200);
    assert!(
        shown.contains("2 of 2 situations as expected, 1 of 1 scenario with stages as expected"),
        "{shown}"
    );
}

/// A run over time alone, as kubectl conntrack experiment writes one, has no cells to speak of: the verdict
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
        ("No protection", "Protection", "No protection nftables · IPv4 · 20 each"),
        ("No protection", "control", "✓ delivered"),
        ("No protection", "above-window", "✕ kills"),
        ("No protection", "below-window", "✕ kills"),
        ("No protection", "ack-ahead", "△ leaks"),
        ("FORWARD drop", "above-window", "⊘ dropped"),
        ("be_liberal", "syn-fin", "✕ kills"),
        ("be_liberal", "above-window", "✓ delivered"),
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
    let tried = ["delivered", "leaked", "kills", "dropped", "resets", "safe"];
    let cells: Vec<_> = tried
        .iter()
        .flat_map(|class| of_class(&doc, class))
        .filter(|n| n.has_tag_name("td"))
        .collect();
    assert!(cells.len() >= 21, "{}", cells.len());
    for cell in cells {
        let said = text(cell);
        let (symbol, word) = said.split_once(' ').unwrap();
        assert!(symbol.chars().count() == 1 && !symbol.is_ascii(), "{said}");
        assert!(word.chars().take_while(char::is_ascii_alphabetic).count() > 3, "{said}");
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

/// Every distinct way to die has one ladder, the first open; captures of the same way are named.
#[test]
fn each_way_to_die_is_drawn_once() {
    let page = page(&result());
    let doc = parse(&page);
    let ways: Vec<_> = of_class(&doc, "way").collect();
    let titles: Vec<_> = ways.iter().map(|w| text(w.first_element_child().unwrap())).collect();
    assert_eq!(
        titles,
        [
            "Killed by a RST of the client (above-window: Pod to ClusterIP, other node)",
            "Leaked, and the client’s RST is ignored (ack-ahead: Pod to ClusterIP, other node)",
        ]
    );
    assert_eq!(of_class(&doc, "ladder").count(), ways.len());
    assert!(ways[0].has_attribute("open") && !ways[1].has_attribute("open"));
    let same = text(of_class(&doc, "same").last().unwrap());
    assert!(same.contains("below-window, Pod to ClusterIP") && same.contains("syn-fin"), "{same}");
}

/// A leaked segment whose RST the server ignores is not called a kill.
#[test]
fn a_harmless_leak_is_no_kill() {
    let page = page(&result());
    let doc = parse(&page);
    let harmless = of_class(&doc, "way").find(|d| text(*d).starts_with("Leaked, and")).unwrap();
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
    assert!(!page.contains("class=\"ladder\""));
    assert!(page.contains("The captures named in results.json are not beside it"));
}

/// The page needs nothing beside it, loads nothing and runs its own script alone.
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
    let elements = || doc.descendants().filter(Node::is_element);
    for node in elements() {
        let name = node.tag_name().name();
        let loads = ["link", "img", "iframe", "object", "embed", "base", "image", "use"];
        assert!(!loads.contains(&name), "<{name}>");
        for a in node.attributes() {
            assert!(!a.name().starts_with("on") && a.name() != "src", "{}", a.name());
            if a.name() == "href" {
                let inside = a.value().starts_with('#') || files.contains(a.value());
                assert!(inside, "{}", a.value());
            }
        }
    }
    let script: Vec<_> = elements().filter(|n| n.has_tag_name("script")).map(text).collect();
    let own = include_str!("../src/report/page.js").split_whitespace().collect::<Vec<_>>();
    assert_eq!(script, [own.join(" ")]);
    let policy = elements().find_map(|n| n.attribute("content").filter(|c| c.contains("-src")));
    assert!(policy.unwrap().starts_with("default-src 'none';"), "{policy:?}");
    let style = text(elements().find(|n| n.has_tag_name("style")).unwrap());
    assert!(!style.contains("url(") && !style.contains("@import"));
    assert!(style.contains("prefers-color-scheme: dark") && style.contains("@media print"));
}

/// Every link within the page leads to an element: rows from the overview, cells from the advice.
#[test]
fn rows_and_cells_have_links_of_their_own() {
    let mut r = result();
    r.judgement = Judgement::Differs;
    r.scenarios[0].cells[1].judgement = Judgement::Differs;
    let page = page(&r);
    let doc = parse(&page);
    let odd = &r.scenarios[0].cells[1].id;
    let advice = by_id(&doc, "do").parent().unwrap();
    assert!(advice.descendants().any(|n| n.attribute("href") == Some(&format!("#{odd}"))));
    assert!(by_id(&doc, odd).ancestors().any(|n| has_class(n, "evidence")));
    let field =
        of_class(&doc, "grid").next().unwrap().descendants().find(|n| has_class(*n, "resets"));
    let to = field.unwrap().first_element_child().unwrap().attribute("href").unwrap();
    assert_eq!(to, "#generations:none");
    assert!(has_class(by_id(&doc, &to[1..]), "found"));
}

/// The page can be read without eyes and walked without a mouse.
#[test]
fn the_page_is_accessible() {
    let mut result = with_timeline();
    let again = ScenarioResult { repetition: 2, ..result.scenarios.last().unwrap().clone() };
    result.scenarios.push(again);
    let page = page(&result);
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
    const NASTY: &str = "<script>alert(1)</script>]]>\"'&amp;";
    let mut r = with_timeline();
    r.run.kernel = NASTY.into();
    r.run.host = NASTY.into();
    r.run.version = NASTY.into();
    r.run.started = NASTY.into();
    r.reasons = vec![NASTY.into()];
    r.environment.tools.insert(NASTY.into(), NASTY.into());
    canary_runtime::cli::derive(&mut r.run.config, NASTY, &NASTY);
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
    let scripts: Vec<_> = doc.descendants().filter(|n| n.has_tag_name("script")).collect();
    assert!(scripts.len() == 1 && !text(scripts[0]).contains("alert"));
    assert!(text(by_id(&doc, "environment").parent().unwrap()).contains(NASTY));
    r.run.host.push('\u{1b}');
    let xml = junit::render(&r);
    let suite = Document::parse(&xml).unwrap();
    assert!(suite.descendants().any(|n| n.attribute("name") == Some(NASTY)));
    assert!(suite.descendants().any(|n| n.attribute("hostname") == Some(NASTY)));
}

/// What saw the same shares a row, what did not is marked.
#[test]
fn rows_fold_where_equal_and_part_where_not() {
    let mut r = result();
    let cells = &mut r.scenarios[0].cells;
    let mut same = cells[0].clone();
    same.proxy_mode = ProxyMode::Iptables;
    let mut other = cells[1].clone();
    other.proxy_mode = ProxyMode::Iptables;
    other.forgeries[5].seen = Seen::Kills;
    cells.extend([same, other]);
    let page = page(&r);
    let doc = parse(&page);
    assert_eq!(cell(&doc, "No protection iptables, nftables", "above-window"), "✕ kills");
    let head = cell(&doc, "No protection iptables, nftables", "Protection");
    assert!(head.contains("40 each"), "{head}");
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
