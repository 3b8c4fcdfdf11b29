//! What a release holds besides the programs, written from the programs themselves: man pages, shell
//! completions, and the reference of options and documents under `docs/reference`.

use std::fmt::Write as _;
use std::path::Path;

use canary_record::names::{Outcome, ProbeEnd, UnknownReason};

use canary_record::result::witness::InTable;
use canary_runtime::exit::Exit;
use clap::{Arg, ArgAction, Command, CommandFactory as _};
use clap_complete::Shell;
use conntrack_lab::document::lab::LabResult;
use conntrack_lab::judge::rows::{self, Exposure};
use conntrack_lab::report::{html, words};
use schemars::schema_for;
use serde_json::Value;

/// The command line of every program.
#[must_use]
pub fn programs() -> Vec<Command> {
    vec![
        boom_server::Config::command(),
        load_client::Cli::command(),
        conntrack_lab::cli::Cli::command(),
        kubectl_conntrack::cli::Cli::command(),
    ]
}

/// A man page for each program and subcommand, as `NAME.1`.
pub fn man_pages(dir: &Path) -> std::io::Result<()> {
    for program in programs() {
        clap_mangen::generate_to(program, dir)?;
    }
    Ok(())
}

/// Completions of each program for bash, zsh and fish.
pub fn completions(dir: &Path) -> std::io::Result<()> {
    for mut program in programs() {
        let name = program.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut program, &name, dir)?;
        }
    }
    Ok(())
}

/// `docs/reference/options.md`: every option of every program and subcommand.
#[must_use]
pub fn options() -> String {
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
    for mut program in programs() {
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
pub fn documents(dir: &Path) -> std::io::Result<String> {
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

/// What `make reference` writes, by its name under `docs`; `root` is the clone.
pub fn reference(root: &Path) -> std::io::Result<Vec<(&'static str, String)>> {
    let paper = std::fs::read_to_string(root.join("docs/full-tables.md"))?;
    Ok(vec![
        ("reference/options.md", options()),
        ("reference/documents.md", documents(&root.join("schema"))?),
        ("full-tables-half-closed.svg", plot(&paper, "Half-closed connections", RSTS, 60)),
        ("full-tables-half-open.svg", plot(&paper, "Half-open connections", RSTS, 400)),
        ("full-tables-sizes.svg", plot(&paper, "Packets a second by table size", PACKETS, 250_000)),
        ("full-tables-buckets.svg", plot(&paper, "Packets a second by entries", PACKETS, 250_000)),
    ])
}

const RSTS: &str = "RSTs at the server";
const PACKETS: &str = "Packets a second";

/// The table under a heading of a document as bars: each row's last column, of `all`.
fn plot(document: &str, heading: &str, what: &str, all: u32) -> String {
    const LEFT: u32 = 350;
    const WIDTH: u32 = 400;
    let section = document.split("### ").find(|s| s.starts_with(heading)).unwrap_or_default();
    let rows: Vec<(&str, u32)> = section
        .lines()
        .filter_map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            Some((*cells.first()?, cells.last()?.replace(',', "").parse().ok()?))
        })
        .collect();
    let mut out = drawing(LEFT + WIDTH + 90, 34 + 30 * rows.len() as u32, heading);
    let _ = writeln!(out, "<text x=\"10\" y=\"20\" font-weight=\"700\">{what}, of {all}</text>");
    for ((label, n), y) in rows.into_iter().zip((34..).step_by(30)) {
        let _ = writeln!(
            out,
            "<text x=\"10\" y=\"{0}\">{1}</text><rect class=\"none line\" x=\"{LEFT}\" y=\"{y}\" width=\"{WIDTH}\" \
             height=\"20\"/><rect class=\"bar\" x=\"{LEFT}\" y=\"{y}\" width=\"{2}\" height=\"20\"/><text x=\"{3}\" \
             y=\"{0}\">{n}</text>",
            y + 15,
            markup(label),
            WIDTH * n / all,
            LEFT + WIDTH + 10
        );
    }
    out + "</svg>\n"
}

/// The head of a drawing that follows the reader's scheme.
fn drawing(width: u32, height: u32, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n<title>{}</title>\n<style>\n\
         svg {{ background: #fff }} text {{ fill: #1c2128 }} .soft {{ fill: #57606a }} .line {{ stroke: #d9dde2 }}\n\
         .bad {{ fill: #fbe9e7 }} .good {{ fill: #e9f5ee }} .none {{ fill: none }} .bar {{ fill: #a8201a }}\n\
         text.bad {{ fill: #a8201a; font-weight: 700 }} text.good {{ fill: #1b6b45; font-weight: 700 }}\n\
         @media (prefers-color-scheme: dark) {{\n\
         svg {{ background: #14171b }} text {{ fill: #e4e7eb }} .soft {{ fill: #9ea7b1 }} .line {{ stroke: #343b43 }}\n\
         .bad {{ fill: #3d1f1d }} .good {{ fill: #17301f }} .bar {{ fill: #ff9d94 }}\n\
         text.bad {{ fill: #ff9d94 }} text.good {{ fill: #7fd3a4 }}\n\
         }}\n</style>\n",
        markup(title)
    )
}

/// The overview of a run as a drawing, for a light and a dark page.
#[must_use]
pub fn picture(result: &LabResult) -> String {
    const LEFT: usize = 310;
    const TOP: usize = 215;
    const COLUMN: usize = 50;
    const ROW: usize = 24;
    let overview = rows::overview(result, true);
    let (columns, lines) = (overview.protections.len(), overview.paths.len());
    let (width, height) = (LEFT + COLUMN * columns + 190, TOP + ROW * lines + 44);
    let mut out = drawing(width as u32, height as u32, &html::verdict(result));
    let kernel = result.run.kernel.split(' ').next().unwrap_or_default();
    let day = result.run.started.get(..10).unwrap_or_default();
    let _ = writeln!(
        out,
        "<text x=\"10\" y=\"22\" font-weight=\"700\">Does conntrack reset connections?</text>\n\
         <text class=\"soft\" x=\"10\" y=\"42\">✕ resets them   ✓ nothing leaks</text>\n\
         <text class=\"soft\" x=\"10\" y=\"{}\">conntrack-lab run, Linux {}, {day}: {} of {} above-window segments reset an \
         unprotected connection</text>",
        height - 14,
        markup(kernel),
        result.positive_control.killed,
        result.positive_control.forged
    );
    for (n, set) in overview.protections.iter().enumerate() {
        let x = LEFT + COLUMN * n + COLUMN / 2;
        let _ = writeln!(
            out,
            "<text transform=\"translate({x} {}) rotate(-40)\">{}</text>",
            TOP - 10,
            markup(&words::protections(set))
        );
    }
    for (n, (path, found)) in overview.paths.iter().enumerate() {
        let y = TOP + ROW * n;
        let _ = writeln!(
            out,
            "<path class=\"line\" d=\"M10,{y} H{}\"/><text x=\"10\" y=\"{}\">{}</text>",
            LEFT + COLUMN * columns,
            y + 17,
            markup(&words::route(*path))
        );
        for (n, found) in found.iter().enumerate() {
            let Some(found) = found else { continue };
            let (_, symbol, word) = words::exposure(&found.exposure);
            let class = match found.exposure {
                Exposure::Safe => "good",
                Exposure::Resets(_) | Exposure::Hangs | Exposure::Leaks => "bad",
                Exposure::NoConnection | Exposure::NotProved => "none",
            };
            let x = LEFT + COLUMN * n;
            let _ = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{word}</title></rect>\
                 <text class=\"{}\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{symbol}</text>",
                x + 1,
                y + 1,
                COLUMN - 2,
                ROW - 2,
                if class == "none" { "soft" } else { class },
                x + COLUMN / 2,
                y + 17
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

fn markup(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
