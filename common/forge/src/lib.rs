//! Forges segments on living connections and judges the answers: the same code
//! for a server's end and a client's.
//!
//! [`forgery`], [`flow`], [`tally`] and [`diagnose`] are pure; [`raw`] has the only raw
//! sockets of the project, [`privilege`] the capabilities that they need, and [`drive`] runs the
//! state machine over them.

pub mod diagnose;
pub mod drive;
pub mod flow;
pub mod forgery;
pub mod privilege;
pub mod raw;
pub mod tally;
