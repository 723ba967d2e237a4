//! The adapters against the documented answers of the forges' APIs.

use serde_json::{Value, json};
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::{Forge, GitHub, GitLab, PullState};
use crate::fault::FaultKind;
use crate::secret::Secret;
use crate::testkit::conformance::forge::{Facts, suite};

const FACTS: Facts<'static> =
    Facts { repository: "acme/shop", open: 7, closed: 8, absent: 9, branch: "feature/x", hidden: "acme/hidden" };

fn token() -> Secret<String> {
    Secret::new("planted-token".to_owned())
}

/// Answers for those who show the token; wiremock says 404 to everything else, as forges do.
async fn serve(header_name: &'static str, value: &'static str, answers: &[(&str, Value)]) -> MockServer {
    let server = MockServer::start().await;
    for (at, body) in answers {
        let answer = ResponseTemplate::new(200).set_body_json(body);
        Mock::given(method("GET"))
            .and(path(*at))
            .and(header(header_name, value))
            .respond_with(answer)
            .mount(&server)
            .await;
    }
    server
}

#[tokio::test]
async fn github() {
    let answers = [
        ("/repos/acme/shop", json!({"full_name": "acme/shop", "default_branch": "main", "private": true})),
        ("/repos/acme/shop/pulls/7", json!({"number": 7, "state": "open", "draft": false})),
        ("/repos/acme/shop/pulls/8", json!({"number": 8, "state": "closed", "merged": true})),
        ("/repos/acme/shop/branches/main", json!({"name": "main"})),
        ("/repos/acme/shop/branches/feature%2Fx", json!({"name": "feature/x"})),
    ];
    let server = serve("authorization", "Bearer planted-token", &answers).await;
    let forge = GitHub::new(&server.uri(), Some(&token())).unwrap();
    suite(&forge, &FACTS).await;
    let renamed = ResponseTemplate::new(301).set_body_json(json!({"message": "Moved Permanently", "url": "https://x"}));
    Mock::given(path("/repos/acme/shop/branches/master")).respond_with(renamed).mount(&server).await;
    assert!(!forge.branch_exists("acme/shop", "master").await.unwrap(), "there is none of this name any more");
    // Without the token nothing can be seen, and nothing is said to be gone.
    let blind = GitHub::new(&server.uri(), None).unwrap();
    let fault = blind.pull_state("acme/shop", 8).await.unwrap_err();
    assert!(fault.kind == FaultKind::Denied && fault.chain().contains("pull-requests: read"), "{}", fault.chain());
}

#[tokio::test]
async fn gitlab() {
    let answers = [
        ("/api/v4/projects/acme%2Fshop", json!({"path_with_namespace": "acme/shop", "default_branch": "main"})),
        ("/api/v4/projects/acme%2Fshop/merge_requests/7", json!({"iid": 7, "state": "opened"})),
        ("/api/v4/projects/acme%2Fshop/merge_requests/8", json!({"iid": 8, "state": "merged"})),
        ("/api/v4/projects/acme%2Fshop/repository/branches/main", json!({"name": "main"})),
        ("/api/v4/projects/acme%2Fshop/repository/branches/feature%2Fx", json!({"name": "feature/x"})),
    ];
    let server = serve("private-token", "planted-token", &answers).await;
    suite(&GitLab::new(&format!("{}/api/v4/", server.uri()), Some(&token())).unwrap(), &FACTS).await;
}

/// A token that may see the repository and not its branches.
#[tokio::test]
async fn nothing_is_gone_where_not_all_can_be_seen() {
    let answers = [("/repos/acme/shop", json!({"default_branch": "main"}))];
    let server = serve("authorization", "Bearer planted-token", &answers).await;
    let forge = GitHub::new(&server.uri(), Some(&token())).unwrap();
    assert_eq!(forge.branch_exists("acme/shop", "x").await.unwrap_err().kind, FaultKind::Denied);
}

#[tokio::test]
async fn refusals_say_why_and_never_the_token() {
    let forbidden = json!({"message": "Resource not accessible by integration", "status": "403"});
    let spent = json!({"message": "API rate limit exceeded for installation."});
    for (answer, kind, words) in [
        (
            ResponseTemplate::new(403).set_body_json(&forbidden),
            FaultKind::Denied,
            "not accessible by integration; GITHUB_TOKEN",
        ),
        (
            ResponseTemplate::new(401).set_body_json(json!({"message": "Bad credentials"})),
            FaultKind::Denied,
            "Bad credentials",
        ),
        (
            ResponseTemplate::new(403).insert_header("x-ratelimit-remaining", "0").set_body_json(&spent),
            FaultKind::Failed,
            "asked too often: API rate limit",
        ),
        (
            ResponseTemplate::new(301).insert_header("location", "https://elsewhere.example"),
            FaultKind::Conflict,
            "was it renamed?",
        ),
        (ResponseTemplate::new(200).set_body_string("<html>"), FaultKind::Failed, "HTTP 200"),
    ] {
        let server = MockServer::start().await;
        Mock::given(method("GET")).respond_with(answer).expect(1).mount(&server).await;
        let fault = GitHub::new(&server.uri(), Some(&token())).unwrap().pull_state("acme/shop", 7).await.unwrap_err();
        assert!(fault.kind == kind && fault.chain().contains(words), "{}", fault.chain());
        assert!(!format!("{fault:?}").contains("planted"), "{fault:?}");
    }
    assert!(GitHub::new("http://x", Some(&Secret::new("a\nb".to_owned()))).is_err());
}

#[tokio::test]
async fn a_moment_of_trouble_is_asked_again() {
    let server = MockServer::start().await;
    Mock::given(method("GET")).respond_with(ResponseTemplate::new(502)).up_to_n_times(1).mount(&server).await;
    let closed = ResponseTemplate::new(200).set_body_json(json!({"state": "closed"}));
    Mock::given(method("GET")).respond_with(closed).mount(&server).await;
    let forge = GitHub::new(&server.uri(), None).unwrap();
    assert_eq!(forge.pull_state("acme/shop", 7).await.unwrap(), PullState::Closed);
}
