//! The numbers on the admin port, under the prefix `boom_`.

use canary_record::names::Outcome;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};

use crate::engine::State;
use crate::report::Accepted;

/// From the kernel's receipt of the handshake to the forged segment's departure.
pub(crate) const HANDSHAKE_TO_FORGE: &str = "boom_handshake_to_forge_seconds";
pub(crate) const BOUNDS: &[f64] = &[
    0.00001, 0.000_025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1,
    1.0,
];

/// Says what each of the process's metrics is.
pub(crate) fn describe() {
    describe_histogram!(
        HANDSHAKE_TO_FORGE,
        Unit::Seconds,
        "From the kernel's receipt of the handshake to the forged segment's departure"
    );
    for (name, text) in [
        ("boom_connections_accepted_total", "Connections accepted"),
        ("boom_accept_errors_total", "accept() errors"),
        ("boom_connections_reset_total", "Accepted connections that ended with ECONNRESET"),
        ("boom_handshakes_total", "Handshakes that the raw sockets saw"),
        ("boom_syns_total", "Connections asked for"),
        ("boom_syns_repeated_total", "SYNs that came again before the handshake was complete"),
        ("boom_syn_acks_repeated_total", "SYN-ACKs that this network namespace sent again"),
        (
            "boom_handshakes_unfinished_total",
            "Handshakes never finished, by the segment that was lost",
        ),
        ("boom_connections_stalled_total", "Connections whose data was sent again in vain"),
        ("boom_forged_total", "Segments forged"),
        ("boom_outcomes_total", "Judgements of forged segments"),
        ("boom_killed_total", "Leaked segments whose reset ended the connection"),
        ("boom_resets_total", "RST segments received, by what provoked them"),
        ("boom_evicted_total", "Connections forgotten unjudged because the table was full"),
        ("boom_send_errors_total", "Segments that could not be sent"),
        ("boom_sniffer_received_total", "Segments that the raw sockets read"),
        ("boom_sniffer_dropped_total", "Segments that the kernel dropped before the raw sockets"),
        ("boom_sniffer_malformed_total", "Packets that were no intact TCP segments"),
    ] {
        describe_counter!(name, text);
    }
    describe_gauge!("boom_build_info", "1, with the program's version");
    gauge!("boom_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Brings every number up to date.
pub(crate) fn publish(state: &State, accepted: Accepted) {
    let set = |name: &'static str, value: u64| counter!(name).absolute(value);
    set("boom_connections_accepted_total", accepted.connections.accepted);
    set("boom_accept_errors_total", accepted.connections.accept_errors);
    set("boom_connections_reset_total", accepted.connections.reset_seen_by_application);
    let h = &state.tally.handshakes;
    set("boom_handshakes_total", h.finished);
    set("boom_syns_total", h.syns);
    set("boom_syns_repeated_total", h.repeated_syns);
    set("boom_syn_acks_repeated_total", accepted.repeated);
    set("boom_connections_stalled_total", accepted.connections.stalled);
    for (lost, n) in [("syn-ack", h.syn_ack_lost), ("ack", h.ack_lost)] {
        counter!("boom_handshakes_unfinished_total", "lost" => lost).absolute(n);
    }
    set("boom_evicted_total", state.evicted);
    set("boom_send_errors_total", state.tally.send_errors);
    set("boom_sniffer_received_total", state.sniffer.received);
    set("boom_sniffer_dropped_total", state.sniffer.dropped);
    set("boom_sniffer_malformed_total", state.sniffer.malformed);
    let resets = &state.tally.resets;
    for (cause, n) in [
        ("forged", resets.attributed),
        ("poisoned-entry", resets.poisoned),
        ("other", resets.unattributed),
        ("unknown-connection", resets.unknown_connection),
    ] {
        counter!("boom_resets_total", "cause" => cause).absolute(n);
    }
    for row in state.tally.outcomes() {
        let (forgery, family, class) =
            (row.forgery.as_str(), row.family.as_str(), row.class.as_str());
        let labels = [("forgery", forgery), ("family", family), ("class", class)];
        counter!("boom_forged_total", &labels).absolute(row.forged);
        counter!("boom_killed_total", &labels).absolute(row.counts.killed);
        // Where a late leak corrected an outcome, that one's counter stands still until
        // its count has caught up: a counter must not fall (absolute() keeps the most).
        for outcome in Outcome::ALL {
            counter!(
                "boom_outcomes_total",
                "forgery" => forgery, "family" => family, "class" => class, "outcome" => outcome.as_str()
            )
            .absolute(row.counts.of(*outcome));
        }
    }
}
