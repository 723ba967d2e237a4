//! What Compose reads of this machine while it resolves a project, before it prints a model: looked up in the files beforehand.
//!
//! `docker compose config` follows `include` and `extends`, and puts the content of `env_file`s into what it prints, wherever they are: a pull
//! request could have a file of the runner shown to it. The model no longer says where a value came from, and Compose has no switch that
//! holds in all of its versions, so the files are looked through first. It fails closed: what cannot be read, or names its path by a variable, is refused.
//! Nothing else is taken from here; what the files mean is Compose's to say.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::Source;
use crate::fault::{Fault, FaultKind};
use crate::stack::{Violation, normal};

/// No project has so many files; whoever writes one that includes itself in ever new ways ends here.
const MOST_FILES: usize = 500;
/// Links that are followed for one path, as Linux does.
const MOST_LINKS: usize = 40;
const OPERATION: &str = "look through the Compose files";

/// Everything outside of `repository` that Compose would read for this project. What the pipeline itself names outside of it (`--compose`,
/// `--env-file`) is not looked at. Reads the file system.
///
/// # Errors
/// `Invalid`: a file is not YAML that can be checked.
pub(crate) fn outside(source: &Source, repository: &Path) -> Result<Vec<Violation>, Fault> {
    let mut look = Look {
        repository,
        directory: &source.directory,
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
        look.queue.push_back((file.clone(), source.directory.clone()));
    }
    while let Some((file, base)) = look.queue.pop_front() {
        if look.seen.insert((file.clone(), base.clone())) {
            if look.seen.len() > MOST_FILES {
                return Err(Fault::new(FaultKind::Invalid, OPERATION, "they include more files than can be checked"));
            }
            look.file(&file, &base)?;
        }
    }
    look.found.sort();
    look.found.dedup();
    Ok(look.found)
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
                why: format!("{file} leads outside the repository by a link"),
                instead: "put the file into the repository".to_owned(),
            })
        })
        .collect()
}

struct Look<'a> {
    repository: &'a Path,
    directory: &'a Path,
    found: Vec<Violation>,
    /// Files, each with the directory that its paths refer to.
    seen: BTreeSet<(PathBuf, PathBuf)>,
    queue: VecDeque<(PathBuf, PathBuf)>,
}

/// One file, for messages and paths.
struct In<'a> {
    file: &'a Path,
    base: &'a Path,
}

impl Look<'_> {
    fn refuse(&mut self, key: String, path: &str, why: &str) {
        self.found.push(Violation {
            key,
            why: format!("{path}: {why}, and reading it would show a file of the machine that deploys"),
            instead: "put the file into the repository".to_owned(),
        });
    }

    /// Looks through one file. One that is not there is Compose's to tell of.
    fn file(&mut self, file: &Path, base: &Path) -> Result<(), Fault> {
        let invalid =
            |message: String| Fault::new(FaultKind::Invalid, OPERATION, format!("{}: {message}", file.display()));
        let text = match std::fs::read(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            read => read.map_err(|error| invalid(error.to_string()))?,
        };
        // YAML may come in other encodings, which Compose reads too.
        let text = String::from_utf8(text).map_err(|_| invalid("not UTF-8, so it cannot be checked".to_owned()))?;
        let at = In { file, base };
        for document in documents(&text).map_err(invalid)? {
            for (index, entry) in document.get("include").and_then(Value::as_array).into_iter().flatten().enumerate() {
                self.include(&at, &format!("include[{index}]"), entry);
            }
            for (name, service) in document.get("services").and_then(Value::as_object).into_iter().flatten() {
                let Some(service) = service.as_object() else { continue };
                self.service(&at, name, service);
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
            let inner = In { file: at.file, base: &directory };
            self.check(&inner, &format!("{key}.env_file"), ".env");
        }
        for file in found {
            self.queue.push_back((file, directory.clone()));
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
            self.queue.push_back((file, base));
        }
    }

    /// The file that a path means, unless that is refused.
    fn check(&mut self, at: &In<'_>, key: &str, path: &str) -> Option<PathBuf> {
        // The documented way to say "none".
        if path == "/dev/null" {
            return None;
        }
        let key = if at.file.parent() == Some(self.directory) {
            key.to_owned()
        } else {
            let file = at.file.strip_prefix(self.directory).unwrap_or(at.file);
            format!("{}: {key}", file.display())
        };
        if path.contains('$') || path.starts_with('~') {
            self.found.push(Violation {
                key,
                why: format!("`{path}` depends on variables, so where it leads cannot be checked before it is read"),
                instead: "write the path out".to_owned(),
            });
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
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::runtime::Variables;

    /// A repository beside a secret, with these files.
    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new(files: &[(&str, &str)]) -> Self {
            let place = Self { dir: tempfile::tempdir().unwrap() };
            fs::create_dir(place.dir.path().join("repo")).unwrap();
            fs::write(place.dir.path().join("secret.env"), "TOKEN=planted\n").unwrap();
            for (name, text) in files {
                let path = place.root().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            place
        }

        fn root(&self) -> PathBuf {
            fs::canonicalize(self.dir.path()).unwrap().join("repo")
        }

        fn look(&self) -> Result<Vec<String>, Fault> {
            let root = self.root();
            let source = Source {
                files: vec![root.join("compose.yml")],
                directory: root.clone(),
                env_files: vec![],
                profiles: vec![],
                project: "p".into(),
                variables: Variables::new(),
            };
            outside(&source, &root).map(|found| found.into_iter().map(|violation| violation.key).collect())
        }
    }

    fn look(compose: &str) -> Vec<String> {
        Place::new(&[("compose.yml", compose), ("sub/inside.env", "A=1\n"), ("sub/more.yml", "services: {}\n")])
            .look()
            .unwrap()
    }

    #[test]
    fn files_of_the_repository_are_read() {
        let compose = "
include: [sub/more.yml, {path: [sub/more.yml], project_directory: sub, env_file: sub/inside.env}, {path: sub/more.yml, env_file: /dev/null}]
services:
  a: {image: x, env_file: sub/inside.env, label_file: [./sub/inside.env], extends: {file: sub/more.yml, service: a}}
  b: {image: x, env_file: [{path: sub/inside.env, format: raw}, {path: sub/missing.env, required: false}], extends: a}
  c: {image: x, environment: {A: \"$X\", 1: 2}, ports: !reset [], command: !override [a], shm_size: .inf}
---
services: {d: null}
";
        assert_eq!(look(compose), Vec::<String>::new());
    }

    #[test]
    fn every_way_out_is_refused_by_its_key() {
        for (compose, key) in [
            ("services: {a: {env_file: ../secret.env}}", "services.a.env_file"),
            (
                "services: {a: {env_file: [sub/inside.env, {path: ../secret.env, required: false}]}}",
                "services.a.env_file",
            ),
            ("services: {a: {env_file: /proc/self/environ}}", "services.a.env_file"),
            ("services: {a: {env_file: /etc/hostname}}", "services.a.env_file"),
            ("services: {a: {env_file: ~/.ssh/config}}", "services.a.env_file"),
            ("services: {a: {env_file: '${X:-/etc/hostname}'}}", "services.a.env_file"),
            ("services: {a: {label_file: ../secret.env}}", "services.a.label_file"),
            ("services: {a: {extends: {file: ../other.yml, service: a}}}", "services.a.extends"),
            ("include: [../other.yml]", "include[0].path"),
            ("include: [{path: sub/more.yml, env_file: ../secret.env}]", "include[0].env_file"),
            ("include: [{path: sub/more.yml, env_file: [sub/inside.env, /proc/self/environ]}]", "include[0].env_file"),
            ("include: [{path: sub/more.yml, project_directory: ..}]", "include[0].project_directory"),
            // Ways to write it that a reader could miss.
            ("x-a: &a {env_file: ../secret.env}\nservices: {a: {<<: *a}}", "services.a.env_file"),
            ("x-a: &a {include: [../other.yml]}\n<<: *a", "include[0].path"),
            ("services: {\"\\x61\": {\"env\\u005ffile\": \"\\x2e./secret.env\"}}", "services.a.env_file"),
            ("services: {}\n---\nservices: {a: {env_file: ../secret.env}}", "services.a.env_file"),
            ("services: {a: {? env_file : ../secret.env}}", "services.a.env_file"),
            ("services: {a: {env_file: !override [../secret.env]}}", "services.a.env_file"),
        ] {
            assert_eq!(look(compose), [key], "{compose}");
        }
    }

    #[test]
    fn paths_are_those_of_the_file_that_holds_them() {
        let included = |text: &str| {
            let compose =
                "include: [sub/deep/more.yml]\nservices: {a: {extends: {file: sub/deep/base.yml, service: a}}}\n";
            let place = Place::new(&[
                ("compose.yml", compose),
                ("x.env", "A=1\n"),
                ("sub/deep/more.yml", text),
                ("sub/deep/base.yml", text),
            ]);
            place.look().unwrap()
        };
        assert_eq!(included("services: {a: {env_file: ../../x.env}}"), Vec::<String>::new());
        assert_eq!(
            included("services: {a: {env_file: ../../../secret.env}}"),
            ["sub/deep/base.yml: services.a.env_file", "sub/deep/more.yml: services.a.env_file"]
        );
        // Should Compose take it from the project's directory after all, it would be outside.
        assert_eq!(included("services: {a: {env_file: ../secret.env}}").len(), 2);
    }

    #[test]
    fn links_out_of_the_repository_are_outside() {
        let place = Place::new(&[("compose.yml", "services: {a: {env_file: link.env}}"), ("inside.env", "A=1\n")]);
        let root = place.root();
        for (target, leaves) in [
            ("../secret.env", true),
            ("/etc/hostname", true),
            ("/proc/self/cwd/inside.env", true),
            ("other", true),
            ("inside.env", false),
            ("./inside.env", false),
        ] {
            let _ = fs::remove_file(root.join("link.env"));
            let _ = fs::remove_file(root.join("other"));
            symlink("..", root.join("other")).unwrap();
            symlink(if target == "other" { "other/secret.env" } else { target }, root.join("link.env")).unwrap();
            assert_eq!(!place.look().unwrap().is_empty(), leaves, "{target}");
        }
        symlink(root.join("inside.env"), root.join("absolute")).unwrap();
        assert!(inside(&root, &root.join("absolute")).is_some());
        symlink("round", root.join("round")).unwrap();
        assert!(inside(&root, &root.join("round")).is_none());
        // The file that Compose reads without being asked, and the Compose file itself.
        symlink("../secret.env", root.join(".env")).unwrap();
        fs::write(root.join("compose.yml"), "services: {}").unwrap();
        assert_eq!(place.look().unwrap(), [".env"]);
        fs::remove_file(root.join(".env")).unwrap();
        fs::remove_file(root.join("compose.yml")).unwrap();
        symlink("../secret.env", root.join("compose.yml")).unwrap();
        assert_eq!(place.look().unwrap(), ["compose.yml"]);
    }

    #[test]
    fn an_included_directory_has_its_own_default_file() {
        let place = Place::new(&[("compose.yml", "include: [sub/more.yml]"), ("sub/more.yml", "services: {}")]);
        assert_eq!(place.look().unwrap(), Vec::<String>::new());
        symlink("../../secret.env", place.root().join("sub/.env")).unwrap();
        assert_eq!(place.look().unwrap(), ["include[0].env_file"]);
    }

    #[test]
    fn dockerfiles_behind_links_are_outside() {
        let place = Place::new(&[("api/Dockerfile", "FROM x\n"), ("own/Dockerfile.dev", "FROM x\n")]);
        let root = place.root();
        symlink("../..", root.join("api/up")).unwrap();
        symlink("../own", root.join("api/own")).unwrap();
        symlink("../../secret.env", root.join("api/linked")).unwrap();
        let refused = |dockerfile: Option<&str>| {
            let build = serde_json::json!({"context": root.join("api"), "dockerfile": dockerfile});
            dockerfiles(&serde_json::json!({"services": {"a": {"build": build}, "b": {"image": "x"}}}), &root).len()
        };
        for (file, leaves) in [
            (None, false),
            (Some("Dockerfile"), false),
            (Some("own/Dockerfile.dev"), false),
            (Some("up/secret.env"), true),
            (Some("linked"), true),
        ] {
            assert_eq!(refused(file), usize::from(leaves), "{file:?}");
        }
    }

    #[test]
    fn texts_in_disguise_are_not_missed() {
        for text in [
            "services: {a: {env_file: !!binary Li4vc2VjcmV0LmVudg==}}",
            "%TAG !y! tag:yaml.org,2002:\n---\nservices: {a: {env_file: !y!binary Li4vc2VjcmV0LmVudg==}}",
            "services: {a: {env_file: !<tag:yaml.org,2002:bin%61ry> Li4vc2VjcmV0LmVudg==}}",
        ] {
            let found = Place::new(&[("compose.yml", text)]).look();
            assert!(found.as_ref().map_or(true, |found| !found.is_empty()), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_cannot_be_checked_is_an_error_that_names_the_file() {
        for text in ["services: {a: {env_file: a, env_file: ../secret.env}}", "services: ["] {
            let error = Place::new(&[("compose.yml", text)]).look().map_err(|fault| fault.to_string());
            assert!(error.as_ref().is_err_and(|text| text.contains("compose.yml: ")), "{text}: {error:?}");
        }
        let place = Place::new(&[]);
        let utf16: Vec<u8> = "\u{feff}services: {}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        fs::write(place.root().join("compose.yml"), utf16).unwrap();
        assert!(place.look().unwrap_err().to_string().contains("not UTF-8"));
    }
}
