//! The shipped scenarios of paths and protections: none of their expectations is empty.

mod common;

use std::fs;
use std::path::Path;

use common::{lab, output, result, scratch};
use conntrack_lab::document::lab::Judgement;
use toml::{Table, Value};

/// The scenario with one protected cell, whose protection is then taken away; for
/// the path without br_netfilter, which no protection changes, br_netfilter is on.
fn flipped(text: &str) -> Option<(String, String)> {
    let mut scenario: Table = text.parse().unwrap();
    let name = scenario["name"].as_str().unwrap().to_owned();
    let cells = scenario.get("cell")?.as_array()?.clone();
    let protected = |c: &&Value| c.get("protections").is_some();
    let bare = cells.iter().find(|c| !protected(c)).map(|c| c["expect"].clone());
    let bare = bare.unwrap_or_else(|| Value::from("unprotected"));
    let mut cell = match cells.iter().filter(protected).find(|c| c["expect"] != bare) {
        Some(cell) => cell.as_table().unwrap().clone(),
        None if name == "same-node-bridge-no-nf" => {
            scenario.insert("path".into(), "same-node-bridge".into());
            cells[0].as_table().unwrap().clone()
        }
        None => return None,
    };
    cell.remove("protections");
    scenario.insert("cell".into(), vec![Value::from(cell)].into());
    scenario.insert("families".into(), vec!["ipv4"].into());
    scenario.insert("proxy-modes".into(), vec!["nftables"].into());
    scenario.insert("connections".into(), 5.into());
    Some((name, toml::to_string(&scenario).unwrap()))
}

/// Every scenario fails when its cause is removed: the run ends with 10, and each
/// of them differs.
#[test]
fn every_scenario_fails_without_its_cause() {
    let dir = scratch();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut command = lab(&dir);
    command.arg("run").arg("--output").arg(dir.path().join("r"));
    let mut names = Vec::new();
    for entry in fs::read_dir(shipped).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        if !text.contains("\n[[cell]]") || text.contains("name = \"positive-control\"") {
            continue;
        }
        let (name, text) = flipped(&text).expect("a scenario with a protected cell");
        let file = dir.path().join(format!("{name}.toml"));
        fs::write(&file, text).unwrap();
        command.arg(file);
        names.push(name);
    }
    assert!(names.len() >= 13, "{names:?}");
    let out = output(&mut command);
    let r = result(&dir.path().join("r"));
    for name in names {
        let s = r.scenarios.iter().find(|s| s.name == name).unwrap();
        assert_eq!(s.judgement, Judgement::Differs, "{name}: {:?}", s.cells[0].reasons);
    }
    assert_eq!(out.code, 10, "{}{}", out.stdout, out.stderr);
}

/// A scenario of one's own is refused with the reason where it makes no sense.
#[test]
fn senseless_scenarios_are_refused() {
    let dir = scratch();
    let good = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/positive-control.toml"),
    )
    .unwrap();
    let cases = [
        ("name = \"positive-control\"", "name = \"A b\"", "name: use lower-case"),
        ("families = [\"ipv4\"]", "families = []", "families: name at least one"),
        ("\"below-window\", \"above-window\"]", "\"control\"]", "forgeries: name each once"),
        ("above-window = \"kills\"", "syn-fin = \"kills\"", "expect: name at least one forgery"),
        ("above-window = \"kills\"", "above-window = \"klls\"", "did you mean `kills`?"),
        ("path = \"cluster-ip\"", "path = \"moon\"", "unknown variant `moon`"),
        ("families = [\"ipv4\"]", "families = [\"ipv4\", \"ipv4\"]", "families: name each once"),
        (
            "name = \"positive-control\"",
            "name = \"cluster-ip\"",
            "two scenarios are named 'cluster-ip': in (shipped) and in ",
        ),
    ];
    for (from, to, says) in cases {
        assert!(good.contains(from), "{from}");
        let file = dir.path().join("x.toml");
        fs::write(&file, good.replace(from, to)).unwrap();
        let out = output(lab(&dir).args(["run", "cluster-ip"]).arg(&file));
        assert_eq!(out.code, 2, "{to}: {}", out.stderr);
        assert_eq!(out.stderr.lines().count(), 1, "{}", out.stderr);
        assert!(out.stderr.contains(says), "{to}: {}", out.stderr);
    }
}

/// What --help says is as committed.
#[test]
fn help_is_as_committed() {
    let dir = scratch();
    let mut text = String::new();
    for args in [&["--help"][..], &["run", "--help"], &["shell", "--help"], &["check", "--help"]] {
        let out = output(lab(&dir).env("COLUMNS", "100").args(args));
        assert_eq!(out.code, 0);
        text += &out.stdout;
    }
    canary_testbed::golden::check(env!("CARGO_MANIFEST_DIR"), "help.txt", &text);
}
