//! Through real proxies: by host, by path, two names, web sockets, gRPC, Postgres over TLS; status pages; and what happens when the proxy does not play along.

mod asks;
mod rolling;
mod told;

use preview_tests::lane::{Kind, Lane};
use preview_tests::{Site, Where, eventually};

/// A page that says what it was asked for, a service below a path, a web socket, a gRPC server.
pub(crate) const WAYS: &str = r#"
services:
  web:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir -p /w/deep && echo web-$${WORD} > /w/index.html && echo deep > /w/deep/index.html && exec httpd -f -p 8080 -h /w"]
    environment: {WORD: one}
    healthcheck: {test: ["CMD", "wget", "-qO-", "http://127.0.0.1:8080/"], interval: 1s, retries: 30}
    stop_grace_period: 0s
  api:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir -p /w/api && echo root > /w/index.html && echo kept > /w/api/index.html && exec httpd -f -p 8000 -h /w"]
    stop_grace_period: 0s
  ws:
    image: preview-lab/ways
    command: ["ways", "ws", "9000"]
    stop_grace_period: 0s
  rpc:
    image: preview-lab/ways
    command: ["ways", "grpc", "50051"]
    stop_grace_period: 0s
"#;

/// Routes that every proxy knows.
pub(crate) const ROUTES: &str = r#"
[[route]]
service = "web"
port = 8080
url = "https://{name}.preview.test"
[[route]]
service = "api"
port = 8000
url = "https://preview.test/{name}"
strip_prefix = true
[[route]]
service = "api"
port = 8000
url = "https://{name}.preview.test/api"
[[route]]
service = "ws"
port = 9000
url = "https://{name}-ws.preview.test"
[[route]]
service = "rpc"
port = 50051
url = "https://{name}-rpc.preview.test"
protocol = "h2c"
"#;

fn ways(lane: &Lane) {
    let site = &lane.site;
    site.write("preview.toml", &format!("{}{ROUTES}", lane.table()));
    for pr in ["7", "70"] {
        let done = site.deploy(pr).expect(0).json();
        assert_eq!(done["url"], format!("https://pr-{pr}.preview.test"));
    }
    let web = lane.until("https://pr-7.preview.test/", 200);
    assert_eq!(web.body.trim(), "web-one");
    assert!(web.head.contains("x-robots-tag: noindex, nofollow"), "{}", web.head);
    // A path on a host that is all previews', and one on the preview's own.
    for (url, body) in [
        ("https://preview.test/pr-7", "root"),
        ("https://preview.test/pr-7/", "root"),
        ("https://preview.test/pr-7/api/", "kept"),
        ("https://preview.test/pr-70/", "root"),
        ("https://pr-7.preview.test/api/", "kept"),
        ("https://pr-7.preview.test/deep/", "deep"),
        ("https://pr-70.preview.test/", "web-one"),
    ] {
        let answer = lane.until(url, 200);
        assert_eq!(answer.body.trim(), body, "{url}");
    }
    // Nobody's path, though its beginning is somebody's.
    assert_eq!(lane.curl("https://preview.test/pr-7000/", &[]).status, 404);
    let plain = lane.curl("http://pr-7.preview.test/deep/", &[]);
    assert!(matches!(plain.status, 301 | 302 | 307 | 308), "{}", plain.head);
    assert!(plain.head.contains("location: https://pr-7.preview.test/deep/"), "{}", plain.head);

    let (ws, rpc) = ("pr-7-ws.preview.test", "pr-7-rpc.preview.test");
    lane.settle();
    let said = lane.client(&[ws], &["ways", "ask-ws", &format!("wss://{ws}:{}/", lane.https), "/certs/ca.pem", "hi"]);
    assert_eq!(said, "echo hi\necho hi!");
    let target = format!("{rpc}:{}", lane.https);
    assert_eq!(lane.client(&[rpc], &["ways", "ask-grpc", &target, "/certs/ca.pem", "hi"]), "rpc hi\n0 1 2");
    // A certificate of somebody else is refused: the chain is checked.
    let port = format!("::127.0.0.1:{}", lane.https);
    let stranger = std::process::Command::new("curl")
        .args(["-sS", "--max-time", "10", "--connect-to", &port, "https://pr-7.preview.test/"])
        .output()
        .expect("curl runs");
    assert_eq!(stranger.status.code(), Some(60), "{}", String::from_utf8_lossy(&stranger.stderr));

    // An update is seen at the same address; the neighbour stays as it is.
    site.write("compose.yml", &WAYS.replace("WORD: one", "WORD: two"));
    site.deploy("7").expect(0);
    eventually("the new version answers", || lane.curl("https://pr-7.preview.test/", &[]).body.trim() == "web-two");
    assert_eq!(lane.curl("https://pr-70.preview.test/", &[]).body.trim(), "web-one");
    sends_no_raw_packets(site);
    pages(lane);
}

/// In the network that previews share with the proxy, no container can answer for another's address.
fn sends_no_raw_packets(site: &Site) {
    const NET_RAW: u64 = 1 << 13;
    let web = &site.containers("pr-7")["web"];
    let bound = site.docker(&["exec", web, "sed", "-n", "s/^CapBnd:[[:space:]]*//p", "/proc/1/status"]);
    let bound = u64::from_str_radix(bound.trim(), 16).expect("capabilities in hexadecimal");
    assert_eq!(bound & NET_RAW, 0, "{bound:x}");
    assert_ne!(bound, 0, "the others are those of every container");
}

/// What is shown in place of a preview that does not answer, and when it is gone.
fn pages(lane: &Lane) {
    let site = &lane.site;
    let web = site.containers("pr-7")["web"].clone();
    site.docker(&["stop", "-t", "0", &web]);
    let page = lane.until("https://pr-7.preview.test/", 503);
    assert!(page.body.contains("pr-7 does not answer"), "{}", page.body);
    assert!(page.head.contains("retry-after: 5") && page.head.contains("cache-control: no-store"), "{}", page.head);

    // A first deploy that takes its time, and then fails: nothing of it stays but the word.
    site.write("compose.yml", &WAYS.replace("exec httpd -f -p 8080", "exec sleep 1000; httpd -p 8080"));
    site.write("preview.toml", &format!("[timeouts]\nverify = \"30s\"\n{}{ROUTES}", lane.table()));
    let mut failing = site.start(&["deploy", "--pr", "9"]);
    failing.until("verifying");
    let page = lane.until("https://pr-9.preview.test/", 503);
    assert!(
        page.body.contains("pr-9 is being deployed") && page.body.contains("http-equiv=\"refresh\""),
        "{}",
        page.body
    );
    // Traefik leads to what is well of it; the others only to what is well as a whole.
    if lane.kind != Kind::Traefik {
        let by_path = lane.until("https://preview.test/pr-9/some/where", 503);
        assert!(by_path.body.contains("pr-9 is being deployed"), "{}", by_path.body);
    }
    failing.end().expect(4);
    let page = lane.until("https://pr-9.preview.test/", 503);
    assert!(page.body.contains("pr-9 could not be deployed"), "{}", page.body);
    assert!(page.body.contains("unhealthy") && !page.body.contains("sleep"), "{}", page.body);

    site.run(&["destroy", "--pr", "7"]).expect(0);
    site.run(&["destroy", "--pr", "9"]).expect(0);
    for url in ["https://pr-7.preview.test/", "https://preview.test/pr-7/", "https://pr-7-rpc.preview.test/"] {
        let page = lane.until(url, 404);
        assert!(page.body.contains("There is no preview here"), "{url}: {}", page.body);
    }
    assert_eq!(lane.curl("https://pr-70.preview.test/", &[]).body.trim(), "web-one");
    site.run(&["destroy", "--pr", "70"]).expect(0);
    // The word of the failed deploy stays for a day, and goes with a sweep then.
    let page = format!("{}/.pages/pr-9.preview.test.html", site.base());
    let left = site.remains();
    assert!(left.len() > 1 && left.iter().all(|path| path.contains("pr-9")), "{left:?}");
    site.run(&["sweep"]).expect(0);
    assert!(site.remains().contains(&format!("file {page}")));
    site.shell(&format!(
        "cd '{}/.pages' && sed -i 's/^<!-- preview, at [0-9]*/<!-- preview, at 1000/' *pr-9*.html",
        site.base()
    ));
    site.run(&["sweep"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn through_nginx() {
    let Some(lane) = Lane::new(Kind::Nginx, Where::Local, WAYS) else { return };
    ways(&lane);
}

#[test]
fn through_caddy() {
    let Some(lane) = Lane::new(Kind::Caddy, Where::Local, WAYS) else { return };
    ways(&lane);
}

#[test]
fn through_traefik() {
    let Some(lane) = Lane::new(Kind::Traefik, Where::Local, WAYS) else { return };
    ways(&lane);
}

const SMALL: &str = r#"
services:
  web:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir -p /w && echo web-one > /w/index.html && exec httpd -f -p 8080 -h /w"]
    ports: ["8080"]
    stop_grace_period: 0s
"#;

const URL: &str = "url = \"https://{name}.preview.test\"\n";

/// A password that is made up, and asked for; and who may come in at all.
fn access(kind: Kind) {
    let Some(lane) = Lane::new(kind, Where::Local, SMALL) else { return };
    let site = &lane.site;
    let table = lane.table();
    let locked = format!(
        "{URL}{table}basic_auth = {{ user = \"team\", password = \"DOOR\" }}\n[generate]\nDOOR = {{ length = 20 }}\n"
    );
    site.write("preview.toml", &locked);
    let deployed = site.run(&["deploy", "--pr", "7", "-vv"]).expect(0);
    let door = site.shell(&format!("grep DOOR '{}/{}/pr-7/.env'", site.base(), site.app));
    let password = door.rsplit_once('=').expect("NAME=value").1.trim_matches(['"', '\'']).to_owned();
    assert_eq!(password.len(), 20);
    assert!(!deployed.err.contains(&password) && !deployed.out.contains(&password));
    let user = format!("team:{password}");
    lane.until("https://pr-7.preview.test/", 401);
    let inside = lane.curl("https://pr-7.preview.test/", &["-u", &user]);
    assert_eq!((inside.status, inside.body.trim()), (200, "web-one"));
    assert_eq!(lane.curl("https://pr-7.preview.test/", &["-u", "team:guess"]).status, 401);
    // The same again changes nothing: the hash is the same, and no container is another.
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");

    site.write("preview.toml", &format!("{URL}{table}allow_ips = [\"192.0.2.0/24\"]\nnoindex = false\n"));
    site.deploy("7").expect(0);
    lane.until("https://pr-7.preview.test/", 403);
    site.write(
        "preview.toml",
        &format!("{URL}{table}allow_ips = [\"192.0.2.0/24\", \"0.0.0.0/0\"]\nnoindex = false\n"),
    );
    site.deploy("7").expect(0);
    let open = lane.until("https://pr-7.preview.test/", 200);
    assert!(!open.head.contains("x-robots-tag"), "{}", open.head);

    // Hosts that previews may not have, and a password that nobody gave.
    site.write("preview.toml", &format!("{URL}{table}domains = [\"*.other.test\"]\n"));
    let ran = site.run(&["deploy", "--pr", "8"]).expect(2);
    assert!(ran.err.contains("`proxy.domains`") && ran.err.contains("https://pr-8.preview.test"), "{}", ran.err);
    site.write("preview.toml", &format!("{URL}{table}basic_auth = {{ password = \"NOBODY\" }}\n"));
    let ran = site.run(&["deploy", "--pr", "8"]).expect(2);
    assert!(ran.err.contains("`NOBODY` is no variable of this run"), "{}", ran.err);
    site.write("preview.toml", &format!("{URL}{table}"));
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn who_may_come_in_nginx() {
    access(Kind::Nginx);
}

#[test]
fn who_may_come_in_caddy() {
    access(Kind::Caddy);
}

#[test]
fn who_may_come_in_traefik() {
    access(Kind::Traefik);
}

/// A database beside other services.
pub(crate) const DB: &str = r#"
  db:
    image: preview-lab/ways
    command: ["ways", "postgres", "5432"]
    healthcheck: {test: ["CMD", "/usr/lib/postgresql/15/bin/pg_isready", "-h", "127.0.0.1"], interval: 1s, retries: 60}
    stop_grace_period: 0s
"#;

/// Postgres over TLS, found by its name; and what Traefik itself says that it routes.
#[test]
fn postgres_through_traefik() {
    let Some(lane) = Lane::new(Kind::Traefik, Where::Local, &format!("{SMALL}{DB}")) else { return };
    let site = &lane.site;
    site.write(
        "preview.toml",
        &format!(
            "{}[[route]]\nservice = \"web\"\nport = 8080\nurl = \"https://{{name}}.preview.test\"\n\
             [[route]]\nservice = \"db\"\nport = 5432\nprotocol = \"tcp\"\nurl = \"tcp://{{name}}-db.preview.test\"\n\
             tls_options = \"postgres@file\"\n[timeouts]\nverify = \"2m\"\n",
            lane.table()
        ),
    );
    for pr in ["7", "8"] {
        site.deploy(pr).expect(0);
    }
    lane.until("https://pr-8.preview.test/", 200);
    lane.settle();
    for pr in ["7", "8"] {
        let host = format!("pr-{pr}-db.preview.test");
        let at = format!("host={host} port={} user=postgres sslmode=verify-full sslrootcert=/certs/ca.pem", lane.https);
        let psql = |sql: &str| lane.client(&[&host], &["psql", "-XAtq", "-d", &at, "-c", sql]);
        psql(&format!("create table whose as select {pr} as pr"));
        assert_eq!(
            psql("select pr, (select ssl from pg_stat_ssl where pid = pg_backend_pid()) from whose"),
            format!("{pr}|f"),
            "TLS ends at the proxy"
        );
    }
    // libpq 17 and later names the protocol; without the TLS options Traefik would end the connection.
    let host = "pr-7-db.preview.test";
    let openssl = format!(
        "openssl s_client -connect {host}:{} -servername {host} -starttls postgres -alpn postgresql -CAfile /certs/ca.pem -verify_return_error </dev/null 2>&1",
        lane.https
    );
    let said = lane.client(&[host], &["sh", "-c", &openssl]);
    assert!(said.contains("ALPN protocol: postgresql") && said.contains("Verify return code: 0 (ok)"), "{said}");

    let app = &site.app;
    let rules = |path: &str| -> Vec<String> {
        let routers = lane.traefik(path);
        let routers = routers.as_array().expect("a list").iter().filter(|r| r["provider"] == "docker");
        let mut rules: Vec<String> = routers
            .filter(|router| router["name"] != "preview-status@docker")
            .map(|router| {
                format!(
                    "{} {} {}",
                    router["name"].as_str().unwrap(),
                    router["status"].as_str().unwrap(),
                    router["rule"].as_str().unwrap()
                )
            })
            .collect();
        rules.sort();
        rules
    };
    let http = [7, 8].map(|pr| format!("{app}_pr-{pr}-0@docker enabled Host(`pr-{pr}.preview.test`)"));
    assert_eq!(rules("/api/http/routers"), http);
    let tcp = [7, 8].map(|pr| format!("{app}_pr-{pr}-1@docker enabled HostSNI(`pr-{pr}-db.preview.test`)"));
    assert_eq!(rules("/api/tcp/routers"), tcp);

    site.run(&["destroy", "--pr", "7"]).expect(0);
    eventually("its routers are gone", || {
        rules("/api/tcp/routers") == tcp[1..] && rules("/api/http/routers") == http[1..]
    });
    site.run(&["destroy", "--pr", "8"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}
