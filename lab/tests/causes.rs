//! Other causes of resets and hangs, on real packets.

mod common;

use std::fs;

use common::{Left, lab, output, result, scratch};
use conntrack_lab::document::lab::{Judgement, LabResult};

const SHIPPED: [(&str, &str); 4] = [
    ("entry-deleted", include_str!("../scenarios/entry-deleted.toml")),
    ("endpoint-replaced", include_str!("../scenarios/endpoint-replaced.toml")),
    ("mtu-black-hole", include_str!("../scenarios/mtu-black-hole.toml")),
    ("close-unread", include_str!("../scenarios/close-unread.toml")),
];

fn judged(result: &LabResult, name: &str) -> (Judgement, Vec<String>) {
    let s = result.scenarios.iter().find(|s| s.name == name).unwrap();
    (s.judgement, s.reasons.clone())
}

/// Every other cause has its effect, boom-server attributes none of it to
/// #74839, and nothing is left on the host.
#[test]
fn other_causes_are_not_taken_for_the_bug() {
    let dir = scratch();
    let before = Left::now(dir.path());
    let results = dir.path().join("r");
    let names = SHIPPED.map(|(name, _)| name);
    let out = output(lab(&dir).arg("run").args(names).arg("--output").arg(&results));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let r = result(&results);
    for name in names {
        assert_eq!(judged(&r, name), (Judgement::AsExpected, Vec::new()), "{name}");
    }
    // What was measured is in the record, not its judgement alone.
    let steps: Vec<_> =
        r.scenarios.iter().filter_map(|s| s.timeline.as_ref()).flat_map(|t| &t.steps).collect();
    assert_eq!(steps.len(), 7);
    for s in steps {
        assert_eq!(s.boom.len(), 1, "{}: {:?}", s.title, s.boom);
        assert!(s.notes.iter().any(|n| n.contains("attributed 0 RSTs")), "{:?}", s.notes);
    }
    before.assert_same(dir.path());
}

/// With the cause removed and the expectation kept, every case differs: no
/// expectation is empty.
#[test]
fn without_the_cause_every_case_differs() {
    let dir = scratch();
    let mut files = Vec::new();
    for (name, text) in SHIPPED {
        let mut text = text.to_owned();
        for action in ["delete-entries", "replace-endpoint", "black-hole"] {
            text = text.replace(&format!("action = \"{action}\""), "action = \"nothing\"");
        }
        // Here the cause is what the client does.
        text = text.replace("pattern = \"close-unread\"", "pattern = \"idle\"");
        let file = dir.path().join(format!("{name}.toml"));
        fs::write(&file, text).unwrap();
        files.push(file);
    }
    let results = dir.path().join("r");
    let out = output(lab(&dir).arg("run").args(&files).arg("--output").arg(&results));
    assert_eq!(out.code, 10, "{}{}", out.stdout, out.stderr);
    let r = result(&results);
    assert!(r.positive_control.held);
    let order: Vec<_> = r.scenarios.iter().skip(1).map(|s| s.name.as_str()).collect();
    assert_eq!(order, SHIPPED.map(|(name, _)| name), "as asked for, whichever ends first");
    for (name, text) in SHIPPED {
        let (judgement, reasons) = judged(&r, name);
        assert_eq!(judgement, Judgement::Differs, "{name}: {reasons:?}");
        // One case in a file must not hide another.
        for title in text.lines().filter_map(|l| l.strip_prefix("title = \"")).skip(1) {
            let title = title.trim_end_matches('"');
            assert!(reasons.iter().any(|r| r.starts_with(title)), "{title}: {reasons:?}");
        }
    }
}

/// A field that nobody knows, and a kind that nobody knows, are wrong usage.
#[test]
fn wrong_files_are_one_line() {
    let dir = scratch();
    for (from, to, says) in [
        ("title =", "titel =", "unknown field `titel`"),
        ("kind = \"cause\"", "kind = \"moon\"", "use matrix, cause or saturation"),
        ("action = \"nothing\"", "action = \"noting\"", "unknown variant `noting`"),
    ] {
        let file = dir.path().join("bad.toml");
        fs::write(&file, SHIPPED[3].1.replacen(from, to, 1)).unwrap();
        let out = output(lab(&dir).arg("run").arg(&file));
        assert_eq!(out.code, 2, "{}{}", out.stdout, out.stderr);
        assert_eq!(out.stderr.lines().count(), 1, "{}", out.stderr);
        assert!(out.stderr.contains(says), "{}", out.stderr);
    }
}
