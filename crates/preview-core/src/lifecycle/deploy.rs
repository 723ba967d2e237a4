//! Deploy and update, from the outside: what is asked for, under which lock, and what comes of it.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;

use super::crash::Landing;
use super::flight::Flight;
use super::note::{note, turned_away};
use super::observe::{draw, hide_token, observe, want, with_generated};
use super::place::Asking;
use super::prepare::{self, Prepared};
use super::run::{acquire, interrupted};
use super::{Client, Error, Event, Interrupt, Observer};
use crate::admission::{self, Wish};
use crate::fault::{Fault, FaultKind};
use crate::host::{Change, random_token};
use crate::lock::Lease;
use crate::plan::{self, Kind, Plan};
use crate::project::{Deploy, Project, Target};
use crate::runtime::{Runtime, Variables};
use crate::secret::{Redactor, Secret};
use crate::stack;
use crate::state::{Address, Phase};

/// A deploy that is done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deployed {
    /// The preview's name.
    pub name: String,
    /// The Compose project.
    pub project: String,
    /// `create`, `update`, `unchanged`, `resume`; `None` if there was nothing to update.
    pub kind: Option<Kind>,
    /// The first public address.
    pub url: Option<String>,
    /// All public addresses.
    pub addresses: Vec<Address>,
    /// What happened to each service.
    pub services: BTreeMap<String, plan::Change>,
    /// Whole seconds it took.
    pub seconds: f64,
}

/// Says what a deploy would do, and does nothing: no lock is taken, nothing is written.
pub async fn plan(
    connect: impl Future<Output = Result<Client, Error>>,
    resolver: &dyn Runtime,
    project: &Project,
    deploy: &Deploy,
    observer: &dyn Observer,
    redactor: &Redactor,
) -> Result<Plan, Error> {
    let early = early(resolver, project, deploy, observer, redactor);
    let (client, prepared) = futures_util::try_join!(connect, early)?;
    let seen = observe(&client, project, deploy, &prepared, &Secret::new(random_token()?)).await?;
    hide_token(&seen.token, observer, redactor);
    let (prepared, _) = with_generated(resolver, project, deploy, prepared, &seen, observer, redactor).await?;
    let (wanted, _) = want(&client, project, deploy, &prepared, &seen)?;
    client.runtime.check(&wanted.stack(deploy, &prepared)).await?;
    let mut plan = draw(project, deploy, &prepared, &wanted, &seen);
    let owner = seen.state.as_ref().and_then(|state| state.owner.as_deref()).or(deploy.owner.as_deref());
    let wish = Wish {
        app: &deploy.target.app,
        name: &deploy.target.name,
        owner,
        weight: project.weight,
        memory: stack::declared_memory(&wanted.model),
    };
    let holders = admission::holders(&seen.survey.files);
    if let Err(full) = admission::admit(&wish, &holders, &seen.survey.facts, &project.limits) {
        let now = Timestamp::from_second(seen.survey.facts.now).unwrap_or_else(|_| Timestamp::now());
        plan.warnings.push(format!("there is no room for it now: {}", full.text(now)));
    }
    Ok(plan)
}

/// Deploys or updates a preview.
///
/// `connect` is awaited while `resolver` reads the user's files: bad input is found before anything is sent.
/// A failed update goes back to the version before; a failed first deploy leaves nothing.
pub async fn deploy(
    connect: impl Future<Output = Result<Client, Error>>,
    resolver: &dyn Runtime,
    project: &Project,
    deploy: &Deploy,
    observer: &dyn Observer,
    redactor: &Redactor,
    interrupt: &Interrupt,
) -> Result<Deployed, Error> {
    let begun = Instant::now();
    observer.event(&Event::Stage(Phase::Preparing));
    let early = async {
        let limit = project.timeouts.start;
        let early = early(resolver, project, deploy, observer, redactor);
        tokio::time::timeout(limit, early).await.unwrap_or_else(|_| {
            let context = format!("it took longer than {} s ([timeouts] start)", limit.as_secs());
            Err(Fault::new(FaultKind::TimedOut, "read the secrets and the Compose files", context).into())
        })
    };
    let (client, prepared) = tokio::select! {
        both = async { futures_util::try_join!(connect, early) } => both?,
        () = interrupt.fired() => return Err(interrupted("prepare", "interrupted").into()),
    };
    for warning in &prepared.warnings {
        observer.event(&Event::Warning(&redactor.clean(warning)));
    }
    let fresh_token = Secret::new(random_token()?);
    let lock_path = deploy.target.file(&client.base_dir, ".lock");
    let why = format!("deploy of {}", deploy.target.name);
    let wait = project.timeouts.lock.min(project.timeouts.total.saturating_sub(begun.elapsed()));
    let lease = acquire(&*client.lock, &lock_path, &deploy.who, &why, wait, observer, interrupt, &|| ()).await;
    let lease = match lease {
        Ok(lease) => lease,
        Err(error) => {
            note(&client, turned_away(project, deploy, &error, begun.elapsed(), redactor)).await;
            return Err(error);
        }
    };
    let mut flight = Flight {
        client: &client,
        resolver,
        project,
        deploy,
        observer,
        redactor,
        interrupt,
        lease: &*lease,
        deadline: begun + project.timeouts.total,
        begun,
        watch: None,
        asking: Asking::default(),
        pages: false,
        fresh_token,
    };
    // Boxed, here and below: what a run has in hand on its way is large, and threads of programs that embed this have small stacks.
    let done = Box::pin(flight.fly(prepared)).await;
    if flight.asking.ticket && flight.lease.check().is_ok() {
        // Who does not wait any more keeps nobody waiting. If this cannot be said, the ticket is that of a dead run.
        if let Ok(changes) = flight.give_up() {
            let _ = client.host.apply(&changes).await;
        }
    }
    let empty = match &done {
        Ok(deployed) => deployed.kind.is_none(),
        Err(Landing::Error { nothing_left, .. }) => *nothing_left,
    };
    let done = done.map_err(|Landing::Error { error, .. }| error);
    let entry = flight.epilogue(done.as_ref());
    // Beside each other: the lock has a connection of its own.
    let (released, ()) = futures_util::join!(release(&client, &deploy.target, lease, empty), note(&client, entry));
    let deployed = done?;
    released?;
    Ok(deployed)
}

/// Gives the lock back; where nothing may be left of the preview, its directories go too if they are empty.
pub(super) async fn release(client: &Client, target: &Target, lease: Box<dyn Lease>, empty: bool) -> Result<(), Error> {
    // The file goes always: nobody has to wonder about locks that nobody holds.
    lease.release(true).await?;
    if empty {
        client.host.apply(&directories(client, target)).await?;
    }
    Ok(())
}

/// The removal of a preview's directories where nothing is in them.
pub(super) fn directories(client: &Client, target: &Target) -> [Change; 2] {
    [target.directory(&client.base_dir), target.app_directory(&client.base_dir)]
        .map(|path| Change::RemoveEmpty { path })
}

/// Everything that can be found wrong without the host. Generated credentials are not known yet: something stands in for them.
pub(super) async fn early(
    resolver: &dyn Runtime,
    project: &Project,
    deploy: &Deploy,
    observer: &dyn Observer,
    redactor: &Redactor,
) -> Result<Prepared, Error> {
    let stand_in = project.generate.keys().map(|name| (name.clone(), Secret::new("generated".to_owned()))).collect();
    // Not masked: the word is no secret, and masking it would hide it everywhere.
    let known = Redactor::default();
    let variables = prepare::variables(project, deploy, &Variables::new(), observer, redactor).await?;
    let variables = if project.generate.is_empty() {
        variables
    } else {
        prepare::variables(project, deploy, &stand_in, &super::Quiet, &known).await?
    };
    let prepared = prepare::prepare(resolver, project, deploy, variables).await?;
    for secret in prepared.file_variables.values() {
        observer.event(&Event::Secret(secret));
        redactor.learn(secret);
    }
    Ok(prepared)
}
