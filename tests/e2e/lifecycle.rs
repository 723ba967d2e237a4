//! Deploy, look, redeploy, update, destroy: the main path, on this machine and on VMs with an old and a new engine.

use preview_tests::{Site, THREE, VmEngine, Where, page};
use serde_json::json;

fn main_path(place: Where) {
    let Some(site) = Site::new(place, THREE) else { return };
    page(&site, "one");

    // Deploy: an address that answers.
    let first = site.deploy("7").expect(0).json();
    assert_eq!(first["kind"], "create", "{first}");
    let url = first["url"].as_str().expect("an address").to_owned();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    assert!(site.get(&url).ends_with("one"));
    let before = site.containers("pr-7");
    assert_eq!(before.len(), 3, "{before:?}");

    // Look.
    let list = site.run(&["list", "--format", "json"]).expect(0).json();
    assert_eq!(list["previews"][0]["name"], "pr-7");
    assert_eq!(list["previews"][0]["phase"], "ready");
    assert_eq!(list["previews"][0]["running"], 3);
    let status = site.run(&["status", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!(status["addresses"][0]["url"], json!(url));
    assert_eq!(status["services"].as_array().map(Vec::len), Some(3));
    assert!(site.run(&["list"]).expect(0).out.contains(&url));
    assert!(site.run(&["status", "--pr", "7"]).expect(0).out.contains("healthy"));
    let exec =
        site.run(&["exec", "--pr", "7", "data", "--", "sh", "-c", "echo kept > /data/mine; echo \"$0\"; exit 3"]);
    assert_eq!((exec.code, exec.out.as_str()), (3, "sh\n"), "{}", exec.err);
    let log = site.run(&["logs", "--pr", "7", "web"]).expect(0);
    assert!(log.out.is_empty() || log.out.starts_with("web"), "{}", log.out);

    // Again: unchanged, nothing recreated.
    let again = site.deploy("7").expect(0).json();
    assert_eq!(again["kind"], "unchanged");
    assert_eq!(again["url"], json!(url));
    assert_eq!(site.containers("pr-7"), before);

    // One service changed: only that one is recreated, data is kept.
    site.write("compose.yml", &THREE.replace("blue", "green"));
    let plan = site.run(&["plan", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!(plan["services"]["other"]["change"], "recreate", "{plan}");
    assert_eq!(plan["services"]["data"]["change"], "keep");
    assert_eq!(site.containers("pr-7"), before, "a plan changes nothing");
    let update = site.deploy("7").expect(0).json();
    assert_eq!(update["kind"], "update");
    assert_eq!(update["url"], json!(url), "the address stays for the preview's whole life");
    let after = site.containers("pr-7");
    assert_eq!((&after["web"], &after["data"]), (&before["web"], &before["data"]));
    assert_ne!(after["other"], before["other"]);

    // A changed file of the repository reaches its service; the volume is still there.
    page(&site, "two");
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "update");
    assert!(site.get(&url).ends_with("two"));
    assert_eq!(site.run(&["exec", "--pr", "7", "data", "--", "cat", "/data/mine"]).expect(0).out, "kept\n");

    // A removed service goes.
    let fewer = THREE.split("  other:").next().expect("text").to_owned() + "volumes:\n  data: {}\n";
    site.write("compose.yml", &fewer);
    let update = site.deploy("7").expect(0).json();
    assert_eq!(update["services"]["other"]["change"], "remove", "{update}");
    assert_eq!(site.containers("pr-7").len(), 2);

    // A second preview beside it; destroying the first leaves it alone.
    let second = site.deploy("8").expect(0).json();
    assert_ne!(second["url"], json!(url));
    let destroyed = site.run(&["destroy", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!(destroyed["existed"], true);
    assert_eq!(destroyed["removed"]["containers"], 2);
    assert_eq!(destroyed["removed"]["volumes"], 2, "its data, and the repository's files");
    assert!(site.containers("pr-7").is_empty());
    assert!(site.get(second["url"].as_str().expect("an address")).ends_with("two"));

    // Nothing is left; again is fine and says so.
    site.run(&["destroy", "--pr", "8"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
    let again = site.run(&["destroy", "--pr", "7"]).expect(0);
    assert!(again.err.contains("nothing to remove"), "{}", again.err);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn on_this_machine() {
    main_path(Where::Local);
}

#[test]
fn on_a_vm_with_engine_20() {
    main_path(Where::Vm(VmEngine::V20));
}

#[test]
fn on_a_vm_with_engine_28() {
    main_path(Where::Vm(VmEngine::V28));
}

#[test]
fn on_a_vm_with_engine_29() {
    main_path(Where::Vm(VmEngine::V29));
}

#[test]
fn with_the_other_compose() {
    main_path(Where::OtherCompose);
}
