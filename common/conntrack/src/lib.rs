//! What the kernel says of conntrack in one network namespace: the procfs texts ([`stat`]),
//! and entries, counters and limits over ctnetlink ([`table`]).
//!
//! [`netlink`] alone owns sockets; it also serves who listens to NFLOG.

pub mod netlink;
pub mod stat;
pub mod table;
