//! The end that connects: the same judgements, of a server.

use super::*;

/// The client's end of a connection to 198.18.0.2:40000, opened by the server's SYN-ACK.
fn connecting(forgery: Forgery) -> Exchange {
    let mut s = settings(&[forgery]);
    s.end = End::Client { target: SocketAddr::from(([198, 18, 0, 2], 40000)) };
    let mut p = Exchange::with(s);
    let syn_ack =
        Segment { seq: ISN, flags: Flags::SYN.with(Flags::ACK), options: SYN_OPTIONS, ..p.base() };
    p.gets(&syn_ack);
    p
}

/// The same, introduced to the server and with the segment forged.
fn forging(forgery: Forgery) -> Exchange {
    let mut p = connecting(forgery);
    p.after(ms(20)).after(ms(1)).lives().after(ms(20));
    p
}

/// The client's end: the SYN-ACK has every number, and its own acknowledgment goes first.
#[test]
fn the_clients_end_forges_towards_the_server() {
    let mut p = forging(Forgery::AboveWindow);
    let spec = p.forged().unwrap();
    assert_eq!((spec.seq, spec.ack), (SND.add(0x7FFF_C000), ISN.add(1)));
    p.rst(ISN.add(1)).lives();
    assert_eq!(p.outcome(), Some(KILLED));
}

/// At the client's end a reset with a larger TTL than the SYN-ACK's is a node's: the Service's
/// address is the node's own, and the untranslated segment reached its stack.
#[test]
fn the_clients_end_tells_a_nodes_reset() {
    let mut p = forging(Forgery::AboveWindow);
    let rst = Segment { seq: ISN.add(1), ack: Seq(0), flags: Flags::RST, options: &[], ..p.base() };
    p.hears(&rst, TTL + 1, crate::forgery::CLASS).lives();
    assert_eq!(p.outcome(), Some(Fate::Leaked { killed: true, node: true }));
}

/// At the client's end the server's socket shows by its answers that the segment was delivered,
/// or, silent to it alone, dropped; without any answer nothing is proved.
#[test]
fn the_clients_end_judges_the_servers_answers() {
    let mut p = forging(Forgery::AboveWindow);
    p.delivered();
    assert_eq!(p.outcome(), Some(Fate::Delivered));

    let mut p = forging(Forgery::AboveWindow);
    p.silent_rounds(4);
    assert_eq!(p.outcome(), None);
    p.silent_rounds(1);
    assert_eq!(p.outcome(), Some(Fate::Dropped));

    let mut p = forging(Forgery::AboveWindow);
    for _ in 0..20 {
        p.after(TIMEOUT);
    }
    assert_eq!(p.outcome(), Some(Fate::Unknown(Why::NoProofOfLife)));
}

/// Nothing is forged before the server was shown to have completed the handshake: until then it
/// resets what acknowledges anything else than its SYN.
#[test]
fn the_clients_end_waits_for_the_servers() {
    let mut p = connecting(Forgery::AboveWindow);
    for _ in 0..3 {
        p.after(ms(200));
        let asked = p.sent();
        p.rst(asked.ack);
    }
    assert_eq!((p.forged(), p.resets().len()), (None, 0));
    p.lives().after(ms(20));
    assert!(p.forged().is_some());
    let mut p = connecting(Forgery::AboveWindow);
    for _ in 0..40 {
        p.after(ms(100));
    }
    assert_eq!(p.forged(), None);
    assert!(p.out.contains(&Action::NotForged));
}

/// A server far away is given its round trips too: the answer to the introduction measures them.
#[test]
fn the_clients_timeout_follows_the_round_trip() {
    let mut p = connecting(Forgery::AboveWindow);
    p.after(ms(20));
    let asked = p.sent();
    p.after(ms(250)).names(asked).after(ms(20));
    let forged = p.forged().unwrap();
    p.after(ms(990));
    assert_eq!(p.sent(), forged);
    p.after(ms(20));
    assert_ne!(p.sent(), forged);
}

/// Other connections of the client's host, and SYNs, are none of this end's.
#[test]
fn the_clients_end_lets_others_alone() {
    let mut s = settings(&[Forgery::AboveWindow]);
    s.end = End::Client { target: SocketAddr::from(([198, 18, 0, 2], 80)) };
    let mut p = Exchange::with(s);
    let syn_ack =
        Segment { seq: ISN, flags: Flags::SYN.with(Flags::ACK), options: SYN_OPTIONS, ..p.base() };
    p.gets(&syn_ack);
    p.port = 80;
    p.syn().after(TIMEOUT);
    assert_eq!((p.flows.remembered(), p.out), (0, Vec::new()));
}
