//! The steps, in their order: what each writes, and which script it runs. Pure.

use std::time::Duration;

use super::{DockerSource, Facts, File, PROXY_DIR, Step, Wish, daemon, proxy, wish};

/// Names of all steps, in their order.
pub const IDS: [&str; 12] = [
    "docker-config",
    "docker",
    "user",
    "directories",
    "sshd",
    "firewall",
    "swap",
    "node-exporter",
    "alerts",
    "updates",
    "proxy",
    "certificate",
];

const MINUTE: Duration = Duration::from_secs(60);
const FIREWALL: &str = "/usr/local/lib/preview/firewall";
const ALERTS: &str = "/usr/local/lib/preview/alerts";

/// The steps from a machine with these facts to what is wished for.
///
/// # Errors
/// If a file of the machine is broken, or the wish is; the message says which.
pub fn steps(wish: &Wish, facts: &Facts) -> Result<Vec<Step>, String> {
    wish.check()?;
    let mut steps =
        vec![docker_config(wish, facts)?, docker(wish), user(wish)?, directories(wish), sshd(wish), firewall(wish)];
    steps.extend([swap(wish), node_exporter(wish)]);
    steps.extend(alerts(wish));
    if wish.security_updates {
        steps.push(updates());
    }
    if let Some(wish) = &wish.proxy {
        steps.push(proxy::step(wish, facts)?);
        steps.extend(proxy::certificate_step(wish));
    }
    debug_assert!(steps.iter().all(|step| IDS.contains(&step.id)));
    Ok(steps)
}

fn step(id: &'static str, title: impl Into<String>, why: &'static str, script: &'static str) -> Step {
    Step {
        id,
        title: title.into(),
        why,
        files: Vec::new(),
        arguments: Vec::new(),
        script,
        guarded: false,
        limit: 5 * MINUTE,
    }
}

/// Before the engine itself, so that a new one starts with them.
fn docker_config(wish: &Wish, facts: &Facts) -> Result<Step, String> {
    let daemon = daemon::merge(facts.daemon.as_deref(), facts.swarm, wish)?;
    let before = facts.daemon.as_deref().map_or_else(|| "absent".to_owned(), super::sha256);
    let mut step = step(
        "docker-config",
        "the engine's settings: logs with an end, addresses for many networks",
        "logs fill a disk, and Docker's own address pools end after about 31 previews",
        include_str!("scripts/docker-config.sh"),
    );
    step.arguments = vec![before, daemon.content, daemon.driver, daemon.pools];
    Ok(step)
}

fn docker(wish: &Wish) -> Step {
    let from = match wish.docker {
        DockerSource::Distribution => "from the distribution",
        DockerSource::DockerCe => "from Docker's repository",
    };
    let mut step = step(
        "docker",
        format!("Docker Engine, the one that is there or {from}"),
        "it runs the previews; Compose stays on the runner",
        include_str!("scripts/docker.sh"),
    );
    step.arguments = vec![wish.docker.word().to_owned()];
    step.limit = 15 * MINUTE;
    step
}

fn user(wish: &Wish) -> Result<Step, String> {
    let mut step = step(
        "user",
        format!("the user {} with its keys", wish.user),
        "runs log in as this user, who may use Docker; that makes it as mighty as root, so its key is to be kept like root's",
        include_str!("scripts/user.sh"),
    );
    step.arguments = vec![wish.user.clone()];
    for key in &wish.deploy_keys {
        step.arguments.push(wish::public_key(key)?);
    }
    Ok(step)
}

fn directories(wish: &Wish) -> Step {
    let mut step = step(
        "directories",
        format!("{} and {PROXY_DIR}", wish.base_dir),
        "previews keep their state and files in the one, the proxy its configuration in the other",
        include_str!("scripts/directories.sh"),
    );
    step.arguments = vec![wish.user.clone(), wish.base_dir.clone(), PROXY_DIR.to_owned()];
    step
}

fn swap(wish: &Wish) -> Step {
    let mut step = step(
        "swap",
        "swap for emergencies",
        "a preview that starts needs more memory than one that runs; with swappiness 1 nothing is swapped without need",
        include_str!("scripts/swap.sh"),
    );
    step.arguments = vec![wish.swap_mib.to_string(), "1".to_owned()];
    step.files =
        vec![File::new("/etc/sysctl.d/60-preview.conf", 0o644, "# Swap is for emergencies.\nvm.swappiness = 1\n")];
    step.limit = 10 * MINUTE;
    step
}

fn sshd(wish: &Wish) -> Step {
    let mut step = step(
        "sshd",
        if wish.refuse_passwords { "sshd: room for many runs, no passwords" } else { "sshd: room for many runs" },
        "a run is one connection with a few sessions, and many runs may begin at once; by default sshd drops some",
        include_str!("scripts/sshd.sh"),
    );
    let mut text = "# Many runs of preview may log in at once.\nMaxSessions 64\nMaxStartups 100:30:200\n".to_owned();
    if wish.refuse_passwords {
        text.push_str("PasswordAuthentication no\nKbdInteractiveAuthentication no\n");
    }
    step.arguments = vec![if wish.refuse_passwords { "keys" } else { "any" }.to_owned()];
    // The first value that sshd finds counts.
    step.files = vec![File::new("/etc/ssh/sshd_config.d/00-preview.conf", 0o644, text)];
    step.guarded = true;
    step
}

fn firewall(wish: &Wish) -> Step {
    let ports: Vec<String> = wish.ports.iter().map(u16::to_string).collect();
    let mut step = step(
        "firewall",
        format!("firewall: sshd and {} only", ports.join(", ")),
        "ports that Docker publishes are open to the world otherwise, whatever ufw says; containers and the engine are kept from the cloud's metadata",
        include_str!("scripts/firewall.sh"),
    );
    step.files = vec![
        File::new(FIREWALL, 0o755, include_str!("files/firewall")),
        File::new("/etc/preview/firewall.conf", 0o644, ports.join("\n")),
        File::new(
            "/etc/systemd/system/preview-firewall.service",
            0o644,
            include_str!("files/preview-firewall.service"),
        ),
        File::new(
            "/etc/systemd/system/ssh.service.d/preview-firewall.conf",
            0o644,
            include_str!("files/ssh-firewall.conf"),
        ),
        File::new(
            "/etc/systemd/system/ssh.socket.d/preview-firewall.conf",
            0o644,
            include_str!("files/ssh-socket-firewall.conf"),
        ),
        File::new(
            "/etc/systemd/system/docker.service.d/preview-firewall.conf",
            0o644,
            include_str!("files/docker-firewall.conf"),
        ),
    ];
    step.arguments = ports;
    step.guarded = true;
    step.limit = 10 * MINUTE;
    step
}

fn node_exporter(wish: &Wish) -> Step {
    let mut step = step(
        "node-exporter",
        "node-exporter on 127.0.0.1:9100",
        "the machine in numbers for Prometheus, with those that runs write (`[metrics] file`) beside them",
        include_str!("scripts/node-exporter.sh"),
    );
    step.arguments = vec![wish.user.clone()];
    step.limit = 10 * MINUTE;
    step
}

fn alerts(wish: &Wish) -> Option<Step> {
    let alerts = &wish.alerts;
    let told = match (&alerts.webhook, &alerts.uptime) {
        (None, None) => return None,
        (Some(_), None) => "alerts to a chat",
        (None, Some(_)) => "a ping for an uptime monitor",
        (Some(_), Some(_)) => "alerts to a chat, a ping for an uptime monitor",
    };
    let mut step = step(
        "alerts",
        format!("{told}, once a minute"),
        "a disk of 80 and 90 %, memory below 512 MB, a load above the number of processors are told before they hurt",
        include_str!("scripts/alerts.sh"),
    );
    let line = |key: &str, url: &Option<crate::secret::Secret<String>>| {
        url.as_ref().map(|url| format!("{key}={}\n", url.expose())).unwrap_or_default()
    };
    let conf = line("webhook", &alerts.webhook) + &line("uptime", &alerts.uptime);
    step.files = vec![
        File::new(ALERTS, 0o755, include_str!("files/alerts")),
        File::secret("/etc/preview/alerts.conf", conf),
        File::new("/etc/systemd/system/preview-alerts.service", 0o644, include_str!("files/preview-alerts.service")),
        File::new("/etc/systemd/system/preview-alerts.timer", 0o644, include_str!("files/preview-alerts.timer")),
    ];
    Some(step)
}

fn updates() -> Step {
    let mut step = step(
        "updates",
        "security updates by themselves",
        "a machine that nobody logs in to is a machine that nobody updates",
        include_str!("scripts/updates.sh"),
    );
    step.files = vec![File::new(
        "/etc/apt/apt.conf.d/60preview-updates",
        0o644,
        "APT::Periodic::Update-Package-Lists \"1\";\nAPT::Periodic::Unattended-Upgrade \"1\";\n",
    )];
    step.limit = 10 * MINUTE;
    step
}
