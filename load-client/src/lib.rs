//! load-client: makes TCP connections at a rate, probes them, and accounts for
//! every one. The binary is [`program::main`]; each module owns one thing.

mod churn;
mod cli;
mod fill;
mod forge;
mod hold;
mod http;
mod live;
mod log;
pub mod merge;
mod observe;
mod pacer;
mod plan;
mod preflight;
mod probe;
pub mod program;
mod report;
mod series;
mod serve;
mod shown;
mod socket;
mod tally;
mod target;
pub mod threshold;
pub mod verdict;
mod witness;
mod worker;

pub use cli::Cli;

use std::net::IpAddr;
use std::sync::atomic::AtomicU8;

/// How far threads are to end: from 1 on they begin nothing new, from 2 on they give up what is in
/// progress.
type Stop = AtomicU8;

/// The turn of connection `n` through the local addresses.
fn pick(sources: &[IpAddr], n: u64) -> Option<IpAddr> {
    (!sources.is_empty()).then(|| sources[(n % sources.len() as u64) as usize])
}
