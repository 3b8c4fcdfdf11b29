//! `diagnose` against a cluster: makes its own pods in waves of nodes, collects what they found,
//! and deletes them in every way of ending. What is said of it is `verdict`'s.

mod wave;

use std::net::SocketAddr;

use canary_record::names::Verdict;
use canary_record::result::observe::NodeShown;
use canary_wire::segment::Family;
use k8s_openapi::api::core::v1::Service;

use crate::api::Stop;
use crate::cli::DiagnoseArgs;
use crate::objects::cluster_ips;
use crate::plan::{self, From, Front, Member, Node, Path};
use crate::preflight::{Right, rights};
use crate::run::Ground;
use crate::verdict::NodeRow;
use wave::{FRONTS, Wave};

/// What a run needs in its namespace, and of nodes.
#[must_use]
pub fn needs(own_namespace: bool) -> Vec<Right> {
    let own: &[_] = if own_namespace { &["get", "create", "delete"] } else { &["get"] };
    rights("", "nodes", false, &["list"])
        .chain(rights("", "namespaces", false, own))
        .chain(rights("", "pods", true, &["create", "patch", "list", "watch", "delete"]))
        .chain(rights("", "pods/log", true, &["get"]))
        .chain(rights("", "services", true, &["create", "patch", "list", "delete"]))
        .collect()
}

/// What admission allows of what a run can do without.
#[derive(Debug)]
pub struct Allowed {
    /// Why clients may not forge; none where they may.
    pub no_forge: Option<String>,
    /// Whether a node's rules may be read, which takes NET_ADMIN.
    pub rules: bool,
}

/// Runs over `nodes`, adding each node's row to `rows` as soon as its wave is done. `configured` is
/// kube-proxy's mode by its configuration, where that names one. `say` is told how far it is.
pub async fn run(
    ground: &Ground,
    args: &DiagnoseArgs,
    configured: Option<&str>,
    nodes: Vec<Node>,
    rows: &mut Vec<NodeRow>,
    say: &dyn Fn(&str),
) -> Result<(), Stop> {
    let allowed = tried_dry(ground, &nodes).await?;
    let (usable, unusable): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|n| n.unusable.is_none());
    rows.extend(unusable.iter().map(|n| unproved(n, n.unusable.clone().unwrap_or_default())));
    let families = match args.family.as_slice() {
        // The first Service of the run's own is made to see what it is given here.
        [] => {
            let service = ground.run.service(Front::ClusterIp, 0, &[], &[]);
            let spec = ground.apply(&service).await?.spec.unwrap_or_default();
            plan::families(cluster_ips(&spec))
        }
        named => named.to_vec(),
    };
    let members = usable.into_iter().enumerate().map(|(index, node)| Member { index, node });
    let waves = plan::waves(members.collect(), args.parallel as usize);
    let total = waves.len();
    let mut watch = ground.watch(None);
    for (n, members) in waves.iter().enumerate() {
        let said = |what: &str| {
            say(&format!("wave {} of {total}, {} nodes: {what}", n + 1, members.len()));
        };
        let families = families.as_slice();
        let wave = Wave { ground, args, allowed: &allowed, configured, families, members };
        rows.extend(wave.go(&mut watch, &said).await?);
        if let Some((times, error)) = watch.broken.take() {
            say(&format!("the watch of pods broke {times} times and was begun anew: {error}"));
        }
        if n + 1 < total && !args.cluster.keep {
            wave.clear().await?;
        }
    }
    Ok(())
}

/// Has the API server check a Service and a pod of each kind that a run makes, without keeping
/// them: Pod Security, quotas and admission webhooks speak before anything starts.
async fn tried_dry(ground: &Ground, nodes: &[Node]) -> Result<Allowed, Stop> {
    let mut allowed = Allowed { no_forge: None, rules: true };
    let Some(node) = nodes.iter().find(|n| n.unusable.is_none()) else { return Ok(allowed) };
    let (run, on) = (&ground.run, &Member { index: 0, node: node.clone() });
    for front in FRONTS {
        let service: Service = run.service(front, 0, Path::ALL, &[Family::Ipv4]);
        ground.try_dry(&service).await?;
    }
    let anywhere = (Path::HostNetwork, Family::Ipv4, SocketAddr::from(([127, 0, 0, 1], 9000)));
    for pod in [
        run.server(on, &[(Path::SameNode, Family::Ipv4)], &[], false),
        run.clients(false, on, From::Pod, &[anywhere], false),
        run.clients(false, on, From::Host, &[anywhere], false),
    ] {
        ground.try_dry(&pod).await?;
    }
    for from in [From::Pod, From::Host] {
        if allowed.no_forge.is_none() {
            let pod = run.clients(true, on, from, &[anywhere], false);
            allowed.no_forge = ground.refusal(&pod).await?;
        }
    }
    let pod = run.clients(false, on, From::Host, &[anywhere], true);
    allowed.rules = ground.refusal(&pod).await?.is_none();
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
