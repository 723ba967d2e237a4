//! A place on the host for a preview: asked for in pure code, taken by compare and swap, made free where the dead hold it.

use std::time::Instant;

use futures_util::FutureExt as _;
use jiff::Timestamp;

use super::Refusal;
use super::crash::{Landing, grounded};
use super::flight::Flight;
use super::observe::{PLACES, Seen};
use super::reclaim::{reclaim, suspects};
use super::run::Halt;
use crate::admission::{self, Holder, Wish};
use crate::fault::{Fault, FaultKind};
use crate::host::{Guard, Query, guard_in, random_token};
use crate::state::State;

impl Flight<'_> {
    /// What runs stays as it is, but it may count for more than before.
    pub(super) async fn reserve_more(&self, state: &State, seen: &Seen) -> Result<Result<bool, Refusal>, Landing> {
        let Some(before) = &seen.state else { return Ok(Ok(false)) };
        let state = State { weight: state.weight, ..before.clone() };
        self.reserve(&state, seen).await.map_err(|halt| grounded(self.halt_error(halt), true))
    }

    /// Takes the preview's place on the host, if it has none or needs more than it has: true if so. The state file is the
    /// reservation. It is written only if no place was given away since the host was looked at; else one looks again.
    ///
    /// Not to be dropped half-way. Interrupts and limits of time are looked at between the exchanges, which are short.
    pub(super) async fn reserve(&self, state: &State, seen: &Seen) -> Result<Result<bool, Refusal>, Halt> {
        const OPERATION: &str = "take a place on the host";
        /// Somebody gets a place each time that one has to look again, so this is more than any host has places.
        const TRIES: usize = 200;
        /// Somebody else may be removing what the dead left.
        const RECLAIMS: usize = 5;
        if seen.state.as_ref().is_some_and(|before| before.weight >= state.weight) {
            return Ok(Ok(false));
        }
        let base = &self.client.base_dir;
        let guard = format!("{base}/{PLACES}");
        let query =
            Query { read: vec![PLACES.to_owned(), "*/*/state.json".to_owned()], list: Vec::new(), ..Query::default() };
        let wish = Wish { app: &state.app, name: &state.name, owner: state.owner.as_deref(), weight: state.weight };
        let mut again;
        let mut survey = &seen.survey;
        let mut reclaims = 0;
        let limit = self.limit(self.project.timeouts.start);
        let begun = Instant::now();
        for _ in 0..TRIES {
            self.lease.check()?;
            if self.interrupt.fired().now_or_never().is_some() {
                return Err(Halt::Aborted);
            }
            if let Some(by) = self.superseded().now_or_never() {
                return Err(Halt::Superseded(by));
            }
            if begun.elapsed() > limit {
                return Err(Halt::TimedOut(limit));
            }
            let holders = admission::holders(&survey.files);
            let admit = |holders: &[Holder]| admission::admit(&wish, holders, &survey.facts, &self.project.limits);
            if let Err(full) = admit(&holders) {
                // What the dead left is only worth removing if that makes room.
                let dead = suspects(&survey.files, &self.deploy.target);
                let alive =
                    |holder: &Holder| !dead.iter().any(|(dead, _)| dead.app == holder.app && dead.name == holder.name);
                let rest: Vec<Holder> = holders.iter().filter(|holder| alive(holder)).cloned().collect();
                if reclaims < RECLAIMS && !dead.is_empty() && admit(&rest).is_ok() {
                    reclaims += 1;
                    if reclaim(self.client, &dead, &self.deploy.who, self.observer, self.interrupt).await? {
                        again = self.client.host.survey(base, &query).await?;
                        survey = &again;
                        continue;
                    }
                }
                let now = Timestamp::from_second(survey.facts.now).unwrap_or_else(|_| Timestamp::now());
                return Ok(Err(Refusal::Full { name: state.name.clone(), full: Box::new(full), now }));
            }
            let expected = survey.files.get(&guard).map(|text| guard_in(text).to_owned()).unwrap_or_default();
            let guard = Guard { path: guard.clone(), expected, next: random_token()? };
            if self.client.host.apply_if(&guard, &[self.save(state)]).await? {
                return Ok(Ok(true));
            }
            again = self.client.host.survey(base, &query).await?;
            survey = &again;
        }
        let context = format!("{guard}: others were faster each time; run the same command again");
        Err(Fault::new(FaultKind::Conflict, OPERATION, context).transient().into())
    }
}
