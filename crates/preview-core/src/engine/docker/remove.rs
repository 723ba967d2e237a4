//! Removal of everything that carries our labels, and of nothing else.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{NetworkDisconnectRequest, VolumeCreateRequest};
use bollard::query_parameters::{
    ListContainersOptions, RemoveContainerOptions, RemoveImageOptions, RemoveVolumeOptions, WaitContainerOptions,
};
use futures_util::stream::{self, StreamExt as _};

use super::{AT_ONCE, DockerEngine, errors};
use crate::engine::{Container, Engine as _, Object, Removed, is_anonymous};
use crate::fault::{Fault, FaultKind};
use crate::ownership::{self, Selector};
use sha2::{Digest as _, Sha256};

/// How long a container may take to disappear that someone else is already removing.
const GONE_LIMIT: Duration = Duration::from_secs(60);
/// How long the engine may hold on to a network or volume after its last container has gone: that of many containers at once takes an old engine a while.
const LINGER_LIMIT: Duration = Duration::from_secs(60);
/// Endpoints that are still there so long after their containers are cut off.
const CUT_AFTER: Duration = Duration::from_secs(2);

const CONTAINER: &str = "remove container";
const NETWORK: &str = "remove network";
const VOLUME: &str = "remove volume";
const IMAGE: &str = "remove image";

/// The label of a volume that is a note: names of volumes that nobody named, which are to go.
const ANONYMOUS: &str = "preview.anonymous";
/// How its name begins.
const NOTE: &str = "preview-anonymous-";

/// See [`Engine::remove`](crate::engine::Engine::remove).
pub(super) async fn remove(engine: &DockerEngine, selector: &Selector, seen: &[Container]) -> Result<Removed, Fault> {
    let seen = seen.iter().filter(|container| selector.matches(&container.labels)).cloned().collect::<Vec<_>>();
    let mut ours: HashSet<String> = seen.iter().map(|container| container.id.clone()).collect();
    let mut doomed = note_anonymous(engine, &seen).await?;
    // What only holds on to a volume is nobody's container or image, and does not count as one.
    let one = |container: Container| async move {
        let removed = remove_container(engine, &container.id, &container.name).await?;
        Ok(removed && !ownership::is_holder(&container.labels))
    };
    let (first, found) = tokio::join!(each(seen, one), engine.inventory(selector));
    // Networks and volumes cannot go while containers hold on to them, so a failure here ends the work.
    let (first, found) = (first?, found?);
    let rest: Vec<_> = found.containers.into_iter().filter(|container| ours.insert(container.id.clone())).collect();
    doomed.extend(note_anonymous(engine, &rest).await?);
    let containers = first + each(rest, one).await?;
    let (noted, volumes): (Vec<Object>, Vec<Object>) =
        found.volumes.into_iter().partition(|volume| is_note(&volume.name) && volume.labels.contains_key(ANONYMOUS));
    doomed.extend(noted.into_iter().map(|note| (note.name, note.labels.get(ANONYMOUS).cloned().unwrap_or_default())));
    let (networks, volumes, anonymous, images) = tokio::join!(
        each(found.networks, |network| remove_network(engine, network, &ours)),
        each(volumes, |volume| remove_volume(engine, volume)),
        remove_anonymous(engine, doomed),
        remove_images(engine, found.images),
    );
    Ok(Removed { containers, networks: networks?, volumes: volumes? + anonymous?, images: images? })
}

/// Writes down, where a removal looks that comes after one that died, which volumes without a name these containers mount: with the containers goes all that
/// is known of them. An engine keeps those that an update took over. The notes by their names.
pub(super) async fn note_anonymous(
    engine: &DockerEngine,
    containers: &[Container],
) -> Result<BTreeMap<String, String>, Fault> {
    let mut by_owner: BTreeMap<BTreeMap<String, String>, BTreeSet<String>> = BTreeMap::new();
    for container in containers.iter().filter(|container| container.anonymous_volumes().next().is_some()) {
        let own = [ownership::MANAGED, ownership::APP, ownership::NAME, ownership::BASE];
        let labels = own.iter().filter_map(|key| Some(((*key).to_owned(), container.labels.get(*key)?.clone())));
        by_owner.entry(labels.collect()).or_default().extend(container.anonymous_volumes().cloned());
    }
    let mut notes = BTreeMap::new();
    for (mut labels, volumes) in by_owner {
        let text = volumes.into_iter().collect::<Vec<_>>().join(",");
        let hash: String = Sha256::digest(&text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{NOTE}{hash}");
        labels.insert(ANONYMOUS.to_owned(), text.clone());
        let body = VolumeCreateRequest {
            name: Some(name.clone()),
            labels: Some(labels.into_iter().collect()),
            ..VolumeCreateRequest::default()
        };
        super::ask(VOLUME, &name, engine.docker.create_volume(body)).await?;
        notes.insert(name, text);
    }
    Ok(notes)
}

/// Whether a volume of this name can be a note. One of a preview has the name of its project, with an underscore.
fn is_note(name: &str) -> bool {
    name.strip_prefix(NOTE).is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes the volumes that these notes name, then the notes. How many of the volumes there were.
async fn remove_anonymous(engine: &DockerEngine, notes: BTreeMap<String, String>) -> Result<usize, Fault> {
    let mut removed = 0;
    for (name, volumes) in notes {
        let object = |name: &str| Object { id: name.to_owned(), name: name.to_owned(), labels: BTreeMap::new() };
        // Of others' volumes a note must not speak.
        let volumes: Vec<Object> = volumes.split(',').filter(|name| is_anonymous(name)).map(object).collect();
        let one = async |volume| match remove_volume(engine, volume).await {
            // Somebody else's container mounts it: then it is theirs now.
            Err(fault) if fault.kind == FaultKind::Conflict => Ok(false),
            done => done,
        };
        removed += each(volumes, one).await?;
        remove_volume(engine, object(&name)).await?;
    }
    Ok(removed)
}

/// Does the same to all, some at a time. All are tried, then the first failure counts. How many were removed.
async fn each<T, F>(items: Vec<T>, one: impl Fn(T) -> F) -> Result<usize, Fault>
where
    F: Future<Output = Result<bool, Fault>>,
{
    let results: Vec<_> = stream::iter(items.into_iter().map(one)).buffer_unordered(AT_ONCE).collect().await;
    results.into_iter().try_fold(0, |count, removed| Ok(count + usize::from(removed?)))
}

/// True if it was removed by us; false if it was gone, or someone else removed it.
pub(super) async fn remove_container(engine: &DockerEngine, id: &str, name: &str) -> Result<bool, Fault> {
    let options = RemoveContainerOptions { force: true, v: true, link: false };
    let answer = tokio::time::timeout(super::transport::LIMIT, engine.docker.remove_container(id, Some(options)))
        .await
        .unwrap_or(Err(Error::RequestTimeoutError));
    match answer {
        Ok(()) => Ok(true),
        Err(error) => match status(&error) {
            Some(404) => Ok(false),
            // `removal of container … is already in progress`
            Some(409) => gone(engine, id, name).await.map(|()| false),
            _ => Err(errors::fault(CONTAINER, name, error)),
        },
    }
}

async fn gone(engine: &DockerEngine, id: &str, name: &str) -> Result<(), Fault> {
    let options = WaitContainerOptions { condition: "removed".to_owned() };
    let mut waiting = std::pin::pin!(engine.docker.wait_container(id, Some(options)));
    match tokio::time::timeout(GONE_LIMIT, waiting.next()).await {
        Err(_) => Err(errors::timed_out(CONTAINER, name)),
        // Gone with its exit code, which bollard makes an error, or gone before we asked.
        Ok(None | Some(Ok(_) | Err(Error::DockerContainerWaitError { .. }))) => Ok(()),
        Ok(Some(Err(error))) if status(&error) == Some(404) => Ok(()),
        Ok(Some(Err(error))) => Err(errors::fault(CONTAINER, name, error)),
    }
}

async fn remove_network(engine: &DockerEngine, network: Object, ours: &HashSet<String>) -> Result<bool, Fault> {
    let mut pause = Pause::default();
    loop {
        let Err(error) = engine.docker.remove_network(&network.id).await else { return Ok(true) };
        match status(&error) {
            Some(404) => return Ok(false),
            // `… has active endpoints` comes with 403, and with 409 from newer engines.
            Some(403 | 409) => {}
            _ => return Err(errors::fault(NETWORK, &network.name, error)),
        }
        let holders = match engine.docker.inspect_network(&network.id, None).await {
            Ok(seen) => seen.containers.unwrap_or_default(),
            Err(error) if status(&error) == Some(404) => return Ok(false),
            Err(error) => return Err(errors::fault(NETWORK, &network.name, error)),
        };
        // Endpoints of the containers that were removed just now, and those that have lost their container
        // (`ep-…`), go by themselves.
        let (stale, held_by): (Vec<_>, Vec<_>) =
            holders.into_iter().partition(|(id, _)| id.starts_with("ep-") || ours.contains(id));
        let mut names: Vec<_> = held_by.into_iter().filter_map(|(_, endpoint)| endpoint.name).collect();
        names.sort();
        if !names.is_empty() {
            return Err(held(NETWORK, &network.name, &names));
        }
        if pause.waited >= CUT_AFTER {
            // The name of an endpoint does where its container is gone.
            for name in stale.into_iter().filter_map(|(_, endpoint)| endpoint.name) {
                let request = NetworkDisconnectRequest { container: name, force: Some(true) };
                let cut = engine.docker.disconnect_network(&network.id, request);
                let _ = tokio::time::timeout(super::transport::LIMIT, cut).await;
            }
        }
        if !pause.wait().await {
            let mut fault = errors::fault(NETWORK, &network.name, error);
            fault.context.push_str("; none of them has a container any more: destroy it again, and if that does not help, restart the engine");
            return Err(fault);
        }
    }
}

async fn remove_volume(engine: &DockerEngine, volume: Object) -> Result<bool, Fault> {
    let mut pause = Pause::default();
    loop {
        // Without force: with it, engines up to 28 report success for a volume that is not there.
        let Err(error) = engine.docker.remove_volume(&volume.id, None::<RemoveVolumeOptions>).await else {
            return Ok(true);
        };
        match status(&error) {
            Some(404) => return Ok(false),
            Some(409) => {}
            _ => return Err(errors::fault(VOLUME, &volume.name, error)),
        }
        let filters = super::filters([("volume", vec![volume.id.clone()])]);
        let options = ListContainersOptions { all: true, filters, ..Default::default() };
        let holders = engine.list(VOLUME, options).await?;
        if !holders.is_empty() {
            let names: Vec<_> = holders.into_iter().map(|container| container.name).collect();
            return Err(held(VOLUME, &volume.name, &names));
        }
        if !pause.wait().await {
            return Err(errors::fault(VOLUME, &volume.name, error));
        }
    }
}

async fn remove_images(engine: &DockerEngine, images: Vec<Object>) -> Result<usize, Fault> {
    if images.is_empty() {
        return Ok(0);
    }
    // Force removes all names of an image, but also an image that a stopped container was made from.
    let options = ListContainersOptions { all: true, ..Default::default() };
    let used: HashSet<String> =
        engine.list(IMAGE, options).await?.into_iter().map(|container| container.image_id).collect();
    let unused = images.into_iter().filter(|image| !used.contains(&image.id)).collect();
    each(unused, |image| remove_image(engine, image)).await
}

async fn remove_image(engine: &DockerEngine, image: Object) -> Result<bool, Fault> {
    let options = RemoveImageOptions { force: true, ..Default::default() };
    let answer =
        tokio::time::timeout(super::transport::LIMIT, engine.docker.remove_image(&image.id, Some(options), None))
            .await
            .unwrap_or(Err(Error::RequestTimeoutError));
    match answer {
        Ok(_) => Ok(!image.labels.contains_key(ownership::FILES)),
        Err(error) => match status(&error) {
            // Gone, or taken into use at this moment: it stays for whoever uses it.
            Some(404 | 409) => Ok(false),
            // Removed by somebody else while the engine was at it: engines call that an error of their own (500).
            Some(_) if is_gone(engine, &image.id).await => Ok(false),
            _ => Err(errors::fault(IMAGE, &image.name, error)),
        },
    }
}

/// See [`Engine::remove_image`](crate::engine::Engine::remove_image).
pub(super) async fn unname(engine: &DockerEngine, reference: &str) -> Result<bool, Fault> {
    let limit = super::transport::LIMIT;
    let answer = tokio::time::timeout(limit, engine.docker.remove_image(reference, None::<RemoveImageOptions>, None));
    match answer.await.unwrap_or(Err(Error::RequestTimeoutError)) {
        Ok(_) => Ok(true),
        Err(error) => match status(&error) {
            Some(404 | 409) => Ok(false),
            Some(_) if is_gone(engine, reference).await => Ok(false),
            _ => Err(errors::fault(IMAGE, reference, error)),
        },
    }
}

async fn is_gone(engine: &DockerEngine, image: &str) -> bool {
    engine.docker.inspect_image(image).await.is_err_and(|error| status(&error) == Some(404))
}

fn held(operation: &'static str, object: &str, by: &[String]) -> Fault {
    Fault::new(FaultKind::Conflict, operation, format!("{object}: still used by {}", by.join(", ")))
}

fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Pauses that grow, until their sum reaches [`LINGER_LIMIT`].
#[derive(Default)]
struct Pause {
    waited: Duration,
}

impl Pause {
    async fn wait(&mut self) -> bool {
        if self.waited >= LINGER_LIMIT {
            return false;
        }
        let pause = (self.waited / 2).clamp(Duration::from_millis(50), Duration::from_secs(1));
        tokio::time::sleep(pause).await;
        self.waited += pause;
        true
    }
}
