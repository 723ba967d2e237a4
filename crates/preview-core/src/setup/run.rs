//! Steps carried out on a machine: look, show what differs, mend it, look again.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::report::{SetUp, State, Told};
use super::script::{self, Finding, Verdict};
use super::{Facts, Step, Wish, facts, steps};
use crate::fault::{Fault, FaultKind};
use crate::host::random_token;
use crate::host::shell::{ShellHost, Transport};
use crate::lifecycle::{Event, Observer};

/// Tries a new connection to the machine.
pub type Probe<'a> = dyn Fn() -> BoxFuture<'a, Result<(), Fault>> + Sync + 'a;

const LOOK: &str = "look at the machine";
const SET_UP: &str = "set up the machine";
/// How long a step may have to wait until another setup of the machine has ended: as `alone` of the prelude has it.
const LOCK_LIMIT: Duration = Duration::from_secs(600);
const LOOK_LIMIT: Duration = Duration::from_secs(120);
/// Lines of what a failed step printed that are kept.
const KEEP: usize = 30;

/// Becomes a shell of root, or says that it cannot.
const ROOT: &str = r#"if [ "$(id -u)" = 0 ]; then exec sh; fi
sudo -n true 2>/dev/null || { echo "$(id -un)"; exit 41; }
exec sudo -n env SSH_CONNECTION="${SSH_CONNECTION:-}" sh"#;
const NO_ROOT: i32 = 41;

/// How much is to be done.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Look, and change nothing.
    pub dry_run: bool,
    /// Only these steps; all if empty.
    pub only: Vec<String>,
    /// Not these.
    pub skip: Vec<String>,
}

impl Options {
    /// Whether a step is meant.
    pub(super) fn wants(&self, id: &str) -> bool {
        let names = |list: &[String]| list.iter().any(|name| name == id);
        (self.only.is_empty() || names(&self.only)) && !names(&self.skip)
    }
}

/// Makes a machine as wished, step by step; ends at the first step that fails, which the answer names. A second run changes nothing.
///
/// `shown` is called with the plan before anything is changed; `probe` after a step that could have locked us out.
///
/// # Errors
/// If the machine cannot be asked, is none that this command knows, gives us no rights, or holds a broken file: nothing was changed then.
/// `Invalid` if the wish is wrong.
pub async fn run<T: Transport>(
    host: &ShellHost<T>,
    wish: &Wish,
    options: &Options,
    observer: &dyn Observer,
    probe: &Probe<'_>,
    shown: &(dyn Fn(&SetUp) + Sync),
) -> Result<SetUp, Fault> {
    wish.check().map_err(|wrong| Fault::new(FaultKind::Invalid, SET_UP, wrong))?;
    let facts = Facts::parse(&ask(host, LOOK, facts::SCRIPT, LOOK_LIMIT, &mut |_| {}).await?.0)?;
    // What is wrong with the files of a proxy that is not meant is nothing to this run.
    let proxy = wish.proxy.clone().filter(|_| options.wants("proxy"));
    let wish = &Wish { proxy, ..wish.clone() };
    let all = steps(wish, &facts).map_err(|wrong| Fault::new(FaultKind::Invalid, SET_UP, wrong))?;
    let meant: Vec<&Step> = all.iter().filter(|step| options.wants(step.id)).collect();
    let found = examine(host, &meant).await?;
    let mut told: Vec<Told> = meant.iter().zip(found).map(|(step, finding)| tell(step, finding)).collect();
    let outcome = |told| SetUp::new(host.transport().describe(), facts.name.clone(), options.dry_run, told);
    if let Some(broken) = told.iter().find(|told| told.state == State::Failed) {
        let context = format!("the check of {} failed", broken.id);
        return Err(Fault::new(FaultKind::Failed, LOOK, context).with_output(broken.details.clone()));
    }
    if options.dry_run || told.iter().all(|told| told.state != State::Change) {
        return Ok(outcome(told));
    }
    shown(&outcome(told.clone()));
    for at in 0..told.len() {
        if told[at].state != State::Change {
            continue;
        }
        let (step, begun) = (meant[at], std::time::Instant::now());
        observer.event(&Event::Note(&format!("{}: {} …", step.id, step.title)));
        let done = mend(host, step, observer, probe).await?;
        told[at].seconds = Some(begun.elapsed().as_secs());
        match done {
            Ok(()) => told[at].state = State::Changed,
            Err(details) => {
                (told[at].state, told[at].details) = (State::Failed, details);
                for rest in told[at + 1..].iter_mut().filter(|told| told.state == State::Change) {
                    rest.state = State::NotReached;
                }
                return Ok(outcome(told));
            }
        }
    }
    // What one step did may have undone another.
    for ((step, finding), told) in meant.iter().zip(examine(host, &meant).await?).zip(&mut told) {
        if matches!(finding.verdict, Verdict::Differs | Verdict::Broken) {
            *told = Told { state: State::Failed, ..tell(step, finding) };
        }
    }
    Ok(outcome(told))
}

fn tell(step: &Step, finding: Finding) -> Told {
    let state = match finding.verdict {
        Verdict::AsWanted => State::Ok,
        Verdict::Differs => State::Change,
        Verdict::NotHere => State::Skip,
        Verdict::Broken => State::Failed,
    };
    Told { id: step.id, title: step.title.clone(), why: step.why, state, details: finding.lines, seconds: None }
}

/// All checks in one exchange.
async fn examine<T: Transport>(host: &ShellHost<T>, steps: &[&Step]) -> Result<Vec<Finding>, Fault> {
    let mark = format!("#C{}", random_token()?);
    let (said, complaints) = ask(host, LOOK, &script::checks(steps, &mark), LOOK_LIMIT, &mut |_| {}).await?;
    script::findings(&said, steps, &mark).ok_or_else(|| {
        Fault::new(FaultKind::Failed, LOOK, format!("the checks broke off: {complaints}")).with_output(last(&said))
    })
}

/// Applies a step and checks it; the inner error is what went wrong with it, in lines.
async fn mend<T: Transport>(
    host: &ShellHost<T>,
    step: &Step,
    observer: &dyn Observer,
    probe: &Probe<'_>,
) -> Result<Result<(), Vec<String>>, Fault> {
    let mark = format!("#C{}", random_token()?);
    let mut progress = |line: &str| {
        if !line.starts_with(&mark) {
            observer.event(&Event::Progress(line));
        }
    };
    let (said, _) = ask(host, SET_UP, &script::apply(step, &mark), step.limit + LOCK_LIMIT, &mut progress).await?;
    let end = format!("\n{mark} ");
    let Some((output, rest)) = said.split_once(&end) else {
        return Ok(Err(with_first("it broke off", last(&said))));
    };
    if !rest.starts_with("0\n") {
        return Ok(Err(last(output)));
    }
    if step.guarded
        && let Err(fault) = probe().await
    {
        let (undone, _) = ask(host, SET_UP, &script::undo(step), step.limit, &mut |_| {}).await?;
        let first = format!("no new connection gets through any more, so it was taken back: {}", fault.chain());
        return Ok(Err(with_first(&first, last(&undone))));
    }
    match script::findings(rest, &[step], &mark).and_then(|found| found.into_iter().next()) {
        Some(Finding { verdict: Verdict::AsWanted | Verdict::NotHere, .. }) => Ok(Ok(())),
        Some(finding) => {
            let mut lines = with_first("it was done, and is still not as wanted:", finding.lines);
            lines.extend(last(output));
            Ok(Err(lines))
        }
        None => Ok(Err(with_first("its check broke off", last(rest)))),
    }
}

fn with_first(first: &str, mut lines: Vec<String>) -> Vec<String> {
    lines.insert(0, first.to_owned());
    lines
}

fn last(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(KEEP)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Hands a script to a shell of root, in a process of its own; standard output and error. No shell runs half of it: it is one group.
async fn ask<T: Transport>(
    host: &ShellHost<T>,
    operation: &'static str,
    script: &str,
    limit: Duration,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<(String, String), Fault> {
    let mut process = host.run(operation, ROOT, &[]).await?;
    let text = format!("{{\n{script}\n}} </dev/null\nexit 0\n");
    let whole = async {
        let written = process.stdin.write_all(text.as_bytes()).await;
        let _ = process.stdin.shutdown().await;
        drop(process.stdin);
        written
    };
    let mut said = String::new();
    let out = async {
        let mut reader = BufReader::new(process.stdout);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).await? > 0 {
            let one = String::from_utf8_lossy(&bytes);
            line(one.trim_end());
            said.push_str(&one);
            bytes.clear();
        }
        std::io::Result::Ok(())
    };
    let mut complaints = Vec::new();
    let errors = async { process.stderr.read_to_end(&mut complaints).await };
    // Its end is asked for last: who hears of that closes the conversation, and what is still on the way is lost.
    let conversation = async {
        let (written, read, _) = tokio::join!(whole, out, errors);
        (written, read, process.wait.await)
    };
    let Ok((written, read, status)) = tokio::time::timeout(limit, conversation).await else {
        let context =
            format!("no end after {} s; it may go on on the machine: look there, then try again", limit.as_secs());
        return Err(Fault::new(FaultKind::TimedOut, operation, context));
    };
    let complaints = String::from_utf8_lossy(&complaints).trim().to_owned();
    // A shell that ended before it had read everything says why by its exit status, or had nothing to say.
    let read = read.and(if matches!(status, Ok(0)) { written } else { Ok(()) });
    match (read, status) {
        (Ok(()), Ok(0)) => Ok((said, complaints)),
        (Ok(()), Ok(NO_ROOT)) => {
            let context = format!(
                "{} may neither act as root nor use sudo without a password: log in as root (--host ssh://root@…), or as a user with passwordless sudo",
                said.trim()
            );
            Err(Fault::new(FaultKind::Denied, operation, context))
        }
        (Ok(()), Ok(status)) => {
            let context = format!("the shell ended with {status}: {complaints}");
            Err(Fault::new(FaultKind::Failed, operation, context).with_output(last(&said)))
        }
        (Err(error), _) => Err(host.transport().broken(operation).await.caused_by(error)),
        (_, Err(fault)) => Err(fault),
    }
}
