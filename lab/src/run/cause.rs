//! Runs the cases of a cause: boom-server as anywhere else, connections of this program's own,
//! and the steps that they go through.

mod hosts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::document::lab::{CommandList, ProxyMode, Seen as Became};
use crate::document::timeline::Change;
use canary_conntrack::netlink::NetlinkError;
use canary_conntrack::table::{Table, Tuple};
use canary_record::names::Forgery;
use canary_record::result::boom::{BoomResult, OutcomeCount};
use canary_record::result::load::{ForgeRecord, LoadResult};
use canary_runtime::output::write_file;
use canary_testbed::evidence::{self, EvidenceError};
use canary_testbed::exec::{Process, Ready};
use canary_testbed::model::At;
use canary_testbed::network::wire::Network;
use canary_testbed::testbed::{Testbed, TestbedError};
use canary_testbed::topology::{self, POD_PORT};
use canary_wire::segment::Family;
use nix::errno::Errno;
use nix::sys::signal::Signal;

use self::hosts::{CLIENT, SECOND_LINK, beside, home, host_route, hosts};
use super::connections::Connections;
use super::saturation::tables::destination;
use super::setting::{self, Setting, boom_server_at, count, io_error};
use crate::observed::cause::{After, Seen};
use crate::scenario::cause::{Case, Cause, Host, Masquerade, Step, Wait};
use crate::scenario::saturation::MOST_ENTRIES;

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
/// Whose connections fill a table, and how long they stay.
const OTHERS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 19, 127, 1)), 1);
const STAYS: Duration = Duration::from_secs(3600);
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
    Run { testbed: &testbed, setting, case, dir, changes: Vec::new(), full: None }.all(of)
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

/// A node whose table is full, one at a time: all namespaces of the machine share the buckets, and
/// chains that are too long (`chaintoolong`) would cost every one of them connections.
struct Full<'a> {
    testbed: &'a Testbed<'a>,
    _turn: MutexGuard<'static, ()>,
}

impl<'a> Full<'a> {
    fn of(testbed: &'a Testbed<'a>) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        Self { testbed, _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        // The namespace and its entries go with the lab at the latest.
        let _ = self.testbed.within("node1", evidence::forget_all);
    }
}

struct Run<'a> {
    testbed: &'a Testbed<'a>,
    setting: &'a Setting,
    case: &'a Case,
    dir: &'a Path,
    changes: Vec<Change>,
    full: Option<Full<'a>>,
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
            let near = SECOND_LINK[0].of(case.family).to_string();
            let client = host_route(CLIENT.of(case.family));
            self.route("node2", &[&client, "via", &near, "dev", "to-client2"])?;
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
        let mut servers = self.serve("")?;
        let before = testbed.within("node1", evidence::conntrack_counters)?;
        let (mut connections, mut deleted) = (None::<Connections>, 0);
        let (mut steps, mut boom) = (Vec::new(), Vec::new());
        for step in &case.steps {
            interrupt.check()?;
            let mut forged = Vec::new();
            match step {
                Step::Forge(each) => forged = self.forge(each, n)?,
                Step::RestartServer => {
                    boom.extend(self.end(std::mem::take(&mut servers))?);
                    if let Some(connections) = &mut connections {
                        connections.ended();
                    }
                    servers = self.serve("again")?;
                }
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
        boom.extend(self.end(servers)?);
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

    /// boom-server at each endpoint; `what` tells several of one case apart.
    fn serve(&self, what: &str) -> Result<Vec<(Process, PathBuf)>, TestbedError> {
        let (setting, case) = (self.setting, self.case);
        let forge: Vec<_> = case.expect.forged.keys().map(|f| f.as_str()).collect();
        let one = ["--min-forged=1".to_owned()];
        let mut servers = Vec::new();
        for host in case.servers() {
            let dir = self.dir.join(host).join(what);
            fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
            let at = (*host, case.listen);
            let mut boom = boom_server_at(self.testbed, setting, at, &dir, &forge.join(","), &one)?;
            boom.wait_ready(setting.scaled(READY), &setting.interrupt)?;
            servers.push((boom, dir.join("boom.json")));
        }
        Ok(servers)
    }

    /// Ends them, and with them their connections; gives what each saw.
    fn end(&self, servers: Vec<(Process, PathBuf)>) -> Result<Vec<BoomResult>, TestbedError> {
        let end = |(server, file): (Process, PathBuf)| {
            server.signal(Signal::SIGTERM);
            let status = server.wait(self.setting.scaled(READY), &self.setting.interrupt)?;
            setting::result("boom-server", &file, status)
        };
        servers.into_iter().map(end).collect()
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
            (Step::FillTable, _) => self.fill_table()?,
            (Step::LetExpire, _) => self.let_expire()?,
            (Step::MoveEndpoint, _) => {
                self.choose_endpoints(true)?;
                let second = beside(&testbed.topology)[0].of(self.case.family).to_string();
                self.changed("the Service's endpoint", self.pod().to_string(), second);
            }
            (Step::ReplaceEndpoint, _) => {
                let pod = host_route(self.pod());
                self.route(home(&testbed.topology), &[&pod, "dev", "to-server2"])?;
            }
            (Step::RemoveEndpoint, _) => {
                let pod = host_route(self.pod());
                self.route(home(&testbed.topology), &["unreachable", &pod])?;
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

    /// The server pod's address.
    fn pod(&self) -> IpAddr {
        self.testbed.topology.service.pod.of(self.case.family)
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

    /// Established connections of others, as many as there is room for.
    fn fill_table(&mut self) -> Result<(), TestbedError> {
        let testbed = self.testbed;
        self.full.get_or_insert_with(|| Full::of(testbed));
        let interrupt = &self.setting.interrupt;
        let filled = self.testbed.within("node1", || {
            let failed = |e: NetlinkError| EvidenceError::Io {
                what: "add conntrack entries".to_owned(),
                source: std::io::Error::other(e),
            };
            let (from, mut table) = (count()?, Table::open().map_err(failed)?);
            for flow in 0..MOST_ENTRIES {
                let (source, destination) = (OTHERS, SocketAddr::V4(destination(flow)));
                match table.add(Tuple { source, destination }, STAYS) {
                    Ok(true) => {}
                    Ok(false) => return Ok(Some((from, count()?))),
                    // Its bucket is full (`nf_conntrack_hash_check_insert()`): the next has another.
                    Err(e) if e.errno() == Some(Errno::ENOSPC as i32) => {}
                    Err(e) => return Err(failed(e)),
                }
                if flow % 1000 == 0 && interrupt.signalled().is_some() {
                    break;
                }
            }
            Ok(None)
        })?;
        interrupt.check()?;
        let Some((from, to)) = filled else {
            return Err(TestbedError::Io {
                what: format!("fill-table: {MOST_ENTRIES} entries do not fill it"),
                source: std::io::ErrorKind::StorageFull.into(),
            });
        };
        self.changed("entries on the client's node", from.to_string(), to.to_string());
        Ok(())
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
        let family = self.case.family;
        let (target, pod) = (topology.target(family), self.pod());
        let second = beside(topology)[0].of(family);
        let ip = if family == Family::Ipv4 { "ip" } else { "ip6" };
        let ipvs = self.case.proxy_mode == ProxyMode::Ipvs;
        if ipvs && (moved || self.case.endpoints == 2) {
            let [service, at, other] =
                [target, SocketAddr::new(pod, POD_PORT), SocketAddr::new(second, POD_PORT)]
                    .map(|at| at.to_string());
            self.ipvsadm(&["-a", "-t", &service, "-r", &other, "-m"])?;
            if moved {
                // What an endpoint that ends has until its last connection is gone.
                self.ipvsadm(&["-e", "-t", &service, "-r", &at, "-m", "-w", "0"])?;
            }
        }
        let to = match (moved, self.case.endpoints) {
            (true, _) => Some(second.to_string()),
            (false, 1) => None,
            (false, _) => Some(format!("numgen random mod 2 map {{ 0 : {pod}, 1 : {second} }}")),
        };
        // Before the Service's own chains: the first NAT rule that matches decides.
        let choose = to.filter(|_| !ipvs).map_or_else(String::new, |to| {
            format!(
                "chain prerouting {{ type nat hook prerouting priority dstnat - 1; \
                 {ip} daddr {} tcp dport {} dnat to {to} : {POD_PORT}; }}\n",
                target.ip(),
                target.port()
            )
        });
        let masquerade = match self.case.masquerade {
            Masquerade::None => String::new(),
            how => format!(
                "chain postrouting {{ type nat hook postrouting priority srcnat - 1; \
                 {ip} daddr {{ {pod}, {second} }} tcp dport {POD_PORT} masquerade{}; }}\n",
                if how == Masquerade::Random { " fully-random" } else { "" }
            ),
        };
        if choose.is_empty() && masquerade.is_empty() {
            return Ok(());
        }
        let table = format!("table {ip} lab-endpoints");
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
                         icmp type destination-unreachable counter drop; \
                         icmpv6 type packet-too-big counter drop; }\n}\n";
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
        let family = if to.contains(':') { "-6" } else { "-4" };
        let show = || -> Result<String, TestbedError> {
            let text = tools.call("ip", &[family, "-n", &full, "route", "show", to])?.run()?;
            Ok(text.trim().to_owned())
        };
        let from = show()?;
        let args = [&[family, "-n", &full, "route", "replace"], route].concat();
        tools.call("ip", &args)?.run()?;
        let now = show()?;
        self.changed(format!("route in {node}"), from, now);
        Ok(())
    }
}
