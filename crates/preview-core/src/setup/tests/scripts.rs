//! Scripts and units of single steps: run by a shell among programs that say what they are told to, or read.

use super::super::script;
use super::with_programs;

/// `script` with paths of the machine led into the test's directory, `.`.
fn moved(script: &str, paths: &[(&str, &str)]) -> String {
    paths.iter().fold(script.to_owned(), |script, (path, to)| {
        assert!(script.contains(path), "{path} is not there any more");
        script.replace(path, to)
    })
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// `systemd-analyze verify` with Debian's units and cloud-init's finds a cycle without these lines, and none with them.
#[test]
fn the_firewalls_unit_waits_for_nothing_that_waits_for_the_network() {
    let unit = include_str!("../files/preview-firewall.service");
    for line in ["DefaultDependencies=no", "Wants=network-pre.target", "Conflicts=shutdown.target"] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
    let values = |key: &str| -> Vec<&str> {
        unit.lines().filter_map(|line| line.strip_prefix(key)).flat_map(str::split_whitespace).collect()
    };
    assert_eq!(values("After="), ["local-fs.target", "nftables.service"]);
    assert_eq!(values("Before="), ["network-pre.target", "shutdown.target"]);
    // Whoever flushes all rules has ours loaded again.
    assert_eq!(
        (values("PartOf="), values("ReloadPropagatedFrom=")),
        (vec!["nftables.service"], vec!["nftables.service"])
    );
    assert_eq!(values("ExecReload="), values("ExecStart="));
}

/// What the firewall's script hands to nft, with these ports wanted; `None` if it does not.
fn rules(ports: &str, argument: &str, enabled: bool) -> Option<String> {
    let directory = directory();
    let paths = [("export LC_ALL=C PATH=", "export LC_ALL=C NOT_PATH="), ("/run/sshd", "./sshd")];
    let script = moved(include_str!("../files/firewall"), &paths);
    std::fs::write(directory.path().join("firewall"), script).expect("a file");
    std::fs::write(directory.path().join("firewall.conf"), ports).expect("a file");
    let systemctl = format!("[ $1 = show ] || {enabled}");
    let programs = [("sshd", "echo port 22"), ("systemctl", systemctl.as_str()), ("nft", "cat >rules")];
    let text = format!("PREVIEW_FIREWALL_CONF=. sh -eu ./firewall {argument}");
    let (well, said) = with_programs(directory.path(), &programs, &text);
    assert!(well, "{said}");
    std::fs::read_to_string(directory.path().join("rules")).ok()
}

#[test]
fn many_ports_fit_into_the_firewalls_rules_by_both_protocols() {
    let ports: Vec<String> = (20_000..20_060).map(|port| port.to_string()).collect();
    let rules = rules(&(ports.join("\n") + "\n"), "", true).expect("rules");
    let open = format!("meta l4proto {{ tcp, udp }} th dport {{ 22,{} }} accept comment", ports.join(","));
    assert!(rules.contains(&open), "{rules}");
    // Nft refuses longer ones.
    let comment = rules.split('"').find(|text| text.starts_with("ports ")).expect("a comment");
    assert!(comment.len() < 100, "{comment}");
}

#[test]
fn the_engine_gets_no_metadata_once_it_starts() {
    let with = rules("80\n", "engine", true).expect("rules");
    for rule in ["ip daddr 169.254.169.254 tcp dport != 53 drop", "ip6 daddr fd00:ec2::254 tcp dport != 53 drop"] {
        assert!(with.contains(rule), "{with}");
    }
    assert!(with.contains("type filter hook output"), "{with}");
    let before = rules("80\n", "", false).expect("rules");
    assert!(!before.contains("hook output"), "the engine does not run, and cloud-init may still ask: {before}");
    assert_eq!(rules("80\n", "engine", false), None, "a firewall that was disabled stays so");
    let drop_in = include_str!("../files/docker-firewall.conf");
    assert!(drop_in.contains("ExecStartPre=-/usr/local/lib/preview/firewall engine\n"), "{drop_in}");
}

#[test]
fn a_firewall_that_was_disabled_does_not_come_back_with_sshd() {
    assert!(rules("80\n", "again", true).is_some());
    assert_eq!(rules("80\n", "again", false), None);
    assert!(rules("80\n", "", false).is_some(), "who asks for it gets it");
    for drop_in in [include_str!("../files/ssh-firewall.conf"), include_str!("../files/ssh-socket-firewall.conf")] {
        let calls = drop_in.lines().filter(|line| line.starts_with("Exec"));
        assert!(calls.clone().count() > 0 && calls.clone().all(|line| line.ends_with("firewall again")), "{drop_in}");
    }
}

#[test]
fn packages_that_somebody_left_half_done_are_finished_first() {
    let asked = |broken: bool| {
        let directory = directory();
        if broken {
            std::fs::write(directory.path().join("0001"), "Package: x\n").expect("a file");
        }
        // As apt-get does: nothing before that is mended.
        let apt_get = "echo \"apt-get ${6:-}\" >>asked; [ ! -e 0001 ] || { echo dpkg was interrupted; exit 100; }";
        let dpkg = "echo dpkg \"$@\" >>asked; rm -f 0001";
        let programs = [("apt-get", apt_get), ("dpkg", dpkg)];
        let (well, said) = with_programs(directory.path(), &programs, "dpkg_updates=.\npackages some");
        assert!(well, "{said}");
        std::fs::read_to_string(directory.path().join("asked")).expect("it was asked")
    };
    let lines =
        |text: &str| text.lines().map(|line| line.split(' ').next().unwrap_or("").to_owned()).collect::<Vec<_>>();
    assert_eq!(lines(&asked(true)), ["dpkg", "apt-get"]);
    assert_eq!(lines(&asked(false)), ["apt-get"]);
    assert!(asked(true).contains("--configure -a"));
}

#[test]
fn a_connection_that_breaks_does_not_end_what_installs_packages() {
    let directory = directory();
    let apt_get = "set -e; case $* in *update*) exit 1 ;; esac; i=0; while [ $i -lt 2000 ]; do echo line of dpkg $i, long enough to fill what a pipe holds; i=$((i + 1)); done; echo >done";
    // Nobody reads: whoever writes there ends.
    with_programs(directory.path(), &[("apt-get", apt_get)], "{ packages some; } | exec true");
    assert!(directory.path().join("done").exists());
}

#[test]
fn one_setup_at_a_time() {
    let directory = directory();
    let text = "PREVIEW_SETUP_LOCK=./lock\n\
                (alone; echo first begins; touch held; sleep 1; echo first ends) &\n\
                while [ ! -e held ]; do sleep 0.05; done\n\
                alone\necho second, waited $waited\nwait";
    let (well, said) = with_programs(directory.path(), &[], text);
    assert!(well, "{said}");
    let waits = "another setup of this machine is at work: waiting for its end";
    let mut lines: Vec<&str> = said.lines().collect();
    let told = lines.iter().position(|line| *line == waits).expect("it is said");
    lines.remove(told);
    assert_eq!(lines, ["first begins", "first ends", "second, waited yes"]);
    assert!(
        with_programs(directory.path(), &[], "PREVIEW_SETUP_LOCK=./lock\nalone\necho ${waited:-at once}").1
            == "at once"
    );
}

/// What the swap step's `apply` and then its `check` come to, where `swapon` ends so; exit status, `/etc/fstab`.
fn swap(swapon: &str, fstab: &str) -> (String, String) {
    let directory = directory();
    std::fs::write(directory.path().join("fstab"), fstab).expect("a file");
    std::fs::write(directory.path().join("swaps"), "Filename\n").expect("a file");
    let swapon = format!("{swapon} && echo /swapfile >>swaps");
    let programs = [
        ("swapon", swapon.as_str()),
        ("mkswap", ""),
        ("dd", ""),
        ("chattr", "exit 1"),
        ("sysctl", "echo 1"),
        ("df", "echo Filesystem; echo / 9 9 99999999"),
        ("systemd-detect-virt", "exit 1"),
    ];
    let paths = [
        ("/etc/fstab", "./fstab"),
        ("/proc/swaps", "./swaps"),
        ("/etc/preview/", "./"),
        ("swap=/swapfile", "swap=./swapfile"),
    ];
    let script = moved(include_str!("../scripts/swap.sh"), &paths);
    let text = format!(
        "{script}\nin_container() {{ return 1; }}\nset -- 1024 1\n(set -eu; apply \"$@\")\necho applied $?\n(check \"$@\"; exit $wrong)\necho checked $?"
    );
    let (_, said) = with_programs(directory.path(), &programs, &text);
    (said, std::fs::read_to_string(directory.path().join("fstab")).expect("a file"))
}

#[test]
fn swap_that_is_refused_stops_nothing_and_is_not_tried_again() {
    let (said, fstab) = swap("false", "/dev/sda1 / ext4 defaults 0 1\n");
    assert!(said.contains("refuses swap: there is none") && said.contains("applied 0"), "{said}");
    assert!(said.ends_with("checked 77") && said.contains("to try again, remove"), "{said}");
    assert_eq!(fstab, "/dev/sda1 / ext4 defaults 0 1\n");
}

#[test]
fn swap_gets_a_line_of_its_own_once() {
    let line = "./swapfile none swap sw 0 0\n";
    let (said, fstab) = swap("true", "/dev/sda1 / ext4 defaults 0 1");
    assert!(said.contains("applied 0") && said.ends_with("checked 0"), "{said}");
    assert_eq!(fstab, format!("/dev/sda1 / ext4 defaults 0 1\n{line}"));
    assert_eq!(swap("true", "./swapfile\tnone swap sw 0 0\n").1, "./swapfile\tnone swap sw 0 0\n");
}

#[test]
fn a_key_behind_options_is_told() {
    let directory = directory();
    let key = "ssh-ed25519 AAAAC3Nz+x/y=";
    let said = |line: &str| {
        std::fs::create_dir_all(directory.path().join(".ssh")).expect("a directory");
        std::fs::write(directory.path().join(".ssh/authorized_keys"), line).expect("a file");
        let programs = [("id", "echo docker"), ("getent", "echo deploy:x:1:1::.:/bin/sh")];
        let text = format!("{}\nset -- deploy '{key}'\ncheck \"$@\"\nexit $wrong", include_str!("../scripts/user.sh"));
        with_programs(directory.path(), &programs, &text)
    };
    assert_eq!(said(&format!("  {key} me@example\n")), (true, String::new()));
    let (well, told) = said(&format!("restrict,command=\"ls\" {key} me\n"));
    assert!(well && told.contains("has options in authorized_keys"), "{told}");
    let (well, told) = said(&format!("# {key}\n"));
    assert!(!well && told.contains("lacks the key"), "{told}");
}

#[test]
fn who_had_to_wait_looks_again_before_anything_is_changed() {
    let step = super::steps(&super::wish(), &super::Facts::default()).expect("sound").remove(0);
    let text = script::apply(&step, "#M");
    let (lock, look) = (text.find("\nalone\n").expect("a lock"), text.find("[ -n \"$waited\" ]").expect("a look"));
    assert!(lock < look && look < text.find("set -e\n").expect("the change"));
}

/// What the proxy's step says of, and does about, a network that has this subnet (none: there is none) on a machine with these routes.
fn network(subnet: Option<&str>, routes: &str) -> String {
    let directory = directory();
    let docker = format!(
        "case $* in version) ;; *network\\ create*) echo \"$@\" ;; *inspect*) {} ;; esac",
        subnet.map_or_else(|| "exit 1".to_owned(), |subnet| format!("echo '{subnet} '"))
    );
    let ip = format!("case $* in *match*) echo 'default via 192.0.2.1' ;; *) printf '{routes}' ;; esac");
    let programs = [("docker", docker.as_str()), ("ip", ip.as_str()), ("systemctl", "")];
    let items =
        crate::setup::proxy::step(&super::ProxyWish::default(), &super::Facts::default()).expect("a step").arguments;
    let text = format!(
        "{}\nset -- '{}'\ncheck \"$@\"\n(set -eu; apply \"$@\")",
        include_str!("../scripts/containers.sh"),
        items.iter().find(|item| item.starts_with("network preview-proxy ")).expect("its network")
    );
    with_programs(directory.path(), &programs, &text).1
}

#[test]
fn the_proxys_network_has_room_and_addresses_that_nobody_has() {
    let made = "network create --label preview.setup=proxy --subnet 10.200.0.0/20 --gateway 10.200.0.1 preview-proxy";
    assert_eq!(network(None, ""), format!("the network preview-proxy is missing\n{made}"));
    let said = network(None, "10.200.3.0/24 dev wg0\\n");
    assert!(said.contains("in use: 10.200.3.0/24 dev wg0. Give others with --proxy-subnet"), "{said}");
    assert!(!said.contains("network create"), "{said}");
    let small = network(Some("10.201.0.64/26"), "");
    assert!(small.contains("preview-proxy has room for 61 containers"), "{small}");
    assert_eq!(network(Some("10.200.0.0/20"), ""), "");
    assert!(super::proxy_subnet("10.3.0.0/27").is_err() && super::proxy_subnet("10.3.0.1").is_err());
    assert_eq!(super::proxy_subnet("10.3.0.0/22").expect("a network").to_string(), "10.3.0.0/22");
}

#[test]
fn a_socket_that_nobody_listens_on_is_seen_and_mended() {
    let (socket, other) =
        (tempfile::NamedTempFile::new().expect("a file"), tempfile::NamedTempFile::new().expect("a file"));
    let look = |inside: &std::path::Path| {
        let directory = directory();
        let docker = format!(
            "case $* in version) ;; exec*) stat -c %i {} ;; restart*) echo \"$@\" >restarted ;; *before*) exit 1 ;; inspect*) echo true hash ;; esac",
            inside.display()
        );
        let script = include_str!("../scripts/containers.sh");
        let (exec, host) = script.split_once("stat -L -c %i /var/run/docker.sock").expect("the machine's own");
        let script = format!("{exec}stat -L -c %i {}{host}", socket.path().display());
        let items = "container preview-socket-proxy hash image";
        let text = format!("{script}\nset -- '{items}'\ncheck \"$@\"\n(set -eu; apply \"$@\")");
        let said = with_programs(directory.path(), &[("docker", &docker), ("systemctl", "")], &text).1;
        (said, directory.path().join("restarted").exists())
    };
    let (said, restarted) = look(other.path());
    assert!(said.contains("a socket of the engine that nobody listens on") && restarted, "{said}");
    assert_eq!(look(socket.path()), (String::new(), false));
    // The engine says so itself, too.
    let step = crate::setup::proxy::step(&super::ProxyWish::default(), &super::Facts::default()).expect("a step");
    let unit = step.files.iter().find(|file| file.path.contains("docker.service.d")).expect("a drop-in");
    assert!(unit.content.expose().contains("docker restart preview-socket-proxy"));
}

#[test]
fn a_step_that_turns_out_to_be_impossible_ends_nothing() {
    let directory = directory();
    let step = |after: u8| {
        let _ = std::fs::remove_file(directory.path().join("done"));
        let text = format!(
            "fail() {{ echo \"FAILED $1\"; exit 1; }}\n{}\nstep() (\ncase $1 in\n  check) [ -e done ] || exit 1; echo why; exit {after} ;;\n  \
             apply) : >done ;;\nesac\n)\nrun swap 'make swap'\necho on",
            super::print::RUN
        );
        with_programs(directory.path(), &[], &text).1
    };
    assert_eq!(step(0), "swap: make swap\nswap: done\non");
    assert_eq!(step(77), "swap: make swap\nswap: left out: why\non");
    assert_eq!(step(1), "swap: make swap\nFAILED swap was done, and is still not as wanted: why");
}
