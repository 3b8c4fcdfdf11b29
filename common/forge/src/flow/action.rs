//! What the state machine tells: segments to send, and what became known.

use std::time::Duration;

use canary_record::names::Forgery;
use canary_record::outcome::Fate;
use canary_wire::segment::{Flags, FourTuple, Segment};
use canary_wire::seq::Seq;

use crate::forgery::Spec;

/// What is to be done, or has become known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A SYN came (on the client's end a SYN-ACK).
    Opened {
        /// For which connection.
        tuple: FourTuple,
        /// It repeats one for which no handshake is complete.
        again: bool,
    },
    /// A handshake is complete.
    Handshake(FourTuple),
    /// A handshake was never completed.
    Unfinished {
        /// Of which connection.
        tuple: FourTuple,
        /// How often its SYN came.
        syns: u8,
    },
    /// Send this segment; it is the forged one.
    Forge {
        /// On which connection.
        tuple: FourTuple,
        /// What it is called.
        forgery: Forgery,
        /// Its numbers.
        spec: Spec,
        /// The peer's timestamps option as last seen, (value, echo).
        timestamps: Option<(u32, u32)>,
        /// True when the segment just handled completed the handshake.
        at_once: bool,
    },
    /// Send this segment: the forged one once more, or one that shows whether the peer lives.
    Probe {
        /// On which connection.
        tuple: FourTuple,
        /// Its numbers.
        spec: Spec,
        /// The client's timestamps option as last seen, (value, echo).
        timestamps: Option<(u32, u32)>,
    },
    /// The outcome of a forged segment is known.
    Judged(Judgement),
    /// A connection ended before anything was forged on it.
    NotForged,
    /// A connection to an address that is not judged for.
    Elsewhere(FourTuple),
    /// An RST came.
    Reset(Reset),
}

/// What became of one forged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// On which connection.
    pub tuple: FourTuple,
    /// What was forged.
    pub forgery: Forgery,
    /// The forged segment, as it was sent first.
    pub spec: Spec,
    /// What became of it.
    pub fate: Fate,
    /// From the forged segment's departure to the judgement.
    pub after: Duration,
    /// An earlier judgement that this one replaces.
    pub replaces: Option<Fate>,
}

/// An RST and what it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// On which connection.
    pub tuple: FourTuple,
    /// Its sequence number.
    pub seq: Seq,
    /// Its acknowledgment number.
    pub ack: Seq,
    /// Its control bits.
    pub flags: Flags,
    /// What provoked it.
    pub cause: ResetCause,
}

/// What an RST belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// The segment forged on its connection.
    Forged(Forgery),
    /// A segment of the server's own that conntrack no longer translated, because
    /// an overshoot forged on this connection before had poisoned its entry.
    Poisoned,
    /// The peer does not know the connection: it closed by a reset that was lost, or vanished.
    Gone,
    /// Something else on a known connection, where this number was expected.
    Other {
        /// RCV.NXT
        expected: Seq,
        /// The peer had closed: it resets whatever still reaches it.
        closed: bool,
    },
    /// No known connection.
    UnknownConnection,
}

pub(super) const fn reset(tuple: FourTuple, seg: &Segment<'_>, cause: ResetCause) -> Reset {
    Reset { tuple, seq: seg.seq, ack: seg.ack, flags: seg.flags, cause }
}
