//! The same attribution from captures: pure. A capture shows packets, not what conntrack said of
//! them; so a cause is named only where addresses or numbers single it out, and where they do not
//! the connection is unexplained, with what is known.

use std::net::SocketAddr;
use std::time::Duration;

use ahash::AHashMap;
use canary_conntrack::table::Tuple;
use canary_record::result::witness::{Cause, Direction, Ended, Reason};
use canary_wire::segment::{Flags, Numbers, Segment, SegmentError};
use canary_wire::seq::Seq;

use super::found::Found;
use super::pcap::Packet;

/// How long after a segment its reset may come.
const ANSWER: Duration = Duration::from_secs(2);
/// Segments of one direction that are remembered.
const RECENT: usize = 16;
/// Connections that are remembered.
const FLOWS: usize = 1 << 17;
/// Resets that wait for the end of the captures.
const RESETS: usize = 1 << 14;
/// A client's address and port has no more peers than this; a server's has.
const PEERS: usize = 8;
/// A leaked segment's sequence number is this near to what the Service's address has sent.
const NEAR: u32 = 1 << 18;
/// RFC 7323, section 2.3.
const MAX_SCALE: u8 = 14;

/// One side of a connection, as what it sent shows it.
#[derive(Clone, Debug, Default)]
struct Side {
    /// Segments other than resets.
    segments: u64,
    syn: bool,
    syn_ack: bool,
    scale: Option<u8>,
    /// It has sent FIN or RST.
    closed: bool,
    /// SND.NXT
    end: Option<Seq>,
    /// The highest acknowledgment.
    acked: Option<Seq>,
    /// The right edge of the window that it offered.
    edge: Option<Seq>,
    ttl: Option<u8>,
    recent: Vec<Sent>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Duration,
    numbers: Numbers,
    reason: Option<Reason>,
    beyond: u32,
}

/// A connection as its two addresses name it; `sides[0]` is that of the lower address.
#[derive(Clone, Debug, Default)]
struct Flow {
    sides: [Side; 2],
}

/// A reset that answers a segment.
#[derive(Clone, Copy, Debug)]
struct Reset {
    /// The segment's addresses.
    tuple: Tuple,
    sent: Sent,
    at: Duration,
    ttl: u8,
}

/// What a reset did, unless what comes later shows that the connection lived on.
#[derive(Clone, Debug)]
struct Open {
    ended: Ended,
    tuple: Tuple,
    /// The connection that was ended: the answerer's address, and whom it knew.
    known_as: (SocketAddr, SocketAddr),
    numbers: Numbers,
}

/// What one reset is.
enum One {
    Open(Box<Open>),
    /// Its receiver cannot take it.
    Harmless,
    /// It answers a segment with which nothing is wrong: its receiver's socket was gone.
    Stray,
}

/// Where the numbers of a segment from elsewhere belong.
enum Twin {
    /// To this peer's connection, and its reset's number can be the one expected.
    Of(SocketAddr),
    /// To a connection that takes no such reset.
    Harmless,
}

/// Reads segments, and judges at the end.
#[derive(Debug, Default)]
pub(crate) struct Offline {
    flows: AHashMap<(SocketAddr, SocketAddr), Flow>,
    /// The peers of an address and port.
    peers: AHashMap<SocketAddr, Vec<SocketAddr>>,
    open: Vec<Open>,
    begin: Option<Duration>,
    end: Duration,
    /// Packets of a link layer that is not known here.
    pub(crate) unknown_links: u64,
    /// Of segments, those that no connection has, by what their numbers show.
    pub(crate) found: Found,
}

fn key(a: SocketAddr, b: SocketAddr) -> ((SocketAddr, SocketAddr), usize) {
    if a <= b { ((a, b), 0) } else { ((b, a), 1) }
}

/// Flags that `tcp_error()` lets pass; PSH, ECE and CWR are always valid.
fn valid_flags(flags: Flags) -> bool {
    const ALWAYS: u8 = Flags::PSH.0 | 0xc0;
    let f = flags.0 & !ALWAYS;
    let urg = f & !Flags::URG.0;
    let with_urg = [Flags::SYN.0, Flags::FIN.0 | Flags::ACK.0, Flags::ACK.0];
    let without = [Flags::SYN.0 | Flags::ACK.0, Flags::RST.0, Flags::RST.0 | Flags::ACK.0];
    with_urg.contains(&urg) || without.contains(&f)
}

impl Offline {
    pub(crate) fn packet(&mut self, packet: &Packet) {
        self.found.messages.received += 1;
        match packet.segment() {
            Some(Ok((segment, ttl))) => self.see(packet.at, &segment, ttl),
            Some(Err(SegmentError::Protocol(_) | SegmentError::Version(_))) => {
                self.found.messages.foreign += 1;
            }
            Some(Err(_)) => self.found.messages.unreadable += 1,
            None => {
                self.found.messages.foreign += 1;
                self.unknown_links += 1;
            }
        }
    }

    /// Takes note of a segment that was captured at `at`, with its TTL.
    pub(crate) fn see(&mut self, at: Duration, s: &Segment<'_>, ttl: u8) {
        self.begin.get_or_insert(at);
        self.end = self.end.max(at);
        let (name, from) = key(s.src, s.dst);
        if !self.flows.contains_key(&name) {
            if self.flows.len() >= FLOWS {
                self.found.messages.forgotten += 1;
                return;
            }
            for (one, other) in [(s.src, s.dst), (s.dst, s.src)] {
                self.peers.entry(one).or_default().push(other);
            }
        }
        let flow = self.flows.entry(name).or_default();
        if s.flags.has(Flags::RST) {
            self.reset(at, s, ttl);
            return;
        }
        let begins = s.flags.has(Flags::SYN) && !s.flags.has(Flags::FIN);
        if begins && !s.flags.has(Flags::ACK) && flow.sides[from].end != Some(s.seq.add(1)) {
            // A new connection with the addresses of an old one.
            *flow = Flow::default();
        }
        let (me, peer) = {
            let [low, high] = &mut flow.sides;
            if from == 0 { (low, high) } else { (high, low) }
        };
        let (reason, beyond) = strange(s, me, peer);
        let sent = Sent { at, numbers: s.numbers(), reason, beyond };
        // The same segment at another place of the network, or sent again.
        let again = me.recent.iter_mut().find(|r| r.numbers == sent.numbers);
        if let Some(again) = again {
            again.at = at;
        } else {
            if let Some(reason) = reason {
                *self.found.segments.entry(reason).or_default() += 1;
            }
            if me.recent.len() == RECENT {
                me.recent.remove(0);
            }
            me.recent.push(sent);
        }
        if reason.is_none() {
            me.note(s, begins, ttl, peer.begun() && peer.scale.is_none());
        }
    }

    fn reset(&mut self, at: Duration, s: &Segment<'_>, ttl: u8) {
        let (name, from) = key(s.src, s.dst);
        let Some(flow) = self.flows.get_mut(&name) else { return };
        let peer = &flow.sides[1 - from];
        // What lies out of the window first: conntrack has no quarrel with the rest.
        let fits = |r: &&Sent| r.numbers.provokes(s) && r.at + ANSWER >= at && r.at <= at;
        let fitting = || peer.recent.iter().filter(fits);
        let sent = fitting().find(|r| r.reason.is_some()).or_else(|| fitting().next()).copied();
        let before = flow.sides[from].closed;
        flow.sides[from].closed = true;
        let Some(sent) = sent else {
            self.found.stray_resets += 1;
            return;
        };
        let tuple = Tuple { source: s.dst, destination: s.src };
        let known = |o: &Open| o.tuple == tuple && o.numbers == sent.numbers;
        if self.open.iter().rev().take(RECENT).any(known) {
            return;
        }
        if before && flow.sides[from].segments > 0 && flow.sides[1 - from].closed {
            self.found.already_closing += 1;
            return;
        }
        if self.open.len() >= RESETS {
            self.found.messages.forgotten += 1;
            return;
        }
        match self.one(&Reset { tuple, sent, at, ttl }) {
            One::Open(open) => self.open.push(*open),
            One::Harmless => self.found.harmless += 1,
            One::Stray => self.found.stray_resets += 1,
        }
    }

    /// Seconds from the first packet to the last.
    pub(crate) fn seconds(&self) -> f64 {
        self.begin.map_or(0.0, |b| self.end.saturating_sub(b).as_secs_f64())
    }

    /// Judges what is open, after the last packet.
    pub(crate) fn finish(&mut self) {
        for open in std::mem::take(&mut self.open) {
            // A side that acknowledges more afterwards has not been ended.
            let more = |side: Option<(&Side, &Side)>| {
                let acked = side.and_then(|(me, _)| me.acked);
                acked.is_some_and(|acked| acked.after(open.numbers.ack))
            };
            let (answerer, peer) = open.known_as;
            let sender = self.side(open.tuple.source, open.tuple.destination);
            if more(sender) || more(self.side(peer, answerer)) {
                self.found.harmless += 1;
            } else {
                self.found.add(&open.ended);
            }
        }
    }

    fn side(&self, from: SocketAddr, to: SocketAddr) -> Option<(&Side, &Side)> {
        let (name, n) = key(from, to);
        self.flows.get(&name).map(|f| (&f.sides[n], &f.sides[1 - n]))
    }

    /// The connection of the host that answered to which the segment's numbers belong, under the
    /// address that this host knows: the proof that the segment came untranslated.
    fn twin(&self, reset: &Reset) -> Option<Twin> {
        let (sender, answerer) = (reset.tuple.source, reset.tuple.destination);
        let numbers = &reset.sent.numbers;
        let mut near = false;
        let peers = self.peers.get(&answerer)?;
        if peers.len() > PEERS {
            return None;
        }
        for peer in peers.iter().copied().filter(|peer| *peer != sender) {
            let Some((me, other)) = self.side(answerer, peer) else { continue };
            // On the node that translates, both sides of the translation are captured.
            if other.recent.iter().any(|r| r.numbers == *numbers) {
                return None;
            }
            let (Some(end), Some(acked), Some(sent)) = (me.end, other.acked, other.end) else {
                continue;
            };
            if numbers.ack.since(acked) <= end.since(acked) && end.since(acked) < 1 << 31 {
                return Some(Twin::Of(peer));
            }
            near |= numbers.seq.add(NEAR).since(sent) < 2 * NEAR;
        }
        near.then_some(Twin::Harmless)
    }

    fn one(&self, reset: &Reset) -> One {
        let numbers = &reset.sent.numbers;
        if !numbers.flags.has(Flags::ACK) || reset.sent.reason == Some(Reason::AckOver) {
            return One::Harmless;
        }
        let (sender, answerer) = (reset.tuple.source, reset.tuple.destination);
        let Some((me, peer)) = self.side(sender, answerer) else { return One::Stray };
        let to = match (me.syn, peer.syn) {
            (true, false) => Direction::ClientToServer,
            (false, true) => Direction::ServerToClient,
            _ => Direction::Unknown,
        };
        let t = reset.at.saturating_sub(self.begin.unwrap_or_default()).as_secs_f64();
        let open = |cause, to, service, fact| {
            let ends = match to {
                Direction::ServerToClient => (Some(answerer), service, Some(sender)),
                Direction::ClientToServer => (Some(sender), Some(answerer), None),
                Direction::Unknown => (None, None, None),
            };
            One::Open(Box::new(Open {
                ended: record(t, reset, cause, to, ends, vec![fact]),
                tuple: reset.tuple,
                known_as: (answerer, service.unwrap_or(sender)),
                numbers: *numbers,
            }))
        };
        let strange = reset.sent.reason.is_some();
        // A host that talks under this address too is that of a translating node's capture, or no
        // foreign host: then the segment itself must be such that conntrack refuses it.
        if strange || peer.segments == 0 {
            match self.twin(reset) {
                Some(Twin::Of(service)) => {
                    let fact =
                        "the host that answered knew this connection under the Service's address";
                    let to = Direction::ServerToClient;
                    return open(Cause::AnsweredByClient, to, Some(service), fact);
                }
                Some(Twin::Harmless) => return One::Harmless,
                None => {}
            }
        }
        if !strange {
            return One::Stray;
        }
        let unexplained = |fact| open(Cause::Unexplained, to, None, fact);
        if peer.sent_fin() {
            return unexplained("the side that answered had closed before");
        }
        let conclusive = matches!(reset.sent.reason, Some(Reason::SeqOver | Reason::BadFlags));
        if !conclusive || to == Direction::Unknown {
            return unexplained(
                "from here a segment that was not translated cannot be told from one whose \
                 receiver's socket was gone: capture at the other side too",
            );
        }
        if peer.end != Some(numbers.ack) {
            return unexplained("the reset's number is not the next one that was expected");
        }
        match (peer.ttl, to) {
            (Some(ttl), _) if reset.ttl > ttl => open(
                Cause::AnsweredByNode,
                to,
                None,
                "the reset came from nearer than its connection's segments",
            ),
            (Some(ttl), Direction::ServerToClient) if reset.ttl == ttl => open(
                Cause::AnsweredByClient,
                to,
                None,
                "the reset came from as far as its connection's segments",
            ),
            // Nothing tells the node from the server that it stands for.
            _ => unexplained("the reset's distance does not tell who answered"),
        }
    }
}

impl Side {
    fn note(&mut self, s: &Segment<'_>, begins: bool, ttl: u8, peer_scales_not: bool) {
        self.segments += 1;
        if begins {
            self.syn = !s.flags.has(Flags::ACK);
            self.syn_ack = !self.syn;
            self.scale = s.options().window_scale;
        }
        self.ttl.get_or_insert(ttl);
        self.closed |= s.flags.has(Flags::FIN);
        let end = s.seq.add(s.seg_len());
        if self.end.is_none_or(|e| end.after(e)) {
            self.end = Some(end);
        }
        if s.flags.has(Flags::ACK) {
            if self.acked.is_none_or(|a| s.ack.after(a)) {
                self.acked = Some(s.ack);
            }
            // The window of a SYN is never scaled, and none is where one side did not offer it (RFC
            // 7323, section 2.2). What the capture does not show is taken as the largest there can
            // be: that accuses nobody.
            let scale = match self.scale {
                _ if begins || peer_scales_not => 0,
                None if self.begun() => 0,
                scale => scale.unwrap_or(MAX_SCALE),
            };
            let edge = s.ack.add(u32::from(s.window) << scale);
            if self.edge.is_none_or(|e| edge.after(e)) {
                self.edge = Some(edge);
            }
        }
    }

    /// True when its first segment was seen.
    const fn begun(&self) -> bool {
        self.syn || self.syn_ack
    }

    /// True when it had sent FIN, in a segment that it could send.
    fn sent_fin(&self) -> bool {
        self.recent.iter().any(|r| r.numbers.flags.has(Flags::FIN) && r.reason.is_none())
    }
}

/// What is wrong with a segment, by what its receiver has sent; and by how much.
fn strange(s: &Segment<'_>, me: &Side, peer: &Side) -> (Option<Reason>, u32) {
    if !valid_flags(s.flags) {
        return (Some(Reason::BadFlags), 0);
    }
    if s.flags.has(Flags::SYN) {
        return (None, 0);
    }
    // A keep-alive beyond a window of 0 is no oddity: one octet is allowed.
    if let Some(edge) = peer.edge
        && s.seg_len() > 0
        && s.seq.after(edge.add(1))
    {
        return (Some(Reason::SeqOver), s.seq.since(edge));
    }
    if s.flags.has(Flags::ACK)
        && let Some(end) = peer.end
        && s.ack.after(end)
        && s.ack.since(end) > u32::from(u16::MAX) << MAX_SCALE >> 1
    {
        return (Some(Reason::AckOver), s.ack.since(end));
    }
    if let Some(end) = me.end
        && let Some(acked) = peer.acked
        && s.seg_len() > 1
        && s.seq.add(s.seg_len()).before(acked)
        && end.since(s.seq) > u32::from(u16::MAX)
    {
        return (Some(Reason::SeqUnder), acked.since(s.seq));
    }
    (None, 0)
}

fn record(
    t: f64,
    reset: &Reset,
    cause: Cause,
    direction: Direction,
    (client, service, server): (Option<SocketAddr>, Option<SocketAddr>, Option<SocketAddr>),
    facts: Vec<&'static str>,
) -> Ended {
    let numbers = &reset.sent.numbers;
    let (reason, beyond) = (reset.sent.reason, reset.sent.beyond);
    let text = match reason {
        Some(Reason::SeqOver) => format!("begins {beyond} octets beyond the window offered"),
        Some(Reason::SeqUnder) => format!("lies {beyond} octets below what was acknowledged"),
        Some(Reason::BadFlags) => format!("flags that no segment has together: {}", numbers.flags),
        _ => "nothing is wrong with its numbers".to_owned(),
    };
    let say = |a: Option<SocketAddr>| a.map(|a| a.to_string());
    Ended {
        t,
        cause,
        direction,
        client: say(client),
        service: say(service),
        server: say(server),
        from: reset.tuple.source.to_string(),
        to: reset.tuple.destination.to_string(),
        seq: numbers.seq.0,
        ack: numbers.ack.0,
        flags: numbers.flags.to_string(),
        reason: reason.unwrap_or(Reason::Other),
        text,
        answered_us: reset.at.saturating_sub(reset.sent.at).as_micros() as u64,
        states: [None, None],
        entry_outlived: None,
        facts: facts.into_iter().map(str::to_owned).collect(),
    }
}
