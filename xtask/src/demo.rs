//! `cargo xtask demo`: the shortest way to see a preview, on this machine's engine.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xtask::lab::{Lab, Needs, root};
use xtask::sh;

use crate::test::cargo;

const PROJECT: &str = "examples/hello";

/// Deploys the example, fetches its page, and says what to try next.
pub(crate) fn up() -> Result<()> {
    let start = Instant::now();
    let lab = Lab::up(Needs::Basics)?;
    let binary = build()?;
    eprintln!("\n$ preview deploy --branch demo --project-dir {PROJECT}");
    let mut deploy = preview(&lab, &binary, &["deploy", "--branch", "demo", "--format", "json"]);
    let out = deploy.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {}", binary.display()))?;
    if !out.status.success() {
        bail!("the deploy failed: {}\n{}", out.status, String::from_utf8_lossy(&out.stdout).trim());
    }
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).context("the deploy printed no JSON")?;
    let url = report["url"].as_str().context("the deploy's report has no URL")?;
    let page = get(url)?;
    println!("\nThe preview is up: {url} ({} bytes, {:.0} s in all)\n", page.len(), start.elapsed().as_secs_f64());
    println!("Next, in this shell:");
    println!("  eval \"$(cargo xtask lab env)\"");
    println!("  alias preview='{} --project-dir {PROJECT}'", binary.display());
    println!("  preview list");
    println!("  preview logs --branch demo");
    println!("  preview deploy --branch another      # a second one beside it");
    println!("  preview destroy --branch another");
    println!("  cargo xtask demo --down              # the end of it");
    Ok(())
}

/// Destroys the preview, and stops the engine if the lab had started it for this alone.
pub(crate) fn down() -> Result<()> {
    let Some(lab) = Lab::current() else {
        eprintln!("there is no lab, or no engine answers: there is nothing to remove");
        return Ok(());
    };
    let binary = build()?;
    sh::run(&mut preview(&lab, &binary, &["destroy", "--branch", "demo"]))?;
    crate::say_stopped(&lab.stop_engine()?);
    Ok(())
}

fn build() -> Result<PathBuf> {
    sh::step("preview", || {
        sh::run(&mut cargo(["build", "--quiet", "-p", "preview-action"]))?;
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        Ok((root().join(target).join("debug/preview"), "built".to_owned()))
    })
}

fn preview(lab: &Lab, binary: &PathBuf, args: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.current_dir(root()).args(args).args(["--project-dir", PROJECT]);
    lab.set_environment(&mut command);
    command
}

/// The body of a page, by plain HTTP.
fn get(url: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").with_context(|| format!("not a plain HTTP address: {url}"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut stream = TcpStream::connect(&address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("no answer from {url}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{url} answers {status}");
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_page_is_fetched_and_an_error_page_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/a", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            for answer in ["HTTP/1.0 200 OK\r\n\r\nhello", "HTTP/1.0 404 Not Found\r\n\r\nno"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 256];
                let read = stream.read(&mut request).unwrap();
                assert!(request[..read].starts_with(b"GET /a HTTP/1.0"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert_eq!(get(&url).unwrap(), "hello");
        assert!(get(&url).unwrap_err().to_string().contains("404"));
        server.join().unwrap();
    }
}
