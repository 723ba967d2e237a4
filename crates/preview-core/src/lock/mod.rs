//! Mutual exclusion on a host: a lock that is a lease, and frees itself. Contract of every lock adapter.
//!
//! A lease ends when it is released, when its holder dies, when the connection is lost, and when its holder has not
//! been heard of for [`TTL`]. A holder whose lease has ended must find out *before* anybody else can have the lock:
//! [`Lease::check`] fails once [`GRACE`] (shorter than the time to live) has passed since the last heartbeat that was answered,
//! counted from when it was *sent*, on a clock that goes on while the process is stopped.
//! **Fairness** is not promised. **Cancellation**: dropping `acquire` leaves no lock; dropping a lease releases it.
//! **Absence**: the lock's file and directories are made when needed; `release(true)` also removes the file, so that nothing is left.

pub mod shell;

use std::time::Duration;

use async_trait::async_trait;

use crate::fault::Fault;
use crate::host::{Change, Host};

/// Heartbeats are this far apart.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// The lock is free this long after the last heartbeat that arrived.
pub const TTL: Duration = Duration::from_secs(30);
/// The holder gives up this long after it sent the last heartbeat that was answered.
pub const GRACE: Duration = Duration::from_secs(20);

/// Who holds a lock, and why. Written beside the lock for those who wait; holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// Who: `octocat, run 1234 on github.com/acme/shop`, `root@build-7`.
    pub who: String,
    /// What for: `deploy pr-7`.
    pub why: String,
    /// Since when, RFC 3339 on the clock of the holder.
    pub since: String,
}

/// What happened to a wish for a lock.
pub enum Acquired {
    /// The lock is ours.
    Held(Box<dyn Lease>),
    /// The time was up; the holder as far as known.
    TimedOut(Option<Holder>),
}

/// Locks on one host.
#[async_trait]
pub trait Lock: Send + Sync {
    /// Waits at most `wait` for the lock at this absolute path; zero means: try once. `waiting` is called as soon as somebody else is
    /// found to hold it, and again whenever that changes.
    async fn acquire(
        &self,
        path: &str,
        holder: &Holder,
        wait: Duration,
        waiting: &(dyn Fn(Option<Holder>) + Send + Sync),
    ) -> Result<Acquired, Fault>;

    /// Who holds the lock at this moment; `None` if it is free. Does not disturb anybody.
    async fn holder(&self, path: &str) -> Result<Option<Holder>, Fault>;
}

/// A lock that is held.
#[async_trait]
pub trait Lease: Send + Sync {
    /// Fails with `LeaseLost` unless the lock is certainly still ours. Cheap: asks nobody. Called before every change.
    fn check(&self) -> Result<(), Fault>;

    /// Ends when the lease is lost; for waiting beside long work.
    async fn lost(&self);

    /// Makes the last changes of a run, on the host that has the lock. True if the lock was given back with them, its file
    /// removed, and `after` made then; false if it is still held. So it is after a failure, unless the lease is lost.
    ///
    /// An adapter that can saves the exchange that a [`release`](Self::release) of its own costs.
    async fn conclude(&self, host: &dyn Host, changes: &[Change], after: &[Change]) -> Result<bool, Fault> {
        let _ = after;
        host.apply(changes).await.map(|()| false)
    }

    /// Gives the lock back, if [`conclude`](Self::conclude) did not; with `remove`, the lock's file goes too, before anybody else can have it.
    async fn release(self: Box<Self>, remove: bool) -> Result<(), Fault>;
}
