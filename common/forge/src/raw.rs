//! The only raw sockets: what they receive and lose, and how to send.
//!
//! An IPv4 raw socket receives the IP header, an IPv6 one does not. What is sent
//! carries its own header in both families (IPPROTO_RAW).

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, SystemTime};

use canary_record::result::boom::Sniffer as Record;
use canary_wire::segment::{Family, Segment, SegmentError};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn6, SockaddrStorage, recvmmsg,
    setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use canary_wire::checksum;
use canary_wire::filter::{self, Side};

/// Segments read in one system call.
pub const BATCH: usize = 64;
/// Bytes kept of each: every header, and any segment that was not merged on receipt.
const SNAP: usize = 2048;

/// A raw socket could not be opened or set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the {family} raw socket: {why}")]
pub struct RawError {
    operation: &'static str,
    family: Family,
    why: io::Error,
}

/// The inbound segments of one family.
#[derive(Debug)]
pub struct Sniffer {
    socket: Socket,
    family: Family,
    buffers: Vec<u8>,
    record: Record,
}

/// One segment as received.
#[derive(Debug)]
pub struct Received<'a> {
    /// The segment.
    pub segment: Segment<'a>,
    /// When the kernel received it, by the wall clock.
    pub at: Option<SystemTime>,
    /// Its TTL or hop limit.
    pub ttl: Option<u8>,
    /// Its type of service or traffic class.
    pub class: Option<u8>,
}

impl Sniffer {
    /// Opens a raw socket that sees the TCP segments with one of `ports` on this side, and asks for a
    /// receive buffer of `buffer` octets, beyond the system's limit where
    /// CAP_NET_ADMIN allows it.
    pub fn open(
        family: Family,
        side: Side,
        ports: &[u16],
        buffer: usize,
    ) -> Result<Self, RawError> {
        let step = |operation| move |why| RawError { operation, family, why };
        let socket = Socket::new(domain(family), Type::RAW, Some(Protocol::TCP));
        let socket = socket.map_err(step("open"))?;
        // First, so that little of others' traffic is in the buffer.
        let ops: Vec<SockFilter> = filter::program(family, side, ports)
            .iter()
            .map(|&(code, jt, jf, k)| SockFilter::new(code, jt, jf, k))
            .collect();
        socket.attach_filter(&ops).map_err(step("attach a filter to"))?;
        // Then the buffer, before what is wanted overflows the default one.
        if setsockopt(&socket, sockopt::RcvBufForce, &buffer).is_err() {
            socket.set_recv_buffer_size(buffer).map_err(step("set SO_RCVBUF on"))?;
        }
        socket.set_nonblocking(true).map_err(step("set up"))?;
        let nix = |operation| move |e: Errno| RawError { operation, family, why: e.into() };
        setsockopt(&socket, sockopt::RxqOvfl, &1).map_err(nix("set SO_RXQ_OVFL on"))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)
            .map_err(nix("set SO_TIMESTAMPNS on"))?;
        if family == Family::Ipv6 {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)
                .map_err(nix("set IPV6_RECVPKTINFO on"))?;
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)
                .map_err(nix("set IPV6_RECVHOPLIMIT on"))?;
            setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)
                .map_err(nix("set IPV6_RECVTCLASS on"))?;
        }
        // The kernel doubles what it was asked for (socket(7)).
        let receive_buffer = socket.recv_buffer_size().map_err(step("read SO_RCVBUF of"))? / 2;
        let record = Record { receive_buffer: receive_buffer as u64, ..Record::default() };
        Ok(Self { socket, family, buffers: Vec::new(), record })
    }

    /// What it received and lost so far. An IPv6 segment without its destination, for which the
    /// kernel had no room, is malformed too.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Reads what is there, at most one batch, without waiting. Returns how many
    /// packets were read.
    pub fn receive(&mut self, each: impl FnMut(Received<'_>)) -> io::Result<usize> {
        let space = nix::cmsg_space!(TimeSpec, u32, libc::in6_pktinfo, i32, i32);
        self.receive_with(space, each)
    }

    fn receive_with(
        &mut self,
        space: Vec<u8>,
        mut each: impl FnMut(Received<'_>),
    ) -> io::Result<usize> {
        self.buffers.resize(BATCH * SNAP, 0);
        // Made anew for every batch: recvmmsg() writes the length of the control
        // data into the headers, nix keeps it, and a later and longer message (the
        // first one that reports a loss) would be cut.
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, Some(space));
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.buffers.chunks_mut(SNAP).map(|b| [IoSliceMut::new(b)]).collect();
        // With MSG_TRUNC the length is that of the packet, however much was kept.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let messages =
            match recvmmsg(self.socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
                Ok(messages) => messages,
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(0),
                Err(e) => return Err(e.into()),
            };
        let mut n = 0;
        for message in messages {
            n += 1;
            let (mut at, mut local, mut ttl, mut class) = (None, None, None, None);
            // The segment is whole, whatever became of what the kernel says beside it.
            let controls = message.cmsgs().map_err(|_| self.record.control_truncated += 1);
            for control in controls.into_iter().flatten() {
                match control {
                    ControlMessageOwned::ScmTimestampns(t) => at = wall(t),
                    // Since the socket was made.
                    ControlMessageOwned::RxqOvfl(drops) => self.record.dropped = drops.into(),
                    ControlMessageOwned::Ipv6PacketInfo(info) => {
                        local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                    }
                    ControlMessageOwned::Ipv6HopLimit(n) => ttl = u8::try_from(n).ok(),
                    ControlMessageOwned::Ipv6TClass(n) => class = u8::try_from(n).ok(),
                    _ => {}
                }
            }
            let bytes = message.iovs().next().unwrap_or(&[]);
            if let (Family::Ipv4, [_, tos, _, _, _, _, _, _, hops, ..]) = (self.family, bytes) {
                (ttl, class) = (Some(*hops), Some(*tos));
            }
            let parsed = match self.family {
                Family::Ipv4 => Segment::parse_ipv4(bytes, message.bytes),
                Family::Ipv6 => {
                    let peer =
                        message.address.and_then(|a| a.as_sockaddr_in6().map(SockaddrIn6::ip));
                    match (peer, local) {
                        (Some(peer), Some(local)) => Segment::parse_tcp(
                            IpAddr::V6(peer),
                            IpAddr::V6(local),
                            bytes,
                            message.bytes,
                        ),
                        _ => Err(SegmentError::Truncated { have: 0, need: 0 }),
                    }
                }
            };
            match parsed {
                // The kernel's TCP refuses what is damaged, a raw socket does not.
                Ok(segment) if checksum::acceptable(&segment, bytes, message.bytes) => {
                    each(Received { segment, at, ttl, class });
                }
                Ok(_) | Err(_) => self.record.malformed += 1,
            }
        }
        self.record.received += n as u64;
        Ok(n)
    }
}

impl AsFd for Sniffer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn wall(t: TimeSpec) -> Option<SystemTime> {
    let (sec, nsec) = (u64::try_from(t.tv_sec()).ok()?, u32::try_from(t.tv_nsec()).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(sec, nsec))
}

const fn domain(family: Family) -> Domain {
    match family {
        Family::Ipv4 => Domain::IPV4,
        Family::Ipv6 => Domain::IPV6,
    }
}

/// Sends packets that carry their own IP header.
#[derive(Debug)]
pub struct Sender(Vec<(Family, Socket)>);

impl Sender {
    /// Opens one socket for each family.
    pub fn open(families: &[Family]) -> Result<Self, RawError> {
        let open = |&family: &Family| {
            let step = |operation| move |why| RawError { operation, family, why };
            let protocol = Protocol::from(libc::IPPROTO_RAW);
            let socket = Socket::new(domain(family), Type::RAW, Some(protocol));
            let socket = socket.map_err(step("open"))?;
            socket.set_nonblocking(true).map_err(step("set up"))?;
            Ok((family, socket))
        };
        Ok(Self(families.iter().map(open).collect::<Result<_, _>>()?))
    }

    /// Sends one IP packet to `to`.
    pub fn send(&self, packet: &[u8], to: IpAddr) -> io::Result<()> {
        let socket = self.0.iter().find(|(family, _)| *family == Family::of(to));
        let (_, socket) = socket.ok_or(io::ErrorKind::Unsupported)?;
        // A raw socket takes the port as a protocol number: 0 leaves it open.
        let sent = socket.send_to(packet, &SockAddr::from(SocketAddr::new(to, 0)))?;
        if sent == packet.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canary_wire::segment::{Emit, Flags};
    use canary_wire::seq::Seq;

    /// A sniffer to which `n` IPv4 packets have come, as the content of UDP datagrams: nobody
    /// needs a privilege for these.
    fn sniffer(n: u32) -> Sniffer {
        let any = SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)));
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.bind(&any).unwrap();
        socket.set_nonblocking(true).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).unwrap();
        let (src, dst) = ("198.18.0.2:40000".parse().unwrap(), "198.18.0.1:9000".parse().unwrap());
        let mut packet = Vec::new();
        for seq in 0..n {
            let (seq, ack, flags) = (Seq(seq), Seq(0), Flags::ACK);
            Emit { src, dst, class: 0, seq, ack, flags, window: 1, options: &[], payload: &[] }
                .packet(&mut packet);
            let to = socket.local_addr().unwrap();
            Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap().send_to(&packet, &to).unwrap();
        }
        Sniffer { socket, family: Family::Ipv4, buffers: Vec::new(), record: Record::default() }
    }

    /// Control data that does not fit is counted; the segments of its batch are all read, only
    /// without their time.
    #[test]
    fn truncated_control_data_loses_no_segment() {
        let mut seen = Vec::new();
        let mut note = |r: Received<'_>| seen.push((r.segment.seq.0, r.at.is_some()));
        let mut s = sniffer(3);
        assert_eq!(s.receive_with(nix::cmsg_space!(u32), &mut note).unwrap(), 3);
        let r = s.record();
        assert_eq!((r.received, r.malformed, r.control_truncated), (3, 0, 3));
        let mut s = sniffer(1);
        assert_eq!(s.receive(&mut note).unwrap(), 1);
        assert_eq!(s.record().control_truncated, 0);
        assert_eq!(seen, [(0, false), (1, false), (2, false), (0, true)]);
    }
}
