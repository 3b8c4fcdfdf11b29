//! The commands, put together.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::sync::mpsc::channel;

use crate::document::lab::{Environment, LabResult};
use canary_record::names::EndedBy;
use canary_record::result::{Clock, Config};
use canary_runtime::cli::derive;
use canary_runtime::exit::Exit;

use canary_testbed::exec::{self, Call, Interrupt, TOOLS};
use canary_testbed::os::os;
use canary_testbed::{evidence, netns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::cli::{BinArgs, Cli, Command, RunArgs, ShellArgs};
use crate::cluster;
use crate::hands_on;
use crate::judge::ledger::{Entry, Ledger};
use crate::kernels;
use crate::record::Record;
use crate::report::folder;
use crate::report::{progress::Progress, text};
use crate::run::host_table;
use crate::run::setting::Setting;
use crate::run::{self, Plan};
use crate::scenario::matrix::Matrix;
use crate::scenario::{self, Body, Scenario};
use crate::wrong::{Wrong, failed, unwritten, usage};

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let (cli, config) = match canary_runtime::cli::effective::<Cli>() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    let exit = match (&cli.command, cli.inside) {
        (Command::List, _) => list(),
        (Command::New { name }, _) => new(name),
        (Command::Check(args), inside) => check(args, inside),
        (Command::Kernels(args), _) => kernels::run(args, config),
        (Command::Report { dir }, _) => report(dir),
        (Command::Cluster { dir }, _) => judge_cluster(dir),
        (Command::Diff { first, second }, _) => diff(first, second),
        (Command::Shell(args), inside) => return end(shell(args, inside)),
        (Command::HostTable(args), _) => host_table::guard(args),
        (Command::Run(args), None) => outer(args),
        (Command::Run(args), Some(pipe)) => inner(args, config, pipe),
    };
    end(exit)
}

fn end(ending: Result<impl Into<ExitCode>, Wrong>) -> ExitCode {
    match ending {
        Ok(exit) => exit.into(),
        Err(e) => {
            eprintln!("error: {e}");
            e.0.into()
        }
    }
}

/// Ends as the shell does; of a signal as shells tell it.
fn shell(args: &ShellArgs, inside: Option<i32>) -> Result<ExitCode, Wrong> {
    let status = if let Some(pipe) = inside {
        settled(pipe)?;
        hands_on::shell(args).map_err(failed)?
    } else {
        hands_on::check(args).map_err(usage)?;
        netns::isolate(None).map_err(failed)?
    };
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Failed as u8)))
}

type Ending = Result<Exit, Wrong>;

fn print(text: &str) {
    // A reader that has gone needs no more.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

fn list() -> Ending {
    for s in scenario::shipped().map_err(failed)? {
        let mark = if s.by_default() { '*' } else { ' ' };
        print(&format!("{mark} {:<28} {}\n", s.about.name, s.about.title));
    }
    Ok(Exit::Ok)
}

fn new(name: &str) -> Ending {
    let text = scenario::begun(name).map_err(usage)?;
    let path = PathBuf::from(format!("{name}.toml"));
    let file = File::options().write(true).create_new(true).open(&path);
    match file.and_then(|mut file| file.write_all(text.as_bytes())) {
        Ok(()) => {
            print(&format!("{0}: conntrack-lab run {0}\n", path.display()));
            Ok(Exit::Ok)
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(usage(format!("{} is there already: choose another name", path.display())))
        }
        Err(e) => Err(unwritten(&path)(e)),
    }
}

fn report(dir: &Path) -> Ending {
    let result = folder::read(dir)?;
    for file in folder::write(dir, &result)? {
        print(&format!("{}\n", file.display()));
    }
    Ok(Exit::Ok)
}

fn judge_cluster(dir: &Path) -> Ending {
    let result = cluster::run(dir)?;
    print(&text::render(&result, text::width()));
    Ok(exit(&result))
}

fn diff(first: &Path, second: &Path) -> Ending {
    let diff = folder::compare(first, second)?;
    print(&format!("{diff}\n"));
    Ok(diff.exit())
}

fn check(args: &BinArgs, inside: Option<i32>) -> Ending {
    if inside.is_none() {
        // Isolation is tried for real, in a process of its own.
        return enter(None);
    }
    let mut wrong = 0;
    let mut line = |what: &str, state: Result<String, String>| {
        let (mark, text) = match state {
            Ok(text) => ("ok     ", text),
            Err(text) => {
                wrong += 1;
                ("MISSING", text)
            }
        };
        print(&format!("{mark} {what:<18} {text}\n"));
    };
    let kind = if in_user_namespace() { "in a user namespace" } else { "as root" };
    line("isolation", Ok(kind.to_owned()));
    for (tool, _) in TOOLS {
        let path = exec::find(tool).map(|p| p.display().to_string());
        line(tool, path.map_err(|e| e.to_string()));
    }
    for program in ["boom-server", "load-client"] {
        line(program, args.find(program).map(|p| p.display().to_string()));
    }
    let read = |key: &str| evidence::sysctl(key).map_err(|e| e.to_string());
    let conntrack = read(evidence::BE_LIBERAL).map(|_| "be_liberal can be read".into());
    line("conntrack", conntrack.map_err(|e| format!("{e}: modprobe nf_conntrack")));
    // Without it the scenarios with a bridge are skipped, nothing else.
    let (mark, text) = match read("net/bridge/bridge-nf-call-iptables") {
        Ok(_) => ("ok     ", "loaded"),
        Err(_) => ("without", "the scenarios with a bridge are skipped: modprobe br_netfilter"),
    };
    print(&format!("{mark} {:<18} {text}\n", "br_netfilter"));
    Ok(if wrong == 0 {
        print("Everything that the lab needs is here: conntrack-lab run\n");
        Exit::Ok
    } else {
        print(&format!("{wrong} of these must be mended before the lab can run.\n"));
        Exit::Failed
    })
}

/// Whether the outer process made a user namespace.
fn in_user_namespace() -> bool {
    std::env::var("LAB_USER_NAMESPACE").is_ok_and(|v| v == "true")
}

/// Everything that can be wrong with a command line or this machine is said
/// before anything is made.
fn outer(args: &RunArgs) -> Ending {
    scenarios(args)?;
    if let Some(why) = args.output.as_ref().and_then(|dir| unusable(dir)) {
        return Err(usage(format!("--output: {why}; name another")));
    }
    for (tool, _) in TOOLS {
        exec::find(tool).map_err(failed)?;
    }
    for program in ["boom-server", "load-client"] {
        args.bin.find(program).map_err(failed)?;
    }
    let Some(size) = args.host_table_size else { return enter(None) };
    // Here, because the initial network namespace alone has this setting.
    let guard = match host_table::Guard::start(size)? {
        Ok(guard) => guard,
        Err(status) => return ended(status),
    };
    let ending = guard.share().and_then(|pipe| enter(Some((host_table::PIPE, pipe.to_string()))));
    guard.restore()?;
    ending
}

/// Why a directory may not be used for results, which is neither absent nor empty.
fn unusable(dir: &Path) -> Option<String> {
    let full = || Some(format!("{} is not an empty directory", dir.display()));
    match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().and_then(|_| full()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => full(),
        Err(e) => Some(format!("cannot read {}: {e}", dir.display())),
    }
}

fn enter(env: Option<(&str, String)>) -> Ending {
    ended(netns::isolate(env).map_err(failed)?)
}

/// As another process of the lab's did.
fn ended(status: ExitStatus) -> Ending {
    Ok(match status.code() {
        Some(0) => Exit::Ok,
        Some(2) => Exit::Usage,
        Some(10) => Exit::Vulnerable,
        Some(11) => Exit::Inconclusive,
        Some(_) => Exit::Failed,
        None => return Err(failed(format!("the inner process was ended: {status}"))),
    })
}

fn scenarios(args: &RunArgs) -> Result<Vec<Scenario>, Wrong> {
    let mut chosen = scenario::choose(&args.scenarios).map_err(usage)?;
    let matrices = || chosen.iter().filter_map(Scenario::matrix);
    let depends = |m: &Matrix| m.cells.iter().any(|c| m.depends_on_generation(c));
    // Without it nothing is proved; and what depends on the kernel's generation needs a cell
    // that shows it.
    if !matrices().any(Matrix::has_control)
        || (matrices().any(depends) && !matrices().any(Matrix::tells_generation))
    {
        chosen.insert(0, scenario::positive_control().map_err(failed)?);
    }
    // Results are kept by name.
    let mut seen = BTreeMap::new();
    for s in &chosen {
        let (name, file) = (&s.about.name, &s.file);
        let mend = match seen.insert(name, file) {
            None => continue,
            Some(other) if other == file => "name each once".to_owned(),
            Some(other) => format!("in {other} and in {file}: give one another `name`"),
        };
        return Err(usage(format!("two scenarios are named '{name}': {mend}")));
    }
    for s in &mut chosen {
        if let (Body::Matrix(m), Some(n)) = (&mut s.body, args.connections) {
            m.connections = n;
        }
    }
    Ok(chosen)
}

fn inner(args: &RunArgs, mut config: Config, pipe: i32) -> Ending {
    let clock = Clock::start();
    let outside = netns::outside_pid();
    let interrupt = settled(pipe)?;
    // Of every case and cell at once this process has the programs' output, and the connections.
    let files = Resource::RLIMIT_NOFILE;
    let limit = || getrlimit(files).and_then(|(_, most)| setrlimit(files, most, most));
    limit().map_err(os("raise the limit of open files")).map_err(failed)?;
    let control = host_table::Control::inherited().map_err(failed)?;
    let dir = results_dir(args)?;
    derive(&mut config, "output", &dir.display());
    let environment = environment();
    let plan = Plan {
        scenarios: scenarios(args)?,
        repeat: args.repeat,
        mends: args.mends,
        jobs: usize::from(args.jobs),
        setting: Setting {
            boom_server: args.bin.find("boom-server").map_err(failed)?,
            load_client: args.bin.find("load-client").map_err(failed)?,
            time_scale: args.time_scale,
            capture: args.capture,
            interrupt: interrupt.clone(),
            keep: args.keep,
        },
        dir: dir.clone(),
    };
    let entries: Vec<_> = plan.scenarios.iter().map(entry).collect();
    let bodies = entries.iter().filter(|e| e.skipped.is_none()).map(|e| &e.scenario.body);
    let repeated = |n: usize| n * plan.repeat as usize;
    let (mut cells, mut cases) = (0, 0);
    for body in bodies {
        match body {
            Body::Matrix(m) => cells += repeated(m.cells()),
            Body::Cause(cause) => cases += repeated(run::cases(cause, plan.mends).len()),
            Body::Saturation(_) => {}
        }
    }
    let record = Record::prepare(&dir, clock, interrupt, config).map_err(failed)?;
    let mut ledger = Ledger::new(entries, plan.repeat, environment, record.so_far());
    let mut progress = Progress::new();
    let (tell, told) = channel();
    std::thread::scope(|scope| {
        let (plan, control) = (&plan, control.as_ref());
        // The sender goes with the run, so that listening ends with it.
        scope.spawn(move || run::run(plan, control, &tell));
        progress.begin(cells, cases);
        record.listen(&told, &mut ledger, &mut progress);
    });
    progress.end();
    // What was found is shown, whether or not it can be written.
    let (result, recorded) = record.end(&mut ledger);
    let report = folder::write(&dir, result);
    print(&text::render(result, text::width()));
    if !std::io::stdout().is_terminal() {
        print(&format!("{}\n", last_line(result, recorded.is_ok().then_some(&dir))));
    } else if recorded.is_ok() && report.is_ok() {
        print(&format!(
            "Report: {}, the data beside it in results.json\n",
            dir.join("report.html").display()
        ));
    }
    recorded.map_err(failed)?;
    report?;
    if args.keep {
        let prefixes = run::last_cells(&plan);
        hands_on::keep(&outside, in_user_namespace(), &prefixes, &plan.setting.interrupt);
    }
    Ok(exit(result))
}

/// For a program that reads the end of stdout; without the directory of results where they could not be
/// written.
fn last_line(result: &LabResult, written: Option<&PathBuf>) -> serde_json::Value {
    serde_json::json!({
        "judgement": result.judgement,
        "ended_by": if written.is_some() { result.run.ended_by } else { EndedBy::Error },
        "results": written.map(|dir| dir.join("results.json")),
    })
}

fn entry(scenario: &Scenario) -> Entry {
    Entry {
        scenario: scenario.clone(),
        skipped: run::skipped(scenario).map(str::to_owned),
        commands: run::commands(scenario),
    }
}

/// How a program ends with that result.
#[must_use]
pub fn exit(result: &LabResult) -> Exit {
    match result.run.ended_by {
        EndedBy::Sigint | EndedBy::Sigterm => Exit::Inconclusive,
        _ => result.judgement.into(),
    }
}

/// The inner process's first steps.
fn settled(pipe: i32) -> Result<Interrupt, Wrong> {
    netns::settle(pipe).map_err(failed)?;
    Interrupt::catch().map_err(failed)
}

fn results_dir(args: &RunArgs) -> Result<PathBuf, Wrong> {
    let dir = args.output.clone().unwrap_or_else(|| {
        let now = jiff::Timestamp::now();
        // RFC 3339 without what file systems and shells dislike.
        Path::new("results").join(format!("{now:.0}").replace(':', ""))
    });
    fs::create_dir_all(&dir)
        .map_err(|e| failed(format!("cannot create {}: {e}", dir.display())))?;
    dir.canonicalize().map_err(|e| failed(format!("cannot find {}: {e}", dir.display())))
}

fn environment() -> Environment {
    let version = |tool: &str| {
        let flag = if tool == "ip" { "-V" } else { "--version" };
        let path = exec::find(tool).ok()?;
        // A tool that refuses the flag says so in its version's place.
        let said = Call::new(&path, &[flag]).run().unwrap_or_else(|e| e.to_string());
        Some((tool.to_owned(), said.lines().next()?.trim().to_owned()))
    };
    Environment {
        tools: ["ip", "nft", "iptables-restore", "tcpdump"]
            .into_iter()
            .filter_map(version)
            .collect(),
        user_namespace: in_user_namespace(),
        cpus: std::thread::available_parallelism().map_or(0, |n| n.get() as u64),
        conntrack_max: host_table::max().ok(),
        old_segments: None,
    }
}
