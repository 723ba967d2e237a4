//! Compose files of the tests that break things.

use std::sync::Arc;

use preview_tests::{Site, Vm, VmEngine, VmOptions, lab};
use serde_json::Value;

/// A site on a VM that nobody else uses.
pub(crate) fn alone(options: &VmOptions, compose: &str) -> Option<Site> {
    let lab = lab()?;
    let vm = Vm::start(lab, VmEngine::V28, options).expect("a VM");
    vm.load_image(&["busybox:1.36"]).expect("the image gets into the VM");
    Some(Site::on(lab, Some(Arc::new(vm)), compose))
}

/// The least that runs.
pub(crate) const SMALL: &str = r#"
services:
  web:
    image: busybox:1.36
    command: ["sleep", "100000"]
    stop_grace_period: 0s
"#;

/// Room for so many. The floors are the machine's business, which may be a small one.
pub(crate) fn limits(places: u16, more: &str) -> String {
    format!("[limits]\nmax_previews = {places}\nmin_free_disk = \"1MB\"\nmin_free_memory = \"1MB\"\n{more}")
}

/// A stack with a page that `script` has to serve on port 8080, and a service with data in a volume beside it.
pub(crate) fn stack(script: &str) -> String {
    with_web(&format!("    image: busybox:1.36\n    command: [\"sh\", \"-c\", {}]\n", Value::from(script)))
}

/// The same with these lines about the page's service.
pub(crate) fn with_web(lines: &str) -> String {
    format!(
        r#"
services:
  web:
{lines}    ports: ["8080"]
    stop_grace_period: 0s
    healthcheck:
      test: ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/"]
      interval: 1s
      retries: 4
  data:
    image: busybox:1.36
    command: ["sleep", "100000"]
    volumes: ["data:/data"]
    stop_grace_period: 0s
volumes:
  data: {{}}
"#
    )
}

/// Serves a word.
pub(crate) fn serving(word: &str) -> String {
    format!("mkdir -p /srv; echo {word} >/srv/index.html; exec httpd -f -p 8080 -h /srv")
}

/// A stack whose `docker compose up` takes for ever: the page waits for the health of another service, which has none until `ready`.
pub(crate) fn waiting(ready: bool) -> String {
    let test = if ready { "true" } else { "false" };
    let page = Value::from(serving("waited"));
    format!(
        r#"
services:
  first:
    image: busybox:1.36
    command: ["sleep", "100000"]
    stop_grace_period: 0s
    healthcheck: {{ test: ["CMD", "{test}"], interval: 1s, retries: 3, start_period: 1000s }}
  web:
    image: busybox:1.36
    command: ["sh", "-c", {page}]
    ports: ["8080"]
    stop_grace_period: 0s
    depends_on: {{ first: {{ condition: service_healthy }} }}
"#
    )
}

/// [`stack`] with a page that waits for what never gets healthy, so that `docker compose up` does not end.
pub(crate) fn never_up() -> String {
    let first = "\n  first:\n    image: busybox:1.36\n    command: [\"sleep\", \"100000\"]\n    stop_grace_period: 0s\n    \
                 healthcheck: { test: [\"CMD\", \"false\"], interval: 1s, start_period: 1000s }";
    let needs = "    depends_on: { first: { condition: service_healthy } }\n    ports";
    stack(&serving("never")).replace("    ports", needs).replace("\nvolumes:", &format!("{first}\nvolumes:"))
}

/// A preview that works, with data in its volume; its address and containers.
pub(crate) fn standing(site: &Site, name: &str, pr: &str) -> (String, std::collections::BTreeMap<String, String>) {
    let first = site.deploy(pr).expect(0).json();
    let url = first["url"].as_str().expect("an address").to_owned();
    site.run(&["exec", "--pr", pr, "data", "--", "sh", "-c", "echo kept >/data/mine"]).expect(0);
    (url, site.containers(name))
}

/// The version that says this answers, and the data of [`standing`] is there.
#[track_caller]
pub(crate) fn still(site: &Site, url: &str, pr: &str, word: &str) {
    let page = site.get(url);
    assert!(page.trim_end().ends_with(word), "{page}");
    assert_eq!(site.run(&["exec", "--pr", pr, "data", "--", "cat", "/data/mine"]).expect(0).out, "kept\n");
}

/// Nothing of the application is on the host.
#[track_caller]
pub(crate) fn nothing(site: &Site) {
    assert_eq!(site.remains(), Vec::<String>::new());
    assert_eq!(site.processes(), "");
}
