//! Images that only some tests need, made when they are first asked for: real proxies, and services that speak more than HTTP.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{LABEL, Lab, images};
use crate::sh;

/// The version of Traefik that is built.
const TRAEFIK: &str = "v3.7.9";
/// Two empty types that Traefik keeps in a module of its own, which module proxies do not have.
const TRAEFIK_EXT: &str = "// Package ext holds extension points of Traefik's configuration, all of them empty.\npackage ext\n\n\
    // HTTP extends nothing.\ntype HTTP struct{}\n\n// Router extends nothing.\ntype Router struct{}\n\n\
    // RouterIng extends nothing.\ntype RouterIng struct{}\n\n// ToRouter has nothing to convert.\nfunc (RouterIng) ToRouter() Router { return Router{} }\n";
const WAYS: &str = include_str!("ways/Dockerfile");
const WAYS_PY: &str = include_str!("ways/ways.py");
const NGINX: &str = "FROM debian:bookworm-slim\nRUN apt-get update && apt-get install -y --no-install-recommends nginx-light \
    && rm -rf /var/lib/apt/lists/* /etc/nginx/sites-enabled/default\nCMD [\"nginx\", \"-g\", \"daemon off;\"]\n";
/// With BusyBox's shell and utilities, as the official image has them, which is of Alpine.
const CADDY: &str = "FROM debian:bookworm-slim\nRUN apt-get update && apt-get install -y --no-install-recommends caddy ca-certificates busybox-static \
    && rm -rf /var/lib/apt/lists/* && mkdir /small && busybox --install -s /small\nENV PATH=/small:/usr/sbin:/usr/bin:/sbin:/bin\nCMD [\"caddy\", \"run\", \"--config\", \"/etc/caddy/Caddyfile\", \"--adapter\", \"caddyfile\"]\n";

/// An image that is made when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extra {
    /// Debian's nginx.
    Nginx,
    /// Debian's Caddy, beside BusyBox.
    Caddy,
    /// Servers and clients for web sockets, gRPC and Postgres; `curl`, `psql` and `openssl`.
    Ways,
    /// Traefik: its official image's, or built by Go from its module.
    Traefik,
    /// Pebble, a small ACME server: its official image's, or built by Go from its module.
    Pebble,
}

impl Extra {
    /// The image's name.
    #[must_use]
    pub const fn image(self) -> &'static str {
        match self {
            Self::Nginx => "preview-lab/nginx",
            Self::Caddy => "preview-lab/caddy",
            Self::Ways => "preview-lab/ways",
            Self::Traefik => "preview-lab/traefik",
            Self::Pebble => "preview-lab/pebble",
        }
    }

    fn files(self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Nginx => vec![("Dockerfile", NGINX)],
            Self::Caddy => vec![("Dockerfile", CADDY)],
            Self::Ways => vec![("Dockerfile", WAYS), ("ways.py", WAYS_PY)],
            Self::Traefik => vec![("version", TRAEFIK)],
            Self::Pebble => vec![("version", PEBBLE)],
        }
    }

    /// The official image, and where the program is in it.
    fn official(self) -> Option<(String, &'static str)> {
        match self {
            Self::Traefik => Some((format!("traefik:{TRAEFIK}"), "/usr/local/bin/traefik")),
            Self::Pebble => Some((format!("ghcr.io/letsencrypt/pebble:{}", PEBBLE.trim_start_matches('v')), "/app")),
            _ => None,
        }
    }
}

/// The version of Pebble.
const PEBBLE: &str = "v2.10.1";

impl Lab {
    /// The name of an image of these, made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made: Traefik and Pebble need a registry or Go.
    pub fn extra(&self, extra: Extra) -> Result<&'static str> {
        let image = extra.image();
        let lock = File::create(self.dir.join(format!("lock-{}", image.replace('/', "-"))))?;
        lock.lock().context("cannot lock the lab")?;
        let mut hasher = DefaultHasher::new();
        extra.files().hash(&mut hasher);
        let hash = format!("{:016x}", hasher.finish());
        let format = format!("{{{{index .Config.Labels \"{LABEL}.hash\"}}}}");
        let found = sh::text(&mut self.docker(["image", "inspect", "--format", &format, image]));
        if found.is_ok_and(|found| found == hash) {
            return Ok(image);
        }
        sh::step(image, || {
            match extra {
                Extra::Traefik => program_image(self, extra, &hash, traefik)?,
                Extra::Pebble => program_image(self, extra, &hash, pebble)?,
                _ => build(self, extra, &hash, |context| {
                    for (file, text) in extra.files() {
                        fs::write(context.join(file), text)?;
                    }
                    Ok(())
                })?,
            }
            Ok(((), "built".to_owned()))
        })?;
        Ok(image)
    }

    /// Whether [`Lab::extra`] can make Traefik and Pebble: out of their official images, or with Go.
    #[must_use]
    pub fn has_programs(&self) -> bool {
        let there = |extra: Extra| {
            let official = || extra.official().is_some_and(|(image, _)| images::pulled(self, &image));
            images::exists(self, extra.image()) || official()
        };
        sh::which("go").is_some() || (there(Extra::Traefik) && there(Extra::Pebble))
    }
}

fn labels(hash: &str) -> [String; 2] {
    [format!("{LABEL}=1"), format!("{LABEL}.hash={hash}")]
}

/// An image of the files that `fill` puts into its context.
fn build(lab: &Lab, extra: Extra, hash: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = extra.image().replace('/', "-");
    let context = lab.dir.join("work").join(&name);
    let _ = fs::remove_dir_all(&context);
    fs::create_dir_all(&context)?;
    fill(&context)?;
    let mut build = lab.docker(["buildx", "build", "--load", "--progress", "plain", "--tag", extra.image()]);
    for label in labels(hash) {
        build.args(["--label", &label]);
    }
    build.arg(&context);
    sh::logged(&mut build, &lab.log(&format!("build-{name}")))?;
    fs::remove_dir_all(&context)?;
    Ok(())
}

/// An image that holds one static program, the same whether that is taken from the official image or built by Go.
fn program_image(lab: &Lab, extra: Extra, hash: &str, make: fn(&Lab, &Path) -> Result<()>) -> Result<()> {
    let text = |copy: &str| {
        format!("FROM scratch\nCOPY {copy} /usr/local/bin/program\nENTRYPOINT [\"/usr/local/bin/program\"]\n")
    };
    if let Some((image, path)) = extra.official().filter(|(image, _)| images::pulled(lab, image)) {
        let text = text(&format!("--from={image} {path}"));
        match build(lab, extra, hash, |context| Ok(fs::write(context.join("Dockerfile"), text)?)) {
            Err(error) => eprintln!("{image} is not as expected, so Go has to build it: {error:#}"),
            done => return done,
        }
    }
    if sh::which("go").is_none() {
        bail!("{} is pulled or built by Go; no registry can be reached, and there is no `go` here", extra.image());
    }
    let text = text("program");
    build(lab, extra, hash, |context| {
        make(lab, &context.join("program"))?;
        Ok(fs::write(context.join("Dockerfile"), text)?)
    })
}

/// Traefik's module as the proxy has it lacks a module within it that its own `go.mod` points to.
fn traefik(lab: &Lab, program: &Path) -> Result<()> {
    let module = format!("github.com/traefik/traefik/v3@{TRAEFIK}");
    let empty = lab.dir.join("work/go");
    fs::create_dir_all(&empty)?;
    let mut download = sh::cmd("go", ["mod", "download", "-json", &module]);
    let said = sh::text(download.current_dir(&empty)).context("cannot fetch Traefik's module")?;
    let at: serde_json::Value = serde_json::from_str(&said)?;
    let source = at["Dir"].as_str().context("go says no directory")?.to_owned();
    let copy = lab.dir.join("work/traefik-source");
    let _ = fs::remove_dir_all(&copy);
    sh::text(sh::cmd("cp", ["-r", "--no-preserve=mode", &source]).arg(&copy))?;
    let ext = copy.join("pkg/config/dynamic/ext");
    fs::create_dir_all(&ext)?;
    fs::write(ext.join("ext.go"), TRAEFIK_EXT)?;
    fs::write(ext.join("go.mod"), "module github.com/traefik/traefik/dynamic/ext\n\ngo 1.22\n")?;
    let mut build = sh::cmd("nice", ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o"]);
    build.arg(program).arg("./cmd/traefik").current_dir(&copy).env("CGO_ENABLED", "0");
    sh::logged(&mut build, &lab.log("build-traefik")).context("cannot build Traefik")?;
    fs::remove_dir_all(&copy)?;
    Ok(())
}

fn pebble(lab: &Lab, program: &Path) -> Result<()> {
    let into = lab.dir.join("work/go-bin");
    fs::create_dir_all(&into)?;
    let module = format!("github.com/letsencrypt/pebble/v2/cmd/pebble@{PEBBLE}");
    let mut install = sh::cmd("nice", ["go", "install", "-trimpath", "-ldflags", "-s -w", &module]);
    install.env("CGO_ENABLED", "0").env("GOBIN", &into);
    sh::logged(&mut install, &lab.log("build-pebble")).context("cannot build Pebble")?;
    fs::rename(into.join("pebble"), program)?;
    Ok(())
}
