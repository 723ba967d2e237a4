//! The API's documented answers, by a server that gives them.

use serde_json::json;
use wiremock::matchers::{body_partial_json, header, method, path, query_param};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::provision::{Action, provision};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0xX2l3bWZ0aGVrZXlvZmF0ZXN0MTIzNDU2Nzg5";

fn server(id: u64, name: &str) -> Value {
    json!({
        "id": id, "name": name, "status": "running", "created": "2026-01-01T00:00:00Z",
        "public_net": {"ipv4": {"ip": "203.0.113.7", "blocked": false}, "ipv6": {"ip": "2001:db8:1::/64", "blocked": false}},
        "server_type": {"name": "cx32"}, "labels": {},
    })
}

fn page(servers: &[Value], next: Option<u32>) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({
        "servers": servers,
        "meta": {"pagination": {"page": 1, "per_page": 50, "previous_page": null, "next_page": next, "last_page": 2, "total_entries": 2}},
    }))
}

fn problem(status: u16, code: &str, message: &str) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_json(json!({"error": {"code": code, "message": message, "details": {}}}))
}

fn action(status: &str, error: Value) -> Value {
    json!({"id": 42, "command": "create_server", "status": status, "progress": 50, "error": error})
}

fn order() -> Order {
    Order {
        name: "preview-vm".to_owned(),
        kind: "cx32".to_owned(),
        location: "fsn1".to_owned(),
        image: "debian-12".to_owned(),
        ssh_keys: vec!["ops".to_owned()],
        labels: [("preview".to_owned(), "vm".to_owned())].into(),
        user_data: Secret::new("#cloud-config\n# private-host-key\n".to_owned()),
    }
}

async fn api() -> (MockServer, Hetzner) {
    let server = MockServer::start().await;
    let mut api =
        Hetzner::new(&format!("{}/v1/", server.uri()), Secret::new("token-4711".to_owned())).expect("a client");
    api.pause = Duration::from_millis(5);
    (server, api)
}

async fn list(server: &MockServer, answer: ResponseTemplate) {
    Mock::given(method("GET")).and(path("/v1/servers")).respond_with(answer).mount(server).await;
}

async fn run(api: &Hetzner, dry_run: bool) -> Result<crate::provision::Provisioned, Fault> {
    provision(api, "preview*", "", &order(), KEY, dry_run, &|| {}).await
}

#[tokio::test]
async fn all_pages_are_read_and_the_one_that_fits_is_adopted() {
    let (server_, api) = api().await;
    let get = || Mock::given(method("GET")).and(path("/v1/servers")).and(header("authorization", "Bearer token-4711"));
    let selected = || get().and(query_param("label_selector", "team=a,preview"));
    selected()
        .and(query_param("page", "1"))
        .respond_with(page(&[server(1, "db")], Some(2)))
        .expect(1)
        .mount(&server_)
        .await;
    selected()
        .and(query_param("page", "2"))
        .respond_with(page(&[server(2, "preview-1")], None))
        .expect(1)
        .mount(&server_)
        .await;
    let done = provision(&api, "preview*", "team=a,preview", &order(), KEY, false, &|| {}).await.expect("adopted");
    assert_eq!((done.action, done.known_hosts), (Action::Adopted, None));
    let adopted = done.server.expect("one");
    assert_eq!((adopted.id.as_str(), adopted.address.as_deref()), ("2", Some("203.0.113.7")));
}

#[tokio::test]
async fn two_are_refused_by_name_and_nothing_is_made() {
    let (server_, api) = api().await;
    list(&server_, page(&[server(1, "preview-a"), server(2, "preview-b")], None)).await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(500)).expect(0).mount(&server_).await;
    let refused = run(&api, false).await.expect("an answer");
    assert_eq!((refused.action, refused.exit_code(), refused.server), (Action::Refused, 3, None));
    let names: Vec<&str> = refused.candidates.iter().map(|server| server.name.as_str()).collect();
    assert_eq!(names, ["preview-a", "preview-b"]);
}

#[tokio::test]
async fn none_is_made_and_waited_for() {
    let (server_, api) = api().await;
    list(&server_, page(&[], None)).await;
    let wanted = json!({
        "name": "preview-vm", "server_type": "cx32", "location": "fsn1", "image": "debian-12", "ssh_keys": ["ops"],
        "labels": {"preview": "vm"}, "user_data": "#cloud-config\n# private-host-key\n",
    });
    let made = json!({"server": server(7, "preview-vm"), "action": action("running", Value::Null), "next_actions": [action("running", Value::Null)], "root_password": null});
    Mock::given(method("POST"))
        .and(path("/v1/servers"))
        .and(body_partial_json(&wanted))
        .respond_with(ResponseTemplate::new(201).set_body_json(made))
        .expect(1)
        .mount(&server_)
        .await;
    let look = || Mock::given(method("GET")).and(path("/v1/actions/42"));
    let answer =
        |status: &str| ResponseTemplate::new(200).set_body_json(json!({"action": action(status, Value::Null)}));
    look().respond_with(answer("running")).up_to_n_times(2).expect(2).mount(&server_).await;
    look().respond_with(answer("success")).expect(2).mount(&server_).await;
    Mock::given(method("GET"))
        .and(path("/v1/servers/7"))
        .respond_with(ResponseTemplate::new(200).set_body_json(json!({"server": server(7, "preview-vm")})))
        .mount(&server_)
        .await;

    let looked = run(&api, true).await.expect("a look");
    assert_eq!((looked.action, looked.server), (Action::WouldCreate, None));
    let done = run(&api, false).await.expect("made");
    assert_eq!(done.action, Action::Created);
    assert_eq!(done.known_hosts, Some(format!("203.0.113.7 {KEY}")));
}

#[tokio::test]
async fn what_is_ordered_is_told_first_and_not_lost_sight_of() {
    let (server_, api) = api().await;
    list(&server_, page(&[], None)).await;
    let made = json!({"server": server(7, "preview-vm"), "action": action("running", Value::Null), "next_actions": []});
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(201).set_body_json(made)).mount(&server_).await;
    for (at, answer) in [
        ("/v1/actions/42", json!({"action": action("success", Value::Null)})),
        ("/v1/servers/7", json!({"server": server(7, "preview-vm")})),
    ] {
        let look = || Mock::given(method("GET")).and(path(at));
        look().respond_with(ResponseTemplate::new(502)).up_to_n_times(2).expect(2).mount(&server_).await;
        look().respond_with(ResponseTemplate::new(200).set_body_json(answer)).expect(1).mount(&server_).await;
    }
    assert_eq!(run(&api, false).await.expect("made").action, Action::Created);

    // Where no answer comes back, the key was told all the same; a look tells nothing.
    let (server_, api) = self::api().await;
    list(&server_, page(&[], None)).await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(502)).mount(&server_).await;
    let told = std::sync::atomic::AtomicU32::new(0);
    let count = || {
        told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    for (dry_run, expected) in [(true, 0), (false, 1)] {
        let done = provision(&api, "preview*", "", &order(), KEY, dry_run, &count).await;
        assert_eq!((done.is_ok(), told.load(std::sync::atomic::Ordering::Relaxed)), (dry_run, expected));
    }
}

#[tokio::test]
async fn a_server_that_goes_is_none_and_one_that_nobody_could_enter_is_not_made() {
    let (server_, api) = api().await;
    let mut gone = server(1, "preview-old");
    gone["status"] = "deleting".into();
    list(&server_, page(&[gone], None)).await;
    assert_eq!(run(&api, true).await.expect("a look").action, Action::WouldCreate);
    let keyless = Order { ssh_keys: Vec::new(), ..order() };
    let fault = provision(&api, "preview*", "", &keyless, KEY, false, &|| {}).await.expect_err("refused");
    assert_eq!(fault.kind, FaultKind::Invalid);
    assert!(fault.context.contains("--ssh-key"), "{}", fault.context);
}

#[tokio::test]
async fn an_action_that_fails_is_told_in_the_providers_words() {
    let (server_, api) = api().await;
    list(&server_, page(&[], None)).await;
    let failed = action("error", json!({"code": "resource_unavailable", "message": "no machine of this kind is free"}));
    let made = json!({"server": server(7, "preview-vm"), "action": failed, "next_actions": []});
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(201).set_body_json(made)).mount(&server_).await;
    let fault = run(&api, false).await.expect_err("failed");
    assert_eq!(fault.kind, FaultKind::Failed);
    assert!(fault.context.contains("no machine of this kind is free (resource_unavailable)"), "{}", fault.context);
}

#[tokio::test]
async fn refusals_by_their_code() {
    for (status, code, kind, said) in [
        (401, "unauthorized", FaultKind::Denied, "HCLOUD_TOKEN"),
        (403, "forbidden", FaultKind::Denied, "for reading and writing"),
        (409, "uniqueness_error", FaultKind::Conflict, "to take that one"),
        (422, "invalid_input", FaultKind::Invalid, "the message"),
        (403, "resource_limit_exceeded", FaultKind::Failed, "the message"),
        (412, "resource_unavailable", FaultKind::Failed, "the message"),
        (423, "locked", FaultKind::Failed, "the message"),
    ] {
        let (server_, api) = api().await;
        list(&server_, page(&[], None)).await;
        Mock::given(method("POST")).respond_with(problem(status, code, "the message")).mount(&server_).await;
        let fault = run(&api, false).await.expect_err(code);
        assert_eq!((fault.kind, fault.transient), (kind, code == "locked"), "{code}");
        let told = fault.chain();
        assert!(told.contains(said) && told.contains(code), "{told}");
        assert!(!told.contains("token-4711") && !told.contains("private-host-key"), "{told}");
    }
}

#[tokio::test]
async fn too_many_requests_are_asked_again() {
    let (server_, api) = api().await;
    let get = || Mock::given(method("GET")).and(path("/v1/servers"));
    get()
        .respond_with(problem(429, "rate_limit_exceeded", "limit reached"))
        .up_to_n_times(3)
        .expect(3)
        .mount(&server_)
        .await;
    get().respond_with(page(&[server(1, "preview-a")], None)).expect(1).mount(&server_).await;
    assert_eq!(run(&api, false).await.expect("adopted").action, Action::Adopted);
}

#[tokio::test]
async fn pages_of_a_gateway_and_silence_are_no_answers() {
    let (server_, api) = api().await;
    list(&server_, ResponseTemplate::new(502).set_body_string("<html>bad gateway</html>")).await;
    let fault = run(&api, false).await.expect_err("no answer");
    assert_eq!((fault.kind, fault.transient), (FaultKind::Unreachable, true));
    assert!(fault.context.contains("HTTP 502"), "{}", fault.context);

    let (server_, api) = self::api().await;
    list(&server_, ResponseTemplate::new(200).set_body_string("[]")).await;
    assert_eq!(run(&api, false).await.expect_err("not understood").kind, FaultKind::Failed);
}

#[tokio::test]
async fn a_name_that_its_own_pattern_would_miss_is_refused() {
    let (server_, api) = api().await;
    list(&server_, page(&[], None)).await;
    let fault = provision(&api, "vm-*", "", &order(), KEY, false, &|| {}).await.expect_err("refused");
    assert_eq!(fault.kind, FaultKind::Invalid);
}

#[test]
fn a_server_without_ipv4_has_the_first_address_of_its_network() {
    let found: Found = serde_json::from_value(json!({
        "id": 1, "name": "a", "status": "running", "public_net": {"ipv4": null, "ipv6": {"ip": "2001:db8:1::/64"}},
    }))
    .expect("sound");
    assert_eq!(Server::from(found).address.as_deref(), Some("2001:db8:1::1"));
}
