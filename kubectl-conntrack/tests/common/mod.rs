#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses a part")]
//! A cluster in memory: stores what is applied and runs pods by a script. Time is tokio's, so that a
//! test may stand still.

mod api;
pub mod documents;
pub mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use canary_record::names::EndedBy;
use canary_record::result::Config;
use futures_util::StreamExt as _;
use futures_util::stream::{self, LocalBoxStream};
use kubectl_conntrack::app::{Folder, Job};
use kubectl_conntrack::report::Cluster;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Signals as a closure gives them.
pub fn signals<'a, S: AsyncFnMut() -> EndedBy + 'a>(signalled: S) -> LocalBoxStream<'a, EndedBy> {
    let next = async |mut signalled: S| Some((signalled().await, signalled));
    stream::unfold(signalled, next).boxed_local()
}

/// No signal.
pub async fn never() -> EndedBy {
    std::future::pending().await
}

/// A subcommand's job in a namespace of its own, of which nobody hears.
pub fn job<'a>(
    client: &'a kube::Client,
    config: &'a Config,
    namespace: &str,
    signalled: impl AsyncFnMut() -> EndedBy + 'a,
) -> Job<'a> {
    let namespace = namespace.to_owned();
    let cluster = Cluster { context: "test".to_owned(), version: "v1.36.2".to_owned(), namespace };
    let (signals, folder) = (signals(signalled), Folder::default());
    Job { client, cluster, config, signals, folder, say: &|_| {} }
}

/// What a pod's containers do.
pub type Script = dyn Fn(&Value) -> Life + Send + Sync;

/// A pod's metrics, through the API server.
pub type Metrics = dyn Fn(&str) -> String + Send + Sync;

/// A container's log.
pub type Log = dyn Fn(&Value, &str) -> String + Send + Sync;

/// What becomes of a pod.
#[derive(Clone, Debug)]
pub enum Life {
    /// Starts, runs, ends; each container's log is given by `logs`.
    Ends { starts: Duration, runs: Duration },
    /// Stays in this state: `status` of the pod.
    Stuck(Value),
    /// Is deleted by somebody else after this time.
    Deleted(Duration),
    /// Runs and never ends.
    Runs,
}

#[derive(Default)]
struct State {
    version: u64,
    namespaces: BTreeMap<String, Value>,
    objects: BTreeMap<String, Value>,
    nodes: Vec<Value>,
    /// Calls by method and the kind of thing.
    calls: BTreeMap<String, usize>,
    denied: BTreeSet<String>,
    /// Every call fails until then.
    away_until: Option<tokio::time::Instant>,
    next_port: u16,
    dual: bool,
    /// The text that makes a pod be refused, and why.
    refuse_pods: Option<(String, String)>,
    metrics: Option<Arc<Metrics>>,
    linger: bool,
    clients: u64,
    /// Nodes whose kubelet does not answer.
    dead: BTreeSet<String>,
}

/// What a watch tells of an object. As text: thousands wait while nobody reads.
#[derive(Clone)]
struct Event {
    key: String,
    /// The object's labels, as in an object.
    labels: Value,
    line: Arc<str>,
}

impl Event {
    fn new(kind: &str, key: &str, object: &Value) -> Self {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        let labels = json!({"metadata": {"labels": object["metadata"]["labels"]}});
        Self { key: key.to_owned(), labels, line: line.into() }
    }
}

/// The API server.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Event>,
    script: Arc<Script>,
    log: Arc<Log>,
    /// Watches that will end with 410 before their first event.
    expire: Arc<Mutex<u32>>,
}

impl Fake {
    /// With `nodes` ready nodes, pods that live by `script` and logs by `log(pod, container)`.
    pub fn new(
        nodes: usize,
        script: impl Fn(&Value) -> Life + Send + Sync + 'static,
        log: impl Fn(&Value, &str) -> String + Send + Sync + 'static,
    ) -> Self {
        let nodes = (0..nodes).map(|n| node(&format!("n{n:04}"), n, "6.1.0")).collect();
        let state = State { nodes, next_port: 30000, ..State::default() };
        Self {
            state: Arc::new(Mutex::new(state)),
            events: broadcast::channel(1 << 16).0,
            script: Arc::new(script),
            log: Arc::new(log),
            expire: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    pub fn deny(&self, right: &str) {
        self.lock().denied.insert(right.to_owned());
    }

    pub fn refuse_pods(&self, why: &str) {
        self.refuse_pods_with("", why);
    }

    /// Pods that have this text alone: a container's name, a capability.
    pub fn refuse_pods_with(&self, text: &str, why: &str) {
        self.lock().refuse_pods = Some((text.to_owned(), why.to_owned()));
    }

    /// What the load's target says that it accepted.
    pub fn accepted(&self, n: u64) {
        self.metrics(move |_| format!("load_accepted_total {n}\n"));
    }

    /// What each pod's metrics are.
    pub fn metrics(&self, of: impl Fn(&str) -> String + Send + Sync + 'static) {
        self.lock().metrics = Some(Arc::new(of));
    }

    /// Load-clients that were ever made.
    pub fn clients(&self) -> u64 {
        self.lock().clients
    }

    /// Pods that are told to end stay and can be read, until they are told with no grace.
    pub fn linger(&self) {
        self.lock().linger = true;
    }

    pub fn add_pod(&self, ns: &str, name: &str, labels: &Value) {
        self.put(
            &format!("pods/{ns}/{name}"),
            json!({"metadata": {"name": name, "labels": labels}}),
        );
    }

    /// Stores an object as `KIND/NAMESPACE/NAME`.
    pub fn add(&self, key: &str, object: &Value) {
        self.put(key, object.clone());
    }

    pub fn dual_stack(&self) {
        self.lock().dual = true;
    }

    pub fn change_node(&self, n: usize, change: impl FnOnce(&mut Value)) {
        change(&mut self.lock().nodes[n]);
    }

    pub fn add_namespace(&self, name: &str, labels: &Value) {
        let ns =
            json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "labels": labels}});
        self.lock().namespaces.insert(name.to_owned(), ns);
    }

    pub fn namespaces(&self) -> Vec<String> {
        self.lock().namespaces.keys().cloned().collect()
    }

    /// Kinds and names of everything that is stored, as `pods/NAMESPACE/NAME`.
    pub fn objects(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    pub fn object(&self, key: &str) -> Option<Value> {
        self.lock().objects.get(key).cloned()
    }

    /// From now on the node's kubelet says nothing and does nothing; the node is not ready.
    pub fn kill_kubelet(&self, node: &str) {
        let mut state = self.lock();
        state.dead.insert(node.to_owned());
        for n in state.nodes.iter_mut().filter(|n| n["metadata"]["name"] == node) {
            n["status"]["conditions"] = json!([{"type": "Ready", "status": "Unknown",
                "message": "Kubelet stopped posting node status."}]);
        }
    }

    fn dead(&self, pod: &Value) -> bool {
        pod["spec"]["nodeName"].as_str().is_some_and(|n| self.lock().dead.contains(n))
    }

    /// Deletes a pod as somebody else would.
    pub fn delete_pod(&self, key: &str) -> bool {
        self.remove(key)
    }

    pub fn away(&self, time: Duration) {
        self.lock().away_until = Some(tokio::time::Instant::now() + time);
    }

    pub fn expire_watches(&self, times: u32) {
        *self.expire.lock().unwrap() = times;
    }

    pub fn calls(&self) -> BTreeMap<String, usize> {
        self.lock().calls.clone()
    }

    fn put(&self, key: &str, mut object: Value) -> Value {
        let mut state = self.lock();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let kind = if state.objects.contains_key(key) { "MODIFIED" } else { "ADDED" };
        state.objects.insert(key.to_owned(), object.clone());
        let _ = self.events.send(Event::new(kind, key, &object));
        object
    }

    fn remove(&self, key: &str) -> bool {
        let Some(object) = self.lock().objects.remove(key) else { return false };
        self.end_namespaces();
        let _ = self.events.send(Event::new("DELETED", key, &object));
        true
    }

    /// Removes each namespace that was told to go and is empty.
    fn end_namespaces(&self) {
        let mut state = self.lock();
        let State { namespaces, objects, .. } = &mut *state;
        namespaces.retain(|name, ns| {
            let inside = format!("/{name}/");
            ns["metadata"]["deletionTimestamp"].is_null()
                || objects.keys().any(|k| k.contains(&inside))
        });
    }

    /// Tells a pod to end whose kubelet does not hear it.
    fn tell(&self, key: &str) {
        let Some(mut pod) = self.object(key) else { return };
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        self.put(key, pod);
    }

    fn status(&self, key: &str, status: &Value) {
        let Some(mut object) = self.object(key) else { return };
        if self.dead(&object) {
            return;
        }
        object["status"] = status.clone();
        self.put(key, object);
    }

    /// Lets a pod live.
    fn live(&self, key: String, pod: &Value) {
        let fake = self.clone();
        let names: Vec<String> = pod["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str().map(str::to_owned))
            .collect();
        let life = (self.script)(pod);
        tokio::spawn(async move {
            let dual = fake.lock().dual;
            let number = fake.lock().version;
            let ip = format!("198.18.{}.{}", 100 + number / 250 % 100, number % 250 + 1);
            let mut ips = vec![json!({"ip": ip})];
            if dual {
                ips.push(json!({"ip": format!("fd00::{number:x}")}));
            }
            let status = |phase: &str, state: Value| {
                json!({"phase": phase, "podIP": ip, "podIPs": ips, "containerStatuses": names.iter().map(|n|
                    json!({"name": n, "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": state})).collect::<Vec<_>>()})
            };
            let running = json!({"running": {}});
            match life {
                Life::Stuck(stuck) => fake.status(&key, &stuck),
                Life::Runs => fake.status(&key, &status("Running", running)),
                Life::Deleted(after) => {
                    fake.status(&key, &status("Running", running));
                    tokio::time::sleep(after).await;
                    fake.remove(&key);
                }
                Life::Ends { starts, runs } => {
                    tokio::time::sleep(starts).await;
                    fake.status(&key, &status("Running", running));
                    tokio::time::sleep(runs).await;
                    let ended = json!({"terminated": {"exitCode": 0, "message": "done"}});
                    fake.status(&key, &status("Succeeded", ended));
                }
            }
        });
    }

    /// The node to which a pod is bound, else one by turns.
    fn scheduled(&self, pod: &Value) -> Value {
        let bound = pod["spec"]["affinity"]["nodeAffinity"].pointer(
            "/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0",
        );
        let state = self.lock();
        let turn = state.version as usize % state.nodes.len().max(1);
        bound.cloned().unwrap_or_else(|| state.nodes[turn]["metadata"]["name"].clone())
    }
}

pub fn node(name: &str, n: usize, kernel: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {
        "addresses": [{"type": "InternalIP", "address": format!("198.18.{}.{}", n / 250, n % 250 + 1)}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "nodeInfo": {"kernelVersion": kernel, "osImage": "Debian 12", "kubeletVersion": "v1.36.2", "operatingSystem": "linux",
            "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kubeProxyVersion": "", "machineID": "", "systemUUID": ""}}})
}
