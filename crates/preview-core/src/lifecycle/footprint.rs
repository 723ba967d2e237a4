//! What a preview of a project would take, from its Compose files alone: no host is asked.

use super::deploy::early;
use super::{Error, Observer};
use crate::project::{Deploy, Project};
use crate::runtime::Runtime;
use crate::secret::Redactor;
use crate::stack::{self, Share};

/// What a preview would take.
#[derive(Clone, Debug, PartialEq)]
pub struct Footprint {
    /// The services' shares.
    pub shares: Vec<Share>,
    /// Networks of its own.
    pub networks: u64,
}

/// Resolves and judges the files as a deploy does, and says what the preview would take.
pub async fn footprint(
    resolver: &dyn Runtime,
    project: &Project,
    deploy: &Deploy,
    observer: &dyn Observer,
    redactor: &Redactor,
) -> Result<Footprint, Error> {
    let prepared = early(resolver, project, deploy, observer, redactor).await?;
    Ok(Footprint {
        shares: stack::shares(&prepared.model, &project.guardrails),
        networks: stack::own_networks(&prepared.model),
    })
}
