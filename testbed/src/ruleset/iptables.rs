//! kube-proxy's iptables mode, for iptables-restore.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;

use canary_wire::segment::Family;

use super::{Chain, ProtectionKind, Ruleset, family_name};
use crate::topology::{NODE_PORT, POD_PORT, SERVICE_PORT, Service, cluster_cidr};

const SVC: &str = "KUBE-SVC-BOOMSERVERCANARY";
const SVL: &str = "KUBE-SVL-BOOMSERVERCANARY";
const EXT: &str = "KUBE-EXT-BOOMSERVERCANARY";
const SEP: &str = "KUBE-SEP-BOOMSERVERPODONE";
/// What INVALID drops look like, which [`super::readback`] looks for.
pub(super) const DROP: &str = "-m conntrack --ctstate INVALID -j DROP";

/// The three tables that hold rules, whole.
pub(super) fn ruleset(
    service: &Service,
    family: Family,
    set: &BTreeSet<ProtectionKind>,
) -> Ruleset {
    let drop_if = |kind| if set.contains(&kind) { vec![DROP.to_owned()] } else { Vec::new() };
    let prerouting = drop_if(ProtectionKind::PreroutingDrop);
    let (input, forward) =
        (drop_if(ProtectionKind::InputDrop), drop_if(ProtectionKind::ForwardDrop));
    let tables = [
        ("mangle", vec![Chain::base("PREROUTING", "PREROUTING", prerouting)]),
        ("filter", filter(input, forward)),
        ("nat", nat(service, family)),
    ];
    let (mut text, mut rules, mut drops) = (String::new(), BTreeMap::new(), Vec::new());
    for (table, chains) in &tables {
        let _ = writeln!(text, "*{table}");
        for c in chains {
            let policy = if c.hook.is_some() { "ACCEPT" } else { "-" };
            let _ = writeln!(text, ":{} {policy} [0:0]", c.name);
        }
        for c in chains {
            let key = format!("{}/{table}/{}", family_name(family), c.name);
            if c.rules.iter().any(|r| r == DROP) {
                drops.push(key.clone());
            }
            rules.insert(key, c.rules.len());
            for rule in &c.rules {
                let _ = writeln!(text, "-A {} {rule}", c.name);
            }
        }
        text.push_str("COMMIT\n");
    }
    Ruleset { text, rules, drops, ipvs: Vec::new() }
}

fn filter(input: Vec<String>, mut forward: Vec<String>) -> Vec<Chain> {
    forward.extend([
        r#"-m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT"#.to_owned(),
        r#"-m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"#.to_owned(),
    ]);
    vec![
        Chain::base("INPUT", "INPUT", input),
        Chain::base(
            "FORWARD",
            "FORWARD",
            vec![r#"-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD"#.into()],
        ),
        Chain::base("OUTPUT", "OUTPUT", Vec::new()),
        Chain::new("KUBE-FORWARD", forward),
    ]
}

fn nat(s: &Service, family: Family) -> Vec<Chain> {
    let (vip, pod, cidr) = (s.vip.of(family), s.pod.of(family), cluster_cidr(family));
    let host = if family == Family::Ipv4 { 32 } else { 128 };
    let name = "default/boom:tcp";
    let portals = r#"-m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#;
    let from = if s.masquerade_all { String::new() } else { format!("! -s {cidr} ") };
    let endpoint =
        format!(r#"-m comment --comment "{name} -> {}" -j {SEP}"#, SocketAddr::new(pod, POD_PORT));
    let local = "-m addrtype --src-type LOCAL";
    let external = if s.local_only {
        vec![
            format!(
                r#"-s {cidr} -m comment --comment "pod traffic for {name} external destinations" -j {SVC}"#
            ),
            format!(
                r#"-m comment --comment "masquerade LOCAL traffic for {name} external destinations" {local} -j KUBE-MARK-MASQ"#
            ),
            format!(
                r#"-m comment --comment "route LOCAL traffic for {name} external destinations" {local} -j {SVC}"#
            ),
            format!("-j {SVL}"),
        ]
    } else {
        vec![
            format!(
                r#"-m comment --comment "masquerade traffic for {name} external destinations" -j KUBE-MARK-MASQ"#
            ),
            format!("-j {SVC}"),
        ]
    };
    let mut chains = vec![
        Chain::base("PREROUTING", "PREROUTING", vec![portals.into()]),
        Chain::base("OUTPUT", "OUTPUT", vec![portals.into()]),
        Chain::base(
            "POSTROUTING",
            "POSTROUTING",
            vec![r#"-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING"#.into()],
        ),
        Chain::new(
            "KUBE-SERVICES",
            vec![
                format!(r#"-d {vip}/{host} -p tcp -m comment --comment "{name} cluster IP" -m tcp --dport {SERVICE_PORT} -j {SVC}"#),
                r#"-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"#.into(),
            ],
        ),
        Chain::new(
            "KUBE-NODEPORTS",
            vec![format!(
                r#"-p tcp -m comment --comment "{name}" -m tcp --dport {NODE_PORT} -j {EXT}"#
            )],
        ),
        Chain::new(
            "KUBE-POSTROUTING",
            vec![
                "-m mark ! --mark 0x4000/0x4000 -j RETURN".into(),
                "-j MARK --xor-mark 0x4000".into(),
                r#"-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully"#.into(),
            ],
        ),
        Chain::new("KUBE-MARK-MASQ", vec!["-j MARK --or-mark 0x4000".into()]),
        Chain::new(EXT, external),
        Chain::new(
            SVC,
            vec![
                format!(r#"{from}-d {vip}/{host} -p tcp -m comment --comment "{name} cluster IP" -m tcp --dport {SERVICE_PORT} -j KUBE-MARK-MASQ"#),
                endpoint.clone(),
            ],
        ),
        Chain::new(
            SEP,
            vec![
                format!(r#"-s {pod}/{host} -m comment --comment "{name}" -j KUBE-MARK-MASQ"#),
                format!(
                    r#"-p tcp -m comment --comment "{name}" -m tcp -j DNAT --to-destination {}"#,
                    SocketAddr::new(pod, POD_PORT)
                ),
            ],
        ),
    ];
    if s.local_only {
        chains.push(Chain::new(SVL, vec![endpoint]));
    }
    chains
}
