//! A bare server made ready by `preview vm setup`: looked at, mended, left alone, and deployed to.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use preview_tests::{Ran, Site, Vm, VmEngine, VmOptions, lab, preview_binary};
use serde_json::Value;

use crate::stacks::SMALL;

/// Everything that a test here asks for.
const WISHES: [&str; 5] = ["--proxy", "none", "--webhook-env", "HOOK", "--security-updates"];
/// Nothing answers there, and it is a secret.
const HOOK: &str = "http://127.0.0.1:9/hooks/secret-4711";

fn bare() -> Option<Vm> {
    Some(Vm::start(lab()?, VmEngine::None, &VmOptions::default()).expect("a VM"))
}

/// `preview vm setup` as root of the VM.
pub(crate) fn command(vm: &Vm, args: &[&str]) -> Command {
    let mut command = Command::new(preview_binary());
    command.args(["vm", "setup"]).args(args).env_clear().stdin(Stdio::null());
    for name in ["PATH", "HOME", "TMPDIR"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.env("PREVIEW_HOST", vm.ssh_url()).env("PREVIEW_IDENTITY_FILE", vm.identity_file());
    command.env("PREVIEW_KNOWN_HOSTS", vm.known_hosts()).env("HOOK", HOOK);
    // No configuration of this repository is meant.
    command.current_dir(std::env::temp_dir());
    command
}

fn setup(vm: &Vm, args: &[&str]) -> Ran {
    let key = vm.public_key_file();
    let key = key.to_str().expect("text");
    let args = [&WISHES[..], &["--deploy-key", key], args].concat();
    let ran: Ran = command(vm, &args).output().expect("the command starts").into();
    assert!(!ran.out.contains("secret-4711") && !ran.err.contains("secret-4711"), "{ran:?}");
    ran
}

/// States of the steps by their names.
fn states(ran: &Ran) -> Vec<(String, String)> {
    let word = |step: &Value, key: &str| step[key].as_str().expect("text").to_owned();
    let steps = ran.json()["steps"].as_array().expect("a list").clone();
    steps.iter().map(|step| (word(step, "id"), word(step, "state"))).collect()
}

#[track_caller]
fn assert_states(ran: &Ran, expected: &str) {
    for (id, state) in states(ran) {
        // A container has no swap of its own.
        let expected = if id == "swap" { "skip" } else { expected };
        assert_eq!(state, expected, "{id}: {}\n{}", ran.out, ran.err);
    }
}

pub(crate) fn shell(vm: &Vm, script: &str) -> String {
    vm.text(&["sh", "-c", script]).unwrap_or_else(|error| panic!("{script}: {error:#}"))
}

/// What a run could have changed: packages, users, rules, files.
fn everything(vm: &Vm) -> String {
    shell(
        vm,
        "dpkg-query -W; cat /etc/passwd /etc/group /etc/shadow; nft list tables; \
         find /etc /opt /usr/local /root /home /var/lib/prometheus -xdev -type f ! -path '/opt/containerd/*' -printf '%p %m %u %T@\\n' | sort",
    )
}

#[track_caller]
fn assert_untouched(vm: &Vm, before: &str) {
    let after = everything(vm);
    let gone: Vec<&str> = before.lines().filter(|line| !after.lines().any(|other| other == *line)).collect();
    let new: Vec<&str> = after.lines().filter(|line| !before.lines().any(|other| other == *line)).collect();
    assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}");
}

/// Whether a connection from outside gets through to a port of the VM.
pub(crate) fn open(address: &str, port: u16) -> bool {
    let address = format!("{address}:{port}").parse().expect("an address");
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else { return false };
    // Docker's own listener takes a connection before it knows whether the container does.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let _ = write!(stream, "GET / HTTP/1.0\r\n\r\n");
    stream.read(&mut [0; 16]).is_ok_and(|size| size > 0)
}

/// What breaks each step, and what `--dry-run` then says about it.
const BREAKAGES: [(&str, &str, &str); 14] = [
    ("docker-config", "echo '{\"dns\": [\"192.0.2.1\"]}' >/etc/docker/daemon.json", "lacks some of our settings"),
    ("docker", "systemctl stop docker", "no Docker Engine answers"),
    ("user", "gpasswd -d deploy docker", "not in the group docker"),
    ("user", ": >/home/deploy/.ssh/authorized_keys", "lacks the key ssh-ed25519"),
    ("directories", "chmod 755 /opt/previews", "/opt/previews has another mode"),
    ("directories", "rm -r /opt/preview-proxy", "/opt/preview-proxy is missing"),
    ("sshd", "echo 'MaxSessions 3' >/etc/ssh/sshd_config.d/00-preview.conf", "MaxSessions is 3, wanted 64"),
    ("firewall", "nft delete table inet preview_firewall", "every port is open"),
    (
        "firewall",
        "echo 8443 >>/etc/preview/firewall.conf; systemctl restart preview-firewall",
        "firewall.conf has another content",
    ),
    (
        "node-exporter",
        "sed -i 's/^ARGS=.*/ARGS=\"--collector.tcpstat\"/' /etc/default/prometheus-node-exporter",
        "does not listen on 127.0.0.1 only",
    ),
    ("alerts", "chmod 644 /etc/preview/alerts.conf", "another mode or owner: 644 root instead of 600 root"),
    ("alerts", "systemctl disable preview-alerts.timer", "the timer is off"),
    (
        "updates",
        "apt-get purge -y -qq unattended-upgrades >/dev/null 2>&1; dpkg-query -s base-files >/var/lib/dpkg/updates/0000",
        "unattended-upgrades is not installed",
    ),
    ("updates", "rm /etc/apt/apt.conf.d/60preview-updates", "is missing"),
];

#[test]
fn from_a_bare_server_to_a_preview() {
    let Some(vm) = bare() else { return };
    let address = shell(&vm, "hostname -i");

    // Looked at: nothing changes.
    let before = everything(&vm);
    let ran = setup(&vm, &["--dry-run", "--format", "json"]).expect(0);
    assert_states(&ran, "change");
    assert_eq!(ran.json()["changed"], false);
    let ran = setup(&vm, &["--dry-run"]).expect(0);
    assert!(
        ran.out.contains("change   docker ") && ran.out.contains("9 of 10 would be changed; nothing was"),
        "{}",
        ran.out
    );
    assert_untouched(&vm, &before);

    // Done, beside what somebody had decided.
    shell(
        &vm,
        "mkdir -p /etc/docker; echo '{\"registry-mirrors\": [\"https://mirror.example\"]}' >/etc/docker/daemon.json",
    );
    let ran = setup(&vm, &["--format", "json"]).expect(0);
    assert_states(&ran, "changed");
    let daemon: Value = serde_json::from_str(&shell(&vm, "cat /etc/docker/daemon.json")).expect("JSON");
    assert_eq!(daemon["registry-mirrors"][0], "https://mirror.example");
    let runs = shell(&vm, "docker info --format '{{.LoggingDriver}} {{.LiveRestoreEnabled}} {{.DefaultAddressPools}}'");
    assert_eq!(runs, "local true [{10.201.0.0/16 26}]");
    assert_eq!(
        shell(&vm, "cat /etc/preview/alerts.conf; stat -c '%a %U' /etc/preview/alerts.conf"),
        format!("webhook={HOOK}\n600 root")
    );
    assert!(shell(&vm, "curl -fsS http://127.0.0.1:9100/metrics").contains("node_load1"));
    assert!(shell(&vm, "sshd -T").contains("maxsessions 64"));

    // Again: nothing to do, and nothing done.
    let before = everything(&vm);
    let ran = setup(&vm, &[]).expect(0);
    assert!(ran.out.ends_with("nothing to do\n"), "{}", ran.out);
    assert_states(&setup(&vm, &["--format", "json"]).expect(0), "ok");
    assert_untouched(&vm, &before);

    // The deploy user deploys, and writes numbers where node-exporter reads them.
    vm.load_image(&["busybox:1.36"]).expect("an image");
    let vm = Arc::new(vm);
    {
        let mut site = Site::on(lab().expect("a lab"), Some(Arc::clone(&vm)), SMALL);
        site.set("PREVIEW_HOST", &vm.ssh_url_of("deploy"));
        site.write("preview.toml", "[limits]\nmin_free_disk = \"1MB\"\nmin_free_memory = \"1MB\"\n[metrics]\nfile = \"/var/lib/prometheus/node-exporter/preview.prom\"\n");
        site.deploy("7").expect(0);
        assert!(shell(&vm, "curl -fsS http://127.0.0.1:9100/metrics").contains("preview_active 1"));
        let network = shell(
            &vm,
            "docker network ls -q --filter label=preview.app | xargs docker network inspect --format '{{range .IPAM.Config}}{{.Subnet}}{{end}}'",
        );
        assert!(network.starts_with("10.201.") && network.ends_with("/26"), "{network}");
        site.run(&["destroy", "--pr", "7"]).expect(0);
    }

    // From outside: what Docker publishes is closed too, unless it is one of the proxy's ports.
    let serve = "docker run -d --rm --name page -p 80:80 -p 8099:80 busybox:1.36 sh -c 'echo hello >/index.html; exec httpd -f -p 80 -h /'";
    shell(&vm, serve);
    preview_tests::eventually("the page", || shell(&vm, "curl -fsS http://127.0.0.1:8099/ || :") == "hello");
    assert!(open(&address, 80) && !open(&address, 8099) && !open(&address, 9100));
    setup(&vm, &["--only", "firewall", "--open-port", "8099"]).expect(0);
    assert!(open(&address, 80) && open(&address, 8099));
    setup(&vm, &["--only", "firewall"]).expect(0);
    assert!(open(&address, 80) && !open(&address, 8099));
    // Names of containers and the world are reached from inside as before.
    assert_eq!(shell(&vm, &format!("docker run --rm busybox:1.36 wget -qO- http://{address}/")), "hello");
    shell(&vm, "docker rm -f page");

    // Each step broken by itself, seen, and mended.
    for (step, breakage, said) in BREAKAGES {
        shell(&vm, breakage);
        let ran = setup(&vm, &["--only", step, "--dry-run"]).expect(0);
        assert!(ran.out.contains("1 of 1 would be changed") && ran.out.contains(said), "{breakage}: {}", ran.out);
        setup(&vm, &["--only", step]).expect(0);
        let ran = setup(&vm, &["--only", step]).expect(0);
        assert!(ran.out.contains("nothing to do"), "{breakage}: {}", ran.out);
    }
    assert!(
        shell(&vm, "cat /etc/default/prometheus-node-exporter").contains("--collector.tcpstat"),
        "others' arguments stay"
    );
    assert!(shell(&vm, "cat /etc/docker/daemon.json").contains("192.0.2.1"), "others' settings stay");
    assert_states(&setup(&vm, &["--dry-run", "--format", "json"]).expect(0), "ok");

    // The firewall never closes the port of sshd, wherever that is.
    shell(&vm, "echo 'Port 22\nPort 2022' >/etc/ssh/sshd_config.d/10-port.conf; kill -HUP $(cat /run/sshd.pid)");
    setup(&vm, &["--only", "firewall"]).expect(0);
    assert!(open(&address, 2022) && open(&address, 22));
}

#[test]
fn what_would_lock_us_out_is_taken_back() {
    let Some(vm) = bare() else { return };
    // As if a rule were wrong: whoever loads rules closes the door to newcomers too.
    let wrong = "#!/bin/sh\n/usr/sbin/nft \"$@\" || exit\ncase $* in '-f -') /usr/sbin/nft insert rule inet preview_firewall outside tcp dport 22 ct state new drop ;; esac\n";
    shell(
        &vm,
        &format!("printf %s '{}' >/usr/local/sbin/nft; chmod 755 /usr/local/sbin/nft", wrong.replace('\'', "'\\''")),
    );
    let ran = setup(&vm, &["--only", "firewall"]).expect(4);
    assert!(
        ran.out.contains("FAILED   firewall")
            && ran.out.contains("no new connection gets through any more, so it was taken back"),
        "{}",
        ran.out
    );
    assert_eq!(shell(&vm, "nft list tables"), "");
    // Nor does it come back: with the next reload of sshd, or the next boot.
    shell(
        &vm,
        "rm /usr/local/sbin/nft; systemctl daemon-reload; systemctl reload ssh || kill -HUP $(cat /run/sshd.pid)",
    );
    assert_eq!(shell(&vm, "sleep 2; nft list tables"), "");
    let left = "find /etc/systemd /usr/local/lib/preview | grep -i firewall || :";
    assert_eq!(shell(&vm, left), "", "nothing is left that could load the rules");
    setup(&vm, &["--only", "firewall"]).expect(0);
}

#[test]
fn what_cannot_be_done_is_said_and_nothing_is_half_done() {
    let Some(vm) = bare() else { return };

    // A step that fails ends the run, with its name and what it said.
    shell(&vm, "echo 'Nonsense yes' >>/etc/ssh/sshd_config");
    let ran = setup(&vm, &["--only", "sshd", "--only", "firewall", "--format", "json"]).expect(4);
    assert_eq!(
        states(&ran),
        [("sshd".to_owned(), "failed".to_owned()), ("firewall".to_owned(), "not_reached".to_owned())]
    );
    assert!(ran.out.contains("Bad configuration option: Nonsense"), "{}", ran.out);
    assert!(
        vm.exec(&["test", "-e", "/etc/ssh/sshd_config.d/00-preview.conf"]).is_ok_and(|test| !test.status.success())
    );
    shell(&vm, "sed -i '$d' /etc/ssh/sshd_config");

    // A broken file of the engine is not replaced.
    shell(&vm, "mkdir -p /etc/docker; echo '{\"dns\": [' >/etc/docker/daemon.json");
    let ran = setup(&vm, &[]).expect(2);
    assert!(ran.err.contains("/etc/docker/daemon.json is not a JSON object"), "{}", ran.err);
    assert_eq!(shell(&vm, "cat /etc/docker/daemon.json"), "{\"dns\": [");
    shell(&vm, "rm /etc/docker/daemon.json");

    // A user without rights, and one with them.
    shell(
        &vm,
        "useradd -m -s /bin/bash admin; usermod -p '*' admin; cp -r /root/.ssh /home/admin/; chown -R admin: /home/admin/.ssh",
    );
    let as_admin = |args: &[&str]| -> Ran {
        let host = vm.ssh_url_of("admin");
        let args = [&WISHES[..], args, &["--host", &host]].concat();
        command(&vm, &args).output().expect("the command starts").into()
    };
    let ran = as_admin(&["--only", "directories"]).expect(6);
    assert!(ran.err.contains("admin may neither act as root nor use sudo without a password"), "{}", ran.err);
    shell(&vm, "echo 'admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin");
    as_admin(&["--only", "user"]).expect(0);
    as_admin(&["--only", "directories"]).expect(0);
    assert_eq!(shell(&vm, "stat -c '%a %U' /opt/previews"), "700 deploy");

    // Another system.
    shell(
        &vm,
        "sed -i 's/^ID=.*/ID=alpine/; s/^VERSION_ID=.*/VERSION_ID=3.22/; s/^PRETTY_NAME=.*/PRETTY_NAME=\"Alpine Linux v3.22\"/' /etc/os-release",
    );
    let ran = setup(&vm, &["--dry-run"]).expect(2);
    assert!(
        ran.err.contains("it runs Alpine Linux v3.22; this command knows Debian 12 and 13, Ubuntu 22.04 and 24.04"),
        "{}",
        ran.err
    );
}

#[test]
fn the_printed_script_does_the_same_without_us() {
    let Some(vm) = bare() else { return };
    let key = vm.public_key_file();
    let wish = ["--proxy", "none", "--deploy-key", key.to_str().expect("text")];
    let print = |form: &str| -> Ran {
        let args = [&wish[..], &["--print", form]].concat();
        command(&vm, &args).output().expect("the command starts").into()
    };
    let script = print("script").expect(0).out;

    // The same stands in the user data, as a file and a command; without comments, since there is little room.
    let data = print("cloud-init").expect(0);
    assert!(data.out.starts_with("#cloud-config\n") && !data.err.contains("bytes"), "{}", data.err);
    let data: Value = serde_saphyr::from_str(&data.out).expect("YAML");
    let user_data = data["write_files"][0]["content"].as_str().expect("text").to_owned();
    assert!(
        user_data.len() < script.len() && user_data.contains("lists() {") && !user_data.contains("# Apt-get waits")
    );
    assert!(
        data["runcmd"][0][2].as_str().is_some_and(|line| line.starts_with("/usr/local/lib/preview/setup ")),
        "{data}"
    );
    // More than a provider takes is printed, with a warning.
    let keys = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(keys.path(), preview_tests::public_keys(1000)).expect("keys");
    let args = ["--print", "cloud-init", "--proxy", "none", "--deploy-key", keys.path().to_str().expect("text")];
    let large: Ran = command(&vm, &args).output().expect("the command starts").into();
    let large = large.expect(0);
    let said = format!("warning: the user data has {} bytes, and a provider takes 32768", large.out.len());
    assert!(large.err.contains(&said) && large.err.contains("--skip proxy"), "{}", large.err);

    let run = |script: &str| {
        let mut child = vm.command_with_input(&["sh", "-c", "cat >/root/setup && exec sh /root/setup"]);
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().expect("docker starts");
        child.stdin.take().expect("an input").write_all(script.as_bytes()).expect("the script is handed over");
        Ran::from(child.wait_with_output().expect("an end")).expect(0)
    };
    let first = run(&user_data);
    assert!(first.out.contains("docker: done\n") && first.out.ends_with("ready for previews\n"), "{}", first.out);
    let expected = "docker-config: as wanted\ndocker: as wanted\nuser: as wanted\ndirectories: as wanted\n\
                    sshd: as wanted\nfirewall: as wanted\nswap: left out: a container has no swap of its own\nnode-exporter: as wanted\nready for previews\n";
    assert_eq!(run(&user_data).out, expected);
    assert_eq!(run(&script).out, expected);
    let seen: Ran = command(&vm, &wish).output().expect("the command starts").into();
    assert!(seen.expect(0).out.ends_with("nothing to do\n"));

    // A step that fails ends the script, and is not taken for done.
    shell(&vm, "rm -r /opt/preview-proxy && touch /opt/preview-proxy");
    let failed = vm.exec(&["sh", "/root/setup"]).expect("it runs");
    let said = String::from_utf8_lossy(&failed.stdout).into_owned();
    assert!(!failed.status.success() && said.ends_with("directories failed\n"), "{said}");

    // Other proxies are somebody else's.
    let other: Ran = command(&vm, &["--proxy", "nginx"]).output().expect("the command starts").into();
    let said = other.expect(2).err;
    assert!(said.contains("--proxy none") && said.contains("docs/proxies.md"), "{said}");

    // Secrets do not belong there.
    let refused: Ran = command(&vm, &["--print", "script", "--proxy", "none", "--webhook-env", "HOOK"])
        .output()
        .expect("it starts")
        .into();
    assert!(refused.expect(2).err.contains("the step alerts holds a secret"));
}
