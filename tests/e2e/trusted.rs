//! What a pull request cannot decide: its own file stands under that of the base branch.

use preview_tests::{Site, Where};

use crate::bad_input::{ONE, refused};
use crate::ci::github;

const DEPLOY: &[&str] = &["deploy", "--pr", "7"];

#[test]
fn the_base_branch_decides_over_the_host() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    site.write(".git/base.toml", "[guardrails]\nmemory = \"32MB\"\n[limits]\nmax_previews = 60\n");
    site.write(
        "preview.toml",
        "[guardrails]\nmemory = \"64GB\"\npids = 9999\n[policy]\nforks = true\n[env]\nA = \"1\"\n",
    );
    let ran = site.run(DEPLOY).expect(0);
    let warning = format!("warning: preview.toml: ignored here, since {base} decides: [guardrails], [policy]");
    assert!(ran.err.contains(&warning), "{}", ran.err);
    let format = "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}";
    let found = site.docker(&["inspect", "--format", format, &site.containers("pr-7")["app"]]);
    assert_eq!(found, format!("{} 256", 32_u64 << 20), "where the base says nothing, the default holds");
    // The application's name belongs to the base too; the pipeline's variable would win, so it is taken away.
    let name = site.app.clone();
    site.set("PREVIEW_APP", "");
    site.write(
        ".git/base.toml",
        &format!("app = \"{name}\"\n[guardrails]\nmemory = \"32MB\"\n[limits]\nmax_previews = 60\n"),
    );
    site.write("preview.toml", "app = \"of-another\"\n");
    let done = site.run(&["deploy", "--pr", "7", "--format", "json"]).expect(0);
    assert!(done.err.contains("decides: `app`"), "{}", done.err);
    assert_eq!(done.json()["kind"], "unchanged");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn errors_name_the_file() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    site.write("preview.toml", "\n[policy]\nforks = true\n");
    refused(&site, DEPLOY, 2, &["preview.toml:2:2: `policy`", "--trusted-config"]);
    site.write("preview.toml", "[[route]]\nservice = \"api\"\nport = 80\n");
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    refused(&site, DEPLOY, 2, &["--trusted-config ", "base.toml: No such file"]);
    site.write(".git/base.toml", "[policy]\nfork = true\n");
    refused(&site, DEPLOY, 2, &[&format!("{base}:2:1: unknown key `policy.fork`; did you mean `forks`?")]);
    site.write(".git/base.toml", "[vm]\nhost = \"nonsense\"\n");
    refused(&site, DEPLOY, 2, &[&format!("{base}:2:8: `vm.host`")]);
    site.write(".git/base.toml", "");
    refused(&site, DEPLOY, 2, &["preview.toml:2:11: ", "no service `api`"]);
}

#[test]
fn forks_are_the_base_branchs_to_allow() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/github/pull_request.opened.json");
    let event = std::fs::read_to_string(fixture).expect("an event");
    let mut event: serde_json::Value = serde_json::from_str(&event).expect("JSON");
    event["pull_request"]["head"]["repo"]["full_name"] = "mallory/shop".into();
    site.write(".git/event.json", &event.to_string());
    let path = site.dir.path().join(".git/event.json");
    github(&mut site, &path);
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    site.write("preview.toml", "[policy]\nforks = true\n");
    for text in ["", "[policy]\nforks = false\n"] {
        site.write(".git/base.toml", text);
        refused(&site, &["ci"], 3, &["comes from the fork mallory/shop", "[policy] forks"]);
    }
    // The pull request's own file does not become trusted by being named.
    let own = site.dir.path().join("preview.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &own);
    refused(&site, &["ci"], 2, &["--trusted-config names the pull request's own file"]);
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    site.write(".git/base.toml", "[policy]\nforks = true\n");
    site.run(&["ci"]).expect(0);
    site.run(&["destroy", "--pr", "2"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}
