//! How fast the kernel is with tables of other sizes. Entries are made by the first datagram of a
//! flow, and each datagram afterwards is of another flow, so that a packet meets an entry that no
//! cache has. Nobody answers: behind the node they lead nowhere.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use canary_testbed::evidence;
use canary_testbed::network::wire::received;
use canary_testbed::os::os;
use canary_testbed::testbed::TestbedError;

use super::super::host_table::{Control, Resized, Size};
use super::super::setting::io_error;
use super::stage::Stage;
use crate::document::timeline::{TableSeries, TableSpeed};

/// Where the flows lead: 198.19.128.0/17, 128 ports of each address.
const NETWORK: Ipv4Addr = Ipv4Addr::new(198, 19, 128, 0);
const PORTS: u64 = 128;
/// The source port of all of them.
const FROM: u16 = 1999;
/// Datagrams, and new connections, of a round.
const PACKETS: u64 = 50_000;
const CONNECTS: u32 = 500;
/// Rounds of which the best counts: whatever else the machine does makes one slower, never faster.
const ROUNDS: u32 = 8;
/// Pairs of rounds with the same entries in two tables.
const TURNS: u32 = 21;

/// What was measured, and what is left out, with the reason.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) turns: Vec<[TableSpeed; 2]>,
    /// The best rounds of each table.
    pub(super) best: Vec<TableSpeed>,
    pub(super) reasons: Vec<String>,
}
/// What was not forwarded after so long is lost.
const LATE: Duration = Duration::from_millis(100);
/// Memory shows beyond the kernel's own coming and going from so many entries.
const SHOWS: u64 = 100_000;
/// More than the kernel needs for an entry and its bucket, twice.
const OCTETS: u64 = 1024;

/// Measures tables of `sizes`, and then one of `loads` entries for each bucket. What the machine has no
/// memory for is left out, with a reason.
pub(super) fn run(
    stage: &Stage<'_>,
    control: &Control,
    sizes: &[u64],
    loads: &[f64],
) -> Result<Tables, TestbedError> {
    let failed = |what| io_error(what, &stage.dir);
    let memory = Memory::read().map_err(failed("read the memory of"))?;
    let (fits, missing): (Vec<u64>, Vec<u64>) =
        sizes.iter().partition(|n| **n * OCTETS < memory.available);
    let reasons = missing
        .iter()
        .map(|n| {
            format!(
                "A table of {n} entries was not measured: {} octets are free.",
                memory.available
            )
        })
        .collect();
    let (Some(least), Some(most)) = (fits.first().copied(), fits.last().copied()) else {
        return Ok(Tables { reasons, ..Tables::default() });
    };
    let (server, network) = (stage.place.topology.service.pod.v4, format!("{NETWORK}/17"));
    // A pod that forwards would send them back.
    stage.ip("server", &["route", "add", "blackhole", &network])?;
    stage.ip(
        "node1",
        &["route", "add", &network, "via", &server.to_string(), "dev", "to-server", "onlink"],
    )?;
    // Flows of one datagram live for half a minute else.
    stage.set("net/netfilter/nf_conntrack_udp_timeout", "3600")?;
    stage.free_ports_at_once()?;
    let resized = control.resize(size(least, least))?;
    let mut bench =
        Bench { stage, resized, begun: Memory::read().map_err(failed("read"))?, flows: 0 };
    let mut turns = Vec::new();
    let mut best: Vec<_> = [least, most]
        .map(|buckets| TableSpeed { entries: least, buckets, ..TableSpeed::default() })
        .into();
    for turn in 0..TURNS {
        let mut both = [best[0], best[1]];
        let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
        for at in order {
            bench.table(least, both[at].buckets)?;
            bench.round(&mut both[at])?;
            best[at].keep(&both[at]);
        }
        turns.push(both);
    }
    bench.begun = Memory::read().map_err(failed("read"))?.less(least);
    let many = fits.get(fits.len().saturating_sub(2)).copied().unwrap_or(most);
    for n in fits {
        best.push(bench.speed(TableSeries::Full, n, n)?);
        for load in loads.iter().filter(|_| n == many) {
            let buckets = (n as f64 / load).round() as u64;
            best.push(bench.speed(TableSeries::FewerBuckets, n, buckets)?);
        }
    }
    stage.place.within("node1", evidence::forget_all)?;
    bench.resized.restore()?;
    Ok(Tables { turns, best, reasons })
}

/// Above 95% the garbage collector takes what is not assured (`gc_worker_can_early_drop()`).
const fn size(entries: u64, buckets: u64) -> Size {
    Size { limit: entries + entries / 4 + 8000, buckets }
}

struct Bench<'a> {
    stage: &'a Stage<'a>,
    resized: Resized<'a>,
    /// Without the flows.
    begun: Memory,
    /// Those that have an entry.
    flows: u64,
}

impl Bench<'_> {
    fn speed(
        &mut self,
        series: TableSeries,
        entries: u64,
        buckets: u64,
    ) -> Result<TableSpeed, TestbedError> {
        self.table(entries, buckets)?;
        let mut speed = TableSpeed { series, buckets, entries, ..TableSpeed::default() };
        if entries >= SHOWS {
            let memory = Memory::read().map_err(io_error("read the memory of", &self.stage.dir))?;
            speed.memory = Some(memory.kernel.saturating_sub(self.begun.kernel));
        }
        for _ in 0..ROUNDS {
            self.table(entries, buckets)?;
            let mut round = speed;
            self.round(&mut round)?;
            speed.keep(&round);
        }
        Ok(speed)
    }

    /// So many flows have their entries, in so many buckets.
    fn table(&mut self, entries: u64, buckets: u64) -> Result<(), TestbedError> {
        let stage = self.stage;
        self.resized.again(size(entries, buckets))?;
        if self.flows == 0 || self.flows > entries {
            stage.place.within("node1", evidence::forget_all)?;
            self.flows = 0;
        }
        self.send(self.flows..entries)?;
        self.flows = entries;
        // A bucket that is full, or a datagram that was lost, would leave some out.
        let found = stage.entries()?;
        if found * 10 < entries * 9 {
            let e = io::Error::other(format!("{found} of {entries} entries"));
            return Err(io_error("fill the table of", &stage.dir)(e));
        }
        Ok(())
    }

    fn round(&mut self, of: &mut TableSpeed) -> Result<(), TestbedError> {
        let n = self.flows;
        // Neighbours in the table's memory are not asked for one after another.
        let stride = (n as f64 * 0.618) as u64 | 1;
        of.packets_per_second = self.send((0..PACKETS).map(|k| k.wrapping_mul(stride) % n))?;
        let begun = Instant::now();
        let connected = self.stage.connect(CONNECTS)?.len();
        of.connections_per_second = connected as f64 / begun.elapsed().as_secs_f64();
        // Few entries would soon be outnumbered by those of the connections.
        if self.flows < SHOWS {
            self.flows = 0;
        }
        Ok(())
    }

    /// A datagram of each flow; tells how many were forwarded in a second. A processor that sends
    /// forwards too, but for what a queue keeps for later, or has no room for.
    fn send(&self, flows: impl Iterator<Item = u64> + Send) -> Result<f64, TestbedError> {
        let arrived = || {
            let read = || Ok(received("eth0").map_err(os("count packets"))?);
            self.stage.place.within("server", read)
        };
        let (before, begun) = (arrived()?, Instant::now());
        let sent = self.stage.place.within("client", move || {
            let sending = || -> io::Result<u64> {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, FROM))?;
                let mut sent = 0;
                for flow in flows {
                    socket.send_to(b".", destination(flow))?;
                    sent += 1;
                }
                Ok(sent)
            };
            Ok(sending().map_err(os(format!("send datagrams to {NETWORK}")))?)
        })?;
        let (mut came, mut last) = (arrived()?.saturating_sub(before), Instant::now());
        while came < sent && last.elapsed() < LATE {
            std::thread::sleep(Duration::from_millis(1));
            let now = arrived()?.saturating_sub(before);
            if now > came {
                (came, last) = (now, Instant::now());
            }
        }
        if came * 10 < sent * 9 {
            let e = io::Error::other(format!("{came} of {sent} datagrams arrived"));
            return Err(io_error("forward datagrams in", &self.stage.dir)(e));
        }
        Ok(came as f64 / last.duration_since(begun).as_secs_f64())
    }
}

impl TableSpeed {
    /// The better of both, of packets and of connections.
    const fn keep(&mut self, other: &Self) {
        self.packets_per_second = self.packets_per_second.max(other.packets_per_second);
        self.connections_per_second = self.connections_per_second.max(other.connections_per_second);
    }
}

/// Whither a flow leads: as many as an address has ports, then the next address.
pub(crate) fn destination(flow: u64) -> SocketAddrV4 {
    let (address, port) = (flow / PORTS, flow % PORTS);
    let address = u32::from(NETWORK).wrapping_add(u32::try_from(address).unwrap_or(u32::MAX));
    SocketAddrV4::new(address.into(), 10_000 + u16::try_from(port).unwrap_or(u16::MAX))
}

/// What /proc/meminfo says, in octets.
#[derive(Clone, Copy)]
struct Memory {
    /// Slabs that are never given back under pressure, and vmalloc: entries are in the former,
    /// buckets in either.
    kernel: u64,
    available: u64,
}

impl Memory {
    fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let of = |name: &str| {
            field(&text, name)
                .ok_or_else(|| io::Error::other(format!("/proc/meminfo has no {name}")))
        };
        Ok(Self { kernel: of("SUnreclaim")? + of("VmallocUsed")?, available: of("MemAvailable")? })
    }

    /// Without the buckets, of 8 octets each.
    const fn less(self, buckets: u64) -> Self {
        Self { kernel: self.kernel.saturating_sub(buckets * 8), ..self }
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::scenario::saturation::MOST_ENTRIES;

    /// Every flow has a destination of its own in the network that leads nowhere.
    #[test]
    fn flows_are_told_apart() {
        let some: BTreeSet<_> = (0..1000).map(destination).collect();
        assert_eq!(some.len(), 1000);
        for flow in [0, MOST_ENTRIES - 1] {
            let ip = u32::from(*destination(flow).ip());
            assert_eq!(ip >> 15, u32::from(NETWORK) >> 15, "{flow}");
        }
    }

    /// The kernel's texts are read, and what is not in them is none.
    #[test]
    fn texts_are_read() {
        let meminfo = "MemTotal: 10 kB\nSUnreclaim:   484048 kB\nVmallocUsed: x kB\n";
        assert_eq!(field(meminfo, "SUnreclaim"), Some(484_048 * 1024));
        assert_eq!(field(meminfo, "VmallocUsed"), None);
        assert_eq!(field(meminfo, "Slab"), None);
    }
}
