//! Service rules in the shape that kube-proxy writes, and the protections in
//! them: pure functions of the Service, the family and the protections.
//!
//! Every rule that drops, and the one that translates, carries a counter, which
//! kube-proxy's nftables mode leaves out.

mod iptables;
pub mod ipvs;
mod nftables;
pub(crate) mod readback;

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ProtectionKind, ProxyMode};
use canary_wire::segment::Family;

use crate::topology::Service;

/// A rule set as text and what must be found when it is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// For `nft -f -` or `iptables-restore`; replaces what an earlier one loaded.
    pub text: String,
    /// Rules in each chain, by `family/table/chain`.
    pub rules: BTreeMap<String, usize>,
    /// The chains that drop what is INVALID.
    pub drops: Vec<String>,
    /// For `ipvsadm --restore`, as `ipvsadm --save` gives it, sorted; empty where rules translate.
    pub ipvs: Vec<String>,
}

impl Ruleset {
    /// The rules of one node.
    pub(crate) fn new(
        proxy_mode: ProxyMode,
        service: &Service,
        family: Family,
        set: &BTreeSet<ProtectionKind>,
    ) -> Self {
        match proxy_mode {
            ProxyMode::Nftables => nftables::ruleset(service, family, set, false),
            ProxyMode::Ipvs => nftables::ruleset(service, family, set, true),
            ProxyMode::Iptables => iptables::ruleset(service, family, set),
        }
    }

    /// What differs between this and what the kernel holds; None when nothing does.
    #[must_use]
    pub fn difference(&self, loaded: &readback::Loaded) -> Option<String> {
        let full = |rules: &BTreeMap<String, usize>| -> BTreeMap<String, usize> {
            rules.iter().filter(|(_, n)| **n > 0).map(|(c, n)| (c.clone(), *n)).collect()
        };
        let (want, have) = (full(&self.rules), full(&loaded.rules));
        if want != have {
            let chains: BTreeSet<_> = want.keys().chain(have.keys()).collect();
            let n = |m: &BTreeMap<String, usize>, c: &str| m.get(c).copied().unwrap_or(0);
            let wrong: Vec<_> = chains
                .into_iter()
                .filter(|c| want.get(*c) != have.get(*c))
                .map(|c| format!("{c} has {} rules, not {}", n(&have, c), n(&want, c)))
                .collect();
            return Some(wrong.join(", "));
        }
        let have: Vec<_> = loaded.drops.keys().cloned().collect();
        let mut want = self.drops.clone();
        want.sort_unstable();
        (want != have).then(|| format!("INVALID is dropped in {have:?}, not in {want:?}"))
    }
}

/// One chain while rules are written.
struct Chain {
    name: String,
    /// The hook that it hangs on, for a base chain.
    hook: Option<&'static str>,
    rules: Vec<String>,
}

impl Chain {
    fn new(name: &str, rules: Vec<String>) -> Self {
        Self { name: name.to_owned(), hook: None, rules }
    }

    fn base(name: &str, hook: &'static str, rules: Vec<String>) -> Self {
        Self { name: name.to_owned(), hook: Some(hook), rules }
    }
}

/// `ip` or `ip6`.
pub(crate) const fn family_name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Path, Protection};
    use crate::topology::Topology;

    /// The text of every shape of rule set is as committed.
    #[test]
    fn text_is_as_committed() {
        let all: BTreeSet<_> = ProtectionKind::ALL.iter().copied().collect();
        for path in [Path::ClusterIp, Path::Snat, Path::NodePortLocal] {
            let service = Topology::new(path, "").service;
            for proxy_mode in ProxyMode::ALL {
                for family in [Family::Ipv4, Family::Ipv6] {
                    for (name, set) in [("none", &BTreeSet::new()), ("all", &all)] {
                        let rules = Ruleset::new(*proxy_mode, &service, family, set);
                        crate::golden::check(
                            env!("CARGO_MANIFEST_DIR"),
                            &format!("ruleset/{proxy_mode}-{family}-{path}-{name}.txt"),
                            &rules.text,
                        );
                    }
                }
            }
        }
    }

    /// A protection on the other node does nothing here.
    #[test]
    fn a_protection_stays_on_its_node() {
        let protections =
            ["forward-drop@server", "liberal"].map(|p| p.parse::<Protection>().unwrap());
        let topology = Topology::new(Path::ClusterIp, "");
        let (liberal, drop) = (ProtectionKind::Liberal, ProtectionKind::ForwardDrop);
        assert_eq!(topology.protections("node1", &protections), [liberal].into());
        assert_eq!(topology.protections("node2", &protections), [liberal, drop].into());
    }

    /// Reading back names the chain that differs, and a drop in the wrong place.
    #[test]
    fn a_difference_is_named() {
        let service = Topology::new(Path::ClusterIp, "").service;
        let set = BTreeSet::from([ProtectionKind::ForwardDrop]);
        let rules = Ruleset::new(ProxyMode::Iptables, &service, Family::Ipv4, &set);
        let mut loaded = readback::Loaded {
            rules: rules.rules.clone(),
            drops: rules.drops.iter().map(|c| (c.clone(), 0)).collect(),
            dnat: 0,
        };
        assert_eq!(rules.difference(&loaded), None);
        loaded.drops = BTreeMap::from([("ip/filter/INPUT".to_owned(), 0)]);
        assert!(rules.difference(&loaded).unwrap().contains("ip/filter/INPUT"));
        loaded.rules.insert("ip/filter/KUBE-FORWARD".to_owned(), 1);
        let text = rules.difference(&loaded).unwrap();
        assert_eq!(text, "ip/filter/KUBE-FORWARD has 1 rules, not 3");
    }
}
