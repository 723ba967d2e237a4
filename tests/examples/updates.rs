//! `cargo xtask bench --only updates`: what a client sees while a preview is updated, behind each proxy; a table in Markdown on standard output.

use preview_tests::Where;
use preview_tests::lane::{Kind, Lane};
use preview_tests::load::{BUSY, update};

/// So many updates of what may lose something seldom; each takes half a minute.
const RUNS: usize = 3;

fn main() {
    println!("| proxy | update | updates | requests | failed | longest gap, ms | how |\n|---|---|---|---|---|---|---|");
    for (kind, name) in [(Kind::Traefik, "Traefik"), (Kind::Nginx, "nginx"), (Kind::Caddy, "Caddy")] {
        for way in ["rolling", "recreate"] {
            let runs = if way == "rolling" { RUNS } else { 1 };
            let seen: Vec<_> = (0..runs)
                .filter_map(|_| {
                    let lane = Lane::new(kind, Where::Local, BUSY)?;
                    let seen = update(&lane, way, 20);
                    lane.site.run(&["destroy", "--pr", "7"]).expect(0);
                    Some(seen)
                })
                .collect();
            if seen.is_empty() {
                continue;
            }
            let sum = |number: fn(&preview_tests::load::Seen) -> u32| seen.iter().map(number).sum::<u32>();
            let gaps: Vec<String> = seen.iter().map(|seen| seen.gap.to_string()).collect();
            let how: Vec<&str> = seen.iter().map(|seen| seen.how.as_str()).filter(|how| *how != "{}").collect();
            println!(
                "| {name} | {way} | {} | {} | {} | {} | {} |",
                seen.len(),
                sum(|seen| seen.asked),
                sum(|seen| seen.failed),
                gaps.join(", "),
                how.join(" ")
            );
        }
    }
}
