//! Cloudflare's API as it is documented, as far as we use it, with a memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

pub(crate) const TOKEN: &str = "cloudflare-test-token";
pub(crate) const ZONE: &str = "023e105f4ecef8ad9ca31a8372d0c353";

pub(crate) const ACCOUNT: &str = "699d98642c564d2e855e9661899b7252";
pub(crate) const TUNNEL: &str = "f70ff985-a4ef-4643-bbbc-4a0ed4fc8415";
const CONFIGURATIONS: &str =
    "/accounts/699d98642c564d2e855e9661899b7252/cfd_tunnel/f70ff985-a4ef-4643-bbbc-4a0ed4fc8415/configurations";

/// What the fake remembers.
#[derive(Default)]
pub(crate) struct Memory {
    /// Records by id.
    pub(crate) records: BTreeMap<String, Value>,
    /// The zone holds at most so many.
    pub(crate) limit: Option<usize>,
    /// Answers that come before any other: status, code of the error, `Retry-After`.
    pub(crate) next: VecDeque<(u16, u32, Option<u64>)>,
    /// Method and path of each request.
    pub(crate) calls: Vec<String>,
    /// What lists say that there is in all, whatever the filter.
    pub(crate) total: Option<usize>,
    /// Pages of records are no longer than that, whatever is asked for.
    pub(crate) page: Option<usize>,
    /// The tunnel's configuration.
    pub(crate) tunnel: Value,
    made: usize,
}

/// The server.
pub(crate) struct Fake {
    server: MockServer,
    memory: Arc<Mutex<Memory>>,
}

struct Responder(Arc<Mutex<Memory>>);

impl Fake {
    pub(crate) async fn start() -> Self {
        let (server, memory) = (MockServer::start().await, Arc::new(Mutex::new(Memory::default())));
        Mock::given(any()).respond_with(Responder(memory.clone())).mount(&server).await;
        Self { server, memory }
    }

    pub(crate) fn url(&self) -> String {
        self.server.uri()
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("whole")
    }

    pub(crate) fn put(&self, kind: &str, host: &str, content: &str, comment: Option<&str>) {
        self.memory().add(
            json!({"type": kind, "name": host, "content": content, "ttl": 300, "proxied": false, "comment": comment}),
        );
    }

    /// What the address records of a host say.
    pub(crate) fn look(&self, host: &str) -> Vec<String> {
        let memory = self.memory();
        let of_host = memory.records.values().filter(|record| record["name"] == host && leads(record));
        of_host.map(|record| record["content"].as_str().expect("text").to_owned()).collect()
    }
}

fn leads(record: &Value) -> bool {
    matches!(record["type"].as_str(), Some("A" | "AAAA" | "CNAME"))
}

fn error(status: u16, code: u32, message: &str) -> ResponseTemplate {
    let body =
        json!({"success": false, "errors": [{"code": code, "message": message}], "messages": [], "result": null});
    ResponseTemplate::new(status).set_body_json(body)
}

fn success(result: &Value) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({"success": true, "errors": [], "messages": [], "result": result}))
}

impl Memory {
    fn add(&mut self, mut record: Value) {
        self.made += 1;
        let id = format!("{:032x}", self.made);
        record["id"] = json!(id);
        self.records.insert(id, record);
    }

    /// Whether a record may come; the codes are those of Cloudflare.
    fn refusal(&self, record: &Value) -> Option<ResponseTemplate> {
        let same_name = |other: &&Value| other["name"] == record["name"];
        let mut others = self.records.values().filter(same_name);
        if others.clone().any(|other| other["type"] == record["type"] && other["content"] == record["content"]) {
            return Some(error(400, 81058, "An identical record already exists."));
        }
        if leads(record) && others.any(|other| leads(other) && (other["type"] == "CNAME" || record["type"] == "CNAME"))
        {
            return Some(error(400, 81053, "An A, AAAA, or CNAME record with that host already exists."));
        }
        if self.limit.is_some_and(|limit| self.records.len() >= limit) {
            return Some(error(400, 81045, "Record quota exceeded."));
        }
        None
    }

    /// All of a batch or nothing, in the documented order.
    fn batch(&mut self, body: &Value) -> ResponseTemplate {
        let before = self.records.clone();
        let done = self.try_batch(body);
        done.unwrap_or_else(|refused| {
            self.records = before;
            *refused
        })
    }

    fn try_batch(&mut self, body: &Value) -> Result<ResponseTemplate, Box<ResponseTemplate>> {
        let list = |key: &str| body[key].as_array().cloned().unwrap_or_default();
        for delete in list("deletes") {
            let id = delete["id"].as_str().unwrap_or_default();
            self.records.remove(id).ok_or_else(|| error(404, 81044, "Record does not exist."))?;
        }
        for patch in list("patches") {
            let id = patch["id"].as_str().unwrap_or_default();
            let record = self.records.get_mut(id).ok_or_else(|| error(404, 81044, "Record does not exist."))?;
            for (key, value) in patch.as_object().into_iter().flatten() {
                record[key] = value.clone();
            }
        }
        for post in list("posts") {
            assert!(post["comment"].as_str().is_some_and(|comment| comment.len() <= 100), "{post}");
            if let Some(refused) = self.refusal(&post) {
                return Err(Box::new(refused));
            }
            self.add(post);
        }
        Ok(success(&json!({"deletes": [], "patches": [], "posts": []})))
    }

    fn list(&self, query: &BTreeMap<String, String>) -> ResponseTemplate {
        let is = |record: &Value, key: &str, test: &dyn Fn(&str, &str) -> bool, field: &str| {
            query.get(key).is_none_or(|wanted| record[field].as_str().is_some_and(|value| test(value, wanted)))
        };
        let found: Vec<&Value> = self
            .records
            .values()
            .filter(|record| {
                is(record, "name.exact", &|value, wanted| value == wanted, "name")
                    && is(record, "comment.exact", &|value, wanted| value == wanted, "comment")
                    && is(record, "comment.startswith", &|value, wanted| value.starts_with(wanted), "comment")
            })
            .collect();
        let number = |key: &str, default| query.get(key).and_then(|text| text.parse().ok()).unwrap_or(default);
        let (page, size): (usize, usize) = (number("page", 1), number("per_page", 20));
        let size = self.page.map_or(size, |largest| size.min(largest));
        let total = self.total.unwrap_or(found.len());
        let some: Vec<&&Value> = found.iter().skip((page - 1) * size).take(size).collect();
        let info = json!({"page": page, "per_page": size, "count": some.len(), "total_count": total});
        let body = json!({"success": true, "errors": [], "messages": [], "result": some, "result_info": info});
        ResponseTemplate::new(200).set_body_json(body)
    }
}

impl Respond for Responder {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let mut memory = self.0.lock().expect("whole");
        let path = request.url.path().to_owned();
        memory.calls.push(format!("{} {path}", request.method));
        if let Some((status, code, wait)) = memory.next.pop_front() {
            let answer = error(status, code, "More requests than you may make, or another trouble.");
            return match wait {
                Some(seconds) => answer.insert_header("retry-after", seconds.to_string()),
                None => answer,
            };
        }
        let token = request.headers.get("authorization").and_then(|value| value.to_str().ok());
        if token != Some(&format!("Bearer {TOKEN}")) {
            return error(403, 9109, "Invalid access token");
        }
        let query: BTreeMap<String, String> = request.url.query_pairs().into_owned().collect();
        let records = format!("/zones/{ZONE}/dns_records");
        // The largest pages that the documentation allows.
        let largest = match path.as_str() {
            "/zones" => 50,
            path if path == records => 5_000_000,
            _ => usize::MAX,
        };
        let size = query.get("per_page").map(|text| text.parse::<usize>());
        if size.is_some_and(|size| !size.is_ok_and(|size| (1..=largest).contains(&size))) {
            return error(400, 1004, "DNS Validation Error: per_page is out of range.");
        }
        match (request.method.as_str(), path.as_str()) {
            ("GET", "/zones") => {
                let found = if query.get("name").is_some_and(|name| name == "example.com") {
                    let moved = json!({"id": "0", "name": "example.com", "status": "moved"});
                    json!([moved, {"id": ZONE, "name": "example.com", "status": "active"}])
                } else {
                    json!([])
                };
                success(&found)
            }
            ("GET", path) if path == records => memory.list(&query),
            ("POST", path) if path == format!("{records}/batch") => {
                memory.batch(&request.body_json().expect("a JSON body"))
            }
            ("GET", path) if path == CONFIGURATIONS => {
                // Long enough for two that read at once to write at once.
                let found = json!({"tunnel_id": TUNNEL, "version": 1, "config": memory.tunnel});
                success(&found).set_delay(std::time::Duration::from_millis(30))
            }
            ("PUT", path) if path == CONFIGURATIONS => {
                let body: Value = request.body_json().expect("a JSON body");
                let rules = body["config"]["ingress"].as_array().expect("rules");
                let last = rules.last().expect("a last rule");
                if last["hostname"].as_str().is_some_and(|name| !name.is_empty()) {
                    return error(400, 1056, "Bad Configuration: The last ingress rule must match all URLs.");
                }
                memory.tunnel = body["config"].clone();
                success(&json!({"tunnel_id": TUNNEL, "version": 2, "config": memory.tunnel}))
            }
            _ => error(404, 7003, "Could not route to that path, perhaps your object identifier is invalid?"),
        }
    }
}
