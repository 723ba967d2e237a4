//! Networks, and the names that services have on the proxy's.

use serde_json::{Map, Value};

use super::{Court, is_on};

/// On the proxy's network the name of a service is a name for all, and so is the host name of its containers. Docker does not mind the case.
pub(super) fn shared_names(court: &mut Court<'_>, name: &str, table: &Map<String, Value>) {
    let of_the_proxy = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.starts_with("preview-") || name.ends_with(crate::route::OWN)
    };
    let (why, instead) = ("names like this belong to the proxy and to what is beside it", "call the service otherwise");
    if of_the_proxy(name) {
        court.refuse("", None, why, instead);
    } else if name.contains('.') {
        court.refuse("", None, "on the proxy's network it would answer for a host of that name", instead);
    }
    if let Some(host) = table.get("hostname").and_then(Value::as_str) {
        if of_the_proxy(host) {
            court.refuse("hostname", Some(host), why, "remove it");
        } else if host.contains('.') {
            let why = "on the proxy's network it would answer for a host of that name";
            court.refuse("hostname", Some(host), why, "take one without a dot, and `domainname` for the rest");
        }
    }
}

/// How a service joins its networks.
pub(super) fn attachments(court: &mut Court<'_>, table: &Map<String, Value>) {
    const KNOWN: [&str; 2] = ["com.docker.network.endpoint.sysctls", "com.docker.network.endpoint.ifname"];
    let attachments = table.get("networks").and_then(Value::as_object).into_iter().flatten();
    for (network, attachment) in attachments {
        let options = attachment.get("driver_opts").and_then(Value::as_object).into_iter().flatten();
        for (key, _) in options.filter(|(key, _)| !KNOWN.contains(&key.as_str())) {
            let place = format!("networks.{network}.driver_opts.{key}");
            court.refuse(&place, None, "it may change the host's network", "remove it");
        }
    }
}

/// A network at the top of the files.
pub(super) fn network(court: &mut Court<'_>, key: &str, table: &Map<String, Value>, proxy_network: Option<&str>) {
    if key.to_ascii_lowercase().starts_with("preview_") {
        court.refuse("", None, "names like this belong to networks that previews get", "call the network otherwise");
    }
    let name = table.get("name").and_then(Value::as_str);
    if is_on(table.get("external")) {
        if proxy_network.is_none() || name != proxy_network {
            court.refuse(
                "external",
                name,
                "a network of others would join the previews",
                "remove external: each preview has its own network",
            );
        }
        return;
    }
    let driver = table.get("driver").and_then(Value::as_str).unwrap_or_default();
    if !matches!(driver, "" | "bridge") {
        court.refuse("driver", Some(driver), "it reaches beyond the preview", "use bridge, or name no driver");
    }
    let options = table.get("driver_opts").and_then(Value::as_object).cloned().unwrap_or_default();
    for key in options.keys() {
        if key != "com.docker.network.driver.mtu" && key != "com.docker.network.bridge.enable_icc" {
            court.refuse(&format!("driver_opts.{key}"), None, "it may change the host's network", "remove it");
        }
    }
}
