//! The kernel's words: a text's class, its bound, and how often it came.

use canary_record::result::witness::Reason;
use canary_wire::seq::Seq;

/// `nf_ct_l4proto_log_invalid()` since Linux 4.18, and what came before it.
const PREFIXES: &[&str] = &["nf_ct_proto_6: ", "nf_ct_tcp: "];

/// One text about a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Words<'a> {
    /// Without conntrack's own prefix.
    pub(crate) text: &'a str,
    pub(crate) reason: Reason,
    pub(crate) bound: Option<Seq>,
}

impl Words<'_> {
    /// True for what is not possible in SYN_SENT: the server still has an older connection with these
    /// ports, whose client is gone, and a reset ends that and lets the new one's SYN in (RFC 9293,
    /// section 3.5.1); or the answers take a way past this node, and each legal segment is told so.
    pub(crate) fn is_of_an_opening_one(&self) -> bool {
        self.reason == Reason::InvalidState && self.text.ends_with("state SYN_SENT")
    }
}

/// What conntrack says of a TCP segment; none of what another part of the kernel says.
pub(crate) fn read(prefix: &str) -> Option<Words<'_>> {
    let prefix = prefix.trim_end_matches('\0');
    let text = PREFIXES.iter().find_map(|p| prefix.strip_prefix(p))?.trim_end();
    Some(Words { text, reason: Reason::of(text), bound: bound(text) })
}

fn bound(text: &str) -> Option<Seq> {
    let (_, rest) = text.split_once(" bound ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok().map(Seq)
}

/// Texts with their numbers written N, and how often each came. Bounded: what finds no room is
/// counted under one name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Texts {
    known: Vec<(String, u64)>,
}

/// Which text; only the [`Texts`] that gave it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TextId(u8);

impl Texts {
    const ROOM: usize = 64;
    const REST: &'static str = "other texts";

    pub(crate) fn note(&mut self, text: &str) -> TextId {
        let id = self.known.iter().position(|(known, _)| without_numbers(text).eq(known.chars()));
        let id = id.unwrap_or_else(|| {
            if self.known.len() < Self::ROOM {
                self.known.push((without_numbers(text).collect(), 0));
            } else if self.known.len() == Self::ROOM {
                self.known.push((Self::REST.to_owned(), 0));
            }
            self.known.len() - 1
        });
        self.known[id].1 += 1;
        TextId(id as u8)
    }

    /// The text, with `bound` where one was named.
    pub(crate) fn spell(&self, id: TextId, bound: Option<Seq>) -> String {
        let text = self.known.get(usize::from(id.0)).map_or(Self::REST, |(text, _)| text);
        match bound {
            Some(bound) => text.replacen("bound N", &format!("bound {bound}"), 1),
            None => text.to_owned(),
        }
    }

    pub(crate) fn counts(&self) -> impl Iterator<Item = (&str, u64)> {
        self.known.iter().map(|(text, n)| (text.as_str(), *n))
    }
}

/// The text with each of its numbers written N.
fn without_numbers(text: &str) -> impl Iterator<Item = char> + '_ {
    let mut in_number = false;
    text.chars().filter_map(move |c| {
        let again = std::mem::replace(&mut in_number, c.is_ascii_digit());
        if in_number { (!again).then_some('N') } else { Some(c) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts of Linux 5.10 and of 6.18 have their classes, and the bound where one is named.
    #[test]
    fn texts_have_classes() {
        for (text, reason, bound) in [
            (
                "SEQ is over upper bound 1909026095 (over the window of the receiver)",
                Reason::SeqOver,
                Some(1_909_026_095),
            ),
            (
                "SEQ is over the upper bound (over the window of the receiver)",
                Reason::SeqOver,
                None,
            ),
            (
                "SEQ is under lower bound 3587159464 (already ACKed data retransmitted)",
                Reason::SeqUnder,
                Some(3_587_159_464),
            ),
            ("ACK is over upper bound 7 (ACKed data not seen yet)", Reason::AckOver, Some(7)),
            ("ACK is under the lower bound (possible overly delayed ACK)", Reason::AckUnder, None),
            ("12 bytes more than expected", Reason::SeqOver, None),
            ("invalid tcp flag combination", Reason::BadFlags, None),
            ("invalid new", Reason::InvalidNew, None),
            ("invalid rst", Reason::InvalidRst, None),
            ("invalid state", Reason::InvalidState, None),
            ("packet (index 2) in dir 1 ignored, state SYN_SENT", Reason::Ignored, None),
            ("invalid packet ignored in state SYN_RECV", Reason::Ignored, None),
            ("bad checksum", Reason::Malformed, None),
            ("words of a kernel to come", Reason::Other, None),
        ] {
            for prefix in PREFIXES {
                let said = format!("{prefix}{text} \0");
                let words = read(&said).unwrap();
                assert_eq!((words.text, words.reason), (text, reason));
                assert_eq!(words.bound, bound.map(Seq), "{text}");
            }
        }
        for other in ["TRACE: raw:PREROUTING:policy:2 ", "nf_ct_proto_17: bad checksum ", ""] {
            assert_eq!(read(other), None);
        }
    }

    /// One text with other numbers is the same text; the list is bounded, no count is lost.
    #[test]
    fn texts_are_counted_without_their_numbers() {
        let mut texts = Texts::default();
        let id = texts.note("SEQ is over upper bound 17 (over 4)");
        assert_eq!(texts.note("SEQ is over upper bound 4000000000 (over 12)"), id);
        assert_eq!(texts.spell(id, Some(Seq(9))), "SEQ is over upper bound 9 (over N)");
        assert_ne!(texts.note("SEQ is over upper bound 17 (over)"), id);
        for n in 0..200u32 {
            texts.note(&"x".repeat(n as usize));
        }
        assert_eq!(texts.counts().count(), Texts::ROOM + 1);
        assert_eq!(texts.counts().map(|(_, n)| n).sum::<u64>(), 203);
    }
}
