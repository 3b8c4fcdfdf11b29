//! What is shown while the run goes on: metrics on the admin port, and one
//! line on a terminal.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use canary_record::result::load::Cause;
use canary_runtime::admin::Admin;
use canary_runtime::listen;
use canary_runtime::logs::Standing;
use tokio::task::JoinHandle;

use crate::series;
use crate::tally::{Counts, Shown};

/// Between two updates.
const INTERVAL: Duration = Duration::from_millis(500);

const CONNECT: &str = "load_connect_seconds";
const TOTAL: &str = "load_total_seconds";
/// Bounds of both histograms in seconds.
const BOUNDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Opens the admin port, where one is asked for.
pub(crate) fn admin(addr: Option<SocketAddr>) -> anyhow::Result<Option<Arc<Admin>>> {
    let Some(addr) = addr else { return Ok(None) };
    let listener = listen::bind(addr, TcpListener::bind)
        .and_then(|l| l.set_nonblocking(true).map(|()| l))
        .map_err(|e| anyhow!("--admin {addr}: {e}; choose another address or port"))?;
    Ok(Some(Admin::start(listener, &[(CONNECT, BOUNDS), (TOTAL, BOUNDS)])?))
}

/// Shows what goes on until dropped.
#[derive(Debug)]
pub(crate) struct Live(Option<JoinHandle<()>>, Option<Standing>);

impl Live {
    /// Calls `update` at once and at each interval, if there is an admin port or this is a terminal:
    /// it brings the metrics up to date, and gives the text that stands on a terminal.
    pub(crate) fn begin(
        interval: Duration,
        admin: Option<&Arc<Admin>>,
        mut update: impl FnMut() -> String + Send + 'static,
    ) -> Self {
        let standing = Standing::begin();
        if admin.is_none() && standing.is_none() {
            return Self(None, None);
        }
        let task = tokio::spawn(async move {
            loop {
                let text = update();
                if let Some(standing) = &standing {
                    standing.show(&text);
                }
                tokio::time::sleep(interval).await;
            }
        });
        Self(Some(task), standing)
    }

    /// The counts of workers.
    pub(crate) fn of(shown: &[Shown], admin: Option<&Arc<Admin>>) -> Self {
        let shown: Vec<_> = shown.iter().map(Shown::subscribe).collect();
        let (mut before, mut at) = (Counts::default(), Instant::now());
        Self::begin(INTERVAL, admin, move || {
            let mut now = Counts::default();
            for s in &shown {
                now += &s.borrow();
            }
            publish(&before, &now);
            let line = line(&before, &now, at.elapsed());
            (before, at) = (now, Instant::now());
            line
        })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
        if let Some(standing) = self.1 {
            standing.end();
        }
    }
}

/// Brings the metrics to `now`.
fn publish(before: &Counts, now: &Counts) {
    metrics::counter!("load_attempts_total").absolute(now.attempts);
    metrics::counter!("load_ok_total").absolute(now.ok);
    metrics::counter!("load_received_bytes_total").absolute(now.bytes);
    metrics::counter!("load_own_resets_total").absolute(now.own_resets);
    metrics::gauge!("load_open_connections").set(now.open as f64);
    for f in now.failures() {
        let local = if f.local { "true" } else { "false" };
        let cause = f.cause.words();
        metrics::counter!("load_failures_total", "phase" => f.phase.as_str(), "cause" => cause, "local" => local)
            .absolute(f.count);
    }
    for (name, now, before) in
        [(CONNECT, &now.connect, &before.connect), (TOTAL, &now.total, &before.total)]
    {
        let histogram = metrics::histogram!(name);
        for (bucket, (now, before)) in now.iter().zip(before).enumerate() {
            let seconds = series::upper(bucket) as f64 / 1e6;
            histogram.record_many(seconds, (now - before) as usize);
        }
    }
}

/// Rate, classes and latency on one line.
fn line(before: &Counts, now: &Counts, elapsed: Duration) -> String {
    use std::fmt::Write as _;
    let rate = (now.attempts - before.attempts) as f64 / elapsed.as_secs_f64().max(1e-9);
    let mut new = now.total;
    new.iter_mut().zip(before.total).for_each(|(now, before)| *now -= before);
    let ms = |percent| series::quantile(&new, percent).unwrap_or(0) as f64 / 1000.0;
    let mut line = format!(
        "{rate:.0}/s  {} connections, {} open, {} ok, p50 {:.1} ms, p99 {:.1} ms",
        now.attempts,
        now.open,
        now.ok,
        ms(50),
        ms(99)
    );
    let mut failures = now.failures();
    failures.retain(|f| f.cause != Cause::Interrupted);
    failures.sort_by_key(|f| std::cmp::Reverse(f.count));
    for f in failures.iter().take(3) {
        let _ = write!(line, ", {} {} in {}", f.count, f.cause.words(), f.phase);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;
    use canary_record::names::{Errno, Phase};
    use canary_record::result::Clock;

    /// The line has the rate since the last one, and the failures by class.
    #[test]
    fn the_line_shows_rate_classes_and_latency() {
        let t = Instant::now();
        let mut tally = Tally::new(Clock::start());
        for _ in 0..10 {
            tally.begin(t);
        }
        let before = tally.counts.clone();
        for _ in 0..99 {
            tally.begin(t);
            tally.ok(t, Duration::from_millis(2));
        }
        tally.begin(t);
        tally.fail(t, (Phase::Receive, Cause::Errno(Errno::Econnreset)));
        let line = line(&before, &tally.counts, Duration::from_millis(500));
        assert_eq!(
            line,
            "200/s  110 connections, 0 open, 99 ok, p50 2.0 ms, p99 2.0 ms, 1 ECONNRESET in receive"
        );
    }
}
