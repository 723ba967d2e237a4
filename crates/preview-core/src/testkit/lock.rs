//! Locks that live in memory: leases that can be lost on demand, injected failures, a log of calls.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::fault::{Fault, FaultKind};
use crate::host::checked;
use crate::lock::{Acquired, Holder, Lease, Lock};

/// The methods of [`Lock`] and [`Lease`], for failures to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockCall {
    /// [`Lock::acquire`].
    Acquire,
    /// [`Lock::holder`].
    Holder,
    /// [`Lease::release`]; the lock is free all the same, as when the connection is lost meanwhile.
    Release,
}

struct Held {
    number: u64,
    holder: Holder,
    lost: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    held: HashMap<String, Held>,
    last: u64,
    failures: HashMap<LockCall, VecDeque<Fault>>,
    calls: Vec<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the lock if it is still this lease's.
    fn free(&self, path: &str, number: u64) {
        let mut state = self.state();
        if state.held.get(path).is_some_and(|held| held.number == number) {
            state.held.remove(path);
        }
        drop(state);
        self.changed.send_replace(());
    }
}

/// Locks in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryLock {
    shared: Arc<Shared>,
}

impl MemoryLock {
    /// Takes the lease of this lock away, as when its holder was not heard of for too long; the lock is free then.
    pub fn lose(&self, path: &str) {
        if let Some(held) = self.shared.state().held.remove(path) {
            held.lost.send_replace(true);
        }
        self.shared.changed.send_replace(());
    }

    /// The next call that is not yet meant to fail fails so.
    pub fn fail_next(&self, call: LockCall, fault: Fault) {
        self.shared.state().failures.entry(call).or_default().push_back(fault);
    }

    /// The calls so far: `acquire /base/.lock`, `holder /base/.lock`, `release /base/.lock`, `remove /base/.lock`.
    pub fn calls(&self) -> Vec<String> {
        self.shared.state().calls.clone()
    }

    /// The paths of the locks that are held.
    pub fn held(&self) -> Vec<String> {
        let mut held: Vec<String> = self.shared.state().held.keys().cloned().collect();
        held.sort();
        held
    }
}

fn called(shared: &Shared, call: LockCall, text: String) -> Result<(), Fault> {
    let mut state = shared.state();
    state.calls.push(text);
    match state.failures.get_mut(&call).and_then(VecDeque::pop_front) {
        Some(fault) => Err(fault),
        None => Ok(()),
    }
}

#[async_trait]
impl Lock for MemoryLock {
    async fn acquire(
        &self,
        path: &str,
        holder: &Holder,
        wait: Duration,
        waiting: &(dyn Fn(Option<Holder>) + Send + Sync),
    ) -> Result<Acquired, Fault> {
        called(&self.shared, LockCall::Acquire, format!("acquire {path}"))?;
        checked("take the lock", path)?;
        let deadline = Instant::now() + wait;
        let mut changed = self.shared.changed.subscribe();
        let mut seen = None;
        loop {
            changed.mark_unchanged();
            let other = {
                let mut state = self.shared.state();
                match state.held.get(path) {
                    Some(held) => held.holder.clone(),
                    None => {
                        state.last += 1;
                        let (number, lost) = (state.last, watch::Sender::new(false));
                        let held = Held { number, holder: holder.clone(), lost: lost.clone() };
                        state.held.insert(path.to_owned(), held);
                        let shared = Arc::clone(&self.shared);
                        return Ok(Acquired::Held(Box::new(MemoryLease {
                            shared,
                            path: path.to_owned(),
                            number,
                            lost,
                        })));
                    }
                }
            };
            if seen.as_ref() != Some(&other) {
                waiting(Some(other.clone()));
                seen = Some(other.clone());
            }
            if wait.is_zero() || tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Ok(Acquired::TimedOut(Some(other)));
            }
        }
    }

    async fn holder(&self, path: &str) -> Result<Option<Holder>, Fault> {
        called(&self.shared, LockCall::Holder, format!("holder {path}"))?;
        checked("ask who holds the lock", path)?;
        Ok(self.shared.state().held.get(path).map(|held| held.holder.clone()))
    }
}

struct MemoryLease {
    shared: Arc<Shared>,
    path: String,
    number: u64,
    lost: watch::Sender<bool>,
}

impl Drop for MemoryLease {
    fn drop(&mut self) {
        self.shared.free(&self.path, self.number);
    }
}

#[async_trait]
impl Lease for MemoryLease {
    fn check(&self) -> Result<(), Fault> {
        if *self.lost.borrow() {
            return Err(Fault::new(FaultKind::LeaseLost, "keep the lock", self.path.clone()));
        }
        Ok(())
    }

    async fn lost(&self) {
        let mut lost = self.lost.subscribe();
        let _ = lost.wait_for(|lost| *lost).await;
    }

    async fn release(self: Box<Self>, remove: bool) -> Result<(), Fault> {
        let verb = if remove { "remove" } else { "release" };
        called(&self.shared, LockCall::Release, format!("{verb} {}", self.path))?;
        self.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passes_the_suite() {
        crate::testkit::conformance::lock::suite(&MemoryLock::default(), "/base/locks").await;
    }

    #[tokio::test]
    async fn a_lease_can_be_lost() {
        let lock = MemoryLock::default();
        let holder = Holder { who: "a".into(), why: "b".into(), since: "c".into() };
        let acquired = lock.acquire("/l", &holder, Duration::ZERO, &|_| ()).await.expect("answers");
        let Acquired::Held(lease) = acquired else { panic!("free") };
        assert_eq!(lock.held(), ["/l"]);
        lock.lose("/l");
        lease.lost().await;
        assert_eq!(lease.check().expect_err("lost").kind, FaultKind::LeaseLost);
        assert!(lease.release(false).await.is_err());
        assert!(lock.held().is_empty());
        assert_eq!(lock.calls(), ["acquire /l", "release /l"]);
    }
}
