//! Files of the repository in a preview: the commit's where it has them, the application's where it wrote some, the same for all that mount
//! them, there as long as the preview, and gone with it, whoever owns them.

use std::os::unix::fs::PermissionsExt as _;

use preview_tests::{Site, VmEngine, Where, eventually};

/// A development file as most projects have one: what is built is mounted too, and mounts overlap.
const COMPOSE: &str = r#"
services:
  app:
    build: ./app
    command: ["httpd", "-f", "-p", "8000", "-h", "/code/static"]
    init: true
    ports: ["8000"]
    volumes: [".:/code", "./data:/data", "deps:/code/deps"]
  web:
    image: busybox:1.36
    command: ["httpd", "-f", "-p", "8000", "-h", "/www"]
    init: true
    volumes: ["./static:/www"]
  other:
    image: busybox:1.36
    command: ["sleep", "100000"]
    init: true
    configs: [plain]
  third:
    image: busybox:1.36
    command: ["sleep", "100000"]
    init: true
    secrets: [from_file, from_variable]
volumes: {deps: {}}
configs: {plain: {content: "one"}}
secrets:
  from_file: {file: ./token.txt}
  from_variable: {environment: TOKEN}
"#;

const CONFIG: &str = r#"
[env]
TOKEN = "first"

[[route]]
service = "app"
port = 8000

[timeouts]
verify = "15s"
"#;

struct Files(Site);

impl Files {
    fn new(place: Where) -> Option<Self> {
        let site = Site::new(place, COMPOSE)?;
        site.write("preview.toml", CONFIG);
        site.write("app/Dockerfile", "FROM busybox:1.36\nCOPY main.txt /built.txt\n");
        site.write("app/main.txt", "main\n");
        site.write("static/index.html", "one\n");
        site.write("static/old.html", "old\n");
        site.write("tool", "#!/bin/sh\necho tool\n");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(site.dir.path().join("tool"), mode).expect("rights");
        site.write("data/.gitkeep", "");
        site.write("token.txt", "token one");
        site.write(".git/config", "the checkout's token");
        Some(Self(site))
    }

    fn sh(&self, service: &str, script: &str) -> String {
        let ran = self.0.run(&["exec", "--pr", "7", service, "--", "sh", "-c", script]);
        ran.expect(0).out.trim().to_owned()
    }

    /// Deploys; the services whose containers are others than before.
    #[track_caller]
    fn deploy(&self) -> Vec<String> {
        let before = self.0.containers("pr-7");
        let _ = self.0.deploy("7").expect(0);
        let after = self.0.containers("pr-7");
        after.into_iter().filter(|(service, id)| before.get(service) != Some(id)).map(|(service, _)| service).collect()
    }

    /// Every container starts again, and so does what is in it.
    fn restart(&self) {
        for id in self.0.containers("pr-7").values() {
            let _ = self.0.docker(&["restart", "-t", "0", id]);
        }
        eventually("the page is there again", || {
            self.0.run(&["exec", "--pr", "7", "web", "--", "wget", "-qO-", "http://app:8000/index.html"]).code == 0
        });
    }

    #[track_caller]
    fn gone(&self) {
        let _ = self.0.run(&["destroy", "--pr", "7"]).expect(0);
        assert_eq!(self.0.remains(), Vec::<String>::new());
    }
}

fn life(place: Where) {
    let Some(files) = Files::new(place) else { return };
    assert_eq!(files.deploy(), ["app", "other", "third", "web"]);
    assert_eq!(
        files.sh("app", "cat /built.txt /code/app/main.txt; ls -A /code"),
        "main\nmain\napp\ncompose.yml\ndata\ndeps\npreview.toml\nstatic\ntoken.txt\ntool"
    );

    // What one writes the other sees, although its directory is mounted by itself. As root, with rights that nobody else has.
    files.sh(
        "app",
        "echo seen >/code/static/x; mkdir -m 0700 -p /data/deep/er; echo mine >/data/deep/er/f; chmod 000 /data/deep",
    );
    assert_eq!(files.sh("web", "cat /www/x"), "seen");
    assert_eq!(files.deploy(), Vec::<String>::new(), "nothing of the commit changed");

    // A commit changes, adds and removes files: what the application wrote is still there.
    files.0.write("static/index.html", "two\n");
    files.0.write("data/seed.sql", "seed\n");
    std::fs::remove_file(files.0.dir.path().join("static/old.html")).expect("a file");
    assert_eq!(files.deploy(), ["app", "web"], "those that mount what changed");
    assert_eq!(files.sh("web", "ls /www; cat /www/index.html"), "index.html\nx\ntwo");
    assert_eq!(files.sh("app", "chmod 700 /data/deep; cat /data/seed.sql /data/deep/er/f"), "seed\nmine");
    files.restart();

    // An update that fails gives all of it back.
    files.sh(
        "app",
        "rm /code/app/main.txt; cd /code; echo of the application >added.txt; chmod 640 added.txt; chown 33:34 added.txt",
    );
    let rights = || files.sh("app", "cd /code; stat -c '%n %a %u:%g' added.txt tool static/index.html");
    let before = rights();
    assert_eq!(before, "added.txt 640 33:34\ntool 755 1000:1000\nstatic/index.html 644 1000:1000");
    files.0.write("static/index.html", "three\n");
    files.0.write("static/new.html", "new\n");
    files.0.write("added.txt", "of the commit\n");
    files.0.write("tool", "#!/bin/sh\necho tool two\n");
    files.0.write("app/main.txt", "main two\n");
    files.0.write("compose.yml", &COMPOSE.replacen("/code/static", "/no/such/directory", 1));
    std::fs::remove_file(files.0.dir.path().join("data/seed.sql")).expect("a file");
    let failed = files.0.deploy("7").expect(4).json();
    assert_eq!(failed["error"]["report"]["restored"]["kind"], "previous", "{failed}");
    assert_eq!(rights(), before, "who may read and run what was replaced may do so again");
    assert_eq!(files.sh("app", "/code/tool"), "tool");
    assert_eq!(files.sh("web", "ls /www; cat /www/index.html"), "index.html\nx\ntwo");
    assert_eq!(
        files.sh("app", "cat /data/seed.sql /data/deep/er/f /code/added.txt; ls /code/app"),
        "seed\nmine\nof the application\nDockerfile"
    );
    files.restart();
    files.0.write("compose.yml", COMPOSE);
    assert_eq!(files.deploy(), ["app", "web"]);
    assert_eq!(files.sh("web", "ls /www; cat /www/index.html"), "index.html\nnew.html\nx\nthree");
    assert_eq!(
        files.sh("app", "ls /data; cat /data/deep/er/f /code/added.txt /code/app/main.txt"),
        "deep\nmine\nof the commit\nmain two"
    );

    // A container that puts links in place of what others mount gains nothing, now and after a restart.
    files.sh(
        "app",
        "rm -rf /code/static /code/token.txt; ln -sfn / /code/static; ln -sf /etc/passwd /code/token.txt; echo here >/code/static/here",
    );
    for id in files.0.containers("pr-7").values() {
        let _ = files.0.docker(&["restart", "-t", "0", id]);
    }
    assert_eq!(
        files.sh("web", "ls /www"),
        "here",
        "what the container could remove is gone, and nothing else is there"
    );
    assert_eq!(files.sh("third", "cat /run/secrets/from_file"), "token one");
    files.gone();
}

#[test]
fn on_this_machine() {
    life(Where::Local);
}

#[test]
fn on_a_vm_by_a_user_who_is_not_root() {
    life(Where::Vm(VmEngine::V28));
}

/// Exactly those who use what changed are made anew, with the new value; and what is mounted stays, so that each starts again.
#[test]
fn configs_and_secrets_reach_those_who_use_them() {
    let Some(files) = Files::new(Where::Local) else { return };
    files.deploy();
    files.0.write("token.txt", "token two");
    assert_eq!(files.deploy(), ["app", "third"], "the application mounts the whole repository");
    assert_eq!(files.sh("third", "cat /run/secrets/from_file"), "token two");
    files.0.write("preview.toml", &CONFIG.replacen("first", "second", 1));
    assert_eq!(files.deploy(), ["app", "third"]);
    assert_eq!(files.sh("third", "cat /run/secrets/from_variable"), "second");
    files.0.write("compose.yml", &COMPOSE.replacen("content: \"one\"", "content: \"two\"", 1));
    assert_eq!(files.deploy(), ["app", "other"]);
    assert_eq!(files.sh("other", "cat /plain"), "two");
    files.restart();
    files.gone();
}

/// A run that is killed while files change leaves nothing that the next one does not mend.
#[test]
fn a_killed_run_is_mended() {
    let Some(files) = Files::new(Where::Local) else { return };
    files.deploy();
    files.sh("app", "echo mine >/data/f");
    for word in ["preparing", "building", "starting", "verifying"] {
        files.0.write("static/index.html", &format!("{word}\n"));
        files.0.write(&format!("data/{word}.sql"), word);
        let mut run = files.0.start(&["deploy", "--pr", "7"]);
        run.until(word);
        if run.at_work() {
            run.kill();
        }
        files.deploy();
        assert_eq!(files.sh("web", "cat /www/index.html"), word);
        assert_eq!(files.sh("app", &format!("cat /data/f /data/{word}.sql")), format!("mine\n{word}"));
    }
    files.gone();
}

const TWO: &str = r#"
services:
  writer:
    image: busybox:1.36
    command: [sh, -c, "rm -rf /a/up /a/undo; ln -s .. /a/up; ln -s ../.preview-files-undo /a/undo; exec sleep 1000"]
    volumes: ["./a:/a"]
  reader:
    image: busybox:1.36
    command: [sleep, "1000"]
    environment: {VERSION: "one"}
    volumes: ["./b:/b", "./c:/c"]
"#;

/// The engine writes the files of a commit with its own rights, and through links that a container put in place of directories. Where that leads, no
/// commit can name what another service is mounted from, or what decides the way back.
#[test]
fn a_container_and_a_commit_together_lead_no_mount_elsewhere() {
    let Some(site) = Site::new(Where::Vm(VmEngine::V28), TWO) else { return };
    for (path, text) in [("a/up/f", ""), ("a/undo/f", ""), ("b/own", "b"), ("c", "c")] {
        site.write(path, text);
    }
    let files = Files(site);
    assert_eq!(files.deploy(), ["reader", "writer"]);
    let reader = files.0.containers("pr-7")["reader"].clone();
    let sources = files.0.docker(&["inspect", "-f", "{{range .Mounts}}{{.Source}} {{end}}", &reader]);
    let names: Vec<&str> = sources.split_whitespace().filter_map(|path| path.rsplit('/').next()).collect();
    assert_eq!(names.len(), 2, "{sources}");
    let project = files.0.dir.path();
    for name in names {
        for directory in ["a/up", "a/undo"] {
            std::os::unix::fs::symlink("/", project.join(directory).join(name)).expect("a link");
        }
    }
    files.0.write("a/undo/.preview-files-plan.json", "nothing that can be read");
    // What the commit may name goes through the links.
    files.0.write("a/up/new", "new");
    files.0.write("a/undo/new", "new");
    files.0.write("compose.yml", &TWO.replacen("one", "two", 1));
    assert_eq!(files.deploy(), ["reader", "writer"]);
    assert_eq!(files.sh("reader", "ls /b; cat /b/own /c"), "own\nbc");
    // So it is once each starts again, and after an update that fails.
    for id in files.0.containers("pr-7").values() {
        let _ = files.0.docker(&["restart", "-t", "0", id]);
    }
    files.0.write("b/own", "changed");
    files.0.write("compose.yml", &TWO.replacen("[sleep, \"1000\"]", "[no-such-program]", 1));
    let _ = files.0.deploy("7").expect(4);
    assert_eq!(files.sh("reader", "ls /b; cat /b/own /c"), "own\nbc");
    files.gone();
}

/// `web` reads its page anew when that gets younger, as development servers do; the file of before is older.
const RELOADS: &str = r#"
services:
  web:
    build: .
    command: ["sh", "-c", "mkdir /srv; cp -p /code/page /srv/index.html; (while sleep 0.2; do [ /code/page -nt /srv/index.html ] && cp -p /code/page /srv/index.html; done) & exec httpd -f -p 8000 -h /srv"]
    init: true
    stop_grace_period: 0s
    ports: ["8000"]
    volumes: [".:/code"]
  data:
    image: busybox:1.36
    command: ["sleep", "100000"]
    stop_grace_period: 0s
"#;

fn what_reloads_goes_back(place: Where) {
    let Some(site) = Site::new(place, RELOADS) else { return };
    let dockerfile = |run: &str| site.write("Dockerfile", &format!("FROM busybox:1.36\nRUN {run}\n"));
    dockerfile("true");
    site.write("page", "one\n");
    site.deploy("7").expect(0);
    let before = site.containers("pr-7");
    let page = || site.run(&["exec", "--pr", "7", "web", "--", "wget", "-qO-", "http://127.0.0.1:8000/"]).out;
    let shows = |word: &str| eventually(&format!("the page is {word}"), || page().trim() == word);

    // While it builds, the new page is there.
    site.write("page", "two\n");
    dockerfile("sleep 4 && false");
    let ran = site.deploy("7").expect(4);
    assert_eq!(ran.failure(), "build_failed");
    shows("one");
    assert_eq!(site.containers("pr-7"), before, "they are the same ones");

    // A run that dies: a sweep, or the next run, does the same.
    for mends in [&["sweep"][..], &["deploy", "--pr", "7"]] {
        site.write("page", "three\n");
        dockerfile(&format!("echo {mends:?}; sleep 300"));
        let mut run = site.start(&["deploy", "--pr", "7"]);
        run.until("building…");
        shows("three");
        run.kill();
        site.write("page", "one\n");
        dockerfile("true");
        eventually("it is mended", || site.run(mends).code == 0 && page().trim() == "one");
    }
    site.run(&["destroy", "--pr", "7"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn a_server_that_reloads_its_files_goes_back_on_this_machine() {
    what_reloads_goes_back(Where::Local);
}

#[test]
fn a_server_that_reloads_its_files_goes_back_on_a_vm() {
    what_reloads_goes_back(Where::Vm(VmEngine::V28));
}
