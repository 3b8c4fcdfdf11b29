//! Captures as TCP segments: pcap and pcapng, several files by the order of time. Reads from anything; a damaged file ends where it is damaged.

use std::io::{Chain, Cursor, Read};
use std::time::Duration;

use canary_wire::packet;
use canary_wire::segment::{Segment, SegmentError};
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::PcapNgReader;
use pcap_file::pcapng::blocks::Block;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::{DataLink, TsResolution};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Since the epoch.
    pub(crate) at: Duration,
    link: DataLink,
    data: Vec<u8>,
}

impl Packet {
    /// Its TCP segment and its TTL or hop limit; none where the link layer is not known here.
    pub(crate) fn segment(&self) -> Option<Result<(Segment<'_>, u8), SegmentError>> {
        packet::captured(self.link.into(), &self.data)
    }
}

type Source<R> = Chain<Cursor<Vec<u8>>, R>;

enum Format<R: Read> {
    Pcap(PcapReader<Source<R>>, DataLink),
    Ng(PcapNgReader<Source<R>>),
}

pub(crate) struct Reader<R: Read> {
    format: Option<Format<R>>,
    /// Why it ended before the file did.
    pub(crate) damaged: Option<String>,
}

impl<R: Read> Reader<R> {
    /// Reads the header; an error says why this is no capture.
    pub(crate) fn new(mut source: R) -> Result<Self, String> {
        // The section header block of pcapng (draft-ietf-opsawg-pcapng, section 4.1).
        const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
        let mut magic = [0; 4];
        source.read_exact(&mut magic).map_err(|e| format!("no capture: {e}"))?;
        let source = Cursor::new(magic.to_vec()).chain(source);
        let no_capture = |e: pcap_file::PcapError| format!("neither pcap nor pcapng: {e}");
        let format = if magic == PCAPNG {
            Format::Ng(PcapNgReader::new(source).map_err(no_capture)?)
        } else {
            let reader = PcapReader::new(source).map_err(no_capture)?;
            let link = reader.header().datalink;
            Format::Pcap(reader, link)
        };
        Ok(Self { format: Some(format), damaged: None })
    }

    fn read(&mut self) -> Option<Result<Packet, pcap_file::PcapError>> {
        match self.format.as_mut()? {
            Format::Pcap(reader, link) => {
                let (link, unit) = (*link, reader.header().ts_resolution);
                // Raw: the other way refuses packets that are longer than the snap length.
                Some(reader.next_raw_packet()?.map(|p| {
                    let fraction = match unit {
                        TsResolution::MicroSecond => Duration::from_micros(p.ts_frac.into()),
                        TsResolution::NanoSecond => Duration::from_nanos(p.ts_frac.into()),
                    };
                    let at = Duration::from_secs(p.ts_sec.into()) + fraction;
                    Packet { at, link, data: p.data.into_owned() }
                }))
            }
            Format::Ng(reader) => loop {
                let block = match reader.next_block()? {
                    Ok(block) => block.into_owned(),
                    Err(e) => return Some(Err(e)),
                };
                let (interface, units, data) = match block {
                    Block::EnhancedPacket(p) => (p.interface_id, p.timestamp.as_nanos(), p.data),
                    Block::SimplePacket(p) => (0, 0, p.data),
                    Block::Packet(p) => (p.interface_id.into(), p.timestamp.into(), p.data),
                    _ => continue,
                };
                let Some(interface) = reader.interfaces().get(interface as usize) else { continue };
                let resolution = interface.options.iter().find_map(|o| match o {
                    InterfaceDescriptionOption::IfTsResol(r) => Some(*r),
                    _ => None,
                });
                let at = time(units, resolution);
                return Some(Ok(Packet { at, link: interface.linktype, data: data.into_owned() }));
            },
        }
    }
}

/// The crate gives the block's number as it stands; the interface says in which unit it is
/// (draft-ietf-opsawg-pcapng, section 4.2: if_tsresol, microseconds by default).
fn time(units: u128, resolution: Option<u8>) -> Duration {
    let resolution = resolution.unwrap_or(6);
    let per_second = if resolution & 0x80 == 0 {
        10_u128.checked_pow(resolution.into())
    } else {
        2_u128.checked_pow((resolution & 0x7f).into())
    };
    let nanos = per_second.and_then(|p| units.checked_mul(1_000_000_000).map(|n| n / p));
    Duration::from_nanos(nanos.and_then(|n| n.try_into().ok()).unwrap_or(0))
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Packet;

    fn next(&mut self) -> Option<Packet> {
        match self.read()? {
            Ok(packet) => Some(packet),
            Err(e) => {
                self.damaged = Some(e.to_string());
                self.format = None;
                None
            }
        }
    }
}

/// The packets of several captures by the order of time; each must be in order itself.
pub(crate) struct Merged<R: Read> {
    readers: Vec<(Reader<R>, Option<Packet>)>,
}

impl<R: Read> Merged<R> {
    pub(crate) fn new(readers: Vec<Reader<R>>) -> Self {
        let begun = readers.into_iter().map(|mut reader| {
            let first = reader.next();
            (reader, first)
        });
        Self { readers: begun.collect() }
    }

    /// Which of them ended before their time, and why.
    pub(crate) fn damaged(&self) -> impl Iterator<Item = (usize, &str)> {
        self.readers.iter().enumerate().filter_map(|(n, (r, _))| Some((n, r.damaged.as_deref()?)))
    }
}

impl<R: Read> Iterator for Merged<R> {
    type Item = Packet;

    fn next(&mut self) -> Option<Packet> {
        let waiting = self.readers.iter_mut().filter(|(_, next)| next.is_some());
        let (reader, next) = waiting.min_by_key(|(_, next)| next.as_ref().map(|p| p.at))?;
        std::mem::replace(next, reader.next())
    }
}
