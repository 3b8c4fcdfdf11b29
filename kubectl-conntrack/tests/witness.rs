//! `witness` against an API server in memory: every node's result, joined with names.

mod common;

use std::time::Duration;

use canary_record::names::{EndedBy, Verdict};
use canary_record::result::Config;
use clap::Parser;
use common::documents::witness as result;
use common::{Fake, Life, job, never};
use kubectl_conntrack::app::{Folder, Job, watch};
use kubectl_conntrack::cli::{Cli, Command};
use kubectl_conntrack::output::Shown as _;
use kubectl_conntrack::witness::ClusterWitness;
use serde_json::{Value, json};

async fn run(
    fake: &Fake,
    line: &str,
    signalled: impl AsyncFnMut() -> EndedBy,
) -> Result<ClusterWitness, String> {
    let words = ["kubectl-conntrack", "witness"].into_iter().chain(line.split_whitespace());
    let Command::Witness(args) = Cli::try_parse_from(words).unwrap().command else {
        panic!("another subcommand")
    };
    let ns = "conntrack-witness";
    let (client, config) = (fake.client(), Config::new());
    let folder = Folder::new(args.cluster.save.as_deref());
    let job = Job { folder, ..job(&client, &config, ns, signalled) };
    let done = Box::pin(watch(job, &args)).await;
    done.map_err(|e| format!("{e:#}"))
}

fn life(_: &Value) -> Life {
    Life::Ends { starts: Duration::from_secs(2), runs: Duration::from_secs(60) }
}

/// What a witness says: on the first node 12 connections were ended.
fn log(pod: &Value, _: &str) -> String {
    let hit = pod["metadata"]["name"] == "witness-0";
    serde_json::to_string(&if hit { result(12) } else { result(0) }).unwrap()
}

/// A cluster of `nodes` in which the addresses of the results have names.
fn fake(nodes: usize, log: impl Fn(&Value, &str) -> String + Send + Sync + 'static) -> Fake {
    let fake = Fake::new(nodes, life, log);
    fake.add(
        "pods/shop/cart-7",
        &json!({"metadata": {"name": "cart-7", "namespace": "shop"},
        "spec": {"containers": []}, "status": {"podIP": "198.18.65.3"}}),
    );
    fake.add(
        "pods/shop/stock-0",
        &json!({"metadata": {"name": "stock-0", "namespace": "shop"},
        "spec": {"containers": []}, "status": {"podIP": "198.18.66.4"}}),
    );
    fake.add("services/shop/stock", &json!({"metadata": {"name": "stock", "namespace": "shop"},
        "spec": {"clusterIP": "198.19.0.5", "clusterIPs": ["198.19.0.5"], "ports": [{"port": 80}]}}));
    fake.linger();
    fake
}

/// Ended connections are told with the names of pod, Service and node, and nothing is left.
#[tokio::test(start_paused = true)]
async fn the_hit_have_names() {
    let fake = fake(3, log);
    let result = run(&fake, "--for 60s", never).await.unwrap();
    assert_eq!(result.verdict, Verdict::Vulnerable);
    let of = |hits: &[kubectl_conntrack::witness::NamedHit]| {
        hits.iter().map(|h| (h.name.clone().unwrap_or_default(), h.count)).collect::<Vec<_>>()
    };
    assert_eq!(of(&result.services), [("service shop/stock".to_owned(), 12)]);
    assert_eq!(of(&result.clients), [("pod shop/cart-7".to_owned(), 12)]);
    assert_eq!(of(&result.servers), [("pod shop/stock-0".to_owned(), 12)]);
    let first = &result.examples[0];
    assert_eq!(first.node, "n0000");
    assert_eq!(first.service_name.as_deref(), Some("service shop/stock"));
    let text = result.table(false);
    assert!(
        text.starts_with("INVALID SEGMENTS ENDED 12 CONNECTIONS on 1 nodes; 3 of 3 nodes watched"),
        "{text}"
    );
    assert!(text.contains("12  pod shop/cart-7 (198.18.65.3)"), "{text}");
    assert!(fake.namespaces().is_empty());
}

/// Nothing on any node is protected; a node that says nothing makes it unproved, by name.
#[tokio::test(start_paused = true)]
async fn a_silent_node_proves_nothing() {
    let quiet = |_: &Value, _: &str| serde_json::to_string(&result(0)).unwrap();
    assert_eq!(run(&fake(2, quiet), "--for 60s", never).await.unwrap().verdict, Verdict::Protected);
    let silent = move |pod: &Value, c: &str| match pod["metadata"]["name"].as_str() {
        Some("witness-1") => "an event".to_owned(),
        _ => quiet(pod, c),
    };
    let result = run(&fake(2, silent), "--for 60s", never).await.unwrap();
    assert_eq!(result.verdict, Verdict::Inconclusive);
    assert_eq!(result.nodes[1].reasons, ["no result: an event"]);
}

/// A signal ends the watch and not what was seen until then.
#[tokio::test(start_paused = true)]
async fn a_signal_keeps_what_was_seen() {
    let fake = fake(2, log);
    let mut given = false;
    let signal = async || {
        if given {
            return never().await;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        given = true;
        EndedBy::Sigint
    };
    let result = run(&fake, "--for 60s", signal).await.unwrap();
    assert_eq!((result.verdict, result.run.ended_by), (Verdict::Vulnerable, EndedBy::Sigint));
    assert_eq!(result.examples.len(), 1);
    assert!(fake.namespaces().is_empty());
}

/// 1,000 nodes, with calls that grow with the nodes.
#[tokio::test(start_paused = true)]
async fn a_thousand_nodes() {
    let fake = fake(1000, log);
    let result = run(&fake, "--for 60s", never).await.unwrap();
    assert_eq!((result.nodes.len(), result.verdict), (1000, Verdict::Vulnerable));
    assert!(fake.calls()["all"] < 4 * 1000, "{:?}", fake.calls());
}

/// A result obeys its committed schema, and is read back as itself.
#[tokio::test(start_paused = true)]
async fn the_document_obeys_its_schema() {
    let result = run(&fake(2, log), "--for 60s", never).await.unwrap();
    common::documents::obeys_its_schema(&result, "cluster-witness");
}

/// The right to read whose an address is is asked for before anything is made.
#[tokio::test(start_paused = true)]
async fn names_need_a_right() {
    let fake = fake(2, log);
    fake.deny("list services");
    let e = run(&fake, "--for 60s", never).await.unwrap_err();
    assert!(e.contains("resources: [services], verbs: [list]"), "{e}");
    assert_eq!(fake.objects().len(), 3);
}

/// Nodes' results are kept with --save. Where they cannot be, the whole is given all the same.
#[tokio::test(start_paused = true)]
async fn results_that_cannot_be_kept_end_nothing() {
    let (dir, file) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    for (at, kept) in [(dir.path(), 3), (file.path(), 0)] {
        let line = format!("--for 60s --save {}", at.display());
        let result = run(&fake(3, log), &line, never).await.unwrap();
        assert_eq!(result.verdict, Verdict::Vulnerable, "{:?}", result.reasons);
        assert_eq!(std::fs::read_dir(at).map_or(0, Iterator::count), kept);
    }
}
