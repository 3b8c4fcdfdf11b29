//! What became of forged segments: one of them, and many of them counted.

use std::collections::BTreeMap;
use std::iter::Sum;
use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{Outcome, UnknownReason};

/// What became of one forged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It reached the peer untranslated: a reset came back whose numbers only it provokes,
    /// and the peer's connection was shown to be there.
    Leaked {
        /// The reset had the number that this end must accept.
        killed: bool,
        /// A node answered: the untranslated segment was addressed to it.
        node: bool,
    },
    /// A node on the way answered it with a reset; the peer never saw it.
    Rejected {
        /// The reset had the number that this end must accept.
        killed: bool,
    },
    /// The peer's own socket answered it.
    Delivered,
    /// Silence each time, and life each time.
    Dropped,
    /// Nothing was proved.
    Unknown(UnknownReason),
}

impl Fate {
    /// Its name, without the particulars.
    #[must_use]
    pub const fn name(self) -> Outcome {
        match self {
            Self::Leaked { .. } => Outcome::Leaked,
            Self::Rejected { .. } => Outcome::Rejected,
            Self::Delivered => Outcome::Delivered,
            Self::Dropped => Outcome::Dropped,
            Self::Unknown(_) => Outcome::Unknown,
        }
    }

    /// Why nothing was proved, where nothing was.
    #[must_use]
    pub const fn reason(self) -> Option<UnknownReason> {
        match self {
            Self::Unknown(reason) => Some(reason),
            _ => None,
        }
    }

    /// True when the reset that only it provokes came back.
    #[must_use]
    pub const fn reset(self) -> bool {
        matches!(self, Self::Leaked { .. } | Self::Rejected { .. })
    }

    /// True when its reset ended the connection.
    #[must_use]
    pub const fn killed(self) -> bool {
        matches!(self, Self::Leaked { killed: true, .. } | Self::Rejected { killed: true })
    }
}

/// How many forged segments came to what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// The client answered with the RST that only this segment provokes, and was there.
    pub leaked: u64,
    /// Of the leaked, those that a node on the way answered: they were addressed to it.
    #[serde(default)]
    pub leaked_to_node: u64,
    /// Of the leaked and the rejected, those whose RST ended the connection.
    pub killed: u64,
    /// Of the delivered, connections reset afterwards because a segment of the server's
    /// own was not translated any more: an overshoot poisons conntrack's entry.
    #[serde(default)]
    pub killed_later: u64,
    /// A node on the way answered with a reset in the client's name.
    #[serde(default)]
    pub rejected: u64,
    /// The client's own socket answered.
    pub delivered: u64,
    /// Silence, and life afterwards.
    pub dropped: u64,
    /// Nothing proved, by reason.
    pub unknown: BTreeMap<UnknownReason, u64>,
}

impl Counts {
    /// One more that came to `fate`.
    pub fn count(&mut self, fate: Fate) {
        *self.cell(fate) += 1;
        self.killed += u64::from(fate.killed());
        self.leaked_to_node += u64::from(matches!(fate, Fate::Leaked { node: true, .. }));
    }

    /// One less: a judgement is replaced.
    pub fn uncount(&mut self, fate: Fate) {
        *self.cell(fate) -= 1;
        self.killed -= u64::from(fate.killed());
        self.leaked_to_node -= u64::from(matches!(fate, Fate::Leaked { node: true, .. }));
    }

    fn cell(&mut self, fate: Fate) -> &mut u64 {
        match fate {
            Fate::Leaked { .. } => &mut self.leaked,
            Fate::Rejected { .. } => &mut self.rejected,
            Fate::Delivered => &mut self.delivered,
            Fate::Dropped => &mut self.dropped,
            Fate::Unknown(reason) => self.unknown.entry(reason).or_default(),
        }
    }

    /// How many came to the outcome of this name.
    #[must_use]
    pub fn of(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Leaked => self.leaked,
            Outcome::Rejected => self.rejected,
            Outcome::Delivered => self.delivered,
            Outcome::Dropped => self.dropped,
            Outcome::Unknown => self.unknown.values().sum(),
        }
    }

    /// Those whose outcome is known.
    #[must_use]
    pub const fn known(&self) -> u64 {
        self.leaked + self.rejected + self.delivered + self.dropped
    }

    /// Outcomes of which something was counted.
    pub fn each(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        Outcome::ALL.iter().map(|o| (*o, self.of(*o))).filter(|(_, n)| *n > 0)
    }
}

impl AddAssign<&Self> for Counts {
    fn add_assign(&mut self, other: &Self) {
        add_each!(self += other: leaked, leaked_to_node, killed, killed_later);
        add_each!(self += other: rejected, delivered, dropped);
        for (reason, n) in &other.unknown {
            *self.unknown.entry(*reason).or_default() += n;
        }
    }
}

impl<'a> Sum<&'a Self> for Counts {
    fn sum<I: Iterator<Item = &'a Self>>(all: I) -> Self {
        let mut sum = Self::default();
        all.for_each(|counts| sum += counts);
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FATES: [Fate; 7] = [
        Fate::Leaked { killed: true, node: true },
        Fate::Leaked { killed: false, node: false },
        Fate::Rejected { killed: true },
        Fate::Delivered,
        Fate::Dropped,
        Fate::Unknown(UnknownReason::Busy),
        Fate::Unknown(UnknownReason::Reused),
    ];

    /// What is counted is in one cell under its name, and a replaced judgement leaves nothing.
    #[test]
    fn each_fate_is_counted_once() {
        let mut counts = Counts::default();
        for (n, fate) in FATES.into_iter().enumerate() {
            counts.count(fate);
            assert_eq!(counts.each().map(|(_, n)| n).sum::<u64>(), n as u64 + 1);
        }
        assert_eq!((counts.killed, counts.known(), counts.of(Outcome::Unknown)), (2, 5, 2));
        for fate in FATES {
            counts.uncount(fate);
        }
        assert_eq!((counts.each().count(), counts.killed), (0, 0));
    }

    /// A sum counts what its parts count.
    #[test]
    fn sums_lose_nothing() {
        let parts: Vec<Counts> = FATES
            .iter()
            .map(|fate| {
                let mut one = Counts { killed_later: 1, ..Counts::default() };
                one.count(*fate);
                one
            })
            .collect();
        let sum: Counts = parts.iter().sum();
        assert_eq!((sum.killed, sum.killed_later, sum.known()), (2, 7, 5));
        assert_eq!(sum.unknown.values().sum::<u64>(), 2);
    }
}
