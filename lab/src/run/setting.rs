//! What everything that runs has in common: programs, patience, readings of a host's kernel.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::document::timeline::Change;
use canary_conntrack::stat;
use canary_record::result::witness::WitnessResult;
use canary_testbed::evidence::{self, EvidenceError};
use canary_testbed::exec::{Call, Interrupt, Process, Ready, Tools};
use canary_testbed::testbed::{Testbed, TestbedError};
use canary_testbed::topology::POD_PORT;
use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

/// Which captures are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CaptureMode {
    /// One connection of every kind that was reset
    One,
    /// Everything, in every cell
    All,
    /// Nothing is captured
    None,
}

/// What a run's parts share.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Tools.
    pub tools: Tools,
    /// boom-server's path.
    pub boom_server: PathBuf,
    /// load-client's path.
    pub load_client: PathBuf,
    /// Multiplies every wait.
    pub time_scale: f64,
    /// Whether captures are taken.
    pub capture: CaptureMode,
    /// A request to end.
    pub interrupt: Interrupt,
}

impl Setting {
    /// A wait on this machine.
    #[must_use]
    pub fn scaled(&self, time: Duration) -> Duration {
        time.mul_f64(self.time_scale)
    }
}

/// A program of the suite: in `dir`, or beside this one.
pub fn find_program(dir: Option<&Path>, name: &str) -> Result<PathBuf, String> {
    let own = || std::env::current_exe().ok().and_then(|p| p.parent().map(Path::to_owned));
    let path = dir.map(Path::to_owned).or_else(own).unwrap_or_default().join(name);
    path.canonicalize().map_err(|e| {
        let path = path.display();
        format!("cannot find {path}: {e}; build it or name its directory with --bin-dir")
    })
}

/// Runs a part. What breaks off, by an error or a panic, is that part's alone.
pub fn guarded<T>(part: impl FnOnce() -> Result<T, TestbedError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(part)) {
        // What a tool said may have lines.
        Ok(done) => {
            done.map_err(|e| e.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" "))
        }
        Err(_) => broken_off(),
    }
}

/// The end of a part that panicked; the panic itself is on stderr.
pub fn broken_off<T>() -> Result<T, String> {
    Err("its thread broke off".to_owned())
}

/// An error that names the file.
pub fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> TestbedError + 'a {
    move |source| TestbedError::Io { what: format!("{what} {}", path.display()), source }
}

/// boom-server on the Service's port, in a host.
pub fn boom_server(
    testbed: &Testbed<'_>,
    setting: &Setting,
    host: &str,
    dir: &Path,
    forge: &str,
    more: &[String],
) -> Result<Process, TestbedError> {
    boom_server_at(testbed, setting, (host, POD_PORT), dir, forge, more)
}

/// boom-server on a port of a host.
pub fn boom_server_at(
    testbed: &Testbed<'_>,
    setting: &Setting,
    (host, port): (&str, u16),
    dir: &Path,
    forge: &str,
    more: &[String],
) -> Result<Process, TestbedError> {
    // How long it waits for the answer to a forged segment.
    let timeout = setting.scaled(Duration::from_millis(400));
    let mut options = vec![
        "--listen".to_owned(),
        format!("[::]:{port}"),
        "--admin=none".into(),
        format!("--forge={forge}"),
        "--on-reset=count".into(),
        format!("--outcome-timeout={}ms", timeout.as_millis()),
        "--log=json".into(),
        format!("--output={}", dir.join("boom.json").display()),
    ];
    options.extend_from_slice(more);
    let call = Call::new(&setting.boom_server, &options);
    testbed.start(host, call, &dir.join("boom.log"), Ready::Event)
}

/// load-client in the client; its result goes to `dir`/NAME.json.
pub fn load_client(
    testbed: &Testbed<'_>,
    setting: &Setting,
    dir: &Path,
    name: &str,
    mut options: Vec<String>,
    ready: Ready,
) -> Result<Process, TestbedError> {
    options.push("--log=json".into());
    options.push(format!("--output={}", dir.join(format!("{name}.json")).display()));
    let call = Call::new(&setting.load_client, &options);
    testbed.start(testbed.topology.client(), call, &dir.join(format!("{name}.log")), ready)
}

/// How long a witness may take to begin or to end.
const WITNESS: Duration = Duration::from_secs(10);

/// load-client's witness, in hosts.
pub fn start_witnesses(
    testbed: &Testbed<'_>,
    hosts: &[&'static str],
    dir: &Path,
    setting: &Setting,
) -> Result<Vec<(&'static str, Process)>, TestbedError> {
    let start = |host: &&'static str| {
        let options = [
            "witness".to_owned(),
            "--log=json".into(),
            format!("--state-dir={}", dir.display()),
            format!("--output={}", witness_file(dir, host).display()),
        ];
        let call = Call::new(&setting.load_client, &options);
        let log = dir.join(format!("witness-{host}.log"));
        Ok((*host, testbed.start(host, call, &log, Ready::Event)?))
    };
    hosts.iter().map(start).collect()
}

/// The same, ready. Where one cannot watch there is one judge less, and `notes` says so.
pub fn ready_witnesses(
    testbed: &Testbed<'_>,
    hosts: &[&'static str],
    dir: &Path,
    setting: &Setting,
    notes: &mut Vec<String>,
) -> Result<Vec<(&'static str, Process)>, TestbedError> {
    let mut running = start_witnesses(testbed, hosts, dir, setting)?;
    running.retain_mut(|(host, process)| {
        let ready = process.wait_ready(setting.scaled(WITNESS), &setting.interrupt);
        ready
            .map_err(|e| notes.push(format!("no witness on {host}: {e}: {}", process.said())))
            .is_ok()
    });
    Ok(running)
}

/// Ends them, and gives what each said.
pub fn end_witnesses(
    running: Vec<(&'static str, Process)>,
    dir: &Path,
    setting: &Setting,
) -> Result<Vec<(String, WitnessResult)>, TestbedError> {
    // The second signal: it need not wait to see what becomes of the connections.
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for (_, process) in &running {
            process.signal(signal);
        }
    }
    let end = |(host, process): (&str, Process)| {
        let status = process.wait(setting.scaled(WITNESS), &setting.interrupt)?;
        Ok((host.to_owned(), result("load-client", &witness_file(dir, host), status)?))
    };
    running.into_iter().map(end).collect()
}

fn witness_file(dir: &Path, host: &str) -> PathBuf {
    dir.join(format!("witness-{host}.json"))
}

/// What a program left in `path` when it ended.
pub fn result<T: DeserializeOwned>(
    program: &'static str,
    path: &Path,
    status: ExitStatus,
) -> Result<T, TestbedError> {
    let wrong = |why: String| TestbedError::Result { program, status: status.to_string(), why };
    let text = fs::read(path).map_err(|e| {
        let log = path.with_extension("stderr");
        let said = fs::read_to_string(log).unwrap_or_default();
        wrong(format!("{}: {e}; {}", path.display(), said.trim()))
    })?;
    serde_json::from_slice(&text).map_err(|e| wrong(format!("{}: {e}", path.display())))
}

/// Sets a value in a host and tells what it was.
pub fn set(
    testbed: &Testbed<'_>,
    host: &str,
    key: &'static str,
    value: &'static str,
) -> Result<Change, TestbedError> {
    testbed.within(host, move || {
        let from = evidence::sysctl(key)?;
        evidence::set_sysctl(key, value)?;
        Ok(Change { what: key.replace('/', "."), from, to: evidence::sysctl(key)? })
    })
}

/// Entries in this namespace.
pub fn count() -> Result<u64, EvidenceError> {
    let text = evidence::sysctl(stat::COUNT)?;
    stat::number(&text).map_err(|e| EvidenceError::Io {
        what: format!("read {}: '{text}'", stat::COUNT),
        source: io::Error::other(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part that panics is an error like any other.
    #[test]
    fn a_panic_is_the_parts_own() {
        let part = || -> Result<(), TestbedError> { panic!("on purpose") };
        assert_eq!(guarded(part), Err("its thread broke off".to_owned()));
    }
}
