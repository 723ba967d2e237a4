//! What there is: all previews of a host, one preview in detail.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde::Serialize;

use super::{Client, Error, Event, Observer};
use crate::engine::{Container, ContainerState, Health};
use crate::fault::FaultKind;
use crate::forge::{Forge, PullState};
use crate::history::{self, Entry};
use crate::host::{Query, Survey};
use crate::lock::Holder;
use crate::ownership::{self, Selector};
use crate::plan::condition;
use crate::project::Target;
use crate::queue::{self, TICKET};
use crate::state::{Address, Failure, Phase, State, Subject};

/// So many questions to a forge are on their way at once.
const AT_ONCE: usize = 4;

/// One preview in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The application.
    pub app: String,
    /// The preview.
    pub name: String,
    /// `ready`, …; `orphaned` if there is no state for what runs; `damaged` if its state file cannot be read.
    pub phase: String,
    /// What it is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Who asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The first public address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When it last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
    /// When a sweep may remove it; without, never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Never expires, and never makes room for another.
    pub pinned: bool,
    /// Since when it waits for a place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_since: Option<Timestamp>,
    /// Containers that run and are not unhealthy.
    pub running: usize,
    /// All containers.
    pub containers: usize,
}

/// All previews of a host, of one application or of all, by application and name. Two requests, however many previews.
pub async fn list(client: &Client, app: Option<&str>) -> Result<Vec<Listed>, Error> {
    let of = app.unwrap_or("*");
    let query = Query {
        read: vec![format!("{of}/*/state.json")],
        joined: vec![format!("{of}/*/{TICKET}")],
        ..Query::default()
    };
    let selector = app.map_or(Selector::Managed, |app| Selector::App(app.to_owned()));
    let (survey, containers) =
        futures_util::try_join!(client.host.survey(&client.base_dir, &query), client.engine.containers(&selector))?;
    Ok(join(&client.base_dir, &survey, &containers))
}

/// What of an application's previews on the host are of something that is still there, as the forge says: pull requests that are open, branches that
/// exist. Only previews that are known to be of the repository are asked about; those of which that is not known count as there.
///
/// # Errors
/// When the host or the forge does not say: then nothing is known of any.
pub async fn still_there(
    client: &Client,
    forge: &dyn Forge,
    app: &str,
    repository: &str,
    observer: &dyn Observer,
) -> Result<(BTreeSet<u64>, BTreeSet<String>), Error> {
    let query = Query { read: vec![format!("{app}/*/state.json")], files_only: true, ..Query::default() };
    let survey = client.host.survey(&client.base_dir, &query).await?;
    let states = survey.files.iter().filter_map(|(path, text)| State::parse(path, text).ok());
    let (known, unknown): (Vec<State>, Vec<State>) =
        states.filter(|state| state.app == app).partition(|state| state.repository.is_some());
    let known = known.into_iter().filter(|state| state.repository.as_deref() == Some(repository));
    let subjects: Vec<Subject> = known.map(|state| state.subject).collect();
    let asked = futures_util::stream::iter(subjects).map(|subject| async move {
        let there = match &subject {
            Subject::Pull(number) => match forge.pull_state(repository, *number).await {
                Ok(state) => state == PullState::Open,
                Err(fault) if fault.kind == FaultKind::NotFound => {
                    let text = format!("{}: its preview stays, `preview destroy` removes it", fault.chain());
                    observer.event(&Event::Warning(&text));
                    true
                }
                Err(fault) => return Err(fault),
            },
            Subject::Branch(branch) => forge.branch_exists(repository, branch).await?,
        };
        Ok((subject, there))
    });
    let asked: Vec<(Subject, bool)> = asked.buffer_unordered(AT_ONCE).try_collect().await?;
    let (mut pulls, mut branches) = (BTreeSet::new(), BTreeSet::new());
    let there = asked.into_iter().filter(|(_, there)| *there).map(|(subject, _)| subject);
    for subject in there.chain(unknown.into_iter().map(|state| state.subject)) {
        match subject {
            Subject::Pull(number) => drop(pulls.insert(number)),
            Subject::Branch(branch) => drop(branches.insert(branch)),
        }
    }
    Ok((pulls, branches))
}

/// The last runs that ended on a host, the last first: of one application and of the whole host, or of all.
pub async fn history(client: &Client, app: Option<&str>, number: usize) -> Result<Vec<Entry>, Error> {
    let query = Query { read: vec![history::FILE.to_owned()], files_only: true, ..Query::default() };
    let survey = client.host.survey(&client.base_dir, &query).await?;
    let entries = survey.files.values().flat_map(|text| history::parse(text)).collect();
    Ok(history::last(entries, app, number))
}

/// Brings state files and containers together.
fn join(base: &str, survey: &Survey, containers: &[Container]) -> Vec<Listed> {
    let mut found: BTreeMap<(String, String), Listed> = BTreeMap::new();
    for (path, text) in survey.files.iter().filter(|(path, _)| path.ends_with("/state.json")) {
        let mut parts = path.strip_prefix(base).unwrap_or(path).trim_start_matches('/').split('/');
        let (Some(app), Some(name)) = (parts.next(), parts.next()) else { continue };
        let mut listed = empty(app, name, "damaged");
        if let Ok(state) = State::parse(path, text) {
            listed.expires_at = state.expiry();
            listed.pinned = state.pinned;
            listed.phase = state.phase.to_string();
            listed.subject = Some(state.subject.to_string());
            listed.owner = state.owner;
            listed.commit = state.commit;
            listed.url = Address::first(&state.addresses);
            listed.created_at = Some(state.created_at);
            listed.updated_at = Some(state.updated_at);
        }
        found.insert((app.to_owned(), name.to_owned()), listed);
    }
    for ticket in queue::tickets(&survey.joined) {
        let listed = found
            .entry((ticket.app.clone(), ticket.name.clone()))
            .or_insert_with(|| empty(&ticket.app, &ticket.name, Phase::Queued.as_str()));
        listed.subject.get_or_insert_with(|| ticket.subject.to_string());
        listed.owner = listed.owner.take().or(ticket.owner);
        listed.queued_since = Some(ticket.since);
    }
    for container in containers {
        let (Some(app), Some(name)) = (container.labels.get(ownership::APP), container.labels.get(ownership::NAME))
        else {
            continue;
        };
        // Another directory's previews on the same engine are not ours to list.
        if container.labels.get(ownership::BASE).is_some_and(|of| of != base) {
            continue;
        }
        let listed = found.entry((app.clone(), name.clone())).or_insert_with(|| empty(app, name, "orphaned"));
        listed.containers += 1;
        if container.state == ContainerState::Running && container.health != Health::Unhealthy {
            listed.running += 1;
        }
    }
    found.into_values().collect()
}

fn empty(app: &str, name: &str, phase: &str) -> Listed {
    Listed {
        app: app.to_owned(),
        name: name.to_owned(),
        phase: phase.to_owned(),
        subject: None,
        owner: None,
        commit: None,
        url: None,
        created_at: None,
        updated_at: None,
        expires_at: None,
        pinned: false,
        queued_since: None,
        running: 0,
        containers: 0,
    }
}

/// One service in a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceStatus {
    /// Service.
    pub service: String,
    /// Container name.
    pub container: String,
    /// Its id.
    pub id: String,
    /// State and health in words.
    pub state: String,
    /// The image as it was named.
    pub image: String,
    /// Memory in use, bytes, if it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// The limit of memory, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
}

/// A place in the queue for places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Queued {
    /// The first is 1.
    pub position: usize,
    /// Since when it waits.
    pub since: Timestamp,
}

/// One preview in detail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The preview's name.
    pub name: String,
    /// The application.
    pub app: String,
    /// Where it is; `None` if there is no state for what runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// A run began and died: its phase is in flight, and nobody holds the lock.
    pub crashed: bool,
    /// Its run waits for a place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<Queued>,
    /// What it is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Who asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The commit that the last run brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Public addresses.
    pub addresses: Vec<Address>,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When it last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
    /// When a sweep may remove it; without, never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Never expires, and never makes room for another.
    pub pinned: bool,
    /// Why the last run failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Who is at work on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_by: Option<Holder>,
    /// Its containers.
    pub services: Vec<ServiceStatus>,
}

/// One preview in detail; `NotFound` if there is nothing of it.
pub async fn status(client: &Client, target: &Target) -> Result<Status, Error> {
    let state_path = target.file(&client.base_dir, "state.json");
    let query = Query {
        read: vec![format!("{}/{}/state.json", target.app, target.name)],
        joined: vec![queue::pattern()],
        ..Query::default()
    };
    let selector = client.objects_of(target);
    let lock_path = target.file(&client.base_dir, ".lock");
    let (survey, containers, locked_by) = futures_util::try_join!(
        client.host.survey(&client.base_dir, &query),
        client.engine.containers(&selector),
        client.lock.holder(&lock_path),
    )?;
    let state = survey.files.get(&state_path).and_then(|text| State::parse(&state_path, text).ok());
    let tickets = queue::tickets(&survey.joined);
    // A ticket of a run that died counts for nothing.
    let queued = tickets
        .iter()
        .position(|ticket| ticket.app == target.app && ticket.name == target.name)
        .filter(|_| locked_by.is_some())
        .map(|place| (&tickets[place], Queued { position: place + 1, since: tickets[place].since }));
    if state.is_none() && containers.is_empty() && queued.is_none() {
        return Err(missing(target));
    }
    let waiting = queued.as_ref().map(|(ticket, _)| *ticket);
    let stats = futures_util::future::join_all(containers.iter().map(|container| async {
        if container.state == ContainerState::Running { client.engine.stats(&container.id).await.ok() } else { None }
    }))
    .await;
    // Other pull requests must not learn by which name its images can be had.
    let token = state.as_ref().and_then(|state| state.image_token.clone());
    let shown = |image: &str| token.as_ref().map_or_else(|| image.to_owned(), |token| image.replace(token, "***"));
    let services = containers
        .iter()
        .zip(stats)
        .map(|(container, stats)| ServiceStatus {
            service: container.service().unwrap_or_default().to_owned(),
            container: container.name.clone(),
            id: container.id.clone(),
            state: condition(container),
            image: shown(&container.image),
            memory: stats.as_ref().map(|stats| stats.memory),
            memory_limit: stats.as_ref().map(|stats| stats.memory_limit).filter(|limit| *limit > 0),
        })
        .collect();
    let crashed = state.as_ref().is_some_and(|state| state.phase.in_flight()) && locked_by.is_none();
    Ok(Status {
        name: target.name.clone(),
        app: target.app.clone(),
        phase: state.as_ref().map(|state| state.phase).or_else(|| waiting.map(|_| Phase::Queued)),
        crashed,
        subject: state
            .as_ref()
            .map(|state| &state.subject)
            .or(waiting.map(|ticket| &ticket.subject))
            .map(Subject::to_string),
        owner: state
            .as_ref()
            .map_or_else(|| waiting.and_then(|ticket| ticket.owner.clone()), |state| state.owner.clone()),
        commit: state.as_ref().and_then(|state| state.commit.clone()),
        addresses: state.as_ref().map(|state| state.addresses.clone()).unwrap_or_default(),
        created_at: state.as_ref().map(|state| state.created_at),
        updated_at: state.as_ref().map(|state| state.updated_at),
        expires_at: state.as_ref().and_then(State::expiry),
        pinned: state.as_ref().is_some_and(|state| state.pinned),
        queued: queued.map(|(_, queued)| queued),
        failure: state.and_then(|state| state.failure),
        locked_by,
        services,
    })
}

pub(super) fn missing(target: &Target) -> Error {
    Error::NotFound(format!("there is no preview `{}` of `{}` on this host", target.name, target.app))
}

/// The containers whose logs are wanted: of one service, or all.
pub async fn log_containers(client: &Client, target: &Target, service: Option<&str>) -> Result<Vec<Container>, Error> {
    let all = client.engine.containers(&client.objects_of(target)).await?;
    if all.is_empty() {
        return Err(missing(target));
    }
    let Some(service) = service else { return Ok(all) };
    let names: BTreeSet<&str> = all.iter().filter_map(Container::service).collect();
    if !names.contains(service) {
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::NotFound(format!("`{}` has no service `{service}`; there are: {names}", target.name)));
    }
    Ok(all.iter().filter(|container| container.service() == Some(service)).cloned().collect())
}

/// The container of a service that a command would run in: the first that runs.
#[must_use]
pub fn pick_container<'a>(containers: &'a [Container], service: &str) -> Option<&'a Container> {
    containers
        .iter()
        .find(|container| container.service() == Some(service) && container.state == ContainerState::Running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_without_state_and_damaged_state_are_listed_as_such() {
        let files = BTreeMap::from([("/b/shop/pr-1/state.json".to_owned(), "{".to_owned())]);
        let container = Container {
            id: "c".into(),
            name: "c".into(),
            image: String::new(),
            image_id: String::new(),
            state: ContainerState::Running,
            health: Health::None,
            labels: Selector::preview("shop", "pr-2").labels(),
            created: 0,
            ports: vec![],
            networks: BTreeMap::new(),
            volumes: Default::default(),
        };
        let found = join("/b", &Survey { files, ..Survey::default() }, &[container]);
        let told: Vec<_> = found.iter().map(|l| (l.name.as_str(), l.phase.as_str(), l.running)).collect();
        assert_eq!(told, [("pr-1", "damaged", 0), ("pr-2", "orphaned", 1)]);
    }
}
