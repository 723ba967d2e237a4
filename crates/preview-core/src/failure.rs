//! Failure codes: one stable word for each way in which a run can end badly, for machines that count, alert and decide.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::fault::{Fault, FaultKind};

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// Why a run ended badly. The words stay; new ones may come. The table in `docs/failure-codes.md` says what to do about each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum FailureCode {
            $($(#[doc = $doc])+ $name,)+
        }

        impl FailureCode {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The word in outputs, state files and reports.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }
        }
    };
}

codes! {
    /// What was handed in is wrong: a flag, a key, a Compose file, a secret that is missing.
    ConfigInvalid = "config_invalid",
    /// There is no such preview or service.
    NotFound = "not_found",
    /// A program or an engine is missing or too old.
    Unsupported = "unsupported",
    /// The Compose files hold what a preview may not have.
    Policy = "policy",
    /// The pull request comes from a fork.
    Fork = "fork",
    /// There is no place, or not enough disk or memory.
    Full = "full",
    /// The name belongs to another branch, pull request or repository.
    NameTaken = "name_taken",
    /// The deploy is heavy, and this is not the time for that.
    OutsideWindow = "outside_window",
    /// The pull request was closed, or a later event came first.
    Superseded = "superseded",
    /// Another run is at work on the preview.
    Locked = "locked",
    /// The VM cannot be reached, or the connection to it was lost.
    VmUnreachable = "vm_unreachable",
    /// The VM's host key is unknown or another one.
    HostKey = "host_key",
    /// Rights on the VM or on its engine are missing.
    VmDenied = "vm_denied",
    /// The VM is there, its engine is not.
    EngineUnreachable = "engine_unreachable",
    /// The run lost its lease.
    LeaseLost = "lease_lost",
    /// The disk is full.
    DiskFull = "disk_full",
    /// A host port is taken.
    PortTaken = "port_taken",
    /// A registry does not hand out an image to us.
    ImagePullDenied = "image_pull_denied",
    /// A registry does not know an image.
    ImageNotFound = "image_not_found",
    /// A registry cannot be reached, or fails.
    ImagePullFailed = "image_pull_failed",
    /// A build failed by itself.
    BuildFailed = "build_failed",
    /// A container cannot be made or started, or does not get to run.
    StartFailed = "start_failed",
    /// A container ended, or ends again and again.
    Exited = "exited",
    /// A container ended for lack of memory.
    OomKilled = "oom_killed",
    /// A health check says no, or did not say yes in time.
    Unhealthy = "unhealthy",
    /// A service that has to answer does not, or not well.
    ProbeFailed = "probe_failed",
    /// The proxy does not take its routes, or does not run.
    ProxyFailed = "proxy_failed",
    /// The preview runs, and its public address cannot be opened.
    PublicUnreachable = "public_unreachable",
    /// A step failed.
    StepFailed = "step_failed",
    /// DNS records cannot be written or removed.
    DnsFailed = "dns_failed",
    /// A limit of time ran out; the phase says where.
    TimedOut = "timed_out",
    /// Ctrl-C, or the CI system ended the job.
    Interrupted = "interrupted",
    /// The run died without a word; a sweep found what it left.
    Crashed = "crashed",
    /// The engine or the VM is not as the run needs it: a name is in use, something went away meanwhile.
    Conflict = "conflict",
    /// An error that nobody foresaw.
    Internal = "internal",
}

impl FailureCode {
    /// The code of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == word)
    }

    /// What a fault is that says no more than its kind.
    #[must_use]
    pub const fn of(kind: FaultKind) -> Self {
        match kind {
            FaultKind::NotFound | FaultKind::Conflict => Self::Conflict,
            FaultKind::PortTaken => Self::PortTaken,
            FaultKind::Denied => Self::VmDenied,
            FaultKind::Unreachable => Self::VmUnreachable,
            FaultKind::HostKey => Self::HostKey,
            FaultKind::TimedOut => Self::TimedOut,
            FaultKind::NoSpace => Self::DiskFull,
            FaultKind::Unsupported => Self::Unsupported,
            FaultKind::Invalid => Self::ConfigInvalid,
            FaultKind::LeaseLost => Self::LeaseLost,
            FaultKind::Failed => Self::Internal,
        }
    }

    /// The one of several that is likeliest the cause of the others: a service that has ended makes others unhealthy,
    /// and those that wait for it do not start.
    pub(crate) fn cause(codes: impl IntoIterator<Item = Self>) -> Option<Self> {
        const FIRST: [FailureCode; 6] = [
            FailureCode::StepFailed,
            FailureCode::OomKilled,
            FailureCode::Exited,
            FailureCode::Unhealthy,
            FailureCode::StartFailed,
            FailureCode::ProbeFailed,
        ];
        codes.into_iter().min_by_key(|code| FIRST.iter().position(|first| first == code).unwrap_or(FIRST.len()))
    }

    /// Reads a code where it may be missing. One of a later version is no damage.
    pub(crate) fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        let word = Option::<String>::deserialize(deserializer)?;
        Ok(word.as_deref().and_then(Self::parse))
    }
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A fault of a pull: the engine speaks for a registry.
pub(crate) fn of_pull(fault: Fault) -> Fault {
    let code = match fault.kind {
        FaultKind::Denied => FailureCode::ImagePullDenied,
        FaultKind::NotFound => FailureCode::ImageNotFound,
        FaultKind::Unreachable => FailureCode::EngineUnreachable,
        FaultKind::TimedOut | FaultKind::Conflict | FaultKind::Failed => FailureCode::ImagePullFailed,
        kind => FailureCode::of(kind),
    };
    fault.or_code(code)
}

/// A fault of a build, which pulls too.
pub(crate) fn of_build(fault: Fault) -> Fault {
    match fault.kind {
        FaultKind::Failed if !fault.transient => fault.or_code(FailureCode::BuildFailed),
        _ => of_pull(fault),
    }
}

/// A fault of bringing a stack up. Nothing is pulled there.
pub(crate) fn of_up(fault: Fault) -> Fault {
    let code = match fault.kind {
        FaultKind::NotFound => FailureCode::ImageNotFound,
        FaultKind::Unreachable => FailureCode::EngineUnreachable,
        FaultKind::Conflict | FaultKind::Failed => FailureCode::StartFailed,
        kind => FailureCode::of(kind),
    };
    fault.or_code(code)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::lifecycle::{Error, FailureReport, Refusal, Restored};
    use crate::stack::Violation;
    use crate::state::Phase;

    /// The rows of the table: exit codes by code.
    fn table() -> BTreeMap<String, Vec<u8>> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/failure-codes.md");
        let text = std::fs::read_to_string(path).expect("the table");
        let rows = text.lines().filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let code = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
            assert_eq!(cells.len(), 7, "{line}");
            assert!(cells[2..6].iter().all(|cell| !cell.is_empty()), "{line}");
            let exits = cells[3].split(", ").map(|exit| exit.parse().expect("an exit code")).collect();
            Some((code.to_owned(), exits))
        });
        rows.collect()
    }

    #[test]
    fn the_table_has_each_code_and_no_other() {
        let known: Vec<String> = FailureCode::ALL.iter().map(ToString::to_string).collect();
        let mut sorted = known.clone();
        sorted.sort();
        assert_eq!(table().into_keys().collect::<Vec<_>>(), sorted);
        for code in FailureCode::ALL {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
            assert_eq!(FailureCode::parse(code.as_str()), Some(*code));
        }
    }

    fn report(failure: FailureCode) -> Box<FailureReport> {
        Box::new(FailureReport {
            name: "pr-7".into(),
            phase: Phase::Starting,
            failure,
            message: String::new(),
            services: vec![],
            output: vec![],
            restored: Restored::Removed,
        })
    }

    #[test]
    fn every_end_has_a_code_whose_exit_codes_are_in_the_table() {
        let mut ends = vec![
            (Error::invalid("x"), "config_invalid"),
            (Error::NotFound("x".into()), "not_found"),
            (Error::rejected(vec![Violation::default()]), "policy"),
            (Error::rejected(vec![Violation::input("x", "y", "z")]), "config_invalid"),
            (Refusal::Fork { number: 7, fork: "x".into() }.into(), "fork"),
            (Refusal::NameTaken { name: "x".into(), by: "y".into() }.into(), "name_taken"),
            (
                Refusal::NotNow { name: "x".into(), window: String::new(), opens: Timestamp::UNIX_EPOCH, limit: None }
                    .into(),
                "outside_window",
            ),
            (Error::Locked { what: "x".into(), holder: None, waited: Duration::ZERO }, "locked"),
            (Error::TimedOut(report(FailureCode::TimedOut)), "timed_out"),
            (Error::Aborted(report(FailureCode::Interrupted)), "interrupted"),
            (Error::Failed(report(FailureCode::Unhealthy)), "unhealthy"),
        ];
        let kinds = [
            (FaultKind::NotFound, "conflict"),
            (FaultKind::Conflict, "conflict"),
            (FaultKind::PortTaken, "port_taken"),
            (FaultKind::Denied, "vm_denied"),
            (FaultKind::Unreachable, "vm_unreachable"),
            (FaultKind::HostKey, "host_key"),
            (FaultKind::TimedOut, "timed_out"),
            (FaultKind::NoSpace, "disk_full"),
            (FaultKind::Unsupported, "unsupported"),
            (FaultKind::Invalid, "config_invalid"),
            (FaultKind::LeaseLost, "lease_lost"),
            (FaultKind::Failed, "internal"),
        ];
        ends.extend(kinds.map(|(kind, word)| (Fault::new(kind, "try", "it").into(), word)));
        let coded = |kind, code| Error::from(Fault::new(kind, "try", "it").coded(code));
        ends.push((coded(FaultKind::TimedOut, FailureCode::Interrupted), "interrupted"));
        ends.push((coded(FaultKind::Unreachable, FailureCode::EngineUnreachable), "engine_unreachable"));
        ends.push((coded(FaultKind::Failed, FailureCode::PublicUnreachable), "public_unreachable"));
        let table = table();
        for (error, word) in ends {
            assert_eq!(error.failure().as_str(), word);
            assert!(table[word].contains(&error.exit_code()), "{word} ends with {}", error.exit_code());
        }
    }

    #[test]
    fn the_same_kind_means_something_else_in_a_pull_a_build_and_an_up() {
        let fault = |kind| Fault::new(kind, "try", "it");
        for (kind, pull, build, up) in [
            (FaultKind::Denied, "image_pull_denied", "image_pull_denied", "vm_denied"),
            (FaultKind::NotFound, "image_not_found", "image_not_found", "image_not_found"),
            (FaultKind::Unreachable, "engine_unreachable", "engine_unreachable", "engine_unreachable"),
            (FaultKind::Failed, "image_pull_failed", "build_failed", "start_failed"),
            (FaultKind::NoSpace, "disk_full", "disk_full", "disk_full"),
            (FaultKind::PortTaken, "port_taken", "port_taken", "port_taken"),
            (FaultKind::LeaseLost, "lease_lost", "lease_lost", "lease_lost"),
        ] {
            let words = [of_pull(fault(kind)), of_build(fault(kind)), of_up(fault(kind))];
            assert_eq!(words.map(|fault| fault.failure().as_str()), [pull, build, up], "{kind:?}");
        }
        let registry = of_build(fault(FaultKind::Failed).transient());
        assert_eq!(registry.failure(), FailureCode::ImagePullFailed, "only a registry gets well by itself in a build");
        let known = of_pull(fault(FaultKind::Unreachable).coded(FailureCode::VmUnreachable));
        assert_eq!(known.failure(), FailureCode::VmUnreachable, "who is closer knows better");
    }

    #[test]
    fn the_cause_of_several() {
        use FailureCode::{Exited, OomKilled, ProbeFailed, StartFailed, Unhealthy};
        assert_eq!(FailureCode::cause([Unhealthy, Exited, StartFailed]), Some(Exited));
        assert_eq!(FailureCode::cause([Exited, OomKilled]), Some(OomKilled));
        assert_eq!(FailureCode::cause([ProbeFailed, StartFailed]), Some(StartFailed));
        assert_eq!(FailureCode::cause([]), None);
    }
}
