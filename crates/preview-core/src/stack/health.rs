//! How long a stack's own health checks may take until they say something: what the file gives its services is waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

/// What Docker takes where the file says nothing.
const INTERVAL: Duration = Duration::from_secs(30);
const RETRIES: u64 = 3;
/// No chain of services is longer.
const DEEPEST: usize = 64;

/// How long the checks of a stack may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// Of the service that takes longest, once it was started.
    pub one: Duration,
    /// Of the services that must be healthy before the last one is started, one after the other.
    pub before: Duration,
}

/// How long the health checks of a model may take until they have decided: start period, then as many failed checks as there are retries.
#[must_use]
pub fn patience(model: &Value) -> Patience {
    let services: BTreeMap<&String, &Map<String, Value>> = super::services(model).collect();
    let own: BTreeMap<&String, Duration> = services.iter().map(|(name, table)| (*name, of_service(table))).collect();
    Patience {
        one: own.values().copied().max().unwrap_or_default(),
        before: services.keys().map(|name| before(name, &services, &own, DEEPEST)).max().unwrap_or_default(),
    }
}

/// What passes before this service is started.
fn before(
    service: &String,
    services: &BTreeMap<&String, &Map<String, Value>>,
    own: &BTreeMap<&String, Duration>,
    depth: usize,
) -> Duration {
    let Some(depth) = depth.checked_sub(1) else { return Duration::ZERO };
    let needs = services.get(service).and_then(|table| table.get("depends_on")?.as_object());
    needs
        .into_iter()
        .flatten()
        .map(|(needed, edge)| {
            let healthy = edge.get("condition").and_then(Value::as_str) == Some("service_healthy");
            let waits = own.get(needed).copied().filter(|_| healthy).unwrap_or_default();
            before(needed, services, own, depth).saturating_add(waits)
        })
        .max()
        .unwrap_or_default()
}

fn of_service(table: &Map<String, Value>) -> Duration {
    let Some(check) = table.get("healthcheck").and_then(Value::as_object) else { return Duration::ZERO };
    let off = check.get("disable") == Some(&Value::Bool(true))
        || check.get("test").and_then(|test| test.get(0)?.as_str()) == Some("NONE");
    if off {
        return Duration::ZERO;
    }
    let text = |key: &str| check.get(key).and_then(Value::as_str).and_then(duration);
    let retries = check.get("retries").and_then(Value::as_u64).unwrap_or(RETRIES).clamp(1, 1000);
    let interval = text("interval").filter(|interval| !interval.is_zero()).unwrap_or(INTERVAL);
    let checks = interval.saturating_mul(u32::try_from(retries).unwrap_or(u32::MAX));
    text("start_period").unwrap_or_default().saturating_add(checks)
}

/// A duration as Compose writes it: `1h2m3.5s`, `500ms`.
#[must_use]
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let seconds = match &unit[..end] {
            "w" => 604_800.0,
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" | "" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum = sum.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &unit[end..];
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seconds(model: &Value) -> (u64, u64) {
        let found = patience(model);
        (found.one.as_secs(), found.before.as_secs())
    }

    #[test]
    fn the_start_period_and_all_checks_count() {
        let check = json!({"test": ["CMD", "true"], "start_period": "2m0s", "interval": "5s", "retries": 4});
        assert_eq!(seconds(&json!({"services": {"a": {"healthcheck": check}, "b": {}}})), (140, 0));
        let default = json!({"test": ["CMD", "true"]});
        assert_eq!(seconds(&json!({"services": {"a": {"healthcheck": default}}})), (90, 0));
        for off in [json!({"disable": true}), json!({"test": ["NONE"]}), json!(null)] {
            assert_eq!(seconds(&json!({"services": {"a": {"healthcheck": off}}})), (0, 0));
        }
    }

    #[test]
    fn who_waits_for_health_waits_for_all_before() {
        let check = json!({"test": ["CMD", "true"], "interval": "10s", "retries": 1});
        let after = |name: &str, condition: &str| json!({name: {"condition": condition}});
        let model = json!({"services": {
            "db": {"healthcheck": check},
            "api": {"healthcheck": check, "depends_on": after("db", "service_healthy")},
            "web": {"depends_on": after("api", "service_healthy")},
            "log": {"depends_on": after("api", "service_started")},
        }});
        assert_eq!(seconds(&model), (10, 20));
        let circle = json!({"services": {"a": {"healthcheck": check, "depends_on": after("a", "service_healthy")}}});
        assert!(patience(&circle).before < Duration::from_secs(3600), "it ends");
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("1h2m3.5s", 3_723_500), ("500ms", 500), ("90", 90_000), ("3d", 259_200_000), ("1w", 604_800_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "x", "5 minutes", "1y", "-3s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
