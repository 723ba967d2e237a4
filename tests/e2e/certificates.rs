//! `vm setup` refuses a certificate that cannot serve, and a DNS provider that Traefik does not know, before it connects to anything.

use std::path::Path;
use std::process::{Command, Stdio};

use preview_tests::{Ran, preview_binary};

const MADE: &str = include_str!("../../crates/preview-core/src/setup/tests/certificates.sh");

fn set_up(directory: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(preview_binary());
    // Nobody listens on port 1: a connection would end with exit code 6.
    command.args(["vm", "setup", "--host", "ssh://root@127.0.0.1:1", "--deploy-key", "deploy.pub"]).args(args);
    command
        .current_dir(directory)
        .env_clear()
        .stdin(Stdio::null())
        .env("PREVIEW_KNOWN_HOSTS", "127.0.0.1 ssh-ed25519 AAAA");
    for name in ["PATH", "HOME", "TMPDIR"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.env("TOKEN", "token-4711").output().expect("the command starts").into()
}

#[test]
fn what_cannot_serve_is_refused_before_anything_is_changed() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = Command::new("sh").args(["-c", MADE]).current_dir(directory.path()).output().expect("sh runs");
    assert!(made.status.success(), "openssl is needed: {}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(
        directory.path().join("deploy.pub"),
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0xX2l3bWZ0aGVrZXlvZmF0ZXN0MTIzNDU2Nzg5 ci\n",
    )
    .expect("a file");
    let given = |cert: &str, key: &str, more: &[&str]| {
        let files = [format!("{cert}.pem"), format!("{key}.key")];
        let args = [&["--cert", &files[0], "--key", &files[1]], more].concat();
        set_up(directory.path(), &args)
    };
    let domain = ["--domain", "preview.test"];
    for (cert, key, words) in [
        ("good", "other", "--key is the key of another certificate than --cert"),
        ("elsewhere", "good", "--cert is not for pr-1.preview.test"),
        ("itself", "good", "--cert is signed by itself"),
        ("itself-ca", "good", "signs itself"),
        ("expired", "good", "--cert expired on"),
        ("early", "good", "--cert is not valid yet"),
    ] {
        let ran = given(cert, key, &domain).expect(2);
        assert!(ran.err.contains(words), "{words}: {}", ran.err);
    }
    // Without `--domain`, the addresses of the configuration say which hosts there will be.
    std::fs::write(
        directory.path().join("preview.toml"),
        "url = \"https://{name}.preview.test\"\n[proxy]\nkind = \"traefik\"\n",
    )
    .expect("a file");
    assert!(given("elsewhere", "good", &[]).expect(2).err.contains("--cert is not for pr-1.preview.test"));
    // One of a private authority can serve; then the machine is asked, and does not answer.
    let ran = given("good", "good", &domain).expect(6);
    assert!(ran.err.contains("nobody that this machine trusts vouches for it"), "{}", ran.err);

    let acme = |provider: &str| {
        let args =
            ["--domain", "preview.test", "--acme-email", "ops@preview.test", "--acme-env", "TOKEN", "--acme-dns"];
        set_up(directory.path(), &[&args[..], &[provider]].concat())
    };
    let ran = acme("cloudfare").expect(2);
    assert!(ran.err.contains("no DNS provider `cloudfare`; did you mean `cloudflare`?"), "{}", ran.err);
    assert!(!ran.err.contains("token-4711"), "{}", ran.err);
    acme("cloudflare").expect(6);
}
