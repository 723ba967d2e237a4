//! What tests may leave behind on this machine, and must not: found, told and removed.
//!
//! Only what carries this run's own mark is judged. Others deploy and test on the same engine meanwhile, and
//! what appeared during a run is not therefore the run's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use xtask::lab::{Lab, RUN_VARIABLE};
use xtask::sh;

/// One kind of thing in an engine: how to list it with its application, and how to remove one.
const KINDS: [(&str, &[&str], &str, &[&str]); 3] = [
    ("container", &["ps", "-a"], "{{.Names}} {{.Label \"preview.app\"}}", &["rm", "-f", "-v"]),
    ("network", &["network", "ls"], "{{.Name}} {{.Label \"preview.app\"}}", &["network", "rm"]),
    ("volume", &["volume", "ls"], "{{.Name}} {{.Label \"preview.app\"}}", &["volume", "rm", "-f"]),
];

/// One run of the tests: its mark, and the folder of its temporary files.
pub(crate) struct Run {
    mark: String,
    temp: PathBuf,
}

impl Run {
    /// Makes the folder. Its path is short: sockets will be in it, and their paths have a limit of 100 characters.
    pub(crate) fn new() -> Result<Self> {
        let mark = format!("t{}", std::process::id());
        let temp = std::env::temp_dir().join(format!("preview-{mark}"));
        fs::create_dir_all(&temp)?;
        Ok(Self { mark, temp })
    }

    /// The environment that marks the tests' processes, and by [`xtask::lab::test_app`] their previews.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        [(RUN_VARIABLE, self.mark.clone()), ("TMPDIR", self.temp.display().to_string())]
    }

    /// Finds what the tests left, removes it, and returns what it was.
    pub(crate) fn leftovers(&self, lab: &Lab) -> Result<Vec<String>> {
        // A VM whose process lives belongs to somebody who is still testing.
        let mut left: Vec<String> = lab.sweep_vms()?.into_iter().map(|name| format!("VM {name}")).collect();
        for (kind, list, format, remove) in KINDS {
            let list = sh::text(lab.docker(list).args(["--filter", "label=preview.managed", "--format", format]))?;
            for name in list.lines().filter_map(|line| marked(line, &self.mark)) {
                left.push(format!("{kind} {name}"));
                let _ = sh::succeeds(lab.docker(remove).arg(name));
            }
        }
        for (pid, command) in processes(&self.mark) {
            left.push(format!("process {pid}: {command}"));
            let _ = sh::kill("KILL", &pid);
        }
        for entry in fs::read_dir(&self.temp)?.flatten() {
            left.push(format!("file {}", contents(&entry.path())));
        }
        fs::remove_dir_all(&self.temp)?;
        Ok(left)
    }
}

/// A path, and if it is a directory some of what is in it: that tells whose it was.
fn contents(path: &Path) -> String {
    let mut pending = vec![path.to_owned()];
    let mut inside = Vec::new();
    while let Some(dir) = pending.pop().filter(|_| inside.len() < 10) {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            inside.push(entry.path().strip_prefix(path).unwrap_or(&entry.path()).display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    inside.sort();
    inside.truncate(10);
    let path = path.display();
    if inside.is_empty() { path.to_string() } else { format!("{path}, with {}", inside.join(", ")) }
}

/// The name in a line of name and application, if the application is one of the run's.
fn marked<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    let (name, app) = line.split_once(' ')?;
    app.strip_prefix(mark).is_some_and(|rest| rest.starts_with('-')).then_some(name)
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
    fn only_the_runs_own_applications_are_judged() {
        assert_eq!(marked("t12-40-0_pr-7-web-1 t12-40-0", "t12"), Some("t12-40-0_pr-7-web-1"));
        for foreign in ["t123-0_pr-7-web-1 t123-0", "hello_demo-web-1 hello", "x t12", "x ", "x"] {
            assert_eq!(marked(foreign, "t12"), None, "{foreign}");
        }
    }

    #[test]
    fn what_is_in_a_directory_is_told_with_it() {
        let dir = std::env::temp_dir().join(format!("checks-contents-{}", std::process::id()));
        fs::create_dir_all(dir.join("one/two")).unwrap();
        fs::write(dir.join("one/file"), "").unwrap();
        assert_eq!(contents(&dir), format!("{}, with one, one/file, one/two", dir.display()));
        assert_eq!(contents(&dir.join("one/file")), dir.join("one/file").display().to_string());
        fs::remove_dir_all(&dir).unwrap();
    }

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
