//! The observer: looks at the VM ten times a second, past the program, and judges what it sees.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use serde_json::Value;

use super::load::{Key, Places, Rules, places};
use super::order::{Look, Who, overtaken};
use crate::lab::Vm;

/// What begins each part of what the script prints; no file of a preview holds it.
const MARK: u8 = 0x1e;

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The look before this one.
    pub(crate) last: Look,
    pub(crate) looks: usize,
    /// Pairs of looks that were near enough to judge the order by.
    pub(crate) judged: usize,
    /// The most places at once that previews with containers took, and previews with a state file.
    pub(crate) most_running: Places,
    pub(crate) most_reserved: Places,
    /// The most that waited at once.
    pub(crate) most_waiting: usize,
    /// Places with containers by seconds, for the mean.
    pub(crate) filled: f64,
    pub(crate) seconds: f64,
    /// The most memory of the VM's processes, kilobytes.
    pub(crate) memory: u64,
    /// When a preview's ticket was first seen, and its state file.
    pub(crate) queued: BTreeMap<Key, f64>,
    pub(crate) admitted: BTreeMap<Key, f64>,
    /// What must not be.
    pub(crate) broken: Vec<String>,
}

impl Seen {
    /// Begins a wave: what is counted by wave begins again.
    pub(crate) fn begin(&mut self) {
        (self.most_running, self.most_reserved, self.most_waiting, self.memory) = (0, 0, 0, 0);
        (self.filled, self.seconds) = (0.0, 0.0);
    }

    fn take(&mut self, look: Look, known: &BTreeMap<Key, Who>, rules: &Rules) {
        let weight = |key: &Key| known.get(key).map_or(0, |who| who.weight);
        let running: Places = look.running.iter().map(weight).sum();
        let reserved: Places = look.states.keys().map(weight).sum();
        for (what, now, most) in
            [("containers", running, &mut self.most_running), ("a state file", reserved, &mut self.most_reserved)]
        {
            if now > rules.places && now > *most {
                let (now, limit) = (places(now), places(rules.places));
                self.broken.push(format!("previews with {what} take {now} places, and there are {limit}"));
            }
            *most = now.max(*most);
        }
        for key in look.running.iter().chain(look.tickets.keys()).chain(look.states.keys()) {
            if !known.contains_key(key) {
                self.broken.push(format!("{} {} is of nobody", key.0, key.1));
            }
        }
        self.most_waiting = self.most_waiting.max(look.tickets.len());
        for key in look.tickets.keys() {
            self.queued.entry(key.clone()).or_insert(look.at);
        }
        for key in look.states.keys() {
            self.admitted.entry(key.clone()).or_insert(look.at);
        }
        if self.looks > 0 {
            let passed = look.at - self.last.at;
            self.filled += f64::from(running) / 1000.0 * passed;
            self.seconds += passed;
            if let Some(found) = overtaken(&self.last, &look, known, rules) {
                self.judged += 1;
                self.broken.extend(found);
            }
        }
        self.looks += 1;
        self.last = look;
    }
}

/// The observer at work.
pub(crate) struct Watch<'a> {
    vm: &'a Vm,
    child: Child,
    reader: Option<JoinHandle<()>>,
    stop: String,
    seen: Arc<Mutex<Seen>>,
}

impl<'a> Watch<'a> {
    /// Looks from now on, until [`Watch::end`].
    pub(crate) fn start(vm: &'a Vm, base: &str, known: BTreeMap<Key, Who>, rules: Rules) -> Result<Self> {
        let stop = format!("{base}.stop");
        let mut child = vm
            .command(&["sh", "-c", &script(base, &stop)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot look at the VM")?;
        let output = child.stdout.take().context("no output")?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let into = Arc::clone(&seen);
        let base = base.to_owned();
        let reader = std::thread::spawn(move || {
            let mut look = Look::default();
            for part in BufReader::new(output).split(MARK) {
                let Ok(part) = part else { break };
                let text = String::from_utf8_lossy(&part);
                let Some((kind, rest)) = text.split_at_checked(1) else { continue };
                let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                match kind {
                    "M" => seen.memory = seen.memory.max(kilobytes(rest)),
                    "T" => look = Look { at: rest.trim().parse().unwrap_or_default(), ..Look::default() },
                    "C" => match running(rest) {
                        Some(running) => look.running = running,
                        None => seen.broken.push(format!("the engine does not list containers: {}", rest.trim())),
                    },
                    "F" => seen.broken.extend(files(&base, rest, &mut look)),
                    "E" => seen.take(std::mem::take(&mut look), &known, &rules),
                    _ => {}
                }
            }
        });
        Ok(Self { vm, child, reader: Some(reader), stop, seen })
    }

    /// The process of it that runs here.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the host was looked at once more, from the beginning.
    pub(crate) fn again(&self) -> Result<()> {
        let now = self.seen().looks;
        crate::sh::wait_until("a look at the VM", std::time::Duration::from_secs(60), || self.seen().looks > now + 1)
    }

    /// Looks no more.
    pub(crate) fn end(mut self) -> Result<Seen> {
        self.halt();
        Ok(std::mem::take(&mut *self.seen()))
    }

    fn halt(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        // The script removes the file. If it cannot be told, its output's end stops it.
        if self.vm.text(&["touch", &self.stop]).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        let _ = reader.join();
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Containers first, then files: these under the lock under which places are given away, shared, so that they are of one moment.
/// Memory, every so often.
fn script(base: &str, stop: &str) -> String {
    let filter = format!("%7B%22label%22%3A%5B%22preview.base%3D{base}%22%5D%7D");
    format!(
        "n=0; while [ ! -e {stop} ]; do \
         printf '\\036T%s' \"$(date +%s.%N)\"; \
         printf '\\036C'; curl -sS --max-time 20 --unix-socket /var/run/docker.sock 'http://engine/v1.41/containers/json?all=1&filters={filter}'; \
         printf '\\036F'; [ ! -e {base}/.places ] || {{ flock -s 9; grep -sH '' {base}/*/*/queue.json {base}/*/*/state.json; }} 9<{base}/.places; \
         printf '\\036E'; \
         [ $((n % 20)) != 0 ] || {{ printf '\\036M'; grep -hs '^RssAnon' /proc/[0-9]*/status; }}; \
         n=$((n + 1)); printf '\\036'; sleep 0.06; done; rm -f {stop}"
    )
}

fn kilobytes(text: &str) -> u64 {
    text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// The previews of the engine's containers.
fn running(text: &str) -> Option<BTreeSet<Key>> {
    let containers: Vec<Value> = serde_json::from_str(text.trim()).ok()?;
    let label = |container: &Value, name: &str| Some(container["Labels"][name].as_str()?.to_owned());
    containers
        .iter()
        .map(|container| Some((label(container, "preview.app")?, label(container, "preview.name")?)))
        .collect()
}

/// Tickets and states out of lines that begin with their file's path. The values are what cannot be read.
fn files(base: &str, text: &str, look: &mut Look) -> Vec<String> {
    let mut found: BTreeMap<&str, String> = BTreeMap::new();
    for line in text.lines() {
        if let Some((path, line)) = line.split_once(':') {
            let content = found.entry(path).or_default();
            content.push_str(line);
            content.push('\n');
        }
    }
    let mut broken = Vec::new();
    for (path, content) in found {
        let parts: Vec<&str> = path.strip_prefix(base).unwrap_or_default().split('/').collect();
        let value: Value = serde_json::from_str(&content).unwrap_or_default();
        match parts[..] {
            ["", app, name, "state.json"] if value["phase"].is_string() => {
                let phase = value["phase"].as_str().unwrap_or_default();
                look.states.insert((app.to_owned(), name.to_owned()), phase.to_owned());
            }
            ["", app, name, "queue.json"] if value["number"].is_u64() => {
                let number = value["number"].as_u64().unwrap_or_default();
                look.tickets.insert((app.to_owned(), name.to_owned()), number);
            }
            _ => broken.push(format!("{path} does not parse: {content:?}")),
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_by_their_paths_and_what_does_not_parse_is_told() {
        let mut look = Look::default();
        let text = "/b/shop/pr-1/state.json:{\"phase\":\n/b/shop/pr-1/state.json:\"ready\"}\n/b/shop/pr-2/queue.json:{\"number\":3}\n";
        assert!(files("/b", text, &mut look).is_empty());
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        assert_eq!(look.states, BTreeMap::from([(key("pr-1"), "ready".to_owned())]));
        assert_eq!(look.tickets, BTreeMap::from([(key("pr-2"), 3)]));
        assert_eq!(files("/b", "/b/shop/pr-1/state.json:{\"pha", &mut look).len(), 1);
    }

    #[test]
    fn containers_are_counted_by_preview() {
        let text =
            r#"[{"Labels":{"preview.app":"a","preview.name":"n"}},{"Labels":{"preview.app":"a","preview.name":"n"}}]"#;
        assert_eq!(running(text).map(|found| found.len()), Some(1));
        assert_eq!(running("[]").map(|found| found.len()), Some(0));
        assert_eq!(running(r#"{"message":"no"}"#), None);
    }

    #[test]
    fn more_than_there_is_is_told() {
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        let known = ["a", "b"].map(|name| (key(name), Who { weight: 2000, owner: "ada" }));
        let (known, rules) = (BTreeMap::from(known), Rules::of(3));
        let mut seen = Seen::default();
        seen.take(Look { running: BTreeSet::from([key("a")]), ..Look::default() }, &known, &rules);
        assert!(seen.broken.is_empty() && seen.most_running == 2000);
        seen.take(Look { at: 0.1, running: BTreeSet::from([key("a"), key("b")]), ..Look::default() }, &known, &rules);
        assert_eq!(seen.broken, ["previews with containers take 4 places, and there are 3"]);
    }
}
