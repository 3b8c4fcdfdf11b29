//! For people: a line for each group of nodes with one outcome, the exposed first, then its paths.

use std::fmt::Write as _;

use canary_record::names::Verdict;

use crate::report::{DiagnoseResult, word};
use crate::verdict::{FamilyRow, Group, Leak, NodeRow, PathRow, groups};

/// Names that a group's line has before it says how many more there are.
const NAMES: usize = 8;

/// The table, with the verdict's word in colour when `colour`.
pub(crate) fn table(result: &DiagnoseResult, colour: bool) -> String {
    let mut text = String::new();
    let c = &result.cluster;
    let _ = writeln!(
        text,
        "context {}, Kubernetes {}, {} nodes",
        c.context,
        c.version,
        result.nodes.len()
    );
    for group in groups(&result.nodes) {
        group_text(&mut text, &group, colour);
    }
    let _ = writeln!(text, "\n{}", result.headline());
    for line in &result.reasons {
        let _ = writeln!(text, "  - {line}");
    }
    if !result.advice.is_empty() {
        text.push('\n');
    }
    for line in &result.advice {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn group_text(text: &mut String, group: &Group<'_>, colour: bool) {
    let n = group.like;
    let _ = writeln!(
        text,
        "\n{}  {} {}: {}",
        painted(n.verdict, colour),
        group.names.len(),
        if group.names.len() == 1 { "node" } else { "nodes" },
        names(&group.names)
    );
    let _ = writeln!(text, "  {}", facts(n));
    for line in &n.reasons {
        let _ = writeln!(text, "  - {line}");
    }
    for f in &n.families {
        family_text(text, f);
    }
}

/// Names, the first few in full.
pub(crate) fn names(all: &[&str]) -> String {
    let mut text = all.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
    if all.len() > NAMES {
        let _ = write!(text, " and {} more", all.len() - NAMES);
    }
    text
}

/// What a node is and shows of itself.
pub(crate) fn facts(n: &NodeRow) -> String {
    let or = |v: Option<String>| v.unwrap_or_else(|| "not readable".to_owned());
    let signs: Vec<_> = n.shown.proxy_signs.iter().map(|(s, mode)| format!("{s} {mode}")).collect();
    let unknown = (!signs.is_empty()).then(|| format!("unknown ({})", signs.join(", ")));
    format!(
        "Linux {}, {}, kubelet {}, kube-proxy {}, be_liberal {}",
        n.kernel,
        n.os_image,
        n.kubelet,
        or(n.shown.proxy_mode.clone().or(unknown)),
        or(n.shown.be_liberal.map(|v| v.to_string()))
    )
}

fn family_text(text: &mut String, f: &FamilyRow) {
    let _ = writeln!(text, "  {}: {}", f.family, family_word(f));
    let width = f.paths.iter().map(|p| p.path.as_str().len()).max().unwrap_or(0);
    for p in &f.paths {
        let _ = writeln!(
            text,
            "    {:<width$}  {:<12}  {:<19}  {}  {}",
            p.path.as_str(),
            p.verdict.as_str(),
            p.diagnosis.map_or("-", |d| d.as_str()),
            if p.path.alone() { "this node alone" } else { "two nodes      " },
            path_end(p)
        );
    }
    for line in own_reasons(f) {
        let _ = writeln!(text, "    - {line}");
    }
}

/// The verdict on a family in words.
pub(crate) const fn family_word(f: &FamilyRow) -> &'static str {
    if f.bad_flags_alone { "vulnerable to bad flags alone" } else { f.verdict.as_str() }
}

/// A family's reasons that are no path's: a path's own stands in its line.
pub(crate) fn own_reasons(f: &FamilyRow) -> impl Iterator<Item = &String> {
    let of = |r: &String, p: &PathRow| r.starts_with(&format!("{}: ", p.path));
    f.reasons.iter().filter(move |r| !f.paths.iter().any(|p| of(r, p)))
}

/// What leaked, or why nothing is proved.
pub(crate) fn path_end(p: &PathRow) -> String {
    let leaks = |all: &[Leak]| {
        let one = |l: &Leak| format!("{} {}/{}", l.forgery, l.leaked, l.forged);
        all.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let mut words = Vec::new();
    if !p.leaks.is_empty() {
        words.push(leaks(&p.leaks));
    }
    if let Some(up) = p.to_server.as_ref().filter(|up| !up.leaks.is_empty()) {
        words.push(format!("to the server: {}", leaks(&up.leaks)));
    }
    if p.reset + p.hung > 0 {
        words.push(format!("the client saw {} reset, {} hung", p.reset, p.hung));
    }
    if p.verdict == Verdict::Inconclusive {
        words.extend(p.reasons.first().cloned());
    }
    let end = match &p.to_server {
        _ if !words.is_empty() => words.join(", "),
        Some(up) => {
            format!("0 of {} leaked to the client, 0 of {} to the server", p.judged, up.judged)
        }
        None => format!("0 of {} leaked to the client", p.judged),
    };
    match p.masqueraded {
        Some(true) => end + ", masqueraded",
        Some(false) => end + ", not masqueraded here",
        None => end,
    }
}

fn painted(v: Verdict, colour: bool) -> String {
    let code = match v {
        Verdict::Protected => 32,
        Verdict::Vulnerable => 31,
        Verdict::Inconclusive => 33,
    };
    if colour { format!("\x1b[1;{code}m{}\x1b[0m", word(v)) } else { word(v).to_owned() }
}
