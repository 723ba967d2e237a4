//! What a machine is to become: defaults, and what is wrong with a wish.

use std::collections::BTreeSet;

use super::proxy::ProxyWish;
use crate::engine::pools::Subnet;
use crate::secret::Secret;

/// Where a Docker Engine comes from on a machine that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DockerSource {
    /// The distribution's own package: its security updates come with those of the system.
    #[default]
    Distribution,
    /// Docker's own repository, its key pinned.
    DockerCe,
}

impl DockerSource {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Distribution => "docker.io",
            Self::DockerCe => "docker-ce",
        }
    }
}

/// Addresses from which the engine takes those of new networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// All of them, in CIDR form.
    pub base: String,
    /// Length of the prefix of one network.
    pub size: u8,
}

/// Reads the addresses of the proxy's network: `10.200.0.0/20`.
///
/// # Errors
/// If it is none, or has room for hardly any container.
pub fn proxy_subnet(text: &str) -> Result<Subnet, String> {
    let wrong = || format!("`{text}` is no network such as `10.200.0.0/20`, of /26 or larger");
    Subnet::parse(text).filter(|subnet| (8..=26).contains(&subnet.prefix())).ok_or_else(wrong)
}

/// To whom a machine tells how it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alerts {
    /// Takes `{"text": …}` by POST.
    pub webhook: Option<Secret<String>>,
    /// Is asked for once a minute; who misses that, knows.
    pub uptime: Option<Secret<String>>,
}

/// What is wanted of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The user that runs deploy.
    pub user: String,
    /// Public keys that may log in as that user: lines of a `.pub` file.
    pub deploy_keys: Vec<String>,
    /// The directory of previews.
    pub base_dir: String,
    /// Where the engine comes from.
    pub docker: DockerSource,
    /// Addresses for the previews' networks.
    pub pool: Pool,
    /// Size of one log file of a container, as Docker writes it.
    pub log_size: String,
    /// How many of them.
    pub log_files: u32,
    /// Size of the swap file in MiB.
    pub swap_mib: u32,
    /// Ports that are open beside those of sshd.
    pub ports: BTreeSet<u16>,
    /// Whether sshd is to refuse passwords.
    pub refuse_passwords: bool,
    /// Whom to tell.
    pub alerts: Alerts,
    /// Whether security updates are installed by themselves.
    pub security_updates: bool,
    /// The reverse proxy.
    pub proxy: Option<ProxyWish>,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            user: "deploy".to_owned(),
            deploy_keys: Vec::new(),
            base_dir: crate::config::BASE_DIR.to_owned(),
            docker: DockerSource::default(),
            // 1024 networks; Docker's own pools have room for about 31.
            pool: Pool { base: "10.201.0.0/16".to_owned(), size: 26 },
            log_size: "10m".to_owned(),
            log_files: 3,
            swap_mib: 4096,
            ports: BTreeSet::from([80, 443]),
            refuse_passwords: false,
            alerts: Alerts::default(),
            security_updates: false,
            proxy: None,
        }
    }
}

impl Wish {
    /// What is wrong with it.
    ///
    /// # Errors
    /// The first thing found, in one sentence.
    pub fn check(&self) -> Result<(), String> {
        let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        let begins = self.user.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        if !begins || !self.user.chars().all(name) || self.user.len() > 32 || self.user == "root" {
            return Err(format!(
                "`{}` is no name for the deploy user: lower-case letters, digits, `_` and `-`, and not root",
                self.user
            ));
        }
        for key in &self.deploy_keys {
            public_key(key)?;
        }
        let mut parts = self.base_dir.strip_prefix('/').unwrap_or_default().split('/');
        if !parts.all(|part| !matches!(part, "" | "." | "..") && !part.contains(char::is_control)) {
            return Err(format!("the base directory `{}` is not a plain absolute path", self.base_dir));
        }
        for url in [&self.alerts.webhook, &self.alerts.uptime].into_iter().flatten() {
            let url = url.expose();
            if !url.starts_with("https://") && !url.starts_with("http://")
                || url.contains(|c: char| c.is_control() || c == ' ')
            {
                return Err("the address of the webhook or the uptime monitor is no http(s) address".to_owned());
            }
        }
        self.proxy.as_ref().map_or(Ok(()), ProxyWish::check)
    }
}

/// Type and key of a line of a `.pub` file, without its comment.
///
/// # Errors
/// If it is anything else.
pub(super) fn public_key(line: &str) -> Result<String, String> {
    if line.contains("PRIVATE KEY") {
        return Err("the deploy key is a private key: give the file that ends in `.pub`".to_owned());
    }
    let mut words = line.split_whitespace();
    let (kind, key) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let known = ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| kind.starts_with(prefix));
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    if line.trim().contains('\n')
        || !known
        || key.len() < 40
        || !key.chars().all(base64)
        || !kind.chars().all(|c| c.is_ascii_graphic())
    {
        return Err(format!("not a public key as in a `.pub` file: {:?}", line.chars().take(40).collect::<String>()));
    }
    Ok(format!("{kind} {key}"))
}
