//! Secrets arrive where they belong, unaltered, and are seen nowhere else: planted by every way in, searched for in everything that comes out.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use preview_tests::{Ran, Site, VmEngine, Where};

/// Prints its environment, as careless programs do.
const COMPOSE: &str = r#"
services:
  app:
    image: busybox:1.36
    command: ["sh", "-c", "env; echo \"$$JSON_LIKE\"; ${END:-exec sleep 100000}"]
    environment:
      PLAIN:
      AWKWARD:
      LINES:
      INTERPOLATED: "<${AWKWARD}>"
      SEVERAL: "<${LINES}>"
      GENERATED: ${GENERATED}
      JSON_LIKE: ${JSON_LIKE}
      CLOUD: "<${CLOUDFLARE_API_TOKEN}>"
      FORGE: "<${GITHUB_TOKEN}>"
    labels: {colour: "${COLOUR:-blue}"}
    stop_grace_period: 0s
  given:
    image: busybox:1.36
    command: ["sh", "-c", "env; exec sleep 100000"]
    stop_grace_period: 0s
"#;

const CONFIG: &str = r#"
env_services = ["given"]

[[secrets]]
kind = "env"
names = ["PLAIN", "AWKWARD", "LINES", "JSON_LIKE"]

[generate]
GENERATED = { length = 20 }
"#;

/// Names and values of what is planted in the runner's environment.
pub(crate) fn planted() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("PLAIN", "s3cr3t-plain-value"),
        ("AWKWARD", "q'u\"o$te$$${HOME}`id`\\n %41 #end"),
        ("LINES", "first-secret-line\nsecond \"secret\" $line\n\n  third-secret-line"),
        ("JSON_LIKE", "{\"key\": \"json-secret\"}"),
    ])
}

/// Nobody was meant to hand these on.
const RUNNER: [(&str, &str); 2] =
    [("CLOUDFLARE_API_TOKEN", "cf-token-of-the-runner"), ("GITHUB_TOKEN", "ghs_token_of_the_runner")];

/// What must not be found: each value, its lines, and the forms in which programs quote it.
pub(crate) fn needles(values: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut found = Vec::new();
    for value in values {
        for part in value.lines().map(str::trim).filter(|part| part.len() >= 4) {
            found.push(part.to_owned());
            found.push(part.replace('$', "$$"));
            let quoted = serde_json::to_string(part).expect("text");
            found.push(quoted[1..quoted.len() - 1].to_owned());
        }
    }
    found.sort();
    found.dedup();
    found
}

#[track_caller]
pub(crate) fn clean(what: &str, text: &str, needles: &[String]) {
    for line in text.lines().filter(|line| !line.starts_with("::add-mask::")) {
        let found = needles.iter().find(|needle| line.contains(needle.as_str()));
        assert!(found.is_none(), "{what} shows `{}` in: {line}", found.expect("found"));
    }
}

/// Looks at the arguments of all processes (a VM's are seen from here) and at temporary files while something runs.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Watch {
    fn start(needles: Vec<String>, temporary: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut found = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
                    let Ok(bytes) = std::fs::read(entry.path().join("cmdline")) else { continue };
                    look(&format!("argv of {}", entry.path().display()), &bytes, &needles, &mut found);
                }
                files(&temporary, &needles, &mut found);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            found
        });
        Self { stop, thread: Some(thread) }
    }

    #[track_caller]
    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let found = self.thread.take().expect("it runs").join().expect("it ends");
        assert!(found.is_empty(), "{found:#?}");
    }
}

fn look(what: &str, bytes: &[u8], needles: &[String], found: &mut Vec<String>) {
    let text = String::from_utf8_lossy(bytes);
    if needles.iter().any(|needle| text.contains(needle.as_str())) && found.len() < 5 {
        found.push(format!("{what}: {text}"));
    }
}

fn files(dir: &Path, needles: &[String], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            files(&entry.path(), needles, found);
        } else if metadata.is_file()
            && let Ok(bytes) = std::fs::read(entry.path())
        {
            // ssh takes the user's key from a file; it is closed to others, and goes as soon as ssh has read it.
            let key = entry.file_name() == "key" && metadata.permissions().mode() & 0o777 == 0o600;
            if !key {
                look(&entry.path().display().to_string(), &bytes, needles, found);
            }
        }
    }
}

/// Runs while being watched; all of its output is searched.
#[track_caller]
fn run(site: &Site, args: &[&str], code: i32, needles: &[String]) -> Ran {
    let watch = Watch::start(needles.to_vec(), site.dir.path().join("t"));
    let ran = site.run(args);
    watch.end();
    clean(&format!("stdout of {args:?}"), &ran.out, needles);
    clean(&format!("stderr of {args:?}"), &ran.err, needles);
    ran.expect(code)
}

fn value(site: &Site, service: &str, name: &str) -> String {
    let script = format!("printf '%s' \"${name}\"");
    site.run(&["exec", "--pr", "7", service, "--", "sh", "-c", &script]).expect(0).out
}

fn everywhere(place: Where) {
    let Some(mut site) = Site::new(place, COMPOSE) else { return };
    site.write("preview.toml", CONFIG);
    for dir in ["t", "home"] {
        std::fs::create_dir(site.dir.path().join(dir)).expect("a directory");
    }
    site.set("TMPDIR", &site.dir.path().join("t").to_string_lossy());
    site.set("HOME", &site.dir.path().join("home").to_string_lossy());
    for (name, value) in planted().into_iter().chain(RUNNER) {
        site.set(name, value);
    }
    let mut secrets: Vec<String> =
        planted().into_values().chain(RUNNER.map(|(_, value)| value)).map(Into::into).collect();
    if let Some(vm) = site.vm() {
        let key = std::fs::read_to_string(vm.identity_file()).expect("a key");
        secrets.extend(key.lines().filter(|line| !line.starts_with("---")).map(str::to_owned));
        site.set("PREVIEW_IDENTITY_KEY", &key);
        site.set("PREVIEW_IDENTITY_FILE", "");
    }
    let mut needles = needles(secrets);

    // A first deploy that fails, after its service has printed all.
    site.set("PREVIEW_COMPOSE", "compose.yml");
    site.write("preview.toml", &format!("{CONFIG}\n[env]\nEND = \"exit 7\"\n"));
    let ran = run(&site, &["deploy", "--pr", "7", "-vvv"], 4, &needles);
    assert!(ran.err.contains("***") && ran.err.contains("code 7"), "{}", ran.err);
    let ran = run(&site, &["deploy", "--pr", "7", "--format", "json"], 4, &needles);
    assert!(ran.json()["error"]["report"]["services"][0]["log"].to_string().contains("PLAIN=***"), "{}", ran.out);
    assert_eq!(site.remains(), Vec::<String>::new());

    // One that works.
    site.write("preview.toml", CONFIG);
    run(&site, &["plan", "--pr", "7"], 0, &needles);
    run(&site, &["deploy", "--pr", "7", "-vvv"], 0, &needles);
    for (name, planted) in planted() {
        assert_eq!(value(&site, "given", name), planted, "env_services: {name}");
        let through = if name == "JSON_LIKE" { "interpolation" } else { "pass-through" };
        assert_eq!(value(&site, "app", name), planted, "{through}: {name}");
    }
    assert_eq!(value(&site, "app", "INTERPOLATED"), format!("<{}>", planted()["AWKWARD"]));
    assert_eq!(value(&site, "app", "SEVERAL"), format!("<{}>", planted()["LINES"]));
    assert_eq!((value(&site, "app", "CLOUD"), value(&site, "app", "FORGE")), ("<>".to_owned(), "<>".to_owned()));
    let generated = value(&site, "app", "GENERATED");
    assert_eq!((generated.len(), value(&site, "given", "GENERATED")), (20, generated.clone()));
    needles.push(generated.clone());

    // It stands in two files that only their owner may read, and nowhere else on the host.
    let directory = format!("{}/{}/pr-7", site.base(), site.app);
    let holders = site.shell(&format!("cd {directory} && grep -rl -e {generated} . | sort"));
    let (first, second) = holders.split_once('\n').expect("two files");
    assert!(first == "./.env" && second.starts_with("./stack-") && second.ends_with(".json"), "{holders}");
    assert_eq!(
        site.shell(&format!("cd {directory} && stat -c '%a' .env stack-*.json state.json . | tr '\\n' ' '")),
        "600 600 600 700"
    );
    clean("state.json", &site.shell(&format!("cat {directory}/state.json")), &needles);
    assert!(!site.shell(&format!("cat {directory}/.env")).contains("s3cr3t"), "secrets of CI are not kept there");
    for id in site.containers("pr-7").values() {
        clean(
            "labels",
            &site.docker(&["inspect", "--format", "{{json .Config.Labels}} {{.Path}} {{.Args}}", id]),
            &needles,
        );
    }

    // Looking, updating.
    for args in [
        &["plan", "--pr", "7"][..],
        &["plan", "--pr", "7", "--format", "json", "-vvv"],
        &["status", "--pr", "7", "-vvv"],
        &["status", "--pr", "7", "--format", "json"],
        &["list", "-vvv"],
        &["list", "--format", "json"],
        &["logs", "--pr", "7", "-vvv"],
        &["deploy", "--pr", "7", "-vv"],
    ] {
        run(&site, args, 0, &needles);
    }
    assert!(run(&site, &["logs", "--pr", "7", "app"], 0, &needles).out.contains("GENERATED=***"));
    site.write("preview.toml", &format!("{CONFIG}\n[env]\nCOLOUR = \"green\"\n"));
    run(&site, &["deploy", "--pr", "7"], 0, &needles);
    assert_eq!(value(&site, "app", "GENERATED"), generated, "generated ones survive updates");
    clean_in_github(&mut site, &needles);
    assert_eq!(value(&site, "app", "GENERATED"), generated, "… and updates that fail");

    run(&site, &["destroy", "--pr", "7", "-vvv"], 0, &needles);
    assert_eq!(site.remains(), Vec::<String>::new());
    // Nothing was left on the runner.
    let mut found = Vec::new();
    files(&site.dir.path().join("home"), &needles, &mut found);
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(std::fs::read_dir(site.dir.path().join("t")).expect("a directory").count(), 0);
}

/// A failing update in a job of GitHub Actions: masks come before use, the job's files are clean.
fn clean_in_github(site: &mut Site, needles: &[String]) {
    let file = |name: &str| site.dir.path().join("home").join(name);
    let (output, summary) = (file("output"), file("summary"));
    site.set("GITHUB_ACTIONS", "true");
    site.set("GITHUB_OUTPUT", output.to_str().expect("a path"));
    site.set("GITHUB_STEP_SUMMARY", summary.to_str().expect("a path"));
    site.write("preview.toml", &format!("{CONFIG}\n[env]\nEND = \"exit 7\"\n"));
    let ran = run(site, &["deploy", "--pr", "7", "-v"], 4, needles);
    let masks: Vec<&str> = ran.err.lines().filter_map(|line| line.strip_prefix("::add-mask::")).collect();
    for value in planted().values().flat_map(|value| value.lines()).filter(|line| !line.trim().is_empty()) {
        let escaped = value.replace('%', "%25");
        assert!(masks.contains(&escaped.as_str()), "{value} is not masked: {masks:?}");
    }
    let used = ran.err.find("***").expect("the log of the service");
    let masked = ran.err.rfind("::add-mask::").expect("masks");
    assert!(masked < used, "masks come before anything that was made with their values");
    for path in [output, summary] {
        clean(&path.display().to_string(), &std::fs::read_to_string(&path).expect("the job's file"), needles);
    }
    for name in ["GITHUB_ACTIONS", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"] {
        site.set(name, "");
    }
}

#[test]
fn on_this_machine() {
    everywhere(Where::Local);
}

#[test]
fn on_a_vm() {
    everywhere(Where::Vm(VmEngine::V28));
}
