//! A bad network, pure: what becomes of the packet with a number is a function of a seed, and a
//! direction is a queue that takes frames and a time and gives the frames that are due.
//! [`wire`] does the I/O.

pub mod wire;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

/// How long a packet waits for those that are to overtake it, when none comes.
const OVERTAKING: Duration = Duration::from_millis(20);
/// Packets that something became of, and that a report names.
const EVENTS_MAX: usize = 10_000;

/// Packets in a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u32);

impl Share {
    /// Of a hundred.
    #[must_use]
    pub const fn percent(n: u32) -> Self {
        Self(n * 10_000)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 10_000.0)
    }
}

/// What a network does to the packets of both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The same seed has the same done to the packets with the same numbers.
    pub seed: u64,
    /// Lost.
    pub lose: Share,
    /// Sent twice.
    pub duplicate: Share,
    /// Overtaken by 1 to `within` later ones.
    pub reorder: Share,
    /// How many may overtake one.
    pub within: u32,
    /// Each waits for up to this long; the order stays.
    pub jitter: Duration,
    /// Cut short, their headers being as they were.
    pub truncate: Share,
}

/// Conditions that every judgement must stand, and their names.
pub const KINDS: [(&str, Conditions); 6] = {
    let clean = Conditions {
        seed: 1,
        lose: Share(0),
        duplicate: Share(0),
        reorder: Share(0),
        within: 3,
        jitter: Duration::ZERO,
        truncate: Share(0),
    };
    let (lose, duplicate, reorder) = (Share::percent(1), Share::percent(1), Share::percent(5));
    let jitter = Duration::from_millis(20);
    [
        ("clean", clean),
        ("duplicates", Conditions { duplicate, ..clean }),
        ("reordered", Conditions { reorder, ..clean }),
        ("jitter", Conditions { jitter, ..clean }),
        ("loss", Conditions { lose, ..clean }),
        ("all", Conditions { lose, duplicate, reorder, jitter, ..clean }),
    ]
};

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {} lost, {} duplicated, {} reordered within {}, {:?} jitter, {} truncated",
            self.seed,
            self.lose,
            self.duplicate,
            self.reorder,
            self.within,
            self.jitter,
            self.truncate
        )
    }
}

/// The side of the network that a packet comes in at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Left,
    /// The server's.
    Right,
}

/// What becomes of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// It goes no further.
    pub lost: bool,
    /// It goes twice.
    pub duplicated: bool,
    /// So many later ones go first.
    pub overtaken_by: u32,
    /// How long it waits.
    pub delay: Duration,
    /// The part of it that is left, in thousandths, where it is cut short.
    pub kept: Option<u16>,
}

impl Conditions {
    /// What becomes of a packet: the number `index` of those that came in there.
    #[must_use]
    pub fn fate(&self, from: Side, index: u64) -> Fate {
        // A decision takes its draw whatever the others are: what a packet meets does not
        // depend on which of the conditions are set.
        let draw = |n: u64| mix(mix(self.seed ^ (from as u64) << 63) ^ mix(index << 3 | n));
        let hit = |n: u64, share: Share| draw(n) % 1_000_000 < u64::from(share.0);
        let overtaken = hit(2, self.reorder) && self.within > 0;
        Fate {
            lost: hit(0, self.lose),
            duplicated: hit(1, self.duplicate),
            overtaken_by: if overtaken { 1 + (draw(3) % u64::from(self.within)) as u32 } else { 0 },
            delay: self.jitter.mul_f64((draw(4) % 1_000_001) as f64 / 1e6),
            kept: hit(5, self.truncate).then(|| (draw(6) % 1000) as u16),
        }
    }
}

/// splitmix64's output function (Steele, Lea and Flood, 2014).
const fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What was done to the packets of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Came in.
    pub packets: u64,
    /// Went out, copies included.
    pub sent: u64,
    /// Lost.
    pub lost: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Overtaken by a later one.
    pub reordered: u64,
    /// Cut short.
    pub truncated: u64,
    /// The longest that one waited.
    pub longest: Duration,
    /// Those that something became of, other than a wait, by their numbers: the first 10,000.
    pub events: Vec<(u64, Fate)>,
}

struct Waiting {
    index: u64,
    came: Instant,
    due: Instant,
    fate: Fate,
    /// Later packets that went first.
    overtaken: u32,
    frame: Vec<u8>,
}

/// One direction.
pub struct Line {
    conditions: Conditions,
    from: Side,
    /// In order, each due no sooner than the one before.
    queue: VecDeque<Waiting>,
    /// Those that are to be overtaken.
    held: Vec<Waiting>,
    /// What was done so far.
    pub tally: Tally,
}

impl Line {
    /// Packets that come in at a side.
    #[must_use]
    pub fn new(conditions: Conditions, from: Side) -> Self {
        let (queue, held, tally) = (VecDeque::new(), Vec::new(), Tally::default());
        Self { conditions, from, queue, held, tally }
    }

    /// A frame came in.
    pub fn take(&mut self, now: Instant, mut frame: Vec<u8>) {
        let index = self.tally.packets;
        self.tally.packets += 1;
        let fate = self.conditions.fate(self.from, index);
        if (Fate { delay: Duration::ZERO, ..fate }) != Fate::default()
            && self.tally.events.len() < EVENTS_MAX
        {
            self.tally.events.push((index, fate));
        }
        if fate.lost {
            self.tally.lost += 1;
            return;
        }
        if let Some(kept) = fate.kept {
            frame.truncate(frame.len() * usize::from(kept) / 1000);
            self.tally.truncated += 1;
        }
        let due = now + fate.delay;
        let mut waiting = Waiting { index, came: now, due, fate, overtaken: 0, frame };
        if fate.overtaken_by > 0 {
            waiting.due += OVERTAKING;
            self.held.push(waiting);
        } else {
            waiting.due = self.queue.back().map_or(due, |last| last.due.max(due));
            self.queue.push_back(waiting);
        }
    }

    /// When something is due next.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.held.iter().chain(self.queue.front()).map(|w| w.due).min()
    }

    /// The frames that are to go out by now, in order.
    pub fn due(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while self.queue.front().is_some_and(|w| w.due <= now) {
            let Some(one) = self.queue.pop_front() else { break };
            let index = one.index;
            self.send(now, one, &mut out);
            for held in self.held.iter_mut().filter(|h| h.index < index) {
                held.overtaken += 1;
            }
            self.release(now, |h| h.overtaken >= h.fate.overtaken_by, &mut out);
        }
        self.release(now, |h| h.due <= now, &mut out);
        out
    }

    fn release(&mut self, now: Instant, ready: impl Fn(&Waiting) -> bool, out: &mut Vec<Vec<u8>>) {
        let (go, stay) = std::mem::take(&mut self.held).into_iter().partition(|h| ready(h));
        self.held = stay;
        let go: Vec<Waiting> = go;
        for one in go {
            self.tally.reordered += u64::from(one.overtaken > 0);
            self.send(now, one, out);
        }
    }

    fn send(&mut self, now: Instant, one: Waiting, out: &mut Vec<Vec<u8>>) {
        self.tally.longest = self.tally.longest.max(now - one.came);
        if one.fate.duplicated {
            self.tally.duplicated += 1;
            self.tally.sent += 1;
            out.push(one.frame.clone());
        }
        self.tally.sent += 1;
        out.push(one.frame);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Sends `n` frames, `gap` apart, each holding its number; gives what comes out and when.
    fn pass(conditions: Conditions, n: u32, gap: Duration) -> (Vec<(Duration, u32)>, Tally) {
        let (start, mut line) = (Instant::now(), Line::new(conditions, Side::Left));
        let (mut out, mut now) = (Vec::new(), start);
        let mut collect = |line: &mut Line, now: Instant| {
            let frames = line.due(now).into_iter();
            out.extend(frames.map(|f| (now - start, u32::from_be_bytes(f.try_into().unwrap()))));
        };
        for i in 0..n {
            let next = start + gap * i;
            while let Some(due) = line.next().filter(|due| *due <= next) {
                now = now.max(due);
                collect(&mut line, now);
            }
            now = next;
            line.take(now, i.to_be_bytes().to_vec());
        }
        while let Some(due) = line.next() {
            now = now.max(due);
            collect(&mut line, now);
        }
        (out, line.tally)
    }

    fn conditions() -> impl Strategy<Value = Conditions> {
        let share = || (0..300_000_u32).prop_map(Share);
        (any::<u64>(), share(), share(), share(), 0..5_u32, 0..30_u64).prop_map(
            |(seed, lose, duplicate, reorder, within, ms)| Conditions {
                seed,
                lose,
                duplicate,
                reorder,
                within,
                jitter: Duration::from_millis(ms),
                truncate: Share(0),
            },
        )
    }

    proptest! {
        /// Every packet comes out once, or twice where it is duplicated, or not at all where it
        /// is lost; the counts say so.
        #[test]
        fn every_packet_has_its_fate(c in conditions(), gap in 0..5_u64) {
            let (out, tally) = pass(c, 200, Duration::from_millis(gap));
            let mut seen = BTreeMap::new();
            for (_, i) in &out {
                *seen.entry(*i).or_insert(0) += 1;
            }
            for i in 0..200 {
                let fate = c.fate(Side::Left, i.into());
                let times = if fate.lost { 0 } else { 1 + i32::from(fate.duplicated) };
                prop_assert_eq!(seen.get(&i).copied().unwrap_or(0), times);
            }
            prop_assert_eq!((tally.packets, tally.sent), (200, out.len() as u64));
            let twice = seen.values().filter(|n| **n == 2).count() as u64;
            prop_assert_eq!((tally.lost, tally.duplicated), (200 - seen.len() as u64, twice));
        }

        /// None is overtaken by more packets in order than `within`, and no order changes
        /// without reordering, whatever the jitter.
        #[test]
        fn reordering_has_its_limit(c in conditions(), gap in 0..5_u64) {
            let (out, tally) = pass(c, 200, Duration::from_millis(gap));
            let in_order = |i: u32| c.fate(Side::Left, i.into()).overtaken_by == 0;
            let mut late = 0;
            for (at, (_, i)) in out.iter().enumerate() {
                let mut overtook: Vec<_> =
                    out[..at].iter().map(|o| o.1).filter(|o| o > i && in_order(*o)).collect();
                overtook.dedup();
                prop_assert!(overtook.len() <= c.within as usize, "{i}: {overtook:?}");
                let first = !out[..at].iter().any(|o| o.1 == *i);
                late += u64::from(first && !overtook.is_empty());
            }
            prop_assert_eq!(tally.reordered, late);
        }

        /// No packet waits longer than the jitter and the time to be overtaken; the one before
        /// it in the queue bounds it too.
        #[test]
        fn waiting_has_its_limit(c in conditions(), gap in 0..5_u64) {
            let gap = Duration::from_millis(gap);
            let (out, tally) = pass(c, 200, gap);
            for (at, i) in out {
                prop_assert!(at <= gap * i + c.jitter + OVERTAKING);
            }
            prop_assert!(tally.longest <= c.jitter + OVERTAKING);
        }
    }

    /// The same seed does the same, another one and the other direction something else.
    #[test]
    fn a_seed_repeats_a_run() {
        let all = Conditions { seed: 7, ..KINDS[5].1 };
        let fates = |c: Conditions, side| (0..1000).map(|i| c.fate(side, i)).collect::<Vec<_>>();
        assert_eq!(fates(all, Side::Left), fates(all, Side::Left));
        assert_ne!(fates(all, Side::Left), fates(all, Side::Right));
        assert_ne!(fates(all, Side::Left), fates(Conditions { seed: 8, ..all }, Side::Left));
    }

    /// Each share is met, and each alone.
    #[test]
    fn shares_are_met() {
        let of = |c: Conditions, what: fn(&Fate) -> bool| {
            (0..100_000).filter(|i| what(&c.fate(Side::Right, *i))).count()
        };
        let (clean, all) = (KINDS[0].1, KINDS[5].1);
        assert_eq!(of(clean, |f| *f != Fate::default()), 0);
        assert!((900..1100).contains(&of(all, |f| f.lost)));
        assert!((900..1100).contains(&of(all, |f| f.duplicated)));
        assert!((4800..5200).contains(&of(all, |f| f.overtaken_by > 0)));
        assert_eq!(of(all, |f| f.overtaken_by > 3), 0);
        let cut = Conditions { truncate: Share::percent(10), ..clean };
        assert!((9700..10_300).contains(&of(cut, |f| f.kept.is_some())));
    }

    /// A packet that is cut short is shorter, and is counted.
    #[test]
    fn truncation_shortens() {
        let cut = Conditions { truncate: Share::percent(100), ..KINDS[0].1 };
        let (now, mut line) = (Instant::now(), Line::new(cut, Side::Left));
        for _ in 0..100 {
            line.take(now, vec![0; 1000]);
        }
        let out = line.due(now);
        assert!(out.len() == 100 && out.iter().all(|f| f.len() < 1000));
        assert_eq!(line.tally.truncated, 100);
    }
}
