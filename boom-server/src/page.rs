//! The admin endpoint's page: the verdict so far, what became of what was forged, and how the
//! last connection died. A pure function of the result; no script, and nothing from elsewhere.

use canary_record::names::Verdict;
use canary_record::result::boom::{BoomResult, OutcomeCount};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::kill::Kill;

/// Seconds between two looks of the browser.
const REFRESH: u32 = 2;

const STYLE: &str = "
:root { color-scheme: light dark; --good: #1b6b45; --bad: #a8201a; --doubt: #5a4a9c; --line: #d9dde2; }
@media (prefers-color-scheme: dark) { :root { --good: #7fd3a4; --bad: #ff9d94; --doubt: #bfb2f5; --line: #343b43; } }
body { max-width: 60rem; margin: 0 auto; padding: 1rem 1.5rem; font: 1rem/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.protected { color: var(--good); } .vulnerable { color: var(--bad); } .inconclusive { color: var(--doubt); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; } caption { text-align: left; padding-bottom: .4rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; }
code { font-size: .9em; }
";

/// The page of a run that goes on.
#[must_use]
pub fn render(result: &BoomResult, kill: Option<&Kill>) -> String {
    let run = &result.run;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content=(REFRESH);
                title { (result.verdict) " · boom-server" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { "So far: " strong class=(result.verdict) { (result.verdict) } }
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
                }
            }
        }
    };
    page.into_string()
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
                        th.n scope="col" { (name) }
                    }
                } }
                tbody { @for row in rows {
                    @let c = &row.counts;
                    tr {
                        th scope="row" { (row.forgery) }
                        td { (row.class) ", " (row.family) }
                        @for n in [row.forged, c.leaked, c.killed, c.rejected, c.delivered, c.dropped, c.unknown.values().sum()] {
                            td.n { (n) }
                        }
                    }
                } }
            } }
        }
    }
}

/// Each segment a row, in the order of time.
fn ladder(kill: &Kill) -> Markup {
    let (server, client) = (kill.tuple.local, kill.tuple.remote);
    let (forged, reset) = (&kill.forged, &kill.reset);
    html! {
        div.wide tabindex="0" role="region" aria-label="Ladder" { table {
            caption { "Server " code { (server) } ", client " code { (client) } ", as the server sees it." }
            thead { tr {
                th scope="col" { "Direction" } th scope="col" { "Segment" } th scope="col" { "What it is" }
            } }
            tbody {
                tr {
                    td { "server → client" }
                    td { code { (forged.flags) " seq " (forged.seq) " ack " (forged.ack) " length " (forged.payload.len()) } }
                    td { "forged: " (kill.forgery) }
                }
                tr {
                    td { "client → server" }
                    td { code { (reset.flags) " seq " (reset.seq) } }
                    td {
                        "the answer of a host that knows no such connection: the segment reached it untranslated. Its "
                        "number is the forged acknowledgment, so the server's TCP had to accept it"
                    }
                }
                tr {
                    td { "server" } td { "connection reset" }
                    td { "judged " (format!("{:.1}", kill.after.as_secs_f64() * 1000.0)) " ms after the forged segment" }
                }
            }
        } }
    }
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

    /// The page shows the verdict, each outcome and the numbers of the last kill, refreshes
    /// itself, and asks nobody else for anything.
    #[test]
    fn it_shows_the_run() {
        let page = render(&result(), Some(&kill::tests::kill()));
        for told in [
            "<strong class=\"vulnerable\">vulnerable</strong>",
            "<th scope=\"row\">above-window</th><td>pod, ipv4</td><td class=\"n\">3</td><td class=\"n\">1</td>",
            "seq 4000000000 ack 7 length 4",
            "RST seq 7",
            "judged 3.0 ms after",
            "http-equiv=\"refresh\" content=\"2\"",
        ] {
            assert!(page.contains(told), "{told}: {page}");
        }
        for foreign in ["<script", "http://", "https://", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
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
