//! Runs the cases of a cause: boom-server and connections as anywhere else,
//! and then what happens to them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::document::lab::{
    At, CommandList, FrontEnd, Path as NetPath, Protection, ProtectionKind,
};
use crate::document::timeline::Change;
use canary_record::probe::Request;
use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use canary_testbed::evidence::{self, EvidenceError};
use canary_testbed::exec::Ready;
use canary_testbed::place::{Place, PlaceError};
use canary_testbed::topology::{self, Topology};
use canary_wire::segment::Family;
use nix::sys::signal::Signal;

use super::setting::{self, Setting, boom_server, broken_off, count, guarded, io_error, set};
use crate::observed::cause::Seen;
use crate::scenario::cause::{Action, Case, Cause, Pattern};

/// Time for boom-server to judge what it forged.
const JUDGED: Duration = Duration::from_millis(700);
/// From the connect to the client's first line.
const IDLE: Duration = Duration::from_millis(1600);
/// How long a server waits that answers slowly.
const ANSWER: Duration = Duration::from_millis(2500);
/// How long load-client waits for progress.
const TIMEOUT: Duration = Duration::from_millis(2500);
/// How long anything may take to become ready or to end.
const READY: Duration = Duration::from_secs(10);
/// Smaller than what both pods take for granted, more than forged segments need.
const BLACK_HOLE_MTU: &str = "1300";
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
        let place = Place::build(with_second_server(topology), &setting.tools)?;
        let t = begun.elapsed().as_secs_f64();
        play(&place, case, cause.connections, setting, &dir).map(|seen| Seen { t, ..seen })
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
    topology.hosts.push("server2");
    topology.steps.push(Add(pod.clone()));
    for (host, args) in [
        (&node, format!("link add to-server2 type veth peer name eth0 netns {pod}")),
        (&node, format!("addr add {gateway}/32 dev to-server2")),
        (&node, "link set to-server2 up".to_owned()),
        (&pod, "link set lo up".to_owned()),
        (&pod, format!("addr add {address}/32 dev eth0")),
        (&pod, "link set eth0 up".to_owned()),
        (&pod, format!("route add {gateway}/32 dev eth0 scope link")),
        (&pod, format!("route add default via {gateway}")),
    ] {
        topology.steps.push(Ip(host.clone(), args));
    }
    topology
}

fn play(
    place: &Place<'_>,
    case: &Case,
    connections: u32,
    setting: &Setting,
    dir: &Path,
) -> Result<Seen, PlaceError> {
    let interrupt = &setting.interrupt;
    // be_liberal, under which nothing that boom-server forges here leaks: every reset has
    // another cause.
    let liberal = [Protection { kind: ProtectionKind::Liberal, at: At::Both }];
    place.protect(FrontEnd::Nftables, Family::Ipv4, &liberal)?;
    let mut changes = Vec::new();
    if !case.loose {
        // On both: node2 would pick up, and translate anew, what node1 lets pass.
        changes.push(set(place, "node1", LOOSE, "0")?);
        set(place, "node2", LOOSE, "0")?;
    }
    place.warm_up(Family::Ipv4, setting.scaled(READY), interrupt)?;
    if case.action == Action::BlackHole {
        changes.extend(black_hole(place, setting)?);
    }
    let one = ["--min-forged=1".to_owned()];
    let mut boom = boom_server(place, setting, dir, "control,above-window", &one)?;
    boom.wait_ready(setting.scaled(READY), interrupt)?;
    let before = place.within("node1", evidence::conntrack_counters)?;
    let entries = place.within("node1", count)?;
    let want = entries + u64::from(connections);
    let mut deleted = 0;
    let mut act = || -> Result<(), PlaceError> {
        // Every connection is made, and boom-server has had its time.
        let end = Instant::now() + setting.scaled(READY);
        while place.within("node1", count)? < want && Instant::now() < end {
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
                let change = place.within("node1", || {
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
            Action::ReplaceEndpoint => changes.push(replace(place, setting)?),
        }
        Ok(())
    };
    let (client, failures) = if case.pattern == Pattern::CloseUnread {
        let streams = ask(place, setting, connections)?;
        act()?;
        for stream in streams {
            // Unread data: the kernel answers close() with RST (RFC 2525, section 2.17).
            drop(stream);
        }
        (BTreeMap::new(), BTreeMap::new())
    } else {
        let options = probe(place, setting, case.pattern, connections);
        let load = setting::load_client(place, setting, dir, "load", options, Ready::Event)?;
        act()?;
        let status = load.wait(setting.scaled(IDLE + ANSWER + TIMEOUT * 3) + READY, interrupt)?;
        let load: LoadResult = setting::result("load-client", &dir.join("load.json"), status)?;
        let failures = load.classes();
        (load.probe.into_iter().filter(|(_, n)| *n > 0).collect(), failures)
    };
    // RSTs on their way, and a server whose answer is due.
    interrupt.sleep(setting.scaled(JUDGED))?;
    boom.signal(Signal::SIGTERM);
    let status = boom.wait(setting.scaled(READY), interrupt)?;
    let boom: BoomResult = setting::result("boom-server", &dir.join("boom.json"), status)?;
    let conntrack = place.within("node1", evidence::conntrack_counters)?.since(before);
    let connections = u64::from(connections);
    Ok(Seen { t: 0.0, connections, client, failures, boom, deleted, changes, conntrack })
}

/// The options of load-client.
fn probe(place: &Place<'_>, setting: &Setting, pattern: Pattern, connections: u32) -> Vec<String> {
    let ms = |time: Duration| format!("{}ms", setting.scaled(time).as_millis());
    let pattern = match pattern {
        Pattern::Idle | Pattern::CloseUnread => "idle",
        Pattern::SlowAnswer => "slow-answer",
        Pattern::Download => "download",
    };
    vec![
        "probe".to_owned(),
        format!("--target=tcp://{}", place.topology.target(Family::Ipv4)),
        format!("--connections={connections}"),
        format!("--pattern={pattern}"),
        format!("--delay={}", ms(IDLE)),
        format!("--answer-delay={}", ms(ANSWER)),
        format!("--timeout={}", ms(TIMEOUT)),
        format!("--body-size={BODY}"),
    ]
}

/// Connections whose answer has arrived and is not read.
fn ask(place: &Place<'_>, setting: &Setting, n: u32) -> Result<Vec<TcpStream>, PlaceError> {
    let target: SocketAddr = place.topology.target(Family::Ipv4);
    let (deadline, judged) = (setting.scaled(READY), setting.scaled(JUDGED));
    place.within(place.topology.client(), move || {
        let io = |source| EvidenceError::Io { what: format!("ask {target}"), source };
        let mut streams = (0..n)
            .map(|_| TcpStream::connect_timeout(&target, deadline))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(io)?;
        // boom-server forges at the handshake: traffic would hide the answer.
        std::thread::sleep(judged);
        let ask = Request::Answer { delay: Duration::ZERO, length: BODY / 8, seed: 1 }.to_string();
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

fn black_hole(place: &Place<'_>, setting: &Setting) -> Result<Vec<Change>, PlaceError> {
    for host in ["node1", "node2"] {
        let full = place.topology.full(host);
        let args = ["-n", &full, "link", "set", "eth0", "mtu", BLACK_HOLE_MTU];
        setting.tools.call("ip", &args)?.run()?;
        let tools = setting.tools.clone();
        let rules = "table inet lab-black-hole {\n\
                     chain output { type filter hook output priority 0; \
                     icmp type destination-unreachable counter drop; }\n}\n";
        place.within(host, move || Ok(tools.call("nft", &["-f", "-"])?.stdin(rules).run()?))?;
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

fn replace(place: &Place<'_>, setting: &Setting) -> Result<Change, PlaceError> {
    let node = place.topology.full("node2");
    let route = format!("{}/32", place.topology.service.pod.v4);
    let show = || -> Result<String, PlaceError> {
        let text = setting.tools.call("ip", &["-n", &node, "route", "show", &route])?.run()?;
        Ok(text.trim().to_owned())
    };
    let from = show()?;
    let args = ["-n", &node, "route", "replace", &route, "dev", "to-server2"];
    setting.tools.call("ip", &args)?.run()?;
    Ok(Change { what: "route to the server pod".to_owned(), from, to: show()? })
}
