//! Bringing a stack up where an `up` was ended half-way: what that left is taken away first.

use crate::engine::{Container, Engine};
use crate::fault::{Fault, FaultKind};
use crate::ownership::Selector;
use crate::runtime::{Progress, Stack};

use super::Client;

/// Brings the stack up. `seen` are the preview's containers as they were a moment ago.
pub(super) async fn up(
    client: &Client,
    selector: &Selector,
    seen: &[Container],
    stack: &Stack,
    progress: Progress<'_>,
) -> Result<(), Fault> {
    clean(&*client.engine, seen).await?;
    // What Compose takes away leaves its volumes without a trace of whose they are.
    client.engine.note_anonymous(seen).await?;
    match client.runtime.up(stack, progress).await {
        // The engine may have ended what it was at for a dead run since the containers were seen.
        Err(fault) if fault.kind == FaultKind::Conflict => {
            let now = client.engine.containers(selector).await?;
            if clean(&*client.engine, &now).await? { client.runtime.up(stack, progress).await } else { Err(fault) }
        }
        done => done,
    }
}

pub(super) async fn clean(engine: &dyn Engine, containers: &[Container]) -> Result<bool, Fault> {
    let half = half_made(containers);
    for id in &half {
        engine.remove_container(id).await?;
    }
    Ok(!half.is_empty())
}

/// Compose replaces a container by one that is called `<start of the old id>_<name>` until the old one is gone. While both are there the new one is
/// not in use, and a later `up` stumbles over the pair. A new one that has lost its old one may hold data: Compose goes on with it.
fn half_made(containers: &[Container]) -> Vec<&str> {
    let replaces = |new: &Container, old: &Container| {
        new.id != old.id
            && new
                .name
                .split_once('_')
                .is_some_and(|(id, rest)| id.len() == 12 && old.id.starts_with(id) && rest == old.name)
    };
    let half = containers.iter().filter(|new| containers.iter().any(|old| replaces(new, old)));
    half.map(|container| container.id.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::{ContainerState, Health};

    fn container(id: &str, name: &str) -> Container {
        Container {
            id: id.into(),
            name: name.into(),
            image: String::new(),
            image_id: String::new(),
            state: ContainerState::Created,
            health: Health::None,
            labels: BTreeMap::new(),
            created: 0,
            ports: vec![],
            networks: BTreeMap::new(),
            volumes: Default::default(),
        }
    }

    #[test]
    fn a_replacement_beside_its_original_is_half_made() {
        let old = container("0123456789abcdef", "p-web-1");
        let new = container("fedcba9876543210", "0123456789ab_p-web-1");
        assert_eq!(half_made(&[old.clone(), new.clone()]), ["fedcba9876543210"]);
        assert!(half_made(std::slice::from_ref(&new)).is_empty(), "the original is gone: it holds what there is");
        let other = container("fedcba9876543210", "0123456789ab_p-other-1");
        assert!(half_made(&[old, other]).is_empty());
    }
}
