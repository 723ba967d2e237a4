//! This machine as a host: its programs, its sockets, its files. The default where no host is configured.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::process::Command;

use super::Stream;
use super::guardian::Guardian;
use super::shell::{Process, ShellHost, Transport, default_shell};
use crate::fault::{Fault, FaultKind};

/// Programs of this machine.
pub struct Local {
    _private: (),
}

/// This machine as a host.
pub type LocalHost = ShellHost<Local>;

/// This machine. Starts the [`Guardian`] of this run; call inside a tokio runtime.
///
/// # Errors
/// If the run's directory cannot be made, or `sh` is missing.
pub fn connect() -> Result<Arc<LocalHost>, Fault> {
    connect_with_shell(default_shell())
}

/// This machine, spoken to through another shell, for example `["busybox", "sh"]`; for tests of portability.
///
/// # Errors
/// As [`connect`].
pub fn connect_with_shell(shell: Vec<OsString>) -> Result<Arc<LocalHost>, Fault> {
    Ok(ShellHost::start(Local { _private: () }, Guardian::start()?, shell))
}

#[async_trait]
impl Transport for Local {
    fn describe(&self) -> String {
        "this machine".to_owned()
    }

    async fn spawn(&self, argv: &[OsString]) -> Result<Process, Fault> {
        let (program, arguments) =
            argv.split_first().ok_or_else(|| Fault::new(FaultKind::Invalid, "run a program", "no program"))?;
        // The shell needs nothing of our environment, which may be full of secrets. Its own group: Ctrl-C is ours to handle.
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(["PATH", "HOME", "TMPDIR"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                let kind = if error.kind() == std::io::ErrorKind::NotFound {
                    FaultKind::Unsupported
                } else {
                    FaultKind::Failed
                };
                Fault::new(kind, "run a program", program.to_string_lossy()).caused_by(error)
            })?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Fault::new(FaultKind::Failed, "run a program", "its input and output are missing"));
        };
        let wait = Box::pin(async move {
            let status = child.wait().await;
            let status =
                status.map_err(|error| Fault::new(FaultKind::Failed, "wait for a program", "").caused_by(error))?;
            Ok(status.code().unwrap_or(-1))
        });
        Ok(Process { stdin: Box::new(stdin), stdout: Box::new(stdout), stderr: Box::new(stderr), wait })
    }

    async fn socket(&self, path: &str) -> Result<PathBuf, Fault> {
        Ok(PathBuf::from(path))
    }

    async fn dial(&self, address: &str, port: u16) -> Result<Box<dyn Stream>, Fault> {
        let stream = tokio::net::TcpStream::connect((address, port)).await.map_err(|error| {
            Fault::new(FaultKind::Unreachable, "connect", format!("{address}:{port}")).transient().caused_by(error)
        })?;
        Ok(Box::new(stream))
    }

    async fn broken(&self, operation: &'static str) -> Fault {
        Fault::new(FaultKind::Failed, operation, "the shell ended unexpectedly").transient()
    }

    async fn close(&self) -> Result<(), Fault> {
        Ok(())
    }
}
