//! A VM with a proxy and a preview, for `doctor` to look at, and the ways to break it.

use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use preview_tests::{Lab, Site, Vm, VmEngine, VmOptions, lab};
use serde_json::Value;

const WEB: &str = "\
services:
  web:
    image: busybox:1.36
    command: httpd -f -p 80 -h /www
    volumes: [./www:/www:ro]
    ports: ['80']
";

/// What port 80 does.
pub(super) const REDIRECT: &str = "listen 80; return 301 https://$host$request_uri;";

/// Runs the command with names of its own: a mount namespace in which `/etc/hosts` is another file.
const NAMES: &str = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";

pub(super) struct Ward {
    pub(super) site: Site,
    /// The VM's own address.
    pub(super) address: String,
    vm: Arc<Vm>,
    own: tempfile::TempDir,
}

/// The command, where names are what this file says.
pub(super) fn named(site: &Site, hosts: &Path, path: &str, args: &[&str]) -> Command {
    let plain = site.command(args);
    let mut command = Command::new("unshare");
    // Root needs no user namespace, and may not be allowed one.
    if run(Command::new("id").arg("-u")) != "0" {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-c", NAMES, "sh"]).arg(hosts);
    command.args(["env", &format!("PATH={path}")]).arg(plain.get_program()).args(plain.get_args());
    command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(site.dir.path()).stdin(Stdio::null());
    command
}

/// The finding about this.
#[track_caller]
pub(super) fn of<'a>(report: &'a Value, id: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap_or_else(|| panic!("no findings: {report}"));
    findings.iter().find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("nothing about {id}: {report}"))
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Ward {
    pub(super) fn new() -> Option<Self> {
        let lab = lab()?;
        let vm = Arc::new(Vm::start(lab, VmEngine::V28, &VmOptions::default()).expect("the VM starts"));
        let format = "{{.NetworkSettings.IPAddress}}";
        let address = run(&mut lab.docker(["inspect", "--format", format, vm.name()]));
        vm.load_image(&["busybox:1.36", nginx_image(lab)]).expect("the images get into the VM");
        let mut site = Site::on(lab, Some(Arc::clone(&vm)), WEB);
        site.write("www/index.html", "hello\n");
        // By its own address, where its ports 80 and 443 are.
        site.set("PREVIEW_HOST", &format!("ssh://deploy@{address}"));
        let key = vm.known_hosts();
        let (_, key) = key.split_once(' ').expect("a line");
        site.set("PREVIEW_KNOWN_HOSTS", &format!("{address} {key}"));
        let ward = Self { site, address, vm, own: tempfile::tempdir().expect("a directory") };
        ward.authority();
        ward.lead_to_the_vm();
        ward.configure("");
        ward.root(
            "mkdir -p /etc/docker /etc/proxy; echo '{\"log-opts\": {\"max-size\": \"10m\"}}' > /etc/docker/daemon.json",
        );
        ward.root("docker network create preview-proxy >/dev/null");
        ward.certificate_files("*.preview.test", "-1 day", "+90 days");
        ward.nginx_file(REDIRECT);
        ward.root(&format!(
            "docker run -d --name proxy --network preview-proxy --restart always -p 80:80 -p 443:443 -v /etc/proxy:/etc/nginx/conf.d:ro {} \
             nginx -g 'daemon off;' >/dev/null",
            nginx_image(lab)
        ));
        ward.site.run(&["deploy", "--pr", "7"]).expect(0);
        ward.site.run(&["sweep"]).expect(0);
        Some(ward)
    }

    pub(super) fn vm(&self) -> &Vm {
        &self.vm
    }

    pub(super) fn dir(&self) -> &Path {
        self.own.path()
    }

    /// A script in the VM, as root.
    #[track_caller]
    pub(super) fn root(&self, script: &str) -> String {
        self.site.shell(script)
    }

    /// The configuration, with more.
    pub(super) fn configure(&self, more: &str) {
        let proxy = "url = \"https://{name}.preview.test\"\n[proxy]\nkind = \"traefik\"\n";
        self.site.write("preview.toml", &format!("{proxy}{more}"));
    }

    pub(super) fn configure_proxy(&self, network: &str) {
        self.configure(&format!("network = \"{network}\"\n"));
    }

    pub(super) fn hosts(&self, lines: &str) {
        std::fs::write(self.dir().join("hosts"), format!("127.0.0.1 localhost\n{lines}")).expect("a file");
    }

    pub(super) fn lead_to_the_vm(&self) {
        self.hosts(&format!("{} preview-doctor-probe.preview.test pr-7.preview.test\n", self.address));
    }

    fn command(&self, path: &str, args: &[&str]) -> Command {
        named(&self.site, &self.dir().join("hosts"), path, &[&["doctor", "--format", "json"], args].concat())
    }

    #[track_caller]
    fn ended(mut command: Command) -> (i32, Value) {
        let output = command.output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap_or(-1), report)
    }

    pub(super) fn path(&self) -> String {
        std::env::var("PATH").expect("PATH")
    }

    /// Exit code and report.
    #[track_caller]
    pub(super) fn run(&self, path: &str, args: &[&str]) -> (i32, Value) {
        let authority = self.dir().join("ca.pem");
        let ca = if args.contains(&"--ca") { vec![] } else { vec!["--ca", authority.to_str().expect("a path")] };
        Self::ended(self.command(path, &[&ca, args].concat()))
    }

    #[track_caller]
    pub(super) fn run_without_ca(&self) -> (i32, Value) {
        Self::ended(self.command(&self.path(), &[]))
    }

    /// With other variables.
    #[track_caller]
    pub(super) fn with(&self, variables: &[(&str, &str)]) -> (i32, Value) {
        let mut command = self.command(&self.path(), &[]);
        command.envs(variables.iter().copied());
        Self::ended(command)
    }

    #[track_caller]
    pub(super) fn doctor(&self, args: &[&str]) -> Value {
        self.run(&self.path(), args).1
    }

    /// Just this check is not well, and those that depend on it.
    #[track_caller]
    pub(super) fn broken(&self, code: i32, id: &str, status: &str, words: &[&str], depend: &[&str]) -> Value {
        let (ended, report) = self.run(&self.path(), &[]);
        assert_eq!(ended, code, "{report:#}");
        let finding = of(&report, id);
        assert_eq!(finding["status"], status, "{finding}");
        let text = format!("{} {}", finding["found"], finding["next"]);
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(finding["next"].as_str().is_some_and(|next| !next.is_empty()), "{finding}");
        for other in report["findings"].as_array().expect("findings") {
            let name = other["id"].as_str().expect("a word");
            // The kernel's.
            let free = name == id || name == "swap" || depend.contains(&name) || id == "config";
            assert!(free || !matches!(other["status"].as_str(), Some("failed" | "warning")), "{other}");
        }
        report
    }

    /// A directory with links to all programs but one.
    pub(super) fn path_without(&self, program: &str) -> String {
        let into = tempfile::tempdir_in(self.dir()).expect("a directory").keep();
        for dir in std::env::split_paths(&self.path()) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_name() != program {
                    // The first of a name counts, as in PATH.
                    let _ = symlink(entry.path(), into.join(entry.file_name()));
                }
            }
        }
        into.to_string_lossy().into_owned()
    }

    /// A path on which one program is this script.
    pub(super) fn path_with(&self, program: &str, script: &str) -> String {
        let path = self.path_without(program);
        let file = PathBuf::from(&path).join(program);
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("a script");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("rights");
        path
    }

    /// A key that nobody knows: type and key.
    pub(super) fn other_key(&self) -> String {
        let file = self.dir().join("other");
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file));
        let public = std::fs::read_to_string(file.with_extension("pub")).expect("a key");
        public.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    /// A private certificate authority.
    fn authority(&self) {
        let dir = self.dir();
        std::fs::write(
            dir.join("ca.conf"),
            format!(
                "[ca]\ndefault_ca = own\n[own]\ndir = {}\ndatabase = $dir/index\nserial = $dir/serial\nnew_certs_dir = $dir\n\
                 certificate = $dir/ca.pem\nprivate_key = $dir/ca.key\ndefault_md = sha256\npolicy = any\nunique_subject = no\n\
                 copy_extensions = copy\n[any]\ncommonName = supplied\n",
                dir.display()
            ),
        )
        .expect("a file");
        std::fs::write(dir.join("index"), "").expect("a file");
        std::fs::write(dir.join("serial"), "1000\n").expect("a file");
        run(Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "365",
            ])
            .args(["-subj", "/CN=Authority of a test", "-keyout", "ca.key", "-out", "ca.pem"])
            .current_dir(dir)
            .stderr(Stdio::null()));
    }

    /// Gives the proxy a certificate; times as `date` reads them.
    fn certificate_files(&self, name: &str, from: &str, to: &str) {
        let dir = self.dir();
        let time = |text: &str| run(Command::new("date").args(["-u", "+%Y%m%d%H%M%SZ", "-d", text]));
        run(Command::new("openssl")
            .args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-subj", &format!("/CN={name}"), "-addext", &format!("subjectAltName=DNS:{name}")])
            .args(["-keyout", "own.key", "-out", "own.csr"])
            .current_dir(dir)
            .stderr(Stdio::null()));
        self.sign("own", &["-startdate", &time(from), "-enddate", &time(to)]);
        for file in ["own.pem", "own.key"] {
            self.put(&format!("/etc/proxy/{file}"), &std::fs::read_to_string(dir.join(file)).expect("a file"));
        }
    }

    fn sign(&self, name: &str, more: &[&str]) {
        let (request, certificate) = (format!("{name}.csr"), format!("{name}.pem"));
        run(Command::new("openssl")
            .args(["ca", "-batch", "-notext", "-config", "ca.conf", "-in", &request, "-out", &certificate])
            .args(more)
            .current_dir(self.dir())
            .stderr(Stdio::null()));
    }

    /// A certificate that holds for 90 days, by an authority in between that holds for 10.
    pub(super) fn certificate_by_another(&self) {
        let dir = self.dir();
        run(Command::new("openssl")
            .args([
                "req",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-subj",
                "/CN=In between",
            ])
            .args(["-addext", "basicConstraints=critical,CA:true", "-keyout", "between.key", "-out", "between.csr"])
            .current_dir(dir)
            .stderr(Stdio::null()));
        self.sign("between", &["-days", "10"]);
        self.sign("own", &["-days", "90", "-cert", "between.pem", "-keyfile", "between.key"]);
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("a file");
        self.put("/etc/proxy/own.pem", &(read("own.pem") + &read("between.pem")));
        self.reload();
    }

    pub(super) fn certificate(&self, name: &str, from: &str, to: &str) {
        self.certificate_files(name, from, to);
        self.reload();
    }

    fn nginx_file(&self, plain: &str) {
        // Docker's resolver finds the preview's service by name in the network that both are in.
        self.put(
            "/etc/proxy/default.conf",
            &format!(
                "server {{ {plain} }}\nserver {{ listen 443 ssl; ssl_certificate /etc/nginx/conf.d/own.pem; ssl_certificate_key /etc/nginx/conf.d/own.key; \
                 resolver 127.0.0.11 valid=1s; set $service web; location / {{ proxy_pass http://$service; }} }}\n"
            ),
        );
    }

    /// What port 80 does.
    pub(super) fn nginx(&self, plain: &str) {
        self.nginx_file(plain);
        self.reload();
    }

    fn reload(&self) {
        // Old workers take connections for a moment; a new process does not.
        self.root("docker restart -t 1 proxy >/dev/null");
        preview_tests::eventually("nginx", || std::net::TcpStream::connect((self.address.as_str(), 443)).is_ok());
    }

    fn put(&self, path: &str, text: &str) {
        let lab = lab().expect("a lab");
        let mut child = lab
            .docker(["exec", "-i", self.vm.name(), "sh", "-c", &format!("cat > {path}")])
            .stdin(Stdio::piped())
            .spawn()
            .expect("it starts");
        child.stdin.take().expect("an input").write_all(text.as_bytes()).expect("written");
        assert!(child.wait().expect("an end").success());
    }
}

/// nginx as Debian has it, on the lab's engine.
fn nginx_image(lab: &Lab) -> &'static str {
    const IMAGE: &str = "preview-lab/doctor-nginx";
    let there = lab.docker(["image", "inspect", IMAGE]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.expect("docker runs").success() {
        return IMAGE;
    }
    let mut build = lab.docker(["buildx", "build", "--load", "--label", "preview.lab=1", "--tag", IMAGE, "-"]);
    let mut build = build.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("docker runs");
    let dockerfile = "FROM debian:bookworm-slim\nRUN apt-get update && apt-get install -y --no-install-recommends nginx-light && rm -rf /var/lib/apt/lists/* /etc/nginx/sites-enabled/*\n";
    build.stdin.take().expect("an input").write_all(dockerfile.as_bytes()).expect("written");
    assert!(build.wait().expect("an end").success(), "the image is not built");
    IMAGE
}
