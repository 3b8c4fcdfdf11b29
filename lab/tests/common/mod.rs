//! What the lab's tests share.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use conntrack_lab::document::lab::{Judgement, LabResult};
use nix::unistd::Pid;

/// A directory that goes with the test.
pub fn scratch() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());
    dir
}

/// Lets another user write in it.
pub fn open_to_all(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
}

/// Where the programs were built.
pub fn programs() -> &'static Path {
    let lab = Path::new(env!("CARGO_BIN_EXE_conntrack-lab"));
    for program in ["boom-server", "load-client"] {
        let path = lab.with_file_name(program);
        assert!(path.exists(), "{} is needed: run `cargo build --workspace` first", path.display());
    }
    lab.parent().unwrap()
}

/// A command in `dir`, with no option of the lab's from the environment.
pub fn command(dir: &tempfile::TempDir, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LAB_") {
            command.env_remove(name);
        }
    }
    command.current_dir(dir.path()).stdin(Stdio::null());
    command
}

/// The lab's command in `dir`.
pub fn lab(dir: &tempfile::TempDir) -> Command {
    command(dir, programs().join("conntrack-lab"))
}

/// What runs the lab as the user `$0` with the arguments behind `$1`, the programs' directory, after
/// `first`. It needs a mount namespace: a clone below root's home is not for other users' eyes.
pub fn as_user(dir: &tempfile::TempDir, first: &str) -> String {
    fs::create_dir_all(dir.path().join("bin")).unwrap();
    format!(
        "mount --bind \"$1\" bin && shift && export LAB_BIN_DIR=$PWD/bin && {first} && \
         exec setpriv --reuid=$0 --regid=$0 --clear-groups bin/conntrack-lab \"$@\""
    )
}

/// Where a tool really is.
pub fn tool(name: &str) -> std::path::PathBuf {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|d| Path::new(d).join(name))
        .find(|p| p.is_file())
        .and_then(|p| p.canonicalize().ok())
        .unwrap_or_else(|| panic!("{name} is needed"))
}

/// How a command ended.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

pub fn finish(child: Child) -> Output {
    let out = child.wait_with_output().unwrap();
    Output {
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

pub fn output(command: &mut Command) -> Output {
    finish(start(command))
}

/// results.json of a run.
pub fn result(dir: &Path) -> LabResult {
    serde_json::from_slice(&fs::read(dir.join("results.json")).unwrap()).unwrap()
}

/// Waits until `done`, at most so long.
pub fn wait_for(what: &str, within: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !done() {
        assert!(Instant::now() < end, "no {what} within {within:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a run could leave on the host: settings as they are, and whatever has
/// a name that the lab gives. (Other tests may use namespaces of their own meanwhile.)
#[derive(Debug, PartialEq, Eq)]
pub struct Left {
    mounts: Vec<String>,
    links: Vec<String>,
    namespaces: Vec<String>,
    rules: Vec<String>,
    settings: Vec<String>,
    processes: BTreeSet<String>,
}

impl Left {
    /// Now; `dir` is in the command line of everything that the run starts.
    pub fn now(dir: &Path) -> Self {
        let lines = |program: &str, args: &[&str], ours: &dyn Fn(&str) -> bool| {
            let out = Command::new(program).args(args).output().unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            text.lines().filter(|l| ours(l)).map(str::to_owned).collect::<Vec<_>>()
        };
        let settings = [
            "net/netfilter/nf_conntrack_tcp_be_liberal",
            "net/netfilter/nf_conntrack_max",
            "net/ipv4/ip_forward",
            "net/ipv4/ip_local_port_range",
            "net/ipv4/conf/all/rp_filter",
            "net/bridge/bridge-nf-call-iptables",
        ];
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        Self {
            mounts: mounts
                .lines()
                .filter(|l| l.contains(" /run ") || l.contains("/netns/l"))
                .map(str::to_owned)
                .collect(),
            links: lines("ip", &["-o", "link"], &|l| {
                ["to-client", "to-server", "to-outside", "cbr0"].iter().any(|n| l.contains(n))
            }),
            namespaces: lines("ip", &["netns"], &|l| {
                l.starts_with('l') && l[1..].starts_with(|c: char| c.is_ascii_digit())
            }),
            rules: lines("nft", &["-s", "list", "ruleset"], &|l| {
                l.contains("kube-proxy") || l.contains("KUBE-")
            }),
            settings: settings
                .iter()
                .map(|s| fs::read_to_string(format!("/proc/sys/{s}")).unwrap_or_default())
                .collect(),
            processes: processes(dir),
        }
    }

    /// Fails unless everything is as it was. What was killed needs a moment to go.
    pub fn assert_same(&self, dir: &Path) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let now = Self::now(dir);
            if now == *self {
                return;
            }
            assert!(Instant::now() < end, "left behind:\nbefore {self:#?}\nafter {now:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A process's only child: the lab's inner process, once there is one.
pub fn child_of(pid: u32) -> Option<Pid> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let number = fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()?;
    Some(Pid::from_raw(number))
}

/// Processes whose command line names `dir`.
pub fn processes(dir: &Path) -> BTreeSet<String> {
    let name = dir.display().to_string();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&name) {
            found.insert(format!("{} {line}", entry.file_name().display()));
        }
    }
    found
}

/// The judgement of a scenario, and why.
pub fn judged(result: &LabResult, name: &str) -> (Judgement, Vec<String>) {
    let s = result.scenarios.iter().find(|s| s.name == name).unwrap();
    (s.judgement, s.reasons.clone())
}

/// A file `own.toml` of these cases, each a title, its steps and its fields.
pub fn file(dir: &tempfile::TempDir, cases: &[(&str, &str, &str)]) -> std::path::PathBuf {
    let about = "kind = \"cause\"\nname = \"own\"\ntitle = \"t\"\nwhy = \"w\"\nsource = \"s\"\nconnections = 6\n";
    let case = |(title, steps, more): &(&str, &str, &str)| {
        format!("[[case]]\ntitle = \"{title}\"\nsteps = [{steps}]\n{more}\n")
    };
    let path = dir.path().join("own.toml");
    fs::write(&path, about.to_owned() + &cases.iter().map(case).collect::<String>()).unwrap();
    path
}

/// Such a file judged, with the output.
pub fn cases(dir: &tempfile::TempDir, cases: &[(&str, &str, &str)]) -> (Output, LabResult) {
    let (file, results) = (file(dir, cases), dir.path().join("own"));
    let out = output(lab(dir).arg("run").arg(&file).arg("--output").arg(&results));
    let result = result(&results);
    (out, result)
}
