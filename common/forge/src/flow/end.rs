//! Which end of its connections a program is, what it forges, and what it is told of a segment.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use canary_record::names::Forgery;
use canary_wire::segment::{Flags, FourTuple, Segment};

/// Which end of its connections this is.
#[derive(Clone, Debug)]
pub enum End {
    /// The one that accepts.
    Server {
        /// Where. 0.0.0.0 stands for every IPv4 address, `[::]` for every address.
        listen: Vec<SocketAddr>,
        /// The addresses that connections are judged for; empty for every one.
        local: Vec<IpAddr>,
    },
    /// The one that connects.
    Client {
        /// Where to.
        target: SocketAddr,
    },
}

/// What the state machine needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What to forge, by turns over the connections of each family; nothing where it is empty.
    pub forgeries: Vec<Forgery>,
    /// How long an answer may take; stretched on slow paths.
    pub outcome_timeout: Duration,
    /// How long after the handshake to forge.
    pub forge_delay: Duration,
    /// How many connections are remembered at most.
    pub capacity: usize,
    /// Which end this is.
    pub end: End,
}

impl End {
    /// True where a connection of these two ends is this program's.
    pub(super) fn concerns(&self, tuple: &FourTuple) -> bool {
        match self {
            Self::Server { listen, .. } => listen.iter().any(|l| {
                let (ip, to) = (l.ip().to_canonical(), tuple.local);
                let any = ip.is_unspecified() && (ip.is_ipv6() || to.is_ipv4());
                l.port() == to.port() && (any || ip == to.ip())
            }),
            Self::Client { target } => {
                (target.ip().to_canonical(), target.port())
                    == (tuple.remote.ip(), tuple.remote.port())
            }
        }
    }

    /// A segment that begins a connection, seen from here.
    pub(super) fn opens(&self, seg: &Segment<'_>) -> bool {
        let bits = Flags::SYN.0 | Flags::ACK.0 | Flags::RST.0 | Flags::FIN.0;
        // RFC 9293, section 3.10.7.2: in LISTEN an ACK is answered with a reset.
        let wanted = match self {
            Self::Server { .. } => Flags::SYN,
            Self::Client { .. } => Flags::SYN.with(Flags::ACK),
        };
        seg.flags.0 & bits == wanted.0
    }

    /// True where connections to this address are judged.
    pub(super) fn judges(&self, local: IpAddr) -> bool {
        match self {
            Self::Server { local: named, .. } => named.is_empty() || named.contains(&local),
            Self::Client { .. } => true,
        }
    }
}

/// An inbound segment that is read at `now`.
#[derive(Clone, Copy)]
pub(super) struct Heard<'a> {
    pub(super) now: Duration,
    pub(super) arrival: Arrival,
    pub(super) seg: &'a Segment<'a>,
}

/// What the kernel and the network layer said of an inbound segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// When the kernel received it, which may be well before it is read.
    pub at: Duration,
    /// Its TTL or hop limit.
    pub ttl: Option<u8>,
    /// Its type of service or traffic class.
    pub class: Option<u8>,
}
