//! How a run ends: by a signal, with a disk that is full, with a stdout that nobody reads.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use canary_record::names::EndedBy;
use canary_record::result::load::LoadResult;
use canary_testbed::exec::Call;
use canary_testbed::programs::{Running, document, load_client};
use canary_testbed::test::{Bed, wait_for};
use canary_testbed::topology::Topology;
use nix::sys::signal::Signal;

use crate::accounts::{check_sum, stop, with_file};
use serde_json::Value;

/// Whatever is going on, SIGTERM brings the whole result within 2 s.
pub(crate) fn sigterm_in_every_phase() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    // 8081 answers no SYN; 8082 accepts and stays silent.
    bed.rule("host", "tcp dport 8081 drop");
    bed.server("host", 8082, |_s| std::thread::sleep(Duration::from_secs(60)));
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
        let file = bed.file(&format!("{n}.json"));
        let load = bed.load(&format!("{args} --output {}", file.display()));
        wait_for(args, || bed.run("host", &Call::sh(busy)).status.success() && catches_term(&load));
        let at = Instant::now();
        let ended = stop(load);
        let code = ended.code();
        assert!(at.elapsed() < Duration::from_secs(2), "{args}: {:?}", at.elapsed());
        assert!([0, 10, 11].contains(&code), "{args}: {code}");
        let r: LoadResult = serde_json::from_slice(&std::fs::read(&file).expect(args)).unwrap();
        assert_eq!(r.run.ended_by, EndedBy::Sigterm, "{args}");
        assert_eq!(r, ended.result, "{args}");
    }
}

/// proc(5): the mask of the signals that are caught; SIGTERM is 15.
pub(crate) fn catches_term(running: &Running<LoadResult>) -> bool {
    let caught = |line: &str| {
        let mask = line.strip_prefix("SigCgt:").map(|m| u64::from_str_radix(m.trim(), 16).unwrap());
        mask.is_some_and(|m| m >> 14 & 1 == 1)
    };
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid()));
    status.is_ok_and(|s| s.lines().any(caught))
}

/// A disk that is full loses the file and nothing else: the result is on stdout, the failure on
/// stderr, the exit code 1.
pub(crate) fn a_full_disk_loses_the_file_alone() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let output = bed.file("r.json");
    std::os::unix::fs::symlink("/dev/full", &output).unwrap();
    let words = ["churn", "--target", "tcp://127.0.0.1:8080", "--connections", "50", "--output"];
    let program = load_client(&[&words[..], &[output.to_str().unwrap()]].concat()).unwrap();
    let out = bed.run("host", &program.call());
    assert_eq!(out.status.code(), Some(1));
    let stderr = out.stderr;
    assert!(stderr.contains("No space left on device") && stderr.lines().count() == 1, "{stderr}");
    let r: LoadResult = document(&out.stdout).unwrap();
    assert_eq!((r.attempts, r.ok), (50, 50));
}

/// A file that is a mount of its own, as one that a container was given, holds the result too.
pub(crate) fn a_mounted_file_is_written_to() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let (given, testbed) = (bed.file("given"), bed.file("r.json"));
    for file in [&given, &testbed] {
        std::fs::write(file, "older, and longer than nothing").unwrap();
    }
    let testbed = testbed.to_str().unwrap();
    let words = ["churn", "--target", "tcp://127.0.0.1:8080", "--connections", "5", "--output"];
    let program = load_client(&[&words[..], &[testbed]].concat()).unwrap();
    let out = bed.run("host", &with_file(program, &given, testbed).call());
    assert_eq!((out.status.code(), out.stderr.as_str()), (Some(0), ""));
    let r: LoadResult = serde_json::from_slice(&std::fs::read(&given).unwrap()).unwrap();
    assert_eq!((r.attempts, r.ok), (5, 5));
}

/// A stdout that nobody reads holds up no connection, and SIGTERM brings the file within 2 s.
pub(crate) fn an_unread_stdout_holds_up_nothing() {
    let bed = Bed::new(Topology::single);
    let file = bed.file("r.json");
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // As much as the pipe holds.
    writer.write_all(&vec![b'\n'; 64 << 10]).unwrap();
    let output = file.to_str().unwrap();
    let words = ["churn", "--target", "tcp://127.0.0.1:9", "--rate", "200", "--output", output];
    let program = load_client(&words).unwrap();
    let churn = program.start_into(writer, bed.testbed(), "host", &bed.file("log")).unwrap();
    bed.rule("host", "tcp dport 9 counter");
    wait_for("a second's refused connections", || bed.counted("host")[0] > 200);
    let at = Instant::now();
    churn.signal(Signal::SIGTERM);
    wait_for("the file", || file.exists());
    assert!(at.elapsed() < Duration::from_secs(2), "{:?}", at.elapsed());
    let r: LoadResult = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    check_sum(&r);
    assert_eq!(r.run.ended_by, EndedBy::Sigterm);
    // Read at last, it has every line that was not lost, and the result.
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(r, document(&text).unwrap());
    let events = text
        .lines()
        .filter(|l| serde_json::from_str::<Value>(l).is_ok_and(|v| v["level"] == "WARN"));
    assert!(events.count() > 5, "{text:.2000}");
    assert_eq!(churn.wait(Duration::from_secs(2)).unwrap().code(), Some(11));
}

/// A resolver that never answers holds up neither SIGTERM nor the exit, whichever name it is
/// asked for; what could not be resolved is named.
pub(crate) fn sigterm_while_the_resolver_is_silent() {
    let bed = Bed::new(Topology::single);
    let resolv = bed.file("resolv.conf");
    std::fs::write(&resolv, "nameserver 198.18.0.1\noptions timeout:30 attempts:5\n").unwrap();
    // What loopback brings back for a foreign address is dropped.
    bed.sh("host", "ip route add 198.18.0.1 dev lo");
    for (target, why) in [
        (&["--target", "tcp://silent.invalid:1"][..], "no answer from the resolver"),
        (&["--target", "tcp://127.0.0.1:1", "--fill", "http://silent.invalid:1"], "no answer yet"),
    ] {
        let program = load_client(&[&["churn", "--connections", "1"], target].concat()).unwrap();
        let program = with_file(program, &resolv, "/etc/resolv.conf");
        let (log, at) = (bed.file("silent.log"), Instant::now());
        let load = program.start(bed.testbed(), "host", &log).unwrap();
        wait_for("signals are caught", || catches_term(&load));
        load.signal(Signal::SIGTERM);
        let said = load.log().to_owned();
        assert_eq!(load.wait(Duration::from_secs(2)).unwrap().code(), Some(2), "{target:?}");
        assert!(at.elapsed() < Duration::from_secs(5), "the resolver answered: {:?}", at.elapsed());
        let said = std::fs::read_to_string(said).unwrap();
        assert!(said.contains("silent.invalid") && said.contains(why), "{said}");
    }
}
