//! What boom-server found.

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Run;
use crate::hist::LatencySummary;
use crate::names::{ClientClass, Diagnosis, Direction, Forgery, OldSegments, Verdict};
use crate::outcome::Counts;
use canary_wire::segment::Family;

/// The document that boom-server ends with, and that /verdict shows so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BoomResult {
    /// [`super::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how.
    pub run: Run,
    /// The worst of all paths: vulnerable before inconclusive before protected.
    pub verdict: Verdict,
    /// Which way the forged segments went: what the verdict covers.
    #[serde(default)]
    pub direction: Direction,
    /// Why, most important first; also what weakens the verdict.
    pub reasons: Vec<String>,
    /// One diagnosis for each class of clients and IP family that was seen.
    pub paths: Vec<PathDiagnosis>,
    /// Connections from both points of view.
    pub connections: Connections,
    /// What became of every SYN.
    #[serde(default)]
    pub handshakes: Handshakes,
    /// What became of the forged segments.
    pub outcomes: Vec<OutcomeCount>,
    /// RSTs that were received.
    pub resets: Resets,
    /// The raw sockets.
    pub sniffer: Sniffer,
    /// From the kernel's receipt of the handshake's last segment to the forged one's departure.
    pub handshake_to_forge: LatencySummary,
}

/// The diagnosis of one kind of path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PathDiagnosis {
    /// Where the peer address belongs.
    pub class: ClientClass,
    /// IP family.
    pub family: Family,
    /// What the outcomes say.
    pub diagnosis: Diagnosis,
    /// The verdict for this path alone.
    pub verdict: Verdict,
    /// What this kernel does with segments below the window.
    pub old_segments: OldSegments,
    /// Why, in sentences.
    pub reasons: Vec<String>,
    /// Lethal forgeries judged on this path; below-window counts only where it
    /// was no old segment to be ignored (see `old_segments`).
    pub judged: u64,
    /// Of those, leaked.
    pub leaked: u64,
    /// The 95% upper confidence bound of the leak rate (exact binomial), 0 to 1.
    pub leak_rate_upper_95: f64,
}

/// Connections by the accept queue and by the raw socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Connections {
    /// Accepted by the listener.
    pub accepted: u64,
    /// Handshakes that the raw socket saw completed.
    pub handshakes: u64,
    /// Connections with a forged segment sent.
    pub forged: u64,
    /// Judgements dropped because the table was full.
    pub evicted: u64,
    /// Not yet judged when the run ended.
    pub unjudged: u64,
    /// accept() errors, EMFILE among them.
    pub accept_errors: u64,
    /// Accepted connections that ended with ECONNRESET.
    pub reset_seen_by_application: u64,
    /// Handshakes that only the raw socket saw completed: the client's RST to the forged
    /// segment was there before TCP had taken the handshake's last segment. So many by the
    /// kernel's own count (`TcpExtEmbryonicRsts`).
    #[serde(default)]
    pub reset_before_accept: u64,
    /// Came from a loopback address or one of this host's own: a proxy's.
    #[serde(default)]
    pub from_own_address: u64,
    /// Hung: data of the server's stayed unacknowledged over three retransmissions.
    #[serde(default)]
    pub stalled: u64,
    /// The client called the very address that the connection arrived at: not translated.
    #[serde(default)]
    pub called_here: u64,
    /// The client called another address: translated.
    #[serde(default)]
    pub called_elsewhere: u64,
}

/// What became of every SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Handshakes {
    /// Connections asked for.
    pub syns: u64,
    /// SYNs that came again before the handshake was complete.
    pub repeated_syns: u64,
    /// SYN-ACKs and SYNs that this network namespace sent again (`TcpExtTCPSynRetrans`).
    pub repeated_syn_acks: u64,
    /// Complete.
    pub finished: u64,
    /// Never complete, and the client asked again: it saw no SYN-ACK.
    pub syn_ack_lost: u64,
    /// Never complete, and the client asked once: it had the SYN-ACK, and its acknowledgment
    /// did not come.
    pub ack_lost: u64,
}

impl Connections {
    /// Whether every handshake was accepted or reset before it could be, and nothing else
    /// was accepted.
    #[must_use]
    pub const fn add_up(&self) -> bool {
        self.accepted + self.reset_before_accept == self.handshakes
    }
}

/// What became of one kind of forged segment on one kind of path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutcomeCount {
    /// What was forged.
    pub forgery: Forgery,
    /// IP family.
    pub family: Family,
    /// Where the peer address belongs.
    pub class: ClientClass,
    /// Forged segments sent.
    pub forged: u64,
    /// What became of them.
    #[serde(flatten)]
    pub counts: Counts,
}

/// RSTs received on the service's port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resets {
    /// Matched a forged segment by 4-tuple and numbers.
    pub attributed: u64,
    /// On a connection whose conntrack entry an overshoot had poisoned, with the numbers
    /// that a segment of the server's own provokes where it is not translated.
    #[serde(default)]
    pub poisoned: u64,
    /// On a known connection, and not shown to be a forged segment's.
    pub unattributed: u64,
    /// Of those, ended the connection without the ACK bit of an application's own reset,
    /// before the client closed, and nothing explains them.
    #[serde(default)]
    pub unexplained: u64,
    /// Of those, from a peer that had closed: it answers what reaches it after its end.
    #[serde(default)]
    pub closing: u64,
    /// Of those, an application's own, which ended the connection.
    #[serde(default)]
    pub by_application: u64,
    /// Of those, from a client that was shown not to know its connection any more.
    #[serde(default)]
    pub gone: u64,
    /// On no known connection.
    pub unknown_connection: u64,
    /// A few of the unattributed, with their numbers.
    pub samples: Vec<ResetSample>,
}

impl Resets {
    /// How many are kept with their numbers.
    pub const SAMPLES: usize = 20;
}

impl AddAssign<&Self> for Resets {
    fn add_assign(&mut self, other: &Self) {
        add_each!(self += other: attributed, poisoned, unattributed, unexplained, closing);
        add_each!(self += other: by_application, gone, unknown_connection);
        self.samples.extend(other.samples.iter().cloned());
        self.samples.truncate(Self::SAMPLES);
    }
}

/// The numbers of an RST that matched nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResetSample {
    /// Who sent it.
    pub peer: String,
    /// Its sequence number.
    pub seq: u32,
    /// Its acknowledgment number.
    pub ack: u32,
    /// Its control bits.
    pub flags: String,
    /// The next sequence number expected from this peer, where the connection is known.
    pub expected_seq: Option<u32>,
}

/// What the raw sockets received and lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sniffer {
    /// Segments read.
    pub received: u64,
    /// Segments that the kernel dropped because the buffer was full (SO_RXQ_OVFL).
    pub dropped: u64,
    /// Packets that were no TCP segments, or had a wrong checksum.
    pub malformed: u64,
    /// Packets whose control data (time of receipt, destination, losses) the kernel cut.
    #[serde(default)]
    pub control_truncated: u64,
    /// The receive buffer in octets that the kernel granted to each socket.
    pub receive_buffer: u64,
    /// Why it stopped before the end, if it did.
    pub failed: Option<String>,
}

impl AddAssign<&Self> for Sniffer {
    fn add_assign(&mut self, other: &Self) {
        add_each!(self += other: received, dropped, malformed, control_truncated);
        // A socket each: the smallest is the one that loses first.
        self.receive_buffer = match (self.receive_buffer, other.receive_buffer) {
            (0, n) | (n, 0) => n,
            (a, b) => a.min(b),
        };
        if self.failed.is_none() {
            self.failed.clone_from(&other.failed);
        }
    }
}
