//! Subcommands from their options to their exit code: the shell around everything else.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use canary_record::names::EndedBy;
use canary_record::result::load::LoadResult;
use canary_record::result::{Clock, Config};
use canary_runtime::cli::derive;
use canary_runtime::exit::Exit;
use canary_runtime::shutdown::Shutdown;
use indicatif::{ProgressBar, ProgressStyle};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Serialize;

use crate::cli::{
    Cli, ClusterArgs, Command, ConfirmArgs, DiagnoseArgs, ExperimentArgs, ImageArgs, LoadArgs,
    Plain, TuneArgs, WitnessArgs,
};
use crate::experiment::journal::Journal;
use crate::experiment::{Experiment, Signal};
use crate::objects::{Images, Run};
use crate::report::{Cluster, DiagnoseResult};
use crate::run::{self, Ground, Stop};
use crate::tune::{Tune, TuneResult};
use crate::witness::{ClusterWitness, Witness};
use crate::{diagnose, each_node, experiment, load, manifests, output, plan, preflight, witness};

/// Runs the command line.
pub async fn main(cli: Cli, config: Config) -> ExitCode {
    let done = match cli.command {
        Command::Diagnose(args) => Box::pin(diagnosed(args, &config)).await,
        Command::Load(args) => Box::pin(loaded(args, &config)).await,
        Command::Witness(args) => Box::pin(witnessed(args, &config)).await,
        Command::Experiment(args) => Box::pin(experimented(args)).await,
        Command::Tune(args) => Box::pin(tuned(args, &config)).await,
        Command::Manifests(args) => {
            manifests::yaml(args.set, &images(&args.images), args.namespace.as_deref())
                .and_then(|text| print(&text).map(|()| Exit::Ok))
        }
    };
    match done {
        Ok(exit) => exit.into(),
        Err(e) => {
            eprintln!("kubectl-conntrack: {e:#}");
            if e.is::<Unconfirmed>() { Exit::Usage.into() } else { Exit::Failed.into() }
        }
    }
}

/// A cluster that answers.
pub struct Connected {
    /// Its API server.
    pub client: Client,
    /// Which.
    pub cluster: Cluster,
}

/// The cluster of the kubeconfig's context, with `namespace` unless another is named.
pub async fn connect(args: &ClusterArgs, namespace: &str) -> anyhow::Result<Connected> {
    let kubeconfig = Kubeconfig::read();
    let context = match (&args.context, &kubeconfig) {
        (Some(name), _) => name.clone(),
        (None, Ok(k)) => k.current_context.clone().unwrap_or_default(),
        (None, Err(_)) => "in-cluster".to_owned(),
    };
    let config = match (&args.context, kubeconfig) {
        (None, Err(e)) => kube::Config::incluster().map_err(|_| e).context("no kubeconfig")?,
        (_, read) => {
            let options =
                KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
            kube::Config::from_custom_kubeconfig(read?, &options).await.context("kubeconfig")?
        }
    };
    let client = Client::try_from(config).context("kubeconfig")?;
    let version = tokio::time::timeout(Duration::from_secs(15), client.apiserver_version())
        .await
        .map_err(|_| anyhow::anyhow!("no answer within 15 s"))
        .and_then(|v| Ok(v?))
        .with_context(|| format!("the API server of context '{context}' does not answer"))?;
    let namespace = args.namespace.clone().unwrap_or_else(|| namespace.to_owned());
    Ok(Connected { client, cluster: Cluster { context, version: version.git_version, namespace } })
}

/// Nobody said that this cluster is meant.
#[derive(Debug, thiserror::Error)]
pub enum Unconfirmed {
    /// There is no terminal to ask at.
    #[error("this changes nodes of the cluster: --confirm {0}")]
    Unasked(String),
    /// Another name was given.
    #[error("'{0}' is not the context's name, '{1}': nothing done")]
    Other(String, String),
}

/// Ends unless the user gives the context's name, by option or typed.
pub fn confirmed(args: &ConfirmArgs, context: &str) -> anyhow::Result<()> {
    let name = match &args.confirm {
        Some(name) => name.clone(),
        None if std::io::stdin().is_terminal() => {
            eprint!("This changes nodes of the cluster '{context}'. Type its context's name: ");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("cannot read the answer")?;
            line.trim().to_owned()
        }
        None => return Err(Unconfirmed::Unasked(context.to_owned()).into()),
    };
    if name == context { Ok(()) } else { Err(Unconfirmed::Other(name, context.to_owned()).into()) }
}

/// The images' whole names.
#[must_use]
pub fn images(args: &ImageArgs) -> Images {
    let of = |name| format!("{}/{name}:{}", args.registry.trim_end_matches('/'), args.tag);
    Images { boom_server: of("boom-server"), load_client: of("load-client") }
}

/// A run's identifier: unique, and a label's value.
#[must_use]
pub fn run_id() -> String {
    format!("{}-{}", jiff::Timestamp::now().as_millisecond(), std::process::id())
}

/// How far a run is: one live line on a terminal, a line each elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    last: std::cell::RefCell<String>,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, last: std::cell::RefCell::default() }
    }

    fn say(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            // Numbers that count down are for the live line.
            None if self.last.borrow().split(" pods at work").count() > 1
                && what.contains(" pods at work") => {}
            None => eprintln!("{what}"),
        }
        what.clone_into(&mut self.last.borrow_mut());
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Writes to stdout; a reader that went away is no error of the run.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to stdout"),
    }
}

/// Does `work` with progress and signals, and keeps its result as `file`, where there is a folder.
async fn kept<T: Serialize>(
    save: Option<&Path>,
    file: &str,
    work: impl AsyncFnOnce(&mut Shutdown, &dyn Fn(&str)) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut shutdown = Shutdown::catch()?;
    if let Some(dir) = save {
        std::fs::create_dir_all(dir).with_context(|| format!("--save {}", dir.display()))?;
    }
    let progress = Progress::new();
    let done = work(&mut shutdown, &|s| progress.say(s)).await;
    progress.end();
    let result = done?;
    if let Some(dir) = save {
        run::save(dir, file, &result)?;
    }
    Ok(result)
}

/// Writes a result.
fn plain<T: Serialize>(result: &T, output: Plain, text: String) -> anyhow::Result<()> {
    print(&match output {
        Plain::Table => text,
        Plain::Json => serde_json::to_string_pretty(result)?,
    })
}

async fn diagnosed(args: DiagnoseArgs, config: &Config) -> anyhow::Result<Exit> {
    let Connected { client, cluster } = connect(&args.cluster, "conntrack-diagnose").await?;
    let result = kept(args.save.as_deref(), "diagnose.json", async |shutdown, say| {
        let signalled = async || shutdown.signalled().await;
        Box::pin(diagnosis(&client, cluster, &args, config, signalled, say)).await
    })
    .await?;
    print(&output::text(&result, args.output, std::io::stdout().is_terminal())?)?;
    Ok(result.verdict.into())
}

/// A diagnosis of the cluster behind `client`, until its end or until `signalled`; what it made is
/// removed either way. An error says that nothing was measured and what to mend.
pub async fn diagnosis(
    client: &Client,
    cluster: Cluster,
    args: &DiagnoseArgs,
    config: &Config,
    mut signalled: impl AsyncFnMut() -> EndedBy,
    say: &dyn Fn(&str),
) -> anyhow::Result<DiagnoseResult> {
    let clock = Clock::start();
    let run = Run {
        id: run_id(),
        namespace: cluster.namespace.clone(),
        images: images(&args.cluster.images),
    };
    let foreign = args.cluster.namespace.is_some();
    say(&format!("context {}, namespace {}, run {}", cluster.context, run.namespace, run.id));
    run::permitted(client, &run.namespace, &diagnose::needs(!foreign)).await?;
    let nodes = preflight::nodes(client, args.nodes.as_deref()).await?;
    if nodes.iter().all(|n| n.unusable.is_some()) {
        let what = args.nodes.as_deref().map_or(String::new(), |s| format!(" with --nodes {s}"));
        anyhow::bail!("no Linux node{what} is ready");
    }
    let (nodes, left_out) = plan::sampled(nodes, args.sample.map(|n| n as usize));
    let mut options = diagnose::Options {
        wave: args.parallel as usize,
        timeout: args.timeout,
        save: args.save.clone(),
        families: args.family.clone(),
        keep: args.cluster.keep,
        no_forge: None,
    };
    let ground = Ground::take(client, &run, foreign, args.cluster.replace).await?;
    let mut rows = Vec::new();
    let work = async {
        options.no_forge = diagnose::tried_dry(client, &run, &nodes).await?;
        diagnose::run(client, &run, &options, nodes.clone(), &mut rows, say).await
    };
    let ended = tokio::select! {
        ended = work => ended.map(|()| EndedBy::Completed),
        signal = signalled() => Ok(signal),
    };
    let mut reasons = ground.end(args.cluster.keep, &mut signalled, say).await;
    let ended_by = match ended {
        Ok(by) => by,
        // Nothing was measured, and the mend is the user's.
        Err(e) if rows.is_empty() && !matches!(e, Stop::Api(_)) => {
            return Err(match reasons.first() {
                Some(left) => anyhow::Error::from(e).context(left.clone()),
                None => e.into(),
            });
        }
        Err(e) => {
            reasons.push(format!("the run ended before its end: {e}"));
            EndedBy::Error
        }
    };
    if matches!(ended_by, EndedBy::Sigint | EndedBy::Sigterm) {
        reasons.push(format!("the run was ended by {ended_by}"));
    }
    let known: std::collections::BTreeSet<_> = rows.iter().map(|r| r.name.clone()).collect();
    let cut = nodes.iter().filter(|n| !known.contains(&n.name));
    rows.extend(cut.map(|n| diagnose::unproved(n, "the run ended before its turn".to_owned())));
    let mut config = config.clone();
    if !left_out.is_empty() {
        derive(&mut config, "left-out-by-sample", &left_out.join(","));
    }
    let record =
        clock.run("kubectl-conntrack diagnose", env!("CARGO_PKG_VERSION"), ended_by, config);
    Ok(DiagnoseResult::new(record, cluster, rows, reasons))
}

async fn loaded(args: LoadArgs, config: &Config) -> anyhow::Result<Exit> {
    let Connected { client, cluster } = connect(&args.cluster, "conntrack-load").await?;
    let result = kept(args.save.as_deref(), "load.json", async |shutdown, say| {
        let signalled = async || shutdown.signalled().await;
        Box::pin(load(&client, cluster, &args, config, signalled, say)).await
    })
    .await?;
    plain(&result, args.output, load::text(&result))?;
    Ok(result.verdict.into())
}

/// A load on the cluster behind `client`, until its end or until `signalled`; what it made is
/// removed either way, and what the clients had counted by then is in the result.
pub async fn load(
    client: &Client,
    cluster: Cluster,
    args: &LoadArgs,
    config: &Config,
    mut signalled: impl AsyncFnMut() -> EndedBy,
    say: &dyn Fn(&str),
) -> anyhow::Result<LoadResult> {
    let clock = Clock::start();
    let run =
        Run { id: run_id(), namespace: cluster.namespace, images: images(&args.cluster.images) };
    let foreign = args.cluster.namespace.is_some();
    say(&format!("context {}, namespace {}, run {}", cluster.context, run.namespace, run.id));
    run::permitted(client, &run.namespace, &load::needs(!foreign)).await?;
    let options = load::Options {
        clients: args.clients,
        rate: args.rate,
        duration: args.duration,
        timeout: args.timeout,
        save: args.save.clone(),
        fail_on: args.fail_on.clone(),
    };
    let ground = Ground::take(client, &run, foreign, args.cluster.replace).await?;
    let mut load = load::Load::new(client, &run, &options, "load-client");
    let ended = tokio::select! {
        ended = load.go(say) => ended.map(|()| EndedBy::Completed),
        signal = signalled() => Ok(signal),
    };
    say("results");
    let early = !matches!(ended, Ok(EndedBy::Completed));
    let collected = match &ended {
        // No pod has anything to tell.
        Err(Stop::Image { .. } | Stop::Refused(_)) => load::Collected::default(),
        _ => load.collect(early).await,
    };
    if let Some(dir) = &options.save {
        for (pod, result) in &collected.results {
            run::save(dir, &format!("{pod}.json"), result)?;
        }
    }
    let mut reasons = ground.end(args.cluster.keep, &mut signalled, say).await;
    let left = reasons.first().cloned();
    match &ended {
        Ok(EndedBy::Sigint | EndedBy::Sigterm) => {
            reasons.push("the run was ended by a signal".to_owned());
        }
        Err(e) => reasons.push(format!("the run ended before its end: {e}")),
        Ok(_) => {}
    }
    let why = reasons.join("; ");
    let ended_by = *ended.as_ref().unwrap_or(&EndedBy::Error);
    let record =
        clock.run("kubectl-conntrack load", env!("CARGO_PKG_VERSION"), ended_by, config.clone());
    match (load::judged(collected, &options, reasons, record)?, ended) {
        (Some(result), _) => Ok(result),
        (None, Err(e)) => Err(match left {
            Some(left) => anyhow::Error::from(e).context(left),
            None => e.into(),
        }),
        (None, Ok(_)) => anyhow::bail!("no client left a result: {why}"),
    }
}

async fn tuned(args: TuneArgs, config: &Config) -> anyhow::Result<Exit> {
    let Connected { client, cluster } = connect(&args.cluster, "conntrack-tune").await?;
    confirmed(&args.confirm, &cluster.context)?;
    let result = kept(args.save.as_deref(), "tune.json", async |shutdown, say| {
        let signalled = async || shutdown.signalled().await;
        Box::pin(tune(&client, cluster, &args, config, signalled, say)).await
    })
    .await?;
    plain(&result, args.output, result.text())?;
    Ok(result.verdict().into())
}

/// Sets sysctls on nodes of the cluster behind `client`, until the end of `--for` or until
/// `signalled`, and puts the old values back.
pub async fn tune(
    client: &Client,
    cluster: Cluster,
    args: &TuneArgs,
    config: &Config,
    mut signalled: impl AsyncFnMut() -> EndedBy,
    say: &dyn Fn(&str),
) -> anyhow::Result<TuneResult> {
    let clock = Clock::start();
    let run = Run {
        id: run_id(),
        namespace: cluster.namespace.clone(),
        images: images(&args.cluster.images),
    };
    let foreign = args.cluster.namespace.is_some();
    say(&format!("context {}, namespace {}, run {}", cluster.context, run.namespace, run.id));
    run::permitted(client, &run.namespace, &each_node::needs(!foreign)).await?;
    let (nodes, unusable) = usable(client, args.nodes.as_deref()).await?;
    let ground = Ground::take(client, &run, foreign, args.cluster.replace).await?;
    let mut held = Tune::new(client, &run, &nodes, "tune");
    let mut reasons = unusable;
    let kept = args.cluster.keep;
    let set = tokio::select! {
        set = held.set(&args.sysctls, args.timeout, kept, say) => set.map(Some),
        _ = signalled() => {
            reasons.push("ended before every node was set".to_owned());
            Ok(None)
        }
    };
    let mut ended = Ok(EndedBy::Completed);
    let mut rows = Vec::new();
    match set {
        Err(e) => ended = Err(e),
        Ok(None) => ended = Ok(EndedBy::Sigint),
        Ok(Some(set)) => {
            rows = set;
            let n = rows.iter().filter(|n| !n.changes.is_empty()).count();
            say(&format!("set and read back on {n} of {} nodes", rows.len()));
            if !kept && n > 0 {
                let until = args.hold.map(|d| tokio::time::Instant::now() + d);
                tokio::select! {
                    () = held.hold(until) => {}
                    // Without a time this is how it is ended.
                    signal = signalled() => if until.is_some() { ended = Ok(signal) },
                }
            }
        }
    }
    if !kept {
        say("putting the old values back");
        tokio::select! {
            back = held.put_back() => match back {
                Ok(back) if ended.is_ok() => rows = back,
                Ok(_) => {}
                Err(e) => reasons.push(format!("not known to be put back: {e}")),
            },
            _ = signalled() => reasons.push("ended before the nodes were read back".to_owned()),
        }
    }
    reasons.extend(ground.end(args.cluster.keep, &mut signalled, say).await);
    let ended_by = match ended {
        Ok(by) => by,
        Err(e) if rows.is_empty() => return Err(e.into()),
        Err(e) => {
            reasons.push(format!("the run ended before its end: {e}"));
            EndedBy::Error
        }
    };
    let record =
        clock.run("kubectl-conntrack tune", env!("CARGO_PKG_VERSION"), ended_by, config.clone());
    Ok(TuneResult::new(record, cluster, rows, reasons, kept))
}

async fn witnessed(args: WitnessArgs, config: &Config) -> anyhow::Result<Exit> {
    let Connected { client, cluster } = connect(&args.cluster, "conntrack-witness").await?;
    let result = kept(args.save.as_deref(), "witness.json", async |shutdown, say| {
        let signalled = async || shutdown.signalled().await;
        Box::pin(watch(&client, cluster, &args, config, signalled, say)).await
    })
    .await?;
    plain(&result, args.output, result.text())?;
    Ok(result.verdict.into())
}

/// A witness on every node of the cluster behind `client`, for a time or until `signalled`; what
/// each had seen by then is in the result.
pub async fn watch(
    client: &Client,
    cluster: Cluster,
    args: &WitnessArgs,
    config: &Config,
    mut signalled: impl AsyncFnMut() -> EndedBy,
    say: &dyn Fn(&str),
) -> anyhow::Result<ClusterWitness> {
    let clock = Clock::start();
    let run = Run {
        id: run_id(),
        namespace: cluster.namespace.clone(),
        images: images(&args.cluster.images),
    };
    let foreign = args.cluster.namespace.is_some();
    say(&format!("context {}, namespace {}, run {}", cluster.context, run.namespace, run.id));
    run::permitted(client, &run.namespace, &witness::needs(!foreign)).await?;
    let (nodes, mut reasons) = usable(client, args.nodes.as_deref()).await?;
    let ground = Ground::take(client, &run, foreign, args.cluster.replace).await?;
    let mut witness = Witness::new(client, &run, &nodes);
    let ended = tokio::select! {
        ended = witness.go(args.duration, args.timeout, say) => ended.map(|()| EndedBy::Completed),
        signal = signalled() => Ok(signal),
    };
    // No pod has anything to tell.
    let found = if let Err(Stop::Image { .. } | Stop::Refused(_)) = &ended {
        Ok(Vec::new())
    } else {
        say("results");
        let early = !matches!(ended, Ok(EndedBy::Completed));
        tokio::select! {
            found = witness.collect(early) => found,
            _ = signalled() => Err(Stop::Refused("ended before the results were read".to_owned())),
        }
    };
    let left = ground.end(args.cluster.keep, &mut signalled, say).await;
    let ended_by = match ended {
        Ok(by) => by,
        Err(e) if !matches!(e, Stop::Api(_)) => {
            return Err(match left.first() {
                Some(left) => anyhow::Error::from(e).context(left.clone()),
                None => e.into(),
            });
        }
        Err(e) => {
            reasons.push(format!("the run ended before its end: {e}"));
            EndedBy::Error
        }
    };
    reasons.extend(left);
    if matches!(ended_by, EndedBy::Sigint | EndedBy::Sigterm) {
        reasons.push(format!("the run was ended by {ended_by}"));
    }
    let found = found.unwrap_or_else(|e| {
        reasons.push(format!("results could not be read: {e}"));
        Vec::new()
    });
    witness::save(args.save.as_deref(), &found)?;
    let record =
        clock.run("kubectl-conntrack witness", env!("CARGO_PKG_VERSION"), ended_by, config.clone());
    Ok(ClusterWitness::new(record, cluster, &found, witness.names(), reasons))
}

async fn experimented(args: ExperimentArgs) -> anyhow::Result<Exit> {
    let Connected { client, cluster } = connect(&args.cluster, "conntrack-experiment").await?;
    confirmed(&args.confirm, &cluster.context)?;
    let dir = args.save.clone().unwrap_or_else(|| {
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        format!("results/cluster-{now}").into()
    });
    let result = kept(None, "", async |shutdown, say| {
        let signalled = async || shutdown.signalled().await;
        Box::pin(experiment(&client, cluster, &args, &dir, signalled, say)).await
    })
    .await?;
    print(&conntrack_lab::report::text::render(&result, conntrack_lab::report::text::width()))?;
    print(&dir.join("report.html").display().to_string())?;
    Ok(conntrack_lab::app::exit(&result))
}

/// The experiment on the cluster behind `client`, judged from what it left in `dir`.
pub async fn experiment(
    client: &Client,
    cluster: Cluster,
    args: &ExperimentArgs,
    dir: &Path,
    signalled: impl AsyncFnMut() -> EndedBy,
    say: &dyn Fn(&str),
) -> anyhow::Result<conntrack_lab::document::lab::LabResult> {
    let run = Run {
        id: run_id(),
        namespace: cluster.namespace.clone(),
        images: images(&args.cluster.images),
    };
    let foreign = args.cluster.namespace.is_some();
    say(&format!("context {}, namespace {}, run {}", cluster.context, run.namespace, run.id));
    run::permitted(client, &run.namespace, &experiment::needs(!foreign)).await?;
    let (nodes, unusable) = usable(client, None).await?;
    let options = experiment::Options {
        clients: args.clients.clone(),
        step: args.step,
        table: args.table_size,
        table_command: args.table_command.clone(),
        hold_off_drop: args.hold_off_drop,
        timeout: args.timeout,
    };
    let mut journal = Journal::begin(dir)?;
    let clients: Vec<_> = args.clients.iter().map(u32::to_string).collect();
    let kernel = |n: &plan::Node| format!("{} on {}, kubelet {}", n.kernel, n.name, n.kubelet);
    journal.told("context", &cluster.context)?;
    journal.told("started", jiff::Timestamp::now())?;
    journal.told("clients", clients.join(" "))?;
    journal.told("seconds", args.step.as_secs())?;
    journal.told("table-size", args.table_size.map_or("none".to_owned(), |n| n.to_string()))?;
    journal.told("hold-off-drop", u8::from(args.hold_off_drop))?;
    journal.told("kernel", nodes.iter().map(kernel).collect::<Vec<_>>().join("; "))?;
    journal.told("kubernetes", &cluster.version)?;
    for why in unusable {
        journal.doubt(&why)?;
    }
    let ground = Ground::take(client, &run, foreign, args.cluster.replace).await?;
    let mut signal = Signal::new(signalled);
    let done = Box::pin(
        Experiment::new(client, &run, &nodes, &options, &mut journal, &mut signal).go(say),
    )
    .await;
    // Nothing was measured, and the mend is the user's.
    let refused = matches!(done, Err(Stop::Image { .. } | Stop::Refused(_)));
    let ended_by = match &done {
        Ok(()) => signal.by.unwrap_or(EndedBy::Completed),
        Err(e) => {
            journal.doubt(&format!("the run ended before its end: {e}"))?;
            EndedBy::Error
        }
    };
    if let Some(by) = signal.by {
        journal.doubt(&format!("the run was ended by {by}"))?;
    }
    // One signal has ended the run; the next one ends the waiting for what it made.
    let mut again = async || signal.next().await;
    for left in ground.end(args.cluster.keep, &mut again, say).await {
        journal.doubt(&left)?;
    }
    journal.told("ended", jiff::Timestamp::now())?;
    journal.wrote(&format!("end {ended_by}"))?;
    if refused {
        done?;
    }
    Ok(conntrack_lab::cluster::run(dir)?)
}

/// The nodes that are ready, and why others are not.
pub async fn usable(
    client: &Client,
    selector: Option<&str>,
) -> anyhow::Result<(Vec<plan::Node>, Vec<String>)> {
    let (nodes, unusable): (Vec<_>, Vec<_>) =
        preflight::nodes(client, selector).await?.into_iter().partition(|n| n.unusable.is_none());
    if nodes.is_empty() {
        let what = selector.map_or(String::new(), |s| format!(" with --nodes {s}"));
        anyhow::bail!("no Linux node{what} is ready");
    }
    let why = unusable
        .iter()
        .map(|n| format!("{}: {}", n.name, n.unusable.as_deref().unwrap_or("not ready")));
    Ok((nodes, why.collect()))
}
