//! Sweep: takes away what no preview needs any more, mends what a dead run left, and proves that what went is gone.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use jiff::Timestamp;

use super::crash::halt_error;
use super::destroy::{Destroy, Kept, Record, destroy_if};
use super::error::Restored;
use super::leading;
use super::note::{note, of_sweep};
use super::reclaim::bury_tickets_of;
use super::records;
use super::run::{acquire, guarded, interrupted as interrupted_while};
use super::swept::{Gone, Mended, Swept, Unswept};
use super::undo::{self, Undo};
use super::{Client, Error, Event, Interrupt, Observer, Quiet};
use crate::dns::Owned;
use crate::engine::{DiskUse, Inventory, Prune, Removed};
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};
use crate::fence;
use crate::host::{Change, Facts, Query, Survey};
use crate::ownership::Selector;
use crate::project::{Target, Timeouts};
use crate::proxy::pages;
use crate::runtime::Variables;
use crate::secret::Redactor;
use crate::state::{Failure, Phase, State};
use crate::sweep::{self as rules, Decision, Left, Open, Suspect, Why};

/// So many previews are removed at the same time.
const AT_ONCE: usize = 4;
/// A look at the whole host may take so long.
const LOOK: Duration = Duration::from_secs(60);
/// The engine may take so long to add up its disk; without that, nobody knows what was freed, and that is all.
const ACCOUNT: Duration = Duration::from_secs(60);

/// What to sweep, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// Who holds locks meanwhile, for those who come.
    pub who: String,
    /// The name of this run, for the host's history.
    pub run: String,
    /// Say what would be done, and change nothing.
    pub dry_run: bool,
    /// What is known of pull requests and branches.
    pub open: Open,
    /// Limits of time for bringing a version up again.
    pub timeouts: Timeouts,
    /// Images that were pulled for previews go when the engine's disk is fuller than this, in percent.
    pub images_above: u8,
    /// But only those that were pulled longer ago than this.
    pub images_older: Duration,
    /// Build cache beyond so many bytes goes.
    pub build_cache: u64,
}

struct Seen {
    survey: Survey,
    inventory: Inventory,
}

async fn look(client: &Client) -> Result<Seen, Error> {
    let query = Query {
        read: vec![
            "*/*/state.json".to_owned(),
            format!("{}/*/*.json", fence::TOMBSTONES),
            format!("{}/*.json", rules::IMAGES),
            format!("{}/*.html", pages::DIRECTORY),
        ],
        list: vec!["*".to_owned(), "*/*".to_owned(), "*/*/*".to_owned(), "*/*/.*".to_owned()],
        ..Query::default()
    };
    let both = async {
        futures_util::try_join!(
            client.host.survey(&client.base_dir, &query),
            client.engine.inventory(&Selector::Managed)
        )
    };
    match tokio::time::timeout(LOOK, both).await {
        Ok(both) => both.map(|(survey, inventory)| Seen { survey, inventory }).map_err(Error::from),
        Err(_) => Err(Fault::new(
            crate::fault::FaultKind::TimedOut,
            "look at the host",
            format!("no answer within {} s", LOOK.as_secs()),
        )
        .into()),
    }
}

/// The DNS records of previews, where somebody writes and lists them.
async fn listed(client: &Client, observer: &dyn Observer) -> Option<Vec<Owned>> {
    match records::list(client.dns.as_deref()?, observer).await {
        Ok(listed) => listed,
        // The rest of the host is worth sweeping all the same.
        Err(fault) => {
            observer.event(&Event::Warning(&format!("{}; what is orphaned there stays this time", fault.chain())));
            None
        }
    }
}

/// What the engine holds; `None` where it does not say in time.
async fn account(client: &Client) -> Option<DiskUse> {
    tokio::time::timeout(ACCOUNT, client.engine.disk_use()).await.ok()?.ok()
}

/// The facts of the disk that the engine is on; those of the previews' directory where that cannot be told.
async fn engine_disk(client: &Client) -> Option<Facts> {
    let root = client.engine.info().await.ok()?.root;
    let survey = client.host.survey(&root, &Query::default()).await.ok()?;
    Some(survey.facts)
}

/// Sweeps a host: all applications below its base directory.
pub async fn sweep(
    client: &Client,
    wish: &Sweep,
    observer: &dyn Observer,
    interrupt: &Interrupt,
) -> Result<Swept, Error> {
    let begun = Instant::now();
    let done = sweep_all(client, wish, observer, interrupt).await;
    note(client, of_sweep(wish, done.as_ref(), begun.elapsed())).await;
    done
}

async fn sweep_all(
    client: &Client,
    wish: &Sweep,
    observer: &dyn Observer,
    interrupt: &Interrupt,
) -> Result<Swept, Error> {
    // A record of a preview that came in between is another suspicion that does not hold under its lock.
    // Before the states: a preview has a state before it has routes.
    let led = leading::led(client).await;
    let (seen, before, disk, listed) =
        futures_util::join!(look(client), account(client), engine_disk(client), listed(client, observer));
    let seen = seen?;
    let now = Timestamp::from_second(seen.survey.facts.now).unwrap_or_else(|_| Timestamp::now());
    let Decision { mut remove, mend, tickets, tombstones, mut left, empty } =
        rules::decide(&client.base_dir, &seen.survey, &seen.inventory, &wish.open);
    let (orphans, odd) =
        rules::orphaned_records(&client.base_dir, &seen.survey, listed.as_deref().unwrap_or_default(), &remove);
    remove.extend(orphans);
    left.extend(odd);
    let disk = disk.map_or_else(|| full(&seen.survey.facts), |facts| full(&facts));
    let images = if disk > wish.images_above { rules::old_images(&seen.survey, wish.images_older) } else { Vec::new() };
    let cache = before.map_or(0, |account| account.build_cache);
    let mut swept = Swept { dry_run: wish.dry_run, left, disk, now, ..Swept::empty(now) };
    swept.routes = match led {
        Ok(led) => rules::stray_routes(led, &seen.survey, &seen.inventory),
        Err(fault) if fault.kind == FaultKind::Unreachable => return Err(fault.into()),
        Err(fault) => {
            let why = "routes of previews that are gone cannot be looked for".to_owned();
            swept.left.push(Left { what: fault.chain(), why });
            Vec::new()
        }
    };
    let stale_pages = rules::old_pages(&client.base_dir, &seen.survey);
    swept.pages = stale_pages.len();

    if wish.dry_run {
        return plan(
            client,
            swept,
            remove,
            mend,
            &tickets,
            tombstones.len(),
            images,
            cache.saturating_sub(wish.build_cache),
            &seen,
            listed.as_deref().unwrap_or_default(),
        )
        .await;
    }
    let work =
        Work { client, wish, seen: &seen, listed: listed.as_deref().unwrap_or_default(), now, observer, interrupt };
    let jobs =
        remove.into_iter().map(|suspect| (suspect, false)).chain(mend.into_iter().map(|suspect| (suspect, true)));
    let mut done =
        futures_util::stream::iter(jobs.map(|(suspect, mend)| work.one(suspect, mend))).buffer_unordered(AT_ONCE);
    let mut interrupted = false;
    while let Some(done) = done.next().await {
        match done {
            Done::Gone(gone) => swept.removed.push(gone),
            Done::Mended(mended) => swept.mended.push(mended),
            Done::Stayed(stayed) => swept.stayed.push(stayed),
            Done::Nothing => {}
            Done::Interrupted => interrupted = true,
        }
    }
    drop(done);
    if interrupted {
        let context = "interrupted; what was done is done, run the same command again for the rest";
        return Err(interrupted_while("sweep", context).into());
    }
    // Of what went, the ticket went too; a lock that is held says that somebody waits.
    let gone = |target: &Target| swept.removed.iter().any(|gone| gone.app == target.app && gone.name == target.name);
    let tickets: Vec<Target> = tickets.into_iter().filter(|target| !gone(target)).collect();
    swept.tickets = bury_tickets_of(client, &tickets, &wish.who, interrupt).await?;
    let mut kept = Vec::new();
    let mut strays = std::mem::take(&mut swept.routes);
    if !strays.is_empty() {
        // Removing took a while, and a preview may have come back: its state is there before its routes are.
        let now = look(client).await?;
        strays = rules::stray_routes(strays, &now.survey, &now.inventory);
    }
    for project in strays {
        match leading::mislead(client, &project).await {
            Ok(()) => swept.routes.push(project),
            Err(fault) if fault.kind == FaultKind::Unreachable => return Err(fault.into()),
            Err(fault) => kept.push(Left { what: format!("the routes of {project}"), why: fault.chain() }),
        }
    }
    swept.left.extend(kept);
    let stale = tombstones.iter().chain(&stale_pages);
    let mut changes: Vec<Change> = stale.map(|path| Change::Remove { path: path.clone() }).collect();
    changes.extend(empty.into_iter().map(|path| Change::RemoveEmpty { path }));
    if !changes.is_empty() {
        client.host.apply(&changes).await?;
    }
    swept.tombstones = tombstones.len();
    tidy(client, wish, images, cache, &seen, &mut swept, observer).await?;
    prove(client, &mut swept, before, listed.is_some()).await?;
    swept.removed.sort_by(|a, b| (&a.app, &a.name).cmp(&(&b.app, &b.name)));
    Ok(swept)
}

/// Images and build cache.
async fn tidy(
    client: &Client,
    wish: &Sweep,
    images: Vec<(String, rules::Pulled)>,
    cache: u64,
    seen: &Seen,
    swept: &mut Swept,
    observer: &dyn Observer,
) -> Result<(), Error> {
    // A run at work may need what it has not started yet; removing previews may have taken a while.
    let now = if images.is_empty() { None } else { Some(look(client).await?) };
    let seen = now.as_ref().unwrap_or(seen);
    let still = rules::old_images(&seen.survey, wish.images_older);
    let images: Vec<_> = images.into_iter().filter(|(path, _)| still.iter().any(|(other, _)| other == path)).collect();
    let at_work = seen.survey.files.iter().any(|(path, text)| {
        path.ends_with("/state.json") && State::parse(path, text).is_ok_and(|state| state.phase.in_flight())
    });
    let mut gone = Vec::new();
    if at_work && !images.is_empty() {
        observer.event(&Event::Note("images stay this time: somebody is at work, and may need them"));
    } else {
        let names = images.iter().map(|(_, pulled)| pulled.image.clone()).collect();
        let there = client.engine.image_ids(&names).await?;
        for (path, pulled) in images {
            if !there.contains_key(&pulled.image) {
                gone.push(Change::Remove { path });
            } else if client.engine.remove_image(&pulled.image).await? {
                swept.images.push(pulled.image);
                gone.push(Change::Remove { path });
            }
        }
    }
    if !gone.is_empty() {
        client.host.apply(&gone).await?;
    }
    if cache > wish.build_cache {
        swept.build_cache = client.engine.prune(&Prune::BuildCache { keep: wish.build_cache }).await?;
    }
    Ok(())
}

/// Looks again at everything: what was removed has to be gone.
async fn prove(client: &Client, swept: &mut Swept, before: Option<DiskUse>, names: bool) -> Result<(), Error> {
    let names = async { if names { listed(client, &Quiet).await } else { None } };
    let (after, account, listed) = futures_util::join!(look(client), account(client), names);
    let (after, listed) = (after?, listed.unwrap_or_default());
    for gone in &mut swept.removed {
        let target = Target { app: gone.app.clone(), name: gone.name.clone(), project: String::new() };
        let again = format!("{}/state.json", target.directory(&client.base_dir));
        // Somebody may have deployed it again meanwhile.
        if !after.survey.files.contains_key(&again) {
            gone.left.extend(rules::remains(&client.base_dir, &target, &after.survey, &after.inventory));
            let records = records::of_preview(&listed, &target.app, &target.name);
            gone.left.extend(records.map(|host| format!("DNS record {host}")));
        }
    }
    let sum = |account: DiskUse| account.images + account.containers + account.volumes + account.build_cache;
    swept.freed = before.zip(account).map(|(before, after)| sum(before).saturating_sub(sum(after)));
    swept.previews = after.survey.files.keys().filter(|path| path.ends_with("/state.json")).count();
    Ok(())
}

/// What would be done.
#[expect(clippy::too_many_arguments, reason = "they are the decision")]
async fn plan(
    client: &Client,
    mut swept: Swept,
    remove: Vec<Suspect>,
    mend: Vec<Suspect>,
    tickets: &[Target],
    tombstones: usize,
    images: Vec<(String, rules::Pulled)>,
    cache: u64,
    seen: &Seen,
    listed: &[Owned],
) -> Result<Swept, Error> {
    let jobs =
        remove.into_iter().map(|suspect| (suspect, false)).chain(mend.into_iter().map(|suspect| (suspect, true)));
    let asked = jobs.map(|(suspect, mend)| async move {
        let lock = suspect.target.file(&client.base_dir, ".lock");
        client.lock.holder(&lock).await.map(|holder| (suspect, mend, holder))
    });
    let mut asked = futures_util::stream::iter(asked).buffered(AT_ONCE);
    while let Some(answer) = asked.next().await {
        let (Suspect { target: Target { app, name, .. }, why }, mend, holder) = answer?;
        match holder {
            Some(_) if matches!(why, Why::Crashed { .. } | Why::NoState) => {}
            Some(holder) => {
                let reason = super::error::say_holder(Some(&holder));
                swept.stayed.push(Unswept { app, name, why, reason, code: 0 });
            }
            None if mend => swept.mended.push(Mended { app, name, why }),
            None => {
                let (removed, left) = (Removed::default(), Vec::new());
                let records = records::of_preview(listed, &app, &name).collect();
                swept.removed.push(Gone { app, name, why, removed, files: 0, records, left });
            }
        }
    }
    let waits = |target: &Target| target.file(&client.base_dir, ".lock");
    let locks: Vec<String> = tickets.iter().map(waits).collect();
    let holders = futures_util::future::try_join_all(locks.iter().map(|lock| client.lock.holder(lock))).await?;
    swept.tickets = holders.iter().filter(|holder| holder.is_none()).count();
    swept.tombstones = tombstones;
    swept.images = images.into_iter().map(|(_, pulled)| pulled.image).collect();
    swept.build_cache = cache;
    swept.previews = seen.survey.files.keys().filter(|path| path.ends_with("/state.json")).count();
    Ok(swept)
}

/// How full a disk is, in percent, as `df` says it.
fn full(facts: &Facts) -> u8 {
    let all = facts.disk_used.saturating_add(facts.disk_free).max(1);
    u8::try_from(facts.disk_used.saturating_mul(100).div_ceil(all)).unwrap_or(100)
}

enum Done {
    Gone(Gone),
    Mended(Mended),
    Stayed(Unswept),
    /// It is not what it was, or there was nothing.
    Nothing,
    Interrupted,
}

/// What every job needs.
struct Work<'a> {
    client: &'a Client,
    wish: &'a Sweep,
    seen: &'a Seen,
    listed: &'a [Owned],
    now: Timestamp,
    observer: &'a dyn Observer,
    interrupt: &'a Interrupt,
}

impl Work<'_> {
    async fn one(&self, suspect: Suspect, mend: bool) -> Done {
        use futures_util::FutureExt as _;
        if self.interrupt.fired().now_or_never().is_some() {
            return Done::Interrupted;
        }
        let done = if mend { self.mend(&suspect).await } else { self.remove(&suspect).await };
        let Suspect { target: Target { app, name, .. }, why } = suspect;
        match done {
            Ok(done) => done,
            // Whoever is at work on it takes care of it.
            Err(Error::Locked { .. }) if matches!(why, Why::Crashed { .. } | Why::NoState) => Done::Nothing,
            Err(error @ Error::Locked { .. }) => {
                Done::Stayed(Unswept { app, name, why, reason: error.chain(), code: 0 })
            }
            Err(error) => {
                self.observer.event(&Event::Warning(&format!("{app} {name}: {}", error.chain())));
                let code = error.exit_code();
                Done::Stayed(Unswept { app, name, why, reason: error.chain(), code })
            }
        }
    }

    /// What the state file said when the host was looked at.
    fn state(&self, target: &Target) -> Option<State> {
        let path = target.file(&self.client.base_dir, "state.json");
        State::parse(&path, self.seen.survey.files.get(&path)?).ok()
    }

    async fn remove(&self, suspect: &Suspect) -> Result<Done, Error> {
        let Suspect { target, why } = suspect;
        let before = self.state(target);
        // What was suspected has to hold under the lock.
        let still = |record: Record<'_>| match (record, &before) {
            (Record::Absent, None) => Ok(()),
            (Record::State(state), Some(before)) if state == before => Ok(()),
            _ => Err(Kept::Changed),
        };
        let (who, wait) = (self.wish.who.clone(), Duration::ZERO);
        let destroy = Destroy { target: target.clone(), whose: None, who, wait, event_at: None, run: None };
        let Ok(gone) = Box::pin(destroy_if(self.client, &destroy, &Quiet, self.interrupt, Some(&still))).await? else {
            return Ok(Done::Nothing);
        };
        if !gone.existed && *why == Why::NoState {
            return Ok(Done::Nothing);
        }
        self.observer.event(&Event::Note(&format!("{}; removed", rules::say(suspect, self.now))));
        let (app, name) = (target.app.clone(), target.name.clone());
        let records = records::of_preview(self.listed, &app, &name).collect();
        // The state went, and with it who remembers them: whoever reads this has to.
        let left = gone.records_left.iter().map(|host| records::orphan(host)).collect();
        let why = why.clone();
        Ok(Done::Gone(Gone { app, name, why, removed: gone.removed, files: gone.files, records, left }))
    }

    /// A run died during an update: the version before runs again, or the preview stays for its next deploy.
    async fn mend(&self, suspect: &Suspect) -> Result<Done, Error> {
        let Suspect { target, why } = suspect;
        let (client, base) = (self.client, &self.client.base_dir);
        let what = format!("sweep of {}", target.name);
        let path = target.file(base, ".lock");
        let lock = &*client.lock;
        let lease = acquire(lock, &path, &self.wish.who, &what, Duration::ZERO, &Quiet, self.interrupt, &|| ()).await?;
        let own = format!("{}/{}", target.app, target.name);
        let query = Query {
            read: ["state", "stack-*", "routes-*"].map(|name| format!("{own}/{name}.json")).to_vec(),
            list: ["tree-*.json", "stack-*.json", "routes-*.json"].map(|name| format!("{own}/{name}")).to_vec(),
            ..Query::default()
        };
        let never = Interrupt::default();
        let survey = guarded(&*lease, &never, LOOK, client.host.survey(base, &query));
        let survey = survey.await.map_err(|halt| halt_error(halt, &target.name))?;
        let path = target.file(base, "state.json");
        let state = survey.files.get(&path).and_then(|text| State::parse(&path, text).ok());
        let Some(state) = state.filter(|state| state.phase.in_flight() && rules::mendable(state)) else {
            lease.release(true).await?;
            return Ok(Done::Nothing);
        };
        let text = state.good.as_ref().and_then(|good| survey.files.get(&target.file(base, &good.stack)));
        let restored = match text.zip(state.good.as_ref()) {
            None => Restored::NotYet("the file of the version before is gone".to_owned()),
            Some((text, good)) => {
                let failure = Failure {
                    phase: state.phase,
                    code: Some(FailureCode::Crashed),
                    message: why.to_string(),
                    at: self.now,
                };
                undo::undo(&Undo {
                    client,
                    timeouts: &self.wish.timeouts,
                    target,
                    lease: &*lease,
                    observer: &Quiet,
                    redactor: &Redactor::default(),
                    good: Some((text, good)),
                    routes: leading::told(&survey.files, target, base, good),
                    state: &state,
                    end: Phase::Failed,
                    failure,
                    files: survey.paths.iter().cloned().collect(),
                    // The values of this run's environment are not those of the run that died.
                    variables: &Variables::new(),
                    pages: leading::keeps_pages(&self.client.base_dir, &self.seen.survey),
                })
                .await
            }
        };
        lease.release(true).await?;
        let (app, name) = (target.app.clone(), target.name.clone());
        Ok(match restored {
            Restored::NotYet(reason) => {
                self.observer.event(&Event::Warning(&format!("{app} {name}: {why}, and cannot be mended: {reason}")));
                Done::Stayed(Unswept { app, name, why: why.clone(), reason, code: 4 })
            }
            Restored::Previous | Restored::Removed => {
                self.observer.event(&Event::Note(&format!("{app} {name}: {why}; the version before runs")));
                Done::Mended(Mended { app, name, why: why.clone() })
            }
        })
    }
}
