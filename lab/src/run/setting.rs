//! What everything that runs has in common: programs, patience, readings of a host's kernel.

use std::fs;
use std::io;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::document::timeline::Change;
use canary_conntrack::stat;
use canary_record::result::witness::WitnessResult;
use canary_runtime::output::write_file;
use canary_testbed::evidence;
use canary_testbed::exec::{Call, ExecError, Interrupt, Process, Ready};
use canary_testbed::os::{os, wrong};
use canary_testbed::testbed::{Testbed, TestbedError};
use canary_testbed::topology::Topology;
use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

/// Which captures are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CaptureMode {
    /// One connection of every kind that was reset
    One,
    /// Everything, in every cell, and of situations at the client and the servers of every case
    All,
    /// Nothing is captured
    None,
}

#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) boom_server: PathBuf,
    pub(crate) load_client: PathBuf,
    /// Multiplies every wait.
    pub(crate) time_scale: f64,
    pub(crate) capture: CaptureMode,
    pub(crate) interrupt: Interrupt,
    /// Whether hosts stay up after the run.
    pub(crate) keep: bool,
}

impl Setting {
    pub(crate) fn place(&self, topology: Topology) -> Result<Place<'_>, TestbedError> {
        let testbed = Testbed::build(topology)?;
        Ok(Place { testbed: testbed.under(&self.interrupt).kept(self.keep), setting: self })
    }

    /// A wait on this machine.
    pub(crate) fn scaled(&self, time: Duration) -> Duration {
        time.mul_f64(self.time_scale)
    }
}

/// How long anything may take to become ready or to end.
pub(crate) const READY: Duration = Duration::from_secs(15);

/// Hosts that are up, and what runs in them.
pub(crate) struct Place<'a> {
    testbed: Testbed,
    pub(crate) setting: &'a Setting,
}

impl Deref for Place<'_> {
    type Target = Testbed;
    fn deref(&self) -> &Testbed {
        &self.testbed
    }
}

impl Place<'_> {
    pub(crate) fn scaled(&self, time: Duration) -> Duration {
        self.setting.scaled(time)
    }

    /// boom-server on a port of a host, ready; its result goes to `dir`/boom.json.
    pub(crate) fn boom_server(
        &self,
        (host, port): (&str, u16),
        dir: &Path,
        forge: &str,
        more: &[impl AsRef<str>],
    ) -> Result<Running, TestbedError> {
        // How long it waits for the answer to a forged segment.
        let timeout = self.scaled(Duration::from_millis(400));
        let mut options = vec![
            "--listen".to_owned(),
            format!("[::]:{port}"),
            "--admin=none".into(),
            format!("--forge={forge}"),
            "--on-reset=count".into(),
            format!("--outcome-timeout={}ms", timeout.as_millis()),
        ];
        options.extend(more.iter().map(|o| o.as_ref().to_owned()));
        let program = ("boom-server", &*self.setting.boom_server);
        self.start(host, program, (dir, "boom"), options, Ready::Event)?.ready()
    }

    /// load-client in a host; its result goes to `dir`/NAME.json.
    pub(crate) fn load_client(
        &self,
        host: &str,
        at: (&Path, &str),
        options: Vec<String>,
        ready: Ready,
    ) -> Result<Running, TestbedError> {
        self.start(host, ("load-client", &self.setting.load_client), at, options, ready)
    }

    fn start(
        &self,
        host: &str,
        (program, path): (&'static str, &Path),
        (dir, name): (&Path, &str),
        mut options: Vec<String>,
        ready: Ready,
    ) -> Result<Running, TestbedError> {
        let file = dir.join(format!("{name}.json"));
        // Of one before: who ends without a result must not be taken for it.
        match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &file)(e));
            }
            _ => {}
        }
        options.extend(["--log=json".to_owned(), format!("--output={}", file.display())]);
        let log = dir.join(format!("{name}.log"));
        let process = self.testbed.start(host, Call::new(path, &options), &log, ready)?;
        Ok(Running { program, process, file, patience: self.scaled(READY) })
    }

    /// load-client's witness, in hosts. Where one cannot watch there is one judge less, and `notes`
    /// says so.
    pub(crate) fn witnesses(
        &self,
        hosts: &[&'static str],
        dir: &Path,
        notes: &mut Vec<String>,
    ) -> Result<Vec<(&'static str, Running)>, TestbedError> {
        let start = |host: &&'static str| {
            let options = vec!["witness".to_owned(), format!("--state-dir={}", dir.display())];
            let at = (dir, &*format!("witness-{host}"));
            Ok((*host, self.load_client(host, at, options, Ready::Event)?))
        };
        let mut running = hosts.iter().map(start).collect::<Result<Vec<_>, TestbedError>>()?;
        running.retain_mut(|(host, process)| {
            let ready = process.process.wait_ready(process.patience);
            let silent =
                |e| notes.push(format!("no witness on {host}: {e}: {}", process.process.said()));
            ready.map_err(silent).is_ok()
        });
        Ok(running)
    }

    /// A tool in a host; gives what it prints.
    pub(crate) fn tool(
        &self,
        host: &str,
        tool: &str,
        options: &[&str],
        input: &str,
    ) -> Result<String, TestbedError> {
        self.within(host, || Call::tool(tool, options)?.stdin(input).run())
    }

    /// Loads rules in a host, beside those that are there.
    pub(crate) fn nft(&self, host: &str, rules: &str) -> Result<(), TestbedError> {
        self.tool(host, "nft", &["-f", "-"], rules).map(drop)
    }

    /// Sets a value in a host and tells what it was.
    pub(crate) fn set(&self, host: &str, key: &str, value: &str) -> Result<Change, TestbedError> {
        self.within(host, || {
            let from = evidence::sysctl(key)?;
            evidence::set_sysctl(key, value)?;
            Ok(Change { what: key.replace('/', "."), from, to: value.to_owned() })
        })
    }
}

/// Runs a part. What breaks off, by an error or a panic, is that part's alone.
pub(crate) fn guarded<T>(part: impl FnOnce() -> Result<T, TestbedError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(part)) {
        // What a tool said may have lines.
        Ok(done) => {
            done.map_err(|e| e.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" "))
        }
        // The panic itself is on stderr.
        Err(_) => Err("its thread broke off".to_owned()),
    }
}

/// An error that names the file.
pub(crate) fn io_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> TestbedError + 'a {
    move |source| os(format!("{what} {}", path.display()))(source).into()
}

/// A program of the suite that runs, and the file that it leaves its result in.
pub(crate) struct Running {
    program: &'static str,
    pub(crate) process: Process,
    file: PathBuf,
    /// How long it may take to become ready or to end.
    patience: Duration,
}

impl Running {
    /// Waits for its end, and reads its result.
    pub(crate) fn result<T: DeserializeOwned>(self, within: Duration) -> Result<T, TestbedError> {
        let (program, path, line) = (self.program, self.file, self.process.line.clone());
        let status = self.process.wait(within)?.to_string();
        let wrong = |why: String| TestbedError::Result {
            program,
            status: status.clone(),
            why: format!("{why} ({line})"),
        };
        let text = fs::read(&path).map_err(|e| {
            let log = path.with_extension("stderr");
            let said = fs::read_to_string(log).unwrap_or_default();
            wrong(format!("{}: {e}; {}", path.display(), said.trim()))
        })?;
        serde_json::from_slice(&text).map_err(|e| wrong(format!("{}: {e}", path.display())))
    }

    pub(crate) fn ready(mut self) -> Result<Self, TestbedError> {
        self.process.wait_ready(self.patience)?;
        Ok(self)
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn end(self) -> Result<(), TestbedError> {
        self.process.signal(Signal::SIGTERM);
        self.process.wait(self.patience)?;
        Ok(())
    }

    /// The same, its result read.
    pub(crate) fn stop<T: DeserializeOwned>(self) -> Result<T, TestbedError> {
        self.process.signal(Signal::SIGTERM);
        let patience = self.patience;
        self.result(patience)
    }
}

/// Ends them, and gives what each said.
pub(crate) fn end_witnesses(
    running: Vec<(&'static str, Running)>,
) -> Result<Vec<(String, WitnessResult)>, TestbedError> {
    // The second signal: it need not wait to see what becomes of the connections.
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for (_, process) in &running {
            process.process.signal(signal);
        }
    }
    let end = |(host, process): (&str, Running)| {
        let patience = process.patience;
        Ok((host.to_owned(), process.result(patience)?))
    };
    running.into_iter().map(end).collect()
}

/// Writes a file of the run's.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), TestbedError> {
    write_file(path, bytes.as_ref()).map_err(|e| io_error("write", path)(e.into()))
}

pub(crate) fn count() -> Result<u64, ExecError> {
    let text = evidence::sysctl(stat::COUNT)?;
    Ok(stat::number(&text).map_err(wrong(format!("read {}: '{text}'", stat::COUNT)))?)
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
