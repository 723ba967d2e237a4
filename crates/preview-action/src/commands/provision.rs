//! `preview vm provision`: the one VM of a project, taken or made.

use std::collections::BTreeMap;

use preview_core::host::guardian::Guardian;
use preview_core::lifecycle::Error;
use preview_core::provision::hetzner::{API, Hetzner};
use preview_core::provision::{self, Action, Order, Provisioned};
use preview_core::secret::Secret;
use preview_core::setup::{Options, print};

use super::Context;
use crate::cli::vm::{ProviderKind, Provision};
use crate::output;
use crate::session::Purpose;

/// The token of the project at Hetzner Cloud.
const TOKEN: &str = "HCLOUD_TOKEN";

impl Context {
    pub(super) async fn vm_provision(&self, flags: &Provision) -> Result<u8, Error> {
        let session = self.session(Purpose::Look)?;
        let wish = self.machine(&session, &flags.machine)?;
        let options = Options { only: flags.only.clone(), skip: flags.skip.clone(), ..Options::default() };
        let names = |list: &[String]| list.iter().any(|step| step == "firewall");
        if names(&flags.skip) || !(flags.only.is_empty() || names(&flags.only)) {
            return Err(Error::invalid(
                "the step firewall cannot be left out: the server's private host key is in its user data, and the firewall keeps containers from reading that",
            ));
        }
        let token = self.secret(TOKEN, Some(TOKEN))?.unwrap_or_else(|| Secret::new(String::new()));
        let provider = match flags.provider {
            ProviderKind::Hetzner => Hetzner::new(flags.api.as_deref().unwrap_or(API), token)?,
        };
        // Its directory is for us alone, and goes whatever happens.
        let guardian = Guardian::start()?;
        let key = provision::host_key(guardian.run_dir()).await;
        guardian.finish().await;
        let key = key?;
        let user_data = print::cloud_init(&wish, &options, Some(&key)).map_err(Error::invalid)?;
        if let Some(wrong) = print::too_large(&user_data) {
            return Err(Error::invalid(wrong));
        }
        let labels = flags.label.iter().map(|label| {
            let pair = label.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            pair.ok_or_else(|| Error::invalid(format!("--label {label}: expected KEY=VALUE")))
        });
        let order = Order {
            name: flags.name.clone(),
            kind: flags.server_type.clone(),
            location: flags.location.clone(),
            image: flags.system.clone(),
            ssh_keys: flags.ssh_key.clone(),
            labels: labels.collect::<Result<BTreeMap<_, _>, _>>()?,
            user_data: Secret::new(user_data),
        };
        let pattern = flags.pattern.clone().unwrap_or_else(|| format!("{}*", flags.name));
        let selector = &flags.label_selector;
        let ordering =
            || self.console.say(&format!("{} is ordered now. Its host key, to be kept: {}", order.name, key.public));
        let work = provision::provision(&provider, &pattern, selector, &order, &key.public, flags.dry_run, &ordering);
        let done = tokio::select! {
            done = work => done?,
            () = self.interrupt.fired() => return Err(super::vm::interrupted("provision a VM").into()),
        };
        let text = if self.json() { output::json(&done) } else { told(&done, &order, &pattern) };
        output::to_stdout(&self.redactor.clean(&text));
        Ok(done.exit_code())
    }
}

/// What was done, and what comes next.
fn told(done: &Provisioned, order: &Order, pattern: &str) -> String {
    if done.action == Action::Refused {
        let names: Vec<String> =
            done.candidates.iter().map(|server| format!("{} ({})", server.name, server.id)).collect();
        return format!(
            "{}: {} servers fit {pattern}: {}; exactly one may. Remove or rename the others, or give a narrower --pattern\n",
            done.provider,
            names.len(),
            names.join(", ")
        );
    }
    let Some(server) = &done.server else {
        let Order { name, kind, location, image, .. } = order;
        return format!("{}: {name} would be made: {kind} with {image} in {location}; nothing was\n", done.provider);
    };
    let address = server.address.as_deref().unwrap_or("no public address");
    let what = if done.action == Action::Created { "was made" } else { "is there, and taken as it is" };
    let mut text = format!("{}: {} ({}, {address}, {}) {what}\n", done.provider, server.name, server.id, server.status);
    if server.status == "off" {
        text.push_str("It is off: start it at the provider\n");
    }
    match &done.known_hosts {
        Some(line) => {
            text.push_str(&format!(
                "Its host key, for --known-hosts or PREVIEW_KNOWN_HOSTS:\n{line}\n\
                 It sets itself up now, in a few minutes. Then: preview vm setup --host ssh://root@{} …\n",
                if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
            ));
        }
        None => text.push_str(
            "Its host key is not known here: compare it on the provider's console (ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub) before you pin it\n",
        ),
    }
    text
}
