//! TCP's checksum: whether a received segment is undamaged.
//!
//! A packet from the same host has often not been summed yet when a raw socket
//! sees it: its checksum field then holds the sum of the pseudo-header alone
//! (CHECKSUM_PARTIAL, linux/skbuff.h), as it does after segments were merged.

use std::net::IpAddr;
use std::ops::Range;

use etherparse::checksum::Sum16BitWords;

use crate::segment::Segment;

const TCP: u8 = 6;
/// Where TCP's header has it.
const FIELD: Range<usize> = 16..18;

/// The sum of the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1).
fn pseudo(addresses: Sum16BitWords, protocol: u8, length: usize) -> Sum16BitWords {
    addresses.add_slice(&(u32::from(protocol) + length as u32).to_be_bytes())
}

fn addresses(src: IpAddr, dst: IpAddr) -> Sum16BitWords {
    let sum = Sum16BitWords::new();
    match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum.add_slice(&s.octets()).add_slice(&d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum.add_slice(&s.octets()).add_slice(&d.octets()),
        _ => sum,
    }
}

/// A sum as a checksum field holds it.
fn field(sum: &Sum16BitWords) -> [u8; 2] {
    (!sum.ones_complement()).to_ne_bytes()
}

/// True when the checksum of `segment` is right or was left to be computed.
/// `bytes` is what was captured, its end being the segment's, of a packet of
/// `wire_len` octets; one that was cut short cannot be checked and is taken.
#[must_use]
pub fn acceptable(segment: &Segment<'_>, bytes: &[u8], wire_len: usize) -> bool {
    let header = 20 + segment.options.len();
    let length = header + segment.payload_len as usize;
    if bytes.len() < wire_len {
        return true;
    }
    // The IP header before it, and padding behind it, are not the segment's.
    let start = match segment.src.ip() {
        IpAddr::V4(_) => bytes.first().map_or(0, |b| usize::from(b & 0xf) * 4),
        IpAddr::V6(_) => 0,
    };
    let Some(tcp) = bytes.get(start..start + length) else { return false };
    let pseudo = pseudo(addresses(segment.src.ip(), segment.dst.ip()), TCP, length);
    tcp[FIELD] == field(&pseudo) || pseudo.add_slice(tcp).ones_complement() == 0
}

/// Computes the checksum of a TCP or UDP packet, from its IP header on, where it was left to be
/// computed: what goes back to the network from a packet socket needs it.
pub fn complete(packet: &mut [u8]) {
    const UDP: u8 = 17;
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let (header, end, protocol, addresses) = match packet.first().map(|b| b >> 4) {
        Some(4) if packet.len() >= 20 => {
            (usize::from(packet[0] & 0xf) * 4, word(2), packet[9], &packet[12..20])
        }
        Some(6) if packet.len() >= 40 => (40, 40 + word(4), packet[6], &packet[8..40]),
        _ => return,
    };
    let addresses = Sum16BitWords::new().add_slice(addresses);
    let Some(segment) = packet.get_mut(header..end) else { return };
    let at = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return,
    };
    let pseudo = pseudo(addresses, protocol, segment.len());
    if segment.get(at..at + 2).is_some_and(|left| *left == field(&pseudo)) {
        // The field holds the pseudo-header's sum, so that this is the sum of both.
        let sum = Sum16BitWords::new().add_slice(segment);
        // RFC 768: UDP's zero means that there is none, and is sent as all ones.
        let checksum = match protocol {
            UDP => sum.to_ones_complement_with_no_zero(),
            _ => sum.ones_complement(),
        };
        segment[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Emit, Flags};
    use crate::seq::Seq;
    use proptest::prelude::*;
    use std::net::SocketAddr;

    fn packet(six: bool, payload: &[u8]) -> (Vec<u8>, SocketAddr, SocketAddr) {
        let at = |last: u16, port| {
            if six {
                SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, last], port))
            } else {
                SocketAddr::from(([198, 18, 0, last as u8], port))
            }
        };
        let (src, dst) = (at(2, 40000), at(1, 9000));
        let mut buf = Vec::new();
        Emit {
            src,
            dst,
            class: 0,
            seq: Seq(0xfffe_0102),
            ack: Seq(0x9abc_def0),
            flags: Flags::RST,
            window: 1,
            options: &[1, 1, 1, 1],
            payload,
        }
        .packet(&mut buf);
        // An IPv6 raw socket does not see the IP header.
        (if six { buf.split_off(40) } else { buf }, src, dst)
    }

    fn read(six: bool, b: &[u8], src: SocketAddr, dst: SocketAddr) -> Segment<'_> {
        if six {
            Segment::parse_tcp(src.ip(), dst.ip(), b, b.len()).unwrap()
        } else {
            Segment::parse_ipv4(b, b.len()).unwrap()
        }
    }

    proptest! {
        /// A right checksum and one left to be computed are taken; a damaged one is not.
        #[test]
        fn tells_damage(six: bool, payload in proptest::collection::vec(any::<u8>(), 0..200), damage in 1u16..0xffff) {
            let (mut bytes, src, dst) = packet(six, &payload);
            let at = if six { 16 } else { 36 };
            prop_assert!(acceptable(&read(six, &bytes, src, dst), &bytes, bytes.len()));
            let right = u16::from_be_bytes([bytes[at], bytes[at + 1]]);

            let s = read(six, &bytes, src, dst);
            let length = 24 + payload.len();
            let partial = field(&pseudo(addresses(s.src.ip(), s.dst.ip()), TCP, length));
            bytes[at..at + 2].copy_from_slice(&partial);
            prop_assert!(acceptable(&read(six, &bytes, src, dst), &bytes, bytes.len()));

            let wrong = right.wrapping_add(damage);
            // 0 and 0xffff are the same number in one's complement.
            prop_assume!(wrong.to_be_bytes() != partial && !matches!((right, wrong), (0, 0xffff) | (0xffff, 0)));
            bytes[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
            prop_assert!(!acceptable(&read(six, &bytes, src, dst), &bytes, bytes.len()));
        }

        /// A checksum that was left to be computed is computed, any other is let be.
        #[test]
        fn completes_what_was_left(six: bool, payload in proptest::collection::vec(any::<u8>(), 0..200), other: u16) {
            let (src, dst) = { let (_, src, dst) = packet(six, &[]); (src, dst) };
            let emit = Emit { src, dst, class: 0, seq: Seq(1), ack: Seq(2), flags: Flags::ACK, window: 1, options: &[], payload: &payload };
            let mut right = Vec::new();
            emit.packet(&mut right);
            let header = if six { 40 } else { 20 };
            let partial = field(&pseudo(addresses(src.ip(), dst.ip()), TCP, right.len() - header));
            for field in [partial, other.to_be_bytes()] {
                let mut bytes = right.clone();
                bytes[header + 16..header + 18].copy_from_slice(&field);
                let given = bytes.clone();
                complete(&mut bytes);
                prop_assert_eq!(&bytes, if field == partial { &right } else { &given });
            }
        }

        /// Nothing makes it panic.
        #[test]
        fn completes_anything(mut bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            complete(&mut bytes);
        }
    }

    /// A sum of zero stays so in TCP, as `Emit` writes it; in UDP it is sent as all ones (RFC 768).
    #[test]
    fn a_sum_of_zero_is_sent_as_its_protocol_has_it() {
        for (protocol, at, sent) in [(6, 16, 0), (17, 6, 0xffff)] {
            let mut packet = vec![0; 44];
            packet[0] = 0x45;
            packet[3] = 44;
            packet[9] = protocol;
            let partial = u16::from(protocol) + 24;
            packet[20 + at..22 + at].copy_from_slice(&partial.to_be_bytes());
            // The rest of the sum, so that all is 0xffff, whose complement is zero.
            packet[42..].copy_from_slice(&(!partial).to_be_bytes());
            complete(&mut packet);
            assert_eq!(packet[20 + at..22 + at], u16::to_be_bytes(sent));
        }
    }

    /// A segment that the capture cut short is taken as it is.
    #[test]
    fn what_was_cut_cannot_be_checked() {
        let (mut bytes, _, _) = packet(false, &[7; 100]);
        bytes[36] ^= 1;
        let s = Segment::parse_ipv4(&bytes[..60], bytes.len()).unwrap();
        assert!(acceptable(&s, &bytes[..60], bytes.len()));
        assert!(!acceptable(&s, &bytes, bytes.len()));
    }
}
