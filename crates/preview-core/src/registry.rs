//! Logins of the Docker CLI, for images of private registries: pure, from the text of its `config.json`.
//!
//! The format is the Docker CLI's: `{"auths": {"ghcr.io": {"auth": "<base64 of user:password>"}}}`. Logins that a credential helper keeps are not
//! in the file, and so not seen here.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::Deserialize;

use crate::engine::RegistryAuth;
use crate::secret::Secret;

/// The name under which the Docker CLI keeps the login of Docker Hub.
const HUB: &str = "https://index.docker.io/v1/";

/// Logins by registry.
pub type Logins = BTreeMap<String, RegistryAuth>;

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
struct Entry {
    auth: Option<String>,
    identitytoken: Option<String>,
}

/// Reads the CLI's `config.json`; what cannot be read is no login.
#[must_use]
pub fn logins(config: &str) -> Logins {
    let file: File = serde_json::from_str(config).unwrap_or_default();
    file.auths
        .into_iter()
        .filter_map(|(registry, entry)| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(entry.auth?.trim()).ok()?;
            let text = String::from_utf8(bytes).ok()?;
            let (user, password) = text.trim_end_matches('\0').split_once(':')?;
            let auth = RegistryAuth {
                username: Some(user.to_owned()),
                password: (!password.is_empty()).then(|| Secret::new(password.to_owned())),
                identity_token: entry.identitytoken.filter(|token| !token.is_empty()).map(Secret::new),
            };
            Some((bare(&registry).to_owned(), auth))
        })
        .collect()
}

/// The login for an image, if there is one.
#[must_use]
pub fn login<'a>(logins: &'a Logins, image: &str) -> Option<&'a RegistryAuth> {
    logins.get(bare(registry(image)))
}

/// Without scheme and path, as both spellings stand in the wild.
fn bare(registry: &str) -> &str {
    let rest = registry.split_once("://").map_or(registry, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or(rest);
    if host == "docker.io" || host == "registry-1.docker.io" { "index.docker.io" } else { host }
}

/// The registry of an image: its first part if that looks like a host, else Docker Hub.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => HUB,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_found_by_the_images_registry() {
        let found = logins(
            r#"{"auths": {
                "ghcr.io": {"auth": "b2N0b2NhdDpoOnVudGVy"},
                "https://index.docker.io/v1/": {"auth": "YWNtZTpzZWNyZXQ="},
                "helper.example.com": {}, "broken.example.com": {"auth": "%%%"}
            }, "credsStore": "desktop"}"#,
        );
        assert_eq!(found.len(), 2);
        let ghcr = login(&found, "ghcr.io/acme/shop:1").unwrap();
        assert_eq!(ghcr.username.as_deref(), Some("octocat"));
        assert_eq!(ghcr.password.as_ref().map(|p| p.expose().as_str()), Some("h:unter"), "a password may hold a colon");
        assert_eq!(login(&found, "redis:7").unwrap().username.as_deref(), Some("acme"));
        assert_eq!(login(&found, "acme/shop").unwrap().username.as_deref(), Some("acme"));
        assert_eq!(login(&found, "docker.io/library/redis").unwrap().username.as_deref(), Some("acme"));
        assert!(login(&found, "localhost:5000/x").is_none());
    }

    #[test]
    fn a_damaged_file_is_no_login() {
        assert!(logins("{").is_empty());
        assert!(logins("").is_empty());
    }
}
