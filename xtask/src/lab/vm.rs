//! A VM that is a container: started, cut off, killed and restarted by tests, and gone when its value is dropped.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::vm_host::{free_port, lives, load, owner, privileged};
use super::{LABEL, Lab, vm_image};
use crate::sh;

const READY_WITHIN: Duration = Duration::from_secs(60);
/// What `--privileged` would give, on hosts that refuse that.
const CAPABLE: [&str; 15] = [
    "--cap-add",
    "ALL",
    "--cap-drop",
    "SYS_RESOURCE",
    "--security-opt",
    "seccomp=unconfined",
    "--security-opt",
    "apparmor=unconfined",
    "--security-opt",
    "systempaths=unconfined",
    "--cgroupns",
    "host",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--device-cgroup-rule",
    "a *:* rwm",
];

/// The Docker engine that runs inside a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmEngine {
    /// None: a server as a provider hands it out, where `root` logs in. Never shared.
    None,
    /// Debian 12's: 20.10.
    V20,
    /// Debian's newest: 28.
    V28,
    /// Docker's newest: 29, which keeps its images in containerd's store. It needs `go`: see [`Lab::has_engine_29`].
    V29,
}

impl VmEngine {
    pub(super) const ALL: [Self; 4] = [Self::None, Self::V20, Self::V28, Self::V29];

    pub(super) fn image(self) -> &'static str {
        match self {
            Self::None => "preview-lab/bare",
            Self::V20 => "preview-lab/vm:20.10",
            Self::V28 => "preview-lab/vm:28",
            Self::V29 => "preview-lab/vm:29",
        }
    }

    pub(super) fn target(self) -> &'static str {
        match self {
            Self::None => "bare",
            Self::V20 => "v20",
            Self::V28 => "v28",
            Self::V29 => "v29",
        }
    }
}

/// What may differ from one VM to another.
#[derive(Debug, Clone, Default)]
pub struct VmOptions {
    /// The size of the engine's disk, such as `"200m"`, to fill it: held in memory, and empty again after a
    /// restart. Otherwise the disk is a volume of the host's engine.
    pub data_size: Option<String>,
    /// The memory that the VM and all of its containers have together, such as `"1g"`.
    pub memory: Option<String>,
    /// Public keys that may log in as `deploy`, beside the lab's own.
    pub authorized_keys: Vec<String>,
}

/// A VM: `sshd` on a port of 127.0.0.1, and a Docker engine of its own. Removed when dropped.
#[derive(Debug)]
pub struct Vm {
    lab: Lab,
    name: String,
    engine: VmEngine,
    port: u16,
    host_key: String,
    dir: PathBuf,
    keep: bool,
    /// Locked, shared, while this process uses a shared VM: nobody removes it meanwhile.
    _in_use: Option<File>,
}

impl Vm {
    /// Starts a VM and waits until a login finds its engine ready (60 s at most).
    ///
    /// # Errors
    /// When it does not start or does not become ready; the end of its logs is in the message.
    pub fn start(lab: &Lab, engine: VmEngine, options: &VmOptions) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("preview-lab-vm-{}-{number}", std::process::id());
        Self::create(lab, engine, options, name, Some(owner()), false)
    }

    /// The VM that all tests of an engine may use together, started by the first that asks.
    ///
    /// It outlives the process, so that the next run finds it ready; `cargo xtask test` and `cargo xtask lab down`
    /// remove it. What a test puts into it, the test removes, and it neither fills nor stops it.
    ///
    /// # Errors
    /// Those of [`Vm::start`].
    pub fn shared(lab: &Lab, engine: VmEngine) -> Result<Self> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _here = ONE_AT_A_TIME.lock();
        let lock = File::create(lab.dir.join(format!("lock-{}", engine.target())))?;
        lock.lock()?;
        let name = shared_name(lab, engine);
        let in_use = File::create(use_file(lab, engine))?;
        in_use.lock_shared()?;
        let mut vm = match Self::attach(lab, &name, engine) {
            Some(vm) => vm,
            None => {
                // One that does not answer, or is of an older image: to be replaced, but not under somebody's feet.
                in_use.unlock()?;
                if in_use.try_lock().is_err() {
                    bail!("{name} is not as wanted, and another process uses it: wait for that, and try again");
                }
                remove(lab, &name);
                Self::create(lab, engine, &VmOptions::default(), name, None, true)?
            }
        };
        in_use.lock_shared()?;
        vm._in_use = Some(in_use);
        Ok(vm)
    }

    /// The container's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port of 127.0.0.1 on which `sshd` listens; the same for the VM's whole life.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `ssh://deploy@127.0.0.1:PORT`, or `root` where nobody set the machine up.
    #[must_use]
    pub fn ssh_url(&self) -> String {
        self.ssh_url_of(if self.engine == VmEngine::None { "root" } else { "deploy" })
    }

    /// `ssh://USER@127.0.0.1:PORT`
    #[must_use]
    pub fn ssh_url_of(&self, user: &str) -> String {
        format!("ssh://{user}@127.0.0.1:{}", self.port)
    }

    /// The public key that belongs to [`Vm::identity_file`].
    #[must_use]
    pub fn public_key_file(&self) -> PathBuf {
        self.identity_file().with_extension("pub")
    }

    /// The private key that opens the VM.
    #[must_use]
    pub fn identity_file(&self) -> PathBuf {
        vm_image::key_file(&self.lab)
    }

    /// The line of a `known_hosts` file that pins this VM's key.
    #[must_use]
    pub fn known_hosts(&self) -> String {
        format!("[127.0.0.1]:{} {}\n", self.port, self.host_key)
    }

    /// A file with [`Vm::known_hosts`] in it.
    #[must_use]
    pub fn known_hosts_file(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }

    /// An `ssh` command to the VM as `deploy`, strict about its key; the caller adds the remote command.
    #[must_use]
    pub fn ssh(&self) -> Command {
        let mut ssh = sh::cmd("ssh", ["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]);
        ssh.args(["-o", "IdentitiesOnly=yes", "-o", "GlobalKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10"])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.known_hosts_file().display()))
            .arg("-i")
            .arg(self.identity_file())
            .arg(self.ssh_url());
        ssh
    }

    /// A program in the VM as root, not through SSH, to be started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.lab.docker(["exec", self.name.as_str()]);
        command.args(args);
        command
    }

    /// The same, with an input that the caller provides.
    #[must_use]
    pub fn command_with_input(&self, args: &[&str]) -> Command {
        let mut command = self.lab.docker(["exec", "-i", self.name.as_str()]);
        command.args(args);
        command
    }

    /// Runs a program in the VM as root, not through SSH.
    ///
    /// # Errors
    /// When the container is not there; a failing program is no error.
    pub fn exec(&self, args: &[&str]) -> Result<Output> {
        self.command(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {args:?} in {}", self.name))
    }

    /// Runs a program in the VM as root, and returns its trimmed standard output.
    ///
    /// # Errors
    /// When it fails; its standard error is in the message.
    pub fn text(&self, args: &[&str]) -> Result<String> {
        sh::text(&mut self.command(args))
    }

    /// Copies images of the host's engine into the VM's. Each is saved once, and kept in `target/lab/images`.
    ///
    /// # Errors
    /// When the host has no such image, or the VM has no room for it.
    pub fn load_image(&self, images: &[&str]) -> Result<()> {
        load(&self.lab, &self.name, images)
    }

    /// Kills the VM's `dockerd` (SIGKILL); nothing starts it again.
    ///
    /// # Errors
    /// When none is running.
    pub fn kill_dockerd(&self) -> Result<()> {
        self.text(&["pkill", "-KILL", "-x", "dockerd"])?;
        sh::wait_until("dockerd's end", READY_WITHIN, || self.text(&["pgrep", "-x", "dockerd"]).is_err())
    }

    /// Starts the VM's `dockerd` again, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_dockerd(&self) -> Result<()> {
        self.text(&["lab-dockerd"])?;
        sh::wait_until("the VM's engine", READY_WITHIN, || self.text(&["docker", "version"]).is_ok())
            .with_context(|| self.logs())
    }

    /// Reboots the VM in an orderly way, and waits until it is ready. Containers come back as their restart policy says.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart(&self) -> Result<()> {
        sh::text(&mut self.lab.docker(["restart", "-t", "15", &self.name]))?;
        self.wait_ready()
    }

    /// Switches the VM off as a power cut does.
    ///
    /// # Errors
    /// When it is not running.
    pub fn power_off(&self) -> Result<()> {
        sh::text(&mut self.lab.docker(["kill", self.name.as_str()])).map(drop)
    }

    /// Switches the VM on, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn power_on(&self) -> Result<()> {
        sh::text(&mut self.lab.docker(["start", self.name.as_str()]))?;
        self.wait_ready()
    }

    /// From now on the VM answers no SSH packet: connections hang, as they do when a link drops.
    ///
    /// # Errors
    /// When the VM is not running.
    pub fn cut_off(&self) -> Result<()> {
        for chain in [["INPUT", "--dport"], ["OUTPUT", "--sport"]] {
            self.text(&["iptables", "-I", chain[0], "-p", "tcp", chain[1], "22", "-j", "DROP"])?;
        }
        Ok(())
    }

    /// Undoes [`Vm::cut_off`].
    ///
    /// # Errors
    /// When the VM was not cut off.
    pub fn reconnect(&self) -> Result<()> {
        for chain in [["INPUT", "--dport"], ["OUTPUT", "--sport"]] {
            self.text(&["iptables", "-D", chain[0], "-p", "tcp", chain[1], "22", "-j", "DROP"])?;
        }
        Ok(())
    }

    /// What the VM's `sshd` wrote (at level VERBOSE: every login, with its key).
    ///
    /// # Errors
    /// When the VM is not running.
    pub fn sshd_log(&self) -> Result<String> {
        self.text(&["cat", "/var/log/sshd.log"])
    }

    /// What the VM's `dockerd` wrote.
    ///
    /// # Errors
    /// When the VM is not running.
    pub fn dockerd_log(&self) -> Result<String> {
        self.text(&["cat", "/var/log/dockerd.log"])
    }

    /// Removes the VM, its disk too, even a shared one.
    pub fn stop(mut self) {
        self.keep = false;
    }

    fn create(
        lab: &Lab,
        engine: VmEngine,
        options: &VmOptions,
        name: String,
        owner: Option<String>,
        keep: bool,
    ) -> Result<Self> {
        let public = fs::read_to_string(vm_image::key_file(lab).with_extension("pub"))
            .context("no key for the VMs: run `cargo xtask lab up`")?;
        if engine == VmEngine::V29 {
            vm_image::ensure_29(lab)?;
        }
        let mut keys = vec![public.trim().to_owned()];
        keys.extend(options.authorized_keys.iter().cloned());

        let mut run = lab.docker(["run", "-d", "--name", &name, "--hostname", &name]);
        run.args(["--label", &format!("{LABEL}=1"), "--label", &format!("{LABEL}.vm={}", engine.target())]);
        if let Some(owner) = owner {
            run.args(["--label", &format!("{LABEL}.owner={owner}")]);
        }
        if let Some(size) = &options.data_size {
            run.args(["--tmpfs", &format!("/var/lib/docker:rw,exec,suid,dev,size={size}")]);
        }
        if let Some(memory) = &options.memory {
            run.args(["--memory", memory]);
        }
        run.env("AUTHORIZED_KEYS", keys.join("\n")).args(["-e", "AUTHORIZED_KEYS"]);
        if privileged(lab)? {
            run.arg("--privileged");
        } else {
            run.args(CAPABLE);
        }
        let port = free_port()?;
        run.args(["-p", &format!("127.0.0.1:{port}:22"), engine.image()]);
        let dir = lab.dir.join("vms").join(&name);
        fs::create_dir_all(&dir)?;
        // From here on the drop removes what there is, whatever fails.
        let mut vm =
            Self { lab: lab.clone(), name, engine, port, host_key: String::new(), dir, keep: false, _in_use: None };
        sh::text(&mut run).context("cannot start a VM")?;
        vm.read_host_key()?;
        vm.wait_ready()?;
        vm.keep = keep;
        Ok(vm)
    }

    /// A VM that another process started, if it becomes ready and is made from the image that would be used now.
    ///
    /// One look would not do: on a busy machine `sshd` may take longer than a login waits, and that is no reason to
    /// take a VM from those who use it.
    fn attach(lab: &Lab, name: &str, engine: VmEngine) -> Option<Self> {
        let format = "{{.Image}} {{(index (index .HostConfig.PortBindings \"22/tcp\") 0).HostPort}}";
        let found = sh::text(&mut lab.docker(["inspect", "--format", format, name])).ok()?;
        let (image, port) = found.split_once(' ')?;
        if engine == VmEngine::V29 {
            vm_image::ensure_29(lab).ok()?;
        }
        let wanted = sh::text(&mut lab.docker(["image", "inspect", "--format", "{{.Id}}", engine.image()])).ok()?;
        if image != wanted {
            return None;
        }
        let mut vm = Self {
            lab: lab.clone(),
            name: name.to_owned(),
            engine,
            port: port.parse().ok()?,
            host_key: String::new(),
            dir: lab.dir.join("vms").join(name),
            keep: true,
            _in_use: None,
        };
        fs::create_dir_all(&vm.dir).ok()?;
        vm.read_host_key().ok()?;
        vm.wait_ready().is_ok().then_some(vm)
    }

    fn read_host_key(&mut self) -> Result<()> {
        let file = "/etc/ssh/ssh_host_ed25519_key.pub";
        sh::wait_until("the VM's host key", READY_WITHIN, || self.text(&["test", "-s", file]).is_ok())
            .with_context(|| self.logs())?;
        let key = self.text(&["cat", file])?;
        self.host_key = key.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        fs::write(self.known_hosts_file(), self.known_hosts())?;
        Ok(())
    }

    fn wait_ready(&self) -> Result<()> {
        let ready: &[&str] = if self.engine == VmEngine::None { &["true"] } else { &["docker", "version"] };
        sh::wait_until("the VM", READY_WITHIN, || sh::succeeds(self.ssh().args(ready))).with_context(|| self.logs())
    }

    fn logs(&self) -> String {
        let said = self.lab.docker(["logs", "--tail", "20", self.name.as_str()]).output();
        let said = said.map(|out| String::from_utf8_lossy(&out.stderr).into_owned()).unwrap_or_default();
        let dockerd = self.dockerd_log().unwrap_or_default();
        format!("{}: {}\n{}", self.name, said.trim(), sh::tail(&dockerd, 15))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.lab, &self.name);
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Removes the shared VMs that no process uses; returns the names of the others.
pub(super) fn remove_shared(lab: &Lab) -> Result<Vec<String>> {
    let mut in_use = Vec::new();
    for engine in [VmEngine::V20, VmEngine::V28, VmEngine::V29] {
        let name = shared_name(lab, engine);
        let lock = File::create(use_file(lab, engine))?;
        if lock.try_lock().is_err() {
            in_use.push(name);
            continue;
        }
        // An engine of 20.10 and later takes the removal of what is not there as done.
        sh::text(&mut lab.docker(["rm", "-f", "-v", &name]))?;
        let _ = fs::remove_dir_all(lab.dir.join("vms").join(name));
    }
    Ok(in_use)
}

fn use_file(lab: &Lab, engine: VmEngine) -> PathBuf {
    lab.dir.join(format!("in-use-{}", engine.target()))
}

/// Each copy of the repository has shared VMs of its own: its key opens them, and its runs end them.
fn shared_name(lab: &Lab, engine: VmEngine) -> String {
    let mut hasher = DefaultHasher::new();
    lab.dir.hash(&mut hasher);
    format!("preview-lab-shared-{}-{:08x}", engine.target(), hasher.finish() >> 32)
}

/// Removes the VMs whose process has ended.
pub(super) fn sweep(lab: &Lab) -> Result<Vec<String>> {
    let label = format!("{LABEL}.owner");
    let format = format!("{{{{.Names}}}} {{{{.Label \"{label}\"}}}}");
    let list = sh::text(&mut lab.docker(["ps", "-a", "--filter", &format!("label={label}"), "--format", &format]))?;
    let left: Vec<String> = list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, owner)| !lives(owner))
        .map(|(name, _)| name.to_owned())
        .collect();
    for name in &left {
        remove(lab, name);
        let _ = fs::remove_dir_all(lab.dir.join("vms").join(name));
    }
    Ok(left)
}

fn remove(lab: &Lab, name: &str) {
    // In a drop there is nobody to tell; `cargo xtask test` finds what stayed.
    let _ = sh::succeeds(&mut lab.docker(["rm", "-f", "-v", name]));
}
