//! The ladder on the page: a list of segments, each drawn as an arrow between
//! what the client saw and what the server pod saw.

use std::net::SocketAddr;

use crate::document::lab::LabResult;

use super::html::{Drawn, cells};
use super::ladder::{Event, Ladder, Role};
use super::markup::{Esc, put};
use super::words;

/// All ladders: the first open, the others to be unfolded.
pub(super) fn section(out: &mut String, drawn: &[Drawn], result: &LabResult) {
    out.push_str(
        "<section aria-labelledby=\"ladder\"><h2 id=\"ladder\">How one connection dies</h2>\n",
    );
    let Some((first, others)) = drawn.split_first() else {
        let captured = cells(result).any(|c| c.captures.iter().any(|k| k.forgery.is_some()));
        out.push_str(if captured {
            "<p class=\"notes\">The captures named in results.json are not beside it, so nothing is drawn.</p>\n"
        } else {
            "<p class=\"notes\">No capture of a reset connection was kept, so nothing is drawn.</p>\n"
        });
        out.push_str("</section>\n");
        return;
    };
    put!(
        out,
        "<p>One real connection of this run, from captures taken in both places at once. NAT changes \
         addresses and ports, never sequence numbers: that is how a segment on the left is known on the \
         right. Numbers count from each side’s first.</p>\n"
    );
    figure(out, first);
    for other in others {
        let protected =
            if other.protections.is_empty() { "no protection" } else { &other.protections };
        put!(
            out,
            "<details><summary>{}: {}, {}</summary>\n",
            other.ladder.forgery,
            words::path(other.path),
            Esc(protected)
        );
        figure(out, other);
        out.push_str("</details>\n");
    }
    out.push_str("</section>\n");
}

fn figure(out: &mut String, d: &Drawn) {
    let l = &d.ladder;
    let client = host(d.files.first().map_or("client", |f| f.0.as_str()));
    put!(
        out,
        "<figure style=\"margin:0\"><figcaption class=\"small soft\"><strong>{}</strong> on: {}, {} \
         (cell <code>{}</code>).",
        l.forgery,
        words::path(d.path),
        if d.protections.is_empty() {
            "no protection".into()
        } else {
            Esc(&d.protections).to_string()
        },
        Esc(&d.cell)
    );
    for (host, file) in &d.files {
        put!(out, " Capture in {0}: <a href=\"{1}\">{1}</a>.", Esc(self::host(host)), Esc(file));
    }
    if !l.complete {
        out.push_str(" The forged segment or the RST that answers it is not in these captures.");
    }
    out.push_str("</figcaption>\n");
    put!(
        out,
        "<div class=\"ladder\"><div class=\"ends\" aria-hidden=\"true\"><span>ms</span><span>Seen in {0}\
         <small>calls {1}</small></span><span>Node<small>conntrack</small></span><span>Seen in the server pod\
         <small>listens on {2}</small></span><span>What it is</span></div>\n<ol>\n",
        Esc(&client),
        l.target,
        l.server
    );
    for e in &l.events {
        event(out, l, e, &client);
    }
    out.push_str("</ol></div></figure>\n");
}

fn event(out: &mut String, l: &Ladder, e: &Event, client: &str) {
    let class = match e.role {
        Role::Own => "own",
        Role::Forged => "forged",
        Role::Kill => "kill",
        Role::Answer => "answer",
        Role::Aftermath => "aftermath",
    };
    put!(out, "<li class=\"event {class}\"><span class=\"t\">{:.1}</span>", e.t * 1000.0);
    let odd = matches!(e.role, Role::Forged | Role::Kill | Role::Answer);
    place(out, "c", e.client, odd && e.client.is_some_and(|c| !of(c, l.target)), client);
    put!(
        out,
        "<span class=\"lane\"><svg aria-hidden=\"true\"><line class=\"life\" x1=\"1%\" x2=\"1%\" y1=\"0\" \
         y2=\"100%\"/><line class=\"life node\" x1=\"50%\" x2=\"50%\" y1=\"0\" y2=\"100%\"/><line \
         class=\"life\" x1=\"99%\" x2=\"99%\" y1=\"0\" y2=\"100%\"/></svg><svg aria-hidden=\"true\">{}</svg>\
         <span class=\"nums\"><span>{}</span></span></span>",
        arrow(e),
        Esc(&e.numbers)
    );
    place(out, "s", e.server, false, "the server pod");
    let mark = match e.role {
        Role::Forged => "<strong>Forged. </strong>",
        Role::Kill => "<strong>Killed. </strong>",
        Role::Answer => "<strong>Leaked. </strong>",
        Role::Own | Role::Aftermath => "",
    };
    let said = e
        .words
        .strip_prefix("Forged by boom-server ")
        .map_or(e.words.clone(), |rest| format!("By boom-server {rest}"));
    put!(out, "<span class=\"say\">{mark}{}</span></li>\n", Esc(said));
}

/// A host of the topology, to people.
fn host(name: &str) -> String {
    match name {
        "client" => "the client pod".to_owned(),
        "server" => "the server pod".to_owned(),
        "outside" => "the client outside".to_owned(),
        node => node.to_owned(),
    }
}

fn of(ends: (SocketAddr, SocketAddr), addr: SocketAddr) -> bool {
    ends.0 == addr || ends.1 == addr
}

fn place(
    out: &mut String,
    side: &str,
    ends: Option<(SocketAddr, SocketAddr)>,
    odd: bool,
    host: &str,
) {
    match ends {
        Some((src, dst)) => put!(
            out,
            "<span class=\"{side} at{}\"><span>{src}</span><span>→ {dst}</span></span>",
            if odd { " odd" } else { "" }
        ),
        None => put!(out, "<span class=\"{side} at absent\">not seen in {}</span>", Esc(host)),
    }
}

/// An arrow over the whole lane, or over the half where the segment was seen.
fn arrow(e: &Event) -> String {
    let (left, right) = match (e.client.is_some(), e.server.is_some()) {
        (true, false) => (1.0, 50.0),
        (false, true) => (50.0, 99.0),
        _ => (1.0, 99.0),
    };
    // Nested, so that the head keeps its shape whatever the lane's width.
    let (tip, head) =
        if e.to_server { (right, "M-11,-6 L0,0 L-11,6 Z") } else { (left, "M11,-6 L0,0 L11,6 Z") };
    // Sent, and not seen at the other end.
    let lost = match (e.to_server, e.client.is_some(), e.server.is_some()) {
        (true, true, false) | (false, false, true) => {
            "<svg x=\"50%\" y=\"46\" overflow=\"visible\"><path class=\"shaft\" \
             d=\"M-6,-6 L6,6 M6,-6 L-6,6\"/></svg>"
        }
        _ => "",
    };
    format!(
        "<line class=\"shaft\" x1=\"{left}%\" x2=\"{right}%\" y1=\"46\" y2=\"46\"/><svg x=\"{tip}%\" \
         y=\"46\" overflow=\"visible\"><path class=\"head\" d=\"{head}\"/></svg>{lost}"
    )
}
