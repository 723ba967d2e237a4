//! What a Dockerfile has the builder fetch. The builder fetches in the VM's own network, where containers are kept from, and follows
//! redirects: `ADD http://127.0.0.1/` reads from services of the VM. Pure.
//!
//! This is no second parser of Dockerfiles, and must not be one that an input can lead astray: whether a line is an instruction, part of a
//! heredoc or the rest of another line, and which escape character holds, is not decided. Every line that could be an `ADD` in any of
//! these readings counts as one.

use std::collections::{BTreeMap, BTreeSet};

/// No Dockerfile that people write has more lines; the work grows with their square where all of them are continued.
const MOST_LINES: usize = 5000;
/// So many values of one source are looked at.
const MOST_VALUES: usize = 200;
/// Variables within variables.
const DEEPEST: usize = 8;
/// Steps of filling in variables for one source.
const MOST_STEPS: usize = 5000;
/// What is read of a Dockerfile, bytes.
pub(crate) const LARGEST: u64 = 512 * 1024;

/// Something that the builder would fetch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fetch {
    /// An `ADD` of this address, with variables filled in.
    Add(String),
    /// An `ADD` of this source, which may be an address: what its variables are is not known.
    Unknown(String),
    /// A frontend other than Docker's own reads the Dockerfile, and can do anything that the builder can.
    Frontend(String),
    /// It cannot be looked through.
    Unreadable(&'static str),
}

/// What this Dockerfile has the builder fetch, built with these arguments.
pub(crate) fn fetches(text: &str, args: &BTreeMap<String, String>) -> BTreeSet<Fetch> {
    let lines: Vec<&str> = text.split('\n').map(|line| line.trim_end_matches('\r')).collect();
    if lines.len() > MOST_LINES {
        return BTreeSet::from([Fetch::Unreadable("it has more lines than can be looked through")]);
    }
    let Some(named) = frontends(text) else {
        return BTreeSet::from([Fetch::Unreadable("it begins like JSON, and is none that can be read")]);
    };
    let syntax = named.into_iter().chain(args.get("BUILDKIT_SYNTAX").cloned());
    let mut found: BTreeSet<Fetch> = syntax.filter(|frontend| !is_dockers(frontend)).map(Fetch::Frontend).collect();
    for escape in ['\\', '`'] {
        let instructions: Vec<(String, String)> =
            (0..lines.len()).filter_map(|start| instruction(&lines, start, escape)).collect();
        let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, value) in args {
            values.entry(name.clone()).or_default().insert(value.clone());
        }
        for (command, rest) in &instructions {
            if command == "arg" || command == "env" {
                assignments(command, rest, escape, &mut values);
            }
        }
        for (_, rest) in instructions.iter().filter(|(command, _)| command == "add") {
            found.extend(sources(rest, escape).iter().filter_map(|source| judge(source, escape, &values)));
        }
    }
    found
}

/// The instruction that begins at a line, if one may: its command in lower case, behind any `ONBUILD`, and the rest.
fn instruction(lines: &[&str], start: usize, escape: char) -> Option<(String, String)> {
    const WANTED: [&str; 4] = ["add", "arg", "env", "onbuild"];
    // Enough to know what it is; the whole is only put together for what matters.
    let is_wanted = |text: &str| {
        let word = text.trim_start().split(char::is_whitespace).next().unwrap_or_default().to_lowercase();
        WANTED.contains(&word.as_str())
    };
    if !is_wanted(&logical(lines, start, escape, 16)) {
        return None;
    }
    let whole = logical(lines, start, escape, usize::MAX);
    let mut rest = whole.trim();
    loop {
        let (command, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let command = command.to_lowercase();
        rest = after.trim();
        if command == "onbuild" {
            continue;
        }
        return WANTED.contains(&command.as_str()).then(|| (command, rest.to_owned()));
    }
}

/// The line that begins here, with those that continue it; it may end early once it has so many bytes.
fn logical(lines: &[&str], start: usize, escape: char, enough: usize) -> String {
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate().skip(start) {
        if index > start && (line.trim().is_empty() || line.trim_start().starts_with('#')) {
            // Left out within a continued line.
            continue;
        }
        let end = line.trim_end_matches([' ', '\t']);
        match end.strip_suffix(escape) {
            Some(more) => text.push_str(more),
            None => {
                text.push_str(line);
                break;
            }
        }
        if text.trim_start().len() >= enough {
            break;
        }
    }
    text
}

/// The frontends that the Dockerfile may ask for, as `docker/dockerfile:1`; BuildKit looks for them in three forms. Of two, one version takes the first
/// and another the last. `None`: the form is JSON that only another reader might make sense of.
fn frontends(text: &str) -> Option<Vec<String>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = match text.split_once('\n') {
        Some((first, rest)) if first.starts_with("#!") => rest,
        _ => text,
    };
    let mut found = Vec::new();
    for comment in ["#", "//"] {
        for line in text.lines() {
            let Some((name, value)) = line.trim_start().strip_prefix(comment).and_then(|line| line.split_once('='))
            else {
                break;
            };
            if name.trim().eq_ignore_ascii_case("syntax") {
                found.extend(value.split_whitespace().next().map(str::to_owned));
            }
        }
    }
    if text.trim_start().starts_with('{') {
        let json: serde_json::Value = serde_json::from_str(text).ok()?;
        found.extend(json.get("syntax").and_then(serde_json::Value::as_str).map(str::to_owned));
    }
    Some(found)
}

/// Whether this is Docker's own frontend, in a version that keeps cache mounts apart.
fn is_dockers(frontend: &str) -> bool {
    let name = frontend.strip_prefix("docker.io/").unwrap_or(frontend);
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
    let old = tag.contains("experimental") || tag.starts_with("1.0") || tag == "1.1" || tag.starts_with("1.1.");
    repository == "docker/dockerfile" && !old && tag != "master"
}

/// Notes what `ARG` and `ENV` give variables.
fn assignments(command: &str, rest: &str, escape: char, values: &mut BTreeMap<String, BTreeSet<String>>) {
    let mut note = |name: &str, value: &str| {
        let known = values.entry(name.to_owned()).or_default();
        if known.len() < MOST_VALUES {
            known.insert(value.to_owned());
        }
    };
    for word in words(rest, escape) {
        if let Some((name, value)) = word.split_once('=') {
            note(name, value);
        }
    }
    // `ENV name value with spaces`.
    if let ("env", Some((name, value))) = (command, rest.split_once(char::is_whitespace))
        && !name.contains('=')
    {
        note(name, value.trim());
    }
}

/// Words between white space that is neither quoted nor escaped; quotes and escapes stay.
fn words(text: &str, escape: char) -> Vec<String> {
    let (mut found, mut word, mut quote, mut escaped) = (Vec::new(), String::new(), None, false);
    for c in text.chars() {
        if !escaped && quote.is_none() && c.is_whitespace() {
            if !word.is_empty() {
                found.push(std::mem::take(&mut word));
            }
            continue;
        }
        if escaped {
            escaped = false;
        } else if c == escape {
            escaped = true;
        } else if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && (c == '"' || c == '\'') {
            quote = Some(c);
        }
        word.push(c);
    }
    found.push(word);
    found.retain(|word| !word.is_empty());
    found
}

/// All that may be a source of an `ADD`, as a list of words or as JSON; the target is among it.
fn sources(rest: &str, escape: char) -> Vec<String> {
    let flag = |word: &str| word.starts_with("--") && !word.contains("://");
    let list = rest.find('[').map(|start| rest.split_at(start)).filter(|(before, _)| {
        (before.is_empty() || before.ends_with(char::is_whitespace)) && before.split_whitespace().all(flag)
    });
    let mut found = Vec::new();
    if let Some((_, list)) = list {
        match serde_json::from_str::<Vec<String>>(list) {
            Ok(list) => return list,
            // Another reader may make something of it.
            Err(_) if list.contains("\\u") => found.push("$?".to_owned()),
            Err(_) => {}
        }
    }
    found.extend(rest.split_whitespace().map(str::to_owned));
    found.extend(words(rest, escape));
    found.retain(|word| !flag(word));
    found
}

/// What a source is, if it is not a file for certain.
fn judge(source: &str, escape: char, values: &BTreeMap<String, BTreeSet<String>>) -> Option<Fetch> {
    let Some(all) = expand(source, escape, values, 0, &mut { MOST_STEPS }) else {
        // What begins as a path is one, whatever its variables are.
        let plain = unquoted(source.split('$').next().unwrap_or_default(), escape);
        let path = plain.starts_with(['.', '/']) || (plain.contains('/') && !plain.contains(':') && !is_remote(&plain));
        return (!path).then(|| Fetch::Unknown(source.to_owned()));
    };
    all.into_iter().find(|value| is_remote(value)).map(Fetch::Add)
}

/// Whether the builder takes this for an address.
fn is_remote(source: &str) -> bool {
    let user = |head: &str| {
        let (user, host) = head.split_once('@').unwrap_or_default();
        !user.is_empty() && !host.is_empty() && !head.contains('/')
    };
    source.contains("://")
        || source.starts_with("github.com/")
        || source.split_once(':').is_some_and(|(head, _)| user(head))
}

/// A word without its quotes and escapes.
fn unquoted(word: &str, escape: char) -> String {
    let mut text = String::new();
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' => {}
            c if c == escape => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    text
}

/// Every value that a word may have; `None`: not known.
fn expand(
    word: &str,
    escape: char,
    values: &BTreeMap<String, BTreeSet<String>>,
    depth: usize,
    steps: &mut usize,
) -> Option<BTreeSet<String>> {
    let Some((before, after)) = word.split_once('$') else { return Some(BTreeSet::from([unquoted(word, escape)])) };
    *steps = steps.checked_sub(1)?;
    if depth > DEEPEST {
        return None;
    }
    let (name, default, rest) = variable(after)?;
    let mut own = BTreeSet::new();
    for value in values.get(name).into_iter().flatten() {
        // A variable that is made of itself has no other values than those that the others give it.
        if value.contains(&format!("${name}")) || value.contains(&format!("${{{name}")) {
            return None;
        }
        own.extend(expand(value, escape, values, depth + 1, steps)?);
    }
    if let Some(default) = default {
        own.extend(expand(default, escape, values, depth + 1, steps)?);
    }
    let rest = expand(rest, escape, values, depth, steps)?;
    // Nobody in the file gives it a value, so the base image may.
    if own.is_empty() || own.len() * rest.len() > MOST_VALUES {
        return None;
    }
    let before = unquoted(before, escape);
    Some(
        own.iter().flat_map(|own| rest.iter().map(|rest| format!("{before}{own}{rest}")).collect::<Vec<_>>()).collect(),
    )
}

/// The name of the variable behind a dollar sign, the default where it has one, and what follows. `None`: a form that is not known.
fn variable(after: &str) -> Option<(&str, Option<&str>, &str)> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let Some(inside) = after.strip_prefix('{') else {
        let end = after.find(|c| !legal(c)).unwrap_or(after.len());
        return (end > 0).then(|| (&after[..end], None, &after[end..]));
    };
    let end = inside.find(|c| !legal(c))?;
    let (name, more) = inside.split_at(end);
    if let Some(rest) = more.strip_prefix('}') {
        return (!name.is_empty()).then_some((name, None, rest));
    }
    let default = [":-", ":+", "-", "+"].iter().find_map(|form| more.strip_prefix(form))?;
    // One within the other is too much.
    let (default, rest) = default.split_once('}').filter(|(default, _)| !default.contains("${"))?;
    Some((name, Some(default), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<Fetch> {
        fetches(text, &BTreeMap::new()).into_iter().collect()
    }

    fn add(address: &str) -> Vec<Fetch> {
        vec![Fetch::Add(address.to_owned())]
    }

    #[test]
    fn addresses_are_found_however_they_are_written() {
        const URL: &str = "http://127.0.0.1:8000/x";
        for text in [
            "FROM a\nADD http://127.0.0.1:8000/x /w/\n",
            "FROM a\n  add\thttp://127.0.0.1:8000/x /w/",
            "FROM a\r\nADD --chmod=644 --checksum=sha256:aa http://127.0.0.1:8000/x /w/\r\n",
            "FROM a\nADD x y http://127.0.0.1:8000/x /w/",
            "FROM a\nADD [\"http://127.0.0.1:8000/x\", \"/w/\"]",
            "FROM a\nADD [\"\\u0068ttp://127.0.0.1:8000/x\", \"/w/\"]",
            "FROM a\nADD \"http\"://127.0.0.1:8000/x /w/",
            "FROM a\nADD h\\ttp://127.0.0.1:8000/x /w/",
            "FROM a\nADD \\\n  # a comment\n\n  http://127.0.0.1:8000/x \\\n /w/",
            "FROM a\nA\\\nDD http://127.0.0.1:8000/x /w/",
            "FROM a\nONBUILD ADD http://127.0.0.1:8000/x /w/",
            "# escape=`\nFROM a\nADD `\nhttp://127.0.0.1:8000/x /w/",
            "FROM a\nRUN <<EOF\nEOF\nADD http://127.0.0.1:8000/x /w/",
            "FROM a\nRUN <<\"E\\\"\nx\nE\\\nADD http://127.0.0.1:8000/x /w/",
            "ARG U=http://127.0.0.1:8000/x\nFROM a\nARG U\nADD $U /w/",
            "FROM a\nENV H=127.0.0.1 P=8000\nADD http://${H}:$P/x /w/",
            "FROM a\nENV U http://127.0.0.1:8000/x\nADD ${U} /w/",
            "FROM a\nARG S=http\nARG U=${S}://127.0.0.1:8000/x\nADD \"$U\" /w/",
            "FROM a\nADD ${NONE:-http://127.0.0.1:8000/x} /w/",
        ] {
            // An escape that does not hold is read as it stands, too.
            assert!(found(text).contains(&add(URL)[0]), "{text}: {:?}", found(text));
        }
        assert_eq!(found("ADD [\"http://x/y\", \"/w/\"]"), add("http://x/y"), "as it would be allowed");
        assert_eq!(found("ADD git@example.com:a/b.git /w"), add("git@example.com:a/b.git"));
        assert_eq!(found("ADD git://example.com/a.git /w"), add("git://example.com/a.git"));
        assert_eq!(found("ADD github.com/a/b /w"), add("github.com/a/b"));
        let args = BTreeMap::from([("U".to_owned(), "https://example.com".to_owned())]);
        let found = fetches("FROM a\nARG U=./file\nADD $U /w", &args);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), add("https://example.com"));
    }

    #[test]
    fn what_is_not_known_is_told() {
        for source in ["$U", "${U}", "${U#x}", "${U/x/y}", "${A:-${B}}", "h${U}", "$U/x"] {
            let text = format!("FROM a\nADD {source} /w/");
            assert_eq!(found(&text), [Fetch::Unknown(source.to_owned())], "{text}");
        }
        assert_eq!(
            found("ADD [\"\\ud800\", \"\\u0068ttp:\\u002f/x\", \"/w\"]").len(),
            1,
            "another reader may take that"
        );
        assert_eq!(found("FROM a\nARG U=$U\nADD $U /w"), [Fetch::Unknown("$U".to_owned())]);
    }

    #[test]
    fn files_are_files() {
        for text in [
            "FROM a\nADD x.tar.gz /w/\nCOPY http://x /w",
            "FROM a\nADD ./$X /w/\nADD dir/${X#y}/z /w/\nADD /$X /w",
            "ARG JAR=target/*.jar\nFROM a\nARG JAR\nADD ${JAR} app.jar",
            "FROM a\nENV V=1.2\nADD x-${V}.tgz /w/",
            "FROM a\nRUN curl http://example.com && \\\n  echo ADD http://example.com",
            "FROM a\n# ADD http://example.com /w\nLABEL a=http://example.com",
            "FROM a\nADD --chown=a:b --link a@b/c:d /w/",
            "# syntax=docker/dockerfile:1\nFROM a",
            "# syntax = docker.io/docker/dockerfile:1.7-labs\nFROM a",
            "#syntax=docker/dockerfile:1.4@sha256:aaaa\nFROM a",
            "FROM a\n# syntax=evil/frontend",
        ] {
            assert_eq!(found(text), [], "{text}");
        }
    }

    #[test]
    fn frontends_of_others_are_found_in_all_three_forms() {
        let frontend = |name: &str| vec![Fetch::Frontend(name.to_owned())];
        for text in [
            "# syntax=evil/frontend\nFROM a",
            "#   SYNTAX  =  evil/frontend and more\nFROM a",
            "# escape=`\n# syntax=evil/frontend\nFROM a",
            "\u{feff}# syntax=evil/frontend\nFROM a",
            "#!/usr/bin/env x\n# syntax=evil/frontend\nFROM a",
            "// syntax=evil/frontend\nFROM a",
            "{\"syntax\": \"evil/frontend\"}",
        ] {
            assert_eq!(found(text), frontend("evil/frontend"), "{text}");
        }
        // The first counts to one version of the builder, the last to another; and it reads JSON that others refuse.
        let two = "# syntax=docker/dockerfile:1\n# syntax=evil/frontend\nFROM a";
        assert_eq!(found(two), frontend("evil/frontend"));
        let json = r#"{"syntax": "evil/frontend", "a": "\ud800"}"#;
        assert!(matches!(found(json).as_slice(), [Fetch::Unreadable(_)]));
        for name in ["docker/dockerfile:experimental", "docker/dockerfile:1.0-experimental", "evil/docker/dockerfile:1"]
        {
            assert_eq!(found(&format!("# syntax={name}\nFROM a")), frontend(name));
        }
        let args = BTreeMap::from([("BUILDKIT_SYNTAX".to_owned(), "evil/frontend".to_owned())]);
        assert_eq!(fetches("FROM a", &args).into_iter().collect::<Vec<_>>(), frontend("evil/frontend"));
    }

    #[test]
    fn a_file_that_nobody_writes_ends_in_time() {
        assert!(matches!(found(&"\\\n".repeat(MOST_LINES)).as_slice(), [Fetch::Unreadable(_)]));
        assert_eq!(found(&"\\\n".repeat(MOST_LINES - 2)), []);
        let doubling: String = (1..40).map(|n| format!("ARG A{n}=$A{0}$A{0}\n", n - 1)).collect();
        assert_eq!(found(&format!("ARG A0=x\n{doubling}ADD $A39 /w")), [Fetch::Unknown("$A39".to_owned())]);
    }
}
