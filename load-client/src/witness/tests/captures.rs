//! Captures made by hand: every link layer that people capture on, extension headers, short snap
//! lengths, both formats, and garbage.
//!
//! `WITNESS_CASES` sets how many pieces of garbage; ten million by hand, with `--release`.

use std::borrow::Cow;
use std::io::{self, Cursor, Read};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use crate::report::Report;
use crate::witness::offline::Offline;
use crate::witness::pcap::{Merged, Reader};
use canary_record::names::{EndedBy, Verdict};
use canary_record::result::Config;
use canary_record::result::witness::{Cause, Direction, Ended};
use canary_wire::segment::{Emit, Flags};
use canary_wire::seq::Seq;
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::sync::oneshot;

const V4: [&str; 3] = ["198.18.65.10:40000", "198.19.0.10:80", "198.18.66.20:9000"];
const V6: [&str; 3] = ["[fd00:65::10]:40000", "[fd00:19::10]:80", "[fd00:66::20]:9000"];

fn segment(from: &str, to: &str, numbers: (u32, u32), flags: Flags, payload: &[u8]) -> Vec<u8> {
    with_options(from, to, numbers, flags, (&[], payload))
}

fn with_options(
    from: &str,
    to: &str,
    (seq, ack): (u32, u32),
    flags: Flags,
    (options, payload): (&[u8], &[u8]),
) -> Vec<u8> {
    let (src, dst): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut buf = Vec::new();
    let (seq, ack) = (Seq(seq), Seq(ack));
    assert!(
        Emit { src, dst, class: 0, seq, ack, flags, window: 502, options, payload }
            .packet(&mut buf)
    );
    buf
}

/// A client's side: it talks to the Service, a segment of the server's own address comes, and the
/// client's host answers it with a reset.
fn leak([client, service, server]: [&str; 3]) -> Vec<Vec<u8>> {
    let data = Flags::PSH.with(Flags::ACK);
    vec![
        segment(client, service, (1000, 0), Flags::SYN, b""),
        segment(service, client, (5000, 1001), Flags::SYN.with(Flags::ACK), b""),
        segment(client, service, (1001, 5001), Flags::ACK, b""),
        segment(client, service, (1001, 5001), data, b"request"),
        segment(service, client, (5001, 1008), Flags::ACK, b""),
        segment(server, client, (5001 + 0x7fff_c000, 1008), data, b"boom!!!"),
        segment(client, server, (1008, 0), Flags::RST, b""),
    ]
}

/// `ip` as a link layer frames it.
fn frame(link: DataLink, ip: &[u8], vlans: usize) -> Vec<u8> {
    let kind: [u8; 2] = if ip[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    let mut f = Vec::new();
    match link {
        DataLink::ETHERNET => {
            f.extend([2; 12]);
            for id in 0..vlans {
                f.extend([0x81, 0x00, 0, id as u8 + 1]);
            }
            f.extend(kind);
        }
        DataLink::LINUX_SLL => {
            f.extend([0; 14]);
            f.extend(kind);
        }
        DataLink::LINUX_SLL2 => {
            f.extend(kind);
            f.extend([0; 18]);
        }
        DataLink::NULL => f.extend([2, 0, 0, 0]),
        _ => {}
    }
    f.extend(ip);
    f
}

fn pcap(link: DataLink, frames: &[Vec<u8>], snap: usize) -> Vec<u8> {
    let header = PcapHeader { datalink: link, snaplen: snap as u32, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
    for (n, frame) in frames.iter().enumerate() {
        let at = Duration::from_millis(1000 + n as u64);
        let cut = &frame[..frame.len().min(snap)];
        writer.write_packet(&PcapPacket::new(at, frame.len() as u32, cut)).unwrap();
    }
    writer.into_writer()
}

fn read(captures: &[&[u8]]) -> (Offline, Vec<Ended>) {
    let readers = captures.iter().map(|c| Reader::new(Cursor::new(*c)).unwrap()).collect();
    let mut offline = Offline::default();
    for packet in Merged::new(readers) {
        offline.packet(&packet);
    }
    offline.finish();
    let ended = offline.found.examples.clone();
    (offline, ended)
}

fn names_the_leak(capture: &[u8], [client, service, server]: [&str; 3]) {
    let (offline, ended) = read(&[capture]);
    assert_eq!((ended.len(), offline.found.messages.unreadable), (1, 0), "{ended:?}");
    let e = &ended[0];
    let to = Direction::ServerToClient;
    assert_eq!((e.cause, e.direction), (Cause::AnsweredByClient, to), "{e:?}");
    assert_eq!(e.client.as_deref(), Some(client));
    assert_eq!((e.service.as_deref(), e.server.as_deref()), (Some(service), Some(server)));
}

/// Every link layer, with and without VLAN tags, in both families.
#[test]
fn every_link_layer_is_read() {
    for ends in [V4, V6] {
        for (link, vlans) in [
            (DataLink::ETHERNET, 0),
            (DataLink::ETHERNET, 1),
            (DataLink::ETHERNET, 2),
            (DataLink::LINUX_SLL, 0),
            (DataLink::LINUX_SLL2, 0),
            (DataLink::RAW, 0),
            (DataLink::NULL, 0),
        ] {
            let frames: Vec<_> = leak(ends).iter().map(|p| frame(link, p, vlans)).collect();
            names_the_leak(&pcap(link, &frames, 65_535), ends);
        }
    }
}

/// IPv6 extension headers stand before the segment; options of IPv4 too.
#[test]
fn extension_headers_and_options_are_passed_over() {
    let six: Vec<_> = leak(V6)
        .into_iter()
        .map(|mut p| {
            // Hop-by-hop (0), then destination options (60), eight octets each.
            p[6] = 0;
            let length = (p.len() - 40 + 16) as u16;
            p[4..6].copy_from_slice(&length.to_be_bytes());
            p.splice(40..40, [60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0]);
            frame(DataLink::ETHERNET, &p, 0)
        })
        .collect();
    names_the_leak(&pcap(DataLink::ETHERNET, &six, 65_535), V6);
    let four: Vec<_> = leak(V4)
        .into_iter()
        .map(|mut p| {
            p[0] = 0x46;
            let length = (p.len() + 4) as u16;
            p[2..4].copy_from_slice(&length.to_be_bytes());
            p.splice(20..20, [1, 1, 1, 0]);
            frame(DataLink::ETHERNET, &p, 0)
        })
        .collect();
    names_the_leak(&pcap(DataLink::ETHERNET, &four, 65_535), V4);
}

/// What is cut behind the TCP header loses nothing; what is cut before is counted.
#[test]
fn snap_lengths() {
    for (ends, headers) in [(V4, 14 + 40), (V6, 14 + 60)] {
        let frames: Vec<_> = leak(ends).iter().map(|p| frame(DataLink::ETHERNET, p, 0)).collect();
        names_the_leak(&pcap(DataLink::ETHERNET, &frames, headers), ends);
        let (offline, ended) = read(&[&pcap(DataLink::ETHERNET, &frames, headers - 1)]);
        assert_eq!((ended.len(), offline.found.messages.unreadable), (0, frames.len() as u64));
    }
}

fn pcapng(frames: &[Vec<u8>], resolution: Option<u8>, units: u64) -> Vec<u8> {
    let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
    let options =
        resolution.map(InterfaceDescriptionOption::IfTsResol).into_iter().collect::<Vec<_>>();
    let interface = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options };
    writer.write_pcapng_block(interface).unwrap();
    for (n, frame) in frames.iter().enumerate() {
        let packet = EnhancedPacketBlock {
            interface_id: 0,
            // The crate writes it as it stands, whatever the interface's unit.
            timestamp: Duration::from_nanos(units * (1000 + n as u64) / 1000),
            original_len: frame.len() as u32,
            data: Cow::Borrowed(frame),
            options: Vec::new(),
        };
        writer.write_pcapng_block(packet).unwrap();
    }
    writer.into_inner()
}

/// pcapng, in microseconds by default and in any other unit.
#[test]
fn pcapng_times_have_units() {
    let frames: Vec<_> = leak(V4).iter().map(|p| frame(DataLink::ETHERNET, p, 0)).collect();
    for (resolution, units) in
        [(None, 1_000_000), (Some(6), 1_000_000), (Some(9), 1_000_000_000), (Some(0x94), 1 << 20)]
    {
        let capture = pcapng(&frames, resolution, units);
        names_the_leak(&capture, V4);
        let (offline, _) = read(&[&capture]);
        assert!((offline.seconds() - 0.006).abs() < 2e-6, "{resolution:?} {}", offline.seconds());
    }
}

/// A capture that begins after the handshakes, and one whose client's connection it does not hold.
#[test]
fn what_a_side_cannot_know_is_not_named() {
    let frames: Vec<_> = leak(V4).iter().map(|p| frame(DataLink::ETHERNET, p, 0)).collect();
    names_the_leak(&pcap(DataLink::ETHERNET, &frames[2..], 65_535), V4);
    let (offline, ended) = read(&[&pcap(DataLink::ETHERNET, &frames[5..], 65_535)]);
    assert_eq!((ended.len(), offline.found.stray_resets), (0, 1));
    // A reset whose number is not the connection's.
    let mut other = leak(V4);
    let [client, _, server] = V4;
    other[6] = segment(client, server, (1009, 0), Flags::RST, b"");
    let frames: Vec<_> = other.iter().map(|p| frame(DataLink::ETHERNET, p, 0)).collect();
    let (_, ended) = read(&[&pcap(DataLink::ETHERNET, &frames, 65_535)]);
    assert_eq!(ended, []);
}

/// Where the SYN ACK is not in the capture the client's window may be scaled: data that lies within it,
/// and then the user's abort, are no INVALID segment and its answer.
#[test]
fn a_missing_syn_ack_accuses_nobody() {
    let [client, server, _] = V4;
    let data = Flags::PSH.with(Flags::ACK);
    let mut packets = vec![
        with_options(client, server, (1000, 0), Flags::SYN, (&[3, 3, 7, 1], b"")),
        segment(client, server, (1001, 5001), Flags::ACK, b""),
        segment(server, client, (5001 + 4000, 1001), data, b"answer"),
        segment(client, server, (1001, 0), Flags::RST, b""),
    ];
    let ended = |packets: &[Vec<u8>]| {
        let frames: Vec<_> = packets.iter().map(|p| frame(DataLink::ETHERNET, p, 0)).collect();
        read(&[&pcap(DataLink::ETHERNET, &frames, 65_535)]).1
    };
    assert_eq!(ended(&packets), []);
    // A SYN ACK without the option: then the window is as small as it looks.
    let syn_ack = Flags::SYN.with(Flags::ACK);
    packets.insert(1, segment(server, client, (5000, 1001), syn_ack, b""));
    assert_eq!(ended(&packets)[0].cause, Cause::AnsweredByClient);
}

/// The sides of one network together, in any order of the files.
#[test]
fn several_captures_are_read_by_time() {
    let frames: Vec<_> = leak(V4).iter().map(|p| frame(DataLink::ETHERNET, p, 0)).collect();
    let (mut even, mut odd) = (frames.clone(), frames);
    // Each file lacks what the other has.
    for n in 0..even.len() {
        if n % 2 == 0 { odd[n] = vec![0; 60] } else { even[n] = vec![0; 60] }
    }
    let (a, b) = (pcap(DataLink::ETHERNET, &even, 65_535), pcap(DataLink::ETHERNET, &odd, 65_535));
    for captures in [[a.as_slice(), &b], [&b, &a]] {
        let (_, ended) = read(&captures);
        assert_eq!((ended.len(), ended[0].cause), (1, Cause::AnsweredByClient));
    }
}

/// No capture is one clear line.
#[test]
fn what_is_no_capture_is_said() {
    let why = |bytes: &[u8]| Reader::new(Cursor::new(bytes.to_vec())).err().unwrap();
    assert!(why(b"").starts_with("no capture"));
    assert!(why(b"<html>not a capture at all</html>").starts_with("neither pcap nor pcapng"));
    let frames: Vec<_> = leak(V4).iter().map(|p| frame(DataLink::ETHERNET, p, 0)).collect();
    let whole = pcap(DataLink::ETHERNET, &frames, 65_535);
    let mut reader = Reader::new(Cursor::new(&whole[..whole.len() - 3])).unwrap();
    assert_eq!(reader.by_ref().count(), frames.len() - 1);
    assert!(reader.damaged.is_some());
}

/// A pipe that gives its octets and then nothing for long.
struct Pipe {
    bytes: Cursor<Vec<u8>>,
    drained: Option<oneshot::Sender<()>>,
    closed: mpsc::Receiver<()>,
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.bytes.read(buf)?;
        if n == 0 {
            self.drained.take().map(|d| d.send(()));
            let _ = self.closed.recv();
        }
        Ok(n)
    }
}

/// A signal ends the reading of a pipe that has nothing to read: what was read before is judged, and
/// clears nobody.
#[test]
fn a_signal_ends_the_reading() {
    let leak = leak(V4);
    // The last packet waits for the next one, which may be of an earlier time in another file.
    let with_leak = [&leak[..], &leak[6..]].concat();
    for (packets, verdict) in
        [(&with_leak[..], Verdict::Vulnerable), (&leak[..5], Verdict::Inconclusive)]
    {
        let frames: Vec<_> = packets.iter().map(|p| frame(DataLink::ETHERNET, p, 0)).collect();
        let bytes = Cursor::new(pcap(DataLink::ETHERNET, &frames, 65_535));
        let ((drained, empty), (close, closed)) = (oneshot::channel(), mpsc::channel());
        let pipe = Pipe { bytes, drained: Some(drained), closed };
        let captures = Merged::new(vec![Reader::new(pipe).unwrap()]);
        let report = Report::begin("load-client witness", Config::new(), None).unwrap();
        let signalled = async {
            empty.await.unwrap();
            EndedBy::Sigterm
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let r = runtime.block_on(crate::witness::read(captures, &[], &report, signalled));
        drop(close);
        assert_eq!((r.run.ended_by, r.verdict), (EndedBy::Sigterm, verdict), "{:?}", r.reasons);
        assert_eq!(r.messages.received, packets.len() as u64 - 1);
        assert!(r.reasons.iter().any(|r| r.starts_with("sigterm came before")), "{:?}", r.reasons);
    }
}

/// Garbage of every kind makes neither a panic nor an endless run.
#[test]
fn garbage_is_survived() {
    let cases = std::env::var("WITNESS_CASES").map_or(20_000, |n| n.parse::<u64>().unwrap());
    let links = [
        DataLink::ETHERNET,
        DataLink::LINUX_SLL,
        DataLink::LINUX_SLL2,
        DataLink::RAW,
        DataLink::NULL,
        DataLink::IPV6,
    ];
    let seeds: Vec<Vec<u8>> = links
        .iter()
        .flat_map(|link| {
            [V4, V6].map(|ends| {
                let frames: Vec<_> = leak(ends).iter().map(|p| frame(*link, p, 1)).collect();
                pcap(*link, &frames, 65_535)
            })
        })
        .chain([V4, V6].map(|ends| {
            let frames: Vec<_> =
                leak(ends).iter().map(|p| frame(DataLink::ETHERNET, p, 2)).collect();
            pcapng(&frames, Some(9), 1_000_000_000)
        }))
        .collect();
    let mut random = StdRng::seed_from_u64(17);
    let mut offline = Offline::default();
    for n in 0..cases {
        let mut bytes = seeds[(n % seeds.len() as u64) as usize].clone();
        match random.random_range(0..4) {
            // Wrong octets; the header, which decides most, oftener than its share.
            0 | 1 => {
                for _ in 0..random.random_range(1..12) {
                    let within = if random.random() { bytes.len() } else { 64 };
                    let at = random.random_range(0..within.min(bytes.len()));
                    bytes[at] = random.random();
                }
            }
            2 => bytes.truncate(random.random_range(0..bytes.len())),
            _ => {
                let at = random.random_range(0..bytes.len());
                let end = (at + random.random_range(1..200)).min(bytes.len());
                random.fill_bytes(&mut bytes[at..end]);
            }
        }
        if n % 1024 == 0 {
            offline = Offline::default();
        }
        let Ok(reader) = Reader::new(Cursor::new(bytes)) else { continue };
        let mut packets = 0;
        for packet in Merged::new(vec![reader]) {
            offline.packet(&packet);
            packets += 1;
        }
        assert!(packets < 200);
    }
    offline.finish();
}
