//! `probe --forge`: segments that the client forges on its own connections, and what became of
//! them. The server's end of the same judgements is boom-server's.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use canary_forge::diagnose::{self, Context};
use canary_forge::drive::{Done, Driver};
use canary_forge::flow::{Action, End, Settings};
use canary_forge::forgery::Forgeries;
use canary_forge::privilege;
use canary_forge::raw::{Sender, Sniffer};
use canary_forge::tally::Tally;
use canary_record::names::{ClientClass, Direction, FailureClass, Phase, Verdict};
use canary_record::outcome::Counts;
use canary_record::result::Run;
use canary_record::result::boom::{OutcomeCount, Sniffer as SnifferRecord};
use canary_record::result::load::{ForgeRecord, LoadResult};
use canary_wire::filter::Side;
use canary_wire::segment::Family;

use crate::cli::ForgeArgs;

/// Rounds that a judgement may take, for the longest wait of a connection.
const PATIENCE: u32 = 10;
/// The direction that this end tries.
const DIRECTION: Direction = Direction::ClientToServer;

/// A family's raw sockets, or why there are none.
pub(crate) type Pair = Result<(Sniffer, Sender), String>;

/// Opens raw sockets of each family for what comes from `port`, and gives up every capability:
/// before any thread exists, which would inherit them. What cannot be opened leaves the direction
/// untried; a capability that stays is an error.
pub(crate) fn sockets(port: u16, buffer: usize) -> anyhow::Result<[Pair; 2]> {
    if let Err(e) = privilege::check() {
        return Ok([Err(e.to_string()), Err(e.to_string())]);
    }
    let open = |family| -> anyhow::Result<_> {
        let sniffer = Sniffer::open(family, Side::Source, &[port], buffer)?;
        Ok((sniffer, Sender::open(&[family])?))
    };
    let pairs = [Family::Ipv4, Family::Ipv6].map(|f| open(f).map_err(|e| e.to_string()));
    privilege::drop_all().context("--forge")?;
    Ok(pairs)
}

/// How far the thread is; read by whoever waits for it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    finished: AtomicU64,
    settled: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// True when `connections` handshakes were seen, and what was forged on them is judged.
    pub(crate) fn settled(&self, connections: u64) -> bool {
        let settled = self.settled.load(Ordering::Acquire);
        settled >= connections && settled >= self.finished.load(Ordering::Acquire)
    }
}

/// What the thread leaves.
#[derive(Debug, Default)]
struct Seen {
    tally: Tally,
    sniffer: SnifferRecord,
    evicted: u64,
    unjudged: u64,
}

/// Forges and judges in a thread of its own, or says why not.
#[derive(Debug)]
pub(crate) struct Forging {
    min_forged: u64,
    /// How far it is.
    pub(crate) progress: Arc<Progress>,
    thread: Result<JoinHandle<Seen>, String>,
}

impl Forging {
    /// Begins to forge `args` on this program's connections to `target`.
    pub(crate) fn start(
        args: &ForgeArgs,
        forgeries: &Forgeries,
        [v4, v6]: [Pair; 2],
        target: SocketAddr,
        connections: u32,
    ) -> anyhow::Result<Self> {
        let progress = Arc::<Progress>::default();
        let pair = if target.ip().to_canonical().is_ipv4() { v4 } else { v6 };
        let thread = match pair {
            Ok((mut sniffer, sender)) => {
                // What was connected before the run is not of it.
                while sniffer.receive(|_| {}).context("cannot read a raw socket")? > 0 {}
                let settings = Settings {
                    forgeries: forgeries.0.clone(),
                    outcome_timeout: args.outcome_timeout,
                    forge_delay: Duration::ZERO,
                    capacity: connections as usize,
                    end: End::Client { target },
                };
                let driver = Driver::new(vec![sniffer], sender, settings);
                let shared = Arc::clone(&progress);
                let run = move || drive(driver, &shared);
                let thread = std::thread::Builder::new().name("forge".to_owned()).spawn(run);
                Ok(thread.context("cannot start the thread that forges")?)
            }
            Err(why) => {
                tracing::warn!(direction = DIRECTION.as_str(), "untried: {why}");
                Err(why)
            }
        };
        Ok(Self { min_forged: args.min_forged, progress, thread })
    }

    /// The longest time for which a connection is to be left quiet.
    pub(crate) fn patience(&self, args: &ForgeArgs) -> Duration {
        self.thread.as_ref().map_or(Duration::ZERO, |_| args.outcome_timeout * PATIENCE)
    }

    /// Ends it. `load` is what the application saw of the same connections.
    pub(crate) fn finish(self, load: &LoadResult) -> ForgeRecord {
        self.progress.stop.store(true, Ordering::Release);
        let mut record = empty(self.min_forged);
        let seen = match self.thread.map(JoinHandle::join) {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) => {
                record.doubts.push("the thread that forges panicked".to_owned());
                Seen::default()
            }
            Err(why) => {
                record.untried = Some(why);
                Seen::default()
            }
        };
        record.outcomes = seen.tally.outcomes();
        record.doubts.extend(seen.tally.lost(&seen.sniffer, seen.evicted));
        record.doubts.extend(seen.tally.contrary());
        record.doubts.extend(contrary(&seen.tally, load));
        record.resets = seen.tally.resets;
        record.sniffer = seen.sniffer;
        record.unjudged = seen.unjudged;
        judged(record)
    }
}

/// What the application saw of connections that is not explained.
fn contrary(tally: &Tally, load: &LoadResult) -> Vec<String> {
    let mut found = Vec::new();
    let class = |c| load.classes().get(&c).copied().unwrap_or(0);
    let unconnected: u64 =
        load.failures.iter().filter(|f| f.phase == Phase::Connect).map(|f| f.count).sum();
    let connected = load.attempts.saturating_sub(unconnected);
    if tally.handshakes.finished < connected {
        found.push(format!(
            "{connected} connections were made, {} handshakes seen: not every connection was judged",
            tally.handshakes.finished
        ));
    }
    found.extend(tally.more_resets(class(FailureClass::Reset)));
    let hung = class(FailureClass::Hung);
    if hung > 0 {
        found.push(format!(
            "{hung} connections hang after the handshake: where a rule drops INVALID it may take \
             segments that nobody forged (asymmetric routes, DSR, offload, notrack)"
        ));
    }
    found
}

/// Nothing forged yet.
fn empty(min_forged: u64) -> ForgeRecord {
    ForgeRecord { direction: DIRECTION, min_forged, ..ForgeRecord::default() }
}

/// The record with its verdict, from its outcomes and doubts.
fn judged(mut record: ForgeRecord) -> ForgeRecord {
    let context = Context {
        min_forged: record.min_forged,
        direction: record.direction,
        called_here: 0,
        called_elsewhere: 0,
        handshakes: 0,
    };
    record.paths = diagnose::paths(&record.outcomes, &context);
    record.verdict = diagnose::overall(&record.paths, &record.doubts);
    let of = |p: &canary_record::result::boom::PathDiagnosis| -> Vec<String> {
        p.reasons.iter().map(|r| format!("{}: {r}", p.family)).collect()
    };
    record.reasons = record.paths.iter().flat_map(of).collect();
    if let Some(why) = &record.untried {
        record.reasons.insert(0, format!("untried: {why}"));
    } else if record.paths.is_empty() {
        record.reasons.push("nothing was forged: no handshake was seen".to_owned());
    }
    record.reasons.extend(record.doubts.iter().cloned());
    record
}

/// The whole of several records of one direction; `parts` are their runs and records. The client's node
/// decides in it: what one node's segments show says nothing of another node.
pub(crate) fn join<'a>(
    parts: impl IntoIterator<Item = (&'a Run, &'a ForgeRecord)>,
) -> Option<ForgeRecord> {
    let parts: Vec<_> = parts.into_iter().collect();
    let min_forged = parts.iter().map(|(_, part)| part.min_forged).max()?;
    let mut nodes: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for &(run, part) in &parts {
        nodes.entry(run.node.as_ref().unwrap_or(&run.host)).or_default().push((run, part));
    }
    let mut whole = sum(&parts, min_forged);
    if nodes.len() > 1 {
        for (node, parts) in nodes {
            let one = judged(sum(&parts, min_forged));
            if one.outcomes.is_empty() && one.untried.is_none() {
                whole.doubts.push(format!("{node}: nothing was forged"));
            }
            for path in one.paths.iter().filter(|p| p.verdict == Verdict::Inconclusive) {
                let lacks = path.reasons.iter().map(|r| format!("{node}: {}: {r}", path.family));
                whole.doubts.extend(lacks);
            }
        }
    }
    Some(judged(whole))
}

/// The sums of several records.
fn sum(parts: &[(&Run, &ForgeRecord)], min_forged: u64) -> ForgeRecord {
    let mut whole = empty(min_forged);
    let mut outcomes = BTreeMap::new();
    let mut untried = Vec::new();
    for (Run { host, .. }, part) in parts {
        whole.unjudged += part.unjudged;
        whole.doubts.extend(part.doubts.iter().map(|d| format!("{host}: {d}")));
        whole.resets += &part.resets;
        whole.sniffer += &part.sniffer;
        untried.extend(part.untried.iter().map(|why| format!("{host}: {why}")));
        for o in &part.outcomes {
            let key = (o.forgery, o.family, o.class);
            let row = outcomes.entry(key).or_insert_with(|| OutcomeCount {
                forged: 0,
                counts: Counts::default(),
                ..o.clone()
            });
            row.forged += o.forged;
            row.counts += &o.counts;
        }
    }
    whole.outcomes = outcomes.into_values().collect();
    if whole.outcomes.is_empty() {
        whole.untried = untried.into_iter().next();
    } else {
        whole.doubts.extend(untried.iter().map(|why| format!("untried on {why}")));
    }
    whole
}

/// Drives the state machine until it is told to stop or its socket fails.
fn drive(mut driver: Driver, progress: &Progress) -> Seen {
    let mut seen = Seen::default();
    let mut done = Vec::new();
    let mut failed: Option<io::Error> = None;
    while !progress.stop.load(Ordering::Acquire) && failed.is_none() {
        let turn = driver.wait(None, &[]).and_then(|ready| driver.turn(&ready, &mut done));
        failed = turn.err();
        note(&mut seen, &mut done, progress);
    }
    // What had come by the end is still judged.
    let _ = driver.turn(&vec![true; driver.sockets()], &mut done);
    seen.unjudged = driver.finish(&mut done);
    note(&mut seen, &mut done, progress);
    seen.evicted = driver.evicted();
    seen.sniffer = SnifferRecord { failed: failed.map(|e| e.to_string()), ..driver.record() };
    seen
}

/// Counts what was done, and tells of the first leak.
fn note(seen: &mut Seen, done: &mut Vec<Done>, progress: &Progress) {
    let known = seen.tally.first_leak.is_some();
    for d in done.drain(..) {
        if let Done::Noted(Action::Judged(j)) = &d
            && !known
            && j.fate.reset()
        {
            let (forgery, server) = (j.forgery.as_str(), j.tuple.remote);
            tracing::warn!(forgery, %server, "a forged segment was answered with a reset");
        }
        seen.tally.done(&d, |_| ClientClass::Unclassified);
    }
    progress.finished.store(seen.tally.handshakes.finished, Ordering::Release);
    progress.settled.store(seen.tally.settled, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use canary_record::names::{EndedBy, Forgery};
    use canary_record::result::{Clock, Config};

    use super::*;

    /// The run of a pod on a node.
    fn on(node: &str, pod: &str) -> Run {
        let run = Clock::start().run("load-client probe", "0", EndedBy::Completed, Config::new());
        Run { node: Some(node.to_owned()), host: pod.to_owned(), ..run }
    }

    fn part(delivered: u64, dropped: u64, doubts: &[&str]) -> ForgeRecord {
        let row = |forgery, counts: Counts| OutcomeCount {
            forgery,
            family: Family::Ipv4,
            class: ClientClass::Unclassified,
            forged: counts.known(),
            counts,
        };
        let (above, control) = (Forgery::AboveWindow, Forgery::Control);
        judged(ForgeRecord {
            outcomes: vec![
                row(control, Counts { delivered, ..Counts::default() }),
                row(above, Counts { dropped, ..Counts::default() }),
            ],
            doubts: doubts.iter().map(ToString::to_string).collect(),
            ..empty(20)
        })
    }

    fn untried() -> ForgeRecord {
        judged(ForgeRecord { untried: Some("no right".to_owned()), ..empty(20) })
    }

    /// Parts of one node that prove nothing alone, for want of segments, prove it together.
    #[test]
    fn parts_prove_together() {
        let (a, b) = (part(10, 10, &[]), part(10, 10, &[]));
        assert_eq!((a.verdict, b.verdict), (Verdict::Inconclusive, Verdict::Inconclusive));
        let whole = join([(&on("n", "a"), &a), (&on("n", "b"), &b)]).unwrap();
        assert_eq!(whole.verdict, Verdict::Protected, "{whole:?}");
        assert_eq!(join([]), None);
    }

    /// A node whose own segments prove nothing is not cleared by another's.
    #[test]
    fn one_node_says_nothing_of_another() {
        let (good, few, none) = (part(20, 20, &[]), part(5, 5, &[]), judged(empty(20)));
        let uncontrolled = part(0, 20, &[]);
        for (other, says) in [
            (&few, "b: ipv4: 5 above-window segments judged, 20 needed"),
            (&none, "b: nothing was forged"),
            (
                &uncontrolled,
                "b: ipv4: no forged segment was delivered: the positive control is missing",
            ),
        ] {
            let whole = join([(&on("a", "p"), &good), (&on("b", "q"), other)]).unwrap();
            assert_eq!(whole.verdict, Verdict::Inconclusive);
            assert!(whole.reasons.iter().any(|r| r == says), "{:?}", whole.reasons);
        }
        let whole = join([(&on("a", "p"), &good), (&on("b", "q"), &good)]).unwrap();
        assert_eq!(whole.verdict, Verdict::Protected, "{whole:?}");
    }

    /// What one part doubts, or could not try, the whole does: with the host's name.
    #[test]
    fn a_doubt_of_a_part_is_the_wholes() {
        let good = part(20, 20, &[]);
        assert_eq!(good.verdict, Verdict::Protected);
        for (other, says) in [
            (part(20, 20, &["segments lost"]), "b: segments lost"),
            (untried(), "untried on b: no right"),
        ] {
            let whole = join([(&on("n", "a"), &good), (&on("n", "b"), &other)]).unwrap();
            assert_eq!(whole.verdict, Verdict::Inconclusive);
            assert!(whole.reasons.iter().any(|r| r == says), "{:?}", whole.reasons);
        }
        let none = join([(&on("n", "a"), &untried())]).unwrap();
        assert_eq!(none.reasons, ["untried: a: no right"]);
    }
}
