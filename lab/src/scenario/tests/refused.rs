//! What is wrong in a file is told with its place and its mend.

use super::*;

/// An unknown field is refused in every kind and at every depth, with its line and the field
/// that was meant.
#[test]
fn unknown_fields_are_named_with_their_place() {
    for (name, from, to, says) in [
        (
            "cluster-ip",
            "title =",
            "titel =",
            "line 2: unknown field `titel`: did you mean `title`?",
        ),
        ("cluster-ip", "families =", "familys =", "did you mean `families`?"),
        ("cluster-ip", "protections = [\"input-drop\"]", "protection = []", "`protections`?"),
        ("cluster-ip", "expect = \"dropped\"", "expect = \"droped\"", "`dropped`?"),
        (
            "cluster-ip",
            "expect = \"unprotected\"",
            "expect = { above-window = \"klls\" }",
            "did you mean `kills`?",
        ),
        ("entry-expired", "sysctls =", "sysctl =", "did you mean `sysctls`?"),
        ("entry-deleted", "masquerade =", "masqerade =", "did you mean `masquerade`?"),
        ("entry-deleted", "\"reset\", \"survived\"", "\"rest\"", "did you mean `reset`?"),
        ("close-unread", "steps =", "setps =", "did you mean `steps`?"),
        (
            "entry-deleted",
            "\"delete-entries\"",
            "\"delete-entrys\"",
            "did you mean `delete-entries`?",
        ),
        ("entry-deleted", "transfer = \"down\"", "tranfser = \"down\"", "did you mean `transfer`?"),
        ("entry-expired", "\"2500ms\"", "\"2500\"", "write 500ms, 30s or 2m"),
        ("close-unread", "server-reset =", "server-rest =", "did you mean `server-reset`?"),
        ("ipvs-idle", "ipvs-timeout =", "ipv-timeout =", "did you mean `ipvs-timeout`?"),
        ("ipvs-idle", "proxy-mode = \"ipvs\"", "proxy-mode = \"ipv\"", "did you mean `ipvs`?"),
        ("port-reuse", "\"vanish\"", "\"vansh\"", "did you mean `vanish`?"),
        ("ignore-invalid-rst", "needs = \"ign", "needs = \"gn", "`ignore-invalid-rst`?"),
        (
            "port-reuse",
            "title = \"the client w",
            "network = { at = \"nods\" }\ntitle = \"the client w",
            "did you mean `nodes`?",
        ),
        (
            "port-reuse",
            "title = \"the client w",
            "network = { at = \"nodes\", loose = 1 }\ntitle = \"the client w",
            "did you mean `lose`?",
        ),
        ("saturation", "\nheld =", "\nhold =", "did you mean `held`?"),
        ("saturation", "bigger-table-cures", "bigger-table-cure", "`bigger-table-cures`?"),
        ("cluster-ip", "path = \"cluster-ip\"", "path = \"cluster-pi\"", "`cluster-ip`?"),
        (
            "cluster-ip",
            "path = \"cluster-ip\"",
            "path = \"moon\"",
            "unknown variant `moon`, expected",
        ),
    ] {
        let whole = text(name);
        assert!(whole.contains(from), "{from}");
        let wrong = whole.replacen(from, to, 1);
        let said = refusal(&wrong);
        let before = whole.find(from).unwrap() + from.len() - from.trim_start().len();
        let line = whole[..before].matches('\n').count() + 1;
        assert!(said.starts_with(&format!("scenario x.toml, line {line}: ")), "{said}");
        assert!(said.contains(says), "{said}");
    }
}

/// What is well-formed and makes no sense is refused with the mend.
#[test]
fn senseless_files_are_refused() {
    for (name, from, to, says) in [
        ("close-unread", "name = \"close-unread\"", "name = \"Close unread\"", "lower-case"),
        (
            "close-unread",
            "server-reset = true",
            "server-reset = true, client = \"hung\"",
            "expect: leave client out: after 'close' no connection goes on",
        ),
        ("endpoint-replaced", "\"connect\", ", "", "'download' before connect"),
        ("entry-deleted", "[\"connect\"", "[\"connect\", \"connect\"", "connect once"),
        ("entry-deleted", "client = \"survived\"", "server-reset = true", "name client"),
        ("entry-expired", "{ ask = \"2500ms\" }, ", "", "'answer' without ask"),
        ("close-unread", "\"close\"", "{ transfer = \"up\" }, \"close\"", "answer what was asked"),
        ("close-unread", "[[case]]", "connections = 0\n[[case]]", "use 1 to 200"),
        (
            "port-reuse",
            "\"vanish\", ",
            "",
            "line 27: case 'the client went without a word': steps: 'reconnect' only after close, vanish or restart-server",
        ),
        ("port-reuse", "\"connect\", \"v", "\"v", "'vanish' before connect"),
        ("ipvs-idle", "ipvs-timeout = \"3s\"", "ipvs-timeout = \"1ms\"", "use 1s or more"),
        (
            "port-reuse",
            "steps",
            "network = { at = \"nodes\", lose = 101 }\nsteps",
            "network: lose, duplicate, reorder: use 0 to 100",
        ),
        (
            "port-reuse",
            "steps",
            "network = { at = \"nodes\", lose = 0, jitter = \"0s\", seed = 3 }\nsteps",
            "network: it does nothing: give it lose, duplicate, reorder or jitter",
        ),
        ("entry-deleted", "endpoints = 2", "endpoints = 3", "endpoints: use 1 or 2"),
        ("entry-deleted", "[\"reset\", \"survived\"]", "[]", "client: name at least one"),
        (
            "entry-expired",
            "\"node1\"",
            "\"node3\"",
            "line 11: unknown variant `node3`: did you mean `node1`?",
        ),
        ("entry-expired", "\"net.netfilter.nf", "\"kernel.nf", "only keys that begin with net."),
        (
            "own-rules",
            "forged = { above-window = \"kills\", syn-fin = \"kills\" }",
            "forged = {}",
            "at least",
        ),
        (
            "upload-node-port",
            "[[case]]",
            "[[host]]\nname = \"client\"\n[[case]]",
            "host: name: 'client' takes no part in path node-port-local, whose client is 'outside'",
        ),
        ("close-unread", "expect = {", "listen = 0\nexpect = {", "listen: use 1 to 65535"),
        (
            "entry-deleted",
            "steps",
            "protections = [\"liberal\", \"liberal@client\"]\nsteps",
            "protections: 'liberal@client' is there twice on a node",
        ),
        (
            "cluster-ip",
            "[\"input-drop\"]",
            "[\"input-drop\", \"input-drop\"]",
            "cell: protections: 'input-drop' is there twice",
        ),
        (
            "own-rules",
            "above-window = \"kills\"",
            "above-window = \"mixed\"",
            "expect: forged: above-window: 'mixed' proves nothing",
        ),
        (
            "cluster-ip",
            "expect = \"dropped\"",
            "expect = { above-window = \"mixed\" }",
            "cell: expect: above-window: 'mixed' proves nothing",
        ),
        ("entry-expired", "\"node1\"", "\"outside\"", "whose client is 'client': name that"),
        ("port-reuse", "steps", "patience = \"1ms\"\nsteps", "patience: use 100ms or more"),
        ("saturation", "clients = [10, 20, 50]", "clients = [51]", "use 1 to 50"),
        ("saturation", "\nseconds = 4", "\nseconds = 0", "seconds: use 1 to 60"),
        ("saturation", "load = 1.1", "load = 9", "use 0.01 to 3"),
        ("saturation", "\nheld = 40", "\nheld = 501", "held: use 1 to 500"),
    ] {
        let said = refusal(&text(name).replacen(from, to, 1));
        assert!(said.contains(says), "{said}");
    }
}

/// What no run can satisfy is refused, with its line and what to say: another outcome or a reset where no
/// connection comes to be, and what only an overshoot comes to, or is not told in a situation.
#[test]
fn expectations_that_no_run_can_satisfy_are_refused() {
    for (name, from, to, says) in [
        (
            "table-full",
            "{ control = \"no-connection\" }",
            "{ control = \"no-connection\", above-window = \"delivered\" }",
            "line 13: case 'new connections': expect: forged: above-window: 'delivered' of no segment: where \
             one is no-connection nothing is forged: name no-connection for all, or for none",
        ),
        (
            "half-closed-expires",
            "\"half-close\", \"let-expire\",",
            "\"half-close\", { change = { name = \"node1\", sysctls = { \"net.netfilter.nf_log.2\" = \"NONE\" } } },",
            "steps: change: sysctls: 'net.netfilter.nf_log.2': the witness hears nothing without it: leave it out",
        ),
        (
            "cluster-ip",
            "expect = \"dropped\"",
            "expect = { control = \"no-connection\", above-window = \"dropped\" }",
            "cell: expect: above-window: 'dropped' of no segment",
        ),
        (
            "table-full",
            "client = \"timed-out\"",
            "server-reset = true, client = \"timed-out\"",
            "line 13: case 'new connections': expect: server-reset: nobody is reset where forged has",
        ),
        (
            "own-rules",
            "above-window = \"kills\"",
            "overshoot = \"hangs\"",
            "expect: forged: overshoot: 'hangs' is not told from other hangs here: name delivered, and client",
        ),
        (
            "overshoot",
            "expect = \"dropped\"",
            "expect = { above-window = \"kills-later\" }",
            "cell: expect: above-window: 'kills-later' is of an overshoot alone: name what becomes",
        ),
        (
            "mesh-redirect",
            "{ control = \"delivered\", above-window = \"kills\" } }",
            "{ above-window = \"no-connection\" } }",
            "steps: forge: no-connection: without connections of its own load-client forges nothing",
        ),
        (
            "saturation",
            "bigger-table-cures = \"holds\"",
            "bigger-table-cures = \"not-shown\"",
            "expect: bigger-table-cures: not-shown is what a run that proves nothing finds: use holds,",
        ),
    ] {
        let said = refusal(&text(name).replacen(from, to, 1));
        assert!(said.contains(says), "{said}");
    }
}

/// A row is refused that the forgeries cannot tell from another one: it would pass whatever the path does.
#[test]
fn rows_that_look_alike_are_refused() {
    let with = |forgeries: &str, row: &str| {
        let text = text("cluster-ip");
        let (head, _) = text.split_once("[[cell]]").unwrap();
        let kept: Vec<_> = head.lines().filter(|l| !l.starts_with("forgeries")).collect();
        let head = kept.join("\n") + "\n";
        parse("x", &format!("{head}forgeries = [{forgeries}]\n[[cell]]\nexpect = \"{row}\"\n"))
    };
    for (forgeries, row, other) in [
        ("\"below-window\"", "unprotected", "liberal-only"),
        ("\"below-window\"", "dropped", "unprotected"),
        ("\"below-window\"", "not-translated", "unprotected"),
        ("\"control\"", "unprotected", "liberal-only"),
        ("\"no-flags\"", "dropped", "liberal-and-dropped"),
    ] {
        let said = with(forgeries, row).unwrap_err();
        let says = format!(
            "forgeries: '{row}' and '{other}' are the same of these on some kernel: add above-window"
        );
        assert!(said.contains(&says), "{said}");
        let more = format!("{forgeries}, \"above-window\"");
        assert!(with(&more, row).is_ok(), "{:?}", with(&more, row));
    }
}

/// A step is refused that cannot be as the connections stand: what would be called survived or reset
/// there would be nobody's. What can be is taken.
#[test]
fn steps_follow_how_connections_stand() {
    let said = |steps: &str| {
        let text = format!(
            "kind = \"cause\"\nname = \"n\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\n\
             [[case]]\ntitle = \"c\"\nsteps = [\"connect\", {steps}]\nexpect = {{ client = \"survived\" }}\n"
        );
        parse("x", &text).err().unwrap_or_default()
    };
    for (steps, says) in [
        (
            "'restart-server', { transfer = 'up' }",
            "'upload' after 'restart-server': the connections are gone",
        ),
        (
            "'vanish', { transfer = 'down' }",
            "'download' after 'vanish': the connections are gone: reconnect first",
        ),
        (
            "'close', { ask = '100ms' }, 'answer'",
            "'ask, the server waits 100ms' after 'close': the",
        ),
        ("'close', 'half-close'", "'half-close' after 'close': the"),
        ("'vanish', 'vanish'", "'vanish' after 'vanish': the"),
        (
            "'close', { expect = ['reset', 'survived'] }",
            "'expect survived and reset' after 'close': the",
        ),
        (
            "'half-close', { transfer = 'up' }",
            "'upload' after 'half-close': the client has sent its FIN",
        ),
        ("'half-close', { ask = '1s' }, 'answer'", "waits 1s' after 'half-close': the"),
        ("'half-close', 'half-close'", "'half-close' after 'half-close': the"),
        ("{ ask = '1s' }, 'answer', 'half-close', 'answer'", "'answer' without ask"),
        ("{ ask = '1s' }, { ask = '1s' }", "answer what was asked before 'ask"),
        ("{ ask = '1s' }, { transfer = 'up' }", "answer what was asked before 'upload'"),
        ("'half-close', 'reconnect'", "'reconnect' only after close"),
        ("'restart-server'", "after 'restart-server' no connection goes on"),
        (
            "'vanish', { expect = 'reset' }, 'let-expire', 'delete-entries', { idle = '1s' }",
            "after 'vanish' no",
        ),
        ("{ ask = '1s' }, 'close', 'reconnect', { transfer = 'both' }", ""),
        (
            "'half-close', 'close', 'reconnect', { ask = '1s' }, 'half-close', { idle = '1s' }, 'answer'",
            "",
        ),
    ] {
        let said = said(&steps.replace('\'', "\""));
        assert!(said.contains(says) && said.is_empty() == says.is_empty(), "{steps}: {said}");
    }
}

/// What makes no sense is told with the line of its field, in a case and outside.
#[test]
fn senseless_fields_have_lines() {
    let about = "kind = \"cause\"\nname = \"n\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\n";
    let case = "[[case]]\ntitle = \"c\"\npath = \"hairpin\"\nsteps = [\"connect\"]\n";
    let expect = "expect = { client = \"survived\" }\n";
    for (text, says) in [
        (format!("{about}{case}endpoints = 2\n{expect}"), "line 10: case 'c': endpoints: 2 only"),
        (
            format!("{about}{case}{expect}").replace("\"n\"", "\"N\""),
            "line 2: name: use lower-case",
        ),
        (format!("{about}connections = 0\n{case}{expect}"), "line 6: connections: use 1 to 200"),
        (
            format!("{about}connections = 4\n{case}connections = 201\n{expect}"),
            "line 11: case 'c': connections: use 1 to 200",
        ),
        (format!("{about}case = []\n"), "line 6: case: name at least one"),
        (
            format!("{about}{case}{expect}").replace("connect", "vanish"),
            "line 9: case 'c': steps: ",
        ),
        (
            format!("{about}{case}{expect}").replace("connect\"", "connect\", \"move-endpoint\""),
            "line 9: case 'c': steps: 'move-endpoint' only with a path of cluster-ip, snat, same-node, node-port-cluster,",
        ),
        (format!("{about}{case}{expect}").replace("cause", "moon"), "line 1: kind: use matrix"),
        (
            format!("{about}{case}{expect}").replace("[[case]]", "[case]"),
            "line 6: there can be several of these: write `[[...]]`",
        ),
        (
            format!("{about}{case}protections = \"none\"\n{expect}"),
            "line 10: invalid type: string \"none\", write a list, `[...]`",
        ),
        (format!("{about}{case}family = 6\n{expect}"), "line 10: write a name, in quotes"),
        (
            format!("{about}{case}{expect}")
                .replace("[\"connect\"]", "[{ ask = \"1s\", transfer = \"up\" }]"),
            "line 9: one step a table: write `{ ... }, { ... }`",
        ),
        (
            format!("{about}{case}{expect}").replace("kind = \"cause\"\n", ""),
            "line 5: case: only of a situation: write kind = \"cause\" at the top",
        ),
        (
            format!("{about}{case}patience = 3\n{expect}"),
            "line 10: write \"3s\" where it is a time, else \"3\": in quotes",
        ),
        (
            format!("{about}{case}listen = \"9000\"\n{expect}"),
            "line 10: string \"9000\": write a whole",
        ),
        (
            format!("{about}{case}listen = 70000\n{expect}"),
            "line 10: integer 70000: write a whole number from 0 to 65535, without quotes",
        ),
        (format!("{about}connections = -1\n{case}{expect}"), "whole number from 0 to 4294967295"),
        (
            format!("{about}{case}expect = {{\n forged = {{ control = \"delivered\" }} }}\n"),
            "line 10: case 'c': expect: name client, how its connections end, as client = \"survived\": ",
        ),
        (
            format!("{about}{case}expect = {{ server-reset = false,\n client = [] }}\n"),
            "line 11: case 'c': expect: client: name at least one end",
        ),
        (
            format!("{about}{case}{expect}{case}{expect}"),
            "line 12: case 'c': title: a case before has it too",
        ),
        (
            format!("{about}{case}{expect}")
                .replace("[\"connect\"]", "[\"connect\",\n{ change = { name = \"node1\" } }]"),
            "line 10: case 'c': steps: change: name: 'node1' gets nothing: give it sysctls, nft or iptables",
        ),
        (
            format!(
                "{about}{case}{expect}[[case.host]]\nname = \"node1\"\nsysctls = {{ \"net.a\" = \"1\", \"kernel.hostname\" = \"x\" }}\n"
            ),
            "line 13: case 'c': host: sysctls: 'kernel.hostname': only keys",
        ),
        (
            format!(
                "{about}[[host]]\nname = \"node1\"\nsysctls.\"net/../kernel\" = \"1\"\n{case}{expect}"
            ),
            "line 8: host: sysctls: 'net/../kernel': only keys",
        ),
    ] {
        let said = refusal(&text);
        assert!(said.contains(says), "{said}");
    }
}

/// A cause that no packet of the path can meet is refused with its line and what to use: it would be as
/// expected whatever it is.
#[test]
fn causes_beside_the_path_are_refused() {
    let about = "kind = \"cause\"\nname = \"n\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\n";
    let expect = "expect = { client = \"survived\" }\n";
    let of = |path: &str, steps: &str, more: &str| {
        format!(
            "{about}[[case]]\ntitle = \"a: b\"\npath = \"{path}\"\nsteps = [\"connect\"{steps}]\n{expect}{more}"
        )
    };
    let host = |name: &str| format!("[[case.host]]\nnft = \"\"\nname = \"{name}\"\n");
    let lost = "network = { lose = 100,\n at = \"nodes\" }\n";
    let change = ", { change = {\n name = \"node2\", nft = \"\" } }";
    let node2 =
        "'node2' takes no part in path same-node, which is all on node1: use node1, or a path over";
    let second = "'server2' gets nothing before it is an endpoint: use endpoints = 2, or a step move-endpoint";
    for (path, steps, more, says, held) in [
        (
            "same-node",
            "",
            &*host("node2"),
            format!("line 13: case 'a: b': host: name: {node2}"),
            "snat",
        ),
        (
            "same-node",
            change,
            "",
            format!("line 10: case 'a: b': steps: change: name: {node2}"),
            "pod-ip",
        ),
        (
            "same-node",
            "",
            lost,
            "line 12: case 'a: b': network: at: 'nodes' is a link that".into(),
            "snat",
        ),
        (
            "hairpin",
            ",\n\"black-hole\"",
            "",
            "line 10: case 'a: b': steps: 'black-hole' is of the link".into(),
            "host-network-remote",
        ),
        (
            "host-network",
            "",
            "protections = [\"liberal@client\",\n\"forward-drop@server\"]",
            "line 12: case 'a: b': protections: 'forward-drop@server' is of node2".into(),
            "node-port-cluster-remote",
        ),
        (
            "cluster-ip",
            "",
            &*host("server2"),
            format!("line 13: case 'a: b': host: name: {second}"),
            "",
        ),
    ] {
        let said = refusal(&of(path, steps, more));
        assert!(said.contains(&says), "{says}: {said}");
        let held = if held.is_empty() {
            of(path, ", \"replace-endpoint\"", more)
        } else {
            of(held, steps, more)
        };
        assert!(parse("x.toml", &held).is_ok(), "{held}");
    }
    // What every case has must do something in one of them.
    let shared = |one: &str| {
        let other = of("same-node", "", "").split_off(about.len()).replace("a: b", "c");
        of(one, "", "").replacen("[[case]]", "[[host]]\nname = \"node2\"\nnft = \"\"\n[[case]]", 1)
            + &other
    };
    assert!(parse("x.toml", &shared("snat")).is_ok());
    let said = refusal(&shared("same-node"));
    assert!(said.contains(&format!("line 7: host: name: {node2}")), "{said}");
}

/// A line of rules has its line of the file where both have the same lines; else it is the value's.
#[test]
fn lines_of_rules_are_lines_of_the_file() {
    let about = "kind = \"cause\"\nname = \"n\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\n";
    let case = "[[case]]\ntitle = \"c\"\nexpect = { client = \"survived\" }\n";
    let steps = "steps = [\"connect\"]\n";
    let whole =
        |text: &str| format!("{about}[[host]]\nname = \"node1\"\nnft = {text}\n{case}{steps}");
    // The value begins at line 8.
    for (text, n, line) in [
        ("\"\"\"\na\nb\n\"\"\"", Some(1), 9),
        ("\"\"\"\r\na\r\nb\r\n\"\"\"", Some(2), 10),
        ("\"\"\"\na\nb\n\"\"\"", Some(3), 10),
        ("\"\"\"\na\nb\n\"\"\"", None, 8),
        ("\"\"\"a\nb\"\"\"", Some(2), 9),
        ("'''\na\nb'''", Some(2), 10),
        ("\"\"\"\na \\\n  b\nc\"\"\"", Some(2), 8),
        ("\"\"\"\na\\nb\"\"\"", Some(2), 8),
        ("\"a\\nb\"", Some(2), 8),
        ("\"\"", Some(1), 8),
    ] {
        let Body::Cause(of) = parse("x", &whole(text)).unwrap().body else { panic!("its kind") };
        let rules = of.hosts[0].nft.as_ref().unwrap();
        assert_eq!(rules.line(n), Some(line), "{text}");
        assert!(!rules.text.contains('\r'), "{text}");
    }
    let own = "[[case.host]]\nname = \"node1\"\niptables = '''\na\n'''\n";
    let change = "steps = [\"connect\", { change = { name = \"node1\", nft = '''\na\n''' } }]\n";
    let text = format!("{about}{case}{change}{own}");
    let Body::Cause(of) = parse("x", &text).unwrap().body else { panic!("its kind") };
    let Step::Change(host) = &of.cases[0].steps[1] else { panic!("its step") };
    let lines = [&host.nft, &of.cases[0].hosts[0].iptables];
    assert_eq!(lines.map(|r| r.as_ref().unwrap().line(Some(1))), [10, 15].map(Some));
}

/// A file with nothing in it is answered with how to begin.
#[test]
fn an_empty_file_is_told() {
    for empty in ["", "# nothing\n"] {
        assert!(
            refusal(empty)
                .ends_with("it is empty: `conntrack-lab new NAME` writes one to begin with")
        );
    }
}
