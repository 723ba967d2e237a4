//! Sweep: what is expired, closed, crashed or orphaned goes; what lives, and what is not ours, is not touched.

use std::fmt::Write as _;

use preview_tests::{Site, VmEngine, VmOptions, Where};

use crate::stacks::{SMALL, alone, limits, nothing, serving, stack, standing, still};

/// A state file of a preview that nobody has.
fn state(site: &Site, name: &str, phase: &str, more: &str) -> String {
    format!(
        r#"{{"schema":1,"app":"{app}","name":"{name}","project":"{app}_{name}","subject":{{"pull":1}},"phase":"{phase}",
        "created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"{more}}}"#,
        app = site.app
    )
}

/// Orphans of every kind, 200 in all; the script that makes them.
fn fabricate(site: &Site) -> String {
    let (app, base) = (&site.app, site.base());
    let labels = |name: &str| {
        format!(
            "--label preview.managed=true --label preview.app={app} --label preview.name={name} --label preview.base={base}"
        )
    };
    let mut script = "set -e\numask 077\n".to_owned();
    for number in 0..40 {
        let _ = writeln!(script, "docker create {} busybox:1.36 true >/dev/null", labels(&format!("c-{number}")));
        let _ = writeln!(script, "docker volume create {} >/dev/null", labels(&format!("v-{number}")));
    }
    for number in 0..30 {
        let subnet = format!("--subnet 10.213.{number}.0/28");
        let _ = writeln!(
            script,
            "docker network create {subnet} {} {app}-n-{number} >/dev/null",
            labels(&format!("n-{number}"))
        );
        let directory = format!("{base}/{app}/f-{number}");
        let _ = writeln!(
            script,
            "mkdir -p {directory}; echo x >{directory}/tree-0.json; echo x >{directory}/stack-0.json; : >{directory}/.lock"
        );
    }
    for number in 0..10 {
        let change =
            format!("-c 'LABEL preview.managed=true preview.app={app} preview.name=i-{number} preview.base={base}'");
        let _ = writeln!(
            script,
            "c=$(docker create busybox:1.36 true); docker commit {change} $c {app}-i-{number} >/dev/null; docker rm $c >/dev/null"
        );
    }
    let good = r#","good":{"digest":"","stack":"stack-0.json","containers":{},"images":{},"files":[],"at":"2026-01-01T00:00:00Z"}"#;
    for number in 0..20 {
        for (name, phase, more) in [
            (format!("s-{number}"), "starting", String::new()),
            (format!("e-{number}"), "ready", format!(r#","expires_at":"2026-01-04T00:00:00Z"{good}"#)),
        ] {
            let directory = format!("{base}/{app}/{name}");
            let text = state(site, &name, phase, &more);
            let _ = writeln!(script, "mkdir -p {directory}; cat >{directory}/state.json <<'E'\n{text}\nE");
        }
    }
    for number in 0..10 {
        let directory = format!("{base}/.tombstones/{app}");
        let text = r#"{"cause":"closed","at":"2026-01-01T00:00:00Z","who":"ada"}"#;
        let _ = writeln!(script, "mkdir -p {directory}; echo '{text}' >{directory}/t-{number}@1767225600000.json");
    }
    let _ = writeln!(script, "chown -R --reference={base} {base}");
    script
}

/// What the engine has under a name; of the application's own also what lies in its directory.
fn everything(site: &Site, name: &str) -> Vec<String> {
    let own = name == site.app;
    let is = |line: &&str| {
        line.ends_with(&format!(" {name}"))
            || ["_", "-", " ", ":"].iter().any(|next| line.contains(&format!(" {name}{next}")))
    };
    let objects = site.shell(
        "docker ps -a --no-trunc --format 'container {{.ID}} {{.Names}} {{.CreatedAt}} {{.Label \"preview.app\"}}'; \
         docker network ls --no-trunc --format 'network {{.ID}} {{.Name}}'; docker volume ls --format 'volume {{.Name}} {{.Label \"preview.app\"}}'; \
         docker image ls --no-trunc --format 'image {{.ID}} {{.Repository}}'",
    );
    let mut found: Vec<String> = objects.lines().filter(is).map(str::to_owned).collect();
    if own {
        let files = site.shell(&format!(
            "find {} -type f ! -name .places ! -name .freed ! -name .history.jsonl -exec md5sum {{}} +",
            site.base()
        ));
        found.extend(files.lines().map(str::to_owned));
    }
    found.sort();
    found
}

/// Somebody else's objects, who knows nothing of previews; gone at the end, also of a test that fails.
struct Foreign<'a> {
    site: &'a Site,
    name: String,
}

impl<'a> Foreign<'a> {
    fn new(site: &'a Site) -> Self {
        let foreign = Self { site, name: format!("foreign-{}", std::process::id()) };
        let name = &foreign.name;
        site.shell(&format!(
            "set -e; docker volume create {name}; docker run -d --name {name} -v {name}:/data busybox:1.36 sleep 100000; \
             docker create --name {name}-idle busybox:1.36 true; docker commit {name}-idle {name}:1; \
             docker volume create {name}-unused; docker network create --subnet 10.214.0.0/28 {name}"
        ));
        foreign
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        let name = &self.name;
        self.site.shell(&format!(
            "docker rm -f {name} {name}-idle; docker rmi {name}:1; docker volume rm {name} {name}-unused; docker network rm {name} || :"
        ));
    }
}

#[test]
fn two_hundred_orphans_among_twenty_previews() {
    let Some(site) = Site::new(Where::Vm(VmEngine::V28), SMALL) else { return };
    site.write("preview.toml", &limits(100, ""));
    let numbers: Vec<String> = (1..=20).map(|number| number.to_string()).collect();
    for four in numbers.chunks(4) {
        let runs: Vec<_> = four.iter().map(|pr| site.start(&["deploy", "--pr", pr])).collect();
        for run in runs {
            run.end().expect(0);
        }
    }
    let foreign = Foreign::new(&site);
    let stranger = foreign.name.clone();
    let others = everything(&site, &stranger);
    assert_eq!(others.len(), 6, "{others:?}");
    let living = everything(&site, &site.app);

    site.shell(&fabricate(&site));
    let orphaned = everything(&site, &site.app).len();
    assert!(orphaned >= living.len() + 200, "{orphaned} from {}", living.len());

    let planned = site.run(&["sweep", "--dry-run", "--format", "json"]).expect(0).json();
    assert_eq!(planned["removed"].as_array().map(Vec::len), Some(190), "{planned}");
    assert_eq!((&planned["tombstones"], &planned["dry_run"]), (&10.into(), &true.into()), "{planned}");
    assert_eq!(everything(&site, &site.app).len(), orphaned, "a dry run changes nothing");

    // Beside a run at work.
    site.write(
        "preview.toml",
        &limits(100, "[[step]]\nafter = \"start\"\nservice = \"web\"\nrun = [\"sleep\", \"1000\"]\n"),
    );
    let mut deploy = site.start(&["deploy", "--pr", "99"]);
    deploy.until("verifying…");
    site.write("preview.toml", &limits(100, ""));
    let ran = site.run(&["sweep", "--format", "json"]).expect(0);
    let swept = ran.json();
    assert!(deploy.at_work(), "who is at work goes on");
    let removed = swept["removed"].as_array().expect("a list");
    assert_eq!(removed.len(), 190, "{swept}");
    for gone in removed {
        assert_eq!(gone["left"].as_array().map(Vec::len), Some(0), "nothing of it is left: {gone}");
    }
    let sum = |kind: &str| removed.iter().filter_map(|gone| gone["removed"][kind].as_u64()).sum::<u64>();
    assert_eq!([sum("containers"), sum("networks"), sum("volumes"), sum("images")], [40, 30, 40, 10]);
    assert_eq!(
        (&swept["tombstones"], &swept["mended"], &swept["stayed"]),
        (&10.into(), &serde_json::json!([]), &serde_json::json!([]))
    );
    site.run(&["destroy", "--pr", "99"]).expect(0);
    deploy.end().expect(3);
    assert_eq!(everything(&site, &site.app), living, "all that live are untouched");

    let again = site.run(&["sweep", "--format", "json"]).expect(0).json();
    assert_eq!(again["removed"], serde_json::json!([]), "{again}");
    for pr in &numbers {
        site.run(&["destroy", "--pr", pr]).expect(0);
    }
    nothing(&site);
    assert_eq!(everything(&site, &stranger), others, "what is not ours is untouched");
    drop(foreign);
}

/// Who is expired, closed or not open goes; who is kept or pinned stays.
fn lifetimes(place: Where) {
    let Some(site) = Site::new(place, SMALL) else { return };
    site.write("preview.toml", &format!("ttl = \"1s\"\n{}", limits(100, "")));
    for pr in ["1", "2", "3"] {
        site.run(&["deploy", "--pr", pr]).expect(0);
    }
    site.write("preview.toml", &format!("ttl = \"never\"\n{}", limits(100, "")));
    site.run(&["deploy", "--pr", "4"]).expect(0);
    site.run(&["deploy", "--branch", "feature/x"]).expect(0);
    let kept = site.run(&["keep", "--pr", "2", "--for", "2h"]).expect(0);
    assert!(kept.err.contains("pr-2 is kept until 2"), "{}", kept.err);
    let pinned = site.run(&["pin", "--pr", "3", "--format", "json"]).expect(0).json();
    assert_eq!((&pinned["pinned"], &pinned["expires_at"]), (&true.into(), &serde_json::Value::Null));
    site.run(&["pin", "--pr", "9"]).expect(2);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let ran = site.run(&["sweep"]).expect(0);
    assert!(ran.out.contains(&format!("{} pr-1: expired ", site.app)), "{}", ran.out);
    assert!(ran.out.contains("nothing of it is left") && ran.out.contains("4 previews stand"), "{}", ran.out);
    let names = || {
        let list = site.run(&["list", "--format", "json"]).expect(0).json();
        let names = list["previews"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|listed| listed["name"].as_str().map(str::to_owned));
        names.collect::<Option<Vec<String>>>().expect("names")
    };
    assert_eq!(names()[..3], ["pr-2", "pr-3", "pr-4"]);

    // Lists: what they cannot know stays, what is wrong is refused.
    site.write("open", "#2\n3\n");
    site.write("empty", "\n");
    site.run(&["sweep", "--open-prs", "open"]).expect(0);
    assert_eq!(names().len(), 4, "they were deployed shortly ago");
    for (list, says) in [
        ("empty", "the list is empty"),
        ("nowhere", "nowhere"),
        ("preview.toml", "is not the number of a pull request"),
    ] {
        let ran = site.run(&["sweep", "--open-prs", list, "--grace", "0s"]).expect(2);
        assert!(ran.err.contains(says), "{}", ran.err);
    }
    site.run(&["sweep", "--open-prs", "open", "--grace", "0s"]).expect(0);
    assert_eq!(names().len(), 3, "pull request 4 is closed");
    site.write("branches", "main\nfeature/x\n");
    site.run(&["sweep", "--open-branches", "branches", "--grace", "0s"]).expect(0);
    assert_eq!(names().len(), 3);
    site.write("branches", "main\n");
    let ran = site.run(&["sweep", "--open-branches", "branches", "--open-prs", "none", "--grace", "0s"]).expect(0);
    assert!(ran.out.contains("branch feature/x is not open any more: removed"), "{}", ran.out);
    assert_eq!(names(), Vec::<String>::new());
    nothing(&site);
}

#[test]
fn lifetimes_on_this_machine() {
    lifetimes(Where::Local);
}

#[test]
fn lifetimes_on_a_vm() {
    lifetimes(Where::Vm(VmEngine::V20));
}

/// What came for previews and is old goes once the disk is full enough, and build cache beyond its bound.
#[test]
fn images_and_build_cache() {
    let compose = SMALL.replace("image: busybox:1.36", "build: .");
    let Some(site) = alone(&VmOptions::default(), &compose) else { return };
    site.write("Dockerfile", "FROM busybox:1.36\nRUN dd if=/dev/urandom of=/blob bs=1M count=8\n");
    let sweeps = |above: &str, cache: &str| {
        let sweep = format!("[sweep]\nimages_above = {above}\nbuild_cache = \"{cache}\"\n");
        site.write("preview.toml", &format!("{}{sweep}", limits(100, "")));
    };
    sweeps("100", "10GB");
    site.run(&["deploy", "--pr", "1"]).expect(0);
    site.run(&["destroy", "--pr", "1"]).expect(0);
    // Pulled long ago for a preview, by its record; and one that nobody of ours pulled.
    let (old, foreign) = (format!("{}-old:1", site.app), format!("{}-foreign:1", site.app));
    site.shell(&format!(
        "set -e; for i in {old} {foreign}; do printf 'FROM busybox:1.36\\nLABEL x=%s\\n' $i | DOCKER_BUILDKIT=0 docker build -q -t $i - >&2; done; \
         umask 077; mkdir -p {base}/.images; hash=$(printf %s {old} | sha256sum | cut -c1-24); \
         echo '{{\"image\":\"{old}\",\"at\":\"2026-01-01T00:00:00Z\"}}' >{base}/.images/$hash.json; \
         chown -R --reference={base} {base}/.images",
        base = site.base()
    ));
    let there = |image: &str| !site.docker(&["image", "ls", "-q", image]).is_empty();
    let swept = site.run(&["sweep", "--format", "json"]).expect(0).json();
    assert_eq!((&swept["images"], &swept["build_cache"]), (&serde_json::json!([]), &0.into()), "{swept}");

    sweeps("0", "1MB");
    let planned = site.run(&["sweep", "--dry-run", "--format", "json"]).expect(0).json();
    assert_eq!(planned["images"], serde_json::json!([old]), "{planned}");
    assert!(there(&old));
    let swept = site.run(&["sweep", "--format", "json"]).expect(0).json();
    assert_eq!(swept["images"], serde_json::json!([old]), "{swept}");
    assert!(swept["build_cache"].as_u64().is_some_and(|bytes| bytes >= 8 << 20), "{swept}");
    assert!(!there(&old) && there(&foreign));
    assert_eq!(site.shell(&format!("ls {}/.images", site.base())), "");
    let again = site.run(&["sweep", "--format", "json"]).expect(0).json();
    assert_eq!((&again["images"], &again["removed"]), (&serde_json::json!([]), &serde_json::json!([])), "{again}");
    site.docker(&["image", "rm", &foreign]);
    nothing(&site);
}

/// One sweep brings what a killed run left to a clean state: the version before, or nothing.
fn killed(place: Where) {
    let Some(site) = Site::new(place, &stack(&serving("one"))) else { return };
    let (url, _) = standing(&site, "pr-7", "7");
    // An update that dies when the new version's containers are there already.
    site.write("compose.yml", &stack(&serving("two")));
    site.write("preview.toml", "[[step]]\nafter = \"start\"\nservice = \"web\"\nrun = [\"sleep\", \"1000\"]\n");
    let mut run = site.start(&["deploy", "--pr", "7"]);
    run.until("verifying…");
    let mut first = site.start(&["deploy", "--pr", "8"]);
    first.until("verifying…");
    let ran = site.run(&["sweep", "--format", "json"]).expect(0).json();
    assert_eq!((&ran["removed"], &ran["mended"]), (&serde_json::json!([]), &serde_json::json!([])), "they are at work");
    run.kill();
    first.kill();
    site.write("preview.toml", "");
    let ran = site.run(&["sweep", "--dry-run"]).expect(0);
    assert!(ran.out.contains("pr-7: its run died while verifying: would be mended"), "{}", ran.out);
    let ran = site.run(&["sweep", "--format", "json"]).expect(0).json();
    assert_eq!((&ran["mended"][0]["name"], &ran["removed"][0]["name"]), (&"pr-7".into(), &"pr-8".into()), "{ran}");
    still(&site, &url, "7", "one");
    let status = site.run(&["status", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!((&status["phase"], &status["crashed"]), (&"failed".into(), &false.into()), "{status}");
    assert_eq!(site.run(&["sweep", "--format", "json"]).expect(0).json()["mended"], serde_json::json!([]));
    site.write("compose.yml", &stack(&serving("one")));
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn what_killed_runs_left_on_this_machine() {
    killed(Where::Local);
}

#[test]
fn what_killed_runs_left_on_a_vm() {
    killed(Where::Vm(VmEngine::V28));
}

/// GitHub is asked about each preview; what it does not say changes nothing.
#[test]
fn the_forge_is_asked() {
    use wiremock::matchers::{header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    const TOKEN: &str = "planted-forge-token";
    let Some(mut site) = Site::new(Where::Local, SMALL) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let server = runtime.block_on(MockServer::start());
    site.write("preview.toml", &limits(6, ""));
    site.set("GITHUB_REPOSITORY", "acme/shop");
    site.set("GITHUB_API_URL", &server.uri());
    site.set("GITHUB_TOKEN", TOKEN);
    for pr in ["7", "8"] {
        site.deploy(pr).expect(0);
    }
    let sweep = ["sweep", "--forge", "--grace", "0s"];
    let refused = site.run(&sweep);
    assert!(
        refused.code != 0 && refused.err.contains("shows no repository acme/shop to this token"),
        "{}",
        refused.err
    );
    for (at, body) in [
        ("/repos/acme/shop/pulls/7", serde_json::json!({"state": "open"})),
        ("/repos/acme/shop/pulls/8", serde_json::json!({"state": "closed"})),
    ] {
        let answer = ResponseTemplate::new(200).set_body_json(body);
        let bearer = header("authorization", format!("Bearer {TOKEN}").as_str());
        runtime.block_on(Mock::given(method("GET")).and(path(at)).and(bearer).respond_with(answer).mount(&server));
    }
    assert_eq!(site.phase("pr-8"), "ready", "nothing was changed");
    // The host's clock says whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let ran = site.run(&sweep).expect(0);
    assert!(ran.out.contains("pr-8: pull request 8 is not open any more"), "{}", ran.out);
    assert_eq!((site.phase("pr-7").as_str(), site.phase("pr-8").as_str()), ("ready", ""));
    for ran in [&refused, &ran] {
        assert!(!ran.out.contains(TOKEN) && !ran.err.contains(TOKEN), "{}{}", ran.out, ran.err);
    }
    // As the job says it.
    site.set("PREVIEW_FORGE", "true");
    runtime.block_on(server.reset());
    assert_ne!(site.run(&["sweep"]).code, 0);
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}
