//! What Compose reads of this machine while it resolves a project, before it prints a model: looked up in the files beforehand.
//!
//! `docker compose config` follows `include` and `extends`, and puts the content of `env_file`s into what it prints, wherever they are: a pull
//! request could have a file of the runner shown to it. The model no longer says where a value came from, and Compose has no switch that
//! holds in all of its versions, so the files are looked through first. It fails closed: what cannot be read is refused. Where a path is made of variables,
//! Compose itself is asked what comes out.
//! Nothing else is taken from here; what the files mean is Compose's to say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::{Runtime, Source, Variables};
use crate::fault::{Fault, FaultKind};
use crate::secret::Secret;
use crate::stack::{Violation, normal};

/// No project has so many files; whoever writes one that includes itself in ever new ways ends here.
const MOST_FILES: usize = 500;
/// Links that are followed for one path, as Linux does.
const MOST_LINKS: usize = 40;
const OPERATION: &str = "look through the Compose files";

/// What was found in the files.
#[derive(Debug, Default)]
struct Looked {
    outside: Vec<Violation>,
    /// Paths with variables whose value is not known yet.
    open: BTreeSet<String>,
}

/// Everything outside of `repository` that Compose would read for this project.
///
/// # Errors
/// `Invalid`: a file is not YAML that can be checked, or a path's variables cannot be filled in.
pub(crate) async fn outside(
    runtime: &dyn Runtime,
    source: &Source,
    repository: &Path,
) -> Result<Vec<Violation>, Fault> {
    let mut known = BTreeMap::new();
    loop {
        let (of, within, so_far) = (source.clone(), repository.to_owned(), known.clone());
        let looked = tokio::task::spawn_blocking(move || look(&of, &within, &so_far)).await;
        let looked =
            looked.map_err(|error| Fault::new(FaultKind::Failed, OPERATION, "the reader died").caused_by(error))??;
        if !looked.outside.is_empty() || looked.open.is_empty() {
            return Ok(looked.outside);
        }
        known.extend(filled_in(runtime, source, looked.open).await?);
    }
}

/// What these texts are once Compose has filled in their variables, with the project's own environment.
async fn filled_in(
    runtime: &dyn Runtime,
    source: &Source,
    texts: BTreeSet<String>,
) -> Result<BTreeMap<String, String>, Fault> {
    let failed =
        |error| Fault::new(FaultKind::Failed, OPERATION, "a temporary file cannot be written").caused_by(error);
    let labels: Map<String, Value> =
        texts.iter().enumerate().map(|(index, text)| (format!("l{index}"), Value::from(text.as_str()))).collect();
    let question = serde_json::json!({"services": {"paths": {"image": "none", "labels": labels}}}).to_string();
    let file = tempfile::Builder::new().suffix(".yml").tempfile().map_err(failed)?;
    tokio::fs::write(file.path(), question).await.map_err(failed)?;
    let asked = Source { files: vec![file.path().to_owned()], profiles: Vec::new(), ..source.clone() };
    let model = runtime.resolve(&asked).await?.model;
    let labels = model.pointer("/services/paths/labels");
    let value = |index: usize| labels?.get(format!("l{index}"))?.as_str().map(|text| text.replace("$$", "$"));
    texts
        .into_iter()
        .enumerate()
        .map(|(index, text)| {
            let unknown = || Fault::new(FaultKind::Invalid, OPERATION, format!("`{text}` cannot be filled in"));
            Ok((text.clone(), value(index).ok_or_else(unknown)?))
        })
        .collect()
}

/// The variables of these names that the project's environment has, its files included. A name has to be one that Compose takes.
///
/// # Errors
/// What Compose says when it does not take the files.
pub(crate) async fn variables(
    runtime: &dyn Runtime,
    source: &Source,
    names: BTreeSet<String>,
) -> Result<Variables, Fault> {
    // A sign in front tells an empty one from one that is not set.
    let text = |name: &str| format!("${{{name}+=}}${{{name}-}}");
    let filled = filled_in(runtime, source, names.iter().map(|name| text(name)).collect()).await?;
    let value = |name: String| {
        let value = filled.get(&text(&name))?.strip_prefix('=')?.to_owned();
        Some((name, Secret::new(value)))
    };
    Ok(names.into_iter().filter_map(value).collect())
}

/// Everything outside of `repository` that Compose would read for this project. What the pipeline itself names outside of it (`--compose`,
/// `--env-file`) is not looked at. Reads the file system.
///
/// # Errors
/// `Invalid`: a file is not YAML that can be checked.
fn look(source: &Source, repository: &Path, known: &BTreeMap<String, String>) -> Result<Looked, Fault> {
    let mut look = Look {
        repository,
        directory: &source.directory,
        known,
        open: BTreeSet::new(),
        found: Vec::new(),
        seen: BTreeSet::new(),
        queue: VecDeque::new(),
    };
    let dotenv = source.directory.join(".env");
    let env_files = if source.env_files.is_empty() { std::slice::from_ref(&dotenv) } else { &source.env_files };
    for file in source.files.iter().chain(env_files).filter(|file| file.starts_with(repository)) {
        if inside(repository, file).is_none() {
            let shown = file.strip_prefix(&source.directory).unwrap_or(file);
            look.refuse(
                shown.display().to_string(),
                &shown.display().to_string(),
                "a link leads outside the repository",
            );
        }
    }
    for file in &source.files {
        look.queue.push_back((file.clone(), source.directory.clone(), true));
    }
    while let Some((file, base, own)) = look.queue.pop_front() {
        if look.seen.insert((file.clone(), base.clone(), own)) {
            if look.seen.len() > MOST_FILES {
                return Err(Fault::new(FaultKind::Invalid, OPERATION, "they include more files than can be checked"));
            }
            look.file(&In { file: &file, base: &base, own })?;
        }
    }
    look.found.sort();
    look.found.dedup();
    Ok(Looked { outside: look.found, open: look.open })
}

/// Dockerfiles of a resolved model that a link leads to from inside the repository: the builder opens the directory of a Dockerfile by itself, and its
/// errors quote what it read. Reads the file system.
pub(crate) fn dockerfiles(model: &Value, repository: &Path) -> Vec<Violation> {
    let services = model.get("services").and_then(Value::as_object).into_iter().flatten();
    services
        .filter_map(|(name, service)| {
            let build = service.get("build")?;
            let context = build.get("context").and_then(Value::as_str).filter(|context| context.starts_with('/'))?;
            let file = build.get("dockerfile").and_then(Value::as_str).unwrap_or("Dockerfile");
            let path = normal(&Path::new(context).join(file));
            // One that is outside by its very text is the policy's to refuse.
            let linked = path.starts_with(repository) && inside(repository, &path).is_none();
            linked.then(|| Violation {
                key: format!("services.{name}.build.dockerfile"),
                value: Some(file.to_owned()),
                why: "a link leads outside the repository".to_owned(),
                instead: "put the file into the repository".to_owned(),
                ..Violation::default()
            })
        })
        .collect()
}

struct Look<'a> {
    repository: &'a Path,
    directory: &'a Path,
    known: &'a BTreeMap<String, String>,
    open: BTreeSet<String>,
    found: Vec<Violation>,
    /// Files, each with the directory that its paths refer to, and whether the project's own environment holds there.
    seen: BTreeSet<(PathBuf, PathBuf, bool)>,
    queue: VecDeque<(PathBuf, PathBuf, bool)>,
}

/// One file, for messages and paths.
struct In<'a> {
    file: &'a Path,
    base: &'a Path,
    /// Whether variables have the project's own values; an included file has an environment of its own.
    own: bool,
}

impl Look<'_> {
    fn refuse(&mut self, key: String, path: &str, why: &str) {
        self.found.push(Violation {
            key,
            value: Some(path.to_owned()),
            why: format!("{why}, and reading it would show a file of the machine that deploys"),
            instead: "put the file into the repository".to_owned(),
            ..Violation::default()
        });
    }

    /// Looks through one file. One that is not there is Compose's to tell of.
    fn file(&mut self, at: &In<'_>) -> Result<(), Fault> {
        let file = at.file;
        let invalid =
            |message: String| Fault::new(FaultKind::Invalid, OPERATION, format!("{}: {message}", file.display()));
        let text = match std::fs::read(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            read => read.map_err(|error| invalid(error.to_string()))?,
        };
        // YAML may come in other encodings, which Compose reads too.
        let text = String::from_utf8(text).map_err(|_| invalid("not UTF-8, so it cannot be checked".to_owned()))?;
        for document in documents(&text).map_err(invalid)? {
            for (index, entry) in document.get("include").and_then(Value::as_array).into_iter().flatten().enumerate() {
                self.include(at, &format!("include[{index}]"), entry);
            }
            for (name, service) in document.get("services").and_then(Value::as_object).into_iter().flatten() {
                let Some(service) = service.as_object() else { continue };
                self.service(at, name, service);
            }
        }
        Ok(())
    }

    fn include(&mut self, at: &In<'_>, key: &str, entry: &Value) {
        let paths = entry.get("path").unwrap_or(entry);
        let found: Vec<PathBuf> =
            texts(paths).into_iter().filter_map(|path| self.check(at, &format!("{key}.path"), path)).collect();
        let of_files = found.first().and_then(|file| file.parent()).map(Path::to_owned);
        let own = entry.get("project_directory").and_then(Value::as_str);
        let Some(directory) = (match own {
            Some(own) => self.check(at, &format!("{key}.project_directory"), own),
            None => of_files,
        }) else {
            return;
        };
        let env_files = entry.get("env_file").map(texts).unwrap_or_default();
        for path in &env_files {
            self.check(at, &format!("{key}.env_file"), path);
        }
        if env_files.is_empty() {
            let inner = In { base: &directory, ..*at };
            self.check(&inner, &format!("{key}.env_file"), ".env");
        }
        for file in found {
            self.queue.push_back((file, directory.clone(), false));
        }
    }

    fn service(&mut self, at: &In<'_>, name: &str, service: &Map<String, Value>) {
        for key in ["env_file", "label_file"] {
            for path in service.get(key).map(texts).unwrap_or_default() {
                self.check(at, &format!("services.{name}.{key}"), path);
            }
        }
        let extended = service.get("extends").and_then(|extends| extends.get("file")).and_then(Value::as_str);
        if let Some(file) = extended.and_then(|path| self.check(at, &format!("services.{name}.extends"), path)) {
            let base = file.parent().unwrap_or(at.base).to_owned();
            self.queue.push_back((file, base, at.own));
        }
    }

    /// The file that a path means, unless that is refused.
    fn check(&mut self, at: &In<'_>, key: &str, path: &str) -> Option<PathBuf> {
        let key = if at.file.parent() == Some(self.directory) {
            key.to_owned()
        } else {
            let file = at.file.strip_prefix(self.directory).unwrap_or(at.file);
            format!("{}: {key}", file.display())
        };
        let path = match self.known.get(path).filter(|_| at.own) {
            Some(value) => value,
            None if !path.contains('$') => path,
            None if at.own => {
                self.open.insert(path.to_owned());
                return None;
            }
            None => {
                let why = "in an included file variables have other values, so where it leads cannot be checked before it is read";
                self.found.push(Violation {
                    key,
                    value: Some(path.to_owned()),
                    why: why.to_owned(),
                    instead: "write the path out".to_owned(),
                    ..Violation::default()
                });
                return None;
            }
        };
        // The documented way to say "none".
        if path == "/dev/null" {
            return None;
        }
        if path.starts_with('~') {
            self.refuse(key, path, "it is somebody's home");
            return None;
        }
        let meant = normal(&at.base.join(path));
        let climbs = Path::new(path).is_absolute() && path.split('/').any(|part| part == "..");
        // Compose has not always agreed with itself on what a path is relative to, so each directory that it could be counts.
        let elsewhere = [Some(self.directory), at.file.parent()].into_iter().flatten().any(|base| {
            let other = normal(&base.join(path));
            inside(self.repository, &other).is_none() && other.exists()
        });
        if climbs || elsewhere || inside(self.repository, &meant).is_none() {
            self.refuse(key, path, "it is outside the repository");
            return None;
        }
        Some(meant)
    }
}

/// The documents of a file. Duplicate keys and tags that would make something else of a text are errors, as a value that is read differently
/// here and there would not be checked.
fn documents(text: &str) -> Result<Vec<Value>, String> {
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    options.non_finite_float_policy = serde_saphyr::NonFiniteFloatPolicy::AsString;
    let documents = serde_saphyr::from_multiple_with_options(text, options);
    documents.map_err(|error| format!("not YAML that can be checked: {error}"))
}

/// One text or a list of texts; of tables, their `path`.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(table) => table.get("path").map(texts).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// The path with its links followed, as far as it exists; `None` once it leaves the repository. Each step is looked at by itself: a link through
/// `/proc/self` means another place to another process.
fn inside(repository: &Path, path: &Path) -> Option<PathBuf> {
    let mut rest: VecDeque<OsString> = parts(path.strip_prefix(repository).ok()?);
    let mut found = repository.to_owned();
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            if found == repository {
                return None;
            }
            found.pop();
            continue;
        }
        found.push(&part);
        let Ok(target) = std::fs::read_link(&found) else { continue };
        links += 1;
        if links > MOST_LINKS {
            return None;
        }
        found.pop();
        let mut parts = if target.is_absolute() {
            found = repository.to_owned();
            parts(target.strip_prefix(repository).ok()?)
        } else {
            parts(&target)
        };
        parts.append(&mut rest);
        rest = parts;
    }
    Some(found)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests;
