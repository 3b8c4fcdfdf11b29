//! Resets: which of them a forged segment provoked, and whether the peer was there when it did.

use canary_record::names::{Forgery, UnknownReason};
use canary_record::outcome::Fate;
use canary_wire::segment::{Flags, Segment};

use super::{
    Action, CLOSED_LIFE, Duration, Flow, Flows, Heard, Key, LIFE_GAP, LIFE_PROBES, ResetCause,
    State, reset,
};

impl Flows {
    pub(super) fn rst(&mut self, heard: Heard<'_>, key: Key, out: &mut Vec<Action>) {
        let Heard { now, seg, .. } = heard;
        let timeout = self.timeout(key);
        let flow = self.table.get_mut(key);
        let other = flow.other();
        if flow.state == State::Waiting && !flow.heard && seg.seq == flow.rcv.sub(1) {
            // What introduces it was reset: the server has not completed the handshake yet
            // (tcp_check_req()).
            return;
        }
        // RFC 9293, section 3.10.7.4: only this number ends the connection.
        let exact = seg.seq == flow.rcv;
        let tuple = flow.tuple;
        let trial = flow.trial.as_ref();
        if flow.was_poisoned(seg) {
            out.push(Action::Reset(reset(tuple, seg, ResetCause::Poisoned)));
            return self.ended(now, key, out);
        }
        // A copy, or another round's.
        let known = flow.state == State::Doubted
            || matches!(flow.fate, Some(Fate::Leaked { .. } | Fate::Rejected { .. }));
        let provoked = trial.is_some_and(|t| t.first.provokes(seg) || t.last.provokes(seg));
        // An application's (tcp_send_active_reset()): the peer has no connection any more, even
        // where something before it is still under way.
        let aborted = flow.aborted;
        flow.aborted |= !provoked && seg.flags.has(Flags::ACK) && flow.plausible(seg.seq);
        let trial = flow.trial.as_ref();
        if provoked && known {
            return;
        }
        let poisonous = flow.fate == Some(Fate::Delivered)
            && trial.is_some_and(|t| t.forgery == Forgery::Overshoot);
        if provoked && !flow.dead && !poisonous && trial.is_some_and(|t| !t.named) {
            // In mid-stream a segment of this end's own bears the same acknowledgment,
            // and may be reset later.
            let late = aborted
                || trial.is_some_and(|t| {
                    let own = t.in_stream || t.snd != flow.snd && exact;
                    own && (now >= t.sent + timeout || t.in_stream && flow.fin)
                });
            if !late {
                return self.doubt(heard, key, exact, out);
            }
            out.push(Action::Reset(reset(tuple, seg, other)));
            flow.dead |= exact;
            if flow.fate.is_none() {
                self.settle(now, key, Fate::Unknown(UnknownReason::AmbiguousReset), out);
            }
            return;
        }
        if trial.and_then(|t| t.probe).is_some_and(|p| p.provokes(seg)) {
            if flow.fate.is_some_and(Fate::killed) {
                // It met the kill: this end's own reset was there before it.
                return;
            }
            // What every living peer answers, this one does not know.
            out.push(Action::Reset(reset(tuple, seg, ResetCause::Gone)));
            match flow.state {
                State::Doubted => self.undecided(now, key, ResetCause::Gone, out),
                State::Forged | State::Pausing | State::Probed => {
                    self.settle(now, key, Fate::Unknown(UnknownReason::ClosedEarly), out);
                }
                State::HalfOpen | State::Waiting | State::Settled => {}
            }
            return;
        }
        out.push(Action::Reset(reset(tuple, seg, other)));
        if exact {
            self.ended(now, key, out);
        }
    }

    /// The reset that only the forged segment provokes: from a host that has no such
    /// connection because the segment was not translated, or because the peer is gone.
    fn doubt(&mut self, heard: Heard<'_>, key: Key, exact: bool, out: &mut Vec<Action>) {
        let Heard { now, arrival, seg } = heard;
        let flow = self.table.get_mut(key);
        let nearer = flow.is_nearer(arrival);
        let Some(trial) = flow.trial.as_mut() else { return };
        // A TCP without the connection repeats the segment's class in its reset
        // (tcp_v4_send_reset()), a rule that rejects does not (nf_reject_iphdr_put()).
        let fate = if nearer && arrival.class == Some(0) {
            Fate::Rejected { killed: exact }
        } else {
            Fate::Leaked { killed: exact, node: nearer }
        };
        let reset = reset(flow.tuple, seg, ResetCause::Forged(trial.forgery));
        trial.reset = Some((reset, fate));
        (trial.asked, trial.signs) = (0, 0);
        flow.dead |= exact;
        flow.state = State::Doubted;
        // A peer that names what it answers is asked at once. Another's answer is known by its
        // time alone, so what it sent before must have come; and it can be asked but once:
        // where this end's socket is gone, its answer draws a reset (TIME_WAIT: RFC 1337).
        trial.calm = flow.fin || !flow.sack || flow.newest.is_none();
        if !trial.calm {
            return self.prove_life(now, key, out);
        }
        let wait = LIFE_GAP.max(flow.rtt.saturating_mul(2));
        self.table.set_deadline(key, now + wait);
    }

    /// Asks the peer once more whether it is there.
    pub(super) fn prove_life(&mut self, now: Duration, key: Key, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        let newest = flow.newest;
        let Some(trial) = flow.trial.as_mut() else { return };
        if trial.asked >= LIFE_PROBES {
            let cause = flow.doubted();
            return self.undecided(now, key, cause, out);
        }
        trial.asked += 1;
        trial.floor = newest;
        trial.answered = false;
        // Longer each time: a host that is busy answers late.
        let gap = LIFE_GAP.max(flow.rtt.saturating_mul(2)) * (1 << (trial.asked - 1));
        let wait = gap.min(Duration::from_secs(1));
        flow.probe(now, out);
        self.table.set_deadline(key, now + wait);
    }

    /// A reset came, and nothing shows that the peer was there.
    fn undecided(&mut self, now: Duration, key: Key, cause: ResetCause, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        flow.disown(cause, out);
        if flow.fate.is_none() {
            return self.settle(now, key, Fate::Unknown(UnknownReason::AmbiguousReset), out);
        }
        flow.state = State::Settled;
        self.table.set_deadline(key, now + CLOSED_LIFE);
    }

    /// The peer is there: the reset was the forged segment's.
    pub(super) fn proven(&mut self, now: Duration, key: Key, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        if let Some((reset, fate)) = flow.trial.as_mut().and_then(|t| t.reset.take()) {
            out.push(Action::Reset(reset));
            self.settle(now, key, fate, out);
        }
    }

    /// An RST that no forged segment provoked ended the connection.
    fn ended(&mut self, now: Duration, key: Key, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        flow.dead = true;
        match flow.state {
            State::HalfOpen => {
                self.table.remove(key);
            }
            State::Waiting => {
                out.push(Action::NotForged);
                flow.state = State::Settled;
                self.table.set_deadline(key, now + CLOSED_LIFE);
            }
            State::Forged | State::Pausing | State::Probed => {
                self.settle(now, key, Fate::Unknown(UnknownReason::OtherReset), out);
            }
            State::Doubted => {
                let cause = flow.doubted();
                self.undecided(now, key, cause, out);
            }
            State::Settled => self.table.set_deadline(key, now + CLOSED_LIFE),
        }
    }
}

impl Flow {
    /// True for the reset that a host without this connection answers to the
    /// server's next own segment (RFC 9293, section 3.10.7.1), after an overshoot
    /// was delivered: acceptable, without the ACK bit that an application's reset
    /// has, and before the client closed. Nothing else forged here provokes it.
    fn was_poisoned(&self, rst: &Segment<'_>) -> bool {
        let overshot = self.trial.is_some_and(|t| t.forgery == Forgery::Overshoot);
        overshot
            && self.fate == Some(Fate::Delivered)
            && rst.seq == self.rcv
            && !rst.flags.has(Flags::ACK)
            && !self.fin
            && !self.dead
    }

    /// The cause of a reset that nothing forged explains.
    const fn other(&self) -> ResetCause {
        ResetCause::Other { expected: self.rcv, closed: self.fin || self.dead }
    }

    /// The reset that put the peer's life in doubt is not the forged segment's.
    pub(super) fn disown(&mut self, cause: ResetCause, out: &mut Vec<Action>) {
        let reset = self.trial.as_mut().and_then(|t| t.reset.take());
        out.extend(reset.map(|(reset, _)| Action::Reset(super::Reset { cause, ..reset })));
    }

    /// The cause of the reset that put the peer's life in doubt, where it is not the forged segment's.
    pub(super) const fn doubted(&self) -> ResetCause {
        ResetCause::Other { expected: self.rcv, closed: self.fin }
    }
}
