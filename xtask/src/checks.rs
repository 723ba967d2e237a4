//! What tests may leave behind on this machine, and must not: found, told and removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use xtask::lab::Lab;
use xtask::sh;

/// The variable by which the processes of one run of the tests are known: whatever they start inherits it.
pub(crate) const RUN_VARIABLE: &str = "PREVIEW_LAB_RUN";

/// One kind of thing in an engine: how to list it, and how to remove one.
const KINDS: [(&str, &[&str], &[&str]); 3] = [
    ("container", &["ps", "-a", "--format", "{{.Names}}"], &["rm", "-f", "-v"]),
    ("network", &["network", "ls", "--format", "{{.Name}}"], &["network", "rm"]),
    ("volume", &["volume", "ls", "--format", "{{.Name}}"], &["volume", "rm", "-f"]),
];

/// What was there before the tests, so that it is neither blamed on them nor removed.
pub(crate) struct Before {
    run: String,
    objects: BTreeSet<(&'static str, String)>,
    temp: PathBuf,
}

impl Before {
    /// Looks at the engine and makes a folder for the tests' temporary files. Its path is short: sockets
    /// will be in it, and their paths have a limit of 100 characters.
    pub(crate) fn look(lab: &Lab) -> Result<Self> {
        let run = format!("run-{}", std::process::id());
        let temp = std::env::temp_dir().join(format!("preview-{run}"));
        fs::create_dir_all(&temp)?;
        Ok(Self { run, objects: objects(lab)?, temp })
    }

    /// The environment that marks the tests' processes.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        [(RUN_VARIABLE, self.run.clone()), ("TMPDIR", self.temp.display().to_string())]
    }

    /// Finds what the tests left, removes it, and returns what it was.
    pub(crate) fn leftovers(&self, lab: &Lab) -> Result<Vec<String>> {
        // A VM whose process lives belongs to somebody who is still testing.
        let mut left: Vec<String> = lab.sweep_vms()?.into_iter().map(|name| format!("VM {name}")).collect();
        for (kind, _, remove) in KINDS {
            for (_, name) in objects(lab)?.difference(&self.objects).filter(|(k, _)| *k == kind) {
                left.push(format!("{kind} {name}"));
                let _ = sh::succeeds(lab.docker(remove).arg(name));
            }
        }
        for (pid, command) in processes(&self.run) {
            left.push(format!("process {pid}: {command}"));
            let _ = sh::kill("KILL", &pid);
        }
        for entry in fs::read_dir(&self.temp)?.flatten() {
            left.push(format!("file {}", entry.path().display()));
        }
        fs::remove_dir_all(&self.temp)?;
        Ok(left)
    }
}

/// All previews' objects in the engine. What has no label is nobody's to judge, and is never touched.
fn objects(lab: &Lab) -> Result<BTreeSet<(&'static str, String)>> {
    let mut found = BTreeSet::new();
    for (kind, list, _) in KINDS {
        let names = sh::text(lab.docker(list).args(["--filter", "label=preview.managed"]))?;
        found.extend(names.lines().map(|name| (kind, name.to_owned())));
    }
    Ok(found)
}

/// The processes that carry a run's mark, and their command lines.
fn processes(run: &str) -> Vec<(String, String)> {
    let mark = format!("{RUN_VARIABLE}={run}");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().into_string().ok()?;
            pid.parse::<u32>().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let marked = environment.split(|byte| *byte == 0).any(|word| word == mark.as_bytes());
            marked.then(|| (pid, command_line(&entry.path())))
        })
        .collect()
}

fn command_line(process: &Path) -> String {
    let bytes = fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_found_by_its_mark() {
        let run = format!("checks-{}", std::process::id());
        let mut child = Command::new("sleep").arg("30").env(RUN_VARIABLE, &run).stdin(Stdio::null()).spawn().unwrap();
        let mut found = processes(&run);
        for _ in 0..50 {
            if !found.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            found = processes(&run);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [(child.id().to_string(), "sleep 30".to_owned())]);
    }
}
