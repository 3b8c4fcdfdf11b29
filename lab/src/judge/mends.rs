//! What helps against a situation and what does not: the connections that each mend loses, against
//! those that are lost as it is.

use canary_record::names::ProbeEnd;

use crate::document::lab::{Effect, Mend, MendResult, Mended};
use crate::observed::cause::Seen;
use crate::scenario::cause::{Case, Cause, Host};

/// The table of a scenario's cases. `seen` is in the order of [`Case::under_mends`].
pub(crate) fn table(cause: &Cause, seen: &[Result<Seen, String>]) -> Vec<Mended> {
    let mut seen = seen.iter();
    let row = |case: &Case| {
        let mends: Vec<_> =
            case.under_mends(cause.mends_at).into_iter().map(|(mend, _)| mend).collect();
        let own = cause.hosts.iter().chain(&case.hosts).any(Host::drops);
        let untried = (own && !mends.contains(&Mend::NoDrop)).then(|| MendResult {
            mend: Mend::NoDrop,
            lost: 0,
            effect: Effect::NotShown,
            why: Some(
                "not tried: the drop is a rule of the file's own: take it out in a case beside this one"
                    .to_owned(),
            ),
        });
        let results: Vec<_> = mends.into_iter().zip(seen.by_ref()).collect();
        let mut mends = compared(&results, cause.connections(case).into());
        mends.extend(untried);
        mends.sort_by_key(|m| m.mend);
        Mended { case: case.title.clone(), connections: cause.connections(case).into(), mends }
    };
    cause.cases.iter().map(row).collect()
}

/// Each against the first, the situation as it is.
fn compared(results: &[(Mend, &Result<Seen, String>)], all: u64) -> Vec<MendResult> {
    let base = results.first().and_then(|(_, seen)| seen.as_ref().ok()).map(lost);
    let one = |(mend, seen): &(Mend, &Result<Seen, String>)| {
        let (lost, why) = match seen {
            Ok(seen) => (lost(seen), None),
            Err(why) => (0, Some(why.clone())),
        };
        let effect = match base {
            Some(base) if why.is_none() => effect(base, lost, all),
            _ => Effect::NotShown,
        };
        MendResult { mend: *mend, lost, effect, why }
    };
    results.iter().map(one).collect()
}

/// Of `all`. Where some are lost and some are not, with the mend as without it, chance chooses which (an
/// endpoint, a port): then a difference is one only where it is of more than half of them.
const fn effect(base: u64, lost: u64, all: u64) -> Effect {
    let chance = 0 < base && base < all && 0 < lost && lost < all;
    if chance && base.abs_diff(lost) * 2 <= all {
        Effect::DoesNothing
    } else if lost > base {
        Effect::Harms
    } else if lost == base {
        Effect::DoesNothing
    } else if lost == 0 {
        Effect::Helps
    } else {
        Effect::HelpsPartly
    }
}

/// Connections that did not survive for the client, or that the server saw reset: the more of both,
/// for one connection can be lost at both ends.
fn lost(seen: &Seen) -> u64 {
    let survived = seen.client.get(&ProbeEnd::Survived).copied().unwrap_or(0);
    let server = seen.sum(|b| b.connections.reset_seen_by_application);
    let client = seen.connections.saturating_sub(survived);
    let forged = seen.steps.iter().flat_map(|s| &s.forged).map(|o| o.counts.killed).sum();
    client.max(server).max(forged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Body, parse};

    /// Fewer helps, none helps wholly, more harms.
    #[test]
    fn effects_are_differences() {
        for (base, lost, what) in [
            (20, 0, Effect::Helps),
            (20, 9, Effect::HelpsPartly),
            (20, 20, Effect::DoesNothing),
            (0, 0, Effect::DoesNothing),
            (0, 1, Effect::Harms),
            // Two endpoints, of which one does not know the connection.
            (12, 5, Effect::DoesNothing),
            (10, 13, Effect::DoesNothing),
            (15, 2, Effect::HelpsPartly),
            (10, 0, Effect::Helps),
            (10, 20, Effect::Harms),
        ] {
            assert_eq!(effect(base, lost, 20), what, "{base} {lost}");
        }
    }

    /// A drop of the file's own is told of as what was not tried; where nothing helps, that is said.
    #[test]
    fn what_does_not_help_is_said() {
        let text = "kind = \"cause\"\nname = \"x\"\ntitle = \"\"\nwhy = \"\"\nsource = \"\"\n\
                    [[host]]\nname = \"node1\"\niptables = \"*filter\\n-A FORWARD -j DROP\\nCOMMIT\\n\"\n\
                    [[case]]\ntitle = \"t\"\nsteps = [\"connect\"]\nexpect = { client = \"survived\" }\n";
        let Body::Cause(cause) = parse("x", text).unwrap().body else { panic!("its kind") };
        let tried = cause.cases[0].under_mends(cause.mends_at).len();
        let mut table = table(&cause, &vec![Err("no host".to_owned()); tried]);
        let row = &mut table[0];
        let untried = row.mends.iter().find(|m| m.mend == Mend::NoDrop).unwrap();
        assert!(untried.why.as_ref().unwrap().contains("the file's own"), "{untried:?}");
        assert!(!row.helpless(), "what was not run says nothing");
        for m in &mut row.mends {
            (m.why, m.lost, m.effect) = (None, 20, Effect::DoesNothing);
        }
        assert!(row.helpless());
        row.mends[1].effect = Effect::HelpsPartly;
        assert!(!row.helpless());
    }

    /// What could not be tried is no mend, and where the situation itself could not be, nothing is.
    #[test]
    fn what_was_not_tried_is_not_shown() {
        let failed: Result<Seen, String> = Err("no host".to_owned());
        let rows = compared(&[(Mend::AsItIs, &failed), (Mend::Liberal, &failed)], 20);
        assert!(rows.iter().all(|r| r.effect == Effect::NotShown && r.why.is_some()));
    }
}
