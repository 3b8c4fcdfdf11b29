//! A pod on each chosen node, from the template of a DaemonSet of `k8s/`: bound as its controller
//! would bind it, but with an end that can be read.

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::Value;
use tokio::time::{Duration, Instant};

use crate::api::{PARALLEL, Stop, Watch};
use crate::manifests::{self, Set};
use crate::objects;
use crate::plan::Node;
use crate::pods::Seen;
use crate::preflight::{Right, rights};
use crate::run::{Ground, Refused};

/// What such pods need.
pub(crate) fn needs(own_namespace: bool) -> Vec<Right> {
    crate::diagnose::needs(own_namespace)
        .into_iter()
        .filter(|r| r.resource != "services")
        .chain(rights("", "configmaps", true, &["create", "patch", "list", "delete"]))
        .collect()
}

/// Pods of one set's DaemonSet, one for each of some nodes.
pub struct EachNode<'a> {
    ground: &'a Ground,
    /// On which nodes.
    pub nodes: &'a [Node],
    set: Set,
    names: Vec<String>,
    refused: Refused,
    /// What is seen of them.
    pub watch: Watch,
}

impl<'a> EachNode<'a> {
    /// None is there yet. `nodes` has one at least; the pods are called `prefix-N`.
    #[must_use]
    pub fn new(ground: &'a Ground, nodes: &'a [Node], set: Set, prefix: &str) -> Self {
        let names = (0..nodes.len()).map(|n| format!("{prefix}-{n}")).collect();
        let watch = ground.watch(Some(set.name()));
        Self { ground, nodes, set, names, refused: Refused::new(), watch }
    }

    /// Makes the set's ConfigMap, where it has one, then the pods, the first one dry before any. `config` and
    /// `spec` have the last word on them.
    pub async fn apply(
        &mut self,
        config: impl FnOnce(&mut Value),
        spec: impl FnOnce(&mut Value),
    ) -> Result<(), Stop> {
        if let Some(mut map) = manifests::config(self.set, &self.ground.run) {
            config(&mut map);
            self.ground.apply(&objects::typed::<ConfigMap>(map)).await?;
        }
        let run = &self.ground.run;
        let mut template = manifests::pod(self.set, run, "DaemonSet", self.set.name());
        spec(&mut template["spec"]);
        let pod = |(name, node): (&String, &Node)| -> Pod {
            let mut pod = template.clone();
            pod["metadata"]["name"] = name.as_str().into();
            pod["spec"]["affinity"] = objects::on(&node.name);
            objects::typed(pod)
        };
        let pods: Vec<_> = self.names.iter().zip(self.nodes).map(pod).collect();
        self.ground.try_dry(&pods[0]).await?;
        self.refused = self.ground.apply_pods(pods).await?;
        Ok(())
    }

    /// Waits until `done` of every pod that was not refused. A pod in trouble is done.
    pub async fn wait(
        &mut self,
        deadline: Instant,
        say: &dyn Fn(&str),
        done: impl Fn(&Seen) -> bool,
    ) -> Result<(), Stop> {
        let made = self.names.iter().filter(|name| !self.refused.contains_key(*name));
        let made: Vec<_> = made.cloned().collect();
        self.watch.each(&made, deadline, say, done).await.map(drop)
    }

    /// Tells the pods to end, each with its own grace.
    pub async fn dismiss(&self) -> Result<(), Stop> {
        self.ground.dismiss::<Pod>(self.names.iter().cloned()).await
    }

    /// Removes the pods, which have said what they had to say.
    pub async fn remove(&self) -> Result<(), Stop> {
        self.ground.delete::<Pod>(self.names.iter().cloned()).await
    }

    /// What `read` finds at the end of each pod's log within `wait`, in the nodes' order; else why not:
    /// what is wrong with the pod says more than its log.
    pub async fn words<T>(
        &self,
        wait: Duration,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<Result<T, String>> {
        let read = &read;
        stream::iter(self.names.iter().map(|name| async move {
            if let Some(why) = self.refused.get(name) {
                return Err(why.clone());
            }
            let seen = self.watch.pods.get(name);
            let began = seen.is_some_and(|p| !p.containers.is_empty());
            let wait = if began { wait } else { Duration::ZERO };
            let found = self.ground.last_words(name, self.set.container(), wait, read).await;
            let trouble = seen.and_then(|p| p.trouble.as_ref()).map(ToString::to_string);
            found.map_err(|why| trouble.unwrap_or(why))
        }))
        .buffered(PARALLEL)
        .collect()
        .await
    }
}
