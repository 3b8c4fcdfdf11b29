//! ctnetlink: the entries of TCP connections, conntrack's counters and its limit.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use canary_record::names;
use canary_record::result::observe::{ConntrackCounters, CpuCounters};
use netlink_packet_core::{
    DefaultNla, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, Nla as _,
};
pub use netlink_packet_netfilter::conntrack::Status;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol,
    Tuple as Part,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::errno::Errno;

use crate::netlink::{NetlinkError, Socket, number};

// include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const IPCTNL_MSG_CT_GET_STATS_CPU: u8 = 4;
const IPCTNL_MSG_CT_GET_STATS: u8 = 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const CTA_STATS_GLOBAL_MAX_ENTRIES: u16 = 2;

names! {
    /// Where conntrack sees a connection (`enum tcp_conntrack`).
    pub enum TcpState {
        /// None yet.
        None = "none",
        /// SYN seen.
        SynSent = "syn-sent",
        /// SYN ACK seen.
        SynRecv = "syn-recv",
        /// Open.
        Established = "established",
        /// FIN seen.
        FinWait = "fin-wait",
        /// FIN of one side acknowledged.
        CloseWait = "close-wait",
        /// FIN of both sides.
        LastAck = "last-ack",
        /// Closed by both sides.
        TimeWait = "time-wait",
        /// Ended by a reset.
        Close = "close",
        /// SYN of both sides.
        SynSent2 = "syn-sent2",
    }
}

/// One direction of a TCP connection: whence, whither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Whence.
    pub source: SocketAddr,
    /// Whither.
    pub destination: SocketAddr,
}

impl Tuple {
    /// The other direction.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }

    fn parts(self) -> Vec<Part> {
        vec![
            Part::Ip(vec![
                IPTuple::SourceAddress(self.source.ip()),
                IPTuple::DestinationAddress(self.destination.ip()),
            ]),
            Part::Proto(vec![
                ProtoTuple::Protocol(Protocol::Tcp),
                ProtoTuple::SourcePort(self.source.port()),
                ProtoTuple::DestinationPort(self.destination.port()),
            ]),
        ]
    }

    /// None for another protocol than TCP.
    fn of(attributes: &[Part]) -> Option<Self> {
        let (mut from, mut to, mut protocol) = ((None, None), (None, None), None);
        for attribute in attributes {
            match attribute {
                Part::Ip(list) => list.iter().for_each(|a| match a {
                    IPTuple::SourceAddress(ip) => from.0 = Some(*ip),
                    IPTuple::DestinationAddress(ip) => to.0 = Some(*ip),
                    _ => {}
                }),
                Part::Proto(list) => list.iter().for_each(|a| match a {
                    ProtoTuple::Protocol(p) => protocol = Some(*p),
                    ProtoTuple::SourcePort(port) => from.1 = Some(*port),
                    ProtoTuple::DestinationPort(port) => to.1 = Some(*port),
                    _ => {}
                }),
                _ => {}
            }
        }
        let address = |(ip, port): (Option<IpAddr>, Option<u16>)| Some(SocketAddr::new(ip?, port?));
        let tcp = protocol == Some(Protocol::Tcp);
        tcp.then_some(Self { source: address(from)?, destination: address(to)? })
    }
}

const fn family(tuple: Tuple) -> NetfilterProtoFamily {
    if tuple.source.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 }
}

/// One TCP connection as conntrack has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As its first packet had it.
    pub original: Tuple,
    /// As replies have it.
    pub reply: Tuple,
    /// Its status bits.
    pub status: Status,
    /// Where conntrack sees the connection; none in a message that does not say.
    pub state: Option<TcpState>,
    /// How long it stays without a packet.
    pub timeout: Option<Duration>,
}

impl Entry {
    /// True where replies come from elsewhere than the first packet went, or go elsewhere than
    /// it came from.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.reply != self.original.reversed()
    }

    fn of(attributes: &[ConntrackAttribute]) -> Option<Self> {
        let (mut original, mut reply, mut state, mut timeout) = (None, None, None, None);
        let mut status = Status::empty();
        for attribute in attributes {
            match attribute {
                ConntrackAttribute::CtaTupleOrig(parts) => original = Tuple::of(parts),
                ConntrackAttribute::CtaTupleReply(parts) => reply = Tuple::of(parts),
                ConntrackAttribute::CtaStatus(s) => status = *s,
                ConntrackAttribute::CtaTimeout(s) => {
                    timeout = Some(Duration::from_secs((*s).into()));
                }
                ConntrackAttribute::CtaProtoInfo(infos) => state = tcp_state(infos),
                _ => {}
            }
        }
        Some(Self { original: original?, reply: reply?, status, state, timeout })
    }
}

fn tcp_state(infos: &[ProtoInfo]) -> Option<TcpState> {
    infos.iter().find_map(|info| {
        let ProtoInfo::TCP(list) = info else { return None };
        list.iter().find_map(|i| match i {
            ProtoInfoTCP::State(n) => TcpState::ALL.get(usize::from(*n)).copied(),
            _ => None,
        })
    })
}

/// Conntrack's table in one network namespace.
#[derive(Debug)]
pub struct Table(Socket);

impl Table {
    /// Opens a socket in this thread's network namespace. Needs CAP_NET_ADMIN there.
    pub fn open() -> Result<Self, NetlinkError> {
        Socket::open().map(Self)
    }

    /// The entry of which one direction has this tuple, if there is one.
    pub fn get(&mut self, tuple: Tuple) -> Result<Option<Entry>, NetlinkError> {
        // ctnetlink_get_conntrack() finds an entry by either of its tuples, whichever it is given.
        let get = ConntrackMessage::Get(vec![ConntrackAttribute::CtaTupleOrig(tuple.parts())]);
        let mut found = None;
        match self.0.ask(message(family(tuple), get), NLM_F_ACK, |m| found = found.or(entry(&m))) {
            Ok(()) => Ok(found),
            Err(NetlinkError::Refused(e)) if e.raw_os_error() == Some(Errno::ENOENT as i32) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Every TCP connection, of both families.
    pub fn dump(&mut self) -> Result<Vec<Entry>, NetlinkError> {
        let mut entries = Vec::new();
        let get = ConntrackMessage::Get(Vec::new());
        self.0.ask(message(NetfilterProtoFamily::Unspec, get), NLM_F_DUMP, |m| {
            entries.extend(entry(&m));
        })?;
        Ok(entries)
    }

    /// Adds an established TCP connection, assured, so that `early_drop()` leaves it alone; it stays for
    /// `timeout` without a packet. False where the table has no room.
    pub fn add(&mut self, original: Tuple, timeout: Duration) -> Result<bool, NetlinkError> {
        let established = TcpState::ALL.iter().position(|s| *s == TcpState::Established);
        let state = established.and_then(|n| u8::try_from(n).ok()).unwrap_or_default();
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        let attributes = vec![
            ConntrackAttribute::CtaTupleOrig(original.parts()),
            ConntrackAttribute::CtaTupleReply(original.reversed().parts()),
            ConntrackAttribute::CtaStatus(Status::Confirmed | Status::SeenReply | Status::Assured),
            ConntrackAttribute::CtaTimeout(seconds),
            ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![ProtoInfoTCP::State(
                state,
            )])]),
        ];
        let new = message(family(original), ConntrackMessage::New(attributes));
        match self.0.ask(new, NLM_F_ACK | NLM_F_CREATE, |_| {}) {
            Ok(()) => Ok(true),
            // __nf_conntrack_alloc() of a full table.
            Err(NetlinkError::Refused(e)) if e.raw_os_error() == Some(Errno::ENOMEM as i32) => {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Deletes every entry, of any protocol: without a tuple all are meant
    /// (`ctnetlink_del_conntrack()`).
    pub fn flush(&mut self) -> Result<(), NetlinkError> {
        let all = ConntrackMessage::Delete(Vec::new());
        self.0.ask(message(NetfilterProtoFamily::Unspec, all), NLM_F_ACK, |_| {})
    }

    /// Entries here, and the limit (said since Linux 4.18).
    pub fn usage(&mut self) -> Result<(u64, Option<u64>), NetlinkError> {
        let (mut entries, mut limit) = (None, None);
        self.0.ask(stats(IPCTNL_MSG_CT_GET_STATS), NLM_F_ACK, |m| {
            for (name, value) in numbers(&m) {
                match name {
                    CTA_STATS_GLOBAL_ENTRIES => entries = Some(value),
                    CTA_STATS_GLOBAL_MAX_ENTRIES => limit = Some(value),
                    _ => {}
                }
            }
        })?;
        let missing = || NetlinkError::Message("no number of entries".to_owned());
        Ok((entries.ok_or_else(missing)?, limit))
    }

    /// The counters of every CPU.
    pub fn counters(&mut self) -> Result<Vec<CpuCounters>, NetlinkError> {
        let mut cpus = Vec::new();
        self.0.ask(stats(IPCTNL_MSG_CT_GET_STATS_CPU), NLM_F_DUMP, |m| {
            // ctnetlink_ct_stat_cpu_fill_info(): res_id is the CPU.
            cpus.push(CpuCounters { cpu: m.header.res_id.into(), counters: counters(&m) });
        })?;
        Ok(cpus)
    }
}

fn message(family: NetfilterProtoFamily, message: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

fn stats(message_type: u8) -> NetfilterMessage {
    let ask = ConntrackMessage::Other { message_type, attributes: Vec::new() };
    message(NetfilterProtoFamily::Unspec, ask)
}

/// The TCP connection of which a message tells.
#[must_use]
pub fn entry(message: &NetfilterMessage) -> Option<Entry> {
    match &message.inner {
        NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) => {
            Entry::of(attributes)
        }
        _ => None,
    }
}

/// The attributes of an answer about statistics.
fn numbers(message: &NetfilterMessage) -> Vec<(u16, u64)> {
    let attributes: &[DefaultNla] = match &message.inner {
        NetfilterMessageInner::Conntrack(ConntrackMessage::Other { attributes, .. }) => attributes,
        _ => &[],
    };
    let named = |a: &DefaultNla| Some((a.kind() & NLA_TYPE_MASK, number(a)?));
    attributes.iter().filter_map(named).collect()
}

/// `enum ctattr_stats_cpu`.
fn counters(message: &NetfilterMessage) -> ConntrackCounters {
    let mut c = ConntrackCounters::default();
    for (name, value) in numbers(message) {
        let field = match name {
            2 => &mut c.found,
            4 => &mut c.invalid,
            8 => &mut c.insert,
            9 => &mut c.insert_failed,
            10 => &mut c.drop,
            11 => &mut c.early_drop,
            12 => &mut c.icmp_error,
            13 => &mut c.search_restart,
            14 => &mut c.clash_resolve,
            15 => &mut c.chain_too_long,
            _ => continue,
        };
        *field = value;
    }
    c
}

#[cfg(test)]
mod tests;
