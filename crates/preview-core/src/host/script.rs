//! What is said to the host's shell, and what its answers mean: quoting, the texts of `survey` and `apply`. Pure.
//!
//! POSIX `sh` with coreutils or busybox. Values from outside appear as quoted words only. Content of files travels in here
//! documents, so it is never an argument that a list of processes would show.

use std::fmt::Write as _;

use super::facts::{self, Sources};
use super::{Change, Guard, Query, Survey};
use crate::fault::{Fault, FaultKind};

/// One word for a POSIX shell that means exactly this text; works in `fish` as well, for login shells.
///
/// The text must not hold a NUL byte: no argument can.
pub(crate) fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,@+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("'\\''"),
            // `fish` knows escapes inside single quotes, POSIX does not; double quotes are understood alike by both.
            '\\' => quoted.push_str("'\"\\\\\"'"),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// A pattern as a word: everything is literal except `*`.
fn pattern(base: &str, relative: &str) -> String {
    let mut word = quote(&format!("{}/", base.trim_end_matches('/')));
    for (index, part) in relative.split('*').enumerate() {
        if index > 0 {
            word.push('*');
        }
        if !part.is_empty() {
            word.push_str(&quote(part));
        }
    }
    word
}

/// Refuses what no file operation of ours may touch: relative paths, the root, `.` and `..`, NUL bytes.
pub(crate) fn checked<'a>(operation: &'static str, path: &'a str) -> Result<&'a str, Fault> {
    let sound = path.strip_prefix('/').is_some_and(|rest| {
        !rest.is_empty() && !rest.contains('\0') && rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
    });
    if sound {
        Ok(path)
    } else {
        Err(Fault::new(FaultKind::Invalid, operation, format!("not a plain absolute path: {path:?}")))
    }
}

/// Prints facts, files and paths as records that start with `mark`. `mark` is random, so no content can hold it.
pub(super) fn survey(base: &str, query: &Query, mark: &str) -> String {
    let base_word = quote(base);
    let mut script = format!(
        "b={base_word}\n\
         m={mark}\n\
         d=$b\n\
         while [ ! -d \"$d\" ]; do d=${{d%/*}}; [ -n \"$d\" ] || d=/; done\n"
    );
    // Whoever asks for the disk alone need not look into the directory.
    if !(query.read.is_empty() && query.list.is_empty() && query.joined.is_empty()) {
        script.push_str(
            "if [ -d \"$b\" ] && ! { [ -r \"$b\" ] && [ -x \"$b\" ]; }; then printf '%s: Permission denied\\n' \"$b\" >&2; exit 1; fi\n",
        );
    }
    if !query.files_only {
        script.push_str(
            "printf %s \"${m}clock \"; date +%s\n\
             printf %s \"${m}processors \"; nproc 2>/dev/null || grep -c '^processor' /proc/cpuinfo\n\
             printf %s \"${m}loadavg \"; cat /proc/loadavg\n\
             printf %s \"${m}meminfo \"; cat /proc/meminfo\n\
             printf %s \"${m}df \"; df -P -k \"$d\" && { df -P -k /var/lib/docker 2>/dev/null || :; }\n\
             printf %s \"${m}sockets \"; cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep ' 0A '\n",
        );
    }
    // A file that vanishes meanwhile is absent. One that is there and cannot be read is an error: absence would be a lie.
    for relative in &query.read {
        let _ = writeln!(
            script,
            "for f in {}; do [ -f \"$f\" ] || continue; printf '%s\\000' \"${{m}}file $f\"; \
             cat \"$f\" || {{ [ ! -e \"$f\" ] || exit 1; printf %s \"${{m}}gone \"; }}; done",
            pattern(base, relative)
        );
    }
    for relative in &query.joined {
        // Without a match, and for what vanishes meanwhile, there is nothing to join.
        let _ = writeln!(script, "printf %s \"${{m}}join \"; cat {} 2>/dev/null", pattern(base, relative));
    }
    for relative in &query.list {
        let _ = writeln!(
            script,
            "for f in {}; do case $f in */.|*/..) continue ;; esac; if [ -e \"$f\" ] || [ -h \"$f\" ]; then printf %s \"${{m}}path $f\"; fi; done",
            pattern(base, relative)
        );
    }
    script.push_str("printf %s \"${m}end \"\n");
    script
}

/// Reads what [`survey`] printed.
pub(super) fn parse_survey(output: &[u8], mark: &str, files_only: bool) -> Result<Survey, &'static str> {
    let mut survey = Survey::default();
    let mut sources = Sources::default();
    let mut complete = false;
    let mut last_file = None;
    for record in split(output, mark.as_bytes()) {
        let Some(space) = record.iter().position(|byte| *byte == b' ') else { continue };
        let (kind, rest) = (&record[..space], &record[space + 1..]);
        let text = std::str::from_utf8(rest);
        match (kind, text) {
            (b"clock", Ok(text)) => sources.clock = text,
            (b"processors", Ok(text)) => sources.processors = text,
            (b"loadavg", Ok(text)) => sources.loadavg = text,
            (b"meminfo", Ok(text)) => sources.meminfo = text,
            (b"df", Ok(text)) => sources.df = text,
            (b"sockets", Ok(text)) => sources.sockets = text,
            (b"path", Ok(text)) => {
                survey.paths.insert(text.to_owned());
            }
            (b"file", Ok(text)) => {
                last_file = None;
                if let Some((path, content)) = text.split_once('\0')
                    && !content.contains('\0')
                {
                    last_file = Some(path);
                    survey.files.insert(path.to_owned(), content.to_owned());
                }
            }
            (b"join", Ok(text)) => survey.joined.push_str(text),
            (b"file", Err(_)) => last_file = None,
            (b"gone", _) => {
                if let Some(path) = last_file.take() {
                    survey.files.remove(path);
                }
            }
            (b"end", _) => complete = true,
            _ => {}
        }
    }
    if !complete {
        return Err("the end is missing");
    }
    if !files_only {
        survey.facts = facts::parse(&sources)?;
    }
    Ok(survey)
}

/// The parts of `bytes` after each `mark`.
fn split<'a>(bytes: &'a [u8], mark: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = find(bytes, mark).map(|at| &bytes[at + mark.len()..]);
    std::iter::from_fn(move || {
        let current = rest?;
        let (part, next) = match find(current, mark) {
            Some(at) => (&current[..at], Some(&current[at + mark.len()..])),
            None => (current, None),
        };
        rest = next;
        Some(part)
    })
}

/// Where `needle` begins. It begins with a byte that is rare in text, so scanning for that byte first is quick.
pub(super) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == first) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// Temporary files of `apply` begin so; a survey with `*` does not see them.
const TEMPORARY: &str = ".preview-tmp-";

/// Begins a line that says which note was not written, and why.
const UNNOTED: &str = "not noted: ";

/// Traces the notes that were not written: what nothing depends on fails nothing.
pub(crate) fn trace_unnoted(said: &str) {
    if let Some((_, why)) = said.split_once(UNNOTED) {
        tracing::warn!(why = why.trim(), "the history of the host was not written");
    }
}

/// Makes the changes one after the other and prints the number of each that is done, so that the one that failed is known.
pub(crate) fn apply(changes: &[Change], mark: &str) -> Result<String, Fault> {
    const OPERATION: &str = "change files on the host";
    let mut script = format!(
        "umask 077\n\
         parent() {{ d=${{1%/*}}; [ -z \"$d\" ] || [ -d \"$d\" ] || mkdir -p \"$d\"; }}\n\
         notdir() {{ if [ -d \"$1\" ]; then printf '%s: Is a directory\\n' \"$1\" >&2; return 1; fi; }}\n\
         # Left by a host that lost power in the middle of a write; an hour is longer than any write.\n\
         stale() {{ for s in \"$d\"/{TEMPORARY}*; do [ ! -e \"$s\" ] || find \"$s\" -mmin +60 -exec rm -f {{}} \\; 2>/dev/null; done; :; }}\n\
         put() {{ parent \"$1\" && notdir \"$1\" && stale && t=$d/{TEMPORARY}{mark}-$3 && \
         if base64 -d >\"$t\" && chmod \"$2\" \"$t\" && mv -f \"$t\" \"$1\"; then :; else rm -f \"$t\"; return 1; fi; }}\n\
         move() {{ if [ ! -e \"$1\" ] && [ ! -h \"$1\" ]; then printf '%s: No such file\\n' \"$1\" >&2; return 1; fi; \
         parent \"$2\" && notdir \"$2\" && mv -f \"$1\" \"$2\"; }}\n\
         drop() {{ rm -rf \"$1\" 2>/dev/null || {{ chmod -R u+rwX \"$1\" 2>/dev/null; rm -rf \"$1\"; }}; }}\n"
    );
    // Only where it is needed: a script is sent each time.
    if changes.iter().any(|change| matches!(change, Change::Append { .. })) {
        // The directory is what is locked: the file is another one after it was cut. Not `flock -w`: busybox has none.
        let _ = write!(
            script,
            "note() {{ n=$(base64 -d) && parent \"$1\" && notdir \"$1\" && (\n\
             command exec 8<\"$d\" || exit 1\n\
             timeout 10 flock 8 || {{ echo 'locked by somebody for 10 s'; exit 1; }}\n\
             # A line that a host without power cut is its own.\n\
             if [ -s \"$1\" ] && [ -n \"$(tail -c 1 \"$1\")\" ]; then echo >>\"$1\"; fi\n\
             printf '%s\\n' \"$n\" >>\"$1\" || exit 1\n\
             [ \"$(wc -c <\"$1\")\" -gt \"$3\" ] || exit 0\n\
             t=$d/{TEMPORARY}{mark}-note; if tail -n \"$2\" \"$1\" >\"$t\" && mv -f \"$t\" \"$1\"; then :; else rm -f \"$t\"; exit 1; fi\n); }}\n"
        );
    }
    for (index, change) in changes.iter().enumerate() {
        let _ = match change {
            Change::Write { path, content, mode } => {
                let (path, content) = (quote(checked(OPERATION, path)?), base64(content.expose()));
                write!(script, "put {path} {:o} {index} <<'{mark}' || exit 1\n{content}{mark}\n", mode & 0o7777)
            }
            Change::Rename { from, to } => {
                let (from, to) = (quote(checked(OPERATION, from)?), quote(checked(OPERATION, to)?));
                writeln!(script, "move {from} {to} || exit 1")
            }
            Change::Remove { path } => writeln!(script, "drop {} || exit 1", quote(checked(OPERATION, path)?)),
            Change::RemoveEmpty { path } => {
                writeln!(script, "rmdir {} 2>/dev/null", quote(checked(OPERATION, path)?))
            }
            Change::Append { path, line, keep, above } => {
                let path = quote(checked(OPERATION, path)?);
                if line.contains(['\n', '\0']) {
                    return Err(Fault::new(FaultKind::Invalid, OPERATION, "a line holds its end, or a NUL byte"));
                }
                let line = base64(line.as_bytes());
                // In one line of its own on standard error, whatever the programs said.
                write!(
                    script,
                    "s=$(note {path} {keep} {above} 2>&1 <<'{mark}'\n{line}{mark}\n) || \
                     printf '{UNNOTED}%s\\n' \"$(printf %s \"$s\" | tr '\\n' ' ')\" >&2\n"
                )
            }
        };
        script.push_str("echo\n");
    }
    Ok(script)
}

/// Whether a guard has this content; anything else counts as an absent guard, so that a damaged one heals.
fn is_guard(content: &str) -> bool {
    !content.is_empty() && content.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Guard {
    /// # Errors
    /// What is no path, or no guard's content.
    pub(crate) fn check(&self, operation: &'static str) -> Result<(), Fault> {
        let Self { path, expected, next, beside } = self;
        for path in [path].into_iter().chain(beside.iter().map(|(path, _)| path)) {
            checked(operation, path)?;
        }
        let mut seen = [expected].into_iter().chain(beside.iter().map(|(_, expected)| expected));
        if is_guard(next) && seen.all(|expected| expected.is_empty() || is_guard(expected)) {
            return Ok(());
        }
        Err(Fault::new(FaultKind::Invalid, operation, "a guard is a word of hexadecimal digits"))
    }
}

/// A guard's content as it counts.
pub(crate) fn guard_in(content: &str) -> &str {
    let word = content.trim_end_matches('\n');
    if is_guard(word) { word } else { "" }
}

/// The exit status of [`apply_if`] where it is about the guard, and not about a change.
pub(super) const GUARD: i32 = 3;

/// What [`apply_if`] prints when the guard was not as expected.
pub(super) const MOVED: &[u8] = b"moved";

/// As [`apply`], but under a lock, and only if the guard's file is as expected. The lock is the shell's and ends with it.
pub(super) fn apply_if(guard: &Guard, changes: &[Change], mark: &str) -> Result<String, Fault> {
    const OPERATION: &str = "change files on the host";
    guard.check(OPERATION)?;
    let Guard { path, expected, next, beside } = guard;
    let (path, next) = (quote(path), quote(next));
    let mut looks = format!("as \"$g\" '{expected}'");
    for (path, expected) in beside {
        let _ = write!(looks, " && as {} '{expected}'", quote(path));
    }
    let changes = apply(changes, mark)?;
    Ok(format!(
        "for p in flock timeout; do command -v $p >/dev/null || {{ echo \"$p: not found\" >&2; exit {GUARD}; }}; done\n\
         umask 077; g={path}; d=${{g%/*}}\n\
         [ -z \"$d\" ] || [ -d \"$d\" ] || mkdir -p \"$d\" || exit {GUARD}\n\
         command exec 9<>\"$g\" || exit {GUARD}\n\
         # Not `flock -w`: busybox has none.\n\
         timeout 10 flock 9 || {{ echo 'locked by somebody for 10 s' >&2; exit {GUARD}; }}\n\
         as() {{ c=; [ ! -f \"$1\" ] || c=$(tr '\\000' x <\"$1\") || exit {GUARD}; case $c in *[!0-9a-f]*) c= ;; esac; [ \"$c\" = \"$2\" ]; }}\n\
         {looks} || {{ printf moved; exit 0; }}\n\
         {changes}\
         printf %s {next} >\"$g\" || exit {GUARD}\n"
    ))
}

/// What a change is, for errors; content is not shown.
pub(crate) fn describe(change: &Change) -> String {
    match change {
        Change::Write { path, .. } => format!("write {path}"),
        Change::Rename { from, to } => format!("rename {from} to {to}"),
        Change::Remove { path } => format!("remove {path}"),
        Change::RemoveEmpty { path } => format!("remove empty directory {path}"),
        Change::Append { path, .. } => format!("add a line to {path}"),
    }
}

/// The kind of failure that the message of a file utility means. There is no other way: `sh` has no typed errors.
pub(crate) fn kind_of(message: &str) -> FaultKind {
    let has = |text: &str| message.contains(text);
    // GNU tar says how much it wrote, and not why it was not more.
    let full = ["No space left on device", "Disk quota exceeded", "Wrote only", "short write"];
    if full.iter().any(|text| has(text)) {
        FaultKind::NoSpace
    } else if has("Permission denied") || has("Operation not permitted") || has("Read-only file system") {
        FaultKind::Denied
    } else if has("Not a directory") || has("Is a directory") || has("File exists") || has("not a directory") {
        FaultKind::Conflict
    } else if has("No such file") {
        FaultKind::NotFound
    } else if has("not found") {
        FaultKind::Unsupported
    } else {
        FaultKind::Failed
    }
}

/// Base64 in lines, each with its end; every `base64 -d` reads that.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const BYTES_PER_LINE: usize = 57;
    let mut text = String::with_capacity(bytes.len() / 3 * 4 + bytes.len() / BYTES_PER_LINE + 8);
    for line in bytes.chunks(BYTES_PER_LINE) {
        for group in line.chunks(3) {
            let value = group.iter().fold(0u32, |value, byte| value << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for index in 0..4 {
                if index <= group.len() {
                    text.push(char::from(ALPHABET[(value >> (18 - 6 * index)) as usize & 63]));
                } else {
                    text.push('=');
                }
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn words_of(script: &str) -> String {
        let output = Command::new("sh").arg("-c").arg(script).output().expect("sh");
        String::from_utf8(output.stdout).expect("text")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_quoted_word_means_itself(text in "[^\0]*") {
            prop_assert_eq!(words_of(&format!("printf %s {}", quote(&text))), text);
        }

        #[test]
        fn nasty_words_too(text in "['\"\\\\$`!*?\\[\\]{}()<>|&;#~ \n\t=%-]{0,24}") {
            prop_assert_eq!(words_of(&format!("printf %s {}", quote(&text))), text);
        }

        #[test]
        fn patterns_are_literal_but_for_the_star(text in "['\"\\\\$`?\\[\\]{} \n]{1,12}") {
            let word = pattern("/no/such/dir", &format!("{text}*"));
            prop_assert_eq!(words_of(&format!("printf %s {word}")), format!("/no/such/dir/{text}*"));
        }

        #[test]
        fn base64_survives_the_way_back(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let output = Command::new("sh").arg("-c")
                .arg(format!("base64 -d <<'E' | od -An -v -tx1\n{}E\n", base64(&bytes))).output().expect("sh");
            let hex: String = String::from_utf8(output.stdout).expect("text").split_whitespace().collect();
            prop_assert_eq!(hex, bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
        }
    }

    #[test]
    fn base64_of_the_standard() {
        for (plain, coded) in [("", ""), ("f", "Zg==\n"), ("fo", "Zm8=\n"), ("foo", "Zm9v\n"), ("foobar", "Zm9vYmFy\n")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn only_plain_absolute_paths() {
        for path in ["/a", "/a/b c", "/a/-rf", "/a/..b"] {
            assert!(checked("test", path).is_ok(), "{path}");
        }
        for path in ["", "/", "a", "/a/../b", "/a/./b", "//a", "/a/", "/a\0b", "/.."] {
            assert_eq!(checked("test", path).expect_err(path).kind, FaultKind::Invalid);
        }
    }

    #[test]
    fn content_is_not_in_errors_and_not_in_words() {
        let change = Change::Write {
            path: "/a/b".into(),
            content: crate::secret::Secret::new(b"hunter22".to_vec()),
            mode: 0o600,
        };
        assert_eq!(describe(&change), "write /a/b");
        let script = apply(std::slice::from_ref(&change), "M").expect("sound");
        assert!(script.ends_with("put /a/b 600 0 <<'M' || exit 1\naHVudGVyMjI=\nM\necho\n"), "{script}");
    }

    #[test]
    fn kinds_of_messages() {
        for (message, kind) in [
            ("cat: write error: No space left on device", FaultKind::NoSpace),
            ("tar: f: Wrote only 2048 of 10240 bytes", FaultKind::NoSpace),
            ("mkdir: cannot create directory '/opt/previews': Permission denied", FaultKind::Denied),
            ("sh: can't create /x/y: Read-only file system", FaultKind::Denied),
            ("mkdir: cannot create directory '/a/b': Not a directory", FaultKind::Conflict),
            ("mkdir: can't create directory '/a/b': File exists", FaultKind::Conflict),
            ("/a: No such file", FaultKind::NotFound),
            ("sh: base64: not found", FaultKind::Unsupported),
            ("bash: line 3: base64: command not found", FaultKind::Unsupported),
            ("?", FaultKind::Failed),
        ] {
            assert_eq!(kind_of(message), kind, "{message}");
        }
    }

    #[test]
    fn records_are_split_at_the_mark() {
        let parts: Vec<&[u8]> = split(b"noise#Ma 1#M#Mb", b"#M").collect();
        assert_eq!(parts, [b"a 1" as &[u8], b"", b"b"]);
    }
}
