//! What every [`Lock`] must do. Takes some seconds where waiting goes in slices of a second.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::fault::FaultKind;
use crate::lock::{Acquired, Holder, Lease, Lock};

/// Runs all checks, with locks under `dir`, which should not exist yet.
///
/// # Panics
/// Where the adapter does not keep the contract.
pub async fn suite(lock: &dyn Lock, dir: &str) {
    macro_rules! run {
        ($($check:ident),* $(,)?) => {
            $(
                tracing::debug!(check = stringify!($check));
                $check(lock, &format!("{dir}/{}/.lock", stringify!($check))).await;
            )*
        };
    }
    run!(
        a_lock_that_nobody_took_is_free,
        a_holder_is_known_while_it_holds,
        two_locks_are_two,
        a_held_lock_is_refused_at_once,
        waiting_ends_with_the_time,
        waiting_names_the_holder_once_and_again_when_it_changes,
        a_waiter_gets_it_after_release,
        a_waiter_gets_it_after_the_file_was_removed,
        dropping_a_lease_releases_it,
        dropping_a_waiter_leaves_no_lock,
        a_lease_can_be_taken_again_and_again,
        one_at_a_time,
        asking_disturbs_nobody,
        any_name_works,
        unsafe_paths_are_refused,
    );
}

/// Longer than a released lock may take to reach a waiter.
const SOON: Duration = Duration::from_secs(10);

fn holder(who: &str) -> Holder {
    Holder { who: who.to_owned(), why: format!("{who}'s \"reason\" $(id)"), since: "2026-11-20T12:00:00Z".to_owned() }
}

async fn acquire(lock: &dyn Lock, path: &str, who: &str, wait: Duration) -> Option<Box<dyn Lease>> {
    match lock.acquire(path, &holder(who), wait, &|_| ()).await.unwrap_or_else(|fault| panic!("{}", fault.chain())) {
        Acquired::Held(lease) => Some(lease),
        Acquired::TimedOut(_) => None,
    }
}

async fn take(lock: &dyn Lock, path: &str, who: &str) -> Box<dyn Lease> {
    let lease = acquire(lock, path, who, Duration::ZERO).await.expect("a free lock");
    lease.check().expect("just taken");
    lease
}

async fn holder_of(lock: &dyn Lock, path: &str) -> Option<Holder> {
    lock.holder(path).await.unwrap_or_else(|fault| panic!("{}", fault.chain()))
}

/// Releases that nobody waits for may take a moment to arrive.
async fn soon_free(lock: &dyn Lock, path: &str) {
    let begun = Instant::now();
    while holder_of(lock, path).await.is_some() {
        assert!(begun.elapsed() < SOON, "still held");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_lock_that_nobody_took_is_free(lock: &dyn Lock, path: &str) {
    assert_eq!(holder_of(lock, path).await, None);
}

async fn a_holder_is_known_while_it_holds(lock: &dyn Lock, path: &str) {
    let lease = take(lock, path, "ada").await;
    assert_eq!(holder_of(lock, path).await, Some(holder("ada")));
    lease.release(false).await.expect("releases");
    assert_eq!(holder_of(lock, path).await, None);
    take(lock, path, "bob").await.release(true).await.expect("releases");
    assert_eq!(holder_of(lock, path).await, None);
}

async fn two_locks_are_two(lock: &dyn Lock, path: &str) {
    let one = take(lock, path, "ada").await;
    let other = take(lock, &format!("{path}2"), "bob").await;
    one.release(true).await.expect("releases");
    assert_eq!(holder_of(lock, &format!("{path}2")).await, Some(holder("bob")));
    other.release(true).await.expect("releases");
}

async fn a_held_lock_is_refused_at_once(lock: &dyn Lock, path: &str) {
    let lease = take(lock, path, "ada").await;
    let begun = Instant::now();
    let told = Mutex::new(Vec::new());
    let note = |holder| told.lock().expect("not poisoned").push(holder);
    let acquired = lock.acquire(path, &holder("bob"), Duration::ZERO, &note).await.expect("answers");
    let Acquired::TimedOut(by) = acquired else { panic!("two holders") };
    assert_eq!(by, Some(holder("ada")));
    assert_eq!(*told.lock().expect("not poisoned"), [Some(holder("ada"))]);
    assert!(begun.elapsed() < Duration::from_secs(5));
    lease.check().expect("undisturbed");
    lease.release(true).await.expect("releases");
}

async fn waiting_ends_with_the_time(lock: &dyn Lock, path: &str) {
    let lease = take(lock, path, "ada").await;
    let begun = Instant::now();
    let acquired = lock.acquire(path, &holder("bob"), Duration::from_millis(1300), &|_| ()).await.expect("answers");
    assert!(matches!(acquired, Acquired::TimedOut(Some(by)) if by == holder("ada")));
    assert!(begun.elapsed() >= Duration::from_millis(1300) && begun.elapsed() < SOON, "{:?}", begun.elapsed());
    lease.release(true).await.expect("releases");
    soon_free(lock, path).await;
}

async fn waiting_names_the_holder_once_and_again_when_it_changes(lock: &dyn Lock, path: &str) {
    let first = take(lock, path, "ada").await;
    let told = Mutex::new(Vec::new());
    let note = |holder: Option<Holder>| told.lock().expect("not poisoned").push(holder.map(|holder| holder.who));
    let (waiter, changed) = (holder("cy"), AtomicUsize::new(0));
    let last = lock.acquire(path, &waiter, 3 * SOON, &note);
    let others = async {
        // The one that waits longer need not be the next one: then there is no change to tell of.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        first.release(false).await.expect("releases");
        if let Some(second) = acquire(lock, path, "bob", Duration::ZERO).await {
            changed.store(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(2500)).await;
            second.release(false).await.expect("releases");
        }
    };
    let (last, ()) = tokio::join!(last, others);
    let told = told.into_inner().expect("not poisoned");
    assert_eq!(told.first(), Some(&Some("ada".to_owned())), "{told:?}");
    assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "{told:?}");
    if changed.into_inner() == 1 {
        assert_eq!(told.last(), Some(&Some("bob".to_owned())), "{told:?}");
    }
    let Acquired::Held(lease) = last.expect("answers") else { panic!("it was released") };
    lease.release(true).await.expect("releases");
}

async fn a_waiter_gets_it_after_release(lock: &dyn Lock, path: &str) {
    handed_over(lock, path, false).await;
}

async fn a_waiter_gets_it_after_the_file_was_removed(lock: &dyn Lock, path: &str) {
    handed_over(lock, path, true).await;
}

async fn handed_over(lock: &dyn Lock, path: &str, remove: bool) {
    let first = take(lock, path, "ada").await;
    let waiting = acquire(lock, path, "bob", SOON);
    let release = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        first.release(remove).await.expect("releases");
    };
    let (second, ()) = tokio::join!(waiting, release);
    let second = second.expect("handed over");
    assert_eq!(holder_of(lock, path).await, Some(holder("bob")));
    assert!(acquire(lock, path, "cy", Duration::ZERO).await.is_none(), "two holders");
    second.check().expect("held");
    second.release(true).await.expect("releases");
}

async fn dropping_a_lease_releases_it(lock: &dyn Lock, path: &str) {
    drop(take(lock, path, "ada").await);
    let lease = acquire(lock, path, "bob", SOON).await.expect("released");
    lease.release(true).await.expect("releases");
}

async fn dropping_a_waiter_leaves_no_lock(lock: &dyn Lock, path: &str) {
    let first = take(lock, path, "ada").await;
    for wait in [50, 1200] {
        let waiting = acquire(lock, path, "bob", 3 * SOON);
        assert!(tokio::time::timeout(Duration::from_millis(wait), waiting).await.is_err());
    }
    first.release(false).await.expect("releases");
    let lease = acquire(lock, path, "cy", SOON).await.expect("nobody else wants it");
    tokio::time::sleep(Duration::from_millis(200)).await;
    lease.check().expect("held");
    assert_eq!(holder_of(lock, path).await, Some(holder("cy")));
    lease.release(true).await.expect("releases");
}

async fn a_lease_can_be_taken_again_and_again(lock: &dyn Lock, path: &str) {
    for round in 0..6 {
        take(lock, path, "ada").await.release(round % 2 == 0).await.expect("releases");
    }
}

async fn one_at_a_time(lock: &dyn Lock, path: &str) {
    let (inside, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let contenders = (0..8).map(|number| {
        let (inside, turns) = (&inside, &turns);
        async move {
            for turn in 0..2 {
                let lease = acquire(lock, path, &format!("c{number}"), 12 * SOON).await.expect("a turn");
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                tokio::time::sleep(Duration::from_millis(20)).await;
                lease.check().expect("held");
                assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1, "two holders");
                turns.fetch_add(1, Ordering::SeqCst);
                // Some remove the file, some do not, some die.
                match (number + turn) % 3 {
                    0 => lease.release(true).await.expect("releases"),
                    1 => lease.release(false).await.expect("releases"),
                    _ => drop(lease),
                }
            }
        }
    });
    futures_util::future::join_all(contenders).await;
    assert_eq!(turns.into_inner(), 16);
    soon_free(lock, path).await;
    take(lock, path, "last").await.release(true).await.expect("releases");
}

async fn asking_disturbs_nobody(lock: &dyn Lock, path: &str) {
    take(lock, path, "ada").await.release(false).await.expect("releases");
    let done = AtomicUsize::new(0);
    let asking = async {
        while done.load(Ordering::Relaxed) == 0 {
            holder_of(lock, path).await;
            tokio::task::yield_now().await;
        }
    };
    let taking = async {
        for _ in 0..10 {
            take(lock, path, "bob").await.release(false).await.expect("releases");
        }
        done.store(1, Ordering::Relaxed);
    };
    tokio::join!(asking, asking_too(lock, path, &done), taking);
    take(lock, path, "cy").await.release(true).await.expect("releases");
}

async fn asking_too(lock: &dyn Lock, path: &str, done: &AtomicUsize) {
    while done.load(Ordering::Relaxed) == 0 {
        holder_of(lock, path).await;
        tokio::task::yield_now().await;
    }
}

async fn any_name_works(lock: &dyn Lock, path: &str) {
    for name in ["a b", "it's", "$(id)", "-n", "new\nline", "*", "\\"] {
        let path = format!("{path}/{name}/{name}");
        let lease = take(lock, &path, name).await;
        assert_eq!(holder_of(lock, &path).await, Some(holder(name)));
        lease.release(true).await.expect("releases");
    }
}

async fn unsafe_paths_are_refused(lock: &dyn Lock, path: &str) {
    for path in ["", "/", "relative", &format!("{path}/../x")] {
        let acquired = lock.acquire(path, &holder("ada"), Duration::ZERO, &|_| ()).await;
        assert_eq!(acquired.err().map(|fault| fault.kind), Some(FaultKind::Invalid), "{path}");
        assert_eq!(lock.holder(path).await.err().map(|fault| fault.kind), Some(FaultKind::Invalid), "{path}");
    }
}
