//! kube-proxy's IPVS mode: the table for `ipvsadm --restore`, and what is left for rules to do.

use std::net::SocketAddr;

use canary_wire::segment::Family;

use super::{Chain, nftables};
use crate::topology::{NODE_PORT, POD_PORT, SERVICE_PORT, Service, cluster_cidr, node};

/// The link that has every ClusterIP, so that a node takes what is sent there for its own.
pub const LINK: &str = "kube-ipvs0";
/// What kube-proxy sets: conntrack knows of IPVS' connections, and an entry whose endpoint is
/// gone goes with the next packet.
pub const SETTINGS: [&str; 2] = ["net/ipv4/vs/conntrack", "net/ipv4/vs/expire_nodest_conn"];

/// What `ipvsadm --save --numeric` gives of a node, sorted.
pub(super) fn table(s: &Service, family: Family) -> Vec<String> {
    let at = |address, port| SocketAddr::new(address, port);
    let pod = at(s.pod.of(family), POD_PORT);
    let addresses = [(s.vip, SERVICE_PORT), (node(1), NODE_PORT), (node(2), NODE_PORT)];
    let mut lines: Vec<_> = addresses
        .into_iter()
        .map(|(address, port)| at(address.of(family), port))
        .flat_map(|service| {
            [format!("-A -t {service} -s rr"), format!("-a -t {service} -r {pod} -m -w 1")]
        })
        .collect();
    lines.sort_unstable();
    lines
}

/// Nothing is translated by rules but sources.
pub(super) fn chains(s: &Service, family: Family, forward: Vec<String>) -> Vec<Chain> {
    let ip = super::family_name(family);
    let (vip, pod, cidr) = (s.vip.of(family), s.pod.of(family), cluster_cidr(family));
    let from = if s.masquerade_all { String::new() } else { format!("{ip} saddr != {cidr} ") };
    let mut services =
        vec![format!("{ip} daddr {vip} tcp dport {SERVICE_PORT} {from}jump mark-for-masquerade")];
    if !s.local_only {
        services.push(format!(
            "{ip} daddr @nodeport-ips tcp dport {NODE_PORT} jump mark-for-masquerade"
        ));
    }
    let [hairpin, masquerading] =
        [format!("{ip} saddr {pod} {ip} daddr {pod} masquerade"), "jump masquerading".into()];
    let mut chains = nftables::base_chains(forward, vec![hairpin, masquerading]);
    chains.push(Chain::new("services", services));
    chains.extend(nftables::masquerading());
    chains
}
