//! A conntrack table that fills: the measures of the steps, and what they should show.

use std::collections::BTreeMap;

use crate::document::timeline::Finding;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Checked;
use super::claims::Claim;

/// The steps' measures, and what they should show.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Saturation {
    /// Clients of each step that only loads: source addresses of the client pod.
    pub clients: Vec<u32>,
    /// How long each step lasts.
    pub seconds: u32,
    /// Established connections that are there throughout.
    pub held: u32,
    /// Half-closed transfers in each place of the eviction experiment.
    pub half_closed: u32,
    /// How long the garbage collector may take; it comes at least once a minute.
    pub closing_seconds: u32,
    /// Connections of the step that fills the table, as a part of its limit.
    pub load: f64,
    /// Pairs of rounds with be_liberal 0 and 1, by turns, in which transfers and new connections are
    /// timed; none without.
    #[serde(default)]
    pub pairs: u32,
    /// Limits under which the most clients run, one after another, where the limit can be changed.
    #[serde(default)]
    pub smaller: Vec<u64>,
    /// Sizes of a table, rising, whose speed and memory are measured where they can be set: as many
    /// entries as buckets.
    #[serde(default)]
    pub table_sizes: Vec<u64>,
    /// Entries for each bucket of a table whose speed is measured, rising.
    #[serde(default)]
    pub entries_per_bucket: Vec<f64>,
    /// What should be found of which claims, in the order of the report.
    pub expect: BTreeMap<Claim, Finding>,
}

/// The most source addresses that the client pod gets.
pub const MOST_CLIENTS: u32 = 50;

/// The most entries of a table that is measured.
pub const MOST_ENTRIES: u64 = 4_000_000;

impl Checked for Saturation {
    fn check(&self) -> Result<(), String> {
        if self.clients.iter().any(|n| !(1..=MOST_CLIENTS).contains(n)) {
            return Err(format!("clients: use 1 to {MOST_CLIENTS}"));
        }
        for (field, value, range) in [
            ("seconds", self.seconds, 1..=60),
            ("held", self.held, 1..=500),
            ("half-closed", self.half_closed, 1..=500),
            ("closing-seconds", self.closing_seconds, 1..=600),
        ] {
            if !range.contains(&value) {
                return Err(format!("{field}: use {} to {}", range.start(), range.end()));
            }
        }
        if self.expect.is_empty() {
            return Err("expect: name at least one claim".to_owned());
        }
        if let Some((claim, _)) = self.expect.iter().find(|(_, f)| **f == Finding::NotShown) {
            return Err(format!(
                "expect: {claim}: not-shown is what a run that proves nothing finds: use holds, \
                 holds-for-another-reason or does-not-hold"
            ));
        }
        if self.pairs > 500 {
            return Err("pairs: use 0 to 500".to_owned());
        }
        if self.smaller.iter().any(|n| !(500..=1_000_000).contains(n)) {
            return Err("smaller: use 500 to 1000000".to_owned());
        }
        if self.table_sizes.iter().any(|n| !(500..=MOST_ENTRIES).contains(n))
            || !self.table_sizes.is_sorted()
        {
            return Err(format!("table-sizes: use 500 to {MOST_ENTRIES}, rising"));
        }
        if self.entries_per_bucket.iter().any(|n| !(0.1..=32.0).contains(n))
            || !self.entries_per_bucket.is_sorted()
        {
            return Err("entries-per-bucket: use 0.1 to 32, rising".to_owned());
        }
        if !(0.01..=3.0).contains(&self.load) {
            return Err("load: use 0.01 to 3".to_owned());
        }
        Ok(())
    }
}
