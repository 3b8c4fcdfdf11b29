//! A socket of `NETLINK_NETFILTER`, and the messages in a datagram.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    DefaultNla, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_netfilter::NetfilterMessage;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// The kernel answers at once or never.
const PATIENCE_S: i64 = 2;
/// A dump's datagrams have up to 32 KiB (`netlink_dump()`).
const BUFFER: usize = 64 << 10;

/// Netlink did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A system call failed.
    #[error("{operation} of a netlink socket: {source}")]
    Io {
        /// Which.
        operation: &'static str,
        /// Why; `ENOBUFS` where messages were lost.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("netlink refused: {0}")]
    Refused(io::Error),
    /// A message in another form.
    #[error("unexpected netlink message: {0}")]
    Message(String),
}

impl NetlinkError {
    /// The kernel's errno, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } | Self::Refused(source) => source.raw_os_error(),
            Self::Message(_) => None,
        }
    }
}

fn failed(operation: &'static str) -> impl Fn(nix::Error) -> NetlinkError {
    move |e| NetlinkError::Io { operation, source: e.into() }
}

/// A message of one of netfilter's subsystems, or the end of an answer.
pub type Message = NetlinkMessage<NetfilterMessage>;

/// Every message of one datagram.
pub fn messages(mut data: &[u8]) -> impl Iterator<Item = Result<Message, NetlinkError>> {
    std::iter::from_fn(move || {
        if data.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(data)
            .map(|b| b.length() as usize)
            .and_then(|length| Ok((length, Message::deserialize(data)?)));
        Some(match message {
            Ok((length, message)) => {
                data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
                Ok(message)
            }
            Err(e) => {
                data = &[];
                Err(NetlinkError::Message(e.to_string()))
            }
        })
    })
}

/// The number of an attribute, in network byte order; none where it has no octet, or more than eight.
pub(crate) fn number(attribute: &DefaultNla) -> Option<u64> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    let is_number = (1..=8).contains(&value.len());
    is_number.then(|| value.iter().fold(0, |n, b| (n << 8) | u64::from(*b)))
}

/// One socket, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    seq: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket whose reads wait two seconds at most.
    pub fn open() -> Result<Self, NetlinkError> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(failed("opening"))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("binding"))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_S))
            .map_err(failed("setting up"))?;
        Ok(Self { fd, seq: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends one request with `flags` besides `NLM_F_REQUEST`, and waits for nothing.
    pub fn send(&mut self, message: NetfilterMessage, flags: u16) -> Result<(), NetlinkError> {
        self.seq = self.seq.wrapping_add(1);
        let mut message = Message::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.seq;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        // Unconnected: the kernel is the peer of who names none.
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(failed("writing"))?;
        Ok(())
    }

    /// Sends one request with `flags` and hands on what is answered, until the answer is complete:
    /// with `NLM_F_ACK` by an acknowledgment, with `NLM_F_DUMP` by `NLMSG_DONE`.
    pub fn ask(
        &mut self,
        message: NetfilterMessage,
        flags: u16,
        mut each: impl FnMut(NetfilterMessage),
    ) -> Result<(), NetlinkError> {
        self.send(message, flags)?;
        loop {
            let n = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())
                .map_err(failed("reading"))?;
            for message in messages(&self.buffer[..n]) {
                let message = message?;
                if message.header.sequence_number != self.seq {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(m) => each(m),
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(e) => return Err(NetlinkError::Refused(e.to_io())),
                    // netlink_dump_done(): the errno with which a dump ended.
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        let e = io::Error::from_raw_os_error(done.code.wrapping_neg());
                        return Err(NetlinkError::Refused(e));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
