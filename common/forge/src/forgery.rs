//! Which segment to forge, and which answer it provokes.
//!
//! `snd` is the server's next sequence number as the client last acknowledged
//! it, `rcv` the next one that the server expects from the client.

use std::str::FromStr;

use canary_record::names::Forgery;
use canary_wire::segment::{self, Emit, Flags, FourTuple, Segment};
use canary_wire::seq::Seq;

/// How far behind the window the original canary forges.
pub(crate) const BELOW: u32 = 100_000;
/// How far ahead of the window: the one distance that conntrack calls INVALID
/// for every window scale and every state (window fields reach 2^30).
pub(crate) const ABOVE: u32 = 0x7FFF_C000;
/// How far ahead of what the client sent a forged acknowledgment lies.
pub(crate) const ACK_AHEAD: u32 = 0x4000_0000;
/// How far beyond the window the overshoot begins at most. Twice the largest
/// window (65535 << 14) and this stay below 2^31, where conntrack's comparisons
/// turn; and from a window of 43 KiB on it lies further ahead than the 66,000
/// octets (MAXACKWINDOW) by which an acknowledgment may lag behind: conntrack then
/// takes no more note of what the client sends, and finds the server's next
/// acknowledgment INVALID.
pub(crate) const OVERSHOOT: u32 = 24 * 1024;
/// The window that forged segments offer, as Linux does at the start of a
/// connection; none of the answers depends on it.
const WINDOW: u16 = 502;
/// The class of forged segments, lower effort (RFC 8622), which a TCP repeats in its
/// reset and a rule that rejects does not.
pub(crate) const CLASS: u8 = 1 << 2;
/// The data of a forged segment: one octet suffices to make it a data segment,
/// a word is easier to find in a capture.
pub(crate) const PAYLOAD: &[u8] = b"boom!!!";

/// What to forge, by turns: each name once, in the order given. Empty, where only the other end
/// forges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgeries(pub Vec<Forgery>);

impl FromStr for Forgeries {
    type Err = String;

    /// Names with commas between them, or the sets `safe`, `lethal`, `all`; `none` alone.
    fn from_str(s: &str) -> Result<Self, String> {
        let mut list = Vec::new();
        if s.trim() == "none" {
            return Ok(Self(list));
        }
        for word in s.split(',').map(str::trim) {
            let names = match word {
                "safe" => Forgery::SAFE,
                "lethal" => Forgery::LETHAL,
                "all" => Forgery::ALL,
                name => &[name
                    .parse::<Forgery>()
                    .map_err(|e| format!("{e}, or of the sets safe, lethal, all, or none"))?][..],
            };
            for f in names {
                if !list.contains(f) {
                    list.push(*f);
                }
            }
        }
        Ok(Self(list))
    }
}

/// The numbers of a segment to send. Addresses are added by the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// SEG.SEQ
    pub seq: Seq,
    /// SEG.ACK
    pub ack: Seq,
    /// Control bits.
    pub flags: Flags,
    /// Data.
    pub payload: &'static [u8],
}

impl Spec {
    /// SEG.LEN, SYN and FIN counted (RFC 9293, section 3.4).
    #[must_use]
    pub fn seg_len(&self) -> u32 {
        self.payload.len() as u32
            + u32::from(self.flags.has(Flags::SYN))
            + u32::from(self.flags.has(Flags::FIN))
    }

    /// True when `rst` is the reset that a host without this connection answers
    /// to this segment (RFC 9293, section 3.10.7.1; `tcp_v4_send_reset()`).
    #[must_use]
    pub fn provokes(&self, rst: &Segment<'_>) -> bool {
        self.numbers().provokes(rst)
    }

    /// The numbers that its answer depends on.
    #[must_use]
    pub fn numbers(&self) -> segment::Numbers {
        segment::Numbers {
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            seg_len: self.seg_len(),
        }
    }

    /// True when it ends below `snd`, so that a D-SACK names it.
    pub(crate) fn is_old(&self, snd: Seq) -> bool {
        self.seq.add(self.seg_len()).before(snd)
    }

    /// The octets that a D-SACK for this segment would name (RFC 2883).
    pub(crate) fn named_by(&self, sack: Option<(Seq, Seq)>) -> bool {
        !self.payload.is_empty()
            && sack == Some((self.seq, self.seq.add(self.payload.len() as u32)))
    }
}

/// What is known of the connection when a segment is forged on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The server's next sequence number as the client last acknowledged it.
    pub snd: Seq,
    /// The next sequence number expected from the client.
    pub rcv: Seq,
    /// The largest window that the peer has offered, in octets.
    pub peer_window: u32,
}

/// The segment of a forgery.
#[must_use]
pub fn spec(forgery: Forgery, n: Numbers) -> Spec {
    let Numbers { snd, rcv, peer_window } = n;
    let data = Flags::PSH.with(Flags::ACK);
    let (seq, ack, flags, payload) = match forgery {
        // An octet that the peer has had: its answer names it. An old acknowledgment: should
        // the entry be lost and the control leak, its reset ends nothing.
        Forgery::Control => (snd.sub(2), rcv.sub(1), Flags::ACK, &b"\0"[..]),
        Forgery::BelowWindow => (snd.sub(BELOW), rcv, data, PAYLOAD),
        Forgery::AboveWindow => (snd.add(ABOVE), rcv, data, PAYLOAD),
        // At snd an answer would depend on the peer's tcp_ack(): Linux 6.18 gives
        // one. Below it tcp_sequence() refuses it before, with a duplicate ACK.
        // conntrack calls both INVALID.
        Forgery::AckAhead => (snd.sub(2), rcv.add(ACK_AHEAD), Flags::ACK, &b"\0"[..]),
        Forgery::NoFlags => (snd, rcv, Flags::default(), &b""[..]),
        Forgery::SynFin => (snd, rcv, Flags::SYN.with(Flags::FIN).with(Flags::ACK), &b""[..]),
        // tcp_in_window() since 6.1 lets it be and takes its end for the sender's new end, while it
        // oversteps by no more than the receiver's largest window.
        Forgery::Overshoot => {
            let over = peer_window.saturating_sub(16).min(OVERSHOOT);
            (snd.add(peer_window.saturating_add(over)), rcv, data, PAYLOAD)
        }
    };
    Spec { seq, ack, flags, payload }
}

/// A keep-alive probe with the one octet `at`, which the peer has had already: a live
/// peer answers it at once, with a D-SACK where SACK was negotiated, and its
/// limit of one answer in 500 ms to segments without data does not apply
/// (`tcp_oow_rate_limited()`). It must not end where another segment begins, or a
/// peer whose socket is busy would merge them in its backlog and answer once
/// (`tcp_add_to_backlog()`). Its acknowledgment is an old one, which a
/// peer does not come to look at (RFC 9293, section 3.10.7.4: the sequence number
/// is checked first; `tcp_validate_incoming()`): a reset that the probe provokes ends
/// nothing, and is never the one that `forged` provokes.
pub(crate) fn life_probe(n: Numbers, at: Seq, forged: Option<&Spec>) -> Spec {
    let old = n.rcv.sub(1);
    let ack = if forged.is_some_and(|f| f.ack == old) { old.sub(1) } else { old };
    Spec { seq: at, ack, flags: Flags::ACK, payload: b"\0" }
}

/// Writes the packet of a segment into `buf`. `timestamps` is what the peer sent last.
pub fn packet(
    tuple: &FourTuple,
    spec: &Spec,
    timestamps: Option<(u32, u32)>,
    buf: &mut Vec<u8>,
) -> bool {
    // RFC 7323, section 3.2: once negotiated, every segment carries timestamps.
    // Ours repeat what the peer echoed last, which is never too old.
    let mut options = [1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0];
    let options = timestamps.map_or(&[][..], |(value, echo)| {
        options[4..8].copy_from_slice(&echo.to_be_bytes());
        options[8..].copy_from_slice(&value.to_be_bytes());
        &options[..]
    });
    let emit = Emit {
        src: tuple.local,
        dst: tuple.remote,
        class: CLASS,
        seq: spec.seq,
        ack: spec.ack,
        flags: spec.flags,
        window: WINDOW,
        options,
        payload: spec.payload,
    };
    emit.packet(buf)
}

#[cfg(test)]
mod tests;
