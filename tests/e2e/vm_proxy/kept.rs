//! What an earlier `vm setup` put there: a certificate stays, a secret that nothing uses goes, a tunnel stays until it is told to go.

use std::process::{Command, Stdio};

use preview_tests::{Ran, Vm, eventually};

use crate::vm_setup::{command, shell};

/// With the certificate of before: `given` runs the command with it once more. Leaves that certificate.
pub(super) fn kept(vm: &Vm, images: &[String], given: &dyn Fn(&[&str]) -> Ran, trusted: &dyn Fn() -> bool) {
    let bare = |args: &[&str]| -> Command {
        let mut command = command(vm, &["--only", "proxy"]);
        for image in images {
            command.args(["--image", image]);
        }
        command.args(args).env("CF_DNS_API_TOKEN", "token-4711").env("TUNNEL", "tunnel-4711");
        command
    };
    let run = |args: &[&str]| -> Ran {
        let ran: Ran = bare(args).output().expect("the command starts").into();
        assert!(!ran.out.contains("-4711") && !ran.err.contains("-4711"), "{ran:?}");
        ran
    };
    let nothing_to_do = |args: &[&str], said: &str| {
        let containers = || {
            shell(
                vm,
                "docker ps -q --no-trunc; find /opt/preview-proxy -path '*/acme' -prune -o -printf '%p %m %T@\\n'",
            )
        };
        let before = containers();
        let ran = run(args).expect(0);
        assert!(ran.out.contains(said) && ran.out.ends_with("nothing to do\n"), "{}", ran.out);
        assert_eq!(containers(), before);
    };
    let there = |path: &str| vm.exec(&["test", "-e", path]).is_ok_and(|test| test.status.success());
    let printed = || {
        let script = run(&["--print", "script"]).expect(0).out;
        let mut child = vm.command_with_input(&["sh"]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sh");
        std::io::Write::write_all(&mut child.stdin.take().expect("an input"), script.as_bytes()).expect("handed over");
        Ran::from(child.wait_with_output().expect("an end")).expect(0).out
    };
    let acme_env = "/opt/preview-proxy/acme.env";

    // Files that were given: they stay, and a script that knows nothing of them leaves them alone.
    nothing_to_do(&[], "keeping the certificate that was given before");
    assert!(printed().contains("proxy: left out: the proxy has a certificate by now"));
    assert!(trusted());

    // One that is ordered: nobody answers there, but how to order is kept.
    let order = ["--domain", "preview.example.com", "--acme-email", "ops@example.com", "--acme-dns", "cloudflare"];
    let order = [&order[..], &["--acme-env", "CF_DNS_API_TOKEN", "--acme-server", "https://127.0.0.1:9/dir"]].concat();
    run(&order).expect(0);
    assert_eq!(
        shell(vm, &format!("cat {acme_env}; stat -c '%a %U' {acme_env}")),
        "CF_DNS_API_TOKEN=token-4711\n600 root"
    );
    assert_eq!(shell(vm, "ls /opt/preview-proxy/certs"), "", "the key of before is gone");
    nothing_to_do(&[], "keeping the wildcard certificate of its own");
    assert!(
        run(&["--domain", "other.example.com"]).expect(2).err.contains("for another domain than other.example.com")
    );
    // Half of it: nothing is guessed, and other steps are not held up.
    shell(vm, &format!("mv {acme_env} /root/acme.env"));
    let ran = run(&[]).expect(2);
    assert!(ran.err.contains("acme.env is missing") && ran.err.contains("--self-signed"), "{}", ran.err);
    let other: Ran = command(vm, &["--only", "directories"]).output().expect("the command starts").into();
    other.expect(0);
    shell(vm, &format!("mv /root/acme.env {acme_env}"));
    nothing_to_do(&[], "keeping the wildcard certificate of its own");

    // Files again: the token is nobody's any more.
    let ran = given(&["--dry-run"]).expect(0);
    assert!(ran.out.contains(&format!("{acme_env} is there, and nothing uses it")), "{}", ran.out);
    assert!(there(acme_env));
    given(&[]).expect(0);
    assert!(!there(acme_env));
    assert!(!shell(vm, "docker inspect preview-traefik; grep -r -e -4711 /opt/preview-proxy || :").contains("-4711"));
    eventually("the certificate that was given", trusted);
    nothing_to_do(&[], "keeping the certificate that was given before");

    // A tunnel, whose program only has to stay up here.
    shell(
        vm,
        "docker create --name tunnel-program busybox:1.36 && docker commit -c 'ENTRYPOINT [\"sh\", \"-c\", \"exec sleep 100000\"]' tunnel-program tunnel-program && docker rm tunnel-program",
    );
    let tunnel = ["--tunnel-token-env", "TUNNEL", "--image", "cloudflared=tunnel-program"];
    run(&tunnel).expect(0);
    nothing_to_do(&tunnel, "keeping the certificate that was given before, and cloudflared");
    nothing_to_do(
        &[],
        "the container preview-cloudflared is of an earlier run and stays as it is; --no-tunnel removes it",
    );
    let ran = run(&["--no-tunnel", "--dry-run"]).expect(0);
    assert!(ran.out.contains("the container preview-cloudflared is still there"), "{}", ran.out);
    run(&["--no-tunnel"]).expect(0);
    let left = "docker ps -aq --filter name=preview-cloudflared; ls -R /opt/preview-proxy | grep -e tunnel -e cloudflared || :";
    assert_eq!(shell(vm, left), "");
    nothing_to_do(&["--no-tunnel"], "and no cloudflared");
    // Whoever removed it by hand left its token.
    run(&tunnel).expect(0);
    shell(vm, "docker rm -f preview-cloudflared");
    run(&[]).expect(0);
    assert!(!there("/opt/preview-proxy/tunnel.env"));
    run(&["--no-tunnel"]).expect(0);
    // A container of that name that is somebody's own is not ours to remove.
    shell(vm, "docker run -d --name preview-cloudflared busybox:1.36 sleep 1000");
    let ran = run(&["--no-tunnel"]).expect(4);
    assert!(ran.out.contains("a container preview-cloudflared is there that this command did not make"), "{}", ran.out);
    shell(vm, "docker rm -f preview-cloudflared");

    // Back to none, on purpose; which the printed script has too.
    run(&["--self-signed"]).expect(0);
    eventually("nobody trusts it", || !trusted());
    assert_eq!(shell(vm, "ls /opt/preview-proxy/certs"), "");
    nothing_to_do(&[], "with a certificate that nobody trusts");
    assert!(printed().contains("proxy: as wanted\n"));
    given(&[]).expect(0);
    eventually("the certificate that was given", trusted);
}
