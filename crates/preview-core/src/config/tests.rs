//! Tests of the configuration: what is read, and what errors say.

use std::path::Path;

use super::*;

fn file(text: &str) -> Result<ConfigFile, ConfigError> {
    ConfigFile::parse(text, Some(Path::new("preview.toml")))
}

fn config(text: &str) -> Result<Config, ConfigError> {
    Settings::merge(file(text)?, &Environment::new(), &Overrides::default()).map(|settings| settings.config)
}

/// The error, which has to have a place unless it starts with a variable or flag.
#[track_caller]
fn error(text: &str) -> String {
    let error = config(text).unwrap_err();
    assert!(error.file.is_some() && error.line.is_some() && error.column.is_some(), "{error:?}");
    error.to_string()
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = config("").unwrap();
    assert_eq!(config.guardrails.memory.to_string(), "512MB");
    assert_eq!(config.guardrails.cpus, 1.0);
    assert_eq!(config.guardrails.pids.get(), 256);
    assert_eq!((config.guardrails.log_size.to_string().as_str(), config.guardrails.log_files.get()), ("10MB", 3));
    assert_eq!(config.guardrails.restart.as_str(), "always");
    let timeouts = &config.timeouts;
    let all =
        [timeouts.build, timeouts.pull, timeouts.start, timeouts.verify, timeouts.step, timeouts.lock, timeouts.total];
    assert_eq!(all.map(|span| span.as_secs()), [900, 300, 120, 60, 300, 60, 1200]);
    assert_eq!(config.proxy.kind, ProxyKind::None);
    assert_eq!(config.vm.docker_socket.as_str(), "/var/run/docker.sock");
    assert!(config.routes.is_empty() && config.app.is_none() && config.compose.is_empty());
}

#[test]
fn a_file_with_everything() {
    let config = config(
        r#"
app = "learning-api"
compose = ["compose.yml", "compose.preview.yml"]
env_file = "preview.env"
profiles = ["parser"]
pull = "always"
name = "pr-{number}"
url = "https://preview.example.com/{name}"
env_services = ["api"]

[vm]
host = "ssh://deploy@vm.example.com"
base_dir = "/srv/previews/"
known_hosts = "vm.example.com ssh-ed25519 AAAA"
identity_file = "id"

[proxy]
kind = "traefik"
cert_resolver = "letsencrypt"
tls = false

[[route]]
service = "api"
port = 8000
strip_prefix = true

[[route]]
service = "ui"
port = 80
url = "https://{name}-{service}.example.com"

[guardrails]
cpus = 2
memory = "1.5GB"

[timeouts]
build = "1h30m"
lock = "0s"

[health]
path = "/healthz?full=1"
service = "api"

[env]
REDIS_URL = "redis://redis:6379/0"
WORKERS = 2
RATIO = 1.0
DEBUG = false

[[secrets]]
kind = "env"
names = ["TOKEN"]

[generate]
ADMIN_PASSWORD = {}
API_KEY = { length = 40 }

[[step]]
after = "start"
service = "api"
run = ["alembic", "upgrade", "head"]
timeout = "10m"
"#,
    )
    .unwrap();
    assert_eq!(config.vm.base_dir.unwrap().as_str(), "/srv/previews");
    assert_eq!(config.routes.len(), 2);
    assert_eq!(config.routes[1].url.as_ref().unwrap().to_string(), "https://{name}-ui.example.com");
    let env: Vec<_> = config.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(env, ["DEBUG=false", "RATIO=1.0", "REDIS_URL=redis://redis:6379/0", "WORKERS=2"]);
    assert_eq!(config.generate.values().map(|generate| generate.length).collect::<Vec<_>>(), [24, 40]);
    assert_eq!(config.secrets[0].kind(), "env");
    assert_eq!(config.steps[0].timeout.unwrap().as_secs(), 600);
}

#[test]
fn errors_say_where_and_what() {
    for (text, expected) in [
        ("\n\nmax_preview = 6", "preview.toml:3:1: unknown key `max_preview`; there are: "),
        ("[guardrails]\nmemry = '1GB'", "preview.toml:2:1: unknown key `guardrails.memry`; did you mean `memory`?"),
        ("[guardrail]\nmemory = '1GB'", "preview.toml:1:2: unknown key `guardrail`; did you mean `guardrails`?"),
        (
            "[[route]]\nservice = 'a'\nport = 1\n[[route]]\nservice = 'b'\nprt = 1",
            "preview.toml:6:1: unknown key `route[1].prt`; did you mean `port`?",
        ),
        (
            "[guardrails]\nmemory = '512'",
            "preview.toml:2:10: `guardrails.memory`: `512` has no unit: write `512MB`, for example",
        ),
        (
            "[guardrails]\nmemory = 512",
            "preview.toml:2:10: `guardrails.memory`: expected a string, found a whole number",
        ),
        (
            "[guardrails]\nmemory = '1MB'",
            "preview.toml:2:10: `guardrails.memory`: has to be at least `6MB`, Docker's own minimum",
        ),
        ("[guardrails]\npids = 0", "preview.toml:2:8: `guardrails.pids`: expected a whole number, at least 1"),
        ("[guardrails]\npids = -1", "preview.toml:2:8: `guardrails.pids`: expected a whole number, at least 1"),
        (
            "[guardrails]\ncpus = 0",
            "preview.toml:2:8: `guardrails.cpus`: has to be a number of processors, at least 0.01",
        ),
        (
            "[guardrails]\ncpus = nan",
            "preview.toml:2:8: `guardrails.cpus`: has to be a number of processors, at least 0.01",
        ),
        ("[guardrails]\ncpus = '1'", "preview.toml:2:8: `guardrails.cpus`: expected a number, found a string"),
        (
            "[guardrails]\nrestart = 'allways'",
            "preview.toml:2:11: `guardrails.restart`: `allways` is not known here; did you mean `always`?",
        ),
        ("guardrails = 1", "preview.toml:1:14: `guardrails`: expected a table, found a whole number"),
        ("[timeouts]\ntotal = '20'", "preview.toml:2:9: `timeouts.total`: `20` has no unit: write `20m`, for example"),
        ("[timeouts]\ntotal = '0s'", "preview.toml:2:9: `timeouts.total`: has to be more than no time"),
        ("[[route]]\nservice = 'a'", "preview.toml:1:1: `route[0]` needs `port`"),
        (
            "[[route]]\nservice = 'a'\nport = 70000",
            "preview.toml:3:8: `route[0].port`: expected a whole number from 1 to 65535",
        ),
        (
            "app = 'My App'",
            "preview.toml:1:7: `app`: `My App` is not a name for an application: only a-z, 0-9 and - are allowed",
        ),
        (
            "name = 'preview'",
            "preview.toml:1:8: `name`: template `preview`: needs {number} or {slug}: without one, all previews would share one name",
        ),
        (
            "url = ['https://{name}.x', 'https://x']",
            "preview.toml:1:28: `url[1]`: template `https://x`: needs {name}, {number} or {slug}: without one, all previews would share one address",
        ),
        ("profiles = ['a', '']", "preview.toml:1:18: `profiles[1]`: is empty"),
        ("compose = 3", "preview.toml:1:11: `compose`: expected a string or a list of strings, found a whole number"),
        ("compose = []", "preview.toml:1:11: `compose`: is an empty list; without the key, the usual names are tried"),
        (
            "[vm]\nbase_dir = 'previews'",
            "preview.toml:2:12: `vm.base_dir`: `previews` is not an absolute path: it has to start with `/`",
        ),
        ("[vm]\nbase_dir = '/a/../b'", "preview.toml:2:12: `vm.base_dir`: `/a/../b` holds `.` or `..`"),
        (
            "[vm]\nknown_hosts = 'a'\nknown_hosts_file = 'b'",
            "preview.toml:3:20: `vm.known_hosts_file`: excludes `known_hosts`: give one of the two",
        ),
        ("[proxy]\nnetwork = 'a`b'", "preview.toml:2:11: `proxy.network`: holds something else than"),
        ("[health]\npath = 'x'", "preview.toml:2:8: `health.path`: has to start with `/`"),
        ("[health]\nport = 80", "preview.toml:2:8: `health.port`: needs `path`"),
        (
            "[health]\npublic = 'no'",
            "preview.toml:2:10: `health.public`: `no` is not known here; there are: `warn`, `fail`, `off`",
        ),
        (
            "[env]\n1A = 'x'",
            "preview.toml:2:1: `env.1A`: `1A` is not the name of a variable: letters, digits and _, not a digit first",
        ),
        ("[env]\nDOCKER_HOST = 'x'", "preview.toml:2:1: `env.DOCKER_HOST`: `DOCKER_HOST` cannot be set here"),
        (
            "[env]\nPREVIEW_URL = 'x'",
            "preview.toml:2:1: `env.PREVIEW_URL`: `PREVIEW_URL` cannot be set here: every stack gets it",
        ),
        ("[generate]\nPATH = {}", "preview.toml:2:1: `generate.PATH`: `PATH` cannot be set here"),
        ("[generate]\nA = { length = 4 }", "preview.toml:2:16: `generate.A.length`: has to be 8 to 128"),
        ("[[secrets]]\nnames = []", "preview.toml:1:1: `secrets[0]` needs `kind`"),
        ("[[secrets]]\nkind = 1", "preview.toml:2:8: `secrets[0].kind`: expected a string"),
        (
            "[[step]]\nafter = 'build'\nservice = 'a'\nrun = ['x']",
            "preview.toml:2:9: `step[0].after`: `build` is not known here; there are: `start`",
        ),
        (
            "[[step]]\nafter = 'start'\nservice = 'a'\nrun = []",
            "preview.toml:4:7: `step[0].run`: needs a program: `run = ",
        ),
        (
            "[route]\nservice = 'a'\nport = 80",
            "preview.toml:1:1: `route`: expected a list, found a table; there may be several: write `[[route]]`, with two brackets",
        ),
        (
            "[policy.allow]\nservice = 'a'",
            "preview.toml:1:1: `policy.allow`: expected a list, found a table; there may be several: write `[[policy.allow]]`",
        ),
        (
            "[[proxy]]\nkind = 'traefik'",
            "preview.toml:1:1: `proxy`: expected a table, found a list; there is one: write `[proxy]`, with one bracket",
        ),
        (
            "[[step]]\nafter = 'start'\nservice = 'a'\nrun = 'x'",
            "preview.toml:4:7: `step[0].run`: expected a list, found a string",
        ),
        ("[[policy.allow]]\nservice = 'a'", "preview.toml:1:1: `policy.allow[0]` needs `key`"),
        (
            "[[policy.allow]]\nservice = 'a'\nkey = 'cap_ad'\nvalues = ['X']",
            "preview.toml:3:7: `policy.allow[0].key`: `cap_ad` is not a key that can be allowed; did you mean `cap_add`?",
        ),
        (
            "[[policy.allow]]\nservice = 'a'\nkey = 'cap_add'",
            "preview.toml:1:1: `policy.allow[0]` needs `values`: each value that is allowed, exactly",
        ),
        (
            "[[policy.allow]]\nservice = 'a'\nkey = 'privileged'\nvalues = ['true']",
            "preview.toml:4:10: `policy.allow[0].values`: `privileged` has no values: leave them out",
        ),
        ("[isolation]\ntmpfs = '0B'", "preview.toml:2:9: `isolation.tmpfs`: has to be more than nothing"),
        ("[isolation]\nuser = '0:1000'", "preview.toml:2:8: `isolation.user`: is root"),
        ("[isolation]\nuser = '1000:1000:1'", "preview.toml:2:8: `isolation.user`: is not a user"),
        ("[isolation]\nuser = ''", "preview.toml:2:8: `isolation.user`: is not a user"),
        (
            "[isolation]\nreadonly = true",
            "preview.toml:2:1: unknown key `isolation.readonly`; did you mean `read_only`?",
        ),
        ("[isolation]\nexcept = ['a', '']", "preview.toml:2:16: `isolation.except[1]`: is empty"),
        // Found only when everything is put together.
        (
            "url = ['https://{name}.x', 'https://{name}.y']",
            "preview.toml:1:7: `url`: 2 addresses need as many `[[route]]` tables",
        ),
        (
            "[proxy]\nkind = 'traefik'\n[[route]]\nservice = 'a'\nport = 1",
            "preview.toml:3:1: `route[0]` needs `url`, or set `url` at the top: the proxy has to know the address",
        ),
        (
            "url = 'https://{name}.x'\n[[route]]\nservice = 'a'\nport = 1\n[[route]]\nservice = 'b'\nport = 1",
            "preview.toml:1:7: `url`: two routes have the same URL `https://{name}.x`: give each its own, or use {service} in it",
        ),
        (
            "[[route]]\nservice = 'a'\nport = 1\nurl = 'https://{name}-long-long-long-long-long-long-long-long-long-long.x'",
            "preview.toml:4:7: `route[0].url`: template `https://{name}-long",
        ),
        (
            "name = 'long-long-long-long-long-long-long-long-long-long-long-{slug}'",
            "preview.toml:1:8: `name`: template `long-",
        ),
        // TOML itself.
        ("app = \n", "preview.toml:1:7: not valid TOML: "),
        ("app = 'a'\napp = 'b'", "preview.toml:2:1: not valid TOML: duplicate key"),
        ("[vm]\nhost = 'ünï' x", "preview.toml:2:14: not valid TOML: "),
    ] {
        let error = error(text);
        assert!(error.starts_with(expected), "\n   found {error}\nexpected {expected}");
    }
}

#[test]
fn values_of_variables_are_never_shown() {
    for text in [
        "[env]\nA = ['hunter22']",
        "[env]\nA = { hunter22 = 1 }\n",
        "[env]\nA = 'hunter22\n",
        "[env]\nA = \"hunter22\\q\"",
        "[env]\nA = hunter22",
        "[env]\nA = 'x' hunter22",
        "[env]\nA = 2hunter22",
        "[env]\nA = 1979-05-32T07:32:00Z",
        "[env]\nA = 'hunter22'\nA = 'hunter22'",
        "env = 'hunter22'",
        "[env]\nA = 'hunter22'\nnot a name = 'hunter22'",
        "[env]\nA = 'hunter22\\u0000'\n\"B\" = \"hunter22\\u0000\"",
    ] {
        let error = error(text);
        assert!(!error.contains("hunter22") && !error.contains("05-32"), "{error}");
    }
}

#[test]
fn flag_over_environment_over_file() {
    let text = "app = 'file'\nprofiles = ['file']\npull = 'always'\n[vm]\nhost = 'file'\nknown_hosts = 'file'\n[timeouts]\ntotal = '1m'";
    let environment = Environment::from([
        ("PREVIEW_APP".to_owned(), "variable".to_owned()),
        ("PREVIEW_HOST".to_owned(), "variable".to_owned()),
        ("PREVIEW_PROFILES".to_owned(), "a, b,".to_owned()),
        ("PREVIEW_TIMEOUT".to_owned(), String::new()),
        ("PREVIEW_CONFIG".to_owned(), "x".to_owned()),
        ("PREVIEW_HOSTS".to_owned(), "x".to_owned()),
        ("OTHER".to_owned(), "x".to_owned()),
    ]);
    let flags = Overrides {
        host: Some("flag".to_owned()),
        known_hosts_file: Some("flag".to_owned()),
        compose: vec!["a,b.yml".to_owned()],
        ..Overrides::default()
    };
    let settings = Settings::merge(file(text).unwrap(), &environment, &flags).unwrap();
    let config = &settings.config;
    assert_eq!(config.app.as_ref().unwrap().as_str(), "variable");
    assert_eq!(config.vm.host.as_deref(), Some("flag"));
    assert_eq!(config.profiles, ["a", "b"]);
    assert_eq!(config.pull, Pull::Always);
    assert_eq!(config.timeouts.total.as_secs(), 60);
    assert_eq!(
        (config.vm.known_hosts.as_deref(), config.vm.known_hosts_file.as_deref()),
        (None, Some(Path::new("flag")))
    );
    assert_eq!(config.compose, [Path::new("a,b.yml")]);
    assert_eq!(settings.warnings, ["the variable `PREVIEW_HOSTS` is not one of ours; did you mean `PREVIEW_HOST`?"]);
}

#[test]
fn errors_of_flags_and_variables_name_them() {
    let variable = |name: &str, value: &str| {
        let environment = Environment::from([(name.to_owned(), value.to_owned())]);
        Settings::merge(file("url = 'https://{name}.x'").unwrap(), &environment, &Overrides::default())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(variable("PREVIEW_TIMEOUT", "15"), "PREVIEW_TIMEOUT: `15` has no unit: write `15m`, for example");
    assert_eq!(variable("PREVIEW_TIMEOUT", "0s"), "PREVIEW_TIMEOUT: has to be more than no time");
    assert_eq!(
        variable("PREVIEW_PULL", "never"),
        "PREVIEW_PULL: `never` is not known here; there are: `missing`, `always`"
    );
    assert_eq!(
        variable("PREVIEW_URL_TEMPLATE", "https://{name}.a,https://{name}.b"),
        "PREVIEW_URL_TEMPLATE: 2 addresses need as many `[[route]]` tables"
    );
    assert_eq!(
        variable("PREVIEW_BASE_DIR", "x"),
        "PREVIEW_BASE_DIR: `x` is not an absolute path: it has to start with `/`"
    );
    let flags = Overrides { app: Some("A".to_owned()), ..Overrides::default() };
    let error = Settings::merge(ConfigFile::default(), &Environment::new(), &flags).unwrap_err();
    assert_eq!(error.to_string(), "--app: `A` is not a name for an application: only a-z, 0-9 and - are allowed");
    let flags = Overrides { known_hosts: Some("a".into()), known_hosts_file: Some("b".into()), ..Overrides::default() };
    let error = Settings::merge(ConfigFile::default(), &Environment::new(), &flags).unwrap_err();
    assert_eq!(error.to_string(), "--known-hosts-file: excludes `--known-hosts`: give one of the two");
}

#[test]
fn addresses_in_order_and_the_obvious_route() {
    let routes = "[[route]]\nservice = 'a'\nport = 1\n[[route]]\nservice = 'b'\nport = 2\nurl = 'https://{name}-b.x'\n[[route]]\nservice = 'c'\nport = 3";
    let config = config(&format!("url = ['https://{{name}}-1.x', 'https://{{name}}-2.x']\n{routes}")).unwrap();
    let urls: Vec<_> = config.routes.iter().map(|route| route.url.as_ref().unwrap().to_string()).collect();
    assert_eq!(urls, ["https://{name}-1.x", "https://{name}-b.x", "https://{name}-2.x"]);

    let mut config = super::tests::config("url = 'https://{name}-{service}.x'\n[proxy]\nkind = 'traefik'").unwrap();
    config.add_route("web", NonZeroU16::MIN).unwrap();
    let naming = config.naming(&AppName::parse("shop").unwrap()).unwrap();
    let url = naming.resolve(&crate::name::Key::pull(7).unwrap()).unwrap().urls.remove(0);
    assert_eq!(url.to_string(), "https://pr-7-web.x");
    assert!(config.proxy.speaks_tls(&url));
    assert_eq!(config.proxy.entrypoint(&url), "websecure");
}

/// One address with `http://` would decide for the host of all.
#[test]
fn caddy_is_not_asked_for_a_host_of_all_without_tls_by_an_address_alone() {
    let caddy = |url: &str, more: &str| config(&format!("url = '{url}'\n[proxy]\nkind = 'caddy'\n{more}"));
    let error = caddy("http://x.test/{name}", "").unwrap_err().to_string();
    assert!(
        error.starts_with("preview.toml:1:7: `url`: `http://x.test/{name}`") && error.contains("tls = false"),
        "{error}"
    );
    for (url, more) in [
        ("https://x.test/{name}", ""),
        ("http://{name}.x.test", ""),
        ("http://x.test/{name}", "tls = false"),
        ("http://x.test/{name}", "tls = true"),
        ("http://x.test/{name}", "certificate = '/c'\ncertificate_key = '/k'"),
    ] {
        assert!(caddy(url, more).is_ok(), "{url} {more}");
    }
}

#[test]
fn the_place_of_what_shows_later() {
    let config = config("[[route]]\nservice = 'wbe'\nport = 1").unwrap();
    let error = config.error("route[0].service", "there is no service `wbe` in the Compose files");
    assert_eq!(
        error.to_string(),
        "preview.toml:2:11: `route[0].service`: there is no service `wbe` in the Compose files"
    );
    assert_eq!(config.place("route[0]"), "preview.toml:1: route[0]");
    // A key that is not in the file: the closest thing around it.
    assert_eq!(config.error("route[0].url", "x").line, Some(1));
    assert_eq!(config.error("health.path", "x").to_string(), "preview.toml:1:1: `health.path`: x");
}

#[test]
fn adapters_read_their_own_table_with_the_same_errors() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        names: Vec<VariableName>,
    }
    let parse = |text: &str| config(text).unwrap().secrets[0].parse::<Table>();
    assert_eq!(parse("[[secrets]]\nkind = 'env'\nnames = ['A']").unwrap().names[0].as_str(), "A");
    let error = parse("[[secrets]]\nkind = 'env'\nname = ['A']").unwrap_err().to_string();
    assert_eq!(error, "preview.toml:3:1: unknown key `secrets[0].name`; did you mean `names`?");
    let error = parse("[[secrets]]\nkind = 'env'\nnames = ['A', 'B C']").unwrap_err().to_string();
    assert!(error.starts_with("preview.toml:3:15: `secrets[0].names[1]`: `B C` is not the name"), "{error}");
    let config = config("\n[[secrets]]\nkind = 'vault'").unwrap();
    let error = config.secrets[0].unknown_kind(&["env"]).to_string();
    assert_eq!(error, "preview.toml:3:8: `secrets[0].kind`: `vault` is not known here; there are: `env`");
}

proptest::proptest! {
    #[test]
    fn nothing_panics(text in "(\\[{1,2}(env|vm|route|step)\\]{1,2}\n|[a-z_.]{1,6} ?= ?['\"]?\\PC{0,8}['\"]?\n){0,6}|\\PC{0,60}") {
        if let Err(error) = config(&text) {
            proptest::prop_assert!(error.line.is_some());
        }
    }
}

#[test]
fn guardrails_of_single_services() {
    let config =
        file("[guardrails]\nmax_memory = '2GB'\n[guardrails.services.elastic]\nmemory = '4GB'\ncpus = 2\n").unwrap();
    let own = &config.guardrails.services["elastic"];
    assert_eq!((own.memory.unwrap().to_string(), own.cpus, own.pids), ("4GB".to_owned(), Some(2.0), None));
    for (text, message) in [
        ("[guardrails]\nmax_memory = '256MB'", "preview.toml:2:14: `guardrails.max_memory`: is less than `memory`"),
        (
            "[guardrails.services.web]\nmemory = '1kB'",
            "preview.toml:2:10: `guardrails.services.web.memory`: has to be at least `6MB`",
        ),
        (
            "[guardrails.services.web]\ncpus = 0",
            "preview.toml:2:8: `guardrails.services.web.cpus`: has to be a number of processors",
        ),
        ("[guardrails.services.web]\npids = 0", "preview.toml:2:8: `guardrails.services.web.pids`"),
        (
            "[guardrails.services.web]\nmemry = '1GB'",
            "preview.toml:2:1: unknown key `guardrails.services.web.memry`; did you mean `memory`?",
        ),
        ("[guardrails.services]\nweb = '1GB'", "preview.toml:2:7: `guardrails.services.web`: expected a table"),
    ] {
        let error = error(text);
        assert!(error.starts_with(message), "{error}");
    }
}
