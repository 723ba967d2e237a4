//! Text from outside (logs, build output, names of services and branches) as it may be shown: it moves no cursor, folds no section and
//! gives no command to whoever reads the output of a job.

use std::fmt::Write as _;

/// Marks by which CI systems know commands within a line: GitHub, Azure, TeamCity.
const COMMANDS: [&str; 3] = ["##[", "##vso[", "##teamcity["];

/// Text without control characters. Sequences for terminals are left out, other control characters are shown as `\x1b`; ends of lines
/// and tabs stay.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\n' | '\t' => shown.push(c),
            '\r' if rest.peek() == Some(&'\n') => {}
            // What was to be overwritten stands beside what overwrites it.
            '\r' | '\u{2028}' | '\u{2029}' => shown.push(' '),
            // `ESC [ parameters letter`, such as colours.
            '\u{1b}' if rest.peek() == Some(&'[') => {
                rest.next();
                while rest.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
                rest.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
            }
            c if c.is_control() => drop(write!(shown, "\\x{:02x}", u32::from(c))),
            c => shown.push(c),
        }
    }
    shown
}

/// Text in which no line is a command to a CI system: `::` at the start of a line and `##[` get a backslash.
pub(crate) fn no_commands(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for line in text.split_inclusive(['\n', '\r']) {
        // The runner takes white space away first.
        let words = line.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        let (space, mut words) = (&line[..line.len() - words.len()], words.to_owned());
        if words.starts_with("::") {
            words.insert(0, '\\');
        }
        for command in COMMANDS {
            if words.contains(command) {
                words = words.replace(command, &command.replace('[', "\\["));
            }
        }
        shown.push_str(space);
        shown.push_str(&words);
    }
    shown
}

/// Output of a process in whole lines, without commands. Bytes that are no text stay as they are, where no line has a command.
#[derive(Default)]
pub(crate) struct Lines(Vec<u8>);

impl Lines {
    /// What may be shown after these bytes came.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.0.extend_from_slice(bytes);
        let end = self.0.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.0.drain(..end).collect::<Vec<u8>>().split_inclusive(|byte| *byte == b'\n').flat_map(shown).collect()
    }

    /// The last line, if it has no end.
    pub(crate) fn end(self) -> Vec<u8> {
        shown(&self.0)
    }
}

fn shown(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    // Escapes fold sections of GitLab's log; colours are no loss there.
    let harmless = if text.contains("\u{1b}[0K") { no_commands(&printable(&text)) } else { no_commands(&text) };
    if harmless == text { line.to_vec() } else { harmless.into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_a_terminal() {
        for (text, shown) in [
            ("plain\ttext\nand more", "plain\ttext\nand more"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("a\r\nb\rc", "a\nb c"),
            ("\u{1b}]0;title\u{7}x", "\\x1b]0;title\\x07x"),
            ("\u{9b}2J\u{7f}", "\\x9b2J\\x7f"),
            ("section_end:0:preview\r\u{1b}[0K", "section_end:0:preview "),
            ("\u{1b}[", ""),
            ("\u{1b}", "\\x1b"),
            ("é\u{2028}ü", "é ü"),
        ] {
            assert_eq!(printable(text), shown, "{text:?}");
        }
    }

    #[test]
    fn no_line_is_a_command() {
        for (text, shown) in [
            ("::error::x\nfine\n  ::warning::y", "\\::error::x\nfine\n  \\::warning::y"),
            ("a::b ::c", "a::b ::c"),
            ("x ##[error]y ##vso[task.complete]", "x ##\\[error]y ##vso\\[task.complete]"),
            ("a\r::error::x", "a\r\\::error::x"),
            ("\u{a0}\u{feff}::error::x", "\u{a0}\u{feff}\\::error::x"),
            ("::", "\\::"),
            ("# [x] ## y", "# [x] ## y"),
        ] {
            assert_eq!(no_commands(text), shown, "{text:?}");
        }
    }

    #[test]
    fn output_of_processes_comes_in_whole_lines() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\n:"), b"one\n");
        assert_eq!(lines.push(b":error::x\n\xff\x00\n"), b"\\::error::x\n\xff\x00\n");
        assert_eq!(lines.push(b"::last"), b"");
        assert_eq!(lines.end(), b"\\::last");
        let mut section = Lines::default();
        assert_eq!(section.push(b"section_start:1:x\r\x1b[0Khidden\n"), b"section_start:1:x hidden\n");
    }
}
