//! What is said of paths, nodes and groups of nodes, from the documents that pods left.

mod common;

use canary_record::names::{ClientClass, Diagnosis, Forgery, ProbeEnd, Verdict};
use canary_wire::segment::Family;
use common::documents::{boom, client};
use kubectl_conntrack::plan::Path;
use kubectl_conntrack::verdict::{NodeRow, PathRow, family_row, groups, path_row};

const V4: Family = Family::Ipv4;

fn alive() -> canary_record::result::load::LoadResult {
    client(&[(ProbeEnd::Survived, 200)])
}

fn row(path: Path, diagnosis: Diagnosis) -> PathRow {
    path_row(path, V4, vec!["n".to_owned()], &Ok(boom(V4, diagnosis)), &Ok(alive()))
}

fn all(diagnosis: Diagnosis) -> Vec<PathRow> {
    Path::ALL
        .iter()
        .map(|p| row(*p, if *p == Path::PodIp { Diagnosis::NotTranslated } else { diagnosis }))
        .collect()
}

/// A leak on one path makes the node vulnerable, whatever the others are, and names the forgery.
#[test]
fn one_leak_is_the_nodes() {
    let mut rows = all(Diagnosis::Dropped);
    rows[1] = row(Path::Hairpin, Diagnosis::Unprotected);
    let f = family_row(V4, rows, &[]);
    assert_eq!(f.verdict, Verdict::Vulnerable);
    assert_eq!(f.paths[1].leaks[0].forgery, Forgery::AboveWindow);
    assert!(!f.bad_flags_alone);
}

/// Every path protected is a node protected.
#[test]
fn all_protected_is_protected() {
    assert_eq!(family_row(V4, all(Diagnosis::Dropped), &[]).verdict, Verdict::Protected);
}

/// A path that passes two nodes proves nothing of one of them: without a path that stays on the
/// node nothing is proved.
#[test]
fn another_nodes_drop_proves_nothing() {
    let rows = vec![row(Path::ClusterIp, Diagnosis::Dropped)];
    assert_eq!(family_row(V4, rows, &[]).verdict, Verdict::Inconclusive);
}

/// A path that was not tried keeps the node from being protected, and is named.
#[test]
fn what_was_not_tried_is_said() {
    let f =
        family_row(V4, all(Diagnosis::Dropped), &["node-port not tried: no address".to_owned()]);
    assert_eq!(f.verdict, Verdict::Inconclusive);
    assert!(f.reasons.iter().any(|r| r.contains("node-port not tried")), "{:?}", f.reasons);
}

/// A server without a result is no verdict, and its reason stands.
#[test]
fn a_missing_server_is_said() {
    let r =
        path_row(Path::SameNode, V4, vec![], &Err("the pod was deleted".to_owned()), &Ok(alive()));
    assert_eq!(
        (r.verdict, r.reasons[0].as_str()),
        (Verdict::Inconclusive, "server: the pod was deleted")
    );
}

/// Without its client's document nobody knows what the application saw: no path is protected then, and
/// the reason is the first that its family gives. A leak is one without it.
#[test]
fn a_missing_client_proves_nothing() {
    let of = |diagnosis| {
        let client = Err("OOMKilled".to_owned());
        path_row(Path::SameNode, V4, vec![], &Ok(boom(V4, diagnosis)), &client)
    };
    let mut rows = all(Diagnosis::Dropped);
    rows[0] = of(Diagnosis::Dropped);
    let f = family_row(V4, rows, &[]);
    assert_eq!((f.verdict, f.paths[0].verdict), (Verdict::Inconclusive, Verdict::Inconclusive));
    assert_eq!(f.reasons, ["same-node: client: OOMKilled"]);
    assert_eq!(of(Diagnosis::Unprotected).verdict, Verdict::Vulnerable);
}

/// Where no connection came, the client's own end is the first reason.
#[test]
fn who_never_connected_says_how() {
    let refused = Ok(client(&[(ProbeEnd::Refused, 200)]));
    let r = path_row(Path::SameNode, V4, vec![], &Ok(boom(V4, Diagnosis::Inconclusive)), &refused);
    assert_eq!(r.reasons[0], "200 of 200 connections: ECONNREFUSED in connect");
}

/// A hang that the client's application saw may not stand beside "protected".
#[test]
fn a_hang_is_contrary_evidence() {
    let hung = Ok(client(&[(ProbeEnd::Survived, 199), (ProbeEnd::Hung, 1)]));
    let r = path_row(Path::SameNode, V4, vec![], &Ok(boom(V4, Diagnosis::Dropped)), &hung);
    assert_eq!(r.verdict, Verdict::Inconclusive);
}

/// On the path without translation nothing can leak: a leak there accuses the measurement.
#[test]
fn a_leaking_control_proves_nothing() {
    assert_eq!(row(Path::PodIp, Diagnosis::Unprotected).verdict, Verdict::Inconclusive);
    let mut rows = all(Diagnosis::Dropped);
    rows.pop();
    rows.push(row(Path::PodIp, Diagnosis::Unprotected));
    assert_eq!(family_row(V4, rows, &[]).verdict, Verdict::Inconclusive);
}

/// Whether a way out is masqueraded is told by the address that the server saw, on that path alone.
#[test]
fn a_masquerade_is_told() {
    let of = |path, class| {
        let mut server = boom(V4, Diagnosis::Dropped);
        server.paths[0].class = class;
        path_row(path, V4, vec![], &Ok(server), &Ok(alive())).masqueraded
    };
    assert_eq!(of(Path::Egress, ClientClass::Node), Some(true));
    assert_eq!(of(Path::Egress, ClientClass::Outside), Some(false));
    assert_eq!(of(Path::SameNode, ClientClass::Node), None);
}

/// be_liberal alone has a word of its own; one plain leak beside it takes that away.
#[test]
fn bad_flags_alone_are_told_apart() {
    assert!(family_row(V4, all(Diagnosis::Liberal), &[]).bad_flags_alone);
    let mut rows = all(Diagnosis::Liberal);
    rows[0] = row(Path::SameNode, Diagnosis::Unprotected);
    assert!(!family_row(V4, rows, &[]).bad_flags_alone);
}

/// An eBPF data path is protected, and the reason says that conntrack translates nothing.
#[test]
fn no_translation_is_said() {
    let f = family_row(V4, all(Diagnosis::NotTranslated), &[]);
    assert_eq!(f.verdict, Verdict::Protected);
    assert!(f.reasons[0].contains("not translated by conntrack"));
}

/// Nothing that arrives at all is told as what it is.
#[test]
fn a_blocked_network_is_said() {
    let none = || Ok(client(&[(ProbeEnd::TimedOut, 200)]));
    let rows = Path::ALL
        .iter()
        .map(|p| path_row(*p, V4, vec![], &Ok(boom(V4, Diagnosis::Inconclusive)), &none()));
    assert!(family_row(V4, rows.collect(), &[]).reasons[0].contains("NetworkPolicy"));
}

fn node(name: &str, diagnosis: Diagnosis) -> NodeRow {
    let family = family_row(V4, all(diagnosis), &[]);
    NodeRow {
        name: name.to_owned(),
        kernel: "6.1".to_owned(),
        os_image: "Debian 12".to_owned(),
        kubelet: "v1.36.2".to_owned(),
        verdict: Verdict::worst([family.verdict]),
        families: vec![family],
        ..NodeRow::default()
    }
}

/// Nodes with one outcome are one group, the exposed first, each name in one group.
#[test]
fn groups_put_the_exposed_first() {
    let nodes: Vec<_> = (0..97)
        .map(|n| node(&format!("good-{n}"), Diagnosis::Dropped))
        .chain((0..3).map(|n| node(&format!("bad-{n}"), Diagnosis::Unprotected)))
        .collect();
    let all = groups(&nodes);
    assert_eq!(all.iter().map(|g| g.names.len()).collect::<Vec<_>>(), [3, 97]);
    assert_eq!(all[0].names, ["bad-0", "bad-1", "bad-2"]);
}

/// A node that shows another mode is another group.
#[test]
fn what_a_node_shows_divides_groups() {
    let mut other = node("b", Diagnosis::Dropped);
    other.shown.proxy_mode = Some("nftables".to_owned());
    assert_eq!(groups(&[node("a", Diagnosis::Dropped), other]).len(), 2);
}
