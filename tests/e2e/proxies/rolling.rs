//! Rolling updates: a client that asks all the time loses nothing.

use preview_tests::lane::{Kind, Lane};
use preview_tests::load::{BUSY, hammer, update};
use preview_tests::{Where, eventually};

fn rolling(kind: Kind) {
    let Some(lane) = Lane::new(kind, Where::Local, BUSY) else { return };
    let seen = update(&lane, "rolling", 25);
    assert!(seen.asked > 100, "{seen:?}");
    assert_eq!(seen.failed, 0, "{seen:?}\n{}", lane.log());
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

/// Two services on one host, of which one is rolled.
const TWO: &str = r#"
services:
  web:
    image: preview-lab/ways
    command: ["ways", "http", "8080", "one"]
    healthcheck: {test: ["CMD", "curl", "-sf", "http://127.0.0.1:8080/"], interval: 1s, retries: 30}
  api:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir -p /w/api && echo api > /w/api/index.html && exec httpd -f -p 8000 -h /w"]
    healthcheck: {test: ["CMD", "wget", "-qO-", "http://127.0.0.1:8000/api/"], interval: 1s, retries: 30}
    stop_grace_period: 0s
"#;

const TWO_ROUTES: &str = r#"
[[route]]
service = "web"
port = 8080
url = "https://{name}.preview.test"
update = "rolling"
[[route]]
service = "api"
port = 8000
url = "https://{name}.preview.test/api"
"#;

#[test]
fn generations_behind_traefik() {
    let Some(lane) = Lane::new(Kind::Traefik, Where::Local, TWO) else { return };
    let site = &lane.site;
    let toml = format!("{}{TWO_ROUTES}", lane.table());
    site.write("preview.toml", &toml);
    site.deploy("7").expect(0);
    lane.until("https://pr-7.preview.test/api/", 200);
    let prefix = format!("{}_pr-7-", site.app);
    // Those that Traefik takes, with their priorities.
    let routers = || -> Vec<(String, u64)> {
        let all = lane.traefik("/api/http/routers");
        let ours = all.as_array().expect("a list").iter().filter_map(|router| {
            let name = router["name"].as_str()?.strip_suffix("@docker")?.strip_prefix(&prefix)?.to_owned();
            assert_eq!(router["status"], "enabled", "{router}");
            Some((name, router["priority"].as_u64()?))
        });
        let mut ours: Vec<_> = ours.collect();
        ours.sort();
        ours
    };
    let names = |names: &[&str]| {
        eventually(&format!("Traefik has the routers {names:?}"), || {
            routers().iter().map(|(name, _)| name.as_str()).eq(names.iter().copied())
        });
        let found = routers();
        let api = found.iter().find(|(name, _)| name.starts_with('1')).expect("the longer path");
        assert!(found.iter().all(|(name, priority)| name.starts_with('1') || *priority < api.1), "{found:?}");
        assert_eq!(lane.curl("https://pr-7.preview.test/api/", &[]).body.trim(), "api");
    };
    names(&["0", "1"]);
    let api = site.containers("pr-7")["api"].clone();

    // The generation is rolled, its neighbour is not touched.
    let two = TWO.replace("\"one\"", "\"two\"");
    let seen = hammer(&lane, 20, || {
        site.write("compose.yml", &two);
        site.deploy("7").expect(0);
    });
    assert_eq!((seen.failed, seen.asked > 100), (0, true), "{seen:?}\n{}", lane.log());
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "two");
    names(&["0-g1", "1"]);
    assert_eq!(site.containers("pr-7")["api"], api);
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");

    // So is one with other routes, which the old one does not know.
    let more = "[[route]]\nservice = \"web\"\nport = 8080\nurl = \"https://{name}-more.preview.test\"\n";
    let seen = hammer(&lane, 20, || {
        site.write("preview.toml", &format!("{toml}{more}"));
        site.deploy("7").expect(0);
    });
    assert_eq!(seen.failed, 0, "{seen:?}\n{}", lane.log());
    assert_eq!(lane.curl("https://pr-7-more.preview.test/", &[]).body.trim(), "two");
    names(&["0-g2", "1", "2-g2"]);

    // A version that does not get well leaves nothing of its generation.
    site.write("compose.yml", &two.replace("\"8080\", \"two\"", "\"8081\", \"three\""));
    site.write("preview.toml", &format!("{toml}{more}[timeouts]\nverify = \"8s\"\n"));
    assert_eq!(site.deploy("7").expect(4).failure(), "unhealthy");
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "two");
    names(&["0-g2", "1", "2-g2"]);

    // A password holds for all of it once the update is done, though the generation before had none.
    site.write("compose.yml", &two);
    let table = "[proxy.basic_auth]\npassword = \"WORD\"\n[generate]\nWORD = { length = 20 }\n";
    site.write("preview.toml", &format!("{toml}{table}"));
    site.deploy("7").expect(0);
    for url in ["https://pr-7.preview.test/", "https://pr-7.preview.test/api/"] {
        assert_eq!(lane.until(url, 401).status, 401);
    }
    assert!(matches!(lane.curl("https://pr-7-more.preview.test/", &[]).status, 404 | 503), "it went");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}
