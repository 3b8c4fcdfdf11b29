//! `witness`: `load-client witness` on every node for a while, then which connections INVALID
//! segments ended, by pod, Service and node name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use canary_record::names::{EndedBy, Verdict};
use canary_record::result::witness::{
    Cause, CauseCount, Direction, EXAMPLES, Ended, Hit, MOST_HIT, WitnessResult,
};
use canary_record::result::{self, Run as Record};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::{Stop, each};
use crate::app::{Job, Session, usable};
use crate::cli::WitnessArgs;
use crate::each_node::EachNode;
use crate::manifests::Set;
use crate::names::Names;
use crate::output::{Part, Row, Sheet, Shown, Table};
use crate::preflight::{Right, rights};
use crate::report::Cluster;
use crate::run;
use crate::verdict::whole;

/// What a witness needs: pods of its own, and to read whose an address is.
fn needs(own_namespace: bool) -> Vec<Right> {
    crate::each_node::needs(own_namespace)
        .into_iter()
        .filter(|r| r.resource != "configmaps")
        .chain(["pods", "services"].into_iter().flat_map(|r| rights("", r, false, &["list"])))
        .collect()
}

/// One node's witness.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WitnessNode {
    /// The node's name.
    pub name: String,
    /// Its verdict.
    pub verdict: Verdict,
    /// Why, and what weakens it.
    pub reasons: Vec<String>,
    /// How long it watched, in seconds.
    pub seconds_watched: f64,
    /// Connections by what ended them, and in which direction.
    pub connections: Vec<CauseCount>,
}

/// How often an address was hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedHit {
    /// The IP address; a Service's with its port.
    pub address: String,
    /// Whose it is; none where the API server knows of nobody.
    pub name: Option<String>,
    /// Connections.
    pub count: u64,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NamedEnded {
    /// The node that saw it.
    pub node: String,
    /// The client's name.
    pub client_name: Option<String>,
    /// The Service's.
    pub service_name: Option<String>,
    /// The server's.
    pub server_name: Option<String>,
    /// The connection itself.
    #[serde(flatten)]
    pub connection: Ended,
}

/// What `kubectl conntrack witness` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterWitness {
    /// [`canary_record::result::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how. The kernel and host are of the machine that ran this program.
    pub run: Record,
    /// The cluster.
    pub cluster: Cluster,
    /// The worst of all nodes.
    pub verdict: Verdict,
    /// What is missing and what was cut short.
    pub reasons: Vec<String>,
    /// Every node, by name.
    pub nodes: Vec<WitnessNode>,
    /// Ended connections by Service: the most hit, at most [`MOST_HIT`].
    pub services: Vec<NamedHit>,
    /// The same by client.
    pub clients: Vec<NamedHit>,
    /// The same by server.
    pub servers: Vec<NamedHit>,
    /// The first connections that were ended, at most [`EXAMPLES`].
    pub examples: Vec<NamedEnded>,
}

/// How long a pod whose end was asked for stays after its result, to be read.
const LINGER: Duration = Duration::from_secs(45);
/// What a pod takes beyond its time: what it still waits for, and its result.
const SETTLE: Duration = Duration::from_secs(15);

/// Each node's result, or why there is none.
pub type Found = Vec<(String, Result<WitnessResult, String>)>;

/// A witness on every node of a cluster, for a time or until a signal; what each had seen by then is
/// in the result.
pub async fn watch(job: Job<'_>, args: &WitnessArgs) -> anyhow::Result<ClusterWitness> {
    let (client, say) = (job.client, job.say);
    let mut session = Session::begin(job, &args.cluster, needs).await?;
    let (nodes, mut reasons) = usable(client, args.nodes.as_deref()).await?;
    let ground = session.ground().await?;
    let mut names = Names::default();
    for node in &nodes {
        names.node(node);
    }
    let mut pods = EachNode::new(&ground, &nodes, Set::Witness, "witness");
    // A pod that is gone at the end has its name from the beginning.
    let work = async {
        learn(&mut names, client).await?;
        watched(&mut pods, args, say).await
    };
    let done = session.until(work).await;
    // No pod has anything to tell.
    let found = if let Err(Stop::Refused(_)) = &done {
        Ok(Vec::new())
    } else {
        say("results");
        let early = !matches!(done, Ok(EndedBy::Completed));
        let work = async {
            let found = collected(&pods, early).await?;
            learn(&mut names, client).await?;
            // Those that linger would hold the namespace up.
            pods.remove().await.map(|()| found)
        };
        let ended = || Err(Stop::Refused("ended before the results were read".to_owned()));
        session.or(work).await.unwrap_or_else(ended)
    };
    let nothing = |e: &Stop| !matches!(e, Stop::Api(_));
    let record = session.close(&ground, "witness", done, nothing, &mut reasons).await?;
    let found = found.unwrap_or_else(|e| {
        reasons.push(format!("results could not be read: {e}"));
        Vec::new()
    });
    for (node, result) in found.iter().filter_map(|(node, r)| Some((node, r.as_ref().ok()?))) {
        session.job.folder.save("", &format!("{node}.witness.json"), result);
    }
    Ok(ClusterWitness::new(record, session.job.cluster, &found, &names, reasons))
}

/// Watches until every node has done so for its time.
async fn watched(
    pods: &mut EachNode<'_>,
    args: &WitnessArgs,
    say: &dyn Fn(&str),
) -> Result<(), Stop> {
    let duration = args.duration;
    let change = |spec: &mut Value| {
        spec["terminationGracePeriodSeconds"] = (LINGER + SETTLE).as_secs().into();
        let container = &mut spec["containers"][0];
        if let Some(env) = container["env"].as_array_mut() {
            let millis = |d: Duration| format!("{}ms", d.as_millis());
            env.push(json!({"name": "LOAD_DURATION", "value": millis(duration)}));
            env.push(json!({"name": "LOAD_LINGER", "value": millis(LINGER)}));
        }
    };
    pods.apply(|_| {}, change).await?;
    pods.wait(Instant::now() + args.cluster.timeout, say, |p| p.ready).await?;
    say(&format!("every node watches, for {duration:?}"));
    pods.wait(Instant::now() + duration + SETTLE, say, |p| p.ended).await
}

/// Every node's result; `early` ends those that watch first.
async fn collected(pods: &EachNode<'_>, early: bool) -> Result<Found, Stop> {
    if early {
        pods.dismiss().await?;
    }
    let wait = if early { LINGER / 2 } else { Duration::from_secs(5) };
    let found = pods.words(wait, |log| run::document(log, result::read)).await;
    Ok(pods.nodes.iter().map(|n| n.name.clone()).zip(found).collect())
}

/// Reads whose each address is.
async fn learn(names: &mut Names, client: &Client) -> Result<(), Stop> {
    let params = ListParams::default().limit(500);
    let (pods, services) = (Api::<Pod>::all(client.clone()), Api::<Service>::all(client.clone()));
    each(&pods, params.clone(), "all pods", |p| names.pod(p)).await?;
    Ok(each(&services, params, "all services", |s| names.service(s)).await?)
}

impl ClusterWitness {
    /// Joins every node's result with what its addresses are called.
    #[must_use]
    pub fn new(
        run: Record,
        cluster: Cluster,
        found: &Found,
        names: &Names,
        reasons: Vec<String>,
    ) -> Self {
        let known = || found.iter().filter_map(|(node, r)| Some((node, r.as_ref().ok()?)));
        let node = |(name, result): &(String, Result<WitnessResult, String>)| {
            let (verdict, reasons, seconds_watched, connections) = match result {
                Ok(r) => (r.verdict, r.reasons.clone(), r.seconds_watched, r.connections.clone()),
                Err(why) => (Verdict::Inconclusive, vec![why.clone()], 0.0, Vec::new()),
            };
            WitnessNode { name: name.clone(), verdict, reasons, seconds_watched, connections }
        };
        let mut nodes: Vec<_> = found.iter().map(node).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let hits = |of: fn(&WitnessResult) -> &Vec<Hit>| {
            let mut sums = BTreeMap::<&str, u64>::new();
            for hit in known().flat_map(|(_, r)| of(r)) {
                *sums.entry(&hit.address).or_default() += hit.count;
            }
            let mut hits: Vec<_> = sums
                .into_iter()
                .map(|(a, count)| NamedHit { address: a.to_owned(), name: names.of(a), count })
                .collect();
            hits.sort_by_key(|h| std::cmp::Reverse(h.count));
            hits.truncate(MOST_HIT);
            hits
        };
        let name = |a: &Option<String>| a.as_deref().and_then(|a| names.of(a));
        let examples = known()
            .flat_map(|(node, r)| r.examples.iter().map(move |e| (node, e)))
            .filter(|(_, e)| e.cause.ended())
            .take(EXAMPLES)
            .map(|(node, e)| NamedEnded {
                node: node.clone(),
                client_name: name(&e.client),
                service_name: name(&e.service),
                server_name: name(&e.server),
                connection: e.clone(),
            })
            .collect();
        Self {
            schema_version: canary_record::result::SCHEMA_VERSION,
            run,
            cluster,
            verdict: whole(nodes.iter().map(|n| n.verdict), &reasons),
            reasons,
            services: hits(|r| &r.services),
            clients: hits(|r| &r.clients),
            servers: hits(|r| &r.servers),
            nodes,
            examples,
        }
    }

    fn headline(&self) -> String {
        let all: u64 = self.nodes.iter().map(WitnessNode::ended).sum();
        let hit = self.nodes.iter().filter(|n| n.ended() > 0).count();
        let seconds = self.nodes.iter().map(|n| n.seconds_watched).fold(0.0, f64::max);
        let watched = self.nodes.iter().filter(|n| n.seconds_watched > 0.0).count();
        let word = match self.verdict {
            Verdict::Vulnerable => {
                format!("INVALID SEGMENTS ENDED {all} CONNECTIONS on {hit} nodes")
            }
            Verdict::Protected => "NO CONNECTION WAS ENDED by an INVALID segment".to_owned(),
            Verdict::Inconclusive => "NOT PROVED".to_owned(),
        };
        let total = self.nodes.len();
        format!("{word}; {watched} of {total} nodes watched, {seconds:.0} s")
    }

    /// Who was hit, most often first, by kind.
    fn hits(&self) -> [(&'static str, &Vec<NamedHit>); 3] {
        [("Services", &self.services), ("clients", &self.clients), ("servers", &self.servers)]
    }
}

impl WitnessNode {
    /// Connections that an INVALID segment ended.
    fn ended(&self) -> u64 {
        self.connections.iter().filter(|c| c.cause.ended()).map(|c| c.count).sum()
    }
}

impl NamedHit {
    fn whose(&self) -> &str {
        self.name.as_deref().unwrap_or("known to nobody")
    }
}

impl Shown for ClusterWitness {
    fn table(&self, _: bool) -> String {
        use std::fmt::Write as _;
        let mut text = self.headline() + "\n";
        let mut alike = BTreeMap::<Vec<(Cause, Direction, u64)>, BTreeSet<&str>>::new();
        for n in self.nodes.iter().filter(|n| !n.connections.is_empty()) {
            let counts = n.connections.iter().map(|c| (c.cause, c.direction, c.count)).collect();
            alike.entry(counts).or_default().insert(&n.name);
        }
        for (counts, nodes) in alike {
            let nodes = nodes.into_iter().collect::<Vec<_>>().join(", ");
            for (cause, direction, count) in counts {
                let _ = writeln!(text, "  {nodes}: {count} {cause}, {direction}");
            }
        }
        for (title, hits) in self.hits() {
            if !hits.is_empty() {
                let _ = writeln!(text, "  {title}:");
            }
            for h in hits {
                let _ = writeln!(text, "    {:>6}  {} ({})", h.count, h.whose(), h.address);
            }
        }
        for n in &self.nodes {
            for r in &n.reasons {
                let _ = writeln!(text, "  - {}: {r}", n.name);
            }
        }
        for r in &self.reasons {
            let _ = writeln!(text, "  - {r}");
        }
        text
    }

    fn sheet(&self, each: bool) -> Sheet {
        let cause = |c: &CauseCount| Row {
            verdict: if c.cause.ended() { Verdict::Vulnerable } else { Verdict::Inconclusive },
            cells: vec![
                c.cause.to_string(),
                c.direction.to_string(),
                format!("{} connections", c.count),
            ],
        };
        let node = |n: &WitnessNode| Part {
            title: n.name.clone(),
            verdict: n.verdict,
            facts: format!(
                "watched for {:.0} s; {} connections ended",
                n.seconds_watched,
                n.ended()
            ),
            reasons: n.reasons.clone(),
            tables: vec![Table {
                columns: &["Cause", "Direction", "How many"],
                rows: if n.connections.is_empty() && n.verdict == Verdict::Protected {
                    let cells = ["no connection was ended", "-", "0 connections"];
                    vec![Row { verdict: n.verdict, cells: cells.map(str::to_owned).into() }]
                } else {
                    n.connections.iter().map(cause).collect()
                },
                ..Table::default()
            }],
            ..Part::default()
        };
        let hit = |h: &NamedHit| Row {
            verdict: Verdict::Vulnerable,
            cells: vec![
                h.whose().to_owned(),
                h.address.clone(),
                format!("{} connections", h.count),
            ],
        };
        let hits = |(title, hits): (&'static str, &Vec<NamedHit>)| Part {
            title: title.to_owned(),
            verdict: Verdict::Vulnerable,
            tables: vec![Table {
                columns: &["Whose", "Address", "How many ended"],
                rows: hits.iter().map(hit).collect(),
                ..Table::default()
            }],
            ..Part::default()
        };
        // Whom a node's own connections were counts of is no test of its own.
        let who = self.hits().into_iter().filter(|(_, h)| !h.is_empty() && !each).map(hits);
        Sheet {
            command: "kubectl conntrack witness",
            verdict: self.verdict,
            headline: self.headline(),
            about: self.cluster.about(&self.run),
            reasons: self.reasons.clone(),
            advice: Vec::new(),
            parts: who.chain(self.nodes.iter().map(node)).collect(),
        }
    }
}
