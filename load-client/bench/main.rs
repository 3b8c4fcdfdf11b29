//! `make bench`, `make bench-fill`, `make bench-witness`, `make soak`: what load-client is held to, on this
//! machine, in namespaces of its own.

mod beside;
mod compare;
mod fill;
mod host;
mod soak;

use std::process::ExitCode;

use canary_testbed::netns;

const USAGE: &str = "\
load-bench compare [--rounds N] [--seconds S] [--output FILE] [--oha PATH]
load-bench fill [--within S] [--keep S] [--entries N] [--output FILE]
load-bench beside [--rounds N] [--seconds S] [--output FILE]
load-bench soak [--connections N | --minutes N] [--rate N] [--causes LIST] [--output FILE]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--help" || a == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match args.first().map(String::as_str) {
        // What a peer's host runs is inside already.
        Some("bare") => said(compare::bare(&args[1..])),
        Some("beside" | "compare" | "fill" | "soak" | netns::INSIDE) => {
            netns::contain(|args| said(run(&args[1..]))).unwrap_or_else(|e| said(Err(e.into())))
        }
        _ => {
            eprintln!("error: write load-bench compare, fill, beside or soak\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let (name, rest) = args.split_first().map_or(("", args), |(n, r)| (n.as_str(), r));
    match name {
        "beside" => beside::run(rest),
        "compare" => compare::compare(rest),
        "fill" => fill::run(rest),
        _ => soak::soak(rest),
    }
}

fn said(ran: anyhow::Result<()>) -> ExitCode {
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
