//! `experiment`: load from none to many clients, a table smaller than the load, be_liberal, and
//! everything back. What it saw goes to `raw/` as it comes; `conntrack_lab::cluster` judges it.

pub(crate) mod journal;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use canary_record::names::EndedBy;
use canary_record::prometheus;
use canary_record::result::Config;
use canary_runtime::exit::Exit;
use conntrack_lab::cluster::journal::{Event, Fact, Purpose};
use conntrack_lab::document::lab::LabResult;
use conntrack_lab::document::timeline::Change;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::journal::Journal;
use crate::api::Stop;
use crate::app::{Job, Session, confirmed, connect, kept, print, usable};
use crate::cli::{ExperimentArgs, LoadArgs};
use crate::each_node::EachNode;
use crate::load::{self, Load};
use crate::manifests::{self, Set};
use crate::objects;
use crate::output::Format;
use crate::plan::Node;
use crate::preflight::{self, Right, rights};
use crate::run::Ground;
use crate::tune::{Sysctl, Tune, TunedNode};

/// What an experiment needs.
#[must_use]
pub fn needs(own_namespace: bool) -> Vec<Right> {
    let mut needs = load::needs(own_namespace);
    needs.extend(crate::each_node::needs(own_namespace));
    needs.extend(rights("", "pods/proxy", true, &["get"]));
    needs.sort_unstable();
    needs.dedup();
    needs
}

pub(crate) struct Experiment<'a, 's> {
    ground: &'a Ground,
    nodes: &'a [Node],
    args: &'a ExperimentArgs,
    journal: &'a mut Journal,
    session: &'a mut Session<'s>,
    /// Pods whose metrics make the samples: boom-server's, the canary client's, and the observer's
    /// on its node.
    boom: String,
    canary: String,
    observer: Option<String>,
}

pub(crate) async fn experimented(args: ExperimentArgs) -> anyhow::Result<Exit> {
    let place = connect(&args.cluster, "conntrack-experiment").await?;
    confirmed(Some(&args.confirm), &place.1.context)?;
    let dir = args.cluster.save.clone().unwrap_or_else(|| {
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        format!("results/cluster-{now}").into()
    });
    let work = async |job: Job<'_>| Box::pin(experiment(job, &args, &dir)).await;
    let (result, _) = kept(place, &Config::new(), None, work).await?;
    print(&shown(&result, &dir, args.output)?)?;
    Ok(conntrack_lab::app::exit(&result))
}

/// The result as the lab writes it.
fn shown(result: &LabResult, dir: &Path, format: Format) -> anyhow::Result<String> {
    use conntrack_lab::report::{junit, text};
    let page = dir.join("report.html");
    Ok(match format {
        Format::Table => format!("{}\n{}", text::render(result, text::width()), page.display()),
        Format::Json => serde_json::to_string_pretty(result)?,
        Format::Junit => junit::render(result),
        Format::Html => std::fs::read_to_string(&page)
            .with_context(|| format!("cannot read {}", page.display()))?,
    })
}

/// The experiment on a cluster, judged from what it left in `dir`.
pub async fn experiment(
    job: Job<'_>,
    args: &ExperimentArgs,
    dir: &Path,
) -> anyhow::Result<LabResult> {
    let (client, say) = (job.client, job.say);
    let mut session = Session::begin(job, &args.cluster, needs).await?;
    let (nodes, unusable) = usable(client, None).await?;
    let mut journal = Journal::begin(dir)?;
    let clients: Vec<_> = args.clients.iter().map(u32::to_string).collect();
    let kernel = |n: &Node| format!("{} on {}, kubelet {}", n.kernel, n.name, n.kubelet);
    journal.record(Fact::Context, &session.job.cluster.context)?;
    journal.record(Fact::Started, &jiff::Timestamp::now())?;
    journal.record(Fact::Clients, &clients.join(" "))?;
    journal.record(Fact::Seconds, &args.step.as_secs())?;
    journal
        .record(Fact::TableSize, &args.table_size.map_or("none".to_owned(), |n| n.to_string()))?;
    journal.record(Fact::HoldOffDrop, &u8::from(args.hold_off_drop))?;
    journal.record(Fact::Kernel, &nodes.iter().map(kernel).collect::<Vec<_>>().join("; "))?;
    journal.record(Fact::Kubernetes, &session.job.cluster.version)?;
    for why in unusable {
        journal.doubt(&why)?;
    }
    let ground = session.ground().await?;
    let mut experiment = Experiment::new(&ground, &nodes, args, &mut journal, &mut session);
    let done = Box::pin(experiment.go(say)).await;
    // A full disk must not leave the nodes changed: first the end, then the journal.
    let left = session.end(&ground).await;
    // Nothing was measured, and the mend is the user's.
    let refused = matches!(done, Err(Stop::Refused(_)));
    let mut doubts = Vec::new();
    let ended_by = match &done {
        Ok(()) => session.by.unwrap_or(EndedBy::Completed),
        Err(e) => {
            doubts.push(format!("the run ended before its end: {e}"));
            EndedBy::Error
        }
    };
    doubts.extend(session.by.map(|by| format!("the run was ended by {by}")));
    doubts.extend(left);
    // Each is said, also where the first cannot be written.
    doubts.iter().map(|why| journal.doubt(why)).fold(Ok(()), Result::and)?;
    journal.record(Fact::Ended, &jiff::Timestamp::now())?;
    journal.wrote(&Event::End(ended_by))?;
    if refused {
        done?;
    }
    Ok(conntrack_lab::cluster::run(dir)?)
}

const BOOM: &str = "boom-server";
const CANARY: &str = "canary-client";
/// Metrics that the timeline is made of.
const SAMPLED: [&str; 9] = [
    "boom_outcomes",
    "boom_forged",
    "boom_killed",
    "boom_handshakes",
    "boom_sniffer_dropped",
    "load_attempts",
    "load_ok",
    "load_failures",
    "load_conntrack",
];

impl<'a, 's> Experiment<'a, 's> {
    /// Nothing is there yet. `nodes` has one at least.
    pub(crate) fn new(
        ground: &'a Ground,
        nodes: &'a [Node],
        args: &'a ExperimentArgs,
        journal: &'a mut Journal,
        session: &'a mut Session<'s>,
    ) -> Self {
        let (boom, canary) = (String::new(), String::new());
        Self { ground, nodes, args, journal, session, boom, canary, observer: None }
    }

    /// Every step, whatever each of them comes to; a signal leaves out those that are left.
    pub(crate) async fn go(&mut self, say: &dyn Fn(&str)) -> Result<(), Stop> {
        let Some(ready) = Box::pin(self.prepare(say)).await else { return Ok(()) };
        ready?;
        let limits = self.limits().await;
        for clients in self.args.clients.clone() {
            self.step(Purpose::Load, clients, say).await?;
        }
        let most = self.args.clients.iter().copied().max().unwrap_or(0);
        if self.args.table_size.is_some() {
            self.step(Purpose::SmallTable, most, say).await?;
        } else {
            say("no --table-size: the step with a small table is left out");
        }
        self.step(Purpose::Liberal, most, say).await?;
        if self.session.by.is_none() && self.limits().await != limits {
            self.journal.doubt("the nodes' limits of conntrack differ from before")?;
        }
        Ok(())
    }

    /// The canary, the load's target and an observer on every node; none after a signal.
    async fn prepare(&mut self, say: &dyn Fn(&str)) -> Option<Result<(), Stop>> {
        let (ground, args, nodes) = (self.ground, self.args, self.nodes);
        let of = |kind, name| manifests::own(Set::Base, &ground.run, kind, name);
        let none = load_args(0, args);
        let work = async {
            let mut boom = of("Deployment", BOOM);
            // It counts resets instead of ending at the first: each step has all its outcomes.
            if let Some(env) = boom
                .pointer_mut("/spec/template/spec/containers/0/env")
                .and_then(Value::as_array_mut)
            {
                env.push(json!({"name": "BOOM_ON_RESET", "value": "count"}));
            }
            let mut canary = of("Deployment", CANARY);
            if nodes.len() == 1 {
                say("one node: clients and servers share it");
                canary["spec"]["template"]["spec"]["affinity"] = Value::Null;
            }
            ground.apply(&objects::typed::<Service>(of("Service", BOOM))).await?;
            for object in [boom, canary] {
                ground.apply(&objects::typed::<Deployment>(object)).await?;
            }
            let deadline = Instant::now() + args.cluster.timeout;
            for (wanted, set) in [(true, Set::Observe), (args.hold_off_drop, Set::Unprotect)] {
                if wanted {
                    let mut pods = EachNode::new(ground, nodes, set, set.name());
                    pods.apply(|_| {}, |_| {}).await?;
                    pods.wait(deadline, say, |p| p.ready).await?;
                }
            }
            for name in [BOOM, CANARY] {
                ground.rolled_out(name, args.cluster.timeout).await?;
            }
            Load::new(ground, &none, "load-client").target(true).await
        };
        match self.session.or(Box::pin(work)).await? {
            Ok(()) => Some(self.find_pods(say).await),
            Err(e) => Some(Err(e)),
        }
    }

    /// Whose metrics are read.
    async fn find_pods(&mut self, say: &dyn Fn(&str)) -> Result<(), Stop> {
        if let Some(boom) = self.ground.living(BOOM).await? {
            self.boom = boom.name_any();
        }
        if let Some(canary) = self.ground.living(CANARY).await? {
            self.canary = canary.name_any();
            if self.observer.is_none() {
                let node = canary.spec.and_then(|s| s.node_name).unwrap_or_default();
                say(&format!("the clients' node is {node}"));
                self.observer =
                    self.nodes.iter().position(|n| n.name == node).map(|n| format!("observe-{n}"));
            }
        }
        Ok(())
    }

    async fn metrics(&self, pod: &str, port: u16) -> String {
        let text = self.ground.metrics(pod, port).await.unwrap_or_default();
        let sampled = |l: &&str| SAMPLED.iter().any(|name| l.starts_with(name));
        text.lines().filter(sampled).fold(String::new(), |all, line| all + line + "\n")
    }

    /// A sample, kept; false where it could not be read: a pod that does not answer may have been
    /// replaced.
    async fn sample(&mut self) -> Result<bool, Stop> {
        let (boom, canary) =
            tokio::join!(self.metrics(&self.boom, 9100), self.metrics(&self.canary, 9100));
        let observed = match &self.observer {
            Some(pod) => self.metrics(pod, 9174).await,
            None => String::new(),
        };
        let whole = boom.contains("boom_handshakes") && canary.contains("load_attempts");
        self.journal.sample(whole.then(|| boom + &canary + &observed))?;
        if !whole {
            let _ = tokio::time::timeout(Duration::from_secs(3), self.find_pods(&quiet)).await;
        }
        Ok(whole)
    }

    /// Samples each second until then.
    async fn samples(&mut self, until: Instant) -> Result<(), Stop> {
        while Instant::now() < until {
            self.sample().await?;
            if self.session.or(tokio::time::sleep(Duration::from_secs(1))).await.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// The limit of each node's table.
    async fn limits(&self) -> Vec<Option<f64>> {
        let of = |n: usize| async move {
            let text = self.metrics(&format!("observe-{n}"), 9174).await;
            prometheus::value(&text, "load_conntrack_limit")
        };
        futures_util::future::join_all((0..self.nodes.len()).map(of)).await
    }

    /// boom-server's pod and its restarts.
    async fn life(&self) -> Option<(String, i32, String)> {
        let pod = self.ground.living(BOOM).await.ok()??;
        let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?.clone();
        let last = status.last_state.and_then(|s| s.terminated).and_then(|t| t.message);
        Some((pod.metadata.uid.unwrap_or_default(), status.restart_count, last.unwrap_or_default()))
    }

    /// Load for a while with what the step is for, then every result. After a signal nothing is begun.
    async fn step(
        &mut self,
        purpose: Purpose,
        clients: u32,
        say: &dyn Fn(&str),
    ) -> Result<(), Stop> {
        if self.session.by.is_some() {
            return Ok(());
        }
        let title = format!("{purpose} {clients}");
        say(&format!("{title} clients"));
        self.journal.wrote(&Event::Step(purpose, clients))?;
        let number = self.journal.steps();
        let (life, ready) = (self.life().await, self.ready().await);
        let args = load_args(clients, self.args);
        let mut load = Load::new(self.ground, &args, &format!("load-{number}"));
        let mut tune = Tune::new(self.ground, self.nodes, &format!("tune-{purpose}"));
        if purpose == Purpose::Liberal {
            self.set(&mut tune, "nf_conntrack_tcp_be_liberal", 1).await?;
        }
        let had = if clients > 0 { load.accepted().await } else { None };
        if clients > 0 && self.session.by.is_none() {
            load.start().await?;
            let deadline = Instant::now() + self.args.cluster.timeout;
            let ready =
                self.session.or(load.watch.each(&load.names, deadline, &quiet, |p| p.ready)).await;
            if let Some(ready) = ready {
                let ready = ready?;
                if ready < clients as usize {
                    self.journal
                        .doubt(&format!("{title}: {ready} of {clients} clients were ready"))?;
                }
            }
        }
        self.wait_for_sample(&title).await?;
        self.journal.wrote(&Event::From)?;
        let (small_table, mut was) = (purpose == Purpose::SmallTable, None);
        let sampled = Box::pin(async {
            if small_table {
                self.shrink(&mut tune, &mut was).await?;
            }
            self.samples(Instant::now() + self.args.step).await
        })
        .await;
        if small_table {
            Box::pin(self.grow_back(&mut tune, was, &title)).await?;
        }
        sampled?;
        if clients > 0 {
            let collected = load.collect(true).await;
            say(&format!("{} of {clients} results collected", collected.results.len()));
            for (pod, result) in &collected.results {
                self.journal.result(number, pod, result)?;
            }
            if let (Some(had), Some(has)) = (had, collected.accepted) {
                self.journal.wrote(&Event::Accepted(had, has))?;
            }
        }
        self.wait_for_sample(&title).await?;
        self.journal.wrote(&Event::To)?;
        if purpose == Purpose::Liberal {
            self.put_back(&mut tune, &title).await?;
        }
        self.undisturbed(&title, life).await?;
        let away: Vec<_> = self.ready().await.into_iter().filter(|n| !ready.contains(n)).collect();
        for (node, _) in away {
            self.journal.doubt(&format!("{title}: node {node} was not ready all the time"))?;
        }
        Ok(())
    }

    async fn wait_for_sample(&mut self, title: &str) -> Result<(), Stop> {
        let until = Instant::now() + Duration::from_secs(30);
        while !self.sample().await? {
            if Instant::now() >= until {
                return self.journal.doubt(&format!("{title}: no sample within 30 s"));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// Sets a sysctl on every node, and writes down what was set and what could not be.
    async fn set(&mut self, tune: &mut Tune<'_>, name: &str, value: u64) -> Result<(), Stop> {
        let sysctls = [Sysctl { name: name.to_owned(), value }];
        let set = tune.set(&sysctls, self.args.cluster.timeout, false, &quiet);
        let nodes = match self.session.or(set).await {
            None => return Ok(()),
            Some(Err(e)) => return self.journal.doubt(&format!("not set on every node: {e}")),
            Some(Ok(nodes)) => nodes,
        };
        for n in &nodes {
            for r in &n.reasons {
                self.journal.doubt(&format!("{}: {r}", n.name))?;
            }
        }
        let changes: BTreeSet<_> =
            nodes.iter().flat_map(|n| &n.changes).map(|c| (&c.name, c.from, c.to)).collect();
        changes.into_iter().try_for_each(|(what, from, to)| self.changed(what, from, to))
    }

    fn changed(&mut self, what: &str, from: u64, to: u64) -> Result<(), Stop> {
        let (what, from, to) = (what.to_owned(), from.to_string(), to.to_string());
        self.journal.wrote(&Event::Change(Change { what, from, to }))
    }

    async fn put_back(&mut self, tune: &mut Tune<'_>, title: &str) -> Result<(), Stop> {
        let doubts: Vec<String> = match tune.put_back().await {
            Err(e) => vec![format!("{title}: not known to be put back: {e}")],
            Ok(nodes) => {
                let left = |n: &TunedNode| n.changes.iter().any(|c| c.restored != Some(c.from));
                let of = |n: &TunedNode| format!("{title}: {}: {}", n.name, n.reasons.join("; "));
                nodes.iter().filter(|n| left(n)).map(of).collect()
            }
        };
        doubts.iter().try_for_each(|d| self.journal.doubt(d))
    }

    /// A table smaller than the load. `was` is what the command has to put back.
    async fn shrink(&mut self, tune: &mut Tune<'_>, was: &mut Option<u64>) -> Result<(), Stop> {
        let Some(size) = self.args.table_size else { return Ok(()) };
        let Some(line) = &self.args.table_command else {
            return self.set(tune, "nf_conntrack_max", size).await;
        };
        let mut set = || {
            let found = table(line)?;
            *was = Some(found);
            command(line, Some(size))?;
            Ok::<_, String>((found, table(line)?))
        };
        match set() {
            Ok((was, is)) => self.changed("nf_conntrack_max", was, is),
            Err(why) => self.journal.doubt(&format!("--table-command: {why}")),
        }
    }

    async fn grow_back(
        &mut self,
        tune: &mut Tune<'_>,
        was: Option<u64>,
        title: &str,
    ) -> Result<(), Stop> {
        match (&self.args.table_command, was) {
            (None, _) => self.put_back(tune, title).await,
            (Some(line), Some(was)) => match command(line, Some(was)) {
                Ok(_) => Ok(()),
                Err(why) => self.journal.doubt(&format!("NOT PUT BACK: {line} {was}: {why}")),
            },
            (Some(_), None) => Ok(()),
        }
    }

    async fn undisturbed(
        &mut self,
        title: &str,
        before: Option<(String, i32, String)>,
    ) -> Result<(), Stop> {
        match (before, self.life().await) {
            (Some(before), Some(now)) if (&before.0, before.1) == (&now.0, now.1) => {
                self.journal.wrote(&Event::Note("boom-server undisturbed.".to_owned()))
            }
            (Some(before), Some(now)) if before.0 == now.0 => {
                let why: String = now.2.replace('\n', " ").chars().take(300).collect();
                self.journal.wrote(&Event::Note(format!("boom-server restarted: {why}.")))
            }
            _ => {
                self.journal.doubt(&format!("{title}: boom-server's pod was replaced"))?;
                self.journal.wrote(&Event::Note("boom-server's pod was replaced.".to_owned()))
            }
        }
    }

    /// The nodes that are ready, and since when.
    async fn ready(&self) -> Vec<(String, Option<String>)> {
        let nodes = preflight::nodes(&self.ground.client, None).await.unwrap_or_default();
        nodes
            .into_iter()
            .map(|n| (n.name, n.ready_since.filter(|_| n.unusable.is_none())))
            .collect()
    }
}

/// Steps say what they do, not how far their parts are.
fn quiet(_: &str) {}

/// Clients that go on until they are told to end.
fn load_args(clients: u32, args: &ExperimentArgs) -> LoadArgs {
    LoadArgs {
        clients,
        rate: 50.0,
        duration: Duration::from_secs(3600),
        fail_on: Vec::new(),
        output: args.output,
        cluster: args.cluster.clone(),
    }
}

/// What a command says, with a number as its last word or without.
fn command(line: &str, number: Option<u64>) -> Result<String, String> {
    let number = number.map(|n| n.to_string());
    let mut words = line.split_whitespace().chain(number.as_deref());
    let program = words.next().ok_or("it is empty")?;
    let out = Command::new(program).args(words).output().map_err(|e| format!("{program}: {e}"))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(format!("{program}: {}: {}", out.status, said.trim()));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// The table's limit, as the command prints it.
fn table(line: &str) -> Result<u64, String> {
    let said = command(line, None)?;
    said.parse().map_err(|_| format!("{line} printed '{said}' instead of a number"))
}
