//! `experiment` against an API server in memory: what it collects, how it is judged, what it leaves.

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use canary_record::names::EndedBy;
use canary_record::result::Config;
use clap::Parser;
use common::world::{deployed, world};
use common::{Fake, job, never};
use conntrack_lab::document::lab::{Judgement, LabResult};
use kubectl_conntrack::app::experiment;
use kubectl_conntrack::cli::{Cli, Command};
use tokio::time::Instant;

const NS: &str = "conntrack-experiment";

async fn run(
    fake: &Fake,
    dir: &Path,
    line: &str,
    signalled: impl AsyncFnMut() -> EndedBy,
) -> Result<LabResult, String> {
    let words = ["kubectl-conntrack", "experiment"].into_iter().chain(line.split_whitespace());
    let Command::Experiment(args) = Cli::try_parse_from(words).unwrap().command else {
        panic!("another subcommand")
    };
    let ns = NS;
    let (client, config) = (fake.client(), Config::new());
    let done = Box::pin(experiment(job(&client, &config, ns, signalled), &args, dir)).await;
    done.map_err(|e| format!("{e:#}"))
}

fn fake() -> Fake {
    let fake = world(2);
    deployed(&fake);
    fake
}

/// Every step runs, its clients' results are collected, and an unprotected cluster is its own control.
#[tokio::test(start_paused = true)]
async fn a_whole_experiment_is_judged() {
    let (fake, dir) = (fake(), tempfile::tempdir().unwrap());
    let result = run(&fake, dir.path(), "--clients 0,3 --step 10s", never).await.unwrap();
    assert_eq!(result.reasons, [] as [&str; 0]);
    assert_eq!(result.judgement, Judgement::AsExpected);
    assert!(result.positive_control.held, "{:?}", result.positive_control);
    let steps = &result.scenarios[0].timeline.as_ref().unwrap().steps;
    assert_eq!(steps.len(), 3);
    assert_eq!((steps[1].new_attempts, steps[2].new_attempts), (300, 300));
    assert_eq!(steps[2].changes[0].what, "nf_conntrack_tcp_be_liberal");
    assert!(dir.path().join("report.html").exists() && dir.path().join("results.json").exists());
    assert!(fake.namespaces().is_empty());
}

/// A signal ends the steps, and what was collected by then is judged.
#[tokio::test(start_paused = true)]
async fn a_signal_keeps_what_was_collected() {
    for after in [1, 20, 45] {
        let (fake, dir) = (fake(), tempfile::tempdir().unwrap());
        let (at, mut given) = (Instant::now() + Duration::from_secs(after), false);
        let signal = async || {
            if given {
                return never().await;
            }
            tokio::time::sleep_until(at).await;
            given = true;
            EndedBy::Sigint
        };
        let line = "--clients 3,3 --step 30s";
        let result = run(&fake, dir.path(), line, signal).await.unwrap();
        assert_eq!(result.judgement, Judgement::Inconclusive, "after {after} s");
        assert_eq!(result.run.ended_by, EndedBy::Sigint, "after {after} s");
        assert!(fake.namespaces().is_empty(), "after {after} s");
        if after == 20 {
            let step = &result.scenarios[0].timeline.as_ref().unwrap().steps[0];
            assert_eq!(step.new_attempts, 300);
        }
    }
}

/// The API server away for 20 s in a step: every result is there, and the gap is the reason for 11.
#[tokio::test(start_paused = true)]
async fn an_absence_is_a_doubt() {
    let (fake, dir) = (fake(), tempfile::tempdir().unwrap());
    let other = fake.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(10)).await;
        other.away(Duration::from_secs(20));
    });
    let result = run(&fake, dir.path(), "--clients 3 --step 60s", never).await.unwrap();
    assert_eq!(result.judgement, Judgement::Inconclusive);
    let said = |what: &str| result.reasons.iter().any(|r| r.contains(what));
    assert!(
        said("samples in a row could not be read") && said("API server did not answer"),
        "{:?}",
        result.reasons
    );
    let step = &result.scenarios[0].timeline.as_ref().unwrap().steps[0];
    assert_eq!(step.new_attempts, 300);
    assert!(fake.namespaces().is_empty());
}

/// A command that keeps the table's limit in a file, and does `more` first.
fn table_command(dir: &Path, more: &str) -> String {
    let (limit, script) = (dir.join("limit"), dir.join("table.sh"));
    std::fs::write(&limit, "262144").unwrap();
    let limit = limit.display();
    let text =
        format!("#!/bin/sh\n{more}\nif [ $# = 1 ]; then echo $1 >{limit}; fi\ncat {limit}\n");
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script.display().to_string()
}

/// The command sets the table's limit for one step and puts it back; that is in the result.
#[tokio::test(start_paused = true)]
async fn a_command_sets_the_table_and_puts_it_back() {
    let (fake, dir) = (fake(), tempfile::tempdir().unwrap());
    let command = table_command(dir.path(), "");
    let line = format!("--clients 3 --step 10s --table-size 5000 --table-command {command}");
    let result = run(&fake, dir.path(), &line, never).await.unwrap();
    let steps = &result.scenarios[0].timeline.as_ref().unwrap().steps;
    let change = &steps[1].changes[0];
    assert_eq!((&*change.what, &*change.from, &*change.to), ("nf_conntrack_max", "262144", "5000"));
    assert_eq!(std::fs::read_to_string(dir.path().join("limit")).unwrap(), "262144\n");
}

/// What the command prints instead of a number is a doubt, and the rest is judged all the same. A
/// limit that it could read once is put back, whatever it says later.
#[tokio::test(start_paused = true)]
async fn a_command_that_prints_no_number_is_a_doubt() {
    let (words, later) = ("echo max = ", "[ $(cat {limit}) = 262144 ] || echo not");
    for more in [words, later] {
        let (fake, dir) = (fake(), tempfile::tempdir().unwrap());
        let limit = dir.path().join("limit").display().to_string();
        let command = table_command(dir.path(), &more.replace("{limit}", &limit));
        let line = format!("--clients 3 --step 10s --table-size 5000 --table-command {command}");
        let result = run(&fake, dir.path(), &line, never).await.unwrap();
        assert_eq!(result.judgement, Judgement::Inconclusive);
        assert!(result.reasons[0].contains("instead of a number"), "{:?}", result.reasons);
        let left = std::fs::read_to_string(dir.path().join("limit")).unwrap();
        assert_eq!(left.trim(), "262144", "{more}");
    }
}

/// A folder that holds another run is refused before the cluster is touched.
#[tokio::test(start_paused = true)]
async fn a_folder_is_used_once() {
    let (fake, dir) = (fake(), tempfile::tempdir().unwrap());
    std::fs::create_dir(dir.path().join("raw")).unwrap();
    std::fs::write(dir.path().join("raw/journal"), "").unwrap();
    let e = run(&fake, dir.path(), "", never).await.unwrap_err();
    assert!(e.contains("raw/journal"), "{e}");
    assert!(fake.namespaces().is_empty());
}
