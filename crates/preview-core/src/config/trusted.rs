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

/// Tables, and three keys, that decide over the host and over other previews.
const GOVERNED: [Governed; 14] =
    governed!(app, name, limits, guardrails, isolation, policy, vm, proxy, dns, tunnel, timeouts, sweep, metrics, ttl);

impl Governed {
    /// As people write it.
    fn shown(&self) -> String {
        if ["app", "name", "ttl"].contains(&self.key) { format!("`{}`", self.key) } else { format!("[{}]", self.key) }
    }
}

impl ConfigFile {
    /// For a command that deploys nothing: `[policy]` does not concern it, so it may stand in the pull request's own file, and says nothing.
    #[must_use]
    pub fn deploying_nothing(self) -> Self {
        Self { idle: true, policy: super::Policy::default(), ..self }
    }

    /// What this file says of the host and of other previews, other than the defaults.
    fn governs(&self) -> impl Iterator<Item = &'static Governed> {
        let default = Self::default();
        GOVERNED.iter().filter(move |governed| self.origin.says(governed.key) && !(governed.same)(self, &default))
    }

    /// Puts this file, which a pull request brings, under one that it cannot change: what decides over the host and over other
    /// previews comes from `trusted` alone. Where that says nothing, the default holds.
    #[must_use]
    pub fn under(mut self, trusted: &Self) -> Self {
        let differs = |governed: &&Governed| self.origin.says(governed.key) && !(governed.same)(&self, trusted);
        let ignored: Vec<String> = GOVERNED.iter().filter(differs).map(Governed::shown).collect();
        for governed in &GOVERNED {
            (governed.take)(&mut self, trusted);
        }
        self.overruled = (!ignored.is_empty()).then(|| {
            format!(
                "{}: ignored here, since {} decides: {}",
                self.origin.shown("the configuration"),
                trusted.origin.shown("the trusted configuration"),
                ignored.join(", ")
            )
        });
        let keys = GOVERNED.iter().map(|governed| governed.key).collect();
        Arc::make_mut(&mut self.origin).take_from(keys, Arc::clone(&trusted.origin));
        self
    }

    /// For a file that a pull request brings, where no file of the base branch is given: it cannot decide over the host.
    ///
    /// # Errors
    /// If it does, naming every such table and key.
    pub fn without_trusted(self) -> Result<Self, ConfigError> {
        let governs: Vec<&Governed> = self.governs().collect();
        let Some(first) = governs.first() else { return Ok(self) };
        let names: Vec<String> = governs.iter().map(|governed| governed.shown()).collect();
        let message = format!(
            "in CI a pull request's own file cannot decide over the host and other previews, and no configuration of the base branch \
             was given; it has {}",
            names.join(", ")
        );
        Err(self.origin.at_key(first.key, message).with_help(GIVE_TRUSTED))
    }

    /// For a preview that is to go: nothing of a pull request's file is needed for that, and nothing counts. Tells what it said.
    #[must_use]
    pub fn ignored(&self) -> Option<String> {
        let names: Vec<String> = self.governs().map(Governed::shown).collect();
        let file = self.origin.shown("the configuration");
        (!names.is_empty()).then(|| {
            format!(
                "{file}: ignored here, since a pull request's own file does not decide over the host: {}",
                names.join(", ")
            )
        })
    }
}

/// How a job gives the base branch's file.
const GIVE_TRUSTED: &str = "take these from the base branch: `git show origin/main:preview.toml >\"$RUNNER_TEMP/base.toml\"` (an empty \
                            file, where the base branch has none), and pass that file with --trusted-config, PREVIEW_TRUSTED_CONFIG or \
                            the action's input `trusted-config`";

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
                "preview.toml: ignored here, since base.toml decides: `app`, [limits], [guardrails], [isolation], [policy], [vm], [dns], [timeouts], [metrics], `ttl`"
            ]
        );
    }

    #[test]
    fn what_is_the_same_or_not_there_is_no_warning() {
        let done = settings("[limits]\nmax_previews = 2\n[proxy]", "[limits]\nmax_previews = 2\nweight = 1.0").unwrap();
        assert_eq!(done.warnings, Vec::<String>::new());
    }

    #[test]
    fn the_names_of_previews_are_the_base_branchs_too() {
        let done = settings("app = 'other'\nname = 'x-{number}'", "[limits]\nmax_previews = 2").unwrap();
        assert_eq!(
            (done.config.app, done.config.name),
            (None, None),
            "another application's previews are out of reach"
        );
        assert_eq!(done.warnings, ["preview.toml: ignored here, since base.toml decides: `app`, `name`"]);
    }

    #[test]
    fn without_a_base_branch_a_pull_request_does_not_decide_over_the_host() {
        for (own, names) in [
            ("app = 'other'", "`app`"),
            ("name = 'x-{number}'", "`name`"),
            ("ttl = 'never'", "`ttl`"),
            ("[vm]\nbase_dir = '/srv/others'", "[vm]"),
            ("[proxy]\nnetwork = 'other_pr-7_default'", "[proxy]"),
            ("[limits]\non_full = 'replace-oldest'\nmax_previews = 1", "[limits]"),
            ("[[policy.allow]]\nservice = 'a'\nkey = 'pid'\nvalues = ['host']", "[policy]"),
            ("[guardrails]\nmemory = '64GB'\n[sweep]\nimages_above = 1", "[guardrails], [sweep]"),
        ] {
            let error = parse(own, "preview.toml").without_trusted().unwrap_err().to_string();
            assert!(error.starts_with("preview.toml:1:") && error.contains(&format!("it has {names};")), "{error}");
            assert!(error.contains("--trusted-config") && error.contains("git show"), "{error}");
            let ignored = parse(own, "preview.toml").ignored().unwrap();
            assert!(ignored.ends_with(&format!(": {names}")), "{ignored}");
        }
        for fine in ["", "profiles = ['x']\n[env]\nA = '1'", "[vm]\n[limits]\n[proxy]\nkind = 'none'"] {
            assert!(parse(fine, "preview.toml").without_trusted().is_ok(), "{fine}");
            assert_eq!(parse(fine, "preview.toml").ignored(), None, "{fine}");
        }
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
        assert_eq!(config.error("app", "x").to_string(), "base.toml:1:1: `app`: x");
        assert_eq!(config.error("url", "x").to_string(), "preview.toml:1:1: `url`: x");
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
