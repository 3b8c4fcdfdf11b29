//! Runs what a plan says, and tells what was seen as soon as it is there: batches of cells side by
//! side, then other causes, then what needs the whole machine. It judges nothing and writes no
//! result.

pub mod cause;
pub mod cell;
mod connections;
pub mod host_table;
pub mod saturation;
pub mod setting;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::document::lab::{CommandList, Mend, Path, ProxyMode};
use canary_testbed::evidence;
use canary_testbed::exec::Tools;
use canary_testbed::testbed::{Testbed, TestbedError};
use canary_testbed::topology::{Step, Topology};
use canary_wire::segment::Family;

use self::host_table::Control;
use self::setting::{Setting, guarded, io_error};
use crate::observed::cause::Seen;
use crate::observed::cell::{Done, Key};
use crate::observed::saturation::Filled;
use crate::scenario::cause::{Case, Cause, Need};
use crate::scenario::matrix::Matrix;
use crate::scenario::{About, Body, Scenario};

/// A run as it was asked for.
pub struct Plan {
    /// What to run, in order.
    pub scenarios: Vec<Scenario>,
    /// How often.
    pub repeat: u32,
    /// Whether every case of a cause is run under each mend too.
    pub mends: bool,
    /// Cells, or cases, at a time.
    pub jobs: usize,
    /// The directory of the results; exists and is empty.
    pub dir: PathBuf,
    /// What everything that runs has in common.
    pub setting: Setting,
}

/// What was seen.
#[derive(Debug)]
pub enum Event {
    /// A cell has ended.
    Cell(Box<Done>),
    /// The cases of a cause have ended: its number in the plan, the repetition, the cases, and
    /// each case under each mend where that was asked for.
    Cause(usize, u32, Vec<Result<Seen, String>>, Vec<Result<Seen, String>>),
    /// A saturation experiment has ended.
    Saturation(usize, u32, Box<Filled>),
}

/// The cells that share one topology, one after another.
#[derive(Clone, Debug)]
struct Batch {
    scenario: usize,
    proxy_mode: ProxyMode,
    family: Family,
    repetition: u32,
    prefix: String,
}

/// Runs everything. After a signal nothing more begins.
pub fn run(plan: &Plan, control: Option<&Control>, tell: &Sender<Event>) {
    cells(plan, tell);
    for repetition in 1..=plan.repeat {
        causes(plan, repetition, tell);
        saturations(plan, repetition, control, tell);
    }
}

/// Why a scenario cannot be run on this kernel, and what would mend it.
#[must_use]
pub fn skipped(scenario: &Scenario, tools: &Tools) -> Option<&'static str> {
    match &scenario.body {
        Body::Matrix(m) => {
            let bridge = matches!(m.path, Path::SameNodeBridge | Path::SameNodeBridgeNoNf);
            if bridge && evidence::sysctl("net/bridge/bridge-nf-call-iptables").is_err() {
                return Some("this kernel has no br_netfilter: modprobe br_netfilter");
            }
            let ipvs = m.extra().then_some(Need::Ipvs);
            ipvs.filter(|n| !takes(tools, *n)).map(Need::missing)
        }
        Body::Cause(cause) => cause.needed().find(|n| !takes(tools, *n)).map(Need::missing),
        Body::Saturation(_) => None,
    }
}

/// Whether the kernel has it, and gives it to this user.
fn takes(tools: &Tools, need: Need) -> bool {
    let taken = need.call().is_none_or(|(tool, options, input)| {
        tools.call(tool, options).is_ok_and(|call| call.stdin(input).run().is_ok())
    });
    taken && need.setting().is_none_or(|key| evidence::sysctl(key).is_ok())
}

/// What to type to build a scenario's hosts.
#[must_use]
pub fn commands(scenario: &Scenario) -> CommandList {
    match &scenario.body {
        Body::Matrix(m) => CommandList {
            title: "hosts and links; the rules of each cell are in cells/ID/rules-NODE.txt"
                .to_owned(),
            lines: Topology::new(m.path, "").steps.iter().map(Step::shell).collect(),
        },
        Body::Cause(cause) => cause::commands(cause),
        Body::Saturation(_) => saturation::commands(),
    }
}

/// The prefix of each batch's hosts, and the last cell that ran in them.
#[must_use]
pub fn last_cells(plan: &Plan) -> Vec<(String, String)> {
    batches(plan)
        .iter()
        .filter_map(|batch| {
            let last = matrix(plan, batch)?.cells.len().checked_sub(1)?;
            Some((batch.prefix.clone(), id(plan, batch, last)?))
        })
        .collect()
}

fn cells(plan: &Plan, tell: &Sender<Event>) {
    let batches = Mutex::new(batches(plan));
    let kept = cell::Kept::default();
    std::thread::scope(|scope| {
        for _ in 0..plan.jobs {
            scope.spawn(|| {
                let next = || batches.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(batch) = next() {
                    run_batch(plan, &batch, &kept, tell);
                }
            });
        }
    });
}

fn batches(plan: &Plan) -> VecDeque<Batch> {
    let mut batches = VecDeque::new();
    for repetition in 1..=plan.repeat {
        for (scenario, s) in plan.scenarios.iter().enumerate() {
            let Some(matrix) = s.matrix().filter(|_| skipped(s, &plan.setting.tools).is_none())
            else {
                continue;
            };
            for proxy_mode in matrix.proxy_modes.iter().copied() {
                for family in matrix.families.iter().copied() {
                    let prefix = format!("l{}-", batches.len());
                    batches.push_back(Batch { scenario, proxy_mode, family, repetition, prefix });
                }
            }
        }
    }
    batches
}

fn matrix<'a>(plan: &'a Plan, batch: &Batch) -> Option<&'a Matrix> {
    plan.scenarios.get(batch.scenario)?.matrix()
}

/// Builds the batch's topology and runs its cells in it.
fn run_batch(plan: &Plan, batch: &Batch, kept: &cell::Kept, tell: &Sender<Event>) {
    let setting = &plan.setting;
    let (Some(scenario), Some(matrix)) = (plan.scenarios.get(batch.scenario), matrix(plan, batch))
    else {
        return;
    };
    if setting.interrupt.signalled().is_some() {
        return;
    }
    let testbed =
        guarded(|| Testbed::build(Topology::new(matrix.path, &batch.prefix), &setting.tools));
    for (index, cell_plan) in matrix.cells.iter().enumerate() {
        let Some(id) = id(plan, batch, index) else { continue };
        let dir = plan.dir.join("cells").join(&id);
        let mut captures = Vec::new();
        let mut part = |testbed: &Testbed<'_>| {
            fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
            let cell = cell::Cell {
                plan: cell_plan,
                proxy_mode: batch.proxy_mode,
                family: batch.family,
                direction: matrix.direction,
                forgeries: &matrix.forgeries,
                connections: matrix.connections,
                dir: &dir,
            };
            let shown = cell::run(testbed, &cell, setting)?;
            let name = (scenario.about.name.as_str(), id.as_str());
            captures = cell::keep(testbed, setting, &plan.dir, name, &shown, kept)?;
            Ok::<_, TestbedError>(shown)
        };
        let shown = match &testbed {
            Ok(testbed) => guarded(|| part(testbed)),
            Err(why) => Err(format!("cannot build the topology: {why}")),
        };
        // What a signal cut short was not run.
        if setting.interrupt.signalled().is_some() && shown.is_err() {
            return;
        }
        let key = Key {
            scenario: batch.scenario,
            repetition: batch.repetition,
            proxy_mode: batch.proxy_mode,
            family: batch.family,
            plan: index,
        };
        let done = Done { key, id, shown, captures };
        // Nobody listens any more once the run is given up.
        if tell.send(Event::Cell(Box::new(done))).is_err()
            || setting.interrupt.signalled().is_some()
        {
            return;
        }
    }
}

fn id(plan: &Plan, batch: &Batch, cell: usize) -> Option<String> {
    let protections = &matrix(plan, batch)?.cells.get(cell)?.protections;
    let again = if plan.repeat > 1 { format!("-{}", batch.repetition) } else { String::new() };
    let name = &plan.scenarios.get(batch.scenario)?.about.name;
    Some(format!("{name}/{}-{}-{protections}{again}", batch.proxy_mode, batch.family))
}

/// A repetition's own directory and the prefix of a scenario's hosts.
fn apart(plan: &Plan, scenario: usize, repetition: u32) -> (PathBuf, String) {
    let dir = if plan.repeat > 1 {
        plan.dir.join(format!("repetition-{repetition}"))
    } else {
        plan.dir.clone()
    };
    (dir, format!("s{repetition}-{scenario}-"))
}

/// A case to be run, as it is or under a mend.
struct Job<'a> {
    scenario: usize,
    about: &'a About,
    cause: &'a Cause,
    /// Its number among what is run of its scenario.
    slot: usize,
    /// Its number among the cases.
    case: usize,
    mend: Option<Mend>,
    what: Case,
}

/// The cases of every cause, from one queue. A cause is told of when its last case has ended.
fn causes(plan: &Plan, repetition: u32, tell: &Sender<Event>) {
    struct Open {
        seen: Vec<Option<Result<Seen, String>>>,
        began: Instant,
    }
    let (mut queue, mut open) = (VecDeque::new(), BTreeMap::new());
    for (scenario, s) in plan.scenarios.iter().enumerate() {
        let Body::Cause(cause) = &s.body else { continue };
        if skipped(s, &plan.setting.tools).is_some() || plan.setting.interrupt.signalled().is_some()
        {
            continue;
        }
        begin(s);
        let jobs = jobs(cause, plan.mends);
        open.insert(scenario, Open { seen: vec![None; jobs.len()], began: Instant::now() });
        for (slot, (case, mend, what)) in jobs.into_iter().enumerate() {
            queue.push_back(Job { scenario, about: &s.about, cause, slot, case, mend, what });
        }
    }
    let (queue, open) = (Mutex::new(queue), Mutex::new(open));
    std::thread::scope(|scope| {
        for _ in 0..plan.jobs {
            scope.spawn(|| {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(job) = next() {
                    let started = Instant::now();
                    let seen = one_case(plan, repetition, &job);
                    let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some(of) = open.get_mut(&job.scenario) else { continue };
                    let t = started.duration_since(of.began).as_secs_f64();
                    if let Some(slot) = of.seen.get_mut(job.slot) {
                        *slot = Some(seen.map(|seen| Seen { t, ..seen }));
                    }
                    if of.seen.iter().all(Option::is_some)
                        && let Some(of) = open.remove(&job.scenario)
                    {
                        let mut seen: Vec<_> = of.seen.into_iter().flatten().collect();
                        let mended = seen.split_off(job.cause.cases.len());
                        // Whoever listens does so to the end.
                        let _ = tell.send(Event::Cause(job.scenario, repetition, seen, mended));
                    }
                }
            });
        }
    });
}

/// Every case as it is, and then, where mends are asked for, every case under each mend.
fn jobs(cause: &Cause, mends: bool) -> Vec<(usize, Option<Mend>, Case)> {
    let cases = || cause.cases.iter().enumerate();
    let mut jobs: Vec<_> = cases().map(|(n, case)| (n, None, case.clone())).collect();
    if mends {
        jobs.extend(cases().flat_map(|(n, case)| {
            case.under_mends(cause.mends_at)
                .into_iter()
                .map(move |(mend, case)| (n, Some(mend), case))
        }));
    }
    jobs
}

fn one_case(whole: &Plan, repetition: u32, job: &Job<'_>) -> Result<Seen, String> {
    let (dir, prefix) = apart(whole, job.scenario, repetition);
    let mut dir = dir.join("cells").join(&job.about.name).join((job.case + 1).to_string());
    if let Some(mend) = job.mend {
        dir = dir.join(mend.as_str());
    }
    let prefix = format!("{prefix}{}-", job.slot);
    guarded(|| cause::run(job.cause, &job.what, &whole.setting, &dir, &prefix))
}

/// Saturation has the machine for itself.
fn saturations(plan: &Plan, repetition: u32, control: Option<&Control>, tell: &Sender<Event>) {
    for (n, s) in plan.scenarios.iter().enumerate() {
        let Body::Saturation(saturation) = &s.body else { continue };
        if plan.setting.interrupt.signalled().is_some() {
            return;
        }
        begin(s);
        let (dir, prefix) = apart(plan, n, repetition);
        let name = &s.about.name;
        let filled = saturation::run(name, saturation, &plan.setting, &dir, &prefix, control);
        let _ = tell.send(Event::Saturation(n, repetition, Box::new(filled)));
    }
}

fn begin(s: &Scenario) {
    // A closed stderr must not stop the run.
    let _ = writeln!(std::io::stderr(), "{}: {}", s.about.name, s.about.title);
}
