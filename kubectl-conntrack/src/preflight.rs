//! What a run needs before it changes anything: rights, a namespace, nodes.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node as ApiNode};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::api::{ApiError, PARALLEL, Stop, call, each};
use crate::objects::{OURS, RUN, typed};
use crate::plan::Node;

/// How long what a run can do without may take.
const SOON: Duration = Duration::from_secs(3);

/// A verb on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The API group; empty for the core's.
    pub group: &'static str,
    /// The resource, with its subresource after a slash.
    pub resource: &'static str,
    /// The verb.
    pub verb: &'static str,
    /// True where it is asked for in the run's namespace.
    pub namespaced: bool,
}

/// The rights of each verb in `verbs` on a resource.
pub(crate) fn rights(
    group: &'static str,
    resource: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
) -> impl Iterator<Item = Right> {
    verbs.iter().map(move |verb| Right { group, resource, verb, namespaced })
}

/// Ends unless this user has every right in `wanted`; the missing ones are printed as the role
/// that grants them.
pub(crate) async fn permitted(
    client: &Client,
    namespace: &str,
    wanted: &[Right],
) -> Result<(), Stop> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let ask = |right: Right| {
        let reviews = reviews.clone();
        async move {
            let (resource, subresource) = match right.resource.split_once('/') {
                Some((resource, sub)) => (resource, Some(sub)),
                None => (right.resource, None),
            };
            let review = typed(json!({"spec": {"resourceAttributes": {
                "group": right.group, "resource": resource, "subresource": subresource, "verb": right.verb,
                "namespace": right.namespaced.then_some(namespace),
            }}}));
            let params = PostParams::default();
            let what = format!("ask for the right to {} {}", right.verb, right.resource);
            let answer = call(what, async || reviews.create(&params, &review).await).await?;
            Ok::<_, ApiError>((right, answer.status.is_some_and(|s| s.allowed)))
        }
    };
    let answers: Vec<(Right, bool)> =
        stream::iter(wanted.iter().copied().map(ask)).buffered(PARALLEL).try_collect().await?;
    let missing: Vec<_> = answers.iter().filter(|(_, allowed)| !allowed).map(|(r, _)| *r).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Stop::Refused(format!(
        "{} of {} rights are missing; this role grants them:\n{}",
        missing.len(),
        wanted.len(),
        role(&missing)
    )))
}

/// The ClusterRole that grants `missing`, as YAML to apply.
fn role(missing: &[Right]) -> String {
    use std::fmt::Write as _;
    let mut by_resource = std::collections::BTreeMap::<_, Vec<_>>::new();
    for r in missing {
        by_resource.entry((r.group, r.resource)).or_default().push(r.verb);
    }
    let mut text = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\n\
        metadata: {name: kubectl-conntrack}\nrules:\n"
        .to_owned();
    for ((group, resource), verbs) in by_resource {
        let _ = writeln!(
            text,
            "  - {{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{}]}}",
            verbs.join(", ")
        );
    }
    text
}

/// The namespaces other than `own` that runs made, with their identifiers; none where this user may
/// not list namespaces.
pub(crate) async fn left_elsewhere(client: &Client, own: &str) -> Vec<(String, String)> {
    let api: Api<Namespace> = Api::all(client.clone());
    let params = ListParams::default().labels(OURS);
    let Ok(Ok(found)) = tokio::time::timeout(SOON, api.list(&params)).await else {
        return Vec::new();
    };
    let made = |n: &Namespace| Some((n.name_any(), n.labels().get(RUN)?.clone()));
    found.items.iter().filter(|n| n.name_any() != own).filter_map(made).collect()
}

/// Where kube-proxy's configuration is: as kubeadm has it, and as EKS does.
const CONFIGURED: [&str; 2] = ["kube-proxy", "kube-proxy-config"];

/// kube-proxy's mode by the ConfigMap that configures it; none where there is none such that this
/// user may read, or where it names no mode.
pub(crate) async fn proxy_mode(client: &Client) -> Option<String> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    for name in CONFIGURED {
        // Not worth waiting for.
        if let Ok(Ok(Some(map))) = tokio::time::timeout(SOON, api.get_opt(name)).await {
            return map.data.unwrap_or_default().values().find_map(|text| configured_mode(text));
        }
    }
    None
}

/// The mode that a KubeProxyConfiguration names.
fn configured_mode(text: &str) -> Option<String> {
    let config = serde_saphyr::from_str::<serde_json::Value>(text).ok()?;
    let mode = config["mode"].as_str().filter(|m| !m.is_empty())?;
    (config["kind"] == "KubeProxyConfiguration").then(|| mode.to_owned())
}

/// The Linux nodes that `selector` chooses, by name; those that are not ready are unusable.
pub(crate) async fn nodes(client: &Client, selector: Option<&str>) -> Result<Vec<Node>, ApiError> {
    let api: Api<ApiNode> = Api::all(client.clone());
    let mut params = ListParams::default().limit(250);
    params.label_selector = selector.map(str::to_owned);
    let mut nodes = Vec::new();
    each(&api, params, "nodes", |n| nodes.extend(node(n))).await?;
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(nodes)
}

/// A node as the plan wants it; none where it is not Linux.
fn node(n: &ApiNode) -> Option<Node> {
    let status = n.status.clone().unwrap_or_default();
    let info = status.node_info.unwrap_or_default();
    if !info.operating_system.is_empty() && info.operating_system != "linux" {
        return None;
    }
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    let ready_since = ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0.to_string());
    let unusable = match ready {
        Some(c) if c.status == "True" => None,
        Some(c) => Some(format!("not ready: {}", c.message.as_deref().unwrap_or("no message"))),
        None => Some("not ready: it never said so".to_owned()),
    };
    let internal = status.addresses.iter().flatten().filter(|a| a.type_ == "InternalIP");
    Some(Node {
        name: n.name_any(),
        kernel: info.kernel_version,
        os_image: info.os_image,
        kubelet: info.kubelet_version,
        addresses: internal.filter_map(|a| a.address.parse().ok()).collect(),
        ready_since,
        unusable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A KubeProxyConfiguration's mode is read; one that names none, another kind and noise say nothing.
    #[test]
    fn the_configured_mode_is_read() {
        let of = |kind: &str, mode: &str| {
            configured_mode(&format!("apiVersion: v1\nkind: {kind}\nmode: {mode}\n"))
        };
        assert_eq!(of("KubeProxyConfiguration", "nftables").as_deref(), Some("nftables"));
        assert_eq!(of("KubeProxyConfiguration", "\"\""), None);
        assert_eq!(of("Config", "nftables"), None);
        assert_eq!(configured_mode("\t:"), None);
        assert_eq!(configured_mode("kind: KubeProxyConfiguration"), None);
    }
}
