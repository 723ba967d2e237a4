//! What a failure of the engine means: bollard's errors as [`Fault`]s. The one place where the engine's words are read.

use std::io::ErrorKind;

use bollard::errors::Error;

use super::transport::Explained;
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};

/// What `operation` on `subject` ran into.
pub(super) fn fault(operation: &'static str, subject: &str, error: Error) -> Fault {
    classify(operation, subject, error, |status, message| by_words(message).unwrap_or_else(|| by_status(status)))
}

/// The same for a pull, where the words are those of a registry and the status is the engine's guess at them.
pub(super) fn pull_fault(reference: &str, error: Error) -> Fault {
    classify("pull image", reference, error, |status, message| {
        by_words(message).or_else(|| by_registry_words(message)).unwrap_or_else(|| by_status(status))
    })
}

/// The limit of time for an answer ran out.
pub(super) fn timed_out(operation: &'static str, subject: &str) -> Fault {
    Fault::new(FaultKind::TimedOut, operation, subject).transient()
}

fn classify(
    operation: &'static str,
    subject: &str,
    error: Error,
    verdict: impl FnOnce(u16, &str) -> (FaultKind, bool),
) -> Fault {
    let (kind, transient) = match &error {
        Error::DockerResponseServerError { status_code: status, message } => {
            return said(operation, subject, message, verdict(*status, message));
        }
        Error::DockerStreamError { error: message } => {
            return said(operation, subject, message, verdict(0, message));
        }
        Error::RequestTimeoutError => return timed_out(operation, subject),
        Error::IOError { err } if err.kind() == ErrorKind::PermissionDenied => (FaultKind::Denied, false),
        Error::IOError { err } if err.get_ref().is_some_and(|inner| inner.is::<Explained>()) => {
            (FaultKind::Unreachable, false)
        }
        Error::IOError { .. }
        | Error::HyperResponseError { .. }
        | Error::HyperLegacyError { .. }
        | Error::SocketNotFoundError(_) => (FaultKind::Unreachable, true),
        // An answer that is cut off in the middle is a lost connection too.
        Error::JsonSerdeError { err } if err.is_eof() => (FaultKind::Unreachable, true),
        _ => (FaultKind::Failed, false),
    };
    let fault = Fault::new(kind, operation, with_help(subject, &error)).caused_by(error);
    // The link to the VM has its own words.
    let fault = if kind == FaultKind::Unreachable { fault.coded(FailureCode::EngineUnreachable) } else { fault };
    if transient { fault.transient() } else { fault }
}

/// What to do where there is no engine, or none that we may use.
fn with_help(subject: &str, error: &Error) -> String {
    if let Error::IOError { err } = error
        && let Some(explained) = err.get_ref().and_then(|inner| inner.downcast_ref::<Explained>())
    {
        return explained.0.clone();
    }
    let help = match error {
        Error::IOError { err } if err.kind() == ErrorKind::PermissionDenied => {
            "the Docker socket is closed to this user: root, and members of the group `docker`, may use it"
        }
        Error::IOError { .. } | Error::HyperResponseError { .. } | Error::HyperLegacyError { .. } => {
            "no Docker engine answers; is it running there (`systemctl status docker`), and is `[vm] docker_socket` its socket?"
        }
        _ => return subject.to_owned(),
    };
    if subject.is_empty() { help.to_owned() } else { format!("{subject}: {help}") }
}

/// A fault whose context is what the engine said.
fn said(operation: &'static str, subject: &str, message: &str, (kind, transient): (FaultKind, bool)) -> Fault {
    let message = message.trim();
    let context = match (subject.is_empty(), message.is_empty()) {
        (true, _) => message.to_owned(),
        (false, true) => subject.to_owned(),
        (false, false) => format!("{subject}: {message}"),
    };
    let fault = Fault::new(kind, operation, context);
    if transient { fault.transient() } else { fault }
}

fn by_status(status: u16) -> (FaultKind, bool) {
    match status {
        400 => (FaultKind::Invalid, false),
        401 | 403 => (FaultKind::Denied, false),
        404 => (FaultKind::NotFound, false),
        408 | 504 => (FaultKind::TimedOut, true),
        409 => (FaultKind::Conflict, false),
        429 | 502 | 503 => (FaultKind::Failed, true),
        _ => (FaultKind::Failed, false),
    }
}

fn has(message: &str, words: &[&str]) -> bool {
    words.iter().any(|word| message.contains(word))
}

/// What the engine tells by words alone: it answers all of these with status 500 or, within a stream, without one.
fn by_words(message: &str) -> Option<(FaultKind, bool)> {
    let message = message.to_ascii_lowercase();
    if has(&message, &["no space left on device", "disk quota exceeded"]) {
        Some((FaultKind::NoSpace, false))
    } else if has(&message, &["port is already allocated", "address already in use", "ports are not available"]) {
        // Transient: the port may be that of a container that is going away.
        Some((FaultKind::PortTaken, true))
    } else if has(&message, &["has active endpoints"]) {
        Some((FaultKind::Conflict, false))
    } else if has(&message, &["client version", "supported api version"]) {
        Some((FaultKind::Unsupported, false))
    } else if has(&message, &["device or resource busy"]) {
        Some((FaultKind::Failed, true))
    } else {
        None
    }
}

fn by_registry_words(message: &str) -> Option<(FaultKind, bool)> {
    let message = message.to_ascii_lowercase();
    // Limits come with a 401 or "denied" in some registries, so they are looked for first.
    if has(&message, &["toomanyrequests", "too many requests", "rate limit"]) {
        Some((FaultKind::Failed, true))
    } else if has(&message, &["denied", "unauthorized", "authentication required", "no basic auth", "forbidden"]) {
        Some((FaultKind::Denied, false))
    } else if has(&message, &["manifest unknown", "name unknown", "no such image", "not found", "does not exist"]) {
        Some((FaultKind::NotFound, false))
    } else if has(&message, &["timeout", "timed out", "deadline exceeded"]) {
        Some((FaultKind::TimedOut, true))
    } else if has(
        &message,
        &[
            "connection reset",
            "connection refused",
            "broken pipe",
            "eof",
            "unexpected http status: 5",
            "unexpected status from get request: 5",
            "internal server error",
            "bad gateway",
            "service unavailable",
            "temporary failure in name resolution",
            "server misbehaving",
            "network is unreachable",
            "no route to host",
        ],
    ) {
        Some((FaultKind::Failed, true))
    } else if has(&message, &["invalid reference"]) {
        Some((FaultKind::Invalid, false))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    fn answer(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError { status_code, message: message.into() }
    }

    fn kind(error: Error) -> (FaultKind, bool) {
        let fault = fault("try", "it", error);
        (fault.kind, fault.transient)
    }

    fn pull(message: &str) -> (FaultKind, bool) {
        let streamed = pull_fault("app:1", Error::DockerStreamError { error: message.into() });
        let answered = pull_fault("app:1", answer(500, message));
        assert_eq!((streamed.kind, streamed.transient), (answered.kind, answered.transient));
        (streamed.kind, streamed.transient)
    }

    #[test]
    fn statuses() {
        assert_eq!(kind(answer(400, "invalid filter")), (FaultKind::Invalid, false));
        assert_eq!(kind(answer(401, "")), (FaultKind::Denied, false));
        assert_eq!(kind(answer(403, "")), (FaultKind::Denied, false));
        assert_eq!(kind(answer(404, "No such container: it")), (FaultKind::NotFound, false));
        assert_eq!(kind(answer(409, "container is not running")), (FaultKind::Conflict, false));
        assert_eq!(kind(answer(500, "something broke")), (FaultKind::Failed, false));
        assert_eq!(kind(answer(503, "shutting down")), (FaultKind::Failed, true));
    }

    #[test]
    fn words_where_the_status_says_nothing() {
        assert_eq!(kind(answer(500, "write /var/lib: no space left on device")), (FaultKind::NoSpace, false));
        assert_eq!(
            kind(answer(500, "Bind for 0.0.0.0:80 failed: port is already allocated")),
            (FaultKind::PortTaken, true)
        );
        assert_eq!(
            kind(answer(500, "listen tcp 0.0.0.0:80: bind: address already in use")),
            (FaultKind::PortTaken, true)
        );
        assert_eq!(kind(answer(403, "network n id 1 has active endpoints")), (FaultKind::Conflict, false));
        assert_eq!(
            kind(answer(400, "client version 1.41 is too old. Minimum supported API version is 2.0")),
            (FaultKind::Unsupported, false)
        );
    }

    #[test]
    fn a_link_that_is_down() {
        for io in [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset, ErrorKind::NotFound, ErrorKind::BrokenPipe]
        {
            assert_eq!(kind(Error::IOError { err: io.into() }), (FaultKind::Unreachable, true), "{io:?}");
        }
        assert_eq!(kind(Error::IOError { err: ErrorKind::PermissionDenied.into() }), (FaultKind::Denied, false));
        assert_eq!(kind(Error::RequestTimeoutError), (FaultKind::TimedOut, true));
    }

    #[test]
    fn registries() {
        let denied = "pull access denied for app, repository does not exist or may require 'docker login': denied";
        assert_eq!(pull(denied), (FaultKind::Denied, false));
        assert_eq!(pull("Head \"https://r/v2/app/manifests/1\": unauthorized: access"), (FaultKind::Denied, false));
        assert_eq!(pull("error parsing HTTP 403 response body: 403 Forbidden"), (FaultKind::Denied, false));
        assert_eq!(pull("manifest for app:1 not found: manifest unknown"), (FaultKind::NotFound, false));
        assert_eq!(pull("Get \"https://r/v2/\": net/http: TLS handshake timeout"), (FaultKind::TimedOut, true));
        assert_eq!(
            pull("read tcp 10.0.0.1:1->10.0.0.2:443: read: connection reset by peer"),
            (FaultKind::Failed, true)
        );
        assert_eq!(pull("received unexpected HTTP status: 502 Bad Gateway"), (FaultKind::Failed, true));
        assert_eq!(pull("toomanyrequests: You have reached your pull rate limit"), (FaultKind::Failed, true));
        assert_eq!(pull("dial tcp: lookup registry.invalid: no such host"), (FaultKind::Failed, false));
        assert_eq!(pull("write /var/lib/docker/tmp: no space left on device"), (FaultKind::NoSpace, false));
        let answered = pull_fault("app:1", answer(404, "whatever"));
        assert_eq!(answered.kind, FaultKind::NotFound);
    }

    #[test]
    fn a_cause_is_not_repeated_and_an_answer_is_the_context() {
        let fault = fault("inspect container", "web", answer(404, "No such container: web"));
        assert_eq!(fault.to_string(), "cannot inspect container: web: No such container: web");
        assert!(fault.source().is_none());
        let lost = super::fault("list containers", "", Error::IOError { err: ErrorKind::ConnectionReset.into() });
        assert!(lost.to_string().starts_with("cannot list containers: no Docker engine answers; "), "{lost}");
        assert!(lost.source().is_some());
    }
}
