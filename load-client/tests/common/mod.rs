//! Network namespaces made by the tests, and load-client inside them.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use canary_record::result::load::{Cause, LoadResult};
use serde::de::DeserializeOwned;

pub(crate) mod running;
pub(crate) use running::Running;

/// The built program.
pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_load-client");

/// True when namespaces can be made; says so loudly when not.
pub(crate) fn privileged(test: &str) -> bool {
    let ok = Command::new("unshare").args(["-n", "true"]).status().is_ok_and(|s| s.success());
    if !ok {
        eprintln!("SKIPPED {test}: needs root (or CAP_SYS_ADMIN) to make a network namespace");
    }
    ok
}

impl Running {
    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for the end, at most `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> i32 {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("still running after {limit:?}");
    }
}

/// A network namespace with loopback up, gone when dropped.
pub(crate) struct Ns {
    holder: Running,
}

impl Ns {
    pub(crate) fn new() -> Self {
        let child = Command::new("unshare")
            .args(["-n", "sh", "-c", "ip link set lo up && echo up && exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut holder = Running(child);
        let mut line = String::new();
        BufReader::new(holder.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n", "cannot make a network namespace");
        Self { holder }
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.0.id())
    }

    /// `program` inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net={}", self.path())).arg(program);
        c
    }

    /// Runs a shell line inside; it must succeed.
    pub(crate) fn sh(&self, line: &str) -> String {
        let out = self.command("sh").args(["-ec", line]).output().unwrap();
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Adds nft rules to a chain of loopback's output.
    pub(crate) fn rule(&self, rule: &str) {
        self.sh(&format!(
            "nft 'add table ip t; add chain ip t out {{ type filter hook output priority 0; }}; add rule ip t out {rule}'"
        ));
    }

    /// The packets that the rules' counters saw.
    pub(crate) fn counted(&self) -> Vec<u64> {
        let rules = self.sh("nft list chain ip t out");
        let words: Vec<_> = rules.split_whitespace().collect();
        words.windows(2).filter(|w| w[0] == "packets").map(|w| w[1].parse().unwrap()).collect()
    }

    /// Runs `f` on a thread inside.
    pub(crate) fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let ns = File::open(self.path()).unwrap();
        std::thread::scope(|s| {
            s.spawn(|| {
                nix::sched::setns(ns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                f()
            })
            .join()
            .unwrap()
        })
    }

    /// A server made of a function, one thread for each connection. Ends with the test.
    pub(crate) fn server(&self, port: u16, f: impl Fn(TcpStream) + Send + Sync + Clone + 'static) {
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let listener = self.inside(|| TcpListener::bind(addr).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let f = f.clone();
                std::thread::spawn(move || f(stream));
            }
        });
    }

    /// `load-client serve` on 127.0.0.1:8080, ready.
    pub(crate) fn serve(&self) -> Running {
        let mut child = self
            .command(BIN)
            .args(["serve", "--listen", "127.0.0.1:8080"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("\"message\":\"ready\"") {
            line.clear();
            assert_ne!(out.read_line(&mut line).unwrap(), 0, "serve ended");
        }
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        Running(child)
    }

    /// Starts load-client with its stdout in a file.
    pub(crate) fn start(&self, args: &str, out: &Path) -> Running {
        let file = File::create(out).unwrap();
        Running(self.command(BIN).args(args.split_whitespace()).stdout(file).spawn().unwrap())
    }

    /// Runs load-client to its end: exit code, result, whole output.
    pub(crate) fn run(&self, args: &str) -> Ran<LoadResult> {
        let out = self.command(BIN).args(args.split_whitespace()).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{args}");
        let ran = Ran { code: out.status.code().unwrap(), result: last(&text), text };
        check_sum(&ran.result);
        ran
    }
}

/// What a run gave.
pub(crate) struct Ran<T> {
    pub(crate) code: i32,
    pub(crate) result: T,
    pub(crate) text: String,
}

/// The last line of an output, as a document.
pub(crate) fn last<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text.trim_end().lines().last().unwrap()).unwrap()
}

/// The law of the accounts: every attempt ended in exactly one class, and the
/// series tells the same story.
pub(crate) fn check_sum(r: &LoadResult) {
    let failed: u64 = r.failures.iter().map(|f| f.count).sum();
    assert_eq!(r.attempts, r.ok + failed, "{:?}", r.failures);
    let sum = |f: fn(&canary_record::result::load::SeriesPoint) -> u64| {
        r.series.points.iter().map(f).sum::<u64>()
    };
    assert_eq!((sum(|p| p.attempts), sum(|p| p.ok), sum(|p| p.failed)), (r.attempts, r.ok, failed));
}

/// How many failed so.
pub(crate) fn failed(r: &LoadResult, which: impl Fn(&str, Cause) -> bool) -> u64 {
    r.failures.iter().filter(|f| which(f.phase.as_str(), f.cause)).map(|f| f.count).sum()
}

/// Waits for a condition, at most ten seconds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads a line, its newline included.
pub(crate) fn read_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|n| n == 1) {
        line.push(byte[0]);
        if byte[0] == b'\n' {
            break;
        }
    }
    String::from_utf8(line).unwrap()
}

/// Writes everything, whatever becomes of the peer.
pub(crate) fn write(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}
