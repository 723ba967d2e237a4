//! `capacity`: how many previews fit, and which VM they need.

use std::collections::BTreeSet;

use preview_core::admission::Weight;
use preview_core::capacity::{self, Disk, Fit, Need, Terms, Vm};
use preview_core::config::{COMPOSE_FILES, Config};
use preview_core::host::Query;
use preview_core::lifecycle::{self, Error, Footprint, Quiet};
use preview_core::units::ByteSize;
use serde_json::json;

use super::{Context, close};
use crate::cli;
use crate::output;
use crate::session::{Purpose, Session};

impl Context {
    pub(super) async fn capacity(&self, wish: &cli::Capacity) -> Result<u8, Error> {
        if wish.table {
            self.print(
                &capacity::table(),
                &json!({"formula": Need::formula(), "vms": by_previews(), "previews": by_size()}),
            );
            return Ok(0);
        }
        let session = self.session(Purpose::Deploy(&wish.deploy()))?;
        let terms = terms(&session.config, wish.cpu_overcommit)?;
        let footprint = self.footprint(&session).await?;
        let need = match &footprint {
            Some(footprint) => Need::of(&footprint.shares, footprint.networks, &terms),
            None => Need::formula(),
        };
        let services = footprint.map(|footprint| footprint.shares);
        if let Some(previews) = wish.previews {
            let wanted = capacity::vm_for(&need, previews, &terms);
            self.print(
                &capacity::wanted(&wanted, &need),
                &json!({"needs": wanted, "preview": need, "services": services}),
            );
            return Ok(0);
        }
        let vm = if wish.of_no_vm() { imagined(wish)? } else { self.real(&session).await? };
        let fit: Fit = capacity::fits(&need, &vm, &terms);
        self.print(&capacity::fit(&fit), &json!({"fits": fit, "preview": need, "services": services}));
        Ok(0)
    }

    fn print(&self, text: &str, document: &serde_json::Value) {
        if self.json() {
            output::to_stdout(&self.redactor.clean(&output::json(document)));
        } else {
            output::to_stdout(&self.redactor.clean(text));
        }
    }

    /// What a preview of this project takes; `None` where there is no Compose file to say it.
    async fn footprint(&self, session: &Session) -> Result<Option<Footprint>, Error> {
        let found = COMPOSE_FILES.iter().any(|name| session.directory().join(name).is_file());
        if session.config.compose.is_empty() && !found {
            self.console.say("there is no Compose file here: the numbers are those of the formula");
            return Ok(None);
        }
        let key = session.any_key()?;
        let project = session.project(&session.named(&key)?)?;
        let request = preview_core::project::Deploy::new(
            session.target(&key)?,
            crate::session::subject(&key),
            &session.who(),
            &self.run,
        );
        let resolver = session.compose();
        let found = lifecycle::footprint(&resolver, &project, &request, &Quiet, &self.redactor).await?;
        Ok(Some(found))
    }

    /// What the host has.
    async fn real(&self, session: &Session) -> Result<Vm, Error> {
        let client = session.connect().await?;
        let query = Query { list: vec!["*/*/state.json".to_owned()], ..Query::default() };
        let seen = async {
            let engine = session.engine(&client).await?.examine().await?;
            let survey = client.host.survey(&client.base_dir, &query).await?;
            Ok::<_, Error>((engine, survey))
        };
        let seen = seen.await;
        close(&client).await;
        let (engine, survey) = seen?;
        let places = Weight::places(session.config.limits.max_previews.get());
        let weight = Weight::try_from(session.config.limits.weight).unwrap_or_default();
        let previews: BTreeSet<&str> =
            survey.paths.iter().filter_map(|path| path.rsplit_once('/')).map(|(dir, _)| dir).collect();
        Ok(Vm {
            cpus: Some(u64::from(survey.facts.cpus) * 1000),
            memory: Some(survey.facts.memory_total),
            disk: Some(Disk::Free(survey.facts.disk_free)),
            networks: Some(engine.networks_left().1),
            places: Some(places.times(weight)),
            previews: previews.len() as u64,
        })
    }
}

/// A VM that is to be.
fn imagined(wish: &cli::Capacity) -> Result<Vm, Error> {
    let size = |flag: &str, text: &Option<String>| {
        let read = text.as_deref().map(str::parse::<ByteSize>).transpose();
        read.map(|size| size.map(ByteSize::bytes)).map_err(|error| Error::invalid(format!("{flag}: {error}")))
    };
    let cpus = match wish.vcpus {
        Some(cpus) if !(cpus > 0.0 && cpus <= 100_000.0) => {
            return Err(Error::invalid(format!("--vcpus: `{cpus}` is no number of processors")));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
        cpus => cpus.map(|cpus| (cpus * 1000.0).round() as u64),
    };
    Ok(Vm {
        cpus,
        memory: size("--memory", &wish.memory)?,
        disk: size("--disk", &wish.disk)?.map(Disk::Size),
        ..Vm::default()
    })
}

fn terms(config: &Config, cpu_overcommit: f64) -> Result<Terms, Error> {
    if !(0.01..=1000.0).contains(&cpu_overcommit) {
        return Err(Error::invalid(format!("--cpu-overcommit: `{cpu_overcommit}` is not a number from 0.01 to 1000")));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both ranges were checked")]
    let percent = |times: f64| (times * 100.0).round() as u32;
    Ok(Terms {
        cpu_overcommit: percent(cpu_overcommit),
        memory_overcommit: config.limits.memory_overcommit.map_or(100, percent),
        free_memory: config.limits.min_free_memory.bytes(),
        free_disk: config.limits.min_free_disk.bytes(),
    })
}

fn by_previews() -> Vec<capacity::Wanted> {
    capacity::TABLE.iter().map(|previews| capacity::vm_for(&Need::formula(), *previews, &Terms::default())).collect()
}

fn by_size() -> Vec<serde_json::Value> {
    let rows = capacity::SIZES.iter().map(|size| {
        let fit = capacity::fits(&Need::formula(), &size.vm(), &Terms::default());
        json!({"vm": size, "previews": fit.previews, "binds": fit.binds})
    });
    rows.collect()
}
