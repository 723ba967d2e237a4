//! Writes a host's numbers to the file that its monitoring reads. Any run may do it at its end; the last look at the host is what stays.

use std::time::Duration;

use super::{Client, Error};
use crate::admission::Weight;
use crate::fault::{Fault, FaultKind};
use crate::host::{Change, Guard, guard_in, random_token};
use crate::metrics;
use crate::secret::Secret;

/// Who is not the first so often need not go on: a look at the host that began after this run ended is written by then.
const TRIES: usize = 3;
/// All of it may take so long.
const LIMIT: Duration = Duration::from_secs(20);

/// Writes the numbers of a host to this file on it (0644, in one step). `places` is how many there are.
///
/// Two runs that end at once look and write in some order: one whose look is older than what was written meanwhile looks again.
pub async fn publish(client: &Client, file: &str, places: Weight) -> Result<(), Error> {
    let work = async {
        for _ in 0..TRIES {
            let survey = client.host.survey(&client.base_dir, &metrics::query()).await?;
            let path = format!("{}/{}", client.base_dir, metrics::GUARD);
            let expected = survey.files.get(&path).map(|text| guard_in(text).to_owned()).unwrap_or_default();
            let guard = Guard { path, expected, next: random_token()?, beside: vec![] };
            let content = Secret::new(metrics::text(&client.base_dir, &survey, places).into_bytes());
            let change = Change::Write { path: file.to_owned(), content, mode: 0o644 };
            if client.host.apply_if(&guard, &[change]).await? {
                break;
            }
        }
        Ok::<(), Fault>(())
    };
    let late =
        || Fault::new(FaultKind::TimedOut, "write the metrics", format!("no answer within {} s", LIMIT.as_secs()));
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| Err(late())).map_err(Error::from)
}
