//! What every program does alike: command lines, exit codes, listening, shutdown,
//! logs, metrics and the admin endpoint, output files, the look of pages.
//!
//! [`output`] is the only module that touches files, and `Admin::start` the only
//! function that is handed a (bound) socket.

#[cfg(feature = "admin")]
pub mod admin;
pub mod cli;
pub mod exit;
pub mod limit;
pub mod listen;
pub mod logs;
pub mod output;
#[cfg(feature = "page")]
pub mod page;
pub mod shutdown;
