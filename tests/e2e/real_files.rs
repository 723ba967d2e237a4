//! What files of real projects ask for, and a preview need not have: kept or dropped, declared, and never a reason to fail.

use preview_tests::{Site, VmEngine, Where};
use serde_json::Value;

use crate::bad_input::{ONE, refused};

/// `web` asks for everything that is harmless; `tools` is of a profile that is off.
const HARMLESS: &str = r#"
services:
  web:
    build: {context: ., cache_from: ["type=registry,ref=registry.example.com/x"], cache_to: ["type=inline"], provenance: false, sbom: false}
    command: ["sh", "-c", "exec httpd -f -p 80 -h /www"]
    user: root
    cap_drop: [ALL]
    cap_add: [CAP_NET_BIND_SERVICE, chown, DAC_OVERRIDE]
    volumes:
      - /etc/localtime:/etc/localtime:ro
      - /etc/timezone:/etc/timezone
      - /usr/share/zoneinfo/Europe/Kyiv:/zone:ro
      - /dev/null:/app/.env
      - /dev/zero:/zero:ro
    logging: {driver: loki, options: {loki-url: "http://192.0.2.1/"}}
    depends_on: {tools: {condition: service_started, required: false}}
    secrets: [of_dotenv]
    configs: [of_dotenv]
    ports: ["80"]
    stop_grace_period: 0s
  tools:
    image: busybox:1.36
    profiles: [tools]
secrets: {of_dotenv: {environment: DB_PASSWORD}}
configs: {of_dotenv: {environment: BANNER}}
"#;

fn sh(site: &Site, script: &str) -> String {
    site.run(&["exec", "--pr", "7", "web", "--", "sh", "-c", script]).expect(0).out
}

fn differences(plan: &Value) -> Vec<String> {
    let all = plan["differences"].as_array().expect("differences");
    all.iter()
        .map(|one| format!("{}: {}", one["key"].as_str().unwrap_or_default(), one["what"].as_str().unwrap_or_default()))
        .collect()
}

#[test]
fn harmless_things_are_kept_or_dropped_and_declared() {
    let Some(site) = Site::new(Where::Local, HARMLESS) else { return };
    site.write(
        "Dockerfile",
        "FROM busybox:1.36\nRUN mkdir -p /www /app && echo hello >/www/index.html && echo hidden >/app/.env\n",
    );
    site.write(".env", "DB_PASSWORD='hush $hush'\nBANNER=good day\n");
    let told = differences(&site.run(&["plan", "--pr", "7", "--format", "json"]).expect(0).json());
    for key in [
        "services.web.build.cache_from: dropped",
        "services.web.build.cache_to: dropped",
        "services.web.build.provenance: dropped",
        "services.web.depends_on: `tools` dropped",
        "services.web.logging: `loki` replaced by json-file",
        "services.web.volumes: `/etc/localtime` dropped",
        "services.web.volumes: `/etc/timezone` dropped",
        "services.web.volumes: `/usr/share/zoneinfo/Europe/Kyiv` dropped",
        "services.web.volumes: `/dev/null` is mounted read-only",
    ] {
        assert!(told.iter().any(|one| one.starts_with(key)), "{key} is not in {told:#?}");
    }
    let done = site.run(&["deploy", "--pr", "7", "--format", "json", "-v"]).expect(0);
    assert!(!done.err.contains("hush"), "{}", done.err);
    assert!(site.get(done.json()["url"].as_str().expect("an address")).trim_end().ends_with("hello"));
    assert_eq!(sh(&site, "cat /run/secrets/of_dotenv; echo; cat /of_dotenv"), "hush $hush\ngood day");
    assert_eq!(sh(&site, "cat /app/.env; echo x >/app/.env && head -c 1 /zero | od -An -tx1"), " 00\n");
    assert!(
        sh(&site, "chmod 600 /app/.env 2>&1 || true").contains("Read-only file system"),
        "the host's device stays as it is"
    );
    assert_eq!(sh(&site, "ls -d /zone /etc/timezone 2>/dev/null || true"), "");
    let id = &site.containers("pr-7")["web"];
    assert_eq!(site.docker(&["inspect", "-f", "{{.HostConfig.LogConfig.Type}}", id]), "json-file");
    assert_eq!(
        site.run(&["deploy", "--pr", "7", "--format", "json"]).expect(0).json()["services"]["web"]["change"],
        "keep"
    );

    // A variable that is nowhere is found before anything is sent, and so is one that the Docker CLI would obey.
    site.write(".env", "DB_PASSWORD=\nDOCKER_HOST=tcp://192.0.2.1:1\n");
    let ran = site.run(&["plan", "--pr", "7", "--format", "json"]).expect(2).json();
    let found = ran["error"]["violations"].as_array().expect("violations");
    assert_eq!(
        (found.len(), &found[0]["key"], &found[0]["value"]),
        (1, &"configs.of_dotenv.environment".into(), &"BANNER".into())
    );
    site.write("compose.yml", &HARMLESS.replace("BANNER", "DOCKER_HOST"));
    let ran = site.run(&["plan", "--pr", "7"]).expect(2);
    assert!(ran.err.contains("configs.of_dotenv.environment: `DOCKER_HOST`: "), "{}", ran.err);
    // From a file that the configuration names.
    site.write("compose.yml", HARMLESS);
    site.write("preview.env", "DB_PASSWORD=other one\nBANNER=evening\n");
    site.write("preview.toml", "env_file = \"preview.env\"\n");
    let done = site.deploy("7").expect(0);
    assert!(!done.err.contains("other one"), "{}", done.err);
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// Compose refuses the key where the engine is older than Docker 25. The other engines get it as it is.
fn a_start_interval(engine: VmEngine, kept: bool) {
    let check = "    healthcheck: {test: [\"CMD\", \"true\"], interval: 1s, start_period: 20s, start_interval: 2s}\n";
    let Some(site) = Site::new(Where::Vm(engine), &format!("{ONE}{check}")) else { return };
    let told = differences(&site.run(&["plan", "--pr", "7", "--format", "json"]).expect(0).json());
    let dropped = told.iter().any(|one| one.starts_with("services.app.healthcheck.start_interval: dropped"));
    assert_eq!(dropped, !kept, "{told:#?}");
    site.deploy("7").expect(0);
    let id = &site.containers("pr-7")["app"];
    let check = site.docker(&["inspect", "-f", "{{json .Config.Healthcheck}}", id]);
    assert_eq!(check.contains("\"StartInterval\":2000000000"), kept, "{check}");
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");
    site.run(&["destroy", "--pr", "7"]).expect(0);
}

#[test]
fn a_start_interval_is_dropped_on_an_older_engine() {
    a_start_interval(VmEngine::V20, false);
}

#[test]
fn a_start_interval_stays_on_a_newer_engine() {
    a_start_interval(VmEngine::V28, true);
}

/// An engine of its own accord mounts the whole volume, or Compose fails when it starts the stack.
#[test]
fn what_an_older_engine_cannot_do_is_told_before_anything_is_changed() {
    let mounts = "    volumes: [{type: volume, source: data, target: /a, volume: {subpath: sub}}, {type: image, source: \"busybox:1.36\", target: /b}]\n";
    let compose = format!("{ONE}{mounts}volumes: {{data: {{}}}}\n");
    let Some(site) = Site::new(Where::Vm(VmEngine::V20), &compose) else { return };
    for command in ["plan", "deploy"] {
        let words = ["services.app.volumes: `sub`: `subpath` needs Docker 26", "a mount of an image needs Docker 28"];
        refused(&site, &[command, "--pr", "7"], 2, &words);
    }
}

/// What a service needs is the base branch's to allow, and the file's to ask for.
#[test]
fn memory_counts_up_to_what_the_base_branch_allows() {
    let service = |limit: &str| {
        format!(
            "    image: busybox:1.36\n    command: [\"sleep\", \"100000\"]\n    stop_grace_period: 0s\n    mem_limit: {limit}\n"
        )
    };
    let compose =
        format!("services:\n  web:\n{}  small:\n{}  elastic:\n{}", service("96m"), service("0"), service("1g"));
    let Some(mut site) = Site::new(Where::Local, &compose) else { return };
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    let limits = "[limits]\nmax_previews = 60\n";
    site.write(".git/base.toml", &format!("{limits}[guardrails]\nmemory = \"32MB\"\n"));
    // The pull request's own file gives nothing away.
    site.write(
        "preview.toml",
        "[guardrails]\nmemory = \"32MB\"\nmax_memory = \"64GB\"\n[guardrails.services.elastic]\nmemory = \"4GB\"\n",
    );
    let ran = site.run(&["plan", "--pr", "7", "--format", "json"]).expect(0);
    assert!(ran.err.contains("decides: [guardrails]"), "{}", ran.err);
    let told = differences(&ran.json());
    for service in ["web", "elastic"] {
        let line = format!("services.{service}.deploy.resources.limits: limit of memory lowered to 32 MB");
        assert!(told.iter().any(|one| one.starts_with(&line)), "{line} is not in {told:#?}");
    }
    let more = "max_memory = \"128MB\"\n[guardrails.services.elastic]\nmemory = \"256MB\"\npids = 77\n[guardrails.services.other]\ncpus = 2\n";
    site.write(".git/base.toml", &format!("{limits}[guardrails]\nmemory = \"32MB\"\n{more}"));
    let done = site.deploy("7").expect(0);
    assert!(done.err.contains("`guardrails.services` has `other`"), "{}", done.err);
    let containers = site.containers("pr-7");
    let found = |service: &str| {
        site.docker(&["inspect", "--format", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}", &containers[service]])
    };
    assert_eq!(found("web"), format!("{} 256", 96 << 20), "its own, up to the most");
    assert_eq!(found("small"), format!("{} 256", 32 << 20), "the usual");
    assert_eq!(found("elastic"), format!("{} 77", 256 << 20), "what the base branch says for it");
    let status = site
        .run(&["capacity", "--memory", "16GB", "--vcpus", "4", "--disk", "100GB", "--format", "json"])
        .expect(0)
        .json();
    let memory: u64 =
        status["services"].as_array().expect("services").iter().filter_map(|one| one["memory"].as_u64()).sum();
    assert_eq!(memory, (96 + 32 + 256) << 20, "{status}");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn what_is_not_harmless_stays_refused() {
    let Some(site) = Site::new(Where::Local, ONE) else { return };
    for (lines, word) in [
        ("    volumes: [\"/etc:/etc:ro\"]", "services.app.volumes: `/etc`: "),
        ("    volumes: [\"/etc/localtime/../shadow:/x:ro\"]", "services.app.volumes: `/etc/localtime/../shadow`: "),
        ("    volumes: [\"/dev:/x:ro\"]", "services.app.volumes: `/dev`: "),
        ("    volumes: [\"/dev/null/../sda:/x:ro\"]", "services.app.volumes: "),
        ("    cap_add: [CAP_NET_ADMIN]", "services.app.cap_add: `CAP_NET_ADMIN`: "),
        ("    cap_add: [ALL]", "services.app.cap_add: `ALL`: "),
    ] {
        site.write("compose.yml", &format!("{ONE}{lines}\n"));
        refused(&site, &["plan", "--pr", "7"], 3, &[word]);
    }
}

/// A path of the host is its text alone: what this machine has there is neither looked at nor sent.
#[test]
fn an_allowed_path_never_reads_the_machine_that_deploys() {
    let Some(mut site) = Site::new(Where::Vm(VmEngine::V20), ONE) else { return };
    let outside = tempfile::tempdir().expect("a directory");
    std::fs::write(outside.path().join("file"), "of the runner").expect("a file");
    let real = std::fs::canonicalize(outside.path()).expect("a path").to_string_lossy().into_owned();
    let link = format!("{real}-link");
    std::os::unix::fs::symlink(&real, &link).expect("a link");
    std::os::unix::fs::symlink(&real, site.dir.path().join("lnk")).expect("a link");
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    site.write(".git/base.toml", "");
    let allow =
        |value: &str| format!("[[policy.allow]]\nservice = \"app\"\nkey = \"volumes\"\nvalues = [\"{value}\"]\n");
    site.write("compose.yml", &format!("{ONE}    volumes: [\"{link}:/there\"]\n"));
    // The refusal names the text of the file, and its advice works.
    refused(
        &site,
        &["deploy", "--pr", "7"],
        3,
        &[&format!("services.app.volumes: `{link}`: "), &format!("values = [\"{link}\"]")],
    );
    site.write(".git/base.toml", &allow(&real));
    refused(&site, &["deploy", "--pr", "7"], 3, &[&format!("services.app.volumes: `{link}`: ")]);
    site.write(".git/base.toml", &allow(&link));
    site.run(&["deploy", "--pr", "7"]).expect(0);
    assert_eq!(
        site.run(&["exec", "--pr", "7", "app", "--", "ls", "/there"]).expect(0).out,
        "",
        "the host's own, made by Docker"
    );
    site.run(&["destroy", "--pr", "7"]).expect(0);
    site.shell(&format!("rmdir {link}"));
    // A link in the repository is no path of the host, whatever is allowed.
    site.write("compose.yml", &format!("{ONE}    volumes: [\"./lnk:/there\"]\n"));
    site.write(".git/base.toml", &allow(&real));
    refused(&site, &["deploy", "--pr", "7"], 3, &["services.app.volumes: `./lnk`: a link leads to "]);
    std::fs::remove_file(&link).expect("the link goes");
}

#[test]
fn profiles_and_overrides_are_named() {
    let compose = "services:\n  web: {image: \"busybox:1.36\", profiles: [dev, all], depends_on: [db]}\n  db: {image: \"busybox:1.36\", profiles: [data]}\n";
    let Some(site) = Site::new(Where::Local, compose) else { return };
    let words = ["`all` (web)", "`data` (db)", "`dev` (web)", "`profiles = [\"all\"]`", "--profile all"];
    refused(&site, &["plan", "--pr", "7", "--profile", "none"], 2, &words[3..]);
    refused(&site, &["plan", "--pr", "7"], 2, &words[3..]);
    let needed = ["`db` belongs to the profile `data`, which is not active", "--profile data"];
    refused(&site, &["plan", "--pr", "7", "--profile", "dev"], 2, &needed);

    site.write("compose.override.yml", "services: {web: {build: .}}\n");
    site.write("Dockerfile", "FROM busybox:1.36\n");
    site.write("compose.yml", "services: {web: {command: [\"sleep\", \"100000\"]}}\n");
    let advice = "`compose = [\"compose.yml\", \"compose.override.yml\"]`";
    let ran = refused(&site, &["plan", "--pr", "7", "--format", "json"], 2, &["web", advice]);
    assert!(ran.json()["error"]["message"].as_str().is_some_and(|text| text.contains(advice)), "{}", ran.out);
    site.write("compose.yml", ONE);
    let plan = site.run(&["plan", "--pr", "7", "--format", "json"]).expect(0).json();
    assert!(
        plan["warnings"].to_string().contains("compose.override.yml is beside compose.yml and is not used"),
        "{plan}"
    );
    site.write("preview.toml", "compose = \"compose.yml\"\n");
    let plan = site.run(&["plan", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!(plan["warnings"], Value::Array(vec![]));
}
