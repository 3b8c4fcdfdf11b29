//! nf_tables: the chains of one network namespace, and its rules that act on what conntrack calls INVALID, with
//! their counters. Read, never changed. What cannot be read is named: rules that ask a set or a map for
//! the state or jump elsewhere with it, and the tables of legacy iptables, which nf_tables does not have.

use std::io;

use canary_record::result::witness::{RuleAction, RuleCount};
use netlink_packet_core::{DefaultNla, NLA_TYPE_MASK, NLM_F_DUMP, Nla as _};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, DataAttribute, ExpressionAttribute, Expressions,
    Immediate, ListAttribute, Lookup, NfTablesMessage, Register, RuleAttribute, RuleMessage,
    Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use crate::netlink::{NetlinkError, Socket, number};

// include/uapi/linux/netfilter/nf_tables.h.
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_STATE: u32 = 0;
const NFTA_REJECT_TYPE: u16 = 1;
const NFT_REJECT_TCP_RST: u32 = 1;
const NFTA_TARGET_INFO: u16 = 3;
// `enum ipt_reject_with`, `enum ip6t_reject_with`.
const IPT_TCP_RESET: u32 = 7;
const IP6T_TCP_RESET: u32 = 6;
const NF_DROP: u32 = 0;
/// `NF_CT_STATE_INVALID_BIT`, in the host's byte order as a register has it.
const INVALID: u32 = 1;

/// The tables that legacy iptables has in a network namespace, one a line, by family.
const LEGACY: [(&str, &str); 2] = [("ip", "ip_tables_names"), ("ip6", "ip6_tables_names")];

/// What acts on INVALID segments in one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Rules that were understood, with what they counted so far.
    pub acting: Vec<RuleCount>,
    /// Rules and tables that may act on INVALID too, but could not be read, in words.
    pub unread: Vec<String>,
    /// A rule answers with resets: INVALID segments, or perhaps, for it asks for another state or none.
    pub resets: bool,
}

/// Every such rule of this thread's network namespace. Needs CAP_NET_ADMIN there.
pub fn of_invalid() -> Result<Rules, NetlinkError> {
    let mut rules = Rules::default();
    dump(NfTablesMessage::GetRule(RuleMessage { attributes: Vec::new() }), |family, told| {
        if let NfTablesMessage::NewRule(rule) = told {
            rules.add(family, &rule.attributes);
        }
    })?;
    for (family, file) in LEGACY {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        rules.unread.extend(legacy(family, file, text));
    }
    Ok(rules)
}

/// Table and name of every chain of this thread's network namespace. Needs CAP_NET_ADMIN there.
pub fn chains() -> Result<Vec<(String, String)>, NetlinkError> {
    let mut chains = Vec::new();
    dump(NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() }), |_, told| {
        let NfTablesMessage::NewChain(chain) = told else { return };
        let (mut table, mut name) = (String::new(), String::new());
        for attribute in chain.attributes {
            match attribute {
                ChainAttribute::Table(t) => table = t,
                ChainAttribute::Name(n) => name = n,
                _ => {}
            }
        }
        chains.push((table, name));
    })?;
    Ok(chains)
}

/// Asks for all of one kind, and hands on each with its family.
fn dump(
    all: NfTablesMessage,
    mut each: impl FnMut(&'static str, NfTablesMessage),
) -> Result<(), NetlinkError> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    Socket::open()?.ask(NetfilterMessage::new(header, all), NLM_F_DUMP, |m| {
        if let NetfilterMessageInner::NfTables(told) = m.inner {
            each(family(m.header.family), told);
        }
    })
}

/// As nft calls it.
fn family(family: NetfilterProtoFamily) -> &'static str {
    match family {
        NetfilterProtoFamily::Inet => "inet",
        NetfilterProtoFamily::IPv4 => "ip",
        NetfilterProtoFamily::IPv6 => "ip6",
        NetfilterProtoFamily::Bridge => "bridge",
        NetfilterProtoFamily::NetDev => "netdev",
        NetfilterProtoFamily::ARP => "arp",
        _ => "other",
    }
}

/// What legacy iptables has, if anything: its rules are had by a socket option that takes pointers.
fn legacy(family: &str, file: &str, names: io::Result<String>) -> Option<String> {
    match names {
        Ok(names) => {
            let names: Vec<_> = names.split_whitespace().collect();
            let tables = || format!("legacy iptables' tables of {family} ({})", names.join(", "));
            (!names.is_empty()).then(tables)
        }
        // The kernel has none, or its module was never needed.
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => Some(format!("legacy iptables' tables of {family} ({file}: {e})")),
    }
}

impl Rules {
    fn add(&mut self, family: &'static str, attributes: &[RuleAttribute]) {
        let (mut table, mut chain, mut handle) = (String::new(), String::new(), 0);
        let mut seen = Seen { family, ..Seen::default() };
        for attribute in attributes {
            match attribute {
                RuleAttribute::Table(name) => table.clone_from(name),
                RuleAttribute::Chain(name) => chain.clone_from(name),
                RuleAttribute::Handle(n) => handle = *n,
                RuleAttribute::Expressions(list) => {
                    list.iter().filter_map(data).for_each(|e| seen.expression(e));
                }
                _ => {}
            }
        }
        let Seen { takes, elsewhere, action, packets, .. } = seen;
        // What was accepted before is not known, so that any may be a firewall's last rule.
        self.resets |= action == Some(RuleAction::Reset);
        let how = match (takes, action) {
            (Takes::Invalid, Some(action)) => {
                let family = family.to_owned();
                self.acting.push(RuleCount { family, table, chain, handle, action, packets });
                return;
            }
            (Takes::Invalid, None) if elsewhere => "jumps",
            (Takes::Asked, _) if elsewhere || action.is_some() => {
                "asks a set, a map or a comparison"
            }
            _ => return,
        };
        self.unread.push(format!("{family} {table} {chain} handle {handle} ({how})"));
    }
}

/// Which of conntrack's states a rule takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Takes {
    /// It does not ask.
    #[default]
    Any,
    /// INVALID is among them, by a mask.
    Invalid,
    /// In a way that is not read.
    Asked,
}

/// What a rule's expressions showed so far.
#[derive(Debug, Default)]
struct Seen {
    family: &'static str,
    /// The expression before this loaded conntrack's state.
    state: bool,
    takes: Takes,
    /// Where it leads is not read: a map of verdicts, or INVALID to another chain.
    elsewhere: bool,
    action: Option<RuleAction>,
    packets: Option<u64>,
}

impl Seen {
    fn expression(&mut self, expression: &Expressions) {
        let state = std::mem::take(&mut self.state);
        match expression {
            Expressions::Bitwise(parts) if state && parts.iter().any(masks) => {
                self.takes = Takes::Invalid;
            }
            // Other states.
            Expressions::Bitwise(_) => {}
            _ if state => {
                self.takes = Takes::Asked;
                self.elsewhere |= matches!(expression, Expressions::Lookup(parts)
                    if parts.contains(&Lookup::DestinationRegister(Register::Verdict)));
            }
            Expressions::Immediate(parts) => match parts.iter().find_map(verdict) {
                Some(Verdict::Other(NF_DROP)) => self.action = Some(RuleAction::Drop),
                Some(Verdict::Jump | Verdict::Goto) => {
                    self.elsewhere |= self.takes == Takes::Invalid;
                }
                _ => {}
            },
            Expressions::Other { expression_type, attributes } => {
                self.other(expression_type, attributes);
            }
            _ => {}
        }
    }

    fn other(&mut self, expression: &str, attributes: &[DefaultNla]) {
        let number = |kind| number(find(attributes, kind)?);
        match expression {
            "ct" => self.state = number(NFTA_CT_KEY) == Some(NFT_CT_STATE.into()),
            "counter" => self.packets = number(NFTA_COUNTER_PACKETS),
            "match" if xt_conntrack(attributes) => self.takes = Takes::Invalid,
            "target" if name(attributes) == b"REJECT" => {
                let reset = if self.family == "ip6" { IP6T_TCP_RESET } else { IPT_TCP_RESET };
                // `struct ipt_reject_info` and `struct ip6t_reject_info`: one enum.
                let with = bytes(attributes, NFTA_TARGET_INFO);
                if with.first_chunk().is_some_and(|with| u32::from_ne_bytes(*with) == reset) {
                    self.action = Some(RuleAction::Reset);
                }
            }
            "reject" if number(NFTA_REJECT_TYPE) == Some(NFT_REJECT_TCP_RST.into()) => {
                self.action = Some(RuleAction::Reset);
            }
            _ => {}
        }
    }
}

fn data(element: &ListAttribute<ExpressionAttribute>) -> Option<&Expressions> {
    let ListAttribute::Element(parts) = element else { return None };
    parts.iter().find_map(|part| match part {
        ExpressionAttribute::Data(data) => Some(data),
        _ => None,
    })
}

fn masks(part: &Bitwise) -> bool {
    let Bitwise::Mask(DataAttribute::Value(bytes)) = part else { return false };
    let mask = bytes.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
    mask & INVALID != 0
}

/// Where a rule leads.
fn verdict(part: &Immediate) -> Option<Verdict> {
    let Immediate::Data(DataAttribute::Verdict(parts)) = part else { return None };
    parts.iter().find_map(|p| match p {
        VerdictAttribute::Code(code) => Some(*code),
        _ => None,
    })
}

fn find(attributes: &[DefaultNla], kind: u16) -> Option<&DefaultNla> {
    attributes.iter().find(|a| a.kind() & NLA_TYPE_MASK == kind)
}

fn bytes(attributes: &[DefaultNla], kind: u16) -> Vec<u8> {
    find(attributes, kind).map_or_else(Vec::new, |a| {
        let mut value = vec![0; a.value_len()];
        a.emit_value(&mut value);
        value
    })
}

/// The name of an extension of iptables' (`NFTA_MATCH_NAME`, `NFTA_TARGET_NAME`).
fn name(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut name = bytes(attributes, 1);
    name.retain(|b| *b != 0);
    name
}

/// `-m conntrack --ctstate INVALID`, as iptables on nf_tables has it: `struct xt_conntrack_mtinfo3`.
fn xt_conntrack(attributes: &[DefaultNla]) -> bool {
    const NFTA_MATCH_REV: u16 = 2;
    const NFTA_MATCH_INFO: u16 = 3;
    const XT_CONNTRACK_STATE: u16 = 1;
    let info = bytes(attributes, NFTA_MATCH_INFO);
    let field = |at: usize| {
        info.get(at..at + 2).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_ne_bytes(*b))
    };
    // match_flags, invert_flags and state_mask follow eight addresses, two times, a protocol and
    // four ports.
    let (flags, inverted, states) = (field(146), field(148), field(150));
    name(attributes) == b"conntrack"
        && find(attributes, NFTA_MATCH_REV).and_then(number).is_some_and(|rev| rev >= 2)
        && flags & !inverted & XT_CONNTRACK_STATE != 0
        && u32::from(states) & INVALID != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rule with one expression, as the kernel tells of it.
    fn rule(family: &'static str, expression: &str, attributes: &[(u16, &[u8])]) -> Rules {
        let attributes = attributes.iter().map(|(kind, v)| DefaultNla::new(*kind, v.to_vec()));
        let expression_type = expression.to_owned();
        let one = Expressions::Other { expression_type, attributes: attributes.collect() };
        let mut rules = Rules::default();
        rules.add(family, &[RuleAttribute::Expressions(vec![one.into()])]);
        rules
    }

    /// A firewall's last rule that resets whatever comes to it resets INVALID segments too, unless it
    /// rejects by ICMP, as iptables' REJECT does by default.
    #[test]
    fn a_general_reset_is_a_doubt() {
        let reject = |with: u32| rule("inet", "reject", &[(NFTA_REJECT_TYPE, &with.to_be_bytes())]);
        assert_eq!(reject(NFT_REJECT_TCP_RST), Rules { resets: true, ..Rules::default() });
        assert_eq!(reject(2), Rules::default());
        for (family, with, resets) in [
            ("ip", IPT_TCP_RESET, true),
            ("ip", 3, false),
            ("ip6", IP6T_TCP_RESET, true),
            ("ip6", IPT_TCP_RESET, false),
        ] {
            let info = with.to_ne_bytes();
            let found = rule(family, "target", &[(1, b"REJECT\0"), (NFTA_TARGET_INFO, &info)]);
            assert_eq!(found, Rules { resets, ..Rules::default() }, "{family} {with}");
        }
    }

    /// Legacy tables are named; where there are none, or no such thing, nothing is unread.
    #[test]
    fn legacy_tables_are_named() {
        let read = |names: &str| legacy("ip", "ip_tables_names", Ok(names.to_owned()));
        assert_eq!(read("").as_deref(), None);
        assert_eq!(
            read("nat\nfilter\n").as_deref(),
            Some("legacy iptables' tables of ip (nat, filter)")
        );
        let fails = |kind: io::ErrorKind| legacy("ip6", "ip6_tables_names", Err(kind.into()));
        assert_eq!(fails(io::ErrorKind::NotFound), None);
        assert!(
            fails(io::ErrorKind::PermissionDenied).is_some_and(|e| e.contains("ip6_tables_names"))
        );
    }
}
