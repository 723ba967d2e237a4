//! How many previews fit on a VM, what binds first, and which VM so many previews need. Pure; whole numbers, so that tables come out exactly.
//!
//! What a preview takes comes from the limits that its Compose files declare. Where they declare none, it comes from measured use of one
//! product's previews (the formulas below), or from the guardrails where those hold it to less.

mod text;

#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::stack::{Said, Share};

pub use text::{fit, table, wanted};

const GB: u64 = 1 << 30;

/// What the VM itself takes, and each preview where nothing is declared: vCPU = 2 + 1.5 n, RAM GB = 6 + 2.5 n, disk GB = 120 + 8 n.
const FORMULA: [(Resource, u64, u64); 3] =
    [(Resource::Cpus, 2000, 1500), (Resource::Memory, 6 * GB, 5 * GB / 2), (Resource::Disk, 120 * GB, 8 * GB)];

/// Sizes of VMs that providers sell: vCPU, RAM and disk in GB. Disks are often sold larger, or apart.
pub const SIZES: [Size; 7] = [
    Size { cpus: 2, memory: 4, disk: 80 },
    Size { cpus: 4, memory: 8, disk: 120 },
    Size { cpus: 8, memory: 16, disk: 150 },
    Size { cpus: 16, memory: 32, disk: 250 },
    Size { cpus: 24, memory: 64, disk: 400 },
    Size { cpus: 32, memory: 128, disk: 600 },
    Size { cpus: 48, memory: 192, disk: 960 },
];

/// Previews that the table is about.
pub const TABLE: [u64; 3] = [3, 6, 10];

/// What a VM has of something. Processors are counted in thousandths, memory and disk in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Processors.
    Cpus,
    /// Memory.
    Memory,
    /// Disk.
    Disk,
    /// Networks that Docker's address pools have room for.
    Networks,
    /// Places: `[limits] max_previews`.
    Places,
}

/// Where what a preview takes is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The Compose files say it for every service.
    Declared,
    /// The Compose files say it for some services, the guardrails for the others.
    DeclaredAndGuardrails,
    /// The Compose files say nothing, and the guardrails hold the preview to less than the formula.
    Guardrails,
    /// Nobody says anything: the formula of one product's measured previews.
    Formula,
    /// The configuration.
    Configuration,
    /// The networks of the Compose files.
    Networks,
}

/// How much of a resource each preview takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Of a preview.
    pub each: u64,
    /// What the VM keeps for itself.
    pub base: u64,
    /// Where `each` is from.
    pub source: Source,
}

/// What the configuration says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Percent of its processors that a VM may promise as limits: limits of processors are for peaks, which seldom come together.
    pub cpu_overcommit: u32,
    /// Percent of its memory that a VM may promise: `[limits] memory_overcommit`.
    pub memory_overcommit: u32,
    /// Memory that stays free, bytes: `[limits] min_free_memory`.
    pub free_memory: u64,
    /// Disk that stays free, bytes: `[limits] min_free_disk`.
    pub free_disk: u64,
}

/// Twice the processors, all of the memory, and the floors that limits have by default.
impl Default for Terms {
    fn default() -> Self {
        Self { cpu_overcommit: 200, memory_overcommit: 100, free_memory: GB, free_disk: 5 * GB }
    }
}

/// What a preview takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// Processors, thousandths.
    pub cpus: Amount,
    /// Memory, bytes.
    pub memory: Amount,
    /// Disk, bytes. No Compose file can say it.
    pub disk: Amount,
    /// Networks.
    pub networks: u64,
}

impl Need {
    /// Of a preview of which nothing is known.
    #[must_use]
    pub fn formula() -> Self {
        let [cpus, memory, disk] = FORMULA.map(|(_, base, each)| Amount { each, base, source: Source::Formula });
        Self { cpus, memory, disk, networks: 1 }
    }

    /// Of a preview whose services take these shares.
    #[must_use]
    pub fn of(shares: &[Share], networks: u64, terms: &Terms) -> Self {
        let formula = Self::formula();
        let sum = |each: &dyn Fn(&Share) -> u64| {
            shares
                .iter()
                .fold(0_u64, |sum, share| sum.saturating_add(each(share).saturating_mul(share.replicas as u64)))
        };
        let cpus = sum(&|share| match share.cpus_said {
            Said::Reserved => share.cpus,
            Said::Limited | Said::Guardrail | Said::Service => {
                (share.cpus * 100).div_ceil(u64::from(terms.cpu_overcommit.max(1)))
            }
        });
        let memory = sum(&|share| share.memory);
        Self {
            cpus: amount(shares.iter().map(|share| share.cpus_said), cpus, 0, formula.cpus),
            memory: amount(shares.iter().map(|share| share.memory_said), memory, terms.free_memory, formula.memory),
            disk: formula.disk,
            networks,
        }
    }
}

fn amount(said: impl Iterator<Item = Said>, each: u64, base: u64, formula: Amount) -> Amount {
    let (rails, own): (Vec<Said>, Vec<Said>) = said.partition(|said| *said == Said::Guardrail);
    let source = match (own.is_empty(), rails.is_empty()) {
        (true, _) if each == 0 || each >= formula.each => return formula,
        (true, _) => Source::Guardrails,
        (false, true) => Source::Declared,
        (false, false) => Source::DeclaredAndGuardrails,
    };
    Amount { each, base, source }
}

/// What a VM has. What is not known is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vm {
    /// Processors, thousandths.
    pub cpus: Option<u64>,
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// Disk, bytes.
    pub disk: Option<Disk>,
    /// Networks that Docker can still make.
    pub networks: Option<u64>,
    /// Places, in previews of this weight.
    pub places: Option<u64>,
    /// Previews that are there already.
    pub previews: u64,
}

/// A disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Of a VM that is to be: its size.
    Size(u64),
    /// Of a VM that is: what is free now.
    Free(u64),
}

/// What one resource allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Allowance {
    /// The resource.
    pub resource: Resource,
    /// So many previews.
    pub previews: u64,
    /// What the VM has; of disk and networks of a VM that is, what is left.
    pub has: u64,
    /// What the VM keeps for itself.
    pub base: u64,
    /// What a preview takes.
    pub each: u64,
    /// Where that is from.
    pub source: Source,
}

/// How many previews fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// In all, those that are there included. `None`: nothing is known of the VM.
    pub previews: Option<u64>,
    /// What there is too little of for one more.
    pub binds: Option<Resource>,
    /// There already.
    pub running: u64,
    /// What each resource allows.
    pub resources: Vec<Allowance>,
}

/// How many previews that need this fit on this VM.
#[must_use]
pub fn fits(need: &Need, vm: &Vm, terms: &Terms) -> Fit {
    let mut resources = Vec::new();
    let mut add = |resource, has: Option<u64>, promised: u64, there: u64, amount: Amount| {
        let Some(has) = has else { return };
        let previews = there.saturating_add(promised.saturating_sub(amount.base) / amount.each.max(1));
        resources.push(Allowance {
            resource,
            previews,
            has,
            base: amount.base,
            each: amount.each,
            source: amount.source,
        });
    };
    add(Resource::Cpus, vm.cpus, vm.cpus.unwrap_or(0), 0, need.cpus);
    add(Resource::Memory, vm.memory, percent(vm.memory.unwrap_or(0), terms.memory_overcommit), 0, need.memory);
    match vm.disk {
        Some(Disk::Size(size)) => add(Resource::Disk, Some(size), size, 0, need.disk),
        Some(Disk::Free(free)) => {
            let amount = Amount { base: terms.free_disk, ..need.disk };
            add(Resource::Disk, Some(free), free, vm.previews, amount);
        }
        None => {}
    }
    let networks = Amount { each: need.networks, base: 0, source: Source::Networks };
    add(Resource::Networks, vm.networks, vm.networks.unwrap_or(0), vm.previews, networks);
    let place = Amount { each: 1, base: 0, source: Source::Configuration };
    add(Resource::Places, vm.places, vm.places.unwrap_or(0), 0, place);
    let least = resources.iter().min_by_key(|allowance| allowance.previews);
    Fit {
        previews: least.map(|allowance| allowance.previews),
        binds: least.map(|allowance| allowance.resource),
        running: vm.previews,
        resources,
    }
}

/// A size of VM that providers sell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    /// vCPUs.
    pub cpus: u64,
    /// RAM, GB.
    pub memory: u64,
    /// Disk, GB.
    pub disk: u64,
}

impl Size {
    /// A VM of this size.
    #[must_use]
    pub fn vm(self) -> Vm {
        Vm {
            cpus: Some(self.cpus * 1000),
            memory: Some(self.memory * GB),
            disk: Some(Disk::Size(self.disk * GB)),
            ..Vm::default()
        }
    }
}

/// The VM that so many previews need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// Previews.
    pub previews: u64,
    /// Processors, thousandths.
    pub cpus: u64,
    /// Memory, bytes.
    pub memory: u64,
    /// Disk, bytes.
    pub disk: u64,
    /// Networks.
    pub networks: u64,
    /// The smallest of [`SIZES`] that has all of that; `None`: none has, so it takes more than one VM.
    pub size: Option<Size>,
}

/// The VM that so many previews need.
#[must_use]
pub fn vm_for(need: &Need, previews: u64, terms: &Terms) -> Wanted {
    let of = |amount: Amount| amount.base.saturating_add(amount.each.saturating_mul(previews));
    let memory = u128::from(of(need.memory)) * 100;
    let memory = memory.div_ceil(u128::from(terms.memory_overcommit.max(1)));
    let (cpus, memory, disk) = (of(need.cpus), u64::try_from(memory).unwrap_or(u64::MAX), of(need.disk));
    let size =
        SIZES.into_iter().find(|size| size.cpus * 1000 >= cpus && size.memory * GB >= memory && size.disk * GB >= disk);
    Wanted { previews, cpus, memory, disk, networks: need.networks.saturating_mul(previews), size }
}

fn percent(of: u64, percent: u32) -> u64 {
    u64::try_from(u128::from(of) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}
