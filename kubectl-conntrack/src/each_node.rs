//! A pod on each chosen node, from the template of a DaemonSet of `k8s/`: bound as its controller
//! would bind it, but with an end that can be read.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::{Duration, Instant};

use crate::api::{PARALLEL, Watch};
use crate::manifests::{self, Set};
use crate::objects::{self, Run};
use crate::plan::Node;
use crate::pods::{Seen, Trouble};
use crate::preflight::{Right, rights};
use crate::run::{self, Stop};

/// What such pods need.
#[must_use]
pub fn needs(own_namespace: bool) -> Vec<Right> {
    crate::diagnose::needs(own_namespace)
        .into_iter()
        .filter(|r| r.resource != "services")
        .chain(rights("", "configmaps", true, &["create", "patch", "list", "delete"]))
        .collect()
}

/// Pods of one DaemonSet's template, one for each of `nodes`.
#[derive(Clone, Copy)]
pub struct EachNode<'a> {
    /// The API server.
    pub client: &'a Client,
    /// Whose.
    pub run: &'a Run,
    /// On which nodes.
    pub nodes: &'a [Node],
    /// Where the DaemonSet is.
    pub set: Set,
    /// Its name.
    pub name: &'static str,
    /// What its pods' names begin with.
    pub prefix: &'static str,
    /// Its one container.
    pub container: &'static str,
}

impl EachNode<'_> {
    fn pod_name(&self, index: usize) -> String {
        format!("{}-{index}", self.prefix)
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.run.namespace)
    }

    /// The pod of the node with this index; `change` has the last word on its spec.
    fn pod(&self, index: usize, change: &impl Fn(&mut Value)) -> Pod {
        let mut pod =
            manifests::own(self.set, self.run, "DaemonSet", self.name)["spec"]["template"].take();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["name"] = self.pod_name(index).into();
        pod["metadata"]["namespace"] = self.run.namespace.clone().into();
        pod["spec"]["restartPolicy"] = "Never".into();
        pod["spec"]["affinity"] = objects::on(&self.nodes[index].name);
        change(&mut pod["spec"]);
        objects::typed(pod)
    }

    /// Makes the set's ConfigMap, where it has one; `change` has the last word on it.
    pub async fn config(&self, change: impl FnOnce(&mut Value)) -> Result<(), Stop> {
        let all = manifests::objects(self.set, &self.run.images, Some(&self.run.namespace));
        let Some(config) = all.iter().find(|o| o["kind"] == "ConfigMap") else { return Ok(()) };
        let name = config["metadata"]["name"].as_str().unwrap_or_default();
        let mut config = manifests::own(self.set, self.run, "ConfigMap", name);
        change(&mut config);
        let config: ConfigMap = objects::typed(config);
        let api = Api::namespaced(self.client.clone(), &self.run.namespace);
        Ok(run::apply(&api, &config, false).await.map(drop)?)
    }

    /// Makes the pods, the first one dry before any. Gives those that the API server refused, by
    /// their node's index.
    pub async fn apply(
        &self,
        change: impl Fn(&mut Value),
    ) -> Result<BTreeMap<usize, String>, Stop> {
        let api = self.api();
        run::apply(&api, &self.pod(0, &change), true).await.map_err(|e| match e.code {
            Some(code) if code < 500 => Stop::Refused(e.to_string()),
            _ => Stop::Api(e),
        })?;
        let applied: Vec<_> = stream::iter((0..self.nodes.len()).map(|n| {
            let (api, pod) = (&api, self.pod(n, &change));
            async move { (n, run::apply(api, &pod, false).await) }
        }))
        .buffer_unordered(PARALLEL)
        .collect()
        .await;
        let mut refused = BTreeMap::new();
        for (n, done) in applied {
            match done {
                Ok(_) => {}
                Err(e) if e.code.is_some_and(|c| c < 500) => {
                    refused.insert(n, e.to_string());
                }
                Err(e) => return Err(Stop::Api(e)),
            }
        }
        Ok(refused)
    }

    /// Waits until `done` of every pod that was not refused. A pod in trouble is done.
    pub async fn wait(
        &self,
        watch: &mut Watch<'_>,
        deadline: Instant,
        refused: &BTreeMap<usize, String>,
        say: &dyn Fn(&str),
        done: impl Fn(&Seen) -> bool,
    ) -> Result<(), Stop> {
        let expected: Vec<String> = (0..self.nodes.len())
            .filter(|n| !refused.contains_key(n))
            .map(|n| self.pod_name(n))
            .collect();
        let all = |pods: &BTreeMap<String, Seen>| {
            let over = |n: &&String| {
                pods.get(*n).is_some_and(|p| p.ended || p.trouble.is_some() || done(p))
            };
            let left = expected.len() - expected.iter().filter(over).count();
            say(&format!("{left} of {} pods at work", expected.len()));
            left == 0
        };
        run::waited(watch.until(deadline, all).await)
    }

    /// Tells the pods to end, each with its own grace.
    pub async fn dismiss(&self) -> Result<(), Stop> {
        run::dismiss_all(&self.api(), (0..self.nodes.len()).map(|n| self.pod_name(n))).await
    }

    /// Removes the pods, which have said what they had to say.
    pub async fn remove(&self) -> Result<(), Stop> {
        run::delete_all(&self.api(), (0..self.nodes.len()).map(|n| self.pod_name(n))).await
    }

    /// What `read` finds at the end of each pod's log within `wait`, in the nodes' order; else why not:
    /// what is wrong with the pod says more than its log.
    pub async fn words<T>(
        &self,
        watch: &Watch<'_>,
        refused: &BTreeMap<usize, String>,
        wait: Duration,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<Result<T, String>> {
        let read = &read;
        stream::iter((0..self.nodes.len()).map(|n| async move {
            if let Some(why) = refused.get(&n) {
                return Err(why.clone());
            }
            let name = self.pod_name(n);
            let seen = watch.pods.get(&name);
            let trouble = seen.and_then(|p| p.trouble.as_ref()).map(|t| match t {
                Trouble::Pod(why) => why.clone(),
                Trouble::Image { image, why } => format!("{image}: {why}"),
            });
            let began = seen.is_some_and(|p| !p.containers.is_empty());
            let wait = if began { wait } else { Duration::ZERO };
            let found = run::last_words(
                self.client,
                &self.run.namespace,
                &name,
                self.container,
                wait,
                read,
            );
            found.await.map_err(|why| trouble.unwrap_or(why))
        }))
        .buffered(PARALLEL)
        .collect()
        .await
    }
}
