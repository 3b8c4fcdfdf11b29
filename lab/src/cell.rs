//! One cell: boom-server and load-client run once through a topology that is
//! up, with the kernel's counters read before and after, and captures beside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::document::lab::{FrontEnd, NodeEvidence, Profile};
use canary_record::names::Forgery;
use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use canary_wire::segment::Family;
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use crate::capture::{self, Reset};
use crate::cli::CaptureMode;
use crate::evidence;
use crate::exec::{Call, Interrupt, Process, Ready, Tools};
use crate::place::{Place, PlaceError};
use crate::scenario::CellPlan;
use crate::topology::POD_PORT;
use canary_testbed::tap::Tap;

/// How long boom-server waits for the answer to a forged segment.
const OUTCOME_TIMEOUT: Duration = Duration::from_millis(400);
/// How long load-client leaves its connections idle at most. It is told to go
/// on as soon as boom-server has judged all of them.
const DELAY: Duration = Duration::from_secs(20);
/// How long load-client waits for a connect or an answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long anything may take to become ready.
const READY: Duration = Duration::from_secs(10);

/// What every cell of a run shares.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Tools.
    pub tools: Tools,
    /// boom-server's path.
    pub boom_server: PathBuf,
    /// load-client's path.
    pub load_client: PathBuf,
    /// Multiplies every wait.
    pub time_scale: f64,
    /// Whether captures are taken.
    pub capture: CaptureMode,
    /// A request to end.
    pub interrupt: Interrupt,
}

impl Setting {
    pub(crate) fn scaled(&self, time: Duration) -> Duration {
        time.mul_f64(self.time_scale)
    }

    /// How long load-client may take.
    fn load_patience(&self) -> Duration {
        self.scaled(DELAY + TIMEOUT * 3) + READY
    }
}

/// A cell's plan within its scenario.
#[derive(Clone, Copy, Debug)]
pub struct Cell<'a> {
    /// Protections and expectation.
    pub plan: &'a CellPlan,
    /// Whose rules.
    pub front_end: FrontEnd,
    /// IP family.
    pub family: Family,
    /// What to forge.
    pub forgeries: &'a [Forgery],
    /// Connections for each forgery.
    pub connections: u32,
    /// Its number among the cells that share the topology.
    pub index: usize,
    /// Where its files go; exists and is empty.
    pub dir: &'a Path,
}

/// The client's local ports in a cell: not those of the cells before it, whose
/// conntrack entries outlive them and would be taken up again.
fn local_ports(index: usize, connections: usize) -> (usize, usize) {
    const FIRST: usize = 2000;
    const LAST: usize = 65_000;
    let width = (connections * 2).clamp(1500, LAST - FIRST);
    let slot = index % ((LAST - FIRST) / width);
    (FIRST + slot * width, FIRST + slot * width + width - 1)
}

/// What a cell showed, not yet judged.
#[derive(Clone, Debug)]
pub struct Shown {
    /// boom-server's result.
    pub boom: BoomResult,
    /// load-client's result.
    pub load: LoadResult,
    /// What the nodes counted.
    pub nodes: Vec<NodeEvidence>,
    /// RSTs that answer a forged segment, from the server pod's capture.
    pub resets: Option<Vec<Reset>>,
    /// What weakens the cell without deciding it.
    pub notes: Vec<String>,
    /// The time it took.
    pub seconds: f64,
}

/// The name of a host's whole capture inside the cell's directory.
#[must_use]
pub fn capture_file(host: &str) -> String {
    format!("{host}.pcap")
}

/// Runs a cell.
pub fn run(place: &Place<'_>, cell: &Cell<'_>, setting: &Setting) -> Result<Shown, PlaceError> {
    let begun = Instant::now();
    let interrupt = &setting.interrupt;
    for (node, text) in place.protect(cell.front_end, cell.family, &cell.plan.protections)? {
        write(&cell.dir.join(format!("rules-{node}.txt")), text.as_bytes())?;
    }
    let (low, high) = local_ports(cell.index, cell.connections as usize * cell.forgeries.len());
    place.within(place.topology.client(), move || {
        evidence::set_sysctl("net/ipv4/ip_local_port_range", &format!("{low}\t{high}"))
    })?;
    let none_expected = cell.plan.expect.profile() == Some(Profile::NoConnection);
    let patience = if none_expected { Duration::ZERO } else { setting.scaled(READY) };
    let warm = place.warm_up(cell.family, patience, interrupt)?;

    let captures = start_captures(place, cell, setting)?;
    let mut boom = start_boom(place, cell, setting)?;
    boom.wait_ready(setting.scaled(READY), interrupt)?;
    let before = place.counters(cell.front_end, cell.family)?;
    let mut load = start_load(place, cell, setting)?;
    let load_line = load.line().to_owned();
    // Where no connection comes to be, load-client ends first.
    while !load.ends_within(Duration::ZERO, interrupt)?
        && !boom.ends_within(Duration::ZERO, interrupt)?
    {
        if boom.says_again(Duration::from_millis(10)) {
            load.signal(Signal::SIGUSR1);
            break;
        }
    }
    let load_status = load.wait(setting.load_patience(), interrupt)?;
    let boom_status = end_boom(boom, setting)?;
    let after = place.counters(cell.front_end, cell.family)?;
    let mut notes = Vec::new();
    if !warm && !none_expected {
        notes.push("the target's port never answered before the cell".to_owned());
    }
    let pcap = stop_captures(captures, setting, &mut notes)?;
    for counters in &after {
        let name = format!("counters-{}.txt", counters.node);
        write(&cell.dir.join(name), counters.text.as_bytes())?;
    }
    let resets = if let Some(pcap) = pcap {
        let pod = std::net::SocketAddr::new(place.topology.service.pod.of(cell.family), POD_PORT);
        match capture::resets(&pcap, pod) {
            Ok(resets) => Some(resets),
            Err(e) => {
                notes.push(e.to_string());
                None
            }
        }
    } else {
        None
    };
    Ok(Shown {
        boom: result("boom-server", &cell.dir.join("boom.json"), boom_status)?,
        load: result("load-client", &cell.dir.join("load.json"), load_status)
            .map_err(|e| with_line(e, &load_line))?,
        nodes: after.iter().zip(&before).map(|(a, b)| a.since(b)).collect(),
        resets,
        notes,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

fn start_boom(
    place: &Place<'_>,
    cell: &Cell<'_>,
    setting: &Setting,
) -> Result<Process, PlaceError> {
    let forge: Vec<_> = cell.forgeries.iter().map(|f| f.as_str()).collect();
    let total = cell.connections as usize * cell.forgeries.len();
    let options = [
        "--listen".to_owned(),
        format!("[::]:{POD_PORT}"),
        "--admin=none".into(),
        format!("--forge={}", forge.join(",")),
        "--on-reset=count".into(),
        format!("--connections={total}"),
        format!("--outcome-timeout={}ms", setting.scaled(OUTCOME_TIMEOUT).as_millis()),
        format!("--min-forged={}", cell.connections.min(20)),
        // A server that ends first resets what a slow machine's client has still open.
        format!("--hold={}ms", setting.load_patience().as_millis()),
        "--log=json".into(),
        format!("--output={}", cell.dir.join("boom.json").display()),
    ];
    let program = Call::new(&setting.boom_server, &options);
    place.start(place.topology.server(), program, &cell.dir.join("boom.log"), Ready::Event)
}

fn start_load(
    place: &Place<'_>,
    cell: &Cell<'_>,
    setting: &Setting,
) -> Result<Process, PlaceError> {
    let total = cell.connections as usize * cell.forgeries.len();
    let options = [
        "probe".to_owned(),
        format!("--target=tcp://{}", place.topology.target(cell.family)),
        format!("--connections={total}"),
        "--pattern=request".into(),
        format!("--delay={}ms", setting.scaled(DELAY).as_millis()),
        format!("--timeout={}ms", setting.scaled(TIMEOUT).as_millis()),
        "--log=json".into(),
        format!("--output={}", cell.dir.join("load.json").display()),
    ];
    let program = Call::new(&setting.load_client, &options);
    place.start(place.topology.client(), program, &cell.dir.join("load.log"), Ready::Event)
}

/// boom-server ends by itself once every connection is judged; where some
/// never came it is asked to end and says so in its result.
fn end_boom(mut boom: Process, setting: &Setting) -> Result<ExitStatus, PlaceError> {
    let patience = setting.scaled(OUTCOME_TIMEOUT * 4);
    if !boom.ends_within(patience, &setting.interrupt)? {
        boom.signal(Signal::SIGTERM);
    }
    Ok(boom.wait(setting.scaled(READY), &setting.interrupt)?)
}

fn start_captures(
    place: &Place<'_>,
    cell: &Cell<'_>,
    setting: &Setting,
) -> Result<Vec<Tap>, PlaceError> {
    if setting.capture == CaptureMode::None {
        return Ok(Vec::new());
    }
    let (client, server) = (place.topology.client(), place.topology.server());
    let mut hosts = vec![server];
    if client != server {
        hosts.push(client);
    }
    let mut running = Vec::new();
    for host in hosts {
        // A node has several links, a pod one.
        let link = if host.starts_with("node") { "any" } else { "eth0" };
        running.push(Tap::start(place, host, link, &cell.dir.join(capture_file(host)))?);
    }
    for tap in &mut running {
        tap.wait_ready(setting.scaled(READY), &setting.interrupt)?;
    }
    Ok(running)
}

/// Stops captures. Gives the first one, the server's, if all are complete.
fn stop_captures(
    captures: Vec<Tap>,
    setting: &Setting,
    notes: &mut Vec<String>,
) -> Result<Option<Vec<u8>>, PlaceError> {
    let (mut first, mut complete) = (None, true);
    captures.iter().for_each(Tap::end);
    for tap in captures {
        let (pcap, loss) = tap.stop(setting.scaled(READY), &setting.interrupt)?;
        if let Some(loss) = loss {
            notes.push(format!("the capture is not whole: {loss}"));
            complete = false;
        }
        first.get_or_insert(pcap);
    }
    Ok(first.filter(|_| complete))
}

pub(crate) fn result<T: DeserializeOwned>(
    program: &'static str,
    path: &Path,
    status: ExitStatus,
) -> Result<T, PlaceError> {
    let wrong = |why: String| PlaceError::Result { program, status: status.to_string(), why };
    let text = fs::read(path).map_err(|e| {
        let log = path.with_extension("stderr");
        let said = fs::read_to_string(log).unwrap_or_default();
        wrong(format!("{}: {e}; {}", path.display(), said.trim()))
    })?;
    serde_json::from_slice(&text).map_err(|e| wrong(format!("{}: {e}", path.display())))
}

fn with_line(e: PlaceError, line: &str) -> PlaceError {
    match e {
        PlaceError::Result { program, status, why } => {
            PlaceError::Result { program, status, why: format!("{why} ({line})") }
        }
        other => other,
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), PlaceError> {
    fs::write(path, bytes).map_err(io_error("write", path))
}

/// An error that names the file.
pub fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> PlaceError + 'a {
    move |source| PlaceError::Io { what: format!("{what} {}", path.display()), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cells that share a topology do not share ports, as long as there are any.
    #[test]
    fn cells_do_not_share_ports() {
        let (a, b) = (local_ports(0, 300), local_ports(1, 300));
        assert!(a.1 < b.0 && a.1 - a.0 >= 600);
        assert_eq!(local_ports(42, 300), a);
        let all = local_ports(3, 60_000);
        assert!(all.0 >= 1024 && all.1 < 65_536 && all.1 - all.0 > 60_000);
    }
}
