//! The command `preview`: argv and CI events in, printing out. Everything else is in `preview-core`.

mod ci;
mod cli;
mod commands;
mod environment;
mod output;
mod session;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let environment = environment::take();
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::to_stderr(&format!("preview: the asynchronous runtime does not start: {error}"));
            return ExitCode::from(1);
        }
    };
    let code = runtime.block_on(commands::run(cli, environment));
    // A blocked thread (a file system that hangs) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    ExitCode::from(code)
}
