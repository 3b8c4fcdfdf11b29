//! Other causes of resets and hangs, so that nobody takes them for issue
//! #74839: what is done to connections, and what it should lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::document::lab::{At, Protection, ProtectionKind, Protections, Seen};
use canary_record::names::{Forgery, ProbeEnd};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Checked;

/// One cause in several cases.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cause {
    /// Connections in each case.
    #[serde(default = "twenty")]
    pub connections: u32,
    /// What hosts have of their own in every case.
    #[serde(default, rename = "host")]
    pub hosts: Vec<Host>,
    /// What is done, and what it should lead to.
    #[serde(rename = "case")]
    pub cases: Vec<Case>,
}

const fn twenty() -> u32 {
    20
}

/// What connections do when something happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Idle, then the client sends first.
    Idle,
    /// The client has asked, the server answers later: the server sends first.
    SlowAnswer,
    /// A body that needs full-sized segments.
    Download,
    /// The client asks, and closes without having read the answer.
    CloseUnread,
}

/// What happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Nothing: the cause removed.
    Nothing,
    /// The client's node forgets every entry.
    DeleteEntries,
    /// The server pod's address goes to another pod.
    ReplaceEndpoint,
    /// The link between the nodes takes smaller packets, and nobody says so.
    BlackHole,
}

/// The hosts of every case. `server2` stands beside the server pod.
pub const HOSTS: [&str; 5] = ["client", "node1", "node2", "server", "server2"];

/// What a host has of its own, before any connection is made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Host {
    /// One of [`HOSTS`].
    pub name: String,
    /// Settings below `net.`, each read back after it is set.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Rules for `nft -f -`, beside those of the Service.
    #[serde(default)]
    pub nft: Option<String>,
    /// Rules for `iptables-restore --noflush`, beside those of the Service.
    #[serde(default)]
    pub iptables: Option<String>,
}

/// Whose address the server sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Masquerade {
    /// The client's.
    #[default]
    None,
    /// The node's, with the client's own port where it is free.
    Plain,
    /// The node's, with any port (`fully-random`).
    Random,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    /// What it is, in a few words.
    pub title: String,
    /// What the connections do.
    pub pattern: Pattern,
    /// What is done to them.
    pub action: Action,
    /// nf_conntrack_tcp_loose on the client's node.
    #[serde(default = "yes")]
    pub loose: bool,
    /// Endpoints of the Service, 1 or 2; each new entry takes one at random.
    #[serde(default = "one")]
    pub endpoints: u8,
    /// What the client's node does to the source address.
    #[serde(default)]
    pub masquerade: Masquerade,
    /// What protects. By default be_liberal on both nodes, under which nothing that is forged
    /// here leaks, so that every reset has another cause.
    #[serde(default = "liberal")]
    pub protections: Protections,
    /// What hosts have of their own in this case.
    #[serde(default, rename = "host")]
    pub hosts: Vec<Host>,
    /// What should be seen.
    pub expect: Expect,
}

const fn yes() -> bool {
    true
}

const fn one() -> u8 {
    1
}

fn liberal() -> Protections {
    [Protection { kind: ProtectionKind::Liberal, at: At::Both }].into()
}

fn delivered() -> BTreeMap<Forgery, Seen> {
    [Forgery::Control, Forgery::AboveWindow].map(|f| (f, Seen::Delivered)).into()
}

/// The ends that connections should have: each of these occurs, and no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends(pub BTreeSet<ProbeEnd>);

/// `"hung"` or `["reset", "survived"]`.
impl<'de> Deserialize<'de> for Ends {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Ends;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("how connections end, one name or several")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Ends, E> {
                ProbeEnd::deserialize(name.into_deserializer()).map(|end| Ends([end].into()))
            }
            fn visit_seq<S: SeqAccess<'de>>(self, names: S) -> Result<Ends, S::Error> {
                BTreeSet::deserialize(SeqAccessDeserializer::new(names)).map(Ends)
            }
        }
        from.deserialize_any(Either)
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|end| end.as_str()).collect();
        f.pad(&names.join(" and "))
    }
}

/// What should be seen.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Expect {
    /// How they ended for the client; nothing where the client itself broke them off.
    pub client: Option<Ends>,
    /// Whether the server's application saw each of them reset by what nobody forged.
    pub server_reset: bool,
    /// Whether entries were there and then gone.
    #[serde(default)]
    pub entries_deleted: bool,
    /// What is forged, by turns, and what should become of it.
    #[serde(default = "delivered")]
    pub forged: BTreeMap<Forgery, Seen>,
}

impl Checked for Cause {
    fn check(&self) -> Result<(), String> {
        if self.cases.is_empty() {
            return Err("case: name at least one".to_owned());
        }
        if !(1..=200).contains(&self.connections) {
            return Err("connections: use 1 to 200".to_owned());
        }
        let breaks_off = |c: &Case| c.pattern == Pattern::CloseUnread && c.expect.client.is_some();
        if self.cases.iter().any(breaks_off) {
            return Err("expect: leave client out where the client itself breaks off".to_owned());
        }
        for case in &self.cases {
            if !(1..=2).contains(&case.endpoints) {
                return Err("endpoints: use 1 or 2".to_owned());
            }
            if case.expect.forged.is_empty() {
                return Err("forged: name at least one forgery".to_owned());
            }
            if case.expect.client.as_ref().is_some_and(|ends| ends.0.is_empty()) {
                return Err("client: name at least one end".to_owned());
            }
        }
        self.hosts.iter().chain(self.cases.iter().flat_map(|c| &c.hosts)).try_for_each(Host::check)
    }
}

impl Host {
    fn check(&self) -> Result<(), String> {
        if !HOSTS.contains(&self.name.as_str()) {
            return Err(format!("host: no host '{}': use {}", self.name, HOSTS.join(", ")));
        }
        // Others are the machine's own, whatever namespace they are set in.
        let outside = |key: &&String| !key.starts_with("net.") || key.contains('/');
        match self.sysctls.keys().find(outside) {
            Some(key) => Err(format!("sysctls: '{key}': only keys that begin with net.")),
            None => Ok(()),
        }
    }
}
