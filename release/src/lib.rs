//! What a release holds besides the programs, written from the programs themselves: man pages, shell
//! completions, and the reference of options and documents under `docs/reference`.

mod drawing;
mod reference;

use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

pub use drawing::picture;

/// The command line of every program.
#[must_use]
pub fn programs() -> Vec<Command> {
    vec![
        boom_server::Config::command(),
        load_client::Cli::command(),
        conntrack_lab::cli::Cli::command(),
        kubectl_conntrack::cli::Cli::command(),
    ]
}

/// A man page for each program and subcommand, as `NAME.1`.
pub fn man_pages(dir: &Path) -> std::io::Result<()> {
    for program in programs() {
        clap_mangen::generate_to(program, dir)?;
    }
    Ok(())
}

/// Completions of each program for bash, zsh and fish.
pub fn completions(dir: &Path) -> std::io::Result<()> {
    for mut program in programs() {
        let name = program.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut program, &name, dir)?;
        }
    }
    Ok(())
}

/// What `make reference` writes, by its name under `docs`; `root` is the clone.
pub fn reference(root: &Path) -> std::io::Result<Vec<(&'static str, String)>> {
    let paper = std::fs::read_to_string(root.join("docs/full-tables.md"))?;
    let mut texts = vec![
        ("reference/options.md", reference::options()),
        ("reference/documents.md", reference::documents(&root.join("schema"))?),
    ];
    texts.extend(
        drawing::PLOTS
            .map(|(file, heading, what, all)| (file, drawing::plot(&paper, heading, what, all))),
    );
    Ok(texts)
}
