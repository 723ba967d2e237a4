//! Tests of names: the faults of earlier designs, git's rules, and properties.

use proptest::prelude::*;

use super::*;

fn naming(app: &str, name: Option<&str>, urls: &[&str]) -> Result<Naming, NameError> {
    let urls = urls.iter().map(|url| UrlTemplate::parse(url)).collect::<Result<Vec<_>, _>>()?;
    Naming::new(&AppName::parse(app)?, name.map(NameTemplate::parse).transpose()?.as_ref(), &urls)
}

fn branch(naming: &Naming, branch: &str) -> Named {
    naming.resolve(&Key::branch(branch).unwrap()).unwrap()
}

#[test]
fn branches_by_the_rules_of_git() {
    for good in [
        "main",
        "feature/x",
        "Fix#12",
        "a@b",
        "@",
        "a/@",
        "a{b",
        "a'b",
        "a\"b",
        "a;id",
        "$(id)",
        "`id`",
        "a&b",
        "a|b",
        "a>b",
        "ünï/côdé",
        "機能",
        "🚀",
        "a.b",
        "x.locks",
        "a-",
        "refs/heads/x",
        "%2e%2e",
        "!",
    ] {
        assert!(Branch::parse(good).is_ok(), "{good}: {:?}", Branch::parse(good));
    }
    let long = "x".repeat(256);
    for (bad, why) in [
        ("", "empty"),
        ("HEAD", "HEAD"),
        ("-x", "options"),
        ("a b", "space"),
        ("a\nb", "control"),
        ("a\u{7f}", "control"),
        ("a\u{9b}31m", "control"),
        ("a\0", "control"),
        ("a~1", "~"),
        ("a^", "^"),
        ("a:b", ":"),
        ("a?", "?"),
        ("a*", "*"),
        ("a[b", "["),
        ("a\\b", "\\"),
        ("a..b", "`..`"),
        ("a@{1", "`@{`"),
        ("a.", "ends with `.`"),
        ("/a", "`/`"),
        ("a/", "`/`"),
        ("a//b", "`//`"),
        (".a", "starts with `.`"),
        ("a/.b", "starts with `.`"),
        ("a.lock", ".lock"),
        ("a.lock/b", ".lock"),
        (&long, "255"),
    ] {
        let error = Branch::parse(bad).unwrap_err().to_string();
        assert!(error.contains(why), "{bad:?}: {error}");
        assert!(!error.contains(['\n', '\0', '\u{7f}', '\u{9b}']), "{error:?}");
        assert!(error.len() < 200, "{error}");
    }
}

#[test]
fn slugs() {
    for (branch, limit, expected) in [
        ("main", 63, "main"),
        ("Feature/New_Thing", 63, "feature-new-thing"),
        ("feature/JIRA-12--x", 63, "feature-jira-12-x"),
        ("__x__", 63, "x"),
        ("a.b", 63, "ab"),
        ("$(rm)'\";&x", 63, "rmx"),
        ("ünï", 63, "n"),
        ("feature/a-rather-long-branch", 20, "feature-a-r-cd304caf"),
        // The cut falls on a dash: it is trimmed.
        ("feature/a-rather-long-branch", 19, "feature-a-cd304caf"),
        ("exactly-10", 10, "exactly-10"),
    ] {
        assert_eq!(slug(branch, limit), expected, "{branch}");
    }
}

#[test]
fn fault_a_label_is_at_most_63_with_its_prefix() {
    let naming = naming("s", None, &["https://preview-{slug}-api.example.com"]).unwrap();
    let named = branch(&naming, &"x".repeat(200));
    let label = named.urls[0].host().split('.').next().unwrap();
    assert_eq!(label.len(), 63);
    assert!(named.project.len() <= 63);
}

#[test]
fn fault_two_branches_with_one_slug_have_different_keys() {
    let naming = naming("shop", None, &[]).unwrap();
    assert_eq!(branch(&naming, "feature/x"), branch(&naming, "feature-x"));
    assert_ne!(Key::branch("feature/x").unwrap(), Key::branch("feature-x").unwrap());
}

#[test]
fn fault_a_branch_without_a_usable_character_has_a_slug() {
    assert_eq!(slug("機能", 63), "e5b8788a");
    assert_eq!(slug("---", 63).len(), 8);
}

#[test]
fn fault_pull_request_42_of_two_repositories() {
    let key = Key::pull(42).unwrap();
    let (a, b) = (naming("shop", None, &[]).unwrap(), naming("blog", None, &[]).unwrap());
    assert_ne!(a.resolve(&key).unwrap().project, b.resolve(&key).unwrap().project);
}

#[test]
fn a_branch_cannot_take_the_name_of_a_pull_request() {
    let naming = naming("shop", Some("{slug}"), &[]).unwrap();
    assert_eq!(naming.resolve(&Key::pull(7).unwrap()).unwrap().name.as_str(), "pr-7");
    assert_eq!(branch(&naming, "pr-7").name.as_str(), "pr-7-107cc1ad");
    assert_eq!(branch(&naming, "pr-7a").name.as_str(), "pr-7a");
    let naming = super::tests::naming("shop", Some("preview-{number}"), &[]).unwrap();
    assert_ne!(branch(&naming, "12").name.as_str(), "preview-12");
}

#[test]
fn templates_of_either_kind_leave_the_other_its_default() {
    let pulls = naming("shop", Some("{app}-{number}"), &["https://example.com/{name}"]).unwrap();
    assert_eq!(pulls.resolve(&Key::pull(7).unwrap()).unwrap().urls[0].to_string(), "https://example.com/shop-7");
    assert_eq!(branch(&pulls, "main").name.as_str(), "preview-main");
    let branches = naming("shop", Some("b-{slug}"), &[]).unwrap();
    assert_eq!(branches.resolve(&Key::pull(7).unwrap()).unwrap().name.as_str(), "pr-7");
    assert_eq!(branch(&branches, "main").name.as_str(), "b-main");
}

#[test]
fn urls() {
    let service =
        UrlTemplate::parse("http://{name}-{service}.{app}.localhost:8080/").unwrap().with_service("My_api").unwrap();
    let naming = Naming::new(&AppName::parse("shop").unwrap(), None, &[service]).unwrap();
    let url = naming.resolve(&Key::pull(7).unwrap()).unwrap().urls.remove(0);
    assert_eq!(url.to_string(), "http://pr-7-my-api.shop.localhost:8080");
    assert_eq!(
        (url.host(), url.port(), url.path(), url.is_https()),
        ("pr-7-my-api.shop.localhost", Some(8080), "", false)
    );

    for (bad, why) in [
        ("{name}.example.com", "starts with"),
        ("ftp://{name}.x", "scheme"),
        ("https://example.com", "share one address"),
        ("https://u:p@{name}.x", "user"),
        ("https://{name}.x/?a=b", "`?`"),
        ("https://{name}.x:0", "port"),
        ("https://{name}..x", "empty"),
        ("https:///{name}", "host"),
        ("https://-{name}.x", "starts or ends"),
        ("https://{name}_x.y", "something else"),
        ("https://{nme}.x", "unknown placeholder `{nme}`"),
        ("https://{name.x", "`{` without"),
        ("https://name}.x", "`}` without"),
        ("https://x/{name}/`) || Host(`y", "the path holds"),
        ("https://x/../{name}", "dots"),
        ("https://x//{name}", "//"),
    ] {
        let error = UrlTemplate::parse(bad).unwrap_err().to_string();
        assert!(error.contains(why), "{bad}: {error}");
    }
    assert!(matches!(super::tests::naming("a", None, &["https://x/{name}"; 2]), Err(NameError::SameUrl { .. })));
    let error = super::tests::naming("a", None, &["https://x/{service}/{name}"]).unwrap_err().to_string();
    assert!(error.contains("there is none"), "{error}");
}

#[test]
fn templates_for_one_kind_do_not_serve_the_other() {
    let naming = naming("shop", None, &["https://pr{number}.x.y"]).unwrap();
    let error = naming.resolve(&Key::branch("main").unwrap()).unwrap_err().to_string();
    assert_eq!(
        error,
        "template `https://pr{number}.x.y` cannot be used for branch main, which has no {number}; {name} works for all"
    );
}

#[test]
fn templates_that_cannot_work() {
    for (template, why) in [
        ("preview", "share one name"),
        ("", "empty"),
        ("{app}", "share one name"),
        ("{number}-{slug}", "exclude"),
        ("pr-{number}-", "starts or ends"),
        ("PR-{number}", "something else"),
        ("{name}", "made of"),
    ] {
        let error = NameTemplate::parse(template).unwrap_err().to_string();
        assert!(error.contains(why), "{template}: {error}");
    }
    let long = format!("{}-{{slug}}", "x".repeat(55));
    assert!(matches!(naming("a", Some(&long), &[]), Err(NameError::NoRoom { .. })));
    let long = format!("https://{{name}}.{}.example.com", "x".repeat(64));
    assert!(matches!(naming("a", None, &[&long]), Err(NameError::TooLong { .. })));
    let long = format!("https://{{name}}.{}com", "long-enough.".repeat(20));
    assert!(matches!(naming("a", None, &[&long]), Err(NameError::NoRoom { .. } | NameError::TooLong { .. })));
}

#[test]
fn numbers_are_long_only_in_theory() {
    let naming = naming(&"a".repeat(40), None, &["https://{app}-{name}.x.y"]).unwrap();
    assert!(naming.resolve(&Key::pull(1_234_567_890).unwrap()).is_ok());
    assert!(matches!(naming.resolve(&Key::pull(u64::MAX).unwrap()), Err(NameError::NoRoom { .. })));
    assert_eq!(Key::pull(0), Err(NameError::PullNumber));
}

#[test]
fn application_names() {
    for (from, expected) in [
        ("acme/Shop", "acme-shop"),
        ("my_app", "my-app"),
        ("機能", "app"),
        ("", "app"),
        ("queue", "app-queue"),
        ("--x--", "x"),
    ] {
        assert_eq!(AppName::derive(from).as_str(), expected);
    }
    for bad in ["", "Shop", "a_b", "-a", "a-", "a.b", "queue", "tombstones", &"a".repeat(41)] {
        assert!(AppName::parse(bad).is_err(), "{bad}");
    }
    for bad in ["", "..", "a/b", ".lock", "a\nb", &"a".repeat(64)] {
        assert!(PreviewName::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn keys_survive_a_state_file() {
    for (key, json) in
        [(Key::pull(7).unwrap(), r#"{"pull":7}"#), (Key::branch("a\"b").unwrap(), r#"{"branch":"a\"b"}"#)]
    {
        assert_eq!(serde_json::to_string(&key).unwrap(), json);
        assert_eq!(serde_json::from_str::<Key>(json).unwrap(), key);
    }
    assert!(serde_json::from_str::<Key>(r#"{"pull":0}"#).is_err());
    assert!(serde_json::from_str::<Key>(r#"{"branch":"a b"}"#).is_err());
}

fn legal(label: &str, limit: usize) -> bool {
    !label.is_empty()
        && label.len() <= limit
        && !label.starts_with('-')
        && !label.ends_with('-')
        && !label.contains("--")
        && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

proptest! {
    #[test]
    fn any_branch_has_a_legal_slug(text in "\\PC{1,80}|[a-zA-Z0-9/_.-]{1,255}", limit in MIN_SLUG..=MAX_LABEL) {
        if let Ok(branch) = Branch::parse(&text) {
            prop_assert!(legal(&slug(branch.as_str(), limit), limit));
        }
    }

    #[test]
    fn a_slug_that_fits_is_its_own_slug(text in "\\PC{1,80}", limit in MIN_SLUG..=MAX_LABEL) {
        let once = slug(&text, limit);
        prop_assert_eq!(slug(&once, limit), once);
    }

    #[test]
    fn long_branches_with_one_beginning_differ(prefix in "[a-z]{63}", a in "[a-z0-9]{1,20}", b in "[a-z0-9]{1,20}") {
        prop_assume!(a != b);
        prop_assert_ne!(slug(&format!("{prefix}{a}"), 63), slug(&format!("{prefix}{b}"), 63));
    }

    #[test]
    fn labels_of_resolved_addresses_fit(
        text in "[a-zA-Z0-9/_.-]{1,255}|\\PC{1,60}",
        app in "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?",
        before in "[a-z]{0,30}", after in "[a-z]{0,30}", in_label in any::<bool>(),
    ) {
        let Ok(app) = AppName::parse(&app) else { return Ok(()) };
        let hole = if in_label { "{name}" } else { "{slug}" };
        let url = UrlTemplate::parse(&format!("https://{before}{hole}{after}.example.com/x/{{name}}")).unwrap();
        let (Ok(naming), Ok(key)) = (Naming::new(&app, None, &[url]), Key::branch(&text)) else { return Ok(()) };
        let named = naming.resolve(&key).unwrap();
        prop_assert!(legal(named.name.as_str(), MAX_LABEL));
        prop_assert!(named.project.len() <= MAX_LABEL);
        for label in named.urls[0].host().split('.') {
            prop_assert!(legal(label, MAX_LABEL), "{}", label);
        }
    }

    #[test]
    fn projects_of_different_previews_differ(
        a in "[a-c]([a-c-]{0,3}[a-c])?", b in "[a-c]([a-c-]{0,3}[a-c])?",
        x in "[a-c]([a-c-]{0,3}[a-c])?", y in "[a-c]([a-c-]{0,3}[a-c])?",
    ) {
        let project = |app: &str, name: &str| project_name(&AppName::parse(app).unwrap(), &PreviewName::parse(name).unwrap());
        prop_assert_eq!(project(&a, &x) == project(&b, &y), (&a, &x) == (&b, &y));
    }

    #[test]
    fn derived_applications_are_legal(text in "\\PC{0,100}") {
        let app = AppName::derive(&text);
        prop_assert_eq!(AppName::parse(app.as_str()), Ok(app));
    }

    #[test]
    fn no_branch_is_named_like_a_pull_request(number in 1u64..100_000, sign in "[!%$]{0,3}") {
        let naming = naming("shop", Some("{slug}"), &[]).unwrap();
        let named = branch(&naming, &format!("PR-{sign}{number}"));
        prop_assert_ne!(named.name, naming.resolve(&Key::pull(number).unwrap()).unwrap().name);
    }
}
