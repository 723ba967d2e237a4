//! Ways to the host and its engine that not every command needs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use preview_core::config;
use preview_core::engine::docker::DockerEngine;
use preview_core::host::guardian::Guardian;
use preview_core::host::ssh::{Destination, KnownHosts, SshOptions};
use preview_core::lifecycle::{Client, Error};
use preview_core::name::Key;
use preview_core::runtime::compose::{Compose, ComposeOptions};

use super::{Session, invalid};

impl Session {
    /// The project directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The Compose CLI, without an engine.
    pub(crate) fn compose(&self) -> Compose {
        let docker_config = self.docker_config();
        Compose::new(ComposeOptions {
            docker: PathBuf::from("docker"),
            path: self.environment.get("PATH").cloned().unwrap_or_default().into(),
            docker_config,
            socket: None,
            // Without one, a killed run leaves its temporary files, and that is all.
            guardian: self.guardian.get_or_init(|| Guardian::start().ok()).clone(),
        })
    }

    /// How to connect to the VM.
    pub(crate) fn ssh_options(&self, destination: Destination) -> SshOptions {
        let vm = &self.config.vm;
        SshOptions {
            identity_file: vm.identity_file.as_ref().map(|file| self.directory.join(file)),
            identity_key: self.identity_key.clone(),
            known_hosts: match (&vm.known_hosts, &vm.known_hosts_file) {
                (Some(lines), _) => KnownHosts::Lines(lines.clone()),
                (None, Some(file)) => KnownHosts::File(self.directory.join(file)),
                (None, None) => KnownHosts::UserDefault,
            },
            connect_timeout: Duration::from_secs(20),
            ..SshOptions::new(destination)
        }
    }

    /// The directory of the previews on the host.
    pub(crate) fn base_dir(&self) -> Result<String, Error> {
        let vm = &self.config.vm;
        match (&vm.base_dir, vm.host.as_deref()) {
            (Some(base), _) => Ok(base.to_string()),
            (None, None | Some("local")) => self.local_base(),
            (None, Some(_)) => Ok(config::BASE_DIR.to_owned()),
        }
    }

    /// The engine's socket on the host.
    pub(crate) fn docker_socket(&self) -> String {
        match self.config.vm.host.as_deref() {
            None | Some("local") => self.local_socket().to_string_lossy().into_owned(),
            Some(_) => self.config.vm.docker_socket.to_string(),
        }
    }

    /// The engine of a host that was reached, for questions that only Docker can answer.
    pub(crate) async fn engine(&self, client: &Client) -> Result<DockerEngine, Error> {
        let socket = client.host.socket(&self.docker_socket()).await?;
        Ok(DockerEngine::connect(&socket)?)
    }

    /// Names a preview that nobody deploys: `preview-doctor-probe`, or the last pull request there can be where the templates
    /// are for pull requests alone.
    pub(crate) fn any_key(&self) -> Result<Key, Error> {
        self.stand_in("doctor-probe", 9_999_999_999)
    }

    /// Names the preview of `doctor --probe`. Another one than that which nobody deploys: resolvers remember for long that a name has no
    /// address.
    pub(crate) fn probe_key(&self) -> Result<Key, Error> {
        self.stand_in("doctor-whole-path", 9_999_999_998)
    }

    fn stand_in(&self, branch: &str, number: u64) -> Result<Key, Error> {
        let branch = Key::branch(branch).map_err(invalid)?;
        if self.named(&branch).is_ok() {
            return Ok(branch);
        }
        Key::pull(number).map_err(invalid)
    }

    /// The engine's socket of this machine: `DOCKER_HOST` or the Docker CLI's context says where, as they do for the Docker CLI.
    pub(super) fn local_socket(&self) -> PathBuf {
        self.engine.clone().unwrap_or_else(|| PathBuf::from(self.config.vm.docker_socket.as_str()))
    }

    /// Previews of this machine are kept beside the state of the user's other programs.
    pub(super) fn local_base(&self) -> Result<String, Error> {
        let absolute = |name: &str| self.environment.get(name).filter(|path| path.starts_with('/'));
        absolute("XDG_STATE_HOME")
            .map(|state| format!("{state}/preview"))
            .or_else(|| absolute("HOME").map(|home| format!("{home}/.local/state/preview")))
            .ok_or_else(|| {
                invalid("neither HOME nor XDG_STATE_HOME is set: say with --base-dir where previews are kept")
            })
    }
}
