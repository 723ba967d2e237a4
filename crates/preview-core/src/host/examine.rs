//! A look at the host as a whole, beyond what a run needs: for `doctor`. One message to the shell that stays, and sessions beside it.

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
    /// Its addresses, as it knows them.
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
         sed 's/^/route /' /proc/net/route 2>/dev/null\n\
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
            "route" => found.routes.extend(Subnet::of_route(value)),
            "addresses" => found.addresses = words.collect(),
            _ => {}
        }
    }
    found
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
