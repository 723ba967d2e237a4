//! Looking: list, status, logs, exec.

use futures_util::StreamExt as _;
use preview_core::engine::{Chunk, ExecRequest, LogOptions};
use preview_core::fault::{Fault, FaultKind};
use preview_core::lifecycle::{self, Client, Error};
use preview_core::project::Target;
use preview_core::report;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::{Context, close};
use crate::cli::Which;
use crate::output;
use crate::session::{Purpose, Session};

impl Context {
    pub(super) async fn list(&self, all: bool) -> Result<u8, Error> {
        let session = self.session(Purpose::Look)?;
        let client = session.connect().await?;
        let app = session.app.to_string();
        let found = lifecycle::list(&client, (!all).then_some(app.as_str())).await;
        close(&client).await;
        let found = found?;
        let text = if self.json() {
            output::json(&json!({ "previews": found }))
        } else {
            report::list(&found, jiff::Timestamp::now())
        };
        output::to_stdout(&text);
        Ok(0)
    }

    pub(super) async fn history(&self, all: bool, number: usize) -> Result<u8, Error> {
        let session = self.session(Purpose::Look)?;
        let client = session.connect().await?;
        let app = session.app.to_string();
        let found = lifecycle::history(&client, (!all).then_some(app.as_str()), number).await;
        close(&client).await;
        let found = found?;
        let text = if self.json() {
            output::json(&json!({ "history": found }))
        } else {
            report::history(&found, jiff::Timestamp::now())
        };
        output::to_stdout(&text);
        Ok(0)
    }

    pub(super) async fn status(&self, which: &Which) -> Result<u8, Error> {
        let session = self.session(Purpose::Look)?;
        let target = self.target(&session, which)?;
        let client = session.connect().await?;
        let status = lifecycle::status(&client, &target).await;
        close(&client).await;
        let status = status?;
        let text = if self.json() { output::json(&status) } else { report::status(&status, jiff::Timestamp::now()) };
        output::to_stdout(&text);
        Ok(0)
    }

    pub(super) async fn logs(
        &self,
        which: &Which,
        service: Option<&str>,
        tail: u32,
        follow: bool,
        timestamps: bool,
    ) -> Result<u8, Error> {
        let session = self.session(Purpose::Look)?;
        let target = self.target(&session, which)?;
        let client = session.connect().await?;
        let options = LogOptions { tail: Some(tail), follow, timestamps, since: None };
        let printed = tokio::select! {
            printed = self.print_logs(&session, &client, &target, service, &options) => printed,
            () = self.interrupt.fired() => Ok(()),
        };
        close(&client).await;
        printed.map(|()| 0)
    }

    async fn print_logs(
        &self,
        session: &Session,
        client: &Client,
        target: &Target,
        service: Option<&str>,
        options: &LogOptions,
    ) -> Result<(), Error> {
        let (containers, ()) = futures_util::try_join!(
            lifecycle::log_containers(client, target, service),
            self.learn(session, client, target)
        )?;
        let width = containers.iter().filter_map(|c| c.service()).map(str::len).max().unwrap_or(0);
        let mut streams = futures_util::stream::SelectAll::new();
        for container in &containers {
            let name = container.service().unwrap_or(&container.name).to_owned();
            let stream = client.engine.logs(&container.id, options).await?;
            streams.push(Box::pin(Lines::new(stream).map(move |line| (name.clone(), line))));
        }
        while let Some((name, line)) = streams.next().await {
            let line = self.redactor.clean(&line?);
            output::to_stdout(&format!("{name:width$} | {line}\n"));
        }
        Ok(())
    }

    /// Learns the secrets that a service may print: those of this run, and those that were generated for the preview.
    async fn learn(&self, session: &Session, client: &Client, target: &Target) -> Result<(), Error> {
        for table in &session.config.secrets {
            let Ok(source) = preview_core::secrets::from_table(table, &session.environment) else { continue };
            for secret in source.fetch().await.unwrap_or_default().values() {
                self.redactor.learn(secret);
            }
        }
        let query = preview_core::host::Query {
            read: vec![format!("{}/{}/.env", target.app, target.name)],
            list: vec![],
            ..Default::default()
        };
        let survey = client.host.survey(&client.base_dir, &query).await?;
        for text in survey.files.values() {
            for (_, value) in text.lines().filter_map(|line| line.split_once('=')) {
                self.redactor.learn(&preview_core::secret::Secret::new(value.to_owned()));
            }
        }
        Ok(())
    }

    pub(super) async fn exec(
        &self,
        which: &Which,
        user: Option<String>,
        workdir: Option<String>,
        service: &str,
        argv: Vec<String>,
        raw: bool,
    ) -> Result<u8, Error> {
        let session = self.session(Purpose::Look)?;
        let target = self.target(&session, which)?;
        let client = session.connect().await?;
        let request = ExecRequest { argv, user, workdir, env: vec![], stdin: true };
        let ran = tokio::select! {
            ran = exec(&client, &target, service, &request, raw) => ran,
            () = self.interrupt.fired() => Ok(130),
        };
        close(&client).await;
        ran
    }
}

/// Whether the output of a command goes on as it is: to a person or to a file, but not into the log of a job.
fn as_it_is(raw: bool, to: impl std::os::fd::AsFd) -> bool {
    let file = || {
        let copy = to.as_fd().try_clone_to_owned();
        copy.and_then(|copy| std::fs::File::from(copy).metadata()).is_ok_and(|found| found.is_file())
    };
    raw || !output::in_ci() || file()
}

async fn exec(client: &Client, target: &Target, service: &str, request: &ExecRequest, raw: bool) -> Result<u8, Error> {
    let (raw_out, raw_err) = (as_it_is(raw, std::io::stdout()), as_it_is(raw, std::io::stderr()));
    let containers = lifecycle::log_containers(client, target, Some(service)).await?;
    let Some(container) = lifecycle::pick_container(&containers, service) else {
        let context = format!("`{service}` of {} does not run; see `preview status`", target.name);
        return Err(Fault::new(FaultKind::Conflict, "run a command", context).into());
    };
    let mut exec = client.engine.exec(&container.id, request).await?;
    let input = exec.input.take();
    let feed = async {
        if let Some(mut input) = input {
            let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut input).await;
            let _ = input.shutdown().await;
        }
        std::future::pending::<()>().await;
    };
    let print = async {
        let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
        let (mut out_lines, mut err_lines) = (output::Lines::default(), output::Lines::default());
        while let Some(chunk) = exec.output.next().await {
            let written = match chunk? {
                Chunk::Stdout(bytes) if raw_out => out.write_all(&bytes).await,
                Chunk::Stderr(bytes) if raw_err => err.write_all(&bytes).await,
                Chunk::Stdout(bytes) => out.write_all(&out_lines.push(&bytes)).await,
                Chunk::Stderr(bytes) => err.write_all(&err_lines.push(&bytes)).await,
            };
            if written.is_err() {
                break;
            }
        }
        let _ = (out.write_all(&out_lines.end()).await, err.write_all(&err_lines.end()).await);
        let _ = (out.flush().await, err.flush().await);
        Ok::<_, Fault>(())
    };
    tokio::select! {
        () = feed => {}
        printed = print => printed?,
    }
    let code = client.engine.exec_exit_code(&exec.id).await?;
    Ok(u8::try_from(code).unwrap_or(1))
}

/// Chunks of a log as lines.
struct Lines<S> {
    stream: S,
    rest: Vec<u8>,
    ended: bool,
}

impl<S> Lines<S> {
    const fn new(stream: S) -> Self {
        Self { stream, rest: Vec::new(), ended: false }
    }

    fn line(&mut self) -> Option<String> {
        let end = self.rest.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.rest.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned())
    }
}

impl<S: futures_util::Stream<Item = Result<Chunk, Fault>> + Unpin> futures_util::Stream for Lines<S> {
    type Item = Result<String, Fault>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        use std::task::Poll;
        loop {
            if let Some(line) = self.line() {
                return Poll::Ready(Some(Ok(line)));
            }
            if self.ended {
                let rest = std::mem::take(&mut self.rest);
                let last = (!rest.is_empty()).then(|| Ok(String::from_utf8_lossy(&rest).into_owned()));
                return Poll::Ready(last);
            }
            match self.stream.poll_next_unpin(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(Some(Err(fault))) => return Poll::Ready(Some(Err(fault))),
                Poll::Ready(Some(Ok(Chunk::Stdout(bytes) | Chunk::Stderr(bytes)))) => {
                    self.rest.extend_from_slice(&bytes)
                }
            }
        }
    }
}
