//! The rules of a host as `nft list ruleset` has them, one by one: whether those of the Service are
//! there still, and which of the others acted.

use std::collections::BTreeSet;

use canary_wire::segment::Family;

/// A line of the listing: a rule, a chain's hook and policy, an element of a set or map, a table's flags.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Line {
    /// `ip nat`
    pub(super) table: String,
    /// `chain PREROUTING`, `map service-ips`; empty for what the table itself has.
    pub(super) of: String,
    /// As it is shown, without its counter.
    pub(super) text: String,
}

impl Line {
    /// Where it stands.
    fn place(&self) -> String {
        let of = self.of.strip_prefix("chain ").unwrap_or(&self.of);
        format!("{} {of}", self.table).trim_end().to_owned()
    }
}

/// iptables' own chains: they are everybody's, and so are their policies.
const SHARED: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Each line in order, with what its counter says where it has one.
pub(super) fn read(ruleset: &str) -> Vec<(Line, Option<u64>)> {
    let (mut table, mut of) = (String::new(), String::new());
    let mut lines = Vec::new();
    for line in ruleset.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(head) = line.strip_suffix(" {") {
            match head.strip_prefix("table ") {
                Some(name) => (table, of) = (name.to_owned(), String::new()),
                None => head.clone_into(&mut of),
            }
            continue;
        }
        if line == "}" {
            of.clear();
            continue;
        }
        let shared = of.strip_prefix("chain ").is_some_and(|chain| SHARED.contains(&chain));
        let hook = line.split_once(" policy ").filter(|_| shared && line.starts_with("type "));
        let line = hook.map_or(line, |(hook, _)| hook);
        let (text, packets) = without_counter(line);
        let line = |text| Line { table: table.clone(), of: of.clone(), text };
        if of.starts_with("map ") || of.starts_with("set ") {
            // Several elements can be in one line.
            let parts = text.trim_start_matches("elements = {").split(',');
            let parts = parts.map(|part| part.trim_end_matches('}').trim());
            let parts = parts.filter(|part| !part.is_empty());
            lines.extend(parts.map(|part| (line(part.to_owned()), None)));
        } else {
            lines.push((line(text), packets));
        }
    }
    lines
}

/// `counter packets 3 bytes 180` is no part of what a rule says.
fn without_counter(line: &str) -> (String, Option<u64>) {
    let words: Vec<_> = line.split(' ').collect();
    let counter = |w: &[&str]| w[0] == "counter" && w[1] == "packets" && w[3] == "bytes";
    let Some(at) = words.windows(5).position(counter) else { return (line.to_owned(), None) };
    let text = [&words[..at], &words[at + 5..]].concat().join(" ");
    (text, words[at + 2].parse().ok())
}

/// What the lines before have lost: chains, sets and maps, each with how many lines of how many; and the
/// tables that are dormant, all of which is listed and does nothing (`nf_tables_table_disable()`).
pub(super) fn lost(before: &[Line], after: &[(Line, Option<u64>)]) -> Vec<String> {
    let there: BTreeSet<_> = after.iter().map(|(line, _)| line).collect();
    let tables: BTreeSet<_> = before.iter().map(|line| &line.table).collect();
    let flag =
        |l: &Line| l.of.is_empty() && l.text.starts_with("flags ") && l.text.contains("dormant");
    let dormant = |table: &&String| there.iter().any(|l| l.table == **table && flag(l));
    let dormant =
        tables.into_iter().filter(dormant).map(|table| format!("all of {table}, which is dormant"));
    let places: BTreeSet<_> = before.iter().map(Line::place).collect();
    let of = |place: String| {
        let all: Vec<_> = before.iter().filter(|line| line.place() == place).collect();
        let gone = all.iter().filter(|line| !there.contains(**line)).count();
        (gone > 0).then(|| format!("{gone} of {} lines of {place}", all.len()))
    };
    dormant.chain(places.into_iter().filter_map(of)).collect()
}

/// Of the rules that are not the Service's and count packets: those that met some, with how many, and
/// those that met none. (The lab's own do not count.)
pub(super) fn counted(
    service: &[Line],
    after: &[(Line, Option<u64>)],
) -> (Vec<String>, Vec<String>) {
    let (mut met, mut idle) = (Vec::new(), Vec::new());
    let own = |line: &Line| line.of.starts_with("chain ") && !service.contains(line);
    for (line, packets) in after.iter().filter(|(line, _)| own(line)) {
        let what = if line.text.is_empty() { "counter" } else { &line.text };
        let rule = format!("'{what}' in {}", line.place());
        match packets {
            None => {}
            Some(0) => idle.push(rule),
            Some(n) => met.push(format!("{rule}: {n} packets")),
        }
    }
    (met, idle)
}

/// Rules for nft whose counters begin at nought: one that was listed goes on from what it had counted
/// elsewhere (`nft_counter_do_init()`).
pub(super) fn from_nought(text: &str) -> String {
    let (mut counter, mut number) = (false, false);
    let word = |word: &str| {
        let bare = word.trim();
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
        if bare.is_empty() {
            return word.to_owned();
        }
        let was = number && rest.len() < word.len();
        number = counter && ["packets", "bytes"].contains(&bare);
        counter = number || was || bare.ends_with("counter");
        if was { format!("0{rest}") } else { word.to_owned() }
    };
    text.split_inclusive(char::is_whitespace).map(word).collect()
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

    fn service() -> Vec<Line> {
        read(NAT).into_iter().map(|(line, _)| line).filter(|l| l.table == "ip nat").collect()
    }

    /// Lines are told with where they stand, counters apart.
    #[test]
    fn lines_are_read() {
        let lines = read(NAT);
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert_eq!(lines[0].0.text, "ip daddr 198.19.0.10 tcp dport 80 jump KUBE-SVC");
        assert_eq!((lines[0].1, lines[3].1), (Some(3), Some(20)));
    }

    /// A chain that was emptied is named, whatever else came into it; counters make no difference.
    #[test]
    fn emptied_chains_are_named() {
        assert_eq!(lost(&service(), &read(NAT)), Vec::<String>::new());
        let other = NAT.replace("packets 3 bytes 180", "packets 9 bytes 540");
        assert_eq!(lost(&service(), &read(&other)), Vec::<String>::new());
        let flushed = NAT.replace("tcp dport 80", "tcp dport 81");
        let said = lost(&service(), &read(&flushed));
        assert_eq!(said, ["1 of 2 lines of ip nat KUBE-SERVICES"]);
        assert_eq!(lost(&service(), &read("")), ["2 of 2 lines of ip nat KUBE-SERVICES"]);
    }

    /// What takes the Service away and leaves its rules is named: elements, hooks, policies, a table that
    /// sleeps. A policy of iptables' own chains is the administrator's, and so is what comes to a set.
    #[test]
    fn what_rules_need_is_named() {
        const PROXY: &str = "table ip kube-proxy {\n\tcomment \"rules for kube-proxy\"\n\n\tset nodes {\n\
            \t\ttype ipv4_addr\n\t\telements = { 198.18.0.11,\n\t\t\t     198.18.0.12, 198.18.0.13 }\n\t}\n\n\
            \tmap service-ips {\n\t\ttype ipv4_addr . inet_proto . inet_service : verdict\n\
            \t\telements = { 198.19.0.10 . tcp . 80 : goto a/b }\n\t}\n\n\
            \tchain nat-output {\n\t\ttype nat hook output priority -100; policy accept;\n\t\tjump services\n\t}\n}\n\
            table ip filter {\n\tchain FORWARD {\n\
            \t\ttype filter hook forward priority filter; policy accept;\n\t\tjump KUBE-FORWARD\n\t}\n}\n";
        let before: Vec<_> = read(PROXY).into_iter().map(|(line, _)| line).collect();
        for (from, to, says) in [
            ("\tcomment", "\tflags dormant\n\tcomment", "all of ip kube-proxy, which is dormant"),
            (
                "\telements = { 198.19.0.10 . tcp . 80 : goto a/b }\n",
                "",
                "1 of 2 lines of ip kube-proxy map service-ips",
            ),
            ("198.18.0.12, ", "", "1 of 4 lines of ip kube-proxy set nodes"),
            (
                "-100; policy accept",
                "-100; policy drop",
                "1 of 2 lines of ip kube-proxy nat-output",
            ),
            ("priority -100", "priority 100", "1 of 2 lines of ip kube-proxy nat-output"),
            ("priority filter; policy accept", "priority filter; policy drop", ""),
            ("198.18.0.13", "198.18.0.13, 198.18.0.14", ""),
            ("198.18.0.11,\n\t\t\t     198.18.0.12", "198.18.0.12,\n\t\t\t     198.18.0.11", ""),
        ] {
            assert!(PROXY.contains(from), "{from}");
            let said = lost(&before, &read(&PROXY.replacen(from, to, 1)));
            assert_eq!(said.concat(), says, "{to}");
        }
    }

    /// Of the rules that are not the Service's, those that met packets and those that met none, whatever
    /// their table is called; of one without a counter nothing is known.
    #[test]
    fn what_acted_is_told() {
        let others = "table inet lab-own {\n\tchain c {\n\t\tcounter packets 0 bytes 0\n\t}\n}\n\
            table inet own {\n\tchain c {\n\t\tdrop\n\t}\n}\n";
        let (met, idle) = counted(&service(), &read(&format!("{NAT}{others}")));
        assert_eq!(met, ["'ct state invalid drop' in inet own forward: 20 packets"]);
        assert_eq!(idle, ["'counter' in inet own forward", "'counter' in inet lab-own c"]);
    }

    /// Counters begin at nought however they are written, and nothing else is touched.
    #[test]
    fn counters_begin_at_nought() {
        for (text, loaded) in [
            (
                "\t\ttcp dport 9001 counter packets 123 bytes 4567 drop\n  drop\n",
                "\t\ttcp dport 9001 counter packets 0 bytes 0 drop\n  drop\n",
            ),
            ("{ counter  packets 1\tbytes 2; drop; }", "{ counter  packets 0\tbytes 0; drop; }"),
            ("{counter bytes 2 packets 1}", "{counter bytes 0 packets 0}"),
            ("counter drop\nlimit rate 5 packets 7", "counter drop\nlimit rate 5 packets 7"),
            ("quota over 25 bytes counter name 5", "quota over 25 bytes counter name 5"),
            (
                "counter packets 1 bytes 2 counter packets 3 bytes 4",
                "counter packets 0 bytes 0 counter packets 0 bytes 0",
            ),
        ] {
            assert_eq!(from_nought(text), loaded);
        }
    }
}
