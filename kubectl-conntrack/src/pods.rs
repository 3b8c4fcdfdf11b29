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
    /// Ended, with its exit status.
    Ended(i32),
}

/// Why a pod does not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// An image, and the kubelet's words why it cannot be had: no other pod of the run will get it either.
    #[error("{0}: {1}")]
    Image(String, String),
    /// This pod alone.
    #[error("{0}")]
    Pod(String),
}

/// The pod's addresses, each once.
pub(crate) fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let ips = status.pod_ips.iter().flatten().map(|p| p.ip.as_str());
    let mut all = Vec::new();
    for ip in ips.chain(status.pod_ip.as_deref()).filter_map(|a| a.parse().ok()) {
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    all
}

/// What `pod`'s status says.
pub(crate) fn look(pod: &Pod) -> Seen {
    let mut seen = Seen { addresses: addresses(pod), ..Seen::default() };
    let Some(status) = &pod.status else { return seen };
    let mut containers = status.container_statuses.iter().flatten().peekable();
    seen.ready = containers.peek().is_some() && containers.all(|c| c.ready);
    let phase = status.phase.as_deref().unwrap_or("Pending");
    for c in status.container_statuses.iter().flatten() {
        let (state, trouble) = state(c);
        seen.containers.insert(c.name.clone(), state);
        // An image's trouble is the whole run's, and so said before any other.
        if seen.trouble.is_none() || matches!(trouble, Some(Trouble::Image(..))) {
            seen.trouble = trouble.or(seen.trouble);
        }
    }
    let spec = pod.spec.iter();
    let made = spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let foreign = made.map(|c| c.name.as_str()).find(|n| !ours(n)).map(|name| {
        format!("container {name} was injected: a mesh's proxy would be measured, not the node")
    });
    let mut conditions = status.conditions.iter().flatten();
    let unscheduled = conditions.find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let unscheduled = unscheduled.filter(|_| phase == "Pending").map(|c| {
        let why = c.message.as_deref().or(c.reason.as_deref()).unwrap_or("no reason given");
        format!("not scheduled: {why}")
    });
    seen.ended = matches!(phase, "Succeeded" | "Failed");
    // Evicted, OutOfcpu, DeadlineExceeded, NodeLost: the pod itself has a reason.
    let failed = status
        .reason
        .as_ref()
        .filter(|_| phase == "Failed")
        .map(|reason| format!("{reason}: {}", status.message.as_deref().unwrap_or_default()));
    let silent = (phase == "Unknown").then(|| "the node does not answer".to_owned());
    let deleted = pod.metadata.deletion_timestamp.is_some().then(|| DELETED.to_owned());
    let whole = foreign.or(unscheduled).or(failed).or(silent).or(deleted);
    seen.trouble = seen.trouble.or(whole.map(Trouble::Pod));
    seen
}

const DELETED: &str = "the pod was deleted";

impl Seen {
    /// It is gone: what was seen of it stays, and it will not go on.
    pub fn gone(&mut self) {
        self.ended = true;
        self.trouble.get_or_insert_with(|| Trouble::Pod(DELETED.to_owned()));
    }
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
        let message = t.message.as_deref().unwrap_or_default();
        let trouble = match t.reason.as_deref() {
            Some(r @ ("OOMKilled" | "ContainerCannotRun" | "StartError")) => {
                Some(Trouble::Pod(format!("{}: {r} {message}", c.name)))
            }
            _ => None,
        };
        return (Container::Ended(t.exit_code), trouble);
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
        ) => Some(Trouble::Image(c.image.clone(), why(r))),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A proxy that a mesh injects is measured in the node's place: nothing is proved.
    #[test]
    fn an_injected_container_is_trouble() {
        let containers = json!([{"name": "server-hairpin-ipv4"}, {"name": "istio-proxy"}]);
        let pod = json!({"spec": {"containers": containers}, "status": {"phase": "Running"}});
        let seen = look(&crate::objects::typed(pod));
        let trouble = seen.trouble.unwrap().to_string();
        assert!(trouble.contains("istio-proxy was injected"), "{trouble}");
    }
}
