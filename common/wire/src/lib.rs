//! TCP segments as bytes: sequence numbers, a checked view of what was received,
//! an emitter of any combination of numbers and flags, captured packets, checksums, packet filters; and how closed sets of names are written.
//!
//! Pure, and knows nothing of the rest of the project.

pub mod checksum;
pub mod closed;
pub mod filter;
pub mod packet;
pub mod segment;
pub mod seq;
