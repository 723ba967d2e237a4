//! The lease over `flock` of a shell on the host: the kernel frees it when the shell ends, however it ends.
//!
//! The shell ends at the end of its input (we died, the connection was lost) and when no line came for the time to live (we
//! hang, the network swallows packets). Nothing has to be cleaned up and no clock is compared with another.
//!
//! After silence it also ends the SSH connection that it came through. `sshd` may take hours to notice that its client is gone, and until then the
//! engine would wait for the rest of an archive, with the container locked that receives it, or go on with a build.
//!
//! We drive it line by line: `try`, `wait` (a slice of one second, so that it notices our end soon), then `beat N` every few
//! seconds, each of which is answered. Children of the shell do not inherit the lock's descriptor once it is held.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Lines};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Acquired, GRACE, HEARTBEAT, Holder, Lease, Lock, TTL};
use crate::fault::{Fault, FaultKind};
use crate::host::guardian::{Guardian, Pulse};
use crate::host::shell::{Process, ShellHost, Transport};
use crate::host::{Change, Host, apply_script, describe, kind_of, quote, random_token, trace_unnoted};

const ACQUIRE: &str = "take the lock";
const RELEASE: &str = "release the lock";
/// The shell answers each line within a second and the way there; a host that swaps may need longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const CONCLUDE: &str = "change files on the host";
/// Removing a large directory may take a while.
const CONCLUDE_LIMIT: Duration = Duration::from_secs(300);

/// Takes the lock's file, the holder as JSON and the time to live in seconds.
const HOLD: &str = include_str!("hold.sh");

/// A shared lock for an instant: askers do not disturb each other, and those who wait are not turned away.
fn probe(path: &str) -> String {
    format!(
        "l={}\n\
         for again in 1 2; do\n\
         [ -e \"$l\" ] || exit 0\n\
         command -v flock >/dev/null || {{ echo 'flock: not found' >&2; exit 1; }}\n\
         if ( exec 9<\"$l\" && flock -n -s 9 ); then exit 0; fi\n\
         j=; {{ IFS= read -r j <\"$l\"; }} 2>/dev/null\n\
         if [ -n \"$j\" ]; then break; fi; sleep 0.2 2>/dev/null || sleep 1\n\
         done\n\
         printf 'held %s\\n' \"$j\"\n",
        quote(path)
    )
}

/// How long things take; the constants of the [module](super) unless a test is in a hurry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Heartbeats are this far apart.
    pub heartbeat: Duration,
    /// The host frees the lock after so long without one; whole seconds.
    pub ttl: Duration,
    /// The holder gives up after so long without an answer; shorter than `ttl`.
    pub grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat: HEARTBEAT, ttl: TTL, grace: GRACE }
    }
}

/// Locks on a host that is spoken to through a shell.
pub struct ShellLock<T> {
    host: Arc<ShellHost<T>>,
    timing: Timing,
}

impl<T: Transport> ShellLock<T> {
    /// Locks on this host.
    pub fn new(host: Arc<ShellHost<T>>) -> Self {
        Self::with_timing(host, Timing::default())
    }

    /// Locks on this host with another rhythm; everybody who uses the same locks must keep it.
    pub fn with_timing(host: Arc<ShellHost<T>>, timing: Timing) -> Self {
        Self { host, timing }
    }

    async fn start(&self, path: &str, holder: &Holder) -> Result<Conversation, Fault> {
        crate::host::checked(ACQUIRE, path)?;
        let json = serde_json::to_string(holder)
            .map_err(|error| Fault::new(FaultKind::Invalid, ACQUIRE, path).caused_by(error))?;
        let ttl = self.timing.ttl.as_secs().max(1).to_string();
        let process = self.host.run(ACQUIRE, HOLD, &[path, &json, &ttl]).await?;
        let Process { stdin, stdout, stderr, wait } = process;
        Ok(Conversation { stdin, answers: BufReader::new(stdout).lines(), stderr, _program: wait })
    }

    /// Why the shell ended before it had the lock.
    async fn ended(&self, path: &str, conversation: &mut Conversation) -> Fault {
        let mut complaint = Vec::new();
        let mut stderr = (&mut conversation.stderr).take(4096);
        let read = stderr.read_to_end(&mut complaint);
        let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
        let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
        if complaint.is_empty() {
            self.host.transport().broken(ACQUIRE).await
        } else {
            Fault::new(kind_of(&complaint), ACQUIRE, format!("{path}: {complaint}"))
        }
    }
}

/// A shell on the host that has the lock, or wants it. Dropping it ends the shell.
struct Conversation {
    stdin: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    answers: Lines<BufReader<Box<dyn AsyncRead + Send + Sync + Unpin>>>,
    stderr: Box<dyn AsyncRead + Send + Sync + Unpin>,
    _program: futures_util::future::BoxFuture<'static, Result<i32, Fault>>,
}

impl Conversation {
    async fn say(&mut self, line: &str) -> std::io::Result<()> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await?;
        self.stdin.flush().await
    }
}

#[async_trait]
impl<T: Transport> Lock for ShellLock<T> {
    async fn acquire(
        &self,
        path: &str,
        holder: &Holder,
        wait: Duration,
        waiting: &(dyn Fn(Option<Holder>) + Send + Sync),
    ) -> Result<Acquired, Fault> {
        let deadline = Instant::now() + wait;
        let mut conversation = self.start(path, holder).await?;
        let mut wish = if wait.is_zero() { "once" } else { "try" };
        let mut seen: Option<Option<Holder>> = None;
        loop {
            // Noted before it is sent: the host counts its time to live from a later moment.
            let sent = Instant::now();
            // Before the first answer it is not known whether anybody holds the lock: the way there is not waiting for it.
            let limit = match seen {
                Some(_) => deadline.saturating_duration_since(sent).min(ANSWER_LIMIT),
                None => ANSWER_LIMIT,
            };
            let exchange = async {
                conversation.say(wish).await?;
                loop {
                    let answer = conversation.answers.next_line().await?;
                    // Anything else is noise of a login shell's start-up files.
                    if answer.as_ref().is_none_or(|answer| answer == "held" || answer.starts_with("busy ")) {
                        return Ok::<_, std::io::Error>(answer);
                    }
                }
            };
            let answer = match tokio::time::timeout(limit, exchange).await {
                Ok(Ok(Some(answer))) => answer,
                Ok(Ok(None) | Err(_)) => return Err(self.ended(path, &mut conversation).await),
                Err(_) => {
                    return match seen {
                        Some(holder) if Instant::now() >= deadline => Ok(Acquired::TimedOut(holder)),
                        _ => {
                            let context = format!("{path}: no answer within {} s", ANSWER_LIMIT.as_secs());
                            Err(Fault::new(FaultKind::Unreachable, ACQUIRE, context).transient())
                        }
                    };
                }
            };
            tracing::debug!(path, answer, took = ?sent.elapsed(), "asked for the lock");
            if answer == "held" {
                return Ok(Acquired::Held(Box::new(ShellLease::start(
                    path,
                    conversation,
                    sent,
                    self.timing,
                    self.host.guardian(),
                ))));
            }
            let holder = answer.strip_prefix("busy ").and_then(|json| serde_json::from_str::<Holder>(json).ok());
            if seen.as_ref() != Some(&holder) {
                waiting(holder.clone());
                seen = Some(holder.clone());
            }
            if wait.is_zero() || Instant::now() >= deadline {
                return Ok(Acquired::TimedOut(holder));
            }
            wish = "wait";
        }
    }

    async fn holder(&self, path: &str) -> Result<Option<Holder>, Fault> {
        const OPERATION: &str = "ask who holds the lock";
        crate::host::checked(OPERATION, path)?;
        let answer = self.host.exchange(OPERATION, Duration::from_secs(30), |_| Ok(probe(path))).await?;
        if answer.status != 0 {
            return Err(Fault::new(kind_of(&answer.stderr), OPERATION, format!("{path}: {}", answer.stderr)));
        }
        let text = String::from_utf8_lossy(&answer.stdout);
        Ok(text.trim_end().strip_prefix("held").map(|json| {
            serde_json::from_str(json).unwrap_or_else(|_| Holder {
                who: "somebody".to_owned(),
                why: "unknown".to_owned(),
                since: String::new(),
            })
        }))
    }
}

/// What the lease knows, shared with the task that keeps it.
struct Shared {
    path: String,
    grace: Duration,
    /// When the last heartbeat that was answered was sent.
    confirmed: Mutex<Instant>,
    /// The host makes the last changes, and hears no heartbeat meanwhile.
    concluding: AtomicBool,
    lost: watch::Sender<bool>,
}

impl Shared {
    fn confirmed(&self) -> Instant {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once lost, always lost: somebody may have begun to wind up.
    fn is_lost(&self) -> bool {
        let silent = !self.concluding.load(Ordering::Acquire) && self.confirmed().elapsed() > self.grace;
        if !*self.lost.borrow() && silent {
            self.lost.send_replace(true);
        }
        *self.lost.borrow()
    }

    fn fault(&self, operation: &'static str) -> Fault {
        let silent = self.confirmed().elapsed().as_secs();
        Fault::new(FaultKind::LeaseLost, operation, format!("{}: not confirmed for {silent} s", self.path))
    }
}

enum Wish {
    Release {
        remove: bool,
        done: oneshot::Sender<()>,
    },
    /// The lines to say; what comes back is why it failed.
    Conclude {
        text: String,
        done: oneshot::Sender<Result<(), String>>,
    },
}

struct ShellLease {
    shared: Arc<Shared>,
    /// The task ends, and the lock with it, when this is dropped.
    wishes: mpsc::Sender<Wish>,
    concluded: AtomicBool,
}

impl ShellLease {
    fn start(path: &str, conversation: Conversation, sent: Instant, timing: Timing, guardian: &Guardian) -> Self {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            grace: timing.grace,
            confirmed: Mutex::new(sent),
            concluding: AtomicBool::new(false),
            lost: watch::Sender::new(false),
        });
        let (wishes, heard) = mpsc::channel(1);
        // What we started must not outlive the lease either, should we be stopped.
        let pulse = guardian.pulse(timing.heartbeat, timing.grace);
        tokio::spawn(keep(Arc::clone(&shared), conversation, heard, timing.heartbeat, pulse));
        Self { shared, wishes, concluded: AtomicBool::new(false) }
    }
}

/// Sends heartbeats and notes the answers until the lease is released, dropped or lost.
async fn keep(
    shared: Arc<Shared>,
    mut conversation: Conversation,
    mut wishes: mpsc::Receiver<Wish>,
    heartbeat: Duration,
    _pulse: Pulse,
) {
    let mut beats = tokio::time::interval(heartbeat);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beats.reset();
    let mut number: u64 = 0;
    let mut unanswered: VecDeque<(u64, Instant)> = VecDeque::new();
    loop {
        let given_up = tokio::time::Instant::from_std(shared.confirmed() + shared.grace);
        tokio::select! {
            wish = wishes.recv() => {
                let sent = Instant::now();
                let said = match &wish {
                    None => return,
                    Some(Wish::Release { remove: true, .. }) => conversation.say("remove").await,
                    Some(Wish::Release { .. }) => conversation.say("release").await,
                    Some(Wish::Conclude { text, .. }) => conversation.say(text).await,
                };
                if said.is_err() {
                    break;
                }
                // Answers to heartbeats may come first.
                let answer = loop {
                    match conversation.answers.next_line().await {
                        Ok(Some(answer)) if answer.starts_with("beat ") => {}
                        Ok(answer) => break answer,
                        Err(_) => break None,
                    }
                };
                match (wish, answer) {
                    (Some(Wish::Release { done, .. }), Some(answer)) if answer == "released" => {
                        let _ = done.send(());
                        return;
                    }
                    (Some(Wish::Conclude { done, .. }), Some(answer)) => {
                        let failed = answer.strip_prefix("failed ").map(str::to_owned);
                        let over = failed.is_none();
                        trace_unnoted(&answer);
                        if !over {
                            // Still ours, for the time to live since then.
                            unanswered.clear();
                            *shared.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = sent;
                        }
                        let _ = done.send(failed.map_or(Ok(()), Err));
                        if over {
                            return;
                        }
                    }
                    _ => break,
                }
            }
            answer = conversation.answers.next_line() => {
                let Ok(Some(answer)) = answer else { break };
                let Some(answered) = answer.strip_prefix("beat ").and_then(|n| n.parse::<u64>().ok()) else { continue };
                while let Some((n, sent)) = unanswered.front().copied().filter(|(n, _)| *n <= answered) {
                    unanswered.pop_front();
                    if n == answered {
                        *shared.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = sent;
                    }
                }
            }
            _ = beats.tick() => {
                number += 1;
                unanswered.push_back((number, Instant::now()));
                if conversation.say(&format!("beat {number}")).await.is_err() {
                    break;
                }
            }
            () = tokio::time::sleep_until(given_up) => break,
        }
    }
    shared.lost.send_replace(true);
}

/// Makes the lease a lost one when it is dropped, unless told otherwise.
struct LostUnlessKnown<'a>(Option<&'a Shared>);

impl LostUnlessKnown<'_> {
    fn known(mut self) {
        self.0 = None;
    }
}

impl Drop for LostUnlessKnown<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            shared.lost.send_replace(true);
        }
    }
}

#[async_trait]
impl Lease for ShellLease {
    fn check(&self) -> Result<(), Fault> {
        if self.shared.is_lost() { Err(self.shared.fault("keep the lock")) } else { Ok(()) }
    }

    async fn lost(&self) {
        let mut lost = self.shared.lost.subscribe();
        // The sender lives in `shared`, so this ends with the loss only.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    async fn conclude(&self, _: &dyn Host, changes: &[Change], after: &[Change]) -> Result<bool, Fault> {
        self.check()?;
        let mark = format!("#M{}", random_token()?);
        let (text, rest) = (apply_script(changes, &mark)?, apply_script(after, &mark)?);
        let end = format!("#E{mark}");
        let text = format!("conclude {end}\n{text}\n{end}\n{rest}\n{end}");
        // Until the answer is there it is not known whether the lock is still ours; so it is not, if nobody waits for it.
        let unknown = LostUnlessKnown(Some(&self.shared));
        let (done, concluded) = oneshot::channel();
        let lost = |_| self.shared.fault(CONCLUDE);
        self.shared.concluding.store(true, Ordering::Release);
        self.wishes.send(Wish::Conclude { text, done }).await.map_err(lost)?;
        let Ok(Ok(answer)) = tokio::time::timeout(CONCLUDE_LIMIT, concluded).await else {
            return Err(self.shared.fault(CONCLUDE));
        };
        unknown.known();
        match answer {
            Ok(()) => {
                self.concluded.store(true, Ordering::Relaxed);
                Ok(true)
            }
            // Each change that is done printed one newline, which is a blank by now.
            Err(said) => {
                self.shared.concluding.store(false, Ordering::Release);
                let made = said.len() - said.trim_start().len();
                let failed = changes.get(made).map(describe).unwrap_or_default();
                Err(Fault::new(kind_of(&said), CONCLUDE, format!("{failed}: {}", said.trim())))
            }
        }
    }

    async fn release(self: Box<Self>, remove: bool) -> Result<(), Fault> {
        if self.concluded.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.check()?;
        let (done, released) = oneshot::channel();
        let lost = |_| self.shared.fault(RELEASE);
        self.wishes.send(Wish::Release { remove, done }).await.map_err(lost)?;
        match tokio::time::timeout(self.shared.grace, released).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(self.shared.fault(RELEASE)),
        }
    }
}
