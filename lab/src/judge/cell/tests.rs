//! The judgement on evidence that is made up: whole, contradictory, lacking.

use std::collections::BTreeMap;

use crate::document::lab::{Judgement, NodeEvidence, Profile, Protections, Seen};
use canary_record::names::{EndedBy, Forgery, OldSegments, ProbeEnd, UnknownReason, Verdict};
use canary_record::outcome::Counts;
use canary_record::result::boom::{BoomResult, Connections, OutcomeCount, Resets, Sniffer};
use canary_record::result::load::ForgeRecord;
use canary_record::result::{Clock, SCHEMA_VERSION};
use canary_wire::segment::Family;

use super::*;

const FORGERIES: [Forgery; 6] = [
    Forgery::Control,
    Forgery::BelowWindow,
    Forgery::AboveWindow,
    Forgery::AckAhead,
    Forgery::NoFlags,
    Forgery::SynFin,
];
const N: u64 = 50;

/// The evidence of one cell, whole and in agreement.
pub(crate) struct Made {
    pub(crate) boom: BoomResult,
    pub(crate) load: LoadResult,
    pub(crate) nodes: Vec<NodeEvidence>,
    captured: Option<BTreeMap<Forgery, u64>>,
    protections: Protections,
    matrix: Matrix,
}

impl Made {
    pub(crate) fn row(profile: Profile, protections: &[&str]) -> Self {
        let seen = |f| row(profile, f, Some(OldSegments::Ignored)).unwrap();
        let outcomes: Vec<_> = FORGERIES.map(|f| outcome(f, seen(f))).into();
        let killed: u64 = outcomes.iter().map(|o| o.counts.killed).sum();
        let dropped: u64 = outcomes.iter().map(|o| o.counts.dropped).sum();
        let all = N * FORGERIES.len() as u64;
        let captured = outcomes.iter().map(|o| (o.forgery, o.counts.leaked)).collect();
        let run = Clock::start().run("test", "0", EndedBy::Connections, BTreeMap::new());
        let load = serde_json::json!({
            "schema_version": SCHEMA_VERSION, "run": run, "verdict": "within-thresholds", "reasons": [],
            "attempts": all, "begun_s": 1.0, "ok": all - killed, "failures": [],
            "probe": {"survived": all - killed, "reset": killed},
            "connect_latency": canary_record::hist::LatencySummary::default(),
            "total_latency": canary_record::hist::LatencySummary::default(),
        });
        Self {
            boom: BoomResult {
                schema_version: SCHEMA_VERSION,
                run,
                verdict: Verdict::Protected,
                reasons: Vec::new(),
                paths: Vec::new(),
                direction: Direction::ServerToClient,
                handshakes: canary_record::result::boom::Handshakes::default(),
                connections: Connections {
                    accepted: all,
                    handshakes: all,
                    forged: all,
                    ..Connections::default()
                },
                outcomes,
                resets: Resets::default(),
                sniffer: Sniffer::default(),
                handshake_to_forge: canary_record::hist::LatencySummary::default(),
            },
            load: serde_json::from_value(load).unwrap(),
            nodes: vec![NodeEvidence {
                node: "node1".into(),
                dnat: all,
                drop_rules: [("ip/filter/KUBE-FORWARD".to_owned(), dropped)].into(),
                ..NodeEvidence::default()
            }],
            captured: Some(captured),
            protections: protections.iter().map(|p| p.parse().unwrap()).collect(),
            matrix: Matrix {
                path: Path::ClusterIp,
                direction: Direction::ServerToClient,
                families: vec![Family::Ipv4],
                proxy_modes: vec![ProxyMode::Nftables],
                connections: N as u32,
                forgeries: FORGERIES.into(),
                cells: Vec::new(),
            },
        }
    }

    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            matrix: &self.matrix,
            key: Key {
                scenario: 0,
                repetition: 1,
                proxy_mode: ProxyMode::Nftables,
                family: Family::Ipv4,
                plan: 0,
            },
            protections: &self.protections,
            boom: &self.boom,
            load: &self.load,
            nodes: &self.nodes,
            captured: self.captured.as_ref(),
            witnesses: &[],
        }
    }

    fn judge(&self, expect: Profile) -> Judged {
        judge(&self.evidence(), &Expectation::Profile(expect), None)
    }

    fn outcome(&mut self, forgery: Forgery) -> &mut OutcomeCount {
        self.boom.outcomes.iter_mut().find(|o| o.forgery == forgery).unwrap()
    }
}

fn outcome(forgery: Forgery, seen: Seen) -> OutcomeCount {
    let n = |yes: bool| if yes { N } else { 0 };
    OutcomeCount {
        forgery,
        family: Family::Ipv4,
        class: canary_record::names::ClientClass::Unclassified,
        forged: N,
        counts: Counts {
            leaked: n(matches!(seen, Seen::Leaked | Seen::Kills)),
            killed: n(seen == Seen::Kills),
            delivered: n(seen == Seen::Delivered),
            dropped: n(seen == Seen::Dropped),
            ..Counts::default()
        },
    }
}

/// Every row of the table, seen as it is, meets its own expectation and is named.
#[test]
fn every_row_meets_itself() {
    for (profile, protections) in [
        (Profile::Unprotected, vec![]),
        (Profile::LiberalOnly, vec!["liberal"]),
        (Profile::Dropped, vec!["forward-drop"]),
        (Profile::LiberalAndDropped, vec!["liberal", "forward-drop"]),
    ] {
        let judged = Made::row(profile, &protections).judge(profile);
        assert_eq!(judged.judgement, Judgement::AsExpected, "{profile}: {:?}", judged.reasons);
        assert_eq!(judged.profile, Some(profile));
    }
}

/// No row passes for another: an expectation that is not met differs, with numbers.
#[test]
fn no_row_passes_for_another() {
    let rows = [
        Profile::Unprotected,
        Profile::LiberalOnly,
        Profile::Dropped,
        Profile::LiberalAndDropped,
        Profile::NotTranslated,
    ];
    for seen in rows {
        for expected in rows.into_iter().filter(|e| *e != seen) {
            let judged = Made::row(seen, &["forward-drop"]).judge(expected);
            assert_eq!(judged.judgement, Judgement::Differs, "{seen} for {expected}");
            assert!(judged.reasons[0].contains("expected"), "{:?}", judged.reasons);
        }
    }
}

/// What a client forged is judged by its own record, and nothing of the server's stands for it.
#[test]
fn uploads_are_judged_by_the_clients_record() {
    let mut made = Made::row(Profile::Unprotected, &["forward-drop"]);
    made.load.forge = Some(ForgeRecord {
        direction: Direction::ClientToServer,
        untried: None,
        verdict: Verdict::Vulnerable,
        reasons: Vec::new(),
        doubts: Vec::new(),
        min_forged: 20,
        paths: Vec::new(),
        outcomes: std::mem::take(&mut made.boom.outcomes),
        resets: Resets::default(),
        sniffer: Sniffer::default(),
        unjudged: 0,
    });
    let judged = |made: &Made| {
        let (direction, path) = (Direction::ClientToServer, Path::NodePortLocal);
        let matrix = Matrix { path, direction, ..made.matrix.clone() };
        let evidence = Evidence { matrix: &matrix, ..made.evidence() };
        judge(&evidence, &Expectation::Profile(Profile::Unprotected), None)
    };
    let good = judged(&made);
    assert_eq!(good.judgement, Judgement::AsExpected, "{:?}", good.reasons);
    assert_eq!(made.judge(Profile::Unprotected).judgement, Judgement::Inconclusive);
    made.load.forge.as_mut().unwrap().sniffer.dropped = 1;
    let lost = judged(&made);
    assert_eq!(lost.judgement, Judgement::Inconclusive);
    assert_eq!(lost.reasons, ["load-client's raw socket lost 1 segments"]);
}

/// What was not judged proves nothing: where all that is known is as expected, the cell is
/// inconclusive, and it differs where one outcome contradicts, of this forgery or another.
#[test]
fn unknown_is_neither_as_expected_nor_a_difference() {
    let judged = |unknown: u64, change: fn(&mut Made)| {
        let mut made = Made::row(Profile::Dropped, &["forward-drop"]);
        let o = made.outcome(Forgery::SynFin);
        o.counts.dropped -= unknown;
        o.counts.unknown.insert(UnknownReason::NoProofOfLife, unknown);
        change(&mut made);
        let judged = made.judge(Profile::Dropped);
        let why = format!("no-proof-of-life {unknown}");
        assert!(judged.reasons.iter().any(|r| r.contains(&why)), "{:?}", judged.reasons);
        judged.judgement
    };
    assert_eq!(judged(1, |_| ()), Judgement::Inconclusive);
    assert_eq!(judged(N, |_| ()), Judgement::Inconclusive);
    let same = |m: &mut Made| {
        let counts = &mut m.outcome(Forgery::SynFin).counts;
        (counts.dropped, counts.delivered) = (N - 2, 1);
    };
    assert_eq!(judged(1, same), Judgement::Differs);
    let other =
        |m: &mut Made| *m.outcome(Forgery::AckAhead) = outcome(Forgery::AckAhead, Seen::Delivered);
    assert_eq!(judged(1, other), Judgement::Differs);
}

/// Connections that hang after an overshoot, and one whose segment was not judged.
#[test]
fn an_unknown_overshoot_is_no_difference() {
    let mut made = Made::row(Profile::Dropped, &["forward-drop"]);
    made.matrix.forgeries = vec![Forgery::Overshoot];
    let mut o = outcome(Forgery::Overshoot, Seen::Delivered);
    o.counts.delivered -= 1;
    o.counts.unknown.insert(UnknownReason::Busy, 1);
    made.boom.outcomes = vec![o];
    made.load.probe = [(ProbeEnd::Hung, N - 1), (ProbeEnd::Survived, 1)].into();
    let e = made.evidence();
    let r = ForgeryResult { expected: Some(Seen::Hangs), ..count(&e, Forgery::Overshoot) };
    assert!(known_agree(&e, &r), "{r:?}");
    made.load.probe = [(ProbeEnd::Survived, N)].into();
    assert!(!known_agree(&made.evidence(), &r));
}

/// Evidence that contradicts itself is inconclusive, whatever it seems to show.
#[test]
fn contradictions_are_inconclusive() {
    type Spoil = fn(&mut Made);
    let cases: [(&str, Spoil); 12] = [
        ("the application 1 reset", |m| {
            m.load.probe.insert(ProbeEnd::Reset, 1);
        }),
        ("hang", |m| {
            m.load.probe.insert(ProbeEnd::Hung, 3);
        }),
        ("raw socket lost", |m| m.boom.sniffer.dropped = 1),
        ("raw socket failed", |m| m.boom.sniffer.failed = Some("gone".into())),
        ("handshakes", |m| m.boom.connections.handshakes -= 1),
        ("forged, not 50", |m| m.outcome(Forgery::Control).forged -= 1),
        ("drop rules matched", |m| m.nodes[0].drop_rules.clear()),
        ("DNAT rule matched", |m| m.nodes[0].dnat -= 1),
        ("these clients were not there", |m| {
            let counts = &mut m.outcome(Forgery::Control).counts;
            (counts.delivered, counts.leaked) = (N - 1, 1);
        }),
        ("something else did", |m| {
            let counts = &mut m.outcome(Forgery::NoFlags).counts;
            (counts.dropped, counts.delivered) = (N - 1, 1);
        }),
        ("no forged segment provokes", |m| m.boom.resets.unattributed = 1),
        ("application saw 1 resets", |m| m.boom.connections.reset_seen_by_application = 1),
    ];
    for (says, spoil) in cases {
        let mut made = Made::row(Profile::Dropped, &["forward-drop"]);
        spoil(&mut made);
        let judged = made.judge(Profile::Dropped);
        assert_eq!(judged.judgement, Judgement::Inconclusive, "{says}");
        assert!(judged.reasons.iter().any(|r| r.contains(says)), "{says}: {:?}", judged.reasons);
    }
}

/// A reset connection's port may come again while its entry lives, and then no rule is asked; more
/// than there were resets cannot, and a rule that never matched translated nothing.
#[test]
fn a_port_that_comes_again_is_translated_by_its_entry() {
    let killed = |made: &Made| made.boom.outcomes.iter().map(|o| o.counts.killed).sum::<u64>();
    let judged = |missing: fn(u64, u64) -> u64| {
        let mut made = Made::row(Profile::Unprotected, &[]);
        let (all, killed) = (made.nodes[0].dnat, killed(&made));
        made.nodes[0].dnat = missing(all, killed);
        made.judge(Profile::Unprotected).judgement
    };
    assert_eq!(judged(|all, killed| all - killed), Judgement::AsExpected);
    assert_eq!(judged(|all, killed| all - killed - 1), Judgement::Inconclusive);
    assert_eq!(judged(|_, _| 0), Judgement::Inconclusive);
}

/// A connection that was reset before accept() could return it is no contradiction; one
/// that is missing for no reason is.
#[test]
fn a_reset_before_accept_is_accounted_for() {
    let mut made = Made::row(Profile::Unprotected, &[]);
    made.boom.connections.accepted -= 1;
    assert_eq!(made.judge(Profile::Unprotected).judgement, Judgement::Inconclusive);
    made.boom.connections.reset_before_accept = 1;
    assert_eq!(made.judge(Profile::Unprotected).judgement, Judgement::AsExpected);
}

/// A capture that shows fewer resets than boom-server counted spoils the cell.
#[test]
fn the_capture_has_a_say() {
    let mut made = Made::row(Profile::Unprotected, &[]);
    *made.captured.as_mut().unwrap().get_mut(&Forgery::AboveWindow).unwrap() -= 1;
    let judged = made.judge(Profile::Unprotected);
    assert_eq!(judged.judgement, Judgement::Inconclusive);
    assert!(judged.reasons[0].contains("the capture shows 49"), "{:?}", judged.reasons);
    made.captured = None;
    assert_eq!(made.judge(Profile::Unprotected).judgement, Judgement::AsExpected);
}

/// A kernel before 6.1 shows itself, and its rows are then as expected.
#[test]
fn an_older_kernel_shows_itself() {
    let mut made = Made::row(Profile::Unprotected, &[]);
    *made.outcome(Forgery::BelowWindow) = outcome(Forgery::BelowWindow, Seen::Kills);
    made.load.probe.insert(ProbeEnd::Reset, 3 * N);
    made.captured = None;
    let judged = made.judge(Profile::Unprotected);
    assert_eq!(generation(&judged.forgeries), Some(OldSegments::Invalid));
    assert_eq!(judged.judgement, Judgement::AsExpected, "{:?}", judged.reasons);
}

/// Where no cell showed the kernel's generation, what depends on it was not judged, and the cell is
/// not as expected; what another forgery contradicts is a difference all the same.
#[test]
fn an_unknown_generation_leaves_a_doubt() {
    let made = Made::row(Profile::Dropped, &["forward-drop"]);
    let expect = Expectation::Profile(Profile::Dropped);
    let forgeries: Vec<_> = FORGERIES.into_iter().filter(|f| *f != Forgery::AboveWindow).collect();
    let matrix = Matrix { forgeries, ..made.matrix.clone() };
    let mut nodes = made.nodes.clone();
    nodes[0].dnat -= N;
    let mut load = made.load.clone();
    load.probe.insert(ProbeEnd::Survived, N * 5);
    let evidence = Evidence { matrix: &matrix, nodes: &nodes, load: &load, ..made.evidence() };
    let judged = |expect: &Expectation, kernel| {
        let judged = judge(&evidence, expect, kernel);
        (judged.judgement, judged.reasons)
    };
    let known = judged(&expect, Some(OldSegments::Ignored));
    assert_eq!(known, (Judgement::AsExpected, Vec::new()));
    let (judgement, why) = judged(&expect, None);
    assert_eq!((judgement, why.len()), (Judgement::Inconclusive, 1), "{why:?}");
    assert!(why[0].contains("below-window") && why[0].contains("generation"), "{why:?}");
    let (judgement, why) = judged(&Expectation::Profile(Profile::Unprotected), None);
    assert_eq!(judgement, Judgement::Differs, "{why:?}");
}

/// Nothing forged because nothing connected is proof only of that, and only when
/// every connect timed out, and its SYNs reached the server.
#[test]
fn no_connection_is_proved_by_timeouts() {
    let mut made = Made::row(Profile::NoConnection, &[]);
    for o in &mut made.boom.outcomes {
        o.forged = 0;
    }
    made.boom.connections = Connections::default();
    made.load.probe = [(ProbeEnd::TimedOut, made.load.attempts)].into();
    assert_eq!(made.judge(Profile::NoConnection).judgement, Judgement::Inconclusive);
    made.boom.handshakes.syns = 1;
    let judged = made.judge(Profile::NoConnection);
    assert_eq!(judged.judgement, Judgement::AsExpected, "{:?}", judged.reasons);
    made.load.probe = [(ProbeEnd::Refused, made.load.attempts)].into();
    assert_eq!(made.judge(Profile::NoConnection).judgement, Judgement::Inconclusive);
}

/// What was not forged is not said to be harmless: under be_liberal alone bad flags leak.
#[test]
fn bad_flags_that_were_not_tried_are_no_comfort() {
    let made = Made::row(Profile::LiberalAndDropped, &["liberal"]);
    let expect = Expectation::Profile(Profile::LiberalAndDropped);
    let few = vec![Forgery::Control, Forgery::AboveWindow];
    let matrix = Matrix { forgeries: few, ..made.matrix.clone() };
    let evidence = Evidence { matrix: &matrix, ..made.evidence() };
    let forgeries: Vec<_> = judge(&evidence, &expect, None).forgeries;
    let profile = Some(Profile::LiberalAndDropped);
    assert!(meaning(profile, &evidence, &forgeries).contains("bad flags were not tried"));
    let tip = advice(profile, Path::ClusterIp, &made.protections, &forgeries);
    assert!(tip.contains("syn-fin"), "{tip}");
    let all: Vec<_> = judge(&made.evidence(), &expect, None).forgeries;
    assert!(meaning(profile, &evidence, &all).contains("nothing leaks"));
}

/// The bridge's sysctls are advised where there is a bridge, and for both families.
#[test]
fn the_bridge_is_blamed_on_its_own_path_alone() {
    let of = |path| advice(Some(Profile::NoConnection), path, &Protections::default(), &[]);
    assert!(of(Path::SameNodeBridgeNoNf).contains("bridge-nf-call-ip6tables"));
    assert_eq!(of(Path::ClusterIp), "");
}
