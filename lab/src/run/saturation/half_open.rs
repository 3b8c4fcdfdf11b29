//! Whether early drop resets connections: handshakes whose next segment is on its way while
//! others' SYNs find the table full.
//!
//! nf_conntrack_core.c: early_drop() makes room for a new entry by killing one that is not
//! assured, such as that of a handshake. What the next segment meets then is no entry, and
//! perhaps no room. A SYN ACK can begin none (tcp_new()): it is INVALID, reaches the client
//! untranslated, and the client's RST ends the server's half. A client that still waits for it
//! sends its SYN again. One that has had it believes that it is connected: where its ACK finds
//! no room and the server's repeated SYN ACK does, the server knows nothing of the connection
//! when the client speaks, and answers with RST.
//!
//! A segment is on its way for as long as the pod that sends it does not know its gateway's
//! link-layer address: the kernel keeps what waits for ARP, and sends it once it is told.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::document::timeline::{FailureClass, Step};
use canary_record::names::{Phase, ProbeEnd};
use canary_record::result::witness::InTable;
use canary_testbed::os::{OsError, os, wrong};
use canary_testbed::testbed::TestbedError;
use canary_testbed::topology::Addr;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::super::connections::end;
use super::super::host_table::{Control, Resized, Size};
use super::super::setting::READY;
use super::Experiment;
use super::stage::{HELD_PORT, Stage};
use crate::observed::counted;
use crate::observed::saturation::{Filled, HalfOpen, OnItsWay};

/// Handshakes at a time, at most, and as a part of the table.
const MOST: u64 = 400;
const PART: u64 = 10;
/// SYNs of others at a time, and for each handshake at most.
const BATCH: u64 = 50;
const OTHERS: u64 = 20;
/// From the segment's going on: the server has repeated its SYN ACK, after 1 s (RFC 6298,
/// section 2).
const REPEATED: Duration = Duration::from_millis(1500);
/// To the client's first octet.
const SPEAK: Duration = Duration::from_secs(2);
/// Later than this is after another SYN, which the client sends after 1 s.
const AT_ONCE: Duration = Duration::from_millis(500);
/// From the segment's going on to the end: SYNs are repeated after 1 s and 3 s.
const WATCHED: Duration = Duration::from_secs(6);
const LOOK: Duration = Duration::from_millis(20);
/// A port that answers nothing.
const SILENT_PORT: u16 = 8082;
/// Octets that may wait for ARP: the default holds some hundred segments.
const QUEUE: &str = "net/ipv4/neigh/eth0/unres_qlen_bytes";
const QUEUED: &str = "4194304";
/// A pod, the node's end of its link, and whether that end leaves ARP unanswered.
type Pod = (&'static str, &'static str, &'static str);
const CLIENT: Pod = ("client", "to-client", "net/ipv4/conf/to-client/arp_ignore");
const SERVER: Pod = ("server", "to-server", "net/ipv4/conf/to-server/arp_ignore");

/// Runs all cases, one after another: each changes the limit. What they showed goes to `filled`.
pub(crate) fn run(
    x: &Experiment<'_>,
    control: &Control,
    filled: &mut Filled,
) -> Result<(), TestbedError> {
    OnItsWay::ALL.iter().try_for_each(|case| run_steps(*case, x, control, filled))
}

impl OnItsWay {
    const fn title(self) -> &'static str {
        match self {
            Self::SynAck => "half-open entries dropped early, the SYN ACK on its way",
            Self::Ack => "half-open entries dropped early, the client's ACK on its way",
            Self::AckProtected => {
                "half-open entries dropped early, the ACK on its way, be_liberal=1 and a PREROUTING drop"
            }
        }
    }
}

fn run_steps(
    case: OnItsWay,
    x: &Experiment<'_>,
    control: &Control,
    filled: &mut Filled,
) -> Result<(), TestbedError> {
    let (t, limit) = (x.seconds(), x.limit);
    let stage = Stage::build(x, &format!("half-open-{case}"), case == OnItsWay::AckProtected)?;
    let n = (limit / PART).min(MOST);
    let gates = Gates::new(&stage)?;
    let listener = stage.listen(HELD_PORT, 2 * n)?;
    let hold = stage.hold(limit.saturating_sub(stage.entries()? + 2 * n).max(1), &stage.dir)?;
    // First with nothing else going on: the cause removed. They stay, and leave room for as
    // many again.
    let alone = handshakes(case, &gates, &listener, n, None)?;
    let taps = stage.capture()?;
    let witness = stage.listen_to_the_kernel(&stage.dir)?;
    let mut crowd = Crowd { control, limit, gone: None };
    let crowded = handshakes(case, &gates, &listener, n, Some(&mut crowd))?;
    let captured = stage.captured(taps)?;
    let mut heard = stage.heard(witness, case.title())?;
    heard.resets = captured.lost.is_none().then_some(captured.resets);
    if crowded.early > 0 {
        heard.shows.push(InTable::EarlyDrop);
    }
    let half_open = HalfOpen {
        case,
        alone: alone.ends(),
        ends: crowded.ends(),
        late: crowded.late,
        others: crowded.others,
        early: crowded.early,
        captured,
    };
    drop((alone, crowded));
    crowd.end()?;
    hold.end()?;
    let of = |end| half_open.ended(end);
    let failures = [
        (FailureClass::ConnectTimeout, of(ProbeEnd::TimedOut)),
        (FailureClass::Reset, of(ProbeEnd::Reset)),
        (FailureClass::Hung, of(ProbeEnd::Hung)),
    ];
    let step = Step {
        t,
        title: case.title().to_owned(),
        changes: stage.changes(),
        new_attempts: n,
        new_ok: of(ProbeEnd::Survived),
        new_failures: failures.into_iter().filter(|(_, n)| *n > 0).collect(),
        conntrack: heard.conntrack,
        notes: vec![half_open.words()],
        ..Step::default()
    };
    filled.add(step, heard);
    filled.facts.half_open.push(half_open);
    stage.close().map(drop)
}

/// What keeps a pod's segments back.
struct Gates<'a, 's> {
    stage: &'a Stage<'s>,
    gateway: String,
}

impl<'a, 's> Gates<'a, 's> {
    fn new(stage: &'a Stage<'s>) -> Result<Self, TestbedError> {
        let client = Addr::new(65, 10).v4.into();
        for ((pod, device, _), ip) in [(CLIENT, client), (SERVER, stage.local(HELD_PORT).ip())] {
            stage.place.set(pod, QUEUE, QUEUED)?;
            // The node must not ask: its ARP request would tell the pod what it waits for.
            let (ip, own) = (ip.to_string(), link_address(stage, pod, "eth0")?);
            stage.ip(
                "node1",
                &["neigh", "replace", &ip, "lladdr", &own, "nud", "permanent", "dev", device],
            )?;
        }
        let route = stage.ip("client", &["route", "show", "default"])?;
        let gateway = route.split_whitespace().nth(2).unwrap_or_default().to_owned();
        let rules = format!(
            "table inet lab-silent {{\n chain input {{ type filter hook input priority 0; \
             tcp dport {SILENT_PORT} drop;\n }}\n}}\n"
        );
        stage.place.nft("server", &rules)?;
        let gates = Self { stage, gateway };
        gates.open(CLIENT)?;
        gates.open(SERVER)?;
        Ok(gates)
    }

    /// What the pod sends waits in its kernel.
    fn close(&self, (pod, _, ignore): Pod) -> Result<(), TestbedError> {
        // All local addresses: no answer to any request.
        self.stage.set(ignore, "8")?;
        self.stage.ip(pod, &["neigh", "del", &self.gateway, "dev", "eth0"])?;
        Ok(())
    }

    /// What waited goes on.
    fn open(&self, (pod, device, ignore): Pod) -> Result<(), TestbedError> {
        let link = link_address(self.stage, "node1", device)?;
        let to = ["neigh", "replace", &self.gateway, "lladdr", &link];
        self.stage.ip(pod, &[&to[..], &["nud", "permanent", "dev", "eth0"]].concat())?;
        self.stage.set(ignore, "0")?;
        Ok(())
    }
}

fn link_address(stage: &Stage<'_>, host: &str, device: &str) -> Result<String, TestbedError> {
    let text = stage.ip(host, &["-json", "link", "show", "dev", device])?;
    let links: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let address = links[0]["address"].as_str().map(str::to_owned).ok_or(text);
    let what = format!("find the link-layer address of {device} in {host}");
    Ok(address.map_err(wrong(what))?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No SYN ACK yet.
    Connecting,
    /// Nothing said yet.
    Connected,
    /// No answer yet.
    Spoken,
    Ended(ProbeEnd),
}

struct Handshakes {
    clients: Vec<(TcpStream, State)>,
    /// Their other ends, which give back what they get.
    servers: Vec<TcpStream>,
    /// Connected after another SYN.
    late: u64,
    /// SYNs of others.
    others: u64,
    /// Entries dropped early for them.
    early: u64,
}

impl Handshakes {
    fn ends(&self) -> BTreeMap<ProbeEnd, u64> {
        counted(self.clients.iter().map(|(_, state)| match state {
            State::Connecting => ProbeEnd::TimedOut,
            State::Connected | State::Spoken => ProbeEnd::Hung,
            State::Ended(end) => *end,
        }))
    }

    fn over(&self) -> bool {
        self.clients.iter().all(|(_, state)| matches!(state, State::Ended(_)))
    }

    /// Takes every client as far as it gets.
    fn step(&mut self, listener: &TcpListener, since: Duration) {
        while let Ok((server, _)) = listener.accept() {
            if server.set_nonblocking(true).is_ok() {
                self.servers.push(server);
            }
        }
        for server in &mut self.servers {
            let mut octets = [0; 64];
            // What becomes of a connection is told by its client.
            if let Ok(n @ 1..) = server.read(&mut octets) {
                let _ = server.write(&octets[..n]);
            }
        }
        for (client, state) in &mut self.clients {
            let next = next(client, *state, since);
            if *state == State::Connecting && next == State::Connected && since > AT_ONCE {
                self.late += 1;
            }
            *state = next;
        }
    }
}

fn next(client: &mut TcpStream, state: State, since: Duration) -> State {
    let phase = if state == State::Connecting { Phase::Connect } else { Phase::Receive };
    let told = |e: &io::Error| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => state,
        _ => State::Ended(end(phase, e)),
    };
    match state {
        State::Connecting => match client.take_error() {
            Ok(None) if client.peer_addr().is_ok() => State::Connected,
            Ok(None) => state,
            Ok(Some(e)) | Err(e) => told(&e),
        },
        State::Connected if since < SPEAK => state,
        State::Connected => match client.write(b".") {
            Ok(_) => State::Spoken,
            Err(e) => told(&e),
        },
        State::Spoken => match client.read(&mut [0; 64]) {
            Ok(0) => State::Ended(ProbeEnd::EarlyEof),
            Ok(_) => State::Ended(ProbeEnd::Survived),
            Err(e) => told(&e),
        },
        State::Ended(_) => state,
    }
}

/// Handshakes that are kept on their way, and what becomes of them, with others' SYNs or without.
fn handshakes(
    case: OnItsWay,
    gates: &Gates<'_, '_>,
    listener: &TcpListener,
    n: u64,
    mut crowd: Option<&mut Crowd<'_>>,
) -> Result<Handshakes, TestbedError> {
    let stage = gates.stage;
    let interrupt = &stage.place.setting.interrupt;
    gates.close(SERVER)?;
    let clients = begin(stage, "client", stage.target(HELD_PORT), n)?;
    let clients = clients.into_iter().map(|c| (c, State::Connecting)).collect();
    let mut all = Handshakes { clients, servers: Vec::new(), late: 0, others: 0, early: 0 };
    let mut closed = SERVER;
    if case != OnItsWay::SynAck {
        gates.close(CLIENT)?;
        gates.open(SERVER)?;
        closed = CLIENT;
        let deadline = Instant::now() + stage.place.setting.scaled(READY);
        while all.clients.iter().any(|(_, s)| *s == State::Connecting) && Instant::now() < deadline
        {
            all.step(listener, Duration::ZERO);
            interrupt.check()?;
        }
    }
    let before = stage.counters()?.early_drop;
    let silent = stage.local(SILENT_PORT);
    while crowd.is_some() && all.early < n * 3 / 4 && all.others < n * OTHERS {
        // Nobody waits for an answer: the entry is what is wanted.
        drop(begin(stage, "node1", silent, BATCH)?);
        all.others += BATCH;
        all.early = stage.counters()?.early_drop - before;
        interrupt.check()?;
    }
    if case == OnItsWay::SynAck {
        make_room(&mut crowd)?;
    }
    gates.open(closed)?;
    let open = Instant::now();
    while !all.over() && open.elapsed() < WATCHED {
        all.step(listener, open.elapsed());
        if open.elapsed() > REPEATED {
            make_room(&mut crowd)?;
        }
        interrupt.sleep(LOOK)?;
    }
    Ok(all)
}

/// Others' SYNs in a table that is full, until there is room.
struct Crowd<'a> {
    control: &'a Control,
    limit: u64,
    /// The bigger table, once the crowd has gone.
    gone: Option<Resized<'a>>,
}

impl Crowd<'_> {
    /// The limit is again what it was.
    fn end(self) -> Result<(), OsError> {
        self.gone.map_or(Ok(()), Resized::restore)
    }
}

/// The crowd has gone. The table has room again, so that what comes next is decided by what was
/// lost, and not by who else is lucky.
fn make_room(crowd: &mut Option<&mut Crowd<'_>>) -> Result<(), OsError> {
    if let Some(crowd) = crowd
        && crowd.gone.is_none()
    {
        crowd.gone = Some(crowd.control.resize(Size::of(crowd.limit * 2))?);
    }
    Ok(())
}

fn begin(
    stage: &Stage<'_>,
    host: &str,
    target: SocketAddr,
    n: u64,
) -> Result<Vec<TcpStream>, TestbedError> {
    stage.place.within(host, move || {
        let one = || -> io::Result<TcpStream> {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
            match connect(socket.as_raw_fd(), &SockaddrStorage::from(target)) {
                Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket.into()),
                Err(e) => Err(e.into()),
            }
        };
        let begun: io::Result<Vec<_>> = (0..n).map(|_| one()).collect();
        Ok(begun.map_err(os(format!("connect to {target}")))?)
    })
}
