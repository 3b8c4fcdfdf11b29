//! What the claims say, and what a run needs to say anything of them.

use super::findings as find;
use super::findings::Told;
use crate::observed::saturation::{Facts, Kind, MOST_HELD, OnItsWay};
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

/// What a run must have had to show anything of a claim.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// What every run has.
    Nothing,
    /// A table that was full.
    FullTable,
    /// Another limit than the host's.
    Resize,
    /// A table filled with established connections.
    Hold,
    /// A witness on the node.
    Witness,
}

impl Needs {
    /// What a run says that had it not.
    pub(super) fn missing(self, facts: &Facts) -> Option<String> {
        let why = match self {
            Self::FullTable if facts.full().next().is_none() => {
                "The table was never full in this run.".to_owned()
            }
            Self::Hold if !facts.can_hold && facts.can_resize => format!(
                "Too many entries to fill the table with established connections: --host-table-size of \
                 {MOST_HELD} at most."
            ),
            Self::Hold | Self::Resize if self.not_tried(facts) => {
                "This needs another limit than the host's: run it as root with --host-table-size=4000."
                    .to_owned()
            }
            Self::Witness if self.not_tried(facts) => {
                facts.heard.first().and_then(|h| h.witness.clone().err())?
            }
            _ => return None,
        };
        Some(why)
    }

    /// Whether a run cannot have had it, whatever it did: its limit is what it is.
    pub(super) fn not_tried(self, facts: &Facts) -> bool {
        match self {
            Self::Nothing | Self::FullTable => false,
            Self::Resize => !facts.can_resize,
            Self::Hold => !facts.can_hold,
            Self::Witness => facts.heard.iter().all(|h| h.witness.is_err()),
        }
    }
}

/// What a claim needs, and what the facts make of it; nothing where the run did not get so far.
pub(super) fn judged(claim: Claim) -> (Needs, fn(&Facts) -> Option<Told>) {
    match claim {
        Claim::NewConnectionsTimeOut => {
            (Needs::FullTable, |f| Some(find::new_connections_time_out(f)))
        }
        Claim::NewConnectionsAreReset => {
            (Needs::FullTable, |f| Some(find::new_connections_are_reset(f)))
        }
        Claim::EstablishedConnectionsAreLost => (Needs::FullTable, find::established_are_lost),
        Claim::LiberalFreesAFullTable => (Needs::FullTable, find::liberal_full),
        Claim::ResetsNeedLoad => (Needs::Nothing, find::without_load),
        Claim::LiberalCuresTheResets => (Needs::Nothing, find::liberal_cures),
        Claim::LiberalIsFaster => (Needs::Nothing, find::faster),
        Claim::ShorterTimeoutsCure => (Needs::Nothing, |f| find::same_load(f, Kind::Shorter)),
        Claim::ShortTimeoutsResetIdleConnections => {
            (Needs::Nothing, |f| find::expiry(f, Kind::Expiry, "server"))
        }
        Claim::ShortTimeoutsResetIdleClients => {
            (Needs::Nothing, |f| find::expiry(f, Kind::ExpiryClient, "client"))
        }
        Claim::BiggerTableCures => (Needs::Resize, |f| find::same_load(f, Kind::Bigger)),
        Claim::SmallerTableResets => (Needs::Resize, |f| Some(find::smaller(f))),
        Claim::BiggerTableHarms => (Needs::Resize, find::harm),
        Claim::SaturationResets => (Needs::Hold, |f| Some(find::saturation(f))),
        Claim::EvictionResetsClosingConnections => (Needs::Hold, find::eviction),
        Claim::LiberalAndDropsSaveEvicted => (Needs::Hold, find::saved),
        Claim::EarlyDropBeforeSynAckResets => {
            (Needs::Hold, |f| find::early_drop(f, OnItsWay::SynAck))
        }
        Claim::EarlyDropBeforeAckResets => (Needs::Hold, |f| find::early_drop(f, OnItsWay::Ack)),
        Claim::DropsSaveHalfOpen => (Needs::Hold, find::saved_half_open),
        Claim::WitnessTellsApart => (Needs::Witness, find::told_apart),
    }
}
