//! Steps as text for a POSIX shell: one script with all checks, one for each step to be applied. Pure.

use std::fmt::Write as _;

use super::{File, Step};
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
        "{PRELUDE}alone\nseen=1\nif [ -n \"$waited\" ]; then\n(\n{check}\n) >/dev/null 2>&1 </dev/null 9>&-\nseen=$?\nfi\ncase $seen in 0|77) ;; *)\n(\n{mend}\n) 2>&1 </dev/null 9>&-\n;; esac\nprintf '\\n%s %s\\n' '{mark}' $?\n"
    );
    text.push_str(&checks(&[step], mark));
    text
}

/// Takes a step back.
pub(super) fn undo(step: &Step) -> String {
    format!("{PRELUDE}alone\n(\n{}\nundo \"$@\"\n) 2>&1 </dev/null 9>&-\n", functions(step, true))
}

/// The body of a check: for a subshell, so that nothing of it reaches the next.
pub(super) fn check(step: &Step) -> String {
    format!("{}\n{}", functions(step, true), checking(step))
}

/// The body that mends; for a subshell whose end nobody asks for by `||` or `if`: there, the shell would go on after a failure.
pub(super) fn mend(step: &Step) -> String {
    format!("{}\n{}", functions(step, true), mending(step))
}

/// Both, by the word in `$mode`, with each path once; needs [`FILE`]. Without the comments of the script where every byte counts.
pub(super) fn either(step: &Step, comments: bool) -> String {
    let mut text = functions(step, comments);
    text.push_str("\nif [ $mode = check ]; then check \"$@\"; else set -e; fi\n");
    for file in &step.files {
        let (content, end) = here(file);
        let _ = writeln!(text, "file {} {:o} {} <<'{end}'\n{content}{end}", quote(&file.path), file.mode, file.hash());
    }
    text.push_str("[ $mode = apply ] || exit $wrong\napply \"$@\"");
    text
}

/// What [`either`] does with a file.
pub(super) const FILE: &str = "file() { if [ $mode = check ]; then look \"$@\"; else put \"$1\" \"$2\"; fi; }\n";

/// A text of ours without the lines that are comments; none of them stands in a here document.
pub(super) fn uncommented(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(|line| [line, "\n"]).collect()
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
    for file in &step.files {
        let (content, end) = here(file);
        let _ = writeln!(text, "put {} {:o} <<'{end}'\n{content}{end}", quote(&file.path), file.mode);
    }
    text.push_str("apply \"$@\"");
    text
}

/// A file's content, and the word that ends it: nothing in the content can be taken for that, since it would have to hold its own hash.
fn here(file: &File) -> (&str, String) {
    (file.content.expose(), format!("END-{}", &file.hash()[..16]))
}

fn functions(step: &Step, comments: bool) -> String {
    let words: Vec<String> = step.arguments.iter().map(|word| quote(word)).collect();
    let script = if comments { step.script.to_owned() } else { uncommented(step.script) };
    format!("set -u\n{}\nset -- {}", script.trim_end(), words.join(" "))
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
