//! The testbed on which the lab, every real-packet test and every bench stand:
//! hosts in network namespaces, the links between them, Service rules and
//! protections, programs placed in the hosts, captures and kernel counters.
//!
//! [`model`], [`topology`], [`ruleset`] and [`capture`] are pure. [`netns`] has
//! the only unshare and setns, [`exec`] the only processes, [`evidence`] the
//! only kernel reads; [`mod@testbed`] puts them in order. Nothing here knows what a
//! cell or a test wants to prove.

pub mod capture;
pub mod evidence;
pub mod exec;
pub mod golden;
#[cfg(feature = "test")]
pub mod logged;
pub mod model;
pub mod netns;
pub mod network;
pub mod os;
pub mod programs;
pub mod ruleset;
pub mod tap;
#[cfg(feature = "test")]
pub mod test;
pub mod testbed;
pub mod topology;
