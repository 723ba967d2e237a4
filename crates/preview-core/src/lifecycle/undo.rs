//! The way back: to the last good version, or to nothing. It has its own limit of time, and is not interrupted.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::error::Restored;
use super::leading;
use super::records;
use super::run::{Halt, guarded};
use super::tree;
use super::up::up;
use super::wait::{self, Expected, Restarts, Verdict};
use super::{Client, Event, Interrupt, Observer};
use crate::engine::{Engine, Removed};
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};
use crate::host::Change;
use crate::lock::Lease;
use crate::ownership::Selector;
use crate::plan;
use crate::project::{Target, Timeouts};
use crate::proxy::Bundle;
use crate::runtime::{Stack, Variables};
use crate::secret::{Redactor, Secret};
use crate::stack;
use crate::state::{Failure, Good, Phase, State};

/// The version before is brought up at most so often.
const ATTEMPTS: u32 = 3;
/// A container that was asked to stop is killed after 10 seconds, where its file does not say otherwise.
const LATE: Duration = Duration::from_secs(11);

/// What is needed to go back.
pub(super) struct Undo<'a> {
    pub(super) client: &'a Client,
    pub(super) timeouts: &'a Timeouts,
    pub(super) target: &'a Target,
    pub(super) lease: &'a dyn Lease,
    pub(super) observer: &'a dyn Observer,
    pub(super) redactor: &'a Redactor,
    /// The rendered stack of the last good version, and what is remembered of it.
    pub(super) good: Option<(&'a str, &'a Good)>,
    /// What a proxy that is told by files was told of that version.
    pub(super) routes: Option<Bundle>,
    pub(super) state: &'a State,
    pub(super) end: Phase,
    pub(super) failure: Failure,
    /// Uploaded files and rendered stacks on the host, those of the failed version too.
    pub(super) files: Vec<String>,
    /// What secrets and configs of the stack may name by `environment:`.
    pub(super) variables: &'a Variables,
    /// Whether the host keeps status pages.
    pub(super) pages: bool,
}

/// Goes back.
pub(super) async fn undo(undo: &Undo<'_>) -> Restored {
    let limits = undo.timeouts;
    let model = undo.good.and_then(|(text, _)| serde_json::from_str::<Value>(text).ok());
    let patience = model.as_ref().map(stack::patience).unwrap_or_default();
    let (start, verify) = (limits.start_within(patience.before), limits.verify_within(patience.one));
    let limit = start.saturating_add(verify).saturating_add(Duration::from_secs(60));
    // A second Ctrl-C ends the program; the first one led here.
    let never = Interrupt::default();
    let work = async {
        match undo.good {
            Some((text, good)) => restore(undo, text, good).await,
            None => clear(undo).await,
        }
    };
    match guarded(undo.lease, &never, limit, work).await {
        Ok(restored) => restored,
        Err(halt) => {
            let why = match halt {
                Halt::Fault(fault) | Halt::LeaseLost(fault) => undo.redactor.clean(&fault.chain()),
                Halt::TimedOut(limit) => format!("the way back took longer than {} s", limit.as_secs()),
                Halt::Aborted | Halt::Superseded(_) => "interrupted".to_owned(),
            };
            Restored::NotYet(format!("{why}; the next deploy or destroy of this preview mends it"))
        }
    }
}

/// Removes everything but the lock, which is held.
async fn clear(undo: &Undo<'_>) -> Result<Restored, Fault> {
    let selector = undo.client.objects_of(undo.target);
    remove_all(&*undo.client.engine, &selector).await?;
    // A proxy that cannot be told, maybe the very reason for all this, keeps nobody from removing the rest.
    match leading::mislead(undo.client, &undo.target.project).await {
        Err(fault) if fault.kind == FaultKind::Unreachable => return Err(fault),
        Err(fault) => {
            let text = format!("{}; the next sweep tries again", undo.redactor.clean(&fault.chain()));
            undo.observer.event(&Event::Warning(&text));
        }
        Ok(()) => {}
    }
    // Before the state goes, which knows of them.
    records::remove(undo.client, undo.target, &undo.state.records, undo.observer).await?;
    let mut last = contents(undo.target, &undo.client.base_dir, &undo.files);
    if undo.pages {
        // Who has the address learns that it failed; for a while, until the next deploy or sweep.
        let failed = State { phase: undo.end, failure: Some(undo.failure.clone()), ..undo.state.clone() };
        last.extend(leading::show(&undo.client.base_dir, &failed));
    }
    last.push(super::place::freed(&undo.client.base_dir)?);
    undo.client.host.apply(&last).await?;
    Ok(Restored::Removed)
}

/// Removes until nothing is found: what the engine was still at work on when its client was ended comes up afterwards.
pub(super) async fn remove_all(engine: &dyn Engine, selector: &Selector) -> Result<Removed, Fault> {
    let mut all = Removed::default();
    for _ in 0..5 {
        let removed = engine.remove(selector, &[]).await?;
        if removed == Removed::default() {
            break;
        }
        all += removed;
    }
    Ok(all)
}

/// The removal of all files of a preview but its lock; `others` were found there. The state goes last: it says that there is something.
pub(super) fn contents<'a>(target: &Target, base: &str, others: impl IntoIterator<Item = &'a String>) -> Vec<Change> {
    let known = [".env"].map(|name| target.file(base, name));
    let last = [target.file(base, "state.json")];
    let all = known.into_iter().chain(others.into_iter().cloned()).chain(last);
    all.filter(|path| !path.ends_with("/.lock")).map(|path| Change::Remove { path }).collect()
}

/// The routes of the version before. The failed one may have got so far that the proxy knows its own.
async fn lead_back(undo: &Undo<'_>) -> Result<(), Fault> {
    let Some(bundle) = &undo.routes else { return Ok(()) };
    match leading::lead(undo.client, &undo.target.project, bundle).await {
        Err(fault) if fault.kind == FaultKind::Unreachable => Err(fault),
        // It may be the very reason for all this, and then it has not been told of anything else.
        Err(fault) => {
            let text = format!("{}; the next deploy tells it again", undo.redactor.clean(&fault.chain()));
            undo.observer.event(&Event::Warning(&text));
            Ok(())
        }
        led => led,
    }
}

async fn restore(undo: &Undo<'_>, text: &str, good: &Good) -> Result<Restored, Fault> {
    // First: who may come in is not to depend on how the containers do.
    lead_back(undo).await?;
    let mut model: Value = serde_json::from_str(text).map_err(|error| {
        Fault::new(crate::fault::FaultKind::Invalid, "read the last good stack", "its file is damaged").caused_by(error)
    })?;
    let again = tree::is_between(undo.state) && tree::roll_back(undo.client, undo.target, Some(&model), good).await?;
    let engine = &*undo.client.engine;
    let selector = undo.client.objects_of(undo.target);
    let names: BTreeSet<String> = good.images.keys().cloned().collect();
    let today = engine.image_ids(&names).await?;
    let token = undo.state.image_token.as_deref();
    let own_images = token.map(|token| stack::image_prefix(&undo.target.project, token));
    for (name, id) in &good.images {
        if today.get(name) == Some(id) {
            continue;
        }
        if own_images.as_ref().is_some_and(|own| name.starts_with(own)) {
            // The name is the preview's own, so it may be given back.
            engine.tag(id, name).await?;
        } else {
            // Others use the name too: the preview names the image by its id instead.
            use_image(&mut model, name, id);
        }
    }
    let open = good.addresses.iter().filter(|address| address.published().is_none());
    let routed = open.map(|address| address.service.clone()).collect();
    let expected = Expected::of(&model).routed(&routed);
    let mut restarts = Restarts::since(Some(good));
    let (verdict, containers) = wait::look(engine, &selector, &expected, &mut restarts).await?;
    let untouched =
        plan::container_ids(&containers) == good.containers && matches!(verdict, Verdict::Well | Verdict::Settling(..));
    let stack = Stack {
        project: undo.target.project.clone(),
        rendered: Secret::new(model.to_string()),
        variables: undo.variables.clone(),
    };
    let progress = |line: &str| undo.observer.event(&Event::Progress(&undo.redactor.clean(line)));
    let mut containers = containers;
    let mut due = again || !untouched;
    // The engine ends what it was asked for by a client that was cut off: a container that still runs may be on its way out.
    let cut_off = undo.failure.phase == Phase::Starting
        && match undo.failure.code {
            // When it died is not known; but the stage would have been over by then.
            Some(FailureCode::Crashed) => {
                let ago = Duration::try_from(undo.failure.at.duration_since(undo.state.updated_at)).unwrap_or_default();
                ago < undo.timeouts.start + LATE
            }
            _ => undo.end != Phase::Failed,
        };
    for attempt in 1..=ATTEMPTS {
        if due {
            let events = engine.watch(&selector).await?;
            up(undo.client, &selector, &containers, &stack, &progress).await?;
            let (verdict, found) = wait::wait(engine, &selector, &expected, &mut restarts, events, &mut |_| {}).await?;
            containers = found;
            if let Verdict::Broken(problems) = verdict {
                if attempt < ATTEMPTS {
                    continue;
                }
                let text: Vec<_> = problems.iter().map(|(service, why)| format!("{service} {why}")).collect();
                let why = format!("the version before was started again, but {}", text.join("; "));
                record(undo, good, &containers, &model).await?;
                return Ok(Restored::NotYet(why));
            }
        }
        record(undo, good, &containers, &model).await?;
        if !cut_off || attempt == ATTEMPTS {
            break;
        }
        tokio::time::sleep(LATE).await;
        let (verdict, found) = wait::look(engine, &selector, &expected, &mut restarts).await?;
        if matches!(verdict, Verdict::Well | Verdict::Settling(..)) {
            break;
        }
        (containers, due) = (found, true);
    }
    Ok(Restored::Previous)
}

/// Writes down that the version before runs, and why the new one does not.
async fn record(
    undo: &Undo<'_>,
    good: &Good,
    containers: &[crate::engine::Container],
    model: &Value,
) -> Result<(), Fault> {
    let rendered = model.to_string();
    let mut state = undo.state.clone();
    state.phase = undo.end;
    state.updated_at = Timestamp::now();
    state.failure = Some(undo.failure.clone());
    // The run that died may have asked for more.
    state.weight = good.weight.unwrap_or(state.weight);
    state.memory = stack::declared_memory(model);
    // The hosts that only the failed version had. What does not go now is remembered.
    let more: BTreeSet<String> = state.records.difference(&good.records).cloned().collect();
    if !more.is_empty() && undo.client.dns.is_some() {
        match records::remove(undo.client, undo.target, &more, undo.observer).await {
            Ok(gone) => state.records = good.records.union(&gone.left).cloned().collect(),
            Err(fault) => undo.observer.event(&Event::Warning(&undo.redactor.clean(&fault.chain()))),
        }
    }
    let failed = std::mem::take(&mut state.addresses);
    state.addresses = if good.addresses.is_empty() { failed.clone() } else { good.addresses.clone() };
    let mut good = good.clone();
    state.tree.clone_from(&good.tree);
    good.containers = plan::container_ids(containers);
    good.stack = plan::stack_file(&rendered);
    let base = &undo.client.base_dir;
    let path = undo.target.file(base, &good.stack);
    let kept = good.tree.iter().cloned().chain(good.routes.clone());
    let kept: Vec<String> = kept.map(|name| undo.target.file(base, &name)).chain([path.clone()]).collect();
    state.good = Some(good);
    let write = |path, content| Change::Write { path, content: Secret::new(content), mode: 0o600 };
    let mut changes =
        vec![write(path, rendered.into_bytes()), write(undo.target.file(base, "state.json"), state.to_json())];
    let stale = undo.files.iter().filter(|path| !kept.contains(path));
    changes.extend(stale.map(|path| Change::Remove { path: path.clone() }));
    if undo.pages {
        let up = State { phase: Phase::Ready, ..state.clone() };
        let gone: Vec<_> =
            failed.into_iter().filter(|one| !up.addresses.iter().any(|other| other.url == one.url)).collect();
        changes.extend(leading::hide(base, &gone));
        changes.extend(leading::show(base, &up));
    }
    undo.client.host.apply(&changes).await
}

fn use_image(model: &mut Value, name: &str, id: &str) {
    for (_, service) in model.get_mut("services").and_then(Value::as_object_mut).into_iter().flatten() {
        if service.get("image").and_then(Value::as_str) == Some(name) {
            service["image"] = Value::String(id.to_owned());
        }
    }
}
