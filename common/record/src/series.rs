//! A series of any length in bounded memory: when it is full, neighbours become one.

/// How many pushed items make up one of a series of at most `max`, of which `n` were pushed.
#[must_use]
pub fn width(n: u64, max: usize) -> u64 {
    n.div_ceil(max as u64).max(1).next_power_of_two()
}

/// Adds `item`, the `n`th from 0 of a series of at most `max` (an even number). `join` adds a
/// later neighbour to an earlier one. Every item but the last is made of equally many.
pub fn push<T>(items: &mut Vec<T>, n: u64, max: usize, item: T, join: impl Fn(&mut T, T)) {
    debug_assert!(max > 0 && max.is_multiple_of(2));
    let wide = width(n + 1, max);
    if wide > width(n, max) {
        let mut old = std::mem::take(items).into_iter();
        while let Some(mut first) = old.next() {
            if let Some(second) = old.next() {
                join(&mut first, second);
            }
            items.push(first);
        }
    }
    match items.last_mut() {
        Some(last) if !n.is_multiple_of(wide) => join(last, item),
        _ => items.push(item),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However many are pushed, the series is bounded, nothing is lost, and all but the last
        /// are of one width.
        #[test]
        fn bounded_and_complete(n in 0u64..5000, half in 1usize..50) {
            let (max, mut items) = (2 * half, Vec::new());
            for i in 0..n {
                push(&mut items, i, max, vec![i], Vec::extend);
            }
            prop_assert!(items.len() <= max);
            prop_assert!(n < max as u64 || items.len() >= half);
            prop_assert_eq!(items.concat(), (0..n).collect::<Vec<_>>());
            if let Some((last, whole)) = items.split_last() {
                let width = width(n, max) as usize;
                prop_assert!(whole.iter().all(|i| i.len() == width) && last.len() <= width);
            }
        }
    }
}
