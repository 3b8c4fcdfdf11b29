//! A long churn while things go wrong: the accounts must hold, nothing may grow or spin,
//! and the load must be back within a second after each cause is gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Result, ensure};
use canary_record::prometheus::{self, Sample};
use canary_record::result::load::{LoadResult, SeriesPoint};
use canary_record::result::serve::ServeResult;
use canary_testbed::exec::memory;
use canary_testbed::programs::Running;
use canary_testbed::testbed::Testbed;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use crate::host::{self, CLIENT, RUN, SERVICE, SHORT, SOON, client, ready, sources};

/// Undisturbed, before each cause.
const HEALTHY: Duration = Duration::from_secs(6);
/// How long a cause lasts once it works.
const LASTS: Duration = Duration::from_secs(4);
/// A whole second after recovery has this part of the ordinary second's successes.
const BACK: f64 = 0.7;
/// The most of one CPU that may be used while a cause lasts ...
const SHARE: f64 = 0.25;
/// ... unless it is spent on connections: at most so many microseconds each.
const PER_ATTEMPT_US: f64 = 300.0;
/// The most growth of resident memory, after the first minute.
const SLOPE_KIB_PER_MINUTE: f64 = 64.0;

/// A cause, and the class in which its failures must be counted.
type Cause = (&'static str, &'static str);

const CAUSES: &[Cause] = &[
    ("server-killed", "ECONNREFUSED in connect"),
    ("half-syns", "stall in connect"),
    ("emfile", "EMFILE in connect"),
    ("ports", "EADDRNOTAVAIL in connect"),
    ("table-full", "stall in connect"),
];
/// The part of a cause's failures that must be in its class: the others are connections that
/// were in progress when it came.
const IN_CLASS: f64 = 0.95;
/// The kernel's own timeout, with which some 10 s of churn fill the table. No tuple may come
/// twice meanwhile: it would take its old entry.
const LONG: &str = "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_time_wait=120";
const NO_REUSE: &str = "sysctl -qw net.ipv4.tcp_tw_reuse=0 net.ipv4.tcp_max_tw_buckets=1048576";
/// The longest time to fill it.
const FILL: Duration = Duration::from_secs(60);
const ADMIN: &str = "127.0.0.1:9100";

struct Event {
    cause: &'static str,
    /// Since 1970.
    began: f64,
    ended: f64,
    cpu_share: f64,
    /// The SYNs that conntrack dropped meanwhile, for want of room.
    dropped: u64,
    /// Failures counted before, by class.
    before: Classes,
}

/// Failures by class.
type Classes = BTreeMap<String, u64>;

fn unix() -> f64 {
    UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64()
}

/// Failures so far, by class, as the metrics have them.
fn classes(testbed: &Testbed) -> Result<Classes> {
    let page = testbed.sh("client", &format!("curl -sf http://{ADMIN}/metrics"))?;
    let failures = prometheus::samples(&page).filter(|s| s.name == "load_failures_total");
    let class =
        |s: Sample<'_>| (format!("{} in {}", s.label("cause"), s.label("phase")), s.value as u64);
    Ok(failures.map(class).collect())
}

/// Packets that conntrack in the node dropped for want of room.
fn drops(testbed: &Testbed) -> Result<u64> {
    let text = testbed.sh("node1", "cat /proc/net/stat/nf_conntrack")?;
    Ok(canary_conntrack::stat::counters(&text)?.iter().map(|c| c.counters.drop).sum())
}

struct Soak<'a> {
    testbed: &'a Testbed,
    serve: Option<Running<ServeResult>>,
    churn: Running<LoadResult>,
    began: Instant,
    memory: Vec<(f64, f64)>,
    events: Vec<Event>,
}

impl Soak<'_> {
    fn pid(&self) -> u32 {
        self.churn.pid()
    }

    fn over(&mut self) -> Result<bool> {
        Ok(!self.churn.runs()?)
    }

    /// Lets time pass, with a look at the memory each half second; ends early with the churn.
    fn pass(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.over()? {
            if let Ok(kib) = memory(self.pid(), "VmRSS") {
                self.memory.push((self.began.elapsed().as_secs_f64() / 60.0, kib as f64));
            }
            std::thread::sleep(
                end.saturating_duration_since(Instant::now()).min(Duration::from_millis(500)),
            );
        }
        Ok(())
    }

    fn cause(&mut self, cause: &'static str) -> Result<()> {
        let pid = self.pid();
        let testbed = self.testbed;
        let sh = |host: &str, line: &str| testbed.sh(host, line);
        let before_classes = classes(testbed)?;
        let drops_before = drops(testbed)?;
        match cause {
            "server-killed" => drop(self.serve.take()),
            "half-syns" => drop(sh(
                "node1",
                "nft 'add table ip half; add chain ip half f { type filter hook forward priority 0; }; add rule ip half f tcp flags & (syn | ack) == syn numgen random mod 2 == 0 drop'",
            )?),
            "emfile" => drop(sh("client", &format!("prlimit --pid={pid} --nofile=3:"))?),
            "ports" => drop(sh(
                "client",
                &format!("{NO_REUSE} net.ipv4.ip_local_port_range='40000 40001'"),
            )?),
            _ => {
                sh("client", NO_REUSE)?;
                sh("node1", LONG)?;
                let end = Instant::now() + FILL;
                while drops(testbed)? == drops_before && !self.over()? {
                    ensure!(Instant::now() < end, "the table did not fill within {FILL:?}");
                    self.pass(Duration::from_millis(100))?;
                }
            }
        }
        let (began, before) = (unix(), host::processor(pid).unwrap_or_default());
        self.pass(LASTS)?;
        // Lifted just before a second ends, so that the second after the next begins one
        // second after: it must be as good as any.
        let fraction = unix().fract();
        self.pass(Duration::from_secs_f64((1.85 - fraction).rem_euclid(1.0)))?;
        if self.over()? {
            return Ok(());
        }
        let used = host::processor(pid)?.saturating_sub(before);
        let cpu_share = used.as_secs_f64() / (unix() - began);
        match cause {
            "server-killed" => self.serve = Some(serve(testbed)?),
            "half-syns" => drop(sh("node1", "nft delete table ip half")?),
            "emfile" => {
                let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
                let most = most.unwrap_or(1024);
                sh("client", &format!("prlimit --pid={pid} --nofile={most}:"))?;
            }
            "ports" => drop(sh("client", CLIENT)?),
            _ => {
                sh("node1", &format!("{SHORT}; conntrack -F 2>/dev/null"))?;
                sh("client", CLIENT)?;
            }
        }
        let (ended, dropped) = (unix(), drops(testbed)? - drops_before);
        self.events.push(Event { cause, began, ended, cpu_share, dropped, before: before_classes });
        Ok(())
    }
}

fn serve(testbed: &Testbed) -> Result<Running<ServeResult>> {
    ready(testbed, "server", "serve --listen 0.0.0.0:9000")
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 10_000_000)]
    connections: u64,
    /// In place of --connections
    #[arg(long)]
    minutes: Option<u32>,
    /// Connections a second at most
    #[arg(long)]
    rate: Option<f64>,
    /// Some of the causes, or none [default: all]
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(CAUSES.iter().map(|c| c.0).chain(["none"])))]
    causes: Option<Vec<String>>,
    #[arg(long)]
    output: Option<PathBuf>,
}

pub(crate) fn soak(args: &Args) -> Result<()> {
    let (connections, end) = match args.minutes {
        Some(m) => (None, format!("--duration {m}m")),
        None => (Some(args.connections), format!("--connections {}", args.connections)),
    };
    let rate = args.rate.map_or_else(String::new, |r| format!("--rate {r}"));
    let named = |name: &String| CAUSES.iter().copied().find(|c| c.0 == name);
    let causes = match &args.causes {
        Some(some) => some.iter().filter_map(named).collect(),
        None => CAUSES.to_vec(),
    };
    let testbed = host::one_node()?;
    testbed.sh("client", CLIENT)?;
    testbed.sh("node1", SHORT)?;
    let serve = serve(&testbed)?;
    let line = format!(
        "churn --target tcp://{SERVICE} {end} --timeout 500ms {rate} --source-ip {} --admin {ADMIN}",
        sources(),
    );
    let churn = client(&line)?.start(&testbed, "client", &Path::new(RUN).join("churn.log"))?;
    let mut soak = Soak {
        testbed: &testbed,
        serve: Some(serve),
        churn,
        began: Instant::now(),
        memory: Vec::new(),
        events: Vec::new(),
    };
    let mut turns = causes.iter().cycle();
    loop {
        soak.pass(HEALTHY)?;
        if soak.over()? {
            break;
        }
        if let Some((cause, _)) = turns.next()
            && let Err(e) = soak.cause(cause)
        {
            // A churn that has come to its end takes no cause, and answers no more.
            soak.pass(Duration::from_secs(3))?;
            if soak.over()? {
                break;
            }
            return Err(e);
        }
    }
    let Soak { churn, memory, events, .. } = soak;
    let ended = churn.end(SOON)?;
    ensure!(ended.code() == 0, "the churn ended with {}", ended.status);
    judge(&memory, &events, &ended.result, &causes, connections, args.output.as_deref())
}

/// Least squares, in KiB a minute, after the first minute.
fn slope(memory: &[(f64, f64)]) -> Option<f64> {
    let late: Vec<_> = memory.iter().filter(|(t, _)| *t >= 1.0).collect();
    if late.len() < 60 {
        return None;
    }
    let n = late.len() as f64;
    let (mt, mk) =
        (late.iter().map(|p| p.0).sum::<f64>() / n, late.iter().map(|p| p.1).sum::<f64>() / n);
    let (a, b) = late
        .iter()
        .fold((0.0, 0.0), |(a, b), (t, k)| (a + (t - mt) * (k - mk), b + (t - mt).powi(2)));
    Some(a / b)
}

/// Causes that the run ended before.
fn never(events: &[Event], causes: &[Cause]) -> Vec<String> {
    let tried = |cause: &str| events.iter().any(|e| e.cause == cause);
    let untried = causes.iter().filter(|(c, _)| !tried(c));
    untried.map(|(c, _)| format!("{c} was never tried: more --connections")).collect()
}

/// What failed because of each event, by class: the difference to the next one, or to the end.
fn by_event(events: &[Event], r: &LoadResult) -> Vec<Classes> {
    let last: Classes = r
        .failures
        .iter()
        .map(|f| (format!("{} in {}", f.cause.words(), f.phase), f.count))
        .collect();
    let after = events.iter().skip(1).map(|e| &e.before).chain([&last]);
    let since = |before: &Classes, after: &Classes| {
        let grown = |(class, n): (&String, &u64)| {
            let more = n - before.get(class).copied().unwrap_or_default();
            (more > 0).then(|| (class.clone(), more))
        };
        after.iter().filter_map(grown).collect()
    };
    events.iter().zip(after).map(|(e, after)| since(&e.before, after)).collect()
}

/// One line of the table, and what it says against the claims.
fn judge_event(
    e: &Event,
    classes: &Classes,
    r: &LoadResult,
    ordinary: u64,
    wrong: &mut Vec<String>,
) -> Value {
    let at = |second: u64| r.series.points.iter().find(|p| p.at == second).copied();
    let during: Vec<&SeriesPoint> = r
        .series
        .points
        .iter()
        .filter(|p| p.at as f64 >= e.began && (p.at + 1) as f64 <= e.ended)
        .collect();
    let attempts: u64 = during.iter().map(|p| p.attempts).sum();
    let failures: u64 = during.iter().map(|p| p.failed).sum();
    let lasted = e.ended - e.began;
    if failures == 0 {
        wrong.push(format!("{}: nothing failed, so it was no cause", e.cause));
    }
    let class = CAUSES.iter().find(|c| c.0 == e.cause).map_or("", |c| c.1);
    let in_class = classes.get(class).copied().unwrap_or_default() as f64;
    if in_class < IN_CLASS * classes.values().sum::<u64>() as f64 {
        wrong.push(format!("{}: not {class} but {classes:?}", e.cause));
    }
    if (e.cause == "table-full") != (e.dropped > 0) {
        wrong.push(format!("{}: conntrack dropped {} packets", e.cause, e.dropped));
    }
    let per_attempt = e.cpu_share * lasted * 1e6 / (attempts as f64).max(1.0);
    if e.cpu_share > SHARE && per_attempt > PER_ATTEMPT_US {
        wrong.push(format!(
            "{}: {:.0}% of a CPU for {attempts} attempts",
            e.cause,
            e.cpu_share * 100.0
        ));
    }
    // The first whole second that begins a second or more after the end; none at the run's end.
    let second = (e.ended + 0.95).ceil() as u64;
    let after = at(second).filter(|_| at(second + 1).is_some());
    if let Some(p) = after
        && (p.failed > 0 || (p.ok as f64) < ordinary as f64 * BACK)
    {
        wrong.push(format!("{}: {} ok and {} failed in the second after", e.cause, p.ok, p.failed));
    }
    let shown = after.map_or("-".to_owned(), |p| format!("{} ok", p.ok));
    println!(
        "{:<14} {lasted:>8.2} {attempts:>10} {failures:>10} {:>8.1}% {shown:>12}",
        e.cause,
        e.cpu_share * 100.0
    );
    json!({"cause": e.cause, "seconds": lasted, "attempts": attempts, "failed": failures, "classes": classes, "conntrack_dropped": e.dropped, "cpu_share": e.cpu_share, "second_after": after})
}

fn judge(
    memory: &[(f64, f64)],
    events: &[Event],
    r: &LoadResult,
    causes: &[Cause],
    wanted: Option<u64>,
    output: Option<&Path>,
) -> Result<()> {
    let mut wrong = Vec::new();
    let failed: u64 = r.failures.iter().map(|f| f.count).sum();
    if !r.adds_up() || wanted.is_some_and(|n| r.attempts != n) {
        wrong.push(format!(
            "{} ok and {failed} failed are not {} attempts of {wanted:?}",
            r.ok, r.attempts
        ));
    }
    if r.series.width_s != 1 {
        wrong.push(format!(
            "the series has a width of {} s: recovery was not measured",
            r.series.width_s
        ));
    }
    let mut ordinary: Vec<_> =
        r.series.points.iter().filter(|p| p.failed == 0).map(|p| p.ok).collect();
    ordinary.sort_unstable();
    let ordinary = ordinary.get(ordinary.len() / 2).copied().unwrap_or_default();
    println!(
        "{} attempts in {:.0} s: {} ok, {failed} failed; an ordinary second has {ordinary}",
        r.attempts, r.run.seconds, r.ok
    );
    for f in &r.failures {
        println!("  {f}");
    }
    println!(
        "{:<14} {:>8} {:>10} {:>10} {:>9} {:>12}",
        "cause", "seconds", "attempts", "failed", "CPU", "second after"
    );
    let mut list = Vec::new();
    for (e, classes) in events.iter().zip(by_event(events, r)) {
        list.push(judge_event(e, &classes, r, ordinary, &mut wrong));
    }
    wrong.extend(never(events, causes));
    let slope = slope(memory);
    let most = memory.iter().map(|m| m.1).fold(0.0, f64::max);
    match slope {
        Some(s) => println!(
            "resident memory: at most {most:.0} KiB, slope after the first minute {s:.1} KiB a minute"
        ),
        None => println!("resident memory: at most {most:.0} KiB; too short for a slope"),
    }
    if slope.is_some_and(|s| s > SLOPE_KIB_PER_MINUTE) {
        wrong.push("resident memory grows".to_owned());
    }
    host::write(
        output,
        &json!({
            "machine": host::machine(), "attempts": r.attempts, "ok": r.ok, "failures": r.failures,
            "seconds": r.run.seconds, "ordinary_second": ordinary, "causes": list, "rss_kib": memory,
            "rss_most_kib": most, "rss_slope_kib_per_minute": slope, "wrong": wrong, "series": r.series,
        }),
    )?;
    println!("{}", if wrong.is_empty() { "HELD" } else { "MISSED" });
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}
