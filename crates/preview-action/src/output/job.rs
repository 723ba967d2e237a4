//! The files in which a CI job hands on outputs and shows a summary.

use std::fmt::Write as _;
use std::io::Write as _;

use super::Ci;

/// Appends `name=value` lines to the file of step outputs, and text to that of summaries.
pub(crate) fn ci_files(
    environment: &preview_core::config::Environment,
    outputs: &[(&str, String)],
    summary: &str,
) -> std::io::Result<()> {
    let append = |path: &str, text: &str| -> std::io::Result<()> {
        std::fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes())
    };
    match Ci::of(environment) {
        Ci::GitHub => {
            if let Some(path) = environment.get("GITHUB_OUTPUT").filter(|path| !path.is_empty()) {
                let mut text = String::new();
                for (name, value) in outputs {
                    let _ = writeln!(text, "{name}={}", one_line(value));
                }
                append(path, &text)?;
            }
            let path = environment.get("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty() && !summary.is_empty());
            if let Some(path) = path {
                append(path, &format!("{summary}\n"))?;
            }
        }
        Ci::GitLab => {
            // `artifacts: reports: dotenv`: no blank lines, no quotes, one line a variable.
            let directory = environment.get("CI_PROJECT_DIR").map_or(".", String::as_str);
            let mut text = String::new();
            for (name, value) in outputs.iter().filter(|(_, value)| !value.is_empty()) {
                let _ = writeln!(text, "PREVIEW_{}={}", name.to_uppercase().replace('-', "_"), one_line(value));
            }
            anew(&format!("{directory}/preview.env"), &text)?;
        }
        Ci::None => {}
    }
    Ok(())
}

/// Writes a file of the checkout anew: a link that was committed in its place is removed, not followed.
fn anew(path: &str, text: &str) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::OpenOptions::new().write(true).create_new(true).open(path)?.write_all(text.as_bytes())
}

fn one_line(value: &str) -> String {
    value.replace(['\n', '\r'], " ")
}
