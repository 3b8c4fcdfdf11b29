//! Which connections INVALID segments ended, as one network namespace or a capture shows it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Run;
use super::observe::ConntrackCounters;
use crate::names;
use crate::names::Verdict;

names! {
    /// Why conntrack took note of a segment: the class of the kernel's own text.
    pub enum Reason {
        /// Begins or ends beyond the window that the receiver offered.
        SeqOver = "seq-over-window",
        /// Data that was acknowledged long before. INVALID before Linux 6.1; since then ignored,
        /// and so translated, and still logged.
        SeqUnder = "seq-under-window",
        /// Acknowledges what conntrack has not seen sent.
        AckOver = "ack-over-bound",
        /// Acknowledges less than the window allows to lag behind.
        AckUnder = "ack-under-bound",
        /// Control bits that no segment has together.
        BadFlags = "bad-flags",
        /// No entry, and no segment to begin one with.
        InvalidNew = "invalid-new",
        /// A reset whose sequence number is none that the receiver would take.
        InvalidRst = "invalid-rst",
        /// Not possible in the state in which conntrack sees the connection.
        InvalidState = "invalid-state",
        /// Let through and translated: the text says "ignored".
        Ignored = "ignored",
        /// Short, malformed, or with a wrong checksum.
        Malformed = "malformed",
        /// Another text.
        Other = "other",
    }
}

impl Reason {
    /// The class of a text of the kernel's, without conntrack's own prefix. Texts differ between
    /// versions; what is not known is [`Self::Other`], never a guess.
    #[must_use]
    pub fn of(text: &str) -> Self {
        // Before 6.1 the texts say "the upper bound".
        const CLASSES: &[(&str, Reason)] = &[
            ("SEQ is over", Reason::SeqOver),
            ("SEQ is under", Reason::SeqUnder),
            ("ACK is over", Reason::AckOver),
            ("ACK is under", Reason::AckUnder),
            ("invalid tcp flag combination", Reason::BadFlags),
            ("invalid new", Reason::InvalidNew),
            ("invalid rst", Reason::InvalidRst),
            ("invalid state", Reason::InvalidState),
            ("short packet", Reason::Malformed),
            ("truncated", Reason::Malformed),
            ("bad checksum", Reason::Malformed),
        ];
        // tcp_in_window(): "%u bytes more than expected".
        if text.contains("bytes more than expected") {
            return Self::SeqOver;
        }
        let class =
            CLASSES.iter().find(|(begin, _)| text.starts_with(begin)).map(|(_, class)| *class);
        match class {
            Some(class) => class,
            // The same: "packet (index %d) in dir %d invalid, state %s".
            None if text.contains(" invalid, state ") => Self::InvalidState,
            // nf_conntrack_tcp_packet(): NF_ACCEPT behind "packet (index %d) in dir %d ignored, state
            // %s", "invalid packet ignored in state %s" and their like.
            None if text.contains("ignored") => Self::Ignored,
            None => Self::Other,
        }
    }
}

names! {
    /// What became of a connection on which an INVALID segment provoked a reset.
    pub enum Cause {
        /// Ended. The segment reached the client untranslated, and the client's host answered
        /// with the reset that the server took (Kubernetes #74839).
        AnsweredByClient = "answered-by-client",
        /// Ended. The segment was addressed to this host, untranslated, and this host answered.
        AnsweredByNode = "answered-by-node",
        /// Ended. A host that is neither end, nor this one, answered.
        AnsweredByOther = "answered-by-other",
        /// Ended. Conntrack had no entry for the connection any more.
        NoEntry = "no-entry",
        /// Something provoked a reset, and the facts do not single out what it did.
        Unexplained = "unexplained",
    }
}

impl Cause {
    /// True when a connection was ended by the segment.
    #[must_use]
    pub const fn ended(self) -> bool {
        !matches!(self, Self::Unexplained)
    }
}

names! {
    /// Whose segment it was.
    pub enum Direction {
        /// The server's: the reset ends the server's side.
        ServerToClient = "server-to-client",
        /// The client's: the reset ends the client's side.
        ClientToServer = "client-to-server",
        /// Without the entry it cannot be told.
        Unknown = "unknown",
    }
}

/// The document that `load-client witness` ends with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WitnessResult {
    /// [`super::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how.
    pub run: Run,
    /// `vulnerable`: a connection was ended. `protected`: none was, and nothing was lost.
    pub verdict: Verdict,
    /// Why that verdict, and what weakens it.
    pub reasons: Vec<String>,
    /// Where it comes from.
    pub source: Source,
    /// How long it watched, in seconds; of captures, from the first packet to the last.
    pub seconds_watched: f64,
    /// Messages of the kernel; of captures, packets.
    pub messages: Messages,
    /// Why the kernel's words did not come to it for a time: values that somebody else set, an error.
    #[serde(default)]
    pub unheard: Vec<String>,
    /// TCP segments by the class of the kernel's reason.
    pub segments: BTreeMap<Reason, u64>,
    /// Those of them, resets aside, that no reset answered: dropped by a rule, let through, or
    /// not of a kind that is answered.
    pub unanswered: BTreeMap<Reason, u64>,
    /// The kernel's texts, each number in them written N, and how often each came.
    pub texts: BTreeMap<String, u64>,
    /// True where this kernel logs the resets that answer INVALID segments (it was heard to, or is
    /// of a generation that does). Where it may not, what was unanswered may have been answered.
    pub resets_logged: bool,
    /// Resets that belong to no segment: of hosts that have closed, or forged from outside.
    pub stray_resets: u64,
    /// Of `stray_resets`, those that answer a SYN ACK without an entry: of a late copy of a SYN,
    /// or of a connection that was opening and whose entry was evicted.
    #[serde(default)]
    pub half_open_resets: u64,
    /// Connections by what ended them, and in which direction.
    pub connections: Vec<CauseCount>,
    /// Resets that were provoked and ended nothing: their receiver could not take them, or the
    /// connection was shown to live on.
    pub harmless: u64,
    /// Connections on which a reset was provoked while both sides were closing, or by a FIN that met no entry.
    pub already_closing: u64,
    /// Ended connections by Service address: the most hit, at most [`MOST_HIT`].
    pub services: Vec<Hit>,
    /// The same by client address.
    pub clients: Vec<Hit>,
    /// The same by server address.
    pub servers: Vec<Hit>,
    /// The first connections that were ended or are unexplained, at most [`EXAMPLES`].
    pub examples: Vec<Ended>,
    /// What conntrack's counters grew by. `drop` and `early_drop` tell of a full table,
    /// `insert_failed` of clashes: they end connections that INVALID has no part in.
    pub conntrack: Option<ConntrackCounters>,
    /// What the counters of `conntrack` tell of its table, where they tell something.
    #[serde(default)]
    pub table: BTreeMap<InTable, u64>,
    /// Rules of nf_tables that act on INVALID segments, and what their counters grew by.
    #[serde(default)]
    pub rules: Vec<RuleCount>,
    /// Rules and tables that may act on INVALID segments too and could not be read.
    #[serde(default)]
    pub unread_rules: Vec<String>,
    /// Kernel values that were changed to watch.
    pub changed: Vec<Changed>,
}

names! {
    /// What conntrack's counters tell of its table. It ends connections too, and is not INVALID's doing.
    pub enum InTable {
        /// A packet that needed a new entry found no room and was dropped.
        Full = "full",
        /// An entry was evicted to make room.
        EarlyDrop = "early-drop",
        /// An entry was not inserted: another had taken its tuple.
        Clash = "clash",
    }
}

impl InTable {
    /// What counters that grew by so much tell.
    #[must_use]
    pub fn of(grown: &ConntrackCounters) -> BTreeMap<Self, u64> {
        // nf_ct_resolve_clash() counts what it drops under `drop` and `insert_failed`; nf_conntrack_in()
        // counts what finds no room under `drop` alone.
        let full = grown.drop.saturating_sub(grown.insert_failed);
        let each = [
            (Self::Full, full),
            (Self::EarlyDrop, grown.early_drop),
            (Self::Clash, grown.insert_failed),
        ];
        each.into_iter().filter(|(_, n)| *n > 0).collect()
    }

    /// So many of it, in words.
    #[must_use]
    pub fn words(self, n: u64) -> String {
        match self {
            Self::Full => format!(
                "{n} packets found no room in conntrack's table (drop): new connections time out, and \
                 entries of closing ones may be evicted; not by INVALID"
            ),
            Self::EarlyDrop => format!(
                "{n} entries evicted to make room (early_drop): their connections may end by it; not by INVALID"
            ),
            Self::Clash => format!(
                "{n} entries not inserted (insert_failed), and their packets dropped: a clash of tuples; \
                 not by INVALID"
            ),
        }
    }
}

names! {
    /// What a rule does with an INVALID segment.
    pub enum RuleAction {
        /// It drops it.
        Drop = "drop",
        /// It answers with a reset of its own.
        Reset = "reset",
    }
}

/// A rule that acts on INVALID segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleCount {
    /// The family of its table, as nft calls it.
    #[serde(default)]
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its handle in the table.
    pub handle: u64,
    /// What it does.
    pub action: RuleAction,
    /// Packets that it counted during the watch; absent where it has no counter, or was not there all
    /// the time.
    pub packets: Option<u64>,
}

/// The most addresses in a list of those most hit.
pub const MOST_HIT: usize = 20;
/// The most connections told one by one.
pub const EXAMPLES: usize = 100;

/// Where a witness looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The kernel's messages of one network namespace.
    #[default]
    Kernel,
    /// Captures of packets.
    Captures,
}

/// What was heard, and what was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Messages {
    /// Received.
    pub received: u64,
    /// Of other origin than conntrack's TCP: TRACE rules, other protocols.
    pub foreign: u64,
    /// That could not be read as a TCP segment.
    pub unreadable: u64,
    /// That the kernel numbered and this program never received.
    pub lost: u64,
    /// How often the kernel said that the socket was full (ENOBUFS).
    pub overruns: u64,
    /// Segments forgotten before their answer could come, for want of room.
    pub forgotten: u64,
}

/// How many connections met one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CauseCount {
    /// What ended them.
    pub cause: Cause,
    /// Whose segment it was.
    pub direction: Direction,
    /// Connections.
    pub count: u64,
}

/// How often one address was hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hit {
    /// IP address; a Service's with its port.
    pub address: String,
    /// Connections.
    pub count: u64,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ended {
    /// When the reset was seen, in seconds since the watch began.
    pub t: f64,
    /// What ended it.
    pub cause: Cause,
    /// Whose segment it was.
    pub direction: Direction,
    /// The client, as the entry has it.
    pub client: Option<String>,
    /// What the client had connected to: a Service's address.
    pub service: Option<String>,
    /// The server that replied.
    pub server: Option<String>,
    /// The segment: whence.
    pub from: String,
    /// The segment: whither.
    pub to: String,
    /// Its sequence number.
    pub seq: u32,
    /// Its acknowledgment number: that of the reset too, where the segment has the ACK bit.
    pub ack: u32,
    /// Its control bits.
    pub flags: String,
    /// The class of the kernel's reason.
    pub reason: Reason,
    /// The kernel's text, or of a capture what the numbers show.
    pub text: String,
    /// From the segment to the reset, in microseconds.
    pub answered_us: u64,
    /// Where conntrack saw the connection when the reset was seen, and after a while.
    pub states: [Option<String>; 2],
    /// True when the entry outlived its connection: still open for conntrack after that while.
    pub entry_outlived: Option<bool>,
    /// What else is known, and what is not.
    pub facts: Vec<String>,
}

/// A kernel value that was changed and put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    /// Its path.
    pub key: String,
    /// What it was.
    pub from: String,
    /// What it was set to.
    pub to: String,
    /// True when it reads as before again.
    pub restored: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A full table, evictions and clashes are told apart: a clash counts as a drop too.
    #[test]
    fn the_table_is_told_apart() {
        let of = |drop, early_drop, insert_failed| {
            let grown = ConntrackCounters {
                insert_failed,
                drop,
                early_drop,
                ..ConntrackCounters::default()
            };
            InTable::of(&grown).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(of(0, 0, 0), []);
        assert_eq!(of(7, 0, 0), [(InTable::Full, 7)]);
        assert_eq!(of(0, 3, 0), [(InTable::EarlyDrop, 3)]);
        assert_eq!(of(7, 0, 7), [(InTable::Clash, 7)]);
        assert_eq!(of(9, 2, 7), [(InTable::Full, 2), (InTable::EarlyDrop, 2), (InTable::Clash, 7)]);
    }
}
