//! The admin endpoint's page: the verdict so far, connections by cause, and how the last one was
//! ended. A pure function of the counts.

use canary_record::names::Verdict;
use canary_record::result::witness::{CauseCount, Direction, Ended};
use canary_runtime::page::{self, Event, Page, Role, Seen};
use maud::{Markup, html};

use super::found::Found;
use super::show::View;

/// The page of a watch that goes on.
pub(crate) fn render(view: &View, host: &str) -> String {
    let found = &view.found;
    let (m, [services, ..]) = (&found.messages, found.most_hit());
    let verdict = found.verdict(!view.weak.is_empty());
    let meaning = match verdict {
        Verdict::Vulnerable => {
            "An INVALID segment provoked a reset that ended a real connection of this network namespace."
        }
        Verdict::Protected => "No connection was ended by an INVALID segment so far.",
        Verdict::Inconclusive => {
            "A reset is unexplained, or not everything can be heard and attributed: no connection is known to \
             have been ended, and none is cleared."
        }
    };
    let main = html! {
        h1 { "So far: " strong.(page::class(verdict)) { (verdict) } }
        p { (meaning) }
        @if !view.weak.is_empty() { ul { @for why in &view.weak { li { (why) } } } }
        h2 { "Connections by what ended them" }
        (causes(&found.causes()))
        h2 { "The last of them" }
        @match view.latest.front() {
            Some(ended) => (ladder(ended)),
            None => p { "None." },
        }
        @if !services.is_empty() {
            h2 { "Services most hit" }
            ul { @for hit in services.iter().take(View::LATEST) {
                li { code { (hit.address) } ": " (hit.count) }
            } }
        }
        h2 { "INVALID segments" }
        (segments(found))
        h2 { "This watch" }
        p {
            (host) ", for " (view.elapsed.as_secs()) " s: " (m.received) " messages of the kernel, " (m.lost)
            " lost, " (m.forgotten) " segments forgotten; " (found.stray_resets) " resets that belong to no segment, "
            (found.harmless) " that ended nothing, " (found.already_closing) " on connections that were closing."
        }
        p { a href="/metrics" { "/metrics" } " has the counts for Prometheus." }
    };
    let title = &format!("{verdict} · witness");
    Page { title, live: true, ..Page::default() }.render(&html! { main { (main) } })
}

fn causes(causes: &[CauseCount]) -> Markup {
    html! {
        @if causes.is_empty() { p { "None." } } @else {
            div.wide tabindex="0" role="region" aria-label="Causes" { table {
                thead { tr {
                    th scope="col" { "Cause" } th scope="col" { "Direction" } th.num scope="col" { "Connections" }
                } }
                tbody { @for c in causes { tr {
                    th scope="row" { (c.cause) } td { (c.direction) } td.num { (c.count) }
                } } }
            } }
        }
    }
}

fn segments(found: &Found) -> Markup {
    html! {
        @if found.segments.is_empty() { p { "None." } } @else {
            div.wide tabindex="0" role="region" aria-label="Segments" { table {
                thead { tr {
                    th scope="col" { "The kernel’s reason" } th.num scope="col" { "Segments" }
                    th.num scope="col" { "No reset answered" }
                } }
                tbody { @for (reason, n) in &found.segments { tr {
                    th scope="row" { (reason) } td.num { (n) }
                    td.num { (found.unanswered.get(reason).unwrap_or(&0)) }
                } } }
            } }
        }
    }
}

/// The connection as its entry has it, the segment, and the reset.
fn ladder(e: &Ended) -> Markup {
    let unknown = || "not known: the connection has no entry".to_owned();
    let upload = e.direction == Direction::ClientToServer;
    let ended = e.cause.ended();
    let mut events = Vec::new();
    if let (Some(client), Some(service)) = (&e.client, &e.service) {
        let server = e.server.as_ref().map_or_else(
            || Seen::Absent(unknown()),
            |server| Seen::At(client.clone(), server.clone()),
        );
        events.push(Event {
            role: Role::Own,
            ms: None,
            to_server: true,
            seen: [Seen::At(client.clone(), service.clone()), server],
            numbers: "established".to_owned(),
            mark: "",
            words: "The connection, on both sides of the translation, as its entry has it."
                .to_owned(),
            kernel: None,
        });
    }
    // The client's segment, or the answer to it, is not seen beyond the host that answered.
    let beyond = || Seen::Absent("does not come here".to_owned());
    let side = |from: &str, to: &str| {
        let seen = Seen::Odd(from.to_owned(), to.to_owned());
        if upload { [seen, beyond()] } else { [seen.clone(), seen] }
    };
    events.push(Event {
        role: Role::Invalid,
        ms: Some(0.0),
        to_server: upload,
        seen: side(&e.from, &e.to),
        numbers: format!("{} · seq {} · ack {}", e.flags, e.seq, e.ack),
        mark: "INVALID.",
        words: "Not translated.".to_owned(),
        kernel: Some(e.text.clone()),
    });
    events.push(Event {
        role: if ended { Role::Kill } else { Role::Answer },
        ms: Some(e.answered_us as f64 / 1000.0),
        to_server: !upload,
        seen: side(&e.to, &e.from),
        numbers: "RST".to_owned(),
        mark: if ended { "Ended." } else { "Unexplained." },
        words: format!(
            "{}.",
            std::iter::once(e.cause.as_str())
                .chain(e.facts.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join("; ")
        ),
        kernel: None,
    });
    html! {
        p { (format!("{:.1}", e.t)) " s after the watch began." }
        (page::ladder([
            ("Client", e.client.as_deref().unwrap_or_default()),
            ("Server", e.server.as_deref().unwrap_or_default()),
        ], &events))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use canary_record::result::witness::{Cause, Reason};

    use super::super::found::tests::{ended, heard};
    use super::*;

    fn view(cause: Cause, direction: Direction) -> View {
        let mut found = heard([(Reason::SeqOver, 5)], (Reason::SeqOver, 2));
        let ended = ended(cause, direction);
        for _ in 0..3 {
            found.add(&ended);
        }
        let latest = [ended].into();
        View { elapsed: Duration::from_secs(75), found, latest, ..View::default() }
    }

    /// The page has the verdict, each cause, and the last connection with the kernel's own words.
    #[test]
    fn it_shows_the_watch() {
        let page = render(&view(Cause::AnsweredByClient, Direction::ServerToClient), "node-1");
        for told in [
            "<strong class=\"bad\">vulnerable</strong>",
            "<th scope=\"row\">answered-by-client</th><td>server-to-client</td><td class=\"num\">3</td>",
            "PSH ACK · seq 1261697329 · ack 7",
            "<q>SEQ is over upper bound 3409261874 (&lt;b&gt;)</q>",
            "answered-by-client; the entry outlived it.",
            "→ 198.19.0.10:80",
            "node-1, for 75 s",
        ] {
            assert!(page.contains(told), "{told}: {page}");
        }
    }

    /// What the facts do not single out is no ended connection, and a watch that lost something
    /// clears nobody.
    #[test]
    fn doubt_is_no_verdict() {
        let page = render(&view(Cause::Unexplained, Direction::Unknown), "");
        assert!(page.contains("<strong class=\"doubt\">inconclusive</strong>"), "{page}");
        assert!(!page.contains("Ended.") && page.contains("Unexplained."), "{page}");
        assert!(render(&View::default(), "").contains("<strong class=\"good\">protected</strong>"));
        let weak = View { weak: vec!["3 messages were lost".to_owned()], ..View::default() };
        let page = render(&weak, "");
        assert!(page.contains("<strong class=\"doubt\">inconclusive</strong>"), "{page}");
        assert!(page.contains("<li>3 messages were lost</li>"), "{page}");
    }
}
