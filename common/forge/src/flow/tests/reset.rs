//! Resets: a forged segment's, or another's, and whether the client was there.

use super::*;

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
