//! `/etc/docker/daemon.json`: our settings put beside those that are there. Pure.

use serde_json::{Map, Value, json};

use super::{Pool, Wish};

/// Networks that are enough: fewer, and our pool is added.
const ENOUGH: u64 = 512;

/// The file as it is to be, and what the engine then runs with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Daemon {
    /// The new content; that of before, byte by byte, if nothing is missing.
    pub(super) content: String,
    /// The log driver.
    pub(super) driver: String,
    /// The address pools as `docker info` names them.
    pub(super) pools: String,
}

/// Adds what is missing. What somebody decided stays, unless it leaves logs unbounded or networks scarce.
///
/// # Errors
/// If the file is not what the engine could read.
pub(super) fn merge(present: Option<&str>, swarm: bool, wish: &Wish) -> Result<Daemon, String> {
    let before: Map<String, Value> = match present.map(str::trim) {
        None | Some("") => Map::new(),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            format!("/etc/docker/daemon.json is not a JSON object ({error}): mend or remove it, then try again")
        })?,
    };
    let mut all = before.clone();
    // Options without a driver are those of the engine's own default, and other drivers may refuse them.
    let default = if before.contains_key("log-opts") { "json-file" } else { "local" };
    let driver = all.entry("log-driver").or_insert_with(|| json!(default));
    let driver =
        driver.as_str().ok_or("/etc/docker/daemon.json: `log-driver` is no text: mend it, then try again")?.to_owned();
    if ["local", "json-file"].contains(&driver.as_str()) {
        let options = all.entry("log-opts").or_insert_with(|| json!({}));
        let options = options
            .as_object_mut()
            .ok_or("/etc/docker/daemon.json: `log-opts` is no object: mend it, then try again")?;
        if options.get("max-size").is_none_or(|size| size == "-1") {
            options.insert("max-size".to_owned(), json!(wish.log_size));
        }
        if !options.contains_key("max-file") {
            options.insert("max-file".to_owned(), json!(wish.log_files.to_string()));
        }
    }
    let pools = all.entry("default-address-pools").or_insert_with(|| json!([]));
    let pools = pools
        .as_array_mut()
        .ok_or("/etc/docker/daemon.json: `default-address-pools` is no list: mend it, then try again")?;
    if pools.iter().map(networks).sum::<u64>() < ENOUGH {
        pools.push(json!({"base": wish.pool.base, "size": wish.pool.size}));
    }
    let pools = pools.iter().map(shown).collect::<Vec<_>>().join(" ");
    // An engine in swarm mode refuses to start with it.
    if !swarm {
        all.entry("live-restore").or_insert(json!(true));
    }
    let content = match present {
        Some(text) if all == before => text.to_owned(),
        _ => format!("{:#}\n", Value::Object(all)),
    };
    Ok(Daemon { content, driver, pools })
}

/// How many networks a pool has room for.
fn networks(pool: &Value) -> u64 {
    let prefix = pool["base"].as_str().and_then(|base| base.split_once('/')?.1.parse::<u64>().ok());
    let bits = prefix.zip(pool["size"].as_u64()).and_then(|(prefix, size)| size.checked_sub(prefix));
    bits.map_or(0, |bits| 1 << bits.min(32))
}

fn shown(pool: &Value) -> String {
    format!("{}/{}", pool["base"].as_str().unwrap_or_default(), pool["size"])
}

impl Pool {
    /// Reads `10.201.0.0/16/26`: a network, and the prefix of each part of it.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no address pool such as `10.201.0.0/16/26`");
        let (base, size) = text.rsplit_once('/').ok_or_else(wrong)?;
        let (address, prefix) = base.split_once('/').ok_or_else(wrong)?;
        let size: u8 = size.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        address.parse::<std::net::Ipv4Addr>().map_err(|_| wrong())?;
        if prefix < 8 || size <= prefix || size > 29 {
            return Err(wrong());
        }
        Ok(Self { base: base.to_owned(), size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(present: Option<&str>) -> Value {
        serde_json::from_str(&merge(present, false, &Wish::default()).expect("sound").content).expect("JSON")
    }

    #[test]
    fn an_empty_machine_gets_all_of_it() {
        let expected = json!({
            "log-driver": "local", "log-opts": {"max-size": "10m", "max-file": "3"},
            "default-address-pools": [{"base": "10.201.0.0/16", "size": 26}], "live-restore": true,
        });
        assert_eq!(merged(None), expected);
        assert_eq!(merged(Some(" \n")), expected);
    }

    #[test]
    fn what_is_there_stays() {
        let present = r#"{"registry-mirrors": ["https://mirror.example"], "log-driver": "journald", "live-restore": false,
            "default-address-pools": [{"base": "10.0.0.0/8", "size": 24}]}"#;
        let daemon = merge(Some(present), false, &Wish::default()).expect("sound");
        assert_eq!(daemon.content, present, "nothing is missing: not even a space changes");
        assert_eq!((daemon.driver.as_str(), daemon.pools.as_str()), ("journald", "10.0.0.0/8/24"));
    }

    #[test]
    fn logs_without_an_end_and_few_networks_are_mended() {
        let all = merged(Some(
            r#"{"log-driver": "json-file", "log-opts": {"max-size": "-1", "labels": "a"}, "default-address-pools": [{"base": "172.30.0.0/16", "size": 24}]}"#,
        ));
        assert_eq!(all["log-opts"], json!({"max-size": "10m", "max-file": "3", "labels": "a"}));
        assert_eq!(
            all["default-address-pools"],
            json!([{"base": "172.30.0.0/16", "size": 24}, {"base": "10.201.0.0/16", "size": 26}])
        );
    }

    #[test]
    fn log_options_without_a_driver_are_those_of_the_engines_default() {
        let all = merged(Some(r#"{"log-opts": {"labels": "a"}}"#));
        assert_eq!(all["log-driver"], "json-file");
        assert_eq!(all["log-opts"], json!({"max-size": "10m", "max-file": "3", "labels": "a"}));
    }

    #[test]
    fn a_second_merge_changes_nothing() {
        let first = merge(Some(r#"{"dns": ["1.1.1.1"]}"#), false, &Wish::default()).expect("sound");
        assert_eq!(merge(Some(&first.content), false, &Wish::default()).expect("sound"), first);
    }

    #[test]
    fn a_swarm_is_left_able_to_start() {
        assert!(!merge(None, true, &Wish::default()).expect("sound").content.contains("live-restore"));
    }

    #[test]
    fn a_broken_file_is_refused_and_not_replaced() {
        for text in ["{", "[]", "{\"log-driver\": 3}", "{\"log-opts\": []}", "{\"default-address-pools\": {}}"] {
            let error = merge(Some(text), false, &Wish::default()).expect_err(text);
            assert!(error.contains("daemon.json") && error.contains("mend"), "{error}");
        }
    }

    #[test]
    fn pools_are_read() {
        assert_eq!(Pool::parse("10.201.0.0/16/26"), Ok(Wish::default().pool));
        for wrong in ["", "10.0.0.0/16", "10.0.0.0/16/16", "10.0.0/16/26", "x/16/26", "10.0.0.0/16/33"] {
            assert!(Pool::parse(wrong).is_err(), "{wrong}");
        }
    }
}
