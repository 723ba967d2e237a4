//! A place on the host for a preview: asked for in pure code, taken by compare and swap, made free where the dead hold it, waited for
//! where that is wished.

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use jiff::Timestamp;

use super::crash::{Landing, grounded};
use super::destroy::{Destroy, Kept, Record, destroy_if};
use super::fence::begun;
use super::flight::Flight;
use super::observe::{PLACES, Seen};
use super::prepare::Prepared;
use super::reclaim::{bury_tickets, reclaim, suspects};
use super::run::Halt;
use super::{Error, Event, Refusal};
use crate::admission::{self, Full, Holder, Shortage, Wish};
use crate::fault::{Fault, FaultKind};
use crate::host::{Change, Guard, Query, Survey, guard_in, random_token};
use crate::project::{OnFull, Target};
use crate::queue::{self, FREED, TICKET, Ticket, Wait};
use crate::secret::Secret;
use crate::state::{Phase, State};

const OPERATION: &str = "take a place on the host";
/// Somebody gets a place each time that one has to look again, so this is more than any host has places.
const TRIES: usize = 200;
/// Somebody else may be removing what the dead left.
const RECLAIMS: usize = 5;
/// Who waits asks so often whether anything has changed, and a little more: not all at the same time.
const ASK: Duration = Duration::from_secs(2);
/// Who dies changes nothing, so who waits looks at everything so often.
const LOOK: Duration = Duration::from_secs(15);

/// So many at the front of the queue, for each limit, look at everything when something has changed.
const NEAR: u32 = 8;

/// What came of asking for a place.
pub(super) enum Reserved {
    /// It is there; true if it was taken just now.
    Taken(bool),
    /// Things are not as they were seen: look again.
    Moved,
    /// There is none.
    Refused(Error),
}

/// What a run remembers while it asks for a place.
#[derive(Default)]
pub(super) struct Asking {
    tries: usize,
    reclaims: usize,
    /// Since when it waits, with a ticket on the host.
    queued: Option<Instant>,
    /// What was last said about that.
    said: String,
    /// So long it has waited.
    pub(super) waited: Duration,
    /// So much of that was for a window of time.
    before: Duration,
    /// There may be a ticket of ours on the host.
    pub(super) ticket: bool,
}

impl Asking {
    /// Whether it waits, or has waited, for a place.
    pub(super) const fn queues(&self) -> bool {
        self.queued.is_some() || !self.waited.is_zero()
    }
}

impl Flight<'_> {
    fn ticket_path(&self) -> String {
        self.deploy.target.file(&self.client.base_dir, TICKET)
    }

    /// What makes those who wait look.
    pub(super) fn freed(&self) -> Result<Change, Fault> {
        freed(&self.client.base_dir)
    }

    /// The ticket's end, for a run that ends without a place.
    pub(super) fn give_up(&self) -> Result<Vec<Change>, Fault> {
        Ok(vec![Change::Remove { path: self.ticket_path() }, self.freed()?])
    }

    /// Takes the preview's place on the host, if it has none or needs more than it has. The state file is the reservation. It is
    /// written only if no place was given away since the host was looked at.
    ///
    /// Not to be dropped half-way. Interrupts and limits of time are looked at between the exchanges, which are short.
    pub(super) async fn reserve(&self, state: &State, seen: &Seen, asking: &mut Asking) -> Result<Reserved, Halt> {
        self.still_wanted()?;
        let wish = Wish {
            app: &state.app,
            name: &state.name,
            owner: state.owner.as_deref(),
            weight: state.weight,
            memory: state.memory,
        };
        let own = |ticket: &Ticket| ticket.app == state.app && ticket.name == state.name;
        let mut tickets = queue::tickets(&seen.survey.joined);
        // One that an earlier run left is not ours: who dies gives its place in the queue up.
        let stale = !asking.ticket && tickets.iter().any(own);
        if stale {
            tickets.retain(|ticket| !own(ticket));
        }
        let holders = admission::holders(&seen.survey.files);
        let limits = &self.project.limits;
        let has = seen.state.as_ref().is_some_and(|before| {
            before.weight >= state.weight && (limits.overcommit.is_none() || before.memory >= state.memory)
        });
        let placed = has && !asking.ticket && !stale;
        // Others may want the same address: then one of them is the first.
        let moves = || {
            let has = |url: &str| {
                let before = seen.state.iter().flat_map(|before| &before.addresses);
                before.into_iter().any(|before| before.url == url)
            };
            state.addresses.iter().any(|address| !has(&address.url))
        };
        if placed && !moves() {
            return Ok(Reserved::Taken(false));
        }
        asking.tries += 1;
        if asking.tries > TRIES {
            let context = "others were faster each time; run the same command again";
            return Err(Fault::new(FaultKind::Conflict, OPERATION, context).transient().into());
        }
        if placed {
            let taken = self.swap(&seen.survey, false, &[self.save(state)]).await?;
            return Ok(if taken { Reserved::Taken(true) } else { Reserved::Moved });
        }
        match queue::turn(&wish, &tickets, &holders, &seen.survey.facts, limits) {
            Ok(()) => {
                let mut changes = vec![self.save(state)];
                if asking.ticket || stale {
                    changes.extend(self.give_up()?);
                }
                // Somebody in front whom limits of their own kept back might fit after what became free since: then it is not one's turn.
                let passed = tickets.first().is_some_and(|first| !own(first));
                let taken = self.swap(&seen.survey, passed, &changes).await?;
                asking.ticket &= !taken;
                Ok(if taken { Reserved::Taken(true) } else { Reserved::Moved })
            }
            Err(wait) => self.no_place(&wish, state, &seen.survey, *wait, &holders, &tickets, asking).await,
        }
    }

    /// Whether the run is to go on.
    fn still_wanted(&self) -> Result<(), Halt> {
        self.lease.check().map_err(Halt::LeaseLost)?;
        if self.interrupt.fired().now_or_never().is_some() {
            return Err(Halt::Aborted);
        }
        if let Some(by) = self.superseded().now_or_never() {
            return Err(Halt::Superseded(by));
        }
        let limit = self.limit(self.project.timeouts.start);
        if limit.is_zero() { Err(Halt::TimedOut(limit)) } else { Ok(()) }
    }

    /// Makes changes if no place was given away since this survey, and if that matters, none became free either.
    async fn swap(&self, survey: &Survey, nor_freed: bool, changes: &[Change]) -> Result<bool, Fault> {
        let seen = |name: &str| {
            let path = format!("{}/{name}", self.client.base_dir);
            let word = survey.files.get(&path).map(|text| guard_in(text).to_owned()).unwrap_or_default();
            (path, word)
        };
        let (path, expected) = seen(PLACES);
        let beside = if nor_freed { vec![seen(FREED)] } else { vec![] };
        let guard = Guard { path, expected, next: random_token()?, beside };
        self.client.host.apply_if(&guard, changes).await
    }

    #[expect(clippy::too_many_arguments, reason = "they are what is known of the host")]
    async fn no_place(
        &self,
        wish: &Wish<'_>,
        state: &State,
        survey: &Survey,
        wait: Wait,
        holders: &[Holder],
        tickets: &[Ticket],
        asking: &mut Asking,
    ) -> Result<Reserved, Halt> {
        let (facts, limits) = (&survey.facts, &self.project.limits);
        let now = begun(facts, Instant::now());
        // What the dead left is only worth removing if that makes room.
        let dead = suspects(&survey.files, &self.deploy.target);
        let alive = |holder: &Holder| !dead.iter().any(|(dead, _)| dead.app == holder.app && dead.name == holder.name);
        let rest: Vec<Holder> = holders.iter().filter(|holder| alive(holder)).cloned().collect();
        if asking.reclaims < RECLAIMS && !dead.is_empty() && admission::admit(wish, &rest, facts, limits).is_ok() {
            asking.reclaims += 1;
            if reclaim(self.client, &dead, &self.deploy.who, self.observer, self.interrupt).await? {
                return Ok(Reserved::Moved);
            }
        }
        if wait.behind && bury_tickets(self.client, &wait.ahead, &self.deploy.who, self.interrupt).await? {
            return Ok(Reserved::Moved);
        }
        match self.project.on_full {
            // Who only has to wait for others in front gains nothing by it.
            OnFull::ReplaceOldest
                if !wait.behind && {
                    asking.reclaims += 1;
                    asking.reclaims <= 2 * RECLAIMS && self.replace(wish, holders, &wait, survey).await?
                } =>
            {
                Ok(Reserved::Moved)
            }
            OnFull::Refuse | OnFull::ReplaceOldest => {
                let full = Box::new(wait.full.clone());
                let queue = wait.behind.then(|| wait.text(now));
                Ok(Reserved::Refused(Refusal::Full { name: state.name.clone(), full, now, queue }.into()))
            }
            OnFull::Queue if wait.full.is_hopeless() => {
                let full = Box::new(wait.full.clone());
                Ok(Reserved::Refused(Refusal::Full { name: state.name.clone(), full, now, queue: None }.into()))
            }
            OnFull::Queue if !asking.ticket => {
                let ticket = Ticket {
                    number: queue::next(tickets),
                    app: state.app.clone(),
                    name: state.name.clone(),
                    subject: state.subject.clone(),
                    owner: state.owner.clone(),
                    weight: state.weight,
                    memory: state.memory,
                    since: now,
                };
                let content = Secret::new(ticket.to_json());
                // Written or not: it is removed at the end.
                asking.ticket = true;
                let written = self
                    .swap(survey, false, &[Change::Write { path: self.ticket_path(), content, mode: 0o600 }])
                    .await?;
                asking.ticket = written;
                if written && asking.queued.is_none() {
                    asking.queued = Some(Instant::now());
                    self.observer.event(&Event::Stage(Phase::Queued));
                }
                Ok(Reserved::Moved)
            }
            OnFull::Queue => self.wait(wish, survey, wait, asking).await,
        }
    }

    /// Waits until it may be this run's turn.
    async fn wait(
        &self,
        wish: &Wish<'_>,
        survey: &Survey,
        mut wait: Wait,
        asking: &mut Asking,
    ) -> Result<Reserved, Halt> {
        let since = *asking.queued.get_or_insert_with(Instant::now);
        let limit = self.project.timeouts.queue;
        let (host, base) = (&self.client.host, &self.client.base_dir);
        let brief = Query {
            read: vec![PLACES.to_owned(), FREED.to_owned()],
            list: vec![queue::pattern()],
            files_only: true,
            ..Query::default()
        };
        let whole = Query {
            read: vec![PLACES.to_owned(), FREED.to_owned(), "*/*/state.json".to_owned()],
            joined: vec![queue::pattern()],
            ..Query::default()
        };
        let marks = |survey: &Survey| {
            [PLACES, FREED].map(|name| survey.files.get(&format!("{base}/{name}")).cloned().unwrap_or_default())
        };
        let mut known = marks(survey);
        let mut looked = Instant::now();
        let mut looks = 0;
        loop {
            let now = Timestamp::now();
            let gist = wait.gist();
            if asking.said != gist {
                self.observer.event(&Event::Note(&wait.text(now)));
                asking.said = gist;
            }
            if since.elapsed() >= limit {
                let context = format!(
                    "waited {} s ([timeouts] queue): {}\n{}",
                    limit.as_secs(),
                    wait.text(now),
                    wait.full.advice()
                );
                let fault = Fault::new(FaultKind::TimedOut, "wait for a place on the host", context);
                return Ok(Reserved::Refused(fault.into()));
            }
            self.pause(limit.saturating_sub(since.elapsed())).await?;
            asking.waited = asking.before + since.elapsed();
            let lost = |fault: Fault| {
                if self.lease.check().is_err() { Halt::LeaseLost(super::run::lost()) } else { fault.into() }
            };
            let seen = host.survey(base, &brief).await.map_err(lost)?;
            // Who is far back need not look at everything each time that somebody in front has moved.
            let there =
                |ticket: &&Ticket| seen.paths.contains(&format!("{base}/{}/{}/{TICKET}", ticket.app, ticket.name));
            let position = u32::try_from(wait.near.iter().filter(there).count() + 1).unwrap_or(u32::MAX);
            let due = looked.elapsed() >= LOOK.saturating_mul(1 + position / NEAR);
            if !due && (marks(&seen) == known || position > NEAR) {
                continue;
            }
            let seen = host.survey(base, &whole).await.map_err(lost)?;
            (known, looked) = (marks(&seen), Instant::now());
            let (tickets, holders) = (queue::tickets(&seen.joined), admission::holders(&seen.files));
            let there = tickets.iter().any(|ticket| ticket.app == wish.app && ticket.name == wish.name);
            asking.tries = 0;
            let Err(next) = queue::turn(wish, &tickets, &holders, &seen.facts, &self.project.limits) else {
                asking.ticket = there;
                return Ok(Reserved::Moved);
            };
            if !there {
                // Somebody took it for that of a dead run.
                asking.ticket = false;
                return Ok(Reserved::Moved);
            }
            wait = *next;
            // Who comes first may be dead, and so may who has a place. The further back, the more seldom one asks: others do.
            looks += 1;
            if looks % position == 0 {
                let (client, who) = (self.client, &self.deploy.who);
                let moved = if wait.behind {
                    bury_tickets(client, &wait.ahead, who, self.interrupt).await?
                } else {
                    let dead = suspects(&seen.files, &self.deploy.target);
                    !dead.is_empty() && reclaim(client, &dead, who, self.observer, self.interrupt).await?
                };
                if moved {
                    return Ok(Reserved::Moved);
                }
            }
        }
    }

    /// Heavy work starts in its window alone. False if that was waited for: then one has to look again.
    pub(super) async fn may_start(&mut self, prepared: &Prepared, seen: &Seen, exists: bool) -> Result<bool, Landing> {
        let Some(heavy) = self.project.heavy.as_ref().filter(|heavy| !heavy.builds_only || !prepared.built.is_empty())
        else {
            return Ok(true);
        };
        let now = Timestamp::from_second(seen.survey.facts.now).unwrap_or_else(|_| Timestamp::now());
        let opens = heavy.window.opens(now);
        if opens <= now {
            return Ok(true);
        }
        let wait = Duration::try_from(opens.duration_since(now)).unwrap_or_default();
        let queue = self.project.timeouts.queue;
        let queues = self.project.on_full == OnFull::Queue;
        if !queues || wait > queue.saturating_sub(self.asking.waited) {
            let (name, window) = (self.deploy.target.name.clone(), heavy.window.to_string());
            let limit = queues.then_some(queue);
            return Err(grounded(Refusal::NotNow { name, window, opens, limit }, exists));
        }
        if self.asking.ticket {
            // Who sleeps holds up nobody.
            let gone = async { self.client.host.apply(&self.give_up()?).await };
            gone.await.map_err(|fault| grounded(Error::from(fault), exists))?;
            self.asking.ticket = false;
        }
        self.observer.event(&Event::Stage(Phase::Queued));
        let text = format!("heavy deploys start only in the window {}, which opens at {opens}", heavy.window);
        self.observer.event(&Event::Note(&text));
        let since = Instant::now();
        while since.elapsed() < wait {
            let paused = self.pause(wait.saturating_sub(since.elapsed())).await;
            paused.map_err(|halt| grounded(self.halt_error(halt), exists))?;
        }
        self.asking.waited += since.elapsed();
        self.asking.before = self.asking.waited;
        self.asking.queued = None;
        Ok(false)
    }

    async fn pause(&self, limit: Duration) -> Result<(), Halt> {
        let mut byte = [0];
        let _ = getrandom::fill(&mut byte);
        let pause = (ASK + Duration::from_millis(4 * u64::from(byte[0]))).min(limit);
        tokio::select! {
            biased;
            () = self.interrupt.fired() => Err(Halt::Aborted),
            () = self.lease.lost() => Err(Halt::LeaseLost(super::run::lost())),
            by = self.superseded() => Err(Halt::Superseded(by)),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }

    /// Removes the longest unused previews that may go, if that makes room; true if one went.
    async fn replace(&self, wish: &Wish<'_>, holders: &[Holder], wait: &Wait, survey: &Survey) -> Result<bool, Halt> {
        // Somebody may be at work on what looks idle: then it is not unused, and nobody else goes in vain.
        let mut full = wait.full.clone();
        let lock = |holder: &Holder| format!("{}/{}/{}/.lock", self.client.base_dir, holder.app, holder.name);
        let locks: Vec<String> = full.holders.iter().map(lock).collect();
        let asked = locks.iter().map(|lock| self.client.lock.holder(lock));
        let busy = futures_util::future::try_join_all(asked).await?;
        let mut busy = busy.into_iter();
        full.holders.retain(|_| busy.next().flatten().is_none());
        let Some(victims) = admission::replaceable(wish, holders, &full, &survey.facts, &self.project.limits) else {
            return Ok(false);
        };
        let mut went = false;
        for victim in victims {
            let path = format!("{}/{}/{}/state.json", self.client.base_dir, victim.app, victim.name);
            let Some(Ok(before)) = survey.files.get(&path).map(|text| State::parse(&path, text)) else { continue };
            let target = Target { app: victim.app.clone(), name: victim.name.clone(), project: before.project.clone() };
            let (who, wait) = (self.deploy.who.clone(), Duration::ZERO);
            let destroy = Destroy { target, whose: None, who, wait, event_at: None, run: None };
            let still = |record: Record<'_>| match record {
                Record::State(state) if *state == before => Ok(()),
                _ => Err(Kept::Changed),
            };
            match Box::pin(destroy_if(self.client, &destroy, &super::Quiet, self.interrupt, Some(&still))).await {
                Ok(Ok(_)) => {
                    went = true;
                    let owner = victim.owner.as_ref().map(|owner| format!(" of {owner}")).unwrap_or_default();
                    let note = format!("removed {} {}{owner} to make room", victim.app, victim.name);
                    self.observer.event(&Event::Note(&note.replace(char::is_control, "?")));
                }
                // Somebody is at work on it, or was: then it is not unused.
                Ok(Err(_)) | Err(Error::Locked { .. }) => went = true,
                Err(Error::Fault(fault)) => return Err(fault.into()),
                Err(error) => return Err(Fault::new(FaultKind::Failed, OPERATION, error.chain()).into()),
            }
        }
        Ok(went)
    }
}

/// What makes those who wait for a place look.
pub(super) fn freed(base: &str) -> Result<Change, Fault> {
    let content = Secret::new(random_token()?.into_bytes());
    Ok(Change::Write { path: format!("{base}/{FREED}"), content, mode: 0o600 })
}

impl Full {
    /// No waiting helps.
    fn is_hopeless(&self) -> bool {
        match &self.shortage {
            Shortage::Places { limit, .. } | Shortage::Owner { limit, .. } | Shortage::App { limit, .. } => {
                self.weight > *limit
            }
            Shortage::Promised { limit, wanted, .. } => wanted > limit,
            Shortage::Disk { .. } | Shortage::Memory { .. } => false,
        }
    }
}
