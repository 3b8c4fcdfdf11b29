use super::*;
use crate::checksum;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

fn v4(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 18, 0, last], port))
}

fn v6(last: u16, port: u16) -> SocketAddr {
    SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, last], port))
}

fn emit<'a>(src: SocketAddr, dst: SocketAddr, options: &'a [u8], payload: &'a [u8]) -> Emit<'a> {
    Emit {
        src,
        dst,
        class: 0,
        seq: Seq(0x0102_0304),
        ack: Seq(0xfffe_fdfc),
        flags: Flags::PSH.with(Flags::ACK),
        window: 502,
        options,
        payload,
    }
}

/// A SYN of Linux 6.18, captured with tcpdump on a loopback device (hence the large MSS).
const SYN: [u8; 60] = [
    0x45, 0x00, 0x00, 0x3c, 0xe4, 0xbb, 0x40, 0x00, 0x40, 0x06, 0xc9, 0xd8, 0xc6, 0x12, 0x00, 0x02,
    0xc6, 0x12, 0x00, 0x01, 0x9c, 0x40, 0x23, 0x28, 0x21, 0x52, 0x27, 0xa4, 0x00, 0x00, 0x00, 0x00,
    0xa0, 0x02, 0xff, 0xd7, 0x8c, 0x56, 0x00, 0x00, 0x02, 0x04, 0xff, 0xd7, 0x04, 0x02, 0x08, 0x0a,
    0xd7, 0x17, 0x5c, 0x54, 0x00, 0x00, 0x00, 0x00, 0x01, 0x03, 0x03, 0x0a,
];

/// A Linux SYN is read field by field.
#[test]
fn reads_a_linux_syn() {
    let s = Segment::parse_ipv4(&SYN, SYN.len()).unwrap();
    assert_eq!((s.src, s.dst), (v4(2, 40000), v4(1, 9000)));
    assert_eq!(s.flags, Flags::SYN);
    assert_eq!((s.seq, s.payload_len, s.seg_len()), (Seq(0x2152_27a4), 0, 1));
    let o = s.options();
    assert_eq!((o.mss, o.window_scale, o.sack_permitted), (Some(65495), Some(10), true));
    assert_eq!(o.timestamps, Some((0xd717_5c54, 0)));
}

/// Every truncation of a segment is an error that says so, never a panic or a guess.
#[test]
fn every_truncation_is_an_error() {
    for n in 0..SYN.len() {
        assert!(Segment::parse_ipv4(&SYN[..n], SYN.len()).is_err(), "{n} bytes");
    }
}

/// A capture that is cut behind the headers still tells the length on the wire.
#[test]
fn payload_length_survives_a_cut_capture() {
    let mut buf = Vec::new();
    emit(v4(1, 9000), v4(2, 40000), &[], &[7; 1000]).packet(&mut buf);
    let s = Segment::parse_ipv4(&buf[..60], buf.len()).unwrap();
    assert_eq!(s.payload_len, 1000);
}

/// Link padding behind the IP total length is not payload.
#[test]
fn link_padding_is_not_payload() {
    let mut buf = Vec::new();
    emit(v4(1, 9000), v4(2, 40000), &[], &[]).packet(&mut buf);
    buf.resize(60, 0xee);
    assert_eq!(Segment::parse_ipv4(&buf, buf.len()).unwrap().payload_len, 0);
}

/// Wrong versions, protocols, fragments and header lengths are told apart.
#[test]
fn refuses_what_is_not_tcp() {
    let change = |at: usize, to: u8| {
        let mut b = SYN;
        b[at] = to;
        Segment::parse_ipv4(&b, b.len()).map(|_| ())
    };
    assert_eq!(change(0, 0x65), Err(SegmentError::Version(6)));
    assert_eq!(change(9, 17), Err(SegmentError::Protocol(17)));
    assert_eq!(change(7, 1), Err(SegmentError::Fragment));
    assert_eq!(change(0, 0x44), Err(SegmentError::HeaderLength(16)));
    assert_eq!(change(32, 0x40), Err(SegmentError::HeaderLength(16)));
    assert_eq!(change(32, 0xf0), Err(SegmentError::HeaderLength(60)));
}

/// Mixed families cannot be sent, and nothing is left in the buffer.
#[test]
fn mixed_families_emit_nothing() {
    let mut buf = vec![1, 2, 3];
    assert!(!emit(v4(1, 1), v6(2, 2), &[], &[]).packet(&mut buf));
    assert!(buf.is_empty());
}

/// An IPv4-mapped peer and the IPv4 peer are one connection.
#[test]
fn mapped_addresses_are_canonical() {
    let mapped = SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0xc612, 2], 40000));
    assert_eq!(FourTuple::new(v4(1, 9000), mapped).remote, v4(2, 40000));
}

/// Options that lie about their length end the list without a panic.
#[test]
fn malformed_options_are_skipped() {
    for bytes in [&[2u8][..], &[2, 0], &[2, 1, 5], &[2, 4, 5], &[8, 40, 1], &[3, 3]] {
        assert_eq!(Options::parse(bytes), Options::default(), "{bytes:?}");
    }
    assert_eq!(Options::parse(&[1, 1, 3, 3, 20]).window_scale, Some(14));
    let dsack = Options::parse(&[1, 1, 5, 10, 0, 0, 0, 9, 0, 0, 0, 10]);
    assert_eq!(dsack.sack, Some((Seq(9), Seq(10))));
}

fn any_emit() -> impl Strategy<Value = (bool, u32, u32, u8, u16, Vec<u8>, Vec<u8>)> {
    let options = proptest::collection::vec(any::<u8>(), 0..=MAX_OPTIONS);
    let payload = proptest::collection::vec(any::<u8>(), 0..1400);
    (any::<bool>(), any::<u32>(), any::<u32>(), any::<u8>(), any::<u16>(), options, payload)
}

proptest! {
    /// What is emitted, in either family, with any flags, into a dirty buffer,
    /// is read back alike by us and by etherparse, which also finds the checksums right.
    #[test]
    fn emit_agrees_with_etherparse((six, seq, ack, flags, window, options, payload) in any_emit()) {
        let (src, dst) = if six { (v6(1, 9000), v6(2, 40000)) } else { (v4(1, 9000), v4(2, 40000)) };
        let e = Emit {
            src, dst, class: 4, seq: Seq(seq), ack: Seq(ack), flags: Flags(flags), window,
            options: &options, payload: &payload,
        };
        let mut buf = vec![0xa5; 2000];
        prop_assert!(e.packet(&mut buf));

        let sliced = SlicedPacket::from_ip(&buf).unwrap();
        let Some(TransportSlice::Tcp(t)) = sliced.transport else { panic!("not TCP") };
        prop_assert_eq!(t.sequence_number(), seq);
        prop_assert_eq!(t.acknowledgment_number(), ack);
        prop_assert_eq!(t.slice()[13], flags);
        prop_assert_eq!(t.window_size(), window);
        prop_assert_eq!(if six { buf[0] << 4 | buf[1] >> 4 } else { buf[1] }, 4);
        prop_assert_eq!(t.payload(), &payload[..]);
        prop_assert_eq!(&t.options()[..options.len()], &options[..]);
        let (tcp_at, sum) = match sliced.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let h = ip.header().to_header();
                prop_assert_eq!(h.header_checksum, h.calc_header_checksum());
                (IPV4_HEADER, t.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).unwrap())
            }
            NetSlice::Ipv6(ip) => (
                IPV6_HEADER,
                t.calc_checksum_ipv6(ip.header().source(), ip.header().destination()).unwrap(),
            ),
            NetSlice::Arp(_) => panic!("not IP"),
        };
        prop_assert_eq!(t.checksum(), sum);

        let ours = if six {
            Segment::parse_tcp(src.ip(), dst.ip(), &buf[tcp_at..], buf.len() - tcp_at)
        } else {
            Segment::parse_ipv4(&buf, buf.len())
        }.unwrap();
        prop_assert_eq!((ours.src, ours.dst), (src, dst));
        prop_assert_eq!((ours.seq, ours.ack, ours.flags), (Seq(seq), Seq(ack), Flags(flags)));
        prop_assert_eq!(ours.payload_len as usize, payload.len());
        let seen = if six { &buf[tcp_at..] } else { &buf[..] };
        prop_assert!(checksum::acceptable(&ours, seen, seen.len()));
    }

    /// A single flipped bit of the header, outside of the checksum itself, is noticed by it.
    #[test]
    fn a_flipped_bit_breaks_the_checksum(payload in proptest::collection::vec(any::<u8>(), 0..64), bit in 0usize..144) {
        let mut buf = Vec::new();
        emit(v4(1, 9000), v4(2, 40000), &[], &payload).packet(&mut buf);
        let mut completed = buf.clone();
        checksum::complete(&mut completed);
        // One in 65,536 looks as if it was left to be computed.
        prop_assume!(completed == buf);
        let bit = if bit < 128 { bit } else { bit + 16 };
        buf[IPV4_HEADER + bit / 8] ^= 1 << (bit % 8);
        if let Ok(damaged) = Segment::parse_ipv4(&buf, buf.len()) {
            prop_assert!(!checksum::acceptable(&damaged, &buf, buf.len()));
        }
    }

    /// Arbitrary bytes never panic the decoder, and what it accepts is in bounds.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), wire in 0usize..70000) {
        if let Ok(s) = Segment::parse_ipv4(&bytes, wire.max(bytes.len())) {
            prop_assert!(s.options.len() <= MAX_OPTIONS);
            let _ = s.options();
        }
        let any = IpAddr::from([0, 0, 0, 0]);
        if let Ok(s) = Segment::parse_tcp(any, any, &bytes, wire.max(bytes.len())) {
            let _ = s.options();
        }
    }
}

/// The reset that answers a segment has its numbers and no others; an application's own reset
/// and any other segment answer nothing, and a reset is not answered.
#[test]
fn a_reset_answers_one_segments_numbers() {
    let parsed = |e: Emit<'_>, check: &dyn Fn(&Segment<'_>)| {
        let mut buf = Vec::new();
        assert!(e.packet(&mut buf));
        check(&Segment::parse_ipv4(&buf, buf.len()).unwrap());
    };
    let data = Emit { payload: b"abc", ..emit(v4(2, 9000), v4(1, 4000), &[], &[]) };
    let bare = Emit { flags: Flags::default(), ..data };
    let answer =
        |seq, ack, flags| Emit { seq, ack, flags, ..emit(v4(1, 4000), v4(2, 9000), &[], &[]) };
    let both = Flags::RST.with(Flags::ACK);
    for (e, seq, ack, flags, expected) in [
        (data, data.ack, Seq(0), Flags::RST, true),
        (data, data.ack.add(1), Seq(0), Flags::RST, false),
        (data, data.ack, Seq(0), both, false),
        (data, data.ack, Seq(0), Flags::ACK, false),
        (bare, Seq(0), bare.seq.add(3), both, true),
        (bare, Seq(0), bare.seq, both, false),
        (bare, data.ack, Seq(0), Flags::RST, false),
        (Emit { flags: both, ..data }, data.ack, Seq(0), Flags::RST, false),
    ] {
        parsed(e, &|s| {
            parsed(answer(seq, ack, flags), &|r| {
                assert_eq!(s.numbers().provokes(r), expected, "{s:?} {r:?}");
            });
        });
    }
}
