//! Runs the cases of a cause: boom-server as anywhere else, connections of this program's own,
//! and the steps that they go through.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::document::lab::{CommandList, ProxyMode, Seen as Became};
use crate::document::timeline::Change;
use canary_conntrack::table::Table;
use canary_record::names::Forgery;
use canary_record::result::boom::{BoomResult, OutcomeCount};
use canary_record::result::load::{ForgeRecord, LoadResult};
use canary_runtime::output::write_file;
use canary_testbed::evidence::{self, EvidenceError};
use canary_testbed::exec::{Process, Ready};
use canary_testbed::model::At;
use canary_testbed::network::wire::Network;
use canary_testbed::testbed::{Testbed, TestbedError};
use canary_testbed::topology::{self, POD_PORT, Topology};
use canary_wire::segment::Family;
use nix::sys::signal::Signal;

use super::connections::Connections;
use super::setting::{self, Setting, boom_server_at, count, io_error};
use crate::observed::cause::{After, Seen};
use crate::scenario::cause::{Case, Cause, Host, Link, Masquerade, Step, Wait};

/// Time for boom-server to judge what it forged, and for RSTs on their way.
const JUDGED: Duration = Duration::from_millis(700);
/// The same where segments are dropped, or leak in another way than by the RST that ends the
/// connection: the longest judgement, of a segment that bears SYN and is dropped, takes 3.4 s.
const JUDGED_WHOLLY: Duration = Duration::from_secs(5);
/// How long the client waits for progress.
const PATIENCE: Duration = Duration::from_millis(2500);
/// How long the client waits for the server's FIN.
const CLOSE: Duration = Duration::from_secs(1);
/// How long anything may take to become ready or to end.
const READY: Duration = Duration::from_secs(10);
/// How long entries may take to expire, beyond what is written in the case.
const EXPIRY: Duration = Duration::from_secs(60);
/// Smaller than what both pods take for granted, more than forged segments need.
const BLACK_HOLE_MTU: &str = "1300";
/// The client pod's address on its second link, and that of the node at its other end.
const SECOND_LINK: [&str; 2] = ["198.18.70.2", "198.18.70.1"];

/// Runs one case, in hosts of its own; what is kept goes to `dir`.
pub fn run(
    of: &Cause,
    case: &Case,
    setting: &Setting,
    dir: &Path,
    prefix: &str,
) -> Result<Seen, TestbedError> {
    fs::create_dir_all(dir).map_err(io_error("create", dir))?;
    let testbed = Testbed::build(hosts(case, prefix), &setting.tools)?;
    Run { testbed: &testbed, setting, case, dir, changes: Vec::new() }.all(of)
}

/// What to type to build the hosts of each case; alike ones once.
#[must_use]
pub fn commands(cause: &Cause) -> CommandList {
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

/// Where the server pod is, and a second address beside it.
fn beside(topology: &Topology) -> (&'static str, String, String) {
    let [a, b, net, _] = topology.service.pod.v4.octets();
    let node = if net == 65 { "node1" } else { "node2" };
    (node, format!("{a}.{b}.{net}.77"), format!("{a}.{b}.{net}.1"))
}

/// The hosts of the path, with a pod beside the server pod that has the same address and no route
/// to it yet, and with the second link where there is one.
fn hosts(case: &Case, prefix: &str) -> Topology {
    use topology::Step::{Add, Ip};
    let mut topology = Topology::new(case.path, prefix);
    if let Some(network) = case.network {
        let (node, ..) = beside(&topology);
        let client = topology.client();
        topology = match network.at {
            Link::Nodes => topology.through_a_network(),
            Link::Client => topology.with_network_in(("node1", &format!("to-{client}")), client),
            Link::Server => topology.with_network_in((node, "to-server"), "server"),
        };
    }
    let (node, own, gateway) = beside(&topology);
    let (node, pod) = (topology.full(node), topology.full("server2"));
    let address = topology.service.pod.v4;
    topology.hosts.push("server2");
    topology.steps.push(Add(pod.clone()));
    let mut lines = vec![
        (&node, format!("link add to-server2 type veth peer name eth0 netns {pod}")),
        (&node, format!("addr add {gateway}/32 dev to-server2")),
        (&node, "link set to-server2 up".to_owned()),
        (&pod, "link set lo up".to_owned()),
        (&pod, format!("addr add {address}/32 dev eth0")),
        (&pod, format!("addr add {own}/32 dev eth0")),
        (&node, format!("route add {own}/32 dev to-server2")),
        (&pod, "link set eth0 up".to_owned()),
        (&pod, format!("route add {gateway}/32 dev eth0 scope link")),
        (&pod, format!("route add default via {gateway}")),
    ];
    let client = topology.full("client");
    if case.second_link {
        let [near, far] = SECOND_LINK;
        lines.extend([
            (&node, format!("link add to-client2 type veth peer name eth1 netns {client}")),
            (&node, format!("addr add {far}/24 dev to-client2")),
            (&node, "link set to-client2 up".to_owned()),
            (&client, format!("addr add {near}/24 dev eth1")),
            (&client, "link set eth1 up".to_owned()),
        ]);
    }
    let steps = lines.into_iter().map(|(host, args)| Ip(host.clone(), args));
    topology.steps.extend(steps);
    topology
}

struct Run<'a> {
    testbed: &'a Testbed<'a>,
    setting: &'a Setting,
    case: &'a Case,
    dir: &'a Path,
    changes: Vec<Change>,
}

impl Run<'_> {
    fn all(mut self, of: &Cause) -> Result<Seen, TestbedError> {
        let (testbed, setting, case) = (self.testbed, self.setting, self.case);
        let (interrupt, n) = (&setting.interrupt, of.connections(case));
        let network = case.network.map(|n| Network::start(testbed, n.conditions())).transpose()?;
        testbed.protect(case.proxy_mode, case.family, &case.protections)?;
        self.choose_endpoints(false)?;
        if let Some(Wait(time)) = case.ipvs_timeout {
            // Nought leaves the other timeouts as they are.
            let seconds = setting.scaled(time).as_secs().to_string();
            self.ipvsadm(&["--set", &seconds, "0", "0"])?;
        }
        if case.steps.contains(&Step::Reconnect) {
            // The client's own ports are free as soon as both ends have closed.
            testbed
                .within("client", || evidence::set_sysctl("net/ipv4/tcp_max_tw_buckets", "0"))?;
        }
        testbed.warm_up(case.family, setting.scaled(READY), interrupt)?;
        if case.second_link {
            let [near, _] = SECOND_LINK;
            self.route("node2", &["198.18.65.10/32", "via", near, "dev", "to-client2"])?;
        }
        for host in of.hosts.iter().chain(&case.hosts) {
            self.change(host)?;
        }
        // Of the attempts before: what is counted is the case's own.
        for node in testbed.topology.nodes(At::Both) {
            testbed.within(node, evidence::forget_all)?;
        }
        let listening = match case.expect.witness {
            Some(_) => self.listen()?,
            None => Vec::new(),
        };
        let servers = self.serve()?;
        let before = testbed.within("node1", evidence::conntrack_counters)?;
        let (mut connections, mut deleted) = (None::<Connections>, 0);
        let mut steps = Vec::new();
        for step in &case.steps {
            interrupt.check()?;
            let mut forged = Vec::new();
            match step {
                Step::Forge(each) => forged = self.forge(each, n)?,
                _ => self.step(step, n, &mut connections, &mut deleted)?,
            }
            let client = connections.as_ref().map(Connections::ends).unwrap_or_default();
            steps.push(After { what: step.to_string(), client, forged });
        }
        if let Some(connections) = &mut connections {
            connections.end(setting.scaled(CLOSE));
        }
        // RSTs on their way, and a server whose answer is due.
        interrupt.sleep(setting.scaled(JUDGED))?;
        let mut boom = Vec::new();
        for (server, file) in servers {
            server.signal(Signal::SIGTERM);
            let status = server.wait(setting.scaled(READY), interrupt)?;
            boom.push(setting::result::<BoomResult>("boom-server", &file, status)?);
        }
        let conntrack = testbed.within("node1", evidence::conntrack_counters)?.since(before);
        let witnesses = setting::end_witnesses(listening, self.dir, setting)?;
        if let Some(network) = network {
            let report = network.stop()?;
            let sides = [&report.left, &report.right];
            let [into, out] = [sides.map(|t| t.packets), sides.map(|t| t.sent)];
            let [into, out] = [into, out].map(|n| n.iter().sum::<u64>().to_string());
            self.changed("packets into and out of the bad network", into, out);
            let file = self.dir.join("network.txt");
            write_file(&file, report.to_string())
                .map_err(|e| io_error("write", &file)(e.into()))?;
        }
        Ok(Seen {
            t: 0.0,
            connections: u64::from(n),
            client: connections.as_ref().map(Connections::ends).unwrap_or_default(),
            failures: connections.as_ref().map(Connections::failures).unwrap_or_default(),
            boom,
            steps,
            deleted,
            witnesses,
            changes: self.changes,
            conntrack,
        })
    }

    /// boom-server at each endpoint.
    fn serve(&self) -> Result<Vec<(Process, std::path::PathBuf)>, TestbedError> {
        let (setting, case) = (self.setting, self.case);
        let forge: Vec<_> = case.expect.forged.keys().map(|f| f.as_str()).collect();
        let one = ["--min-forged=1".to_owned()];
        let mut servers = Vec::new();
        for host in case.servers() {
            let dir = self.dir.join(host);
            fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
            let at = (*host, case.listen);
            let mut boom = boom_server_at(self.testbed, setting, at, &dir, &forge.join(","), &one)?;
            boom.wait_ready(setting.scaled(READY), &setting.interrupt)?;
            servers.push((boom, dir.join("boom.json")));
        }
        Ok(servers)
    }

    /// load-client's witness on every node.
    fn listen(&self) -> Result<Vec<(&'static str, Process)>, TestbedError> {
        let nodes = self.testbed.topology.nodes(At::Both);
        let mut witnesses = setting::start_witnesses(self.testbed, nodes, self.dir, self.setting)?;
        for (_, process) in &mut witnesses {
            process.wait_ready(self.setting.scaled(READY), &self.setting.interrupt)?;
        }
        Ok(witnesses)
    }

    fn step(
        &mut self,
        step: &Step,
        n: u32,
        connections: &mut Option<Connections>,
        deleted: &mut u64,
    ) -> Result<(), TestbedError> {
        let (testbed, setting) = (self.testbed, self.setting);
        let interrupt = &setting.interrupt;
        if matches!(step, Step::Connect) {
            let target = testbed.topology.target(self.case.family);
            let patience = setting.scaled(PATIENCE);
            *connections = Some(testbed.within(testbed.topology.client(), || {
                Ok(Connections::connect(target, n, patience))
            })?);
            interrupt.sleep(setting.scaled(self.judged()))?;
            return Ok(());
        }
        match (step, connections) {
            (Step::Transfer(way), Some(all)) => all.transfer(*way),
            (Step::Ask(delay), Some(all)) => all.ask(setting.scaled(delay.0)),
            (Step::Answer, Some(all)) => all.answer(),
            (Step::HalfClose, Some(all)) => all.half_close(),
            (Step::Close, Some(all)) => all.close(),
            (Step::Vanish, Some(all)) => self.vanish(all)?,
            (Step::Reconnect, Some(all)) => {
                testbed.within(testbed.topology.client(), || {
                    all.reconnect();
                    Ok(())
                })?;
                interrupt.sleep(setting.scaled(self.judged()))?;
            }
            (Step::Idle(time), _) => interrupt.sleep(setting.scaled(time.0))?,
            (Step::DeleteEntries, _) => {
                let (from, to) = testbed.within("node1", || {
                    let from = count()?;
                    evidence::forget_all()?;
                    Ok((from, count()?))
                })?;
                *deleted += from.saturating_sub(to);
                self.changed("entries on the client's node", from.to_string(), to.to_string());
            }
            (Step::LetExpire, _) => self.let_expire()?,
            (Step::MoveEndpoint, _) => {
                self.choose_endpoints(true)?;
                let (_, second, _) = beside(&testbed.topology);
                let from = testbed.topology.service.pod.v4.to_string();
                self.changed("the Service's endpoint", from, second);
            }
            (Step::ReplaceEndpoint, _) => {
                let pod = format!("{}/32", testbed.topology.service.pod.v4);
                self.route(beside(&testbed.topology).0, &[&pod, "dev", "to-server2"])?;
            }
            (Step::RemoveEndpoint, _) => {
                let pod = format!("{}/32", testbed.topology.service.pod.v4);
                self.route(beside(&testbed.topology).0, &["unreachable", &pod])?;
            }
            (Step::BlackHole, _) => self.black_hole()?,
            (Step::Change(host), _) => self.change(host)?,
            // What it expects is judged later. No other step is without connections.
            _ => {}
        }
        Ok(())
    }

    /// load-client forges, and judges at its own end.
    fn forge(
        &self,
        each: &BTreeMap<Forgery, Became>,
        n: u32,
    ) -> Result<Vec<OutcomeCount>, TestbedError> {
        let (testbed, setting) = (self.testbed, self.setting);
        let names: Vec<_> = each.keys().map(|f| f.as_str()).collect();
        let options = vec![
            "probe".to_owned(),
            format!("--target=tcp://{}", testbed.topology.target(self.case.family)),
            format!("--connections={n}"),
            "--pattern=idle".into(),
            format!("--delay={}ms", setting.scaled(JUDGED_WHOLLY).as_millis()),
            format!("--forge={}", names.join(",")),
            "--min-forged=1".into(),
        ];
        let load =
            setting::load_client(testbed, setting, self.dir, "forge", options, Ready::Event)?;
        let status = load.wait(setting.scaled(JUDGED_WHOLLY * 2) + READY, &setting.interrupt)?;
        let file = self.dir.join("forge.json");
        let result: LoadResult = setting::result("load-client", &file, status)?;
        match result.forge {
            Some(ForgeRecord { untried: None, outcomes, .. }) => Ok(outcomes),
            Some(ForgeRecord { untried, .. }) => Err(TestbedError::Result {
                program: "load-client",
                status: status.to_string(),
                why: untried.unwrap_or_default(),
            }),
            None => Ok(Vec::new()),
        }
    }

    /// How long boom-server takes for the slowest of what should become of its segments.
    fn judged(&self) -> Duration {
        let at_once = |(f, seen): (&Forgery, &Became)| match (f, seen) {
            (Forgery::Control | Forgery::AboveWindow, Became::Delivered)
            | (Forgery::AboveWindow, Became::Kills) => true,
            _ => *seen == Became::NoConnection,
        };
        let forged = &self.case.expect.forged;
        if forged.iter().all(at_once) { JUDGED } else { JUDGED_WHOLLY }
    }

    fn changed(&mut self, what: impl Into<String>, from: String, to: String) {
        self.changes.push(Change { what: what.into(), from, to });
    }

    /// The client's connections end, and no segment says so.
    fn vanish(&self, all: &mut Connections) -> Result<(), TestbedError> {
        let table = "table inet lab-vanish";
        let rules = format!(
            "{table} {{ chain output {{ type filter hook output priority 0; meta l4proto tcp drop; }}; }}"
        );
        let client = self.testbed.topology.client();
        self.load(client, "nft", &["-f", "-"], &rules)?;
        all.vanish();
        self.load(client, "nft", &["-f", "-"], &format!("delete {table}"))
    }

    fn ipvsadm(&self, options: &[&str]) -> Result<(), TestbedError> {
        let tools = &self.setting.tools;
        self.testbed.within("node1", || Ok(tools.call("ipvsadm", options)?.run().map(drop)?))
    }

    /// Until a dump, which drops what has expired (`ctnetlink_dump_table()`), shows no connection,
    /// and IPVS has none.
    fn let_expire(&mut self) -> Result<(), TestbedError> {
        let entries = || -> Result<usize, TestbedError> {
            self.testbed.within("node1", || {
                let all =
                    Table::open().and_then(|mut t| t.dump()).map_err(|e| EvidenceError::Io {
                        what: "list conntrack entries".to_owned(),
                        source: std::io::Error::other(e),
                    })?;
                // Absent where there is no IPVS; one line of heads.
                let ipvs = fs::read_to_string("/proc/thread-self/net/ip_vs_conn");
                Ok(all.len() + ipvs.map_or(0, |text| text.lines().count().saturating_sub(1)))
            })
        };
        let from = entries()?;
        let end = Instant::now() + self.setting.scaled(EXPIRY);
        let mut left = from;
        while left > 0 {
            if Instant::now() >= end {
                return Err(TestbedError::Io {
                    what: format!("let-expire: {left} of {from} entries are left on node1"),
                    source: std::io::ErrorKind::TimedOut.into(),
                });
            }
            self.setting.interrupt.sleep(Duration::from_millis(50))?;
            left = entries()?;
        }
        self.changed("entries on the client's node", from.to_string(), "0".to_owned());
        Ok(())
    }

    /// Each new entry takes one of the endpoints, as kube-proxy has it, and one source. Once
    /// `moved`, the other pod is the Service's one endpoint.
    fn choose_endpoints(&self, moved: bool) -> Result<(), TestbedError> {
        let topology = &self.testbed.topology;
        let (target, pod) = (topology.target(Family::Ipv4), topology.service.pod.v4);
        let (_, second, _) = beside(topology);
        let ipvs = self.case.proxy_mode == ProxyMode::Ipvs;
        if ipvs && (moved || self.case.endpoints == 2) {
            let [service, at, other] =
                [target.to_string(), format!("{pod}:{POD_PORT}"), format!("{second}:{POD_PORT}")];
            self.ipvsadm(&["-a", "-t", &service, "-r", &other, "-m"])?;
            if moved {
                // What an endpoint that ends has until its last connection is gone.
                self.ipvsadm(&["-e", "-t", &service, "-r", &at, "-m", "-w", "0"])?;
            }
        }
        let to = match (moved, self.case.endpoints) {
            (true, _) => Some(second.clone()),
            (false, 1) => None,
            (false, _) => Some(format!("numgen random mod 2 map {{ 0 : {pod}, 1 : {second} }}")),
        };
        // Before the Service's own chains: the first NAT rule that matches decides.
        let choose = to.filter(|_| !ipvs).map_or_else(String::new, |to| {
            format!(
                "chain prerouting {{ type nat hook prerouting priority dstnat - 1; \
                 ip daddr {} tcp dport {} dnat to {to} : {POD_PORT}; }}\n",
                target.ip(),
                target.port()
            )
        });
        let masquerade = match self.case.masquerade {
            Masquerade::None => String::new(),
            how => format!(
                "chain postrouting {{ type nat hook postrouting priority srcnat - 1; \
                 ip daddr {{ {pod}, {second} }} tcp dport {POD_PORT} masquerade{}; }}\n",
                if how == Masquerade::Random { " fully-random" } else { "" }
            ),
        };
        if choose.is_empty() && masquerade.is_empty() {
            return Ok(());
        }
        let table = "table ip lab-endpoints";
        let rules = format!("add {table}\ndelete {table}\n{table} {{\n{choose}{masquerade}}}\n");
        self.load("node1", "nft", &["-f", "-"], &rules)
    }

    /// Rules as they are.
    fn load(
        &self,
        host: &str,
        tool: &'static str,
        options: &'static [&'static str],
        rules: &str,
    ) -> Result<(), TestbedError> {
        let tools = &self.setting.tools;
        self.testbed.within(host, || Ok(tools.call(tool, options)?.stdin(rules).run().map(drop)?))
    }

    /// Gives a host what it should have, and keeps what its kernel then holds in
    /// rules-HOST.txt.
    fn change(&mut self, host: &Host) -> Result<(), TestbedError> {
        for (name, value) in &host.sysctls {
            let key = name.replace('.', "/");
            let from = self.testbed.within(&host.name, || {
                let from = evidence::sysctl(&key)?;
                evidence::set_sysctl(&key, value)?;
                Ok(from)
            })?;
            self.changed(format!("{name} in {}", host.name), from, value.clone());
        }
        if let Some(rules) = &host.nft {
            self.load(&host.name, "nft", &["-f", "-"], rules)?;
        }
        if let Some(rules) = &host.iptables {
            self.load(&host.name, "iptables-restore", &["-w", "10", "--noflush"], rules)?;
        }
        if host.nft.is_some() || host.iptables.is_some() {
            let tools = &self.setting.tools;
            let held = self
                .testbed
                .within(&host.name, || Ok(tools.call("nft", &["list", "ruleset"])?.run()?))?;
            let file = self.dir.join(format!("rules-{}.txt", host.name));
            write_file(&file, held.as_bytes()).map_err(|e| io_error("write", &file)(e.into()))?;
        }
        Ok(())
    }

    fn black_hole(&mut self) -> Result<(), TestbedError> {
        for host in ["node1", "node2"] {
            let full = self.testbed.topology.full(host);
            let args = ["-n", &full, "link", "set", "eth0", "mtu", BLACK_HOLE_MTU];
            self.setting.tools.call("ip", &args)?.run()?;
            let rules = "table inet lab-black-hole {\n\
                         chain output { type filter hook output priority 0; \
                         icmp type destination-unreachable counter drop; }\n}\n";
            self.load(host, "nft", &["-f", "-"], rules)?;
        }
        self.changed("MTU between the nodes", "1500".to_owned(), BLACK_HOLE_MTU.to_owned());
        let (what, from) = ("ICMP destination-unreachable of the nodes", "sent".to_owned());
        self.changed(what, from, "dropped".to_owned());
        Ok(())
    }

    /// Another route in the place of the one that is there, told as the kernel shows it.
    fn route(&mut self, node: &str, route: &[&str]) -> Result<(), TestbedError> {
        let full = self.testbed.topology.full(node);
        let to = route.iter().find(|word| word.contains('/')).copied().unwrap_or_default();
        let tools = &self.setting.tools;
        let show = || -> Result<String, TestbedError> {
            let text = tools.call("ip", &["-n", &full, "route", "show", to])?.run()?;
            Ok(text.trim().to_owned())
        };
        let from = show()?;
        let args = [&["-n", &full, "route", "replace"], route].concat();
        tools.call("ip", &args)?.run()?;
        let now = show()?;
        self.changed(format!("route in {node}"), from, now);
        Ok(())
    }
}
