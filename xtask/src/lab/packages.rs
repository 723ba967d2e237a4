//! Newer Docker parts than the machine has: the Compose and buildx plugins, and the engine of the second VM.
//!
//! They are Debian's own packages of a newer suite, fetched in a container, so that the machine itself may be
//! of any distribution; the mirror is the one that the container's image came from.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::plugins::Plugin;
use super::{LABEL, Lab, images};
use crate::sh;

const ENGINE: [&str; 4] = ["docker.io", "docker-cli", "containerd", "tini-static"];

/// Downloads packages of a newer suite, and unpacks them below `/out`.
const FETCH: &str = r#"
set -eu
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null \
  | sed -n 's/^URIs: *//p; s/^deb  *\(\[[^]]*\] *\)\{0,1\}\([^ ]*\) .*/\2/p' | head -n 1 | cut -d ' ' -f 1)
mkdir -p /fetch/lists/partial /fetch/debs /out
cd /fetch/debs
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" > /fetch/sources.list
apt() {
  apt-get -q -o Dir::Etc::sourcelist=/fetch/sources.list -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::lists=/fetch/lists -o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}
apt update
apt download "$@"
for deb in *.deb; do dpkg -x "$deb" /out; done
"#;

/// Where the fetched plugins are.
pub(super) fn plugins_dir(lab: &Lab) -> PathBuf {
    lab.dir.join("docker/cli-plugins")
}

/// Fetches the plugins unless they are there, whether or not this machine has its own: the VMs want them too.
pub(super) fn fetch_plugins(lab: &Lab) -> Result<()> {
    let dir = plugins_dir(lab);
    if Plugin::ALL.iter().all(|plugin| dir.join(plugin.program()).is_file()) {
        return Ok(());
    }
    let out = fetch(lab, "plugins", &Plugin::ALL.map(Plugin::program))?;
    fs::create_dir_all(&dir)?;
    for name in Plugin::ALL.map(Plugin::program) {
        fs::rename(out.join("usr/libexec/docker/cli-plugins").join(name), dir.join(name))
            .with_context(|| format!("the package {name} has no plugin of that name"))?;
    }
    fs::remove_dir_all(out)?;
    Ok(())
}

/// Fetches the programs of the newer engine; returns their folder.
pub(super) fn fetch_engine(lab: &Lab) -> Result<PathBuf> {
    let dir = lab.dir.join("engine");
    if dir.is_dir() {
        return Ok(dir);
    }
    let out = fetch(lab, "engine", &ENGINE)?;
    let made = lab.dir.join("work/engine-bin");
    fs::create_dir_all(&made)?;
    for path in [
        "usr/sbin/dockerd",
        "usr/sbin/docker-proxy",
        "usr/bin/docker",
        "usr/bin/containerd",
        "usr/bin/containerd-shim-runc-v2",
        "usr/bin/ctr",
    ] {
        let from = out.join(path);
        let name = from.file_name().context("a path without a name")?;
        fs::rename(&from, made.join(name)).with_context(|| format!("the packages have no {path}"))?;
    }
    fs::rename(out.join("usr/bin/tini-static"), made.join("docker-init"))?;
    fs::rename(&made, &dir)?;
    fs::remove_dir_all(out)?;
    Ok(dir)
}

fn fetch(lab: &Lab, what: &str, packages: &[&str]) -> Result<PathBuf> {
    let out = lab.dir.join("work").join(what);
    if out.is_dir() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(lab.dir.join("work"))?;
    let name = format!("preview-lab-fetch-{what}-{}", std::process::id());
    let remove = || sh::succeeds(&mut lab.docker(["rm", "-f", "-v", &name]));
    let _ = remove();
    let label = format!("{LABEL}=1");
    let mut run = lab.docker(["run", "--name", &name, "--label", &label, images::DEBIAN, "sh", "-c", FETCH, "sh"]);
    run.args(packages);
    let fetched = sh::logged(&mut run, &lab.log(&format!("fetch-{what}")))
        .and_then(|()| sh::text(lab.docker(["cp", &format!("{name}:/out")]).arg(&out)).map(drop));
    let _ = remove();
    fetched.with_context(|| format!("cannot fetch {}", packages.join(", ")))?;
    Ok(out)
}
