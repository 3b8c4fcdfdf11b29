//! A captured packet's bytes as a TCP segment, cut short or not.

use etherparse::{EtherType, LaxNetSlice, LaxSlicedPacket};

use crate::segment::{Segment, SegmentError};

// The link layers that people capture on (pcap-linktype(7)).
const NULL: u32 = 0;
const ETHERNET: u32 = 1;
const RAW: u32 = 101;
const LOOP: u32 = 108;
const LINUX_SLL: u32 = 113;
const IPV4: u32 = 228;
const IPV6: u32 = 229;
const LINUX_SLL2: u32 = 276;

/// Reads an IP packet of either family, IPv6 extension headers included.
pub fn segment(bytes: &[u8]) -> Result<Segment<'_>, SegmentError> {
    let truncated = SegmentError::Truncated { have: bytes.len(), need: 40 };
    let packet = LaxSlicedPacket::from_ip(bytes).map_err(|_| truncated)?;
    of(packet.net.as_ref().ok_or(truncated)?).map(|(segment, _)| segment)
}

/// Reads a packet of this link layer: its segment, and its TTL or hop limit. None where the link
/// layer is not known here.
#[must_use]
pub fn captured(link: u32, bytes: &[u8]) -> Option<Result<(Segment<'_>, u8), SegmentError>> {
    let truncated = SegmentError::Truncated { have: bytes.len(), need: 40 };
    let kind = |at: usize, begin: usize| {
        let kind = bytes.get(at..at + 2).ok_or(truncated)?;
        let kind = EtherType(u16::from_be_bytes([kind[0], kind[1]]));
        Ok(LaxSlicedPacket::from_ether_type(kind, bytes.get(begin..).ok_or(truncated)?))
    };
    let ip = |begin: usize| {
        LaxSlicedPacket::from_ip(bytes.get(begin..).ok_or(truncated)?).map_err(|_| truncated)
    };
    let packet = match link {
        ETHERNET => LaxSlicedPacket::from_ethernet(bytes).map_err(|_| truncated),
        // `tcpdump -i any`: the protocol stands at 14 of 16 octets, or first of 20.
        LINUX_SLL => kind(14, 16),
        LINUX_SLL2 => kind(0, 20),
        RAW | IPV4 | IPV6 => ip(0),
        // An address family in either byte order; the IP header tells as well.
        NULL | LOOP => ip(4),
        _ => return None,
    };
    Some(packet.and_then(|p| of(p.net.as_ref().ok_or(SegmentError::Protocol(0))?)))
}

/// Reads what follows the link layer.
fn of<'a>(net: &LaxNetSlice<'a>) -> Result<(Segment<'a>, u8), SegmentError> {
    match net {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            let total = usize::from(header.total_len());
            let payload = ip.payload();
            // What a segmentation offload hands to a capture may say 0 (Linux's BIG TCP).
            let wire = total.checked_sub(header.slice().len()).filter(|_| total > 0);
            let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
            Ok((tcp(src, dst, payload, wire)?, header.ttl()))
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (payload, length) = (ip.payload(), usize::from(header.payload_length()));
            let wire = length.checked_sub(ip.extensions().slice().len()).filter(|_| length > 0);
            let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
            Ok((tcp(src, dst, payload, wire)?, header.hop_limit()))
        }
        LaxNetSlice::Arp(_) => Err(SegmentError::Version(0)),
    }
}

fn tcp<'a>(
    src: std::net::IpAddr,
    dst: std::net::IpAddr,
    payload: &etherparse::LaxIpPayloadSlice<'a>,
    wire: Option<usize>,
) -> Result<Segment<'a>, SegmentError> {
    if payload.ip_number != etherparse::IpNumber::TCP {
        return Err(SegmentError::Protocol(payload.ip_number.0));
    }
    if payload.fragmented {
        return Err(SegmentError::Fragment);
    }
    Segment::parse_tcp(src, dst, payload.payload, wire.unwrap_or(payload.payload.len()))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::segment::{Emit, Flags};
    use crate::seq::Seq;

    fn packet(ends: (&str, &str), payload: &[u8]) -> Vec<u8> {
        let end = |s: &str| s.parse::<SocketAddr>().unwrap();
        let mut buf = Vec::new();
        assert!(
            Emit {
                src: end(ends.0),
                dst: end(ends.1),
                class: 0,
                seq: Seq(7),
                ack: Seq(9),
                flags: Flags::ACK,
                window: 1,
                options: &[1; 12],
                payload,
            }
            .packet(&mut buf)
        );
        buf
    }

    const V6: (&str, &str) = ("[fd00:66::20]:9000", "[fd00:65::10]:4000");

    /// Both families; the length on the wire counts, not that of the capture.
    #[test]
    fn a_cut_packet_keeps_its_length() {
        for ends in [("198.18.66.20:9000", "198.18.65.10:4000"), V6] {
            let whole = packet(ends, &[0; 900]);
            for cut in [whole.len(), 100, 72] {
                let s = segment(&whole[..cut]).unwrap();
                assert_eq!((s.src, s.dst), (ends.0.parse().unwrap(), ends.1.parse().unwrap()));
                assert_eq!((s.seq, s.payload_len), (Seq(7), 900), "{cut}");
            }
        }
    }

    /// Extension headers before the segment are passed over, and are no data of it.
    #[test]
    fn extension_headers_are_passed_over() {
        let whole = packet(V6, b"abc");
        let mut extended = whole.clone();
        // Hop-by-hop (0) and destination options (60), eight octets each, of PadN.
        extended[6] = 0;
        let length = whole.len() - 40 + 16;
        extended[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        let pad = |next| [next, 0, 1, 4, 0, 0, 0, 0];
        extended.splice(40..40, [pad(60), pad(6)].concat());
        let (a, b) = (segment(&whole).unwrap(), segment(&extended).unwrap());
        assert_eq!((a.seq, a.ack, a.payload_len), (b.seq, b.ack, b.payload_len));
    }

    proptest::proptest! {
        /// No bytes make it panic, and a packet cut anywhere is the same segment or none.
        #[test]
        fn any_bytes(bytes: Vec<u8>, cut in 0usize..120, at in 0usize..60, with: u8) {
            let _ = segment(&bytes);
            let whole = packet(V6, &[1; 48]);
            if let Ok(s) = segment(&whole[..cut.min(whole.len())]) {
                proptest::prop_assert_eq!((s.seq, s.payload_len), (Seq(7), 48));
            }
            let mut dirty = whole;
            dirty[at] = with;
            let _ = segment(&dirty);
        }
    }
}
