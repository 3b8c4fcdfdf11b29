//! Reads captures: which forged segments were answered with RST, counted apart
//! from boom-server, and the packets of one connection. Pure: bytes in, bytes out.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;

use canary_record::names::{Direction, Forgery};
use canary_wire::packet;
use canary_wire::segment::{Flags, Numbers, Segment};
use canary_wire::seq::Seq;
use pcap_file::PcapError;
use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};

/// A capture could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("capture: {0}")]
pub struct CaptureError(String);

impl From<pcap_file::PcapError> for CaptureError {
    fn from(e: pcap_file::PcapError) -> Self {
        Self(e.to_string())
    }
}

/// An RST that answers a forged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// What was forged.
    pub forgery: Forgery,
    /// The client's initial sequence number: no NAT changes it, so it names the
    /// connection in every capture.
    pub client_isn: Seq,
}

/// One connection at the server pod.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    client_isn: Option<Seq>,
    server_isn: Option<Seq>,
    forged: Option<(Forgery, Numbers)>,
    reset: bool,
}

/// Finds every RST that answers a forged segment in a capture taken where they are forged: in the
/// server pod, whose address is `server`, or at the client that called `server`.
pub fn resets(
    pcap: &[u8],
    server: SocketAddr,
    direction: Direction,
) -> Result<Vec<Reset>, CaptureError> {
    let mut flows: BTreeMap<SocketAddr, Flow> = BTreeMap::new();
    let mut found = Vec::new();
    let server_forges = direction == Direction::ServerToClient;
    each_segment(pcap, |s, _| {
        let from_server = s.src == server;
        if !from_server && s.dst != server {
            return;
        }
        let flow = flows.entry(if from_server { s.dst } else { s.src }).or_default();
        if !from_server && s.flags.has(Flags::SYN) && !s.flags.has(Flags::ACK) {
            // The port may be used again: a new connection.
            *flow = Flow { client_isn: Some(s.seq), ..Flow::default() };
        } else if from_server
            && s.flags.has(Flags::SYN.with(Flags::ACK))
            && !s.flags.has(Flags::FIN)
        {
            flow.server_isn = Some(s.seq);
        } else if from_server == server_forges {
            if let (Some(server), Some(client)) = (flow.server_isn, flow.client_isn) {
                let (own, peer) = if server_forges { (server, client) } else { (client, server) };
                let forged = forged(own, peer, s).map(|forgery| (forgery, s.numbers()));
                flow.forged = forged.or(flow.forged);
            }
        } else if s.flags.has(Flags::RST) && !flow.reset {
            flow.reset = true;
            if let (Some((forgery, numbers)), Some(client_isn)) = (flow.forged, flow.client_isn)
                && numbers.provokes(s)
            {
                found.push(Reset { forgery, client_isn });
            }
        }
    })?;
    Ok(found)
}

/// What a segment was forged as, from its flags and its distance from the initial sequence numbers
/// of its sender and of the other end: none of these can come from a TCP here, whose connections
/// carry a few hundred octets at most.
#[must_use]
pub fn forged(own: Seq, peer: Seq, s: &Segment<'_>) -> Option<Forgery> {
    const FAR: i32 = 50_000;
    if s.flags.0 == 0 {
        return Some(Forgery::NoFlags);
    }
    if s.flags.has(Flags::SYN.with(Flags::FIN)) {
        return Some(Forgery::SynFin);
    }
    if s.flags.has(Flags::RST) {
        return None;
    }
    let seq = s.seq.0.wrapping_sub(own.0.wrapping_add(1)).cast_signed();
    let ack = s.ack.0.wrapping_sub(peer.0.wrapping_add(1)).cast_signed();
    match (seq, ack) {
        (_, ack) if ack > 0x1000_0000 => Some(Forgery::AckAhead),
        (seq, _) if seq > 0x1000_0000 => Some(Forgery::AboveWindow),
        (seq, _) if seq > FAR => Some(Forgery::Overshoot),
        (seq, _) if seq < -FAR => Some(Forgery::BelowWindow),
        _ => None,
    }
}

/// The packets of the connection whose client began with `isn`: everything of
/// its client port, so that a leaked segment from another address is in it.
/// Gives the new capture and its number of packets.
pub fn connection(pcap: &[u8], isn: Seq) -> Result<(Vec<u8>, u64), CaptureError> {
    let mut ports = Vec::new();
    each_segment(pcap, |s, _| {
        if s.flags.has(Flags::SYN) && !s.flags.has(Flags::ACK) && s.seq == isn {
            ports.push(s.src.port());
        }
    })?;
    let reader = PcapReader::new(pcap)?;
    let mut writer = PcapWriter::with_header(Vec::new(), reader.header())?;
    let (mut packets, mut result) = (0, Ok(()));
    each_segment(pcap, |s, packet| {
        if ports.contains(&s.src.port()) || ports.contains(&s.dst.port()) {
            packets += 1;
            if let Err(e) = writer.write_packet(packet) {
                result = Err(e);
            }
        }
    })?;
    result?;
    Ok((writer.into_writer(), packets))
}

/// Packets in a capture.
pub fn packets(pcap: &[u8]) -> Result<u64, CaptureError> {
    let mut n = 0;
    each_segment(pcap, |_, _| n += 1)?;
    Ok(n)
}

/// Calls `see` for every TCP segment, in order.
pub fn each_segment(
    pcap: &[u8],
    mut see: impl FnMut(&Segment<'_>, &PcapPacket<'_>),
) -> Result<(), CaptureError> {
    let mut reader = PcapReader::new(pcap)?;
    let link = reader.header().datalink;
    let unit = reader.header().ts_resolution;
    // Raw: the other way refuses packets that are longer than the snap length.
    while let Some(packet) = reader.next_raw_packet() {
        let packet = match packet {
            Ok(packet) => packet.try_into_pcap_packet(unit, u32::MAX)?,
            // tcpdump may have been stopped in the middle of a packet: that is the end.
            Err(PcapError::IncompleteBuffer) => break,
            Err(PcapError::IoError(e)) if e.kind() == ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e.into()),
        };
        match packet::captured(link.into(), &packet.data) {
            Some(Ok((segment, _))) => see(&segment, &packet),
            Some(Err(_)) => {}
            None => return Err(CaptureError(format!("link type {link:?} is not known here"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use canary_wire::segment::Emit;
    use pcap_file::Endianness;
    use pcap_file::pcap::PcapHeader;

    const SNAP: usize = 128;

    /// A capture cut at so many octets, of packets with these lengths of data.
    fn capture(data: &[usize]) -> Vec<u8> {
        let endianness = Endianness::Little;
        let header = PcapHeader { snaplen: SNAP as u32, endianness, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for (n, length) in data.iter().enumerate() {
            let mut packet = Vec::new();
            let payload = vec![b'x'; *length];
            let emit = Emit {
                src: "198.18.66.20:9000".parse().unwrap(),
                dst: "198.18.65.10:40000".parse().unwrap(),
                class: 0,
                seq: Seq(n as u32),
                ack: Seq(0),
                flags: Flags::ACK,
                window: 1,
                options: &[],
                payload: &payload,
            };
            assert!(emit.packet(&mut packet));
            let frame = [&[0; 12][..], &[0x08, 0x00], &packet].concat();
            let cut = &frame[..frame.len().min(SNAP)];
            let packet = PcapPacket::new(Duration::ZERO, frame.len() as u32, cut);
            writer.write_packet(&packet).unwrap();
        }
        writer.into_writer()
    }

    fn seen(pcap: &[u8]) -> Result<Vec<u32>, CaptureError> {
        let mut seen = Vec::new();
        each_segment(pcap, |s, _| seen.push(s.seq.0)).map(|()| seen)
    }

    /// A packet that is longer than the snap length hides none of those behind it.
    #[test]
    fn a_long_packet_is_one_of_many() {
        assert_eq!(seen(&capture(&[0, 1448, 7])).unwrap(), [0, 1, 2]);
    }

    /// A capture that ends in the middle of a packet is read up to there.
    #[test]
    fn a_cut_end_is_the_end() {
        let whole = capture(&[0, 0, 1448]);
        for cut in [1, 20, SNAP, SNAP + 15] {
            assert_eq!(seen(&whole[..whole.len() - cut]).unwrap(), [0, 1], "{cut}");
        }
    }

    /// What is no capture is an error, and so is a packet that none can be.
    #[test]
    fn garbage_is_an_error() {
        assert!(seen(b"no capture at all, but long enough for a header").is_err());
        let mut longer = capture(&[0, 0]);
        // Its orig_len, behind the file's header and three fields: less than was captured.
        longer[24 + 12..24 + 16].copy_from_slice(&1u32.to_le_bytes());
        assert!(seen(&longer).is_err());
    }
}
