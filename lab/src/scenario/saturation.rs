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
    /// What should be found of which claims, in the order of the report.
    pub expect: BTreeMap<Claim, Finding>,
}

/// The most source addresses that the client pod gets.
pub const MOST_CLIENTS: u32 = 50;

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
        if self.pairs > 50 {
            return Err("pairs: use 0 to 50".to_owned());
        }
        if !(0.01..=3.0).contains(&self.load) {
            return Err("load: use 0.01 to 3".to_owned());
        }
        Ok(())
    }
}
