//! What conntrack said in one network namespace.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Run;
use crate::names;

/// The document that `load-client observe` ends with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ObserveResult {
    /// [`super::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how.
    pub run: Run,
    /// What weakens these numbers: sources that could not be read, gaps.
    pub reasons: Vec<String>,
    /// What this network namespace shows of how Services are handled in it.
    #[serde(default)]
    pub node: NodeShown,
    /// Each source and whether it could be read: `procfs` (count and limit),
    /// `procfs-stat`, `ctnetlink`.
    pub sources: BTreeMap<String, SourceState>,
    /// The first sample.
    pub first: ConntrackSample,
    /// The last sample.
    pub last: ConntrackSample,
    /// What the counters grew by from the first sample to the last.
    pub difference: ConntrackCounters,
    /// The same for each CPU.
    pub difference_by_cpu: Vec<CpuCounters>,
    /// The most entries in any sample taken, those left out of the series included.
    pub most_entries: u64,
    /// Samples taken; more than the series holds when it was thinned.
    pub samples_taken: u64,
    /// Seconds between the samples of the series: doubled when the series was full.
    pub series_interval_s: f64,
    /// The series, oldest first, bounded in length.
    pub samples: Vec<ConntrackSample>,
}

/// What a network namespace shows of how Services are handled in it; none where it could not be
/// read. Of a node where the observer is on the host network.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct NodeShown {
    /// `nf_conntrack_tcp_be_liberal`.
    pub be_liberal: Option<u64>,
    /// kube-proxy's mode, in its own word: none unless everything that could be read says the same.
    pub proxy_mode: Option<String>,
    /// What each source says of that mode.
    #[serde(default)]
    pub proxy_signs: BTreeMap<ProxySource, String>,
}

names! {
    /// What says in which mode kube-proxy is.
    pub enum ProxySource {
        /// kube-proxy's metrics endpoint at 127.0.0.1:10249.
        Endpoint = "endpoint",
        /// The chains of nf_tables. iptables' legacy tables are not there.
        Rules = "rules",
        /// The interface that holds the addresses of Services under IPVS.
        Interface = "interface",
        /// The ConfigMap that kube-proxy is configured with.
        ConfigMap = "configmap",
    }
}

impl NodeShown {
    /// Takes what a source says of kube-proxy's mode.
    pub fn sign(&mut self, source: ProxySource, mode: String) {
        self.proxy_signs.insert(source, mode);
        let mut said = self.proxy_signs.values();
        self.proxy_mode = said.next().filter(|first| said.all(|mode| mode == *first)).cloned();
    }
}

/// Whether a source could be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SourceState {
    /// It was read at every sample.
    Read,
    /// It could not be read; the text says why.
    Unreadable(String),
}

/// Conntrack at one moment, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConntrackSample {
    /// Seconds since the run began, by the monotonic clock.
    pub t: f64,
    /// Entries in this network namespace.
    pub entries: u64,
    /// The limit (`nf_conntrack_max`).
    pub limit: u64,
    /// Counters since the namespace was made.
    #[serde(flatten)]
    pub counters: ConntrackCounters,
}

/// Conntrack's own counters (`struct ip_conntrack_stat`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConntrackCounters {
    /// Packets whose entry was found while another was being inserted.
    pub found: u64,
    /// Packets that conntrack called INVALID.
    pub invalid: u64,
    /// Entries inserted (0 on kernels that no longer count it).
    pub insert: u64,
    /// Entries that could not be inserted: another had the same tuple.
    pub insert_failed: u64,
    /// Packets dropped: the table was full, there was no memory, or another had the same tuple.
    pub drop: u64,
    /// Entries evicted early to make room.
    pub early_drop: u64,
    /// ICMP errors that could not be tracked.
    pub icmp_error: u64,
    /// Look-ups restarted because the table was resized.
    pub search_restart: u64,
    /// Clashes of two new entries that were resolved.
    pub clash_resolve: u64,
    /// Insertions refused because a hash chain was too long.
    pub chain_too_long: u64,
}

impl ConntrackCounters {
    /// Applies `f` to each pair of counters.
    fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            found: f(self.found, other.found),
            invalid: f(self.invalid, other.invalid),
            insert: f(self.insert, other.insert),
            insert_failed: f(self.insert_failed, other.insert_failed),
            drop: f(self.drop, other.drop),
            early_drop: f(self.early_drop, other.early_drop),
            icmp_error: f(self.icmp_error, other.icmp_error),
            search_restart: f(self.search_restart, other.search_restart),
            clash_resolve: f(self.clash_resolve, other.clash_resolve),
            chain_too_long: f(self.chain_too_long, other.chain_too_long),
        }
    }

    /// What the counters grew by since `earlier`. The kernel keeps them in 32
    /// bits, so each difference is taken modulo 2^32.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        self.zip(earlier, |now, then| u64::from((now as u32).wrapping_sub(then as u32)))
    }

    /// The sum over the processors.
    #[must_use]
    pub fn sum(cpus: &[CpuCounters]) -> Self {
        cpus.iter().fold(Self::default(), |sum, cpu| sum.plus(cpu.counters))
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, u64::wrapping_add)
    }
}

/// One CPU's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CpuCounters {
    /// The CPU's number.
    pub cpu: u32,
    /// Its counters.
    #[serde(flatten)]
    pub counters: ConntrackCounters,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mode is known while all sources say the same, and unknown from the first that does not.
    #[test]
    fn a_contradiction_leaves_the_mode_unknown() {
        let mut shown = NodeShown::default();
        shown.sign(ProxySource::Endpoint, "iptables".to_owned());
        shown.sign(ProxySource::Rules, "iptables".to_owned());
        assert_eq!(shown.proxy_mode.as_deref(), Some("iptables"));
        shown.sign(ProxySource::ConfigMap, "nftables".to_owned());
        assert_eq!((shown.proxy_mode, shown.proxy_signs.len()), (None, 3));
    }
}
