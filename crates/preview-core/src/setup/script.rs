//! Steps as text for a POSIX shell: one script with all checks, one for each step to be applied. Pure.

use std::fmt::Write as _;

use super::{File, Step, sha256};
use crate::host::quote;

pub(super) const PRELUDE: &str = include_str!("scripts/prelude.sh");

/// Exit status of a check of something that does not apply to this machine.
const NOT_HERE: i32 = 77;

/// What a check said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// How it is.
    pub(super) verdict: Verdict,
    /// What it printed.
    pub(super) lines: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    AsWanted,
    Differs,
    NotHere,
    /// The check itself failed.
    Broken,
}

/// One script that checks all steps; `mark` is a word that nothing they print can hold.
pub(super) fn checks(steps: &[&Step], mark: &str) -> String {
    let mut text = PRELUDE.to_owned();
    for step in steps {
        let _ = writeln!(
            text,
            "printf '\\n%s %s\\n' '{mark}' {}\n(\n{}\n) 2>&1 </dev/null\nprintf '\\n%s %s\\n' '{mark}' $?",
            step.id,
            check(step)
        );
    }
    text
}

/// One script that applies a step, and says at the end with [`checks`] what it is like now. Who had to wait for somebody else looks again first.
pub(super) fn apply(step: &Step, mark: &str) -> String {
    // What a step starts does not keep the lock: only this shell has it.
    let (check, mend) = (check(step), mend(step));
    let mut text = format!(
        "{PRELUDE}alone\nif [ -n \"$waited\" ] && (\n{check}\n) >/dev/null 2>&1 </dev/null 9>&-; then\ntrue\nelse\n(\n{mend}\n) 2>&1 </dev/null 9>&-\nfi\nprintf '\\n%s %s\\n' '{mark}' $?\n"
    );
    text.push_str(&checks(&[step], mark));
    text
}

/// Takes a step back.
pub(super) fn undo(step: &Step) -> String {
    format!("{PRELUDE}alone\n(\n{}\nundo \"$@\"\n) 2>&1 </dev/null 9>&-\n", functions(step))
}

/// The body of a check: for a subshell, so that nothing of it reaches the next.
pub(super) fn check(step: &Step) -> String {
    format!("{}\n{}", functions(step), checking(step))
}

/// The body that mends; for a subshell whose end nobody asks for by `||` or `if`: there, the shell would go on after a failure.
pub(super) fn mend(step: &Step) -> String {
    format!("{}\n{}", functions(step), mending(step))
}

/// Both, by the word in `$mode`: once, where every byte counts.
pub(super) fn either(step: &Step) -> String {
    format!("{}\nif [ $mode = check ]; then\n{}\nfi\n{}", functions(step), checking(step), mending(step))
}

fn checking(step: &Step) -> String {
    let mut text = "check \"$@\"\n".to_owned();
    for file in &step.files {
        let _ = writeln!(text, "look {} {:o} {}", quote(&file.path), file.mode, file.hash());
    }
    text.push_str("exit $wrong");
    text
}

fn mending(step: &Step) -> String {
    let mut text = "set -e\n".to_owned();
    for File { path, mode, content, .. } in &step.files {
        let content = content.expose();
        // Nothing in the content can be taken for its end: that would have to hold its own hash.
        let end = format!("END-{}", &sha256(content)[..16]);
        let _ = writeln!(text, "put {} {mode:o} <<'{end}'\n{content}{end}", quote(path));
    }
    text.push_str("apply \"$@\"");
    text
}

fn functions(step: &Step) -> String {
    let words: Vec<String> = step.arguments.iter().map(|word| quote(word)).collect();
    format!("set -u\n{}\nset -- {}", step.script.trim_end(), words.join(" "))
}

/// Reads the answers to [`checks`], in the order of the steps; `None` if one is missing.
pub(super) fn findings(output: &str, steps: &[&Step], mark: &str) -> Option<Vec<Finding>> {
    let mut lines = output.lines();
    steps
        .iter()
        .map(|step| {
            let begin = format!("{mark} {}", step.id);
            lines.by_ref().find(|line| *line == begin)?;
            let mut said = Vec::new();
            for line in lines.by_ref() {
                if let Some(status) = line.strip_prefix(mark) {
                    let verdict = match status.trim().parse::<i32>().ok()? {
                        0 => Verdict::AsWanted,
                        1 => Verdict::Differs,
                        NOT_HERE => Verdict::NotHere,
                        _ => Verdict::Broken,
                    };
                    return Some(Finding { verdict, lines: said });
                }
                if !line.trim().is_empty() {
                    said.push(line.to_owned());
                }
            }
            None
        })
        .collect()
}
