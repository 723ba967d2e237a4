//! A deploy is a success only where the page opens: the public address is opened from the runner, and what is in the way is told by its layer.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use preview_tests::lane::{Kind, Lane};
use preview_tests::{Ran, Site, Where};
use serde_json::Value;

const WEB: &str = r#"
services:
  web:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir -p /w/cgi-bin; cd /w; echo hello > index.html; printf '#!/bin/sh\\nprintf \"Status: 500\\\\r\\\\n\\\\r\\\\n\"\\n' > cgi-bin/500; chmod +x cgi-bin/500; exec httpd -f -p 8000 -h /w"]
    ports: ['8000']
    stop_grace_period: 0s
"#;

/// Runs the command where `/etc/hosts` is this text.
fn with_hosts(site: &Site, hosts: &str, args: &[&str]) -> Ran {
    let file = site.dir.path().join("hosts");
    std::fs::write(&file, hosts).expect("a file");
    let plain = site.command(args);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"", "sh"]).arg(&file);
    command.arg(plain.get_program()).args(plain.get_args()).env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(site.dir.path()).stdin(Stdio::null()).output().expect("it starts").into()
}

const HERE: &str = "127.0.0.1 localhost pr-7.preview.test\n";
const NOWHERE: &str = "127.0.0.1 localhost\n";

/// What the document says of the one public address.
#[track_caller]
fn opened(ran: &Ran) -> Value {
    let document = ran.json();
    let all = document["public"].as_array().unwrap_or_else(|| panic!("nothing was opened: {document}")).clone();
    assert_eq!(all.len(), 1, "{document}");
    all[0].clone()
}

fn deploy(lane: &Lane, hosts: &str, url: &str, more: &str) -> Ran {
    lane.site.write("preview.toml", &format!("url = \"{url}\"\n{}{more}", lane.table()));
    with_hosts(&lane.site, hosts, &["deploy", "--pr", "7", "--format", "json"])
}

#[test]
fn what_is_in_the_way_is_told_by_its_layer() {
    let Some(mut lane) = Lane::new(Kind::Nginx, Where::Local, WEB) else { return };
    let url = format!("https://{{name}}.preview.test:{}", lane.https);
    let closed = |ran: Ran, layer: &str, words: &[&str]| {
        let ran = ran.expect(0);
        let seen = opened(&ran);
        assert_eq!((&seen["reached"], &seen["layer"]), (&false.into(), &layer.into()), "{seen}");
        assert!(seen["next"].as_str().is_some_and(|next| !next.is_empty()), "{seen}");
        for word in words.iter().chain(&["warning"]) {
            assert!(ran.err.contains(word), "{word}: {}", ran.err);
        }
    };
    closed(deploy(&lane, NOWHERE, &url, ""), "dns", &["DNS knows no address", "*.preview.test"]);
    closed(deploy(&lane, HERE, &url, ""), "tls", &["the certificate does not hold"]);
    let authority = lane.authority();
    lane.site.set("SSL_CERT_FILE", &authority);
    let ran = deploy(&lane, HERE, &url, "").expect(0);
    let seen = opened(&ran);
    assert_eq!((&seen["reached"], &seen["found"]), (&true.into(), &"answers 200".into()), "{seen}");
    assert!(!ran.err.contains("warning"), "{}", ran.err);

    // An application that has no page at `/`, one that fails, and one behind a password.
    lane.site.write("compose.yml", &WEB.replace("echo hello > index.html", "echo hello > other.html"));
    assert_eq!(opened(&deploy(&lane, HERE, &url, "").expect(0))["found"], "answers 404");
    let failing = format!("{url}/cgi-bin/500");
    closed(deploy(&lane, HERE, &failing, ""), "application", &["answers 500"]);
    lane.site.write("compose.yml", WEB);
    let password = "[proxy.basic_auth]\npassword = \"PASSWORD\"\n[generate.PASSWORD]\n";
    let seen = opened(&deploy(&lane, HERE, &url, password).expect(0));
    assert_eq!(seen["reached"], true, "{seen}");
    assert!(seen["found"].as_str().is_some_and(|found| found.contains("401")), "{seen}");

    // Another server has the name, or nobody.
    let stranger = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = stranger.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in stranger.incoming() {
            let Ok(mut stream) = stream else { break };
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nWelcome");
        }
    });
    let other = format!("http://{{name}}.preview.test:{port}");
    closed(deploy(&lane, HERE, &other, ""), "proxy", &["another server or route answers"]);
    let nobody = "https://{name}.preview.test:1";
    closed(deploy(&lane, HERE, nobody, ""), "port", &["nothing takes a connection", "preview vm setup"]);

    // It can fail the run, and takes nothing back.
    let ran = deploy(&lane, HERE, nobody, "[health]\npublic = \"fail\"\n").expect(4);
    assert_eq!(ran.failure(), "public_unreachable");
    assert!(ran.err.contains("nothing takes a connection"), "{}", ran.err);
    assert_eq!((lane.site.phase("pr-7").as_str(), lane.site.containers("pr-7").len()), ("ready", 1));
    let ran = deploy(&lane, HERE, nobody, "[health]\npublic = \"off\"\n").expect(0);
    assert!(ran.json().get("public").is_none() && !ran.err.contains("warning"), "{}", ran.err);
    lane.site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(lane.site.remains(), Vec::<String>::new());
}

#[test]
fn a_way_in_that_cannot_be_is_told_with_the_lines_to_write() {
    let Some(site) = Site::new(Where::Local, WEB) else { return };
    let plan = |toml: &str, code: i32, words: &[&str]| {
        site.write("preview.toml", toml);
        let ran = site.run(&["plan", "--pr", "7"]).expect(code);
        for word in words {
            assert!(ran.err.contains(word), "{word}: {}", ran.err);
        }
    };
    let url = "url = \"https://{name}.preview.test\"\n";
    plan(url, 0, &["`url` is not used", "preview vm setup", "[proxy]", "kind = \"traefik\""]);
    let proxy = format!("{url}[proxy]\nkind = \"traefik\"\nnetwork = \"{}-none\"\n", site.app);
    let network = format!("docker network create {}-none", site.app);
    plan(&proxy, 2, &["[proxy] network", "preview vm setup", &network]);
    plan("[route]\nservice = \"web\"\nport = 8000\n", 2, &["preview.toml:1:1", "`[[route]]`"]);
    site.write("compose.yml", &WEB.replace("['8000']", "['8000', '9000']"));
    plan(&proxy, 2, &["2 ports", "8000 of `web`", "[[route]]", "service = \"web\"", "port = 8000"]);
    assert!(!Path::new(site.base()).exists(), "nothing was written");
}
