//! What belongs to another preview, application or base directory, or to somebody who has nothing to do with previews, is neither used
//! nor changed, whatever a pull request names.

use preview_tests::{Ran, Site, Where};
use serde_json::Value;

use crate::bad_input::{ONE, refused};

/// A service of this name whose image holds a word, and leaves it in a cache mount. It fails where the cache holds another's word.
fn building(site: &Site, service: &str, word: &str) -> String {
    format!(
        "services:\n  {service}:\n    build:\n      context: .\n      args: {{BUILDKIT_CACHE_MOUNT_NS: shared}}\n      dockerfile_inline: |\n        \
         FROM busybox:1.36\n        RUN --mount=type=cache,id=shared-{app},target=/c test ! -e /c/mark || grep -qx {word} /c/mark\n        \
         RUN --mount=type=cache,id=shared-{app},target=/c echo {word} >/c/mark && echo {word} >/word\n    \
         command: [\"sleep\", \"100000\"]\n    stop_grace_period: 0s\n",
        app = site.app
    )
}

/// The image token of a preview.
fn token(site: &Site, name: &str) -> String {
    let state = site.shell(&format!("cat {}/{}/{name}/state.json", site.base(), site.app));
    let state: Value = serde_json::from_str(&state).expect("JSON");
    state["image_token"].as_str().expect("a token").to_owned()
}

fn word(site: &Site, branch: &str, service: &str) -> String {
    site.run(&["exec", "--branch", branch, service, "--", "cat", "/word"]).expect(0).out.trim().to_owned()
}

fn silent_about(ran: &Ran, token: &str) {
    assert!(!ran.out.contains(token) && !ran.err.contains(token), "the token is told\n{}\n{}", ran.out, ran.err);
}

#[test]
fn images_and_caches_of_a_preview_are_its_own() {
    let Some(site) = Site::new(Where::Local, "") else { return };
    // With `-` between them, both would be `…release-2024-api`.
    site.write("compose.yml", &building(&site, "2024-api", "one"));
    let first = site.run(&["deploy", "--branch", "release"]).expect(0);
    let own = token(&site, "preview-release");
    silent_about(&first, &own);
    site.write("compose.yml", &building(&site, "api", "two"));
    site.run(&["deploy", "--branch", "release-2024"]).expect(0);
    let others = token(&site, "preview-release-2024");
    assert_ne!(own, others);
    assert_eq!((word(&site, "release", "2024-api"), word(&site, "release-2024", "api")), ("one".into(), "two".into()));

    // The token outlives updates, and an unchanged deploy changes nothing.
    site.write("compose.yml", &building(&site, "2024-api", "one"));
    let before = site.containers("preview-release");
    let same = site.run(&["deploy", "--branch", "release", "--format", "json", "-vv"]).expect(0);
    silent_about(&same, &own);
    assert_eq!((same.json()["kind"].as_str(), site.containers("preview-release")), (Some("unchanged"), before));
    silent_about(&site.run(&["plan", "--branch", "release", "--format", "json"]).expect(0), &own);
    silent_about(&site.run(&["status", "--branch", "release", "--format", "json"]).expect(0), &own);
    assert_eq!(token(&site, "preview-release"), own);

    // The names that a stranger could think of lead nowhere, and an image's id is no name.
    let project = format!("{}_preview-release", site.app);
    for guess in [format!("{project}-2024-api"), format!("{project}-2024-api:last-good"), format!("{project}_2024-api")]
    {
        site.write("compose.yml", &ONE.replace("busybox:1.36", &guess));
        let ran = site.run(&["deploy", "--pr", "7"]);
        assert_ne!(ran.code, 0, "{guess}: {}", ran.err);
    }
    let from = format!("{ONE}    build: {{context: ., dockerfile_inline: \"FROM {project}-2024-api\"}}\n");
    site.write("compose.yml", &from);
    site.run(&["deploy", "--pr", "7"]).expect(4);
    let id = site.docker(&["inspect", "--format", "{{.Image}}", &site.containers("preview-release")["2024-api"]]);
    site.write("compose.yml", &ONE.replace("busybox:1.36", &id));
    let ran = site.run(&["deploy", "--pr", "7"]).expect(3);
    assert!(ran.err.contains("services.app.image") && ran.err.contains(&id), "{}", ran.err);

    for branch in ["release", "release-2024"] {
        site.run(&["destroy", "--branch", branch]).expect(0);
    }
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn a_failed_update_goes_back_to_the_image_it_had() {
    let Some(site) = Site::new(Where::Local, "") else { return };
    site.write("compose.yml", &building(&site, "api", "one"));
    site.run(&["deploy", "--branch", "b"]).expect(0);
    let before = site.containers("preview-b");
    let broken = building(&site, "api", "one").replace("[\"sleep\", \"100000\"]", "[\"false\"]");
    let broken = broken.replace("echo one >/word", "echo two >/word");
    site.write("compose.yml", &broken);
    site.run(&["deploy", "--branch", "b"]).expect(4);
    assert_eq!(word(&site, "b", "api"), "one");
    assert_eq!(site.containers("preview-b").len(), before.len());
    let leftover = site.docker(&[
        "images",
        "-q",
        "--filter",
        "dangling=true",
        "--filter",
        &format!("label=preview.app={}", site.app),
    ]);
    site.run(&["destroy", "--branch", "b"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new(), "{leftover}");
}

#[test]
fn projects_of_others_are_left_alone() {
    let Some(site) = Site::new(Where::Local, ONE) else { return };
    site.run(&["deploy", "--pr", "7"]).expect(0);
    let before = site.containers("pr-7");

    // Another base directory on the same engine: neither taken over nor removed.
    let elsewhere = site.dir.path().join(".others").to_string_lossy().into_owned();
    for args in
        [&["deploy", "--pr", "7", "--base-dir", &elsewhere][..], &["plan", "--pr", "7", "--base-dir", &elsewhere]]
    {
        let ran = site.run(args).expect(3);
        for word in [&format!("{}_pr-7", site.app), "belongs to the preview pr-7", site.base()] {
            assert!(ran.err.contains(word), "{args:?}: {word}: {}", ran.err);
        }
        assert_eq!(site.containers("pr-7"), before);
    }
    site.run(&["destroy", "--pr", "7", "--base-dir", &elsewhere]).expect(0);
    assert_eq!(site.containers("pr-7"), before);

    // Somebody's own project, and a volume that somebody made.
    let project = format!("{}_pr-8", site.app);
    let stranger = format!("stranger-{}", site.app);
    let label = format!("com.docker.compose.project={project}");
    site.docker(&["run", "-d", "--name", &stranger, "--label", &label, "busybox:1.36", "sleep", "100000"]);
    let ran = site.run(&["deploy", "--pr", "8"]).expect(3);
    assert!(ran.err.contains(&stranger) && ran.err.contains("which is no preview"), "{}", ran.err);
    assert_eq!(site.docker(&["inspect", "--format", "{{.State.Running}}", &stranger]), "true");
    site.docker(&["rm", "-f", &stranger]);
    let volume = format!("{project}_data");
    site.docker(&["volume", "create", &volume]);
    site.write("compose.yml", &format!("{ONE}    volumes: [\"data:/data\"]\nvolumes: {{data: {{}}}}\n"));
    let ran = site.run(&["deploy", "--pr", "8"]).expect(3);
    assert!(ran.err.contains(&format!("the volume {volume}")), "{}", ran.err);
    site.docker(&["volume", "rm", &volume]);

    // Another preview's network is no proxy's.
    let network = format!("{}_pr-7_default", site.app);
    site.write("compose.yml", &format!("{ONE}    ports: [\"8000\"]\n"));
    site.write(
        "preview.toml",
        &format!("url = \"http://{{name}}.example.com\"\n[proxy]\nkind = \"traefik\"\nnetwork = \"{network}\"\n"),
    );
    let ran = site.run(&["deploy", "--pr", "8"]).expect(2);
    assert!(ran.err.contains("`proxy.network`") && ran.err.contains(&network), "{}", ran.err);
    site.write("preview.toml", "");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// Answers every request with a page, on this machine's loopback; the port.
fn serve() -> u16 {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nof the VM");
        }
    });
    port
}

#[test]
fn the_builder_fetches_nothing_for_a_pull_request() {
    let Some(mut site) = Site::new(Where::Local, "") else { return };
    let address = format!("http://127.0.0.1:{}/page", serve());
    let with = |site: &Site, build: &str| site.write("compose.yml", &format!("{ONE}    build: {build}\n"));
    let plan = ["plan", "--pr", "7"];
    let word = format!("`{address}`");
    for dockerfile in [
        format!("FROM busybox:1.36\nADD {address} /page\n"),
        format!("# escape=`\nFROM busybox:1.36\nONBUILD a`\ndd `\n [\"{address}\", \"/page\"]\n"),
        format!("FROM busybox:1.36\nRUN <<X\nX\nENV U={address}\nADD --chmod=644 ${{U}} /page\n"),
    ] {
        site.write("Dockerfile", &dockerfile);
        with(&site, ".");
        refused(&site, &plan, 3, &["services.app.build.add: ", &word, " in Dockerfile: ", "[[policy.allow]]"]);
    }
    site.write("Dockerfile", "FROM busybox:1.36\nARG U=./file\nADD $U /page\n");
    with(&site, &format!("{{context: ., args: {{U: \"{address}\"}}}}"));
    refused(&site, &plan, 3, &["services.app.build.add: ", &word, " in Dockerfile: "]);
    with(&site, &format!("{{context: ., dockerfile_inline: \"FROM busybox:1.36\\nADD {address} /page\"}}"));
    refused(&site, &plan, 3, &["services.app.build.add: ", &word, " in dockerfile_inline: "]);
    with(&site, "{context: ., dockerfile_inline: \"# syntax=evil/frontend\\nFROM busybox:1.36\"}");
    refused(&site, &plan, 3, &["services.app.build.syntax: ", "`evil/frontend`", "docker/dockerfile:1"]);

    // What the base branch allows is fetched, from where no container comes; files are added as ever.
    site.write("file", "of the repository\n");
    site.write("Dockerfile", &format!("FROM busybox:1.36\nARG U=file\nADD $U /file\nADD {address} /page\n"));
    with(&site, ".");
    let allow = format!("[[policy.allow]]\nservice = \"app\"\nkey = \"build.add\"\nvalues = [\"{address}\"]\n");
    site.write(".git/base.toml", &allow);
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    site.run(&["deploy", "--pr", "7"]).expect(0);
    let seen = site.run(&["exec", "--pr", "7", "app", "--", "cat", "/file", "/page"]).expect(0);
    assert_eq!(seen.out, "of the repository\nof the VM");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}
