//! What a CI event asks for: pure, from the event's payload and the variables of the run.

use jiff::Timestamp;
use preview_core::config::Environment;
use serde_json::Value;

use crate::output::Ci;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Deploy or update.
    Deploy(Wanted),
    /// Destroy.
    Destroy { number: u64 },
    /// Sweep.
    Sweep,
    /// Nothing; why.
    Nothing(String),
    /// The same for a fork: refused, unless the base branch allows it.
    Fork { wanted: Wanted, fork: String },
}

/// A deploy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) number: u64,
    pub(crate) commit: Option<String>,
    pub(crate) owner: Option<String>,
}

/// Reads the event. `payload` is the content of GitHub's event file.
pub(crate) fn wish(environment: &Environment, payload: Option<&str>) -> Result<Wish, String> {
    match Ci::of(environment) {
        Ci::GitHub => github(environment, payload),
        Ci::GitLab => gitlab(environment),
        Ci::None => Err("`preview ci` reads the event of a GitHub Actions or GitLab CI job, and this is none \
             (neither GITHUB_ACTIONS nor GITLAB_CI is `true`); use `preview deploy` or `preview destroy`"
            .to_owned()),
    }
}

/// Whether the files of the checkout may be those of a pull request: in CI they are, unless the CI system says that the job runs for
/// the default branch.
pub(crate) fn checkout_of_pull_request(environment: &Environment, payload: Option<&str>) -> bool {
    let get = |name: &str| environment.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let of_default_branch = match Ci::of(environment) {
        Ci::GitHub => match get("GITHUB_EVENT_NAME") {
            Some("schedule") => true,
            // Not `pull_request_target` and the like: their workflow is the default branch's, what they check out need not be.
            Some("push" | "workflow_dispatch" | "repository_dispatch") => {
                let event: Option<Value> = payload.and_then(|payload| serde_json::from_str(payload).ok());
                let default = event.as_ref().and_then(|event| event.pointer("/repository/default_branch")?.as_str());
                let branch = get("GITHUB_REF").and_then(|reference| reference.strip_prefix("refs/heads/"));
                branch.is_some() && branch == default
            }
            _ => false,
        },
        Ci::GitLab => {
            let branch = get("CI_COMMIT_BRANCH");
            get("CI_MERGE_REQUEST_IID").is_none() && branch.is_some() && branch == get("CI_DEFAULT_BRANCH")
        }
        Ci::None => !Ci::is_ci(environment),
    };
    !of_default_branch
}

/// When the event happened that the run is for, as far as the CI system says.
///
/// GitLab has no time of the event: a pipeline is made when it happens. A job that a person starts is as late as its start, and so is the
/// job that stops an environment, which belongs to the pipeline that deployed it.
pub(crate) fn event_at(environment: &Environment, payload: Option<&str>) -> Option<Timestamp> {
    let get = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    match Ci::of(environment) {
        Ci::GitHub => {
            let event: Value = serde_json::from_str(payload?).ok()?;
            match get("GITHUB_EVENT_NAME")?.as_str() {
                "pull_request" | "pull_request_target" => {
                    event.pointer("/pull_request/updated_at")?.as_str()?.parse().ok()
                }
                "push" => Timestamp::from_second(event.pointer("/repository/pushed_at")?.as_i64()?).ok(),
                _ => None,
            }
        }
        Ci::GitLab => {
            let stop = get("CI_ENVIRONMENT_ACTION").is_some_and(|action| action == "stop");
            let by_hand = get("CI_JOB_MANUAL").is_some_and(|manual| manual == "true");
            get(if stop || by_hand { "CI_JOB_STARTED_AT" } else { "CI_PIPELINE_CREATED_AT" })?.parse().ok()
        }
        Ci::None => None,
    }
}

fn github(environment: &Environment, payload: Option<&str>) -> Result<Wish, String> {
    let name = environment.get("GITHUB_EVENT_NAME").map(String::as_str).unwrap_or_default();
    let payload = payload.ok_or("GITHUB_EVENT_PATH is not set, or its file cannot be read")?;
    let event: Value = serde_json::from_str(payload).map_err(|error| format!("the event file is not JSON: {error}"))?;
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    match name {
        "pull_request" | "pull_request_target" => {
            let number = event
                .get("number")
                .or_else(|| event.pointer("/pull_request/number"))
                .and_then(Value::as_u64)
                .ok_or("the event has no pull request number")?;
            let action = text("/action").ok_or("the event has no `action`")?;
            match action.as_str() {
                "closed" => Ok(Wish::Destroy { number }),
                // Whatever is done with one that is closed, its preview is gone.
                _ if text("/pull_request/state").as_deref() == Some("closed") => {
                    Ok(Wish::Nothing(format!("`{action}` of a pull request that is closed changes no preview")))
                }
                // `labeled` comes only where a workflow lists it: then its `if` has looked at the label.
                "opened" | "reopened" | "synchronize" | "ready_for_review" | "labeled" => {
                    let head = text("/pull_request/head/repo/full_name");
                    let base = text("/pull_request/base/repo/full_name").or_else(|| text("/repository/full_name"));
                    let wanted = Wanted {
                        number,
                        // GITHUB_SHA is a merge commit that nobody pushed.
                        commit: text("/pull_request/head/sha"),
                        owner: text("/pull_request/user/login"),
                    };
                    if head.is_none() || head != base {
                        return Ok(Wish::Fork { wanted, fork: head.unwrap_or_else(|| "(deleted)".to_owned()) });
                    }
                    Ok(Wish::Deploy(wanted))
                }
                other => Ok(Wish::Nothing(format!(
                    "`{other}` of a pull request changes no preview; `preview deploy --pr {number}` and `preview destroy --pr {number}` do"
                ))),
            }
        }
        "schedule" => Ok(Wish::Sweep),
        other => Err(format!("the event `{other}` is not handled; use it for `pull_request` and `schedule`")),
    }
}

fn gitlab(environment: &Environment) -> Result<Wish, String> {
    let get = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    if get("CI_PIPELINE_SOURCE").as_deref() == Some("schedule") {
        return Ok(Wish::Sweep);
    }
    let stop = get("CI_ENVIRONMENT_ACTION").as_deref() == Some("stop");
    let Some(number) = get("CI_MERGE_REQUEST_IID") else {
        return Err("the job is not of a merge request pipeline (CI_MERGE_REQUEST_IID is not set)".to_owned());
    };
    let number: u64 = number.parse().map_err(|_| "CI_MERGE_REQUEST_IID is not a number".to_owned())?;
    if stop {
        return Ok(Wish::Destroy { number });
    }
    let (source, target) = (
        get("CI_MERGE_REQUEST_SOURCE_PROJECT_ID"),
        get("CI_MERGE_REQUEST_PROJECT_ID").or_else(|| get("CI_PROJECT_ID")),
    );
    let wanted = Wanted { number, commit: get("CI_COMMIT_SHA"), owner: get("GITLAB_USER_LOGIN") };
    if source.is_none() || source != target {
        let fork = get("CI_MERGE_REQUEST_SOURCE_PROJECT_PATH").or(source).unwrap_or_else(|| "(unknown)".to_owned());
        return Ok(Wish::Fork { wanted, fork });
    }
    Ok(Wish::Deploy(wanted))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn pull_request(action: &str, head: Value) -> Result<Wish, String> {
        let event = json!({
            "action": action, "number": 2,
            "pull_request": {
                "number": 2, "user": {"login": "Codertocat"},
                "head": {"sha": "ec26c3e57ca3a959ca5aad62de7213c562f8c821", "repo": head},
                "base": {"repo": {"full_name": "Codertocat/Hello-World"}},
            },
            "repository": {"full_name": "Codertocat/Hello-World"},
        });
        let environment = environment(&[("GITHUB_ACTIONS", "true"), ("GITHUB_EVENT_NAME", "pull_request")]);
        wish(&environment, Some(&event.to_string()))
    }

    #[test]
    fn pull_requests_of_github() {
        let own = || json!({"full_name": "Codertocat/Hello-World"});
        for action in ["opened", "reopened", "synchronize", "ready_for_review", "labeled"] {
            let Ok(Wish::Deploy(wanted)) = pull_request(action, own()) else { panic!("{action} does not deploy") };
            assert_eq!(wanted.number, 2);
            assert_eq!(wanted.commit.as_deref(), Some("ec26c3e57ca3a959ca5aad62de7213c562f8c821"));
            assert_eq!(wanted.owner.as_deref(), Some("Codertocat"));
        }
        assert_eq!(pull_request("closed", own()), Ok(Wish::Destroy { number: 2 }));
        for action in ["edited", "unlabeled", "converted_to_draft", "assigned", "review_requested"] {
            let Ok(Wish::Nothing(why)) = pull_request(action, own()) else { panic!("{action} does something") };
            assert!(why.contains(action) && why.contains("preview deploy --pr 2"), "{why}");
        }
        let closed = json!({"action": "labeled", "number": 2, "pull_request": {"state": "closed"}}).to_string();
        let labelled = environment(&[("GITHUB_ACTIONS", "true"), ("GITHUB_EVENT_NAME", "pull_request")]);
        assert!(matches!(wish(&labelled, Some(&closed)), Ok(Wish::Nothing(_))));
        let nightly = environment(&[("GITHUB_ACTIONS", "true"), ("GITHUB_EVENT_NAME", "schedule")]);
        assert_eq!(wish(&nightly, Some("{}")), Ok(Wish::Sweep));
    }

    #[test]
    fn the_checkout_is_a_pull_requests_unless_ci_says_otherwise() {
        let hub = |event: &str, reference: &str| {
            let pairs = [("GITHUB_ACTIONS", "true"), ("GITHUB_EVENT_NAME", event), ("GITHUB_REF", reference)];
            let payload = json!({"repository": {"default_branch": "main"}}).to_string();
            checkout_of_pull_request(&environment(&pairs), Some(&payload))
        };
        assert!(!hub("schedule", "refs/heads/main") && !hub("push", "refs/heads/main"));
        assert!(!hub("workflow_dispatch", "refs/heads/main"));
        assert!(hub("push", "refs/heads/feature") && hub("push", "refs/tags/main") && hub("push", "main"));
        assert!(hub("pull_request", "refs/heads/main") && hub("pull_request_target", "refs/heads/main"));
        assert!(hub("issue_comment", "refs/heads/main"));
        let lab = |more: &[(&str, &str)]| {
            let fixed = [("GITLAB_CI", "true"), ("CI_DEFAULT_BRANCH", "main")];
            checkout_of_pull_request(&environment(&[&fixed, more].concat()), None)
        };
        assert!(!lab(&[("CI_COMMIT_BRANCH", "main")]));
        assert!(lab(&[]) && lab(&[("CI_COMMIT_BRANCH", "x")]));
        assert!(lab(&[("CI_COMMIT_BRANCH", "main"), ("CI_MERGE_REQUEST_IID", "7")]));
        for (said, is) in [("true", true), ("1", true), ("false", false), ("0", false), ("", false)] {
            assert_eq!(checkout_of_pull_request(&environment(&[("CI", said)]), None), is, "CI={said}");
        }
        assert!(!checkout_of_pull_request(&Environment::new(), None), "a person's terminal");
    }

    #[test]
    fn the_time_of_an_event() {
        let hub = |name| environment(&[("GITHUB_ACTIONS", "true"), ("GITHUB_EVENT_NAME", name)]);
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let event =
            json!({"pull_request": {"updated_at": "2026-03-01T12:30:05Z"}, "repository": {"pushed_at": 1_772_368_205}});
        let event = Some(event.to_string());
        assert_eq!(event_at(&hub("pull_request"), event.as_deref()), at("2026-03-01T12:30:05Z"));
        assert_eq!(event_at(&hub("push"), event.as_deref()), at("2026-03-01T12:30:05Z"));
        assert_eq!(event_at(&hub("workflow_dispatch"), event.as_deref()), None, "somebody's wish");
        assert_eq!(event_at(&hub("pull_request"), Some("{}")), None);
        let lab = [
            ("GITLAB_CI", "true"),
            ("CI_PIPELINE_CREATED_AT", "2026-03-01T12:00:00Z"),
            ("CI_JOB_STARTED_AT", "2026-03-01T12:10:00Z"),
        ];
        assert_eq!(event_at(&environment(&lab), None), at("2026-03-01T12:00:00Z"));
        for by_hand in [("CI_JOB_MANUAL", "true"), ("CI_ENVIRONMENT_ACTION", "stop")] {
            let started = [&lab[..], &[by_hand]].concat();
            assert_eq!(event_at(&environment(&started), None), at("2026-03-01T12:10:00Z"));
        }
        assert_eq!(event_at(&Environment::new(), None), None);
    }

    #[test]
    fn forks_are_refused_but_their_close_is_not() {
        let fork = || json!({"full_name": "mallory/Hello-World"});
        let Ok(Wish::Fork { wanted, fork: name }) = pull_request("opened", fork()) else { panic!("not a fork") };
        assert_eq!(
            (wanted.number, wanted.owner.as_deref(), name.as_str()),
            (2, Some("Codertocat"), "mallory/Hello-World")
        );
        assert!(matches!(pull_request("synchronize", Value::Null), Ok(Wish::Fork { .. })));
        assert_eq!(pull_request("closed", fork()), Ok(Wish::Destroy { number: 2 }));
    }

    #[test]
    fn merge_requests_of_gitlab() {
        let base = [
            ("GITLAB_CI", "true"),
            ("CI_MERGE_REQUEST_IID", "12"),
            ("CI_MERGE_REQUEST_SOURCE_PROJECT_ID", "1"),
            ("CI_MERGE_REQUEST_PROJECT_ID", "1"),
            ("CI_COMMIT_SHA", "abc"),
        ];
        assert!(matches!(wish(&environment(&base), None), Ok(Wish::Deploy(Wanted { number: 12, .. }))));
        let mut stop = base.to_vec();
        stop.push(("CI_ENVIRONMENT_ACTION", "stop"));
        assert_eq!(wish(&environment(&stop), None), Ok(Wish::Destroy { number: 12 }));
        let nightly = environment(&[("GITLAB_CI", "true"), ("CI_PIPELINE_SOURCE", "schedule")]);
        assert_eq!(wish(&nightly, None), Ok(Wish::Sweep));
        let mut fork = base.to_vec();
        fork[2].1 = "2";
        assert!(matches!(wish(&environment(&fork), None), Ok(Wish::Fork { wanted: Wanted { number: 12, .. }, .. })));
    }

    #[test]
    fn what_is_no_event_says_what_to_do() {
        assert!(wish(&Environment::new(), None).unwrap_err().contains("preview deploy"));
        let push = environment(&[("GITHUB_ACTIONS", "true"), ("GITHUB_EVENT_NAME", "push")]);
        assert!(wish(&push, Some("{}")).unwrap_err().contains("push"));
        assert!(wish(&push, Some("{")).unwrap_err().contains("JSON"));
    }
}
