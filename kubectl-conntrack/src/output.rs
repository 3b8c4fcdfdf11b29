//! A diagnosis as bytes: one module is one format.

pub mod html;
pub mod junit;
pub mod table;

use crate::report::DiagnoseResult;

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// The whole document
    Json,
    /// A test case for each node and path
    Junit,
    /// A page that needs nothing else
    Html,
}

/// `result` in `format`; `colour` for the table.
pub fn text(result: &DiagnoseResult, format: Format, colour: bool) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => table::table(result, colour),
        Format::Json => serde_json::to_string_pretty(result)?,
        Format::Junit => junit::junit(result)?,
        Format::Html => html::page(result),
    })
}
