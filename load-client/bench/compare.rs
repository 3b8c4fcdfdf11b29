//! load-client against its peers, across a client pod, two tracking nodes and a server
//! pod; interleaved rounds, medians, ratios.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use canary_record::result::serve::ServeResult;
use canary_testbed::evidence;
use canary_testbed::exec::{Call, Ready};
use canary_testbed::model::Path as NetPath;
use canary_testbed::programs::{built, document};
use canary_testbed::testbed::Testbed;
use serde_json::{Value, json};

use crate::host::{self, RUN, SOON, ready};

const HTTP: &str = "http://198.19.0.10/1k";
const WEB: &str = "198.19.0.10:80";
const TCP: &str = "198.19.0.10:9000";
/// Connections in progress at once, for every peer.
const CONCURRENCY: &str = "64";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Whole ones: wrk takes no others
    #[arg(long, default_value_t = 4)]
    seconds: u16,
    #[arg(long)]
    output: Option<PathBuf>,
    /// Where oha is, if it is to take part
    #[arg(long)]
    oha: Option<PathBuf>,
}

/// A bare loop: fin, rst or http.
#[derive(clap::Args)]
pub(crate) struct Bare {
    #[arg(value_parser = ["fin", "rst", "http"])]
    what: String,
    seconds: u64,
    threads: u32,
}

/// One contender: its name, and how to get its requests a second.
struct Peer {
    name: &'static str,
    /// A line for the shell.
    command: String,
    rate: Rate,
}

/// Reads requests a second off what a contender printed in so many seconds.
type Rate = fn(&str, f64) -> Option<f64>;

/// What is held against what, and the least ratio.
const RATIOS: &[(&str, &str, &str, f64)] = &[
    ("http vs wrk", "load-client http", "wrk", 1.0),
    ("http vs oha", "load-client http", "oha", 1.15),
    ("http vs bare loop", "load-client http", "bare loop http", 0.95),
    ("tcp fin vs bare loop", "load-client tcp fin", "bare loop fin", 1.0),
    ("tcp rst vs bare loop", "load-client tcp rst", "bare loop rst", 0.9),
];

/// The machine's limit, in blocking threads and with nothing else: connect and close, and for
/// `http` between them a request, written at once, and its whole answer.
pub(crate) fn bare(args: &Bare) -> Result<()> {
    let once: fn() -> std::io::Result<()> = match args.what.as_str() {
        "fin" => || TcpStream::connect(TCP).map(drop),
        "rst" => || {
            let stream = TcpStream::connect(TCP)?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        },
        _ => request,
    };
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let began = Instant::now();
    let mut all = Vec::new();
    for _ in 0..args.threads {
        all.push(std::thread::spawn(move || -> std::io::Result<u64> {
            let mut n = 0;
            while Instant::now() < end {
                once()?;
                n += 1;
            }
            Ok(n)
        }));
    }
    let mut n = 0;
    for thread in all {
        n += thread.join().ok().context("a thread panicked")??;
    }
    println!("{}", n as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

/// One request on a connection of its own.
fn request() -> std::io::Result<()> {
    let mut stream = TcpStream::connect(WEB)?;
    stream.write_all(b"GET /1k HTTP/1.1\r\nhost: 198.19.0.10\r\nconnection: close\r\n\r\n")?;
    let (mut answer, mut got) = ([0; 16 << 10], 0);
    loop {
        match stream.read(&mut answer[got..])? {
            0 => break,
            n => got += n,
        }
    }
    if answer.starts_with(b"HTTP/1.1 200 ") && answer[..got].ends_with(&[b'x'; 1024]) {
        Ok(())
    } else {
        Err(std::io::Error::other("not the whole answer"))
    }
}

fn wrk(text: &str, _: f64) -> Option<f64> {
    // Errors would flatter it.
    if text.contains("Socket errors") || text.contains("Non-2xx") {
        return None;
    }
    text.lines().find_map(|l| l.strip_prefix("Requests/sec:"))?.trim().parse().ok()
}

fn oha(text: &str, seconds: f64) -> Option<f64> {
    let v: Value = serde_json::from_str(text).ok()?;
    // Errors would flatter it, but for those of its own end.
    let errors = v["errorDistribution"].as_object()?;
    if errors.keys().any(|e| e != "aborted due to deadline") {
        return None;
    }
    let ok = v["statusCodeDistribution"]["200"].as_f64()?;
    Some(ok / v["summary"]["total"].as_f64().unwrap_or(seconds))
}

fn number(text: &str, _: f64) -> Option<f64> {
    text.trim().lines().last()?.parse().ok()
}

fn load_client(text: &str, _: f64) -> Option<f64> {
    let v: Value = document(text).ok()?;
    (v["ok"] == v["attempts"]).then_some(v["ok"].as_f64()? / v["run"]["seconds"].as_f64()?)
}

fn peers(oha_path: Option<&Path>, seconds: u16) -> Result<Vec<Peer>> {
    let (me, client) = (std::env::current_exe()?, built("load-client")?);
    let (me, client) = (me.display(), client.display());
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let churn = |more: &str| {
        format!("{client} churn --concurrency {CONCURRENCY} --duration {seconds}s {more}")
    };
    let bare = |what: &str, threads: &dyn Display| format!("{me} bare {what} {seconds} {threads}");
    let wrk_command =
        format!("wrk -t{cpus} -c{CONCURRENCY} -d{seconds}s -H 'Connection: close' {HTTP}");
    let peer = |name, command, rate| Peer { name, command, rate };
    let mut all = vec![
        peer("load-client http", churn(&format!("--target {HTTP}")), load_client as Rate),
        peer("wrk", wrk_command, wrk),
        peer("bare loop http", bare("http", &CONCURRENCY), number),
    ];
    if let Some(oha_path) = oha_path {
        let command = format!(
            "{} --no-tui --output-format json --disable-keepalive -c {CONCURRENCY} -z {seconds}s {HTTP}",
            oha_path.display()
        );
        all.push(peer("oha", command, oha));
    }
    for (name, bare_name, close) in [
        ("load-client tcp fin", "bare loop fin", "fin"),
        ("load-client tcp rst", "bare loop rst", "rst"),
    ] {
        let target = format!("--target tcp://{TCP} --close {close}");
        all.push(peer(name, churn(&target), load_client));
        all.push(peer(bare_name, bare(close, &cpus), number));
    }
    Ok(all)
}

/// nginx behind the Service's own port, load-client's server behind 9000, and no limit of a
/// host's own on anybody.
fn prepare(testbed: &Testbed) -> Result<()> {
    let dnat = "ip daddr 198.19.0.10 tcp dport 9000 dnat to 198.18.66.20:9001";
    let chain = format!("chain pre {{ type nat hook prerouting priority dstnat; {dnat}; }};");
    testbed.sh("node1", &format!("nft 'table ip bench {{ {chain} }}'"))?;
    // Short timeouts keep the tables of a long bench small, for every peer alike.
    for node in ["node1", "node2"] {
        testbed.sh(node, host::SHORT)?;
    }
    testbed.sh("client", host::CLIENT)?;
    let root = Path::new(RUN);
    std::fs::create_dir_all(root.join("www"))?;
    std::fs::write(root.join("www/1k"), [b'x'; 1024])?;
    Ok(std::fs::write(root.join("nginx.conf"), include_str!("nginx.conf"))?)
}

pub(crate) fn compare(args: &Args) -> Result<()> {
    let testbed = host::hosts(NetPath::ClusterIp)?;
    prepare(&testbed)?;
    let nginx = Call::new(Path::new("nginx"), &["-c", "/run/nginx.conf"]);
    let _nginx = testbed.start("server", nginx, &Path::new(RUN).join("nginx.log"), Ready::Event)?;
    let _serve = ready::<ServeResult>(&testbed, "server", "serve --listen 0.0.0.0:9001")?;
    let end = Instant::now() + SOON;
    while testbed.sh("client", &format!("curl -sf -o /dev/null {HTTP}")).is_err() {
        ensure!(Instant::now() < end, "nginx does not answer through the service address");
        std::thread::sleep(Duration::from_millis(50));
    }
    let (peers, rounds) = (peers(args.oha.as_deref(), args.seconds)?, args.rounds);
    let seconds = f64::from(args.seconds);
    let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 1..=rounds {
        for peer in &peers {
            for node in ["node1", "node2"] {
                testbed.within(node, evidence::forget_all)?;
            }
            let limit = Duration::from_secs_f64(seconds) + 3 * SOON;
            let text = testbed.run("client", &Call::sh(&peer.command).deadline(limit))?.stdout;
            let rate = (peer.rate)(&text, seconds).with_context(|| {
                format!("{}: no rate, or failures, in its output: {text:.2000}", peer.name)
            })?;
            eprintln!("round {round}/{rounds}  {:<20} {rate:>9.0}/s", peer.name);
            rates.entry(peer.name).or_default().push(rate);
        }
    }
    report(&rates, args)
}

fn report(rates: &BTreeMap<&str, Vec<f64>>, args: &Args) -> Result<()> {
    let medians: BTreeMap<_, _> = rates.iter().map(|(n, v)| (*n, host::quantile(v, 0.5))).collect();
    println!("{:<22} {:>10} {:>10} {:>10}", "requests a second", "median", "least", "most");
    for (name, values) in rates {
        let [least, most] = [0.0, 1.0].map(|part| host::quantile(values, part));
        println!("{name:<22} {:>10.0} {least:>10.0} {most:>10.0}", medians[name]);
    }
    println!("\n{:<22} {:>10} {:>10}", "ratio of medians", "measured", "wanted");
    let mut ratios = Vec::new();
    for (name, ours, theirs, wanted) in RATIOS {
        let (Some(a), Some(b)) = (medians.get(ours), medians.get(theirs)) else { continue };
        let held = a / b >= *wanted;
        println!("{name:<22} {:>10.2} {wanted:>10.2} {}", a / b, if held { "" } else { "MISSED" });
        ratios.push(json!({"name": name, "measured": a / b, "wanted": wanted, "held": held}));
    }
    host::write(
        args.output.as_deref(),
        &json!({
            "machine": host::machine(), "rounds": args.rounds, "seconds": f64::from(args.seconds),
            "rates": rates, "medians": medians, "ratios": ratios,
        }),
    )
}
