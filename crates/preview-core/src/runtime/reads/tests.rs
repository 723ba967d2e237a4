//! What of a project leads out of its repository: each way to write it.

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
            readable: vec![],
        };
        let known = [("${FILE:-sub/inside.env}", "sub/inside.env"), ("${FILE:-/etc/hostname}", "/etc/hostname")];
        let known = known.map(|(text, value)| (text.to_owned(), value.to_owned())).into();
        let looked = super::look(&source, &root, &known, Path::new("/mirror"))?;
        let open = looked.open.into_iter().map(|text| format!("open: {text}"));
        Ok(looked.outside.into_iter().map(|violation| violation.key).chain(open).collect())
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
  d: {image: x, env_file: '${FILE:-sub/inside.env}'}
  c: {image: x, environment: {A: \"$X\", 1: 2}, ports: !reset [], command: !override [a], shm_size: .inf}
---
services: {e: null}
";
    assert_eq!(look(compose), Vec::<String>::new());
}

#[test]
fn every_way_out_is_refused_by_its_key() {
    for (compose, key) in [
        ("services: {a: {env_file: ../secret.env}}", "services.a.env_file"),
        ("services: {a: {env_file: [sub/inside.env, {path: ../secret.env, required: false}]}}", "services.a.env_file"),
        ("services: {a: {env_file: /proc/self/environ}}", "services.a.env_file"),
        ("services: {a: {env_file: /etc/hostname}}", "services.a.env_file"),
        ("services: {a: {env_file: ~/.ssh/config}}", "services.a.env_file"),
        ("services: {a: {env_file: '${FILE:-/etc/hostname}'}}", "services.a.env_file"),
        ("services: {a: {env_file: '${X:-sub/inside.env}'}}", "open: ${X:-sub/inside.env}"),
        ("include: ['${X}']", "open: ${X}"),
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
        let compose = "include: [sub/deep/more.yml]\nservices: {a: {extends: {file: sub/deep/base.yml, service: a}}}\n";
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
    assert_eq!(
        included("services: {a: {env_file: '${FILE:-sub/inside.env}'}}")[0],
        "sub/deep/more.yml: services.a.env_file",
        "variables of an included file may have other values"
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
    assert!(checkout::resolve(&root, &root.join("absolute")).is_some());
    symlink("round", root.join("round")).unwrap();
    assert!(checkout::resolve(&root, &root.join("round")).is_none());
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
    fs::create_dir(root.join("${X}")).unwrap();
    symlink("../../secret.env", root.join("${X}/Dockerfile")).unwrap();
    let build = serde_json::json!({"context": root.join("$${X}")});
    assert_eq!(dockerfiles(&serde_json::json!({"services": {"a": {"build": build}}}), &root).len(), 1);
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
        assert!(error.as_ref().is_err_and(|text| text.contains(": compose.yml:1: ")), "{text}: {error:?}");
    }
    let place = Place::new(&[]);
    let utf16: Vec<u8> = "\u{feff}services: {}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(place.root().join("compose.yml"), utf16).unwrap();
    assert!(place.look().unwrap_err().to_string().contains("not UTF-8"));
}
