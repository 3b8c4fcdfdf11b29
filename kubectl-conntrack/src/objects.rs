//! The objects of a run as the API server takes them: pure functions of names, addresses and images.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use canary_wire::segment::Family;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceSpec};
use serde_json::{Value, json};

use crate::cli::ImageArgs;
use crate::plan::{From, Front, Member, Path};

/// The label whose value is the run's identifier: who made an object, and may delete it.
pub(crate) const RUN: &str = "conntrack-canary/run";
/// The label that ties a server's pod to its Services: its node's index in the wave.
const SERVER: &str = "conntrack-canary/server";
/// The field manager of every object, and the value of `managed-by`.
pub(crate) const MANAGER: &str = "kubectl-conntrack";
/// The label that says who manages an object.
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// What every object of every run bears.
pub(crate) const OURS: &str = "app.kubernetes.io/managed-by=kubectl-conntrack";
/// Pod Security's level of a namespace.
pub(crate) const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
/// The container of a server that forges nothing, for clients that do.
pub(crate) const SINK: &str = "sink";
/// The container that reads what a node shows of itself.
pub(crate) const FACTS: &str = "node";

/// One run in one namespace.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its identifier: unique, a label's value.
    pub id: String,
    /// Where its pods and Services are.
    pub namespace: String,
    /// Which images.
    pub images: ImageArgs,
}

/// Connections that a server judges: 25 for each of the six forgeries, of which "protected" needs 20.
const FORGED: u32 = 150;
/// Connections of a client that forges: 25 for each of three.
const FORGED_UP: u32 = 75;
/// Connections that a client opens at once, each second.
const AT_ONCE: u32 = 25;
/// For so many seconds.
const SECONDS: u32 = 8;
/// The longest that a client waits for its Service's rules: until then kube-proxy's own socket may
/// answer for a node port.
const AWAIT: &str = "30s";

pub(crate) type Target = (Path, Family, SocketAddr);

/// The container's name of a path's client in a family.
pub(crate) fn client(forges: bool, path: Path, family: Family) -> String {
    format!("{}{path}-{family}", if forges { "up-" } else { "" })
}

/// The container's name of a path's server in a family.
pub(crate) fn server(path: Path, family: Family) -> String {
    format!("server-{path}-{family}")
}

impl Run {
    fn meta(&self, name: &str, component: &str) -> Value {
        json!({"name": name, "namespace": self.namespace, "labels": {
            "app.kubernetes.io/name": if component == "server" { "boom-server" } else { "load-client" },
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/part-of": "conntrack-canary",
            MANAGED_BY: MANAGER,
            RUN: self.id,
        }})
    }

    /// The namespace, where the run makes its own.
    pub fn namespace(&self) -> Namespace {
        typed(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": {
                "app.kubernetes.io/part-of": "conntrack-canary",
                MANAGED_BY: MANAGER,
                // NET_RAW and the host network are beyond the baseline level.
                ENFORCE: "privileged",
                RUN: self.id,
            }}}),
        )
    }

    /// The Service of `front` before the server `index`, with a port for each path that goes there in
    /// each of `families`: a cluster's node ports are few.
    pub fn service(
        &self,
        front: Front,
        index: usize,
        paths: &[Path],
        families: &[Family],
    ) -> Service {
        let (kind, policy) = match front {
            Front::ClusterIp | Front::Pod | Front::Node => ("ClusterIP", None),
            Front::NodePort => ("NodePort", Some("Cluster")),
            Front::NodePortLocal => ("NodePort", Some("Local")),
        };
        let ports: Vec<_> = paths
            .iter()
            .filter(|p| p.front() == front)
            .flat_map(|p| families.iter().map(|f| p.port(*f)))
            .chain([Path::SameNode.sink_port()])
            .map(|port| {
                // A port's name has 15 characters at most.
                json!({"name": format!("p{port}"), "port": port, "targetPort": port, "protocol": "TCP"})
            })
            .collect();
        let mut spec = json!({
            "type": kind, "ports": ports, "selector": {SERVER: index.to_string(), RUN: self.id},
            "ipFamilyPolicy": "PreferDualStack",
            // The hairpin's client starts in the pod that it talks to.
            "publishNotReadyAddresses": true,
        });
        if let Some(policy) = policy {
            spec["externalTrafficPolicy"] = policy.into();
        }
        typed(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": self.meta(&service_name(front, index), "server"), "spec": spec}))
    }

    /// The pod with a boom-server for each path and family that ends at this node, and the hairpin's
    /// clients: one for each family, with its target and sink; with `forge` one more that forges.
    pub fn server(
        &self,
        on: &Member,
        paths: &[(Path, Family)],
        hairpin: &[(Family, SocketAddr, SocketAddr)],
        forge: bool,
    ) -> Pod {
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let sink = self.sink(&[any(Path::SameNode.sink_port())]);
        let servers = paths.iter().map(|(p, f)| self.forging_server(*p, *f, any(p.port(*f)), &[]));
        let path = Path::Hairpin;
        let clients = hairpin.iter().map(|(family, to, _)| self.client(false, path, *family, *to));
        let forging = hairpin.iter().filter(|_| forge);
        let forging = forging.map(|(family, _, sink)| self.client(true, path, *family, *sink));
        let all: Vec<_> = servers.chain([sink]).chain(clients).chain(forging).collect();
        let mut pod = self.pod(&server_name(Front::Pod, on.index), on, "server", &all);
        pod["metadata"]["labels"][SERVER] = on.index.to_string().into();
        typed(pod)
    }

    /// The pod with a boom-server for each of the node's own `addresses`, on its network. It tells
    /// connections from `clients`, the client's node's addresses: those were masqueraded.
    pub fn host_server(&self, on: &Member, addresses: &[IpAddr], clients: &[IpAddr]) -> Pod {
        let path = Path::Egress;
        let clients: Vec<_> = clients.iter().map(IpAddr::to_string).collect();
        let env = [json!({"name": "BOOM_NODE_IP", "value": clients.join(",")})];
        let servers = addresses.iter().map(|ip| {
            let family = Family::of(*ip);
            self.forging_server(path, family, (*ip, path.port(family)).into(), &env)
        });
        let sinks: Vec<SocketAddr> =
            addresses.iter().map(|ip| (*ip, path.sink_port()).into()).collect();
        let all: Vec<_> = servers.chain([self.sink(&sinks)]).collect();
        let mut pod = self.pod(&server_name(path.front(), on.index), on, "server", &all);
        pod["spec"]["hostNetwork"] = true.into();
        typed(pod)
    }

    /// A boom-server that forges on the connections of one path.
    fn forging_server(&self, path: Path, family: Family, at: SocketAddr, env: &[Value]) -> Value {
        let own = [
            json!({"name": "BOOM_FORGE", "value": "control,above-window,below-window,ack-ahead,no-flags,syn-fin"}),
            json!({"name": "BOOM_ON_RESET", "value": "count"}),
            json!({"name": "BOOM_CONNECTIONS", "value": FORGED.to_string()}),
            json!({"name": "BOOM_DURATION", "value": "60s"}),
            // Its last client goes first: what is cut off by a server's end is a reset, too.
            json!({"name": "BOOM_HOLD", "value": "30s"}),
        ];
        let env: Vec<_> = own.iter().chain(env).cloned().collect();
        self.boom_server(&server(path, family), &[at], &env)
    }

    /// One that forges nothing.
    fn sink(&self, at: &[SocketAddr]) -> Value {
        self.boom_server(SINK, at, &[json!({"name": "BOOM_FORGE", "value": "none"})])
    }

    fn boom_server(&self, name: &str, at: &[SocketAddr], env: &[Value]) -> Value {
        let listen: Vec<_> = at.iter().map(SocketAddr::to_string).collect();
        let port = at.first().map_or(0, SocketAddr::port);
        let own = [
            json!({"name": "BOOM_LISTEN", "value": listen.join(",")}),
            json!({"name": "BOOM_ADMIN", "value": "none"}),
            json!({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}),
        ];
        json!({
            "name": name,
            "image": self.images.of("boom-server"), "imagePullPolicy": "IfNotPresent",
            "env": own.iter().chain(env).collect::<Vec<_>>(),
            "ports": [{"name": format!("p{port}"), "containerPort": port, "protocol": "TCP"}],
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": user_0_with("NET_RAW"),
            "resources": {"requests": {"cpu": "2m", "memory": "8Mi"}, "limits": {"memory": "96Mi"}},
        })
    }

    /// A pod of clients, one for each target, on the pod network or the host's, which forge or not. Those on
    /// the host's that do not read the node's facts too, with `rules` what takes NET_ADMIN.
    pub fn clients(
        &self,
        forge: bool,
        on: &Member,
        from: From,
        targets: &[Target],
        rules: bool,
    ) -> Pod {
        let client = |(path, family, to): &Target| self.client(forge, *path, *family, *to);
        let mut containers: Vec<_> = targets.iter().map(client).collect();
        if from == From::Host && !forge {
            let mut facts = self.load_client(FACTS, "observe --duration 1s --interval 1s");
            if rules {
                facts["securityContext"] = user_0_with("NET_ADMIN");
            }
            containers.push(facts);
        }
        let mut pod = self.pod(&client_name(forge, from, on.index), on, "client", &containers);
        if from == From::Host {
            pod["spec"]["hostNetwork"] = true.into();
            pod["spec"]["dnsPolicy"] = "ClusterFirstWithHostNet".into();
        }
        typed(pod)
    }

    /// One client. What one forges towards the server tells an exposed node, bad flags and none apart.
    fn client(&self, forge: bool, path: Path, family: Family, to: SocketAddr) -> Value {
        let how = if forge {
            format!("--connections {FORGED_UP} --forge control,above-window,syn-fin --timeout 3s")
        } else {
            format!(
                "--connections {AT_ONCE} --every 1s --duration {SECONDS}s --delay 4s --timeout 5s"
            )
        };
        let line = format!("probe --target tcp://{to} {how} --await-answer {AWAIT}");
        let mut container = self.load_client(&client(forge, path, family), &line);
        if forge {
            container["securityContext"] = user_0_with("NET_RAW");
        }
        container
    }

    fn load_client(&self, name: &str, line: &str) -> Value {
        json!({
            "name": name, "image": self.images.of("load-client"), "imagePullPolicy": "IfNotPresent",
            "args": line.split(' ').collect::<Vec<_>>(),
            "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "2m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}},
        })
    }

    fn pod(&self, name: &str, at: &Member, component: &str, containers: &[Value]) -> Value {
        let mut metadata = self.meta(name, component);
        // A proxy in the pod would be measured in the place of the node.
        metadata["annotations"] =
            json!({"sidecar.istio.io/inject": "false", "linkerd.io/inject": "disabled"});
        metadata["labels"]["sidecar.istio.io/inject"] = "false".into();
        metadata["labels"]["istio.io/dataplane-mode"] = "none".into();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": 300,
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "affinity": on(&at.node.name),
            // A cordoned or tainted node is exposed like any other.
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": containers,
        }})
    }
}

/// User 0 with one capability: added to another user it would have no effect.
fn user_0_with(capability: &str) -> Value {
    json!({"runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": [capability]}})
}

/// Binds a pod to a node as the DaemonSet controller does: by the scheduler, which looks at the room.
pub(crate) fn on(node: &str) -> Value {
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}})
}

/// The pod of a server behind `front`: of the node's own address it is on the node's network.
pub(crate) fn server_name(front: Front, index: usize) -> String {
    match front {
        Front::Node => format!("host-server-{index}"),
        _ => format!("server-{index}"),
    }
}

pub(crate) fn client_name(forge: bool, from: From, index: usize) -> String {
    let up = if forge { "up-" } else { "" };
    match from {
        From::Pod => format!("{up}client-{index}"),
        From::ServerPod => server_name(Front::Pod, index),
        From::Host => format!("{up}host-client-{index}"),
    }
}

pub(crate) fn service_name(front: Front, index: usize) -> String {
    let kind = match front {
        Front::ClusterIp | Front::Pod | Front::Node => "cluster-ip",
        Front::NodePort => "node-port",
        Front::NodePortLocal => "node-port-local",
    };
    format!("{kind}-{index}")
}

/// Where a client of `path` in `family` goes for a server's `port`: the Service's address and port, a node's or the
/// pod's own. None where one of them has no address of the family, with what is missing.
pub(crate) fn target(
    path: Path,
    family: Family,
    port: u16,
    service: Option<&Service>,
    node: Option<IpAddr>,
    pod: Option<IpAddr>,
) -> Result<SocketAddr, String> {
    let spec = || service.and_then(|s| s.spec.as_ref()).ok_or("its Service is missing".to_owned());
    let node = || node.ok_or(format!("the node has no internal {family} address"));
    let cluster_ip = |spec| {
        let ip = cluster_ips(spec).find(|a| Family::of(*a) == family);
        ip.ok_or(format!("its Service has no {family} address"))
    };
    let (ip, port) = match path.front() {
        Front::Pod => (pod.ok_or(format!("the pods have no {family} address"))?, port),
        Front::Node => (node()?, port),
        Front::ClusterIp => (cluster_ip(spec()?)?, port),
        Front::NodePort | Front::NodePortLocal => {
            let (node, spec) = (node()?, spec()?);
            cluster_ip(spec)?;
            let mut ports = spec.ports.iter().flatten().filter(|p| p.port == i32::from(port));
            let port = ports.find_map(|p| u16::try_from(p.node_port?).ok());
            (node, port.ok_or("its Service has no node port")?)
        }
    };
    Ok(SocketAddr::new(ip, port))
}

/// A Service's own addresses.
pub(crate) fn cluster_ips(spec: &ServiceSpec) -> impl Iterator<Item = IpAddr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    all.filter_map(|a| a.parse().ok())
}

/// An object of the API from its JSON.
///
/// # Panics
/// Where the JSON is none of `T`: an error of this file, which its tests would show.
pub(crate) fn typed<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("an object of the API")
}
