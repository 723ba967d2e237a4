//! The host's facts out of what `/proc`, `df` and `nproc` print. Pure.

use std::collections::BTreeSet;

use super::Facts;

/// The raw text of each source, as the host printed it.
#[derive(Debug, Default)]
pub(super) struct Sources<'a> {
    pub(super) clock: &'a str,
    pub(super) processors: &'a str,
    pub(super) loadavg: &'a str,
    pub(super) meminfo: &'a str,
    pub(super) df: &'a str,
    pub(super) sockets: &'a str,
}

/// `Err` names the source that could not be understood.
pub(super) fn parse(sources: &Sources<'_>) -> Result<Facts, &'static str> {
    let (memory_total, memory_available) = memory(sources.meminfo).ok_or("/proc/meminfo")?;
    let (disk_total, disk_used, disk_free) = disk(sources.df).ok_or("df")?;
    Ok(Facts {
        now: sources.clock.trim().parse().map_err(|_| "date")?,
        cpus: sources.processors.trim().parse().map_err(|_| "nproc")?,
        load: sources.loadavg.split_whitespace().next().and_then(|load| load.parse().ok()).ok_or("/proc/loadavg")?,
        memory_total,
        memory_available,
        disk_total,
        disk_used,
        disk_free,
        listening: listening(sources.sockets),
    })
}

/// Total and available, bytes. Kernels before 3.14 have no `MemAvailable`: free and cached memory stand in for it.
fn memory(meminfo: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let available = field("MemAvailable").or_else(|| Some(field("MemFree")? + field("Cached").unwrap_or(0)))?;
    Some((field("MemTotal")?, available))
}

/// Size, what is used and what ordinary users may still use, bytes, of the disk that `df -P -k` says has the least left.
fn disk(df: &str) -> Option<(u64, u64, u64)> {
    df.lines().filter_map(file_system).min_by_key(|(_, _, free)| *free)
}

/// A line of `df -P -k`; `None` for its head. A device's name and a mount point may have spaces in them, so the columns are counted from
/// the percentage.
fn file_system(line: &str) -> Option<(u64, u64, u64)> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let capacity = columns.iter().enumerate().skip(4).find(|(_, column)| {
        column.strip_suffix('%').is_some_and(|number| number == "-" || number.parse::<u64>().is_ok())
    });
    let capacity = capacity?.0;
    let number = |index: usize| columns.get(index)?.parse::<u64>().ok()?.checked_mul(1024);
    Some((number(capacity - 3)?, number(capacity - 2)?, number(capacity - 1)?))
}

/// Ports of the sockets in state `0A` (listening) of `/proc/net/tcp` and `/proc/net/tcp6`; other lines are skipped.
fn listening(sockets: &str) -> BTreeSet<u16> {
    sockets
        .lines()
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let local = columns.nth(1)?;
            let state = columns.nth(1)?;
            let (_, port) = local.rsplit_once(':')?;
            (state == "0A").then(|| u16::from_str_radix(port, 16).ok()).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_both_families() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n\
            \x20  1: 0100007F:0050 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0\n\
            \x20  0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 3\n";
        assert_eq!(listening(text), BTreeSet::from([22, 8080]));
        assert_eq!(listening(""), BTreeSet::new());
    }

    #[test]
    fn disk_with_spaces_in_names() {
        let df = "Filesystem 1024-blocks Used Available Capacity Mounted on\n//nas/my share 1000 400 500 45% /mnt/90% full\n";
        assert_eq!(disk(df), Some((1_024_000, 409_600, 512_000)));
        assert_eq!(disk("none 0 0 0 - /\n"), None);
        assert_eq!(disk("none 0 0 0 -% /\n"), Some((0, 0, 0)));
        assert_eq!(disk(""), None);
        let two = format!(
            "{df}Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sdb 9 1 8 12% /var/lib/docker\n"
        );
        assert_eq!(disk(&two), Some((9 * 1024, 1024, 8 * 1024)), "the fuller one counts");
    }

    #[test]
    fn memory_of_old_and_new_kernels() {
        let new = "MemTotal:        2000 kB\nMemFree:          100 kB\nMemAvailable:     900 kB\n";
        assert_eq!(memory(new), Some((2_048_000, 921_600)));
        assert_eq!(memory("MemTotal: 10 kB\nMemFree: 1 kB\nCached: 2 kB\n"), Some((10_240, 3_072)));
        assert_eq!(memory("MemTotal: many\n"), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let sources = Sources { meminfo: "MemTotal: 1 kB\nMemFree: 1 kB\n", df: "x 1 1 1 1% /", ..Sources::default() };
        assert_eq!(parse(&sources), Err("date"));
    }
}
