//! A new connection for every request: the workers, and what ends them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use canary_common::outcome::{EndedBy, Verdict};
use canary_common::shutdown::Shutdown;
use hyper::header::HeaderValue;

use crate::cli::ChurnArgs;
use crate::tally::{Tally, is_local};
use crate::target::Protocol;
use crate::worker::{self, HttpRequest, Plan, Stop};

/// How long connections in progress may go on after a signal.
const DRAIN: Duration = Duration::from_secs(1);

/// Connections in progress at once unless the command line says otherwise.
const CONCURRENCY: u32 = 64;
/// The most in progress with a rate.
const OPEN_LOOP_CONCURRENCY: u32 = 10_000;

/// Connections in progress at once.
#[must_use]
pub fn concurrency(args: &ChurnArgs) -> u32 {
    let default = if args.rate.is_some() { OPEN_LOOP_CONCURRENCY } else { CONCURRENCY };
    args.concurrency.unwrap_or(default)
}

/// Worker threads: no more than there are connections in progress.
#[must_use]
pub fn workers(args: &ChurnArgs) -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    args.workers.map_or(cpus, u32::from).min(concurrency(args))
}

/// The plan of worker `w` of `n`.
fn plan(
    args: &ChurnArgs,
    target: SocketAddr,
    start: Instant,
    w: u32,
    n: u32,
) -> anyhow::Result<Plan> {
    let share = |total: u64| total / u64::from(n) + u64::from(u64::from(w) < total % u64::from(n));
    let request = match &args.target.protocol {
        Protocol::Tcp => None,
        Protocol::Http(path) => Some(HttpRequest {
            uri: path.parse().context("--target: the path is not legal")?,
            host: HeaderValue::from_str(&args.target.authority())?,
        }),
    };
    // Each worker begins its turns through the addresses at another one.
    let mut sources = args.source_ip.clone();
    if !sources.is_empty() {
        let shift = w as usize % sources.len();
        sources.rotate_left(shift);
    }
    Ok(Plan {
        target,
        request,
        close: args.close,
        sources,
        timeout: args.timeout,
        concurrency: share(u64::from(concurrency(args))) as u32,
        connections: args.connections.map(share),
        until: args.duration.map(|d| start + d),
        rate: args.rate.map(|r| r / f64::from(n)),
    })
}

/// Runs the workers to their end.
pub async fn run(
    args: &ChurnArgs,
    target: SocketAddr,
    shutdown: &mut Shutdown,
) -> anyhow::Result<(Tally, EndedBy)> {
    let n = workers(args);
    let start = Instant::now();
    let stop = Arc::new(Stop::default());
    let (done, mut all_done) = tokio::sync::mpsc::channel::<()>(1);
    let mut threads = Vec::new();
    for w in 0..n {
        let plan = plan(args, target, start, w, n)?;
        let (stop, done) = (Arc::clone(&stop), done.clone());
        let thread = std::thread::Builder::new().name(format!("churn-{w}")).spawn(move || {
            let tally = worker::run(&plan, start, &stop);
            drop(done);
            tally
        });
        threads.push(thread.context("cannot start a worker thread")?);
    }
    drop(done);
    let planned = if args.connections.is_some() { EndedBy::Connections } else { EndedBy::Duration };
    let ended_by = tokio::select! {
        _ = all_done.recv() => planned,
        signal = shutdown.signalled() => {
            stop.begin.store(true, Ordering::Relaxed);
            tokio::select! {
                _ = all_done.recv() => {}
                () = tokio::time::sleep(DRAIN) => {}
            }
            stop.now.store(true, Ordering::Relaxed);
            signal
        }
    };
    let mut tally = Tally::default();
    for thread in threads {
        match thread.join() {
            Ok(part) => tally.merge(&part.context("a worker failed")?),
            Err(_) => anyhow::bail!("a worker thread panicked"),
        }
    }
    Ok((tally, ended_by))
}

/// The verdict without thresholds: a run in which nothing succeeded, or whose
/// load was cut by this host's own limits alone, proved nothing.
#[must_use]
pub fn judge(tally: &Tally) -> (Verdict, Vec<String>) {
    let mut reasons = Vec::new();
    let local = tally.count(|(_, cause)| is_local(cause));
    if local > 0 {
        reasons.push(format!(
            "{local} connections failed at a limit of this host: the load was smaller than asked for"
        ));
    }
    if tally.ok == 0 {
        reasons.insert(0, "no connection succeeded".to_owned());
        return (Verdict::Inconclusive, reasons);
    }
    reasons.insert(0, format!("{} of {} connections succeeded", tally.ok, tally.attempts));
    (Verdict::Protected, reasons)
}
