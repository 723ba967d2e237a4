//! What can be wrong, each with what to do about it: observations in, findings out.
//!
//! `machine`, `vm`, `proxy`, `way_in` and `probed` judge, in pure code; `look` and `tls` observe; `run` brings both together. Nothing is changed, but
//! by `through`, which deploys a preview, asks it and removes it, where that is wished.

mod look;
mod machine;
mod probed;
mod proxy;
mod public;
mod run;
mod text;
mod through;
pub(crate) mod tls;
mod vm;
mod way_in;

#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;

pub use look::Programs;
pub use probed::{not_begun, skipped as not_probed};
pub use public::{Layer, Opened, markdown as opened_markdown, open as open_public};
pub use run::{Place, Wish, doctor, without_configuration};
pub use text::report;
pub use through::{IMAGE, OWNER, Probe, probe};

macro_rules! checks {
    ($($group:ident $title:literal { $($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+ })+) => {
        /// What is looked at. The words stay; new ones may come. The table in `docs/doctor.md` says what to do about each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Check {
            $($($(#[doc = $doc])+ $name,)+)+
        }

        /// Where it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Group {
            $(#[doc = $title] $group,)+
        }

        impl Check {
            /// Every check, in the order of the report.
            pub const ALL: &[Self] = &[$($(Self::$name,)+)+];

            /// Its word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($(Self::$name => $word,)+)+
                }
            }

            /// Where it is.
            #[must_use]
            pub const fn group(self) -> Group {
                match self {
                    $($(Self::$name => Group::$group,)+)+
                }
            }
        }

        impl Group {
            /// Every group, in the order of the report.
            pub const ALL: &[Self] = &[$(Self::$group,)+];

            /// Its name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$group => $title,)+
                }
            }
        }
    };
}

checks! {
    Machine "this machine" {
        /// The configuration can be read, and fits together.
        Config = "config",
        /// The Docker CLI.
        DockerCli = "docker-cli",
        /// Its Compose plugin.
        Compose = "compose",
        /// Its buildx plugin.
        Buildx = "buildx",
        /// Whether Compose and builds can be kept from this machine's files.
        Sandbox = "sandbox",
        /// The SSH client.
        SshClient = "ssh-client",
    }
    Vm "the VM" {
        /// An `sshd` answers.
        SshReach = "ssh-reach",
        /// It shows a key that is pinned.
        HostKey = "host-key",
        /// It lets us in.
        Login = "login",
        /// The directory of the previews.
        BaseDir = "base-dir",
        /// The engine's socket may be used.
        DockerSocket = "docker-socket",
        /// The engine answers, and is not too old.
        DockerVersion = "docker-version",
        /// Free disk.
        Disk = "disk",
        /// Available memory.
        Memory = "memory",
        /// Its clock.
        Clock = "clock",
        /// Sessions that `sshd` gives to one connection.
        SshSessions = "ssh-sessions",
        /// Networks that Docker can still make.
        Networks = "networks",
        /// Logs of containers that are no previews.
        LogRotation = "log-rotation",
        /// Swap.
        Swap = "swap",
        /// When it was last swept.
        Sweep = "sweep",
    }
    Proxy "the proxy" {
        /// Its network.
        ProxyNetwork = "proxy-network",
        /// Its container.
        ProxyContainer = "proxy-container",
    }
    WayIn "the way in" {
        /// The DNS provider's token has its rights.
        DnsProvider = "dns-provider",
        /// Names of previews lead to the VM.
        Dns = "dns",
        /// Its ports are open.
        Ports = "ports",
        /// The certificate.
        Certificate = "certificate",
        /// HTTP leads to HTTPS.
        Redirect = "redirect",
        /// A preview that is there answers.
        Answer = "answer",
        /// A preview that is made to be asked, and removed again.
        Probe = "probe",
    }
}

macro_rules! words {
    ($($name:ident),+) => {
        $(impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        })+
    };
}

words!(Check, Group);

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Not looked at.
    Skipped,
    /// Works, but may not for long, or not for everybody.
    Warning,
    /// Does not work.
    Failed,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub id: Check,
    /// Where that is.
    pub group: Group,
    /// Which of several, a host name for example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// How it is.
    pub status: Status,
    /// What was found; of what was skipped, why.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Finding {
    fn new(id: Check, status: Status, found: impl Into<String>) -> Self {
        Self { id, group: id.group(), about: None, status, found: found.into(), next: None }
    }

    fn ok(id: Check, found: impl Into<String>) -> Self {
        Self::new(id, Status::Ok, found)
    }

    fn skipped(id: Check, because: impl Into<String>) -> Self {
        Self::new(id, Status::Skipped, because)
    }

    fn warning(id: Check, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..Self::new(id, Status::Warning, found) }
    }

    fn failed(id: Check, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..Self::new(id, Status::Failed, found) }
    }

    fn about(mut self, what: &str) -> Self {
        self.about = Some(what.to_owned());
        self
    }
}

/// All findings, in the order of [`Check::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing failed.
    pub ok: bool,
    /// So many warnings.
    pub warnings: usize,
    /// So many failures.
    pub failures: usize,
    /// Each check at least once.
    pub findings: Vec<Finding>,
}

impl Report {
    fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.id);
        let count = |status| findings.iter().filter(|finding| finding.status == status).count();
        let (warnings, failures) = (count(Status::Warning), count(Status::Failed));
        Self { ok: failures == 0, warnings, failures, findings }
    }

    /// With a finding in place of what was said about the same.
    #[must_use]
    pub fn with(mut self, finding: Finding) -> Self {
        self.findings.retain(|other| other.id != finding.id);
        self.findings.push(finding);
        Self::new(self.findings)
    }

    /// What has to be well before a preview can be deployed, and is not: the first of it.
    #[must_use]
    pub fn in_the_way(&self) -> Option<Check> {
        use Check::{
            BaseDir, Compose, Config, DockerCli, DockerSocket, DockerVersion, HostKey, Login, SshClient, SshReach,
        };
        const NEEDED: [Check; 10] =
            [Config, DockerCli, Compose, SshClient, SshReach, HostKey, Login, BaseDir, DockerSocket, DockerVersion];
        let failed = |finding: &&Finding| finding.status == Status::Failed && NEEDED.contains(&finding.id);
        self.findings.iter().find(failed).map(|finding| finding.id)
    }

    /// Whether all is well; `strict`: warnings are not.
    #[must_use]
    pub const fn passes(&self, strict: bool) -> bool {
        self.ok && !(strict && self.warnings > 0)
    }
}
