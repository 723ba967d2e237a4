//! Removal of everything that carries our labels, and of nothing else.

use std::collections::HashSet;
use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::{
    ListContainersOptions, RemoveContainerOptions, RemoveImageOptions, RemoveVolumeOptions, WaitContainerOptions,
};
use futures_util::stream::{self, StreamExt as _};

use super::{AT_ONCE, DockerEngine, errors};
use crate::engine::{Container, Engine as _, Object, Removed};
use crate::fault::{Fault, FaultKind};
use crate::ownership::{self, Selector};

/// How long a container may take to disappear that someone else is already removing.
const GONE_LIMIT: Duration = Duration::from_secs(60);
/// How long the engine may hold on to a network or volume after its last container has gone.
const LINGER_LIMIT: Duration = Duration::from_secs(10);

const CONTAINER: &str = "remove container";
const NETWORK: &str = "remove network";
const VOLUME: &str = "remove volume";
const IMAGE: &str = "remove image";

/// See [`Engine::remove`](crate::engine::Engine::remove).
pub(super) async fn remove(engine: &DockerEngine, selector: &Selector, seen: &[Container]) -> Result<Removed, Fault> {
    let seen = seen.iter().filter(|container| selector.matches(&container.labels)).cloned().collect::<Vec<_>>();
    let mut ours: HashSet<String> = seen.iter().map(|container| container.id.clone()).collect();
    // What only holds on to a volume is nobody's container or image, and does not count as one.
    let one = |container: Container| async move {
        let removed = remove_container(engine, &container.id, &container.name).await?;
        Ok(removed && !container.labels.contains_key(ownership::FILES))
    };
    let (first, found) = tokio::join!(each(seen, one), engine.inventory(selector));
    // Networks and volumes cannot go while containers hold on to them, so a failure here ends the work.
    let (first, found) = (first?, found?);
    let rest: Vec<_> = found.containers.into_iter().filter(|container| ours.insert(container.id.clone())).collect();
    let containers = first + each(rest, one).await?;
    let (networks, volumes, images) = tokio::join!(
        each(found.networks, |network| remove_network(engine, network, &ours)),
        each(found.volumes, |volume| remove_volume(engine, volume)),
        remove_images(engine, found.images),
    );
    Ok(Removed { containers, networks: networks?, volumes: volumes?, images: images? })
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
        let mut names: Vec<_> = holders
            .into_iter()
            .filter(|(id, _)| !id.starts_with("ep-") && !ours.contains(id))
            .filter_map(|(_, endpoint)| endpoint.name)
            .collect();
        names.sort();
        if !names.is_empty() {
            return Err(held(NETWORK, &network.name, &names));
        }
        if !pause.wait().await {
            return Err(errors::fault(NETWORK, &network.name, error));
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
