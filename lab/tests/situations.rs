//! Situations of one's own, on real packets: what a file says is done, judged and told.

mod common;

use std::fs;

use canary_testbed::capture;
use common::{Left, judged, lab, output, result, scratch};
use conntrack_lab::document::lab::{Judgement, LabResult};

/// A file of these cases, each a title, its fields and its steps; judged, with the output.
fn cases(dir: &tempfile::TempDir, cases: &[(&str, &str, &str)]) -> (common::Output, LabResult) {
    let about = "kind = \"cause\"\nname = \"own\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\nconnections = 6\n";
    let case = |(title, steps, more): &(&str, &str, &str)| {
        format!("[[case]]\ntitle = \"{title}\"\nsteps = [{steps}]\n{more}\n")
    };
    let text = about.to_owned() + &cases.iter().map(case).collect::<String>();
    let (file, results) = (dir.path().join("own.toml"), dir.path().join("own"));
    fs::write(&file, text).unwrap();
    let out = output(lab(dir).arg("run").arg(&file).arg("--output").arg(&results));
    let result = result(&results);
    (out, result)
}

/// What becomes of a segment is seen whatever was expected of it, at once or after silence.
#[test]
fn what_is_seen_does_not_depend_on_what_is_expected() {
    let dir = scratch();
    let steps = "\"connect\", { transfer = \"down\" }";
    let wrong = "protections = [\"prerouting-drop\"]\n\
                 expect = { client = \"survived\", forged = { above-window = \"kills\" } }";
    let other = "protections = []\n\
                 expect = { client = \"reset\", forged = { above-window = \"dropped\" } }";
    let (out, r) = cases(&dir, &[("wrong", steps, wrong), ("other", steps, other)]);
    let (judgement, reasons) = judged(&r, "own");
    assert_eq!(judgement, Judgement::Differs, "{}", out.stdout);
    for says in [
        "wrong: above-window by boom-server: expected kills, saw dropped",
        "other: above-window by boom-server: expected dropped, saw kills",
    ] {
        assert!(reasons.iter().any(|r| r == says), "{reasons:?}");
    }
}

/// What both ends have closed can be closed, and comes again.
#[test]
fn a_half_closed_connection_can_be_closed() {
    let steps = "\"connect\", \"half-close\", { idle = \"500ms\" }, \"close\", \"reconnect\", { transfer = \"both\" }";
    let (out, r) = cases(&scratch(), &[("both", steps, "expect = { client = \"survived\" }")]);
    assert_eq!(judged(&r, "own"), (Judgement::AsExpected, Vec::new()), "{}", out.stdout);
}

/// A connection that ends while nobody uses it has ended by then, as the kernel's own timer or an RST
/// has it; one that goes on has not.
#[test]
fn what_ends_in_silence_is_seen() {
    let host = "keepalive = true\nhost = [{ name = \"client\", sysctls = { \
                \"net.ipv4.tcp_keepalive_time\" = \"1\", \"net.ipv4.tcp_keepalive_intvl\" = \"1\", \
                \"net.ipv4.tcp_keepalive_probes\" = \"2\" } }]\n";
    let rejects = "{ change = { name = \"server\", nft = \"table inet own { chain i { \
                   type filter hook input priority 0; tcp dport 9000 counter reject with tcp reset; }; }\" } }";
    let of = |end: &str, step: &str| {
        let steps = format!("\"connect\", {step}, {{ idle = \"8s\" }}, {{ expect = \"{end}\" }}");
        (steps, format!("{host}expect = {{ client = \"{end}\" }}"))
    };
    let all = [
        ("gone", of("timed-out", "\"remove-endpoint\"")),
        ("rejected", of("reset", rejects)),
        ("there", of("survived", "{ transfer = \"down\" }")),
    ];
    let all = all.each_ref().map(|(title, (steps, more))| (*title, &**steps, &**more));
    let (out, r) = cases(&scratch(), &all);
    assert_eq!(judged(&r, "own"), (Judgement::AsExpected, Vec::new()), "{}", out.stdout);
}

/// Of refused connections there are no entries to delete; RSTs that come after a FIN are told.
#[test]
fn what_never_was_is_not_counted() {
    let few = "host = [{ name = \"node1\", nft = \"table ip own { chain f { type filter hook forward priority 0; \
               ct state new tcp flags & (syn|ack) == syn ct count over 3 counter reject with tcp reset; }; }\" }]\n\
               expect = { client = [\"survived\", \"refused\"] }";
    let all = [
        ("few", "\"connect\", \"delete-entries\", { transfer = \"down\" }", few),
        ("none yet", "\"delete-entries\", \"connect\"", "expect = { client = \"survived\" }"),
        (
            "after its FIN",
            "\"connect\", { ask = \"2500ms\" }, \"half-close\", \"delete-entries\", \"answer\"",
            "expect = { client = \"hung\" }",
        ),
    ];
    let (out, r) = cases(&scratch(), &all);
    assert_eq!(judged(&r, "own"), (Judgement::AsExpected, Vec::new()), "{}", out.stdout);
    let own = r.scenarios.iter().find(|s| s.name == "own").unwrap();
    let notes = &own.timeline.as_ref().unwrap().steps[2].notes;
    // One at least for each connection: the answer, and perhaps the FIN behind it.
    let others =
        notes.iter().find_map(|n| n.split("RSTs: 0 attributed, ").nth(1)?.split(' ').next());
    assert!(others.is_some_and(|n| n.parse::<u32>().unwrap() >= 6), "{notes:?}");
}

/// An overshoot that was delivered kills when the server sends on, in whose application too; behind a drop
/// it hangs the connection, which the client shows; under be_liberal nothing comes of it.
#[test]
fn an_overshoot_ends_what_goes_on() {
    let sends = "\"connect\", { transfer = \"down\" }";
    let of = |protections: &str, client: &str, overshoot: &str| {
        format!(
            "protections = [{protections}]\n\
             expect = {{ client = \"{client}\", forged = {{ overshoot = \"{overshoot}\" }} }}"
        )
    };
    let all = [
        ("kills", sends, of("", "reset", "kills-later")),
        ("hangs", sends, of("\"forward-drop\"", "hung", "delivered")),
        ("liberal", sends, of("\"liberal\"", "survived", "delivered")),
    ];
    let all = all.each_ref().map(|(title, steps, more)| (*title, *steps, &**more));
    let (out, r) = cases(&scratch(), &all);
    assert_eq!(judged(&r, "own"), (Judgement::AsExpected, Vec::new()), "{}", out.stdout);
}

/// Where nothing is tracked no entry expires, nor is any deleted a second time after connections went on: a
/// case that says so is about nothing. Behind one another both have rightly nothing.
#[test]
fn of_what_is_not_tracked_nothing_expires() {
    let notrack = "name = \"node1\", nft = \"table inet own { chain c { type filter hook prerouting priority raw; \
                   meta l4proto tcp counter notrack; }; }\"";
    let more =
        |host: &str| format!("path = \"pod-ip\"\nexpect = {{ client = \"survived\" }}\n{host}");
    let (plain, untracked) = (more(""), more(&format!("host = [{{ {notrack} }}]")));
    let used = "{ transfer = \"both\" }";
    let short = more(
        "host = [{ name = \"node1\", sysctls = { \"net.netfilter.nf_conntrack_tcp_timeout_established\" = \"1\" } }]",
    );
    let all = [
        ("expire", format!("\"connect\", \"let-expire\", {used}"), &untracked),
        (
            "again",
            format!(
                "\"connect\", \"delete-entries\", {{ change = {{ {notrack} }} }}, {used}, \"delete-entries\""
            ),
            &plain,
        ),
        (
            "behind",
            "\"connect\", \"let-expire\", \"delete-entries\", \"let-expire\"".to_owned(),
            &short,
        ),
        ("used", format!("\"connect\", \"let-expire\", {used}, \"let-expire\", {used}"), &short),
    ];
    let all = all.each_ref().map(|(title, steps, more)| (*title, &**steps, &***more));
    let (out, r) = cases(&scratch(), &all);
    let differ = [
        "expire: entries gone by let-expire at step 2: 0 for 6 connections",
        "again: entries gone by delete-entries at step 5: 0 for 6 connections",
    ];
    assert_eq!(
        judged(&r, "own"),
        (Judgement::Differs, differ.map(str::to_owned).into()),
        "{}",
        out.stdout
    );
}

/// A witness that names connections as ended which the client and the server still have is believed by
/// nobody: here a rule drops the client's RSTs where the kernel has told of them, and no traffic shows that
/// the connections go on. Where they pass, the case has its verdict.
#[test]
fn what_is_named_and_alive_is_no_proof() {
    let steps = "\"connect\"";
    let of = |client: &str, above: &str, host: &str| {
        format!(
            "protections = []\nexpect = {{ client = \"{client}\", witness = [\"answered-by-client\"], \
             forged = {{ above-window = \"{above}\" }} }}\n{host}"
        )
    };
    let drops = "host = [{ name = \"node1\", nft = \"table inet own { chain f { type filter hook forward priority 0; \
                 iifname to-client tcp flags rst counter drop; }; }\" }]";
    let (alive, ended) = (of("survived", "dropped", drops), of("reset", "kills", ""));
    let (out, r) = cases(&scratch(), &[("alive", steps, &alive), ("ended", steps, &ended)]);
    let (judgement, reasons) = judged(&r, "own");
    assert_eq!((judgement, reasons.len()), (Judgement::Inconclusive, 1), "{}", out.stdout);
    let says = "alive: the kernel's words on node1 name 6 connections as ended: the client's ends and the RSTs";
    assert!(reasons[0].starts_with(says), "{reasons:?}");
}

/// The load balancer of the documents, which has forgotten a connection: it resets who speaks.
#[test]
fn a_balancer_that_forgets_resets_who_speaks() {
    let dir = scratch();
    let text = include_str!("../../docs/situations.md");
    let change = text.split("```text\n{ change").nth(1).unwrap().split("```").next().unwrap();
    let change = format!("{{ change{}", change.trim_end());
    let other = change.replace("hook output", "hook input").replace("dport", "sport");
    let case = |title: &str, steps: &str, expect: &str| {
        format!(
            "[[case]]\ntitle = \"{title}\"\npath = \"node-port-local\"\nsteps = [\"connect\", {steps}]\n\
             expect = {{ {expect} }}\n"
        )
    };
    let cases = [
        "kind = \"cause\"\nname = \"balancer\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\n"
            .to_owned(),
        case("client", &format!("{change}, {{ transfer = \"up\" }}"), "client = \"reset\""),
        case(
            "server",
            &format!("{{ ask = \"2s\" }}, {other}, \"answer\""),
            "client = \"hung\", server-reset = true",
        ),
        case("nothing", "{ transfer = \"up\" }", "client = \"survived\""),
    ];
    let file = dir.path().join("balancer.toml");
    fs::write(&file, cases.concat()).unwrap();
    let out = output(lab(&dir).arg("run").arg(&file).arg("--output").arg(dir.path().join("r")));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
}

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

/// The Service's other endpoint is reached on every path that can have one, and masqueraded to as the
/// path has it: what leaks then goes to the node, which a drop in FORWARD does not see.
#[test]
fn another_endpoint_is_reached_on_every_path() {
    let dir = scratch();
    let file = dir.path().join("moved.toml");
    let about = "kind = \"cause\"\nname = \"moved\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\n";
    let moved = [
        ("cluster-ip", false),
        ("same-node", false),
        ("node-port-local", false),
        ("node-port-cluster", true),
        ("node-port-cluster-remote", true),
        ("snat", true),
    ]
    .map(|(path, masquerades)| {
        let (client, above) =
            if masquerades { ("reset", "kills") } else { ("survived", "dropped") };
        format!(
            "[[case]]\ntitle = \"moved, {path}\"\npath = \"{path}\"\n\
             protections = [\"forward-drop@client\"]\n\
             steps = [\"move-endpoint\", \"remove-endpoint\", \"connect\", {{ transfer = \"down\" }}]\n\
             expect = {{ client = \"{client}\", forged = {{ above-window = \"{above}\" }} }}\n"
        )
    });
    let two = "[[case]]\ntitle = \"two\"\npath = \"node-port-local\"\nendpoints = 2\n\
               steps = [\"connect\", \"delete-entries\", { transfer = \"down\" }]\n\
               expect = { client = [\"reset\", \"survived\"] }\n";
    fs::write(&file, about.to_owned() + &moved.concat() + two).unwrap();
    let results = dir.path().join("r");
    let out = output(lab(&dir).arg("run").arg(&file).arg("--output").arg(&results));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
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

/// `new` writes a scenario that runs as it stands and says with what, and does not write over one that
/// is there. Of the control it says that it is one, and gives no advice on it.
#[test]
fn a_new_scenario_runs() {
    let dir = scratch();
    let out = output(lab(&dir).args(["new", "mine"]));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    assert_eq!(out.stdout, "mine.toml: conntrack-lab run mine.toml\n");
    let run = output(lab(&dir).args(["run", "mine.toml", "--output", "r"]));
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    for says in [
        "what is done here (cluster-ip, ipv4, nftables, protections: liberal)\n",
        "1 of 1 cell (the control) as expected, 1 of 1 situation as expected",
    ] {
        assert!(run.stdout.contains(says), "{says}: {}", run.stdout);
    }
    assert!(!run.stdout.contains("Drop INVALID"), "{}", run.stdout);
    assert!(run.stderr.contains("1 cell and 1 case to run\n"), "{}", run.stderr);
    let again = output(lab(&dir).args(["new", "mine"]));
    assert_eq!(again.code, 2, "{}{}", again.stdout, again.stderr);
    assert_eq!(again.stderr, "error: mine.toml is there already: choose another name\n");
}

/// A field that nobody knows, and a kind that nobody knows, are wrong usage.
#[test]
fn wrong_files_are_one_line() {
    let (dir, unread) = (scratch(), include_str!("../scenarios/close-unread.toml"));
    for (from, to, says) in [
        ("title =", "titel =", "unknown field `titel`"),
        ("kind = \"cause\"", "kind = \"moon\"", "use matrix, cause or saturation"),
        ("\"close\"", "\"closed\"", "did you mean `close`?"),
    ] {
        let file = dir.path().join("bad.toml");
        fs::write(&file, unread.replacen(from, to, 1)).unwrap();
        let out = output(lab(&dir).arg("run").arg(&file));
        assert_eq!(out.code, 2, "{}{}", out.stdout, out.stderr);
        assert_eq!(out.stderr.lines().count(), 1, "{}", out.stderr);
        assert!(out.stderr.contains(says), "{}", out.stderr);
    }
}

/// The bad network stands on any link, where packets are lost and overtaken, and connections live.
#[test]
fn the_bad_network_is_on_any_link() {
    let dir = scratch();
    let about = String::from(
        "kind = \"cause\"\nname = \"links\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\nconnections = 4\n",
    );
    let case = |at: &str| {
        format!(
            "[[case]]\ntitle = \"{at}\"\nnetwork = {{ at = \"{at}\", lose = 1, reorder = 5, jitter = \"2ms\" }}\n\
             steps = [\"connect\", {{ transfer = \"both\" }}]\n\
             expect = {{ client = \"survived\", forged = {{ control = \"delivered\" }} }}\n",
        )
    };
    let text = about + &["nodes", "client", "server"].map(case).concat();
    let file = dir.path().join("links.toml");
    fs::write(&file, &text).unwrap();
    let results = dir.path().join("r");
    let out = output(lab(&dir).arg("run").arg(&file).arg("--output").arg(&results));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    for s in result(&results).scenarios.iter().filter(|s| s.name == "links") {
        for step in &s.timeline.as_ref().unwrap().steps {
            let carried = step.changes.iter().find(|c| c.what.contains("bad network")).unwrap();
            let [into, out] = [&carried.from, &carried.to].map(|n| n.parse::<u64>().unwrap());
            assert!(out < into, "{}: {into} {out}", step.title);
        }
    }
}

/// With `--capture all` a case keeps what its client and its servers saw; without it nothing is captured.
#[test]
fn a_case_is_captured_where_all_is_kept() {
    let dir = scratch();
    let file = dir.path().join("kept.toml");
    let text = "kind = \"cause\"\nname = \"kept\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\n\
                connections = 2\n[[case]]\ntitle = \"c\"\nendpoints = 2\nsteps = [\"connect\"]\n\
                expect = { client = \"survived\", forged = { control = \"delivered\" } }\n";
    fs::write(&file, text).unwrap();
    for (mode, kept) in [("all", true), ("one", false)] {
        let results = dir.path().join(mode);
        let mut run = lab(&dir);
        run.arg("run").arg(&file).args(["--capture", mode, "--output"]).arg(&results);
        let out = output(&mut run);
        assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
        let of = |host: &str| fs::read(results.join(format!("cells/kept/1/{host}.pcap")));
        assert_eq!(["client", "server", "server2"].map(|host| of(host).is_ok()), [kept; 3]);
        if kept {
            assert!(capture::packets(&of("client").unwrap()).unwrap() > 10);
        }
    }
}

/// A step that never comes true ends the case soon, inconclusive, with what it waited for and which
/// setting would let it.
#[test]
fn a_step_that_never_comes_true_is_told() {
    let dir = scratch();
    let file = dir.path().join("never.toml");
    let text = "kind = \"cause\"\nname = \"never\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\n\
                connections = 1\n[[case]]\ntitle = \"entries for five days\"\n\
                steps = [\"connect\", \"let-expire\"]\nexpect = { client = \"survived\" }\n";
    fs::write(&file, text).unwrap();
    let results = dir.path().join("r");
    let mut run = lab(&dir);
    run.arg("run").arg(&file).arg("--output").arg(&results);
    let out = output(&mut run);
    assert_eq!(out.code, 11, "{}{}", out.stdout, out.stderr);
    let (judgement, reasons) = judged(&result(&results), "never");
    assert_eq!((judgement, reasons.len()), (Judgement::Inconclusive, 1), "{reasons:?}");
    let says = "entries for five days: cannot let-expire: 1 of 1 entries are left on node1";
    assert!(reasons[0].starts_with(says), "{reasons:?}");
    assert!(reasons[0].contains("established, stays for 4"), "{reasons:?}");
}
