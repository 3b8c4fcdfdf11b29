//! INVALID segments at a rate in a host of its own, and what a witness there makes of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use canary_record::result::witness::WitnessResult;
use canary_testbed::exec::{Call, memory};
use canary_testbed::testbed::Testbed;
use canary_testbed::topology::Topology;
use canary_wire::segment::{Emit, Flags};
use canary_wire::seq::Seq;
use socket2::{Domain, Protocol, Socket, Type};

use crate::host::{self, RUN, SOON};

const HOST: &str = "host";

/// Everything leaves by a bridge without a port, which swallows it: conntrack sees each packet once, in
/// OUTPUT.
const SWALLOW: &str = "ip link add swallow type bridge; ip addr add 198.18.0.1/15 dev swallow; \
     ip link set swallow up; ip neigh add 198.18.66.20 lladdr 02:00:00:00:00:01 dev swallow; \
     nft 'table inet t { chain o { type filter hook output priority 0; ct state invalid counter; }; }'";

#[derive(Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Segments a second; without it 20,000 for 60 s, alone and each pair answered by a reset, then
    /// 100,000 for 10 s, where losses may be and must be counted
    rate: Option<u64>,
    /// How long
    #[arg(default_value_t = 60)]
    seconds: u64,
}

/// What one run of the sender is.
#[derive(Clone, Copy, clap::Args)]
pub(crate) struct Stream {
    rate: u64,
    seconds: u64,
    /// Each second one is the reset that the one before it provokes.
    #[arg(long)]
    answered: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let testbed = Testbed::build(Topology::single(""))?;
    testbed.sh(HOST, SWALLOW)?;
    println!(
        "{:<34} {:>9} {:>9} {:>8} {:>9} {:>10} {:>11}",
        "", "sent", "received", "lost", "forgotten", "processor", "memory KiB"
    );
    let stream = |rate, seconds, answered| Stream { rate, seconds, answered };
    if let Some(rate) = args.rate {
        return watch(&testbed, stream(rate, args.seconds, false), true).map(drop);
    }
    let held = [
        watch(&testbed, stream(20_000, 60, false), true)?,
        watch(&testbed, stream(20_000, 60, true), true)?,
        watch(&testbed, stream(100_000, 10, false), false)?,
    ];
    ensure!(
        held.iter().all(|h| *h),
        "NOT HELD: at 20,000 a second none lost and less than a fifth of a processor; at 100,000 \
         every loss counted; memory below 32 MiB"
    );
    println!("HELD");
    Ok(())
}

/// One watch and one sender; true when it held what is asked for.
fn watch(testbed: &Testbed, stream: Stream, lossless: bool) -> Result<bool> {
    let Stream { rate, seconds, answered } = stream;
    let words = format!("witness --log=json --state-dir={RUN}");
    let witness = host::ready::<WitnessResult>(testbed, HOST, &words)?;
    let (cpu, begun) = (host::processor(witness.pid())?, Instant::now());
    let (rate_word, seconds_word) = (rate.to_string(), seconds.to_string());
    let mut words = vec!["send", &rate_word, &seconds_word];
    words.extend(answered.then_some("--answered"));
    let sender = Call::new(&std::env::current_exe()?, &words);
    let limit = Duration::from_secs(3 * seconds) + SOON;
    let sent: u64 = testbed.run(HOST, &sender.deadline(limit))?.stdout.trim().parse()?;
    // The kernel's last batch, and what it found.
    std::thread::sleep(Duration::from_millis(500));
    let used = host::processor(witness.pid())?.saturating_sub(cpu).as_secs_f64()
        / begun.elapsed().as_secs_f64();
    let memory = memory(witness.pid(), "VmHWM")?;
    let m = witness.stop(SOON)?.result.messages;
    let kind = if answered { "answered" } else { "alone" };
    println!(
        "{:<34} {sent:>9} {:>9} {:>8} {:>9} {:>9.1}% {memory:>11}",
        format!("{rate}/s for {seconds} s, {kind}"),
        m.received,
        m.lost,
        m.forgotten,
        used * 100.0
    );
    let counted = m.received + m.lost == sent;
    Ok(counted && memory < 32 << 10 && (!lossless || m.lost == 0 && used < 0.2))
}

/// Sends SYN FIN ACK, which conntrack refuses whatever it knows, at a rate, from addresses that
/// change; or each with the reset that it provokes. Prints how many packets went.
pub(crate) fn send(Stream { rate, seconds, answered }: Stream) -> Result<()> {
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
