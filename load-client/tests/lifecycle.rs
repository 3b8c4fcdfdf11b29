//! How a run ends: by a signal, with a disk that is full, with a stdout that nobody reads.

mod common;

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use canary_record::names::EndedBy;
use canary_record::result::load::LoadResult;
use common::{BIN, Ns, Running, check_sum, last, privileged, wait_for};
use serde_json::Value;

/// Whatever is going on, SIGTERM brings the whole result within 2 s.
#[test]
fn sigterm_in_every_phase() {
    if !privileged("sigterm_in_every_phase") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let _serve = ns.serve();
    // 8081 answers no SYN; 8082 accepts and stays silent.
    ns.rule("tcp dport 8081 drop");
    ns.server(8082, |_s| std::thread::sleep(Duration::from_secs(60)));
    let connecting = "ss -Htn state syn-sent | grep -c .";
    let established = "ss -Htn state established | grep -c .";
    for (n, (args, busy)) in [
        ("churn --target tcp://127.0.0.1:8081 --concurrency 20 --timeout 60s", connecting),
        ("churn --target http://127.0.0.1:8082/ --concurrency 20 --timeout 60s", established),
        ("churn --target http://127.0.0.1:8080/ --rate 0.01", "true"),
        ("churn --target tcp://127.0.0.1:8080 --ramp 1h", "true"),
        ("hold --target tcp://127.0.0.1:8081 --connections 20 --timeout 60s", connecting),
        ("hold --target tcp://127.0.0.1:8080 --connections 20", established),
        ("probe --target tcp://127.0.0.1:8081 --connections 20 --timeout 60s", connecting),
        ("probe --target tcp://127.0.0.1:8080 --connections 20 --delay 1m", established),
        (
            "probe --target tcp://127.0.0.1:8082 --connections 20 --delay 0s --timeout 60s",
            established,
        ),
        ("probe --target tcp://127.0.0.1:8080 --connections 1 --delay 0s --every 1h", "true"),
    ]
    .into_iter()
    .enumerate()
    {
        let (out, file) = (dir.path().join("out"), dir.path().join(format!("{n}.json")));
        let mut load = ns.start(&format!("{args} --output {}", file.display()), &out);
        wait_for(args, || {
            ns.command("sh").args(["-c", busy]).output().unwrap().status.success()
                && std::fs::read_to_string(format!("/proc/{}/status", load.0.id()))
                    .is_ok_and(|s| s.lines().any(catches_term))
        });
        let at = Instant::now();
        load.signal("TERM");
        let code = load.wait(Duration::from_secs(3));
        assert!(at.elapsed() < Duration::from_secs(2), "{args}: {:?}", at.elapsed());
        assert!([0, 10, 11].contains(&code), "{args}: {code}");
        let r: LoadResult = serde_json::from_slice(&std::fs::read(&file).expect(args)).unwrap();
        check_sum(&r);
        assert_eq!(r.run.ended_by, EndedBy::Sigterm, "{args}");
        assert_eq!(r, last(&std::fs::read_to_string(&out).unwrap()), "{args}");
    }
}

/// proc(5): the mask of the signals that are caught; SIGTERM is 15.
fn catches_term(line: &str) -> bool {
    let mask = line.strip_prefix("SigCgt:").map(|m| u64::from_str_radix(m.trim(), 16).unwrap());
    mask.is_some_and(|m| m >> 14 & 1 == 1)
}

/// A disk that is full loses the file and nothing else: the result is on stdout, the failure on
/// stderr, the exit code 1.
#[test]
fn a_full_disk_loses_the_file_alone() {
    if !privileged("a_full_disk_loses_the_file_alone") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("r.json")).unwrap();
    let out = ns
        .command(BIN)
        .args(["churn", "--target", "tcp://127.0.0.1:8080", "--connections", "50", "--output"])
        .arg(dir.path().join("r.json"))
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.contains("No space left on device") && stderr.lines().count() == 1, "{stderr}");
    let r: LoadResult = last(&String::from_utf8(out.stdout).unwrap());
    assert_eq!((r.attempts, r.ok), (50, 50));
}

/// A stdout that nobody reads holds up no connection, and SIGTERM brings the file within 2 s.
#[test]
fn an_unread_stdout_holds_up_nothing() {
    if !privileged("an_unread_stdout_holds_up_nothing") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("r.json");
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // As much as the pipe holds.
    writer.write_all(&vec![b'\n'; 64 << 10]).unwrap();
    let child = ns
        .command(BIN)
        .args(["churn", "--target", "tcp://127.0.0.1:9", "--rate", "200", "--output"])
        .arg(&file)
        .stdout(writer)
        .spawn()
        .unwrap();
    let mut churn = Running(child);
    ns.rule("tcp dport 9 counter");
    wait_for("a second's refused connections", || ns.counted()[0] > 200);
    let at = Instant::now();
    churn.signal("TERM");
    wait_for("the file", || file.exists());
    assert!(at.elapsed() < Duration::from_secs(2), "{:?}", at.elapsed());
    let r: LoadResult = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    check_sum(&r);
    assert_eq!(r.run.ended_by, EndedBy::Sigterm);
    // Read at last, it has every line that was not lost, and the result.
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(r, last(&text));
    let events = text
        .lines()
        .filter(|l| serde_json::from_str::<Value>(l).is_ok_and(|v| v["level"] == "WARN"));
    assert!(events.count() > 5, "{text:.2000}");
    assert_eq!(churn.wait(Duration::from_secs(2)), 11);
}

/// A resolver that never answers holds up neither SIGTERM nor the exit, whichever name it is
/// asked for; what could not be resolved is named.
#[test]
fn sigterm_while_the_resolver_is_silent() {
    if !privileged("sigterm_while_the_resolver_is_silent") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let resolv = dir.path().join("resolv.conf");
    std::fs::write(&resolv, "nameserver 198.18.0.1\noptions timeout:30 attempts:5\n").unwrap();
    // What loopback brings back for a foreign address is dropped.
    ns.sh("ip route add 198.18.0.1 dev lo");
    for (target, why) in [
        ("tcp://silent.invalid:1", "no answer from the resolver"),
        ("tcp://127.0.0.1:1 --fill http://silent.invalid:1", "no answer yet"),
    ] {
        let line = format!(
            "mount --bind {} /etc/resolv.conf && exec {BIN} churn --connections 1 --target {target}",
            resolv.display()
        );
        let mut c = ns.command("unshare");
        let (err, at) = (dir.path().join("err"), Instant::now());
        c.args(["--mount", "sh", "-c", &line]).stderr(std::fs::File::create(&err).unwrap());
        let mut load = Running(c.stdout(std::process::Stdio::null()).spawn().unwrap());
        wait_for("signals are caught", || {
            std::fs::read_to_string(format!("/proc/{}/status", load.0.id()))
                .is_ok_and(|s| s.lines().any(catches_term))
        });
        load.signal("TERM");
        assert_eq!(load.wait(Duration::from_secs(2)), 2, "{target}");
        assert!(at.elapsed() < Duration::from_secs(5), "the resolver answered: {:?}", at.elapsed());
        let said = std::fs::read_to_string(&err).unwrap();
        assert!(said.contains("silent.invalid") && said.contains(why), "{said}");
    }
}
