//! load-client against its peers, across a client pod, two tracking nodes and a server
//! pod; interleaved rounds, medians, ratios.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use canary_record::result::serve::ServeResult;
use canary_testbed::model::Path as NetPath;
use canary_testbed::programs::built;
use canary_testbed::testbed::Testbed;
use serde_json::{Value, json};

use crate::host::{self, RUN, SOON, call, options, ready, start, words};

const HTTP: &str = "http://198.19.0.10/1k";
const WEB: &str = "198.19.0.10:80";
const TCP: &str = "198.19.0.10:9000";
/// Connections in progress at once, for every peer.
const CONCURRENCY: &str = "64";

/// One contender: its name, and how to get its requests a second.
struct Peer {
    name: &'static str,
    command: Vec<String>,
    rate: fn(&str, f64) -> Option<f64>,
}

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
pub(crate) fn bare(args: &[String]) -> Result<()> {
    let [what, seconds, threads] = args else { bail!("bare WHAT SECONDS THREADS") };
    let once: fn() -> std::io::Result<()> = match what.as_str() {
        "fin" => || TcpStream::connect(TCP).map(drop),
        "rst" => || {
            let stream = TcpStream::connect(TCP)?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        },
        "http" => request,
        other => bail!("bare {other}: use fin, rst or http"),
    };
    let end = Instant::now() + Duration::from_secs_f64(seconds.parse()?);
    let began = Instant::now();
    let mut all = Vec::new();
    for _ in 0..threads.parse::<u32>()? {
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
    let v: Value = serde_json::from_str(text.trim_end().lines().last()?).ok()?;
    (v["ok"] == v["attempts"]).then_some(v["ok"].as_f64()? / v["run"]["seconds"].as_f64()?)
}

fn peers(oha_path: Option<&Path>, seconds: f64) -> Result<Vec<Peer>> {
    let (me, client) = (std::env::current_exe()?, built("load-client")?);
    let (me, client) = (me.display(), client.display());
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let churn = |more: &str| {
        words(&format!("{client} churn --concurrency {CONCURRENCY} --duration {seconds}s {more}"))
    };
    let mut wrk_command = words(&format!("wrk -t{cpus} -c{CONCURRENCY} -d{seconds}s -H"));
    wrk_command.extend(["Connection: close".to_owned(), HTTP.to_owned()]);
    let mut all = vec![
        Peer {
            name: "load-client http",
            command: churn(&format!("--target {HTTP}")),
            rate: load_client,
        },
        Peer { name: "wrk", command: wrk_command, rate: wrk },
        Peer {
            name: "bare loop http",
            command: words(&format!("{me} bare http {seconds} {CONCURRENCY}")),
            rate: number,
        },
    ];
    if let Some(oha_path) = oha_path {
        let command = format!(
            "{} --no-tui --output-format json --disable-keepalive -c {CONCURRENCY} -z {seconds}s {HTTP}",
            oha_path.display()
        );
        all.push(Peer { name: "oha", command: words(&command), rate: oha });
    }
    for (name, bare_name, close) in [
        ("load-client tcp fin", "bare loop fin", "fin"),
        ("load-client tcp rst", "bare loop rst", "rst"),
    ] {
        let command = churn(&format!("--target tcp://{TCP} --close {close}"));
        all.push(Peer { name, command, rate: load_client });
        let command = words(&format!("{me} bare {close} {seconds} {cpus}"));
        all.push(Peer { name: bare_name, command, rate: number });
    }
    Ok(all)
}

/// nginx behind the Service's own port, load-client's server behind 9000, and no limit of a
/// host's own on anybody.
fn prepare(testbed: &Testbed<'_>) -> Result<()> {
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

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let mid = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[mid] } else { f64::midpoint(sorted[mid - 1], sorted[mid]) }
}

pub(crate) fn compare(args: &[String]) -> Result<()> {
    let (mut rounds, mut seconds) = (5_u32, 4.0_f64);
    let (mut output, mut oha_path) = (None, None);
    for (name, value) in options(args)? {
        match name {
            "--rounds" => rounds = value.parse().context("--rounds")?,
            // Whole seconds: wrk takes no others.
            "--seconds" => seconds = f64::from(value.parse::<u16>().context("--seconds")?),
            "--output" => output = Some(value),
            "--oha" => oha_path = Some(Path::new(value)),
            other => bail!("unknown option {other}: use --rounds, --seconds, --output, --oha"),
        }
    }
    let testbed = host::hosts(NetPath::ClusterIp)?;
    prepare(&testbed)?;
    let _nginx = start(&testbed, "server", "nginx -c /run/nginx.conf")?;
    let _serve = ready::<ServeResult>(&testbed, "server", "serve --listen 0.0.0.0:9001")?;
    let end = Instant::now() + SOON;
    let get = call(&words(&format!("curl -sf -o /dev/null {HTTP}")));
    while !testbed.run("client", &get)?.status.success() {
        ensure!(Instant::now() < end, "nginx does not answer through the service address");
        std::thread::sleep(Duration::from_millis(50));
    }
    let peers = peers(oha_path, seconds)?;
    let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 1..=rounds {
        for peer in &peers {
            for node in ["node1", "node2"] {
                testbed.run(node, &call(&words("conntrack -F")))?;
            }
            let limit = Duration::from_secs_f64(seconds) + 3 * SOON;
            let text = testbed.run("client", &call(&peer.command).deadline(limit))?.stdout;
            let rate = (peer.rate)(&text, seconds).with_context(|| {
                format!("{}: no rate, or failures, in its output: {text:.2000}", peer.name)
            })?;
            eprintln!("round {round}/{rounds}  {:<20} {rate:>9.0}/s", peer.name);
            rates.entry(peer.name).or_default().push(rate);
        }
    }
    report(&rates, rounds, seconds, output)
}

fn report(
    rates: &BTreeMap<&str, Vec<f64>>,
    rounds: u32,
    seconds: f64,
    output: Option<&str>,
) -> Result<()> {
    let medians: BTreeMap<_, _> = rates.iter().map(|(n, v)| (*n, median(v))).collect();
    println!("{:<22} {:>10} {:>10} {:>10}", "requests a second", "median", "least", "most");
    for (name, values) in rates {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
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
        output,
        &json!({
            "machine": host::machine(), "rounds": rounds, "seconds": seconds,
            "rates": rates, "medians": medians, "ratios": ratios,
        }),
    )
}
