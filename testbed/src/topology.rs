//! The hosts and links of a path, as a list of commands: a pure function.
//!
//! ```text
//!  client pod ── node1 ──(underlay)── node2 ── server pod
//!                  └── outside, or a server pod on node1, as the path needs
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::{At, Path, Protection, ProtectionKind};
use canary_wire::segment::Family;

/// The port that the Service has.
pub const SERVICE_PORT: u16 = 80;
/// The port that the server pod listens on.
pub const POD_PORT: u16 = 9000;
/// The Service's node port.
pub const NODE_PORT: u16 = 30900;

/// An address of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addr {
    /// IPv4, of 198.18.0.0/15 (RFC 2544).
    pub v4: Ipv4Addr,
    /// IPv6, of fd00::/8 (RFC 4193).
    pub v6: Ipv6Addr,
}

impl Addr {
    /// The address of a host in one of the networks.
    #[must_use]
    pub const fn new(net: u8, host: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(198, 18, net, host),
            // The same digits, read as decimal: fd00:65::20.
            v6: Ipv6Addr::new(0xfd00, decimal_digits(net), 0, 0, 0, 0, 0, decimal_digits(host)),
        }
    }

    /// The address of one family.
    #[must_use]
    pub const fn of(self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => IpAddr::V4(self.v4),
            Family::Ipv6 => IpAddr::V6(self.v6),
        }
    }
}

/// 65 as 0x65, so that both families read alike.
const fn decimal_digits(n: u8) -> u16 {
    let n = n as u16;
    n / 100 * 256 + n / 10 % 10 * 16 + n % 10
}

const UNDERLAY: u8 = 0;
const PODS1: u8 = 65;
const PODS2: u8 = 66;
const OUTSIDE: u8 = 200;
/// The host beyond the nodes, which connects to a node port.
const OUTSIDE_HOST: &str = "outside";

/// Where the Service rules send connections, and from whom they masquerade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The ClusterIP.
    pub vip: Addr,
    /// The server pod.
    pub pod: Addr,
    /// Masquerade every client, as kube-proxy --masquerade-all does.
    pub masquerade_all: bool,
    /// externalTrafficPolicy: Local.
    pub local_only: bool,
}

/// One step of setting up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `ip netns add`
    Add(String),
    /// `ip -n HOST ARGS`
    Ip(String, String),
    /// `sysctl -w KEY=VALUE` in a host; the key as a path below /proc/sys.
    Sysctl(String, &'static str, &'static str),
}

impl Step {
    /// As a shell command for root.
    #[must_use]
    pub fn shell(&self) -> String {
        match self {
            Self::Add(host) => format!("ip netns add {host}"),
            Self::Ip(host, args) => format!("ip -n {host} {args}"),
            Self::Sysctl(host, key, value) => {
                format!("ip netns exec {host} sysctl -qw {key}={value}")
            }
        }
    }
}

/// Hosts, the way to build them, and who talks to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    prefix: String,
    /// Where load-client runs.
    pub client: &'static str,
    /// Where boom-server runs.
    pub server: &'static str,
    /// The node where the server pod is.
    pub home: &'static str,
    target: (Addr, u16),
    /// True when conntrack translates on this path.
    pub translated: bool,
    /// Every node, the client's first.
    nodes: &'static [&'static str],
    /// The two hosts whose link, `eth0` of each, a bad network can take the place of.
    link: Option<[&'static str; 2]>,
    /// Every host, without the prefix.
    pub hosts: Vec<&'static str>,
    /// How to build it.
    pub steps: Vec<Step>,
    /// The Service's rules on every node.
    pub service: Service,
}

/// How pods are attached to their node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cni {
    Routed,
    Bridge { nf: bool },
}

impl Topology {
    /// The topology of `path`. `prefix` tells the hosts of several apart.
    #[must_use]
    pub fn new(path: Path, prefix: &str) -> Self {
        const VIP: Addr = Addr {
            v4: Ipv4Addr::new(198, 19, 0, 10),
            v6: Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, 0x10),
        };
        let (vip, node_port) = ((VIP, SERVICE_PORT), (node(1), NODE_PORT));
        let pod = |net| (Addr::new(net, 20), POD_PORT);
        // The server's node and network, who connects, and to what.
        let (server_node, server_net, client, target) = match path {
            Path::ClusterIp | Path::Snat => ("node2", PODS2, "client", vip),
            Path::SameNode | Path::SameNodeBridge | Path::SameNodeBridgeNoNf => {
                ("node1", PODS1, "client", vip)
            }
            Path::NodePortCluster | Path::NodePortLocal => {
                ("node1", PODS1, OUTSIDE_HOST, node_port)
            }
            Path::NodePortClusterRemote => ("node2", PODS2, OUTSIDE_HOST, node_port),
            Path::Hairpin => ("node1", PODS1, "server", vip),
            Path::HostNetwork => ("node1", PODS1, "node1", vip),
            Path::HostNetworkRemote => ("node2", PODS2, "node1", vip),
            Path::PodIp => ("node2", PODS2, "client", pod(PODS2)),
        };
        let cni = match path {
            Path::SameNodeBridge => Cni::Bridge { nf: true },
            Path::SameNodeBridgeNoNf => Cni::Bridge { nf: false },
            _ => Cni::Routed,
        };
        let mut hosts = vec!["node1", "node2", "client", "server"];
        let outside = client == OUTSIDE_HOST;
        if outside {
            hosts.push(OUTSIDE_HOST);
        }
        let (pod, _) = pod(server_net);
        let service = Service {
            vip: VIP,
            pod,
            masquerade_all: path == Path::Snat,
            local_only: path == Path::NodePortLocal,
        };
        let mut b = Builder { prefix, steps: Vec::new() };
        b.hosts(&hosts);
        b.underlay(service.vip);
        if let Cni::Bridge { nf } = cni {
            b.bridge("node1", PODS1, nf);
        }
        b.pod("node1", "client", Addr::new(PODS1, 10), PODS1, cni);
        b.pod(server_node, "server", pod, server_net, cni);
        if outside {
            b.pod("node1", OUTSIDE_HOST, Addr::new(OUTSIDE, 9), OUTSIDE, Cni::Routed);
            b.ip("node2", &format!("route add {} via {}", cidr4(OUTSIDE), node(1).v4));
            b.ip("node2", &format!("route add {} via {}", cidr6(OUTSIDE), node(1).v6));
        }
        Self {
            prefix: prefix.to_owned(),
            client,
            server: "server",
            home: server_node,
            target,
            translated: path != Path::PodIp,
            nodes: &["node1", "node2"],
            link: Some(["node1", "node2"]),
            hosts,
            steps: b.steps,
            service,
        }
    }

    /// One host with its loopback alone: client and server in one.
    #[must_use]
    pub fn single(prefix: &str) -> Self {
        let mut b = Builder { prefix, steps: Vec::new() };
        b.hosts(&["host"]);
        let own = Addr { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };
        Self::without_nodes(prefix, &["host"], b.steps, own)
    }

    /// A client and a server, joined by one link: nothing between them tracks or translates.
    #[must_use]
    pub fn pair(prefix: &str) -> Self {
        let mut b = Builder { prefix, steps: Vec::new() };
        b.hosts(&["client", "server"]);
        let peer = format!("{prefix}server");
        b.ip("client", &format!("link add eth0 type veth peer name eth0 netns {peer}"));
        let addresses = [("client", Addr::new(PODS1, 10)), ("server", Addr::new(PODS1, 20))];
        for (host, own) in addresses {
            b.up(host, "eth0", own, NET);
        }
        let mut pair = Self::without_nodes(prefix, &["client", "server"], b.steps, addresses[1].1);
        pair.link = Some(["client", "server"]);
        pair
    }

    fn without_nodes(prefix: &str, hosts: &[&'static str], steps: Vec<Step>, server: Addr) -> Self {
        Self {
            prefix: prefix.to_owned(),
            client: hosts[0],
            server: hosts[hosts.len() - 1],
            home: hosts[hosts.len() - 1],
            target: (server, POD_PORT),
            translated: false,
            nodes: &[],
            link: None,
            hosts: hosts.to_vec(),
            steps,
            service: Service { vip: server, pod: server, masquerade_all: false, local_only: false },
        }
    }

    /// The same with the host `network` in the link between the two nodes, or between client and
    /// server where there are none: nothing passes but what [`crate::network`] carries from its
    /// `left` to its `right` and back.
    #[must_use]
    pub fn through_a_network(self) -> Self {
        let Some([left, right]) = self.link else { return self };
        self.with_network_in((left, "eth0"), right)
    }

    /// The same with the host `network` in the link of that name from `left` to `eth0` of `right`.
    #[must_use]
    pub fn with_network_in(
        mut self,
        (left, link): (&'static str, &str),
        right: &'static str,
    ) -> Self {
        const NETWORK: &str = "network";
        self.link = None;
        let joined = format!("link add {link} type veth peer name eth0 netns {}", self.full(right));
        let (near, full) = (Step::Ip(self.full(left), joined), self.full(NETWORK));
        let ip = |host: &str, args: String| Step::Ip(self.full(host), args);
        let mut steps = vec![
            Step::Add(full.clone()),
            // Nothing of its own goes out on either side.
            Step::Sysctl(full, "net/ipv6/conf/all/disable_ipv6", "1"),
        ];
        for step in &self.steps {
            if *step != near {
                steps.push(step.clone());
                continue;
            }
            for (side, host, link) in [("left", left, link), ("right", right, "eth0")] {
                let peer = self.full(host);
                steps.push(ip(
                    NETWORK,
                    format!("link add {side} type veth peer name {link} netns {peer}"),
                ));
                steps.push(ip(NETWORK, format!("link set {side} up")));
                // One segment a frame, as on a wire.
                steps.push(ip(host, format!("link set {link} gso_max_segs 1")));
            }
        }
        self.hosts.push(NETWORK);
        self.steps = steps;
        self
    }

    /// The full name of a host: its network namespace.
    #[must_use]
    pub fn full(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    /// Whether the client is beyond the nodes, and calls a node port.
    #[must_use]
    pub fn from_outside(&self) -> bool {
        self.client == OUTSIDE_HOST
    }

    /// What load-client connects to.
    #[must_use]
    pub fn target(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.target.0.of(family), self.target.1)
    }

    /// What `protections` set on a node.
    pub(crate) fn protections(&self, node: &str, of: &[Protection]) -> BTreeSet<ProtectionKind> {
        of.iter().filter(|p| self.nodes(p.at).contains(&node)).map(|p| p.kind).collect()
    }

    /// The nodes on the path that carry a protection set `at`.
    #[must_use]
    pub fn nodes(&self, at: At) -> &'static [&'static str] {
        match (at, self.nodes) {
            (At::Client, [client, ..]) => std::slice::from_ref(client),
            (At::Server, [.., server]) => std::slice::from_ref(server),
            (_, all) => all,
        }
    }
}

/// A node's address on the underlay.
#[must_use]
pub const fn node(n: u8) -> Addr {
    Addr::new(UNDERLAY, 10 + n)
}

/// The range of all pods, which Service rules do not masquerade.
pub(crate) const fn cluster_cidr(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "198.18.64.0/18",
        Family::Ipv6 => "fd00:60::/28",
    }
}

fn cidr4(net: u8) -> String {
    format!("{}/24", Addr::new(net, 0).v4)
}

fn cidr6(net: u8) -> String {
    format!("{}/64", Addr::new(net, 0).v6)
}

/// The way out of the cluster, on the underlay; there is no such host.
const GATEWAY: Addr = Addr::new(UNDERLAY, 1);

/// Bits of a network's address in each family.
const NET: (u8, u8) = (24, 64);
/// Of a single address.
const ALONE: (u8, u8) = (32, 128);

struct Builder<'a> {
    prefix: &'a str,
    steps: Vec<Step>,
}

impl Builder<'_> {
    fn ip(&mut self, host: &str, args: &str) {
        self.steps.push(Step::Ip(format!("{}{host}", self.prefix), args.to_owned()));
    }

    /// Gives a link its addresses, with so many bits of network in each family, and sets it up.
    fn up(&mut self, host: &str, link: &str, own: Addr, (four, six): (u8, u8)) {
        self.ip(host, &format!("addr add {}/{four} dev {link}", own.v4));
        self.ip(host, &format!("addr add {}/{six} dev {link} nodad", own.v6));
        self.ip(host, &format!("link set {link} up"));
    }

    fn sysctl(&mut self, host: &str, key: &'static str, value: &'static str) {
        self.steps.push(Step::Sysctl(format!("{}{host}", self.prefix), key, value));
    }

    fn hosts(&mut self, hosts: &[&str]) {
        for host in hosts {
            self.steps.push(Step::Add(format!("{}{host}", self.prefix)));
            // Before any link is there: new links take "default" over.
            for (key, value) in [
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_ra", "0"),
                ("net/ipv6/conf/default/router_solicitations", "0"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
            ] {
                self.sysctl(host, key, value);
            }
            self.ip(host, "link set lo up");
        }
        for host in hosts.iter().filter(|h| h.starts_with("node")) {
            self.sysctl(host, "net/ipv4/ip_forward", "1");
            self.sysctl(host, "net/ipv6/conf/all/forwarding", "1");
        }
    }

    fn underlay(&mut self, vip: Addr) {
        let peer = format!("{}node2", self.prefix);
        self.ip("node1", &format!("link add eth0 type veth peer name eth0 netns {peer}"));
        for (n, other, pods) in [(1, 2, PODS2), (2, 1, PODS1)] {
            let host = if n == 1 { "node1" } else { "node2" };
            let via = node(other);
            self.up(host, "eth0", node(n), NET);
            self.ip(host, &format!("route add {} via {}", cidr4(pods), via.v4));
            self.ip(host, &format!("route add {} via {}", cidr6(pods), via.v6));
            // A host's own connections to a Service need a route before they are translated.
            self.ip(host, &format!("route add default via {}", via.v4));
            self.ip(host, &format!("route add ::/0 via {}", via.v6));
            // What comes from elsewhere and is not translated goes out to the cluster's gateway, whose
            // link-layer address no host has: beyond it nobody knows a Service's address.
            for (six, vip, gateway, all) in [
                ("", vip.v4.to_string(), GATEWAY.v4.to_string(), "default"),
                ("-6 ", vip.v6.to_string(), GATEWAY.v6.to_string(), "::/0"),
            ] {
                let beyond = "lladdr 02:00:00:00:00:01 nud permanent dev eth0";
                self.ip(host, &format!("{six}neigh add {gateway} {beyond}"));
                self.ip(host, &format!("{six}route add {all} via {gateway} dev eth0 table 101"));
                self.ip(host, &format!("{six}rule add pref 100 iif lo lookup main"));
                self.ip(host, &format!("{six}rule add pref 101 to {vip} lookup 101"));
            }
        }
    }

    fn bridge(&mut self, host: &str, net: u8, nf: bool) {
        self.ip(host, "link add cbr0 type bridge");
        self.up(host, "cbr0", Addr::new(net, 1), NET);
        let value = if nf { "1" } else { "0" };
        self.sysctl(host, "net/bridge/bridge-nf-call-iptables", value);
        self.sysctl(host, "net/bridge/bridge-nf-call-ip6tables", value);
    }

    fn pod(&mut self, node: &str, pod: &str, addr: Addr, net: u8, cni: Cni) {
        let gateway = Addr::new(net, 1);
        let (full, link) = (format!("{}{pod}", self.prefix), format!("to-{pod}"));
        self.ip(node, &format!("link add {link} type veth peer name eth0 netns {full}"));
        match cni {
            Cni::Routed => {
                self.up(node, &link, gateway, ALONE);
                self.ip(node, &format!("route add {}/32 dev {link}", addr.v4));
                self.ip(node, &format!("route add {}/128 dev {link}", addr.v6));
                self.up(pod, "eth0", addr, ALONE);
                self.ip(pod, &format!("route add {}/32 dev eth0 scope link", gateway.v4));
                self.ip(pod, &format!("route add {}/128 dev eth0", gateway.v6));
            }
            Cni::Bridge { .. } => {
                self.ip(node, &format!("link set {link} master cbr0 up"));
                self.up(pod, "eth0", addr, NET);
            }
        }
        self.ip(pod, &format!("route add default via {}", gateway.v4));
        self.ip(pod, &format!("route add ::/0 via {}", gateway.v6));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both families of an address read alike.
    #[test]
    fn families_read_alike() {
        let a = Addr::new(65, 20);
        assert_eq!(a.v4.to_string(), "198.18.65.20");
        assert_eq!(a.v6.to_string(), "fd00:65::20");
        assert_eq!(Addr::new(OUTSIDE, 9).v6.to_string(), "fd00:200::9");
    }

    /// Every pod is inside the cluster's range, what is outside is not.
    #[test]
    fn cluster_range_holds_the_pods() {
        let inside = |a: Addr| {
            let v4 = u32::from(a.v4) & 0xffff_c000 == u32::from(Ipv4Addr::new(198, 18, 64, 0));
            let v6 = a.v6.segments()[0] == 0xfd00 && a.v6.segments()[1] & 0xfff0 == 0x60;
            assert_eq!(v4, v6, "{a:?}");
            v4
        };
        assert!(inside(Addr::new(PODS1, 10)) && inside(Addr::new(PODS2, 20)));
        assert!(!inside(Addr::new(OUTSIDE, 9)) && !inside(node(1)));
    }

    /// The commands of every path are as committed.
    #[test]
    fn commands_are_as_committed() {
        for path in Path::ALL {
            let lines: Vec<_> = Topology::new(*path, "").steps.iter().map(Step::shell).collect();
            let text = lines.join("\n") + "\n";
            crate::golden::check(env!("CARGO_MANIFEST_DIR"), &format!("topology/{path}.sh"), &text);
        }
    }

    /// The network takes the place of one link and of nothing else.
    #[test]
    fn a_network_takes_the_place_of_a_link() {
        for plain in [Topology::new(Path::ClusterIp, "p-"), Topology::pair("p-")] {
            let through = plain.clone().through_a_network();
            let gone: Vec<_> = plain.steps.iter().filter(|s| !through.steps.contains(s)).collect();
            assert_eq!(gone.len(), 1, "{gone:?}");
            assert!(gone[0].shell().contains("link add eth0"), "{gone:?}");
            assert_eq!(through.hosts.last(), Some(&"network"));
            assert_eq!(through.steps.len(), plain.steps.len() - 1 + 8);
        }
        assert_eq!(Topology::single("").through_a_network(), Topology::single(""));
    }
}
