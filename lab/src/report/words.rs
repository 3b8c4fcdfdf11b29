//! What the closed sets of names mean to a reader.

use std::collections::BTreeMap;

use crate::document::lab::{
    At, Effect, Judgement, LabResult, Path, Protection, ProtectionKind, ProxyMode, ScenarioResult,
    Seen,
};
use crate::document::timeline::{FailureClass, Finding};
use canary_record::names::{Direction, Forgery, OldSegments};
use canary_wire::segment::Family;

use crate::judge::rows::{Exposure, Route};

pub(crate) const fn path(path: Path) -> &'static str {
    match path {
        Path::ClusterIp => "Pod to ClusterIP, other node",
        Path::SameNode => "Pod to ClusterIP, same node",
        Path::SameNodeBridge => "Same node, bridge with br_netfilter",
        Path::SameNodeBridgeNoNf => "Same node, bridge without br_netfilter",
        Path::NodePortCluster => "NodePort, policy Cluster, backend there",
        Path::NodePortClusterRemote => "NodePort, policy Cluster, backend elsewhere",
        Path::NodePortLocal => "NodePort, policy Local",
        Path::Hairpin => "Hairpin: a pod to its own Service",
        Path::HostNetwork => "Host-network client, backend on its node",
        Path::HostNetworkRemote => "Host-network client, backend elsewhere",
        Path::Snat => "Masqueraded pod to ClusterIP, other node",
        Path::PodIp => "Straight to the pod IP (no NAT)",
    }
}

/// A path and which way segments were forged on it.
#[must_use]
pub fn route((path, direction): Route) -> String {
    let upload = if direction == Direction::ClientToServer { ", uploads" } else { "" };
    format!("{}{upload}", self::path(path))
}

/// Counts of rules by the hook that they are in; a rule of another name by that.
pub(crate) fn by_hook(rules: &BTreeMap<String, u64>) -> BTreeMap<&str, u64> {
    const HOOKS: [(&str, &str); 3] =
        [("forward", "FORWARD"), ("input", "INPUT"), ("prerouting", "PREROUTING")];
    let mut hooks = BTreeMap::new();
    for (rule, n) in rules {
        let lower = rule.to_lowercase();
        let hook = HOOKS.iter().find(|(part, _)| lower.contains(part));
        *hooks.entry(hook.map_or(rule.as_str(), |(_, name)| name)).or_default() += n;
    }
    hooks
}

pub(crate) fn protection(p: Protection) -> String {
    let what = match p.kind {
        ProtectionKind::ForwardDrop => "FORWARD drop",
        ProtectionKind::InputDrop => "INPUT drop",
        ProtectionKind::PreroutingDrop => "PREROUTING drop",
        ProtectionKind::Liberal => "be_liberal",
    };
    match p.at {
        At::Both => what.to_owned(),
        At::Client => format!("{what} (client’s node)"),
        At::Server => format!("{what} (server’s node)"),
    }
}

/// A protection where there is room for a letter: `F`, at one node alone `F@c`.
pub(crate) fn letter(p: Protection) -> String {
    let what = match p.kind {
        ProtectionKind::ForwardDrop => "F",
        ProtectionKind::InputDrop => "I",
        ProtectionKind::PreroutingDrop => "P",
        ProtectionKind::Liberal => "L",
    };
    let at = match p.at {
        At::Both => "",
        At::Client => "@c",
        At::Server => "@s",
    };
    format!("{what}{at}")
}

/// A set of protections.
#[must_use]
pub fn protections(set: &[Protection]) -> String {
    if set.is_empty() {
        return "No protection".to_owned();
    }
    set.iter().map(|p| protection(*p)).collect::<Vec<_>>().join(" + ")
}

pub(crate) const fn forgery(f: Forgery) -> &'static str {
    match f {
        Forgery::Control => "keep-alive, in order",
        Forgery::BelowWindow => "data far too old",
        Forgery::AboveWindow => "data far too new",
        Forgery::AckAhead => "acknowledges what was never sent",
        Forgery::NoFlags => "no flag at all",
        Forgery::SynFin => "impossible flags",
        Forgery::Overshoot => "data just past the window",
    }
}

/// A symbol and a word for what became of forged segments.
pub(crate) const fn seen(s: Seen) -> (&'static str, &'static str) {
    match s {
        Seen::Delivered => ("✓", "delivered"),
        Seen::Leaked => ("△", "leaks"),
        Seen::Kills => ("✕", "kills"),
        Seen::Dropped => ("⊘", "dropped"),
        Seen::Rejected => ("✕", "rejected"),
        Seen::KillsLater => ("✕", "kills later"),
        Seen::Hangs => ("⧖", "hangs"),
        Seen::NoConnection => ("–", "no connection"),
        Seen::Mixed => ("≈", "mixed"),
    }
}

/// A class of the page, a symbol and a word for what a path is exposed to.
#[must_use]
pub const fn exposure(e: &Exposure) -> (&'static str, &'static str, &'static str) {
    match e {
        Exposure::Safe => ("safe", "✓", "safe"),
        Exposure::NoConnection => ("no-connection", "–", "no connection"),
        Exposure::NotProved => ("not-proved", "?", "not proved"),
        Exposure::Leaks => ("leaks", "△", "leaks"),
        Exposure::Hangs => ("hangs", "⧖", "hangs"),
        Exposure::Resets(_) => ("resets", "✕", "resets"),
    }
}

/// A symbol and words for a judgement.
pub(crate) const fn judgement(j: Judgement) -> (&'static str, &'static str) {
    match j {
        Judgement::AsExpected => ("✓", "as expected"),
        Judgement::Differs => ("✕", "differs"),
        Judgement::Inconclusive => ("?", "inconclusive"),
        Judgement::Skipped => ("–", "skipped"),
    }
}

/// A symbol and words for what became of a claim.
pub(crate) const fn finding(f: Finding) -> (&'static str, &'static str) {
    match f {
        Finding::Holds => ("✓", "holds"),
        Finding::HoldsForAnotherReason => ("△", "holds, for another reason"),
        Finding::DoesNotHold => ("✕", "does not hold"),
        Finding::NotShown => ("?", "not shown"),
    }
}

/// A symbol and words for what a mend does.
pub(crate) const fn effect(e: Effect) -> (&'static str, &'static str) {
    match e {
        Effect::Helps => ("✓", "helps"),
        Effect::HelpsPartly => ("△", "helps partly"),
        Effect::DoesNothing => ("–", "does nothing"),
        Effect::Harms => ("✕", "harms"),
        Effect::NotShown => ("?", "not shown"),
    }
}

pub(crate) const fn failure(f: FailureClass) -> &'static str {
    match f {
        FailureClass::ConnectTimeout => "connect timed out",
        FailureClass::Reset => "reset",
        FailureClass::Hung => "hung",
        FailureClass::Refused => "refused",
        FailureClass::EarlyEof => "closed early",
        FailureClass::BadAnswer => "wrong answer",
        FailureClass::LocalLimit => "limit of this host",
        FailureClass::Interrupted => "cut short",
        FailureClass::Other => "other",
    }
}

pub(crate) const fn family(f: Family) -> &'static str {
    match f {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    }
}

pub(crate) const fn proxy_mode(f: ProxyMode) -> &'static str {
    match f {
        ProxyMode::Nftables => "nftables",
        ProxyMode::Iptables => "iptables",
        ProxyMode::Ipvs => "IPVS",
    }
}

/// The kernel's generation, in a sentence.
pub(crate) const fn generation(old: Option<OldSegments>) -> &'static str {
    match old {
        Some(OldSegments::Ignored) => {
            "Linux 6.1 or later by its behaviour: a segment below the window is ignored by \
             conntrack and still translated"
        }
        Some(OldSegments::Invalid) => {
            "before Linux 6.1 by its behaviour: a segment below the window is INVALID"
        }
        Some(OldSegments::NotShown) | None => "not shown by this run",
    }
}

/// A number with its thousands set apart, as people read it.
pub(crate) fn grouped(n: u64) -> String {
    indicatif::HumanCount(n).to_string()
}

/// `1 cell`, `2 cells`.
pub(crate) fn count(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(n), if n == 1 { one } else { many })
}

/// What a run has beside cells: of situations, and of scenarios with stages, how many `of` picks, and
/// how many there are, as they are called.
pub(super) fn beside_cells(
    result: &LabResult,
    of: impl Fn(&ScenarioResult) -> bool,
) -> Vec<(u64, String)> {
    let kind = |of_cases: bool, one: &str, many: &str| {
        let is =
            |s: &&ScenarioResult| s.timeline.as_ref().is_some_and(|t| t.of_cases() == of_cases);
        let all: Vec<_> = result.scenarios.iter().filter(is).collect();
        let n = all.iter().filter(|s| of(s)).count() as u64;
        (!all.is_empty()).then(|| (n, count(all.len() as u64, one, many)))
    };
    let situations = kind(true, "situation", "situations");
    let staged = kind(false, "scenario with stages", "scenarios with stages");
    situations.into_iter().chain(staged).collect()
}

/// `survived 200, reset 100`; what did not happen is left out.
pub(crate) fn counts(of: impl IntoIterator<Item = (&'static str, u64)>) -> String {
    let text: Vec<_> = of
        .into_iter()
        .filter(|(_, n)| *n > 0)
        .map(|(name, n)| format!("{name} {}", grouped(n)))
        .collect();
    if text.is_empty() { "none".to_owned() } else { text.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thousands are set apart from the right.
    #[test]
    fn thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(count(1, "cell", "cells"), "1 cell");
        assert_eq!(counts([("a", 0), ("b", 2)]), "b 2");
    }
}
