//! `make bench-witness`: INVALID segments at a rate in a network namespace of its own, and what the
//! witness there makes of them. Needs root, and load-client beside it in the same target directory.
//!
//! `witness-bench [RATE [SECONDS]]`. Without arguments: 20,000 a second for 60 s, alone and each
//! pair answered by a reset; then 100,000 a second for 10 s, where losses may be and must be counted.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use canary_record::result::witness::WitnessResult;
use canary_wire::segment::{Emit, Flags};
use canary_wire::seq::Seq;
use socket2::{Domain, Protocol, Socket, Type};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What one run of the sender is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Segments that nobody answers.
    Alone,
    /// Each followed by the reset that it provokes.
    Answered,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let word = |i: usize| args.get(i).map(String::as_str);
    let number = |i: usize, default: u64| args.get(i).map_or(Ok(default), |a| a.parse());
    let done = (|| match word(0) {
        Some("send") => send(number(1, 0)?, number(2, 0)?, word(3) == Some("answered")),
        Some("inside") => inside(&args[1..]),
        _ => outside(&args),
    })();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("witness-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The same again in a new network namespace.
fn outside(args: &[String]) -> Result<()> {
    let me = std::env::current_exe()?;
    let status = Command::new("unshare").arg("-n").arg(me).arg("inside").args(args).status()?;
    if status.success() { Ok(()) } else { Err("NOT HELD".into()) }
}

fn inside(args: &[String]) -> Result<()> {
    // Everything leaves by a bridge without a port, which swallows it: conntrack sees each packet
    // once, in OUTPUT.
    for line in [
        "link set lo up",
        "link add swallow type bridge",
        "addr add 198.18.0.1/15 dev swallow",
        "link set swallow up",
        "neigh add 198.18.66.20 lladdr 02:00:00:00:00:01 dev swallow",
    ] {
        if !Command::new("ip").args(line.split(' ')).status()?.success() {
            return Err(format!("ip {line} failed").into());
        }
    }
    let rule = "table inet t { chain o { type filter hook output priority 0; ct state invalid counter; }; }";
    if !Command::new("nft").arg(rule).status()?.success() {
        return Err("nft failed".into());
    }
    let number = |i: usize| args.get(i).map(|a| a.parse::<u64>()).transpose();
    println!(
        "{:<34} {:>9} {:>9} {:>8} {:>9} {:>10} {:>11}",
        "", "sent", "received", "lost", "forgotten", "processor", "memory KiB"
    );
    if let Some(rate) = number(0)? {
        return run(rate, number(1)?.unwrap_or(60), Kind::Alone, true).map(drop);
    }
    let held = [
        run(20_000, 60, Kind::Alone, true)?,
        run(20_000, 60, Kind::Answered, true)?,
        run(100_000, 10, Kind::Alone, false)?,
    ];
    if held.iter().all(|h| *h) {
        println!("HELD");
        return Ok(());
    }
    Err("NOT HELD: at 20,000 a second none lost and less than a fifth of a processor; at 100,000 \
         every loss counted; memory below 32 MiB"
        .into())
}

/// One watch and one sender; true when it held what is asked for.
fn run(rate: u64, seconds: u64, kind: Kind, lossless: bool) -> Result<bool> {
    let me = std::env::current_exe()?;
    let program = me.ancestors().nth(2).ok_or("no target directory")?.join("load-client");
    let dir = PathBuf::from(format!("/tmp/witness-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let output = dir.join("result.json");
    let mut watch = Command::new(&program)
        .args(["witness", "--log=json", "--output"])
        .arg(&output)
        .arg(format!("--state-dir={}", dir.display()))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    let ready = Instant::now();
    while std::fs::read_to_string("/proc/sys/net/netfilter/nf_log/2")?.trim() != "nfnetlink_log" {
        if ready.elapsed() > Duration::from_secs(10) {
            end(&mut watch)?;
            return Err("the witness does not begin".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let (cpu, begun) = (processor(watch.id())?, Instant::now());
    let kind_name = if kind == Kind::Answered { "answered" } else { "alone" };
    let sent = Command::new(&me)
        .args(["send", &rate.to_string(), &seconds.to_string(), kind_name])
        .output()?;
    let sent: u64 = String::from_utf8(sent.stdout)?.trim().parse()?;
    // The kernel's last batch, and what it found.
    std::thread::sleep(Duration::from_millis(500));
    let used =
        processor(watch.id())?.saturating_sub(cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    let memory = peak_memory(watch.id());
    end(&mut watch)?;
    let result: WitnessResult = serde_json::from_slice(&std::fs::read(&output)?)?;
    std::fs::remove_dir_all(&dir)?;
    let m = result.messages;
    println!(
        "{:<34} {sent:>9} {:>9} {:>8} {:>9} {:>9.1}% {memory:>11}",
        format!("{rate}/s for {seconds} s, {kind_name}"),
        m.received,
        m.lost,
        m.forgotten,
        used * 100.0
    );
    let counted = m.received + m.lost == sent;
    Ok(counted && memory < 32 << 10 && (!lossless || m.lost == 0 && used < 0.2))
}

fn end(child: &mut Child) -> Result<()> {
    Command::new("kill").arg(child.id().to_string()).status()?;
    child.wait()?;
    Ok(())
}

/// User and system time so far (proc_pid_stat(5), fields 14 and 15, in hundredths).
fn processor(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(u64::MAX)
}

/// Sends SYN FIN ACK, which conntrack refuses whatever it knows, at a rate, from addresses that
/// change; or each with the reset that it provokes. Prints how many packets went.
fn send(rate: u64, seconds: u64, answered: bool) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
    let to: SocketAddr = (Ipv4Addr::new(198, 18, 66, 20), 0).into();
    let (begun, mut sent, total) = (Instant::now(), 0_u64, rate * seconds);
    let mut packet = Vec::new();
    while sent < total {
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64;
        while sent < due.min(total) {
            let n = if answered { sent / 2 } else { sent };
            let (client, server) = ends(n);
            let bad = Flags::SYN.with(Flags::FIN).with(Flags::ACK);
            let reset = answered && sent % 2 == 1;
            let (src, dst) = if reset { (client, server) } else { (server, client) };
            let seq = Seq(if reset { n as u32 } else { 7 });
            let (ack, flags) = if reset { (Seq(0), Flags::RST) } else { (Seq(n as u32), bad) };
            Emit { src, dst, class: 0, seq, ack, flags, window: 1, options: &[], payload: b"" }
                .packet(&mut packet);
            socket.send_to(&packet, &to.into())?;
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
        if begun.elapsed() > Duration::from_secs(3 * seconds + 5) {
            break;
        }
    }
    println!("{sent}");
    Ok(())
}

/// The 4-tuple of connection `n`: 60,000 ports of 250 clients.
fn ends(n: u64) -> (SocketAddr, SocketAddr) {
    let client = Ipv4Addr::new(198, 18, 65, (n / 60_000 % 250) as u8 + 1);
    let server = Ipv4Addr::new(198, 18, 66, 20);
    ((client, 2000 + (n % 60_000) as u16).into(), (server, 9000).into())
}
