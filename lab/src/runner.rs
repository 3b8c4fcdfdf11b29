//! The order of steps: lanes of cells side by side, every result kept as soon
//! as it is there, the whole judged again whenever something new is known.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path as FsPath, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

use crate::document::lab::{
    Capture, CellResult, CommandList, Environment, FrontEnd, Judgement, LabResult, Path,
    PositiveControl, ScenarioResult,
};
use canary_record::names::{EndedBy, Forgery, OldSegments};
use canary_record::result::{Clock, SCHEMA_VERSION};
use canary_wire::segment::Family;

use crate::capture;
use crate::cell::{self, Cell, Setting, Shown, capture_file, io_error};
use crate::cli::CaptureMode;
use crate::evidence;
use crate::exec::ExecError;
use crate::place::{Place, PlaceError};
use crate::record::Record;
use crate::report::progress::Progress;
use crate::scenario::{POSITIVE_CONTROL, Scenario};
use crate::topology::{Step, Topology};
use crate::verdict;

/// A run as it was asked for.
pub struct Plan {
    /// What to run.
    pub scenarios: Vec<Scenario>,
    /// How often.
    pub repeat: u32,
    /// Lanes at a time.
    pub jobs: usize,
    /// The directory of the results; exists and is empty.
    pub dir: PathBuf,
    /// What every cell shares.
    pub setting: Setting,
    /// The machine.
    pub environment: Environment,
    /// Every option in effect.
    pub config: BTreeMap<String, String>,
}

/// The cells that share one topology, one after another.
#[derive(Clone, Debug)]
struct Lane {
    scenario: usize,
    front_end: FrontEnd,
    family: Family,
    repetition: u32,
    prefix: String,
}

/// Which cell of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    scenario: usize,
    repetition: u32,
    front_end: FrontEnd,
    family: Family,
    plan: usize,
}

/// A cell that was run, or why it could not be.
struct Done {
    id: String,
    shown: Result<Shown, String>,
    captures: Vec<Capture>,
}

/// Runs every cell and keeps its result as soon as it is there.
pub fn run(plan: &Plan, clock: &Clock, progress: &mut Progress, record: &Record) -> LabResult {
    let lanes = Mutex::new(lanes(plan));
    let kept = Mutex::new(BTreeSet::new());
    let (tell, told) = channel();
    let mut done: BTreeMap<Key, Done> = BTreeMap::new();
    std::thread::scope(|scope| {
        for _ in 0..plan.jobs {
            let (tell, lanes, kept) = (tell.clone(), &lanes, &kept);
            scope.spawn(move || {
                while let Some(lane) = next(lanes) {
                    run_lane(plan, &lane, kept, &tell);
                }
            });
        }
        drop(tell);
        progress.begin(cells(plan));
        for (key, cell) in told {
            done.insert(key, cell);
            let so_far = judge(plan, clock, &done, ended_by(plan));
            if let Some(cell) = find(&so_far, &done, key) {
                progress.cell(cell);
            }
            record.so_far(&so_far);
        }
    });
    let all = judge(plan, clock, &done, ended_by(plan));
    record.so_far(&all);
    progress.end();
    all
}

fn ended_by(plan: &Plan) -> EndedBy {
    plan.setting.interrupt.signalled().unwrap_or(EndedBy::Completed)
}

fn next(lanes: &Mutex<VecDeque<Lane>>) -> Option<Lane> {
    lanes.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

fn lanes(plan: &Plan) -> VecDeque<Lane> {
    let mut lanes = VecDeque::new();
    for repetition in 1..=plan.repeat {
        for (scenario, s) in plan.scenarios.iter().enumerate() {
            if skipped(s).is_some() {
                continue;
            }
            for front_end in s.front_ends.iter().copied() {
                for family in s.families.iter().copied() {
                    let prefix = format!("l{}-", lanes.len());
                    lanes.push_back(Lane { scenario, front_end, family, repetition, prefix });
                }
            }
        }
    }
    lanes
}

/// The prefix of each lane's hosts, and the last cell that ran in them.
#[must_use]
pub fn last_cells(plan: &Plan) -> Vec<(String, String)> {
    let last = |lane: &Lane| plan.scenarios[lane.scenario].cells.len().saturating_sub(1);
    lanes(plan).iter().map(|lane| (lane.prefix.clone(), id(plan, lane, last(lane)))).collect()
}

/// Why a scenario cannot be run on this kernel, and what would mend it.
fn skipped(s: &Scenario) -> Option<&'static str> {
    let bridge = matches!(s.path, Path::SameNodeBridge | Path::SameNodeBridgeNoNf);
    let missing = bridge && evidence::sysctl("net/bridge/bridge-nf-call-iptables").is_err();
    missing.then_some("this kernel has no br_netfilter: modprobe br_netfilter")
}

fn cells(plan: &Plan) -> usize {
    let of = |s: &Scenario| s.front_ends.len() * s.families.len() * s.cells.len();
    let runs = |s: &&Scenario| skipped(s).is_none();
    plan.scenarios.iter().filter(runs).map(of).sum::<usize>() * plan.repeat as usize
}

fn find<'a>(result: &'a LabResult, done: &BTreeMap<Key, Done>, key: Key) -> Option<&'a CellResult> {
    let id = &done.get(&key)?.id;
    result.scenarios.iter().flat_map(|s| &s.cells).find(|c| c.id == *id)
}

/// Builds the lane's topology and runs its cells in it.
fn run_lane(
    plan: &Plan,
    lane: &Lane,
    kept: &Mutex<BTreeSet<(usize, Forgery)>>,
    tell: &Sender<(Key, Done)>,
) {
    let scenario = &plan.scenarios[lane.scenario];
    let setting = &plan.setting;
    if setting.interrupt.signalled().is_some() {
        return;
    }
    let place = Place::build(Topology::new(scenario.path, &lane.prefix), &setting.tools);
    for (index, cell_plan) in scenario.cells.iter().enumerate() {
        if setting.interrupt.signalled().is_some() {
            return;
        }
        let id = id(plan, lane, index);
        let dir = plan.dir.join("cells").join(&id);
        let mut captures = Vec::new();
        let shown = match &place {
            Ok(place) => {
                fs::create_dir_all(&dir).map_err(io_error("create", &dir)).and_then(|()| {
                    let cell = Cell {
                        plan: cell_plan,
                        front_end: lane.front_end,
                        family: lane.family,
                        forgeries: &scenario.forgeries,
                        connections: scenario.connections,
                        index,
                        dir: &dir,
                    };
                    let shown = cell::run(place, &cell, setting)?;
                    captures = keep(plan, lane, place, &id, &shown, kept)?;
                    Ok(shown)
                })
            }
            Err(e) => Err(PlaceError::Io {
                what: "build the topology".to_owned(),
                source: std::io::Error::other(e.to_string()),
            }),
        };
        if let Err(PlaceError::Exec(ExecError::Interrupted(_))) = &shown {
            return;
        }
        let key = Key {
            scenario: lane.scenario,
            repetition: lane.repetition,
            front_end: lane.front_end,
            family: lane.family,
            plan: index,
        };
        let shown = shown.map_err(|e| e.to_string());
        if tell.send((key, Done { id, shown, captures })).is_err() {
            return;
        }
    }
}

fn id(plan: &Plan, lane: &Lane, cell: usize) -> String {
    let scenario = &plan.scenarios[lane.scenario];
    let names: Vec<_> = scenario.cells[cell].protections.iter().map(ToString::to_string).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join("+") };
    let again = if plan.repeat > 1 { format!("-{}", lane.repetition) } else { String::new() };
    format!("{}/{}-{}-{names}{again}", scenario.name, lane.front_end, lane.family)
}

/// Keeps one connection of every kind that was reset, or everything.
fn keep(
    plan: &Plan,
    lane: &Lane,
    place: &Place<'_>,
    id: &str,
    shown: &Shown,
    kept: &Mutex<BTreeSet<(usize, Forgery)>>,
) -> Result<Vec<Capture>, PlaceError> {
    let dir = plan.dir.join("cells").join(id);
    let mut captures = Vec::new();
    if plan.setting.capture == CaptureMode::None {
        return Ok(captures);
    }
    let (server, client) = (place.topology.server(), place.topology.client());
    let hosts = if server == client { vec![server] } else { vec![client, server] };
    let wrong = |e: capture::CaptureError| PlaceError::Io {
        what: format!("keep a capture of {id}"),
        source: std::io::Error::other(e),
    };
    let read = |host: &str| {
        let path = dir.join(capture_file(host));
        fs::read(&path).map_err(io_error("read", &path))
    };
    for reset in shown.resets.iter().flatten() {
        let new = kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((lane.scenario, reset.forgery));
        if !new {
            continue;
        }
        for host in &hosts {
            let (bytes, packets) =
                capture::connection(&read(host)?, reset.client_isn).map_err(wrong)?;
            let name = &plan.scenarios[lane.scenario].name;
            let file = format!("captures/{name}-{}-{host}.pcap", reset.forgery);
            let path = plan.dir.join(&file);
            fs::create_dir_all(plan.dir.join("captures"))
                .and_then(|()| fs::write(&path, bytes))
                .map_err(io_error("write", &path))?;
            captures.push(Capture {
                forgery: Some(reset.forgery),
                host: (*host).to_owned(),
                file,
                packets,
            });
        }
    }
    for host in &hosts {
        let path = dir.join(capture_file(host));
        if plan.setting.capture == CaptureMode::All {
            let packets = capture::packets(&read(host)?).map_err(wrong)?;
            let file = format!("cells/{id}/{}", capture_file(host));
            captures.push(Capture { forgery: None, host: (*host).to_owned(), file, packets });
        } else {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(captures)
}

/// Judges everything that is done so far.
fn judge(plan: &Plan, clock: &Clock, done: &BTreeMap<Key, Done>, ended_by: EndedBy) -> LabResult {
    let kernel = generation(plan, done);
    let scenarios: Vec<_> = plan
        .scenarios
        .iter()
        .enumerate()
        .map(|(index, s)| {
            let cells: Vec<_> = done
                .iter()
                .filter(|(key, _)| key.scenario == index)
                .map(|(key, done)| judge_cell(s, *key, done, kernel))
                .collect();
            let worst = cells.iter().map(|c| c.judgement).reduce(Judgement::worse);
            let missing =
                s.front_ends.len() * s.families.len() * s.cells.len() * plan.repeat as usize
                    - cells.len();
            let mut judgement = worst.unwrap_or(Judgement::Inconclusive);
            let mut reasons = Vec::new();
            if let Some(why) = skipped(s) {
                judgement = Judgement::Skipped;
                reasons.push(format!("skipped: {why}"));
            } else if missing > 0 {
                judgement = judgement.worse(Judgement::Inconclusive);
                reasons.push(format!("{missing} cells were not run"));
            }
            ScenarioResult {
                name: s.name.clone(),
                title: s.title.clone(),
                why: s.why.clone(),
                source: s.source.clone(),
                judgement,
                reasons,
                cells,
                commands: commands(s),
                timeline: None,
            }
        })
        .collect();
    let control = positive_control(&scenarios);
    let (judgement, reasons) = conclude(&scenarios, &control);
    let mut environment = plan.environment.clone();
    environment.old_segments = kernel;
    LabResult {
        schema_version: SCHEMA_VERSION,
        run: clock.run(
            "conntrack-lab run",
            env!("CARGO_PKG_VERSION"),
            ended_by,
            plan.config.clone(),
        ),
        judgement,
        reasons,
        environment,
        positive_control: control,
        scenarios,
    }
}

fn evidence_of<'a>(
    scenario: &'a Scenario,
    key: Key,
    shown: &'a Shown,
    captured: Option<&'a BTreeMap<Forgery, u64>>,
) -> verdict::Evidence<'a> {
    verdict::Evidence {
        forgeries: &scenario.forgeries,
        connections: u64::from(scenario.connections),
        family: key.family,
        translated: scenario.path != Path::PodIp,
        protections: &scenario.cells[key.plan].protections,
        boom: &shown.boom,
        load: &shown.load,
        nodes: &shown.nodes,
        captured,
    }
}

/// The kernel's generation, from the first cell that shows it.
fn generation(plan: &Plan, done: &BTreeMap<Key, Done>) -> Option<OldSegments> {
    done.iter().find_map(|(key, done)| {
        let shown = done.shown.as_ref().ok()?;
        let scenario = &plan.scenarios[key.scenario];
        let expect = &scenario.cells[key.plan].expect;
        let judged = verdict::judge(&evidence_of(scenario, *key, shown, None), expect, None);
        verdict::generation(&judged.forgeries)
    })
}

fn judge_cell(s: &Scenario, key: Key, done: &Done, kernel: Option<OldSegments>) -> CellResult {
    let plan = &s.cells[key.plan];
    let mut cell = CellResult {
        id: done.id.clone(),
        repetition: key.repetition,
        path: s.path,
        family: key.family,
        front_end: key.front_end,
        protections: plan.protections.clone(),
        judgement: Judgement::Inconclusive,
        reasons: Vec::new(),
        profile: None,
        meaning: String::new(),
        advice: String::new(),
        forgeries: Vec::new(),
        boom_diagnosis: None,
        client: BTreeMap::new(),
        sniffer_dropped: 0,
        nodes: Vec::new(),
        captured_resets: None,
        captures: done.captures.clone(),
        seconds: 0.0,
    };
    let shown = match &done.shown {
        Ok(shown) => shown,
        Err(why) => {
            cell.reasons.push(why.clone());
            return cell;
        }
    };
    let captured = shown.resets.as_ref().map(|r| capture::by_forgery(r));
    let judged =
        verdict::judge(&evidence_of(s, key, shown, captured.as_ref()), &plan.expect, kernel);
    cell.judgement = judged.judgement;
    cell.reasons = judged.reasons;
    cell.reasons.extend(shown.notes.iter().cloned());
    verdict::meaning(judged.profile, &judged.forgeries).clone_into(&mut cell.meaning);
    verdict::advice(judged.profile, s.path, &plan.protections, &judged.forgeries)
        .clone_into(&mut cell.advice);
    cell.profile = judged.profile;
    cell.forgeries = judged.forgeries;
    cell.boom_diagnosis =
        shown.boom.paths.iter().find(|p| p.family == key.family).map(|p| p.diagnosis);
    cell.client = shown.load.probe.iter().filter(|(_, n)| **n > 0).map(|(k, n)| (*k, *n)).collect();
    cell.sniffer_dropped = shown.boom.sniffer.dropped;
    cell.nodes.clone_from(&shown.nodes);
    cell.captured_resets = captured;
    cell.seconds = shown.seconds;
    cell
}

/// The unprotected ClusterIP cells of the run.
fn positive_control(scenarios: &[ScenarioResult]) -> PositiveControl {
    let mut control = PositiveControl::default();
    let cells = scenarios.iter().flat_map(|s| &s.cells);
    for cell in cells.filter(|c| c.path == Path::ClusterIp && c.protections.is_empty()) {
        for f in cell.forgeries.iter().filter(|f| f.forgery == Forgery::AboveWindow) {
            control.forged += f.forged;
            control.killed += f.killed;
        }
    }
    control.held = control.forged > 0 && control.killed == control.forged;
    control
}

pub(crate) fn conclude(
    scenarios: &[ScenarioResult],
    control: &PositiveControl,
) -> (Judgement, Vec<String>) {
    let mut reasons = Vec::new();
    let mut judgement = scenarios
        .iter()
        .map(|s| s.judgement)
        .reduce(Judgement::worse)
        .unwrap_or(Judgement::Inconclusive);
    if !control.held {
        judgement = Judgement::Inconclusive;
        reasons.push(format!(
            "no positive control: on an unprotected ClusterIP path {} of {} above-window segments \
             reset their connection, so this run could not have found the fault",
            control.killed, control.forged
        ));
    }
    for s in scenarios {
        reasons.extend(s.reasons.iter().map(|r| format!("{}: {r}", s.name)));
        for c in s.cells.iter().filter(|c| c.judgement != Judgement::AsExpected) {
            reasons.extend(c.reasons.iter().map(|r| format!("{}: {r}", c.id)));
        }
    }
    // A scenario skipped with its reason does not make the rest worthless; but the control that
    // was added to it is no rest.
    let proved =
        |s: &ScenarioResult| s.judgement == Judgement::AsExpected && s.name != POSITIVE_CONTROL;
    if judgement == Judgement::Skipped && control.held && scenarios.iter().any(proved) {
        judgement = Judgement::AsExpected;
    }
    (judgement, reasons)
}

fn commands(s: &Scenario) -> Vec<CommandList> {
    let topology = Topology::new(s.path, "");
    vec![CommandList {
        title: "hosts and links; the rules of each cell are in cells/ID/rules-NODE.txt".to_owned(),
        lines: topology.steps.iter().map(Step::shell).collect(),
    }]
}

/// True when `dir` may be used for results: absent, or empty.
#[must_use]
pub fn usable(dir: &FsPath) -> bool {
    match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}
