//! A TLS handshake as the world makes it, and what is to be said about the chain that was shown.
//!
//! The handshake accepts any chain, since a bad one is to be described; nothing secret goes over the connection. Whether it is good
//! is rustls's word, asked once for now and once for a time after every certificate's end: its answer to that names the end, so that no
//! parser for certificates is needed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It ended then.
    Expired(Option<Timestamp>),
    /// It has not begun.
    NotYet,
    /// It is for these names.
    Name(Vec<String>),
    /// Nobody known vouches for it.
    Issuer,
    /// Nobody is known who could vouch.
    Roots(String),
    /// There was no handshake.
    Handshake(String),
    /// Anything else.
    Other(String),
}

/// Who may vouch: the authorities of this file, or those that this machine trusts.
pub(crate) fn roots(file: Option<&Path>) -> Result<Arc<RootCertStore>, Trouble> {
    let mut store = RootCertStore::empty();
    if let Some(file) = file {
        let wrong = |error: String| Trouble::Roots(format!("--ca {}: {error}", file.display()));
        let certificates = CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            store.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
    } else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if store.is_empty() {
        let none = "there is no certificate authority to compare with".to_owned();
        return Err(Trouble::Roots(
            file.map_or(none, |file| format!("--ca {}: it holds no certificate", file.display())),
        ));
    }
    Ok(Arc::new(store))
}

/// Accepts every chain; the handshake itself is checked.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Greets the server by this name; the chain that it shows is in the stream.
pub(super) async fn greet(stream: TcpStream, name: &str) -> Result<TlsStream<TcpStream>, Trouble> {
    let failed = |error: String| Trouble::Handshake(error);
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    let server = ServerName::try_from(name.to_owned()).map_err(|error| failed(error.to_string()))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(server, stream).await;
    connected.map_err(|error| failed(error.to_string()))
}

/// Until when the chain that was shown holds for this name.
pub(super) fn judge(
    stream: &TlsStream<TcpStream>,
    name: &str,
    roots: Arc<RootCertStore>,
    now: Timestamp,
) -> Result<Timestamp, Trouble> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain_holds(chain, name, roots, now)
}

/// Until when a chain holds for this name.
pub(crate) fn chain_holds(
    chain: &[CertificateDer<'_>],
    name: &str,
    roots: Arc<RootCertStore>,
    now: Timestamp,
) -> Result<Timestamp, Trouble> {
    let other = |error: String| Trouble::Other(error);
    let (own, between) = chain.split_first().ok_or_else(|| other("the server shows no certificate".to_owned()))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::new(ring::default_provider()))
        .build()
        .map_err(|error| other(error.to_string()))?;
    let server = ServerName::try_from(name.to_owned()).map_err(|error| other(error.to_string()))?;
    let verify = |at: Timestamp| {
        let since = u64::try_from(at.as_second()).unwrap_or_default();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(since));
        verifier.verify_server_cert(own, between, &server, &[], at)
    };
    verify(now).map_err(trouble)?;
    // The end of the whole chain is that of whichever ends first: what holds until then holds, and what is asked for later does not.
    let mut end = match verify(Timestamp::MAX).map_err(trouble) {
        Err(Trouble::Expired(Some(end))) => end,
        Err(trouble) => return Err(trouble),
        Ok(_) => Timestamp::MAX,
    };
    while let Err(Trouble::Expired(Some(earlier))) = verify(end).map_err(trouble) {
        if earlier >= end {
            break;
        }
        end = earlier;
    }
    Ok(end)
}

fn trouble(error: rustls::Error) -> Trouble {
    let at = |time: UnixTime| Timestamp::from_second(i64::try_from(time.as_secs()).unwrap_or(i64::MAX)).ok();
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::Expired => Trouble::Expired(None),
            CertificateError::ExpiredContext { not_after, .. } => Trouble::Expired(at(not_after)),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Trouble::NotYet,
            CertificateError::NotValidForName => Trouble::Name(Vec::new()),
            CertificateError::NotValidForNameContext { presented, .. } => {
                Trouble::Name(presented.into_iter().map(|name| plain(&name)).collect())
            }
            // What a server made for itself is an authority that shows itself, and nobody's in any case.
            CertificateError::UnknownIssuer => Trouble::Issuer,
            error => Trouble::Other(rustls::Error::InvalidCertificate(error).to_string()),
        },
        error => Trouble::Other(error.to_string()),
    }
}

/// `DnsName("a.example")` as `a.example`.
pub(crate) fn plain(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"').to_owned()
}
