//! What each container of a stack may take once the guardrails are on it, and who said so.

use serde::Serialize;
use serde_json::{Map, Value};

use super::Guardrails;
use super::limits::{guard, number};

/// Who said how much a container takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The Compose file reserves it.
    Reserved,
    /// The Compose file limits it.
    Limited,
    /// The file says nothing, or more than is allowed: the guardrail holds.
    Guardrail,
    /// The same, and the configuration has a limit for this very service.
    Service,
}

/// What the containers of one service take, each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The service.
    pub service: String,
    /// So many containers.
    pub replicas: usize,
    /// Thousandths of a processor.
    pub cpus: u64,
    /// Who said that.
    pub cpus_said: Said,
    /// Memory, bytes.
    pub memory: u64,
    /// Who said that.
    pub memory_said: Said,
}

/// The shares of a resolved model's services, as its rendered form has them.
///
/// Processors are shared out anew each moment, so what is reserved counts where a file reserves any; memory is not given back, so its limit counts.
#[must_use]
pub fn shares(model: &Value, rails: &Guardrails) -> Vec<Share> {
    let replicas = super::replicas(model);
    super::services(model)
        .map(|(service, table)| {
            let mut guarded = table.clone();
            guard(service, &mut guarded, rails, None, &mut Vec::new());
            let (limited, own_limit) = (limit(&guarded, "cpus", "cpus"), limit(table, "cpus", "cpus"));
            let reserved = guarded.get("deploy").and_then(|deploy| deploy.pointer("/resources/reservations/cpus"));
            let own = rails.services.get(service).cloned().unwrap_or_default();
            let (cpus, cpus_said) = match reserved.and_then(number).filter(|cpus| *cpus > 0.0) {
                Some(reserved) => (reserved, Said::Reserved),
                None => (limited, who(limited, own_limit, own.cpus.is_some())),
            };
            let memory = limit(&guarded, "mem_limit", "memory");
            let memory_said = who(memory, limit(table, "mem_limit", "memory"), own.memory.is_some());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
            Share {
                service: service.clone(),
                replicas: replicas.get(service).copied().unwrap_or(1),
                cpus: (cpus * 1000.0).round() as u64,
                cpus_said,
                memory: memory as u64,
                memory_said,
            }
        })
        .collect()
}

/// How many networks of its own a preview of this model has; Docker gives each a piece of its address pools.
#[must_use]
pub fn own_networks(model: &Value) -> u64 {
    let of_others = |table: &Map<String, Value>| table.get("external").is_some_and(|external| external != false);
    super::entries(model, "networks").filter(|(_, table)| !of_others(table)).count().max(1) as u64
}

/// The lower of both spellings of a limit; 0 is none.
fn limit(table: &Map<String, Value>, service_key: &str, deploy_key: &str) -> f64 {
    let in_deploy = table.get("deploy").and_then(|deploy| deploy.pointer("/resources/limits")?.get(deploy_key));
    let all = [table.get(service_key), in_deploy].into_iter().flatten().filter_map(number);
    let least = all.filter(|limit| *limit > 0.0).fold(f64::INFINITY, f64::min);
    if least.is_finite() { least } else { 0.0 }
}

fn who(guarded: f64, own: f64, for_service: bool) -> Said {
    match own > 0.0 && own <= guarded {
        true => Said::Limited,
        false if for_service => Said::Service,
        false => Said::Guardrail,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::stack::ServiceGuardrails;

    #[test]
    fn limits_of_single_services_count_as_they_are_rendered() {
        let own = ServiceGuardrails { memory: Some(4 << 30), cpus: Some(2.0), pids: None };
        let rails = Guardrails {
            max_memory: Some(1 << 30),
            services: BTreeMap::from([("elastic".to_owned(), own)]),
            ..Guardrails::default()
        };
        let model = json!({"services": {"elastic": {}, "web": {"mem_limit": "1073741824"}, "greedy": {"mem_limit": "8589934592"}}});
        let found: Vec<_> = shares(&model, &rails)
            .into_iter()
            .map(|s| (s.service, s.cpus, s.cpus_said, s.memory >> 20, s.memory_said))
            .collect();
        assert_eq!(
            found,
            [
                ("elastic".into(), 2000, Said::Service, 4096, Said::Service),
                ("greedy".into(), 1000, Said::Guardrail, 1024, Said::Guardrail),
                ("web".into(), 1000, Said::Guardrail, 1024, Said::Limited),
            ]
        );
    }

    #[test]
    fn each_number_has_its_source() {
        let model = json!({
            "services": {
                "api": {"cpus": 0.5, "mem_limit": "268435456", "scale": 2},
                "db": {"deploy": {"resources": {
                    "limits": {"memory": "134217728"}, "reservations": {"cpus": 0.25, "memory": "67108864"}}}},
                "greedy": {"cpus": 8, "mem_limit": "8589934592"},
                "silent": {},
            },
            "networks": {"default": {}, "back": {"name": "x"}, "theirs": {"external": true, "name": "y"}},
        });
        let found: Vec<_> = shares(&model, &Guardrails::default())
            .into_iter()
            .map(|s| (s.service, s.replicas, s.cpus, s.cpus_said, s.memory >> 20, s.memory_said))
            .collect();
        assert_eq!(
            found,
            [
                ("api".into(), 2, 500, Said::Limited, 256, Said::Limited),
                ("db".into(), 1, 250, Said::Reserved, 128, Said::Limited),
                ("greedy".into(), 1, 1000, Said::Guardrail, 512, Said::Guardrail),
                ("silent".into(), 1, 1000, Said::Guardrail, 512, Said::Guardrail),
            ]
        );
        assert_eq!(own_networks(&model), 2);
        assert_eq!(own_networks(&json!({"services": {}})), 1, "Compose makes one where the file names none");
    }
}
