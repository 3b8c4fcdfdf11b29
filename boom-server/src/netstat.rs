//! The kernel's own counts of handshakes.

/// Segments that reset a handshake that TCP had not completed, in this network namespace
/// since it began (`LINUX_MIB_EMBRYONICRSTS`, tcp_check_req()). 0 where the kernel does not
/// tell: it explains nothing then.
///
/// A raw socket sees the handshake's last segment before TCP does
/// (ip_protocol_deliver_rcu()), so that the answer to a segment forged upon it can be there
/// first.
pub(crate) fn embryonic_resets() -> u64 {
    tcp_ext("EmbryonicRsts").unwrap_or_default()
}

/// SYNs and SYN-ACKs that were sent again (`LINUX_MIB_TCPSYNRETRANS`, tcp_rtx_synack()).
pub(crate) fn syn_retransmissions() -> u64 {
    tcp_ext("TCPSynRetrans").unwrap_or_default()
}

/// Retransmission timers that ran out (`LINUX_MIB_TCPTIMEOUTS`, tcp_retransmit_timer()).
pub(crate) fn timeouts() -> Option<u64> {
    tcp_ext("TCPTimeouts")
}

fn tcp_ext(name: &str) -> Option<u64> {
    counter(&std::fs::read_to_string("/proc/net/netstat").ok()?, "TcpExt:", name)
}

/// A line of names is followed by the line of their values (netstat_seq_show()).
fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|l| l.split(' ').next() == Some(group));
    let at = lines.next()?.split(' ').position(|n| n == name)?;
    lines.next()?.split(' ').nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter is found by its name, in its group.
    #[test]
    fn a_counter_has_a_name() {
        let text =
            "TcpExt: SyncookiesSent EmbryonicRsts\nTcpExt: 7 3\nIpExt: InNoRoutes\nIpExt: 9\n";
        assert_eq!(counter(text, "TcpExt:", "EmbryonicRsts"), Some(3));
        assert_eq!(counter(text, "IpExt:", "InNoRoutes"), Some(9));
        assert_eq!(counter(text, "IpExt:", "EmbryonicRsts"), None);
        assert_eq!(counter("TcpExt: EmbryonicRsts\nTcpExt: \n", "TcpExt:", "EmbryonicRsts"), None);
        assert_eq!(counter("TcpExt: EmbryonicRsts", "TcpExt:", "EmbryonicRsts"), None);
    }
}
