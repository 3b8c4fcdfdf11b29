//! `make test-k8s`: what must hold on the cluster of the current context, whatever protects its
//! nodes or does not. The claims follow from what the diagnosis finds, each has its positive
//! control, and what cannot be tried there is SKIPPED with the reason. For a test cluster: nodes are
//! changed and put back.
//!
//! Exit status: 0 all of it held, 1 something did not, 2 wrong usage.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use canary_record::names::{Diagnosis, EndedBy, Forgery, LoadVerdict, Verdict};
use canary_record::prometheus::{self, Sample};
use canary_record::result::Config;
use canary_runtime::exit::{self, Exit, Usage};
use clap::Parser;
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Pod, Service};
use kube::api::{DeleteParams, LogParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use kubectl_conntrack::app::{self, Folder, Job, Session};
use kubectl_conntrack::cli::{Cli, ClusterArgs, Command, ConfirmArgs};
use kubectl_conntrack::each_node::EachNode;
use kubectl_conntrack::manifests::{self, Set};
use kubectl_conntrack::output::Shown as _;
use kubectl_conntrack::plan::{Node, Path};
use kubectl_conntrack::report::{Cluster, DiagnoseResult};
use kubectl_conntrack::run::Ground;
use kubectl_conntrack::tune::{Sysctl, Tune};
use kubectl_conntrack::verdict::PathRow;
use tokio::time::Instant;

/// What must hold on the cluster of the current context; changes nodes and puts them back.
#[derive(Debug, Parser)]
#[command(name = "test-k8s", max_term_width = 100)]
struct Args {
    /// Clients of the load
    #[arg(long, value_name = "N", default_value_t = 50)]
    clients: u32,
    /// Consent.
    #[command(flatten)]
    confirm: ConfirmArgs,
    /// Which cluster.
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// A path of a node: its name, its family, the path.
type RowKey = (String, String, Path);

struct Test<'a> {
    ground: &'a Ground,
    cluster: Cluster,
    config: &'a Config,
    nodes: Vec<Node>,
    args: &'a Args,
    failed: usize,
    skipped: usize,
}

/// How long a pod may take to start, and an outcome to show.
const SOON: Duration = Duration::from_secs(90);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let ran = test(&args).await.map(|failed| if failed == 0 { Exit::Ok } else { Exit::Failed });
    exit::code(ran, anyhow::Error::is::<Usage>)
}

async fn test(args: &Args) -> anyhow::Result<usize> {
    let signals = app::signals()?;
    let (client, cluster) = app::connect(&args.cluster, "conntrack-test").await?;
    app::confirmed(Some(&args.confirm), &cluster.context)?;
    let (nodes, _) = app::usable(&client, None).await?;
    let (config, say) = (Config::new(), &quiet);
    let (of, folder) = (cluster.clone(), Folder::default());
    let job = Job { client: &client, cluster: of, config: &config, signals, folder, say };
    let mut session = Session::begin(job, &args.cluster, app::needs).await?;
    let ground = session.ground().await?;
    let mut test =
        Test { ground: &ground, cluster, config: &config, nodes, args, failed: 0, skipped: 0 };
    let done = session.or(Box::pin(test.all())).await;
    for left in session.end(&ground).await {
        test.fail(&left);
    }
    done.with_context(|| format!("ended by {}", session.by.map_or("?", EndedBy::as_str)))??;
    println!(
        "{} claims did not hold, {} skipped, on context {}",
        test.failed, test.skipped, test.cluster.context
    );
    Ok(test.failed)
}

impl Test<'_> {
    fn claim(&mut self, holds: bool, what: &str) {
        if holds {
            println!("ok      {what}");
        } else {
            self.fail(what);
        }
    }

    fn fail(&mut self, what: &str) {
        println!("FAIL    {what}");
        self.failed += 1;
    }

    fn skip(&mut self, what: &str) {
        println!("SKIPPED {what}");
        self.skipped += 1;
    }

    /// A subcommand as a user writes it, on this cluster, in a namespace of its own.
    fn command(&self, line: &str) -> anyhow::Result<(Command, Job<'_>)> {
        let images = &self.args.cluster.images;
        let tail = ["--registry", &images.registry, "--tag", &images.tag];
        let words = ["conntrack"].into_iter().chain(line.split(' ')).chain(tail);
        let cli = Cli::try_parse_from(words)?;
        let word = line.split(' ').next().unwrap_or_default();
        let namespace = format!("conntrack-{word}");
        let cluster = Cluster { namespace, ..self.cluster.clone() };
        let (signals, client) = (stream::pending().boxed_local(), &self.ground.client);
        let (config, folder) = (self.config, Folder::default());
        let job = Job { client, cluster, config, signals, folder, say: &quiet };
        Ok((cli.command, job))
    }

    async fn diagnose(&self) -> anyhow::Result<DiagnoseResult> {
        let (Command::Diagnose(args), job) = self.command("diagnose")? else { unreachable!() };
        app::diagnosis(job, &args).await
    }

    async fn all(&mut self) -> anyhow::Result<()> {
        let as_is = Box::pin(self.as_it_is()).await?;
        Box::pin(self.protections(&as_is)).await?;
        Box::pin(self.canary(&as_is)).await?;
        Box::pin(self.load()).await
    }

    /// The diagnosis of the cluster as it is: consistent in itself, and nothing left of it.
    async fn as_it_is(&mut self) -> anyhow::Result<DiagnoseResult> {
        let begun = Instant::now();
        let result = self.diagnose().await?;
        println!("{} ({:.0} s)", result.headline(), begun.elapsed().as_secs_f64());
        let (leaking, verdict) = (vulnerable(&result).len(), result.verdict);
        let what = format!("diagnose: {verdict:?} with {leaking} vulnerable paths");
        self.claim((verdict == Verdict::Vulnerable) == (leaking > 0), &what);
        let tried: BTreeSet<_> = rows(&result).map(|(_, p)| p.path).collect();
        self.claim(!tried.is_empty(), &format!("{} paths were tried", tried.len()));
        let control = rows(&result).filter(|(_, p)| p.path == Path::PodIp);
        let leaks: u64 = control.map(|(_, p)| p.leaked).sum();
        self.claim(leaks == 0, "nothing leaks on the way to a pod's own address");
        self.left_nothing("diagnose").await?;
        Ok(result)
    }

    async fn left_nothing(&mut self, subcommand: &str) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.ground.client.clone());
        let left = namespaces.get_opt(&format!("conntrack-{subcommand}")).await?;
        self.claim(left.is_none(), &format!("{subcommand} left nothing behind"));
        Ok(())
    }

    fn every_node(&self, set: Set) -> EachNode<'_> {
        EachNode::new(self.ground, &self.nodes, set, set.name())
    }

    /// Starts pods on every node that change it; gives why not, where they cannot.
    async fn hold(&self, set: Set) -> anyhow::Result<Option<String>> {
        let mut pods = self.every_node(set);
        pods.apply(|_| {}, |_| {}).await?;
        pods.wait(Instant::now() + SOON, &quiet, |p| p.ready).await?;
        let last = |log: &str| Ok::<_, String>(log.lines().last().unwrap_or_default().to_owned());
        let said = pods.words(Duration::ZERO, last).await;
        let ready = pods.watch.pods.values().filter(|p| p.ready).count();
        Ok((ready < self.nodes.len()).then(|| format!("{said:?}")))
    }

    /// Ends them and waits until each has put its node back.
    async fn release(&self, set: Set) -> anyhow::Result<()> {
        self.every_node(set).dismiss().await?;
        let what = format!("the pods of {} to go", set.name());
        until(SOON, &what, async || Ok(self.ground.named(set.name()).await?.is_empty())).await
    }

    /// be_liberal on every node, until it is put back; gives why not, where it cannot be set.
    async fn liberal(&self, tune: &mut Tune<'_>) -> anyhow::Result<Option<String>> {
        let sysctls = [Sysctl { name: "nf_conntrack_tcp_be_liberal".to_owned(), value: 1 }];
        let set = tune.set(&sysctls, SOON, false, &quiet).await?;
        let why: Vec<_> = set.iter().flat_map(|n| &n.reasons).map(String::as_str).collect();
        Ok(set.iter().any(|n| n.changes.is_empty()).then(|| why.join("; ")))
    }

    /// Each protection closes what it should of the paths that leaked, and its end lays them bare again.
    async fn protections(&mut self, as_is: &DiagnoseResult) -> anyhow::Result<()> {
        let before = vulnerable(as_is);
        if before.is_empty() {
            self.skip("protections: no path leaks here, so nothing would show that one protects");
            return Ok(());
        }
        match self.hold(Set::DropInvalid).await? {
            None => {
                let with = self.diagnose().await?;
                let left = vulnerable(&with);
                let why: BTreeSet<_> =
                    with.nodes.iter().flat_map(|n| &n.families).flat_map(|f| &f.reasons).collect();
                let why: Vec<_> = why.into_iter().take(3).map(String::as_str).collect();
                let (were, are, said) = (before.len(), left.len(), with.headline());
                let what = format!(
                    "overlays/drop-invalid: {were} vulnerable paths before, {are} with it: {said} {}",
                    why.join("; ")
                );
                self.claim(are == 0 && with.verdict == Verdict::Protected, &what);
            }
            Some(why) => {
                self.skip(&format!("overlays/drop-invalid cannot run on every node: {why}"));
            }
        }
        self.release(Set::DropInvalid).await?;
        let above: BTreeSet<_> = leaking(as_is, Forgery::AboveWindow);
        if above.is_empty() {
            self.skip("be_liberal: no above-window segment leaks here");
            return Ok(());
        }
        let (ground, nodes) = (self.ground, self.nodes.clone());
        let mut tune = Tune::new(ground, &nodes, "tune");
        if let Some(why) = self.liberal(&mut tune).await? {
            self.skip(&format!("be_liberal cannot be set on every node: {why}"));
        } else {
            let with = self.diagnose().await?;
            let (were, are) = (above.len(), leaking(&with, Forgery::AboveWindow).len());
            let what =
                format!("be_liberal: above-window leaked on {were} paths before, on {are} with it");
            self.claim(are == 0, &what);
        }
        let back = tune.put_back().await?;
        let whole = back.iter().flat_map(|n| &n.changes).all(|c| c.restored == Some(c.from));
        self.claim(whole, "be_liberal is as it was on every node");
        let after = vulnerable(&self.diagnose().await?);
        let (were, are) = (before.len(), after.len());
        let what = format!("without them: {were} vulnerable paths as before, {are}");
        self.claim(after == before, &what);
        Ok(())
    }

    fn deployments(&self) -> Api<Deployment> {
        self.ground.api()
    }

    async fn install(&self, deployments: &[&str], services: &[&str]) -> anyhow::Result<()> {
        let of = |kind, name| manifests::own(Set::Base, &self.ground.run, kind, name);
        for name in services {
            self.ground.apply::<Service>(&serde_json::from_value(of("Service", name))?).await?;
        }
        for name in deployments {
            let object = serde_json::from_value(of("Deployment", name))?;
            self.ground.apply::<Deployment>(&object).await?;
        }
        Ok(())
    }

    async fn boom_status(&self) -> anyhow::Result<Option<ContainerStatus>> {
        let pod = self.ground.living("boom-server").await?;
        Ok(pod.and_then(|p| p.status?.container_statuses?.pop()))
    }

    /// k8s/base on the path from another node: its alarm where the path leaks, its quiet where not.
    async fn canary(&mut self, as_is: &DiagnoseResult) -> anyhow::Result<()> {
        let cluster_ip: BTreeSet<_> = rows(as_is)
            .filter(|(_, p)| p.path == Path::ClusterIp)
            .map(|(_, p)| p.diagnosis)
            .collect();
        let all = |d: Diagnosis| cluster_ip.iter().all(|found| *found == Some(d));
        if cluster_ip.is_empty() {
            self.skip("the canary: one node alone has no path from another");
            return Ok(());
        }
        let exposed = all(Diagnosis::Unprotected);
        let iptables = as_is
            .nodes
            .iter()
            .all(|n| n.shown.proxy_mode.as_deref().is_none_or(|m| m == "iptables"));
        let held_off = all(Diagnosis::Dropped) && iptables;
        if !exposed && !held_off {
            let what = "the canary's alarm: the path from another node is not exposed on every node, and nothing \
                here takes what protects it away";
            self.skip(what);
            return Ok(());
        }
        self.install(&["boom-server", "canary-client"], &["boom-server"]).await?;
        if !exposed {
            self.counted("dropped", "a drop in force: the canary runs, above-window is dropped")
                .await;
            if let Some(why) = self.hold(Set::Unprotect).await? {
                self.skip(&format!(
                    "the canary's alarm: kube-proxy's drop cannot be held off: {why}"
                ));
                return self.release(Set::Unprotect).await;
            }
        }
        Box::pin(self.alarm()).await?;
        if !exposed {
            self.release(Set::Unprotect).await?;
            self.restart_boom().await?;
            self.counted("dropped", "the drop back in force: above-window dropped as before").await;
        }
        Ok(())
    }

    /// The path is exposed: CrashLoopBackOff, a message that says so, the log line that people look for,
    /// and a witness that names the Service. be_liberal ends it.
    async fn alarm(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let alarm = until(SOON, "boom-server to end", async || {
            Ok(self.boom_status().await?.is_some_and(|s| s.restart_count > 0))
        });
        let (alarm, seconds) = (alarm.await.is_ok(), begun.elapsed().as_secs_f64());
        self.claim(alarm, &format!("exposed: boom-server ended after {seconds:.0} s"));
        let message = self.boom_status().await?.and_then(|s| s.last_state?.terminated?.message);
        let message = message.unwrap_or_default();
        let first = message.lines().next().unwrap_or_default();
        let said = format!("its termination message: {first}");
        self.claim(first.starts_with("vulnerable"), &said);
        let logged = until(Duration::from_secs(30), "the client's log line", async || {
            let pods = self.ground.named("canary-client").await?;
            let pod = pods.first().context("no canary-client")?;
            // As many as kubectl logs -l gives.
            let params = LogParams { tail_lines: Some(10), ..LogParams::default() };
            let log = self.ground.api::<Pod>().logs(&pod.name_any(), &params).await?;
            Ok(log.contains("reset by peer"))
        });
        let logged = logged.await.is_ok();
        self.claim(logged, "kubectl logs -l app=client | grep 'reset by peer' finds it");
        let count = serde_json::json!({"spec": {"template": {"spec": {"containers": [
            {"name": "boom-server", "env": [{"name": "BOOM_ON_RESET", "value": "count"}]}]}}}});
        let params = PatchParams::default();
        self.deployments().patch("boom-server", &params, &Patch::Strategic(count)).await?;
        Box::pin(self.witness()).await?;
        let (ground, nodes) = (self.ground, self.nodes.clone());
        let mut tune = Tune::new(ground, &nodes, "tune-canary");
        if self.liberal(&mut tune).await?.is_none() {
            self.restart_boom().await?;
            self.counted("delivered", "be_liberal alone: above-window is delivered").await;
        } else {
            self.skip("be_liberal cannot be set on every node");
        }
        tune.put_back().await?;
        Ok(())
    }

    async fn witness(&mut self) -> anyhow::Result<()> {
        until(SOON, "a connection to be killed", async || self.counts("leaked").await).await?;
        let (Command::Witness(args), job) = self.command("witness --for 15s")? else {
            unreachable!()
        };
        let seen = match app::watch(job, &args).await {
            Ok(seen) => seen,
            Err(e) => {
                self.skip(&format!("witness cannot run here: {e:#}"));
                return Ok(());
            }
        };
        let service = format!("service {}/boom-server", self.ground.run.namespace);
        let named = seen.services.iter().any(|h| h.name.as_ref() == Some(&service));
        if seen.verdict == Verdict::Inconclusive && !named {
            self.skip(&format!("witness proves nothing here: {}", seen.table(false)));
        } else {
            let first = seen.table(false).lines().next().unwrap_or_default().to_owned();
            self.claim(named, &format!("witness names {service}: {first}"));
        }
        Ok(())
    }

    /// A new life for boom-server: one that ended waits up to five minutes for its next start.
    async fn restart_boom(&self) -> anyhow::Result<()> {
        for pod in self.ground.named("boom-server").await? {
            self.ground.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await?;
        }
        Ok(())
    }

    /// Claims that this becomes of above-window segments.
    async fn counted(&mut self, outcome: &str, claim: &str) {
        let what = format!("above-window {outcome}");
        let came = until(SOON, &what, async || self.counts(outcome).await).await.is_ok();
        self.claim(came, claim);
    }

    /// True once ten above-window segments had this outcome in boom-server's present life.
    async fn counts(&self, outcome: &str) -> anyhow::Result<bool> {
        let Some(pod) = self.ground.living("boom-server").await? else { return Ok(false) };
        let text = self.ground.metrics(&pod.name_any(), 9100).await.unwrap_or_default();
        let counted = |s: &Sample<'_>| {
            s.name == "boom_outcomes_total"
                && (s.label("forgery"), s.label("outcome")) == ("above-window", outcome)
        };
        let sum: f64 = prometheus::samples(&text).filter(counted).map(|s| s.value).sum();
        Ok(sum >= 10.0)
    }

    /// Many clients: every result is collected and fits the target's count; kubectl scale works too.
    async fn load(&mut self) -> anyhow::Result<()> {
        let clients = self.args.clients;
        let line = format!("load --clients {clients} --duration 20s");
        let (Command::Load(args), job) = self.command(&line)? else { unreachable!() };
        let result = app::load(job, &args).await?;
        let (merged, ok, all) = (result.merged, result.ok, result.attempts);
        let what = format!(
            "load: {merged} of {clients} results, {ok} of {all} connections succeeded; {}",
            result.reasons.join("; ")
        );
        let proved = result.verdict != LoadVerdict::Inconclusive;
        self.claim(merged == clients && proved, &what);
        self.left_nothing("load").await?;
        // In the base the target and the clients keep boom-server company, and distance.
        self.install(
            &["boom-server", "load-target", "load-client"],
            &["boom-server", "load-target"],
        )
        .await?;
        let begun = Instant::now();
        for (replicas, wanted) in [(clients, clients.cast_signed()), (0, 0)] {
            let scale = serde_json::json!({"spec": {"replicas": replicas}});
            let params = PatchParams::default();
            self.deployments().patch_scale("load-client", &params, &Patch::Merge(&scale)).await?;
            let what = format!("{replicas} load-clients");
            let scaled = until(2 * SOON, &what, async || {
                let d = self.deployments().get("load-client").await?;
                let ready = d.status.and_then(|s| s.ready_replicas).unwrap_or(0);
                let there = self.ground.named("load-client").await?.len();
                Ok(ready == wanted && (wanted > 0 || there == 0))
            });
            let scaled = scaled.await.is_ok();
            let seconds = begun.elapsed().as_secs();
            self.claim(scaled, &format!("kubectl scale to {replicas}: there after {seconds} s"));
        }
        Ok(())
    }
}

fn quiet(_: &str) {}

/// Asks each second until it is so; an error of one answer may pass.
async fn until(
    time: Duration,
    what: &str,
    mut so: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    loop {
        match so().await {
            Ok(true) => return Ok(()),
            Err(e) if Instant::now() >= end => return Err(e.context(format!("waiting for {what}"))),
            Ok(false) if Instant::now() >= end => anyhow::bail!("waited {time:?} for {what}"),
            _ => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Every path of every node, with the node's name.
fn rows(result: &DiagnoseResult) -> impl Iterator<Item = (&str, &PathRow)> {
    result.nodes.iter().flat_map(|n| n.paths().map(|p| (n.name.as_str(), p)))
}

fn row_keys<'a>(rows: impl Iterator<Item = (&'a str, &'a PathRow)>) -> BTreeSet<RowKey> {
    rows.map(|(node, p)| (node.to_owned(), p.family.to_string(), p.path)).collect()
}

fn vulnerable(result: &DiagnoseResult) -> BTreeSet<RowKey> {
    row_keys(rows(result).filter(|(_, p)| p.verdict == Verdict::Vulnerable))
}

/// The paths on which a forgery leaked.
fn leaking(result: &DiagnoseResult, forgery: Forgery) -> BTreeSet<RowKey> {
    row_keys(rows(result).filter(|(_, p)| p.leaks.iter().any(|l| l.forgery == forgery)))
}
