//! What applications hear of a request behind each proxy, and who answers for them while they do not.

use preview_tests::Where;
use preview_tests::lane::{Kind, Lane};

/// Says what it was asked.
const ECHO: &str = r#"
services:
  web:
    image: preview-lab/ways
    command:
      - python3
      - -c
      - |
        import http.server
        class Echo(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                told = "".join(f"{name.lower()}: {value}\n" for name, value in self.headers.items())
                body = f"path: {self.path}\n{told}".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
        http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Echo).serve_forever()
    stop_grace_period: 0s
"#;

const ROUTES: &str = "[[route]]\nservice = \"web\"\nport = 8080\nurl = \"https://{name}.preview.test\"\n\
                      [[route]]\nservice = \"web\"\nport = 8080\nurl = \"https://preview.test/{name}\"\nstrip_prefix = true\n";

const CLIENT: &str = "203.0.113.9";

fn asks(kind: Kind) {
    let Some(mut lane) = Lane::new(kind, Where::Local, ECHO) else { return };
    lane.site.write("preview.toml", &format!("{}{ROUTES}", lane.table()));
    lane.site.deploy("7").expect(0);
    lane.until("https://pr-7.preview.test/", 200);
    lane.until("https://preview.test/pr-7/", 200);

    // What clients say of themselves is not believed.
    let said = format!("X-Forwarded-For: {CLIENT}");
    let lies = ["-H", &said, "-H", "X-Forwarded-Proto: http"];
    let told = lane.curl("https://pr-7.preview.test/", &lies).body;
    assert!(told.contains("x-forwarded-proto: https\n") && !told.contains(CLIENT), "{told}");

    // The path is the client's, but for the prefix; every path is the application's.
    for (asked, seen) in [
        ("https://preview.test/pr-7/a%2Fb/c?x=%2F&y", "/a%2Fb/c?x=%2F&y"),
        ("https://preview.test/pr-7/a%20b", "/a%20b"),
        ("https://preview.test/pr-7?q=1", "/?q=1"),
        ("https://pr-7.preview.test/a%2Fb/c", "/a%2Fb/c"),
        ("https://pr-7.preview.test/gone.html", "/gone.html"),
    ] {
        let told = lane.curl(asked, &[]).body;
        assert!(told.starts_with(&format!("path: {seen}\n")), "{asked}: {told}");
    }
    if kind == Kind::Nginx {
        for (asked, seen) in [("pr%2D7/d", "/d"), ("pr-7/a//b", "/a//b")] {
            let told = lane.curl(&format!("https://preview.test/{asked}"), &[]).body;
            assert!(told.starts_with(&format!("path: {seen}\n")), "{asked}: {told}");
        }
    }

    // A password holds for what lies below a prefix as well.
    let locked = format!(
        "{}basic_auth = {{ password = \"DOOR\" }}\n{ROUTES}[generate]\nDOOR = {{ length = 20 }}\n",
        lane.table()
    );
    lane.site.write("preview.toml", &locked);
    lane.site.deploy("7").expect(0);
    lane.until("https://pr-7.preview.test/", 401);
    for url in ["https://preview.test/pr-7", "https://preview.test/pr-7/a", "https://preview.test/pr-7/a%2Fb"] {
        lane.until(url, 401);
    }
    lane.site.write("preview.toml", &format!("{}{ROUTES}", lane.table()));
    lane.site.deploy("7").expect(0);
    lane.until("https://preview.test/pr-7/a", 200);

    // Whoever asks hears that it may be there again soon.
    let web = lane.site.containers("pr-7")["web"].clone();
    lane.site.docker(&["stop", "-t", "0", &web]);
    lane.until("https://pr-7.preview.test/", 503);
    for method in ["POST", "PUT", "DELETE"] {
        for url in ["https://pr-7.preview.test/hook", "https://preview.test/pr-7/hook"] {
            let page = lane.curl(url, &["-X", method, "-d", "x"]);
            assert_eq!(page.status, 503, "{method} {url}: {}", page.head);
            assert!(page.body.contains("pr-7 does not answer"), "{method} {url}: {}", page.body);
            assert!(page.head.contains("retry-after: 5"), "{method} {url}: {}", page.head);
        }
    }
    lane.site.run(&["destroy", "--pr", "7"]).expect(0);

    // Something in front ends TLS: the application's addresses are `https://` all the same.
    let entrypoint = if kind == Kind::Traefik { "entrypoint = \"websecure\"\n" } else { "" };
    lane.site.write("preview.toml", &format!("{}tls = false\n{entrypoint}{ROUTES}", lane.table()));
    lane.site.deploy("8").expect(0);
    if kind == Kind::Traefik {
        lane.http = lane.https;
    }
    for url in ["http://pr-8.preview.test/", "http://preview.test/pr-8/"] {
        lane.until(url, 200);
        let told = lane.curl(url, &["-H", &said]).body;
        assert!(told.contains("x-forwarded-proto: https\n"), "{told}");
        // Traefik believes whom its entry point names, and that of this test names nobody.
        if kind != Kind::Traefik {
            assert!(told.contains(&format!("x-forwarded-for: {CLIENT}")), "{told}");
        }
    }
    lane.site.run(&["destroy", "--pr", "8"]).expect(0);
    assert_eq!(lane.site.remains(), Vec::<String>::new());
}

#[test]
fn asks_through_nginx() {
    asks(Kind::Nginx);
}

#[test]
fn asks_through_caddy() {
    asks(Kind::Caddy);
}

#[test]
fn asks_through_traefik() {
    asks(Kind::Traefik);
}
