//! The certificate that a machine's proxy has already: found in the files that an earlier run wrote, and kept word for word where nobody asks for another. Pure.

use std::collections::BTreeMap;

use super::config::yaml;
use super::path;
use crate::setup::PROXY_DIR;

/// Where `traefik.yml` begins to say who issues certificates: its last part.
const ISSUERS: &str = "\ncertificatesResolvers:\n";
/// Where `dynamic/tls.yml` begins to say which certificate is shown: its last part.
const STORES: &str = "\n  stores:\n";
/// Where the container has what lies in `certs/`.
const MOUNTED: &str = "/etc/traefik/certs/";
const VARIABLES: &str = "acme.env";
const AUTHORITY: &str = "certs/acme-ca.pem";

/// What the proxy's directory holds of certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Content of `traefik.yml`.
    pub traefik: String,
    /// Content of `dynamic/tls.yml`.
    pub tls: String,
    /// Certificates, keys and variables: path below the directory, SHA-256.
    pub files: BTreeMap<String, String>,
}

/// A certificate that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::setup) struct Kept {
    /// Who issues it, for the end of `traefik.yml`; nothing if it was given.
    pub(super) issuers: String,
    /// Which it is, for the end of `dynamic/tls.yml`.
    pub(super) stores: String,
    /// Its files by their whole path, with their hashes.
    pub(super) files: BTreeMap<String, String>,
}

impl Kept {
    /// Whether Traefik orders it.
    pub(super) const fn ordered(&self) -> bool {
        !self.issuers.is_empty()
    }
}

/// The certificate that is there, if there is one; `domain` is what the caller believes it to be for.
///
/// # Errors
/// If there was one and its files are incomplete: nobody should get another one unasked.
pub(in crate::setup) fn find(present: &Present, domain: Option<&str>) -> Result<Option<Kept>, String> {
    let tail = |text: &str, begin: &str| text.find(begin).map_or_else(String::new, |at| text[at + 1..].to_owned());
    let (issuers, stores) = (tail(&present.traefik, ISSUERS), tail(&present.tls, STORES));
    if issuers.is_empty() && stores.is_empty() && present.files.is_empty() {
        return Ok(None);
    }
    let wanted: Vec<String> = if issuers.is_empty() {
        stores.lines().filter_map(|line| Some(format!("certs/{}", line.split_once(MOUNTED)?.1.trim()))).collect()
    } else {
        vec![VARIABLES.to_owned()]
    };
    let missing = wanted.iter().find(|name| !present.files.contains_key(*name)).map(|name| path(name));
    let missing = if stores.is_empty() || wanted.is_empty() {
        Some("what dynamic/tls.yml and traefik.yml say of it".to_owned())
    } else {
        missing
    };
    if let Some(missing) = missing {
        return Err(format!(
            "the proxy had a certificate, and not all of it is in {PROXY_DIR}: {missing} is missing. Say which it is to have: --cert and --key, --acme-email and what belongs to it, or --self-signed"
        ));
    }
    if let Some(domain) = domain
        && !issuers.is_empty()
        && !stores.contains(&format!("main: {}\n", yaml(&format!("*.{domain}"))))
    {
        return Err(format!(
            "the proxy orders its certificate for another domain than {domain}: give --acme-email, --acme-dns and --acme-env again to have it ordered for this one"
        ));
    }
    let kept = wanted.iter().map(String::as_str).chain((!issuers.is_empty()).then_some(AUTHORITY));
    let files = kept.filter_map(|name| Some((path(name), present.files.get(name)?.clone()))).collect();
    Ok(Some(Kept { issuers, stores, files }))
}
