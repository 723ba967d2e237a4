//! The command line.

pub(crate) mod vm;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use preview_core::config::Environment;
use preview_core::lifecycle::Error;

/// A preview environment for every pull request or branch, on a Docker VM that its team owns.
///
/// Brings the application's Compose stack up under its own name, on this machine or on a VM over SSH, and takes it away again
/// without a trace. Nothing is installed on the VM.
#[derive(Debug, Parser)]
#[command(name = "preview", version, max_term_width = 110, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  preview deploy --pr 7                       on this machine's Docker, from ./compose.yml
  preview deploy --branch feature/login --host ssh://deploy@vm.example.com
  preview plan --pr 7                         what a deploy would do; changes nothing
  preview logs --pr 7 api --follow
  preview destroy --pr 7
  preview doctor                              what is wrong, and what to do about it
  preview capacity                            how many previews fit on the VM

Exit codes:
  0 done   1 internal   2 usage or configuration   3 refused   4 deploy failed
  5 timed out or interrupted   6 VM or engine unreachable (wrong host key included)   7 locked
  8 `preview doctor` found something that does not work

Every setting: flag over environment (PREVIEW_…) over preview.toml over default.";

/// What all commands understand.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of all commands")]
pub(crate) struct Global {
    /// The configuration file; `preview.toml` in the project directory if it exists
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The base branch's configuration file: what decides over the host (limits, policy, VM, …) comes from it alone
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) trusted_config: Option<PathBuf>,
    /// The directory of the Compose files; this one without it
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) project_dir: Option<PathBuf>,
    /// Where previews run: `local`, or `ssh://user@host[:port]`
    #[arg(long, global = true, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// The directory of the previews on the host
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) base_dir: Option<String>,
    /// Pinned host keys of the VM, lines as in a `known_hosts` file
    #[arg(long, global = true, value_name = "LINES")]
    pub(crate) known_hosts: Option<String>,
    /// A file with pinned host keys of the VM
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) known_hosts_file: Option<String>,
    /// The private key for the VM; its content may also stand in the variable `PREVIEW_IDENTITY_KEY`
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) identity_file: Option<String>,
    /// The application's name; the repository's name without it
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Limit of time for the whole run, for example `20m`
    #[arg(long, global = true, value_name = "TIME")]
    pub(crate) timeout: Option<String>,
    /// Form of what is printed on standard output
    #[arg(long, global = true, value_enum)]
    pub(crate) format: Option<Format>,
    /// Form of what is said on standard error
    #[arg(long, global = true, value_enum)]
    pub(crate) log_format: Option<LogFormat>,
    /// Say more: `-v` what is done, `-vv` how
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

impl Global {
    /// With what the environment says where no flag does. A variable that is empty says nothing: CI systems make that of an input
    /// that was not given.
    pub(crate) fn over(mut self, environment: &Environment) -> Result<Self, Error> {
        let get = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        self.config = self.config.or_else(|| get("PREVIEW_CONFIG").map(PathBuf::from));
        self.trusted_config = self.trusted_config.or_else(|| get("PREVIEW_TRUSTED_CONFIG").map(PathBuf::from));
        self.project_dir = self.project_dir.or_else(|| get("PREVIEW_PROJECT_DIR").map(PathBuf::from));
        if let (None, Some(format)) = (self.format, get("PREVIEW_FORMAT")) {
            let known = Format::from_str(format, false);
            self.format =
                Some(known.map_err(|_| Error::invalid(format!("PREVIEW_FORMAT: `{format}` is not `text` or `json`")))?);
        }
        if let (None, Some(format)) = (self.log_format, get("PREVIEW_LOG_FORMAT")) {
            let known = LogFormat::from_str(format, false);
            self.log_format = Some(
                known.map_err(|_| Error::invalid(format!("PREVIEW_LOG_FORMAT: `{format}` is not `text` or `json`")))?,
            );
        }
        Ok(self)
    }
}

/// Form of standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document; its form is in docs/output.md.
    Json,
}

/// Form of standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A log: one JSON object a line; its form is in docs/output.md.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Deploy or update a preview
    Deploy(Deploy),
    /// Remove a preview with everything that belongs to it
    Destroy {
        #[command(flatten)]
        which: Which,
        /// When the event happened that this is for (RFC 3339): no run for an earlier one brings the preview back. Known by itself
        /// in GitHub Actions and GitLab CI
        #[arg(long, value_name = "TIME")]
        event_time: Option<String>,
    },
    /// Show what a deploy would do, and change nothing
    Plan(Deploy),
    /// List the previews on the host, or the runs that ended there
    List {
        /// Of all applications
        #[arg(long)]
        all: bool,
        /// The runs that ended on the host: deploys, destroys and sweeps, the last first
        #[arg(long)]
        history: bool,
        /// How many runs
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20, requires = "history")]
        last: usize,
    },
    /// Show one preview in detail
    Status(Which),
    /// Show the logs of a preview's services
    Logs {
        #[command(flatten)]
        which: Which,
        /// The service; all without it
        service: Option<String>,
        /// The last so many lines of each container
        #[arg(long, short = 'n', default_value_t = 100)]
        tail: u32,
        /// Go on with what is written from now on
        #[arg(long, short)]
        follow: bool,
        /// Put the time in front of each line
        #[arg(long, short)]
        timestamps: bool,
    },
    /// Run a command in a service; ends with its exit code
    Exec {
        #[command(flatten)]
        which: Which,
        /// User in the container
        #[arg(long, short)]
        user: Option<String>,
        /// Working directory in the container
        #[arg(long, short)]
        workdir: Option<String>,
        /// In a CI job, print the output as it is; by default, lines that would command the CI system are made harmless, but not in a file
        #[arg(long)]
        raw: bool,
        /// The service
        service: String,
        /// Program and arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Reach a service's port on this machine's loopback address
    Tunnel {
        #[command(flatten)]
        which: Which,
        /// Service and port: `db:5432`
        target: String,
        /// Port on this machine; a free one without it
        #[arg(long, short)]
        local: Option<u16>,
    },
    /// Remove what is expired, closed, crashed or orphaned on the host, of all applications; mend what died in an update
    #[command(after_help = SWEEP)]
    Sweep(Sweep),
    /// Keep a preview for some time more, whatever its time to live says
    Keep {
        #[command(flatten)]
        which: Which,
        /// How long from now on: `48h`, `7d`
        #[arg(long = "for", value_name = "TIME")]
        span: String,
    },
    /// Let a preview never expire, and never make room for another
    Pin(Which),
    /// Take `pin` back
    Unpin(Which),
    /// Read the CI event, and deploy, update or destroy as it says
    Ci,
    /// Say how many previews fit on the VM and what binds first, or which VM so many need
    #[command(after_help = CAPACITY)]
    Capacity(Capacity),
    /// Look for everything that can be wrong, here, on the VM and on the way in, and say what to do about it; changes nothing without
    /// `--probe`
    #[command(after_help = DOCTOR)]
    Doctor(Doctor),
    /// Make a VM ready for previews
    #[command(subcommand)]
    Vm(vm::Vm),
}

impl Command {
    /// Its name.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Deploy(_) => "deploy",
            Self::Destroy { .. } => "destroy",
            Self::Plan(_) => "plan",
            Self::List { .. } => "list",
            Self::Status(_) => "status",
            Self::Logs { .. } => "logs",
            Self::Exec { .. } => "exec",
            Self::Tunnel { .. } => "tunnel",
            Self::Sweep(_) => "sweep",
            Self::Keep { .. } => "keep",
            Self::Pin(_) => "pin",
            Self::Unpin(_) => "unpin",
            Self::Ci => "ci",
            Self::Capacity(_) => "capacity",
            Self::Doctor(_) => "doctor",
            Self::Vm(vm::Vm::Setup(_)) => "vm setup",
            Self::Vm(vm::Vm::Provision(_)) => "vm provision",
        }
    }
}

const SWEEP: &str = "\
Examples:
  preview sweep --dry-run
  preview sweep --forge                      in a CI job: asks GitHub or GitLab what is still open
  gh pr list --state open --limit 1000 --json number -q '.[].number' | preview sweep --open-prs -
  git ls-remote --heads origin | sed 's|.*refs/heads/||' | preview sweep --open-branches -

Never touched: what somebody is at work on, and what does not carry the labels of this base directory.";

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Sweep {
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// A file with the numbers of the open pull requests of this application, one a line; `-` for standard input; `none` if none is
    /// open. Previews of others go
    #[arg(long, value_name = "FILE")]
    pub(crate) open_prs: Option<String>,
    /// A file with the branches of this application, one a line; `-` for standard input; `none` for none. Previews of others go
    #[arg(long, value_name = "FILE")]
    pub(crate) open_branches: Option<String>,
    /// Ask GitHub or GitLab, as the variables of the CI job name it, about each preview of this repository: those whose pull request is closed or
    /// whose branch is gone, go. Needs GITHUB_TOKEN or GITLAB_TOKEN, unless the repository is public. Also PREVIEW_FORGE=true
    #[arg(long, conflicts_with_all = ["open_prs", "open_branches"])]
    pub(crate) forge: bool,
    /// What was deployed so shortly ago may be missing in these lists; `10m` without it
    #[arg(long, value_name = "TIME")]
    pub(crate) grace: Option<String>,
}

const DOCTOR: &str = "\
Examples:
  preview doctor
  preview doctor --strict --format json        for a pipeline: warnings count too
  preview doctor --ca ca.pem                   where a private authority issues the certificates
  preview doctor --probe                       a preview is made, asked through DNS, port, TLS and proxy, and removed

Ends with 0 if nothing failed, with 8 otherwise. Every check, with what to do about it: docs/doctor.md.";

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Doctor {
    /// Warnings fail as well
    #[arg(long)]
    pub(crate) strict: bool,
    /// A file (PEM) with the authorities that may vouch for certificates, instead of those that this machine trusts
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Deploy a small preview like any other, if there is a place, ask it the way that its users go, and remove it again
    #[arg(long)]
    pub(crate) probe: bool,
    /// The image of that preview: any with busybox
    #[arg(long, value_name = "IMAGE", default_value = preview_core::doctor::IMAGE, requires = "probe")]
    pub(crate) probe_image: String,
}

const CAPACITY: &str = "\
Examples:
  preview capacity                                       how many fit on the configured VM
  preview capacity --vcpus 8 --memory 16GB --disk 150GB  how many would fit on such a one; no VM is asked
  preview capacity --previews 6                          which VM six previews need; no VM is asked
  preview capacity --table                               the usual sizes at a glance

What a preview takes is what its Compose files declare: limits of memory, limits or reservations of processors. Where they declare
nothing, a formula holds: vCPU = 2 + 1.5 n, RAM GB = 6 + 2.5 n, disk GB = 120 + 8 n; or the guardrails, where these allow less.
The last column says which it was. More in docs/capacity.md.";

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Capacity {
    /// Say which VM so many previews need
    #[arg(long, value_name = "N", conflicts_with_all = ["vcpus", "memory", "disk", "table"])]
    pub(crate) previews: Option<u64>,
    /// Processors of the VM that is thought of
    #[arg(long, value_name = "N")]
    pub(crate) vcpus: Option<f64>,
    /// Memory of the VM that is thought of, for example `16GB`
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Disk of the VM that is thought of, for example `150GB`
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<String>,
    /// So many times its processors a VM may promise as limits, which are for peaks
    #[arg(long, value_name = "TIMES", default_value_t = 2.0)]
    pub(crate) cpu_overcommit: f64,
    /// Print the sizes for 3, 6 and 10 previews, and how many fit on which VM, by the formula alone
    #[arg(long, conflicts_with_all = ["vcpus", "memory", "disk"])]
    pub(crate) table: bool,
    /// A Compose file, relative to the project directory; may be repeated, later ones override
    #[arg(long, value_name = "FILE")]
    pub(crate) compose: Vec<String>,
    /// A file with variables for interpolation; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<String>,
    /// An active profile; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Vec<String>,
    /// A service that is left out; may be repeated
    #[arg(long, value_name = "SERVICE")]
    pub(crate) exclude: Vec<String>,
}

impl Capacity {
    /// Whether a VM is described that need not exist.
    pub(crate) const fn of_no_vm(&self) -> bool {
        self.vcpus.is_some() || self.memory.is_some() || self.disk.is_some()
    }

    /// The part of it that a deploy has too.
    pub(crate) fn deploy(&self) -> Deploy {
        Deploy {
            subject: Subject::default(),
            commit: None,
            owner: None,
            event_time: None,
            update_only: false,
            compose: self.compose.clone(),
            env_file: self.env_file.clone(),
            profile: self.profile.clone(),
            exclude: self.exclude.clone(),
            url: vec![],
            pull: None,
        }
    }
}

/// Which preview.
#[derive(Args, Clone, Debug, Default)]
#[group(required = true, multiple = false)]
pub(crate) struct Subject {
    /// The preview of this pull or merge request
    #[arg(long, value_name = "N")]
    pub(crate) pr: Option<u64>,
    /// The preview of this branch
    #[arg(long, value_name = "BRANCH")]
    pub(crate) branch: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Deploy {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// The commit, for reports
    #[arg(long, value_name = "SHA")]
    pub(crate) commit: Option<String>,
    /// Who asks for the preview
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: Option<String>,
    /// When the event happened that this is for (RFC 3339): what happened earlier never overwrites what happened later. Known by
    /// itself in GitHub Actions and GitLab CI
    #[arg(long, value_name = "TIME")]
    pub(crate) event_time: Option<String>,
    /// Do nothing unless the preview exists
    #[arg(long)]
    pub(crate) update_only: bool,
    /// A Compose file, relative to the project directory; may be repeated, later ones override
    #[arg(long, value_name = "FILE")]
    pub(crate) compose: Vec<String>,
    /// A file with variables for interpolation; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<String>,
    /// An active profile; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Vec<String>,
    /// A service that is left out; may be repeated
    #[arg(long, value_name = "SERVICE")]
    pub(crate) exclude: Vec<String>,
    /// The public address: `https://{name}.example.com`; may be repeated
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) url: Vec<String>,
    /// When to pull images: `missing` or `always`
    #[arg(long, value_name = "WHEN")]
    pub(crate) pull: Option<String>,
}

/// Which preview, by what it is of or by its name.
#[derive(Args, Clone, Debug, Default)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// The preview of this pull or merge request
    #[arg(long, value_name = "N")]
    pub(crate) pr: Option<u64>,
    /// The preview of this branch
    #[arg(long, value_name = "BRANCH")]
    pub(crate) branch: Option<String>,
    /// The preview of this name, as `preview list` shows it
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}
