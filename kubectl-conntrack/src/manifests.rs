//! The manifests of `k8s/`, as `kubectl kustomize` renders them, for who has this program alone.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::cli::ImageArgs;
use crate::objects::{MANAGED_BY, MANAGER, RUN, Run};

/// A folder of `k8s/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Set {
    /// The canary and the load: k8s/base
    Base,
    /// The canary on every node, each for itself: k8s/overlays/every-node
    EveryNode,
    /// Conntrack of every node as metrics: k8s/overlays/observe
    Observe,
    /// Conntrack sysctls of every node: k8s/overlays/tune
    Tune,
    /// A drop of INVALID on every node: k8s/overlays/drop-invalid
    DropInvalid,
    /// Which connections of each node INVALID segments ended: k8s/overlays/witness
    Witness,
    /// Holds kube-proxy's drop off, to see an unprotected path: k8s/tests/unprotect
    #[value(skip)]
    Unprotect,
}

/// Files by their names.
type Named = &'static [(&'static str, &'static str)];

/// A folder, its resources, and after the semicolon the files of the ConfigMap that its kustomization
/// generates.
macro_rules! k8s {
    ($folder:literal: $($file:literal)*; $($data:literal)*) => {
        (
            $folder,
            &[$(($file, include_str!(concat!("../../k8s/", $folder, "/", $file)))),*],
            &[$(($data, include_str!(concat!("../../k8s/", $folder, "/", $data)))),*],
        )
    };
}

impl Set {
    const fn files(self) -> (&'static str, Named, Named) {
        match self {
            Self::Base => {
                k8s!("base": "namespace.yaml" "boom-server.yaml" "canary-client.yaml" "load-target.yaml" "load-client.yaml";)
            }
            Self::EveryNode => k8s!("overlays/every-node": "namespace.yaml" "every-node.yaml";),
            Self::Observe => k8s!("overlays/observe": "observe.yaml";),
            Self::Witness => k8s!("overlays/witness": "namespace.yaml" "witness.yaml";),
            Self::Unprotect => {
                k8s!("tests/unprotect": "namespace.yaml" "unprotect.yaml"; "unprotect.sh")
            }
            Self::Tune => {
                k8s!("overlays/tune": "namespace.yaml" "tune.yaml"; "tune.sh" "values.env")
            }
            Self::DropInvalid => {
                k8s!("overlays/drop-invalid": "namespace.yaml" "drop-invalid.yaml"; "drop-invalid.sh")
            }
        }
    }

    /// Its folder's own name: what its DaemonSet is called, where it has one, and its ConfigMap.
    #[must_use]
    pub fn name(self) -> &'static str {
        let (folder, ..) = self.files();
        folder.rsplit('/').next().unwrap_or(folder)
    }

    fn namespace(self) -> String {
        match self {
            Self::Base | Self::Observe => "conntrack-canary".to_owned(),
            _ => format!("conntrack-{}", self.name()),
        }
    }

    /// Its DaemonSet's one container.
    pub(crate) fn container(self) -> &'static str {
        match self {
            Self::Observe | Self::Witness => "load-client",
            _ => self.name(),
        }
    }
}

/// The objects of `set` with these images, in `namespace` in place of its own.
///
/// # Panics
/// Where a file of `k8s/` is no YAML: its tests would show.
pub(crate) fn objects(set: Set, images: &ImageArgs, namespace: Option<&str>) -> Vec<Value> {
    let (_, resources, config) = set.files();
    let namespace = namespace.map_or_else(|| set.namespace(), str::to_owned);
    let mut objects: Vec<Value> = resources
        .iter()
        .flat_map(|(_, text)| {
            serde_saphyr::from_multiple::<Value>(text).expect("a file of k8s/ is YAML")
        })
        .collect();
    if !config.is_empty() {
        let data: BTreeMap<_, _> = config.iter().copied().collect();
        objects.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": set.name()}, "data": data}));
    }
    for object in &mut objects {
        if object["kind"] == "Namespace" {
            object["metadata"]["name"] = namespace.as_str().into();
        } else {
            object["metadata"]["namespace"] = namespace.as_str().into();
        }
        let containers =
            object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
        for image in containers.into_iter().flatten().filter_map(|c| c.get_mut("image")) {
            if let Some(program) = image.as_str().and_then(|i| i.strip_prefix("conntrack-canary/"))
            {
                *image = images.of(program).into();
            }
        }
    }
    objects
}

/// The object of `set` with that kind and name, as `run`'s own.
///
/// # Panics
/// Where `set` has none such: an error of the caller.
#[must_use]
pub fn own(set: Set, run: &Run, kind: &str, name: &str) -> Value {
    let mut object = objects(set, &run.images, Some(&run.namespace))
        .into_iter()
        .find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
        .expect("an object of the set");
    for metadata in ["/metadata", "/spec/template/metadata"] {
        if let Some(metadata) = object.pointer_mut(metadata) {
            metadata["labels"][RUN] = run.id.clone().into();
            metadata["labels"][MANAGED_BY] = MANAGER.into();
        }
    }
    object
}

/// The ConfigMap of `set`, where it has one, as `run`'s own.
pub(crate) fn config(set: Set, run: &Run) -> Option<Value> {
    let named = || own(set, run, "ConfigMap", set.name());
    let (.., files) = set.files();
    (!files.is_empty()).then(named)
}

/// A pod without a name, from the template of `set`'s object with that kind and name: `run`'s own, with
/// an end that can be read.
pub(crate) fn pod(set: Set, run: &Run, kind: &str, name: &str) -> Value {
    let mut pod = own(set, run, kind, name)["spec"]["template"].take();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["namespace"] = run.namespace.as_str().into();
    pod["spec"]["restartPolicy"] = "Never".into();
    pod
}

/// The objects of `set` as text for `kubectl apply -f -`.
pub(crate) fn yaml(
    set: Set,
    images: &ImageArgs,
    namespace: Option<&str>,
) -> anyhow::Result<String> {
    let objects = objects(set, images, namespace);
    let texts = objects.iter().map(serde_saphyr::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("---\n"))
}
