//! A model of the TCP at one end: how Linux answers what reaches a socket, and what reaches none.

use canary_wire::segment::Flags;
use canary_wire::seq::Seq;

/// A segment on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: Flags,
    pub(crate) window: u16,
    /// Octets of data.
    pub(crate) len: u32,
    /// The timestamps option.
    pub(crate) stamp: Option<(u32, u32)>,
    /// The one block of a SACK option.
    pub(crate) block: Option<(Seq, Seq)>,
    /// A SYN offers SACK.
    pub(crate) sack: bool,
    pub(crate) ttl: u8,
    pub(crate) class: u8,
    /// Which forging's round this is, or which one's a reset answers.
    pub(crate) forging: Option<usize>,
    /// Not translated on its way: no socket matches it, and conntrack does not know its answer.
    pub(crate) stray: bool,
}

impl Wire {
    /// SYN and FIN counted.
    pub(crate) fn seg_len(&self) -> u32 {
        self.len + u32::from(self.flags.has(Flags::SYN)) + u32::from(self.flags.has(Flags::FIN))
    }

    fn end(&self) -> Seq {
        self.seq.add(self.seg_len())
    }

    /// What a host without the connection answers (RFC 9293, section 3.10.7.1).
    pub(crate) fn reset(&self) -> Self {
        let (seq, ack, flags) = if self.flags.has(Flags::ACK) {
            (self.ack, Seq(0), Flags::RST)
        } else {
            (Seq(0), self.end(), Flags::RST.with(Flags::ACK))
        };
        let (len, stamp, block, sack, window) = (0, None, None, false, 0);
        Self { seq, ack, flags, window, len, stamp, block, sack, ..*self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No connection.
    Closed,
    SynSent,
    SynReceived,
    /// Until both FINs have been acknowledged.
    Open,
    TimeWait,
    /// Switched off, or behind a cut cable.
    Vanished,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is so or not, whatever the others")]
pub(crate) struct Host {
    pub(crate) state: State,
    /// A SYN is accepted.
    pub(crate) listens: bool,
    pub(crate) isn: Seq,
    /// SND.NXT, SND.UNA, RCV.NXT
    pub(crate) next: Seq,
    pub(crate) una: Seq,
    pub(crate) rcv: Seq,
    /// Behind a gap, and whether it ends with FIN.
    ahead: Option<(Seq, Seq, bool)>,
    pub(crate) fin_sent: bool,
    /// It was the first to send FIN.
    closed_first: bool,
    pub(crate) peer_fin: bool,
    pub(crate) window: u16,
    pub(crate) sack: bool,
    /// Its clock's offset, where it uses timestamps.
    pub(crate) clock: Option<u32>,
    recent: u32,
    /// The last answer that is limited to one in 500 ms (`tcp_oow_rate_limited()`).
    limited: Option<u64>,
}

/// The TTL that segments of a host arrive with.
pub(crate) const TTL: u8 = 62;
pub(crate) const SCALE: u8 = 7;

impl Host {
    pub(crate) fn new(isn: Seq, listens: bool, sack: bool, clock: Option<u32>) -> Self {
        Self {
            state: State::Closed,
            listens,
            isn,
            next: isn,
            una: isn,
            rcv: Seq(0),
            ahead: None,
            fin_sent: false,
            closed_first: false,
            peer_fin: false,
            window: 502,
            sack,
            clock,
            recent: 0,
            limited: None,
        }
    }

    pub(crate) fn open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// A segment of this host's with these numbers.
    pub(crate) fn wire(&self, now: u64, flags: Flags, seq: Seq, len: u32) -> Wire {
        let value = |offset: u32| (offset.wrapping_add((now / 1000) as u32), self.recent);
        let acks = flags.has(Flags::ACK);
        Wire {
            seq,
            ack: if acks { self.rcv } else { Seq(0) },
            flags,
            window: if flags.has(Flags::SYN) { 64240 } else { self.window },
            len,
            stamp: self.clock.map(value),
            block: None,
            sack: flags.has(Flags::SYN) && self.sack,
            ttl: TTL,
            class: 0,
            forging: None,
            stray: false,
        }
    }

    fn answer(&self, now: u64, block: Option<(Seq, Seq)>) -> Wire {
        let block = block.filter(|_| self.sack);
        Wire { block, ..self.wire(now, Flags::ACK, self.next, 0) }
    }

    pub(crate) fn connect(&mut self, now: u64) -> Wire {
        self.state = State::SynSent;
        self.next = self.isn.add(1);
        self.wire(now, Flags::SYN, self.isn, 0)
    }

    /// Sends data.
    pub(crate) fn say(&mut self, now: u64, len: u32) -> Wire {
        let data = self.wire(now, Flags::PSH.with(Flags::ACK), self.next, len);
        self.next = self.next.add(len);
        data
    }

    pub(crate) fn fin(&mut self, now: u64) -> Wire {
        let fin = self.wire(now, Flags::FIN.with(Flags::ACK), self.next, 0);
        self.next = self.next.add(1);
        (self.fin_sent, self.closed_first) = (true, !self.peer_fin);
        fin
    }

    /// An application's reset (`tcp_send_active_reset()`).
    pub(crate) fn abort(&mut self, now: u64) -> Wire {
        self.state = State::Closed;
        self.wire(now, Flags::RST.with(Flags::ACK), self.next, 0)
    }

    /// What is not acknowledged, once more.
    pub(crate) fn again(&self, now: u64) -> Option<Wire> {
        match self.state {
            State::SynSent => Some(self.wire(now, Flags::SYN, self.isn, 0)),
            State::SynReceived => Some(self.wire(now, Flags::SYN.with(Flags::ACK), self.isn, 0)),
            State::Open if self.una != self.next => {
                let fin = self.fin_sent;
                let flags = if fin { Flags::FIN.with(Flags::ACK) } else { Flags::ACK };
                let len = self.next.since(self.una) - u32::from(fin);
                Some(self.wire(now, flags, self.una, len))
            }
            _ => None,
        }
    }

    /// Takes a segment; what it answers goes to `out`.
    pub(crate) fn receive(&mut self, now: u64, w: &Wire, out: &mut Vec<Wire>) {
        let rst = w.flags.has(Flags::RST);
        let unknown = |out: &mut Vec<Wire>| {
            if !rst {
                out.push(Wire { ttl: TTL, ..w.reset() });
            }
        };
        if w.stray && !rst {
            return unknown(out);
        }
        let opens = w.flags == Flags::SYN;
        match self.state {
            State::Vanished => {}
            State::Closed if opens && self.listens => self.accept(now, w, out),
            State::Closed => unknown(out),
            State::SynSent => {
                if w.flags.has(Flags::ACK) && w.ack != self.next {
                    unknown(out);
                } else if rst && w.flags.has(Flags::ACK) {
                    self.state = State::Closed;
                } else if w.flags.has(Flags::SYN.with(Flags::ACK)) {
                    self.established(w);
                    out.push(self.answer(now, None));
                }
            }
            // tcp_timewait_state_process()
            State::TimeWait if opens && self.listens && w.seq.after(self.rcv) => {
                self.accept(now, w, out);
            }
            State::TimeWait if w.seq == self.rcv && (rst || w.seg_len() == 0) => {
                if rst {
                    self.state = State::Closed;
                }
            }
            State::TimeWait => {
                if !rst && (w.seg_len() > 0 && !w.flags.has(Flags::SYN) || self.unlimited(now)) {
                    out.push(self.answer(now, None));
                }
            }
            // tcp_check_req()
            State::SynReceived if opens && w.seq.add(1) == self.rcv => {
                if self.unlimited(now) {
                    out.extend(self.again(now));
                }
            }
            State::SynReceived if w.flags.has(Flags::ACK) && w.ack != self.next && !rst => {
                unknown(out);
            }
            State::SynReceived | State::Open => self.socket(now, w, out),
        }
    }

    fn accept(&mut self, now: u64, w: &Wire, out: &mut Vec<Wire>) {
        // RFC 9293, section 3.4.1: the clock of initial numbers ticks each 64 ns on Linux.
        let isn = self.isn.add(now as u32 * 16);
        *self = Self::new(isn, true, self.sack, self.clock);
        self.state = State::SynReceived;
        self.next = isn.add(1);
        self.rcv = w.seq.add(1);
        self.sack &= w.sack;
        self.clock = self.clock.filter(|_| w.stamp.is_some());
        self.recent = w.stamp.map_or(0, |(value, _)| value);
        out.extend(self.again(now));
    }

    fn established(&mut self, w: &Wire) {
        self.state = State::Open;
        self.rcv = w.seq.add(1);
        self.una = w.ack;
        self.sack &= w.sack;
        self.clock = self.clock.filter(|_| w.stamp.is_some());
        self.recent = w.stamp.map_or(0, |(value, _)| value);
    }

    /// `tcp_validate_incoming()` in its order, then `tcp_ack()` and `tcp_data_queue()`.
    fn socket(&mut self, now: u64, w: &Wire, out: &mut Vec<Wire>) {
        let (end, seg_len) = (w.end(), w.seg_len());
        let rst = w.flags.has(Flags::RST);
        let offered = u32::from(self.window) << SCALE;
        if end.before(self.rcv) || w.seq.after(self.rcv.add(offered)) {
            if rst {
                // A reset for the FIN (tcp_reset_check()).
                if w.seq == self.rcv.sub(1) && self.peer_fin {
                    self.state = State::Closed;
                }
            } else if w.flags.has(Flags::SYN) {
                self.challenge(now, out);
            } else if seg_len > 0 || self.unlimited(now) {
                let old = seg_len > 0 && w.seq.before(self.rcv);
                out.push(self.answer(now, old.then_some((w.seq, end))));
            }
            return;
        }
        if rst {
            if w.seq == self.rcv {
                self.state = State::Closed;
            } else {
                self.challenge(now, out);
            }
            return;
        }
        if w.flags.has(Flags::SYN) {
            return self.challenge(now, out);
        }
        if !w.flags.has(Flags::ACK) || w.ack.after(self.next) {
            return;
        }
        if self.state == State::SynReceived {
            self.state = State::Open;
            self.una = self.next;
        }
        if w.ack.after(self.una) {
            self.una = w.ack;
        }
        if let Some((value, _)) = w.stamp
            && !w.seq.after(self.rcv)
        {
            self.recent = value;
        }
        if seg_len > 0 {
            self.queue(now, w, out);
        }
        if self.fin_sent && self.una == self.next && self.peer_fin {
            self.state = if self.closed_first { State::TimeWait } else { State::Closed };
        }
    }

    fn queue(&mut self, now: u64, w: &Wire, out: &mut Vec<Wire>) {
        let (end, fin) = (w.end(), w.flags.has(Flags::FIN));
        if !end.after(self.rcv) {
            return out.push(self.answer(now, Some((w.seq, end))));
        }
        let mut block = None;
        if w.seq.after(self.rcv) {
            let (from, to, had) = self.ahead.unwrap_or((w.seq, end, fin));
            let from = if w.seq.before(from) { w.seq } else { from };
            let to = if end.after(to) { end } else { to };
            self.ahead = Some((from, to, had || fin));
            block = Some((from, to));
        } else {
            self.rcv = end;
            self.peer_fin |= fin;
            if let Some((_, to, had)) = self.ahead.take_if(|(from, ..)| !from.after(end)) {
                self.rcv = if to.after(end) { to } else { end };
                self.peer_fin |= had;
            }
        }
        out.push(self.answer(now, block));
    }

    fn unlimited(&mut self, now: u64) -> bool {
        let free = self.limited.is_none_or(|at| now >= at + 500_000);
        if free {
            self.limited = Some(now);
        }
        free
    }

    fn challenge(&mut self, now: u64, out: &mut Vec<Wire>) {
        if self.unlimited(now) {
            out.push(self.answer(now, None));
        }
    }
}
