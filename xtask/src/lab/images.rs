//! The two base images: pulled where a registry is reachable, else made from this machine's own packages.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{LABEL, Lab, install};
use crate::sh;

/// A tiny image with a shell, `httpd` and `wget`.
pub(super) const BUSYBOX: &str = "busybox:1.36";
/// The image that everything bigger is built on.
pub(super) const DEBIAN: &str = "debian:bookworm-slim";

/// What the slim image leaves out or sets too; they hold in the image as well as for its making.
const DPKG_OPTIONS: [&str; 5] = [
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
];
const APT_OPTIONS: [&str; 4] = [
    "Acquire::Languages \"none\"",
    "Dir::Cache::pkgcache \"\"",
    "Dir::Cache::srcpkgcache \"\"",
    "DPkg::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb || true\"; }",
];

const PROBE_LIMIT: Duration = Duration::from_secs(20);
const PULL_LIMIT: Duration = Duration::from_secs(300);

pub(super) fn ensure(lab: &Lab) -> Result<()> {
    one(lab, BUSYBOX, import_busybox)?;
    one(lab, DEBIAN, import_debian)
}

/// Whether the engine has an image.
pub(super) fn exists(lab: &Lab, image: &str) -> bool {
    sh::succeeds(&mut lab.docker(["image", "inspect", "--format", "{{.Id}}", image]))
}

fn one(lab: &Lab, image: &str, make: fn(&Lab) -> Result<()>) -> Result<()> {
    sh::step(image, || {
        if exists(lab, image) {
            return Ok(((), "there".to_owned()));
        }
        if registry(lab)? && sh::text_within(&mut lab.docker(["pull", "-q", image]), PULL_LIMIT).is_ok() {
            return Ok(((), "pulled".to_owned()));
        }
        make(lab)?;
        Ok(((), "made from this machine's packages".to_owned()))
    })
}

/// Whether the engine has an image now, pulled if a registry can be reached.
pub(super) fn pulled(lab: &Lab, image: &str) -> bool {
    let pull = || sh::text_within(&mut lab.docker(["pull", "-q", image]), PULL_LIMIT).is_ok();
    exists(lab, image) || (registry(lab).unwrap_or(false) && pull())
}

/// Asks for the smallest image once, and remembers the answer until `lab down`.
fn registry(lab: &Lab) -> Result<bool> {
    let answer = lab.dir.join("registry");
    if let Ok(known) = fs::read_to_string(&answer) {
        return Ok(known.trim() == "yes");
    }
    let reachable = sh::text_within(&mut lab.docker(["pull", "-q", BUSYBOX]), PROBE_LIMIT).is_ok();
    fs::write(&answer, if reachable { "yes\n" } else { "no\n" })?;
    Ok(reachable)
}

fn import_busybox(lab: &Lab) -> Result<()> {
    install::need(&lab.dir, &[("busybox", "busybox-static")])?;
    let busybox = sh::which("busybox").context("no busybox")?;
    let work = Scratch::new(&lab.dir, "busybox")?;
    let root = work.path();
    for dir in ["bin", "etc", "root", "tmp", "home", "var/www", "usr"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    for applet in sh::text(&mut sh::cmd(&busybox, ["--list"]))?.lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet))?;
        }
    }
    // The image from a registry has these paths too.
    symlink("../bin", root.join("usr/bin"))?;
    symlink("../bin", root.join("usr/sbin"))?;
    symlink("bin", root.join("sbin"))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnobody:x:65534:\n")?;
    import(lab, root, BUSYBOX, "CMD [\"sh\"]")
}

fn import_debian(lab: &Lab) -> Result<()> {
    // Half the time of debootstrap, which syncs every file to the disk.
    install::need(&lab.dir, &[("mmdebstrap", "mmdebstrap")])?;
    let work = Scratch::new(&lab.dir, "debian")?;
    let root = work.path();
    let mut bootstrap = sh::cmd("mmdebstrap", ["--variant=minbase", "--format=directory"]);
    // Otherwise apt picks `usrmerge`, and all of Perl with it.
    bootstrap.arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr");
    bootstrap.args(DPKG_OPTIONS.map(|option| format!("--dpkgopt={option}")));
    bootstrap.args(APT_OPTIONS.map(|option| format!("--aptopt={option}")));
    bootstrap.args(mirror_settings().lines().map(|option| format!("--aptopt={option}")));
    bootstrap.arg("bookworm").arg(root).args(mirror());
    sh::logged(&mut bootstrap, &lab.log("mmdebstrap"))?;
    let no_services = root.join("usr/sbin/policy-rc.d");
    fs::write(&no_services, "#!/bin/sh\nexit 101\n")?;
    fs::set_permissions(&no_services, fs::Permissions::from_mode(0o755))?;
    import(lab, root, DEBIAN, "CMD [\"bash\"]")
}

/// How this machine's owner lets apt treat the mirror: a proxy, and whether a frozen mirror's old lists are
/// good enough. The container asks the same mirror, so the same holds there; nothing is loosened where the
/// machine does not, and signatures are checked in any case.
fn mirror_settings() -> String {
    let names = ["Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date"];
    sh::text(sh::cmd("apt-config", ["dump", "--no-empty", "--format", "%f \"%v\";%n"]).args(names)).unwrap_or_default()
}

/// The mirror that this machine's own package sources name first.
fn mirror() -> Option<String> {
    let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
    if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.into_iter().find_map(|text| debian_mirror(&text))
}

/// The first address in a sources file that serves Debian itself, in either of apt's two formats.
fn debian_mirror(text: &str) -> Option<String> {
    text.lines().map(str::trim).find_map(|line| {
        let rest = line.strip_prefix("URIs:").or_else(|| line.strip_prefix("deb "))?;
        rest.split_whitespace()
            .map(|word| word.trim_end_matches('/'))
            .find(|word| word.contains("://") && word.ends_with("/debian"))
            .map(str::to_owned)
    })
}

fn import(lab: &Lab, root: &Path, image: &str, change: &str) -> Result<()> {
    let tar = root.with_extension("tar");
    sh::text(
        sh::cmd("tar", ["--numeric-owner", "--owner=0", "--group=0", "-c", "-f"])
            .arg(&tar)
            .arg("-C")
            .arg(root)
            .arg("."),
    )
    .context("cannot pack the image")?;
    let label = format!("LABEL {LABEL}=1");
    let imported = sh::text(lab.docker(["import", "-c", &label, "-c", change]).arg(&tar).arg(image));
    fs::remove_file(&tar)?;
    imported.map(drop)
}

fn empty(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    Ok(())
}

/// A folder for one piece of work, removed with it.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join("work").join(name);
        empty(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::debian_mirror;

    #[test]
    fn the_mirror_is_read_from_both_formats_and_only_debians_own() {
        let deb822 =
            "Types: deb\n# URIs: http://old.example/debian\nURIs: http://mirror.example/debian/\nSuites: bookworm\n";
        assert_eq!(debian_mirror(deb822).as_deref(), Some("http://mirror.example/debian"));
        let one_line = "deb [signed-by=/k.gpg] https://other.example/apt x main\ndeb [arch=amd64] http://mirror.example/debian bookworm main\n";
        assert_eq!(debian_mirror(one_line).as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(debian_mirror("deb http://mirror.example/debian-security x main\n"), None);
        assert_eq!(debian_mirror("deb http://mirror.example/ubuntu jammy main\n"), None);
    }
}
