//! The steps of the saturation experiment, in order.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::document::timeline::{Change, FailureClass, Step};
use canary_record::names::{Forgery, ProbeEnd};
use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use canary_record::result::observe::ObserveResult;
use canary_record::result::witness::InTable;
use canary_testbed::evidence;
use canary_testbed::os::wrong;
use canary_testbed::testbed::TestbedError;
use canary_testbed::topology::POD_PORT;
use nix::sys::signal::Signal;

use super::super::host_table::{self, Control, Size};
use super::super::setting::{READY, io_error};
use super::stage::{Load, Stage, TIMEOUT};
use super::streams::{Streams, Talk};
use super::{Experiment, eviction, half_open, pace, tables};
use crate::observed::saturation::{Filled, Kind, MOST_HELD, Shown};
use crate::observed::{cause, listed, outcomes, series};
use crate::scenario::saturation::MOST_CLIENTS;

/// How long the step that fills the table may take.
const FILLING: Duration = Duration::from_secs(90);
/// The time in which it would fill a small table.
const FILL_TIME: f64 = 8.0;
/// More than two processors of today can do.
const MOST_RATE: f64 = 20_000.0;
/// The rate of one client, at most.
const CLIENT_RATE: f64 = 100.0;
/// The established timeout of the last step in seconds, and a silence that is longer.
const SHORT: &str = "2";
const IDLE: Duration = Duration::from_millis(3500);
/// Until the client's octet has passed the node, and much less than the timeout.
const SPOKEN: Duration = Duration::from_millis(100);

struct Plan<'a> {
    kind: Kind,
    title: String,
    load: Option<Load>,
    changes: Vec<Change>,
    streams: Option<&'a Streams>,
}

impl Plan<'_> {
    /// A step that changes nothing, and in which nothing but the canary connects.
    fn new(kind: Kind, title: impl Into<String>) -> Self {
        Self { kind, title: title.into(), load: None, changes: Vec::new(), streams: None }
    }
}

/// Runs everything. What is seen goes to `filled` at once.
pub(super) fn run<'a>(
    x: Experiment<'a>,
    control: Option<&'a Control>,
    filled: &'a mut Filled,
) -> Result<(), TestbedError> {
    let now = jiff::Timestamp::now().as_microsecond() as f64 / 1e6;
    Sequence { x, control, filled, limit: x.limit, wall: now - x.seconds(), loads: Vec::new() }
        .run()
}

struct Sequence<'a> {
    x: Experiment<'a>,
    control: Option<&'a Control>,
    filled: &'a mut Filled,
    /// What the host's limit is to be now.
    limit: u64,
    /// When it began, in seconds since 1970.
    wall: f64,
    loads: Vec<LoadResult>,
}

impl<'a> Sequence<'a> {
    fn run(&mut self) -> Result<(), TestbedError> {
        let (x, limit) = (self.x, self.x.limit);
        self.filled.facts.can_resize = self.control.is_some();
        self.filled.facts.can_hold = self.control.is_some() && limit <= MOST_HELD;
        self.within("filling", Self::fill)?;
        if let Some(control) = self.control {
            if self.filled.facts.can_hold {
                x.say("full of established connections, for up to a minute");
                let observed = eviction::run(&x, self.filled)?;
                self.series(&observed);
                x.say("half-open entries dropped early");
                half_open::run(&x, control, self.filled)?;
                let own = own_limit(limit);
                if own.is_err() {
                    self.filled.facts.evicted.clear();
                    self.filled.facts.half_open.clear();
                }
                own?;
            }
            for size in &x.s.smaller {
                self.within(&format!("smaller-{size}"), |this, stage| {
                    this.smaller(stage, control, *size)
                })?;
            }
            let bigger = control.resize(Size::of(limit * 4))?;
            self.limit = limit * 4;
            let plan = Plan {
                load: Some(self.filling_load()),
                changes: vec![limited(bigger.before.limit, limit * 4)],
                ..Plan::new(Kind::Bigger, "a bigger table, the load that filled the smaller one")
            };
            let ended = self.within("bigger", |this, stage| this.step(stage, plan));
            bigger.restore()?;
            self.limit = limit;
            ended?;
        }
        self.within("shorter", Self::shorter)?;
        if x.s.pairs > 0 {
            x.say("transfers and new connections, be_liberal 0 and 1 by turns");
            self.filled.facts.pace = self.within("pace", |_, stage| pace::run(stage, x.s.pairs))?;
        }
        if let Some(control) = self.control.filter(|_| !x.s.table_sizes.is_empty()) {
            x.say("packets and new connections, tables of other sizes");
            let (sizes, loads) = (&x.s.table_sizes, &x.s.entries_per_bucket);
            let tables =
                self.within("tables", |_, stage| tables::run(stage, control, sizes, loads))?;
            let facts = &mut self.filled.facts;
            (facts.turns, facts.tables) = (tables.turns, tables.best);
            self.filled.timeline.reasons.extend(tables.reasons);
        }
        Ok(())
    }

    /// Does something in a fresh place without protection. What its observer saw is kept however
    /// that ends.
    fn within<T>(
        &mut self,
        name: &str,
        job: impl FnOnce(&mut Self, &Stage<'a>) -> Result<T, TestbedError>,
    ) -> Result<T, TestbedError> {
        let stage = Stage::build(&self.x, name, false)?;
        let ended = job(self, &stage);
        let observed = stage.close()?;
        self.series(&observed);
        ended
    }

    /// The most clients, whose load is that of the run's table, in one with a smaller limit.
    fn smaller(
        &mut self,
        stage: &Stage<'_>,
        control: &Control,
        size: u64,
    ) -> Result<(), TestbedError> {
        let streams = stage.streams(self.x.s.held, 0)?;
        let smaller = control.resize(Size::of(size))?;
        let limit = std::mem::replace(&mut self.limit, size);
        let title = format!("{} clients, a table of {size} entries", self.most());
        let plan = Plan {
            load: Some(self.load(self.most())),
            changes: vec![limited(smaller.before.limit, size)],
            streams: Some(&streams),
            ..Plan::new(Kind::Smaller, title)
        };
        let ended = self.step(stage, plan);
        drop(streams);
        smaller.restore()?;
        self.limit = limit;
        ended
    }

    fn most(&self) -> u32 {
        self.x.s.clients.iter().copied().max().unwrap_or(MOST_CLIENTS)
    }

    /// So many clients for a step's time, at a rate with which all steps together use four fifths of
    /// a small table.
    fn load(&self, clients: u32) -> Load {
        let time = Duration::from_secs(u64::from(self.x.s.seconds));
        let sum: u32 = self.x.s.clients.iter().sum();
        let rate = self.x.limit as f64 * 0.8 / (f64::from(sum) * time.as_secs_f64());
        let rate = f64::from(clients) * rate.min(CLIENT_RATE);
        // Room for a second and a half of connects that get no answer.
        Load { clients, rate, at_once: (rate * 2.0).max(100.0), connections: None, time }
    }

    fn filling_load(&self) -> Load {
        let connections = (self.x.limit as f64 * self.x.s.load).ceil();
        Load {
            clients: MOST_CLIENTS,
            rate: (connections / FILL_TIME).min(MOST_RATE),
            // A machine that cannot keep that rate has no more than this waiting: connects that
            // time out for want of a processor would look like those of a full table.
            at_once: 2000.0,
            connections: Some(connections as u64),
            time: FILLING,
        }
    }

    /// From no load to a table that is full, and stays so.
    fn fill(&mut self, stage: &Stage<'_>) -> Result<(), TestbedError> {
        let streams = stage.streams(self.x.s.held, 0)?;
        let most = Some(self.load(self.most()));
        let mut plans = vec![Plan::new(Kind::NoLoad, "no load")];
        plans.extend(self.x.s.clients.iter().map(|n| Plan {
            load: Some(self.load(*n)),
            ..Plan::new(Kind::Clients, format!("{n} clients"))
        }));
        plans.push(Plan {
            load: Some(self.filling_load()),
            ..Plan::new(Kind::Load, "a table smaller than the load")
        });
        plans.push(Plan { load: most, ..Plan::new(Kind::Full, "the table is full") });
        for plan in plans {
            self.step(stage, Plan { streams: Some(&streams), ..plan })?;
        }
        let plan = Plan {
            load: most,
            changes: vec![stage.set(evidence::BE_LIBERAL, "1")?],
            streams: Some(&streams),
            ..Plan::new(Kind::FullLiberal, "full, with be_liberal=1")
        };
        self.step(stage, plan)
    }

    /// The same load with shorter timeouts, and what too short ones do.
    fn shorter(&mut self, stage: &Stage<'_>) -> Result<(), TestbedError> {
        let plan = Plan {
            changes: vec![stage.set(evidence::BE_LIBERAL, "1")?],
            ..Plan::new(Kind::Liberal, "no load, be_liberal=1")
        };
        self.step(stage, plan)?;
        let mut changes = vec![stage.set(evidence::BE_LIBERAL, "0")?];
        for key in [
            "net/netfilter/nf_conntrack_tcp_timeout_time_wait",
            "net/netfilter/nf_conntrack_tcp_timeout_fin_wait",
            "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            "net/netfilter/nf_conntrack_tcp_timeout_last_ack",
        ] {
            changes.push(stage.set(key, SHORT)?);
        }
        let plan = Plan {
            load: Some(self.filling_load()),
            changes,
            ..Plan::new(Kind::Shorter, "shorter timeouts, the load that filled the table")
        };
        self.step(stage, plan)?;
        let change = stage.set("net/netfilter/nf_conntrack_tcp_timeout_established", SHORT)?;
        let mut pairs = stage.connect(self.x.s.held * 2)?;
        let mut speaking = pairs.split_off(self.x.s.held as usize);
        self.x.setting.interrupt.sleep(IDLE)?;
        // The server's tick comes first.
        let streams = stage.speak(pairs, 0)?;
        let title = "established timeout shorter than a silence, the server speaks";
        let plan = Plan {
            changes: vec![change],
            streams: Some(&streams),
            ..Plan::new(Kind::Expiry, title)
        };
        self.step(stage, plan)?;
        for (client, _) in &mut speaking {
            client.write_all(b".").map_err(io_error("write to a connection", &stage.dir))?;
        }
        // Before the server's tick, which would be the first to meet no entry.
        self.x.setting.interrupt.sleep(SPOKEN)?;
        let streams = stage.speak(speaking, 0)?;
        let plan = Plan::new(Kind::ExpiryClient, "the same silence, the client speaks");
        self.step(stage, Plan { streams: Some(&streams), ..plan })
    }

    /// Adds what an observer saw, and the loads since the last.
    fn series(&mut self, observed: &ObserveResult) {
        let loads = std::mem::take(&mut self.loads);
        let timeline = &mut self.filled.timeline;
        if loads.iter().any(|l| l.classes().len() > 1) {
            timeline.reasons.push(
                "Where a step's connections failed in several ways, the series shares them out in proportion; \
                 the step's own counts are exact."
                    .to_owned(),
            );
            timeline.reasons.dedup();
        }
        timeline.reasons.extend(observed.reasons.iter().cloned());
        match observed.run.started.parse::<jiff::Timestamp>() {
            Ok(t) => {
                let started = t.as_microsecond() as f64 / 1e6;
                series::add(timeline, self.wall, started, observed, &loads);
            }
            Err(e) => timeline.reasons.push(format!("the observer's series has no begin: {e}")),
        }
    }

    /// One step: boom-server and its canary connections, and the load.
    fn step(&mut self, stage: &Stage<'_>, plan: Plan<'_>) -> Result<(), TestbedError> {
        let t = self.x.seconds();
        self.x.say(&plan.title);
        let dir = self.x.dir.join(format!("step-{:02}", self.filled.timeline.steps.len() + 1));
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let (filled, limit) = (&mut *self.filled, self.limit);
        own_limit(limit)?;
        let witness = stage.listen_to_the_kernel(&dir)?;
        let (at, forge) = (("server", POD_PORT), "control,above-window");
        let boom = stage.place.boom_server(at, &dir, forge, &["--min-forged=1"])?;
        let time = plan.load.map_or(Duration::from_secs(u64::from(self.x.s.seconds)), |l| l.time);
        let churn = plan.load.map(|load| stage.churn(load, &dir)).transpose()?;
        // A step that ends by its count ends its canary too.
        let open_end = plan.load.is_some_and(|l| l.connections.is_some());
        let canary = if open_end { time } else { time.saturating_sub(Duration::from_secs(1)) };
        let probe = stage.probe(canary, &dir)?;
        let mut peak = stage.entries()?;
        let mut load: Option<LoadResult> = None;
        if let Some(mut churn) = churn {
            let end = Instant::now() + time + TIMEOUT + READY;
            while !churn.process.ends_within(Duration::from_millis(100))? && Instant::now() < end {
                peak = peak.max(stage.entries()?);
            }
            load = Some(churn.result(READY)?);
            probe.process.signal(Signal::SIGTERM);
        }
        let probe: LoadResult = probe.result(time + TIMEOUT * 4 + READY)?;
        let boom: BoomResult = boom.stop()?;
        peak = peak.max(stage.entries()?);
        let group = plan.streams.map_or_else(BTreeMap::new, |s| s.ends(Talk::Both));
        let mut heard = stage.heard(witness, &plan.title)?;
        own_limit(limit)?;
        let forged: u64 = boom.outcomes.iter().map(|o| o.forged).sum();
        let (_, above) = cause::forged(boom.outcomes.iter(), Forgery::AboveWindow);
        let (attributed, lost) = (boom.resets.attributed, boom.sniffer.dropped);
        let cut = series::cut_off(&probe);
        let cut =
            if cut > 0 { format!(", {cut} cut off by the step's end") } else { String::new() };
        let mut notes = vec![format!(
            "{peak} of {limit} entries at most. The canary's own connections: {}{cut}; boom-server forged \
             {forged} segments and attributed {attributed} RSTs to them.",
            listed(&ended(&probe)),
        )];
        if lost > 0 {
            notes.push(format!("boom-server's raw sockets lost {lost} segments."));
        }
        let counts = || boom.outcomes.iter().map(|o| &o.counts);
        heard.killed = counts().map(|c| c.killed).sum();
        heard.unknown = counts().flat_map(|c| c.unknown.values()).sum();
        let shown = Shown {
            kind: plan.kind,
            limit,
            peak,
            forged,
            above: above.each().collect(),
            attributed,
            lost,
            step: Step {
                case: None,
                t,
                title: plan.title,
                changes: plan.changes,
                new_attempts: load.as_ref().map_or(0, |l| l.attempts),
                new_ok: load.as_ref().map_or(0, |l| l.ok),
                new_failures: load.as_ref().map(LoadResult::classes).unwrap_or_default(),
                established: group,
                boom: outcomes([&boom]),
                conntrack: heard.conntrack,
                notes,
            },
        };
        if shown.full() && shown.failed(FailureClass::ConnectTimeout) > 0 {
            heard.shows.push(InTable::Full);
        }
        filled.add(shown.step.clone(), heard);
        if shown.kind == Kind::Load && !shown.full() {
            filled.timeline.reasons.push(format!(
                "The table was not full after the step that should fill it: {peak} of {limit} entries. \
                 A smaller one (--host-table-size, as root) fills sooner."
            ));
        }
        filled.facts.steps.push(shown);
        self.loads.extend(load);
        Ok(())
    }
}

/// Whether the host's limit is still what the run measures with: every user of the host's root may write it.
fn own_limit(ours: u64) -> Result<(), TestbedError> {
    let found = host_table::max()?;
    if found == ours {
        return Ok(());
    }
    let why = format!("it is {found} and was {ours}: another program writes it");
    Err(wrong("keep nf_conntrack_max of this host")(why).into())
}

fn limited(from: u64, to: u64) -> Change {
    let what = host_table::MAX.replace('/', ".");
    Change { what, from: from.to_string(), to: to.to_string() }
}

/// How the canary's own connections ended, but for those that had not when their step did.
fn ended(probe: &LoadResult) -> BTreeMap<ProbeEnd, u64> {
    let mut ends = probe.probe.clone();
    if let Some(failed) = ends.get_mut(&ProbeEnd::Failed) {
        *failed = failed.saturating_sub(series::cut_off(probe));
    }
    ends
}
