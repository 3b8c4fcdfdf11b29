//! `make bench`, `make bench-fill`, `make bench-witness`, `make soak`: what load-client is held to, on this
//! machine, in namespaces of its own.

mod beside;
mod compare;
mod fill;
mod host;
mod soak;
mod witness;

use std::process::ExitCode;

use canary_runtime::cli;
use canary_runtime::exit::{self, Exit};
use canary_testbed::netns;
use clap::Parser;

/// What load-client is held to, on this machine, in namespaces of its own.
#[derive(Parser)]
#[command(name = "load-bench", args_override_self = true)]
enum Bench {
    /// Against wrk, oha and bare loops, as ratios
    Compare(compare::Args),
    /// A conntrack table filled from empty and kept full
    Fill(fill::Args),
    /// What a witness costs churn beside it
    Beside(beside::Args),
    /// INVALID segments at a rate, and what a witness loses of them
    Witness(witness::Args),
    /// A long churn while things go wrong
    Soak(soak::Args),
    /// The machine's limit, inside a host
    #[command(hide = true)]
    Bare(compare::Bare),
    /// What the witness hears, inside its host
    #[command(hide = true)]
    Send(witness::Stream),
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_none_or(|first| first != netns::INSIDE) {
        match cli::effective() {
            Err(code) => return code,
            Ok((inside @ (Bench::Bare(_) | Bench::Send(_)), _)) => return ended(run(inside)),
            Ok(_) => {}
        }
    }
    netns::contain(|args| match cli::effective_from(args.into_iter().map(Into::into)) {
        Err(code) => code,
        Ok((bench, _)) => ended(run(bench)),
    })
    .unwrap_or_else(|e| ended(Err(e.into())))
}

fn ended(ran: anyhow::Result<Exit>) -> ExitCode {
    exit::code(ran, |_| false)
}

fn run(bench: Bench) -> anyhow::Result<Exit> {
    match bench {
        Bench::Compare(args) => compare::compare(&args),
        Bench::Fill(args) => fill::run(&args),
        Bench::Beside(args) => beside::run(&args),
        Bench::Witness(args) => witness::run(args),
        Bench::Soak(args) => soak::soak(&args),
        Bench::Bare(args) => compare::bare(&args),
        Bench::Send(args) => witness::send(args),
    }
    .map(|()| Exit::Ok)
}
