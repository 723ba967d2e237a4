use super::*;
use crate::secret::Secret;

fn file(hash: &str) -> Entry {
    Entry(Kind::File, 0o644, hash.to_owned())
}

fn directory() -> Entry {
    Entry(Kind::Directory, 0o755, String::new())
}

fn manifest(roots: &[(&str, &[(&str, Entry)])]) -> Manifest {
    let root =
        |paths: &[(&str, Entry)]| paths.iter().map(|(path, entry)| ((*path).to_owned(), entry.clone())).collect();
    Manifest { roots: roots.iter().map(|(id, paths)| ((*id).to_owned(), root(paths))).collect() }
}

#[test]
fn only_what_differs_is_written_and_what_goes_is_kept() {
    let before = manifest(&[
        (
            "app",
            &[("", directory()), ("same", file("1")), ("changed", file("1")), ("gone", file("1")), ("d", directory())],
        ),
        ("secret", &[("", file("1"))]),
    ]);
    let after = manifest(&[
        (
            "app",
            &[("", directory()), ("same", file("1")), ("changed", file("2")), ("new", file("3")), ("d/e", directory())],
        ),
        ("www", &[("", directory()), ("index.html", file("4"))]),
    ]);
    let changes = after.changes(Some(&before));
    let write = |id: &str, path: &str| (id.to_owned(), path.to_owned());
    assert_eq!(
        changes,
        Changes {
            write: vec![
                write("app", "changed"),
                write("app", "d/e"),
                write("app", "new"),
                write("www", ""),
                write("www", "index.html")
            ],
            replaced: vec![
                ".preview-files-app/changed".into(),
                ".preview-files-app/gone".into(),
                ".preview-files-secret".into()
            ],
            added: vec![".preview-files-app/new".into()],
            remove: vec![".preview-files-app/gone".into(), ".preview-files-secret".into()],
            new_roots: vec![".preview-files-www".into()],
        }
    );
    assert_eq!(after.changes(Some(&after)), Changes::default());
    assert_eq!(after.changes(None).write.len(), 7);
    let modes = [("app", "same"), ("secret", ""), ("app", ""), ("app", "new")]
        .map(|(id, path)| before.mode(&volume_path(id, path)));
    assert_eq!(modes, [Some(0o644), Some(0o644), Some(0o755), None]);
}

#[test]
fn directories_that_nobody_mounts_any_more_stay_and_files_do_not() {
    let before = manifest(&[("data", &[("", directory()), ("f", file("1"))]), ("secret", &[("", file("1"))])]);
    let after = manifest(&[("www", &[("", directory())])]).with_unused(Some(&before));
    assert_eq!(after.roots.keys().collect::<Vec<_>>(), ["data", "www"]);
    assert_eq!(after.changes(Some(&before)).remove, [".preview-files-secret"]);
}

#[test]
fn a_manifest_survives_its_file() {
    let manifest = manifest(&[(
        "a",
        &[("", directory()), ("odd \"name\"\n", file("1")), ("l", Entry(Kind::Link, 0o777, "x".into()))],
    )]);
    assert_eq!(serde_json::from_slice::<Manifest>(&manifest.to_json()).unwrap(), manifest);
    assert_ne!(manifest.file(), Manifest::default().file());
}

fn placed(paths: &[(&str, &str)]) -> BTreeMap<PathBuf, Placed> {
    let one = |(path, digest): &(&str, &str)| {
        let placed = Placed {
            id: path.rsplit('/').next().unwrap_or_default().to_owned(),
            digest: (*digest).to_owned(),
            is_file: path.ends_with(".conf"),
        };
        (PathBuf::from(path), placed)
    };
    paths.iter().map(one).collect()
}

fn bind(source: &str, target: &str) -> Value {
    json!({"type": "bind", "source": source, "target": target, "bind": {"create_host_path": true}})
}

fn placed_model(mut model: Value, at: &BTreeMap<PathBuf, Placed>, secret: &str) -> Value {
    let variables = Variables::from([("TOKEN".to_owned(), Secret::new(secret.to_owned()))]);
    place(&mut model, "/vol", at, &variables, "salt", &mut Vec::new());
    model
}

#[test]
fn overlapping_mounts_see_the_same_files_and_no_source_is_inside_another() {
    let at = placed(&[("/repo", "1"), ("/repo/static", "2"), ("/repo/conf.d/x", "3"), ("/repo/cache", "4")]);
    let model = json!({"services": {
        "app": {"volumes": [bind("/repo", "/app"), {"type": "volume", "source": "deps", "target": "/app/conf.d"}], "tmpfs": ["/app/cache:size=1m"]},
        "web": {"volumes": [bind("/repo/static", "/www")]},
        "conf": {"volumes": [bind("/repo/conf.d/x", "/x"), bind("/repo/cache", "/cache")]},
    }});
    let model = placed_model(model, &at, "");
    let mounts = |service: &str| -> Vec<(String, String)> {
        let text = |mount: &Value, key: &str| mount[key].as_str().unwrap().to_owned();
        let binds =
            model["services"][service]["volumes"].as_array().unwrap().iter().filter(|mount| mount["type"] == "bind");
        binds.map(|mount| (text(mount, "source"), text(mount, "target"))).collect()
    };
    let pair = |source: &str, target: &str| (source.to_owned(), target.to_owned());
    assert_eq!(
        mounts("app"),
        [pair("/vol/.preview-files-repo", "/app"), pair("/vol/.preview-files-static", "/app/static")],
        "what is covered is not mounted"
    );
    assert_eq!(mounts("web"), [pair("/vol/.preview-files-static", "/www")]);
    assert_eq!(model.pointer("/services/app/volumes/2/bind/create_host_path"), Some(&json!(false)));
    assert_eq!(model.pointer("/services/web/volumes/0/bind/create_host_path"), Some(&json!(false)));
}

#[test]
fn a_file_is_not_mounted_into_a_read_only_directory() {
    let at = placed(&[("/repo", "1"), ("/repo/a.conf", "2"), ("/repo/dir", "3")]);
    let mut outer = bind("/repo", "/app");
    outer["read_only"] = json!(true);
    let model = json!({"services": {
        "reads": {"volumes": [outer]}, "writes": {"volumes": [bind("/repo", "/app")]}, "web": {"volumes": [bind("/repo/a.conf", "/x"), bind("/repo/dir", "/d")]},
    }});
    let model = placed_model(model, &at, "");
    let targets = |service: &str| -> Vec<&str> {
        model["services"][service]["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| mount["target"].as_str().unwrap())
            .collect()
    };
    assert_eq!(targets("reads"), ["/app", "/app/dir"]);
    assert_eq!(targets("writes"), ["/app", "/app/a.conf", "/app/dir"]);
}

#[test]
fn exactly_the_services_that_use_what_changed_get_another_label() {
    let model = json!({
        "services": {
            "mounts": {"volumes": [bind("/repo/a", "/a")]},
            "outer": {"volumes": [bind("/repo", "/all")]},
            "config": {"configs": [{"source": "c", "target": "/c"}]},
            "inline": {"configs": [{"source": "i"}]},
            "secret": {"secrets": [{"source": "s"}], "labels": null},
            "none": {"image": "x"},
        },
        "configs": {"c": {"file": "/repo/c"}, "i": {"content": "text"}}, "secrets": {"s": {"environment": "TOKEN"}},
    });
    let at = |a: &str, c: &str| placed(&[("/repo", "0"), ("/repo/a", a), ("/repo/c", c)]);
    let labels = |model: &Value| -> BTreeMap<String, Value> {
        let services = model["services"].as_object().unwrap();
        services.iter().map(|(name, table)| (name.clone(), table["labels"][CONTENT].clone())).collect()
    };
    let before = labels(&placed_model(model.clone(), &at("1", "1"), "x"));
    let changed = |model: Value, at: &BTreeMap<PathBuf, Placed>, secret: &str| -> Vec<String> {
        let now = labels(&placed_model(model, at, secret));
        now.into_iter().filter(|(name, label)| &before[name] != label).map(|(name, _)| name).collect()
    };
    assert_eq!(before["none"], Value::Null);
    assert_eq!(changed(model.clone(), &at("1", "1"), "x"), Vec::<String>::new());
    assert_eq!(changed(model.clone(), &at("2", "1"), "x"), ["mounts", "outer"]);
    assert_eq!(changed(model.clone(), &at("1", "2"), "x"), ["config", "outer"]);
    assert_eq!(changed(model.clone(), &at("1", "1"), "y"), ["secret"]);
    let mut other = model;
    other["configs"]["i"]["content"] = json!("another text");
    assert_eq!(changed(other, &at("1", "1"), "x"), ["inline"]);
}

#[test]
fn a_context_is_no_mount() {
    let at = placed(&[("/repo/app", "1")]);
    let model =
        json!({"services": {"web": {"build": {"context": "/repo/app"}, "volumes": [bind("/repo/app", "/code")]}}});
    let model = placed_model(model, &at, "");
    assert_eq!(model.pointer("/services/web/build/context"), Some(&json!("/repo/app")));
    assert_eq!(model.pointer("/services/web/volumes/0/source"), Some(&json!("/vol/.preview-files-app")));
}

#[test]
fn a_dollar_sign_in_a_path_begins_no_variable() {
    let at = BTreeMap::from([(
        PathBuf::from("/repo/${HOME}"),
        Placed { id: "x".into(), digest: "1".into(), is_file: false },
    )]);
    let mut model = json!({"services": {"web": {"volumes": [bind("/repo/$${HOME}", "/www")]}}});
    place(&mut model, "/vol$1", &at, &Variables::new(), "salt", &mut Vec::new());
    assert_eq!(model.pointer("/services/web/volumes/0/source"), Some(&json!("/vol$$1/.preview-files-x")));
}

#[test]
fn who_uses_what_changed_is_known_and_in_the_order_of_the_dependencies() {
    let source =
        |id: &str| json!({"type": "bind", "source": format!("/vol/_data/{}", volume_path(id, "")), "target": "/x"});
    let model = json!({
        "services": {
            "api": {"volumes": [source("app")], "depends_on": {"queue": {"condition": "service_started"}, "db": {"condition": "service_healthy"}}},
            "db": {"volumes": [{"type": "volume", "source": "app", "target": "/data"}, source("data")]},
            "queue": {"configs": [{"source": "conf", "target": "/etc/conf"}], "depends_on": {"loop": {"condition": "service_started"}}},
            "loop": {"secrets": ["key"], "depends_on": {"queue": {"condition": "service_started"}}},
            "other": {"volumes": [source("other")], "configs": ["text"]},
        },
        "configs": {"conf": {"file": "/vol/_data/.preview-files-conf"}, "text": {"content": "/.preview-files-app/x"}},
        "secrets": {"key": {"file": "/vol/_data/.preview-files-key"}},
    });
    let names = |paths: &[&str]| users(&model, paths);
    assert_eq!(names(&[".preview-files-app/a/.preview-files-data/b", ".preview-files-app"]), ["api"]);
    assert_eq!(
        names(&[".preview-files-conf", ".preview-files-app/x", ".preview-files-data", "x/.preview-files-other"]),
        ["db", "queue", "api"]
    );
    assert_eq!(names(&[".preview-files-key", ".preview-files-conf"]), ["loop", "queue"], "a circle ends");
    assert!(names(&[]).is_empty());
}
