//! Results for people: progress lines and the table, the page, JUnit, the
//! comparison. All but [`folder`] and `progress` are pure.

pub mod diff;
pub mod folder;
pub mod html;
pub mod junit;
mod ladder;
mod ladder_view;
mod machine;
mod over_time;
mod overview;
mod paths;
pub(crate) mod progress;
mod situations;
mod svg;
pub mod text;
pub mod words;
