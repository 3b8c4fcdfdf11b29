//! What the documents say is so: the reference is that of the programs, links lead somewhere, the
//! commands are ones, and those that need nothing but this machine run.

mod commands;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use canary_testbed::exec::Call;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// What git knows of the repository, by its path; a new file too.
fn files(pattern: &str) -> Vec<PathBuf> {
    let root_dir = root().to_str().unwrap();
    let words = ["-C", root_dir, "ls-files", "-co", "--exclude-standard", "--", pattern];
    let names = Call::new(Path::new("git"), &words).run().unwrap();
    names.lines().map(PathBuf::from).filter(|p| root().join(p).exists()).collect()
}

/// Every document of the repository for people.
fn documents() -> Vec<PathBuf> {
    files("*.md").into_iter().map(|p| root().join(p)).collect()
}

/// The reference and the drawings are what `make reference` writes.
#[test]
fn the_reference_is_that_of_the_programs() {
    for (name, text) in canary_release::reference(root()).unwrap() {
        let path = format!("docs/{name}");
        assert!(read(&path) == text, "{path} is not what the programs say: make reference");
    }
}

/// Every metric that a program sets is in the reference, and no other.
#[test]
fn every_metric_is_in_the_reference() {
    let mut told = BTreeSet::new();
    for word in read("docs/reference/metrics.md").split('`') {
        if ["boom_", "load_"].iter().any(|p| word.starts_with(p)) {
            told.insert(word.to_owned());
        }
    }
    let mut set = BTreeSet::new();
    let mut dirs = vec![root().join("boom-server/src"), root().join("load-client/src")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                dirs.push(entry);
            } else if !entry.to_string_lossy().ends_with("tests.rs") {
                let text = fs::read_to_string(&entry).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap();
                set.extend(code.split('"').filter(|w| is_metric(w)).map(str::to_owned));
            }
        }
    }
    assert!(set.len() > 20, "{set:?}");
    assert_eq!(told.symmetric_difference(&set).collect::<Vec<_>>(), Vec::<&String>::new());
}

fn is_metric(word: &str) -> bool {
    let legal = word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    legal
        && (word.starts_with("boom_") || word.starts_with("load_"))
        && word.matches('_').count() > 1
}

/// Every link to a file of the repository leads to one, and to a heading that it has.
#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for part in text.split("](").skip(1) {
            let Some((to, _)) = part.split_once(')') else { continue };
            if to.contains("://") || to.contains(' ') {
                continue;
            }
            let (file, heading) = to.split_once('#').unwrap_or((to, ""));
            let target = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {to}", document.display());
            if !heading.is_empty() {
                let there = fs::read_to_string(&target).unwrap();
                let mut headings = there.lines().filter(|l| l.starts_with('#')).map(anchor);
                assert!(headings.any(|h| h == heading), "{}: {to}", document.display());
            }
            links += 1;
        }
    }
    assert!(links > 20, "{links}");
}

/// A heading as the forges link to it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// What a newcomer reads stays short.
#[test]
fn the_documents_are_short() {
    let lines = |name: &str| read(name).lines().count();
    assert!(lines("README.md") <= 100, "{}", lines("README.md"));
    let all = ["README.md", "docs/guide.md", "docs/explanations.md", "docs/full-tables.md"];
    let all: usize = all.into_iter().map(lines).sum();
    assert!(all <= 800, "{all}");
}
