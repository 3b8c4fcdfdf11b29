//! What a pod's status says: started, ended, or why neither. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// A pod as far as a run needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Each container by its name.
    pub containers: BTreeMap<String, Container>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// True while every container says that it is ready.
    pub ready: bool,
    /// Why the pod does not run or cannot be trusted; none while all is well.
    pub trouble: Option<Trouble>,
    /// True once no container runs or will run.
    pub ended: bool,
}

/// A container's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Container {
    /// Not begun.
    Waiting,
    /// Running.
    Running,
    /// Ended, with its exit status and termination message.
    Ended(i32, String),
}

/// Why a pod does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// An image cannot be had: no other pod of the run will get it either.
    Image {
        /// Its name.
        image: String,
        /// The kubelet's reason and message.
        why: String,
    },
    /// This pod alone.
    Pod(String),
}

/// What `pod`'s status says.
#[must_use]
pub fn look(pod: &Pod) -> Seen {
    let mut seen = Seen::default();
    let Some(status) = &pod.status else { return seen };
    let ips = status.pod_ips.iter().flatten().map(|p| p.ip.as_str());
    for ip in ips.chain(status.pod_ip.as_deref()).filter_map(|a| a.parse().ok()) {
        if !seen.addresses.contains(&ip) {
            seen.addresses.push(ip);
        }
    }
    let mut containers = status.container_statuses.iter().flatten().peekable();
    seen.ready = containers.peek().is_some() && containers.all(|c| c.ready);
    let phase = status.phase.as_deref().unwrap_or("Pending");
    for c in status.container_statuses.iter().flatten() {
        let (state, trouble) = state(c);
        seen.containers.insert(c.name.clone(), state);
        // An image's trouble is the whole run's, and so said before any other.
        if seen.trouble.is_none() || matches!(trouble, Some(Trouble::Image { .. })) {
            seen.trouble = trouble.or(seen.trouble);
        }
    }
    let made = pod
        .spec
        .iter()
        .flat_map(|s| &s.containers)
        .chain(pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten()));
    let foreign = made.map(|c| c.name.as_str()).find(|n| !ours(n));
    if let Some(name) = foreign {
        seen.trouble.get_or_insert_with(|| {
            Trouble::Pod(format!(
                "container {name} was injected: a mesh's proxy would be measured, not the node"
            ))
        });
    }
    let condition = |kind: &str| {
        status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "False")
    };
    if phase == "Pending"
        && let Some(c) = condition("PodScheduled")
    {
        let why = c.message.as_deref().or(c.reason.as_deref()).unwrap_or("no reason given");
        seen.trouble.get_or_insert_with(|| Trouble::Pod(format!("not scheduled: {why}")));
    }
    seen.ended = matches!(phase, "Succeeded" | "Failed");
    // Evicted, OutOfcpu, DeadlineExceeded, NodeLost: the pod itself has a reason.
    if phase == "Failed"
        && let Some(reason) = &status.reason
    {
        let message = status.message.as_deref().unwrap_or_default();
        seen.trouble.get_or_insert_with(|| Trouble::Pod(format!("{reason}: {message}")));
    }
    if phase == "Unknown" {
        seen.trouble.get_or_insert_with(|| Trouble::Pod("the node does not answer".to_owned()));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        seen.trouble.get_or_insert_with(|| Trouble::Pod("the pod was deleted".to_owned()));
    }
    seen
}

/// Containers that a run makes are named after a path, or read a node's facts.
fn ours(name: &str) -> bool {
    matches!(name, crate::objects::FACTS | crate::objects::SINK)
        || matches!(name, "boom-server" | "load-client" | "tune" | "drop-invalid" | "unprotect")
        || crate::plan::Path::ALL.iter().any(|p| {
            let path = name.strip_prefix("server-").or_else(|| name.strip_prefix("up-"));
            let rest = path.unwrap_or(name).strip_prefix(p.as_str());
            matches!(rest, Some("-ipv4" | "-ipv6"))
        })
}

fn state(c: &ContainerStatus) -> (Container, Option<Trouble>) {
    let Some(state) = &c.state else { return (Container::Waiting, None) };
    if let Some(t) = &state.terminated {
        let message = t.message.clone().unwrap_or_default();
        let trouble = match t.reason.as_deref() {
            Some(r @ ("OOMKilled" | "ContainerCannotRun" | "StartError")) => {
                Some(Trouble::Pod(format!("{}: {r} {message}", c.name)))
            }
            _ => None,
        };
        return (Container::Ended(t.exit_code, message), trouble);
    }
    if state.running.is_some() {
        return (Container::Running, None);
    }
    let Some(w) = &state.waiting else { return (Container::Waiting, None) };
    let why = |reason: &str| format!("{reason}: {}", w.message.as_deref().unwrap_or_default());
    let trouble = match w.reason.as_deref() {
        Some(
            r @ ("ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "RegistryUnavailable"
            | "ImageInspectError"),
        ) => Some(Trouble::Image { image: c.image.clone(), why: why(r) }),
        Some(
            r @ ("CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
            | "CrashLoopBackOff"),
        ) => Some(Trouble::Pod(format!("{}: {}", c.name, why(r)))),
        _ => None,
    };
    (Container::Waiting, trouble)
}
