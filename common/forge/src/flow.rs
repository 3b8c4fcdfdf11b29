//! The state machine of every connection, from its handshake to the judgement
//! of the one segment that is forged on it.
//!
//! It sees inbound segments alone, as a raw socket does. Times are durations
//! since the program began. Nothing here sends or logs: what is to be done
//! comes back as [`Action`]s.

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
/// How long the answer to a second SYN-ACK may keep the client from answering
/// another segment without data: net.ipv4.tcp_invalid_ratelimit is 500 ms, and a
/// little for the way.
const ANSWERS_AGAIN: Duration = Duration::from_millis(600);
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
    /// Where connections are accepted. 0.0.0.0 stands for every IPv4 address, `[::]` for
    /// every address.
    pub listen: Vec<SocketAddr>,
    /// The addresses that connections are judged for; empty for every one.
    pub local: Vec<IpAddr>,
}

impl Settings {
    fn listens(&self, to: SocketAddr) -> bool {
        self.listen.iter().any(|l| {
            let ip = l.ip().to_canonical();
            let any = ip.is_unspecified() && (ip.is_ipv6() || to.is_ipv4());
            l.port() == to.port() && (any || ip == to.ip())
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// SYN seen.
    Embryo,
    /// Handshake complete, nothing forged yet.
    Waiting,
    /// Forged, no answer yet.
    Forged,
    /// No answer in time; probed for life.
    Probed,
    /// Judged, or never forged.
    Settled,
}

#[derive(Clone, Debug)]
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
    /// As last seen, unscaled, once data of the server's was acknowledged.
    window: Option<u16>,
    max_window: u32,
    timestamps: Option<(u32, u32)>,
    /// A FIN of the client was seen.
    fin: bool,
    /// An RST that the server must accept was seen.
    dead: bool,
    forged: Option<Forged>,
    outcome: Option<Fate>,
    deadline: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Forged {
    forgery: Forgery,
    spec: Spec,
    at: Duration,
    /// Segments came between the forged segment and the life probe that may hide the
    /// answer, while the server may have had data in flight.
    busy: bool,
    /// Whether data may have been in flight when it was sent.
    in_stream: bool,
    probe: Option<Spec>,
    /// Bare acknowledgments that may be answers.
    answers: u8,
    alive: bool,
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

    /// Takes an inbound segment that the kernel received at `arrived`, which may
    /// be well before `now` on a busy machine.
    pub fn segment(
        &mut self,
        now: Duration,
        arrived: Duration,
        seg: &Segment<'_>,
        out: &mut Vec<Action>,
    ) {
        let tuple = FourTuple::new(seg.dst, seg.src);
        let Some(key) = self.table.find(&tuple) else {
            // Another process may listen on this port of another address.
            if !self.settings.listens(tuple.local) {
                return;
            }
            if seg.flags.has(Flags::RST) {
                out.push(Action::Reset(reset(tuple, seg, ResetCause::UnknownConnection)));
            } else if opens(seg) {
                self.embryo(now, arrived, tuple, seg, out);
            }
            return;
        };
        if seg.flags.has(Flags::RST) {
            self.rst(now, key, seg, out);
        } else if opens(seg) {
            self.syn(now, arrived, key, seg, out);
        } else if seg.flags.has(Flags::ACK) && !seg.flags.has(Flags::SYN) {
            self.ack(now, arrived, key, seg, out);
        }
        // RFC 9293, section 3.10.7.4: without ACK a segment is dropped.
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        while let Some(key) = self.table.due(now) {
            let flow = self.table.get_mut(key);
            match flow.state {
                State::Embryo | State::Settled => {
                    self.table.remove(key);
                }
                State::Waiting => self.forge(now, key, false, out),
                State::Forged => self.silence(now, key, out),
                State::Probed => self.last_word(now, key, out),
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
            match self.table.get_mut(key).state {
                State::Embryo | State::Settled => {}
                State::Waiting => unjudged += 1,
                State::Forged | State::Probed => {
                    unjudged += 1;
                    self.settle(now, key, Fate::Unknown(UnknownReason::Interrupted), out);
                }
            }
        }
        unjudged
    }

    fn embryo(
        &mut self,
        now: Duration,
        arrived: Duration,
        tuple: FourTuple,
        seg: &Segment<'_>,
        out: &mut Vec<Action>,
    ) {
        if let Some(mut victim) = self.table.make_room()
            && victim.state != State::Embryo
        {
            match victim.state {
                State::Waiting => {
                    self.evicted += 1;
                    out.push(Action::NotForged);
                }
                State::Forged | State::Probed => {
                    self.evicted += 1;
                    judge::record(&mut victim, now, Fate::Unknown(UnknownReason::Evicted), out);
                }
                State::Embryo | State::Settled => {}
            }
        }
        self.table.insert(Flow::embryo(now, arrived, tuple, seg));
    }

    fn syn(
        &mut self,
        now: Duration,
        arrived: Duration,
        key: Key,
        seg: &Segment<'_>,
        out: &mut Vec<Action>,
    ) {
        let flow = self.table.get_mut(key);
        if seg.seq == flow.isn {
            // Retransmitted; on an established connection it is only old.
            if flow.state == State::Embryo {
                flow.syns = flow.syns.saturating_add(1);
            }
            return;
        }
        match flow.state {
            State::Embryo | State::Settled => {}
            State::Waiting => out.push(Action::NotForged),
            State::Forged | State::Probed => {
                self.settle(now, key, Fate::Unknown(UnknownReason::Reused), out);
            }
        }
        let tuple = self.table.remove(key).tuple;
        self.table.insert(Flow::embryo(now, arrived, tuple, seg));
    }

    fn ack(
        &mut self,
        now: Duration,
        arrived: Duration,
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
        out.push(Action::Handshake);
        flow.rtt = arrived.saturating_sub(flow.syn_at);
        flow.rcv = seg.seq;
        flow.snd = seg.ack;
        flow.state = State::Waiting;
        flow.advance(seg);
        let tuple = flow.tuple;
        if !self.settings.local.is_empty() && !self.settings.local.contains(&tuple.local.ip()) {
            flow.state = State::Settled;
            self.table.set_deadline(key, now + JUDGED_LIFE);
            out.push(Action::Elsewhere(tuple));
            return;
        }
        let unsettled = flow.syns > 1 || flow.rtt >= CALM_HANDSHAKE;
        let wait = if unsettled {
            self.settings.forge_delay.max(ANSWERS_AGAIN)
        } else {
            self.settings.forge_delay
        };
        if wait.is_zero() {
            self.forge(now, key, true, out);
        } else {
            self.table.set_deadline(key, now + wait);
        }
    }

    fn forge(&mut self, now: Duration, key: Key, at_once: bool, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        if flow.fin || flow.dead || flow.gaps {
            // An answer could not be told from the close's own segments, or would not
            // bear the number that the server expects.
            out.push(Action::NotForged);
            flow.state = State::Settled;
            self.table.set_deadline(key, now + CLOSED_LIFE);
            return;
        }
        let forgery = self.settings.forgeries[self.turn % self.settings.forgeries.len()];
        self.turn = self.turn.wrapping_add(1);
        let spec = forgery::spec(forgery, flow.numbers());
        flow.state = State::Forged;
        flow.forged = Some(Forged {
            forgery,
            spec,
            at: now,
            busy: false,
            in_stream: !at_once,
            probe: None,
            answers: 0,
            alive: false,
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
}

/// A segment that asks for a connection.
fn opens(seg: &Segment<'_>) -> bool {
    // RFC 9293, section 3.10.7.2: in LISTEN an ACK is answered with a reset.
    seg.flags.has(Flags::SYN) && seg.flags.0 & (Flags::ACK.0 | Flags::RST.0 | Flags::FIN.0) == 0
}

impl Flow {
    fn embryo(now: Duration, arrived: Duration, tuple: FourTuple, seg: &Segment<'_>) -> Self {
        let options = seg.options();
        Self {
            tuple,
            state: State::Embryo,
            isn: seg.seq,
            rcv: seg.seq.add(1),
            ahead: None,
            gaps: false,
            snd: Seq(0),
            syn_at: arrived,
            syns: 1,
            rtt: Duration::ZERO,
            scale: options.window_scale.unwrap_or(0),
            window: None,
            // RFC 7323, section 2.2: the window of a SYN is not scaled.
            max_window: u32::from(seg.window),
            timestamps: options.timestamps,
            fin: false,
            dead: false,
            forged: None,
            outcome: None,
            deadline: now + EMBRYO_LIFE,
        }
    }

    const fn numbers(&self) -> Numbers {
        Numbers { snd: self.snd, rcv: self.rcv, client_window: self.max_window }
    }

    /// True for a number that a living connection could bear now.
    fn plausible(&self, seq: Seq) -> bool {
        seq.since(self.rcv) < PLAUSIBLE || self.rcv.since(seq) < PLAUSIBLE
    }

    /// Takes note of what the client sent and acknowledged.
    fn advance(&mut self, seg: &Segment<'_>) {
        let window = u32::from(seg.window) << self.scale;
        self.max_window = self.max_window.max(window);
        if self.timestamps.is_some()
            && let Some(ts) = seg.options().timestamps
        {
            self.timestamps = Some(ts);
        }
        if seg.ack.after(self.snd) && seg.ack.since(self.snd) < PLAUSIBLE {
            self.snd = seg.ack;
            self.window = Some(seg.window);
        }
        self.window = self.window.and(Some(seg.window));
        self.receive(seg.seq, seg.seq.add(seg.seg_len()));
        self.fin |= seg.flags.has(Flags::FIN);
    }

    /// Only what joins on moves `rcv`: a gap means that the server waits for its
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

#[cfg(test)]
mod tests;
