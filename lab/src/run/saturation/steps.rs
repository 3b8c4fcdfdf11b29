//! The steps of the saturation experiment, in order.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::document::timeline::{Change, FailureClass, Step, Timeline};
use canary_record::names::ProbeEnd;
use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use canary_record::result::observe::ObserveResult;
use canary_record::result::witness::InTable;
use canary_testbed::evidence;
use canary_testbed::testbed::TestbedError;
use nix::sys::signal::Signal;

use super::super::host_table::{self, Control, Size};
use super::super::setting::{self, Setting, boom_server, count, io_error, set};
use super::stage::{Load, READY, Stage, TIMEOUT};
use super::streams::{Streams, Talk};
use super::{eviction, half_open, pace, tables};
use crate::observed::saturation::{Facts, Kind, MOST_HELD, Shown};
use crate::observed::{listed, outcomes, series};
use crate::scenario::saturation::{MOST_CLIENTS, Saturation};

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

/// A step to run.
struct Plan<'a> {
    kind: Kind,
    title: String,
    load: Option<Load>,
    changes: Vec<Change>,
    streams: Option<(&'a Streams, Talk)>,
}

/// The order of steps.
pub struct Sequence<'a> {
    name: &'a str,
    s: &'a Saturation,
    setting: &'a Setting,
    dir: &'a Path,
    prefix: &'a str,
    begun: Instant,
    /// The same in seconds since 1970.
    wall: f64,
    loads: Vec<LoadResult>,
}

impl<'a> Sequence<'a> {
    /// Nothing is started yet.
    #[must_use]
    pub fn new(
        name: &'a str,
        s: &'a Saturation,
        setting: &'a Setting,
        dir: &'a Path,
        prefix: &'a str,
        begun: Instant,
    ) -> Self {
        let now = jiff::Timestamp::now().as_microsecond() as f64 / 1e6;
        let wall = now - begun.elapsed().as_secs_f64();
        Self { name, s, setting, dir, prefix, begun, wall, loads: Vec::new() }
    }

    /// Runs everything.
    pub fn run(
        &mut self,
        control: Option<&Control>,
        timeline: &mut Timeline,
        facts: &mut Facts,
    ) -> Result<(), TestbedError> {
        let limit = host_table::max().map_err(sysctl_error)?;
        facts.can_resize = control.is_some();
        facts.can_hold = control.is_some() && limit <= MOST_HELD;
        let stage = self.stage("filling")?;
        let ended = self.fill(&stage, limit, timeline, facts);
        self.close(stage, timeline)?;
        ended?;
        if let Some(control) = control.filter(|_| facts.can_hold) {
            let t = self.begun.elapsed().as_secs_f64();
            say(t, self.name, "full of established connections, for up to a minute");
            let found =
                eviction::run(self.s, self.setting, self.dir, self.prefix, limit, self.begun)?;
            timeline.steps.extend(found.steps);
            facts.evicted = found.evicted;
            facts.heard.extend(found.heard);
            self.series(&found.observed, timeline);
            let t = self.begun.elapsed().as_secs_f64();
            say(t, self.name, "half-open entries dropped early");
            for (found, heard, step) in
                half_open::run(self.setting, self.dir, self.prefix, control, limit, self.begun)?
            {
                timeline.steps.push(step);
                facts.heard.push(heard);
                facts.half_open.push(found);
            }
        }
        if let Some(control) = control {
            for size in &self.s.smaller {
                self.smaller(control, *size, limit, timeline, facts)?;
            }
            let bigger = control.resize(Size::of(limit * 4)).map_err(sysctl_error)?;
            let change = limited(bigger.before().limit, limit * 4);
            let stage = self.stage("bigger")?;
            let plan = Plan {
                kind: Kind::Bigger,
                title: "a bigger table, the load that filled the smaller one".to_owned(),
                load: Some(self.filling_load(limit)),
                changes: vec![change],
                streams: None,
            };
            let ended = self.step(&stage, plan, timeline, facts);
            self.close(stage, timeline)?;
            bigger.restore().map_err(sysctl_error)?;
            ended?;
        }
        let stage = self.stage("shorter")?;
        let ended = self.shorter(&stage, limit, timeline, facts);
        self.close(stage, timeline)?;
        ended?;
        if self.s.pairs > 0 {
            let t = self.begun.elapsed().as_secs_f64();
            say(t, self.name, "transfers and new connections, be_liberal 0 and 1 by turns");
            let stage = self.stage("pace")?;
            let paced = pace::run(&stage, self.s.pairs);
            self.close(stage, timeline)?;
            facts.pace = paced?;
        }
        if let Some(control) = control.filter(|_| !self.s.table_sizes.is_empty()) {
            let t = self.begun.elapsed().as_secs_f64();
            say(t, self.name, "packets and new connections, tables of other sizes");
            let stage = self.stage("tables")?;
            let (sizes, loads) = (&self.s.table_sizes, &self.s.entries_per_bucket);
            let measured = tables::run(&stage, control, sizes, loads);
            self.close(stage, timeline)?;
            let (tables, reasons) = measured?;
            facts.tables = tables;
            timeline.reasons.extend(reasons);
        }
        Ok(())
    }

    /// The most clients, whose load is that of the run's table, in one with a smaller limit.
    fn smaller(
        &mut self,
        control: &Control,
        size: u64,
        limit: u64,
        timeline: &mut Timeline,
        facts: &mut Facts,
    ) -> Result<(), TestbedError> {
        let stage = self.stage(&format!("smaller-{size}"))?;
        let streams = Streams::start(stage.connect(self.s.held)?, 0)
            .map_err(io_error("hold connections", &stage.dir))?;
        let smaller = control.resize(Size::of(size)).map_err(sysctl_error)?;
        let plan = Plan {
            kind: Kind::Smaller,
            title: format!("{} clients, a table of {size} entries", self.most()),
            load: Some(self.load(self.most(), limit)),
            changes: vec![limited(smaller.before().limit, size)],
            streams: Some((&streams, Talk::Both)),
        };
        let ended = self.step(&stage, plan, timeline, facts);
        drop(streams);
        self.close(stage, timeline)?;
        smaller.restore().map_err(sysctl_error)?;
        ended
    }

    fn most(&self) -> u32 {
        self.s.clients.iter().copied().max().unwrap_or(MOST_CLIENTS)
    }

    /// So many clients for a step's time, at a rate with which all steps together use four fifths of
    /// a small table.
    fn load(&self, clients: u32, limit: u64) -> Load {
        let time = Duration::from_secs(u64::from(self.s.seconds));
        let sum: u32 = self.s.clients.iter().sum();
        let rate = limit as f64 * 0.8 / (f64::from(sum) * time.as_secs_f64());
        let rate = f64::from(clients) * rate.min(CLIENT_RATE);
        // Room for a second and a half of connects that get no answer.
        Load { clients, rate, at_once: (rate * 2.0).max(100.0), connections: None, time }
    }

    fn filling_load(&self, limit: u64) -> Load {
        let connections = (limit as f64 * self.s.load).ceil();
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
    fn fill(
        &mut self,
        stage: &Stage<'_>,
        limit: u64,
        timeline: &mut Timeline,
        facts: &mut Facts,
    ) -> Result<(), TestbedError> {
        let streams = Streams::start(stage.connect(self.s.held)?, 0)
            .map_err(io_error("hold connections", &stage.dir))?;
        let held = Some((&streams, Talk::Both));
        let most = self.load(self.most(), limit);
        let mut plans = vec![(Kind::NoLoad, "no load".to_owned(), None)];
        for n in &self.s.clients {
            plans.push((Kind::Clients, format!("{n} clients"), Some(self.load(*n, limit))));
        }
        plans.push((
            Kind::Load,
            "a table smaller than the load".to_owned(),
            Some(self.filling_load(limit)),
        ));
        plans.push((Kind::Full, "the table is full".to_owned(), Some(most)));
        for (kind, title, load) in plans {
            let plan = Plan { kind, title, load, changes: Vec::new(), streams: held };
            self.step(stage, plan, timeline, facts)?;
        }
        let change = set(&stage.testbed, "node1", evidence::BE_LIBERAL, "1")?;
        let plan = Plan {
            kind: Kind::FullLiberal,
            title: "full, with be_liberal=1".to_owned(),
            load: Some(most),
            changes: vec![change],
            streams: held,
        };
        self.step(stage, plan, timeline, facts)
    }

    /// The same load with shorter timeouts, and what too short ones do.
    fn shorter(
        &mut self,
        stage: &Stage<'_>,
        limit: u64,
        timeline: &mut Timeline,
        facts: &mut Facts,
    ) -> Result<(), TestbedError> {
        let change = set(&stage.testbed, "node1", evidence::BE_LIBERAL, "1")?;
        let plan = Plan {
            kind: Kind::Liberal,
            title: "no load, be_liberal=1".to_owned(),
            load: None,
            changes: vec![change],
            streams: None,
        };
        self.step(stage, plan, timeline, facts)?;
        let mut changes = vec![set(&stage.testbed, "node1", evidence::BE_LIBERAL, "0")?];
        for key in [
            "net/netfilter/nf_conntrack_tcp_timeout_time_wait",
            "net/netfilter/nf_conntrack_tcp_timeout_fin_wait",
            "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            "net/netfilter/nf_conntrack_tcp_timeout_last_ack",
        ] {
            changes.push(set(&stage.testbed, "node1", key, SHORT)?);
        }
        let plan = Plan {
            kind: Kind::Shorter,
            title: "shorter timeouts, the load that filled the table".to_owned(),
            load: Some(self.filling_load(limit)),
            changes,
            streams: None,
        };
        self.step(stage, plan, timeline, facts)?;
        let key = "net/netfilter/nf_conntrack_tcp_timeout_established";
        let change = set(&stage.testbed, "node1", key, SHORT)?;
        let mut pairs = stage.connect(self.s.held * 2)?;
        let mut speaking = pairs.split_off(self.s.held as usize);
        self.setting.interrupt.sleep(IDLE)?;
        // The server's tick comes first.
        let streams = Streams::start(pairs, 0).map_err(io_error("hold connections", &stage.dir))?;
        let plan = Plan {
            kind: Kind::Expiry,
            title: "established timeout shorter than a silence, the server speaks".to_owned(),
            load: None,
            changes: vec![change],
            streams: Some((&streams, Talk::Both)),
        };
        self.step(stage, plan, timeline, facts)?;
        for (client, _) in &mut speaking {
            client.write_all(b".").map_err(io_error("write to a connection", &stage.dir))?;
        }
        // Before the server's tick, which would be the first to meet no entry.
        self.setting.interrupt.sleep(SPOKEN)?;
        let streams =
            Streams::start(speaking, 0).map_err(io_error("hold connections", &stage.dir))?;
        let plan = Plan {
            kind: Kind::ExpiryClient,
            title: "the same silence, the client speaks".to_owned(),
            load: None,
            changes: Vec::new(),
            streams: Some((&streams, Talk::Both)),
        };
        self.step(stage, plan, timeline, facts)
    }

    /// A fresh place, without protection.
    fn stage(&self, name: &str) -> Result<Stage<'a>, TestbedError> {
        let prefix = format!("{}{name}-", self.prefix);
        Stage::build(self.setting, &prefix, self.dir.join(name), &[])
    }

    /// Ends what runs beside, and keeps what the observer saw.
    fn close(&mut self, stage: Stage<'_>, timeline: &mut Timeline) -> Result<(), TestbedError> {
        let observed = stage.close()?;
        self.series(&observed, timeline);
        Ok(())
    }

    /// Adds what an observer saw, and the loads since the last.
    fn series(&mut self, observed: &ObserveResult, timeline: &mut Timeline) {
        let loads = std::mem::take(&mut self.loads);
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
    fn step(
        &mut self,
        stage: &Stage<'_>,
        plan: Plan<'_>,
        timeline: &mut Timeline,
        facts: &mut Facts,
    ) -> Result<(), TestbedError> {
        let (setting, testbed) = (self.setting, &stage.testbed);
        let interrupt = &setting.interrupt;
        let t = self.begun.elapsed().as_secs_f64();
        say(t, self.name, &plan.title);
        let dir = self.dir.join(format!("step-{:02}", timeline.steps.len() + 1));
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let limit = host_table::max().map_err(sysctl_error)?;
        let witness = stage.listen_to_the_kernel(&dir)?;
        let before = testbed.within("node1", evidence::conntrack_counters)?;
        let one = ["--min-forged=1".to_owned()];
        let mut boom = boom_server(testbed, setting, "server", &dir, "control,above-window", &one)?;
        boom.wait_ready(setting.scaled(READY), interrupt)?;
        let time = plan.load.map_or(Duration::from_secs(u64::from(self.s.seconds)), |l| l.time);
        let churn = plan.load.map(|load| stage.churn(load, &dir)).transpose()?;
        // A step that ends by its count ends its canary too.
        let open_end = plan.load.is_some_and(|l| l.connections.is_some());
        let canary = if open_end { time } else { time.saturating_sub(Duration::from_secs(1)) };
        let probe = stage.probe(canary, &dir)?;
        let mut peak = testbed.within("node1", count)?;
        let mut load = None;
        if let Some(mut churn) = churn {
            let end = Instant::now() + time + TIMEOUT + READY;
            while !churn.ends_within(Duration::from_millis(100), interrupt)? && Instant::now() < end
            {
                peak = peak.max(testbed.within("node1", count)?);
            }
            let status = churn.wait(READY, interrupt)?;
            load =
                Some(setting::result::<LoadResult>("load-client", &dir.join("load.json"), status)?);
            probe.signal(Signal::SIGTERM);
        }
        let status = probe.wait(time + TIMEOUT * 4 + READY, interrupt)?;
        let probe: LoadResult = setting::result("load-client", &dir.join("probe.json"), status)?;
        boom.signal(Signal::SIGTERM);
        let status = boom.wait(setting.scaled(READY), interrupt)?;
        let boom: BoomResult = setting::result("boom-server", &dir.join("boom.json"), status)?;
        peak = peak.max(testbed.within("node1", count)?);
        let group = plan.streams.map_or_else(BTreeMap::new, |(s, talk)| s.ends(talk));
        let conntrack = testbed.within("node1", evidence::conntrack_counters)?.since(before);
        let mut heard = stage.heard(witness, &plan.title, conntrack)?;
        let failures = load.as_ref().map(LoadResult::classes).unwrap_or_default();
        let shown = Shown {
            kind: plan.kind,
            limit,
            peak,
            attempts: load.as_ref().map_or(0, |l| l.attempts),
            failures,
            group,
            forged: boom.outcomes.iter().map(|o| o.forged).sum(),
            attributed: boom.resets.attributed,
            conntrack,
        };
        let cut = series::cut_off(&probe);
        let cut =
            if cut > 0 { format!(", {cut} cut off by the step's end") } else { String::new() };
        let mut notes = vec![format!(
            "{peak} of {limit} entries at most. The canary's own connections: {}{cut}; boom-server forged {} \
             segments and attributed {} RSTs to them.",
            listed(&ended(&probe)),
            shown.forged,
            shown.attributed
        )];
        if boom.sniffer.dropped > 0 {
            notes
                .push(format!("boom-server's raw sockets lost {} segments.", boom.sniffer.dropped));
        }
        let counts = || boom.outcomes.iter().map(|o| &o.counts);
        heard.killed = counts().map(|c| c.killed).sum();
        heard.unknown = counts().flat_map(|c| c.unknown.values()).sum();
        if shown.full() && shown.failed(FailureClass::ConnectTimeout) > 0 {
            heard.shows.push(InTable::Full);
        }
        notes.push(heard.words());
        facts.heard.push(heard);
        timeline.steps.push(Step {
            t,
            title: plan.title,
            changes: plan.changes,
            new_attempts: shown.attempts,
            new_ok: load.as_ref().map_or(0, |l| l.ok),
            new_failures: shown.failures.clone(),
            established: shown.group.clone(),
            boom: outcomes([&boom]),
            conntrack,
            notes,
        });
        if shown.kind == Kind::Load && !shown.full() {
            timeline.reasons.push(format!(
                "The table was not full after the step that should fill it: {peak} of {limit} entries. \
                 A smaller one (--host-table-size, as root) fills sooner."
            ));
        }
        facts.steps.push(shown);
        self.loads.extend(load);
        Ok(())
    }
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

/// Progress: a step takes seconds, and one of them a minute.
fn say(t: f64, name: &str, title: &str) {
    // A closed stderr must not stop the run.
    let _ = writeln!(std::io::stderr().lock(), "{t:>7.1}s  {name}: {title}");
}

fn sysctl_error(source: std::io::Error) -> TestbedError {
    TestbedError::Io { what: format!("use sysctl {}", host_table::MAX), source }
}
