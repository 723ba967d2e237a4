//! `sweep`, `keep`, `pin`: what is kept on a host, and for how long.

use std::collections::BTreeSet;
use std::io::Read as _;

use preview_core::forge::{Forge, GitHub, GitLab, github};
use preview_core::lifecycle::{self, Error, Wish};
use preview_core::report;
use preview_core::secret::Secret;
use preview_core::sweep::Open;
use preview_core::units::TimeSpan;
use serde_json::json;

use super::{Context, close, named};
use crate::cli::{self, Which};
use crate::output;
use crate::session::{Purpose, Session};

/// `true` is `--forge`, where nothing is said of lists.
const FORGE: &str = "PREVIEW_FORGE";

impl Context {
    pub(super) async fn sweep(&self, wish: &cli::Sweep) -> Result<u8, Error> {
        let session = self.session(Purpose::Look)?;
        let listed = wish.open_prs.is_some() || wish.open_branches.is_some();
        let asked = wish.forge || (!listed && session.environment.get(FORGE).is_some_and(|said| said == "true"));
        let mut wish = request(&session, &cli::Sweep { forge: asked, ..wish.clone() }, &self.run)?;
        let forge = if asked { Some(self.forge(&session)?) } else { None };
        let dns = session.dns()?;
        let client = named(session.connect().await?, dns);
        if let Some((forge, repository)) = forge {
            let there = lifecycle::still_there(&client, &*forge, &wish.open.app, &repository, &*self.console).await;
            if there.is_err() {
                close(&client).await;
            }
            let (pulls, branches) = there?;
            // Of this one alone it is known.
            wish.open.repository = Some(repository);
            (wish.open.pulls, wish.open.branches) = (Some(pulls), Some(branches));
        }
        let limit = session.config.timeouts.total.duration();
        let swept = lifecycle::sweep(&client, &wish, &*self.console, &self.interrupt);
        let swept = tokio::time::timeout(limit, swept).await.unwrap_or_else(|_| Err(too_long(limit.as_secs())));
        // A dry run changes nothing.
        if !wish.dry_run {
            self.publish(&session, Some(&client), swept.as_ref().err()).await;
        }
        close(&client).await;
        let swept = swept?;
        let text = self.redactor.clean(&report::swept(&swept));
        if self.json() {
            output::to_stdout(&self.redactor.clean(&output::json(&swept)));
        } else {
            output::to_stdout(&text);
        }
        self.files(&[], &report::swept_markdown(&swept))?;
        Ok(swept.exit_code())
    }

    /// The forge that this job runs for, and the repository there.
    fn forge(&self, session: &Session) -> Result<(Box<dyn Forge>, String), Error> {
        let get = |name: &str| session.environment.get(name).filter(|value| !value.is_empty()).cloned();
        let token = |names: &[&str]| {
            let token = names.iter().find_map(|name| get(name)).map(Secret::new);
            token.inspect(|token| self.redactor.learn(token))
        };
        if let (Some(base), Some(project), None) = (get("CI_API_V4_URL"), get("CI_PROJECT_PATH"), get("GITHUB_ACTIONS"))
        {
            let forge = GitLab::new(&base, token(&["GITLAB_TOKEN"]).as_ref())?;
            return Ok((Box::new(forge), project));
        }
        let Some(repository) = get("GITHUB_REPOSITORY") else {
            return Err(Error::invalid(
                "--forge: it is not known which repository to ask for: that is what GITHUB_REPOSITORY says in a job of GitHub Actions, and \
                 CI_PROJECT_PATH with CI_API_V4_URL in one of GitLab CI",
            ));
        };
        let base = get("GITHUB_API_URL").unwrap_or_else(|| github::API.to_owned());
        let forge = GitHub::new(&base, token(&["GITHUB_TOKEN", "GH_TOKEN"]).as_ref())?;
        Ok((Box::new(forge), repository))
    }

    pub(super) async fn keep(&self, which: &Which, span: &str) -> Result<u8, Error> {
        let span: TimeSpan = span.parse().map_err(|error| Error::invalid(format!("--for: {error}")))?;
        self.wish(which, Wish::Keep { span: span.into() }).await
    }

    pub(super) async fn wish(&self, which: &Which, wish: Wish) -> Result<u8, Error> {
        let session = self.session(Purpose::Look)?;
        let target = self.target(&session, which)?;
        let client = session.connect().await?;
        let wait = session.config.timeouts.lock.into();
        let done = lifecycle::keep(&client, &target, wish, &session.who(), wait, &*self.console, &self.interrupt).await;
        close(&client).await;
        let state = done?;
        if self.json() {
            let document = json!({"name": state.name, "pinned": state.pinned, "expires_at": state.expiry()});
            output::to_stdout(&output::json(&document));
        } else {
            let text = match state.expiry() {
                Some(at) => format!("{} is kept until {at}", state.name),
                None => format!("{} does not expire", state.name),
            };
            self.console.say(&text);
        }
        Ok(0)
    }
}

fn too_long(seconds: u64) -> Error {
    preview_core::fault::Fault::new(
        preview_core::fault::FaultKind::TimedOut,
        "sweep",
        format!(
            "it took longer than {seconds} s (--timeout, or [timeouts] total); run the same command again for the rest"
        ),
    )
    .into()
}

fn request(session: &Session, wish: &cli::Sweep, run: &str) -> Result<lifecycle::Sweep, Error> {
    let get = |name: &str| session.environment.get(name).filter(|value| !value.is_empty()).cloned();
    let or = |name: &str| if wish.forge { None } else { get(name) };
    let open_prs = wish.open_prs.clone().or_else(|| or("PREVIEW_OPEN_PRS"));
    let open_branches = wish.open_branches.clone().or_else(|| or("PREVIEW_OPEN_BRANCHES"));
    let both = [&open_prs, &open_branches];
    if both.iter().all(|source| source.as_deref() == Some("-")) {
        return Err(Error::invalid("--open-prs and --open-branches cannot both be read from standard input"));
    }
    let number = |line: &str| {
        let number = line.trim_start_matches(['#', '!']).parse::<u64>();
        number.map_err(|_| Error::invalid(format!("--open-prs: `{line}` is not the number of a pull request")))
    };
    let pulls = open_prs.as_deref().map(|source| {
        lines("--open-prs", source)?.iter().map(|line| number(line)).collect::<Result<BTreeSet<u64>, Error>>()
    });
    let branches = open_branches.as_deref().map(|source| lines("--open-branches", source));
    let grace: TimeSpan =
        wish.grace.as_deref().unwrap_or("10m").parse().map_err(|error| Error::invalid(format!("--grace: {error}")))?;
    let sweep = &session.config.sweep;
    Ok(lifecycle::Sweep {
        who: session.who(),
        run: run.to_owned(),
        dry_run: wish.dry_run,
        open: Open {
            app: session.app.to_string(),
            repository: session.repository(),
            pulls: pulls.transpose()?,
            branches: branches.transpose()?,
            grace: grace.into(),
        },
        timeouts: session.timeouts(),
        images_above: sweep.images_above,
        images_older: sweep.images_older.into(),
        build_cache: sweep.build_cache.bytes(),
    })
}

/// The lines of a list. An empty one is rather a command that failed than a repository without pull requests.
fn lines(flag: &str, source: &str) -> Result<BTreeSet<String>, Error> {
    if source == "none" {
        return Ok(BTreeSet::new());
    }
    let mut text = String::new();
    let read = match source {
        "-" => std::io::stdin().lock().read_to_string(&mut text).map(|_| ()),
        file => std::fs::read_to_string(file).map(|content| text = content),
    };
    read.map_err(|error| Error::invalid(format!("{flag} {source}: {error}")))?;
    let lines: BTreeSet<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if lines.len() == 1 && lines.contains("none") {
        return Ok(BTreeSet::new());
    }
    if lines.is_empty() {
        return Err(Error::invalid(format!(
            "{flag} {source}: the list is empty; if that is right, say `{flag} none`: then all of their previews go"
        )));
    }
    Ok(lines)
}
