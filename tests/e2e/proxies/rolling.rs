//! Rolling updates: a client that asks all the time loses nothing.

use preview_tests::Where;
use preview_tests::lane::{Kind, Lane};
use preview_tests::load::{BUSY, update};

fn rolling(kind: Kind) {
    let Some(lane) = Lane::new(kind, Where::Local, BUSY) else { return };
    let seen = update(&lane, "rolling", 25);
    assert!(seen.asked > 100, "{seen:?}");
    // Traefik does not ask again once it has sent a request: what it sends to a server that is closing its door at that moment is lost.
    let few = if kind == Kind::Traefik { seen.asked / 200 } else { 0 };
    assert!(seen.failed <= few, "{seen:?}\n{}", lane.log());
    let site = &lane.site;

    // A new version that does not get well: the old one never stopped.
    let before = site.containers("pr-7")["web"].clone();
    site.write("compose.yml", &BUSY.replace("\"8080\", \"one\"", "\"8081\", \"three\""));
    let toml = std::fs::read_to_string(site.dir.path().join("preview.toml")).expect("it is there");
    site.write("preview.toml", &format!("{toml}[timeouts]\nverify = \"8s\"\n"));
    let ran = site.deploy("7").expect(4);
    assert_eq!(ran.failure(), "unhealthy");
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "two");
    assert_eq!(site.containers("pr-7")["web"], before, "it is the one that ran");
    assert_eq!(site.containers("pr-7").len(), 2);
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// `web` may only run once `migrate`, which takes its time, has ended in the same version; it writes down where that is not so.
const AFTER: &str = r#"
services:
  migrate:
    image: busybox:1.36
    command: ["sh", "-c", "sleep 5; echo azure > /v/done"]
    volumes: ["data:/v"]
  web:
    image: busybox:1.36
    command: ["sh", "-c", "grep -qx azure /v/done || { touch /v/early; exit 7; }; mkdir -p /w && echo azure > /w/index.html && exec httpd -f -p 8080 -h /w"]
    depends_on: {migrate: {condition: service_completed_successfully}}
    healthcheck: {test: ["CMD", "wget", "-qO-", "http://127.0.0.1:8080/"], interval: 1s, retries: 30}
    volumes: ["data:/v"]
    stop_grace_period: 0s
volumes: {data: {}}
"#;

#[test]
fn a_rolling_update_waits_for_what_the_service_depends_on() {
    let Some(lane) = Lane::new(Kind::Nginx, Where::Local, AFTER) else { return };
    let site = &lane.site;
    let route =
        "[[route]]\nservice = \"web\"\nport = 8080\nurl = \"https://{name}.preview.test\"\nupdate = \"rolling\"\n";
    site.write("preview.toml", &format!("{}{route}", lane.table()));
    site.deploy("7").expect(0);
    lane.until("https://pr-7.preview.test/", 200);
    let old = site.containers("pr-7")["web"].clone();
    site.write("compose.yml", &AFTER.replace("azure", "brown"));
    site.deploy("7").expect(0);
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "brown");
    let new = site.containers("pr-7")["web"].clone();
    assert_ne!(new, old);
    assert_eq!(
        site.docker(&["exec", &new, "ls", "/v"]),
        "done",
        "no new container was there before the end of `migrate`"
    );

    // One that fails: the old version never stopped, and no new one was started.
    site.write("compose.yml", &AFTER.replace("azure", "coral").replace("sleep 5", "exit 3"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("migrate exited with code 3"), "{}", ran.err);
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "brown");
    assert_eq!(site.containers("pr-7")["web"], new, "it is the one that ran");
    assert_eq!(site.docker(&["exec", &new, "ls", "/v"]), "done");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn rolling_behind_traefik() {
    rolling(Kind::Traefik);
}

#[test]
fn rolling_behind_nginx() {
    rolling(Kind::Nginx);
}

#[test]
fn rolling_behind_caddy() {
    rolling(Kind::Caddy);
}
