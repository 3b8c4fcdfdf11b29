//! The lab on real packets, in namespaces that it makes itself.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use canary_record::names::{EndedBy, Forgery};
use canary_testbed::exec::Call;
use canary_testbed::test::needs_root;
use common::{Left, lab, output, result, scratch, wait_for};
use conntrack_lab::document::lab::{Judgement, LabResult, Profile};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

canary_testbed::tests![
    outside: the_experiment_meets_its_expectation,
    a_false_expectation_is_found_out,
    a_tame_scenario_gets_a_control,
    without_a_positive_control_nothing_is_proved,
    tshark_counts_the_same_resets,
    an_ordinary_user_gets_the_same,
    signals_end_it_in_order,
    sigkill_leaves_nothing,
    a_full_disk_is_said_at_the_end,
    a_missing_tool_is_one_line,
    refused_user_namespaces_are_one_line,
    wrong_usage_is_one_line,
    shell_is_inside_the_host,
    keep_stays_up_until_told,
    list_and_check,
];

/// One unprotected and one protected cell, few connections.
const SHORT: &str = r#"
name = "short"
title = "For a test"
why = "For a test"
source = "for a test"
path = "cluster-ip"
families = ["ipv4"]
proxy-modes = ["nftables"]
connections = 10
forgeries = ["control", "below-window", "above-window", "ack-ahead", "no-flags", "syn-fin"]
[[cell]]
expect = "unprotected"
[[cell]]
protections = ["forward-drop"]
expect = "dropped"
"#;

fn seen(result: &LabResult, cell: usize, forgery: Forgery) -> (u64, u64) {
    let f = result.scenarios[0].cells[cell].forgeries.iter().find(|f| f.forgery == forgery);
    f.map(|f| (f.counts.leaked, f.counts.killed)).unwrap()
}

/// The whole experiment meets its expectation, its record is whole, and nothing is left.
fn the_experiment_meets_its_expectation() {
    let dir = scratch();
    let before = Left::now(dir.path());
    let file = dir.path().join("short.toml");
    fs::write(&file, SHORT).unwrap();
    let mut command = lab(&dir);
    // The programs' own variables, and those of a pod, are not for the programs under test.
    command.env("POD_IP", "198.18.255.1").env("BOOM_FORGE_DELAY", "1h").env("LOAD_PATTERN", "moon");
    let out = output(command.arg("run").arg(&file).arg("--output").arg(dir.path().join("r")));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let r = result(&dir.path().join("r"));
    assert_eq!(r.judgement, Judgement::AsExpected);
    assert!(r.positive_control.held);
    assert_eq!((r.positive_control.forged, r.positive_control.killed), (10, 10));
    let profiles: Vec<_> = r.scenarios[0].cells.iter().map(|c| c.profile).collect();
    assert_eq!(profiles, [Some(Profile::Unprotected), Some(Profile::Dropped)]);
    assert_eq!(seen(&r, 0, Forgery::AboveWindow), (10, 10));
    assert_eq!(seen(&r, 0, Forgery::AckAhead), (10, 0));
    assert_eq!(seen(&r, 1, Forgery::AboveWindow), (0, 0));
    let drops: u64 = r.scenarios[0].cells[1].nodes.iter().flat_map(|n| n.drop_rules.values()).sum();
    assert!(drops >= 40, "{drops}");
    assert!(out.stdout.contains("KILLS 10/10"), "{}", out.stdout);
    before.assert_same(dir.path());
}

/// An expectation that is not met ends with 10 and says what was seen instead.
fn a_false_expectation_is_found_out() {
    let dir = scratch();
    let file = dir.path().join("false.toml");
    // The cause removed: the cell is unprotected, but the expectation is kept.
    let bare = SHORT.replace("[[cell]]\nexpect = \"unprotected\"\n", "");
    fs::write(&file, bare.replace("protections = [\"forward-drop\"]\n", "")).unwrap();
    let out = output(lab(&dir).arg("run").arg(&file).arg("--output").arg(dir.path().join("r")));
    assert_eq!(out.code, 10, "{}{}", out.stdout, out.stderr);
    let r = result(&dir.path().join("r"));
    assert_eq!(r.judgement, Judgement::Differs);
    assert!(
        r.reasons.iter().any(|r| r.contains("above-window: expected dropped, saw kills")),
        "{:?}",
        r.reasons
    );
}

/// A scenario that forges nothing lethal gets a control beside it.
fn a_tame_scenario_gets_a_control() {
    let dir = scratch();
    let file = dir.path().join("tame.toml");
    let tame = SHORT
        .replace(r#""above-window", "ack-ahead", "no-flags", "syn-fin""#, r#""ack-ahead""#)
        .replace("connections = 10", "connections = 5");
    fs::write(&file, tame).unwrap();
    let out = output(lab(&dir).arg("run").arg(&file).arg("--output").arg(dir.path().join("r")));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let r = result(&dir.path().join("r"));
    assert_eq!((r.scenarios[0].name.as_str(), r.scenarios.len()), ("positive-control", 2));
    assert!(r.positive_control.held);
}

/// A run whose unprotected cell does not reset proves nothing: 11.
fn without_a_positive_control_nothing_is_proved() {
    let dir = scratch();
    let file = dir.path().join("short.toml");
    fs::write(&file, SHORT).unwrap();
    // A boom-server that leaves out what kills.
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let real = |name: &str| Path::new(env!("CARGO_BIN_EXE_conntrack-lab")).with_file_name(name);
    symlink(real("load-client"), bin.join("load-client")).unwrap();
    let script = format!(
        "#!/bin/sh\nfor a; do shift; set -- \"$@\" \"$(echo \"$a\" | sed s/above-window,//)\"; done\nexec {} \"$@\"\n",
        real("boom-server").display()
    );
    fs::write(bin.join("boom-server"), script).unwrap();
    fs::set_permissions(bin.join("boom-server"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = lab(&dir);
    command.arg("run").arg(&file).arg("--bin-dir").arg(&bin);
    let out = output(command.arg("--output").arg(dir.path().join("r")));
    assert_eq!(out.code, 11, "{}{}", out.stdout, out.stderr);
    let r = result(&dir.path().join("r"));
    assert!(!r.positive_control.held);
    assert!(r.reasons[0].starts_with("no positive control"), "{:?}", r.reasons);
}

/// tshark, whose parser is not ours, counts the same RSTs in the capture as the judgement.
fn tshark_counts_the_same_resets() {
    let dir = scratch();
    let file = dir.path().join("short.toml");
    fs::write(&file, SHORT).unwrap();
    let results = dir.path().join("r");
    let out =
        output(lab(&dir).arg("run").arg(&file).arg("--capture=all").arg("--output").arg(&results));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let r = result(&results);
    for cell in &r.scenarios[0].cells {
        let pcap = cell.captures.iter().find(|c| c.forgery.is_none() && c.host == "server");
        let pcap = results.join(&pcap.unwrap().file);
        // RSTs from the client's side; those of leaked segments come before any data,
        // so one for each connection that leaked.
        let (what, pcap) = ("tcp.flags.reset==1 && tcp.dstport==9000", pcap.display().to_string());
        let args = ["-n", "-T", "fields", "-e", "tcp.srcport", "-Y", what, "-r", &pcap];
        let tshark = Call::new(Path::new("tshark"), &args).run();
        let text = tshark.expect("tshark is needed: install the Debian package tshark");
        let mut ports: Vec<_> = text.lines().collect();
        ports.sort_unstable();
        ports.dedup();
        let leaked: u64 = cell.forgeries.iter().map(|f| f.counts.leaked).sum();
        assert_eq!(ports.len() as u64, leaked, "{}: {text}", cell.id);
        let counted: u64 = cell.captured_resets.as_ref().unwrap().values().sum();
        assert_eq!(counted, leaked);
    }
}

/// Without root, where user namespaces are allowed, the result is the same.
fn an_ordinary_user_gets_the_same() {
    needs_root("without it every other test here shows this already");
    let dir = scratch();
    let file = dir.path().join("short.toml");
    fs::write(&file, SHORT).unwrap();
    common::open_to_all(dir.path());
    let mut command = common::command(&dir, "unshare");
    command.args(["--mount", "sh", "-c", &common::as_user(&dir, "true"), "65534"]);
    command.arg(common::programs()).arg("run").arg(&file).args(["--output", "r"]);
    let out = output(&mut command);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let r = result(&dir.path().join("r"));
    assert!(r.environment.user_namespace);
    assert_eq!(r.judgement, Judgement::AsExpected);
}

/// SIGINT and SIGTERM end the run in order: results so far, exit 11, nothing left.
fn signals_end_it_in_order() {
    for (signal, by) in [(Signal::SIGINT, EndedBy::Sigint), (Signal::SIGTERM, EndedBy::Sigterm)] {
        let dir = scratch();
        let before = Left::now(dir.path());
        let file = dir.path().join("short.toml");
        fs::write(&file, SHORT).unwrap();
        let results = dir.path().join("r");
        let mut command = lab(&dir);
        command.args(["run", "--repeat=20"]).arg(&file).arg("--output").arg(&results);
        let child = common::start(&mut command);
        wait_for("a first result", Duration::from_secs(60), || {
            results.join("results.json").exists()
        });
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let asked = Instant::now();
        let out = common::finish(child);
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert_eq!(out.code, 11, "{}{}", out.stdout, out.stderr);
        let r = result(&results);
        assert_eq!(r.run.ended_by, by);
        assert!(r.scenarios[0].reasons[0].contains("cells were not run"), "{:?}", r.reasons);
        before.assert_same(dir.path());
    }
}

/// SIGKILL to the lab, or to the process inside its namespaces, at any moment leaves no
/// process, mount, interface, namespace or setting. LAB_KILLS sets how many moments, LAB_SEED
/// the numbers they come from; the default keeps the test short.
fn sigkill_leaves_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let kills: u64 = number("LAB_KILLS").unwrap_or(10);
    let seed: u64 = number("LAB_SEED").unwrap_or_else(rand::random);
    let mut random = StdRng::seed_from_u64(seed);
    let run = || {
        let dir = scratch();
        let file = dir.path().join("short.toml");
        fs::write(&file, SHORT).unwrap();
        let mut command = lab(&dir);
        command.args(["run", "close-unread"]).arg(file).arg("--output").arg(dir.path().join("r"));
        (dir, command)
    };
    let begun = Instant::now();
    let (_whole, mut command) = run();
    assert_eq!(output(&mut command).code, 0);
    let whole = begun.elapsed();
    let (mut late, mut inner) = (0, 0);
    for n in 1..=kills {
        let after = whole.mul_f64(random.random());
        let inside: bool = random.random();
        // Shown when the test fails.
        eprintln!("LAB_SEED={seed}: kill {n} of {kills} after {after:?}, inside: {inside}");
        let (dir, mut command) = run();
        let before = Left::now(dir.path());
        let mut child = common::start(&mut command);
        let until = Instant::now() + after;
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_some() {
            late += 1;
        } else if let Some(pid) = inside.then(|| common::child_of(child.id())).flatten() {
            inner += 1;
            kill(pid, Signal::SIGKILL).unwrap();
        } else {
            child.kill().unwrap();
        }
        child.wait().unwrap();
        before.assert_same(dir.path());
    }
    println!(
        "{kills} kills in the {whole:?} of a run: {inner} inside, {late} runs had ended; LAB_SEED={seed}"
    );
    assert!(late < kills, "no run was killed: LAB_SEED={seed}");
}

/// A missing tool is one clear line with its package, exit 1, and nothing made.
fn a_missing_tool_is_one_line() {
    let dir = scratch();
    let before = Left::now(dir.path());
    for (tool, package) in [("nft", "nftables"), ("ip", "iproute2"), ("tcpdump", "tcpdump")] {
        let path = common::tool(tool);
        // In a mount namespace of its own the tool is no file any more.
        let hide = format!("mount --bind /dev/null {} && exec \"$@\"", path.display());
        let mut command = lab(&dir);
        let mut hidden = Command::new("unshare");
        hidden.args(["--mount", "--map-root-user", "sh", "-c", &hide, "sh"]);
        hidden.arg(command.get_program()).args(["run", "--output", "r"]);
        hidden.current_dir(dir.path());
        command = hidden;
        let out = output(&mut command);
        assert_eq!(out.code, 1, "{}{}", out.stdout, out.stderr);
        assert_eq!(out.stderr.lines().count(), 1, "{}", out.stderr);
        assert!(out.stderr.contains(&format!("cannot find {tool}: ")), "{}", out.stderr);
        assert!(out.stderr.contains(package), "{}", out.stderr);
        assert!(!dir.path().join("r").exists());
    }
    before.assert_same(dir.path());
}

/// Where user namespaces are refused, an ordinary user is told which setting refuses them,
/// in one line, exit 1, and nothing is made; root goes on without.
fn refused_user_namespaces_are_one_line() {
    needs_root("the map of another user namespace is to be written");
    let dir = scratch();
    // max_user_namespaces belongs to the user namespace that it is set in.
    let script = common::as_user(&dir, "echo 0 > /proc/sys/user/max_user_namespaces");
    for (user, args, code) in [("65534", &["run", "--output", "r"][..], 1), ("0", &["check"], 0)] {
        let mut holder = Command::new("unshare").args(["--user", "sleep", "60"]).spawn().unwrap();
        let own = fs::read_link("/proc/self/ns/user").unwrap();
        let of = format!("/proc/{}", holder.id());
        wait_for("a user namespace", Duration::from_secs(10), || {
            fs::read_link(format!("{of}/ns/user")).is_ok_and(|ns| ns != own)
        });
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("{of}/{map}"), "0 0 65536").unwrap();
        }
        let mut inside = common::command(&dir, "nsenter");
        inside.arg(format!("--user={of}/ns/user")).args(["--setuid", "0", "--setgid", "0"]);
        inside.args(["unshare", "--mount", "sh", "-c", &script, user]).arg(common::programs());
        let out = output(inside.args(args));
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(out.code, code, "{}{}", out.stdout, out.stderr);
        if code == 1 {
            assert_eq!(out.stderr.lines().count(), 1, "{}", out.stderr);
            let mend = "user namespaces are refused here";
            assert!(out.stderr.contains(mend), "{}", out.stderr);
            assert!(out.stderr.contains("user.max_user_namespaces=10000"), "{}", out.stderr);
            assert!(!dir.path().join("r").exists());
        }
    }
}

/// Wrong usage is one line and exit 2, before anything is made.
fn wrong_usage_is_one_line() {
    let dir = scratch();
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("x"), "").unwrap();
    let bad = dir.path().join("bad.toml");
    fs::write(&bad, SHORT.replace("title", "titel")).unwrap();
    let bad = bad.display().to_string();
    let full = full.display().to_string();
    // (Root reads every directory.)
    let looped = dir.path().join("loop");
    std::os::unix::fs::symlink(&looped, &looped).unwrap();
    let looped = looped.display().to_string();
    let cases: [(&[&str], &str); 8] = [
        (
            &["run", "no-such-scenario"],
            "no scenario 'no-such-scenario': name one that `conntrack-lab list` shows",
        ),
        (&["run", &bad], "unknown field `titel`"),
        (&["run", "/nowhere.toml"], "cannot read scenario /nowhere.toml"),
        (&["run", "--output", &full], "is not an empty directory; name another"),
        (
            &["run", "--output", &looped],
            "loop: Too many levels of symbolic links (os error 40); name",
        ),
        (&["run", "hairpin", "hairpin"], "two scenarios are named 'hairpin': name each once"),
        (&["run", "--repeat", "0"], "--repeat"),
        (&["run", "--time-scale", "no"], "'no' is not a factor"),
    ];
    for (args, says) in cases {
        let out = output(lab(&dir).args(args));
        assert_eq!(out.code, 2, "{args:?}: {}{}", out.stdout, out.stderr);
        assert_eq!(out.stderr.lines().count(), 1, "{args:?}: {}", out.stderr);
        assert!(out.stderr.contains(says), "{args:?}: {}", out.stderr);
    }
}

/// `shell` runs in the host that was asked for, rules loaded, and leaves nothing.
fn shell_is_inside_the_host() {
    let dir = scratch();
    let before = Left::now(dir.path());
    let mut command = lab(&dir);
    command.args(["shell", "hairpin", "--in", "node1", "--protection", "forward-drop@client"]);
    command.env("SHELL", "/bin/sh").stdin(Stdio::piped());
    let mut child = common::start(&mut command);
    let script = "ip -br addr; nft list ruleset; cat /proc/sys/net/ipv4/ip_forward; exit 3\n";
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let out = common::finish(child);
    assert_eq!(out.code, 3, "the shell's own: {}{}", out.stdout, out.stderr);
    assert!(out.stdout.contains("198.18.0.11/24"), "{}", out.stdout);
    assert!(out.stdout.contains("ct state invalid counter"), "{}", out.stdout);
    before.assert_same(dir.path());
    let out = output(lab(&dir).args(["shell", "hairpin", "--in", "moon"]));
    assert_eq!(out.code, 2);
    assert!(out.stderr.contains("no host 'moon' in hairpin: use node1"), "{}", out.stderr);
}

/// `--keep` stays up after the run, and the command that it prints enters a host.
fn keep_stays_up_until_told() {
    needs_root("a host that is kept is to be entered");
    let dir = scratch();
    let before = Left::now(dir.path());
    let file = dir.path().join("short.toml");
    fs::write(&file, SHORT).unwrap();
    let mut command = lab(&dir);
    command.args(["run", "--keep"]).arg(&file).arg("--output").arg(dir.path().join("r"));
    let mut child = common::start(&mut command);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.find(|l| l.as_ref().unwrap().contains("netns exec l0-client")).unwrap();
    let line = line.unwrap().trim().replace(" sh", " ip -br addr");
    let text = Call::sh(&line).run().unwrap();
    assert!(text.contains("198.18.65.10"), "{line}: {text}");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(common::finish(child).code, 0);
    before.assert_same(dir.path());
}

/// On a full disk the run ends with 1, one line says why, and the last line of stdout names no result that is
/// not there.
fn a_full_disk_is_said_at_the_end() {
    needs_root("a disk that is full is to be mounted");
    let dir = scratch();
    fs::write(dir.path().join("short.toml"), SHORT).unwrap();
    let mut command = common::command(&dir, "unshare");
    let script = "mkdir small && mount -t tmpfs -o size=32k small small && \
                  exec \"$0\" run short.toml --output small/r";
    command.args(["--mount", "sh", "-c", script]).arg(common::programs().join("conntrack-lab"));
    let out = output(&mut command);
    assert_eq!(out.code, 1, "{}{}", out.stdout, out.stderr);
    assert!(out.stderr.contains("small/r/results.json: No space left on device"), "{}", out.stderr);
    let last: serde_json::Value = out.stdout.lines().last().unwrap().parse().unwrap();
    assert_eq!((&last["ended_by"], &last["results"]), (&"error".into(), &serde_json::Value::Null));
}

/// `list` names every scenario, `check` finds everything that is needed here.
fn list_and_check() {
    let dir = scratch();
    let out = output(lab(&dir).arg("list"));
    assert_eq!(out.code, 0);
    for name in ["cluster-ip", "node-port-cluster", "hairpin", "pod-ip"] {
        assert!(out.stdout.contains(name), "{}", out.stdout);
    }
    let out = output(lab(&dir).arg("check"));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
}
