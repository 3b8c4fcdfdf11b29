//! The hosts of a case: those of its path, and what situations need beside them.

use std::net::IpAddr;

use canary_testbed::topology::{Addr, Topology};
use canary_wire::segment::Family;

use crate::scenario::cause::{Case, Link};

/// The client pod.
pub(super) const CLIENT: Addr = Addr::new(65, 10);
/// The client pod's address on its second link, and that of the node at its other end.
pub(super) const SECOND_LINK: [Addr; 2] = [Addr::new(70, 2), Addr::new(70, 1)];

/// Of the pod beside the server pod: an address of its own, and its node's.
pub(super) fn beside(topology: &Topology) -> [Addr; 2] {
    let net = topology.service.pod.v4.octets()[2];
    [77, 1].map(|host| Addr::new(net, host))
}

/// As a route has it.
pub(super) fn host_route(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// The hosts of the path, with a pod beside the server pod that has the same address and no route
/// to it yet, and with the second link where there is one.
pub(super) fn hosts(case: &Case, prefix: &str) -> Topology {
    use canary_testbed::topology::Step::{Add, Ip};
    let mut topology = Topology::new(case.path, prefix);
    if let Some(network) = case.network {
        let node = topology.home;
        let client = topology.client;
        topology = match network.at {
            Link::Nodes => topology.through_a_network(),
            Link::Client => topology.with_network_in(("node1", &format!("to-{client}")), client),
            Link::Server => topology.with_network_in((node, "to-server"), "server"),
        };
    }
    let [own, gateway] = beside(&topology);
    let (node, pod) = (topology.full(topology.home), topology.full("server2"));
    let address = topology.service.pod;
    topology.hosts.push("server2");
    topology.steps.push(Add(pod.clone()));
    let mut lines = vec![
        (&node, format!("link add to-server2 type veth peer name eth0 netns {pod}")),
        (&node, "link set to-server2 up".to_owned()),
        (&pod, "link set lo up".to_owned()),
        (&pod, "link set eth0 up".to_owned()),
    ];
    for family in [Family::Ipv4, Family::Ipv6] {
        let [own, gateway, address] = [own, gateway, address].map(|a| a.of(family));
        let (all, nodad) = match family {
            Family::Ipv4 => ("default", ""),
            Family::Ipv6 => ("::/0", " nodad"),
        };
        lines.extend([
            (&node, format!("addr add {} dev to-server2{nodad}", host_route(gateway))),
            (&pod, format!("addr add {} dev eth0{nodad}", host_route(address))),
            (&pod, format!("addr add {} dev eth0{nodad}", host_route(own))),
            (&node, format!("route add {} dev to-server2", host_route(own))),
            (&pod, format!("route add {} dev eth0 scope link", host_route(gateway))),
            (&pod, format!("route add {all} via {gateway}")),
        ]);
    }
    let client = topology.full("client");
    if case.second_link {
        lines.extend([
            (&node, format!("link add to-client2 type veth peer name eth1 netns {client}")),
            (&node, "link set to-client2 up".to_owned()),
            (&client, "link set eth1 up".to_owned()),
        ]);
        let [near, far] = SECOND_LINK;
        for (host, link, address) in [(&node, "to-client2", far), (&client, "eth1", near)] {
            lines.push((host, format!("addr add {}/24 dev {link}", address.v4)));
            lines.push((host, format!("addr add {}/64 dev {link} nodad", address.v6)));
        }
    }
    let steps = lines.into_iter().map(|(host, args)| Ip(host.clone(), args));
    topology.steps.extend(steps);
    topology
}
