//! Which answer means what at the accepting end; `client` has the other end, `life` the rest.

mod client;
mod life;

use std::net::SocketAddr;

use super::*;
use crate::forgery::Spec;
use canary_record::names::{Forgery, UnknownReason as Why};
use canary_wire::seq::Seq;

const ISN: Seq = Seq(0xffff_fff0);
/// The server's first number as the client acknowledges it, near the wrap too.
const SND: Seq = Seq(0xffff_ff00);
const TIMEOUT: Duration = Duration::from_millis(400);
const KILLED: Fate = Fate::Leaked { killed: true, node: false };
const HARMLESS: Fate = Fate::Leaked { killed: false, node: false };
/// TTL of the client's segments.
const TTL: u8 = 62;
const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn listening(listen: Vec<SocketAddr>) -> End {
    End::Server { listen, local: Vec::new() }
}

fn settings(forgeries: &[Forgery]) -> Settings {
    Settings {
        forgeries: forgeries.to_vec(),
        outcome_timeout: TIMEOUT,
        forge_delay: Duration::ZERO,
        capacity: 100,
        end: listening(vec![SocketAddr::from(([0, 0, 0, 0], 9000))]),
    }
}

/// SYN options of Linux: MSS, SACK permitted, timestamps, scale 7.
const SYN_OPTIONS: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7];

/// One client and the state machine under test.
struct Exchange {
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

impl Exchange {
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
        self.hears(seg, TTL, 0)
    }

    fn hears(&mut self, seg: &Segment<'_>, ttl: u8, class: u8) -> &mut Self {
        let arrival = Arrival { at: self.now, ttl: Some(ttl), class: Some(class) };
        self.flows.segment(self.now, arrival, seg, &mut self.out);
        self
    }

    /// A bare acknowledgment that the client sends now, by its own clock.
    fn answers(&mut self) -> &mut Self {
        let options = stamp(self.now);
        let seg = Segment { options: &options, ..self.base() };
        self.gets(&seg)
    }

    /// The same with a D-SACK.
    fn names(&mut self, what: Spec) -> &mut Self {
        let mut options = stamp(self.now);
        options.extend(dsack(what));
        let seg = Segment { options: &options, ..self.base() };
        self.gets(&seg)
    }

    /// An answer names the segment forged on the last connection.
    fn delivered(&mut self) -> &mut Self {
        let forged = self.sent();
        self.names(forged)
    }

    /// The living client answers the last probe.
    fn lives(&mut self) -> &mut Self {
        let probe = self.sent();
        self.names(probe)
    }

    /// Silence to every forged segment, an answer to every probe.
    fn silent_rounds(&mut self, rounds: usize) -> &mut Self {
        for _ in 0..rounds {
            if self.outcome().is_some() {
                break;
            }
            let before = self.out.len();
            let mut waits = 0;
            while !self.out[before..].iter().any(
                |a| matches!(a, Action::Probe { spec, .. } if self.forged().map(|f| f.seq) != Some(spec.seq)),
            ) && waits < 40
            {
                self.after(ms(50));
                waits += 1;
            }
            self.after(ms(1)).lives();
        }
        self
    }

    /// What was sent last.
    fn sent(&self) -> Spec {
        let sent = self.out.iter().rev().find_map(|a| match a {
            Action::Probe { spec, .. } | Action::Forge { spec, .. } => Some(*spec),
            _ => None,
        });
        sent.expect("something was sent")
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
        self.answers()
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
        self.out.iter().rev().find_map(|a| match a {
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

/// The client's clock has millisecond ticks, and began at 7.
fn stamp(now: Duration) -> Vec<u8> {
    let value = 7 + now.as_millis() as u32;
    let mut options = vec![1, 1, 8, 10];
    options.extend(value.to_be_bytes());
    options.extend(9u32.to_be_bytes());
    options
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
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.syn().ack();
    assert!(p.out.iter().any(|a| matches!(a, Action::Handshake(_))));
    let spec = p.forged().unwrap();
    assert_eq!((spec.seq, spec.ack), (SND.add(0x7FFF_C000), ISN.add(1)));
}

/// An RST whose numbers the forged segment provokes, from a client that is there, is a
/// leak; one that carries the expected number kills.
#[test]
fn the_provoked_reset_of_a_living_client_is_a_leak() {
    for (forgery, rst, fate) in [
        (Forgery::AboveWindow, ISN.add(1), KILLED),
        (Forgery::SynFin, ISN.add(1), KILLED),
        (Forgery::AckAhead, ISN.add(1).add(0x4000_0000), HARMLESS),
    ] {
        let mut p = Exchange::new(forgery);
        p.handshake().rst(rst);
        assert_eq!((p.outcome(), p.resets().len()), (None, 0), "nothing shows the client yet");
        p.lives();
        assert_eq!(p.outcome(), Some(fate), "{forgery}");
        assert_eq!(p.resets(), [ResetCause::Forged(forgery)]);
    }
}

/// A segment without flags draws RST and ACK with sequence number 0.
#[test]
fn no_flags_leaks_without_killing() {
    let mut p = Exchange::new(Forgery::NoFlags);
    p.handshake();
    let rst = Segment { seq: Seq(0), ack: SND, flags: Flags::RST.with(Flags::ACK), ..p.base() };
    p.gets(&rst).lives();
    assert_eq!(p.outcome(), Some(HARMLESS));
}

/// A client that closed by a reset that was lost answers the forged segment with the very
/// reset of a leak: it does not know the probe's connection either.
#[test]
fn a_client_that_is_gone_leaks_nothing() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().rst(ISN.add(1));
    let provoked = p.sent().ack;
    p.after(ms(1)).rst(provoked);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::AmbiguousReset)));
    assert!(p.resets().contains(&ResetCause::Gone));
}

/// On a slow path the answer to the first probe comes when the next has been sent, and the
/// server's reset that it draws is why the next meets nobody: the client was there.
#[test]
fn an_answer_to_an_earlier_probe_shows_life() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().rst(ISN.add(1));
    let first = p.sent();
    p.after(LIFE_GAP);
    let second = p.sent();
    assert_ne!(first.seq, second.seq);
    p.names(first).rst(second.ack);
    assert_eq!(p.outcome(), Some(KILLED));
    assert_eq!(p.resets(), [ResetCause::Forged(Forgery::AboveWindow)]);
}

/// An answer to what was sent before the reset was read shows nothing: the peer may have
/// closed in between.
#[test]
fn an_answer_to_a_probe_before_the_reset_shows_nothing() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().after(TIMEOUT);
    let before = p.sent();
    p.rst(ISN.add(1)).names(before);
    assert_eq!(p.outcome(), None);
    let after = p.sent();
    assert_ne!(before.seq, after.seq);
    p.rst(after.ack);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::AmbiguousReset)));
}

/// A busy host's answer to the first probe shows it alive a second later too.
#[test]
fn a_late_answer_to_a_probe_shows_life() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().rst(ISN.add(1));
    let first = p.sent();
    for _ in 0..20 {
        p.after(ms(50));
    }
    assert_eq!(p.outcome(), None);
    p.names(first);
    assert_eq!(p.outcome(), Some(KILLED));
}

/// So does one that answers nothing more, or whose late segments alone come in.
#[test]
fn a_reset_without_a_sign_of_life_is_ambiguous() {
    for late in [false, true] {
        let mut p = Exchange::new(Forgery::AboveWindow);
        p.handshake().rst(ISN.add(1));
        if late {
            p.after(ms(2)).answers();
        }
        for _ in 0..60 {
            p.after(ms(50));
        }
        assert_eq!(p.outcome(), Some(Fate::Unknown(Why::AmbiguousReset)));
        assert_eq!(p.resets(), [ResetCause::Other { expected: ISN.add(1), closed: false }]);
    }
}

/// Without D-SACK two answers to two probes, each younger than its probe, show life.
#[test]
fn two_young_answers_show_life() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().rst(ISN.add(1)).after(ms(2)).answers();
    assert_eq!(p.outcome(), None);
    p.after(ms(50)).after(ms(2)).answers();
    assert_eq!(p.outcome(), Some(KILLED));
}

/// A client that sent FIN before the forged segment came is no excuse: the reset's number
/// lies one below the FIN, and TIME_WAIT answers the probe.
#[test]
fn a_leak_after_fin_is_a_leak() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().fin().rst(ISN.add(1)).after(ms(60));
    let options = stamp(p.now);
    let answer = Segment { seq: ISN.add(2), ack: SND.add(1), options: &options, ..p.base() };
    p.gets(&answer);
    assert_eq!(p.outcome(), Some(HARMLESS));
}

/// A node on the way that answers has a larger TTL: where it repeats the segment's class, the
/// segment was addressed to it; where it does not, a rule rejects.
#[test]
fn the_ttl_tells_who_answered() {
    for (ttl, class, fate) in [
        (TTL, 0, KILLED),
        (TTL, forgery::CLASS, KILLED),
        (TTL + 1, forgery::CLASS, Fate::Leaked { killed: true, node: true }),
        (TTL + 1, 0, Fate::Rejected { killed: true }),
    ] {
        let mut p = Exchange::new(Forgery::AboveWindow);
        p.handshake();
        let rst = Segment { ack: Seq(0), flags: Flags::RST, ..p.base() };
        p.hears(&rst, ttl, class).lives();
        assert_eq!(p.outcome(), Some(fate), "{ttl} {class}");
    }
}

/// An application's own reset has the ACK bit and is not the bug, although its
/// sequence number is the forged one's; nor is what a closed client answers after it.
#[test]
fn an_applications_reset_is_not_a_leak() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    let rst = Segment { flags: Flags::RST.with(Flags::ACK), ..p.base() };
    p.gets(&rst).rst(ISN.add(1));
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::OtherReset)));
    let causes = p.resets();
    assert_eq!(causes[0], ResetCause::Other { expected: ISN.add(1), closed: false });
    assert_eq!(causes[1], ResetCause::Other { expected: ISN.add(1), closed: true });
}

/// An application's reset that overtook nothing, after the forged segment's: the client may
/// have been gone when that came.
#[test]
fn a_close_by_reset_leaves_a_leak_in_doubt() {
    let mut p = Exchange::new(Forgery::AckAhead);
    p.handshake().rst(ISN.add(1).add(0x4000_0000));
    let rst = Segment { flags: Flags::RST.with(Flags::ACK), ..p.base() };
    p.gets(&rst);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::AmbiguousReset)));
}

/// A reset one off the expected number is neither a leak nor the end.
#[test]
fn a_reset_with_other_numbers_changes_nothing() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().rst(ISN.add(2)).rst(ISN).rst(ISN.add(2_000_000));
    assert_eq!(p.outcome(), None);
    p.rst(ISN.add(1)).lives();
    assert_eq!(p.outcome(), Some(KILLED));
}

/// A copy of the handshake's last segment is no answer, nor is one in each round.
#[test]
fn copies_are_no_answers() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    let options = stamp(p.now);
    let copy = Segment { options: &options, ..p.base() };
    p.gets(&copy);
    for _ in 0..3 {
        p.after(ms(30)).gets(&copy);
    }
    assert_eq!(p.outcome(), None);
    p.after(TIMEOUT).lives().silent_rounds(8);
    assert_eq!(p.outcome(), Some(Fate::Dropped));
}

/// Two rounds that each drew a young bare acknowledgment: the segment arrives.
#[test]
fn an_answer_to_each_of_two_rounds_is_delivered() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().answers();
    assert_eq!(p.outcome(), None);
    p.after(ms(20)).after(ms(1)).answers();
    assert_eq!(p.outcome(), None, "one may answer a copy of the SYN-ACK");
    p.after(ms(20)).after(ms(1)).answers();
    assert_eq!(p.outcome(), Some(Fate::Delivered));
}

/// A segment whose answers are limited to one in 500 ms is repeated less often.
#[test]
fn a_limited_answer_is_waited_for() {
    let mut p = Exchange::new(Forgery::SynFin);
    p.handshake().answers();
    let sends = |p: &Exchange| p.out.iter().filter(|a| matches!(a, Action::Probe { .. })).count();
    p.after(ms(500));
    assert_eq!(sends(&p), 0);
    p.after(ms(100));
    assert_eq!(sends(&p), 1);
}

/// Neither the client's data nor its keep-alive probe is an answer.
#[test]
fn data_and_keep_alives_are_no_answers() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().after(ms(2));
    let options = stamp(p.now);
    let keep_alive = Segment { seq: ISN, options: &options, ..p.base() };
    let data = Segment { payload_len: 10, options: &options, ..p.base() };
    p.gets(&keep_alive).gets(&data).after(ms(30));
    assert_eq!(p.probe(), None);
}

/// Dropped is silence in five rounds and an answer to each probe; one silence is loss.
#[test]
fn dropped_needs_silence_and_life_in_five_rounds() {
    for forgery in [Forgery::AboveWindow, Forgery::AckAhead, Forgery::SynFin, Forgery::NoFlags] {
        let mut p = Exchange::new(forgery);
        p.handshake().silent_rounds(4);
        assert_eq!(p.outcome(), None, "{forgery}");
        p.silent_rounds(1);
        assert_eq!(p.outcome(), Some(Fate::Dropped), "{forgery}");
    }
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    for _ in 0..20 {
        p.after(TIMEOUT);
    }
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::NoProofOfLife)));
}

/// A D-SACK that names the forged octets is the forged segment's answer, however late.
#[test]
fn a_dsack_names_what_was_delivered() {
    for forgery in [Forgery::BelowWindow, Forgery::Control, Forgery::AckAhead] {
        let mut p = Exchange::new(forgery);
        p.handshake();
        let forged = p.forged().unwrap();
        p.after(TIMEOUT).names(forged);
        assert_eq!(p.outcome(), Some(Fate::Delivered), "{forgery}");
    }
}

/// The probe's reset bears another number than the forged segment's, also where the
/// client has sent one octet in between.
#[test]
fn the_probes_reset_is_no_leak() {
    for octets in [0, 1] {
        let mut p = Exchange::new(Forgery::AboveWindow);
        p.handshake();
        let data = Segment { payload_len: octets, flags: Flags::PSH.with(Flags::ACK), ..p.base() };
        if octets > 0 {
            p.gets(&data);
        }
        p.after(TIMEOUT);
        let provoked = p.probe().unwrap().ack;
        p.rst(provoked);
        assert_eq!(p.outcome(), Some(Fate::Unknown(Why::ClosedEarly)));
        assert_eq!(p.resets(), [ResetCause::Gone]);
    }
}

/// In mid-stream the server's own segments draw the same reset: it is the forged one's
/// only while that is waited for.
#[test]
fn a_late_reset_in_mid_stream_is_ambiguous() {
    let mut p = Exchange::mid_stream(Forgery::AboveWindow);
    p.after(ms(100)).after(ms(399)).rst(ISN.add(1)).lives();
    assert_eq!(p.outcome(), Some(KILLED));

    let mut p = Exchange::mid_stream(Forgery::AboveWindow);
    p.after(ms(100)).after(TIMEOUT).rst(ISN.add(1));
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::AmbiguousReset)));
}

/// An acknowledgment whose window alone has changed tells that something was read, at the
/// handshake too.
#[test]
fn a_window_update_is_no_answer() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().after(ms(2));
    let options = stamp(p.now);
    let update = Segment { window: 2058, options: &options, ..p.base() };
    p.gets(&update);
    p.silent_rounds(6);
    assert_eq!(p.outcome(), Some(Fate::Dropped));
}

/// Blocks that name nothing sent here (renumbered on the way) are neither an answer nor
/// silence.
#[test]
fn renumbered_blocks_are_unclear() {
    let mut p = Exchange::new(Forgery::Control);
    p.handshake();
    for _ in 0..40 {
        p.after(ms(100));
        let other = Spec { seq: SND.add(70_000), ack: Seq(0), flags: Flags::ACK, payload: b"x" };
        p.names(other);
    }
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::UnclearAnswer)));
}

/// Rounds that something renumbered answered, and others that were silent by loss: not dropped.
/// So where the peer names octets, and answers the forged ones without.
#[test]
fn rounds_that_are_answered_otherwise_are_not_silent() {
    for named in [true, false] {
        let mut p = Exchange::new(Forgery::AckAhead);
        p.handshake().silent_rounds(1);
        for _ in 0..20 {
            p.after(ms(21));
            let other =
                Spec { seq: SND.add(70_000), ack: Seq(0), flags: Flags::ACK, payload: b"x" };
            if named {
                p.names(other)
            } else {
                p.answers()
            };
            p.after(ms(101)).lives();
        }
        assert_eq!(p.outcome(), Some(Fate::Unknown(Why::UnclearAnswer)), "{named}");
    }
}

/// What crossed fewer nodes than the client's SYN is a node's answer: neither the client's nor
/// a sign of its life.
#[test]
fn an_answer_from_nearer_is_not_the_clients() {
    let nearer = |p: &mut Exchange| {
        let options = stamp(p.now);
        let answer = Segment { options: &options, ..p.base() };
        p.hears(&answer, TTL + 1, 0);
    };
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    for _ in 0..40 {
        p.after(ms(50));
        nearer(&mut p);
    }
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::UnclearAnswer)));
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().rst(ISN.add(1));
    for _ in 0..60 {
        p.after(ms(50));
        nearer(&mut p);
    }
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::AmbiguousReset)));
}

/// A round in which the client acknowledged something may have drawn an answer to that alone.
#[test]
fn an_answer_beside_traffic_proves_nothing() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    for n in 1..10 {
        let ack = SND.add(100 * n);
        p.after(ms(1));
        let options = stamp(p.now);
        p.gets(&Segment { ack, options: &options, ..p.base() }).after(ms(1));
        let options = stamp(p.now);
        p.gets(&Segment { ack, options: &options, ..p.base() }).after(ms(30));
    }
    assert_eq!(p.outcome(), None);
}

/// The client acknowledges this end's FIN after the reset: it was there, and where the reset
/// ended this end's socket too, the probe would find nobody.
#[test]
fn an_acknowledged_close_shows_the_client_there() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().fin().rst(ISN.add(1)).after(ms(1));
    assert_eq!(p.outcome(), None);
    let options = stamp(p.now);
    p.gets(&Segment { seq: ISN.add(2), ack: SND.add(1), options: &options, ..p.base() });
    assert_eq!(p.outcome(), Some(HARMLESS));
}

/// Data that overtakes the handshake's last segment counts: the number that a reset must have is
/// the one behind it.
#[test]
fn data_before_the_handshakes_end_is_received() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    let data = Segment { seq: ISN.add(31), payload_len: 50, ..p.base() };
    let first = Segment { payload_len: 30, ..p.base() };
    p.syn().gets(&data).gets(&first);
    assert_eq!(p.forged().map(|f| f.ack), Some(ISN.add(81)));
}

/// A slow path is given several round trips.
#[test]
fn the_timeout_follows_the_round_trip() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.syn().after(ms(300)).ack().after(TIMEOUT + ms(700));
    assert_eq!(p.probe(), None);
    p.after(ms(100));
    assert!(p.probe().is_some());
}

/// The reset that only the forged segment provokes wins, whatever was judged before it.
#[test]
fn exact_evidence_wins_whenever_it_comes() {
    let mut p = Exchange::new(Forgery::SynFin);
    p.handshake().silent_rounds(5);
    assert_eq!(p.outcome(), Some(Fate::Dropped));
    p.rst(ISN.add(1)).after(ms(1)).lives();
    let j = *p.judgements().last().unwrap();
    assert_eq!((j.fate, j.replaces), (KILLED, Some(Fate::Dropped)));

    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    for _ in 0..3 {
        p.answers().after(ms(20)).after(ms(1));
    }
    assert_eq!(p.outcome(), Some(Fate::Delivered));
    p.rst(ISN.add(1)).after(ms(1)).lives();
    let j = *p.judgements().last().unwrap();
    assert_eq!((j.fate, j.replaces), (KILLED, Some(Fate::Delivered)));
}

/// A reset after an answer that named the forged octets belongs to something else.
#[test]
fn a_reset_after_a_named_answer_is_another() {
    let mut p = Exchange::new(Forgery::BelowWindow);
    p.handshake();
    let forged = p.forged().unwrap();
    p.names(forged).rst(ISN.add(1));
    assert_eq!(p.outcome(), Some(Fate::Delivered));
    assert_eq!(p.resets(), [ResetCause::Other { expected: ISN.add(1), closed: false }]);
}

/// After a delivered overshoot the reset of the server's own next segment is that of a
/// poisoned entry; not after the client's FIN.
#[test]
fn a_reset_after_an_overshoot_is_of_a_poisoned_entry() {
    let delivered = || {
        let mut p = Exchange::new(Forgery::Overshoot);
        p.handshake();
        for _ in 0..3 {
            p.answers().after(ms(20)).after(ms(1));
        }
        assert_eq!(p.outcome(), Some(Fate::Delivered));
        p
    };
    let mut p = delivered();
    p.rst(ISN.add(1));
    assert_eq!(p.resets(), [ResetCause::Poisoned]);
    let mut p = delivered();
    p.fin().rst(ISN.add(2));
    assert_eq!(p.resets(), [ResetCause::Other { expected: ISN.add(2), closed: true }]);
}

/// A client that closes before it answers leaves nothing to judge, and is not
/// probed: its port may serve another connection by then.
#[test]
fn a_close_before_the_answer_is_unknown() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().fin().after(TIMEOUT);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::ClosedEarly)));
    assert_eq!(p.probe(), None);
}
