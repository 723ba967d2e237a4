//! A host that lives in memory: settable facts, injected failures, a log of calls.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::fault::{Fault, FaultKind};
use crate::host::{Change, Entry, Facts, Guard, Host, Query, Stream, Survey, checked, guard_in, upload};

/// The methods of [`Host`], for failures to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostCall {
    /// [`Host::survey`].
    Survey,
    /// [`Host::apply`].
    Apply,
    /// [`Host::upload`].
    Upload,
    /// [`Host::socket`].
    Socket,
    /// [`Host::dial`].
    Dial,
    /// [`Host::close`].
    Close,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(Vec<u8>),
    Link(String),
}

#[derive(Default)]
struct State {
    facts: Facts,
    nodes: BTreeMap<String, Node>,
    sockets: HashMap<String, PathBuf>,
    addresses: HashMap<(String, u16), SocketAddr>,
    failures: HashMap<HostCall, VecDeque<Fault>>,
    calls: Vec<String>,
    meanwhile: VecDeque<Vec<Change>>,
}

/// A host in memory.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use preview_core::fault::{Fault, FaultKind};
/// use preview_core::host::{Host, Query};
/// use preview_core::testkit::host::{HostCall, MemoryHost};
///
/// let host = MemoryHost::default();
/// host.put("/base/app/pr-1/state.json", "{}");
/// let query = Query { read: vec!["app/*/state.json".into()], list: vec![], ..Query::default() };
/// assert_eq!(host.survey("/base", &query).await.unwrap().files.len(), 1);
/// host.fail_next(HostCall::Survey, Fault::new(FaultKind::Unreachable, "survey", "gone"));
/// assert!(host.survey("/base", &query).await.is_err());
/// assert_eq!(host.calls(), ["survey /base", "survey /base"]);
/// # });
/// ```
pub struct MemoryHost {
    state: Mutex<State>,
}

impl Default for MemoryHost {
    fn default() -> Self {
        const GB: u64 = 1 << 30;
        let facts = Facts {
            now: 1_800_000_000,
            cpus: 4,
            load: 0.5,
            memory_total: 16 * GB,
            memory_available: 12 * GB,
            disk_total: 100 * GB,
            disk_used: 15 * GB,
            disk_free: 80 * GB,
            listening: [22].into(),
        };
        Self { state: Mutex::new(State { facts, ..State::default() }) }
    }
}

impl MemoryHost {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the host says about itself.
    pub fn set_facts(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.state().facts);
    }

    /// Puts a file there, with its directories.
    ///
    /// # Panics
    /// If the path is not a plain absolute one, or a file is in the way.
    pub fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        self.state().write(path, content.into()).expect("a path that can be written");
    }

    /// A file's content as text; `None` if there is no such file.
    pub fn content(&self, path: &str) -> Option<String> {
        match self.state().nodes.get(path)? {
            Node::File(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    }

    /// All that is there: files, directories and links.
    pub fn paths(&self) -> Vec<String> {
        self.state().nodes.keys().cloned().collect()
    }

    /// A unix socket of the host, and the local one that leads there.
    pub fn set_socket(&self, path: &str, local: impl Into<PathBuf>) {
        self.state().sockets.insert(path.to_owned(), local.into());
    }

    /// An address as the host sees it, and the one to which [`Host::dial`] really connects.
    pub fn set_address(&self, address: &str, port: u16, real: SocketAddr) {
        self.state().addresses.insert((address.to_owned(), port), real);
    }

    /// The next call that is not yet meant to fail fails so, before it does anything.
    pub fn fail_next(&self, call: HostCall, fault: Fault) {
        self.state().failures.entry(call).or_default().push_back(fault);
    }

    /// Somebody else makes these changes just before the next call of [`Host::apply_if`] looks at its guard.
    pub fn meanwhile(&self, changes: Vec<Change>) {
        self.state().meanwhile.push_back(changes);
    }

    /// The calls so far: `survey /base`, `apply write /base/x; remove /base/y`, `upload /base/files/1`, …
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.state().calls.clear();
    }

    fn called(&self, call: HostCall, text: String) -> Result<(), Fault> {
        let mut state = self.state();
        state.calls.push(text);
        match state.failures.get_mut(&call).and_then(VecDeque::pop_front) {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }
}

const APPLY: &str = "change files on the host";

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').skip(1).map(|(at, _)| &path[..at])
}

impl State {
    fn make_parents(&mut self, path: &str) -> Result<(), Fault> {
        for parent in parents(path) {
            match self.nodes.get(parent) {
                None => drop(self.nodes.insert(parent.to_owned(), Node::Directory)),
                Some(Node::Directory) => {}
                Some(_) => return Err(Fault::new(FaultKind::Conflict, APPLY, format!("{parent}: Not a directory"))),
            }
        }
        Ok(())
    }

    fn write(&mut self, path: &str, content: Vec<u8>) -> Result<(), Fault> {
        checked(APPLY, path)?;
        self.make_parents(path)?;
        self.not_a_directory(path)?;
        self.nodes.insert(path.to_owned(), Node::File(content));
        Ok(())
    }

    fn not_a_directory(&self, path: &str) -> Result<(), Fault> {
        match self.resolve(path) {
            Some((_, Node::Directory)) => {
                Err(Fault::new(FaultKind::Conflict, APPLY, format!("{path}: Is a directory")))
            }
            _ => Ok(()),
        }
    }

    /// What a path leads to, links in its last component followed.
    fn resolve(&self, path: &str) -> Option<(String, &Node)> {
        let mut path = path.to_owned();
        for _ in 0..8 {
            match self.nodes.get(&path)? {
                Node::Link(target) => {
                    let start = if target.starts_with('/') { String::new() } else { parent_of(&path).to_owned() };
                    path = target.split('/').fold(start, |path, part| match part {
                        "" | "." => path,
                        ".." => parent_of(&path).to_owned(),
                        part => format!("{path}/{part}"),
                    });
                }
                node => return Some((path, node)),
            }
        }
        None
    }

    fn below(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        self.nodes.keys().filter(|key| key.starts_with(&prefix)).cloned().collect()
    }

    fn change(&mut self, change: &Change) -> Result<(), Fault> {
        match change {
            Change::Write { path, content, .. } => self.write(path, content.expose().clone()),
            Change::Rename { from, to } => {
                if !self.nodes.contains_key(from) {
                    return Err(Fault::new(FaultKind::NotFound, APPLY, format!("{from}: No such file")));
                }
                self.make_parents(to)?;
                self.not_a_directory(to)?;
                for path in self.below(from).into_iter().chain([from.clone()]) {
                    if let Some(node) = self.nodes.remove(&path) {
                        self.nodes.insert(format!("{to}{}", &path[from.len()..]), node);
                    }
                }
                Ok(())
            }
            Change::Remove { path } => {
                for path in self.below(path).into_iter().chain([path.clone()]) {
                    self.nodes.remove(&path);
                }
                Ok(())
            }
            Change::RemoveEmpty { path } => {
                if self.nodes.get(path) == Some(&Node::Directory) && self.below(path).is_empty() {
                    self.nodes.remove(path);
                }
                Ok(())
            }
            Change::Append { path, line, keep, above } => {
                let mut content = match self.resolve(path) {
                    Some((_, Node::File(content))) => content.clone(),
                    _ => Vec::new(),
                };
                content.extend_from_slice(format!("{line}\n").as_bytes());
                if content.len() as u64 > *above {
                    let lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
                    content = lines[lines.len().saturating_sub(*keep as usize)..].concat();
                }
                // A note that nothing depends on.
                let _ = self.write(path, content);
                Ok(())
            }
        }
    }
}

fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// `*` stands for any part of one component, but not for a dot in front.
fn matches(pattern: &str, path: &str) -> bool {
    let (patterns, parts) = (pattern.split('/'), path.split('/'));
    patterns.clone().count() == parts.clone().count() && patterns.zip(parts).all(|(p, s)| matches_component(p, s))
}

fn matches_component(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    if first.is_empty() && text.starts_with('.') {
        return false;
    }
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

fn describe(change: &Change) -> String {
    match change {
        Change::Write { path, .. } => format!("write {path}"),
        Change::Rename { from, to } => format!("rename {from} {to}"),
        Change::Remove { path } => format!("remove {path}"),
        Change::RemoveEmpty { path } => format!("remove-empty {path}"),
        Change::Append { path, .. } => format!("append {path}"),
    }
}

#[async_trait]
impl Host for MemoryHost {
    fn describe(&self) -> String {
        "a machine in memory".to_owned()
    }

    async fn survey(&self, base: &str, query: &Query) -> Result<Survey, Fault> {
        self.called(HostCall::Survey, format!("survey {base}"))?;
        checked("read the host's state", base)?;
        let state = self.state();
        let matching = |patterns: &[String], path: &str| {
            let inside = path.strip_prefix(base).and_then(|rest| rest.strip_prefix('/'));
            inside.is_some_and(|inside| patterns.iter().any(|pattern| matches(pattern, inside)))
        };
        let facts = if query.files_only { Facts::default() } else { state.facts.clone() };
        let mut survey = Survey { facts, ..Survey::default() };
        for path in state.nodes.keys() {
            if matching(&query.list, path) {
                survey.paths.insert(path.clone());
            }
            if matching(&query.joined, path)
                && let Some((_, Node::File(bytes))) = state.resolve(path)
                && let Ok(text) = std::str::from_utf8(bytes)
            {
                survey.joined.push_str(text);
            }
            if matching(&query.read, path)
                && let Some((_, Node::File(bytes))) = state.resolve(path)
                && let Ok(text) = std::str::from_utf8(bytes)
                && !text.contains('\0')
            {
                survey.files.insert(path.clone(), text.to_owned());
            }
        }
        Ok(survey)
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), Fault> {
        let text: Vec<String> = changes.iter().map(describe).collect();
        self.called(HostCall::Apply, format!("apply {}", text.join("; ")))?;
        for change in changes {
            match change {
                Change::Rename { from, to } => checked(APPLY, from).and_then(|_| checked(APPLY, to))?,
                Change::Append { line, .. } if line.contains(['\n', '\0']) => {
                    return Err(Fault::new(FaultKind::Invalid, APPLY, "a line holds its end, or a NUL byte"));
                }
                Change::Write { path, .. }
                | Change::Remove { path }
                | Change::RemoveEmpty { path }
                | Change::Append { path, .. } => checked(APPLY, path)?,
            };
        }
        let mut state = self.state();
        changes.iter().try_for_each(|change| state.change(change))
    }

    async fn apply_if(&self, guard: &Guard, changes: &[Change]) -> Result<bool, Fault> {
        let text: Vec<String> = changes.iter().map(describe).collect();
        self.called(HostCall::Apply, format!("apply {} if {}", text.join("; "), guard.path))?;
        guard.check(APPLY)?;
        let mut state = self.state();
        let others = state.meanwhile.pop_front().unwrap_or_default();
        others.iter().try_for_each(|change| state.change(change))?;
        for (path, expected) in
            [(&guard.path, &guard.expected)].into_iter().chain(guard.beside.iter().map(|(p, e)| (p, e)))
        {
            let found = match state.resolve(path) {
                Some((_, Node::File(content))) => String::from_utf8_lossy(content).into_owned(),
                _ => String::new(),
            };
            if guard_in(&found) != expected {
                return Ok(false);
            }
        }
        let content = crate::secret::Secret::new(guard.next.clone().into_bytes());
        let last = Change::Write { path: guard.path.clone(), content, mode: 0o600 };
        changes.iter().chain([&last]).try_for_each(|change| state.change(change))?;
        Ok(true)
    }

    async fn upload(&self, directory: &str, entries: &[Entry]) -> Result<bool, Fault> {
        const OPERATION: &str = "upload files";
        self.called(HostCall::Upload, format!("upload {directory}"))?;
        checked(OPERATION, directory)?;
        match self.state().resolve(directory) {
            Some((_, Node::Directory)) => return Ok(false),
            Some(_) => return Err(Fault::new(FaultKind::Conflict, OPERATION, format!("{directory}: Not a directory"))),
            None => {}
        }
        let unreadable = |error: std::io::Error| Fault::new(FaultKind::Failed, OPERATION, "").caused_by(error);
        let bytes = upload::archive(entries).await?;
        let mut state = self.state();
        state.make_parents(&format!("{directory}/"))?;
        for entry in tar::Archive::new(bytes.as_slice()).entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            let name = entry.path().map_err(unreadable)?.to_string_lossy().trim_end_matches('/').to_owned();
            if name == upload::MARKER {
                continue;
            }
            let node = match entry.header().entry_type() {
                tar::EntryType::Directory => Node::Directory,
                tar::EntryType::Symlink => {
                    let target = entry.link_name().map_err(unreadable)?.unwrap_or_default();
                    Node::Link(target.to_string_lossy().into_owned())
                }
                _ => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).map_err(unreadable)?;
                    Node::File(content)
                }
            };
            state.nodes.insert(format!("{directory}/{name}"), node);
        }
        Ok(true)
    }

    async fn socket(&self, path: &str) -> Result<PathBuf, Fault> {
        self.called(HostCall::Socket, format!("socket {path}"))?;
        Ok(self.state().sockets.get(path).cloned().unwrap_or_else(|| PathBuf::from(path)))
    }

    async fn dial(&self, address: &str, port: u16) -> Result<Box<dyn Stream>, Fault> {
        self.called(HostCall::Dial, format!("dial {address}:{port}"))?;
        let unreachable = || Fault::new(FaultKind::Unreachable, "connect", format!("{address}:{port}")).transient();
        let real = self.state().addresses.get(&(address.to_owned(), port)).copied().ok_or_else(unreachable)?;
        let stream = tokio::net::TcpStream::connect(real).await.map_err(|error| unreachable().caused_by(error))?;
        Ok(Box::new(stream))
    }

    async fn close(&self) -> Result<(), Fault> {
        self.called(HostCall::Close, "close".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("/b/*/x", "/b/a/x", true),
            ("/b/*/x", "/b/a/c/x", false),
            ("/b/*", "/b/.a", false),
            ("/b/.*", "/b/.a", true),
            ("/b/a*c*e", "/b/abcde", true),
            ("/b/a*c", "/b/abcd", false),
            ("/b/a*b*c", "/b/ac", false),
            ("/b/[a]?", "/b/ax", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[tokio::test]
    async fn passes_the_suite() {
        crate::testkit::conformance::host::suite(&MemoryHost::default(), "/base").await;
    }
}
