//! A cluster in which every subcommand finds what it looks for, and each of them by one name.

use std::path::Path;
use std::time::Duration;

use canary_record::names::{Diagnosis, EndedBy, LoadVerdict, ProbeEnd, Verdict};
use canary_record::result::Config;
use canary_wire::segment::Family;
use clap::Parser;
use conntrack_lab::document::lab::Judgement;
use kubectl_conntrack::app::{self, Job};
use kubectl_conntrack::cli::{Cli, Command};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::documents::{boom, client, forging, observed, witness};
use super::{Fake, Life};

/// The subcommands that work in a cluster, with options under which each takes about a minute.
pub const LINES: [&str; 5] = [
    "diagnose",
    "load --clients 5",
    "witness --for 60s",
    "tune nf_conntrack_tcp_be_liberal=1 --for 60s",
    "experiment --clients 3 --step 30s",
];

/// How a subcommand ended.
#[derive(Debug)]
pub struct Done {
    /// The exit code.
    pub code: u8,
    /// What was running ended by this.
    pub ended_by: EndedBy,
    /// The whole document.
    pub document: String,
}

fn life(pod: &Value) -> Life {
    let name = pod["metadata"]["labels"]["app.kubernetes.io/name"].as_str().unwrap_or_default();
    let ends =
        |runs| Life::Ends { starts: Duration::from_secs(2), runs: Duration::from_secs(runs) };
    match (pod["metadata"]["namespace"].as_str().unwrap_or_default(), name) {
        ("conntrack-diagnose", _) => ends(15),
        ("conntrack-load", "load-client") | (_, "witness") => ends(60),
        _ => Life::Runs,
    }
}

fn log(pod: &Value, container: &str) -> String {
    let told = !pod["metadata"]["deletionTimestamp"].is_null();
    let family = if container.ends_with("ipv6") { Family::Ipv6 } else { Family::Ipv4 };
    let of = |path: &str| {
        if path.starts_with("pod-ip") { Diagnosis::NotTranslated } else { Diagnosis::Dropped }
    };
    let name = pod["metadata"]["labels"]["app.kubernetes.io/name"].as_str().unwrap_or_default();
    match (name, container) {
        ("tune", _) => {
            let set = "T nf_conntrack_tcp_be_liberal set from 0 to 1\nT ready: x\n";
            let back = "T nf_conntrack_tcp_be_liberal restored to 0\nT restored\n";
            format!("{set}{}", if told { back } else { "" })
        }
        ("witness", _) => text(&witness(0)),
        (_, "node") => text(&observed("iptables")),
        _ => {
            if let Some(path) = container.strip_prefix("server-") {
                text(&boom(family, of(path)))
            } else if let Some(path) = container.strip_prefix("up-") {
                text(&forging(family, of(path)))
            } else {
                let mut result = client(&[(ProbeEnd::Survived, 100)]);
                pod["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .clone_into(&mut result.run.host);
                text(&result)
            }
        }
    }
}

fn text(document: &impl serde::Serialize) -> String {
    serde_json::to_string(document).unwrap()
}

/// A protected cluster of `nodes` nodes, of which be_liberal is the cure while pods hold it.
pub fn world(nodes: usize) -> Fake {
    let fake = Fake::new(nodes, life, log);
    fake.linger();
    let (began, seen) = (Instant::now(), fake.clone());
    fake.metrics(move |pod| {
        let n = began.elapsed().as_secs();
        let cured = seen.objects().iter().any(|o| o.contains("tune-liberal"));
        let killed = if cured { 0 } else { n };
        match pod.split_once('-').map_or(pod, |(kind, _)| kind) {
            "boom" => format!(
                "boom_handshakes_total {n}\nboom_forged_total{{forgery=\"above-window\"}} {n}\n\
                 boom_killed_total{{forgery=\"above-window\"}} {killed}\n\
                 boom_outcomes_total{{forgery=\"control\",outcome=\"delivered\"}} {n}\n"
            ),
            "canary" => format!("load_attempts_total {n}\nload_ok_total {n}\n"),
            "observe" => format!("load_conntrack_entries {n}\nload_conntrack_limit 262144\n"),
            _ => format!("load_accepted_total {}\n", seen.clients() * 100),
        }
    });
    fake
}

/// What Deployments make, which this API server has no controller for.
pub fn deployed(fake: &Fake) {
    for (ns, name) in [
        ("conntrack-experiment", "boom-server"),
        ("conntrack-experiment", "canary-client"),
        ("conntrack-experiment", "load-target"),
        ("conntrack-load", "load-target"),
    ] {
        fake.add(
            &format!("pods/{ns}/{name}-x"),
            &json!({"metadata": {"name": format!("{name}-x"), "namespace": ns, "uid": name,
                "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "kubectl-conntrack"}},
                "spec": {"nodeName": "n0001", "containers": []},
                "status": {"containerStatuses": [{"name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]}}),
        );
    }
}

/// Runs a subcommand as a user writes it.
pub async fn run(
    fake: &Fake,
    line: &str,
    dir: &Path,
    signalled: impl AsyncFnMut() -> EndedBy,
    say: &dyn Fn(&str),
) -> Result<Done, String> {
    let cli =
        Cli::try_parse_from(["conntrack"].into_iter().chain(line.split_whitespace())).unwrap();
    let word = line.split(' ').next().unwrap();
    let namespace = format!("conntrack-{word}");
    let (c, config) = (fake.client(), Config::new());
    let job = Job { say, ..super::job(&c, &config, &namespace, signalled) };
    let code = |v: Verdict| match v {
        Verdict::Protected => 0,
        Verdict::Vulnerable => 10,
        Verdict::Inconclusive => 11,
    };
    macro_rules! done {
        ($r:expr, $code:expr) => {
            Done { code: $code, ended_by: $r.run.ended_by, document: text(&$r) }
        };
    }
    let done = async {
        Ok::<_, anyhow::Error>(match cli.command {
            Command::Diagnose(args) => {
                let r = app::diagnosis(job, &args).await?;
                done!(r, code(r.verdict))
            }
            Command::Load(args) => {
                let r = app::load(job, &args).await?;
                let verdict = match r.verdict {
                    LoadVerdict::WithinThresholds => Verdict::Protected,
                    LoadVerdict::ThresholdCrossed => Verdict::Vulnerable,
                    LoadVerdict::Inconclusive => Verdict::Inconclusive,
                };
                done!(r, code(verdict))
            }
            Command::Witness(args) => {
                let r = app::watch(job, &args).await?;
                done!(r, code(r.verdict))
            }
            Command::Tune(args) => {
                let r = app::tune(job, &args).await?;
                done!(r, code(r.verdict()))
            }
            Command::Experiment(args) => {
                let r = app::experiment(job, &args, dir).await?;
                let verdict = match r.judgement {
                    Judgement::AsExpected => 0,
                    Judgement::Inconclusive => 11,
                    Judgement::Differs => 10,
                    Judgement::Skipped => panic!("not run"),
                };
                done!(r, verdict)
            }
            Command::Manifests(_) => panic!("nothing to do in a cluster"),
        })
    };
    Box::pin(done).await.map_err(|e| format!("{e:#}"))
}
