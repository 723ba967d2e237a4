//! Bad input: each kind has its own message, its place and its exit code, and changes nothing.

use preview_tests::{Ran, Site, Where};

/// One service that publishes nothing.
pub(crate) const ONE: &str = "\
services:
  app:
    image: busybox:1.36
    command: [\"sleep\", \"100000\"]
    stop_grace_period: 0s
";

/// Runs, and expects this exit code, all of these words in the message, and an untouched host.
#[track_caller]
pub(crate) fn refused(site: &Site, args: &[&str], code: i32, words: &[&str]) -> Ran {
    let ran = site.run(args).expect(code);
    let message = ran.err.split_once("preview: ").map_or(ran.err.as_str(), |(_, message)| message);
    for word in words {
        assert!(message.contains(word), "{args:?}: `{word}` is not in:\n{}", ran.err);
    }
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    assert_eq!(site.remains(), Vec::<String>::new(), "{args:?}");
    ran
}

const DEPLOY: &[&str] = &["deploy", "--pr", "7"];

#[test]
fn compose_files() {
    for (compose, code, words) in [
        ("", 2, &["there is no Compose file in", "compose.yaml", "docker-compose.yml", "--compose"][..]),
        ("services:\n  app:\n    image: x\n    imag: y\n", 2, &["compose.yml", "services.app", "'imag' not allowed"]),
        ("services:\n  app:\n    image: [x\n  b: {}\n", 2, &["compose.yml:4: ", "not valid YAML"]),
        ("services:\n  app:\n   image: x\n     command: y\n", 2, &["compose.yml:4: "]),
        ("# nothing yet\n", 2, &["empty compose file", "compose.yml"]),
        ("services: {}\n", 2, &["define no service"]),
        (
            "services:\n  app: {image: x, profiles: [never]}\n",
            2,
            &["none of these is active: `never` (app)", "--profile never"],
        ),
        ("services:\n  app: {image: x, depends_on: [db]}\n", 2, &["app", "db"]),
        (
            "services:\n  app: {image: x, volumes: [\"./missing.conf:/etc/x:ro\"], configs: [c]}\nconfigs: {c: {file: ./c.conf}}\n",
            2,
            &["configs.c.file: `./c.conf`: ", "does not exist"],
        ),
        (
            "services:\n  app: {image: x, environment: {X: \"${X:?set it in preview.toml}\"}}\n",
            2,
            &["compose.yml", "services.app.environment.X", "required variable X", "set it in preview.toml"],
        ),
        ("include: [\"https://github.com/acme/shop.git\"]\n", 2, &["git remote resource is disabled"]),
        ("include: [\"oci://registry.example.com/acme/shop\"]\n", 2, &["OCI remote resource is disabled"]),
    ] {
        let Some(site) = Site::new(Where::Local, compose) else { return };
        refused(&site, DEPLOY, code, words);
        let ran = refused(&site, &["deploy", "--pr", "7", "--format", "json"], code, words);
        let document = ran.json();
        assert_eq!(document["error"]["code"], code, "{document}");
        assert_eq!(ran.failure(), "config_invalid", "{document}");
        assert!(document["error"]["message"].as_str().is_some_and(|text| text.contains(words[0])), "{document}");
        refused(&site, &["plan", "--pr", "7"], code, words);
    }
}

#[test]
fn a_variable_that_is_not_set_is_a_warning_that_names_it() {
    let compose = format!("{ONE}    environment: {{X: \"<${{UNSET_HERE}}>\"}}\n");
    let Some(site) = Site::new(Where::Local, &compose) else { return };
    let plan = site.run(&["plan", "--pr", "7", "--format", "json"]).expect(0).json();
    assert!(plan["warnings"][0].as_str().is_some_and(|text| text.contains("UNSET_HERE")), "{plan}");
    let ran = site.run(DEPLOY).expect(0);
    assert!(ran.err.contains("warning: The \"UNSET_HERE\" variable is not set"), "{}", ran.err);
    assert_eq!(site.run(&["exec", "--pr", "7", "app", "--", "sh", "-c", "echo $X"]).expect(0).out, "<>\n");
    site.run(&["destroy", "--pr", "7"]).expect(0);
}

#[test]
fn configuration() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    for (toml, words) in [
        (
            "[guardrails]\n\nmemry = \"1GB\"\n",
            &["preview.toml:3:1: ", "unknown key `guardrails.memry`", "`memory`?"][..],
        ),
        ("app = \"shop\"\n[guardrails\n", &["preview.toml:2:", "not valid TOML"]),
        ("[guardrails]\nmemory = \"lots\"\n", &["preview.toml:2:10: ", "`guardrails.memory`", "`512MB`"]),
        ("[guardrails]\nmemory = \"1kB\"\n", &["preview.toml:2:10: ", "6MB"]),
        ("[timeouts]\ntotal = \"20\"\n", &["preview.toml:2:9: ", "`20` has no unit", "`20m`"]),
        ("[timeouts]\nbuild = \"-1m\"\n", &["preview.toml:2:9: ", "`timeouts.build`"]),
        ("[[route]]\nservice = \"api\"\nport = 8000\n", &["preview.toml:2:11: ", "no service `api`", "there are: app"]),
        (
            "[[step]]\nafter = \"start\"\nservice = \"api\"\nrun = [\"x\"]\n",
            &["preview.toml:3:11: ", "no service `api`", "there are: app"],
        ),
        (
            "[health]\npath = \"/\"\nservice = \"api\"\nport = 80\n",
            &["preview.toml:3:11: ", "no service `api`", "there are: app"],
        ),
        ("\nenv_services = [\"app\", \"api\"]\n", &["preview.toml:2:16: ", "no service `api`", "there are: app"]),
        ("[[route]]\nservice = \"app\"\nport = 80000\n", &["preview.toml:3:8: ", "65535"]),
        ("[[secrets]]\nkind = \"vault\"\n", &["preview.toml:2:8: ", "`vault` is not known", "`env`"]),
        ("[[secrets]]\nkind = \"env\"\nnames = [\"TOKEN_A\", \"TOKEN_B\"]\n", &["not set: TOKEN_A, TOKEN_B"]),
        ("[vm]\nhost = \"vm.example.com\"\n", &["preview.toml:2:8: ", "ssh://user@host", "`local`"]),
        ("compose = \"nope.yml\"\n", &["preview.toml:1:11: ", "nope.yml does not exist"]),
        ("compose = \"../../etc/x.yml\"\n", &["preview.toml:1:11: ", "x.yml is outside the repository"]),
        ("env_file = \"/etc/hostname\"\n", &["preview.toml:1:12: ", "/etc/hostname is outside the repository"]),
        ("env_file = \"nope.env\"\n", &["preview.toml:1:12: ", "nope.env does not exist"]),
        ("[env]\nDOCKER_HOST = \"tcp://x\"\n", &["preview.toml:2:1: ", "DOCKER_HOST"]),
    ] {
        site.write("preview.toml", toml);
        refused(&site, DEPLOY, 2, words);
    }
    // A secret that CI does not have is an empty variable.
    site.write("preview.toml", "[[secrets]]\nkind = \"env\"\nnames = [\"TOKEN_A\"]\n");
    site.set("TOKEN_A", "");
    refused(&site, DEPLOY, 2, &["empty: TOKEN_A"]);
}

#[test]
fn flags_and_variables() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    for (args, words) in [
        (&["deploy", "--pr", "7", "--timeout", "5x"][..], &["--timeout: ", "`5x`", "`15m`"][..]),
        (&["deploy", "--pr", "0"], &["start at 1"]),
        (&["deploy", "--pr", "x"], &["invalid value 'x' for '--pr <N>'"]),
        (&["deploy", "--pr", "7", "--branch", "x"], &["cannot be used with"]),
        (&["deploy"], &["--pr <N>|--branch <BRANCH>"]),
        (&["deploy", "--pr", "7", "--compose", "nope.yml"], &["--compose: ", "nope.yml does not exist"]),
        (&["deploy", "--pr", "7", "--config", "nope.toml"], &["nope.toml: No such file"]),
        (&["deploy", "--pr", "7", "--project-dir", "nope"], &["--project-dir nope: No such file"]),
        (&["deploy", "--pr", "7", "--host", "nonsense"], &["--host: ", "ssh://user@host", "`local`"]),
        (&["deploy", "--pr", "7", "--host", "ssh://"], &["--host: ", "host name"]),
        (&["deploy", "--pr", "7", "--host", "ssh://-oProxyCommand=touch@x"], &["--host: ", "user name"]),
        (&["deploy", "--pr", "7", "--host", "ssh://me:secret@x"], &["--host: ", "a password"]),
        (&["deploy", "--pr", "7", "--host", "ssh://x:99999"], &["--host: ", "port out of range"]),
        (&["deploy", "--pr", "7", "--app", "No App"], &["--app: "]),
        (&["list", "--base-dir", "previews"], &["--base-dir: "]),
        (&["ci"], &["GITHUB_ACTIONS", "GITLAB_CI", "`preview deploy`"]),
        (&["frobnicate"], &["unrecognized subcommand"]),
        // A preview that does not exist.
        (&["exec", "--pr", "7", "app", "--", "true"], &["there is no preview `pr-7` of"]),
        (&["logs", "--pr", "7"], &["there is no preview `pr-7` of"]),
        (&["status", "--pr", "7"], &["there is no preview `pr-7` of"]),
        (&["tunnel", "--pr", "7", "app:80"], &["there is no preview `pr-7` of"]),
        (&["status", "--name", "Not a name"], &["`Not a name` is not the name of a preview"]),
    ] {
        let ran = refused(&site, args, 2, words);
        assert!(!ran.err.contains("me:secret"), "{}", ran.err);
    }
    site.set("DOCKER_HOST", "tcp://192.0.2.1:2375");
    refused(&site, DEPLOY, 2, &["DOCKER_HOST", "ssh://user@host", "--host"]);
    refused(&site, &["list"], 2, &["DOCKER_HOST"]);
}

#[test]
fn branches() {
    let Some(site) = Site::new(Where::Local, ONE) else { return };
    for (branch, words) in [
        ("x".repeat(300).as_str(), &["is not a branch name", "255"][..]),
        ("///", &["`///` is not a branch name", "`//`"]),
        ("", &["is not a branch name", "empty"]),
        ("a\nb", &["`a\\nb` is not a branch name", "control character"]),
        ("a\u{9b}b", &["is not a branch name", "control character"]),
        ("a..b", &["is not a branch name", "`..`"]),
        ("HEAD", &["HEAD", "not a branch"]),
    ] {
        refused(&site, &["deploy", "--branch", branch], 2, words);
        refused(&site, &["destroy", "--branch", branch], 2, words);
    }
    // An option is none of ours.
    refused(&site, &["deploy", "--branch", "--upload-pack=x"], 2, &["--branch"]);
}

/// Quotes, `$()` and `;` are legal in a branch: it deploys, and nothing that stands in it is run anywhere.
fn shell_characters(place: Where) {
    let Some(mut site) = Site::new(place, ONE) else { return };
    let mark = format!("touched-by-{}", site.app);
    let branch = format!("it's-\"q\"-$(touch${{IFS}}{mark});touch${{IFS}}{mark}&`touch${{IFS}}{mark}`|x");
    site.set("GITHUB_ACTOR", "o'$(id)");
    let done = site.run(&["deploy", "--branch", &branch, "--commit", "a'$(id)", "--format", "json"]).expect(0).json();
    let name = done["name"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("preview-its-q-touchifstouched"), "{name}");
    let status = site.run(&["status", "--branch", &branch, "--format", "json"]).expect(0).json();
    assert_eq!(status["subject"], format!("branch {branch}"));
    assert_eq!(site.run(&["exec", "--branch", &branch, "app", "--", "echo", "$(id)"]).expect(0).out, "$(id)\n");
    site.run(&["deploy", "--branch", &branch]).expect(0);
    site.run(&["logs", "--branch", &branch]).expect(0);
    site.run(&["destroy", "--branch", &branch]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
    let found = site.shell(&format!("find / -xdev -name '{mark}*' -not -path '/proc/*' 2>/dev/null || :"));
    assert_eq!(found, "");
    assert!(!site.dir.path().join(&mark).exists());
}

#[test]
fn shell_characters_on_this_machine() {
    shell_characters(Where::Local);
}

#[test]
fn shell_characters_on_a_vm() {
    shell_characters(Where::Vm(preview_tests::VmEngine::V20));
}

#[test]
fn names_that_are_taken() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    site.set("GITHUB_REPOSITORY", "acme/shop");
    site.run(&["deploy", "--branch", "feature/x"]).expect(0);
    let before = (site.containers("preview-feature-x"), site.remains());
    let ran = site.run(&["deploy", "--branch", "feature-x"]).expect(3);
    assert!(ran.err.contains("preview-feature-x is taken by branch feature/x"), "{}", ran.err);
    site.run(&["plan", "--branch", "feature-x"]).expect(3);
    // Whoever may not deploy there may not destroy there, event or not.
    let event = ["destroy", "--branch", "feature-x", "--event-time", "2036-01-01T00:00:00Z"];
    for args in [&event[..3], &event] {
        let ran = site.run(args).expect(3);
        assert!(ran.err.contains("preview-feature-x is taken by branch feature/x"), "{}", ran.err);
    }
    assert_eq!((site.containers("preview-feature-x"), site.remains()), before);

    // Another repository under the same application name.
    site.run(&["deploy", "--pr", "7"]).expect(0);
    let before = (site.containers("pr-7"), site.remains());
    site.set("GITHUB_REPOSITORY", "acme/other");
    for args in [DEPLOY, &["destroy", "--pr", "7"]] {
        let ran = site.run(args).expect(3);
        assert!(ran.err.contains("pr-7 is taken by pull request 7 of acme/shop"), "{}", ran.err);
    }
    site.write("open", "1\n");
    site.run(&["sweep", "--open-prs", "open", "--grace", "0s"]).expect(0);
    assert_eq!((site.containers("pr-7"), site.remains()), before);

    site.set("GITHUB_REPOSITORY", "acme/shop");
    for args in [["destroy", "--pr", "7"], ["destroy", "--branch", "feature/x"]] {
        site.run(&args).expect(0);
    }
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn what_a_pull_request_may_not_bring() {
    let Some(site) = Site::new(Where::Local, ONE) else { return };
    std::os::unix::fs::symlink("/etc", site.dir.path().join("innocent")).expect("a link");
    for (lines, key, words) in [
        ("    volumes: [\"/etc:/etc:ro\"]", "services.app.volumes", "`/etc`: it is outside the repository"),
        ("    volumes: [\"../other:/other\"]", "services.app.volumes", "`../other`: it is outside the repository"),
        ("    volumes: [\"./innocent:/etc\"]", "services.app.volumes", "`./innocent`: a link leads to /etc, outside"),
        (
            "    volumes: [\"./innocent/new:/etc\"]",
            "services.app.volumes",
            "`./innocent/new`: a link leads to /etc/new, outside",
        ),
        (
            "    volumes: [\"/var/run/docker.sock:/s\"]",
            "services.app.volumes",
            "docker.sock`: whoever has the Docker socket is root",
        ),
        ("    privileged: true", "services.app.privileged", "root on the host"),
        ("    network_mode: host", "services.app.network_mode", "`host`: it shares"),
        ("    pid: host", "services.app.pid", "`host`: it shares"),
        ("    ipc: host", "services.app.ipc", "`host`: it shares"),
        ("    devices: [\"/dev/kmsg\"]", "services.app.devices", "belong to the host"),
        ("    cap_add: [SYS_ADMIN]", "services.app.cap_add", "reach outside"),
        ("    security_opt: [\"seccomp:unconfined\"]", "services.app.security_opt", "loosens"),
        ("    build: {context: ., ssh: [default]}", "services.app.build.ssh", "lends the agent"),
        ("    build: ..", "services.app.build.context", "outside the repository"),
        ("    labels: {preview.managed: \"true\"}", "services.app.labels.preview.managed", "say what is ours"),
        ("    configs: [c]\nconfigs: {c: {file: /etc/hostname}}", "configs.c.file", "outside the repository"),
        ("    networks: [n]\nnetworks: {n: {external: true, name: bridge}}", "networks.n.external", "own network"),
        (
            "    volumes: [\"vol:/v\"]\nvolumes: {vol: {driver_opts: {type: none, o: bind, device: /etc}}}",
            "volumes.vol.driver_opts",
            "belongs to the host",
        ),
        (
            // For the kernel this is the host's root, whatever the type says.
            "    volumes: [\"vol:/v\"]\nvolumes: {vol: {driver_opts: {type: tmpfs, o: bind, device: /}}}",
            "volumes.vol.driver_opts",
            "belongs to the host",
        ),
    ] {
        site.write("compose.yml", &format!("{ONE}{lines}\n"));
        refused(&site, DEPLOY, 3, &["may not have:", key, words]);
    }
    // All at once.
    let several =
        "    privileged: true\n    network_mode: host\n    volumes: [\"/etc:/e\", \"/var/run/docker.sock:/s\"]\n";
    site.write("compose.yml", &format!("{ONE}{several}"));
    let words = ["services.app.privileged", "services.app.network_mode", "`/etc`: it is outside", "docker.sock"];
    refused(&site, DEPLOY, 3, &words);
    refused(&site, &["plan", "--pr", "7"], 3, &words);
}

/// Containers inherit the labels of their images, and a proxy on the host reads them.
#[test]
fn images_that_tell_a_proxy_what_to_route() {
    let label = "traefik.http.routers.e.rule";
    let compose = format!("{ONE}    build: {{context: ., labels: {{{label}: \"Host(`a.example.com`)\"}}}}\n");
    let Some(site) = Site::new(Where::Local, &compose.replace("    image: busybox:1.36\n", "")) else { return };
    site.write("Dockerfile", "FROM busybox:1.36\n");
    site.run(DEPLOY).expect(0);
    let labels =
        |site: &Site| site.docker(&["inspect", "-f", "{{json .Config.Labels}}", &site.containers("pr-7")["app"]]);
    assert!(!labels(&site).contains("traefik"), "those of the Compose file are taken off: {}", labels(&site));

    site.write("Dockerfile", &format!("FROM busybox:1.36\nLABEL {label}=\"Host(`a.example.com`)\"\n"));
    let ran = site.run(&["deploy", "--pr", "7", "--format", "json"]).expect(4);
    assert!(ran.err.contains(&format!("has the label `{label}`")), "{}", ran.err);
    assert_eq!(ran.failure(), "start_failed");
    assert!(!labels(&site).contains("traefik"), "the version before runs");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// The table in `docs/exit-codes.md` has the codes that `--help` tells of, and each is what some test expects (but 1: it is for what nobody
/// foresaw).
#[test]
fn exit_codes_are_documented_and_produced() {
    let top = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let page = std::fs::read_to_string(format!("{top}/docs/exit-codes.md")).expect("the page");
    let codes: Vec<u8> =
        page.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok()).collect();
    assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let help = std::process::Command::new(preview_tests::preview_binary()).arg("--help").output().expect("it runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let (_, help) = help.split_once("Exit codes:").expect("a table");
    let tests: String = std::fs::read_dir(format!("{top}/tests/e2e"))
        .expect("tests")
        .filter_map(|entry| std::fs::read_to_string(entry.expect("a file").path()).ok())
        .collect();
    for code in codes {
        assert!(help.contains(&format!("  {code} ")), "--help does not tell of {code}");
        let expected = [format!("expect({code})"), format!("args, {code}, "), format!("DEPLOY, {code}, ")];
        assert!(code == 1 || expected.iter().any(|text| tests.contains(text)), "no test expects {code}");
    }
}
