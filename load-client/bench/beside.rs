//! What a witness costs the connections beside it where nothing is INVALID: churn with one on each
//! node and without, by turns, as ratios of neighbouring rounds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use canary_record::result::load::LoadResult;
use canary_record::result::serve::ServeResult;
use canary_record::result::witness::WitnessResult;
use canary_testbed::evidence;
use canary_testbed::model::Path as NetPath;
use canary_testbed::programs::Running;
use canary_testbed::testbed::Testbed;
use serde_json::json;

use crate::host::{self, RUN, SOON, ready};

const NODES: [&str; 2] = ["node1", "node2"];
const LISTEN: &str = "0.0.0.0:9000";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    #[arg(long)]
    output: Option<PathBuf>,
}

/// What one round gave.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// Connections a second.
    rate: f64,
    /// Processor time of both witnesses, as a part of one processor.
    cpu: f64,
    /// Messages of the kernel.
    messages: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (rounds, seconds) = (args.rounds, args.seconds);
    ensure!(seconds > 0.0, "--seconds: more than nothing");
    let testbed = host::hosts(NetPath::ClusterIp)?;
    for node in NODES {
        testbed.sh(node, host::SHORT)?;
    }
    testbed.sh("client", host::CLIENT)?;
    let _serve = ready::<ServeResult>(&testbed, "server", &format!("serve --listen {LISTEN}"))?;
    // The first connections find cold caches.
    one(&testbed, seconds, false)?;
    let mut pairs = Vec::new();
    for n in 1..=rounds {
        // Whoever comes second finds another machine: the order changes.
        let second = n % 2 == 0;
        let first = one(&testbed, seconds, second)?;
        let other = one(&testbed, seconds, !second)?;
        let [bare, beside] = if second { [other, first] } else { [first, other] };
        let ratio = beside.rate / bare.rate;
        println!(
            "round {n}/{rounds}  bare {:>7.0}/s  beside a witness {:>7.0}/s  ratio {ratio:.3}  \
             witnesses {:.2}% of one processor, {} messages",
            bare.rate,
            beside.rate,
            beside.cpu * 100.0,
            beside.messages
        );
        pairs.push((ratio, bare, beside));
    }
    let ratios: Vec<_> = pairs.iter().map(|p| p.0).collect();
    let at = |part| host::quantile(&ratios, part);
    let cpu = pairs.iter().map(|p| p.2.cpu).sum::<f64>() / pairs.len() as f64;
    let (median, quarters) = (at(0.5), [at(0.25), at(0.75)]);
    println!(
        "\nbeside a witness / bare: median {median:.3}, quarters {:.3} to {:.3}, all {:.3} to {:.3}; \
         both witnesses {:.2}% of one processor",
        quarters[0],
        quarters[1],
        at(0.0),
        at(1.0),
        cpu * 100.0
    );
    host::write(
        args.output.as_deref(),
        &json!({
            "machine": host::machine(), "rounds": rounds, "seconds": seconds, "ratios": ratios,
            "median": median, "quarters": quarters, "witnesses_cpu": cpu,
            "bare": pairs.iter().map(|p| p.1.rate).collect::<Vec<_>>(),
            "beside": pairs.iter().map(|p| p.2.rate).collect::<Vec<_>>(),
            "messages": pairs.iter().map(|p| p.2.messages).sum::<u64>(),
        }),
    )
}

/// Churn for so long, with a witness on each node or without.
fn one(testbed: &Testbed, seconds: f64, watched: bool) -> Result<Round> {
    for node in NODES {
        testbed.within(node, evidence::forget_all)?;
    }
    let watch = |node| {
        let words = format!("witness --log=json --state-dir={RUN}");
        ready::<WitnessResult>(testbed, node, &words)
    };
    let nodes = if watched { &NODES[..] } else { &[] };
    let witnesses = nodes.iter().map(|n| watch(n)).collect::<Result<Vec<_>>>()?;
    let before = processor(&witnesses)?;
    let churn = format!(
        "churn --target=tcp://{} --concurrency=64 --duration={seconds}s --close=fin --log=json",
        host::SERVICE
    );
    let limit = Duration::from_secs_f64(seconds) + 3 * SOON;
    let log = Path::new(RUN).join("churn.log");
    let load = host::client::<LoadResult>(&churn)?.start(testbed, "client", &log)?;
    let load = load.end(limit)?.result;
    let used = processor(&witnesses)?.saturating_sub(before);
    ensure!(
        load.ok == load.attempts,
        "{} of {} connections failed",
        load.attempts - load.ok,
        load.attempts
    );
    let mut round = Round {
        rate: load.ok as f64 / load.run.seconds,
        cpu: used.as_secs_f64() / load.run.seconds,
        messages: 0,
    };
    for witness in witnesses {
        let m = witness.stop(SOON)?.result.messages;
        ensure!(m.lost + m.overruns == 0, "a witness lost messages: {m:?}");
        round.messages += m.received;
    }
    Ok(round)
}

/// What all of them have used.
fn processor(witnesses: &[Running<WitnessResult>]) -> Result<Duration> {
    witnesses.iter().map(|w| host::processor(w.pid())).sum()
}
