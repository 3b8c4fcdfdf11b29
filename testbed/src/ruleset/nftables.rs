//! kube-proxy's nftables mode, for `nft -f -`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use canary_wire::segment::Family;

use super::{Chain, ProtectionKind, Ruleset, family_name, ipvs};
use crate::topology::{NODE_PORT, POD_PORT, SERVICE_PORT, Service, cluster_cidr, node};

const SERVICE: &str = "service-BOOMSRVR-default/boom/tcp/tcp";
const EXTERNAL: &str = "external-BOOMSRVR-default/boom/tcp/tcp";
const DROP: &str = "ct state invalid counter drop";
/// kube-proxy's own table.
const KUBE_PROXY: &str = "kube-proxy";
/// The administrator's: what kube-proxy does not write.
const EXTRA: &str = "extra";

/// Both tables, each deleted and made again in one transaction.
pub(super) fn ruleset(
    service: &Service,
    family: Family,
    set: &BTreeSet<ProtectionKind>,
    ipvs: bool,
) -> Ruleset {
    let ip = family_name(family);
    let drop_if = |kind| if set.contains(&kind) { vec![DROP.to_owned()] } else { Vec::new() };
    let forward = drop_if(ProtectionKind::ForwardDrop);
    let (maps, chains) = if ipvs {
        (node_ports(family), ipvs::chains(service, family, forward))
    } else {
        (maps(service, family), chains(service, family, forward))
    };
    let hooks = [
        ("prerouting", "type filter hook prerouting priority mangle; policy accept;"),
        ("input", "type filter hook input priority filter; policy accept;"),
    ];
    let extra = [ProtectionKind::PreroutingDrop, ProtectionKind::InputDrop]
        .into_iter()
        .zip(hooks)
        .filter(|(kind, _)| set.contains(kind))
        .map(|(_, (name, hook))| Chain::base(name, hook, vec![DROP.into()]))
        .collect();
    let tables = [(KUBE_PROXY, maps, chains), (EXTRA, String::new(), extra)];
    let (mut text, mut rules, mut drops) = (String::new(), BTreeMap::new(), Vec::new());
    for (table, maps, chains) in &tables {
        // Added first, so that deleting works the first time too.
        let _ = writeln!(text, "add table {ip} {table}\ndelete table {ip} {table}");
        let _ = writeln!(text, "table {ip} {table} {{\n{maps}");
        for c in chains {
            let key = format!("{ip}/{table}/{}", c.name);
            if c.rules.iter().any(|r| r == DROP) {
                drops.push(key.clone());
            }
            rules.insert(key, c.rules.len());
            let _ = writeln!(text, "\tchain {} {{", c.name);
            for line in c.hook.iter().copied().chain(c.rules.iter().map(String::as_str)) {
                let _ = writeln!(text, "\t\t{line}");
            }
            text.push_str("\t}\n");
        }
        text.push_str("}\n");
    }
    let ipvs = if ipvs { ipvs::table(service, family) } else { Vec::new() };
    Ruleset { text, rules, drops, ipvs }
}

const fn kind(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4_addr",
        Family::Ipv6 => "ipv6_addr",
    }
}

fn node_ports(family: Family) -> String {
    let (kind, node1, node2) = (kind(family), node(1).of(family), node(2).of(family));
    format!("\tset nodeport-ips {{\n\t\ttype {kind}\n\t\telements = {{ {node1}, {node2} }}\n\t}}\n")
}

fn maps(s: &Service, family: Family) -> String {
    let (kind, vip, node_ports) = (kind(family), s.vip.of(family), node_ports(family));
    format!(
        "\tcomment \"rules for kube-proxy\"\n\
         \tset cluster-ips {{\n\t\ttype {kind}\n\t\telements = {{ {vip} }}\n\t}}\n\
         {node_ports}\
         \tmap service-ips {{\n\t\ttype {kind} . inet_proto . inet_service : verdict\n\
         \t\telements = {{ {vip} . tcp . {SERVICE_PORT} : goto {SERVICE} }}\n\t}}\n\
         \tmap service-nodeports {{\n\t\ttype inet_proto . inet_service : verdict\n\
         \t\telements = {{ tcp . {NODE_PORT} : goto {EXTERNAL} }}\n\t}}\n"
    )
}

fn chains(s: &Service, family: Family, forward: Vec<String>) -> Vec<Chain> {
    let ip = family_name(family);
    let (vip, pod, cidr) = (s.vip.of(family), s.pod.of(family), cluster_cidr(family));
    let endpoint =
        format!("endpoint-BOOMSRVR-default/boom/tcp/tcp__{pod}/{POD_PORT}").replace(':', ".");
    let from = if s.masquerade_all { String::new() } else { format!("{ip} saddr != {cidr} ") };
    let to_endpoint = format!("numgen random mod 1 vmap {{ 0 : goto {endpoint} }}");
    let external = if s.local_only {
        vec![
            format!("{ip} saddr {cidr} goto {SERVICE}"),
            "fib saddr type local jump mark-for-masquerade".into(),
            format!("fib saddr type local goto {SERVICE}"),
            to_endpoint.clone(),
        ]
    } else {
        vec!["jump mark-for-masquerade".into(), format!("goto {SERVICE}")]
    };
    let destination = match family {
        Family::Ipv4 => format!("{pod}:{POD_PORT}"),
        Family::Ipv6 => format!("[{pod}]:{POD_PORT}"),
    };
    let mut all = base_chains(forward, vec!["jump masquerading".into()]);
    all.push(Chain::new(
        "services",
        vec![
            format!("{ip} daddr . meta l4proto . th dport vmap @service-ips"),
            format!("{ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports"),
        ],
    ));
    all.extend(masquerading());
    all.extend([
        Chain::new(
            SERVICE,
            vec![
                format!("{ip} daddr {vip} tcp dport {SERVICE_PORT} {from}jump mark-for-masquerade"),
                to_endpoint,
            ],
        ),
        Chain::new(EXTERNAL, external),
        Chain::new(
            &endpoint,
            vec![
                format!("{ip} saddr {pod} jump mark-for-masquerade"),
                format!("meta l4proto tcp counter dnat to {destination}"),
            ],
        ),
    ]);
    all
}

/// The chains with hooks, and what is done with sources.
pub(super) fn base_chains(forward: Vec<String>, postrouting: Vec<String>) -> Vec<Chain> {
    let dispatch = || vec!["jump services".to_owned()];
    vec![
        Chain::base(
            "filter-forward",
            "type filter hook forward priority -110; policy accept;",
            forward,
        ),
        Chain::base(
            "nat-prerouting",
            "type nat hook prerouting priority dstnat; policy accept;",
            dispatch(),
        ),
        Chain::base("nat-output", "type nat hook output priority -100; policy accept;", dispatch()),
        Chain::base(
            "nat-postrouting",
            "type nat hook postrouting priority srcnat; policy accept;",
            postrouting,
        ),
    ]
}

/// The chains that mark for masquerade, and do it.
pub(super) fn masquerading() -> [Chain; 2] {
    [
        Chain::new("mark-for-masquerade", vec!["meta mark set meta mark or 0x4000".into()]),
        Chain::new(
            "masquerading",
            vec![
                "meta mark and 0x4000 == 0 return".into(),
                "meta mark set meta mark xor 0x4000".into(),
                "masquerade fully-random".into(),
            ],
        ),
    ]
}
