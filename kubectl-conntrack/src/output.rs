//! A result as bytes: one module is one format, and every subcommand's result goes through it.

mod html;
mod junit;
pub(crate) mod table;

use canary_record::names::Verdict;
use canary_runtime::exit::Exit;
use serde::Serialize;

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// The whole document
    Json,
    /// A test suite for each node, a test case for what was tried there
    Junit,
    /// A page that needs nothing else
    Html,
}

/// A result that every format can show.
pub trait Shown: Serialize {
    /// What it says as an exit code.
    fn exit(&self) -> Exit {
        self.sheet(true).verdict.into()
    }

    /// For people; `colour` where a terminal shows it.
    fn table(&self, colour: bool) -> String;

    /// For JUnit and the page. `each` names every node by itself; else nodes that are alike are one part.
    fn sheet(&self, each: bool) -> Sheet;
}

/// What a page and a test report say of a result.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// The subcommand.
    pub command: &'static str,
    /// The whole.
    pub verdict: Verdict,
    /// The result in one line.
    pub headline: String,
    /// Which cluster, and when.
    pub about: String,
    /// What weakens it.
    pub reasons: Vec<String>,
    /// What to do, and what else is to be said.
    pub advice: Vec<String>,
    /// Nodes, or what else the result is made of.
    pub parts: Vec<Part>,
}

/// A node, nodes that are alike, or another part of a result.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Its title.
    pub title: String,
    /// Its verdict.
    pub verdict: Verdict,
    /// What it is and shows of itself; empty where there is nothing to say.
    pub facts: String,
    /// The nodes of it, where its title does not name them.
    pub names: Vec<String>,
    /// Why nothing was tried on it at all.
    pub reasons: Vec<String>,
    /// What was tried.
    pub tables: Vec<Table>,
}

/// What was tried of one kind.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Its title; empty where the part's is enough.
    pub title: String,
    /// What came of it, in a word that only the page has.
    pub word: String,
    /// Its columns; the first one names a row, the last one is how it ended.
    pub columns: &'static [&'static str],
    /// Its rows.
    pub rows: Vec<Row>,
    /// Why it proves nothing, beside its rows.
    pub reasons: Vec<String>,
}

/// One thing that was tried.
#[derive(Clone, Debug)]
pub struct Row {
    /// What came of it.
    pub verdict: Verdict,
    /// A cell for each column.
    pub cells: Vec<String>,
}

/// `result` in `format`; `colour` for the table.
pub fn text<T: Shown>(result: &T, format: Format, colour: bool) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => result.table(colour),
        Format::Json => serde_json::to_string_pretty(result)?,
        Format::Junit => junit::junit(&result.sheet(true))?,
        Format::Html => html::page(&result.sheet(false)),
    })
}
