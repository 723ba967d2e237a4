//! What the base branch's configuration can allow, and how it says so.

/// What has to be said about a refused key to allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowing {
    /// The key alone: it is on or off.
    Key,
    /// Each of its values, exactly.
    Values,
}

/// Keys of a service that the base branch's configuration can allow. Everything else that is refused stays refused.
const ALLOWABLE: &[(&str, Allowing)] = &[
    ("annotations", Allowing::Values),
    ("build.add", Allowing::Values),
    ("build.additional_contexts", Allowing::Values),
    ("build.cache_from", Allowing::Values),
    ("build.cache_to", Allowing::Values),
    ("build.context", Allowing::Values),
    ("build.entitlements", Allowing::Values),
    ("build.network", Allowing::Values),
    ("build.privileged", Allowing::Key),
    ("build.secrets", Allowing::Key),
    ("build.ssh", Allowing::Key),
    ("build.syntax", Allowing::Values),
    ("cap_add", Allowing::Values),
    ("cgroup", Allowing::Values),
    ("cgroup_parent", Allowing::Values),
    ("deploy.resources.reservations.devices", Allowing::Key),
    ("device_cgroup_rules", Allowing::Values),
    ("devices", Allowing::Values),
    ("external_links", Allowing::Values),
    ("gpus", Allowing::Key),
    ("ipc", Allowing::Values),
    ("network_mode", Allowing::Values),
    ("oom_kill_disable", Allowing::Key),
    ("oom_score_adj", Allowing::Values),
    ("pid", Allowing::Values),
    ("post_start", Allowing::Key),
    ("pre_stop", Allowing::Key),
    ("privileged", Allowing::Key),
    ("runtime", Allowing::Values),
    ("security_opt", Allowing::Values),
    ("use_api_socket", Allowing::Key),
    ("userns_mode", Allowing::Values),
    ("uts", Allowing::Values),
    ("volumes", Allowing::Values),
    ("volumes_from", Allowing::Values),
];

/// How a key of a service can be allowed; `None`: not at all.
#[must_use]
pub fn allowing(key: &str) -> Option<Allowing> {
    ALLOWABLE.iter().find(|(known, _)| *known == key).map(|(_, allowing)| *allowing)
}

/// The keys that can be allowed.
#[must_use]
pub fn allowable_keys() -> Vec<&'static str> {
    ALLOWABLE.iter().map(|(key, _)| *key).collect()
}

/// One thing that the base branch's configuration allows to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// The service.
    pub service: String,
    /// The key: `cap_add`, `build.network`.
    pub key: String,
    /// The values that are allowed, exactly as the resolved model has them; for a mount its source, for a device its path on the host,
    /// for an annotation its name.
    pub values: Vec<String>,
}

impl Allowance {
    pub(in crate::stack) fn covers(&self, service: &str, key: &str, value: Option<&str>) -> bool {
        self.service == service
            && self.key == key
            && match (allowing(key), value) {
                (Some(Allowing::Key), _) => true,
                (Some(Allowing::Values), Some(value)) => self.values.iter().any(|allowed| allowed == value),
                (Some(Allowing::Values), None) | (None, _) => false,
            }
    }
}

/// Whether the base branch allows this to a service.
pub(crate) fn is_allowed(allowed: &[Allowance], service: &str, key: &str, value: Option<&str>) -> bool {
    allowed.iter().any(|allowance| allowance.covers(service, key, value))
}
