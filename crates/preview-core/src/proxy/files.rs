//! Proxies that are told by files: what the files are, and the scripts that put them in place inside the proxy's container.
//!
//! All files of all previews are one generation, a directory; `live` is a symbolic link to the one that counts. A change copies the generation,
//! makes the link point to the copy, has the proxy check everything, and only then reloads it; what the proxy does not accept is never loaded, and the
//! link points back. One `flock` keeps changes apart. The script runs in the container to its end, whatever becomes of the run that sent it.
//!
//! ```text
//! <routes>/live -> gen.123.456
//! <routes>/.loaded                                      the name of the generation that the proxy has loaded
//! <routes>/gen.123.456/host-<host>.conf               one a host: where it listens, its certificate
//! <routes>/gen.123.456/locations/<host>/<project>.conf  one a host and preview: its paths
//! <routes>/gen.123.456/auth/<project>                   who may come in
//! ```

use std::collections::BTreeMap;

use super::{Owner, caddy, nginx};
use crate::route::{Access, Protocol, Route, parts};

/// Which proxy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// nginx.
    Nginx,
    /// Caddy.
    Caddy,
}

/// How a proxy on the host is set up that is told by files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProxy {
    /// Which it is.
    pub kind: FileKind,
    /// The network that it and the routed services share.
    pub network: String,
    /// The name of its container.
    pub container: String,
    /// The directory in that container that its configuration includes `live/*.conf` of. Kept on a volume.
    pub routes: String,
    /// Certificate and key in that container, for `https://` addresses. Caddy gets one by itself where there is none.
    pub certificate: Option<(String, String)>,
    /// Whether it speaks TLS; without a word, for `https://` addresses.
    pub tls: Option<bool>,
    /// The directory in that container that has the status pages.
    pub pages: Option<String>,
}

/// What tells the proxy of one preview's routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Content by path, relative to a generation.
    pub files: BTreeMap<String, String>,
}

impl Bundle {
    /// The files as a tar stream, as the script takes them.
    ///
    /// # Errors
    /// A path that is too long for the format.
    pub fn tar(&self) -> std::io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, content.as_bytes())?;
        }
        tar.into_inner()
    }
}

/// Routes of one host, in one preview.
pub(super) struct Site<'a> {
    pub(super) host: &'a str,
    pub(super) secure: bool,
    pub(super) routes: Vec<&'a Route>,
}

impl FileProxy {
    pub(super) fn objection(&self, route: &Route) -> Option<&'static str> {
        match route.protocol {
            Protocol::Tcp => {
                Some("nginx and Caddy lead HTTP only; `protocol = \"tcp\"` needs `[proxy] kind = \"traefik\"`")
            }
            _ if self.kind == FileKind::Nginx && self.certificate.is_none() && self.secure(route) => Some(
                "nginx needs `[proxy] certificate` and `certificate_key` for `https://` addresses, or `tls = false` if something in front of it ends TLS",
            ),
            Protocol::H2c if self.kind == FileKind::Nginx && !self.secure(route) => {
                Some("nginx leads gRPC (`protocol = \"h2c\"`) only behind `https://`")
            }
            _ if route.priority.is_some() || route.entrypoint.is_some() || route.tls_options.is_some() => {
                Some("`priority`, `entrypoint` and `tls_options` are for `[proxy] kind = \"traefik\"`")
            }
            _ => None,
        }
    }

    /// How a host is answered holds for all previews on it, so where a certificate is there an address that a pull request writes with `http://` does not
    /// decide it.
    fn secure(&self, route: &Route) -> bool {
        self.tls.unwrap_or(self.certificate.is_some() || parts(&route.url).secure)
    }

    /// Whether something in front of it is the first to see requests.
    pub(super) fn is_behind(&self) -> bool {
        self.tls == Some(false)
    }

    /// Whether requests for such an address come over TLS, and lose it before they get here.
    pub(super) fn ends_before(&self, secure: bool) -> bool {
        secure && self.is_behind()
    }

    /// The files for a preview's routes.
    #[must_use]
    pub(super) fn bundle(&self, owner: Owner<'_>, routes: &[Route], access: &Access) -> Bundle {
        let mut sites: BTreeMap<&str, Site<'_>> = BTreeMap::new();
        for route in routes {
            let at = parts(&route.url);
            let site = sites.entry(at.host).or_insert_with(|| Site {
                host: at.host,
                secure: self.secure(route),
                routes: Vec::new(),
            });
            site.secure |= self.secure(route);
            site.routes.push(route);
        }
        // The longer path first, for proxies that take the first that fits.
        for site in sites.values_mut() {
            site.routes.sort_by_key(|route| std::cmp::Reverse(parts(&route.url).path.len()));
        }
        let mut files = BTreeMap::new();
        for site in sites.values() {
            let (server, locations) = match self.kind {
                FileKind::Nginx => (nginx::server(self, site), nginx::locations(self, owner, site, access)),
                FileKind::Caddy => (caddy::server(self, site), caddy::locations(self, owner, site, access)),
            };
            files.insert(format!("host-{}.conf", site.host), server);
            files.insert(format!("locations/{}/{}.conf", site.host, owner.project), locations);
        }
        if self.kind == FileKind::Nginx {
            files.insert("common.conf".to_owned(), nginx::COMMON.to_owned());
            if let Some((user, hash)) = &access.basic_auth {
                files.insert(format!("auth/{}", owner.project), format!("{user}:{hash}\n"));
            }
        }
        Bundle { files }
    }

    /// The whole configuration of a proxy of its own, which does nothing but lead to previews: what `nginx.conf` or the `Caddyfile` says.
    #[must_use]
    pub fn main(&self) -> String {
        match self.kind {
            FileKind::Nginx => nginx::main(self),
            FileKind::Caddy => caddy::main(self),
        }
    }

    /// The command that replaces what the proxy is told of a project by the tar stream on its standard input, which may be empty.
    /// Exit code 3: the proxy does not accept it, and nothing changed; its words are on standard error.
    #[must_use]
    pub fn replace(&self, project: &str) -> Vec<String> {
        let (check, reload) = self.commands();
        self.script(REPLACE, &[project, check, reload])
    }

    /// The command that prints the projects that the proxy is told of, one a line.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        self.script(LIST, &[])
    }

    fn script(&self, script: &str, words: &[&str]) -> Vec<String> {
        let fixed = ["sh", "-c", script, "preview", &self.routes];
        fixed.iter().chain(words).map(|word| (*word).to_owned()).collect()
    }

    fn commands(&self) -> (&'static str, &'static str) {
        match self.kind {
            FileKind::Nginx => ("nginx -t", "nginx -s reload"),
            FileKind::Caddy => (
                "caddy validate --config /etc/caddy/Caddyfile --adapter caddyfile",
                "caddy reload --config /etc/caddy/Caddyfile --adapter caddyfile",
            ),
        }
    }
}

/// The configuration (`nginx.conf`) of a server that shows the status pages in `pages` behind a proxy that has no files of its own.
#[must_use]
pub fn status_server(pages: &str) -> String {
    nginx::status(pages)
}

/// Arguments: the directory, the project, the command that checks, the command that reloads.
const REPLACE: &str = r#"set -eu
root=$1 project=$2 check=$3 reload=$4
cd "$root"
exec 9>.lock
# The flock of small images cannot wait for a limited time.
tries=0
until flock -n 9; do
  tries=$((tries + 1))
  [ $tries -lt 60 ] || { echo "somebody else changes the routes for more than 60 s" >&2; exit 4; }
  sleep 1
done
point() { ln -s "$1" .next && mv -Tf .next live; }
live=$(readlink live || :)
# What the proxy has loaded. A run that ended in the middle may have left the link at something else, which nobody has checked.
old=$(cat .loaded 2>/dev/null || :)
if [ "$old" = "$live" ]; then same=yes; else same=; fi
[ -n "$old" ] && [ -d "$old" ] || old=$live
rm -rf .next
for gen in gen.*; do [ "$gen" = "$old" ] || [ "$gen" = "$live" ] || rm -rf "$gen"; done
new=gen.$(date +%s).$$
mkdir "$new"
if [ -n "$old" ] && [ -d "$old" ]; then cp -a "$old/." "$new/"; fi
rm -rf "$new"/locations/*/"$project.conf" "$new/auth/$project"
tar -xf - -C "$new" --no-same-owner
for host in "$new"/locations/*; do
  [ -d "$host" ] || continue
  if ! rmdir "$host" 2>/dev/null; then continue; fi
  rm -f "$new/host-${host##*/}.conf"
done
# Nothing differs, so nobody has to be reloaded.
if [ -n "$old" ] && [ -n "$same" ] && diff -r "$old" "$new" >/dev/null 2>&1; then rm -rf "$new"; exit 0; fi
back() {
  if [ -n "$old" ]; then point "$old"; else rm -f live; fi
  rm -rf "$new"
}
point "$new"
if ! said=$($check 2>&1); then back; printf '%s\n' "$said" >&2; exit 3; fi
if ! said=$($reload 2>&1); then back; $reload >/dev/null 2>&1 || :; printf '%s\n' "$said" >&2; exit 3; fi
printf '%s' "$new" >.loaded
[ -z "$old" ] || rm -rf "$old"
"#;

/// Argument: the directory.
const LIST: &str = r#"cd "$1" || exit 0
for file in live/locations/*/*.conf; do
  [ -e "$file" ] || continue
  file=${file##*/}
  printf '%s\n' "${file%.conf}"
done | sort -u
"#;

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::proxy) fn proxy(kind: FileKind) -> FileProxy {
        FileProxy {
            kind,
            network: "preview-proxy".into(),
            container: "preview-proxy".into(),
            routes: "/etc/preview/routes".into(),
            certificate: Some(("/etc/preview/certs/cert.pem".into(), "/etc/preview/certs/key.pem".into())),
            tls: None,
            pages: Some("/etc/preview/pages".into()),
        }
    }

    fn routes() -> Vec<Route> {
        vec![
            Route { service: "ui".into(), port: 80, url: "https://pr-7.example.com".into(), ..Route::default() },
            Route {
                service: "api".into(),
                port: 8000,
                url: "https://pr-7.example.com/api".into(),
                strip_prefix: true,
                ..Route::default()
            },
            Route {
                service: "rpc".into(),
                port: 50051,
                url: "https://pr-7-rpc.example.com".into(),
                protocol: Protocol::H2c,
                ..Route::default()
            },
        ]
    }

    const OWNER: Owner<'static> = Owner { app: "shop", name: "pr-7", project: "shop_pr-7" };

    fn bundle(kind: FileKind) -> Bundle {
        let access = Access {
            basic_auth: Some(("team".into(), "$2y$10$hash".into())),
            allow_ips: vec!["203.0.113.0/24".into()],
            noindex: true,
        };
        proxy(kind).bundle(OWNER, &routes(), &access)
    }

    #[test]
    fn files_for_nginx() {
        insta::assert_json_snapshot!(bundle(FileKind::Nginx).files);
    }

    #[test]
    fn files_for_caddy() {
        insta::assert_json_snapshot!(bundle(FileKind::Caddy).files);
    }

    #[test]
    fn a_proxy_of_its_own() {
        insta::assert_snapshot!("nginx.conf", proxy(FileKind::Nginx).main());
        insta::assert_snapshot!("Caddyfile", proxy(FileKind::Caddy).main());
        insta::assert_snapshot!("status.conf", status_server("/etc/preview/pages"));
    }

    #[test]
    fn one_preview_does_not_switch_tls_off_for_a_host_of_all() {
        for kind in [FileKind::Nginx, FileKind::Caddy] {
            let server = |url: &str| {
                let route = Route { service: "a".into(), port: 1, url: url.into(), ..Route::default() };
                proxy(kind).bundle(OWNER, &[route], &Access::default()).files["host-example.com.conf"].clone()
            };
            assert_eq!(server("http://example.com/pr-7"), server("https://example.com/pr-7"));
        }
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let nginx = proxy(FileKind::Nginx);
        let route =
            |url: &str, protocol| Route { service: "a".into(), port: 1, url: url.into(), protocol, ..Route::default() };
        assert!(nginx.objection(&route("tcp://a.example.com", Protocol::Tcp)).unwrap().contains("traefik"));
        let plain = FileProxy { certificate: None, ..nginx.clone() };
        assert!(plain.objection(&route("http://a.example.com", Protocol::H2c)).unwrap().contains("https"));
        assert_eq!(nginx.objection(&route("https://a.example.com", Protocol::H2c)), None);
        let bare = FileProxy { certificate: None, ..nginx };
        assert!(bare.objection(&route("https://a.example.com", Protocol::Http)).unwrap().contains("certificate"));
        assert_eq!(bare.objection(&route("http://a.example.com", Protocol::Http)), None);
        let caddy = FileProxy { certificate: None, ..proxy(FileKind::Caddy) };
        assert_eq!(caddy.objection(&route("https://a.example.com", Protocol::Http)), None, "Caddy gets its own");
        let odd = Route { priority: Some(1), ..route("https://a.example.com", Protocol::Http) };
        assert!(caddy.objection(&odd).is_some());
    }

    /// A script that died after it had moved the link, and before the proxy had loaded anything.
    #[test]
    fn what_a_dead_script_left_is_neither_taken_for_loaded_nor_gone_back_to() {
        use std::io::Write as _;
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        let text = |name: &str| std::fs::read_to_string(path(name)).unwrap_or_default();
        std::fs::create_dir(path("routes")).unwrap();
        std::fs::write(path("reload"), format!("echo once >> {}", path("reloads").display())).unwrap();
        let proxy = FileProxy { routes: path("routes").display().to_string(), ..proxy(FileKind::Nginx) };
        let reload = format!("sh {}", path("reload").display());
        let replace = |content: &str, check: &str| {
            let words = proxy.script(REPLACE, &["shop_pr-7", check, &reload]);
            let files = [("host-h.conf", "server"), ("locations/h/shop_pr-7.conf", content)];
            let files = files.map(|(path, content)| (path.to_owned(), content.to_owned())).into();
            let mut command = std::process::Command::new(&words[0]);
            let mut child = command.args(&words[1..]).stdin(std::process::Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(&Bundle { files }.tar().unwrap()).unwrap();
            child.wait().unwrap().code()
        };
        let reloads = || text("reloads").lines().count();
        let live = || text("routes/live/locations/h/shop_pr-7.conf");
        assert_eq!((replace("one", "true"), reloads(), live()), (Some(0), 1, "one".to_owned()));
        assert_eq!((replace("one", "true"), reloads()), (Some(0), 1), "nothing differs");

        let die = |content: &str| {
            let conf = "dead/locations/h/shop_pr-7.conf";
            let script = format!(
                "rm -rf gen.dead && cp -a live/. gen.dead && printf %s {content} >gen.{conf} && ln -sfn gen.dead live"
            );
            let mut command = std::process::Command::new("sh");
            assert!(command.args(["-c", &script]).current_dir(path("routes")).status().unwrap().success());
            assert_eq!(live(), content);
        };
        die("bad");
        assert_eq!(
            (replace("worse", "false"), reloads(), live()),
            (Some(3), 1, "one".to_owned()),
            "back to what was loaded"
        );
        die("two");
        assert_eq!(
            (replace("two", "true"), reloads(), live()),
            (Some(0), 2, "two".to_owned()),
            "not loaded, though it was there"
        );
        die("three");
        assert_eq!(
            (replace("two", "true"), reloads(), live()),
            (Some(0), 3, "two".to_owned()),
            "it may have been loaded"
        );
        assert_eq!((replace("two", "true"), reloads()), (Some(0), 3));
    }

    #[test]
    fn the_stream_holds_the_files() {
        let bundle = bundle(FileKind::Nginx);
        let bytes = bundle.tar().unwrap();
        let mut tar = tar::Archive::new(bytes.as_slice());
        let paths: Vec<String> =
            tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(paths, bundle.files.keys().cloned().collect::<Vec<_>>());
    }
}
