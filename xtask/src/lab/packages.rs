//! Newer Docker parts than the machine has: the Compose and buildx plugins, and the engine of the second VM.
//!
//! They are Debian's own packages of a newer suite, fetched in a container, so that the machine itself may be
//! of any distribution; the mirror is the one that the container's image came from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{LABEL, Lab, images};
use crate::sh;

/// The oldest Compose that is good enough: it prints progress as JSON.
const COMPOSE_MIN: (u32, u32) = (2, 29);
const PLUGINS: [&str; 2] = ["docker-compose", "docker-buildx"];
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

/// Where the plugins are when the lab has them.
pub(super) fn plugins_dir(lab: &Lab) -> PathBuf {
    lab.dir.join("docker/cli-plugins")
}

/// The private configuration, if it is in use: named by the environment, or made by an earlier run.
pub(super) fn own_config(dir: &Path) -> Option<PathBuf> {
    let private = dir.join("docker");
    let in_use = std::env::var_os("DOCKER_CONFIG").is_some_and(|named| Path::new(&named) == private);
    (in_use || dir.join("private-config").exists()).then_some(private)
}

/// Compose and buildx: the user's own where they are good enough, else the fetched ones in a private configuration.
pub(super) fn ensure_plugins(lab: &Lab) -> Result<Option<PathBuf>> {
    sh::step("compose and buildx", || {
        if let Some((compose, buildx)) = versions(lab) {
            let whose = if lab.docker_config.is_some() { "the lab's" } else { "this machine's" };
            return Ok((lab.docker_config.clone(), format!("{compose} and {buildx}, {whose}")));
        }
        fetch_plugins(lab)?;
        let config = lab.dir.join("docker");
        link_own_settings(&config)?;
        let private = Lab { docker_config: Some(config.clone()), ..lab.clone() };
        let Some((compose, buildx)) = versions(&private) else {
            bail!("the fetched plugins in {} do not run here", plugins_dir(lab).display());
        };
        fs::write(lab.dir.join("private-config"), "")?;
        Ok((Some(config), format!("{compose} and {buildx}, fetched")))
    })
}

/// Fetches the plugins unless they are there, whether or not this machine has its own: the VMs want them too.
pub(super) fn fetch_plugins(lab: &Lab) -> Result<()> {
    let dir = plugins_dir(lab);
    if PLUGINS.iter().all(|name| dir.join(name).is_file()) {
        return Ok(());
    }
    let out = fetch(lab, "plugins", &PLUGINS)?;
    fs::create_dir_all(&dir)?;
    for name in PLUGINS {
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

/// The versions of Compose and buildx, if both are good enough.
fn versions(lab: &Lab) -> Option<(String, String)> {
    let compose = sh::text(&mut lab.docker(["compose", "version", "--short"])).ok()?;
    let buildx = sh::text(&mut lab.docker(["buildx", "version"])).ok()?;
    let buildx = buildx.split_whitespace().nth(1)?.to_owned();
    (major_minor(&compose)? >= COMPOSE_MIN).then(|| (format!("Compose {compose}"), format!("buildx {buildx}")))
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The user's logins and contexts hold in the private configuration too.
fn link_own_settings(config: &Path) -> Result<()> {
    let own = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")));
    let Some(own) = own.filter(|own| own != config) else { return Ok(()) };
    for name in ["config.json", "contexts"] {
        let (from, to) = (own.join(name), config.join(name));
        if from.exists() && to.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(from, to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::major_minor;

    #[test]
    fn versions_are_read_with_what_distributions_add() {
        assert_eq!(major_minor("2.40.3"), Some((2, 40)));
        assert_eq!(major_minor("v2.26.1-4"), Some((2, 26)));
        assert_eq!(major_minor("2.40.3+ds1-3"), Some((2, 40)));
        assert_eq!(major_minor("unknown"), None);
    }
}
