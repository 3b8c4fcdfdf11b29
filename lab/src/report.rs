//! Results for people: progress lines and the table.

pub mod progress;
pub mod text;
