//! An engine that speaks an older API than it does: a socket in front of the real one.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// What Docker 19.03 speaks.
const SPOKEN: &str = "1.40";

/// Opens the socket. It stays as long as the test runs.
pub(super) fn old_engine(directory: &Path, real: &Path) -> PathBuf {
    let path = directory.join("old.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let real = real.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let engine = UnixStream::connect(&real).expect("the real engine");
            let (answers, to) = (engine.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
            std::thread::spawn(move || requests(client, engine));
            std::thread::spawn(move || hand_back(answers, to));
        }
    });
    path
}

/// Small ones, without a body: each comes in one piece.
fn requests(mut client: UnixStream, mut engine: UnixStream) {
    let mut piece = vec![0; 65536];
    while let Ok(length @ 1..) = client.read(&mut piece) {
        let text = String::from_utf8_lossy(&piece[..length]).into_owned();
        let old = format!(" /v{SPOKEN}/");
        let done = if text.contains(" /v1.") && !text.contains(&old) {
            let refusal = format!(
                "{{\"message\":\"client version 1.41 is too new. Maximum supported API version is {SPOKEN}\"}}\n"
            );
            let head = format!(
                "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                refusal.len()
            );
            client.write_all((head + &refusal).as_bytes())
        } else {
            // The real one may not speak that any more.
            engine.write_all(text.replacen(&old, " /", 1).as_bytes())
        };
        if done.is_err() {
            return;
        }
    }
}

/// What the engine says of its version is replaced by words of the same length.
fn hand_back(mut engine: UnixStream, mut client: UnixStream) {
    const KEY: &[u8] = b"\"ApiVersion\":\"";
    let mut piece = vec![0; 65536];
    while let Ok(length @ 1..) = engine.read(&mut piece) {
        let said = &mut piece[..length];
        for at in 0..length.saturating_sub(KEY.len() + SPOKEN.len()) {
            if said[at..].starts_with(KEY) {
                said[at + KEY.len()..][..SPOKEN.len()].copy_from_slice(SPOKEN.as_bytes());
            }
        }
        if client.write_all(said).is_err() {
            return;
        }
    }
}
