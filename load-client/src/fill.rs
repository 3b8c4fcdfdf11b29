//! Churn that follows a conntrack table: connections begin while the table that
//! `load-client observe` sees has room, so that it is filled as fast as the machine can,
//! topped up as entries expire, and not driven beyond, where the kernel evicts closing
//! entries down to 95% (`gc_worker()` in `nf_conntrack_core.c`).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use canary_record::prometheus;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::observe;
use crate::target::{Protocol, Target};

/// Between two looks at the table.
const INTERVAL: Duration = Duration::from_millis(50);
/// Longest time for one look.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Each look allows this part of what is free, so that a few pods that fill the same table do
/// not take it more than once.
const PART: u64 = 4;

/// How many connections may still begin; the workers take from it.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    begun: AtomicU64,
    allowed: AtomicU64,
}

impl Allowance {
    /// Takes the place of one connection, if there is one.
    pub(crate) fn take(&self) -> bool {
        let allowed = self.allowed.load(Ordering::Relaxed);
        let more = |begun| (begun < allowed).then_some(begun + 1);
        self.begun.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Allows what fits, by a look that began when `begun` had been taken. What was taken
    /// since may be among the entries or not: it counts as not, which errs towards less.
    fn allow(&self, begun: u64, entries: u64, wanted: u64) {
        let allowance = wanted.saturating_sub(entries).div_ceil(PART);
        self.allowed.store(begun + allowance, Ordering::Relaxed);
    }
}

/// Entries and limit from observe's metrics.
fn parse(page: &str) -> Option<(u64, u64)> {
    let value = |name| prometheus::value(page, name).map(|v| v as u64);
    Some((value(observe::ENTRIES)?, value(observe::LIMIT)?))
}

#[derive(Debug)]
pub(crate) struct Follower {
    observe: Target,
    address: SocketAddr,
    part: f64,
    sender: Option<SendRequest<Empty<Bytes>>>,
    limit: u64,
    most: u64,
    reached: Option<Duration>,
}

impl Follower {
    /// Looks for the first time, before anything begins; says what is wrong with `observe`.
    pub(crate) async fn new(
        observe: &Target,
        part: f64,
        allowance: &Allowance,
    ) -> Result<Self, String> {
        let say = |e: String| {
            format!(
                "--fill {observe}: {e}; write http://HOST:PORT, the admin port of load-client observe on the node"
            )
        };
        if observe.protocol == Protocol::Tcp {
            return Err(say("observe speaks HTTP".to_owned()));
        }
        let address = observe.resolve().await.map_err(say)?[0];
        let mut me = Self {
            observe: observe.clone(),
            address,
            part,
            sender: None,
            limit: 0,
            most: 0,
            reached: None,
        };
        me.look(allowance, Instant::now()).await.map_err(say)?;
        Ok(me)
    }

    /// Looks until dropped.
    pub(crate) async fn follow(&mut self, allowance: &Allowance, start: Instant) -> Infallible {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut lost = false;
        loop {
            ticks.tick().await;
            match self.look(allowance, start).await {
                Ok(()) => {
                    if std::mem::take(&mut lost) {
                        tracing::info!("the table is seen again");
                    }
                }
                // What was allowed may still begin; nothing beyond it.
                Err(error) if !lost => {
                    lost = true;
                    tracing::warn!(error, "the table is not seen: no more connections begin");
                }
                Err(_) => {}
            }
        }
    }

    /// How far it came, for the result.
    pub(crate) fn reason(&self) -> String {
        let wanted = wanted(self.limit, self.part);
        match self.reached {
            Some(after) => format!(
                "the table had {wanted} of {} entries after {:.1} s, at most {}",
                self.limit,
                after.as_secs_f64(),
                self.most
            ),
            None => format!(
                "the table never had {wanted} of {} entries: at most {}",
                self.limit, self.most
            ),
        }
    }

    async fn look(&mut self, allowance: &Allowance, start: Instant) -> Result<(), String> {
        let begun = allowance.begun.load(Ordering::Relaxed);
        let silent = |_| Err(format!("no answer within {} s", TIMEOUT.as_secs()));
        let answer = tokio::time::timeout(TIMEOUT, self.ask()).await.unwrap_or_else(silent);
        let page = answer.inspect_err(|_| self.sender = None)?;
        let (entries, limit) = parse(&page).ok_or_else(|| {
            format!("its answer has no {} and {}", observe::ENTRIES, observe::LIMIT)
        })?;
        let wanted = wanted(limit, self.part);
        (self.limit, self.most) = (limit, self.most.max(entries));
        if entries >= wanted && self.reached.is_none() {
            self.reached = Some(start.elapsed());
            tracing::info!(entries, limit, "the table is filled");
        }
        allowance.allow(begun, entries, wanted);
        Ok(())
    }

    /// One request on a connection that stays: a new one each time would fill the table by itself.
    async fn ask(&mut self) -> Result<String, String> {
        let say = |e: hyper::Error| e.to_string();
        if self.sender.as_ref().is_none_or(SendRequest::is_closed) {
            let stream = TcpStream::connect(self.address).await.map_err(|e| e.to_string())?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(say)?;
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        let Some(sender) = &mut self.sender else { return Err("not connected".to_owned()) };
        sender.ready().await.map_err(say)?;
        let path = match &self.observe.protocol {
            Protocol::Http(path) if path != "/" => path,
            _ => "/metrics",
        };
        let request = Request::get(path).header(HOST, self.observe.authority());
        let request = request.body(Empty::new()).map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(say)?;
        if response.status() != StatusCode::OK {
            return Err(format!("it answers {}", response.status()));
        }
        let body = response.into_body().collect().await.map_err(say)?.to_bytes();
        String::from_utf8(body.into()).map_err(|e| e.to_string())
    }
}

fn wanted(limit: u64, part: f64) -> u64 {
    (limit as f64 * part) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(allowance: &Allowance) -> u64 {
        (0..1_000_000).take_while(|_| allowance.take()).count() as u64
    }

    /// Each look allows a quarter of what is missing, and nothing when nothing is.
    #[test]
    fn allows_a_part_of_what_is_missing() {
        let allowance = Allowance::default();
        assert_eq!(taken(&allowance), 0);
        allowance.allow(0, 200, 1000);
        assert_eq!(taken(&allowance), 200);
        allowance.allow(200, 999, 1000);
        assert_eq!(taken(&allowance), 1);
        allowance.allow(201, 1200, 1000);
        assert_eq!(taken(&allowance), 0);
    }

    /// What began while the look was on its way is not allowed a second time.
    #[test]
    fn what_began_meanwhile_counts() {
        let allowance = Allowance::default();
        allowance.allow(0, 0, 400);
        for _ in 0..30 {
            assert!(allowance.take());
        }
        allowance.allow(0, 0, 400);
        assert_eq!(taken(&allowance), 70);
    }

    /// A few clients of one table fill it and go no more than a little beyond, however stale
    /// each one's look is.
    #[test]
    fn several_clients_share_a_table() {
        let allowances: Vec<_> = (0..PART).map(|_| Allowance::default()).collect();
        let mut entries = 0;
        for _ in 0..100 {
            let seen = entries;
            for allowance in &allowances {
                allowance.allow(allowance.begun.load(Ordering::Relaxed), seen, 262_144);
                entries += taken(allowance);
            }
        }
        assert!((262_144..262_144 + PART).contains(&entries), "{entries}");
    }

    /// Only both numbers together are an answer.
    #[test]
    fn reads_metrics() {
        let page = "load_conntrack_entries 12\n\nload_conntrack_limit 262144\n";
        assert_eq!(parse(page), Some((12, 262_144)));
        assert_eq!(parse("load_conntrack_entries 12\nload_conntrack_limits 3\n"), None);
        assert_eq!(parse("load_conntrack_entries x\nload_conntrack_limit 3\n"), None);
    }
}
