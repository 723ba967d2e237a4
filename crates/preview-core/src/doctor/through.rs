//! A probe through the whole path: a preview of its own is deployed like any other, asked the way that users go, and removed whatever came of it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::look::{self, Page, Reached};
use super::{Finding, probed, run, tls};
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};
use crate::generate::generate;
use crate::host::guardian::Guardian;
use crate::lifecycle::{self, Client, Destroy, Error, Event, Interrupt, Observer, Whose};
use crate::lock::{Acquired, Holder, Lease};
use crate::project::{Deploy, Project};
use crate::proxy::Proxy;
use crate::runtime::Runtime;
use crate::secret::Redactor;

/// What runs where nobody says otherwise.
pub const IMAGE: &str = "busybox:1.36";
/// The owner of probes, by which they are told from previews that somebody wants.
pub const OWNER: &str = "preview doctor --probe";
/// One probe at a time on a host: they have one name, so that a certificate that is made for it is made once.
const LOCK: &str = ".probe.lock";
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);
/// Whoever asks for a record before its servers have it is told for a long time that there is none.
const RECORDS: Duration = Duration::from_secs(5);

/// What a probe is to be like.
#[derive(Clone, Debug)]
pub struct Probe {
    /// An image with busybox.
    pub image: String,
    /// A file with authorities that may vouch for certificates, instead of those of this machine.
    pub ca: Option<PathBuf>,
}

/// Deploys a preview, asks it at its addresses, and removes it. `around` is the project without the application's files; `deploy` says
/// which preview. Fails only where it was interrupted, and then nothing of the probe is left either.
#[expect(clippy::too_many_arguments, reason = "they are what a deploy is about")]
pub async fn probe(
    connect: impl Future<Output = Result<Client, Error>>,
    resolver: &dyn Runtime,
    around: Project,
    deploy: &Deploy,
    wish: &Probe,
    observer: &dyn Observer,
    redactor: &Redactor,
    interrupt: &Interrupt,
) -> Result<Finding, Error> {
    let Some(project) = probed::project(around) else {
        return Ok(probed::skipped("no address of the previews is one of HTTP (`url`)"));
    };
    let token = match generate(32) {
        Ok(token) => token.expose().clone(),
        Err(fault) => return Ok(probed::not_begun(&fault.into())),
    };
    // Its directory goes even if this process is killed.
    let guardian = match Guardian::start() {
        Ok(guardian) => guardian,
        Err(fault) => return Ok(probed::not_begun(&fault.into())),
    };
    let written = async {
        let directory = tokio::fs::canonicalize(guardian.run_dir()).await?;
        write(&directory, &project, &wish.image, &token).await.map(|()| directory)
    };
    let directory = match written.await {
        Ok(directory) => directory,
        Err(error) => {
            let fault = Fault::new(FaultKind::Failed, "write the probe's files", "on this machine").caused_by(error);
            return Ok(probed::not_begun(&fault.into()));
        }
    };
    let project = Project {
        files: vec![directory.join("compose.yml")],
        directory: directory.clone(),
        repository: directory,
        ..project
    };
    let run = Run { resolver, project: &project, deploy, wish, token: &token, observer, redactor, interrupt };
    let found = run.reach(connect).await;
    guardian.finish().await;
    found
}

fn interrupted() -> Error {
    Fault::new(FaultKind::TimedOut, "probe the whole path", "interrupted").coded(FailureCode::Interrupted).into()
}

/// The stack, and what it shows. Whoever the server in the container is, and whatever this process's mask, it can read that.
async fn write(directory: &Path, project: &Project, image: &str, token: &str) -> std::io::Result<()> {
    let open = |path: PathBuf, mode| tokio::fs::set_permissions(path, Permissions::from_mode(mode));
    for below in probed::directories(project) {
        let mut path = directory.join("www");
        let parts = below.split('/').filter(|part| !part.is_empty());
        for part in std::iter::once(None).chain(parts.map(Some)) {
            path.extend(part);
            tokio::fs::create_dir_all(&path).await?;
            open(path.clone(), 0o755).await?;
        }
        let file = path.join(probed::FILE);
        tokio::fs::write(&file, format!("{token}\n")).await?;
        open(file, 0o644).await?;
    }
    tokio::fs::write(directory.join("compose.yml"), probed::compose(image).to_string()).await
}

/// A probe under way.
struct Run<'a> {
    resolver: &'a dyn Runtime,
    project: &'a Project,
    deploy: &'a Deploy,
    wish: &'a Probe,
    token: &'a str,
    observer: &'a dyn Observer,
    redactor: &'a Redactor,
    interrupt: &'a Interrupt,
}

impl Run<'_> {
    /// Connects, and has the host's probes for itself.
    async fn reach(&self, connect: impl Future<Output = Result<Client, Error>>) -> Result<Finding, Error> {
        let alone = async {
            let client = connect.await?;
            let lease = self.alone(&client).await?;
            Ok::<_, Error>((client, lease))
        };
        let reached = tokio::select! {
            reached = alone => reached,
            () = self.interrupt.fired() => return Err(interrupted()),
        };
        let (client, lease) = match reached {
            Ok(reached) => reached,
            Err(error) => return Ok(probed::not_begun(&error)),
        };
        let found = self.whole(&client).await;
        // What cannot be given back frees itself.
        let _ = lease.release(true).await;
        found
    }

    /// Waits for whoever probes this host already.
    async fn alone(&self, client: &Client) -> Result<Box<dyn Lease>, Error> {
        let path = format!("{}/{LOCK}", client.base_dir);
        let since = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let holder = Holder { who: self.deploy.who.clone(), why: OWNER.to_owned(), since };
        let waiting = |other: Option<Holder>| self.observer.event(&Event::Waiting(&path, other.as_ref()));
        let begun = Instant::now();
        match client.lock.acquire(&path, &holder, self.project.timeouts.lock, &waiting).await? {
            Acquired::Held(lease) => Ok(lease),
            Acquired::TimedOut(holder) => {
                Err(Error::Locked { what: "the probe of this host".to_owned(), holder, waited: begun.elapsed() })
            }
        }
    }
    async fn whole(&self, client: &Client) -> Result<Finding, Error> {
        let name = &self.deploy.target.name;
        match lifecycle::status(client, &self.deploy.target).await {
            Err(Error::NotFound(_)) => {}
            // Of one that was killed.
            Ok(status) if status.owner.as_deref() == Some(OWNER) => {
                if let Err(error) = self.remove(client).await {
                    return Ok(probed::not_begun(&error));
                }
            }
            Ok(status) => {
                let by = status.subject.or(status.owner).unwrap_or_else(|| "somebody".to_owned());
                return Ok(probed::taken(name, &by));
            }
            Err(error) => return Ok(probed::not_begun(&error)),
        }
        let found = self.deployed(client).await;
        let gone = self.remove(client).await;
        match (found, gone) {
            (Ok(found), Err(error)) => Ok(probed::left(found, name, &error)),
            (Err(interrupted), Err(error)) => {
                let left = format!("{} is not removed: {}", name, error.chain());
                self.observer.event(&Event::Warning(&self.redactor.clean(&left)));
                Err(interrupted)
            }
            (found, Ok(())) => found,
        }
    }

    /// To its end, whoever interrupts.
    async fn remove(&self, client: &Client) -> Result<(), Error> {
        let wish = Destroy {
            target: self.deploy.target.clone(),
            whose: Some(Whose { subject: self.deploy.subject.clone(), repository: self.deploy.repository.clone() }),
            who: self.deploy.who.clone(),
            wait: self.project.timeouts.lock,
            event_at: None,
            run: Some(self.deploy.run.clone()),
        };
        lifecycle::destroy(client, &wish, self.observer, &Interrupt::default()).await.map(drop)
    }

    async fn deployed(&self, client: &Client) -> Result<Finding, Error> {
        let begun = Instant::now();
        let connect = async { Ok(client.clone()) };
        let (observer, redactor) = (self.observer, self.redactor);
        let done =
            lifecycle::deploy(connect, self.resolver, self.project, self.deploy, observer, redactor, self.interrupt);
        let done = match Box::pin(done).await {
            Ok(done) => done,
            Err(error) if error.failure() == FailureCode::Interrupted => return Err(error),
            Err(error) => return Ok(probed::not_deployed(&error, &self.wish.image)),
        };
        let mut urls: Vec<String> = done.addresses.into_iter().map(|address| address.url).collect();
        urls.sort();
        urls.dedup();
        self.observer.event(&Event::Note(&format!("the probe is asked at {}", urls.join(" and "))));
        let asked = tokio::select! {
            found = self.ask(client, &urls) => found,
            () = self.interrupt.fired() => return Err(interrupted()),
        };
        Ok(asked.unwrap_or_else(|| probed::answered(&urls, begun.elapsed())))
    }

    /// Asks all of them until they answer, or there is no more time; the first that does not answer well.
    async fn ask(&self, client: &Client, urls: &[String]) -> Option<Finding> {
        let begun = Instant::now();
        let records = client.dns.is_some() && !self.project.hosts.is_empty();
        if records {
            tokio::time::sleep(RECORDS).await;
        }
        let limit = self.project.timeouts.verify;
        for url in urls {
            loop {
                let waited = begun.elapsed();
                let reached = self.once(client, url).await;
                let Some(found) = probed::reached(url, &reached, self.token, self.project, records, waited) else {
                    break;
                };
                if begun.elapsed() >= limit {
                    return Some(found);
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        None
    }

    async fn once(&self, client: &Client, url: &str) -> Reached {
        let Some((https, host, port, path)) = run::parts(url) else {
            return Reached::Silent("it is no address of HTTP".to_owned());
        };
        // Whatever stands between must not answer from memory.
        let stamp = Timestamp::now().as_millisecond();
        let path = format!("{}/{}?{stamp}", path.trim_end_matches('/'), probed::FILE);
        if self.project.proxy != Proxy::None {
            return look::whole(https, &host, port, &path, tls::roots(self.wish.ca.as_deref())).await;
        }
        let page: Result<Page, String> = match client.host.dial(&host, port.unwrap_or(80)).await {
            Ok(stream) => look::page(stream, &host, &path).await,
            Err(fault) => return Reached::Closed(fault.chain()),
        };
        page.map_or_else(Reached::Silent, Reached::Page)
    }
}
