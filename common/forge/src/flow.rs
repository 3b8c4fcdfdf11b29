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
mod connection;
mod end;
mod judge;
mod reset;
mod table;

use std::time::Duration;

use canary_record::names::UnknownReason;
use canary_record::outcome::Fate;
use canary_wire::segment::{Flags, FourTuple, Segment};

use crate::forgery;
use action::reset;
pub use action::{Action, Judgement, Reset, ResetCause};
use connection::{Flow, State, Trial, newer};
use end::Heard;
pub use end::{Arrival, End, Settings};
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
/// From the first probe that shows a peer alive after a reset to the second; doubled each time.
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
/// How far below what was sent lies the octet of what introduces the client's end.
const INTRODUCTION: u32 = 200;
/// From the SYN-ACK to the client's first forged segment: the client's own
/// acknowledgment must have passed every conntrack on the way.
const AFTER_SYN_ACK: Duration = Duration::from_millis(20);
/// How long a judged connection is remembered, whatever its traffic.
const JUDGED_LIFE: Duration = Duration::from_secs(60);
/// How long one is remembered that has been closed or reset.
const CLOSED_LIFE: Duration = Duration::from_secs(1);
/// The longest time that is given to an answer, however slow the path.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// Every connection at once.
#[derive(Debug)]
pub struct Flows {
    settings: Settings,
    table: Table,
    /// How many were forged in IPv4, and in IPv6: each family gets every forgery.
    turns: [usize; 2],
    evicted: u64,
}

impl Flows {
    /// No connections yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let table = Table::new(settings.capacity);
        Self { settings, table, turns: [0; 2], evicted: 0 }
    }

    /// How many connections are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.table.len()
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
        let heard = Heard { now, arrival, seg };
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
                self.half_open(heard, tuple, out);
            }
            return;
        };
        if seg.flags.has(Flags::RST) {
            self.rst(heard, key, out);
        } else if opens {
            self.opened_again(heard, key, out);
        } else if seg.flags.has(Flags::ACK) && !seg.flags.has(Flags::SYN) {
            self.ack(heard, key, out);
        }
        // RFC 9293, section 3.10.7.4: without ACK a segment is dropped.
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        while let Some(key) = self.table.due(now) {
            match self.table.get_mut(key).state {
                State::HalfOpen => {
                    let Flow { tuple, syns, .. } = self.table.remove(key);
                    out.push(Action::Unfinished { tuple, syns });
                }
                State::Settled => {
                    self.table.remove(key);
                }
                State::Waiting => self.waited(now, key, out),
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
                State::HalfOpen if now >= flow.syn_at + CALM_HANDSHAKE => {
                    out.push(Action::Unfinished { tuple: flow.tuple, syns: flow.syns });
                }
                State::HalfOpen | State::Settled => {}
                State::Waiting => unjudged += 1,
                State::Forged | State::Pausing | State::Probed | State::Doubted => {
                    unjudged += u64::from(flow.fate.is_none());
                    self.abandon(now, key, UnknownReason::Interrupted, out);
                }
            }
        }
        unjudged
    }

    fn half_open(&mut self, heard: Heard<'_>, tuple: FourTuple, out: &mut Vec<Action>) {
        let now = heard.now;
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
                State::HalfOpen | State::Settled => {}
            }
        }
        out.push(Action::Opened { tuple, again: false });
        let key = self.table.insert(Flow::half_open(heard, tuple));
        if matches!(self.settings.end, End::Client { .. }) {
            // A SYN-ACK: the peer's numbers and ours are known, and our kernel
            // completes the handshake.
            let flow = self.table.get_mut(key);
            flow.snd = heard.seg.ack;
            self.complete(now, key, AFTER_SYN_ACK, out);
        }
    }

    fn opened_again(&mut self, heard: Heard<'_>, key: Key, out: &mut Vec<Action>) {
        let Heard { now, seg, .. } = heard;
        let flow = self.table.get_mut(key);
        if seg.seq == flow.isn {
            // Retransmitted, or a copy; on an established connection it is only old.
            if flow.state == State::HalfOpen {
                flow.syns = flow.syns.saturating_add(1);
                out.push(Action::Opened { tuple: flow.tuple, again: true });
            }
            return;
        }
        match flow.state {
            State::HalfOpen => {
                out.push(Action::Unfinished { tuple: flow.tuple, syns: flow.syns });
            }
            State::Settled => {}
            State::Waiting => out.push(Action::NotForged),
            State::Forged | State::Pausing | State::Probed | State::Doubted => {
                self.abandon(now, key, UnknownReason::Reused, out);
            }
        }
        let tuple = self.table.remove(key).tuple;
        self.half_open(heard, tuple, out);
    }

    fn ack(&mut self, heard: Heard<'_>, key: Key, out: &mut Vec<Action>) {
        let Heard { now, arrival, seg } = heard;
        let flow = self.table.get_mut(key);
        if flow.state != State::HalfOpen {
            return self.established(heard, key, out);
        }
        // What completes the handshake bears the first number, whether it is a
        // bare acknowledgment, or data because that was lost.
        if seg.seq != flow.isn.add(1) {
            // Data that overtook it.
            if flow.plausible(seg.seq) {
                flow.receive(seg.seq, seg.seq.add(seg.seg_len()));
                flow.fin |= seg.flags.has(Flags::FIN);
            }
            return;
        }
        flow.rtt = arrival.at.saturating_sub(flow.syn_at);
        flow.snd = seg.ack;
        flow.heard = true;
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
        let calm = if flow.retransmitted() { ANSWERS_AGAIN } else { Duration::ZERO };
        let wait = self.settings.forge_delay.max(least).max(calm);
        if wait.is_zero() {
            self.forge(now, key, true, out);
        } else {
            self.table.set_deadline(key, now + wait);
        }
    }

    /// The time before forging is over. The client's end knows nothing of the server's yet: one
    /// to which the handshake's last segment has not come resets what acknowledges anything
    /// else than its SYN (`tcp_check_req()`), and would seem to leak.
    fn waited(&mut self, now: Duration, key: Key, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        if flow.heard || flow.introduced >= LIFE_PROBES {
            return self.forge(now, key, false, out);
        }
        if flow.introduced == 0 {
            flow.asked_at = now;
        }
        flow.introduced += 1;
        let numbers = flow.numbers();
        let octet = numbers.snd.sub(INTRODUCTION + u32::from(flow.introduced));
        let spec = forgery::life_probe(numbers, octet, None);
        let wait = LIFE_GAP * u32::from(flow.introduced);
        out.push(Action::Probe { tuple: flow.tuple, spec, timestamps: flow.timestamps });
        self.table.set_deadline(key, now + wait);
    }

    fn forge(&mut self, now: Duration, key: Key, at_once: bool, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        let none = self.settings.forgeries.is_empty() || !flow.heard;
        if none || flow.fin && !at_once || flow.dead || flow.gaps || flow.aborted {
            // Nothing is asked for, or the peer is not there; or an answer could not be told from
            // the close's own segments, or would not bear the number that this end expects.
            out.push(Action::NotForged);
            flow.state = State::Settled;
            self.table.set_deadline(key, now + CLOSED_LIFE);
            return;
        }
        let turn = &mut self.turns[flow.tuple.family() as usize];
        let forgery = self.settings.forgeries[*turn % self.settings.forgeries.len()];
        *turn = turn.wrapping_add(1);
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
            snd: flow.snd,
            anchor: flow.snd,
            ..Trial::default()
        });
        let timestamps = flow.timestamps;
        let tuple = flow.tuple;
        let timeout = self.timeout(key);
        self.table.set_deadline(key, now + timeout);
        out.push(Action::Forge { tuple, forgery, spec, timestamps, at_once });
    }

    /// Several round trips as they were measured, or longer.
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

#[cfg(test)]
mod tests;
