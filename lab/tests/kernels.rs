//! lab/kernels and `conntrack-lab kernels` from outside, with a qemu of the
//! test's own: what happens when a kernel does not come, boot or end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use canary_record::names::{EndedBy, OldSegments};
use canary_record::result::{Clock, SCHEMA_VERSION};
use canary_testbed::exec::Call;
use canary_testbed::test::skip;
use conntrack_lab::document::kernels::{GuestRecord, GuestState, KernelsResult};
use conntrack_lab::document::lab::{Environment, Judgement, LabResult, PositiveControl};
use tempfile::TempDir;

canary_testbed::tests![
    outside: a_kernel_that_is_not_there_is_one_line,
    no_qemu_is_one_line,
    no_network_to_the_archive_is_one_line,
    wrong_usage_is_named,
    an_interrupt_ends_qemu_and_leaves_nothing,
    a_guest_that_hangs_is_ended_at_its_deadline,
    a_guest_that_dies_is_told_from_its_command,
    a_commands_status_comes_through,
    a_kernel_that_does_not_boot_is_inconclusive,
    guests_run_at_once,
    all_guests_together_are_bounded,
    the_last_line_is_the_record,
    a_run_that_broke_off_is_inconclusive,
    a_folder_of_something_else_is_wrong_usage,
];

const LAB: &str = env!("CARGO_BIN_EXE_conntrack-lab");

/// Shell text for a qemu of the test's own: `$d` is the folder that it shares with `run`.
const CONTROL: &str =
    "for a; do case $a in *mount_tag=control*) d=${a#*path=}; d=${d%%,*};; esac; done";

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(name)
}

fn executable(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A cache with one kernel, `mine`, and a qemu that does `qemu`.
fn state(qemu: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    executable(&dir.path().join("qemu"), &format!("#!/bin/sh\n{qemu}\n"));
    executable(&dir.path().join("tools/bin/busybox"), "#!/bin/sh\n");
    let kernel = dir.path().join("mine");
    fs::create_dir(&kernel).unwrap();
    for (name, text) in [("vmlinuz", ""), ("release", "none\n"), ("source", "a test\n")] {
        fs::write(kernel.join(name), text).unwrap();
    }
    fs::write(dir.path().join("accel"), "tcg\n").unwrap();
    dir
}

/// This conntrack-lab, and something in the others' place.
fn programs(state: &Path) -> PathBuf {
    let programs = state.join("programs");
    fs::create_dir(&programs).unwrap();
    symlink(LAB, programs.join("conntrack-lab")).unwrap();
    for name in ["boom-server", "load-client"] {
        executable(&programs.join(name), "#!/bin/sh\n");
    }
    programs
}

fn command(name: &str, state: &Path) -> Command {
    // A shell cannot trap what was ignored when it began, as SIGINT is in background jobs.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(script(name));
    command
        .env("LAB_KERNELS_STATE", state)
        .env("LAB_KERNELS_QEMU", state.join("qemu"))
        .stdin(Stdio::null());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// No job's folder is left in the cache.
fn assert_nothing_left(state: &Path) {
    let left: Vec<_> = fs::read_dir(state)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|n| n.to_string_lossy().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ready() {
        assert!(Instant::now() < deadline, "{what} did not happen within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ended(child: &mut Child) -> i32 {
    let mut status = None;
    wait_for("the end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.and_then(|s| s.code()).expect("an exit status, not a signal")
}

/// A kernel that was never fetched is one line that says what to do, and status 1.
fn a_kernel_that_is_not_there_is_one_line() {
    let state = state("exit 0");
    let output = command("run", state.path()).args(["other", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "run: no kernel 'other': lab/kernels/get fetches it\n");
}

/// Without qemu nothing is begun: one line, status 1.
fn no_qemu_is_one_line() {
    let state = state("exit 0");
    fs::remove_file(state.path().join("tools/bin/busybox")).unwrap();
    let output = command("run", state.path()).args(["mine", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "run: no qemu or busybox: lab/kernels/get unpacks them\n");
}

/// An archive that does not answer is one line that names it, and status 1.
fn no_network_to_the_archive_is_one_line() {
    for tool in ["apt-get", "dpkg-deb", "depmod", "xz", "zstd"] {
        if Call::sh(&format!("command -v {tool}")).run().is_err() {
            skip(format!("{tool} is missing; tools/setup kernels installs it"));
        }
    }
    let state = state("exit 0");
    let output = command("get", state.path())
        .args(["5.10"])
        .env("LAB_KERNELS_ARCHIVE", "http://127.0.0.1:9/debian")
        .env("LAB_KERNELS_KEYRING", "/dev/null")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.starts_with("get: no suite bullseye at http://127.0.0.1:9/debian: "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_nothing_left(state.path());
}

/// What is wrong on a command line is named, with status 2, before anything is done.
fn wrong_usage_is_named() {
    let state = state("exit 0");
    for (script, arguments, said) in [
        ("get", &["4.4"][..], "get: unknown generation '4.4'"),
        ("get", &["--name", "x"], "get: --name needs --deb or --vmlinuz"),
        ("get", &["--name", "../x", "--vmlinuz", "/dev/null"], "get: '../x' cannot name a kernel"),
        ("run", &["mine", "--timeout", "soon", "--", "true"], "run: --timeout 'soon'"),
        ("run", &["mine"], "run: no command"),
        ("all", &["--timeout"], "all: --timeout needs a value"),
        ("all", &["--within", "soon"], "all: --within 'soon' is not a whole number"),
    ] {
        let output = command(script, state.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).starts_with(said), "{arguments:?}: {}", stderr(&output));
    }
}

/// SIGINT ends qemu, and leaves no process and no folder, whichever script gets
/// it, by itself or from a terminal (which sends it to the whole process group).
fn an_interrupt_ends_qemu_and_leaves_nothing() {
    for (script, group) in [("run", false), ("run", true), ("all", false), ("all", true)] {
        let state = state("echo $$ >\"$(dirname \"$0\")/pid\"; exec sleep 300");
        let mut command = command(script, state.path());
        match script {
            "run" => command.args(["mine", "--", "true"]),
            _ => command
                .args(["mine", "--output"])
                .arg(state.path().join("out"))
                .env("LAB_KERNELS_PROGRAMS", programs(state.path())),
        };
        let mut child = command.process_group(0).spawn().unwrap();
        let pid_file = state.path().join("pid");
        wait_for("qemu", || fs::read_to_string(&pid_file).is_ok_and(|p| p.ends_with('\n')));
        let qemu: i32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        let interrupt = nix::sys::signal::Signal::SIGINT;
        if group {
            nix::sys::signal::killpg(pid, interrupt).unwrap();
        } else {
            nix::sys::signal::kill(pid, interrupt).unwrap();
        }
        assert_eq!(ended(&mut child), 130, "{script}, group {group}");
        wait_for("qemu's end", || !Path::new(&format!("/proc/{qemu}")).exists());
        assert_nothing_left(state.path());
    }
}

/// A guest that does not end is ended at the deadline: 124, nothing left.
fn a_guest_that_hangs_is_ended_at_its_deadline() {
    let state = state("exec sleep 300");
    let output = command("run", state.path())
        .args(["mine", "--timeout", "1", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(124));
    assert_eq!(stderr(&output), "run: mine: out of time after 1 s\n");
    assert_nothing_left(state.path());
}

/// A guest that ends before its command is 125, with the end of what it said.
fn a_guest_that_dies_is_told_from_its_command() {
    let state = state("echo the kernel is no kernel >&2; exit 1");
    let output = command("run", state.path()).args(["mine", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = stderr(&output);
    assert!(said.contains("the kernel is no kernel"), "{said}");
    assert!(said.ends_with("run: mine: the guest did not get as far as the command\n"), "{said}");
}

/// A guest's command's own status is the script's.
fn a_commands_status_comes_through() {
    let state = state(&format!("{CONTROL}\necho x >$d/booted; echo 7 >$d/status"));
    let output = command("run", state.path()).args(["mine", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert_nothing_left(state.path());
}

/// A kernel that does not boot, started twice and no more, is inconclusive in
/// the table with its reason; the run ends with 11 and every file is there.
fn a_kernel_that_does_not_boot_is_inconclusive() {
    let state = state("echo x >>\"$(dirname \"$0\")/starts\"; exit 1");
    let programs = programs(state.path());
    let out = state.path().join("out");
    let output = command("all", state.path())
        .args(["--short", "mine", "--output"])
        .arg(&out)
        .env("LAB_KERNELS_PROGRAMS", &programs)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(11), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(state.path().join("starts")).unwrap(), "x\nx\n");
    let result: KernelsResult =
        serde_json::from_slice(&fs::read(out.join("kernels.json")).unwrap()).unwrap();
    let [kernel] = &result.kernels[..] else { panic!("{:?}", result.kernels) };
    assert_eq!(
        (kernel.state, kernel.judgement, kernel.old_segments),
        (GuestState::NotBooted, Judgement::Inconclusive, OldSegments::NotShown)
    );
    assert_eq!(result.judgement, Judgement::Inconclusive);
    let table = fs::read_to_string(out.join("kernels.txt")).unwrap();
    assert!(table.contains("mine: started 2 times"), "{table}");
    assert!(out.join("kernels.html").is_file());
}

/// The states in which `all` leaves the kernels `mine` and `other` in the table.
fn states_of_two(state: &Path, options: &[&str]) -> Vec<GuestState> {
    fs::create_dir(state.join("other")).unwrap();
    for name in ["vmlinuz", "release", "source"] {
        fs::copy(state.join("mine").join(name), state.join("other").join(name)).unwrap();
    }
    let out = state.join("out");
    let output = command("all", state)
        .args(options)
        .args(["mine", "other", "--output"])
        .arg(&out)
        .env("LAB_KERNELS_PROGRAMS", programs(state))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(11), "{}", stderr(&output));
    let result: KernelsResult =
        serde_json::from_slice(&fs::read(out.join("kernels.json")).unwrap()).unwrap();
    result.kernels.iter().map(|k| k.state).collect()
}

/// With --jobs 2 the second guest is up before the first has ended.
fn guests_run_at_once() {
    let state = state(&format!(
        "{CONTROL}\necho x >$d/booted\nup=$(dirname \"$0\")/up; echo x >>$up
         for i in $(seq 200); do [ $(wc -l <$up) -lt 2 ] || break; sleep 0.1; done
         [ $(wc -l <$up) -lt 2 ] || echo x >>$up.together; echo 0 >$d/status"
    ));
    states_of_two(state.path(), &["--jobs", "2"]);
    assert_eq!(fs::read_to_string(state.path().join("up.together")).unwrap(), "x\nx\n");
}

/// --within ends the guest that runs, and what could not be started any more
/// is out of time in the table.
fn all_guests_together_are_bounded() {
    let state = state("exec sleep 300");
    let began = Instant::now();
    let states = states_of_two(state.path(), &["--within", "2", "--jobs", "1"]);
    assert_eq!(states, [GuestState::OutOfTime; 2]);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_nothing_left(state.path());
}

/// What `conntrack-lab kernels` makes of a folder.
fn compare(folder: &Path) -> canary_testbed::exec::Output {
    let args = ["kernels".to_owned(), folder.display().to_string()];
    Call::new(Path::new(LAB), &args).output().unwrap()
}

/// The last line of stdout is the record, valid against schema/kernels.json,
/// which is the schema of the type.
fn the_last_line_is_the_record() {
    let dir = TempDir::new().unwrap();
    let guest = r#"{"name":"a","source":"s","accel":"tcg","booted":"","status":125,"starts":1,"seconds":3}"#;
    fs::write(dir.path().join("guest.json"), guest).unwrap();
    let output = compare(dir.path());
    assert_eq!(output.status.code(), Some(11));
    let text = output.stdout;
    let record: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let schema = schemars::schema_for!(KernelsResult);
    canary_testbed::golden::schema("kernels.json", &schema);
    let validator = jsonschema::validator_for(schema.as_value()).unwrap();
    let errors: Vec<_> = validator.iter_errors(&record).map(|e| e.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
    assert!(!validator.is_valid(&serde_json::json!({"schema_version": 1})));
}

/// Results of a guest that died on the way are inconclusive, whatever the lab
/// had written by then.
fn a_run_that_broke_off_is_inconclusive() {
    let dir = TempDir::new().unwrap();
    let run = Clock::start().run("conntrack-lab", "0", EndedBy::Completed, BTreeMap::new());
    let guest = GuestRecord {
        name: "a".to_owned(),
        source: "s".to_owned(),
        accel: "tcg".to_owned(),
        booted: run.kernel.clone(),
        status: 125,
        starts: 1,
        seconds: 3,
    };
    let lab = LabResult {
        schema_version: SCHEMA_VERSION,
        run,
        judgement: Judgement::AsExpected,
        reasons: Vec::new(),
        environment: Environment::default(),
        positive_control: PositiveControl { held: true, forged: 20, killed: 20 },
        scenarios: Vec::new(),
    };
    fs::create_dir(dir.path().join("lab")).unwrap();
    fs::write(dir.path().join("guest.json"), serde_json::to_vec(&guest).unwrap()).unwrap();
    fs::write(dir.path().join("lab/results.json"), serde_json::to_vec(&lab).unwrap()).unwrap();
    let output = compare(dir.path());
    assert_eq!(output.status.code(), Some(11));
    let text = output.stdout;
    assert!(text.contains("a: the run broke off (status 125)"), "{text}");
}

/// A folder that holds neither a guest nor a run is named, with status 2.
fn a_folder_of_something_else_is_wrong_usage() {
    let dir = TempDir::new().unwrap();
    let output = compare(dir.path());
    assert_eq!(output.status.code(), Some(2));
    let said = output.stderr;
    assert!(said.contains("neither guest.json nor results.json"), "{said}");
}
