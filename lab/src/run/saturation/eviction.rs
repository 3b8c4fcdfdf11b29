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

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::document::timeline::{FailureClass, Step};
use canary_record::names::ProbeEnd;
use canary_record::result::load::LoadResult;
use canary_record::result::observe::ObserveResult;
use canary_record::result::witness::InTable;
use canary_testbed::os::wrong;
use canary_testbed::testbed::TestbedError;

use super::super::setting::Running;
use super::Experiment;
use super::stage::{Captures, Load, Stage, Witness};
use super::streams::{SILENCE, Streams, Talk};
use crate::observed::saturation::{Case, Evicted, Filled};
use crate::observed::{number, series};
use crate::scenario::saturation::MOST_CLIENTS;

/// How long a SYN may wait for its answer, where the table is full or nearly so.
const ANSWER: Duration = Duration::from_millis(400);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// New connections a second that wait for room.
const WAITING: f64 = 500.0;

struct Run<'a> {
    found: Evicted,
    stage: Stage<'a>,
    streams: Streams,
    hold: Running,
    waiting: Option<Running>,
    captures: Captures,
    witness: Witness,
    filling: Vec<TcpStream>,
    /// Fewer by so many: the garbage collector was here. Well below what it takes of the
    /// half-closed at once (a third, seen here), for the room would be filled before it is noticed.
    loss: u64,
}

/// Runs all cases side by side: the garbage collector is one for all namespaces. What they showed goes
/// to `filled`; gives the first place's series.
pub(crate) fn run(x: &Experiment<'_>, filled: &mut Filled) -> Result<ObserveResult, TestbedError> {
    let t = x.seconds();
    let mut runs = std::thread::scope(|scope| {
        let build = |case: &Case| {
            let case = *case;
            scope.spawn(move || Run::build(case, x))
        };
        let threads: Vec<_> = Case::ALL.iter().map(build).collect();
        let runs = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(broken())));
        runs.collect::<Result<Vec<_>, _>>()
    })?;
    let full = Instant::now();
    let deadline = full + x.setting.scaled(Duration::from_secs(u64::from(x.s.closing_seconds)));
    while Instant::now() < deadline && !runs.iter().all(Run::over) {
        for run in &mut runs {
            run.look(full)?;
        }
        x.setting.interrupt.sleep(LOOK)?;
    }
    // What hangs is told from what is late by its silence.
    x.setting.interrupt.sleep(SILENCE * 2)?;
    let mut observed = None;
    for run in runs {
        let series = run.end(t, filled)?;
        observed.get_or_insert(series);
    }
    observed.ok_or_else(broken)
}

fn broken() -> TestbedError {
    wrong("fill a table")("its thread broke off").into()
}

impl Case {
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
    fn build(case: Case, x: &Experiment<'a>) -> Result<Self, TestbedError> {
        let name = format!("evicted-{case}");
        let stage = Stage::build(x, &name, case == Case::Protected)?;
        let streams = stage.streams(x.s.held + x.s.half_closed, x.s.half_closed)?;
        let captures = stage.capture()?;
        let witness = stage.listen_to_the_kernel(&stage.dir)?;
        let wanted = if case == Case::NearlyFull { x.limit / 10 * 9 } else { x.limit };
        let hold = stage.hold(wanted.saturating_sub(stage.entries()?).max(1), &stage.dir)?;
        let load = Load {
            clients: MOST_CLIENTS,
            rate: WAITING,
            at_once: WAITING * 2.0,
            connections: None,
            time: x.setting.scaled(Duration::from_secs(u64::from(x.s.closing_seconds) * 2)),
        };
        let contested = case == Case::Contested;
        let waiting = contested.then(|| stage.churn(load, &stage.dir)).transpose()?;
        let now = stage.entries()?;
        Ok(Self {
            found: Evicted { case, limit: x.limit, most: now, least: now, ..Evicted::default() },
            stage,
            streams,
            hold,
            waiting,
            captures,
            witness,
            filling: Vec::new(),
            loss: u64::from(x.s.half_closed / 20).max(2),
        })
    }

    /// Whether it has shown what it can: the others wait for those that are full.
    fn over(&self) -> bool {
        self.found.case == Case::NearlyFull || self.found.after_s.is_some()
    }

    /// Sees what became of the transfers, and fills what room there is until a SYN finds none.
    fn look(&mut self, full: Instant) -> Result<(), TestbedError> {
        let ends = self.streams.ends(Talk::HalfClosed);
        if ends.keys().any(|end| *end != ProbeEnd::Survived) {
            self.found.after_s.get_or_insert(full.elapsed().as_secs_f64());
        }
        while self.room_is_ours()? {
            if let Some(stream) = self.stage.one_more(ANSWER)? {
                self.filling.push(stream);
            } else {
                self.found.refused += 1;
                break;
            }
        }
        Ok(())
    }

    /// Whether there may be room that is to be filled. Once entries have gone, it is left to
    /// the transfers.
    fn room_is_ours(&mut self) -> Result<bool, TestbedError> {
        let (now, found) = (self.stage.entries()?, &mut self.found);
        found.most = found.most.max(now);
        found.least = if found.most < found.limit { now } else { found.least.min(now) };
        let fills = matches!(found.case, Case::Full | Case::Protected);
        Ok(fills && found.after_s.is_none() && found.least + self.loss > found.most)
    }

    /// Ends it; what it showed goes to `filled`.
    fn end(self, t: f64, filled: &mut Filled) -> Result<ObserveResult, TestbedError> {
        let mut found = self.found;
        found.half_closed = self.streams.ends(Talk::HalfClosed);
        found.established = self.streams.ends(Talk::Both);
        found.captured = self.stage.captured(self.captures)?;
        let title = found.case.title();
        let mut heard = self.stage.heard(self.witness, title)?;
        let end = |waiting: Running| waiting.stop::<LoadResult>();
        let load = self.waiting.map(end).transpose()?;
        drop(self.streams);
        drop(self.filling);
        self.hold.end()?;
        let failures = load.as_ref().map_or_else(
            || [(FailureClass::ConnectTimeout, found.refused)].into(),
            LoadResult::classes,
        );
        if number(&failures, FailureClass::ConnectTimeout) > 0 {
            heard.shows.push(InTable::Full);
        }
        let mut notes = vec![found.words()];
        if let Some(cut @ 1..) = load.as_ref().map(series::cut_off) {
            notes.push(format!("{cut} of the new connections were cut off by the step's end."));
        }
        let step = Step {
            t,
            title: title.to_owned(),
            changes: self.stage.changes(),
            new_attempts: load.as_ref().map_or(found.refused, |l| l.attempts),
            new_ok: load.as_ref().map_or(0, |l| l.ok),
            new_failures: failures,
            established: found.half_closed.clone(),
            conntrack: heard.conntrack,
            notes,
            ..Step::default()
        };
        filled.add(step, heard);
        filled.facts.evicted.push(found);
        self.stage.close()
    }
}
