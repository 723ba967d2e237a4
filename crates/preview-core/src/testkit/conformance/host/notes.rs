//! Notes: lines that many add to one file, of which the last are kept.

use super::{Change, FaultKind, Host, apply, kind, names, read, remove, set, write};

fn append(base: &str, line: &str, keep: u32, above: u64) -> Change {
    Change::Append { path: format!("{base}/notes"), line: line.to_owned(), keep, above }
}

pub(super) async fn lines_are_added_and_only_the_last_are_kept(host: &dyn Host, base: &str) {
    for line in ["one", "", "%s '$(id)' \\n\\", "ünï ☃", &"long".repeat(500)] {
        apply(host, &[append(base, line, 2, 100_000)]).await;
    }
    let expected = format!("one\n\n%s '$(id)' \\n\\\nünï ☃\n{}\n", "long".repeat(500));
    assert_eq!(read(host, base, "notes").await.as_deref(), Some(&*expected), "it is not cut before it is long");
    apply(host, &[append(base, "two", 2, 100)]).await;
    let expected = format!("{}\ntwo\n", "long".repeat(500));
    assert_eq!(read(host, base, "notes").await.as_deref(), Some(&*expected));
    apply(host, &[append(base, "three", 2, 10), append(base, "four", 2, 10)]).await;
    assert_eq!(read(host, base, "notes").await.as_deref(), Some("three\nfour\n"));
    assert_eq!(names(host, base, ".*").await, set(&[]), "no temporary file, no lock");
    for line in ["a\nb", "a\0b"] {
        let changes = [remove(format!("{base}/notes")), append(base, line, 2, 100)];
        assert_eq!(kind(host.apply(&changes).await), FaultKind::Invalid);
    }
    let elsewhere = Change::Append { path: "/x/../y".to_owned(), line: "x".to_owned(), keep: 1, above: 1 };
    assert_eq!(kind(host.apply(&[elsewhere]).await), FaultKind::Invalid);
    assert_eq!(read(host, base, "notes").await.as_deref(), Some("three\nfour\n"), "refused before anything is done");
}

pub(super) async fn no_line_of_many_is_lost(host: &dyn Host, base: &str) {
    let lines: Vec<String> = (0..24).map(|number| format!("{number:02} {}", "x".repeat(50))).collect();
    // Each is longer than what is cut at, so that the file is cut all the time.
    let jobs = lines.iter().map(|line| async { apply(host, &[append(base, line, 24, 50)]).await });
    futures_util::future::join_all(jobs).await;
    let text = read(host, base, "notes").await.unwrap_or_default();
    let mut found: Vec<&str> = text.lines().collect();
    found.sort_unstable();
    assert_eq!(found, lines);
}

pub(super) async fn a_note_that_cannot_be_written_fails_nothing(host: &dyn Host, base: &str) {
    apply(host, &[write(format!("{base}/notes/file"), "a directory is in the way")]).await;
    apply(host, &[append(base, "x", 1, 1), write(format!("{base}/after"), "made")]).await;
    assert_eq!(read(host, base, "after").await.as_deref(), Some("made"));
    assert_eq!(names(host, base, "notes/*").await, set(&["notes/file"]));
}
