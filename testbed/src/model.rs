//! What a testbed is described with: paths, protections, proxy modes, and what a node counted.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use canary_record::names;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

names! {
    /// Who writes the Service rules, and in which language.
    #[derive(Default)]
    pub enum ProxyMode {
        /// Loaded by nft, in the shape of kube-proxy's nftables mode.
        #[default]
        Nftables = "nftables",
        /// Loaded by iptables-restore, in the shape of kube-proxy's iptables mode.
        Iptables = "iptables",
        /// IPVS translates, and rules of nft masquerade and drop, as with kube-proxy's IPVS mode.
        Ipvs = "ipvs",
    }
}

names! {
    /// The way from the client to the server pod.
    #[derive(Default)]
    pub enum Path {
        /// Client pod to a ClusterIP, backend on another node.
        #[default]
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
    #[derive(Default)]
    pub enum At {
        /// Every node.
        #[default]
        Both = "both",
        /// The node that translates for the client.
        Client = "client",
        /// The server pod's node.
        Server = "server",
    }
}

/// A protection and where it sits: `forward-drop`, `liberal@client`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^(forward-drop|input-drop|prerouting-drop|liberal)(@(both|client|server))?$"))]
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
}
