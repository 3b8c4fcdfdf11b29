//! Rounds and their answers: what each segment but a reset says of the forged one.

use std::time::Duration;

use canary_record::names::{Forgery, UnknownReason};
use canary_record::outcome::Fate;
use canary_wire::segment::{Flags, Segment};
use canary_wire::seq::Seq;

use super::table::Key;
use super::{
    ANSWERS_AGAIN, Action, Arrival, CLOSED_LIFE, Flow, Flows, Heard, JUDGED_LIFE, Judgement, MUTE,
    PAUSE, ROUNDS, SILENT, State, Trial, newer,
};
use crate::forgery;

impl Flows {
    pub(super) fn established(&mut self, heard: Heard<'_>, key: Key, out: &mut Vec<Action>) {
        let Heard { now, arrival, seg } = heard;
        let flow = self.table.get_mut(key);
        if !flow.plausible(seg.seq) || flow.dead && flow.state != State::Doubted {
            return;
        }
        let nearer = flow.is_nearer(arrival);
        let answer = flow.reads_as(seg, nearer);
        let (acked, timed, newest) = (flow.snd, flow.timestamps.is_some(), flow.newest);
        let closed = flow.fin;
        if !nearer {
            flow.advance(seg);
        }
        let moved = flow.snd != acked;
        let fin = flow.fin;
        let state = flow.state;
        if state == State::Waiting {
            return self.heard(now, arrival, key);
        }
        let Some(trial) = flow.trial.as_mut() else {
            return;
        };
        if answer == Some(Answer::ToForged) {
            trial.named = true;
            trial.names = true;
        }
        trial.names |= answer == Some(Answer::ToProbe);
        let fresh = is_fresh(trial, newest, seg, now) && answer != Some(Answer::Foreign);
        // A copy; or the peer's clock has not ticked, and it was the answer.
        let same = newest.is_some() && newest == seg.options().timestamps.map(|(value, _)| value);
        match state {
            State::Doubted => match answer {
                // It arrived; then the peer closed, and met a copy of it.
                Some(Answer::ToForged) => {
                    flow.disown(flow.doubted(), out);
                    flow.state = State::Settled;
                    self.settle_as(now, key, Fate::Delivered, out);
                }
                Some(Answer::ToProbe) => self.proven(now, key, out),
                // Its FIN comes after the reset, or it acknowledges this end's, which was sent after
                // the forged segment: a host that is gone does neither. A probe may come too
                // late, for where the reset ended this end's socket, that resets the peer's
                // (tcp_reset_check(), TIME_WAIT: RFC 1337).
                None if fin && (moved || !closed) && !nearer => self.proven(now, key, out),
                _ if fresh && !trial.answered && trial.asked > 0 => {
                    trial.answered = true;
                    trial.signs += 1;
                    // One may have been under way since before the peer was gone.
                    if trial.calm || trial.signs >= needed(timed) {
                        self.proven(now, key, out);
                    }
                }
                _ => {}
            },
            State::Forged | State::Pausing | State::Probed => {
                trial.busy |= moved;
                match answer {
                    Some(Answer::ToForged) => self.settle(now, key, Fate::Delivered, out),
                    Some(Answer::ToProbe) if state == State::Probed => {
                        flow.measured(arrival.at);
                        self.round_over(now, key, true, out);
                    }
                    Some(Answer::Bare)
                        if state == State::Probed && !trial.names && (fresh || !timed) =>
                    {
                        self.round_over(now, key, true, out);
                    }
                    // A copy of the probe was answered too.
                    Some(Answer::Bare)
                        if state == State::Pausing && trial.probed && !trial.names => {}
                    // This peer would have named the octets.
                    Some(Answer::Bare) if trial.names && trial.nameable(flow.snd) => {
                        (trial.unclear, trial.foreign) = (true, true);
                    }
                    Some(Answer::Bare) => {
                        trial.foreign |= same;
                        self.bare(now, key, fresh, out);
                    }
                    Some(Answer::Update) => {
                        trial.unclear = true;
                        trial.busy |= trial.in_stream || trial.round > 1;
                    }
                    Some(Answer::Foreign) => (trial.unclear, trial.foreign) = (true, true),
                    Some(Answer::ToProbe) | None => {}
                }
            }
            State::Settled => match answer {
                // Exact evidence, however late.
                Some(Answer::ToForged)
                    if matches!(flow.fate, Some(Fate::Dropped | Fate::Unknown(_))) =>
                {
                    self.settle_as(now, key, Fate::Delivered, out);
                }
                Some(Answer::Bare)
                    if fresh && trial.names && flow.fate == Some(Fate::Dropped) && !fin =>
                {
                    let unclear = Fate::Unknown(UnknownReason::UnclearAnswer);
                    if now < trial.sent + ANSWERS_AGAIN {
                        self.settle_as(now, key, unclear, out);
                    }
                }
                _ if fin => self.table.set_deadline(key, now + CLOSED_LIFE),
                _ => {}
            },
            State::HalfOpen | State::Waiting => {}
        }
    }

    /// The peer speaks before anything is forged.
    fn heard(&mut self, now: Duration, arrival: Arrival, key: Key) {
        let flow = self.table.get_mut(key);
        let first = !std::mem::replace(&mut flow.heard, true);
        if flow.introduced > 0 {
            if first {
                flow.rtt = arrival.at.saturating_sub(flow.asked_at);
            }
            let at = flow.deadline.min(now + PAUSE);
            self.table.set_deadline(key, at);
        }
    }

    /// A bare acknowledgment that repeats the last: an answer, a copy, or something else's.
    fn bare(&mut self, now: Duration, key: Key, fresh: bool, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        let timed = flow.timestamps.is_some();
        let Some(trial) = flow.trial.as_mut() else { return };
        trial.unclear = true;
        if !fresh {
            trial.busy = true;
        } else if !trial.answered && !trial.busy {
            // A segment of this end's own that comes late draws the same: not in a round in
            // which the peer acknowledged something.
            trial.answered = true;
            trial.answers += 1;
            if trial.answers >= needed(timed) {
                return self.settle(now, key, Fate::Delivered, out);
            }
        }
        if flow.state == State::Forged && (fresh || trial.round == 1) {
            let next = trial.sent + trial.pause();
            let pause = if timed { PAUSE } else { super::GAP };
            flow.state = State::Pausing;
            trial.busy = false;
            self.table.set_deadline(key, next.max(now + pause));
        }
    }

    /// No answer in time: is the connection alive at all?
    pub(super) fn silence(&mut self, now: Duration, key: Key, out: &mut Vec<Action>) {
        let gap = if self.table.get_mut(key).trial.is_some_and(|t| t.round == 1) {
            self.timeout(key)
        } else {
            self.gap(key)
        };
        let flow = self.table.get_mut(key);
        if flow.fin {
            // A probe could meet a port that the peer has given to another connection, and
            // its answer would end the peer's TIME_WAIT (RFC 1337).
            return self.settle(now, key, Fate::Unknown(UnknownReason::ClosedEarly), out);
        }
        flow.state = State::Probed;
        if let Some(trial) = flow.trial.as_mut() {
            trial.probed = true;
        }
        flow.probe(now, out);
        self.table.set_deadline(key, now + gap);
    }

    /// The probe was answered, or its time is up.
    pub(super) fn round_over(
        &mut self,
        now: Duration,
        key: Key,
        life: bool,
        out: &mut Vec<Action>,
    ) {
        let gap = self.gap(key);
        let flow = self.table.get_mut(key);
        let Some(trial) = flow.trial.as_mut() else { return };
        if life {
            trial.mute = 0;
            // What is named is seen in any traffic.
            let seen = !trial.busy || trial.names && trial.nameable(flow.snd);
            if trial.foreign {
                trial.strange += 1;
            } else if seen && !trial.answered {
                trial.silent += 1;
            }
            // Among rounds that were answered somehow, silence may be loss.
            if trial.silent >= SILENT.max(3 * trial.strange) && trial.answers == 0 {
                return self.settle(now, key, Fate::Dropped, out);
            }
        } else {
            trial.mute += 1;
            if trial.mute >= MUTE {
                let why = if trial.unclear {
                    UnknownReason::UnclearAnswer
                } else {
                    UnknownReason::NoProofOfLife
                };
                return self.settle(now, key, Fate::Unknown(why), out);
            }
        }
        // An unnamed answer to a copy of the probe must not fall into the next round, and the
        // peer's clock must have ticked since a named one.
        let calm = now + if trial.names { PAUSE } else { gap };
        let next = if trial.rate_limited() { calm.max(trial.sent + ANSWERS_AGAIN) } else { calm };
        flow.state = State::Pausing;
        trial.busy = false;
        self.table.set_deadline(key, next);
    }

    /// Sends the forged segment once more.
    pub(super) fn round(&mut self, now: Duration, key: Key, out: &mut Vec<Action>) {
        let gap = self.gap(key);
        let flow = self.table.get_mut(key);
        let (numbers, newest) = (flow.numbers(), flow.newest);
        let Some(trial) = flow.trial.as_mut() else { return };
        let given_up = if flow.gaps {
            Some(UnknownReason::Busy)
        } else if flow.fin {
            Some(UnknownReason::ClosedEarly)
        } else if trial.round >= ROUNDS {
            // Acknowledgments of data may have hidden the answer; others may have been it.
            Some(if trial.unclear { UnknownReason::UnclearAnswer } else { UnknownReason::Busy })
        } else {
            None
        };
        if let Some(reason) = given_up {
            return self.settle(now, key, Fate::Unknown(reason), out);
        }
        // An overshoot was measured against the window of its first time.
        if trial.forgery != Forgery::Overshoot {
            trial.last = forgery::spec(trial.forgery, numbers);
        }
        trial.round += 1;
        trial.sent = now;
        trial.floor = newest;
        (trial.foreign, trial.answered, trial.probed) = (false, false, false);
        flow.state = State::Forged;
        out.push(Action::Probe {
            tuple: flow.tuple,
            spec: trial.last,
            timestamps: flow.timestamps,
        });
        self.table.set_deadline(key, now + gap);
    }

    /// What is not judged is given up; what is, stays.
    pub(super) fn abandon(
        &mut self,
        now: Duration,
        key: Key,
        why: UnknownReason,
        out: &mut Vec<Action>,
    ) {
        let flow = self.table.get_mut(key);
        if flow.state == State::Doubted {
            flow.disown(flow.doubted(), out);
        }
        if self.table.get_mut(key).fate.is_none() {
            self.settle(now, key, Fate::Unknown(why), out);
        }
    }

    /// As [`Self::settle`], where it says something else than before.
    fn settle_as(&mut self, now: Duration, key: Key, fate: Fate, out: &mut Vec<Action>) {
        if self.table.get_mut(key).fate != Some(fate) {
            self.settle(now, key, fate, out);
        }
    }

    pub(super) fn settle(&mut self, now: Duration, key: Key, fate: Fate, out: &mut Vec<Action>) {
        let flow = self.table.get_mut(key);
        record(flow, now, fate, out);
        flow.state = State::Settled;
        let life = if flow.dead || flow.fin { CLOSED_LIFE } else { JUDGED_LIFE };
        self.table.set_deadline(key, now + life);
    }
}

/// How many rounds must have drawn an acknowledgment that nothing else explains. Without
/// timestamps a copy cannot be told from an answer: three then.
const fn needed(timed: bool) -> u8 {
    if timed { 2 } else { 3 }
}

/// True for a segment that the peer sent after the round had begun, by its own clock, and
/// that copies nothing seen before: `newest` is the time of that. Without a clock, in a
/// later round than the first.
fn is_fresh(trial: &Trial, newest: Option<u32>, seg: &Segment<'_>, now: Duration) -> bool {
    match (trial.floor, seg.options().timestamps) {
        (Some(floor), Some((value, _))) => {
            newer(value, floor) && newest.is_none_or(|n| newer(value, n))
        }
        (Some(_), None) => false,
        (None, _) => trial.round > 1 && now > trial.sent || trial.reset.is_some(),
    }
}

/// Notes the fate and tells it, an earlier one replaced.
pub(super) fn record(flow: &mut Flow, now: Duration, fate: Fate, out: &mut Vec<Action>) {
    let Some(trial) = flow.trial else { return };
    let replaces = flow.fate.replace(fate);
    out.push(Action::Judged(Judgement {
        tuple: flow.tuple,
        forgery: trial.forgery,
        spec: trial.first,
        fate,
        after: now.saturating_sub(trial.at),
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
    Bare,
    /// One whose window has changed: the peer's own reading has drawn it, or may have.
    Update,
    /// One that names octets never sent here, or that a node on the way sent: something
    /// between the ends renumbers or answers.
    Foreign,
}

impl Flow {
    /// Sends a probe with an octet of its own.
    pub(super) fn probe(&mut self, now: Duration, out: &mut Vec<Action>) {
        let numbers = self.numbers();
        self.asked_at = now;
        let Some(trial) = self.trial.as_mut() else { return };
        trial.probes = trial.probes.saturating_add(1);
        // A new octet each time, so that an answer tells which probe it answers.
        trial.anchor = if self.snd.since(trial.anchor) > 20_000 { self.snd } else { trial.anchor };
        let spec = forgery::life_probe(numbers, trial.octet(trial.probes), Some(&trial.last));
        trial.probe = Some(spec);
        out.push(Action::Probe { tuple: self.tuple, spec, timestamps: self.timestamps });
    }

    /// True for a segment that crossed fewer nodes than what opened the connection: another
    /// sent it in the peer's name.
    pub(super) fn is_nearer(&self, arrival: Arrival) -> bool {
        matches!((arrival.ttl, self.ttl), (Some(this), Some(first)) if this > first)
    }

    /// What a segment without RST and SYN says of the forged one.
    fn reads_as(&self, seg: &Segment<'_>, nearer: bool) -> Option<Answer> {
        let trial = self.trial.as_ref()?;
        let sack = seg.options().sack;
        let bare = seg.payload_len == 0 && !seg.flags.has(Flags::FIN);
        if nearer {
            return bare.then_some(Answer::Foreign);
        }
        if trial.first.named_by(sack) || trial.last.named_by(sack) {
            return Some(Answer::ToForged);
        }
        // On a slow path the next probe is sent before the answer to the last has come. Each
        // of those since the reset shows that the peer was there after it.
        let since_reset =
            |(from, to): (Seq, Seq)| to == from.add(1) && trial.asked_since_reset(from);
        if trial.probe.is_some_and(|p| p.named_by(sack))
            || self.state == State::Doubted && sack.is_some_and(since_reset)
        {
            return Some(Answer::ToProbe);
        }
        // RFC 9293, section 3.10.7.4: <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>. A
        // keep-alive probe of the peer lies one before rcv.
        if !bare || seg.ack != self.snd || seg.seq.before(self.rcv) {
            return None;
        }
        // An octet of an earlier probe: a copy of its answer, or a late one.
        let earlier = |(from, to): (Seq, Seq)| to == from.add(1) && trial.anchor.since(from) < 256;
        if sack.is_some_and(earlier) && trial.probe.is_some() {
            return None;
        }
        // Blocks name what they answer (RFC 2018, section 4; RFC 2883).
        if sack.is_some() {
            return Some(Answer::Foreign);
        }
        // Where the window has moved it is an update (RFC 9293, section 3.8.6). That of a SYN
        // is not scaled, and says nothing.
        let update = self.window != Some(seg.window);
        Some(if update { Answer::Update } else { Answer::Bare })
    }
}
