//! What hosts have of their own in a situation, on real packets: rules and settings that act, that the kernel
//! refuses, or that take the Service away.

mod common;

use std::fs;

use common::{Left, cases, file, judged, lab, output, result, scratch};
use conntrack_lab::document::lab::Judgement;

/// Rules that the kernel's tool refuses, and a setting that is none: inconclusive with one reason
/// that says where and what, and nothing is left.
#[test]
fn what_the_kernel_refuses_is_told_with_its_place() {
    let (dir, own) = (scratch(), include_str!("../scenarios/own-rules.toml"));
    let before = Left::now(dir.path());
    let setting = |value: &str| {
        let value = format!("sysctls = {{ {value} }}");
        format!("[[case.host]]\nname = \"client\"\n{value}\nnft")
    };
    let (nft, host) = ("nft refuses 'chian input_alone", "[[case.host]]\nname = \"node1\"\nnft");
    let case = "title = \"a drop in INPUT alone\"\nprotections = []\nsteps = [\"connect\"";
    for (at, (from, to, after, says)) in [
        ("chain input_alone", "chian input_alone".to_owned(), 0, nft),
        (
            host,
            setting("\"net.ipv4.moon\" = \"1\""),
            2,
            "cannot read sysctl net.ipv4.moon: this kernel has no such setting",
        ),
        (
            host,
            setting("\"net.ipv4.tcp_syn_retries\" = \"many\""),
            2,
            "cannot set to 'many' sysctl net.ipv4.tcp_syn_retries: ",
        ),
        (
            host,
            setting("\"net.netfilter.nf_conntrack_buckets\" = \"1024\""),
            2,
            "cannot set to '1024' sysctl net.netfilter.nf_conntrack_buckets: Permission denied (os error 13): \
             it can only be read in this network namespace: use --host-table-size",
        ),
        (
            case,
            format!("{case},\n{{ change = {{ name = \"client\", sysctls = {{ \"net.ipv4.sun\" = \"1\" }} }} }}"),
            3,
            "cannot read sysctl net.ipv4.sun: this kernel has no such setting",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let file = dir.path().join("refused.toml");
        assert!(own.contains(from), "{from}");
        fs::write(&file, own.replace(from, &to)).unwrap();
        let results = dir.path().join(format!("r{at}"));
        let out = output(lab(&dir).arg("run").arg(&file).arg("--output").arg(&results));
        assert_eq!(out.code, 11, "{}{}", out.stdout, out.stderr);
        let (judgement, reasons) = judged(&result(&results), "own-rules");
        assert_eq!((judgement, reasons.len()), (Judgement::Inconclusive, 1), "{reasons:?}");
        assert!(reasons[0].starts_with("a drop in INPUT alone"), "{reasons:?}");
        let line = own[..own.find(from).unwrap()].matches('\n').count() + 1 + after;
        let place = format!(" of line {line} of the file: {says}");
        assert!(reasons[0].contains(&place), "{place}: {reasons:?}");
        assert!(
            !reasons[0].contains(['\n', '^']) && !reasons[0].contains("/dev/stdin"),
            "{reasons:?}"
        );
    }
    before.assert_same(dir.path());
}

/// What hosts have of their own does what the file says, or the case says why not: iptables text is of
/// the case's family, rules that empty the Service's prove nothing, a segment that nobody translates goes
/// through FORWARD, and what own rules counted is told.
#[test]
fn what_hosts_have_of_their_own_acts() {
    let dir = scratch();
    let file = dir.path().join("own.toml");
    let about = "kind = \"cause\"\nname = \"own\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\nconnections = 4\n";
    let drop = "*filter\n-A FORWARD -p tcp -j DROP\nCOMMIT\n";
    let case = |title: &str, more: &str, host: &str, steps: &str, expect: &str| {
        format!(
            "[[case]]\ntitle = \"{title}\"\n{more}\nsteps = [{steps}]\nexpect = {{ {expect} }}\n\
             [[case.host]]\nname = \"node1\"\n{host}\n",
        )
    };
    let none = "client = \"timed-out\", forged = { control = \"no-connection\" }";
    let own = |text: &str| format!("iptables = \"\"\"\n{text}\"\"\"");
    let text = [
        case("of IPv6", "family = \"ipv6\"", &own(drop), "\"connect\"", none),
        case(
            "of IPv4 in IPv6",
            "family = \"ipv6\"",
            &own("*filter\n-A FORWARD -s 10.0.0.0/8 -j DROP\nCOMMIT\n"),
            "\"connect\"",
            none,
        ),
        case(
            "pasted",
            "proxy-mode = \"iptables\"",
            &own("*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n"),
            "\"connect\"",
            none,
        ),
        case("flushed", "", "nft = \"flush ruleset\"", "\"connect\"", none),
        case(
            "untranslated",
            "path = \"snat\"\nprotections = []",
            "sysctls = { \"net.netfilter.nf_conntrack_tcp_timeout_established\" = \"1\", \
             \"net.netfilter.nf_conntrack_tcp_loose\" = \"0\" }\n\
             nft = \"table inet own { chain forward { type filter hook forward priority 0; \
             iifname to-client ct state invalid counter reject with tcp reset; }; }\"",
            "\"connect\", \"let-expire\", { transfer = \"down\" }",
            "client = \"reset\", forged = { control = \"delivered\" }",
        ),
        case(
            "kept",
            "keepalive = true",
            "sysctls = { \"net.netfilter.nf_conntrack_tcp_timeout_established\" = \"3\" }\n\
             [[case.host]]\nname = \"client\"\n\
             sysctls = { \"net.ipv4.tcp_keepalive_time\" = \"1\", \"net.ipv4.tcp_keepalive_intvl\" = \"1\" }\n\
             nft = \"table inet own { chain in { type filter hook input priority 0; iifname cali123 counter drop; }; }\"",
            "\"connect\", { ask = \"6s\" }, \"answer\"",
            "client = \"survived\"",
        ),
        case(
            "given up",
            "patience = \"20s\"",
            "sysctls = { \"net.ipv4.ip_forward\" = \"1\" }\n\
             [[case.host]]\nname = \"client\"\nsysctls = { \"net.ipv4.tcp_retries2\" = \"2\" }",
            "\"connect\", \"remove-endpoint\", { change = { name = \"node2\", nft = \"table inet quiet \
             { chain out { type filter hook output priority 0; meta l4proto icmp drop; }; }\" } }, \
             { transfer = \"up\" }",
            "client = \"timed-out\"",
        ),
    ];
    fs::write(&file, about.to_owned() + &text.concat()).unwrap();
    let results = dir.path().join("r");
    let out = output(lab(&dir).arg("run").arg(&file).arg("--output").arg(&results));
    assert_eq!(out.code, 11, "{}{}", out.stdout, out.stderr);
    let r = result(&results);
    let (_, reasons) = judged(&r, "own");
    let refused = [
        ("-A FORWARD -s 10.0.0.0/8 -j DROP", "of IPv4 in IPv6", "ip6tables-restore refuses '-A F"),
        (
            ":KUBE-SERVICES - [0:0]",
            "pasted",
            "they take away the Service's: 2 of 2 lines of ip nat",
        ),
        ("nft = \"flush ruleset\"", "flushed", "they take away the Service's: "),
    ];
    for (reason, (line, case, says)) in reasons.iter().zip(refused) {
        let line =
            text.concat().lines().position(|l| l == line).unwrap() + about.lines().count() + 1;
        let place =
            format!("{case}: cannot give node1 the rules of line {line} of the file: {says}");
        assert!(reason.starts_with(&place), "{place}: {reason}");
    }
    assert!(reasons[0].ends_with("in the [[case.host]] of a case of that family"), "{reasons:?}");
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    let said = |title: &str| {
        let s = r.scenarios.iter().find(|s| s.name == "own").unwrap();
        let step = s.timeline.as_ref().unwrap().steps.iter().find(|s| s.title == title).unwrap();
        step.notes.join("\n")
    };
    assert!(said("of IPv6").contains("drop' in ip6 filter FORWARD: "), "{}", said("of IPv6"));
    let acted = said("untranslated");
    assert!(acted.contains("reject with tcp reset' in inet own forward: "), "{acted}");
    let idle = "Own rules on client that met no packet: 'iifname \"cali123\" drop' in inet own in.";
    assert!(said("kept").contains(idle), "{}", said("kept"));
    assert!(said("given up").contains("Errors: ETIMEDOUT at "), "{}", said("given up"));
    let rules = fs::read_to_string(results.join("cells/own/5/rules-node1.txt")).unwrap();
    assert!(rules.contains("counter packets ") && !rules.contains("counter packets 0 "), "{rules}");
}

/// What takes the Service away without a rule less is inconclusive in a host, and told in a step; a policy of
/// iptables' own chains is the host's to set. Pasted counters tell of nothing that was met.
#[test]
fn the_service_is_whole_or_it_is_told() {
    let host = |mode: &str, expect: &str, rules: &str| {
        format!(
            "{mode}\nexpect = {{ client = {expect} }}\n[[case.host]]\nname = \"node1\"\n{rules}\n"
        )
    };
    let none = "\"timed-out\", forged = { control = \"no-connection\" }";
    let (iptables, flush) = ("proxy-mode = \"iptables\"", "flush map ip kube-proxy service-ips");
    let nft = |mode: &str, text: &str| host(mode, none, &format!("nft = \"{text}\""));
    let policy = "iptables = \"\"\"\n*filter\n:FORWARD DROP [0:0]\nCOMMIT\n\"\"\"";
    let pasted = "nft = '''\r\ntable inet lab-own {\r\n chain c {\r\n\
                  type filter hook forward priority filter; policy accept;\r\n\
                  tcp dport 9001 counter packets 123 bytes 4567 drop\r\n }\r\n}\r\n'''";
    let changed = format!(
        "\"connect\", \"close\", {{ change = {{ name = \"node1\", nft = \"{flush}\" }} }}, \"reconnect\""
    );
    let all = [
        ("dormant", "", nft("family = \"ipv6\"", "table ip6 kube-proxy { flags dormant; }")),
        ("flushed", "", nft("", flush)),
        ("slept", "", nft(iptables, "table ip nat { flags dormant; }")),
        ("policy", "", host(iptables, none, policy)),
        ("changed", &*changed, "expect = { client = \"timed-out\" }\n".to_owned()),
        ("pasted", "", host("", "\"survived\"", pasted)),
    ];
    let all = all.each_ref().map(|(title, steps, more)| {
        (*title, if steps.is_empty() { "\"connect\"" } else { *steps }, &**more)
    });
    let (out, r) = cases(&scratch(), &all);
    let (judgement, reasons) = judged(&r, "own");
    let lost = [
        "all of ip6 kube-proxy, which is dormant.",
        "1 of 2 lines of ip kube-proxy map service-ips.",
        "all of ip nat, which is dormant.",
    ];
    let told = (Judgement::Inconclusive, lost.len());
    assert_eq!((judgement, reasons.len()), told, "{reasons:?} {}", out.stdout);
    for (reason, what) in reasons.iter().zip(lost) {
        assert!(reason.contains(&format!("they take away the Service's: {what}")), "{reason}");
    }
    let own = r.scenarios.iter().find(|s| s.name == "own").unwrap();
    let of =
        |title| own.timeline.as_ref().unwrap().steps.iter().find(|s| s.title == title).unwrap();
    let change = of("changed").changes.iter().find(|c| c.what.contains("the Service's")).unwrap();
    assert_eq!(change.to, "without 1 of 2 lines of ip kube-proxy map service-ips");
    let idle = "Own rules on node1 that met no packet: 'tcp dport 9001 drop' in inet lab-own c.";
    assert!(of("pasted").notes.iter().any(|n| n == idle), "{:?}", of("pasted").notes);
}

/// Of chains with one hook and one priority the one that was loaded last comes first, in nat and in filter: a
/// host's before the Service's and its drop.
#[test]
fn what_is_loaded_last_comes_first() {
    let case = |hook: &str, rule: &str, mode: &str, expect: &str| {
        format!(
            "proxy-mode = \"{mode}\"\nprotections = [\"forward-drop@client\"]\nexpect = {{ {expect} }}\n\
             [[case.host]]\nname = \"node1\"\nnft = \"table ip own {{ chain c {{ type {hook}; {rule}; }}; }}\"\n"
        )
    };
    let redirect = "ip daddr 198.19.0.10 tcp dport 80 redirect to :1";
    let refused = "client = \"refused\", forged = { control = \"no-connection\" }";
    let dropped = "client = \"survived\", forged = { above-window = \"dropped\" }";
    let nat = |mode| case("nat hook prerouting priority dstnat", redirect, mode, refused);
    let filter = |priority: i32, mode| {
        let hook = format!("filter hook forward priority {priority}");
        case(&hook, "ct state invalid counter", mode, dropped)
    };
    let all = [
        ("nat, nft", nat("nftables")),
        ("nat, iptables", nat("iptables")),
        ("filter, nft", filter(-110, "nftables")),
        ("filter, iptables", filter(0, "iptables")),
        ("behind", filter(-109, "nftables")),
    ];
    let all = all.each_ref().map(|(title, more)| (*title, "\"connect\"", &**more));
    let (out, r) = cases(&scratch(), &all);
    assert_eq!(judged(&r, "own"), (Judgement::AsExpected, Vec::new()), "{}", out.stdout);
    let own = r.scenarios.iter().find(|s| s.name == "own").unwrap();
    for step in &own.timeline.as_ref().unwrap().steps[2..] {
        let none =
            step.notes.join("\n").contains("that met no packet: 'ct state invalid' in ip own c");
        assert_eq!(none, step.title == "behind", "{}: {}", step.title, out.stdout);
    }
}

/// Conntrack's timeouts grow with the waits of a file where --time-scale says so, and that is told.
#[test]
fn timeouts_keep_their_relation_to_waits() {
    let dir = scratch();
    let timeout = "net.netfilter.nf_conntrack_tcp_timeout_established";
    let own = format!(
        "host = [{{ name = \"node1\", sysctls = {{ \"{timeout}\" = \"3\" }} }}]\nexpect = {{ client = \"survived\" }}"
    );
    let (file, results) = (file(&dir, &[("scaled", "\"connect\"", &own)]), dir.path().join("r"));
    let mut command = lab(&dir);
    command.args(["run", "--time-scale=1.5"]).arg(&file).arg("--output").arg(&results);
    let out = output(&mut command);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let r = result(&results);
    let step = &r.scenarios.iter().find_map(|s| s.timeline.as_ref()).unwrap().steps[0];
    let set = step.changes.iter().find(|c| c.what.starts_with(timeout)).unwrap();
    assert_eq!(set.to, "5");
    assert!(
        out.stdout.contains("Waits and conntrack timeouts of the file: times 1.5."),
        "{}",
        out.stdout
    );
}
