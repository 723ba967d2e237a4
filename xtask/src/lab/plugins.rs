//! The CLI's plugins Compose and buildx: found wherever the CLI finds them, and handed to everything that the lab
//! runs in a Docker configuration of the lab's own.
//!
//! Tests move `HOME`, and some have no `HOME` at all. A plugin in `~/.docker/cli-plugins` would be lost to them, so
//! `DOCKER_CONFIG` always names a folder of the lab, with links to the plugins in it.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Lab, go, packages};
use crate::sh;

/// Where every CLI looks for plugins after the user's own: Docker's packages, Debian's, and what is installed by hand.
const SYSTEM_DIRS: [&str; 4] = [
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
];
/// A plugin answers at once; one that hangs is of no use.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Keys of `config.json` that would lead tests to other plugins or to another engine.
const LEADING_ELSEWHERE: [&str; 3] = ["cliPluginsExtraDirs", "currentContext", "plugins"];

/// A plugin that the lab needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plugin {
    Compose,
    Buildx,
}

impl Plugin {
    pub(super) const ALL: [Self; 2] = [Self::Compose, Self::Buildx];

    /// The program's name, which is the name of Debian's package too.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Compose => "docker-compose",
            Self::Buildx => "docker-buildx",
        }
    }

    /// The oldest version that is good enough.
    const fn oldest(self) -> (u32, u32) {
        match self {
            // It prints progress as JSON.
            Self::Compose => (2, 29),
            // Newer Compose builds with no older one.
            Self::Buildx => (0, 17),
        }
    }
}

/// A plugin's program, and the version that it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) program: PathBuf,
    pub(super) version: String,
}

/// The folders in which the CLI looks for plugins, in its order: `config` is the user's own configuration folder,
/// `settings` the text of its `config.json`.
pub(super) fn plugin_dirs(config: Option<&Path>, settings: &str) -> Vec<PathBuf> {
    let settings: Value = serde_json::from_str(settings).unwrap_or_default();
    let extra = settings["cliPluginsExtraDirs"].as_array().map(Vec::as_slice).unwrap_or_default();
    extra
        .iter()
        .filter_map(Value::as_str)
        .map(PathBuf::from)
        .chain(config.map(|config| config.join("cli-plugins")))
        .chain(SYSTEM_DIRS.map(PathBuf::from))
        .collect()
}

/// The first of these that is new enough. One that does not run, or says no version, is passed over.
fn choose(plugin: Plugin, candidates: impl IntoIterator<Item = Found>) -> Option<Found> {
    candidates.into_iter().find(|found| major_minor(&found.version).is_some_and(|version| version >= plugin.oldest()))
}

/// `2.40.3-3`, `v2.26.1-4`, `2.40.3+ds1-3`.
pub(super) fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// What becomes of the user's `config.json`.
#[derive(Debug, PartialEq, Eq)]
enum Settings {
    /// It holds for the tests as it is.
    Linked,
    /// This text instead. Logins that stand in the file itself are no part of it: no copy of them is made.
    Written(String),
}

fn settings_for_tests(text: &str) -> Settings {
    let Ok(Value::Object(mut table)) = serde_json::from_str(text) else { return Settings::Linked };
    if !LEADING_ELSEWHERE.iter().any(|key| table.contains_key(*key)) {
        return Settings::Linked;
    }
    table.retain(|key, _| key != "auths" && !LEADING_ELSEWHERE.contains(&key.as_str()));
    Settings::Written(Value::Object(table).to_string())
}

/// The user's own configuration folder: `DOCKER_CONFIG`, unless that is one of the lab's, else `~/.docker`.
fn user_config(lab_dir: &Path, named: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    named
        .filter(|named| !named.as_os_str().is_empty() && !named.starts_with(lab_dir))
        .or_else(|| home.filter(|home| home.is_absolute()).map(|home| home.join(".docker")))
}

/// The plugin that this machine has, if it is good enough.
pub(super) fn find(lab_dir: &Path, plugin: Plugin) -> Option<Found> {
    let config = own_config(lab_dir);
    let settings = config.as_deref().map(settings_of).unwrap_or_default();
    let dirs = plugin_dirs(config.as_deref(), &settings);
    let files = dirs.into_iter().map(|dir| dir.join(plugin.program()));
    // Compose is often installed as a program alone; it is a plugin all the same.
    let alone = sh::which(plugin.program());
    choose(plugin, files.chain(alone).filter_map(|file| ask(&file)))
}

fn own_config(lab_dir: &Path) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    user_config(lab_dir, variable("DOCKER_CONFIG"), variable("HOME"))
}

fn settings_of(config: &Path) -> String {
    fs::read_to_string(config.join("config.json")).unwrap_or_default()
}

/// A plugin's version, as the CLI itself asks for it.
pub(super) fn ask(program: &Path) -> Option<Found> {
    let runs = fs::metadata(program).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    if !runs {
        return None;
    }
    let said = sh::text_within(&mut sh::cmd(program, ["docker-cli-plugin-metadata"]), ANSWER_WITHIN).ok()?;
    let said: Value = serde_json::from_str(&said).ok()?;
    Some(Found { program: program.to_owned(), version: said["Version"].as_str()?.to_owned() })
}

/// The configuration folder of this name, if it was made.
pub(super) fn config(lab_dir: &Path, name: &str) -> Option<PathBuf> {
    Some(lab_dir.join("config").join(name)).filter(|config| config.join("cli-plugins").is_dir())
}

/// Makes a configuration folder that has these plugins and the user's settings; returns it.
///
/// Other processes may be using it: what is as it should be is not touched, and what is not is replaced in one step.
pub(super) fn make_config(lab_dir: &Path, name: &str, plugins: &[Found; 2]) -> Result<PathBuf> {
    let config = lab_dir.join("config").join(name);
    fs::create_dir_all(config.join("cli-plugins"))?;
    for (plugin, found) in Plugin::ALL.iter().zip(plugins) {
        link(&found.program, &config.join("cli-plugins").join(plugin.program()))?;
    }
    let to = config.join("config.json");
    let Some(own) = own_config(lab_dir).filter(|own| own.join("config.json").is_file()) else {
        super::remove_if_there(fs::remove_file(&to))?;
        return Ok(config);
    };
    match settings_for_tests(&settings_of(&own)) {
        Settings::Linked => link(&own.join("config.json"), &to)?,
        Settings::Written(text) => {
            let new = config.join(format!("config.json.{}", std::process::id()));
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new);
            std::io::Write::write_all(&mut file?, text.as_bytes())?;
            fs::rename(&new, &to)?;
        }
    }
    Ok(config)
}

fn link(from: &Path, to: &Path) -> Result<()> {
    if fs::read_link(to).is_ok_and(|found| found == from) {
        return Ok(());
    }
    let new = to.with_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_file(&new);
    symlink(from, &new).with_context(|| format!("cannot make a link in {}", to.display()))?;
    fs::rename(&new, to).with_context(|| format!("cannot replace {}", to.display()))
}

/// Compose and buildx in the lab's own configuration: this machine's where they are good enough, else fetched ones.
pub(super) fn ensure(lab: &Lab) -> Result<PathBuf> {
    sh::step("compose and buildx", || {
        let mut notes = Vec::new();
        let mut get = |plugin: Plugin| -> Result<Found> {
            let own = find(&lab.dir, plugin);
            let whose = if own.is_some() { "this machine's" } else { "fetched" };
            let found = own.map_or_else(|| fetched(lab, plugin), Ok)?;
            notes.push(format!("{} {}, {whose}", plugin.program(), found.version));
            Ok(found)
        };
        let plugins = [get(Plugin::Compose)?, get(Plugin::Buildx)?];
        let config = make_config(&lab.dir, super::CONFIG, &plugins)?;
        let lab = Lab { docker_config: config.clone(), ..lab.clone() };
        for plugin in [["compose", "version"], ["buildx", "version"]] {
            sh::text(&mut lab.docker(plugin)).context("the Docker CLI does not run its plugin")?;
        }
        Ok((config, notes.join("; ")))
    })
}

/// See [`Lab::other_compose`].
pub(super) fn other_compose(lab: &Lab) -> Result<Option<PathBuf>> {
    let of_tests = |plugin: Plugin| ask(&lab.docker_config.join("cli-plugins").join(plugin.program()));
    let (Some(compose), Some(buildx)) = (of_tests(Plugin::Compose), of_tests(Plugin::Buildx)) else {
        bail!("{} has no plugins: run `cargo xtask lab up`", lab.docker_config.display());
    };
    let newest = major_minor(&compose.version).is_some_and(|(major, _)| major >= 5);
    if !newest && !go::available(lab, &[&go::COMPOSE]) {
        return Ok(None);
    }
    let (name, other) = if newest {
        ("compose-2", fetched(lab, Plugin::Compose)?)
    } else {
        let program = go::build(lab, &go::COMPOSE)?;
        let found = ask(&program).with_context(|| format!("{} does not run here", program.display()))?;
        ("compose-5", found)
    };
    make_config(&lab.dir, name, &[other, buildx]).map(Some)
}

/// A plugin of Debian's newest suite.
pub(super) fn fetched(lab: &Lab, plugin: Plugin) -> Result<Found> {
    packages::fetch_plugins(lab)?;
    let program = packages::plugins_dir(lab).join(plugin.program());
    match ask(&program) {
        Some(found) => Ok(found),
        None => bail!("the fetched {} does not run here", program.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(program: &str, version: &str) -> Found {
        Found { program: program.into(), version: version.to_owned() }
    }

    #[test]
    fn versions_are_read_with_what_distributions_add() {
        assert_eq!(major_minor("2.40.3"), Some((2, 40)));
        assert_eq!(major_minor("v2.26.1-4"), Some((2, 26)));
        assert_eq!(major_minor("2.40.3+ds1-3"), Some((2, 40)));
        assert_eq!(major_minor("v5.6.0"), Some((5, 6)));
        assert_eq!(major_minor("unknown"), None);
    }

    #[test]
    fn the_places_are_those_of_the_cli_in_its_order() {
        let dirs = plugin_dirs(Some(Path::new("/home/u/.docker")), r#"{"cliPluginsExtraDirs": ["/opt/plugins"]}"#);
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
        assert_eq!(
            dirs,
            [
                "/opt/plugins",
                "/home/u/.docker/cli-plugins",
                "/usr/local/lib/docker/cli-plugins",
                "/usr/local/libexec/docker/cli-plugins",
                "/usr/lib/docker/cli-plugins",
                "/usr/libexec/docker/cli-plugins",
            ]
        );
        assert_eq!(plugin_dirs(None, "no JSON"), SYSTEM_DIRS.map(PathBuf::from));
    }

    #[test]
    fn the_first_that_is_new_enough_is_taken() {
        let old = found("/home/u/.docker/cli-plugins/docker-compose", "v2.20.0");
        let new = found("/usr/libexec/docker/cli-plugins/docker-compose", "v2.40.3");
        let five = found("/usr/local/bin/docker-compose", "v5.6.0");
        let all = [old.clone(), new.clone(), five];
        assert_eq!(choose(Plugin::Compose, all), Some(new));
        assert_eq!(choose(Plugin::Compose, [old]), None);
        assert_eq!(choose(Plugin::Buildx, [found("/x/docker-buildx", "v0.12.1")]), None);
        let buildx = found("/x/docker-buildx", "v0.17.1");
        assert_eq!(choose(Plugin::Buildx, [found("/w/docker-buildx", "dev"), buildx.clone()]), Some(buildx));
    }

    #[test]
    fn the_users_folder_is_the_one_that_the_cli_uses_and_never_the_labs() {
        let lab = Path::new("/repo/target/lab");
        let user = |named: Option<&str>, home: Option<&str>| {
            user_config(lab, named.map(PathBuf::from), home.map(PathBuf::from))
        };
        assert_eq!(user(None, Some("/home/u")), Some("/home/u/.docker".into()));
        assert_eq!(user(Some("/etc/docker-cli"), Some("/home/u")), Some("/etc/docker-cli".into()));
        assert_eq!(user(Some("/repo/target/lab/config/tests"), Some("/home/u")), Some("/home/u/.docker".into()));
        assert_eq!(user(Some(""), Some("/home/u")), Some("/home/u/.docker".into()));
        assert_eq!(user(None, None), None);
    }

    #[test]
    fn settings_that_lead_elsewhere_do_not_reach_the_tests_and_logins_are_not_copied() {
        for kept in ["{}", r#"{"auths": {"r": {"auth": "c2VjcmV0"}}, "credsStore": "pass"}"#, "no JSON"] {
            assert_eq!(settings_for_tests(kept), Settings::Linked, "{kept}");
        }
        let text = r#"{"currentContext": "prod", "auths": {"r": {"auth": "c2VjcmV0"}}, "credsStore": "pass"}"#;
        assert_eq!(settings_for_tests(text), Settings::Written(r#"{"credsStore":"pass"}"#.to_owned()));
        let text = r#"{"cliPluginsExtraDirs": ["/opt"], "plugins": {"x": {}}, "proxies": {"default": {}}}"#;
        assert_eq!(settings_for_tests(text), Settings::Written(r#"{"proxies":{"default":{}}}"#.to_owned()));
    }

    #[test]
    fn a_plugin_is_asked_as_the_cli_asks_it() {
        let dir = std::env::temp_dir().join(format!("lab-plugins-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join("docker-compose");
        let write = |text: &str, mode: u32| {
            // A child writes it: a file that this process holds open for writing, or a fork of it, cannot be run.
            let script = "printf '%s\n' '#!/bin/sh' \"$2\" > \"$1\" && chmod \"$3\" \"$1\"";
            let mode = format!("{mode:o}");
            let mut write = sh::cmd("sh", ["-c", script, "sh"]);
            sh::text(write.arg(&program).args([text, &mode])).unwrap();
            ask(&program).map(|found| found.version)
        };
        let answer = r#"[ "$1" = docker-cli-plugin-metadata ] && echo '{"SchemaVersion":"0.1.0","Version":"v2.40.3"}'"#;
        assert_eq!(write(answer, 0o755).as_deref(), Some("v2.40.3"));
        assert_eq!(write(answer, 0o644), None, "nobody may run it");
        assert_eq!(write("echo docker-compose version 1.29.2", 0o755), None, "the first Compose is no plugin");
        assert_eq!(write("exit 1", 0o755), None);
        assert_eq!(ask(&dir.join("missing")), None);
        assert_eq!(ask(&dir), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
