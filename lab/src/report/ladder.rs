//! The packets of one connection as both ends captured them, side by side:
//! which of them conntrack translated, which it did not, and what that did.
//! Pure; every word follows from the packets themselves.

use std::net::SocketAddr;
use std::ops::Deref;

use canary_record::names::Forgery;
use canary_runtime::page::{Event, Role, Seen};
use canary_testbed::capture;
use canary_wire::segment::{Flags, Segment};
use canary_wire::seq::Seq;

/// A TCP segment of a capture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Packet {
    /// Seconds since the epoch.
    pub(crate) t: f64,
    /// The segment, without what no story needs: window and options.
    pub(crate) segment: Segment<'static>,
}

impl Deref for Packet {
    type Target = Segment<'static>;
    fn deref(&self) -> &Segment<'static> {
        &self.segment
    }
}

impl Packet {
    pub(crate) fn new(t: f64, s: &Segment<'_>) -> Self {
        let Segment { src, dst, seq, ack, flags, payload_len, .. } = *s;
        let (window, options) = (0, &[][..]);
        Self { t, segment: Segment { src, dst, seq, ack, flags, window, options, payload_len } }
    }

    fn is_syn(&self) -> bool {
        self.flags.has(Flags::SYN) && !self.flags.has(Flags::ACK)
    }

    /// The next sequence number after this segment.
    fn end(&self) -> Seq {
        self.seq.add(self.seg_len())
    }

    /// NAT changes addresses and ports, nothing else.
    fn same(&self, other: &Self) -> bool {
        Segment { src: other.src, dst: other.dst, ..self.segment } == other.segment
    }
}

/// One connection from its handshake to its end.
#[derive(Clone, Debug)]
pub(crate) struct Ladder {
    pub(crate) forgery: Forgery,
    /// What the client connected to.
    pub(crate) target: SocketAddr,
    pub(crate) server: SocketAddr,
    /// In the order in which the senders sent.
    pub(crate) events: Vec<Event>,
    /// True when the forged segment and the RST that answers it were both found.
    pub(crate) complete: bool,
    /// True when that RST is one that the server must accept.
    pub(crate) killed: bool,
    /// True when the server pod sees another address than the client's own.
    pub(crate) masqueraded: bool,
}

impl Ladder {
    /// Whether the first segment that is one of `roles` was seen at the client.
    pub(crate) fn at_client(&self, roles: &[Role]) -> bool {
        let first = self.events.iter().find(|e| roles.contains(&e.role));
        first.is_some_and(|e| !matches!(e.seen[0], Seen::Absent(_)))
    }
}

/// Both captures of one connection, the client's taken in `host`. Where client and server share a
/// host, give its one capture as both. `kernel` is what the kernel said of the forged segment.
pub(crate) fn build(
    client: &[Packet],
    server: &[Packet],
    forgery: Forgery,
    host: &str,
    kernel: Option<&str>,
) -> Option<Ladder> {
    let asked = *client.iter().find(|p| p.is_syn())?;
    // In a shared capture the client's own addresses tell its copies from the server's.
    let shared = client == server;
    let of_client = |p: &&Packet| {
        let own = [asked.src, asked.dst];
        own.contains(&p.src) && own.contains(&p.dst)
    };
    let client: Vec<Packet> = client.iter().filter(|p| !shared || of_client(p)).copied().collect();
    let server: Vec<Packet> = server.iter().filter(|p| !shared || !of_client(p)).copied().collect();
    let arrived = server.iter().find(|p| p.is_syn() && p.seq == asked.seq)?;
    let answered = server.iter().find(|p| {
        p.src == arrived.dst && p.flags.has(Flags::SYN.with(Flags::ACK)) && !p.flags.has(Flags::FIN)
    })?;
    let mut story = Story {
        forgery,
        host,
        kernel,
        target: asked.dst,
        server: arrived.dst,
        client_isn: asked.seq,
        server_isn: answered.seq,
        rcv: asked.seq.add(1),
        snd: answered.seq.add(1),
        forged: None,
        answered: false,
        killed: false,
        established: false,
    };
    let mut events: Vec<Event> = pair(&client, &server, asked.src, arrived.dst)
        .into_iter()
        .map(|p| story.tell(&p, asked.t))
        .collect();
    shorten(&mut events);
    // NAT does not change the order: the first segment is the client's SYN in both captures.
    let masqueraded = asked.src != arrived.src;
    Some(Ladder {
        forgery,
        target: asked.dst,
        server: arrived.dst,
        events,
        complete: story.answered,
        killed: story.killed,
        masqueraded,
    })
}

/// A segment where it was captured.
struct Pair {
    to_server: bool,
    client: Option<Packet>,
    server: Option<Packet>,
}

impl Pair {
    fn packet(&self) -> Option<&Packet> {
        if self.to_server {
            self.client.as_ref().or(self.server.as_ref())
        } else {
            self.server.as_ref().or(self.client.as_ref())
        }
    }
}

/// Finds each segment of one capture in the other, and sorts by departure.
fn pair(client: &[Packet], server: &[Packet], asker: SocketAddr, pod: SocketAddr) -> Vec<Pair> {
    let mut rest: Vec<Option<Packet>> = server.iter().copied().map(Some).collect();
    let mut pairs = Vec::new();
    for p in client {
        let to_server = p.src == asker;
        let matches =
            |q: &&mut Option<Packet>| q.is_some_and(|q| q.same(p) && (q.dst == pod) == to_server);
        let there = rest.iter_mut().find(matches).and_then(Option::take);
        pairs.push(Pair { to_server, client: Some(*p), server: there });
    }
    for q in rest.into_iter().flatten() {
        pairs.push(Pair { to_server: q.dst == pod, client: None, server: Some(q) });
    }
    let time = |p: &Pair| p.packet().map_or(0.0, |p| p.t);
    pairs.sort_by(|a, b| time(a).total_cmp(&time(b)));
    pairs
}

/// What is known so far, from the server's point of view.
struct Story<'a> {
    forgery: Forgery,
    host: &'a str,
    kernel: Option<&'a str>,
    target: SocketAddr,
    server: SocketAddr,
    client_isn: Seq,
    server_isn: Seq,
    /// The next sequence number that the server expects.
    rcv: Seq,
    /// The server's next, as the client last acknowledged it.
    snd: Seq,
    forged: Option<Packet>,
    answered: bool,
    killed: bool,
    established: bool,
}

impl Story<'_> {
    fn tell(&mut self, pair: &Pair, begin: f64) -> Event {
        let Some(p) = pair.packet().copied() else {
            unreachable!("a pair has at least one packet");
        };
        let forged = !pair.to_server
            && self.forged.is_none()
            && capture::forged(self.server_isn, self.client_isn, &p) == Some(self.forgery);
        let (role, words) = if forged {
            self.forged = Some(p);
            (Role::Invalid, self.forged_words(pair, &p))
        } else if pair.to_server
            && !self.answered
            && self.forged.is_some_and(|f| f.numbers().provokes(&p))
        {
            self.answered = true;
            self.rst_words(pair, &p)
        } else if self.killed {
            (Role::Aftermath, aftermath(pair, &p))
        } else {
            (Role::Own, self.own_words(pair, &p))
        };
        let numbers = self.numbers(pair.to_server, &p);
        if pair.to_server && role == Role::Own && !p.flags.has(Flags::RST) {
            if p.end().after(self.rcv) {
                self.rcv = p.end();
            }
            if p.flags.has(Flags::ACK) {
                self.snd = p.ack;
            }
        }
        let mark = match role {
            Role::Invalid => "Forged.",
            Role::Kill => "Killed.",
            Role::Answer => "Leaked.",
            Role::Own | Role::Aftermath => "",
        };
        let odd = |p: &Packet| p.src != self.target && p.dst != self.target;
        let seen = |p: Option<Packet>, host: &str, odd: bool| match p {
            Some(p) if odd => Seen::Odd(p.src.to_string(), p.dst.to_string()),
            Some(p) => Seen::At(p.src.to_string(), p.dst.to_string()),
            None => Seen::Absent(format!("not seen in {host}")),
        };
        let odd = !mark.is_empty() && pair.client.as_ref().is_some_and(odd);
        Event {
            role,
            ms: Some((p.t - begin) * 1000.0),
            to_server: pair.to_server,
            seen: [seen(pair.client, self.host, odd), seen(pair.server, "the server pod", false)],
            numbers,
            mark,
            words,
            kernel: self.kernel.filter(|_| role == Role::Invalid).map(str::to_owned),
        }
    }

    fn forged_words(&self, pair: &Pair, p: &Packet) -> String {
        let what = format!("By boom-server ({}): {}.", self.forgery, self.distance(p));
        match (&pair.client, &pair.server) {
            (Some(c), _) if c.src != self.target => format!(
                "{what} conntrack calls it INVALID and does not translate it back: it reaches the \
                 client from {}, an address that the client never talked to.",
                c.src
            ),
            // Outside the translation, as in a node: nothing is to be seen of it here.
            (Some(_), _) if self.target == self.server => format!(
                "{what} The client’s capture is taken outside the node’s translation, so both show \
                 the same; what conntrack made of it shows in the answer."
            ),
            (Some(_), _) => {
                format!("{what} It was translated and reached the client’s own socket.")
            }
            (None, Some(s)) => format!(
                "{what} It was addressed to {} and is not in the client’s capture.",
                s.dst.ip()
            ),
            (None, None) => what,
        }
    }

    /// Where the forged segment lies, in the terms that conntrack judges by.
    fn distance(&self, p: &Packet) -> String {
        let seq = p.seq.0.wrapping_sub(self.snd.0).cast_signed();
        let ack = p.ack.0.wrapping_sub(self.rcv.0).cast_signed();
        match self.forgery {
            Forgery::NoFlags => "no flag is set".to_owned(),
            Forgery::SynFin => "SYN and FIN together, which no TCP sends".to_owned(),
            Forgery::AckAhead => format!("it acknowledges 0x{ack:X} octets that were never sent"),
            _ if seq < 0 => {
                format!("its sequence number is {} below the next one", seq.unsigned_abs())
            }
            _ => format!("its sequence number is 0x{seq:X} above the next one"),
        }
    }

    fn rst_words(&mut self, pair: &Pair, p: &Packet) -> (Role, String) {
        let who = if pair.client.is_some() {
            "The client’s kernel finds no connection for that segment and answers RST."
        } else {
            "The node, to which the segment was addressed, knows no such connection and answers \
             RST (it is not in the client’s capture)."
        };
        // RFC 5961, section 3.2: exactly RCV.NXT resets, anything else does not.
        if p.seq == self.rcv && pair.server.is_some() {
            self.killed = true;
            let words = format!(
                "{who} Its sequence number is the forged acknowledgment, exactly what the server \
                 expects next (RFC 5961): the server’s connection is dead."
            );
            (Role::Kill, words)
        } else {
            let words = format!(
                "{who} Its sequence number is not what the server expects next, so the server ignores it: leaked, and harmless."
            );
            (Role::Answer, words)
        }
    }

    fn own_words(&mut self, pair: &Pair, p: &Packet) -> String {
        if p.is_syn() {
            return match (&pair.client, &pair.server) {
                (Some(c), Some(s)) if c.dst != s.dst && c.src != s.src => format!(
                    "The client calls {}. The node rewrites both ends: the server pod sees {} (DNAT \
                     and masquerade).",
                    c.dst, s.src
                ),
                (Some(c), Some(s)) if c.dst != s.dst => format!(
                    "The client calls {}. The node rewrites it to the server pod’s address (DNAT).",
                    c.dst
                ),
                _ => "The client opens the connection.".to_owned(),
            };
        }
        if p.flags.has(Flags::SYN) {
            let back =
                pair.client.is_some_and(|c| c.src == self.target) && self.target != self.server;
            return if back {
                "The server pod answers. conntrack translates it back: for the client it comes from \
                 the address it called."
                    .to_owned()
            } else {
                "The server pod answers.".to_owned()
            };
        }
        let who = if pair.to_server { "client" } else { "server" };
        if p.flags.has(Flags::RST) {
            return format!("RST of the {who} whose numbers no forged segment provokes.");
        }
        if p.flags.has(Flags::FIN) {
            return format!("The {who} closes.");
        }
        if p.payload_len > 0 {
            return format!("{} octets from the {who}.", p.payload_len);
        }
        if pair.to_server && !self.established {
            self.established = true;
            return "The connection is established.".to_owned();
        }
        format!("The {who} acknowledges.")
    }

    /// Flags, numbers relative to each side's first, length.
    fn numbers(&self, to_server: bool, p: &Packet) -> String {
        let (own, other) = if to_server {
            (self.client_isn, self.server_isn)
        } else {
            (self.server_isn, self.client_isn)
        };
        let flags = if p.flags.0 == 0 { "no flags".to_owned() } else { p.flags.to_string() };
        let relative = |n: Seq, isn: Seq| i64::from(n.0.wrapping_sub(isn.0).cast_signed());
        let mut text = vec![flags, format!("seq {}", relative(p.seq, own))];
        if p.flags.has(Flags::ACK) {
            text.push(format!("ack {}", relative(p.ack, other)));
        }
        if p.payload_len > 0 {
            text.push(format!("{} octets", p.payload_len));
        }
        text.join(" · ")
    }
}

fn aftermath(pair: &Pair, p: &Packet) -> String {
    match (pair.to_server, p.flags.has(Flags::RST)) {
        (true, false) if p.payload_len > 0 => format!(
            "The client knows nothing of it and sends {} octets on a connection that the server \
             no longer has.",
            p.payload_len
        ),
        (false, true) if pair.client.is_some() => {
            "The server answers RST: the client’s application gets ECONNRESET.".to_owned()
        }
        (false, true) => "The server answers RST, which is not in the client’s capture.".to_owned(),
        (true, true) => "RST of the client.".to_owned(),
        (true, false) if p.flags.has(Flags::FIN) => "The client closes.".to_owned(),
        (true, false) => "The client acknowledges.".to_owned(),
        (false, false) if p.flags.has(Flags::FIN) => "The server closes.".to_owned(),
        (false, false) => "From the server, after the reset.".to_owned(),
    }
}

/// A long exchange loses its middle; what was forged and what follows stays.
fn shorten(events: &mut Vec<Event>) {
    const BEFORE: usize = 8;
    const AFTER: usize = 12;
    let Some(forged) = events.iter().position(|e| e.role == Role::Invalid) else {
        events.truncate(BEFORE + AFTER);
        return;
    };
    if forged > BEFORE {
        events.drain(BEFORE - 2..forged - 2);
    }
    let forged = events.iter().position(|e| e.role == Role::Invalid).unwrap_or(0);
    events.truncate(forged + AFTER);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection on which above-window was forged, and the RST that came from the client then, as
    /// both ends saw it.
    fn ended_by(flags: Flags) -> Ladder {
        let [client, service, server] =
            ["198.18.65.10:2220", "198.19.0.10:80", "198.18.66.20:9000"]
                .map(|a| a.parse().unwrap());
        let both = Flags::SYN.with(Flags::ACK);
        let data = Flags::PSH.with(Flags::ACK);
        let at_client: Vec<_> = [
            (client, service, 99, 0, Flags::SYN, 0),
            (service, client, 499, 100, both, 0),
            (client, service, 100, 500, Flags::ACK, 0),
            // Not translated back.
            (server, client, 500 + 0x7FFF_C000, 100, data, 7),
            (client, server, 100, 0, flags, 0),
        ]
        .into_iter()
        .zip(0_u8..)
        .map(|((src, dst, seq, ack, flags, payload_len), t)| {
            let (seq, ack, window, options) = (Seq(seq), Seq(ack), 0, &[][..]);
            let s = Segment { src, dst, seq, ack, flags, window, options, payload_len };
            Packet::new(f64::from(t), &s)
        })
        .collect();
        let translated = |a| if a == service { server } else { a };
        let at_server: Vec<_> = at_client
            .iter()
            .map(|p| {
                let (src, dst) = (translated(p.src), translated(p.dst));
                Packet { segment: Segment { src, dst, ..p.segment }, ..*p }
            })
            .collect();
        build(&at_client, &at_server, Forgery::AboveWindow, "the client pod", None).unwrap()
    }

    /// The kernel's RST to a segment of no connection is the kill.
    #[test]
    fn the_provoked_reset_kills() {
        let ladder = ended_by(Flags::RST);
        assert!(ladder.complete && ladder.killed);
        assert_eq!(ladder.events.last().unwrap().role, Role::Kill);
    }

    /// An application's own reset has the same sequence number, and its ACK bit set: no kill.
    #[test]
    fn an_applications_reset_is_no_kill() {
        let ladder = ended_by(Flags::RST.with(Flags::ACK));
        assert!(!ladder.complete && !ladder.killed);
        let last = ladder.events.last().unwrap();
        assert_eq!(last.role, Role::Own);
        assert!(last.words.contains("no forged segment provokes"), "{}", last.words);
    }
}
