//! HTTP for adapters: one kind of client, with limits of time, and faults that say what happened on the way.

use std::time::Duration;

use crate::fault::{Fault, FaultKind};

/// One request may take so long, its answer included.
const LIMIT: Duration = Duration::from_secs(30);
/// And so long of that to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// A client that trusts the certificate authorities of this machine (`SSL_CERT_FILE` names others), and follows no redirect: none of the APIs makes one,
/// and a token must not go anywhere else.
pub(crate) fn client(operation: &'static str) -> Result<reqwest::Client, Fault> {
    // Whoever was first: it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("preview/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .timeout(LIMIT)
        .connect_timeout(CONNECT)
        .build()
        .map_err(|error| {
            let context =
                "no TLS on this machine: does it have certificate authorities (Debian's package ca-certificates)?";
            Fault::new(FaultKind::Unsupported, operation, context).caused_by(error)
        })
}

/// A request that got no answer.
pub(crate) fn fault(operation: &'static str, server: &str, error: reqwest::Error) -> Fault {
    let (kind, why) = if error.is_timeout() {
        (FaultKind::TimedOut, "does not answer in time")
    } else if error.is_connect() {
        (FaultKind::Unreachable, "cannot be reached")
    } else {
        (FaultKind::Unreachable, "gave no whole answer")
    };
    // The address may hold what a caller put into the query.
    Fault::new(kind, operation, format!("{server} {why}")).transient().caused_by(error.without_url())
}

/// A value of a query, or a part of a path: what would end it or mean something else is escaped.
pub(crate) fn escape(part: &str) -> String {
    let mut text = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}
