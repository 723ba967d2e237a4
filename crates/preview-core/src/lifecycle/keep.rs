//! Wishes about a preview that stands: how long it is kept, and whether it may make room for another.

use std::time::Duration;

use jiff::Timestamp;

use super::crash::halt_error;
use super::query::missing;
use super::run::{acquire, guarded};
use super::{Client, Error, Interrupt, Observer};
use crate::host::{Change, Query};
use crate::project::Target;
use crate::secret::Secret;
use crate::state::State;

/// The host may take so long to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// What is wished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It does not expire before then. What it had is replaced, also by less.
    Keep {
        /// From now on, on the host's clock.
        span: Duration,
    },
    /// It never expires, and never makes room for another.
    Pin,
    /// It does again.
    Unpin,
}

/// Writes a wish into the preview's state. The value is the state afterwards.
pub async fn keep(
    client: &Client,
    target: &Target,
    wish: Wish,
    who: &str,
    wait: Duration,
    observer: &dyn Observer,
    interrupt: &Interrupt,
) -> Result<State, Error> {
    let path = target.file(&client.base_dir, "state.json");
    let query = Query {
        read: vec![format!("{}/{}/state.json", target.app, target.name)],
        files_only: true,
        ..Query::default()
    };
    // Taking a lock makes directories; none for what is not there.
    let seen = client.host.survey(&client.base_dir, &query).await?;
    if !seen.files.contains_key(&path) {
        return Err(missing(target));
    }
    let lock = target.file(&client.base_dir, ".lock");
    let why = format!("wish about {}", target.name);
    let lease = acquire(&*client.lock, &lock, who, &why, wait, observer, interrupt, &|| ()).await?;
    let query = Query { files_only: false, ..query };
    let work = async {
        let survey = client.host.survey(&client.base_dir, &query).await?;
        let Some(text) = survey.files.get(&path) else { return Ok(Err(missing(target))) };
        let mut state = match State::parse(&path, text) {
            Ok(state) => state,
            Err(error) => return Ok(Err(Error::invalid(error.to_string()))),
        };
        match wish {
            Wish::Keep { span } => {
                let now = Timestamp::from_second(survey.facts.now).unwrap_or_else(|_| Timestamp::now());
                state.keep_until = now.checked_add(span).ok().or(Some(Timestamp::MAX));
            }
            Wish::Pin => state.pinned = true,
            Wish::Unpin => state.pinned = false,
        }
        let content = Secret::new(state.to_json());
        client.host.apply(&[Change::Write { path: path.clone(), content, mode: 0o600 }]).await?;
        Ok(Ok(state))
    };
    let done = guarded(&*lease, interrupt, LIMIT, work).await.map_err(|halt| halt_error(halt, &target.name));
    lease.release(true).await?;
    done?
}
