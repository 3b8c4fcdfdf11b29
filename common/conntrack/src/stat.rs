//! The texts in which procfs gives conntrack's numbers: pure.

use std::collections::BTreeMap;

use canary_record::result::observe::{ConntrackCounters, CpuCounters};
use serde::Deserialize as _;
use serde::de::value::{self, MapDeserializer};

/// Entries of this network namespace, below /proc/sys.
pub const COUNT: &str = "net/netfilter/nf_conntrack_count";
/// The limit of all network namespaces, below /proc/sys.
pub const LIMIT: &str = "net/netfilter/nf_conntrack_max";
/// The statistics, below /proc/PID/net or /proc/thread-self/net.
pub const STAT: &str = "stat/nf_conntrack";

/// A text that is not in the kernel's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected text")]
pub struct ReadError;

/// One decimal number, as [`COUNT`] and [`LIMIT`] are.
pub fn number(text: &str) -> Result<u64, ReadError> {
    text.trim().parse().map_err(|_| ReadError)
}

/// The named columns of one CPU.
pub type Columns = BTreeMap<String, u64>;

/// The column that has the number of entries, the same for every CPU.
pub const ENTRIES: &str = "entries";

/// [`STAT`] (`ct_cpu_seq_show()`): a line of names, then one line of hexadecimal columns for
/// each possible CPU. Kernels have added and renamed some.
pub fn columns(text: &str) -> Result<Vec<Columns>, ReadError> {
    let mut lines = text.lines();
    let names: Vec<_> = lines.next().ok_or(ReadError)?.split_whitespace().collect();
    let cpu = |line: &str| {
        let values = line
            .split_whitespace()
            .map(|v| u64::from_str_radix(v, 16).map_err(|_| ReadError))
            .collect::<Result<Vec<_>, _>>()?;
        if values.len() != names.len() {
            return Err(ReadError);
        }
        Ok(names.iter().map(|n| (*n).to_owned()).zip(values).collect())
    };
    let cpus = lines.map(cpu).collect::<Result<Vec<_>, _>>()?;
    if cpus.is_empty() { Err(ReadError) } else { Ok(cpus) }
}

/// The sum of every CPU's columns.
#[must_use]
pub fn sum(cpus: &[Columns]) -> Columns {
    let mut sum = Columns::new();
    for (name, value) in cpus.iter().flatten() {
        let total = sum.entry(name.clone()).or_default();
        *total = if name == ENTRIES { *value } else { *total + value };
    }
    sum
}

/// [`columns`] as counters.
pub fn counters(text: &str) -> Result<Vec<CpuCounters>, ReadError> {
    let counters = |(cpu, mut columns): (usize, Columns)| {
        // Older kernels have neither.
        for (field, column) in [("clash_resolve", "clashres"), ("chain_too_long", "chainlength")] {
            let n = columns.get(column).copied().unwrap_or(0);
            columns.insert(field.to_owned(), n);
        }
        let columns = MapDeserializer::<_, value::Error>::new(columns.into_iter());
        let counters = ConntrackCounters::deserialize(columns).map_err(|_| ReadError)?;
        Ok(CpuCounters { cpu: cpu as u32, counters })
    };
    columns(text)?.into_iter().enumerate().map(counters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 6.18 kernel's text.
    const TEXT: &str = "\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
00000007  00000001 00000002 00000000 000000ff 00000000 00000000 00000003 00000000 00000004 0000000a 0000000b 0000000c  00000000 00000000 00000000 00000005
00000007  00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000  00000000 00000000 00000000 00000000
";

    /// Columns are hexadecimal and found by their names.
    #[test]
    fn reads_columns_by_name() {
        let cpus = counters(TEXT).unwrap();
        assert_eq!(cpus.len(), 2);
        let c = cpus[0].counters;
        assert_eq!((c.invalid, c.drop, c.early_drop, c.insert_failed), (255, 10, 11, 4));
        assert_eq!((c.clash_resolve, c.chain_too_long, c.search_restart), (1, 3, 5));
        assert_eq!(cpus[1].cpu, 1);
        assert_eq!(cpus[1].counters.invalid, 1);
    }

    /// A text that lacks a column, a value or every CPU is refused; no counter is made up.
    #[test]
    fn refuses_other_texts() {
        let names = TEXT.lines().next().unwrap();
        for bad in ["", names, "entries\nzz\n", "entries found\n1\n", "entries\n1\n"] {
            assert_eq!(counters(bad), Err(ReadError), "{bad:?}");
        }
        assert_eq!(columns(&TEXT.replace("000000ff", "000000fx")), Err(ReadError));
        assert_eq!(number("12\n"), Ok(12));
        assert_eq!(number("-1"), Err(ReadError));
    }

    /// Counters add up over the CPUs; the number of entries is one for all.
    #[test]
    fn sums_over_cpus() {
        let sum = sum(&columns(TEXT).unwrap());
        assert_eq!((sum["invalid"], sum["entries"]), (256, 7));
    }
}
