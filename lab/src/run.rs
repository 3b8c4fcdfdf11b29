//! Runs what a plan says, and tells what was seen as soon as it is there: batches of cells
//! and cases of other causes side by side, then what needs the whole machine. It judges nothing and writes no
//! result.

pub(crate) mod cause;
pub(crate) mod cell;
mod connections;
pub(crate) mod host_table;
pub(crate) mod saturation;
pub(crate) mod setting;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::document::lab::CommandList;
use canary_testbed::evidence;
use canary_testbed::exec::Call;
use canary_testbed::topology::{Step, Topology};

use self::host_table::Control;
use self::setting::{Setting, guarded};
use crate::observed::cause::Seen;
use crate::observed::cell::{Done, Key};
use crate::observed::saturation::Filled;
use crate::scenario::cause::{Case, Cause, Need};
use crate::scenario::matrix::{CellPlan, Matrix};
use crate::scenario::{Body, Scenario};
use crate::wrong::say;

/// A run as it was asked for.
pub(crate) struct Plan {
    pub(crate) scenarios: Vec<Scenario>,
    pub(crate) repeat: u32,
    /// Whether every case of a cause is run under each mend too.
    pub(crate) mends: bool,
    /// Cells, or cases, at a time.
    pub(crate) jobs: usize,
    /// The directory of the results; exists and is empty.
    pub(crate) dir: PathBuf,
    pub(crate) setting: Setting,
}

#[derive(Debug)]
pub(crate) enum Event {
    /// A cell has ended.
    Cell(Box<Done>),
    /// The cases of a cause have ended: its number in the plan, the repetition, the cases, and
    /// each case under each mend where that was asked for.
    Cause(usize, u32, Vec<Result<Seen, String>>, Vec<Result<Seen, String>>),
    /// A saturation experiment has ended.
    Saturation(usize, u32, Box<Filled>),
}

/// The cells that share one topology, one after another.
struct Batch<'a> {
    scenario: &'a Scenario,
    matrix: &'a Matrix,
    /// Of its first cell.
    key: Key,
    prefix: String,
}

impl Batch<'_> {
    /// What a cell's files are under.
    fn id(&self, plan: &CellPlan, repeat: u32) -> String {
        let Key { proxy_mode, family, repetition, .. } = self.key;
        let again = if repeat > 1 { format!("-{repetition}") } else { String::new() };
        let (name, protections) = (&self.scenario.about.name, &plan.protections);
        format!("{name}/{proxy_mode}-{family}-{protections}{again}")
    }
}

/// Runs everything. After a signal nothing more begins.
pub(crate) fn run(plan: &Plan, control: Option<&Control>, tell: &Sender<Event>) {
    let kept = &cell::Kept::default();
    let batch = |batch| Box::new(move || run_batch(plan, &batch, kept, tell)) as Work<'_>;
    let mut batches = batches(plan).into_iter().peekable();
    for repetition in 1..=plan.repeat {
        if plan.setting.interrupt.signalled().is_some() {
            return;
        }
        // Cases mostly wait, so they begin first; but while a table is full, whoever deletes entries
        // anywhere walks past all of its (`nf_ct_iterate_cleanup()`).
        let (fill, wait): (Vec<_>, Vec<_>) =
            causes(plan, repetition, tell).into_iter().partition(|(cause, _)| cause.fills());
        let these = || batches.next_if(|b| b.key.repetition == repetition);
        let cells = std::iter::from_fn(these).map(batch);
        let cases = |all: Vec<_>| all.into_iter().map(|(_, work)| work);
        let queue = cases(wait).chain(cells).chain(cases(fill)).collect();
        work_off(queue, plan.jobs);
        saturations(plan, repetition, control, tell);
    }
}

/// Why a scenario cannot be run on this kernel, and what would mend it.
pub(crate) fn skipped(scenario: &Scenario) -> Option<&'static str> {
    match &scenario.body {
        Body::Matrix(m) => {
            let needed = [Need::of(m.path), m.extra().then_some(Need::Ipvs)];
            needed.into_iter().flatten().find(|n| !takes(*n)).map(Need::missing)
        }
        Body::Cause(cause) => cause.needed().find(|n| !takes(*n)).map(Need::missing),
        Body::Saturation(_) => None,
    }
}

/// Whether the kernel has it, and gives it to this user.
fn takes(need: Need) -> bool {
    let taken = need.call().is_none_or(|(tool, options, input)| {
        Call::tool(tool, options).is_ok_and(|call| call.stdin(input).run().is_ok())
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
pub(crate) fn last_cells(plan: &Plan) -> Vec<(String, String)> {
    let last = |batch: Batch<'_>| {
        let id = batch.id(batch.matrix.cells.last()?, plan.repeat);
        Some((batch.prefix, id))
    };
    batches(plan).into_iter().filter_map(last).collect()
}

type Work<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Takes from one queue, so many at a time.
fn work_off(queue: VecDeque<Work<'_>>, at_once: usize) {
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(work) = next() {
                    work();
                }
            });
        }
    });
}

fn batches(plan: &Plan) -> Vec<Batch<'_>> {
    let mut batches = Vec::new();
    for repetition in 1..=plan.repeat {
        for (n, scenario) in plan.scenarios.iter().enumerate() {
            let runs = |_: &&Matrix| skipped(scenario).is_none();
            let Some(matrix) = scenario.matrix().filter(runs) else { continue };
            for proxy_mode in matrix.proxy_modes.iter().copied() {
                for family in matrix.families.iter().copied() {
                    let prefix = format!("l{}-", batches.len());
                    let key = Key { scenario: n, repetition, proxy_mode, family, plan: 0 };
                    batches.push(Batch { scenario, matrix, key, prefix });
                }
            }
        }
    }
    batches
}

/// Builds the batch's topology and runs its cells in it.
fn run_batch(plan: &Plan, batch: &Batch<'_>, kept: &cell::Kept, tell: &Sender<Event>) {
    let (setting, matrix) = (&plan.setting, batch.matrix);
    let interrupted = || setting.interrupt.signalled().is_some();
    if interrupted() {
        return;
    }
    let hosts = Topology::new(matrix.path, &batch.prefix);
    let place = guarded(|| setting.place(hosts));
    for (n, cell_plan) in matrix.cells.iter().enumerate() {
        let (key, id) = (Key { plan: n, ..batch.key }, batch.id(cell_plan, plan.repeat));
        let shown = match &place {
            Ok(place) => guarded(|| {
                cell::Cell {
                    place,
                    results: &plan.dir,
                    scenario: &batch.scenario.about.name,
                    id: &id,
                    matrix,
                    plan: cell_plan,
                    key,
                    kept,
                }
                .run()
            }),
            Err(why) => Err(format!("cannot build the topology: {why}")),
        };
        // What a signal cut short was not run.
        if interrupted() && shown.is_err() {
            return;
        }
        let done = Done { key, id, shown };
        // Nobody listens any more once the run is given up.
        if tell.send(Event::Cell(Box::new(done))).is_err() || interrupted() {
            return;
        }
    }
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

/// The cases of every cause. A cause is told of when its last case has ended.
fn causes<'a>(
    plan: &'a Plan,
    repetition: u32,
    tell: &'a Sender<Event>,
) -> Vec<(&'a Cause, Work<'a>)> {
    let mut all = Vec::new();
    for (scenario, s) in plan.scenarios.iter().enumerate() {
        let Body::Cause(cause) = &s.body else { continue };
        if skipped(s).is_some() {
            continue;
        }
        let (dir, prefix) = apart(plan, scenario, repetition);
        let dir = dir.join("cells").join(&s.about.name);
        let cases = cases(cause, plan.mends);
        let seen = Arc::new((Mutex::new(vec![None; cases.len()]), OnceLock::new()));
        all.extend(cases.into_iter().enumerate().map(|(slot, (at, what))| {
            let (dir, prefix) = (dir.join(at), format!("{prefix}{slot}-"));
            let seen = Arc::clone(&seen);
            let work = Box::new(move || {
                let signalled = plan.setting.interrupt.signalled().is_some();
                if slot == 0 && !signalled {
                    begin(s);
                }
                let (seen, began) = &*seen;
                let t = began.get_or_init(Instant::now).elapsed().as_secs_f64();
                let one = if signalled {
                    Err("not run: a signal came before it".to_owned())
                } else {
                    guarded(|| cause::run(cause, &what, &plan.setting, &dir, &prefix))
                };
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen[slot] = Some(one.map(|seen| Seen { t, ..seen }));
                if seen.iter().all(Option::is_some) {
                    let mut seen: Vec<_> = seen.drain(..).flatten().collect();
                    let mended = seen.split_off(cause.cases.len());
                    // Whoever listens does so to the end.
                    let _ = tell.send(Event::Cause(scenario, repetition, seen, mended));
                }
            });
            (cause, work as Work<'a>)
        }));
    }
    all
}

/// Every case as it is, and then, where mends are asked for, every case under each mend; each with
/// the directory of its files.
pub(crate) fn cases(cause: &Cause, mends: bool) -> Vec<(PathBuf, Case)> {
    let cases =
        || (1..).zip(&cause.cases).map(|(n, case): (u32, _)| (PathBuf::from(n.to_string()), case));
    let mut all: Vec<_> = cases().map(|(dir, case)| (dir, case.clone())).collect();
    for (dir, case) in cases().filter(|_| mends) {
        let mended = case.under_mends(cause.mends_at).into_iter();
        all.extend(mended.map(|(mend, case)| (dir.join(mend.as_str()), case)));
    }
    all
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
    say(format!("{}: {}", s.about.name, s.about.title));
}
