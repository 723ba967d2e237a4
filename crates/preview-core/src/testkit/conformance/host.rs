//! What every [`Host`] must do.

mod notes;
mod upload;

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

use crate::fault::{Fault, FaultKind};
use crate::host::{Change, Guard, Host, Query, Survey};
use crate::secret::Secret;
use notes::{
    a_note_that_cannot_be_written_fails_nothing, lines_are_added_and_only_the_last_are_kept, no_line_of_many_is_lost,
};
use upload::{
    entry, upload_brings_trees_files_links_and_empty_directories, upload_happens_once,
    upload_of_nothing_makes_a_directory, upload_over_a_file_is_refused, upload_refuses_what_leaves_the_directory,
    upload_that_fails_leaves_nothing,
};

/// Runs all checks, each in a directory of its own under `base`, which should not exist yet.
///
/// # Panics
/// Where the adapter does not keep the contract.
pub async fn suite(host: &dyn Host, base: &str) {
    macro_rules! run {
        ($($check:ident),* $(,)?) => {
            $(
                tracing::debug!(check = stringify!($check));
                $check(host, &format!("{base}/{}", stringify!($check))).await;
            )*
        };
    }
    run!(
        what_does_not_exist_reads_as_empty,
        facts_are_plausible,
        facts_can_be_left_out_and_dots_need_a_dot,
        files_are_joined,
        a_file_is_written_with_its_directories_and_replaced,
        any_text_survives,
        content_that_is_no_text_is_left_out,
        a_large_file_survives,
        any_name_works,
        a_star_is_part_of_one_component,
        only_a_star_is_special,
        directories_are_listed_and_not_read,
        many_files_in_one_survey,
        rename_replaces,
        rename_needs_its_source,
        nothing_replaces_a_directory,
        a_file_is_no_directory,
        remove_takes_exactly_what_it_names,
        only_empty_directories_are_removed,
        changes_stop_at_the_first_failure,
        changes_in_order,
        changes_depend_on_their_guard,
        changes_depend_on_what_is_beside_their_guard,
        one_of_many_wins_a_guard,
        lines_are_added_and_only_the_last_are_kept,
        no_line_of_many_is_lost,
        a_note_that_cannot_be_written_fails_nothing,
        unsafe_paths_are_refused,
        upload_brings_trees_files_links_and_empty_directories,
        upload_happens_once,
        upload_of_nothing_makes_a_directory,
        upload_that_fails_leaves_nothing,
        upload_refuses_what_leaves_the_directory,
        upload_over_a_file_is_refused,
        removing_a_link_keeps_its_target,
        operations_may_overlap,
    );
    host.apply(&[Change::Remove { path: base.to_owned() }]).await.expect("removes what the checks left");
    let left = survey(host, base, &["*"], &["*"]).await;
    assert!(left.files.is_empty() && left.paths.is_empty(), "{left:?}");
}

fn write(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Change {
    Change::Write { path: path.into(), content: Secret::new(content.into()), mode: 0o600 }
}

fn remove(path: impl Into<String>) -> Change {
    Change::Remove { path: path.into() }
}

async fn apply(host: &dyn Host, changes: &[Change]) {
    host.apply(changes).await.unwrap_or_else(|fault| panic!("{}", fault.chain()));
}

async fn survey(host: &dyn Host, base: &str, read: &[&str], list: &[&str]) -> Survey {
    let strings = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    let query = Query { read: strings(read), list: strings(list), ..Query::default() };
    host.survey(base, &query).await.unwrap_or_else(|fault| panic!("{}", fault.chain()))
}

async fn facts_can_be_left_out_and_dots_need_a_dot(host: &dyn Host, base: &str) {
    apply(host, &[write(format!("{base}/a/.hidden"), "x"), write(format!("{base}/a/shown"), "y")]).await;
    let query = Query {
        read: vec!["a/.h*".into()],
        list: vec!["a/.*".into(), "*".into()],
        files_only: true,
        ..Query::default()
    };
    let survey = host.survey(base, &query).await.expect("read");
    assert_eq!(survey.facts, crate::host::Facts::default());
    let expected = Survey {
        files: [(format!("{base}/a/.hidden"), "x".to_owned())].into(),
        paths: [format!("{base}/a"), format!("{base}/a/.hidden")].into(),
        ..Survey::default()
    };
    assert_eq!(survey, expected);
}

async fn files_are_joined(host: &dyn Host, base: &str) {
    let query = Query { joined: vec!["*/x*".into()], files_only: true, ..Query::default() };
    let ask = async || host.survey(base, &query).await.expect("read").joined;
    assert_eq!(ask().await, "", "nothing is there");
    let files = [("b/x1", "one\n"), ("a/x", "two\n"), ("b/x2", "three"), ("a/y", "not this")];
    apply(host, &files.map(|(name, text)| write(format!("{base}/{name}"), text))).await;
    assert_eq!(ask().await, "two\none\nthree");
}

async fn names(host: &dyn Host, base: &str, pattern: &str) -> BTreeSet<String> {
    let paths = survey(host, base, &[], &[pattern]).await.paths;
    paths.into_iter().map(|path| path[base.len() + 1..].to_owned()).collect()
}

async fn read(host: &dyn Host, base: &str, name: &str) -> Option<String> {
    survey(host, base, &[name], &[]).await.files.remove(&format!("{base}/{name}"))
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn kind<T: std::fmt::Debug>(result: Result<T, Fault>) -> FaultKind {
    result.expect_err("a failure").kind
}

async fn what_does_not_exist_reads_as_empty(host: &dyn Host, base: &str) {
    let survey = survey(host, &format!("{base}/not/there"), &["*", "x"], &["*", "x"]).await;
    assert!(survey.files.is_empty() && survey.paths.is_empty(), "{survey:?}");
    assert!(survey.facts.disk_total > 0, "the nearest parent's disk");
}

async fn facts_are_plausible(host: &dyn Host, base: &str) {
    let facts = survey(host, base, &[], &[]).await.facts;
    assert!(facts.now > 1_600_000_000 && facts.cpus > 0 && facts.load >= 0.0, "{facts:?}");
    assert!(facts.memory_total >= facts.memory_available && facts.memory_available > 0, "{facts:?}");
    assert!(facts.disk_total >= facts.disk_free && facts.disk_free > 0, "{facts:?}");
    assert!(!host.describe().is_empty());
}

fn guard(base: &str, expected: &str, next: &str) -> Guard {
    Guard { path: format!("{base}/.guard"), expected: expected.to_owned(), next: next.to_owned(), beside: vec![] }
}

async fn changes_depend_on_their_guard(host: &dyn Host, base: &str) {
    let file = format!("{base}/file");
    let attempt = async |expected: &str, next: &str, content: &str| {
        let made = host.apply_if(&guard(base, expected, next), &[write(&*file, content)]).await;
        made.unwrap_or_else(|fault| panic!("{}", fault.chain()))
    };
    assert!(!attempt("07a", "1", "no").await, "the guard is absent");
    assert_eq!(read(host, base, "file").await, None);
    assert!(attempt("", "1f", "one").await, "absent is empty");
    assert!(!attempt("", "2", "no").await, "it is not empty any more");
    assert_eq!(read(host, base, "file").await.as_deref(), Some("one"));
    assert_eq!(read(host, base, ".guard").await.as_deref(), Some("1f"));
    assert!(attempt("1f", "2", "two").await);

    let failing = [write(format!("{file}/x"), "a file is no directory"), write(&*file, "no")];
    assert_eq!(kind(host.apply_if(&guard(base, "2", "3"), &failing).await), FaultKind::Conflict);
    assert_eq!(read(host, base, ".guard").await.as_deref(), Some("2"), "the guard changes last");
    assert!(host.apply_if(&guard(base, "2", "3"), &[]).await.expect("no change is fine too"));
    for damaged in [&b"foo\n"[..], b"\xff\xfe", b"3\n4", b"\x003", b"$(id)"] {
        apply(host, &[write(format!("{base}/.guard"), damaged)]).await;
        assert!(!attempt("3", "4", "no").await);
        assert!(attempt("", "3", "three").await, "a damaged guard counts as absent: {damaged:?}");
    }
    for (expected, next) in [("3", "a\nb"), ("3", ""), ("3", "$(id)"), ("x", "4")] {
        assert_eq!(kind(host.apply_if(&guard(base, expected, next), &[]).await), FaultKind::Invalid);
    }
    assert_eq!(kind(host.apply_if(&guard("relative", "", "1"), &[]).await), FaultKind::Invalid);
}

async fn changes_depend_on_what_is_beside_their_guard(host: &dyn Host, base: &str) {
    let other = format!("{base}/it's beside");
    let attempt = async |beside: &str, next: &str| {
        let now = read(host, base, ".guard").await.unwrap_or_default();
        let guard = Guard { beside: vec![(other.clone(), beside.to_owned())], ..guard(base, &now, next) };
        host.apply_if(&guard, &[write(format!("{base}/file"), next)]).await
    };
    assert!(!attempt("ab", "1").await.expect("is answered"), "it is absent");
    assert!(attempt("", "1").await.expect("is answered"));
    apply(host, &[write(&*other, "ab\n")]).await;
    assert!(!attempt("", "2").await.expect("is answered"));
    assert!(!attempt("ac", "2").await.expect("is answered"));
    assert_eq!(read(host, base, "file").await.as_deref(), Some("1"));
    assert!(attempt("ab", "2").await.expect("is answered"));
    assert_eq!(read(host, base, "it's beside").await.as_deref(), Some("ab\n"), "it stays as it is");
    assert_eq!(read(host, base, ".guard").await.as_deref(), Some("2"));
    assert_eq!(kind(attempt("$(id)", "3").await), FaultKind::Invalid);
}

async fn one_of_many_wins_a_guard(host: &dyn Host, base: &str) {
    let guards: Vec<_> = (0..8).map(|number| (guard(base, "", &format!("b{number}")), number)).collect();
    let attempts = guards.iter().map(|(guard, number)| async move {
        let changes = [write(format!("{base}/{number}"), "mine")];
        host.apply_if(guard, &changes).await.expect("is answered")
    });
    let won = futures_util::future::join_all(attempts).await;
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
    let winner = won.iter().position(|won| *won).expect("somebody");
    assert_eq!(names(host, base, "*").await, set(&[&winner.to_string()]), "the others changed nothing");
}

async fn a_file_is_written_with_its_directories_and_replaced(host: &dyn Host, base: &str) {
    apply(host, &[write(format!("{base}/a/b/c"), "one")]).await;
    assert_eq!(read(host, base, "a/b/c").await.as_deref(), Some("one"));
    for _ in 0..2 {
        apply(host, &[write(format!("{base}/a/b/c"), "two")]).await;
        assert_eq!(read(host, base, "a/b/c").await.as_deref(), Some("two"));
    }
    assert_eq!(names(host, base, "a/b/*").await, set(&["a/b/c"]), "no temporary file is seen");
}

async fn any_text_survives(host: &dyn Host, base: &str) {
    for text in [
        "",
        "\n",
        "\n\n",
        "no end",
        "end\n",
        "a\r\nb\r\n",
        "%s %d \\n \\000",
        "'\"$(id)`id`",
        "EOF\n#M\n",
        "ünï ☃ 🦀",
        "\t \x01\x7f",
    ] {
        apply(host, &[write(format!("{base}/text"), text)]).await;
        assert_eq!(read(host, base, "text").await.as_deref(), Some(text));
    }
}

async fn content_that_is_no_text_is_left_out(host: &dyn Host, base: &str) {
    let all: Vec<u8> = (0..=255).collect();
    apply(
        host,
        &[write(format!("{base}/all"), all), write(format!("{base}/nul"), "a\0b"), write(format!("{base}/t"), "t")],
    )
    .await;
    let survey = survey(host, base, &["*"], &["*"]).await;
    assert_eq!(survey.files.into_keys().collect::<Vec<_>>(), [format!("{base}/t")]);
    assert_eq!(survey.paths.len(), 3);
}

async fn a_large_file_survives(host: &dyn Host, base: &str) {
    let text: String = (0..150_000).map(|n| format!("{n:07}\n")).collect();
    assert!(text.len() > 1_000_000);
    apply(host, &[write(format!("{base}/large"), text.as_str())]).await;
    assert!(read(host, base, "large").await.as_deref() == Some(text.as_str()));
}

const NAMES: [&str; 18] = [
    "a b",
    " lead",
    "trail ",
    "it's",
    "\"",
    "$(id)",
    "`id`",
    "$HOME",
    "-rf",
    "--help",
    "new\nline",
    "tab\t",
    "*",
    "?[a]{b,c}",
    "\\back",
    "#hash",
    "~",
    "ünï ☃",
];

async fn any_name_works(host: &dyn Host, base: &str) {
    let changes: Vec<Change> = NAMES.iter().map(|name| write(format!("{base}/{name}/{name}"), *name)).collect();
    apply(host, &changes).await;
    let seen = survey(host, base, &["*/*"], &["*"]).await;
    let expected: BTreeSet<String> = NAMES.iter().map(|name| format!("{base}/{name}")).collect();
    assert_eq!(seen.paths, expected);
    for name in NAMES {
        assert_eq!(seen.files.get(&format!("{base}/{name}/{name}")).map(String::as_str), Some(name));
        if !name.contains('*') {
            assert_eq!(read(host, base, &format!("{name}/{name}")).await.as_deref(), Some(name));
        }
    }
    for name in NAMES {
        let moved = Change::Rename { from: format!("{base}/{name}/{name}"), to: format!("{base}/{name}/moved {name}") };
        apply(host, &[moved]).await;
        assert_eq!(names(host, &format!("{base}/{name}"), "*").await, set(&[&format!("moved {name}")]));
        apply(host, &[remove(format!("{base}/{name}"))]).await;
    }
    assert_eq!(names(host, base, "*").await, set(&[]));
    // A base directory may have such a name as well.
    for name in NAMES {
        let odd = format!("{base}/{name}");
        apply(host, &[write(format!("{odd}/x"), "x")]).await;
        assert_eq!(read(host, &odd, "x").await.as_deref(), Some("x"), "{name}");
        apply(host, &[remove(odd)]).await;
    }
}

async fn a_star_is_part_of_one_component(host: &dyn Host, base: &str) {
    let paths = ["app/pr-1/state", "app/pr-22/state", "app/x/state", "app/pr-1/deep/state", "app/.pr-1/state", "state"];
    apply(host, &paths.map(|path| write(format!("{base}/{path}"), path))).await;
    assert_eq!(names(host, base, "app/*/state").await, set(&["app/pr-1/state", "app/pr-22/state", "app/x/state"]));
    assert_eq!(names(host, base, "app/pr-*/state").await, set(&["app/pr-1/state", "app/pr-22/state"]));
    assert_eq!(names(host, base, "app/p*2/s*te").await, set(&["app/pr-22/state"]));
    assert_eq!(names(host, base, "*/*/*/state").await, set(&["app/pr-1/deep/state"]));
    assert_eq!(names(host, base, "app/.pr-1/*").await, set(&["app/.pr-1/state"]));
    assert_eq!(survey(host, base, &["app/*/state"], &[]).await.files.len(), 3);
}

async fn only_a_star_is_special(host: &dyn Host, base: &str) {
    apply(
        host,
        &[write(format!("{base}/ab"), "x"), write(format!("{base}/[a]b"), "x"), write(format!("{base}/?b"), "x")],
    )
    .await;
    assert_eq!(names(host, base, "[a]*").await, set(&["[a]b"]));
    assert_eq!(names(host, base, "?b").await, set(&["?b"]));
}

async fn directories_are_listed_and_not_read(host: &dyn Host, base: &str) {
    apply(host, &[write(format!("{base}/d/f"), "x")]).await;
    let seen = survey(host, base, &["d", "d/f"], &["d", "d/f", "d/none"]).await;
    assert_eq!(seen.paths.len(), 2);
    assert_eq!(seen.files.into_keys().collect::<Vec<_>>(), [format!("{base}/d/f")]);
}

async fn many_files_in_one_survey(host: &dyn Host, base: &str) {
    let changes: Vec<Change> = (0..100).map(|n| write(format!("{base}/pr-{n}/state"), format!("{n}"))).collect();
    apply(host, &changes).await;
    let files = survey(host, base, &["pr-*/state", "*/other"], &[]).await.files;
    assert_eq!(files.len(), 100);
    assert!((0..100).all(|n| files[&format!("{base}/pr-{n}/state")] == n.to_string()));
}

async fn rename_replaces(host: &dyn Host, base: &str) {
    let rename = || Change::Rename { from: format!("{base}/new"), to: format!("{base}/sub/old") };
    for content in ["1", "2"] {
        apply(host, &[write(format!("{base}/new"), content), rename()]).await;
        assert_eq!(read(host, base, "sub/old").await.as_deref(), Some(content));
        assert_eq!(names(host, base, "*").await, set(&["sub"]));
    }
}

async fn rename_needs_its_source(host: &dyn Host, base: &str) {
    let missing = Change::Rename { from: format!("{base}/none"), to: format!("{base}/x") };
    assert_eq!(kind(host.apply(&[missing]).await), FaultKind::NotFound);
}

async fn nothing_replaces_a_directory(host: &dyn Host, base: &str) {
    apply(host, &[write(format!("{base}/d/f"), "x"), write(format!("{base}/g"), "g")]).await;
    assert_eq!(kind(host.apply(&[write(format!("{base}/d"), "x")]).await), FaultKind::Conflict);
    let rename = Change::Rename { from: format!("{base}/g"), to: format!("{base}/d") };
    assert_eq!(kind(host.apply(&[rename]).await), FaultKind::Conflict);
    assert_eq!(names(host, base, "*").await, set(&["d", "g"]));
    assert_eq!(names(host, base, "d/*").await, set(&["d/f"]));
}

async fn a_file_is_no_directory(host: &dyn Host, base: &str) {
    apply(host, &[write(format!("{base}/f"), "x")]).await;
    assert_eq!(kind(host.apply(&[write(format!("{base}/f/g"), "x")]).await), FaultKind::Conflict);
    assert_eq!(read(host, base, "f").await.as_deref(), Some("x"));
}

async fn remove_takes_exactly_what_it_names(host: &dyn Host, base: &str) {
    let files = ["a/1", "a/b/2", "ab/3", "c"];
    apply(host, &files.map(|path| write(format!("{base}/{path}"), path))).await;
    for _ in 0..2 {
        apply(host, &[remove(format!("{base}/a")), remove(format!("{base}/c")), remove(format!("{base}/none/none"))])
            .await;
        assert_eq!(names(host, base, "*").await, set(&["ab"]));
    }
}

async fn only_empty_directories_are_removed(host: &dyn Host, base: &str) {
    apply(host, &[write(format!("{base}/d/e/f"), "x"), write(format!("{base}/g"), "g")]).await;
    let empty = |name: &str| Change::RemoveEmpty { path: format!("{base}/{name}") };
    apply(host, &[empty("d/e"), empty("d"), empty("g"), empty("none")]).await;
    assert_eq!(names(host, base, "*").await, set(&["d", "g"]));
    apply(host, &[remove(format!("{base}/d/e/f")), empty("d/e"), empty("d")]).await;
    assert_eq!(names(host, base, "*").await, set(&["g"]));
}

async fn changes_stop_at_the_first_failure(host: &dyn Host, base: &str) {
    let missing = Change::Rename { from: format!("{base}/none"), to: format!("{base}/x") };
    let fault = host.apply(&[write(format!("{base}/a"), "a"), missing, write(format!("{base}/b"), "b")]).await;
    let fault = fault.expect_err("a failure");
    assert!(fault.context.contains("none"), "{fault}");
    assert_eq!(names(host, base, "*").await, set(&["a"]));
}

async fn changes_in_order(host: &dyn Host, base: &str) {
    let path = format!("{base}/a");
    apply(host, &[write(&*path, "1"), remove(&*path), write(&*path, "2"), write(&*path, "3")]).await;
    assert_eq!(read(host, base, "a").await.as_deref(), Some("3"));
    apply(host, &[]).await;
}

async fn unsafe_paths_are_refused(host: &dyn Host, base: &str) {
    apply(host, &[write(format!("{base}/a"), "a")]).await;
    for path in ["", "/", "relative", "/../x", "/x/../y", "/x/./y", "//x", "/x/"] {
        assert_eq!(kind(host.apply(&[remove(path)]).await), FaultKind::Invalid, "{path}");
        assert_eq!(kind(host.apply(&[write(path, "x")]).await), FaultKind::Invalid, "{path}");
        assert_eq!(kind(host.upload(path, &[]).await), FaultKind::Invalid, "{path}");
        assert_eq!(kind(host.survey(path, &Query::default()).await), FaultKind::Invalid, "{path}");
    }
    // Refused before anything is done.
    assert_eq!(kind(host.apply(&[remove(format!("{base}/a")), remove("/")]).await), FaultKind::Invalid);
    assert_eq!(names(host, base, "*").await, set(&["a"]));
}

async fn removing_a_link_keeps_its_target(host: &dyn Host, base: &str) {
    let local = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir_all(local.path().join("t/d")).expect("makes directories");
    std::fs::write(local.path().join("t/d/f"), "x").expect("writes");
    symlink("d", local.path().join("t/link")).expect("links");
    assert!(host.upload(&format!("{base}/u"), &[entry(Some(&local.path().join("t")), "t")]).await.expect("uploads"));
    apply(host, &[remove(format!("{base}/u/t/link"))]).await;
    assert_eq!(names(host, base, "u/t/*").await, set(&["u/t/d"]));
    assert_eq!(names(host, base, "u/t/d/*").await, set(&["u/t/d/f"]));
}

async fn operations_may_overlap(host: &dyn Host, base: &str) {
    let jobs = (0..16).map(|n| async move {
        apply(host, &[write(format!("{base}/{n}"), n.to_string())]).await;
        assert_eq!(read(host, base, &n.to_string()).await, Some(n.to_string()));
        assert!(host.upload(&format!("{base}/up-{n}"), &[entry(None, "d")]).await.expect("uploads"));
    });
    futures_util::future::join_all(jobs).await;
    assert_eq!(names(host, base, "*").await.len(), 32);
}
