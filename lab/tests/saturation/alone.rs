//! Saturation and the host's own conntrack limit, on real packets.
//!
//! These tests change nf_conntrack_max of the host for a moment, so they run one at a time, beside no
//! other tests of packets (`make alone`), only as root of the initial network namespace, and only where no
//! namespace has many entries; otherwise they say SKIPPED and why.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::common::{Left, lab, output, result, scratch, wait_for};
use canary_record::names::ProbeEnd;
use canary_testbed::test::{needs_root, skip};
use conntrack_lab::document::lab::Judgement;
use conntrack_lab::document::timeline::{FailureClass, Finding};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";
const SHIPPED: &str = include_str!("../../scenarios/saturation.toml");

static ALONE: Mutex<()> = Mutex::new(());

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The most entries of any network namespace.
fn entries() -> u64 {
    let of = |process: fs::DirEntry| {
        let text = fs::read_to_string(process.path().join("net/stat/nf_conntrack")).ok()?;
        u64::from_str_radix(text.lines().nth(1)?.split_whitespace().next()?, 16).ok()
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(of).max().unwrap_or(0)
}

/// The right to change the host's limit, and a size with room for what the host
/// has; the test is skipped where there is none.
fn alone(most: u64) -> (MutexGuard<'static, ()>, u64) {
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let now = read(MAX);
    let used = entries();
    let why = if fs::write(MAX, &now).is_err() {
        "nf_conntrack_max cannot be written: not root of the initial network namespace".to_owned()
    } else if used > most {
        format!("a network namespace of this host has {used} conntrack entries")
    } else {
        return (guard, (used * 5).max(4000));
    };
    skip(why)
}

/// Shorter steps; the wait for the garbage collector is what it is.
fn short(load: &str) -> String {
    SHIPPED
        .replace("\nseconds = 4\n", "\nseconds = 2\n")
        .replace("load = 1.1", &format!("load = {load}"))
}

/// A table fills: new connections time out, established ones live, be_liberal
/// does not help, a bigger table and shorter timeouts do. Afterwards the host's
/// values are what they were.
pub(super) fn a_full_table_is_what_is_expected() {
    let (_alone, size) = alone(20_000);
    let dir = scratch();
    let (before, max, buckets) = (Left::now(dir.path()), read(MAX), read(BUCKETS));
    let file = dir.path().join("saturation.toml");
    fs::write(&file, short("1.1")).unwrap();
    let results = dir.path().join("r");
    let out = output(
        lab(&dir)
            .args(["run", &format!("--host-table-size={size}")])
            .arg(&file)
            .arg("--output")
            .arg(&results),
    );
    assert_eq!((read(MAX), read(BUCKETS)), (max, buckets));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    assert!(out.stderr.contains("nf_conntrack_max is"), "{}", out.stderr);
    let r = result(&results);
    let s = r.scenarios.iter().find(|s| s.name == "saturation").unwrap();
    assert_eq!(s.judgement, Judgement::AsExpected, "{:?}", s.reasons);
    let t = s.timeline.as_ref().unwrap();
    // Step and series count the same attempts, and the series saw the limit reached. The
    // places where entries are evicted or dropped early have tables of their own: their loads are
    // in no series.
    let apart = [
        "full of established",
        "INVALID dropped",
        "waiting for room",
        "nine tenths full",
        "the SYN ACK on its way",
        "the client's ACK on its way",
        "a PREROUTING drop",
    ];
    let (places, steps): (Vec<_>, Vec<_>) =
        t.steps.iter().partition(|s| apart.iter().any(|title| s.title.contains(title)));
    assert_eq!(places.len(), apart.len());
    let steps: u64 = steps.iter().map(|s| s.new_attempts).sum();
    let series: u64 = t.samples.iter().map(|s| s.attempts).sum();
    assert_eq!(steps, series);
    assert!(t.samples.iter().any(|s| s.limit == size && s.entries * 100 >= size * 99));
    assert!(t.samples.iter().any(|s| s.limit == size * 4));
    let load = t.steps.iter().find(|s| s.title.contains("smaller than the load")).unwrap();
    assert!(load.new_failures[&FailureClass::ConnectTimeout] > 0);
    assert!(load.conntrack.drop >= load.new_failures[&FailureClass::ConnectTimeout]);
    assert!(t.statements.iter().any(|s| s.finding == Finding::DoesNotHold));
    // Transfers lost their entries where the table was full, and nowhere else.
    let evicted = |title: &str| {
        let step = t.steps.iter().find(|s| s.title.contains(title)).unwrap();
        step.established.get(&ProbeEnd::Reset).copied().unwrap_or(0)
    };
    if size <= 20_000 {
        assert!(evicted("full of established") > 0 && evicted("INVALID dropped") > 0);
        assert_eq!(evicted("nine tenths full"), 0);
        // Handshakes whose entry was dropped early: which segment was on its way decides.
        let failed = |title: &str, class| {
            let step = t.steps.iter().find(|s| s.title.contains(title)).unwrap();
            assert!(step.conntrack.early_drop > 0, "{title}");
            step.new_failures.get(&class).copied().unwrap_or(0)
        };
        assert_eq!(failed("the SYN ACK on its way", FailureClass::Reset), 0);
        assert!(failed("the client's ACK on its way", FailureClass::Reset) > 0);
        assert_eq!(failed("a PREROUTING drop", FailureClass::Reset), 0);
    }
    before.assert_same(dir.path());
}

/// The cause removed, a load that the table has room for: nothing is shown of a
/// full table, and the run does not pass.
pub(super) fn a_table_that_does_not_fill_proves_nothing() {
    let (_alone, _) = alone(20_000);
    let dir = scratch();
    let file = dir.path().join("saturation.toml");
    let text = short("0.02").replace("clients = [10, 20, 50]", "clients = [1]");
    // The rate of the other steps follows the table's size: one second of them.
    fs::write(&file, text.replace("\nseconds = 2\n", "\nseconds = 1\n")).unwrap();
    let results = dir.path().join("r");
    let out = output(
        lab(&dir).args(["run", "--host-table-size=40000"]).arg(&file).arg("--output").arg(&results),
    );
    assert_eq!(out.code, 11, "{}{}", out.stdout, out.stderr);
    let r = result(&results);
    let s = r.scenarios.iter().find(|s| s.name == "saturation").unwrap();
    assert!(
        s.reasons.iter().any(|r| r.starts_with("new-connections-time-out: expected holds")),
        "{:?}",
        s.reasons
    );
}

/// Where another program writes the host's limit in mid-run nothing is said of a table's size. The
/// steps before that are kept.
pub(super) fn another_programs_limit_ends_it() {
    let (_alone, _) = alone(20_000);
    let dir = scratch();
    let max: u64 = read(MAX).parse().unwrap();
    let file = dir.path().join("saturation.toml");
    fs::write(&file, short("1.1")).unwrap();
    let mut command = lab(&dir);
    command.arg("run").arg(&file).arg("--output").arg(dir.path().join("r"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut all = String::new();
    while !all.contains("20 clients") && said.read_line(&mut all).unwrap() > 0 {}
    fs::write(MAX, (max + 1).to_string()).unwrap();
    std::io::copy(&mut said, &mut std::io::sink()).unwrap();
    let code = child.wait().unwrap().code();
    fs::write(MAX, max.to_string()).unwrap();
    assert_eq!(code, Some(11), "{all}");
    let r = result(&dir.path().join("r"));
    let s = r.scenarios.iter().find(|s| s.name == "saturation").unwrap();
    assert_eq!(s.judgement, Judgement::Inconclusive);
    let why = format!("it is {} and was {max}: another program writes it", max + 1);
    assert!(s.reasons.iter().any(|r| r.contains(&why)), "{:?}", s.reasons);
    assert!(!s.timeline.as_ref().unwrap().steps.is_empty());
}

/// SIGKILL, SIGTERM and SIGINT to the lab at any moment: both values are back.
pub(super) fn the_host_limit_is_restored_however_it_ends() {
    let (_alone, size) = alone(60_000);
    let (max, buckets) = (read(MAX), read(BUCKETS));
    for (n, signal) in
        [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL, Signal::SIGKILL]
            .into_iter()
            .enumerate()
    {
        let dir = scratch();
        let before = Left::now(dir.path());
        let mut command = lab(&dir);
        command.args(["run", "positive-control.toml", "--output", "r"]);
        command.arg(format!("--host-table-size={size}"));
        let control = include_str!("../../scenarios/positive-control.toml");
        fs::write(dir.path().join("positive-control.toml"), control).unwrap();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        if n < 4 {
            // In the midst of the run; the last is killed at once.
            wait_for("a smaller table", Duration::from_secs(20), || read(MAX) == size.to_string());
        }
        std::thread::sleep(Duration::from_millis(150 * n as u64 % 450));
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        child.wait().unwrap();
        wait_for("the old values", Duration::from_secs(10), || {
            (read(MAX), read(BUCKETS)) == (max.clone(), buckets.clone())
        });
        // The guarding process has ended too, and with it the last holder of stderr.
        let mut line = String::new();
        while said.read_line(&mut line).unwrap() > 0 {}
        before.assert_same(dir.path());
    }
}

/// A table too small for what the host has, and a second run at the same time, are refused.
pub(super) fn a_busy_host_is_left_alone() {
    let (_alone, size) = alone(60_000);
    let (max, buckets) = (read(MAX), read(BUCKETS));
    let dir = scratch();
    let out = output(lab(&dir).args(["run", "saturation", "--host-table-size=100"]));
    assert_eq!(out.code, 2, "{}", out.stderr);
    assert!(out.stderr.contains("--host-table-size"), "{}", out.stderr);
    // The first holds the table until its stdin ends.
    let mut first = lab(&dir);
    first.args(["host-table", &size.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut first = first.stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(first.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), read(MAX)), ("set\n", size.to_string()));
    let out = output(lab(&dir).args(["run", "saturation", &format!("--host-table-size={size}")]));
    assert_eq!(out.code, 1, "{}", out.stderr);
    assert!(out.stderr.contains("another run holds"), "{}", out.stderr);
    assert_eq!(read(MAX), size.to_string());
    drop(first.stdin.take());
    assert!(first.wait().unwrap().success());
    assert_eq!((read(MAX), read(BUCKETS)), (max, buckets));
}

/// Inside a network namespace the limit belongs to somebody else: one line, exit 2.
pub(super) fn not_in_a_namespace() {
    needs_root("no network namespace can be made without another");
    let dir = scratch();
    let command = lab(&dir);
    let mut inside = std::process::Command::new("unshare");
    inside.args(["--net", "--"]).arg(command.get_program()).current_dir(dir.path());
    let out = output(inside.args(["run", "saturation", "--host-table-size=5000"]));
    assert_eq!(out.code, 2, "{}{}", out.stdout, out.stderr);
    assert!(out.stderr.contains("leave the option out"), "{}", out.stderr);
}
