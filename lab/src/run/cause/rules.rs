//! The rules of a host as `nft list ruleset` has them, one by one: whether those of the Service are
//! there still, and which of the others acted.

use std::collections::BTreeSet;

use canary_wire::segment::Family;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    /// `ip nat`
    pub(super) table: String,
    /// Its chain.
    pub(super) chain: String,
    /// As it is shown, without its counter.
    pub(super) text: String,
}

/// Each rule in order, with what its counter says where it has one.
pub(super) fn read(ruleset: &str) -> Vec<(Rule, Option<u64>)> {
    let (mut table, mut chain) = (String::new(), None);
    let mut rules = Vec::new();
    for line in ruleset.lines().map(str::trim) {
        let named = |kind: &str| line.strip_prefix(kind)?.strip_suffix(" {").map(str::to_owned);
        if let Some(name) = named("table ") {
            (table, chain) = (name, None);
        } else if let Some(name) = named("chain ") {
            chain = Some(name);
        } else if line == "}" {
            chain = None;
        } else if let Some(chain) = chain.as_ref().filter(|_| !line.starts_with("type ")) {
            let (text, packets) = without_counter(line);
            rules.push((Rule { table: table.clone(), chain: chain.clone(), text }, packets));
        }
    }
    rules
}

/// `counter packets 3 bytes 180` is no part of what a rule says.
fn without_counter(line: &str) -> (String, Option<u64>) {
    let words: Vec<_> = line.split(' ').collect();
    let counter = |w: &[&str]| w[0] == "counter" && w[1] == "packets" && w[3] == "bytes";
    let Some(at) = words.windows(5).position(counter) else { return (line.to_owned(), None) };
    let text = [&words[..at], &words[at + 5..]].concat().join(" ");
    (text, words[at + 2].parse().ok())
}

/// The chains that have lost rules, each with how many of how many.
pub(super) fn lost(before: &[Rule], after: &[(Rule, Option<u64>)]) -> Vec<String> {
    let there: BTreeSet<_> = after.iter().map(|(rule, _)| rule).collect();
    let chains: BTreeSet<_> = before.iter().map(|r| (&r.table, &r.chain)).collect();
    let of = |(table, chain): (&String, &String)| {
        let all: Vec<_> =
            before.iter().filter(|r| (&r.table, &r.chain) == (table, chain)).collect();
        let gone = all.iter().filter(|rule| !there.contains(*rule)).count();
        let rules = if all.len() == 1 { "rule" } else { "rules" };
        (gone > 0).then(|| format!("{gone} of {} {rules} in {table} {chain}", all.len()))
    };
    chains.into_iter().filter_map(of).collect()
}

/// Of the rules that are neither the Service's nor the lab's and count packets: those that met some, with
/// how many, and those that met none.
pub(super) fn counted(
    service: &[Rule],
    after: &[(Rule, Option<u64>)],
) -> (Vec<String>, Vec<String>) {
    let (mut met, mut idle) = (Vec::new(), Vec::new());
    let labs = |rule: &Rule| rule.table.contains(" lab-");
    for (rule, packets) in after.iter().filter(|(rule, _)| !labs(rule) && !service.contains(rule)) {
        let what = if rule.text.is_empty() { "counter" } else { &rule.text };
        let rule = format!("'{what}' in {} {}", rule.table, rule.chain);
        match packets {
            None => {}
            Some(0) => idle.push(rule),
            Some(n) => met.push(format!("{rule}: {n} packets")),
        }
    }
    (met, idle)
}

/// The line of a text that takes such chains away: one that names any of them, or else one that flushes
/// or deletes.
pub(super) fn takes(text: &str, lost: &[String]) -> Option<usize> {
    let chains: Vec<_> = lost.iter().filter_map(|chain| chain.rsplit(' ').next()).collect();
    let line = |of: &[&str]| {
        let word = |c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c));
        let has = |line: &str| line.split(word).any(|w| of.contains(&w));
        text.lines().position(has).map(|at| at + 1)
    };
    line(&chains).or_else(|| line(&["flush", "delete", "destroy"]))
}

/// What nft or iptables-restore says first of a text that it refuses, and at which of its lines.
pub(super) fn refusal(said: &str) -> (Option<usize>, String) {
    let after = |mark: &str| {
        said.match_indices(mark).find_map(|(at, _)| {
            let rest = said[at + mark.len()..].trim_start_matches([':', ' ']);
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok()
        })
    };
    let line = after("/dev/stdin:").or_else(|| after("line"));
    let mut all = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = all.next().unwrap_or("it does not say why");
    // The place, or the tool's own name, comes before.
    let mut why = first.split_once("Error: ").map_or(first, |(_, why)| why);
    while let Some(("iptables-restore" | "ip6tables-restore", rest)) =
        why.split_once(": ").map(|(who, rest)| (who.split(' ').next().unwrap_or(who), rest))
    {
        why = rest;
    }
    let own = line.map(|n| format!("line {n}")).filter(|own| why.contains(own.as_str()));
    (line, own.map_or_else(|| why.to_owned(), |own| why.replace(&own, "this line")))
}

/// Whether a text for nft has tables, and each is of the family that the case is not of.
pub(super) fn of_the_other_family(text: &str, family: Family) -> bool {
    let other = if family == Family::Ipv4 { "ip6" } else { "ip" };
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let words: Vec<_> = lines.flat_map(str::split_whitespace).collect();
    let tables = words.windows(2).filter(|w| w[0] == "table").map(|w| match w[1] {
        named @ ("ip" | "ip6" | "inet" | "arp" | "bridge" | "netdev") => named,
        // nft's default.
        _ => "ip",
    });
    let families: BTreeSet<_> = tables.collect();
    families == [other].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules of one family alone are told from those that see the case's packets.
    #[test]
    fn the_family_of_rules_is_read() {
        for (text, other) in [
            ("table ip a { }\ntable b { }", true),
            ("table ip a { }\ntable inet b { }", false),
            ("# table inet b\ntable ip a { }", true),
            ("table ip6 a { }", false),
            ("add rule ip filter forward drop", false),
        ] {
            assert_eq!(of_the_other_family(text, Family::Ipv6), other, "{text}");
        }
        assert!(of_the_other_family("table ip6 a { }", Family::Ipv4));
    }

    /// What the tools say is cut to its first error, and its line is the text's.
    #[test]
    fn refusals_are_read() {
        let nft = "/dev/stdin:4:6-9: Error: syntax error, unexpected string\n  ct stat invalid drop\n     ^^^^\n\
                   /dev/stdin:5:2-2: Error: syntax error, unexpected end of file\n}\n ^\n";
        let usage =
            "Try `iptables-restore -h' or 'iptables-restore --help' for more information.\n";
        let option = format!(
            "iptables-restore v1.8.9 (nf_tables): unknown option \"--line\"\nError occurred at line: 2\n{usage}"
        );
        let table = format!(
            "iptables-restore v1.8.9 (nf_tables): iptables-restore: line 1 table name 'filtr' invalid\n\
             Error occurred at line: 1\n{usage}"
        );
        for (said, line, why) in [
            (nft, Some(4), "syntax error, unexpected string"),
            (&option, Some(2), "unknown option \"--line\""),
            (&table, Some(1), "this line table name 'filtr' invalid"),
            (
                "iptables-restore: COMMIT expected at line 3\n",
                Some(3),
                "COMMIT expected at this line",
            ),
            ("netlink: Error: cache failed\n", None, "cache failed"),
            ("", None, "it does not say why"),
        ] {
            assert_eq!(refusal(said), (line, why.to_owned()), "{said}");
        }
    }

    /// The line that empties a chain is the one that names it, or the one that flushes.
    #[test]
    fn what_takes_chains_away_is_found() {
        let lost = ["2 of 2 rules in ip nat KUBE-SERVICES".to_owned()];
        for (text, line) in [
            ("*nat\n:MY-KUBE-SERVICES - [0:0]\n:KUBE-SERVICES - [0:0]\nCOMMIT\n", Some(3)),
            ("delete table ip a\nflush chain ip nat KUBE-SERVICES\n", Some(2)),
            ("table ip a { }\nflush ruleset\n", Some(2)),
            ("table ip a { }\n", None),
        ] {
            assert_eq!(takes(text, &lost), line, "{text}");
        }
    }

    const NAT: &str = "table ip nat {\n\tchain KUBE-SERVICES {\n\
        \t\tip daddr 198.19.0.10 tcp dport 80 counter packets 3 bytes 180 jump KUBE-SVC\n\
        \t\tcounter packets 0 bytes 0 jump KUBE-NODEPORTS\n\t}\n\n\tchain KUBE-SVC {\n\t}\n}\n\
        table inet own {\n\tchain forward {\n\
        \t\ttype filter hook forward priority filter; policy accept;\n\
        \t\tct state invalid counter packets 20 bytes 1200 drop\n\t\tcounter packets 0 bytes 0\n\t}\n}\n";

    fn service() -> Vec<Rule> {
        read(NAT).into_iter().map(|(rule, _)| rule).filter(|r| r.table == "ip nat").collect()
    }

    /// Rules are told with their chains, counters apart; hooks and policies are none.
    #[test]
    fn rules_are_read() {
        let rules = read(NAT);
        assert_eq!(rules.len(), 4, "{rules:?}");
        assert_eq!(rules[0].0.text, "ip daddr 198.19.0.10 tcp dport 80 jump KUBE-SVC");
        assert_eq!((rules[0].1, rules[2].1), (Some(3), Some(20)));
    }

    /// A chain that was emptied is named, whatever else came into it; counters make no difference.
    #[test]
    fn emptied_chains_are_named() {
        assert_eq!(lost(&service(), &read(NAT)), Vec::<String>::new());
        let other = NAT.replace("packets 3 bytes 180", "packets 9 bytes 540");
        assert_eq!(lost(&service(), &read(&other)), Vec::<String>::new());
        let flushed = NAT.replace("tcp dport 80", "tcp dport 81");
        let said = lost(&service(), &read(&flushed));
        assert_eq!(said, ["1 of 2 rules in ip nat KUBE-SERVICES"]);
        assert_eq!(lost(&service(), &read("")), ["2 of 2 rules in ip nat KUBE-SERVICES"]);
    }

    /// Of the rules that are not the Service's nor the lab's, those that met packets and those that met none;
    /// of one without a counter nothing is known.
    #[test]
    fn what_acted_is_told() {
        let others = "table inet lab-own {\n\tchain c {\n\t\tcounter packets 0 bytes 0\n\t}\n}\n\
            table inet own {\n\tchain c {\n\t\tdrop\n\t}\n}\n";
        let (met, idle) = counted(&service(), &read(&format!("{NAT}{others}")));
        assert_eq!(met, ["'ct state invalid drop' in inet own forward: 20 packets"]);
        assert_eq!(idle, ["'counter' in inet own forward"]);
    }
}
