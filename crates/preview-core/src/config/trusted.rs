//! The configuration of the base branch over that of a pull request: who may decide over the host.
//!
//! A pull request changes `preview.toml` like any other file. What decides over the host and over other previews must not be its to
//! change, so it can come from a second file, which the pipeline takes from the base branch.

use std::sync::Arc;

use super::error::ConfigError;
use super::file::ConfigFile;

/// A key that decides over the host: its name, whether two files agree about it, and how it is taken over.
struct Governed {
    key: &'static str,
    same: fn(&ConfigFile, &ConfigFile) -> bool,
    take: fn(&mut ConfigFile, &ConfigFile),
}

macro_rules! governed {
    ($($key:ident),+) => {
        [$(Governed {
            key: stringify!($key),
            same: |one, other| one.$key == other.$key,
            take: |file, trusted| file.$key.clone_from(&trusted.$key),
        }),+]
    };
}

/// Tables, and one key, that come from the trusted file alone.
const TABLES: [Governed; 12] =
    governed!(limits, guardrails, isolation, policy, vm, proxy, dns, tunnel, timeouts, sweep, metrics, ttl);
/// Keys that come from it if it gives them.
const NAMES: [Governed; 2] = governed!(app, name);

impl ConfigFile {
    /// For a command that deploys nothing: `[policy]` does not concern it, so it may stand in the pull request's own file, and says nothing.
    #[must_use]
    pub fn deploying_nothing(self) -> Self {
        Self { idle: true, policy: super::Policy::default(), ..self }
    }

    /// Puts this file, which a pull request brings, under one that it cannot change: the tables that decide over the host come from
    /// `trusted` alone (where that says nothing, they are the defaults), and so do the application's name and the names of previews if it gives them.
    #[must_use]
    pub fn under(mut self, trusted: &Self) -> Self {
        let named = NAMES.iter().filter(|name| trusted.origin.says(name.key));
        let mut keys = Vec::new();
        let mut ignored = Vec::new();
        for governed in TABLES.iter().chain(named) {
            if self.origin.says(governed.key) && !(governed.same)(&self, trusted) {
                let table = governed.key != "ttl" && TABLES.iter().any(|table| table.key == governed.key);
                ignored.push(if table { format!("[{}]", governed.key) } else { format!("`{}`", governed.key) });
            }
            (governed.take)(&mut self, trusted);
            keys.push(governed.key);
        }
        self.overruled = (!ignored.is_empty()).then(|| {
            format!(
                "{}: ignored here, since {} decides: {}",
                self.origin.shown("the configuration"),
                trusted.origin.shown("the trusted configuration"),
                ignored.join(", ")
            )
        });
        Arc::make_mut(&mut self.origin).take_from(keys, Arc::clone(&trusted.origin));
        self
    }
}

/// A file that nobody vouches for cannot say what is allowed to it.
pub(super) fn check(file: &ConfigFile) -> Result<(), ConfigError> {
    let origin = &file.origin;
    if origin.says("policy") && !origin.is_overruled() && !file.idle {
        let message = "`policy` counts only in a file that the pull request cannot change";
        return Err(origin
            .at_key("policy", message)
            .with_help("take the base branch's file and pass it with --trusted-config (or PREVIEW_TRUSTED_CONFIG)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{Config, ConfigError, ConfigFile, Environment, Overrides, Settings};

    fn parse(text: &str, name: &str) -> ConfigFile {
        ConfigFile::parse(text, Some(Path::new(name))).unwrap()
    }

    fn settings(own: &str, base: &str) -> Result<Settings, ConfigError> {
        let file = parse(own, "preview.toml").under(&parse(base, "base.toml"));
        Settings::merge(file, &Environment::new(), &Overrides::default())
    }

    fn config(own: &str, base: &str) -> Config {
        settings(own, base).unwrap().config
    }

    #[test]
    fn entry_points_are_the_base_branchs_to_open() {
        let route = "[[route]]\nservice = 'db'\nport = 5432\nurl = 'tcp://{name}.example.com'\nprotocol = 'tcp'\n";
        let proxy = "[proxy]\nkind = 'traefik'\n";
        for (key, list) in [("entrypoint", "route_entrypoints"), ("tls_options", "route_tls_options")] {
            let own = format!("{route}{key} = 'inside'\n");
            assert!(settings(&own, &format!("{proxy}{list} = ['inside']")).is_ok());
            let error = settings(&own, proxy).unwrap_err();
            assert!(error.to_string().contains("`inside` is not for pull requests"), "{error}");
            assert!(error.to_string().contains(list), "{error}");
            // Without a base branch nobody is asked.
            let alone = parse(&format!("{own}{proxy}"), "preview.toml");
            assert!(Settings::merge(alone, &Environment::new(), &Overrides::default()).is_ok());
        }
    }

    #[test]
    fn what_decides_over_the_host_comes_from_the_base_alone() {
        let own = "app = 'mine'\nttl = 'never'\nprofiles = ['x']\n[limits]\nmax_previews = 99\n[guardrails]\nmemory = '64GB'\n[isolation]\nexcept = ['x']\n\
                   [vm]\nhost = 'ssh://me@elsewhere'\n[timeouts]\ntotal = '9h'\n[policy]\nforks = true\n[metrics]\nfile = '/home/deploy/x.prom'\n[dns]\nkind = 'cloudflare'\nzone = 'example.org'\n[env]\nA = '1'";
        let base = "app = 'shop'\n[limits]\nmax_previews = 2\n[vm]\nhost = 'ssh://deploy@vm'\n[env]\nB = '2'";
        let done = settings(own, base).unwrap();
        let config = &done.config;
        assert_eq!(config.app.as_ref().unwrap().as_str(), "shop");
        assert_eq!(config.limits.max_previews.get(), 2);
        assert_eq!(config.guardrails, Default::default(), "the base says nothing: the default, not the pull request");
        assert_eq!(config.vm.host.as_deref(), Some("ssh://deploy@vm"));
        assert_eq!(config.timeouts, Default::default());
        assert!(
            !config.policy.forks
                && config.ttl == Default::default()
                && config.metrics.file.is_none()
                && config.dns.is_none()
        );
        // The rest is the pull request's.
        assert_eq!(config.profiles, ["x"]);
        assert_eq!(config.env.keys().map(ToString::to_string).collect::<Vec<_>>(), ["A"]);
        assert_eq!(
            done.warnings,
            [
                "preview.toml: ignored here, since base.toml decides: [limits], [guardrails], [isolation], [policy], [vm], [dns], [timeouts], [metrics], `ttl`, `app`"
            ]
        );
    }

    #[test]
    fn what_is_the_same_or_not_there_is_no_warning() {
        let done = settings("[limits]\nmax_previews = 2\n[proxy]", "[limits]\nmax_previews = 2\nweight = 1.0").unwrap();
        assert_eq!(done.warnings, Vec::<String>::new());
        let done = settings("app = 'mine'", "[limits]\nmax_previews = 2").unwrap();
        assert_eq!(done.config.app.unwrap().as_str(), "mine", "the base gives no name");
        assert_eq!(done.warnings, Vec::<String>::new());
    }

    #[test]
    fn flags_and_environment_still_win() {
        let file =
            parse("[vm]\nhost = 'own'", "preview.toml").under(&parse("app = 'shop'\n[vm]\nhost = 'base'", "base.toml"));
        let environment = Environment::from([("PREVIEW_HOST".to_owned(), "variable".to_owned())]);
        let flags = Overrides { app: Some("flag".to_owned()), ..Overrides::default() };
        let config = Settings::merge(file, &environment, &flags).unwrap().config;
        assert_eq!((config.vm.host.as_deref(), config.app.as_ref().unwrap().as_str()), (Some("variable"), "flag"));
        assert_eq!(config.error("vm.host", "x").to_string(), "PREVIEW_HOST: x");
    }

    #[test]
    fn errors_name_the_file_that_the_key_is_in() {
        let config = config("\n[[route]]\nservice = 'a'\nport = 1", "\n\n[vm]\nhost = 'nonsense'\n[proxy]\n");
        assert_eq!(config.error("vm.host", "x").to_string(), "base.toml:4:8: `vm.host`: x");
        assert_eq!(config.error("vm.base_dir", "x").to_string(), "base.toml:3:1: `vm.base_dir`: x");
        assert_eq!(config.error("limits.weight", "x").to_string(), "base.toml:1:1: `limits.weight`: x");
        assert_eq!(config.error("route[0].service", "x").to_string(), "preview.toml:3:11: `route[0].service`: x");
        assert_eq!(config.error("app", "x").to_string(), "preview.toml:1:1: `app`: x");
    }

    #[test]
    fn what_is_allowed_cannot_stand_in_the_file_of_the_pull_request() {
        let alone = Settings::merge(
            parse("\n[policy]\nforks = true", "preview.toml"),
            &Environment::new(),
            &Overrides::default(),
        );
        assert_eq!(
            alone.unwrap_err().to_string(),
            "preview.toml:2:2: `policy` counts only in a file that the pull request cannot change; take the base branch's file and \
             pass it with --trusted-config (or PREVIEW_TRUSTED_CONFIG)"
        );
        assert!(config("", "[policy]\nforks = true").policy.forks);
        // Whoever only looks or removes has no use for it.
        let idle = parse("[policy]\nforks = true", "preview.toml").deploying_nothing();
        let config = Settings::merge(idle, &Environment::new(), &Overrides::default()).unwrap().config;
        assert!(!config.policy.forks);
    }
}
