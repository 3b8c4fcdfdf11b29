//! What all programs say: the closed sets of names, counts and histograms, the
//! versioned result documents, and the protocol between a probe and its server.
//!
//! Nothing here opens a connection, starts a process or touches a file.

pub use canary_wire::names;

/// Adds these counts of another to one's own.
#[macro_export]
macro_rules! add_each {
    ($own:ident += $other:ident: $($count:ident),+ $(,)?) => {
        $( $own.$count += $other.$count; )+
    };
}

pub mod hist;
pub mod names;
pub mod outcome;
pub mod probe;
pub mod prometheus;
pub mod result;
pub mod series;
