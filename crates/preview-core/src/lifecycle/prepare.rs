//! Everything before the first change: variables, the resolved model, its policy, its files, its routes; then the rendered stack.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::files::{self, Upload};
use super::{Error, Event, Observer, Refusal};
use crate::project::{Deploy, Project, RouteSpec};
use crate::proxy::{self, Bundle, Owner, Proxy};
use crate::route::{Access, Generations, Route};
use crate::runtime::{Runtime, Source, Variables, reads};
use crate::secret::{Redactor, Secret};
use crate::stack::{self, Difference, FileUse, Input, Port};
use crate::state::Address;

/// The user's project, resolved and judged; nothing of the host is known yet.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) model: Value,
    pub(super) variables: Variables,
    pub(super) uploads: Vec<Upload>,
    pub(super) routes: Vec<RouteSpec>,
    pub(super) wanted: BTreeSet<Port>,
    pub(super) built: Vec<String>,
    pub(super) access: Access,
    pub(super) warnings: Vec<String>,
}

/// The preview's stack.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) model: Value,
    pub(super) digest: String,
    pub(super) differences: Vec<Difference>,
    pub(super) addresses: Vec<Address>,
    /// What a proxy that is told by files is told.
    pub(super) bundle: Option<Bundle>,
}

/// Fetches secrets, has them masked, and lays the layers: secrets in order, generated, fixed, ours; later wins.
pub(super) async fn variables(
    project: &Project,
    deploy: &Deploy,
    generated: &Variables,
    observer: &dyn Observer,
    redactor: &Redactor,
) -> Result<Variables, Error> {
    let mut variables = Variables::new();
    let fetched = futures_util::future::try_join_all(project.secrets.iter().map(|source| source.fetch())).await;
    let fetched = fetched.map_err(|fault| match fault.kind {
        crate::fault::FaultKind::NotFound => Error::invalid(fault.chain()),
        _ => Error::Fault(fault),
    })?;
    for (name, secret) in fetched.into_iter().flatten().chain(generated.clone()) {
        observer.event(&Event::Secret(&secret));
        redactor.learn(&secret);
        variables.insert(name, secret);
    }
    for (name, value) in &project.env {
        variables.insert(name.clone(), Secret::new(value.clone()));
    }
    variables.insert("PREVIEW_NAME".to_owned(), Secret::new(deploy.target.name.clone()));
    let of_routes = project.routes.iter().flatten().find_map(|route| route.url.clone());
    if let Some(url) = of_routes.or_else(|| project.url.clone()).filter(|_| project.proxy != Proxy::None) {
        variables.insert("PREVIEW_URL".to_owned(), Secret::new(url));
    }
    Ok(variables)
}

/// Resolves the files and judges them. Reads this machine's file system; changes nothing.
pub(super) async fn prepare(
    runtime: &dyn Runtime,
    project: &Project,
    deploy: &Deploy,
    variables: Variables,
) -> Result<Prepared, Error> {
    let source = Source {
        files: project.files.clone(),
        directory: project.directory.clone(),
        env_files: project.env_files.clone(),
        profiles: project.profiles.clone(),
        project: deploy.target.project.clone(),
        variables: variables.clone(),
    };
    let repository = project.repository.clone();
    let outside = reads::outside(runtime, &source, &repository).await?;
    if !outside.is_empty() {
        return Err(Refusal::Policy(outside).into());
    }
    let resolved = runtime.resolve(&source).await?;
    let mut model = resolved.model;
    let allowed = project.allowed.clone();
    let proxy_network = project.proxy.network().map(str::to_owned);
    let (model, uses) = blocking(move || {
        let of_the_host = stack::host_mounts(&model, &repository, &allowed);
        let uses: Vec<FileUse> = files::canonical(&mut model, &of_the_host)?;
        let mut violations = stack::violations(&model, &repository, proxy_network.as_deref(), &allowed);
        violations.extend(reads::dockerfiles(&model, &repository));
        if !violations.is_empty() {
            return Err(Refusal::Policy(violations).into());
        }
        Ok((model, uses))
    })
    .await?;
    check_services(project, &model)?;
    let uploads = blocking(move || files::uploads(&uses)).await?;
    let (routes, wanted) = routes(project, &model)?;
    let mut warnings = resolved.warnings;
    warnings.extend(check_isolation(project, &model, &wanted)?);
    let access = access(project, deploy, &variables)?;
    Ok(Prepared { built: stack::built(&model), variables, uploads, routes, wanted, access, warnings, model })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            Err(crate::fault::Fault::new(crate::fault::FaultKind::Failed, "read the repository", "the reader died")
                .caused_by(error)
                .into())
        }
    }
}

/// Services that the configuration names must exist.
fn check_services(project: &Project, model: &Value) -> Result<(), Error> {
    let known = stack::service_names(model);
    if known.is_empty() {
        return Err(Error::invalid("the Compose files define no service (or only services of profiles that are off)"));
    }
    let named = project
        .routes
        .iter()
        .flatten()
        .map(|route| (&route.service, &route.place))
        .chain(project.steps.iter().map(|step| (&step.service, &step.place)))
        .chain(project.health.iter().filter_map(|health| Some((health.service.as_ref()?, &health.place))))
        .chain(project.env_services.iter().map(|service| (service, &project.env_services_place)));
    for (service, place) in named {
        if !known.contains(service) {
            let names = known.iter().cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::invalid(format!(
                "{place}: there is no service `{service}` in the Compose files; there are: {names}"
            )));
        }
    }
    Ok(())
}

/// What is turned on must be possible for these services; what is said about none of them is a warning, since the base branch may say it for others.
fn check_isolation(project: &Project, model: &Value, wanted: &BTreeSet<Port>) -> Result<Vec<String>, Error> {
    let (isolation, place) = (&project.isolation, &project.isolation_place);
    let on_the_host = wanted.iter().filter(|_| project.proxy == Proxy::None);
    if let Some((key, why)) = isolation.conflicts(model, on_the_host).into_iter().next() {
        return Err(Error::invalid(format!("{place}: {key}: {why}")));
    }
    let known = stack::service_names(model);
    let unknown = isolation.except.iter().filter(|service| !known.contains(*service));
    Ok(unknown.map(|service| format!("{place}: `except` names `{service}`, which is no service here")).collect())
}

/// The routes, and what has to be published without a proxy.
fn routes(project: &Project, model: &Value) -> Result<(Vec<RouteSpec>, BTreeSet<Port>), Error> {
    let published = stack::published_ports(model);
    let tcp: Vec<&Port> = published.iter().filter(|port| port.protocol == "tcp").collect();
    if project.routes.is_none() && project.proxy != Proxy::None && tcp.len() != 1 {
        let found: Vec<String> = tcp.iter().map(|port| format!("{} of {}", port.target, port.service)).collect();
        let found =
            if found.is_empty() { "no port is".to_owned() } else { format!("these ports are: {}", found.join(", ")) };
        return Err(Error::invalid(format!(
            "a [[route]] is missing: {found} published in the Compose files, so it is not clear where the address leads"
        )));
    }
    let routes = project.routes.clone().unwrap_or_else(|| {
        tcp.iter()
            .map(|port| RouteSpec {
                service: port.service.clone(),
                port: port.target,
                url: project.url.clone(),
                place: "ports of the Compose files".to_owned(),
                ..RouteSpec::default()
            })
            .collect()
    });
    for route in &routes {
        let mode = model.pointer(&format!("/services/{}/network_mode", route.service)).and_then(Value::as_str);
        if let Some(mode) = mode.filter(|mode| !mode.is_empty()) {
            return Err(Error::invalid(format!(
                "{}: service `{}` has `network_mode: {mode}` and no network of its own, so no route can lead to it",
                route.place, route.service
            )));
        }
        if route.rolling && project.proxy == Proxy::None {
            return Err(Error::invalid(format!(
                "{}: `update = \"rolling\"` needs a proxy: without one the old container has the port that the new one needs",
                route.place
            )));
        }
        if let Some(why) = project.proxy.objection(&leading(route, route.url.clone().unwrap_or_default())) {
            return Err(Error::invalid(format!("{}: {why}", route.place)));
        }
        if project.proxy != Proxy::None && route.url.is_none() {
            return Err(Error::invalid(format!(
                "{}: behind a proxy the route to `{}` needs a `url`",
                route.place, route.service
            )));
        }
    }
    let mut wanted = published;
    wanted.extend(routes.iter().map(|route| Port {
        service: route.service.clone(),
        target: route.port,
        protocol: "tcp".to_owned(),
    }));
    Ok((routes, wanted))
}

/// A wish for a route with its address.
fn leading(spec: &RouteSpec, url: String) -> Route {
    Route {
        service: spec.service.clone(),
        port: spec.port,
        url,
        strip_prefix: spec.strip_prefix,
        protocol: spec.protocol,
        priority: spec.priority,
        entrypoint: spec.entrypoint.clone(),
        tls_options: spec.tls_options.clone(),
    }
}

/// Who may come in. The password is one of the variables.
fn access(project: &Project, deploy: &Deploy, variables: &Variables) -> Result<Access, Error> {
    let spec = &project.access;
    let basic_auth = match &spec.basic_auth {
        Some((user, name)) if project.proxy != Proxy::None => {
            let wrong = |why: &str| Error::invalid(format!("{}: `{name}` {why}", spec.place));
            if project.env.contains_key(name) {
                return Err(wrong(
                    "is set by [env], where everybody can read it: it comes from [[secrets]] or [generate]",
                ));
            }
            let password = variables.get(name).ok_or_else(|| {
                wrong("is no variable of this run: it comes from [[secrets]], or from [generate], which makes one up for each preview")
            })?;
            let hash = proxy::hash(&deploy.target.project, user, password.expose())
                .map_err(|why| wrong(&format!("cannot be used for basic_auth: {why}")))?;
            Some((user.clone(), hash))
        }
        _ => None,
    };
    Ok(Access { basic_auth, allow_ips: spec.allow_ips.clone(), noindex: spec.noindex })
}

/// Renders the stack, with these host ports (unused behind a proxy) and generations (used by one that is told by labels).
pub(super) fn render(
    project: &Project,
    deploy: &Deploy,
    prepared: &Prepared,
    base: &str,
    host_ports: &BTreeMap<String, u16>,
    generations: &Generations,
) -> Wanted {
    let files = files::places(&prepared.uploads, &deploy.target.directory(base));
    let mut addresses = Vec::new();
    let mut full = Vec::new();
    for spec in &prepared.routes {
        let key = Port { service: spec.service.clone(), target: spec.port, protocol: "tcp".to_owned() }.key();
        let url = match (&project.proxy, host_ports.get(&key)) {
            (Proxy::None, Some(port)) => format!("http://127.0.0.1:{port}"),
            (Proxy::None, None) => continue,
            (Proxy::Traefik(_) | Proxy::Files(_), _) => spec.url.clone().unwrap_or_default(),
        };
        addresses.push(Address { service: spec.service.clone(), port: spec.port, url: url.clone() });
        full.push(leading(spec, url));
    }
    let target = &deploy.target;
    let owner = Owner { app: &target.app, name: &target.name, project: &target.project };
    let services = project.proxy.services(owner, &full, &prepared.access, generations);
    let routed = project.proxy.network().map(|network| (network, &services));
    let rendered = stack::render(&Input {
        model: &prepared.model,
        base,
        app: &deploy.target.app,
        name: &deploy.target.name,
        guardrails: &project.guardrails,
        isolation: &project.isolation,
        files: &files,
        wanted: &prepared.wanted,
        host_ports: routed.is_none().then_some(host_ports),
        proxy: routed,
        inject_into: &project.env_services,
        variables: &prepared.variables,
    });
    Wanted {
        digest: crate::plan::digest(&rendered.model, &project.steps),
        model: rendered.model,
        differences: rendered.differences,
        bundle: project.proxy.files(owner, &full, &prepared.access),
        addresses,
    }
}
