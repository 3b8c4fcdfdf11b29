//! What has been claimed about a full table.

use canary_record::names;

names! {
    /// A claim, by the name that scenario files use; in the order of the report.
    pub enum Claim {
        /// New connections time out.
        NewConnectionsTimeOut = "new-connections-time-out",
        /// New connections are reset.
        NewConnectionsAreReset = "new-connections-are-reset",
        /// Connections are reset while the table is full.
        SaturationResets = "saturation-resets",
        /// Established connections are lost.
        EstablishedConnectionsAreLost = "established-connections-are-lost",
        /// The canary's resets come with load alone.
        ResetsNeedLoad = "resets-need-load",
        /// be_liberal makes room.
        LiberalFreesAFullTable = "liberal-frees-a-full-table",
        /// be_liberal ends the canary's resets.
        LiberalCuresTheResets = "liberal-cures-the-resets",
        /// A bigger table takes the same load.
        BiggerTableCures = "bigger-table-cures",
        /// The smaller the table, the more new connections are reset.
        SmallerTableResets = "smaller-table-resets",
        /// A bigger table slows the kernel.
        BiggerTableHarms = "bigger-table-harms",
        /// Shorter timeouts take the same load.
        ShorterTimeoutsCure = "shorter-timeouts-cure",
        /// An entry dropped early before its SYN ACK came resets.
        EarlyDropBeforeSynAckResets = "early-drop-before-syn-ack-resets",
        /// An entry dropped early between SYN ACK and ACK resets.
        EarlyDropBeforeAckResets = "early-drop-before-ack-resets",
        /// INVALID dropped saves those.
        DropsSaveHalfOpen = "drops-save-half-open",
        /// A closing entry evicted from a full table resets.
        EvictionResetsClosingConnections = "eviction-resets-closing-connections",
        /// be_liberal and a drop of INVALID save such connections.
        LiberalAndDropsSaveEvicted = "liberal-and-drops-save-evicted",
        /// An established timeout shorter than the silence resets.
        ShortTimeoutsResetIdleConnections = "short-timeouts-reset-idle-connections",
        /// The same where the client speaks first.
        ShortTimeoutsResetIdleClients = "short-timeouts-reset-idle-clients",
        /// The witness tells what INVALID did from what the table did.
        WitnessTellsApart = "witness-tells-apart",
        /// be_liberal speeds transfers and new connections.
        LiberalIsFaster = "liberal-is-faster",
    }
}
