//! `doctor --probe`: through a real proxy, with each part of the path broken in turn; nothing of it stays, however it ends.

use std::path::PathBuf;

use preview_tests::lane::{Kind, Lane};
use preview_tests::{Ran, Site, Where, eventually};
use serde_json::Value;

use super::ward::{named, of};

const NAME: &str = "preview-doctor-whole-path";
const WEB: &str = "services:\n  web:\n    image: busybox:1.36\n    command: httpd -f -p 80 -h /\n    ports: ['80']\n";

/// A proxy, and a machine on which the probe's name leads there.
struct Path {
    lane: Lane,
    own: tempfile::TempDir,
}

impl Path {
    fn new(kind: Kind) -> Option<Self> {
        let lane = Lane::new(kind, Where::Local, WEB)?;
        let path = Self { lane, own: tempfile::tempdir().expect("a directory") };
        path.hosts(&format!("127.0.0.1 {NAME}.preview.test preview.test\n"));
        path.configure("https", "");
        Some(path)
    }

    fn site(&self) -> &Site {
        &self.lane.site
    }

    fn hosts(&self, lines: &str) {
        std::fs::write(self.own.path().join("hosts"), format!("127.0.0.1 localhost\n{lines}")).expect("a file");
    }

    /// By its own name, and by a path that many share.
    fn configure(&self, scheme: &str, more: &str) {
        let port = if scheme == "https" { self.lane.https } else { self.lane.http };
        let route = |url: &str, more: &str| format!("[[route]]\nservice = \"web\"\nport = 80\nurl = \"{url}\"\n{more}");
        self.site().write(
            "preview.toml",
            &format!(
                "{more}[timeouts]\nverify = \"6s\"\npull = \"30s\"\n{}{}{}{}",
                self.lane.table(),
                route(&format!("{scheme}://{{name}}.preview.test:{port}"), ""),
                route(&format!("{scheme}://preview.test:{port}/{{name}}"), "strip_prefix = true\n"),
                route(&format!("{scheme}://preview.test:{port}/all/{{name}}"), ""),
            ),
        );
    }

    fn command(&self, more: &[&str]) -> std::process::Command {
        let ca: PathBuf = format!("/tmp/lane-{}/certs/ca.pem", self.site().app).into();
        let mut fixed = vec!["doctor", "--probe", "--format", "json"];
        if !more.contains(&"--ca") {
            fixed.extend(["--ca", ca.to_str().expect("a path")]);
        }
        let path = std::env::var("PATH").expect("PATH");
        named(self.site(), &self.own.path().join("hosts"), &path, &[&fixed, more].concat())
    }

    /// What the probe found; nothing of it is left.
    #[track_caller]
    fn probe(&self, more: &[&str]) -> Value {
        of(&self.report(more), "probe").clone()
    }

    #[track_caller]
    fn report(&self, more: &[&str]) -> Value {
        let ran: Ran = self.command(more).output().expect("it starts").into();
        let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {}", ran.err));
        assert_eq!(self.site().containers(NAME).len(), 0, "{report:#}\n{}", ran.err);
        report
    }

    #[track_caller]
    fn fails(&self, more: &[&str], words: &[&str]) -> Value {
        let report = self.report(more);
        failed(&report, "probe", words);
        report
    }
}

#[track_caller]
fn failed(report: &Value, id: &str, words: &[&str]) {
    let finding = of(report, id);
    assert_eq!(finding["status"], "failed", "{finding}");
    let text = format!("{} -> {}", finding["found"], finding["next"]);
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}

fn through(kind: Kind) -> Option<Path> {
    let path = Path::new(kind)?;
    let finding = path.probe(&[]);
    assert_eq!(finding["status"], "ok", "{finding}\n{}", path.lane.log());
    let found = finding["found"].as_str().expect("text");
    for url in [format!("https://{NAME}.preview.test:"), "https://preview.test:".to_owned(), format!("/all/{NAME}")] {
        assert!(found.contains(&url), "{url}: {found}");
    }
    assert_eq!(path.site().remains(), Vec::<String>::new());
    Some(path)
}

#[test]
fn through_nginx_and_with_each_part_of_the_path_broken() {
    let Some(mut path) = through(Kind::Nginx) else { return };
    path.hosts("");
    path.fails(&[], &["leads nowhere", "make a record"]);
    path.hosts(&format!("127.0.0.99 {NAME}.preview.test preview.test\n"));
    path.fails(&[], &["takes no connection", "`ports`"]);
    path.hosts(&format!("127.0.0.1 {NAME}.preview.test preview.test\n"));
    let authorities = "/etc/ssl/certs/ca-certificates.crt";
    path.fails(&["--ca", authorities], &["no good certificate", "not trusted", "--ca FILE"]);
    path.fails(&["--probe-image", "preview-lab/no-such-image:1"], &["not deployed", "--probe-image"]);

    // The proxy stays reachable, and does not reach the previews any more.
    let (network, container) = (path.lane.network(), path.lane.container());
    path.site().docker(&["network", "connect", "bridge", &container]);
    path.site().docker(&["network", "disconnect", &network, &container]);
    path.lane.ports();
    path.configure("https", "");
    let report = path.fails(&[], &["503", "does not reach", &network]);
    failed(&report, "proxy-container", &[&container, "is not in the network", "docker network connect"]);
    path.site().docker(&["network", "connect", &network, &container]);
    path.lane.ports();
    path.configure("https", "");
    assert_eq!(path.probe(&[])["status"], "ok");

    path.site().docker(&["stop", "-t", "1", &container]);
    let report = path.fails(&[], &["not deployed", "proxy"]);
    failed(&report, "proxy-container", &["does not run", "docker start"]);
    path.site().docker(&["start", &container]);
    path.lane.ports();
    let text = std::fs::read_to_string(path.site().dir.path().join("preview.toml")).expect("it was written");
    path.site().write("preview.toml", &text.replace(&format!("container = \"{container}\""), "container = \"nobody\""));
    let report = path.fails(&[], &["not deployed"]);
    failed(&report, "proxy-container", &["no container `nobody`", "[proxy] container"]);

    // All places are taken.
    path.configure("https", "[limits]\nmax_previews = 1\n");
    path.site().deploy("7").expect(0);
    path.fails(&[], &["no room", "pr-7", "preview list"]);
    path.site().run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(path.probe(&[])["status"], "ok");
    assert_eq!(path.site().remains(), Vec::<String>::new());
}

#[test]
fn through_traefik_and_where_it_does_not_look() {
    let Some(path) = through(Kind::Traefik) else { return };
    // Traefik's way in for clear text leads everything to the other: nothing there is the probe.
    path.configure("http", "");
    path.fails(&[], &["leads to https://", "scheme"]);
    path.site().docker(&["stop", "-t", "1", &path.lane.container()]);
    path.configure("https", "");
    path.fails(&[], &["takes no connection"]);
}

#[test]
fn nothing_stays_after_an_interrupt_and_the_next_probe_takes_what_a_kill_left() {
    let Some(path) = through(Kind::Nginx) else { return };
    // Nobody answers there, so it is asked for long.
    path.hosts(&format!("127.0.0.99 {NAME}.preview.test preview.test\n"));
    let text = std::fs::read_to_string(path.site().dir.path().join("preview.toml")).expect("it was written");
    path.site().write("preview.toml", &text.replace("\"6s\"", "\"5m\""));
    let mut run = Site::started(path.command(&[]));
    run.until("the probe is asked at");
    assert_eq!(path.site().containers(NAME).len(), 1);
    run.interrupt();
    let ran = run.end();
    assert_eq!((ran.code, ran.failure().as_str()), (5, "interrupted"), "{}", ran.err);
    assert_eq!(path.site().remains(), Vec::<String>::new());

    let mut run = Site::started(path.command(&[]));
    run.until("the probe is asked at");
    run.kill();
    assert_eq!(path.site().containers(NAME).len(), 1, "nobody was there to remove it");
    let status = path.site().run(&["status", "--name", NAME, "--format", "json"]).expect(0).json();
    assert_eq!(status["owner"], "preview doctor --probe");
    assert!(status["expires_at"].is_string(), "a sweep removes it: {status}");
    // Whoever has the name and is no probe keeps it.
    path.hosts(&format!("127.0.0.1 {NAME}.preview.test preview.test\n"));
    path.site().write("preview.toml", &text);
    assert_eq!(path.probe(&[])["status"], "ok");
    assert_eq!(path.site().remains(), Vec::<String>::new());
    path.site().run(&["deploy", "--branch", "doctor-whole-path", "--owner", "somebody"]).expect(0);
    let ran: Ran = path.command(&[]).output().expect("it starts").into();
    let report: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert!(of(&report, "probe")["found"].as_str().expect("text").contains("branch doctor-whole-path"), "{report}");
    assert_eq!(path.site().containers(NAME).len(), 1);
    path.site().run(&["destroy", "--branch", "doctor-whole-path"]).expect(0);
}

#[test]
fn without_a_proxy_its_port_on_the_host_is_asked() {
    let Some(site) = Site::new(Where::Local, WEB) else { return };
    // What the application's files say does not matter.
    site.write("compose.yml", "services: {}\n");
    let report = site.run(&["doctor", "--probe", "--format", "json"]).expect(0).json();
    let finding = of(&report, "probe");
    assert_eq!(finding["status"], "ok", "{finding}");
    assert!(finding["found"].as_str().expect("text").contains("http://127.0.0.1:"), "{finding}");
    eventually("all of it is gone", || site.remains().is_empty());
    let history = site.run(&["list", "--history"]).expect(0).out;
    assert!(history.contains("deploy") && history.contains("destroy") && history.contains(NAME), "{history}");
}
