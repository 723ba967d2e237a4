//! The resolved project before the policy looks at it, and everything that is wrong with it afterwards, all at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::Error;
use super::{dockerfiles, files};
use crate::fault::{Fault, FaultKind};
use crate::project::Project;
use crate::runtime::{Mirror, Resolved, Runtime, reads};
use crate::stack::{self, Difference, FileUse, Rejection, Violation};

/// All profiles, in Compose's spelling.
const ALL_PROFILES: &str = "*";

/// What the policy looked at.
pub(super) struct Judged {
    /// The model, its paths canonical.
    pub(super) model: Value,
    /// The files that it uses.
    pub(super) uses: Vec<FileUse>,
    /// What is refused or missing.
    pub(super) violations: Vec<Violation>,
}

/// Has Compose resolve the files. Where it cannot, or nothing is left, the error says what the reason often is.
pub(super) async fn resolve(runtime: &dyn Runtime, project: &Project, files: &Mirror) -> Result<Resolved, Error> {
    match files.resolve(runtime).await {
        Ok(resolved) if stack::service_names(&resolved.model).is_empty() => {
            Err(Error::invalid(no_service(&by_profile(runtime, project, files).await)))
        }
        Ok(mut resolved) => {
            resolved.warnings.extend(project.file_notes.iter().cloned());
            Ok(resolved)
        }
        Err(mut fault) if fault.kind == FaultKind::Invalid => {
            if fault.context.contains("undefined service") {
                let inactive = by_profile(runtime, project, files).await;
                fault.context.push_str(&inactive_dependency(&fault.context, &inactive));
            }
            for note in &project.file_notes {
                fault.context.push_str(&format!("\n{note}"));
            }
            Err(fault.into())
        }
        Err(fault) => Err(fault.into()),
    }
}

/// The services that have profiles, by profile. What Compose refuses is told as it is written.
async fn by_profile(runtime: &dyn Runtime, project: &Project, files: &Mirror) -> BTreeMap<String, BTreeSet<String>> {
    let models = match files.resolve_with(runtime, &[ALL_PROFILES]).await {
        Ok(resolved) => vec![resolved.model],
        Err(_) => reads::documents(&project.files, &project.repository),
    };
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (service, table) in models.iter().flat_map(stack::services) {
        let profiles = table.get("profiles").and_then(Value::as_array).into_iter().flatten();
        for profile in profiles.filter_map(Value::as_str) {
            found.entry(profile.to_owned()).or_default().insert(service.clone());
        }
    }
    found
}

fn how_to_switch_on(profile: &str) -> String {
    format!("`profiles = [{}]` in preview.toml, or --profile {profile}", json!(profile))
}

/// Why a project has no service.
fn no_service(inactive: &BTreeMap<String, BTreeSet<String>>) -> String {
    let Some(first) = inactive.keys().next() else { return "the Compose files define no service".to_owned() };
    let profiles: Vec<String> = inactive
        .iter()
        .map(|(profile, services)| format!("`{profile}` ({})", services.iter().cloned().collect::<Vec<_>>().join(", ")))
        .collect();
    format!(
        "every service of the Compose files belongs to a profile, and none of these is active: {}; switch one on with {}",
        profiles.join(", "),
        how_to_switch_on(first)
    )
}

/// What to add to Compose's word on an undefined service, where it has a profile that is not active.
fn inactive_dependency(said: &str, inactive: &BTreeMap<String, BTreeSet<String>>) -> String {
    let named = |service: &str| said.contains(&format!("\"{service}\""));
    let undefined = |service: &str| said.contains(&format!("undefined service \"{service}\""));
    let all = || inactive.iter().flat_map(|(profile, services)| services.iter().map(move |service| (service, profile)));
    let found = all().find(|(service, _)| undefined(service)).or_else(|| all().find(|(service, _)| named(service)));
    found.map_or_else(String::new, |(service, profile)| {
        format!(
            "\n`{service}` belongs to the profile `{profile}`, which is not active: switch it on with {}, or give the dependency `required: false`",
            how_to_switch_on(profile)
        )
    })
}

/// Takes out what is left out, and what harms nobody. What the configuration leaves out and the files do not have is wrong.
pub(super) async fn leave_out(
    runtime: &dyn Runtime,
    project: &Project,
    files: &Mirror,
    model: &mut Value,
    differences: &mut Vec<Difference>,
) -> Vec<Violation> {
    let place = &project.exclude_place;
    let known = stack::service_names(model);
    let mut found = Vec::new();
    let mut unknown: Vec<&String> = project.exclude.iter().filter(|name| !known.contains(*name)).collect();
    if !unknown.is_empty() {
        // Those of profiles that are not active are left out already.
        let inactive: BTreeSet<String> = by_profile(runtime, project, files).await.into_values().flatten().collect();
        unknown.retain(|name| !inactive.contains(*name));
    }
    let listed = || known.iter().cloned().collect::<Vec<_>>().join(", ");
    for name in unknown {
        let why = format!("there is no service `{name}` in the Compose files");
        found.push(Violation::input(place.as_str(), why, format!("there are: {}", listed())));
    }
    let names: BTreeSet<String> = project.exclude.iter().cloned().collect();
    if known.is_subset(&names) {
        let instead = format!("there are only: {}", listed());
        found.push(Violation::input(place.as_str(), "it leaves out every service", instead));
        return found;
    }
    found.extend(stack::exclude(model, &names, place, differences));
    stack::drop_optional(model, differences);
    stack::drop_harmless(model, &project.allowed, &project.isolation, differences);
    found
}

/// Looks at the files that the model uses, and judges it. Reads the file system below `repository` alone.
pub(super) fn judge(
    mut model: Value,
    repository: &Path,
    proxy_network: Option<&str>,
    allowed: &[stack::Allowance],
    caps: &stack::Caps,
) -> Result<Judged, Error> {
    let mut unseen = stack::host_paths(&model, repository);
    let mut violations = Vec::new();
    for file in stack::file_uses(&model).into_iter().filter(|file| !unseen.contains(&file.pointer)).collect::<Vec<_>>()
    {
        let may_be_missing = matches!(file.place, stack::Place::Mount { create: true });
        let missing = std::fs::metadata(&file.source).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        if missing && !may_be_missing {
            let value = Some(file.source.display().to_string());
            let why = "the file or directory does not exist";
            violations.push(Violation {
                value,
                ..Violation::input(file.key, why, "add it to the repository, or remove the entry")
            });
            unseen.insert(file.pointer);
        }
    }
    let before = model.clone();
    let uses = files::canonical(&mut model, &unseen)?;
    violations.extend(stack::links_out(&mut model, &before, &uses, repository));
    violations.extend(stack::violations(&model, repository, proxy_network, allowed));
    violations.extend(reads::dockerfiles(&model, repository));
    violations.extend(dockerfiles::violations(&model, repository, allowed));
    violations.extend(stack::image_ids(&model));
    violations.extend(stack::image_names(&model));
    violations.extend(stack::exceeded(&model, caps));
    Ok(Judged { model, uses, violations })
}

/// The services that the configuration names, each with the place where it does.
pub(super) fn named_services(project: &Project) -> Vec<(&String, &String)> {
    let routes = project.routes.iter().flatten().map(|route| (&route.service, &route.place));
    let steps = project.steps.iter().map(|step| (&step.service, &step.place));
    let health = project.health.iter().filter_map(|health| Some((health.service.as_ref()?, &health.place)));
    let injected = project.env_services.iter().map(|service| (service, &project.env_services_place));
    routes.chain(steps).chain(health).chain(injected).collect()
}

/// Services that the configuration names must be there.
pub(super) fn check_services(project: &Project, model: &Value) -> Vec<Violation> {
    let known = stack::service_names(model);
    let names = known.iter().cloned().collect::<Vec<_>>().join(", ");
    let missing = named_services(project).into_iter().filter(|(service, _)| !known.contains(*service));
    missing
        .map(|(service, place)| {
            if project.exclude.contains(service) {
                let why = format!("service `{service}` is left out, as {} says", project.exclude_place);
                return Violation::input(place.as_str(), why, "remove it from one of the two");
            }
            let why = format!("there is no service `{service}` in the Compose files");
            Violation::input(place.as_str(), why, format!("there are: {names}"))
        })
        .collect()
}

/// The rejection of a project, with values as its files have them and the services that it could do without. Reads the Compose files.
pub(super) fn reject(project: &Project, model: &Value, mut violations: Vec<Violation>) -> Error {
    attribute(&mut violations, model);
    violations.sort();
    violations.dedup();
    let already: BTreeSet<String> = project.exclude.iter().cloned().collect();
    let kept = named_services(project).into_iter().map(|(service, _)| service.clone()).collect();
    let exclude = stack::proposal(model, &violations, &already, &kept, &project.caps);
    stack::as_written(&mut violations, &reads::documents(&project.files, &project.repository), &project.directory);
    Error::Rejected(Box::new(Rejection { violations, exclude }))
}

/// Finds the services that violations are about by their keys. Names may hold dots: the longest that is there is meant.
fn attribute(violations: &mut [Violation], model: &Value) {
    let known = stack::service_names(model);
    for violation in violations.iter_mut().filter(|violation| violation.service.is_none()) {
        let key = violation.key.rsplit(": ").next().unwrap_or_default();
        let Some(rest) = key.strip_prefix("services.") else { continue };
        let about = |name: &&String| {
            rest == name.as_str() || rest.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        violation.service = known.iter().filter(about).max_by_key(|name| name.len()).cloned();
    }
}

/// Values of secrets and configs that name a variable of an environment file of the project: only Compose knows what that file makes of it.
/// A variable that is nowhere is wrong. Those of the configuration are known already.
pub(super) async fn file_variables(
    runtime: &dyn Runtime,
    files: &Mirror,
    model: &Value,
) -> Result<(crate::runtime::Variables, Vec<Violation>), Fault> {
    let wanted = environment_entries(model);
    let open: BTreeSet<String> =
        wanted.iter().map(|(_, name)| name.clone()).filter(|name| !files.variables().contains_key(name)).collect();
    let (usable, odd): (BTreeSet<String>, BTreeSet<String>) = open.into_iter().partition(|name| is_plain(name));
    let filled = if usable.is_empty() { BTreeMap::new() } else { reads::variables(runtime, files, usable).await? };
    let mut found = Vec::new();
    for (key, name) in wanted.into_iter().filter(|(_, name)| !files.variables().contains_key(name)) {
        if odd.contains(&name) {
            let why =
                "the variable cannot be passed on: it would change what the programs do that bring the preview up";
            found.push(Violation { value: Some(name), ..Violation::input(key, why, "give it another name") });
        } else if !filled.contains_key(&name) {
            let why = "the variable is not set for this preview";
            let instead =
                "set it in [env], [[secrets]] or [generate] of preview.toml, or in .env beside the Compose files";
            found.push(Violation { value: Some(name), ..Violation::input(key, why, instead) });
        }
    }
    Ok((filled, found))
}

/// The variables that secrets and configs take their values from, by key.
fn environment_entries(model: &Value) -> Vec<(String, String)> {
    let of = |kind: &'static str| {
        stack::entries(model, kind).filter_map(move |(name, table)| {
            let variable = table.get("environment").and_then(Value::as_str)?;
            Some((format!("{kind}.{name}.environment"), variable.to_owned()))
        })
    };
    of("configs").chain(of("secrets")).collect()
}

/// Whether a variable may be set for the Compose CLI, as those of the configuration may.
fn is_plain(name: &str) -> bool {
    crate::config::VariableName::parse(name).is_ok()
}
