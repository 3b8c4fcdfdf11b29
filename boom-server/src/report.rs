//! The result document, from the counts.

use std::fmt::Write as _;

use canary_record::names::{ClientClass, Direction, Outcome, Verdict};
use canary_record::result::boom::{BoomResult, Connections, Handshakes, PathDiagnosis};
use canary_record::result::{Run, SCHEMA_VERSION};
use canary_wire::segment::Family;

use crate::engine::State;
use canary_forge::diagnose::{self, Context};

/// The accept queue's side of the counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Accepted {
    /// Connections, without what the raw sockets saw of them.
    pub connections: Connections,
    /// Resets of handshakes that TCP had not completed, in this network namespace.
    pub embryonic: u64,
    /// SYN-ACKs and SYNs sent again, in this network namespace.
    pub repeated: u64,
}

/// The result so far, or at the end. `families` are those that clients are expected from.
pub(crate) fn result(
    min_forged: u64,
    run: Run,
    state: &State,
    accepted: Accepted,
    families: &[Family],
    notes: &[String],
) -> BoomResult {
    let outcomes = state.tally.outcomes();
    let context = Context {
        min_forged,
        direction: Direction::ServerToClient,
        called_here: accepted.connections.called_here,
        called_elsewhere: accepted.connections.called_elsewhere,
        handshakes: state.tally.handshakes.finished,
    };
    let paths = diagnose::paths(&outcomes, &context);
    let handshakes = Handshakes { repeated_syn_acks: accepted.repeated, ..state.tally.handshakes };
    let connections = Connections {
        handshakes: handshakes.finished,
        forged: state.tally.forged,
        evicted: state.evicted,
        unjudged: state.unjudged,
        reset_before_accept: reset_before_accept(
            handshakes.finished,
            accepted,
            outcomes.iter().map(|o| o.counts.killed).sum(),
        ),
        from_own_address: state.tally.own.map_or(0, |(n, _)| n),
        ..accepted.connections
    };
    let mut doubts = doubts(state, &connections);
    doubts.extend(contrary(state, &connections));
    let untried = families.iter().filter(|f| !outcomes.iter().any(|o| o.family == **f));
    doubts.extend(untried.map(|f| {
        format!(
            "{f} was not tried: POD_IP and POD_IPS name an {f} address, and no {f} connection came"
        )
    }));
    let verdict = diagnose::overall(&paths, &doubts);
    let mut reasons: Vec<String> = paths
        .iter()
        .flat_map(|p| p.reasons.iter().map(move |r| format!("{}: {r}", whose(p))))
        .collect();
    if paths.is_empty() {
        reasons.push(match (handshakes.syns, handshakes.finished) {
            (0, _) => "nothing was forged: no client connected, not one SYN came".to_owned(),
            (n, 0) => format!("nothing was forged: {n} SYNs came, and no handshake was finished"),
            (_, n) => {
                format!("nothing was forged: {n} connections ended before, or were let alone")
            }
        });
    } else if verdict == Verdict::Protected {
        reasons.push(format!(
            "this covers {} alone, uploads are another direction",
            context.direction
        ));
    }
    reasons.extend(unfinished(&handshakes));
    if let Some((n, ip)) = state.tally.elsewhere {
        reasons.push(format!(
            "{n} connections came to {ip} or others that POD_IP and POD_IPS do not name: nothing was forged on them"
        ));
    }
    reasons.extend(doubts);
    reasons.extend(notes.iter().cloned());
    BoomResult {
        schema_version: SCHEMA_VERSION,
        run,
        verdict,
        direction: context.direction,
        reasons,
        paths,
        connections,
        handshakes,
        outcomes,
        resets: state.tally.resets.clone(),
        sniffer: state.sniffer.clone(),
        handshake_to_forge: state.latency.summary(),
    }
}

/// Which clients: a class only where they were told apart.
fn whose(path: &PathDiagnosis) -> String {
    match path.class {
        ClientClass::Unclassified => path.family.to_string(),
        class => format!("{class} {}", path.family),
    }
}

/// The kernel counts resets of handshakes that no raw socket saw completed too, such as a
/// port scan's: no more are explained than are missing, or than the forged segments killed.
fn reset_before_accept(handshakes: u64, accepted: Accepted, killed: u64) -> u64 {
    handshakes.saturating_sub(accepted.connections.accepted).min(accepted.embryonic).min(killed)
}

/// What became of handshakes that were never finished.
fn unfinished(h: &Handshakes) -> Vec<String> {
    let mut reasons = Vec::new();
    if h.ack_lost > 0 {
        reasons.push(format!(
            "{} of {} handshakes were never finished though the clients had the SYN-ACK (they asked \
             once): their acknowledgment is lost on its way here. Where a rule drops INVALID and \
             conntrack does not see both directions (asymmetric routes, DSR), the drop is the fault: \
             make the routes symmetric, or leave such connections out of the drop",
            h.ack_lost, h.syns
        ));
    }
    if h.syn_ack_lost > 0 {
        reasons.push(format!(
            "{} of {} handshakes were never finished, and the clients asked again: the SYN-ACK is \
             lost on its way to them",
            h.syn_ack_lost, h.syns
        ));
    }
    reasons
}

/// Evidence that something harms connections here, whatever the outcomes say.
fn contrary(state: &State, c: &Connections) -> Vec<String> {
    let mut found = state.tally.contrary();
    found.extend(state.tally.more_resets(c.reset_seen_by_application));
    if c.stalled > 0 {
        found.push(format!(
            "{} connections hang: data of this server's was sent again and again and is not \
             acknowledged. Where a rule drops INVALID it may take segments that nobody forged \
             (asymmetric routes, DSR, offload, notrack): then the drop is the fault, and be_liberal or \
             symmetric routes mend it",
            c.stalled
        ));
    }
    let h = &state.tally.handshakes;
    if (h.ack_lost + h.syn_ack_lost) * 20 > h.syns {
        found.push("more than one handshake in twenty was never finished".to_owned());
    }
    found
}

/// What forbids a verdict of 'protected'.
fn doubts(state: &State, c: &Connections) -> Vec<String> {
    let mut doubts = state.tally.lost(&state.sniffer, c.evicted);
    if !c.add_up() {
        doubts.push(format!(
            "{} connections accepted, {} handshakes seen: not every connection was judged",
            c.accepted, c.handshakes
        ));
    }
    if c.accept_errors > 0 {
        doubts.push(format!("accept failed {} times", c.accept_errors));
    }
    doubts
}

/// The verdict in one line.
pub(crate) fn one_line(result: &BoomResult, state: &State) -> String {
    let mut line = format!("{} ({}): ", result.verdict, result.direction);
    if let Some(leak) = state.tally.first_leak {
        let _ = write!(
            line,
            "{} to {} was answered with a reset{}; ",
            leak.forgery,
            leak.tuple.remote,
            if leak.fate.killed() { " that ended the connection" } else { "" }
        );
    }
    line.push_str(&result.reasons.join("; "));
    line
}

/// A short table for a terminal.
pub(crate) fn human(result: &BoomResult, state: &State) -> String {
    let mut text = format!(
        "{:<13} {:<6} {:<13} {:>8} {:>8} {:>8} {:>10} {:>8} {:>8}\n",
        "forgery",
        "family",
        "class",
        "forged",
        "leaked",
        "killed",
        "delivered",
        "dropped",
        "unknown"
    );
    for o in &result.outcomes {
        let _ = writeln!(
            text,
            "{:<13} {:<6} {:<13} {:>8} {:>8} {:>8} {:>10} {:>8} {:>8}",
            o.forgery,
            o.family.as_str(),
            o.class,
            o.forged,
            o.counts.leaked,
            o.counts.killed,
            o.counts.delivered,
            o.counts.dropped,
            o.counts.of(Outcome::Unknown)
        );
    }
    for p in &result.paths {
        let _ = writeln!(text, "{}: {}", whose(p), p.diagnosis);
    }
    text.push_str(&one_line(result, state));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A family that clients are expected from and that none came in is said, and forbids "protected".
    #[test]
    fn an_untried_family_is_said() {
        let of = |families: &[Family]| {
            let run = canary_record::result::Clock::start().run(
                "boom-server",
                "0",
                canary_record::names::EndedBy::Running,
                canary_record::result::Config::new(),
            );
            result(20, run, &State::default(), Accepted::default(), families, &[]).reasons
        };
        let untried = |r: &String| r.starts_with("ipv6 was not tried");
        assert!(of(&[Family::Ipv6]).iter().any(untried));
        assert!(!of(&[]).iter().any(untried));
    }

    /// A missing accept() is explained by a reset that the kernel counted and a forged
    /// segment brought about, and by nothing less.
    #[test]
    fn only_a_kill_that_the_kernel_counted_explains() {
        let of = |accepted, embryonic, killed| {
            let connections = Connections { accepted, ..Connections::default() };
            reset_before_accept(10, Accepted { connections, embryonic, repeated: 0 }, killed)
        };
        assert_eq!(of(9, 1, 5), 1);
        assert_eq!(of(9, 0, 5), 0);
        assert_eq!(of(9, 7, 0), 0);
        assert_eq!(of(7, 2, 5), 2);
        assert_eq!(of(10, 4, 5), 0);
        assert_eq!(of(11, 4, 5), 0);
    }
}
