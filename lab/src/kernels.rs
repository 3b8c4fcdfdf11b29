//! `conntrack-lab kernels`: the results of several kernels in one table.
//!
//! `lab/kernels/all` boots the kernels and runs the lab in each; this reads
//! what they left, in the order of the columns. A folder of a plain
//! `conntrack-lab run` is a kernel too, so that a real machine's own can stand
//! beside the guests.

pub(crate) mod html;
pub(crate) mod read;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod text;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use canary_record::names::EndedBy;
use canary_record::result::{Clock, Config};
use canary_runtime::exit::Exit;
use canary_runtime::output::{self, ResultFile};
use clap::Args;

use crate::wrong::{Wrong, unwritten};

/// The options of `conntrack-lab kernels`.
#[derive(Clone, Debug, Args)]
pub struct KernelsArgs {
    /// One folder for each kernel, in the order of the columns: what lab/kernels/all or `run` wrote
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// Folder for kernels.json, kernels.html and kernels.txt
    #[arg(long, env = "LAB_OUTPUT", value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// Reads, compares, writes; the exit code is the judgement.
pub(crate) fn run(args: &KernelsArgs, config: Config) -> Result<Exit, Wrong> {
    let clock = Clock::start();
    let inputs: Vec<_> =
        args.folders.iter().map(|dir| read::folder(dir)).collect::<Result<_, _>>()?;
    let run =
        clock.run("conntrack-lab kernels", env!("CARGO_PKG_VERSION"), EndedBy::Completed, config);
    let result = table::compare(inputs, run);
    let text = text::render(&result);
    if let Some(dir) = &args.output {
        fs::create_dir_all(dir).map_err(unwritten(dir))?;
        ResultFile::prepare(&dir.join("kernels.json"))?.write(&result)?;
        output::write_file(&dir.join("kernels.html"), html::render(&result))?;
        output::write_file(&dir.join("kernels.txt"), text.as_str())?;
    }
    // The table is for a reader wherever it is read; the record is the last line for a script.
    let (mut stdout, name) = (io::stdout().lock(), Path::new("stdout"));
    stdout.write_all(text.as_bytes()).map_err(unwritten(name))?;
    if !stdout.is_terminal() {
        drop(stdout);
        output::print_line(&result).map_err(unwritten(name))?;
    }
    Ok(result.judgement.into())
}
