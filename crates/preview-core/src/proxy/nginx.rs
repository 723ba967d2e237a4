//! Configuration for nginx. Format: <https://nginx.org/en/docs/>.
//!
//! Upstreams are variables: then nginx asks Docker's resolver while it runs, and starts without them.

use std::fmt::Write as _;

use super::Owner;
use super::files::{FileProxy, Site};
use crate::route::{Access, Protocol, parts};

/// What all hosts need once: for web sockets, and for the status page of an address with a path. That is known by what the client asked for: `$uri` is
/// another after a prefix was stripped, and on the way to the page.
pub(super) const COMMON: &str = r#"map $http_upgrade $preview_connection { default upgrade; "" ""; }
map $request_uri $preview_first { "~^/(?<preview_a>[^/?]+)" "~$preview_a"; default "~"; }
map $request_uri $preview_second { "~^/(?<preview_b>[^/?]+)/(?<preview_c>[^/?]+)" "~$preview_b~$preview_c"; default "~"; }
"#;

/// The same for what is there before any preview is.
const MAIN: &str = r#"    map $request_uri $status_first { "~^/(?<status_a>[^/?]+)" "~$status_a"; default "~"; }
    map $request_uri $status_second { "~^/(?<status_b>[^/?]+)/(?<status_c>[^/?]+)" "~$status_b~$status_c"; default "~"; }
"#;

/// The whole configuration of an nginx that does nothing but lead to previews.
pub(super) fn main(proxy: &FileProxy) -> String {
    let mut servers = String::from("    server {\n        listen 80 default_server;\n");
    servers.push_str(&indent(&fallback(proxy.pages.as_deref(), "status")));
    servers.push_str("    }\n");
    if let Some((certificate, key)) = &proxy.certificate {
        let _ = writeln!(
            servers,
            "    server {{\n        listen 443 ssl http2 default_server;\n        ssl_certificate {certificate};\n        ssl_certificate_key {key};"
        );
        servers.push_str(&indent(&fallback(proxy.pages.as_deref(), "status")));
        servers.push_str("    }\n");
    }
    frame(&format!("    include {}/live/*.conf;\n{servers}", proxy.routes))
}

/// The configuration of an nginx that shows status pages behind another proxy.
pub(super) fn status(pages: &str) -> String {
    let fallback = indent(&fallback(Some(pages), "status"));
    frame(&format!("    server {{\n        listen 80 default_server;\n{fallback}    }}\n"))
}

fn frame(http: &str) -> String {
    // Each deploy of any preview is a reload, and workers of before stay for the web sockets that they have.
    format!(
        "worker_processes auto;\nworker_shutdown_timeout 10m;\npid /run/nginx.pid;\nerror_log /dev/stderr warn;\nevents {{ worker_connections 4096; }}\nhttp {{\n    \
         access_log off;\n    server_tokens off;\n    default_type text/html;\n    types {{ text/html html; }}\n    \
         server_names_hash_bucket_size 256;\n{MAIN}{http}}}\n"
    )
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// What is shown where no service answers. `prefix` is that of the maps.
fn fallback(pages: Option<&str>, prefix: &str) -> String {
    let Some(pages) = pages else { return "    root /nonexistent;\n".to_owned() };
    // Names of files: see `pages`. What is there is a preview without an answer; for the rest there is one page. A request of any method gets it: led to
    // a path, it becomes a GET, which a location with a name would not make of it. An application may have every path but these two.
    format!(
        "    root /nonexistent;\n\
         \x20   recursive_error_pages on;\n\
         \x20   error_page 404 405 502 504 =503 /.preview-page;\n\
         \x20   location = /.preview-page {{\n\
         \x20       internal;\n\
         \x20       root {pages};\n\
         \x20       error_page 404 =404 /.preview-gone;\n\
         \x20       add_header Cache-Control no-store always;\n\
         \x20       add_header Retry-After 5 always;\n\
         \x20       try_files /$host${prefix}_second.html /$host${prefix}_first.html /$host.html =404;\n\
         \x20   }}\n\
         \x20   location = /.preview-gone {{\n\
         \x20       internal;\n\
         \x20       root {pages};\n\
         \x20       add_header Cache-Control no-store always;\n\
         \x20       try_files /gone.html =404;\n\
         \x20   }}\n"
    )
}

/// Where the host is answered, and what is shown where no service is.
pub(super) fn server(proxy: &FileProxy, site: &Site<'_>) -> String {
    let host = site.host;
    let mut text = String::new();
    if site.secure {
        let _ = writeln!(
            text,
            "server {{\n    listen 80;\n    server_name {host};\n    return 301 https://$host$request_uri;\n}}"
        );
    }
    let _ = writeln!(text, "server {{\n    server_name {host};");
    match (&proxy.certificate, site.secure) {
        (Some((certificate, key)), true) => {
            let _ = writeln!(
                text,
                "    listen 443 ssl http2;\n    ssl_certificate {certificate};\n    ssl_certificate_key {key};"
            );
        }
        _ => text.push_str("    listen 80;\n"),
    }
    // A second: a container that is replaced has another address.
    // An hour as for what upstreams send: a stream to a gRPC server, or an upload, may be silent for a while.
    text.push_str(
        "    resolver 127.0.0.11 valid=1s ipv6=off;\n    client_max_body_size 0;\n    client_body_timeout 1h;\n",
    );
    let _ = writeln!(text, "    include {}/live/locations/{host}/*.conf;", proxy.routes);
    text.push_str(&fallback(proxy.pages.as_deref(), "preview"));
    text.push_str("}\n");
    text
}

/// The paths of one preview on a host.
pub(super) fn locations(proxy: &FileProxy, owner: Owner<'_>, site: &Site<'_>, access: &Access) -> String {
    let mut text = String::new();
    for route in &site.routes {
        let at = parts(&route.url);
        let path = at.path;
        let upstream = format!("{}:{}", owner.alias(&route.service), route.port);
        let mut body = String::new();
        for network in &access.allow_ips {
            let _ = writeln!(body, "    allow {network};");
        }
        if !access.allow_ips.is_empty() {
            body.push_str("    deny all;\n");
        }
        if access.basic_auth.is_some() {
            let _ = writeln!(
                body,
                "    auth_basic preview;\n    auth_basic_user_file {}/live/auth/{};",
                proxy.routes, owner.project
            );
        }
        if access.noindex {
            body.push_str("    add_header X-Robots-Tag \"noindex, nofollow\" always;\n");
        }
        let (word, scheme) = if route.protocol == Protocol::H2c { ("grpc", "grpc") } else { ("proxy", "http") };
        // Before `rewrite … break`, which ends what is done of this kind.
        let _ = writeln!(body, "    set $preview_upstream {scheme}://{upstream};");
        if route.strip_prefix && !path.is_empty() {
            if word == "proxy" {
                // As the client wrote it: `rewrite` makes `/` of `%2F` and of `//`, and is for what the client wrote the prefix otherwise in.
                let _ = writeln!(
                    body,
                    "    if ($request_uri ~ \"^{}(?<preview_rest>/[^?]*)\") {{\n        set $preview_upstream {scheme}://{upstream}$preview_rest$is_args$args;\n    }}",
                    escape(path)
                );
            }
            let _ = writeln!(body, "    rewrite ^{}/?(.*)$ /$1 break;", escape(path));
        }
        let _ = writeln!(body, "    {word}_pass $preview_upstream;");
        // Who is the first to see requests believes nothing that clients say of themselves.
        let forwarded = if proxy.is_behind() { "$proxy_add_x_forwarded_for" } else { "$remote_addr" };
        for (header, value) in [
            ("Host", "$http_host"),
            ("X-Real-IP", "$remote_addr"),
            ("X-Forwarded-For", forwarded),
            ("X-Forwarded-Host", "$http_host"),
            ("X-Forwarded-Proto", if proxy.ends_before(at.secure) { "https" } else { "$scheme" }),
        ] {
            let _ = writeln!(body, "    {word}_set_header {header} {value};");
        }
        if !proxy.is_behind() {
            let _ =
                writeln!(body, "    {word}_set_header Forwarded \"\";\n    {word}_set_header X-Forwarded-Port \"\";");
        }
        if access.basic_auth.is_some() {
            let _ = writeln!(body, "    {word}_set_header Authorization \"\";");
        }
        if route.strip_prefix && !path.is_empty() {
            let _ = writeln!(body, "    {word}_set_header X-Forwarded-Prefix {path};");
        }
        if route.protocol == Protocol::Http {
            body.push_str(
                "    proxy_http_version 1.1;\n    proxy_set_header Upgrade $http_upgrade;\n    \
                 proxy_set_header Connection $preview_connection;\n    proxy_buffering off;\n    \
                 proxy_request_buffering off;\n",
            );
        }
        // Long polls, web sockets and streams may be silent for a while. A container on the same machine is reached at once or not at all: one that
        // has just gone answers nothing, and the next is tried.
        let _ = writeln!(
            body,
            "    {word}_read_timeout 1h;\n    {word}_send_timeout 1h;\n    {word}_connect_timeout 1s;\n    \
             {word}_next_upstream error timeout;"
        );
        if path.is_empty() {
            let _ = write!(text, "location / {{\n{body}}}\n");
        } else {
            let _ = write!(text, "location = {path} {{\n{body}}}\nlocation {path}/ {{\n{body}}}\n");
        }
    }
    text
}

/// A path as a regular expression that matches it; of what a path may hold, only the dot means more than itself.
fn escape(path: &str) -> String {
    path.replace('.', "\\.")
}
