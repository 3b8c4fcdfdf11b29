//! Programs: called to their end, or started and waited for.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{ExecError, Interrupt};
use crate::os::{os, wrong};

/// How long one call of a tool may take: an emulated machine under load has needed more than 20 s.
const TOOL_DEADLINE: Duration = Duration::from_secs(60);
/// The most of a program's stderr that an error quotes.
const STDERR_MAX: usize = 2000;

/// A program to start, with its arguments.
#[derive(Clone, Debug)]
pub struct Call {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Option<String>,
    deadline: Duration,
}

/// How a call ended and what it said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its status.
    pub status: ExitStatus,
    /// Its whole stdout.
    pub stdout: String,
    /// Its whole stderr.
    pub stderr: String,
}

impl Call {
    /// `program` with `args`, nothing on stdin.
    pub fn new(program: &Path, args: &[impl AsRef<str>]) -> Self {
        Self {
            program: program.to_owned(),
            args: args.iter().map(|a| a.as_ref().to_owned()).collect(),
            env: Vec::new(),
            stdin: None,
            deadline: TOOL_DEADLINE,
        }
    }

    /// A line for the shell, which ends at the first command that fails.
    #[must_use]
    pub fn sh(line: &str) -> Self {
        Self::new(Path::new("/bin/sh"), &["-euc", line])
    }

    /// The same, started by another program, such as `prlimit --nofile=32`.
    #[must_use]
    pub fn under(mut self, wrap: &[impl AsRef<str>]) -> Self {
        if let Some((first, rest)) = wrap.split_first() {
            let inner = std::mem::replace(&mut self.program, PathBuf::from(first.as_ref()));
            let words = rest.iter().map(|w| w.as_ref().to_owned());
            self.args.splice(0..0, words.chain([inner.display().to_string()]));
        }
        self
    }

    /// The same with an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with another time than a minute to end in.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same with text on stdin.
    #[must_use]
    pub fn stdin(mut self, text: &str) -> Self {
        self.stdin = Some(text.to_owned());
        self
    }

    /// The command line, for people.
    #[must_use]
    pub fn line(&self) -> String {
        let name = self.program.file_name().unwrap_or(self.program.as_os_str());
        std::iter::once(name.to_string_lossy().into_owned())
            .chain(self.args.iter().map(|a| {
                if a.contains(|c: char| c.is_whitespace() || "'\"$;&|<>*".contains(c)) {
                    format!("'{a}'")
                } else {
                    a.clone()
                }
            }))
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Its own group: a Ctrl-C reaches the lab, which ends it in order.
        command.args(&self.args).process_group(0).env_remove("LAB_OUTPUT");
        // What they are to do is said by their options alone (POD_IP would have boom-server judge
        // connections to that address only).
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["BOOM_", "LOAD_", "POD_IP"].iter().any(|p| text.starts_with(p)) {
                command.env_remove(&name);
            }
        }
        // An ordinary user's PATH lacks the sbin directories, where nft, ip and sysctl are.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it to its end in this thread's namespaces and gives its stdout; a failure is an error.
    pub fn run(&self) -> Result<String, ExecError> {
        let out = self.output()?;
        if out.status.success() {
            return Ok(out.stdout);
        }
        let how = format!("failed ({})", out.status);
        Err(ExecError::Program { command: self.line(), how, said: tail(&out.stderr) })
    }

    fn spawn(&self, stdin: Stdio, stdout: impl Into<Stdio>) -> Result<Child, ExecError> {
        let mut command = self.command();
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let start = os(format!("start {}", self.program.display()));
        Ok(command.spawn().map_err(start)?)
    }

    /// Runs it to its end in this thread's namespaces, well or badly.
    pub fn output(&self) -> Result<Output, ExecError> {
        let stdin = if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child = self.spawn(stdin, Stdio::piped())?;
        let (stdin, pid) = (child.stdin.take(), pid(&child));
        let (over, ended) = channel::<()>();
        let (out, late) = std::thread::scope(|scope| {
            scope.spawn(move || {
                if let (Some(mut pipe), Some(text)) = (stdin, &self.stdin) {
                    // A tool that ended early says why on stderr.
                    let _ = pipe.write_all(text.as_bytes());
                }
            });
            let reader = scope.spawn(move || {
                let _over = over;
                child.wait_with_output()
            });
            let late = ended.recv_timeout(self.deadline) == Err(RecvTimeoutError::Timeout);
            if late {
                let _ = kill(pid, Signal::SIGKILL);
            }
            (reader.join().unwrap_or_else(|panic| resume_unwind(panic)), late)
        });
        let out = out.map_err(os(format!("read from {}", self.line())))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
        if late {
            let (command, said) = (self.line(), tail(&stderr));
            return Err(ExecError::Program { command, how: killed(self.deadline), said });
        }
        Ok(Output { status: out.status, stdout, stderr })
    }

    /// Starts it in this thread's namespaces, its stdout and stderr going to
    /// files, and looks for `ready` in what it prints.
    pub fn start(&self, log: &Path, ready: Ready) -> Result<Process, ExecError> {
        self.start_into(Stdio::piped(), log, ready)
    }

    /// The same with its stdout going somewhere else, where nobody looks for `ready`.
    pub fn start_into(
        &self,
        stdout: impl Into<Stdio>,
        log: &Path,
        ready: Ready,
    ) -> Result<Process, ExecError> {
        let create =
            |path: &Path| File::create(path).map_err(os(format!("create {}", path.display())));
        let err_path = log.with_extension("stderr");
        let (out_file, err_file) = (create(log)?, create(&err_path)?);
        let mut child = self.spawn(Stdio::null(), stdout)?;
        let (send, is_ready) = channel();
        let pipes: [(Option<Box<dyn Read + Send>>, File); 2] = [
            (child.stdout.take().map(|p| Box::new(p) as _), out_file),
            (child.stderr.take().map(|p| Box::new(p) as _), err_file),
        ];
        let readers = pipes
            .into_iter()
            .map(|(pipe, file)| {
                let send = send.clone();
                std::thread::spawn(move || {
                    copy_lines(pipe, file, |line| {
                        if ready.in_line(line) {
                            let _ = send.send(());
                        }
                    });
                })
            })
            .collect();
        let written = File::open(log).map_err(os(format!("open {}", log.display())))?;
        Ok(Process {
            line: self.line(),
            guard: Guard(child),
            interrupt: Interrupt::default(),
            ready: is_ready,
            readers,
            out_path: log.to_owned(),
            err_path,
            written: BufReader::new(written),
            begun: String::new(),
        })
    }
}

fn copy_lines(pipe: Option<Box<dyn Read + Send>>, mut file: File, mut see: impl FnMut(&str)) {
    let Some(pipe) = pipe else { return };
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
        see(&String::from_utf8_lossy(&line));
        // A full disk must not stop the program by a full pipe.
        let _ = file.write_all(&line);
        line.clear();
    }
}

fn killed(deadline: Duration) -> String {
    format!("did not end within {} s and was killed", deadline.as_secs_f64())
}

fn tail(text: &str) -> String {
    let text = text.trim();
    let mut from = text.len().saturating_sub(STDERR_MAX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].replace('\n', "; ")
}

/// How a program says that it can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// An event whose message is exactly `ready`; boom-server's `settled` comes later.
    Event,
    /// A line that contains this.
    Text(&'static str),
}

impl Ready {
    fn in_line(self, line: &str) -> bool {
        match self {
            Self::Text(text) => line.contains(text),
            Self::Event => serde_json::from_str::<serde_json::Value>(line)
                .is_ok_and(|v| matches!(v["message"].as_str(), Some("ready" | "settled"))),
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// A child that is killed and reaped when its handle goes.
pub(super) struct Guard(pub(super) Child);

impl Guard {
    /// Sends a signal; a program that is gone already needs none.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = kill(pid(&self.0), signal);
    }

    /// Its status, or None when the time ran out. A signal to the lab is an error.
    fn wait(
        &mut self,
        deadline: Duration,
        interrupt: &Interrupt,
    ) -> Result<Option<ExitStatus>, ExecError> {
        let end = Instant::now() + deadline;
        let mut pause = Duration::from_micros(200);
        loop {
            let status = self.0.try_wait().map_err(os("wait for a child"))?;
            if status.is_some() {
                return Ok(status);
            }
            interrupt.check()?;
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    fn end(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end();
    }
}

/// A running program.
pub struct Process {
    /// The command line.
    pub line: String,
    guard: Guard,
    interrupt: Interrupt,
    ready: Receiver<()>,
    readers: Vec<JoinHandle<()>>,
    out_path: PathBuf,
    err_path: PathBuf,
    /// What it has printed, from where nobody has looked yet.
    written: BufReader<File>,
    /// A line of that whose end is not there yet.
    begun: String,
}

impl Process {
    /// The same, each wait for it ended by that signal too.
    #[must_use]
    pub fn under(self, interrupt: &Interrupt) -> Self {
        Self { interrupt: interrupt.clone(), ..self }
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&mut self, within: Duration) -> Result<(), ExecError> {
        let end = Instant::now() + within;
        loop {
            self.interrupt.check()?;
            match self.ready.recv_timeout(Duration::from_millis(20)) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                // Both readers are at the end, or the time is over.
                Err(_) => {
                    self.guard.end();
                    return Err(self.error("did not become ready".to_owned(), self.said()));
                }
            }
        }
    }

    /// True once it has said so again, having been ready; waits at most so long.
    #[must_use]
    pub fn says_again(&self, within: Duration) -> bool {
        self.ready.recv_timeout(within).is_ok()
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.guard.0.id()
    }

    /// The whole lines that it has printed since they were last asked for.
    pub fn lines(&mut self) -> Result<Vec<String>, ExecError> {
        let mut lines = Vec::new();
        while let Some(line) = self.next_line()? {
            lines.push(line);
        }
        Ok(lines)
    }

    /// The next whole line that it has printed: one may be there in part.
    fn next_line(&mut self) -> Result<Option<String>, ExecError> {
        let read = self.written.read_line(&mut self.begun);
        read.map_err(os(format!("read {}", self.out_path.display())))?;
        Ok(self.begun.ends_with('\n').then(|| std::mem::take(&mut self.begun)))
    }

    /// Waits for the next event with this message, beyond the one found before.
    pub fn wait_for(&mut self, message: &str, within: Duration) -> Result<(), ExecError> {
        let wanted = format!("\"message\":\"{message}\"");
        let end = Instant::now() + within;
        loop {
            let ended = self.guard.wait(Duration::ZERO, &self.interrupt)?.is_some();
            if ended {
                self.join();
            }
            while let Some(line) = self.next_line()? {
                if line.contains(&wanted) {
                    return Ok(());
                }
            }
            if ended || Instant::now() >= end {
                let said = format!("{} {}", tail(&self.printed()), self.said());
                return Err(self.error(format!("did not say '{message}'"), said));
            }
            self.interrupt.sleep(Duration::from_millis(5))?;
        }
    }

    /// Waits for its end. Running out of time kills it and is an error.
    pub fn wait(mut self, within: Duration) -> Result<ExitStatus, ExecError> {
        let status = self.guard.wait(within, &self.interrupt)?;
        if status.is_none() {
            self.guard.end();
        }
        self.join();
        status.ok_or_else(|| self.error(killed(within), self.said()))
    }

    fn error(&self, how: String, said: String) -> ExecError {
        ExecError::Program { command: self.line.clone(), how, said }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.guard.signal(signal);
    }

    /// Waits for its end, at most so long. False when it still runs.
    pub fn ends_within(&mut self, within: Duration) -> Result<bool, ExecError> {
        Ok(self.guard.wait(within, &self.interrupt)?.is_some())
    }

    /// The file that its stderr goes to.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.err_path
    }

    /// All that it has printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        let bytes = std::fs::read(&self.out_path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of what it wrote to stderr.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.err_path).map(|s| tail(&s)).unwrap_or_default()
    }

    fn join(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// Runs a program on the terminal that this process has, to its end.
pub fn foreground(program: &Path, env: &[(String, String)]) -> Result<ExitStatus, ExecError> {
    let status = Command::new(program).envs(env.iter().cloned()).status();
    Ok(status.map_err(os(format!("start {}", program.display())))?)
}

/// A field of a process's memory, such as `VmHWM`, in KiB (proc_pid_status(5)).
pub fn memory(pid: u32, field: &str) -> Result<u64, ExecError> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(os(format!("read {path}")))?;
    let of = |line: &str| {
        line.strip_prefix(field)?.strip_prefix(':')?.trim_end_matches("kB").trim().parse().ok()
    };
    let found = status.lines().find_map(of).ok_or("no such number in it");
    Ok(found.map_err(wrong(format!("read {field} in {path}")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Call {
        Call::new(Path::new("/bin/sh"), &["-c", script])
    }

    /// A failing tool's own words are in the error.
    #[test]
    fn stderr_is_in_the_error() {
        let e = sh("echo out; echo why >&2; exit 3").run().unwrap_err().to_string();
        assert!(e.contains("why") && e.contains('3'), "{e}");
    }

    /// stdin reaches the tool, stdout comes back.
    #[test]
    fn stdin_and_stdout() {
        assert_eq!(sh("cat").stdin("a\nb").run().unwrap(), "a\nb");
    }

    /// A tool that hangs is killed at its deadline.
    #[test]
    fn a_deadline_ends_a_tool() {
        let mut call = Call::new(Path::new("/bin/sleep"), &["60"]);
        call.deadline = Duration::from_millis(50);
        let begun = Instant::now();
        let e = call.run().unwrap_err();
        assert!(e.to_string().contains("within 0.05 s and was killed"), "{e}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    /// A program that ends before it is ready is an error with its last words.
    #[test]
    fn not_ready_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        let mut p = sh("echo no luck >&2").start(&log, Ready::Event).unwrap();
        let e = p.wait_ready(Duration::from_secs(10)).unwrap_err();
        assert!(e.to_string().contains("no luck"), "{e}");
    }

    /// A signal ends every wait, whatever time is left.
    #[test]
    fn a_signal_ends_a_wait() {
        use canary_record::names::EndedBy;
        let (dir, interrupt) = (tempfile::tempdir().unwrap(), Interrupt::default());
        let log = dir.path().join("x.log");
        let mut p = sh("exec sleep 60").start(&log, Ready::Event).unwrap().under(&interrupt);
        assert!(!p.ends_within(Duration::from_millis(1)).unwrap());
        interrupt.0.set(EndedBy::Sigint).unwrap();
        let (hour, by) = (Duration::from_secs(3600), |e| matches!(e, ExecError::Interrupted(_)));
        assert!(p.wait_ready(hour).is_err_and(by));
        assert!(p.wait_for("ready", hour).is_err_and(by));
        assert!(p.ends_within(hour).is_err_and(by));
        assert!(p.wait(hour).is_err_and(by));
    }

    /// Only the event itself means ready, not a line that mentions it.
    #[test]
    fn ready_is_an_event() {
        assert!(Ready::Event.in_line(r#"{"level":"INFO","message":"ready","port":1}"#));
        assert!(!Ready::Event.in_line(r#"{"message":"not ready"}"#));
        assert!(!Ready::Event.in_line("ready"));
    }

    /// A process has memory; a field that is not there is an error and no 0.
    #[test]
    fn memory_is_read_or_an_error() {
        let me = std::process::id();
        assert!(memory(me, "VmHWM").unwrap() >= memory(me, "VmRSS").unwrap() / 2);
        let e = memory(me, "VmMoon").unwrap_err().to_string();
        assert_eq!(e, format!("cannot read VmMoon in /proc/{me}/status: no such number in it"));
    }

    /// Dropping the handle ends the program.
    #[test]
    fn dropping_ends_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let p = Call::new(Path::new("/bin/sleep"), &["60"])
            .start(&dir.path().join("x.log"), Ready::Event)
            .unwrap();
        let pid = pid(&p.guard.0);
        assert!(kill(pid, None).is_ok());
        drop(p);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }
}
