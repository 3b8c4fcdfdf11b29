//! What a situation has of its own in its hosts and on its links, and what of that not every kernel has.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::document::lab::Path;
use canary_testbed::network::{Conditions, Share};
use canary_testbed::ruleset::ipvs;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::step::Wait;

/// What not every kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// The statement `synproxy` of nft.
    Synproxy,
    /// Flowtables of nft.
    Flowtable,
    /// IPVS.
    Ipvs,
    /// `net.netfilter.nf_conntrack_tcp_ignore_invalid_rst`.
    IgnoreInvalidRst,
    /// br_netfilter.
    Bridge,
}

impl Need {
    /// What a path needs.
    pub(crate) const fn of(path: Path) -> Option<Self> {
        match path {
            Path::SameNodeBridge | Path::SameNodeBridgeNoNf => Some(Self::Bridge),
            _ => None,
        }
    }

    /// A call that a kernel with it takes: the tool, its options, its input.
    pub(crate) const fn call(
        self,
    ) -> Option<(&'static str, &'static [&'static str], &'static str)> {
        Some(match self {
            Self::IgnoreInvalidRst | Self::Bridge => return None,
            Self::Synproxy => (
                "nft",
                &["--check", "-f", "-"],
                "table ip lab-need { chain input { type filter hook input priority 0; \
                 tcp dport 1 synproxy mss 1460 wscale 7; }; }",
            ),
            Self::Flowtable => (
                "nft",
                &["--check", "-f", "-"],
                "table ip lab-need { flowtable f { hook ingress priority 0; devices = { lo }; }; \
                 chain forward { type filter hook forward priority 0; flow add @f; }; }",
            ),
            Self::Ipvs => ("ipvsadm", &["--list", "--numeric"], ""),
        })
    }

    /// A setting that a kernel with it has.
    pub(crate) const fn setting(self) -> Option<&'static str> {
        match self {
            Self::Synproxy | Self::Flowtable => None,
            Self::Ipvs => Some(ipvs::SETTINGS[0]),
            Self::IgnoreInvalidRst => Some("net/netfilter/nf_conntrack_tcp_ignore_invalid_rst"),
            Self::Bridge => Some("net/bridge/bridge-nf-call-iptables"),
        }
    }

    /// What to say where it is missing.
    pub(crate) const fn missing(self) -> &'static str {
        match self {
            Self::Synproxy => "this kernel has no SYNPROXY for nft: modprobe nft_synproxy",
            Self::Flowtable => {
                "this kernel has no flowtables for nft: modprobe nft_flow_offload nf_flow_table_inet"
            }
            Self::Ipvs => {
                "no IPVS here: modprobe ip_vs ip_vs_rr, install the package ipvsadm, and run as root \
                 before Linux 6.10"
            }
            Self::IgnoreInvalidRst => {
                "this kernel has no nf_conntrack_tcp_ignore_invalid_rst: Linux 5.14 and later have"
            }
            Self::Bridge => "this kernel has no br_netfilter: modprobe br_netfilter",
        }
    }
}

pub(crate) const TIMEOUT: &str = "net.netfilter.nf_conntrack_tcp_timeout_";
pub(super) const BE_LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";
/// What they are where nobody has made them shorter (`tcp_timeouts[]`), in seconds.
const TIMEOUTS: [(&str, &str); 10] = [
    ("syn_sent", "120"),
    ("syn_recv", "60"),
    ("established", "432000"),
    ("fin_wait", "120"),
    ("close_wait", "3600"),
    ("last_ack", "30"),
    ("time_wait", "120"),
    ("close", "10"),
    ("max_retrans", "300"),
    ("unacknowledged", "300"),
];

/// The hosts that a case can have. `server2` stands beside the server pod; `outside`, the client of a
/// node port, is beyond the nodes.
pub const HOSTS: [&str; 6] = ["client", "node1", "node2", "server", "server2", "outside"];

/// What a host has of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Host {
    /// One of [`HOSTS`].
    #[serde(deserialize_with = "host_name")]
    #[schemars(extend("enum" = HOSTS))]
    pub name: String,
    /// Settings below `net.`, each read back after it is set.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>", extend("default" = {}))]
    pub sysctls: BTreeMap<String, Text>,
    /// Rules for `nft -f -`, beside those of the Service.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub nft: Option<Text>,
    /// Rules for `iptables-restore --noflush`, beside those of the Service.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub iptables: Option<Text>,
}

/// A text that the kernel or a tool gets, and where it stands in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// What is given.
    pub text: String,
    /// The value, in octets of the file.
    span: Range<usize>,
    /// The file's line where the value begins, from 1; none of what no file says.
    begins: Option<usize>,
    /// That of the text's first line, where each line of the text is one of the file.
    first: Option<usize>,
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let read = Spanned::<String>::deserialize(from)?;
        // TOML keeps the CR of a file from Windows, which nft takes for junk.
        let (span, text) = (read.span(), read.into_inner().replace("\r\n", "\n"));
        Ok(Self { text, span, ..Self::default() })
    }
}

impl Text {
    /// The file's line of a line of the text, both from 1; of the whole text without one.
    #[must_use]
    pub fn line(&self, of_text: Option<usize>) -> Option<usize> {
        let last = self.text.lines().count().max(1);
        let line = |first| Some(first + of_text?.clamp(1, last) - 1);
        self.first.and_then(line).or(self.begins)
    }

    /// Finds the lines in the file that it was read from.
    pub(super) fn find(&mut self, file: &str) {
        let before = file.get(..self.span.start).unwrap_or_default();
        let begins = before.matches('\n').count() + 1;
        self.begins = Some(begins);
        let value = file.get(self.span.clone()).unwrap_or_default();
        let inner =
            ["\"\"\"", "'''"].into_iter().find_map(|q| value.strip_prefix(q)?.strip_suffix(q));
        self.first = inner.and_then(|inner| {
            // TOML 1.0.0, "String": a newline right after the opening delimiter is trimmed.
            let trimmed = inner.strip_prefix("\r\n").or_else(|| inner.strip_prefix('\n'));
            // Escapes, and a backslash at a line's end, make other lines.
            let same = trimmed.unwrap_or(inner).lines().count() == self.text.lines().count();
            same.then_some(begins + usize::from(trimmed.is_some()))
        });
    }
}

fn host_name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    if HOSTS.contains(&name.as_str()) {
        return Ok(name);
    }
    Err(de::Error::unknown_variant(&name, &HOSTS))
}

/// What a link does to the packets of both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BadNetwork {
    /// Which link.
    pub at: Link,
    /// Packets lost, percent.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub lose: u32,
    /// Packets sent twice, percent.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub duplicate: u32,
    /// Packets that up to three later ones overtake, percent.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub reorder: u32,
    /// Each waits for up to this long; the order stays.
    pub jitter: Option<Wait>,
    /// The same seed has the same done to the packets with the same numbers.
    #[serde(default)]
    pub seed: u64,
}

/// A link of the hosts of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// Between the two nodes.
    Nodes,
    /// Between the client and its node.
    Client,
    /// Between the server pod and its node.
    Server,
}

impl BadNetwork {
    pub(crate) fn conditions(&self) -> Conditions {
        Conditions {
            seed: self.seed,
            lose: Share::percent(self.lose),
            duplicate: Share::percent(self.duplicate),
            reorder: Share::percent(self.reorder),
            within: 3,
            jitter: self.jitter.map_or(Duration::ZERO, |Wait(time)| time),
            truncate: Share::default(),
        }
    }

    pub(super) fn check(&self, path: Path) -> Result<(), String> {
        if self.lose.max(self.duplicate).max(self.reorder) > 100 {
            return Err("network: lose, duplicate, reorder: use 0 to 100".to_owned());
        }
        let waits = self.jitter.is_some_and(|Wait(time)| !time.is_zero());
        if [self.lose, self.duplicate, self.reorder] == [0; 3] && !waits {
            return Err(
                "network: it does nothing: give it lose, duplicate, reorder or jitter".to_owned()
            );
        }
        let on_node = matches!(path, Path::HostNetwork | Path::HostNetworkRemote | Path::Hairpin);
        if on_node && self.at == Link::Client {
            return Err("network: at: the client of this path has no link: use server".to_owned());
        }
        Ok(())
    }
}

impl Host {
    /// A node with sysctls alone.
    pub(super) fn set(
        node: &str,
        sysctls: impl IntoIterator<Item = (String, &'static str)>,
    ) -> Self {
        let text = |text: &str| Text { text: text.to_owned(), ..Text::default() };
        let sysctls = sysctls.into_iter().map(|(key, value)| (key, text(value))).collect();
        Self { name: node.to_owned(), sysctls, nft: None, iptables: None }
    }

    /// The kernel's defaults, and kube-proxy's for half-closed connections.
    pub(super) fn longer_timeouts(node: &str) -> Self {
        Self::set(node, TIMEOUTS.map(|(state, seconds)| (format!("{TIMEOUT}{state}"), seconds)))
    }

    /// Whether a rule of its own drops or rejects.
    #[must_use]
    pub fn drops(&self) -> bool {
        let words = |rules: &Text| {
            let mut words = rules.text.split(|c: char| !c.is_ascii_alphanumeric());
            words.any(|w| ["drop", "reject"].contains(&&*w.to_ascii_lowercase()))
        };
        self.rules().any(words)
    }

    /// Its rules, for either tool.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &Text> {
        self.nft.iter().chain(&self.iptables)
    }

    pub(super) fn find(&mut self, file: &str) {
        let rules = self.nft.iter_mut().chain(&mut self.iptables);
        self.sysctls.values_mut().chain(rules).for_each(|text| text.find(file));
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.sysctls.is_empty() && self.rules().next().is_none() {
            let name = &self.name;
            return Err(format!("name: '{name}' gets nothing: give it sysctls, nft or iptables"));
        }
        // Others are the machine's own, whatever namespace they are set in.
        let outside = |key: &&String| !key.starts_with("net.") || key.contains('/');
        match self.sysctls.keys().find(outside) {
            Some(key) => Err(format!("sysctls: '{key}': only keys that begin with net.")),
            None => Ok(()),
        }
    }
}
