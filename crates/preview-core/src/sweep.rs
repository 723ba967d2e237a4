//! What of a host's previews is to go, and why: expired, closed, crashed, orphaned in every direction. Pure.
//!
//! What is decided here is a suspicion. Whoever acts on it takes the preview's lock without waiting, and asks again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::dns::Owned;
use crate::engine::Inventory;
use crate::fence::{self, Tombstone};
use crate::host::Survey;
use crate::name::{AppName, PreviewName, project_name};
use crate::ownership;
use crate::project::Target;
use crate::proxy::pages;
use crate::queue::TICKET;
use crate::state::{Phase, State, Subject};
use crate::units::age;

/// The directory, below the base directory, of what is known of images that were pulled for previews.
pub const IMAGES: &str = ".images";

/// Who is right that a preview of this application has nothing to be a preview of any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// The application that the lists are about; previews of others are not judged by them.
    pub app: String,
    /// The repository that they are of, where known: two may have one name for their applications.
    pub repository: Option<String>,
    /// Numbers of the pull requests that are open; `None`: not known.
    pub pulls: Option<BTreeSet<u64>>,
    /// Branches that exist; `None`: not known.
    pub branches: Option<BTreeSet<String>>,
    /// What was deployed within this time may be missing in the lists.
    pub grace: Duration,
}

/// Whole seconds.
pub type Duration = std::time::Duration;

/// Why a preview is to go, or to be mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Why {
    /// Its time is over.
    Expired {
        /// Since then.
        at: Timestamp,
    },
    /// It was closed, and the destroy died.
    Closed {
        /// The event.
        at: Timestamp,
    },
    /// Its pull request is not open, or its branch is gone.
    NotOpen {
        /// Which.
        subject: String,
    },
    /// Its run died, and nothing can come of it.
    Crashed {
        /// What the run was doing.
        phase: Phase,
    },
    /// Its containers are gone, and it has no data.
    NoContainers,
    /// There is no state file for what runs, or lies there.
    NoState,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { at } => write!(f, "expired at {at}"),
            Self::Closed { at } => write!(f, "closed at {at}, and its destroy did not end"),
            Self::NotOpen { subject } => write!(f, "{subject} is not open any more"),
            Self::Crashed { phase } => write!(f, "its run died while {phase}"),
            Self::NoContainers => f.write_str("its containers are gone"),
            Self::NoState => f.write_str("there is no state of it"),
        }
    }
}

/// A preview that is to go, or to be mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Which.
    pub target: Target,
    /// Why.
    pub why: Why,
}

/// Something that looks wrong, and is left alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Left {
    /// What.
    pub what: String,
    /// Why it is left, and what to do.
    pub why: String,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Previews to remove.
    pub remove: Vec<Suspect>,
    /// Previews whose update died: the version before is to run again.
    pub mend: Vec<Suspect>,
    /// Previews that stand, with the ticket of a run that waited for a larger place: if that run is dead, the ticket goes.
    pub tickets: Vec<Target>,
    /// Tombstones past their time, and what cannot be one.
    pub tombstones: Vec<String>,
    /// What is left alone.
    pub left: Vec<Left>,
    /// What may be an empty directory of a preview, and goes if it is.
    pub empty: Vec<String>,
}

/// Why a preview with this state has to go, as far as the state alone says.
#[must_use]
pub fn judge(state: &State, tombstones: &[Tombstone], open: &Open, now: Timestamp) -> Option<Why> {
    if let Some(tombstone) = fence::closed(state, tombstones) {
        return Some(Why::Closed { at: tombstone.at });
    }
    if let Some(at) = expired(state, now) {
        return Some(Why::Expired { at });
    }
    let other = matches!((&state.repository, &open.repository), (Some(one), Some(other)) if one != other);
    if state.app == open.app && !other && now.duration_since(state.updated_at) > signed(open.grace) {
        let gone = match &state.subject {
            Subject::Pull(number) => open.pulls.as_ref().is_some_and(|pulls| !pulls.contains(number)),
            Subject::Branch(branch) => open.branches.as_ref().is_some_and(|branches| !branches.contains(branch)),
        };
        if gone {
            return Some(Why::NotOpen { subject: state.subject.to_string() });
        }
    }
    state.phase.in_flight().then_some(Why::Crashed { phase: state.phase })
}

/// Since when a preview's time is over.
#[must_use]
pub fn expired(state: &State, now: Timestamp) -> Option<Timestamp> {
    state.expiry().filter(|at| *at <= now)
}

/// Whether there is a good version that may run again after a run that died.
#[must_use]
pub fn mendable(state: &State) -> bool {
    state.good.is_some() && state.phase != Phase::Destroying
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// Projects that the proxy is told of, and that are nobody's: neither a state, of whatever phase, nor anything on the engine has them.
#[must_use]
pub fn stray_routes(led: Vec<String>, survey: &Survey, inventory: &Inventory) -> Vec<String> {
    let states = survey.files.iter().filter(|(path, _)| path.ends_with("/state.json"));
    // One that cannot be read may be of any project, so nobody's routes are touched then.
    let Ok(states) = states.map(|(path, text)| State::parse(path, text)).collect::<Result<Vec<_>, _>>() else {
        return Vec::new();
    };
    let running = inventory.containers.iter().filter_map(|container| container.labels.get(ownership::COMPOSE_PROJECT));
    let known: BTreeSet<&String> = states.iter().map(|state| &state.project).chain(running).collect();
    led.into_iter().filter(|project| !known.contains(project)).collect()
}

/// A page of a preview that is not there any more tells of its failure for so long.
const PAGE_LIFE: SignedDuration = SignedDuration::from_hours(24);

/// Status pages that are nobody's any more.
#[must_use]
pub fn old_pages(base: &str, survey: &Survey) -> Vec<String> {
    let directory = format!("{base}/{}/", pages::DIRECTORY);
    let states = survey.files.iter().filter(|(path, _)| path.ends_with("/state.json"));
    let Ok(states) = states.map(|(path, text)| State::parse(path, text)).collect::<Result<Vec<_>, _>>() else {
        return Vec::new();
    };
    let addresses = states.iter().flat_map(|state| &state.addresses);
    let known: BTreeSet<String> = addresses.filter_map(|address| pages::file(&address.url)).collect();
    let long_ago = survey.facts.now - PAGE_LIFE.as_secs();
    let stale = survey.files.iter().filter(|(path, text)| {
        path.strip_prefix(&directory).is_some_and(|file| {
            file != pages::GONE && !known.contains(file) && pages::written(text).is_none_or(|at| at < long_ago)
        })
    });
    stale.map(|(path, _)| path.clone()).collect()
}

/// What the engine has of one preview.
#[derive(Default)]
struct Objects {
    containers: usize,
    volumes: usize,
    all: usize,
}

/// What is to be done with a host in this condition. Of the survey, these patterns are looked at: `*/*/state.json` and
/// `.tombstones/*/*.json` to read; `*`, `*/*`, `*/*/*` and `*/*/.*` to list.
#[must_use]
pub fn decide(base: &str, survey: &Survey, inventory: &Inventory, open: &Open) -> Decision {
    let now = Timestamp::from_second(survey.facts.now).unwrap_or_else(|_| Timestamp::now());
    let mut decision = Decision::default();
    let (objects, strange) = objects(base, inventory);
    if strange > 0 {
        decision.left.push(Left {
            what: format!("{strange} objects of the engine"),
            why: "their labels do not say of which base directory they are".to_owned(),
        });
    }
    let mut known = BTreeSet::new();
    for (path, text) in survey.files.iter().filter(|(path, _)| path.ends_with("/state.json")) {
        let Some((app, name)) = place(base, path) else { continue };
        known.insert((app.to_owned(), name.to_owned()));
        let state = match State::parse(path, text) {
            Ok(state) if state.app == app && state.name == name => state,
            Ok(_) => {
                decision.left.push(Left { what: path.clone(), why: "it is the state of another preview".to_owned() });
                continue;
            }
            Err(error) => {
                let why = format!("{error}; `preview destroy --app {app} --name {name}` removes the preview");
                decision.left.push(Left { what: path.clone(), why });
                continue;
            }
        };
        let target = Target { app: app.to_owned(), name: name.to_owned(), project: state.project.clone() };
        if survey.paths.contains(&target.file(base, TICKET)) {
            decision.tickets.push(target.clone());
        }
        let there = objects.get(&(app.to_owned(), name.to_owned()));
        let gone = state.good.is_some() && there.is_none_or(|there| there.containers == 0);
        match judge(&state, &fence::tombstones(&survey.files, app, name), open, now) {
            Some(why @ Why::Crashed { .. }) if mendable(&state) => decision.mend.push(Suspect { target, why }),
            Some(why) => decision.remove.push(Suspect { target, why }),
            None if gone && there.is_some_and(|there| there.volumes > 0) => decision.left.push(Left {
                what: format!("{app} {name}"),
                why: "its containers are gone, but not its volumes: the next deploy brings it back".to_owned(),
            }),
            None if gone => decision.remove.push(Suspect { target, why: Why::NoContainers }),
            None => {}
        }
    }

    let mut orphans: BTreeSet<(String, String)> = objects.keys().filter(|key| !known.contains(*key)).cloned().collect();
    for ((app, name), entries) in directories(base, survey) {
        let key = (app.to_owned(), name.to_owned());
        if known.contains(&key) || orphans.contains(&key) {
            continue;
        }
        if entries.iter().all(|entry| is_ours(entry)) && entries.iter().any(|entry| *entry != ".env") {
            orphans.insert(key);
        } else {
            let what = format!("{base}/{app}/{name}");
            decision.left.push(Left { what, why: "it is no preview's directory".to_owned() });
        }
    }
    for (app, name) in orphans {
        match (AppName::parse(&app), PreviewName::parse(&name)) {
            (Ok(app_name), Ok(preview)) => {
                let project = project_name(&app_name, &preview);
                decision.remove.push(Suspect { target: Target { app, name, project }, why: Why::NoState });
            }
            _ => decision
                .left
                .push(Left { what: format!("{app:?} {name:?}"), why: "these labels name no preview".to_owned() }),
        }
    }
    // Compose knows the project by its name alone: removing one would remove the other's.
    let others = elsewhere(base, inventory);
    let shared = |suspect: &Suspect| others.get(&(suspect.target.app.clone(), suspect.target.name.clone()));
    let mut spared = Vec::new();
    for suspects in [&mut decision.remove, &mut decision.mend] {
        suspects.retain(|suspect| {
            let Some(other) = shared(suspect) else { return true };
            let what = format!("{} {}", suspect.target.app, suspect.target.name);
            let why = format!("{}, but objects of that name belong to the previews below {other}", suspect.why);
            spared.push(Left { what, why: why.replace(char::is_control, "?") });
            false
        });
    }
    decision.left.extend(spared);
    decision.empty = empty(base, survey);
    for (path, text) in survey.files.iter().filter(|(path, _)| fence::of_path(path).is_some()) {
        if serde_json::from_str::<Tombstone>(text).map_or(true, |tombstone| fence::past(&tombstone, now)) {
            decision.tombstones.push(path.clone());
        }
    }
    decision.left.sort();
    decision
}

/// What DNS records of this VM say of previews that there is no state of: those are to go too. `already` is what is known to go.
#[must_use]
pub fn orphaned_records(
    base: &str,
    survey: &Survey,
    listed: &[Owned],
    already: &[Suspect],
) -> (Vec<Suspect>, Vec<Left>) {
    let known = |app: &str, name: &str| {
        let state = format!("{base}/{app}/{name}/state.json");
        survey.files.contains_key(&state)
            || already.iter().any(|suspect| suspect.target.app == app && suspect.target.name == name)
    };
    let (mut orphans, mut left) = (BTreeMap::new(), Vec::new());
    for owned in listed {
        let preview = owned
            .preview
            .as_ref()
            .and_then(|(app, name)| Some((AppName::parse(app).ok()?, PreviewName::parse(name).ok()?)));
        let Some((app, name)) = preview else {
            let what = format!("the DNS record of {}", owned.host);
            let why = format!("its mark `{}` names no preview", owned.mark.replace(char::is_control, "?"));
            left.push(Left { what, why });
            continue;
        };
        if !known(app.as_str(), name.as_str()) {
            let target = Target { app: app.to_string(), project: project_name(&app, &name), name: name.to_string() };
            orphans.insert((target.app.clone(), target.name.clone()), Suspect { target, why: Why::NoState });
        }
    }
    (orphans.into_values().collect(), left)
}

/// Application and name of a path directly in a preview's directory.
fn place<'a>(base: &str, path: &'a str) -> Option<(&'a str, &'a str)> {
    let mut parts = path.strip_prefix(base)?.strip_prefix('/')?.splitn(3, '/');
    let (app, name) = (parts.next()?, parts.next()?);
    parts.next().map(|_| (app, name))
}

/// Whether these name a preview.
fn is_name(app: &str, name: &str) -> bool {
    AppName::parse(app).is_ok() && PreviewName::parse(name).is_ok()
}

/// The directories that may be previews', with what is in them.
fn directories<'a>(base: &str, survey: &'a Survey) -> BTreeMap<(&'a str, &'a str), Vec<&'a str>> {
    let mut found: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for path in &survey.paths {
        let Some(inside) = path.strip_prefix(base).and_then(|rest| rest.strip_prefix('/')) else { continue };
        let parts: Vec<&str> = inside.split('/').collect();
        if let [app, name, entry] = parts[..]
            && is_name(app, name)
        {
            found.entry((app, name)).or_default().push(entry);
        }
    }
    found
}

/// Paths where an application's or a preview's directory would be, with nothing in them, the deeper first.
fn empty(base: &str, survey: &Survey) -> Vec<String> {
    let inhabited = directories(base, survey);
    let mut found = Vec::new();
    for path in &survey.paths {
        let Some(inside) = path.strip_prefix(base).and_then(|rest| rest.strip_prefix('/')) else { continue };
        let empty = match *inside.split('/').collect::<Vec<_>>() {
            [app] => AppName::parse(app).is_ok() && !inhabited.keys().any(|(of, _)| *of == app),
            [app, name] => is_name(app, name) && !inhabited.contains_key(&(app, name)),
            _ => false,
        };
        if empty {
            found.push(path.clone());
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.len()));
    found
}

/// Whether a file in a preview's directory is one of those that we make.
fn is_ours(entry: &str) -> bool {
    matches!(entry, "state.json" | ".lock" | ".env" | "queue.json")
        || entry.starts_with(".preview-tmp-")
        || (["stack-", "routes-", "tree-"].iter().any(|kind| entry.starts_with(kind)) && entry.ends_with(".json"))
}

/// What the engine has, by preview; and how much of ours is of nobody knows which directory.
fn objects(base: &str, inventory: &Inventory) -> (BTreeMap<(String, String), Objects>, usize) {
    let mut found: BTreeMap<(String, String), Objects> = BTreeMap::new();
    let mut strange = 0;
    // What only holds on to the volume of files is nothing that runs.
    let of_container = |labels: &BTreeMap<String, String>| if labels.contains_key(ownership::FILES) { 3 } else { 0 };
    let containers = inventory.containers.iter().map(|container| (&container.labels, of_container(&container.labels)));
    let networks = inventory.networks.iter().map(|network| (&network.labels, 1));
    let volumes = inventory.volumes.iter().map(|volume| (&volume.labels, 2));
    let images = inventory.images.iter().map(|image| (&image.labels, 3));
    for (labels, kind) in containers.chain(networks).chain(volumes).chain(images) {
        match labels.get(ownership::BASE) {
            Some(of) if of == base => {}
            Some(_) => continue,
            None => {
                strange += 1;
                continue;
            }
        }
        let (Some(app), Some(name)) = (labels.get(ownership::APP), labels.get(ownership::NAME)) else {
            strange += 1;
            continue;
        };
        let objects = found.entry((app.clone(), name.clone())).or_default();
        objects.all += 1;
        match kind {
            0 => objects.containers += 1,
            2 => objects.volumes += 1,
            _ => {}
        }
    }
    (found, strange)
}

/// The previews that another base directory on the same engine has objects of, and which that is.
fn elsewhere(base: &str, inventory: &Inventory) -> BTreeMap<(String, String), String> {
    let containers = inventory.containers.iter().map(|container| &container.labels);
    let objects = inventory.networks.iter().chain(&inventory.volumes).chain(&inventory.images);
    let known = containers.chain(objects.map(|object| &object.labels)).filter_map(|labels| {
        let other = labels.get(ownership::BASE).filter(|of| *of != base)?;
        Some(((labels.get(ownership::APP)?.clone(), labels.get(ownership::NAME)?.clone()), other.clone()))
    });
    known.collect()
}

/// What of a preview that was removed is still there: the proof that nothing is.
#[must_use]
pub fn remains(base: &str, target: &Target, survey: &Survey, inventory: &Inventory) -> Vec<String> {
    let is_of = |labels: &BTreeMap<String, String>| {
        let has = |key: &str, value: &str| labels.get(key).is_some_and(|found| found == value);
        has(ownership::APP, &target.app) && has(ownership::NAME, &target.name) && has(ownership::BASE, base)
    };
    let containers = inventory.containers.iter().map(|found| ("container", &found.name, &found.labels));
    let networks = inventory.networks.iter().map(|found| ("network", &found.name, &found.labels));
    let volumes = inventory.volumes.iter().map(|found| ("volume", &found.name, &found.labels));
    let images = inventory.images.iter().map(|found| ("image", &found.name, &found.labels));
    let objects = containers.chain(networks).chain(volumes).chain(images);
    let objects = objects.filter(|(.., labels)| is_of(labels)).map(|(kind, name, _)| format!("{kind} {name}"));
    let directory = target.directory(base);
    let inside = |path: &&String| **path == directory || path.starts_with(&format!("{directory}/"));
    objects.chain(survey.paths.iter().filter(inside).map(|path| format!("file {path}"))).collect()
}

/// An image that was pulled for previews.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Pulled {
    /// Its name.
    pub image: String,
    /// When a pull of it last began.
    pub at: Timestamp,
    /// When the last pull that was begun ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<Timestamp>,
}

impl Pulled {
    /// Its file. The name is hashed: it may hold what no file name may.
    #[must_use]
    pub fn path(base: &str, image: &str) -> String {
        use sha2::Digest as _;
        let hash = sha2::Sha256::digest(image.as_bytes());
        let hash: String = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        format!("{base}/{IMAGES}/{hash}.json")
    }

    /// Its content.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        crate::state::line(self)
    }
}

/// The images that may go where the disk is short: pulled for previews, longer ago than this, and known by a file of the survey.
#[must_use]
pub fn old_images(survey: &Survey, older: Duration) -> Vec<(String, Pulled)> {
    let now = Timestamp::from_second(survey.facts.now).unwrap_or_else(|_| Timestamp::now());
    let records = survey.files.iter().filter(|(path, _)| path.contains(&format!("/{IMAGES}/")));
    let read = records.filter_map(|(path, text)| Some((path.clone(), serde_json::from_str::<Pulled>(text).ok()?)));
    read.filter(|(_, pulled)| now.duration_since(pulled.at) > signed(older)).collect()
}

/// For people: what would be removed, or was.
#[must_use]
pub fn say(suspect: &Suspect, now: Timestamp) -> String {
    let Suspect { target, why } = suspect;
    match why {
        Why::Expired { at } => format!("{} {}: expired {} ago", target.app, target.name, age(*at, now)),
        why => format!("{} {}: {why}", target.app, target.name),
    }
}

#[cfg(test)]
mod tests;
