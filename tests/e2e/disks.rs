//! Disks that are full while a run pulls, and while it waits in the queue. Each test has a VM of its own.

use preview_tests::{Site, VmOptions, eventually};

use crate::stacks::{alone, nothing, serving, stack, standing, still, with_web};

/// A registry that hands out the files of a directory by the last part of their path. Debian's `perl-base` is enough for it.
const REGISTRY: &str = r#"
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 5000, Listen => 100, ReuseAddr => 1) or die;
$SIG{CHLD} = 'IGNORE';
while (my $c = $s->accept) {
  next if fork;
  my $line = <$c>;
  while (my $l = <$c>) { last if $l =~ /^\r?\n$/ }
  my ($verb, $path) = $line =~ m{^(GET|HEAD) (\S+)};
  my ($kind, $name) = $path =~ m{/(manifests|blobs)/([0-9a-z:]+)$};
  my ($status, $type, $body) = ('200 OK', 'application/octet-stream', '');
  if ($name) {
    if (open(my $f, '<', "/srv/registry/$name")) { local $/; binmode $f; $body = <$f> } else { $status = '404 Not Found' }
    $type = 'application/vnd.docker.distribution.manifest.v2+json' if $kind eq 'manifests';
  }
  my $digest = $kind eq 'manifests' ? 'Docker-Content-Digest: ' . readlink('/srv/registry/1') . "\r\n" : '';
  print $c "HTTP/1.1 $status\r\nContent-Type: $type\r\nContent-Length: " . length($body) . "\r\n${digest}Connection: close\r\n\r\n";
  print $c $body if $verb eq 'GET';
  exit;
}
"#;

/// An image of one layer: that of BusyBox, and so many MB of nothing, which are a few KB on their way.
const IMAGE: &str = r#"
set -eu
rm -rf /srv/registry; mkdir -p /srv/registry/root; cd /srv/registry
container=$(docker create busybox:1.36)
docker export "$container" | tar -xf - -C root
docker rm "$container" >/dev/null
dd if=/dev/zero of=root/nothing bs=1M count=$1 2>/dev/null
tar -cf layer -C root .
diff=$(sha256sum <layer | cut -c-64)
gzip -n layer
put() { hash=$(sha256sum <"$1" | cut -c-64); size=$(stat -c %s "$1"); mv "$1" "sha256:$hash"; }
put layer.gz
layer=$hash layer_size=$size
printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$diff" >config
put config
type=application/vnd.docker
printf '{"schemaVersion":2,"mediaType":"%s.distribution.manifest.v2+json","config":{"mediaType":"%s.container.image.v1+json","size":%s,"digest":"sha256:%s"},"layers":[{"mediaType":"%s.image.rootfs.diff.tar.gzip","size":%s,"digest":"sha256:%s"}]}' \
  $type $type "$size" "$hash" $type "$layer_size" "$layer" >manifest
put manifest
ln -s "sha256:$hash" 1
rm -rf root
"#;

/// Fills the file system of a directory but for so many MB.
fn fill(site: &Site, directory: &str, but: u32) {
    site.shell(&format!(
        "free=$(df --output=avail -m {directory} | tail -n 1); [ $free -le {but} ] || \
         dd if=/dev/zero of={directory}/fill bs=1M count=$((free - {but})) 2>/dev/null || :"
    ));
}

#[test]
fn a_full_disk_while_it_pulls() {
    let options = VmOptions { data_size: Some("500m".into()), ..VmOptions::default() };
    let Some(site) = alone(&options, &stack(&serving("one"))) else { return };
    let vm = site.vm().expect("a VM");
    vm.text(&["sh", "-c", IMAGE, "sh", "120"]).expect("an image");
    let serve = format!("setsid perl -e '{}' >/dev/null 2>&1 &", REGISTRY.replace('\'', "'\\''"));
    vm.text(&["sh", "-c", &serve]).expect("a registry");
    site.write("preview.toml", "[limits]\nmin_free_disk = \"0MB\"\n");
    let (url, before) = standing(&site, "pr-7", "7");

    // There is room for what comes over the wire, and none for what is in it.
    fill(&site, "/var/lib/docker", 60);
    let command = serde_json::json!(["sh", "-c", serving("two")]);
    site.write("compose.yml", &with_web(&format!("    image: 127.0.0.1:5000/big:1\n    command: {command}\n")));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("pulling…") && ran.err.to_lowercase().contains("no space left on device"), "{}", ran.err);
    assert_eq!(ran.failure(), "disk_full");
    still(&site, &url, "7", "one");
    assert_eq!(site.containers("pr-7"), before, "nothing of the preview was touched");
    let ran = site.deploy("8").expect(4);
    assert_eq!(ran.failure(), "disk_full");
    assert!(ran.err.contains("Nothing was left behind"), "{}", ran.err);
    assert_eq!(site.phase("pr-8"), "");

    site.shell("rm /var/lib/docker/fill");
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "update");
    still(&site, &url, "7", "two");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn a_full_disk_while_it_waits() {
    let Some(site) = alone(&VmOptions::default(), &stack(&serving("one"))) else { return };
    let base = site.base();
    site.shell(&format!("mkdir -p {base} && mount -t tmpfs -o size=8m,mode=0700,uid=$(id -u deploy) preview {base}"));
    let limits = |floor: &str| {
        format!(
            "[limits]\nmax_previews = 1\nmin_free_disk = \"{floor}\"\nmin_free_memory = \"1MB\"\non_full = \"queue\"\n"
        )
    };
    site.write("preview.toml", &limits("2MB"));
    site.deploy("7").expect(0);
    let mut waits = site.start(&["deploy", "--pr", "8", "--format", "json"]);
    waits.until("1 of 1 places on the VM are taken");

    // What it waits for becomes free, and by then there is another thing to wait for. Nobody tells when that ends.
    site.shell(&format!("dd if=/dev/zero of={base}/fill bs=4k 2>/dev/null || :"));
    site.run(&["destroy", "--pr", "7"]).expect(0);
    waits.until("of disk are free on the VM, a new preview needs 2");
    assert_eq!(site.phase("pr-8"), "");
    site.shell(&format!("rm {base}/fill"));
    waits.end().expect(0);
    assert_eq!(site.phase("pr-8"), "ready");

    // Not even room for a ticket.
    site.write("preview.toml", &limits("0MB"));
    site.shell(&format!("dd if=/dev/zero of={base}/fill bs=4k 2>/dev/null || :"));
    let ran = site.deploy("9").expect(4);
    assert_eq!(ran.failure(), "disk_full");
    eventually("the lock's shell notices", || site.processes().is_empty());
    site.shell(&format!("rm {base}/fill"));
    assert_eq!(site.run(&["sweep", "--format", "json"]).expect(0).json()["tickets"], 0);
    site.run(&["destroy", "--pr", "8"]).expect(0);
    // What tells those who wait stays.
    site.shell(&format!("umount {base}"));
    nothing(&site);
}
