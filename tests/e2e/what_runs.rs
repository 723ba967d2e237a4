//! What runs is what the files ask for: jobs end once, data stays, networks hold together, images are pulled as they say, and ports are what they are.

use std::collections::BTreeSet;

use preview_tests::{Ran, Site, VmOptions, Where, eventually};
use serde_json::Value;

use crate::stacks::alone;

/// Without floors: they are the machine's business, which may be a small one.
const CONFIG: &str = "[limits]\nmin_free_disk = \"1MB\"\nmin_free_memory = \"1MB\"\n";

/// A page on port 8000, with these lines more.
fn web(lines: &str) -> String {
    format!(
        "  web:\n    image: busybox:1.36\n    command: [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/\"]\n    init: true\n    stop_grace_period: 0s\n{lines}"
    )
}

fn compose(services: &[String], rest: &str) -> String {
    format!("services:\n{}{rest}", services.concat())
}

fn local(compose: &str) -> Option<Site> {
    let site = Site::new(Where::Local, compose)?;
    site.write("preview.toml", CONFIG);
    Some(site)
}

#[track_caller]
fn in_service(site: &Site, service: &str, script: &str) -> String {
    site.run(&["exec", "--pr", "7", service, "--", "sh", "-c", script]).expect(0).out.trim().to_owned()
}

#[track_caller]
fn plan(site: &Site) -> Value {
    site.run(&["plan", "--pr", "7", "--format", "json"]).expect(0).json()
}

#[track_caller]
fn inspect(site: &Site, service: &str, format: &str) -> String {
    let containers = site.containers("pr-7");
    let id = containers.get(service).unwrap_or_else(|| panic!("no {service} in {containers:?}"));
    site.docker(&["inspect", "--format", format, id])
}

#[track_caller]
fn destroyed(site: &Site) {
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// Ends after a moment, and leaves a line for each time that it ran.
const JOB: &str = r#"
  job:
    image: busybox:1.36
    command: ["sh", "-c", "echo ran >> /log/runs; sleep 4"]
    volumes: ["log:/log"]
"#;

#[test]
fn a_job_ends_once_and_a_server_comes_back_with_its_engine() {
    let log = "volumes:\n  log: {}\n";
    let files = compose(
        &[
            web("    ports: [\"8000\"]\n    volumes: [\"log:/log:ro\"]\n"),
            JOB.to_owned(),
            web("    restart: unless-stopped\n").replace("web:", "said:"),
        ],
        log,
    );
    let Some(site) = alone(&VmOptions::default(), &files) else { return };
    site.write("preview.toml", CONFIG);
    site.deploy("7").expect(0);
    let policy = "{{.HostConfig.RestartPolicy.Name}} {{.State.Status}} {{.RestartCount}}";
    eventually("the job ends", || inspect(&site, "job", policy) == "on-failure exited 0");
    assert_eq!(plan(&site)["kind"], "unchanged", "a job that is done is as it should be");

    let vm = site.vm().expect("a VM");
    vm.kill_dockerd().expect("dies");
    vm.start_dockerd().expect("starts");
    for server in ["web", "said"] {
        eventually("the server is back", || inspect(&site, server, policy).starts_with("always running"));
    }
    assert_eq!(in_service(&site, "web", "wc -l < /log/runs"), "1", "the job ran once");
    site.run(&["destroy", "--pr", "7"]).expect(0);
}

#[test]
fn a_routed_service_that_ends_has_failed() {
    let ends = "  web:\n    image: busybox:1.36\n    command: [\"true\"]\n    restart: \"no\"\n    ports: [\"8000\"]\n";
    let Some(site) = local(&compose(&[ends.to_owned()], "")) else { return };
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("web ended (with code 0)"), "{}", ran.err);
    assert_eq!(ran.failure(), "exited");
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// Two containers with the image's volume, a page with a volume of the image and one of the file without a name.
fn with_volumes(page: &str, version: &str, command: &str) -> String {
    format!(
        r#"
services:
  {page}:
    build: .
    command: ["sh", "-c", "{command}"]
    init: true
    stop_grace_period: 0s
    environment: {{VERSION: "{version}"}}
    ports: ["8000"]
    volumes: ["/app/node_modules"]
  worker:
    build: .
    command: ["sleep", "100000"]
    init: true
    stop_grace_period: 0s
    environment: {{VERSION: "{version}"}}
    deploy: {{replicas: 2}}
"#
    )
}

const SERVES: &str = "exec httpd -f -p 8000 -h /www";
const READS: &str = "cat /data/mine /app/node_modules/mine";

fn anonymous(site: &Site) -> BTreeSet<String> {
    let filter = format!("label=preview.app={}", site.app);
    let ids = site.docker(&["ps", "-aq", "--filter", &filter]);
    let format = "{{range .Mounts}}{{if eq .Type \"volume\"}}{{println .Name}}{{end}}{{end}}";
    let all = site.docker(&[&["inspect", "--format", format], ids.lines().collect::<Vec<_>>().as_slice()].concat());
    all.lines().map(str::trim).filter(|name| name.len() == 64).map(str::to_owned).collect()
}

#[test]
fn volumes_without_a_name_live_and_go_with_their_preview() {
    let Some(site) = local(&with_volumes("web", "1", SERVES)) else { return };
    site.write("Dockerfile", "FROM busybox:1.36\nCOPY www /www\nVOLUME [\"/data\", \"/www\"]\n");
    site.write("www/index.html", "one");
    let url = site.deploy("7").expect(0).json()["url"].as_str().expect("an address").to_owned();
    in_service(&site, "web", "echo data > /data/mine; echo module > /app/node_modules/mine");
    assert_eq!(anonymous(&site).len(), 4, "two for each of the two workers, none for the page");

    // An update keeps them, and tells what the new image has that they hide.
    site.write("compose.yml", &with_volumes("web", "2", SERVES));
    site.write("www/index.html", "two");
    let planned = plan(&site);
    let warned = |text: &str| text.contains("web: at /www it goes on with the volume");
    let warnings = planned["warnings"].as_array().expect("warnings");
    assert!(warnings.iter().filter_map(Value::as_str).any(warned), "{planned}");
    let ran = site.deploy("7").expect(0);
    assert!(warned(&ran.err), "{}", ran.err);
    assert_eq!(in_service(&site, "web", READS), "data\nmodule");
    assert!(site.get(&url).ends_with("one"), "as it was told");

    // An update that renames the service and fails gives the old one its data back.
    site.write("compose.yml", &with_volumes("page", "3", "exit 3"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("The version before runs, with its data"), "{}", ran.err);
    assert_eq!(in_service(&site, "web", READS), "data\nmodule");

    // A removal that dies after its containers leaves nothing that the next one does not find.
    let left = anonymous(&site);
    assert!(!left.is_empty());
    destroyed(&site);
    let all = site.docker(&["volume", "ls", "-q"]);
    let left: Vec<&String> = left.iter().filter(|name| all.lines().any(|line| line == name.as_str())).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn services_find_each_other_after_their_network_changed() {
    let idle = |name: &str| web("").replace("  web:", &format!("  {name}:"));
    let files = |rest: &str| compose(&[idle("web"), idle("db")], rest);
    let Some(site) = local(&files("")) else { return };
    let meet = |what: &str| {
        for (from, to) in [("web", "db"), ("db", "web")] {
            let script = format!("wget -q -O /dev/null http://{to}:8000/etc/hostname && echo found");
            assert_eq!(in_service(&site, from, &script), "found", "{what}: {from} asks {to}");
        }
    };
    site.deploy("7").expect(0);
    meet("at first");
    site.write(
        "compose.yml",
        &files("networks: {default: {driver_opts: {com.docker.network.driver.mtu: \"1400\"}}}\n"),
    );
    site.deploy("7").expect(0);
    meet("another option of the driver");
    assert_eq!(in_service(&site, "web", "cat /sys/class/net/eth0/mtu"), "1400");
    site.write("preview.toml", &format!("{CONFIG}[isolation]\ninternal = true\n"));
    site.deploy("7").expect(0);
    meet("closed");
    destroyed(&site);
}

#[test]
fn images_are_pulled_as_each_service_says() {
    let with = |image: &str, policy: &str| {
        let service = web(&format!("    pull_policy: {policy}\n    ports: [\"8000\"]\n"));
        compose(&[service.replace("busybox:1.36", image)], "")
    };
    // Nobody listens on port 9: whoever pulls, fails.
    let Some(site) = local("") else { return };
    let image = format!("127.0.0.1:9/{}/asked:1", site.app);
    let image = image.as_str();
    site.write("compose.yml", &with(image, "never"));
    let refused = |ran: Ran| {
        assert!(ran.err.contains("services.web.pull_policy: `never`") && ran.err.contains(image), "{}", ran.err);
    };
    refused(site.run(&["plan", "--pr", "7"]).expect(2));
    refused(site.deploy("7").expect(2));
    assert_eq!(site.remains(), Vec::<String>::new());

    site.docker(&["tag", "busybox:1.36", image]);
    for policy in ["never", "missing", "if_not_present"] {
        site.write("compose.yml", &with(image, policy));
        site.deploy("7").expect(0);
    }
    let kept = site.containers("pr-7");
    for policy in ["always", "daily", "every_12h"] {
        site.write("compose.yml", &with(image, policy));
        let planned = plan(&site);
        let pulls = planned["actions"].as_array().expect("actions").iter().any(|action| action["action"] == "pull");
        assert!(pulls, "{policy}: {planned}");
        assert_eq!(planned["services"]["web"]["change"], "refresh", "{planned}");
        let ran = site.deploy("7").expect(4);
        assert!(ran.err.contains("while pulling"), "{policy}: {}", ran.err);
        assert_eq!(site.containers("pr-7"), kept);
    }
    destroyed(&site);
    site.docker(&["image", "rm", image]);
}

#[test]
fn published_ports_are_told_for_what_they_are() {
    let silent = web("    ports: [\"8000\", \"443\", \"9999\"]\n");
    let db = "  db:\n    image: busybox:1.36\n    command: [\"nc\", \"-ll\", \"-p\", \"5432\", \"-e\", \"cat\"]\n    init: true\n    stop_grace_period: 0s\n    ports: [\"5432:5432\", \"53/udp\"]\n";
    let api = web("    ports: [\"8000\"]\n    deploy: {replicas: 3}\n").replace("  web:", "  api:");
    let Some(site) = local(&compose(&[silent, db.to_owned(), api], "")) else { return };
    site.write("preview.toml", &format!("{CONFIG}[[route]]\nservice = \"web\"\nport = 8000\n"));
    let ran = site.deploy("7").expect(0);
    let done = ran.json();
    let url_of = |service: &str, port: u64| -> Vec<String> {
        let all = done["addresses"].as_array().expect("addresses").iter();
        let own = all.filter(|address| address["service"] == service && address["port"] == port);
        own.filter_map(|address| address["url"].as_str()).map(str::to_owned).collect()
    };
    assert_eq!(done["url"].as_str().map(str::to_owned), url_of("web", 8000).first().cloned(), "{done}");
    for port in [443, 9999] {
        assert!(ran.err.contains(&format!("web: nothing listens on port {port}")), "{}", ran.err);
        assert!(url_of("web", port)[0].starts_with("tcp://127.0.0.1:"), "{done}");
    }
    assert!(url_of("db", 5432)[0].starts_with("tcp://127.0.0.1:"), "{done}");
    assert!(url_of("db", 53)[0].starts_with("udp://127.0.0.1:"), "{done}");
    // No route leads there, but it answers HTTP; and each of three containers has a port.
    let three = url_of("api", 8000);
    assert_eq!(three.len(), 3, "{done}");
    for url in &three {
        assert!(site.get(&format!("{url}/etc/hostname")).contains(" 200 OK"), "{url}");
    }
    let status = site.run(&["status", "--pr", "7"]).expect(0).out;
    assert!(status.contains(" (db 5432/tcp)") && !status.contains("tcp://"), "{status}");
    assert_eq!(site.deploy("7").expect(0).json()["addresses"], done["addresses"], "and so it stays");
    destroyed(&site);
}

#[test]
fn a_database_alone_has_no_url() {
    let db = "  db:\n    image: busybox:1.36\n    command: [\"nc\", \"-ll\", \"-p\", \"5432\", \"-e\", \"cat\"]\n    init: true\n    stop_grace_period: 0s\n    ports: [\"5432:5432\"]\n";
    let Some(site) = local(&compose(&[db.to_owned()], "")) else { return };
    let ran = site.run(&["deploy", "--pr", "7"]).expect(0);
    assert!(ran.out.starts_with("127.0.0.1:") && ran.out.trim_end().ends_with("(db 5432/tcp)"), "{}", ran.out);
    assert_eq!(site.run(&["list", "--format", "json"]).expect(0).json()["previews"][0]["url"], Value::Null);
    destroyed(&site);
}

#[test]
fn a_health_check_is_waited_for_as_long_as_the_file_says() {
    let check = "    healthcheck: {test: [\"CMD\", \"test\", \"-e\", \"/tmp/ready\"], interval: 1s, retries: 2, start_period: 90s}\n";
    let slow = web(check).replace(
        "[\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/\"]",
        "[\"sh\", \"-c\", \"sleep 62; touch /tmp/ready; exec sleep 100000\"]",
    );
    let Some(site) = local(&compose(&[slow], "")) else { return };
    // A limit that is set is meant, and named.
    site.write("preview.toml", &format!("{CONFIG}[timeouts]\nverify = \"2s\"\n"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("after 2 s: web is not healthy yet ([timeouts] verify)"), "{}", ran.err);
    site.write("preview.toml", CONFIG);
    site.deploy("7").expect(0);
    destroyed(&site);
}

#[test]
fn what_cannot_change_in_place_is_told() {
    let files = |more: &str| {
        compose(
            &[web("    volumes: [\"data:/data\"]\n    build: .\n").replace("    image: busybox:1.36\n", "")],
            &format!("volumes:\n  data: {{{more}}}\n"),
        )
    };
    let Some(site) = local(&files("")) else { return };
    site.write("Dockerfile", "FROM busybox:1.36\n");
    site.deploy("7").expect(0);
    let planned = plan(&site);
    assert_eq!(planned["services"]["web"]["change"], "refresh", "{planned}");
    assert!(
        site.run(&["plan", "--pr", "7"])
            .expect(0)
            .out
            .contains("its image is built anew; recreated if that changes it")
    );
    site.write("compose.yml", &files("driver_opts: {type: tmpfs, device: tmpfs}"));
    let told = |text: &str| text.contains("volumes.data: `driver_opts` changed");
    assert!(told(&site.run(&["plan", "--pr", "7"]).expect(0).out));
    assert!(told(&site.deploy("7").expect(0).err));
    destroyed(&site);
}
