//! Refusals help: everything at once, with values as the file has them, as data, and with the list of services that the rest can do without.

use preview_tests::{Site, Where};
use serde_json::{Value, json};

use crate::bad_input::refused;

/// `edge` is refused for many reasons, `agent` for one, and `shell` cannot live without it.
const COMPOSE: &str = r#"
services:
  edge:
    image: busybox:1.36
    cap_add: [SYS_ADMIN, NET_RAW]
    privileged: true
    volumes: ["/var/run/docker.sock:/var/run/docker.sock:ro", "../beside:/b", "./lnk:/l", "certs:/certs"]
    configs: [gone]
    networks: [others]
  agent:
    image: busybox:1.36
    pid: host
  shell:
    image: busybox:1.36
    network_mode: "service:agent"
  web:
    image: busybox:1.36
    command: ["sleep", "100000"]
    stop_grace_period: 0s
    depends_on: {edge: {condition: service_started, required: false}}
    volumes: ["data:/data"]
volumes: {certs: {}, data: {}}
networks: {others: {external: true, name: bridge}}
configs: {gone: {file: ./gone.conf}}
"#;

const PLAN: &[&str] = &["plan", "--pr", "7", "--format", "json"];

fn site() -> Option<Site> {
    let site = Site::new(Where::Local, COMPOSE)?;
    std::os::unix::fs::symlink("/etc", site.dir.path().join("lnk")).expect("a link");
    Some(site)
}

#[test]
fn everything_that_is_wrong_is_told_at_once_and_as_data() {
    let Some(site) = site() else { return };
    site.write("preview.toml", "[[route]]\nservice = \"nobody\"\nport = 80\n");
    let words = [
        "services.edge.cap_add: `SYS_ADMIN`: ",
        "services.edge.privileged: ",
        "services.edge.volumes: `../beside`: it is outside",
        "services.edge.volumes: `./lnk`: a link leads to /etc",
        "services.edge.volumes: `/var/run/docker.sock`: ",
        "networks.others.external: `bridge`: ",
        "configs.gone.file: `./gone.conf`: ",
        "services.agent.pid: `host`: ",
        "preview.toml:2:11: ",
        "no service `nobody`",
        "[[policy.allow]]\n  service = \"edge\"\n  key = \"volumes\"\n  values = [\"/var/run/docker.sock\"]",
    ];
    for command in ["plan", "deploy"] {
        let ran = refused(&site, &[command, "--pr", "7", "--format", "json"], 3, &words);
        let error = ran.json()["error"].take();
        assert_eq!(error["failure"], "policy");
        assert_eq!(error["exclude"], Value::Null, "a route leads to a service that is not there");
        let found = error["violations"].as_array().expect("violations");
        assert_eq!(found.len(), 9, "{error}");
        let socket = found.iter().find(|one| one["value"] == "/var/run/docker.sock").expect("the socket");
        assert_eq!(
            (&socket["service"], &socket["key"], &socket["kind"]),
            (&json!("edge"), &json!("services.edge.volumes"), &json!("policy"))
        );
        assert_eq!(socket["allow"], json!({"service": "edge", "key": "volumes", "values": ["/var/run/docker.sock"]}));
        let beside = found.iter().find(|one| one["value"] == "../beside").expect("the path");
        assert_eq!(beside["allow"], Value::Null, "nothing on the host has this name");
        assert!(found.iter().all(|one| one["value"] != "NET_RAW"), "Docker gives it anyway: {error}");
        let missing = found.iter().find(|one| one["value"] == "./gone.conf").expect("the file");
        assert_eq!(missing["kind"], "input");
    }
}

#[test]
fn what_is_proposed_deploys() {
    let Some(site) = site() else { return };
    let proposed = site.run(PLAN).expect(3).json()["error"]["exclude"].take();
    assert_eq!(proposed, json!(["agent", "edge", "shell"]));
    site.write("preview.toml", &format!("exclude = {proposed}\n"));
    let plan = site.run(PLAN).expect(0).json();
    let told: Vec<String> = plan["differences"]
        .as_array()
        .expect("differences")
        .iter()
        .map(|one| format!("{}: {}", one["key"].as_str().expect("a key"), one["what"].as_str().expect("a text")))
        .collect();
    for line in [
        "services.edge: left out, as preview.toml:1:11: `exclude` says",
        "volumes.certs: left out: only services that are left out use it",
        "networks.others: left out: only services that are left out use it",
        "services.web.depends_on: `edge` dropped: it is optional, and not part of this preview",
    ] {
        assert!(told.iter().any(|one| one == line), "{line} is not in {told:#?}");
    }
    site.deploy("7").expect(0);
    assert_eq!(site.containers("pr-7").into_keys().collect::<Vec<_>>(), ["web"]);
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());

    // One list replaces the other, and what it leaves behind is told again, with a whole list.
    let again = site.run(&[PLAN, &["--exclude", "edge"]].concat()).expect(3).json()["error"].take();
    assert_eq!(again["exclude"], json!(["agent", "edge", "shell"]));
    let flags = ["--exclude", "edge", "--exclude", "agent", "--exclude", "shell"];
    site.run(&[PLAN, &flags].concat()).expect(0);
}

#[test]
fn what_cannot_be_left_out_is_told() {
    let Some(site) = site() else { return };
    let plan = |more: &[&str], code: i32, words: &[&str]| refused(&site, &[&PLAN[..3], more].concat(), code, words);
    plan(
        &["--exclude", "web", "--exclude", "wbe"],
        3,
        &["--exclude: there is no service `wbe`", "there are: agent, edge, shell, web"],
    );
    let all = ["--exclude", "edge", "--exclude", "agent", "--exclude", "shell", "--exclude", "web"];
    plan(&all, 3, &["--exclude: it leaves out every service"]);
    let needed = ["--exclude leaves `agent` out, and `shell` cannot start without it; leave `shell` out too"];
    let ran = plan(&["--exclude", "edge", "--exclude", "agent"], 2, &needed);
    assert!(!ran.err.contains("services.agent.pid"), "{}", ran.err);
    let most = &all[..6];
    for (toml, place) in [
        ("[[route]]\nservice = \"edge\"\nport = 80\n", "preview.toml:2:11: "),
        ("env_services = [\"edge\"]\n", "preview.toml:1:16: "),
        ("[health]\npath = \"/\"\nservice = \"edge\"\nport = 80\n", "preview.toml:3:11: "),
    ] {
        site.write("preview.toml", toml);
        plan(most, 2, &[place, "service `edge` is left out, as --exclude says"]);
    }
    site.write("preview.toml", "exclude = [\"\"]\n");
    plan(&[], 2, &["preview.toml:1:12: `exclude[0]`: is empty"]);
}

/// The stack that is rendered is looked at by Compose before anything is sent, by `plan` and by `deploy`.
#[test]
fn a_stack_that_compose_does_not_take_is_found_before_anything_is_sent() {
    let Some(mut site) = Site::new(Where::Local, crate::bad_input::ONE) else { return };
    site.deploy("7").expect(0);
    let before = site.containers("pr-7");
    // A Compose that takes the files, and refuses what is rendered from them.
    let path = std::env::var("PATH").expect("a path");
    let real = std::env::split_paths(&path).map(|directory| directory.join("docker")).find(|file| file.is_file());
    let real = real.expect("docker is in the path").to_string_lossy().into_owned();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *'--file - config'*) cat >/dev/null; echo 'services.app.image: is no image' >&2; exit 1;; esac\nexec {real} \"$@\"\n"
    );
    site.write(".git/bin/docker", &script);
    let wrapper = site.dir.path().join(".git/bin/docker");
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it may run");
    site.set("PATH", &format!("{}:{path}", wrapper.parent().expect("a directory").display()));
    // What runs was taken already.
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");
    site.write("compose.yml", &format!("{}    environment: {{A: \"1\"}}\n", crate::bad_input::ONE));
    for command in ["plan", "deploy"] {
        let ran = site.run(&[command, "--pr", "7"]).expect(2);
        assert!(
            ran.err.contains("Compose does not take the preview's stack: services.app.image: is no image"),
            "{}",
            ran.err
        );
    }
    assert_eq!(site.containers("pr-7"), before);
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}
