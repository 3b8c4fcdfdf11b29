//! What the subcommands share: processes in the hosts, and the machine's description.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

#[path = "../tests/common/running.rs"]
mod running;
pub(crate) use running::Running;

/// The service's address, reached through the client's node.
pub(crate) const SERVICE: &str = "198.18.100.1:9000";

impl Running {
    /// Asks it to end, and waits.
    pub(crate) fn terminate(&mut self) -> Result<ExitStatus> {
        run(Command::new("kill").arg(self.0.id().to_string()))?;
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("still running 10 s after SIGTERM")
    }
}

/// `command` in a host; becomes the command itself (exec), so its id is the child's.
pub(crate) fn inside(host: &str, command: &[String]) -> Command {
    let mut c = Command::new("ip");
    c.args(["netns", "exec", host]).args(command);
    c
}

/// The words of a command line.
pub(crate) fn words(s: &str) -> Vec<String> {
    s.split_whitespace().map(str::to_owned).collect()
}

/// Runs a command that must succeed; its stdout.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The client's addresses (one-node.sh).
pub(crate) fn sources() -> String {
    let all: Vec<_> = (2..34).map(|i| format!("198.18.1.{i}")).collect();
    all.join(",")
}

/// A shell line in a host.
pub(crate) fn sh(host: &str, line: &str) -> Result<String> {
    run(&mut inside(host, &["sh".to_owned(), "-ec".to_owned(), line.to_owned()]))
}

/// Makes the hosts.
pub(crate) fn topology(script: &str) -> Result<()> {
    run(Command::new("sh").args(["-c", script])).context("the topology could not be made")?;
    Ok(())
}

/// Starts load-client in a host and waits for its line "ready".
pub(crate) fn ready(host: &str, client: &Path, arguments: &str) -> Result<Running> {
    let line = format!("{} {arguments}", client.display());
    let mut child = inside(host, &words(&line)).stdout(Stdio::piped()).spawn()?;
    let mut out = BufReader::new(child.stdout.take().context("no stdout")?);
    let child = Running(child);
    let mut text = String::new();
    while !text.contains("\"message\":\"ready\"") {
        text.clear();
        ensure!(
            out.read_line(&mut text)? != 0,
            "load-client {arguments}: ended before it was ready"
        );
    }
    std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    Ok(child)
}

/// load-client, which cargo puts beside this program.
pub(crate) fn client() -> Result<PathBuf> {
    let client = std::env::current_exe()?.with_file_name("load-client");
    ensure!(client.exists(), "{} is not built", client.display());
    Ok(client)
}

/// Options as pairs of a name and a value.
pub(crate) fn options(args: &[String]) -> Result<Vec<(&str, &str)>> {
    let pair = |p: &'_ [String]| match p {
        [_, _] => Ok(()),
        _ => bail!("{} needs a value", p[0]),
    };
    args.chunks(2).try_for_each(pair)?;
    Ok(args.chunks(2).map(|p| (p[0].as_str(), p[1].as_str())).collect())
}

/// Where and when the figures were taken.
pub(crate) fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let date = run(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])).unwrap_or_default();
    json!({
        "date": date.trim(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cpus": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "load_average": read("/proc/loadavg").trim(),
    })
}

/// Writes a document, if a file is named.
pub(crate) fn write(path: Option<&str>, document: &Value) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, serde_json::to_string_pretty(document)? + "\n")
        .with_context(|| format!("cannot write {path}"))
}
