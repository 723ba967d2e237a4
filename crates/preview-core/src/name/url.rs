//! Public addresses and their templates.

use std::fmt;

use super::template::{Hole, Piece, holds, label, pieces};
use super::{NameError, slug};

/// How an address is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scheme {
    Http,
    Https,
    Tcp,
}

impl Scheme {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
        }
    }
}

/// The public address of a route: `https://pr-7.example.com`, `https://example.com/pr-7`.
///
/// No user, query or fragment; the host is in lower case; the path is empty or starts with `/`, and does not end with one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(into = "String")]
pub struct Url {
    pub(super) scheme: Scheme,
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) path: String,
}

impl Url {
    /// Whether the scheme is `https`.
    #[must_use]
    pub const fn is_https(&self) -> bool {
        matches!(self.scheme, Scheme::Https)
    }

    /// The host, without the port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, where the address names one.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// The path: empty, or `/` and more.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

impl From<Url> for String {
    fn from(url: Url) -> Self {
        url.to_string()
    }
}

/// A template for public addresses: `https://{name}.example.com`, `https://example.com/{name}`.
///
/// Placeholders: `{name}`, `{number}`, `{slug}`, `{app}` and `{service}`, in the host and in the path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct UrlTemplate {
    text: String,
    pub(super) scheme: Scheme,
    pub(super) labels: Vec<Vec<Piece>>,
    pub(super) port: Option<u16>,
    pub(super) path: Vec<Piece>,
}

impl UrlTemplate {
    /// Checks a template. It holds `{name}`, `{number}` or `{slug}`: without one, all previews would share an address.
    pub fn parse(template: &str) -> Result<Self, NameError> {
        let parsed = parse(template).map_err(|reason| NameError::Template { template: template.to_owned(), reason })?;
        Ok(parsed)
    }

    /// The template with `{service}` filled in, by the rules of slugs. Without that placeholder it stays as it is.
    pub fn with_service(&self, service: &str) -> Result<Self, NameError> {
        if !self.holds(Hole::Service) {
            return Ok(self.clone());
        }
        let name = slug::clean(service);
        if name.is_empty() {
            let reason = format!("the service `{service}` has no character that an address may hold");
            return Err(NameError::Template { template: self.text.clone(), reason });
        }
        Self::parse(&self.text.replace("{service}", &name))
    }

    /// Whether `{service}` occurs.
    #[must_use]
    pub fn names_service(&self) -> bool {
        self.holds(Hole::Service)
    }

    /// Whether it is for connections that are not HTTP.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.scheme == Scheme::Tcp
    }

    /// Whether it is for HTTP without TLS.
    #[must_use]
    pub fn is_http(&self) -> bool {
        self.scheme == Scheme::Http
    }

    /// Whether each preview has a host of its own, rather than a path on a host that others share.
    #[must_use]
    pub fn has_own_host(&self) -> bool {
        let own =
            |label: &Vec<Piece>| [Hole::Name, Hole::Number, Hole::Slug].into_iter().any(|hole| holds(label, hole));
        self.labels.iter().any(own)
    }

    pub(super) fn holds(&self, hole: Hole) -> bool {
        self.labels.iter().chain([&self.path]).any(|part| holds(part, hole))
    }
}

/// The error is the reason alone.
fn parse(template: &str) -> Result<UrlTemplate, String> {
    let (scheme, rest) = template.split_once("://").ok_or("an address starts with `https://` or `http://`")?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        "tcp" => Scheme::Tcp,
        _ => return Err(format!("the scheme is `https`, `http` or `tcp`, not `{scheme}`")),
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    if authority.contains('@') {
        return Err("an address has no user or password in it".to_owned());
    }
    if template.contains(['?', '#']) {
        return Err("an address has no `?` or `#` in it".to_owned());
    }
    let (host, port) = match authority.split_once(':') {
        None => (authority, None),
        Some((host, port)) => {
            let number = port.parse::<u16>().ok().filter(|number| *number > 0);
            (host, Some(number.ok_or_else(|| format!("`{port}` is not a port"))?))
        }
    };
    if host.is_empty() {
        return Err("the host is missing".to_owned());
    }
    let labels = host.to_ascii_lowercase().split('.').map(label).collect::<Result<Vec<_>, _>>()?;
    let path = path.trim_end_matches('/');
    if scheme == Scheme::Tcp && !path.is_empty() {
        return Err("an address with `tcp://` has no path: the name alone leads there".to_owned());
    }
    for segment in path.split('/').skip(1) {
        if matches!(segment, "" | "." | "..") {
            return Err("the path holds `//` or a part that is only dots".to_owned());
        }
    }
    let path = pieces(path)?;
    for piece in &path {
        // What may stand in a path unescaped. Proxies write the path into rules, where a quote would end it.
        if let Piece::Text(text) = piece
            && let Some(odd) = text.chars().find(|odd| !(odd.is_ascii_alphanumeric() || "/-._~".contains(*odd)))
        {
            return Err(format!("the path holds `{}`; a-z, A-Z, 0-9 and / - . _ ~ are allowed", odd.escape_debug()));
        }
    }
    let parsed = UrlTemplate { text: template.to_owned(), scheme, labels, port, path };
    if [Hole::Name, Hole::Number, Hole::Slug].into_iter().any(|hole| parsed.holds(hole)) {
        Ok(parsed)
    } else {
        Err("needs {name}, {number} or {slug}: without one, all previews would share one address".to_owned())
    }
}

impl fmt::Display for UrlTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for UrlTemplate {
    type Err = NameError;

    fn from_str(template: &str) -> Result<Self, NameError> {
        Self::parse(template)
    }
}

impl TryFrom<String> for UrlTemplate {
    type Error = NameError;

    fn try_from(template: String) -> Result<Self, NameError> {
        Self::parse(&template)
    }
}
