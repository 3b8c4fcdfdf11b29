//! Other causes of resets and hangs, so that nobody takes them for issue #74839, and the rules of
//! nodes that are not kube-proxy's: steps that connections go through, and what should be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::document::lab::{
    At, Mend, Path, Protection, ProtectionKind, Protections, ProxyMode, Seen,
};
use canary_record::names::{Forgery, ProbeEnd};
use canary_record::result::witness;
use canary_runtime::cli::{duration, spell};
use canary_testbed::network::{Conditions, Share};
use canary_testbed::ruleset::ipvs;
use canary_testbed::topology::POD_PORT;
use canary_wire::segment::Family;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Checked;

/// Situations, each in hosts of its own.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cause {
    /// Connections in each case.
    #[serde(default = "twenty")]
    #[schemars(range(min = 1, max = 200))]
    pub connections: u32,
    /// Left to `run all`, or to who names it.
    #[serde(default)]
    pub extra: bool,
    /// What not every kernel has: without it the scenario is skipped.
    pub needs: Option<Need>,
    /// On which nodes a mend is tried: those of whom the situation is.
    #[serde(default = "both")]
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

const fn both() -> At {
    At::Both
}

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
}

impl Need {
    /// A call that a kernel with it takes: the tool, its options, its input.
    #[must_use]
    pub const fn call(self) -> Option<(&'static str, &'static [&'static str], &'static str)> {
        Some(match self {
            Self::IgnoreInvalidRst => return None,
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
    #[must_use]
    pub const fn setting(self) -> Option<&'static str> {
        match self {
            Self::Synproxy | Self::Flowtable => None,
            Self::Ipvs => Some(ipvs::SETTINGS[0]),
            Self::IgnoreInvalidRst => Some("net/netfilter/nf_conntrack_tcp_ignore_invalid_rst"),
        }
    }

    /// What to say where it is missing.
    #[must_use]
    pub const fn missing(self) -> &'static str {
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
        }
    }
}

/// What is done, to every connection of the case at once.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The client makes its connections; boom-server forges on each, and has its time to judge.
    Connect,
    /// A body that needs full-sized segments, asked for by the client, and every octet checked.
    Transfer(Way),
    /// The client asks for a small answer, which the server gives after this long.
    Ask(Wait),
    /// The answer that was asked for is read.
    Answer,
    /// The client sends FIN, and still reads.
    HalfClose,
    /// The client closes, and the server after it; an answer that has come and was not read stays
    /// unread.
    Close,
    /// The client is gone, and says nothing.
    Vanish,
    /// The client connects again, from the same ports.
    Reconnect,
    /// Nobody sends.
    Idle(Wait),
    /// The client's node forgets every entry.
    DeleteEntries,
    /// Waits until the client's node has no entry any more.
    LetExpire,
    /// The Service's endpoint is the pod beside the server pod from here on.
    MoveEndpoint,
    /// The server pod's address goes to another pod.
    ReplaceEndpoint,
    /// The server pod's node has no route to it any more.
    RemoveEndpoint,
    /// The link between the nodes takes smaller packets, and nobody says so.
    BlackHole,
    /// The client forges too, on as many connections of its own, and what should become of it.
    Forge(BTreeMap<Forgery, Seen>),
    /// A host gets settings or rules.
    Change(Host),
    /// How connections should have ended so far; one that goes on has survived.
    Expect(Ends),
}

/// The way of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// To the server.
    Up,
    /// To the client.
    Down,
    /// One after the other.
    Both,
}

impl Step {
    /// Whether it needs connections.
    const fn needs_connections(&self) -> bool {
        matches!(
            self,
            Self::Transfer(_)
                | Self::Ask(_)
                | Self::Answer
                | Self::HalfClose
                | Self::Close
                | Self::Vanish
                | Self::Expect(_)
                | Self::LetExpire
        )
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Transfer(Way::Up) => f.write_str("upload"),
            Self::Transfer(Way::Down) => f.write_str("download"),
            Self::Transfer(Way::Both) => f.write_str("upload and download"),
            Self::Ask(after) => write!(f, "ask, the server waits {after}"),
            Self::Answer => f.write_str("answer"),
            Self::HalfClose => f.write_str("half-close"),
            Self::Close => f.write_str("close"),
            Self::Vanish => f.write_str("vanish"),
            Self::Reconnect => f.write_str("reconnect"),
            Self::Idle(time) => write!(f, "idle {time}"),
            Self::DeleteEntries => f.write_str("delete-entries"),
            Self::LetExpire => f.write_str("let-expire"),
            Self::MoveEndpoint => f.write_str("move-endpoint"),
            Self::ReplaceEndpoint => f.write_str("replace-endpoint"),
            Self::RemoveEndpoint => f.write_str("remove-endpoint"),
            Self::BlackHole => f.write_str("black-hole"),
            Self::Forge(_) => f.write_str("forge"),
            Self::Change(host) => write!(f, "change {}", host.name),
            Self::Expect(ends) => write!(f, "expect {ends}"),
        }
    }
}

/// A time, written `500ms` or `2s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(pub Duration);

/// The longest wait in one step.
const LONGEST: Duration = Duration::from_secs(600);

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let time = duration(&text).map_err(de::Error::custom)?;
        if time > LONGEST {
            return Err(de::Error::custom(format!("'{text}' is too long: at most 10m")));
        }
        Ok(Self(time))
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&spell(self.0))
    }
}

impl JsonSchema for Wait {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Wait".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "500ms, 2s, 1m", "pattern": "^([0-9]+(ms|s|m))+$" })
    }
}

/// The hosts of every case. `server2` stands beside the server pod.
pub const HOSTS: [&str; 5] = ["client", "node1", "node2", "server", "server2"];

/// What a host has of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Host {
    /// One of [`HOSTS`].
    #[serde(deserialize_with = "host_name")]
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
    /// As the testbed has it.
    #[must_use]
    pub fn conditions(&self) -> Conditions {
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

    fn check(&self, path: Path) -> Result<(), String> {
        if self.lose.max(self.duplicate).max(self.reorder) > 100 {
            return Err("network: lose, duplicate, reorder: use 0 to 100".to_owned());
        }
        let on_node = matches!(path, Path::HostNetwork | Path::HostNetworkRemote | Path::Hairpin);
        if on_node && self.at == Link::Client {
            return Err("network: at: the client of this path has no link: use server".to_owned());
        }
        Ok(())
    }
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
    #[serde(default = "cluster_ip")]
    pub path: Path,
    /// IP family; ipv6 where no endpoint is chosen, moved, replaced or removed, and no source or route.
    #[serde(default = "ipv4")]
    pub family: Family,
    /// What translates for the Service.
    #[serde(default = "nftables")]
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

const fn cluster_ip() -> Path {
    Path::ClusterIp
}

const fn ipv4() -> Family {
    Family::Ipv4
}

const fn nftables() -> ProxyMode {
    ProxyMode::Nftables
}

const fn one() -> u8 {
    1
}

const fn pod_port() -> u16 {
    POD_PORT
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
    /// How connections ended for the client; left out where the client itself breaks them off.
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

impl Checked for Cause {
    fn check(&self) -> Result<(), String> {
        if self.cases.is_empty() {
            return Err("case: name at least one".to_owned());
        }
        let wrong = |n: u32| !(1..=200).contains(&n);
        let own = self.cases.iter().filter_map(|c| c.connections);
        if own.chain([self.connections]).any(wrong) {
            return Err("connections: use 1 to 200".to_owned());
        }
        for case in &self.cases {
            case.check().map_err(|what| format!("case '{}': {what}", case.title))?;
        }
        self.hosts.iter().try_for_each(Host::check)
    }
}

impl Cause {
    /// What a kernel must have for every case.
    pub fn needed(&self) -> impl Iterator<Item = Need> {
        let ipvs = self.cases.iter().any(|c| c.proxy_mode == ProxyMode::Ipvs);
        self.needs.into_iter().chain(ipvs.then_some(Need::Ipvs))
    }

    /// How many connections a case has.
    #[must_use]
    pub fn connections(&self, case: &Case) -> u32 {
        case.connections.unwrap_or(self.connections)
    }
}

impl Case {
    /// The pods that have the server's program.
    #[must_use]
    pub fn servers(&self) -> &'static [&'static str] {
        let two = self.endpoints == 2 || self.steps.contains(&Step::MoveEndpoint);
        if two { &["server", "server2"] } else { &["server"] }
    }

    /// The case under each mend that changes something about it, as it is first.
    #[must_use]
    pub fn under_mends(&self, at: At) -> Vec<(Mend, Self)> {
        Mend::ALL.iter().filter_map(|mend| Some((*mend, self.mended(*mend, at)?))).collect()
    }

    /// The case under a mend; none where the mend changes nothing about it.
    fn mended(&self, mend: Mend, at: At) -> Option<Self> {
        let mut case = self.clone();
        // boom-server's own segments, where they are what the case is about.
        let about_forged =
            |s: &Seen| matches!(s, Seen::Kills | Seen::Leaked | Seen::Rejected | Seen::Dropped);
        if !self.expect.forged.values().any(about_forged) {
            case.expect.forged = [(Forgery::Control, Seen::Delivered)].into();
            // What kept them harmless is not needed.
            if self.protections == liberal() {
                case.protections = Protections::default();
            }
        }
        case.expect.witness = None;
        let there = |kind| Protection { kind, at };
        let add = |kinds: &[ProtectionKind]| {
            case.protections.iter().copied().chain(kinds.iter().copied().map(there)).collect()
        };
        case.protections = match mend {
            Mend::AsItIs => return Some(case),
            Mend::Liberal => add(&[ProtectionKind::Liberal]),
            Mend::ForwardDrop => add(&[ProtectionKind::ForwardDrop]),
            Mend::InputDrop => add(&[ProtectionKind::InputDrop]),
            Mend::PreroutingDrop => add(&[ProtectionKind::PreroutingDrop]),
            Mend::LiberalAndDrops => add(&[
                ProtectionKind::Liberal,
                ProtectionKind::ForwardDrop,
                ProtectionKind::InputDrop,
            ]),
            Mend::NoDrop if !case.protections.drop() => return None,
            Mend::NoDrop => {
                let kept = |p: &Protection| p.kind == ProtectionKind::Liberal;
                case.protections.iter().copied().filter(kept).collect()
            }
            Mend::LongerTimeouts => {
                for step in case.steps.iter_mut().filter(|s| **s == Step::LetExpire) {
                    *step = Step::Idle(Wait(Duration::from_secs(2)));
                }
                case.hosts.extend(["node1", "node2"].map(longer_timeouts));
                case.protections
            }
            Mend::SymmetricRoute if !case.second_link => return None,
            Mend::SymmetricRoute => {
                case.second_link = false;
                case.protections
            }
        };
        Some(case)
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=2).contains(&self.endpoints) {
            return Err("endpoints: use 1 or 2".to_owned());
        }
        if self.endpoints == 2 && !matches!(self.path, Path::ClusterIp | Path::Snat) {
            return Err("endpoints: 2 only with path cluster-ip or snat".to_owned());
        }
        if self.second_link && !matches!(self.path, Path::ClusterIp | Path::Snat | Path::PodIp) {
            return Err("second-link: only with path cluster-ip, snat or pod-ip".to_owned());
        }
        if self.expect.forged.is_empty() {
            return Err("forged: name at least one forgery".to_owned());
        }
        if let Some(Wait(time)) = self.ipvs_timeout
            && (self.proxy_mode != ProxyMode::Ipvs || time.as_secs() == 0)
        {
            return Err("ipvs-timeout: use 1s or more, with proxy-mode ipvs".to_owned());
        }
        if let Some(network) = &self.network {
            network.check(self.path)?;
        }
        let of_ipv4 = |step: &Step| {
            matches!(step, Step::MoveEndpoint | Step::ReplaceEndpoint | Step::RemoveEndpoint)
        };
        if self.family == Family::Ipv6
            && (self.endpoints == 2
                || self.second_link
                || self.masquerade != Masquerade::None
                || self.steps.iter().any(of_ipv4))
        {
            return Err("family: ipv4 where an endpoint, a source or a route is chosen".to_owned());
        }
        let moves = self.steps.contains(&Step::MoveEndpoint);
        if moves && (self.endpoints == 2 || self.path != Path::ClusterIp) {
            return Err("steps: 'move-endpoint' only with path cluster-ip and one endpoint".into());
        }
        let (mut connected, mut asked, mut closed) = (false, false, false);
        for step in &self.steps {
            if step.needs_connections() && !connected {
                return Err(format!("steps: '{step}' before connect"));
            }
            match step {
                Step::Connect if connected => return Err("steps: connect once".to_owned()),
                Step::Connect => connected = true,
                Step::Ask(_) => asked = true,
                Step::Answer if !std::mem::take(&mut asked) => {
                    return Err("steps: 'answer' without ask".to_owned());
                }
                Step::Transfer(_) if asked => {
                    return Err("steps: answer what was asked before a transfer".to_owned());
                }
                Step::Close | Step::Vanish => closed = true,
                Step::Reconnect if !std::mem::take(&mut closed) => {
                    return Err("steps: 'reconnect' only after close or vanish".to_owned());
                }
                Step::Change(host) => host.check()?,
                Step::Forge(each) if each.is_empty() => {
                    return Err("steps: forge: name at least one forgery".to_owned());
                }
                Step::Expect(ends) if ends.0.is_empty() => {
                    return Err("steps: expect: name at least one end".to_owned());
                }
                _ => {}
            }
        }
        if !connected {
            return Err("steps: connect once".to_owned());
        }
        match &self.expect.client {
            Some(_) if closed => {
                return Err("expect: leave client out where the client itself closes".to_owned());
            }
            Some(ends) if ends.0.is_empty() => {
                return Err("client: name at least one end".to_owned());
            }
            None if !closed => return Err("expect: name client".to_owned()),
            _ => {}
        }
        self.hosts.iter().try_for_each(Host::check)
    }
}

/// The kernel's default for established connections, kube-proxy's for half-closed ones.
fn longer_timeouts(node: &str) -> Host {
    let timeouts = [("established", "432000"), ("close_wait", "3600")];
    let set = |(state, seconds): (&str, &str)| {
        (format!("net.netfilter.nf_conntrack_tcp_timeout_{state}"), seconds.to_owned())
    };
    let sysctls = timeouts.map(set).into();
    Host { name: node.to_owned(), sysctls, nft: None, iptables: None }
}

impl Host {
    fn check(&self) -> Result<(), String> {
        // Others are the machine's own, whatever namespace they are set in.
        let outside = |key: &&String| !key.starts_with("net.") || key.contains('/');
        match self.sysctls.keys().find(outside) {
            Some(key) => Err(format!("sysctls: '{key}': only keys that begin with net.")),
            None => Ok(()),
        }
    }
}
