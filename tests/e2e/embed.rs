//! A program that embeds the library, with adapters of its own, deploys and destroys a preview.

use std::process::Command;

use preview_tests::{Site, Where};

const COMPOSE: &str = r#"
services:
  web:
    image: busybox:1.36
    command: ["sh", "-c", "mkdir /w && echo \"$$GREETING\" > /w/index.html && exec httpd -f -p 8080 -h /w"]
    environment: {GREETING: "${GREETING:?the vault did not answer}"}
    ports: ["8080"]
    stop_grace_period: 0s
"#;

#[test]
fn an_embedding_program_deploys_and_destroys() {
    let Some(site) = Site::new(Where::Local, COMPOSE) else { return };
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--package", "preview-core", "--example", "embed", "--"]);
    command.arg(site.dir.path()).arg(site.base()).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    for (name, value) in site.command(&[]).get_envs() {
        if let (Some("DOCKER_CONFIG"), Some(value)) = (name.to_str(), value) {
            command.env(name, value);
        }
    }
    let output = command.output().expect("cargo runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("deployed pr-7 at http://127.0.0.1:"), "{out}");
    assert_eq!(lines[1], "destroyed pr-7: 1 containers");
    assert!(lines[2].starts_with("told of 2 secrets and "), "{out}");
    assert!(!out.contains("good day") && !err.contains("good day"), "{out}{err}");
    assert_eq!(site.remains(), Vec::<String>::new());
    let left = site.docker(&["ps", "-aq", "--filter", "label=preview.app=embedded"]);
    assert_eq!(left, "");
}
