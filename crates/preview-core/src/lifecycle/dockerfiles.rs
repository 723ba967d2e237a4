//! Dockerfiles are looked through before anything is sent: what they have the builder fetch is refused, unless the base branch allows it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::stack::dockerfile::{Fetch, LARGEST, fetches};
use crate::stack::{self, AllowLine, Allowance, Violation, normal};

/// Links that are followed for one Dockerfile.
const MOST_LINKS: usize = 10;

/// Everything that the Dockerfiles of the model have the builder fetch and nobody allows. Reads the repository's Dockerfiles.
pub(super) fn violations(model: &Value, repository: &Path, allowed: &[Allowance]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (service, table) in stack::services(model) {
        let Some(build) = table.get("build").filter(|build| build.is_object()) else { continue };
        let (place, text) = match source(build, repository) {
            Source::Text(place, text) => (place, text),
            Source::Elsewhere => continue,
            Source::Refused(place, why) => {
                let violation = Violation {
                    key: format!("services.{service}.build.dockerfile"),
                    value: Some(place),
                    why: why.to_owned(),
                    instead: "name a plain file of the build context".to_owned(),
                    ..Violation::default()
                };
                found.push(violation.of(service));
                continue;
            }
        };
        let new =
            fetches(&text, &arguments(build)).into_iter().filter_map(|fetch| judged(service, &place, fetch, allowed));
        found.extend(new);
    }
    found
}

/// Where the text of a Dockerfile is.
enum Source {
    /// Where it stands, for people, and its text.
    Text(String, String),
    /// Not on this machine, or missing: the build will tell.
    Elsewhere,
    /// It cannot be looked through, and why.
    Refused(String, &'static str),
}

fn source(build: &Value, repository: &Path) -> Source {
    if let Some(text) = build.get("dockerfile_inline").and_then(Value::as_str).filter(|text| !text.is_empty()) {
        return Source::Text("dockerfile_inline".to_owned(), text.to_owned());
    }
    let Some(context) = build.get("context").and_then(Value::as_str).filter(|context| context.starts_with('/')) else {
        return Source::Elsewhere;
    };
    let name = build.get("dockerfile").and_then(Value::as_str).unwrap_or("Dockerfile");
    let mut path = normal(&Path::new(context).join(name));
    // What is outside is refused elsewhere, unread.
    if !path.starts_with(repository) {
        return Source::Elsewhere;
    }
    if fs::symlink_metadata(&path).is_err()
        && let Some(lower) = path.file_name().map(|name| name.to_string_lossy().to_lowercase())
    {
        // BuildKit looks for that, too.
        path.set_file_name(lower);
    }
    let place = path.strip_prefix(repository).unwrap_or(&path).display().to_string();
    let Ok(path) = followed(path) else {
        return Source::Refused(
            place,
            "it is a link that the builder may follow to another file than this machine does",
        );
    };
    let mut text = Vec::new();
    match fs::metadata(&path) {
        Ok(found) if !found.is_file() => return Source::Refused(place, "it is no file"),
        Ok(_) => {}
        Err(_) => return Source::Elsewhere,
    }
    let read = fs::File::open(&path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut text));
    match read {
        Ok(_) if text.len() as u64 > LARGEST => Source::Refused(place, "it is larger than 512 kB"),
        Ok(_) => Source::Text(place, String::from_utf8_lossy(&text).into_owned()),
        Err(_) => Source::Elsewhere,
    }
}

/// The file that a Dockerfile's links lead to. The builder gets the Dockerfile's directory as its root, so only links to files within it lead
/// to the same place there as here.
fn followed(mut path: PathBuf) -> Result<PathBuf, ()> {
    for _ in 0..MOST_LINKS {
        let Ok(target) = fs::read_link(&path) else { return Ok(path) };
        let within = target.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let (true, Some(directory)) = (within, path.parent()) else { return Err(()) };
        let mut next = directory.to_owned();
        for part in target.components() {
            next.push(part);
            // A directory on the way that is a link itself leads who knows where.
            if next != directory.join(&target) && fs::read_link(&next).is_ok() {
                return Err(());
            }
        }
        path = next;
    }
    Err(())
}

/// The build's arguments, as far as they have values.
fn arguments(build: &Value) -> BTreeMap<String, String> {
    let pair = |text: &str| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    match build.get("args") {
        Some(Value::Object(args)) => {
            args.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.replace("$$", "$")))).collect()
        }
        Some(Value::Array(args)) => args.iter().filter_map(|arg| pair(arg.as_str()?)).collect(),
        _ => BTreeMap::new(),
    }
}

fn judged(service: &str, place: &str, fetch: Fetch, allowed: &[Allowance]) -> Option<Violation> {
    let fetcher =
        "the builder would fetch it in the VM's own network, which containers are kept from, and follow redirects";
    let (key, value, why, instead) = match fetch {
        Fetch::Add(address) => (
            "build.add",
            Some(address),
            format!("`ADD` of an address in {place}: {fetcher}"),
            "fetch it in a `RUN` step (curl, wget, git), or put the file into the repository",
        ),
        Fetch::Unknown(source) => (
            "build.add",
            Some(source),
            format!("`ADD` in {place} of what may be an address: {fetcher}"),
            "begin the path with `./`, or use `COPY`",
        ),
        Fetch::Frontend(frontend) => (
            "build.syntax",
            Some(frontend),
            format!("the frontend that {place} names can do anything that the builder can"),
            "use `# syntax=docker/dockerfile:1`",
        ),
        Fetch::Unreadable(why) => {
            ("build.dockerfile", Some(place.to_owned()), why.to_owned(), "write an ordinary Dockerfile, of fewer lines")
        }
    };
    if stack::is_allowed(allowed, service, key, value.as_deref()) {
        return None;
    }
    let nameable = stack::allowing(key).is_some();
    let allow = AllowLine { service: service.to_owned(), key: key.to_owned(), values: value.iter().cloned().collect() };
    let violation = Violation {
        key: format!("services.{service}.{key}"),
        value,
        why,
        instead: instead.to_owned(),
        allow: nameable.then_some(allow),
        ..Violation::default()
    };
    Some(violation.of(service))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    fn keys(model: &Value, repository: &Path, allowed: &[Allowance]) -> Vec<String> {
        violations(model, repository, allowed).into_iter().map(|violation| violation.key).collect()
    }

    fn build(repository: &Path, more: &Value) -> Value {
        let mut build = json!({"context": repository});
        build.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"services": {"web": {"build": build}, "db": {"image": "x"}}})
    }

    #[test]
    fn every_place_of_a_dockerfile_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let repository = directory.path().canonicalize().unwrap();
        let add = "FROM a\nARG U\nADD $U /w\nADD http://127.0.0.1/x /w\n";
        let all = ["services.web.build.add", "services.web.build.add"];
        assert_eq!(keys(&build(&repository, &json!({"dockerfile_inline": add})), &repository, &[]), all);
        let none: [&str; 0] = [];
        assert_eq!(keys(&build(&repository, &json!({})), &repository, &[]), none, "no file: the build tells");
        fs::write(repository.join("dockerfile"), add).unwrap();
        assert_eq!(keys(&build(&repository, &json!({})), &repository, &[]), all, "in lower case");
        fs::write(repository.join("Dockerfile"), "FROM a\n").unwrap();
        assert_eq!(keys(&build(&repository, &json!({})), &repository, &[]), none);
        fs::create_dir(repository.join("sub")).unwrap();
        fs::write(repository.join("sub/x"), add).unwrap();
        assert_eq!(keys(&build(&repository, &json!({"dockerfile": "sub/x"})), &repository, &[]), all);
        let known = json!({"dockerfile": "sub/x", "args": {"U": "./file"}});
        assert_eq!(keys(&build(&repository, &known), &repository, &[]).len(), 1);

        let allow = |key: &str, value: &str| Allowance {
            service: "web".to_owned(),
            key: key.to_owned(),
            values: vec![value.to_owned()],
        };
        let one = [allow("build.add", "http://127.0.0.1/x")];
        assert_eq!(keys(&build(&repository, &known), &repository, &one), none);
        let others = [allow("build.add", "http://127.0.0.1/"), allow("volumes", "http://127.0.0.1/x")];
        assert_eq!(keys(&build(&repository, &known), &repository, &others).len(), 1, "exactly");
        let frontend = json!({"dockerfile_inline": "# syntax=evil/x\nFROM a"});
        assert_eq!(keys(&build(&repository, &frontend), &repository, &[]), ["services.web.build.syntax"]);
        let frontend = json!({"dockerfile_inline": "FROM a", "args": {"BUILDKIT_SYNTAX": "evil/x"}});
        assert_eq!(keys(&build(&repository, &frontend), &repository, &[]), ["services.web.build.syntax"]);
        assert_eq!(keys(&build(&repository, &frontend), &repository, &[allow("build.syntax", "evil/x")]), none);
    }

    #[test]
    fn links_that_lead_elsewhere_in_the_builder_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let repository = directory.path().canonicalize().unwrap();
        fs::create_dir(repository.join("docker")).unwrap();
        fs::write(repository.join("docker/real"), "FROM a\nADD http://x /w\n").unwrap();
        symlink("docker/real", repository.join("within")).unwrap();
        symlink(repository.join("docker/real"), repository.join("absolute")).unwrap();
        symlink("../within", repository.join("docker/above")).unwrap();
        symlink("docker", repository.join("linked")).unwrap();
        symlink("linked/real", repository.join("through")).unwrap();
        symlink("round", repository.join("round")).unwrap();
        let key = |name: &str| keys(&build(&repository, &json!({"dockerfile": name})), &repository, &[]);
        assert_eq!(key("within"), ["services.web.build.add"]);
        for name in ["absolute", "docker/above", "through", "round", "docker"] {
            assert_eq!(key(name), ["services.web.build.dockerfile"], "{name}");
        }
    }
}
