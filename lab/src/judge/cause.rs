//! The judgement of another cause: whether it led to what it should lead to, and boom-server
//! did not take it for issue #74839.

use crate::document::lab::{Judgement, ScenarioResult};
use crate::document::timeline::{Step, Timeline};
use canary_record::names::{Diagnosis, Forgery, ProbeEnd};

use crate::observed::cause::Seen;
use crate::observed::{listed, outcomes};
use crate::scenario::cause::{Case, Cause, Expect, Pattern};

/// Judges what every case showed, or why it could not be run, into `result`.
pub fn result(cause: &Cause, cases: &[Result<Seen, String>], result: &mut ScenarioResult) {
    let mut timeline = Timeline::default();
    result.judgement = Judgement::AsExpected;
    result.reasons = Vec::new();
    for (case, seen) in cause.cases.iter().zip(cases) {
        let (here, why) = match seen {
            Ok(seen) => {
                let (here, why) = judge(case.expect, seen);
                timeline.steps.push(step(case, seen, here, &why));
                (here, why)
            }
            Err(why) => (Judgement::Inconclusive, vec![why.clone()]),
        };
        result.judgement = result.judgement.worse(here);
        result.reasons.extend(why.iter().map(|r| format!("{}: {r}", case.title)));
    }
    result.timeline = Some(timeline);
}

fn step(case: &Case, seen: &Seen, judgement: Judgement, why: &[String]) -> Step {
    let resets = &seen.boom.resets;
    let mut notes = vec![
        format!(
            "{judgement}: the server's application saw {} resets.",
            seen.boom.connections.reset_seen_by_application
        ),
        format!(
            "boom-server forged on {} of {} connections and attributed {} RSTs to that; {} were others.",
            seen.boom.connections.forged, seen.connections, resets.attributed, resets.unattributed
        ),
    ];
    for p in &seen.boom.paths {
        notes.push(format!("Its diagnosis: {}.", p.diagnosis));
    }
    if case.pattern == Pattern::CloseUnread {
        notes.push("The client itself closed each connection, its answer unread.".to_owned());
    }
    notes.extend(why.iter().map(|w| format!("{w}.")));
    Step {
        t: seen.t,
        title: case.title.clone(),
        changes: seen.changes.clone(),
        new_attempts: seen.connections,
        new_ok: seen.client.get(&ProbeEnd::Survived).copied().unwrap_or(0),
        new_failures: seen.failures.clone(),
        established: seen.client.clone(),
        boom: outcomes(&seen.boom),
        conntrack: seen.conntrack,
        notes,
    }
}

/// Compares a case with its expectation. boom-server's word comes first: it
/// forged on every one of these connections, so that it could have been wrong.
fn judge(expect: Expect, seen: &Seen) -> (Judgement, Vec<String>) {
    let (mut differs, mut doubts) = (Vec::new(), Vec::new());
    let n = seen.connections;
    let boom = &seen.boom;
    if boom.resets.attributed > 0 {
        differs.push(format!(
            "boom-server took {} of these resets for #74839",
            boom.resets.attributed
        ));
    }
    if boom.paths.iter().any(|p| matches!(p.diagnosis, Diagnosis::Unprotected | Diagnosis::Partly))
    {
        differs.push("boom-server calls this path unprotected".to_owned());
    }
    let control: u64 = boom
        .outcomes
        .iter()
        .filter(|o| matches!(o.forgery, Forgery::Control | Forgery::AboveWindow))
        .map(|o| o.counts.delivered)
        .sum();
    if control < n {
        doubts.push(format!(
            "boom-server saw {control} of {n} forged segments delivered, so it could hardly have been wrong"
        ));
    }
    if boom.sniffer.dropped > 0 {
        doubts.push(format!("boom-server's raw sockets lost {} segments", boom.sniffer.dropped));
    }
    for (end, count) in &seen.client {
        let proves_nothing =
            matches!(end, ProbeEnd::Refused | ProbeEnd::TimedOut | ProbeEnd::LocalLimit);
        if *count > 0 && proves_nothing && expect.client != Some(*end) {
            doubts.push(format!("{count} of {n} connections never came to be: {end}"));
        }
    }
    if let Some(end) = expect.client {
        let so = seen.client.get(&end).copied().unwrap_or(0);
        if so != n {
            differs.push(format!(
                "the client's connections: expected {end} {n}, saw {}",
                listed(&seen.client)
            ));
        }
    }
    let resets = boom.connections.reset_seen_by_application;
    let wanted = if expect.server_reset { n } else { 0 };
    if resets != wanted {
        differs.push(format!("the server's application: expected {wanted} resets, saw {resets}"));
    }
    // An RST that ends a connection is on the wire too.
    if expect.server_reset && boom.resets.unattributed < n && differs.is_empty() {
        doubts.push(format!(
            "boom-server's raw socket saw {} other RSTs where {n} connections were reset",
            boom.resets.unattributed
        ));
    }
    if expect.entries_deleted != (seen.deleted >= n) {
        differs.push(format!("entries deleted: {} for {n} connections", seen.deleted));
    }
    let judgement = if !doubts.is_empty() {
        Judgement::Inconclusive
    } else if differs.is_empty() {
        Judgement::AsExpected
    } else {
        Judgement::Differs
    };
    differs.extend(doubts);
    (judgement, differs)
}

#[cfg(test)]
mod tests;
