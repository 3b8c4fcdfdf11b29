//! Group 0 of NFLOG, where the kernel sends what conntrack has to say: the socket, and reading its
//! messages without a copy.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::anyhow;
use canary_conntrack::netlink::{NetlinkError, Socket};
use netlink_packet_core::{NLM_F_ACK, NetlinkBuffer, NlasIterator};
use netlink_packet_netfilter::nflog::{
    ConfigCmd, ConfigFlags, ConfigMode, ConfigNla, Timeout, ULogMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

// include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_log.h.
const PACKET: u16 = 4 << 8;
const NFGENMSG: usize = 4;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NFULA_SEQ: u16 = 12;
/// The group of messages that have no rule of their own (`nf_log_packet()` with no loginfo).
const GROUP: u16 = 0;
/// Of each packet: IPv6 with extension headers, and TCP with its options.
const COPY: u32 = 256;
/// What the kernel collects before it sends: messages, octets, time.
const BATCH: u32 = 128;
const BATCH_BYTES: u32 = 64 << 10;
const BATCH_TIME: Duration = Duration::from_millis(100);
/// Room for what comes while this program does something else.
const RECEIVE_BUFFER: usize = 8 << 20;

/// What a refusal of the bind means to who may use nfnetlink at all.
fn refused(e: NetlinkError) -> anyhow::Error {
    match e.errno().map(Errno::from_raw) {
        // instance_create(), nfulnl_recv_config(): another socket has the group.
        Some(Errno::EPERM | Errno::EBUSY) => anyhow!(
            "somebody else listens on NFLOG group 0 (ulogd? another witness?): stop it, or watch there"
        ),
        // nfnetlink_rcv_msg(): no such subsystem.
        Some(n @ (Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOENT)) => {
            anyhow!("this kernel has no nfnetlink_log ({}): load the module", io::Error::from(n))
        }
        _ => e.into(),
    }
}

#[derive(Debug)]
pub(crate) struct Nflog {
    socket: Socket,
    buffer: Vec<u8>,
    wait: MsgFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    Nothing,
    /// Messages were lost: the socket was full.
    Overrun,
}

impl Nflog {
    /// Binds to group 0 in this thread's network namespace. The caller has shown that it may use
    /// nfnetlink at all, so that a refusal means another listener.
    pub(crate) fn bind() -> anyhow::Result<Self> {
        let mut socket = Socket::open()?;
        // NFULNL_CFG_F_CONNTRACK would add the entry to each message, and hang the kernel:
        // tcp_in_window() logs under ct->lock, which tcp_to_nlattr() takes.
        let config = vec![
            ConfigNla::Cmd(ConfigCmd::Bind),
            ConfigNla::Mode(ConfigMode::new_packet(COPY)),
            ConfigNla::Flags(ConfigFlags::SEQ),
            ConfigNla::QThresh(BATCH),
            ConfigNla::NlBufSiz(BATCH_BYTES),
            ConfigNla::Timeout(Timeout::from(BATCH_TIME)),
        ];
        socket.ask(message_of(config), NLM_F_ACK, |_| {}).map_err(refused)?;
        let set = |e: Errno| NetlinkError::Io { operation: "setting up", source: e.into() };
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN in the initial user namespace.
        if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket.as_fd(), sockopt::RcvBuf, &RECEIVE_BUFFER).map_err(set)?;
        }
        let wait = TimeVal::milliseconds(BATCH_TIME.as_millis() as i64);
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &wait).map_err(set)?;
        let buffer = vec![0; 2 * BATCH_BYTES as usize];
        Ok(Self { socket, buffer, wait: MsgFlags::empty() })
    }

    /// Leaves the group. What the kernel had collected is there to be read before this returns
    /// (instance_destroy()), and nothing comes after it.
    pub(crate) fn leave(&mut self) -> Result<(), NetlinkError> {
        self.wait = MsgFlags::MSG_DONTWAIT;
        // No acknowledgment is asked for: what waits to be read would stand before it.
        self.socket.send(message_of(vec![ConfigNla::Cmd(ConfigCmd::Unbind)]), 0)
    }

    /// Reads once, waiting 100 ms at most, and not at all once the group is left.
    pub(crate) fn read(&mut self) -> Result<Read, NetlinkError> {
        match recv(self.socket.as_fd().as_raw_fd(), &mut self.buffer, self.wait) {
            Ok(n) => Ok(Read::Bytes(n)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Read::Nothing),
            Err(Errno::ENOBUFS) => Ok(Read::Overrun),
            Err(e) => Err(NetlinkError::Io { operation: "reading", source: e.into() }),
        }
    }

    /// The messages of the last read of `n` octets.
    pub(crate) fn messages(&self, n: usize) -> impl Iterator<Item = Message<'_>> {
        messages(&self.buffer[..n])
    }
}

fn message_of(config: Vec<ConfigNla>) -> NetfilterMessage {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, GROUP);
    NetfilterMessage::new(header, ULogMessage::Config(config))
}

/// One packet, as the kernel logged it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) number: Option<u32>,
    pub(crate) prefix: &'a str,
    /// The packet from its IP header on, perhaps cut.
    pub(crate) packet: &'a [u8],
}

/// Every packet message in a datagram; what is malformed ends it.
pub(crate) fn messages(mut data: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        loop {
            let buffer = NetlinkBuffer::new_checked(data).ok()?;
            let length = buffer.length() as usize;
            let (kind, payload) = (buffer.message_type(), data.get(16..length)?);
            data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
            if kind == PACKET {
                return Some(message(payload.get(NFGENMSG..).unwrap_or_default()));
            }
        }
    })
}

fn message(attributes: &[u8]) -> Message<'_> {
    let mut message = Message::default();
    let mut rest = attributes;
    while let Some(length) =
        NlasIterator::new(rest).next().and_then(Result::ok).map(|nla| usize::from(nla.length()))
    {
        let (header, value) = rest[..length].split_at(4);
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        match (kind, <[u8; 4]>::try_from(value)) {
            (NFULA_PAYLOAD, _) => message.packet = value,
            (NFULA_PREFIX, _) => message.prefix = std::str::from_utf8(value).unwrap_or_default(),
            (NFULA_SEQ, Ok(number)) => message.number = Some(u32::from_be_bytes(number)),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut a = (4 + value.len() as u16).to_ne_bytes().to_vec();
        a.extend(kind.to_ne_bytes());
        a.extend(value);
        a.resize(a.len().next_multiple_of(4), 0);
        a
    }

    fn datagram(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        let payload = [vec![2, 0, 0, 0], attributes.concat()].concat();
        let mut m = (16 + payload.len() as u32).to_ne_bytes().to_vec();
        m.extend(kind.to_ne_bytes());
        m.extend([0; 10]);
        m.extend(payload);
        m
    }

    /// Every message of a datagram is read, whatever stands between its attributes.
    #[test]
    fn reads_every_message() {
        let of = |number: u32| {
            datagram(
                PACKET,
                &[
                    attribute(1, &[8, 0, 0, 0]),
                    attribute(NFULA_PREFIX, b"nf_ct_proto_6: invalid new \0"),
                    attribute(NFULA_PAYLOAD, &[0x45, 1, 2]),
                    attribute(NFULA_SEQ, &number.to_be_bytes()),
                ],
            )
        };
        let data = [of(7), datagram(3, &[]), of(8)].concat();
        let read: Vec<_> = messages(&data).collect();
        assert_eq!(read.iter().map(|m| m.number).collect::<Vec<_>>(), [Some(7), Some(8)]);
        assert_eq!(read[1].prefix, "nf_ct_proto_6: invalid new \0");
        assert_eq!(read[1].packet, [0x45, 1, 2]);
    }

    /// A group that is taken, a kernel without the subsystem, and anything else each have a line of
    /// their own, which says what to do.
    #[test]
    fn refusals_are_told_apart() {
        let said = |errno: Errno| refused(NetlinkError::Refused(errno.into())).to_string();
        assert!(said(Errno::EPERM).contains("somebody else listens on NFLOG group 0"));
        assert!(said(Errno::EBUSY).contains("somebody else listens on NFLOG group 0"));
        assert!(
            said(Errno::EOPNOTSUPP).contains("no nfnetlink_log")
                && said(Errno::EINVAL).contains("load the module")
        );
        assert!(said(Errno::ENOMEM).starts_with("netlink refused: "));
    }

    proptest::proptest! {
        /// No bytes make it panic or run on.
        #[test]
        fn any_bytes(mut data: Vec<u8>, length in 0u32..200, at in 0usize..64, with: u8) {
            proptest::prop_assert!(messages(&data).count() <= data.len() / 16);
            if data.len() >= 16 {
                data[..4].copy_from_slice(&length.to_ne_bytes());
                data[4..6].copy_from_slice(&PACKET.to_ne_bytes());
                let _ = messages(&data).count();
            }
            let mut whole = datagram(PACKET, &[attribute(9, &[1; 20]), attribute(12, &[0; 4])]);
            let at = at % whole.len();
            whole[at] = with;
            let _ = messages(&whole).count();
        }
    }
}
