//! Names of images: what the engine calls an image that was asked for by another spelling of its name.

/// An image's name in the engine's own short form: `docker.io/library/busybox` is `busybox:latest`.
/// A digest wins over a tag; an id stays as it is.
pub(crate) fn familiar(reference: &str) -> String {
    if is_id(reference) {
        return reference.to_owned();
    }
    let short = ["docker.io/", "index.docker.io/"]
        .iter()
        .find_map(|prefix| reference.strip_prefix(prefix))
        .unwrap_or(reference);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let (name, tag) = split(short);
    if tag.starts_with("sha256:") { format!("{name}@{tag}") } else { format!("{name}:{tag}") }
}

/// Repository, and tag or digest; `latest` without one.
pub(crate) fn split(reference: &str) -> (&str, &str) {
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let tag_at = name.rfind(':').filter(|&colon| name.rfind('/').is_none_or(|slash| slash < colon));
    match (tag_at, digest) {
        (at, Some(digest)) => (at.map_or(name, |at| &name[..at]), digest),
        (Some(at), None) => (&name[..at], &name[at + 1..]),
        (None, None) => (name, "latest"),
    }
}

/// The registry that an image comes from.
pub(crate) fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Whether this is the id of an image and not a name.
pub(crate) fn is_id(reference: &str) -> bool {
    reference.starts_with("sha256:")
}

/// Whether the engine could know something by this id or name. What it could not know must not become part of a path.
pub(crate) fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// The same for an image, whose name may have more parts.
pub(crate) fn is_image(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/:@".contains(c))
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_has_one_short_form() {
        for spelling in
            ["busybox", "busybox:latest", "library/busybox", "docker.io/library/busybox", "docker.io/busybox"]
        {
            assert_eq!(familiar(spelling), "busybox:latest", "{spelling}");
        }
        assert_eq!(familiar("localhost:5000/app"), "localhost:5000/app:latest");
        assert_eq!(familiar("ghcr.io/o/app:1@sha256:ab"), "ghcr.io/o/app@sha256:ab");
        assert_eq!(familiar("sha256:ab"), "sha256:ab");
    }

    #[test]
    fn parts_of_a_reference() {
        assert_eq!(split("localhost:5000/app"), ("localhost:5000/app", "latest"));
        assert_eq!(split("localhost:5000/app:2"), ("localhost:5000/app", "2"));
        assert_eq!(split("app@sha256:ab"), ("app", "sha256:ab"));
        assert_eq!(split("app:1@sha256:ab"), ("app", "sha256:ab"));
        assert_eq!(registry("ghcr.io/o/app"), "ghcr.io");
        assert_eq!(registry("localhost/app"), "localhost");
        assert_eq!(registry("o/app:1.2"), "docker.io");
        assert_eq!(registry("app:1.2"), "docker.io");
    }

    #[test]
    fn what_could_be_a_name() {
        assert!(is_plain("pr-7-web_1.x"));
        for odd in ["", "..", "a/b", "a?b", "a#b", "-a", "a b"] {
            assert!(!is_plain(odd), "{odd}");
        }
        assert!(is_image("ghcr.io/o/app:1@sha256:ab"));
        for odd in ["", "a/../b", "a//b", "a?x", "../a"] {
            assert!(!is_image(odd), "{odd}");
        }
    }
}
