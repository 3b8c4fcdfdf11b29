//! `diagnose` against a cluster: makes its own pods in waves of nodes, collects what they found,
//! and deletes them in every way of ending. What is said of it is `verdict`'s.

mod wave;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use canary_runtime::cli::derive;
use canary_wire::segment::Family;
use k8s_openapi::api::core::v1::Service;

use crate::api::Stop;
use crate::app::{Job, Session, nodes};
use crate::cli::DiagnoseArgs;
use crate::objects::cluster_ips;
use crate::plan::{self, From, Front, Member, Node, Path};
use crate::preflight::{self, Right, rights};
use crate::report::DiagnoseResult;
use crate::run::{Folder, Ground};
use crate::verdict::NodeRow;
use wave::{FRONTS, Wave};

/// What a run needs in its namespace, and of nodes.
pub(crate) fn needs(own_namespace: bool) -> Vec<Right> {
    let own: &[_] = if own_namespace { &["get", "create", "delete"] } else { &["get"] };
    rights("", "nodes", false, &["list"])
        .chain(rights("", "namespaces", false, own))
        .chain(rights("", "pods", true, &["create", "patch", "list", "watch", "delete"]))
        .chain(rights("", "pods/log", true, &["get"]))
        .chain(rights("", "services", true, &["create", "patch", "list", "delete"]))
        .collect()
}

/// What admission allows of what a run can do without.
struct Allowed {
    /// Why clients may not forge; none where they may.
    no_forge: Option<String>,
    /// Whether a node's rules may be read, which takes NET_ADMIN.
    rules: bool,
}

/// A diagnosis of a cluster, until its end or a signal; what it made is removed either way. An error
/// says that nothing was measured and what to mend.
pub async fn diagnosis(job: Job<'_>, args: &DiagnoseArgs) -> anyhow::Result<DiagnoseResult> {
    let (client, say) = (job.client, job.say);
    let mut session = Session::begin(job, &args.cluster, needs).await?;
    let nodes = nodes(client, args.nodes.as_deref()).await?;
    let (nodes, left_out) = plan::sampled(nodes, args.sample.map(|n| n as usize));
    let configured = preflight::proxy_mode(client).await;
    let ground = session.ground().await?;
    let mut rows = Vec::new();
    let (configured, folder) = (configured.as_deref(), session.job.folder.clone());
    let work = run(&ground, args, &folder, configured, nodes.clone(), &mut rows, say);
    let done = session.until(Box::pin(work)).await;
    let mut reasons = Vec::new();
    let nothing = |e: &Stop| rows.is_empty() && !matches!(e, Stop::Api(_));
    let mut record = session.close(&ground, "diagnose", done, nothing, &mut reasons).await?;
    let known: BTreeSet<_> = rows.iter().map(|r| r.name.clone()).collect();
    let cut = nodes.iter().filter(|n| !known.contains(&n.name));
    rows.extend(cut.map(|n| unproved(n, "the run ended before its turn".to_owned())));
    if !left_out.is_empty() {
        derive(&mut record.config, "left-out-by-sample", &left_out.join(","));
    }
    Ok(DiagnoseResult::new(record, session.job.cluster, rows, reasons))
}

/// Runs over `nodes`, adding each node's row to `rows` as soon as its wave is done. `configured` is
/// kube-proxy's mode by its configuration, where that names one. `say` is told how far it is.
async fn run(
    ground: &Ground,
    args: &DiagnoseArgs,
    folder: &Folder,
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
        let wave = Wave { ground, args, folder, allowed: &allowed, configured, families, members };
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
        reasons: vec![why],
        ..NodeRow::default()
    }
}
