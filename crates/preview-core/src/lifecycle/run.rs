//! What all runs share: who is told, what ends a run early, and a lease that is checked before every change.

use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Error;
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};
use crate::fence::Superseded;
use crate::lock::{Acquired, Holder, Lease, Lock};
use crate::secret::Secret;
use crate::state::Phase;

/// Something that a person, a CI system or a log may want to know.
#[derive(Debug)]
pub enum Event<'a> {
    /// A value that has to be masked; sent before the value is used.
    Secret(&'a Secret<String>),
    /// A stage begins.
    Stage(Phase),
    /// A stage has ended well.
    StageDone(Phase, Duration),
    /// A stage has failed. What was begun is taken back after it, if anything was.
    StageFailed(Phase, Duration, FailureCode),
    /// A line of a program at work.
    Progress(&'a str),
    /// Something to know.
    Note(&'a str),
    /// Something that may be wrong.
    Warning(&'a str),
    /// Somebody else holds the lock.
    Waiting(&'a str, Option<&'a Holder>),
}

/// Is told of what happens.
pub trait Observer: Send + Sync {
    /// Called from the run; must not block for long.
    fn event(&self, event: &Event<'_>);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Observer for Quiet {
    fn event(&self, _: &Event<'_>) {}
}

/// Ends runs early, for example at Ctrl-C. Clones are the same switch.
#[derive(Clone, Debug)]
pub struct Interrupt {
    sender: std::sync::Arc<watch::Sender<bool>>,
}

impl Default for Interrupt {
    fn default() -> Self {
        Self { sender: std::sync::Arc::new(watch::channel(false).0) }
    }
}

impl Interrupt {
    /// Ends the runs that were given this switch: they take back what they began.
    pub fn fire(&self) {
        self.sender.send_replace(true);
    }

    /// Ends when the switch is fired.
    pub async fn fired(&self) {
        let mut receiver = self.sender.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ = receiver.wait_for(|fired| *fired).await;
    }
}

/// How a stage ended before its work was done.
#[derive(Debug)]
pub(super) enum Halt {
    /// The work failed.
    Fault(Fault),
    /// The stage's limit or the run's.
    TimedOut(Duration),
    /// The switch.
    Aborted,
    /// The lease.
    LeaseLost(Fault),
    /// Something later came, or the preview is to go.
    Superseded(Superseded),
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Self {
        if fault.kind == FaultKind::LeaseLost { Self::LeaseLost(fault) } else { Self::Fault(fault) }
    }
}

/// Waits for the lock of a preview. `busy` is called when somebody else is found to have it.
#[expect(clippy::too_many_arguments, reason = "they are what a wait is about")]
pub(super) async fn acquire(
    lock: &dyn Lock,
    path: &str,
    who: &str,
    why: &str,
    wait: Duration,
    observer: &dyn Observer,
    interrupt: &Interrupt,
    busy: &(dyn Fn() + Send + Sync),
) -> Result<Box<dyn Lease>, Error> {
    let since = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let holder = Holder { who: who.to_owned(), why: why.to_owned(), since };
    let begun = Instant::now();
    let waiting = |other: Option<Holder>| {
        busy();
        observer.event(&Event::Waiting(path, other.as_ref()));
    };
    let acquired = tokio::select! {
        acquired = lock.acquire(path, &holder, wait, &waiting) => acquired.map_err(|fault| help(fault, path))?,
        () = interrupt.fired() => {
            return Err(interrupted("wait for the lock", "interrupted").into());
        }
    };
    match acquired {
        Acquired::Held(lease) => Ok(lease),
        Acquired::TimedOut(holder) => Err(Error::Locked { what: why.to_owned(), holder, waited: begun.elapsed() }),
    }
}

/// The lock is the first thing that is written on a host: where that is not allowed, the directory was never made.
fn help(mut fault: Fault, path: &str) -> Fault {
    if fault.kind == FaultKind::Denied {
        let base = path.rsplitn(4, '/').nth(3).unwrap_or(path);
        let first = fault.context.lines().next().unwrap_or_default().to_owned();
        fault.context = format!(
            "{first}; make the directory of the previews once, on the host: sudo install -d -m 0700 -o \"$USER\" {base} \
             (or choose another one with [vm] base_dir)"
        );
    }
    fault
}

/// Does work under a lease, with a limit of time, unless interrupted. The lease is checked first, and each time that the work goes on:
/// a process that was stopped for longer than its lease lives wakes up in the middle of something.
pub(super) async fn guarded<T>(
    lease: &dyn Lease,
    interrupt: &Interrupt,
    limit: Duration,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Halt> {
    lease.check().map_err(Halt::LeaseLost)?;
    let mut work = std::pin::pin!(tokio::time::timeout(limit, work));
    let work = std::future::poll_fn(|context| match lease.check() {
        Ok(()) => work.as_mut().poll(context).map(Ok),
        Err(_) => Poll::Ready(Err(Halt::LeaseLost(lost()))),
    });
    tokio::select! {
        biased;
        () = interrupt.fired() => Err(Halt::Aborted),
        () = lease.lost() => Err(Halt::LeaseLost(lost())),
        done = work => match done? {
            Ok(done) => done.map_err(Halt::from),
            Err(_) => Err(Halt::TimedOut(limit)),
        },
    }
}

/// Ctrl-C, before anything was changed or where nothing can be taken back.
pub(super) fn interrupted(operation: &'static str, context: &str) -> Fault {
    Fault::new(FaultKind::TimedOut, operation, context).coded(FailureCode::Interrupted)
}

/// The lease is lost, whatever was noticed first.
pub(super) fn lost() -> Fault {
    Fault::new(
        FaultKind::LeaseLost,
        "hold the lock",
        "the connection was lost, or the host has not been heard of for too long, so nothing was taken back: somebody else \
         may be at work on the preview now; the next deploy or destroy of it mends what is left",
    )
}
