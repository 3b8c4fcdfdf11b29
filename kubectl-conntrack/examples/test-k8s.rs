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
use canary_record::result::Config;
use canary_runtime::shutdown::Shutdown;
use clap::Parser;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, Service};
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use kubectl_conntrack::api::Watch;
use kubectl_conntrack::app::{self, Connected};
use kubectl_conntrack::cli::{Cli, ClusterArgs, Command, ConfirmArgs};
use kubectl_conntrack::each_node::EachNode;
use kubectl_conntrack::manifests::{self, Set};
use kubectl_conntrack::objects::{RUN, Run};
use kubectl_conntrack::output::Shown as _;
use kubectl_conntrack::plan::{Node, Path};
use kubectl_conntrack::report::{Cluster, DiagnoseResult};
use kubectl_conntrack::run::{self, Ground};
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
    client: Client,
    cluster: Cluster,
    run: Run,
    nodes: Vec<Node>,
    args: &'a Args,
    failed: usize,
    skipped: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    match test(&args).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("test-k8s: {e:#}");
            ExitCode::from(if e.is::<app::Unconfirmed>() { 2 } else { 1 })
        }
    }
}

async fn test(args: &Args) -> anyhow::Result<usize> {
    let mut shutdown = Shutdown::catch()?;
    let Connected { client, cluster } = app::connect(&args.cluster, "conntrack-test").await?;
    app::confirmed(&args.confirm, &cluster.context)?;
    let run = Run {
        id: app::run_id(),
        namespace: cluster.namespace.clone(),
        images: app::images(&args.cluster.images),
    };
    let (nodes, _) = app::usable(&client, None).await?;
    let foreign = args.cluster.namespace.is_some();
    let (owner, client_of_ground) = (run.clone(), client.clone());
    let ground = Ground::take(&client_of_ground, &owner, foreign, args.cluster.replace).await?;
    let mut test = Test { client, cluster, run, nodes, args, failed: 0, skipped: 0 };
    let done = tokio::select! {
        done = Box::pin(test.all()) => done,
        by = shutdown.signalled() => Err(anyhow::anyhow!("ended by {by}")),
    };
    let left =
        ground.end(args.cluster.keep, &mut async || shutdown.signalled().await, &|_| {}).await;
    for left in &left {
        test.fail(left);
    }
    done?;
    let (failed, skipped) = (test.failed, test.skipped);
    println!(
        "{failed} claims did not hold, {skipped} skipped, on context {}",
        test.cluster.context
    );
    Ok(failed)
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
    fn command(&self, line: &str) -> anyhow::Result<(Command, Cluster)> {
        let images = &self.args.cluster.images;
        let tail = ["--registry", &images.registry, "--tag", &images.tag];
        let words = ["conntrack"].into_iter().chain(line.split(' ')).chain(tail);
        let cli = Cli::try_parse_from(words)?;
        let word = line.split(' ').next().unwrap_or_default();
        let namespace = format!("conntrack-{word}");
        Ok((cli.command, Cluster { namespace, ..self.cluster.clone() }))
    }

    async fn diagnose(&self) -> anyhow::Result<DiagnoseResult> {
        let (Command::Diagnose(args), cluster) = self.command("diagnose")? else { unreachable!() };
        app::diagnosis(&self.client, cluster, &args, &Config::new(), never, &|_| {}).await
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
        let leaking = vulnerable(&result).len();
        self.claim(
            (result.verdict == Verdict::Vulnerable) == (leaking > 0),
            &format!("diagnose: {:?} with {leaking} vulnerable paths", result.verdict),
        );
        let tried: BTreeSet<_> = rows(&result).map(|(_, p)| p.path).collect();
        self.claim(!tried.is_empty(), &format!("{} paths were tried", tried.len()));
        let control = rows(&result).filter(|(_, p)| p.path == Path::PodIp);
        let leaks: u64 = control.map(|(_, p)| p.leaked).sum();
        self.claim(leaks == 0, "nothing leaks on the way to a pod's own address");
        let left = self.namespace("conntrack-diagnose").await?;
        self.claim(!left, "diagnose left nothing behind");
        Ok(result)
    }

    async fn namespace(&self, name: &str) -> anyhow::Result<bool> {
        let api: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        Ok(api.get_opt(name).await?.is_some())
    }

    fn every_node<'b>(&'b self, set: Set, name: &'static str) -> EachNode<'b> {
        let (client, run, nodes) = (&self.client, &self.run, &self.nodes[..]);
        EachNode { client, run, nodes, set, name, prefix: name, container: name }
    }

    /// Starts pods on every node that change it; gives why not, where they cannot.
    async fn hold(&self, set: Set, name: &'static str) -> anyhow::Result<Option<String>> {
        let pods = self.every_node(set, name);
        pods.config(|_| {}).await?;
        let labels = format!("{RUN}={},app.kubernetes.io/name={name}", self.run.id);
        let mut watch = Watch::begin(&self.client, &self.run.namespace, &labels);
        let refused = pods.apply(|_| {}).await?;
        let deadline = Instant::now() + Duration::from_secs(90);
        pods.wait(&mut watch, deadline, &refused, &|_| {}, |p| p.ready).await?;
        let said = pods.words(&watch, &refused, Duration::ZERO, |log| {
            Ok::<_, String>(log.lines().last().unwrap_or_default().to_owned())
        });
        let said = said.await;
        let ready = watch.pods.values().filter(|p| p.ready).count();
        Ok((ready < self.nodes.len()).then(|| format!("{said:?}")))
    }

    /// Ends them and waits until each has put its node back.
    async fn release(&self, set: Set, name: &'static str) -> anyhow::Result<()> {
        self.every_node(set, name).dismiss().await?;
        let what = format!("the pods of {name} to go");
        until(90, &what, async || Ok(self.pods(name).await?.is_empty())).await?;
        Ok(())
    }

    async fn pods(&self, name: &str) -> anyhow::Result<Vec<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.run.namespace);
        let params = ListParams::default().labels(&format!("app.kubernetes.io/name={name}"));
        Ok(api.list(&params).await?.items)
    }

    /// Each protection closes what it should of the paths that leaked, and its end lays them bare again.
    async fn protections(&mut self, as_is: &DiagnoseResult) -> anyhow::Result<()> {
        let before = vulnerable(as_is);
        if before.is_empty() {
            self.skip("protections: no path leaks here, so nothing would show that one protects");
            return Ok(());
        }
        match self.hold(Set::DropInvalid, "drop-invalid").await? {
            None => {
                let with = self.diagnose().await?;
                let left = vulnerable(&with);
                let why: BTreeSet<_> =
                    with.nodes.iter().flat_map(|n| &n.families).flat_map(|f| &f.reasons).collect();
                let why: Vec<_> = why.into_iter().take(3).map(String::as_str).collect();
                self.claim(
                    left.is_empty() && with.verdict == Verdict::Protected,
                    &format!(
                        "overlays/drop-invalid: {} vulnerable paths before, {} with it: {} {}",
                        before.len(),
                        left.len(),
                        with.headline(),
                        why.join("; ")
                    ),
                );
            }
            Some(why) => {
                self.skip(&format!("overlays/drop-invalid cannot run on every node: {why}"));
            }
        }
        self.release(Set::DropInvalid, "drop-invalid").await?;
        let above: BTreeSet<_> = leaking(as_is, Forgery::AboveWindow);
        if above.is_empty() {
            self.skip("be_liberal: no above-window segment leaks here");
            return Ok(());
        }
        let (client, run, nodes) = (self.client.clone(), self.run.clone(), self.nodes.clone());
        let mut tune = Tune::new(&client, &run, &nodes, "tune");
        let sysctls = [liberal()];
        let set = tune.set(&sysctls, Duration::from_secs(90), false, &|_| {}).await?;
        if set.iter().any(|n| n.changes.is_empty()) {
            let why: Vec<_> = set.iter().flat_map(|n| &n.reasons).cloned().collect();
            self.skip(&format!("be_liberal cannot be set on every node: {}", why.join("; ")));
        } else {
            let with = self.diagnose().await?;
            let left = leaking(&with, Forgery::AboveWindow);
            self.claim(
                left.is_empty(),
                &format!(
                    "be_liberal: above-window leaked on {} paths before, on {} with it",
                    above.len(),
                    left.len()
                ),
            );
        }
        let back = tune.put_back().await?;
        let whole = back.iter().flat_map(|n| &n.changes).all(|c| c.restored == Some(c.from));
        self.claim(whole, "be_liberal is as it was on every node");
        let after = vulnerable(&self.diagnose().await?);
        self.claim(
            after == before,
            &format!("without them: {} vulnerable paths as before, {}", before.len(), after.len()),
        );
        Ok(())
    }

    fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), &self.run.namespace)
    }

    async fn install(&self, deployments: &[&str], services: &[&str]) -> anyhow::Result<()> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), &self.run.namespace);
        for name in services {
            let service: Service =
                serde_json::from_value(manifests::own(Set::Base, &self.run, "Service", name))?;
            run::apply(&api, &service, false).await?;
        }
        for name in deployments {
            let object: Deployment =
                serde_json::from_value(manifests::own(Set::Base, &self.run, "Deployment", name))?;
            run::apply(&self.deployments(), &object, false).await?;
        }
        Ok(())
    }

    async fn boom(&self) -> anyhow::Result<Option<ContainerStatus>> {
        let mut pods = self.pods("boom-server").await?;
        pods.retain(|p| p.metadata.deletion_timestamp.is_none());
        let status = pods.pop().and_then(|p| p.status).and_then(|s| s.container_statuses);
        Ok(status.and_then(|mut s| s.pop()))
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
            let quiet = until(90, "above-window dropped", async || {
                self.counts("above-window", "dropped").await
            });
            let quiet = quiet.await.is_ok();
            self.claim(quiet, "a drop in force: the canary runs, above-window is dropped");
            if let Some(why) = self.hold(Set::Unprotect, "unprotect").await? {
                self.skip(&format!(
                    "the canary's alarm: kube-proxy's drop cannot be held off: {why}"
                ));
                return self.release(Set::Unprotect, "unprotect").await;
            }
        }
        Box::pin(self.alarm()).await?;
        if !exposed {
            self.release(Set::Unprotect, "unprotect").await?;
            self.restart_boom().await?;
            let quiet = until(90, "above-window dropped", async || {
                self.counts("above-window", "dropped").await
            });
            let quiet = quiet.await.is_ok();
            self.claim(quiet, "the drop back in force: above-window dropped as before");
        }
        Ok(())
    }

    /// The path is exposed: CrashLoopBackOff, a message that says so, the log line that people look for,
    /// and a witness that names the Service. be_liberal ends it.
    async fn alarm(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let alarm = until(90, "boom-server to end", async || {
            Ok(self.boom().await?.is_some_and(|s| s.restart_count > 0))
        });
        let alarm = alarm.await.is_ok();
        self.claim(
            alarm,
            &format!("exposed: boom-server ended after {:.0} s", begun.elapsed().as_secs_f64()),
        );
        let message = self.boom().await?.and_then(|s| s.last_state?.terminated?.message);
        let message = message.unwrap_or_default();
        self.claim(
            message.starts_with("vulnerable"),
            &format!("its termination message: {}", message.lines().next().unwrap_or_default()),
        );
        let logged = until(30, "the client's log line", async || {
            let pod = self.pods("canary-client").await?.pop().context("no canary-client")?;
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.run.namespace);
            // As many as kubectl logs -l gives.
            let params = LogParams { tail_lines: Some(10), ..LogParams::default() };
            let log = api.logs(&pod.name_any(), &params).await?;
            Ok(log.contains("reset by peer"))
        });
        let logged = logged.await.is_ok();
        self.claim(logged, "kubectl logs -l app=client | grep 'reset by peer' finds it");
        let count = serde_json::json!({"spec": {"template": {"spec": {"containers": [
            {"name": "boom-server", "env": [{"name": "BOOM_ON_RESET", "value": "count"}]}]}}}});
        let params = PatchParams::default();
        self.deployments().patch("boom-server", &params, &Patch::Strategic(count)).await?;
        Box::pin(self.witness()).await?;
        let (client, run, nodes) = (self.client.clone(), self.run.clone(), self.nodes.clone());
        let mut tune = Tune::new(&client, &run, &nodes, "tune-canary");
        let set = tune.set(&[liberal()], Duration::from_secs(90), false, &|_| {}).await?;
        if set.iter().all(|n| !n.changes.is_empty()) {
            self.restart_boom().await?;
            let quiet = until(90, "above-window delivered", async || {
                self.counts("above-window", "delivered").await
            });
            let quiet = quiet.await.is_ok();
            self.claim(quiet, "be_liberal alone: above-window is delivered");
        } else {
            self.skip("be_liberal cannot be set on every node");
        }
        tune.put_back().await?;
        Ok(())
    }

    async fn witness(&mut self) -> anyhow::Result<()> {
        let killed = until(90, "a connection to be killed", async || {
            self.counts("above-window", "leaked").await
        });
        killed.await?;
        let (Command::Witness(args), cluster) = self.command("witness --for 15s")? else {
            unreachable!()
        };
        let seen = app::watch(&self.client, cluster, &args, &Config::new(), never, &|_| {}).await;
        let seen = match seen {
            Ok(seen) => seen,
            Err(e) => {
                self.skip(&format!("witness cannot run here: {e:#}"));
                return Ok(());
            }
        };
        let service = format!("service {}/boom-server", self.run.namespace);
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
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.run.namespace);
        for pod in self.pods("boom-server").await? {
            api.delete(&pod.name_any(), &DeleteParams::default()).await?;
        }
        Ok(())
    }

    /// True once ten segments of `forgery` had this outcome in boom-server's present life.
    async fn counts(&self, forgery: &str, outcome: &str) -> anyhow::Result<bool> {
        let mut pods = self.pods("boom-server").await?;
        pods.retain(|p| p.metadata.deletion_timestamp.is_none());
        let Some(pod) = pods.pop() else { return Ok(false) };
        let text = run::metrics(&self.client, &self.run.namespace, &pod.name_any(), 9100).await;
        let (forgery, outcome) =
            (format!("forgery=\"{forgery}\""), format!("outcome=\"{outcome}\""));
        let counted = |l: &&str| {
            l.starts_with("boom_outcomes_total") && l.contains(&forgery) && l.contains(&outcome)
        };
        let value = |l: &str| l.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok());
        let sum: f64 = text.unwrap_or_default().lines().filter(counted).filter_map(value).sum();
        Ok(sum >= 10.0)
    }

    /// Many clients: every result is collected and fits the target's count; kubectl scale works too.
    async fn load(&mut self) -> anyhow::Result<()> {
        let clients = self.args.clients;
        let line = format!("load --clients {clients} --duration 20s");
        let (Command::Load(args), cluster) = self.command(&line)? else { unreachable!() };
        let result =
            app::load(&self.client, cluster, &args, &Config::new(), never, &|_| {}).await?;
        self.claim(
            result.merged == clients && result.verdict != LoadVerdict::Inconclusive,
            &format!(
                "load: {} of {clients} results, {} of {} connections succeeded; {}",
                result.merged,
                result.ok,
                result.attempts,
                result.reasons.join("; ")
            ),
        );
        let left = self.namespace("conntrack-load").await?;
        self.claim(!left, "load left nothing behind");
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
            let scaled = until(180, &what, async || {
                let d = self.deployments().get("load-client").await?;
                let ready = d.status.and_then(|s| s.ready_replicas).unwrap_or(0);
                let there = self.pods("load-client").await?.len();
                Ok(ready == wanted && (wanted > 0 || there == 0))
            });
            let scaled = scaled.await.is_ok();
            let seconds = begun.elapsed().as_secs();
            self.claim(scaled, &format!("kubectl scale to {replicas}: there after {seconds} s"));
        }
        Ok(())
    }
}

fn liberal() -> Sysctl {
    Sysctl { name: "nf_conntrack_tcp_be_liberal".to_owned(), value: 1 }
}

async fn never() -> EndedBy {
    std::future::pending().await
}

/// Asks each second until it is so; an error of one answer may pass.
async fn until(
    seconds: u64,
    what: &str,
    mut so: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let now = so().await;
        match now {
            Ok(true) => return Ok(()),
            Err(e) if Instant::now() >= end => return Err(e.context(format!("waiting for {what}"))),
            Ok(false) if Instant::now() >= end => anyhow::bail!("waited {seconds} s for {what}"),
            _ => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Every path of every node, with the node's name.
fn rows(result: &DiagnoseResult) -> impl Iterator<Item = (&str, &PathRow)> {
    result
        .nodes
        .iter()
        .flat_map(|n| n.families.iter().flat_map(|f| &f.paths).map(|p| (n.name.as_str(), p)))
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
