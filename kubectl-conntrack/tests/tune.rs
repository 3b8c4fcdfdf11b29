//! `tune` against an API server in memory: what is set is put back, and every node's word is read.

mod common;

use std::time::Duration;

use canary_record::names::{EndedBy, Verdict};
use canary_record::result::Config;
use clap::Parser;
use common::{Fake, Life, job, never};
use kubectl_conntrack::app::tune;
use kubectl_conntrack::cli::{Cli, Command};
use kubectl_conntrack::output::Shown as _;
use kubectl_conntrack::tune::TuneResult;
use serde_json::{Value, json};

async fn run(
    fake: &Fake,
    line: &str,
    signalled: impl AsyncFnMut() -> EndedBy,
) -> Result<TuneResult, String> {
    let words = ["kubectl-conntrack", "tune", "nf_conntrack_tcp_be_liberal=1"];
    let cli = Cli::try_parse_from(words.into_iter().chain(line.split_whitespace())).unwrap();
    let Command::Tune(args) = cli.command else { panic!("another subcommand") };
    let ns = "conntrack-tune";
    let (client, config) = (fake.client(), Config::new());
    let done = Box::pin(tune(job(&client, &config, ns, signalled), &args)).await;
    done.map_err(|e| format!("{e:#}"))
}

const SET: &str = "T nf_conntrack_tcp_be_liberal set from 0 to 1\nT ready: x\n";

/// What a pod says before it is told to end, and after.
fn log(pod: &Value, _: &str) -> String {
    let back = "T nf_conntrack_tcp_be_liberal restored to 0\nT restored\n";
    let told = !pod["metadata"]["deletionTimestamp"].is_null();
    format!("{SET}{}", if told { back } else { "" })
}

fn fake(log: impl Fn(&Value, &str) -> String + Send + Sync + 'static) -> Fake {
    let fake = Fake::new(3, |_| Life::Runs, log);
    fake.linger();
    fake
}

/// Every node is set, held, put back and read; nothing is left.
#[tokio::test(start_paused = true)]
async fn what_is_set_is_put_back() {
    let fake = fake(log);
    let began = tokio::time::Instant::now();
    let result = run(&fake, "--for 5m", never).await.unwrap();
    assert!(result.done, "{result:?}");
    assert_eq!(result.verdict(), Verdict::Protected);
    for node in &result.nodes {
        let c = &node.changes[0];
        assert_eq!((c.from, c.to, c.restored), (0, 1, Some(0)), "{}", node.name);
    }
    assert!(began.elapsed() >= Duration::from_secs(300));
    assert!(fake.namespaces().is_empty());
}

/// A node that kept its value, for want of another protection, is told and makes it not done.
#[tokio::test(start_paused = true)]
async fn a_value_that_stays_is_told() {
    let fake = fake(|pod, c| {
        let told = !pod["metadata"]["deletionTimestamp"].is_null();
        if told && pod["metadata"]["name"] == "tune-1" {
            format!(
                "{SET}T nf_conntrack_tcp_be_liberal stays 1: kube-proxy started\nT NOT RESTORED: nf_conntrack_tcp_be_liberal\n"
            )
        } else {
            log(pod, c)
        }
    });
    let result = run(&fake, "--for 1s", never).await.unwrap();
    assert!(!result.done);
    assert!(result.nodes[1].reasons[0].contains("stays 1: kube-proxy started"), "{result:?}");
    assert_eq!(result.nodes[0].reasons, [] as [&str; 0]);
    assert!(
        result.table(false).contains("n0001: nf_conntrack_tcp_be_liberal 0 -> 1\n"),
        "{}",
        result.table(false)
    );
}

/// A node that refuses is told in its own words.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_told() {
    let fake = Fake::new(
        2,
        |pod| match pod["metadata"]["name"].as_str() {
            Some("tune-0") => Life::Ends { starts: Duration::ZERO, runs: Duration::ZERO },
            _ => Life::Runs,
        },
        |pod, c| match pod["metadata"]["name"].as_str() {
            Some("tune-0") => "T set to 5, read back 4\n".to_owned(),
            _ => log(pod, c),
        },
    );
    fake.linger();
    let result = run(&fake, "--for 1s", never).await.unwrap();
    assert!(!result.done);
    assert!(result.nodes[0].reasons[0].contains("set to 5, read back 4"), "{result:?}");
    assert_eq!(result.nodes[1].changes[0].restored, Some(0));
}

/// A signal at any step ends in values that are back and a namespace that is gone.
#[tokio::test(start_paused = true)]
async fn a_signal_at_any_step_puts_back() {
    for after in [0, 1, 2, 3, 30] {
        let fake = fake(log);
        let mut given = false;
        let signal = async || {
            if given {
                return never().await;
            }
            tokio::time::sleep(Duration::from_secs(after)).await;
            given = true;
            EndedBy::Sigint
        };
        let result = run(&fake, "", signal).await;
        assert!(fake.namespaces().is_empty(), "after {after} s: {result:?}");
        let whole = |r: &TuneResult| {
            r.nodes.iter().all(|n| n.changes.iter().all(|c| c.restored == Some(0)))
        };
        assert!(result.as_ref().is_ok_and(whole), "after {after} s: {result:?}");
    }
}

/// The API server away for 20 s when the values are to be put back: they are, and the absence is said.
#[tokio::test(start_paused = true)]
async fn a_short_absence_is_outlasted() {
    let fake = fake(log);
    let other = fake.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(59)).await;
        other.away(Duration::from_secs(20));
    });
    let result = run(&fake, "--for 1m", never).await.unwrap();
    assert!(result.nodes.iter().all(|n| n.changes[0].restored == Some(0)), "{result:?}");
    assert!(!result.done && result.reasons[0].contains("did not answer"), "{result:?}");
    assert!(fake.namespaces().is_empty());
}

/// With --keep the values stay, and so does what would put them back.
#[tokio::test(start_paused = true)]
async fn kept_values_stay() {
    let fake = fake(log);
    let result = run(&fake, "--keep", never).await.unwrap();
    assert!(result.done, "{result:?}");
    assert_eq!(result.nodes[0].changes[0].restored, None);
    assert_eq!(fake.namespaces(), ["conntrack-tune"]);
    let pod = fake.object("pods/conntrack-tune/tune-0").unwrap();
    assert_eq!(pod["spec"]["containers"][0]["env"], json!([{"name": "LINGER", "value": "0"}]));
}

/// A result obeys its committed schema, and is read back as itself.
#[tokio::test(start_paused = true)]
async fn the_document_obeys_its_schema() {
    let result = run(&fake(log), "--for 1s", never).await.unwrap();
    common::documents::obeys_its_schema(&result, "tune");
}
