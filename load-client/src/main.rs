//! The load-client program.

use std::process::ExitCode;

fn main() -> ExitCode {
    load_client::program::main()
}
