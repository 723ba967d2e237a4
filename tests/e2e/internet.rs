//! From a bare server to an address that answers: set up, a wildcard certificate by DNS-01, a DNS record, the doctor, a deploy, its end; then all kinds of routes.

mod ways;

use std::process::{Command, Stdio};
use std::sync::Arc;

use preview_tests::{Ran, Site, Vm, VmEngine, VmOptions, eventually, lab};
use xtask::lab::Extra;

use crate::dns::server::{KEY, Kind, SECRET, Server};
use crate::vm_proxy::{SOCKET_PROXY, socket_proxy};
use crate::vm_setup::{command, shell};

const WEB: &str = "\
services:
  web:
    image: busybox:1.36
    command: [sh, -c, 'mkdir /w && echo hello >/w/index.html && exec httpd -f -p 8080 -h /w']
    ports: ['8080']
    stop_grace_period: 0s
";

/// An ACME server on port 14000 of the VM, which asks that name server.
fn authority(vm: &Vm, address: &str, resolver: &str) {
    shell(
        vm,
        &format!(
            "apt-get install -y -qq --no-install-recommends curl openssl >/dev/null 2>&1 && mkdir -p /srv/acme && cd /srv/acme && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pebble \
             -addext 'subjectAltName=IP:{address}' -keyout key.pem -out cert.pem 2>/dev/null && \
             echo '{{\"pebble\": {{\"listenAddress\": \"0.0.0.0:14000\", \"managementListenAddress\": \"0.0.0.0:15000\", \
             \"certificate\": \"/srv/acme/cert.pem\", \"privateKey\": \"/srv/acme/key.pem\", \"httpPort\": 5002, \"tlsPort\": 5001}}}}' >pebble.json && \
             docker run -d --name pebble --network host -v /srv/acme:/srv/acme:ro -e PEBBLE_VA_NOSLEEP=1 -e PEBBLE_WFE_NONCEREJECT=0 {} \
             -config /srv/acme/pebble.json -dnsserver {resolver}",
            Extra::Pebble.image()
        ),
    );
    let roots = format!("curl -sS --cacert /srv/acme/cert.pem https://{address}:15000/roots/0 >/srv/acme/roots.pem");
    eventually("the authority answers", || vm.exec(&["sh", "-c", &roots]).is_ok_and(|done| done.status.success()));
}

#[test]
fn from_a_bare_server_to_an_address_that_answers() {
    let Some(lab) = lab() else { return };
    if !lab.has_programs() {
        eprintln!("skipped: there is no registry to pull Traefik and Pebble from, and no `go` to build them");
        return;
    }
    socket_proxy(lab);
    let images = [Extra::Traefik, Extra::Nginx, Extra::Pebble, Extra::Ways]
        .map(|extra| lab.extra(extra).expect("the image is made"));
    let vm = Arc::new(Vm::start(lab, VmEngine::None, &VmOptions::default()).expect("a VM"));
    let address = shell(&vm, "hostname -i");
    let key = vm.public_key_file();
    let run = |command: &mut Command| -> Ran { command.output().expect("the command starts").into() };

    // The machine, but for the proxy: its images come from the lab.
    let first = ["--deploy-key", key.to_str().expect("text"), "--open-port", "14000"];
    run(&mut command(&vm, &[&first[..], &["--skip", "proxy"]].concat())).expect(0);
    vm.load_image(&[&images[..], &[SOCKET_PROXY, "busybox:1.36"]].concat()).expect("the images get into the VM");
    // A name server of somebody else's: on this machine, as the VM sees it.
    let gateway =
        lab.docker(["inspect", "--format", "{{.NetworkSettings.Gateway}}", vm.name()]).output().expect("docker");
    let gateway = String::from_utf8_lossy(&gateway.stdout).trim().to_owned();
    let Some(server) = Server::start_on(Kind::Knot, true, &[&gateway]) else { return };
    let resolver = format!("{gateway}:{}", server.port);
    authority(&vm, &address, &resolver);

    // The proxy, with a wildcard certificate that it orders by itself.
    let own = tempfile::tempdir().expect("a directory");
    let ca = own.path().join("acme-ca.pem");
    std::fs::write(&ca, shell(&vm, "cat /srv/acme/cert.pem") + "\n").expect("a file");
    let directory = format!("https://{address}:14000/dir");
    let named = [("traefik", images[0]), ("status", images[1]), ("socket-proxy", SOCKET_PROXY)];
    let named = named.map(|(name, image)| format!("{name}={image}"));
    let proxy = || {
        let mut command = command(
            &vm,
            &[
                "--only",
                "proxy",
                "--only",
                "certificate",
                "--domain",
                "previews.test",
                "--acme-email",
                "ops@previews.test",
            ],
        );
        command
            .args(["--acme-dns", "rfc2136", "--acme-server", &directory, "--acme-resolver", &resolver, "--acme-ca"])
            .arg(&ca);
        for image in &named {
            command.args(["--image", image]);
        }
        for (name, value) in [
            ("RFC2136_NAMESERVER", resolver.as_str()),
            ("RFC2136_TSIG_KEY", KEY),
            ("RFC2136_TSIG_ALGORITHM", "hmac-sha256."),
            ("RFC2136_TSIG_SECRET", SECRET),
            ("RFC2136_POLLING_INTERVAL", "1"),
        ] {
            command.args(["--acme-env", name]).env(name, value);
        }
        command
    };
    let done = run(&mut proxy()).expect(0);
    let store = shell(&vm, "cat /opt/preview-proxy/acme/acme.json");
    assert!(store.contains("*.previews.test"), "it ends when the certificate is there: {}", done.out);
    assert!(!done.out.contains(SECRET) && !done.err.contains(SECRET));
    assert!(run(&mut proxy()).expect(0).out.ends_with("nothing to do\n"));

    // As a runner: the deploy user, by the server's own address.
    let mut site = Site::on(lab, Some(Arc::clone(&vm)), WEB);
    site.set("PREVIEW_HOST", &format!("ssh://deploy@{address}"));
    let (_, pin) = vm.known_hosts().split_once(' ').map(|(_, key)| ((), key.to_owned())).expect("a line");
    site.set("PREVIEW_KNOWN_HOSTS", &format!("{address} {pin}"));
    site.set("PREVIEW_BASE_DIR", "/opt/previews");
    site.set("PREVIEW_DNS_TSIG_KEY", SECRET);
    let config = format!(
        "[proxy]\nkind = \"traefik\"\n[dns]\nkind = \"rfc2136\"\nzone = \"previews.test\"\n\
         server = \"{resolver}\"\nkey_name = \"{KEY}\"\ntarget = \"{address}\"\n"
    );
    site.write("preview.toml", &format!("url = \"https://{{name}}.previews.test\"\n{config}"));
    let deployed = site.deploy("7").expect(0);
    assert_eq!(deployed.json()["url"], "https://pr-7.previews.test");
    let curl = |path: &str, more: &str| {
        let resolve = format!("--resolve pr-7.previews.test:443:{address} --resolve pr-7.previews.test:80:{address}");
        shell(&vm, &format!("curl -sS --max-time 10 {resolve} --cacert /srv/acme/roots.pem {more} {path} 2>&1 || :"))
    };
    let url = "https://pr-7.previews.test/";
    let logs = || shell(&vm, "docker logs --tail 30 preview-traefik 2>&1; docker logs --tail 20 pebble 2>&1");
    let begun = std::time::Instant::now();
    while curl(url, "") != "hello" {
        assert!(begun.elapsed().as_secs() < 90, "{}\n{}", curl(url, ""), logs());
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    let shown = format!(
        "openssl s_client -connect {address}:443 -servername pr-7.previews.test </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName -issuer"
    );
    let shown = shell(&vm, &shown);
    assert!(shown.contains("DNS:*.previews.test") && shown.contains("Pebble"), "{shown}");
    // A record of its own: asked for by the mark beside it, since the wildcard answers for any name.
    let mark = server.dig("_preview.pr-7", "TXT").join(" ");
    assert!(mark.contains(&format!("{}/pr-7", site.app)), "{mark}");

    // The doctor finds nothing that fails, with the names as the world would see them.
    let roots = own.path().join("roots.pem");
    std::fs::write(&roots, shell(&vm, "cat /srv/acme/roots.pem") + "\n").expect("a file");
    let hosts = own.path().join("hosts");
    let lines = format!(
        "127.0.0.1 localhost\n{address} preview-doctor-probe.previews.test preview-doctor-whole-path.previews.test pr-7.previews.test\n"
    );
    std::fs::write(&hosts, lines).expect("a file");
    let plain = site.command(&["doctor", "--probe", "--format", "json", "--ca", roots.to_str().expect("text")]);
    let mut doctor = Command::new("unshare");
    doctor.args(["--mount", "sh", "-c", "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"", "sh"]).arg(&hosts);
    doctor.arg(plain.get_program()).args(plain.get_args()).env_clear();
    doctor.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    doctor.current_dir(site.dir.path()).stdin(Stdio::null());
    let report = run(&mut doctor).expect(0).json();
    let findings = report["findings"].as_array().expect("findings");
    assert!(findings.len() >= 25, "{report:#}");
    for finding in findings {
        // The container that stands for a VM has no swap; and nothing was swept yet.
        let known = ["swap", "sweep"].contains(&finding["id"].as_str().expect("a word"));
        assert!(known || finding["status"] == "ok", "{finding}");
    }

    site.run(&["destroy", "--pr", "7"]).expect(0);
    eventually("the page for what is gone", || curl(url, "-w '%{http_code}'").ends_with("404"));
    assert!(curl(url, "").contains("There is no preview here"), "{}", curl(url, ""));
    assert_eq!(server.dig("_preview.pr-7", "TXT"), Vec::<String>::new());
    assert_eq!(shell(&vm, "ls -A /opt/previews/.pages"), "gone.html");

    let world =
        ways::World { lab, vm: &vm, site: &site, server: &server, address: &address, roots: &roots, config: &config };
    ways::ways(&world);
    assert_eq!(server.dig("_preview.pr-7-db", "TXT"), Vec::<String>::new());
}
