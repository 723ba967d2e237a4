//! Rolling updates: the new containers of routed services are healthy, and known to the proxy, before the old ones go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use super::crash::{Crash, broken, known};
use super::diagnose::Problems;
use super::flight::Flight;
use super::observe::Seen;
use super::prepare::{self, Prepared, Wanted};
use super::run::Halt;
use super::verify::lock;
use super::wait::{self, Expected, Restarts, Verdict};
use super::{Event, up};
use crate::engine::{Container, ContainerState, Health, ImageFacts};
use crate::failure;
use crate::fault::Fault;
use crate::plan::Change;
use crate::proxy;
use crate::route::Generations;
use crate::runtime::{Progress, Stack};
use crate::secret::Secret;
use crate::stack;
use crate::state::{Phase, State};

/// The generation of each service that is to be rolled, as the good version has it.
pub(super) fn generations(prepared: &Prepared, good: Option<&Value>) -> Generations {
    let of = |service: &String| good.map_or(0, |good| proxy::generation(labels(good, service).map(|(key, _)| key)));
    let rolling = prepared.routes.iter().filter(|route| route.rolling);
    rolling.map(|route| (route.service.clone(), of(&route.service))).collect()
}

/// A service's labels.
fn labels<'a>(model: &'a Value, service: &str) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
    let labels = model.get("services").and_then(|services| services.get(service)?.get("labels")?.as_object());
    labels.into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

/// The hosts that a service has routers for, with their priorities.
fn hosts<'a>(model: &'a Value, service: &str) -> Vec<(&'a str, u64)> {
    proxy::hosts(&labels(model, service).filter_map(|(key, value)| Some((key, value.as_str()?))).collect())
}

/// A generation that is later than all that are there. What a run left that died is one of them, and may be of another version.
fn next_generation(good: Option<&Value>, seen: &[Container]) -> u32 {
    let good = good.into_iter().flat_map(|good| stack::service_names(good).into_iter().map(move |name| (good, name)));
    let good = good.map(|(good, service)| proxy::generation(labels(good, &service).map(|(key, _)| key)));
    let seen = seen.iter().map(|container| proxy::generation(container.labels.keys().map(String::as_str)));
    good.chain(seen).max().unwrap_or(0).saturating_add(1)
}

/// The services that may be rolled, and how many containers of each there are for a moment: those that are replaced, and run well until then.
fn candidates(
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
    let mut rolling = BTreeMap::new();
    for service in wished {
        let old: Vec<&Container> = seen.iter().filter(|c| c.service() == Some(service)).collect();
        let serves = !old.is_empty() && old.iter().all(works);
        let new = replicas.get(service).copied().unwrap_or(1);
        if serves && new > 0 && matches!(services.get(service), Some(Change::Recreate(_))) {
            rolling.insert(service.clone(), old.len() + new);
        }
    }
    rolling
}

/// Whether a service's new containers say when they are ready. A proxy that is told by labels sends requests to all others as soon as they run.
fn checked(model: &Value, service: &str, seen: &[Container]) -> bool {
    let check = model.get("services").and_then(|services| services.get(service)?.get("healthcheck"));
    let of_image = || {
        // An image may bring a check of its own; what runs is of such an image.
        let mut old = seen.iter().filter(|container| container.service() == Some(service));
        old.any(|container| container.health != Health::None)
    };
    match check {
        Some(check) if check.get("disable") == Some(&Value::Bool(true)) => false,
        Some(check) => check
            .get("test")
            .and_then(Value::as_array)
            .map_or_else(of_image, |test| test.first().and_then(Value::as_str) != Some("NONE")),
        None => of_image(),
    }
}

/// Why old and new containers of a service cannot stand side by side.
fn obstacle(service: &str, wanted: &Value, good: Option<&Value>) -> Option<String> {
    let Some(good) = good else { return Some("it is not known what the proxy was told of the old ones".to_owned()) };
    // Traefik drops altogether what two containers define in different words: nobody would answer until the old one is gone.
    let old = definitions(good, service);
    let new = stack::service_names(wanted).into_iter().flat_map(|name| definitions(wanted, &name));
    if new.into_iter().any(|(name, words)| old.get(name).is_some_and(|before| *before != words)) {
        return Some("its routes changed, and Traefik takes only one version of them at a time".to_owned());
    }
    // Else the new routers of its neighbours would win over its old ones, which are not spread, until the new ones are there.
    let shared: Vec<&str> =
        stack::service_names(wanted).iter().flat_map(|name| hosts(wanted, name)).map(|(host, _)| host).collect();
    let late = hosts(wanted, service).into_iter().any(|(host, priority)| {
        let before = hosts(good, service).into_iter().any(|(old, priority)| old == host && !proxy::is_spread(priority));
        proxy::is_spread(priority) && before && shared.iter().filter(|other| **other == host).count() > 1
    });
    if late {
        return Some("the priorities of the routes on its host are spread from this update on".to_owned());
    }
    // A stack without the service would lack what these name.
    let tied = |name: &str, table: &serde_json::Map<String, Value>| {
        let named = ["links", "volumes_from"].into_iter().filter_map(|key| table.get(key)?.as_array()).flatten();
        name != service
            && named.filter_map(Value::as_str).any(|entry| entry.split(':').next().is_some_and(|to| to == service))
    };
    let (other, _) = stack::services(wanted).find(|(name, table)| tied(name, table))?;
    Some(format!("{other} is tied to them (`links` or `volumes_from`)"))
}

/// What a service's labels define for the proxy, by name, each with all that is said of it.
fn definitions<'a>(model: &'a Value, service: &str) -> BTreeMap<&'a str, BTreeMap<&'a str, &'a Value>> {
    let mut defined: BTreeMap<&str, BTreeMap<&str, &Value>> = BTreeMap::new();
    for (key, value) in labels(model, service) {
        if let Some(name) = proxy::defined(key) {
            defined.entry(name).or_default().insert(key, value);
        }
    }
    defined
}

/// Who waits for whom, and until when.
fn edges(model: &Value) -> impl Iterator<Item = (&String, &String, Option<&str>)> {
    stack::services(model).flat_map(|(service, table)| {
        let on = table.get("depends_on").and_then(Value::as_object).into_iter().flatten();
        on.map(move |(on, edge)| (service, on, edge.get("condition").and_then(Value::as_str)))
    })
}

/// What these steps lead to from here, with where they begin.
fn reached<'a>(from: &BTreeSet<&'a String>, steps: &[(&'a String, &'a String)]) -> BTreeSet<&'a String> {
    let mut all = from.clone();
    loop {
        let new = steps.iter().filter(|(from, to)| all.contains(from) && !all.contains(to)).map(|(_, to)| *to);
        let new: Vec<&String> = new.collect();
        if new.is_empty() {
            return all;
        }
        all.extend(new);
    }
}

/// The services that come after the rolled ones: those that wait for them, unless a rolled one waits for these in turn.
fn later(model: &Value, rolling: &BTreeMap<String, usize>) -> BTreeSet<String> {
    let rolled: BTreeSet<&String> = rolling.keys().collect();
    let down: Vec<(&String, &String)> = edges(model).map(|(service, on, _)| (service, on)).collect();
    let up: Vec<(&String, &String)> = down.iter().map(|(service, on)| (*on, *service)).collect();
    let needed = reached(&rolled, &down);
    reached(&rolled, &up).difference(&needed).map(|service| (*service).clone()).collect()
}

/// A stack without these services. Who waits for one of them does not: it runs in its old version, or comes later.
fn without(model: &Value, gone: &BTreeSet<String>) -> Value {
    let mut model = model.clone();
    if let Some(services) = model.get_mut("services").and_then(Value::as_object_mut) {
        services.retain(|service, _| !gone.contains(service));
        let edges = services.iter_mut().filter_map(|(_, table)| table.get_mut("depends_on")?.as_object_mut());
        edges.for_each(|edges| edges.retain(|on, _| !gone.contains(on)));
    }
    model
}

/// What the new containers wait for before they start; true: for its end. As Compose has it, but that of two rolled ones the old one is there.
fn conditions(model: &Value, rolling: &BTreeMap<String, usize>) -> BTreeMap<String, bool> {
    let mut found = BTreeMap::new();
    let of_rolled =
        edges(model).filter(|(service, on, _)| rolling.contains_key(*service) && !rolling.contains_key(*on));
    for (_, on, condition) in of_rolled {
        match condition {
            Some("service_completed_successfully") => drop(found.insert(on.clone(), true)),
            Some("service_healthy") => drop(found.entry(on.clone()).or_insert(false)),
            _ => {}
        }
    }
    found
}

fn say(problems: &Problems) -> String {
    problems.iter().map(|(service, why)| format!("{service} {why}")).collect::<Vec<_>>().join("; ")
}

impl Flight<'_> {
    /// The services to roll, and how many containers of each there are for a moment; and the stack with a generation of its own for what is rolled. Says of
    /// those that are replaced at once all the same why that is.
    pub(super) fn rolling(
        &self,
        prepared: &Prepared,
        wanted: &Wanted,
        services: &BTreeMap<String, Change>,
        seen: &Seen,
        images: &BTreeMap<String, ImageFacts>,
    ) -> Option<(BTreeMap<String, usize>, Wanted)> {
        let good = seen.good.as_ref();
        let replicas = stack::replicas(&wanted.model);
        let mut rolling = candidates(prepared, services, &seen.containers, &replicas);
        let next = next_generation(good, &seen.containers);
        while !rolling.is_empty() {
            let mut generations = generations(prepared, good);
            let later = rolling.keys().filter(|service| checked(&wanted.model, service, &seen.containers));
            generations.extend(later.map(|service| (service.clone(), next)));
            let ports = BTreeMap::new();
            // No ports: what is rolled is behind a proxy. The same was rendered before, so there is nothing to refuse.
            let wanted = prepare::render(
                self.project,
                self.deploy,
                prepared,
                &seen.names(self.client),
                &ports,
                &generations,
                images,
            );
            let wanted = wanted.ok()?;
            let blocked =
                rolling.keys().find_map(|service| Some((service.clone(), obstacle(service, &wanted.model, good)?)));
            let Some((service, why)) = blocked else { return Some((rolling, wanted)) };
            let note = format!("{service}: its containers are replaced at once this time, since {why}");
            self.observer.event(&Event::Note(&note));
            rolling.remove(&service);
        }
        None
    }

    /// Starts the new containers of these services beside the old ones, after what they wait for is as it should be. What waits for them comes with
    /// the last `up`.
    pub(super) async fn beside(
        &self,
        stack: &Stack,
        wanted: &Wanted,
        rolling: &BTreeMap<String, usize>,
        seen: &Seen,
        broke: &Mutex<Option<Crash>>,
        progress: Progress<'_>,
    ) -> Result<(), Fault> {
        let gone = later(&wanted.model, rolling).into_iter().chain(rolling.keys().cloned()).collect();
        let others = without(&wanted.model, &gone);
        up::clean(&*self.client.engine, &seen.containers).await?;
        self.client.engine.note_anonymous(&seen.containers).await?;
        if !stack::service_names(&others).is_empty() {
            let first = Stack { rendered: Secret::new(others.to_string()), ..stack.clone() };
            self.client.runtime.up_only(&first, progress).await?;
        }
        let conditions = conditions(&wanted.model, rolling);
        if !conditions.is_empty() {
            let selector = self.selector();
            let events = self.client.engine.watch(&selector).await?;
            let mut restarts = Restarts::since(seen.state.as_ref().and_then(|state| state.good.as_ref()));
            let mut note = |problems: &Problems| self.observer.event(&Event::Progress(&say(problems)));
            let expected = Expected::part(&wanted.model, &conditions);
            let waited =
                wait::wait(&*self.client.engine, &selector, &expected, &mut restarts, events, &mut note).await?;
            if let (Verdict::Broken(problems), _) = waited {
                *lock(broke) = Some(broken(say(&problems), problems, vec![]));
                return Err(known());
            }
        }
        self.client.runtime.beside(stack, rolling, progress).await
    }

    /// Waits until the new containers are healthy and the proxy knows of them; then the old ones go.
    pub(super) async fn roll(
        &self,
        state: &mut State,
        stack: &Stack,
        wanted: &Wanted,
        rolling: &BTreeMap<String, usize>,
        progress: Progress<'_>,
    ) -> Result<(), Crash> {
        let limit = self.verify_limit(wanted);
        let expected = Expected::of(&without(&wanted.model, &later(&wanted.model, rolling)));
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
        let rolled = self
            .stage(state, Phase::Verifying, limit * 2 + Duration::from_secs(30), async {
                let healthy = async {
                    let events = self.client.engine.watch(&selector).await?;
                    let mut note = |problems: &Problems| lock(&last).clone_from(problems);
                    wait::wait(&*self.client.engine, &selector, &expected, &mut restarts, events, &mut note).await
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rolled(names: &[&str]) -> BTreeMap<String, usize> {
        names.iter().map(|name| ((*name).to_owned(), 2)).collect()
    }

    #[test]
    fn what_the_new_ones_need_comes_before_them_and_what_needs_them_after() {
        let model = json!({"services": {
            "db": {},
            "migrate": {"depends_on": {"db": {"condition": "service_healthy"}}},
            "api": {"depends_on": {"migrate": {"condition": "service_completed_successfully"}, "db": {"condition": "service_healthy"}}},
            "warm": {"depends_on": {"api": {"condition": "service_healthy"}}},
            "web": {"depends_on": {"api": {"condition": "service_healthy"}, "warm": {"condition": "service_completed_successfully"}}},
            "smoke": {"depends_on": {"web": {"condition": "service_healthy"}}},
            "worker": {"depends_on": {"smoke": {"condition": "service_started"}}},
            "cache": {},
        }});
        let web = rolled(&["web"]);
        assert_eq!(later(&model, &web), BTreeSet::from(["smoke".to_owned(), "worker".to_owned()]));
        let needed = BTreeMap::from([("api".to_owned(), false), ("warm".to_owned(), true)]);
        assert_eq!(conditions(&model, &web), needed);

        // One that comes between two rolled ones comes first: of the other there is an old one.
        let both = rolled(&["api", "web"]);
        let after = later(&model, &both);
        assert_eq!(after, BTreeSet::from(["smoke".to_owned(), "worker".to_owned()]));
        let needed = [("db".to_owned(), false), ("migrate".to_owned(), true), ("warm".to_owned(), true)];
        assert_eq!(conditions(&model, &both), BTreeMap::from(needed));
        let gone = after.into_iter().chain(both.into_keys()).collect();
        let first = without(&model, &gone);
        let names: Vec<String> = stack::service_names(&first).into_iter().collect();
        assert_eq!(names, ["cache", "db", "migrate", "warm"]);
        assert_eq!(first["services"]["warm"]["depends_on"], json!({}), "no edge to what is not in it");
        assert_eq!(first["services"]["migrate"], model["services"]["migrate"]);
    }

    #[test]
    fn what_is_defined_in_other_words_and_ties_stand_in_the_way() {
        let model = |router: &str, rule: &str, other: Value| {
            let labels = json!({format!("traefik.http.routers.{router}.rule"): rule, "traefik.enable": "true", "preview.app": rule});
            json!({"services": {"web": {"labels": labels}, "other": other}})
        };
        let good = model("p-0", "Host(`a`)", json!({}));
        assert_eq!(obstacle("web", &good, Some(&good)), None);
        let moved = model("p-0", "Host(`b`)", json!({}));
        assert!(obstacle("web", &moved, Some(&good)).unwrap().contains("routes"));
        assert_eq!(obstacle("web", &model("p-0-g1", "Host(`b`)", json!({})), Some(&good)), None, "by another name");
        let mut more = good.clone();
        more["services"]["web"]["labels"]["traefik.http.routers.p-0.tls"] = json!("true");
        assert!(obstacle("web", &more, Some(&good)).is_some() && obstacle("web", &good, Some(&more)).is_some());
        // Of another service, which is there before the old containers go.
        let taken = json!({"labels": {"traefik.http.routers.p-0.rule": "Host(`c`)"}});
        assert!(obstacle("web", &model("p-0-g1", "Host(`a`)", taken), Some(&good)).unwrap().contains("routes"));
        assert!(obstacle("web", &good, None).is_some());

        // The first update of a preview whose routers are not spread yet, with a neighbour on its host and without one.
        let neighbour = |priority: &str| {
            let router = "traefik.http.routers.p-1";
            json!({"labels": {format!("{router}.rule"): "Host(`a`) && PathPrefix(`/b`)", format!("{router}.priority"): priority}})
        };
        let with = |name: &str, priority: &str, other: Value| {
            let mut model = model(name, "Host(`a`)", other);
            model["services"]["web"]["labels"][format!("traefik.http.routers.{name}.priority")] = json!(priority);
            model
        };
        let old = model("p-0", "Host(`a`)", neighbour("60"));
        let new = with("p-0-g1", "2500001", neighbour("6000000"));
        assert!(obstacle("web", &new, Some(&old)).unwrap().contains("spread"));
        assert_eq!(obstacle("web", &new, Some(&with("p-0", "2500000", neighbour("6000000")))), None);
        assert_eq!(obstacle("web", &with("p-0-g1", "2500001", json!({})), Some(&good)), None, "alone");
        for other in [json!({"links": ["web:w"]}), json!({"volumes_from": ["web:ro"]})] {
            let tied = model("p-0", "Host(`a`)", other);
            assert!(obstacle("web", &tied, Some(&good)).unwrap().contains("other is tied"));
        }
    }

    fn container(service: &str, health: Health, router: &str) -> Container {
        let label = format!("traefik.http.routers.{router}.rule");
        Container {
            id: router.into(),
            name: router.into(),
            image: String::new(),
            image_id: String::new(),
            state: ContainerState::Running,
            health,
            labels: BTreeMap::from([
                (label, String::new()),
                (crate::ownership::COMPOSE_SERVICE.to_owned(), service.to_owned()),
            ]),
            created: 0,
            ports: vec![],
            networks: BTreeMap::new(),
            volumes: Default::default(),
        }
    }

    #[test]
    fn a_generation_is_later_than_all_that_are_there() {
        let good = json!({"services": {
            "web": {"labels": {"traefik.http.routers.p-0-g3.rule": ""}},
            "db": {"labels": {"traefik.tcp.routers.p-1-g12.rule": ""}},
            "cache": {},
        }});
        assert_eq!(next_generation(None, &[]), 1);
        assert_eq!(next_generation(Some(&good), &[]), 13);
        assert_eq!(next_generation(Some(&good), &[container("web", Health::None, "p-0-g5")]), 13);
        assert_eq!(next_generation(Some(&good), &[container("web", Health::None, "p-0-g20")]), 21, "a run died");
    }

    #[test]
    fn new_containers_say_when_they_are_ready_or_not() {
        let model = |check: Value| json!({"services": {"web": {"healthcheck": check}, "other": {}}});
        let (with, without) = ([container("web", Health::Healthy, "p-0")], [container("web", Health::None, "p-0")]);
        assert!(checked(&model(json!({"test": ["CMD", "true"]})), "web", &without));
        assert!(!checked(&model(json!({"test": ["NONE"]})), "web", &with));
        assert!(!checked(&model(json!({"disable": true})), "web", &with));
        for of_image in [json!({"interval": "1s"}), json!(null)] {
            let model = model(of_image);
            assert!(checked(&model, "web", &with) && !checked(&model, "web", &without));
            assert!(!checked(&model, "other", &with), "another one's");
        }
    }
}
