//! Where a preview is in its life, what may follow, and the schema of the state file (which holds no secret).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::admission::Weight;
use crate::engine::ImageFacts;
use crate::failure::FailureCode;

/// Version of the state file's schema that this build writes and reads.
pub const SCHEMA: u32 = 1;

/// Where a preview is in its life.
///
/// ```text
/// queued → preparing → building → pulling → starting → verifying → ready
/// any of these → failed | timed_out | aborted;  ready → preparing is an update;  destroying ends in absence
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits for a place.
    Queued,
    /// Reads, checks, uploads.
    Preparing,
    /// Builds images.
    Building,
    /// Pulls images.
    Pulling,
    /// Brings the stack up.
    Starting,
    /// Waits for health, runs steps, probes.
    Verifying,
    /// Answers.
    Ready,
    /// A run failed; what ran before it runs again, or nothing does.
    Failed,
    /// A run exceeded its time.
    TimedOut,
    /// A run was interrupted.
    Aborted,
    /// Is being removed.
    Destroying,
}

/// A step that the state machine does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a preview that is {from} cannot become {to}")]
pub struct IllegalTransition {
    /// Where it is.
    pub from: Phase,
    /// Where it was to go.
    pub to: Phase,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 11] = [
        Self::Queued,
        Self::Preparing,
        Self::Building,
        Self::Pulling,
        Self::Starting,
        Self::Verifying,
        Self::Ready,
        Self::Failed,
        Self::TimedOut,
        Self::Aborted,
        Self::Destroying,
    ];

    /// Whether a run is at work. Such a phase with a free lock means that the run died.
    #[must_use]
    pub const fn in_flight(self) -> bool {
        matches!(
            self,
            Self::Queued
                | Self::Preparing
                | Self::Building
                | Self::Pulling
                | Self::Starting
                | Self::Verifying
                | Self::Destroying
        )
    }

    /// The next phase, if that step is legal.
    ///
    /// A new run may begin (`preparing`, `destroying`) from every phase: it holds the lock, so whoever left a phase in flight is dead.
    /// Stages that have nothing to do are skipped, never run backwards.
    pub fn to(self, next: Self) -> Result<Self, IllegalTransition> {
        use Phase::{Aborted, Destroying, Failed, Preparing, Queued, Ready, TimedOut};
        let legal = match next {
            Preparing | Destroying => true,
            Queued => !self.in_flight(),
            Failed | TimedOut | Aborted => self.in_flight(),
            // `ready` right from `preparing`: nothing differed.
            Ready => self.in_flight() && self != Destroying && self != Queued,
            _ => self.in_flight() && self != Destroying && self < next && self != Queued,
        };
        if legal { Ok(next) } else { Err(IllegalTransition { from: self, to: next }) }
    }

    /// The word in state files and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Building => "building",
            Self::Pulling => "pulling",
            Self::Starting => "starting",
            Self::Verifying => "verifying",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Aborted => "aborted",
            Self::Destroying => "destroying",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a preview is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// A pull or merge request.
    Pull(u64),
    /// A branch.
    Branch(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pull(number) => write!(f, "pull request {number}"),
            Self::Branch(branch) => write!(f, "branch {branch}"),
        }
    }
}

/// A public address of a preview.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The service that answers.
    pub service: String,
    /// The service's port.
    pub port: u16,
    /// The address.
    pub url: String,
}

impl Address {
    /// Whether a browser can open it.
    #[must_use]
    pub fn is_web(&self) -> bool {
        self.url.starts_with("http://") || self.url.starts_with("https://")
    }

    /// The port of the host that it is, and its protocol, where it is a published port that is no web address.
    #[must_use]
    pub fn published(&self) -> Option<(&str, u16)> {
        let (protocol, rest) = self.url.split_once("://127.0.0.1:")?;
        if self.is_web() { None } else { Some((protocol, rest.parse().ok()?)) }
    }

    /// The address for people: an URL, or which port of the host is which port of a service.
    #[must_use]
    pub fn text(&self) -> String {
        match self.published() {
            Some((protocol, port)) => format!("127.0.0.1:{port} ({} {}/{protocol})", self.service, self.port),
            None => self.url.clone(),
        }
    }

    /// The one to open first: that of a page where there is one, never a published port that is no web address.
    #[must_use]
    pub fn first(all: &[Self]) -> Option<String> {
        let open = all.iter().filter(|address| address.published().is_none());
        open.min_by_key(|address| !address.is_web()).map(|address| address.url.clone())
    }
}

/// The stack that last became ready: what an update that fails goes back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Good {
    /// SHA-256 of the rendered stack and of the steps that follow it.
    pub digest: String,
    /// Name of the file that holds the rendered stack. It is named by its content, so that this record and the stack it means
    /// change in one step, whenever the run dies.
    pub stack: String,
    /// Ids of the containers by service, sorted.
    pub containers: BTreeMap<String, Vec<String>>,
    /// Ids of the images by the name in the stack.
    pub images: BTreeMap<String, String>,
    /// What these images say of their containers, by id. Older versions did not write it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, ImageFacts>,
    /// The hash of each root of the repository's files, by the root's id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roots: BTreeMap<String, String>,
    /// Name of the file that holds the manifest of these files; by its content, as the stack's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// Hosts that have a DNS record of their own.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub records: BTreeSet<String>,
    /// How many places it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// The commit, if it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Name of the file that holds what a proxy that is told by files was told; by its content, as the stack's. Older versions did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<String>,
    /// Its public addresses. Older versions did not write them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    /// When it became ready.
    pub at: Timestamp,
}

/// Why the last run did not get to `ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the run was doing.
    pub phase: Phase,
    /// What went wrong, for machines. Older versions did not write it.
    #[serde(default, deserialize_with = "FailureCode::lenient", skip_serializing_if = "Option::is_none")]
    pub code: Option<FailureCode>,
    /// What went wrong, for people; without secrets.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// The state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The application.
    pub app: String,
    /// The preview's name.
    pub name: String,
    /// The Compose project.
    pub project: String,
    /// What it is of.
    pub subject: Subject,
    /// The repository, where known: `acme/shop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The project's directory within its repository, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How many places it takes.
    #[serde(default)]
    pub weight: Weight,
    /// What its containers may take at most in all, bytes.
    #[serde(default)]
    pub memory: u64,
    /// Where it is.
    pub phase: Phase,
    /// When it was made; survives updates.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When the event happened that the last run was for; without an event, when that run began, on the host's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_at: Option<Timestamp>,
    /// A sweep may remove it from then on; never, where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Somebody wants it kept until then, whatever the time above says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_until: Option<Timestamp>,
    /// Never expires, and never makes room for another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// The commit that the last run brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Public addresses.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// Host ports that belong to this preview for its whole life, by `service:port/protocol`.
    #[serde(default)]
    pub ports: BTreeMap<String, u16>,
    /// The random part of the names of its built images and cache mounts, made once; other pull requests must not learn of it. Older
    /// versions did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_token: Option<String>,
    /// Hosts that may have a DNS record of ours: said before one is written, forgotten after it is gone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub records: BTreeSet<String>,
    /// Name of the file with the manifest of the repository's files that a run put, or began to put, into the preview's volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// The last stack that became ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good: Option<Good>,
    /// Why the last run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// A state file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not of the schema.
    #[error("the state file {path} is damaged")]
    Damaged {
        /// Where it is on the host.
        path: String,
        /// The reader's word.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a newer version.
    #[error("the state file {path} has schema {found}, this version of preview knows up to {SCHEMA}: use a newer one")]
    Newer {
        /// Where it is on the host.
        path: String,
        /// Its schema.
        found: u32,
    },
}

impl State {
    /// Reads a state file's content.
    pub fn parse(path: &str, text: &str) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let damaged = |source| StateError::Damaged { path: path.to_owned(), source };
        let version: Version = serde_json::from_str(text).map_err(damaged)?;
        if version.schema > SCHEMA {
            return Err(StateError::Newer { path: path.to_owned(), found: version.schema });
        }
        serde_json::from_str(text).map_err(damaged)
    }

    /// The state file's content.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of strings, numbers and maps with string keys always serialises.
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// When its time is over; `None`: never.
    #[must_use]
    pub fn expiry(&self) -> Option<Timestamp> {
        let at = self.expires_at.filter(|_| !self.pinned)?;
        Some(self.keep_until.map_or(at, |kept| at.max(kept)))
    }

    /// Moves on.
    pub fn advance(&mut self, next: Phase, now: Timestamp) -> Result<(), IllegalTransition> {
        self.phase = self.phase.to(next)?;
        self.updated_at = now;
        Ok(())
    }
}

/// A small file of the host: one line of JSON.
pub(crate) fn line(value: &impl Serialize) -> Vec<u8> {
    // A struct of strings and numbers always serialises.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A preview that is ready, for tests.
    pub(crate) fn state() -> State {
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        State {
            schema: SCHEMA,
            app: "shop".to_owned(),
            name: "pr-7".to_owned(),
            project: "shop_pr-7".to_owned(),
            subject: Subject::Pull(7),
            repository: None,
            directory: None,
            owner: None,
            weight: Weight::default(),
            memory: 0,
            phase: Phase::Ready,
            created_at: at,
            updated_at: at,
            event_at: None,
            expires_at: None,
            keep_until: None,
            pinned: false,
            commit: None,
            addresses: vec![],
            ports: BTreeMap::new(),
            image_token: None,
            records: BTreeSet::new(),
            tree: None,
            good: None,
            failure: None,
        }
    }

    #[test]
    fn a_first_deploy_walks_through_all_phases() {
        let mut phase = Phase::Preparing;
        for next in [Phase::Building, Phase::Pulling, Phase::Starting, Phase::Verifying, Phase::Ready, Phase::Preparing]
        {
            phase = phase.to(next).unwrap();
        }
        assert_eq!(phase, Phase::Preparing);
    }

    #[test]
    fn stages_are_skipped_but_never_run_backwards() {
        assert!(Phase::Preparing.to(Phase::Starting).is_ok());
        assert!(Phase::Starting.to(Phase::Building).is_err());
        assert!(Phase::Verifying.to(Phase::Starting).is_err());
        assert!(Phase::Ready.to(Phase::Starting).is_err());
        assert!(Phase::Failed.to(Phase::Ready).is_err());
        assert!(Phase::Destroying.to(Phase::Ready).is_err());
        assert!(Phase::Destroying.to(Phase::Building).is_err());
    }

    #[test]
    fn every_flight_can_end_badly_and_nothing_else_can() {
        for phase in Phase::ALL {
            for end in [Phase::Failed, Phase::TimedOut, Phase::Aborted] {
                assert_eq!(phase.to(end).is_ok(), phase.in_flight(), "{phase} to {end}");
            }
            assert!(phase.to(Phase::Preparing).is_ok());
            assert!(phase.to(Phase::Destroying).is_ok());
        }
    }

    #[test]
    fn a_newer_schema_is_refused_by_name_and_damage_is_told_apart() {
        let error = State::parse("/x/state.json", r#"{"schema": 9}"#).unwrap_err();
        assert!(matches!(error, StateError::Newer { found: 9, .. }), "{error}");
        assert!(matches!(State::parse("/x", "{").unwrap_err(), StateError::Damaged { .. }));
    }

    #[test]
    fn a_failure_of_an_older_or_newer_version_is_read() {
        let read = |code: &str| -> Failure {
            let text = format!(r#"{{"phase": "starting", {code} "message": "x", "at": "2026-01-01T00:00:00Z"}}"#);
            serde_json::from_str(&text).unwrap()
        };
        assert_eq!(read("").code, None);
        assert_eq!(read(r#""code": "unhealthy","#).code, Some(FailureCode::Unhealthy));
        assert_eq!(read(r#""code": "of_a_later_version","#).code, None);
    }

    #[test]
    fn a_good_version_that_an_older_program_wrote_is_read() {
        let text = r#"{"digest": "d", "stack": "stack-1.json", "containers": {}, "images": {}, "files": [], "at": "2026-01-01T00:00:00Z"}"#;
        let good: Good = serde_json::from_str(text).unwrap();
        assert_eq!((good.routes, good.addresses, good.weight), (None, vec![], None));
    }

    #[test]
    fn published_ports_of_other_protocols_are_no_urls() {
        let address = |service: &str, port, url: &str| Address { service: service.into(), port, url: url.into() };
        let db = address("db", 5432, "tcp://127.0.0.1:20001");
        assert_eq!(db.text(), "127.0.0.1:20001 (db 5432/tcp)");
        let web = address("web", 8000, "http://127.0.0.1:20002");
        assert_eq!((web.text(), web.published()), (web.url.clone(), None));
        let proxied = address("db", 5432, "tcp://pr-7-db.example.com");
        assert_eq!(proxied.text(), proxied.url);
        assert_eq!(Address::first(&[db.clone(), proxied.clone(), web.clone()]), Some(web.url));
        assert_eq!(Address::first(&[db.clone(), proxied.clone()]), Some(proxied.url));
        assert_eq!(Address::first(&[db]), None);
    }

    #[test]
    fn the_word_in_json_is_the_word_for_people() {
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_string(&phase).unwrap(), format!("\"{phase}\""));
        }
    }
}
