//! Runs the cases of a cause: boom-server as anywhere else, connections of this program's own,
//! and the steps that they go through. What a step does to hosts is in `nodes`.

mod hosts;
mod judging;
mod nodes;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::document::lab::{CommandList, Seen as Became};
use canary_record::names::Forgery;
use canary_record::result::boom::OutcomeCount;
use canary_record::result::load::LoadResult;
use canary_testbed::evidence;
use canary_testbed::exec::Ready;
use canary_testbed::model::At;
use canary_testbed::network::wire::Network;
use canary_testbed::os::{os, wrong};
use canary_testbed::testbed::TestbedError;
use canary_testbed::topology::{self, POD_PORT};

use self::hosts::{CLIENT, SECOND_LINK, host_route, hosts};
use self::judging::Judging;
use self::nodes::Full;
use self::rules::Line;
use super::connections::Connections;
use super::setting::{self, Place, READY, Running, Setting, io_error, write};
use crate::observed::cause::{After, Seen};
use crate::observed::unheard;
use crate::scenario::cause::{Case, Cause, Step, TWO_ENDPOINTS, Wait};

/// Time for segments that are on their way: a server's answer, an RST.
const UNDER_WAY: Duration = Duration::from_millis(700);
/// How long forged segments may take to be judged: the longest judgement, of one that bears SYN and is
/// dropped, takes 3.4 s.
const JUDGED: Duration = Duration::from_secs(5);
/// How long the client waits for the server's FIN.
const CLOSE: Duration = Duration::from_secs(1);
/// From a handshake to what is forged on it.
const ESTABLISHED: Duration = Duration::from_millis(20);

/// Runs one case, in hosts of its own; what is kept goes to `dir`.
pub(crate) fn run(
    of: &Cause,
    case: &Case,
    setting: &Setting,
    dir: &Path,
    prefix: &str,
) -> Result<Seen, TestbedError> {
    fs::create_dir_all(dir).map_err(io_error("create", dir))?;
    let place = setting.place(hosts(case, prefix))?;
    let n = of.connections(case);
    let run = Run {
        place: &place,
        case,
        n,
        dir,
        connections: Connections::none(
            place.topology.target(case.family),
            setting.scaled(case.patience.0),
            case.keepalive,
            setting.interrupt.clone(),
        ),
        servers: Vec::new(),
        seen: Seen {
            connections: n.into(),
            patience: setting.scaled(case.patience.0),
            ..Seen::default()
        },
        full: None,
        entries: 0,
        service: BTreeMap::new(),
        equipped: BTreeSet::new(),
    };
    run.all(of)
}

/// What to type to build the hosts of each case; alike ones once.
pub(crate) fn commands(cause: &Cause) -> CommandList {
    let mut seen = BTreeSet::new();
    let mut lines = Vec::new();
    for case in &cause.cases {
        let steps: Vec<_> = hosts(case, "").steps.iter().map(topology::Step::shell).collect();
        if seen.insert(steps.clone()) {
            lines.push(format!("# {}", case.title));
            lines.extend(steps);
        }
    }
    CommandList { title: "hosts and links of each case".to_owned(), lines }
}

struct Run<'a> {
    place: &'a Place<'a>,
    case: &'a Case,
    /// Connections of the case.
    n: u32,
    dir: &'a Path,
    connections: Connections,
    /// boom-server at each endpoint.
    servers: Vec<Running>,
    seen: Seen,
    full: Option<Full<'a>>,
    /// Entries of the client's node after connections last used them, until they go.
    entries: u64,
    /// The Service's rules on each node.
    service: BTreeMap<&'static str, Vec<Line>>,
    /// The hosts that have rules of their own.
    equipped: BTreeSet<String>,
}

impl Run<'_> {
    fn all(mut self, of: &Cause) -> Result<Seen, TestbedError> {
        let (place, case) = (self.place, self.case);
        let interrupt = &place.setting.interrupt;
        let network = case.network.map(|n| Network::start(place, n.conditions())).transpose()?;
        place.protect(case.proxy_mode, case.family, &case.protections)?;
        self.choose_endpoints(false)?;
        if let Some(Wait(time)) = case.ipvs_timeout {
            // Nought leaves the other timeouts as they are.
            let seconds = place.scaled(time).as_secs().to_string();
            place.tool("node1", "ipvsadm", &["--set", &seconds, "0", "0"], "")?;
        }
        if case.steps.contains(&Step::Reconnect) {
            // The client's own ports are free as soon as both ends have closed.
            place.set(place.topology.client, "net/ipv4/tcp_max_tw_buckets", "0")?;
        }
        // The pod beside too, whose link may take longer than a connection has patience.
        let beside = Some(SocketAddr::new(self.second(), POD_PORT));
        let beside = beside.filter(|_| TWO_ENDPOINTS.contains(&case.path));
        for target in [Some(place.topology.target(case.family)), beside].into_iter().flatten() {
            let dead = case.nothing_comes_back();
            let patience = if dead { Duration::ZERO } else { place.scaled(READY) };
            let warm = place.warm_up(target, patience)?;
            // What a dead path does would pass for what the cause does. A bad network tells itself
            // what it let through.
            if !warm && !dead && case.network.is_none() {
                let never =
                    format!("reach {target} before the case: its closed port never answered");
                return Err(os(never)(std::io::ErrorKind::TimedOut).into());
            }
        }
        if case.second_link {
            let near = SECOND_LINK[0].of(case.family).to_string();
            let client = host_route(CLIENT.of(case.family));
            self.route("node2", &[&client, "via", &near, "dev", "to-client2"])?;
        }
        self.note_service()?;
        for host in of.hosts.iter().chain(&case.hosts) {
            self.equip(host)?;
        }
        // Of the attempts before: what is counted is the case's own.
        for node in place.topology.nodes(At::Both) {
            place.within(node, evidence::forget_all)?;
        }
        let listening = case.expect.witness.is_some();
        let listening = if listening { self.listen()? } else { Vec::new() };
        self.serve("")?;
        let captures = self.capture()?;
        let before = place.within("node1", evidence::conntrack_counters)?;
        for step in &case.steps {
            interrupt.check()?;
            let (forged, gone) = self.step(step)?;
            self.connections.look();
            let (what, client) = (step.to_string(), self.connections.ends());
            let after = After { what, client, forged, gone };
            self.seen.steps.push(after);
        }
        // How they stand, and what the kernel said, before the lab closes them: its own FIN may meet no entry.
        interrupt.sleep(place.scaled(UNDER_WAY))?;
        self.connections.look();
        self.seen.client = self.connections.ends();
        self.seen.failures = self.connections.failures();
        self.seen.errors = self.connections.errors();
        self.seen.witnesses = setting::end_witnesses(listening)?;
        self.connections.end(place.scaled(CLOSE));
        interrupt.sleep(place.scaled(UNDER_WAY))?;
        self.end_servers()?;
        self.seen.rules = self.counted()?;
        let scale = place.setting.time_scale;
        if scale.to_bits() != 1_f64.to_bits() {
            let what = format!("Waits and conntrack timeouts of the file: times {scale}.");
            self.seen.rules.push(what);
        }
        self.doubt_limit()?;
        for (host, tap) in captures {
            if let (_, Some(loss)) = tap.stop(place.scaled(READY))? {
                self.seen.rules.push(format!("The capture at {host} is not whole: {loss}."));
            }
        }
        self.seen.conntrack = place.within("node1", evidence::conntrack_counters)?.since(before);
        if let Some(network) = network {
            let report = network.stop()?;
            let sides = [&report.left, &report.right];
            let [into, out] = [sides.map(|t| t.packets), sides.map(|t| t.sent)];
            let [into, out] = [into, out].map(|n| n.iter().sum::<u64>());
            self.changed("packets into and out of the bad network", into, out);
            if report.missed > 0 {
                let missed = report.missed;
                let doubt = format!("the bad network missed {missed} packets, by no design");
                self.seen.doubts.push(doubt);
            }
            write(&self.dir.join("network.txt"), report.to_string())?;
        }
        Ok(self.seen)
    }

    /// boom-server at each endpoint; `what` tells several of one case apart.
    fn serve(&mut self, what: &str) -> Result<(), TestbedError> {
        let (place, case) = (self.place, self.case);
        let forge: Vec<_> = case.expect.forged.keys().map(|f| f.as_str()).collect();
        // A raw socket hears the end of the handshake before TCP does (ip_protocol_deliver_rcu()): a
        // reset that comes in between ends no connection yet, and TCP resets the client's.
        let delay = format!("--forge-delay={}ms", place.scaled(ESTABLISHED).as_millis());
        for host in case.servers() {
            let dir = self.dir.join(host).join(what);
            fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
            let (at, more) = ((*host, case.listen), ["--min-forged=1", "--events=all", &delay]);
            self.servers.push(place.boom_server(at, &dir, &forge.join(","), &more)?);
        }
        Ok(())
    }

    /// Ends them, and with them their connections.
    fn end_servers(&mut self) -> Result<(), TestbedError> {
        for server in std::mem::take(&mut self.servers) {
            self.seen.boom.push(server.stop()?);
        }
        Ok(())
    }

    /// load-client's witness on every node: what a case expects of it nobody else can say.
    fn listen(&self) -> Result<Vec<(&'static str, Running)>, TestbedError> {
        let (on, mut notes) = (self.place.topology.nodes(At::Both), Vec::new());
        let witnesses = self.place.witnesses(on, self.dir, &mut notes)?;
        match notes.pop() {
            None => Ok(witnesses),
            Some(why) => Err(wrong("listen to the kernel")(why).into()),
        }
    }

    /// Gives what became of the segments that the client forged in it, and how many entries it saw go.
    fn step(&mut self, step: &Step) -> Result<(Vec<OutcomeCount>, u64), TestbedError> {
        let place = self.place;
        match step {
            Step::Connect | Step::Reconnect => {
                self.heard(&mut Judging::default())?;
                let (all, n) = (&mut self.connections, self.n);
                place.within(place.topology.client, || {
                    all.connect(n);
                    Ok(())
                })?;
                // What lives for a second may be gone when all is judged.
                self.count_entries()?;
                self.judged()?;
            }
            Step::Transfer(way) => {
                self.connections.transfer(*way);
                self.count_entries()?;
            }
            Step::Ask(delay) => {
                self.connections.ask(place.scaled(delay.0));
                self.acknowledged()?;
            }
            Step::Answer => {
                self.connections.answer();
                self.count_entries()?;
            }
            Step::HalfClose => {
                self.connections.half_close();
                self.acknowledged()?;
            }
            Step::Close => {
                self.connections.close();
                self.let_go(CLOSE)?;
            }
            Step::Vanish => self.vanish()?,
            Step::RestartServer => {
                self.end_servers()?;
                self.connections.ended();
                self.let_go(CLOSE)?;
                self.serve("again")?;
            }
            Step::Idle(time) => place.setting.interrupt.sleep(place.scaled(time.0))?,
            Step::DeleteEntries => return Ok((Vec::new(), self.delete_entries()?)),
            Step::FillTable => self.fill_table()?,
            Step::LetExpire => return Ok((Vec::new(), self.let_expire()?)),
            Step::MoveEndpoint => {
                self.choose_endpoints(true)?;
                self.note_service()?;
                self.changed("the Service's endpoint", self.pod(), self.second());
            }
            Step::ReplaceEndpoint => {
                let pod = host_route(self.pod());
                self.route(place.topology.home, &[&pod, "dev", "to-server2"])?;
            }
            Step::RemoveEndpoint => {
                let pod = host_route(self.pod());
                self.route(place.topology.home, &["unreachable", &pod])?;
            }
            Step::BlackHole => self.black_hole()?,
            Step::Forge(each) => return Ok((self.forge(each)?, 0)),
            Step::Change(host) => drop(self.change(host)?),
            // Judged later, by how connections stand after it.
            Step::Expect(_) => {}
        }
        Ok((Vec::new(), 0))
    }

    /// load-client forges, and judges at its own end.
    fn forge(
        &mut self,
        each: &BTreeMap<Forgery, Became>,
    ) -> Result<Vec<OutcomeCount>, TestbedError> {
        let place = self.place;
        let names: Vec<_> = each.keys().map(|f| f.as_str()).collect();
        let options = vec![
            "probe".to_owned(),
            format!("--target=tcp://{}", place.topology.target(self.case.family)),
            format!("--connections={}", self.n),
            "--pattern=idle".into(),
            format!("--delay={}ms", place.scaled(JUDGED).as_millis()),
            format!("--forge={}", names.join(",")),
            "--min-forged=1".into(),
        ];
        let (client, at) = (place.topology.client, (self.dir, "forge"));
        let load = place.load_client(client, at, options, Ready::Event)?;
        let patience = place.scaled(JUDGED * 2) + READY;
        let result: LoadResult = load.result(patience)?;
        let Some(forge) = result.forge else { return Ok(Vec::new()) };
        if let Some(why) = forge.untried {
            return Err(wrong("forge with load-client")(why).into());
        }
        let (forged, n) = (forge.outcomes.iter().map(|o| o.forged).sum::<u64>(), u64::from(self.n));
        if forged < n {
            self.seen.doubts.push(format!("load-client forged on {forged} of {n} connections"));
        }
        self.seen.doubts.extend(unheard("load-client", &forge.sniffer));
        Ok(forge.outcomes)
    }

    /// Until boom-server has judged what it forged on the connections that came to be: a step that
    /// comes before would hide the answer, whatever it is.
    fn judged(&mut self) -> Result<(), TestbedError> {
        let (place, open) = (self.place, self.connections.open_ones());
        let (mut judging, end) = (Judging::default(), Instant::now() + place.scaled(JUDGED));
        self.heard(&mut judging)?;
        while !judging.done(open) && Instant::now() < end {
            place.setting.interrupt.sleep(Duration::from_millis(5))?;
            self.heard(&mut judging)?;
        }
        for forgery in judging.unknown() {
            *self.seen.own_unknown.entry(forgery).or_default() += 1;
        }
        Ok(place.setting.interrupt.sleep(place.scaled(UNDER_WAY))?)
    }

    /// What the servers have told since they were last heard.
    fn heard(&mut self, judging: &mut Judging) -> Result<(), TestbedError> {
        for server in &mut self.servers {
            server.process.lines()?.iter().for_each(|line| judging.hear(line));
        }
        Ok(())
    }
}
