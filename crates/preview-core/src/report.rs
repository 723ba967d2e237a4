//! Outcomes as text for terminals and as Markdown for job summaries. Pure; knows neither terminals nor forges.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::engine::Removed;
use crate::history::Entry;
use crate::lifecycle::{Deployed, Destroyed, FailureReport, Listed, Restored, Status, Swept};
use crate::plan::{Action, Change, Kind, Plan};
use crate::project::Target;
use crate::state::Address;
use crate::sweep::{self, Suspect, Why};
use crate::units::{about, age};

/// A deploy that is done, in one or a few lines.
#[must_use]
pub fn deployed(deployed: &Deployed) -> String {
    let mut text = match deployed.kind {
        None => return format!("{}: there is no such preview, so there is nothing to update", deployed.name),
        Some(Kind::Unchanged) => format!("{}: unchanged, nothing was recreated", deployed.name),
        Some(Kind::Create | Kind::Resume) => format!("{}: created", deployed.name),
        Some(Kind::Update) => format!("{}: updated", deployed.name),
    };
    let _ = write!(text, " ({:.1} s)", deployed.seconds);
    if deployed.kind == Some(Kind::Update) {
        let _ = write!(text, "\n{}", services(deployed.services.iter()).trim_end());
    }
    if deployed.addresses.is_empty() {
        text.push_str("\n  no address: no service publishes a port, and there is no [[route]]");
    }
    text
}

fn services<'a>(changes: impl Iterator<Item = (&'a String, &'a Change)>) -> String {
    changes
        .map(|(service, change)| match change {
            Change::Create => format!("  + {service}\n"),
            Change::Recreate(because) => format!("  ~ {service} ({})\n", because.join(", ")),
            Change::Mend(because) => format!("  ~ {service} ({because})\n"),
            Change::Refresh(because) => format!("  ? {service} ({because}; recreated if that changes it)\n"),
            Change::Remove => format!("  - {service}\n"),
            Change::Keep => format!("    {service} (kept)\n"),
        })
        .collect()
}

/// A destroy that is done.
#[must_use]
pub fn destroyed(destroyed: &Destroyed) -> String {
    if !destroyed.existed {
        return format!("{}: there was nothing to remove", destroyed.name);
    }
    let removed = &destroyed.removed;
    let records = if destroyed.records == 0 { String::new() } else { format!(", {} DNS records", destroyed.records) };
    format!(
        "{}: removed ({} containers, {} networks, {} volumes, {} images, {} files{records})",
        destroyed.name, removed.containers, removed.networks, removed.volumes, removed.images, destroyed.files
    )
}

/// What a sweep did, or would do.
#[must_use]
pub fn swept(swept: &Swept) -> String {
    let (removed, mended, freed) =
        if swept.dry_run { ("would be removed", "would be mended", "would go") } else { ("removed", "mended", "went") };
    let mut text = String::new();
    let suspect = |app: &str, name: &str, why: &Why| {
        let target = Target { app: app.to_owned(), name: name.to_owned(), project: String::new() };
        sweep::say(&Suspect { target, why: why.clone() }, swept.now)
    };
    for gone in &swept.removed {
        let _ = write!(text, "{}: {removed}", suspect(&gone.app, &gone.name, &gone.why));
        if !gone.records.is_empty() {
            let _ = write!(text, ", with the DNS records of {}", gone.records.join(", "));
        }
        if !swept.dry_run {
            let Removed { containers, networks, volumes, images } = gone.removed;
            let _ = write!(
                text,
                " ({containers} containers, {networks} networks, {volumes} volumes, {images} images, {} files)",
                gone.files
            );
            if gone.left.is_empty() {
                text.push_str(", nothing of it is left");
            } else {
                let _ = write!(text, ", but this is left: {}", gone.left.join(", "));
            }
        }
        text.push('\n');
    }
    for preview in &swept.mended {
        let _ = writeln!(text, "{}: {mended}", suspect(&preview.app, &preview.name, &preview.why));
    }
    for stayed in &swept.stayed {
        let what = suspect(&stayed.app, &stayed.name, &stayed.why);
        let _ = writeln!(text, "{what}: left, {}", stayed.reason);
    }
    for left in &swept.left {
        let _ = writeln!(text, "{}: left alone, {}", left.what, left.why);
    }
    if swept.tickets > 0 {
        let _ = writeln!(text, "{} tickets of runs that died while they waited {freed}", swept.tickets);
    }
    if swept.tombstones > 0 {
        let _ = writeln!(text, "{} records of closed previews {freed}: their time is over", swept.tombstones);
    }
    for image in &swept.images {
        let _ = writeln!(text, "image {image} {freed}: the disk is {} % full", swept.disk);
    }
    if swept.build_cache > 0 {
        let _ = writeln!(text, "{} of build cache {freed}", about(swept.build_cache));
    }
    let _ = write!(text, "{} previews stand, the disk is {} % full", swept.previews, swept.disk);
    if let Some(freed) = swept.freed {
        let _ = write!(text, ", {} were freed", about(freed));
    }
    text.push('\n');
    // Labels and files may be anybody's.
    text.replace(|c: char| c.is_control() && c != '\n', "?")
}

/// A sweep, for a job summary.
#[must_use]
pub fn swept_markdown(done: &Swept) -> String {
    let lines: Vec<String> = swept(done).lines().map(str::to_owned).collect();
    format!("### Sweep\n\n{}\n", code(&lines))
}

/// What would be done.
#[must_use]
pub fn plan(plan: &Plan) -> String {
    let mut text = String::new();
    let what = match plan.kind {
        Kind::Create => "would be created",
        Kind::Update => "would be updated",
        Kind::Unchanged => "is up to date: nothing would be done",
        Kind::Resume => "would be brought up again: its first deploy did not get through",
    };
    let _ = writeln!(text, "{} {what} (Compose project {})", plan.name, plan.project);
    if !plan.actions.is_empty() {
        let _ = writeln!(text, "\nSteps:");
    }
    for action in &plan.actions {
        let _ = match action {
            Action::Upload { files } => writeln!(text, "  upload {}", files.join(", ")),
            Action::Build { services } => writeln!(text, "  build  {}", services.join(", ")),
            Action::Pull { images } => writeln!(text, "  pull   {}", images.join(", ")),
            Action::Up => writeln!(text, "  up"),
            Action::Step { name, service } => writeln!(text, "  step   {name} (in {service})"),
            Action::Verify => writeln!(text, "  verify health and answers"),
        };
    }
    let _ = write!(text, "\nServices:\n{}", services(plan.services.iter()));
    if !plan.addresses.is_empty() {
        let _ = writeln!(text, "\nAddresses:");
        for address in &plan.addresses {
            text.push_str(&address_line(address));
        }
    }
    if !plan.differences.is_empty() {
        let _ = writeln!(text, "\nDifferences from your files:");
        for difference in &plan.differences {
            let _ = writeln!(text, "  {}: {}", difference.key, difference.what);
        }
    }
    for warning in &plan.warnings {
        let _ = writeln!(text, "\nWarning: {warning}");
    }
    text
}

fn address_line(address: &Address) -> String {
    match address.published() {
        Some(_) => format!("  {}\n", address.text()),
        None => format!("  {} → {}:{}\n", address.url, address.service, address.port),
    }
}

/// A deploy that failed: what, why, the last lines of what failed, and what runs now.
#[must_use]
pub fn failure(report: &FailureReport) -> String {
    let mut text = format!("{} failed while {} ({}): {}\n", report.name, report.phase, report.failure, report.message);
    for service in &report.services {
        let _ = writeln!(text, "\n{} ({}): {}", service.service, service.state, service.problem);
        let mut facts = Vec::new();
        if let Some(code) = service.exit_code {
            facts.push(format!("exit code {code}"));
        }
        if service.restarts > 0 {
            facts.push(format!("started again {} times", service.restarts));
        }
        if service.out_of_memory {
            facts.push("ended for lack of memory: raise its limit or [guardrails] memory".to_owned());
        }
        if !facts.is_empty() {
            let _ = writeln!(text, "  {}", facts.join(", "));
        }
        if let Some(output) = &service.health_output {
            let _ = writeln!(text, "  its health check said: {output}");
        }
        if service.log.is_empty() {
            let _ = writeln!(text, "  its log is empty");
        } else {
            let _ = writeln!(text, "  the last {} lines of its log:", service.log.len());
            for line in &service.log {
                let _ = writeln!(text, "  | {line}");
            }
        }
    }
    // One line is all in the message.
    let said = matches!(report.output.as_slice(), [line] if report.message.ends_with(line.as_str()));
    if !report.output.is_empty() && !said {
        let _ = writeln!(text, "\nthe last lines of its output:");
        for line in &report.output {
            let _ = writeln!(text, "  | {line}");
        }
    }
    let _ = write!(text, "\n{}", restored(&report.restored));
    text
}

fn restored(restored: &Restored) -> String {
    match restored {
        Restored::Previous => "The version before runs, with its data.".to_owned(),
        Restored::Removed => "Nothing was left behind: there was no version before.".to_owned(),
        Restored::NotYet(why) => format!("Not taken back: {why}."),
    }
}

/// Rows with columns that line up.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A list of previews.
#[must_use]
pub fn list(previews: &[Listed], now: Timestamp) -> String {
    if previews.is_empty() {
        return "no previews\n".to_owned();
    }
    let mut rows =
        vec![["APP", "NAME", "PHASE", "CONTAINERS", "AGE", "UPDATED", "OWNER", "URL"].map(str::to_owned).to_vec()];
    for preview in previews {
        rows.push(vec![
            preview.app.clone(),
            preview.name.clone(),
            preview.phase.clone(),
            format!("{}/{}", preview.running, preview.containers),
            preview.created_at.map_or_else(|| "-".to_owned(), |then| age(then, now)),
            preview.updated_at.map_or_else(|| "-".to_owned(), |then| age(then, now)),
            preview.owner.clone().unwrap_or_else(|| "-".to_owned()),
            preview.url.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table(&rows)
}

/// The runs that ended on a host.
#[must_use]
pub fn history(entries: &[Entry], now: Timestamp) -> String {
    if entries.is_empty() {
        return "no runs\n".to_owned();
    }
    let head = ["ENDED", "COMMAND", "APP", "NAME", "OUTCOME", "WHY", "SECONDS", "QUEUED", "OWNER", "RUN"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for entry in entries {
        let because = entry.code.map(|code| match entry.phase {
            Some(phase) => format!("{code} while {phase}"),
            None => code.to_string(),
        });
        let swept =
            (entry.removed + entry.mended > 0).then(|| format!("{} removed, {} mended", entry.removed, entry.mended));
        rows.push(vec![
            format!("{} ago", age(entry.ended_at, now)),
            entry.command.to_string(),
            or_dash(entry.app.clone()),
            or_dash(entry.preview.clone()),
            entry.outcome.to_string(),
            or_dash(because.or(swept)),
            format!("{:.1}", entry.seconds),
            or_dash((entry.queued_seconds > 0.0).then(|| format!("{:.1}", entry.queued_seconds))),
            or_dash(entry.owner.clone()),
            entry.run.clone(),
        ]);
    }
    // Owners and runs may be called anything.
    for cell in rows.iter_mut().flatten() {
        *cell = cell.replace(char::is_control, "?");
    }
    table(&rows)
}

/// One preview in detail.
#[must_use]
pub fn status(status: &Status, now: Timestamp) -> String {
    let mut text = format!("{} of {}", status.name, status.app);
    let phase = status.phase.map_or_else(|| "without state".to_owned(), |phase| phase.to_string());
    let _ =
        writeln!(text, ": {phase}{}", if status.crashed { " (its run died; the next deploy mends it)" } else { "" });
    if let Some(queued) = &status.queued {
        let _ = writeln!(text, "  queued   position {}, for {}", queued.position, age(queued.since, now));
    }
    if let Some(subject) = &status.subject {
        let _ = writeln!(text, "  of       {subject}");
    }
    if let Some(owner) = &status.owner {
        let _ = writeln!(text, "  owner    {owner}");
    }
    if let Some(commit) = &status.commit {
        let _ = writeln!(text, "  commit   {commit}");
    }
    if let (Some(created), Some(updated)) = (status.created_at, status.updated_at) {
        let _ = writeln!(text, "  created  {} ago, updated {} ago", age(created, now), age(updated, now));
    }
    for address in &status.addresses {
        text.push_str(&address_line(address));
    }
    if let Some(holder) = &status.locked_by {
        let _ = writeln!(text, "  locked by {} ({}) since {}", holder.who, holder.why, holder.since);
    }
    if let Some(failure) = &status.failure {
        let code = failure.code.map(|code| format!(" ({code})")).unwrap_or_default();
        let _ = writeln!(text, "  the last run failed while {}{code}: {}", failure.phase, failure.message);
    }
    text.push('\n');
    let mut rows = vec![["SERVICE", "STATE", "MEMORY", "IMAGE", "CONTAINER"].map(str::to_owned).to_vec()];
    for service in &status.services {
        let memory = match (service.memory, service.memory_limit) {
            (Some(used), Some(limit)) => format!("{} of {} MB", used >> 20, limit >> 20),
            (Some(used), None) => format!("{} MB", used >> 20),
            _ => "-".to_owned(),
        };
        rows.push(vec![
            service.service.clone(),
            service.state.clone(),
            memory,
            service.image.clone(),
            service.container.clone(),
        ]);
    }
    text.push_str(&table(&rows));
    text
}

/// Text that is safe inside a Markdown table or paragraph.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '|' | '*' | '_' | '`' | '<' | '>' | '[' | ']' | '#' | '\\' | '~' | '@' => format!("\\{c}"),
            '\n' | '\r' => " ".to_owned(),
            other => other.to_string(),
        })
        .collect()
}

/// A block of text as code; its fence is longer than any in it.
fn code(lines: &[String]) -> String {
    let longest = lines.iter().flat_map(|line| line.split(|c| c != '`')).map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{}\n{fence}\n", lines.join("\n"))
}

/// A deploy that is done, for a job summary.
#[must_use]
pub fn deployed_markdown(deployed: &Deployed) -> String {
    let mut text = format!("### Preview {}\n\n", plain(&deployed.name));
    match deployed.kind {
        None => text.push_str("There is no such preview, so there was nothing to update.\n"),
        Some(kind) => {
            let word = match kind {
                Kind::Create | Kind::Resume => "created",
                Kind::Update => "updated",
                Kind::Unchanged => "unchanged",
            };
            for address in &deployed.addresses {
                let shown = match address.published() {
                    Some(_) => plain(&address.text()),
                    None => format!("<{}>", address.url),
                };
                let _ = writeln!(text, "- **{}**: {shown}", plain(&address.service));
            }
            let _ = writeln!(text, "\n{word} in {:.1} s", deployed.seconds);
        }
    }
    text
}

/// A destroy that is done, for a job summary.
#[must_use]
pub fn destroyed_markdown(done: &Destroyed) -> String {
    format!("### Preview {}\n\n{}\n", plain(&done.name), plain(&destroyed(done)))
}

/// A deploy that failed, for a job summary.
#[must_use]
pub fn failure_markdown(report: &FailureReport) -> String {
    let mut text = format!(
        "### Preview {} failed while {}\n\n`{}`: {}\n",
        plain(&report.name),
        report.phase,
        report.failure,
        plain(&report.message)
    );
    for service in &report.services {
        let _ =
            write!(text, "\n**{}** ({}): {}", plain(&service.service), plain(&service.state), plain(&service.problem));
        if let Some(exit) = service.exit_code {
            let _ = write!(text, ", exit code {exit}");
        }
        text.push('\n');
        if !service.log.is_empty() {
            let _ = write!(
                text,
                "\n<details><summary>last {} lines of its log</summary>\n\n{}\n</details>\n",
                service.log.len(),
                code(&service.log)
            );
        }
    }
    if !report.output.is_empty() {
        let _ = write!(text, "\n<details open><summary>its output</summary>\n\n{}\n</details>\n", code(&report.output));
    }
    let _ = writeln!(text, "\n{}", plain(&restored(&report.restored)));
    text
}

#[cfg(test)]
mod tests;
