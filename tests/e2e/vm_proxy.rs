//! The proxy that `preview vm setup` puts on a server: real Traefik, a certificate from files, and what it is made of.

mod kept;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use preview_tests::{Lab, Ran, Vm, VmEngine, VmOptions, eventually, lab};
use xtask::lab::Extra;

use crate::vm_setup::{command, open, shell};

pub(crate) const SOCKET_PROXY: &str = "preview-lab/socket-proxy";

/// Traefik's image: the lab's.
fn traefik(lab: &Lab) -> Option<String> {
    if !lab.has_programs() {
        eprintln!("skipped: there is no registry to pull Traefik from, and no `go` to build it");
        return None;
    }
    Some(lab.extra(Extra::Traefik).expect("the image is made").to_owned())
}

pub(crate) fn socket_proxy(lab: &Lab) {
    let context = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/socket-proxy");
    let built = lab
        .docker(["buildx", "build", "--load", "-q", "--label", "preview.lab=1", "-t", SOCKET_PROXY, context])
        .output()
        .expect("docker runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// A certificate for this domain and all below it, by a private authority (`/root/ca.pem` there); files on this machine.
fn certificate(vm: &Vm, directory: &Path, serial: u32) {
    shell(
        vm,
        &format!(
            "cd /root && {{ [ -e ca.pem ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=authority \
             -keyout ca.key -out ca.pem 2>/dev/null; }} && openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=preview \
             -keyout key.pem -out request.pem 2>/dev/null && \
             printf 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:preview.example.com,DNS:*.preview.example.com\n' >extensions && \
             openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -days 20 -set_serial {serial} -extfile extensions -out cert.pem 2>/dev/null"
        ),
    );
    for file in ["cert.pem", "key.pem"] {
        std::fs::write(directory.join(file), shell(vm, &format!("cat /root/{file}")) + "\n")
            .expect("a file is written");
    }
}

#[test]
fn a_proxy_that_routes_by_labels_and_shows_itself_to_nobody_else() {
    let Some(lab) = lab() else { return };
    let Some(image) = traefik(lab) else { return };
    socket_proxy(lab);
    let vm = Vm::start(lab, VmEngine::None, &VmOptions::default()).expect("a VM");
    let address = shell(&vm, "hostname -i");
    let files = tempfile::tempdir().expect("a directory");
    let run = |command: &mut Command| -> Ran { command.output().expect("the command starts").into() };

    run(&mut command(&vm, &["--skip", "proxy", "--skip", "node-exporter"])).expect(0);
    shell(&vm, "apt-get install -y -qq --no-install-recommends curl openssl >/dev/null 2>&1");
    let status = lab.extra(Extra::Nginx).expect("the image is made");
    vm.load_image(&[&image, status, SOCKET_PROXY, "busybox:1.36"]).expect("the images get into the VM");
    certificate(&vm, files.path(), 1);
    let images = [format!("traefik={image}"), format!("socket-proxy={SOCKET_PROXY}"), format!("status={status}")];
    let file = |name: &str| files.path().join(name).to_str().expect("text").to_owned();
    let (cert, key) = (file("cert.pem"), file("key.pem"));
    let set_up = |more: &[&str]| {
        let wish = ["--only", "proxy", "--domain", "preview.example.com", "--cert", &cert, "--key", &key];
        run(&mut command(
            &vm,
            &[&wish[..], &["--image", &images[0], "--image", &images[1], "--image", &images[2]], more].concat(),
        ))
    };

    let ran = set_up(&["--dry-run"]).expect(0);
    assert!(ran.out.contains("the container preview-traefik does not run, or not as wanted"), "{}", ran.out);
    assert_eq!(
        shell(&vm, "docker ps -aq; docker network ls -q --filter name=preview-proxy; ls /opt/preview-proxy"),
        ""
    );
    set_up(&[]).expect(0);
    let before = shell(&vm, "docker ps -q --no-trunc");
    assert!(set_up(&[]).expect(0).out.ends_with("nothing to do\n"));
    assert_eq!(shell(&vm, "docker ps -q --no-trunc"), before);

    // Its key is for root alone; the engine's socket is not Traefik's.
    assert_eq!(
        shell(&vm, "stat -c '%a %U' /opt/preview-proxy/certs/*.key /opt/preview-proxy/certs"),
        "600 root\n700 root"
    );
    assert!(!shell(&vm, "docker inspect --format '{{json .Mounts}}' preview-traefik").contains("docker.sock"));
    let create = "docker run --rm --network preview-proxy-socket busybox:1.36 wget -qO- --post-data '{}' http://preview-socket-proxy:2375/containers/create 2>&1 || :";
    assert!(shell(&vm, create).contains("403"), "the socket is for reading");

    // An engine that was started again has another socket, and containers that lived on get that one.
    let inodes = "docker exec preview-socket-proxy stat -c %i /var/run/docker.sock; stat -c %i /run/docker.sock";
    let socket = shell(&vm, "stat -c %i /run/docker.sock");
    shell(&vm, "systemctl restart docker");
    eventually("the engine's own socket", || {
        shell(&vm, &format!("{inodes} || :")).lines().collect::<BTreeSet<_>>().len() == 1
    });
    assert_ne!(shell(&vm, "stat -c %i /run/docker.sock"), socket, "it is another one");

    // A service with labels is reached from outside by its name, with the certificate that was given.
    shell(
        &vm,
        "docker run -d --name page --network preview-proxy --label traefik.enable=true \
         --label 'traefik.http.routers.page.rule=Host(`pr-7.preview.example.com`)' --label traefik.http.routers.page.entrypoints=websecure \
         --label traefik.http.services.page.loadbalancer.server.port=80 busybox:1.36 sh -c 'echo hello >/index.html; exec httpd -f -p 80 -h /'",
    );
    let curl = |scheme: &str, name: &str, more: &str| {
        let ports = format!("--resolve {name}:443:{address} --resolve {name}:80:{address}");
        shell(&vm, &format!("curl -sS --max-time 10 {ports} --cacert /root/ca.pem {more} {scheme}://{name}/ 2>&1 || :"))
    };
    eventually("the page", || curl("https", "pr-7.preview.example.com", "") == "hello");
    let redirected = curl("http", "pr-7.preview.example.com", "-o /dev/null -w '%{http_code} %{redirect_url}'");
    assert!(redirected.starts_with("30") && redirected.ends_with(" https://pr-7.preview.example.com/"), "{redirected}");
    assert!(open(&address, 80));

    // Its dashboard: for this machine, not for the world, and not for the previews beside it.
    assert!(shell(&vm, "curl -fsS http://127.0.0.1:8080/api/http/routers").contains("page@docker"));
    assert!(!open(&address, 8080));
    let asked = "docker run --rm --network preview-proxy busybox:1.36 wget -qO- http://preview-traefik:8080/api/http/routers 2>&1 || :";
    assert!(shell(&vm, asked).contains("403 Forbidden"));

    // Another certificate is shown without a restart.
    let started = |vm: &Vm| shell(vm, "docker inspect --format '{{.State.StartedAt}}' preview-traefik");
    let since = started(&vm);
    certificate(&vm, files.path(), 2);
    set_up(&[]).expect(0);
    eventually("the new certificate", || curl("https", "pr-7.preview.example.com", "") == "hello");
    assert_eq!(started(&vm), since);
    assert_eq!(shell(&vm, "ls /opt/preview-proxy/certs | wc -l"), "2", "the old one is gone");

    kept::kept(&vm, &images, &set_up, &|| curl("https", "pr-7.preview.example.com", "") == "hello");

    // A tunnel comes in by a door that leads nowhere else, and is not open to the world.
    shell(
        &vm,
        "docker run -d --name tunnelled --network preview-proxy --label traefik.enable=true \
         --label 'traefik.http.routers.tunnelled.rule=Host(`pr-8.preview.example.com`)' --label traefik.http.routers.tunnelled.entrypoints=tunnel \
         --label traefik.http.services.tunnelled.loadbalancer.server.port=80 busybox:1.36 sh -c 'echo hi >/index.html; exec httpd -f -p 80 -h /'",
    );
    let through = "docker run --rm --network preview-proxy busybox:1.36 wget -qO- --header 'Host: pr-8.preview.example.com' http://preview-traefik:8081/ 2>&1 || :";
    eventually("the page through the tunnel", || shell(&vm, through) == "hi");
    assert!(!open(&address, 8081));

    // An image that is not to be had, and one that does not stay up: what ran before answers.
    let traefik = || shell(&vm, "docker inspect --format '{{.Id}}' preview-traefik");
    let id = traefik();
    let ran = set_up(&["--image", "traefik=127.0.0.1:9/none:1"]).expect(4);
    assert!(
        ran.out.contains("127.0.0.1:9/none:1 of preview-traefik cannot be had; what ran before goes on"),
        "{}",
        ran.out
    );
    assert_eq!(curl("https", "pr-7.preview.example.com", ""), "hello");
    let ran = set_up(&["--image", "traefik=busybox:1.36"]).expect(4);
    assert!(ran.out.contains("does not stay up; the old one was started again"), "{}", ran.out);
    assert_eq!(traefik(), id);
    eventually("the page of the old one", || curl("https", "pr-7.preview.example.com", "") == "hello");
    set_up(&[]).expect(0);
    assert_eq!((traefik(), shell(&vm, "docker ps -aq --filter name=-before")), (id, String::new()));

    // What is broken is mended, and what somebody else made is not touched.
    shell(&vm, "docker rm -f preview-traefik");
    set_up(&[]).expect(0);
    eventually("the page again", || curl("https", "pr-7.preview.example.com", "") == "hello");
    shell(&vm, "docker rm -f preview-traefik; docker run -d --name preview-traefik busybox:1.36 sleep 1000");
    let ran = set_up(&[]).expect(4);
    assert!(ran.out.contains("a container preview-traefik is there that this command did not make"), "{}", ran.out);
}
