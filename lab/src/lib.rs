//! The whole conntrack experiment on one machine, in throw-away namespaces.
//!
//! [`scenario`], [`verdict`] and [`report`] are pure. Namespaces, processes and
//! kernel reads are those of [`canary_testbed`]; [`cell`] and [`runner`] put
//! them in order.

pub mod app;
pub mod causes;
pub mod cell;
pub mod cli;
pub mod document;
pub mod hands_on;
pub mod kernels;
pub mod record;
pub mod report;
pub mod runner;
pub mod saturation;
pub mod scenario;
pub mod staged;
pub mod verdict;

use canary_testbed::{capture, evidence, exec, netns, place, topology};
