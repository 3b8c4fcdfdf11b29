//! A new connection for every request: the workers, and what ends them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use canary_record::names::EndedBy;
use canary_runtime::admin::Admin;
use canary_runtime::shutdown::Shutdown;
use hyper::header::HeaderValue;

use crate::cli::{ChurnArgs, Close};
use crate::fill::{Allowance, Follower};
use crate::live::Live;
use crate::pacer::{self, Pacer};
use crate::preflight::Load;
use crate::tally::{Clock, Shown, Tally};
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

/// What the limits of this host are held against.
#[must_use]
pub fn load(args: &ChurnArgs, target: SocketAddr) -> Load {
    Load {
        sources: args.source_ip.len().max(1) as u64,
        at_once: u64::from(concurrency(args)),
        rate: args.rate,
        // An HTTP server that is asked to close does so first.
        leaves_time_wait: args.close == Close::Fin && args.target.protocol == Protocol::Tcp,
        loopback: target.ip().is_loopback(),
    }
}

/// The plan of worker `w` of `n`.
fn plan(
    args: &ChurnArgs,
    target: SocketAddr,
    clock: Clock,
    (w, n): (u32, u32),
    allowance: Option<&Arc<Allowance>>,
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
    let start = clock.start();
    let concurrency = share(u64::from(concurrency(args))) as u32;
    let pacer = match args.rate {
        None => Pacer::closed(start, concurrency, args.ramp),
        Some(rate) => {
            // The workers' schedules lie between one another's.
            let shift = pacer::after(f64::from(w), rate, Duration::ZERO);
            let seed = rand::random();
            Pacer::open(start + shift, rate / f64::from(n), args.ramp, args.jitter, seed)
        }
    };
    Ok(Plan {
        target,
        request,
        close: args.close,
        sources,
        timeout: args.timeout,
        concurrency,
        pacer,
        connections: args.connections.map(share),
        until: args.duration.map(|d| start + d),
        allowance: allowance.cloned(),
    })
}

/// Runs the workers to their end. `fill` is what follows the table, where one is filled.
pub async fn run(
    args: &ChurnArgs,
    target: SocketAddr,
    fill: Option<(&mut Follower, &Arc<Allowance>)>,
    shutdown: &mut Shutdown,
    admin: Option<&Arc<Admin>>,
) -> anyhow::Result<(Tally, EndedBy)> {
    let n = workers(args);
    let clock = Clock::now();
    let stop = Arc::new(Stop::default());
    let (done, mut all_done) = tokio::sync::mpsc::channel::<()>(1);
    let mut threads = Vec::new();
    let shown: Vec<Shown> = (0..n).map(|_| Shown::default()).collect();
    // What can fail does so before anything begins.
    let mut plans = Vec::new();
    for w in 0..n {
        let plan = plan(args, target, clock, (w, n), fill.as_ref().map(|f| f.1))?;
        plans.push((w, plan, worker::epoll().context("cannot start a worker")?));
    }
    for ((w, plan, epoll), shown) in plans.into_iter().zip(&shown) {
        let (stop, done, shown) = (Arc::clone(&stop), done.clone(), shown.clone());
        let thread = std::thread::Builder::new().name(format!("churn-{w}")).spawn(move || {
            let tally = worker::run(&plan, epoll, clock, &stop, &shown);
            drop(done);
            tally
        });
        threads.push(thread.context("cannot start a worker thread")?);
    }
    drop(done);
    let live = Live::begin(shown, admin);
    let follow = async {
        match fill {
            Some((follower, allowance)) => follower.follow(allowance, clock.start()).await,
            None => std::future::pending().await,
        }
    };
    let ended_by = tokio::select! {
        _ = all_done.recv() => planned(args, clock),
        never = follow => match never {},
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
    drop(live);
    let mut tally = Tally::new(clock);
    for thread in threads {
        match thread.join() {
            Ok(part) => tally.merge(part.context("a worker failed")?),
            Err(_) => anyhow::bail!("a worker thread panicked"),
        }
    }
    Ok((tally, ended_by))
}

/// Why the workers came to their end by themselves.
fn planned(args: &ChurnArgs, clock: Clock) -> EndedBy {
    match (args.duration, args.connections) {
        (Some(d), Some(_)) if clock.start().elapsed() >= d => EndedBy::Duration,
        (_, Some(_)) => EndedBy::Connections,
        _ => EndedBy::Duration,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::pacer::Turn;

    /// However many workers share a rate, their schedules together are even: one at 0.5 a second
    /// begins a connection every 2 s.
    #[test]
    fn the_workers_turns_lie_evenly() {
        let line = "load-client churn --target tcp://127.0.0.1:1 --rate 0.5 --workers 4";
        let Command::Churn(args) = Cli::parse_from(line.split(' ')).command else {
            panic!("another subcommand")
        };
        let (clock, target) = (Clock::now(), SocketAddr::from(([127, 0, 0, 1], 1)));
        let end = clock.start() + Duration::from_secs(16);
        let mut turns: Vec<Instant> = Vec::new();
        for w in 0..4 {
            let mut pacer = plan(&args, target, clock, (w, 4), None).unwrap().pacer;
            while let Turn::Now(at) = pacer.turn(end, 0) {
                turns.push(at);
            }
        }
        turns.sort();
        let after: Vec<_> = turns.iter().map(|t| (*t - clock.start()).as_secs()).collect();
        assert_eq!(after, [0, 2, 4, 6, 8, 10, 12, 14, 16]);
    }
}
