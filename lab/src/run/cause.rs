//! Runs the cases of a cause: boom-server and connections as anywhere else,
//! and then what happens to them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::document::lab::{CommandList, Path as NetPath, ProxyMode};
use crate::document::timeline::Change;
use canary_record::probe::{Line, Request};
use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use canary_runtime::output::write_file;
use canary_testbed::evidence::{self, EvidenceError};
use canary_testbed::exec::Ready;
use canary_testbed::testbed::{Testbed, TestbedError};
use canary_testbed::topology::{self, POD_PORT, SERVICE_PORT, Topology};
use canary_wire::segment::Family;
use nix::sys::signal::Signal;

use super::setting::{self, Setting, boom_server, broken_off, count, guarded, io_error, set};
use crate::observed::cause::Seen;
use crate::scenario::cause::{Action, Case, Cause, Host, Masquerade, Pattern};

/// Time for boom-server to judge what it forged.
const JUDGED: Duration = Duration::from_millis(700);
/// From the connect to the client's first line.
const IDLE: Duration = Duration::from_millis(1600);
/// The same where nothing happens to the connections but what is forged on them: the longest
/// judgement, of a segment that bears SYN and is dropped, takes 3.4 s.
const JUDGED_WHOLLY: Duration = Duration::from_secs(5);
/// How long a server waits that answers slowly.
const ANSWER: Duration = Duration::from_millis(2500);
/// How long load-client waits for progress.
const TIMEOUT: Duration = Duration::from_millis(2500);
/// How long anything may take to become ready or to end.
const READY: Duration = Duration::from_secs(10);
/// Smaller than what both pods take for granted, more than forged segments need.
const BLACK_HOLE_MTU: &str = "1300";
/// The second endpoint, an address of the pod beside the server pod.
const SECOND: &str = "198.18.66.77";
const LOOSE: &str = "net/netfilter/nf_conntrack_tcp_loose";
/// Enough octets for full-sized segments.
const BODY: u64 = 256 << 10;

/// Runs all cases side by side, each in hosts of its own.
#[must_use]
pub fn run(
    name: &str,
    cause: &Cause,
    setting: &Setting,
    dir: &Path,
    prefix: &str,
) -> Vec<Result<Seen, String>> {
    let begun = Instant::now();
    let one = |n: usize, case: &Case| {
        let topology = Topology::new(NetPath::ClusterIp, &format!("{prefix}{n}-"));
        let dir = dir.join("cells").join(name).join((n + 1).to_string());
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let testbed = Testbed::build(with_second_server(topology), &setting.tools)?;
        let t = begun.elapsed().as_secs_f64();
        run_steps(&testbed, cause, case, setting, &dir).map(|seen| Seen { t, ..seen })
    };
    std::thread::scope(|scope| {
        let one = &one;
        let running: Vec<_> = (cause.cases.iter().enumerate())
            .map(|(n, case)| scope.spawn(move || guarded(|| one(n, case))))
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| broken_off())).collect()
    })
}

/// What to type to build the hosts of a case.
#[must_use]
pub fn commands() -> CommandList {
    CommandList {
        title: "hosts and links of every case".to_owned(),
        lines: with_second_server(Topology::new(NetPath::ClusterIp, ""))
            .steps
            .iter()
            .map(topology::Step::shell)
            .collect(),
    }
}

/// A pod beside the server pod, with the same address and no route to it yet.
fn with_second_server(mut topology: Topology) -> Topology {
    use topology::Step::{Add, Ip};
    let (node, pod) = (topology.full("node2"), topology.full("server2"));
    let address = topology.service.pod.v4;
    let gateway = "198.18.66.1";
    let own = SECOND;
    topology.hosts.push("server2");
    topology.steps.push(Add(pod.clone()));
    for (host, args) in [
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
    ] {
        topology.steps.push(Ip(host.clone(), args));
    }
    topology
}

fn run_steps(
    testbed: &Testbed<'_>,
    of: &Cause,
    case: &Case,
    setting: &Setting,
    dir: &Path,
) -> Result<Seen, TestbedError> {
    let interrupt = &setting.interrupt;
    let connections = of.connections;
    testbed.protect(ProxyMode::Nftables, Family::Ipv4, &case.protections)?;
    choose_endpoints(testbed, setting, case)?;
    let mut changes = Vec::new();
    for host in of.hosts.iter().chain(&case.hosts) {
        changes.extend(furnish(testbed, setting, host, dir)?);
    }
    if !case.loose {
        // On both: node2 would pick up, and translate anew, what node1 lets pass.
        changes.push(set(testbed, "node1", LOOSE, "0")?);
        set(testbed, "node2", LOOSE, "0")?;
    }
    testbed.warm_up(Family::Ipv4, setting.scaled(READY), interrupt)?;
    if case.action == Action::BlackHole {
        changes.extend(black_hole(testbed, setting)?);
    }
    let forge: Vec<_> = case.expect.forged.keys().map(|f| f.as_str()).collect();
    let mut servers = Vec::new();
    for host in ["server", "server2"].into_iter().take(usize::from(case.endpoints)) {
        let dir = dir.join(host);
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let one = ["--min-forged=1".to_owned()];
        let mut boom = boom_server(testbed, setting, host, &dir, &forge.join(","), &one)?;
        boom.wait_ready(setting.scaled(READY), interrupt)?;
        servers.push((boom, dir.join("boom.json")));
    }
    let before = testbed.within("node1", evidence::conntrack_counters)?;
    let entries = testbed.within("node1", count)?;
    let want = entries + u64::from(connections);
    let mut deleted = 0;
    let mut act = || -> Result<(), TestbedError> {
        // Every connection is made, and boom-server has had its time.
        let end = Instant::now() + setting.scaled(READY);
        while testbed.within("node1", count)? < want && Instant::now() < end {
            interrupt.sleep(Duration::from_millis(10))?;
        }
        interrupt.sleep(setting.scaled(JUDGED))?;
        if case.pattern == Pattern::SlowAnswer {
            // The client's question is on its way, the server's answer is not.
            interrupt.sleep(setting.scaled(IDLE))?;
        }
        match case.action {
            Action::Nothing | Action::BlackHole => {}
            Action::DeleteEntries => {
                let change = testbed.within("node1", || {
                    let from = count()?;
                    evidence::forget_all()?;
                    Ok((from, count()?))
                })?;
                deleted = change.0.saturating_sub(change.1);
                changes.push(Change {
                    what: "entries on the client's node".to_owned(),
                    from: change.0.to_string(),
                    to: change.1.to_string(),
                });
            }
            Action::ReplaceEndpoint => changes.push(replace(testbed, setting)?),
        }
        Ok(())
    };
    let (client, failures) = if case.pattern == Pattern::CloseUnread {
        let streams = ask(testbed, setting, connections)?;
        act()?;
        for stream in streams {
            // Unread data: the kernel answers close() with RST (RFC 2525, section 2.17).
            drop(stream);
        }
        (BTreeMap::new(), BTreeMap::new())
    } else {
        let idle = if case.action == Action::Nothing { JUDGED_WHOLLY } else { IDLE };
        let options = probe(testbed, setting, case.pattern, connections, idle);
        let load = setting::load_client(testbed, setting, dir, "load", options, Ready::Event)?;
        act()?;
        let status = load.wait(setting.scaled(idle + ANSWER + TIMEOUT * 3) + READY, interrupt)?;
        let load: LoadResult = setting::result("load-client", &dir.join("load.json"), status)?;
        let failures = load.classes();
        (load.probe.into_iter().filter(|(_, n)| *n > 0).collect(), failures)
    };
    // RSTs on their way, and a server whose answer is due.
    interrupt.sleep(setting.scaled(JUDGED))?;
    let mut boom = Vec::new();
    for (server, file) in servers {
        server.signal(Signal::SIGTERM);
        let status = server.wait(setting.scaled(READY), interrupt)?;
        boom.push(setting::result::<BoomResult>("boom-server", &file, status)?);
    }
    let conntrack = testbed.within("node1", evidence::conntrack_counters)?.since(before);
    let connections = u64::from(connections);
    Ok(Seen { t: 0.0, connections, client, failures, boom, deleted, changes, conntrack })
}

/// Each new entry takes one of the endpoints at random, as kube-proxy has it, and one source.
fn choose_endpoints(
    testbed: &Testbed<'_>,
    setting: &Setting,
    case: &Case,
) -> Result<(), TestbedError> {
    let service = &testbed.topology.service;
    let (vip, pod) = (service.vip.v4, service.pod.v4);
    // Before the Service's own chains: the first NAT rule that matches decides.
    let choose = match case.endpoints {
        1 => String::new(),
        _ => format!(
            "chain prerouting {{ type nat hook prerouting priority dstnat - 1; \
             ip daddr {vip} tcp dport {SERVICE_PORT} dnat to numgen random mod 2 map \
             {{ 0 : {pod}, 1 : {SECOND} }} : {POD_PORT}; }}\n"
        ),
    };
    let masquerade = match case.masquerade {
        Masquerade::None => String::new(),
        how => format!(
            "chain postrouting {{ type nat hook postrouting priority srcnat - 1; \
             ip daddr {{ {pod}, {SECOND} }} tcp dport {POD_PORT} masquerade{}; }}\n",
            if how == Masquerade::Random { " fully-random" } else { "" }
        ),
    };
    if choose.is_empty() && masquerade.is_empty() {
        return Ok(());
    }
    let rules = format!("table ip lab-endpoints {{\n{choose}{masquerade}}}\n");
    load(testbed, setting, "node1", "nft", &["-f", "-"], rules)
}

/// Rules as they are.
fn load(
    testbed: &Testbed<'_>,
    setting: &Setting,
    host: &str,
    tool: &'static str,
    options: &'static [&'static str],
    rules: String,
) -> Result<(), TestbedError> {
    let tools = setting.tools.clone();
    testbed.within(host, move || {
        tools.call(tool, options)?.stdin(&rules).run()?;
        Ok(())
    })
}

/// Gives a host what it should have, and keeps what its kernel then holds in
/// `dir`/rules-HOST.txt.
fn furnish(
    testbed: &Testbed<'_>,
    setting: &Setting,
    host: &Host,
    dir: &Path,
) -> Result<Vec<Change>, TestbedError> {
    let mut changes = Vec::new();
    for (name, value) in &host.sysctls {
        let (key, value) = (name.replace('.', "/"), value.clone());
        let (from, to) = testbed.within(&host.name, move || {
            let from = evidence::sysctl(&key)?;
            evidence::set_sysctl(&key, &value)?;
            Ok((from, value))
        })?;
        changes.push(Change { what: format!("{name} in {}", host.name), from, to });
    }
    if let Some(rules) = &host.nft {
        load(testbed, setting, &host.name, "nft", &["-f", "-"], rules.clone())?;
    }
    if let Some(rules) = &host.iptables {
        let options = &["-w", "10", "--noflush"];
        load(testbed, setting, &host.name, "iptables-restore", options, rules.clone())?;
    }
    if host.nft.is_some() || host.iptables.is_some() {
        let tools = setting.tools.clone();
        let held = testbed
            .within(&host.name, move || Ok(tools.call("nft", &["list", "ruleset"])?.run()?))?;
        let file = dir.join(format!("rules-{}.txt", host.name));
        write_file(&file, held.as_bytes()).map_err(|e| io_error("write", &file)(e.into()))?;
    }
    Ok(changes)
}

/// The options of load-client.
fn probe(
    testbed: &Testbed<'_>,
    setting: &Setting,
    pattern: Pattern,
    connections: u32,
    idle: Duration,
) -> Vec<String> {
    let ms = |time: Duration| format!("{}ms", setting.scaled(time).as_millis());
    let pattern = match pattern {
        Pattern::Idle | Pattern::CloseUnread => "idle",
        Pattern::SlowAnswer => "slow-answer",
        Pattern::Download => "download",
    };
    vec![
        "probe".to_owned(),
        format!("--target=tcp://{}", testbed.topology.target(Family::Ipv4)),
        format!("--connections={connections}"),
        format!("--pattern={pattern}"),
        format!("--delay={}", ms(idle)),
        format!("--answer-delay={}", ms(ANSWER)),
        format!("--timeout={}", ms(TIMEOUT)),
        format!("--body-size={BODY}"),
    ]
}

/// Connections whose answer has arrived and is not read.
fn ask(testbed: &Testbed<'_>, setting: &Setting, n: u32) -> Result<Vec<TcpStream>, TestbedError> {
    let target: SocketAddr = testbed.topology.target(Family::Ipv4);
    let (deadline, judged) = (setting.scaled(READY), setting.scaled(JUDGED));
    testbed.within(testbed.topology.client(), move || {
        let io = |source| EvidenceError::Io { what: format!("ask {target}"), source };
        let mut streams = (0..n)
            .map(|_| TcpStream::connect_timeout(&target, deadline))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(io)?;
        // boom-server forges at the handshake: traffic would hide the answer.
        std::thread::sleep(judged);
        let request = Request::Answer { delay: Duration::ZERO, length: BODY / 8, seed: 1 };
        let ask = Line { request, called: None }.to_string();
        for stream in &mut streams {
            stream.set_read_timeout(Some(deadline)).map_err(io)?;
            stream.write_all(ask.as_bytes()).map_err(io)?;
        }
        for stream in &streams {
            if stream.peek(&mut [0; 1]).map_err(io)? == 0 {
                return Err(io(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(streams)
    })
}

fn black_hole(testbed: &Testbed<'_>, setting: &Setting) -> Result<Vec<Change>, TestbedError> {
    for host in ["node1", "node2"] {
        let full = testbed.topology.full(host);
        let args = ["-n", &full, "link", "set", "eth0", "mtu", BLACK_HOLE_MTU];
        setting.tools.call("ip", &args)?.run()?;
        let tools = setting.tools.clone();
        let rules = "table inet lab-black-hole {\n\
                     chain output { type filter hook output priority 0; \
                     icmp type destination-unreachable counter drop; }\n}\n";
        testbed.within(host, move || Ok(tools.call("nft", &["-f", "-"])?.stdin(rules).run()?))?;
    }
    let change = |what: &str, from: &str, to: &str| Change {
        what: what.to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
    };
    Ok(vec![
        change("MTU between the nodes", "1500", BLACK_HOLE_MTU),
        change("ICMP destination-unreachable of the nodes", "sent", "dropped"),
    ])
}

fn replace(testbed: &Testbed<'_>, setting: &Setting) -> Result<Change, TestbedError> {
    let node = testbed.topology.full("node2");
    let route = format!("{}/32", testbed.topology.service.pod.v4);
    let show = || -> Result<String, TestbedError> {
        let text = setting.tools.call("ip", &["-n", &node, "route", "show", &route])?.run()?;
        Ok(text.trim().to_owned())
    };
    let from = show()?;
    let args = ["-n", &node, "route", "replace", &route, "dev", "to-server2"];
    setting.tools.call("ip", &args)?.run()?;
    Ok(Change { what: "route to the server pod".to_owned(), from, to: show()? })
}
