//! The manifests of `k8s/`, as `kubectl kustomize` renders them, for who has this program alone.

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::objects::{Images, MANAGER, RUN, Run};

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

/// The files of one folder.
struct Files {
    namespace: &'static str,
    resources: &'static [&'static str],
    /// The ConfigMap that its kustomization generates: its name, and its files by theirs.
    config: Option<(&'static str, &'static [(&'static str, &'static str)])>,
}

macro_rules! k8s {
    ($file:literal) => {
        include_str!(concat!("../../k8s/", $file))
    };
}

impl Set {
    const fn files(self) -> Files {
        match self {
            Self::Base => Files {
                namespace: "conntrack-canary",
                resources: &[
                    k8s!("base/namespace.yaml"),
                    k8s!("base/boom-server.yaml"),
                    k8s!("base/canary-client.yaml"),
                    k8s!("base/load-target.yaml"),
                    k8s!("base/load-client.yaml"),
                ],
                config: None,
            },
            Self::EveryNode => Files {
                namespace: "conntrack-every-node",
                resources: &[
                    k8s!("overlays/every-node/namespace.yaml"),
                    k8s!("overlays/every-node/every-node.yaml"),
                ],
                config: None,
            },
            Self::Observe => Files {
                namespace: "conntrack-canary",
                resources: &[k8s!("overlays/observe/observe.yaml")],
                config: None,
            },
            Self::Witness => Files {
                namespace: "conntrack-canary",
                resources: &[
                    k8s!("overlays/witness/namespace.yaml"),
                    k8s!("overlays/witness/witness.yaml"),
                ],
                config: None,
            },
            Self::Unprotect => Files {
                namespace: "conntrack-unprotect",
                resources: &[
                    k8s!("tests/unprotect/namespace.yaml"),
                    k8s!("tests/unprotect/unprotect.yaml"),
                ],
                config: Some((
                    "unprotect",
                    &[("unprotect.sh", k8s!("tests/unprotect/unprotect.sh"))],
                )),
            },
            Self::Tune => Files {
                namespace: "conntrack-tune",
                resources: &[k8s!("overlays/tune/namespace.yaml"), k8s!("overlays/tune/tune.yaml")],
                config: Some((
                    "tune",
                    &[
                        ("tune.sh", k8s!("overlays/tune/tune.sh")),
                        ("values.env", k8s!("overlays/tune/values.env")),
                    ],
                )),
            },
            Self::DropInvalid => Files {
                namespace: "conntrack-drop-invalid",
                resources: &[
                    k8s!("overlays/drop-invalid/namespace.yaml"),
                    k8s!("overlays/drop-invalid/drop-invalid.yaml"),
                ],
                config: Some((
                    "drop-invalid",
                    &[("drop-invalid.sh", k8s!("overlays/drop-invalid/drop-invalid.sh"))],
                )),
            },
        }
    }
}

/// The objects of `set` with these images, in `namespace` in place of its own.
///
/// # Panics
/// Where a file of `k8s/` is no YAML: its tests would show.
#[must_use]
pub fn objects(set: Set, images: &Images, namespace: Option<&str>) -> Vec<Value> {
    let files = set.files();
    let namespace = namespace.unwrap_or(files.namespace);
    let mut objects: Vec<Value> = files
        .resources
        .iter()
        .flat_map(|text| {
            serde_saphyr::from_multiple::<Value>(text).expect("a file of k8s/ is YAML")
        })
        .collect();
    if let Some((name, data)) = files.config {
        let data: serde_json::Map<_, _> =
            data.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
        objects.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}));
    }
    for object in &mut objects {
        if object["kind"] == "Namespace" {
            object["metadata"]["name"] = namespace.into();
        } else {
            object["metadata"]["namespace"] = namespace.into();
        }
        let containers =
            object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            match container["image"].as_str() {
                Some("conntrack-canary/boom-server") => {
                    container["image"] = images.boom_server.clone().into();
                }
                Some("conntrack-canary/load-client") => {
                    container["image"] = images.load_client.clone().into();
                }
                _ => {}
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
    object["metadata"]["labels"][RUN] = run.id.clone().into();
    object["metadata"]["labels"]["app.kubernetes.io/managed-by"] = MANAGER.into();
    if let Some(labels) = object.pointer_mut("/spec/template/metadata/labels") {
        labels[RUN] = run.id.clone().into();
        labels["app.kubernetes.io/managed-by"] = MANAGER.into();
    }
    object
}

/// The same as text for `kubectl apply -f -`.
pub fn yaml(set: Set, images: &Images, namespace: Option<&str>) -> anyhow::Result<String> {
    let objects = objects(set, images, namespace);
    let texts = objects.iter().map(serde_saphyr::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("---\n"))
}
