//! Each check of `preview doctor` fails when just that is broken, and all is well on a healthy VM with a real nginx before its previews.
//!
//! What a container that plays a VM shares with this machine cannot be broken there: memory is the kernel's, so the floor is raised instead, and of swap the VM
//! gets a `/proc/meminfo` that lies; the clock is the kernel's too, so the VM gets a `date` that lies. An engine that is too old is the real one, with a
//! relay before it that speaks the older API.

mod probe;
mod relay;
mod ward;

use std::sync::Arc;

use preview_tests::{Site, Vm, VmEngine, VmOptions, Where, lab};
use serde_json::Value;
use ward::{Ward, of};

/// What is not looked at on a VM whose wildcard record was made by hand.
const UNUSED: &[&str] = &["dns-provider", "probe"];

#[test]
fn each_check_fails_when_just_that_is_broken() {
    let Some(ward) = Ward::new() else { return };
    healthy(&ward);
    this_machine(&ward);
    ssh(&ward);
    host(&ward);
    engine(&ward);
    proxy(&ward);
    way_in(&ward);
    // All that was mended is well again, and nothing was left behind.
    healthy(&ward);
    no_engine(&ward);
}

fn healthy(ward: &Ward) {
    let report = ward.doctor(&[]);
    for finding in report["findings"].as_array().expect("findings") {
        let id = finding["id"].as_str().expect("a word");
        // The kernel's, see above.
        let status = match id {
            "swap" => ["ok", "warning"].as_slice(),
            _ if UNUSED.contains(&id) => &["skipped"],
            _ => &["ok"],
        };
        assert!(status.contains(&finding["status"].as_str().expect("a word")), "{finding}");
    }
    assert_eq!((report["ok"].clone(), report["failures"].clone()), (Value::Bool(true), Value::from(0)));
}

fn this_machine(ward: &Ward) {
    ward.site.write("preview.toml", "[limit]\n");
    let report = ward.broken(8, "config", "failed", &["unknown key `limit`"], &[]);
    assert_eq!(of(&report, "login")["status"], "skipped");
    assert_eq!(of(&report, "compose")["status"], "ok");
    ward.configure("");

    for (missing, id, words) in
        [("docker", "docker-cli", "`docker` was not found"), ("ssh", "ssh-client", "`ssh` was not found")]
    {
        let path = ward.path_without(missing);
        let (code, report) = ward.run(&path, &[]);
        assert_eq!(code, 8);
        assert_eq!(of(&report, id)["status"], "failed");
        assert!(of(&report, id)["found"].as_str().expect("text").contains(words), "{report}");
    }
    for (script, id, status, words) in [
        ("[ \"$1\" = compose ] && { echo 2.20.3; exit 0; }; echo fine", "compose", "failed", "2.20.3 is too old"),
        (
            "[ \"$1\" = compose ] && { echo \"unknown command\" >&2; exit 1; }; echo fine",
            "compose",
            "failed",
            "unknown command",
        ),
        (
            "[ \"$1\" = buildx ] && exit 1; [ \"$1\" = compose ] && echo 2.40.3 || echo fine",
            "buildx",
            "warning",
            "`docker buildx` does not work",
        ),
    ] {
        let path = ward.path_with("docker", script);
        let (code, report) = ward.run(&path, &[]);
        assert_eq!(code, if status == "failed" { 8 } else { 0 });
        assert_eq!(of(&report, id)["status"], status, "{report}");
        assert!(of(&report, id)["found"].as_str().expect("text").contains(words), "{report}");
    }
    let path =
        ward.path_with("docker", "[ \"$1\" = buildx ] && exit 1; [ \"$1\" = compose ] && echo 2.40.3 || echo fine");
    assert_eq!(ward.run(&path, &["--strict"]).0, 8, "--strict");
}

fn ssh(ward: &Ward) {
    let after_reach = &["login", "host-key"];
    let (code, report) = ward.with(&[("PREVIEW_HOST", "ssh://deploy@127.0.0.1:1")]);
    assert_eq!((code, &of(&report, "ssh-reach")["status"]), (8, &Value::from("failed")), "{report}");
    for id in after_reach {
        assert_eq!(of(&report, id)["status"], "skipped");
    }
    assert_eq!(of(&report, "docker-version")["found"], "the VM was not reached");

    let other = ward.other_key();
    for (lines, words) in [
        (format!("elsewhere.example.com {other}"), "are not for"),
        (format!("{} {other}", ward.address), "another key"),
        (String::new(), "no key is pinned"),
    ] {
        let (code, report) = ward.with(&[("PREVIEW_KNOWN_HOSTS", &lines)]);
        let finding = of(&report, "host-key");
        assert_eq!((code, &finding["status"]), (8, &Value::from("failed")), "{report}");
        assert!(finding["found"].as_str().expect("text").contains(words), "{finding}");
        assert!(finding["next"].as_str().expect("text").contains("ssh-keyscan -p 22"), "{finding}");
        assert_eq!(of(&report, "ssh-reach")["status"], "ok");
        assert_eq!(of(&report, "login")["status"], "skipped");
    }
    let wrong = ward.dir().join("other");
    let (code, report) = ward.with(&[("PREVIEW_IDENTITY_FILE", wrong.to_str().expect("a path"))]);
    assert_eq!((code, &of(&report, "login")["status"]), (8, &Value::from("failed")), "{report}");
    assert_eq!(of(&report, "host-key")["status"], "ok");

    ward.root("echo 'MaxSessions 2' > /etc/ssh/sshd_config.d/few.conf; pkill -HUP -o -x sshd; sleep 0.3");
    ward.broken(8, "ssh-sessions", "failed", &["only 2 sessions", "MaxSessions 10"], &[]);
    ward.root("rm /etc/ssh/sshd_config.d/few.conf; pkill -HUP -o -x sshd; sleep 0.3");
}

fn host(ward: &Ward) {
    let base = ward.site.base().to_owned();
    ward.root(&format!("chmod 0777 {base}"));
    ward.broken(8, "base-dir", "failed", &["others may write", "chmod 0700"], &[]);
    ward.root(&format!("chmod 0750 {base}"));
    ward.broken(0, "base-dir", "warning", &["others may look"], &[]);
    ward.root(&format!("chown root {base}; chmod 0700 {base}"));
    ward.broken(8, "base-dir", "failed", &["deploy may not write", "sudo install -d -o deploy"], &["sweep", "answer"]);
    ward.root(&format!("chown deploy {base}"));

    ward.configure("[limits]\nmin_free_memory = \"4000GB\"\n");
    ward.broken(8, "memory", "failed", &["a new preview needs", "min_free_memory"], &[]);
    ward.configure("[limits]\nmin_free_disk = \"90000GB\"\n");
    ward.broken(8, "disk", "failed", &["a new preview needs", "preview sweep"], &[]);
    ward.configure("");

    for (seconds, code, status, words) in
        [(400, 8, "failed", "s ahead of"), (-400, 8, "failed", "s behind"), (100, 0, "warning", "s ahead of")]
    {
        ward.root(&format!("printf '#!/bin/sh\\n[ \"$*\" = +%%s ] && echo $(( $(/bin/date +%%s) + {seconds} )) || exec /bin/date \"$@\"\\n' > /usr/local/bin/date; chmod 0755 /usr/local/bin/date"));
        ward.broken(code, "clock", status, &[words, "NTP"], &[]);
    }
    ward.root("rm /usr/local/bin/date");

    for (total, status, words) in [(0, "warning", "no swap"), (2_000_000, "ok", "of swap")] {
        ward.root(&format!("sed 's/^SwapTotal:.*/SwapTotal: {total} kB/' /proc/meminfo > /run/meminfo; mount --bind /run/meminfo /proc/meminfo"));
        let report = ward.doctor(&[]);
        let swap = of(&report, "swap");
        assert_eq!(swap["status"], status, "{swap}");
        assert!(swap["found"].as_str().expect("text").contains(words), "{swap}");
        assert_eq!(swap["next"].is_string(), total == 0, "{swap}");
        assert_eq!((&report["ok"], &report["warnings"]), (&Value::Bool(true), &Value::from(u8::from(total == 0))));
        ward.root("umount /proc/meminfo");
    }

    let history = format!("{base}/.history.jsonl");
    ward.root(&format!(
        "cp -p {history} {history}.kept; sed -i 's/\"ended_at\":\"20../\"ended_at\":\"2019/' {history}"
    ));
    ward.broken(0, "sweep", "warning", &["last swept", "every 30 minutes"], &[]);
    ward.root(&format!("grep -v '\"command\":\"sweep\"' {history}.kept > {history}"));
    ward.broken(0, "sweep", "warning", &["never swept"], &[]);
    ward.root(&format!("mv {history}.kept {history}"));
}

fn engine(ward: &Ward) {
    let depends = &["docker-version", "networks", "log-rotation", "proxy-network", "proxy-container"];
    ward.root("chmod 000 /var/run/docker.sock");
    ward.broken(8, "docker-socket", "failed", &["deploy may not use", "usermod -aG docker deploy"], depends);
    ward.root("chmod 660 /var/run/docker.sock");

    ward.root("mv /etc/docker/daemon.json /etc/docker/daemon.kept");
    ward.broken(0, "log-rotation", "warning", &["grow without end", "max-size"], &[]);
    ward.root("mv /etc/docker/daemon.kept /etc/docker/daemon.json");

    // What is said to be left is what Docker can really make.
    let report = ward.doctor(&[]);
    let found = of(&report, "networks")["found"].as_str().expect("text").to_owned();
    let left: u64 = found.split_whitespace().find_map(|word| word.parse().ok()).expect("a number");
    let made = ward.root("n=0; while docker network create fill$n >/dev/null 2>&1; do n=$((n+1)); [ $n = 1 ] || [ $n = 27 ] || :; done; echo $n");
    assert_eq!(made.parse::<u64>().expect("a number"), left, "{found}");
    ward.broken(8, "networks", "failed", &["can make 0 of 31", "default-address-pools"], &[]);
    ward.root("docker network rm fill0 >/dev/null");
    ward.broken(0, "networks", "warning", &["can make 1 of 31", "max_previews"], &[]);
    ward.root("docker network ls -q --filter name=fill | xargs docker network rm >/dev/null");
}

fn proxy(ward: &Ward) {
    ward.configure_proxy("elsewhere");
    ward.broken(
        8,
        "proxy-network",
        "failed",
        &["no network `elsewhere`", "docker network create elsewhere"],
        &["proxy-container"],
    );
    ward.root("docker network create elsewhere >/dev/null");
    ward.broken(
        8,
        "proxy-container",
        "failed",
        &["is not in the network `elsewhere`", "docker network connect elsewhere proxy"],
        &[],
    );
    ward.root("docker network rm elsewhere >/dev/null");
    ward.configure("");
    ward.root("docker stop -t 1 proxy >/dev/null");
    let way = &["ports", "certificate", "redirect", "answer"];
    ward.broken(8, "proxy-container", "failed", &["no proxy runs"], way);
    let report =
        ward.broken(8, "ports", "failed", &["port 443 cannot be reached"], &[way, &["proxy-container"][..]].concat());
    assert_eq!(of(&report, "certificate")["status"], "skipped");
    ward.root("docker start proxy >/dev/null");
    ward.root("iptables -t raw -I PREROUTING -i eth0 -p tcp --dport 80 -j DROP");
    ward.broken(0, "ports", "warning", &["port 80 cannot be reached"], &["redirect"]);
    ward.root("iptables -t raw -D PREROUTING -i eth0 -p tcp --dport 80 -j DROP");
}

fn way_in(ward: &Ward) {
    let rest = &["ports", "certificate", "redirect", "answer"];
    ward.hosts("");
    // Where records come with previews, a probe that leads nowhere is right; a token that is not there is one finding among others.
    ward.configure("[dns]\nkind = \"cloudflare\"\nzone = \"preview.test\"\ntarget = \"192.0.2.7\"\n");
    let report =
        ward.broken(8, "dns-provider", "failed", &["CLOUDFLARE_API_TOKEN", "docs/configuration.md"], &["answer"]);
    assert_eq!(
        (of(&report, "dns")["status"].as_str(), of(&report, "ports")["status"].as_str()),
        (Some("skipped"), Some("ok"))
    );
    ward.configure("");
    ward.broken(8, "dns", "failed", &["leads nowhere", "*.preview.test"], rest);
    ward.hosts("127.0.0.99 preview-doctor-probe.preview.test pr-7.preview.test\n");
    ward.broken(8, "dns", "warning", &["none of the VM's addresses"], rest);
    ward.lead_to_the_vm();

    for (certificate, code, status, words) in [
        (("*.preview.test", "2020-01-01", "2020-02-01"), 8, "failed", "expired on 2020-02-01"),
        (("*.preview.test", "-1 day", "+36 hours"), 8, "failed", "(1 days)"),
        (("*.preview.test", "-1 day", "+10 days"), 0, "warning", "valid for this name until"),
        (("*.other.test", "-1 day", "+90 days"), 8, "failed", "other names: *.other.test"),
        (("*.preview.test", "+10 days", "+90 days"), 8, "failed", "not valid yet"),
    ] {
        let (name, from, to) = certificate;
        ward.certificate(name, from, to);
        ward.broken(code, "certificate", status, &[words], &[]);
    }
    // It is the chain that ends first that counts.
    ward.certificate("*.preview.test", "-1 day", "+90 days");
    ward.certificate_by_another();
    ward.broken(0, "certificate", "warning", &["(9 days)"], &[]);
    ward.certificate("*.preview.test", "-1 day", "+90 days");
    // Without the authority's file this machine knows nobody who vouches.
    let (code, report) = ward.run_without_ca();
    assert_eq!((code, &of(&report, "certificate")["status"]), (8, &Value::from("failed")), "{report}");
    assert!(of(&report, "certificate")["found"].as_str().expect("text").contains("not trusted"), "{report}");
    let (code, report) = ward.run(&ward.path(), &["--ca", "/nonexistent.pem"]);
    assert_eq!((code, &of(&report, "certificate")["status"]), (8, &Value::from("failed")), "{report}");

    ward.nginx("listen 80; return 200 'in clear text';");
    ward.broken(0, "redirect", "warning", &["does not lead to HTTPS"], &[]);
    ward.nginx(ward::REDIRECT);

    ward.root("docker ps -q --filter label=preview.managed=true | xargs docker stop -t 1 >/dev/null");
    ward.broken(8, "answer", "failed", &["answers 502", "preview logs"], &[]);
    ward.root("docker ps -aq --filter label=preview.managed=true --filter label=com.docker.compose.service | xargs docker start >/dev/null");
}

fn no_engine(ward: &Ward) {
    ward.vm().kill_dockerd().expect("dockerd ends");
    let depends =
        &["networks", "log-rotation", "proxy-network", "proxy-container", "ports", "certificate", "redirect", "answer"];
    ward.broken(8, "docker-version", "failed", &["no Docker engine answers", "systemctl restart docker"], depends);
}

#[test]
fn an_engine_that_is_too_old() {
    let Some(mut site) = Site::new(Where::Local, "") else { return };
    let real = std::env::var("DOCKER_HOST").ok().and_then(|host| Some(host.strip_prefix("unix://")?.to_owned()));
    let real = real.unwrap_or_else(|| "/var/run/docker.sock".to_owned());
    let socket = relay::old_engine(site.dir.path(), real.as_ref());
    site.set("DOCKER_HOST", &format!("unix://{}", socket.display()));
    let report = site.run(&["doctor", "--probe", "--format", "json"]).expect(8).json();
    let version = of(&report, "docker-version");
    assert_eq!(version["status"], "failed", "{version}");
    assert!(version["found"].as_str().expect("text").ends_with("(API 1.40) is too old"), "{version}");
    assert!(version["next"].as_str().expect("text").contains("Docker 20.10 or newer"), "{version}");
    // All else is looked at all the same, and nothing is deployed there.
    assert_eq!(of(&report, "networks")["status"], "ok", "{report}");
    assert_eq!(of(&report, "probe")["found"], "`docker-version` failed");
}

#[test]
fn a_disk_that_is_full_and_one_that_is_nearly() {
    let Some(lab) = lab() else { return };
    let options = VmOptions { data_size: Some("120m".to_owned()), ..VmOptions::default() };
    let vm = Arc::new(Vm::start(lab, VmEngine::V20, &options).expect("the VM starts"));
    let site = Site::on(lab, Some(Arc::clone(&vm)), "");
    site.write("preview.toml", "[limits]\nmin_free_disk = \"80MB\"\n");
    let doctor = || site.run(&["doctor", "--format", "json"]);
    assert_eq!(of(&doctor().expect(0).json(), "disk")["status"], "warning");
    vm.text(&["dd", "if=/dev/zero", "of=/var/lib/docker/fill", "bs=1M", "count=60"]).expect("it has room");
    assert_eq!(of(&doctor().expect(8).json(), "disk")["status"], "failed");
}

#[test]
fn on_this_machine_without_a_proxy_the_last_preview_is_asked_itself() {
    let Some(site) = Site::new(
        Where::Local,
        "services:\n  web:\n    image: busybox:1.36\n    command: httpd -f -p 8000 -h /\n    ports: ['8000']\n",
    ) else {
        return;
    };
    site.deploy("7").expect(0);
    let ran = site.run(&["doctor", "--format", "json"]).expect(0);
    assert_eq!(of(&ran.json(), "answer")["status"], "warning", "an empty directory is a 404: {}", ran.out);
    assert_eq!(of(&ran.json(), "login")["status"], "skipped");
    let text = site.run(&["doctor"]).expect(0).out;
    for words in [
        "this machine\n",
        "the VM\n",
        "the proxy\n",
        "the way in\n",
        "no failure",
        "because previews run on this machine",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "colours are for terminals: {text}");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    // Nothing was changed.
    assert_eq!(site.remains(), Vec::<String>::new());
}
