//! Pages that stand in for a preview that does not answer: being deployed, failed, out of reach, gone. Pure.
//!
//! They are files in [`DIRECTORY`] below the base directory, if that is there; the proxy shows them where it has no other answer. A page is
//! named by its address: `pr-7.example.com.html`, `example.com~pr-7.html` (a path's slashes are `~`). For any other address there is
//! [`GONE`]. A page tells what anybody may know who has the address: no logs, no errors, no names of services.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::route::parts;
use crate::state::{Phase, State};

/// The directory of the pages, below the base directory.
pub const DIRECTORY: &str = ".pages";
/// The page for addresses that no preview has.
pub const GONE: &str = "gone.html";
/// In front of the time at the end of a page.
const MARK: &str = "preview, at ";
/// The mode of a page: the proxy reads it as a user of its own.
pub const MODE: u32 = 0o644;

/// The file of an address's page, below [`DIRECTORY`]; `None` where it cannot have one.
#[must_use]
pub fn file(url: &str) -> Option<String> {
    let at = parts(url);
    // Two parts are as far as the proxies look; other schemes have no pages.
    let web = url.starts_with("https://") || url.starts_with("http://");
    let deep = at.path.matches('/').count() > 2;
    (web && !deep && !at.host.is_empty()).then(|| format!("{}{}.html", at.host, at.path.replace('/', "~")))
}

/// What a page says of a preview.
struct Words {
    mood: &'static str,
    title: String,
    text: String,
    /// Seconds until the page looks again.
    again: Option<u32>,
}

fn words(state: &State) -> Words {
    let name = &state.name;
    let (mood, title, text, again) = match state.phase {
        Phase::Ready => (
            "wait",
            format!("{name} does not answer"),
            "The preview is deployed, but the service behind this address does not answer at the moment. It may be starting again."
                .to_owned(),
            Some(5),
        ),
        Phase::Failed | Phase::TimedOut | Phase::Aborted => {
            let what = match state.phase {
                Phase::TimedOut => "took too long",
                Phase::Aborted => "was stopped",
                _ => "failed",
            };
            let code = state.failure.as_ref().and_then(|failure| failure.code);
            let code = code.map_or_else(String::new, |code| format!(" (<code>{}</code>)", escape(&code.to_string())));
            let text = format!("The last deploy {what}{code}. The job that ran it has the reason and the logs.");
            ("bad", format!("{name} could not be deployed"), text, Some(30))
        }
        Phase::Destroying => ("wait", format!("{name} is being removed"), "In a moment it is gone.".to_owned(), Some(5)),
        phase => (
            "wait",
            format!("{name} is being deployed"),
            format!("It is {}. This page looks again by itself.", escape(&phase.to_string())),
            Some(3),
        ),
    };
    Words { mood, title, text, again }
}

/// The page for a preview in this state.
#[must_use]
pub fn page(state: &State) -> String {
    let words = words(state);
    let mut facts = vec![("Preview", state.name.clone()), ("For", state.subject.to_string())];
    if let Some(commit) = &state.commit {
        facts.push(("Commit", commit.chars().take(12).collect()));
    }
    facts.push(("Since", time(state.updated_at)));
    let mark = format!("{MARK}{}", state.updated_at.as_second());
    render(&words, &facts, &mark)
}

/// When a page was written, seconds since 1970.
#[must_use]
pub fn written(page: &str) -> Option<i64> {
    let (_, rest) = page.rsplit_once(MARK)?;
    rest.split(' ').next()?.parse().ok()
}

/// The page for an address that no preview has.
#[must_use]
pub fn gone() -> String {
    let words = Words {
        mood: "gone",
        title: "There is no preview here".to_owned(),
        text: "It was removed, because its pull request was closed or its time was over, or it was never there. A new push to its branch, or \
               its job started again, brings it back."
            .to_owned(),
        again: None,
    };
    render(&words, &[], "")
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

fn render(words: &Words, facts: &[(&str, String)], mark: &str) -> String {
    let mut list = String::new();
    for (key, value) in facts {
        let _ = write!(list, "<dt>{key}</dt><dd>{}</dd>", escape(value));
    }
    let list = if list.is_empty() { String::new() } else { format!("<dl>{list}</dl>\n") };
    let mark = if mark.is_empty() { String::new() } else { format!("<!-- {mark} -->\n") };
    let again =
        words.again.map_or_else(String::new, |again| format!("<meta http-equiv=\"refresh\" content=\"{again}\">\n"));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"robots\" content=\"noindex\">\n{again}<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n\
         <body class=\"{mood}\">\n<main>\n<div class=\"sign\" aria-hidden=\"true\"></div>\n<h1>{title}</h1>\n<p>{text}</p>\n{list}</main>\n</body>\n</html>\n{mark}",
        title = escape(&words.title),
        mood = words.mood,
        text = words.text,
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// No file beside the page, and nothing from elsewhere: the page has to work where nothing else does.
const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#1c2330;--soft:#5b6577;--line:#e2e6ec;--wait:#2f6fed;--bad:#c8372d;--gone:#7a8496}\
@media(prefers-color-scheme:dark){:root{--paper:#12161d;--card:#1b212b;--ink:#e8ecf2;--soft:#9aa5b6;--line:#2c3440;--wait:#6a9bff;--bad:#ff7a70;--gone:#8b96a8}}\
*{box-sizing:border-box}\
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;background:var(--paper);color:var(--ink);\
font:1rem/1.55 system-ui,-apple-system,\"Segoe UI\",Roboto,sans-serif}\
main{width:100%;max-width:34rem;padding:2rem;background:var(--card);border:1px solid var(--line);border-radius:14px}\
h1{margin:.9rem 0 .6rem;font-size:1.45rem;line-height:1.25;overflow-wrap:anywhere}\
p{margin:0;color:var(--soft)}code{font-size:.95em}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1.2rem;margin:1.5rem 0 0;padding-top:1.2rem;border-top:1px solid var(--line);font-size:.93rem}\
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}\
.sign{width:2.4rem;height:2.4rem;border-radius:50%;border:4px solid var(--mood)}\
.wait{--mood:var(--wait)}.bad{--mood:var(--bad)}.gone{--mood:var(--gone)}\
.wait .sign{border-right-color:transparent;animation:turn 1.1s linear infinite}\
.bad .sign{background:var(--bad);-webkit-mask:linear-gradient(#000 0 0)}.gone .sign{border-style:dashed}\
@keyframes turn{to{transform:rotate(1turn)}}\
@media(prefers-reduced-motion:reduce){.wait .sign{animation:none}}\
@media(max-width:26rem){body{padding:.8rem}main{padding:1.4rem}}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureCode;
    use crate::state::Failure;

    #[test]
    fn a_page_is_named_by_its_address() {
        assert_eq!(file("https://pr-7.example.com").as_deref(), Some("pr-7.example.com.html"));
        assert_eq!(file("https://example.com:8443/pr-7/").as_deref(), Some("example.com~pr-7.html"));
        assert_eq!(file("http://example.com/previews/pr-7").as_deref(), Some("example.com~previews~pr-7.html"));
        assert_eq!(file("http://example.com/a/b/c"), None);
        assert_eq!(file("tcp://pr-7-db.example.com"), None);
    }

    #[test]
    fn a_page_tells_no_more_than_anybody_may_know() {
        let failed = State {
            phase: Phase::Failed,
            subject: crate::state::Subject::Branch("<script>alert(1)</script>".into()),
            failure: Some(Failure {
                phase: Phase::Starting,
                code: Some(FailureCode::Unhealthy),
                message: "api: password hunter2 refused\n  at main.py:3".into(),
                at: Timestamp::UNIX_EPOCH,
            }),
            ..crate::state::tests::state()
        };
        let text = page(&failed);
        assert!(text.contains("<code>unhealthy</code>"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("main.py") && !text.contains("<script>"), "{text}");
    }

    #[test]
    fn each_phase_has_its_page() {
        let page = |phase| page(&State { phase, ..crate::state::tests::state() });
        for phase in
            [Phase::Queued, Phase::Preparing, Phase::Building, Phase::Pulling, Phase::Starting, Phase::Verifying]
        {
            assert!(page(phase).contains("is being deployed") && page(phase).contains("http-equiv=\"refresh\""));
        }
        assert_eq!(written(&page(Phase::Ready)), Some(crate::state::tests::state().updated_at.as_second()));
        assert_eq!(written(&gone()), None);
        assert!(page(Phase::Ready).contains("does not answer"));
        assert!(page(Phase::Aborted).contains("was stopped"));
        assert!(!gone().contains("refresh"), "nothing will come by itself");
        insta::assert_snapshot!(page(Phase::Starting));
    }
}
