//! Judges what this machine has. Pure.

use super::{Check, Finding};
use crate::runtime::compose;

/// What became of a program that was asked for its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// It printed this.
    Said(String),
    /// There is none of that name.
    Missing,
    /// It ended with an error.
    Failed(String),
    /// It did not end in time.
    Hung,
}

const INSTALL: &str = "install the Docker CLI with its Compose plugin: https://docs.docker.com/engine/install/ (the engine need not run here)";

pub(super) fn docker_cli(program: &Program) -> Finding {
    match program {
        Program::Said(said) => Finding::ok(Check::DockerCli, said),
        other => Finding::failed(Check::DockerCli, wrong("docker", other), INSTALL),
    }
}

pub(super) fn compose(docker: &Program, program: &Program) -> Finding {
    const ID: Check = Check::Compose;
    let (major, minor) = compose::OLDEST;
    match (docker, program) {
        (Program::Missing, _) => Finding::skipped(ID, "there is no Docker CLI"),
        (_, Program::Said(said)) => match compose::parse_version(said) {
            Some(version) if version >= compose::OLDEST => Finding::ok(ID, format!("Docker Compose {said}")),
            Some(_) => Finding::failed(
                ID,
                format!("Docker Compose {said} is too old"),
                format!("install Docker Compose {major}.{minor} or newer"),
            ),
            None => Finding::failed(ID, format!("Docker Compose says that its version is `{said}`"), INSTALL),
        },
        (_, other) => Finding::failed(ID, wrong("docker compose", other), INSTALL),
    }
}

pub(super) fn buildx(docker: &Program, program: &Program) -> Finding {
    const ID: Check = Check::Buildx;
    match (docker, program) {
        (Program::Missing, _) => Finding::skipped(ID, "there is no Docker CLI"),
        (_, Program::Said(said)) => Finding::ok(ID, said),
        (_, other) => Finding::warning(
            ID,
            wrong("docker buildx", other),
            "install the buildx plugin of the Docker CLI, unless all services run ready-made images: without it nothing can be built",
        ),
    }
}

pub(super) fn sandbox(available: bool) -> Finding {
    const ID: Check = Check::Sandbox;
    if available {
        return Finding::ok(ID, "Compose and builds read nothing of this machine but what is meant for them");
    }
    let said = "this kernel has no Landlock: Compose and builds can read what this user can read";
    Finding::warning(
        ID,
        said,
        "where pull requests of strangers are deployed, use a machine with Linux 5.13 or newer and Landlock turned on",
    )
}

pub(super) fn ssh_client(program: &Program) -> Finding {
    match program {
        Program::Said(said) => Finding::ok(Check::SshClient, said),
        other => Finding::failed(Check::SshClient, wrong("ssh", other), "install the OpenSSH client (openssh-client)"),
    }
}

fn wrong(name: &str, program: &Program) -> String {
    match program {
        Program::Missing => format!("`{name}` was not found"),
        Program::Hung => format!("`{name}` gave no answer"),
        Program::Failed(said) if said.is_empty() => format!("`{name}` does not work"),
        Program::Failed(said) | Program::Said(said) => format!("`{name}` does not work: {said}"),
    }
}
