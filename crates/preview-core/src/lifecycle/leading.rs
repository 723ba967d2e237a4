//! What leads to a preview besides its containers: routes of a proxy that is told by files, and status pages.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use super::Client;
use crate::engine::{Chunk, ExecRequest};
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};
use crate::host::{Change, Survey};
use crate::plan;
use crate::project::Target;
use crate::proxy::{Bundle, FileProxy, Proxy, pages};
use crate::secret::Secret;
use crate::state::{Address, Good, State};

/// More words of a proxy are not wanted.
const WORDS: usize = 16 << 10;

/// Tells a proxy that is told by files of these routes, instead of those that it knew of the project.
pub(super) async fn lead(client: &Client, project: &str, bundle: &Bundle) -> Result<(), Fault> {
    const OPERATION: &str = "put the routes into the proxy";
    let Proxy::Files(proxy) = &client.proxy else { return Ok(()) };
    let tar =
        bundle.tar().map_err(|error| Fault::new(FaultKind::Invalid, OPERATION, "they do not fit").caused_by(error))?;
    exec(client, proxy, OPERATION, proxy.replace(project), &tar).await.map(|_| ())
}

/// What tells the proxy of these routes again, as a file of the host: its path, and its content, which may hold the hash of a password.
pub(super) fn remember(target: &Target, base: &str, bundle: &Bundle) -> (String, Change) {
    // A map of strings always serialises.
    let text = serde_json::to_string(&bundle.files).unwrap_or_default();
    let name = plan::routes_file(&text);
    let path = target.file(base, &name);
    (name, Change::Write { path, content: Secret::new(text.into_bytes()), mode: 0o600 })
}

/// What the proxy was told of the good version, where that is in these files of the host.
pub(super) fn told(files: &BTreeMap<String, String>, target: &Target, base: &str, good: &Good) -> Option<Bundle> {
    let text = files.get(&target.file(base, good.routes.as_ref()?))?;
    Some(Bundle { files: serde_json::from_str(text).ok()? })
}

/// Takes a project's routes away. A proxy that does not run leads nowhere; what it keeps of them goes with the next sweep.
pub(super) async fn mislead(client: &Client, project: &str) -> Result<(), Fault> {
    const OPERATION: &str = "take the routes from the proxy";
    let Proxy::Files(proxy) = &client.proxy else { return Ok(()) };
    let nothing = Bundle { files: BTreeMap::new() }.tar().unwrap_or_default();
    exec(client, proxy, OPERATION, proxy.replace(project), &nothing).await.map(|_| ())
}

/// The projects that a proxy is told of that is told by files.
pub(super) async fn led(client: &Client) -> Result<Vec<String>, Fault> {
    const OPERATION: &str = "list the proxy's routes";
    let Proxy::Files(proxy) = &client.proxy else { return Ok(Vec::new()) };
    let said = exec(client, proxy, OPERATION, proxy.list(), &[]).await?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// Runs a command in the proxy's container, and returns what it printed.
async fn exec(
    client: &Client,
    proxy: &FileProxy,
    operation: &'static str,
    argv: Vec<String>,
    input: &[u8],
) -> Result<String, Fault> {
    let container = &proxy.container;
    let request = ExecRequest { argv, stdin: !input.is_empty(), ..ExecRequest::default() };
    let mut exec = match client.engine.exec(container, &request).await {
        Ok(exec) => exec,
        Err(fault) if matches!(fault.kind, FaultKind::NotFound | FaultKind::Conflict) => {
            let context = format!(
                "the proxy's container `{container}` does not run ([proxy] container); start it, or let `preview vm setup` make it"
            );
            return Err(Fault::new(fault.kind, operation, context).coded(FailureCode::ProxyFailed).caused_by(fault));
        }
        Err(fault) => return Err(fault),
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let feed = async {
        if let Some(mut pipe) = exec.input.take() {
            // A script that has ended early says why.
            let _ = pipe.write_all(input).await;
            let _ = pipe.shutdown().await;
        }
        Ok(())
    };
    let read = async {
        while let Some(chunk) = exec.output.next().await {
            let (bytes, into) = match chunk? {
                Chunk::Stdout(bytes) => (bytes, &mut out),
                Chunk::Stderr(bytes) => (bytes, &mut err),
            };
            if into.len() < WORDS {
                into.extend_from_slice(&bytes);
            }
        }
        Ok::<_, Fault>(())
    };
    futures_util::try_join!(feed, read)?;
    match client.engine.exec_exit_code(&exec.id).await? {
        0 => Ok(String::from_utf8_lossy(&out).into_owned()),
        code => {
            let said = String::from_utf8_lossy(&err).trim().to_owned();
            let context = match code {
                3 => format!("`{container}` does not accept them, and goes on with what it had: {said}"),
                126 | 127 => format!(
                    "`{container}` lacks a program that this needs (sh, flock, tar, and the proxy itself): {said}"
                ),
                _ => format!("in `{container}`, exit code {code}: {said}"),
            };
            Err(Fault::new(FaultKind::Failed, operation, context).coded(FailureCode::ProxyFailed))
        }
    }
}

/// Whether the host keeps status pages, where they were read.
pub(super) fn keeps_pages(base: &str, survey: &Survey) -> bool {
    let directory = format!("{base}/{}/", pages::DIRECTORY);
    survey.files.keys().any(|path| path.starts_with(&directory))
}

fn files<'a>(base: &'a str, addresses: &'a [Address]) -> impl Iterator<Item = String> + 'a {
    addresses
        .iter()
        .filter_map(|address| pages::file(&address.url))
        .map(move |file| format!("{base}/{}/{file}", pages::DIRECTORY))
}

/// The pages of a preview as they should be in this state, and the one for what is gone.
pub(super) fn show(base: &str, state: &State) -> Vec<Change> {
    let write = |path, text: String| Change::Write { path, content: Secret::new(text.into_bytes()), mode: pages::MODE };
    let gone = format!("{base}/{}/{}", pages::DIRECTORY, pages::GONE);
    files(base, &state.addresses)
        .map(|path| write(path, pages::page(state)))
        .chain([write(gone, pages::gone())])
        .collect()
}

/// The removal of a preview's pages.
pub(super) fn hide(base: &str, addresses: &[Address]) -> Vec<Change> {
    files(base, addresses).map(|path| Change::Remove { path }).collect()
}
