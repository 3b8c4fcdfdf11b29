//! Which reset answers which INVALID segment, and what became of the connection: pure. Segments,
//! entries and the time come in; what to look up and what is judged go out. Memory is bounded,
//! and what found no room is counted.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use ahash::AHashMap;
use canary_conntrack::table::{Entry, TcpState, Tuple};
use canary_record::result::witness::{Cause, Direction, Reason};
use canary_wire::segment::{Flags, Numbers, Segment};
use canary_wire::seq::Seq;

use super::found::Found;
use super::reason::TextId;

/// How long after a segment its reset may come.
pub(crate) const ANSWER: Duration = Duration::from_secs(1);
/// How long after the reset the entry is looked up again: conntrack tells timeouts in whole
/// seconds, and the two looks are compared.
pub(crate) const SETTLE: Duration = Duration::from_secs(3);
/// The same segment sent again within this time is one suspect.
const AGAIN: Duration = Duration::from_millis(500);
/// Suspects that wait for a reset at most.
const SUSPECTS: usize = 1 << 15;
/// Suspects of one tuple at most.
const ON_ONE: usize = 8;
/// Pairs that wait for the second look at most.
const PAIRS: usize = 1 << 12;
/// Tuples of which is remembered what was judged, so that no connection counts twice.
const JUDGED: usize = 1 << 12;
/// The largest window there is (RFC 7323, section 2.3). An acknowledgment further ahead than
/// that of all that was sent gives a reset that lies outside of every window.
const MAX_WINDOW: u32 = 65_535 << 14;

/// A segment that conntrack took note of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard<'a> {
    pub(crate) segment: Segment<'a>,
    pub(crate) reason: Reason,
    /// The bound that it broke, where the text names one.
    pub(crate) bound: Option<Seq>,
    pub(crate) text: TextId,
}

/// A segment that may be answered by a reset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Suspect {
    /// When it was heard first.
    pub(crate) at: Duration,
    pub(crate) numbers: Numbers,
    pub(crate) reason: Reason,
    pub(crate) bound: Option<Seq>,
    pub(crate) text: TextId,
    heard: u32,
    answered: u32,
}

impl Suspect {
    /// True when the reset that it provokes has a sequence number that the receiver cannot take
    /// (RFC 9293, section 3.10.7.4; RFC 5961, section 3.2).
    pub(crate) fn harmless(&self) -> bool {
        if !self.numbers.flags.has(Flags::ACK) {
            // <SEQ=0>: RCV.NXT is 0 once in 2^32.
            return true;
        }
        let ahead =
            |bound| self.numbers.ack.after(bound) && self.numbers.ack.since(bound) >= MAX_WINDOW;
        self.reason == Reason::AckOver && self.bound.is_some_and(ahead)
    }

    /// True when conntrack may have been right about the acknowledgment, so that the reset's
    /// number alone does not show that it was taken.
    fn doubtful(&self) -> bool {
        match self.reason {
            Reason::AckUnder => true,
            Reason::AckOver => self.bound.is_none(),
            _ => false,
        }
    }
}

/// What a look for an entry gave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Look {
    #[default]
    NotMade,
    Absent,
    Found(Entry),
}

impl Look {
    pub(crate) const fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Found(entry) => Some(entry),
            Self::NotMade | Self::Absent => None,
        }
    }

    /// Where conntrack sees the connection.
    pub(crate) fn state(&self) -> Option<TcpState> {
        self.entry().and_then(|e| e.state)
    }
}

/// An INVALID segment and the reset that answered it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pair {
    /// The segment's addresses; the reset's are the same, reversed.
    pub(crate) tuple: Tuple,
    pub(crate) suspect: Suspect,
    pub(crate) reset_at: Duration,
    pub(crate) reset_reason: Reason,
    /// The entry just after the reset, and when it was looked up.
    pub(crate) first: (Duration, Look),
    /// Another connection has these ports since, by its SYN or by a number that no window of this one
    /// holds: what is found later is of that.
    pub(crate) reopened: bool,
}

impl Pair {
    const fn number(&self) -> Seq {
        self.suspect.numbers.ack
    }

    /// The connection's entry, of the two looks. Where conntrack had none for the segment, or none was
    /// there after it, what is found later is another connection's, which took the port.
    pub(crate) fn entry<'a>(&'a self, second: &'a Look) -> Option<&'a Entry> {
        let first = &self.first.1;
        if self.suspect.reason == Reason::InvalidNew || *first == Look::Absent {
            return None;
        }
        first.entry().or(second.entry())
    }
}

/// Matches resets with segments.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    suspects: AHashMap<Tuple, Vec<Suspect>>,
    /// When which tuple's oldest suspect was heard, oldest first.
    order: VecDeque<(Duration, Tuple)>,
    /// Oldest first.
    pairs: AHashMap<Tuple, Vec<Pair>>,
    settling: VecDeque<(Duration, Tuple)>,
    judged: AHashMap<Tuple, Judged>,
    judged_order: VecDeque<Tuple>,
    pub(crate) found: Found,
    /// Pairs judged without a second look for want of room.
    pub(crate) hurried: u64,
}

/// What was judged of a tuple's last pair.
#[derive(Clone, Copy, Debug)]
struct Judged {
    number: Seq,
    reset_at: Duration,
    /// A connection counts as ended by it, and it may be the one of the next pair.
    ended: bool,
}

/// What to do after a segment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    Nothing,
    /// Look up the entry of this tuple, and tell [`Matcher::looked`], with the reset's number.
    Look(Tuple, Seq),
    /// No room to wait: look up the entry and judge now.
    Judge(Box<Pair>),
}

impl Matcher {
    pub(crate) fn hear(&mut self, now: Duration, heard: &Heard<'_>) -> Next {
        self.forget(now);
        if heard.segment.flags.has(Flags::RST) {
            return self.reset(now, heard);
        }
        if !matches!(heard.reason, Reason::Ignored | Reason::Malformed) {
            self.suspect(now, heard);
        }
        Next::Nothing
    }

    fn suspect(&mut self, now: Duration, heard: &Heard<'_>) {
        let s = &heard.segment;
        let tuple = Tuple { source: s.src, destination: s.dst };
        let numbers = s.numbers();
        let list = self.suspects.entry(tuple).or_insert_with(|| Vec::with_capacity(1));
        if let Some(last) = list.last_mut() {
            // A stream of segments with one acknowledgment draws resets with one number.
            let alike = last.numbers.flags.has(Flags::ACK)
                && numbers.flags.has(Flags::ACK)
                && last.numbers.ack == numbers.ack
                && last.reason == heard.reason;
            if alike && now.saturating_sub(last.at) < AGAIN {
                last.heard = last.heard.saturating_add(1);
                return;
            }
        }
        let (reason, bound, text) = (heard.reason, heard.bound, heard.text);
        list.push(Suspect { at: now, numbers, reason, bound, text, heard: 1, answered: 0 });
        if list.len() > ON_ONE {
            let old = list.remove(0);
            self.found.messages.forgotten += u64::from(old.heard - old.answered.min(old.heard));
        }
        self.order.push_back((now, tuple));
        if self.order.len() > SUSPECTS
            && let Some((at, tuple)) = self.order.pop_front()
            && let Some(old) = self.take(at, tuple)
        {
            self.found.messages.forgotten += u64::from(old.heard - old.answered.min(old.heard));
        }
    }

    /// Removes the tuple's oldest suspect if it is the one heard at `at`.
    fn take(&mut self, at: Duration, tuple: Tuple) -> Option<Suspect> {
        let list = self.suspects.get_mut(&tuple)?;
        let old = list.first().is_some_and(|s| s.at == at).then(|| list.remove(0));
        if list.is_empty() {
            self.suspects.remove(&tuple);
        }
        old
    }

    /// Gives up what was not answered in time.
    fn forget(&mut self, now: Duration) {
        while let Some(&(at, tuple)) = self.order.front() {
            if at + ANSWER > now {
                break;
            }
            self.order.pop_front();
            if let Some(old) = self.take(at, tuple) {
                self.unanswered(&old);
            }
        }
    }

    fn unanswered(&mut self, old: &Suspect) {
        let n = u64::from(old.heard.saturating_sub(old.answered));
        if n > 0 {
            *self.found.unanswered.entry(old.reason).or_default() += n;
        }
    }

    fn reset(&mut self, now: Duration, heard: &Heard<'_>) -> Next {
        let s = &heard.segment;
        let tuple = Tuple { source: s.dst, destination: s.src };
        let list = self.suspects.get_mut(&tuple);
        let Some(suspect) =
            list.and_then(|list| list.iter_mut().find(|suspect| suspect.numbers.provokes(s)))
        else {
            self.found.stray_resets += 1;
            return Next::Nothing;
        };
        suspect.answered = suspect.answered.saturating_add(1);
        let pair = Pair {
            tuple,
            suspect: *suspect,
            reset_at: now,
            reset_reason: heard.reason,
            first: (now, Look::NotMade),
            reopened: false,
        };
        if pair.suspect.harmless() {
            self.found.harmless += 1;
            return Next::Nothing;
        }
        // A dead connection's server acknowledges no more than it had: the same number again is
        // the same connection.
        let number = pair.number();
        if self.judged.get(&tuple).is_some_and(|j| j.number == number)
            || self.waiting(tuple, number).is_some()
        {
            return Next::Nothing;
        }
        if self.settling.len() >= PAIRS {
            self.hurried += 1;
            return Next::Judge(Box::new(pair));
        }
        let list = self.pairs.entry(tuple).or_insert_with(|| Vec::with_capacity(1));
        for before in &mut *list {
            let apart = |a: Seq, b: Seq| a.since(b) > MAX_WINDOW;
            before.reopened |= apart(number, before.number()) && apart(before.number(), number);
        }
        list.push(pair);
        self.settling.push_back((now + SETTLE, tuple));
        Next::Look(tuple, number)
    }

    fn waiting(&mut self, tuple: Tuple, number: Seq) -> Option<&mut Pair> {
        self.pairs.get_mut(&tuple)?.iter_mut().find(|pair| pair.number() == number)
    }

    pub(crate) fn looked(&mut self, now: Duration, tuple: Tuple, number: Seq, look: Look) {
        if let Some(pair) = self.waiting(tuple, number) {
            pair.first = (now, look);
        }
    }

    /// A client's SYN with this number came on an entry that is open: it opens another connection. A
    /// late copy of the first one's SYN has a number before all that its server acknowledged.
    pub(crate) fn reopened(&mut self, entry: &Entry, syn: Seq) {
        for pair in self.pairs.get_mut(&entry.reply).into_iter().flatten() {
            pair.reopened |= syn.after(pair.number());
        }
    }

    /// The next pair whose entry is to be looked up again and judged. At the `end` every pair is.
    pub(crate) fn due(&mut self, now: Duration, end: bool) -> Option<Pair> {
        self.forget(now);
        let &(due, tuple) = self.settling.front()?;
        if due > now && !end {
            return None;
        }
        self.settling.pop_front();
        let list = self.pairs.get_mut(&tuple)?;
        let pair = list.remove(0);
        if list.is_empty() {
            self.pairs.remove(&tuple);
        }
        Some(pair)
    }

    /// Takes note of what was judged of a pair. True where the one before it on this tuple may be of
    /// the same connection, and that counts as ended already: a reset is refused whose number was
    /// passed on its way, and the next one ends the connection.
    pub(crate) fn judged(&mut self, pair: &Pair, ended: bool) -> bool {
        let (number, reset_at) = (pair.number(), pair.reset_at);
        let judged = Judged { number, reset_at, ended: ended && !pair.reopened };
        let before = self.judged.insert(pair.tuple, judged);
        if before.is_none() {
            self.judged_order.push_back(pair.tuple);
        }
        if self.judged_order.len() > JUDGED
            && let Some(old) = self.judged_order.pop_front()
        {
            self.judged.remove(&old);
        }
        ended && before.is_some_and(|b| b.ended && reset_at < b.reset_at + SETTLE)
    }

    /// At the end, what still waits is unanswered.
    pub(crate) fn finish(&mut self) {
        self.order.clear();
        for (_, list) in std::mem::take(&mut self.suspects) {
            for suspect in &list {
                self.unanswered(suspect);
            }
        }
    }

    /// True when no pair waits.
    pub(crate) fn settled(&self) -> bool {
        self.pairs.is_empty()
    }
}

/// What became of a connection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Judgement {
    Counted(Cause, Direction, Vec<&'static str>),
    LivedOn,
    /// Both sides were closing.
    AlreadyClosing,
    /// Conntrack never had such a connection: a scan, or a segment from elsewhere.
    Unrelated,
}

/// Judges one pair by the entry after [`SETTLE`]: when that was looked up, and what it was.
/// `here` tells whether an address is this host's own.
pub(crate) fn judge(
    pair: &Pair,
    later: &(Duration, Look),
    mut here: impl FnMut(IpAddr) -> bool,
) -> Judgement {
    let (first, second) = (&pair.first.1, &later.1);
    let suspect = &pair.suspect;
    let Some(entry) = pair.entry(second) else {
        return without_entry(pair);
    };
    let closed = second.state() == Some(TcpState::Close);
    // Both sides have sent FIN: the reset finds nothing to end. Had it ended one before the entry was
    // looked up, that side would answer the other's FIN by a reset, not by the last ACK.
    let last_ack = first.state() == Some(TcpState::LastAck);
    if first.state() == Some(TcpState::TimeWait) || (last_ack && !closed) {
        return Judgement::AlreadyClosing;
    }
    if lived_on(pair, later) {
        return Judgement::LivedOn;
    }
    let direction = if entry.reply == pair.tuple {
        Direction::ServerToClient
    } else if entry.original == pair.tuple {
        Direction::ClientToServer
    } else {
        Direction::Unknown
    };
    let unexplained = |fact| Judgement::Counted(Cause::Unexplained, direction, vec![fact]);
    if direction == Direction::Unknown {
        return unexplained("the entry that was found has neither tuple");
    }
    if !entry.is_translated() {
        return unexplained("nothing is translated here: both ends know the segment's addresses");
    }
    if suspect.reason == Reason::InvalidState {
        return unexplained(
            "not possible in the state in which conntrack saw the connection: it may be of an older \
             one with the same ports",
        );
    }
    if pair.reset_reason != Reason::InvalidNew {
        return unexplained("the reset had an entry of its own");
    }
    if *second == Look::NotMade {
        return unexplained("too many at once to see what became of it");
    }
    if last_ack {
        return unexplained(
            "both sides had sent FIN when the entry was first looked up, and the last FIN was answered \
             by a reset: this reset came before that FIN or after it",
        );
    }
    if suspect.doubtful() && !closed {
        return unexplained(
            "the reset's number is as far off as conntrack found the acknowledgment, unless \
             conntrack was wrong",
        );
    }
    if suspect.reason == Reason::AckOver && first.state() == Some(TcpState::Close) {
        // nf_conntrack_tcp_packet() keeps no window of a closed entry: what its ends still send, it
        // does not see.
        return unexplained(
            "the entry was closed when it was first looked up: by this reset, or by one before it",
        );
    }
    let answerer = pair.tuple.destination.ip();
    let cause = if direction == Direction::ServerToClient && answerer == entry.original.source.ip()
    {
        Cause::AnsweredByClient
    } else if here(answerer) {
        Cause::AnsweredByNode
    } else {
        Cause::AnsweredByOther
    };
    let mut facts = Vec::new();
    if closed {
        facts.push("afterwards the dead side answered with a reset that conntrack translated");
    }
    if matches!(first.state(), Some(TcpState::FinWait | TcpState::CloseWait)) {
        facts.push("one side had sent FIN");
    }
    Judgement::Counted(cause, direction, facts)
}

fn without_entry(pair: &Pair) -> Judgement {
    let unexplained = |fact| Judgement::Counted(Cause::Unexplained, Direction::Unknown, vec![fact]);
    if pair.first.1 == Look::NotMade {
        return unexplained("the entry could not be looked up");
    }
    let numbers = &pair.suspect.numbers;
    // tcp_new() says a word of SYN ACK, FIN and RST alone: other data is picked up, or with
    // nf_conntrack_tcp_loose=0 refused in silence.
    let closes = numbers.flags.has(Flags::FIN);
    let data = numbers.seg_len > u32::from(closes) && !numbers.flags.has(Flags::SYN);
    match pair.suspect.reason {
        Reason::InvalidNew if data => Judgement::Counted(
            Cause::NoEntry,
            Direction::Unknown,
            vec!["the connection's last data met no entry, and came untranslated"],
        ),
        // Whoever sends a bare FIN has closed: the reset ends nothing that its program misses.
        Reason::InvalidNew if closes => Judgement::AlreadyClosing,
        // These are told before conntrack looks for an entry: none was there.
        Reason::InvalidNew | Reason::BadFlags | Reason::Other => Judgement::Unrelated,
        _ => unexplained("the entry was gone when it was looked up"),
    }
}

/// True when acknowledged traffic passed after the reset: a side that is dead would have answered
/// with a reset of its own, and conntrack would see the connection closed.
fn lived_on(pair: &Pair, later: &(Duration, Look)) -> bool {
    // Software flowtables keep their entries' timeouts up themselves.
    const OFFLOAD: u32 = 1 << 14;
    let ((first_at, Look::Found(first)), (second_at, Look::Found(second))) = (pair.first, *later)
    else {
        return false;
    };
    let open = first.state == Some(TcpState::Established) && second.state == first.state;
    let kept_up = (first.status.bits() | second.status.bits()) & OFFLOAD != 0;
    let (Some(before), Some(after)) = (first.timeout, second.timeout) else { return false };
    // Each packet that passes in a window sets the timeout anew; whole seconds are told. Data that
    // is not acknowledged sets a short one (nf_conntrack_tcp_timeout_unacknowledged).
    let elapsed = second_at.saturating_sub(first_at);
    open && !kept_up && after + elapsed >= before + Duration::from_millis(1_500)
}
