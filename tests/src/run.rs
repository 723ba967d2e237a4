//! A run of the command that is watched and disturbed while it is at work, and what it must not leave behind.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Ran, Site, eventually};

/// No run takes so long, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(180);

/// A run at work.
pub struct Run {
    child: Child,
    out: Text,
    err: Text,
    /// The directory for temporary files of this run alone.
    private: tempfile::TempDir,
    /// Processes that it had when it was ended, with their start times.
    family: BTreeMap<u32, String>,
}

impl Site {
    /// Starts the command, to be watched.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(&self, args: &[&str]) -> Run {
        Self::started(self.command(args))
    }

    /// The same, of a command that was changed.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn started(mut command: Command) -> Run {
        let private = tempfile::tempdir().expect("a directory");
        command.env("TMPDIR", private.path()).env("XDG_RUNTIME_DIR", private.path());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let out = Text::of(child.stdout.take().expect("piped"));
        let err = Text::of(child.stderr.take().expect("piped"));
        Run { child, out, err, private, family: BTreeMap::new() }
    }

    /// What processes on the host hold open of the application's previews, or name: locks, uploads.
    #[must_use]
    pub fn processes(&self) -> String {
        // The brackets keep the script from finding itself.
        let (first, rest) = self.app.split_at(1);
        self.shell(&format!(
            "{{ for p in /proc/[0-9]*; do tr '\\0\\n' '  ' <$p/cmdline 2>/dev/null && echo; done; ls -l /proc/[0-9]*/fd 2>/dev/null; }} \
             | grep '/[{first}]{rest}/' || :"
        ))
    }

    /// What the state file of a preview says of its phase; empty if there is no such file.
    #[must_use]
    pub fn phase(&self, name: &str) -> String {
        let text = self.shell(&format!("cat '{}/{}/{name}/state.json' 2>/dev/null || :", self.base(), self.app));
        let state: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        state["phase"].as_str().unwrap_or_default().to_owned()
    }
}

impl Run {
    /// Waits until standard error holds this text.
    ///
    /// # Panics
    /// If the run ends before, or does not get there.
    #[track_caller]
    pub fn until(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.err.now().contains(text) {
            let ended = self.child.try_wait().expect("waits");
            let last = self.err.now();
            assert!(ended.is_none() || last.contains(text), "it ended ({ended:?}) before it said `{text}`:\n{last}");
            assert!(begun.elapsed() < LIMIT, "it never said `{text}`:\n{last}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The number of its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Standard output so far.
    #[must_use]
    pub fn printed(&self) -> String {
        self.out.now()
    }

    /// Whether it is still at work.
    ///
    /// # Panics
    /// If that cannot be asked.
    #[must_use]
    pub fn at_work(&mut self) -> bool {
        self.child.try_wait().expect("waits").is_none()
    }

    /// Ctrl-C.
    ///
    /// # Panics
    /// If the signal cannot be sent.
    pub fn interrupt(&mut self) {
        self.family = family(self.child.id());
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// A signal to the command alone: `STOP`, `CONT`.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// `kill -9`; then everything that it started has to end by itself.
    ///
    /// # Panics
    /// If something of it is still there after a minute.
    #[track_caller]
    pub fn kill(mut self) {
        assert!(self.at_work(), "it ended before it was killed:\n{}", self.err.now());
        self.family = family(self.child.id());
        self.child.kill().expect("kills");
        self.child.wait().expect("waits");
        self.nothing_left();
    }

    #[track_caller]
    fn nothing_left(&self) {
        let path = self.private.path();
        eventually("processes of the run end, and its directory goes", || {
            let left = self.family.iter().any(|(pid, started)| start_time(*pid).as_ref() == Some(started));
            !left && std::fs::read_dir(path).expect("a directory").next().is_none()
        });
    }

    /// Waits for its end; nothing of it may be left then.
    ///
    /// # Panics
    /// If it does not end.
    #[must_use]
    #[track_caller]
    pub fn end(mut self) -> Ran {
        let begun = Instant::now();
        drop(self.child.stdin.take());
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().expect("waits") {
                break status;
            }
            if begun.elapsed() > LIMIT {
                let _ = self.child.kill();
                panic!("it does not end:\n{}", self.err.now());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        self.nothing_left();
        Ran { code: status.code().unwrap_or(-1), out: self.out.all(), err: self.err.all() }
    }
}

/// What comes out of a pipe.
struct Text {
    text: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Text {
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(size @ 1..) = pipe.read(&mut piece) {
                into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..size]);
            }
        });
        Self { text, reader }
    }

    fn now(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    fn all(self) -> String {
        self.reader.join().expect("reads");
        String::from_utf8_lossy(&self.text.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

/// All descendants of a process.
fn family(of: u32) -> BTreeMap<u32, String> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(parent) = fields(pid).and_then(|fields| fields.get(1)?.parse::<u32>().ok()) {
            parents.insert(pid, parent);
        }
    }
    let mut found = BTreeMap::new();
    let mut wanted = vec![of];
    while let Some(parent) = wanted.pop() {
        for (pid, _) in parents.iter().filter(|(_, of)| **of == parent) {
            if let Some(started) = start_time(*pid) {
                found.insert(*pid, started);
                wanted.push(*pid);
            }
        }
    }
    found
}

/// The fields of `/proc/PID/stat` after the name.
fn fields(pid: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Tells a process from another that has its number later. One that has ended and waits for its parent counts as gone.
fn start_time(pid: u32) -> Option<String> {
    let fields = fields(pid)?;
    if fields.first()? == "Z" { None } else { fields.get(19).cloned() }
}
