//! boom-server: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    boom_server::main()
}
