//! A kubectl plugin: which nodes of a cluster let INVALID segments reset connections, and on which paths.
//!
//! `plan`, `objects`, `pods`, `verdict`, `advice`, `report` and `output` are pure; `api`, `preflight`, `run`
//! and `diagnose` talk to the API server, and nothing else does.

pub mod advice;
pub mod api;
pub mod app;
pub mod cli;
pub mod diagnose;
pub mod load;
pub mod manifests;
pub mod objects;
pub mod output;
pub mod plan;
pub mod pods;
pub mod preflight;
pub mod report;
pub mod run;
pub mod verdict;
