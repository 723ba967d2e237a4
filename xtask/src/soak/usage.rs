//! What the runs cost: processor time and memory of this machine's processes and of the VM's.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;

use crate::lab::Vm;

/// Clock ticks of a second, as the kernel tells them on every Linux.
const TICKS: f64 = 100.0;

/// The fields of a `stat` file after the name, which may hold anything.
fn fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default()
}

fn ticks(fields: &[&str], range: std::ops::Range<usize>) -> f64 {
    fields.get(range).unwrap_or_default().iter().filter_map(|field| field.parse::<f64>().ok()).sum()
}

/// Processor seconds of the processes that this one has started and that have ended, with all of theirs.
pub(crate) fn ended_children() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    ticks(&fields(&stat), 13..15) / TICKS
}

/// Processor seconds of all processes in the VM since it began: what lives, with what has ended below it.
pub(crate) fn of_vm(vm: &Vm) -> Result<f64> {
    let text = vm.text(&["sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null || :"])?;
    Ok(text.lines().map(|line| ticks(&fields(line), 11..15)).sum::<f64>() / TICKS)
}

/// Kilobytes of memory of the processes below this one that are theirs alone, but for those below `except`.
pub(crate) fn memory(except: u32) -> u64 {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some(parent) = fields(&stat).get(1).and_then(|field| field.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut wanted = children.get(&std::process::id()).cloned().unwrap_or_default();
    let mut sum = 0;
    while let Some(pid) = wanted.pop() {
        if pid == except {
            continue;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        sum += line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default();
        wanted.extend(children.get(&pid).into_iter().flatten());
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 0 0 0 0 0 11 12 13 14 20 0";
        assert_eq!(fields(stat)[1], "1");
        assert!(
            (ticks(&fields(stat), 11..15) - 50.0).abs() < 1e-9 && (ticks(&fields(stat), 13..15) - 27.0).abs() < 1e-9
        );
    }
}
