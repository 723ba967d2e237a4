//! The script of the alerts, run by a shell against a listener that stands for the chat.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

/// Answers each request with this status, and hands its first line and body on.
fn chat(status: &'static str) -> (String, Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.expect("a connection"));
            let (mut first, mut line, mut size) = (String::new(), String::new(), 0);
            reader.read_line(&mut first).expect("a request");
            while reader.read_line(&mut line).expect("a header") > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    size = value.trim().parse().expect("a size");
                }
                line.clear();
            }
            let mut body = vec![0; size];
            reader.read_exact(&mut body).expect("a body");
            // Before the answer: whoever has that may look at once.
            let _ = sender.send((first.trim().to_owned(), String::from_utf8(body).expect("text")));
            write!(reader.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .expect("an answer");
        }
    });
    (address, receiver)
}

struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    /// With 4000 MiB available, two processors, a load of 0.5.
    fn new() -> Self {
        let machine = Self { directory: tempfile::tempdir().expect("a directory") };
        machine.write("script", include_str!("../files/alerts"));
        machine.write("meminfo", "MemTotal: 8000000 kB\nMemAvailable: 4096000 kB\n");
        machine.write("cpuinfo", "processor\t: 0\nmodel name\t: x\nprocessor\t: 1\n");
        machine.write("loadavg", "9.00 0.50 0.10 1/100 1\n");
        machine
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("a file is written");
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// One look, with these lines of the configuration; whether all could be told.
    fn look(&self, conf: &str) -> bool {
        self.write("conf", &format!("disks=/\ndisk_warning=101\ndisk_critical=102\n{conf}"));
        let ran = Command::new("sh")
            .arg(self.path().join("script"))
            .env("PREVIEW_ALERTS_CONF", self.path().join("conf"))
            .env("PREVIEW_ALERTS_STATE", self.path().join("state"))
            .env("PREVIEW_ALERTS_PROC", self.path())
            .output()
            .expect("sh runs");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!said.contains("hook-secret") && ran.stdout.is_empty(), "{said}");
        ran.status.success()
    }
}

/// What was told, without the machine's name.
fn told(receiver: &Receiver<(String, String)>) -> Vec<String> {
    receiver
        .try_iter()
        .map(|(first, body)| {
            assert_eq!(first, "POST /hook-secret HTTP/1.1");
            let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            let text = body["text"].as_str().expect("a text").to_owned();
            text.split_once(": ").expect("a machine's name in front").1.to_owned()
        })
        .collect()
}

#[test]
fn each_change_is_told_once_and_its_end_too() {
    let machine = Machine::new();
    let (address, receiver) = chat("200 OK");
    let hook = format!("webhook={address}/hook-secret\n");
    assert!(machine.look(&hook));
    assert_eq!(told(&receiver), Vec::<String>::new(), "all is well: nothing to tell");

    machine.write("meminfo", "MemAvailable: 204800 kB\n");
    assert!(machine.look(&hook));
    assert_eq!(told(&receiver), ["critical: 200 MiB of memory are available"]);
    assert!(machine.look(&hook));
    assert_eq!(told(&receiver), Vec::<String>::new(), "nothing changed");

    machine.write("meminfo", "MemAvailable: 1048576 kB\n");
    machine.write("loadavg", "0.10 2.50 0.10 1/100 1\n");
    assert!(machine.look(&hook));
    assert_eq!(
        told(&receiver),
        ["resolved: 1024 MiB of memory are available", "warning: the load is 2.50 on 2 processors"]
    );
    machine.write("loadavg", "9.10 1.75 0.10 1/100 1\n");
    assert!(machine.look(&hook));
    assert_eq!(told(&receiver), ["resolved: the load is 1.75 on 2 processors"]);
}

#[test]
fn what_is_about_a_limit_is_told_once() {
    let machine = Machine::new();
    let (address, receiver) = chat("200 OK");
    let hook = format!("webhook={address}/hook-secret\n");
    let look = |memory: u32, load: &str| {
        machine.write("meminfo", &format!("MemAvailable: {} kB\n", memory * 1024));
        machine.write("loadavg", &format!("0.10 {load} 0.10 1/100 1\n"));
        assert!(machine.look(&hook));
        told(&receiver).len()
    };
    assert_eq!(look(500, "2.01"), 2);
    assert_eq!([look(520, "1.99"), look(510, "2.01"), look(630, "1.81")], [0, 0, 0]);
    assert_eq!(look(640, "1.80"), 2, "both are well again");
    assert_eq!(look(520, "1.99"), 0);
}

#[test]
fn a_disk_has_two_levels() {
    let machine = Machine::new();
    let (address, receiver) = chat("200 OK");
    let hook = format!("webhook={address}/hook-secret\n");
    for (limits, expected) in [
        ("disk_warning=0\n", Some("warning: the disk / is ")),
        ("disk_warning=0\ndisk_critical=0\n", Some("critical: the disk / is ")),
        ("disk_warning=0\ndisk_critical=0\n", None),
        ("disk_warning=0\n", Some("warning: the disk / is ")),
        ("", Some("resolved: the disk / is ")),
    ] {
        assert!(machine.look(&format!("{hook}{limits}")));
        let told = told(&receiver);
        assert_eq!(told.len(), usize::from(expected.is_some()), "{limits}: {told:?}");
        assert!(
            told.iter().all(|text| text.starts_with(expected.unwrap_or_default()) && text.ends_with(" % full")),
            "{told:?}"
        );
    }
}

#[test]
fn what_could_not_be_told_is_told_next_time() {
    let machine = Machine::new();
    machine.write("meminfo", "MemAvailable: 204800 kB\n");
    let (broken, _receiver) = chat("500 Internal Server Error");
    assert!(!machine.look(&format!("webhook={broken}/hook-secret\n")));
    let (address, receiver) = chat("200 OK");
    assert!(machine.look(&format!("webhook={address}/hook-secret\n")));
    assert_eq!(told(&receiver), ["critical: 200 MiB of memory are available"]);
}

#[test]
fn the_uptime_monitor_is_asked_for_each_time_and_first() {
    let machine = Machine::new();
    let (address, receiver) = chat("200 OK");
    for _ in 0..2 {
        // As written: nothing of an address is lost, or means something to curl.
        assert!(machine.look(&format!("uptime={address}/ping/[hook-secret]{{1}}/abc=\n")));
        let asked: Vec<_> = receiver.try_iter().map(|(first, _)| first).collect();
        assert_eq!(asked, ["GET /ping/[hook-secret]{1}/abc= HTTP/1.1"]);
    }
    machine.write("meminfo", "MemAvailable: 204800 kB\n");
    assert!(machine.look(&format!("webhook={address}/hook-secret\nuptime={address}/ping\n")));
    let asked: Vec<_> = receiver.try_iter().map(|(first, _)| first).collect();
    assert_eq!(asked, ["GET /ping HTTP/1.1", "POST /hook-secret HTTP/1.1"]);
    assert!(!machine.look("uptime=http://127.0.0.1:1/hook-secret\n"), "its silence is an error for systemd");
}
