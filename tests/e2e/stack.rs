//! What a Compose file can hold arrives on a real engine as it was meant, two previews share nothing, and nothing else differs.

use preview_tests::{Site, VmEngine, Where};
use serde_json::{Value, json};

const FULL: &str = r#"
services:
  app:
    image: busybox:1.36
    container_name: shop-app
    command: ["sh", "-c", "mkdir -p /tmp/w && echo $${GREETING} > /tmp/w/index.html && exec httpd -f -p 8080 -h /tmp/w"]
    environment: {GREETING: "${GREETING}", PRICE: "5$$"}
    ports: ["8080"]
    depends_on:
      migrate: {condition: service_completed_successfully}
    configs:
      - {source: from_file, target: /etc/from_file}
      - {source: inline, target: /etc/inline}
    secrets: [from_file_secret, from_variable]
    volumes:
      - ./conf/one.conf:/etc/one.conf:ro
      - ./conf:/etc/conf:ro
      - ./not/there:/etc/empty
      - data:/data
      - fixed:/fixed
    networks: {default: {aliases: [shop]}, back: {}}
    stop_grace_period: 0s
  migrate:
    image: busybox:1.36
    command: ["sh", "-c", "echo migrated >> /data/log"]
    volumes: ["data:/data"]
    restart: "no"
  small:
    image: busybox:1.36
    command: ["sleep", "100000"]
    deploy: {resources: {limits: {cpus: "0.25", memory: 32M, pids: 20}}}
    read_only: true
    tmpfs: [/tmp]
    configs: [from_file]
    logging: {driver: json-file, options: {max-size: 1m}}
    restart: on-failure
    stop_grace_period: 0s
  large:
    image: busybox:1.36
    command: ["sleep", "100000"]
    mem_limit: 8g
    cpus: 1000
    stop_grace_period: 0s
  sidecar:
    image: busybox:1.36
    command: ["sleep", "100000"]
    network_mode: service:app
    stop_grace_period: 0s
  never:
    image: busybox:1.36
    command: ["sleep", "100000"]
    profiles: [never]
  parser:
    image: busybox:1.36
    command: ["sleep", "100000"]
    profiles: [parser]
    stop_grace_period: 0s
configs:
  from_file: {file: ./conf/one.conf}
  inline: {content: "hello ${GREETING}\n"}
secrets:
  from_file_secret: {file: ./secret.txt}
  from_variable: {environment: TOKEN}
volumes:
  data: {}
  fixed: {name: shop-fixed}
networks:
  back: {name: shop-back, ipam: {config: [{subnet: 10.213.7.0/24}]}}
"#;

const CONFIG: &str = r#"
env_file = "preview.env"
profiles = ["parser"]

[guardrails]
cpus = 0.5
memory = "64MB"
pids = 100
log_size = "2MB"
log_files = 2

[[secrets]]
kind = "env"
names = ["TOKEN"]
"#;

fn full(place: Where) -> Option<Site> {
    let mut site = Site::new(place, FULL)?;
    site.write("preview.toml", CONFIG);
    site.write("preview.env", "GREETING=good day\n");
    site.write("conf/one.conf", "one\n");
    site.write("conf/deep/two.conf", "two\n");
    site.write("secret.txt", "hush hush\n");
    site.set("TOKEN", "tok$en 'q' \"d\"");
    Some(site)
}

fn sh(site: &Site, pr: &str, service: &str, script: &str) -> String {
    site.run(&["exec", "--pr", pr, service, "--", "sh", "-c", script]).expect(0).out
}

fn inspect(site: &Site, id: &str) -> Value {
    let all: Value = serde_json::from_str(&site.docker(&["inspect", id])).expect("JSON");
    all[0].clone()
}

fn everything(place: Where) {
    let Some(site) = full(place) else { return };
    let first = site.deploy("7").expect(0).json();
    let containers = site.containers("pr-7");
    let services: Vec<&str> = containers.keys().map(String::as_str).collect();
    assert_eq!(services, ["app", "large", "migrate", "parser", "sidecar", "small"], "`never` is of another profile");
    assert!(site.get(first["url"].as_str().expect("an address")).trim_end().ends_with("good day"));

    // Files, configs, secrets.
    for (path, content) in [
        ("/etc/from_file", "one\n"),
        ("/etc/inline", "hello good day\n"),
        ("/run/secrets/from_file_secret", "hush hush\n"),
        ("/run/secrets/from_variable", "tok$en 'q' \"d\""),
        ("/etc/one.conf", "one\n"),
        ("/etc/conf/one.conf", "one\n"),
        ("/etc/conf/deep/two.conf", "two\n"),
    ] {
        assert_eq!(sh(&site, "7", "app", &format!("cat {path}")), content, "{path}");
    }
    assert_eq!(sh(&site, "7", "app", "ls /etc/empty; echo $PRICE"), "5$\n");
    assert_eq!(sh(&site, "7", "small", "touch /tmp/x; touch /x 2>/dev/null || cat /from_file"), "one\n");
    assert_eq!(sh(&site, "7", "sidecar", "wget -q -O - http://127.0.0.1:8080/"), "good day\n");
    assert_eq!(
        sh(&site, "7", "small", "wget -q -O - http://shop-app:8080/; wget -q -O - http://shop:8080/"),
        "good day\ngood day\n"
    );
    limits(&site, &containers);

    // A second preview has its own of everything.
    site.deploy("8").expect(0);
    let _ = sh(&site, "7", "app", "echo seven > /fixed/mine; echo seven > /data/mine");
    assert_eq!(sh(&site, "8", "app", "ls /fixed /data"), "/data:\nlog\n\n/fixed:\n");
    let back: Vec<Value> = ["pr-7", "pr-8"]
        .map(|name| inspect(&site, &site.containers(name)["app"])["NetworkSettings"]["Networks"].clone())
        .into();
    let names = |networks: &Value| networks.as_object().expect("networks").keys().cloned().collect::<Vec<_>>();
    assert_ne!(names(&back[0]), names(&back[1]));
    assert!(site.docker(&["network", "ls", "--format", "{{.Name}}"]).lines().all(|name| name != "shop-back"));
    assert!(site.docker(&["volume", "ls", "--format", "{{.Name}}"]).lines().all(|name| name != "shop-fixed"));
    assert!(site.docker(&["ps", "-a", "--format", "{{.Names}}"]).lines().all(|name| name != "shop-app"));

    // Again: nothing differs, the one-shot does not run again. An update keeps what the volumes hold.
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");
    assert_eq!(sh(&site, "7", "app", "cat /data/log"), "migrated\n");
    site.write("preview.env", "GREETING=good night\n");
    let update = site.deploy("7").expect(0).json();
    assert_eq!((&update["kind"], &update["services"]["small"]["change"]), (&json!("update"), &json!("keep")));
    assert_eq!(sh(&site, "7", "app", "cat /data/mine /fixed/mine /etc/inline"), "seven\nseven\nhello good night\n");

    for pr in ["7", "8"] {
        site.run(&["destroy", "--pr", pr]).expect(0);
    }
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// The engine enforces what was declared.
fn limits(site: &Site, containers: &std::collections::BTreeMap<String, String>) {
    let host = |service: &str| inspect(site, &containers[service])["HostConfig"].clone();
    for (service, cpus, memory, pids, log, restart) in [
        ("app", 500_000_000_u64, 64 << 20, 100, json!({"max-file": "2", "max-size": "2097152"}), "always"),
        ("small", 250_000_000, 32 << 20, 20, json!({"max-size": "1m"}), "on-failure"),
        ("large", 500_000_000, 64 << 20, 100, json!({"max-file": "2", "max-size": "2097152"}), "on-failure"),
        ("migrate", 500_000_000, 64 << 20, 100, json!({"max-file": "2", "max-size": "2097152"}), "no"),
    ] {
        let host = host(service);
        let found = (host["NanoCpus"].as_u64(), host["Memory"].as_u64(), host["PidsLimit"].as_u64());
        assert_eq!(found, (Some(cpus), Some(memory), Some(pids)), "{service}");
        assert_eq!(host["LogConfig"]["Config"], log, "{service}");
        assert_eq!(host["RestartPolicy"]["Name"], restart, "{service}");
    }
    assert_eq!(host("small")["ReadonlyRootfs"], true);
    let ports = host("app")["PortBindings"]["8080/tcp"].clone();
    assert_eq!(ports[0]["HostIp"], "127.0.0.1", "{ports}");
}

#[test]
fn everything_on_this_machine() {
    everything(Where::Local);
}

#[test]
fn everything_with_the_other_compose() {
    everything(Where::OtherCompose);
}

#[test]
fn everything_on_a_vm() {
    everything(Where::Vm(VmEngine::V28));
}

/// Paths of the leaves of a model with their values.
fn leaves(value: &Value, path: &str, into: &mut std::collections::BTreeMap<String, Value>) {
    match value {
        Value::Object(table) if !table.is_empty() => {
            table.iter().for_each(|(key, value)| leaves(value, &format!("{path}.{key}"), into));
        }
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(index, value)| leaves(value, &format!("{path}.{index}"), into));
        }
        _ => {
            into.insert(path.trim_start_matches('.').to_owned(), value.clone());
        }
    }
}

/// What runs is the user's model but for what `plan` says, and the labels that say whose it is.
#[test]
fn nothing_else_differs() {
    let Some(site) = full(Where::Local) else { return };
    site.deploy("7").expect(0);
    let plan = site.run(&["plan", "--pr", "7", "--format", "json"]).expect(0).json();
    let told: Vec<(String, String)> = plan["differences"]
        .as_array()
        .expect("differences")
        .iter()
        .map(|one| {
            (one["key"].as_str().unwrap_or_default().to_owned(), one["what"].as_str().unwrap_or_default().to_owned())
        })
        .collect();
    let project = format!("{}_pr-7", site.app);
    let user = site
        .command(&[])
        .get_envs()
        .fold(std::process::Command::new("docker"), |mut docker, (name, value)| {
            if let Some(value) = value {
                docker.env(name, value);
            }
            docker
        })
        .args([
            "compose",
            "-p",
            &project,
            "--env-file",
            "preview.env",
            "--profile",
            "parser",
            "config",
            "--format",
            "json",
        ])
        .current_dir(site.dir.path())
        .output()
        .expect("docker runs");
    let (mut before, mut after) = (Default::default(), Default::default());
    leaves(&serde_json::from_slice(&user.stdout).expect("JSON"), "", &mut before);
    let stack = site.shell(&format!("cat {}/{}/pr-7/stack-*.json", site.base(), site.app));
    leaves(&serde_json::from_str(&stack).expect("JSON"), "", &mut after);
    let changed: Vec<&String> =
        before.keys().chain(after.keys()).filter(|key| before.get(*key) != after.get(*key)).collect();
    let mut unexplained = Vec::new();
    for key in &changed {
        let own =
            ["app", "base", "content", "managed", "name", "networks"].map(|name| format!("labels.preview.{name}"));
        let ours = own.iter().any(|label| key.ends_with(label.as_str()));
        // A fixed name lives on as an alias, and the old keys for limits are moved to where the new ones are.
        let place = key.split(".networks.").next().filter(|_| key.contains(".aliases.") || key.ends_with(".back"));
        let place = place.map(|service| format!("{service}.container_name")).or_else(|| {
            let service = key.strip_suffix(".cpus").or_else(|| key.strip_suffix(".mem_limit"))?;
            Some(format!("{service}.deploy.resources.limits"))
        });
        let explained = told.iter().any(|(told, _)| key.starts_with(told.as_str()) || Some(told) == place.as_ref());
        if !ours && !explained {
            unexplained.push(format!("{key}: {:?} -> {:?}", before.get(*key), after.get(*key)));
        }
    }
    assert!(unexplained.is_empty(), "{unexplained:#?}\n{told:#?}");
    for (told, what) in &told {
        assert!(changed.iter().any(|key| key.starts_with(told.as_str())), "{told}: {what}: nothing changed there");
    }
    let shown = told.iter().map(|(key, what)| format!("{key}: {what}\n")).collect::<String>().replace(&site.app, "APP");
    insta::assert_snapshot!(without_ports(&shown));
    site.run(&["destroy", "--pr", "7"]).expect(0);
}

/// Free ports differ from run to run.
fn without_ports(text: &str) -> String {
    let mut out = String::new();
    let mut digits = String::new();
    for c in text.chars().chain([' ']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        out.push_str(if digits.len() == 5 { "PORT" } else { &digits });
        digits.clear();
        out.push(c);
    }
    out.trim_end().to_owned()
}

const HEALTH: &str = r#"
services:
  app:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir -p /w/cgi-bin; cd /w; echo ok > index.html; for s in 200 500; do printf '#!/bin/sh\\nprintf \"Status: '$$s'\\\\r\\\\n\\\\r\\\\n\"\\n' > cgi-bin/$$s; done; chmod +x cgi-bin/*; exec httpd -f -p 8000 -h /w"]
    stop_grace_period: 0s
  other:
    image: busybox:1.36
    command: ["httpd", "-f", "-p", "9000"]
    stop_grace_period: 0s
"#;

fn routes_and_health(place: Where) {
    let Some(site) = Site::new(place, HEALTH) else { return };
    let config = |path: &str| {
        format!(
            "[timeouts]\nverify = \"4s\"\n[health]\npath = \"{path}\"\n\
             [[route]]\nservice = \"app\"\nport = 8000\n[[route]]\nservice = \"other\"\nport = 9000\n"
        )
    };
    site.write("preview.toml", &config("/cgi-bin/500"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("GET /cgi-bin/500 answered 500"), "{}", ran.err);
    assert_eq!(
        (ran.failure().as_str(), ran.json()["error"]["report"]["services"][0]["failure"].as_str()),
        ("probe_failed", Some("probe_failed"))
    );
    assert_eq!(site.remains(), Vec::<String>::new());
    site.write("preview.toml", &config("/nowhere"));
    assert!(site.deploy("7").expect(4).err.contains("answered 404"));

    site.write("preview.toml", &config("/cgi-bin/200"));
    let done = site.deploy("7").expect(0).json();
    let services: Vec<_> =
        done["addresses"].as_array().expect("addresses").iter().map(|a| a["service"].clone()).collect();
    assert_eq!(services, ["app", "other"]);
    assert!(site.get(done["url"].as_str().expect("an address")).trim_end().ends_with("ok"));
    assert!(site.get(done["addresses"][1]["url"].as_str().expect("an address")).contains("404"));
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn routes_and_health_on_this_machine() {
    routes_and_health(Where::Local);
}

#[test]
fn routes_and_health_on_a_vm() {
    routes_and_health(Where::Vm(VmEngine::V20));
}
