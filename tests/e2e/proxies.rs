//! Through real proxies: by host, by path, two names, web sockets, gRPC, Postgres over TLS; status pages; and what happens when the proxy does not play along.

use preview_tests::lane::{Kind, Lane};
use preview_tests::{Site, VmEngine, Where, eventually};

/// A page that says what it was asked for, a service below a path, a web socket, a gRPC server.
const WAYS: &str = r#"
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
const ROUTES: &str = r#"
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
    pages(lane);
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

/// A proxy that is told by files: what it does not accept is not loaded, what is stray is swept, and a stopped one keeps nobody from removing.
fn files(kind: Kind, place: Where) {
    let Some(mut lane) = Lane::new(kind, place, SMALL) else { return };
    lane.site.write("preview.toml", &format!("{URL}{}", lane.table()));
    let proxy = lane.container();
    lane.site.deploy("7").expect(0);
    assert_eq!(lane.until("https://pr-7.preview.test/", 200).body.trim(), "web-one");
    let routes = |lane: &Lane| {
        lane.site.docker(&["exec", &proxy, "sh", "-c", "cd /etc/preview/routes/live && find . -type f | sort"])
    };
    let before = routes(&lane);
    assert!(before.contains("locations/pr-7.preview.test/"), "{before}");

    // Somebody breaks the proxy's own configuration: the next preview is refused, what runs goes on, and nothing of it stays.
    let live = "/etc/preview/routes/live";
    let broken = "http://broken.test {\n\tno_such_word on;\n}\n";
    lane.site.docker(&["exec", &proxy, "sh", "-c", &format!("printf '{broken}' > {live}/zz.conf")]);
    let ran = lane.site.deploy("8").expect(4);
    assert_eq!(ran.failure(), "proxy_failed");
    assert!(ran.err.contains("does not accept them") && ran.err.contains("zz.conf:"), "{}", ran.err);
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "web-one");
    assert!(!routes(&lane).contains("pr-8"));
    assert_eq!(lane.site.containers("pr-8").len(), 0);
    lane.site.docker(&["exec", &proxy, "rm", &format!("{live}/zz.conf")]);
    assert_eq!(routes(&lane), before);

    // Routes of nobody go with a sweep; those of others stay.
    let stray = "mkdir -p locations/gone.preview.test && touch locations/gone.preview.test/gone_pr-1.conf host-gone.preview.test.conf";
    lane.site.docker(&["exec", &proxy, "sh", "-c", &format!("cd {live} && {stray}")]);
    let dry = lane.site.run(&["sweep", "--dry-run", "--format", "json"]).expect(0).json();
    assert_eq!(dry["routes"], serde_json::json!(["gone_pr-1"]));
    assert!(routes(&lane).contains("gone_pr-1"));
    lane.site.run(&["sweep"]).expect(0);
    assert_eq!(routes(&lane), before);
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).status, 200);

    // A proxy that lost its files gets them back, though nothing else differs.
    lane.site.docker(&["exec", &proxy, "sh", "-c", "rm -rf /etc/preview/routes/*"]);
    lane.site.docker(&["restart", "-t", "0", &proxy]);
    lane.ports();
    lane.until("https://pr-7.preview.test/", 503);
    assert_eq!(lane.site.deploy("7").expect(0).json()["kind"], "unchanged");
    lane.until("https://pr-7.preview.test/", 200);

    // It does not run: that is said, and what can be removed is.
    lane.site.docker(&["stop", "-t", "0", &proxy]);
    let ran = lane.site.deploy("9").expect(4);
    assert!(ran.err.contains("does not run ([proxy] container)"), "{}", ran.err);
    let ran = lane.site.run(&["destroy", "--pr", "7"]).expect(0);
    assert!(ran.err.contains("the next sweep tries again"), "{}", ran.err);
    assert_eq!(lane.site.containers("pr-7").len(), 0);
    lane.site.docker(&["start", &proxy]);
    lane.ports();
    lane.until("https://pr-7.preview.test/", 404);
    lane.site.run(&["sweep"]).expect(0);
    let after = routes(&lane);
    assert!(!after.contains("pr-7") && !after.contains("pr-9"), "{after}");
}

#[test]
fn nginx_is_told_by_files() {
    files(Kind::Nginx, Where::Local);
}

#[test]
fn nginx_on_a_vm_is_told_by_files() {
    files(Kind::Nginx, Where::Vm(VmEngine::V28));
}

#[test]
fn caddy_is_told_by_files() {
    files(Kind::Caddy, Where::Local);
}

const DATABASE: &str = r#"
services:
  web:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir -p /w && echo web-one > /w/index.html && exec httpd -f -p 8080 -h /w"]
    stop_grace_period: 0s
  db:
    image: preview-lab/ways
    command: ["ways", "postgres", "5432"]
    healthcheck: {test: ["CMD", "/usr/lib/postgresql/15/bin/pg_isready", "-h", "127.0.0.1"], interval: 1s, retries: 60}
    stop_grace_period: 0s
"#;

/// Postgres over TLS, found by its name; and what Traefik itself says that it routes.
#[test]
fn postgres_through_traefik() {
    let Some(lane) = Lane::new(Kind::Traefik, Where::Local, DATABASE) else { return };
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

/// While an update runs, a client asks all the time.
const BUSY: &str = r#"
services:
  web:
    image: preview-lab/ways
    command: ["ways", "http", "8080", "one"]
    healthcheck: {test: ["CMD", "curl", "-sf", "http://127.0.0.1:8080/"], interval: 1s, retries: 30}
  cache:
    image: busybox:1.36
    command: ["sh", "-c", "trap exit TERM; while :; do sleep 1; done"]
"#;

/// Requests, failures and the longest gap in milliseconds, while the preview is updated.
fn update_under_load(lane: &Lane, update: &str, seconds: u32) -> (u32, u32, u32, String) {
    let site = &lane.site;
    let toml = format!(
        "{}[[route]]\nservice = \"web\"\nport = 8080\nurl = \"https://{{name}}.preview.test\"\nupdate = \"{update}\"\n",
        lane.table()
    );
    site.write("preview.toml", &toml);
    site.write("compose.yml", BUSY);
    site.deploy("7").expect(0);
    lane.until("https://pr-7.preview.test/", 200);
    let old = site.containers("pr-7");
    let url = format!("https://pr-7.preview.test:{}/", lane.https);
    let said = std::thread::scope(|scope| {
        let seconds = seconds.to_string();
        let client = scope
            .spawn(move || lane.client(&["pr-7.preview.test"], &["ways", "hammer", &url, "/certs/ca.pem", &seconds]));
        std::thread::sleep(std::time::Duration::from_secs(3));
        site.write("compose.yml", &BUSY.replace("\"one\"", "\"two\""));
        let done = site.deploy("7").expect(0).json();
        assert_eq!(done["services"]["web"]["change"], "recreate", "{done}");
        client.join().expect("the client ends")
    });
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "two");
    let new = site.containers("pr-7");
    assert_eq!(new.len(), 2, "one container a service is left");
    assert!(new["web"] != old["web"] && new["cache"] == old["cache"]);
    let last = said.lines().last().expect("a line").to_owned();
    let numbers: Vec<u32> = last.split(' ').take(3).map(|word| word.parse().expect("a number")).collect();
    (numbers[0], numbers[1], numbers[2], last)
}

fn rolling(kind: Kind) {
    let Some(lane) = Lane::new(kind, Where::Local, BUSY) else { return };
    let (asked, failed, gap, said) = update_under_load(&lane, "rolling", 25);
    assert!(asked > 100, "{said}");
    // Traefik does not ask again once it has sent a request: what it sends to a server that is closing its door at that moment is lost.
    let few = if kind == Kind::Traefik { asked / 200 } else { 0 };
    assert!(failed <= few, "of {asked}, the longest gap {gap} ms: {said}\n{}", lane.log());
    let site = &lane.site;

    // A new version that does not get well: the old one never stopped.
    let before = site.containers("pr-7")["web"].clone();
    site.write("compose.yml", &BUSY.replace("\"8080\", \"one\"", "\"8081\", \"three\""));
    let toml = std::fs::read_to_string(site.dir.path().join("preview.toml")).expect("it is there");
    site.write("preview.toml", &format!("{toml}[timeouts]\nverify = \"8s\"\n"));
    let ran = site.deploy("7").expect(4);
    assert_eq!(ran.failure(), "unhealthy");
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "two");
    assert_eq!(site.containers("pr-7")["web"], before, "it is the one that ran");
    assert_eq!(site.containers("pr-7").len(), 2);
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// `web` may only run once `migrate`, which takes its time, has ended in the same version; it writes down where that is not so.
const AFTER: &str = r#"
services:
  migrate:
    image: busybox:1.36
    command: ["sh", "-c", "sleep 5; echo azure > /v/done"]
    volumes: ["data:/v"]
  web:
    image: busybox:1.36
    command: ["sh", "-c", "grep -qx azure /v/done || { touch /v/early; exit 7; }; mkdir -p /w && echo azure > /w/index.html && exec httpd -f -p 8080 -h /w"]
    depends_on: {migrate: {condition: service_completed_successfully}}
    healthcheck: {test: ["CMD", "wget", "-qO-", "http://127.0.0.1:8080/"], interval: 1s, retries: 30}
    volumes: ["data:/v"]
    stop_grace_period: 0s
volumes: {data: {}}
"#;

#[test]
fn a_rolling_update_waits_for_what_the_service_depends_on() {
    let Some(lane) = Lane::new(Kind::Nginx, Where::Local, AFTER) else { return };
    let site = &lane.site;
    let route =
        "[[route]]\nservice = \"web\"\nport = 8080\nurl = \"https://{name}.preview.test\"\nupdate = \"rolling\"\n";
    site.write("preview.toml", &format!("{}{route}", lane.table()));
    site.deploy("7").expect(0);
    lane.until("https://pr-7.preview.test/", 200);
    let old = site.containers("pr-7")["web"].clone();
    site.write("compose.yml", &AFTER.replace("azure", "brown"));
    site.deploy("7").expect(0);
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "brown");
    let new = site.containers("pr-7")["web"].clone();
    assert_ne!(new, old);
    assert_eq!(
        site.docker(&["exec", &new, "ls", "/v"]),
        "done",
        "no new container was there before the end of `migrate`"
    );

    // One that fails: the old version never stopped, and no new one was started.
    site.write("compose.yml", &AFTER.replace("azure", "coral").replace("sleep 5", "exit 3"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("migrate exited with code 3"), "{}", ran.err);
    assert_eq!(lane.curl("https://pr-7.preview.test/", &[]).body.trim(), "brown");
    assert_eq!(site.containers("pr-7")["web"], new, "it is the one that ran");
    assert_eq!(site.docker(&["exec", &new, "ls", "/v"]), "done");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn rolling_behind_traefik() {
    rolling(Kind::Traefik);
}

#[test]
fn rolling_behind_nginx() {
    rolling(Kind::Nginx);
}

#[test]
fn rolling_behind_caddy() {
    rolling(Kind::Caddy);
}

/// Routed services share the proxy's network, and Compose gives each its name there: still each preview finds its own.
fn names_stay_apart(place: Where) {
    const COMPOSE: &str = r#"
services:
  ui:
    image: busybox:1.36
    command: ["sleep", "100000"]
    stop_grace_period: 0s
  api:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir /w && echo api of $${WHO} >/w/index.html && exec httpd -f -p 80 -h /w"]
    environment: {WHO: "${PREVIEW_NAME}"}
    stop_grace_period: 0s
  db:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir /w && echo db of $${WHO} >/w/index.html && exec httpd -f -p 80 -h /w"]
    environment: {WHO: "${PREVIEW_NAME}"}
    stop_grace_period: 0s
"#;
    let Some(site) = Site::new(place, COMPOSE) else { return };
    // It sorts before the previews' own, and Docker looks there first.
    let network = format!("{}-proxy", site.app);
    site.docker(&["network", "create", &network]);
    let route = |service: &str, port: u16| {
        format!(
            "[[route]]\nservice = \"{service}\"\nport = {port}\nurl = \"https://{{name}}-{service}.preview.test\"\n"
        )
    };
    let proxy = format!("[proxy]\nkind = \"traefik\"\nnetwork = \"{network}\"\n[timeouts]\nverify = \"90s\"\n");
    let asks = |pr: &str, service: &str, name: &str| {
        let url = format!("http://{name}/");
        site.run(&["exec", "--pr", pr, service, "--", "wget", "-qO-", &url]).expect(0).out
    };
    site.write(
        "compose.yml",
        &COMPOSE.replace("\"sleep\", \"100000\"", "\"sh\", \"-c\", \"exec httpd -f -p 80 -h /\""),
    );
    site.write("preview.toml", &format!("{proxy}{}{}", route("ui", 80), route("api", 80)));
    site.deploy("7").expect(0);
    // Its database has a route, so its name is in the proxy's network.
    site.write("preview.toml", &format!("{proxy}{}{}{}", route("ui", 80), route("api", 80), route("db", 80)));
    site.deploy("8").expect(0);
    for _ in 0..4 {
        for pr in ["7", "8"] {
            assert_eq!(asks(pr, "ui", "api"), format!("api of pr-{pr}\n"));
            assert_eq!(asks(pr, "ui", "db"), format!("db of pr-{pr}\n"));
            assert_eq!(asks(pr, "api", "api"), format!("api of pr-{pr}\n"));
        }
    }
    assert_eq!(site.deploy("8").expect(0).json()["kind"], "unchanged");

    // Names that are somebody else's there, and an address that another preview has.
    site.write(
        "compose.yml",
        &COMPOSE.replace("  ui:", "  preview-socket-proxy:").replace("  db:", "  api.pr-8.shop.preview:"),
    );
    site.write("preview.toml", &format!("{proxy}{}", route("api", 80)));
    let ran = site.run(&["deploy", "--pr", "9"]).expect(3);
    for name in ["preview-socket-proxy", "api.pr-8.shop.preview"] {
        assert!(ran.err.contains(&format!("services.{name}: names like this belong to the proxy")), "{}", ran.err);
    }
    site.write("compose.yml", COMPOSE);
    site.write(
        "preview.toml",
        &format!("{proxy}[[route]]\nservice = \"api\"\nport = 80\nurl = \"https://pr-{{number}}-api.preview.test\"\n"),
    );
    site.run(&["deploy", "--branch", "x", "--url", "https://preview-{slug}.preview.test"]).expect(2);
    site.write("preview.toml", &format!("name = \"try-{{slug}}\"\n{proxy}[[route]]\nservice = \"api\"\nport = 80\nurl = \"https://pr-{{slug}}-api.preview.test\"\n"));
    let ran = site.run(&["deploy", "--branch", "8"]).expect(3);
    assert!(ran.err.contains("https://pr-8-api.preview.test") && ran.err.contains("pr-8 of"), "{}", ran.err);
    site.write("preview.toml", &proxy);
    for pr in ["7", "8"] {
        site.run(&["destroy", "--pr", pr]).expect(0);
    }
    site.docker(&["network", "rm", &network]);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn names_stay_apart_on_this_machine() {
    names_stay_apart(Where::Local);
}

#[test]
fn names_stay_apart_on_a_vm() {
    names_stay_apart(Where::Vm(VmEngine::V28));
}

/// A stack that builds gets what concerns the proxy alone, though nothing else differs.
#[test]
fn a_stack_that_builds_and_differs_for_the_proxy_alone() {
    const BUILT: &str = "services:\n  web:\n    build: .\n    command: [httpd, -f, -p, '8080']\n    ports: ['8080']\n    stop_grace_period: 0s\n";
    let Some(site) = Site::new(Where::Local, BUILT) else { return };
    site.write("Dockerfile", "FROM busybox:1.36\n");
    let network = format!("{}-proxy", site.app);
    site.docker(&["network", "create", &network]);
    let image = preview_tests::lab().expect("a lab").extra(xtask::lab::Extra::Nginx).expect("the image is made");
    let program = "mkdir -p /etc/preview/routes && ln -sf /bin/true /usr/sbin/nginx && exec sleep 100000";
    let label = format!("preview.app={}", site.app);
    site.docker(&[
        "run",
        "-d",
        "--name",
        &network,
        "--network",
        &network,
        "--label",
        &label,
        image,
        "sh",
        "-c",
        program,
    ]);
    let write = |more: &str| {
        site.write(
            "preview.toml",
            &format!("url = \"http://{{name}}.preview.test\"\n[proxy]\nkind = \"nginx\"\nnetwork = \"{network}\"\ncontainer = \"{network}\"\n{more}"),
        );
    };
    let told = || site.docker(&["exec", &network, "sh", "-c", "cat /etc/preview/routes/live/locations/*/*.conf"]);
    write("");
    site.deploy("7").expect(0);
    assert!(told().contains("web.pr-7.") && !told().contains("deny all"));
    write("allow_ips = [\"192.0.2.0/24\"]\n");
    let done = site.deploy("7").expect(0).json();
    assert_eq!(done["kind"], "unchanged", "no container differs");
    assert!(told().contains("allow 192.0.2.0/24;\n    deny all;"), "{}", told());
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(
        site.docker(&["exec", &network, "sh", "-c", "ls /etc/preview/routes/live/ /etc/preview/routes/live/locations"]),
        "/etc/preview/routes/live/:\ncommon.conf\nlocations\n\n/etc/preview/routes/live/locations:"
    );
    site.docker(&["rm", "-f", &network]);
    site.docker(&["network", "rm", &network]);
}
