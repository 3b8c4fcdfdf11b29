//! What boom-server, load-client and the lab agree on: sequence numbers, TCP
//! segments, the names of forgeries and outcomes, the result records and how
//! they reach a file, logs, metrics, exit codes.
//!
//! Nothing here opens a network connection, starts a process or changes the
//! system. [`output`] is the only module that touches files, and
//! [`telemetry::serve`] the only one that is handed a (bound) socket.

pub mod cli;
pub mod exit;
pub mod hist;
pub mod listen;
pub mod outcome;
pub mod output;
pub mod probe;
pub mod result;
pub mod segment;
pub mod seq;
pub mod shutdown;
pub mod telemetry;
