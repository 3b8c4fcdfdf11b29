//! `diagnose` against a cluster: makes its own pods in waves of nodes, collects what they found,
//! and deletes them in every way of ending. What is said of it is `verdict`'s.

mod wave;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use canary_record::names::Verdict;
use canary_record::result::observe::NodeShown;
use canary_wire::segment::Family;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, Client};

use crate::api::Watch;
use crate::objects::{self, Run};
use crate::plan::{self, From, Front, Node, Path};
use crate::preflight::{Right, rights};
use crate::run::{self, Stop};
use crate::verdict::NodeRow;
use wave::{FRONTS, Wave};

/// What a run needs in its namespace, and of nodes.
#[must_use]
pub fn needs(own_namespace: bool) -> Vec<Right> {
    let own: &[&str] = if own_namespace { &["get", "create", "delete"] } else { &["get"] };
    rights("", "nodes", false, &["list"])
        .chain(own.iter().map(|verb| Right {
            group: "",
            resource: "namespaces",
            verb,
            namespaced: false,
        }))
        .chain(rights("", "pods", true, &["create", "patch", "list", "watch", "delete"]))
        .chain(rights("", "pods/log", true, &["get"]))
        .chain(rights("", "services", true, &["create", "patch", "list", "delete"]))
        .collect()
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most nodes at once.
    pub wave: usize,
    /// The longest that a wave may take.
    pub timeout: Duration,
    /// Where every document goes.
    pub save: Option<PathBuf>,
    /// The families to try; all that the cluster has where it is empty.
    pub families: Vec<Family>,
    /// Whether pods and Services stay.
    pub keep: bool,
    /// Why clients may not forge; none where they may.
    pub no_forge: Option<String>,
    /// Whether the nodes' rules may be read.
    pub rules: bool,
    /// kube-proxy's mode by its configuration, where that names one.
    pub configured: Option<String>,
}

/// The families that a Service is given here: the first of the run's own is made to see it.
async fn families(client: &Client, run: &Run) -> Result<Vec<Family>, Stop> {
    let api: Api<Service> = Api::namespaced(client.clone(), &run.namespace);
    let service = run.service(Front::ClusterIp, 0, &[], &[]);
    let spec = run::apply(&api, &service, false).await?.spec.unwrap_or_default();
    let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    Ok(plan::families(addresses.filter_map(|a| a.parse().ok())))
}

/// What admission allows of what a run can do without.
#[derive(Debug)]
pub struct Allowed {
    /// Why clients may not forge; none where they may.
    pub no_forge: Option<String>,
    /// Whether a node's rules may be read, which takes NET_ADMIN.
    pub rules: bool,
}

/// A node with its index in the whole run, which names its objects.
#[derive(Debug)]
struct Member {
    index: usize,
    node: Node,
}

/// Runs over `nodes`, adding each node's row to `rows` as soon as its wave is done. `say` is
/// told how far it is.
pub async fn run(
    client: &Client,
    run: &Run,
    options: &Options,
    nodes: Vec<Node>,
    rows: &mut Vec<NodeRow>,
    say: &dyn Fn(&str),
) -> Result<(), Stop> {
    let (usable, unusable): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|n| n.unusable.is_none());
    rows.extend(unusable.into_iter().map(|n| {
        let why = n.unusable.clone().unwrap_or_default();
        unproved(&n, why)
    }));
    if usable.is_empty() {
        return Ok(());
    }
    let families = match options.families.as_slice() {
        [] => families(client, run).await?,
        named => named.to_vec(),
    };
    let families = families.as_slice();
    let members = usable.into_iter().enumerate().map(|(index, node)| Member { index, node });
    let waves = plan::waves(members.collect(), options.wave);
    let total = waves.len();
    let mut watch = Watch::begin(client, &run.namespace, &format!("{}={}", objects::RUN, run.id));
    for (n, wave) in waves.into_iter().enumerate() {
        let said =
            |what: &str| say(&format!("wave {} of {total}, {} nodes: {what}", n + 1, wave.len()));
        let wave = Wave { client, run, options, families, members: &wave };
        rows.extend(wave.go(&mut watch, &said).await?);
        if let Some((times, error)) = watch.broken.take() {
            say(&format!("the watch of pods broke {times} times and was begun anew: {error}"));
        }
        if n + 1 < total && !options.keep {
            wave.clear().await?;
        }
    }
    Ok(())
}

/// Has the API server check a Service and a pod of each kind that a run makes, without keeping
/// them: Pod Security, quotas and admission webhooks speak before anything starts.
pub async fn tried_dry(client: &Client, run: &Run, nodes: &[Node]) -> Result<Allowed, Stop> {
    let mut allowed = Allowed { no_forge: None, rules: true };
    let Some(node) = nodes.iter().find(|n| n.unusable.is_none()) else { return Ok(allowed) };
    let services: Api<Service> = Api::namespaced(client.clone(), &run.namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &run.namespace);
    for front in FRONTS {
        run::apply(&services, &run.service(front, 0, Path::ALL, &[Family::Ipv4]), true).await?;
    }
    let anywhere = (Path::HostNetwork, Family::Ipv4, SocketAddr::from(([127, 0, 0, 1], 9000)));
    let dry = [
        run.server(&node.name, 0, &[(Path::SameNode, Family::Ipv4)], &[], false),
        run.clients(&node.name, 0, From::Pod, &[anywhere], false),
        run.clients(&node.name, 0, From::Host, &[anywhere], false),
    ];
    for pod in &dry {
        let done = run::apply(&pods, pod, true).await;
        done.map_err(|e| match e.code {
            Some(code) if code < 500 => Stop::Refused(e.to_string()),
            _ => Stop::Api(e),
        })?;
    }
    let refused = async |pod: Pod| match run::apply(&pods, &pod, true).await {
        Ok(_) => Ok(None),
        Err(e) if e.code.is_some_and(|c| c < 500) => Ok(Some(e.to_string())),
        Err(e) => Err(Stop::Api(e)),
    };
    for from in [From::Pod, From::Host] {
        if allowed.no_forge.is_none() {
            let pod = run.forging_clients(&node.name, 0, from, &[anywhere]);
            allowed.no_forge = refused(pod).await?;
        }
    }
    let pod = run.clients(&node.name, 0, From::Host, &[anywhere], true);
    allowed.rules = refused(pod).await?.is_none();
    Ok(allowed)
}

/// The row of a node on which nothing was tried.
#[must_use]
pub fn unproved(node: &Node, why: String) -> NodeRow {
    NodeRow {
        name: node.name.clone(),
        kernel: node.kernel.clone(),
        os_image: node.os_image.clone(),
        kubelet: node.kubelet.clone(),
        shown: NodeShown::default(),
        verdict: Verdict::Inconclusive,
        reasons: vec![why],
        families: Vec::new(),
    }
}
