use super::*;
use crate::netlink::{Message, messages};
use netlink_packet_core::{NetlinkHeader, NetlinkPayload};

fn tuple(source: &str, destination: &str) -> Tuple {
    Tuple { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

fn bytes(inner: ConntrackMessage) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.sequence_number = 1;
    let mut m = Message::new(header, NetlinkPayload::from(message(family_of(&inner), inner)));
    m.finalize();
    let mut bytes = vec![0xaa; m.buffer_len()];
    m.serialize(&mut bytes);
    bytes
}

fn family_of(message: &ConntrackMessage) -> NetfilterProtoFamily {
    match message {
        ConntrackMessage::New(_) => NetfilterProtoFamily::IPv4,
        _ => NetfilterProtoFamily::Unspec,
    }
}

fn inner(bytes: &[u8]) -> NetfilterMessage {
    match messages(bytes).next().unwrap().unwrap().payload {
        NetlinkPayload::InnerMessage(m) => m,
        other => panic!("{other:?}"),
    }
}

fn translated() -> (Tuple, Tuple) {
    let client = "198.18.1.2:40000";
    (tuple(client, "198.18.9.9:80"), tuple("198.18.2.2:9000", client))
}

fn new_entry() -> Vec<u8> {
    let (original, reply) = translated();
    bytes(ConntrackMessage::New(vec![
        ConntrackAttribute::CtaTupleOrig(original.parts()),
        ConntrackAttribute::CtaTupleReply(reply.parts()),
        ConntrackAttribute::CtaStatus(Status::Assured | Status::DstNat),
        ConntrackAttribute::CtaTimeout(86_400),
        ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![ProtoInfoTCP::State(3)])]),
        // CTA_ID, which is of no interest here.
        ConntrackAttribute::Other(DefaultNla::new(12, vec![1, 2, 3, 4])),
    ]))
}

/// An entry is read with both directions: the Service's address and its endpoint's.
#[test]
fn an_entry_has_both_directions() {
    let (original, reply) = translated();
    let entry = entry(&inner(&new_entry())).unwrap();
    assert_eq!((entry.original, entry.reply), (original, reply));
    assert!(entry.is_translated());
    assert_eq!(entry.state, Some(TcpState::Established));
    assert_eq!(entry.timeout, Some(Duration::from_secs(86_400)));
    assert!(entry.status.contains(Status::DstNat));
}

/// A connection of another protocol is none of TCP, and one without a direction is none.
#[test]
fn what_is_no_tcp_connection_is_none() {
    let (original, reply) = translated();
    let mut udp = original.parts();
    udp[1] = Part::Proto(vec![
        ProtoTuple::Protocol(Protocol::Udp),
        ProtoTuple::SourcePort(1),
        ProtoTuple::DestinationPort(2),
    ]);
    for attributes in [
        vec![
            ConntrackAttribute::CtaTupleOrig(udp),
            ConntrackAttribute::CtaTupleReply(reply.parts()),
        ],
        vec![ConntrackAttribute::CtaTupleOrig(original.parts())],
        vec![],
    ] {
        assert_eq!(entry(&inner(&bytes(ConntrackMessage::New(attributes)))), None);
    }
}

fn stat(message_type: u8, attributes: &[(u16, u32)]) -> Vec<u8> {
    let attributes =
        attributes.iter().map(|(k, v)| DefaultNla::new(*k, v.to_be_bytes().to_vec())).collect();
    bytes(ConntrackMessage::Other { message_type, attributes })
}

/// Numbers are read, whatever other attributes stand between.
#[test]
fn statistics_are_read_by_name() {
    let m = inner(&stat(IPCTNL_MSG_CT_GET_STATS_CPU, &[(4, 5), (77, 1), (10, 6)]));
    assert_eq!((counters(&m).invalid, counters(&m).drop), (5, 6));
    let m = inner(&stat(IPCTNL_MSG_CT_GET_STATS, &[(1, 7), (9, 9), (2, 100)]));
    assert_eq!(numbers(&m), [(1, 7), (9, 9), (2, 100)]);
}

/// A datagram has any number of messages.
#[test]
fn a_datagram_is_read_to_its_end() {
    let data = [new_entry(), new_entry(), stat(IPCTNL_MSG_CT_GET_STATS, &[(1, 7)])].concat();
    assert_eq!(messages(&data).flatten().count(), 3);
}

/// Truncated anywhere or with impossible lengths, a datagram is refused once, never a panic
/// and never without an end.
#[test]
fn truncations_are_refused() {
    let whole = new_entry();
    for cut in 1..whole.len() {
        let read: Vec<_> = messages(&whole[..cut]).collect();
        assert!(matches!(&read[..], [Err(NetlinkError::Message(_))]), "{cut}: {read:?}");
    }
    for at in 0..whole.len() {
        for value in [0, 1, 3, 0xff] {
            let mut dirty = whole.clone();
            dirty[at] = value;
            assert!(messages(&dirty).take(100).count() < 100);
        }
    }
}
