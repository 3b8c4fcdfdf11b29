//! From the SYN to oblivion: when a segment is forged, with which numbers, and
//! what is remembered.

use super::*;

/// A retransmitted SYN draws a second SYN-ACK, whose answer must not be taken
/// for the forged segment's: nothing is forged until that has passed.
#[test]
fn a_retransmitted_syn_delays_the_forgery() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.syn().after(ms(20)).syn().ack().ack();
    p.after(ms(500));
    assert_eq!(p.forged(), None);
    p.after(ms(100));
    assert!(p.forged().is_some());
    assert_eq!(p.outcome(), None);
}

/// A handshake that took longer than a SYN-ACK's retransmission is waited out too.
#[test]
fn a_slow_handshake_delays_the_forgery() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.syn().after(ms(1100)).ack();
    p.after(ms(500));
    assert_eq!(p.forged(), None);
    p.after(ms(100));
    assert!(p.forged().is_some());
}

/// How long a handshake took is told by when its segments arrived, not by when
/// a busy machine read them.
#[test]
fn a_handshake_is_timed_by_its_arrival() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    let syn = Segment { seq: ISN, flags: Flags::SYN, ..p.base() };
    p.now = ms(2000);
    let at = |ms| Arrival { at: Duration::from_millis(ms), ..Arrival::default() };
    p.flows.segment(p.now, at(0), &syn, &mut p.out);
    p.flows.segment(p.now, at(1990), &plain(p.port), &mut p.out);
    assert_eq!(p.forged(), None);
    p.after(ms(600));
    assert!(p.forged().is_some());
}

/// With SYN cookies the server keeps nothing until the ACK; the numbers are all
/// the same, also where data completes the handshake because the ACK was lost.
#[test]
fn data_may_complete_the_handshake() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.syn();
    let data = Segment { payload_len: 100, ..p.base() };
    p.gets(&data);
    assert_eq!(p.forged().unwrap().ack, ISN.add(101));
}

/// An ACK that does not continue the SYN completes nothing.
#[test]
fn a_stray_ack_is_no_handshake() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.ack().syn();
    let stray = Segment { seq: ISN.add(1000), ..p.base() };
    p.gets(&stray);
    assert!(matches!(p.out[..], [Action::Opened { again: false, .. }]), "{:?}", p.out);
}

/// A SYN with another number on the same ports is another connection: the old
/// one stays unknown, and its late reset is not blamed on the new one.
#[test]
fn ports_used_again_are_another_connection() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    let isn = ISN.add(5_000_000);
    let syn = Segment { seq: isn, flags: Flags::SYN, options: SYN_OPTIONS, ..p.base() };
    p.gets(&syn);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::Reused)));
    // The server's challenge ACK for the new SYN draws this from the new client socket.
    p.rst(ISN.add(1));
    assert_eq!(p.resets(), [ResetCause::Other { expected: isn.add(1), closed: false }]);
    let ack = Segment { seq: isn.add(1), ack: SND.add(77), ..p.base() };
    p.gets(&ack).rst(isn.add(1));
    let options = dsack(p.sent());
    let answer = Segment { options: &options, ..ack };
    p.gets(&answer);
    assert_eq!(p.outcome(), Some(KILLED));
}

/// The same ports on another server address are another connection altogether.
#[test]
fn flows_are_keyed_by_all_four() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    let other = SocketAddr::from(([198, 18, 0, 9], 9000));
    let rst = Segment { seq: ISN.add(1), flags: Flags::RST, dst: other, ..p.base() };
    p.gets(&rst);
    assert_eq!(p.resets(), [ResetCause::UnknownConnection]);
    assert_eq!(p.outcome(), None);
}

/// Where addresses are named, a connection to another one is counted and let alone.
#[test]
fn only_named_addresses_are_judged_for() {
    for (named, forged) in [([198, 18, 0, 1], true), ([198, 18, 0, 9], false)] {
        let mut s = settings(&[Forgery::AboveWindow]);
        s.end = End::Server {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 9000))],
            local: vec![named.into()],
        };
        let mut p = Exchange::with(s);
        p.handshake();
        if forged {
            p.rst(ISN.add(1)).lives();
        }
        assert_eq!(p.forged().is_some(), forged);
        let elsewhere = p.out.iter().any(|a| matches!(a, Action::Elsewhere(_)));
        assert_eq!((elsewhere, p.judgements().is_empty()), (!forged, !forged));
    }
}

/// Another process may listen on the same port of another address: its connections are
/// let alone, and their resets are not counted.
#[test]
fn only_listeners_are_judged_for() {
    for (listen, mine) in [
        ("198.18.0.1:9000", true),
        ("198.18.0.9:9000", false),
        ("198.18.0.1:9001", false),
        ("0.0.0.0:9000", true),
        ("[::]:9000", true),
        ("[::]:9001", false),
        ("[::ffff:198.18.0.1]:9000", true),
        ("[::1]:9000", false),
    ] {
        let mut s = settings(&[Forgery::AboveWindow]);
        s.end = listening(vec!["[fd00::1]:9000".parse().unwrap(), listen.parse().unwrap()]);
        let mut p = Exchange::with(s);
        p.handshake();
        p.port += 1;
        p.rst(ISN);
        assert_eq!((p.forged().is_some(), p.resets().len()), (mine, usize::from(mine)), "{listen}");
    }
    let to: SocketAddr = "[fd00::1]:9000".parse().unwrap();
    for (listen, mine) in [("[::]:9000", true), ("[fd00::1]:9000", true), ("0.0.0.0:9000", false)] {
        let mut s = settings(&[Forgery::AboveWindow]);
        s.end = listening(vec![listen.parse().unwrap()]);
        let tuple = FourTuple::new(to, "[fd00::2]:1".parse().unwrap());
        assert_eq!(s.end.concerns(&tuple), mine, "{listen}");
    }
}

/// A SYN that was sent again long after is old, and the connection goes on.
#[test]
fn an_old_syn_changes_nothing() {
    let mut p = Exchange::new(Forgery::BelowWindow);
    p.handshake().syn();
    assert_eq!(p.outcome(), None);
    p.delivered();
    assert_eq!(p.outcome(), Some(Fate::Delivered));
}

/// Segments of a connection long gone neither answer nor move the numbers.
#[test]
fn old_segments_move_nothing() {
    let mut s = settings(&[Forgery::AboveWindow]);
    s.forge_delay = ms(100);
    let mut p = Exchange::with(s);
    p.handshake();
    let old = Segment { seq: ISN.sub(3_000_000_000), ack: SND.add(9), ..p.base() };
    let old_ack = Segment { ack: SND.sub(5000), ..p.base() };
    p.gets(&old).gets(&old_ack).after(ms(100));
    let spec = p.forged().unwrap();
    assert_eq!((spec.seq, spec.ack), (SND.add(0x7FFF_C000), ISN.add(1)));
}

/// What was forged in mid-stream has the numbers of that moment, gaps in the
/// client's data left out.
#[test]
fn a_delayed_forgery_has_the_latest_numbers() {
    let mut s = settings(&[Forgery::Control]);
    s.forge_delay = ms(100);
    let mut p = Exchange::with(s);
    p.handshake();
    let data = Segment { payload_len: 30, ..p.base() };
    let beyond_a_gap =
        Segment { seq: ISN.add(131), payload_len: 30, ack: SND.add(500), ..p.base() };
    p.gets(&data).gets(&beyond_a_gap).after(ms(100));
    let spec = p.forged().unwrap();
    assert_eq!((spec.seq, spec.ack), (SND.add(498), ISN.add(30)));
}

/// Data that came in another order is received all the same once the gap is filled.
#[test]
fn a_filled_gap_counts_what_lies_behind_it() {
    let mut p = Exchange::mid_stream(Forgery::Control);
    // 1 to 30 of 150 come last; what a duplicate brings again moves nothing.
    for (at, len) in [(61, 30), (31, 30), (91, 60), (1, 30), (61, 30)] {
        let data = Segment { seq: ISN.add(at), payload_len: len, ..p.base() };
        p.gets(&data);
    }
    p.after(ms(100));
    assert_eq!(p.forged().unwrap().ack, ISN.add(150));
}

/// With two gaps at once the next number is not known for certain: nothing is forged.
#[test]
fn two_gaps_are_let_alone() {
    let mut p = Exchange::mid_stream(Forgery::Control);
    for at in [31, 91, 1, 61] {
        let data = Segment { seq: ISN.add(at), payload_len: 30, ..p.base() };
        p.gets(&data);
    }
    p.after(ms(100));
    assert_eq!(p.forged(), None);
    assert!(p.out.contains(&Action::NotForged));
}

/// In mid-stream, acknowledgments of data may hide the answer that nothing names: unknown, not
/// dropped; what would be named is not there.
#[test]
fn a_busy_stream_proves_nothing() {
    for (forgery, fate) in
        [(Forgery::AboveWindow, Fate::Unknown(Why::Busy)), (Forgery::BelowWindow, Fate::Dropped)]
    {
        let mut p = Exchange::mid_stream(forgery);
        p.after(ms(100));
        for n in 1..60 {
            p.now += ms(1);
            let mut options = stamp(p.now);
            if let Some(probe) = p.probe() {
                options.extend(dsack(probe));
            }
            let ack = Segment { ack: SND.add(1448 * n), options: &options, ..p.base() };
            p.gets(&ack).after(ms(20)).after(ms(100));
        }
        assert_eq!(p.outcome(), Some(fate));
    }
}

/// A client that has closed before the delay is over gets nothing forged.
#[test]
fn nothing_is_forged_after_a_close() {
    let mut s = settings(&[Forgery::AboveWindow]);
    s.forge_delay = ms(100);
    let mut p = Exchange::with(s);
    p.handshake().fin().after(ms(100));
    assert_eq!(p.forged(), None);
    assert!(p.out.contains(&Action::NotForged));
}

/// Timestamps, once negotiated, are carried on with their latest values.
#[test]
fn timestamps_are_echoed() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.syn();
    let options = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 5];
    let ack = Segment { options: &options, ..p.base() };
    p.gets(&ack);
    let Some(Action::Forge { timestamps, .. }) = p.out.last() else { panic!("nothing forged") };
    assert_eq!(*timestamps, Some((9, 5)));
}

/// A window scaled by 14 is taken at its full size, and the SYN's is not scaled.
#[test]
fn windows_scaled_by_14() {
    let mut p = Exchange::new(Forgery::Overshoot);
    let syn =
        Segment { seq: ISN, flags: Flags::SYN, options: &[3, 3, 14, 0], window: 65535, ..p.base() };
    p.gets(&syn);
    let ack = Segment { window: 65535, ..p.base() };
    p.gets(&ack);
    let window = 65535 << 14;
    assert_eq!(p.forged().unwrap().seq, SND.add(window + forgery::OVERSHOOT));
}

/// Forgeries take turns over the connections.
#[test]
fn forgeries_take_turns() {
    let mut p = Exchange::with(settings(&[Forgery::Control, Forgery::SynFin]));
    for port in 1..=4 {
        p.port = port;
        p.handshake();
    }
    let turns: Vec<_> = p
        .out
        .iter()
        .filter_map(|a| if let Action::Forge { forgery, .. } = a { Some(*forgery) } else { None })
        .collect();
    assert_eq!(turns, [Forgery::Control, Forgery::SynFin, Forgery::Control, Forgery::SynFin]);
}

/// A flood of SYNs pushes out its own, never a connection under judgement.
#[test]
fn a_syn_flood_does_not_evict_connections() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    for port in 1000..10_000 {
        p.port = port;
        p.syn();
    }
    assert_eq!((p.flows.remembered(), p.flows.evicted()), (100, 0));
    p.port = 40000;
    p.rst(ISN.add(1)).lives();
    assert_eq!(p.outcome(), Some(KILLED));
}

/// A table full of connections gives up the one due first, and says so.
#[test]
fn eviction_is_counted() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    for port in 1..=101 {
        p.port = port;
        p.now += ms(1);
        p.handshake();
    }
    assert_eq!((p.flows.remembered(), p.flows.evicted()), (100, 1));
    assert_eq!(p.judgements()[0].tuple.remote.port(), 1);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::Evicted)));
}

/// A full table gives up what is judged before what is not.
#[test]
fn the_judged_are_evicted_first() {
    let mut p = Exchange::new(Forgery::BelowWindow);
    for port in 1..=150 {
        p.port = port;
        p.handshake();
        if (51..=100).contains(&port) {
            p.delivered();
        }
    }
    assert_eq!((p.flows.remembered(), p.flows.evicted()), (100, 0));
    p.port = 151;
    p.handshake();
    assert_eq!((p.flows.remembered(), p.flows.evicted()), (100, 1));
}

/// Everything is forgotten in the end.
#[test]
fn connections_expire() {
    let mut p = Exchange::new(Forgery::BelowWindow);
    for port in 1..=50 {
        p.port = port;
        p.syn();
        if port % 2 == 0 {
            p.ack().delivered();
        }
    }
    p.after(Duration::from_secs(10));
    assert_eq!(p.flows.remembered(), 25);
    let unfinished = p.out.iter().filter(|a| matches!(a, Action::Unfinished { syns: 1, .. }));
    assert_eq!(unfinished.count(), 25);
    p.after(Duration::from_secs(60));
    assert_eq!(p.flows.remembered(), 0);
    assert_eq!(p.flows.next_deadline(), None);
}

/// The end of the run leaves the unjudged unknown, and counts them with those on which
/// nothing was forged yet.
#[test]
fn the_end_interrupts() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    assert_eq!(p.flows.finish(p.now, &mut p.out), 1);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::Interrupted)));

    let mut p = Exchange::mid_stream(Forgery::AboveWindow);
    assert_eq!(p.flows.finish(p.now, &mut p.out), 1);
    assert_eq!(p.outcome(), None);
}

/// What could not be sent is unknown for that reason.
#[test]
fn a_failed_send_is_unknown() {
    let mut p = Exchange::new(Forgery::AboveWindow);
    p.handshake();
    let base = p.base();
    let tuple = FourTuple::new(base.dst, base.src);
    p.flows.send_failed(p.now, &tuple, &mut p.out);
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::SendFailed)));
}
