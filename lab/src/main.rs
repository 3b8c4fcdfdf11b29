//! conntrack-lab: see [`conntrack_lab`].

use std::process::ExitCode;

fn main() -> ExitCode {
    conntrack_lab::app::main()
}
