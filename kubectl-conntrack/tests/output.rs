//! What a user sees: help and every format of a result, as committed.

mod common;

use canary_record::names::{Diagnosis, LoadVerdict, ProbeEnd, Verdict};
use canary_record::result::load::ThresholdRecord;
use canary_wire::segment::Family;
use clap::CommandFactory;
use common::documents::{boom, client, forging, run, witness};
use kubectl_conntrack::cli::Cli;
use kubectl_conntrack::names::Names;
use kubectl_conntrack::output::{Format, Shown, text};
use kubectl_conntrack::plan::{Node, Path};
use kubectl_conntrack::report::{Cluster, DiagnoseResult};
use kubectl_conntrack::tune::{Change, TuneResult, TunedNode};
use kubectl_conntrack::verdict::{NodeRow, ToServer, family_row, path_row};
use kubectl_conntrack::witness::ClusterWitness;

fn golden(name: &str, text: &str) {
    canary_testbed::golden::check(env!("CARGO_MANIFEST_DIR"), name, text);
}

/// The help of the program and of each subcommand is what a user was shown last.
#[test]
fn help_is_as_committed() {
    let mut command = Cli::command().term_width(100);
    golden("help.txt", &command.render_long_help().to_string());
    for sub in Cli::command().get_subcommands() {
        let name = sub.get_name();
        let help = sub.clone().term_width(100).render_long_help().to_string();
        golden(&format!("help-{name}.txt"), &help);
    }
}

fn node(name: &str, mode: Option<&str>, of: impl Fn(Path, Family) -> Diagnosis) -> NodeRow {
    let families = [Family::Ipv4, Family::Ipv6].map(|family| {
        let rows = Path::ALL.iter().map(|path| {
            let passed = [name, "other"].into_iter().take(2 - usize::from(path.alone()));
            let passed = passed.map(str::to_owned).collect();
            let diagnosis = of(*path, family);
            let server = Ok(boom(family, diagnosis));
            let row = path_row(*path, family, passed, &server, &Ok(client(&[])));
            row.with(ToServer::of(*path, family, &Ok(forging(family, diagnosis))))
        });
        family_row(family, rows.collect(), &[])
    });
    let plain = Node {
        name: name.to_owned(),
        kernel: "6.18.5".to_owned(),
        os_image: "Debian 12".to_owned(),
        kubelet: "v1.36.2".to_owned(),
        ..Node::default()
    };
    NodeRow {
        shown: common::documents::shown(mode),
        verdict: Verdict::worst(families.iter().map(|f| f.verdict)),
        families: families.into(),
        reasons: Vec::new(),
        ..kubectl_conntrack::diagnose::unproved(&plain, String::new())
    }
}

/// Three groups: FORWARD alone dropped for IPv4, all dropped, and a node that was not ready.
fn example() -> DiagnoseResult {
    let dropped = |path: Path, _| match path {
        Path::PodIp => Diagnosis::NotTranslated,
        _ => Diagnosis::Dropped,
    };
    let forward = move |path: Path, family| match (path, family) {
        (
            Path::Hairpin | Path::HostNetwork | Path::NodePort | Path::NodePortFromOther,
            Family::Ipv4,
        ) => Diagnosis::Unprotected,
        _ => dropped(path, family),
    };
    let lost = Node {
        name: "n9".to_owned(),
        kernel: "5.10.0".to_owned(),
        os_image: "Debian 11".to_owned(),
        kubelet: "v1.35.0".to_owned(),
        ..Node::default()
    };
    let nodes = vec![
        node("n1", Some("iptables"), forward),
        node("n2", Some("iptables"), forward),
        node("n3", Some("iptables"), dropped),
        kubectl_conntrack::diagnose::unproved(
            &lost,
            "not ready: kubelet stopped posting".to_owned(),
        ),
    ];
    let cluster = Cluster {
        context: "prod & <test>".to_owned(),
        version: "v1.36.2".to_owned(),
        namespace: "conntrack-diagnose".to_owned(),
    };
    DiagnoseResult::new(run("kubectl-conntrack diagnose"), cluster, nodes, Vec::new())
}

/// Every format of one result is as committed.
#[test]
fn formats_are_as_committed() {
    let result = example();
    golden("diagnose.json", &text(&result, Format::Json, false).unwrap());
    shown("diagnose", &result);
}

/// The verdict's word is in the table with and without colour.
#[test]
fn colour_is_not_the_only_carrier() {
    let coloured = text(&example(), Format::Table, true).unwrap();
    assert!(coloured.contains("\x1b[1;31mVULNERABLE\x1b[0m"));
    assert!(
        text(&example(), Format::Table, false).unwrap().contains("\nVULNERABLE  2 nodes: n1, n2")
    );
}

/// A result obeys its committed schema, and is read back as itself.
#[test]
fn the_document_obeys_its_schema() {
    common::documents::obeys_its_schema(&example(), "diagnose");
}

/// be_liberal alone has its own word in the headline.
#[test]
fn bad_flags_alone_have_a_word() {
    let partly = node("n1", Some("nftables"), |p, _| match p {
        Path::PodIp => Diagnosis::NotTranslated,
        _ => Diagnosis::Liberal,
    });
    let result = DiagnoseResult::new(run("x"), Cluster::default(), vec![partly], Vec::new());
    assert!(
        result.headline().starts_with("VULNERABLE TO BAD FLAGS ALONE: "),
        "{}",
        result.headline()
    );
    assert!(result.advice[0].starts_with("be_liberal is in force"));
}

/// Table, JUnit and page of `result`, but for the page's look, are as committed under `name`.
fn shown<T: Shown>(name: &str, result: &T) {
    golden(&format!("{name}.txt"), &text(result, Format::Table, false).unwrap());
    golden(&format!("{name}.junit.xml"), &text(result, Format::Junit, false).unwrap());
    let page = text(result, Format::Html, false).unwrap();
    let (head, rest) = page.split_once("<style>").unwrap();
    let (_, body) = rest.split_once("</style>").unwrap();
    golden(&format!("{name}.html"), &[head, body].concat());
}

fn cluster() -> Cluster {
    Cluster { context: "prod".to_owned(), version: "v1.36.2".to_owned(), ..Cluster::default() }
}

/// What a load came to, with a threshold that was crossed, in every format.
#[test]
fn a_load_has_every_format() {
    let mut load = client(&[(ProbeEnd::Survived, 99), (ProbeEnd::Refused, 1)]);
    load.verdict = LoadVerdict::ThresholdCrossed;
    load.merged = 2;
    load.reasons = vec!["the target accepted 99 connections".to_owned()];
    load.thresholds =
        vec![ThresholdRecord { expression: "refused>0".to_owned(), measured: 1.0, crossed: true }];
    shown("load", &load);
}

/// What a witness saw, a node that was hit, one that was not and one that says nothing.
#[test]
fn a_witness_has_every_format() {
    let found = vec![
        ("n1".to_owned(), Ok(witness(12))),
        ("n2".to_owned(), Ok(witness(0))),
        ("n3".to_owned(), Err("the pod was deleted".to_owned())),
    ];
    let names = Names::default();
    let result = ClusterWitness::new(
        run("kubectl-conntrack witness"),
        cluster(),
        &found,
        &names,
        Vec::new(),
    );
    shown("witness", &result);
}

/// What was set and put back, and what stays with its reason.
#[test]
fn a_tune_has_every_format() {
    let change = |restored| Change {
        name: "nf_conntrack_tcp_be_liberal".to_owned(),
        from: 0,
        to: 1,
        restored,
    };
    let node = |name: &str, restored, reasons: &[&str]| TunedNode {
        name: name.to_owned(),
        changes: vec![change(restored)],
        reasons: reasons.iter().map(ToString::to_string).collect(),
    };
    let stays = "nf_conntrack_tcp_be_liberal stays 1: kube-proxy started while it was set";
    let nodes = vec![node("n1", Some(0), &[]), node("n2", None, &[stays])];
    let run = run("kubectl-conntrack tune");
    shown("tune", &TuneResult::new(run, cluster(), nodes, Vec::new(), false));
}
