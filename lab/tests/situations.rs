//! Situations of one's own, on real packets: what a file says is done, judged and told.

mod common;

use std::fs;
use std::time::Duration;

use canary_testbed::capture;
use common::{cases, file, finish, judged, lab, output, result, scratch, start, wait_for};
use conntrack_lab::document::lab::Judgement;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

/// After a signal no case is begun that had not: its hosts are not built.
#[test]
fn a_signal_begins_no_further_case() {
    let (dir, fields) = (scratch(), "expect = { client = \"survived\" }");
    let one = |title| (title, "\"connect\", { idle = \"1s\" }", fields);
    let (file, results) = (file(&dir, &["a", "b", "c"].map(one)), dir.path().join("r"));
    let mut command = lab(&dir);
    command.args(["run", "--jobs=1"]).arg(&file).arg("--output").arg(&results);
    let child = start(&mut command);
    let case = |n: &str| results.join("cells/own").join(n).exists();
    wait_for("the first case", Duration::from_secs(60), || case("1"));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    let out = finish(child);
    assert_eq!(out.code, 11, "{}{}", out.stdout, out.stderr);
    assert!(!case("3"), "{}", out.stdout);
    let (_, reasons) = judged(&result(&results), "own");
    assert!(
        reasons.iter().any(|r| r.contains("c: not run: a signal came before it")),
        "{reasons:?}"
    );
}
