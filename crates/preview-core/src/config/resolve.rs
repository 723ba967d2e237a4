//! From the file's tables to what the rest of the program uses.

use std::sync::Arc;

use super::error::ConfigError;
use super::file::{ConfigFile, ProxyKind};
use super::origin::element;
use super::{Config, Route, Update, table};
use crate::name::{AppName, NameError, Naming, UrlTemplate};
use crate::route::Protocol;

/// Fills in what follows from other keys.
pub(super) fn resolve(file: ConfigFile) -> Result<Config, ConfigError> {
    let urls = file.url.map(|urls| urls.0).unwrap_or_default();
    let mut config = Config {
        app: file.app,
        compose: file.compose.map(|files| files.0).unwrap_or_default(),
        env_files: file.env_file.map(|files| files.0).unwrap_or_default(),
        profiles: file.profiles,
        exclude: file.exclude,
        pull: file.pull,
        ttl: file.ttl,
        name: file.name,
        urls,
        vm: file.vm,
        proxy: file.proxy,
        dns: super::dns::resolve(&file.dns, &file.origin)?,
        tunnel: file.tunnel,
        routes: Vec::new(),
        limits: file.limits,
        sweep: file.sweep,
        metrics: file.metrics,
        guardrails: file.guardrails,
        isolation: file.isolation,
        timeouts: file.timeouts,
        policy: file.policy,
        health: file.health,
        env: file.env,
        env_services: file.env_services,
        secrets: table::tables("secrets", &file.secrets, &file.origin)?,
        generate: file.generate,
        steps: file.step,
        origin: file.origin,
    };

    let without = file.route.iter().filter(|route| route.url.is_none()).count();
    match config.urls.len() {
        0 | 1 => {}
        several if file.route.is_empty() => {
            return Err(config.error("url", format!("{several} addresses need as many `[[route]]` tables")));
        }
        several if several != without => {
            let message = format!("{several} addresses for {without} routes without a `url` of their own");
            return Err(config.error("url", message));
        }
        _ => {}
    }
    let mut in_order = config.urls.clone().into_iter();
    let only = if config.urls.len() == 1 { config.urls.first() } else { None };
    let mut routes = Vec::with_capacity(file.route.len());
    for (index, route) in file.route.iter().enumerate() {
        let own = route.url.clone().or_else(|| only.cloned()).or_else(|| in_order.next());
        let url = own.map(|url| url.with_service(&route.service)).transpose();
        let url = url.map_err(|error| config.name_error(&error))?;
        if url.is_none() && (config.proxy.kind != ProxyKind::None || file.route.iter().any(|other| other.url.is_some()))
        {
            let key = element("route", index);
            let message = if config.proxy.kind == ProxyKind::None {
                format!("`{key}` needs `url`, as other routes have one")
            } else {
                format!("`{key}` needs `url`, or set `url` at the top: the proxy has to know the address")
            };
            return Err(config.error(&key, message));
        }
        let tcp = url.as_ref().is_some_and(UrlTemplate::is_tcp);
        if url.is_some() && tcp != (route.protocol == Protocol::Tcp) {
            let key = element("route", index);
            let message = if tcp {
                format!("`{key}`: an address with `tcp://` needs `protocol = \"tcp\"`")
            } else {
                format!("`{key}`: `protocol = \"tcp\"` needs an address of its own that begins with `tcp://`")
            };
            return Err(config.error(&key, message));
        }
        routes.push(Route {
            service: route.service.clone(),
            port: route.port,
            url,
            strip_prefix: route.strip_prefix,
            protocol: route.protocol,
            update: route.update,
            priority: route.priority,
            entrypoint: route.entrypoint.clone(),
            tls_options: route.tls_options.clone(),
        });
    }
    config.routes = routes;

    // Whatever the application will be called: what is wrong with the templates should not wait for a deploy.
    let app = config.app.clone().unwrap_or_else(|| AppName::derive("app"));
    if !config.routes.is_empty() || !config.urls.iter().any(UrlTemplate::names_service) {
        config.naming(&app)?;
    }
    Ok(config)
}

impl Config {
    /// How previews of this application are named. Its addresses are those of the routes, in their order; where there is no
    /// route, those of `url`.
    pub fn naming(&self, app: &AppName) -> Result<Naming, ConfigError> {
        let urls: Vec<UrlTemplate> = if self.routes.is_empty() {
            self.urls.clone()
        } else {
            self.routes.iter().filter_map(|route| route.url.clone()).collect()
        };
        for url in &urls {
            self.check_scheme(url)?;
        }
        Naming::new(app, self.name.as_ref(), &urls).map_err(|error| self.name_error(&error))
    }

    /// How a host is answered holds for all previews on it, and without a certificate or `tls` Caddy knows that by the address alone: one that a pull
    /// request writes with `http://` would take TLS from all others on the host.
    fn check_scheme(&self, url: &UrlTemplate) -> Result<(), ConfigError> {
        let proxy = &self.proxy;
        let by_address = proxy.kind == ProxyKind::Caddy && proxy.tls.is_none() && proxy.certificate.is_none();
        if !by_address || url.has_own_host() || !url.is_http() {
            return Ok(());
        }
        let message =
            format!("`{url}`: with `http://`, Caddy would speak no TLS for the whole host, which other previews share");
        let help = "write `https://`, or `tls = false` in `[proxy]` where nobody on the host is to speak TLS";
        Err(self.error(&self.key_of(&url.to_string()), message).with_help(help))
    }

    /// Adds the one route that the Compose files made obvious, where the configuration names none.
    pub fn add_route(&mut self, service: &str, port: std::num::NonZeroU16) -> Result<(), ConfigError> {
        let url = self.urls.first().map(|url| url.with_service(service)).transpose();
        let url = url.map_err(|error| self.name_error(&error))?;
        if url.is_none() && self.proxy.kind != ProxyKind::None {
            return Err(self.error("url", "`url` is missing: the proxy has to know the address"));
        }
        self.routes.push(Route {
            service: service.to_owned(),
            port,
            url,
            strip_prefix: false,
            protocol: Protocol::Http,
            update: Update::Recreate,
            priority: None,
            entrypoint: None,
            tls_options: None,
        });
        Ok(())
    }

    /// An error at the value of a key (`route[0].service`), for what only shows later. The closest key that exists gives the place.
    pub fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        self.origin.at(key, message)
    }

    /// Where a key is set, for messages: `preview.toml:12: route[0]`, `PREVIEW_URL_TEMPLATE`.
    #[must_use]
    pub fn place(&self, key: &str) -> String {
        self.origin.place(key)
    }

    fn name_error(&self, error: &NameError) -> ConfigError {
        self.error(&self.key_of(error.template().unwrap_or_default()), error.to_string())
    }

    /// Where a template stands.
    fn key_of(&self, template: &str) -> String {
        // A template with its service filled in is no longer the text of the file.
        let route =
            self.routes.iter().position(|route| route.url.as_ref().is_some_and(|url| url.to_string() == template));
        if self.name.as_ref().is_some_and(|name| name.to_string() == template) {
            "name".to_owned()
        } else if let Some(index) = route
            && self.urls.is_empty()
        {
            format!("{}.url", element("route", index))
        } else {
            "url".to_owned()
        }
    }
}

impl ConfigFile {
    /// Reads a file's text. `path` is only for errors.
    pub fn parse(text: &str, path: Option<&std::path::Path>) -> Result<Self, ConfigError> {
        let (origin, table) = super::origin::Origin::parse(text, path)?;
        let mut file: Self = super::decode::decode(&table, &origin, "")?;
        file.origin = Arc::new(origin);
        super::check::check(&file)?;
        table::tables("secrets", &file.secrets, &file.origin)?;
        super::dns::resolve(&file.dns, &file.origin)?;
        Ok(file)
    }
}
