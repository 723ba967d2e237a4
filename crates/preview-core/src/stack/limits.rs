//! Guardrails: limits, log rotation and restart policy where the user's file has none, and never above the guardrail.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Difference;

/// Limits of each container of a preview.
#[derive(Clone, Debug, PartialEq)]
pub struct Guardrails {
    /// Processors.
    pub cpus: f64,
    /// Memory, bytes.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Size of a log file before it is rotated, bytes.
    pub log_size: u64,
    /// Number of log files that are kept.
    pub log_files: u32,
    /// Restart policy of services that name none.
    pub restart: String,
    /// A file's own limit of memory counts up to this, bytes; `None`: up to `memory`.
    pub max_memory: Option<u64>,
    /// Services with limits of their own.
    pub services: BTreeMap<String, ServiceGuardrails>,
}

/// Limits of one service; what is `None` is as for all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceGuardrails {
    /// Processors.
    pub cpus: Option<f64>,
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Guardrails {
    /// The limits of a service, its own put in place of those of all.
    pub(super) fn of(&self, service: &str) -> Self {
        let own = self.services.get(service).cloned().unwrap_or_default();
        Self {
            cpus: own.cpus.unwrap_or(self.cpus),
            memory: own.memory.unwrap_or(self.memory),
            pids: own.pids.unwrap_or(self.pids),
            services: BTreeMap::new(),
            ..self.clone()
        }
    }

    /// The most memory that a file's own limit may give, bytes.
    fn most_memory(&self) -> u64 {
        self.max_memory.unwrap_or(0).max(self.memory)
    }
}

impl Default for Guardrails {
    fn default() -> Self {
        Self {
            cpus: 1.0,
            memory: 512 << 20,
            pids: 256,
            log_size: 10 << 20,
            log_files: 3,
            restart: "always".to_owned(),
            max_memory: None,
            services: BTreeMap::new(),
        }
    }
}

/// A limit has two spellings in Compose; both may stand in one file only with the same value.
struct Limit<'a> {
    name: &'a str,
    service_key: &'a str,
    deploy_key: &'a str,
    /// Where the file says nothing.
    value: Value,
    shown: String,
    /// What the file may say at most, and what it comes to if it says more.
    most: f64,
    lowered: Value,
    lowered_shown: String,
}

/// Puts the guardrails on a service; `restart` is its restart policy where it gets one of ours.
pub(super) fn guard(
    service: &str,
    table: &mut Map<String, Value>,
    rails: &Guardrails,
    restart: Option<&str>,
    differences: &mut Vec<Difference>,
) {
    let rails = &rails.of(service);
    let mut note = |key: &str, what: String| {
        differences.push(Difference { key: format!("services.{service}.{key}"), what });
    };
    let mut memory = rails.memory;
    #[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52")]
    let limits = [
        Limit {
            name: "cpus",
            service_key: "cpus",
            deploy_key: "cpus",
            value: json!(rails.cpus),
            shown: format!("{}", rails.cpus),
            most: rails.cpus,
            lowered: json!(rails.cpus),
            lowered_shown: format!("{}", rails.cpus),
        },
        Limit {
            name: "memory",
            service_key: "mem_limit",
            deploy_key: "memory",
            value: json!(rails.memory.to_string()),
            shown: format!("{} MB", rails.memory >> 20),
            most: rails.most_memory() as f64,
            lowered: json!(rails.most_memory().to_string()),
            lowered_shown: format!("{} MB; `guardrails.max_memory` may allow more", rails.most_memory() >> 20),
        },
        Limit {
            name: "pids",
            service_key: "pids_limit",
            deploy_key: "pids",
            value: json!(rails.pids),
            shown: rails.pids.to_string(),
            most: rails.pids as f64,
            lowered: json!(rails.pids),
            lowered_shown: rails.pids.to_string(),
        },
    ];
    for limit in limits {
        let in_service = table.get(limit.service_key).and_then(number);
        let in_deploy =
            table.get("deploy").and_then(|d| d.pointer("/resources/limits")?.get(limit.deploy_key)).and_then(number);
        // Compose and Docker read zero, and -1 for pids, as "no limit".
        let set = [in_service, in_deploy]
            .into_iter()
            .flatten()
            .filter(|value| *value > 0.0)
            .fold(None, |a, b| Some(a.map_or(b, |a: f64| a.min(b))));
        if let (Some(value), "memory") = (set, limit.name) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
            let value = value as u64;
            memory = value.min(rails.most_memory());
        }
        match set {
            Some(value) if value <= limit.most => {
                // Beside limits of ours under `deploy`, Compose takes the other spelling for a contradiction.
                if let Some(own) = table.remove(limit.service_key)
                    && in_service.is_some_and(|value| value > 0.0)
                    && let Some(limits) = deploy_limits(table)
                {
                    limits.insert(limit.deploy_key.to_owned(), own);
                }
            }
            other => {
                table.remove(limit.service_key);
                let (value, what) = if other.is_some() {
                    (limit.lowered, format!("limit of {} lowered to {}", limit.name, limit.lowered_shown))
                } else {
                    (limit.value, format!("limit of {} set to {}", limit.name, limit.shown))
                };
                if let Some(limits) = deploy_limits(table) {
                    limits.insert(limit.deploy_key.to_owned(), value);
                }
                note("deploy.resources.limits", what);
            }
        }
    }
    lower_reservations(table, memory, rails.cpus, &mut note);
    rotate_logs(table, rails, &mut note);
    if let Some(restart) = restart {
        let stronger = super::restart::stops_with_its_engine(table);
        table.insert("restart".to_owned(), json!(restart));
        let why = if stronger { "; `unless-stopped` is not started after a crash of the engine" } else { "" };
        note("restart", format!("set to {restart}{why}"));
    }
}

/// A reservation above the limit is refused by the engine.
fn lower_reservations(table: &mut Map<String, Value>, limit: u64, cpus: f64, note: &mut impl FnMut(&str, String)) {
    #[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52")]
    let memory = limit as f64;
    if table.get("mem_reservation").and_then(number).is_some_and(|value| value > memory) {
        table.insert("mem_reservation".to_owned(), json!(limit.to_string()));
        note("mem_reservation", "lowered to the limit of memory".to_owned());
    }
    let reserved = table.get_mut("deploy").and_then(|deploy| deploy.pointer_mut("/resources/reservations"));
    if let Some(Value::Object(reserved)) = reserved {
        if reserved.get("memory").and_then(number).is_some_and(|value| value > memory) {
            reserved.insert("memory".to_owned(), json!(limit.to_string()));
            note("deploy.resources.reservations.memory", "lowered to the limit of memory".to_owned());
        }
        if reserved.get("cpus").and_then(number).is_some_and(|value| value > cpus) {
            reserved.insert("cpus".to_owned(), json!(cpus));
            note("deploy.resources.reservations.cpus", "lowered to the limit of cpus".to_owned());
        }
    }
    // Swap in all is at least the memory, or the engine refuses; without a word it is twice the memory.
    if table.get("memswap_limit").and_then(number).is_some_and(|value| value < 0.0 || value > 2.0 * memory) {
        table.remove("memswap_limit");
        note("memswap_limit", "removed: above the guardrail".to_owned());
    }
}

fn rotate_logs(table: &mut Map<String, Value>, rails: &Guardrails, note: &mut impl FnMut(&str, String)) {
    let logging = table.entry("logging").or_insert_with(|| json!({}));
    let Some(logging) = logging.as_object_mut() else { return };
    let driver = logging.get("driver").and_then(Value::as_str).unwrap_or_default().to_owned();
    // `local` rotates by itself unless it is told otherwise.
    let told = logging
        .get("options")
        .is_some_and(|options| options.get("max-size").is_some() || options.get("max-file").is_some());
    if driver == "none" || driver == "local" && !told {
        return;
    }
    if driver.is_empty() {
        logging.insert("driver".to_owned(), json!("json-file"));
    }
    let options = logging.entry("options").or_insert_with(|| json!({}));
    let Some(options) = options.as_object_mut() else { return };
    let size = options.get("max-size").and_then(Value::as_str).map(str::to_owned);
    let files = match options.get("max-file").map(number) {
        None => Some(if driver == "local" { 5.0 } else { 1.0 }),
        Some(files) => files,
    };
    #[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52")]
    let most = rails.log_size as f64 * f64::from(rails.log_files);
    let wanted = size.as_deref().and_then(log_size).zip(files).map(|(size, files)| size * files.max(1.0));
    if wanted.is_some_and(|wanted| wanted <= most) {
        return;
    }
    options.insert("max-size".to_owned(), json!(rails.log_size.to_string()));
    options.insert("max-file".to_owned(), json!(rails.log_files.to_string()));
    let rotated = format!("rotated at {} MB, {} files", rails.log_size >> 20, rails.log_files);
    note("logging", if size.is_some() { format!("{rotated}, less than the file wants") } else { rotated });
}

/// Bytes, in Docker's spelling: `10m`, `1.5g`, `1024`. Anything else, as `-1` for no end, is none.
fn log_size(text: &str) -> Option<f64> {
    let lower = text.trim().to_ascii_lowercase();
    let short = lower.strip_suffix('b').unwrap_or(&lower);
    let short = short.strip_suffix('i').unwrap_or(short);
    let (number, shift) = match short.strip_suffix(['k', 'm', 'g', 't', 'p']) {
        Some(number) => (number, 10 * (1 + "kmgtp".find(&short[number.len()..])?)),
        None => (short, 0),
    };
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number > 0.0).then(|| number * 2_f64.powi(i32::try_from(shift).unwrap_or(i32::MAX)))
}

/// `deploy.resources.limits`, made where it is missing.
fn deploy_limits(table: &mut Map<String, Value>) -> Option<&mut Map<String, Value>> {
    let mut place = table;
    for key in ["deploy", "resources", "limits"] {
        let next = place.entry(key).or_insert(Value::Null);
        if next.is_null() {
            *next = json!({});
        }
        place = next.as_object_mut()?;
    }
    Some(place)
}

/// Numbers stand in the model as numbers or as strings of digits.
/// What the containers of a rendered stack may take at most in all, bytes.
#[must_use]
pub fn declared_memory(model: &Value) -> u64 {
    let replicas = super::replicas(model);
    let each = super::services(model).filter_map(|(name, table)| {
        let in_deploy = table.get("deploy").and_then(|deploy| deploy.pointer("/resources/limits/memory"));
        let limits = [table.get("mem_limit"), in_deploy].into_iter().flatten().filter_map(number);
        let limit = limits.filter(|limit| *limit > 0.0).fold(f64::INFINITY, f64::min);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
        limit.is_finite().then(|| (limit as u64).saturating_mul(replicas.get(name).copied().unwrap_or(1) as u64))
    });
    each.fold(0, u64::saturating_add)
}

pub(super) fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarded(service: Value) -> (Value, Vec<String>) {
        let mut table = service.as_object().unwrap().clone();
        let mut differences = Vec::new();
        guard("api", &mut table, &Guardrails::default(), Some("always"), &mut differences);
        (Value::Object(table), differences.into_iter().map(|d| format!("{}: {}", d.key, d.what)).collect())
    }

    #[test]
    fn a_service_without_limits_gets_all_of_them() {
        let (table, differences) = guarded(json!({"image": "x"}));
        assert_eq!(
            table,
            json!({
                "image": "x",
                "deploy": {"resources": {"limits": {"cpus": 1.0, "memory": "536870912", "pids": 256}}},
                "logging": {"driver": "json-file", "options": {"max-size": "10485760", "max-file": "3"}},
                "restart": "always",
            })
        );
        assert_eq!(differences.len(), 5);
    }

    fn guarded_by(service: &str, table: Value, rails: &Guardrails) -> (Value, Vec<String>) {
        let mut table = table.as_object().unwrap().clone();
        let mut differences = Vec::new();
        guard(service, &mut table, rails, None, &mut differences);
        let limits = table["deploy"]["resources"]["limits"].clone();
        (limits, differences.into_iter().map(|one| one.what).filter(|what| what.contains("limit of")).collect())
    }

    #[test]
    fn a_files_own_memory_counts_up_to_the_most_and_what_a_service_has_of_its_own() {
        let own = ServiceGuardrails { memory: Some(4 << 30), cpus: Some(2.0), pids: Some(1000) };
        let rails = Guardrails {
            max_memory: Some(2 << 30),
            services: BTreeMap::from([("elastic".to_owned(), own)]),
            ..Guardrails::default()
        };
        let memory = |service: &str, table: Value| guarded_by(service, table, &rails).0["memory"].clone();
        let bytes = |gigabytes: u64| json!((gigabytes << 30).to_string());
        assert_eq!(memory("api", json!({})), json!("536870912"), "the usual limit, not the most");
        assert_eq!(memory("api", json!({"mem_limit": (1_u64 << 30).to_string()})), bytes(1));
        assert_eq!(
            memory("api", json!({"deploy": {"resources": {"limits": {"memory": (8_u64 << 30).to_string()}}}})),
            bytes(2)
        );
        assert_eq!(
            memory("elastic", json!({"mem_limit": (8_u64 << 30).to_string()})),
            bytes(4),
            "its own is above the most"
        );
        let (limits, differences) = guarded_by("elastic", json!({"cpus": 8}), &rails);
        assert_eq!(limits, json!({"cpus": 2.0, "memory": (4_u64 << 30).to_string(), "pids": 1000}));
        assert_eq!(differences[..2], ["limit of cpus lowered to 2", "limit of memory set to 4096 MB"]);
        let (_, differences) = guarded_by("api", json!({"mem_limit": (8_u64 << 30).to_string()}), &rails);
        assert!(
            differences[1].starts_with("limit of memory lowered to 2048 MB; `guardrails.max_memory`"),
            "{differences:?}"
        );
    }

    #[test]
    fn what_is_reserved_fits_into_the_limit_that_counts() {
        let rails = Guardrails { max_memory: Some(4 << 30), ..Guardrails::default() };
        let service = json!({"mem_limit": (1_u64 << 30).to_string(), "mem_reservation": (1_u64 << 30).to_string(), "memswap_limit": (2_u64 << 30).to_string()});
        let mut table = service.as_object().unwrap().clone();
        guard("api", &mut table, &rails, None, &mut Vec::new());
        assert_eq!(
            (&table["mem_reservation"], &table["memswap_limit"]),
            (&service["mem_reservation"], &service["memswap_limit"])
        );
        let mut table = json!({"mem_reservation": (1_u64 << 30).to_string()}).as_object().unwrap().clone();
        guard("api", &mut table, &rails, None, &mut Vec::new());
        assert_eq!(table["mem_reservation"], json!("536870912"), "no limit of its own: the usual one holds");
    }

    #[test]
    fn lower_limits_of_the_file_stay_and_are_spelled_in_one_way() {
        let (table, differences) =
            guarded(json!({"cpus": 0.5, "mem_limit": "67108864", "deploy": {"resources": {"limits": {"pids": 10}}}}));
        assert_eq!((table.get("cpus"), table.get("mem_limit")), (None, None));
        let limits = json!({"cpus": 0.5, "memory": "67108864", "pids": 10});
        assert_eq!(table["deploy"], json!({"resources": {"limits": limits}}));
        assert!(differences.iter().all(|difference| !difference.contains("limit")), "{differences:?}");
        // Zero is no limit.
        let (table, _) = guarded(json!({"mem_limit": 0, "deploy": {"resources": {"limits": {"memory": "67108864"}}}}));
        assert_eq!(table["deploy"]["resources"]["limits"]["memory"], json!("67108864"));
    }

    #[test]
    fn higher_limits_and_no_limits_by_name_are_lowered() {
        let (table, differences) = guarded(
            json!({"cpus": 8, "pids_limit": -1, "deploy": {"resources": {"limits": {"memory": "4294967296"}, "reservations": {"memory": "4294967296"}}}}),
        );
        assert_eq!(table.get("cpus"), None);
        assert_eq!(table.get("pids_limit"), None);
        assert_eq!(
            table["deploy"],
            json!({"resources": {"limits": {"cpus": 1.0, "memory": "536870912", "pids": 256}, "reservations": {"memory": "536870912"}}})
        );
        assert!(differences.iter().any(|d| d.contains("cpus lowered to 1")), "{differences:?}");
    }

    #[test]
    fn logs_may_be_smaller_but_not_larger() {
        let rotated = |options: Value| {
            let (table, _) = guarded(json!({"logging": {"driver": "json-file", "options": options}}));
            table["logging"]["options"].clone()
        };
        let rails = json!({"max-size": "10485760", "max-file": "3"});
        for kept in
            [json!({"max-size": "1m"}), json!({"max-size": "30MB"}), json!({"max-size": "500k", "max-file": "60"})]
        {
            assert_eq!(rotated(kept.clone()), kept);
        }
        for lowered in [
            json!({"max-file": "2"}),
            json!({"max-size": "-1"}),
            json!({"max-size": "10g"}),
            json!({"max-size": "1m", "max-file": "1000"}),
            json!({"max-size": "1m", "max-file": "x"}),
            json!({"max-size": "inf"}),
        ] {
            assert_eq!(rotated(lowered.clone()), rails, "{lowered}");
        }
        let (table, _) = guarded(json!({"logging": {"driver": "local", "options": {"max-size": "1g"}}}));
        assert_eq!(table["logging"], json!({"driver": "local", "options": rails}));
    }

    #[test]
    fn a_log_driver_of_its_own_stays() {
        let (table, _) = guarded(json!({"logging": {"driver": "local"}}));
        assert_eq!(table["logging"], json!({"driver": "local"}));
    }
}
