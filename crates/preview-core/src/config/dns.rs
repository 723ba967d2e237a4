//! The `[dns]` table: its keys for the schema, and when there is one. What they mean, the adapter of its kind knows.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use super::file::ConfigFile;
use super::origin::Origin;
use super::table::AdapterTable;

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
