//! Rolling updates: the new containers of routed services are healthy, and known to the proxy, before the old ones go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use super::crash::{Crash, broken, known};
use super::diagnose::Problems;
use super::flight::Flight;
use super::prepare::{Prepared, Wanted};
use super::run::Halt;
use super::verify::lock;
use super::wait::{self, Expected, Restarts, Verdict};
use super::{Event, up};
use crate::engine::{Container, ContainerState, Health};
use crate::failure;
use crate::fault::Fault;
use crate::plan::Change;
use crate::runtime::{Progress, Stack};
use crate::stack;
use crate::state::{Phase, State};

/// The services to roll, and how many containers of each there are for a moment: those that are replaced, and run well until then.
pub(super) fn rolling(
    prepared: &Prepared,
    services: &BTreeMap<String, Change>,
    seen: &[Container],
    replicas: &BTreeMap<String, usize>,
) -> BTreeMap<String, usize> {
    let wished: BTreeSet<&String> =
        prepared.routes.iter().filter(|route| route.rolling).map(|route| &route.service).collect();
    let works = |container: &&Container| {
        container.state == ContainerState::Running && matches!(container.health, Health::None | Health::Healthy)
    };
    wished
        .into_iter()
        .filter(|service| matches!(services.get(*service), Some(Change::Recreate(_))))
        .filter_map(|service| {
            let old: Vec<&Container> = seen.iter().filter(|c| c.service() == Some(service)).collect();
            let serves = !old.is_empty() && old.iter().all(works);
            let new = replicas.get(service).copied().unwrap_or(1);
            (serves && new > 0).then(|| (service.clone(), old.len() + new))
        })
        .collect()
}

impl Flight<'_> {
    /// Starts the new containers of these services beside the old ones, after everything else is as it should be.
    pub(super) async fn beside(
        &self,
        stack: &Stack,
        wanted: &Wanted,
        rolling: &BTreeMap<String, usize>,
        seen: &[Container],
        progress: Progress<'_>,
    ) -> Result<(), Fault> {
        let others: Vec<String> =
            stack::service_names(&wanted.model).into_iter().filter(|service| !rolling.contains_key(service)).collect();
        up::clean(&*self.client.engine, seen).await?;
        if !others.is_empty() {
            self.client.runtime.up_only(stack, &others, progress).await?;
        }
        self.client.runtime.beside(stack, rolling, progress).await
    }

    /// Waits until the new containers are healthy and the proxy knows of them; then the old ones go.
    pub(super) async fn roll(
        &self,
        state: &mut State,
        stack: &Stack,
        expected: &Expected,
        rolling: &BTreeMap<String, usize>,
        progress: Progress<'_>,
    ) -> Result<(), Crash> {
        let limit = self.project.timeouts.verify;
        let selector = self.selector();
        let last = Mutex::new(Problems::new());
        let failure = Mutex::new(None);
        let mut restarts = Restarts::since(state.good.as_ref());
        let names: Vec<&str> = rolling.keys().map(String::as_str).collect();
        self.observer.event(&Event::Note(&format!("{}: the new version starts beside the old one", names.join(", "))));
        let give_up = |message: String, problems: Problems| {
            *lock(&failure) = Some(broken(message, problems, vec![]));
            known()
        };
        let say = |problems: &Problems| {
            problems.iter().map(|(service, why)| format!("{service} {why}")).collect::<Vec<_>>().join("; ")
        };
        let rolled = self
            .stage(state, Phase::Verifying, limit * 2 + Duration::from_secs(30), async {
                let healthy = async {
                    let events = self.client.engine.watch(&selector).await?;
                    let mut note = |problems: &Problems| lock(&last).clone_from(problems);
                    wait::wait(&*self.client.engine, &selector, expected, &mut restarts, events, &mut note).await
                };
                match tokio::time::timeout(limit, healthy).await {
                    Ok(Ok((Verdict::Broken(problems), _))) => return Err(give_up(say(&problems), problems)),
                    Ok(done) => drop(done?),
                    Err(_) => {
                        let problems = lock(&last).clone();
                        return Err(give_up(format!("after {} s: {}", limit.as_secs(), say(&problems)), problems));
                    }
                }
                tokio::time::sleep(self.client.proxy.notices_within()).await;
                self.client.runtime.up(stack, progress).await.map_err(failure::of_up)
            })
            .await;
        match (rolled, lock(&failure).take()) {
            (Err(Halt::Fault(_)), Some(crash)) => Err(crash),
            (rolled, _) => Ok(rolled?),
        }
    }
}
