//! The lab's own documents, versioned as those of the other programs are.

pub mod kernels;
pub mod lab;
pub mod timeline;

use std::collections::BTreeMap;

/// Adds counts, each to its own.
pub(crate) fn add<K: Ord + Copy>(to: &mut BTreeMap<K, u64>, more: &BTreeMap<K, u64>) {
    for (k, n) in more {
        *to.entry(*k).or_default() += n;
    }
}
