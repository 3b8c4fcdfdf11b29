//! Where a run was made, and the command line that asks for the same again.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::document::lab::LabResult;

use super::words::{self, grouped};

/// Whether the lab itself ran, on one machine; k8s/experiment has a cluster.
fn of_this_machine(result: &LabResult) -> bool {
    result.run.program == "conntrack-lab run"
}

/// The machine, the options, how to repeat it.
pub(super) fn section(result: &LabResult) -> Markup {
    html! {
        section aria-labelledby="environment" {
            h2 #environment { "Machine and command" }
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
    facts.extend(run.config.iter().map(|(option, value)| {
        let value = if value.is_empty() { "(default)" } else { value };
        (format!("--{option}"), value.to_owned())
    }));
    facts
}

/// The command line that asks for the same run.
fn again(config: &BTreeMap<String, String>) -> String {
    let mut words = vec!["conntrack-lab run".to_owned()];
    let names = config.get("scenarios").into_iter().flat_map(|s| s.split(','));
    words.extend(names.filter(|n| !n.is_empty()).map(quoted));
    for (option, value) in config {
        // The directory of this run is taken.
        if !matches!(option.as_str(), "scenarios" | "output") && !value.is_empty() {
            words.push(format!("--{option} {}", quoted(value)));
        }
    }
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

    /// The command line asks for the same run, in a directory of its own.
    #[test]
    fn the_run_can_be_repeated() {
        let config = [("scenarios", "a,my file.toml"), ("output", "/x"), ("repeat", "3")];
        let config = config.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        assert_eq!(again(&config), "conntrack-lab run a 'my file.toml' --repeat 3");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
