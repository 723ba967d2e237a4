//! What types alone cannot check.

use super::decode::suggestion;
use super::domains;
use super::error::ConfigError;
use super::file::{ConfigFile, ProxyKind};
use super::origin::element;
use crate::admission::Weight;
use crate::stack::{self, Allowing};
use crate::units::{ByteSize, TimeSpan};

/// Docker's own minimum.
const LEAST_MEMORY: ByteSize = ByteSize::from_mb(6);

/// A path that needs no quotes in a proxy's configuration.
fn plain_path(path: &str) -> bool {
    path.chars().all(|c| c.is_ascii_alphanumeric() || "/_.-".contains(c))
}

/// Addresses that nobody leads to, since there is no proxy.
pub(super) fn url_without_proxy(file: &ConfigFile) -> Option<String> {
    if file.proxy.kind != ProxyKind::None {
        return None;
    }
    let of_route = file.route.iter().position(|route| route.url.is_some());
    let key = match (&file.url, of_route) {
        (Some(_), _) => "url".to_owned(),
        (None, Some(index)) => format!("{}.url", element("route", index)),
        (None, None) => return None,
    };
    Some(format!(
        "{}: `{key}` is not used: without a proxy nothing leads there, and the preview gets a port of the host instead. `preview vm setup` sets \
         up Traefik on the VM; then add to preview.toml:\n\n  [proxy]\n  kind = \"traefik\"\n",
        file.origin.place(&key)
    ))
}

/// Checks the tables of a file, whatever flags and environment say.
pub(super) fn check(file: &ConfigFile) -> Result<(), ConfigError> {
    let wrong = |key: &str, message: &str| Err(file.origin.at(key, message));

    for (key, words) in [("profiles", &file.profiles), ("exclude", &file.exclude), ("env_services", &file.env_services)]
    {
        for (index, word) in words.iter().enumerate() {
            if word.trim().is_empty() {
                return wrong(&element(key, index), "is empty");
            }
        }
    }
    for (key, files) in [("compose", &file.compose), ("env_file", &file.env_file)] {
        for (index, path) in files.iter().flat_map(|files| &files.0).enumerate() {
            if path.as_os_str().is_empty() {
                return wrong(&element(key, index), "is empty");
            }
        }
    }
    if file.compose.as_ref().is_some_and(|files| files.0.is_empty()) {
        return wrong("compose", "is an empty list; without the key, the usual names are tried");
    }
    if file.url.as_ref().is_some_and(|urls| urls.0.is_empty()) {
        return wrong("url", "is an empty list; leave the key out for none");
    }

    let vm = &file.vm;
    if vm.host.as_ref().is_some_and(|host| host.trim().is_empty()) {
        return wrong("vm.host", "is empty: it is `local` or `ssh://user@host`");
    }
    if vm.known_hosts.is_some() && vm.known_hosts_file.is_some() {
        return wrong("vm.known_hosts_file", "excludes `known_hosts`: give one of the two");
    }

    // These become parts of the proxy's labels.
    let proxy = &file.proxy;
    for (key, word) in [
        ("proxy.network", Some(&proxy.network)),
        ("proxy.container", Some(&proxy.container)),
        ("proxy.entrypoint", proxy.entrypoint.as_ref()),
        ("proxy.cert_resolver", proxy.cert_resolver.as_ref()),
    ] {
        let legal = |word: &String| {
            word.starts_with(|first: char| first.is_ascii_alphanumeric())
                && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
        };
        if !word.is_none_or(legal) {
            return wrong(
                key,
                "holds something else than letters, digits and _ . -, or does not start with a letter or digit",
            );
        }
    }

    let files = [&proxy.pages_dir, &proxy.certificate, &proxy.certificate_key];
    for (key, path) in ["proxy.pages_dir", "proxy.certificate", "proxy.certificate_key"].into_iter().zip(files) {
        if !path.as_ref().is_none_or(|path| plain_path(path.as_str())) {
            return wrong(key, "holds something else than letters, digits and / _ . -");
        }
    }
    if !plain_path(proxy.routes_dir.as_str()) {
        return wrong("proxy.routes_dir", "holds something else than letters, digits and / _ . -");
    }
    match (&proxy.certificate, &proxy.certificate_key) {
        (Some(_), None) => return wrong("proxy.certificate", "needs `certificate_key`"),
        (None, Some(_)) => return wrong("proxy.certificate_key", "needs `certificate`"),
        _ => {}
    }
    for (index, domain) in proxy.domains.iter().enumerate() {
        if let Some(message) = domains::wrong(domain) {
            return wrong(&element("proxy.domains", index), message);
        }
    }
    for (index, network) in proxy.allow_ips.iter().enumerate() {
        if let Some(message) = domains::wrong_network(network) {
            return wrong(&element("proxy.allow_ips", index), message);
        }
    }
    if let Some(auth) = &proxy.basic_auth
        && (auth.user.is_empty() || !auth.user.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)))
    {
        return wrong("proxy.basic_auth.user", "holds something else than letters, digits and . _ -");
    }
    super::dns::check(file)?;

    for (index, route) in file.route.iter().enumerate() {
        let key = |key: &str| format!("{}.{key}", element("route", index));
        if route.service.is_empty() {
            return wrong(&key("service"), "is empty");
        }
        // These become parts of the proxy's labels.
        for (name, word, listed) in [
            ("entrypoint", &route.entrypoint, &proxy.route_entrypoints),
            ("tls_options", &route.tls_options, &proxy.route_tls_options),
        ] {
            let Some(word) = word else { continue };
            let legal = |c: char| c.is_ascii_alphanumeric() || "_.@-".contains(c);
            if word.is_empty() || !word.chars().all(legal) {
                return wrong(&key(name), "holds something else than letters, digits and _ . @ -");
            }
            // Another entry point may be for others, and other options may let others in.
            if file.origin.is_overruled() && !listed.contains(word) {
                let help = format!(
                    "`[proxy] route_{}` of the base branch's configuration lists what pull requests may name",
                    if name == "entrypoint" { "entrypoints" } else { name }
                );
                return Err(file.origin.at(&key(name), format!("`{word}` is not for pull requests")).with_help(help));
            }
        }
    }

    if Weight::try_from(file.limits.weight).is_err() {
        return wrong("limits.weight", "has to be a number from 0.001 to 1000; 1 is the usual preview");
    }
    if file.limits.memory_overcommit.is_some_and(|times| !(0.01..=1000.0).contains(&times)) {
        return wrong(
            "limits.memory_overcommit",
            "has to be a number from 0.01 to 1000; 1.5 is half as much again as the VM has",
        );
    }
    match (&file.limits.heavy, &file.limits.heavy_window) {
        (None, Some(_)) => {
            return wrong("limits.heavy_window", "needs `heavy`, which says what is heavy: `build` or `all`");
        }
        (Some(_), None) => return wrong("limits.heavy", "needs `heavy_window`, as in `02:00-06:30 Europe/Kyiv`"),
        _ => {}
    }
    if file.sweep.images_above > 100 {
        return wrong("sweep.images_above", "has to be a percentage, at most 100");
    }
    // Whoever reads it reads such files alone; and no other file of the host can be meant by mistake.
    if file
        .metrics
        .file
        .as_ref()
        .is_some_and(|file| !file.as_str().ends_with(".prom") || file.as_str().ends_with("/.prom"))
    {
        return wrong("metrics.file", "has to end with `.prom`: the textfile collector reads no other");
    }
    let guardrails = &file.guardrails;
    if !guardrails.cpus.is_finite() || guardrails.cpus < 0.01 {
        return wrong("guardrails.cpus", "has to be a number of processors, at least 0.01");
    }
    if guardrails.memory < LEAST_MEMORY {
        return wrong("guardrails.memory", "has to be at least `6MB`, Docker's own minimum");
    }
    if guardrails.max_memory.is_some_and(|most| most < guardrails.memory) {
        return wrong("guardrails.max_memory", "is less than `memory`, which services have that say nothing");
    }
    for (service, own) in &guardrails.services {
        let key = |key: &str| format!("guardrails.services.{service}.{key}");
        if service.is_empty() {
            return wrong("guardrails.services", "names a service without a name");
        }
        if own.cpus.is_some_and(|cpus| !cpus.is_finite() || cpus < 0.01) {
            return wrong(&key("cpus"), "has to be a number of processors, at least 0.01");
        }
        if own.memory.is_some_and(|memory| memory < LEAST_MEMORY) {
            return wrong(&key("memory"), "has to be at least `6MB`, Docker's own minimum");
        }
    }
    if guardrails.log_size.bytes() == 0 {
        return wrong("guardrails.log_size", "has to be more than nothing");
    }

    for (index, allow) in file.policy.allow.iter().enumerate() {
        let key = |key: &str| format!("{}.{key}", element("policy.allow", index));
        if allow.service.is_empty() {
            return wrong(&key("service"), "is empty");
        }
        match stack::allowing(&allow.key) {
            None => {
                let message = format!("`{}` is not a key that can be allowed", allow.key.escape_debug());
                let help = suggestion(&allow.key, &stack::allowable_keys());
                return Err(file.origin.at(&key("key"), message).with_help(help));
            }
            Some(Allowing::Values) if allow.values.is_empty() => {
                let message =
                    format!("`{}` needs `values`: each value that is allowed, exactly", element("policy.allow", index));
                return wrong(&element("policy.allow", index), &message);
            }
            Some(Allowing::Key) if !allow.values.is_empty() => {
                return wrong(&key("values"), &format!("`{}` has no values: leave them out", allow.key));
            }
            Some(_) => {}
        }
    }

    let isolation = &file.isolation;
    if isolation.tmpfs.bytes() == 0 {
        return wrong("isolation.tmpfs", "has to be more than nothing: Docker takes that for no limit");
    }
    if let Some(user) = &isolation.user {
        let parts: Vec<&str> = user.split(':').collect();
        let legal = |part: &str| {
            part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
        };
        if parts.len() > 2 || !parts.iter().all(|part| legal(part)) {
            return wrong("isolation.user", "is not a user: `1000` or `1000:1000`, or names that all images know");
        }
        if parts[0] == "root" || parts[0].parse::<u64>() == Ok(0) {
            return wrong("isolation.user", "is root; leave the key out for what files and images say");
        }
    }
    if let Some(index) = isolation.except.iter().position(|service| service.trim().is_empty()) {
        return wrong(&element("isolation.except", index), "is empty");
    }

    let timeouts = &file.timeouts;
    for (key, span) in [
        ("timeouts.build", timeouts.build),
        ("timeouts.pull", timeouts.pull),
        ("timeouts.start", timeouts.start),
        ("timeouts.verify", timeouts.verify),
        ("timeouts.step", timeouts.step),
        ("timeouts.queue", timeouts.queue),
        ("timeouts.total", timeouts.total),
    ] {
        if span.is_zero() {
            return wrong(key, "has to be more than no time");
        }
    }

    if let Some(health) = &file.health {
        for (key, set) in [("health.port", health.port.is_some()), ("health.service", health.service.is_some())] {
            if set && health.path.is_none() {
                return wrong(key, "needs `path`: the request that has to succeed, as in `path = \"/healthz\"`");
            }
        }
        let path = health.path.as_deref().unwrap_or("/");
        if !path.starts_with('/') {
            return wrong("health.path", "has to start with `/`");
        }
        if path.chars().any(|c| c.is_control() || c.is_whitespace() || !c.is_ascii()) {
            return wrong("health.path", "holds a space or something else that has to be escaped as %XX");
        }
    }

    for (name, generate) in &file.generate {
        if !(8..=128).contains(&generate.length) {
            return wrong(&format!("generate.{name}.length"), "has to be 8 to 128");
        }
    }

    for (index, step) in file.step.iter().enumerate() {
        let key = |key: &str| format!("{}.{key}", element("step", index));
        if step.service.is_empty() {
            return wrong(&key("service"), "is empty");
        }
        if step.run.first().is_none_or(String::is_empty) {
            return wrong(&key("run"), "needs a program: `run = [\"alembic\", \"upgrade\", \"head\"]`");
        }
        if step.run.iter().any(|argument| argument.contains('\0')) {
            return wrong(&key("run"), "holds a NUL character");
        }
        if step.timeout.is_some_and(TimeSpan::is_zero) {
            return wrong(&key("timeout"), "has to be more than no time");
        }
    }
    Ok(())
}
