//! The ladders on the page: lists of segments, each drawn as an arrow between what the client saw
//! and what the server pod saw. One for each distinct way to die; the others are named.

use canary_runtime::page::{self, Role};
use maud::{Markup, html};

use crate::document::lab::{CellResult, LabResult, Path, ScenarioResult};
use canary_record::names::Forgery;

use super::html::{Captures, cells};
use super::ladder::{self, Ladder};
use super::paths::spaceless;
use super::words;
use crate::observed::together;

/// A ladder and where it comes from.
struct Drawn {
    ladder: Ladder,
    path: Path,
    protections: String,
    protected: bool,
    cell: String,
    /// Where the client's and the server's capture were taken, and their files.
    files: Vec<(String, String)>,
}

/// All ladders: a way to die that none before has shown is drawn, what shows the same is named.
pub(super) fn section(result: &LabResult, captures: &Captures) -> Markup {
    let ladders = ladders(result, captures).into_iter();
    let ways = together(ladders.map(|drawn| (way(&drawn.ladder), drawn)));
    html! {
        @if ways.is_empty() { (nothing(result)) } @else {
            p {
                "Real connections of this run, from captures taken in both places at once. NAT changes addresses "
                "and ports, never sequence numbers: that is how a segment on the left is known on the right. "
                "Numbers count from each side’s first."
            }
        }
        @for (n, (_, way)) in ways.iter().enumerate() {
            @if let Some(first) = way.first() {
                details.way open=[(n == 0).then_some("")] {
                    summary { (title(first)) }
                    (figure(first))
                    (others(way))
                }
            }
        }
    }
}

fn nothing(result: &LabResult) -> Markup {
    let captured = cells(result).any(|c| c.captures.iter().any(|k| k.forgery.is_some()));
    html! { p.notes {
        @if captured {
            "The captures named in results.json are not beside it, so nothing is drawn."
        } @else {
            "No capture of a reset connection was kept, so nothing is drawn."
        }
    } }
}

/// What makes a way to die: whether the RST kills, who sent it, and whether the client's addresses
/// were rewritten too.
fn way(l: &Ladder) -> (bool, bool, bool, bool, bool) {
    (
        l.killed,
        l.complete,
        l.at_client(&[Role::Invalid]),
        l.at_client(&[Role::Kill, Role::Answer]),
        l.masqueraded,
    )
}

fn title(d: &Drawn) -> String {
    let l = &d.ladder;
    let (_, complete, _, by_client, masqueraded) = way(l);
    let who = if by_client { "the client" } else { "the node" };
    let what = match (complete, l.killed) {
        (false, _) => "The end is not in the captures".to_owned(),
        (true, true) => format!("Killed by a RST of {who}"),
        (true, false) => format!("Leaked, and {who}’s RST is ignored"),
    };
    let how = if masqueraded { ", masqueraded" } else { "" };
    format!("{what}{how} ({}: {})", l.forgery, words::path(d.path))
}

fn others(way: &[Drawn]) -> Markup {
    html! {
        @if way.len() > 1 {
            p.small.same { "The same way, not drawn:" }
            ul.small.same { @for d in &way[1..] { li {
                a href={ "#" (spaceless(&d.cell)) } { (d.ladder.forgery) ", " (words::path(d.path)) ", " (d.protections) }
            } } }
        }
    }
}

fn figure(d: &Drawn) -> Markup {
    let l = &d.ladder;
    let client = d.files.first().map_or("the client pod", |f| host(&f.0));
    html! { figure {
        figcaption.small.soft {
            strong { (l.forgery) } " on: " (words::path(d.path)) ", " (d.protections) " (cell "
            code { (d.cell) } ")."
            @for (name, file) in &d.files { " Capture in " (host(name)) ": " a href=(file) { (file) } "." }
            @if !l.complete { " The forged segment or the RST that answers it is not in these captures." }
        }
        (page::ladder([
            (&format!("Seen in {client}"), &format!("calls {}", l.target)),
            ("Seen in the server pod", &format!("listens on {}", l.server)),
        ], &l.events))
    } }
}

/// A host of the topology, to people.
fn host(name: &str) -> &str {
    match name {
        "client" => "the client pod",
        "server" => "the server pod",
        "outside" => "the client outside",
        node => node,
    }
}

/// One ladder for each capture of a reset connection, the classic first.
fn ladders(result: &LabResult, captures: &Captures) -> Vec<Drawn> {
    let mut found: Vec<Drawn> = result
        .scenarios
        .iter()
        .flat_map(|s| s.cells.iter().flat_map(move |c| of_cell(s, c, captures)))
        .collect();
    // An unprotected ClusterIP and above-window: what the issue is about.
    found.sort_by_key(|d| {
        (
            !d.ladder.killed,
            !d.ladder.complete,
            d.path != Path::ClusterIp,
            d.protected,
            d.ladder.forgery != Forgery::AboveWindow,
        )
    });
    found
}

fn of_cell(scenario: &ScenarioResult, cell: &CellResult, captures: &Captures) -> Vec<Drawn> {
    let mut found = Vec::new();
    let mut forgeries: Vec<Forgery> = cell.captures.iter().filter_map(|c| c.forgery).collect();
    forgeries.dedup();
    for forgery in forgeries {
        let own: Vec<_> = cell.captures.iter().filter(|c| c.forgery == Some(forgery)).collect();
        // The server pod's capture is the one taken in "server"; hairpin has no other.
        let server = own.iter().find(|c| c.host == "server");
        let client = own.iter().find(|c| c.host != "server").or(server);
        let (Some(client), Some(server)) = (client, server) else { continue };
        let packets = |file: &str| captures.get(file);
        let (Some(at_client), Some(at_server)) = (packets(&client.file), packets(&server.file))
        else {
            continue;
        };
        let (host, kernel) = (host(&client.host), client.kernel.as_deref());
        let built = ladder::build(at_client, at_server, forgery, host, kernel);
        let Some(ladder) = built else { continue };
        let mut files = vec![(client.host.clone(), client.file.clone())];
        if server.file != client.file {
            files.push((server.host.clone(), server.file.clone()));
        }
        found.push(Drawn {
            ladder,
            path: cell.path,
            protections: words::protections(&cell.protections),
            protected: !cell.protections.is_empty(),
            cell: if cell.id.is_empty() { scenario.name.clone() } else { cell.id.clone() },
            files,
        });
    }
    found
}
