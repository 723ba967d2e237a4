//! The load: who deploys what, of which weight, and what is to come of it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// A preview: application and name.
pub(crate) type Key = (String, String);

/// Places in thousandths, so that sums are exact.
pub(crate) type Places = u32;

/// How much of the VM a preview takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Light,
    Medium,
    Heavy,
}

/// What is to come of a deploy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Meant {
    Ready,
    /// A container ends that should run.
    Exits,
    /// A health check says no.
    Unhealthy,
}

/// One preview's life: deployed, and destroyed a little later.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) app: String,
    pub(crate) number: usize,
    pub(crate) owner: &'static str,
    pub(crate) kind: Kind,
    pub(crate) meant: Meant,
}

/// What the VM may hold, by the rules that the harness reckons with on its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) places: Places,
    pub(crate) per_owner: Places,
    pub(crate) per_app: Places,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Light, Self::Medium, Self::Heavy];
    /// 30 %, 40 %, 30 %.
    const MIX: [Self; 10] = [
        Self::Light,
        Self::Medium,
        Self::Heavy,
        Self::Medium,
        Self::Light,
        Self::Medium,
        Self::Heavy,
        Self::Light,
        Self::Medium,
        Self::Heavy,
    ];

    pub(crate) fn weight(self) -> Places {
        match self {
            Self::Light => 500,
            Self::Medium => 1000,
            Self::Heavy => 2000,
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Light => "light (0.5)",
            Self::Medium => "medium (1)",
            Self::Heavy => "heavy (2)",
        }
    }
}

impl Meant {
    /// The failure code that says it.
    pub(crate) fn code(self) -> Option<&'static str> {
        match self {
            Self::Ready => None,
            Self::Exits => Some("exited"),
            Self::Unhealthy => Some("unhealthy"),
        }
    }
}

impl Job {
    /// The job of this number, from 1; the same each time, whoever asks. The periods share no divisor, so that each owner has each weight.
    pub(crate) fn new(app: &str, number: usize) -> Self {
        let meant = match number % 17 {
            8 => Meant::Exits,
            16 => Meant::Unhealthy,
            _ => Meant::Ready,
        };
        Self {
            app: format!("{app}-{}", ["shop", "blog"][number / 2 % 2]),
            number,
            // One of them has so many that the limit for owners holds some back.
            owner: ["ada", "ada", "ada", "bob", "cem", "dan", "eve"][number % 7],
            kind: Kind::MIX[number % 10],
            meant,
        }
    }

    pub(crate) fn key(&self) -> Key {
        (self.app.clone(), format!("pr-{}", self.number))
    }

    /// Its project below the directory of all.
    pub(crate) fn project(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:?}-{:?}", self.kind, self.meant).to_lowercase())
    }
}

impl Rules {
    /// So many places; one owner and one application may have the most of them, but each has room for a heavy preview.
    pub(crate) fn of(places: u16) -> Self {
        // Whole numbers, as the configuration wants them.
        let [places, half, most] = [places, (places / 2).max(2), (places / 4 * 3).max(2)].map(|n| u32::from(n) * 1000);
        Self { places, per_owner: half, per_app: most }
    }
}

/// Places for people.
pub(crate) fn places(value: Places) -> String {
    format!("{}", f64::from(value) / 1000.0)
}

/// Writes the project of each kind.
pub(crate) fn write(dir: &Path, rules: &Rules) -> Result<()> {
    for kind in Kind::ALL {
        for meant in [Meant::Ready, Meant::Exits, Meant::Unhealthy] {
            let project = Job { kind, meant, ..Job::new("any", 1) }.project(dir);
            // The boundary of a repository, so that nothing above counts as part of it.
            fs::create_dir_all(project.join(".git"))?;
            fs::write(project.join("compose.yml"), compose(kind, meant))?;
            fs::write(project.join("preview.toml"), settings(kind, rules))?;
        }
    }
    Ok(())
}

fn compose(kind: Kind, meant: Meant) -> String {
    let mut text = "services:\n".to_owned();
    let script = if meant == Meant::Exits { "echo broken; exit 7" } else { "exec sleep 1000000" };
    let _ = write!(
        text,
        "  web:\n    image: busybox:1.36\n    command: [sh, -c, \"{script}\"]\n    stop_grace_period: 0s\n    \
         mem_limit: 32m\n"
    );
    if meant == Meant::Unhealthy || (meant == Meant::Ready && kind != Kind::Light) {
        let test = if meant == Meant::Unhealthy { "echo not well; false" } else { "true" };
        let _ = writeln!(
            text,
            "    healthcheck: {{test: [CMD-SHELL, \"{test}\"], interval: 1s, timeout: 30s, retries: 3}}"
        );
    }
    if kind == Kind::Heavy {
        text.push_str(
            "  data:\n    image: busybox:1.36\n    command: [sleep, \"1000000\"]\n    stop_grace_period: 0s\n    \
             mem_limit: 32m\n    volumes: [\"data:/data\"]\nvolumes:\n  data: {}\n",
        );
    }
    text
}

/// The floors are the machine's business, which may be a small one.
fn settings(kind: Kind, rules: &Rules) -> String {
    format!(
        "[limits]\nmax_previews = {}\nmax_per_owner = {}\nmax_per_app = {}\nweight = {}\non_full = \"queue\"\n\
         min_free_disk = \"1MB\"\nmin_free_memory = \"1MB\"\n",
        places(rules.places),
        places(rules.per_owner),
        places(rules.per_app),
        places(kind.weight())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_as_wanted() {
        let jobs: Vec<Job> = (1..=100).map(|number| Job::new("soak", number)).collect();
        let count = |is: &dyn Fn(&Job) -> bool| jobs.iter().filter(|job| is(job)).count();
        assert_eq!(Kind::ALL.map(|kind| count(&|job| job.kind == kind)), [30, 40, 30]);
        assert_eq!((count(&|job| job.meant == Meant::Exits), count(&|job| job.meant == Meant::Unhealthy)), (6, 5));
        for kind in Kind::ALL {
            for owner in ["ada", "bob", "cem", "dan", "eve"] {
                assert!(count(&|job| job.kind == kind && job.owner == owner) > 0, "{owner} {kind:?}");
            }
            for app in ["soak-shop", "soak-blog"] {
                assert!(count(&|job| job.kind == kind && job.app == app) > 5, "{app} {kind:?}");
            }
        }
    }

    #[test]
    fn a_heavy_one_always_fits() {
        for number in 2..20 {
            let rules = Rules::of(number);
            assert!(rules.per_owner.min(rules.per_app) >= Kind::Heavy.weight() && rules.per_app <= rules.places);
            assert_eq!((rules.per_owner % 1000, rules.per_app % 1000), (0, 0));
        }
    }
}
