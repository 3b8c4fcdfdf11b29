//! What the claims say.

use crate::observed::saturation::Facts;
use crate::scenario::claims::Claim;

/// A claim in words, and who makes it.
pub(super) const fn words(claim: Claim) -> (&'static str, &'static str) {
    const POST: &str = "https://technology.lastminute.com/chasing-k8s-connection-reset-issue/";
    const KERNEL: &str = "nf_conntrack_core.c";
    match claim {
        Claim::NewConnectionsTimeOut => {
            ("A full table drops the SYN of new connections, which time out.", KERNEL)
        }
        Claim::NewConnectionsAreReset => {
            ("A full table makes new connections end with Connection reset by peer.", POST)
        }
        Claim::SaturationResets => {
            ("Connection reset by peer comes when the conntrack table is out of capacity.", POST)
        }
        Claim::LiberalIsFaster => {
            ("be_liberal=1 speeds transfers, for packets are no longer checked.", POST)
        }
        Claim::EstablishedConnectionsAreLost => {
            ("A full table ends established connections.", POST)
        }
        Claim::ResetsNeedLoad => {
            ("The resets that boom-server provokes come with saturation.", POST)
        }
        Claim::LiberalFreesAFullTable => ("be_liberal=1 cures the failures of a full table.", POST),
        Claim::LiberalCuresTheResets => {
            ("be_liberal=1 cures the resets that boom-server provokes out of window.", POST)
        }
        Claim::BiggerTableCures => {
            ("A bigger table takes the load that filled the smaller one.", POST)
        }
        Claim::SmallerTableResets => {
            ("The smaller the table, the more applications read Connection reset by peer.", POST)
        }
        Claim::BiggerTableHarms => ("A bigger table harms the kernel's performance.", POST),
        Claim::ShorterTimeoutsCure => {
            ("Shorter timeouts for closing states take the load that filled the table.", POST)
        }
        Claim::EarlyDropBeforeSynAckResets => (
            "A half-open entry dropped early, its SYN ACK on its way, resets the new connection.",
            "nf_conntrack_core.c: early_drop()",
        ),
        Claim::EarlyDropBeforeAckResets => (
            "A half-open entry dropped early, the client's ACK on its way, resets the new connection \
                 when the client speaks.",
            "nf_conntrack_core.c: early_drop(); nf_conntrack_proto_tcp.c: tcp_new()",
        ),
        Claim::DropsSaveHalfOpen => (
            "INVALID dropped saves those connections from the reset.",
            "nf_conntrack_proto_tcp.c: tcp_new()",
        ),
        Claim::EvictionResetsClosingConnections => (
            "Saturation alone resets connections: those half closed whose entry is evicted from a full table.",
            "nf_conntrack_core.c: gc_worker_can_early_drop()",
        ),
        Claim::LiberalAndDropsSaveEvicted => (
            "be_liberal=1 and INVALID dropped save connections whose entry was evicted.",
            "nf_conntrack_proto_tcp.c: tcp_new(), nf_ct_tcp_loose",
        ),
        Claim::ShortTimeoutsResetIdleConnections => (
            "An established timeout shorter than a silence resets the connection when the server speaks next.",
            "nf_conntrack_proto_tcp.c: tcp_new(), nf_ct_tcp_loose",
        ),
        Claim::WitnessTellsApart => (
            "load-client's witness names the connections that boom-server ended and no other, and tells a \
                 full table, evictions and clashes apart.",
            "docs/witness.md",
        ),
        Claim::ShortTimeoutsResetIdleClients => (
            "The same resets it when the client speaks next.",
            "nf_conntrack_proto_tcp.c: tcp_new(), nf_ct_tcp_loose",
        ),
    }
}
/// Whether it is about a table that is full.
pub(super) const fn needs_a_full_table(claim: Claim) -> bool {
    matches!(
        claim,
        Claim::NewConnectionsTimeOut
            | Claim::NewConnectionsAreReset
            | Claim::EstablishedConnectionsAreLost
            | Claim::LiberalFreesAFullTable
    )
}

/// Whether a run cannot show it, whatever it does: its limit is what it is.
pub(super) fn not_tried(claim: Claim, facts: &Facts) -> bool {
    match claim {
        Claim::BiggerTableCures | Claim::SmallerTableResets | Claim::BiggerTableHarms => {
            !facts.can_resize
        }
        Claim::WitnessTellsApart => facts.heard.iter().all(|h| h.witness.is_err()),
        Claim::SaturationResets
        | Claim::EvictionResetsClosingConnections
        | Claim::LiberalAndDropsSaveEvicted
        | Claim::EarlyDropBeforeSynAckResets
        | Claim::EarlyDropBeforeAckResets
        | Claim::DropsSaveHalfOpen => !facts.can_hold,
        _ => false,
    }
}
