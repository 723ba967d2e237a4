//! The images of the VMs, built from the files in `lab/vm/`, and the key that opens the VMs.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{LABEL, Lab, VmEngine, go, install, packages};
use crate::sh;

const DOCKERFILE: &str = include_str!("vm/Dockerfile");
const ENTRYPOINT: &str = include_str!("vm/entrypoint");
const BARE: [&str; 2] = [include_str!("vm/bare/Dockerfile"), include_str!("vm/bare/entrypoint")];
const LAB_DOCKERD: &str = include_str!("vm/lab-dockerd");
const V29: &str = include_str!("vm/v29/Dockerfile");
const V29_PROGRAMS: [&go::Program; 2] = [&go::DOCKERD, &go::RUNC];

pub(super) fn ensure(lab: &Lab) -> Result<()> {
    key(lab)?;
    [VmEngine::None, VmEngine::V20, VmEngine::V28].into_iter().try_for_each(|engine| one(lab, engine))
}

/// The image of engine 29, made when it is first asked for: it takes two minutes, and `go`.
pub(super) fn ensure_29(lab: &Lab) -> Result<()> {
    let lock = File::create(lab.dir.join("lock-vm-29"))?;
    lock.lock().context("cannot lock the lab")?;
    if current(lab, VmEngine::V29) == Some(hash(VmEngine::V29)) {
        return Ok(());
    }
    for program in V29_PROGRAMS {
        go::build(lab, program)?;
    }
    one(lab, VmEngine::V29)
}

/// Whether [`ensure_29`] can do it.
pub(super) fn has_29(lab: &Lab) -> bool {
    current(lab, VmEngine::V29) == Some(hash(VmEngine::V29)) || go::available(lab, &V29_PROGRAMS)
}

fn one(lab: &Lab, engine: VmEngine) -> Result<()> {
    sh::step(engine.image(), || {
        let hash = hash(engine);
        if current(lab, engine).as_ref() == Some(&hash) {
            return Ok(((), "there".to_owned()));
        }
        build(lab, engine, &hash)?;
        Ok(((), "built".to_owned()))
    })
}

/// The private key for the VMs.
pub(super) fn key_file(lab: &Lab) -> PathBuf {
    lab.dir.join("ssh/id_ed25519")
}

fn key(lab: &Lab) -> Result<()> {
    let file = key_file(lab);
    if file.is_file() {
        return Ok(());
    }
    install::need(&lab.dir, &[("ssh", "openssh-client"), ("ssh-keygen", "openssh-client")])?;
    fs::create_dir_all(file.parent().unwrap_or(&lab.dir))?;
    let mut keygen = sh::cmd("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "preview-lab", "-f"]);
    sh::text(keygen.arg(&file)).map(drop)
}

/// The hash of what the image was built from, as its label says.
fn current(lab: &Lab, engine: VmEngine) -> Option<String> {
    let format = format!("{{{{index .Config.Labels \"{LABEL}.hash\"}}}}");
    sh::text(&mut lab.docker(["image", "inspect", "--format", &format, engine.image()])).ok()
}

fn hash(engine: VmEngine) -> String {
    let mut hasher = DefaultHasher::new();
    match engine {
        VmEngine::None => BARE.hash(&mut hasher),
        VmEngine::V20 | VmEngine::V28 => (DOCKERFILE, ENTRYPOINT, LAB_DOCKERD).hash(&mut hasher),
        VmEngine::V29 => (V29, self::hash(VmEngine::V28), V29_PROGRAMS.map(|one| one.version)).hash(&mut hasher),
    }
    format!("{:016x}", hasher.finish())
}

fn build(lab: &Lab, engine: VmEngine, hash: &str) -> Result<()> {
    let context = lab.dir.join("work").join(format!("vm-{}", engine.target()));
    if context.is_dir() {
        fs::remove_dir_all(&context)?;
    }
    fs::create_dir_all(context.join("engine"))?;
    let mut build = lab.docker(["buildx", "build", "--load", "--progress", "plain"]);
    if engine == VmEngine::None {
        fs::write(context.join("Dockerfile"), BARE[0])?;
        fs::write(context.join("entrypoint"), BARE[1])?;
    } else if engine == VmEngine::V29 {
        fs::write(context.join("Dockerfile"), V29)?;
        for program in V29_PROGRAMS {
            link(&go::build(lab, program)?, &context.join("engine").join(program.name))?;
        }
    } else {
        packages::fetch_plugins(lab)?;
        fs::write(context.join("Dockerfile"), DOCKERFILE)?;
        fs::write(context.join("entrypoint"), ENTRYPOINT)?;
        fs::write(context.join("lab-dockerd"), LAB_DOCKERD)?;
        link_all(&packages::plugins_dir(lab), &context.join("plugins"))?;
        build.args(["--target", engine.target()]);
    }
    if engine == VmEngine::V28 {
        link_all(&packages::fetch_engine(lab)?, &context.join("engine"))?;
    }
    build
        .args(["--label", &format!("{LABEL}=1"), "--label", &format!("{LABEL}.hash={hash}")])
        .args(["--tag", engine.image()])
        .arg(&context);
    sh::logged(&mut build, &lab.log(&format!("build-vm-{}", engine.target())))?;
    fs::remove_dir_all(&context)?;
    Ok(())
}

/// Hard links: a build context of 300 MB that costs nothing.
fn link_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        link(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> Result<()> {
    Ok(fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))?)
}
