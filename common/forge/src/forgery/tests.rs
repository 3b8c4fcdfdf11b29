//! Every forgery against a model of conntrack's window check, both generations.

use super::*;
use proptest::prelude::*;

#[path = "../../tests/support/window.rs"]
mod window;

use window::{Class, Entry, Passing, Side};

/// The server's side of an entry.
const SERVER: usize = 1;

fn class(entry: &mut Entry, s: &Spec) -> Class {
    let seg_len = s.seg_len();
    let passing = Passing { seq: s.seq, ack: s.ack, flags: s.flags, seg_len, window: WINDOW };
    entry.class(SERVER, &passing)
}

/// A connection after its handshake and some traffic.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    isn: (u32, u32),
    /// The client's and the server's windows, unscaled.
    windows: (u16, u16),
    scales: (u8, u8),
    /// What the client and the server have sent and had acknowledged.
    sent: (u32, u32),
    /// Of the server's, in flight, as parts of 1000 of the client's window.
    in_flight: u32,
}

impl Traffic {
    fn entry(self, new: bool) -> (Entry, Numbers) {
        let window = |w: u16, scale: u8| u32::from(w) << scale;
        let (client_win, server_win) =
            (window(self.windows.0, self.scales.0), window(self.windows.1, self.scales.1));
        let rcv = Seq(self.isn.0).add(1).add(self.sent.0);
        let snd = Seq(self.isn.1).add(1).add(self.sent.1);
        // The windows of the SYNs are not scaled and count too.
        let client_max = client_win.max(u32::from(self.windows.0)).max(1);
        let server_max = server_win.max(u32::from(self.windows.1)).max(1);
        let in_flight = (u64::from(client_win) * u64::from(self.in_flight) / 1000) as u32;
        let server = Side {
            end: snd.add(in_flight),
            max_end: snd.add(client_win),
            max_win: server_max,
            scale: self.scales.1,
        };
        let client = Side {
            end: rcv,
            max_end: rcv.add(server_win),
            max_win: client_max,
            scale: self.scales.0,
        };
        (Entry { sides: [client, server], new }, Numbers { snd, rcv, peer_window: client_max })
    }
}

fn traffic() -> impl Strategy<Value = Traffic> {
    let window =
        prop_oneof![Just(0u16), Just(1), Just(502), Just(64240), Just(65535), any::<u16>()];
    let scale = prop_oneof![Just(0u8), Just(7), Just(14), 0u8..=14];
    (
        any::<(u32, u32)>(),
        (window.clone(), window),
        (scale.clone(), scale),
        (0u32..1 << 30, 0u32..1 << 30),
        0u32..999,
    )
        .prop_map(|(isn, windows, scales, sent, in_flight)| Traffic {
            isn,
            windows,
            scales,
            sent,
            in_flight,
        })
}

proptest! {
    /// Above the window is INVALID for every window, scale and kernel.
    #[test]
    fn above_window_is_always_invalid(t in traffic(), new: bool) {
        let (mut entry, n) = t.entry(new);
        prop_assert_eq!(class(&mut entry, &spec(Forgery::AboveWindow, n)), Class::Invalid);
    }

    /// An acknowledgment of what was never sent is INVALID on every kernel.
    #[test]
    fn ack_ahead_is_always_invalid(t in traffic(), new: bool) {
        let (mut entry, n) = t.entry(new);
        prop_assert_eq!(class(&mut entry, &spec(Forgery::AckAhead, n)), Class::Invalid);
    }

    /// The control passes on every kernel. So does the probe for life, unless what is in flight
    /// leaves less of the client's largest window than the probe lies behind.
    #[test]
    fn control_and_probe_are_never_invalid(t in traffic(), new: bool) {
        const BEHIND: u32 = 40;
        let (mut entry, n) = t.entry(new);
        let room = n.snd.add(n.peer_window).since(entry.sides[SERVER].end);
        prop_assert_eq!(class(&mut entry, &spec(Forgery::Control, n)), Class::Valid);
        let probe = life_probe(n, n.snd.sub(BEHIND), Some(&spec(Forgery::Control, n)));
        let passes = match (room >= BEHIND - 1, new) {
            (true, _) => Class::Valid,
            (false, true) => Class::Ignored,
            (false, false) => Class::Invalid,
        };
        prop_assert_eq!(class(&mut entry, &probe), passes);
    }

    /// Below the window is never INVALID since Linux 6.1, and always before it
    /// while the client's window is smaller than the distance, as it is at the
    /// start of a Linux connection.
    #[test]
    fn below_window_tells_the_generations_apart(t in traffic()) {
        let (mut entry, n) = t.entry(true);
        prop_assert_ne!(class(&mut entry, &spec(Forgery::BelowWindow, n)), Class::Invalid);
        let (mut entry, n) = Traffic { scales: (0, 0), ..t }.entry(false);
        prop_assert_eq!(class(&mut entry, &spec(Forgery::BelowWindow, n)), Class::Invalid);
    }

    /// The overshoot is INVALID before Linux 6.1; since then it is let be and
    /// moves the end that conntrack believes in beyond anything sent.
    #[test]
    fn overshoot_poisons_the_entry(t in traffic()) {
        let t = Traffic { in_flight: 0, ..t };
        prop_assume!(t.windows.0 >= 64);
        let (mut entry, n) = t.entry(false);
        prop_assert_eq!(class(&mut entry, &spec(Forgery::Overshoot, n)), Class::Invalid);
        let (mut entry, n) = t.entry(true);
        let s = spec(Forgery::Overshoot, n);
        prop_assert_eq!(class(&mut entry, &s), Class::Ignored);
        prop_assert_eq!(entry.sides[SERVER].end, s.seq.add(s.seg_len()));
    }

    /// Nothing but what is meant to kill draws a reset with the expected number.
    #[test]
    fn only_lethal_segments_draw_a_killing_reset(t in traffic()) {
        let (_, n) = t.entry(true);
        for f in Forgery::ALL {
            let s = spec(*f, n);
            let provoked = if s.flags.has(Flags::ACK) { s.ack } else { Seq(0) };
            let kills = provoked == n.rcv && *f != Forgery::NoFlags;
            // (A leaked overshoot's reset is one too: poisoning makes the next segment leak.)
            let lethal = Forgery::LETHAL.contains(f) || *f == Forgery::Overshoot;
            prop_assert_eq!(kills, lethal, "{}", f);
        }
    }

    /// The reset that the probe provokes is no forged segment's, however much the client
    /// has sent in between, and not the one that ends the connection.
    #[test]
    fn the_probes_reset_is_told_apart(t in traffic(), since in prop_oneof![0u32..4, 0u32..1 << 29]) {
        let (_, n) = t.entry(true);
        let now = Numbers { rcv: n.rcv.add(since), ..n };
        for f in Forgery::ALL {
            let s = spec(*f, n);
            let any = std::net::SocketAddr::from(([198, 18, 0, 1], 1));
            let seq = life_probe(now, n.snd.sub(4), Some(&s)).ack;
            let rst = Segment { src: any, dst: any, seq, ack: Seq(0), flags: Flags::RST, window: 0, options: &[], payload_len: 0 };
            prop_assert!(!s.provokes(&rst), "{}", f);
            prop_assert_ne!(seq, now.rcv);
        }
    }

    /// The provoked reset is recognised, and none that differs in any number or flag.
    #[test]
    fn recognises_the_provoked_reset(t in traffic(), flags: u8, off in 1u32..) {
        let (_, n) = t.entry(true);
        for f in Forgery::ALL {
            let s = spec(*f, n);
            let any = std::net::SocketAddr::from(([198, 18, 0, 1], 1));
            let (seq, ack, right) = if s.flags.has(Flags::ACK) {
                (s.ack, Seq(0), Flags::RST)
            } else {
                (Seq(0), s.seq.add(s.seg_len()), Flags::RST.with(Flags::ACK))
            };
            let rst = Segment { src: any, dst: any, seq, ack, flags: right, window: 0, options: &[], payload_len: 0 };
            prop_assert!(s.provokes(&rst));
            let other = Segment { seq: seq.add(off), ..rst };
            prop_assert!(!s.provokes(&other));
            let both = Flags::RST.0 | Flags::ACK.0;
            prop_assert_eq!(s.provokes(&Segment { flags: Flags(flags), ..rst }), flags & both == right.0);
        }
    }
}
