//! Capacity for people.

use std::fmt::Write as _;

use super::{Allowance, Amount, Fit, GB, Need, Resource, SIZES, Size, Source, TABLE, Terms, Wanted, fits, vm_for};
use crate::units::about;

/// How many previews fit, and why.
#[must_use]
pub fn fit(fit: &Fit) -> String {
    let mut text = match (fit.previews, fit.binds) {
        (Some(previews), Some(binds)) => {
            let there = if fit.running > 0 { format!(" ({} there already)", fit.running) } else { String::new() };
            let verb = if previews == 1 { "preview fits" } else { "previews fit" };
            format!("{previews} {verb}{there}; {} first\n\n", binding(binds))
        }
        _ => "nothing is known of the VM\n".to_owned(),
    };
    let rows = fit.resources.iter().map(|row| {
        let Allowance { resource, previews, has, base, each, source } = *row;
        [
            name(resource).to_owned(),
            previews.to_string(),
            shown(resource, has),
            shown(resource, base),
            shown(resource, each),
            told(source).to_owned(),
        ]
    });
    columns(&mut text, ["RESOURCE", "ALLOWS", "HAS", "KEPT BACK", "A PREVIEW", "FROM"], rows);
    text
}

/// The VM that so many previews need.
#[must_use]
pub fn wanted(wanted: &Wanted, need: &Need) -> String {
    let verb = if wanted.previews == 1 { "preview needs" } else { "previews need" };
    let mut text = format!(
        "{} {verb} {} vCPU, {} of memory and {} of disk",
        wanted.previews,
        shown(Resource::Cpus, wanted.cpus),
        about(wanted.memory),
        about(wanted.disk)
    );
    match wanted.size {
        Some(size) => {
            let _ = writeln!(text, "; as providers sell it: {}", spelled(size));
        }
        None => text.push_str("; that is more than one VM\n"),
    }
    text.push('\n');
    let rows = [(Resource::Cpus, need.cpus), (Resource::Memory, need.memory), (Resource::Disk, need.disk)];
    let rows = rows.map(|(resource, Amount { each, base, source })| {
        [name(resource).to_owned(), shown(resource, base), shown(resource, each), told(source).to_owned()]
    });
    columns(&mut text, ["RESOURCE", "KEPT BACK", "A PREVIEW", "FROM"], rows.into_iter());
    text
}

/// The tables for previews that declare no limits.
#[must_use]
pub fn table() -> String {
    let (need, terms) = (Need::formula(), Terms::default());
    let mut text =
        "Where a Compose file declares no limits: vCPU = 2 + 1.5 n, RAM GB = 6 + 2.5 n, disk GB = 120 + 8 n\n\n\
        Which VM for so many previews\n"
            .to_owned();
    let rows = TABLE.map(|previews| {
        let wanted = vm_for(&need, previews, &terms);
        let sold = wanted.size.map_or_else(|| "more than one VM".to_owned(), spelled);
        let cells = [Resource::Cpus, Resource::Memory, Resource::Disk].map(|resource| match resource {
            Resource::Cpus => shown(resource, wanted.cpus),
            Resource::Memory => gb(wanted.memory),
            _ => gb(wanted.disk),
        });
        let [cpus, memory, disk] = cells;
        [previews.to_string(), cpus, memory, disk, sold]
    });
    columns(&mut text, ["PREVIEWS", "VCPU", "RAM GB", "DISK GB", "AS PROVIDERS SELL IT"], rows.into_iter());
    text.push_str("\nHow many previews on which VM\n");
    let rows = SIZES.map(|size| {
        let fit = fits(&need, &size.vm(), &terms);
        let number = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
        [spelled(size), number(fit.previews), fit.binds.map_or("", name).to_owned()]
    });
    columns(&mut text, ["VM", "PREVIEWS", "BINDS FIRST"], rows.into_iter());
    text
}

fn spelled(size: Size) -> String {
    format!("{} vCPU, {} GB, {} GB disk", size.cpus, size.memory, size.disk)
}

const fn name(resource: Resource) -> &'static str {
    match resource {
        Resource::Cpus => "processors",
        Resource::Memory => "memory",
        Resource::Disk => "disk",
        Resource::Networks => "networks",
        Resource::Places => "places",
    }
}

const fn binding(resource: Resource) -> &'static str {
    match resource {
        Resource::Cpus => "processors bind",
        Resource::Memory => "memory binds",
        Resource::Disk => "disk binds",
        Resource::Networks => "Docker's address pools bind",
        Resource::Places => "`[limits] max_previews` binds",
    }
}

const fn told(source: Source) -> &'static str {
    match source {
        Source::Declared => "Compose files",
        Source::DeclaredAndGuardrails => "Compose files; guardrails for the rest",
        Source::Guardrails => "guardrails: nothing is declared, and they allow no more",
        Source::Formula => "formula",
        Source::Configuration => "configuration",
        Source::Networks => "networks of the Compose files",
    }
}

fn shown(resource: Resource, amount: u64) -> String {
    match resource {
        Resource::Cpus => thousandths(amount),
        Resource::Memory | Resource::Disk => about(amount),
        Resource::Networks | Resource::Places => amount.to_string(),
    }
}

fn gb(bytes: u64) -> String {
    thousandths(u64::try_from(u128::from(bytes) * 1000 / u128::from(GB)).unwrap_or(u64::MAX))
}

fn thousandths(amount: u64) -> String {
    let text = format!("{}.{:03}", amount / 1000, amount % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A table; the last column is not filled up.
fn columns<const N: usize>(text: &mut String, head: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = rows.collect();
    if rows.is_empty() {
        return;
    }
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in std::iter::once(head.map(str::to_owned)).chain(rows) {
        let line: String = row.iter().zip(&widths).fold(String::new(), |mut line, (cell, width)| {
            let _ = write!(line, "{cell:width$}  ");
            line
        });
        text.push_str(line.trim_end());
        text.push('\n');
    }
}
