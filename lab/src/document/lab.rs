//! What the lab found: every cell of its matrix, with the evidence beside it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::timeline::Timeline;
use canary_record::names;
use canary_record::names::{Diagnosis, Forgery, OldSegments, ProbeEnd, UnknownReason};
use canary_record::result::Run;
use canary_wire::segment::Family;

names! {
    /// Who writes the Service rules, and in which language.
    pub enum FrontEnd {
        /// Loaded by nft, in the shape of kube-proxy's nftables mode.
        Nftables = "nftables",
        /// Loaded by iptables-restore, in the shape of kube-proxy's iptables mode.
        Iptables = "iptables",
    }
}

names! {
    /// The way from the client to the server pod.
    pub enum Path {
        /// Client pod to a ClusterIP, backend on another node.
        ClusterIp = "cluster-ip",
        /// Client pod to a ClusterIP, backend on the same node, routed.
        SameNode = "same-node",
        /// The same through one bridge, br_netfilter on.
        SameNodeBridge = "same-node-bridge",
        /// The same through one bridge, br_netfilter off.
        SameNodeBridgeNoNf = "same-node-bridge-no-nf",
        /// From outside to a node port, externalTrafficPolicy Cluster, backend on that node.
        NodePortCluster = "node-port-cluster",
        /// The same with the backend on another node.
        NodePortClusterRemote = "node-port-cluster-remote",
        /// From outside to a node port, externalTrafficPolicy Local.
        NodePortLocal = "node-port-local",
        /// A pod to its own Service.
        Hairpin = "hairpin",
        /// A host-network client, backend on its own node.
        HostNetwork = "host-network",
        /// A host-network client, backend on another node.
        HostNetworkRemote = "host-network-remote",
        /// A client pod whose node masquerades it, backend on another node.
        Snat = "snat",
        /// Client pod straight to the server pod's address: nothing is translated.
        PodIp = "pod-ip",
    }
}

names! {
    /// A protection that the lab can set.
    pub enum ProtectionKind {
        /// INVALID dropped in FORWARD, as kube-proxy does.
        ForwardDrop = "forward-drop",
        /// INVALID dropped in INPUT.
        InputDrop = "input-drop",
        /// INVALID dropped in PREROUTING (mangle).
        PreroutingDrop = "prerouting-drop",
        /// net.netfilter.nf_conntrack_tcp_be_liberal=1.
        Liberal = "liberal",
    }
}

names! {
    /// Which node carries a protection. A single-node path has the client's node alone.
    pub enum At {
        /// Every node.
        Both = "both",
        /// The node that translates for the client.
        Client = "client",
        /// The server pod's node.
        Server = "server",
    }
}

/// A protection and where it sits: `forward-drop`, `liberal@client`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Protection {
    /// What.
    pub kind: ProtectionKind,
    /// Where.
    pub at: At,
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            At::Both => f.pad(self.kind.as_str()),
            At::Client | At::Server => f.pad(&format!("{}@{}", self.kind, self.at)),
        }
    }
}

impl FromStr for Protection {
    type Err = canary_record::names::UnknownName;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (kind, at) = s.split_once('@').unwrap_or((s, "both"));
        Ok(Self { kind: kind.parse()?, at: at.parse()? })
    }
}

impl TryFrom<String> for Protection {
    type Error = canary_record::names::UnknownName;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Protection> for String {
    fn from(p: Protection) -> Self {
        p.to_string()
    }
}

impl JsonSchema for Protection {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Protection".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^(forward-drop|input-drop|prerouting-drop|liberal)(@(both|client|server))?$",
        })
    }
}

names! {
    /// What became of every forged segment of one kind in one cell.
    pub enum Seen {
        /// All reached the client's own socket.
        Delivered = "delivered",
        /// All leaked, no connection ended by it.
        Leaked = "leaked",
        /// All leaked and reset their connections.
        Kills = "kills",
        /// All dropped, the connections alive.
        Dropped = "dropped",
        /// All reached the client's own socket, and all these connections were reset later:
        /// the conntrack entry was poisoned.
        KillsLater = "kills-later",
        /// All reached the client's own socket, and all these connections hung afterwards.
        Hangs = "hangs",
        /// No connection came to be, so nothing was forged.
        NoConnection = "no-connection",
        /// Not all the same, or not all judged.
        Mixed = "mixed",
    }
}

names! {
    /// What a path under a protection does with INVALID segments, as a row of
    /// the table of forgeries and outcomes.
    pub enum Profile {
        /// They leak, and reset connections.
        Unprotected = "unprotected",
        /// be_liberal alone: those with bad flags still leak.
        LiberalOnly = "liberal-only",
        /// They are dropped.
        Dropped = "dropped",
        /// Translated where be_liberal can, dropped otherwise.
        LiberalAndDropped = "liberal-and-dropped",
        /// Nothing is translated: every segment arrives as it is.
        NotTranslated = "not-translated",
        /// No connection can be made at all.
        NoConnection = "no-connection",
    }
}

names! {
    /// How an observation compares with its expectation.
    pub enum Judgement {
        /// As the scenario expects, all evidence agreeing.
        AsExpected = "as-expected",
        /// Proved, and not as expected.
        Differs = "differs",
        /// Nothing was proved; the reasons say why.
        Inconclusive = "inconclusive",
        /// Not run here; the reasons say why and what would mend it.
        Skipped = "skipped",
    }
}

impl Judgement {
    /// The worse of two: differs, inconclusive, skipped, as expected.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        let rank = |j| match j {
            Self::Differs => 0,
            Self::Inconclusive => 1,
            Self::Skipped => 2,
            Self::AsExpected => 3,
        };
        if rank(self) <= rank(other) { self } else { other }
    }
}

/// The document that `conntrack-lab run` writes to results.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LabResult {
    /// [`canary_record::result::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how.
    pub run: Run,
    /// The worst of all scenarios; inconclusive without a positive control.
    pub judgement: Judgement,
    /// Why, most important first; also what weakens the judgement.
    pub reasons: Vec<String>,
    /// The machine.
    pub environment: Environment,
    /// Shows that this run could have found the fault.
    pub positive_control: PositiveControl,
    /// In the order that they were run.
    pub scenarios: Vec<ScenarioResult>,
}

/// What the run depended on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// Versions as the tools themselves give them, by name.
    pub tools: BTreeMap<String, String>,
    /// True in a user namespace of the lab's own, false as root of the host.
    pub user_namespace: bool,
    /// Processors that this process may use.
    pub cpus: u64,
    /// nf_conntrack_max, which every network namespace shares.
    pub conntrack_max: Option<u64>,
    /// The kernel's generation by what it did here with segments below the window.
    pub old_segments: Option<OldSegments>,
}

/// The unprotected ClusterIP cells, without whose resets no run proves anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PositiveControl {
    /// True when every such cell reset every connection that above-window was forged on.
    pub held: bool,
    /// above-window segments forged on unprotected ClusterIP paths.
    pub forged: u64,
    /// Connections that they reset.
    pub killed: u64,
}

/// One scenario, run once or several times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScenarioResult {
    /// Its name, as `conntrack-lab list` shows it.
    pub name: String,
    /// One line on what it is.
    pub title: String,
    /// Why its expectation should hold.
    pub why: String,
    /// Where that is known from.
    pub source: String,
    /// The worst of its cells.
    pub judgement: Judgement,
    /// Why it was skipped or could not be judged.
    pub reasons: Vec<String>,
    /// Its cells, each repetition by itself.
    pub cells: Vec<CellResult>,
    /// What to type as root to build the same by hand.
    pub commands: Vec<CommandList>,
    /// What it showed over time, where the scenario has steps.
    #[serde(default)]
    pub timeline: Option<Timeline>,
}

/// Commands to repeat a set-up, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandList {
    /// What they set up.
    pub title: String,
    /// Shell commands.
    pub lines: Vec<String>,
}

/// One path under one set of protections: one run of boom-server and load-client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CellResult {
    /// The cell's files are under `cells/ID/`.
    pub id: String,
    /// 1 for the first time.
    pub repetition: u32,
    /// The way from client to server.
    pub path: Path,
    /// IP family.
    pub family: Family,
    /// Whose rules.
    pub front_end: FrontEnd,
    /// What protects; empty for none.
    pub protections: Vec<Protection>,
    /// Observation against expectation.
    pub judgement: Judgement,
    /// Why, where it is not as expected.
    pub reasons: Vec<String>,
    /// The row of the table that the observations make, if they make one.
    pub profile: Option<Profile>,
    /// What it means, in a sentence.
    pub meaning: String,
    /// What to do, in a sentence; empty where nothing needs doing.
    pub advice: String,
    /// By forgery, in the scenario's order.
    pub forgeries: Vec<ForgeryResult>,
    /// boom-server's own diagnosis of this path.
    pub boom_diagnosis: Option<Diagnosis>,
    /// How load-client's connections ended.
    pub client: BTreeMap<ProbeEnd, u64>,
    /// Segments that boom-server's raw sockets lost.
    pub sniffer_dropped: u64,
    /// What each node was set to and counted meanwhile.
    pub nodes: Vec<NodeEvidence>,
    /// RSTs in a capture at the server pod that answer a forged segment, by forgery:
    /// counted by another reader than boom-server. Absent without a capture.
    pub captured_resets: Option<BTreeMap<Forgery, u64>>,
    /// Captures kept.
    pub captures: Vec<Capture>,
    /// How long the cell took.
    pub seconds: f64,
}

/// One kind of forged segment in one cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForgeryResult {
    /// What was forged.
    pub forgery: Forgery,
    /// What should become of it on this kernel; absent where the scenario says nothing.
    pub expected: Option<Seen>,
    /// What became of it.
    pub seen: Seen,
    /// Segments forged.
    pub forged: u64,
    /// Leaked, killed or not.
    pub leaked: u64,
    /// Leaked, and the connection reset.
    pub killed: u64,
    /// Delivered.
    pub delivered: u64,
    /// Dropped.
    pub dropped: u64,
    /// Not proved, by reason.
    pub unknown: BTreeMap<UnknownReason, u64>,
}

/// What a node was set to, as read back, and what it counted during the cell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeEvidence {
    /// The node's name in the topology.
    pub node: String,
    /// nf_conntrack_tcp_be_liberal, read back.
    pub be_liberal: bool,
    /// Packets that each drop rule matched, by `table/chain`.
    pub drop_rules: BTreeMap<String, u64>,
    /// Packets that the DNAT rule matched: one for each new connection.
    pub dnat: u64,
    /// Differences of /proc/net/stat/nf_conntrack, summed over the processors.
    pub conntrack: BTreeMap<String, u64>,
}

/// A packet capture that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capture {
    /// The forgery whose connection it shows; absent for a whole cell.
    pub forgery: Option<Forgery>,
    /// The host it was taken in.
    pub host: String,
    /// The file, relative to results.json.
    pub file: String,
    /// Packets in it.
    pub packets: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A protection is written as it is read, and without a node means both.
    #[test]
    fn protections_round_trip() {
        for text in ["forward-drop", "liberal@client", "prerouting-drop@server"] {
            assert_eq!(text.parse::<Protection>().unwrap().to_string(), text);
        }
        assert_eq!("liberal@both".parse::<Protection>().unwrap().to_string(), "liberal");
        assert!("liberal@moon".parse::<Protection>().is_err());
        assert!("nothing".parse::<Protection>().is_err());
    }

    /// A difference outweighs everything, doubt outweighs success.
    #[test]
    fn the_worst_judgement_wins() {
        use Judgement::{AsExpected, Differs, Inconclusive, Skipped};
        assert_eq!(AsExpected.worse(Inconclusive), Inconclusive);
        assert_eq!(Differs.worse(Inconclusive), Differs);
        assert_eq!(Skipped.worse(AsExpected), Skipped);
    }
}
