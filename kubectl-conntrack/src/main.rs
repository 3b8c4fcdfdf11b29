//! `kubectl conntrack`

use std::process::ExitCode;

fn main() -> ExitCode {
    let (cli, config) = match canary_runtime::cli::effective() {
        Ok(effective) => effective,
        Err(exit) => return exit,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("kubectl-conntrack: cannot start: {e}");
            return canary_runtime::exit::Exit::Failed.into();
        }
    };
    runtime.block_on(kubectl_conntrack::app::main(cli, config))
}
