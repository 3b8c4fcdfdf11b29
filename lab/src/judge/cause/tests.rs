use std::collections::BTreeMap;

use canary_record::names::Verdict;
use canary_record::result::Clock;
use canary_record::result::boom::{BoomResult, OutcomeCount, PathDiagnosis};

use super::*;
use crate::observed::cause::After;
use crate::scenario::cause::Expect;
use crate::scenario::{Body, parse};

fn boom(n: u64) -> BoomResult {
    use canary_record::names::{ClientClass, EndedBy, OldSegments};
    use canary_wire::segment::Family;
    let path = PathDiagnosis {
        class: ClientClass::Pod,
        family: Family::Ipv4,
        diagnosis: Diagnosis::Delivered,
        verdict: Verdict::Protected,
        old_segments: OldSegments::NotShown,
        reasons: Vec::new(),
        judged: n,
        leaked: 0,
        leak_rate_upper_95: 0.1,
    };
    let outcome = OutcomeCount {
        forgery: Forgery::AboveWindow,
        family: Family::Ipv4,
        class: ClientClass::Pod,
        forged: n,
        counts: Counts { delivered: n, ..Counts::default() },
    };
    BoomResult {
        schema_version: 1,
        run: Clock::start().run("boom-server", "0", EndedBy::Completed, BTreeMap::new()),
        verdict: Verdict::Protected,
        reasons: Vec::new(),
        paths: vec![path],
        direction: canary_record::names::Direction::ServerToClient,
        handshakes: canary_record::result::boom::Handshakes::default(),
        connections: canary_record::result::boom::Connections::default(),
        outcomes: vec![outcome],
        resets: canary_record::result::boom::Resets::default(),
        sniffer: canary_record::result::boom::Sniffer::default(),
        handshake_to_forge: canary_record::hist::LatencySummary::default(),
    }
}

pub(in crate::judge) fn seen() -> Shown {
    Shown {
        t: 0.0,
        failures: BTreeMap::new(),
        errors: BTreeMap::new(),
        rules: Vec::new(),
        changes: Vec::new(),
        doubts: Vec::new(),
        conntrack: canary_record::result::observe::ConntrackCounters::default(),
        connections: 5,
        patience: std::time::Duration::from_millis(2500),
        own_unknown: BTreeMap::new(),
        client: [(ProbeEnd::Hung, 5)].into(),
        boom: {
            let mut b = boom(5);
            b.connections.reset_seen_by_application = 5;
            b.connections.forged = 5;
            b.resets.unattributed = 5;
            vec![b]
        },
        steps: [ProbeEnd::Survived, ProbeEnd::Survived, ProbeEnd::Survived, ProbeEnd::Hung]
            .map(|end| After { client: [(end, 5)].into(), gone: 7, ..After::default() })
            .into(),
        witnesses: Vec::new(),
    }
}

pub(in crate::judge) fn case() -> Case {
    let text = r#"
        kind = "cause"
        name = "x"
        title = ""
        why = ""
        source = ""
        [[case]]
        title = ""
        steps = ["connect", { expect = "survived" }, "delete-entries", { transfer = "down" }]
        expect = { client = "hung", server-reset = true, forged = { above-window = "delivered" } }
    "#;
    let Body::Cause(cause) = parse("x", text).unwrap().body else { panic!("its kind") };
    cause.cases[0].clone()
}

/// What is as expected is called so.
#[test]
fn as_expected() {
    assert_eq!(judge(&case(), &seen()), (Judgement::AsExpected, Vec::new()));
}

/// A connection that is reset before the server's application has it is reset as well.
#[test]
fn a_reset_before_accept_is_one() {
    let mut s = seen();
    let connections = &mut s.boom[0].connections;
    (connections.reset_seen_by_application, connections.reset_before_accept) = (4, 1);
    assert_eq!(judge(&case(), &s), (Judgement::AsExpected, Vec::new()));
    s.boom[0].connections.reset_before_accept = 2;
    assert_eq!(judge(&case(), &s).0, Judgement::Differs);
}

/// Each part of an expectation can fail alone.
#[test]
fn every_part_can_fail() {
    let changes: [fn(&mut Shown); 6] = [
        |s| s.boom[0].resets.attributed = 1,
        |s| s.boom[0].paths[0].diagnosis = Diagnosis::Unprotected,
        |s| s.client = [(ProbeEnd::Hung, 4), (ProbeEnd::Survived, 1)].into(),
        |s| s.boom[0].connections.reset_seen_by_application = 4,
        |s| s.steps[2].gone = 0,
        |s| s.steps[1].client = [(ProbeEnd::Survived, 4), (ProbeEnd::Hung, 1)].into(),
    ];
    for (n, change) in changes.iter().enumerate() {
        let mut s = seen();
        change(&mut s);
        let (judgement, why) = judge(&case(), &s);
        assert_eq!(judgement, Judgement::Differs, "{n}");
        assert_eq!(why.len(), 1, "{why:?}");
    }
}

/// Of connections that were refused nothing is expected: no entry to delete, no reset at the server.
#[test]
fn only_connections_that_came_to_be_are_counted() {
    let mut case = case();
    case.expect.client = Some(Ends([ProbeEnd::Hung, ProbeEnd::Refused].into()));
    case.steps[1] = Done::Idle(crate::scenario::cause::Wait(std::time::Duration::ZERO));
    let mut s = seen();
    (s.connections, s.steps[2].gone) = (8, 5);
    for client in s.steps.iter_mut().map(|s| &mut s.client).chain([&mut s.client]) {
        client.insert(ProbeEnd::Refused, 3);
    }
    assert_eq!(judge(&case, &s), (Judgement::AsExpected, Vec::new()));
    s.steps[2].gone = 4;
    let few = "entries gone by delete-entries at step 3: 4 for 5 connections".to_owned();
    assert_eq!(judge(&case, &s), (Judgement::Differs, vec![few]));
    // Before there are any, nothing need be there.
    case.steps.swap(0, 2);
    s.steps[2].gone = 0;
    s.steps.swap(0, 2);
    assert_eq!(judge(&case, &s), (Judgement::AsExpected, Vec::new()));
}

/// Each step after which entries are gone needs those of the connections that live, expired or deleted; one
/// behind another only where connections have used theirs between.
#[test]
fn of_nothing_nothing_expires() {
    use crate::scenario::cause::Way;
    let of = |steps: &[(Done, u64, u64)]| {
        let after = |(_, survived, gone): &(Done, u64, u64)| After {
            client: [(ProbeEnd::Survived, *survived), (ProbeEnd::Reset, 5 - survived)].into(),
            gone: *gone,
            ..After::default()
        };
        let case = Case { steps: steps.iter().map(|(step, ..)| step.clone()).collect(), ..case() };
        gone(&case, &Shown { steps: steps.iter().map(after).collect(), ..seen() })
    };
    let (connect, used) = ((Done::Connect, 5, 0), (Done::Transfer(Way::Up), 5, 0));
    let idle = |survived| {
        (Done::Idle(crate::scenario::cause::Wait(std::time::Duration::ZERO)), survived, 0)
    };
    let (expire, delete) = (|n| (Done::LetExpire, 5, n), |n| (Done::DeleteEntries, 5, n));
    let none: [&str; 0] = [];
    assert_eq!(of(&[connect.clone(), expire(5), delete(0), used.clone(), delete(6)]), none);
    assert_eq!(of(&[connect.clone(), idle(2), expire(2), idle(2), expire(0)]), none);
    assert_eq!(
        of(&[connect.clone(), expire(0), used.clone(), delete(4), expire(0)]),
        [
            "entries gone by let-expire at step 2: 0 for 5 connections",
            "entries gone by delete-entries at step 4: 4 for 5 connections",
        ]
    );
}

/// RSTs of connections that boom-server has forgotten, as those after a FIN, are told and are proof as
/// others are; what the server's application saw of them is another matter.
#[test]
fn resets_of_forgotten_connections_count() {
    let mut s = seen();
    let resets = &mut s.boom[0].resets;
    (resets.unattributed, resets.unknown_connection) = (2, 3);
    assert_eq!(judge(&case(), &s), (Judgement::AsExpected, Vec::new()));
    let told = step(&case(), &s, Judgement::AsExpected, &[]).notes.join("\n");
    assert!(told.contains("RSTs: 0 attributed, 5 others"), "{told}");
    s.boom[0].connections.reset_seen_by_application = 0;
    let unseen = "the server's application: expected 5 resets, saw 0 of the 5 other RSTs that came";
    assert_eq!(judge(&case(), &s), (Judgement::Differs, vec![unseen.to_owned()]));
    s.boom[0].connections.reset_seen_by_application = 5;
    s.boom[0].resets.unknown_connection = 0;
    assert_eq!(judge(&case(), &s).0, Judgement::Inconclusive);
}

/// Where boom-server could not have been wrong, nothing is proved.
#[test]
fn without_forged_segments_nothing_is_proved() {
    let changes: [fn(&mut Shown); 5] = [
        |s| s.boom[0].outcomes[0].counts.delivered = 4,
        |s| s.boom[0].sniffer.dropped = 1,
        |s| s.boom[0].sniffer.failed = Some("ENETDOWN".to_owned()),
        |s| s.doubts = vec!["load-client forged on 3 of 5 connections".to_owned()],
        |s| s.boom[0].outcomes.clear(),
    ];
    for (n, change) in changes.iter().enumerate() {
        let mut s = seen();
        change(&mut s);
        assert_eq!(judge(&case(), &s).0, Judgement::Inconclusive, "{n}");
    }
}

/// Of what nothing is known the reasons are told, be it all or some.
#[test]
fn what_is_unknown_is_told_with_its_reasons() {
    let why = |delivered, unknown| {
        let mut s = seen();
        let counts = &mut s.boom[0].outcomes[0].counts;
        counts.delivered = delivered;
        counts.unknown = [(canary_record::names::UnknownReason::ClosedEarly, unknown)].into();
        judge(&case(), &s).1
    };
    assert_eq!(
        why(0, 5),
        [
            "above-window: expected delivered, and of none of 5 is known what became of it: closed-early 5"
        ]
    );
    assert_eq!(
        why(3, 2),
        [
            "above-window: expected delivered, saw delivered 3, unknown 2 of 5 (closed-early 2): what is \
          not the same of all proves nothing"
        ]
    );
}

/// After an overshoot that was delivered, resets of the server's own segments are what it did: of all
/// connections or it proves nothing, and boom-server may call that path unprotected.
#[test]
fn an_overshoot_kills_later() {
    let mut case = case();
    let judged = |case: &Case, later: u64| {
        let mut s = seen();
        let boom = &mut s.boom[0];
        (boom.outcomes[0].forgery, boom.outcomes[0].counts.killed_later) =
            (Forgery::Overshoot, later);
        boom.connections.reset_seen_by_application = later;
        (boom.resets.unattributed, boom.resets.poisoned) = (0, later);
        if later > 0 {
            boom.paths[0].diagnosis = Diagnosis::Unprotected;
        }
        judge(case, &s)
    };
    case.expect.server_reset = false;
    case.expect.forged = [(Forgery::Overshoot, Seen::KillsLater)].into();
    assert_eq!(judged(&case, 5), (Judgement::AsExpected, Vec::new()));
    let (judgement, why) = judged(&case, 4);
    assert_eq!(judgement, Judgement::Inconclusive);
    assert!(why[0].contains("saw delivered 5, of these killed later 4 of 5"), "{why:?}");
    assert_eq!(judged(&case, 0).0, Judgement::Differs);
    case.expect.forged = [(Forgery::Overshoot, Seen::Delivered)].into();
    assert_eq!(judged(&case, 0).0, Judgement::AsExpected);
    let (judgement, why) = judged(&case, 5);
    assert_eq!(judgement, Judgement::Differs);
    assert!(why[0].ends_with("expected delivered, saw kills-later"), "{why:?}");
}

/// That connections time out shows a full table only where it refused something.
#[test]
fn a_table_that_refused_nothing_proves_nothing() {
    let mut case = case();
    case.steps.insert(1, Done::FillTable);
    let mut s = seen();
    s.client = [(ProbeEnd::TimedOut, 5)].into();
    let silent = "connections timed out, and the full table refused nothing";
    assert!(judge(&case, &s).1.iter().any(|why| why == silent));
    s.conntrack.drop = 1;
    assert!(judge(&case, &s).1.iter().all(|why| why != silent));
}

/// A segment that could not be sent is unknown and was not forged: of those that were, nothing is
/// missing.
#[test]
fn what_could_not_be_sent_was_not_forged() {
    let mut case = case();
    case.steps[2] = Done::Forge([(Forgery::AboveWindow, Seen::Delivered)].into());
    let judged = |sent: u64, unknown: u64| {
        let mut s = seen();
        s.steps[2].forged = s.boom[0].outcomes.clone();
        let boom = &mut s.boom[0];
        boom.connections.forged = sent + unknown;
        boom.outcomes[0].forged = sent;
        boom.outcomes[0].counts.delivered = sent;
        boom.outcomes[0].counts.unknown =
            [(canary_record::names::UnknownReason::SendFailed, unknown)].into();
        judge(&case, &s)
    };
    assert_eq!(judged(4, 1), (Judgement::AsExpected, Vec::new()));
    let (judgement, why) = judged(0, 5);
    assert_eq!(judgement, Judgement::Inconclusive);
    assert!(why[0].contains("forged none"), "{why:?}");
}

/// Beside load-client's forgeries boom-server may know nothing of load-client's connections; of those of
/// the case it must.
#[test]
fn only_others_connections_may_be_unknown() {
    let mut case = case();
    case.steps[2] = Done::Forge([(Forgery::AboveWindow, Seen::Delivered)].into());
    let judged = |own: u64| {
        let mut s = seen();
        s.steps[2].forged = s.boom[0].outcomes.clone();
        let boom = &mut s.boom[0];
        boom.outcomes[0].forged = 7;
        boom.outcomes[0].counts.unknown =
            [(canary_record::names::UnknownReason::ClosedEarly, 2)].into();
        s.own_unknown = [(Forgery::AboveWindow, own)].into();
        judge(&case, &s).0
    };
    assert_eq!(judged(0), Judgement::AsExpected);
    assert_eq!(judged(1), Judgement::Inconclusive);
}

/// Where no connection came to be, the client's expectation is contradicted by that alone; where it is
/// what was expected, segments that should have been delivered on them were not. A limit of this host
/// contradicts nothing.
#[test]
fn connections_that_never_were_are_a_difference() {
    let judged = |case: &Case, end| {
        let mut s = seen();
        s.boom[0].outcomes.clear();
        s.boom[0].connections.forged = 0;
        s.boom[0].connections.reset_seen_by_application = 0;
        s.client = [(end, 5)].into();
        for step in &mut s.steps {
            step.client.clone_from(&s.client);
        }
        judge(case, &s)
    };
    let mut case = case();
    (case.steps[1], case.expect.server_reset) =
        (Done::Idle(crate::scenario::cause::Wait(std::time::Duration::ZERO)), false);
    case.steps[2] = case.steps[1].clone();
    let refused = "the client's connections: expected hung 5, saw refused 5".to_owned();
    assert_eq!(judged(&case, ProbeEnd::Refused), (Judgement::Differs, vec![refused]));
    assert_eq!(judged(&case, ProbeEnd::LocalLimit).0, Judgement::Inconclusive);
    case.expect.client = Some(Ends([ProbeEnd::Refused].into()));
    let (judgement, why) = judged(&case, ProbeEnd::Refused);
    assert_eq!((judgement, why.len()), (Judgement::Differs, 1), "{why:?}");
    assert!(why[0].starts_with("above-window: expected delivered: no connection"), "{why:?}");
    case.expect.forged = [(Forgery::AboveWindow, Seen::NoConnection)].into();
    assert_eq!(judged(&case, ProbeEnd::Refused), (Judgement::AsExpected, Vec::new()));
}

/// What is printed of a case: what it ran with, what hung and for how long, the errno of what failed,
/// what own rules counted, and what the witness could not say.
#[test]
fn a_case_says_what_it_is_made_of() {
    let mut s = seen();
    s.errors = [("EPERM at connect".to_owned(), 2)].into();
    s.rules = vec!["Own rules on node2: 'drop' in ip filter FORWARD: 20 packets.".to_owned()];
    let mut w = witness::tests::silent();
    w.unread_rules = vec!["inet fw forward".to_owned()];
    w.unanswered = [(canary_record::result::witness::Reason::SeqOver, 5)].into();
    s.witnesses = vec![("node1".to_owned(), w)];
    s.boom[0].paths[0].diagnosis = Diagnosis::Inconclusive;
    s.boom[0].paths[0].reasons = vec!["too few".to_owned()];
    s.boom[0].connections.accepted = 5;
    let told = step(&case(), &s, Judgement::AsExpected, &[]);
    let setting = "cluster-ip, ipv4, nftables, protections: liberal";
    assert_eq!(told.case.unwrap().setting, setting);
    let notes = told.notes.join("\n");
    for says in [
        "hung 5 (nothing for 2.5 s)",
        "Errors: EPERM at connect 2.",
        "'drop' in ip filter FORWARD: 20 packets",
        "on node1: INVALID segments that no reset answered: seq-over-window 5; rules that could not be read: inet fw forward.",
        "Its diagnosis: inconclusive (too few).",
        "forged on 5 of 5 accepted connections; RSTs: 0 attributed, 5 others",
    ] {
        assert!(notes.contains(says), "{says}: {notes}");
    }
}

/// A witness that names something else is a difference, one that lost something a doubt; one whose kernel
/// does not log the answers is no judge, and is told.
#[test]
fn the_witness_is_a_judge_where_it_can_hear() {
    use canary_record::result::witness::{Cause, CauseCount, Direction, Reason, WitnessResult};
    let silent = Case { expect: Expect { witness: Some([].into()), ..case().expect }, ..case() };
    let of = |change: fn(&mut WitnessResult)| {
        let mut w = witness::tests::silent();
        change(&mut w);
        let (judgement, why) =
            judge(&silent, &Shown { witnesses: vec![("node1".to_owned(), w)], ..seen() });
        (judgement, why.len())
    };
    assert_eq!(of(|_| {}), (Judgement::AsExpected, 0));
    let named = |w: &mut WitnessResult| {
        let (cause, direction) = (Cause::AnsweredByClient, Direction::ServerToClient);
        w.connections = vec![CauseCount { cause, direction, count: 1 }];
    };
    assert_eq!(of(named), (Judgement::Differs, 1));
    assert_eq!(of(|w| w.messages.lost = 1), (Judgement::Inconclusive, 1));
    assert_eq!(of(|w| w.unheard = vec!["made deaf".to_owned()]), (Judgement::Inconclusive, 1));
    let deaf = |w: &mut WitnessResult| {
        w.resets_logged = false;
        w.unanswered = [(Reason::SeqOver, 5)].into();
    };
    assert_eq!(of(deaf), (Judgement::AsExpected, 1));
    // What it did hear was said.
    assert_eq!(
        of(|w| {
            w.resets_logged = false;
            w.unanswered = [(Reason::SeqOver, 5)].into();
            let (cause, direction) = (Cause::AnsweredByClient, Direction::ServerToClient);
            w.connections = vec![CauseCount { cause, direction, count: 1 }];
        })
        .0,
        Judgement::Differs
    );
}

/// A witness that names more connections as ended than the client lost and RSTs can have ended contradicts
/// them, though it names what was expected; what comes after a FIN, or to an end that is gone, may be any's.
#[test]
fn a_witness_that_names_the_living_is_doubted() {
    use canary_record::result::witness::{Cause, CauseCount, Direction, Ended};
    let by = Cause::AnsweredByClient;
    let mut case = case();
    (case.expect.witness, case.expect.server_reset) = (Some([by].into()), false);
    let judged = |case: &Case, named: u64, survived: u64, rsts: u64, flags: &str| {
        let mut w = witness::tests::silent();
        w.connections =
            vec![CauseCount { cause: by, direction: Direction::ServerToClient, count: named }];
        let one = Ended { flags: flags.to_owned(), ..witness::tests::ended(1, "") };
        w.examples = vec![one; usize::try_from(named).unwrap()];
        let mut s = Shown { witnesses: vec![("node1".to_owned(), w)], ..seen() };
        s.client = [(ProbeEnd::Hung, 5 - survived), (ProbeEnd::Survived, survived)].into();
        s.boom[0].resets.unattributed = rsts;
        judge(case, &s).1.into_iter().filter(|why| why.contains("as ended")).collect::<Vec<_>>()
    };
    assert_eq!(
        judged(&case, 3, 5, 2, "PSH ACK"),
        [
            "the kernel's words on node1 name 3 connections as ended: the client's ends and the RSTs that \
             came to the server show 2 at most"
        ]
    );
    let none = Vec::<String>::new();
    for (named, survived, rsts, flags) in
        [(2, 5, 2, "ACK"), (5, 0, 0, "ACK"), (3, 4, 2, "ACK"), (5, 5, 0, "FIN ACK")]
    {
        assert_eq!(judged(&case, named, survived, rsts, flags), none);
    }
    case.steps.push(Done::Close);
    assert_eq!(judged(&case, 5, 5, 0, "ACK").len(), 1);
    case.steps.push(Done::Vanish);
    assert_eq!(judged(&case, 5, 5, 0, "ACK"), none);
}
