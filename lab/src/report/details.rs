//! The rest of the page: runs over time, the machine, the commands, the evidence.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::document::lab::{CellResult, LabResult, ScenarioResult};
use crate::document::timeline::{Statement, Step, Timeline};

use super::fold::sorted;
use super::markup::{Esc, grouped, put};
use super::svg;
use super::words;

/// Every scenario that changes over time.
pub(super) fn timelines(out: &mut String, scenarios: &[&ScenarioResult]) {
    out.push_str("<section aria-labelledby=\"time\"><h2 id=\"time\">Over time</h2>\n");
    for (n, s) in scenarios.iter().enumerate() {
        let Some(t) = &s.timeline else { continue };
        put!(out, "<h3>{}</h3>\n", Esc(&s.title));
        let drawing = svg::timeline(t, &format!("chart{n}"));
        if drawing.is_empty() {
            out.push_str("<p class=\"notes\">Fewer than two samples: nothing to draw.</p>\n");
        } else {
            put!(
                out,
                "<figure style=\"margin:0\"><div class=\"wide\" tabindex=\"0\" role=\"region\" \
                 aria-label=\"Chart\">{drawing}</div><figcaption class=\"small soft\">{} samples{}. The \
                 numbered marks are the steps below.</figcaption></figure>\n",
                grouped(t.samples_taken),
                if t.samples_taken > t.samples.len() as u64 {
                    format!(", joined to {}", t.samples.len())
                } else {
                    String::new()
                }
            );
        }
        steps(out, t);
        statements(out, &t.statements);
        if !t.reasons.is_empty() {
            out.push_str("<div class=\"notes\"><p>What weakens these numbers:</p><ul>");
            for reason in &t.reasons {
                put!(out, "<li>{}</li>", Esc(reason));
            }
            out.push_str("</ul></div>\n");
        }
    }
    out.push_str("</section>\n");
}

fn steps(out: &mut String, t: &Timeline) {
    if t.steps.is_empty() {
        return;
    }
    out.push_str(
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Steps\"><table class=\"steps\"><caption>What each \
         step did to new connections, to those already made, and what the kernel counted on the client’s \
         node</caption><thead><tr><th scope=\"col\" class=\"first\">Step</th><th scope=\"col\">Changed</th>\
         <th scope=\"col\" class=\"num\">New: begun</th><th scope=\"col\" class=\"num\">succeeded</th>\
         <th scope=\"col\">failed</th><th scope=\"col\">Established before</th><th scope=\"col\">boom-server</th>\
         <th scope=\"col\" class=\"num\">drop</th><th scope=\"col\" class=\"num\">early_drop</th>\
         <th scope=\"col\" class=\"num\">invalid</th></tr></thead><tbody>\n",
    );
    for (n, step) in t.steps.iter().enumerate() {
        self::step(out, n + 1, step);
    }
    out.push_str("</tbody></table></div>\n");
}

fn step(out: &mut String, n: usize, s: &Step) {
    put!(
        out,
        "<tr class=\"row\"><th scope=\"row\" class=\"first\">{n}. {}<small>from {:.1} s</small></th><td>",
        Esc(&s.title),
        s.t
    );
    for c in &s.changes {
        put!(out, "<code>{}</code><small>{} → {}</small>", Esc(&c.what), Esc(&c.from), Esc(&c.to));
    }
    put!(
        out,
        "</td><td class=\"num\">{}</td><td class=\"num\">{}</td><td>{}</td><td>{}</td><td>{}</td>\
         <td class=\"num\">{}</td><td class=\"num\">{}</td><td class=\"num\">{}</td></tr>\n",
        grouped(s.new_attempts),
        grouped(s.new_ok),
        Esc(counts(s.new_failures.iter().map(|(c, n)| (words::failure(*c), *n)))),
        Esc(counts(s.established.iter().map(|(c, n)| (c.as_str(), *n)))),
        Esc(counts(s.boom.iter().map(|(c, n)| (c.as_str(), *n)))),
        grouped(s.conntrack.drop),
        grouped(s.conntrack.early_drop),
        grouped(s.conntrack.invalid)
    );
    if !s.notes.is_empty() {
        put!(
            out,
            "<tr class=\"meaning\"><td colspan=\"10\"><div>{}</div></td></tr>\n",
            Esc(s.notes.join(" "))
        );
    }
}

fn counts(of: impl Iterator<Item = (&'static str, u64)>) -> String {
    let text: Vec<_> =
        of.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {}", grouped(n))).collect();
    if text.is_empty() { "none".to_owned() } else { text.join(", ") }
}

fn statements(out: &mut String, statements: &[Statement]) {
    if statements.is_empty() {
        return;
    }
    out.push_str(
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Claims\"><table class=\"claims\"><caption>What has \
         been claimed, and what this run makes of it</caption><thead><tr><th scope=\"col\" class=\"first\">\
         Claim</th><th scope=\"col\">On this kernel</th><th scope=\"col\">Evidence</th></tr></thead><tbody>\n",
    );
    for s in statements {
        let (symbol, word) = words::finding(s.finding);
        put!(
            out,
            "<tr><th scope=\"row\" class=\"first\">{}<small>{}</small></th><td class=\"{}\"><span \
             class=\"sym\" aria-hidden=\"true\">{symbol}</span> <b>{word}</b></td><td>",
            Esc(&s.claim),
            Esc(&s.source),
            s.finding
        );
        for line in &s.evidence {
            put!(out, "<div>{}</div>", Esc(line));
        }
        out.push_str("</td></tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

/// The machine and the options.
pub(super) fn environment(out: &mut String, result: &LabResult) {
    let e = &result.environment;
    out.push_str(
        "<section aria-labelledby=\"environment\"><h2 id=\"environment\">Environment</h2>\n<div \
         class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Environment\"><table><caption>As the \
         machine and its tools say themselves</caption><thead><tr><th scope=\"col\" class=\"first\">What</th>\
         <th scope=\"col\">Value</th></tr></thead><tbody>\n",
    );
    let mut pair = |name: &str, value: &dyn Display| {
        put!(
            out,
            "<tr><th scope=\"row\" class=\"first\">{}</th><td>{}</td></tr>\n",
            Esc(name),
            Esc(value)
        );
    };
    pair("Kernel", &result.run.kernel);
    pair("Generation", &words::generation(e.old_segments));
    pair("Host", &result.run.host);
    if of_this_machine(result) {
        let isolation = if e.user_namespace {
            "a user namespace of its own"
        } else {
            "root of the host, own namespaces"
        };
        pair("Isolation", &isolation);
        pair("Processors", &e.cpus);
        match e.conntrack_max {
            Some(max) => pair("nf_conntrack_max", &grouped(max)),
            None => pair("nf_conntrack_max", &"could not be read"),
        }
    }
    for (tool, version) in &e.tools {
        pair(tool, version);
    }
    pair("conntrack-lab", &result.run.version);
    pair("Began", &result.run.started);
    pair("Ended", &format!("{} ({})", result.run.ended, result.run.ended_by));
    for (option, value) in &result.run.config {
        pair(&format!("--{option}"), if value.is_empty() { &"(default)" } else { value });
    }
    out.push_str("</tbody></table></div>\n</section>\n");
}

/// Whether the lab itself ran, on one machine; k8s/experiment has a cluster.
pub(super) fn of_this_machine(result: &LabResult) -> bool {
    result.run.program == "conntrack-lab run"
}

/// How to see the same again: with the lab, or by hand.
pub(super) fn commands(out: &mut String, result: &LabResult) {
    out.push_str(
        "<section aria-labelledby=\"repeat\"><h2 id=\"repeat\">Repeat it</h2>\n<p>The whole run, as it \
         was asked for:</p>\n",
    );
    put!(out, "<pre tabindex=\"0\"><code>{}</code></pre>\n", Esc(again(&result.run.config)));
    out.push_str(
        "<p>Or by hand, as root, in a network namespace for each host. A click selects a whole block.</p>\n",
    );
    for s in result.scenarios.iter().filter(|s| !s.commands.is_empty()) {
        put!(out, "<details><summary>{}</summary>\n", Esc(&s.title));
        for list in &s.commands {
            put!(
                out,
                "<h3>{}</h3>\n<pre tabindex=\"0\"><code>{}</code></pre>\n",
                Esc(&list.title),
                Esc(list.lines.join("\n"))
            );
        }
        out.push_str("</details>\n");
    }
    out.push_str("</section>\n");
}

/// The command line that asks for the same run.
fn again(config: &BTreeMap<String, String>) -> String {
    let mut line = "conntrack-lab run".to_owned();
    for name in config.get("scenarios").into_iter().flat_map(|s| s.split(',')) {
        if !name.is_empty() {
            put!(&mut line, " {}", quoted(name));
        }
    }
    for (option, value) in config {
        // The directory of this run is taken.
        if !matches!(option.as_str(), "scenarios" | "output") && !value.is_empty() {
            put!(&mut line, " --{option} {}", quoted(value));
        }
    }
    line
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

/// Every cell's numbers.
pub(super) fn evidence(out: &mut String, result: &LabResult) {
    out.push_str(
        "<section aria-labelledby=\"evidence\"><h2 id=\"evidence\">Evidence, cell by cell</h2>\n<p>Every \
         cell by itself, with what the application saw and what the kernel counted meanwhile.</p>\n",
    );
    for s in result.scenarios.iter().filter(|s| !s.cells.is_empty()) {
        put!(
            out,
            "<details><summary>{} <span class=\"soft\">({})</span></summary>\n<div class=\"wide\" \
             tabindex=\"0\" role=\"region\" aria-label=\"{0}: evidence\"><table><caption>{0}</caption>\
             <thead><tr><th scope=\"col\" class=\"first\">Cell</th><th scope=\"col\">Judgement</th>\
             <th scope=\"col\">Forged segments</th><th scope=\"col\">The application’s connections</th>\
             <th scope=\"col\">RSTs in the capture</th><th scope=\"col\">The nodes, as read back</th>\
             <th scope=\"col\" class=\"num\">Took</th></tr></thead><tbody>\n",
            Esc(&s.title),
            Esc(super::markup::count(s.cells.len() as u64, "cell", "cells"))
        );
        for cell in &s.cells {
            self::cell(out, cell);
        }
        out.push_str("</tbody></table></div></details>\n");
    }
    out.push_str("</section>\n");
}

fn cell(out: &mut String, c: &CellResult) {
    let (symbol, word) = words::judgement(c.judgement);
    put!(
        out,
        "<tr class=\"row\"><th scope=\"row\" class=\"first\">{} {}, {}<small>{}{}</small></th>\
         <td class=\"{}\">{symbol} {word}",
        words::front_end(c.front_end),
        words::family(c.family),
        Esc(words::protections(&sorted(&c.protections))),
        Esc(&c.id),
        if c.repetition > 1 { format!(", repetition {}", c.repetition) } else { String::new() },
        c.judgement
    );
    for reason in &c.reasons {
        put!(out, "<small>{}</small>", Esc(reason));
    }
    out.push_str("</td><td>");
    for f in &c.forgeries {
        let unknown: u64 = f.unknown.values().sum();
        let parts = [
            ("killed", f.killed),
            ("leaked, harmless", f.leaked.saturating_sub(f.killed)),
            ("delivered", f.delivered),
            ("dropped", f.dropped),
            ("not proved", unknown),
        ];
        put!(
            out,
            "<small>{}: {} of {}</small>",
            f.forgery,
            Esc(counts(parts.into_iter())),
            grouped(f.forged)
        );
    }
    if let Some(diagnosis) = c.boom_diagnosis {
        put!(out, "<small>boom-server’s diagnosis: {diagnosis}</small>");
    }
    if c.sniffer_dropped > 0 {
        put!(out, "<small class=\"bad\">lost by its raw socket: {}</small>", c.sniffer_dropped);
    }
    put!(out, "</td><td>{}</td><td>", Esc(counts(c.client.iter().map(|(k, n)| (k.as_str(), *n)))));
    match &c.captured_resets {
        None => out.push_str("not captured whole"),
        Some(resets) => {
            put!(out, "{}", Esc(counts(resets.iter().map(|(k, n)| (k.as_str(), *n)))));
        }
    }
    for k in &c.captures {
        put!(out, "<small><a href=\"{0}\">{0}</a> ({1} packets)</small>", Esc(&k.file), k.packets);
    }
    out.push_str("</td><td>");
    for n in &c.nodes {
        put!(
            out,
            "<small><b>{}</b>: be_liberal={}, DNAT {}",
            Esc(&n.node),
            u8::from(n.be_liberal),
            grouped(n.dnat)
        );
        for (rule, packets) in &n.drop_rules {
            put!(out, ", {} {}", Esc(rule), grouped(*packets));
        }
        for (counter, by) in n.conntrack.iter().filter(|(_, by)| **by > 0) {
            put!(out, ", {} {}", Esc(counter), grouped(*by));
        }
        out.push_str("</small>");
    }
    put!(out, "</td><td class=\"num\">{:.1} s</td></tr>\n", c.seconds);
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
