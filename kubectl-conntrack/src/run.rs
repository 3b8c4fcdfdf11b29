//! What every subcommand does with the cluster: makes what is its own, reads what it says, and
//! removes that and nothing else.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use canary_record::names::EndedBy;
use canary_record::result::ReadError;
use canary_runtime::output::ResultFile;
use futures_util::stream::LocalBoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{
    DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions,
};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::api::{ApiError, PARALLEL, Stop, Watch, call};
use crate::objects::{ENFORCE, MANAGED_BY, MANAGER, OURS, RUN, Run};
use crate::preflight;

/// A kind of object that lives in a namespace.
pub trait Kind:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
{
}

impl<K> Kind for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
{
}

/// Why pods could not be made, by the name of each.
pub type Refused = BTreeMap<String, String>;

/// A result document, as `read` reads its kind: the last line of a log.
pub fn document<T>(
    log: &str,
    read: impl FnOnce(&[u8]) -> Result<T, ReadError>,
) -> Result<T, String> {
    let line = log.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default();
    read(line.as_bytes()).map_err(|e| match e {
        ReadError::Json(_) => format!("no result: {}", line.chars().take(200).collect::<String>()),
        ReadError::Version(_) => format!("a result of another release's image: {e}"),
        ReadError::Sum(_) => format!("a damaged result: {e}"),
    })
}

/// Keeps a document.
pub fn save<T: Serialize>(dir: &Path, name: &str, document: &T) -> Result<(), Stop> {
    let path = dir.join(name);
    let write = || {
        std::fs::create_dir_all(dir)?;
        Ok(ResultFile::prepare(&path)?.write(document)?)
    };
    write().map_err(Stop::unsaved(&path))
}

/// The folder of `--save`, where one is named. A document that it does not take ends no run: that is
/// told at the end.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    dir: Option<PathBuf>,
    /// Why it did not take the first such document.
    failed: Rc<RefCell<Option<Stop>>>,
}

impl Folder {
    /// This one, or none.
    #[must_use]
    pub fn new(dir: Option<&Path>) -> Self {
        Self { dir: dir.map(Path::to_owned), ..Self::default() }
    }

    /// Keeps a document in a folder `within` it.
    pub(crate) fn save<T: Serialize>(&self, within: &str, name: &str, document: &T) {
        let saved = self.dir.as_ref().map(|dir| save(&dir.join(within), name, document));
        if let Some(Err(e)) = saved {
            self.failed.borrow_mut().get_or_insert(e);
        }
    }

    /// Says what it did not take; true where that is nothing.
    pub(crate) fn whole(&self) -> bool {
        let failed = self.failed.borrow();
        failed.iter().for_each(|e| eprintln!("error: {e}"));
        failed.is_none()
    }
}

/// A namespace with a run's objects: one that the run made, which goes whole, or somebody else's,
/// from which the run's own objects go.
pub struct Ground {
    /// The API server.
    pub client: Client,
    /// Whose the objects are.
    pub run: Run,
    /// The UID of the namespace, where this run made it.
    made: Option<String>,
}

/// How long a namespace may take to go.
const GONE: Duration = Duration::from_secs(120);
/// How long a kubelet may take to confirm that a pod ended, before its node is looked at.
const CONFIRMED: Duration = Duration::from_secs(10);

impl Ground {
    /// Makes the namespace, or takes one that the user named. `foreign` says that it may be
    /// somebody else's; `replace` that what an earlier run left is removed first.
    pub async fn take(
        client: &Client,
        run: &Run,
        foreign: bool,
        replace: bool,
    ) -> Result<Self, Stop> {
        let mut ground = Self { client: client.clone(), run: run.clone(), made: None };
        let ns = &run.namespace;
        let found = ground.found().await?.map(|n| n.metadata);
        let labels = found.as_ref().and_then(|n| n.labels.clone()).unwrap_or_default();
        let made = labels.get(MANAGED_BY).filter(|by| *by == MANAGER).and(labels.get(RUN));
        let level = labels.get(ENFORCE).filter(|level| *level != "privileged");
        let own = match (found, made, level) {
            (None, ..) => Ok(true),
            // By its UID: another one of its name is not what was left.
            (Some(n), Some(_), _) if replace => {
                ground.remove_namespace(&n.uid.unwrap_or_default()).await?;
                Ok(true)
            }
            (Some(_), Some(earlier), _) => Err(format!(
                "namespace {ns} is left of run {earlier}, or that run is at work: \
                 --replace removes it first, kubectl delete namespace {ns} does the same"
            )),
            (Some(_), None, _) if !foreign => Err(format!(
                "namespace {ns} exists and is not of this program: name it with --namespace {ns} to use it \
                 (it is never deleted), or choose another"
            )),
            (Some(_), None, Some(level)) => Err(format!(
                "namespace {ns} enforces Pod Security level {level}, which allows neither NET_RAW nor the host \
                 network: kubectl label namespace {ns} {ENFORCE}=privileged --overwrite"
            )),
            (Some(_), None, None) => {
                match ground.list::<Pod>(OURS).await?.iter().find_map(|p| p.labels().get(RUN)) {
                    None => Ok(false),
                    Some(_) if replace => ground.leave_foreign(OURS).await.map(|_| Ok(false))?,
                    Some(id) => Err(format!(
                        "namespace {ns} has objects of run {id}, which was cut off or is at work: --replace removes them first"
                    )),
                }
            }
        };
        if own.map_err(Stop::Refused)? {
            ground.made = ground.make().await?;
        }
        Ok(ground)
    }

    /// Makes the namespace; gives its UID.
    async fn make(&self) -> Result<Option<String>, ApiError> {
        let (api, ns): (Api<Namespace>, _) = (Api::all(self.client.clone()), &self.run.namespace);
        let (namespace, params) = (self.run.namespace(), PostParams::default());
        let made = call(format!("create namespace {ns}"), async || {
            match api.create(&params, &namespace).await {
                // An answer that was lost: it is this run's own if it bears its identifier.
                Err(kube::Error::Api(s)) if s.code == 409 => {
                    let found = api.get(ns).await?;
                    let own = found.labels().get(RUN) == Some(&self.run.id);
                    if own { Ok(found) } else { Err(kube::Error::Api(s)) }
                }
                other => other,
            }
        });
        Ok(made.await?.metadata.uid)
    }

    /// The objects of a kind.
    #[must_use]
    pub fn api<K: Kind>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.run.namespace)
    }

    /// Server-side apply, which may be repeated.
    pub async fn apply<K: Kind>(&self, object: &K) -> Result<K, ApiError> {
        self.patch(object, false).await
    }

    /// Why that is refused, without keeping it: Pod Security, quotas and admission webhooks speak; none
    /// where it is not.
    pub async fn refusal<K: Kind>(&self, object: &K) -> Result<Option<String>, Stop> {
        self.patch(object, true).await.map_or_else(|e| e.refusal().map(Some), |_| Ok(None))
    }

    /// The same where a refusal ends the run.
    pub async fn try_dry<K: Kind>(&self, object: &K) -> Result<(), Stop> {
        self.refusal(object).await?.map_or(Ok(()), |why| Err(Stop::Refused(why)))
    }

    async fn patch<K: Kind>(&self, object: &K, dry: bool) -> Result<K, ApiError> {
        let (api, name) = (self.api::<K>(), object.name_any());
        let mut params = PatchParams::apply(MANAGER).force();
        params.dry_run = dry;
        let verb = if dry { "try (dry-run)" } else { "apply" };
        let once = async || api.patch(&name, &params, &Patch::Apply(object)).await;
        call(format!("{verb} {} {name}", K::kind(&())), once).await
    }

    /// Applies each object at once, and gives what came of it by its name.
    pub async fn apply_all<K: Kind>(
        &self,
        objects: impl IntoIterator<Item = K>,
    ) -> BTreeMap<String, Result<K, ApiError>> {
        let one = |object: K| async move { (object.name_any(), self.apply(&object).await) };
        stream::iter(objects).map(one).buffer_unordered(PARALLEL).collect().await
    }

    /// The same with pods of which each may be refused by itself.
    pub async fn apply_pods(&self, pods: impl IntoIterator<Item = Pod>) -> Result<Refused, Stop> {
        let mut refused = Refused::new();
        for (name, done) in self.apply_all(pods).await {
            if let Err(e) = done {
                refused.insert(name, e.refusal()?);
            }
        }
        Ok(refused)
    }

    /// Deletes each of `names` at once; one that is gone is no error.
    pub async fn delete<K: Kind>(&self, names: impl Iterator<Item = String>) -> Result<(), Stop> {
        self.delete_with::<K>(names, &DeleteParams::background().grace_period(0)).await
    }

    /// The same with their own grace, in which a pod puts back what it changed.
    pub async fn dismiss<K: Kind>(&self, names: impl Iterator<Item = String>) -> Result<(), Stop> {
        self.delete_with::<K>(names, &DeleteParams::background()).await
    }

    async fn delete_with<K: Kind>(
        &self,
        names: impl Iterator<Item = String>,
        params: &DeleteParams,
    ) -> Result<(), Stop> {
        let api = &self.api::<K>();
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

    async fn list<K: Kind>(&self, labels: &str) -> Result<Vec<K>, ApiError> {
        let (api, params) = (self.api::<K>(), ListParams::default().labels(labels));
        let what = format!("list {} with {labels}", K::plural(&()));
        Ok(call(what, async || api.list(&params).await).await?.items)
    }

    /// The pods that bear this name as a label.
    pub async fn named(&self, name: &str) -> Result<Vec<Pod>, ApiError> {
        self.list(&format!("app.kubernetes.io/name={name}")).await
    }

    /// The first of them that was not told to end.
    pub async fn living(&self, name: &str) -> Result<Option<Pod>, ApiError> {
        let pods = self.named(name).await?;
        Ok(pods.into_iter().find(|p| p.metadata.deletion_timestamp.is_none()))
    }

    /// The run's pods, those that bear this name where one is given.
    pub(crate) fn watch(&self, name: Option<&str>) -> Watch {
        let name = name.map_or(String::new(), |n| format!(",app.kubernetes.io/name={n}"));
        Watch::begin(&self.client, &self.run.namespace, &format!("{RUN}={}{name}", self.run.id))
    }

    /// The end of a container's log. The kubelet counts the lines of its own file, where the runtime
    /// has cut long lines into pieces of 16 KiB: a tail of 1 would give the last piece.
    pub async fn tail(&self, pod: &str, container: &str) -> Result<String, ApiError> {
        let (api, what) = (self.api::<Pod>(), format!("read the log of {pod}/{container}"));
        let container = Some(container.to_owned());
        let params = LogParams { container, tail_lines: Some(64), ..LogParams::default() };
        call(what, async || api.logs(pod, &params).await).await
    }

    /// What `read` finds at the end of a container's log, which may take `wait` to come.
    pub async fn last_words<T>(
        &self,
        pod: &str,
        container: &str,
        wait: Duration,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, String> {
        let until = Instant::now() + wait;
        loop {
            let log = self.tail(pod, container).await;
            match log.map_err(|e| e.to_string()).and_then(|log| read(&log)) {
                Err(why) if Instant::now() >= until => return Err(why),
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                Ok(found) => return Ok(found),
            }
        }
    }

    /// Waits until a Deployment is rolled out; an image that cannot be had ends the run.
    pub async fn rolled_out(&self, name: &str, timeout: Duration) -> Result<(), Stop> {
        let (deadline, mut watch) = (Instant::now() + timeout, self.watch(None));
        let done = conditions::is_deployment_completed();
        let ready = await_condition(self.api::<Deployment>(), name, done);
        tokio::select! {
            ready = tokio::time::timeout_at(deadline, ready) => match ready {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(e)) => Err(Stop::Refused(format!("cannot watch {name}: {e}"))),
                Err(_) => Err(Stop::Refused(format!("{name} was not ready after {timeout:?}"))),
            },
            gave = watch.until(deadline, |_| false) => gave,
        }
    }

    /// A pod's own metrics, through the API server; none where they cannot be read at once.
    pub async fn metrics(&self, pod: &str, port: u16) -> Option<String> {
        let ns = &self.run.namespace;
        let path = format!("/api/v1/namespaces/{ns}/pods/{pod}:{port}/proxy/metrics");
        let request = http::Request::get(path).body(Vec::new()).ok()?;
        let text = self.client.request_text(request);
        tokio::time::timeout(Duration::from_secs(3), text).await.ok()?.ok()
    }

    /// How to remove by hand what stays.
    fn by_hand(&self) -> String {
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
    async fn leave(&self) -> Result<BTreeSet<String>, Stop> {
        match &self.made {
            Some(uid) => self.remove_namespace(uid).await,
            None => self.leave_foreign(&format!("{RUN}={}", self.run.id)).await,
        }
    }

    /// `leave`, unless the objects are to be kept. A signal does not end it, the second
    /// one does. Gives what is left behind, and how to remove it.
    pub async fn end(
        &self,
        keep: bool,
        signals: &mut LocalBoxStream<'_, EndedBy>,
        say: &dyn Fn(&str),
    ) -> Vec<String> {
        if keep {
            say(&format!("kept; to remove it: {}", self.by_hand()));
            return Vec::new();
        }
        say("removing what this run made");
        let twice = async {
            let first = signals.next().await?;
            say(&format!("{first}: still removing; once more leaves it behind"));
            signals.next().await
        };
        let why = tokio::select! {
            left = self.leave() => match left {
                Ok(silent) => return silent.iter().map(|n| unconfirmed(n)).collect(),
                Err(e) => e.to_string(),
            },
            Some(signal) = twice => signal.to_string(),
        };
        vec![format!("LEFT BEHIND ({why}): {}", self.by_hand())]
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
        self.went("the run's pods are", async || Ok(self.list::<Pod>(labels).await?.is_empty()))
            .await
    }

    async fn leave_kind<K: Kind>(&self, labels: &str) -> Result<(), Stop> {
        match self.list::<K>(labels).await {
            Ok(found) => self.dismiss::<K>(found.iter().map(ResourceExt::name_any)).await,
            // A kind that this user may not even list is none that the run made.
            Err(e) if e.code == Some(403) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    async fn found(&self) -> Result<Option<Namespace>, ApiError> {
        let (api, ns) = (Api::<Namespace>::all(self.client.clone()), &self.run.namespace);
        call(format!("read namespace {ns}"), async || api.get_opt(ns).await).await
    }

    async fn remove_namespace(&self, uid: &str) -> Result<BTreeSet<String>, Stop> {
        let (api, ns) = (Api::<Namespace>::all(self.client.clone()), &self.run.namespace);
        let params = DeleteParams::background()
            .preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let asked =
            call(format!("delete namespace {ns}"), async || match api.delete(ns, &params).await {
                // Gone, or already another one's (409: the UID differs).
                Err(kube::Error::Api(s)) if s.code == 404 || s.code == 409 => Ok(()),
                other => other.map(drop),
            });
        asked.await?;
        let other = |n: Namespace| n.metadata.uid.as_deref() != Some(uid);
        let gone = async || Ok(self.found().await?.is_none_or(other));
        self.went(&format!("namespace {ns} is"), gone).await
    }

    /// Waits until what was deleted is `gone`. A pod whose kubelet does not answer would stay for ever:
    /// its object goes without the kubelet's word, and its node is given.
    async fn went(
        &self,
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
                silent.extend(self.remove_orphans().await?);
                patience = Instant::now() + CONFIRMED;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(silent)
    }

    /// Removes the objects of pods that were told to end on nodes that are not ready; gives these nodes.
    async fn remove_orphans(&self) -> Result<BTreeSet<String>, Stop> {
        let pods = self.list::<Pod>(OURS).await?;
        let told = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some());
        let on: Vec<_> = told
            .filter_map(|p| Some((p.name_any(), p.spec.as_ref()?.node_name.clone()?)))
            .collect();
        if on.is_empty() {
            return Ok(BTreeSet::new());
        }
        let nodes = preflight::nodes(&self.client, None).await?;
        let dead: BTreeSet<_> =
            nodes.into_iter().filter(|n| n.unusable.is_some()).map(|n| n.name).collect();
        let (names, silent): (Vec<_>, BTreeSet<_>) =
            on.into_iter().filter(|(_, node)| dead.contains(node)).unzip();
        self.delete::<Pod>(names.into_iter()).await?;
        Ok(silent)
    }
}

/// What is known of a node whose kubelet did not confirm that its pods ended.
fn unconfirmed(node: &str) -> String {
    format!(
        "node {node} is not ready: its pods were removed without its kubelet's word, which ends them, and so \
         puts back what they changed, when it is back"
    )
}

#[cfg(test)]
mod tests {
    use canary_record::result;

    use super::*;

    /// Another release may mean something else by a field of the same name: its document is none.
    #[test]
    fn another_releases_document_is_refused() {
        let log = |version: u32| format!("an event\n{{\"schema_version\":{version}}}\n\n");
        let read = |version| document::<serde_json::Value>(&log(version), result::read);
        assert!(read(result::SCHEMA_VERSION).is_ok());
        let e = read(9).unwrap_err();
        assert!(e.starts_with("a result of another release's image: schema_version 9"), "{e}");
    }
}
