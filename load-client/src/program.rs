//! What the binary does: checks everything, then runs one subcommand, then reports.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use canary_common::exit::Exit;
use canary_common::outcome::{EndedBy, Verdict};
use canary_common::shutdown::Shutdown;
use canary_common::telemetry::init_logs;
use serde_json::json;

use crate::cli::{ChurnArgs, Cli, Command, CommonArgs, ObserveArgs, Pattern, ProbeArgs, ServeArgs};
use crate::report::{Config, Report};
use crate::target::{Protocol, Target};
use crate::{churn, observe, probe, report, serve, socket};

/// How a subcommand ends early.
enum End {
    /// The command line, or what it names: one line, exit code 2.
    Usage(String),
    /// Anything else: one line, exit code 1.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for End {
    fn from(e: anyhow::Error) -> Self {
        Self::Failed(e)
    }
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match canary_common::cli::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start: {e}");
            return Exit::Failed.into();
        }
    };
    match runtime.block_on(run(cli.command)) {
        Ok(exit) => exit.into(),
        Err(End::Usage(line)) => {
            eprintln!("error: {line}");
            Exit::Usage.into()
        }
        Err(End::Failed(e)) => {
            eprintln!("error: {e:#}");
            Exit::Failed.into()
        }
    }
}

async fn run(command: Command) -> Result<Exit, End> {
    match command {
        Command::Churn(args) => run_churn(args).await,
        Command::Probe(args) => run_probe(args).await,
        Command::Serve(args) => run_serve(args).await,
        Command::Observe(args) => run_observe(args).await,
    }
}

fn begin(program: &'static str, config: Config, common: &CommonArgs) -> Result<Report, End> {
    let report = Report::begin(program, config, common.output.as_deref()).map_err(End::Usage)?;
    init_logs(common.log);
    Ok(report)
}

fn catch() -> Result<Shutdown, End> {
    Shutdown::catch().context("cannot catch signals").map_err(End::Failed)
}

/// The effective options by name; what is not set is left out.
fn config(pairs: &[(&str, Option<String>)]) -> Config {
    pairs.iter().filter_map(|(k, v)| Some(((*k).to_owned(), v.clone()?))).collect()
}

fn list<T: ToString>(items: &[T]) -> Option<String> {
    let list: Vec<_> = items.iter().map(ToString::to_string).collect();
    (!list.is_empty()).then(|| list.join(","))
}

fn spell(d: std::time::Duration) -> String {
    // Units without spaces, as the command line takes them.
    match (d.as_millis(), d.subsec_nanos()) {
        (ms, ns) if u64::from(ns) % 1_000_000 != 0 => format!("{ms}ms{}ns", ns % 1_000_000),
        (ms, _) if ms % 1000 != 0 => format!("{ms}ms"),
        (ms, _) => format!("{}s", ms / 1000),
    }
}

fn name<T: clap::ValueEnum>(v: &T) -> String {
    v.to_possible_value().map_or_else(String::new, |p| p.get_name().to_owned())
}

fn resolve(target: &Target, sources: &[std::net::IpAddr]) -> Result<SocketAddr, End> {
    let address = target.resolve().map_err(|e| End::Usage(format!("--target {target}: {e}")))?;
    for ip in sources {
        socket::check_source(*ip, address).map_err(End::Usage)?;
    }
    Ok(address)
}

async fn run_churn(args: ChurnArgs) -> Result<Exit, End> {
    let target = resolve(&args.target, &args.source_ip)?;
    let config = config(&[
        ("target", Some(args.target.to_string())),
        ("address", Some(target.to_string())),
        ("rate", args.rate.map(|r| r.to_string())),
        ("concurrency", Some(churn::concurrency(&args).to_string())),
        ("workers", Some(churn::workers(&args).to_string())),
        ("duration", args.duration.map(spell)),
        ("connections", args.connections.map(|n| n.to_string())),
        ("timeout", Some(spell(args.timeout))),
        ("close", Some(name(&args.close))),
        ("source-ip", list(&args.source_ip)),
    ]);
    let report = begin("load-client churn", config, &args.common)?;
    let mut shutdown = catch()?;
    let (tally, ended_by) = churn::run(&args, target, &mut shutdown).await?;
    let (verdict, reasons) = churn::judge(&tally);
    let result = report.load_result(&tally, report::Ends::new(), ended_by, (verdict, reasons));
    report.finish(&result, &report::summary(&result))?;
    Ok(report::exit(verdict, ended_by))
}

async fn run_probe(args: ProbeArgs) -> Result<Exit, End> {
    if args.target.protocol != Protocol::Tcp {
        return Err(End::Usage(format!(
            "--target {}: probe speaks to boom-server: write tcp://HOST:PORT",
            args.target
        )));
    }
    if args.delay > canary_common::probe::MAX_DELAY
        || args.answer_delay > canary_common::probe::MAX_DELAY
    {
        return Err(End::Usage("--delay and --answer-delay: at most 1h".to_owned()));
    }
    let target = resolve(&args.target, &args.source_ip)?;
    let slow = args.pattern == Pattern::SlowAnswer;
    let body = matches!(args.pattern, Pattern::Download | Pattern::Upload);
    let config = config(&[
        ("target", Some(args.target.to_string())),
        ("address", Some(target.to_string())),
        ("connections", Some(args.connections.to_string())),
        ("every", args.every.map(spell)),
        ("duration", args.duration.map(spell)),
        ("pattern", Some(name(&args.pattern))),
        ("delay", Some(spell(args.delay))),
        ("timeout", Some(spell(args.timeout))),
        ("answer-delay", slow.then(|| spell(args.answer_delay))),
        ("body-size", body.then(|| args.body_size.to_string())),
        ("source-ip", list(&args.source_ip)),
    ]);
    let report = begin("load-client probe", config, &args.common)?;
    let mut shutdown = catch()?;
    let probed = probe::run(&args, target, &mut shutdown).await;
    let (verdict, reasons) = probe::judge(&probed.ends);
    let result =
        report.load_result(&probed.tally, probed.ends, probed.ended_by, (verdict, reasons));
    report.finish(&result, &report::summary(&result))?;
    Ok(report::exit(verdict, probed.ended_by))
}

async fn run_serve(args: ServeArgs) -> Result<Exit, End> {
    let workers = args.workers.map_or_else(
        || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        usize::from,
    );
    let config = config(&[
        ("listen", list(&args.listen)),
        ("body-size", Some(args.body_size.to_string())),
        ("workers", Some(workers.to_string())),
    ]);
    let report = begin("load-client serve", config, &args.common)?;
    let mut shutdown = catch()?;
    let mut sets = Vec::new();
    for _ in 0..workers {
        let mut set = Vec::new();
        for &addr in &args.listen {
            set.push(serve::listen(addr).map_err(|e| {
                End::Failed(anyhow::anyhow!("--listen {addr}: {e}; choose another address or port"))
            })?);
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
    tracing::info!(listen = list(&args.listen), "ready");
    let (ended_by, error) = tokio::select! {
        signal = shutdown.signalled() => (signal, None),
        e = failure.recv() => (EndedBy::Error, e),
    };
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        let _ = thread.join();
    }
    let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    let result = json!({
        "schema_version": canary_common::result::SCHEMA_VERSION,
        "run": report.run(ended_by),
        "accepted": count(&served.accepted),
        "answers": count(&served.answers),
        "accept_errors": count(&served.accept_errors),
    });
    let summary = format!("served {} connections", count(&served.accepted));
    report.finish(&result, &summary)?;
    if let Some(e) = error {
        return Err(End::Failed(anyhow::Error::from(e).context("a worker failed")));
    }
    Ok(report::exit(Verdict::Protected, ended_by))
}

async fn run_observe(args: ObserveArgs) -> Result<Exit, End> {
    let config =
        config(&[("interval", Some(spell(args.interval))), ("duration", args.duration.map(spell))]);
    let report = begin("load-client observe", config, &args.common)?;
    let mut shutdown = catch()?;
    let result = observe::run(&args, &report, &mut shutdown)
        .await
        .map_err(|e| End::Failed(anyhow::anyhow!(e)))?;
    let summary = format!(
        "observed {:.1} s: {} entries of {} at most {}; invalid +{}, drop +{}, early_drop +{}, insert_failed +{}",
        result.run.seconds,
        result.last.entries,
        result.last.limit,
        result.most_entries,
        result.difference.invalid,
        result.difference.drop,
        result.difference.early_drop,
        result.difference.insert_failed,
    );
    report.finish(&result, &summary)?;
    Ok(Exit::Ok)
}
