//! What helps against a situation and what does not: the connections that each mend loses, against
//! those that are lost as it is.

use canary_record::names::ProbeEnd;

use super::cause::doubts;
use crate::document::lab::{Effect, Mend, MendResult, Mended};
use crate::observed::cause::Seen;
use crate::observed::number;
use crate::scenario::cause::{Case, Cause, Host};

/// The table of a scenario's cases. `seen` is in the order of [`Case::under_mends`].
pub(crate) fn table(cause: &Cause, seen: &[Result<Seen, String>]) -> Vec<Mended> {
    let mut seen = seen.iter();
    let row = |case: &Case| {
        let under = case.under_mends(cause.mends_at);
        let own = cause.hosts.iter().chain(&case.hosts).any(Host::drops);
        let untried = (own && under.iter().all(|(mend, _)| *mend != Mend::NoDrop)).then(|| MendResult {
            mend: Mend::NoDrop,
            lost: 0,
            effect: Effect::NotShown,
            why: Some(
                "not tried: the drop is a rule of the file's own: take it out in a case beside this one"
                    .to_owned(),
            ),
        });
        let tried: Vec<_> = under.iter().zip(seen.by_ref()).map(tried).collect();
        let mut mends = compared(tried, cause.connections(case).into());
        mends.extend(untried);
        mends.sort_by_key(|m| m.mend);
        Mended { case: case.title.clone(), connections: cause.connections(case).into(), mends }
    };
    cause.cases.iter().map(row).collect()
}

/// What was lost under a mend, and why that proves nothing, where it does not: a connection that a
/// limit of this host kept from being was not lost to the situation.
fn tried(
    ((mend, case), seen): (&(Mend, Case), &Result<Seen, String>),
) -> (Mend, u64, Option<String>) {
    match seen {
        Ok(seen) => {
            let lost = lost(seen);
            let doubts = doubts(case, seen, lost);
            (*mend, lost, (!doubts.is_empty()).then(|| doubts.join("; ")))
        }
        Err(why) => (*mend, 0, Some(why.clone())),
    }
}

/// Each against the first, the situation as it is.
fn compared(tried: Vec<(Mend, u64, Option<String>)>, all: u64) -> Vec<MendResult> {
    let base = tried.first().and_then(|(_, lost, why)| why.is_none().then_some(*lost));
    let one = |(mend, lost, why): (Mend, u64, Option<String>)| {
        let effect = match base {
            Some(base) if why.is_none() => effect(base, lost, all),
            _ => Effect::NotShown,
        };
        MendResult { mend, lost, effect, why }
    };
    tried.into_iter().map(one).collect()
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
    let survived = number(&seen.client, ProbeEnd::Survived);
    let server = seen.reset_at_servers();
    let client = seen.connections.saturating_sub(survived);
    let forged = seen.steps.iter().flat_map(|s| &s.forged).map(|o| o.counts.killed).sum();
    client.max(server).max(forged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::cause::tests::{case, seen};
    use crate::scenario::cause::Step;
    use crate::scenario::{Body, parse};
    use canary_record::names::Forgery;

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

    /// A mend keeps what the case is about: what its own steps forge, and what makes conntrack believe a
    /// wrong window; and it holds whatever the case's hosts and steps set.
    #[test]
    fn a_mend_changes_nothing_else() {
        let under = |more: &str| {
            let text = format!(
                "kind = \"cause\"\nname = \"x\"\ntitle = \"\"\nwhy = \"\"\nsource = \"\"\n\
                 [[case]]\ntitle = \"t\"\n{more}\n"
            );
            let Body::Cause(cause) = parse("x", &text).unwrap().body else { panic!("its kind") };
            cause.cases[0].under_mends(cause.mends_at)
        };
        let steps = "steps = [\"connect\", { forge = { above-window = \"delivered\" } }]";
        for (more, liberal) in [
            (
                format!(
                    "path = \"node-port-local\"\n{steps}\nexpect = {{ client = \"survived\" }}"
                ),
                true,
            ),
            ("steps = [\"connect\"]\nexpect = { client = \"survived\" }".to_owned(), false),
        ] {
            assert_eq!(!under(&more)[0].1.protections.is_empty(), liberal, "{more}");
        }
        let overshoot = "protections = []\nsteps = [\"connect\", { transfer = \"down\" }]\n\
                         expect = { client = \"survived\", forged = { overshoot = \"delivered\" } }";
        assert!(under(overshoot)[0].1.expect.forged.contains_key(&Forgery::Overshoot));
        let set = "{ name = \"node1\", sysctls = { \"net.netfilter.nf_conntrack_tcp_be_liberal\" = \"0\" } }";
        let off = format!(
            "host = [{set}]\nsteps = [\"connect\", {{ change = {set} }}]\nexpect = {{ client = \"reset\" }}"
        );
        for (mend, case) in under(&off) {
            let Some(Step::Change(host)) = case.steps.get(1) else { panic!("the step is there") };
            let of_node = case.hosts.iter().rev().find(|h| h.name == "node1").unwrap();
            let last = of_node
                .sysctls
                .get("net.netfilter.nf_conntrack_tcp_be_liberal")
                .map(|text| &*text.text);
            let held = matches!(mend, Mend::Liberal | Mend::LiberalAndDrops);
            assert_eq!((host.sysctls.is_empty(), last == Some("1")), (held, held), "{mend}");
        }
    }

    /// What could not be tried is no mend, and where the situation itself could not be, nothing is.
    #[test]
    fn what_was_not_tried_is_not_shown() {
        let failed = Some("no host".to_owned());
        let rows = compared(vec![(Mend::AsItIs, 0, failed), (Mend::Liberal, 0, None)], 20);
        assert!(rows.iter().all(|r| r.effect == Effect::NotShown), "{rows:?}");
    }

    /// Connections that this host's limits kept from being, and segments that a raw socket lost, are no
    /// loss of the situation's: that column shows nothing, and says why.
    #[test]
    fn a_doubtful_run_shows_nothing() {
        let case = &case();
        let effects = |spoil: fn(&mut Seen)| {
            let column = |mend, end| {
                let mut s = seen();
                s.client = [(end, 5)].into();
                s.boom[0].connections.reset_seen_by_application = 0;
                (mend, s)
            };
            let base = column(Mend::AsItIs, ProbeEnd::Hung);
            let mut mended = column(Mend::Liberal, ProbeEnd::Survived);
            spoil(&mut mended.1);
            let tried = [base, mended].map(|(mend, s)| tried((&(mend, case.clone()), &Ok(s))));
            let mut rows = compared(tried.into(), 5);
            let liberal = rows.pop().unwrap();
            (liberal.effect, liberal.why.unwrap_or_default())
        };
        assert_eq!(effects(|_| ()), (Effect::Helps, String::new()));
        let (effect, why) = effects(|s| {
            s.client = [(ProbeEnd::LocalLimit, 2), (ProbeEnd::Survived, 3)].into();
        });
        assert_eq!(effect, Effect::NotShown);
        assert!(why.contains("2 of 5 connections never came to be: local-limit"), "{why}");
        let (effect, why) = effects(|s| s.boom[0].sniffer.dropped = 1);
        assert_eq!(effect, Effect::NotShown);
        assert!(why.contains("lost 1 segments"), "{why}");
        // Where every connection is lost, it does not matter what was not forged on them.
        let hung = |s: &mut Seen| {
            s.client = [(ProbeEnd::Hung, 5)].into();
            s.boom[0].outcomes.clear();
        };
        assert_eq!(effects(hung), (Effect::DoesNothing, String::new()));
        let none = |s: &mut Seen| s.boom[0].outcomes.clear();
        assert_eq!(effects(none).0, Effect::NotShown);
    }
}
