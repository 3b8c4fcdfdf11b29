//! TCP sequence numbers: 32 bits that wrap (RFC 9293, section 3.4).

use std::fmt;

/// A sequence or acknowledgment number. Comparison is modular, so `Seq` is not
/// `Ord`: [`Seq::before`] and [`Seq::after`] are meaningful only for numbers
/// less than 2^31 apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Seq(pub u32);

impl Seq {
    /// The number `n` octets later.
    #[must_use]
    pub const fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// The number `n` octets earlier.
    #[must_use]
    pub const fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }

    /// How many octets `self` lies after `earlier`, modulo 2^32.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// True when `self` precedes `other`, as the kernel's `before()` has it
    /// (include/net/tcp.h).
    #[must_use]
    pub const fn before(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0).cast_signed() < 0
    }

    /// True when `self` follows `other`, as the kernel's `after()` has it.
    #[must_use]
    pub const fn after(self, other: Self) -> bool {
        other.before(self)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The order of numbers survives the wrap at 2^32.
    #[test]
    fn order_wraps() {
        assert!(Seq(u32::MAX).before(Seq(0)));
        assert!(Seq(0).after(Seq(u32::MAX)));
        assert!(!Seq(7).before(Seq(7)));
    }

    proptest! {
        /// Whatever the start, a number less than 2^31 ahead is after it, and
        /// adding is undone by subtracting.
        #[test]
        fn modular_arithmetic(start: u32, n in 1u32..(1 << 31)) {
            let later = Seq(start).add(n);
            prop_assert!(later.after(Seq(start)));
            prop_assert!(Seq(start).before(later));
            prop_assert_eq!(later.since(Seq(start)), n);
            prop_assert_eq!(later.sub(n), Seq(start));
        }
    }
}
