//! load-client: makes TCP connections at a rate, probes them, and accounts for
//! every one. The binary is [`program::main`]; each module owns one thing.

pub mod churn;
pub mod cli;
pub mod fill;
pub mod forge;
pub mod hold;
pub mod http;
pub mod live;
pub mod log;
pub mod merge;
pub mod observe;
pub mod pacer;
pub mod plan;
pub mod preflight;
pub mod probe;
pub mod program;
pub mod report;
pub mod series;
pub mod serve;
mod shown;
pub mod socket;
pub mod tally;
pub mod target;
pub mod threshold;
pub mod verdict;
pub mod witness;
pub mod worker;

use std::net::IpAddr;

/// The turn of connection `n` through the local addresses.
fn pick(sources: &[IpAddr], n: u64) -> Option<IpAddr> {
    (!sources.is_empty()).then(|| sources[(n % sources.len() as u64) as usize])
}
