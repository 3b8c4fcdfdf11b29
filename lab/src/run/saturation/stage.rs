//! A place with one node, whose table is the one that fills, and what runs in
//! it: the target, the observer, loads, connections in our own hands.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::document::lab::{At, Path as NetPath, Protection, ProtectionKind, ProxyMode};
use crate::document::timeline::Change;
use canary_record::result::observe::{ConntrackCounters, ObserveResult};
use canary_testbed::capture;
use canary_testbed::evidence;
use canary_testbed::exec::Ready;
use canary_testbed::os::os;
use canary_testbed::tap::Tap;
use canary_testbed::testbed::TestbedError;
use canary_testbed::topology::{Step as Build, Topology};
use canary_wire::segment::Family;
use nix::sys::signal::Signal;
use nix::sys::socket::{Backlog, listen};

use super::super::setting::{self, Place, READY, Running, count, io_error};
use super::Experiment;
use super::streams::{self, Streams};
use crate::observed::saturation::{Captured, Heard};
use crate::scenario::saturation::MOST_CLIENTS;

/// The port of the load's target.
const LOAD_PORT: u16 = 8080;
/// The port of the connections that are in our hands.
pub(crate) const HELD_PORT: u16 = 8081;
/// How long a connect may take: longer than one retransmission of a SYN.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(1500);

/// The client pod's addresses, one for each client.
fn sources(n: u32) -> String {
    let all: Vec<_> = (0..n).map(|n| format!("198.18.65.{}", 101 + n)).collect();
    all.join(",")
}

/// A topology whose client pod has an address for each client.
pub(crate) fn topology(mut topology: Topology) -> Topology {
    let (node, client) = (topology.full("node1"), topology.full("client"));
    for address in sources(MOST_CLIENTS).split(',') {
        topology.steps.push(Build::Ip(client.clone(), format!("addr add {address}/32 dev eth0")));
        topology
            .steps
            .push(Build::Ip(node.clone(), format!("route add {address}/32 dev to-client")));
    }
    topology
}

/// A load: so many sources, so many connections a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) clients: u32,
    pub(crate) rate: f64,
    /// In progress at most.
    pub(crate) at_once: f64,
    /// Ends after so many.
    pub(crate) connections: Option<u64>,
    pub(crate) time: Duration,
}

/// What protects a place that is protected.
const PROTECTIONS: [Protection; 2] = [
    Protection { kind: ProtectionKind::Liberal, at: At::Both },
    Protection { kind: ProtectionKind::PreroutingDrop, at: At::Both },
];

/// A place with what runs beside the steps.
pub(crate) struct Stage<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) dir: PathBuf,
    protected: bool,
    serve: Running,
    observer: Running,
}

impl<'a> Stage<'a> {
    /// A fresh place: an empty table on its one node.
    pub(crate) fn build(
        x: &Experiment<'a>,
        name: &str,
        protected: bool,
    ) -> Result<Self, TestbedError> {
        let (setting, dir) = (x.setting, x.dir.join(name));
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        // Client and server on one node, so that its table is the only one.
        let hosts = Topology::new(NetPath::SameNode, &format!("{}{name}-", x.prefix));
        let place = setting.place(topology(hosts))?;
        let protections = if protected { &PROTECTIONS[..] } else { &[] };
        place.protect(ProxyMode::Nftables, Family::Ipv4, protections)?;
        let service = &place.topology.service;
        let rules = format!(
            "table ip lab-load {{\n chain prerouting {{ type nat hook prerouting priority dstnat; \
             ip daddr {} tcp dport {{ {LOAD_PORT}, {HELD_PORT} }} dnat to {}\n }}\n}}\n",
            service.vip.v4, service.pod.v4
        );
        setting::write(&dir.join("rules-load.txt"), &rules)?;
        place.nft("node1", &rules)?;
        place.set("client", "net/ipv4/ip_local_port_range", "2000\t65000")?;
        let target = place.topology.target(Family::Ipv4);
        place.warm_up(target, setting.scaled(READY))?;
        let start = |host: &str, name: &str, option: String| {
            let options = vec![name.to_owned(), option];
            place.load_client(host, (&dir, name), options, Ready::Event)?.ready()
        };
        let serve = start("server", "serve", format!("--listen=[::]:{LOAD_PORT}"))?;
        let observer = start("node1", "observe", "--interval=500ms".to_owned())?;
        Ok(Self { place, dir, protected, serve, observer })
    }

    /// Ends what runs beside. Gives what the observer saw.
    pub(crate) fn close(self) -> Result<ObserveResult, TestbedError> {
        self.serve.process.signal(Signal::SIGTERM);
        let observed = self.observer.stop()?;
        self.serve.end()?;
        Ok(observed)
    }

    pub(crate) fn changes(&self) -> Vec<Change> {
        let change = |what: &str, from: &str, to: &str| Change {
            what: what.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let all = [
            change(&evidence::BE_LIBERAL.replace('/', "."), "0", "1"),
            change("INVALID in mangle PREROUTING", "accepted", "dropped"),
        ];
        all.into_iter().filter(|_| self.protected).collect()
    }

    /// Where connections to one of its ports go.
    pub(crate) fn target(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.place.topology.service.vip.v4.into(), port)
    }

    /// The same in the server pod.
    pub(crate) fn local(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.place.topology.service.pod.v4.into(), port)
    }

    pub(crate) fn ip(&self, host: &str, args: &[&str]) -> Result<String, TestbedError> {
        self.place.tool(host, "ip", args, "")
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> Result<Change, TestbedError> {
        self.place.set("node1", key, value)
    }

    /// Entries on the node.
    pub(crate) fn entries(&self) -> Result<u64, TestbedError> {
        self.place.within("node1", count)
    }

    /// What conntrack has counted on the node.
    pub(crate) fn counters(&self) -> Result<ConntrackCounters, TestbedError> {
        self.place.within("node1", evidence::conntrack_counters)
    }

    /// A listener in the server pod that takes what comes without waiting.
    pub(crate) fn listen(&self, port: u16, backlog: u64) -> Result<TcpListener, TestbedError> {
        let local = self.local(port);
        self.place.within("server", move || {
            let listening = || -> io::Result<TcpListener> {
                let listener = TcpListener::bind(local)?;
                // More than the standard library's: a full queue answers with SYN cookies.
                let backlog = i32::try_from(backlog).map_err(io::Error::other)?;
                listen(&listener, Backlog::new(backlog)?)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            Ok(listening().map_err(os(format!("listen on {local}")))?)
        })
    }

    /// Leaves no TIME_WAIT at the client: where tens of thousands of its ports have one, what a round of
    /// connects measures is the search for a port that is free (`__inet_hash_connect()`).
    pub(super) fn free_ports_at_once(&self) -> Result<(), TestbedError> {
        self.place.set("client", "net/ipv4/tcp_max_tw_buckets", "0").map(drop)
    }

    /// Connections to the held port, both ends in our hands.
    pub(crate) fn connect(&self, n: u32) -> Result<Vec<(TcpStream, TcpStream)>, TestbedError> {
        let (target, deadline) = (self.target(HELD_PORT), self.place.scaled(READY));
        let listener = self.listen(HELD_PORT, n.into())?;
        let clients = self.place.within("client", move || {
            let connected: io::Result<Vec<_>> =
                (0..n).map(|_| TcpStream::connect_timeout(&target, deadline)).collect();
            Ok(connected.map_err(os(format!("connect to {target}")))?)
        })?;
        let accept = || {
            listener.set_nonblocking(false)?;
            streams::accept(&listener, clients)
        };
        accept().map_err(io_error("accept", &self.dir))
    }

    /// So many connections with octets going back and forth, the last `half_closed` of them half closed.
    pub(crate) fn streams(&self, n: u32, half_closed: u32) -> Result<Streams, TestbedError> {
        self.speak(self.connect(n)?, half_closed)
    }

    /// The same of connections that are there.
    pub(crate) fn speak(
        &self,
        pairs: Vec<(TcpStream, TcpStream)>,
        half_closed: u32,
    ) -> Result<Streams, TestbedError> {
        let streams = Streams::start(pairs, half_closed as usize);
        streams.map_err(io_error("hold connections", &self.dir))
    }

    /// One connection to the load's target, or None where its SYN had no answer in time.
    pub(crate) fn one_more(&self, within: Duration) -> Result<Option<TcpStream>, TestbedError> {
        let target = self.target(LOAD_PORT);
        self.place.within("client", move || match TcpStream::connect_timeout(&target, within) {
            Ok(stream) => Ok(Some(stream)),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => Ok(None),
            Err(e) => Err(os(format!("connect to {target}"))(e).into()),
        })
    }

    /// A new connection for every request.
    pub(crate) fn churn(&self, load: Load, dir: &Path) -> Result<Running, TestbedError> {
        let until = load.connections.map_or(String::new(), |n| format!(" --connections={n}"));
        let line = format!(
            "churn --target=tcp://{} --rate={:.1} --concurrency={:.0} --duration={}ms --timeout={}ms \
             --source-ip={}{until}",
            self.target(LOAD_PORT),
            load.rate,
            load.at_once,
            load.time.as_millis(),
            TIMEOUT.as_millis(),
            sources(load.clients)
        );
        self.load_client("load", &line, dir, Ready::Event)
    }

    /// Connections that stay; ready when all are there.
    pub(crate) fn hold(&self, n: u64, dir: &Path) -> Result<Running, TestbedError> {
        let (to, from) = (self.target(LOAD_PORT), sources(MOST_CLIENTS));
        let line = format!("hold --target=tcp://{to} --connections={n} --source-ip={from}");
        let mut hold = self.load_client("hold", &line, dir, Ready::Text("all are open"))?;
        hold.process.wait_ready(self.place.scaled(READY * 2))?;
        Ok(hold)
    }

    /// The canary's own connections, to boom-server.
    pub(crate) fn probe(&self, time: Duration, dir: &Path) -> Result<Running, TestbedError> {
        let line = format!(
            "probe --target=tcp://{} --connections=5 --every=1s --duration={}ms --pattern=request --delay=500ms \
             --timeout={}ms",
            self.place.topology.target(Family::Ipv4),
            time.max(Duration::from_millis(500)).as_millis(),
            TIMEOUT.as_millis()
        );
        self.load_client("probe", &line, dir, Ready::Event)
    }

    fn load_client(
        &self,
        name: &str,
        line: &str,
        dir: &Path,
        ready: Ready,
    ) -> Result<Running, TestbedError> {
        let options = line.split(' ').map(str::to_owned).collect();
        self.place.load_client("client", (dir, name), options, ready)
    }

    /// load-client's witness on the node, beside the kernel's counters; its files go to `dir`.
    pub(crate) fn listen_to_the_kernel(&self, dir: &Path) -> Result<Witness, TestbedError> {
        let (hosts, mut notes) = (&["node1"], Vec::new());
        let running = self.place.witnesses(hosts, dir, &mut notes)?;
        Ok(Witness { running, notes, before: self.counters()? })
    }

    /// What it heard and what was counted meanwhile in `place`.
    pub(crate) fn heard(&self, witness: Witness, place: &str) -> Result<Heard, TestbedError> {
        let Witness { running, notes, before } = witness;
        let conntrack = self.counters()?.since(before);
        let mut said = setting::end_witnesses(running)?;
        Ok(Heard {
            place: place.to_owned(),
            target: self.place.topology.target(Family::Ipv4).to_string(),
            witness: said.pop().map(|(_, w)| w).ok_or_else(|| notes.join("; ")),
            conntrack,
            killed: 0,
            unknown: 0,
            shows: Vec::new(),
            resets: None,
        })
    }

    /// Captures what only a lost entry can cause on the held port.
    pub(crate) fn capture(&self) -> Result<Captures, TestbedError> {
        let pod = self.place.topology.service.pod.v4;
        let start = |host: &str, filter: &str| {
            let file = self.dir.join(format!("{host}.pcap"));
            let mut tap = Tap::start(&self.place, host, "eth0", filter, &file)?;
            tap.wait_ready(self.place.scaled(READY))?;
            Ok::<_, TestbedError>(tap)
        };
        Ok(Captures {
            client: start("client", &format!("src host {pod} and tcp src port {HELD_PORT}"))?,
            server: start(
                "server",
                &format!("tcp dst port {HELD_PORT} and tcp[tcpflags] & tcp-rst != 0"),
            )?,
        })
    }

    pub(crate) fn captured(&self, captures: Captures) -> Result<Captured, TestbedError> {
        let mut losses = None;
        let mut packets = |host: &str, tap: Tap| {
            let (pcap, loss) = tap.stop(self.place.scaled(READY))?;
            losses = losses.take().or(loss.map(|loss| format!("{host}: {loss}")));
            capture::packets(&pcap).map_err(|e| io_error("read", &self.dir)(io::Error::other(e)))
        };
        let untranslated = packets("client", captures.client)?;
        let resets = packets("server", captures.server)?;
        Ok(Captured { untranslated, resets, lost: losses })
    }
}

pub(crate) struct Witness {
    running: Vec<(&'static str, Running)>,
    notes: Vec<String>,
    before: ConntrackCounters,
}

pub(crate) struct Captures {
    client: Tap,
    server: Tap,
}
