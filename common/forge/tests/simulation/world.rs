//! One connection from its SYN to its end: two hosts, a node between them, and the state
//! machine at one of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::Duration;

use canary_forge::flow::{Action, Arrival, End, Flows, ResetCause, Settings};
use canary_forge::forgery::Spec;
use canary_record::names::Forgery;
use canary_record::outcome::Fate;
use canary_wire::segment::{Flags, Segment};
use canary_wire::seq::Seq;

use crate::host::{Host, SCALE, State, TTL, Wire};
use crate::path::{Invalid, Middle, Network, Path, number};
use crate::window::{Class, Entry, Passing, Side};

/// SplitMix64: a run is repeated by its seed.
#[derive(Clone, Copy)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(crate) fn chance(&mut self, in_1000: u64) -> bool {
        self.below(1000) < in_1000
    }
}

/// What the peer does beside answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Idle,
    /// Window updates, as macOS sends after the handshake, and keep-alive probes.
    Updates,
    /// Data at some time, while this end may have data of its own under way.
    Talks,
    /// Closes by RST, without a word more.
    Resets,
    /// Closes by FIN; `nc` does so at once.
    Closes,
    /// Is switched off.
    Vanishes,
    /// Closes, and the client opens another connection from the same port.
    Reuses,
}

impl Peer {
    pub(crate) const fn stays(self) -> bool {
        matches!(self, Self::Idle | Self::Updates | Self::Talks)
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// At the node, from this host.
    AtNode(usize, Wire),
    /// At this host.
    Arrives(usize, Wire),
    /// What this host has not had acknowledged is due again; how often it was.
    Again(usize, u8),
    Act(usize, Peer),
    Reopens,
}

/// What became of the rounds of one forged segment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Truth {
    pub(crate) leaked: u32,
    rejected: u32,
    delivered: u32,
    dropped: u32,
    /// Resets that it drew untranslated, or from a node, and that came here.
    resets: u32,
    /// Such a reset had the number that this end expected.
    killed: bool,
}

/// One forging and its last judgement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forging {
    pub(crate) forgery: Forgery,
    pub(crate) fate: Option<Fate>,
    pub(crate) truth: Truth,
}

pub(crate) struct World {
    random: Random,
    network: Network,
    path: Path,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u32)>>,
    events: Vec<Event>,
    one_way: u64,
    /// The bad part lies on the server's side of the node.
    far: bool,
    hosts: [Host; 2],
    /// The program's end.
    here: usize,
    /// The newest number that the program has seen acknowledged.
    acked: Option<Seq>,
    entry: Entry,
    /// The connection is over for conntrack: a SYN makes another.
    over: bool,
    shift: u32,
    pub(crate) peer: Peer,
    pub(crate) forgings: Vec<Forging>,
    pub(crate) wrong: Option<String>,
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

impl World {
    pub(crate) fn new(seed: u64, network: Network, path: Path, end: &End) -> Self {
        let mut random = Random(seed);
        let peer = match random.below(100) {
            0..50 => Peer::Idle,
            50..62 => Peer::Updates,
            62..74 => Peer::Talks,
            74..82 => Peer::Resets,
            82..92 => Peer::Closes,
            92..94 => Peer::Vanishes,
            _ => Peer::Reuses,
        };
        let one_way = [25, 500, 5_000][random.below(3) as usize];
        let stamps = !random.chance(20);
        let sack = !random.chance(20);
        let mut host = |listens| {
            let isn = Seq(random.next() as u32);
            let clock = stamps.then(|| random.next() as u32);
            Host::new(isn, listens, sack, clock)
        };
        let hosts = [host(false), host(true)];
        let far = random.chance(500);
        let shift = random.next() as u32;
        let entry = Entry { sides: [Side::default(); 2], new: path.new };
        Self {
            random,
            network,
            path,
            now: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            one_way,
            far,
            hosts,
            here: number(end),
            acked: None,
            entry,
            over: true,
            shift,
            peer,
            forgings: Vec::new(),
            wrong: None,
        }
    }

    fn at(&mut self, at: u64, event: Event) {
        self.events.push(event);
        self.queue.push(Reverse((at, self.events.len() as u32 - 1)));
    }

    /// Half of the way, at one side of the node; one side is bad.
    fn leg(&mut self, server_side: bool, event: Event) {
        let half = self.one_way / 2 + 1;
        if server_side != self.far {
            return self.at(self.now + half, event);
        }
        let n = self.network;
        let copies = 1 + u64::from(self.random.chance(n.copied));
        for _ in 0..copies {
            if self.random.chance(n.lost) {
                continue;
            }
            let late = if self.random.chance(n.late) { self.random.below(3_000) } else { 0 };
            let jitter = if n.jitter_us > 0 { self.random.below(n.jitter_us) } else { 0 };
            self.at(self.now + half + late + jitter, event);
        }
    }

    fn send(&mut self, from: usize, wire: Wire) {
        self.leg(from == SERVER, Event::AtNode(from, wire));
        let again = wire.seg_len() > 0 && wire.forging.is_none();
        if again && !wire.flags.has(Flags::RST) {
            let opens = wire.flags.has(Flags::SYN);
            let wait = if opens { 1_000_000 } else { 200_000 + 4 * self.one_way };
            self.at(self.now + wait, Event::Again(from, 0));
        }
    }

    fn forge(&mut self, spec: &Spec, stamp: Option<(u32, u32)>, forging: Option<usize>) {
        let wire = Wire {
            seq: spec.seq,
            ack: spec.ack,
            flags: spec.flags,
            window: 502,
            len: spec.payload.len() as u32,
            // As the program writes it: what was echoed last, and the peer's own.
            stamp: stamp.map(|(value, echo)| (echo, value)),
            block: None,
            sack: false,
            ttl: TTL,
            class: 4,
            forging,
            stray: false,
        };
        let here = self.here;
        self.leg(here == SERVER, Event::AtNode(here, wire));
    }

    fn class(&mut self, from: usize, w: &Wire) -> Class {
        if !self.path.tracked {
            return Class::Valid;
        }
        let narrow = Flags::SYN.0 | Flags::FIN.0 | Flags::RST.0;
        if self.path.flowtable && w.flags.0 & narrow == 0 {
            return Class::Valid;
        }
        if w.flags == Flags::SYN && self.over {
            self.entry.sides = [Side::default(); 2];
            self.over = false;
        }
        if w.flags.has(Flags::SYN) && self.entry.sides[from].max_win == 0 {
            self.entry.sides[from].scale = SCALE;
        }
        let passing = Passing {
            seq: w.seq,
            ack: w.ack,
            flags: w.flags,
            seg_len: w.seg_len(),
            window: w.window,
        };
        let class = self.entry.class(from, &passing);
        let lets_be = class == Class::Invalid && self.path.liberal;
        if lets_be { Class::Ignored } else { class }
    }

    /// The node: conntrack, its rules, and whoever else meddles there.
    fn node(&mut self, from: usize, mut w: Wire) {
        let (to, drops) = (1 - from, self.path.invalid == Invalid::Dropped);
        if w.stray {
            // Without an entry a reset is INVALID too.
            if !drops {
                self.leg(to == SERVER, Event::Arrives(to, w));
            }
            return;
        }
        if self.path.middle == Middle::RenumbersAll && from == CLIENT {
            w.ack = w.ack.sub(self.shift);
        }
        // conntrack knows the server's own numbers, or a renumbering would be INVALID.
        let tracked = self.path.middle == Middle::Renumbers && from == CLIENT;
        let known = if tracked { Wire { ack: w.ack.sub(self.shift), ..w } } else { w };
        let class = self.class(from, &known);
        let closes = w.flags.has(Flags::RST) || w.flags.has(Flags::FIN);
        self.over |= closes && class == Class::Valid;
        let passes = matches!(class, Class::Valid | Class::Ignored);
        if self.path.middle == Middle::Answers && from == self.here && !passes {
            let mut answer = w.reset();
            answer.flags = Flags::ACK;
            answer.window = 502;
            (answer.seq, answer.ack) = (self.entry.sides[to].end, self.entry.sides[from].end);
            answer.stamp = w.stamp.map(|(value, echo)| (echo.wrapping_add(1), value));
            (answer.ttl, answer.forging) = (TTL + 1, None);
            return self.leg(from == SERVER, Event::Arrives(from, answer));
        }
        if passes {
            match self.path.middle {
                Middle::Renumbers if from == CLIENT => {
                    w = known;
                    w.block = w.block.map(|(a, b)| (a.sub(self.shift), b.sub(self.shift)));
                }
                Middle::Renumbers | Middle::RenumbersAll if from == SERVER => {
                    w.seq = w.seq.add(self.shift);
                }
                _ => {}
            }
        } else if from == self.here {
            match self.path.invalid {
                Invalid::Dropped => return self.count(w.forging, |t| &mut t.dropped),
                Invalid::Leaks => w.stray = true,
                Invalid::ReachesNode | Invalid::Rejected => {
                    let rejected = self.path.invalid == Invalid::Rejected;
                    if w.flags.has(Flags::RST) {
                        return;
                    }
                    self.count(
                        w.forging,
                        |t| if rejected { &mut t.rejected } else { &mut t.leaked },
                    );
                    let class = if rejected { 0 } else { w.class };
                    let reset = Wire { ttl: TTL + 1, class, stray: true, ..w.reset() };
                    return self.leg(from == SERVER, Event::Arrives(from, reset));
                }
                Invalid::Arrives if self.path.middle == Middle::RenumbersAll && from == SERVER => {
                    w.seq = w.seq.add(self.shift);
                }
                Invalid::Arrives => {}
            }
        } else if self.path.invalid != Invalid::Arrives {
            // Addressed to the Service, which no host has.
            return;
        }
        self.leg(to == SERVER, Event::Arrives(to, w));
    }

    fn count(&mut self, forging: Option<usize>, of: impl Fn(&mut Truth) -> &mut u32) {
        if let Some(n) = forging {
            *of(&mut self.forgings[n].truth) += 1;
        }
    }

    fn arrives(&mut self, to: usize, w: &Wire) {
        if to != self.here && !w.flags.has(Flags::RST) {
            self.count(w.forging, |t| if w.stray { &mut t.leaked } else { &mut t.delivered });
        }
        let mut out = Vec::new();
        let host = &mut self.hosts[to];
        let (opened, had, fin) = (host.open(), host.rcv, host.peer_fin);
        host.receive(self.now, w, &mut out);
        let host = self.hosts[to];
        if let Some(n) = w.forging.filter(|_| to == self.here) {
            let truth = &mut self.forgings[n].truth;
            truth.killed |= w.stray && w.seq == had;
            truth.resets += u32::from(w.stray);
        }
        for wire in out {
            self.send(to, wire);
        }
        let news = host.rcv.since(had);
        let data = news.wrapping_sub(u32::from(host.peer_fin && !fin));
        if opened && host.open() && news > 0 && data > 0 && to == SERVER && !host.fin_sent {
            // boom-server echoes.
            let echo = self.hosts[to].say(self.now, data);
            self.send(to, echo);
        }
        if host.open() && host.peer_fin && !fin && !host.fin_sent {
            let closes = self.hosts[to].fin(self.now);
            self.send(to, closes);
        }
    }

    fn act(&mut self, who: usize, what: Peer) {
        let now = self.now;
        if !self.hosts[who].open() {
            return;
        }
        match what {
            Peer::Updates => {
                self.hosts[who].window = 400 + self.random.below(2000) as u16;
                let host = self.hosts[who];
                let ack = host.wire(now, Flags::ACK, host.next, 0);
                self.send(who, ack);
                if self.random.chance(300) {
                    let probe = host.wire(now, Flags::ACK, host.next.sub(1), 0);
                    self.send(who, probe);
                }
            }
            Peer::Talks if !self.hosts[who].fin_sent => {
                let len = 1 + self.random.below(1400) as u32;
                let data = self.hosts[who].say(now, len);
                self.send(who, data);
            }
            Peer::Closes if !self.hosts[who].fin_sent => {
                let fin = self.hosts[who].fin(now);
                self.send(who, fin);
            }
            Peer::Idle | Peer::Talks | Peer::Closes => {}
            Peer::Resets => {
                let rst = self.hosts[who].abort(now);
                self.send(who, rst);
            }
            Peer::Vanishes => self.hosts[who].state = State::Vanished,
            Peer::Reuses => {
                let resets = self.random.chance(500);
                self.act(who, if resets { Peer::Resets } else { Peer::Closes });
                let most = if self.random.chance(500) { 2_000 } else { 1_500_000 };
                // From TIME_WAIT after a second alone (tcp_twsk_unique()).
                let least = if resets { 0 } else { 1_100_000 };
                let wait = least + self.random.below(most);
                self.at(now + wait, Event::Reopens);
            }
        }
    }

    fn again(&mut self, who: usize, times: u8) {
        if let Some(wire) = self.hosts[who].again(self.now)
            && times < 4
        {
            self.leg(who == SERVER, Event::AtNode(who, wire));
            let first = if wire.flags.has(Flags::SYN) { 1_000_000 } else { 200_000 };
            self.at(self.now + (first << times), Event::Again(who, times + 1));
        }
    }

    /// The same port, another connection.
    fn reopens(&mut self) {
        let old = self.hosts[CLIENT];
        if !matches!(old.state, State::Closed | State::TimeWait) {
            return;
        }
        let isn = old.next.add(self.random.below(1 << 28) as u32);
        self.hosts[CLIENT] = Host::new(isn, false, old.sack, old.clock);
        let syn = self.hosts[CLIENT].connect(self.now);
        self.send(CLIENT, syn);
    }

    fn plan(&mut self) {
        let there = 1 - self.here;
        let begin = self.one_way * 2 + 4;
        if self.peer != Peer::Idle {
            for _ in 0..=self.random.below(2) {
                let within = match self.random.below(4) {
                    0 => 20,
                    1 => 400,
                    _ => 900_000,
                };
                let at = begin + self.random.below(within);
                self.at(at, Event::Act(there, self.peer));
            }
        }
        if self.random.chance(100) {
            let within = if self.random.chance(500) { 400 } else { 900_000 };
            let at = begin + self.random.below(within);
            self.at(at, Event::Act(self.here, Peer::Talks));
        }
    }

    fn hears(&mut self, flows: &mut Flows, w: &Wire, out: &mut Vec<Action>) {
        let mut options = Vec::with_capacity(40);
        if w.flags.has(Flags::SYN) {
            options.extend([3, 3, SCALE]);
            if w.sack {
                options.extend([4, 2]);
            }
        }
        if let Some((value, echo)) = w.stamp {
            options.extend([8, 10]);
            options.extend(value.to_be_bytes());
            options.extend(echo.to_be_bytes());
        }
        if let Some((from, to)) = w.block {
            options.extend([5, 10]);
            options.extend(from.0.to_be_bytes());
            options.extend(to.0.to_be_bytes());
        }
        let [client, server] =
            [([198, 18, 0, 2], 40000), ([198, 18, 0, 1], 9000)].map(SocketAddr::from);
        let (src, dst) = if self.here == SERVER { (client, server) } else { (server, client) };
        let segment = Segment {
            src,
            dst,
            seq: w.seq,
            ack: w.ack,
            flags: w.flags,
            window: w.window,
            options: &options,
            payload_len: w.len,
        };
        if w.flags.has(Flags::SYN) {
            self.acked = None;
        }
        if w.flags.has(Flags::ACK) && self.acked.is_none_or(|a| w.ack.after(a)) {
            self.acked = Some(w.ack);
        }
        let now = Duration::from_micros(self.now);
        let arrival = Arrival { at: now, ttl: Some(w.ttl), class: Some(w.class) };
        flows.segment(now, arrival, &segment, out);
    }

    fn performs(&mut self, action: &Action) {
        match *action {
            Action::Forge { forgery, spec, timestamps, .. } => {
                self.forgings.push(Forging { forgery, fate: None, truth: Truth::default() });
                self.forge(&spec, timestamps, Some(self.forgings.len() - 1));
            }
            Action::Probe { spec, timestamps, .. } => {
                // One that introduces the client's end has no forging yet.
                let n = self.forgings.len().wrapping_sub(1);
                // A probe's octet lies further back than the one that a forged segment repeats.
                let octet = spec.payload == b"\0";
                let round = !octet || self.acked.is_some_and(|a| spec.seq == a.sub(2));
                self.forge(&spec, timestamps, round.then_some(n));
            }
            Action::Judged(j) => {
                if let Some(last) = self.forgings.last_mut() {
                    last.fate = Some(j.fate);
                }
            }
            Action::Reset(r) if matches!(r.cause, ResetCause::Forged(_)) => {
                let last = self.forgings.last();
                if last.is_none_or(|f| f.truth.leaked + f.truth.rejected == 0) {
                    self.wrong.get_or_insert_with(|| format!("blamed for {r:?}"));
                }
            }
            _ => {}
        }
    }

    /// Whether the last judgement of each forging can be right.
    fn check(&mut self) {
        let to_node = self.path.invalid == Invalid::ReachesNode;
        // A window that grows lets in what was INVALID before Linux 6.1.
        let grows = |f: &Forging| f.forgery == Forgery::BelowWindow && !self.path.new;
        let right = |f: &Forging| {
            let t = f.truth;
            match f.fate {
                None | Some(Fate::Unknown(_)) => true,
                Some(Fate::Leaked { killed, node }) => {
                    t.leaked > 0 && killed == t.killed && node == to_node
                }
                Some(Fate::Rejected { killed }) => t.rejected > 0 && killed == t.killed,
                Some(Fate::Delivered) => t.delivered > 0 && (t.resets == 0 || grows(f)),
                // Silence is all that a delivered no-flags is known by.
                Some(Fate::Dropped) => {
                    let silent = f.forgery.silent_when_delivered();
                    t.leaked + t.rejected == 0 && (t.delivered == 0 || grows(f) || silent)
                }
            }
        };
        if let Some(f) = self.forgings.iter().find(|f| !right(f)) {
            self.wrong = Some(format!("{f:?}"));
        }
    }

    /// Runs to the end; what the state machine tells goes to `tell` too.
    pub(crate) fn run(&mut self, settings: Settings, mut tell: impl FnMut(&Action)) {
        let mut flows = Flows::new(settings);
        let mut out = Vec::new();
        let syn = self.hosts[CLIENT].connect(0);
        self.send(CLIENT, syn);
        self.plan();
        while self.now < 30_000_000 {
            let next = self.queue.peek().map(|Reverse((at, _))| *at);
            let due = flows.next_deadline().map(|d| d.as_micros() as u64 + 1);
            let (at, by_network) = match (next, due) {
                (Some(n), Some(d)) if n > d => (d, false),
                (Some(n), _) => (n, true),
                (None, Some(d)) => (d, false),
                (None, None) => break,
            };
            self.now = self.now.max(at);
            if by_network {
                let Some(Reverse((_, n))) = self.queue.pop() else { break };
                match self.events[n as usize] {
                    Event::AtNode(from, w) => self.node(from, w),
                    Event::Arrives(to, w) => {
                        if to == self.here {
                            self.hears(&mut flows, &w, &mut out);
                        }
                        self.arrives(to, &w);
                    }
                    Event::Again(who, times) => self.again(who, times),
                    Event::Act(who, what) => self.act(who, what),
                    Event::Reopens => self.reopens(),
                }
            } else {
                flows.tick(Duration::from_micros(self.now), &mut out);
            }
            for action in out.drain(..) {
                tell(&action);
                self.performs(&action);
            }
        }
        flows.finish(Duration::from_micros(self.now), &mut out);
        for action in out.drain(..) {
            tell(&action);
            self.performs(&action);
        }
        self.check();
    }
}
