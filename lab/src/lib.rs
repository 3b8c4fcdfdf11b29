//! The whole conntrack experiment on one machine, in throw-away namespaces.
//!
//! [`scenario`], [`topology`], [`ruleset`], [`verdict`], [`capture`] and
//! [`report`] are pure. [`netns`] has the only unshare and setns, [`exec`] the
//! only processes, [`evidence`] the only kernel reads; [`place`], [`cell`] and
//! [`runner`] put them in order.

pub mod app;
pub mod capture;
pub mod causes;
pub mod cell;
pub mod cli;
pub mod document;
pub mod evidence;
pub mod exec;
#[cfg(test)]
mod golden;
pub mod hands_on;
pub mod kernels;
pub mod netns;
pub mod place;
pub mod record;
pub mod report;
pub mod ruleset;
pub mod runner;
pub mod saturation;
pub mod scenario;
pub mod staged;
pub mod topology;
pub mod verdict;
