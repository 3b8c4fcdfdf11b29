//! Makes conntrack forget: the one message of ctnetlink that the lab sends.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

use canary_testbed::evidence::EvidenceError;

// include/uapi/linux/netlink.h, netfilter/nfnetlink.h, nfnetlink_conntrack.h.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;

/// struct nlmsghdr and struct nfgenmsg (AF_UNSPEC): without a tuple it means
/// every entry (ctnetlink_del_conntrack()).
fn flush_message() -> [u8; 20] {
    let mut m = [0; 20];
    m[0..4].copy_from_slice(&20_u32.to_ne_bytes());
    m[4..6].copy_from_slice(&(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE).to_ne_bytes());
    m[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    m[8..12].copy_from_slice(&1_u32.to_ne_bytes());
    m
}

/// The kernel's answer: struct nlmsghdr, then struct nlmsgerr with a negative errno.
fn answer(message: &[u8]) -> io::Result<()> {
    let kind = message.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let code = message.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        _ => Err(io::Error::other("unexpected netlink message")),
    }
}

/// Forgets every entry of this thread's network namespace.
pub fn flush() -> Result<(), EvidenceError> {
    (|| {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(10))?;
        // Unbound and unconnected: the kernel gives it an address and is its peer.
        send(socket.as_raw_fd(), &flush_message(), MsgFlags::empty())?;
        let mut bytes = [0; 512];
        let n = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
        answer(&bytes[..n])
    })()
    .map_err(|source: io::Error| EvidenceError::Io {
        what: "delete conntrack entries".to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal carries the kernel's errno, an acknowledgment none, anything else is an error.
    #[test]
    fn answers_are_read() {
        let mut m = flush_message();
        m[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert!(answer(&m).is_ok());
        m[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(answer(&m).unwrap_err().raw_os_error(), Some(1));
        assert!(answer(&m[..18]).is_err());
        assert!(answer(&flush_message()).is_err());
    }
}
