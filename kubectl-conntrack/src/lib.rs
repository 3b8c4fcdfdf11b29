//! A kubectl plugin: which nodes of a cluster let INVALID segments reset connections, and on which paths.
//!
//! `plan`, `objects`, `pods`, `names`, `manifests`, `verdict`, `advice`, `report` and `output` are pure. `api`, `preflight`, `run`
//! and `each_node` talk to the API server for the subcommands, each of which is a module of its name.

mod advice;
mod api;
pub mod app;
pub mod cli;
pub mod diagnose;
pub mod each_node;
mod experiment;
mod load;
pub mod manifests;
pub mod names;
mod objects;
pub mod output;
pub mod plan;
mod pods;
mod preflight;
pub mod report;
pub mod run;
pub mod tune;
pub mod verdict;
pub mod witness;
