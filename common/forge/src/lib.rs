//! Forges segments on living connections and judges the answers: the same code
//! for a server's end and a client's.
//!
//! [`forgery`], [`flow`], [`tally`] and [`diagnose`] are pure; [`raw`] has the only raw
//! sockets of the project.

pub mod diagnose;
pub mod flow;
pub mod forgery;
pub mod raw;
pub mod tally;
