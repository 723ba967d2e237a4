//! The `[dns]` table: its keys for the schema, and when there is one. What they mean, the adapter of its kind knows.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use super::file::{ConfigFile, ProxyKind};
use super::origin::{Origin, element};
use super::table::AdapterTable;
use crate::route::Protocol;

/// A Cloudflare Tunnel that requests come through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tunnel {
    /// The account's id at Cloudflare.
    #[cfg_attr(feature = "schema", schemars(extend("pattern" = "^[0-9A-Za-z-]+$")))]
    pub account: String,
    /// The tunnel's id.
    #[cfg_attr(feature = "schema", schemars(extend("pattern" = "^[0-9A-Za-z-]+$")))]
    pub id: String,
    /// Where the tunnel hands requests on: the proxy, as `cloudflared` reaches it. Default: `http://preview-traefik:8081`.
    #[serde(default = "Tunnel::service")]
    pub service: String,
}

impl Tunnel {
    fn service() -> String {
        "http://preview-traefik:8081".to_owned()
    }
}

/// What types alone cannot check.
pub(super) fn check(file: &ConfigFile) -> Result<(), ConfigError> {
    let Some(tunnel) = &file.tunnel else { return Ok(()) };
    // They become part of an address.
    for (key, id) in [("tunnel.account", &tunnel.account), ("tunnel.id", &tunnel.id)] {
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(file.origin.at(key, "is not an id as the dashboard shows it"));
        }
    }
    if file.dns.get("kind").and_then(toml::Value::as_str) != Some("cloudflare") {
        return Err(file
            .origin
            .at("tunnel", "needs `[dns] kind = \"cloudflare\"`: the hosts' records lead to the tunnel"));
    }
    Ok(())
}

/// Who is between clients and the proxy, if Cloudflare is.
fn between(file: &ConfigFile) -> Option<&'static str> {
    let cloudflare = file.dns.get("kind").and_then(toml::Value::as_str) == Some("cloudflare");
    let proxied = file.dns.get("proxied").and_then(toml::Value::as_bool) == Some(true);
    match (&file.proxy.kind, &file.tunnel) {
        (ProxyKind::None, _) => None,
        (_, Some(_)) => Some("[tunnel]"),
        (_, None) => (cloudflare && proxied).then_some("[dns] proxied = true"),
    }
}

/// What would be led to the proxy, and never work there.
pub(super) fn check_way_in(file: &ConfigFile) -> Result<(), ConfigError> {
    let Some(between) = between(file) else { return Ok(()) };
    if !file.proxy.allow_ips.is_empty() {
        let message = format!(
            "does not go with `{between}`: the proxy sees Cloudflare's addresses instead of those of clients, so it would refuse everybody"
        );
        let help = "say who may come in at Cloudflare (Access, or a WAF rule), use `proxy.basic_auth`, or let clients come directly";
        return Err(file.origin.at("proxy.allow_ips", message).with_help(help));
    }
    if let Some(index) = file.route.iter().position(|route| route.protocol == Protocol::Tcp) {
        let message = format!(
            "`tcp` does not go with `{between}`: Cloudflare leads HTTP alone to the proxy, so nothing would answer"
        );
        let help = "let clients come directly (no `[tunnel]`, `proxied = false`), or use `preview tunnel`, which forwards a port through SSH";
        return Err(file.origin.at(&format!("{}.protocol", element("route", index)), message).with_help(help));
    }
    Ok(())
}

/// What may not work as it looks, on the way to the proxy.
pub(super) fn doubts(file: &ConfigFile) -> Vec<String> {
    let mut doubts = Vec::new();
    let place = |key: &str| file.origin.place(key);
    if file.proxy.kind != ProxyKind::None && file.proxy.tls == Some(false) && !file.proxy.allow_ips.is_empty() {
        doubts.push(format!(
            "{}: with `tls = false`, the proxy sees the address of what ends TLS in front of it; unless that hands on whose request it is in a \
             way that the proxy is told to believe, `allow_ips` refuses everybody, or lets everybody in",
            place("proxy.allow_ips")
        ));
    }
    if file.tunnel.is_some() && file.proxy.kind != ProxyKind::None {
        let h2c = file.route.iter().enumerate().filter(|(_, route)| route.protocol == Protocol::H2c);
        doubts.extend(h2c.map(|(index, _)| {
            format!(
                "{}: Cloudflare does not support gRPC through public hosts of a tunnel, so clients may get errors: let them come directly, \
                 or use `preview tunnel`",
                place(&format!("{}.protocol", element("route", index)))
            )
        }));
    }
    doubts
}

/// The table as an adapter reads it; `None` where there is none.
pub(super) fn resolve(table: &toml::Table, origin: &Arc<Origin>) -> Result<Option<AdapterTable>, ConfigError> {
    if table.is_empty() {
        return Ok(None);
    }
    AdapterTable::from_file(table, "dns".to_owned(), Arc::clone(origin)).map(Some)
}

/// Who writes DNS records of previews' hosts; which keys there may be depends on the kind.
#[cfg(feature = "schema")]
#[derive(schemars::JsonSchema)]
#[schemars(rename = "Dns")]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct DnsSchema {
    /// `none` (nobody: a wildcard record leads to the machine), `cloudflare`, or `rfc2136` (signed dynamic updates: BIND, Knot, PowerDNS). Default: `none`.
    #[schemars(extend("enum" = ["none", "cloudflare", "rfc2136"]))]
    kind: String,
    /// The zone that the hosts lie in.
    zone: Option<String>,
    /// Where the records lead: an address (A, AAAA) or a name (CNAME). Default: the host of `vm.host`.
    target: Option<String>,
    /// Seconds that resolvers may keep a record. Default: 120.
    #[schemars(range(min = 1, max = 86400))]
    ttl: Option<u32>,
    /// `cloudflare`: whether requests go through Cloudflare's proxy. Default: `false`.
    proxied: Option<bool>,
    /// `rfc2136`: the primary server of the zone, `ns1.example.com` or `192.0.2.53:53`.
    server: Option<String>,
    /// `rfc2136`: the name of the TSIG key.
    key_name: Option<String>,
    /// `rfc2136`: the key's algorithm, `hmac-sha256`, `hmac-sha384` or `hmac-sha512`. Default: `hmac-sha256`.
    algorithm: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{ConfigError, ConfigFile, Environment, Overrides, Settings};

    fn settings(text: &str) -> Result<Settings, ConfigError> {
        let file = ConfigFile::parse(text, Some(Path::new("preview.toml"))).unwrap();
        Settings::merge(file, &Environment::new(), &Overrides::default())
    }

    const PROXY: &str = "[proxy]\nkind = 'traefik'\n";
    const ALLOW: &str = "allow_ips = ['203.0.113.0/24']\n";
    const TUNNEL: &str = "[dns]\nkind = 'cloudflare'\nzone = 'x'\n[tunnel]\naccount = '1'\nid = '2'\n";
    const PROXIED: &str = "[dns]\nkind = 'cloudflare'\nzone = 'x'\nproxied = true\n";
    const TCP: &str = "[[route]]\nservice = 'db'\nport = 5432\nprotocol = 'tcp'\nurl = 'tcp://{name}-db.x'\n";
    const H2C: &str = "[[route]]\nservice = 'rpc'\nport = 1\nprotocol = 'h2c'\nurl = 'https://{name}.x'\n";

    #[test]
    fn addresses_of_clients_and_tcp_do_not_go_through_cloudflare() {
        for (between, named) in [(TUNNEL, "[tunnel]"), (PROXIED, "proxied = true")] {
            let error = settings(&format!("{PROXY}{ALLOW}{between}")).unwrap_err().to_string();
            assert!(error.starts_with("preview.toml:3:13: `proxy.allow_ips`: does not go with"), "{error}");
            assert!(error.contains(named) && error.contains("basic_auth"), "{error}");
            let error = settings(&format!("{PROXY}{between}{TCP}")).unwrap_err().to_string();
            assert!(error.contains("`route[0].protocol`") && error.contains(named), "{error}");
            assert!(settings(&format!("{PROXY}{between}{H2C}")).is_ok());
            // Without a proxy nothing is led anywhere.
            assert!(settings(&format!("{between}{TCP}")).is_ok());
        }
        // The base branch's word and the pull request's come together.
        let base = ConfigFile::parse(&format!("{PROXY}{TUNNEL}"), Some(Path::new("base.toml"))).unwrap();
        let own = ConfigFile::parse(&format!("{PROXY}{TCP}"), Some(Path::new("preview.toml"))).unwrap().under(&base);
        let error = Settings::merge(own, &Environment::new(), &Overrides::default()).unwrap_err().to_string();
        assert!(error.starts_with("preview.toml:6:12: `route[0].protocol`"), "{error}");
        let direct = PROXIED.replace("true", "false");
        assert_eq!(settings(&format!("{PROXY}{ALLOW}{direct}{TCP}")).unwrap().warnings, Vec::<String>::new());
    }

    #[test]
    fn what_is_not_sure_is_a_warning() {
        let warnings = |text: &str| settings(text).unwrap().warnings;
        let before = warnings(&format!("{PROXY}tls = false\n{ALLOW}"));
        assert!(
            before.len() == 1 && before[0].starts_with("preview.toml:4: proxy.allow_ips: with `tls = false`"),
            "{before:?}"
        );
        let rpc = warnings(&format!("{PROXY}{TUNNEL}{H2C}"));
        assert!(rpc.len() == 1 && rpc[0].contains("route[0].protocol") && rpc[0].contains("gRPC"), "{rpc:?}");
        assert_eq!(warnings(&format!("{PROXY}tls = false\n{H2C}")), Vec::<String>::new());
    }
}
