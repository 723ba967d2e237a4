//! The CLI in a sandbox, where the kernel has one: it reads programs, its own configuration and the files that are meant for it, and writes to a directory
//! of its own. Files of the machine that deploys, and the memory and environment of its processes, are closed to it.
//!
//! Landlock restricts a thread, and what that thread starts has its restrictions. So a thread is made for each run.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use tokio::process::{Child, Command};

/// What the sandbox knows of the kernel; older kernels do what they can of it.
const KNOWN: ABI = ABI::V6;

/// What programs and their libraries need, and the network's configuration and certificates.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt/homebrew",
    "/home/linuxbrew/.linuxbrew",
    "/nix/store",
    "/run/current-system",
    "/snap",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/docker/certs.d",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/static",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys",
    "/proc/version",
    "/sys/kernel/mm",
    "/sys/devices/system/cpu",
];

/// Devices that hold nothing.
const DEVICES: &[&str] =
    &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx"];

/// What a run of the CLI may read and write.
#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
}

impl Sandbox {
    /// For a program that is looked up in `path`, with the CLI's configuration directory.
    pub(super) fn new(program: &Path, path: &OsStr, configuration: Option<&Path>) -> Self {
        let mut read: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
        for directory in
            std::env::split_paths(path).filter(|directory| directory.is_absolute() && directory.parent().is_some())
        {
            read.extend(behind_link(&directory.join(program)));
            read.push(directory);
        }
        read.extend(behind_link(program));
        if let Some(configuration) = configuration {
            read.extend(of_configuration(configuration));
        }
        Self { read, write: DEVICES.iter().map(PathBuf::from).collect() }
    }

    /// The same, and these paths to read.
    pub(super) fn reading(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        self.read.extend(paths);
        self
    }

    /// The same, and this path to read and write.
    pub(super) fn writing(mut self, path: &Path) -> Self {
        self.write.push(path.to_owned());
        self
    }

    /// Starts a command inside. Where the kernel has no Landlock, or somebody forbids to use it, the command starts outside.
    ///
    /// # Errors
    /// The command does not start.
    pub(super) fn spawn(self, mut command: Command) -> io::Result<Child> {
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new().name("sandbox".to_owned()).spawn(move || {
            let _ = self.enter();
            let _guard = runtime.enter();
            command.spawn()
        })?;
        thread.join().map_err(|_| io::Error::other("the thread that starts it died"))?
    }

    /// Restricts this thread for good.
    fn enter(&self) -> Result<RulesetStatus, RulesetError> {
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .scope(Scope::from_all(KNOWN))?
            .create()?
            .add_rules(path_beneath_rules(&self.read, AccessFs::from_read(KNOWN)))?
            .add_rules(path_beneath_rules(&self.write, AccessFs::from_all(KNOWN)))?
            .restrict_self()?;
        Ok(status.ruleset)
    }
}

/// Whether this kernel has what the sandbox is made of, and lets us use it.
pub(crate) fn available() -> bool {
    let tried = std::thread::spawn(|| Sandbox { read: vec!["/".into()], write: vec![] }.enter()).join();
    matches!(tried, Ok(Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced)))
}

/// Where a link leads, and the directory around it: programs look for what belongs to them beside themselves.
fn behind_link(path: &Path) -> Option<PathBuf> {
    path.symlink_metadata().ok().filter(|metadata| metadata.is_symlink())?;
    Some(std::fs::canonicalize(path).ok()?.parent()?.to_owned())
}

/// The CLI's configuration, its plugins, and what the helpers need that keep its passwords.
fn of_configuration(directory: &Path) -> Vec<PathBuf> {
    let file = directory.join("config.json");
    let plugins = std::fs::read_dir(directory.join("cli-plugins")).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = plugins.filter_map(|entry| behind_link(&entry.path())).collect();
    found.extend([directory.to_owned(), file.clone()]);
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let settings: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let extra = settings.get("cliPluginsExtraDirs").and_then(serde_json::Value::as_array).into_iter().flatten();
    found.extend(extra.filter_map(|directory| directory.as_str().map(PathBuf::from)));
    let helper = |key: &str| settings.get(key).is_some_and(|value| value != "" && value != &serde_json::json!({}));
    if helper("credsStore") || helper("credHelpers") {
        // A helper has its own files there, wherever it likes.
        found.extend(std::env::home_dir());
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[tokio::test]
    async fn only_what_is_meant_for_it_can_be_read_and_written() {
        let directory = tempfile::tempdir().unwrap();
        let [open, closed, own] = ["open", "closed", "own"].map(|name| directory.path().join(name));
        for path in [&open, &closed, &own] {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("file"), "text").unwrap();
        }
        let path = std::env::var_os("PATH").unwrap();
        let try_it = async |script: String| {
            let sandbox = Sandbox::new(Path::new("sh"), &path, None).reading([open.clone()]).writing(&own);
            let mut command = Command::new("sh");
            command.args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::null());
            sandbox.spawn(command).unwrap().wait().await.unwrap().success()
        };
        let without = !available();
        for (script, works) in [
            (format!("cat {}/file > /dev/null", open.display()), true),
            (format!("cat {0}/file && echo x > {0}/new", own.display()), true),
            (format!("echo x > {}/new", open.display()), without),
            (format!("cat {}/file", closed.display()), without),
            (format!("ls {}", directory.path().display()), without),
            ("cat /proc/$PPID/environ".to_owned(), without),
            ("cat /etc/fstab || cat /etc/machine-id || ls /etc".to_owned(), without),
            // A program that is started has the same restrictions.
            (format!("env sh -c 'cat {}/file'", closed.display()), without),
        ] {
            assert_eq!(try_it(script.clone()).await, works, "{script}");
        }
        // This thread and this process are as free as before.
        assert!(std::fs::read(closed.join("file")).is_ok());
    }

    #[test]
    fn helpers_of_passwords_and_plugins_elsewhere_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(directory.path().join("config.json"), text).unwrap();
        let has = |path: &Path| of_configuration(directory.path()).iter().any(|found| found == path);
        let home = std::env::home_dir().unwrap();
        write(r#"{"auths": {}, "credsStore": "", "cliPluginsExtraDirs": ["/opt/plugins"]}"#);
        assert!(has(Path::new("/opt/plugins")) && has(directory.path()) && !has(&home));
        write(r#"{"credHelpers": {"registry.example.com": "pass"}}"#);
        assert!(has(&home));
        std::fs::create_dir(directory.path().join("cli-plugins")).unwrap();
        std::os::unix::fs::symlink("/usr/bin/env", directory.path().join("cli-plugins/docker-compose")).unwrap();
        assert!(has(&std::fs::canonicalize("/usr/bin").unwrap()));
    }
}
