//! nf_tables: the rules of one network namespace that act on what conntrack calls INVALID, with
//! their counters. Read, never changed. Rules of iptables' legacy tables are not in nf_tables.

use canary_record::result::witness::RuleAction;
use netlink_packet_core::{DefaultNla, NLA_TYPE_MASK, Nla as _};
use netlink_packet_netfilter::nftables::{
    Bitwise, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use crate::netlink::{Ask, NetlinkError, Socket};

// include/uapi/linux/netfilter/nf_tables.h.
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_STATE: u32 = 0;
const NFTA_REJECT_TYPE: u16 = 1;
const NFT_REJECT_TCP_RST: u32 = 1;
const NF_DROP: u32 = 0;
/// `NF_CT_STATE_INVALID_BIT`, in the host's byte order as a register has it.
const INVALID: u32 = 1;

/// A rule that acts on INVALID segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Table and chain.
    pub chain: (String, String),
    /// Its handle, which names it within its table.
    pub handle: u64,
    /// What it does.
    pub action: RuleAction,
    /// Packets counted so far, where it has a counter.
    pub packets: Option<u64>,
}

/// Every such rule of this thread's network namespace. Needs CAP_NET_ADMIN there.
pub fn of_invalid() -> Result<Vec<Rule>, NetlinkError> {
    let mut rules = Vec::new();
    let ask = NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
        NfTablesMessage::GetRule(RuleMessage { attributes: Vec::new() }),
    );
    Socket::open()?.ask(ask, Ask::Dump, |m| {
        if let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) = &m.inner {
            rules.extend(read(&rule.attributes));
        }
    })?;
    Ok(rules)
}

fn read(attributes: &[RuleAttribute]) -> Option<Rule> {
    let (mut table, mut chain, mut handle) = (String::new(), String::new(), 0);
    let (mut invalid, mut action, mut packets) = (false, None, None);
    for attribute in attributes {
        match attribute {
            RuleAttribute::Table(name) => table.clone_from(name),
            RuleAttribute::Chain(name) => chain.clone_from(name),
            RuleAttribute::Handle(n) => handle = *n,
            RuleAttribute::Expressions(list) => {
                let mut state = false;
                for expression in list.iter().filter_map(data) {
                    match expression {
                        Expressions::Bitwise(parts) if state => invalid |= parts.iter().any(masks),
                        Expressions::Immediate(parts) if parts.iter().any(drops) => {
                            action = Some(RuleAction::Drop);
                        }
                        Expressions::Other { expression_type, attributes } => {
                            let number = |kind| number(attributes, kind);
                            match expression_type.as_str() {
                                "counter" => packets = number(NFTA_COUNTER_PACKETS),
                                "match" => invalid |= xt_conntrack(attributes),
                                "target" if name(attributes) == b"REJECT" => {
                                    action = Some(RuleAction::Reset);
                                }
                                "reject"
                                    if number(NFTA_REJECT_TYPE)
                                        == Some(NFT_REJECT_TCP_RST.into()) =>
                                {
                                    action = Some(RuleAction::Reset);
                                }
                                _ => {}
                            }
                        }
                        _ => {}
                    }
                    state = matches!(expression, Expressions::Other { expression_type, attributes }
                        if expression_type == "ct"
                            && number(attributes, NFTA_CT_KEY) == Some(NFT_CT_STATE.into()));
                }
            }
            _ => {}
        }
    }
    let chain = (table, chain);
    invalid.then_some(())?;
    Some(Rule { chain, handle, action: action?, packets })
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

fn drops(part: &Immediate) -> bool {
    let Immediate::Data(DataAttribute::Verdict(verdict)) = part else { return false };
    verdict.contains(&VerdictAttribute::Code(Verdict::Other(NF_DROP)))
}

fn bytes(attributes: &[DefaultNla], kind: u16) -> Vec<u8> {
    let found = attributes.iter().find(|a| a.kind() & NLA_TYPE_MASK == kind);
    found.map_or_else(Vec::new, |a| {
        let mut value = vec![0; a.value_len()];
        a.emit_value(&mut value);
        value
    })
}

/// A 32-bit or 64-bit number in network byte order.
fn number(attributes: &[DefaultNla], kind: u16) -> Option<u64> {
    let value = bytes(attributes, kind);
    (!value.is_empty() && value.len() <= 8)
        .then(|| value.iter().fold(0, |n, b| (n << 8) | u64::from(*b)))
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
        && number(attributes, NFTA_MATCH_REV).is_some_and(|rev| rev >= 2)
        && flags & !inverted & XT_CONNTRACK_STATE != 0
        && u32::from(states) & INVALID != 0
}
