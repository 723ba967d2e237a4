//! A look at the host as a whole, beyond what a run needs: for `doctor`. One message to the shell that stays, and sessions beside it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::script::{kind_of, quote};
use super::shell::{Process, ShellHost, Transport};
use crate::engine::pools::Subnet;
use crate::fault::Fault;

/// A healthy machine answers at once.
const LIMIT: Duration = Duration::from_secs(20);

/// What the host says about what previews stand on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examination {
    /// Who we are there.
    pub user: String,
    /// The clock, seconds since 1970.
    pub now: i64,
    /// The base directory: its mode and who owns it; `None` where there is none.
    pub base: Option<(u32, String)>,
    /// Whether we can write there; where there is none, whether we can make it.
    pub base_writable: bool,
    /// The engine's socket: its mode, owner and group; `None` where there is none.
    pub socket: Option<(String, String, String)>,
    /// Whether we can use it.
    pub socket_usable: bool,
    /// Swap in all, bytes.
    pub swap: u64,
    /// How eager the kernel is to use it, 0 to 200.
    pub swappiness: Option<u32>,
    /// `/etc/docker/daemon.json`, if there is one that we can read.
    pub daemon: Option<String>,
    /// Its addresses, as it knows them, without those of bridges that lead to containers alone.
    pub addresses: Vec<String>,
    /// Where it has routes to, the default route left out.
    pub routes: Vec<Subnet>,
}

/// One line each, `key value`; the file comes last, as it is.
fn script(base: &str, socket: &str) -> String {
    format!(
        "b={}; s={}\n\
         printf 'now %s\\n' \"$(date +%s)\"\n\
         printf 'user %s\\n' \"$(id -un 2>/dev/null || id -u)\"\n\
         if [ -d \"$b\" ]; then\n\
         printf 'base %s\\n' \"$(stat -c '%a %U' \"$b\")\"\n\
         if [ -w \"$b\" ] && [ -x \"$b\" ]; then echo 'writable yes'; fi\n\
         else d=$b; while [ ! -d \"$d\" ]; do d=${{d%/*}}; [ -n \"$d\" ] || d=/; done\n\
         if [ -w \"$d\" ] && [ -x \"$d\" ]; then echo 'writable yes'; fi; fi\n\
         if [ -S \"$s\" ]; then\n\
         printf 'socket %s\\n' \"$(stat -L -c '%a %U %G' \"$s\")\"\n\
         if [ -r \"$s\" ] && [ -w \"$s\" ]; then echo 'usable yes'; fi; fi\n\
         printf 'swap %s\\n' \"$(sed -n 's/^SwapTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo)\"\n\
         printf 'swappiness %s\\n' \"$(cat /proc/sys/vm/swappiness 2>/dev/null)\"\n\
         printf 'addresses %s\\n' \"$(hostname -I 2>/dev/null)\"\n\
         for d in /sys/class/net/*/bridge; do [ ! -d \"$d\" ] || {{ d=${{d%/bridge}}; echo \"bridge ${{d##*/}}\"; }}; done\n\
         sed 's/^/route /' /proc/net/route 2>/dev/null\n\
         sed 's/^/inet6 /' /proc/net/if_inet6 2>/dev/null\n\
         sed 's/^/route6 /' /proc/net/ipv6_route 2>/dev/null\n\
         [ ! -r /etc/docker/daemon.json ] || {{ echo daemon; cat /etc/docker/daemon.json; }}\n",
        quote(base),
        quote(socket)
    )
}

fn parse(text: &str) -> Examination {
    let (lines, daemon) = match text.split_once("\ndaemon\n") {
        Some((lines, daemon)) => (lines, Some(daemon.to_owned())),
        None => (text, None),
    };
    let mut found = Examination { daemon, ..Examination::default() };
    let mut bridges = Bridges::default();
    for (key, value) in lines.lines().filter_map(|line| line.split_once(' ')) {
        let mut words = value.split_whitespace().map(str::to_owned);
        match key {
            "now" => found.now = value.parse().unwrap_or_default(),
            "user" => value.clone_into(&mut found.user),
            "base" => {
                let mode = words.next().and_then(|mode| u32::from_str_radix(&mode, 8).ok());
                found.base = mode.zip(words.next());
            }
            "writable" => found.base_writable = true,
            "socket" => {
                if let (Some(mode), Some(owner), Some(group)) = (words.next(), words.next(), words.next()) {
                    found.socket = Some((mode, owner, group));
                }
            }
            "usable" => found.socket_usable = true,
            "swap" => found.swap = value.parse::<u64>().unwrap_or_default() * 1024,
            "swappiness" => found.swappiness = value.parse().ok(),
            "route" => {
                found.routes.extend(Subnet::of_route(value));
                bridges.route(value);
            }
            "bridge" => drop(bridges.names.insert(value.to_owned())),
            "inet6" => bridges.address(value),
            "route6" => bridges.route6(value),
            "addresses" => found.addresses = words.collect(),
            _ => {}
        }
    }
    found.addresses.retain(|address| !address.parse().is_ok_and(|address| bridges.inside(address)));
    found
}

/// Bridges of the host, and what is behind them. One that the default route goes through is the way to the world, as on hosts of virtual
/// machines; any other leads to containers alone.
#[derive(Default)]
struct Bridges {
    names: BTreeSet<String>,
    subnets: Vec<(String, Subnet)>,
    addresses: Vec<(String, Ipv6Addr)>,
    /// Interfaces with a default route.
    outward: BTreeSet<String>,
}

impl Bridges {
    /// A line of `/proc/net/route`.
    fn route(&mut self, line: &str) {
        let mut columns = line.split_whitespace();
        let (interface, to) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
        match Subnet::of_route(line) {
            Some(subnet) => self.subnets.push((interface.to_owned(), subnet)),
            None if to == "00000000" => drop(self.outward.insert(interface.to_owned())),
            None => {}
        }
    }

    /// A line of `/proc/net/if_inet6`: an address, and at the end its interface.
    fn address(&mut self, line: &str) {
        let mut columns = line.split_whitespace();
        let address = columns.next().and_then(|hex| u128::from_str_radix(hex, 16).ok());
        if let (Some(address), Some(interface)) = (address, columns.next_back()) {
            self.addresses.push((interface.to_owned(), Ipv6Addr::from(address)));
        }
    }

    /// A line of `/proc/net/ipv6_route`: a destination, the length of its prefix, and at the end the interface.
    fn route6(&mut self, line: &str) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        if let [to, "00", .., interface] = columns.as_slice()
            && to.bytes().all(|digit| digit == b'0')
            && *interface != "lo"
        {
            self.outward.insert((*interface).to_owned());
        }
    }

    fn inside(&self, address: IpAddr) -> bool {
        let inner = |interface: &String| self.names.contains(interface) && !self.outward.contains(interface);
        match address {
            IpAddr::V4(address) => {
                self.subnets.iter().any(|(interface, subnet)| inner(interface) && subnet.contains(address))
            }
            IpAddr::V6(address) => self.addresses.iter().any(|(interface, own)| inner(interface) && *own == address),
        }
    }
}

impl<T: Transport> ShellHost<T> {
    /// Looks at the host. Changes nothing.
    ///
    /// # Errors
    /// If the connection is lost, or the shell gives no answer.
    pub async fn examine(&self, base: &str, socket: &str) -> Result<Examination, Fault> {
        const OPERATION: &str = "look at the host";
        let answer = self.exchange(OPERATION, LIMIT, |_| Ok(script(base, socket))).await?;
        // Without `date` nothing has a time; all else may be missing.
        let found = parse(&String::from_utf8_lossy(&answer.stdout));
        if found.now == 0 {
            return Err(Fault::new(kind_of(&answer.stderr), OPERATION, answer.stderr));
        }
        Ok(found)
    }

    /// How many programs can run at the same time over this connection, up to `wanted`: as many sessions as `sshd` gives it. Opened really,
    /// and closed again. The shell that stays is one of them; nobody else may be at work on the host meanwhile.
    ///
    /// # Errors
    /// As [`examine`](Self::examine), where not even the shell can be had.
    pub async fn sessions(&self, wanted: usize) -> Result<usize, Fault> {
        const OPERATION: &str = "open sessions on the VM";
        self.exchange(OPERATION, LIMIT, |_| Ok(":".to_owned())).await?;
        let mut held: Vec<Process> = self.take_spare().await.into_iter().collect();
        while held.len() + 1 < wanted {
            match tokio::time::timeout(LIMIT, self.session()).await {
                Ok(Some(process)) => held.push(process),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(held.len() + 1)
    }

    /// One more program; `None` if it does not answer.
    async fn session(&self) -> Option<Process> {
        let mut process = self.transport().spawn(&["cat".into()]).await.ok()?;
        process.stdin.write_all(b"x").await.ok()?;
        process.stdin.flush().await.ok()?;
        let mut byte = [0];
        process.stdout.read_exact(&mut byte).await.ok()?;
        Some(process)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_prints_is_read() {
        let text = "now 1700000000\nuser deploy\nbase 700 deploy\nwritable yes\nsocket 660 root docker\nusable yes\nswap 4194300\n\
            swappiness 1\naddresses 10.0.0.5 fd00::5 \ndaemon\n{\"log-driver\":\"local\"}\n";
        let found = parse(text);
        assert_eq!((found.now, found.user.as_str()), (1_700_000_000, "deploy"));
        assert_eq!((found.base, found.base_writable), (Some((0o700, "deploy".into())), true));
        assert_eq!(found.socket, Some(("660".into(), "root".into(), "docker".into())));
        assert_eq!((found.swap, found.swappiness), (4_294_963_200, Some(1)));
        assert_eq!(found.addresses, ["10.0.0.5", "fd00::5"]);
        assert_eq!(found.daemon.as_deref(), Some("{\"log-driver\":\"local\"}\n"));
        // Docker's bridges lead to containers; a bridge that the default route goes through leads to the world.
        let text = "now 5\naddresses 203.0.113.7 172.17.0.1 10.200.0.1 192.0.2.9 2001:db8::7 fd00:1::1\nbridge docker0\nbridge br-0123456789ab\n\
            bridge vmbr0\nroute Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
            route eth0 00000000 017100CB 0003 0 0 0 00000000 0 0 0\nroute eth0 007100CB 00000000 0001 0 0 0 00FFFFFF 0 0 0\n\
            route docker0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0\nroute br-0123456789ab 0000C80A 00000000 0001 0 0 0 00F0FFFF 0 0 0\n\
            route vmbr0 00000000 010200C0 0003 0 0 100 00000000 0 0 0\nroute vmbr0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n\
            inet6 20010db8000000000000000000000007 02 40 00 80     eth0\ninet6 fd000001000000000000000000000001 03 40 00 80  docker0\n";
        assert_eq!(parse(text).addresses, ["203.0.113.7", "192.0.2.9", "2001:db8::7"]);
        let nothing = parse("now 5\nuser 1000\nbase \nsocket \nswap \nswappiness \naddresses \n");
        assert_eq!(nothing, Examination { now: 5, user: "1000".into(), ..Examination::default() });
    }

    #[tokio::test]
    async fn this_machine_is_looked_at() {
        let host = crate::host::local::connect().expect("this machine");
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().to_str().expect("a path");
        let found = host.examine(base, "/nonexistent/socket").await.expect("a look");
        assert!(found.base_writable && found.base.is_some() && found.socket.is_none(), "{found:?}");
        let deeper = host.examine(&format!("{base}/it's/new"), "/nonexistent").await.expect("a look");
        assert!(deeper.base_writable && deeper.base.is_none(), "{deeper:?}");
        assert!((found.now - jiff::Timestamp::now().as_second()).abs() < 60);
        assert_eq!(host.sessions(6).await.expect("sessions"), 6);
        crate::host::Host::close(&*host).await.expect("closed");
    }
}
