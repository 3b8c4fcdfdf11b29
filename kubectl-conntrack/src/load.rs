//! `load`: many load-clients against one target through its Service, and one result of all.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use canary_record::names::{EndedBy, LoadVerdict, Verdict};
use canary_record::prometheus;
use canary_record::result::Run as Record;
use canary_record::result::load::{FailureCount, LoadResult, ThresholdRecord};
use futures_util::{StreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::{PARALLEL, Stop, Watch};
use crate::app::{Job, Session};
use crate::cli::LoadArgs;
use crate::manifests::{self, Set};
use crate::objects;
use crate::output::{Part, Row, Sheet, Shown, Table};
use crate::preflight::{Right, rights};
use crate::run::{self, Ground};

pub(crate) fn needs(own_namespace: bool) -> Vec<Right> {
    const VERBS: &[&str] = &["create", "patch", "get", "list", "watch", "delete"];
    let mut needs = crate::diagnose::needs(own_namespace);
    needs.extend(rights("apps", "deployments", true, VERBS));
    needs
}

/// The base's server of a load, and its client: the object, the container and the label.
const TARGET: &str = "load-target";
const CLIENT: &str = "load-client";
/// How long a client whose end was asked for stays after its result, to be read.
const LINGER: Duration = Duration::from_secs(60);

pub(crate) struct Load<'a> {
    ground: &'a Ground,
    args: &'a LoadArgs,
    pub(crate) names: Vec<String>,
    pub(crate) watch: Watch,
}

#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// Each client's result, by its pod.
    pub results: Vec<(String, LoadResult)>,
    /// Why others are missing.
    pub missing: BTreeMap<String, String>,
    /// Connections that the target accepted; none where it could not be asked.
    pub accepted: Option<u64>,
}

/// A load on a cluster, until its end or a signal; what it made is removed either way, and what the
/// clients had counted by then is in the result.
pub async fn load(job: Job<'_>, args: &LoadArgs) -> anyhow::Result<LoadResult> {
    let say = job.say;
    let mut session = Session::begin(job, &args.cluster, needs).await?;
    let ground = session.ground().await?;
    let mut load = Load::new(&ground, args, "load-client");
    let done = session.until(load.go(say)).await;
    say("results");
    let early = !matches!(done, Ok(EndedBy::Completed));
    let collected = match &done {
        // No pod has anything to tell.
        Err(Stop::Refused(_)) => Collected::default(),
        _ => load.collect(early).await,
    };
    let mut reasons = Vec::new();
    let nothing = |_: &Stop| collected.results.is_empty();
    let record = session.close(&ground, "load", done, nothing, &mut reasons).await?;
    for (pod, result) in &collected.results {
        session.job.folder.save("", &format!("{pod}.json"), result);
    }
    let why = reasons.join("; ");
    judged(collected, args, reasons, record)?
        .with_context(|| format!("no client left a result: {why}"))
}

impl<'a> Load<'a> {
    /// A load that was not begun, whose pods are called `prefix-N`.
    pub(crate) fn new(ground: &'a Ground, args: &'a LoadArgs, prefix: &str) -> Self {
        let names = (0..args.clients).map(|n| format!("{prefix}-{n}")).collect();
        Self { ground, args, names, watch: ground.watch(None) }
    }

    /// A client's pod: the base's, which ends by itself.
    fn pod(&self) -> Value {
        let mut pod = manifests::pod(Set::Base, &self.ground.run, "Deployment", CLIENT);
        let spec = &mut pod["spec"];
        spec["terminationGracePeriodSeconds"] = (LINGER.as_secs() + 5).into();
        // Rather on other nodes than the target's, where there are others.
        spec["affinity"] = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/name": TARGET}}}}]}});
        let container = &mut spec["containers"][0];
        // A node under load answers late: no reason to end a client and lose its counts.
        container["livenessProbe"] = Value::Null;
        let env = container["env"].as_array_mut().expect("the base's variables");
        env.retain(|e| e["name"] != "LOAD_RATE");
        env.push(json!({"name": "LOAD_RATE", "value": self.args.rate.to_string()}));
        env.push(json!({"name": "LOAD_DURATION", "value": format!("{}ms", self.args.duration.as_millis())}));
        env.push(json!({"name": "LOAD_LINGER", "value": format!("{}s", LINGER.as_secs())}));
        pod
    }

    /// Starts the target, and waits until it is ready. In the base it is on boom-server's node, which
    /// not every run has.
    pub(crate) async fn target(&self, beside_boom_server: bool) -> Result<(), Stop> {
        let of = |kind| manifests::own(Set::Base, &self.ground.run, kind, TARGET);
        let mut target = of("Deployment");
        if !beside_boom_server {
            target["spec"]["template"]["spec"]["affinity"] = Value::Null;
        }
        let target: Deployment = objects::typed(target);
        self.ground.try_dry(&target).await?;
        self.ground.try_dry(&called(self.pod(), &format!("{CLIENT}-0"))).await?;
        self.ground.apply(&objects::typed::<Service>(of("Service"))).await?;
        self.ground.apply(&target).await?;
        self.ground.rolled_out(TARGET, self.args.cluster.timeout).await
    }

    pub(crate) async fn start(&self) -> Result<(), Stop> {
        let pod = self.pod();
        let pods = self.names.iter().map(|name| called(pod.clone(), name));
        let applied = self.ground.apply_all(pods).await;
        applied.into_values().try_for_each(|pod| pod.map(drop)).map_err(Stop::Api)
    }

    /// Starts the target and the clients, and waits until each has ended.
    pub(crate) async fn go(&mut self, say: &dyn Fn(&str)) -> Result<(), Stop> {
        say("the target");
        Box::pin(self.target(false)).await?;
        say(&format!("{} clients", self.args.clients));
        self.start().await?;
        let deadline = Instant::now() + self.args.cluster.timeout + self.args.duration;
        self.watch.each(&self.names, deadline, say, |_| false).await.map(drop)
    }

    /// Every client's result. `early` ends those that are at work first: with their result written
    /// they linger until it is read.
    pub(crate) async fn collect(&self, early: bool) -> Collected {
        let wait = if early { LINGER / 2 } else { Duration::from_secs(5) };
        let each = self.names.iter().map(|name| async move {
            if early {
                let _ = self.ground.dismiss::<Pod>(std::iter::once(name.clone())).await;
            }
            let read = |log: &str| run::document(log, LoadResult::read);
            (name.clone(), self.ground.last_words(name, CLIENT, wait, read).await)
        });
        let mut collected = Collected::default();
        for (name, found) in stream::iter(each).buffered(PARALLEL).collect::<Vec<_>>().await {
            match found {
                Ok(result) => collected.results.push((name, result)),
                Err(why) => drop(collected.missing.insert(name, why)),
            }
        }
        collected.accepted = self.accepted().await;
        // Those that linger would hold the namespace up.
        let _ = self.ground.delete::<Pod>(self.names.iter().cloned()).await;
        collected
    }

    /// Connections that the target has accepted, by its own metrics through the API server.
    pub(crate) async fn accepted(&self) -> Option<u64> {
        let name = self.ground.living(TARGET).await.ok()??.metadata.name?;
        // What the target's metrics lag behind.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let text = self.ground.metrics(&name, 9100).await?;
        prometheus::value(&text, "load_accepted_total").map(|n| n as u64)
    }
}

fn called(mut pod: Value, name: &str) -> Pod {
    pod["metadata"]["name"] = name.into();
    objects::typed(pod)
}

/// One result of all, judged. None where there is none.
pub(crate) fn judged(
    collected: Collected,
    args: &LoadArgs,
    reasons: Vec<String>,
    run: Record,
) -> anyhow::Result<Option<LoadResult>> {
    let Collected { results, missing, accepted } = collected;
    if results.is_empty() {
        return Ok(None);
    }
    let mut result = load_client::merge::join(&results, |_| run)?;
    load_client::verdict::judge(&mut result, &args.fail_on);
    let mut doubts = reasons;
    if !missing.is_empty() {
        let why =
            missing.iter().next().map_or(String::new(), |(pod, why)| format!("; {pod}: {why}"));
        doubts.push(format!("{} of {} results are missing{why}", missing.len(), args.clients));
    }
    match accepted {
        // What succeeded was accepted, and what was accepted had been begun.
        Some(n) if missing.is_empty() && (n < result.ok || n > result.attempts) => doubts.push(format!(
            "the target accepted {n} connections, but the clients count {} that succeeded of {}",
            result.ok, result.attempts
        )),
        Some(n) => result.reasons.push(format!("the target accepted {n} connections")),
        None => result.reasons.push("the target's own count of connections could not be read".to_owned()),
    }
    if !doubts.is_empty() && result.verdict == LoadVerdict::WithinThresholds {
        result.verdict = LoadVerdict::Inconclusive;
    }
    result.reasons.splice(0..0, doubts);
    Ok(Some(result))
}

fn headline(result: &LoadResult) -> String {
    let word = match result.verdict {
        LoadVerdict::WithinThresholds => "WITHIN THRESHOLDS",
        LoadVerdict::ThresholdCrossed => "A THRESHOLD WAS CROSSED",
        LoadVerdict::Inconclusive => "NOT PROVED",
    };
    format!(
        "{word}: {} of {} connections of {} clients succeeded in {:.0} s",
        result.ok, result.attempts, result.merged, result.run.seconds
    )
}

impl Shown for LoadResult {
    fn table(&self, _: bool) -> String {
        use std::fmt::Write as _;
        let mut text = headline(self) + "\n";
        for f in &self.failures {
            let _ = writeln!(text, "  {f}");
        }
        for r in &self.reasons {
            let _ = writeln!(text, "  - {r}");
        }
        text
    }

    fn sheet(&self, _: bool) -> Sheet {
        let verdict = match self.verdict {
            LoadVerdict::WithinThresholds => Verdict::Protected,
            LoadVerdict::ThresholdCrossed => Verdict::Vulnerable,
            LoadVerdict::Inconclusive => Verdict::Inconclusive,
        };
        let threshold = |t: &ThresholdRecord| Row {
            verdict: if t.crossed { Verdict::Vulnerable } else { Verdict::Protected },
            cells: vec![t.expression.clone(), t.measured.to_string()],
        };
        // What failed is judged by thresholds alone.
        let failure = |f: &FailureCount| Row {
            verdict: Verdict::Protected,
            cells: vec![format!("{} in {}", f.cause.words(), f.phase), f.count.to_string()],
        };
        // Beside any other verdict they are notes.
        let (reasons, notes) = match verdict {
            Verdict::Inconclusive => (self.reasons.clone(), Vec::new()),
            _ => (Vec::new(), self.reasons.clone()),
        };
        let table = |columns, rows| Table { columns, rows, ..Table::default() };
        let part = Part {
            title: "connections".to_owned(),
            verdict,
            facts: format!("{} of {} succeeded", self.ok, self.attempts),
            tables: vec![
                table(&["Threshold", "Measured"], self.thresholds.iter().map(threshold).collect()),
                table(&["Failure", "Connections"], self.failures.iter().map(failure).collect()),
            ],
            ..Part::default()
        };
        Sheet {
            command: "kubectl conntrack load",
            verdict,
            headline: headline(self),
            about: self.run.started.clone(),
            reasons,
            advice: notes,
            parts: vec![part],
        }
    }
}
