//! What every subcommand does with the cluster: proves that it may, makes what is its own, and
//! removes that and nothing else.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use canary_record::names::EndedBy;
use canary_runtime::output::ResultFile;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{
    DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions,
};
use kube::core::ObjectList;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::api::{ApiError, Gave, PARALLEL, Watch, call};
use crate::objects::{ENFORCE, MANAGER, RUN, Run};
use crate::preflight::{self, NamespaceState, Right};

/// Why a run ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// A call failed for good, or the API server did not come back.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// An image that the nodes cannot have.
    #[error("image {image} cannot be had: {why}\n  {}", image_mend(.image))]
    Image {
        /// Its name.
        image: String,
        /// The kubelet's words.
        why: String,
    },
    /// Something that must hold before anything is changed does not.
    #[error("{0}")]
    Refused(String),
    /// A file of results.
    #[error("cannot write {path}: {source}")]
    Save {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// How an image gets to the nodes.
fn image_mend(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    format!(
        "push it (make images REGISTRY=...) and name it: --registry REGISTRY, or load it into the nodes: \
         make load-images CLUSTER=kind|minikube ({name})"
    )
}

/// Server-side apply, which may be repeated. With `dry` the API server does everything but keep it.
pub async fn apply<K>(api: &Api<K>, object: &K, dry: bool) -> Result<K, ApiError>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize,
    K::DynamicType: Default,
{
    let mut params = PatchParams::apply(MANAGER).force();
    params.dry_run = dry;
    let (kind, name) = (K::kind(&K::DynamicType::default()).into_owned(), object.name_any());
    let what = format!("{} {kind} {name}", if dry { "try (dry-run)" } else { "apply" });
    call(what, async || api.patch(&name, &params, &Patch::Apply(object)).await).await
}

/// Deletes each of `names` at once; one that is gone is no error.
pub async fn delete_all<K>(api: &Api<K>, names: impl Iterator<Item = String>) -> Result<(), Stop>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    delete(api, names, &DeleteParams::background().grace_period(0)).await
}

/// The same with their own grace, in which a pod puts back what it changed.
pub async fn dismiss_all<K>(api: &Api<K>, names: impl Iterator<Item = String>) -> Result<(), Stop>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    delete(api, names, &DeleteParams::background()).await
}

async fn delete<K>(
    api: &Api<K>,
    names: impl Iterator<Item = String>,
    params: &DeleteParams,
) -> Result<(), Stop>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let one = |name: String| async move {
        let what = format!("delete {name}");
        let done = call(what, async || match api.delete(&name, params).await {
            Err(kube::Error::Api(s)) if s.code == 404 => Ok(()),
            other => other.map(drop),
        });
        done.await.map_err(Stop::Api)
    };
    stream::iter(names.map(one)).buffer_unordered(PARALLEL).try_collect().await
}

/// The end of a container's log. The kubelet counts the lines of its own file, where the runtime
/// has cut long lines into pieces of 16 KiB: a tail of 1 would give the last piece.
pub async fn tail(
    client: &Client,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<String, ApiError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = LogParams {
        container: Some(container.to_owned()),
        tail_lines: Some(64),
        ..LogParams::default()
    };
    call(format!("read the log of {pod}/{container}"), async || api.logs(pod, &params).await).await
}

/// A result document: the last line of a log.
pub fn document<T: DeserializeOwned>(log: &str) -> Result<T, String> {
    let line = log.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default();
    serde_json::from_str(line)
        .map_err(|_| format!("no result: {}", line.chars().take(200).collect::<String>()))
}

/// What `read` finds at the end of a container's log, which may take `wait` to come.
pub async fn last_words<T>(
    client: &Client,
    namespace: &str,
    pod: &str,
    container: &str,
    wait: Duration,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, String> {
    let until = Instant::now() + wait;
    loop {
        let log = tail(client, namespace, pod, container).await;
        match log.map_err(|e| e.to_string()).and_then(|log| read(&log)) {
            Err(why) if Instant::now() >= until => return Err(why),
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            Ok(found) => return Ok(found),
        }
    }
}

/// The end of a wait: an image's trouble ends the run, a deadline does not.
pub fn waited(gave: Result<(), Gave>) -> Result<(), Stop> {
    match gave {
        Ok(()) | Err(Gave::Deadline) => Ok(()),
        Err(Gave::Image { image, why }) => Err(Stop::Image { image, why }),
    }
}

/// Waits until a Deployment is rolled out; `watch` tells of an image that cannot be had.
pub async fn rolled_out(
    api: &Api<Deployment>,
    name: &str,
    timeout: Duration,
    watch: &mut Watch<'_>,
) -> Result<(), Stop> {
    let deadline = Instant::now() + timeout;
    let ready = await_condition(api.clone(), name, conditions::is_deployment_completed());
    tokio::select! {
        ready = tokio::time::timeout_at(deadline, ready) => match ready {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(Stop::Refused(format!("cannot watch {name}: {e}"))),
            Err(_) => Err(Stop::Refused(format!("{name} was not ready after {timeout:?}"))),
        },
        gave = watch.until(deadline, |_| false) => waited(gave),
    }
}

/// A pod's own metrics, through the API server; none where they cannot be read at once.
pub async fn metrics(client: &Client, namespace: &str, pod: &str, port: u16) -> Option<String> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics");
    let request = http::Request::get(path).body(Vec::new()).ok()?;
    let text = tokio::time::timeout(Duration::from_secs(3), client.request_text(request)).await;
    text.ok()?.ok()
}

/// Keeps a document.
pub fn save<T: Serialize>(dir: &Path, name: &str, document: &T) -> Result<(), Stop> {
    let path = dir.join(name);
    let write = || {
        std::fs::create_dir_all(dir)?;
        Ok::<_, std::io::Error>(ResultFile::prepare(&path)?.write(document)?)
    };
    write().map_err(|source| Stop::Save { path: path.display().to_string(), source })
}

/// Ends unless this user has every right in `wanted`; the missing ones are printed as the role
/// that grants them.
pub async fn permitted(client: &Client, namespace: &str, wanted: &[Right]) -> Result<(), Stop> {
    let missing = preflight::missing(client, namespace, wanted).await?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Stop::Refused(format!(
        "{} of {} rights are missing; this role grants them:\n{}",
        missing.len(),
        wanted.len(),
        preflight::role(&missing)
    )))
}

/// A namespace with this run's objects: one that the run made, which goes whole, or somebody
/// else's, from which the run's own objects go.
pub struct Ground<'a> {
    client: &'a Client,
    run: &'a Run,
    /// The UID of the namespace, where this run made it.
    made: Option<String>,
}

/// How long a namespace may take to go.
const GONE: Duration = Duration::from_secs(120);
/// How long a kubelet may take to confirm that a pod ended, before its node is looked at.
const CONFIRMED: Duration = Duration::from_secs(10);

impl<'a> Ground<'a> {
    /// Makes the namespace, or takes one that the user named. `foreign` says that it may be
    /// somebody else's; `replace` that what an earlier run left is removed first.
    pub async fn take(
        client: &'a Client,
        run: &'a Run,
        foreign: bool,
        replace: bool,
    ) -> Result<Ground<'a>, Stop> {
        let ns = &run.namespace;
        match preflight::namespace_state(client, ns).await? {
            NamespaceState::None => {}
            NamespaceState::Left { run: earlier } if replace => {
                remove_left(client, ns, &earlier).await?;
            }
            NamespaceState::Left { run: earlier } => {
                return Err(Stop::Refused(format!(
                    "namespace {ns} is left of run {earlier}, or that run is at work: \
                     --replace removes it first, kubectl delete namespace {ns} does the same"
                )));
            }
            NamespaceState::Foreign { .. } if !foreign => {
                return Err(Stop::Refused(format!(
                    "namespace {ns} exists and is not of this program: name it with --namespace {ns} to use it \
                     (it is never deleted), or choose another"
                )));
            }
            NamespaceState::Foreign { enforce: Some(level) } if level != "privileged" => {
                return Err(Stop::Refused(format!(
                    "namespace {ns} enforces Pod Security level {level}, which allows neither NET_RAW nor the host \
                     network: kubectl label namespace {ns} {ENFORCE}=privileged --overwrite"
                )));
            }
            NamespaceState::Foreign { .. } => {
                let ground = Self { client, run, made: None };
                let earlier = ground.left_in_foreign().await?;
                return match earlier {
                    None => Ok(ground),
                    Some(_) if replace => {
                        ground
                            .leave_foreign(&format!("app.kubernetes.io/managed-by={MANAGER}"))
                            .await?;
                        Ok(ground)
                    }
                    Some(id) => Err(Stop::Refused(format!(
                        "namespace {ns} has objects of run {id}, which was cut off or is at work: --replace removes them first"
                    ))),
                };
            }
        }
        let api: Api<Namespace> = Api::all(client.clone());
        let (namespace, params) = (run.namespace(), PostParams::default());
        let made = call(format!("create namespace {ns}"), async || {
            match api.create(&params, &namespace).await {
                // An answer that was lost: it is this run's own if it bears its identifier.
                Err(kube::Error::Api(s)) if s.code == 409 => {
                    let found = api.get(ns).await?;
                    if found.labels().get(RUN) == Some(&run.id) {
                        Ok(found)
                    } else {
                        Err(kube::Error::Api(s))
                    }
                }
                other => other,
            }
        })
        .await?;
        Ok(Self { client, run, made: made.metadata.uid })
    }

    /// How to remove by hand what stays.
    #[must_use]
    pub fn by_hand(&self) -> String {
        let (ns, id) = (&self.run.namespace, &self.run.id);
        match self.made {
            Some(_) => format!("kubectl delete namespace {ns}"),
            None => format!(
                "kubectl -n {ns} delete pods,services,jobs,deployments,daemonsets,configmaps -l {RUN}={id}"
            ),
        }
    }

    /// Deletes what this run made and waits until it is gone. Gives the nodes whose kubelets did not
    /// confirm it.
    pub async fn leave(&self) -> Result<BTreeSet<String>, Stop> {
        match &self.made {
            Some(uid) => remove_namespace(self.client, &self.run.namespace, uid).await,
            None => self.leave_foreign(&format!("{RUN}={}", self.run.id)).await,
        }
    }

    /// [`leave`](Self::leave), unless the objects are to be kept. A signal does not end it, the second
    /// one does. Gives what is left behind, and how to remove it.
    pub async fn end(
        &self,
        keep: bool,
        signalled: &mut impl AsyncFnMut() -> EndedBy,
        say: &dyn Fn(&str),
    ) -> Vec<String> {
        if keep {
            say(&format!("kept; to remove it: {}", self.by_hand()));
            return Vec::new();
        }
        say("removing what this run made");
        let twice = async {
            let first = signalled().await;
            say(&format!("{first}: still removing; once more leaves it behind"));
            signalled().await
        };
        let why = tokio::select! {
            left = self.leave() => match left {
                Ok(silent) => return silent.iter().map(|n| unconfirmed(n)).collect(),
                Err(e) => e.to_string(),
            },
            signal = twice => signal.to_string(),
        };
        vec![format!("LEFT BEHIND ({why}): {}", self.by_hand())]
    }

    /// The identifier of another run whose pods are in a namespace of somebody else.
    async fn left_in_foreign(&self) -> Result<Option<String>, Stop> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.run.namespace);
        let params =
            ListParams::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
        let found = call("list pods", async || api.list(&params).await).await?;
        Ok(found.items.iter().find_map(|p| p.labels().get(RUN).cloned()))
    }

    /// Deletes what bears `labels`: owners before what they would make anew.
    async fn leave_foreign(&self, labels: &str) -> Result<BTreeSet<String>, Stop> {
        use k8s_openapi::api::{apps::v1::DaemonSet, batch::v1::Job, core::v1};
        self.leave_kind::<DaemonSet>(labels).await?;
        self.leave_kind::<Deployment>(labels).await?;
        self.leave_kind::<Job>(labels).await?;
        self.leave_kind::<v1::Service>(labels).await?;
        self.leave_kind::<v1::ConfigMap>(labels).await?;
        self.leave_kind::<Pod>(labels).await?;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.run.namespace);
        let params = ListParams::default().labels(labels);
        let gone = async || {
            let left = call("list pods", async || api.list(&params).await).await?;
            Ok(left.items.is_empty())
        };
        went(self.client, &self.run.namespace, "the run's pods are", gone).await
    }

    async fn leave_kind<K>(&self, labels: &str) -> Result<(), Stop>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.run.namespace);
        let params = ListParams::default().labels(labels);
        let kind = K::plural(&K::DynamicType::default()).into_owned();
        let found: ObjectList<K> =
            match call(format!("list {kind}"), async || api.list(&params).await).await {
                Ok(found) => found,
                // A kind that this user may not even list is none that the run made.
                Err(e) if e.code == Some(403) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
        dismiss_all(&api, found.items.iter().map(ResourceExt::name_any)).await
    }
}

/// Removes a namespace that an earlier run left: by its UID, and only with that run's label.
async fn remove_left(client: &Client, ns: &str, run: &str) -> Result<(), Stop> {
    let api: Api<Namespace> = Api::all(client.clone());
    let Some(found) = call(format!("read namespace {ns}"), async || api.get_opt(ns).await).await?
    else {
        return Ok(());
    };
    if found.labels().get(RUN).map(String::as_str) != Some(run) {
        return Err(Stop::Refused(format!("namespace {ns} changed hands")));
    }
    remove_namespace(client, ns, &found.metadata.uid.unwrap_or_default()).await.map(drop)
}

async fn remove_namespace(client: &Client, ns: &str, uid: &str) -> Result<BTreeSet<String>, Stop> {
    let api: Api<Namespace> = Api::all(client.clone());
    let params = DeleteParams::background()
        .preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    let asked =
        call(format!("delete namespace {ns}"), async || match api.delete(ns, &params).await {
            // Gone, or already another one's (409: the UID differs).
            Err(kube::Error::Api(s)) if s.code == 404 || s.code == 409 => Ok(()),
            other => other.map(drop),
        });
    asked.await?;
    let gone = async || {
        let found = call(format!("read namespace {ns}"), async || api.get_opt(ns).await).await?;
        Ok(found.is_none_or(|n| n.metadata.uid.as_deref() != Some(uid)))
    };
    went(client, ns, &format!("namespace {ns} is"), gone).await
}

/// Waits until what was deleted is `gone`. A pod whose kubelet does not answer would stay for ever: its
/// object goes without the kubelet's word, and its node is given.
async fn went(
    client: &Client,
    ns: &str,
    what: &str,
    mut gone: impl AsyncFnMut() -> Result<bool, ApiError>,
) -> Result<BTreeSet<String>, Stop> {
    let until = Instant::now() + GONE;
    let mut silent = BTreeSet::new();
    let mut patience = Instant::now() + CONFIRMED;
    while !gone().await? {
        if Instant::now() >= until {
            let seconds = GONE.as_secs();
            return Err(Stop::Refused(format!("{what} not gone after {seconds} s")));
        }
        if Instant::now() >= patience {
            silent.extend(remove_orphans(client, ns).await?);
            patience = Instant::now() + CONFIRMED;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(silent)
}

/// Removes the objects of pods that were told to end on nodes that are not ready; gives these nodes.
async fn remove_orphans(client: &Client, ns: &str) -> Result<BTreeSet<String>, Stop> {
    let api: Api<Pod> = Api::namespaced(client.clone(), ns);
    let ours = ListParams::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
    let pods = call("list pods", async || api.list(&ours).await).await?;
    let told = pods.items.iter().filter(|p| p.metadata.deletion_timestamp.is_some());
    let on: Vec<_> =
        told.filter_map(|p| Some((p.name_any(), p.spec.as_ref()?.node_name.clone()?))).collect();
    if on.is_empty() {
        return Ok(BTreeSet::new());
    }
    let nodes = preflight::nodes(client, None).await?;
    let dead: BTreeSet<_> =
        nodes.into_iter().filter(|n| n.unusable.is_some()).map(|n| n.name).collect();
    let (names, silent): (Vec<_>, BTreeSet<_>) =
        on.into_iter().filter(|(_, node)| dead.contains(node)).unzip();
    delete_all(&api, names.into_iter()).await?;
    Ok(silent)
}

/// What is known of a node whose kubelet did not confirm that its pods ended.
fn unconfirmed(node: &str) -> String {
    format!(
        "node {node} is not ready: its pods were removed without its kubelet's word, which ends them, and so \
         puts back what they changed, when it is back"
    )
}
