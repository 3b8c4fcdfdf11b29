//! `load` against an API server in memory: every client's result, and what is left.

mod common;

use std::time::Duration;

use canary_record::names::{EndedBy, LoadVerdict, ProbeEnd};
use canary_record::result::Config;
use canary_record::result::load::LoadResult;
use clap::Parser;
use common::documents::client;
use common::{Fake, Life, job, never};
use kubectl_conntrack::app::{Folder, Job, load};
use kubectl_conntrack::cli::{Cli, Command, LoadArgs};
use serde_json::{Value, json};

fn args(line: &str) -> LoadArgs {
    let words = ["kubectl-conntrack", "load"].into_iter().chain(line.split_whitespace());
    let Command::Load(args) = Cli::try_parse_from(words).unwrap().command else {
        panic!("another subcommand")
    };
    args
}

async fn run(
    fake: &Fake,
    line: &str,
    signalled: impl AsyncFnMut() -> EndedBy,
) -> Result<LoadResult, String> {
    let ns = "conntrack-load";
    let (client, args, config) = (fake.client(), args(line), Config::new());
    let folder = Folder::new(args.cluster.save.as_deref());
    let job = Job { folder, ..job(&client, &config, ns, signalled) };
    let done = Box::pin(load(job, &args)).await;
    done.map_err(|e| format!("{e:#}"))
}

fn life(pod: &Value) -> Life {
    match pod["metadata"]["labels"]["app.kubernetes.io/name"].as_str() {
        Some("load-client") => {
            Life::Ends { starts: Duration::from_secs(2), runs: Duration::from_secs(60) }
        }
        _ => Life::Runs,
    }
}

/// 100 connections of each client, 99 of which succeed.
fn log(pod: &Value, _: &str) -> String {
    let mut result = client(&[(ProbeEnd::Survived, 99), (ProbeEnd::Refused, 1)]);
    pod["metadata"]["name"].as_str().unwrap_or_default().clone_into(&mut result.run.host);
    serde_json::to_string(&result).unwrap()
}

/// A target's pod, for its metrics.
fn target(fake: &Fake) {
    fake.add_pod(
        "conntrack-load",
        "load-target-x",
        &json!({"app.kubernetes.io/name": "load-target"}),
    );
    fake.accepted(20 * 99);
}

/// Every client's result is in the one of all, and nothing is left.
#[tokio::test(start_paused = true)]
async fn all_results_are_joined() {
    let fake = Fake::new(2, life, log);
    target(&fake);
    let result = run(&fake, "--clients 20", never).await.unwrap();
    assert_eq!((result.merged, result.attempts, result.ok), (20, 2000, 1980));
    assert_eq!(result.verdict, LoadVerdict::WithinThresholds, "{:?}", result.reasons);
    assert!(
        result.reasons.iter().any(|r| r == "the target accepted 1980 connections"),
        "{:?}",
        result.reasons
    );
    assert!(fake.namespaces().is_empty());
}

/// A threshold is held against the whole.
#[tokio::test(start_paused = true)]
async fn a_threshold_is_the_wholes() {
    let fake = Fake::new(2, life, log);
    target(&fake);
    assert_eq!(
        run(&fake, "--clients 20 --fail-on refused>19", never).await.unwrap().verdict,
        LoadVerdict::ThresholdCrossed
    );
    target(&fake);
    assert_eq!(
        run(&fake, "--clients 20 --fail-on refused>20", never).await.unwrap().verdict,
        LoadVerdict::WithinThresholds
    );
}

/// A target that accepted less than succeeded makes the whole doubtful.
#[tokio::test(start_paused = true)]
async fn sums_are_held_against_the_target() {
    let fake = Fake::new(2, life, log);
    target(&fake);
    fake.accepted(7);
    let result = run(&fake, "--clients 20", never).await.unwrap();
    assert_eq!(result.verdict, LoadVerdict::Inconclusive);
    assert!(result.reasons[0].contains("accepted 7 connections"), "{:?}", result.reasons);
}

/// A client without a result is missed by name.
#[tokio::test(start_paused = true)]
async fn a_missing_result_is_said() {
    let fake = Fake::new(2, life, |pod, container| {
        if pod["metadata"]["name"] == "load-client-7" {
            "an event".to_owned()
        } else {
            log(pod, container)
        }
    });
    target(&fake);
    let result = run(&fake, "--clients 20", never).await.unwrap();
    assert_eq!((result.verdict, result.merged), (LoadVerdict::Inconclusive, 19));
    assert!(
        result.reasons[0].starts_with("1 of 20 results are missing; load-client-7: no result"),
        "{:?}",
        result.reasons
    );
}

/// A signal ends the load and not its results.
#[tokio::test(start_paused = true)]
async fn a_signal_keeps_what_was_counted() {
    let fake = Fake::new(2, life, log);
    target(&fake);
    let signal = async || {
        tokio::time::sleep(Duration::from_secs(20)).await;
        EndedBy::Sigterm
    };
    fake.linger();
    let result = run(&fake, "--clients 5", signal).await.unwrap();
    assert_eq!(
        (result.verdict, result.merged, result.run.ended_by),
        (LoadVerdict::Inconclusive, 5, EndedBy::Sigterm)
    );
    assert!(fake.namespaces().is_empty());
}

/// An image that cannot be had ends it with the line to mend it.
#[tokio::test(start_paused = true)]
async fn an_image_that_cannot_be_had_ends_it() {
    let stuck = json!({"phase": "Pending", "containerStatuses": [{"name": "load-client", "image": "r/load-client:1", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}}]});
    let fake = Fake::new(2, move |_| Life::Stuck(stuck.clone()), log);
    let e = run(&fake, "", never).await.unwrap_err();
    assert!(e.contains("image r/load-client:1 cannot be had"), "{e}");
    assert!(fake.namespaces().is_empty());
}

/// Clients' results are kept with --save. Where they cannot be, the whole is given all the same, and
/// nothing is left.
#[tokio::test(start_paused = true)]
async fn results_that_cannot_be_kept_end_nothing() {
    let (dir, file) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    for (at, kept) in [(dir.path(), 5), (file.path(), 0)] {
        let fake = Fake::new(2, life, log);
        target(&fake);
        fake.accepted(5 * 99);
        let line = format!("--clients 5 --save {}", at.display());
        let result = run(&fake, &line, never).await.unwrap();
        assert_eq!(result.verdict, LoadVerdict::WithinThresholds, "{:?}", result.reasons);
        assert_eq!(std::fs::read_dir(at).map_or(0, Iterator::count), kept);
        assert!(fake.namespaces().is_empty());
    }
}
