//! The way to the engine: contexts of the Docker CLI, rights on the VM, forwarding by its sshd, and private keys as people have them.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use preview_tests::{Site, VmOptions, Where};

use crate::stacks::{SMALL, alone};

/// `printf other | sha256sum`: so the Docker CLI calls the directory of a context.
const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

/// Makes the context lead there.
fn lead(site: &Site, to: &str) {
    let meta = format!(r#"{{"Name": "other", "Endpoints": {{"docker": {{"Host": "{to}"}}}}}}"#);
    site.write(&format!("docker/contexts/meta/{OTHER}/meta.json"), &meta);
}

#[test]
fn the_context_of_the_docker_cli_is_obeyed_or_refused() {
    let Some(mut site) = Site::new(Where::Local, SMALL) else { return };
    site.set("DOCKER_CONTEXT", "gone");
    let ran = site.run(&["list"]).expect(2);
    assert!(ran.err.contains("DOCKER_CONTEXT is `gone`") && ran.err.contains("DOCKER_CONTEXT=default"), "{}", ran.err);

    let config = site.dir.path().join("docker");
    site.set("DOCKER_CONFIG", config.to_str().expect("a path"));
    site.write("docker/config.json", r#"{"currentContext": "other"}"#);
    lead(&site, "unix:///nonexistent/other.sock");
    site.set("DOCKER_CONTEXT", "");
    let ran = site.run(&["list"]).expect(6);
    assert!(ran.err.contains("/nonexistent/other.sock"), "{}", ran.err);
    lead(&site, "ssh://deploy@vm");
    let ran = site.run(&["list"]).expect(2);
    assert!(ran.err.contains("ssh://deploy@vm") && ran.err.contains("[vm] host"), "{}", ran.err);
    lead(&site, "unix:///var/run/docker.sock");
    site.run(&["list"]).expect(0);
    site.set("DOCKER_CONTEXT", "default");
    site.run(&["list"]).expect(0);
}

#[test]
fn what_keeps_somebody_from_the_engine_is_named() {
    let Some(mut site) = alone(&VmOptions::default(), SMALL) else { return };
    let vm = site.vm().expect("a VM");
    let user = "useradd -m -s /bin/sh ada && install -d -m 700 -o ada /home/ada/.ssh && \
                install -m 600 -o ada /home/deploy/.ssh/authorized_keys /home/ada/.ssh/authorized_keys";
    vm.text(&["sh", "-c", user]).expect("a user");
    let (ada, deploy) = (vm.ssh_url_of("ada"), vm.ssh_url());
    site.set("PREVIEW_HOST", &ada);
    let ran = site.run(&["list", "--format", "json"]);
    assert_ne!(ran.code, 0, "{}", ran.out);
    assert!(ran.err.contains("usermod -aG docker ada"), "{}", ran.err);

    site.set("PREVIEW_HOST", &deploy);
    let key = site.vm().expect("a VM").identity_file();
    let text = std::fs::read_to_string(key).expect("a key");
    let write = |name: &str, text: &str| {
        let path = site.dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("closed");
        path.to_str().expect("a path").to_owned()
    };
    let (windows, cut) = (write("windows", &text.replace('\n', "\r\n")), write("cut", text.trim_end()));
    let locked = write("locked", &text);
    let lock = Command::new("ssh-keygen").args(["-p", "-q", "-P", "", "-N", "secret", "-f", &locked]).status();
    assert!(lock.expect("ssh-keygen runs").success());
    for key in [windows, cut] {
        site.set("PREVIEW_IDENTITY_FILE", &key);
        site.run(&["list"]).expect(0);
    }
    site.set("PREVIEW_IDENTITY_FILE", &locked);
    let ran = site.run(&["list"]);
    assert_ne!(ran.code, 0, "{}", ran.out);
    assert!(ran.err.contains("has a passphrase"), "{}", ran.err);

    let key = site.vm().expect("a VM").identity_file();
    site.set("PREVIEW_IDENTITY_FILE", key.to_str().expect("a path"));
    let no_sockets = "sed -i '1i AllowStreamLocalForwarding no' /etc/ssh/sshd_config && pkill -HUP -o -x sshd";
    site.vm().expect("a VM").text(&["sh", "-c", no_sockets]).expect("sshd is told");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let ran = site.run(&["list"]);
    assert_ne!(ran.code, 0, "{}", ran.out);
    assert!(ran.err.contains("AllowStreamLocalForwarding yes"), "{}", ran.err);
}
