//! A program of its own around the library: deploys the Compose project of a directory on this machine's engine, and destroys it again.
//!
//! Two adapters are not the library's: secrets come from a list in the program, and progress goes to a counter. Everything else is
//! the same as in the command line.
//!
//! ```text
//! cargo run -p preview-core --example embed -- DIR [BASE]
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use preview_core::engine::docker::DockerEngine;
use preview_core::fault::Fault;
use preview_core::host::{Host as _, local};
use preview_core::lifecycle::{self, Client, Destroy, Event, Interrupt, Observer};
use preview_core::lock::shell::ShellLock;
use preview_core::name::{AppName, Key, Naming};
use preview_core::project::{Deploy, Project, Target};
use preview_core::runtime::compose::{Compose, ComposeOptions};
use preview_core::secret::{Redactor, Secret};
use preview_core::secrets::SecretSource;
use preview_core::state::Subject;

type Failure = Box<dyn std::error::Error>;

/// A vault that lives in this program.
struct Vault(BTreeMap<String, Secret<String>>);

#[async_trait]
impl SecretSource for Vault {
    fn describe(&self) -> String {
        "the vault of this program".to_owned()
    }

    async fn fetch(&self) -> Result<BTreeMap<String, Secret<String>>, Fault> {
        Ok(self.0.clone())
    }
}

/// Counts secrets and stages instead of printing them.
#[derive(Default)]
struct Counter {
    secrets: AtomicUsize,
    stages: AtomicUsize,
}

impl Observer for Counter {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Secret(_) => self.secrets.fetch_add(1, Ordering::Relaxed),
            Event::Stage(_) => self.stages.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

fn project(directory: &Path) -> Project {
    let vault = Vault(BTreeMap::from([("GREETING".to_owned(), Secret::new("good day".to_owned()))]));
    Project {
        ttl: Some(Duration::from_secs(72 * 3600)),
        secrets: vec![Arc::new(vault)],
        ..Project::new(directory, &["compose.yml"])
    }
}

async fn run(directory: &Path, base_dir: String) -> Result<(), Failure> {
    let app = AppName::derive("embedded");
    let named = Naming::new(&app, None, &[])?.resolve(&Key::pull(7)?)?;
    let target = Target { app: app.to_string(), name: named.name.to_string(), project: named.project };

    // One host, and what works through it.
    let host = local::connect()?;
    let socket = host.socket("/var/run/docker.sock").await?;
    let compose = Compose::new(ComposeOptions {
        docker: PathBuf::from("docker"),
        path: std::env::var_os("PATH").unwrap_or_default(),
        docker_config: std::env::var_os("DOCKER_CONFIG").map(PathBuf::from),
        socket: Some(socket.clone()),
        guardian: Some(host.guardian().clone()),
    });
    let client = Client {
        engine: Arc::new(DockerEngine::connect(&socket)?),
        lock: Arc::new(ShellLock::new(Arc::clone(&host))),
        dns: None,
        runtime: Arc::new(compose.clone()),
        host: host.clone(),
        base_dir,
        proxy: preview_core::proxy::Proxy::None,
    };

    let (counter, redactor, interrupt) = (Counter::default(), Redactor::default(), Interrupt::default());
    let request = Deploy {
        repository: Some("acme/shop".to_owned()),
        owner: Some("octocat".to_owned()),
        ..Deploy::new(target.clone(), Subject::Pull(7), "the example", "1")
    };
    let connected = async { Ok(client.clone()) };
    let project = project(directory);
    let deployed = lifecycle::deploy(connected, &compose, &project, &request, &counter, &redactor, &interrupt).await?;
    let url = deployed.url.unwrap_or_default();
    say(&format!("deployed {} at {url}", deployed.name));

    let (who, wait, run) = (request.who.clone(), Duration::from_secs(60), Some("2".to_owned()));
    let wish = Destroy { target, whose: None, who, wait, event_at: None, run };
    let destroyed = lifecycle::destroy(&client, &wish, &counter, &interrupt).await?;
    let counted = (counter.secrets.load(Ordering::Relaxed), counter.stages.load(Ordering::Relaxed));
    say(&format!("destroyed {}: {} containers", destroyed.name, destroyed.removed.containers));
    say(&format!("told of {} secrets and {} stages", counted.0, counted.1));
    host.close().await?;
    Ok(())
}

fn say(line: &str) {
    use std::io::Write as _;
    // A reader that has gone away is no reason to leave a preview behind.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let directory = arguments.next().ok_or("say which directory: embed DIR [BASE]")?.canonicalize()?;
    let base = arguments.next().unwrap_or_else(|| directory.join(".previews"));
    let base = base.to_str().ok_or("the directory of the previews is not UTF-8")?.to_owned();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&directory, base))
}
