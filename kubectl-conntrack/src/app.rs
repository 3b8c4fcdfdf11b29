//! Subcommands from their options to their exit code: the shell around everything else.

mod session;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use canary_record::result::Config;
use canary_runtime::exit::{self, Exit, Usage};
use indicatif::{ProgressBar, ProgressStyle};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Serialize;

use crate::cli::{Cli, ClusterArgs, Command, ConfirmArgs};
pub use crate::diagnose::diagnosis;
use crate::experiment::experimented;
pub use crate::experiment::{experiment, needs};
pub use crate::load::load;
use crate::output::{self, Shown as _};
use crate::report::Cluster;
pub use crate::run::Folder;
pub use crate::tune::tune;
pub use crate::witness::watch;
use crate::{manifests, plan, preflight};
pub use session::{Job, Session, signals};

/// Runs the command line.
pub async fn main(cli: Cli, config: Config) -> ExitCode {
    exit::code(Box::pin(command(cli.command, &config)).await, anyhow::Error::is::<Usage>)
}

/// Does `$work` in the cluster that `$args` name, where the user means it if it changes nodes; keeps the
/// result and shows it. Its verdict is the exit code.
macro_rules! done {
    ($word:literal, $work:path, $args:ident, $config:expr, $confirm:expr) => {{
        let of = &$args.cluster;
        let place = connect(of, concat!("conntrack-", $word)).await?;
        confirmed($confirm, &place.1.context)?;
        let file = of.save.as_deref().map(|dir| (dir, concat!($word, ".json")));
        let work = async |job: Job<'_>| Box::pin($work(job, &$args)).await;
        let (result, whole) = kept(place, $config, file, work).await?;
        print(&output::text(&result, $args.output, std::io::stdout().is_terminal())?)?;
        // A result that was not kept as asked is no success; what is worse says more.
        Ok(result.exit().unless(!whole))
    }};
}

async fn command(command: Command, config: &Config) -> anyhow::Result<Exit> {
    match command {
        Command::Diagnose(args) => done!("diagnose", diagnosis, args, config, None),
        Command::Load(args) => done!("load", load, args, config, None),
        Command::Witness(args) => done!("witness", watch, args, config, None),
        Command::Tune(args) => done!("tune", tune, args, config, Some(&args.confirm)),
        Command::Experiment(args) => experimented(args).await,
        Command::Manifests(args) => {
            let yaml = manifests::yaml(args.set, &args.images, args.namespace.as_deref())?;
            print(&yaml).map(|()| Exit::Ok)
        }
    }
}

/// The cluster of the kubeconfig's context, which answers, with `namespace` unless another is named.
pub async fn connect(args: &ClusterArgs, namespace: &str) -> anyhow::Result<(Client, Cluster)> {
    let kubeconfig = Kubeconfig::read();
    let current = kubeconfig.as_ref().map(|k| k.current_context.clone());
    let current = current.unwrap_or_else(|_| Some("in-cluster".to_owned()));
    let context = args.context.clone().or(current).unwrap_or_default();
    let options =
        KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let config = match kubeconfig {
        Err(e) if args.context.is_none() => {
            kube::Config::incluster().map_err(|_| e).context("no kubeconfig")?
        }
        read => {
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
    Ok((client, Cluster { context, version: version.git_version, namespace }))
}

/// Where there are options for it, ends unless the user gives the context's name, by option or typed.
pub fn confirmed(args: Option<&ConfirmArgs>, context: &str) -> anyhow::Result<()> {
    let Some(args) = args else { return Ok(()) };
    let name = match &args.confirm {
        Some(name) => name.clone(),
        None if std::io::stdin().is_terminal() => {
            eprint!("This changes nodes of the cluster '{context}'. Type its context's name: ");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("cannot read the answer")?;
            line.trim().to_owned()
        }
        None => bail!(Usage(format!("this changes nodes of the cluster: --confirm {context}"))),
    };
    if name != context {
        bail!(Usage(format!("'{name}' is not the context's name, '{context}': nothing done")));
    }
    Ok(())
}

/// How far a run is: one live line on a terminal, a line each elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    last: std::cell::RefCell<String>,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, last: std::cell::RefCell::default() }
    }

    fn say(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            // Numbers that count down are for the live line.
            None if [what, &self.last.borrow()].iter().all(|s| s.contains(" pods at work")) => {}
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
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to stdout"),
    }
}

/// Does `work` with progress and signals, and keeps its result as a file of a folder, where one is
/// named. False beside it where not everything was kept, which is said.
pub(crate) async fn kept<T: Serialize>(
    (client, cluster): (Client, Cluster),
    config: &Config,
    file: Option<(&Path, &str)>,
    work: impl AsyncFnOnce(Job<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<(T, bool)> {
    let signals = signals()?;
    if let Some((dir, _)) = file {
        std::fs::create_dir_all(dir).with_context(|| format!("--save {}", dir.display()))?;
    }
    let progress = Progress::new();
    let folder = Folder::new(file.map(|(dir, _)| dir));
    let say = |s: &str| progress.say(s);
    let job = Job { client: &client, cluster, config, signals, folder: folder.clone(), say: &say };
    let done = work(job).await;
    progress.end();
    if let (Ok(result), Some((_, name))) = (&done, file) {
        folder.save("", name, result);
    }
    let whole = folder.whole();
    Ok((done?, whole))
}

/// The Linux nodes, of which one at least is ready.
pub(crate) async fn nodes(
    client: &Client,
    selector: Option<&str>,
) -> anyhow::Result<Vec<plan::Node>> {
    let nodes = preflight::nodes(client, selector).await?;
    if nodes.iter().all(|n| n.unusable.is_some()) {
        let what = selector.map_or(String::new(), |s| format!(" with --nodes {s}"));
        bail!("no Linux node{what} is ready");
    }
    Ok(nodes)
}

/// Those that are ready, and why others are not.
pub async fn usable(
    client: &Client,
    selector: Option<&str>,
) -> anyhow::Result<(Vec<plan::Node>, Vec<String>)> {
    let nodes = nodes(client, selector).await?.into_iter();
    let (usable, other): (Vec<_>, Vec<_>) = nodes.partition(|n| n.unusable.is_none());
    let why = |n: plan::Node| Some(format!("{}: {}", n.name, n.unusable?));
    Ok((usable, other.into_iter().filter_map(why).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A result that cannot be kept is given all the same, and that is no success; a worse exit code stays.
    #[tokio::test]
    async fn a_result_that_cannot_be_kept_is_given() {
        let all = tempfile::tempdir().unwrap();
        let dir = all.path().join("results");
        let config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"));
        let client = Client::try_from(config).unwrap();
        let (context, version) = ("test".to_owned(), String::new());
        let cluster = Cluster { context, version, namespace: String::new() };
        let work = async |_: Job<'_>| {
            // While it works, its folder goes and something else comes in its place.
            std::fs::remove_dir(&dir)?;
            std::fs::write(&dir, "")?;
            Ok(7)
        };
        let file = Some((dir.as_path(), "load.json"));
        let done = kept((client, cluster), &Config::new(), file, work).await.unwrap();
        assert_eq!(done, (7, false));
        let codes = [Exit::Ok, Exit::Vulnerable, Exit::Inconclusive].map(|e| e.unless(!done.1));
        assert_eq!(codes, [Exit::Failed, Exit::Vulnerable, Exit::Inconclusive]);
    }
}
