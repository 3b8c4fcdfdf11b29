use std::collections::BTreeMap;

use crate::document::lab::{ProxyMode, Seen};
use canary_record::names::{EndedBy, Forgery};
use canary_record::result::Clock;
use canary_wire::segment::Family;

use super::super::cell::tests::Made;
use super::*;
use crate::observed::cell::Shown;
use crate::scenario;

fn run(ended_by: EndedBy) -> Run {
    Clock::start().run("conntrack-lab run", "0", ended_by, BTreeMap::new())
}

fn ledger(scenarios: &[&str], repeat: u32) -> Ledger {
    let entry = |name: &&str| Entry {
        scenario: match *name {
            scenario::POSITIVE_CONTROL => scenario::positive_control().unwrap(),
            name => scenario::named(name).unwrap(),
        },
        skipped: (*name == "same-node-bridge").then(|| "no br_netfilter".to_owned()),
        commands: CommandList { title: String::new(), lines: Vec::new() },
    };
    let entries = scenarios.iter().map(entry).collect();
    Ledger::new(entries, repeat, Environment::default(), run(EndedBy::Error))
}

fn done(scenario: usize, plan: usize, made: &Made) -> Done {
    let key = Key {
        scenario,
        repetition: 1,
        proxy_mode: ProxyMode::Nftables,
        family: Family::Ipv4,
        plan,
    };
    let shown = Shown {
        captures: Vec::new(),
        boom: made.boom.clone(),
        load: made.load.clone(),
        nodes: made.nodes.clone(),
        resets: None,
        witnesses: Vec::new(),
        notes: Vec::new(),
        seconds: 0.0,
    };
    Done { key, id: format!("{scenario}/{plan}"), shown: Ok(shown) }
}

/// A cell whose expectation needs the kernel's generation waits for the cell that shows it; one
/// that does not is judged at once. Each is judged once, and stands in the scenario's order.
#[test]
fn cells_wait_for_the_kernels_generation() {
    use crate::document::lab::Profile::{Dropped, LiberalOnly, Unprotected};
    let mut ledger = ledger(&["cluster-ip"], 1);
    let liberal = Made::row(LiberalOnly, &["liberal"]);
    assert_eq!(ledger.cell(done(0, 5, &liberal)).len(), 1);
    let mut hidden = Made::row(Dropped, &["forward-drop"]);
    // Of a cell that lost its evidence nothing is learnt.
    hidden.boom.outcomes.retain(|o| o.forgery != Forgery::AboveWindow);
    assert!(ledger.cell(done(0, 1, &hidden)).is_empty());
    let judged = ledger.cell(done(0, 0, &Made::row(Unprotected, &[])));
    let ids: Vec<_> = judged.iter().map(|c| c.id.as_str()).collect();
    assert_eq!(ids, ["0/1", "0/0"]);
    let below = judged[1].forgeries.iter().find(|f| f.forgery == Forgery::BelowWindow).unwrap();
    assert_eq!((below.expected, below.seen), (Some(Seen::Delivered), Seen::Delivered));
    let result = ledger.result(run(EndedBy::Completed));
    assert_eq!(result.environment.old_segments, Some(OldSegments::Ignored));
    let ids: Vec<_> = result.scenarios[0].cells.iter().map(|c| c.id.as_str()).collect();
    assert_eq!(ids, ["0/0", "0/1", "0/5"]);
    assert!(ledger.close().is_empty());
}

/// Where no cell shows the generation, what waited is judged at the end, and is not lost.
#[test]
fn what_waits_is_not_lost() {
    let mut ledger = ledger(&["cluster-ip"], 1);
    let mut made = Made::row(crate::document::lab::Profile::Dropped, &["forward-drop"]);
    made.boom.outcomes.retain(|o| o.forgery != Forgery::AboveWindow);
    assert!(ledger.cell(done(0, 1, &made)).is_empty());
    assert_eq!(ledger.close().len(), 1);
    assert_eq!(ledger.result(run(EndedBy::Completed)).scenarios[0].cells.len(), 1);
}

/// An account that is cut says what was not run; at the end nothing of that is left.
#[test]
fn a_cut_account_claims_nothing() {
    let mut ledger = ledger(&["positive-control", "entry-deleted"], 2);
    let cut = ledger.result(run(EndedBy::Error)).clone();
    assert_eq!((cut.run.ended_by, cut.judgement), (EndedBy::Error, Judgement::Inconclusive));
    let reasons: Vec<_> = cut.scenarios.iter().map(|s| s.reasons.as_slice()).collect();
    assert_eq!(reasons, [["2 cells were not run"], ["not run"], ["not run"]]);
    assert!(cut.reasons.iter().any(|r| r == "entry-deleted: not run"), "{:?}", cut.reasons);
    for repetition in [2, 1] {
        let why = || Err("broken".to_owned());
        ledger.cause(1, repetition, &(0..9).map(|_| why()).collect::<Vec<_>>(), &[]);
    }
    let whole = ledger.result(run(EndedBy::Completed));
    assert_eq!(whole.scenarios.len(), 3);
    assert!(whole.scenarios[1..].iter().all(|s| s.reasons[0].ends_with(": broken")));
}

/// Where nothing but the added control ran, nothing was shown.
#[test]
fn a_skipped_scenario_beside_the_added_control_is_skipped() {
    let judged = |names: &[&str]| {
        let mut ledger = ledger(names, 1);
        let mut all = ledger.result(run(EndedBy::Completed)).scenarios.clone();
        for s in &mut all {
            if s.judgement != Judgement::Skipped {
                (s.judgement, s.reasons) = (Judgement::AsExpected, Vec::new());
            }
        }
        let control = crate::document::lab::PositiveControl { held: true, forged: 1, killed: 1 };
        conclude(&all, &control).0
    };
    assert_eq!(judged(&["positive-control", "same-node-bridge"]), Judgement::Skipped);
    let beside = ["positive-control", "same-node-bridge", "hairpin"];
    assert_eq!(judged(&beside), Judgement::AsExpected);
}
