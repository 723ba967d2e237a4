//! The schema of `preview.toml`, its defaults and its errors.
//!
//! Nothing here reads a file or the environment: texts and maps come in, a [`Config`] comes out, and every error says where.
//!
//! ```
//! use std::path::Path;
//! use preview_core::config::{ConfigFile, Environment, Overrides, Settings};
//!
//! let text = "app = 'shop'\nurl = 'https://{name}.example.com'\n\n[guardrails]\nmemory = '1GB'\n";
//! let file = ConfigFile::parse(text, Some(Path::new("preview.toml")))?;
//! let settings = Settings::merge(file, &Environment::new(), &Overrides::default())?;
//! assert_eq!(settings.config.guardrails.memory.to_string(), "1GB");
//!
//! let error = ConfigFile::parse("[guardrails]\nmemry = '1GB'\n", Some(Path::new("preview.toml"))).unwrap_err();
//! assert_eq!(error.to_string(), "preview.toml:2:1: unknown key `guardrails.memry`; did you mean `memory`?");
//! # Ok::<(), preview_core::config::ConfigError>(())
//! ```

mod bounds;
mod check;
mod decode;
mod dns;
mod domains;
mod error;
mod file;
mod origin;
mod resolve;
#[cfg(feature = "schema")]
mod schema;
mod settings;
mod table;
mod trusted;
mod values;

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::sync::Arc;

pub use bounds::{Guardrails, Heavy, Isolation, Limits, Metrics, OnFull, Restart, ServiceGuardrails, Sweep, Timeouts};
pub(crate) use decode::suggestion;
pub use dns::Tunnel;
pub use error::ConfigError;
pub use file::{
    After, Allow, BasicAuth, ConfigFile, Generate, Health, Policy, Proxy, ProxyKind, PublicCheck, Pull, RouteTable,
    Step, Update, Vm,
};
#[cfg(feature = "schema")]
pub use schema::schema;
pub use settings::{Overrides, Settings};
pub use table::{AdapterTable, Environment};
pub use values::{HostPath, OneOrMany, VariableName};

use crate::name::{AppName, NameTemplate, Url, UrlTemplate};
use crate::route::Protocol;
use crate::units::Ttl;

/// The configuration's file where nothing else is said, relative to the project's directory.
pub const FILE: &str = "preview.toml";
/// Compose files that are tried, in this order, where the configuration names none.
pub const COMPOSE_FILES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// Files that Compose lays over those, where nobody names any. We do not.
pub const COMPOSE_OVERRIDES: [&str; 4] =
    ["compose.override.yaml", "compose.override.yml", "docker-compose.override.yaml", "docker-compose.override.yml"];
/// Directory for the files of previews on a host that is reached over ssh.
pub const BASE_DIR: &str = "/opt/previews";

/// The configuration of a run: flags over environment over file over default. Made by [`Settings::merge`].
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of the application; `None`: [`AppName::derive`] from the repository.
    pub app: Option<AppName>,
    /// Compose files, relative to the project's directory; empty: the first of [`COMPOSE_FILES`] that exists.
    pub compose: Vec<PathBuf>,
    /// Files with variables for interpolation.
    pub env_files: Vec<PathBuf>,
    /// Active profiles.
    pub profiles: Vec<String>,
    /// Services that are left out.
    pub exclude: Vec<String>,
    /// When images are pulled.
    pub pull: Pull,
    /// How long a preview is kept after its last deploy.
    pub ttl: Ttl,
    /// Template for names; see [`Config::naming`].
    pub name: Option<NameTemplate>,
    /// Templates for addresses as they stand at the top; those of the routes are in `routes`.
    pub urls: Vec<UrlTemplate>,
    /// The machine that holds the previews.
    pub vm: Vm,
    /// The proxy on it.
    pub proxy: Proxy,
    /// Who writes DNS records, if anybody does.
    pub dns: Option<AdapterTable>,
    /// The tunnel that requests come through, if they do.
    pub tunnel: Option<Tunnel>,
    /// Services that are reachable from outside; empty: the caller chooses one ([`Config::add_route`]). Either all have an address or none has.
    pub routes: Vec<Route>,
    /// How many previews the VM may hold.
    pub limits: Limits,
    /// When a sweep frees disk.
    pub sweep: Sweep,
    /// Where the host's numbers go.
    pub metrics: Metrics,
    /// Limits for every container.
    pub guardrails: Guardrails,
    /// What containers may do less.
    pub isolation: Isolation,
    /// Limits of time.
    pub timeouts: Timeouts,
    /// What the base branch allows.
    pub policy: Policy,
    /// When a preview counts as ready, and whether its public address has to open.
    pub health: Option<Health>,
    /// Variables that the file gives.
    pub env: BTreeMap<VariableName, String>,
    /// Services that get all variables.
    pub env_services: Vec<String>,
    /// Where secrets come from; later wins.
    pub secrets: Vec<AdapterTable>,
    /// Credentials to make up.
    pub generate: BTreeMap<VariableName, Generate>,
    /// Commands to run, in order.
    pub steps: Vec<Step>,
    origin: Arc<origin::Origin>,
}

/// A service that is reachable from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The Compose service.
    pub service: String,
    /// The port in its container.
    pub port: NonZeroU16,
    /// Its address, with `{service}` filled in.
    pub url: Option<UrlTemplate>,
    /// Whether the address's path is taken off.
    pub strip_prefix: bool,
    /// What the service speaks.
    pub protocol: Protocol,
    /// What happens to the service at an update.
    pub update: Update,
    /// Which of two routes wins.
    pub priority: Option<NonZeroU32>,
    /// The entry point, where it is not the proxy's usual one.
    pub entrypoint: Option<String>,
    /// The name of TLS options.
    pub tls_options: Option<String>,
}

impl Proxy {
    /// Whether the preview of this name may have this address.
    #[must_use]
    pub fn may_lead(&self, name: &str, url: &Url) -> bool {
        self.kind == ProxyKind::None || domains::allowed(name, url.host(), url.path(), &self.domains)
    }

    /// Whether the proxy speaks TLS for this address.
    #[must_use]
    pub fn speaks_tls(&self, url: &Url) -> bool {
        self.tls.unwrap_or(url.is_https())
    }

    /// The entry point for this address.
    #[must_use]
    pub fn entrypoint(&self, url: &Url) -> &str {
        let usual = if self.speaks_tls(url) { "websecure" } else { "web" };
        self.entrypoint.as_deref().unwrap_or(usual)
    }
}

#[cfg(test)]
mod tests;
