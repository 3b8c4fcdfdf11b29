//! Writes what a release holds besides the programs, and the reference.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

/// Writes man pages, completions or the reference into a directory.
#[derive(Debug, Parser)]
struct Cli {
    /// What to write
    what: What,
    /// Where to; made where it is not there
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// NAME.1 for each program and subcommand
    Man,
    /// For bash, zsh and fish
    Completions,
    /// The reference and the drawings of docs, in a clone
    Reference,
    /// verdict.svg, from the newest run under results/
    Picture,
}

fn main() -> anyhow::Result<()> {
    let Cli { what, dir } = Cli::parse();
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(&dir)?;
        match what {
            What::Man => canary_release::man_pages(&dir),
            What::Completions => canary_release::completions(&dir),
            What::Reference => {
                let texts = canary_release::reference(".".as_ref())?;
                texts.into_iter().try_for_each(|(name, text)| fs::write(dir.join(name), text))
            }
            What::Picture => {
                let runs = fs::read_dir("results")?.map(|e| Ok(e?.path().join("results.json")));
                let runs: Vec<PathBuf> = runs.collect::<std::io::Result<_>>()?;
                let newest = runs.into_iter().filter(|p| p.is_file()).max();
                let newest = newest.ok_or(std::io::ErrorKind::NotFound)?;
                let result = serde_json::from_slice(&fs::read(newest)?)?;
                fs::write(dir.join("verdict.svg"), canary_release::picture(&result))
            }
        }
    };
    write().with_context(|| format!("cannot write into {}", dir.display()))
}
