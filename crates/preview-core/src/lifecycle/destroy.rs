//! Destroy: everything with the preview's labels, then its files. Needs neither the Compose files nor the state.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;
use tracing::{Instrument as _, info_span};

use super::deploy::{directories, release};
use super::fence::{bury, unbury};
use super::leading;
use super::note::{Story, note};
use super::place::freed;
use super::records;
use super::run::{Halt, acquire, guarded, interrupted};
use super::undo::{contents, remove_all};
use super::{Client, Error, Event, Interrupt, Observer, Refusal};
use crate::engine::Removed;
use crate::fault::{Fault, FaultKind};
use crate::fence::{self, Superseded};
use crate::host::{Change, Query};
use crate::lock::Lease;
use crate::project::Target;
use crate::queue::{self, FREED, TICKET};
use crate::secret::Secret;
use crate::state::{Phase, State, Subject};

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
    /// Hosts whose DNS records were removed.
    pub records: usize,
    /// Hosts whose DNS records may be left, since this run has no access to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub records_left: Vec<String>,
}

/// Whose preview is meant. Two branches can have one name, and two repositories one application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// What the preview is of.
    pub subject: Subject,
    /// The repository, where known.
    pub repository: Option<String>,
}

impl Whose {
    /// Who has the preview with this state instead, if somebody else has.
    pub(super) fn other(&self, state: &State) -> Option<String> {
        let elsewhere = matches!((&state.repository, &self.repository), (Some(one), Some(other)) if one != other);
        match (&state.repository, elsewhere) {
            (Some(repository), true) => Some(format!("{} of {repository}", state.subject)),
            _ => (state.subject != self.subject).then(|| state.subject.to_string()),
        }
    }
}

/// What is to go, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destroy {
    /// Which preview.
    pub target: Target,
    /// Whose it has to be; `None`: whoever's it is.
    pub whose: Option<Whose>,
    /// Who holds the lock meanwhile, for those who wait.
    pub who: String,
    /// Whoever is at work on the preview is asked to stop, and waited for so long.
    pub wait: Duration,
    /// When the event happened that this is for, on the forge's clock: then no run for an earlier one brings the preview back, and
    /// it stays if it was deployed for a later one. `None`: nothing but somebody's wish, made now.
    pub event_at: Option<Timestamp>,
    /// The name of this run, for the host's history; `None`: it is part of another one.
    pub run: Option<String>,
}

/// What the state file says of a preview.
#[derive(Clone, Copy, Debug)]
pub(super) enum Record<'a> {
    /// There is none.
    Absent,
    /// It cannot be read.
    Damaged,
    /// This.
    State(&'a State),
}

/// Why a preview was left alone after all.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// It is not what it was.
    Changed,
    /// Something later came.
    Superseded(Superseded),
    /// It is somebody else's.
    Taken(String),
}

/// Whether a preview with this record is meant, asked when nobody else can change it.
pub(super) type Condition<'a> = &'a (dyn Fn(Record<'_>) -> Result<(), Kept> + Sync);

/// Removes a preview with all that belongs to it. What is not there is fine.
pub async fn destroy(
    client: &Client,
    wish: &Destroy,
    observer: &dyn Observer,
    interrupt: &Interrupt,
) -> Result<Destroyed, Error> {
    // Before anybody is asked to stop, and before a word of it is left.
    if wish.event_at.is_some()
        && let Some(by) = taken(client, wish).await?
    {
        return Err(refusal(Kept::Taken(by), &wish.target));
    }
    let in_order = |record: Record<'_>| match (record, wish.event_at) {
        (Record::State(state), Some(event)) => fence::destroy(event, Some(state)).map_err(Kept::Superseded),
        _ => Ok(()),
    };
    let only_if: Option<Condition<'_>> = wish.event_at.is_some().then_some(&in_order);
    let done = Box::pin(destroy_if(client, wish, observer, interrupt, only_if)).await?;
    done.map_err(|kept| refusal(kept, &wish.target))
}

/// Who has the preview, if somebody else has.
async fn taken(client: &Client, wish: &Destroy) -> Result<Option<String>, Fault> {
    let Some(whose) = &wish.whose else { return Ok(None) };
    let read = ["state.json", TICKET].map(|name| format!("{}/{}/{name}", wish.target.app, wish.target.name)).to_vec();
    let survey = client.host.survey(&client.base_dir, &Query { read, files_only: true, ..Query::default() }).await?;
    let text = |name: &str| survey.files.get(&wish.target.file(&client.base_dir, name)).map(String::as_str);
    if let Some(state) = text("state.json").and_then(|text| State::parse("state.json", text).ok()) {
        return Ok(whose.other(&state));
    }
    // Who only waits for a place has no state yet.
    let ticket = queue::tickets(text(TICKET).unwrap_or_default()).into_iter().next();
    Ok(ticket.filter(|ticket| ticket.subject != whose.subject).map(|ticket| ticket.subject.to_string()))
}

fn refusal(kept: Kept, target: &Target) -> Error {
    match kept {
        Kept::Taken(by) => Refusal::NameTaken { name: target.name.clone(), by }.into(),
        Kept::Superseded(by) => Refusal::Superseded { name: target.name.clone(), by }.into(),
        Kept::Changed => Error::NotFound(format!("{} is not what it was", target.name)),
    }
}

/// Takes the preview's lock. Whoever has it is asked to stop; the second value is what was written for that, to be removed at the end.
async fn claim(
    client: &Client,
    wish: &Destroy,
    observer: &dyn Observer,
    interrupt: &Interrupt,
) -> Result<(Box<dyn Lease>, Option<String>, bool), Error> {
    let target = &wish.target;
    let (path, why) = (target.file(&client.base_dir, ".lock"), format!("destroy of {}", target.name));
    let busy = Notify::new();
    let asked = AtomicBool::new(false);
    let contended = AtomicBool::new(false);
    let tell = || {
        contended.store(true, Ordering::Relaxed);
        // Who does not wait asks for nothing.
        if !wish.wait.is_zero() {
            asked.store(true, Ordering::Relaxed);
            busy.notify_one();
        }
    };
    let mut lock =
        std::pin::pin!(acquire(&*client.lock, &path, &wish.who, &why, wish.wait, observer, interrupt, &tell));
    // For an event it is said in any case, for those who come later. A wish concerns only who is at work now.
    let mut ask = std::pin::pin!(async {
        if wish.event_at.is_none() {
            busy.notified().await;
            if let Some(by) = taken(client, wish).await? {
                return Err(refusal(Kept::Taken(by), target));
            }
        }
        Ok(bury(client, target, &wish.who, wish.event_at).await?)
    });
    let mut said = None;
    let lease = loop {
        tokio::select! {
            lease = &mut lock => break lease,
            file = &mut ask, if said.is_none() => said = Some(file?),
        }
    };
    let pending = wish.event_at.is_some() || asked.load(Ordering::Relaxed);
    if said.is_none() && pending {
        said = Some(ask.await?);
    }
    let taken_back = said.filter(|_| wish.event_at.is_none());
    match lease {
        Ok(lease) => Ok((lease, taken_back, contended.load(Ordering::Relaxed))),
        Err(error) => {
            if let Some(file) = taken_back {
                // What is left of a wish counts for nobody who begins later.
                let _ = client.host.apply(&unbury(client, target, &file)).await;
            }
            Err(error)
        }
    }
}

/// [`destroy`], of a preview that is meant when its lock is held; nothing is changed if it is not.
pub(super) async fn destroy_if(
    client: &Client,
    wish: &Destroy,
    observer: &dyn Observer,
    interrupt: &Interrupt,
    only_if: Option<Condition<'_>>,
) -> Result<Result<Destroyed, Kept>, Error> {
    let begun = Instant::now();
    let target = &wish.target;
    observer.event(&Event::Stage(Phase::Destroying));
    let selector = client.objects_of(target);
    // A look at the engine while the lock is asked for: what it finds is ours whatever happens meanwhile, and goes first. That
    // it may be old by then, or fail, does no harm: under the lock the engine is asked again.
    let mut look =
        std::pin::pin!(async { futures_util::join!(client.engine.containers(&selector), taken(client, wish)) });
    let mut lock = std::pin::pin!(claim(client, wish, observer, interrupt));
    let (claimed, seen) = tokio::select! {
        seen = &mut look => (lock.await, Some(seen)),
        // An engine that hangs is found out about under the lease, with its limits.
        lease = &mut lock => (lease, tokio::time::timeout(LOOK, look).await.ok()),
    };
    let (seen, other) = seen.map_or((None, None), |(seen, other)| (seen.ok(), other.ok()));
    let seen = seen.unwrap_or_default();
    let story = Story::new(wish, begun);
    let (lease, asked, contended) = match claimed {
        Ok(claimed) => claimed,
        Err(error) => {
            if matches!(error, Error::Locked { .. }) {
                note(client, story.failed(&error)).await;
            }
            return Err(error);
        }
    };
    let own = format!("{}/{}", target.app, target.name);
    let query = Query {
        read: vec![format!("{own}/state.json")],
        list: vec![format!("{own}/*"), format!("{own}/.env"), format!("*/*/{TICKET}"), FREED.to_owned()],
        ..Query::default()
    };
    let work = async {
        // For those who look at the preview meanwhile. A run that dies here need not have come so far: a deploy finds that
        // containers are missing, and a destroy removes the rest, whatever the state says.
        let mark = async {
            let survey = client.host.survey(&client.base_dir, &query).await?;
            let path = target.file(&client.base_dir, "state.json");
            let text = survey.files.get(&path);
            let state = text.and_then(|text| State::parse(&path, text).ok());
            let record = match (&state, text) {
                (Some(state), _) => Record::State(state),
                (None, Some(_)) => Record::Damaged,
                (None, None) => Record::Absent,
            };
            if let (Some(whose), Record::State(state)) = (&wish.whose, record)
                && let Some(by) = whose.other(state)
            {
                return Ok(Err(Kept::Taken(by)));
            }
            if let Some(Err(kept)) = only_if.map(|only_if| only_if(record)) {
                return Ok(Err(kept));
            }
            if let Some(state) = &state {
                story.learn(state);
                let content = Secret::new(State { phase: Phase::Destroying, ..state.clone() }.to_json());
                match client.host.apply(&[Change::Write { path, content, mode: 0o600 }]).await {
                    // On a full disk a removal is what helps, and needs no mark.
                    Err(fault) if fault.kind == FaultKind::NoSpace => {}
                    marked => marked?,
                }
            }
            Ok(Ok((survey, state)))
        };
        let remove = client.engine.remove(&selector, &seen);
        // Whose it is was looked at beside asking for the lock; if somebody else had that meanwhile, it may have changed.
        let certain = wish.whose.is_none() || (matches!(other, Some(None)) && !contended);
        let names = async |marked: &Result<(_, Option<State>), Kept>| match marked {
            Ok((_, Some(state))) => records::remove(client, target, &state.records, observer).await,
            // Nobody remembers them; their marks tell.
            Ok((_, None)) => {
                let hosts = records::by_mark(client, target, observer).await?;
                records::remove(client, target, &hosts, observer).await
            }
            Err(_) => Ok(records::Gone::default()),
        };
        let mark = async {
            let marked = mark.await?;
            // What cannot be removed there keeps nothing else.
            let records = names(&marked).await;
            Ok((marked, records))
        };
        let ((marked, records), mut removed) = if only_if.is_none() && certain {
            futures_util::try_join!(mark, remove)?
        } else {
            match mark.await? {
                (Err(kept), _) => return Ok((Err(kept), false)),
                marked => (marked, remove.await?),
            }
        };
        let (survey, state) = match marked {
            Ok(marked) => marked,
            Err(kept) => return Ok((Err(kept), false)),
        };
        // Beside what it is for, a proxy that cannot be told keeps nobody from removing: what it leads to is gone.
        if let Err(fault) = leading::mislead(client, &target.project).await {
            if fault.kind == FaultKind::Unreachable {
                return Err(fault);
            }
            observer.event(&Event::Warning(&format!("{}; the next sweep tries again", fault.chain())));
        }
        if state.as_ref().is_some_and(|state| state.phase.in_flight()) {
            // The engine may still be at work for the run that died; otherwise one look is enough.
            removed += remove_all(&*client.engine, &selector).await?;
        }
        // Without this, the state stays, which knows of them.
        let records::Gone { count: records, left: records_left } = records?;
        let records_left = records_left.into_iter().collect();
        let (own, others): (Vec<&String>, Vec<&String>) =
            survey.paths.iter().partition(|path| path.starts_with(&target.directory(&client.base_dir)));
        let mut last = contents(target, &client.base_dir, own.iter().copied());
        last.extend(leading::hide(&client.base_dir, state.as_ref().map_or(&[], |state| &state.addresses)));
        // Only where somebody waits, or ever waited: else nothing of a preview that is gone stays.
        if others.iter().any(|path| path.ends_with(TICKET) || path.ends_with(FREED)) {
            last.push(freed(&client.base_dir)?);
        }
        last.extend(asked.iter().flat_map(|file| unbury(client, target, file)));
        let files = own.iter().filter(|path| !path.ends_with("/.lock")).count();
        let existed = removed != Removed::default() || files > 0 || records > 0;
        last.extend(story.ending(existed, &client.base_dir));
        let gone = lease.conclude(&*client.host, &last, &directories(client, target)).await?;
        Ok((Ok(Destroyed { name: target.name.clone(), existed, removed, files, records, records_left }), gone))
    };
    let work = work.instrument(info_span!("stage", phase = %Phase::Destroying));
    let done = guarded(&*lease, interrupt, LIMIT, work).await;
    // The lock is not ours any more, so it is not ours to remove.
    let over = matches!(done, Err(Halt::LeaseLost(_)) | Ok((_, true)));
    let done = done.map(|(done, _)| done).map_err(|halt| -> Error {
        match halt {
            Halt::Fault(fault) | Halt::LeaseLost(fault) => fault.into(),
            Halt::TimedOut(limit) => Fault::new(
                FaultKind::TimedOut,
                "remove the preview",
                format!("it took longer than {} s; run the same command again", limit.as_secs()),
            )
            .into(),
            Halt::Aborted | Halt::Superseded(_) => {
                interrupted("remove the preview", "interrupted; run the same command again").into()
            }
        }
    });
    if over {
        drop(lease);
    } else {
        let entry = match &done {
            Ok(Ok(_)) => None,
            Ok(Err(kept)) => story.failed(&refusal(kept.clone(), target)),
            Err(error) => story.failed(error).filter(|_| lease.check().is_ok()),
        };
        let (released, ()) = futures_util::join!(release(client, target, lease, true), note(client, entry));
        released?;
    }
    let done = done?;
    observer.event(&Event::StageDone(Phase::Destroying, begun.elapsed()));
    Ok(done)
}
