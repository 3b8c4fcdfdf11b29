//! The judgement of another cause: whether it led to what it should lead to, and boom-server
//! did not take it for issue #74839.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::document::lab::{Judgement, ScenarioResult, Seen};
use crate::document::timeline::{CaseSaid, Step, Timeline};
use canary_record::names::{Diagnosis, Forgery, ProbeEnd};
use canary_record::outcome::Counts;
use canary_record::result::witness::WitnessResult;

use super::cell::seen_of;
use super::witness;
use crate::observed::cause::{Seen as Shown, forged as outcome};
use crate::observed::{listed, number, outcomes, together, unheard};
use crate::scenario::cause::{Case, Cause, Ends, Step as Done};

/// Judges what every case showed, or why it could not be run, into `result`.
pub(crate) fn result(cause: &Cause, cases: &[Result<Shown, String>], result: &mut ScenarioResult) {
    let mut timeline = Timeline::default();
    result.judgement = Judgement::AsExpected;
    result.reasons = Vec::new();
    for (case, seen) in cause.cases.iter().zip(cases) {
        let (here, why) = match seen {
            Ok(seen) => {
                let (here, why) = judge(case, seen);
                timeline.steps.push(step(case, seen, here, &why));
                (here, why)
            }
            Err(why) => (Judgement::Inconclusive, vec![why.clone()]),
        };
        result.judgement = result.judgement.worse(here);
        result.reasons.extend(why.iter().map(|r| format!("{}: {r}", case.title)));
        result.of_cases.insert(case.title.clone(), why);
    }
    result.timeline = Some(timeline);
}

fn step(case: &Case, seen: &Shown, judgement: Judgement, why: &[String]) -> Step {
    let mut notes = vec![
        format!(
            "{judgement}: the server's application saw {} resets.",
            seen.sum(|b| b.connections.reset_seen_by_application)
        ),
        format!(
            "boom-server forged on {} of {} accepted connections; RSTs: {} attributed, {} others.",
            seen.sum(|b| b.connections.forged),
            seen.sum(|b| b.connections.accepted),
            seen.sum(|b| b.resets.attributed),
            seen.other_resets()
        ),
    ];
    // One for each server, which mostly agree.
    let each = seen.boom.iter().flat_map(|b| &b.paths).map(|p| match &*p.reasons {
        reasons if p.diagnosis == Diagnosis::Inconclusive && !reasons.is_empty() => {
            format!("{} ({})", p.diagnosis, reasons.join("; "))
        }
        _ => p.diagnosis.to_string(),
    });
    let diagnoses: BTreeSet<_> = each.collect();
    notes.extend(diagnoses.iter().map(|d| format!("Its diagnosis: {d}.")));
    let steps = seen.steps.iter().map(|s| {
        let forged = s.forged.iter().map(|o| {
            format!(", {} {}: {}", o.forged, o.forgery, listed(&o.counts.each().collect()))
        });
        format!("{}: {}{}", s.what, ends(seen.patience, &s.client), forged.collect::<String>())
    });
    notes.push(format!("Steps: {}.", steps.collect::<Vec<_>>().join("; ")));
    if !seen.errors.is_empty() {
        notes.push(format!("Errors: {}.", listed(&seen.errors)));
    }
    notes.extend(seen.rules.iter().cloned());
    let said = together(seen.witnesses.iter().map(|(node, w)| {
        let ends = w.connections.iter().map(|c| format!("{} {} {}", c.count, c.cause, c.direction));
        (or_nothing(&ends.collect::<Vec<_>>()), node.as_str())
    }));
    let said = said
        .iter()
        .map(|(ends, on)| format!("The kernel's words on {}: {ends}.", on.join(" and ")));
    notes.extend(said);
    notes.extend(seen.witnesses.iter().filter_map(|(node, w)| reserved(node, w)));
    notes.extend(why.iter().map(|w| format!("{w}.")));
    Step {
        t: seen.t,
        title: case.title.clone(),
        case: Some(CaseSaid { setting: case.setting(), judgement }),
        changes: seen.changes.clone(),
        new_attempts: seen.connections,
        new_ok: number(&seen.client, ProbeEnd::Survived),
        new_failures: seen.failures.clone(),
        established: seen.client.clone(),
        boom: outcomes(&seen.boom),
        conntrack: seen.conntrack,
        notes,
    }
}

/// How connections stand; with how long was waited, where some hung.
fn ends(patience: Duration, client: &BTreeMap<ProbeEnd, u64>) -> String {
    let hung = number(client, ProbeEnd::Hung) > 0;
    let nothing =
        if hung { format!(" (nothing for {} s)", patience.as_secs_f64()) } else { String::new() };
    listed(client) + &nothing
}

/// What a witness could not make anything of.
fn reserved(node: &str, w: &WitnessResult) -> Option<String> {
    let mut parts = Vec::new();
    if !w.unanswered.is_empty() {
        parts.push(format!("INVALID segments that no reset answered: {}", listed(&w.unanswered)));
    }
    if !w.unread_rules.is_empty() {
        parts.push(format!("rules that could not be read: {}", w.unread_rules.join("; ")));
    }
    (!parts.is_empty()).then(|| format!("Not in these words, on {node}: {}.", parts.join("; ")))
}

/// What a case shows of its expectation.
struct Compared {
    /// Against it.
    differs: Vec<String>,
    /// What keeps it from being proof, either way.
    doubts: Vec<String>,
    /// The same of boom-server's segments: what they would have done is not known.
    unforged: Vec<String>,
    /// Witnesses that could not hear.
    deaf: Vec<String>,
}

fn judge(case: &Case, seen: &Shown) -> (Judgement, Vec<String>) {
    let Compared { differs, doubts, unforged, deaf } = compare(case, seen);
    let judgement = if !(doubts.is_empty() && unforged.is_empty()) {
        Judgement::Inconclusive
    } else if differs.is_empty() {
        Judgement::AsExpected
    } else {
        Judgement::Differs
    };
    (judgement, [differs, doubts, unforged, deaf].concat())
}

/// What keeps a case in which so many connections were lost from being proof of that, whatever is
/// expected of it.
pub(super) fn doubts(case: &Case, seen: &Shown, lost: u64) -> Vec<String> {
    let Compared { mut doubts, unforged, .. } = compare(case, seen);
    // Where all are lost, no segment could have ended one more.
    if lost < seen.connections {
        doubts.extend(unforged);
    }
    doubts
}

/// Compares a case with its expectation. boom-server's word comes first: it
/// forged on every one of these connections, so that it could have been wrong.
fn compare(case: &Case, seen: &Shown) -> Compared {
    let (mut differs, mut doubts) = (Vec::new(), Vec::new());
    let (mut missing, mut unforged) = (Vec::new(), Vec::new());
    let (expect, n) = (&case.expect, seen.connections);
    let unconnected = expect.unconnected();
    let never = never(case, seen, &mut doubts);
    // Without any connection nothing could be forged: what the client's connections say is enough.
    let none = seen.sum(|b| b.connections.forged) == 0 && (unconnected || never == n);
    // On the connections of load-client's own forgeries boom-server may be left without an answer.
    let clients_too = case.steps.iter().any(|s| matches!(s, Done::Forge(_)));
    let mut forged = |who: &str,
                      disturbed: &dyn Fn(Forgery) -> u64,
                      each: &BTreeMap<Forgery, Seen>,
                      count: &dyn Fn(Forgery) -> _| {
        let mut killed = 0;
        for (forgery, expected) in each {
            let (mut forged, counts): (u64, Counts) = count(*forgery);
            // What could not be sent is unknown, and was never forged.
            forged -= forged.saturating_sub(counts.known()).min(disturbed(*forgery));
            killed += counts.killed + counts.killed_later;
            let later = match counts.killed_later {
                0 => String::new(),
                n => format!(", of these killed later {n}"),
            };
            let saw = listed(&counts.each().collect()) + &later;
            let unknown: u64 = counts.unknown.values().sum();
            let why = listed(&counts.unknown);
            let of_these = if unknown > 0 { format!(" ({why})") } else { String::new() };
            let became = match seen_of(forged, &counts) {
                Seen::Delivered if counts.killed_later == forged => Seen::KillsLater,
                Seen::Delivered if counts.killed_later > 0 => Seen::Mixed,
                other => other,
            };
            match became {
                as_expected if as_expected == *expected => {}
                Seen::Mixed if none && *expected == Seen::NoConnection => {}
                Seen::Mixed if none => missing.push(format!("{forgery}: expected {expected}")),
                Seen::Mixed if forged == 0 => unforged.push(format!(
                    "{forgery}: expected {expected}, and {who} forged none: it takes turns, so use more \
                     connections or fewer forgeries, and let it see a connection that is at rest",
                )),
                Seen::Mixed if unknown == forged => unforged.push(format!(
                    "{forgery}: expected {expected}, and of none of {forged} is known what became of it: {why}",
                )),
                Seen::Mixed => unforged.push(format!(
                    "{forgery}: expected {expected}, saw {saw} of {forged}{of_these}: what is not the \
                     same of all proves nothing",
                )),
                other => differs.push(format!("{forgery} by {who}: expected {expected}, saw {other}")),
            }
        }
        killed
    };
    let disturbed = |f| if clients_too { seen.others_unknown(f).min(n) } else { 0 };
    let killed = forged("boom-server", &disturbed, &expect.forged, &|f| seen.forged(f));
    let mut ended_by_own = 0;
    for (step, after) in case.steps.iter().zip(&seen.steps) {
        if let Done::Forge(each) = step {
            ended_by_own +=
                forged("load-client", &|_| 0, each, &|f| outcome(after.forged.iter(), f));
        }
    }
    let leaks =
        |s: &Seen| matches!(s, Seen::Kills | Seen::Leaked | Seen::Rejected | Seen::KillsLater);
    if !expect.forged.values().any(leaks) {
        let attributed = seen.sum(|b| b.resets.attributed);
        if attributed > 0 {
            differs.push(format!("boom-server took {attributed} of these resets for #74839"));
        }
        let blamed =
            |d| matches!(d, Diagnosis::Unprotected | Diagnosis::Liberal | Diagnosis::Partly);
        if seen.boom.iter().flat_map(|b| &b.paths).any(|p| blamed(p.diagnosis)) {
            differs.push("boom-server calls this path unprotected".to_owned());
        }
    }
    doubts.extend(seen.doubts.iter().cloned());
    let timed_out = number(&seen.client, ProbeEnd::TimedOut) > 0;
    if case.steps.contains(&Done::FillTable) && timed_out && seen.conntrack.drop == 0 {
        doubts.push("connections timed out, and the full table refused nothing".to_owned());
    }
    unforged.extend(seen.boom.iter().flat_map(|b| unheard("boom-server", &b.sniffer)));
    let (forged, could) = (seen.sum(|b| b.connections.forged), n.saturating_sub(never));
    if forged < could && !unconnected {
        unforged.push(format!("boom-server forged on {forged} of {could} connections"));
    }
    let client = client(case, seen);
    // Where the client's connections were expected, forged segments on them were not.
    if client.is_empty() && !missing.is_empty() {
        let all = missing.join(", ");
        differs.push(format!("{all}: no connection came to be, which is no-connection"));
    }
    differs.extend(client);
    let others = seen.other_resets();
    let wanted = if expect.server_reset { could } else { killed };
    differs.extend(server(seen, wanted, ended_by_own));
    // An RST that ends a connection is on the wire too.
    if expect.server_reset && others < could && differs.is_empty() {
        doubts.push(format!(
            "boom-server's raw socket saw {others} other RSTs where {could} connections were reset"
        ));
    }
    differs.extend(gone(case, seen));
    let deaf = words(case, seen, &mut differs, &mut doubts);
    Compared { differs, doubts, unforged, deaf }
}

/// The kernel's own words against what is expected of them; gives who could not hear them.
fn words(
    case: &Case,
    seen: &Shown,
    differs: &mut Vec<String>,
    doubts: &mut Vec<String>,
) -> Vec<String> {
    // A witness that cannot hear is one judge less, as in a cell, and is told.
    let deaf: Vec<_> = seen.witnesses.iter().filter_map(|(n, w)| witness::deaf(n, w)).collect();
    if let Some(causes) = &case.expect.witness {
        let most = most_ended(case, seen);
        doubts.extend(seen.witnesses.iter().filter_map(|(node, w)| {
            let named = witness::named_alive(w);
            (named > most).then(|| {
                format!(
                    "the kernel's words on {node} name {named} connections as ended: the client's ends and \
                     the RSTs that came to the server show {most} at most"
                )
            })
        }));
        let heard = || seen.witnesses.iter().flat_map(|(_, w)| &w.connections);
        let told: BTreeSet<_> = heard().filter(|c| c.count > 0).map(|c| c.cause).collect();
        // Who cannot hear all may leave words out.
        let unlike = if deaf.is_empty() { told != *causes } else { !told.is_subset(causes) };
        if unlike {
            let [expected, saw] = [causes, &told]
                .map(|set| or_nothing(&set.iter().map(ToString::to_string).collect::<Vec<_>>()));
            differs.push(format!("the kernel's words: expected {expected}, they name {saw}"));
        }
        let weak = seen.witnesses.iter().flat_map(|(node, w)| witness::said(node, w).weak);
        doubts.extend(weak.filter(|why| !deaf.contains(why)));
    }
    deaf
}

/// How many connections may have ended: each RST may have ended one.
fn most_ended(case: &Case, seen: &Shown) -> u64 {
    // An end that is gone hears of none, and load-client's own connections are not among these.
    let ends = |step: &&Done| matches!(step, Done::Vanish | Done::RestartServer | Done::Forge(_));
    let unseen = seen.connections * case.steps.iter().filter(ends).count() as u64;
    let lost = seen.connections.saturating_sub(number(&seen.client, ProbeEnd::Survived));
    unseen + lost + seen.sum(|b| b.resets.attributed) + seen.other_resets()
}

/// How many connections never came to be. Where the network refused them the client's expectation
/// says whether that is right; a limit of this host that nobody expected proves nothing.
fn never(case: &Case, seen: &Shown, doubts: &mut Vec<String>) -> u64 {
    let in_steps = case.steps.iter().filter_map(|s| match s {
        Done::Expect(ends) => Some(ends),
        _ => None,
    });
    let expected: Vec<_> = case.expect.client.iter().chain(in_steps).collect();
    let connect = case.steps.iter().position(|step| *step == Done::Connect);
    let after = connect.and_then(|at| seen.steps.get(at));
    let of = |end| after.map_or(0, |a| number(&a.client, end));
    let never = [ProbeEnd::Refused, ProbeEnd::TimedOut, ProbeEnd::LocalLimit, ProbeEnd::Failed];
    let never = never.map(of).iter().sum();
    let limit = ProbeEnd::LocalLimit;
    let limited = number(&seen.client, limit);
    if limited > 0 && !expected.iter().any(|ends| ends.0.contains(&limit)) {
        doubts.push(format!(
            "{limited} of {} connections never came to be: {limit}",
            seen.connections
        ));
    }
    never
}

/// How what the server's application saw of resets differs from the `wanted`; what ended a connection at
/// its client it may hear of when it sends.
fn server(seen: &Shown, wanted: u64, ended_at_client: u64) -> Option<String> {
    let (resets, others) = (seen.reset_at_servers(), seen.other_resets());
    // What it has closed on its side is reset without a word to it.
    let on_the_wire = if resets < wanted && others > 0 {
        format!(" of the {others} other RSTs that came")
    } else {
        String::new()
    };
    (!(wanted..=wanted + ended_at_client).contains(&resets)).then(|| {
        format!("the server's application: expected {wanted} resets, saw {resets}{on_the_wire}")
    })
}

/// Steps after which fewer entries were gone than connections must have had: those that live, and used
/// theirs since entries went before. Of nothing nothing can go.
fn gone(case: &Case, seen: &Shown) -> Vec<String> {
    let (mut there, mut few) = (0, Vec::new());
    for (n, (step, after)) in (1..).zip(case.steps.iter().zip(&seen.steps)) {
        let survived = number(&after.client, ProbeEnd::Survived);
        match step {
            Done::Connect | Done::Reconnect | Done::Transfer(_) | Done::Answer => there = survived,
            Done::DeleteEntries | Done::LetExpire => {
                if after.gone < there {
                    let gone = after.gone;
                    few.push(format!(
                        "entries gone by {step} at step {n}: {gone} for {there} connections"
                    ));
                }
                there = 0;
            }
            _ => there = there.min(survived),
        }
    }
    few
}

/// How the client's connections differ from what each step and the end expect.
fn client(case: &Case, seen: &Shown) -> Vec<String> {
    let n = seen.connections;
    let differs = |when: String, ends: &Ends, client: &BTreeMap<ProbeEnd, u64>| {
        let there = |end: &ProbeEnd| number(client, *end);
        let all: u64 = ends.0.iter().map(there).sum();
        let differs = all != n || ends.0.iter().any(|end| there(end) == 0);
        let saw = self::ends(seen.patience, client);
        differs.then(|| format!("the client's connections{when}: expected {ends} {n}, saw {saw}"))
    };
    let steps = case.steps.iter().zip(&seen.steps).enumerate();
    let steps = steps.filter_map(|(at, (step, after))| match step {
        Done::Expect(ends) => differs(format!(" at step {}", at + 1), ends, &after.client),
        _ => None,
    });
    let end =
        case.expect.client.as_ref().and_then(|ends| differs(String::new(), ends, &seen.client));
    steps.chain(end).collect()
}

fn or_nothing(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(" and ") }
}

#[cfg(test)]
pub(super) mod tests;
