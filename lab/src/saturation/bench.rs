//! The steps of the saturation experiment, in order.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use canary_common::result::boom::BoomResult;
use canary_common::result::lab::{FrontEnd, Path as NetPath};
use canary_common::result::load::LoadResult;
use canary_common::result::observe::ObserveResult;
use canary_common::result::timeline::{Change, Step, Timeline};
use canary_common::segment::Family;
use nix::sys::signal::Signal;

use super::claims::{Facts, Kind, Shown};
use super::streams::{self, Streams, Talk};
use super::table::{self, Control};
use super::{MOST_CLIENTS, Saturation, series};
use crate::capture;
use crate::causes::play::{boom_server, count, counters, set};
use crate::causes::{listed, outcomes};
use crate::cell::{self, Setting, io_error};
use crate::evidence::{self, EvidenceError};
use crate::exec::{Call, Process, Ready};
use crate::place::{Place, PlaceError};
use crate::topology::{Step as Build, Topology};

/// The port of the load's target.
const LOAD_PORT: u16 = 8080;
/// The port of the connections that are held.
const HELD_PORT: u16 = 8081;
/// How long a connect may take: longer than one retransmission of a SYN.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// How long the step that fills the table may take.
const FILLING: Duration = Duration::from_secs(60);
/// The time in which it would fill a small table.
const FILL_TIME: f64 = 8.0;
/// More than two processors of today can do.
const MOST_RATE: f64 = 20_000.0;
/// The rate of one client, at most.
const CLIENT_RATE: f64 = 100.0;
const READY: Duration = Duration::from_secs(15);
/// The established timeout of the last step in seconds, and a silence that is longer.
const SHORT: &str = "2";
const IDLE: Duration = Duration::from_millis(3500);

/// The client pod's addresses, one for each client.
fn sources() -> impl Iterator<Item = String> {
    (0..MOST_CLIENTS).map(|n| format!("198.18.65.{}", 101 + n))
}

/// A topology whose client pod has an address for each client.
#[must_use]
pub fn topology(mut topology: Topology) -> Topology {
    let (node, client) = (topology.full("node1"), topology.full("client"));
    for address in sources() {
        topology.steps.push(Build::Ip(client.clone(), format!("addr add {address}/32 dev eth0")));
        topology
            .steps
            .push(Build::Ip(node.clone(), format!("route add {address}/32 dev to-client")));
    }
    topology
}

/// A load: so many sources, so many connections a second.
#[derive(Clone, Copy, Debug)]
struct Load {
    clients: u32,
    rate: f64,
    /// Ends after so many.
    connections: Option<u64>,
    time: Duration,
}

/// A step to run.
struct Plan<'a> {
    kind: Kind,
    title: String,
    load: Option<Load>,
    changes: Vec<Change>,
    streams: Option<(&'a Streams, Talk)>,
}

/// The order of steps.
pub struct Bench<'a> {
    s: &'a Saturation,
    setting: &'a Setting,
    dir: &'a Path,
    prefix: &'a str,
    begun: Instant,
    /// The same in seconds since 1970.
    wall: f64,
    loads: Vec<LoadResult>,
}

/// A place with what runs beside the steps.
struct Stage<'a> {
    place: Place<'a>,
    serve: Process,
    observer: Process,
    dir: PathBuf,
}

impl<'a> Bench<'a> {
    /// Nothing is started yet.
    #[must_use]
    pub fn new(
        s: &'a Saturation,
        setting: &'a Setting,
        dir: &'a Path,
        prefix: &'a str,
        begun: Instant,
    ) -> Self {
        let now = jiff::Timestamp::now().as_microsecond() as f64 / 1e6;
        let wall = now - begun.elapsed().as_secs_f64();
        Self { s, setting, dir, prefix, begun, wall, loads: Vec::new() }
    }

    /// Runs everything.
    pub fn run(
        &mut self,
        control: Option<&Control>,
        timeline: &mut Timeline,
        facts: &mut Facts,
    ) -> Result<(), PlaceError> {
        let limit = table::max().map_err(sysctl_error)?;
        facts.can_resize = control.is_some();
        let stage = self.stage("filling")?;
        let ended = self.fill(&stage, limit, timeline, facts);
        self.close(stage, timeline)?;
        ended?;
        if let Some(control) = control {
            let before = control.set_max(limit * 4).map_err(sysctl_error)?;
            let change = Change {
                what: table::MAX.replace('/', "."),
                from: before.to_string(),
                to: (limit * 4).to_string(),
            };
            let stage = self.stage("bigger")?;
            let plan = Plan {
                kind: Kind::Bigger,
                title: "a bigger table, the load that filled the smaller one".to_owned(),
                load: Some(self.filling_load(limit)),
                changes: vec![change],
                streams: None,
            };
            let ended = self.step(&stage, plan, timeline, facts);
            self.close(stage, timeline)?;
            control.set_max(limit).map_err(sysctl_error)?;
            ended?;
        }
        let stage = self.stage("shorter")?;
        let ended = self.shorter(&stage, limit, timeline, facts);
        self.close(stage, timeline)?;
        ended
    }

    fn filling_load(&self, limit: u64) -> Load {
        let connections = (limit as f64 * self.s.load).ceil();
        Load {
            clients: MOST_CLIENTS,
            rate: (connections / FILL_TIME).min(MOST_RATE),
            connections: Some(connections as u64),
            time: FILLING,
        }
    }

    /// From no load to a table that is full, and stays so.
    fn fill(
        &mut self,
        stage: &Stage<'_>,
        limit: u64,
        timeline: &mut Timeline,
        facts: &mut Facts,
    ) -> Result<(), PlaceError> {
        let seconds = Duration::from_secs(u64::from(self.s.seconds));
        let pairs = self.connect(stage, self.s.held + self.s.half_closed)?;
        let streams = Streams::start(pairs, self.s.half_closed as usize)
            .map_err(io_error("hold connections", &stage.dir))?;
        let held = Some((&streams, Talk::Both));
        // So that all steps together use four fifths of a small table.
        let sum: u32 = self.s.clients.iter().sum();
        let rate = limit as f64 * 0.8 / (f64::from(sum) * seconds.as_secs_f64());
        let load = |clients: u32, time| Load {
            clients,
            rate: f64::from(clients) * rate.min(CLIENT_RATE),
            connections: None,
            time,
        };
        let most = self.s.clients.iter().copied().max().unwrap_or(MOST_CLIENTS);
        let mut plans = vec![(Kind::NoLoad, "no load".to_owned(), None)];
        for n in &self.s.clients {
            plans.push((Kind::Clients, format!("{n} clients"), Some(load(*n, seconds))));
        }
        plans.push((
            Kind::Load,
            "a table smaller than the load".to_owned(),
            Some(self.filling_load(limit)),
        ));
        plans.push((Kind::Full, "the table is full".to_owned(), Some(load(most, seconds))));
        for (kind, title, load) in plans {
            let plan = Plan { kind, title, load, changes: Vec::new(), streams: held };
            self.step(stage, plan, timeline, facts)?;
        }
        let change = set(&stage.place, "node1", evidence::BE_LIBERAL, "1")?;
        let plan = Plan {
            kind: Kind::FullLiberal,
            title: "full, with be_liberal=1".to_owned(),
            load: Some(load(most, seconds)),
            changes: vec![change],
            streams: held,
        };
        self.step(stage, plan, timeline, facts)?;
        let change = set(&stage.place, "node1", evidence::BE_LIBERAL, "0")?;
        let captures = self.capture(stage)?;
        let time = Duration::from_secs(u64::from(self.s.closing_seconds));
        let plan = Plan {
            kind: Kind::Closing,
            title: "full for longer, half-closed transfers".to_owned(),
            load: Some(load(most, time)),
            changes: vec![change],
            streams: Some((&streams, Talk::HalfClosed)),
        };
        let ended = self.step(stage, plan, timeline, facts);
        let [untranslated, resets] = self.captured(stage, captures)?;
        ended?;
        facts.untranslated = untranslated;
        if let Some(step) = timeline.steps.last_mut() {
            step.notes.push(format!(
                "Established connections beside them: {}. Captured on the transfers' port: {untranslated} \
                 segments that reached the client untranslated, {resets} RSTs that reached the server \
                 (cells/{}/filling/).",
                listed(&streams.ends(Talk::Both)),
                self.s.name
            ));
        }
        Ok(())
    }

    /// The same load with shorter timeouts, and what too short ones do.
    fn shorter(
        &mut self,
        stage: &Stage<'_>,
        limit: u64,
        timeline: &mut Timeline,
        facts: &mut Facts,
    ) -> Result<(), PlaceError> {
        let change = set(&stage.place, "node1", evidence::BE_LIBERAL, "1")?;
        let plan = Plan {
            kind: Kind::Liberal,
            title: "no load, be_liberal=1".to_owned(),
            load: None,
            changes: vec![change],
            streams: None,
        };
        self.step(stage, plan, timeline, facts)?;
        let mut changes = vec![set(&stage.place, "node1", evidence::BE_LIBERAL, "0")?];
        for key in [
            "net/netfilter/nf_conntrack_tcp_timeout_time_wait",
            "net/netfilter/nf_conntrack_tcp_timeout_fin_wait",
            "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            "net/netfilter/nf_conntrack_tcp_timeout_last_ack",
        ] {
            changes.push(set(&stage.place, "node1", key, SHORT)?);
        }
        let plan = Plan {
            kind: Kind::Shorter,
            title: "shorter timeouts, the load that filled the table".to_owned(),
            load: Some(self.filling_load(limit)),
            changes,
            streams: None,
        };
        self.step(stage, plan, timeline, facts)?;
        let key = "net/netfilter/nf_conntrack_tcp_timeout_established";
        let change = set(&stage.place, "node1", key, SHORT)?;
        let pairs = self.connect(stage, self.s.held)?;
        self.setting.interrupt.sleep(IDLE)?;
        // The server's tick comes first.
        let streams = Streams::start(pairs, 0).map_err(io_error("hold connections", &stage.dir))?;
        let plan = Plan {
            kind: Kind::Expiry,
            title: "established timeout shorter than a silence, the server speaks".to_owned(),
            load: None,
            changes: vec![change],
            streams: Some((&streams, Talk::Both)),
        };
        self.step(stage, plan, timeline, facts)
    }

    /// A fresh place: an empty table on its one node.
    fn stage(&self, name: &str) -> Result<Stage<'a>, PlaceError> {
        let setting = self.setting;
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let prefix = format!("{}{}-", self.prefix, &name[..1]);
        // Client and server on one node, so that its table is the only one.
        let place =
            Place::build(topology(Topology::new(NetPath::SameNode, &prefix)), &setting.tools)?;
        place.protect(FrontEnd::Nftables, Family::Ipv4, &[])?;
        let service = &place.topology.service;
        let rules = format!(
            "table ip lab-load {{\n chain prerouting {{ type nat hook prerouting priority dstnat; \
             ip daddr {} tcp dport {{ {LOAD_PORT}, {HELD_PORT} }} dnat to {}\n }}\n}}\n",
            service.vip.v4, service.pod.v4
        );
        fs::write(dir.join("rules-load.txt"), &rules).map_err(io_error("write", &dir))?;
        let tools = setting.tools.clone();
        place
            .within("node1", move || Ok(tools.call("nft", &["-f", "-"])?.stdin(&rules).run()?))?;
        set(&place, "client", "net/ipv4/ip_local_port_range", "2000\t65000")?;
        place.warm_up(Family::Ipv4, setting.scaled(READY), &setting.interrupt)?;
        let options =
            ["serve".to_owned(), format!("--listen=[::]:{LOAD_PORT}"), "--log=json".into()];
        let serve = Call::new(&setting.load_client, &options);
        let mut serve = place.start("server", serve, &dir.join("serve.log"), Ready::Event)?;
        serve.wait_ready(setting.scaled(READY), &setting.interrupt)?;
        let output = format!("--output={}", dir.join("observe.json").display());
        let options = ["observe", "--interval=500ms", "--log=json", &output];
        let observer = Call::new(&setting.load_client, &options);
        let mut observer =
            place.start("node1", observer, &dir.join("observe.log"), Ready::Event)?;
        observer.wait_ready(setting.scaled(READY), &setting.interrupt)?;
        Ok(Stage { place, serve, observer, dir })
    }

    /// Ends what runs beside, and keeps what the observer saw.
    fn close(&mut self, stage: Stage<'_>, timeline: &mut Timeline) -> Result<(), PlaceError> {
        let Stage { place, serve, observer, dir } = stage;
        serve.signal(Signal::SIGTERM);
        observer.signal(Signal::SIGTERM);
        let within = self.setting.scaled(READY);
        let status = observer.wait(within, &self.setting.interrupt)?;
        serve.wait(within, &self.setting.interrupt)?;
        let observed: ObserveResult =
            cell::result("load-client", &dir.join("observe.json"), status)?;
        let loads = std::mem::take(&mut self.loads);
        if loads.iter().any(|l| series::classes(l).len() > 1) {
            timeline.reasons.push(
                "Where a step's connections failed in several ways, the series shares them out in proportion; \
                 the step's own counts are exact."
                    .to_owned(),
            );
            timeline.reasons.dedup();
        }
        timeline.reasons.extend(observed.reasons.iter().cloned());
        match observed.run.started.parse::<jiff::Timestamp>() {
            Ok(t) => {
                let started = t.as_microsecond() as f64 / 1e6;
                series::add(timeline, self.wall, started, &observed, &loads);
            }
            Err(e) => timeline.reasons.push(format!("the observer's series has no begin: {e}")),
        }
        drop(place);
        Ok(())
    }

    /// Connections to the held port, both ends in our hands.
    fn connect(
        &self,
        stage: &Stage<'_>,
        n: u32,
    ) -> Result<Vec<(TcpStream, TcpStream)>, PlaceError> {
        let target = SocketAddr::new(stage.place.topology.service.vip.v4.into(), HELD_PORT);
        let local = SocketAddr::new(stage.place.topology.service.pod.v4.into(), HELD_PORT);
        let wrong = |what: String| move |source| EvidenceError::Io { what, source };
        let listener = stage.place.within("server", move || {
            TcpListener::bind(local).map_err(wrong(format!("listen on {local}")))
        })?;
        let deadline = self.setting.scaled(READY);
        let mut pairs = Vec::new();
        let mut left = n;
        while left > 0 {
            // Fewer than the listener's backlog at a time.
            let some = left.min(50);
            let clients = stage.place.within("client", move || {
                (0..some)
                    .map(|_| TcpStream::connect_timeout(&target, deadline))
                    .collect::<std::io::Result<Vec<_>>>()
                    .map_err(wrong(format!("connect to {target}")))
            })?;
            pairs.extend(
                streams::accept(&listener, clients).map_err(io_error("accept", &stage.dir))?,
            );
            left -= some;
        }
        Ok(pairs)
    }

    /// One step: boom-server and its canary connections, and the load.
    fn step(
        &mut self,
        stage: &Stage<'_>,
        plan: Plan<'_>,
        timeline: &mut Timeline,
        facts: &mut Facts,
    ) -> Result<(), PlaceError> {
        let (setting, place) = (self.setting, &stage.place);
        let interrupt = &setting.interrupt;
        let t = self.begun.elapsed().as_secs_f64();
        let dir = self.dir.join(format!("step-{:02}", timeline.steps.len() + 1));
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let limit = table::max().map_err(sysctl_error)?;
        let before = place.within("node1", counters)?;
        let mut boom = boom_server(place, setting, "control,above-window", &dir)?;
        boom.wait_ready(setting.scaled(READY), interrupt)?;
        let time = plan.load.map_or(Duration::from_secs(u64::from(self.s.seconds)), |l| l.time);
        let churn = plan.load.map(|load| self.churn(place, load, &dir)).transpose()?;
        let probe =
            self.probe(place, &dir, time, plan.load.is_some_and(|l| l.connections.is_some()))?;
        let mut peak = place.within("node1", count)?;
        let mut load = None;
        if let Some(mut churn) = churn {
            let end = Instant::now() + time + TIMEOUT + READY;
            while !churn.ends_within(Duration::from_millis(100), interrupt)? && Instant::now() < end
            {
                peak = peak.max(place.within("node1", count)?);
            }
            let status = churn.wait(READY, interrupt)?;
            load = Some(cell::result::<LoadResult>("load-client", &dir.join("load.json"), status)?);
            probe.signal(Signal::SIGTERM);
        }
        let status = probe.wait(time + TIMEOUT * 4 + READY, interrupt)?;
        let probe: LoadResult = cell::result("load-client", &dir.join("probe.json"), status)?;
        boom.signal(Signal::SIGTERM);
        let status = boom.wait(setting.scaled(READY), interrupt)?;
        let boom: BoomResult = cell::result("boom-server", &dir.join("boom.json"), status)?;
        peak = peak.max(place.within("node1", count)?);
        let group = plan.streams.map_or_else(BTreeMap::new, |(s, talk)| s.ends(talk));
        let conntrack = place.within("node1", counters)?.since(before);
        let failures = load.as_ref().map(series::classes).unwrap_or_default();
        let shown = Shown {
            kind: plan.kind,
            limit,
            peak,
            attempts: load.as_ref().map_or(0, |l| l.attempts),
            failures,
            group,
            forged: boom.outcomes.iter().map(|o| o.forged).sum(),
            attributed: boom.resets.attributed,
            conntrack,
        };
        let mut notes = vec![format!(
            "{peak} of {limit} entries at most. The canary's own connections: {}; boom-server forged {} \
             segments and attributed {} RSTs to them.",
            listed(&probe.probe),
            shown.forged,
            shown.attributed
        )];
        if boom.sniffer.dropped > 0 {
            notes
                .push(format!("boom-server's raw sockets lost {} segments.", boom.sniffer.dropped));
        }
        timeline.steps.push(Step {
            t,
            title: plan.title,
            changes: plan.changes,
            new_attempts: shown.attempts,
            new_ok: load.as_ref().map_or(0, |l| l.ok),
            new_failures: shown.failures.clone(),
            established: shown.group.clone(),
            boom: outcomes(&boom),
            conntrack,
            notes,
        });
        if shown.kind == Kind::Load && !shown.full() {
            timeline.reasons.push(format!(
                "The table was not full after the step that should fill it: {peak} of {limit} entries. \
                 A smaller one (--host-table-size, as root) fills sooner."
            ));
        }
        facts.steps.push(shown);
        self.loads.extend(load);
        Ok(())
    }

    fn churn(&self, place: &Place<'_>, load: Load, dir: &Path) -> Result<Process, PlaceError> {
        let target = SocketAddr::new(place.topology.service.vip.v4.into(), LOAD_PORT);
        let from: Vec<_> = sources().take(load.clients as usize).collect();
        // Room for a second and a half of connects that get no answer.
        let most = (load.rate * 2.0).ceil().clamp(100.0, 40_000.0);
        let mut options = vec![
            "churn".to_owned(),
            format!("--target=tcp://{target}"),
            format!("--rate={:.1}", load.rate),
            format!("--concurrency={most:.0}"),
            format!("--duration={}ms", load.time.as_millis()),
            format!("--timeout={}ms", TIMEOUT.as_millis()),
            format!("--source-ip={}", from.join(",")),
            "--log=json".into(),
            format!("--output={}", dir.join("load.json").display()),
        ];
        if let Some(n) = load.connections {
            options.push(format!("--connections={n}"));
        }
        let call = Call::new(&self.setting.load_client, &options);
        place.start("client", call, &dir.join("load.log"), Ready::Event)
    }

    fn probe(
        &self,
        place: &Place<'_>,
        dir: &Path,
        time: Duration,
        open_end: bool,
    ) -> Result<Process, PlaceError> {
        // A step that ends by its count ends its canary too.
        let time = if open_end { time } else { time.saturating_sub(Duration::from_secs(1)) };
        let options = [
            "probe".to_owned(),
            format!("--target=tcp://{}", place.topology.target(Family::Ipv4)),
            "--connections=5".into(),
            "--every=1s".into(),
            format!("--duration={}ms", time.max(Duration::from_millis(500)).as_millis()),
            "--pattern=request".into(),
            "--delay=500ms".into(),
            format!("--timeout={}ms", TIMEOUT.as_millis()),
            "--log=json".into(),
            format!("--output={}", dir.join("probe.json").display()),
        ];
        let call = Call::new(&self.setting.load_client, &options);
        place.start("client", call, &dir.join("probe.log"), Ready::Event)
    }

    /// Captures what only a lost entry can cause on the transfers' port.
    fn capture(&self, stage: &Stage<'_>) -> Result<[Process; 2], PlaceError> {
        let pod = stage.place.topology.service.pod.v4;
        let start = |host: &'static str, filter: &str| {
            let file = stage.dir.join(format!("{host}.pcap")).display().to_string();
            let options = [
                "-Z",
                "root",
                "-n",
                "-i",
                "eth0",
                "--immediate-mode",
                "-s",
                "128",
                "-w",
                &file,
                filter,
            ];
            let call = self.setting.tools.call("tcpdump", &options)?;
            let log = stage.dir.join(format!("tcpdump-{host}.log"));
            let mut process = stage.place.start(host, call, &log, Ready::Text("listening on"))?;
            process.wait_ready(self.setting.scaled(READY), &self.setting.interrupt)?;
            Ok::<_, PlaceError>(process)
        };
        Ok([
            start("client", &format!("src host {pod} and tcp src port {HELD_PORT}"))?,
            start("server", &format!("tcp dst port {HELD_PORT} and tcp[tcpflags] & tcp-rst != 0"))?,
        ])
    }

    /// Packets in both captures.
    fn captured(&self, stage: &Stage<'_>, captures: [Process; 2]) -> Result<[u64; 2], PlaceError> {
        for process in captures {
            process.signal(Signal::SIGINT);
            process.wait(self.setting.scaled(READY), &self.setting.interrupt)?;
        }
        let packets = |host: &str| {
            let path = stage.dir.join(format!("{host}.pcap"));
            let bytes = fs::read(&path).map_err(io_error("read", &path))?;
            capture::packets(&bytes).map_err(|e| io_error("read", &path)(std::io::Error::other(e)))
        };
        Ok([packets("client")?, packets("server")?])
    }
}

fn sysctl_error(source: std::io::Error) -> PlaceError {
    PlaceError::Io { what: format!("use sysctl {}", table::MAX), source }
}
