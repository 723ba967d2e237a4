//! Who writes DNS records of previews' hosts, and where their secrets are until then.

use std::sync::Arc;

use preview_core::config::{self, AdapterTable, Config, Environment};
use preview_core::dns::{self, Dns, Place};
use preview_core::host::ssh::Destination;
use preview_core::lifecycle::Error;

use super::{Session, invalid};

/// Takes the secrets of DNS adapters out of the reach of `[[secrets]]`, which a pull request may write. A name that others use too is only
/// ours where it is needed.
pub(super) fn secrets(config: &Config, environment: &mut Environment) -> Environment {
    let needed = config.dns.as_ref().map_or("none", AdapterTable::kind);
    let ours = |name: &&str| name.starts_with("PREVIEW_") || needed == "cloudflare";
    dns::SECRETS
        .into_iter()
        .filter(ours)
        .filter_map(|name| Some((name.to_owned(), environment.remove(name)?)))
        .collect()
}

impl Session {
    /// Who writes DNS records, if anybody does. Touches no network.
    pub(crate) fn dns(&self) -> Result<Option<Arc<dyn Dns>>, Error> {
        let Some(table) = &self.config.dns else { return Ok(None) };
        let vm = &self.config.vm;
        let tunnel = self.config.tunnel.clone();
        let base = vm.base_dir.as_ref().map(ToString::to_string);
        let place = match vm.host.as_deref().filter(|host| *host != "local") {
            None => Place { host: None, port: None, base_dir: base.map_or_else(|| self.local_base(), Ok)?, tunnel },
            Some(wish) => {
                let Destination { host, port, .. } = Destination::parse(wish)?;
                let base_dir = base.unwrap_or_else(|| config::BASE_DIR.to_owned());
                Place { host: Some(host), port, base_dir, tunnel }
            }
        };
        let environment = self.environment.iter().chain(&self.dns_secrets);
        let environment = environment.map(|(name, value)| (name.clone(), value.clone())).collect();
        dns::from_table(table, &place, &environment).map_err(invalid)
    }
}
