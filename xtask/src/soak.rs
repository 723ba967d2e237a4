//! Many runs at once against one VM: real processes of the built command, which deploy, wait for places and destroy, while an observer
//! looks past them at the engine and the files.

mod load;
mod order;
mod report;
mod usage;
mod watch;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{Lab, Vm};
use crate::sh;
use load::{Job, Places, Rules};
use order::Who;
use watch::Watch;

pub use report::{Facts, render};

/// The waves of the gate, and its places.
pub const WAVES: [usize; 4] = [20, 40, 60, 100];
/// So few that most have to wait.
pub const PLACES: u16 = 8;

/// No command takes so long; who waits for a place gives up after half an hour by itself.
const LIMIT: Duration = Duration::from_secs(35 * 60);
/// So often the progress is told.
const TELL: Duration = Duration::from_secs(10);
/// So often the memory of the runs is looked at.
const SAMPLE: Duration = Duration::from_secs(2);
/// Of all ends of runs, at most so many may be the infrastructure's fault.
pub const TOLERATED: f64 = 0.02;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many runs begin at once, wave by wave.
    pub waves: Vec<usize>,
    /// Places of the VM.
    pub places: u16,
    /// What the names of the applications begin with.
    pub app: String,
    /// The command.
    pub binary: PathBuf,
}

/// How a run ended.
#[derive(Clone, Debug)]
struct Ended {
    job: Job,
    /// Nothing where it got to `ready`.
    failure: Option<String>,
    deploy: Duration,
    /// Behind a failure that was not meant: what was said.
    said: String,
    /// The destroy, where there was something to destroy.
    destroy: Option<Destroyed>,
}

#[derive(Clone, Debug)]
struct Destroyed {
    took: Duration,
    failure: Option<String>,
    said: String,
}

/// What was measured of a wave.
#[derive(Clone, Debug)]
struct Wave {
    runs: usize,
    took: Duration,
    most_running: Places,
    most_reserved: Places,
    most_waiting: usize,
    /// Places in use on the average.
    mean: f64,
    runner_seconds: f64,
    vm_seconds: f64,
    /// Kilobytes.
    runner_memory: u64,
    vm_memory: u64,
    /// Connections that `sshd` dropped because too many knocked at once.
    turned_away: usize,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    rules: Rules,
    ended: Vec<Ended>,
    waves: Vec<Wave>,
    /// Seconds in the queue, by number of the run; none for those who had a place at once.
    queued: BTreeMap<usize, f64>,
    looks: usize,
    judged: usize,
    took: Duration,
    /// What must not be, one sentence each.
    pub broken: Vec<String>,
}

/// Runs all waves, and looks at what is left.
///
/// # Errors
/// When the VM or the command cannot be used at all. What the runs did wrong is in the outcome.
pub fn run(lab: &Lab, vm: &Vm, options: &Options) -> Result<Outcome> {
    let begun = Instant::now();
    let rules = Rules::of(options.places);
    let site = Site::new(lab, vm, options, &rules)?;
    let jobs: Vec<Job> = (1..=options.waves.iter().sum()).map(|number| Job::new(&options.app, number)).collect();
    let known = jobs.iter().map(|job| (job.key(), Who { weight: job.kind.weight(), owner: job.owner })).collect();
    let watch = Watch::start(vm, &site.base, known, rules)?;
    let (mut ended, mut waves, mut broken) = (Vec::new(), Vec::new(), Vec::new());
    let mut rest = jobs.as_slice();
    for (index, size) in options.waves.iter().enumerate() {
        let (now, later) = rest.split_at(*size);
        rest = later;
        let (lives, wave) = one_wave(&site, &watch, now, &format!("wave {}/{}", index + 1, options.waves.len()))?;
        ended.extend(lives);
        waves.push(wave);
        broken.extend(site.stale(&watch)?);
    }
    let seen = watch.end()?;
    broken.extend(seen.broken);
    broken.extend(site.swept()?);
    broken.extend(site.remains()?.into_iter().map(|what| format!("left after the last wave: {what}")));
    let queued = jobs.iter().filter_map(|job| {
        let (from, to) = (seen.queued.get(&job.key())?, seen.admitted.get(&job.key())?);
        Some((job.number, to - from))
    });
    let mut outcome = Outcome {
        rules,
        queued: queued.collect(),
        ended,
        waves,
        looks: seen.looks,
        judged: seen.judged,
        took: begun.elapsed(),
        broken,
    };
    outcome.judge();
    Ok(outcome)
}

fn one_wave(site: &Site<'_>, watch: &Watch<'_>, jobs: &[Job], name: &str) -> Result<(Vec<Ended>, Wave)> {
    eprintln!("{name}  {} runs", jobs.len());
    let before = (usage::ended_children(), usage::of_vm(site.vm)?, site.turned_away()?);
    watch.seen().begin();
    let begun = Instant::now();
    let ended = Mutex::new(Vec::new());
    let memory = std::thread::scope(|scope| {
        let at_work: Vec<_> = jobs
            .iter()
            .map(|job| {
                scope.spawn(|| {
                    let end = site.life(job);
                    ended.lock().unwrap_or_else(PoisonError::into_inner).push(end);
                })
            })
            .collect();
        let (mut memory, mut told, mut sampled) = (0, Instant::now(), Instant::now());
        while at_work.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(100));
            if sampled.elapsed() >= SAMPLE {
                memory = usage::memory(watch.id()).max(memory);
                sampled = Instant::now();
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                let seen = watch.seen();
                eprintln!(
                    "  {:>4} s  {} waiting, {} with a place, {} ended",
                    begun.elapsed().as_secs(),
                    seen.last.tickets.len(),
                    seen.last.states.len(),
                    ended.lock().unwrap_or_else(PoisonError::into_inner).len()
                );
            }
        }
        memory
    });
    let mut ended: Vec<Ended> =
        ended.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect::<Result<_>>()?;
    ended.sort_by_key(|end| end.job.number);
    let took = begun.elapsed();
    watch.again()?;
    let after = (usage::ended_children(), usage::of_vm(site.vm)?, site.turned_away()?);
    let seen = watch.seen();
    let wave = Wave {
        runs: jobs.len(),
        took,
        most_running: seen.most_running,
        most_reserved: seen.most_reserved,
        most_waiting: seen.most_waiting,
        mean: seen.filled / seen.seconds.max(0.1),
        runner_seconds: after.0 - before.0,
        vm_seconds: after.1 - before.1,
        runner_memory: memory,
        vm_memory: seen.memory,
        turned_away: after.2.saturating_sub(before.2),
    };
    let done = ended.iter().filter(|end| end.as_meant()).count();
    eprintln!("{name}  {} of {} ended as they were meant to, {:.0} s", done, jobs.len(), took.as_secs_f64());
    Ok((ended, wave))
}

impl Ended {
    /// The stack explains the end, and the destroy did its work.
    fn as_meant(&self) -> bool {
        self.failure.as_deref() == self.job.meant.code()
            && self.destroy.as_ref().is_none_or(|end| end.failure.is_none())
    }
}

impl Outcome {
    /// Ends of deploys and destroys that nothing in the stacks explains, with the part of all ends.
    fn infrastructure(&self) -> (usize, usize) {
        let destroys = self.ended.iter().filter_map(|end| end.destroy.as_ref());
        let bad = self.ended.iter().filter(|end| end.failure.as_deref() != end.job.meant.code()).count();
        let bad_destroys = destroys.clone().filter(|end| end.failure.is_some()).count();
        (bad + bad_destroys, self.ended.len() + destroys.count())
    }

    /// What of the ends must not be.
    fn judge(&mut self) {
        let (bad, all) = self.infrastructure();
        if bad as f64 >= TOLERATED * all as f64 && bad > 0 {
            self.broken.push(format!("{bad} of {all} runs ended as nothing in their stacks explains"));
        }
        for end in &self.ended {
            let destroy = end.destroy.as_ref().and_then(|end| end.failure.as_deref());
            for (what, failure) in [("deploy", end.failure.as_deref()), ("destroy", destroy)] {
                if failure == Some(UNNAMED) {
                    self.broken.push(format!("the {what} of {} ended without a failure code", end.job.number));
                }
            }
        }
    }

    /// What was said by runs that ended as nothing explains, to find out why.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let mut found = Vec::new();
        for end in &self.ended {
            let Job { app, number, kind, meant, .. } = &end.job;
            if end.failure.as_deref() != meant.code() {
                let code = end.failure.as_deref().unwrap_or("ready");
                found.push(format!("deploy of {app} pr-{number} ({kind:?}, {meant:?}): {code}\n{}", end.said));
            }
            if let Some(Destroyed { failure: Some(code), said, .. }) = &end.destroy {
                found.push(format!("destroy of {app} pr-{number}: {code}\n{said}"));
            }
        }
        found
    }
}

/// Stands for a failure that the program did not name.
const UNNAMED: &str = "(none)";

/// A directory on the VM and projects here, both of this soak alone; gone at its end.
struct Site<'a> {
    lab: &'a Lab,
    vm: &'a Vm,
    options: &'a Options,
    base: String,
    dir: PathBuf,
}

/// A command that has ended.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
    took: Duration,
}

impl<'a> Site<'a> {
    fn new(lab: &'a Lab, vm: &'a Vm, options: &'a Options, rules: &Rules) -> Result<Self> {
        let base = format!("/opt/previews/{}", options.app);
        let dir = std::env::temp_dir().join(format!("preview-soak-{}-{}", options.app, std::process::id()));
        vm.load_image(&["busybox:1.36"])?;
        vm.text(&["install", "-d", "-o", "deploy", "-m", "0700", "/opt/previews"])?;
        fs::create_dir_all(&dir)?;
        load::write(&dir, rules)?;
        Ok(Self { lab, vm, options, base, dir })
    }

    /// A deploy, and if there is something then, a destroy a little later.
    fn life(&self, job: &Job) -> Result<Ended> {
        let pr = job.number.to_string();
        let deploy = self.command(job, &["deploy", "--pr", &pr, "--owner", job.owner, "--format", "json"])?;
        let failure = deploy.failure();
        let mut destroy = None;
        if failure.is_none() {
            // Not all the same, so that places do not become free in step.
            std::thread::sleep(Duration::from_millis(1000 + 400 * (job.number as u64 % 6)));
            let done = self.command(job, &["destroy", "--pr", &pr, "--format", "json"])?;
            let failure = done.failure();
            if failure.is_some() {
                // It counts as it ended, but those who wait need the place.
                self.command(job, &["destroy", "--pr", &pr, "--format", "json"])?;
            }
            destroy = Some(Destroyed { took: done.took, failure, said: done.err });
        }
        Ok(Ended { job: job.clone(), failure, deploy: deploy.took, said: deploy.err, destroy })
    }

    /// Runs the command to its end, with the environment of a runner: nothing but what it needs.
    fn command(&self, job: &Job, args: &[&str]) -> Result<Ran> {
        let path = |name: &str| self.dir.join(format!("{}-{}.{name}", job.number, args.first().unwrap_or(&"")));
        let mut command = Command::new(&self.options.binary);
        command.args(args).current_dir(job.project(&self.dir)).env_clear().stdin(Stdio::null());
        for name in ["PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        self.lab.set_environment(&mut command);
        command.env("PREVIEW_APP", &job.app).env("PREVIEW_BASE_DIR", &self.base);
        command.env("PREVIEW_HOST", self.vm.ssh_url()).env("PREVIEW_IDENTITY_FILE", self.vm.identity_file());
        command.env("PREVIEW_KNOWN_HOSTS", self.vm.known_hosts()).env("PREVIEW_LOG_FORMAT", "json");
        // Files, so that nobody has to read while it runs.
        command.stdout(File::create(path("out"))?).stderr(File::create(path("err"))?);
        let begun = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.options.binary.display()))?;
        let mut status = child.try_wait()?;
        while status.is_none() && begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(50));
            status = child.try_wait()?;
        }
        if status.is_none() {
            child.kill()?;
            child.wait()?;
        }
        let read = |name| fs::read(path(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let (out, err) = (read("out")?, sh::tail(&read("err")?, 12));
        Ok(Ran { code: status.and_then(|status| status.code()), out, err, took: begun.elapsed() })
    }

    /// Connections that `sshd` turned away so far.
    fn turned_away(&self) -> Result<usize> {
        Ok(self.vm.sshd_log()?.lines().filter(|line| line.contains("MaxStartups") && line.contains("drop")).count())
    }

    /// After a wave nobody is at work, so nothing may say that somebody is. A shell of the VM whose run has ended may need a moment.
    fn stale(&self, watch: &Watch<'_>) -> Result<Vec<String>> {
        let script =
            format!("find {0} -name .lock -o -name queue.json -o -name state.json 2>/dev/null || :", self.base);
        let mut left = String::new();
        let _ = sh::wait_until("the end of all locks", Duration::from_secs(40), || {
            self.vm.text(&["sh", "-c", &script]).is_ok_and(|found| {
                left = found;
                left.is_empty()
            })
        });
        watch.again()?;
        let seen = watch.seen();
        let mut found: Vec<String> = left.lines().map(|path| format!("stale after a wave: {path}")).collect();
        found.extend(
            seen.last.running.iter().map(|key| format!("stale after a wave: containers of {} {}", key.0, key.1)),
        );
        Ok(found)
    }

    /// A sweep finds nothing to do.
    fn swept(&self) -> Result<Vec<String>> {
        let ran = self.command(&Job::new(&self.options.app, 1), &["sweep", "--format", "json"])?;
        if ran.code != Some(0) {
            return Ok(vec![format!("the sweep ended with {:?}: {}", ran.code, ran.err)]);
        }
        let document: Value = serde_json::from_str(&ran.out)?;
        let lists = ["removed", "mended", "stayed", "images"].map(|key| (key, &document[key]));
        let some = lists.iter().filter(|(_, list)| list.as_array().is_none_or(|list| !list.is_empty()));
        Ok(some.map(|(key, list)| format!("the sweep found something to do: {key}: {list}")).collect())
    }

    /// What of ours is on the engine or in the directory. The lines by which runs agree about places are no preview's.
    fn remains(&self) -> Result<Vec<String>> {
        let filter = format!("--filter label=preview.base={}", self.base);
        let script = format!(
            "docker ps -aq {filter} | sed 's/^/container /'; docker network ls -q {filter} | sed 's/^/network /'; \
             docker volume ls -q {filter} | sed 's/^/volume /'; docker image ls -q {filter} | sed 's/^/image /'; \
             [ ! -d {0} ] || find {0} -mindepth 1 ! -path '{0}/.places' ! -path '{0}/.freed' ! -path '{0}/.history.jsonl' ! -path '{0}/.metrics' | sed 's/^/file /'",
            self.base
        );
        Ok(self.vm.text(&["sh", "-c", &script])?.lines().map(str::to_owned).collect())
    }
}

impl Ran {
    /// The failure code; nothing if it went well.
    fn failure(&self) -> Option<String> {
        if self.code == Some(0) {
            return None;
        }
        let document: Value = serde_json::from_str(&self.out).unwrap_or_default();
        Some(document["error"]["failure"].as_str().unwrap_or(UNNAMED).to_owned())
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        // A soak that broke off leaves its previews.
        let filter = format!("--filter label=preview.base={}", self.base);
        let script = format!(
            "docker ps -aq {filter} | xargs -r docker rm -fv; docker network ls -q {filter} | xargs -r docker network rm; \
             docker volume ls -q {filter} | xargs -r docker volume rm; rm -rf {}",
            self.base
        );
        let _ = self.vm.exec(&["sh", "-c", &script]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Options {
    /// Options out of words: `--waves 4,8 --places 3`.
    ///
    /// # Errors
    /// When a word is not known, or a value is none.
    pub fn parse(words: &[&str], app: &str, binary: PathBuf) -> Result<Self> {
        let mut options = Self { waves: WAVES.to_vec(), places: PLACES, app: app.to_owned(), binary };
        for pair in words.chunks(2) {
            match *pair {
                ["--waves", list] => {
                    options.waves = list.split(',').map(str::parse).collect::<Result<_, _>>().context("--waves 4,8")?;
                }
                ["--places", number] => options.places = number.parse().context("--places 3")?,
                ["--binary", file] => options.binary = fs::canonicalize(file)?,
                _ => bail!("usage: cargo xtask soak [--waves 20,40,60,100] [--places 8] [--binary FILE]"),
            }
        }
        if options.places < 2 || options.waves.contains(&0) {
            bail!("a heavy preview takes 2 places, and a wave has runs");
        }
        Ok(options)
    }

    /// Whether it is the whole gate, so that the result may stand in the documentation.
    #[must_use]
    pub fn whole(&self) -> bool {
        self.waves == WAVES && self.places == PLACES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_gate_is_documented() {
        let parse = |words: &[&str]| Options::parse(words, "soak", PathBuf::new());
        assert!(parse(&[]).unwrap().whole());
        let small = parse(&["--waves", "4,8", "--places", "3"]).unwrap();
        assert!(!small.whole() && small.waves == [4, 8] && small.places == 3);
        for words in [&["--places"][..], &["--places", "1"], &["--waves", "4,0"], &["--runs", "3"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
