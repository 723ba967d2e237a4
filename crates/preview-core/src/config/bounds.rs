//! The tables that bound what previews take: places, time, resources, rights. Doc comments here are the descriptions in the JSON Schema.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};

use serde::{Deserialize, Serialize};

use super::values::HostPath;
use crate::units::{ByteSize, TimeSpan};
use crate::window::Window;

/// How many previews the VM may hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Limits {
    /// Places for previews in all, of whatever application. Default: 6.
    pub max_previews: NonZeroU16,
    /// Places for the previews of one owner (whoever opened the pull request, or `--owner`). Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_owner: Option<NonZeroU16>,
    /// Places for the previews of one application. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_app: Option<NonZeroU16>,
    /// A new preview needs so much free disk, where the files of previews are and where `/var/lib/docker` is. Default: `5GB`.
    pub min_free_disk: ByteSize,
    /// A new preview needs so much available memory. Default: `1GB`.
    pub min_free_memory: ByteSize,
    /// The memory limits of all previews' containers together may be so many times the VM's memory. Default: that is not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0.01, max = 1000)))]
    pub memory_overcommit: Option<f64>,
    /// What happens where there is no place: `refuse` (at once, naming who has the places), `queue` (first come, first served, until
    /// `timeouts.queue`), or `replace-oldest` (the longest unused preview that is not pinned makes room). Default: `refuse`.
    pub on_full: OnFull,
    /// Which deploys of this application are heavy: `build` (those that build images), or `all` (all that change something). Heavy ones
    /// start only within `heavy_window`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heavy: Option<Heavy>,
    /// When heavy deploys may start: two times and a time zone, `02:00-06:30 Europe/Kyiv`. At other times they are refused, or wait with
    /// `on_full = "queue"`. Default: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", extend("pattern" = "^[0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9] .+$")))]
    pub heavy_window: Option<Window>,
    /// How many places a preview of this application takes: 0.5 for a light one, 2 for a heavy one. Default: 1.0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.001, max = 1000)))]
    pub weight: f64,
}

/// What happens where there is no place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum OnFull {
    /// Refused at once, naming who has the places.
    #[default]
    Refuse,
    /// Waits: first come, first served.
    Queue,
    /// The longest unused preview that is not pinned makes room.
    ReplaceOldest,
}

/// Which deploys are heavy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Heavy {
    /// Those that build images.
    Build,
    /// All that change something.
    All,
}

/// When `preview sweep` frees disk on the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sweep {
    /// Unused images that were pulled for previews go once the engine's disk is fuller than this, in percent. Default: 80.
    #[cfg_attr(feature = "schema", schemars(range(max = 100)))]
    pub images_above: u8,
    /// But only those that were pulled longer ago than this. Default: `72h`.
    pub images_older: TimeSpan,
    /// Build cache beyond this goes, the longest unused first. Default: `10GB`.
    pub build_cache: ByteSize,
}

/// Where the numbers of the host are written for its monitoring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Metrics {
    /// File on the host for node-exporter's textfile collector, written at the end of each deploy, destroy and sweep; absolute, and ends with `.prom`. Default:
    /// none is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", extend("pattern" = "^/.+\\.prom$")))]
    pub file: Option<HostPath>,
}

/// Limits for every container of a preview.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Guardrails {
    /// Processors, fractions allowed. Default: 1.0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.01)))]
    pub cpus: f64,
    /// Memory, at least 6 MB. Default: `512MB`.
    pub memory: ByteSize,
    /// Processes and threads. Default: 256.
    pub pids: NonZeroU32,
    /// Size of one log file. Default: `10MB`.
    pub log_size: ByteSize,
    /// Log files that are kept. Default: 3.
    pub log_files: NonZeroU32,
    /// Restart policy: `no`, `on-failure`, `always` or `unless-stopped`. Default: `always`.
    pub restart: Restart,
    /// Containers of one preview, all replicas counted. Default: 40.
    pub max_containers: NonZeroU16,
    /// Containers of one service. Default: 10.
    pub max_replicas: NonZeroU16,
    /// Networks that are made for one preview. Default: 10.
    pub max_networks: NonZeroU16,
    /// Volumes that are made for one preview. Default: 50.
    pub max_volumes: NonZeroU16,
    /// Ports that the Compose files of one preview publish. Default: 50.
    pub max_ports: NonZeroU16,
    /// A limit of memory that the Compose file has itself counts up to this. Default: up to `memory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<ByteSize>,
    /// Services with other limits than the rest, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, ServiceGuardrails>,
}

/// Limits for the containers of one service, in place of those for all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceGuardrails {
    /// Processors, fractions allowed. Default: `guardrails.cpus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0.01)))]
    pub cpus: Option<f64>,
    /// Memory, at least 6 MB. Default: `guardrails.memory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Processes and threads. Default: `guardrails.pids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<NonZeroU32>,
}

/// Restart policies of Docker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Restart {
    /// Never.
    No,
    /// When it ended with an error.
    OnFailure,
    /// Always, also after the engine has been restarted or has died.
    #[default]
    Always,
    /// Always, unless someone stopped it; an engine that died stops what it finds, and takes that for a wish.
    UnlessStopped,
}

impl Restart {
    /// As Compose writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }
}

impl std::fmt::Display for Restart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What containers may do less than Docker lets them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Isolation {
    /// The root file system is read-only; `/tmp` and `/run` become temporary file systems where the service mounts nothing there. Default: `false`.
    pub read_only: bool,
    /// Size of each of these temporary file systems. Default: `64MB`.
    pub tmpfs: ByteSize,
    /// User (`1000:1000`) of services whose Compose file names none, or root. Default: none, as the files and images say.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("pattern" = "^[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$")))]
    pub user: Option<String>,
    /// No process gains privileges, by setuid programs for example. Default: `false`.
    pub no_new_privileges: bool,
    /// The preview's networks lead nowhere else. Default: `false`.
    pub internal: bool,
    /// All capabilities are dropped. Default: `false`.
    pub cap_drop_all: bool,
    /// Services that are left alone. Default: none.
    pub except: Vec<String>,
}

/// How long each stage of a run may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Timeouts {
    /// Building images. Default: `15m`.
    pub build: TimeSpan,
    /// Pulling images. Default: `5m`.
    pub pull: TimeSpan,
    /// Starting containers, dependencies included. Default: `2m`.
    pub start: TimeSpan,
    /// Waiting for health once all containers run. Default: `1m`.
    pub verify: TimeSpan,
    /// One step. Default: `5m`.
    pub step: TimeSpan,
    /// Waiting for the preview's lock; `0s` tries once. Default: `1m`.
    pub lock: TimeSpan,
    /// Waiting for a place, with `limits.on_full = "queue"`. Default: `30m`.
    pub queue: TimeSpan,
    /// The whole run, waiting for a place not counted. Default: `20m`.
    pub total: TimeSpan,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_previews: NonZeroU16::MIN.saturating_add(5),
            max_per_owner: None,
            max_per_app: None,
            min_free_disk: ByteSize::from_mb(5 * 1024),
            min_free_memory: ByteSize::from_mb(1024),
            memory_overcommit: None,
            on_full: OnFull::Refuse,
            heavy: None,
            heavy_window: None,
            weight: 1.0,
        }
    }
}

impl Default for Sweep {
    fn default() -> Self {
        Self {
            images_above: 80,
            images_older: TimeSpan::from_secs(72 * 3600),
            build_cache: ByteSize::from_mb(10 * 1024),
        }
    }
}

impl Default for Guardrails {
    fn default() -> Self {
        Self {
            cpus: 1.0,
            memory: ByteSize::from_mb(512),
            pids: NonZeroU32::MIN.saturating_add(255),
            log_size: ByteSize::from_mb(10),
            log_files: NonZeroU32::MIN.saturating_add(2),
            restart: Restart::Always,
            max_containers: NonZeroU16::MIN.saturating_add(39),
            max_replicas: NonZeroU16::MIN.saturating_add(9),
            max_networks: NonZeroU16::MIN.saturating_add(9),
            max_volumes: NonZeroU16::MIN.saturating_add(49),
            max_ports: NonZeroU16::MIN.saturating_add(49),
            max_memory: None,
            services: BTreeMap::new(),
        }
    }
}

impl Default for Isolation {
    fn default() -> Self {
        Self {
            read_only: false,
            tmpfs: ByteSize::from_mb(64),
            user: None,
            no_new_privileges: false,
            internal: false,
            cap_drop_all: false,
            except: Vec::new(),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            build: TimeSpan::from_mins(15),
            pull: TimeSpan::from_mins(5),
            start: TimeSpan::from_mins(2),
            verify: TimeSpan::from_secs(60),
            step: TimeSpan::from_mins(5),
            lock: TimeSpan::from_secs(60),
            queue: TimeSpan::from_mins(30),
            total: TimeSpan::from_mins(20),
        }
    }
}
