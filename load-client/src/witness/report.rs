//! From what was found to the result document and its verdict.

use canary_record::names::{EndedBy, Verdict};
use canary_record::result::observe::ConntrackCounters;
use canary_record::result::witness::{
    InTable, Reason, RuleAction, RuleCount, Source, WitnessResult,
};
use canary_record::result::{Run, SCHEMA_VERSION};

use super::found::Found;
use super::offline::Offline;
use super::run::Watched;
use super::show::View;

/// Conntrack's own counters over the watch, and whether it tracked anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conntrack {
    pub(crate) grown: ConntrackCounters,
    /// The entries at the begin and at the end.
    pub(crate) entries: (u64, u64),
}

/// What keeps a watch from saying that nothing happened, so far or at its end.
pub(crate) fn weak(view: &View, kernel: &str, conntrack: Option<Conntrack>) -> Vec<String> {
    let mut weak: Vec<_> = view.unheard.iter().cloned().collect();
    let (found, m) = (&view.found, &view.found.messages);
    if m.lost > 0 || m.overruns > 0 {
        weak.push(format!(
            "{} messages were lost ({} overruns of the socket): what they told of is not known",
            m.lost, m.overruns
        ));
    }
    if m.forgotten > 0 {
        weak.push(format!(
            "{} segments were forgotten before an answer could come: too many at once",
            m.forgotten
        ));
    }
    if view.hurried > 0 {
        weak.push(format!("{} resets came too many at once to be looked into", view.hurried));
    }
    if view.look_failures > 0 {
        weak.push(format!("{} look-ups of entries failed", view.look_failures));
    }
    let unanswered = unanswered(found);
    if !resets_logged(found, kernel) && unanswered > 0 {
        weak.push(format!(
            "Linux {kernel} may not log the resets that answer INVALID segments (5.10 and 6.1 do not): what \
             became of {unanswered} of them is not known; a capture on this node tells it (--pcap)"
        ));
    }
    let half_open = found.half_open_resets;
    let evicted = conntrack.map_or(0, |c| c.grown.early_drop);
    if evicted > 0 && half_open > 0 {
        weak.push(format!(
            "{half_open} resets answered SYN ACKs without an entry, and conntrack evicted {evicted} entries to \
             make room: connections that were opening may have ended by that"
        ));
    }
    if conntrack.is_some_and(|c| c.entries == (0, 0)) && m.received == 0 {
        weak.push("conntrack tracked nothing in this network namespace".to_owned());
    }
    weak
}

/// Those of which no reset came. What lies below the window is translated since 6.1, and INVALID before.
fn unanswered(found: &Found) -> u64 {
    let waiting = found.unanswered.iter().filter(|(reason, _)| **reason != Reason::Ignored);
    waiting.map(|(_, n)| n).sum()
}

fn resets_logged(found: &Found, kernel: &str) -> bool {
    found.segments.contains_key(&Reason::InvalidNew) || logs_resets(kernel)
}

/// The document of a watch.
pub(crate) fn of_watch(watched: Watched, run: Run, conntrack: Option<Conntrack>) -> WitnessResult {
    let view = watched.view;
    let weak = weak(&view, &run.kernel, conntrack);
    let found = &view.found;
    let resets_logged = resets_logged(found, &run.kernel);
    let table = conntrack.map(|c| InTable::of(&c.grown)).unwrap_or_default();
    let mut notes: Vec<_> =
        watched.left_behind.iter().map(|v| format!("put back for a killed witness: {v}")).collect();
    for c in watched.changed.iter().filter(|c| !c.restored) {
        notes.push(format!("{} could not be put back to {}", c.key, c.from));
    }
    notes.extend(table.iter().map(|(what, n)| what.words(*n)));
    let (rules, unread_rules) = of_rules(watched.rules, unanswered(found), &mut notes);
    let mut result = of(found, run, Source::Kernel, weak, watched.time.as_secs_f64());
    result.reasons.extend(notes);
    WitnessResult {
        texts: watched.texts.counts().map(|(t, n)| (t.to_owned(), n)).collect(),
        unheard: view.unheard.into_iter().collect(),
        resets_logged,
        conntrack: conntrack.map(|c| c.grown),
        table,
        rules,
        unread_rules,
        changed: watched.changed,
        ..result
    }
}

/// Measured: 5.10 and 6.1 say nothing of a reset that has no entry; 6.12, 6.18 and 7.2 say "invalid
/// new". Where a distribution has brought that to an older one, it is heard.
fn logs_resets(kernel: &str) -> bool {
    let mut numbers = kernel.split(['.', '-', ' ']).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 12)
}

/// Which rules took INVALID segments, and which were not read.
fn of_rules(
    rules: Result<(Vec<RuleCount>, Vec<String>), String>,
    unanswered: u64,
    notes: &mut Vec<String>,
) -> (Vec<RuleCount>, Vec<String>) {
    let (rules, unread) = rules.unwrap_or_else(|e| (Vec::new(), vec![format!("nf_tables: {e}")]));
    notes.extend(rules.iter().filter(|r| r.packets.is_some_and(|n| n > 0)).map(|r| {
        let does = if r.action == RuleAction::Drop { "dropped" } else { "answered with resets" };
        let n = r.packets.unwrap_or_default();
        format!("{n} packets {does} by a rule for INVALID in {} {} {}", r.family, r.table, r.chain)
    }));
    if !unread.is_empty() {
        notes.push(format!("rules that could not be read: {}", unread.join(", ")));
    }
    if unanswered > 0 && rules.iter().all(|r| r.packets.is_none()) {
        notes.push(format!(
            "{unanswered} INVALID segments were not answered, and no rule that could be read and has a \
             counter tells whether it dropped them"
        ));
    }
    (rules, unread)
}

/// The document of what was found. `weak` is what keeps it from saying that nothing happened.
pub(crate) fn of(
    found: &Found,
    run: Run,
    source: Source,
    weak: Vec<String>,
    seconds: f64,
) -> WitnessResult {
    let (verdict, reasons) = verdict(found, run.ended_by, weak, seconds);
    let [services, clients, servers] = found.most_hit();
    WitnessResult {
        schema_version: SCHEMA_VERSION,
        run,
        verdict,
        reasons,
        source,
        seconds_watched: seconds,
        messages: found.messages,
        segments: found.segments.clone(),
        unanswered: found.unanswered.clone(),
        resets_logged: true,
        stray_resets: found.stray_resets,
        half_open_resets: found.half_open_resets,
        connections: found.causes(),
        harmless: found.harmless,
        already_closing: found.already_closing,
        services,
        clients,
        servers,
        examples: found.examples.clone(),
        ..WitnessResult::default()
    }
}

/// The document of captures. `weak` is what is wrong with them.
pub(crate) fn of_captures(mut offline: Offline, run: Run, mut weak: Vec<String>) -> WitnessResult {
    offline.finish();
    let m = offline.found.messages;
    if m.forgotten > 0 {
        weak.push(format!("{} segments found no room in memory", m.forgotten));
    }
    if m.received == m.foreign + m.unreadable {
        weak.push("no TCP segment is in the captures".to_owned());
    }
    let mut result = of(&offline.found, run, Source::Captures, weak, offline.seconds());
    if m.unreadable > 0 {
        result.reasons.push(format!(
            "{} packets are cut before the end of their TCP header, fragments, or damaged",
            m.unreadable
        ));
    }
    result.reasons.push(
        "captures do not show what conntrack said: only what addresses and numbers single out is \
         named"
            .to_owned(),
    );
    result
}

fn verdict(
    found: &Found,
    ended_by: EndedBy,
    weak: Vec<String>,
    seconds: f64,
) -> (Verdict, Vec<String>) {
    let (ended, unexplained) = found.totals();
    let mut reasons = Vec::new();
    if ended > 0 {
        reasons.push(format!("{ended} connections were ended by INVALID segments"));
    }
    if unexplained > 0 {
        reasons.push(format!("{unexplained} connections met a reset that is unexplained"));
    }
    let verdict = found.verdict(!weak.is_empty() || ended_by == EndedBy::Error);
    if verdict == Verdict::Protected {
        reasons.push(format!("no connection was ended by an INVALID segment in {seconds:.1} s"));
    }
    reasons.extend(weak);
    (verdict, reasons)
}

/// A few lines for a person.
pub(crate) fn summary(r: &WitnessResult) -> String {
    use std::fmt::Write as _;
    let mut s = format!("{}: {} ({:.1} s watched)", r.run.program, r.verdict, r.seconds_watched);
    for reason in &r.reasons {
        let _ = write!(s, "\n  {reason}");
    }
    for c in &r.connections {
        let _ = write!(s, "\n  {:>8} {} ({})", c.count, c.cause, c.direction);
    }
    for hit in r.services.iter().take(5) {
        let _ = write!(s, "\n  {:>8} to {}", hit.count, hit.address);
    }
    for (text, n) in &r.texts {
        let _ = write!(s, "\n  {n:>8} \"{text}\"");
    }
    s
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;

    use canary_conntrack::table::Tuple;
    use canary_wire::segment::{Emit, Flags};
    use canary_wire::seq::Seq;

    use super::super::attribute::Look;
    use super::super::core::{Surroundings, Witness};
    use super::super::page;
    use super::*;

    /// The generation is read from the release, whatever a distribution adds to it.
    #[test]
    fn generations_that_log_resets() {
        for old in ["5.10.0-32-amd64 #1", "6.1.0-56-amd64", "6.11.9", "4.19.1", "unknown: uname"] {
            assert!(!logs_resets(old), "{old}");
        }
        for new in ["6.12.118+deb13-amd64 #1", "6.18.44-fc-v657", "7.2.13+deb14-amd64"] {
            assert!(logs_resets(new), "{new}");
        }
    }

    struct Nobody;

    impl Surroundings for Nobody {
        fn look(&mut self, _: Tuple) -> Look {
            Look::Absent
        }
        fn here(&mut self, _: IpAddr) -> bool {
            false
        }
    }

    /// The document of a watch on a node of `kernel`, where conntrack said `text` of a server's segment
    /// with these flags, and then, if so, of the client host's reset; and counted so many evictions.
    fn watched(
        kernel: &str,
        (text, flags): (&str, Flags),
        answered: bool,
        early: u64,
    ) -> WitnessResult {
        let [server, client] =
            ["198.18.66.20:9000", "198.18.65.10:40000"].map(|a| a.parse::<SocketAddr>().unwrap());
        let packet = |src, dst, ack, flags| {
            let (mut buf, seq) = (Vec::new(), Seq(7));
            Emit {
                src,
                dst,
                class: 0,
                seq,
                ack: Seq(ack),
                flags,
                window: 9,
                options: &[],
                payload: b"",
            }
            .packet(&mut buf);
            buf
        };
        let mut witness = Witness::default();
        let mut say = |n, text: &str, bytes: &[u8]| {
            let text = format!("nf_ct_proto_6: {text} ");
            witness.message(Duration::ZERO, (Some(n), &text, bytes), &mut Nobody);
        };
        say(0, text, &packet(server, client, 7, flags));
        if answered {
            say(1, "invalid new", &packet(client, server, 0, Flags::RST));
        }
        witness.tick(Duration::from_secs(9), true, &mut Nobody);
        let watched = Watched {
            rules: Ok((Vec::new(), Vec::new())),
            view: View { found: witness.matcher.found, ..View::default() },
            texts: witness.texts,
            changed: Vec::new(),
            time: Duration::from_secs(9),
            ended_by: EndedBy::Completed,
            error: None,
            left_behind: Vec::new(),
        };
        let config = canary_record::result::Config::new();
        let clock = canary_record::result::Clock::start();
        let mut run = clock.run("load-client witness", "0", EndedBy::Completed, config);
        kernel.clone_into(&mut run.kernel);
        let grown = ConntrackCounters { early_drop: early, ..ConntrackCounters::default() };
        of_watch(watched, run, Some(Conntrack { grown, entries: (1, 1) }))
    }

    /// Where the kernel says nothing of the resets, silence after an INVALID segment proves nothing, and
    /// the result says which kernel that is; where it does, silence is an answer.
    #[test]
    fn an_older_kernels_silence_proves_nothing() {
        let over = ("SEQ is over upper bound 1 (over the window of the receiver)", Flags::ACK);
        let old = watched("6.1.0-56-amd64", over, false, 0);
        assert_eq!((old.verdict, old.resets_logged), (Verdict::Inconclusive, false));
        assert!(
            old.reasons
                .iter()
                .any(|r| r.starts_with("Linux 6.1.0-56-amd64 may not log the resets"))
        );
        let new = watched("6.12.1", over, false, 0);
        assert_eq!((new.verdict, new.resets_logged), (Verdict::Protected, true));
    }

    /// Whatever weakens the verdict at the end weakens the page's before: each by itself.
    #[test]
    fn the_page_says_no_more_than_the_result() {
        const KERNEL: &str = "6.1.0-56-amd64";
        let full = Some(Conntrack { entries: (1, 1), ..Conntrack::default() });
        let early_drop = ConntrackCounters { early_drop: 1, ..ConntrackCounters::default() };
        let evicting = Some(Conntrack { grown: early_drop, entries: (1, 1) });
        let of = |change: fn(&mut View)| {
            let mut view = View::default();
            change(&mut view);
            view
        };
        for (mut view, conntrack) in [
            (of(|v| v.found.messages.lost = 1), full),
            (of(|v| v.found.messages.overruns = 1), full),
            (of(|v| v.found.messages.forgotten = 1), full),
            (of(|v| v.hurried = 1), full),
            (of(|v| v.look_failures = 1), full),
            (of(|v| v.unheard.extend(["net.netfilter.nf_log.2 was NONE".to_owned()])), full),
            (of(|v| v.found.unanswered.extend([(Reason::SeqOver, 1)])), full),
            (of(|v| v.found.half_open_resets = 1), evicting),
            (of(|_| ()), Some(Conntrack::default())),
        ] {
            view.weak = weak(&view, KERNEL, conntrack);
            assert_eq!(view.weak.len(), 1, "{view:?}");
            assert!(page::render(&view, "").contains("inconclusive</strong>"), "{view:?}");
        }
        assert_eq!(weak(&View::default(), KERNEL, full), [""; 0]);
    }

    /// A SYN ACK without an entry that a reset answers is of a late SYN, unless entries were evicted
    /// meanwhile: then it may be of a connection that was opening.
    #[test]
    fn half_open_resets_beside_evictions_prove_nothing() {
        let syn_ack = ("invalid new", Flags::SYN.with(Flags::ACK));
        let late = watched("6.12.1", syn_ack, true, 0);
        assert_eq!((late.verdict, late.half_open_resets), (Verdict::Protected, 1));
        assert_eq!(late.table, [].into());
        let evicted = watched("6.12.1", syn_ack, true, 4);
        assert_eq!((evicted.verdict, evicted.half_open_resets), (Verdict::Inconclusive, 1));
        assert_eq!(evicted.table, [(InTable::EarlyDrop, 4)].into());
    }
}
