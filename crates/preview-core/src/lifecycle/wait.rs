//! When a stack is up: what containers say of themselves, judged in pure code, and the wait for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use serde_json::Value;
use tokio::time::Instant;

use super::diagnose::{Problem, Problems};
use crate::engine::{Container, ContainerDetail, ContainerEvent, ContainerState, Engine, Health};
use crate::failure::FailureCode;
use crate::fault::Fault;
use crate::ownership::Selector;
use crate::stack;
use crate::state::Good;

/// A container without a health check counts as well once it has run so long.
const SETTLE: Duration = Duration::from_secs(1);
/// And so long, if it has been started again: on a busy host it may take a while to come to what it fails at.
const SETTLE_AGAIN: Duration = Duration::from_secs(5);
/// Containers that were started again so often do not get well.
const TOO_OFTEN: i64 = 3;
/// The list is read again at least so often, should an event be missed.
const POLL: Duration = Duration::from_secs(3);

/// What a stack should look like once it is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    replicas: BTreeMap<String, usize>,
    one_shots: BTreeSet<String>,
    /// Those that count only once they have ended: something else is not to start before.
    ends: BTreeSet<String>,
    /// Those that have to stay up, since an address leads to them.
    routed: BTreeSet<String>,
}

impl Expected {
    pub(super) fn of(model: &Value) -> Self {
        Self {
            replicas: stack::replicas(model),
            one_shots: stack::one_shots(model),
            ends: BTreeSet::new(),
            routed: BTreeSet::new(),
        }
    }

    /// The same, where these services have to stay up.
    pub(super) fn routed(mut self, services: &BTreeSet<String>) -> Self {
        self.routed.clone_from(services);
        self
    }

    /// Of these services alone; true: it has to be at its end.
    pub(super) fn part(model: &Value, services: &BTreeMap<String, bool>) -> Self {
        let Self { mut replicas, one_shots, .. } = Self::of(model);
        replicas.retain(|service, _| services.contains_key(service));
        let ends = services.iter().filter(|(_, ends)| **ends).map(|(service, _)| service.clone()).collect();
        Self { replicas, one_shots, ends, routed: BTreeSet::new() }
    }
}

/// What can be said of a stack at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All is well.
    Well,
    /// All is well if it stays so for this long: some have no health check. So often they were started again until now.
    Settling(Duration, i64),
    /// Not yet: for these services, for these reasons.
    Waiting(Problems),
    /// It will not get well: for these services, for these reasons.
    Broken(Problems),
}

/// How often containers were started again before this run: that is no fault of what is deployed now.
pub(super) struct Restarts {
    /// What was found well once, and had its first look since.
    kept: BTreeMap<String, Option<i64>>,
}

impl Restarts {
    /// Those of the version that was good count from their first look on, those of any other container from its creation.
    pub(super) fn since(good: Option<&Good>) -> Self {
        let ids = good.into_iter().flat_map(|good| good.containers.values().flatten());
        Self { kept: ids.map(|id| (id.clone(), None)).collect() }
    }

    fn of_this_run(&mut self, detail: ContainerDetail) -> ContainerDetail {
        let Some(before) = self.kept.get_mut(&detail.container.id) else { return detail };
        let before = *before.get_or_insert(detail.restarts);
        ContainerDetail { restarts: (detail.restarts - before).max(0), ..detail }
    }
}

/// Whether it was for lack of memory.
fn cause(detail: Option<&ContainerDetail>, otherwise: FailureCode) -> FailureCode {
    if detail.is_some_and(|detail| detail.oom_killed) { FailureCode::OomKilled } else { otherwise }
}

/// Judges. `details` are there for containers that do not simply run.
pub(super) fn judge(
    expected: &Expected,
    containers: &[Container],
    details: &BTreeMap<String, ContainerDetail>,
) -> Verdict {
    let mut waiting = BTreeMap::new();
    let mut broken = BTreeMap::new();
    let mut settling = None;
    for (service, count) in &expected.replicas {
        let of_service: Vec<_> = containers.iter().filter(|c| c.service() == Some(service)).collect();
        if of_service.len() < *count {
            waiting.insert(service.clone(), Problem::new(FailureCode::StartFailed, "is not there yet"));
        }
        let one_shot = expected.one_shots.contains(service);
        for container in of_service {
            let detail = details.get(&container.id);
            if container.state == ContainerState::Running && expected.ends.contains(service) {
                waiting.insert(service.clone(), Problem::new(FailureCode::StartFailed, "has not ended yet"));
                continue;
            }
            match (container.state, container.health) {
                (ContainerState::Running, Health::None | Health::Starting | Health::Healthy)
                    if detail.is_some_and(|d| d.restarts >= TOO_OFTEN) =>
                {
                    let why = Problem::new(cause(detail, FailureCode::Exited), "ends again and again");
                    broken.insert(service.clone(), why);
                }
                (ContainerState::Running, Health::Healthy) => {}
                (ContainerState::Running, Health::None) => {
                    let again = detail.map_or(0, |d| d.restarts);
                    let (long, before) = settling.unwrap_or((SETTLE, 0));
                    settling = Some((if again > 0 { SETTLE_AGAIN } else { long }, before + again));
                }
                (ContainerState::Running, Health::Starting) => {
                    waiting.insert(service.clone(), Problem::new(FailureCode::Unhealthy, "is not healthy yet"));
                }
                (ContainerState::Running, Health::Unhealthy) => {
                    broken.insert(service.clone(), Problem::new(cause(detail, FailureCode::Unhealthy), "is unhealthy"));
                }
                (ContainerState::Exited, _) => match detail {
                    Some(detail) if detail.exit_code == 0 && expected.routed.contains(service) => {
                        let why = "ended (with code 0), but an address leads to it: it has to stay up";
                        broken.insert(service.clone(), Problem::new(FailureCode::Exited, why));
                    }
                    Some(detail) if detail.exit_code == 0 && (one_shot || !detail.restarts_on_success) => {}
                    Some(detail) => {
                        broken.insert(
                            service.clone(),
                            Problem::new(
                                cause(Some(detail), FailureCode::Exited),
                                format!("exited with code {}", detail.exit_code),
                            ),
                        );
                    }
                    None => {
                        waiting.insert(service.clone(), Problem::new(FailureCode::Exited, "exited"));
                    }
                },
                (ContainerState::Restarting, _) => match detail {
                    Some(detail) if detail.restarts >= TOO_OFTEN => {
                        let mut why = format!("ends again and again, the last time with code {}", detail.exit_code);
                        if detail.exit_code == 0 {
                            why.push_str("; if it is to run once, give it `restart: \"no\"`");
                        }
                        broken.insert(service.clone(), Problem::new(cause(Some(detail), FailureCode::Exited), why));
                    }
                    _ => {
                        waiting.insert(
                            service.clone(),
                            Problem::new(cause(detail, FailureCode::Exited), "is being started again"),
                        );
                    }
                },
                (ContainerState::Dead, _) => {
                    broken.insert(service.clone(), Problem::new(cause(detail, FailureCode::Exited), "is dead"));
                }
                (ContainerState::Created, _) if detail.is_some_and(|d| !d.error.is_empty()) => {
                    let why = detail.map(|d| d.error.clone()).unwrap_or_default();
                    broken.insert(
                        service.clone(),
                        Problem::new(FailureCode::StartFailed, format!("does not start: {why}")),
                    );
                }
                _ => {
                    waiting.insert(service.clone(), Problem::new(FailureCode::StartFailed, "does not run yet"));
                }
            }
        }
    }
    if !broken.is_empty() {
        Verdict::Broken(broken)
    } else if !waiting.is_empty() {
        Verdict::Waiting(waiting)
    } else {
        settling.map_or(Verdict::Well, |(long, restarts)| Verdict::Settling(long, restarts))
    }
}

/// Looks once: containers, and details of those that do not simply run.
pub(super) async fn look(
    engine: &dyn Engine,
    selector: &Selector,
    expected: &Expected,
    restarts: &mut Restarts,
) -> Result<(Verdict, Vec<Container>), Fault> {
    look_at(engine, selector, expected, restarts, |c| {
        !matches!((c.state, c.health), (ContainerState::Running, Health::Healthy | Health::Starting))
    })
    .await
}

/// The same, and nobody is taken for well who runs just now but ended often: that takes a request for each container.
pub(super) async fn look_closely(
    engine: &dyn Engine,
    selector: &Selector,
    expected: &Expected,
    restarts: &mut Restarts,
) -> Result<(Verdict, Vec<Container>), Fault> {
    look_at(engine, selector, expected, restarts, |_| true).await
}

async fn look_at(
    engine: &dyn Engine,
    selector: &Selector,
    expected: &Expected,
    restarts: &mut Restarts,
    is_inspected: impl Fn(&Container) -> bool,
) -> Result<(Verdict, Vec<Container>), Fault> {
    let containers = engine.containers(selector).await?;
    let curious = containers.iter().filter(|container| is_inspected(container));
    let asked = futures_util::future::join_all(curious.map(|c| async { (c.id.clone(), engine.inspect(&c.id).await) }));
    let mut details = BTreeMap::new();
    for (id, detail) in asked.await {
        match detail {
            Ok(detail) => {
                details.insert(id, restarts.of_this_run(detail));
            }
            // It went away in between: the next look tells.
            Err(fault) if fault.kind == crate::fault::FaultKind::NotFound => {}
            Err(fault) => return Err(fault),
        }
    }
    // Details are younger than the list.
    let containers: Vec<_> = containers
        .into_iter()
        .map(|c| {
            details.get(&c.id).map_or_else(
                || c.clone(),
                |d| Container { ports: c.ports.clone(), networks: c.networks.clone(), ..d.container.clone() },
            )
        })
        .collect();
    Ok((judge(expected, &containers, &details), containers))
}

/// Waits until the stack is well, or will not get well; the caller limits the time. `events` were subscribed before the start.
pub(super) async fn wait(
    engine: &dyn Engine,
    selector: &Selector,
    expected: &Expected,
    restarts: &mut Restarts,
    mut events: BoxStream<'static, Result<ContainerEvent, Fault>>,
    note: &mut (dyn FnMut(&Problems) + Send),
) -> Result<(Verdict, Vec<Container>), Fault> {
    let mut settled: Option<(Instant, i64)> = None;
    let mut told = BTreeMap::new();
    loop {
        // One look answers all events that came until it began, and those that come meanwhile ask for one more in all.
        let mut more = false;
        let looked = look(engine, selector, expected, restarts);
        tokio::pin!(looked);
        let (verdict, containers) = loop {
            tokio::select! {
                looked = &mut looked => break looked?,
                () = next(&mut events) => more = true,
            }
        };
        let pause = match &verdict {
            Verdict::Well | Verdict::Broken(_) => return Ok((verdict, containers)),
            Verdict::Settling(long, restarts) => {
                // What ends and is started again between two looks is seen to run each time.
                let (since, _) = *settled.insert(
                    settled.filter(|(_, before)| before == restarts).unwrap_or_else(|| (Instant::now(), *restarts)),
                );
                let left = long.saturating_sub(since.elapsed());
                if left.is_zero() {
                    return Ok((Verdict::Well, containers));
                }
                left
            }
            Verdict::Waiting(reasons) => {
                settled = None;
                if reasons != &told {
                    note(reasons);
                    told.clone_from(reasons);
                }
                POLL
            }
        };
        let pause = if more { Duration::ZERO } else { pause };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = next(&mut events) => {}
        }
    }
}

/// The next event that can change the verdict; never ends if there are no more events.
async fn next(events: &mut BoxStream<'static, Result<ContainerEvent, Fault>>) {
    loop {
        match events.next().await {
            Some(Ok(event)) => {
                // `exec_*` events of health checks come all the time.
                if ["start", "die", "oom", "kill", "stop", "restart", "destroy", "create"]
                    .contains(&event.action.as_str())
                    || event.action.starts_with("health_status")
                {
                    return;
                }
            }
            Some(Err(_)) | None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(service: &str, state: ContainerState, health: Health) -> Container {
        Container {
            id: service.into(),
            name: service.into(),
            image: String::new(),
            image_id: String::new(),
            state,
            health,
            labels: BTreeMap::from([(crate::ownership::COMPOSE_SERVICE.to_owned(), service.to_owned())]),
            created: 0,
            ports: vec![],
            networks: BTreeMap::new(),
            volumes: Default::default(),
        }
    }

    fn detail(
        container: &Container,
        exit_code: i64,
        restarts: i64,
        restarts_on_success: bool,
    ) -> BTreeMap<String, ContainerDetail> {
        BTreeMap::from([(
            container.id.clone(),
            ContainerDetail {
                container: container.clone(),
                exit_code,
                oom_killed: false,
                error: String::new(),
                restarts,
                restarts_on_success,
                health_output: None,
            },
        )])
    }

    fn expected(service: serde_json::Value) -> Expected {
        Expected::of(&json!({"services": {"a": service}}))
    }

    #[test]
    fn who_ended_often_is_not_well_whatever_it_looks_like() {
        for health in [Health::None, Health::Starting, Health::Healthy] {
            let web = container("web", ContainerState::Running, health);
            let expected = Expected::of(&json!({"services": {"web": {}}}));
            let judged = |restarts: i64| judge(&expected, std::slice::from_ref(&web), &detail(&web, 0, restarts, true));
            let Verdict::Broken(problems) = judged(TOO_OFTEN) else { panic!("{health:?}: it is broken") };
            assert_eq!(problems["web"].to_string(), "ends again and again");
            assert!(!matches!(judged(TOO_OFTEN - 1), Verdict::Broken(_)), "{health:?}");
        }
    }

    #[test]
    fn health_decides_where_there_is_a_check() {
        let long = expected(json!({"restart": "unless-stopped"}));
        let judged = |health| judge(&long, &[container("a", ContainerState::Running, health)], &BTreeMap::new());
        assert_eq!(judged(Health::Healthy), Verdict::Well);
        assert_eq!(judged(Health::None), Verdict::Settling(SETTLE, 0));
        assert!(matches!(judged(Health::Starting), Verdict::Waiting(_)));
        assert!(matches!(judged(Health::Unhealthy), Verdict::Broken(_)));
        assert!(matches!(judge(&long, &[], &BTreeMap::new()), Verdict::Waiting(_)));
    }

    #[test]
    fn a_one_shot_is_well_when_it_has_ended_with_success() {
        let once = expected(json!({"restart": "no"}));
        // `restart: "no"` may also stand at a service that stays up.
        let running = container("a", ContainerState::Running, Health::None);
        assert_eq!(judge(&once, &[running], &BTreeMap::new()), Verdict::Settling(SETTLE, 0));
        let ended = container("a", ContainerState::Exited, Health::None);
        assert_eq!(judge(&once, std::slice::from_ref(&ended), &detail(&ended, 0, 0, false)), Verdict::Well);
        assert!(matches!(judge(&once, std::slice::from_ref(&ended), &detail(&ended, 3, 0, false)), Verdict::Broken(_)));
    }

    #[test]
    fn a_routed_service_has_to_stay_up() {
        let once = expected(json!({"restart": "no"})).routed(&BTreeSet::from(["a".to_owned()]));
        let ended = container("a", ContainerState::Exited, Health::None);
        let Verdict::Broken(why) = judge(&once, std::slice::from_ref(&ended), &detail(&ended, 0, 0, false)) else {
            panic!("not broken")
        };
        assert_eq!(why["a"].code, FailureCode::Exited);
        assert!(why["a"].why.contains("code 0"), "{why:?}");
    }

    #[test]
    fn what_others_await_the_end_of_is_not_well_before() {
        let model = json!({"services": {"a": {"restart": "no"}, "b": {}}});
        let end = Expected::part(&model, &BTreeMap::from([("a".to_owned(), true)]));
        let running = container("a", ContainerState::Running, Health::None);
        assert!(matches!(judge(&end, &[running], &BTreeMap::new()), Verdict::Waiting(_)));
        let ended = container("a", ContainerState::Exited, Health::None);
        assert_eq!(judge(&end, std::slice::from_ref(&ended), &detail(&ended, 0, 0, false)), Verdict::Well);
        assert!(matches!(judge(&end, std::slice::from_ref(&ended), &detail(&ended, 3, 0, false)), Verdict::Broken(_)));
    }

    #[test]
    fn what_ends_again_and_again_is_broken_and_told_what_to_do() {
        let long = expected(json!({"restart": "unless-stopped"}));
        let again = container("a", ContainerState::Restarting, Health::None);
        assert!(matches!(judge(&long, std::slice::from_ref(&again), &detail(&again, 1, 1, true)), Verdict::Waiting(_)));
        let Verdict::Broken(why) = judge(&long, std::slice::from_ref(&again), &detail(&again, 0, 3, true)) else {
            panic!("not broken")
        };
        assert!(why["a"].why.contains("restart: \"no\""), "{why:?}");
    }

    #[test]
    fn what_was_started_again_has_to_stay_up_longer_and_old_times_are_forgotten() {
        let long = expected(json!({"restart": "always"}));
        let up = container("a", ContainerState::Running, Health::None);
        let judged = |restarts| judge(&long, std::slice::from_ref(&up), &detail(&up, 0, restarts, true));
        assert_eq!((judged(0), judged(2)), (Verdict::Settling(SETTLE, 0), Verdict::Settling(SETTLE_AGAIN, 2)));
        assert!(matches!(judged(3), Verdict::Broken(_)));

        let good = Good {
            addresses: vec![],
            routes: None,
            digest: String::new(),
            stack: String::new(),
            containers: BTreeMap::from([("a".to_owned(), vec!["a".to_owned()])]),
            images: BTreeMap::new(),
            facts: BTreeMap::new(),
            roots: BTreeMap::new(),
            tree: None,
            records: Default::default(),
            weight: None,
            commit: None,
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        let counted = |restarts: &mut Restarts, number| {
            restarts.of_this_run(detail(&up, 0, number, true).remove("a").unwrap()).restarts
        };
        let mut known = Restarts::since(Some(&good));
        assert_eq!(
            [7, 7, 9].map(|number| counted(&mut known, number)),
            [0, 0, 2],
            "it has run since the version before"
        );
        let mut new = Restarts::since(None);
        assert_eq!([7, 9].map(|number| counted(&mut new, number)), [7, 9]);
    }

    #[test]
    fn each_problem_has_its_code() {
        let long = expected(json!({"restart": "unless-stopped"}));
        let code = |container: &Container, details: &BTreeMap<String, ContainerDetail>| match judge(
            &long,
            std::slice::from_ref(container),
            details,
        ) {
            Verdict::Broken(why) | Verdict::Waiting(why) => why["a"].code,
            other => panic!("nothing is wrong: {other:?}"),
        };
        let made = |state, health| container("a", state, health);
        let exited = made(ContainerState::Exited, Health::None);
        let mut details = detail(&exited, 137, 0, false);
        assert_eq!(code(&exited, &details), FailureCode::Exited);
        details.get_mut("a").unwrap().oom_killed = true;
        assert_eq!(code(&exited, &details), FailureCode::OomKilled);
        let again = made(ContainerState::Restarting, Health::None);
        assert_eq!(code(&again, &detail(&again, 1, 3, true)), FailureCode::Exited);
        let none = BTreeMap::new();
        assert_eq!(code(&made(ContainerState::Running, Health::Unhealthy), &none), FailureCode::Unhealthy);
        assert_eq!(code(&made(ContainerState::Running, Health::Starting), &none), FailureCode::Unhealthy);
        assert_eq!(code(&made(ContainerState::Created, Health::None), &none), FailureCode::StartFailed);
    }
}
