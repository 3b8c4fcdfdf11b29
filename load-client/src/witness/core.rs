//! From messages to findings: reads each message, lets [`Matcher`] match, looks entries up
//! through a trait, judges, counts. No clock, no socket.

use std::net::IpAddr;
use std::time::Duration;

use canary_conntrack::table::{TcpState, Tuple};
use canary_record::result::witness::{Cause, Direction, Ended, Reason};
use canary_wire::packet;
use canary_wire::segment::Flags;
use canary_wire::seq::Seq;

use super::attribute::{Heard, Judgement, Look, Matcher, Next, Pair, judge};
use super::reason::{self, Texts};

/// What the core must be told by its surroundings.
pub(crate) trait Surroundings {
    /// The entry with this tuple, in whichever direction.
    fn look(&mut self, tuple: Tuple) -> Look;
    /// True for an address of this host.
    fn here(&mut self, ip: IpAddr) -> bool;
}

/// First and second looks in one [`Witness::tick`] at most: a look is a system call.
const LOOKS: usize = 250;
/// The pure part of the witness.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    pub(crate) matcher: Matcher,
    to_look: std::collections::VecDeque<(Tuple, Seq)>,
    /// Looks made since the last tick.
    looked: usize,
    /// A rule here may answer INVALID segments with a reset of its own, as the client's host would.
    pub(crate) rejects: bool,
    pub(crate) texts: Texts,
    /// What was found since somebody took it from here.
    pub(crate) told: Vec<Ended>,
    next_number: Option<u32>,
}

impl Witness {
    /// One message: its number, the kernel's text, the packet. `now` is since the watch began.
    pub(crate) fn message(
        &mut self,
        now: Duration,
        (number, prefix, bytes): (Option<u32>, &str, &[u8]),
        around: &mut impl Surroundings,
    ) {
        let found = &mut self.matcher.found;
        found.messages.received += 1;
        if let Some(number) = number {
            let lost = self.next_number.map_or(0, |next| number.wrapping_sub(next));
            found.messages.lost += u64::from(lost);
            self.next_number = Some(number.wrapping_add(1));
        }
        let Some(words) = reason::read(prefix) else {
            found.messages.foreign += 1;
            return;
        };
        *found.segments.entry(words.reason).or_default() += 1;
        let text = self.texts.note(words.text);
        let Ok(segment) = packet::segment(bytes) else {
            found.messages.unreadable += 1;
            return;
        };
        if words.is_of_an_opening_one() && !segment.flags.has(Flags::RST) {
            // Its answer would end nothing that conntrack knows.
            *found.unanswered.entry(words.reason).or_default() += 1;
            return;
        }
        if words.reason == Reason::Ignored
            && segment.flags.has(Flags::SYN)
            && !segment.flags.has(Flags::ACK)
            && !self.matcher.settled()
            && self.looked < LOOKS
        {
            self.looked += 1;
            let tuple = Tuple { source: segment.src, destination: segment.dst };
            if let Look::Found(entry) = around.look(tuple) {
                self.matcher.reopened(&entry, segment.seq);
            }
        }
        let heard = Heard { segment, reason: words.reason, bound: words.bound, text };
        match self.matcher.hear(now, &heard) {
            Next::Nothing => {}
            // At once while there are few: a client may take the port for a new connection, and
            // then the entry is another.
            Next::Look(tuple, number) if self.looked < LOOKS => {
                self.looked += 1;
                let look = around.look(tuple);
                self.matcher.looked(now, tuple, number, look);
            }
            Next::Look(tuple, number) => self.to_look.push_back((tuple, number)),
            Next::Judge(mut pair) => {
                pair.first = (now, around.look(pair.tuple));
                self.judge(&pair, &(now, Look::NotMade), around);
            }
        }
    }

    /// Does what is due at `now`; to be called some times a second. At the `end`, everything.
    pub(crate) fn tick(&mut self, now: Duration, end: bool, around: &mut impl Surroundings) {
        self.looked = 0;
        let room = if end { usize::MAX } else { LOOKS };
        for _ in 0..room {
            let Some((tuple, number)) = self.to_look.pop_front() else { break };
            let look = around.look(tuple);
            self.matcher.looked(now, tuple, number, look);
        }
        for _ in 0..room {
            let Some(pair) = self.matcher.due(now, end) else { break };
            let later = if pair.reopened { pair.first } else { (now, around.look(pair.tuple)) };
            self.judge(&pair, &later, around);
        }
        if end {
            self.matcher.finish();
        }
    }

    fn judge(&mut self, pair: &Pair, later: &(Duration, Look), around: &mut impl Surroundings) {
        let judgement = judge(pair, later, |ip| around.here(ip));
        let ended = matches!(&judgement, Judgement::Counted(cause, ..) if cause.ended());
        let one_before = self.matcher.judged(pair, ended);
        let found = &mut self.matcher.found;
        match judgement {
            Judgement::LivedOn => found.harmless += 1,
            Judgement::AlreadyClosing => found.already_closing += 1,
            Judgement::Unrelated => {
                found.stray_resets += 1;
                let suspect = &pair.suspect;
                let half_open = suspect.reason == Reason::InvalidNew
                    && suspect.numbers.flags.has(Flags::SYN.with(Flags::ACK));
                found.half_open_resets += u64::from(half_open);
            }
            Judgement::Counted(mut cause, direction, mut facts) => {
                if self.rejects && cause == Cause::AnsweredByClient {
                    // nf_send_reset() writes the numbers, and from here the TTL, of the client's own.
                    cause = Cause::Unexplained;
                    facts.push(
                        "ended by a reset of the client's host or of this one: a rule here answers \
                         with resets, perhaps INVALID segments too",
                    );
                }
                if one_before {
                    cause = Cause::Unexplained;
                    facts.push(
                        "a reset with another number ended a connection with these ports just before: \
                         this one, or another",
                    );
                }
                let ended = self.record(pair, &later.1, (cause, direction), &facts);
                self.matcher.found.add(&ended);
                self.told.push(ended);
            }
        }
    }

    fn record(
        &self,
        pair: &Pair,
        second: &Look,
        (cause, direction): (Cause, Direction),
        facts: &[&'static str],
    ) -> Ended {
        let first = &pair.first.1;
        let entry = pair.entry(second);
        let numbers = &pair.suspect.numbers;
        let state = |look: &Look| look.state().map(|s| s.as_str().to_owned());
        let answered = pair.reset_at.saturating_sub(pair.suspect.at);
        Ended {
            t: pair.reset_at.as_secs_f64(),
            cause,
            direction,
            client: entry.map(|e| e.original.source.to_string()),
            service: entry.map(|e| e.original.destination.to_string()),
            server: entry.map(|e| e.reply.source.to_string()),
            from: pair.tuple.source.to_string(),
            to: pair.tuple.destination.to_string(),
            seq: numbers.seq.0,
            ack: if numbers.flags.has(Flags::ACK) { numbers.ack.0 } else { 0 },
            flags: numbers.flags.to_string(),
            reason: pair.suspect.reason,
            text: self.texts.spell(pair.suspect.text, pair.suspect.bound),
            answered_us: answered.as_micros() as u64,
            states: [state(first), state(second)],
            entry_outlived: (*second != Look::NotMade)
                .then(|| second.state() == Some(TcpState::Established)),
            facts: facts.iter().map(|f| (*f).to_owned()).collect(),
        }
    }

    /// True when no pair waits for its second look.
    pub(crate) fn settled(&self) -> bool {
        self.to_look.is_empty() && self.matcher.settled()
    }
}
