//! What is tried: which paths, from which node to which, in which order. Knows nothing of an API server.

use std::collections::BTreeSet;
use std::net::IpAddr;

use canary_record::names;
use canary_wire::segment::Family;

names! {
    /// A way from a client to a boom-server. `other` is the next node of the same wave.
    pub enum Path {
        /// A pod to the ClusterIP, backend on its own node.
        SameNode = "same-node",
        /// A pod to its own Service: masqueraded.
        Hairpin = "hairpin",
        /// A client on the host network to the ClusterIP, backend on its own node.
        HostNetwork = "host-network",
        /// A pod to its own node's NodePort, policy Cluster: masqueraded.
        NodePort = "node-port",
        /// A pod to its own node's NodePort, policy Local.
        NodePortLocal = "node-port-local",
        /// A pod to the ClusterIP, backend on another node.
        ClusterIp = "cluster-ip",
        /// Another node's pod to this node's NodePort, policy Cluster.
        NodePortFromOther = "node-port-from-other",
        /// Another node's pod to this node's NodePort, policy Local.
        NodePortLocalFromOther = "node-port-local-from-other",
        /// A client on the host network to the ClusterIP, backend on another node.
        HostNetworkToOther = "host-network-to-other",
        /// A pod to a server on another node's own network: masqueraded where the cluster does that
        /// to what leaves it.
        Egress = "egress",
        /// A pod to another pod's own address: not translated, so nothing can leak. The control.
        PodIp = "pod-ip",
    }
}

/// Which Service of the server's node a path goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// The ClusterIP.
    ClusterIp,
    /// A NodePort with `externalTrafficPolicy: Cluster`.
    NodePort,
    /// A NodePort with `externalTrafficPolicy: Local`.
    NodePortLocal,
    /// None: the pod's own address.
    Pod,
    /// None: the node's own address.
    Node,
}

/// Where a path's client runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// In a pod of its own.
    Pod,
    /// In the server's pod.
    ServerPod,
    /// On the node's network.
    Host,
}

impl Path {
    pub(crate) const fn front(self) -> Front {
        match self {
            Self::NodePort | Self::NodePortFromOther => Front::NodePort,
            Self::NodePortLocal | Self::NodePortLocalFromOther => Front::NodePortLocal,
            Self::PodIp => Front::Pod,
            Self::Egress => Front::Node,
            _ => Front::ClusterIp,
        }
    }

    pub(crate) const fn from(self) -> From {
        match self {
            Self::Hairpin => From::ServerPod,
            Self::HostNetwork | Self::HostNetworkToOther => From::Host,
            _ => From::Pod,
        }
    }

    /// True when client and server are on one node, so that no other node's drop can help: a
    /// verdict on that node alone.
    #[must_use]
    pub const fn alone(self) -> bool {
        matches!(
            self,
            Self::SameNode
                | Self::Hairpin
                | Self::HostNetwork
                | Self::NodePort
                | Self::NodePortLocal
        )
    }

    /// True when the node that translates, and so is judged, is the server's: the client's node
    /// sees a connection to a node's own address.
    pub(crate) const fn server_translates(self) -> bool {
        matches!(self, Self::NodePortFromOther | Self::NodePortLocalFromOther)
    }

    /// The port on which boom-server serves this path in this family: it tells the path
    /// wherever a masquerade hides the client's address.
    pub(crate) const fn port(self, family: Family) -> u16 {
        self.ports() + 2 * self as u16 + matches!(family, Family::Ipv6) as u16
    }

    /// The port of the boom-server that forges nothing, for clients that forge.
    pub(crate) const fn sink_port(self) -> u16 {
        self.ports() + 98
    }

    /// Where its ports begin: a node's own are below those of outgoing connections, and seldom taken.
    const fn ports(self) -> u16 {
        match self.front() {
            Front::Node => 29_000,
            _ => 9000,
        }
    }
}

/// A node as the API server describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The kernel's release.
    pub kernel: String,
    /// Its OS image.
    pub os_image: String,
    /// The kubelet's version.
    pub kubelet: String,
    /// Its internal addresses.
    pub addresses: Vec<IpAddr>,
    /// Since when it is, or is not, ready.
    pub ready_since: Option<String>,
    /// Why it cannot be tried; none when it can.
    pub unusable: Option<String>,
}

impl Node {
    /// Its internal address of a family.
    pub(crate) fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| Family::of(*a) == family)
    }
}

/// A node with its index in the whole run, which names its objects.
#[derive(Debug)]
pub struct Member {
    /// The index.
    pub index: usize,
    /// The node.
    pub node: Node,
}

/// At most `sample` nodes of each kernel, OS image and kubelet, in the order given; all without it. The
/// names of those left out come second.
pub(crate) fn sampled(nodes: Vec<Node>, sample: Option<usize>) -> (Vec<Node>, Vec<String>) {
    let Some(most) = sample else { return (nodes, Vec::new()) };
    let mut taken = std::collections::BTreeMap::<_, usize>::new();
    let (kept, left): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|n| {
        let n = taken.entry([&n.kernel, &n.os_image, &n.kubelet].map(String::clone)).or_default();
        *n += 1;
        *n <= most
    });
    (kept, left.into_iter().map(|n| n.name).collect())
}

/// Nodes in waves of at most `most`, of sizes that differ by one at most: so no wave of a
/// larger cluster holds one node alone, which would have no other.
pub(crate) fn waves<T>(nodes: Vec<T>, most: usize) -> Vec<Vec<T>> {
    let (total, count) = (nodes.len(), nodes.len().div_ceil(most.max(2)));
    let mut nodes = nodes.into_iter();
    (0..count)
        .map(|i| nodes.by_ref().take(total * (i + 1) / count - total * i / count).collect())
        .collect()
}

/// The node on which a client of `path` runs and the one on which its server runs, for a row of
/// the node with index `node` in a wave of `size`; none where the path needs another node and
/// there is none.
pub(crate) const fn ends(path: Path, node: usize, size: usize) -> Option<(usize, usize)> {
    if path.alone() {
        return Some((node, node));
    }
    if size < 2 {
        return None;
    }
    let (next, previous) = ((node + 1) % size, (node + size - 1) % size);
    Some(if path.server_translates() { (previous, node) } else { (node, next) })
}

/// The families of `addresses`, each once.
pub(crate) fn families(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Family> {
    addresses.into_iter().map(Family::of).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(name: &str, kernel: &str) -> Node {
        Node { name: name.to_owned(), kernel: kernel.to_owned(), ..Node::default() }
    }

    /// Every path has two ports of its own, below boom-server's admin port or far above.
    #[test]
    fn ports_are_distinct() {
        let all: BTreeSet<u16> =
            Path::ALL.iter().flat_map(|p| [p.port(Family::Ipv4), p.port(Family::Ipv6)]).collect();
        assert_eq!(all.len(), Path::ALL.len() * 2);
        assert!(all.iter().all(|p| (0..98).contains(&(p % 1000))));
    }

    /// A sample takes the first of each kind and names the rest.
    #[test]
    fn a_sample_is_taken_of_each_kind() {
        let nodes =
            ["a", "b", "c"].map(|n| node(n, "6.1")).into_iter().chain([node("old", "5.10")]);
        let (kept, left) = sampled(nodes.collect(), Some(2));
        assert_eq!(kept.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["a", "b", "old"]);
        assert_eq!(left, ["c"]);
    }

    /// A path that stays on a node passes that node alone, the others pass two.
    #[test]
    fn ends_follow_the_path() {
        for path in Path::ALL {
            let (client, server) = ends(*path, 0, 3).unwrap();
            assert_eq!(client == server, path.alone(), "{path}");
            assert_eq!(ends(*path, 0, 1).is_some(), path.alone(), "{path}");
        }
        assert_eq!(ends(Path::ClusterIp, 2, 3), Some((2, 0)));
        assert_eq!(ends(Path::NodePortFromOther, 0, 3), Some((2, 0)));
    }

    proptest! {
        /// Waves hold every node once, in order, none more than the limit and none alone.
        #[test]
        fn waves_are_even(n in 0usize..3000, most in 2usize..300) {
            let all = waves((0..n).collect(), most);
            prop_assert_eq!(all.concat(), (0..n).collect::<Vec<_>>());
            prop_assert!(all.iter().all(|w| w.len() <= most));
            prop_assert!(n < 2 || most < 3 || all.iter().all(|w| w.len() > 1));
        }
    }
}
