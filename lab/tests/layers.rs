//! The lab's layers have one direction between them.

use std::fs;
use std::path::{Path, PathBuf};

/// Each knows those before it, and none after it.
const ORDER: [&str; 13] = [
    "wrong", "document", "scenario", "observed", "judge", "report", "kernels", "cluster", "run",
    "cli", "hands_on", "record", "app",
];

fn files(of: &Path, to: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(of).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, to);
        } else if path.extension().is_some_and(|e| e == "rs") {
            to.push(path);
        }
    }
}

/// No layer uses one that comes after it, so no two use each other.
#[test]
fn layers_have_one_direction() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let mut uses = 0;
    for file in all {
        let name = file.strip_prefix(&src).unwrap().components().next().unwrap();
        let name = name.as_os_str().to_string_lossy();
        let layer = name.trim_end_matches(".rs");
        if ["lib", "main"].contains(&layer) {
            continue;
        }
        let here = ORDER.iter().position(|r| *r == layer);
        let here =
            here.unwrap_or_else(|| panic!("{layer} is a layer: give it its testbed in ORDER"));
        let text = fs::read_to_string(&file).unwrap();
        for used in text.split("crate::").skip(1) {
            let name: String =
                used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let there = ORDER.iter().position(|r| *r == name);
            assert!(there.is_some_and(|t| t <= here), "{}: crate::{name}", file.display());
            uses += 1;
        }
    }
    assert!(uses > 100, "{uses}");
}
