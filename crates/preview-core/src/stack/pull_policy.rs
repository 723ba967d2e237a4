//! `pull_policy` of services. `preview` pulls by itself before the start, so it is obeyed here and is no part of the rendered stack.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::health::duration;

/// When the image of a service is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pull {
    /// Not by this deploy, whatever happens.
    Never,
    /// When the host does not have it.
    Missing,
    /// When the host does not have it, or the last pull is so long ago.
    Older(Duration),
    /// At each deploy.
    Always,
}

/// What the files say of each service, for those of which they say something.
#[must_use]
pub fn pull_policies(model: &Value) -> BTreeMap<String, Pull> {
    let said = super::services(model)
        .filter_map(|(service, table)| Some((service.clone(), parse(table.get("pull_policy")?.as_str()?))));
    said.collect()
}

fn parse(text: &str) -> Pull {
    let day = Duration::from_secs(86_400);
    match text {
        "always" => Pull::Always,
        "never" => Pull::Never,
        "daily" => Pull::Older(day),
        "weekly" => Pull::Older(7 * day),
        // `build` is what a service with a build context does anyway; of others Compose takes `missing`.
        other => other.strip_prefix("every_").and_then(duration).map_or(Pull::Missing, Pull::Older),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_word() {
        let hours = |hours: u64| Pull::Older(Duration::from_secs(3600 * hours));
        for (text, pull) in [
            ("always", Pull::Always),
            ("never", Pull::Never),
            ("missing", Pull::Missing),
            ("if_not_present", Pull::Missing),
            ("build", Pull::Missing),
            ("daily", hours(24)),
            ("weekly", hours(168)),
            ("every_12h", hours(12)),
            ("every_3d", hours(72)),
        ] {
            let model = json!({"services": {"a": {"pull_policy": text}, "b": {}}});
            assert_eq!(pull_policies(&model), BTreeMap::from([("a".to_owned(), pull)]), "{text}");
        }
    }
}
