//! Which answer means what; `life` has the rest.

mod life;

use std::net::SocketAddr;

use super::*;
use canary_record::names::UnknownReason as Why;

const ISN: Seq = Seq(0xffff_fff0);
/// The server's first number as the client acknowledges it, near the wrap too.
const SND: Seq = Seq(0xffff_ff00);
const TIMEOUT: Duration = Duration::from_millis(400);
const KILLED: Fate = Fate::Leaked { killed: true };
const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn settings(forgeries: &[Forgery]) -> Settings {
    Settings {
        forgeries: forgeries.to_vec(),
        outcome_timeout: TIMEOUT,
        forge_delay: Duration::ZERO,
        capacity: 100,
        listen: vec![SocketAddr::from(([0, 0, 0, 0], 9000))],
        local: Vec::new(),
    }
}

/// SYN options of Linux: MSS, SACK permitted, timestamps, scale 7.
const SYN_OPTIONS: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7];

/// One client and the state machine under test.
struct Play {
    flows: Flows,
    now: Duration,
    port: u16,
    out: Vec<Action>,
}

/// The base of every segment: no data, nothing special.
fn plain(port: u16) -> Segment<'static> {
    Segment {
        src: SocketAddr::from(([198, 18, 0, 2], port)),
        dst: SocketAddr::from(([198, 18, 0, 1], 9000)),
        seq: ISN.add(1),
        ack: SND,
        flags: Flags::ACK,
        window: 502,
        options: &[],
        payload_len: 0,
    }
}

impl Play {
    fn new(forgery: Forgery) -> Self {
        Self::with(settings(&[forgery]))
    }

    fn with(settings: Settings) -> Self {
        Self { flows: Flows::new(settings), now: ms(0), port: 40000, out: Vec::new() }
    }

    /// A connection on which the segment is forged 100 ms after its handshake.
    fn mid_stream(forgery: Forgery) -> Self {
        let mut p = Self::with(Settings { forge_delay: ms(100), ..settings(&[forgery]) });
        p.handshake();
        p
    }

    fn gets(&mut self, seg: &Segment<'_>) -> &mut Self {
        self.flows.segment(self.now, self.now, seg, &mut self.out);
        self
    }

    fn base(&self) -> Segment<'static> {
        plain(self.port)
    }

    fn syn(&mut self) -> &mut Self {
        let seg = Segment {
            seq: ISN,
            ack: Seq(0),
            flags: Flags::SYN,
            options: SYN_OPTIONS,
            ..self.base()
        };
        self.gets(&seg)
    }

    fn ack(&mut self) -> &mut Self {
        let seg = self.base();
        self.gets(&seg)
    }

    fn fin(&mut self) -> &mut Self {
        let seg = Segment { flags: Flags::FIN.with(Flags::ACK), ..self.base() };
        self.gets(&seg)
    }

    fn rst(&mut self, seq: Seq) -> &mut Self {
        let seg = Segment { seq, ack: Seq(0), flags: Flags::RST, ..self.base() };
        self.gets(&seg)
    }

    /// SYN and ACK, half a millisecond apart.
    fn handshake(&mut self) -> &mut Self {
        self.syn();
        self.now += Duration::from_micros(500);
        self.ack()
    }

    fn after(&mut self, d: Duration) -> &mut Self {
        self.now += d;
        self.flows.tick(self.now, &mut self.out);
        self
    }

    fn forged(&self) -> Option<Spec> {
        self.out.iter().find_map(|a| match a {
            Action::Forge { spec, .. } => Some(*spec),
            _ => None,
        })
    }

    fn probe(&self) -> Option<Spec> {
        self.out.iter().find_map(|a| match a {
            Action::Probe { spec, .. } => Some(*spec),
            _ => None,
        })
    }

    fn judgements(&self) -> Vec<Judgement> {
        let judged = self.out.iter().filter_map(|a| match a {
            Action::Judged(j) => Some(*j),
            _ => None,
        });
        judged.collect()
    }

    fn outcome(&self) -> Option<Fate> {
        self.judgements().last().map(|j| j.fate)
    }

    fn resets(&self) -> Vec<ResetCause> {
        let resets = self.out.iter().filter_map(|a| match a {
            Action::Reset(r) => Some(r.cause),
            _ => None,
        });
        resets.collect()
    }
}

fn dsack(of: Spec) -> Vec<u8> {
    let mut o = vec![1, 1, 5, 10];
    o.extend(of.seq.0.to_be_bytes());
    o.extend(of.seq.add(of.payload.len() as u32).0.to_be_bytes());
    o
}

/// The segment is forged when the handshake is complete, with its numbers.
#[test]
fn forges_at_the_handshake() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.syn();
    assert_eq!(p.out, []);
    p.ack();
    assert_eq!(p.out[0], Action::Handshake);
    let spec = p.forged().unwrap();
    assert_eq!((spec.seq, spec.ack), (SND.add(0x7FFF_C000), ISN.add(1)));
}

/// An RST whose numbers the forged segment provokes is a leak, and one that
/// carries the expected number kills.
#[test]
fn the_provoked_reset_is_a_leak_that_kills() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().rst(ISN.add(1));
    let j = p.judgements();
    assert_eq!(j[0].fate, KILLED);
    assert_eq!(p.resets(), [ResetCause::Forged(Forgery::AboveWindow)]);
}

/// A forged acknowledgment far ahead draws a reset that harms nobody.
#[test]
fn ack_ahead_leaks_without_killing() {
    let mut p = Play::new(Forgery::AckAhead);
    p.handshake().rst(ISN.add(1).add(0x4000_0000));
    assert_eq!(p.outcome(), Some(Fate::Leaked { killed: false }));
}

/// A segment without flags draws RST and ACK with sequence number 0.
#[test]
fn no_flags_leaks_without_killing() {
    let mut p = Play::new(Forgery::NoFlags);
    p.handshake();
    let rst = Segment { seq: Seq(0), ack: SND, flags: Flags::RST.with(Flags::ACK), ..p.base() };
    p.gets(&rst);
    assert_eq!(p.outcome(), Some(Fate::Leaked { killed: false }));
}

/// An application's own reset has the ACK bit and is not the bug, although its
/// sequence number is the forged one's.
#[test]
fn an_applications_reset_is_not_a_leak() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake();
    let rst = Segment { flags: Flags::RST.with(Flags::ACK), ..p.base() };
    p.gets(&rst);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::OtherReset)));
    assert_eq!(p.resets(), [ResetCause::Other { expected: ISN.add(1) }]);
}

/// A reset one off the expected number is neither a leak nor the end.
#[test]
fn a_reset_with_other_numbers_changes_nothing() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().rst(ISN.add(2)).rst(ISN).rst(ISN.add(2_000_000));
    assert_eq!(p.outcome(), None);
    p.rst(ISN.add(1));
    assert_eq!(p.outcome(), Some(KILLED));
}

/// A bare acknowledgment that acknowledges nothing new is the client's answer.
#[test]
fn a_duplicate_ack_is_delivered() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().ack();
    assert_eq!(p.outcome(), Some(Fate::Delivered));
    assert_eq!(p.probe(), None);
}

/// Neither the client's data nor its keep-alive probe is an answer.
#[test]
fn data_and_keep_alives_are_no_answers() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake();
    let keep_alive = Segment { seq: ISN, ..p.base() };
    let data = Segment { payload_len: 10, flags: Flags::PSH.with(Flags::ACK), ..p.base() };
    p.gets(&keep_alive).gets(&data);
    assert_eq!(p.outcome(), None);
}

/// Silence alone is no proof: the connection is probed, and only an answer to
/// the probe makes it dropped.
#[test]
fn dropped_needs_proof_of_life() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().after(TIMEOUT);
    let probe = p.probe().unwrap();
    assert_eq!((probe.seq, probe.ack), (SND.sub(2), ISN));
    let options = dsack(probe);
    let answer = Segment { options: &options, ..p.base() };
    p.gets(&answer);
    assert_eq!(p.outcome(), Some(Fate::Dropped));

    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().after(TIMEOUT).after(TIMEOUT);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::NoProofOfLife)));
}

/// Without SACK one answer is the probe's and two mean that one was the forged
/// segment's.
#[test]
fn without_sack_answers_are_counted() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().after(TIMEOUT).ack();
    assert_eq!(p.outcome(), None);
    p.after(TIMEOUT);
    assert_eq!(p.outcome(), Some(Fate::Dropped));

    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().after(TIMEOUT).ack().ack();
    assert_eq!(p.outcome(), Some(Fate::Delivered));
}

/// A D-SACK that names the forged octets is the forged segment's answer, however late.
#[test]
fn a_dsack_names_what_was_delivered() {
    let mut p = Play::new(Forgery::BelowWindow);
    p.handshake().after(TIMEOUT);
    let options = dsack(p.forged().unwrap());
    let answer = Segment { options: &options, ..p.base() };
    p.gets(&answer);
    assert_eq!(p.outcome(), Some(Fate::Delivered));
}

/// The probe's reset bears another number than the forged segment's, also where the
/// client has sent one octet in between.
#[test]
fn the_probes_reset_is_no_leak() {
    for octets in [0, 1] {
        let mut p = Play::new(Forgery::AboveWindow);
        p.handshake();
        let data = Segment { payload_len: octets, flags: Flags::PSH.with(Flags::ACK), ..p.base() };
        if octets > 0 {
            p.gets(&data);
        }
        p.after(TIMEOUT);
        let provoked = p.probe().unwrap().ack;
        p.rst(provoked).after(TIMEOUT);
        assert_eq!(p.outcome(), Some(Fate::Unknown(Why::NoProofOfLife)));
        assert_eq!(p.resets().len(), 1);
        assert!(!p.resets().contains(&ResetCause::Forged(Forgery::AboveWindow)));
    }
}

/// In mid-stream the server's own segments draw the same reset: it is the forged one's
/// only while that is waited for.
#[test]
fn a_late_reset_in_mid_stream_is_ambiguous() {
    let mut p = Play::mid_stream(Forgery::AboveWindow);
    p.after(ms(100)).after(ms(399)).rst(ISN.add(1));
    assert_eq!(p.outcome(), Some(KILLED));

    let mut p = Play::mid_stream(Forgery::AboveWindow);
    p.after(ms(100)).after(TIMEOUT).rst(ISN.add(1));
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::AmbiguousReset)));

    let mut p = Play::mid_stream(Forgery::AboveWindow);
    p.after(ms(100)).after(TIMEOUT).ack().after(TIMEOUT).rst(ISN.add(1));
    assert_eq!(p.outcome(), Some(Fate::Dropped));
    assert_eq!(p.resets(), [ResetCause::Other { expected: ISN.add(1) }]);
}

/// A duplicate acknowledgment whose blocks name other octets than the forged ones answers
/// another segment, and in mid-stream it may hide the answer.
#[test]
fn blocks_of_other_octets_are_no_answer() {
    let other = Spec { seq: SND.add(1448), ack: Seq(0), flags: Flags::ACK, payload: b"other" };
    for (mut p, silence) in [
        (Play::new(Forgery::AboveWindow), Fate::Dropped),
        (Play::mid_stream(Forgery::AboveWindow), Fate::Unknown(Why::Busy)),
    ] {
        if p.out.is_empty() {
            p.handshake();
        }
        p.after(ms(100));
        let blocks = dsack(other);
        let duplicate = Segment { options: &blocks, ..p.base() };
        p.gets(&duplicate);
        assert_eq!(p.outcome(), None);
        p.after(TIMEOUT).ack().after(TIMEOUT);
        assert_eq!(p.outcome(), Some(silence));
    }
}

/// Once the client has had data, an acknowledgment whose window alone has changed tells
/// that it was read; one with the same window is the answer.
#[test]
fn a_window_update_is_no_answer() {
    for (window, outcome) in [(502, Some(Fate::Delivered)), (601, None)] {
        let mut p = Play::mid_stream(Forgery::AboveWindow);
        let had = Segment { ack: SND.add(1448), ..p.base() };
        p.gets(&had).after(ms(100));
        let bare = Segment { window, ..had };
        p.gets(&bare);
        assert_eq!(p.outcome(), outcome);
        if outcome.is_none() {
            p.after(TIMEOUT).after(TIMEOUT);
            assert_eq!(p.outcome(), Some(Fate::Unknown(Why::Busy)));
        }
    }
}

/// In mid-stream a bare duplicate may have been another segment's answer: the reset that
/// the forged one provokes corrects it while that is waited for, and not later.
#[test]
fn a_reset_corrects_a_bare_duplicate_in_mid_stream() {
    for (wait, outcome) in [(ms(399), KILLED), (TIMEOUT, Fate::Delivered)] {
        let mut p = Play::mid_stream(Forgery::AboveWindow);
        p.after(ms(100)).ack().after(wait).rst(ISN.add(1));
        assert_eq!(p.outcome(), Some(outcome));
    }
}

/// A slow path is given several round trips.
#[test]
fn the_timeout_follows_the_round_trip() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.syn().after(ms(300)).ack().after(TIMEOUT + ms(700));
    assert_eq!(p.probe(), None);
    p.after(ms(100));
    assert!(p.probe().is_some());
}

/// A leak that comes after the connection was called dropped corrects that.
#[test]
fn a_late_leak_replaces_dropped() {
    let mut p = Play::new(Forgery::SynFin);
    p.handshake().after(TIMEOUT).ack().after(TIMEOUT).rst(ISN.add(1));
    let j = p.judgements();
    assert_eq!(j[1].fate, KILLED);
    assert_eq!(j[1].replaces, Some(Fate::Dropped));
}

/// A reset after the answer belongs to something else: one segment, one answer.
#[test]
fn a_reset_after_the_answer_is_another() {
    let mut p = Play::new(Forgery::BelowWindow);
    p.handshake().ack().rst(ISN.add(1));
    assert_eq!(p.outcome(), Some(Fate::Delivered));
    assert_eq!(p.resets(), [ResetCause::Other { expected: ISN.add(1) }]);
}

/// After a delivered overshoot, the reset that the server's own segment provokes
/// is the poisoned entry's; an application's own reset is not.
#[test]
fn an_overshoots_later_reset_is_the_poisoned_entrys() {
    let mut p = Play::new(Forgery::Overshoot);
    p.handshake().ack();
    let data = Segment { payload_len: 14, ..p.base() };
    p.gets(&data).rst(ISN.add(15));
    assert_eq!(p.resets(), [ResetCause::Poisoned]);
    assert_eq!(p.outcome(), Some(Fate::Delivered));

    let mut p = Play::new(Forgery::Overshoot);
    p.handshake().ack();
    let own = Segment { flags: Flags::RST.with(Flags::ACK), ..p.base() };
    p.gets(&own);
    assert_eq!(p.resets(), [ResetCause::Other { expected: ISN.add(1) }]);

    // Nor is one after the client's FIN, when any segment may provoke it.
    let mut p = Play::new(Forgery::Overshoot);
    p.handshake().ack().fin().rst(ISN.add(2));
    assert_eq!(p.resets(), [ResetCause::Other { expected: ISN.add(2) }]);

    // And no other forgery poisons an entry.
    let mut p = Play::new(Forgery::Control);
    p.handshake().ack().rst(ISN.add(1));
    assert_eq!(p.resets(), [ResetCause::Other { expected: ISN.add(1) }]);
}

/// A client that has sent FIN resets whatever still comes, with the same numbers.
#[test]
fn a_reset_after_fin_is_ambiguous() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().fin().rst(ISN.add(1));
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::AmbiguousReset)));
    assert_eq!(p.resets().len(), 1);
}

/// A client that closes before it answers leaves nothing to judge, and is not
/// probed: its port may serve another connection by then.
#[test]
fn a_close_before_the_answer_is_unknown() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().fin().after(TIMEOUT);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::ClosedEarly)));
    assert_eq!(p.probe(), None);
}

/// In a simultaneous close the client's last acknowledgment covers our FIN and
/// is not taken for an answer; a real answer in between still is.
#[test]
fn simultaneous_close() {
    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().fin();
    let last = Segment { seq: ISN.add(2), ack: SND.add(1), ..p.base() };
    p.gets(&last);
    assert_eq!(p.outcome(), None);

    let mut p = Play::new(Forgery::AboveWindow);
    p.handshake().fin();
    let answer = Segment { seq: ISN.add(2), ..p.base() };
    p.gets(&answer);
    assert_eq!(p.outcome(), Some(Fate::Delivered));
}
