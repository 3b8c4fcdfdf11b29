//! What the kernel holds, from `nft -j list ruleset` and `iptables-save -c`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::iptables::DROP;
use crate::os::{OsError, wrong};

/// Rules and counters of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Rules in each chain that has any, by `family/table/chain`.
    pub rules: BTreeMap<String, usize>,
    /// Packets that each drop of INVALID matched, by chain.
    pub drops: BTreeMap<String, u64>,
    /// Packets that the DNAT rule matched.
    pub dnat: u64,
}

/// Reads `nft -j list ruleset`, one family's tables.
pub(crate) fn nftables(json: &str, family: &str) -> Result<Loaded, OsError> {
    let wrong = |why: String| wrong("read nftables rules back")(why);
    let all: Value = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
    let items = all["nftables"].as_array().ok_or_else(|| wrong("no list".into()))?;
    let mut loaded = Loaded::default();
    for rule in items.iter().filter_map(|i| i.get("rule")) {
        let text = |key: &str| rule[key].as_str().unwrap_or("?");
        if text("family") != family {
            continue;
        }
        let key = format!("{family}/{}/{}", text("table"), text("chain"));
        *loaded.rules.entry(key.clone()).or_default() += 1;
        let empty = Vec::new();
        let expr = rule["expr"].as_array().unwrap_or(&empty);
        let has = |name: &str| expr.iter().any(|e| e.get(name).is_some());
        let packets = expr.iter().find_map(|e| e["counter"]["packets"].as_u64());
        let invalid = expr.iter().any(|e| {
            e["match"]["left"]["ct"]["key"] == "state" && mentions(&e["match"]["right"], "invalid")
        });
        if invalid && has("drop") {
            let n = packets.ok_or_else(|| wrong(format!("the drop in {key} has no counter")))?;
            *loaded.drops.entry(key).or_default() += n;
        } else if has("dnat") {
            loaded.dnat += packets.unwrap_or(0);
        }
    }
    Ok(loaded)
}

/// A single value or a list that contains it: nft versions differ.
fn mentions(value: &Value, name: &str) -> bool {
    value == name || value.as_array().is_some_and(|a| a.iter().any(|v| v == name))
}

/// Reads `iptables-save -c` or `ip6tables-save -c`.
pub(crate) fn iptables(text: &str, family: &str) -> Result<Loaded, OsError> {
    let wrong = |why: String| wrong("read iptables rules back")(why);
    let (mut loaded, mut table) = (Loaded::default(), "?");
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        // [packets:bytes] -A CHAIN ...
        let Some((counters, rule)) = line.strip_prefix('[').and_then(|l| l.split_once("] -A "))
        else {
            continue;
        };
        let packets = counters.split_once(':').and_then(|(n, _)| n.parse::<u64>().ok());
        let packets = packets.ok_or_else(|| wrong(format!("no counter in '{line}'")))?;
        let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
        let key = format!("{family}/{table}/{chain}");
        *loaded.rules.entry(key.clone()).or_default() += 1;
        if rule == DROP {
            *loaded.drops.entry(key).or_default() += packets;
        } else if rule.contains("-j DNAT ") {
            loaded.dnat += packets;
        }
    }
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules are counted by chain, drops and DNAT by packet.
    #[test]
    fn reads_iptables_save() {
        let text = "# Generated\n*filter\n:FORWARD ACCEPT [5:300]\n\
            [7:420] -A FORWARD -j KUBE-FORWARD\n\
            [3:180] -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n\
            *nat\n[50:3000] -A KUBE-SEP-X -p tcp -m tcp -j DNAT --to-destination 198.18.66.20:9000\nCOMMIT\n";
        let l = iptables(text, "ip").unwrap();
        assert_eq!(l.rules["ip/filter/FORWARD"], 1);
        assert_eq!(l.drops, BTreeMap::from([("ip/filter/KUBE-FORWARD".to_owned(), 3)]));
        assert_eq!(l.dnat, 50);
    }

    /// The same from nft's JSON; the other family's rules are not mixed in.
    #[test]
    fn reads_nft_json() {
        let text = r#"{"nftables":[{"metainfo":{}},
          {"rule":{"family":"ip","table":"kube-proxy","chain":"filter-forward","handle":1,"expr":[
            {"match":{"op":"in","left":{"ct":{"key":"state"}},"right":"invalid"}},
            {"counter":{"packets":4,"bytes":1}},{"drop":null}]}},
          {"rule":{"family":"ip6","table":"kube-proxy","chain":"filter-forward","handle":1,"expr":[]}},
          {"rule":{"family":"ip","table":"kube-proxy","chain":"e","handle":2,"expr":[
            {"counter":{"packets":50,"bytes":1}},{"dnat":{"addr":"198.18.66.20","port":9000}}]}}]}"#;
        let l = nftables(text, "ip").unwrap();
        assert_eq!(l.drops, BTreeMap::from([("ip/kube-proxy/filter-forward".to_owned(), 4)]));
        assert_eq!(l.dnat, 50);
        assert_eq!(l.rules.len(), 2);
    }

    /// A drop without a counter proves nothing, and is refused.
    #[test]
    fn a_drop_needs_its_counter() {
        let text = r#"{"nftables":[{"rule":{"family":"ip","table":"t","chain":"c","expr":[
            {"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["invalid"]}},{"drop":null}]}}]}"#;
        assert!(nftables(text, "ip").unwrap_err().to_string().contains("no counter"));
    }
}
