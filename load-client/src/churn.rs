//! A new connection for every request: the workers, and what ends them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use canary_record::names::EndedBy;
use canary_record::result::Clock;
use canary_runtime::admin::Admin;
use canary_runtime::shutdown::Shutdown;
use rustix::event::epoll;

use crate::Stop;
use crate::cli::ChurnArgs;
use crate::fill::{Allowance, Follower};
use crate::live::Live;
use crate::plan::{plan, workers};
use crate::tally::{Shown, Tally};
use crate::worker::Worker;

/// How long connections in progress may go on after a signal.
const DRAIN: Duration = Duration::from_secs(1);

/// Runs the workers to their end. `fill` is what follows the table, where one is filled.
pub(crate) async fn run(
    args: &ChurnArgs,
    target: SocketAddr,
    fill: Option<(&mut Follower, &Arc<Allowance>)>,
    shutdown: &mut Shutdown,
    admin: Option<&Arc<Admin>>,
) -> anyhow::Result<(Tally, EndedBy)> {
    let n = workers(args);
    let clock = Clock::start();
    let stop = Arc::new(Stop::default());
    let (done, mut all_done) = tokio::sync::mpsc::channel::<()>(1);
    let mut threads = Vec::new();
    let shown: Vec<Shown> = (0..n).map(|_| Shown::default()).collect();
    // What can fail does so before anything begins.
    let epoll = || epoll::create(epoll::CreateFlags::CLOEXEC);
    let mut plans = Vec::new();
    for w in 0..n {
        let plan = plan(args, target, clock, (w, n), fill.as_ref().map(|f| f.1))?;
        plans.push((w, plan, epoll().context("cannot start a worker")?));
    }
    for ((w, plan, epoll), shown) in plans.into_iter().zip(&shown) {
        let (stop, done, shown) = (Arc::clone(&stop), done.clone(), shown.clone());
        let thread = std::thread::Builder::new().name(format!("churn-{w}")).spawn(move || {
            let tally = Worker::new(&plan, epoll, clock, &shown).run(&stop);
            drop(done);
            tally
        });
        threads.push(thread.context("cannot start a worker thread")?);
    }
    drop(done);
    let live = Live::of(&shown, admin);
    let follow = async {
        match fill {
            Some((follower, allowance)) => follower.follow(allowance, clock.began()).await,
            None => std::future::pending().await,
        }
    };
    let ended_by = tokio::select! {
        _ = all_done.recv() => planned(args, clock),
        never = follow => match never {},
        signal = shutdown.signalled() => {
            stop.store(1, Ordering::Relaxed);
            tokio::select! {
                _ = all_done.recv() => {}
                () = tokio::time::sleep(DRAIN) => {}
            }
            stop.store(2, Ordering::Relaxed);
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
        (Some(d), Some(_)) if clock.began().elapsed() >= d => EndedBy::Duration,
        (_, Some(_)) => EndedBy::Connections,
        _ => EndedBy::Duration,
    }
}
