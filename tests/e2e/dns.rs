//! Records of previews' hosts, by a real name server and by a fake of Cloudflare's API: they come with a deploy and go with the preview.

#[path = "../../crates/preview-core/tests/dns/fake.rs"]
#[expect(dead_code, reason = "the adapter's own tests use more of it")]
mod fake;
#[path = "../../crates/preview-core/tests/dns/server.rs"]
#[expect(dead_code, reason = "the adapter's own tests use more of it")]
pub(crate) mod server;

use preview_tests::{Site, Where};

use fake::Fake;
use server::{KEY, Kind, SECRET, Server, ZONE};

const ONE: &str = r#"
services:
  web:
    image: busybox:1.36
    command: ["httpd", "-f", "-p", "80"]
    ports: ["80"]
    stop_grace_period: 1s
"#;

/// The proxy's network, which somebody makes once; no proxy is needed to look at names.
struct Network {
    name: String,
}

impl Network {
    fn make(site: &Site) -> Self {
        let name = format!("{}-proxy", site.app);
        site.docker(&["network", "create", "--label", "preview.lab=1", &name]);
        Self { name }
    }

    fn table(&self) -> String {
        format!("[proxy]\nkind = 'traefik'\nnetwork = '{}'\n", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["network", "rm", &self.name]).output();
    }
}

const WILD: &str = "192.0.2.200";

#[test]
fn a_real_name_server_has_the_records_of_living_previews_and_of_nobody_else() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    let Some(server) = Server::start(Kind::Knot, true) else { return };
    let network = Network::make(&site);
    let dns = format!(
        "[dns]\nkind = 'rfc2136'\nzone = '{ZONE}'\ntarget = '192.0.2.7'\nserver = '127.0.0.1:{}'\nkey_name = '{KEY}'\n",
        server.port
    );
    let write = |url: &str, more: &str| {
        site.write("preview.toml", &format!("url = '{url}'\n{}{more}", network.table()));
    };
    let host = format!("https://{{name}}.{ZONE}");

    // Without the key nothing is begun, and the message says where it belongs.
    write(&host, &dns);
    let ran = site.deploy("7").expect(2);
    assert!(ran.out.contains("PREVIEW_DNS_TSIG_KEY"), "{}", ran.out);
    site.set("PREVIEW_DNS_TSIG_KEY", SECRET);
    let write = |url: &str, more: &str| {
        site.write("preview.toml", &format!("url = '{url}'\n{}{more}", network.table()));
    };

    let deployed = site.deploy("7").expect(0).json();
    assert_eq!(deployed["url"], format!("https://pr-7.{ZONE}"));
    assert_eq!(server.dig("pr-7", "A"), ["192.0.2.7"]);
    assert!(server.dig("_preview.pr-7", "TXT")[0].ends_with(&format!("{}/pr-7\"", site.app)));
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");

    // A path on a host that all share needs none; the old host's goes.
    write(&format!("https://all.{ZONE}/{{name}}"), &dns);
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "update");
    assert_eq!((server.dig("pr-7", "A"), server.dig("all", "A")), (vec![WILD.to_owned()], vec![WILD.to_owned()]));
    write(&host, &dns);
    site.deploy("7").expect(0);
    assert_eq!(server.dig("pr-7", "A"), ["192.0.2.7"]);

    // Somebody's record is in the way: the first deploy leaves nothing, and the record stays.
    server.nsupdate(&format!("update add pr-8.{ZONE} 300 A 192.0.2.99"));
    let ran = site.deploy("8").expect(4);
    assert_eq!(ran.failure(), "dns_failed");
    assert!(ran.json()["error"]["message"].as_str().expect("text").contains(&format!("pr-8.{ZONE}")), "{}", ran.out);
    assert!(site.containers("pr-8").is_empty());
    assert_eq!(server.dig("pr-8", "A"), ["192.0.2.99"]);

    // Destroyed: gone, and counted.
    let destroyed = site.run(&["destroy", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!(destroyed["records"], 1, "{destroyed}");
    assert_eq!((server.dig("pr-7", "A"), server.dig("_preview.pr-7", "TXT")), (vec![WILD.to_owned()], vec![]));

    // Destroyed by a run that knows of no DNS: told, and swept later; a dry run only says so.
    site.deploy("9").expect(0);
    write(&host, "");
    let ran = site.run(&["destroy", "--pr", "9"]).expect(0);
    assert!(ran.err.contains(&format!("pr-9.{ZONE}")), "{}", ran.err);
    write(&host, &dns);
    let dry = site.run(&["sweep", "--dry-run", "--format", "json"]).expect(0).json();
    assert_eq!(dry["removed"][0]["records"][0], format!("pr-9.{ZONE}"), "{dry}");
    assert_eq!(server.dig("pr-9", "A"), ["192.0.2.7"]);
    let swept = site.run(&["sweep", "--format", "json"]).expect(0).json();
    assert_eq!(
        (swept["removed"].as_array().map(Vec::len), &swept["left"]),
        (Some(1), &serde_json::json!([])),
        "{swept}"
    );
    assert_eq!(server.dig("pr-9", "A"), [WILD]);
    assert_eq!(server.dig("pr-8", "A"), ["192.0.2.99"], "somebody's");
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn cloudflare_has_a_record_as_long_as_there_is_a_preview_and_nothing_shows_the_token() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let fake = runtime.block_on(Fake::start());
    let network = Network::make(&site);
    site.set("CLOUDFLARE_API_TOKEN", fake::TOKEN);
    site.set("PREVIEW_CLOUDFLARE_API", &fake.url());
    let dns = "[dns]\nkind = 'cloudflare'\nzone = 'example.com'\ntarget = '192.0.2.7'\nproxied = true\n";
    let write = |host: &str, more: &str| {
        site.write("preview.toml", &format!("url = 'https://{host}'\n{}{dns}{more}", network.table()));
    };

    write("{name}.preview.example.com", "");
    let plan = site.run(&["plan", "--pr", "7"]).expect(0);
    assert!(plan.err.contains("certificate"), "said before anything happens: {}", plan.err);
    write("{name}.example.com", "");
    let ran = site.run(&["deploy", "--pr", "7", "-vv"]).expect(0);
    assert_eq!(fake.look("pr-7.example.com"), ["192.0.2.7"]);
    assert!(!ran.err.contains(fake::TOKEN) && !ran.out.contains(fake::TOKEN));
    assert!(!ran.err.contains("certificate"), "{}", ran.err);

    // The pull request's own file cannot have the token handed to its services.
    write("{name}.example.com", "[[secrets]]\nkind = 'env'\nnames = ['CLOUDFLARE_API_TOKEN']\n");
    let ran = site.deploy("7").expect(2);
    assert!(ran.out.contains("CLOUDFLARE_API_TOKEN") && !ran.out.contains(fake::TOKEN), "{}", ran.out);
    write("{name}.example.com", "");

    // The zone is full, or the token is taken back: the deploy fails with what to do, and goes back.
    fake.memory().limit = Some(1);
    let full = site.deploy("8").expect(4);
    assert_eq!(full.failure(), "dns_failed");
    assert!(full.out.contains("wildcard record"), "{}", full.out);
    fake.memory().limit = None;
    fake.put("A", "pr-9.example.com", "192.0.2.99", None);
    site.deploy("9").expect(4);
    assert_eq!(fake.look("pr-9.example.com"), ["192.0.2.99"]);

    let destroyed = site.run(&["destroy", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!(destroyed["records"], 1, "{destroyed}");
    assert_eq!(fake.memory().records.len(), 1, "somebody's");
    assert_eq!(site.remains(), Vec::<String>::new());
}
