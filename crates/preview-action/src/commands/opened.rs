//! After a deploy: the public addresses are opened from here, and what is in the way is told, or fails the run.

use preview_core::config::PublicCheck;
use preview_core::doctor::{Opened, open_public};
use preview_core::failure::FailureCode;
use preview_core::fault::{Fault, FaultKind};
use preview_core::lifecycle::{Deployed, Error};
use preview_core::project::Project;
use serde_json::Value;

use super::Context;
use crate::session::Session;

impl Context {
    /// Opens them, unless `[health] public` says that nobody is to.
    pub(super) async fn open_public(
        &self,
        session: &Session,
        project: &Project,
        done: &Deployed,
        records: bool,
    ) -> Vec<Opened> {
        if wanted(session) == PublicCheck::Off {
            return Vec::new();
        }
        let opened = tokio::select! {
            opened = open_public(project, &done.addresses, records && !project.hosts.is_empty()) => opened,
            // The deploy is done; nobody has to wait for this.
            () = self.interrupt.fired() => Vec::new(),
        };
        for one in &opened {
            if one.reached {
                self.console.say(&self.redactor.clean(&format!("  {}", one.text())));
            }
        }
        opened
    }

    /// Tells of those that cannot be opened.
    ///
    /// # Errors
    /// If that is to fail the run.
    pub(super) fn judge_public(&self, session: &Session, opened: &[Opened]) -> Result<(), Error> {
        let closed: Vec<String> = opened.iter().filter(|one| !one.reached).map(Opened::text).collect();
        if closed.is_empty() {
            return Ok(());
        }
        if wanted(session) == PublicCheck::Fail {
            let context = format!(
                "the preview runs, but {}\n  it stays as it is; `[health] public = \"warn\"` makes this a warning",
                closed.join("\n")
            );
            let fault = Fault::new(FaultKind::Failed, "open the public address", context);
            return Err(fault.coded(FailureCode::PublicUnreachable).into());
        }
        for text in closed {
            self.console.warn(&text);
        }
        Ok(())
    }
}

fn wanted(session: &Session) -> PublicCheck {
    session.config.health.as_ref().map(|health| health.public).unwrap_or_default()
}

/// The JSON document of a deploy, with what came of opening its addresses.
pub(super) fn document(done: &Deployed, opened: &[Opened]) -> Value {
    let mut document = serde_json::to_value(done).unwrap_or_default();
    if let (Some(table), false) = (document.as_object_mut(), opened.is_empty()) {
        table.insert("public".to_owned(), serde_json::to_value(opened).unwrap_or_default());
    }
    document
}
