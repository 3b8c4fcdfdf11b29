//! The watch itself: one thread listens and judges, another shows, and whatever ends them the
//! kernel's values are put back.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use canary_conntrack::netlink::NetlinkError;
use canary_conntrack::rules::{self, Rules};
use canary_conntrack::table::{Table, Tuple};
use canary_record::names::EndedBy;
use canary_record::result::witness::{Changed, Ended, RuleCount};
use canary_runtime::limit::Limit;
use canary_runtime::listen::own_addresses;
use canary_runtime::shutdown::Shutdown;
use nix::errno::Errno;
use tokio::sync::watch;

use super::attribute::{Look, SETTLE};
use super::core::{Surroundings, Witness};
use super::nflog::{Nflog, Read};
use super::reason::Texts;
use super::show::View;
use super::sysctl::Watching;
use crate::Stop;

/// Between two rounds of look-ups.
const TICK: Duration = Duration::from_millis(100);
/// Events about single connections in a second at most.
const EVENTS_PER_SECOND: u32 = 50;
/// An address list older than this is read again before an address is called foreign.
const ADDRESSES_LAST: Duration = Duration::from_secs(5);

/// This host, as the core asks it.
#[derive(Debug)]
struct Node {
    table: Table,
    addresses: Vec<IpAddr>,
    read: Option<Instant>,
    failed: u64,
}

impl Surroundings for Node {
    fn look(&mut self, tuple: Tuple) -> Look {
        match self.table.get(tuple) {
            Ok(Some(entry)) => Look::Found(entry),
            Ok(None) => Look::Absent,
            Err(e) => {
                if self.failed == 0 {
                    tracing::warn!(error = %e, "cannot look entries up");
                }
                self.failed += 1;
                Look::NotMade
            }
        }
    }

    fn here(&mut self, ip: IpAddr) -> bool {
        if !self.addresses.contains(&ip) && self.read.is_none_or(|t| t.elapsed() > ADDRESSES_LAST) {
            self.read = Some(Instant::now());
            self.addresses = own_addresses();
        }
        self.addresses.contains(&ip)
    }
}

#[derive(Debug)]
pub(crate) struct Watched {
    /// Rules that act on INVALID segments, and what they counted, and those that were not read; or why
    /// none can be read.
    pub(crate) rules: Result<(Vec<RuleCount>, Vec<String>), String>,
    /// What was found, and what was not heard.
    pub(crate) view: View,
    pub(crate) texts: Texts,
    /// Kernel values, and whether they are as before.
    pub(crate) changed: Vec<Changed>,
    pub(crate) time: Duration,
    pub(crate) ended_by: EndedBy,
    /// Why it could not go on.
    pub(crate) error: Option<NetlinkError>,
    /// What an earlier witness had left.
    pub(crate) left_behind: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Watch {
    thread: JoinHandle<Watched>,
    stop: Arc<Stop>,
    /// What is counted so far.
    pub(crate) view: watch::Receiver<View>,
}

impl Watch {
    /// Binds, sets the kernel's values, begins. `quiet` leaves events of single connections to
    /// the live table.
    pub(crate) fn begin(dir: &Path, state: &Path, quiet: bool) -> anyhow::Result<Self> {
        let mut table = Table::open().map_err(|e| anyhow!("cannot ask conntrack: {e}"))?;
        table.usage().map_err(|e| {
            let refused = e.errno() == Some(Errno::EPERM as i32);
            let mend = "; it needs CAP_NET_ADMIN in this network namespace";
            anyhow!("cannot ask conntrack: {e}{}", if refused { mend } else { "" })
        })?;
        // Before anything is changed: with another listener there is nothing to set.
        let nflog = Nflog::bind()?;
        let mut watching = Watching::begin(dir, state)?;
        let left_behind = std::mem::take(&mut watching.left_behind);
        for value in &left_behind {
            tracing::warn!(value, "put back what a witness that was killed had left");
        }
        let stop = Arc::<Stop>::default();
        let (shown, view) = watch::channel(View::default());
        let node = Node { table, addresses: own_addresses(), read: None, failed: 0 };
        let rules = rules::of_invalid().map_err(|e| e.to_string());
        let mut witness = Witness::default();
        witness.rejects = rules.as_ref().is_ok_and(|r| r.resets);
        let listener = Listener {
            nflog,
            node,
            witness,
            rules,
            stop: Arc::clone(&stop),
            view: shown,
            limit: (!quiet).then(|| Limit::new(EVENTS_PER_SECOND)),
            latest: VecDeque::new(),
            unheard: BTreeSet::new(),
            start: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("witness".to_owned())
            .spawn(move || listener.run(watching, left_behind))
            .map_err(|e| anyhow!("cannot start a thread: {e}"))?;
        Ok(Self { thread, stop, view })
    }

    /// Waits for the end of `duration`, a signal, or a failure; a second signal hurries.
    pub(crate) async fn until(
        self,
        duration: Option<Duration>,
        shutdown: &mut Shutdown,
    ) -> Watched {
        let deadline = duration.and_then(|d| Instant::now().checked_add(d));
        let mut ended_by = None;
        let mut poll = tokio::time::interval(TICK);
        while !self.thread.is_finished() {
            tokio::select! {
                by = shutdown.ended(deadline.filter(|_| ended_by.is_none())) => {
                    let again = ended_by.replace(by).is_some();
                    self.stop.store(1 + u8::from(again), Ordering::Relaxed);
                }
                _ = poll.tick() => {}
            }
        }
        let mut watched =
            self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if watched.error.is_none() {
            watched.ended_by = ended_by.unwrap_or(EndedBy::Error);
        }
        watched
    }
}

struct Listener {
    nflog: Nflog,
    node: Node,
    witness: Witness,
    /// As they were at the begin.
    rules: Result<Rules, String>,
    stop: Arc<Stop>,
    view: watch::Sender<View>,
    limit: Option<Limit>,
    latest: VecDeque<Ended>,
    /// The values by which somebody else made it deaf, for a while at least.
    unheard: BTreeSet<String>,
    start: Instant,
}

impl Listener {
    fn run(mut self, watching: Watching, left_behind: Vec<String>) -> Watched {
        let mut error = None;
        let mut next = Duration::ZERO;
        while self.stop.load(Ordering::Relaxed) == 0 {
            if let Err(e) = self.listen() {
                error = Some(e);
                break;
            }
            let then = self.tick(next);
            if then != next {
                self.unheard.extend(watching.meddled());
            }
            next = then;
        }
        let watched = self.start.elapsed();
        self.unheard.extend(watching.meddled());
        // First of all: what comes after this nobody has asked for.
        let changed = watching.end();
        let settled = watched + SETTLE;
        if error.is_none() {
            error = self.nflog.leave().and_then(|()| self.drain()).err();
        }
        while error.is_none() && self.start.elapsed() < settled && !self.witness.settled() {
            if self.stop.load(Ordering::Relaxed) > 1 {
                break;
            }
            std::thread::sleep(TICK / 10);
            next = self.tick(next);
        }
        let now = self.start.elapsed();
        self.witness.tick(now, true, &mut self.node);
        self.tell(now);
        if let Some(n) = self.limit.as_mut().and_then(Limit::finish) {
            tracing::warn!(events = n, "held back: more connections were ended than are told here");
        }
        self.unheard.extend(error.iter().map(|e| format!("it could not go on: {e}")));
        self.publish();
        let rules = self.rules.and_then(|before| {
            let after = rules::of_invalid().map_err(|e| e.to_string())?;
            let acting = after.acting.into_iter().map(|rule| counted(rule, &before.acting));
            Ok((acting.collect(), after.unread))
        });
        Watched {
            view: self.view.borrow().clone(),
            texts: self.witness.texts,
            rules,
            changed,
            time: watched,
            ended_by: EndedBy::Error,
            error,
            left_behind,
        }
    }

    /// One read and what it brought; false where that was nothing.
    fn listen(&mut self) -> Result<bool, NetlinkError> {
        match self.nflog.read()? {
            Read::Nothing => return Ok(false),
            Read::Overrun => self.witness.matcher.found.messages.overruns += 1,
            Read::Bytes(n) => {
                let now = self.start.elapsed();
                for m in self.nflog.messages(n) {
                    let message = (m.number, m.prefix, m.packet);
                    self.witness.message(now, message, &mut self.node);
                }
                self.tell(now);
            }
        }
        Ok(true)
    }

    /// What the kernel said before it was left, to the last message.
    fn drain(&mut self) -> Result<(), NetlinkError> {
        while self.listen()? {}
        Ok(())
    }

    fn tick(&mut self, next: Duration) -> Duration {
        let now = self.start.elapsed();
        if now < next {
            return next;
        }
        self.witness.tick(now, false, &mut self.node);
        self.tell(now);
        if let Some(n) = self.limit.as_mut().and_then(|l| l.due(now)) {
            tracing::warn!(events = n, "held back: more connections were ended than are told here");
        }
        self.publish();
        now + TICK
    }

    fn tell(&mut self, now: Duration) {
        for ended in self.witness.told.drain(..) {
            if let Some(limit) = &mut self.limit
                && let Some(held_back) = limit.admit(now)
            {
                event(&ended, held_back);
            }
            self.latest.push_front(ended);
            self.latest.truncate(View::LATEST);
        }
    }

    fn publish(&self) {
        let view = View {
            elapsed: self.start.elapsed(),
            found: self.witness.matcher.found.clone(),
            latest: self.latest.clone(),
            hurried: self.witness.matcher.hurried,
            look_failures: self.node.failed,
            unheard: self.unheard.clone(),
            weak: Vec::new(),
        };
        self.view.send_replace(view);
    }
}

/// What a rule counted since it was as `before` has it.
fn counted(mut rule: RuleCount, before: &[RuleCount]) -> RuleCount {
    let name = |r: &RuleCount| (r.family.clone(), r.table.clone(), r.chain.clone(), r.handle);
    let old = before.iter().find(|old| name(old) == name(&rule)).and_then(|old| old.packets);
    rule.packets = rule.packets.zip(old).and_then(|(now, then)| now.checked_sub(then));
    rule
}

fn event(e: &Ended, held_back: u64) {
    let message = if e.cause.ended() {
        "an INVALID segment ended a connection"
    } else {
        "an INVALID segment provoked a reset, and what that did is unexplained"
    };
    tracing::warn!(
        cause = e.cause.as_str(),
        direction = e.direction.as_str(),
        client = e.client,
        service = e.service,
        server = e.server,
        from = e.from,
        to = e.to,
        seq = e.seq,
        ack = e.ack,
        flags = e.flags,
        kernel = e.text,
        answered_us = e.answered_us,
        entry_outlived = e.entry_outlived,
        held_back = (held_back > 0).then_some(held_back),
        "{message}"
    );
}
