//! All kinds of routes, through the proxy that `vm setup` made: asked from outside the VM, at the addresses that the name server tells, with the certificate that was ordered.

use std::path::Path;

use preview_tests::{Site, Vm, eventually};
use serde_json::Value;
use xtask::lab::{Extra, Lab};

use crate::dns::server::Server;
use crate::proxies::{DB, ROUTES, WAYS};
use crate::vm_setup::shell;

/// Postgres as libpq 17 and later can speak it (`sslnegotiation=direct`): TLS first, whose protocol is named, then a start message, and a question.
const DIRECT: &str = "
import socket, ssl, struct, sys
host, ca = sys.argv[1:]
tls = ssl.create_default_context(cafile=ca)
tls.set_alpn_protocols(['postgresql'])
with tls.wrap_socket(socket.create_connection((host, 443), 10), server_hostname=host) as s:
    start = struct.pack('!i', 196608) + b'user\\0postgres\\0\\0'
    s.sendall(struct.pack('!i', len(start) + 4) + start)
    ask = b'select pr from whose\\0'
    s.sendall(b'Q' + struct.pack('!i', len(ask) + 4) + ask)
    file = s.makefile('rb')
    while True:
        kind, size = struct.unpack('!ci', file.read(5))
        body = file.read(size - 4)
        if kind in b'DE':
            print(s.selected_alpn_protocol(), kind.decode(), body[6:].decode())
            break
";

pub(super) struct World<'a> {
    pub(super) lab: &'static Lab,
    pub(super) vm: &'a Vm,
    pub(super) site: &'a Site,
    pub(super) server: &'a Server,
    /// The VM's address.
    pub(super) address: &'a str,
    /// Certificates of the authority, PEM.
    pub(super) roots: &'a Path,
    /// Everything of `preview.toml` but the routes.
    pub(super) config: &'a str,
}

impl World<'_> {
    /// A client on this machine, in a container; its exit code, and what it said.
    fn try_client(&self, hosts: &[&str], words: &[&str]) -> (i32, String) {
        let certs = format!("{}:/certs:ro", self.roots.parent().expect("a directory").display());
        let mut run = self.lab.docker(["run", "--rm", "--network", "host", "-v", &certs]);
        for host in hosts {
            let label = host.strip_suffix(".previews.test");
            // The host that all share has no record of its own.
            let told = label.map_or_else(|| vec![self.address.to_owned()], |label| self.server.dig(label, "A"));
            assert_eq!(told, [self.address], "{host}");
            run.args(["--add-host", &format!("{host}:{}", self.address)]);
        }
        let done = run.arg(Extra::Ways.image()).args(words).output().expect("docker runs");
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        (done.status.code().unwrap_or(-1), said.trim().to_owned())
    }

    #[track_caller]
    fn client(&self, hosts: &[&str], words: &[&str]) -> String {
        let (code, said) = self.try_client(hosts, words);
        assert_eq!(code, 0, "{words:?}: {said}\n{}", shell(self.vm, "docker logs --tail 40 preview-traefik 2>&1"));
        said
    }

    fn page(&self, url: &str) -> (i32, String) {
        let host = url.split('/').nth(2).expect("a host");
        self.try_client(&[host], &["curl", "-sS", "--fail", "--max-time", "10", "--cacert", CA, url])
    }

    /// What the proxy's own API lists of what previews brought: names, how they are, rules.
    fn routers(&self, kind: &str) -> Vec<String> {
        let said = shell(self.vm, &format!("curl -fsS http://127.0.0.1:8080/api/{kind}/routers?per_page=1000"));
        let said: Value = serde_json::from_str(&said).expect("JSON");
        let text = |router: &Value, key: &str| router[key].as_str().expect("text").to_owned();
        let mut routers: Vec<String> = said
            .as_array()
            .expect("a list")
            .iter()
            .filter(|router| router["provider"] == "docker" && !text(router, "name").ends_with("preview-status@docker"))
            .map(|router| {
                let points = router["entryPoints"].as_array().expect("a list").len();
                assert!(points == 1 && router["entryPoints"][0] == "websecure", "{router}");
                format!("{} {} {}", text(router, "name"), text(router, "status"), text(router, "rule"))
            })
            .collect();
        routers.sort();
        routers
    }
}

const CA: &str = "/certs/roots.pem";

pub(super) fn ways(world: &World<'_>) {
    let site = world.site;
    let routes = ROUTES.replace(".preview.test", ".previews.test").replace("//preview.test", "//previews.test");
    site.write("compose.yml", &format!("{WAYS}{}", DB.trim_start_matches('\n')));
    site.write(
        "preview.toml",
        &format!(
            "{}{routes}[[route]]\nservice = \"db\"\nport = 5432\nprotocol = \"tcp\"\nurl = \"tcp://{{name}}-db.previews.test\"\n\
             tls_options = \"postgres@file\"\n[timeouts]\nverify = \"2m\"\n",
            world.config
        ),
    );
    for pr in ["7", "8"] {
        assert_eq!(site.deploy(pr).expect(0).json()["url"], format!("https://pr-{pr}.previews.test"));
    }
    for (url, body) in [
        ("https://pr-7.previews.test/", "web-one"),
        ("https://pr-7.previews.test/deep/", "deep"),
        ("https://pr-7.previews.test/api/", "kept"),
        ("https://previews.test/pr-7/", "root"),
        ("https://previews.test/pr-7/api/", "kept"),
        ("https://previews.test/pr-8/", "root"),
        ("https://pr-8.previews.test/", "web-one"),
    ] {
        eventually(url, || world.page(url) == (0, body.to_owned()));
    }
    let stranger = world.try_client(&["pr-7.previews.test"], &["curl", "-sS", "https://pr-7.previews.test/"]);
    assert_eq!(stranger.0, 60, "no chain to who is trusted: {}", stranger.1);

    let (ws, rpc) = ("pr-7-ws.previews.test", "pr-7-rpc.previews.test");
    assert_eq!(world.client(&[ws], &["ways", "ask-ws", &format!("wss://{ws}/"), CA, "hi"]), "echo hi\necho hi!");
    assert_eq!(world.client(&[rpc], &["ways", "ask-grpc", &format!("{rpc}:443"), CA, "hi"]), "rpc hi\n0 1 2");

    // Two databases at one port, by their names; TLS begins as Postgres has it, and at once.
    for pr in ["7", "8"] {
        let host = format!("pr-{pr}-db.previews.test");
        let at = format!("host={host} port=443 user=postgres sslmode=verify-full sslrootcert={CA}");
        let psql = |sql: &str| world.client(&[&host], &["psql", "-XAtq", "-d", &at, "-c", sql]);
        psql(&format!("create table whose as select {pr} as pr"));
        assert_eq!(psql("select pr from whose"), pr);
        let direct = world.client(&[&host], &["python3", "-c", DIRECT, &host, CA]);
        assert_eq!(direct, format!("postgresql D {pr}"));
    }

    let app = &site.app;
    let meant = |pr: &str| {
        [
            format!("{app}_pr-{pr}-0@docker enabled Host(`pr-{pr}.previews.test`)"),
            format!(
                "{app}_pr-{pr}-1@docker enabled Host(`previews.test`) && (Path(`/pr-{pr}`) || PathPrefix(`/pr-{pr}/`))"
            ),
            format!(
                "{app}_pr-{pr}-2@docker enabled Host(`pr-{pr}.previews.test`) && (Path(`/api`) || PathPrefix(`/api/`))"
            ),
            format!("{app}_pr-{pr}-3@docker enabled Host(`pr-{pr}-ws.previews.test`)"),
            format!("{app}_pr-{pr}-4@docker enabled Host(`pr-{pr}-rpc.previews.test`)"),
        ]
    };
    let meant_tcp = |pr: &str| format!("{app}_pr-{pr}-5@docker enabled HostSNI(`pr-{pr}-db.previews.test`)");
    assert_eq!(world.routers("http"), [meant("7"), meant("8")].concat());
    assert_eq!(world.routers("tcp"), [meant_tcp("7"), meant_tcp("8")]);

    site.run(&["destroy", "--pr", "7"]).expect(0);
    eventually("its routers are gone, and no others", || {
        world.routers("http") == meant("8") && world.routers("tcp") == [meant_tcp("8")]
    });
    site.run(&["destroy", "--pr", "8"]).expect(0);
    eventually("all routers are gone", || world.routers("http").is_empty() && world.routers("tcp").is_empty());
}
