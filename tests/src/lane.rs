//! A real proxy in front of previews: Traefik, nginx or Caddy in a container, with a certificate of a private authority, and clients that go through it.

use std::process::Command;
use std::time::{Duration, Instant};

use preview_core::proxy::{FileKind, FileProxy, pages, status_server};
use xtask::lab::{Extra, Lab};

use crate::{Ran, Site, Where, lab};

/// The domain below which the previews of a lane are.
pub const DOMAIN: &str = "preview.test";

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Traefik, told by labels.
    Traefik,
    /// nginx, told by files.
    Nginx,
    /// Caddy, told by files.
    Caddy,
}

/// A site with a proxy in front.
pub struct Lane {
    /// The site.
    pub site: Site,
    /// Which proxy.
    pub kind: Kind,
    /// The port of 127.0.0.1 that leads to the proxy's 443.
    pub https: u16,
    /// The port of 127.0.0.1 that leads to the proxy's 80.
    pub http: u16,
    /// The port of 127.0.0.1 that leads to Traefik's API.
    pub api: Option<u16>,
    lab: &'static Lab,
    home: String,
}

impl Lane {
    /// A lane on this host. `None` where there is no lab, or no Go to build Traefik with; that is printed.
    ///
    /// # Panics
    /// If the proxy does not start.
    #[must_use]
    pub fn new(kind: Kind, place: Where, compose: &str) -> Option<Self> {
        let lab = lab()?;
        if kind == Kind::Traefik && !lab.has_programs() {
            eprintln!("skipped: there is no registry to pull Traefik from, and no `go` to build it");
            return None;
        }
        let site = Site::new(place, compose)?;
        let home = format!("/tmp/lane-{}", site.app);
        let mut lane = Self { site, kind, https: 0, http: 0, api: None, lab, home };
        lane.start();
        Some(lane)
    }

    /// The proxy's network.
    #[must_use]
    pub fn network(&self) -> String {
        format!("{}-proxy", self.site.app)
    }

    /// The file with the authority of the proxy's certificate, where the site is on this machine.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}/certs/ca.pem", self.home)
    }

    /// The name of the proxy's container.
    #[must_use]
    pub fn container(&self) -> String {
        format!("{}-proxy", self.site.app)
    }

    fn extra(&self, extra: Extra) -> &'static str {
        let image = self.lab.extra(extra).expect("the image is made");
        if let Some(vm) = self.site.vm() {
            vm.load_image(&[image]).expect("the image gets into the VM");
        }
        image
    }

    fn file_proxy(&self) -> FileProxy {
        let file = |name: &str| format!("/etc/preview/certs/{name}.pem");
        FileProxy {
            kind: if self.kind == Kind::Caddy { FileKind::Caddy } else { FileKind::Nginx },
            network: self.network(),
            container: self.container(),
            routes: "/etc/preview/routes".to_owned(),
            certificate: Some((file("cert"), file("key"))),
            tls: None,
            pages: Some("/etc/preview/pages".to_owned()),
        }
    }

    /// `[proxy]` of the project's configuration.
    #[must_use]
    pub fn table(&self) -> String {
        let common = format!("[proxy]\nnetwork = \"{}\"\n", self.network());
        let kind = match self.kind {
            Kind::Traefik => return format!("{common}kind = \"traefik\"\n"),
            Kind::Nginx => "nginx",
            Kind::Caddy => "caddy",
        };
        format!(
            "{common}kind = \"{kind}\"\ncontainer = \"{}\"\npages_dir = \"/etc/preview/pages\"\n\
             certificate = \"/etc/preview/certs/cert.pem\"\ncertificate_key = \"/etc/preview/certs/key.pem\"\n",
            self.container()
        )
    }

    /// Writes a file of the host.
    fn put(&self, name: &str, text: &str) {
        assert!(!text.contains("END-OF-FILE"));
        self.site.shell(&format!("cat > '{}/{name}' <<'END-OF-FILE'\n{text}\nEND-OF-FILE\n", self.home));
    }

    fn certificate(&self) {
        let image = self.lab.extra(Extra::Ways).expect("the image is made");
        let made = tempfile::tempdir().expect("a directory");
        let script = format!(
            "cd /made && umask 022 && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=Lab authority' -keyout ca-key.pem -out ca.pem \
             -addext basicConstraints=critical,CA:TRUE 2>/dev/null && \
             openssl req -newkey rsa:2048 -nodes -subj '/CN=*.{DOMAIN}' -keyout key.pem -out csr.pem 2>/dev/null && \
             printf 'subjectAltName=DNS:*.{DOMAIN},DNS:{DOMAIN}' > ext && \
             openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 1 -extfile ext -out cert.pem 2>/dev/null"
        );
        let mount = format!("{}:/made", made.path().display());
        let run = ["run", "--rm", "-v", &mount, image, "sh", "-c", &script];
        let done = self.lab.docker(run).output().expect("docker runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        for name in ["ca", "cert", "key"] {
            let text = std::fs::read_to_string(made.path().join(format!("{name}.pem"))).expect("it was made");
            self.put(&format!("certs/{name}.pem"), text.trim_end());
        }
    }

    fn start(&mut self) {
        let (home, base) = (self.home.clone(), self.site.base().to_owned());
        let user = if self.site.vm().is_some() { "-o deploy" } else { "" };
        self.site.shell(&format!(
            "mkdir -p {home}/certs && install -d {user} -m 0700 '{base}' && install -d {user} -m 0755 '{base}/{}'",
            pages::DIRECTORY
        ));
        self.certificate();
        let network = self.network();
        let lane = format!("preview.lane={}", self.site.app);
        self.site.docker(&["network", "create", "--label", &lane, &network]);
        match self.kind {
            Kind::Traefik => self.start_traefik(&lane),
            Kind::Nginx => self.start_files(&lane, Extra::Nginx, "/etc/nginx/nginx.conf"),
            Kind::Caddy => self.start_files(&lane, Extra::Caddy, "/etc/caddy/Caddyfile"),
        }
        self.ports();
    }

    /// Reads which ports of 127.0.0.1 lead to the proxy; they change when it is started again.
    pub fn ports(&mut self) {
        let container = self.container();
        let port = |inside: &str| -> u16 {
            let said = self.site.docker(&["port", &container, inside]);
            said.lines().next().and_then(|line| line.rsplit_once(':')?.1.parse().ok()).expect("a port")
        };
        (self.http, self.https) = (port("80/tcp"), port("443/tcp"));
        self.api = (self.kind == Kind::Traefik).then(|| port("8080/tcp"));
    }

    fn start_files(&self, lane: &str, image: Extra, main: &str) {
        self.put("main", self.file_proxy().main().trim_end());
        let mount = |from: &str, to: &str| format!("{from}:{to}");
        let volumes = [
            mount(&format!("{}/main", self.home), &format!("{main}:ro")),
            mount(&format!("{}/certs", self.home), "/etc/preview/certs:ro"),
            mount(&format!("{}/{}", self.site.base(), pages::DIRECTORY), "/etc/preview/pages:ro"),
            mount(&format!("{}-routes", self.site.app), "/etc/preview/routes"),
        ];
        let (container, network, image) = (self.container(), self.network(), self.extra(image));
        let mut run = vec!["run", "-d", "--name", &container, "--network", &network, "--label", lane];
        run.extend(["-p", "127.0.0.1::80", "-p", "127.0.0.1::443"]);
        for volume in &volumes {
            run.extend(["-v", volume]);
        }
        run.push(image);
        self.site.docker(&run);
    }

    fn start_traefik(&self, lane: &str) {
        self.put("status.conf", status_server("/etc/preview/pages").trim_end());
        self.put(
            "dynamic.yml",
            "tls:\n  stores:\n    default:\n      defaultCertificate: {certFile: /etc/preview/certs/cert.pem, keyFile: /etc/preview/certs/key.pem}\n  \
             options:\n    postgres:\n      alpnProtocols: [postgresql, h2, http/1.1, acme-tls/1]",
        );
        let (container, network) = (self.container(), self.network());
        // Of the previews on this engine only those of this site; others have proxies of their own.
        let only = format!(
            "--providers.docker.constraints=Label(`preview.app`,`{0}`) || Label(`preview.lane`,`{0}`)",
            self.site.app
        );
        let certs = format!("{}/certs:/etc/preview/certs:ro", self.home);
        let dynamic = format!("{}/dynamic.yml:/etc/traefik/dynamic.yml:ro", self.home);
        let mut run = vec!["run", "-d", "--name", &container, "--network", &network, "--label", lane];
        run.extend(["-p", "127.0.0.1::80", "-p", "127.0.0.1::443", "-p", "127.0.0.1::8080"]);
        run.extend(["-v", "/var/run/docker.sock:/var/run/docker.sock", "-v", &certs, "-v", &dynamic]);
        run.push(self.extra(Extra::Traefik));
        run.extend([
            "--api.insecure=true",
            "--providers.docker=true",
            "--providers.docker.exposedbydefault=false",
            &only,
        ]);
        run.extend(["--providers.file.filename=/etc/traefik/dynamic.yml", "--entrypoints.web.address=:80"]);
        run.extend([
            "--entrypoints.websecure.address=:443",
            "--entrypoints.web.http.redirections.entrypoint.to=websecure",
        ]);
        run.push("--providers.providersthrottleduration=250ms");
        run.push("--serverstransport.forwardingtimeouts.dialtimeout=500ms");
        self.site.docker(&run);
        let status = format!("{container}-status");
        let conf = format!("{}/status.conf:/etc/nginx/nginx.conf:ro", self.home);
        let pages = format!("{}/{}:/etc/preview/pages:ro", self.site.base(), pages::DIRECTORY);
        let mut run =
            vec!["run", "-d", "--name", &status, "--network", &network, "--label", lane, "-v", &conf, "-v", &pages];
        for label in [
            "traefik.enable=true",
            "traefik.http.routers.preview-status.rule=HostRegexp(`.+`)",
            "traefik.http.routers.preview-status.priority=1",
            "traefik.http.routers.preview-status.entrypoints=websecure",
            "traefik.http.routers.preview-status.tls=true",
            "traefik.http.services.preview-status.loadbalancer.server.port=80",
        ] {
            run.extend(["--label", label]);
        }
        run.push(self.extra(Extra::Nginx));
        self.site.docker(&run);
    }

    /// `curl` of `https://host/path` (or `http://…`) through the proxy, with these arguments; status, headers and body.
    ///
    /// # Panics
    /// If nothing answers.
    #[must_use]
    #[track_caller]
    pub fn curl(&self, url: &str, more: &[&str]) -> Answer {
        self.ask(url, more).unwrap_or_else(|said| panic!("{url}: {said}\n{}", self.log()))
    }

    /// The same; what curl says where nothing answers.
    ///
    /// # Errors
    /// That.
    ///
    /// # Panics
    /// If there is no curl.
    pub fn ask(&self, url: &str, more: &[&str]) -> Result<Answer, String> {
        let port = if url.starts_with("https://") { self.https } else { self.http };
        let to = format!("::127.0.0.1:{port}");
        let ca = format!("{}/certs/ca.pem", self.home);
        let fixed = ["curl", "-sS", "-i", "--max-time", "10", "--connect-to", &to, "--cacert", &ca];
        let words: Vec<&str> = fixed.iter().chain(more).copied().chain([url]).collect();
        let output = match self.site.vm() {
            None => Command::new(words[0]).args(&words[1..]).output().expect("curl runs"),
            Some(vm) => vm.exec(&words).expect("curl runs in the VM"),
        };
        let ran = Ran::from(output);
        if ran.code != 0 {
            return Err(ran.err);
        }
        let text = ran.out.replace("\r\n", "\n");
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
    }

    /// Waits until an address has this status.
    ///
    /// # Panics
    /// If it does not get there.
    #[track_caller]
    pub fn until(&self, url: &str, status: u16) -> Answer {
        let begun = Instant::now();
        loop {
            // A proxy may still wait for a container that has just gone.
            let answer = self.ask(url, &[]);
            if answer.as_ref().is_ok_and(|found| found.status == status) {
                return answer.expect("seen just now");
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{url}: not {status} within 60 s, but {answer:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A client of the image `ways`, in the network of the host, where these hosts are 127.0.0.1; its output.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    #[track_caller]
    pub fn client(&self, hosts: &[&str], words: &[&str]) -> String {
        let image = self.extra(Extra::Ways);
        let certs = format!("{}/certs:/certs:ro", self.home);
        let hosts: Vec<String> = hosts.iter().map(|host| format!("{host}:127.0.0.1")).collect();
        let mut run = vec!["run", "--rm", "--network", "host", "-v", &certs];
        for host in &hosts {
            run.extend(["--add-host", host]);
        }
        run.push(image);
        run.extend(words);
        self.site.docker(&run)
    }

    /// What Traefik's API says at this path.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn traefik(&self, path: &str) -> serde_json::Value {
        let url = format!("http://127.0.0.1:{}{path}", self.api.expect("it is Traefik"));
        let text = Command::new("curl").args(["-sS", "--max-time", "10", &url]).output().expect("curl runs").stdout;
        serde_json::from_slice(&text).expect("JSON")
    }

    /// The last lines of the proxy's log.
    #[must_use]
    pub fn log(&self) -> String {
        let (lab, container) = (self.lab, self.container());
        let output = match self.site.vm() {
            None => lab.docker(["logs", "--tail", "40", &container]).output(),
            Some(vm) => vm.command(&["docker", "logs", "--tail", "40", &container]).output(),
        };
        output
            .map(|output| {
                String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
            })
            .unwrap_or_default()
    }

    /// A little time for what Traefik hears of the engine.
    pub fn settle(&self) {
        if self.kind == Kind::Traefik {
            std::thread::sleep(Duration::from_secs(3));
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let filter = format!("label=preview.lane={}", self.site.app);
        let script = format!(
            "docker ps -aq --filter label=preview.app={app} | xargs -r docker rm -fv >/dev/null 2>&1; \
             docker ps -aq --filter {filter} | xargs -r docker rm -fv >/dev/null 2>&1; \
             docker network ls -q --filter {filter} | xargs -r docker network rm >/dev/null 2>&1; \
             docker volume rm -f {app}-routes >/dev/null 2>&1; rm -rf '{}'",
            self.home,
            app = self.site.app,
        );
        match self.site.vm() {
            None => {
                let _ = Command::new("sh").args(["-c", &script]).output();
            }
            Some(vm) => {
                let _ = vm.exec(&["sh", "-c", &script]);
            }
        }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}
