//! Fills the one table of a node from empty, by one client pod, and keeps it full; what
//! happened is read from `load-client observe` in the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use canary_record::result::load::LoadResult;
use canary_record::result::observe::ObserveResult;
use canary_record::result::serve::ServeResult;
use serde_json::json;

use crate::host::{self, RUN, SERVICE, SOON, client, ready};

/// A table counts as full, and as kept, from this part of its limit on.
const FULL: f64 = 0.99;

/// load-client's own default of --fill-to.
const FILL_TO: f64 = 0.995;

/// The series as it is printed: one line for so many seconds.
const STEP: f64 = 2.0;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds until it must be full
    #[arg(long, default_value_t = 12.0)]
    within: f64,
    /// Seconds for which it must stay so
    #[arg(long, default_value_t = 60.0)]
    keep: f64,
    /// Of how many entries [default: the table's limit]
    #[arg(long)]
    entries: Option<u64>,
    #[arg(long)]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let testbed = host::one_node()?;
    let limit = "cat /proc/sys/net/netfilter/nf_conntrack_max";
    let limit: u64 = testbed.sh("node1", limit)?.trim().parse()?;
    let entries = args.entries.unwrap_or(limit);
    let _serve = ready::<ServeResult>(&testbed, "server", "serve --listen 0.0.0.0:9000")?;
    // Tracking begins with the first rule that needs it; the table must be empty.
    let observe = "observe --interval 250ms --admin 198.18.65.1:9174";
    let observe = ready::<ObserveResult>(&testbed, "node1", observe)?;
    let seconds = args.within + args.keep + 3.0;
    let line = format!(
        "churn --fill http://198.18.65.1:9174 --fill-to {} --duration {seconds}s --target tcp://{SERVICE} --source-ip {}",
        FILL_TO * entries as f64 / limit as f64,
        host::sources(),
    );
    let load =
        client::<LoadResult>(&line)?.start(&testbed, "client", &Path::new(RUN).join("load.log"))?;
    let load = load.end(Duration::from_secs_f64(seconds) + SOON)?;
    ensure!(load.status.success(), "load-client churn: {}", load.status);
    let seen = observe.stop(SOON)?.result;
    judge(&seen, &load.result, entries, args)
}

fn judge(seen: &ObserveResult, load: &LoadResult, entries: u64, args: &Args) -> Result<()> {
    let &Args { within, keep, ref output, .. } = args;
    let share = |n: u64| n as f64 / entries as f64;
    ensure!(seen.first.entries == 0, "the table was not empty: {} entries", seen.first.entries);
    let samples = &seen.samples;
    // The last sample of an empty table, or the look before them: the fill took at most from there.
    let begin = samples.iter().take_while(|s| s.entries == 0).last().map_or(0.0, |s| s.t);
    println!("{:>8} {:>9} {:>7} {:>9}", "seconds", "entries", "share", "drop");
    let mut next = begin;
    for s in samples.iter().filter(|s| s.t >= begin && s.t <= begin + within + keep) {
        if s.t >= next {
            let percent = share(s.entries) * 100.0;
            println!(
                "{:>8.2} {:>9} {percent:>6.2}% {:>9}",
                s.t - begin,
                s.entries,
                s.counters.drop
            );
            next = s.t + STEP;
        }
    }
    let full = samples.iter().find(|s| share(s.entries) >= FULL).map(|s| s.t);
    let kept: Vec<_> = full
        .map_or(Vec::new(), |t| samples.iter().filter(|s| s.t >= t && s.t <= t + keep).collect());
    let above = kept.iter().filter(|s| share(s.entries) >= FULL).count();
    let covered = kept.last().map_or(0.0, |s| s.t - full.unwrap_or(s.t));
    let took = full.map(|t| t - begin);
    let sum = load.adds_up();
    let held =
        took.is_some_and(|t| t <= within) && above == kept.len() && covered >= keep - 1.0 && sum;
    let seconds = |t: Option<f64>| t.map_or("never".to_owned(), |t| format!("{t:.2} s"));
    println!("one client pod, 32 addresses, a table of {entries}");
    println!("99% after {} (wanted: {within} s)", seconds(took));
    println!("then {above} of {} samples in {covered:.1} s at 99% or above", kept.len());
    println!("packets dropped by the full table: {}", seen.difference.drop);
    println!(
        "{} attempts, {} ok, sum of classes {}",
        load.attempts,
        load.ok,
        if sum { "equal" } else { "NOT EQUAL" }
    );
    println!("{}", if held { "HELD" } else { "MISSED" });
    host::write(
        output.as_deref(),
        &json!({
            "machine": host::machine(), "entries": entries, "held": held,
            "full_after_s": took, "covered_s": covered,
            "samples": kept.len(), "samples_above": above, "dropped": seen.difference.drop,
            "attempts": load.attempts, "ok": load.ok, "failures": load.failures,
            "series": samples.iter().map(|s| (s.t - begin, s.entries)).collect::<Vec<_>>(),
        }),
    )?;
    ensure!(held, "the table was not filled in time, or not kept full");
    Ok(())
}
