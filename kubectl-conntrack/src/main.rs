//! `kubectl conntrack`

use std::process::ExitCode;

fn main() -> ExitCode {
    let (cli, config) = match canary_runtime::cli::effective() {
        Ok(effective) => effective,
        Err(exit) => return exit,
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(kubectl_conntrack::app::main(cli, config)),
        Err(e) => canary_runtime::exit::code(Err(format!("cannot start: {e}")), |_| false),
    }
}
