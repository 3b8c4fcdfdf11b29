//! What is remembered of one connection, and of the segment that is forged on it.

use std::time::Duration;

use canary_record::names::Forgery;
use canary_record::outcome::Fate;
use canary_wire::segment::{Flags, FourTuple, Segment};
use canary_wire::seq::Seq;

use super::action::Reset;
use super::{ANSWERS_AGAIN, CALM_HANDSHAKE, Heard, PAUSE};
use crate::forgery::{Numbers, Spec};

/// How long an unanswered SYN is remembered.
const HALF_OPEN_LIFE: Duration = Duration::from_secs(10);
/// Sequence numbers further from the expected one belong to no living connection
/// (RFC 7323, section 2.3: windows are smaller than 2^30).
const PLAUSIBLE: u32 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// SYN seen.
    HalfOpen,
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
pub(super) struct Flow {
    pub(super) tuple: FourTuple,
    pub(super) state: State,
    pub(super) isn: Seq,
    pub(super) rcv: Seq,
    /// What came behind a gap: received when that is filled.
    pub(super) ahead: Option<(Seq, Seq)>,
    /// There was more than one gap at once: `rcv` may lag behind from there on.
    pub(super) gaps: bool,
    pub(super) snd: Seq,
    /// When the first SYN came.
    pub(super) syn_at: Duration,
    pub(super) syns: u8,
    /// The round trip, or an upper bound of it; zero while nothing is known.
    pub(super) rtt: Duration,
    /// When the last probe was sent, or the first introduction.
    pub(super) asked_at: Duration,
    pub(super) scale: u8,
    /// As last seen, unscaled.
    pub(super) window: Option<u16>,
    pub(super) max_window: u32,
    pub(super) timestamps: Option<(u32, u32)>,
    /// The newest of the peer's timestamps.
    pub(super) newest: Option<u32>,
    /// TTL or hop limit of what opened the connection.
    pub(super) ttl: Option<u8>,
    /// The peer takes selective acknowledgments, and may name what it answers.
    pub(super) sack: bool,
    /// A FIN of the peer was seen.
    pub(super) fin: bool,
    /// The peer is known to have completed the handshake.
    pub(super) heard: bool,
    /// How often it was asked for that.
    pub(super) introduced: u8,
    /// A reset of the peer's application was seen, whatever its number.
    pub(super) aborted: bool,
    /// An RST that this end must accept was seen.
    pub(super) dead: bool,
    pub(super) trial: Option<Trial>,
    pub(super) fate: Option<Fate>,
    pub(super) deadline: Duration,
}

/// What is known of the forged segment.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each was observed or not, whatever the others")]
pub(super) struct Trial {
    pub(super) forgery: Forgery,
    /// As sent first, and as sent last: the numbers may have moved.
    pub(super) first: Spec,
    pub(super) last: Spec,
    /// When it was sent first, and last.
    pub(super) at: Duration,
    pub(super) sent: Duration,
    pub(super) round: u8,
    /// The peer's newest timestamp when the round, or the last proof of life, began.
    pub(super) floor: Option<u32>,
    /// Data of this end's may have been in flight when it was sent.
    pub(super) in_stream: bool,
    /// This round's probe was sent.
    pub(super) probed: bool,
    /// Something in this round, or before it, may hide the answer, or may be one.
    pub(super) busy: bool,
    /// Something else than the peer may have answered in this round, or in other numbers.
    pub(super) foreign: bool,
    /// Rounds of which that is so.
    pub(super) strange: u8,
    /// This round drew a bare acknowledgment that nothing else explains.
    pub(super) answered: bool,
    pub(super) answers: u8,
    pub(super) silent: u8,
    pub(super) mute: u8,
    /// Something came that may have been an answer.
    pub(super) unclear: bool,
    /// What the peer had acknowledged when it was sent first.
    pub(super) snd: Seq,
    /// Below this probes take their octets, each one of its own.
    pub(super) anchor: Seq,
    pub(super) probes: u8,
    pub(super) probe: Option<Spec>,
    /// The peer names what it answers (RFC 2883).
    pub(super) names: bool,
    /// An answer named the forged octets.
    pub(super) named: bool,
    /// What was under way at the reset was waited for before the first probe.
    pub(super) calm: bool,
    /// Probes and signs of life since the reset.
    pub(super) asked: u8,
    pub(super) signs: u8,
    /// The reset, and how it would be judged.
    pub(super) reset: Option<(Reset, Fate)>,
}

impl Trial {
    /// The peer answers it at most every so often, whatever the answer's fate
    /// (`tcp_oow_rate_limited()` exempts data, `tcp_send_challenge_ack()` nothing).
    pub(super) const fn rate_limited(&self) -> bool {
        self.last.payload.is_empty() && !self.forgery.silent_when_delivered()
    }

    /// A D-SACK would name its octets.
    pub(super) fn nameable(&self, snd: Seq) -> bool {
        !self.last.payload.is_empty() && self.last.is_old(snd)
    }

    /// The octet that the probe of this number takes.
    pub(super) fn octet(&self, probe: u8) -> Seq {
        self.anchor.sub(3 + u32::from(probe))
    }

    /// True for the octet of a probe that was sent after the reset.
    pub(super) fn asked_since_reset(&self, octet: Seq) -> bool {
        (0..self.asked).any(|n| self.octet(self.probes.saturating_sub(n)) == octet)
    }

    pub(super) fn pause(&self) -> Duration {
        if self.rate_limited() { ANSWERS_AGAIN } else { PAUSE }
    }
}

impl Flow {
    pub(super) fn half_open(heard: Heard<'_>, tuple: FourTuple) -> Self {
        let Heard { now, arrival, seg } = heard;
        let options = seg.options();
        Self {
            tuple,
            state: State::HalfOpen,
            isn: seg.seq,
            rcv: seg.seq.add(1),
            ahead: None,
            gaps: false,
            snd: Seq(0),
            syn_at: arrival.at,
            syns: 1,
            rtt: Duration::ZERO,
            asked_at: Duration::ZERO,
            scale: options.window_scale.unwrap_or(0),
            window: None,
            // RFC 7323, section 2.2: the window of a SYN is not scaled.
            max_window: u32::from(seg.window),
            timestamps: options.timestamps,
            newest: options.timestamps.map(|(value, _)| value),
            ttl: arrival.ttl,
            sack: options.sack_permitted,
            fin: false,
            heard: false,
            introduced: 0,
            aborted: false,
            dead: false,
            trial: None,
            fate: None,
            deadline: now + HALF_OPEN_LIFE,
        }
    }

    pub(super) const fn numbers(&self) -> Numbers {
        Numbers { snd: self.snd, rcv: self.rcv, peer_window: self.max_window }
    }

    /// A segment of the handshake may have been retransmitted: its time may be longer than the
    /// round trip then (RFC 6298, section 3).
    pub(super) fn retransmitted(&self) -> bool {
        self.syns > 1 || self.rtt >= CALM_HANDSHAKE
    }

    /// A probe's answer measures the round trip where nothing did before.
    pub(super) fn measured(&mut self, answered: Duration) {
        if self.retransmitted() || self.introduced > 1 {
            self.rtt = self.rtt.min(answered.saturating_sub(self.asked_at));
        }
    }

    /// True for a number that a living connection could bear now.
    pub(super) fn plausible(&self, seq: Seq) -> bool {
        seq.since(self.rcv) < PLAUSIBLE || self.rcv.since(seq) < PLAUSIBLE
    }

    /// Takes note of what the peer sent and acknowledged.
    pub(super) fn advance(&mut self, seg: &Segment<'_>) {
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
    pub(super) fn receive(&mut self, start: Seq, end: Seq) {
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
pub(super) const fn newer(a: u32, b: u32) -> bool {
    Seq(a).after(Seq(b))
}
