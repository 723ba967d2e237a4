//! A VM with a run in every phase at once, an update and a first deploy of each: for what hits all of them together.

use std::collections::BTreeMap;

use preview_tests::{Ran, Run, Site, Vm, VmOptions, eventually};

use crate::stacks::{alone, never_up, serving, stack, with_web};

/// The phases in which a deploy is held. The number of an update's pull request is its place here, from 1; that of a first deploy is ten more.
pub(crate) const PHASES: [&str; 6] = ["building", "pulling", "starting", "verifying", "queued", "preparing"];
/// The pull request whose preview is being destroyed.
pub(crate) const DOOMED: u32 = 7;

/// Large enough that it is on its way for a while.
const BIG: u64 = 900 << 20;

/// A registry that knows every image, and never hands one out. Debian's `perl-base` is enough for it.
const REGISTRY: &str = r#"
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 5000, Listen => 100, ReuseAddr => 1) or die;
$SIG{CHLD} = 'IGNORE';
while (my $c = $s->accept) {
  next if fork;
  sysread($c, my $l, 4096);
  if ($l =~ m{^GET /v2/ }) { print $c "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" }
  elsif ($l =~ m{/manifests/}) { sleep 100000 }
  else { print $c "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" }
  exit;
}
"#;

/// A run in a phase.
pub(crate) struct Held {
    pub(crate) pr: u32,
    pub(crate) phase: &'static str,
    pub(crate) run: Run,
}

/// How a run ended that was held.
pub(crate) struct Ended {
    pub(crate) pr: u32,
    pub(crate) phase: &'static str,
    pub(crate) ran: Ran,
}

pub(crate) struct Crowd {
    pub(crate) site: Site,
    /// Addresses of the previews that stand.
    urls: BTreeMap<u32, String>,
}

fn number(phase: &str) -> u32 {
    let place = PHASES.iter().position(|other| *other == phase).expect("a phase");
    u32::try_from(place).expect("few") + 1
}

/// All that are updated.
fn standing() -> Vec<u32> {
    PHASES.iter().map(|phase| number(phase)).collect()
}

fn folder(pr: u32) -> String {
    format!("p{pr}")
}

impl Crowd {
    /// Previews of version "one", with data; `None` where there is no lab.
    pub(crate) fn new(options: &VmOptions) -> Option<Self> {
        let mut crowd = Self { site: alone(options, "")?, urls: BTreeMap::new() };
        let mut all = standing();
        all.push(DOOMED);
        crowd.works(&all, "one");
        let app = &crowd.site.app;
        crowd.site.shell(&format!(
            "for c in $(docker ps -q --filter label=preview.app={app} --filter label=com.docker.compose.service=data); do \
             docker exec $c sh -c 'echo kept >/data/mine' || exit 1; done"
        ));
        Some(crowd)
    }

    pub(crate) fn vm(&self) -> &Vm {
        self.site.vm().expect("a VM")
    }

    /// Deploys a version that works, of all of these.
    fn works(&mut self, all: &[u32], word: &str) {
        for pr in all {
            let folder = folder(*pr);
            self.configure(*pr, "");
            if *pr == number("building") {
                let command = serde_json::json!(["sh", "-c", serving(word)]);
                self.site.write(&format!("{folder}/compose.yml"), &with_web("    build: ./web\n"));
                self.site.write(&format!("{folder}/web/Dockerfile"), &format!("FROM busybox:1.36\nCMD {}\n", command));
            } else {
                self.site.write(&format!("{folder}/compose.yml"), &stack(&serving(word)));
            }
        }
        let runs: Vec<(u32, Run)> = all.iter().map(|pr| (*pr, self.start(*pr))).collect();
        for (pr, run) in runs {
            let done = run.end().expect(0).json();
            self.urls.insert(pr, done["url"].as_str().expect("an address").to_owned());
        }
    }

    fn configure(&self, pr: u32, more: &str) {
        let more = if more.is_empty() { "max_previews = 100\n" } else { more };
        let limits = "[timeouts]\nbuild = \"15m\"\npull = \"15m\"\nstart = \"15m\"\nverify = \"15m\"\nlock = \"5s\"\n\
                      [limits]\nmin_free_disk = \"0MB\"\nmin_free_memory = \"0MB\"\n";
        self.site.write(&format!("{}/preview.toml", folder(pr)), &format!("{limits}{more}"));
    }

    fn start(&self, pr: u32) -> Run {
        let (number, folder) = (pr.to_string(), folder(pr));
        self.site.start(&["deploy", "--pr", &number, "--project-dir", &folder, "--format", "json"])
    }

    /// Makes the project one whose deploy stays in the phase.
    fn stuck(&self, pr: u32, phase: &str) {
        let site = &self.site;
        let folder = folder(pr);
        let compose = match phase {
            "building" => {
                site.write(
                    &format!("{folder}/web/Dockerfile"),
                    &format!("FROM busybox:1.36\nRUN echo {pr} && sleep 3000\n"),
                );
                with_web("    build: ./web\n")
            }
            "pulling" => with_web(&format!("    image: 127.0.0.1:5000/slow:{pr}\n")),
            "starting" => never_up(),
            "verifying" => stack("exec sleep 100000").replace("retries: 4", "retries: 4\n      start_period: 1000s"),
            "preparing" => {
                site.write(&format!("{folder}/big/one"), &pr.to_string());
                let blob = std::fs::File::create(site.dir.path().join(&folder).join("big/blob")).expect("a file");
                blob.set_len(BIG).expect("a long file");
                stack(&serving("two")).replace("[\"data:/data\"]", "[\"data:/data\", \"./big:/big:ro\"]")
            }
            _ => stack(&serving("two")),
        };
        site.write(&format!("{folder}/compose.yml"), &compose);
        // Fewer places than are taken, and an update that wants more than it has.
        let more = if phase == "queued" { "max_previews = 3\nweight = 2\non_full = \"queue\"\n" } else { "" };
        self.configure(pr, more);
    }

    /// A run in each phase, of an update and of a first deploy, and one that destroys.
    pub(crate) fn hold(&self) -> Vec<Held> {
        let site = &self.site;
        self.vm()
            .text(&["sh", "-c", &format!("setsid perl -e '{}' >/dev/null 2>&1 &", REGISTRY.replace('\'', "'\\''"))])
            .expect("a registry");
        let mut held = Vec::new();
        let waiting: Vec<&'static str> = PHASES.into_iter().filter(|phase| *phase != "preparing").collect();
        for phase in waiting {
            for pr in [number(phase), number(phase) + 10] {
                self.stuck(pr, phase);
                held.push(Held { pr, phase, run: self.start(pr) });
            }
        }
        for Held { pr, phase, run } in &mut held {
            if *phase == "queued" {
                run.until("in the queue");
                continue;
            }
            run.until(&format!("{phase}…"));
            eventually("the state says so", || site.phase(&format!("pr-{pr}")) == *phase);
        }
        let first = number("starting") + 10;
        eventually("Compose waits", || site.containers(&format!("pr-{first}")).contains_key("first"));
        // The engine asks the shim for the container's end, and waits.
        let doomed = site.containers(&format!("pr-{DOOMED}"));
        for id in doomed.values() {
            site.shell(&format!("pkill -STOP -f '[c]ontainerd-shim.* -id {id}'"));
        }
        let run = site.start(&["destroy", "--pr", &DOOMED.to_string(), "--format", "json"]);
        eventually("the state says so", || site.phase(&format!("pr-{DOOMED}")) == "destroying");
        held.push(Held { pr: DOOMED, phase: "destroying", run });
        // The last: nothing holds these up but their size.
        for pr in [number("preparing"), number("preparing") + 10] {
            self.stuck(pr, "preparing");
            held.push(Held { pr, phase: "preparing", run: self.start(pr) });
        }
        for pr in [number("preparing"), number("preparing") + 10] {
            let volume = format!("/var/lib/docker/volumes/files.{}_pr-{pr}/_data", site.app);
            let half = format!("find {volume} -size +1000k 2>/dev/null | grep -q .");
            site.shell(&format!("timeout 100 sh -c 'until {half}; do sleep 0.05; done'"));
        }
        for Held { pr, phase, run } in &mut held {
            assert!(run.at_work(), "pr-{pr} is not held while {phase}");
        }
        held
    }

    /// What was stopped to hold runs goes on.
    pub(crate) fn let_go(&self) {
        self.site.shell("pkill -CONT -f '[c]ontainerd-shim'; :");
    }

    /// Nothing on the host is at work for a run any more.
    pub(crate) fn quiet(&self) {
        eventually("nothing is at work on the host", || self.site.processes().is_empty());
    }

    /// What was at work ends; then one sweep is enough, and everything can go on.
    pub(crate) fn one_sweep_mends_it(&mut self) {
        self.quiet();
        self.sweep();
        self.goes_on();
        self.quiet();
    }

    /// Sweeps once: everything is as before, or gone.
    pub(crate) fn sweep(&self) {
        let swept = self.site.run(&["sweep", "--format", "json"]).expect(0).json();
        assert_eq!(swept["stayed"], serde_json::json!([]), "{swept}");
        for gone in swept["removed"].as_array().expect("a list") {
            assert_eq!(gone["left"], serde_json::json!([]), "nothing of it is left: {gone}");
        }
        self.clean("one");
    }

    /// All can be deployed, and destroyed.
    pub(crate) fn goes_on(&mut self) {
        let all = standing();
        self.works(&all, "two");
        self.clean("two");
        let destroy = |pr: &u32| self.site.start(&["destroy", "--pr", &pr.to_string()]);
        let runs: Vec<Run> = all.iter().map(destroy).collect();
        for run in runs {
            run.end().expect(0);
        }
        assert_eq!(self.site.remains(), Vec::<String>::new());
    }

    /// What there is of the application: objects of the engine and files, with their content.
    pub(crate) fn everything(&self) -> String {
        let Site { app, .. } = &self.site;
        let filter = format!("--filter label=preview.app={app}");
        self.site.shell(&format!(
            "{{ docker ps -a --no-trunc {filter} --format '{{{{.ID}}}} {{{{.Names}}}} {{{{.State}}}}'; docker network ls -q {filter}; \
             docker volume ls -q {filter}; docker image ls --no-trunc {filter} --format '{{{{.ID}}}} {{{{.Repository}}}}:{{{{.Tag}}}}'; find {base} -type f -exec md5sum {{}} +; }} | sort",
            base = self.site.base()
        ))
    }

    /// The standing previews answer with this and their data, and there is nothing else.
    pub(crate) fn clean(&self, word: &str) {
        let site = &self.site;
        let planned = site.run(&["sweep", "--dry-run", "--format", "json"]).expect(0).json();
        for key in ["removed", "mended", "stayed", "left"] {
            assert_eq!(planned[key], serde_json::json!([]), "{key}: {planned}");
        }
        assert_eq!((&planned["tickets"], &planned["tombstones"]), (&0.into(), &0.into()), "{planned}");
        let listed = site.run(&["list", "--format", "json"]).expect(0).json();
        let mut names = Vec::new();
        for listed in listed["previews"].as_array().expect("a list") {
            assert!(
                ["ready", "failed", "aborted", "timed_out"].contains(&listed["phase"].as_str().unwrap_or("?")),
                "{listed}"
            );
            names.push(listed["name"].as_str().expect("a name").to_owned());
        }
        let wanted: Vec<String> = standing().iter().map(|pr| format!("pr-{pr}")).collect();
        names.sort();
        assert_eq!(names, wanted);
        for pr in standing() {
            // An engine that was started again brings up by itself what no run had touched.
            let ask = ["curl", "-sS", "--max-time", "5", &self.urls[&pr]];
            eventually(&format!("pr-{pr} answers {word}"), || self.vm().text(&ask).is_ok_and(|page| page == word));
            let containers = site.containers(&format!("pr-{pr}"));
            assert_eq!(containers.keys().map(String::as_str).collect::<Vec<_>>(), ["data", "web"], "pr-{pr}");
            assert_eq!(site.docker(&["exec", &containers["data"], "cat", "/data/mine"]), "kept", "pr-{pr}");
        }
        let filter = [format!("label=preview.app={}", site.app), "label=com.docker.compose.service".to_owned()];
        let all = site.docker(&["ps", "-aq", "--filter", &filter[0], "--filter", &filter[1]]);
        assert_eq!(all.lines().count(), 2 * standing().len(), "no container is there twice");
        let stray = format!("find {} -name queue.json -o -name .lock -o -name '.preview-*'", site.base());
        assert_eq!(site.shell(&stray), "", "no ticket, no lock, no upload that broke off");
    }
}

/// Waits for their ends.
pub(crate) fn ends(held: Vec<Held>) -> Vec<Ended> {
    held.into_iter().map(|Held { pr, phase, run }| Ended { pr, phase, ran: run.end() }).collect()
}
