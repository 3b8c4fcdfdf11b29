//! The whole conntrack experiment on one machine, in throw-away namespaces.
//!
//! Modules, each of which knows only those before it: [`wrong`], [`document`] and [`scenario`] are data,
//! `observed` is what was seen; [`judge`] and [`report`] are pure. [`run`] runs and tells,
//! `record` keeps what it tells. Namespaces, processes and kernel reads are those of
//! [`canary_testbed`]. [`cluster`] and `kernels` judge what was collected elsewhere.

pub mod app;
pub mod cli;
pub mod cluster;
pub mod document;
mod hands_on;
pub mod judge;
mod kernels;
mod observed;
mod record;
pub mod report;
pub mod run;
pub mod scenario;
pub mod wrong;
