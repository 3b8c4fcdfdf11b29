//! The attribution against a model of ordinary churn with really killed connections in it: every
//! killed one is named with its cause, and nobody else is accused.
//!
//! `WITNESS_CONNECTIONS` sets how many connections; a million by hand, with `--release`.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::witness::attribute::Look;
use crate::witness::core::{Surroundings, Witness};
use canary_conntrack::table::{Entry, TcpState, Tuple};
use canary_record::result::witness::{Cause, Direction, Ended, Reason};
use canary_wire::segment::{Emit, Flags};
use canary_wire::seq::Seq;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What happens to one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    /// Retransmissions below the window, translated since Linux 6.1.
    Retransmitted,
    /// The kernel ignores a segment and lets it through.
    Ignored,
    /// An INVALID segment is dropped by a rule.
    Dropped,
    /// A reset of the client's host, untranslated, whose number is another.
    OtherNumber,
    /// The same with the right number and the ACK bit: an application's own reset.
    OwnReset,
    /// Resets after the entry is gone.
    LateReset,
    /// A leak whose reset the server cannot take.
    HarmlessFlags,
    /// The same, by its acknowledgment.
    HarmlessAck,
    /// A reset that was a challenge for the server, which lives on.
    LivedOn,
    /// Killed through the client.
    Killed,
    /// Killed by SYN FIN ACK.
    KilledByFlags,
    /// Killed after many segments with one acknowledgment.
    KilledInStream,
    /// Killed on a masqueraded path.
    KilledByNode,
    /// The client is killed, by its own segment.
    KilledUpload,
    /// Killed by SYN FIN ACK, and a new connection takes the client's port and entry at once.
    KilledAndReused,
}

impl Story {
    fn killed(self) -> Option<(Cause, Direction)> {
        let s2c = Direction::ServerToClient;
        match self {
            Self::Killed | Self::KilledByFlags | Self::KilledInStream | Self::KilledAndReused => {
                Some((Cause::AnsweredByClient, s2c))
            }
            Self::KilledByNode => Some((Cause::AnsweredByNode, s2c)),
            Self::KilledUpload => Some((Cause::AnsweredByNode, Direction::ClientToServer)),
            _ => None,
        }
    }
}

const ORDINARY: &[Story] = &[
    Story::Retransmitted,
    Story::Ignored,
    Story::Dropped,
    Story::OtherNumber,
    Story::OwnReset,
    Story::LateReset,
    Story::HarmlessFlags,
    Story::HarmlessAck,
    Story::LivedOn,
];
const LETHAL: &[Story] = &[
    Story::Killed,
    Story::KilledByFlags,
    Story::KilledInStream,
    Story::KilledByNode,
    Story::KilledUpload,
    // Last: only where looks need not wait for their turn.
    Story::KilledAndReused,
];

/// The longest time to a reset.
const ANSWERED: Duration = Duration::from_millis(20);

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 11));

struct Connection {
    story: Story,
    original: Tuple,
    reply: Tuple,
    begins: Duration,
}

/// Connections share 4-tuples: that of `n` is used again by `n + TUPLES`.
const TUPLES: u32 = 60_000;

fn connection(n: u32, story: Story, begins: Duration) -> Connection {
    let slot = n % TUPLES;
    let at = |net: u8, host: u32, port: u16| {
        SocketAddr::from(([198, 18, net, (host % 250) as u8 + 1], port))
    };
    let client = at(65, slot, 1024 + (slot / 250) as u16);
    let server = at(66, slot / 7, 9000);
    let (service, towards) = match story {
        Story::KilledByNode => {
            (SocketAddr::new(NODE, 30_900), SocketAddr::new(NODE, 20_000 + (slot % 40_000) as u16))
        }
        Story::KilledUpload => (SocketAddr::new(NODE, 30_900), client),
        _ => (SocketAddr::from(([198, 19, 0, 10], 80)), client),
    };
    Connection {
        story,
        original: Tuple { source: client, destination: service },
        reply: Tuple { source: server, destination: towards },
        begins,
    }
}

/// The kernel of the model: which entry there is, at the time that it is asked.
struct Kernel {
    now: Duration,
    entries: HashMap<Tuple, (usize, Duration)>,
    stories: Vec<(Story, Tuple, Tuple)>,
}

impl Surroundings for Kernel {
    fn look(&mut self, tuple: Tuple) -> Look {
        let Some(&(n, since)) = self.entries.get(&tuple) else { return Look::Absent };
        let (story, original, reply) = self.stories[n];
        if story == Story::KilledAndReused && self.now > since + ANSWERED {
            return Look::Absent;
        }
        let idle = match story {
            Story::LivedOn => 0,
            _ => self.now.saturating_sub(since).as_secs(),
        };
        Look::Found(Entry {
            original,
            reply,
            status: canary_conntrack::table::Status::empty(),
            state: Some(TcpState::Established),
            timeout: Some(Duration::from_secs(431_999 - idle)),
        })
    }

    fn here(&mut self, ip: IpAddr) -> bool {
        ip == NODE
    }
}

type Event = (Duration, usize, &'static str, Vec<u8>);

fn packet(t: Tuple, (seq, ack): (u32, u32), flags: Flags, payload: &[u8]) -> Vec<u8> {
    let mut buf = Vec::new();
    let (src, dst) = (t.source, t.destination);
    let (seq, ack) = (Seq(seq), Seq(ack));
    assert!(
        Emit { src, dst, class: 0, seq, ack, flags, window: 502, options: &[], payload }
            .packet(&mut buf)
    );
    buf
}

/// What the kernel logs of one connection.
fn exchange(n: usize, c: &Connection, random: &mut StdRng, out: &mut Vec<Event>) -> u32 {
    const NEW: &str = "nf_ct_proto_6: invalid new ";
    const OVER: &str =
        "nf_ct_proto_6: SEQ is over upper bound 1 (over the window of the receiver) ";
    const UNDER: &str =
        "nf_ct_proto_6: SEQ is under lower bound 1 (already ACKed data retransmitted) ";
    const FLAGS: &str = "nf_ct_proto_6: invalid tcp flag combination ";
    let data = Flags::PSH.with(Flags::ACK);
    let (rcv, snd): (u32, u32) = (random.random(), random.random());
    let ms = Duration::from_millis;
    let answer =
        c.begins + Duration::from_micros(random.random_range(50..ANSWERED.as_micros() as u64));
    let back = c.reply.reversed();
    let mut say = |at, text, bytes| out.push((at, n, text, bytes));
    match c.story {
        Story::Retransmitted => {
            for k in 0..random.random_range(1..6) {
                say(c.begins + ms(200 * k), UNDER, packet(c.reply, (snd, rcv), data, b"again"));
            }
        }
        Story::Ignored => say(
            c.begins,
            "nf_ct_proto_6: packet (index 2) in dir 1 ignored, state SYN_SENT ",
            packet(c.reply, (snd, rcv), Flags::ACK, b""),
        ),
        Story::Dropped => say(c.begins, OVER, packet(c.reply, (snd, rcv), data, b"x")),
        Story::OtherNumber | Story::OwnReset => {
            say(c.begins, UNDER, packet(c.reply, (snd, rcv), data, b"x"));
            let (number, flags) = match c.story {
                Story::OwnReset => (rcv, Flags::RST.with(Flags::ACK)),
                _ => (rcv.wrapping_add(random.random_range(1..9000)), Flags::RST),
            };
            say(answer, NEW, packet(back, (number, snd), flags, b""));
        }
        Story::LateReset => {
            let towards = if random.random() { c.reply } else { back };
            say(c.begins, NEW, packet(towards, (random.random(), 0), Flags::RST, b""));
        }
        Story::HarmlessFlags => {
            say(c.begins, FLAGS, packet(c.reply, (snd, rcv), Flags::default(), b""));
            say(answer, NEW, packet(back, (0, snd), Flags::RST.with(Flags::ACK), b""));
        }
        Story::HarmlessAck => {
            let ahead = rcv.wrapping_add(0x4000_0000);
            // The text is the model's: the bound is what the client has sent.
            let text =
                format!("nf_ct_proto_6: ACK is over upper bound {rcv} (ACKed data not seen yet) ");
            say(c.begins, text.leak(), packet(c.reply, (snd, ahead), Flags::ACK, b""));
            say(answer, NEW, packet(back, (ahead, 0), Flags::RST, b""));
        }
        Story::KilledByFlags | Story::KilledAndReused => {
            let flags = Flags::SYN.with(Flags::FIN).with(Flags::ACK);
            say(c.begins, FLAGS, packet(c.reply, (snd, rcv), flags, b""));
            say(answer, NEW, packet(back, (rcv, 0), Flags::RST, b""));
        }
        Story::KilledInStream => {
            for k in 0..20u32 {
                let at = c.begins + Duration::from_micros(u64::from(k));
                let seq = snd.wrapping_add(k * 4);
                say(at, OVER, packet(c.reply, (seq, rcv), data, b"strm"));
            }
            for k in 0..20u64 {
                let at = answer + Duration::from_micros(k);
                say(at, NEW, packet(back, (rcv, 0), Flags::RST, b""));
            }
        }
        Story::LivedOn | Story::Killed | Story::KilledByNode => {
            say(c.begins, OVER, packet(c.reply, (snd, rcv), data, b"x"));
            say(answer, NEW, packet(back, (rcv, 0), Flags::RST, b""));
        }
        Story::KilledUpload => {
            say(c.begins, OVER, packet(c.original, (snd, rcv), data, b"x"));
            say(answer, NEW, packet(c.original.reversed(), (rcv, 0), Flags::RST, b""));
        }
    }
    rcv
}

/// `total` connections of which every `one_in`th is killed, at 10,000 a second.
fn run(total: u32, one_in: u32, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut kernel = Kernel { now: Duration::ZERO, entries: HashMap::new(), stories: Vec::new() };
    let mut events = Vec::new();
    let mut expected = BTreeMap::new();
    let lethal = if one_in < 100 { &LETHAL[..LETHAL.len() - 1] } else { LETHAL };
    for n in 0..total {
        let stories = if n % one_in == one_in / 2 { lethal } else { ORDINARY };
        let story = stories[random.random_range(0..stories.len())];
        let c = connection(n, story, Duration::from_micros(u64::from(n) * 100));
        let rcv = exchange(n as usize, &c, &mut random, &mut events);
        kernel.stories.push((story, c.original, c.reply));
        if let Some(truth) = story.killed() {
            let s = if story == Story::KilledUpload { c.original } else { c.reply };
            expected.insert((s.source.to_string(), s.destination.to_string(), rcv), truth);
        }
    }
    events.sort_by_key(|e| e.0);
    let mut witness = Witness::default();
    let mut next_tick = Duration::ZERO;
    for (number, (at, n, text, bytes)) in events.iter().enumerate() {
        let (_, original, reply) = kernel.stories[*n];
        for tuple in [original, reply] {
            let since = kernel.entries.get(&tuple).filter(|e| e.0 == *n).map_or(*at, |e| e.1);
            kernel.entries.insert(tuple, (*n, since));
        }
        while next_tick <= *at {
            kernel.now = next_tick;
            witness.tick(next_tick, false, &mut kernel);
            next_tick += Duration::from_millis(100);
        }
        kernel.now = *at;
        let message = (Some(number as u32), *text, bytes.as_slice());
        witness.message(*at, message, &mut kernel);
    }
    let end = kernel.now + Duration::from_secs(5);
    while next_tick <= end {
        kernel.now = next_tick;
        witness.tick(next_tick, false, &mut kernel);
        next_tick += Duration::from_millis(100);
    }
    let told = std::mem::take(&mut witness.told);
    let key = |e: &Ended| (e.from.clone(), e.to.clone(), e.ack);
    let found: BTreeMap<_, _> = told.iter().map(|e| (key(e), (e.cause, e.direction))).collect();
    assert_eq!(found.len(), told.len(), "a connection was told twice");
    let missed: Vec<_> =
        expected.iter().filter(|(k, v)| found.get(*k) != Some(*v)).take(5).collect();
    let accused: Vec<_> =
        found.iter().filter(|(k, v)| expected.get(*k) != Some(*v)).take(5).collect();
    assert!(missed.is_empty() && accused.is_empty(), "missed {missed:?}, accused {accused:?}");
    assert_eq!(
        (witness.matcher.found.messages.lost, witness.matcher.found.messages.forgotten),
        (0, 0)
    );
    let (ended, unexplained) = witness.matcher.found.totals();
    assert_eq!((ended, unexplained), (expected.len() as u64, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Whatever the numbers and the order, every killed connection is named and no other.
    #[test]
    fn every_killed_connection_is_named_and_no_other(seed: u64, one_in in 2u32..50) {
        run(4_000, one_in, seed);
    }
}

/// The same at length; the 4-tuples are used again many times.
#[test]
fn a_long_churn_with_killed_ones_in_it() {
    let total = std::env::var("WITNESS_CONNECTIONS").map_or(130_000, |n| n.parse().unwrap());
    run(total, total / 1000, 7);
}

/// What is told of a server's segment without data and the client host's reset to it, both of which the
/// kernel logged with `texts`, where the two looks find `first` and `later`; and how many resets belong to
/// no connection.
fn told(
    flags: Flags,
    texts: [&str; 2],
    first: Option<Entry>,
    later: Option<Entry>,
) -> (Vec<Ended>, u64) {
    let witness = heard((flags, b""), texts, first, later);
    let stray = witness.matcher.found.stray_resets;
    (witness.told, stray)
}

/// The same of a segment with data.
fn heard(
    (flags, payload): (Flags, &[u8]),
    texts: [&str; 2],
    first: Option<Entry>,
    later: Option<Entry>,
) -> Witness {
    struct Around(Option<Entry>);
    impl Surroundings for Around {
        fn look(&mut self, _: Tuple) -> Look {
            self.0.map_or(Look::Absent, Look::Found)
        }
        fn here(&mut self, _: IpAddr) -> bool {
            false
        }
    }
    let c = connection(0, Story::Killed, Duration::ZERO);
    let back = Tuple { source: c.reply.destination, destination: c.reply.source };
    let heard = [packet(c.reply, (5, 7), flags, payload), packet(back, (7, 0), Flags::RST, b"")];
    let mut witness = Witness::default();
    for (n, bytes) in (0..).zip(&heard) {
        let text = format!("nf_ct_proto_6: {} ", texts[n as usize]);
        let message = (Some(n), text.as_str(), bytes.as_slice());
        witness.message(Duration::ZERO, message, &mut Around(first));
    }
    witness.tick(Duration::ZERO, false, &mut Around(first));
    witness.tick(Duration::from_secs(9), true, &mut Around(later));
    witness
}

/// A side that sends a bare FIN has closed: where its entry has gone, the reset ends nothing that a program
/// misses. Data that comes with the FIN is lost.
#[test]
fn a_fin_without_an_entry_ends_nothing() {
    let of = |payload| {
        let fin = Flags::FIN.with(Flags::ACK);
        let witness = heard((fin, payload), ["invalid new"; 2], None, None);
        let causes: Vec<_> = witness.told.iter().map(|e| e.cause).collect();
        (causes, witness.matcher.found.already_closing)
    };
    assert_eq!(of(b""), (Vec::new(), 1));
    assert_eq!(of(b"answer"), (vec![Cause::NoEntry], 0));
}

/// The entry of that connection's ports.
fn entry_in(state: TcpState) -> Entry {
    let c = connection(0, Story::Killed, Duration::ZERO);
    Entry {
        original: c.original,
        reply: c.reply,
        status: canary_conntrack::table::Status::empty(),
        state: Some(state),
        timeout: Some(Duration::from_secs(10)),
    }
}

const SYN_ACK: Flags = Flags::SYN.with(Flags::ACK);

/// A late copy of a SYN begins a half-open connection at the server, for which conntrack has no
/// entry; the client's host answers its SYN ACK. A connection that then takes the port is not
/// accused for it.
#[test]
fn a_connection_that_takes_the_port_afterwards_is_not_named() {
    let taken = Some(entry_in(TcpState::Close));
    // The port may be taken before the first look, or after it.
    for first in [None, taken] {
        let (told, stray) = told(SYN_ACK, ["invalid new"; 2], first, taken);
        assert_eq!((told.len(), stray), (0, 1), "{told:?}");
    }
}

/// An entry that was closed already when it was first looked up keeps no window: what conntrack finds
/// to acknowledge too much may be its own ends' talk. The connection is not said to be ended by it; where
/// the entry was open then, it is.
#[test]
fn an_acknowledgment_is_not_held_against_a_closed_entry() {
    let ahead = "ACK is over upper bound 6 (ACKed data not seen yet)";
    let closed = Some(entry_in(TcpState::Close));
    for (first, cause) in [
        (closed, Cause::Unexplained),
        (Some(entry_in(TcpState::Established)), Cause::AnsweredByClient),
    ] {
        let (told, stray) = told(Flags::ACK, [ahead, "invalid new"], first, closed);
        assert_eq!((told.len(), stray), (1, 0), "{told:?}");
        assert_eq!(told[0].cause, cause);
    }
}

/// A server that still has an older connection with these ports answers the new one's SYN by an
/// acknowledgment (RFC 9293, section 3.10.7.4), which the client resets: nothing of the new one is
/// ended. In any other state that is not cleared.
#[test]
fn an_older_connections_answer_to_a_syn_is_nobodys() {
    let opening = Some(entry_in(TcpState::SynSent));
    let text = |state: &str| format!("packet (index 3) in dir 1 invalid, state {state}");
    let (syn_sent, established) = (text("SYN_SENT"), text("ESTABLISHED"));
    let (none, stray) = told(Flags::ACK, [&syn_sent, "invalid new"], opening, opening);
    assert_eq!((none.len(), stray), (0, 1), "{none:?}");
    let open = Some(entry_in(TcpState::Established));
    let (one, stray) = told(Flags::ACK, [&established, "invalid new"], open, None);
    assert_eq!((one.len(), stray), (1, 0), "{one:?}");
    assert_eq!(one[0].cause, Cause::Unexplained);
}

/// Where a node sees a half of a connection, each of its segments is told, as many as there are: none
/// waits for an answer, and none is forgotten for that.
#[test]
fn half_of_a_connection_leaves_nothing_forgotten() {
    let c = connection(0, Story::Killed, Duration::ZERO);
    let mut kernel = Kernel { now: Duration::ZERO, entries: HashMap::new(), stories: Vec::new() };
    let mut witness = Witness::default();
    for n in 0..1000 {
        let bytes = packet(c.original, (5, n), Flags::ACK, b"");
        let text = "nf_ct_proto_6: packet (index 2) in dir 0 invalid, state SYN_SENT ";
        let message = (Some(n), text, bytes.as_slice());
        witness.message(Duration::ZERO, message, &mut kernel);
    }
    witness.tick(Duration::from_secs(9), true, &mut kernel);
    assert_eq!((witness.matcher.found.messages.forgotten, witness.told.len()), (0, 0));
    assert_eq!(witness.matcher.found.unanswered, [(Reason::InvalidState, 1000)].into());
}

/// What is told where a connection is killed at 7, then, if so, a SYN comes on its entry, and 2 s after
/// the first a reset with the number `second` answers another segment with the same ports. With
/// `traffic` the entry is fresh at that time, as a new connection's.
fn told_of_two(syn: Option<u32>, second: u32, traffic: bool) -> Vec<(u32, Cause)> {
    struct Around(Entry);
    impl Surroundings for Around {
        fn look(&mut self, _: Tuple) -> Look {
            Look::Found(self.0)
        }
        fn here(&mut self, _: IpAddr) -> bool {
            false
        }
    }
    let c = connection(0, Story::Killed, Duration::ZERO);
    let flags = Flags::SYN.with(Flags::FIN).with(Flags::ACK);
    let kill = |at: u64, number| {
        let segment = packet(c.reply, (5, number), flags, b"");
        let reset = packet(c.reply.reversed(), (number, 0), Flags::RST, b"");
        [(at, "invalid tcp flag combination", segment), (at, "invalid new", reset)]
    };
    let ignored = "packet (index 0) in dir 0 ignored, state ESTABLISHED";
    let opens = syn.map(|n| (1900, ignored, packet(c.original, (n, 0), Flags::SYN, b"")));
    let heard = kill(0, 7).into_iter().chain(opens).chain(kill(2000, second));
    let mut witness = Witness::default();
    let mut around = Around(entry_in(TcpState::Established));
    let timeout = |at: u64| {
        let last = if traffic { at.min(2000) } else { 0 };
        Some(Duration::from_secs(20 - (at - last) / 1000))
    };
    for (n, (at, text, bytes)) in (0..).zip(heard) {
        around.0.timeout = timeout(at);
        let text = format!("nf_ct_proto_6: {text} ");
        let message = (Some(n), text.as_str(), bytes.as_slice());
        witness.message(Duration::from_millis(at), message, &mut around);
    }
    for at in [3000, 9000] {
        around.0.timeout = timeout(at);
        witness.tick(Duration::from_millis(at), at == 9000, &mut around);
    }
    witness.told.iter().map(|e| (e.ack, e.cause)).collect()
}

/// Two connections with the same ports, both killed within three seconds, are two where something
/// shows it: the SYN that came between, or numbers that no window holds together. The new one's traffic
/// is no sign that the old one lived.
#[test]
fn two_killed_with_the_same_ports_are_two() {
    let killed = Cause::AnsweredByClient;
    for (syn, second) in [(Some(5000), 6000), (None, 1 << 31)] {
        for traffic in [false, true] {
            let told = told_of_two(syn, second, traffic);
            assert_eq!(told, [(7, killed), (second, killed)], "{syn:?}, {traffic}");
        }
    }
}

/// Where nothing shows it, the second may be the same connection's, whose first reset came when more had
/// been acknowledged: one is told as ended, and the other is not. Nor does a late copy of the first SYN
/// show it. Traffic after the first reset shows that this ended nothing.
#[test]
fn two_resets_that_may_be_of_one_connection_are_not_two() {
    let killed = Cause::AnsweredByClient;
    for syn in [None, Some(1)] {
        assert_eq!(told_of_two(syn, 6000, false), [(7, killed), (6000, Cause::Unexplained)]);
        assert_eq!(told_of_two(syn, 6000, true), [(6000, killed)]);
    }
}

/// A side that had sent FIN and was killed answers the other's FIN by a reset: an entry that was in
/// LAST_ACK and is closed then is not called closing, nor is anybody accused. One that a reset has closed
/// before the first look was ended all the same: this reset has no entry, and closes none.
#[test]
fn the_entry_may_move_on_before_it_is_looked_up() {
    let says = |first, later| {
        let over = "SEQ is over upper bound 1 (over the window of the receiver)";
        let entry = |state| Some(entry_in(state));
        let (told, _) = told(Flags::ACK, [over, "invalid new"], entry(first), entry(later));
        told.first().map(|e| e.cause)
    };
    let (last_ack, wait, close) = (TcpState::LastAck, TcpState::TimeWait, TcpState::Close);
    assert_eq!(says(last_ack, wait), None);
    assert_eq!(says(wait, close), None);
    assert_eq!(says(last_ack, close), Some(Cause::Unexplained));
    assert_eq!(says(close, close), Some(Cause::AnsweredByClient));
}
