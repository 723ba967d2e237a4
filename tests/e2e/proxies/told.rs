//! What a proxy that is told by files refuses, loses and gets back; and names that previews share on its network.

use preview_tests::lane::{Kind, Lane};
use preview_tests::{Site, VmEngine, Where};

use super::{SMALL, URL};

/// A proxy that is told by files: what it does not accept is not loaded, what is stray is swept, and a stopped one keeps nobody from removing.
fn files(kind: Kind, place: Where) {
    let Some(mut lane) = Lane::new(kind, place, SMALL) else { return };
    lane.site.write("preview.toml", &format!("{URL}{}", lane.table()));
    let proxy = lane.container();
    lane.site.deploy("7").expect(0);
    assert_eq!(lane.until("https://pr-7.preview.test/", 200).body.trim(), "web-one");
    let routes = |lane: &Lane| {
        lane.site.docker(&["exec", &proxy, "sh", "-c", "cd /etc/preview/routes/live && find . -type f | sort"])
    };
    let before = routes(&lane);
    assert!(before.contains("locations/pr-7.preview.test/"), "{before}");

    // Somebody breaks the proxy's own configuration: the next preview is refused, what runs goes on, and nothing of it stays.
    let live = "/etc/preview/routes/live";
    let broken = "http://broken.test {\n\tno_such_word on;\n}\n";
    lane.site.docker(&["exec", &proxy, "sh", "-c", &format!("printf '{broken}' > {live}/zz.conf")]);
    let ran = lane.site.deploy("8").expect(4);
    assert_eq!(ran.failure(), "proxy_failed");
    assert!(ran.err.contains("does not accept them") && ran.err.contains("zz.conf:"), "{}", ran.err);
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "web-one");
    assert!(!routes(&lane).contains("pr-8"));
    assert_eq!(lane.site.containers("pr-8").len(), 0);
    lane.site.docker(&["exec", &proxy, "rm", &format!("{live}/zz.conf")]);
    assert_eq!(routes(&lane), before);

    // Routes of nobody go with a sweep; those of others stay.
    let stray = "mkdir -p locations/gone.preview.test && touch locations/gone.preview.test/gone_pr-1.conf host-gone.preview.test.conf";
    lane.site.docker(&["exec", &proxy, "sh", "-c", &format!("cd {live} && {stray}")]);
    let dry = lane.site.run(&["sweep", "--dry-run", "--format", "json"]).expect(0).json();
    assert_eq!(dry["routes"], serde_json::json!(["gone_pr-1"]));
    assert!(routes(&lane).contains("gone_pr-1"));
    lane.site.run(&["sweep"]).expect(0);
    assert_eq!(routes(&lane), before);
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).status, 200);

    // A proxy that lost its files gets them back, though nothing else differs.
    lane.site.docker(&["exec", &proxy, "sh", "-c", "rm -rf /etc/preview/routes/*"]);
    lane.site.docker(&["restart", "-t", "0", &proxy]);
    lane.ports();
    lane.until("https://pr-7.preview.test/", 503);
    assert_eq!(lane.site.deploy("7").expect(0).json()["kind"], "unchanged");
    lane.until("https://pr-7.preview.test/", 200);

    // It does not run: that is said, and what can be removed is.
    lane.site.docker(&["stop", "-t", "0", &proxy]);
    let ran = lane.site.deploy("9").expect(4);
    assert!(ran.err.contains("does not run ([proxy] container)"), "{}", ran.err);
    let ran = lane.site.run(&["destroy", "--pr", "7"]).expect(0);
    assert!(ran.err.contains("the next sweep tries again"), "{}", ran.err);
    assert_eq!(lane.site.containers("pr-7").len(), 0);
    lane.site.docker(&["start", &proxy]);
    lane.ports();
    lane.until("https://pr-7.preview.test/", 404);
    lane.site.run(&["sweep"]).expect(0);
    let after = routes(&lane);
    assert!(!after.contains("pr-7") && !after.contains("pr-9"), "{after}");
}

#[test]
fn nginx_is_told_by_files() {
    files(Kind::Nginx, Where::Local);
}

#[test]
fn nginx_on_a_vm_is_told_by_files() {
    files(Kind::Nginx, Where::Vm(VmEngine::V28));
}

#[test]
fn caddy_is_told_by_files() {
    files(Kind::Caddy, Where::Local);
}

/// What a version told the proxy that did not get to the end goes with it, whether its run takes it back or a sweep does.
#[test]
fn nginx_forgets_what_a_version_brought_that_failed() {
    let Some(lane) = Lane::new(Kind::Nginx, Where::Local, SMALL) else { return };
    let (site, proxy) = (&lane.site, lane.container());
    site.write("preview.toml", &format!("{URL}{}", lane.table()));
    site.deploy("7").expect(0);
    lane.until("https://pr-7.preview.test/", 200);
    let web = site.containers("pr-7")["web"].clone();
    // From now on a reload is done for a while before that is said.
    let slow = "cd /usr/sbin && mv nginx nginx.real && printf '#!/bin/sh\\nnginx.real \"$@\" || exit\\n[ \"$2\" != reload ] || [ ! -e /slow ] || sleep 8\\n' > nginx && chmod 755 nginx";
    site.docker(&["exec", &proxy, "sh", "-c", slow]);
    site.write("compose.yml", &SMALL.replace("web-one", "web-two"));
    site.write("preview.toml", &format!("url = \"https://{{name}}-other.preview.test\"\n{}", lane.table()));
    for killed in [false, true] {
        site.docker(&["exec", &proxy, "touch", "/slow"]);
        let mut run = site.start(&["deploy", "--pr", "7"]);
        assert_eq!(lane.until("https://pr-7-other.preview.test/", 200).body.trim(), "web-two");
        assert_eq!(
            lane.curl("https://pr-7.preview.test/", &[]).status,
            503,
            "its address went, but for its status page"
        );
        site.docker(&["exec", &proxy, "rm", "/slow"]);
        if killed {
            run.kill();
            let swept = site.run(&["sweep", "--format", "json"]).expect(0).json();
            assert_eq!(swept["mended"].as_array().map(Vec::len), Some(1), "{swept}");
        } else {
            run.interrupt();
            run.end().expect(5);
        }
        assert_eq!(lane.until("https://pr-7.preview.test/", 200).body.trim(), "web-one");
        assert_eq!(lane.curl("https://pr-7-other.preview.test/", &[]).status, 404);
    }
    assert_ne!(site.containers("pr-7")["web"], web);
    // And then it gets through.
    site.deploy("7").expect(0);
    assert_eq!(lane.until("https://pr-7-other.preview.test/", 200).body.trim(), "web-two");
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).status, 404);
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// Routed services share the proxy's network, and Compose gives each its name there: still each preview finds its own.
fn names_stay_apart(place: Where) {
    const COMPOSE: &str = r#"
services:
  ui:
    image: busybox:1.36
    command: ["sleep", "100000"]
    stop_grace_period: 0s
  api:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir /w && echo api of $${WHO} >/w/index.html && exec httpd -f -p 80 -h /w"]
    environment: {WHO: "${PREVIEW_NAME}"}
    stop_grace_period: 0s
  db:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir /w && echo db of $${WHO} >/w/index.html && exec httpd -f -p 80 -h /w"]
    environment: {WHO: "${PREVIEW_NAME}"}
    hostname: store
    networks: {default: {aliases: [records]}}
    stop_grace_period: 0s
"#;
    let Some(site) = Site::new(place, COMPOSE) else { return };
    // It sorts before the previews' own, and Docker looks there first.
    let network = format!("{}-proxy", site.app);
    site.docker(&["network", "create", &network]);
    let route = |service: &str, port: u16| {
        format!(
            "[[route]]\nservice = \"{service}\"\nport = {port}\nurl = \"https://{{name}}-{service}.preview.test\"\n"
        )
    };
    let proxy = format!("[proxy]\nkind = \"traefik\"\nnetwork = \"{network}\"\n[timeouts]\nverify = \"90s\"\n");
    let asks = |pr: &str, service: &str, name: &str| {
        let url = format!("http://{name}/");
        site.run(&["exec", "--pr", pr, service, "--", "wget", "-qO-", &url]).expect(0).out
    };
    site.write(
        "compose.yml",
        &COMPOSE.replace("\"sleep\", \"100000\"", "\"sh\", \"-c\", \"exec httpd -f -p 80 -h /\""),
    );
    site.write("preview.toml", &format!("{proxy}{}{}", route("ui", 80), route("api", 80)));
    site.deploy("7").expect(0);
    // Its database has a route, so its name is in the proxy's network.
    site.write("preview.toml", &format!("{proxy}{}{}{}", route("ui", 80), route("api", 80), route("db", 80)));
    site.deploy("8").expect(0);
    for _ in 0..4 {
        for pr in ["7", "8"] {
            assert_eq!(asks(pr, "ui", "api"), format!("api of pr-{pr}\n"));
            for name in ["db", "store", "records"] {
                assert_eq!(asks(pr, "ui", name), format!("db of pr-{pr}\n"));
            }
            assert_eq!(asks(pr, "api", "api"), format!("api of pr-{pr}\n"));
        }
    }
    assert_eq!(site.deploy("8").expect(0).json()["kind"], "unchanged");

    // Names that are somebody else's there, and an address that another preview has.
    site.write(
        "compose.yml",
        &COMPOSE.replace("  ui:", "  preview-socket-proxy:").replace("  db:", "  api.pr-8.shop.preview:"),
    );
    site.write("preview.toml", &format!("{proxy}{}", route("api", 80)));
    let ran = site.run(&["deploy", "--pr", "9"]).expect(3);
    for name in ["preview-socket-proxy", "api.pr-8.shop.preview"] {
        assert!(ran.err.contains(&format!("services.{name}: names like this belong to the proxy")), "{}", ran.err);
    }
    site.write("compose.yml", COMPOSE);
    site.write(
        "preview.toml",
        &format!("{proxy}[[route]]\nservice = \"api\"\nport = 80\nurl = \"https://pr-{{number}}-api.preview.test\"\n"),
    );
    site.run(&["deploy", "--branch", "x", "--url", "https://preview-{slug}.preview.test"]).expect(2);
    site.write("preview.toml", &format!("name = \"try-{{slug}}\"\n{proxy}[[route]]\nservice = \"api\"\nport = 80\nurl = \"https://pr-{{slug}}-api.preview.test\"\n"));
    let ran = site.run(&["deploy", "--branch", "8"]).expect(3);
    assert!(ran.err.contains("https://pr-8-api.preview.test") && ran.err.contains("pr-8 of"), "{}", ran.err);
    site.write("preview.toml", &proxy);
    for pr in ["7", "8"] {
        site.run(&["destroy", "--pr", pr]).expect(0);
    }
    site.docker(&["network", "rm", &network]);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn names_stay_apart_on_this_machine() {
    names_stay_apart(Where::Local);
}

#[test]
fn names_stay_apart_on_a_vm() {
    names_stay_apart(Where::Vm(VmEngine::V28));
}

/// A stack that builds gets what concerns the proxy alone, though nothing else differs.
#[test]
fn a_stack_that_builds_and_differs_for_the_proxy_alone() {
    const BUILT: &str = "services:\n  web:\n    build: .\n    command: [httpd, -f, -p, '8080']\n    ports: ['8080']\n    stop_grace_period: 0s\n";
    let Some(site) = Site::new(Where::Local, BUILT) else { return };
    site.write("Dockerfile", "FROM busybox:1.36\n");
    let network = format!("{}-proxy", site.app);
    site.docker(&["network", "create", &network]);
    let image = preview_tests::lab().expect("a lab").extra(xtask::lab::Extra::Nginx).expect("the image is made");
    let program = "mkdir -p /etc/preview/routes && ln -sf /bin/true /usr/sbin/nginx && exec sleep 100000";
    let label = format!("preview.app={}", site.app);
    site.docker(&[
        "run",
        "-d",
        "--name",
        &network,
        "--network",
        &network,
        "--label",
        &label,
        image,
        "sh",
        "-c",
        program,
    ]);
    let settings = |url: &str, more: &str| {
        format!(
            "url = \"{url}\"\n[proxy]\nkind = \"nginx\"\nnetwork = \"{network}\"\ncontainer = \"{network}\"\n{more}"
        )
    };
    let write = |more: &str| site.write("preview.toml", &settings("http://{name}.preview.test", more));
    let told = || site.docker(&["exec", &network, "sh", "-c", "cat /etc/preview/routes/live/locations/*/*.conf"]);
    write("");
    site.deploy("7").expect(0);
    assert!(told().contains("web.pr-7.") && !told().contains("deny all"));
    write("allow_ips = [\"192.0.2.0/24\"]\n");
    let done = site.deploy("7").expect(0).json();
    assert_eq!(done["kind"], "unchanged", "no container differs");
    assert!(told().contains("allow 192.0.2.0/24;\n    deny all;"), "{}", told());
    // A new address is all that differs, and it stays when the next version fails.
    let url = |name: &str| site.write("preview.toml", &settings(&format!("http://{{name}}{name}.preview.test"), ""));
    url("-moved");
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");
    site.write("compose.yml", &BUILT.replace("[httpd, -f, -p, '8080']", "['false']"));
    site.deploy("7").expect(4);
    let status = site.run(&["status", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!(status["addresses"][0]["url"], "http://pr-7-moved.preview.test", "{status}");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(
        site.docker(&["exec", &network, "sh", "-c", "ls /etc/preview/routes/live/ /etc/preview/routes/live/locations"]),
        "/etc/preview/routes/live/:\ncommon.conf\nlocations\n\n/etc/preview/routes/live/locations:"
    );
    site.docker(&["rm", "-f", &network]);
    site.docker(&["network", "rm", &network]);
}
