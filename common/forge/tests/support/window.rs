//! A model of conntrack's window check, both generations: `tcp_in_window()` and `tcp_error()`
//! in the kernel's net/netfilter/nf_conntrack_proto_tcp.c. Shared by the unit tests of the
//! forgeries and by the simulation.

use canary_wire::segment::Flags;
use canary_wire::seq::Seq;

/// What conntrack calls a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// In the window.
    Valid,
    /// Out of it, and let be: translated, since Linux 6.1.
    Ignored,
    /// INVALID, which be_liberal lets be.
    Invalid,
    /// INVALID whatever be_liberal says: no combination of flags that TCP has.
    BadFlags,
}

/// The numbers of a segment that conntrack sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passing {
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: Flags,
    /// SYN and FIN counted.
    pub(crate) seg_len: u32,
    /// As on the wire.
    pub(crate) window: u16,
}

/// One side as conntrack sees it; all zero until its SYN has passed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Side {
    /// The greatest number sent, plus one.
    pub(crate) end: Seq,
    /// The greatest number that the other side's window allows.
    pub(crate) max_end: Seq,
    /// The largest window offered.
    pub(crate) max_win: u32,
    pub(crate) scale: u8,
}

/// The client's side, the server's, and whether the kernel is 6.1 or later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) sides: [Side; 2],
    pub(crate) new: bool,
}

impl Entry {
    /// What a segment of side `from` is called, and what the entry learns from it.
    pub(crate) fn class(&mut self, from: usize, s: &Passing) -> Class {
        if !valid_flags(s.flags) {
            return Class::BadFlags;
        }
        let end = s.seq.add(s.seg_len);
        let (mut sender, mut receiver) = (self.sides[from], self.sides[1 - from]);
        if sender.max_win == 0 {
            (sender.end, sender.max_end) = (end, end);
            sender.max_win = u32::from(s.window).max(1);
        }
        // Without ACK the acknowledgment is taken to be right.
        let ack = if s.flags.has(Flags::ACK) { s.ack } else { receiver.end };
        let below_upper = s.seq.before(sender.max_end.add(1));
        let above_lower =
            receiver.max_win == 0 || end.after(sender.end.sub(receiver.max_win).sub(1));
        let ack_below_upper = ack.before(receiver.end.add(1));
        // MAXACKWINDOW is never less than 66000.
        let ack_above_lower = ack.after(receiver.end.sub(sender.max_win.max(66_000)).sub(1));
        if below_upper && above_lower && ack_below_upper && ack_above_lower {
            let scale = if s.flags.has(Flags::SYN) { 0 } else { sender.scale };
            let window = u32::from(s.window) << scale;
            sender.max_win = sender.max_win.max(window);
            if end.after(sender.end) {
                sender.end = end;
            }
            if receiver.max_win != 0 && end.after(sender.max_end) {
                receiver.max_win += end.since(sender.max_end);
            }
            if ack.add(window).after(receiver.max_end.sub(1)) {
                receiver.max_end = ack.add(window).add(u32::from(window == 0));
            }
            (self.sides[from], self.sides[1 - from]) = (sender, receiver);
            return Class::Valid;
        }
        if !self.new {
            return Class::Invalid;
        }
        if !below_upper {
            let overshot = end.since(sender.max_end).wrapping_add(1);
            if above_lower && ack_above_lower && ack_below_upper && overshot <= receiver.max_win {
                self.sides[from].end = end;
                return Class::Ignored;
            }
            return Class::Invalid;
        }
        if ack_below_upper { Class::Ignored } else { Class::Invalid }
    }
}

/// `tcp_valid_flags[]`; PSH, ECE and CWR do not count.
const fn valid_flags(flags: Flags) -> bool {
    const SYN: u8 = Flags::SYN.0;
    const ACK: u8 = Flags::ACK.0;
    const SYN_ACK: u8 = SYN | ACK;
    const FIN_ACK: u8 = Flags::FIN.0 | ACK;
    const RST: u8 = Flags::RST.0;
    const RST_ACK: u8 = RST | ACK;
    let urgent = flags.has(Flags::URG);
    match flags.0 & (SYN | FIN_ACK | RST) {
        SYN | ACK | FIN_ACK => true,
        SYN_ACK | RST | RST_ACK => !urgent,
        _ => false,
    }
}
