//! A runtime in memory: brings stacks up on a [`MemoryEngine`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::engine::{MemoryContainer, MemoryEngine};
use crate::engine::{Chunk, Container, ContainerState, Engine as _, Health};
use crate::fault::{Fault, FaultKind};
use crate::ownership::{COMPOSE_PROJECT, COMPOSE_SERVICE, Selector};
use crate::runtime::{Progress, Resolved, Runtime, Source, Stack};
use crate::stack;

/// The label under which a container remembers what it was made from.
const DEFINITION: &str = "memory.definition";

#[derive(Default)]
struct Inside {
    model: Value,
    built: BTreeMap<String, String>,
    faults: BTreeMap<&'static str, Vec<Fault>>,
    calls: Vec<&'static str>,
    stop_after: Option<usize>,
    made: usize,
}

/// A runtime in memory. The model is what [`set_model`](Self::set_model) says; a service with the variable `SICK` in its environment becomes
/// unhealthy, with its value in its log; one with `SLOW` never gets healthy; one with `ONCE` has ended at once, with its value as exit code.
#[derive(Clone)]
pub struct MemoryRuntime {
    engine: MemoryEngine,
    inside: Arc<Mutex<Inside>>,
}

impl MemoryRuntime {
    /// A runtime for this engine.
    #[must_use]
    pub fn new(engine: MemoryEngine) -> Self {
        Self { engine, inside: Arc::default() }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the user's files say from now on, without `name`.
    pub fn set_model(&self, model: Value) {
        self.inside().model = model;
    }

    /// The next call of `resolve`, `check`, `build` or `up` fails so.
    pub fn fail_next(&self, call: &'static str, fault: Fault) {
        self.inside().faults.entry(call).or_default().push(fault);
    }

    /// The next `up` makes so many changes, and then fails as when its program is killed.
    pub fn stop_after(&self, changes: usize) {
        self.inside().stop_after = Some(changes);
    }

    /// Containers that were made or removed so far.
    #[must_use]
    pub fn made(&self) -> usize {
        self.inside().made
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<&'static str> {
        self.inside().calls.clone()
    }

    fn called(&self, call: &'static str) -> Result<(), Fault> {
        let mut inside = self.inside();
        inside.calls.push(call);
        match inside.faults.get_mut(call).and_then(Vec::pop) {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }
}

fn parse(stack: &Stack) -> Result<Value, Fault> {
    serde_json::from_str(stack.rendered.expose())
        .map_err(|error| Fault::new(FaultKind::Invalid, "read the stack", "not JSON").caused_by(error))
}

fn labels(table: &Value) -> BTreeMap<String, String> {
    let labels = table.get("labels").and_then(Value::as_object);
    labels
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

#[async_trait]
impl Runtime for MemoryRuntime {
    async fn resolve(&self, source: &Source) -> Result<Resolved, Fault> {
        self.called("resolve")?;
        let mut model = self.inside().model.clone();
        model["name"] = json!(source.project);
        for kind in ["networks", "volumes"] {
            for (key, value) in model.get_mut(kind).and_then(Value::as_object_mut).into_iter().flatten() {
                *value = json!({"name": format!("{}_{key}", source.project)});
            }
        }
        Ok(Resolved { model, warnings: vec![] })
    }

    async fn check(&self, stack: &Stack) -> Result<(), Fault> {
        // Not one of the calls: it does nothing.
        let planned = self.inside().faults.get_mut("check").and_then(Vec::pop);
        if let Some(fault) = planned {
            return Err(fault);
        }
        let model = parse(stack)?;
        let known = stack::service_names(&model);
        let needed = stack::services(&model).filter_map(|(_, table)| table.get("depends_on")?.as_object()).flatten();
        match needed.map(|(name, _)| name).find(|name| !known.contains(*name)) {
            Some(name) => {
                Err(Fault::new(FaultKind::Invalid, "check the rendered stack", format!("undefined service {name}")))
            }
            None => Ok(()),
        }
    }

    async fn build(&self, stack: &Stack, services: &[String], _: Progress<'_>) -> Result<(), Fault> {
        self.called("build")?;
        let model = parse(stack)?;
        for service in services {
            let table = &model["services"][service];
            let (image, from) = (table["image"].as_str().unwrap_or_default().to_owned(), table["build"].to_string());
            // A build of the same content ends with the same image, as with a warm cache.
            let known = self.inside().built.get(&from).cloned();
            let known = known.filter(|id| self.engine.images().iter().any(|image| &image.id == id));
            if let Some(id) = known {
                self.engine.tag(&id, &image).await?;
            } else {
                let id = self.engine.add_image(&image, &labels(&table["build"]));
                self.inside().built.insert(from, id);
            }
        }
        Ok(())
    }

    async fn up(&self, stack: &Stack, _: Progress<'_>) -> Result<(), Fault> {
        self.called("up")?;
        self.bring_up(stack, true).await
    }

    async fn up_only(&self, stack: &Stack, _: Progress<'_>) -> Result<(), Fault> {
        self.called("up_only")?;
        self.bring_up(stack, false).await
    }

    async fn beside(&self, stack: &Stack, services: &BTreeMap<String, usize>, _: Progress<'_>) -> Result<(), Fault> {
        self.called("beside")?;
        let model = parse(stack)?;
        let mut left = self.inside().stop_after.take();
        for (service, count) in services {
            loop {
                let running = self.engine.containers(&Selector::Managed).await?;
                let own = |c: &&Container| {
                    c.labels.get(COMPOSE_PROJECT) == Some(&stack.project) && c.service() == Some(service)
                };
                let there = running.iter().filter(own).count();
                if there >= *count {
                    break;
                }
                self.change(&mut left)?;
                let free = (1..).map(|number| format!("{}-{service}-{number}", stack.project));
                let name = free.into_iter().find(|name| running.iter().all(|c| c.name != *name)).unwrap_or_default();
                self.add(&stack.project, &model, service, &name);
            }
        }
        Ok(())
    }
}

impl MemoryRuntime {
    /// Counts a change, unless the program is killed before it.
    fn change(&self, left: &mut Option<usize>) -> Result<(), Fault> {
        if *left == Some(0) {
            return Err(Fault::new(FaultKind::Unreachable, "bring the stack up", "killed"));
        }
        *left = left.map(|left| left - 1);
        self.inside().made += 1;
        Ok(())
    }

    /// Starts a container of a service.
    fn add(&self, project: &str, model: &Value, service: &str, name: &str) {
        let table = &model["services"][service];
        let image = table["image"].as_str().unwrap_or_default();
        let sick = table["environment"]["SICK"].as_str();
        let mut container = MemoryContainer::new(name, image)
            .labels(&labels(table))
            .label(COMPOSE_PROJECT, project)
            .label(COMPOSE_SERVICE, service)
            .label(DEFINITION, table.to_string())
            .health(match sick {
                Some(_) => Health::Unhealthy,
                None if table["environment"]["SLOW"].is_string() => Health::Starting,
                None => Health::Healthy,
            })
            .network(format!("{project}_default"));
        for mount in table["volumes"].as_array().into_iter().flatten().filter(|mount| mount["type"] == "volume") {
            let key = mount["source"].as_str().unwrap_or_default();
            container = container.volume(format!("{project}_{key}"));
        }
        self.engine.add(container);
        if let Some(code) = table["environment"]["ONCE"].as_str() {
            self.engine.set_state(name, ContainerState::Exited, code.parse().unwrap_or(1));
        }
        if let Some(sick) = sick {
            self.engine.log(name, 0, &Chunk::Stdout(format!("{sick}\n").into()));
        }
    }

    /// The stack's services; whether the project's others go.
    async fn bring_up(&self, stack: &Stack, alone: bool) -> Result<(), Fault> {
        let model = parse(stack)?;
        for (kind, add) in [("networks", true), ("volumes", false)] {
            for table in model.get(kind).and_then(Value::as_object).into_iter().flatten().map(|(_, table)| table) {
                let name = table["name"].as_str().unwrap_or_default().to_owned();
                if add && !self.engine.networks().contains(&name) {
                    self.engine.add_network(name, &labels(table));
                } else if !add && !self.engine.volumes().contains(&name) {
                    self.engine.add_volume(name, &labels(table));
                }
            }
        }
        let mut left = self.inside().stop_after.take();
        let project = stack.project.as_str();
        let images = stack::images(&model);
        let ids = self.engine.image_ids(&images.values().cloned().collect()).await?;
        let running = self.engine.containers(&Selector::Managed).await?;
        let of_project = running.iter().filter(|c| c.labels.get(COMPOSE_PROJECT).is_some_and(|p| p == project));
        for container in of_project {
            if alone && !container.service().is_some_and(|service| images.contains_key(service)) {
                self.change(&mut left)?;
                self.engine.take(&container.name);
            }
        }
        for (service, image) in &images {
            let table = &model["services"][service];
            let Some(id) = ids.get(image) else {
                return Err(Fault::new(FaultKind::NotFound, "bring the stack up", format!("no such image: {image}")));
            };
            let own =
                |c: &&Container| c.labels.get(COMPOSE_PROJECT) == Some(&stack.project) && c.service() == Some(service);
            let same = |c: &&Container| &c.image_id == id && c.labels.get(DEFINITION) == Some(&table.to_string());
            let kept = running.iter().filter(own).find(same);
            for container in running.iter().filter(own).filter(|c| kept.is_none_or(|kept| kept.name != c.name)) {
                // Of several the ones too many go; a single one is replaced.
                if kept.is_some() || running.iter().filter(own).count() > 1 {
                    self.change(&mut left)?;
                    self.engine.take(&container.name);
                }
            }
            if kept.is_none() {
                self.change(&mut left)?;
                self.add(project, &model, service, &format!("{project}-{service}-1"));
            }
        }
        Ok(())
    }
}
