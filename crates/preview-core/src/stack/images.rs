//! Names of the images that are built for a preview, and of the caches that their builds share.
//!
//! All previews of a host build on one engine, where a pull request can name any image that is there (`image:`, `FROM`) and any cache
//! mount. So both have a random part, made once for each preview.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Difference, Violation, built};

/// The build argument by which BuildKit's Dockerfile frontend keeps cache mounts apart. No Dockerfile has to declare it.
const CACHE_NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";

/// What the names of all images that are built for a preview begin with.
pub(crate) fn image_prefix(project: &str, token: &str) -> String {
    format!("{project}-{token}-")
}

/// The name of the image that is built for a service.
fn image_name(project: &str, token: &str, service: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separated =
        !service.contains("..") && !service.contains("__") && !service.contains("-.") && !service.contains(".-");
    let legal = service.chars().all(|c| plain(c) || "-_.".contains(c))
        && service.starts_with(plain)
        && service.ends_with(plain)
        && separated
        && !["_.", "._", "_-", "-_"].iter().any(|pair| service.contains(pair));
    let prefix = image_prefix(project, token);
    if legal {
        return format!("{prefix}{service}");
    }
    // Services may have names that images may not have.
    let hash: String = Sha256::digest(service.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}service-{hash}")
}

/// A built image under the user's name would be taken by the next preview that builds; each gets its own name.
pub(super) fn own_images(model: &mut Value, project: &str, token: &str, differences: &mut Vec<Difference>) {
    let mut renamed = BTreeMap::new();
    for service in built(model) {
        let Some(table) = model.get_mut("services").and_then(|s| s.get_mut(&service)).and_then(Value::as_object_mut)
        else {
            continue;
        };
        let own = image_name(project, token, &service);
        let before = table.insert("image".to_owned(), json!(own));
        if let Some(Value::String(before)) = before
            && before != own
        {
            differences.push(Difference {
                key: format!("services.{service}.image"),
                what: format!("`{before}` would be shared between previews: `{own}`"),
            });
            renamed.entry(before).or_insert(own);
        }
    }
    // Services that run what another one builds follow it.
    let users: Vec<String> = super::services(model)
        .filter(|(_, table)| table.get("build").is_none_or(Value::is_null))
        .map(|(name, _)| name.clone())
        .collect();
    for service in users {
        let Some(image) = model.get_mut("services").and_then(|s| s.get_mut(&service)).and_then(|t| t.get_mut("image"))
        else {
            continue;
        };
        if let Some(own) = image.as_str().and_then(|image| renamed.get(image)) {
            differences.push(Difference {
                key: format!("services.{service}.image"),
                what: format!("`{own}`, as it is built here"),
            });
            *image = json!(own);
        }
    }
}

/// Services that name an image by its id: that leads past all names, to whatever was built on the host for others.
pub(crate) fn image_ids(model: &Value) -> Vec<Violation> {
    let is_id = |image: &str| {
        let hex = image.strip_prefix("sha256:").unwrap_or(image);
        image.starts_with("sha256:") || (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let named = |(service, table): (&String, &Map<String, Value>)| {
        let image = table.get("image").and_then(Value::as_str).filter(|image| is_id(image))?;
        Some(Violation {
            service: Some(service.clone()),
            key: format!("services.{service}.image"),
            value: Some(image.to_owned()),
            why: "it is the id of an image on the host, which may be another preview's".to_owned(),
            instead: "name the image by its repository, with a tag or `@sha256:` digest, or build it".to_owned(),
            ..Violation::default()
        })
    };
    super::services(model).filter_map(named).collect()
}

/// Services whose image has no name that an engine knows. It would take one with `*` or `[` for a pattern.
pub(crate) fn image_names(model: &Value) -> Vec<Violation> {
    let odd = |(service, table): (&String, &Map<String, Value>)| {
        let image = table.get("image").and_then(Value::as_str)?;
        let known = |c: char| c.is_ascii_alphanumeric() || "_.-/:@".contains(c);
        (!image.chars().all(known)).then(|| Violation {
            service: Some(service.clone()),
            key: format!("services.{service}.image"),
            value: Some(image.to_owned()),
            why: "it does not name an image".to_owned(),
            instead: "write a repository, with a tag or `@sha256:` digest: `registry.example.com/shop:1.2`".to_owned(),
            ..Violation::default()
        })
    };
    super::services(model).filter_map(odd).collect()
}

/// Cache mounts of another preview, or of another application, are not to be had by their id.
pub(super) fn own_caches(
    service: &str,
    build: &mut Map<String, Value>,
    token: &str,
    differences: &mut Vec<Difference>,
) {
    match build.entry("args").or_insert(Value::Null) {
        Value::Array(args) => {
            let sets = |arg: &Value| {
                let name = arg.as_str().map(|arg| arg.split_once('=').map_or(arg, |(name, _)| name));
                name == Some(CACHE_NAMESPACE)
            };
            args.retain(|arg| !sets(arg));
            args.push(json!(format!("{CACHE_NAMESPACE}={token}")));
        }
        Value::Object(args) => drop(args.insert(CACHE_NAMESPACE.to_owned(), json!(token))),
        other => *other = json!({CACHE_NAMESPACE: token}),
    }
    differences.push(Difference {
        key: format!("services.{service}.build.args"),
        what: format!("`{CACHE_NAMESPACE}` set: cache mounts are the preview's own"),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_previews_or_services_share_a_name() {
        assert_eq!(image_name("app_release", "t0", "2024-api"), "app_release-t0-2024-api");
        assert_ne!(image_name("app_release", "t0", "2024-api"), image_name("app_release-2024", "t1", "api"));
        assert_ne!(image_name("app_release", "t0", "Web"), image_name("app_release", "t0", "web"));
        for odd in ["Web", "a-", "a..b", "a._b", "_a", "a__b"] {
            let name = image_name("p_1", "t0", odd);
            assert!(name.starts_with("p_1-t0-service-"), "{odd}: {name}");
        }
        for plain in ["a", "a-b", "a_b", "a.b", "a--b", "0"] {
            assert_eq!(image_name("p_1", "t0", plain), format!("p_1-t0-{plain}"));
        }
    }

    #[test]
    fn images_are_not_named_by_their_id() {
        let digest = "a1".repeat(32);
        let refused = |image: &str| !image_ids(&json!({"services": {"web": {"image": image}}})).is_empty();
        assert!(refused(&format!("sha256:{digest}")) && refused(&digest) && refused("sha256:a1"));
        assert!(!refused("busybox") && !refused("deadbeef") && !refused(&format!("busybox@sha256:{digest}")));
        assert!(image_ids(&json!({"services": {"web": {"build": {}}}})).is_empty());
    }

    #[test]
    fn an_image_is_named_by_no_pattern() {
        let refused = |image: &str| !image_names(&json!({"services": {"web": {"image": image}}})).is_empty();
        assert!(["busy*", "a[b", "busybox:1.3?", "a b", "a\u{1b}"].into_iter().all(refused));
        assert!(!["busybox", "r.example.com:5000/a/b_c:1.2-x@sha256:ab", ""].into_iter().any(refused));
    }

    #[test]
    fn the_namespace_of_caches_is_ours_whatever_the_file_says() {
        for (args, left) in [
            (Value::Null, json!({CACHE_NAMESPACE: "t0"})),
            (json!({"A": "1", CACHE_NAMESPACE: "shared"}), json!({"A": "1", CACHE_NAMESPACE: "t0"})),
            (
                json!(["A=1", "BUILDKIT_CACHE_MOUNT_NS=shared", "BUILDKIT_CACHE_MOUNT_NS"]),
                json!(["A=1", "BUILDKIT_CACHE_MOUNT_NS=t0"]),
            ),
        ] {
            let mut build = Map::from_iter([("args".to_owned(), args)]);
            let mut differences = Vec::new();
            own_caches("web", &mut build, "t0", &mut differences);
            assert_eq!(build["args"], left);
            assert_eq!(differences[0].key, "services.web.build.args");
        }
        let mut without = Map::new();
        own_caches("web", &mut without, "t0", &mut Vec::new());
        assert_eq!(without["args"][CACHE_NAMESPACE], "t0");
    }
}
