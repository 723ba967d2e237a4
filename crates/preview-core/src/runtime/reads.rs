//! What Compose reads of this machine while it resolves a project, before it prints a model: looked up in the files beforehand.
//!
//! `docker compose config` follows `include` and `extends`, and puts the content of `env_file`s into what it prints, wherever they are: a pull
//! request could have a file of the runner shown to it. So the files are read here, once, and checked; what was read is written out again into a
//! directory of ours ([`mirror`](super::mirror)), in a form that no two parsers read differently, and that is all that Compose gets to see. It fails closed: what cannot be read is refused, and what
//! was not looked at is not there. Where a path is made of variables, Compose itself is asked what comes out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::mirror::Mirror;
use super::yaml::{self, Node};
use super::{Runtime, Source, Variables};
use crate::checkout::{self, ReadError};
use crate::fault::{Fault, FaultKind};
use crate::secret::Secret;
use crate::stack::{Violation, normal};

/// No project has so many files; whoever writes one that includes itself in ever new ways ends here.
const MOST_FILES: usize = 500;
const OPERATION: &str = "look through the Compose files";

/// What was found in the files.
#[derive(Debug, Default)]
struct Looked {
    outside: Vec<Violation>,
    /// Paths with variables whose value is not known yet.
    open: BTreeSet<String>,
    /// What Compose is to read: for each file its content.
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// Directories that Compose asks for.
    directories: BTreeSet<PathBuf>,
}

/// The project's files, checked and copied for Compose; or everything outside of `repository` that Compose would read for this project.
///
/// # Errors
/// `Invalid`: a file is not YAML that can be checked, or a path's variables cannot be filled in.
pub(crate) async fn copied(
    runtime: &dyn Runtime,
    source: &Source,
    repository: &Path,
) -> Result<Result<Mirror, Vec<Violation>>, Fault> {
    let mut known = BTreeMap::new();
    let mirror = Mirror::new(source, repository, runtime.scratch())?;
    loop {
        let (of, within, so_far, root) =
            (source.clone(), repository.to_owned(), known.clone(), mirror.root().to_owned());
        let looked = tokio::task::spawn_blocking(move || look(&of, &within, &so_far, &root)).await;
        let looked =
            looked.map_err(|error| Fault::new(FaultKind::Failed, OPERATION, "the reader died").caused_by(error))??;
        if !looked.outside.is_empty() {
            return Ok(Err(looked.outside));
        }
        mirror.put(&looked.files, &looked.directories)?;
        if looked.open.is_empty() {
            return Ok(Ok(mirror));
        }
        known.extend(filled_in(runtime, &mirror, looked.open).await?);
    }
}

/// What these texts are once Compose has filled in their variables, with the project's own environment.
async fn filled_in(
    runtime: &dyn Runtime,
    mirror: &Mirror,
    texts: BTreeSet<String>,
) -> Result<BTreeMap<String, String>, Fault> {
    let mut labels = Node::table([]);
    for (index, text) in texts.iter().enumerate() {
        labels.insert(&format!("l{index}"), Node::text(text));
    }
    let service = Node::table([("image", Node::text("none")), ("labels", labels)]);
    let question = Node::table([("services", Node::table([("paths", service)]))]);
    let model = mirror.ask(runtime, &yaml::write(&[question])).await?;
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
    mirror: &Mirror,
    names: BTreeSet<String>,
) -> Result<Variables, Fault> {
    // A sign in front tells an empty one from one that is not set.
    let text = |name: &str| format!("${{{name}+=}}${{{name}-}}");
    let filled = filled_in(runtime, mirror, names.iter().map(|name| text(name)).collect()).await?;
    let value = |name: String| {
        let value = filled.get(&text(&name))?.strip_prefix('=')?.to_owned();
        Some((name, Secret::new(value)))
    };
    Ok(names.into_iter().filter_map(value).collect())
}

/// The documents of these files of a project, for messages alone: one that cannot be read says nothing.
pub(crate) fn documents(files: &[PathBuf], repository: &Path) -> Vec<Value> {
    let texts = files.iter().filter_map(|file| String::from_utf8(content(repository, file).ok()??).ok());
    texts.filter_map(|text| yaml::read(&text).ok()).flatten().map(|document| document.to_json()).collect()
}

/// The content of a Compose file: one of the repository stays in it, and any other was named by the pipeline.
fn content(repository: &Path, file: &Path) -> Result<Option<Vec<u8>>, ReadError> {
    if file.starts_with(repository) { checkout::read(repository, file) } else { checkout::read_named(file) }
}

/// Looks through all files of a project. Reads the file system.
///
/// # Errors
/// `Invalid`: a file is not YAML that can be checked.
fn look(source: &Source, repository: &Path, known: &BTreeMap<String, String>, mirror: &Path) -> Result<Looked, Fault> {
    let mut look = Look {
        repository,
        directory: &source.directory,
        known,
        mirror,
        looked: Looked::default(),
        seen: BTreeSet::new(),
        queue: VecDeque::new(),
    };
    look.looked.directories.insert(source.directory.clone());
    let dotenv = source.directory.join(".env");
    let env_files = if source.env_files.is_empty() { std::slice::from_ref(&dotenv) } else { &source.env_files };
    for file in env_files.iter().filter(|file| file.starts_with(repository)) {
        let shown = file.strip_prefix(&source.directory).unwrap_or(file).display().to_string();
        look.copy(&shown, &shown, file);
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
    look.looked.outside.sort();
    look.looked.outside.dedup();
    Ok(look.looked)
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
            // In a model every dollar sign stands doubled.
            let path = normal(&Path::new(context).join(file));
            let path = PathBuf::from(path.to_string_lossy().replace("$$", "$"));
            // One that is outside by its very text is the policy's to refuse.
            let linked = path.starts_with(repository) && checkout::resolve(repository, &path).is_none();
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
    /// Where the copy of `/` is that Compose sees.
    mirror: &'a Path,
    looked: Looked,
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
        self.looked.outside.push(Violation {
            key,
            value: Some(path.to_owned()),
            why: format!("{why}, and reading it would show a file of the machine that deploys"),
            instead: "put the file into the repository".to_owned(),
            ..Violation::default()
        });
    }

    /// Looks through one file. One that is not there is Compose's to tell of.
    fn file(&mut self, at: &In<'_>) -> Result<(), Fault> {
        let shown = at.file.strip_prefix(self.directory).unwrap_or(at.file).display().to_string();
        let invalid = |message: String| Fault::new(FaultKind::Invalid, OPERATION, message);
        let content = match content(self.repository, at.file) {
            Ok(Some(content)) => content,
            Ok(None) => return Ok(()),
            Err(ReadError::Outside) => {
                self.refuse(shown.clone(), &shown, &ReadError::Outside.to_string());
                return Ok(());
            }
            Err(error) => return Err(invalid(format!("{shown}: {error}"))),
        };
        // YAML may come in other encodings, which Compose reads too.
        let text = String::from_utf8(content)
            .map_err(|_| invalid(format!("{shown}: it is not UTF-8, so it cannot be checked")))?;
        let mut documents =
            yaml::read(&text).map_err(|wrong| invalid(format!("{shown}:{}: {}", wrong.line, wrong.why)))?;
        for document in &mut documents {
            self.document(at, document);
        }
        self.looked.files.insert(at.file.to_owned(), yaml::write(&documents).into_bytes());
        Ok(())
    }

    fn document(&mut self, at: &In<'_>, document: &mut Node) {
        for (index, entry) in document.get_mut("include").into_iter().flat_map(Node::elements_mut).enumerate() {
            self.include(at, &format!("include[{index}]"), entry);
        }
        for kind in ["services", "jobs"] {
            for (name, service) in document.get_mut(kind).into_iter().flat_map(Node::entries_mut) {
                self.service(at, &format!("{kind}.{name}"), service);
            }
        }
    }

    fn include(&mut self, at: &In<'_>, key: &str, entry: &mut Node) {
        let mut found = Vec::new();
        let is_table = entry.get_mut("path").is_some();
        let paths = if is_table { entry.get_mut("path") } else { Some(&mut *entry) };
        for path in paths.map(texts).unwrap_or_default() {
            found.extend(self.check(at, &format!("{key}.path"), path));
        }
        let directory = match entry.get_mut("project_directory").filter(|node| node.as_text().is_some()) {
            Some(own) => self.check(at, &format!("{key}.project_directory"), own),
            None => found.first().and_then(|file| file.parent()).map(Path::to_owned),
        };
        let Some(directory) = directory else { return };
        self.looked.directories.insert(directory.clone());
        let env_files = entry.get_mut("env_file").map(texts).unwrap_or_default();
        let key = format!("{key}.env_file");
        if env_files.is_empty() {
            let inner = In { base: &directory, ..*at };
            self.check_and_copy(&inner, &key, &mut Node::text(".env"));
        }
        for path in env_files {
            self.check_and_copy(at, &key, path);
        }
        for file in found {
            self.queue.push_back((file, directory.clone(), false));
        }
    }

    fn service(&mut self, at: &In<'_>, place: &str, service: &mut Node) {
        for key in ["env_file", "label_file"] {
            for path in service.get_mut(key).map(texts).unwrap_or_default() {
                self.check_and_copy(at, &format!("{place}.{key}"), path);
            }
        }
        let extended = service.get_mut("extends").and_then(|extends| extends.get_mut("file"));
        if let Some(file) = extended.and_then(|path| self.check(at, &format!("{place}.extends"), path)) {
            let base = file.parent().unwrap_or(at.base).to_owned();
            self.queue.push_back((file, base, at.own));
        }
        // Containers that run before the service have files of their own.
        for (index, hook) in service.get_mut("pre_start").into_iter().flat_map(Node::elements_mut).enumerate() {
            self.service(at, &format!("{place}.pre_start[{index}]"), hook);
        }
    }

    fn check_and_copy(&mut self, at: &In<'_>, key: &str, path: &mut Node) {
        let shown = path.as_text().unwrap_or_default().to_owned();
        if let Some(file) = self.check(at, key, path) {
            self.copy(&self.place(at, key), &shown, &file);
        }
    }

    /// Has Compose find this file, whatever directory it takes a relative path from.
    fn copy(&mut self, key: &str, shown: &str, file: &Path) {
        match checkout::read(self.repository, file) {
            Ok(Some(content)) => {
                self.looked.files.insert(file.to_owned(), content);
            }
            Ok(None) => {}
            Err(error @ ReadError::Outside) => self.refuse(key.to_owned(), shown, &error.to_string()),
            Err(error) => self.looked.outside.push(Violation {
                key: key.to_owned(),
                value: Some(shown.to_owned()),
                why: error.to_string(),
                instead: "name a file with one variable a line".to_owned(),
                ..Violation::default()
            }),
        }
    }

    /// A key, with its file unless that is one of the project's own.
    fn place(&self, at: &In<'_>, key: &str) -> String {
        if at.file.parent() == Some(self.directory) {
            return key.to_owned();
        }
        let file = at.file.strip_prefix(self.directory).unwrap_or(at.file);
        format!("{}: {key}", file.display())
    }

    /// The file that a path means, unless that is refused. The path is replaced by what Compose finds at that place.
    fn check(&mut self, at: &In<'_>, key: &str, node: &mut Node) -> Option<PathBuf> {
        let key = self.place(at, key);
        let path = node.as_text()?.to_owned();
        let path = match self.known.get(&path).filter(|_| at.own) {
            Some(value) => value.clone(),
            None if !path.contains('$') => path,
            None if at.own => {
                self.looked.open.insert(path);
                return None;
            }
            None => {
                let why = "in an included file variables have other values, so where it leads cannot be checked before it is read";
                self.looked.outside.push(Violation {
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
            *node = Node { content: Node::text("/dev/null").content, tag: node.tag };
            return None;
        }
        if path.starts_with('~') {
            self.refuse(key, &path, "it is somebody's home");
            return None;
        }
        let meant = normal(&at.base.join(&path));
        let absolute = Path::new(&path).is_absolute();
        let climbs = absolute && path.split('/').any(|part| part == "..");
        // Compose has not always agreed with itself on what a path is relative to, so each directory that it could be counts.
        let inside = |path: &Path| checkout::resolve(self.repository, path).is_some();
        let elsewhere = [Some(self.directory), at.file.parent()].into_iter().flatten().any(|base| {
            let other = normal(&base.join(&path));
            !inside(&other) && other.exists()
        });
        if climbs || elsewhere || !inside(&meant) {
            self.refuse(key, &path, "it is outside the repository");
            return None;
        }
        let seen = if absolute { format!("{}{path}", self.mirror.display()) } else { path };
        *node = Node { content: Node::text(&seen.replace('$', "$$")).content, tag: node.tag };
        Some(meant)
    }
}

/// One text or a list of texts; of tables, their `path`.
fn texts(node: &mut Node) -> Vec<&mut Node> {
    match node.content {
        yaml::Content::Scalar(_) => vec![node],
        yaml::Content::List(_) => node.elements_mut().flat_map(texts).collect(),
        yaml::Content::Table(_) => node.get_mut("path").map(texts).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
