//! boom-server and load-client: found, started, and ended with their typed results.

use std::marker::PhantomData;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use crate::exec::{Call, ExecError, Process, Ready};
use crate::os::os;
use crate::testbed::{Testbed, TestbedError};

/// How long a program may take to become ready.
const READY: Duration = Duration::from_secs(20);
/// How long an event may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where cargo puts a program of this workspace: beside this executable, or, for a test or an
/// example, in the directory above.
pub fn built(name: &str) -> Result<PathBuf, TestbedError> {
    let what = || format!("find {name} (build it with `cargo build -p {name}`)");
    let me = std::env::current_exe().map_err(os(what()))?;
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|p| p.is_file());
    Ok(found.ok_or(std::io::ErrorKind::NotFound).map_err(os(what()))?)
}

/// A program to start, which ends with a document of type `R` as its last line.
pub struct Program<R> {
    name: &'static str,
    call: Call,
    document: PhantomData<R>,
}

/// boom-server. Unless told otherwise it ends after a minute, whatever goes wrong, serves no
/// metrics, and waits half a second for an outcome.
pub fn boom_server(options: &[impl AsRef<str>]) -> Result<Program<BoomResult>, TestbedError> {
    let program = Program::new("boom-server", options)?;
    Ok(program
        .env("BOOM_ADMIN", "none")
        .env("BOOM_DURATION", "60s")
        .env("BOOM_LOG", "json")
        .env("BOOM_OUTCOME_TIMEOUT", "500ms"))
}

/// load-client; the first option is the subcommand.
pub fn load_client(options: &[impl AsRef<str>]) -> Result<Program<LoadResult>, TestbedError> {
    Program::new("load-client", options)
}

impl<R: DeserializeOwned> Program<R> {
    /// A program of this workspace.
    pub fn new(name: &'static str, options: &[impl AsRef<str>]) -> Result<Self, TestbedError> {
        Ok(Self { name, call: Call::new(&built(name)?, options), document: PhantomData })
    }

    /// The same, ending with another document.
    #[must_use]
    pub fn ending_with<D>(self) -> Program<D> {
        Program { name: self.name, call: self.call, document: PhantomData }
    }

    /// The same with an environment variable.
    #[must_use]
    pub fn env(self, name: &str, value: &str) -> Self {
        Self { call: self.call.env(name, value), ..self }
    }

    /// The same, started by another program, such as `prlimit --nofile=32`.
    #[must_use]
    pub fn under(self, wrap: &[impl AsRef<str>]) -> Self {
        Self { call: self.call.under(wrap), ..self }
    }

    /// The call itself.
    #[must_use]
    pub fn call(self) -> Call {
        self.call
    }

    /// Starts it in a host and waits until it is ready; what it prints goes to `log`.
    pub fn ready(
        self,
        testbed: &Testbed,
        host: &str,
        log: &Path,
    ) -> Result<Running<R>, TestbedError> {
        let mut running = self.start(testbed, host, log)?;
        running.process.wait_ready(READY)?;
        Ok(running)
    }

    /// Starts it in a host.
    pub fn start(
        self,
        testbed: &Testbed,
        host: &str,
        log: &Path,
    ) -> Result<Running<R>, TestbedError> {
        self.start_into(Stdio::piped(), testbed, host, log)
    }

    /// The same with its stdout going somewhere else than to `log`.
    pub fn start_into(
        self,
        stdout: impl Into<Stdio> + Send,
        testbed: &Testbed,
        host: &str,
        log: &Path,
    ) -> Result<Running<R>, TestbedError> {
        let start = || self.call.start_into(stdout, log, Ready::Event);
        let process = testbed.host(host)?.run(start)??.under(&testbed.interrupt);
        Ok(Running { name: self.name, process, log: log.to_owned(), document: PhantomData })
    }
}

/// A program that runs. It is killed when this is dropped.
pub struct Running<R> {
    name: &'static str,
    process: Process,
    log: PathBuf,
    document: PhantomData<R>,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended<R> {
    /// Its status.
    pub status: ExitStatus,
    /// Its result.
    pub result: R,
    /// All that it printed, its result included.
    pub text: String,
}

impl<R> Ended<R> {
    /// Its exit code; -1 when a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

impl<R> Deref for Running<R> {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl<R: DeserializeOwned> Running<R> {
    /// True while it runs.
    pub fn runs(&mut self) -> Result<bool, ExecError> {
        Ok(!self.process.ends_within(Duration::ZERO)?)
    }

    /// Waits for the next event with this message.
    pub fn wait_for(&mut self, message: &str) -> Result<(), ExecError> {
        self.process.wait_for(message, PATIENCE)
    }

    /// Waits for its end.
    pub fn wait(self, within: Duration) -> Result<ExitStatus, ExecError> {
        self.process.wait(within)
    }

    /// Waits for its end and reads its result.
    pub fn end(self, within: Duration) -> Result<Ended<R>, TestbedError> {
        let err = self.process.log().to_owned();
        let status = self.process.wait(within)?;
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let result = document(&text).map_err(|why| {
            let said = std::fs::read_to_string(err).unwrap_or_default();
            let why = format!("{why}; {}", said.trim());
            TestbedError::Result { program: self.name, status: status.to_string(), why }
        })?;
        Ok(Ended { status, result, text })
    }

    /// Asks it to end, waits, and reads its result.
    pub fn stop(self, within: Duration) -> Result<Ended<R>, TestbedError> {
        self.signal(Signal::SIGTERM);
        self.end(within)
    }
}

/// The last line of an output, as a document.
pub fn document<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let last = text.trim_end().lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|e| format!("{e}: {last}"))
}
