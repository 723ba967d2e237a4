//! What a pull request writes into its files to reach the machine that deploys, or others: refused in words before anything is sent, or without effect.

use std::os::unix::fs::symlink;

use preview_tests::{Site, Where};

use crate::bad_input::{ONE, refused};

/// What stands in a file, or in the environment, that nobody may read.
const PLANTED: &str = "planted-9f31";

const DEPLOY: &[&str] = &["deploy", "--pr", "7"];

/// A site, and a file beside its repository that holds [`PLANTED`].
fn site(compose: &str) -> Option<(Site, tempfile::TempDir, String)> {
    let beside = tempfile::tempdir().expect("a directory");
    let file = beside.path().join("secret.env");
    std::fs::write(&file, format!("TOKEN={PLANTED}\n")).expect("written");
    let path = file.to_str().expect("UTF-8").to_owned();
    let mut site = Site::new(Where::Local, &compose.replace("OUTSIDE", &path))?;
    site.set("PLANTED", PLANTED);
    Some((site, beside, path))
}

#[test]
fn what_compose_would_read_elsewhere_is_refused() {
    let Some((site, _beside, outside)) = site("") else { return };
    symlink("/proc/self/environ", site.dir.path().join("link.env")).expect("a link");
    symlink(&outside, site.dir.path().join("secret.env")).expect("a link");
    site.write("sub/more.yml", "services: {}\n");
    for (compose, code, words) in [
        (
            "services: {app: {image: x, env_file: /proc/self/environ}}",
            3,
            &["services.app.env_file", "/proc/self/environ"][..],
        ),
        ("services: {app: {image: x, env_file: link.env}}", 3, &["services.app.env_file", "outside the repository"]),
        ("services: {app: {image: x, label_file: [secret.env]}}", 3, &["services.app.label_file", "secret.env"]),
        ("services: {app: {image: x, pre_start: [{env_file: OUTSIDE}]}}", 3, &["services.app.pre_start[0].env_file"]),
        ("include: [{path: sub/more.yml, env_file: link.env}]", 3, &["include[0].env_file", "link.env"]),
        ("services: {app: {image: x, extends: {file: secret.env, service: a}}}", 3, &["secret.env"]),
        // A tag that makes another key of the merge key, or a text of bytes, to one parser alone.
        (
            "x-a: &a {env_file: OUTSIDE}\nservices: {app: {image: x, ! <<: *a}}",
            2,
            &["compose.yml:2: ", "`<<`", "without quotes and tags"],
        ),
        (
            "services: {app: {image: x, env_file: !!binary L3Byb2Mvc2VsZi9lbnZpcm9u}}",
            2,
            &["compose.yml:1: ", "`!!binary`"],
        ),
        (
            "services:\n  app: {image: x}\n  app: {image: y}\n",
            2,
            &["compose.yml:3: ", "the key `app` stands in line 2 already", "remove one"],
        ),
        (
            "services: {app: {image: x, volumes: [\"~/.aws:/x\"]}}",
            3,
            &["services.app.volumes", "~/.aws", "home directory"],
        ),
    ] {
        site.write("compose.yml", &format!("{}\n", compose.replace("OUTSIDE", &outside)));
        let ran = refused(&site, DEPLOY, code, words);
        assert!(!ran.err.contains(PLANTED) && !ran.out.contains(PLANTED), "{compose}: {}", ran.err);
    }
}

#[test]
fn files_with_variables_are_not_quoted() {
    let Some((site, _beside, _)) = site(ONE) else { return };
    for text in [format!("A=1\nB C {PLANTED}\n"), format!("A=\"{PLANTED}\n"), format!("A{{{PLANTED}=1\n")] {
        site.write(".env", &text);
        let ran = refused(&site, DEPLOY, 2, &[".env", "`NAME=value`"]);
        assert!(!ran.err.contains(PLANTED), "{}", ran.err);
    }
    std::fs::remove_file(site.dir.path().join(".env")).expect("removed");
    symlink("/proc/self/environ", site.dir.path().join(".env")).expect("a link");
    let ran = refused(&site, DEPLOY, 3, &[".env", "outside the repository"]);
    assert!(!ran.err.contains(PLANTED), "{}", ran.err);
}

/// A line break to one parser, a part of a comment to the other; many aliases; paths by links, variables and absolute ones.
#[test]
fn ordinary_files_mean_what_they_meant() {
    let aliases = vec!["*word"; 300].join(", ");
    let compose = format!(
        "{ONE}    init: true # x\u{85}    env_file: OUTSIDE\n    env_file: [a.env, '${{SUB:-sub}}/b.env', {{path: missing.env, required: false}}]\n    \
         environment: {{C: \"5$$\", D: é😀}}\n    extends: {{file: sub/base.yml, service: base}}\nx-w: &word w\nx-words: [{aliases}]\n"
    );
    let Some((site, _beside, _)) = site(&compose) else { return };
    site.write("own.env", "A=one\n");
    symlink("own.env", site.dir.path().join("a.env")).expect("a link");
    site.write("sub/b.env", "B=two\n");
    site.write("sub/base.yml", "services: {base: {volumes: [./data:/data], env_file: e.env}}\n");
    site.write("sub/e.env", "E=three\n");
    site.write("sub/data/file", "content\n");
    site.run(DEPLOY).expect(0);
    let ran = site
        .run(&["exec", "--pr", "7", "app", "--", "sh", "-c", "echo $A $B $C $D $E $TOKEN; cat /data/file"])
        .expect(0);
    assert_eq!(ran.out, "one two 5$ é😀 three\ncontent\n");
    site.run(&["destroy", "--pr", "7"]).expect(0);
}

#[test]
fn names_of_files_are_no_variables() {
    let compose = format!("{ONE}    volumes: [\"./link:/www\"]\n");
    let Some((site, _beside, _)) = site(&compose) else { return };
    site.write("preview.toml", "[env]\nEVIL = \"../../../../../../../../../../etc\"\n");
    site.write("${EVIL}/passwd", "of the repository\n");
    symlink("${EVIL}", site.dir.path().join("link")).expect("a link");
    let ran = site.run(DEPLOY);
    if ran.code == 0 {
        let seen = site.run(&["exec", "--pr", "7", "app", "--", "cat", "/www/passwd"]).expect(0);
        assert_eq!(seen.out, "of the repository\n");
        site.run(&["destroy", "--pr", "7"]).expect(0);
    } else {
        assert_eq!(ran.code, 3, "{}", ran.err);
        assert!(
            ran.err.contains("services.app.volumes") && ran.err.contains("which Compose would take for a variable"),
            "{}",
            ran.err
        );
    }
}

#[test]
fn builds_read_no_template_and_fetch_nothing() {
    let Some((site, _beside, _)) = site("") else { return };
    site.write("Dockerfile", "FROM busybox:1.36\n");
    for (build, words) in [
        (
            "{context: \"$${1 == 2 ? \\\"https://x\\\" : \\\"/home\\\"}\", dockerfile_inline: \"FROM busybox:1.36\"}",
            &["services.app.build.context"][..],
        ),
        ("{context: ., target: \"$${x}\"}", &["services.app.build.target", "`${`", "template"]),
        ("{context: ., labels: {\"$${x}\": y}}", &["services.app.build.labels", "`${`"]),
        ("{context: ., args: {A: \"%{ if true }x%{ endif }\"}}", &["services.app.build.args", "`%{`"]),
        (
            "{context: ., dockerfile_inline: \"RUN echo %{x}\"}",
            &["services.app.build.dockerfile_inline", "file of the repository"],
        ),
        (
            "\"https://git.invalid/x.git\"",
            &["services.app.build.context", "https://git.invalid/x.git", "[[policy.allow]]"],
        ),
        (
            "{context: ., additional_contexts: {x: \"git@git.invalid:x.git\"}}",
            &["services.app.build.additional_contexts.x"],
        ),
        (
            "{context: ., additional_contexts: {x: \"oci-layout:///etc\"}}",
            &["services.app.build.additional_contexts.x"],
        ),
    ] {
        site.write("compose.yml", &format!("services:\n  app:\n    build: {build}\n"));
        refused(&site, DEPLOY, 3, words);
    }
}

/// What the VM's container runtime would obey, and frontends that another version of the builder than ours would take.
#[test]
fn annotations_and_second_frontends_are_refused() {
    let Some((site, _beside, _)) = site("") else { return };
    for (service, words) in [
        (
            "image: x\n    annotations: {org.systemd.property.SuccessAction: \"'reboot'\"}",
            &["services.app.annotations"][..],
        ),
        (
            "image: x\n    networks: {default: {driver_opts: {a.b: c}}}",
            &["services.app.networks.default.driver_opts.a.b"],
        ),
        ("build: {context: ., labels: {preview.files: x}}", &["services.app.build.labels.preview.files"]),
        ("image: \"a[b\"", &["services.app.image", "does not name an image"]),
    ] {
        site.write("compose.yml", &format!("services:\n  app:\n    {service}\n"));
        site.write("Dockerfile", "FROM busybox:1.36\n");
        refused(&site, DEPLOY, 3, words);
    }
    site.write("compose.yml", "services:\n  app:\n    build: .\n");
    for (dockerfile, word) in [
        ("# syntax=docker/dockerfile:1\n# syntax=evil/frontend\nFROM busybox:1.36\n", "build.syntax"),
        (r#"{"syntax": "evil/frontend", "a": "\ud800"}"#, "build.dockerfile"),
    ] {
        site.write("Dockerfile", dockerfile);
        refused(&site, DEPLOY, 3, &[word]);
    }
}

/// A repository in a build context whose configuration names a program: git would run it on the machine that deploys.
#[test]
fn git_reads_nothing_of_a_build_context() {
    let compose = format!(
        "{}    build: {{context: ./ctx, args: {{A: \"$${{A}}\"}}}}\n",
        ONE.replace("    image: busybox:1.36\n", "")
    );
    let Some((site, beside, _)) = site(&compose) else { return };
    let mark = beside.path().join("ran");
    site.write("ctx/Dockerfile", "FROM busybox:1.36\nARG A\nRUN echo \"$A\" > /arg\n");
    site.write("ctx/HEAD", "ref: refs/heads/main\n");
    site.write("ctx/refs/heads/main", "1234567890123456789012345678901234567890\n");
    site.write("ctx/objects/info/packs", "\n");
    site.write("ctx/x.sh", &format!("touch {}\n", mark.display()));
    site.write(
        "ctx/config",
        "[core]\n\trepositoryformatversion = 1\n\tbare = false\n\tworktree = .\n[extensions]\n\tpartialClone = origin\n\
         [remote \"origin\"]\n\turl = .\n\tpromisor = true\n\tuploadpack = \"sh ./x.sh; false\"\n",
    );
    // The bait works where git is asked.
    let git =
        std::process::Command::new("git").args(["show", "main"]).current_dir(site.dir.path().join("ctx")).output();
    assert!(git.is_ok_and(|git| !git.status.success()) && mark.exists(), "git did not run the script");
    std::fs::remove_file(&mark).expect("removed");
    site.run(DEPLOY).expect(0);
    assert!(!mark.exists(), "a program of the pull request ran on the machine that deploys");
    let ran = site.run(&["exec", "--pr", "7", "app", "--", "cat", "/arg"]).expect(0);
    assert_eq!(ran.out, "${A}\n");
    site.run(&["destroy", "--pr", "7"]).expect(0);
}

#[test]
fn variables_of_the_runner_are_not_passed_and_it_is_said_how_to_declare_them() {
    let compose = format!("{ONE}    environment: {{X: \"${{PLANTED:?}}\"}}\n");
    let Some((site, _beside, _)) = site(&compose) else { return };
    let ran = refused(
        &site,
        DEPLOY,
        2,
        &["required variable PLANTED", "not passed to Compose", "declare `PLANTED` in [env], [[secrets]]"],
    );
    assert!(!ran.err.contains(PLANTED), "{}", ran.err);
}

/// A `docker` that says its version and then does this instead, first in `PATH`.
fn docker_that(site: &mut Site, script: &str) -> tempfile::TempDir {
    let bin = tempfile::tempdir().expect("a directory");
    let text = format!("#!/bin/sh\ncase \"$*\" in *version*) echo 2.40.3; exit 0;; esac\n{script}\n");
    let program = bin.path().join("docker");
    std::fs::write(&program, text).expect("written");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let path = std::env::var("PATH").expect("PATH");
    site.set("PATH", &format!("{}:{path}", bin.path().display()));
    bin
}

/// Needs a kernel with Landlock, as `preview doctor` tells.
#[test]
fn the_cli_reads_nothing_of_this_machine_that_is_not_meant_for_it() {
    let Some((mut site, _beside, outside)) = site(ONE) else { return };
    let checkout = site.dir.path().display().to_string();
    let script = format!(
        "echo began >&2; cat {outside} >&2; cat {checkout}/compose.yml >&2; ls {checkout} >&2; tr '\\0' '\\n' < /proc/$PPID/environ >&2; \
         echo x > {checkout}/written; exit 1"
    );
    let _bin = docker_that(&mut site, &script);
    let ran = refused(&site, DEPLOY, 2, &["began", "Permission denied"]);
    for word in [PLANTED, "100000", "PATH="] {
        assert!(!ran.err.contains(word), "{word}: {}", ran.err);
    }
    assert!(!site.dir.path().join("written").exists());
}

#[test]
fn the_environment_of_the_run_does_not_stand_where_others_can_read_it() {
    let Some((mut site, _beside, _)) = site(ONE) else { return };
    let mark = tempfile::tempdir().expect("a directory");
    // Held up while the program is looked at.
    let _bin = docker_that(&mut site, "sleep 5; exit 1");
    site.set("PREVIEW_IDENTITY_KEY", PLANTED);
    let mut child = site.spawn(DEPLOY);
    let read = |what: &str| std::fs::read(format!("/proc/{}/{what}", child.id())).unwrap_or_default();
    let seen = (0..40).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let block = String::from_utf8_lossy(&read("environ")).into_owned();
        let number =
            block.split('\0').find_map(|line| line.strip_prefix("PREVIEW_ENVIRONMENT_FILE=").map(str::to_owned))?;
        let left = read(&format!("fd/{number}"));
        left.is_empty().then_some(block)
    });
    child.kill().expect("killed");
    let _ = child.wait();
    let seen = seen.expect("the program never moved its environment");
    assert!(seen.contains("PATH=") && !seen.contains(PLANTED), "{seen}");
    drop(mark);
}

#[test]
fn links_of_a_pull_request_lead_the_command_nowhere() {
    let Some((mut site, beside, outside)) = site(ONE) else { return };
    std::fs::write(beside.path().join("compose.yml"), ONE).expect("written");
    std::fs::write(beside.path().join("preview.toml"), "[env]\nA = \"1\"\n").expect("written");
    site.write("own/compose.yml", ONE);
    site.write("own.toml", "[env]\nA = \"1\"\n");
    let link = |target: &str, name: &str| symlink(target, site.dir.path().join(name)).expect("a link");
    link(beside.path().to_str().expect("UTF-8"), "dir");
    link("own", "inner");
    link(beside.path().join("preview.toml").to_str().expect("UTF-8"), "linked.toml");
    for (args, words) in [
        (["--project-dir", "dir", "--config", "own.toml"], &["--project-dir dir", "a link leads outside the checkout"]),
        (
            ["--project-dir", "own/../dir/.", "--config", "own.toml"],
            &["--project-dir", "a link leads outside the checkout"],
        ),
        (
            ["--project-dir", ".", "--config", "linked.toml"],
            &["--config linked.toml", "a link leads outside the checkout"],
        ),
        (["--project-dir", ".", "--config", "/dev/zero"], &["/dev/zero", "it is a device"]),
    ] {
        refused(&site, &[&["plan", "--pr", "7"][..], &args].concat(), 2, words);
    }
    site.run(&["plan", "--pr", "7", "--project-dir", "inner", "--config", "own.toml"]).expect(0);
    link("/dev/zero", "preview.toml");
    refused(&site, &["plan", "--pr", "7"], 2, &["preview.toml", "a link leads outside the repository"]);
    std::fs::remove_file(site.dir.path().join("preview.toml")).expect("removed");

    link(&outside, "preview.env");
    site.set("GITLAB_CI", "true");
    let directory = site.dir.path().to_str().expect("UTF-8").to_owned();
    site.set("CI_PROJECT_DIR", &directory);
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert!(std::fs::read_to_string(&outside).expect("the file").contains(PLANTED), "it was overwritten");
    let written = site.dir.path().join("preview.env");
    assert!(written.symlink_metadata().expect("written").is_file(), "{written:?} is a link");
}
