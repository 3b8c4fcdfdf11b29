//! The texts and messages in which the kernel gives conntrack's numbers.

use std::collections::BTreeMap;

use canary_record::result::observe::{ConntrackCounters, CpuCounters};

/// What was said is not in the form that the kernel uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A procfs text in another form.
    #[error("unexpected text")]
    Text,
    /// A netlink message in another form.
    #[error("unexpected netlink message")]
    Message,
    /// A netlink error, as errno.
    #[error("netlink: {}", std::io::Error::from_raw_os_error(*.0))]
    Refused(i32),
}

/// One decimal number (`nf_conntrack_count`, `nf_conntrack_max`).
pub fn number(text: &str) -> Result<u64, ReadError> {
    text.trim().parse().map_err(|_| ReadError::Text)
}

/// `/proc/net/stat/nf_conntrack` (`ct_cpu_seq_show()`): a line of names, then
/// one line of hexadecimal columns for each possible CPU. Columns are found by
/// name, because kernels have added and renamed some.
pub fn stat(text: &str) -> Result<Vec<CpuCounters>, ReadError> {
    let mut lines = text.lines();
    let names: Vec<_> = lines.next().ok_or(ReadError::Text)?.split_whitespace().collect();
    let mut cpus = Vec::new();
    for (cpu, line) in lines.enumerate() {
        let values = line
            .split_whitespace()
            .map(|v| u64::from_str_radix(v, 16).map_err(|_| ReadError::Text))
            .collect::<Result<Vec<_>, _>>()?;
        if values.len() != names.len() {
            return Err(ReadError::Text);
        }
        let columns: BTreeMap<_, _> = names.iter().copied().zip(values).collect();
        let get = |name| columns.get(name).copied();
        let must = |name| get(name).ok_or(ReadError::Text);
        cpus.push(CpuCounters {
            cpu: cpu as u32,
            counters: ConntrackCounters {
                found: must("found")?,
                invalid: must("invalid")?,
                insert: must("insert")?,
                insert_failed: must("insert_failed")?,
                drop: must("drop")?,
                early_drop: must("early_drop")?,
                icmp_error: must("icmp_error")?,
                search_restart: must("search_restart")?,
                clash_resolve: get("clashres").unwrap_or(0),
                chain_too_long: get("chainlength").unwrap_or(0),
            },
        });
    }
    if cpus.is_empty() { Err(ReadError::Text) } else { Ok(cpus) }
}

// include/uapi/linux/netlink.h and netfilter/nfnetlink*.h.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET_STATS_CPU: u16 = 4;
const IPCTNL_MSG_CT_GET_STATS: u16 = 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const CTA_STATS_GLOBAL_MAX_ENTRIES: u16 = 2;
/// Without the flag bits NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// What can be asked of ctnetlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Entries and limit.
    Global,
    /// Counters of every CPU.
    Cpus,
}

/// The message that asks: nlmsghdr and nfgenmsg (AF_UNSPEC, NFNETLINK_V0).
#[must_use]
pub fn request(ask: Ask, seq: u32) -> [u8; 20] {
    let (message, flags) = match ask {
        Ask::Global => (IPCTNL_MSG_CT_GET_STATS, NLM_F_REQUEST),
        Ask::Cpus => (IPCTNL_MSG_CT_GET_STATS_CPU, NLM_F_REQUEST | NLM_F_DUMP),
    };
    let mut m = [0; 20];
    m[0..4].copy_from_slice(&20u32.to_ne_bytes());
    m[4..6].copy_from_slice(&(NFNL_SUBSYS_CTNETLINK << 8 | message).to_ne_bytes());
    m[6..8].copy_from_slice(&flags.to_ne_bytes());
    m[8..12].copy_from_slice(&seq.to_ne_bytes());
    m
}

/// What a datagram from ctnetlink said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Entries, where asked for.
    pub entries: Option<u64>,
    /// Limit, where asked for (since Linux 4.18).
    pub limit: Option<u64>,
    /// Counters by CPU.
    pub cpus: Vec<CpuCounters>,
    /// The end of a dump.
    pub done: bool,
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    b.get(at..at + 2).map(|b| u16::from_ne_bytes([b[0], b[1]]))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

/// Reads one datagram: any number of messages answering request `seq`.
pub fn answer(mut data: &[u8], seq: u32) -> Result<Answer, ReadError> {
    let mut answer = Answer::default();
    while !data.is_empty() {
        let length = u32_at(data, 0).ok_or(ReadError::Message)? as usize;
        let kind = u16_at(data, 4).ok_or(ReadError::Message)?;
        let message = data.get(..length).filter(|m| m.len() >= 16).ok_or(ReadError::Message)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        if u32_at(message, 8) != Some(seq) {
            continue;
        }
        match kind {
            NLMSG_DONE => answer.done = true,
            NLMSG_ERROR => {
                let errno = u32_at(message, 16).ok_or(ReadError::Message)?.cast_signed();
                return Err(ReadError::Refused(errno.wrapping_neg()));
            }
            k if k == NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS => {
                for (name, value) in attributes(message)? {
                    match name {
                        CTA_STATS_GLOBAL_ENTRIES => answer.entries = Some(value),
                        CTA_STATS_GLOBAL_MAX_ENTRIES => answer.limit = Some(value),
                        _ => {}
                    }
                }
            }
            k if k == NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS_CPU => {
                // ctnetlink_ct_stat_cpu_fill_info(): res_id is the CPU, in network order.
                let cpu = message.get(18..20).ok_or(ReadError::Message)?;
                let cpu = u32::from(u16::from_be_bytes([cpu[0], cpu[1]]));
                answer.cpus.push(CpuCounters { cpu, counters: counters(message)? });
            }
            _ => {}
        }
    }
    Ok(answer)
}

/// enum ctattr_stats_cpu.
fn counters(message: &[u8]) -> Result<ConntrackCounters, ReadError> {
    let mut c = ConntrackCounters::default();
    for (name, value) in attributes(message)? {
        let field = match name {
            2 => &mut c.found,
            4 => &mut c.invalid,
            8 => &mut c.insert,
            9 => &mut c.insert_failed,
            10 => &mut c.drop,
            11 => &mut c.early_drop,
            12 => &mut c.icmp_error,
            13 => &mut c.search_restart,
            14 => &mut c.clash_resolve,
            15 => &mut c.chain_too_long,
            _ => continue,
        };
        *field = value;
    }
    Ok(c)
}

/// The 32-bit big-endian attributes after nfgenmsg.
fn attributes(message: &[u8]) -> Result<Vec<(u16, u64)>, ReadError> {
    let mut rest = message.get(20..).ok_or(ReadError::Message)?;
    let mut list = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(u16_at(rest, 0).ok_or(ReadError::Message)?);
        let name = u16_at(rest, 2).ok_or(ReadError::Message)? & NLA_TYPE_MASK;
        let value = rest.get(4..length).ok_or(ReadError::Message)?;
        if let Ok(value) = <[u8; 4]>::try_from(value) {
            list.push((name, u64::from(u32::from_be_bytes(value))));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 6.18 kernel's text.
    const STAT: &str = "\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
00000000  00000001 00000002 00000000 000000ff 00000000 00000000 00000003 00000000 00000004 0000000a 0000000b 0000000c  00000000 00000000 00000000 00000005
00000000  00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000  00000000 00000000 00000000 00000000
";

    /// Columns are hexadecimal and found by their names.
    #[test]
    fn reads_columns_by_name() {
        let cpus = stat(STAT).unwrap();
        assert_eq!(cpus.len(), 2);
        let c = cpus[0].counters;
        assert_eq!((c.invalid, c.drop, c.early_drop, c.insert_failed), (255, 10, 11, 4));
        assert_eq!((c.clash_resolve, c.chain_too_long, c.search_restart), (1, 3, 5));
        assert_eq!(cpus[1].cpu, 1);
        assert_eq!(cpus[1].counters.invalid, 1);
    }

    /// A text that lacks a column, a value or every CPU is refused.
    #[test]
    fn refuses_other_texts() {
        let names = STAT.lines().next().unwrap();
        for bad in ["", names, "entries\nzz\n", "entries found\n1\n", "entries\n1\n"] {
            assert_eq!(stat(bad), Err(ReadError::Text), "{bad:?}");
        }
        assert_eq!(number("12\n"), Ok(12));
        assert_eq!(number("-1"), Err(ReadError::Text));
    }

    fn message(kind: u16, seq: u32, payload: &[u8]) -> Vec<u8> {
        let mut m = (16 + payload.len() as u32).to_ne_bytes().to_vec();
        m.extend(kind.to_ne_bytes());
        m.extend([0, 0]);
        m.extend(seq.to_ne_bytes());
        m.extend([0; 4]);
        m.extend(payload);
        m
    }

    fn attribute(name: u16, value: u32) -> Vec<u8> {
        let mut a = 8u16.to_ne_bytes().to_vec();
        a.extend(name.to_ne_bytes());
        a.extend(value.to_be_bytes());
        a
    }

    /// Both answers are read, whatever other attributes stand between.
    #[test]
    fn reads_answers() {
        let payload = [vec![0, 0, 0, 0], attribute(1, 7), attribute(9, 9), attribute(2, 100)];
        let a = answer(&message(0x105, 3, &payload.concat()), 3).unwrap();
        assert_eq!((a.entries, a.limit), (Some(7), Some(100)));

        let payload = [vec![0, 0, 0, 1], attribute(4, 5), attribute(10, 6), attribute(77, 1)];
        let mut data = message(0x104, 4, &payload.concat());
        data.extend(message(NLMSG_DONE, 4, &[0; 4]));
        let a = answer(&data, 4).unwrap();
        assert!(a.done);
        assert_eq!((a.cpus[0].cpu, a.cpus[0].counters.invalid, a.cpus[0].counters.drop), (1, 5, 6));
    }

    /// Refusals carry the errno, answers to others are passed over.
    #[test]
    fn refusals_and_strangers() {
        let refusal = message(NLMSG_ERROR, 1, &(-1i32).to_ne_bytes());
        assert_eq!(answer(&refusal, 1), Err(ReadError::Refused(1)));
        assert_eq!(answer(&refusal, 2), Ok(Answer::default()));
    }

    /// Truncated anywhere, a message is refused or empty, never a panic.
    #[test]
    fn truncations_are_refused() {
        let payload = [vec![0, 0, 0, 1], attribute(4, 5)].concat();
        let whole = message(0x104, 1, &payload);
        for cut in 1..whole.len() {
            assert_eq!(answer(&whole[..cut], 1), Err(ReadError::Message), "{cut}");
        }
        let mut zero = whole.clone();
        zero[20..22].copy_from_slice(&0u16.to_ne_bytes());
        assert_eq!(answer(&zero, 1), Err(ReadError::Message));
        zero[0..4].copy_from_slice(&0u32.to_ne_bytes());
        assert_eq!(answer(&zero, 1), Err(ReadError::Message));
    }
}
