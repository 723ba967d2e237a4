//! What a pull request cannot decide: its own file stands under that of the base branch.

use preview_tests::{Site, VmEngine, Where};

use crate::bad_input::{ONE, refused};
use crate::ci::github;

const DEPLOY: &[&str] = &["deploy", "--pr", "7"];

#[test]
fn the_base_branch_decides_over_the_host() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    site.write(".git/base.toml", "[guardrails]\nmemory = \"32MB\"\n[limits]\nmax_previews = 60\n");
    site.write(
        "preview.toml",
        "[guardrails]\nmemory = \"64GB\"\npids = 9999\n[policy]\nforks = true\n[env]\nA = \"1\"\n",
    );
    let ran = site.run(DEPLOY).expect(0);
    let warning = format!("warning: preview.toml: ignored here, since {base} decides: [guardrails], [policy]");
    assert!(ran.err.contains(&warning), "{}", ran.err);
    let format = "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}";
    let found = site.docker(&["inspect", "--format", format, &site.containers("pr-7")["app"]]);
    assert_eq!(found, format!("{} 256", 32_u64 << 20), "where the base says nothing, the default holds");
    // The application's name belongs to the base too; the pipeline's variable would win, so it is taken away.
    let name = site.app.clone();
    site.set("PREVIEW_APP", "");
    site.write(
        ".git/base.toml",
        &format!("app = \"{name}\"\n[guardrails]\nmemory = \"32MB\"\n[limits]\nmax_previews = 60\n"),
    );
    site.write("preview.toml", "app = \"of-another\"\n");
    let done = site.run(&["deploy", "--pr", "7", "--format", "json"]).expect(0);
    assert!(done.err.contains("decides: `app`"), "{}", done.err);
    assert_eq!(done.json()["kind"], "unchanged");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn errors_name_the_file() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    site.write("preview.toml", "\n[policy]\nforks = true\n");
    refused(&site, DEPLOY, 2, &["preview.toml:2:2: `policy`", "--trusted-config"]);
    for command in [["sweep", "--dry-run"], ["list", "--all"], ["destroy", "--pr=7"]] {
        site.run(&command).expect(0);
    }
    site.write("preview.toml", "[[route]]\nservice = \"api\"\nport = 80\n");
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    refused(&site, DEPLOY, 2, &["--trusted-config ", "base.toml: there is no such file"]);
    // By a relative name too.
    site.write("beside.toml", "[policy]\nforks = true\n");
    site.run(&["list", "--trusted-config", "beside.toml"]).expect(0);
    site.write(".git/base.toml", "[policy]\nfork = true\n");
    refused(&site, DEPLOY, 2, &[&format!("{base}:2:1: unknown key `policy.fork`; did you mean `forks`?")]);
    site.write(".git/base.toml", "[vm]\nhost = \"nonsense\"\n");
    refused(&site, DEPLOY, 2, &[&format!("{base}:2:8: `vm.host`")]);
    site.write(".git/base.toml", "");
    refused(&site, DEPLOY, 2, &["preview.toml:2:11: ", "no service `api`"]);
}

#[test]
fn forks_are_the_base_branchs_to_allow() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/github/pull_request.opened.json");
    let event = std::fs::read_to_string(fixture).expect("an event");
    let mut event: serde_json::Value = serde_json::from_str(&event).expect("JSON");
    event["pull_request"]["head"]["repo"]["full_name"] = "mallory/shop".into();
    site.write(".git/event.json", &event.to_string());
    let path = site.dir.path().join(".git/event.json");
    github(&mut site, &path);
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    site.write("preview.toml", "[policy]\nforks = true\n");
    for text in ["", "[policy]\nforks = false\n"] {
        site.write(".git/base.toml", text);
        refused(&site, &["ci"], 3, &["comes from the fork mallory/shop", "[policy] forks"]);
    }
    // The pull request's own file does not become trusted by being named.
    let own = site.dir.path().join("preview.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &own);
    refused(&site, &["ci"], 2, &["--trusted-config names the pull request's own file"]);
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    site.write(".git/base.toml", "[policy]\nforks = true\n");
    site.run(&["ci"]).expect(0);
    site.run(&["destroy", "--pr", "2"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// What the base branch allows is there on the engine; what it does not name is refused as ever.
#[test]
fn the_base_branch_allows_by_service_key_and_value() {
    let Some(mut site) = Site::new(Where::Vm(VmEngine::V28), ONE) else { return };
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    let directory = format!("/srv/{}", site.app);
    site.shell(&format!("mkdir -p {directory} && echo of the host >{directory}/file"));
    let more = format!("    cap_add: [SYS_PTRACE]\n    pid: host\n    volumes: [\"{directory}:/there:ro\"]\n");
    site.write("compose.yml", &format!("{ONE}{more}"));
    let allow = |key: &str, value: &str| {
        format!("[[policy.allow]]\nservice = \"app\"\nkey = \"{key}\"\nvalues = [\"{value}\"]\n")
    };
    site.write(".git/base.toml", &format!("{}{}", allow("cap_add", "SYS_ADMIN"), allow("volumes", "/srv")));
    let words = ["services.app.cap_add: ", "services.app.pid: ", "services.app.volumes: ", "values = [\"SYS_PTRACE\"]"];
    refused(&site, DEPLOY, 3, &words);
    let all = [allow("cap_add", "SYS_PTRACE"), allow("volumes", &directory), allow("pid", "host")].concat();
    // In the pull request's own file it counts for nothing.
    site.write("preview.toml", &all);
    refused(&site, DEPLOY, 3, &words);
    site.write("preview.toml", "");
    site.write(".git/base.toml", &all);
    site.run(DEPLOY).expect(0);
    let seen = site.run(&["exec", "--pr", "7", "app", "--", "cat", "/there/file"]).expect(0);
    assert_eq!(seen.out, "of the host\n", "the path of the host, not of the machine that deploys");
    let format = "{{.HostConfig.CapAdd}} {{.HostConfig.PidMode}}";
    let host = site.docker(&["inspect", "--format", format, &site.containers("pr-7")["app"]]);
    assert_eq!(host.replace("CAP_", ""), "[SYS_PTRACE] host");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    site.shell(&format!("test -f {directory}/file && rm -r {directory}"));
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// A secret lies beside the repository on the machine that deploys. No way to name it gets a word of it out.
#[test]
fn files_of_the_machine_that_deploys_are_not_read() {
    let Some(site) = Site::new(Where::Local, ONE) else { return };
    let outside = tempfile::tempdir().expect("a directory");
    std::fs::write(outside.path().join("secret.env"), "PLANTED=s3cr3t-of-the-runner\n").expect("a file");
    std::fs::write(outside.path().join("key"), "-----BEGIN KEY-----\ns3cr3t-of-the-runner\n").expect("a file");
    let (secret, key) = (outside.path().join("secret.env"), outside.path().join("key"));
    let (secret, key) = (secret.to_str().expect("a path"), key.to_str().expect("a path"));
    std::os::unix::fs::symlink(secret, site.dir.path().join("link.env")).expect("a link");
    site.write("more.yml", "services: {more: {image: \"busybox:${PLANTED}\"}}\n");
    site.write("fine.env", "FINE=1\n");
    let climbing = format!("../{}/secret.env", outside.path().file_name().expect("a name").to_string_lossy());
    for (lines, place) in [
        (format!("    env_file: {secret}\n"), "services.app.env_file"),
        (format!("    env_file: {key}\n"), "services.app.env_file"),
        (format!("    env_file: [fine.env, {{path: {climbing}, required: false}}]\n"), "services.app.env_file"),
        ("    env_file: link.env\n".to_owned(), "services.app.env_file"),
        ("    env_file: /proc/self/environ\n".to_owned(), "services.app.env_file"),
        (format!("    env_file: \"${{X:-{secret}}}\"\n"), "services.app.env_file"),
        (format!("    label_file: {secret}\n"), "services.app.label_file"),
        (format!("    extends: {{file: {key}, service: app}}\n"), "services.app.extends"),
        (format!("include: [{{path: more.yml, env_file: {secret}}}]\n"), "include[0].env_file"),
        (format!("include: [{{path: more.yml, env_file: {key}}}]\n"), "include[0].env_file"),
        ("include: [{path: more.yml, env_file: link.env}]\n".to_owned(), "include[0].env_file"),
        (format!("x-m: &m {{include: [{{path: more.yml, env_file: {secret}}}]}}\n<<: *m\n"), "include[0].env_file"),
    ] {
        site.write("compose.yml", &format!("{ONE}{lines}"));
        for args in [DEPLOY, &["plan", "--pr", "7", "-vv"]] {
            let ran = refused(&site, args, 3, &["may not have:", place]);
            assert!(!ran.err.contains("s3cr3t") && !ran.out.contains("s3cr3t"), "{lines}: {}", ran.err);
        }
    }
    // The builder quotes a Dockerfile that it cannot make sense of.
    std::os::unix::fs::symlink(outside.path(), site.dir.path().join("linked")).expect("a link");
    site.write("compose.yml", &format!("{ONE}    build: {{context: ., dockerfile: linked/key}}\n"));
    let ran = refused(&site, DEPLOY, 3, &["services.app.build.dockerfile: "]);
    assert!(!ran.err.contains("BEGIN"), "{}", ran.err);
    // The file that Compose reads without being asked.
    site.write("compose.yml", &format!("{ONE}    environment: {{X: \"${{PLANTED}}\"}}\n"));
    std::os::unix::fs::symlink(secret, site.dir.path().join(".env")).expect("a link");
    refused(&site, DEPLOY, 3, &["may not have:", ".env: "]);
    std::fs::remove_file(site.dir.path().join(".env")).expect("it is there");
    // Files of the repository are read as ever.
    let include = "include: [{path: more.yml, env_file: here.env}]";
    site.write("compose.yml", &format!("{ONE}    env_file: [\"${{WHICH:-none}}.env\"]\n{include}\n"));
    site.write(".env", "WHICH=fine\n");
    site.write("here.env", "PLANTED=1.36\n");
    let more = "{image: \"busybox:${PLANTED}\", command: [sleep, \"100000\"], stop_grace_period: 0s}";
    site.write("more.yml", &format!("services: {{more: {more}}}\n"));
    site.run(DEPLOY).expect(0);
    assert_eq!(site.run(&["exec", "--pr", "7", "app", "--", "sh", "-c", "echo $FINE"]).expect(0).out, "1\n");
    assert_eq!(site.containers("pr-7").len(), 2);
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}
