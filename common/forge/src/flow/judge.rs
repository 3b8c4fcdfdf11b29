//! Which answer means what.

use std::time::Duration;

use canary_record::names::{Forgery, UnknownReason};
use canary_record::outcome::Fate;
use canary_wire::segment::{Flags, Segment};

use super::table::Key;
use super::{
    Action, CLOSED_LIFE, Flow, Flows, Forged, JUDGED_LIFE, Judgement, ResetCause, State, reset,
};
use crate::forgery;

impl Flows {
    pub(super) fn rst(
        &mut self,
        now: Duration,
        key: Key,
        seg: &Segment<'_>,
        out: &mut Vec<Action>,
    ) {
        let timeout = self.timeout(key);
        let flow = self.table.get_mut(key);
        let other = ResetCause::Other { expected: flow.rcv };
        // RFC 9293, section 3.10.7.4: only this number ends the connection.
        let exact = seg.seq == flow.rcv;
        // One forged segment draws one answer: after another it is not this one's.
        let open = |f: &Forged| match flow.outcome {
            None | Some(Fate::Dropped | Fate::Unknown(UnknownReason::NoProofOfLife)) => true,
            // In mid-stream another segment may have drawn the one bare acknowledgment.
            // After an overshoot a later reset has a name of its own.
            Some(Fate::Delivered) => {
                f.in_stream && f.answers == 1 && f.forgery != Forgery::Overshoot
            }
            Some(_) => false,
        };
        let matched = flow.forged.filter(|f| f.spec.provokes(seg) && open(f) && !flow.dead);
        let Some(forged) = matched else {
            let cause = if flow.was_poisoned(seg) { ResetCause::Poisoned } else { other };
            out.push(Action::Reset(reset(flow.tuple, seg, cause)));
            if exact {
                self.ended(now, key, out);
            }
            return;
        };
        // A client that has closed resets whatever still reaches it, with the
        // same numbers where the server had sent data. In mid-stream a segment of the
        // server's own bears the same acknowledgment, and may be reset later.
        let late = flow.state != State::Forged && now >= forged.at + timeout;
        if flow.fin || (forged.in_stream && late) {
            out.push(Action::Reset(reset(flow.tuple, seg, other)));
            flow.dead |= exact;
            if flow.outcome.is_none() {
                self.settle(now, key, Fate::Unknown(UnknownReason::AmbiguousReset), out);
            }
            return;
        }
        out.push(Action::Reset(reset(flow.tuple, seg, ResetCause::Forged(forged.forgery))));
        flow.dead |= exact;
        self.settle(now, key, Fate::Leaked { killed: exact }, out);
    }

    /// An RST that no forged segment provoked ended the connection.
    fn ended(&mut self, now: Duration, key: Key, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        flow.dead = true;
        match flow.state {
            State::Embryo => {
                self.table.remove(key);
            }
            State::Waiting => {
                out.push(Action::NotForged);
                flow.state = State::Settled;
                self.table.set_deadline(key, now + CLOSED_LIFE);
            }
            State::Forged | State::Probed => {
                self.settle(now, key, Fate::Unknown(UnknownReason::OtherReset), out);
            }
            State::Settled => self.table.set_deadline(key, now + CLOSED_LIFE),
        }
    }

    pub(super) fn established(
        &mut self,
        now: Duration,
        key: Key,
        seg: &Segment<'_>,
        out: &mut Vec<Action>,
    ) {
        let flow = self.table.get_mut(key);
        if flow.dead || !flow.plausible(seg.seq) {
            return;
        }
        let answer = flow.reads_as(seg);
        let acks_before = flow.snd;
        flow.advance(seg);
        let hides = flow.snd != acks_before || answer == Some(Answer::Unclear);
        let fin = flow.fin;
        if let Some(f) = flow.forged.as_mut() {
            f.busy |= hides && f.in_stream && flow.state == State::Forged;
            f.alive |= flow.state == State::Probed;
        }
        match (flow.state, answer) {
            (State::Forged, Some(Answer::Duplicate)) => {
                if let Some(f) = flow.forged.as_mut() {
                    f.answers = 1;
                }
                self.settle(now, key, Fate::Delivered, out);
            }
            (State::Forged | State::Probed, Some(Answer::ToForged)) => {
                self.settle(now, key, Fate::Delivered, out);
            }
            (State::Probed, Some(Answer::ToProbe)) => self.last_word(now, key, out),
            (State::Probed, Some(Answer::Duplicate)) => {
                let answers = flow.forged.as_mut().map_or(0, |f| {
                    f.answers = f.answers.saturating_add(1);
                    f.answers
                });
                // One belongs to the probe, so the other is the forged segment's, late.
                if answers >= 2 {
                    self.settle(now, key, Fate::Delivered, out);
                }
            }
            (State::Settled, _) if fin => {
                self.table.set_deadline(key, now + CLOSED_LIFE);
            }
            _ => {}
        }
    }

    /// No answer in time: is the connection alive at all?
    pub(super) fn silence(&mut self, now: Duration, key: Key, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        if flow.fin {
            // A probe could meet a port that the client has given to another connection.
            return self.settle(now, key, Fate::Unknown(UnknownReason::ClosedEarly), out);
        }
        let Some(forged) = flow.forged.as_ref() else { return };
        let spec = forgery::life_probe(flow.numbers(), &forged.spec);
        flow.state = State::Probed;
        if let Some(f) = flow.forged.as_mut() {
            f.probe = Some(spec);
        }
        out.push(Action::Probe { tuple: flow.tuple, spec, timestamps: flow.timestamps });
        let timeout = self.timeout(key);
        self.table.set_deadline(key, now + timeout);
    }

    /// The probe was answered, or its time is up.
    pub(super) fn last_word(&mut self, now: Duration, key: Key, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        let f = flow.forged.as_ref();
        let fate = match f {
            // Acknowledgments of data may have been the answer: nothing is shown.
            Some(f) if f.busy => Fate::Unknown(UnknownReason::Busy),
            Some(f) if f.alive => Fate::Dropped,
            _ => Fate::Unknown(UnknownReason::NoProofOfLife),
        };
        self.settle(now, key, fate, out);
    }

    pub(super) fn settle(&mut self, now: Duration, key: Key, fate: Fate, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        record(flow, now, fate, out);
        flow.state = State::Settled;
        let life = if flow.dead || flow.fin { CLOSED_LIFE } else { JUDGED_LIFE };
        self.table.set_deadline(key, now + life);
    }
}

/// Notes the outcome and tells it, an earlier one replaced.
pub(super) fn record(flow: &mut Flow, now: Duration, fate: Fate, out: &mut Vec<Action>) {
    let Some(forged) = flow.forged else { return };
    let replaces = flow.outcome.replace(fate);
    out.push(Action::Judged(Judgement {
        tuple: flow.tuple,
        forgery: forged.forgery,
        fate,
        after: now.saturating_sub(forged.at),
        replaces,
    }));
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// A D-SACK names the forged octets.
    ToForged,
    /// A D-SACK names the probe's octet.
    ToProbe,
    /// A bare acknowledgment that acknowledges nothing new.
    Duplicate,
    /// One that another segment or the client's own reading has drawn.
    Unclear,
}

impl Flow {
    /// True for the reset that a host without this connection answers to the
    /// server's next own segment (RFC 9293, section 3.10.7.1), after an overshoot
    /// was delivered: acceptable, without the ACK bit that an application's reset
    /// has, and before the client closed. Nothing else forged here provokes it.
    fn was_poisoned(&self, rst: &Segment<'_>) -> bool {
        let overshot = self.forged.is_some_and(|f| f.forgery == Forgery::Overshoot);
        overshot
            && self.outcome == Some(Fate::Delivered)
            && rst.seq == self.rcv
            && !rst.flags.has(Flags::ACK)
            && !self.fin
            && !self.dead
    }

    /// What a segment without RST and SYN says of the forged one.
    fn reads_as(&self, seg: &Segment<'_>) -> Option<Answer> {
        let forged = self.forged.as_ref()?;
        let sack = seg.options().sack;
        if forged.spec.named_by(sack) {
            return Some(Answer::ToForged);
        }
        if forged.probe.is_some_and(|p| p.named_by(sack)) {
            return Some(Answer::ToProbe);
        }
        // RFC 9293, section 3.10.7.4: <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>. A
        // keep-alive probe of the client lies one before rcv.
        let bare = seg.payload_len == 0 && !seg.flags.has(Flags::FIN);
        if !bare || seg.ack != self.snd || seg.seq.before(self.rcv) {
            return None;
        }
        // Blocks name what they answer (RFC 2018, section 4; RFC 2883), and a window
        // that moved after data of the server's is an update (RFC 9293, section 3.8.6).
        let other = sack.is_some() || self.window.is_some_and(|w| w != seg.window);
        Some(if other { Answer::Unclear } else { Answer::Duplicate })
    }
}
