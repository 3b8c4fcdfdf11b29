//! What was seen, before anybody judges it: the data that running hands to judging. Pure.

pub(crate) mod cause;
pub(crate) mod cell;
pub(crate) mod saturation;
pub(crate) mod series;

use std::collections::BTreeMap;
use std::fmt::Display;

use canary_record::names::Outcome;
use canary_record::outcome::Counts;
use canary_record::result::boom::{BoomResult, Sniffer};

pub(crate) fn listed<K: Display>(counts: &BTreeMap<K, u64>) -> String {
    let text: Vec<_> =
        counts.iter().filter(|(_, n)| **n > 0).map(|(k, n)| format!("{k} {n}")).collect();
    if text.is_empty() { "none".to_owned() } else { text.join(", ") }
}

pub(crate) fn counted<K: Ord>(of: impl Iterator<Item = K>) -> BTreeMap<K, u64> {
    of.fold(BTreeMap::new(), |mut counts, one| {
        *counts.entry(one).or_default() += 1;
        counts
    })
}

/// Those with the same key beside each other, in the order of their first appearance.
pub(crate) fn together<K: PartialEq, V>(all: impl IntoIterator<Item = (K, V)>) -> Vec<(K, Vec<V>)> {
    let mut groups: Vec<(K, Vec<V>)> = Vec::new();
    for (key, one) in all {
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, same)) => same.push(one),
            None => groups.push((key, vec![one])),
        }
    }
    groups
}

pub(crate) fn number<K: Ord + Copy>(counts: &BTreeMap<K, u64>, of: K) -> u64 {
    counts.get(&of).copied().unwrap_or(0)
}

/// What keeps a raw socket of `who` from having heard everything.
pub(crate) fn unheard(who: &str, sniffer: &Sniffer) -> impl Iterator<Item = String> {
    let lost = sniffer.dropped;
    let lost = (lost > 0).then(|| format!("{who}'s raw socket lost {lost} segments"));
    let failed = sniffer.failed.as_ref();
    lost.into_iter().chain(failed.map(|why| format!("{who}'s raw socket failed: {why}")))
}

/// What became of the forged segments, whatever kind.
pub(crate) fn outcomes<'a>(
    boom: impl IntoIterator<Item = &'a BoomResult>,
) -> BTreeMap<Outcome, u64> {
    boom.into_iter().flat_map(|b| &b.outcomes).map(|o| &o.counts).sum::<Counts>().each().collect()
}
