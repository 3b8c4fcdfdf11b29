//! `make bench-boom`: handshakes at a rate against boom-server, and against a
//! sniffer of the simple kind (one raw socket, no filter, default buffer), each on
//! two hosts of its own.
//!
//! `bench [RATE|best [SECONDS]]`: 60 seconds unless told, at the highest rate up to 20,000 that
//! client and boom-server reach on this machine together.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Error, Result, anyhow, bail, ensure};
use canary_forge::forgery::{self, Numbers};
use canary_forge::raw::Sender;
use canary_record::hist::Latency;
use canary_record::names::Forgery;
use canary_record::result::boom::BoomResult;
use canary_runtime::exit::{self, Exit};
use canary_testbed::exec::{Call, Interrupt, Ready, memory};
use canary_testbed::netns;
use canary_testbed::programs::{boom_server, document};
use canary_testbed::testbed::Testbed;
use canary_testbed::topology::{POD_PORT, Topology};
use canary_wire::segment::{Family, Flags, FourTuple, Segment};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

/// How long the client keeps a connection: time for the answer to come.
const KEEP: Duration = Duration::from_millis(20);
/// The highest rate that is tried.
const RATE: u64 = 20_000;
/// How long a rate is tried, in seconds.
const TRIAL: u64 = 3;
/// The part of a load that must have come to be.
const REACHED: f64 = 0.99;
/// How long anything may take to begin or to end.
const SOON: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let said = |done: Result<()>| exit::code(done.map(|()| Exit::Ok), |_| false);
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["client", to, rate, seconds] => {
            said((|| client(to.parse()?, rate.parse()?, seconds.parse()?))())
        }
        ["simple"] => said(simple()),
        _ => netns::contain(|args| said(bench(&args[1..]))).unwrap_or_else(|e| said(Err(e.into()))),
    }
}

/// What one implementation did, and the load on it.
#[derive(Debug)]
struct Score {
    accepted: u64,
    forged: u64,
    lost: u64,
    p50_us: u64,
    p99_us: u64,
    memory_kib: u64,
    /// How late the latest connect began.
    late: Duration,
}

impl Score {
    /// The part of the load that came to be.
    fn reached(&self, rate: u64, seconds: u64) -> f64 {
        self.accepted as f64 / (rate * seconds) as f64
    }

    /// Whether the load came to be at its rate: what begins late is no load of that rate.
    fn loaded(&self, rate: u64, seconds: u64, late: Duration) -> bool {
        self.reached(rate, seconds) >= REACHED && self.late <= late
    }
}

fn bench(args: &[String]) -> Result<()> {
    let seconds = args.get(1).map_or(Ok(60), |s| s.parse())?;
    let rate = match args.first().map(String::as_str) {
        None | Some("best") => reachable()?,
        Some(rate) => rate.parse()?,
    };
    println!("{rate} handshakes a second for {seconds} s, one forged segment on each");
    let ours = run(false, rate, seconds)?;
    let simple = run(true, rate, seconds);
    println!(
        "{:<12} {:>9} {:>9} {:>7} {:>8} {:>9} {:>11} {:>9} {:>8}",
        "", "accepted", "forged", "lost", "p50 us", "p99 us", "memory KiB", "reached", "late ms"
    );
    let line = |name: &str, s: &Score| {
        println!(
            "{name:<12} {:>9} {:>9} {:>7} {:>8} {:>9} {:>11} {:>8.1}% {:>8}",
            s.accepted,
            s.forged,
            s.lost,
            s.p50_us,
            s.p99_us,
            s.memory_kib,
            s.reached(rate, seconds) * 100.0,
            s.late.as_millis()
        );
    };
    line("boom-server", &ours);
    match &simple {
        Ok(simple) => {
            line("simple", simple);
            let ratio = |a: u64, b: u64| a as f64 / (b.max(1)) as f64;
            println!(
                "forged of accepted: {:.4} against {:.4}; p99 simple/ours: {:.2}; memory ours/simple: {:.2}",
                ratio(ours.forged, ours.accepted),
                ratio(simple.forged, simple.accepted),
                ratio(simple.p99_us, ours.p99_us),
                ratio(ours.memory_kib, simple.memory_kib)
            );
        }
        Err(e) => println!("simple       no figures: {e}"),
    }
    let holds = ours.forged == ours.accepted
        && ours.lost == 0
        && ours.p99_us < 1000
        && ours.memory_kib < 64 << 10;
    ensure!(
        holds && ours.loaded(rate, seconds, Duration::from_secs(1)),
        "NOT HELD: forged = accepted, nothing lost, p99 < 1 ms, memory < 64 MiB, at 99% of the rate, no \
         connect 1 s late"
    );
    println!("HELD");
    Ok(())
}

/// The highest rate that this machine reaches: client and boom-server share its processors.
fn reachable() -> Result<u64> {
    let mut rate = RATE;
    while rate > 500 {
        let score = run(false, rate, TRIAL)?;
        println!(
            "tried {rate} a second: {:.1}% accepted, the latest connect {} ms late",
            score.reached(rate, TRIAL) * 100.0,
            score.late.as_millis()
        );
        if score.loaded(rate, TRIAL, Duration::from_millis(100)) {
            return Ok(rate);
        }
        rate = rate * 4 / 5;
    }
    bail!("this machine does not reach 500 handshakes a second")
}

/// The load against boom-server, or against the simple kind.
fn run(simple: bool, rate: u64, seconds: u64) -> Result<Score> {
    let me = std::env::current_exe()?;
    let testbed = Testbed::build(Topology::pair("bench-"))?;
    testbed.sh("client", "sysctl -qw net.ipv4.ip_local_port_range='1024 65535'")?;
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("server.log");
    let (call, ready) = if simple {
        (Call::new(&me, &["simple"]), Ready::Text("ready"))
    } else {
        let ours = boom_server(&["--forge=control", "--on-reset=count"])?;
        let end = format!("{}s", seconds + 60);
        (ours.env("BOOM_DURATION", &end).call(), Ready::Event)
    };
    let mut server = testbed.start("server", call, &log, ready)?;
    server.wait_ready(SOON)?;
    let to = testbed.topology.target(Family::Ipv4).to_string();
    let client = Call::new(&me, &["client", &to, &rate.to_string(), &seconds.to_string()]);
    let client = client.deadline(Duration::from_secs(seconds + 60));
    let told = testbed.host("client")?.run(|| client.run())??;
    let [failed, late] = numbers(&told)?;
    let memory_kib = memory(server.pid(), "VmHWM")?;
    server.signal(Signal::SIGTERM);
    server.wait(SOON)?;
    ensure!(failed == 0, "{failed} connects failed at once");
    let (text, late) = (std::fs::read_to_string(log)?, Duration::from_micros(late));
    let ([accepted, forged, p50_us, p99_us], lost) = if simple {
        // It does not know what it lost.
        let n: [u64; 4] = numbers(&text)?;
        (n, n[0].saturating_sub(n[1]))
    } else {
        let r: BoomResult = document(&text).map_err(Error::msg)?;
        let (c, latency) = (r.connections, r.handshake_to_forge);
        ([c.accepted, c.forged, latency.p50_us, latency.p99_us], r.sniffer.dropped)
    };
    Ok(Score { accepted, forged, lost, p50_us, p99_us, memory_kib, late })
}

/// The numbers of the last line.
fn numbers<const N: usize>(text: &str) -> Result<[u64; N]> {
    let last = text.lines().last().unwrap_or_default();
    let numbers: Vec<u64> = last.split(' ').filter_map(|w| w.parse().ok()).collect();
    numbers.try_into().map_err(|_| anyhow!("no figures, but: {text}"))
}

/// Connects at a rate, keeps each connection a moment, resets it. Each connect has
/// its own moment, so that no burst of the client's own is measured as the server's
/// latency; and it costs few system calls, for it shares the processors.
fn client(server: SocketAddr, rate: u64, seconds: u64) -> Result<()> {
    // The default, 50 us, is the time between two connects.
    nix::sys::prctl::set_timerslack(1)?;
    let server = SockAddr::from(server);
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
    println!("{failed} {}", latest.as_micros());
    Ok(())
}

/// The simple kind: one raw socket as it comes, one packet a read, flows keyed by
/// the client's address and port, and an accept loop.
fn simple() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", POD_PORT))?;
    SockRef::from(&listener).listen(65_535)?;
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
    let sender = Sender::open(&[Family::Ipv4])?;
    let interrupt = Interrupt::catch()?;
    println!("ready");
    let (mut flows, mut latency, mut forged) = (HashMap::new(), Latency::default(), 0u64);
    let (mut buf, mut packet) = (vec![0u8; 65535], Vec::new());
    while interrupt.signalled().is_none() {
        let Some((n, at)) = receive(&socket, &mut buf)? else { continue };
        let Ok(seg) = Segment::parse_ipv4(&buf[..n], n) else { continue };
        if seg.flags == Flags::SYN {
            flows.insert(seg.src, seg.seq);
        } else if seg.flags.has(Flags::ACK)
            && flows.get(&seg.src).is_some_and(|isn| isn.add(1) == seg.seq)
        {
            flows.remove(&seg.src);
            let numbers = Numbers { snd: seg.ack, rcv: seg.seq, peer_window: 0 };
            let spec = forgery::spec(Forgery::Control, numbers);
            forgery::packet(&FourTuple::new(seg.dst, seg.src), &spec, None, &mut packet);
            sender.send(&packet, seg.src.ip())?;
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
