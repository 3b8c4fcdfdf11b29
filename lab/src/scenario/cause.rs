//! Other causes of resets and hangs, so that nobody takes them for issue #74839, and the rules of
//! nodes that are not kube-proxy's: steps that connections go through, and what should be seen.

mod host;
mod mend;
mod stand;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::document::lab::{At, Path, Protection, ProtectionKind, Protections, ProxyMode, Seen};
use canary_record::names::{Forgery, ProbeEnd};
use canary_record::result::witness;
use canary_testbed::topology::{POD_PORT, Topology};
use canary_wire::segment::Family;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Checked;
pub(crate) use host::TIMEOUT;
pub use host::{BadNetwork, HOSTS, Host, Link, Need, Text};
use stand::Stand;
pub use step::{Step, Wait, Way};

/// Situations, each in hosts of its own.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cause {
    /// Connections in each case.
    #[serde(default = "twenty")]
    #[schemars(range(min = 1, max = 200))]
    pub connections: u32,
    /// What not every kernel has: without it the scenario is skipped.
    pub needs: Option<Need>,
    /// On which nodes a mend is tried: those of whom the situation is.
    #[serde(default)]
    pub mends_at: At,
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

/// Whose address the server sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    /// What it is, in a few words.
    pub title: String,
    /// Connections, where the case needs another number than the others.
    #[schemars(range(min = 1, max = 200))]
    pub connections: Option<u32>,
    /// The way from client to server.
    #[serde(default)]
    pub path: Path,
    /// IP family.
    #[serde(default)]
    pub family: Family,
    /// What translates for the Service.
    #[serde(default)]
    pub proxy_mode: ProxyMode,
    /// Endpoints of the Service, 1 or 2; each new entry takes one at random.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 2))]
    pub endpoints: u8,
    /// What the client's node does to the source address.
    #[serde(default)]
    pub masquerade: Masquerade,
    /// How long IPVS remembers a silent connection; by default 15 minutes.
    pub ipvs_timeout: Option<Wait>,
    /// The server pod's node has a link straight to the client pod, and sends it everything there.
    #[serde(default)]
    pub second_link: bool,
    /// A link that loses, doubles or reorders packets, or lets them wait.
    pub network: Option<BadNetwork>,
    /// How long the client waits for progress until it calls a connection hung; for what the server
    /// says of a whole upload, four times as long.
    #[serde(default = "patience")]
    pub patience: Wait,
    /// Whether the client's sockets have SO_KEEPALIVE: its `net.ipv4.tcp_keepalive_*` say when.
    #[serde(default)]
    pub keepalive: bool,
    /// The port that the server's program has. The Service's rules send to 9000.
    #[serde(default = "pod_port")]
    pub listen: u16,
    /// What protects. By default be_liberal on both nodes, under which nothing that is forged
    /// here leaks, so that every reset has another cause.
    #[serde(default = "liberal")]
    pub protections: Protections,
    /// What hosts have of their own in this case.
    #[serde(default, rename = "host")]
    pub hosts: Vec<Host>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// What should be seen in the end.
    pub expect: Expect,
}

/// The paths on which the pod beside the server pod can be an endpoint of the Service: what goes there
/// is routed, and enters node1 from a link.
pub(crate) const TWO_ENDPOINTS: [Path; 6] = [
    Path::ClusterIp,
    Path::Snat,
    Path::SameNode,
    Path::NodePortCluster,
    Path::NodePortClusterRemote,
    Path::NodePortLocal,
];

const fn one() -> u8 {
    1
}

const fn pod_port() -> u16 {
    POD_PORT
}

const fn patience() -> Wait {
    Wait(Duration::from_millis(2500))
}

fn liberal() -> Protections {
    [Protection { kind: ProtectionKind::Liberal, at: At::Both }].into_iter().collect()
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

impl JsonSchema for Ends {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Ends".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let end = generator.subschema_for::<ProbeEnd>();
        json_schema!({
            "description": "How connections end: each of these occurs, and no other.",
            "anyOf": [end, { "type": "array", "items": end, "minItems": 1 }],
        })
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|end| end.as_str()).collect();
        f.pad(&names.join(" and "))
    }
}

/// What should be seen.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Expect {
    /// How connections ended for the client; left out where a step has ended them.
    pub client: Option<Ends>,
    /// Whether the server's application saw each of them reset by what nobody forged.
    #[serde(default)]
    pub server_reset: bool,
    /// What is forged, by turns, and what should become of it.
    #[serde(default = "delivered")]
    pub forged: BTreeMap<Forgery, Seen>,
    /// What the kernel's own words name as the end of connections on the nodes: each of these,
    /// and nothing else. Left out, nobody listens.
    pub witness: Option<BTreeSet<witness::Cause>>,
}

impl Expect {
    /// Whether no connection should come to be.
    pub(crate) fn unconnected(&self) -> bool {
        self.forged.values().all(|seen| *seen == Seen::NoConnection)
    }
}

impl Checked for Cause {
    fn check(&self) -> Result<(), String> {
        if self.cases.is_empty() {
            return Err("case: name at least one".to_owned());
        }
        for (n, case) in self.cases.iter().enumerate() {
            self.check_case(n).map_err(|what| format!("case '{}': {what}", case.title))?;
        }
        for host in &self.hosts {
            // What no case at all passes does nothing.
            let passes = self.cases.iter().map(|case| case.passes(host));
            let passes = passes.reduce(Result::or).unwrap_or(Ok(()));
            passes.and_then(|()| host.check()).map_err(|what| format!("host: {what}"))?;
        }
        few(self.connections)
    }

    fn senseless_case(&self) -> Option<usize> {
        (0..self.cases.len()).find(|n| self.check_case(*n).is_err())
    }

    fn find_lines(&mut self, file: &str) {
        let of_cases = self.cases.iter_mut().flat_map(|case| {
            let changed = case.steps.iter_mut().filter_map(|step| match step {
                Step::Change(host) => Some(host),
                _ => None,
            });
            case.hosts.iter_mut().chain(changed)
        });
        self.hosts.iter_mut().chain(of_cases).for_each(|host| host.find(file));
    }
}

impl Cause {
    /// A case by itself, and beside those before it.
    fn check_case(&self, n: usize) -> Result<(), String> {
        let Some((case, before)) = self.cases.get(..=n).and_then(|cases| cases.split_last()) else {
            return Ok(());
        };
        if before.iter().any(|other| other.title == case.title) {
            return Err("title: a case before has it too: results are told by title".to_owned());
        }
        case.check()?;
        // Whom no path has as a host of its own cannot be given anything.
        self.hosts
            .iter()
            .try_for_each(|host| case.has(host))
            .map_err(|what| format!("host: {what}"))
    }

    /// What a kernel must have for every case.
    pub(crate) fn needed(&self) -> impl Iterator<Item = Need> {
        let ipvs = self.cases.iter().any(|c| c.proxy_mode == ProxyMode::Ipvs);
        let of_paths = self.cases.iter().filter_map(|c| Need::of(c.path));
        self.needs.into_iter().chain(ipvs.then_some(Need::Ipvs)).chain(of_paths)
    }

    /// Whether a case fills a table.
    pub(crate) fn fills(&self) -> bool {
        self.cases.iter().any(|c| c.steps.contains(&Step::FillTable))
    }

    pub(crate) fn connections(&self, case: &Case) -> u32 {
        case.connections.unwrap_or(self.connections)
    }
}

impl Case {
    /// The pods that have the server's program.
    pub(crate) fn servers(&self) -> &'static [&'static str] {
        let two = self.endpoints == 2 || self.steps.contains(&Step::MoveEndpoint);
        if two { &["server", "server2"] } else { &["server"] }
    }

    /// What it runs with, in a few words.
    #[must_use]
    pub fn setting(&self) -> String {
        let Self { path, family, proxy_mode, protections, .. } = self;
        let protections = if protections.is_empty() {
            "no protection".to_owned()
        } else {
            format!("protections: {protections:#}")
        };
        format!("{path}, {family}, {proxy_mode}, {protections}")
    }

    /// Whether its path translates no answer, as it expects.
    pub(crate) fn nothing_comes_back(&self) -> bool {
        self.path == Path::SameNodeBridgeNoNf && self.expect.unconnected()
    }

    /// Whether there is a host of that name to give something to.
    fn has(&self, host: &Host) -> Result<(), String> {
        let (name, path) = (&host.name, self.path);
        let client = Topology::new(path, "").client;
        if ["client", "outside"].contains(&name.as_str()) && name != client {
            return Err(format!(
                "name: '{name}' takes no part in path {path}, whose client is '{client}': name that"
            ));
        }
        Ok(())
    }

    /// Whether a packet of the path can come to a host.
    fn passes(&self, host: &Host) -> Result<(), String> {
        let path = self.path;
        match &*host.name {
            "node2" if !over_both_nodes(path) => Err(format!(
                "name: 'node2' takes no part in path {path}, which is all on node1: use node1, or {ACROSS}"
            )),
            "server2" if !self.leads_to_second() => Err(
                "name: 'server2' gets nothing before it is an endpoint: use endpoints = 2, or a step \
                 move-endpoint or replace-endpoint"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// Whether the pod beside the server pod comes to be one that the client's packets reach.
    fn leads_to_second(&self) -> bool {
        let leads = |step: &Step| matches!(step, Step::MoveEndpoint | Step::ReplaceEndpoint);
        self.endpoints == 2 || self.steps.iter().any(leads)
    }

    /// A witness that is made deaf proves no silence. What a host has from the beginning it sets right.
    fn check_heard(&self, host: &Host) -> Result<(), String> {
        const NEEDED: [&str; 2] =
            ["net.netfilter.nf_conntrack_log_invalid", "net.netfilter.nf_log."];
        let needed = |key: &&String| NEEDED.iter().any(|begin| key.starts_with(begin));
        match host.sysctls.keys().find(needed).filter(|_| self.expect.witness.is_some()) {
            Some(key) => Err(format!(
                "sysctls: '{key}': the witness hears nothing without it: leave it out, or expect's witness"
            )),
            None => Ok(()),
        }
    }

    fn check_host(&self, host: &Host) -> Result<(), String> {
        self.has(host)?;
        self.passes(host)?;
        host.check()
    }

    /// What is set where no packet of the path passes.
    fn check_nodes(&self) -> Result<(), String> {
        let path = self.path;
        if let Some(one) = twice(&self.protections) {
            return Err(format!("protections: '{one}' is there twice on a node: name each once"));
        }
        if over_both_nodes(path) {
            return Ok(());
        }
        if let Some(p) = self.protections.iter().find(|p| p.at == At::Server) {
            return Err(format!(
                "protections: '{p}' is of node2, which takes no part in path {path}: use @client, or {ACROSS}"
            ));
        }
        if self.steps.contains(&Step::BlackHole) {
            return Err(format!(
                "steps: 'black-hole' is of the link between the nodes, which path {path} does not use: \
                 use {ACROSS}"
            ));
        }
        match self.network {
            Some(network) if network.at == Link::Nodes => Err(format!(
                "network: at: 'nodes' is a link that path {path} does not use: use server, or {ACROSS}"
            )),
            _ => Ok(()),
        }
    }

    fn check(&self) -> Result<(), String> {
        self.connections.map_or(Ok(()), few)?;
        if !(1..=2).contains(&self.endpoints) {
            return Err("endpoints: use 1 or 2".to_owned());
        }
        let paths = || TWO_ENDPOINTS.map(|path| path.to_string()).join(", ");
        let two = TWO_ENDPOINTS.contains(&self.path);
        if self.endpoints == 2 && !two {
            return Err(format!("endpoints: 2 only with a path of {}", paths()));
        }
        if self.second_link && !matches!(self.path, Path::ClusterIp | Path::Snat | Path::PodIp) {
            return Err("second-link: only with path cluster-ip, snat or pod-ip".to_owned());
        }
        if self.patience.0 < Duration::from_millis(100) {
            return Err("patience: use 100ms or more".to_owned());
        }
        if self.listen == 0 {
            return Err("listen: use 1 to 65535".to_owned());
        }
        if self.expect.forged.is_empty() {
            return Err("expect: forged: name at least one forgery".to_owned());
        }
        shown(&self.expect.forged).map_err(|what| format!("expect: forged: {what}"))?;
        if self.expect.server_reset && self.expect.unconnected() {
            return Err(
                "expect: server-reset: nobody is reset where forged has no-connection: leave it out"
                    .to_owned(),
            );
        }
        self.check_nodes()?;
        if let Some(Wait(time)) = self.ipvs_timeout
            && (self.proxy_mode != ProxyMode::Ipvs || time.as_secs() == 0)
        {
            return Err("ipvs-timeout: use 1s or more, with proxy-mode ipvs".to_owned());
        }
        if let Some(network) = &self.network {
            network.check(self.path)?;
        }
        let moves = self.steps.contains(&Step::MoveEndpoint);
        if moves && self.endpoints == 2 {
            return Err("steps: 'move-endpoint' only with one endpoint".to_owned());
        }
        if moves && !two {
            return Err(format!("steps: 'move-endpoint' only with a path of {}", paths()));
        }
        let mut stand = Stand::None;
        for step in &self.steps {
            stand = stand.after(step).map_err(|what| format!("steps: {what}"))?;
            match step {
                Step::Change(host) => {
                    self.check_host(host)
                        .and_then(|()| self.check_heard(host))
                        .map_err(|what| format!("steps: change: {what}"))?;
                }
                Step::Forge(each) if each.is_empty() => {
                    return Err("steps: forge: name at least one forgery".to_owned());
                }
                Step::Forge(each) => {
                    shown(each).map_err(|what| format!("steps: forge: {what}"))?;
                    if each.values().any(|seen| *seen == Seen::NoConnection) {
                        return Err(
                            "steps: forge: no-connection: without connections of its own load-client \
                             forges nothing, which proves nothing: name what becomes of the segments"
                                .to_owned(),
                        );
                    }
                }
                Step::Expect(ends) if ends.0.is_empty() => {
                    return Err("steps: expect: name at least one end".to_owned());
                }
                _ => {}
            }
        }
        match (&self.expect.client, stand) {
            (_, Stand::None) => return Err("steps: connect once".to_owned()),
            (Some(_), Stand::Gone(by)) => {
                return Err(format!(
                    "expect: leave client out: after '{by}' no connection goes on"
                ));
            }
            (Some(ends), _) if ends.0.is_empty() => {
                return Err("expect: client: name at least one end".to_owned());
            }
            (None, Stand::Open { .. }) => {
                let ends =
                    ProbeEnd::ALL.iter().map(|end| end.as_str()).collect::<Vec<_>>().join(", ");
                return Err(format!(
                    "expect: name client, how its connections end, as client = \"survived\": {ends}"
                ));
            }
            _ => {}
        }
        let hosts = self.hosts.iter().try_for_each(|host| self.check_host(host));
        hosts.map_err(|what| format!("host: {what}"))
    }
}

/// As many as a case can have.
fn few(connections: u32) -> Result<(), String> {
    let few = (1..=200).contains(&connections);
    few.then_some(()).ok_or_else(|| "connections: use 1 to 200".to_owned())
}

/// What paths over both nodes are, to name in a mend.
const ACROSS: &str = "a path over both nodes, as cluster-ip";

/// Whether the server pod is on the other node than the client, or than the node that a client outside calls.
fn over_both_nodes(path: Path) -> bool {
    Topology::new(path, "").home == "node2"
}

/// What all segments of each kind can come to in one run; [`Seen::Mixed`] proves nothing.
pub(super) fn proves(each: &BTreeMap<Forgery, Seen>) -> Result<(), String> {
    let none = each.values().any(|seen| *seen == Seen::NoConnection);
    each.iter().try_for_each(|(forgery, seen)| match seen {
        Seen::Mixed => Err(format!(
            "{forgery}: '{seen}' proves nothing: name what all of them come to, as delivered or kills"
        )),
        Seen::NoConnection => Ok(()),
        _ if none => Err(format!(
            "{forgery}: '{seen}' of no segment: where one is no-connection nothing is forged: name \
             no-connection for all, or for none"
        )),
        Seen::KillsLater | Seen::Hangs if *forgery != Forgery::Overshoot => Err(format!(
            "{forgery}: '{seen}' is of an overshoot alone: name what becomes of the segment, as delivered \
             or dropped"
        )),
        _ => Ok(()),
    })
}

/// What becomes of segments in a case, where other things end connections too.
fn shown(each: &BTreeMap<Forgery, Seen>) -> Result<(), String> {
    proves(each)?;
    match each.iter().find(|(_, seen)| **seen == Seen::Hangs) {
        Some((forgery, seen)) => Err(format!(
            "{forgery}: '{seen}' is not told from other hangs here: name delivered, and client = \"hung\""
        )),
        None => Ok(()),
    }
}

/// A protection that one before it sets too, on one node at least.
pub(super) fn twice(protections: &Protections) -> Option<Protection> {
    let same = |a: &Protection, b: &Protection| {
        a.kind == b.kind && (a.at == b.at || [a.at, b.at].contains(&At::Both))
    };
    let before = |n: usize, b: &Protection| protections.iter().take(n).any(|a| same(a, b));
    protections.iter().enumerate().find(|(n, b)| before(*n, b)).map(|(_, b)| *b)
}
