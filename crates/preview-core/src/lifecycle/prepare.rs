//! Everything before the first change: variables, the resolved model, its policy, its files, its routes; then the rendered stack.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::files::{self, Local};
use super::{Error, Event, Observer, judge};
use crate::engine::ImageFacts;
use crate::project::{Deploy, Project, RouteSpec};
use crate::proxy::{self, Bundle, Owner, Proxy};
use crate::route::{Access, Generations, Protocol, Route};
use crate::runtime::{Runtime, Source, Stack, Variables, reads};
use crate::secret::{Redactor, Secret};
use crate::stack::{self, Difference, Input, Port, Violation};
use crate::state::Address;

/// The user's project, resolved and judged; nothing of the host is known yet.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) model: Value,
    pub(super) variables: Variables,
    /// Variables that secrets and configs of the files name, and that are in the project's own environment files.
    pub(super) file_variables: Variables,
    pub(super) files: Local,
    pub(super) routes: Vec<RouteSpec>,
    pub(super) wanted: BTreeSet<Port>,
    /// Published ports that no route leads to, where there is no proxy: they are listed, and need not answer.
    pub(super) listed: BTreeSet<Port>,
    pub(super) built: Vec<String>,
    pub(super) access: Access,
    pub(super) warnings: Vec<String>,
    /// What was dropped or left out before the stack is rendered.
    pub(super) differences: Vec<Difference>,
}

impl Prepared {
    /// Everything that the stack may name by `environment:`.
    pub(super) fn stack_variables(&self) -> Variables {
        self.file_variables.clone().into_iter().chain(self.variables.clone()).collect()
    }
}

/// The preview's stack.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) model: Value,
    pub(super) digest: String,
    pub(super) differences: Vec<Difference>,
    pub(super) addresses: Vec<Address>,
    /// Services that routes lead to: they have to run.
    pub(super) routed: BTreeSet<String>,
    /// What a proxy that is told by files is told.
    pub(super) bundle: Option<Bundle>,
}

impl Wanted {
    /// What a runtime is handed.
    pub(super) fn stack(&self, deploy: &Deploy, prepared: &Prepared) -> Stack {
        Stack {
            project: deploy.target.project.clone(),
            rendered: Secret::new(self.model.to_string()),
            variables: prepared.stack_variables(),
        }
    }
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
        readable: vec![],
    };
    let repository = project.repository.clone();
    let copy = match reads::copied(runtime, &source, &repository).await? {
        Ok(copy) => copy,
        Err(outside) => return Err(judge::reject(project, &Value::Null, outside)),
    };
    let resolved = judge::resolve(runtime, project, &copy).await?;
    let mut model = resolved.model;
    let mut differences = Vec::new();
    let mut violations = judge::leave_out(runtime, project, &copy, &mut model, &mut differences).await;
    let (file_variables, missing) = judge::file_variables(runtime, &copy, &model).await?;
    violations.extend(missing);
    let (allowed, caps) = (project.allowed.clone(), project.caps);
    let proxy_network = project.proxy.network().map(str::to_owned);
    let judged = blocking(move || judge::judge(model, &repository, proxy_network.as_deref(), &allowed, &caps)).await?;
    let (model, uses) = (judged.model, judged.uses);
    violations.extend(judged.violations);
    violations.extend(judge::check_services(project, &model));
    let Routes { routes, wanted, listed, wrong } = routes(project, &model);
    violations.extend(wrong);
    let (doubts, wrong) = check_isolation(project, &model, &wanted);
    violations.extend(wrong);
    let access = access(project, deploy, &variables).map_err(|wrong| violations.push(*wrong)).unwrap_or_default();
    if !violations.is_empty() {
        let project = project.clone();
        return blocking(move || Err(judge::reject(&project, &model, violations))).await;
    }
    let repository = project.repository.clone();
    let files = blocking(move || files::local(&uses, &repository)).await?;
    let mut warnings = resolved.warnings;
    warnings.extend(files.warnings.iter().cloned());
    warnings.extend(doubts);
    warnings.extend(unknown_guardrails(project, &model));
    let built = stack::built(&model);
    Ok(Prepared {
        built,
        variables,
        file_variables,
        files,
        routes,
        wanted,
        listed,
        access,
        warnings,
        differences,
        model,
    })
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

/// What is turned on must be possible for these services; what is said about none of them is a warning, since the base branch may say it for others.
fn check_isolation(project: &Project, model: &Value, wanted: &BTreeSet<Port>) -> (Vec<String>, Vec<Violation>) {
    let (isolation, place) = (&project.isolation, &project.isolation_place);
    let on_the_host = wanted.iter().filter(|_| project.proxy == Proxy::None);
    let conflicts = isolation.conflicts(model, on_the_host).into_iter();
    let wrong = conflicts.map(|(key, why)| Violation::input(format!("{place}: {key}"), why, "")).collect();
    let known = stack::service_names(model);
    let unknown = isolation.except.iter().filter(|service| !known.contains(*service));
    let doubts = unknown.map(|service| format!("{place}: `except` names `{service}`, which is no service here"));
    (doubts.collect(), wrong)
}

/// What to write where it is not clear which port the address leads to.
fn no_route(tcp: &[&Port], url: Option<&str>) -> Violation {
    let table = |service: &str, port: u16, url: &str| {
        format!("say which one in preview.toml:\n\n  [[route]]\n  service = \"{service}\"\n  port = {port}{url}\n")
    };
    let Some(first) = tcp.first() else {
        let why = "the Compose files publish no port, so there is nothing that the proxy could lead to";
        return Violation::input("route", why, table("SERVICE", 8000, ""));
    };
    let all: Vec<String> = tcp.iter().map(|port| format!("{} of `{}`", port.target, port.service)).collect();
    let why = format!(
        "the Compose files publish {} ports ({}), and the proxy leads to one of them; the others stay inside the preview",
        tcp.len(),
        all.join(", ")
    );
    let missing = if url.is_none() { "\n  url = \"https://{name}.example.com\"" } else { "" };
    Violation::input("route", why, table(&first.service, first.target, missing))
}

/// Limits of services that are none here: the base branch may say them for others.
fn unknown_guardrails(project: &Project, model: &Value) -> Vec<String> {
    let known = stack::service_names(model);
    let named =
        project.guardrails.services.keys().filter(|name| !known.contains(*name) && !project.exclude.contains(*name));
    let place = &project.guardrails_place;
    named.map(|name| format!("{place}: `guardrails.services` has `{name}`, which is no service here")).collect()
}

/// What is reachable from outside.
struct Routes {
    routes: Vec<RouteSpec>,
    /// What has to be published without a proxy.
    wanted: BTreeSet<Port>,
    /// What of that no route leads to.
    listed: BTreeSet<Port>,
    wrong: Vec<Violation>,
}

fn routes(project: &Project, model: &Value) -> Routes {
    let published = stack::published_ports(model);
    let tcp: Vec<&Port> = published.iter().filter(|port| port.protocol == "tcp").collect();
    let pages: Vec<&Port> = published.iter().filter(|port| stack::may_be_http(port)).collect();
    if project.routes.is_none() && project.proxy != Proxy::None && pages.len() != 1 {
        let wrong = no_route(if pages.is_empty() { &tcp } else { &pages }, project.url.as_deref());
        return Routes { routes: Vec::new(), wanted: published, listed: BTreeSet::new(), wrong: vec![wrong] };
    }
    let routes = project.routes.clone().unwrap_or_else(|| {
        // Behind a proxy there is one address, without one the others are published beside it.
        stack::page(&published, &stack::built(model))
            .into_iter()
            .map(|port| RouteSpec {
                service: port.service.clone(),
                port: port.target,
                url: project.url.clone(),
                place: "ports of the Compose files".to_owned(),
                ..RouteSpec::default()
            })
            .collect()
    });
    let wrong = routes.iter().flat_map(|route| wrong_route(project, model, route)).collect();
    let routed: BTreeSet<Port> = routes
        .iter()
        .map(|route| Port { service: route.service.clone(), target: route.port, protocol: "tcp".to_owned() })
        .collect();
    let listed = if project.proxy == Proxy::None { &published - &routed } else { BTreeSet::new() };
    let wanted = &published | &routed;
    Routes { routes, wanted, listed, wrong }
}

/// What is wrong with a route to a service that is there.
fn wrong_route(project: &Project, model: &Value, route: &RouteSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut wrong = |why: String| found.push(Violation::input(route.place.as_str(), why, ""));
    let mode = model.pointer(&format!("/services/{}/network_mode", route.service)).and_then(Value::as_str);
    if let Some(mode) = mode.filter(|mode| !mode.is_empty()) {
        wrong(format!(
            "service `{}` has `network_mode: {mode}` and no network of its own, so no route can lead to it",
            route.service
        ));
    }
    if route.rolling && project.proxy == Proxy::None {
        let why =
            "`update = \"rolling\"` needs a proxy: without one the old container has the port that the new one needs";
        wrong(why.to_owned());
    }
    if let Some(why) = project.proxy.objection(&leading(route, route.url.clone().unwrap_or_default())) {
        wrong(why.to_owned());
    }
    if project.proxy != Proxy::None && route.url.is_none() {
        wrong(format!("behind a proxy the route to `{}` needs a `url`", route.service));
    }
    found
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
fn access(project: &Project, deploy: &Deploy, variables: &Variables) -> Result<Access, Box<Violation>> {
    let spec = &project.access;
    let basic_auth = match &spec.basic_auth {
        Some((user, name)) if project.proxy != Proxy::None => {
            let wrong = |why: &str| Box::new(Violation::input(spec.place.as_str(), format!("`{name}` {why}"), ""));
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

/// Services that have to stay up: a route leads to them, or they are asked a question. Not those that steps run in: another step is no reason to make a container anew.
pub(super) fn stays(project: &Project, prepared: &Prepared) -> BTreeSet<String> {
    let routed = prepared.routes.iter().map(|route| route.service.clone());
    routed.chain(project.health.iter().filter_map(|health| health.service.clone())).collect()
}

/// The addresses of a published port: one for each container of its service.
fn on_the_host<'a>(
    port: &'a Port,
    scheme: &'a str,
    replicas: &BTreeMap<String, usize>,
    host_ports: &'a BTreeMap<String, u16>,
) -> impl Iterator<Item = Address> + 'a {
    let containers = replicas.get(&port.service).copied().unwrap_or(1).max(1);
    port.keys(containers).filter_map(|key| host_ports.get(&key)).map(move |host_port| Address {
        service: port.service.clone(),
        port: port.target,
        url: format!("{scheme}://127.0.0.1:{host_port}"),
    })
}

/// What a stack is rendered with of the host.
#[derive(Clone, Copy)]
pub(super) struct HostNames<'a> {
    /// The directory of all previews.
    pub(super) base: &'a str,
    /// Where the preview's files are.
    pub(super) files_directory: &'a str,
    /// The random part of the names of the preview's built images.
    pub(super) image_token: &'a Secret<String>,
    /// The engine's version; empty where nothing depends on it.
    pub(super) engine: &'a str,
}

/// Renders the stack, with these names of the host, host ports (unused behind a proxy) and generations (used by one that is told by labels),
/// and what is known of its images.
pub(super) fn render(
    project: &Project,
    deploy: &Deploy,
    prepared: &Prepared,
    host: &HostNames<'_>,
    host_ports: &BTreeMap<String, u16>,
    generations: &Generations,
    images: &BTreeMap<String, ImageFacts>,
) -> Result<Wanted, Error> {
    let files = prepared.files.placed();
    let passed = prepared.stack_variables();
    let replicas = stack::replicas(&prepared.model);
    let mut addresses = Vec::new();
    let mut full = Vec::new();
    for spec in &prepared.routes {
        if project.proxy != Proxy::None {
            let url = spec.url.clone().unwrap_or_default();
            addresses.push(Address { service: spec.service.clone(), port: spec.port, url: url.clone() });
            full.push(leading(spec, url));
            continue;
        }
        let port = Port { service: spec.service.clone(), target: spec.port, protocol: "tcp".to_owned() };
        let scheme = if spec.protocol == Protocol::Tcp { "tcp" } else { "http" };
        addresses.extend(on_the_host(&port, scheme, &replicas, host_ports));
    }
    for port in &prepared.listed {
        addresses.extend(on_the_host(port, &port.protocol, &replicas, host_ports));
    }
    let target = &deploy.target;
    let owner = Owner { app: &target.app, name: &target.name, project: &target.project };
    let services = project.proxy.services(owner, &full, &prepared.access, generations);
    let routed = project.proxy.network().map(|network| (network, &services));
    let rendered = stack::render(&Input {
        model: &prepared.model,
        base: host.base,
        app: &deploy.target.app,
        name: &deploy.target.name,
        image_token: host.image_token.expose(),
        engine: host.engine,
        guardrails: &project.guardrails,
        isolation: &project.isolation,
        files_directory: host.files_directory,
        files: &files,
        wanted: &prepared.wanted,
        host_ports: routed.is_none().then_some(host_ports),
        proxy: routed,
        inject_into: &project.env_services,
        variables: &prepared.variables,
        stays: &stays(project, prepared),
        images,
        passed: &passed,
    })
    .map_err(|found| judge::reject(project, &prepared.model, found))?;
    let mut differences = prepared.differences.clone();
    differences.extend(rendered.differences);
    differences.sort();
    differences.dedup();
    Ok(Wanted {
        digest: crate::plan::digest(&rendered.model, &project.steps),
        model: rendered.model,
        differences,
        bundle: project.proxy.files(owner, &full, &prepared.access),
        addresses,
        routed: prepared.routes.iter().map(|route| route.service.clone()).collect(),
    })
}
