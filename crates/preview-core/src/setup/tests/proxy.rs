//! The proxy's stack: its files, and what stays of an earlier one.

use std::io::Read as _;

use base64::Engine as _;

use super::super::print;
use super::super::proxy::{Present, ProxyWish, Tls, Tunnel, proxy_files, step};
use super::*;

#[test]
fn the_proxys_files() {
    let text: String = proxy_files(&ordering(), None)
        .iter()
        .map(|file| {
            let content = if file.secret { "(secret)\n" } else { file.content.expose() };
            format!("=== {} {:o}\n{content}", file.path, file.mode)
        })
        .collect();
    insta::assert_snapshot!(text);
}

#[test]
fn a_container_is_made_anew_when_what_it_reads_at_its_start_changes() {
    let hash = |wish: &ProxyWish| step(wish, &Facts::default()).expect("sound").arguments;
    let before = hash(&ordering());
    let mut other = ordering();
    other.tunnel = Tunnel::Here(secret("another"));
    let changed: Vec<bool> = hash(&other).iter().zip(&before).map(|(a, b)| a != b).collect();
    assert_eq!(changed, [false, false, false, false, false, true, false], "cloudflared alone");
    let mut other = ordering();
    other.image = "traefik:v3.8".to_owned();
    let changed: Vec<bool> = hash(&other).iter().zip(&before).map(|(a, b)| a != b).collect();
    assert_eq!(changed, [false, false, false, true, false, false, false], "Traefik alone");
    // Traefik watches these.
    let mut other = ordering();
    other.domain = Some("other.example.com".to_owned());
    assert_eq!(hash(&other), before);
}

fn given() -> ProxyWish {
    let tls = Tls::Files {
        certificate: "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n".to_owned(),
        key: secret("-----BEGIN PRIVATE KEY-----\nkey-1234\n-----END PRIVATE KEY-----\n"),
    };
    ProxyWish { tls, ..ProxyWish::default() }
}

/// A machine on which this was carried out.
fn machine(wish: &ProxyWish) -> Facts {
    let mut proxy = Present::default();
    for file in step(wish, &Facts::default()).expect("sound").files {
        let Some(name) = file.path.strip_prefix("/opt/preview-proxy/") else { continue };
        match name {
            "traefik.yml" => proxy.traefik = file.content.expose().clone(),
            "dynamic/tls.yml" => proxy.tls = file.content.expose().clone(),
            name if name == "acme.env" || name.starts_with("certs/") => {
                proxy.files.insert(name.to_owned(), file.hash());
            }
            _ => {}
        }
    }
    Facts { system: "debian 12".to_owned(), proxy, ..Facts::default() }
}

#[test]
fn a_certificate_stays_where_nobody_asks_for_another() {
    let mut private = acme();
    private.authority = Some("-----BEGIN CERTIFICATE-----\nca\n-----END CERTIFICATE-----".to_owned());
    let ordering = ProxyWish { tunnel: Tunnel::Keep, ..ordering() };
    let own = ProxyWish { tls: Tls::Acme(private), ..ordering.clone() };
    for (wish, said) in [
        (&given(), "keeping the certificate that was given before"),
        (&ordering, "keeping the wildcard certificate of its own"),
        (&own, "keeping the wildcard certificate of its own"),
    ] {
        let (facts, before) = (machine(wish), step(wish, &Facts::default()).expect("sound"));
        for domain in [None, wish.domain.clone()] {
            let again = ProxyWish { tls: Tls::Keep, domain, ..wish.clone() };
            let after = step(&again, &facts).expect("it is all there");
            assert_eq!(after.arguments, before.arguments, "no container is made anew, no file goes");
            assert!(after.title.contains(said), "{}", after.title);
            // What is written is what is there, and what is a secret is not known.
            assert!(after.files.iter().all(|file| !file.secret && before.files.contains(file)), "{after:?}");
            assert!(after.files.iter().any(|file| file.path.ends_with("dynamic/tls.yml")));
        }
    }
    // On purpose, another one.
    let back = step(&ProxyWish { tls: Tls::SelfSigned, ..given() }, &machine(&given())).expect("sound");
    let new = step(&ProxyWish { tls: Tls::SelfSigned, ..given() }, &Facts::default()).expect("sound");
    assert_eq!((&back.arguments, &back.files), (&new.arguments, &new.files));
    assert!(back.arguments.contains(&"only /opt/preview-proxy/certs".to_owned()), "{:?}", back.arguments);
    assert!(back.title.contains("nobody trusts"));
}

#[test]
fn half_a_certificate_is_neither_kept_nor_given_up() {
    type Spoil = fn(&mut Present);
    let again = ProxyWish { tls: Tls::Keep, ..ProxyWish::default() };
    let cases: [(ProxyWish, Spoil, &str); 5] = [
        (given(), |there| there.files.retain(|name, _| !name.ends_with(".key")), ".key is missing"),
        (given(), |there| there.tls.clear(), "dynamic/tls.yml"),
        (ordering(), |there| there.files.clear(), "/opt/preview-proxy/acme.env is missing"),
        (ordering(), |there| there.traefik.clear(), "traefik.yml"),
        (ordering(), |there| there.tls.truncate(60), "dynamic/tls.yml"),
    ];
    for (wish, spoil, said) in cases {
        let mut facts = machine(&wish);
        assert!(step(&again, &facts).is_ok());
        spoil(&mut facts.proxy);
        let wrong = step(&again, &facts).expect_err(said);
        assert!(wrong.contains(said) && wrong.contains("--self-signed"), "{wrong}");
        step(&wish, &facts).expect("who says it all needs nothing of before");
    }
    let other = ProxyWish { domain: Some("other.example.com".to_owned()), ..again };
    assert!(
        step(&other, &machine(&ordering())).expect_err("another").contains("another domain than other.example.com")
    );
    step(&other, &machine(&given())).expect("whatever a certificate that was given is for");
}

#[test]
fn user_data_with_the_proxy_fits_where_a_provider_takes_it() {
    let mut all = wish();
    all.proxy = Some(ProxyWish::default());
    all.security_updates = true;
    let key = print::HostKey { private: secret(&"x".repeat(500)), public: KEY.to_owned() };
    let made = |wish: &Wish| print::cloud_init(wish, &Options::default(), Some(&key)).expect("no secret");
    let data = made(&all);
    assert_eq!(print::too_large(&data), None, "{} bytes", data.len());
    let script = print::script(&all, &Options::default()).expect("no secret");
    // It is packed whole.
    let (_, packed) = data.split_once("encoding: gz+b64\n  content: ").expect("packed");
    let packed =
        base64::engine::general_purpose::STANDARD.decode(packed.lines().next().expect("a line")).expect("base64");
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut unpacked).expect("gzip");
    assert_eq!(unpacked, script);
    // Where there is room, comments of scripts are left out, and nothing of files.
    let small = print::cloud_init(&all, &Options { only: vec!["proxy".to_owned()], ..Options::default() }, None)
        .expect("no secret");
    assert!(script.contains("# Only what this step made") && !small.contains("# Only what this step made"));
    assert!(small.contains("   # Read by Traefik whenever it changes."));
    let key = |number: u32| format!("ssh-ed25519 {}", crate::setup::sha256(&number.to_string()));
    all.deploy_keys = (0..1000).map(key).collect();
    let wrong = print::too_large(&made(&all)).expect("too large");
    assert!(wrong.contains("bytes, and a provider takes 32768") && wrong.contains("--skip proxy"), "{wrong}");
}

#[test]
fn a_printed_script_leaves_a_certificate_alone_that_it_knows_nothing_of() {
    let directory = tempfile::tempdir().expect("a directory");
    let print = |tls: &str| {
        std::fs::write(directory.path().join("tls.yml"), tls).expect("a file");
        let mut step = step(&ProxyWish::default(), &Facts::default()).expect("sound");
        assert!(step.arguments[0].starts_with("unknown "), "{:?}", step.arguments);
        step.arguments = vec!["unknown tls.yml".to_owned()];
        step.files.clear();
        with_programs(directory.path(), &[("docker", "exit 0")], &format!("({})", script::check(&step)))
    };
    assert_eq!(print("tls:\n  options: {}\n"), (true, String::new()));
    let (well, said) = print("tls:\n  stores:\n    default: {}\n");
    assert!(!well && said.contains("knows nothing of"), "{said}");
}
