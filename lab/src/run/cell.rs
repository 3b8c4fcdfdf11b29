//! One cell: boom-server and load-client run once through a topology that is
//! up, with the kernel's counters read before and after, and captures beside.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::document::lab::{Capture, Profile, ProxyMode};
use canary_record::names::{Direction, Forgery};
use canary_runtime::output::write_file;
use canary_testbed::capture::{self, Reset};
use canary_testbed::evidence;
use canary_testbed::exec::{Process, Ready};
use canary_testbed::model::At;
use canary_testbed::tap::Tap;
use canary_testbed::testbed::{Testbed, TestbedError};
use canary_testbed::topology::POD_PORT;
use canary_wire::segment::Family;
use nix::sys::signal::Signal;

use super::setting::{self, CaptureMode, Setting, io_error};
use crate::judge::witness;
use crate::observed::cell::Shown;
use crate::scenario::matrix::CellPlan;

/// How long boom-server takes to end once every connection is judged.
const JUDGED: Duration = Duration::from_millis(1600);
/// How long load-client leaves its connections idle at most. It is told to go
/// on as soon as boom-server has judged all of them.
const DELAY: Duration = Duration::from_secs(20);
/// How long load-client waits for a connect or an answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer to a client's forged segment may take.
const OUTCOME: Duration = Duration::from_secs(1);
/// Octets of an upload: few beside the distances of forged segments, and more than a request.
const UPLOAD: u32 = 4096;
/// How long anything may take to become ready.
const READY: Duration = Duration::from_secs(10);

/// The client's local ports: so many that none is taken twice in a cell, though a port is free
/// again when its connection was reset. `__inet_hash_connect()` moves on by up to 16 ports for
/// each connection, and cells beside this one, whose addresses are the same, move it on too.
const PORTS: &str = "2000\t65000";

/// How long load-client may take.
fn load_patience(setting: &Setting) -> Duration {
    setting.scaled(DELAY + TIMEOUT * 3) + READY
}

/// A cell's plan within its scenario.
#[derive(Clone, Copy, Debug)]
pub struct Cell<'a> {
    /// Protections and expectation.
    pub plan: &'a CellPlan,
    /// Whose rules.
    pub proxy_mode: ProxyMode,
    /// IP family.
    pub family: Family,
    /// Which way to forge.
    pub direction: Direction,
    /// What to forge.
    pub forgeries: &'a [Forgery],
    /// Connections for each forgery.
    pub connections: u32,
    /// Where its files go; exists and is empty.
    pub dir: &'a Path,
}

impl Cell<'_> {
    /// What to forge, as options take it.
    fn list(&self) -> String {
        let names: Vec<_> = self.forgeries.iter().map(|f| f.as_str()).collect();
        names.join(",")
    }
}

/// Runs a cell.
pub fn run(
    testbed: &Testbed<'_>,
    cell: &Cell<'_>,
    setting: &Setting,
) -> Result<Shown, TestbedError> {
    let begun = Instant::now();
    let interrupt = &setting.interrupt;
    for (node, text) in testbed.protect(cell.proxy_mode, cell.family, &cell.plan.protections)? {
        write(&cell.dir.join(format!("rules-{node}.txt")), text.as_bytes())?;
    }
    // The cells before used the same ports, and an entry of theirs would be taken up again.
    for node in testbed.topology.nodes(At::Both) {
        testbed.within(node, evidence::forget_all)?;
    }
    testbed.within(testbed.topology.client(), || {
        evidence::set_sysctl("net/ipv4/ip_local_port_range", PORTS)
    })?;
    let none_expected = cell.plan.expect.profile() == Some(Profile::NoConnection);
    let patience = if none_expected { Duration::ZERO } else { setting.scaled(READY) };
    let warm = testbed.warm_up(cell.family, patience, interrupt)?;

    let mut notes = Vec::new();
    let on = testbed.topology.nodes(At::Both);
    let witnesses = setting::ready_witnesses(testbed, on, cell.dir, setting, &mut notes)?;
    let captures = start_captures(testbed, cell, setting)?;
    let mut boom = start_boom(testbed, cell, setting)?;
    boom.wait_ready(setting.scaled(READY), interrupt)?;
    let before = testbed.counters(cell.proxy_mode, cell.family)?;
    let mut load = start_load(testbed, cell, setting)?;
    let load_line = load.line().to_owned();
    // Where no connection comes to be, load-client ends first. Who forges itself knows the end.
    while cell.direction != Direction::ClientToServer
        && !load.ends_within(Duration::ZERO, interrupt)?
        && !boom.ends_within(Duration::ZERO, interrupt)?
    {
        if boom.says_again(Duration::from_millis(10)) {
            load.signal(Signal::SIGUSR1);
            break;
        }
    }
    let load_status = load.wait(load_patience(setting), interrupt)?;
    let boom_status = end_boom(boom, setting)?;
    let after = testbed.counters(cell.proxy_mode, cell.family)?;
    let witnesses = setting::end_witnesses(witnesses, cell.dir, setting)?;
    if !warm && !none_expected {
        notes.push("the target's port never answered before the cell".to_owned());
    }
    let resets = captured(captures, testbed, cell, setting, &mut notes)?;
    for counters in &after {
        let name = format!("counters-{}.txt", counters.node);
        write(&cell.dir.join(name), counters.text.as_bytes())?;
    }
    Ok(Shown {
        boom: setting::result("boom-server", &cell.dir.join("boom.json"), boom_status)?,
        load: setting::result("load-client", &cell.dir.join("load.json"), load_status)
            .map_err(|e| with_line(e, &load_line))?,
        nodes: after.iter().zip(&before).map(|(a, b)| a.since(b)).collect(),
        resets,
        witnesses,
        notes,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

fn start_boom(
    testbed: &Testbed<'_>,
    cell: &Cell<'_>,
    setting: &Setting,
) -> Result<Process, TestbedError> {
    let forge = match cell.direction {
        Direction::ClientToServer => "none".to_owned(),
        Direction::ServerToClient | Direction::Both => cell.list(),
    };
    let total = cell.connections as usize * cell.forgeries.len();
    let options = [
        format!("--connections={total}"),
        format!("--min-forged={}", cell.connections.min(20)),
        // A server that ends first resets what a slow machine's client has still open.
        format!("--hold={}ms", load_patience(setting).as_millis()),
    ];
    let server = testbed.topology.server();
    setting::boom_server(testbed, setting, server, cell.dir, &forge, &options)
}

fn start_load(
    testbed: &Testbed<'_>,
    cell: &Cell<'_>,
    setting: &Setting,
) -> Result<Process, TestbedError> {
    let total = cell.connections as usize * cell.forgeries.len();
    let mut options = vec![
        "probe".to_owned(),
        format!("--target=tcp://{}", testbed.topology.target(cell.family)),
        format!("--connections={total}"),
        format!("--timeout={}ms", setting.scaled(TIMEOUT).as_millis()),
    ];
    options.extend(match cell.direction {
        Direction::ClientToServer => vec![
            "--pattern=upload".to_owned(),
            format!("--body-size={UPLOAD}"),
            format!("--forge={}", cell.list()),
            format!("--min-forged={}", cell.connections.min(20)),
            format!("--outcome-timeout={}ms", setting.scaled(OUTCOME).as_millis()),
        ],
        Direction::ServerToClient | Direction::Both => vec![
            "--pattern=request".to_owned(),
            format!("--delay={}ms", setting.scaled(DELAY).as_millis()),
        ],
    });
    setting::load_client(testbed, setting, cell.dir, "load", options, Ready::Event)
}

/// boom-server ends by itself once every connection is judged; where some
/// never came it is asked to end and says so in its result.
fn end_boom(mut boom: Process, setting: &Setting) -> Result<ExitStatus, TestbedError> {
    let patience = setting.scaled(JUDGED);
    if !boom.ends_within(patience, &setting.interrupt)? {
        boom.signal(Signal::SIGTERM);
    }
    Ok(boom.wait(setting.scaled(READY), &setting.interrupt)?)
}

fn start_captures(
    testbed: &Testbed<'_>,
    cell: &Cell<'_>,
    setting: &Setting,
) -> Result<Vec<Tap>, TestbedError> {
    if setting.capture == CaptureMode::None {
        return Ok(Vec::new());
    }
    let mut running = Vec::new();
    for host in hosts(testbed) {
        // A node has several links, a pod one.
        let link = if host.starts_with("node") { "any" } else { "eth0" };
        running.push(Tap::start(testbed, host, link, "tcp", &cell.dir.join(capture_file(host)))?);
    }
    for tap in &mut running {
        tap.wait_ready(setting.scaled(READY), &setting.interrupt)?;
    }
    Ok(running)
}

/// Where captures are taken: the server first.
fn hosts(testbed: &Testbed<'_>) -> Vec<&'static str> {
    let mut hosts = vec![testbed.topology.server(), testbed.topology.client()];
    hosts.dedup();
    hosts
}

/// The name of a host's whole capture inside the cell's directory.
fn capture_file(host: &str) -> String {
    format!("{host}.pcap")
}

/// Stops captures and gives the RSTs that answer a forged segment, unless a capture lost some.
fn captured(
    captures: Vec<Tap>,
    testbed: &Testbed<'_>,
    cell: &Cell<'_>,
    setting: &Setting,
    notes: &mut Vec<String>,
) -> Result<Option<Vec<Reset>>, TestbedError> {
    let (mut files, mut complete) = (Vec::new(), true);
    captures.iter().for_each(Tap::end);
    for tap in captures {
        let (pcap, loss) = tap.stop(setting.scaled(READY), &setting.interrupt)?;
        if let Some(loss) = loss {
            notes.push(format!("the capture is not whole: {loss}"));
            complete = false;
        }
        files.push(pcap);
    }
    let topology = &testbed.topology;
    // Where the segments are forged: the server's capture is the first, the client's the last.
    let (pcap, server) = match cell.direction {
        Direction::ClientToServer => (files.last(), topology.target(cell.family)),
        Direction::ServerToClient | Direction::Both => {
            (files.first(), SocketAddr::new(topology.service.pod.of(cell.family), POD_PORT))
        }
    };
    let Some(pcap) = pcap.filter(|_| complete) else { return Ok(None) };
    let resets = capture::resets(pcap, server, cell.direction);
    Ok(resets.map_err(|e| notes.push(e.to_string())).ok())
}

fn with_line(e: TestbedError, line: &str) -> TestbedError {
    match e {
        TestbedError::Result { program, status, why } => {
            TestbedError::Result { program, status, why: format!("{why} ({line})") }
        }
        other => other,
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), TestbedError> {
    write_file(path, bytes).map_err(|e| io_error("write", path)(e.into()))
}

/// Of which scenario and forgery a connection is kept already.
pub type Kept = Mutex<BTreeSet<(String, Forgery)>>;

/// Keeps one connection of every kind that was reset, or everything.
pub fn keep(
    testbed: &Testbed<'_>,
    setting: &Setting,
    results: &Path,
    (scenario, id): (&str, &str),
    shown: &Shown,
    kept: &Kept,
) -> Result<Vec<Capture>, TestbedError> {
    let dir = results.join("cells").join(id);
    let mut captures = Vec::new();
    if setting.capture == CaptureMode::None {
        return Ok(captures);
    }
    let hosts: Vec<_> = hosts(testbed).into_iter().rev().collect();
    let wrong = |e: capture::CaptureError| TestbedError::Io {
        what: format!("keep a capture of {id}"),
        source: std::io::Error::other(e),
    };
    let read = |host: &str| {
        let path = dir.join(capture_file(host));
        fs::read(&path).map_err(io_error("read", &path))
    };
    for reset in shown.resets.iter().flatten() {
        let kind = (scenario.to_owned(), reset.forgery);
        let new = kept.lock().unwrap_or_else(PoisonError::into_inner).insert(kind);
        if !new {
            continue;
        }
        for host in &hosts {
            let (bytes, packets) =
                capture::connection(&read(host)?, reset.client_isn).map_err(wrong)?;
            let file = format!("captures/{scenario}-{}-{host}.pcap", reset.forgery);
            let path = results.join(&file);
            fs::create_dir_all(results.join("captures")).map_err(io_error("write", &path))?;
            write(&path, &bytes)?;
            captures.push(Capture {
                forgery: Some(reset.forgery),
                host: (*host).to_owned(),
                file,
                packets,
                kernel: witness::words(&shown.witnesses, reset),
            });
        }
    }
    for host in &hosts {
        let path = dir.join(capture_file(host));
        if setting.capture == CaptureMode::All {
            let packets = capture::packets(&read(host)?).map_err(wrong)?;
            let file = format!("cells/{id}/{}", capture_file(host));
            let host = (*host).to_owned();
            captures.push(Capture { forgery: None, host, file, packets, kernel: None });
        } else {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(captures)
}
