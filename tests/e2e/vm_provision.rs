//! `preview vm provision` against a listener that answers as Hetzner Cloud documents it. The adapter's own tests are in the library.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use preview_tests::{Ran, preview_binary};
use serde_json::{Value, json};

/// Serves an account with these servers; hands on what is posted.
fn account(servers: &[&str]) -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let server =
        |name: &str| json!({"id": 7, "name": name, "status": "running", "public_net": {"ipv4": {"ip": "203.0.113.7"}}});
    let found: Vec<Value> = servers.iter().map(|name| server(name)).collect();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.expect("a connection"));
            let (mut first, mut line, mut size) = (String::new(), String::new(), 0);
            reader.read_line(&mut first).expect("a request");
            while reader.read_line(&mut line).expect("a header") > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    size = value.trim().parse().expect("a size");
                }
                line.clear();
            }
            let mut body = vec![0; size];
            reader.read_exact(&mut body).expect("a body");
            let answer = if first.starts_with("POST /v1/servers ") {
                let order: Value = serde_json::from_slice(&body).expect("JSON");
                let name = order["name"].as_str().expect("a name").to_owned();
                sender.send(order).expect("the test listens");
                json!({"server": server(&name), "action": {"id": 1, "status": "success"}, "next_actions": []})
            } else if first.starts_with("GET /v1/servers/7 ") {
                json!({"server": server("preview-vm")})
            } else {
                json!({"servers": found, "meta": {"pagination": {"next_page": null}}})
            };
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                answer.len()
            );
            let _ = reader.get_mut().write_all((head + &answer).as_bytes());
        }
    });
    (address, receiver)
}

fn provision(api: &str, args: &[&str]) -> Ran {
    let mut command = Command::new(preview_binary());
    command.args(["vm", "provision", "--provider", "hetzner", "--api", api]).args(args);
    command.env_clear().env("HCLOUD_TOKEN", "token-4711").stdin(Stdio::null()).current_dir(std::env::temp_dir());
    for name in ["PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let ran: Ran = command.output().expect("the command starts").into();
    assert!(!ran.out.contains("4711") && !ran.err.contains("4711") && !ran.out.contains("PRIVATE KEY"), "{ran:?}");
    ran
}

#[test]
fn one_server_is_taken_none_is_made_two_are_refused() {
    let (api, orders) = account(&["db", "preview-vm-2"]);
    let ran = provision(&api, &["--format", "json"]).expect(0);
    assert_eq!((ran.json()["action"].as_str(), ran.json()["known_hosts"].is_null()), (Some("adopted"), true));
    assert!(
        provision(&api, &[])
            .expect(0)
            .out
            .contains("preview-vm-2 (7, 203.0.113.7, running) is there, and taken as it is")
    );

    let (two, more_orders) = account(&["preview-vm", "preview-vm-2"]);
    let ran = provision(&two, &[]).expect(3);
    assert!(
        ran.out.contains("2 servers fit preview-vm*: preview-vm (7), preview-vm-2 (7); exactly one may"),
        "{}",
        ran.out
    );

    let (none, made) = account(&["db"]);
    assert!(provision(&none, &["--dry-run"]).expect(2).err.contains("a new one needs --ssh-key"));
    assert!(provision(&none, &["--dry-run", "--ssh-key", "ops"]).expect(0).out.contains("preview-vm would be made"));
    assert!(orders.try_recv().is_err() && more_orders.try_recv().is_err() && made.try_recv().is_err());
    let ran = provision(&none, &["--ssh-key", "ops", "--label", "team=a", "--format", "json"]).expect(0);
    let order = made.try_recv().expect("an order");
    assert_eq!((&order["ssh_keys"], &order["labels"]), (&json!(["ops"]), &json!({"team": "a"})));

    // What it is started with: the script, with the proxy, and the key whose public half we were told.
    let data = order["user_data"].as_str().expect("user data");
    assert!(data.len() < 32 * 1024, "{} bytes are too many", data.len());
    let data: Value = serde_saphyr::from_str(data).expect("YAML");
    let public = data["ssh_keys"]["ed25519_public"].as_str().expect("a key");
    assert_eq!(ran.json()["known_hosts"], format!("203.0.113.7 {public}"));
    assert!(ran.err.contains(&format!("preview-vm is ordered now. Its host key, to be kept: {public}")), "{}", ran.err);
    assert!(
        data["ssh_keys"]["ed25519_private"]
            .as_str()
            .is_some_and(|key| key.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"))
    );
    // It is long, so it is packed.
    let file = &data["write_files"][0];
    assert_eq!(file["encoding"], "gz+b64");
    let mut unpack = Command::new("sh");
    unpack.args(["-c", "printf %s \"$1\" | base64 -d | gunzip", "sh"]).arg(file["content"].as_str().expect("text"));
    let script = String::from_utf8(unpack.output().expect("sh").stdout).expect("text");
    assert!(script.starts_with("#!/bin/sh\n") && script.contains("preview-traefik"), "{script}");
}

#[test]
fn what_a_new_server_could_not_do_without_is_refused() {
    let (api, orders) = account(&[]);
    for (args, said) in [
        (&["--skip", "firewall"][..], "the step firewall cannot be left out"),
        (&["--only", "docker"], "the step firewall cannot be left out"),
        (&["--label-selector", "team=a", "--label", "team=b"], "a new server lacks the label `team=a`"),
    ] {
        let ran = provision(&api, args).expect(2);
        assert!(ran.err.contains(said), "{}", ran.err);
    }
    let keys = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(keys.path(), preview_tests::public_keys(1000)).expect("keys");
    // Nobody answers there: it is refused before anybody is asked.
    let silent = "http://127.0.0.1:9/v1";
    let ran = provision(silent, &["--deploy-key", keys.path().to_str().expect("text")]).expect(2);
    assert!(ran.err.contains("a provider takes 32768") && ran.err.contains("--skip proxy"), "{}", ran.err);
    assert!(orders.try_recv().is_err(), "nothing was ordered");
}

#[test]
fn without_a_token_nothing_is_asked() {
    let mut command = Command::new(preview_binary());
    command
        .args(["vm", "provision", "--provider", "hetzner"])
        .env_clear()
        .stdin(Stdio::null())
        .current_dir(std::env::temp_dir());
    let ran: Ran = command.output().expect("the command starts").into();
    assert!(ran.expect(2).err.contains("the variable HCLOUD_TOKEN is not set"));
}
