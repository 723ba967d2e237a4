//! `doctor`: everything that can be wrong, each with what to do.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt as _;
use preview_core::config::ProxyKind;
use preview_core::dns::Dns;
use preview_core::doctor::{self, Finding, Place, Programs, Report, Wish};
use preview_core::failure::FailureCode;
use preview_core::fault::{Fault, FaultKind};
use preview_core::host::ssh::Destination;
use preview_core::host::{local, ssh};
use preview_core::lifecycle::Error;
use preview_core::project;

use super::{Context, Reached};
use crate::cli;
use crate::output::{self, About};
use crate::session::{self, Purpose, Session};

/// Something failed, or with `--strict` was warned of.
const UNWELL: u8 = 8;

impl Context {
    pub(super) async fn doctor(&self, wish: &cli::Doctor) -> Result<u8, Error> {
        // What the configuration says against itself is a finding, too.
        let session = Session::load(&self.global, Purpose::Look, self.environment.clone());
        let prepared = session.and_then(|session| {
            session.check_host()?;
            self.complaint(&session, wish.ca.as_deref()).map(|wish| (session, wish))
        });
        let looked = async {
            match &prepared {
                Ok((session, wish)) => examine(session, wish).await,
                Err(error) => {
                    let programs = self.programs(None);
                    Ok(doctor::without_configuration(&error.chain(), &programs).await)
                }
            }
        };
        let report = tokio::select! {
            report = looked => report?,
            () = self.interrupt.fired() => {
                let fault = Fault::new(FaultKind::TimedOut, "look for what is wrong", "interrupted");
                return Err(fault.coded(FailureCode::Interrupted).into());
            }
        };
        let report = match &prepared {
            Ok((session, _)) if wish.probe => {
                let found = match report.in_the_way() {
                    Some(check) => doctor::not_probed(format!("`{check}` failed")),
                    None => self.probe(session, wish).await?,
                };
                report.with(found)
            }
            _ => report,
        };
        let colors = std::io::stdout().is_terminal() && !self.environment.contains_key("NO_COLOR");
        if self.json() {
            output::to_stdout(&self.redactor.clean(&output::json(&report)));
        } else if colors {
            output::to_stdout_as_is(&self.redactor.clean(&doctor::report(&report, true)));
        } else {
            output::to_stdout(&self.redactor.clean(&doctor::report(&report, false)));
        }
        Ok(if report.passes(wish.strict) { 0 } else { UNWELL })
    }

    fn probe_request(&self, session: &Session) -> Result<(project::Project, project::Deploy), Error> {
        let key = session.probe_key()?;
        let around = session.around(&session.named(&key)?)?;
        let request = project::Deploy {
            owner: Some(doctor::OWNER.to_owned()),
            repository: session.repository(),
            ..project::Deploy::new(session.target(&key)?, session::subject(&key), &session.who(), &self.run)
        };
        Ok((around, request))
    }

    /// A preview of its own, asked and removed.
    async fn probe(&self, session: &Session, wish: &cli::Doctor) -> Result<Finding, Error> {
        let prepared = self.probe_request(session);
        let prepared = prepared.and_then(|(around, request)| Ok((self.dns(session, &around)?, around, request)));
        let (dns, around, request) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Ok(doctor::not_begun(&error)),
        };
        self.console.about(&About { preview: Some(&request.target.name), ..About::default() });
        let resolver = session.compose();
        let reached = Reached { dns, ..Reached::default() };
        let wish = doctor::Probe { image: wish.probe_image.clone(), ca: wish.ca.clone() };
        let found = doctor::probe(
            reached.connect(session),
            &resolver,
            around,
            &request,
            &wish,
            &*self.console,
            &self.redactor,
            &self.interrupt,
        )
        .await;
        self.publish(session, reached.client().as_ref(), found.as_ref().err()).await;
        reached.close().await;
        found
    }

    fn programs(&self, session: Option<&Session>) -> Programs {
        let get = |name: &str| self.environment.get(name).cloned();
        Programs {
            path: get("PATH").unwrap_or_default().into(),
            home: get("HOME").map(Into::into),
            docker_config: session.and_then(Session::docker_config).or_else(|| get("DOCKER_CONFIG").map(PathBuf::from)),
        }
    }

    fn complaint(&self, session: &Session, ca: Option<&Path>) -> Result<Wish, Error> {
        let config = &session.config;
        let place = match config.vm.host.as_deref() {
            None | Some("local") => Place::Local,
            Some(host) => Place::Vm(Destination::parse(host)?),
        };
        let named = session.named(&session.any_key()?)?;
        // Several routes may share a host.
        let mut hosts = BTreeSet::new();
        let urls = named.urls.into_iter().filter(|url| hosts.insert((url.host().to_owned(), url.port()))).collect();
        let limits = &config.limits;
        let host = config.vm.host.as_deref().unwrap_or("local");
        Ok(Wish {
            configuration: format!("application `{}`, host `{host}`", session.app),
            warnings: session.warnings.clone(),
            place,
            pinned: config.vm.known_hosts.is_some() || config.vm.known_hosts_file.is_some(),
            programs: self.programs(Some(session)),
            base_dir: session.base_dir()?,
            docker_socket: session.docker_socket(),
            proxy_network: (config.proxy.kind != ProxyKind::None).then(|| config.proxy.network.clone()),
            proxy_container: matches!(config.proxy.kind, ProxyKind::Nginx | ProxyKind::Caddy)
                .then(|| config.proxy.container.clone()),
            urls,
            records: config.dns.as_ref().is_some_and(|table| table.kind() != "none"),
            tunnel: config.tunnel.is_some(),
            free_disk: limits.min_free_disk.bytes(),
            free_memory: limits.min_free_memory.bytes(),
            max_previews: u64::from(limits.max_previews.get()),
            ttl: config.ttl.0.map(Into::into),
            ca: ca.map(Path::to_owned),
        })
    }
}

/// Whether the provider of DNS records lets us in. Nothing is written, so whether it would let us write shows at the first deploy.
async fn rights(dns: Arc<dyn Dns>) -> Result<String, Fault> {
    let who = dns.describe();
    match dns.list().await {
        Ok(records) => Ok(format!("{who}, with {} records of previews of this VM", records.len())),
        Err(fault) if fault.kind == FaultKind::Unsupported => {
            Ok(format!("{who}; it does not hand out the zone, so a sweep cannot find records that nobody needs"))
        }
        Err(fault) => Err(fault),
    }
}

async fn examine(session: &Session, wish: &Wish) -> Result<Report, Error> {
    // A token that is not there is a finding like any other; the rest can be looked at all the same.
    let dns = match session.dns() {
        Ok(dns) => dns.map(|dns| rights(dns).boxed()),
        Err(error) => {
            let fault = Fault::new(FaultKind::Denied, "ask the DNS provider", error.chain());
            Some(std::future::ready(Err(fault)).boxed())
        }
    };
    Ok(match &wish.place {
        Place::Local => doctor::doctor(wish, async { local::connect() }, dns).await,
        Place::Vm(destination) => {
            let options = session.ssh_options(destination.clone());
            doctor::doctor(wish, ssh::connect(options), dns).await
        }
    })
}
