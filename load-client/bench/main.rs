//! `make bench`, `make bench-fill`, `make soak`: what load-client is held to, on this
//! machine, in namespaces of its own. Needs root.
//!
//! load-bench compare [--rounds N] [--seconds S] [--output FILE] [--oha PATH]
//! load-bench fill [--within S] [--keep S] [--entries N] [--output FILE]
//! load-bench soak [--connections N | --minutes N] [--rate N] [--causes LIST] [--output FILE]

mod compare;
mod fill;
mod host;
mod soak;

use std::process::{Command, ExitCode};

/// Set in the process that runs inside the namespaces.
const INSIDE: &str = "LOAD_BENCH_INSIDE";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (name, rest) = args.split_first().map_or(("", &args[..]), |(n, r)| (n.as_str(), r));
    let ran = match name {
        "bare" => compare::bare(rest),
        "compare" | "fill" | "soak" if std::env::var_os(INSIDE).is_none() => return outside(&args),
        "compare" => compare::compare(rest),
        "fill" => fill::run(rest),
        "soak" => soak::soak(rest),
        _ => {
            eprintln!("error: write load-bench compare, fill or soak");
            return ExitCode::from(2);
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again in namespaces of its own, which end with it.
fn outside(args: &[String]) -> ExitCode {
    let status = std::env::current_exe().and_then(|me| {
        Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(me)
            .args(args)
            .env(INSIDE, "1")
            .status()
    });
    match status {
        Ok(s) => ExitCode::from(s.code().map_or(1, |c| c as u8)),
        Err(e) => {
            eprintln!("error: cannot run unshare: {e}");
            ExitCode::FAILURE
        }
    }
}
