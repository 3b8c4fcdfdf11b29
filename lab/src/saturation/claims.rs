//! What has been claimed about a full table.

use std::fmt;

use serde::Deserialize;

use super::facts::Facts;

/// A claim, by the name that scenario files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// New connections time out.
    NewConnectionsTimeOut,
    /// New connections are reset.
    NewConnectionsAreReset,
    /// Established connections are lost.
    EstablishedConnectionsAreLost,
    /// The canary's resets come with load alone.
    ResetsNeedLoad,
    /// be_liberal makes room.
    LiberalFreesAFullTable,
    /// be_liberal ends the canary's resets.
    LiberalCuresTheResets,
    /// A bigger table takes the same load.
    BiggerTableCures,
    /// Shorter timeouts take the same load.
    ShorterTimeoutsCure,
    /// An entry dropped early before its SYN ACK came resets.
    EarlyDropBeforeSynAckResets,
    /// An entry dropped early between SYN ACK and ACK resets.
    EarlyDropBeforeAckResets,
    /// INVALID dropped saves those.
    DropsSaveHalfOpen,
    /// A closing entry evicted from a full table resets.
    EvictionResetsClosingConnections,
    /// be_liberal and a drop of INVALID save such connections.
    LiberalAndDropsSaveEvicted,
    /// An established timeout shorter than the silence resets.
    ShortTimeoutsResetIdleConnections,
    /// The same where the client speaks first.
    ShortTimeoutsResetIdleClients,
}

impl Claim {
    /// Every claim, in the order of the report.
    pub const ALL: [Self; 15] = [
        Self::NewConnectionsTimeOut,
        Self::NewConnectionsAreReset,
        Self::EstablishedConnectionsAreLost,
        Self::ResetsNeedLoad,
        Self::LiberalFreesAFullTable,
        Self::LiberalCuresTheResets,
        Self::BiggerTableCures,
        Self::ShorterTimeoutsCure,
        Self::EarlyDropBeforeSynAckResets,
        Self::EarlyDropBeforeAckResets,
        Self::DropsSaveHalfOpen,
        Self::EvictionResetsClosingConnections,
        Self::LiberalAndDropsSaveEvicted,
        Self::ShortTimeoutsResetIdleConnections,
        Self::ShortTimeoutsResetIdleClients,
    ];

    /// Its name, the claim, and who makes it.
    pub(super) const fn text(self) -> (&'static str, &'static str, &'static str) {
        const POST: &str = "the blog post that this suite grew from";
        const KERNEL: &str = "nf_conntrack_core.c";
        match self {
            Self::NewConnectionsTimeOut => (
                "new-connections-time-out",
                "A full table drops the SYN of new connections, which time out.",
                KERNEL,
            ),
            Self::NewConnectionsAreReset => (
                "new-connections-are-reset",
                "A full table makes new connections end with Connection reset by peer.",
                POST,
            ),
            Self::EstablishedConnectionsAreLost => (
                "established-connections-are-lost",
                "A full table ends established connections.",
                POST,
            ),
            Self::ResetsNeedLoad => (
                "resets-need-load",
                "The resets that boom-server provokes come with saturation.",
                POST,
            ),
            Self::LiberalFreesAFullTable => (
                "liberal-frees-a-full-table",
                "be_liberal=1 cures the failures of a full table.",
                POST,
            ),
            Self::LiberalCuresTheResets => (
                "liberal-cures-the-resets",
                "be_liberal=1 cures the resets that boom-server provokes out of window.",
                POST,
            ),
            Self::BiggerTableCures => (
                "bigger-table-cures",
                "A bigger table takes the load that filled the smaller one.",
                POST,
            ),
            Self::ShorterTimeoutsCure => (
                "shorter-timeouts-cure",
                "Shorter timeouts for closing states take the load that filled the table.",
                POST,
            ),
            Self::EarlyDropBeforeSynAckResets => (
                "early-drop-before-syn-ack-resets",
                "A half-open entry dropped early, its SYN ACK on its way, resets the new connection.",
                "nf_conntrack_core.c: early_drop()",
            ),
            Self::EarlyDropBeforeAckResets => (
                "early-drop-before-ack-resets",
                "A half-open entry dropped early, the client's ACK on its way, resets the new connection \
                 when the client speaks.",
                "nf_conntrack_core.c: early_drop(); nf_conntrack_proto_tcp.c: tcp_new()",
            ),
            Self::DropsSaveHalfOpen => (
                "drops-save-half-open",
                "INVALID dropped saves those connections from the reset.",
                "nf_conntrack_proto_tcp.c: tcp_new()",
            ),
            Self::EvictionResetsClosingConnections => (
                "eviction-resets-closing-connections",
                "Saturation alone resets connections: those half closed whose entry is evicted from a full table.",
                "nf_conntrack_core.c: gc_worker_can_early_drop()",
            ),
            Self::LiberalAndDropsSaveEvicted => (
                "liberal-and-drops-save-evicted",
                "be_liberal=1 and INVALID dropped save connections whose entry was evicted.",
                "nf_conntrack_proto_tcp.c: tcp_new(), nf_ct_tcp_loose",
            ),
            Self::ShortTimeoutsResetIdleConnections => (
                "short-timeouts-reset-idle-connections",
                "An established timeout shorter than a silence resets the connection when the server speaks next.",
                "nf_conntrack_proto_tcp.c: tcp_new(), nf_ct_tcp_loose",
            ),
            Self::ShortTimeoutsResetIdleClients => (
                "short-timeouts-reset-idle-clients",
                "The same resets it when the client speaks next.",
                "nf_conntrack_proto_tcp.c: tcp_new(), nf_ct_tcp_loose",
            ),
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().0)
    }
}

impl Claim {
    /// Whether it is about a table that is full.
    #[must_use]
    pub const fn needs_a_full_table(self) -> bool {
        matches!(
            self,
            Self::NewConnectionsTimeOut
                | Self::NewConnectionsAreReset
                | Self::EstablishedConnectionsAreLost
                | Self::LiberalFreesAFullTable
        )
    }

    /// Whether a run cannot show it, whatever it does: its limit is what it is.
    #[must_use]
    pub const fn not_tried(self, facts: &Facts) -> bool {
        match self {
            Self::BiggerTableCures => !facts.can_resize,
            Self::EvictionResetsClosingConnections
            | Self::LiberalAndDropsSaveEvicted
            | Self::EarlyDropBeforeSynAckResets
            | Self::EarlyDropBeforeAckResets
            | Self::DropsSaveHalfOpen => !facts.can_hold,
            _ => false,
        }
    }
}
