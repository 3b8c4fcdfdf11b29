//! Where a run was made, and the command line that asks for the same again.

use canary_record::result::{Config, Origin};
use maud::{Markup, html};

use crate::document::lab::LabResult;

use super::words::{self, grouped};

/// Whether the lab itself ran, on one machine; kubectl conntrack experiment has a cluster.
fn of_this_machine(result: &LabResult) -> bool {
    result.run.program == "conntrack-lab run"
}

pub(super) fn section(result: &LabResult) -> Markup {
    html! {
        @if of_this_machine(result) {
            p #repeat { "The whole run, as it was asked for:" }
            pre tabindex="0" { code { (again(&result.run.config)) } }
        }
        details {
            summary { "As the machine and its tools say themselves" }
            div.wide tabindex="0" role="region" aria-label="Environment" { table {
                caption { "Environment" }
                thead { tr { th.first scope="col" { "What" } th scope="col" { "Value" } } }
                tbody { @for (name, value) in facts(result) {
                    tr { th.first scope="row" { (name) } td { (value) } }
                } }
            } }
        }
    }
}

fn facts(result: &LabResult) -> Vec<(String, String)> {
    let (run, e) = (&result.run, &result.environment);
    let mut facts = vec![
        ("Kernel".into(), run.kernel.clone()),
        ("Generation".into(), words::generation(e.old_segments).into()),
        ("Host".into(), run.host.clone()),
    ];
    if of_this_machine(result) {
        let isolation = if e.user_namespace {
            "a user namespace of its own"
        } else {
            "root of the host, own namespaces"
        };
        facts.push(("Isolation".into(), isolation.into()));
        facts.push(("Processors".into(), e.cpus.to_string()));
        let max = e.conntrack_max.map_or_else(|| "could not be read".into(), grouped);
        facts.push(("nf_conntrack_max".into(), max));
    }
    facts.extend(e.tools.clone());
    facts.push(("conntrack-lab".into(), run.version.clone()));
    facts.push(("Began".into(), run.started.clone()));
    facts.push(("Ended".into(), format!("{} ({})", run.ended, run.ended_by)));
    facts.extend(run.config.iter().map(|(option, set)| {
        let value = set.value.as_deref().filter(|v| !v.is_empty()).unwrap_or("(not set)");
        let from = match &set.origin {
            Origin::Default => " (default)".to_owned(),
            Origin::Environment { variable } => format!(" ({variable})"),
            Origin::CommandLine | Origin::Derived => String::new(),
        };
        (option.clone(), format!("{value}{from}"))
    }));
    facts
}

/// The command line that asks for the same run.
fn again(config: &Config) -> String {
    let mut words = vec!["conntrack-lab run".to_owned()];
    let asked = config.iter().filter_map(|(option, set)| match set.origin {
        Origin::CommandLine | Origin::Environment { .. } => {
            Some((option.as_str(), set.value.as_deref()?))
        }
        Origin::Default | Origin::Derived => None,
    });
    let mut options = Vec::new();
    for (option, value) in asked {
        match (option, value) {
            ("scenarios", names) => words.extend(names.split(',').map(quoted)),
            // The directory of this run is taken.
            ("output", _) | (_, "" | "false") => {}
            (flag, "true") => options.push(format!("--{flag}")),
            (option, value) => options.push(format!("--{option} {}", quoted(value))),
        }
    }
    words.extend(options);
    words.join(" ")
}

/// For a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canary_record::result::Setting;

    /// The command line asks for the same run, in a directory of its own.
    #[test]
    fn the_run_can_be_repeated() {
        let set = |value: &str, origin| Setting { value: Some(value.to_owned()), origin };
        let config = [
            ("scenarios", set("a,my file.toml", Origin::CommandLine)),
            ("output", set("/x", Origin::CommandLine)),
            ("keep", set("true", Origin::CommandLine)),
            ("repeat", set("3", Origin::Environment { variable: "LAB_REPEAT".to_owned() })),
            ("jobs", set("8", Origin::Default)),
            ("connections", Setting { value: None, origin: Origin::Default }),
        ];
        let config = config.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        assert_eq!(again(&config), "conntrack-lab run a 'my file.toml' --keep --repeat 3");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
