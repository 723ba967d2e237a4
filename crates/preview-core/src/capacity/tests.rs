//! The tables of the requirements, exactly; and that more never fits less.

use proptest::prelude::*;

use super::*;

fn share(cpus: u64, cpus_said: Said, memory: u64, memory_said: Said) -> Share {
    Share { service: "s".into(), replicas: 1, cpus, cpus_said, memory: memory << 20, memory_said }
}

#[test]
fn the_formulas_and_the_sizes_for_three_six_and_ten_previews() {
    let rows = TABLE.map(|previews| {
        let wanted = vm_for(&Need::formula(), previews, &Terms::default());
        let size = wanted.size.expect("there is such a VM");
        (previews, wanted.cpus, wanted.memory * 10 / GB, wanted.disk / GB, (size.cpus, size.memory, size.disk))
    });
    assert_eq!(
        rows,
        [
            (3, 6500, 135, 144, (8, 16, 150)),
            (6, 11_000, 210, 168, (16, 32, 250)),
            (10, 17_000, 310, 200, (24, 64, 400))
        ]
    );
}

#[test]
fn how_many_fit_on_which_vm() {
    let fit = |size: Size| {
        let fit = fits(&Need::formula(), &size.vm(), &Terms::default());
        (size.cpus, fit.previews.expect("known"), fit.binds.expect("something binds"))
    };
    assert_eq!(
        SIZES.map(fit),
        [
            (2, 0, Resource::Cpus),
            (4, 0, Resource::Memory),
            (8, 3, Resource::Disk),
            (16, 9, Resource::Cpus),
            (24, 14, Resource::Cpus),
            (32, 20, Resource::Cpus),
            (48, 30, Resource::Cpus),
        ]
    );
}

#[test]
fn what_is_declared_counts_and_what_is_not_comes_from_the_formula_or_the_guardrails() {
    let terms = Terms::default();
    let declared = [share(500, Said::Limited, 256, Said::Limited), share(250, Said::Reserved, 256, Said::Limited)];
    let need = Need::of(&declared, 2, &terms);
    assert_eq!(
        (need.cpus.each, need.cpus.source),
        (500, Source::Declared),
        "half of the limit, all of what is reserved"
    );
    assert_eq!((need.memory.each, need.memory.base, need.memory.source), (512 << 20, GB, Source::Declared));
    let some = [declared[0].clone(), share(1000, Said::Guardrail, 512, Said::Guardrail)];
    assert_eq!(Need::of(&some, 1, &terms).memory.source, Source::DeclaredAndGuardrails);
    // One small container cannot take what the formula expects of a preview; eight could, and will not.
    let one = vec![share(1000, Said::Guardrail, 512, Said::Guardrail); 1];
    let need = Need::of(&one, 1, &terms);
    assert_eq!((need.cpus.each, need.cpus.source), (500, Source::Guardrails));
    assert_eq!((need.memory.each, need.memory.source), (512 << 20, Source::Guardrails));
    let eight = vec![share(1000, Said::Guardrail, 512, Said::Guardrail); 8];
    let need = Need::of(&eight, 1, &terms);
    assert_eq!((need.cpus, need.memory), (Need::formula().cpus, Need::formula().memory));
    assert_eq!(Need::of(&[], 1, &terms), Need::formula());
}

#[test]
fn a_vm_that_is_there_counts_what_it_has_left() {
    let terms = Terms { memory_overcommit: 200, ..Terms::default() };
    let need = Need::of(&[share(1000, Said::Limited, 1024, Said::Limited)], 2, &terms);
    let vm = Vm {
        cpus: Some(4000),
        memory: Some(4 * GB),
        disk: Some(Disk::Free(30 * GB)),
        networks: Some(5),
        places: Some(6),
        previews: 2,
    };
    let fit = fits(&need, &vm, &terms);
    let allowed: Vec<_> = fit.resources.iter().map(|row| (row.resource, row.previews)).collect();
    assert_eq!(
        allowed,
        [
            (Resource::Cpus, 8),
            (Resource::Memory, 7),
            (Resource::Disk, 5),
            (Resource::Networks, 4),
            (Resource::Places, 6)
        ]
    );
    assert_eq!((fit.previews, fit.binds, fit.running), (Some(4), Some(Resource::Networks), 2));
    assert_eq!(fits(&need, &Vm::default(), &terms).previews, None);
}

#[test]
fn the_words_say_what_binds_and_where_each_number_is_from() {
    let terms = Terms::default();
    let need = Need::formula();
    let told = fit(&fits(&need, &SIZES[2].vm(), &terms));
    assert!(told.starts_with("3 previews fit; disk binds first\n"), "{told}");
    for row in ["processors", "8", "1.5", "formula", "150.0 GB", "8.0 GB"] {
        assert!(told.contains(row), "{row}: {told}");
    }
    let told = wanted(&vm_for(&need, 6, &terms), &need);
    assert!(told.contains("6 previews need 11 vCPU, 21.0 GB of memory and 168.0 GB of disk"), "{told}");
    assert!(told.contains("16 vCPU, 32 GB, 250 GB"), "{told}");
    assert!(wanted(&vm_for(&need, 500, &terms), &need).contains("more than one VM"));
    insta::assert_snapshot!(table());
}

#[test]
fn the_tables_in_the_documentation_are_what_the_code_says() {
    let page = include_str!("../../../../docs/capacity.md");
    let plain = |cell: &str| cell.trim().replace(" disk", "");
    let table = table();
    let rows = table.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit()));
    let mut number = 0;
    for row in rows {
        let cells: Vec<String> = row.split("  ").filter(|cell| !cell.trim().is_empty()).map(plain).collect();
        let row = format!("| {} |", cells.join(" | "));
        assert!(page.contains(&row), "docs/capacity.md has no {row}");
        number += 1;
    }
    assert_eq!(number, TABLE.len() + SIZES.len());
}

fn needs() -> impl Strategy<Value = Need> {
    let said = prop_oneof![Just(Said::Reserved), Just(Said::Limited), Just(Said::Guardrail)];
    let share = (0_u64..4000, said.clone(), 0_u64..4096, said).prop_map(|(c, a, m, b)| share(c, a, m, b));
    (prop::collection::vec(share, 0..6), 1_u64..4).prop_map(|(all, n)| Need::of(&all, n, &Terms::default()))
}

proptest! {
    #[test]
    fn more_of_anything_never_fits_fewer(
        need in needs(), cpus in 0_u64..100_000, memory in 0_u64..500, disk in 0_u64..2000, networks in 0_u64..100,
        more in 0_u64..1000, which in 0_u8..5,
    ) {
        let terms = Terms::default();
        let vm = |cpus, memory, disk, networks, places| Vm {
            cpus: Some(cpus), memory: Some(memory * GB), disk: Some(Disk::Free(disk * GB)), networks: Some(networks),
            places: Some(places), previews: 1,
        };
        let plus = |index| if which == index { more } else { 0 };
        let less = fits(&need, &vm(cpus, memory, disk, networks, 10), &terms);
        let most = fits(
            &need,
            &vm(cpus + plus(0), memory + plus(1), disk + plus(2), networks + plus(3), 10 + plus(4)),
            &terms,
        );
        prop_assert!(most.previews >= less.previews);
    }

    #[test]
    fn the_vm_that_is_asked_for_holds_what_it_was_asked_for(need in needs(), previews in 0_u64..200) {
        let terms = Terms { memory_overcommit: 150, ..Terms::default() };
        let wanted = vm_for(&need, previews, &terms);
        let vm = Vm { cpus: Some(wanted.cpus), memory: Some(wanted.memory), disk: Some(Disk::Size(wanted.disk)), ..Vm::default() };
        prop_assert!(fits(&need, &vm, &terms).previews >= Some(previews));
        if let Some(size) = wanted.size {
            prop_assert!(fits(&need, &size.vm(), &terms).previews >= Some(previews));
        }
    }
}
