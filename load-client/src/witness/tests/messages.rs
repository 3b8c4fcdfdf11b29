//! The kernel's messages, damaged: what stands in a datagram of NFLOG, and what stands in a text.
//!
//! `WITNESS_CASES` sets how many; ten million by `make fuzz-captures`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::witness::attribute::Look;
use crate::witness::core::{Surroundings, Witness};
use crate::witness::nflog::messages;
use crate::witness::reason;
use canary_conntrack::table::{Entry, Status, TcpState, Tuple};
use canary_record::result::witness::Reason;
use canary_wire::segment::{Emit, Flags};
use canary_wire::seq::Seq;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// Texts of several kernels, and of others than conntrack.
const TEXTS: [&str; 12] = [
    "nf_ct_proto_6: SEQ is over upper bound 1909026095 (over the window of the receiver) ",
    "nf_ct_proto_6: SEQ is over the upper bound (over the window of the receiver) ",
    "nf_ct_proto_6: SEQ is under lower bound 3587159464 (already ACKed data retransmitted) ",
    "nf_ct_proto_6: ACK is over upper bound 4294967295 (ACKed data not seen yet) ",
    "nf_ct_proto_6: invalid tcp flag combination ",
    "nf_ct_proto_6: invalid new ",
    "nf_ct_proto_6: packet (index 3) in dir 1 invalid, state SYN_SENT ",
    "nf_ct_proto_6: packet (index 2) in dir 1 ignored, state SYN_SENT ",
    "nf_ct_tcp: 12 bytes more than expected ",
    "nf_ct_proto_6: bad checksum ",
    "nf_ct_proto_17: bad checksum ",
    "TRACE: raw:PREROUTING:policy:2 ",
];
const ENDS: [[&str; 2]; 2] =
    [["198.18.66.20:9000", "198.18.65.10:40000"], ["[fd00:66::20]:9000", "[fd00:65::10]:40000"]];

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut a = (4 + value.len() as u16).to_ne_bytes().to_vec();
    a.extend(kind.to_ne_bytes());
    a.extend(value);
    a.resize(a.len().next_multiple_of(4), 0);
    a
}

/// One message as nfnetlink_log sends it: header, `nfgenmsg`, attributes.
fn message(number: u32, text: &str, packet: &[u8]) -> Vec<u8> {
    let attributes = [
        attribute(1, &[8, 0, 0, 0]),
        attribute(10, format!("{text}\0").as_bytes()),
        attribute(9, packet),
        attribute(12, &number.to_be_bytes()),
    ];
    let payload = [vec![2, 0, 0, 0], attributes.concat()].concat();
    let mut m = (16 + payload.len() as u32).to_ne_bytes().to_vec();
    m.extend((4_u16 << 8).to_ne_bytes());
    m.extend([0; 10]);
    m.extend(payload);
    m
}

/// A segment, what the kernel says of it, and the reset that answers it.
fn datagram(ends: [&str; 2], text: &str) -> Vec<u8> {
    let [server, client]: [SocketAddr; 2] = ends.map(|e| e.parse().unwrap());
    let packet = |src, dst, seq, ack, flags| {
        let (mut buf, seq, ack) = (Vec::new(), Seq(seq), Seq(ack));
        let emit = Emit {
            src,
            dst,
            class: 0,
            seq,
            ack,
            flags,
            window: 502,
            options: &[],
            payload: b"boom",
        };
        assert!(emit.packet(&mut buf));
        buf
    };
    let data = packet(server, client, 7, 1008, Flags::PSH.with(Flags::ACK));
    let reset = packet(client, server, 1008, 0, Flags::RST);
    [message(0, text, &data), message(1, TEXTS[5], &reset)].concat()
}

struct Around;

impl Surroundings for Around {
    fn look(&mut self, tuple: Tuple) -> Look {
        Look::Found(Entry {
            original: Tuple {
                source: tuple.destination,
                destination: "198.19.0.10:80".parse().unwrap(),
            },
            reply: tuple,
            status: Status::empty(),
            state: Some(TcpState::Established),
            timeout: Some(Duration::from_secs(9)),
        })
    }

    fn here(&mut self, _: IpAddr) -> bool {
        false
    }
}

/// Garbage in a datagram makes neither a panic nor an endless run, and every message is counted once.
#[test]
fn garbage_in_a_datagram_is_survived() {
    let cases = std::env::var("WITNESS_CASES").map_or(20_000, |n| n.parse::<u64>().unwrap());
    let seeds: Vec<_> =
        ENDS.iter().flat_map(|ends| TEXTS.map(|text| datagram(*ends, text))).collect();
    let mut random = StdRng::seed_from_u64(17);
    let (mut witness, mut heard, mut told) = (Witness::default(), 0_u64, 0);
    for n in 0..cases {
        let mut bytes = seeds[(n % seeds.len() as u64) as usize].clone();
        match random.random_range(0..5) {
            // Wrong octets; the first message's headers oftener than their share.
            0 | 1 => {
                for _ in 0..random.random_range(1..8) {
                    let within = if random.random() { bytes.len() } else { 48 };
                    let at = random.random_range(0..within);
                    bytes[at] = random.random();
                }
            }
            2 => bytes.truncate(random.random_range(0..bytes.len())),
            3 => {
                let at = random.random_range(0..bytes.len());
                let end = (at + random.random_range(1..200)).min(bytes.len());
                random.fill_bytes(&mut bytes[at..end]);
            }
            // Whole: what is ended after garbage is still told.
            _ => {}
        }
        if n % 1024 == 0 {
            (witness, heard) = (Witness::default(), 0);
        }
        let now = Duration::from_micros(n * 20);
        let mut here = 0;
        for m in messages(&bytes) {
            witness.message(now, (m.number, m.prefix, m.packet), &mut Around);
            here += 1;
        }
        assert!(here <= bytes.len() / 16);
        heard += here as u64;
        assert_eq!(witness.matcher.found.messages.received, heard);
        witness.tick(now, n % 1024 == 1023, &mut Around);
        told += witness.told.drain(..).count() as u64;
    }
    assert!(told > 0, "nothing whole was left");
}

/// Garbage in a text has one class, and its bound is what stands there.
#[test]
fn garbage_in_a_text_is_survived() {
    let cases = std::env::var("WITNESS_CASES").map_or(20_000, |n| n.parse::<u64>().unwrap());
    let mut random = StdRng::seed_from_u64(18);
    let mut texts = reason::Texts::default();
    let mut classes = std::collections::BTreeSet::new();
    for n in 0..cases {
        let mut bytes = TEXTS[(n % TEXTS.len() as u64) as usize].as_bytes().to_vec();
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        bytes.truncate(random.random_range(1..=bytes.len()));
        let Ok(prefix) = std::str::from_utf8(&bytes) else { continue };
        classes.insert(Reason::of(prefix));
        if let Some(words) = reason::read(prefix) {
            assert!(prefix.contains(words.text), "{prefix:?}");
            assert!(
                words.bound.is_none_or(|b| words.text.contains(&b.0.to_string())),
                "{prefix:?}"
            );
            classes.insert(words.reason);
            texts.note(words.text);
        }
    }
    assert!(classes.len() > 5, "{classes:?}");
    assert!(texts.counts().count() <= 65);
}
