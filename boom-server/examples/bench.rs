//! `make bench-boom`: handshakes at a rate against boom-server, and against a
//! sniffer of the simple kind (one raw socket, no filter, default buffer), each in
//! two network namespaces of its own. Root is needed, and boom-server beside it
//! in the same target directory.
//!
//! `bench [RATE [SECONDS]]`, 20000 and 60 unless told.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use canary_forge::forgery::{self, Numbers};
use canary_record::hist::Latency;
use canary_record::names::Forgery;
use canary_record::result::boom::BoomResult;
use canary_wire::segment::{Emit, Flags, Segment};
use canary_wire::seq::Seq;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SERVER: Ipv4Addr = Ipv4Addr::new(198, 19, 7, 1);
const PORT: u16 = 9000;
/// How long the client keeps a connection: time for the answer to come.
const KEEP: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let word = |i: usize| args.get(i).map(String::as_str);
    let number = |i: usize, default: u64| args.get(i).map_or(Ok(default), |a| a.parse());
    let done = match word(0) {
        Some("client") => {
            number(1, 0).map_err(Into::into).and_then(|rate| client(rate, number(2, 0)?))
        }
        Some("simple") => simple(),
        _ => number(0, 20_000).map_err(Into::into).and_then(|rate| bench(rate, number(1, 60)?)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What one implementation did.
#[derive(Debug)]
struct Score {
    accepted: u64,
    forged: u64,
    lost: u64,
    p50_us: u64,
    p99_us: u64,
    memory_kib: u64,
}

fn bench(rate: u64, seconds: u64) -> Result<()> {
    let me = std::env::current_exe()?;
    let target = me.parent().and_then(|p| p.parent()).ok_or("no target directory")?;
    let boom = target.join("boom-server");
    if !boom.exists() {
        return Err(format!("{} is missing: build boom-server first", boom.display()).into());
    }
    println!("{rate} handshakes a second for {seconds} s, one forged segment on each");
    let options = ["--admin", "none", "--forge", "control", "--on-reset", "count", "--log", "json"];
    let ours = run(&me, &boom, &options, rate, seconds)?;
    let simple = run(&me, &me, &["simple"], rate, seconds)?;
    println!(
        "{:<12} {:>9} {:>9} {:>7} {:>8} {:>9} {:>11}",
        "", "accepted", "forged", "lost", "p50 us", "p99 us", "memory KiB"
    );
    for (name, s) in [("boom-server", &ours), ("simple", &simple)] {
        println!(
            "{name:<12} {:>9} {:>9} {:>7} {:>8} {:>9} {:>11}",
            s.accepted, s.forged, s.lost, s.p50_us, s.p99_us, s.memory_kib
        );
    }
    let ratio = |a: u64, b: u64| a as f64 / (b.max(1)) as f64;
    println!(
        "forged of accepted: {:.4} against {:.4}; p99 simple/ours: {:.2}; memory ours/simple: {:.2}",
        ratio(ours.forged, ours.accepted),
        ratio(simple.forged, simple.accepted),
        ratio(simple.p99_us, ours.p99_us),
        ratio(ours.memory_kib, simple.memory_kib)
    );
    let reached = ours.accepted as f64 / (rate * seconds) as f64;
    println!("load reached: {:.1}% of what was asked for", reached * 100.0);
    let holds = ours.forged == ours.accepted
        && ours.lost == 0
        && ours.p99_us < 1000
        && ours.memory_kib < 64 << 10;
    if !holds || reached < 0.99 {
        return Err("NOT HELD: forged = accepted, nothing lost, p99 < 1 ms, memory < 64 MiB, at 99% of the rate".into());
    }
    println!("HELD");
    Ok(())
}

fn run(
    me: &PathBuf,
    program: &PathBuf,
    options: &[&str],
    rate: u64,
    seconds: u64,
) -> Result<Score> {
    let net = Net::new()?;
    let mut server = Command::new("ip")
        .args(["netns", "exec", &net.server])
        .arg(program)
        .args(options)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = server.stdout.take().ok_or("no stdout")?;
    let reader = std::thread::spawn(move || -> io::Result<String> {
        let mut text = String::new();
        stdout.read_to_string(&mut text)?;
        Ok(text)
    });
    let begun = Instant::now();
    while !listening(&net) {
        if begun.elapsed() > Duration::from_secs(10) {
            end(&mut server)?;
            return Err("the server does not listen".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let client = Command::new("ip")
        .args(["netns", "exec", &net.client])
        .arg(me)
        .args(["client", &rate.to_string(), &seconds.to_string()])
        .status()?;
    let memory_kib = peak_memory(server.id());
    end(&mut server)?;
    let text = reader.join().map_err(|_| "the reader panicked")??;
    if !client.success() {
        return Err(format!("the client failed: {client}").into());
    }
    let last = text.lines().last().ok_or("the server printed nothing")?;
    if options == ["simple"] {
        let n: Vec<u64> = last.split(' ').filter_map(|w| w.parse().ok()).collect();
        let [accepted, forged, p50_us, p99_us] = n[..] else { return Err(last.into()) };
        return Ok(Score {
            accepted,
            forged,
            lost: accepted.saturating_sub(forged),
            p50_us,
            p99_us,
            memory_kib,
        });
    }
    let r: BoomResult = serde_json::from_str(last)?;
    Ok(Score {
        accepted: r.connections.accepted,
        forged: r.connections.forged,
        lost: r.sniffer.dropped,
        p50_us: r.handshake_to_forge.p50_us,
        p99_us: r.handshake_to_forge.p99_us,
        memory_kib,
    })
}

fn listening(net: &Net) -> bool {
    let out = Command::new("ip")
        .args(["netns", "exec", &net.server, "cat", "/proc/net/tcp", "/proc/net/tcp6"])
        .output();
    // State 0A is LISTEN.
    out.is_ok_and(|o| {
        String::from_utf8_lossy(&o.stdout)
            .lines()
            .any(|l| l.contains(":2328 ") && l.contains(" 0A "))
    })
}

/// `ip netns exec` becomes the program, so the pid is the program's.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn end(server: &mut Child) -> Result<()> {
    Command::new("kill").args(["-TERM", &server.id().to_string()]).status()?;
    server.wait()?;
    Ok(())
}

/// Two namespaces joined by a veth, gone when dropped.
struct Net {
    client: String,
    server: String,
}

impl Net {
    fn new() -> Result<Self> {
        let id = std::process::id();
        let net = Self { client: format!("benchc{id}"), server: format!("benchs{id}") };
        let (c, s) = (net.client.as_str(), net.server.as_str());
        for line in [
            format!("netns add {c}"),
            format!("netns add {s}"),
            format!("link add veth0 netns {c} type veth peer name veth0 netns {s}"),
            format!("-n {s} addr add {SERVER}/24 dev veth0"),
            format!("-n {c} addr add 198.19.7.2/24 dev veth0"),
            format!("-n {s} link set veth0 up"),
            format!("-n {c} link set veth0 up"),
        ] {
            let status = Command::new("ip").args(line.split(' ')).status()?;
            if !status.success() {
                return Err(format!("ip {line}: {status}").into());
            }
        }
        let ports = ["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"];
        let status = Command::new("ip").args(["netns", "exec", c]).args(ports).status()?;
        if status.success() { Ok(net) } else { Err("cannot widen the port range".into()) }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in [&self.client, &self.server] {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

/// Connects at a rate, keeps each connection a moment, resets it. Each connect has
/// its own moment, so that no burst of the client's own is measured as the server's
/// latency; and it costs few system calls, for it shares the processors.
fn client(rate: u64, seconds: u64) -> Result<()> {
    // The default, 50 us, is the time between two connects.
    nix::sys::prctl::set_timerslack(1)?;
    let server = SockAddr::from(SocketAddr::from((SERVER, PORT)));
    let mut open: VecDeque<(Instant, Socket)> = VecDeque::new();
    let mut idle: Vec<Socket> = Vec::new();
    let (mut failed, mut latest) = (0, Duration::ZERO);
    let start = Instant::now();
    for i in 0..rate * seconds {
        let due = start + Duration::from_nanos(i * 1_000_000_000 / rate);
        loop {
            let now = Instant::now();
            while open.front().is_some_and(|(at, _)| *at <= now) {
                if let Some((_, socket)) = open.pop_front() {
                    rustix::net::connect_unspec(&socket)?;
                    idle.push(socket);
                }
            }
            if now >= due {
                latest = latest.max(now - due);
                break;
            }
            std::thread::sleep(due - now);
        }
        // Disconnecting resets (tcp_disconnect), so that no TIME-WAIT uses up the ports, and the
        // socket can be used again: that a connect succeeded, the server's count tells.
        let socket = idle.pop().map_or_else(
            || Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP)),
            Ok,
        )?;
        match socket.connect(&server) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => failed += 1,
            _ => open.push_back((Instant::now() + KEEP, socket)),
        }
    }
    std::thread::sleep(KEEP);
    for (_, socket) in &open {
        rustix::net::connect_unspec(socket)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    println!(
        "client: {failed} connects failed at once, the latest began {} us after its time",
        latest.as_micros()
    );
    if latest > Duration::from_secs(1) {
        return Err(format!("the load was not reached: a connect began {latest:?} late").into());
    }
    Ok(())
}

/// The simple kind: one raw socket as it comes, one packet a read, flows keyed by
/// the client's address and port, and an accept loop.
fn simple() -> Result<()> {
    let listener = boom_server::listener::bind(SocketAddr::from(([0, 0, 0, 0], PORT)))?;
    listener.set_nonblocking(false)?;
    let accepted = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&accepted);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimestampns, &true)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sender = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    signal(Arc::clone(&stop))?;
    let (mut flows, mut latency, mut forged) = (HashMap::new(), Latency::new(), 0u64);
    let (mut buf, mut packet) = (vec![0u8; 65535], Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let Some((n, at)) = receive(&socket, &mut buf)? else { continue };
        let Ok(seg) = Segment::parse_ipv4(&buf[..n], n) else { continue };
        if seg.flags == Flags::SYN {
            flows.insert(seg.src, seg.seq);
        } else if seg.flags.has(Flags::ACK)
            && flows.get(&seg.src).is_some_and(|isn| isn.add(1) == seg.seq)
        {
            flows.remove(&seg.src);
            forge_on(&sender, &seg, &mut packet)?;
            forged += 1;
            if let Ok(d) = at.elapsed() {
                latency.record(d);
            }
        }
    }
    let s = latency.summary();
    writeln!(
        io::stdout(),
        "{} {forged} {} {}",
        accepted.load(Ordering::Relaxed),
        s.p50_us,
        s.p99_us
    )?;
    Ok(())
}

fn forge_on(sender: &Socket, seg: &Segment<'_>, packet: &mut Vec<u8>) -> Result<()> {
    let numbers = Numbers { snd: seg.ack, rcv: Seq(seg.seq.0), client_window: 0 };
    let spec = forgery::spec(Forgery::Control, numbers);
    let emit = Emit {
        src: seg.dst,
        dst: seg.src,
        seq: spec.seq,
        ack: spec.ack,
        flags: spec.flags,
        window: 502,
        options: &[],
        payload: spec.payload,
    };
    emit.packet(packet);
    let IpAddr::V4(to) = seg.src.ip() else { return Ok(()) };
    sender.send_to(packet, &SockAddr::from(SocketAddr::from((to, 0))))?;
    Ok(())
}

fn receive(socket: &Socket, buf: &mut [u8]) -> Result<Option<(usize, SystemTime)>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
    use std::os::fd::AsRawFd;
    let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut iov = [io::IoSliceMut::new(buf)];
    let message = match recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut iov,
        Some(&mut space),
        MsgFlags::empty(),
    ) {
        Ok(m) => m,
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let at = message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::ScmTimestampns(t) => {
            Some(SystemTime::UNIX_EPOCH + Duration::new(t.tv_sec() as u64, t.tv_nsec() as u32))
        }
        _ => None,
    });
    Ok(Some((message.bytes, at.unwrap_or_else(SystemTime::now))))
}

/// SIGTERM ends the loop.
fn signal(stop: Arc<std::sync::atomic::AtomicBool>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ready, armed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let shutdown = canary_runtime::shutdown::Shutdown::catch();
            let _ = ready.send(());
            if let Ok(mut shutdown) = shutdown {
                shutdown.signalled().await;
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    armed.recv()?;
    Ok(())
}
