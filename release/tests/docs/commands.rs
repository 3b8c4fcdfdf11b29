//! The commands that documents show, in blocks and in prose.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use canary_testbed::exec::Call;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{documents, files, read, root};

/// What a line needs: the word behind its block's language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Only the programs; it is run.
    Nothing,
    /// A clone.
    Make,
    /// A terminal, root, or more time than a test has.
    Machine,
    /// A cluster.
    Cluster,
    /// It stands in prose, and may be a part of a command.
    Prose,
}

struct Line {
    /// The document, for a message.
    document: String,
    needs: Needs,
    text: String,
}

/// The lines of a document's blocks of shell, and the code in its prose.
fn lines(document: &Path) -> Vec<Line> {
    let name = document.strip_prefix(root()).unwrap().display().to_string();
    let text = read(&name);
    let mut lines = Vec::new();
    // The block that a line is in; within, what a shell's needs.
    let mut block: Option<Option<Needs>> = None;
    for line in text.lines() {
        let mut push = |needs, text: &str| {
            lines.push(Line { document: name.clone(), needs, text: text.trim().to_owned() });
        };
        match (line.trim_start().strip_prefix("```"), block) {
            (Some(info), None) => {
                let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
                block = Some((language == "sh").then(|| match rest {
                    "" => Needs::Nothing,
                    "make" => Needs::Make,
                    "machine" => Needs::Machine,
                    "cluster" => Needs::Cluster,
                    other => panic!("{name}: a block that needs {other:?}"),
                }));
            }
            (Some(_), Some(_)) => block = None,
            (None, Some(Some(needs))) if !line.trim().is_empty() => push(needs, line),
            (None, Some(_)) => {}
            (None, None) => {
                assert!(!line.starts_with("    "), "{name}: a block without a fence: {line}");
                line.split('`').skip(1).step_by(2).for_each(|code| push(Needs::Prose, code));
            }
        }
    }
    lines
}

fn all() -> Vec<Line> {
    // The reference is written by the programs; the log of changes speaks of what is gone too.
    let told =
        |d: &Path| !d.ends_with("CHANGELOG.md") && !d.starts_with(root().join("docs/reference"));
    documents().iter().filter(|d| told(d)).flat_map(|d| lines(d)).collect()
}

/// Every command of every document that needs nothing but this machine runs. Those of one document
/// follow each other in one directory.
#[test]
fn the_commands_run() {
    let path = format!("{}:{}", programs().display(), std::env::var("PATH").unwrap());
    let mut documents: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in all().into_iter().filter(|l| l.needs == Needs::Nothing) {
        documents.entry(line.document).or_default().push(line.text);
    }
    assert!(documents.values().flatten().count() >= 8, "{documents:?}");
    let run = |document: &str, lines: &[String]| {
        let dir = tempfile::tempdir().unwrap();
        for line in lines {
            let there = format!("cd '{}'\n{line}", dir.path().display());
            let out = Call::sh(&there).env("PATH", &path).output().unwrap();
            let (status, said) = (out.status, out.stderr);
            assert!(status.success(), "{document}: {line}: {status}\n{said}");
        }
    };
    let run = &run;
    std::thread::scope(|threads| {
        for (document, lines) in &documents {
            threads.spawn(move || run(document, lines));
        }
    });
}

/// Every command, in a block or in prose, is one: the program takes its options and values, the target,
/// package, test, scenario and file that it names are there.
#[test]
fn every_command_is_one() {
    let lines = all();
    let wrong = lines.iter().filter_map(|l| Some((l, known(l).err()?)));
    let wrong: Vec<_> =
        wrong.map(|(l, why)| format!("{}: {}: {why}", l.document, l.text)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let commands = lines.iter().filter(|l| l.needs != Needs::Prose).count();
    assert!(commands > 40, "{commands}");
}

/// What is no command is refused.
#[test]
fn a_wrong_command_is_found() {
    for text in [
        "make nothing-of-the-kind",
        "conntrack-lab run cluster-ip --no-such-option",
        "conntrack-lab run no-such-scenario",
        "load-client probe --target tcp://S:1 --forge no-such-forgery",
        "kubectl conntrack no-such-subcommand",
        "kubectl apply -k k8s/no-such-overlay",
        "cargo test -p no-such-package",
        "cargo test -p canary-wire no_such_test",
        "lab/no-such-script",
    ] {
        for needs in [Needs::Machine, Needs::Prose] {
            let line = Line { document: String::new(), needs, text: text.to_owned() };
            assert!(known(&line).is_err(), "{text}");
        }
    }
}

fn known(line: &Line) -> Result<(), String> {
    let words = shlex::split(&line.text).ok_or("no shell reads it")?;
    let plain = words.iter().skip_while(|w| *w == "sudo" || assigns(w));
    let words: Vec<&str> = plain.map(String::as_str).collect();
    for word in &words {
        let ours = ["k8s/", "lab/", "schema/", "tools/"].iter().any(|d| word.starts_with(d));
        if ours && !root().join(word).exists() {
            return Err(format!("no file {word}"));
        }
    }
    match words.as_slice() {
        ["make", rest @ ..] => {
            rest.iter().filter(|w| !assigns(w) && !w.starts_with('-')).try_for_each(|t| target(t))
        }
        ["cargo", "test", rest @ ..] => test(rest),
        ["kubectl", "conntrack", rest @ ..] => parse("kubectl-conntrack", rest, line.needs),
        ["conntrack-lab", "run", rest @ ..] => {
            rest.iter().take_while(|w| !w.starts_with('-')).try_for_each(|name| scenario(name))?;
            parse("conntrack-lab", &words[1..], line.needs)
        }
        [name, rest @ ..] => parse(name, rest, line.needs),
        [] => Ok(()),
    }
}

fn assigns(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

fn target(name: &str) -> Result<(), String> {
    let out = Call::new(Path::new("make"), &["-C", root().to_str().unwrap(), "-n", name]).output();
    let there = out.map_err(|e| e.to_string())?.status.success();
    there.then_some(()).ok_or(format!("no target {name}"))
}

/// A package and its test as cargo would find them.
fn test(words: &[&str]) -> Result<(), String> {
    let (mut words, mut texts) = (words.iter(), String::new());
    while let Some(word) = words.next() {
        match (*word, word.starts_with('-')) {
            ("--", _) => break,
            ("-p", _) => {
                let package = words.next().ok_or("no package behind -p")?;
                let said = format!("name = \"{package}\"");
                let manifests = files("*Cargo.toml");
                let mine = |p: &&PathBuf| read(p.to_str().unwrap()).lines().any(|l| l == said);
                let manifest =
                    manifests.iter().find(mine).ok_or(format!("no package {package}"))?;
                let sources = format!("{}/*.rs", manifest.parent().unwrap().display());
                texts = files(&sources).iter().map(|p| read(p.to_str().unwrap())).collect();
            }
            ("--test", _) => {
                let test = words.next().ok_or("no test behind --test")?;
                let there = files("*.rs").iter().any(|p| {
                    p.ends_with(format!("tests/{test}.rs"))
                        || p.ends_with(format!("tests/{test}/main.rs"))
                });
                there.then_some(()).ok_or(format!("no test {test}"))?;
            }
            (_, true) => {}
            (name, false) => {
                let there = texts.lines().any(|l| l.contains("fn ") && l.contains(name));
                there.then_some(()).ok_or(format!("no test is called {name}"))?;
            }
        }
    }
    Ok(())
}

fn scenario(name: &str) -> Result<(), String> {
    let shipped = root().join(format!("lab/scenarios/{name}.toml")).exists();
    let own = Path::new(name).extension().is_some_and(|e| e == "toml");
    let placeholder = name.chars().all(|c| c.is_ascii_uppercase());
    (shipped || own || placeholder || name == "all")
        .then_some(())
        .ok_or(format!("no scenario {name}"))
}

/// What the program's own parser says.
fn parse(program: &str, words: &[&str], needs: Needs) -> Result<(), String> {
    let programs = canary_release::programs();
    let Some(program) = programs.into_iter().find(|p| p.get_name() == program) else {
        return Ok(());
    };
    let said = std::iter::once("program").chain(words.iter().copied());
    let Err(why) = program.try_get_matches_from(said) else { return Ok(()) };
    // Prose names a program, a subcommand or an option without all that it needs.
    let cut_short = match why.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return Ok(()),
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => true,
        ErrorKind::InvalidValue => {
            why.get(ContextKind::InvalidValue) == Some(&ContextValue::String(String::new()))
        }
        _ => false,
    };
    if needs == Needs::Prose && cut_short { Ok(()) } else { Err(why.to_string()) }
}

/// Where cargo put the programs that it built for this run.
fn programs() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let dir = me.ancestors().find(|d| d.join("conntrack-lab").is_file());
    dir.expect("the programs are built with the tests: cargo test --workspace").to_owned()
}
