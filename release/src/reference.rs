//! The reference of options and of result documents, as Markdown.

use std::fmt::Write as _;
use std::path::Path;

use canary_record::names::{Outcome, ProbeEnd, UnknownReason};
use canary_record::result::witness::InTable;
use canary_runtime::exit::Exit;
use clap::{Arg, ArgAction, Command};
use schemars::schema_for;
use serde_json::Value;

/// `docs/reference/options.md`: every option of every program and subcommand.
pub(crate) fn options() -> String {
    let mut out = String::from(
        "# Options\n\nWritten from the programs' own command lines by `make reference`. Durations are written `500ms`, \
         `30s`, `2m`; sizes `64KiB`. `PROGRAM --help` tells more of each.\n",
    );
    out.push_str(
        "\n## Exit codes\n\nThe same of every program. Where a result that was asked for cannot be written 0 becomes 1; 10 and 11 stay.\n\n| code | meaning |\n|---|---|\n",
    );
    for (code, meaning) in [
        (Exit::Ok, "protected; every threshold kept; every expectation of the lab held"),
        (Exit::Failed, "it could not do its job"),
        (Exit::Usage, "the command line or a file that it names is wrong; nothing was done"),
        (
            Exit::Vulnerable,
            "vulnerable; a threshold was crossed; something differs from its expectation",
        ),
        (Exit::Inconclusive, "the run proved nothing"),
    ] {
        let _ = writeln!(out, "| {} | {meaning} |", code as u8);
    }
    for mut program in crate::programs() {
        program.build();
        command(&mut out, &program, "");
    }
    out
}

fn command(out: &mut String, c: &Command, before: &str) {
    let name = format!("{before}{}", c.get_name());
    let about = c.get_about().map(ToString::to_string).unwrap_or_default();
    let stop = if about.ends_with('?') { "" } else { "." };
    let _ = writeln!(out, "\n## {name}\n\n{about}{stop}");
    let shown = |a: &&Arg| !a.is_hide_set() && !["help", "version"].contains(&a.get_id().as_str());
    let args: Vec<_> = c.get_arguments().filter(shown).collect();
    if !args.is_empty() {
        out.push_str("\n| option | variable | default | what it is |\n|---|---|---|---|\n");
        for arg in args {
            let _ = writeln!(out, "{}", option(arg));
        }
    }
    for sub in c.get_subcommands().filter(|s| s.get_name() != "help" && !s.is_hide_set()) {
        command(out, sub, &format!("{name} "));
    }
}

fn option(arg: &Arg) -> String {
    let values: Vec<_> =
        arg.get_value_names().into_iter().flatten().map(clap::builder::Str::as_str).collect();
    let value = match (arg.get_action(), values.is_empty()) {
        (ArgAction::SetTrue | ArgAction::Count, _) | (_, true) => String::new(),
        _ => values.join(" "),
    };
    let name = match arg.get_long() {
        Some(long) => format!("--{long} {value}"),
        None if matches!(arg.get_action(), ArgAction::Append) => format!("{value}..."),
        None => value,
    };
    let variable = arg.get_env().map(|e| format!("`{}`", e.to_string_lossy())).unwrap_or_default();
    let defaults: Vec<_> =
        arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    let default = match (arg.get_action(), defaults.join(",")) {
        (ArgAction::SetTrue, _) => String::new(),
        (_, none) if none.is_empty() => none,
        (_, default) => format!("`{default}`"),
    };
    let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let known = arg.get_possible_values().into_iter().filter(|v| !v.is_hide_set());
    let known: Vec<_> = known.map(|v| format!("`{}`", v.get_name())).collect();
    if !known.is_empty() && !matches!(arg.get_action(), ArgAction::SetTrue) {
        let _ = write!(help, " ({})", known.join(", "));
    }
    format!("| `{}` | {variable} | {default} | {} |", name.trim_end(), cell(&help))
}

/// A text as a table's cell.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// `docs/reference/documents.md`: the fields of every result document, from the schemas in `dir`.
pub(crate) fn documents(dir: &Path) -> std::io::Result<String> {
    let mut out = format!(
        "# Result documents\n\nWritten from the JSON Schemas under `schema/` by `make reference`. `schema_version` is {}: a field \
         that is removed or changes its meaning raises it, a new field does not. Below are each document's own fields and the \
         closed sets of names; the schema has the rest.\n",
        canary_record::result::SCHEMA_VERSION
    );
    let mut files: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    let mut sets = Vec::new();
    for file in files {
        // What is read, not what is written.
        if file.file_name() == "scenario.json" {
            continue;
        }
        let schema: Value = serde_json::from_slice(&std::fs::read(file.path())?)?;
        let title = schema["title"].as_str().unwrap_or_default();
        let about = about(&schema);
        let name = file.file_name();
        let _ = write!(
            out,
            "\n## {title}\n\n`schema/{}`. {about}\n\n| field | what it is |\n|---|---|\n",
            name.display()
        );
        for (field, of) in schema["properties"].as_object().into_iter().flatten() {
            let _ = writeln!(out, "| `{field}` | {} |", self::about(of));
        }
        let defs = schema["$defs"].as_object().cloned().unwrap_or_default();
        // Of two types of one name in one schema the second has a number behind it.
        let name = |n: String| n.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        sets.extend(defs.into_iter().map(|(n, of)| Set {
            name: name(n),
            of,
            title: title.to_owned(),
        }));
    }
    // A schema does not have the names that are keys.
    for (of, title) in [
        (schema_for!(Outcome), "counts"),
        (schema_for!(UnknownReason), "counts"),
        (schema_for!(ProbeEnd), "counts"),
        (schema_for!(InTable), "WitnessResult"),
    ] {
        let of = of.to_value();
        let name = of["title"].as_str().unwrap_or_default().to_owned();
        sets.push(Set { name, of, title: title.to_owned() });
    }
    out.push_str("\n## Names\n");
    names(&mut out, sets);
    Ok(out)
}

/// A closed set of names, of one document.
struct Set {
    name: String,
    of: Value,
    title: String,
}

/// Every set once; where two have one name, with the documents that have it.
fn names(out: &mut String, mut sets: Vec<Set>) {
    let values = |of: &Value| {
        of["oneOf"].as_array().filter(|all| all.iter().all(|v| v["const"].is_string())).cloned()
    };
    sets.retain(|set| values(&set.of).is_some());
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    for of_name in sets.chunk_by(|a, b| a.name == b.name) {
        let mut kinds: Vec<(Vec<Value>, &Value, Vec<&str>)> = Vec::new();
        for set in of_name {
            let values = values(&set.of).unwrap_or_default();
            match kinds.iter_mut().find(|(other, ..)| *other == values) {
                Some((.., titles)) => titles.push(&set.title),
                None => kinds.push((values, &set.of, vec![&set.title])),
            }
        }
        let several = kinds.len() > 1;
        for (values, of, mut titles) in kinds {
            titles.dedup();
            let whose = if several { format!(" ({})", titles.join(", ")) } else { String::new() };
            let _ = write!(out, "\n### {}{whose}\n\n{}\n\n", of_name[0].name, about(of));
            for value in &values {
                let _ = writeln!(
                    out,
                    "- `{}`: {}",
                    value["const"].as_str().unwrap_or_default(),
                    about(value)
                );
            }
        }
    }
}

/// What a schema says of itself, as a table's cell; a link of rustdoc's is its text.
fn about(of: &Value) -> String {
    let mut text = cell(of["description"].as_str().unwrap_or_default());
    while let Some((before, rest)) = text.split_once("[`") {
        let Some((link, after)) = rest.split_once("`]") else { break };
        let item = link.rsplit("::").next().unwrap_or_default();
        text = format!("{before}`{item}`{after}");
    }
    text
}
