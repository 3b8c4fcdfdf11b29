//! What the binary does: checks everything, then runs one subcommand, then reports.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use canary_record::names::{EndedBy, LoadVerdict};
use canary_record::result::load::LoadResult;
use canary_record::result::serve::ServeResult;
use canary_record::result::{Config, SCHEMA_VERSION};
use canary_runtime::admin::Admin;
use canary_runtime::cli::derive;
use canary_runtime::exit::{self, Exit, Usage};
use canary_runtime::listen;
use canary_runtime::logs::{end_logs, init_logs, lost_lines};
use canary_runtime::shutdown::Shutdown;

use crate::cli::{
    ChurnArgs, Cli, Command, CommonArgs, HoldArgs, MergeArgs, ObserveArgs, ProbeArgs, ReachArgs,
    ServeArgs, WitnessArgs,
};
use crate::fill::{Allowance, Follower};
use crate::forge::{self, Forging};
use crate::preflight::Load;
use crate::report::Report;
use crate::target::{Protocol, Target};
use crate::threshold::Threshold;
use crate::{
    churn, hold, live, merge, observe, plan, preflight, probe, report, serve, socket, verdict,
    witness,
};

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let (cli, config) = match canary_runtime::cli::effective::<Cli>() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ran = runtime.context("cannot start").and_then(|runtime| {
        let ran = runtime.block_on(run(cli.command, config));
        // A resolver that does not answer holds nothing up.
        runtime.shutdown_background();
        ran
    });
    // What was logged before a failure is written before its line.
    end_logs();
    exit::code(ran, Error::is::<Usage>)
}

async fn run(command: Command, config: Config) -> Result<Exit> {
    match command {
        Command::Churn(sub) => run_churn(sub.own, &sub.common, config).await,
        Command::Probe(sub) => run_probe(sub.own, &sub.common, config).await,
        Command::Serve(sub) => run_serve(sub.own, &sub.common, config).await,
        Command::Hold(sub) => run_hold(sub.own, &sub.common, config).await,
        Command::Observe(sub) => run_observe(sub.own, &sub.common, config).await,
        Command::Witness(sub) => run_witness(sub.own, &sub.common, config).await,
        Command::Merge(sub) => run_merge(&sub.own, &sub.common, config),
    }
}

fn begin(program: &'static str, config: Config, common: &CommonArgs) -> Result<Report> {
    let report = Report::begin(program, config, common.output.as_deref())?;
    init_logs(common.log);
    Ok(report)
}

/// Between two questions for a name that has no address yet.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Catches signals, once and before anything that may wait: the first process of a container
/// has no default action for them.
fn catch() -> Result<Shutdown> {
    Shutdown::catch().context("cannot catch signals")
}

/// The address of each family that the name has; one at least.
async fn resolve(
    target: &Target,
    reach: &ReachArgs,
    shutdown: &mut Shutdown,
) -> Result<Vec<SocketAddr>> {
    let deadline = Instant::now() + reach.resolve_timeout;
    let failed = |why: String| Usage(format!("--target {target}: {why}")).into();
    let mut why = "no answer from the resolver yet".to_owned();
    let addresses = loop {
        tokio::select! {
            _ = shutdown.signalled() => return Err(failed(why)),
            answer = target.resolve() => match answer {
                Ok(addresses) => break addresses,
                Err(e) => why = e,
            },
        }
        if Instant::now() >= deadline {
            return Err(failed(why));
        }
        tokio::select! {
            _ = shutdown.signalled() => return Err(failed(why)),
            () = tokio::time::sleep(ASK_AGAIN) => {}
        }
    };
    for ip in &reach.source_ip {
        socket::check_source(*ip, addresses[0]).map_err(Usage)?;
    }
    Ok(addresses)
}

fn ready(admin: Option<&Arc<Admin>>) {
    if let Some(admin) = admin {
        admin.set_ready(true);
    }
}

/// Judges, reports, and says how to exit.
fn finish(report: &Report, mut result: LoadResult, thresholds: &[Threshold]) -> Exit {
    verdict::judge(&mut result, thresholds);
    told(report, result)
}

/// Reports what is judged, and says how to exit.
fn told(report: &Report, mut result: LoadResult) -> Exit {
    result.reasons.extend(lost_lines());
    report.finish(&result, &report::summary(&result), report::exit(&result))
}

async fn run_churn(args: ChurnArgs, common: &CommonArgs, mut config: Config) -> Result<Exit> {
    let mut shutdown = catch()?;
    let target = resolve(&args.target, &args.reach, &mut shutdown).await?[0];
    let allowance = Arc::<Allowance>::default();
    let mut follower = match &args.fill {
        Some(observe) => tokio::select! {
            _ = shutdown.signalled() => {
                bail!(Usage(format!("--fill {observe}: no answer yet")));
            }
            follower = Follower::new(observe, args.fill_to, &allowance) => {
                Some(follower.map_err(Usage)?)
            }
        },
        None => None,
    };
    derive(&mut config, "address", &target);
    derive(&mut config, "concurrency", &plan::concurrency(&args));
    derive(&mut config, "workers", &plan::workers(&args));
    let report = begin("load-client churn", config, common)?;
    let admin = live::admin(common.admin)?;
    let preflight = preflight::begin(plan::load(&args, target));
    ready(admin.as_ref());
    let fill = follower.as_mut().map(|f| (f, &allowance));
    let (tally, ended_by) = churn::run(&args, target, fill, &mut shutdown, admin.as_ref()).await?;
    let mut result = report.load_result(&tally, ended_by, args.duration);
    result.reasons.extend(follower.map(|f| f.reason()));
    result.preflight = Some(preflight);
    let exit = finish(&report, result, &args.fail_on);
    linger(&mut shutdown, ended_by, args.linger).await;
    Ok(exit)
}

/// Stays for who reads the result, if a signal ended the run; another one ends this too.
async fn linger(shutdown: &mut Shutdown, ended_by: EndedBy, time: Duration) {
    if matches!(ended_by, EndedBy::Sigterm | EndedBy::Sigint) {
        shutdown.ended(Instant::now().checked_add(time)).await;
    }
}

async fn run_hold(args: HoldArgs, common: &CommonArgs, mut config: Config) -> Result<Exit> {
    plain(&args.target, "hold speaks lines")?;
    let mut shutdown = catch()?;
    let target = resolve(&args.target, &args.reach, &mut shutdown).await?[0];
    derive(&mut config, "address", &target);
    let report = begin("load-client hold", config, common)?;
    let admin = live::admin(common.admin)?;
    let load = Load {
        sources: args.reach.source_ip.len().max(1) as u64,
        at_once: u64::from(args.connections),
        rate: None,
        leaves_time_wait: false,
        loopback: target.ip().is_loopback(),
    };
    let preflight = preflight::begin(load);
    ready(admin.as_ref());
    let (tally, hold, ended_by) = hold::run(&args, target, &mut shutdown, admin.as_ref()).await;
    let mut result = report.load_result(&tally, ended_by, args.duration);
    (result.preflight, result.hold) = (Some(preflight), Some(hold));
    Ok(finish(&report, result, &args.fail_on))
}

/// Refuses targets other than plain TCP.
fn plain(target: &Target, why: &str) -> Result<()> {
    match target.protocol {
        Protocol::Tcp => Ok(()),
        Protocol::Http(_) => {
            bail!(Usage(format!("--target {target}: {why}: write tcp://HOST:PORT")))
        }
    }
}

async fn run_probe(args: ProbeArgs, common: &CommonArgs, mut config: Config) -> Result<Exit> {
    plain(&args.target, "probe speaks to boom-server")?;
    if args.delay > canary_record::probe::MAX_DELAY
        || args.answer_delay > canary_record::probe::MAX_DELAY
    {
        bail!(Usage("--delay and --answer-delay: at most 1h".to_owned()));
    }
    let sockets = match &args.forge.forge {
        Some(list) if list.0.is_empty() => {
            bail!(Usage("--forge none: leave the option out to forge nothing".to_owned()));
        }
        // Before the resolver has threads, which would keep the capabilities.
        Some(list) => {
            Some((list.clone(), forge::sockets(args.target.port, args.forge.receive_buffer)?))
        }
        None => None,
    };
    let mut shutdown = catch()?;
    let mut targets = resolve(&args.target, &args.reach, &mut shutdown).await?;
    if !args.each_family {
        targets.truncate(1);
    }
    let named: Vec<_> = targets.iter().map(ToString::to_string).collect();
    derive(&mut config, "address", &named.join(","));
    let admin = live::admin(common.admin)?;
    preflight::raise_open_files();
    ready(admin.as_ref());
    if !args.await_answer.is_zero() {
        let unanswered = probe::answered(&args, &targets, &mut shutdown)
            .await
            .map_err(|by| anyhow!("{by} came before boom-server answered: nothing was measured"))?;
        derive(&mut config, "connections-before-an-answer", &unanswered);
    }
    let report = begin("load-client probe", config, common)?;
    let forging = sockets
        .map(|(list, s)| Forging::start(&args.forge, &list, s, targets[0], args.connections));
    let forging = forging.transpose()?;
    let ran = probe::run(&args, targets, forging.as_ref(), &mut shutdown, admin.as_ref()).await;
    let (tally, ended_by) = ran;
    let mut result = report.load_result(&tally, ended_by, args.duration);
    result.probe = tally.counts.ends();
    result.reasons = probe::reasons(&result.probe);
    result.forge = forging.map(|f| f.finish(&result));
    Ok(finish(&report, result, &args.fail_on))
}

fn run_merge(args: &MergeArgs, common: &CommonArgs, config: Config) -> Result<Exit> {
    let mut parts = Vec::new();
    for file in &args.files {
        parts.push((file.display().to_string(), merge::read(file)?));
    }
    let report = begin("load-client merge", config, common)?;
    let mut result = merge::join(&parts, |ended_by| report.run(ended_by))?;
    verdict::judge(&mut result, &args.fail_on);
    // What a part found stands, whatever the whole's thresholds say.
    if result.verdict != LoadVerdict::ThresholdCrossed {
        result.verdict = merge::worst(&parts);
    }
    Ok(told(&report, result))
}

async fn run_serve(args: ServeArgs, common: &CommonArgs, mut config: Config) -> Result<Exit> {
    let mut shutdown = catch()?;
    let workers = args.workers.map_or_else(
        || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        usize::from,
    );
    derive(&mut config, "workers", &workers);
    let report = begin("load-client serve", config, common)?;
    let admin = live::admin(common.admin)?;
    preflight::raise_open_files();
    let mut sets = Vec::new();
    for _ in 0..workers {
        let mut set = Vec::new();
        for &addr in &args.listen {
            set.push(
                listen::bind(addr, serve::bind)
                    .map_err(|e| anyhow!("--listen {addr}: {e}; choose another address or port"))?,
            );
        }
        sets.push(set);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(serve::Served::default());
    let (failed, mut failure) = tokio::sync::mpsc::channel(1);
    let mut threads = Vec::new();
    for (n, set) in sets.into_iter().enumerate() {
        let (stop, served, failed) = (Arc::clone(&stop), Arc::clone(&served), failed.clone());
        let body = args.body_size;
        let thread = std::thread::Builder::new().name(format!("serve-{n}")).spawn(move || {
            if let Err(e) = serve::run(&set, body, &stop, &served) {
                let _ = failed.blocking_send(e);
            }
        });
        threads.push(thread.context("cannot start a worker thread")?);
    }
    if let Some(admin) = &admin {
        let served = Arc::clone(&served);
        admin.before_metrics(move || served.publish());
        admin.set_ready(true);
    }
    let listen: Vec<_> = args.listen.iter().map(ToString::to_string).collect();
    tracing::info!(listen = listen.join(","), "ready");
    let (ended_by, error) = tokio::select! {
        signal = shutdown.signalled() => (signal, None),
        e = failure.recv() => (EndedBy::Error, e),
    };
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        let _ = thread.join();
    }
    let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    let result = ServeResult {
        schema_version: SCHEMA_VERSION,
        run: report.run(ended_by),
        reasons: error
            .iter()
            .map(|e| format!("a worker failed: {e}"))
            .chain(lost_lines())
            .collect(),
        accepted: count(&served.accepted),
        answers: count(&served.answers),
        accept_errors: count(&served.accept_errors),
    };
    let summary = format!("served {} connections", result.accepted);
    let exit = report.finish(&result, &summary, Exit::Ok);
    if let Some(e) = error {
        return Err(Error::from(e).context("a worker failed"));
    }
    Ok(exit)
}

async fn run_observe(args: ObserveArgs, common: &CommonArgs, config: Config) -> Result<Exit> {
    let mut shutdown = catch()?;
    let report = begin("load-client observe", config, common)?;
    let admin = live::admin(common.admin)?;
    let mut result =
        observe::run(&args, &report, &mut shutdown, admin.as_ref()).await.map_err(Error::msg)?;
    result.reasons.extend(lost_lines());
    let (r, grew) = (&result, result.difference);
    let summary = format!(
        "observed {:.1} s: {} entries of {} at most {}; invalid +{}, drop +{}, early_drop +{}, insert_failed +{}",
        r.run.seconds,
        r.last.entries,
        r.last.limit,
        r.most_entries,
        grew.invalid,
        grew.drop,
        grew.early_drop,
        grew.insert_failed,
    );
    Ok(report.finish(r, &summary, Exit::Ok))
}

async fn run_witness(args: WitnessArgs, common: &CommonArgs, config: Config) -> Result<Exit> {
    let mut shutdown = catch()?;
    let (report, mut result) = if args.pcap.is_empty() {
        let report = begin("load-client witness", config, common)?;
        let admin = live::admin(common.admin)?;
        let result = witness::watch(&args, &report, &mut shutdown, admin.as_ref()).await;
        (report, result)
    } else {
        let captures = tokio::select! {
            captures = witness::open(args.pcap.clone()) => captures.map_err(Usage)?,
            by = shutdown.signalled() => {
                bail!("{by} came before every --pcap was open: nothing was read")
            }
        };
        let report = begin("load-client witness", config, common)?;
        let signalled = shutdown.signalled();
        let result = witness::read(captures, &args.pcap, &report, signalled).await;
        (report, result)
    };
    result.reasons.extend(lost_lines());
    let summary = witness::report::summary(&result);
    let exit = report.finish(&result, &summary, result.verdict.into());
    linger(&mut shutdown, result.run.ended_by, args.linger).await;
    Ok(exit)
}
