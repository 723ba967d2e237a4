//! Destroy: everything with the preview's labels, then its files. Needs neither the Compose files nor the state.

use std::time::{Duration, Instant};

use serde::Serialize;
use tracing::{Instrument as _, info_span};

use super::deploy::{directories, release};
use super::run::{Halt, acquire, guarded, interrupted};
use super::undo::{contents, remove_all};
use super::{Client, Error, Event, Interrupt, Observer};
use crate::engine::Removed;
use crate::fault::{Fault, FaultKind};
use crate::host::{Change, Query};
use crate::ownership::Selector;
use crate::project::Target;
use crate::secret::Secret;
use crate::state::{Phase, State};

/// The first look at the engine is worth so much waiting.
const LOOK: Duration = Duration::from_secs(1);
/// The engine may take so long to remove a stack.
const LIMIT: Duration = Duration::from_secs(180);

/// A preview that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Destroyed {
    /// The preview's name.
    pub name: String,
    /// Whether there was anything.
    pub existed: bool,
    /// What was removed on the engine.
    pub removed: Removed,
    /// Files that were removed.
    pub files: usize,
}

/// Removes a preview with all that belongs to it. What is not there is fine.
pub async fn destroy(
    client: &Client,
    target: &Target,
    who: &str,
    wait: Duration,
    observer: &dyn Observer,
    interrupt: &Interrupt,
) -> Result<Destroyed, Error> {
    destroy_only_if(client, target, who, wait, observer, interrupt, None).await
}

/// [`destroy`], of a preview whose state is one of these when its lock is held; nothing is changed if it is not.
pub(super) async fn destroy_only_if(
    client: &Client,
    target: &Target,
    who: &str,
    wait: Duration,
    observer: &dyn Observer,
    interrupt: &Interrupt,
    only_if: Option<&(dyn Fn(&State) -> bool + Sync)>,
) -> Result<Destroyed, Error> {
    let begun = Instant::now();
    observer.event(&Event::Stage(Phase::Destroying));
    let why = format!("destroy of {}", target.name);
    let lock_path = target.file(&client.base_dir, ".lock");
    let selector = Selector::preview(&target.app, &target.name);
    // A look at the engine while the lock is asked for: what it finds is ours whatever happens meanwhile, and goes first. That
    // it may be old by then, or fail, does no harm: under the lock the engine is asked again.
    let mut look = client.engine.containers(&selector);
    let mut lock = std::pin::pin!(acquire(&*client.lock, &lock_path, who, &why, wait, observer, interrupt));
    let (lease, seen) = tokio::select! {
        seen = &mut look => (lock.await?, seen.unwrap_or_default()),
        // An engine that hangs is found out about under the lease, with its limits.
        lease = &mut lock => (lease?, tokio::time::timeout(LOOK, look).await.ok().and_then(Result::ok).unwrap_or_default()),
    };
    let own = format!("{}/{}", target.app, target.name);
    let query = Query {
        read: vec![format!("{own}/state.json")],
        list: vec![format!("{own}/*"), format!("{own}/.env"), format!("{own}/files/*")],
    };
    let work = async {
        // For those who look at the preview meanwhile. A run that dies here need not have come so far: a deploy finds that
        // containers are missing, and a destroy removes the rest, whatever the state says.
        let mark = async {
            let survey = client.host.survey(&client.base_dir, &query).await?;
            let path = target.file(&client.base_dir, "state.json");
            let state = survey.files.get(&path).and_then(|text| State::parse(&path, text).ok());
            if only_if.is_some_and(|wanted| !state.as_ref().is_some_and(wanted)) {
                return Ok(None);
            }
            let died = state.as_ref().is_some_and(|state| state.phase.in_flight());
            if let Some(mut state) = state {
                state.phase = Phase::Destroying;
                let content = Secret::new(state.to_json());
                client.host.apply(&[Change::Write { path, content, mode: 0o600 }]).await?;
            }
            Ok(Some((survey, died)))
        };
        let remove = client.engine.remove(&selector, &seen);
        let (marked, mut removed) = if only_if.is_none() {
            futures_util::try_join!(mark, remove)?
        } else {
            match mark.await? {
                None => (None, Removed::default()),
                marked => (marked, remove.await?),
            }
        };
        let Some((survey, died)) = marked else { return Ok((removed, 0, false)) };
        if died {
            // The engine may still be at work for the run that died; otherwise one look is enough.
            removed += remove_all(&*client.engine, &selector).await?;
        }
        let last = contents(target, &client.base_dir, &survey.paths);
        let gone = lease.conclude(&*client.host, &last, &directories(client, target)).await?;
        let files = survey.paths.iter().filter(|path| !path.ends_with("/.lock") && !path.ends_with("/files")).count();
        Ok((removed, files, gone))
    };
    let work = work.instrument(info_span!("stage", phase = %Phase::Destroying));
    let done = guarded(&*lease, interrupt, LIMIT, work).await;
    if matches!(done, Err(Halt::LeaseLost(_)) | Ok((_, _, true))) {
        // The lock is not ours any more, so it is not ours to remove.
        drop(lease);
    } else {
        release(client, target, lease, true).await?;
    }
    let (removed, files, _) = done.map_err(|halt| -> Error {
        match halt {
            Halt::Fault(fault) | Halt::LeaseLost(fault) => fault.into(),
            Halt::TimedOut(limit) => Fault::new(
                FaultKind::TimedOut,
                "remove the preview",
                format!("it took longer than {} s; run the same command again", limit.as_secs()),
            )
            .into(),
            Halt::Aborted => interrupted("remove the preview", "interrupted; run the same command again").into(),
        }
    })?;
    observer.event(&Event::StageDone(Phase::Destroying, begun.elapsed()));
    Ok(Destroyed { name: target.name.clone(), existed: removed != Removed::default() || files > 0, removed, files })
}
