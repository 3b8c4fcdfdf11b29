//! What each worker of churn is to do, worked out from the options: pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use canary_record::result::Clock;
use http_body_util::Empty;
use hyper::Request;
use hyper::header::{CONNECTION, HOST};

use crate::cli::{ChurnArgs, Close};
use crate::fill::Allowance;
use crate::pacer::{self, Pacer};
use crate::preflight::Load;
use crate::target::Protocol;

/// Connections in progress at once unless the command line says otherwise.
const CONCURRENCY: u32 = 64;
/// The most in progress with a rate.
const OPEN_LOOP_CONCURRENCY: u32 = 10_000;

/// What one worker is to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: SocketAddr,
    pub(crate) request: Option<Request<Empty<Bytes>>>,
    pub(crate) close: Close,
    /// Local addresses, by turns.
    pub(crate) sources: Vec<IpAddr>,
    /// Longest time without progress in a phase.
    pub(crate) timeout: Duration,
    /// The most connections in progress at once.
    pub(crate) concurrency: u32,
    pub(crate) pacer: Pacer,
    /// How many to make; none means until stopped.
    pub(crate) connections: Option<u64>,
    /// When to begin the last one.
    pub(crate) until: Option<Instant>,
    /// Where a table is filled: how many may begin.
    pub(crate) allowance: Option<Arc<Allowance>>,
}

/// Connections in progress at once.
pub(crate) fn concurrency(args: &ChurnArgs) -> u32 {
    let default = if args.rate.is_some() { OPEN_LOOP_CONCURRENCY } else { CONCURRENCY };
    args.concurrency.unwrap_or(default)
}

/// Worker threads: no more than there are connections in progress.
pub(crate) fn workers(args: &ChurnArgs) -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    args.workers.map_or(cpus, u32::from).min(concurrency(args))
}

/// What the limits of this host are held against.
pub(crate) fn load(args: &ChurnArgs, target: SocketAddr) -> Load {
    Load {
        sources: args.reach.source_ip.len().max(1) as u64,
        at_once: u64::from(concurrency(args)),
        rate: args.rate,
        // An HTTP server that is asked to close does so first.
        leaves_time_wait: args.close == Close::Fin && args.target.protocol == Protocol::Tcp,
        loopback: target.ip().is_loopback(),
    }
}

/// The plan of worker `w` of `n`.
pub(crate) fn plan(
    args: &ChurnArgs,
    target: SocketAddr,
    clock: Clock,
    (w, n): (u32, u32),
    allowance: Option<&Arc<Allowance>>,
) -> anyhow::Result<Plan> {
    let share = |total: u64| total / u64::from(n) + u64::from(u64::from(w) < total % u64::from(n));
    let request = match &args.target.protocol {
        Protocol::Tcp => None,
        Protocol::Http(path) => {
            let request = Request::get(path)
                .header(HOST, args.target.authority())
                .header(CONNECTION, "close")
                .body(Empty::new());
            Some(request.context("--target: the path is not legal")?)
        }
    };
    // Each worker begins its turns through the addresses at another one.
    let mut sources = args.reach.source_ip.clone();
    if !sources.is_empty() {
        let shift = w as usize % sources.len();
        sources.rotate_left(shift);
    }
    let start = clock.began();
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
        timeout: args.reach.timeout,
        concurrency,
        pacer,
        connections: args.connections.map(share),
        until: args.duration.and_then(|d| start.checked_add(d)),
        allowance: allowance.cloned(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::pacer::Turn;

    fn churn(line: &str) -> ChurnArgs {
        let Command::Churn(sub) = Cli::parse_from(line.split(' ')).command else {
            panic!("another subcommand")
        };
        sub.own
    }

    /// A duration beyond any clock is a run without an end of its own.
    #[test]
    fn a_duration_beyond_any_clock_never_ends() {
        let line = "load-client churn --target tcp://127.0.0.1:1 --duration 18000000000000000000s";
        let target = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(plan(&churn(line), target, Clock::start(), (0, 1), None).unwrap().until, None);
    }

    /// However many workers share a rate, their schedules together are even: one at 0.5 a second
    /// begins a connection every 2 s.
    #[test]
    fn the_workers_turns_lie_evenly() {
        let args = churn("load-client churn --target tcp://127.0.0.1:1 --rate 0.5 --workers 4");
        let (clock, target) = (Clock::start(), SocketAddr::from(([127, 0, 0, 1], 1)));
        let end = clock.began() + Duration::from_secs(16);
        let mut turns: Vec<Instant> = Vec::new();
        for w in 0..4 {
            let mut pacer = plan(&args, target, clock, (w, 4), None).unwrap().pacer;
            while let Turn::Now(at) = pacer.turn(end, 0) {
                turns.push(at);
            }
        }
        turns.sort();
        let after: Vec<_> = turns.iter().map(|t| (*t - clock.began()).as_secs()).collect();
        assert_eq!(after, [0, 2, 4, 6, 8, 10, 12, 14, 16]);
    }
}
