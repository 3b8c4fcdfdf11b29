//! The state machine of every connection, from its handshake to the judgement
//! of the one segment that is forged on it.
//!
//! It sees inbound segments alone, as a raw socket does, at either end of a
//! connection. Times are durations since the program began. Nothing here sends or
//! logs: what is to be done comes back as [`Action`]s.
//!
//! The forged segment is sent in rounds. An answer that names it settles the matter
//! at once, and so does the reset that only it provokes, once the peer is shown to
//! live. A bare acknowledgment counts where the peer's clock shows that it was sent
//! after a round had begun, and two rounds drew one each: a copy, or what was on its
//! way, has an older time. Silence counts in a round whose probe was answered, and
//! five such rounds say dropped: one may be loss.

mod action;
mod judge;
mod table;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use canary_record::names::{Forgery, UnknownReason};
use canary_record::outcome::Fate;
use canary_wire::segment::{Flags, FourTuple, Segment};
use canary_wire::seq::Seq;

use crate::forgery::{self, Numbers, Spec};
use action::reset;
pub use action::{Action, Judgement, Reset, ResetCause};
use table::{Key, Table};

/// A handshake that takes longer may have drawn a second SYN-ACK (the first
/// retransmission comes after 1 s, RFC 6298 section 2.1). The client's answer to
/// it looks like the answer to a forged segment, and can keep it from giving one.
const CALM_HANDSHAKE: Duration = Duration::from_millis(900);
/// How long an answer may keep the peer from answering another segment without data:
/// net.ipv4.tcp_invalid_ratelimit is 500 ms, and a little for the way.
const ANSWERS_AGAIN: Duration = Duration::from_millis(600);
/// How long the answer of a repeated segment is waited for at least.
const GAP: Duration = Duration::from_millis(100);
/// From an answer to the next round: the peer's clock must have ticked (1 ms on Linux
/// since 4.13, up to 10 ms before and elsewhere; RFC 7323, section 5.4).
const PAUSE: Duration = Duration::from_millis(20);
/// Between the probes that show a peer alive after a reset.
const LIFE_GAP: Duration = Duration::from_millis(50);
/// How many such probes are sent.
const LIFE_PROBES: u8 = 6;
/// Silent rounds that say dropped. With 1% loss in each direction one round in 50 is
/// silent by loss, five in a row are 3 in 10^9.
const SILENT: u8 = 5;
/// Rounds at most.
const ROUNDS: u8 = 14;
/// Rounds in a row without proof of life at which the peer is given up.
const MUTE: u8 = 3;
/// From the SYN-ACK to the client's first forged segment: the client's own
/// acknowledgment must have passed every conntrack on the way.
const AFTER_SYN_ACK: Duration = Duration::from_millis(20);
/// How long an unanswered SYN is remembered.
const EMBRYO_LIFE: Duration = Duration::from_secs(10);
/// How long a judged connection is remembered, whatever its traffic.
const JUDGED_LIFE: Duration = Duration::from_secs(60);
/// How long one is remembered that has been closed or reset.
const CLOSED_LIFE: Duration = Duration::from_secs(1);
/// Sequence numbers further from the expected one belong to no living connection
/// (RFC 7323, section 2.3: windows are smaller than 2^30).
const PLAUSIBLE: u32 = 1 << 30;
/// The longest time that is given to an answer, however slow the path.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// Which end of its connections this is.
#[derive(Clone, Debug)]
pub enum End {
    /// The one that accepts.
    Server {
        /// Where. 0.0.0.0 stands for every IPv4 address, `[::]` for every address.
        listen: Vec<SocketAddr>,
        /// The addresses that connections are judged for; empty for every one.
        local: Vec<IpAddr>,
    },
    /// The one that connects.
    Client {
        /// Where to.
        target: SocketAddr,
    },
}

/// What the state machine needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What to forge, by turns over the connections. Never empty.
    pub forgeries: Vec<Forgery>,
    /// How long an answer may take; stretched on slow paths.
    pub outcome_timeout: Duration,
    /// How long after the handshake to forge.
    pub forge_delay: Duration,
    /// How many connections are remembered at most.
    pub capacity: usize,
    /// Which end this is.
    pub end: End,
}

impl End {
    /// True where a connection of these two ends is this program's.
    fn concerns(&self, tuple: &FourTuple) -> bool {
        match self {
            Self::Server { listen, .. } => listen.iter().any(|l| {
                let (ip, to) = (l.ip().to_canonical(), tuple.local);
                let any = ip.is_unspecified() && (ip.is_ipv6() || to.is_ipv4());
                l.port() == to.port() && (any || ip == to.ip())
            }),
            Self::Client { target } => {
                (target.ip().to_canonical(), target.port())
                    == (tuple.remote.ip(), tuple.remote.port())
            }
        }
    }

    /// A segment that begins a connection, seen from here.
    fn opens(&self, seg: &Segment<'_>) -> bool {
        let bits = Flags::SYN.0 | Flags::ACK.0 | Flags::RST.0 | Flags::FIN.0;
        // RFC 9293, section 3.10.7.2: in LISTEN an ACK is answered with a reset.
        let wanted = match self {
            Self::Server { .. } => Flags::SYN,
            Self::Client { .. } => Flags::SYN.with(Flags::ACK),
        };
        seg.flags.0 & bits == wanted.0
    }

    /// True where connections to this address are judged.
    fn judges(&self, local: IpAddr) -> bool {
        match self {
            Self::Server { local: named, .. } => named.is_empty() || named.contains(&local),
            Self::Client { .. } => true,
        }
    }
}

/// What the kernel and the network layer said of an inbound segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// When the kernel received it, which may be well before it is read.
    pub at: Duration,
    /// Its TTL or hop limit.
    pub ttl: Option<u8>,
    /// Its type of service or traffic class.
    pub class: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// SYN seen.
    Embryo,
    /// Handshake complete, nothing forged yet.
    Waiting,
    /// Forged, no answer yet.
    Forged,
    /// Before the next round.
    Pausing,
    /// No answer in time; probed for life.
    Probed,
    /// The forged segment's reset came; is the peer there?
    Doubted,
    /// Judged, or never forged.
    Settled,
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each was observed or not, whatever the others")]
struct Flow {
    tuple: FourTuple,
    state: State,
    isn: Seq,
    rcv: Seq,
    /// What came behind a gap: received when that is filled.
    ahead: Option<(Seq, Seq)>,
    /// There was more than one gap at once: `rcv` may lag behind from there on.
    gaps: bool,
    snd: Seq,
    /// When the first SYN came.
    syn_at: Duration,
    syns: u8,
    rtt: Duration,
    scale: u8,
    /// As last seen, unscaled.
    window: Option<u16>,
    max_window: u32,
    timestamps: Option<(u32, u32)>,
    /// The newest of the peer's timestamps.
    newest: Option<u32>,
    /// TTL or hop limit of what opened the connection.
    ttl: Option<u8>,
    /// The peer takes selective acknowledgments, and may name what it answers.
    sack: bool,
    /// A FIN of the peer was seen.
    fin: bool,
    /// An RST that this end must accept was seen.
    dead: bool,
    trial: Option<Trial>,
    fate: Option<Fate>,
    deadline: Duration,
}

/// What is known of the forged segment.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each was observed or not, whatever the others")]
struct Trial {
    forgery: Forgery,
    /// As sent first, and as sent last: the numbers may have moved.
    first: Spec,
    last: Spec,
    /// When it was sent first, and last.
    at: Duration,
    sent: Duration,
    round: u8,
    /// The peer's newest timestamp when the round, or the last proof of life, began.
    floor: Option<u32>,
    /// Data of this end's may have been in flight when it was sent.
    in_stream: bool,
    /// This round's probe was sent.
    probed: bool,
    /// Something in this round may hide the answer, or may be one.
    busy: bool,
    /// This round drew a bare acknowledgment that nothing else explains.
    answered: bool,
    answers: u8,
    silent: u8,
    mute: u8,
    /// Something came that may have been an answer.
    unclear: bool,
    /// What the peer had acknowledged when it was sent first.
    snd: Seq,
    /// Below this probes take their octets, each one of its own.
    anchor: Seq,
    probes: u8,
    probe: Option<Spec>,
    /// The peer names what it answers (RFC 2883).
    names: bool,
    /// An answer named the forged octets.
    named: bool,
    /// What was under way at the reset was waited for before the first probe.
    calm: bool,
    /// Probes and signs of life since the reset.
    asked: u8,
    signs: u8,
    /// The reset, and how it would be judged.
    reset: Option<(Reset, Fate)>,
}

impl Trial {
    /// The peer answers it at most every so often, whatever the answer's fate
    /// (`tcp_oow_rate_limited()` exempts data, `tcp_send_challenge_ack()` nothing).
    const fn rate_limited(&self) -> bool {
        self.last.payload.is_empty() && !self.forgery.silent_when_delivered()
    }

    /// The octet that the probe of this number takes.
    fn octet(&self, probe: u8) -> Seq {
        self.anchor.sub(3 + u32::from(probe))
    }

    /// True for the octet of a probe that was sent after the reset.
    fn asked_since_reset(&self, octet: Seq) -> bool {
        (0..self.asked).any(|n| self.octet(self.probes.saturating_sub(n)) == octet)
    }

    fn pause(&self) -> Duration {
        if self.rate_limited() { ANSWERS_AGAIN } else { PAUSE }
    }
}

/// Every connection at once.
#[derive(Debug)]
pub struct Flows {
    settings: Settings,
    table: Table,
    turn: usize,
    evicted: u64,
}

impl Flows {
    /// No connections yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let table = Table::new(settings.capacity);
        Self { settings, table, turn: 0, evicted: 0 }
    }

    /// Connections remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True when no connection is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// Connections forgotten before their judgement because the table was full,
    /// unanswered SYNs not among them.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// When [`Self::tick`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.table.next_deadline()
    }

    /// Takes an inbound segment that is read at `now`.
    pub fn segment(
        &mut self,
        now: Duration,
        arrival: Arrival,
        seg: &Segment<'_>,
        out: &mut Vec<Action>,
    ) {
        let tuple = FourTuple::new(seg.dst, seg.src);
        let opens = self.settings.end.opens(seg);
        let Some(key) = self.table.find(&tuple) else {
            // Another process may listen on this port of another address.
            if !self.settings.end.concerns(&tuple) {
                return;
            }
            if seg.flags.has(Flags::RST) {
                out.push(Action::Reset(reset(tuple, seg, ResetCause::UnknownConnection)));
            } else if opens {
                self.embryo(now, arrival, tuple, seg, out);
            }
            return;
        };
        if seg.flags.has(Flags::RST) {
            self.rst(now, arrival, key, seg, out);
        } else if opens {
            self.opened_again(now, arrival, key, seg, out);
        } else if seg.flags.has(Flags::ACK) && !seg.flags.has(Flags::SYN) {
            self.ack(now, arrival, key, seg, out);
        }
        // RFC 9293, section 3.10.7.4: without ACK a segment is dropped.
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        while let Some(key) = self.table.due(now) {
            match self.table.get_mut(key).state {
                State::Embryo => {
                    let Flow { tuple, syns, .. } = self.table.remove(key);
                    out.push(Action::Unfinished { tuple, syns });
                }
                State::Settled => {
                    self.table.remove(key);
                }
                State::Waiting => self.forge(now, key, false, out),
                State::Forged => self.silence(now, key, out),
                State::Pausing => self.round(now, key, out),
                State::Probed => self.round_over(now, key, false, out),
                State::Doubted => self.prove_life(now, key, out),
            }
        }
    }

    /// A forged segment could not be sent.
    pub fn send_failed(&mut self, now: Duration, tuple: &FourTuple, out: &mut Vec<Action>) {
        if let Some(key) = self.table.find(tuple) {
            self.settle(now, key, Fate::Unknown(UnknownReason::SendFailed), out);
        }
    }

    /// The run ends: what is not judged stays unknown. Returns how many.
    pub fn finish(&mut self, now: Duration, out: &mut Vec<Action>) -> u64 {
        let mut unjudged = 0;
        for key in self.table.keys() {
            let flow = self.table.get_mut(key);
            match flow.state {
                // A younger one may still be under way.
                State::Embryo if now >= flow.syn_at + CALM_HANDSHAKE => {
                    out.push(Action::Unfinished { tuple: flow.tuple, syns: flow.syns });
                }
                State::Embryo | State::Settled => {}
                State::Waiting => unjudged += 1,
                State::Forged | State::Pausing | State::Probed | State::Doubted => {
                    unjudged += u64::from(flow.fate.is_none());
                    self.abandon(now, key, UnknownReason::Interrupted, out);
                }
            }
        }
        unjudged
    }

    fn embryo(
        &mut self,
        now: Duration,
        arrival: Arrival,
        tuple: FourTuple,
        seg: &Segment<'_>,
        out: &mut Vec<Action>,
    ) {
        if let Some(mut victim) = self.table.make_room() {
            match victim.state {
                State::Waiting => {
                    self.evicted += 1;
                    out.push(Action::NotForged);
                }
                State::Forged | State::Pausing | State::Probed | State::Doubted => {
                    if victim.fate.is_none() {
                        self.evicted += 1;
                        let fate = Fate::Unknown(UnknownReason::Evicted);
                        judge::record(&mut victim, now, fate, out);
                    }
                }
                State::Embryo | State::Settled => {}
            }
        }
        out.push(Action::Opened { tuple, again: false });
        let key = self.table.insert(Flow::embryo(now, arrival, tuple, seg));
        if matches!(self.settings.end, End::Client { .. }) {
            // A SYN-ACK: the peer's numbers and ours are known, and our kernel
            // completes the handshake.
            let flow = self.table.get_mut(key);
            flow.snd = seg.ack;
            self.complete(now, key, AFTER_SYN_ACK, out);
        }
    }

    fn opened_again(
        &mut self,
        now: Duration,
        arrival: Arrival,
        key: Key,
        seg: &Segment<'_>,
        out: &mut Vec<Action>,
    ) {
        let flow = self.table.get_mut(key);
        if seg.seq == flow.isn {
            // Retransmitted, or a copy; on an established connection it is only old.
            if flow.state == State::Embryo {
                flow.syns = flow.syns.saturating_add(1);
                out.push(Action::Opened { tuple: flow.tuple, again: true });
            }
            return;
        }
        match flow.state {
            State::Embryo => {
                out.push(Action::Unfinished { tuple: flow.tuple, syns: flow.syns });
            }
            State::Settled => {}
            State::Waiting => out.push(Action::NotForged),
            State::Forged | State::Pausing | State::Probed | State::Doubted => {
                self.abandon(now, key, UnknownReason::Reused, out);
            }
        }
        let tuple = self.table.remove(key).tuple;
        self.embryo(now, arrival, tuple, seg, out);
    }

    fn ack(
        &mut self,
        now: Duration,
        arrival: Arrival,
        key: Key,
        seg: &Segment<'_>,
        out: &mut Vec<Action>,
    ) {
        let flow = self.table.get_mut(key);
        if flow.state != State::Embryo {
            return self.established(now, key, seg, out);
        }
        // What completes the handshake bears the first number, whether it is a
        // bare acknowledgment, or data because that was lost.
        if seg.seq != flow.isn.add(1) {
            return;
        }
        flow.rtt = arrival.at.saturating_sub(flow.syn_at);
        flow.rcv = seg.seq;
        flow.snd = seg.ack;
        flow.advance(seg);
        self.complete(now, key, Duration::ZERO, out);
    }

    /// The handshake is complete, and nothing is forged before `least`.
    fn complete(&mut self, now: Duration, key: Key, least: Duration, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        let tuple = flow.tuple;
        out.push(Action::Handshake(tuple));
        flow.state = State::Waiting;
        if !self.settings.end.judges(tuple.local.ip()) {
            flow.state = State::Settled;
            self.table.set_deadline(key, now + JUDGED_LIFE);
            out.push(Action::Elsewhere(tuple));
            return;
        }
        let unsettled = flow.syns > 1 || flow.rtt >= CALM_HANDSHAKE;
        let calm = if unsettled { ANSWERS_AGAIN } else { Duration::ZERO };
        let wait = self.settings.forge_delay.max(least).max(calm);
        if wait.is_zero() {
            self.forge(now, key, true, out);
        } else {
            self.table.set_deadline(key, now + wait);
        }
    }

    fn forge(&mut self, now: Duration, key: Key, at_once: bool, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        if flow.fin && !at_once || flow.dead || flow.gaps {
            // An answer could not be told from the close's own segments, or would not
            // bear the number that this end expects.
            out.push(Action::NotForged);
            flow.state = State::Settled;
            self.table.set_deadline(key, now + CLOSED_LIFE);
            return;
        }
        let forgery = self.settings.forgeries[self.turn % self.settings.forgeries.len()];
        self.turn = self.turn.wrapping_add(1);
        let spec = forgery::spec(forgery, flow.numbers());
        flow.state = State::Forged;
        flow.trial = Some(Trial {
            forgery,
            first: spec,
            last: spec,
            at: now,
            sent: now,
            round: 1,
            floor: flow.newest,
            in_stream: !at_once,
            probed: false,
            busy: false,
            answered: false,
            answers: 0,
            silent: 0,
            mute: 0,
            unclear: false,
            snd: flow.snd,
            anchor: flow.snd,
            probes: 0,
            probe: None,
            names: false,
            named: false,
            calm: false,
            asked: 0,
            signs: 0,
            reset: None,
        });
        let timestamps = flow.timestamps;
        let tuple = flow.tuple;
        let timeout = self.timeout(key);
        self.table.set_deadline(key, now + timeout);
        out.push(Action::Forge { tuple, forgery, spec, timestamps, at_once });
    }

    /// Several round trips as the handshake measured them, or longer.
    fn timeout(&mut self, key: Key) -> Duration {
        let rtt = self.table.get_mut(key).rtt;
        self.settings
            .outcome_timeout
            .max(rtt.saturating_mul(4))
            .min(MAX_TIMEOUT.max(self.settings.outcome_timeout))
    }

    /// The same for a repeated segment, whose answer is not the only one.
    fn gap(&mut self, key: Key) -> Duration {
        let rtt = self.table.get_mut(key).rtt;
        GAP.max(rtt.saturating_mul(4)).min(self.timeout(key))
    }
}

impl Flow {
    fn embryo(now: Duration, arrival: Arrival, tuple: FourTuple, seg: &Segment<'_>) -> Self {
        let options = seg.options();
        Self {
            tuple,
            state: State::Embryo,
            isn: seg.seq,
            rcv: seg.seq.add(1),
            ahead: None,
            gaps: false,
            snd: Seq(0),
            syn_at: arrival.at,
            syns: 1,
            rtt: Duration::ZERO,
            scale: options.window_scale.unwrap_or(0),
            window: None,
            // RFC 7323, section 2.2: the window of a SYN is not scaled.
            max_window: u32::from(seg.window),
            timestamps: options.timestamps,
            newest: options.timestamps.map(|(value, _)| value),
            ttl: arrival.ttl,
            sack: options.sack_permitted,
            fin: false,
            dead: false,
            trial: None,
            fate: None,
            deadline: now + EMBRYO_LIFE,
        }
    }

    const fn numbers(&self) -> Numbers {
        Numbers { snd: self.snd, rcv: self.rcv, peer_window: self.max_window }
    }

    /// True for a number that a living connection could bear now.
    fn plausible(&self, seq: Seq) -> bool {
        seq.since(self.rcv) < PLAUSIBLE || self.rcv.since(seq) < PLAUSIBLE
    }

    /// Takes note of what the peer sent and acknowledged.
    fn advance(&mut self, seg: &Segment<'_>) {
        let window = u32::from(seg.window) << self.scale;
        self.max_window = self.max_window.max(window);
        if self.timestamps.is_some()
            && let Some(ts) = seg.options().timestamps
        {
            self.timestamps = Some(ts);
            if self.newest.is_none_or(|n| newer(ts.0, n)) {
                self.newest = Some(ts.0);
            }
        }
        if seg.ack.after(self.snd) && seg.ack.since(self.snd) < PLAUSIBLE {
            self.snd = seg.ack;
        }
        self.window = Some(seg.window);
        self.receive(seg.seq, seg.seq.add(seg.seg_len()));
        self.fin |= seg.flags.has(Flags::FIN);
    }

    /// Only what joins on moves `rcv`: a gap means that this end waits for its
    /// filling, and has then what lies behind it too (RFC 9293, section 3.10.7.4).
    fn receive(&mut self, start: Seq, end: Seq) {
        let later = |a: Seq, b: Seq| if a.after(b) { a } else { b };
        if !start.after(self.rcv) {
            self.rcv = later(self.rcv, end);
            if let Some((_, to)) = self.ahead.take_if(|(from, _)| !from.after(self.rcv)) {
                self.rcv = later(self.rcv, to);
            }
        } else if start != end {
            let (from, to) = *self.ahead.get_or_insert((start, end));
            self.gaps |= start.after(to) || from.after(end);
            let from = if start.before(from) { start } else { from };
            self.ahead = Some((from, later(to, end)));
        }
    }
}

/// RFC 7323, section 5.2: timestamps wrap like sequence numbers.
const fn newer(a: u32, b: u32) -> bool {
    Seq(a).after(Seq(b))
}

#[cfg(test)]
mod tests;
