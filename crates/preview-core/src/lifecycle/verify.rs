//! Whether the new version works: its steps, then health, then an answer.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt as _;

use super::Event;
use super::crash::{Crash, broken};
use super::diagnose::{Problem, Problems, last_lines, printable};
use super::flight::Flight;
use super::prepare::{Prepared, Wanted};
use super::probe::{self, Heard, Question};
use super::wait::{self, Expected, Restarts, Verdict};
use crate::engine::{Chunk, Container, ExecRequest, Health};
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};
use crate::ownership::Selector;
use crate::project::{Project, StepSpec};
use crate::stack::{self, Port};
use crate::state::Address;

/// How long published ports that nobody asked about are waited for.
const UNASKED: Duration = Duration::from_secs(10);
/// And those of containers that are healthy.
const HEALTHY: Duration = Duration::from_secs(1);

/// Between two looks at containers that were not well when they had answered.
const AGAIN: Duration = Duration::from_secs(1);

/// What is needed for a look at the containers.
pub(super) struct Look<'a> {
    pub(super) selector: &'a Selector,
    pub(super) expected: &'a Expected,
    pub(super) restarts: &'a mut Restarts,
}

impl Flight<'_> {
    /// Runs a step in its service. An outer error is the host's, an inner one the step's.
    pub(super) async fn step(&self, step: &StepSpec) -> Result<Result<(), Crash>, Fault> {
        self.observer.event(&Event::Note(&format!("step {}", step.name)));
        let limit = step.timeout.unwrap_or(self.project.timeouts.step);
        let (mut output, mut partial) = (Vec::new(), Vec::new());
        let run = async {
            let containers = self.client.engine.containers(&self.selector()).await?;
            let Some(container) = super::pick_container(&containers, &step.service) else {
                return Ok(Err("its service does not run".to_owned()));
            };
            let request = ExecRequest { argv: step.run.clone(), ..ExecRequest::default() };
            let mut exec = match self.client.engine.exec(&container.id, &request).await {
                Ok(exec) => exec,
                Err(fault) if matches!(fault.kind, FaultKind::Conflict | FaultKind::NotFound | FaultKind::Invalid) => {
                    return Ok(Err(fault.chain()));
                }
                Err(fault) => return Err(fault),
            };
            while let Some(chunk) = exec.output.next().await {
                let (Chunk::Stdout(bytes) | Chunk::Stderr(bytes)) = chunk?;
                output.extend_from_slice(&bytes);
                partial.extend_from_slice(&bytes);
                while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = partial.drain(..=end).collect();
                    self.print(&line);
                }
                // The last lines are what is shown; a step that prints for hours must not fill the memory.
                if output.len() > 1 << 20 {
                    output.drain(..512 << 10);
                }
            }
            Ok(match self.client.engine.exec_exit_code(&exec.id).await? {
                0 => Ok(()),
                code => Err(format!("it exited with code {code}")),
            })
        };
        let ended = match tokio::time::timeout(limit, run).await {
            Ok(ended) => ended?,
            Err(_) => Err(format!("it took longer than {} s", limit.as_secs())),
        };
        self.print(&partial);
        let text = self.redactor.clean(&String::from_utf8_lossy(&output));
        let lines = last_lines(&text);
        Ok(match ended {
            Ok(()) => Ok(()),
            Err(why) => {
                let problem = Problem::new(FailureCode::StepFailed, format!("step `{}` failed", step.name));
                let problems = Problems::from([(step.service.clone(), problem)]);
                Err(broken(format!("step `{}` in {}: {why}", step.name, step.service), problems, lines))
            }
        })
    }

    /// Shows a line of a step's output.
    fn print(&self, line: &[u8]) {
        let text = self.redactor.clean(&String::from_utf8_lossy(line));
        for line in text.lines() {
            self.observer.event(&Event::Progress(&printable(line)));
        }
    }

    /// Asks the services that must answer, until they do and still run after that: Docker's own proxy takes connections for a container that is about to end.
    pub(super) async fn asked(
        &self,
        wanted: &Wanted,
        prepared: &Prepared,
        mut containers: Vec<Container>,
        look: Look<'_>,
        last: &Mutex<Problems>,
    ) -> Result<(Verdict, Vec<Container>), Fault> {
        let mut known = 0;
        while self.ask(wanted, prepared, &containers, last).await? {
            let (verdict, now) = wait::look(&*self.client.engine, look.selector, look.expected, look.restarts).await?;
            match verdict {
                Verdict::Settling(_, restarts) if restarts != known => known = restarts,
                Verdict::Waiting(problems) => lock(last).extend(problems),
                Verdict::Well | Verdict::Settling(..) | Verdict::Broken(_) => return Ok((verdict, now)),
            }
            containers = now;
            tokio::time::sleep(AGAIN).await;
        }
        Ok((Verdict::Well, containers))
    }

    /// Asks the services that must answer; true if a connection was all that one was asked for.
    async fn ask(
        &self,
        wanted: &Wanted,
        prepared: &Prepared,
        containers: &[Container],
        last: &Mutex<Problems>,
    ) -> Result<bool, Fault> {
        let questions = questions(self.project, wanted, prepared);
        let asked = questions.iter().map(|question| async move {
            let Some(container) = super::pick_container(containers, &question.service) else { return Ok(()) };
            let word = Mutex::new(String::new());
            let answer = probe::ask(&*self.client.host, container, question, &word);
            tokio::pin!(answer);
            loop {
                tokio::select! {
                    done = &mut answer => return done,
                    () = tokio::time::sleep(Duration::from_millis(200)) => {
                        let word = lock(&word).clone();
                        if !word.is_empty() {
                            let problem = Problem::new(FailureCode::ProbeFailed, format!("does not answer: {word}"));
                            lock(last).insert(question.service.clone(), problem);
                        }
                    }
                }
            }
        });
        lock(last).clear();
        futures_util::future::try_join_all(asked).await?;
        Ok(questions.iter().any(|question| question.path.is_none()))
    }
}

impl Flight<'_> {
    /// The addresses as they are to be shown: of published ports that no route leads to, those that answer HTTP are web addresses. One on which nobody
    /// listens is told, and fails nothing.
    pub(super) async fn heard(
        &self,
        wanted: &Wanted,
        prepared: &Prepared,
        containers: &[Container],
        left: Duration,
    ) -> Vec<Address> {
        let listened = prepared.listed.iter().filter(|port| port.protocol == "tcp").map(|port| async move {
            let container = super::pick_container(containers, &port.service)?;
            // Who is healthy has opened its ports.
            let limit = if container.health == Health::Healthy { HEALTHY } else { UNASKED };
            let http = stack::may_be_http(port);
            Some((port, probe::hear(&*self.client.host, container, port.target, http, limit.min(left)).await))
        });
        let listened: Vec<_> = futures_util::future::join_all(listened).await.into_iter().flatten().collect();
        for (port, _) in listened.iter().filter(|(_, heard)| *heard == Heard::Nothing) {
            let text = format!(
                "{}: nothing listens on port {}, which the Compose file publishes; if an address should lead there, write a [[route]]",
                port.service, port.target
            );
            self.observer.event(&Event::Warning(&text));
        }
        let mut addresses = wanted.addresses.clone();
        for address in &mut addresses {
            let of_it = |(port, _): &&(&Port, Heard)| port.service == address.service && port.target == address.port;
            let Some((_, heard)) = listened.iter().find(of_it) else { continue };
            let Some((_, host_port)) = address.url.rsplit_once(':') else { continue };
            let scheme = if *heard == Heard::Http { "http" } else { "tcp" };
            address.url = format!("{scheme}://127.0.0.1:{host_port}");
        }
        addresses
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What has to answer: the configured question, and routed services without a health check.
fn questions(project: &Project, wanted: &Wanted, prepared: &Prepared) -> Vec<Question> {
    let mut questions = Vec::new();
    let first = prepared.routes.first();
    if let Some(health) = &project.health
        && let Some(service) = health.service.clone().or_else(|| Some(first?.service.clone()))
        && let Some(port) =
            health.port.or_else(|| Some(prepared.routes.iter().find(|route| route.service == service)?.port))
    {
        questions.push(Question { service, port, path: Some(health.path.clone()) });
    }
    for route in &prepared.routes {
        let checked = wanted.model.pointer(&format!("/services/{}/healthcheck/test", route.service)).is_some();
        let asked = questions.iter().any(|question| question.service == route.service && question.port == route.port);
        if !checked && !asked {
            questions.push(Question { service: route.service.clone(), port: route.port, path: None });
        }
    }
    questions
}
