//! Configuration for Caddy 2. Format: <https://caddyserver.com/docs/caddyfile>.

use std::fmt::Write as _;

use super::Owner;
use super::files::{FileProxy, Site};
use crate::route::{Access, Protocol, parts};

/// Where the host is answered, and what is shown where no service is.
pub(super) fn server(proxy: &FileProxy, site: &Site<'_>) -> String {
    let scheme = if site.secure { "https" } else { "http" };
    let mut text = String::new();
    if site.secure {
        // Its own redirects come after everything that is there for port 80.
        let _ = writeln!(text, "http://{} {{\n\tredir https://{{host}}{{uri}} 308\n}}", site.host);
    }
    let _ = writeln!(text, "{scheme}://{} {{", site.host);
    if let (Some((certificate, key)), true) = (&proxy.certificate, site.secure) {
        let _ = writeln!(text, "\ttls {certificate} {key}");
    }
    let _ = writeln!(text, "\timport {}/live/locations/{}/*.conf", proxy.routes, site.host);
    text.push_str(&fallback(proxy.pages.as_deref()));
    text.push_str("}\n");
    text
}

/// The whole configuration of a Caddy that does nothing but lead to previews.
pub(super) fn main(proxy: &FileProxy) -> String {
    let fallback = fallback(proxy.pages.as_deref());
    let mut text =
        format!("{{\n\tadmin localhost:2019\n}}\nimport {}/live/*.conf\n:80 {{\n{fallback}}}\n", proxy.routes);
    if let Some((certificate, key)) = &proxy.certificate {
        let _ = write!(text, ":443 {{\n\ttls {certificate} {key}\n{fallback}}}\n");
    }
    text
}

/// What is shown where no service answers.
fn fallback(pages: Option<&str>) -> String {
    let mut text = String::new();
    if let Some(pages) = pages {
        text.push_str("\thandle {\n\t\terror 404\n\t}\n\thandle_errors {\n");
        let _ = write!(
            text,
            "\t\troot * {pages}\n\
             \t\theader Cache-Control no-store\n\
             \t\t@unanswered expression `{{http.error.status_code}} in [404, 502, 503, 504]`\n\
             \t\thandle @unanswered {{\n\
             \t\t\t@second path_regexp preview ^/([^/]+)/([^/]+)\n\
             \t\t\thandle @second {{\n{}\t\t\t}}\n\
             \t\t\t@first path_regexp preview ^/([^/]+)\n\
             \t\t\thandle @first {{\n{}\t\t\t}}\n\
             \t\t\thandle {{\n{}\t\t\t}}\n\
             \t\t}}\n\
             \t\thandle {{\n\t\t\trespond \"{{http.error.status_code}} {{http.error.status_text}}\"\n\t\t}}\n\t}}\n",
            page(&["/{host}~{re.preview.1}~{re.preview.2}.html", "/{host}~{re.preview.1}.html", "/{host}.html"]),
            page(&["/{host}~{re.preview.1}.html", "/{host}.html"]),
            page(&["/{host}.html"]),
        );
    }
    text
}

/// The first of these pages that is there, as 503; otherwise the page for what is gone, as 404.
fn page(files: &[&str]) -> String {
    let files = files.join(" ");
    format!(
        "\t\t\t\t@there file {files}\n\
         \t\t\t\thandle @there {{\n\
         \t\t\t\t\theader Retry-After 5\n\
         \t\t\t\t\trewrite @there {{file_match.relative}}\n\
         \t\t\t\t\tfile_server {{\n\t\t\t\t\t\tstatus 503\n\t\t\t\t\t}}\n\
         \t\t\t\t}}\n\
         \t\t\t\thandle {{\n\
         \t\t\t\t\trewrite * /gone.html\n\
         \t\t\t\t\tfile_server {{\n\t\t\t\t\t\tstatus 404\n\t\t\t\t\t}}\n\
         \t\t\t\t}}\n"
    )
}

/// The paths of one preview on a host.
pub(super) fn locations(proxy: &FileProxy, owner: Owner<'_>, site: &Site<'_>, access: &Access) -> String {
    let mut text = String::new();
    for (index, route) in site.routes.iter().enumerate() {
        let at = parts(&route.url);
        let path = at.path;
        let matcher = format!("@{}-{index}", owner.project);
        if path.is_empty() {
            text.push_str("handle {\n");
        } else {
            let _ = writeln!(text, "{matcher} path {path} {path}/*\nhandle {matcher} {{");
        }
        // In the order in which a request meets them.
        text.push_str("\troute {\n");
        if !access.allow_ips.is_empty() {
            let _ =
                writeln!(text, "\t\t@stranger not remote_ip {}\n\t\terror @stranger 403", access.allow_ips.join(" "));
        }
        if let Some((user, hash)) = &access.basic_auth {
            let _ = writeln!(text, "\t\tbasicauth {{\n\t\t\t{user} {hash}\n\t\t}}\n\t\trequest_header -Authorization");
        }
        if access.noindex {
            text.push_str("\t\theader X-Robots-Tag \"noindex, nofollow\"\n");
        }
        if route.strip_prefix && !path.is_empty() {
            let _ = writeln!(text, "\t\turi strip_prefix {path}\n\t\trequest_header X-Forwarded-Prefix {path}");
        }
        let scheme = if route.protocol == Protocol::H2c { "h2c" } else { "http" };
        let mut told = String::new();
        if proxy.is_behind() {
            // Where it stands, only machines of one's own get to it.
            told.push_str("\t\t\ttrusted_proxies 127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 ::1 fd00::/8\n");
        }
        if proxy.ends_before(at.secure) {
            told.push_str("\t\t\theader_up X-Forwarded-Proto https\n");
        }
        let _ = writeln!(
            text,
            "\t\treverse_proxy {scheme}://{}:{} {{\n\t\t\tlb_try_duration 3s\n{told}\t\t}}\n\t}}\n}}",
            owner.alias(&route.service),
            route.port
        );
    }
    text
}
