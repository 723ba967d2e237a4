//! How many previews fit: from a stack's limits and this machine's facts, and without any machine.

use preview_tests::{Site, Where};
use serde_json::json;

const LIMITED: &str = "\
services:
  api:
    image: busybox:1.36
    cpus: 0.5
    mem_limit: 256m
  worker:
    image: busybox:1.36
    deploy:
      replicas: 2
      resources:
        limits: {memory: 128m}
        reservations: {cpus: '0.25'}
";

#[test]
fn a_stack_on_this_machine_on_another_one_and_the_other_way_round() {
    let Some(site) = Site::new(Where::Local, LIMITED) else { return };
    site.write("preview.toml", "[limits]\nmax_previews = 2\nmin_free_disk = \"1MB\"\n");
    let document = site.run(&["capacity", "--format", "json"]).expect(0).json();
    // Half of the limit, which is for peaks, and twice what each worker reserves.
    assert_eq!(document["preview"]["cpus"], json!({"each": 750, "base": 0, "source": "declared"}));
    assert_eq!(
        document["preview"]["memory"],
        json!({"each": 512_u64 << 20, "base": 1_u64 << 30, "source": "declared"})
    );
    let rows = document["fits"]["resources"].as_array().expect("rows");
    let of =
        |name: &str| rows.iter().find(|row| row["resource"] == name).unwrap_or_else(|| panic!("{document}")).clone();
    let cpus: u64 = site.shell("nproc").parse().expect("a number");
    assert_eq!(of("cpus")["previews"], cpus * 1000 / 750);
    let memory =
        site.shell("sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo").parse::<u64>().expect("kB") * 1024;
    assert_eq!(of("memory")["previews"], memory.saturating_sub(1 << 30) / (512 << 20));
    assert_eq!(of("places")["previews"], 2);
    assert!(of("networks")["has"].as_u64().expect("a number") <= 31, "{document}");
    let least = rows.iter().filter_map(|row| row["previews"].as_u64()).min();
    assert_eq!(document["fits"]["previews"].as_u64(), least);

    let text = site.run(&["capacity", "--vcpus", "3", "--memory", "64GB", "--disk", "1000GB"]).expect(0).out;
    assert!(text.starts_with("4 previews fit; processors bind first\n"), "{text}");
    assert!(text.contains("Compose files"), "{text}");
    let needs = site.run(&["capacity", "--previews", "6", "--format", "json"]).expect(0).json();
    assert_eq!(
        needs["needs"],
        json!({"previews": 6, "cpus": 4500, "memory": 4_u64 << 30, "disk": 168_u64 << 30, "networks": 6,
            "size": {"cpus": 16, "memory": 32, "disk": 250}})
    );
}

#[test]
fn without_limits_the_formula_or_the_guardrails_count_and_without_files_no_machine_is_asked() {
    let Some(mut site) = Site::new(Where::Local, "services:\n  one:\n    image: busybox:1.36\n") else { return };
    site.set("PREVIEW_HOST", "ssh://nobody@no-such-host.invalid");
    let rails = site.run(&["capacity", "--previews", "1", "--format", "json"]).expect(0).json();
    assert_eq!(rails["preview"]["memory"]["source"], "guardrails");
    std::fs::remove_file(site.dir.path().join("compose.yml")).expect("removed");
    for (previews, size) in [("3", [8, 16, 150]), ("6", [16, 32, 250]), ("10", [24, 64, 400])] {
        let ran = site.run(&["capacity", "--previews", previews, "--format", "json"]).expect(0);
        assert!(ran.err.contains("no Compose file"), "{}", ran.err);
        let found = &ran.json()["needs"]["size"];
        assert_eq!(*found, json!({"cpus": size[0], "memory": size[1], "disk": size[2]}));
    }
    let table = site.run(&["capacity", "--table"]).expect(0).out;
    assert!(table.contains("16 vCPU, 32 GB, 250 GB disk"), "{table}");
    for bad in
        [&["capacity", "--vcpus", "0"][..], &["capacity", "--memory", "16"], &["capacity", "--cpu-overcommit", "0"]]
    {
        site.run(bad).expect(2);
    }
    site.run(&["capacity"]).expect(6);
}
