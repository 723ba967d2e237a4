//! The commands: a session, a call of the library, a report.

mod capacity;
mod doctor;
mod inspect;
mod opened;
mod provision;
mod sweep;
mod tunnel;
mod vm;

use std::sync::Arc;

use preview_core::admission::Weight;
use preview_core::config::Environment;
use preview_core::dns::{self, Dns};
use preview_core::doctor::opened_markdown as doctor_markdown;
use preview_core::fault::FaultKind;
use preview_core::lifecycle::{self, Client, Error, Event, Interrupt, Whose};
use preview_core::name::Key;
use preview_core::project::{self, Target};
use preview_core::report;
use preview_core::secret::{Redactor, Secret};
use serde_json::json;

use crate::ci::{self, Wanted, Wish};
use crate::cli::{self, Cli, Command, Deploy, Format, Global, LogFormat, Subject, Which};
use crate::output::{self, About, Console};
use crate::session::{self, Purpose, Session};

/// What a command works with.
struct Context {
    global: Global,
    environment: Environment,
    console: Arc<dyn Console>,
    redactor: Redactor,
    interrupt: Interrupt,
    /// The name of this run, in the log and in the host's history.
    run: String,
}

/// Runs the command; the value is the exit code.
pub(crate) async fn run(cli: Cli, environment: Environment) -> u8 {
    let redactor = Redactor::default();
    let run = output::run_id(&environment);
    let (verbose, name) = (cli.global.verbose, cli.command.name());
    let global = cli.global.over(&environment);
    let json = global.as_ref().is_ok_and(|global| global.log_format == Some(LogFormat::Json));
    let console = output::console(json, verbose, name, &run, &environment, &redactor);
    if let Some(key) = environment.get("PREVIEW_IDENTITY_KEY").filter(|key| !key.is_empty()) {
        console.event(&Event::Secret(&Secret::new(key.clone())));
    }
    for name in dns::SECRETS {
        if let Some(secret) = environment.get(name).filter(|secret| !secret.is_empty()) {
            console.event(&Event::Secret(&Secret::new(secret.clone())));
        }
    }
    let global = match global {
        Ok(global) => global,
        Err(error) => {
            console.failed(&error);
            return error.exit_code();
        }
    };
    let context = Context { global, environment, console, redactor, interrupt: Interrupt::default(), run };
    listen(&context.interrupt, &context.console);
    // Those that write outputs when they are done.
    let job = matches!(cli.command, Command::Deploy(_) | Command::Destroy { .. } | Command::Sweep(_) | Command::Ci);
    let work = async {
        match cli.command {
            Command::Deploy(deploy) => context.deploy(deploy).await,
            Command::Destroy { which, event_time } => context.destroy(&which, event_time.as_deref()).await,
            Command::Plan(deploy) => context.plan(&deploy).await,
            Command::List { all, history: false, .. } => context.list(all).await,
            Command::List { all, last, .. } => context.history(all, last).await,
            Command::Status(which) => context.status(&which).await,
            Command::Logs { which, service, tail, follow, timestamps } => {
                context.logs(&which, service.as_deref(), tail, follow, timestamps).await
            }
            Command::Exec { which, user, workdir, raw, service, command } => {
                context.exec(&which, user, workdir, &service, command, raw).await
            }
            Command::Tunnel { which, target, local } => context.tunnel(&which, &target, local).await,
            Command::Sweep(sweep) => context.sweep(&sweep).await,
            Command::Keep { which, span } => context.keep(&which, &span).await,
            Command::Pin(which) => context.wish(&which, lifecycle::Wish::Pin).await,
            Command::Unpin(which) => context.wish(&which, lifecycle::Wish::Unpin).await,
            Command::Ci => context.ci().await,
            Command::Capacity(capacity) => context.capacity(&capacity).await,
            Command::Doctor(doctor) => context.doctor(&doctor).await,
            Command::Vm(cli::vm::Vm::Setup(setup)) => context.vm_setup(&setup).await,
            Command::Vm(cli::vm::Vm::Provision(provision)) => context.vm_provision(&provision).await,
        }
    };
    let done = tracing::Instrument::instrument(work, tracing::info_span!("run", command = name)).await;
    match done {
        Ok(code) => {
            context.console.finish();
            code
        }
        Err(error) => context.fail(&error, job),
    }
}

/// The document with all known secrets taken out of its texts.
fn cleaned(document: serde_json::Value, redactor: &Redactor) -> serde_json::Value {
    use serde_json::Value;
    match document {
        Value::String(text) => Value::String(redactor.clean(&text)),
        Value::Array(items) => items.into_iter().map(|item| cleaned(item, redactor)).collect(),
        Value::Object(table) => table.into_iter().map(|(key, value)| (key, cleaned(value, redactor))).collect(),
        other => other,
    }
}

/// Ctrl-C and SIGTERM end the run with what it began taken back; a second one ends the program at once.
fn listen(interrupt: &Interrupt, console: &Arc<dyn Console>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (interrupt, console) = (interrupt.clone(), Arc::clone(console));
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return;
    };
    tokio::spawn(async move {
        let mut again = false;
        loop {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
            if again {
                std::process::exit(130);
            }
            again = true;
            console.say("interrupted: taking back what was begun (once more ends at once)");
            interrupt.fire();
        }
    });
}

impl Context {
    fn session(&self, purpose: Purpose<'_>) -> Result<Session, Error> {
        let session = Session::load(&self.global, purpose, self.environment.clone())?;
        for warning in &session.warnings {
            self.console.warn(warning);
        }
        self.console.about(&About { app: Some(session.app.as_str()), ..About::default() });
        Ok(session)
    }

    /// The preview that is meant.
    fn target(&self, session: &Session, which: &Which) -> Result<Target, Error> {
        let target = match &which.name {
            Some(name) => session.target_by_name(name)?,
            None => session.target(&key(&Subject { pr: which.pr, branch: which.branch.clone() })?)?,
        };
        self.console.about(&About { preview: Some(&target.name), ..About::default() });
        Ok(target)
    }

    fn json(&self) -> bool {
        self.global.format == Some(Format::Json)
    }

    /// Tells of the error; the value is the exit code.
    fn fail(&self, error: &Error, job: bool) -> u8 {
        let code = error.exit_code();
        let mut outputs = vec![("failure", error.failure().to_string())];
        let mut summary = String::new();
        if let Some(report) = error.report() {
            summary = self.redactor.clean(&report::failure_markdown(report));
            outputs.extend([("name", report.name.clone()), ("url", String::new())]);
        }
        if job && let Err(error) = output::ci_files(&self.environment, &outputs, &summary) {
            self.console.warn(&format!("the job's files cannot be written: {error}"));
        }
        self.console.failed(error);
        if self.json() {
            let message = self.redactor.clean(&error.chain());
            let mut document = json!({
                "error": {"code": code, "failure": error.failure(), "message": message, "report": error.report()},
            });
            if let Some(rejection) = error.rejection() {
                document["error"]["violations"] = cleaned(json!(rejection.violations), &self.redactor);
                document["error"]["exclude"] = json!(rejection.exclude);
            }
            output::to_stdout(&output::json(&document));
        }
        code
    }

    async fn deploy(&self, deploy: Deploy) -> Result<u8, Error> {
        let session = self.session(Purpose::Deploy(&deploy))?;
        let key = key(&deploy.subject)?;
        self.deploy_key(&session, &key, &deploy).await
    }

    fn request(&self, session: &Session, key: &Key, deploy: &Deploy) -> Result<project::Deploy, Error> {
        let get = |name: &str| session.environment.get(name).filter(|value| !value.is_empty()).cloned();
        let request = project::Deploy {
            target: session.target(key)?,
            subject: session::subject(key),
            repository: session.repository(),
            directory: session.directory_within_repository(),
            owner: deploy
                .owner
                .clone()
                .or_else(|| get("GITHUB_ACTOR"))
                .or_else(|| get("GITLAB_USER_LOGIN"))
                .or_else(|| get("USER")),
            commit: deploy.commit.clone(),
            event_at: session.event_at(deploy.event_time.as_deref())?,
            update_only: deploy.update_only,
            who: session.who(),
            run: self.run.clone(),
        };
        let (preview, owner) = (Some(request.target.name.as_str()), request.owner.as_deref());
        self.console.about(&About { preview, owner, ..About::default() });
        Ok(request)
    }

    async fn deploy_key(&self, session: &Session, key: &Key, deploy: &Deploy) -> Result<u8, Error> {
        let request = self.request(session, key, deploy)?;
        let project = session.project(&session.named(key)?)?;
        let resolver = session.compose();
        let reached = Reached { dns: self.dns(session, &project)?, ..Reached::default() };
        let done = lifecycle::deploy(
            reached.connect(session),
            &resolver,
            &project,
            &request,
            &*self.console,
            &self.redactor,
            &self.interrupt,
        )
        .await;
        self.publish(session, reached.client().as_ref(), done.as_ref().err()).await;
        reached.close().await;
        let done = done?;
        self.console.done(&report::deployed(&done));
        let opened = self.open_public(session, &project, &done, reached.dns.is_some()).await;
        let outputs = [("name", done.name.clone()), ("url", done.url.clone().unwrap_or_default())];
        self.files(&outputs, &(report::deployed_markdown(&done) + &doctor_markdown(&opened)))?;
        self.judge_public(session, &opened)?;
        if self.json() {
            output::to_stdout(&output::json(&opened::document(&done, &opened)));
        } else {
            for address in &done.addresses {
                output::to_stdout(&format!("{}\n", address.text()));
            }
        }
        Ok(0)
    }

    /// Who writes DNS records, after a word about those that this preview will have.
    fn dns(&self, session: &Session, project: &project::Project) -> Result<Option<Arc<dyn Dns>>, Error> {
        let dns = session.dns()?;
        if let Some(dns) = dns.as_deref().filter(|_| !project.hosts.is_empty()) {
            if project.proxy == preview_core::proxy::Proxy::None {
                self.console.warn("[dns] writes no records without a [proxy]: nothing would answer there");
            } else {
                for warning in dns.check(&project.hosts)? {
                    self.console.warn(&warning);
                }
            }
        }
        Ok(dns)
    }

    /// Writes the host's numbers after a run, where that is wished. Never fails the run.
    async fn publish(&self, session: &Session, client: Option<&Client>, error: Option<&Error>) {
        let gone = [FaultKind::Unreachable, FaultKind::HostKey, FaultKind::LeaseLost];
        let gone = matches!(error, Some(Error::Fault(fault)) if gone.contains(&fault.kind));
        let (Some(file), Some(client), false) = (&session.config.metrics.file, client, gone) else { return };
        let places = Weight::places(session.config.limits.max_previews.get());
        if let Err(error) = lifecycle::publish(client, file.as_str(), places).await {
            self.console.warn(&format!("the metrics cannot be written: {}", error.chain()));
        }
    }

    fn files(&self, outputs: &[(&str, String)], summary: &str) -> Result<(), Error> {
        output::ci_files(&self.environment, outputs, &self.redactor.clean(summary)).map_err(|error| {
            Error::invalid(format!("the job's files for outputs and summary cannot be written: {error}"))
        })
    }

    async fn plan(&self, deploy: &Deploy) -> Result<u8, Error> {
        let session = self.session(Purpose::Deploy(deploy))?;
        let key = key(&deploy.subject)?;
        let request = self.request(&session, &key, deploy)?;
        let project = session.project(&session.named(&key)?)?;
        let resolver = session.compose();
        let reached = Reached { dns: self.dns(&session, &project)?, ..Reached::default() };
        let plan =
            lifecycle::plan(reached.connect(&session), &resolver, &project, &request, &*self.console, &self.redactor)
                .await;
        reached.close().await;
        let plan = plan?;
        let text = if self.json() { output::json(&plan) } else { report::plan(&plan) };
        output::to_stdout(&self.redactor.clean(&text));
        Ok(0)
    }

    async fn destroy(&self, which: &Which, event_time: Option<&str>) -> Result<u8, Error> {
        let session = self.session(Purpose::Destroy)?;
        let target = self.target(&session, which)?;
        let whose = self.whose(&session, which)?;
        self.destroy_target(&session, target, whose, event_time).await
    }

    /// Whose preview is meant; by its name alone, anybody's.
    fn whose(&self, session: &Session, which: &Which) -> Result<Option<Whose>, Error> {
        if which.name.is_some() {
            return Ok(None);
        }
        let key = key(&Subject { pr: which.pr, branch: which.branch.clone() })?;
        Ok(Some(Whose { subject: session::subject(&key), repository: session.repository() }))
    }

    async fn destroy_target(
        &self,
        session: &Session,
        target: Target,
        whose: Option<Whose>,
        event_time: Option<&str>,
    ) -> Result<u8, Error> {
        let wait = session.config.timeouts.lock.into();
        let (who, event_at) = (session.who(), session.event_at(event_time)?);
        let wish = lifecycle::Destroy { target, whose, who, wait, event_at, run: Some(self.run.clone()) };
        let dns = session.dns()?;
        let client = named(session.connect().await?, dns);
        let done = lifecycle::destroy(&client, &wish, &*self.console, &self.interrupt).await;
        self.publish(session, Some(&client), done.as_ref().err()).await;
        close(&client).await;
        let done = done?;
        self.console.done(&report::destroyed(&done));
        if self.json() {
            output::to_stdout(&output::json(&done));
        }
        let outputs = [("name", done.name.clone()), ("url", String::new())];
        self.files(&outputs, &report::destroyed_markdown(&done))?;
        Ok(0)
    }

    async fn ci(&self) -> Result<u8, Error> {
        let payload = session::event_payload(&self.environment);
        match ci::wish(&self.environment, payload.as_deref()).map_err(Error::invalid)? {
            Wish::Nothing(why) => {
                self.console.done(&format!("nothing to do: {why}"));
                Ok(0)
            }
            Wish::Sweep => self.sweep(&cli::Sweep::default()).await,
            Wish::Fork { wanted, fork } => {
                // Nothing of the fork is read before this: only the base branch may say that it is welcome.
                if !session::forks_are_welcome(&self.global)? {
                    return Err(lifecycle::Refusal::Fork { number: wanted.number, fork }.into());
                }
                self.deploy_wanted(wanted).await
            }
            Wish::Destroy { number } => {
                let session = self.session(Purpose::Destroy)?;
                let which = Which { pr: Some(number), ..Which::default() };
                let target = self.target(&session, &which)?;
                let whose = self.whose(&session, &which)?;
                self.destroy_target(&session, target, whose, None).await
            }
            Wish::Deploy(wanted) => self.deploy_wanted(wanted).await,
        }
    }

    async fn deploy_wanted(&self, wanted: Wanted) -> Result<u8, Error> {
        let deploy = Deploy {
            subject: Subject::default(),
            commit: wanted.commit,
            owner: wanted.owner,
            event_time: None,
            update_only: false,
            compose: vec![],
            env_file: vec![],
            profile: vec![],
            exclude: vec![],
            url: vec![],
            pull: None,
        };
        let session = self.session(Purpose::Deploy(&deploy))?;
        self.deploy_key(&session, &pull(wanted.number)?, &deploy).await
    }
}

/// A connection that is made while something else goes on, and closed whatever comes of that.
#[derive(Default)]
struct Reached {
    dns: Option<Arc<dyn Dns>>,
    client: std::sync::Mutex<Option<Client>>,
}

impl Reached {
    async fn connect(&self, session: &Session) -> Result<Client, Error> {
        let client = named(session.connect().await?, self.dns.clone());
        *self.client.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }

    fn client(&self) -> Option<Client> {
        self.client.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    async fn close(&self) {
        let client = self.client.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(client) = client {
            close(&client).await;
        }
    }
}

/// With what writes DNS records.
fn named(client: Client, dns: Option<Arc<dyn Dns>>) -> Client {
    if let Some(dns) = &dns {
        dns.under(&client.lock, &client.base_dir);
    }
    Client { dns, ..client }
}

/// Closes the connection. What cannot be closed any more is gone already.
async fn close(client: &Client) {
    let _ = client.host.close().await;
}

fn key(subject: &Subject) -> Result<Key, Error> {
    match (subject.pr, &subject.branch) {
        (Some(number), _) => Key::pull(number),
        (None, Some(branch)) => Key::branch(branch),
        (None, None) => return Err(Error::invalid("say which preview: --pr N or --branch B")),
    }
    .map_err(|error| Error::invalid(error.to_string()))
}

fn pull(number: u64) -> Result<Key, Error> {
    Key::pull(number).map_err(|error| Error::invalid(error.to_string()))
}
