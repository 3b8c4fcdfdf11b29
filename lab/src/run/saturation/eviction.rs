//! Whether a full table alone resets connections: half-closed transfers in
//! tables that established connections fill, and one SYN that finds no room.
//!
//! nf_conntrack_core.c: when an allocation has failed, the next run of
//! gc_worker() (it comes at least once a minute) kills entries of closing
//! connections, half-closed ones among them, until the namespace is below 95%
//! of the limit. The transfer's next segment has no entry then. If there is
//! room it is picked up as NEW (tcp_new(), nf_conntrack_tcp_loose) and reaches
//! the client untranslated, whose RST ends the server's side; if others have
//! taken the room it is dropped, and the transfer hangs. So the room is left
//! alone in all places but one, where new connections wait for it.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::document::lab::{At, Protection, ProtectionKind};
use crate::document::timeline::{Change, FailureClass, Step};
use canary_record::names::ProbeEnd;
use canary_record::result::load::LoadResult;
use canary_record::result::observe::{ConntrackCounters, ObserveResult};
use canary_record::result::witness::InTable;
use canary_testbed::evidence;
use canary_testbed::exec::Process;
use canary_testbed::testbed::TestbedError;
use nix::sys::signal::Signal;

use super::super::setting::{self, Setting, count, io_error};
use super::stage::{Captures, Load, READY, Stage, Witness};
use super::streams::{SILENCE, Streams, Talk};
use crate::observed::saturation::{Case, Evicted, Heard};
use crate::observed::series;
use crate::scenario::saturation::{MOST_CLIENTS, Saturation};

/// How long a SYN may wait for its answer, where the table is full or nearly so.
const ANSWER: Duration = Duration::from_millis(400);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// New connections a second that wait for room.
const WAITING: f64 = 500.0;

/// What the places showed.
pub struct Found {
    /// For the claims.
    pub evicted: Vec<Evicted>,
    /// What the witness of each place heard.
    pub heard: Vec<Heard>,
    /// For the report.
    pub steps: Vec<Step>,
    /// The first place's series.
    pub observed: ObserveResult,
}

/// One place.
struct Run<'a> {
    case: Case,
    stage: Stage<'a>,
    streams: Streams,
    hold: Process,
    waiting: Option<Process>,
    captures: Captures,
    witness: Witness,
    filling: Vec<TcpStream>,
    before: ConntrackCounters,
    refused: u64,
    limit: u64,
    /// Fewer by so many: the garbage collector was here. Well below what it takes of the
    /// half-closed at once (a third, seen here), for the room would be filled before it is noticed.
    loss: u64,
    most: u64,
    least: u64,
    first_end: Option<Duration>,
}

/// Runs all cases side by side: the garbage collector is one for all namespaces.
pub fn run(
    s: &Saturation,
    setting: &Setting,
    dir: &Path,
    prefix: &str,
    limit: u64,
    begun: Instant,
) -> Result<Found, TestbedError> {
    let t = begun.elapsed().as_secs_f64();
    let build = |case: Case| Run::build(case, s, setting, dir, prefix, limit);
    let mut runs = std::thread::scope(|scope| {
        let threads: Vec<_> =
            Case::ALL.into_iter().map(|case| scope.spawn(move || build(case))).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err(broken())))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let full = Instant::now();
    let deadline = full + setting.scaled(Duration::from_secs(u64::from(s.closing_seconds)));
    while Instant::now() < deadline && !runs.iter().all(Run::over) {
        for run in &mut runs {
            run.look(full)?;
        }
        setting.interrupt.sleep(LOOK)?;
    }
    // What hangs is told from what is late by its silence.
    setting.interrupt.sleep(SILENCE * 2)?;
    let (mut evicted, mut heard, mut steps, mut observed) =
        (Vec::new(), Vec::new(), Vec::new(), None);
    for run in runs {
        let (found, said, step, series) = run.end(t)?;
        evicted.push(found);
        heard.push(said);
        steps.push(step);
        observed.get_or_insert(series);
    }
    let observed = observed.ok_or_else(broken)?;
    Ok(Found { evicted, heard, steps, observed })
}

fn broken() -> TestbedError {
    TestbedError::Io {
        what: "fill a table".to_owned(),
        source: std::io::Error::other("its thread broke off"),
    }
}

impl Case {
    fn protections(self) -> Vec<Protection> {
        let both = |kind| Protection { kind, at: At::Both };
        match self {
            Self::Protected => {
                vec![both(ProtectionKind::Liberal), both(ProtectionKind::PreroutingDrop)]
            }
            Self::Full | Self::Contested | Self::NearlyFull => Vec::new(),
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Full => "a table full of established connections, half-closed transfers",
            Self::Protected => "the same with be_liberal=1 and INVALID dropped",
            Self::Contested => "the same, new connections waiting for room",
            Self::NearlyFull => "the same connections, a table nine tenths full",
        }
    }
}

impl<'a> Run<'a> {
    fn build(
        case: Case,
        s: &Saturation,
        setting: &'a Setting,
        dir: &Path,
        prefix: &str,
        limit: u64,
    ) -> Result<Self, TestbedError> {
        let dir = dir.join(format!("evicted-{}", case.as_str()));
        let prefix = format!("{prefix}e{}-", &case.as_str()[..1]);
        let stage = Stage::build(setting, &prefix, dir, &case.protections())?;
        let pairs = stage.connect(s.held + s.half_closed)?;
        let streams = Streams::start(pairs, s.half_closed as usize)
            .map_err(io_error("hold connections", &stage.dir))?;
        let captures = stage.capture()?;
        let witness = stage.listen_to_the_kernel(&stage.dir)?;
        let before = stage.testbed.within("node1", evidence::conntrack_counters)?;
        let there = stage.testbed.within("node1", count)?;
        let wanted = if case == Case::NearlyFull { limit / 10 * 9 } else { limit };
        let hold = stage.hold(wanted.saturating_sub(there).max(1), &stage.dir)?;
        let waiting = (case == Case::Contested)
            .then(|| {
                let load = Load {
                    clients: MOST_CLIENTS,
                    rate: WAITING,
                    at_once: WAITING * 2.0,
                    connections: None,
                    time: setting.scaled(Duration::from_secs(u64::from(s.closing_seconds) * 2)),
                };
                stage.churn(load, &stage.dir)
            })
            .transpose()?;
        let now = stage.testbed.within("node1", count)?;
        Ok(Self {
            case,
            stage,
            streams,
            hold,
            waiting,
            captures,
            witness,
            filling: Vec::new(),
            before,
            refused: 0,
            limit,
            loss: u64::from(s.half_closed / 20).max(2),
            most: now,
            least: now,
            first_end: None,
        })
    }

    /// Whether it has shown what it can: the others wait for those that are full.
    fn over(&self) -> bool {
        self.case == Case::NearlyFull || self.first_end.is_some()
    }

    /// Sees what became of the transfers, and fills what room there is until a SYN finds none.
    fn look(&mut self, full: Instant) -> Result<(), TestbedError> {
        let ends = self.streams.ends(Talk::HalfClosed);
        if self.first_end.is_none() && ends.keys().any(|end| *end != ProbeEnd::Survived) {
            self.first_end = Some(full.elapsed());
        }
        while self.room_is_ours()? {
            if let Some(stream) = self.stage.one_more(ANSWER)? {
                self.filling.push(stream);
            } else {
                self.refused += 1;
                break;
            }
        }
        Ok(())
    }

    /// Whether there may be room that is to be filled. Once entries have gone, it is left to
    /// the transfers.
    fn room_is_ours(&mut self) -> Result<bool, TestbedError> {
        let now = self.stage.testbed.within("node1", count)?;
        self.most = self.most.max(now);
        self.least = if self.most < self.limit { now } else { self.least.min(now) };
        let fills = matches!(self.case, Case::Full | Case::Protected);
        Ok(fills && self.first_end.is_none() && self.least + self.loss > self.most)
    }

    fn end(self, t: f64) -> Result<(Evicted, Heard, Step, ObserveResult), TestbedError> {
        let setting = self.stage.setting();
        let half_closed = self.streams.ends(Talk::HalfClosed);
        let established = self.streams.ends(Talk::Both);
        let captured = self.stage.captured(self.captures)?;
        let conntrack =
            self.stage.testbed.within("node1", evidence::conntrack_counters)?.since(self.before);
        let mut heard = self.stage.heard(self.witness, self.case.title(), conntrack)?;
        let load = self
            .waiting
            .map(|process| {
                process.signal(Signal::SIGTERM);
                let status = process.wait(setting.scaled(READY), &setting.interrupt)?;
                let file = self.stage.dir.join("load.json");
                setting::result::<LoadResult>("load-client", &file, status)
            })
            .transpose()?;
        drop(self.streams);
        drop(self.filling);
        self.hold.signal(Signal::SIGTERM);
        self.hold.wait(setting.scaled(READY), &setting.interrupt)?;
        let found = Evicted {
            case: self.case,
            limit: self.limit,
            most: self.most,
            least: self.least,
            refused: self.refused,
            half_closed,
            established,
            captured,
            after_s: self.first_end.map(|d| d.as_secs_f64()),
        };
        let mut changes: Vec<_> = Vec::new();
        if self.case == Case::Protected {
            changes.push(Change {
                what: evidence::BE_LIBERAL.replace('/', "."),
                from: "0".to_owned(),
                to: "1".to_owned(),
            });
            changes.push(Change {
                what: "INVALID in mangle PREROUTING".to_owned(),
                from: "accepted".to_owned(),
                to: "dropped".to_owned(),
            });
        }
        let failures = load.as_ref().map_or_else(
            || [(FailureClass::ConnectTimeout, self.refused)].into(),
            LoadResult::classes,
        );
        if failures.get(&FailureClass::ConnectTimeout).is_some_and(|n| *n > 0) {
            heard.shows.push(InTable::Full);
        }
        let mut notes = vec![found.words(), heard.words()];
        if let Some(cut @ 1..) = load.as_ref().map(series::cut_off) {
            notes.push(format!("{cut} of the new connections were cut off by the step's end."));
        }
        let step = Step {
            t,
            title: self.case.title().to_owned(),
            changes,
            new_attempts: load.as_ref().map_or(self.refused, |l| l.attempts),
            new_ok: load.as_ref().map_or(0, |l| l.ok),
            new_failures: failures,
            established: found.half_closed.clone(),
            boom: BTreeMap::new(),
            conntrack,
            notes,
        };
        let observed = self.stage.close()?;
        Ok((found, heard, step, observed))
    }
}
