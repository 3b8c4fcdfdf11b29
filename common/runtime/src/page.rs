//! Pages for people: one look, and one way to draw a connection's segments as a ladder, alike on
//! the admin endpoints and in the lab's report. Pure; a page needs nothing from elsewhere.

use canary_record::names::Verdict;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The palette, text, tables and ladders of every page.
const STYLE: &str = include_str!("page.css");

/// Seconds between two looks of a browser at a page that changes.
const REFRESH: u32 = 2;

/// What a page has besides its body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Page<'a> {
    /// The window's title.
    pub title: &'a str,
    /// Beside the look of every page.
    pub style: &'a str,
    /// The page reads whole without it.
    pub script: &'a str,
    /// Of a run that goes on: the browser looks again.
    pub live: bool,
}

impl Page<'_> {
    /// The whole page. Whatever its body says, nothing is loaded and no other script runs.
    #[must_use]
    pub fn render(self, body: &Markup) -> String {
        let scripts = if self.script.is_empty() { "" } else { "; script-src 'unsafe-inline'" };
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta http-equiv="Content-Security-Policy"
                        content={ "default-src 'none'; style-src 'unsafe-inline'" (scripts) };
                    @if self.live { meta http-equiv="refresh" content=(REFRESH); }
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) (PreEscaped(self.style)) }
                }
                body {
                    (body)
                    @if !self.script.is_empty() { script { (PreEscaped(self.script)) } }
                }
            }
        }
        .into_string()
    }
}

/// How the look of pages names what a verdict is like.
#[must_use]
pub const fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Vulnerable => "bad",
        Verdict::Protected => "good",
        Verdict::Inconclusive => "doubt",
    }
}

/// What a segment is to the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Of the connection's own life.
    Own,
    /// INVALID for conntrack, forged or not.
    Invalid,
    /// The reset that it provoked, and that ended the connection.
    Kill,
    /// The reset that it provoked, and that ended nothing.
    Answer,
    /// Sent after the connection was ended.
    Aftermath,
}

/// Where a segment was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// With these addresses: whence, whither.
    At(String, String),
    /// The same, and one of them is not what the client called.
    Odd(String, String),
    /// Not here; in words.
    Absent(String),
}

/// One segment on its way.
#[derive(Clone, Debug)]
pub struct Event {
    /// What it is to the story.
    pub role: Role,
    /// Milliseconds since the first one.
    pub ms: Option<f64>,
    /// True from client to server.
    pub to_server: bool,
    /// Where it was seen: at the client, at the server.
    pub seen: [Seen; 2],
    /// Flags and numbers.
    pub numbers: String,
    /// The story's mark, such as "Forged."
    pub mark: &'static str,
    /// The story.
    pub words: String,
    /// The kernel's own words about the segment.
    pub kernel: Option<String>,
}

/// A ladder: the heads of its two ends, each with what is beneath it, and its segments.
#[must_use]
pub fn ladder(ends: [(&str, &str); 2], events: &[Event]) -> Markup {
    let [(client, calls), (server, listens)] = ends;
    html! { div.ladder {
        div.ends aria-hidden="true" {
            span { "ms" }
            span { (client) small { (calls) } }
            span { "Node" small { "conntrack" } }
            span { (server) small { (listens) } }
            span { "What it is" }
        }
        ol { @for e in events { (event(e)) } }
    } }
}

fn event(e: &Event) -> Markup {
    let class = match e.role {
        Role::Own => "own",
        Role::Invalid => "forged",
        Role::Kill => "kill",
        Role::Answer => "answer",
        Role::Aftermath => "aftermath",
    };
    html! { li.event.(class) {
        span.t { @if let Some(ms) = e.ms { (format!("{ms:.1}")) } }
        (seen("c", &e.seen[0]))
        span.path { (arrow(e)) span.nums { span { (e.numbers) } } }
        (seen("s", &e.seen[1]))
        span.say {
            @if !e.mark.is_empty() { strong { (e.mark) } " " }
            (e.words)
            @if let Some(kernel) = &e.kernel { " The kernel says: " q { (kernel) } "." }
        }
    } }
}

fn seen(side: &str, seen: &Seen) -> Markup {
    html! { @match seen {
        Seen::At(src, dst) => span.at.(side) { span { (src) } span { "→ " (dst) } },
        Seen::Odd(src, dst) => span.at.odd.(side) { span { (src) } span { "→ " (dst) } },
        Seen::Absent(words) => span.at.absent.(side) { (words) },
    } }
}

/// An arrow over the whole width, or over the half where the segment was seen.
fn arrow(e: &Event) -> Markup {
    let [client, server] = [0, 1].map(|n| !matches!(e.seen[n], Seen::Absent(_)));
    let (left, right) = match (client, server) {
        (true, false) => (1, 50),
        (false, true) => (50, 99),
        _ => (1, 99),
    };
    // Nested, so that the head keeps its shape whatever the width.
    let (tip, head) =
        if e.to_server { (right, "M-11,-6 L0,0 L-11,6 Z") } else { (left, "M11,-6 L0,0 L11,6 Z") };
    // Sent, and not seen at the other end.
    let lost = matches!((e.to_server, client, server), (true, true, false) | (false, false, true));
    html! { svg aria-hidden="true" {
        line.shaft x1={ (left) "%" } x2={ (right) "%" } y1="46" y2="46" {}
        svg x={ (tip) "%" } y="46" overflow="visible" { path.head d=(head) {} }
        @if lost {
            svg x="50%" y="46" overflow="visible" { path.shaft d="M-6,-6 L6,6 M6,-6 L-6,6" {} }
        }
    } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset(seen: [Seen; 2]) -> Event {
        Event {
            role: Role::Kill,
            ms: Some(1.25),
            to_server: true,
            seen,
            numbers: "RST · seq 7".to_owned(),
            mark: "Killed.",
            words: "It was <believed>.".to_owned(),
            kernel: Some("invalid new".to_owned()),
        }
    }

    fn at() -> Seen {
        Seen::At("198.18.0.1:1".to_owned(), "198.18.0.2:2".to_owned())
    }

    /// A segment has its numbers, its story and the kernel's words; what others wrote is text.
    #[test]
    fn a_segment_is_told() {
        let page = ladder([("Client", ""), ("Server", "")], &[reset([at(), at()])]).into_string();
        let told = "<strong>Killed.</strong> It was &lt;believed&gt;. The kernel says: <q>invalid new</q>.";
        for part in [told, "RST · seq 7", "<span class=\"t\">1.2</span>", "x1=\"1%\" x2=\"99%\""] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }

    /// What one end alone saw has half an arrow, and a cross where the other end should have.
    #[test]
    fn what_was_lost_is_crossed() {
        let cross = "M-6,-6 L6,6";
        let absent = || Seen::Absent("not seen".to_owned());
        let drawn = |seen| event(&reset(seen)).into_string();
        let lost = drawn([at(), absent()]);
        assert!(lost.contains(cross) && lost.contains("x2=\"50%\""), "{lost}");
        let came = drawn([absent(), at()]);
        assert!(!came.contains(cross) && came.contains("x1=\"50%\""), "{came}");
    }

    /// The page asks nobody for anything, and comes again by itself.
    #[test]
    fn it_refreshes_itself() {
        let page = Page { title: "a & b", live: true, ..Page::default() };
        let page = page.render(&html! { p { "so far" } });
        assert!(page.contains("http-equiv=\"refresh\" content=\"2\""), "{page}");
        assert!(page.contains("<title>a &amp; b</title>"), "{page}");
        for foreign in ["<script", "http://", "https://", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }
}
