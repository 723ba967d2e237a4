//! What `[isolation]` turns on holds on a real engine, and what cannot be had together is refused.

use preview_tests::{Site, VmEngine, Where};

use crate::bad_input::refused;

/// `free` is left alone; a secret with a file lies below one of the temporary file systems.
const COMPOSE: &str = r#"
services:
  app:
    image: busybox:1.36
    command: ["sh", "-c", "echo here >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
    secrets: [token]
    stop_grace_period: 0s
  own:
    image: busybox:1.36
    command: ["sleep", "100000"]
    user: "65534:65534"
    tmpfs: ["/run:size=1m"]
    volumes: ["data:/tmp"]
    stop_grace_period: 0s
  free:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir /w; echo free >/w/index.html; exec httpd -f -p 9090 -h /w"]
    ports: ["9090"]
    stop_grace_period: 0s
volumes: {data: {}}
secrets: {token: {file: ./token.txt}}
"#;

const ISOLATION: &str = r#"
[isolation]
read_only = true
tmpfs = "2MB"
user = "1000:1000"
no_new_privileges = true
internal = true
cap_drop_all = true
except = ["free", "gone"]
"#;

fn sh(site: &Site, service: &str, script: &str) -> String {
    site.run(&["exec", "--pr", "7", service, "--", "sh", "-c", script]).expect(0).out
}

/// Whether a service gets through to an address, `IP PORT`.
fn reaches(site: &Site, service: &str, address: &str) -> bool {
    let script = format!("nc -w 3 {address} </dev/null >/dev/null 2>&1 && echo reached || echo closed");
    match sh(site, service, &script).as_str() {
        "reached\n" => true,
        "closed\n" => false,
        other => panic!("{other}"),
    }
}

/// Something outside of the VM that everything in it reaches: this machine, on the other end of the VM's network.
fn outside(site: &Site) -> String {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let gateway = site.shell("ip route | awk '/^default/ {print $3; exit}'");
    format!("{gateway} {port}")
}

fn everything(engine: VmEngine) {
    let Some(site) = Site::new(Where::Vm(engine), COMPOSE) else { return };
    site.write("token.txt", "hush\n");
    let target = outside(&site);

    site.write("preview.toml", "");
    site.deploy("7").expect(0);
    assert_eq!(sh(&site, "app", "id -u; touch /x && echo written"), "0\nwritten\n", "off by default");
    assert!(reaches(&site, "app", &target), "open by default");

    // Turned on by an update: networks are made anew.
    site.write("preview.toml", ISOLATION);
    let plan = site.run(&["plan", "--pr", "7", "--format", "json"]).expect(0).json();
    let told: Vec<&str> =
        plan["differences"].as_array().expect("differences").iter().filter_map(|one| one["key"].as_str()).collect();
    for key in [
        "services.app.read_only",
        "services.app.tmpfs",
        "services.app.user",
        "services.app.security_opt",
        "services.app.cap_drop",
        "services.own.read_only",
        "networks.default.internal",
        "services.free.networks",
    ] {
        assert!(told.contains(&key), "{key} is not in {told:?}");
    }
    for key in ["services.own.user", "services.own.tmpfs", "services.free.user", "services.free.read_only"] {
        assert!(!told.contains(&key), "{key} is in {told:?}");
    }
    let done = site.deploy("7").expect(0);
    assert!(done.err.contains("`except` names `gone`"), "{}", done.err);
    let done = done.json();

    // The root is read-only, temporary space is bounded.
    assert_eq!(sh(&site, "app", "touch /x 2>&1 || true"), "touch: /x: Read-only file system\n");
    let filled =
        "dd if=/dev/zero of=/tmp/large bs=1M count=8 2>&1 | grep -c 'No space left'; wc -c </tmp/large; rm /tmp/large";
    assert_eq!(sh(&site, "app", filled), format!("1\n{}\n", (2 << 20) - 4096), "the page takes one page");
    assert_eq!(sh(&site, "app", "echo x >/run/x && cat /run/x /run/secrets/token"), "x\nhush\n");
    assert_eq!(sh(&site, "own", "df -k /run | tail -1 | awk '{print $2}'"), "1024\n", "the file's own");
    assert!(sh(&site, "own", "mount | grep ' /tmp '").contains("/tmp"), "the volume is there");
    assert!(!sh(&site, "own", "mount | grep ' /tmp '").starts_with("tmpfs"), "the volume, no temporary file system");

    // Not root, and no way to it.
    assert_eq!(sh(&site, "app", "id -u; id -g"), "1000\n1000\n");
    assert_eq!(sh(&site, "own", "id -u"), "65534\n");
    assert_eq!(sh(&site, "free", "id -u"), "0\n");
    let status = "grep -E 'CapBnd|NoNewPrivs' /proc/1/status | tr -d '\\t'";
    assert_eq!(sh(&site, "app", status), "CapBnd:0000000000000000\nNoNewPrivs:1\n");
    assert_ne!(sh(&site, "free", status), sh(&site, "app", status));

    // Outbound is closed; the preview's services reach each other; the exception is reached and reaches.
    assert_eq!(sh(&site, "own", "wget -q -O - http://app:8080/"), "here\n");
    assert_eq!(sh(&site, "free", "wget -q -O - http://app:8080/"), "here\n");
    assert!(site.get(done["url"].as_str().expect("an address")).trim_end().ends_with("free"));
    assert!(reaches(&site, "free", &target), "the exception gets out to {target}");
    for service in ["app", "own"] {
        assert!(!reaches(&site, service, &target), "{service} gets out to {target}");
    }

    // Nothing differs; turned off again it is as before.
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");
    site.write("preview.toml", "");
    site.deploy("7").expect(0);
    assert!(reaches(&site, "app", &target));
    assert_eq!(sh(&site, "app", "id -u"), "0\n");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn everything_on_an_old_engine() {
    everything(VmEngine::V20);
}

#[test]
fn everything_on_a_new_engine() {
    everything(VmEngine::V28);
}

#[test]
fn what_cannot_be_had_together_is_refused() {
    let Some(mut site) = Site::new(Where::Local, COMPOSE) else { return };
    site.write("token.txt", "hush\n");
    site.write("preview.toml", "\n[isolation]\ninternal = true\n");
    let words =
        ["preview.toml:2:1: `isolation`: services.free.ports: port 9090 cannot be published", "`isolation.except`"];
    refused(&site, &["deploy", "--pr", "7"], 2, &words);
    refused(&site, &["plan", "--pr", "7"], 2, &words);
    site.write("compose.yml", &COMPOSE.replace("{file: ./token.txt}", "{environment: TOKEN}"));
    site.write("preview.toml", "[isolation]\nread_only = true\n[[secrets]]\nkind = \"env\"\nnames = [\"TOKEN\"]\n");
    site.set("TOKEN", "hush hush");
    refused(
        &site,
        &["deploy", "--pr", "7"],
        2,
        &["preview.toml:1:1: `isolation`: services.app.secrets: `token` has no file"],
    );
}

/// Where nothing is published, a closed preview works without a proxy, and is reached through a tunnel.
#[test]
fn a_closed_preview_without_ports() {
    let Some(site) = Site::new(Where::Local, &COMPOSE.replace("    ports: [\"9090\"]\n", "")) else { return };
    site.write("token.txt", "hush\n");
    site.write(
        "preview.toml",
        "[isolation]\ninternal = true\n[health]\npath = \"/\"\nservice = \"app\"\nport = 8080\n",
    );
    site.deploy("7").expect(0);
    let mut tunnel = site.start(&["tunnel", "--pr", "7", "free:9090"]);
    tunnel.until("until Ctrl-C");
    // The address is printed beside that, on another stream: which of the two is read first is not said.
    preview_tests::eventually("the address is printed", || tunnel.printed().ends_with('\n'));
    let address = tunnel.printed();
    assert!(preview_tests::http_get(address.trim()).expect("an answer").trim_end().ends_with("free"));
    tunnel.interrupt();
    let _ = tunnel.end();
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}
