//! `preview vm`: a machine made ready.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use preview_core::fault::{Fault, FaultKind};
use preview_core::host::{Host as _, ssh};
use preview_core::lifecycle::{Error, Event};
use preview_core::name::Key;
use preview_core::secret::Secret;
use preview_core::setup::proxy::{Acme, ProxyWish, Tls, Tunnel};
use preview_core::setup::{self, Alerts, Options, Pool, SetUp, Wish, print};
use preview_core::units::ByteSize;

use super::Context;
use crate::cli::vm::{DockerSource, Form, Machine, Proxy, ProxyKind, Setup};
use crate::output;
use crate::session::{Purpose, Session};

/// For a connection that only shows that one can be made.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

impl Context {
    pub(super) async fn vm_setup(&self, setup: &Setup) -> Result<u8, Error> {
        let session = self.session(Purpose::Look)?;
        let wish = self.machine(&session, &setup.machine)?;
        let options = Options { dry_run: setup.dry_run, only: setup.only.clone(), skip: setup.skip.clone() };
        if let Some(form) = setup.print {
            let text = match form {
                Form::Script => print::script(&wish, &options),
                Form::CloudInit => print::cloud_init(&wish, &options, None),
            }
            .map_err(Error::invalid)?;
            if let Some(wrong) = (form == Form::CloudInit).then(|| print::too_large(&text)).flatten() {
                self.console.warn(&wrong);
            }
            output::to_stdout(&text);
            return Ok(0);
        }
        let host = session.config.vm.host.as_deref().filter(|host| *host != "local");
        let host = host.ok_or_else(|| {
            Error::invalid(
                "say which machine: --host ssh://root@HOST; or --print cloud-init for one that does not exist yet",
            )
        })?;
        self.set_up(&session, host, &wish, &options).await
    }

    async fn set_up(&self, session: &Session, host: &str, wish: &Wish, options: &Options) -> Result<u8, Error> {
        let ssh_options = session.ssh_options(preview_core::host::ssh::Destination::parse(host)?);
        let machine = ssh::connect(ssh_options.clone()).await?;
        let probe = || -> futures_util::future::BoxFuture<'_, Result<(), Fault>> {
            // A door that does not open soon is shut: nobody should wait for minutes to have it opened again.
            let again = ssh::SshOptions { connect_timeout: PROBE_LIMIT, ..ssh_options.clone() };
            Box::pin(async move { ssh::connect(again).await?.close().await })
        };
        let shown = |plan: &SetUp| self.console.say(&setup::text(plan));
        let work = setup::run(&machine, wish, options, &*self.console, &probe, &shown);
        let done = tokio::select! {
            done = work => done,
            () = self.interrupt.fired() => Err(interrupted("set up the machine")),
        };
        let _ = machine.close().await;
        let done = done?;
        let text = if self.json() { output::json(&done) } else { setup::text(&done) };
        output::to_stdout(&self.redactor.clean(&text));
        Ok(done.exit_code())
    }

    /// What the flags say.
    pub(super) fn machine(&self, session: &Session, flags: &Machine) -> Result<Wish, Error> {
        let swap: ByteSize = flags.swap.parse().map_err(|error| Error::invalid(format!("--swap: {error}")))?;
        let mut wish = Wish {
            user: flags.user.clone(),
            docker: match flags.docker {
                DockerSource::Distribution => setup::DockerSource::Distribution,
                DockerSource::DockerCe => setup::DockerSource::DockerCe,
            },
            pool: Pool::parse(&flags.address_pool)
                .map_err(|wrong| Error::invalid(format!("--address-pool: {wrong}")))?,
            swap_mib: u32::try_from(swap.bytes() >> 20).unwrap_or(u32::MAX),
            refuse_passwords: flags.refuse_passwords,
            alerts: Alerts {
                webhook: self.secret("--webhook-env", flags.webhook_env.as_deref())?,
                uptime: self.secret("--uptime-url-env", flags.uptime_url_env.as_deref())?,
            },
            security_updates: flags.security_updates,
            proxy: match flags.proxy.proxy {
                ProxyKind::Traefik => Some(self.proxy(&flags.proxy)?),
                ProxyKind::None => None,
            },
            ..Wish::default()
        };
        wish.ports.extend(&flags.open_port);
        if let Some(base) = &session.config.vm.base_dir {
            wish.base_dir = base.to_string();
            if let Some(proxy) = &mut wish.proxy {
                proxy.pages = format!("{base}/.pages");
            }
        }
        for file in &flags.deploy_key {
            let text = read("--deploy-key", file)?;
            let keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            wish.deploy_keys.extend(keys.map(str::to_owned));
        }
        wish.check().map_err(Error::invalid)?;
        if let Some(proxy) = &wish.proxy {
            let hosts = hosts(session, proxy.domain.as_deref())?;
            let doubts = setup::check_certificate(&proxy.tls, &hosts, jiff::Timestamp::now());
            doubts.map_err(Error::invalid)?.iter().for_each(|doubt| self.console.warn(doubt));
        }
        Ok(wish)
    }

    fn proxy(&self, flags: &Proxy) -> Result<ProxyWish, Error> {
        let mut wish = ProxyWish { domain: flags.domain.clone(), ..ProxyWish::default() };
        for image in &flags.image {
            let place = match image.split_once('=') {
                Some(("traefik", _)) => &mut wish.image,
                Some(("socket-proxy", _)) => &mut wish.socket_proxy_image,
                Some(("cloudflared", _)) => &mut wish.cloudflared_image,
                Some(("status", _)) => &mut wish.status_image,
                _ => {
                    let forms = "traefik=IMAGE, socket-proxy=IMAGE, status=IMAGE or cloudflared=IMAGE";
                    return Err(Error::invalid(format!("--image {image}: expected {forms}")));
                }
            };
            image.split_once('=').map_or("", |(_, image)| image).clone_into(place);
        }
        wish.subnet = setup::proxy_subnet(&flags.proxy_subnet)
            .map_err(|wrong| Error::invalid(format!("--proxy-subnet: {wrong}")))?;
        wish.tunnel = match self.secret("--tunnel-token-env", flags.tunnel_token_env.as_deref())? {
            Some(token) => Tunnel::Here(token),
            None if flags.no_tunnel => Tunnel::Remove,
            None => Tunnel::Keep,
        };
        wish.tls = match (&flags.cert, &flags.key, &flags.acme_email, &flags.acme_dns) {
            (Some(certificate), Some(key), ..) => {
                let key = Secret::new(read("--key", key)?);
                self.console.event(&Event::Secret(&key));
                Tls::Files { certificate: read("--cert", certificate)?, key }
            }
            (_, _, Some(email), Some(dns)) => {
                let mut environment = BTreeMap::new();
                for name in &flags.acme_env {
                    environment.extend(self.secret("--acme-env", Some(name))?.map(|value| (name.clone(), value)));
                }
                Tls::Acme(Acme {
                    email: email.clone(),
                    dns: dns.clone(),
                    environment,
                    server: flags.acme_server.clone(),
                    authority: flags.acme_ca.as_deref().map(|file| read("--acme-ca", file)).transpose()?,
                    resolvers: flags.acme_resolver.clone(),
                })
            }
            _ if flags.self_signed => Tls::SelfSigned,
            _ => Tls::Keep,
        };
        Ok(wish)
    }

    /// The value of a variable that a flag names; masked from now on.
    pub(super) fn secret(&self, flag: &str, name: Option<&str>) -> Result<Option<Secret<String>>, Error> {
        let Some(name) = name else { return Ok(None) };
        let value = self.environment.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
        let value = value.ok_or_else(|| Error::invalid(format!("{flag}: the variable {name} is not set, or empty")))?;
        let value = Secret::new(value.to_owned());
        self.console.event(&Event::Secret(&value));
        Ok(Some(value))
    }
}

/// Hosts that a certificate has to be for: that of a preview below the domain, or those of the addresses that are configured.
fn hosts(session: &Session, domain: Option<&str>) -> Result<Vec<String>, Error> {
    if let Some(domain) = domain {
        return Ok(vec![format!("pr-1.{domain}")]);
    }
    let key = Key::pull(1).map_err(|error| Error::invalid(error.to_string()))?;
    Ok(session.named(&key)?.urls.iter().map(|url| url.host().to_owned()).collect())
}

fn read(flag: &str, file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).map_err(|error| Error::invalid(format!("{flag} {}: {error}", file.display())))
}

pub(super) fn interrupted(operation: &'static str) -> Fault {
    let context = "interrupted; what was at work may go on there. Run the same command again for the rest";
    Fault::new(FaultKind::TimedOut, operation, context).coded(preview_core::failure::FailureCode::Interrupted)
}
