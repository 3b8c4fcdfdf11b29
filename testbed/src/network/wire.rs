//! The bad network at work: a thread in the host `network` that carries frames between its two
//! interfaces, by packet sockets (packet(7)).

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use canary_wire::checksum;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

use super::{Conditions, Line, Side, Tally};
use crate::os::os;
use crate::testbed::{Testbed, TestbedError};

/// The longest time without a look at the request to end.
const PAUSE: Duration = Duration::from_millis(20);
/// What a packet socket may have waiting: the most that every machine allows, or this.
const BUFFER: usize = 8 << 20;
const ETHERNET: usize = 14;

/// A network that runs.
pub struct Network {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Report>>>,
}

/// What a network did.
#[derive(Clone, Debug)]
pub struct Report {
    /// What it was to do.
    pub conditions: Conditions,
    /// What came in on the client's side.
    pub left: Tally,
    /// What came in on the server's side.
    pub right: Tally,
    /// Frames that came in and were never read, or could not be sent: lost by no design.
    pub missed: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.conditions)?;
        for (name, t) in [("from the left", &self.left), ("from the right", &self.right)] {
            write!(
                f,
                "\n{name}: {} packets, {} sent on; {} lost, {} duplicated, {} reordered, \
                 {} truncated, the longest wait {:?}",
                t.packets, t.sent, t.lost, t.duplicated, t.reordered, t.truncated, t.longest
            )?;
            for (index, fate) in &t.events {
                write!(f, "\n  {index}: {fate:?}")?;
            }
        }
        write!(f, "\nmissed: {}", self.missed)
    }
}

impl Network {
    /// Carries frames from here on, in the host `network` of a topology that goes
    /// [through one](crate::topology::Topology::through_a_network).
    pub fn start(testbed: &Testbed, conditions: Conditions) -> Result<Self, TestbedError> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        // A thread is in the namespace of the one that starts it.
        let thread = testbed
            .host("network")?
            .run(|| {
                let left = Port::open("left", Side::Left, conditions)?;
                let sides = [left, Port::open("right", Side::Right, conditions)?];
                std::thread::Builder::new()
                    .name("network".to_owned())
                    .spawn(move || carry(sides, conditions, &told))
            })?
            .map_err(os("start the network"))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; packets that still wait are lost.
    pub fn stop(mut self) -> Result<Report, TestbedError> {
        Ok(self.end().map_err(os("carry a frame"))?)
    }

    fn end(&mut self) -> io::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or(io::ErrorKind::NotFound)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if self.thread.is_some()
            && let Err(e) = self.end()
        {
            eprintln!("network: {e}");
        }
    }
}

/// An interface and what comes in there.
struct Port {
    name: &'static str,
    socket: OwnedFd,
    line: Line,
    /// Frames that it had received before.
    before: u64,
}

impl Port {
    fn open(name: &'static str, side: Side, conditions: Conditions) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )?;
        // Beyond the machine's limit only with CAP_NET_ADMIN outside every user namespace.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
        }
        let address = nix::ifaddrs::getifaddrs()?
            .filter(|i| i.interface_name == name)
            .find_map(|i| i.address.and_then(|a| a.as_link_addr().copied()))
            .ok_or(io::ErrorKind::NotFound)?;
        // Of no protocol, as getifaddrs(3) gives it: the socket keeps the one that it has.
        bind(socket.as_raw_fd(), &address)?;
        // Until it was bound it read every interface.
        while recv(socket.as_raw_fd(), &mut [0], MsgFlags::empty()).is_ok() {}
        Ok(Self { name, socket, line: Line::new(conditions, side), before: received(name)? })
    }

    /// Takes in what has come.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(n) => {
                    let mut frame = buffer[..n].to_vec();
                    if let Some(packet) = frame.get_mut(ETHERNET..) {
                        checksum::complete(packet);
                    }
                    self.line.take(Instant::now(), frame);
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Frames that an interface of this thread's host has received.
pub fn received(name: &str) -> io::Result<u64> {
    let path = "/proc/thread-self/net/dev";
    let text = std::fs::read_to_string(path)?;
    packets(&text, name).ok_or_else(|| io::Error::other(format!("no packets of {name} in {path}")))
}

/// The second number of an interface (proc_pid_net(5), `dev`): octets, packets, errors.
fn packets(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.trim().strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn carry(mut ports: [Port; 2], conditions: Conditions, stop: &AtomicBool) -> io::Result<Report> {
    let (mut buffer, mut unsent) = (vec![0; 1 << 17], 0);
    while !stop.load(Ordering::Relaxed) {
        let next = ports.iter().filter_map(|p| p.line.next()).min();
        let wait = next.map_or(PAUSE, |at| at.saturating_duration_since(Instant::now()));
        // poll(2) counts milliseconds: rounded up, or it would turn without waiting.
        let wait = wait.min(PAUSE).as_micros().div_ceil(1000) as u16;
        let mut ready = ports.each_ref().map(|p| PollFd::new(p.socket.as_fd(), PollFlags::POLLIN));
        match poll(&mut ready, PollTimeout::from(wait)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        for port in &mut ports {
            port.read(&mut buffer)?;
        }
        for (from, to) in [(0, 1), (1, 0)] {
            for frame in ports[from].line.due(Instant::now()) {
                // A frame without a whole header is none (packet_snd refuses it).
                if frame.len() < ETHERNET {
                    continue;
                }
                if send(ports[to].socket.as_raw_fd(), &frame, MsgFlags::empty()).is_err() {
                    unsent += 1;
                }
            }
        }
    }
    let mut missed = unsent;
    for port in &mut ports {
        let came = received(port.name)? - port.before;
        // What came by then and is still waiting was not missed.
        port.read(&mut buffer)?;
        missed += came.saturating_sub(port.line.tally.packets);
    }
    let [left, right] = ports.each_ref().map(|p| p.line.tally.clone());
    Ok(Report { conditions, left, right, missed })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interface's packets are read; without it there are none.
    #[test]
    fn packets_are_read() {
        let dev = "Inter-| Receive\n face |bytes packets\n    lo: 1 2 3\n  eth0: 123456 789 0 0\n";
        assert_eq!(packets(dev, "eth0"), Some(789));
        assert_eq!(packets(dev, "eth1"), None);
    }
}
