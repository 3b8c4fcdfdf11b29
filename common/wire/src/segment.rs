//! TCP segments as bytes: a checked view of what was received, and an emitter
//! that writes any combination of flags and numbers, legal or not.
//!
//! The codec is pnet's; this module adds bounds that pnet leaves to its caller
//! and the one shape that both IP families share.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4;
use pnet_packet::ipv4::{Ipv4Packet, MutableIpv4Packet};
use pnet_packet::ipv6::MutableIpv6Packet;
use pnet_packet::tcp::{MutableTcpPacket, TcpPacket, ipv4_checksum, ipv6_checksum};

use crate::names;
use crate::seq::Seq;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// The longest TCP options field (RFC 9293, section 3.1: data offset is four bits).
pub const MAX_OPTIONS: usize = 40;

/// TCP control bits, any combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field is significant.
    pub const ACK: Self = Self(0x10);
    /// Urgent pointer is significant.
    pub const URG: Self = Self(0x20);

    /// True when every bit of `other` is set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        if self.0 == 0 {
            return f.write_str("none");
        }
        let set = NAMES.iter().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0);
        for (n, (_, name)) in set.enumerate() {
            if n > 0 {
                f.write_str(" ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

names! {
    /// IP family.
    #[derive(Default)]
    pub enum Family {
        /// IPv4
        #[default]
        Ipv4 = "ipv4",
        /// IPv6
        Ipv6 = "ipv6",
    }
}

impl Family {
    /// The family of `addr`.
    #[must_use]
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }
}

/// The two ends of a connection as one host sees them. IPv4-mapped IPv6
/// addresses are stored as IPv4, so that a dual-stack listener and an IPv4 raw
/// socket name the same connection alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FourTuple {
    /// This host's end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
}

impl FourTuple {
    /// Both ends, IPv4-mapped addresses made IPv4, scope and flow label dropped.
    #[must_use]
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local: canonical(local), remote: canonical(remote) }
    }

    /// The IP family of both ends.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.remote.ip())
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Why bytes are not a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Fewer bytes than the headers need.
    #[error("truncated: {have} bytes where {need} are needed")]
    Truncated {
        /// Bytes at hand.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Not IP version 4.
    #[error("IP version {0}, not 4")]
    Version(u8),
    /// Not TCP.
    #[error("IP protocol {0}, not TCP")]
    Protocol(u8),
    /// A header length below the minimum, or beyond the packet.
    #[error("impossible header length {0}")]
    HeaderLength(usize),
    /// A fragment other than the first carries no TCP header.
    #[error("IP fragment")]
    Fragment,
}

/// A received TCP segment. The payload itself is not kept, its length is: a
/// capture may be cut short behind the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port.
    pub dst: SocketAddr,
    /// SEG.SEQ
    pub seq: Seq,
    /// SEG.ACK, significant only with [`Flags::ACK`].
    pub ack: Seq,
    /// Control bits.
    pub flags: Flags,
    /// SEG.WND, unscaled.
    pub window: u16,
    /// The options field as it stands.
    pub options: &'a [u8],
    /// Octets of data on the wire, captured or not.
    pub payload_len: u32,
}

impl<'a> Segment<'a> {
    /// Reads an IPv4 packet, as an IPv4 raw socket delivers it: header included.
    /// `wire_len` is the packet's length before the capture was cut.
    pub fn parse_ipv4(bytes: &'a [u8], wire_len: usize) -> Result<Self, SegmentError> {
        let ip = Ipv4Packet::new(bytes)
            .ok_or(SegmentError::Truncated { have: bytes.len(), need: IPV4_HEADER })?;
        if ip.get_version() != 4 {
            return Err(SegmentError::Version(ip.get_version()));
        }
        if ip.get_next_level_protocol() != IpNextHeaderProtocols::Tcp {
            return Err(SegmentError::Protocol(ip.get_next_level_protocol().0));
        }
        if ip.get_fragment_offset() != 0 {
            return Err(SegmentError::Fragment);
        }
        let header = usize::from(ip.get_header_length()) * 4;
        // The header's own total length counts, not what the link padded it to.
        let total = usize::from(ip.get_total_length()).min(wire_len);
        if header < IPV4_HEADER || header > total {
            return Err(SegmentError::HeaderLength(header));
        }
        let (src, dst) = (ip.get_source(), ip.get_destination());
        let end = bytes.len().min(total);
        need(&bytes[..end], header + TCP_HEADER)?;
        Self::parse_tcp(src.into(), dst.into(), &bytes[header..end], total - header)
    }

    /// Reads a TCP segment whose addresses are known from elsewhere, as an IPv6
    /// raw socket delivers it: no IP header.
    pub fn parse_tcp(
        src: IpAddr,
        dst: IpAddr,
        bytes: &'a [u8],
        wire_len: usize,
    ) -> Result<Self, SegmentError> {
        let tcp = TcpPacket::new(bytes)
            .ok_or(SegmentError::Truncated { have: bytes.len(), need: TCP_HEADER })?;
        let header = usize::from(tcp.get_data_offset()) * 4;
        if header < TCP_HEADER || header > wire_len {
            return Err(SegmentError::HeaderLength(header));
        }
        need(bytes, header)?;
        Ok(Self {
            src: SocketAddr::new(src, tcp.get_source()),
            dst: SocketAddr::new(dst, tcp.get_destination()),
            seq: Seq(tcp.get_sequence()),
            ack: Seq(tcp.get_acknowledgement()),
            flags: Flags(tcp.get_flags()),
            window: tcp.get_window(),
            options: &bytes[TCP_HEADER..header],
            payload_len: (wire_len - header) as u32,
        })
    }

    /// SEG.LEN: data octets, SYN and FIN counted (RFC 9293, section 3.4).
    #[must_use]
    pub fn seg_len(&self) -> u32 {
        self.payload_len
            + u32::from(self.flags.has(Flags::SYN))
            + u32::from(self.flags.has(Flags::FIN))
    }

    /// The numbers by which the reset that this segment provokes is known.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        Numbers { seq: self.seq, ack: self.ack, flags: self.flags, seg_len: self.seg_len() }
    }

    /// The options that matter here, decoded.
    #[must_use]
    pub fn options(&self) -> Options {
        Options::parse(self.options)
    }
}

/// The numbers of a segment on which the answer of a host without its connection depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// SEG.SEQ
    pub seq: Seq,
    /// SEG.ACK, significant only with [`Flags::ACK`].
    pub ack: Seq,
    /// Control bits.
    pub flags: Flags,
    /// SEG.LEN, SYN and FIN counted.
    pub seg_len: u32,
}

impl Numbers {
    /// True when `rst` has the numbers of the reset that a host without this connection answers
    /// to this segment (RFC 9293, section 3.10.7.1; `tcp_v4_send_reset()`).
    #[must_use]
    pub fn provokes(&self, rst: &Segment<'_>) -> bool {
        // A reset is never answered.
        if !rst.flags.has(Flags::RST) || self.flags.has(Flags::RST) {
            return false;
        }
        if self.flags.has(Flags::ACK) {
            // <SEQ=SEG.ACK><CTL=RST>. An application's own reset has the ACK bit
            // set (tcp_send_active_reset()), so the two are told apart.
            !rst.flags.has(Flags::ACK) && rst.seq == self.ack
        } else {
            // <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>
            rst.flags.has(Flags::ACK) && rst.seq == Seq(0) && rst.ack == self.seq.add(self.seg_len)
        }
    }
}

fn need(bytes: &[u8], need: usize) -> Result<(), SegmentError> {
    if bytes.len() < need {
        return Err(SegmentError::Truncated { have: bytes.len(), need });
    }
    Ok(())
}

/// TCP options of interest; what is malformed or unknown is skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size (RFC 9293, section 3.7.1).
    pub mss: Option<u16>,
    /// Window scale, at most 14 (RFC 7323, section 2.3).
    pub window_scale: Option<u8>,
    /// SACK permitted (RFC 2018).
    pub sack_permitted: bool,
    /// Timestamps: value and echo reply (RFC 7323, section 3.2).
    pub timestamps: Option<(u32, u32)>,
    /// The first SACK block; a D-SACK names a duplicate there (RFC 2883).
    pub sack: Option<(Seq, Seq)>,
}

impl Options {
    fn parse(mut bytes: &[u8]) -> Self {
        let mut found = Self::default();
        let be32 = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
        while let [kind, rest @ ..] = bytes {
            match kind {
                0 => break,        // end of options
                1 => bytes = rest, // no-operation
                _ => {
                    // An option length of 0 or 1, or beyond the field, ends the list.
                    let Some(&len) = rest.first() else { break };
                    let len = usize::from(len);
                    if len < 2 || len > bytes.len() {
                        break;
                    }
                    let value = &bytes[2..len];
                    match (kind, value.len()) {
                        (2, 2) => found.mss = Some(u16::from_be_bytes([value[0], value[1]])),
                        // RFC 7323, section 2.3: a shift above 14 is taken as 14.
                        (3, 1) => found.window_scale = Some(value[0].min(14)),
                        (4, 0) => found.sack_permitted = true,
                        (5, 8..) => found.sack = Some((Seq(be32(value)), Seq(be32(&value[4..])))),
                        (8, 8) => found.timestamps = Some((be32(value), be32(&value[4..]))),
                        _ => {}
                    }
                    bytes = &bytes[len..];
                }
            }
        }
        found
    }
}

/// A TCP segment to send. Nothing is checked: a forger wants the illegal too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emit<'a> {
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port, of the same family.
    pub dst: SocketAddr,
    /// Type of service or traffic class.
    pub class: u8,
    /// SEG.SEQ
    pub seq: Seq,
    /// SEG.ACK
    pub ack: Seq,
    /// Control bits.
    pub flags: Flags,
    /// SEG.WND, unscaled.
    pub window: u16,
    /// Options, padded to four octets with zeroes; at most [`MAX_OPTIONS`] are used.
    pub options: &'a [u8],
    /// Data.
    pub payload: &'a [u8],
}

impl Emit<'_> {
    /// Writes the IP packet into `buf`, whose old content is discarded. All
    /// checksums are right. Source and destination must be of one family;
    /// otherwise `buf` is left empty and `false` returned.
    pub fn packet(&self, buf: &mut Vec<u8>) -> bool {
        buf.clear();
        let options = &self.options[..self.options.len().min(MAX_OPTIONS)];
        let tcp_len = TCP_HEADER + options.len().next_multiple_of(4) + self.payload.len();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                buf.resize(IPV4_HEADER + tcp_len, 0);
                self.ipv4_header(buf, src, dst);
                self.tcp(&mut buf[IPV4_HEADER..], options);
                true
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                buf.resize(IPV6_HEADER + tcp_len, 0);
                self.ipv6_header(buf, tcp_len, src, dst);
                self.tcp(&mut buf[IPV6_HEADER..], options);
                true
            }
            _ => false,
        }
    }

    fn ipv4_header(&self, buf: &mut [u8], src: Ipv4Addr, dst: Ipv4Addr) {
        let total = buf.len() as u16;
        let Some(mut ip) = MutableIpv4Packet::new(buf) else { return };
        ip.set_version(4);
        ip.set_header_length(5);
        ip.set_total_length(total);
        ip.set_flags(ipv4::Ipv4Flags::DontFragment);
        // Any value will do with DF (RFC 6864, section 4.1); a trace reads easier with one.
        ip.set_identification(self.seq.0 as u16);
        ip.set_dscp(self.class >> 2);
        ip.set_ecn(self.class & 3);
        ip.set_ttl(64);
        ip.set_next_level_protocol(IpNextHeaderProtocols::Tcp);
        ip.set_source(src);
        ip.set_destination(dst);
        let sum = ipv4::checksum(&ip.to_immutable());
        ip.set_checksum(sum);
    }

    fn ipv6_header(&self, buf: &mut [u8], tcp_len: usize, src: Ipv6Addr, dst: Ipv6Addr) {
        let Some(mut ip) = MutableIpv6Packet::new(buf) else { return };
        ip.set_version(6);
        ip.set_traffic_class(self.class);
        ip.set_payload_length(tcp_len as u16);
        ip.set_next_header(IpNextHeaderProtocols::Tcp);
        ip.set_hop_limit(64);
        ip.set_source(src);
        ip.set_destination(dst);
    }

    fn tcp(&self, buf: &mut [u8], options: &[u8]) {
        let header = TCP_HEADER + options.len().next_multiple_of(4);
        buf[TCP_HEADER..TCP_HEADER + options.len()].copy_from_slice(options);
        buf[header..].copy_from_slice(self.payload);
        let Some(mut tcp) = MutableTcpPacket::new(buf) else { return };
        tcp.set_source(self.src.port());
        tcp.set_destination(self.dst.port());
        tcp.set_sequence(self.seq.0);
        tcp.set_acknowledgement(self.ack.0);
        tcp.set_data_offset((header / 4) as u8);
        tcp.set_flags(self.flags.0);
        tcp.set_window(self.window);
        let sum = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4_checksum(&tcp.to_immutable(), &src, &dst),
            (IpAddr::V6(src), IpAddr::V6(dst)) => ipv6_checksum(&tcp.to_immutable(), &src, &dst),
            _ => return,
        };
        tcp.set_checksum(sum);
    }
}

#[cfg(test)]
mod tests;
