//! `diagnose` against an API server in memory: what it needs, what it makes, what it leaves.

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use canary_record::names::{Diagnosis, EndedBy, ProbeEnd, Verdict};
use canary_record::result::Config;
use canary_wire::segment::Family;
use clap::Parser;
use common::documents::{boom, client, forging, observed};
use common::{Fake, Life, job, never};
use kubectl_conntrack::app::{Folder, Job, diagnosis};
use kubectl_conntrack::cli::{Cli, Command, DiagnoseArgs};
use kubectl_conntrack::output::Shown as _;
use kubectl_conntrack::plan::Path;
use kubectl_conntrack::report::DiagnoseResult;
use serde_json::{Value, json};

const NS: &str = "conntrack-diagnose";

fn args(line: &str) -> DiagnoseArgs {
    let words = ["kubectl-conntrack", "diagnose"].into_iter().chain(line.split_whitespace());
    let Command::Diagnose(args) = Cli::try_parse_from(words).unwrap().command else {
        panic!("another subcommand")
    };
    args
}

/// Pods that start in 2 s and end 15 s later.
fn ends(_: &Value) -> Life {
    Life::Ends { starts: Duration::from_secs(2), runs: Duration::from_secs(15) }
}

/// The log of a container on a cluster where each path is what `diagnosis` says of the server's node.
fn log(diagnosis: impl Fn(&str, &str) -> Diagnosis) -> impl Fn(&Value, &str) -> String {
    let known = Mutex::new(std::collections::HashMap::new());
    move |pod, container| {
        let node = pod["spec"]["affinity"]["nodeAffinity"]
            ["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]
            ["matchFields"][0]["values"][0]
            .as_str()
            .unwrap_or_default();
        let family = if container.ends_with("ipv6") { Family::Ipv6 } else { Family::Ipv4 };
        let of =
            |prefix| container.strip_prefix(prefix).map(|path| (family, diagnosis(node, path)));
        let (server, up) = (of("server-"), of("up-"));
        let mut known = known.lock().unwrap();
        let key = (server.or(up), up.is_some(), container == "node");
        let document = known.entry(key).or_insert_with(|| match server {
            Some((family, diagnosis)) => serde_json::to_string(&boom(family, diagnosis)).unwrap(),
            None if up.is_some() => {
                let (family, diagnosis) = up.unwrap();
                serde_json::to_string(&forging(family, diagnosis)).unwrap()
            }
            None if container == "node" => serde_json::to_string(&observed("iptables")).unwrap(),
            None => serde_json::to_string(&client(&[(ProbeEnd::Survived, 200)])).unwrap(),
        });
        format!("an event\n{document}\n")
    }
}

fn dropped(_: &str, path: &str) -> Diagnosis {
    if path.starts_with("pod-ip") { Diagnosis::NotTranslated } else { Diagnosis::Dropped }
}

async fn run(fake: &Fake, line: &str) -> Result<DiagnoseResult, String> {
    let (args, client, config) = (args(line), fake.client(), Config::new());
    let ns = args.cluster.namespace.as_deref().unwrap_or(NS);
    let folder = Folder::new(args.cluster.save.as_deref());
    let job = Job { folder, ..job(&client, &config, ns, never) };
    let done = diagnosis(job, &args).await;
    done.map_err(|e| format!("{e:#}"))
}

/// Every node is tried on every path, each row names its nodes, and nothing is left.
#[tokio::test(start_paused = true)]
async fn a_protected_cluster_is_protected() {
    let fake = Fake::new(3, ends, log(dropped));
    let result = run(&fake, "").await.unwrap();
    assert_eq!(result.verdict, Verdict::Protected, "{result:#?}");
    assert_eq!(result.nodes.len(), 3);
    let paths = &result.nodes[0].families[0].paths;
    assert_eq!(paths.len(), 11);
    assert_eq!(result.nodes[0].shown.proxy_mode.as_deref(), Some("iptables"));
    assert!(paths.iter().all(|p| p.path.alone() == (p.passed.len() == 1)));
    assert_eq!(fake.namespaces(), [] as [&str; 0]);
}

/// The drop of one node hides nothing of another: the node without one is named.
#[tokio::test(start_paused = true)]
async fn the_exposed_node_is_named() {
    let fake = Fake::new(
        3,
        ends,
        log(|node, path| {
            if node == "n0001" && path.starts_with("same-node") {
                Diagnosis::Unprotected
            } else {
                dropped(node, path)
            }
        }),
    );
    let result = run(&fake, "").await.unwrap();
    let exposed: Vec<_> = result
        .nodes
        .iter()
        .filter(|n| n.verdict == Verdict::Vulnerable)
        .map(|n| n.name.as_str())
        .collect();
    assert_eq!((result.verdict, exposed), (Verdict::Vulnerable, vec!["n0001"]));
}

/// A client's own segments are tried on every path, and make the node vulnerable where they alone
/// leak.
#[tokio::test(start_paused = true)]
async fn the_clients_direction_is_tried() {
    let inner = log(dropped);
    let fake = Fake::new(2, ends, move |pod, container| {
        if container == "up-node-port-local-ipv4" {
            let leaky = forging(Family::Ipv4, Diagnosis::Unprotected);
            return serde_json::to_string(&leaky).unwrap();
        }
        inner(pod, container)
    });
    let result = run(&fake, "").await.unwrap();
    assert_eq!(result.verdict, Verdict::Vulnerable);
    for row in &result.nodes[0].families[0].paths {
        assert!(row.to_server.is_some(), "{}", row.path);
        let leaks = row.path == Path::NodePortLocal;
        assert_eq!(row.verdict == Verdict::Vulnerable, leaks, "{}", row.path);
        assert_eq!(row.leaked, 0, "{}", row.path);
    }
    assert!(result.advice.iter().any(|a| a.starts_with("To the server: ")), "{:?}", result.advice);
}

/// Where clients may not forge, the direction is said to be untried, and nothing is proved.
#[tokio::test(start_paused = true)]
async fn an_untried_direction_is_said() {
    let fake = Fake::new(2, ends, log(dropped));
    fake.refuse_pods_with("up-host-network-ipv4", "NET_RAW is not allowed to clients");
    let result = run(&fake, "").await.unwrap();
    assert_eq!(result.verdict, Verdict::Inconclusive);
    let row = &result.nodes[0].families[0].paths[0];
    assert!(
        row.reasons[0].starts_with("to the server: untried: ")
            && row.reasons[0].ends_with("NET_RAW is not allowed to clients"),
        "{:?}",
        row.reasons
    );
    assert_eq!(row.diagnosis, Some(Diagnosis::Dropped));
}

/// A client's result whose counts do not add up is none.
#[tokio::test(start_paused = true)]
async fn a_damaged_result_is_none() {
    let inner = log(dropped);
    let fake = Fake::new(2, ends, move |pod, container| {
        let text = inner(pod, container);
        if container == "same-node-ipv4" {
            return text.replace("\"attempts\":200", "\"attempts\":201");
        }
        text
    });
    let result = run(&fake, "").await.unwrap();
    assert_eq!(result.verdict, Verdict::Inconclusive);
    let why = &result.nodes[0].families[0].reasons[0];
    assert!(why.starts_with("same-node: client: ") && why.contains("do not add up"), "{why}");
}

/// Both families of a dual-stack cluster are tried.
#[tokio::test(start_paused = true)]
async fn both_families_are_tried() {
    let fake =
        Fake::new(
            2,
            ends,
            log(|node, path| {
                if path == "same-node-ipv6" { Diagnosis::Unprotected } else { dropped(node, path) }
            }),
        );
    fake.dual_stack();
    for n in 0..2 {
        fake.change_node(n, |node| {
            node["status"]["addresses"]
                .as_array_mut()
                .unwrap()
                .push(json!({"type": "InternalIP", "address": format!("fd00:2::{n}")}));
        });
    }
    let result = run(&fake, "").await.unwrap();
    let families: Vec<_> = result.nodes[0].families.iter().map(|f| (f.family, f.verdict)).collect();
    assert_eq!(families, [(Family::Ipv4, Verdict::Protected), (Family::Ipv6, Verdict::Vulnerable)]);
}

/// A family that the pods have and that was not tried is said, and nothing is proved.
#[tokio::test(start_paused = true)]
async fn a_family_left_out_is_said() {
    let fake = Fake::new(2, ends, log(dropped));
    fake.dual_stack();
    let result = run(&fake, "--family ipv4").await.unwrap();
    assert_eq!(result.verdict, Verdict::Inconclusive);
    assert!(
        result.nodes[0].reasons[0].contains("ipv6 was not tried"),
        "{:?}",
        result.nodes[0].reasons
    );
}

/// A node without an address of a family keeps that family's NodePorts from being tried, and it is said.
#[tokio::test(start_paused = true)]
async fn a_missing_address_is_said() {
    let fake = Fake::new(2, ends, log(dropped));
    fake.dual_stack();
    let result = run(&fake, "").await.unwrap();
    let v6 = &result.nodes[0].families[1];
    assert_eq!(v6.verdict, Verdict::Inconclusive);
    assert!(
        v6.reasons
            .iter()
            .any(|r| r == "node-port not tried: the node has no internal ipv6 address"),
        "{:?}",
        v6.reasons
    );
}

/// A node that is not ready is in the result, and nothing is made on it.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_ready_is_said() {
    let fake = Fake::new(3, ends, log(dropped));
    fake.change_node(1, |n| {
        n["status"]["conditions"] =
            json!([{"type": "Ready", "status": "Unknown", "message": "kubelet stopped"}]);
    });
    let result = run(&fake, "").await.unwrap();
    assert_eq!(result.verdict, Verdict::Inconclusive);
    assert_eq!(result.nodes[1].reasons, ["not ready: kubelet stopped"]);
    assert_eq!(result.nodes[0].verdict, Verdict::Protected);
}

/// No ready node is an error before anything is made.
#[tokio::test(start_paused = true)]
async fn no_node_is_an_error() {
    let fake = Fake::new(0, ends, log(dropped));
    assert_eq!(
        run(&fake, "--nodes a=b").await.unwrap_err(),
        "no Linux node with --nodes a=b is ready"
    );
}

/// Missing rights are printed as the role that grants them, and nothing is made.
#[tokio::test(start_paused = true)]
async fn missing_rights_are_printed_as_a_role() {
    let fake = Fake::new(2, ends, log(dropped));
    fake.deny("get pods/log");
    fake.deny("create services");
    let e = run(&fake, "").await.unwrap_err();
    assert!(e.contains("{apiGroups: [\"\"], resources: [pods/log], verbs: [get]}"), "{e}");
    assert!(e.contains("{apiGroups: [\"\"], resources: [services], verbs: [create]}"), "{e}");
    assert!(fake.namespaces().is_empty() && fake.objects().is_empty());
}

/// A namespace of somebody else is refused unless it is named, used then, and never deleted.
#[tokio::test(start_paused = true)]
async fn a_foreign_namespace_stays() {
    let fake = Fake::new(2, ends, log(dropped));
    fake.add_namespace(NS, &json!({}));
    let e = run(&fake, "").await.unwrap_err();
    assert!(e.contains("--namespace conntrack-diagnose"), "{e}");
    let result = run(&fake, &format!("--namespace {NS}")).await.unwrap();
    assert_eq!(result.verdict, Verdict::Protected);
    assert_eq!(fake.namespaces(), [NS]);
    assert_eq!(fake.objects(), [] as [&str; 0]);
}

/// A namespace whose Pod Security level forbids the pods is refused with the line to mend it.
#[tokio::test(start_paused = true)]
async fn pod_security_is_read_first() {
    let fake = Fake::new(2, ends, log(dropped));
    fake.add_namespace("mine", &json!({"pod-security.kubernetes.io/enforce": "baseline"}));
    let e = run(&fake, "--namespace mine").await.unwrap_err();
    assert!(
        e.contains(
            "kubectl label namespace mine pod-security.kubernetes.io/enforce=privileged --overwrite"
        ),
        "{e}"
    );
}

/// What an earlier run left is found, and removed when that is asked for.
#[tokio::test(start_paused = true)]
async fn leftovers_are_found() {
    let fake = Fake::new(2, ends, log(dropped));
    let labels = json!({"app.kubernetes.io/managed-by": "kubectl-conntrack", "conntrack-canary/run": "earlier"});
    fake.add_namespace(NS, &labels);
    let e = run(&fake, "").await.unwrap_err();
    assert!(e.contains("run earlier") && e.contains("--replace"), "{e}");
    assert_eq!(run(&fake, "--replace").await.unwrap().verdict, Verdict::Protected);
    assert_eq!(fake.namespaces(), [] as [&str; 0]);
}

/// What an earlier run left in a namespace of somebody else is found and removed too.
#[tokio::test(start_paused = true)]
async fn leftovers_in_a_foreign_namespace_are_found() {
    let fake = Fake::new(2, |_| Life::Runs, log(dropped));
    fake.add_namespace("mine", &json!({}));
    let kept = run(&fake, "--namespace mine --keep --timeout 5s").await.unwrap();
    assert_eq!(kept.verdict, Verdict::Inconclusive);
    let left = fake.objects().len();
    assert_ne!(left, 0);
    let e = run(&fake, "--namespace mine").await.unwrap_err();
    assert!(e.contains("--replace"), "{e}");
    run(&fake, "--namespace mine --replace --timeout 5s").await.unwrap();
    assert_eq!(fake.objects(), [] as [&str; 0]);
}

/// The first image that cannot be pulled ends the run in seconds, with the line to mend it.
#[tokio::test(start_paused = true)]
async fn an_image_that_cannot_be_had_ends_it() {
    let stuck = json!({"phase": "Pending", "containerStatuses": [{"name": "server-hairpin-ipv4", "image": "conntrack-canary/boom-server:0.1.0",
        "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]});
    let fake = Fake::new(2, move |_| Life::Stuck(stuck.clone()), log(dropped));
    let begun = tokio::time::Instant::now();
    let e = run(&fake, "").await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(
        e.contains(
            "image conntrack-canary/boom-server:0.1.0 cannot be had: ErrImagePull: not found"
        ) && e.contains("make images"),
        "{e}"
    );
    assert_eq!(fake.namespaces(), [] as [&str; 0]);
}

/// What an admission webhook says is said, before any pod starts.
#[tokio::test(start_paused = true)]
async fn a_refused_pod_ends_it() {
    let fake = Fake::new(2, ends, log(dropped));
    fake.refuse_pods("violates PodSecurity \"baseline:latest\"");
    let e = run(&fake, "").await.unwrap_err();
    assert!(e.contains("cannot try (dry-run) Pod server-0: violates PodSecurity"), "{e}");
    assert_eq!(fake.namespaces(), [] as [&str; 0]);
}

/// A run in which the server's pod on one node comes to this.
async fn with_first_server(life: Life) -> DiagnoseResult {
    let fake = Fake::new(
        3,
        move |pod| {
            if pod["metadata"]["name"] == "server-0" { life.clone() } else { ends(pod) }
        },
        log(dropped),
    );
    let result = run(&fake, "").await.unwrap();
    assert_eq!(fake.namespaces(), [] as [&str; 0]);
    assert_eq!(result.verdict, Verdict::Inconclusive);
    result
}

fn said(result: &DiagnoseResult, what: &str) -> bool {
    let node = &result.nodes[0];
    node.verdict == Verdict::Inconclusive
        && node.families[0].reasons.iter().any(|r| r.contains(what))
}

/// A pod that fits nowhere is its node's reason.
#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_is_said() {
    let status = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient memory"}]});
    assert!(said(
        &with_first_server(Life::Stuck(status)).await,
        "not scheduled: Insufficient memory"
    ));
}

/// A container that cannot be created is its node's reason.
#[tokio::test(start_paused = true)]
async fn a_container_that_is_not_created_is_said() {
    let status = json!({"phase": "Pending", "containerStatuses": [{"name": "server-hairpin-ipv4", "image": "i", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"waiting": {"reason": "CreateContainerError", "message": "no room"}}}]});
    assert!(said(&with_first_server(Life::Stuck(status)).await, "CreateContainerError: no room"));
}

/// An evicted pod is its node's reason.
#[tokio::test(start_paused = true)]
async fn an_evicted_pod_is_said() {
    let status = json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"});
    assert!(said(&with_first_server(Life::Stuck(status)).await, "Evicted: low on memory"));
}

/// A deleted pod is its node's reason.
#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_said() {
    assert!(said(
        &with_first_server(Life::Deleted(Duration::from_secs(5))).await,
        "the pod was deleted"
    ));
}

/// A node whose pod never ends is waited for until the deadline, and said.
#[tokio::test(start_paused = true)]
async fn a_dead_node_is_said() {
    assert!(said(&with_first_server(Life::Runs).await, "it did not end in time"));
}

/// The API server away for 20 s in the middle: every document is read afterwards, and the absence is said.
#[tokio::test(start_paused = true)]
async fn a_short_absence_is_outlasted() {
    let fake = Fake::new(3, ends, log(dropped));
    let other = fake.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(8)).await;
        other.away(Duration::from_secs(20));
    });
    let result = run(&fake, "").await.unwrap();
    assert!(result.nodes.iter().all(|n| n.verdict == Verdict::Protected));
    assert_eq!(result.verdict, Verdict::Inconclusive);
    assert!(result.reasons[0].contains("did not answer for"), "{:?}", result.reasons);
    assert_eq!(fake.namespaces(), [] as [&str; 0]);
}

/// One that does not come back ends the run: what is known is told, and what is left behind.
#[tokio::test(start_paused = true)]
async fn a_long_absence_is_told() {
    let fake = Fake::new(3, ends, log(dropped));
    let other = fake.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        other.away(Duration::from_secs(3600));
    });
    let result = run(&fake, "--timeout 20s").await.unwrap();
    assert_eq!(result.verdict, Verdict::Inconclusive);
    assert!(
        result.reasons.iter().any(|r| r.contains("LEFT BEHIND")
            && r.contains("kubectl delete namespace conntrack-diagnose")),
        "{:?}",
        result.reasons
    );
}

/// A watch that expires (410) is begun anew.
#[tokio::test(start_paused = true)]
async fn an_expired_watch_is_begun_anew() {
    let fake = Fake::new(3, ends, log(dropped));
    fake.expire_watches(3);
    assert_eq!(run(&fake, "").await.unwrap().verdict, Verdict::Protected);
}

/// A signal ends the run: what is known is told, nothing is protected, nothing is left.
#[tokio::test(start_paused = true)]
async fn a_signal_puts_everything_back() {
    let fake = Fake::new(2, ends, log(dropped));
    let signal = async || {
        tokio::time::sleep(Duration::from_secs(5)).await;
        EndedBy::Sigint
    };
    let (client, config) = (fake.client(), Config::new());
    let result = diagnosis(job(&client, &config, NS, signal), &args("")).await.unwrap();
    assert_eq!((result.verdict, result.run.ended_by), (Verdict::Inconclusive, EndedBy::Sigint));
    assert_eq!(fake.namespaces(), [] as [&str; 0]);
}

/// One node alone is tried on the paths that need no other.
#[tokio::test(start_paused = true)]
async fn one_node_is_enough() {
    let fake = Fake::new(1, ends, log(dropped));
    let result = run(&fake, "").await.unwrap();
    assert_eq!(result.verdict, Verdict::Protected);
    assert_eq!(result.nodes[0].families[0].paths.len(), 5);
}

/// kube-proxy's ConfigMap is a sign of its mode too; one that contradicts what the nodes show leaves
/// the mode unknown, and both are said.
#[tokio::test(start_paused = true)]
async fn a_contradicted_mode_is_unknown() {
    for (configured, mode) in [("iptables", Some("iptables")), ("nftables", None)] {
        let fake = Fake::new(2, ends, log(dropped));
        let config = format!("kind: KubeProxyConfiguration\nmode: {configured}\n");
        fake.add(
            "configmaps/kube-system/kube-proxy",
            &json!({"metadata": {"name": "kube-proxy"},
            "data": {"config.conf": config, "kubeconfig.conf": "kind: Config"}}),
        );
        let result = run(&fake, "").await.unwrap();
        assert_eq!(result.nodes[0].shown.proxy_mode.as_deref(), mode);
        let table = result.table(false);
        let unknown = "kube-proxy unknown (endpoint iptables, rules iptables, configmap nftables)";
        assert_eq!(table.contains(unknown), mode.is_none(), "{table}");
    }
}

/// Where admission refuses NET_ADMIN, a node's rules are not read, and everything else is done.
#[tokio::test(start_paused = true)]
async fn without_net_admin_rules_are_not_read() {
    let fake = Fake::new(2, ends, log(dropped));
    fake.refuse_pods_with("NET_ADMIN", "policy: no NET_ADMIN");
    assert_eq!(run(&fake, "").await.unwrap().verdict, Verdict::Protected);
}

/// Every document that was read is kept with --save.
#[tokio::test(start_paused = true)]
async fn documents_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(2, ends, log(dropped));
    run(&fake, &format!("--save {}", dir.path().display())).await.unwrap();
    let kept = std::fs::read_dir(dir.path().join("n0000")).unwrap().count();
    // Both ends of each path, and the client that forged.
    assert_eq!(kept, 3 * 11);
}

/// Where documents cannot be kept every node has its row all the same, and nothing is left.
#[tokio::test(start_paused = true)]
async fn documents_that_cannot_be_kept_end_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let fake = Fake::new(2, ends, log(dropped));
    let result = run(&fake, &format!("--save {}", file.path().display())).await.unwrap();
    assert_eq!(result.verdict, Verdict::Protected, "{:?}", result.reasons);
    assert!(fake.namespaces().is_empty());
}

/// Calls and time of a run over `nodes` nodes.
async fn cost(nodes: usize) -> (usize, Duration) {
    let fake = Fake::new(nodes, ends, log(dropped));
    let begun = tokio::time::Instant::now();
    let result = run(&fake, "").await.unwrap();
    assert_eq!((result.nodes.len(), result.verdict), (nodes, Verdict::Protected));
    (fake.calls()["all"], begun.elapsed())
}

/// 1,000 nodes: within five minutes of simulated pod starts and 256 MB, with calls that grow with
/// the nodes and not with their square.
#[tokio::test(start_paused = true)]
async fn a_thousand_nodes() {
    let (few, _) = cost(200).await;
    let (many, took) = cost(1000).await;
    assert!(took < Duration::from_secs(300), "{took:?}");
    assert!(many < few * 6, "{few} calls for 200 nodes, {many} for 1,000");
    let memory = canary_testbed::exec::memory(std::process::id(), "VmHWM").unwrap() * 1024;
    assert!(memory < 256 << 20, "{memory}");
    println!(
        "200 nodes: {few} calls; 1,000 nodes: {many} calls in {took:?}, {} MB with the simulated cluster",
        memory >> 20
    );
}

/// What it says while it runs is in order.
#[tokio::test(start_paused = true)]
async fn progress_is_told() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let fake = Fake::new(2, ends, log(dropped));
    let keep = Arc::clone(&said);
    let say = move |s: &str| keep.lock().unwrap().push(s.to_owned());
    let (client, config) = (fake.client(), Config::new());
    let job = Job { say: &say, ..job(&client, &config, NS, never) };
    diagnosis(job, &args("")).await.unwrap();
    let said = said.lock().unwrap();
    let at = |what: &str| {
        said.iter().position(|s| s.contains(what)).unwrap_or_else(|| panic!("{what}: {said:?}"))
    };
    assert!(
        at("servers") < at("clients")
            && at("clients") < at("results")
            && at("results") < at("removing")
    );
}
