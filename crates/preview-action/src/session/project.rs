//! From the configuration to the project that the library deploys.

use std::path::{Path, PathBuf};

use preview_core::admission::{Limits, Weight};
use preview_core::config;
use preview_core::lifecycle::Error;
use preview_core::name::Named;
use preview_core::project::{self, Project};
use preview_core::proxy::{FileKind, FileProxy, Proxy, Traefik};
use preview_core::registry;
use preview_core::secrets;
use preview_core::stack::{Allowance, Caps, Guardrails, Isolation, ServiceGuardrails, normal};
use preview_core::units::ByteSize;

use super::{Session, invalid};

impl Session {
    /// Limits of time.
    pub(crate) fn timeouts(&self) -> project::Timeouts {
        let timeouts = &self.config.timeouts;
        project::Timeouts {
            lock: timeouts.lock.into(),
            build: timeouts.build.into(),
            pull: timeouts.pull.into(),
            start: timeouts.start.into(),
            verify: timeouts.verify.into(),
            step: timeouts.step.into(),
            queue: timeouts.queue.into(),
            total: timeouts.total.into(),
        }
    }

    /// How the application is deployed.
    pub(crate) fn project(&self, named: &Named) -> Result<Project, Error> {
        let config = &self.config;
        let around = Project { repository: repository(&self.directory), ..self.around(named)? };
        let mut notes = None;
        let files = if config.compose.is_empty() {
            let found = config::COMPOSE_FILES.iter().map(|name| self.directory.join(name)).find(|path| path.is_file());
            let found = found.ok_or_else(|| {
                invalid(format!(
                    "there is no Compose file in {}: looked for {}; name it with `compose = \"…\"` in preview.toml, or with --compose",
                    self.directory.display(),
                    config::COMPOSE_FILES.join(", ")
                ))
            })?;
            notes = unused_override(&found);
            vec![found]
        } else {
            self.existing("compose", &config.compose)?
        };
        let sources = config
            .secrets
            .iter()
            .map(|table| secrets::from_table(table, &self.environment))
            .collect::<Result<Vec<_>, _>>()
            .map_err(invalid)?;
        Ok(Project {
            files,
            env_files: self.existing("env_file", &config.env_files)?,
            profiles: config.profiles.clone(),
            exclude: config.exclude.iter().cloned().collect(),
            exclude_place: self.place("exclude"),
            file_notes: notes.into_iter().collect(),
            heavy: config
                .limits
                .heavy
                .zip(config.limits.heavy_window.clone())
                .map(|(heavy, window)| project::Heavy { window, builds_only: heavy == config::Heavy::Build }),
            on_full: match config.limits.on_full {
                config::OnFull::Refuse => project::OnFull::Refuse,
                config::OnFull::Queue => project::OnFull::Queue,
                config::OnFull::ReplaceOldest => project::OnFull::ReplaceOldest,
            },
            allowed: config
                .policy
                .allow
                .iter()
                .map(|allow| Allowance {
                    service: allow.service.clone(),
                    key: allow.key.clone(),
                    values: allow.values.clone(),
                })
                .collect(),
            health: config.health.as_ref().and_then(|health| {
                Some(project::HealthProbe {
                    path: health.path.clone()?,
                    service: health.service.clone(),
                    port: health.port.map(std::num::NonZeroU16::get),
                    place: self.place(if health.service.is_some() { "health.service" } else { "health" }),
                })
            }),
            secrets: sources,
            generate: config.generate.iter().map(|(name, generate)| (name.to_string(), generate.length)).collect(),
            env: config.env.iter().map(|(name, value)| (name.to_string(), value.clone())).collect(),
            env_services: config.env_services.clone(),
            env_services_place: self.place("env_services"),
            steps: config
                .steps
                .iter()
                .enumerate()
                .map(|(index, step)| project::StepSpec {
                    name: step.name.clone().unwrap_or_else(|| step.run.join(" ")),
                    service: step.service.clone(),
                    run: step.run.clone(),
                    timeout: step.timeout.map(Into::into),
                    place: self.place(&format!("step[{index}].service")),
                })
                .collect(),
            ..around
        })
    }

    /// What of that has nothing to do with the application's files: its addresses, and what the host has for whatever runs there.
    pub(crate) fn around(&self, named: &Named) -> Result<Project, Error> {
        let config = &self.config;
        // Only for who deploys: a preview that is there can be looked at, and removed, whatever the file says by now.
        if let Some(url) = named.urls.iter().find(|url| !config.proxy.may_lead(named.name.as_ref(), url)) {
            let domains = config.proxy.domains.join(", ");
            let message = format!("{url} is none of the addresses that {} may have here: {domains}", named.name);
            return Err(invalid(config.error("proxy.domains", message)));
        }
        let routes: Vec<project::RouteSpec> = config
            .routes
            .iter()
            .enumerate()
            .map(|(index, route)| project::RouteSpec {
                service: route.service.clone(),
                port: route.port.get(),
                url: route.url.as_ref().and(named.urls.get(index)).map(ToString::to_string),
                strip_prefix: route.strip_prefix,
                protocol: route.protocol,
                rolling: route.update == config::Update::Rolling,
                priority: route.priority.map(std::num::NonZeroU32::get),
                entrypoint: route.entrypoint.clone(),
                tls_options: route.tls_options.clone(),
                place: self.place(&format!("route[{index}].service")),
            })
            .collect();
        Ok(Project {
            pull: match config.pull {
                config::Pull::Missing => project::PullPolicy::Missing,
                config::Pull::Always => project::PullPolicy::Always,
            },
            logins: self.logins(),
            hosts: named.hosts.clone(),
            url: if routes.is_empty() { named.urls.first().map(ToString::to_string) } else { None },
            routes: (!routes.is_empty()).then_some(routes),
            proxy: self.proxy(),
            access: project::AccessSpec {
                basic_auth: config.proxy.basic_auth.as_ref().map(|auth| (auth.user.clone(), auth.password.to_string())),
                place: self.place("proxy.basic_auth.password"),
                allow_ips: config.proxy.allow_ips.clone(),
                noindex: config.proxy.noindex,
            },
            limits: Limits {
                places: Weight::places(config.limits.max_previews.get()),
                per_owner: config.limits.max_per_owner.map(|places| Weight::places(places.get())),
                per_app: config.limits.max_per_app.map(|places| Weight::places(places.get())),
                free_disk: config.limits.min_free_disk.bytes(),
                free_memory: config.limits.min_free_memory.bytes(),
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
                overcommit: config.limits.memory_overcommit.map(|times| (times * 100.0).round() as u32),
            },
            weight: Weight::try_from(config.limits.weight).unwrap_or_default(),
            ttl: config.ttl.0.map(Into::into),
            guardrails: Guardrails {
                cpus: config.guardrails.cpus,
                memory: config.guardrails.memory.bytes(),
                pids: u64::from(config.guardrails.pids.get()),
                log_size: config.guardrails.log_size.bytes(),
                log_files: config.guardrails.log_files.get(),
                restart: config.guardrails.restart.as_str().to_owned(),
                max_memory: config.guardrails.max_memory.map(ByteSize::bytes),
                services: config
                    .guardrails
                    .services
                    .iter()
                    .map(|(service, own)| (service.clone(), service_guardrails(own)))
                    .collect(),
            },
            guardrails_place: self.place("guardrails"),
            caps: {
                let most = |number: std::num::NonZeroU16| usize::from(number.get());
                Caps {
                    containers: most(config.guardrails.max_containers),
                    replicas: most(config.guardrails.max_replicas),
                    networks: most(config.guardrails.max_networks),
                    volumes: most(config.guardrails.max_volumes),
                    ports: most(config.guardrails.max_ports),
                }
            },
            isolation: Isolation {
                read_only: config.isolation.read_only,
                tmpfs: config.isolation.tmpfs.bytes(),
                user: config.isolation.user.clone(),
                no_new_privileges: config.isolation.no_new_privileges,
                internal: config.isolation.internal,
                cap_drop_all: config.isolation.cap_drop_all,
                except: config.isolation.except.clone(),
            },
            isolation_place: self.place("isolation"),
            timeouts: self.timeouts(),
            ..Project::new(&self.directory, &[])
        })
    }

    /// The project's directory within its repository: `front`, or `.` for the top. `None` outside of a checkout.
    pub(crate) fn directory_within_repository(&self) -> Option<String> {
        let repository = repository(&self.directory);
        if !repository.join(".git").exists() {
            return None;
        }
        let within = self.directory.strip_prefix(&repository).ok()?.to_string_lossy().into_owned();
        Some(if within.is_empty() { ".".to_owned() } else { within })
    }

    /// Where a key is written.
    fn place(&self, key: &str) -> String {
        let text = self.config.error(key, "").to_string();
        text.trim_end_matches([' ', ':', ';']).to_owned()
    }

    /// The proxy on the host.
    pub(crate) fn proxy(&self) -> Proxy {
        let proxy = &self.config.proxy;
        let files = |kind| {
            let certificate = proxy.certificate.as_ref().zip(proxy.certificate_key.as_ref());
            Proxy::Files(FileProxy {
                kind,
                network: proxy.network.clone(),
                container: proxy.container.clone(),
                routes: proxy.routes_dir.to_string(),
                certificate: certificate.map(|(certificate, key)| (certificate.to_string(), key.to_string())),
                tls: proxy.tls,
                pages: proxy.pages_dir.as_ref().map(ToString::to_string),
            })
        };
        match proxy.kind {
            config::ProxyKind::None => Proxy::None,
            config::ProxyKind::Traefik => Proxy::Traefik(Traefik {
                network: proxy.network.clone(),
                entrypoint: proxy.entrypoint.clone(),
                tls: proxy.tls,
                cert_resolver: proxy.cert_resolver.clone(),
            }),
            config::ProxyKind::Nginx => files(FileKind::Nginx),
            config::ProxyKind::Caddy => files(FileKind::Caddy),
        }
    }

    /// Files that the configuration names, relative to the project directory; each must exist.
    fn existing(&self, key: &str, files: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
        let repository = repository(&self.directory);
        files
            .iter()
            .map(|file| {
                let path = normal(&self.directory.join(file));
                let wrong = |message: String| Err(invalid(self.config.error(key, message)));
                // A pull request must not have other files of this machine read; where flags and variables lead is the pipeline's to say.
                let of_the_file = self.config.error(key, "").file.is_some();
                if of_the_file && !path.starts_with(&repository) {
                    return wrong(format!("{} is outside the repository", path.display()));
                }
                if !path.is_file() {
                    return wrong(format!("{} does not exist", path.display()));
                }
                Ok(path)
            })
            .collect()
    }

    /// What `docker login` left on this machine.
    fn logins(&self) -> registry::Logins {
        let file = self.docker_config().map(|directory| directory.join("config.json"));
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        registry::logins(&text)
    }
}

fn service_guardrails(own: &config::ServiceGuardrails) -> ServiceGuardrails {
    ServiceGuardrails {
        cpus: own.cpus,
        memory: own.memory.map(ByteSize::bytes),
        pids: own.pids.map(|pids| u64::from(pids.get())),
    }
}

/// What to say where a Compose file that was found, not named, has an override beside it. Compose itself would use both.
fn unused_override(file: &Path) -> Option<String> {
    let beside = config::COMPOSE_OVERRIDES.iter().map(|name| file.with_file_name(name)).find(|path| path.is_file())?;
    let (file, beside) = (file.file_name()?.to_string_lossy(), beside.file_name()?.to_string_lossy());
    Some(format!(
        "{beside} is beside {file} and is not used: overrides are for developers' machines. To use it, write `compose = [\"{file}\", \"{beside}\"]` in \
         preview.toml; `compose = \"{file}\"` says that it is not meant"
    ))
}

/// The directory that files of a stack must lie in: the checkout, or the project directory where there is none.
pub(super) fn repository(directory: &Path) -> PathBuf {
    directory.ancestors().find(|path| path.join(".git").exists()).unwrap_or(directory).to_owned()
}
