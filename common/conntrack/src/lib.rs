//! What the kernel says of conntrack in one network namespace: the procfs texts ([`stat`]),
//! entries, counters and limits over ctnetlink ([`table`]), and rules that act on INVALID ([`rules`]).
//!
//! [`netlink`] alone owns sockets; it also serves who listens to NFLOG.

pub mod netlink;
pub mod rules;
pub mod stat;
pub mod table;
