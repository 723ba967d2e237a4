//! What is on the host, what is wanted, and what follows from both: the plan. Reads; changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use super::destroy::Whose;
use super::error::Refusal;
use super::neighbours;
use super::prepare::{self, HostNames, Prepared, Wanted};
use super::roll;
use super::tree;
use super::{Client, Error, Event, Observer};
use crate::engine::{Container, Engine, ImageFacts, Inventory};
use crate::fault::{Fault, FaultKind};
use crate::fence::{self, Tombstone};
use crate::host::{Query, Survey};
use crate::plan::{self, Action, Change, Kind, Plan, Running};
use crate::project::{Deploy, Project, PullPolicy};
use crate::proxy::{Proxy, pages};
use crate::queue::FREED;
use crate::route::parts;
use crate::runtime::Runtime;
use crate::secret::{Redactor, Secret};
use crate::stack::Pull;
use crate::state::{Address, State};
use crate::sweep::Pulled;
use crate::{generate, ports, queue, stack};

/// The file below the base directory that changes with each place that is given away.
pub(super) const PLACES: &str = ".places";

/// What is on the host.
pub(super) struct Seen {
    /// The paths are the preview's own.
    pub(super) survey: Survey,
    /// Whether the host keeps status pages.
    pub(super) pages: bool,
    pub(super) state: Option<State>,
    pub(super) tombstones: Vec<Tombstone>,
    pub(super) good: Option<Value>,
    pub(super) good_text: Option<String>,
    pub(super) containers: Vec<Container>,
    pub(super) images: BTreeMap<String, String>,
    /// What these images say of their containers, by id.
    pub(super) facts: BTreeMap<String, ImageFacts>,
    pub(super) published: BTreeSet<u16>,
    /// The directory of the volume with the preview's files on the engine's machine; empty where there are no files.
    pub(super) files_directory: String,
    /// The engine's version; empty where nothing depends on it.
    pub(super) engine: String,
    /// When images that may be due were last pulled for previews.
    pub(super) pulled: BTreeMap<String, Timestamp>,
    /// What has the names of the preview's objects, whoever made it.
    pub(super) named: Inventory,
    /// The random part of the names of the preview's built images.
    pub(super) token: Secret<String>,
}

/// Looks at the host. `fresh` becomes the preview's image token if it has none yet.
pub(super) async fn observe(
    client: &Client,
    project: &Project,
    deploy: &Deploy,
    prepared: &Prepared,
    fresh: &Secret<String>,
) -> Result<Seen, Error> {
    let target = &deploy.target;
    let own = format!("{}/{}", target.app, target.name);
    let timed = timed(prepared);
    let mut query = Query {
        // The guard before what it guards.
        read: vec![
            PLACES.to_owned(),
            FREED.to_owned(),
            "*/*/state.json".to_owned(),
            format!("{own}/stack-*.json"),
            format!("{own}/routes-*.json"),
            format!("{own}/.env"),
            fence::pattern(&target.app, &target.name),
        ],
        list: vec![
            format!("{own}/tree-*.json"),
            format!("{own}/stack-*.json"),
            format!("{own}/routes-*.json"),
            pages::DIRECTORY.to_owned(),
        ],
        joined: vec![queue::pattern()],
        ..Query::default()
    };
    query.read.extend(timed.iter().map(|image| Pulled::path("", image).trim_start_matches('/').to_owned()));
    let selector = client.objects_of(target);
    let names: BTreeSet<String> = stack::images(&prepared.model).into_values().collect();
    let published = async {
        match project.proxy {
            Proxy::None => client.engine.published_ports().await,
            Proxy::Traefik(_) | Proxy::Files(_) => Ok(BTreeSet::new()),
        }
    };
    let about_engine = async {
        let files = !prepared.files.sources.is_empty();
        if !files && !stack::needs_engine_version(&prepared.model) {
            return Ok((String::new(), String::new()));
        }
        let info = client.engine.info().await?;
        Ok((if files { tree::directory(target, &info.root) } else { String::new() }, info.version))
    };
    let built = async {
        if prepared.built.is_empty() { Ok(BTreeMap::new()) } else { client.engine.built_images(&selector).await }
    };
    let (mut survey, containers, mut images, built, published, (files_directory, engine), named) = futures_util::try_join!(
        client.host.survey(&client.base_dir, &query),
        client.engine.containers(&selector),
        client.engine.image_ids(&names),
        built,
        published,
        about_engine,
        client.engine.project_objects(&target.project, project.proxy.network()),
    )?;
    if let Some(network) = project.proxy.network()
        && !named.networks.iter().any(|object| object.name == network)
    {
        return Err(Error::invalid(no_such_network(network)));
    }
    // Taken out: the other paths are the preview's own, and go when it does not need them any more.
    let pages = survey.paths.remove(&format!("{}/{}", client.base_dir, pages::DIRECTORY));
    let state_path = target.file(&client.base_dir, "state.json");
    let state = match survey.files.get(&state_path) {
        Some(text) => Some(State::parse(&state_path, text).map_err(|error| {
            let hint = "; `preview destroy` removes the preview, whatever its state file says";
            Error::Fault(
                Fault::new(FaultKind::Invalid, "read the preview's state", format!("{error}{hint}")).caused_by(error),
            )
        })?),
        None => None,
    };
    let good_file = state.as_ref().and_then(|state| Some(target.file(&client.base_dir, &state.good.as_ref()?.stack)));
    let good_text = good_file.and_then(|path| survey.files.get(&path)).cloned();
    let good = good_text.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let known = state.as_ref().and_then(|state| Some(state.good.as_ref()?.facts.clone())).unwrap_or_default();
    let token = state.as_ref().and_then(|state| state.image_token.clone());
    let token = token.map_or_else(|| fresh.clone(), Secret::new);
    // Only names that nobody else can have: labels are easily written into any image.
    let own = stack::image_prefix(&target.project, token.expose());
    images.extend(built.into_iter().filter(|(name, _)| name.starts_with(&own)));
    let facts = image_facts(&*client.engine, &images, &known).await?;
    let pulled = timed.into_iter().filter_map(|image| {
        let text = survey.files.get(&Pulled::path(&client.base_dir, &image))?;
        Some((image, serde_json::from_str::<Pulled>(text).ok()?.done?))
    });
    let pulled = pulled.collect();
    let tombstones = fence::tombstones(&survey.files, &target.app, &target.name);
    Ok(Seen {
        survey,
        pages,
        tombstones,
        state,
        good,
        good_text,
        containers,
        images,
        facts,
        published,
        files_directory,
        engine,
        pulled,
        named,
        token,
    })
}

/// Images that are pulled when the last pull is long ago.
pub(super) fn timed(prepared: &Prepared) -> Vec<String> {
    let images = stack::images(&prepared.model);
    let timed = stack::pull_policies(&prepared.model).into_iter().filter(|(_, pull)| matches!(pull, Pull::Older(_)));
    timed.filter_map(|(service, _)| images.get(&service).cloned()).collect()
}

/// What these images say of their containers, by id. Those that are `known` are not asked about.
pub(super) async fn image_facts(
    engine: &dyn Engine,
    images: &BTreeMap<String, String>,
    known: &BTreeMap<String, ImageFacts>,
) -> Result<BTreeMap<String, ImageFacts>, Fault> {
    let (old, new): (BTreeSet<String>, BTreeSet<String>) =
        images.values().cloned().partition(|id| known.contains_key(id));
    let mut facts: BTreeMap<String, ImageFacts> =
        known.iter().filter(|(id, _)| old.contains(*id)).map(|(id, facts)| (id.clone(), facts.clone())).collect();
    if !new.is_empty() {
        facts.extend(engine.image_facts(&new).await?);
    }
    Ok(facts)
}

/// What is known of images, by name.
pub(super) fn by_name(
    images: &BTreeMap<String, String>,
    facts: &BTreeMap<String, ImageFacts>,
) -> BTreeMap<String, ImageFacts> {
    images.iter().filter_map(|(name, id)| Some((name.clone(), facts.get(id)?.clone()))).collect()
}

/// Whoever reads the output of a run must not learn by which names the preview's images can be had.
pub(super) fn hide_token(token: &Secret<String>, observer: &dyn Observer, redactor: &Redactor) {
    observer.event(&Event::Secret(token));
    redactor.learn(token);
}

/// The proxy's network is missing: nothing could be started, and nobody could open it.
fn no_such_network(network: &str) -> String {
    format!(
        "`[proxy] network`: the host has no Docker network `{network}`, so no proxy can lead to the preview. `preview vm setup` sets up Traefik \
         with the network `preview-proxy`. For a proxy of your own, on the host:\n\n  docker network create {network}\n  docker network connect {network} \
         NAME-OF-THE-PROXYS-CONTAINER\n"
    )
}

impl Seen {
    /// What a stack is rendered with of the host.
    pub(super) fn names<'a>(&'a self, client: &'a Client) -> HostNames<'a> {
        HostNames {
            base: &client.base_dir,
            files_directory: &self.files_directory,
            image_token: &self.token,
            engine: &self.engine,
        }
    }

    /// What runs; `wanted` says which services have to.
    pub(super) fn running<'a>(&'a self, wanted: &'a Wanted) -> Running<'a> {
        Running {
            routed: &wanted.routed,
            state: self.state.as_ref(),
            good: self.good.as_ref(),
            containers: &self.containers,
            images: &self.images,
        }
    }
}

/// With the credentials that the host keeps, or new ones; the second value is the new content of their file, if it changes.
pub(super) async fn with_generated(
    resolver: &dyn Runtime,
    project: &Project,
    deploy: &Deploy,
    prepared: Prepared,
    seen: &Seen,
    observer: &dyn Observer,
    redactor: &Redactor,
) -> Result<(Prepared, Option<Secret<String>>), Error> {
    if project.generate.is_empty() {
        return Ok((prepared, None));
    }
    let path = seen
        .survey
        .files
        .iter()
        .find(|(path, _)| path.ends_with(&format!("/{}/{}/.env", deploy.target.app, deploy.target.name)));
    let (generated, file) =
        generate::merge(path.map(|(_, text)| text.as_str()).unwrap_or_default(), &project.generate)?;
    let variables = prepare::variables(project, deploy, &generated, observer, redactor).await?;
    Ok((prepare::prepare(resolver, project, deploy, variables).await?, file))
}

/// The stack as it should be, and its host ports.
pub(super) fn want(
    client: &Client,
    project: &Project,
    deploy: &Deploy,
    prepared: &Prepared,
    seen: &Seen,
) -> Result<(Wanted, BTreeMap<String, u16>), Error> {
    if let Some(state) = &seen.state {
        let whose = Whose { subject: deploy.subject.clone(), repository: deploy.repository.clone() };
        if let Some(by) = whose.other(state) {
            return Err(Refusal::NameTaken { name: deploy.target.name.clone(), by }.into());
        }
        if let Some(by) = other_project(state.directory.as_deref(), deploy.directory.as_deref()) {
            return Err(Refusal::NameTaken { name: deploy.target.name.clone(), by }.into());
        }
    }
    if let Some((url, by)) = address_taken(client, deploy, project, prepared, seen) {
        return Err(Refusal::NameTaken { name: url, by }.into());
    }
    let ports = match project.proxy {
        Proxy::Traefik(_) | Proxy::Files(_) => BTreeMap::new(),
        Proxy::None => {
            let remembered = seen.state.as_ref().map(|state| state.ports.clone()).unwrap_or_default();
            let mut taken: BTreeSet<u16> = seen.published.union(&seen.survey.facts.listening).copied().collect();
            let own = deploy.target.file(&client.base_dir, "state.json");
            for (path, text) in
                seen.survey.files.iter().filter(|(path, _)| path.ends_with("/state.json") && **path != own)
            {
                if let Ok(other) = State::parse(path, text) {
                    taken.extend(other.ports.values());
                }
            }
            let replicas = stack::replicas(&prepared.model);
            ports::allocate(&deploy.target.project, &prepared.wanted, &replicas, &remembered, &taken).map_err(
                |error| Error::Fault(Fault::new(FaultKind::PortTaken, "find a free port", error.to_string())),
            )?
        }
    };
    let generations = roll::generations(prepared, seen.good.as_ref());
    let images = by_name(&seen.images, &seen.facts);
    let mut wanted = prepare::render(project, deploy, prepared, &seen.names(client), &ports, &generations, &images)?;
    if let Some(good) = seen.state.as_ref().and_then(|state| state.good.as_ref()) {
        as_heard(&mut wanted.addresses, &good.addresses);
    }
    not_pulled(prepared, &wanted, seen)?;
    neighbours::check(&deploy.target, &client.base_dir, &wanted.model, &seen.named)?;
    let states = seen.survey.files.iter().filter_map(|(path, text)| State::parse(path, text).ok());
    neighbours::check_proxy(project.proxy.network(), &seen.named, &states.map(|state| state.project).collect())?;
    Ok((wanted, ports))
}

/// What answered HTTP before is taken to do so until it is asked again.
fn as_heard(addresses: &mut [Address], before: &[Address]) {
    for address in addresses {
        let Some((_, port)) = address.published() else { continue };
        let url = format!("http://127.0.0.1:{port}");
        if before.iter().any(|old| old.url == url && old.service == address.service && old.port == address.port) {
            address.url = url;
        }
    }
}

/// An image that is not there, of a service that says that it is never pulled.
fn not_pulled(prepared: &Prepared, wanted: &Wanted, seen: &Seen) -> Result<(), Error> {
    let images = stack::images(&wanted.model);
    let never = stack::pull_policies(&prepared.model).into_iter().filter(|(_, pull)| *pull == Pull::Never);
    for (service, _) in never.filter(|(service, _)| !prepared.built.contains(service)) {
        let Some(image) = images.get(&service).filter(|image| !seen.images.contains_key(*image)) else { continue };
        if !prepared.built.iter().any(|built| images.get(built) == Some(image)) {
            return Err(Error::invalid(format!(
                "services.{service}.pull_policy: `never`, and the engine does not have the image `{image}`: write `pull_policy: missing`, or bring the \
                 image there (`docker pull`, `docker load`)"
            )));
        }
    }
    Ok(())
}

/// Which other project of the same repository a preview is of. Two projects with one application name would replace each other's services.
fn other_project(has: Option<&str>, wants: Option<&str>) -> Option<String> {
    let (has, wants) = (has?, wants?);
    let shown = |directory: &str| if directory == "." { "at the top".to_owned() } else { format!("in `{directory}`") };
    (has != wants).then(|| {
        format!(
            "the project {} of this repository, and this one is {}: give each project an `app` of its own (in the base branch's \
             preview.toml, --app or PREVIEW_APP)",
            shown(has),
            shown(wants)
        )
    })
}

/// Whether an address is another one, or below it, or above it: to a browser all of a host is one place, and the longer path wins.
fn meet(one: &str, other: &str) -> bool {
    let (one, other) = (parts(one), parts(other));
    let (short, long) = if one.path.len() < other.path.len() { (one.path, other.path) } else { (other.path, one.path) };
    // There are proxies that do not mind the case.
    let starts = long.get(..short.len()).is_some_and(|start| start.eq_ignore_ascii_case(short));
    one.host.eq_ignore_ascii_case(other.host) && starts && matches!(long.as_bytes().get(short.len()), None | Some(b'/'))
}

/// An address that another preview of the host has already, or one below or above that, and which preview that is.
fn address_taken(
    client: &Client,
    deploy: &Deploy,
    project: &Project,
    prepared: &Prepared,
    seen: &Seen,
) -> Option<(String, String)> {
    if project.proxy == Proxy::None {
        return None;
    }
    let wanted: Vec<&String> = prepared.routes.iter().filter_map(|route| route.url.as_ref()).collect();
    let own = deploy.target.file(&client.base_dir, "state.json");
    let others = seen.survey.files.iter().filter(|(path, _)| path.ends_with("/state.json") && **path != own);
    others.filter_map(|(path, text)| State::parse(path, text).ok()).find_map(|other| {
        // Where an update moves away from an address, it comes back to it if it fails.
        let has = other.addresses.iter().chain(other.good.iter().flat_map(|good| &good.addresses));
        let mut has = has.map(|address| &address.url);
        let taken = has.find_map(|has| wanted.iter().find(|url| meet(url, has)))?;
        Some(((*taken).clone(), format!("{} of {}", other.name, other.app)))
    })
}

/// The roots of the repository's files that are not on the host as they are here, by id.
pub(super) fn changed_files(prepared: &Prepared, seen: &Seen) -> Vec<String> {
    let state = seen.state.as_ref();
    let good = state.and_then(|state| state.good.as_ref()).filter(|_| seen.good.is_some());
    let between = state.is_some_and(tree::is_between);
    let there = |id: &String, digest: &String| !between && good.is_some_and(|good| good.roots.get(id) == Some(digest));
    let digests = prepared.files.manifest.digests();
    digests.into_iter().filter(|(id, digest)| !there(id, digest)).map(|(id, _)| id).collect()
}

/// The images to pull: what the configuration says, and where a service says something, that.
pub(super) fn pulls(project: &Project, prepared: &Prepared, wanted: &Wanted, seen: &Seen) -> Vec<String> {
    let built: BTreeSet<&String> = prepared.built.iter().collect();
    let own: BTreeSet<String> = stack::images(&wanted.model)
        .into_iter()
        .filter(|(service, _)| built.contains(service))
        .map(|(_, image)| image)
        .collect();
    let said = stack::pull_policies(&prepared.model);
    let default = if project.pull == PullPolicy::Always { Pull::Always } else { Pull::Missing };
    let due = |service: &String, image: &String| match said.get(service) {
        // The configuration's word is for all that may be pulled.
        Some(Pull::Never) => false,
        Some(pull) => default == Pull::Always || is_due(*pull, image, seen),
        None => is_due(default, image, seen),
    };
    let all = stack::images(&wanted.model).into_iter().filter(|(_, image)| !own.contains(image));
    let due: BTreeSet<String> = all.filter(|(service, image)| due(service, image)).map(|(_, image)| image).collect();
    due.into_iter().collect()
}

fn is_due(pull: Pull, image: &str, seen: &Seen) -> bool {
    match pull {
        Pull::Never => false,
        Pull::Always => true,
        Pull::Missing => !seen.images.contains_key(image),
        Pull::Older(age) => {
            let now = seen.survey.facts.now;
            let pulled = seen.pulled.get(image).filter(|_| seen.images.contains_key(image));
            pulled
                .is_none_or(|at| now.saturating_sub(at.as_second()) >= i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
        }
    }
}

pub(super) fn draw(project: &Project, deploy: &Deploy, prepared: &Prepared, wanted: &Wanted, seen: &Seen) -> Plan {
    let running = seen.running(wanted);
    let changed = changed_files(prepared, seen);
    let pulls = pulls(project, prepared, wanted, seen);
    let same = plan::unchanged(&wanted.model, &wanted.digest, &running);
    let kind = match &seen.state {
        None => Kind::Create,
        Some(state) if state.good.is_none() => Kind::Resume,
        Some(_) if same && prepared.built.is_empty() && pulls.is_empty() => Kind::Unchanged,
        Some(_) => Kind::Update,
    };
    let mut actions = Vec::new();
    if !changed.is_empty() {
        let source = |id: &String| {
            let source = prepared.files.sources.get(id)?;
            let relative = source.strip_prefix(&project.repository).unwrap_or(source).display().to_string();
            Some(if relative.is_empty() { ".".to_owned() } else { relative })
        };
        actions.push(Action::Upload { files: changed.iter().filter_map(source).collect() });
    }
    if !prepared.built.is_empty() {
        actions.push(Action::Build { services: prepared.built.clone() });
    }
    if !pulls.is_empty() {
        actions.push(Action::Pull { images: pulls.clone() });
    }
    if kind != Kind::Unchanged {
        actions.push(Action::Up);
        actions.extend(
            project.steps.iter().map(|step| Action::Step { name: step.name.clone(), service: step.service.clone() }),
        );
        actions.push(Action::Verify);
    }
    let mut services = plan::changes(&wanted.model, &running);
    let renewed = renewed(prepared, wanted, seen, &pulls, &mut services);
    let mut warnings = prepared.warnings.clone();
    if kind == Kind::Update {
        warnings.extend(plan::without_effect(&wanted.model, seen.good.as_ref()));
        warnings.extend(plan::hidden(&wanted.model, seen.good.as_ref(), &renewed));
    }
    Plan {
        name: deploy.target.name.clone(),
        project: deploy.target.project.clone(),
        kind,
        actions,
        services,
        addresses: wanted.addresses.clone(),
        differences: wanted.differences.clone(),
        warnings,
    }
}

/// The services whose image changes, or may; those that are kept otherwise get that for their change.
fn renewed(
    prepared: &Prepared,
    wanted: &Wanted,
    seen: &Seen,
    pulls: &[String],
    services: &mut BTreeMap<String, Change>,
) -> BTreeSet<String> {
    let images = stack::images(&wanted.model);
    let built: BTreeSet<&String> = prepared.built.iter().filter_map(|service| images.get(service)).collect();
    let mut renewed = BTreeSet::new();
    for (service, image) in &images {
        let because = if built.contains(image) {
            "its image is built anew"
        } else if pulls.contains(image) {
            "its image is pulled anew"
        } else {
            ""
        };
        let other = seen.containers.iter().any(|container| {
            container.service() == Some(service) && seen.images.get(image).is_some_and(|id| *id != container.image_id)
        });
        if !because.is_empty() && services.get(service) == Some(&Change::Keep) {
            services.insert(service.clone(), Change::Refresh(because.to_owned()));
        }
        if !because.is_empty() || other {
            renewed.insert(service.clone());
        }
    }
    renewed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_projects_of_a_repository_are_told_apart_where_both_are_known() {
        let other = |has, wants| other_project(has, wants).is_some();
        assert!(other(Some("front"), Some("back")) && other(Some("."), Some("back")));
        assert!(!other(Some("front"), Some("front")) && !other(None, Some("back")) && !other(Some("front"), None));
        let said = other_project(Some("front"), Some(".")).unwrap();
        assert!(said.contains("in `front`") && said.contains("this one is at the top"), "{said}");
    }

    #[test]
    fn an_address_below_another_is_not_free() {
        let host = "https://pr-8.example.com";
        for (one, other, same) in [
            ("", "", true),
            ("", "/login", true),
            ("/a", "/a/b/c", true),
            ("/a", "/A/b", true),
            ("/a", "/ab", false),
            ("/a", "/b", false),
            ("/a/b", "/a/c", false),
            ("/\u{e9}a", "/\u{e8}a", false),
        ] {
            let (one, other) = (format!("{host}{one}"), format!("{host}{other}"));
            assert_eq!((meet(&one, &other), meet(&other, &one)), (same, same), "{one} {other}");
        }
        assert!(meet("http://A.example.com:8080/x/", "https://a.example.com/x"), "one place to the proxy");
        assert!(!meet("https://a.example.com", "https://b.example.com"));
    }
}
