//! Whether a certificate that is given to the proxy can serve: it has its key, is valid now, is for the domain, and an authority signed it.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

use super::proxy::Tls;
use crate::doctor::tls::{Trouble, chain_holds, roots};

/// Less than this is left where somebody forgot to renew it.
const SOON_SECONDS: i64 = 14 * 86_400;
/// What to do instead.
const INSTEAD: &str = "use a certificate of an authority, have one issued (`--acme-email`, `--acme-dns`), or let the proxy make one that \
    browsers warn of (`--self-signed`)";

/// Checks the certificate of a wish against the hosts that previews are to have. Nothing is connected to.
///
/// # Errors
/// In one sentence why it cannot serve. The value is what is odd about one that can.
pub fn check_certificate(tls: &Tls, hosts: &[String], now: Timestamp) -> Result<Vec<String>, String> {
    match tls {
        Tls::Files { certificate, key } => judge(certificate, key.expose(), hosts, roots(None), now),
        _ => Ok(Vec::new()),
    }
}

fn judge(
    certificate: &str,
    key: &str,
    hosts: &[String],
    trusted: Result<Arc<RootCertStore>, Trouble>,
    now: Timestamp,
) -> Result<Vec<String>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
    let chain = chain.map_err(|error| format!("--cert cannot be read: {error}"))?;
    let own = chain.first().ok_or("--cert holds no certificate")?;
    if key.contains("ENCRYPTED") {
        return Err(
            "--key has a passphrase, which the proxy cannot ask for: `openssl pkey -in KEY -out PLAIN-KEY`".to_owned()
        );
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| "--key holds no private key in PEM form")?;
    match CertifiedKey::from_der(chain.clone(), key, &ring::default_provider()) {
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err("--key is the key of another certificate than --cert".to_owned());
        }
        Err(error) => return Err(format!("--cert and --key cannot be used together: {error}")),
        Ok(_) => {}
    }
    let mut itself = RootCertStore::empty();
    let _ = itself.add(own.clone());
    let itself = Arc::new(itself);
    // Any name: whether it is for the right ones is asked below.
    let some = hosts.first().map_or("preview.example.com", String::as_str);
    let holds = |authorities: &Arc<RootCertStore>| match chain_holds(&chain, some, Arc::clone(authorities), now) {
        Err(Trouble::Name(_)) => Ok(Timestamp::MAX),
        other => other,
    };
    let trusted = trusted.unwrap_or_else(|_| Arc::clone(&itself));
    let mut doubts = Vec::new();
    match holds(&trusted) {
        Err(Trouble::Expired(end)) => {
            let when = end.map_or_else(String::new, |end| format!(" on {}", end.strftime("%Y-%m-%d")));
            return Err(format!("--cert expired{when}: {INSTEAD}"));
        }
        Err(Trouble::NotYet) => return Err("--cert is not valid yet; is this machine's clock right?".to_owned()),
        Err(Trouble::Issuer) if holds(&itself).is_ok() => return Err(format!("--cert is signed by itself: {INSTEAD}")),
        Err(Trouble::Issuer) => doubts.push(
            "--cert: nobody that this machine trusts vouches for it. If it is of a private authority, every visitor needs that; else the file \
             lacks the certificates in between (the whole chain belongs there)"
                .to_owned(),
        ),
        Err(Trouble::Other(why)) => {
            return Err(format!("--cert is no server's certificate ({why}); one that signs itself is its own authority: {INSTEAD}"));
        }
        Err(other) => doubts.push(format!("--cert could not be compared with authorities: {other:?}")),
        Ok(end) if end.as_second().saturating_sub(now.as_second()) < SOON_SECONDS => {
            doubts.push(format!("--cert ends on {}", end.strftime("%Y-%m-%d")));
        }
        Ok(_) => {}
    }
    let parsed = ParsedCertificate::try_from(own).map_err(|error| format!("--cert cannot be read: {error}"))?;
    for host in hosts {
        let name = ServerName::try_from(host.as_str()).map_err(|error| format!("{host}: {error}"))?;
        match verify_server_name(&parsed, &name) {
            Ok(()) => {}
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })) => {
                let presented: Vec<String> = presented.iter().map(|name| crate::doctor::tls::plain(name)).collect();
                return Err(format!(
                    "--cert is not for {host}, a host that previews would have; it is for: {}. A wildcard certificate `*.DOMAIN` is wanted",
                    presented.join(", ")
                ));
            }
            Err(_) => return Err(format!("--cert is not for {host}, a host that previews would have")),
        }
    }
    Ok(doubts)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Makes an authority, and certificates by it and by themselves, in a directory of their own.
    fn made() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let script = include_str!("tests/certificates.sh");
        let output = Command::new("sh").args(["-c", script]).current_dir(directory.path()).output().expect("sh runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        directory
    }

    #[test]
    fn what_cannot_serve_is_refused_with_its_reason() {
        let directory = made();
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).expect(name);
        let authority = || {
            let mut store = RootCertStore::empty();
            for own in CertificateDer::pem_slice_iter(read("ca.pem").as_bytes()) {
                store.add(own.expect("a certificate")).expect("an authority");
            }
            Ok(Arc::new(store))
        };
        let now = Timestamp::now();
        let hosts = ["pr-1.preview.test".to_owned()];
        let judged = |name: &str, key: &str| {
            judge(&read(&format!("{name}.pem")), &read(&format!("{key}.key")), &hosts, authority(), now)
        };
        assert_eq!(judged("good", "good"), Ok(vec![]));
        let soon = judged("soon", "good").expect("it serves for now");
        assert!(soon[0].starts_with("--cert ends on "), "{soon:?}");
        for (name, key, words) in [
            ("good", "other", "--key is the key of another certificate"),
            ("elsewhere", "good", "is not for pr-1.preview.test"),
            ("expired", "good", "--cert expired on 20"),
            ("early", "good", "is not valid yet"),
            ("itself", "good", "signed by itself"),
            ("itself-ca", "good", "its own authority"),
            ("good", "locked", "has a passphrase"),
            ("good", "empty", "holds no private key"),
            ("empty", "good", "holds no certificate"),
        ] {
            let wrong = judged(name, key).expect_err(name);
            assert!(wrong.contains(words), "{name}: {wrong}");
            assert!(!wrong.contains("PRIVATE KEY-----"), "{wrong}");
        }
        // Another authority's: it may be a private one that all visitors know.
        let stranger = judge(&read("good.pem"), &read("good.key"), &hosts, roots(None), now).expect("it may serve");
        assert!(stranger[0].contains("nobody that this machine trusts"), "{stranger:?}");
        // Where it is not known which hosts there will be, it is not compared with any.
        assert_eq!(judge(&read("elsewhere.pem"), &read("good.key"), &[], authority(), now), Ok(vec![]));
        assert_eq!(check_certificate(&Tls::SelfSigned, &hosts, now), Ok(vec![]));
    }
}
