//! Flag over environment over file over default.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::ConfigError;
use super::file::{ConfigFile, Pull};
use super::table::Environment;
use super::values::{HostPath, OneOrMany};
use super::{Config, check, resolve, trusted};
use crate::name::{AppName, UrlTemplate};

/// What flags say; `None` and empty lists say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--host`.
    pub host: Option<String>,
    /// `--base-dir`.
    pub base_dir: Option<String>,
    /// `--known-hosts`: key lines.
    pub known_hosts: Option<String>,
    /// `--known-hosts-file`.
    pub known_hosts_file: Option<String>,
    /// `--identity-file`.
    pub identity_file: Option<String>,
    /// `--compose`, which may be repeated.
    pub compose: Vec<String>,
    /// `--env-file`, which may be repeated.
    pub env_file: Vec<String>,
    /// `--profile`, which may be repeated.
    pub profiles: Vec<String>,
    /// `--exclude`, which may be repeated.
    pub exclude: Vec<String>,
    /// `--app`.
    pub app: Option<String>,
    /// `--url`, which may be repeated.
    pub url: Vec<String>,
    /// `--timeout`: of the whole run.
    pub timeout: Option<String>,
    /// `--pull`.
    pub pull: Option<String>,
}

/// The configuration of a run, and what was odd about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What holds.
    pub config: Config,
    /// For people: variables that look like ours and are not, tables that do not count.
    pub warnings: Vec<String>,
}

/// Variables of ours that are read before or beside the configuration.
const ELSEWHERE: [&str; 15] = [
    "PREVIEW_DNS_TOKEN",
    "PREVIEW_DNS_TSIG_KEY",
    "PREVIEW_CLOUDFLARE_API",
    "PREVIEW_CONFIG",
    "PREVIEW_TRUSTED_CONFIG",
    "PREVIEW_EVENT_TIME",
    "PREVIEW_OPEN_PRS",
    "PREVIEW_OPEN_BRANCHES",
    "PREVIEW_PROJECT_DIR",
    "PREVIEW_FORMAT",
    "PREVIEW_LOG_FORMAT",
    "PREVIEW_IDENTITY_KEY",
    "PREVIEW_NAME",
    "PREVIEW_URL",
    "PREVIEW_FAILURE",
];

/// One key that flags and variables may set.
struct Setting {
    key: &'static str,
    flag: &'static str,
    variable: &'static str,
    /// Whether commas in the variable separate values.
    list: bool,
    flags: fn(&Overrides) -> Vec<String>,
    apply: fn(&mut ConfigFile, Vec<String>) -> Result<(), String>,
}

fn one(value: Option<&String>) -> Vec<String> {
    value.cloned().into_iter().collect()
}

fn last(values: Vec<String>) -> String {
    values.into_iter().next_back().unwrap_or_default()
}

fn paths(values: Vec<String>) -> Option<OneOrMany<PathBuf>> {
    Some(OneOrMany(values.into_iter().map(PathBuf::from).collect()))
}

const SETTINGS: [Setting; 13] = [
    Setting {
        key: "vm.host",
        flag: "--host",
        variable: "PREVIEW_HOST",
        list: false,
        flags: |flags| one(flags.host.as_ref()),
        apply: |file, values| {
            file.vm.host = Some(last(values));
            Ok(())
        },
    },
    Setting {
        key: "vm.base_dir",
        flag: "--base-dir",
        variable: "PREVIEW_BASE_DIR",
        list: false,
        flags: |flags| one(flags.base_dir.as_ref()),
        apply: |file, values| {
            file.vm.base_dir = Some(HostPath::parse(&last(values))?);
            Ok(())
        },
    },
    // The two ways to give the host's keys are one setting: the higher layer's way replaces the other of a lower layer.
    Setting {
        key: "vm.known_hosts",
        flag: "--known-hosts",
        variable: "PREVIEW_KNOWN_HOSTS",
        list: false,
        flags: |flags| one(flags.known_hosts.as_ref()),
        apply: |file, values| {
            file.vm.known_hosts = Some(last(values));
            file.vm.known_hosts_file = None;
            Ok(())
        },
    },
    Setting {
        key: "vm.known_hosts_file",
        flag: "--known-hosts-file",
        variable: "PREVIEW_KNOWN_HOSTS_FILE",
        list: false,
        flags: |flags| one(flags.known_hosts_file.as_ref()),
        apply: |file, values| {
            file.vm.known_hosts_file = Some(PathBuf::from(last(values)));
            file.vm.known_hosts = None;
            Ok(())
        },
    },
    Setting {
        key: "vm.identity_file",
        flag: "--identity-file",
        variable: "PREVIEW_IDENTITY_FILE",
        list: false,
        flags: |flags| one(flags.identity_file.as_ref()),
        apply: |file, values| {
            file.vm.identity_file = Some(PathBuf::from(last(values)));
            Ok(())
        },
    },
    Setting {
        key: "compose",
        flag: "--compose",
        variable: "PREVIEW_COMPOSE",
        list: true,
        flags: |flags| flags.compose.clone(),
        apply: |file, values| {
            file.compose = paths(values);
            Ok(())
        },
    },
    Setting {
        key: "env_file",
        flag: "--env-file",
        variable: "PREVIEW_ENV_FILE",
        list: true,
        flags: |flags| flags.env_file.clone(),
        apply: |file, values| {
            file.env_file = paths(values);
            Ok(())
        },
    },
    Setting {
        key: "profiles",
        flag: "--profile",
        variable: "PREVIEW_PROFILES",
        list: true,
        flags: |flags| flags.profiles.clone(),
        apply: |file, values| {
            file.profiles = values;
            Ok(())
        },
    },
    Setting {
        key: "exclude",
        flag: "--exclude",
        variable: "PREVIEW_EXCLUDE",
        list: true,
        flags: |flags| flags.exclude.clone(),
        apply: |file, values| {
            file.exclude = values;
            Ok(())
        },
    },
    Setting {
        key: "app",
        flag: "--app",
        variable: "PREVIEW_APP",
        list: false,
        flags: |flags| one(flags.app.as_ref()),
        apply: |file, values| {
            file.app = Some(AppName::parse(&last(values)).map_err(|error| error.to_string())?);
            Ok(())
        },
    },
    Setting {
        key: "url",
        flag: "--url",
        variable: "PREVIEW_URL_TEMPLATE",
        list: true,
        flags: |flags| flags.url.clone(),
        apply: |file, values| {
            let urls = values.iter().map(|url| UrlTemplate::parse(url)).collect::<Result<_, _>>();
            file.url = Some(OneOrMany(urls.map_err(|error| error.to_string())?));
            Ok(())
        },
    },
    Setting {
        key: "timeouts.total",
        flag: "--timeout",
        variable: "PREVIEW_TIMEOUT",
        list: false,
        flags: |flags| one(flags.timeout.as_ref()),
        apply: |file, values| {
            file.timeouts.total = last(values).parse().map_err(|error: crate::units::UnitError| error.to_string())?;
            Ok(())
        },
    },
    Setting {
        key: "pull",
        flag: "--pull",
        variable: "PREVIEW_PULL",
        list: false,
        flags: |flags| one(flags.pull.as_ref()),
        apply: |file, values| {
            file.pull = match last(values).as_str() {
                "missing" => Pull::Missing,
                "always" => Pull::Always,
                other => {
                    return Err(format!(
                        "`{}` is not known here; there are: `missing`, `always`",
                        other.escape_debug()
                    ));
                }
            };
            Ok(())
        },
    },
];

impl Settings {
    /// Lays flags over environment over the file. A variable that is empty counts as not set: that is what CI systems make of a value that
    /// does not exist.
    pub fn merge(file: ConfigFile, environment: &Environment, flags: &Overrides) -> Result<Self, ConfigError> {
        let mut file = file;
        trusted::check(&file)?;
        let overruled = file.overruled.take();
        let from_environment = |setting: &Setting| match environment.get(setting.variable) {
            Some(value) if setting.list => {
                value.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
            }
            Some(value) if !value.is_empty() => vec![value.clone()],
            _ => Vec::new(),
        };
        layer(&mut file, |setting| setting.variable, from_environment)?;
        layer(&mut file, |setting| setting.flag, |setting| (setting.flags)(flags))?;
        check::check(&file)?;
        // What the base branch says and what the pull request says come together here.
        super::dns::check_way_in(&file)?;
        let odd = environment.keys().filter_map(|name| warning(name));
        let unused = check::url_without_proxy(&file);
        let warnings = overruled.into_iter().chain(odd).chain(super::dns::doubts(&file)).chain(unused).collect();
        Ok(Self { config: resolve::resolve(file)?, warnings })
    }
}

/// Lays one layer over the file.
fn layer(
    file: &mut ConfigFile,
    called: fn(&Setting) -> &'static str,
    values: impl Fn(&Setting) -> Vec<String>,
) -> Result<(), ConfigError> {
    let mut key_of_hosts = None;
    for setting in &SETTINGS {
        let values = values(setting);
        if values.is_empty() {
            continue;
        }
        let name = called(setting);
        (setting.apply)(file, values).map_err(|message| ConfigError::new(name, message))?;
        if setting.key.starts_with("vm.known_hosts")
            && let Some(other) = key_of_hosts.replace(name)
        {
            return Err(ConfigError::new(name, format!("excludes `{other}`: give one of the two")));
        }
        Arc::make_mut(&mut file.origin).override_key(setting.key, name);
    }
    Ok(())
}

/// What is odd about a variable.
fn warning(name: &str) -> Option<String> {
    let ours = name.starts_with("PREVIEW_")
        && !ELSEWHERE.contains(&name)
        && SETTINGS.iter().all(|setting| setting.variable != name);
    ours.then(|| {
        let known = SETTINGS.iter().map(|setting| setting.variable).chain(ELSEWHERE);
        let help = super::decode::suggestion(name, &known.collect::<Vec<_>>());
        format!("the variable `{}` is not one of ours; {help}", name.escape_debug())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_and_variable_is_documented() {
        let text = include_str!("../../../../docs/configuration.md");
        for setting in &SETTINGS {
            let row = format!("| `{}` | `{}` | `{}` |", setting.variable, setting.flag, setting.key);
            assert!(text.contains(&row), "docs/configuration.md lacks: {row}");
        }
        for variable in ELSEWHERE {
            assert!(text.contains(&format!("| `{variable}` |")), "docs/configuration.md lacks {variable}");
        }
    }
}
