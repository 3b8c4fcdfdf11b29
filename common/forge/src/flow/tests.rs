//! Which answer means what at the accepting end; `client` has the other end, `life` the rest.

mod client;
mod life;
mod reset;

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

/// The time of a handshake whose segments were lost is no round trip: the first answer to a
/// probe is.
#[test]
fn a_probes_answer_measures_a_round_trip_that_the_handshake_did_not() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.syn().after(ms(3000)).ack().after(ANSWERS_AGAIN);
    assert!(p.forged().is_some());
    p.after(ms(11_900));
    assert_eq!(p.probe(), None);
    p.silent_rounds(5);
    assert_eq!(p.outcome(), Some(Fate::Dropped));
    assert!(p.now < Duration::from_secs(20), "{:?}", p.now);
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

/// A client that closes before it answers leaves nothing to judge, and is not
/// probed: its port may serve another connection by then.
#[test]
fn a_close_before_the_answer_is_unknown() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake().fin().after(TIMEOUT);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::ClosedEarly)));
    assert_eq!(p.probe(), None);
}

/// A client that alternates families, as `probe --each-family` does, meets every forgery in each of
/// them, whatever their number.
#[test]
fn each_family_has_its_own_turns() {
    let forgeries = [Forgery::AboveWindow, Forgery::BelowWindow];
    let listen = vec![SocketAddr::from(([0; 8], 9000))];
    let mut p = Exchange::with(Settings { end: listening(listen), ..settings(&forgeries) });
    for n in 0..4 {
        p.port += 1;
        let mut ends = [plain(p.port).src, plain(p.port).dst];
        if n % 2 == 1 {
            ends = [
                SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 2], p.port)),
                SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 1], 9000)),
            ];
        }
        let [src, dst] = ends;
        let ack = Segment { src, dst, ..p.base() };
        p.gets(&Segment { seq: ISN, ack: Seq(0), flags: Flags::SYN, options: SYN_OPTIONS, ..ack });
        p.now += ms(1);
        p.gets(&ack);
    }
    let forged: Vec<_> = p
        .out
        .iter()
        .filter_map(|a| match a {
            Action::Forge { tuple, forgery, .. } => Some((tuple.local.is_ipv6(), *forgery)),
            _ => None,
        })
        .collect();
    let [above, below] = forgeries;
    assert_eq!(forged, [(false, above), (true, above), (false, below), (true, below)]);
}
