//! An update while a client asks the preview every 20 ms, each time on a new connection.

use std::time::Duration;

use crate::lane::Lane;

/// A service that ends as a server should: it takes no more connections, and answers those that it has. And one that no update concerns.
pub const BUSY: &str = r#"
services:
  web:
    image: preview-lab/ways
    command: ["ways", "http", "8080", "one"]
    healthcheck: {test: ["CMD", "curl", "-sf", "http://127.0.0.1:8080/"], interval: 1s, retries: 30}
  cache:
    image: busybox:1.36
    command: ["sh", "-c", "trap exit TERM; while :; do sleep 1; done"]
"#;

/// What the client saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Requests.
    pub asked: u32,
    /// Those that failed, or had another answer than 200.
    pub failed: u32,
    /// The longest time between two good answers, milliseconds.
    pub gap: u32,
    /// How they failed.
    pub how: String,
}

/// Deploys [`BUSY`] as pull request 7, and updates its service while the client asks for so many seconds.
///
/// # Panics
/// If a deploy fails, or is not what was asked for.
#[must_use]
pub fn update(lane: &Lane, way: &str, seconds: u32) -> Seen {
    let site = &lane.site;
    let route = "[[route]]\nservice = \"web\"\nport = 8080\nurl = \"https://{name}.preview.test\"\n";
    site.write("preview.toml", &format!("{}{route}update = \"{way}\"\n", lane.table()));
    site.write("compose.yml", BUSY);
    site.deploy("7").expect(0);
    let _ = lane.until("https://pr-7.preview.test/", 200);
    let old = site.containers("pr-7");
    let seen = hammer(lane, seconds, || {
        site.write("compose.yml", &BUSY.replace("\"one\"", "\"two\""));
        let done = site.deploy("7").expect(0).json();
        assert_eq!(done["services"]["web"]["change"], "recreate", "{done}");
    });
    assert_eq!(lane.until("https://pr-7.preview.test/", 200).body.trim(), "two");
    let new = site.containers("pr-7");
    assert_eq!(new.len(), 2, "one container a service is left");
    assert!(new["web"] != old["web"] && new["cache"] == old["cache"]);
    seen
}

/// What a client sees that asks pull request 7 for so many seconds, in the middle of which this is done.
///
/// # Panics
/// If the client fails.
#[must_use]
pub fn hammer(lane: &Lane, seconds: u32, change: impl FnOnce()) -> Seen {
    let url = format!("https://pr-7.preview.test:{}/", lane.https);
    let said = std::thread::scope(|scope| {
        let seconds = seconds.to_string();
        let client = scope
            .spawn(move || lane.client(&["pr-7.preview.test"], &["ways", "hammer", &url, "/certs/ca.pem", &seconds]));
        std::thread::sleep(Duration::from_secs(3));
        change();
        client.join().expect("the client ends")
    });
    let last = said.lines().last().expect("a line");
    let mut words = last.splitn(4, ' ');
    let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
    let (asked, failed, gap) = (number(), number(), number());
    Seen { asked, failed, gap, how: words.next().unwrap_or_default().to_owned() }
}
