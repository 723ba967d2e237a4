//! What a wish becomes, for a machine with certain facts; and the alerts, run for real.

mod alerts;
mod proxy;
mod scripts;

use std::collections::BTreeMap;

use super::proxy::{Acme, ProxyWish, Tls, Tunnel};
use super::script::{Finding, Verdict};
use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0xX2l3bWZ0aGVrZXlvZmF0ZXN0MTIzNDU2Nzg5 ci@example";

fn wish() -> Wish {
    Wish { deploy_keys: vec![KEY.to_owned()], ..Wish::default() }
}

fn secret(text: &str) -> Secret<String> {
    Secret::new(text.to_owned())
}

fn ids(wish: &Wish) -> Vec<&'static str> {
    steps(wish, &Facts::default()).expect("sound").iter().map(|step| step.id).collect()
}

#[test]
fn the_steps_come_in_the_order_of_their_names() {
    let mut all = wish();
    all.alerts.webhook = Some(secret("https://chat.example/hook"));
    all.security_updates = true;
    all.proxy = Some(ordering());
    assert_eq!(ids(&all), IDS);
    all.proxy = Some(ProxyWish::default());
    assert_eq!(ids(&all), IDS[..11], "without an order there is no certificate to wait for");
    assert_eq!(ids(&wish()), IDS[..8]);
}

#[test]
fn what_users_say_is_an_argument_or_a_file_and_never_script() {
    let mut evil = wish();
    evil.base_dir = "/opt/$(touch /tmp/pwned)'; rm -rf /'".to_owned();
    let all = steps(&evil, &Facts::default()).expect("a strange path is a path");
    let directories = all.iter().find(|step| step.id == "directories").expect("there");
    let text = script::mend(directories);
    assert!(text.contains(r"set -- deploy '/opt/$(touch /tmp/pwned)'\''; rm -rf /'\''' /opt/preview-proxy"), "{text}");
    for step in &all {
        assert!(!step.script.contains("pwned"));
    }
}

#[test]
fn wishes_that_cannot_be() {
    type Spoil = fn(&mut Wish);
    let cases: [(Spoil, &str); 12] = [
        (|wish| wish.user = "root".into(), "no name for the deploy user"),
        (|wish| wish.user = "a b".into(), "no name for the deploy user"),
        (|wish| wish.deploy_keys = vec!["-----BEGIN OPENSSH PRIVATE KEY-----".into()], "private key"),
        (|wish| wish.deploy_keys = vec!["command=\"x\" ssh-ed25519 AAAA".into()], "not a public key"),
        (|wish| wish.deploy_keys = vec![format!("{KEY}\nssh-rsa {}", "A".repeat(50))], "not a public key"),
        (|wish| wish.base_dir = "previews".into(), "plain absolute path"),
        (|wish| wish.base_dir = "/opt/../etc".into(), "plain absolute path"),
        (|wish| wish.alerts.webhook = Some(secret("ftp://x")), "no http(s) address"),
        (|wish| wish.alerts.uptime = Some(secret("https://x\nwebhook=y")), "no http(s) address"),
        (|wish| proxy_of(wish).image = "--privileged".into(), "is no image"),
        (|wish| proxy_of(wish).domain = Some("*.example.com".into()), "is no domain"),
        (|wish| proxy_of(wish).tls = Tls::Acme(Acme { email: "me".into(), ..acme() }), "--domain"),
    ];
    for (spoil, said) in cases {
        let mut wrong = wish();
        spoil(&mut wrong);
        let error = steps(&wrong, &Facts::default()).expect_err(said);
        assert!(error.contains(said), "{said}: {error}");
    }
}

fn proxy_of(wish: &mut Wish) -> &mut ProxyWish {
    wish.proxy.get_or_insert_default()
}

fn acme() -> Acme {
    Acme {
        email: "ops@example.com".to_owned(),
        dns: "cloudflare".to_owned(),
        environment: BTreeMap::from([("CF_DNS_API_TOKEN".to_owned(), secret("cf-token-1234"))]),
        server: Some("https://acme.example/dir".to_owned()),
        authority: None,
        resolvers: vec!["192.0.2.53:53".to_owned()],
    }
}

fn ordering() -> ProxyWish {
    ProxyWish {
        domain: Some("preview.example.com".to_owned()),
        tls: Tls::Acme(acme()),
        tunnel: Tunnel::Here(secret("tunnel-token-1234")),
        ..ProxyWish::default()
    }
}

#[test]
fn a_deploy_users_key_goes_there_without_its_comment() {
    assert_eq!(wish::public_key(KEY).expect("a key"), KEY.rsplit_once(' ').expect("a comment").0);
}

#[test]
fn secrets_stand_in_files_for_root_alone_and_nowhere_else() {
    let mut all = wish();
    all.proxy = Some(ordering());
    all.alerts.webhook = Some(secret("https://chat.example/hook-1234"));
    let all = steps(&all, &Facts::default()).expect("sound");
    for hidden in ["cf-token-1234", "tunnel-token-1234", "hook-1234"] {
        let files: Vec<&File> =
            all.iter().flat_map(|step| &step.files).filter(|file| file.content.expose().contains(hidden)).collect();
        assert_eq!(files.len(), 1, "{hidden}");
        assert!(files[0].secret && files[0].mode == 0o600, "{hidden}");
        assert!(!format!("{all:?}").contains(hidden));
        assert!(!all.iter().any(|step| script::check(step).contains(hidden)), "a look needs no secret");
    }
}

#[test]
fn answers_of_checks_are_read() {
    let all = steps(&wish(), &Facts::default()).expect("sound");
    let meant: Vec<&Step> = all[..4].iter().collect();
    let said = "noise\n\n#M docker-config\n\n#M 0\n\n#M docker\nno engine\n\n#M 1\n\n#M user\nnot here\n#M 77\n#M directories\nsh: x: not found\n#M 127\n";
    let found = script::findings(said, &meant, "#M").expect("complete");
    let verdicts: Vec<Verdict> = found.iter().map(|finding| finding.verdict).collect();
    assert_eq!(verdicts, [Verdict::AsWanted, Verdict::Differs, Verdict::NotHere, Verdict::Broken]);
    assert_eq!(found[1], Finding { verdict: Verdict::Differs, lines: vec!["no engine".to_owned()] });
    assert_eq!(script::findings(&said[..40], &meant, "#M"), None);
}

#[test]
fn every_script_is_one_that_a_posix_shell_reads() {
    let mut all = wish();
    all.proxy = Some(ordering());
    all.security_updates = true;
    all.alerts.webhook = Some(secret("https://chat.example/hook"));
    let all = steps(&all, &Facts::default()).expect("sound");
    let mut texts: Vec<String> = all.iter().flat_map(|step| [script::apply(step, "#M"), script::undo(step)]).collect();
    texts.push(script::checks(&all.iter().collect::<Vec<_>>(), "#M"));
    for file in all.iter().flat_map(|step| &step.files) {
        texts.extend(Some(file.content.expose().clone()).filter(|text| text.starts_with("#!/bin/sh")));
    }
    assert!(texts.len() > 20);
    for text in texts {
        let mut shell = std::process::Command::new("sh");
        let mut shell = shell.arg("-n").stdin(std::process::Stdio::piped()).spawn().expect("sh starts");
        let mut input = shell.stdin.take().expect("an input");
        std::io::Write::write_all(&mut input, text.as_bytes()).expect("sh reads");
        drop(input);
        assert!(shell.wait().expect("an end").success(), "{text}");
    }
}

#[test]
fn no_set_of_the_firewall_holds_a_wildcard() {
    let rules = include_str!("files/firewall").lines().filter(|line| line.trim_start().starts_with("iifname"));
    assert!(rules.clone().count() > 3);
    assert_eq!(rules.filter(|rule| rule.contains('{')).count(), 0, "nftables 1.0.2 of Ubuntu 22.04 refuses it");
}

/// Runs a script after the prelude, in a directory where programs have these texts; whether it ended well, and what it said.
fn with_programs(directory: &std::path::Path, programs: &[(&str, &str)], text: &str) -> (bool, String) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join("bin");
    std::fs::create_dir_all(&path).expect("a directory");
    for (name, text) in programs {
        let file = path.join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).expect("a file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let text = format!("{}\nPATH={}:$PATH\ncd {}\n{text}", script::PRELUDE, path.display(), directory.display());
    let ran = std::process::Command::new("sh").args(["-c", &text]).output().expect("sh starts");
    (ran.status.success(), String::from_utf8_lossy(&ran.stdout).trim().to_owned())
}

/// What asking for the lists of packages ends with, if apt-get complains so many times.
fn lists_after(complaint: &str, times: u32) -> (bool, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let apt_get =
        format!("echo >>asked; [ \"$(wc -l <asked)\" -gt {times} ] || {{ echo '{complaint}' >&2; exit 100; }}");
    with_programs(directory.path(), &[("sleep", ""), ("apt-get", &apt_get)], "lists")
}

#[test]
fn the_lists_of_packages_are_waited_for_while_somebody_else_has_their_lock() {
    let locked = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)";
    assert_eq!(lists_after(locked, 3), (true, String::new()));
    assert_eq!(lists_after(locked, 100), (false, locked.to_owned()), "not for ever");
    let other = "E: Failed to fetch http://deb.example/InRelease";
    assert_eq!(lists_after(other, 1), (false, other.to_owned()), "nothing else is waited for");
    assert!(!include_str!("scripts/docker.sh").contains("apt-get"), "and everywhere");
}

#[test]
fn settings_that_the_engine_refuses_are_taken_back_if_they_are_ours() {
    // The engine answers, and is never up again after a restart.
    let programs = [("docker", "[ ! -e restarted ]"), ("systemctl", "touch restarted; exit 1"), ("sleep", "")];
    let apply = |before: Option<&str>, wanted: &str| {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("daemon.json");
        let stale = directory.path().join("daemon.json.before-preview");
        std::fs::write(&stale, "of an earlier run").expect("a file");
        if let Some(before) = before {
            std::fs::write(&file, before).expect("a file");
        }
        let text = format!(
            "{}\nset -eu\nset -- {} '{wanted}' local ''\napply \"$@\"",
            include_str!("scripts/docker-config.sh").replace("/etc/docker", "."),
            before.map_or_else(|| "absent".to_owned(), sha256)
        );
        let (well, said) = with_programs(directory.path(), &programs, &text);
        assert!(!well, "{said}");
        let left = std::fs::read_dir(directory.path()).expect("a directory").count();
        assert_eq!(left, 3 + usize::from(file.exists()), "no copy is left behind: bin, restarted, the stale one");
        (std::fs::read_to_string(&file).ok(), said)
    };
    let (file, said) = apply(Some("{}"), "{\"a\": 1}");
    assert!(file.as_deref() == Some("{}") && said.contains("the old ones are back"), "{file:?} {said}");
    let (file, said) = apply(None, "{\"a\": 1}");
    assert!(file.is_none() && said.contains("the old ones are back"), "{file:?} {said}");
    let (file, said) = apply(Some("{\"a\": 1}"), "{\"a\": 1}");
    assert!(
        file.as_deref() == Some("{\"a\": 1}") && said.contains("was as wanted before and stays"),
        "{file:?} {said}"
    );
}

#[test]
fn the_outcome_as_text() {
    let told = |id, state, details: &[&str]| Told {
        id,
        title: format!("what {id} is"),
        why: "because",
        state,
        details: details.iter().map(|line| (*line).to_owned()).collect(),
        seconds: None,
    };
    let host = || ("ssh://root@vm".to_owned(), "Debian".to_owned());
    let steps = vec![told("docker", State::Ok, &[]), told("user", State::Change, &["there is no user deploy"])];
    let plan = SetUp::new(host().0, host().1, true, steps);
    assert_eq!((plan.changed, plan.failed, plan.exit_code()), (false, false, 0));
    insta::assert_snapshot!("a_plan", text(&plan));
    let steps = vec![
        told("docker", State::Changed, &[]),
        told("user", State::Failed, &["useradd: no"]),
        told("swap", State::NotReached, &[]),
    ];
    let failed = SetUp::new(host().0, host().1, false, steps);
    assert_eq!((failed.changed, failed.failed, failed.exit_code()), (true, true, 4));
    insta::assert_snapshot!("a_failure", text(&failed));
}
