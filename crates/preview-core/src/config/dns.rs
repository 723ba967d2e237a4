//! The `[dns]` table: its keys for the schema, and when there is one. What they mean, the adapter of its kind knows.

use std::sync::Arc;

use super::error::ConfigError;
use super::origin::Origin;
use super::table::AdapterTable;

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
