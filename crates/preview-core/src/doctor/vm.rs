//! Judges what the VM has. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::{Check, Finding, Place};
use crate::engine::docker::Examined;
use crate::engine::pools::{self, Subnet};
use crate::fault::{Fault, FaultKind};
use crate::host::{Examination, Facts, key_changed};
use crate::units::{about, age};

/// Forges' times order events, and certificates and locks have theirs.
const SKEW_WARNING: u64 = 60;
const SKEW_FAILURE: u64 = 300;
/// What a run has open at once: the shell that stays, a spare, a lock, an upload, and what takes their places meanwhile.
pub(super) const SESSIONS: usize = 6;
/// A sweep once a night is the least that keeps a host clean; CI systems may be two hours late.
const STALE: u64 = 26 * 3600;
/// The oldest API that has all that is used: Docker 20.10.
const OLDEST_API: (u64, u64) = (1, 41);
/// The newest API whose answers are known to be understood.
const NEWEST_API: (u64, u64) = (1, 53);

/// What became of connecting: `ssh-reach`, `host-key` and `login`.
pub(super) fn reached(place: &Place, pinned: bool, fault: Option<&Fault>) -> [Finding; 3] {
    let Place::Vm(destination) = place else {
        let local = |id| Finding::skipped(id, "previews run on this machine");
        return [local(Check::SshReach), local(Check::HostKey), local(Check::Login)];
    };
    let answers = || Finding::ok(Check::SshReach, format!("an sshd answers at {destination}"));
    let key = || {
        let where_ =
            if pinned { "it is pinned" } else { "it is in this user's known_hosts, and not in `[vm] known_hosts`" };
        Finding::ok(Check::HostKey, format!("the VM shows the key that is expected; {where_}"))
    };
    let Some(fault) = fault else {
        return [answers(), key(), Finding::ok(Check::Login, "the VM lets us in")];
    };
    let said = without_operation(fault);
    let (host, port) = (&destination.host, destination.port.unwrap_or(22));
    match fault.kind {
        FaultKind::HostKey => {
            let pin = format!(
                "run `ssh-keyscan -p {port} {host}`, compare its `ssh-keygen -lf -` with what the VM's console says to \
                 `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`, and put the line in `[vm] known_hosts` or PREVIEW_KNOWN_HOSTS"
            );
            let finding = match (key_changed(fault), pinned) {
                (true, _) => Finding::failed(
                    Check::HostKey,
                    format!("{destination} shows another key than the one that is expected"),
                    format!(
                        "if the VM was installed anew, {pin}; else do not connect: somebody may stand between you and the VM"
                    ),
                ),
                (false, true) => {
                    Finding::failed(Check::HostKey, format!("the keys that are pinned are not for {destination}"), pin)
                }
                (false, false) => Finding::failed(Check::HostKey, "no key is pinned for the VM", pin),
            };
            [answers(), finding, Finding::skipped(Check::Login, "the VM's key is not trusted")]
        }
        FaultKind::Denied => [
            answers(),
            key(),
            Finding::failed(
                Check::Login,
                said,
                "put the public key into ~/.ssh/authorized_keys of that user on the VM, and give the private one with `[vm] identity_file` or PREVIEW_IDENTITY_KEY",
            ),
        ],
        _ => [
            Finding::failed(
                Check::SshReach,
                said,
                format!(
                    "check the address in `[vm] host`, that the VM runs, and that its firewall lets port {port} through: `ssh -v -p {port} {host}`"
                ),
            ),
            Finding::skipped(Check::HostKey, "the VM does not answer"),
            Finding::skipped(Check::Login, "the VM does not answer"),
        ],
    }
}

/// What a fault says, without the operation that it is about.
pub(super) fn without_operation(fault: &Fault) -> String {
    let chain = fault.chain();
    let start = format!("cannot {}: ", fault.operation);
    chain.strip_prefix(&start).map_or(chain.clone(), str::to_owned)
}

pub(super) fn base_dir(base: &str, seen: &Examination) -> Finding {
    const ID: Check = Check::BaseDir;
    let user = &seen.user;
    let make = format!("on the VM: `sudo install -d -o {user} -m 0700 {base}`");
    match &seen.base {
        None if seen.base_writable => Finding::ok(ID, format!("{base} is not there yet; the first deploy makes it")),
        None => Finding::failed(ID, format!("{base} is not there, and {user} may not make it"), make),
        Some((mode, owner)) if !seen.base_writable => {
            Finding::failed(ID, format!("{user} may not write in {base}, which is {owner}'s (mode {mode:04o})"), make)
        }
        Some((mode, _)) if mode & 0o022 != 0 => Finding::failed(
            ID,
            format!("others may write in {base} (mode {mode:04o}): they could change what is deployed"),
            format!("on the VM: `chmod 0700 {base}`"),
        ),
        Some((_, owner)) if owner != user => Finding::warning(
            ID,
            format!("{base} is {owner}'s, not {user}'s"),
            format!("on the VM: `sudo chown {user} {base}`"),
        ),
        Some((mode, _)) if mode & 0o077 != 0 => Finding::warning(
            ID,
            format!("others may look into {base} (mode {mode:04o})"),
            format!("on the VM: `chmod 0700 {base}`"),
        ),
        Some((mode, owner)) => Finding::ok(ID, format!("{base} is {owner}'s, mode {mode:04o}")),
    }
}

pub(super) fn docker_socket(path: &str, seen: &Examination) -> Finding {
    const ID: Check = Check::DockerSocket;
    let user = &seen.user;
    match &seen.socket {
        None => Finding::failed(
            ID,
            format!("there is no socket {path}"),
            "is Docker installed and running (`systemctl status docker`)? another path goes into `[vm] docker_socket`",
        ),
        Some((mode, owner, group)) if !seen.socket_usable => {
            let next = if group == "root" || !mode.get(1..2).is_some_and(|digit| matches!(digit, "6" | "7")) {
                format!(
                    "on the VM: `sudo chgrp docker {path} && sudo chmod 0660 {path} && sudo usermod -aG docker {user}`, then a new login"
                )
            } else {
                format!("on the VM: `sudo usermod -aG {group} {user}`, then a new login")
            };
            Finding::failed(ID, format!("{user} may not use {path} ({owner}:{group}, mode {mode})"), next)
        }
        Some(_) => Finding::ok(ID, format!("{user} may use {path}")),
    }
}

pub(super) fn docker_version(engine: Result<&Examined, &Fault>) -> Finding {
    const ID: Check = Check::DockerVersion;
    let engine = match engine {
        Ok(engine) => engine,
        Err(fault) => {
            let next = "start it: `sudo systemctl restart docker`; its log: `journalctl -u docker -n 50`";
            return Finding::failed(ID, without_operation(fault), next);
        }
    };
    let (version, api, least) = (&engine.version, &engine.api_version, &engine.min_api_version);
    let found = format!("Docker {version} (API {api})");
    let number = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse::<u64>().ok()?, minor.parse::<u64>().ok()?))
    };
    match (number(api), number(least)) {
        (Some(api), _) if api < OLDEST_API => {
            Finding::failed(ID, format!("{found} is too old"), "install Docker 20.10 or newer on the VM")
        }
        (_, Some(least)) if least > NEWEST_API => Finding::failed(
            ID,
            format!("{found} wants at least API {}.{}, which this `preview` does not know", least.0, least.1),
            "install a newer `preview`",
        ),
        _ => Finding::ok(ID, found),
    }
}

pub(super) fn disk(facts: &Facts, floor: u64) -> Finding {
    let next = "`preview sweep` removes what expired, unused images and build cache; `docker system df` on the VM says what takes the room";
    floored(Check::Disk, "disk", facts.disk_free, facts.disk_total, ("min_free_disk", floor), next)
}

pub(super) fn memory(facts: &Facts, floor: u64) -> Finding {
    let next = "destroy a preview, lower `[guardrails] memory`, or take a larger VM; `preview capacity` says what fits";
    floored(Check::Memory, "memory", facts.memory_available, facts.memory_total, ("min_free_memory", floor), next)
}

fn floored(id: Check, what: &str, free: u64, all: u64, (key, floor): (&str, u64), next: &str) -> Finding {
    let found = format!("{} of {} {what} is free", about(free), about(all));
    if free < floor {
        let found = format!("{found}; a new preview needs {} (`[limits] {key}`)", about(floor));
        return Finding::failed(id, found, next);
    }
    if free / 2 < floor {
        let found = format!("{found}; at {} no new preview gets in (`[limits] {key}`)", about(floor));
        return Finding::warning(id, found, next);
    }
    Finding::ok(id, found)
}

/// `skew`: the VM's clock minus this machine's, seconds.
pub(super) fn clock(skew: i64) -> Finding {
    const ID: Check = Check::Clock;
    let seconds = skew.unsigned_abs();
    let direction = if skew < 0 { "behind" } else { "ahead of" };
    let found = format!("the VM's clock is {seconds} s {direction} this machine's");
    let next = "set both by NTP: `timedatectl set-ntp true`; the order of events, locks and certificates depend on it";
    if seconds >= SKEW_FAILURE {
        Finding::failed(ID, found, next)
    } else if seconds >= SKEW_WARNING {
        Finding::warning(ID, found, next)
    } else {
        Finding::ok(ID, if seconds < 2 { "both clocks agree".to_owned() } else { found })
    }
}

pub(super) fn sessions(open: usize) -> Finding {
    const ID: Check = Check::SshSessions;
    if open >= SESSIONS {
        return Finding::ok(ID, format!("sshd gives one connection {SESSIONS} sessions or more"));
    }
    Finding::failed(
        ID,
        format!("sshd gives one connection only {open} sessions; a run needs {SESSIONS}"),
        "on the VM: set `MaxSessions 10` (the default) in /etc/ssh/sshd_config, and `sudo systemctl reload ssh`",
    )
}

/// Docker hands out no addresses to which the machine has a route already.
pub(super) fn networks(engine: &Examined, routes: &[Subnet], previews: u64, max_previews: u64) -> Finding {
    const ID: Check = Check::Networks;
    let taken: Vec<Subnet> = engine.subnets.iter().chain(routes).copied().collect();
    let (all, left) = pools::left(&engine.pools, &taken);
    let found = format!("Docker can make {left} of {all} networks more");
    let next = "give Docker more in /etc/docker/daemon.json: `{\"default-address-pools\": [{\"base\": \"10.202.0.0/16\", \"size\": 24}]}`, then restart it; \
                or remove networks that nobody uses: `docker network prune`";
    let more = max_previews.saturating_sub(previews);
    if left == 0 {
        Finding::failed(ID, format!("{found}: no new preview can start"), next)
    } else if left < more {
        let found =
            format!("{found}; each preview takes at least one, and {more} more may come (`[limits] max_previews`)");
        Finding::warning(ID, found, next)
    } else {
        Finding::ok(ID, found)
    }
}

pub(super) fn log_rotation(engine: &Examined, seen: &Examination) -> Finding {
    const ID: Check = Check::LogRotation;
    let driver = &engine.log_driver;
    if driver != "json-file" {
        return Finding::ok(ID, format!("containers log with `{driver}`"));
    }
    let daemon: serde_json::Value =
        seen.daemon.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    match daemon.pointer("/log-opts/max-size").and_then(serde_json::Value::as_str) {
        Some(size) => Finding::ok(ID, format!("containers log with `json-file`, rotated at {size}")),
        None => Finding::warning(
            ID,
            "logs of containers that are no previews (the proxy's, for example) grow without end; previews rotate theirs",
            "in /etc/docker/daemon.json: `{\"log-driver\": \"json-file\", \"log-opts\": {\"max-size\": \"10m\", \"max-file\": \"3\"}}`, then restart Docker",
        ),
    }
}

pub(super) fn swap(seen: &Examination) -> Finding {
    const ID: Check = Check::Swap;
    if seen.swap == 0 {
        return Finding::warning(
            ID,
            "there is no swap: a peak of memory ends processes at once",
            "on the VM: `sudo fallocate -l 4G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile`, and a line in /etc/fstab",
        );
    }
    let eager = seen.swappiness.map(|value| format!(", swappiness {value}")).unwrap_or_default();
    Finding::ok(ID, format!("{} of swap{eager}", about(seen.swap)))
}

pub(super) fn sweep(last: Option<Timestamp>, now: Timestamp, previews: u64, ttl: Option<Duration>) -> Finding {
    const ID: Check = Check::Sweep;
    let next = "run `preview sweep` by a schedule, every 30 minutes for example: the nightly job of docs/github-actions.md, a GitLab schedule, or cron";
    match last {
        Some(last) if now.as_second().saturating_sub(last.as_second()) <= i64::try_from(STALE).unwrap_or(i64::MAX) => {
            Finding::ok(ID, format!("last swept {} ago", age(last, now)))
        }
        Some(last) => {
            Finding::warning(ID, format!("last swept {} ago: nothing expires meanwhile", age(last, now)), next)
        }
        None if previews == 0 => Finding::ok(ID, "never swept, and there is nothing to sweep"),
        None if ttl.is_none() => Finding::ok(ID, "never swept; previews of this application do not expire"),
        None => Finding::warning(ID, "never swept: nothing expires, and what failures leave stays", next),
    }
}
