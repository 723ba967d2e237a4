//! Fences on the host: what says that a run comes too late, looked for when it begins and while it is at work.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Client;
use crate::fault::Fault;
use crate::fence::{self, Cause, Order, Superseded, Tombstone};
use crate::host::{Change, Facts, Query, random_token};
use crate::project::Target;
use crate::secret::Secret;

/// A run looks this often whether it is still wanted.
const EVERY: Duration = Duration::from_secs(3);

/// The host's time when something began.
pub(super) fn begun(facts: &Facts, began: Instant) -> Timestamp {
    let now = Timestamp::from_second(facts.now).unwrap_or_else(|_| Timestamp::now());
    SignedDuration::try_from(began.elapsed()).ok().and_then(|ago| now.checked_sub(ago).ok()).unwrap_or(now)
}

/// Looks for tombstones while a run is at work.
pub(super) struct Watch {
    seen: watch::Receiver<Option<Superseded>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Looks from now on, until it is dropped.
    pub(super) fn start(client: &Client, target: &Target, order: Order) -> Self {
        let (sender, seen) = watch::channel(None);
        let (host, base, target) = (client.host.clone(), client.base_dir.clone(), target.clone());
        let query =
            Query { read: vec![fence::pattern(&target.app, &target.name)], files_only: true, ..Query::default() };
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                // What cannot be asked now is asked again; that the host is gone others find out.
                let Ok(survey) = host.survey(&base, &query).await else { continue };
                let found = fence::tombstones(&survey.files, &target.app, &target.name);
                if let Err(superseded) = fence::deploy(&order, None, &found) {
                    sender.send_replace(Some(superseded));
                    return;
                }
            }
        });
        Self { seen, task }
    }

    /// Ends when the run is not wanted any more.
    pub(super) async fn fired(&self) -> Superseded {
        let mut seen = self.seen.clone();
        match seen.wait_for(Option::is_some).await.map(|found| found.clone()) {
            Ok(Some(superseded)) => superseded,
            _ => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Says on the host that a preview is to go: for an event for good, else until it is taken back. The value is the file.
pub(super) async fn bury(
    client: &Client,
    target: &Target,
    who: &str,
    event: Option<Timestamp>,
) -> Result<String, Fault> {
    let (cause, at) = match event {
        Some(at) => (Cause::Closed, at),
        None => {
            let survey = client.host.survey(&client.base_dir, &Query::default()).await?;
            (Cause::Wanted, begun(&survey.facts, Instant::now()))
        }
    };
    let tombstone = Tombstone { cause, at, who: who.to_owned() };
    let path = tombstone.path(&client.base_dir, &target.app, &target.name, &random_token()?);
    let content = Secret::new(tombstone.to_json());
    client.host.apply(&[Change::Write { path: path.clone(), content, mode: 0o600 }]).await?;
    Ok(path)
}

/// Takes a wish back, and the directories that it needed.
pub(super) fn unbury(client: &Client, target: &Target, path: &str) -> [Change; 3] {
    let base = format!("{}/{}", client.base_dir, fence::TOMBSTONES);
    [
        Change::Remove { path: path.to_owned() },
        Change::RemoveEmpty { path: format!("{base}/{}", target.app) },
        Change::RemoveEmpty { path: base },
    ]
}
