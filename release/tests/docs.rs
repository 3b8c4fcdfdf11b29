//! What the documents say is so: the reference is that of the programs, links lead somewhere, and the
//! commands of README and guide run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Every document of the repository for people.
fn documents() -> Vec<PathBuf> {
    let out = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard", "--", "*.md"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let names = String::from_utf8(out.stdout).unwrap();
    names.lines().map(|n| root().join(n)).filter(|p| p.exists()).collect()
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

/// The commands of a document, each with what its block says that it needs: nothing, `make`, a
/// `machine` of one's own, or a `cluster`.
fn commands(document: &str) -> Vec<(String, String)> {
    let mut commands = Vec::new();
    let mut needs = None;
    for line in document.lines() {
        match (line.strip_prefix("```"), &needs) {
            (Some(info), None) => {
                let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
                needs = Some(if language == "sh" { rest.to_owned() } else { "text".to_owned() });
            }
            (Some(_), Some(_)) => needs = None,
            (None, Some(needs)) if !line.trim().is_empty() => {
                commands.push((needs.clone(), line.to_owned()));
            }
            _ => {}
        }
    }
    commands
}

/// Every command of README, guide and paper runs, or names a target, an option and a file that exist.
#[test]
fn the_commands_run() {
    let dir = tempfile::tempdir().unwrap();
    let programs = programs();
    let mut ran = 0;
    for name in ["README.md", "docs/guide.md", "docs/full-tables.md", "CONTRIBUTING.md"] {
        for (needs, line) in commands(&read(name)) {
            match needs.as_str() {
                "" => {
                    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
                    let out = Command::new("sh")
                        .args(["-c", &line])
                        .env("PATH", path)
                        .current_dir(dir.path())
                        .output()
                        .unwrap();
                    let said = String::from_utf8_lossy(&out.stderr);
                    assert!(out.status.success(), "{name}: {line}: {}\n{said}", out.status);
                    ran += 1;
                }
                "make" => {
                    let words = line.split('#').next().unwrap().trim();
                    let target = words.strip_prefix("make ");
                    let target = target.unwrap_or_else(|| panic!("{name}: {line} is no make"));
                    let out = Command::new("make")
                        .arg("-n")
                        .args(target.split_whitespace().take(1))
                        .current_dir(root())
                        .output()
                        .unwrap();
                    assert!(out.status.success(), "{name}: {line}: no such target");
                }
                "cluster" | "machine" => known(name, &line),
                "text" => {}
                other => panic!("{name}: a block that needs {other:?}"),
            }
        }
    }
    assert!(ran >= 3, "{ran}");
}

/// What a line that cannot run here names is there: our scripts, manifests, programs' options.
fn known(document: &str, line: &str) {
    let words: Vec<_> = line.split('#').next().unwrap().split_whitespace().collect();
    for word in &words {
        if word.starts_with("k8s/") || word.starts_with("schema/") {
            assert!(root().join(word).exists(), "{document}: {word} of {line}");
        }
    }
    let words: Vec<_> = words.into_iter().skip_while(|w| *w == "sudo").collect();
    let name =
        if words.starts_with(&["kubectl", "conntrack"]) { "kubectl-conntrack" } else { words[0] };
    let programs = canary_release::programs();
    let Some(program) = programs.iter().find(|p| p.get_name() == name) else { return };
    let mut command = program;
    for word in &words[1..] {
        if let Some(sub) = command.find_subcommand(word) {
            command = sub;
        } else if let Some(option) = word.strip_prefix("--") {
            let option = option.split('=').next().unwrap();
            let there = command.get_arguments().any(|a| a.get_long() == Some(option));
            assert!(there || ["help", "version"].contains(&option), "{document}: {word} of {line}");
        }
    }
}

/// Where cargo put the programs that it built for this run.
fn programs() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let dir = me.ancestors().find(|d| d.join("conntrack-lab").is_file());
    dir.expect("the programs are built with the tests: cargo test --workspace").to_owned()
}
