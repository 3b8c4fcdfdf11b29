//! The admin endpoint's page: the verdict so far, what became of what was forged, and how the
//! last connection died. A pure function of the result; no script, and nothing from elsewhere.

use canary_record::names::Verdict;
use canary_record::result::boom::{BoomResult, OutcomeCount};
use canary_runtime::page::{self, Event, Page, Role, Seen};
use maud::{Markup, html};

use crate::kill::Kill;

/// The page of a run that goes on.
pub(crate) fn render(result: &BoomResult, kill: Option<&Kill>) -> String {
    let run = &result.run;
    let main = html! {
        h1 { "So far: " strong.(page::class(result.verdict)) { (result.verdict) } }
        p { (meaning(result.verdict)) }
        @if !result.reasons.is_empty() {
            ul { @for reason in &result.reasons { li { (reason) } } }
        }
        h2 { "What was forged, and what became of it" }
        (outcomes(&result.outcomes))
        h2 { "The last connection that a forged segment ended" }
        @match kill {
            Some(kill) => (ladder(kill)),
            None => p { "None." },
        }
        h2 { "This run" }
        p {
            (run.host) @if let Some(node) = &run.node { " on node " (node) } ", Linux " (run.kernel)
            ", version " (run.version) ". Since " (run.started) ", for "
            (format!("{:.0}", run.seconds)) " s: " (result.connections.handshakes)
            " handshakes seen, " (result.connections.accepted) " accepted, "
            (result.sniffer.dropped) " segments lost."
        }
        p {
            a href="/verdict" { "/verdict" } " has all of this as data, "
            a href="/metrics" { "/metrics" } " for Prometheus."
        }
    };
    let title = &format!("{} · boom-server", result.verdict);
    Page { title, live: true, ..Page::default() }.render(&html! { main { (main) } })
}

const fn meaning(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Vulnerable => {
            "A segment that conntrack calls INVALID reached a client untranslated, and the client's answer is \
             a reset of the real connection (Kubernetes issue #74839)."
        }
        Verdict::Protected => "What was forged reached no client untranslated.",
        Verdict::Inconclusive => "Nothing is proved yet. This is no verdict of protected.",
    }
}

fn outcomes(rows: &[OutcomeCount]) -> Markup {
    html! {
        @if rows.is_empty() { p { "Nothing yet: no client connected, or none was judged." } } @else {
            div.wide tabindex="0" role="region" aria-label="Outcomes" { table {
                thead { tr {
                    th scope="col" { "Forgery" } th scope="col" { "Path" }
                    @for name in ["Forged", "Leaked", "Killed", "Rejected", "Delivered", "Dropped", "Unknown"] {
                        th.num scope="col" { (name) }
                    }
                } }
                tbody { @for row in rows {
                    @let c = &row.counts;
                    tr {
                        th scope="row" { (row.forgery) }
                        td { (row.class) ", " (row.family) }
                        @for n in [row.forged, c.leaked, c.killed, c.rejected, c.delivered, c.dropped, c.unknown.values().sum()] {
                            td.num { (n) }
                        }
                    }
                } }
            } }
        }
    }
}

/// The segments, as the server sees them.
fn ladder(kill: &Kill) -> Markup {
    let Kill { judged, reset } = kill;
    let (server, client) = (judged.tuple.local.to_string(), judged.tuple.remote.to_string());
    let forged = &judged.spec;
    let both = |from: &str, to: &str| [(); 2].map(|()| Seen::At(from.to_owned(), to.to_owned()));
    let events = [
        Event {
            role: Role::Invalid,
            ms: Some(0.0),
            to_server: false,
            seen: both(&server, &client),
            numbers: format!(
                "{} · seq {} · ack {} · {} octets",
                forged.flags,
                forged.seq,
                forged.ack,
                forged.payload.len()
            ),
            mark: "Forged.",
            words: format!("{}: conntrack calls it INVALID.", judged.forgery),
            kernel: None,
        },
        Event {
            role: Role::Kill,
            ms: Some(judged.after.as_secs_f64() * 1000.0),
            to_server: true,
            seen: both(&client, &server),
            numbers: format!("{} · seq {}", reset.flags, reset.seq),
            mark: "Killed.",
            words: "The answer of a host that knows no such connection: the segment reached it untranslated. Its \
                    number is the forged acknowledgment, so the server’s TCP had to accept it. The time is that of \
                    the judgement."
                .to_owned(),
            kernel: None,
        },
    ];
    page::ladder([("Client", "as the server sees it"), ("Server", "")], &events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kill;
    use canary_record::names::{ClientClass, EndedBy, Forgery};
    use canary_record::outcome::{Counts, Fate};
    use canary_record::result::{Clock, Config, SCHEMA_VERSION};
    use canary_wire::segment::Family;

    fn result() -> BoomResult {
        let mut counts = Counts::default();
        for fate in [Fate::Leaked { killed: true, node: false }, Fate::Delivered, Fate::Delivered] {
            counts.count(fate);
        }
        let run = Clock::start().run("boom-server", "0", EndedBy::Running, Config::new());
        let state = crate::engine::State::default();
        let mut result =
            crate::report::result(20, run, &state, crate::report::Accepted::default(), &[], &[]);
        assert_eq!(result.schema_version, SCHEMA_VERSION);
        result.verdict = Verdict::Vulnerable;
        result.outcomes = vec![OutcomeCount {
            forgery: Forgery::AboveWindow,
            family: Family::Ipv4,
            class: ClientClass::Pod,
            forged: 3,
            counts,
        }];
        result
    }

    /// The page shows the verdict, each outcome and the numbers of the last kill, and refreshes
    /// itself.
    #[test]
    fn it_shows_the_run() {
        let page = render(&result(), Some(&kill::tests::kill()));
        for told in [
            "<strong class=\"bad\">vulnerable</strong>",
            "<th scope=\"row\">above-window</th><td>pod, ipv4</td><td class=\"num\">3</td><td class=\"num\">1</td>",
            "seq 4000000000 · ack 7 · 4 octets",
            "RST · seq 7",
            "<span class=\"t\">3.0</span>",
            "http-equiv=\"refresh\"",
        ] {
            assert!(page.contains(told), "{told}: {page}");
        }
    }

    /// What a peer or the environment chose is text, whatever it looks like.
    #[test]
    fn names_are_text() {
        let mut r = result();
        r.run.node = Some("<script>".to_owned());
        r.reasons = vec!["<b>".to_owned()];
        let page = render(&r, None);
        assert!(page.contains("&lt;script&gt;") && page.contains("&lt;b&gt;"));
        assert!(!page.contains("<script>") && page.contains("None."));
    }
}
