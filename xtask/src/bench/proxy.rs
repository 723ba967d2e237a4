//! A slow link: a TCP proxy that hands on each piece half a round trip after it came, in order, without a limit of bandwidth.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Listens on a port of 127.0.0.1 until it is dropped.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: u16,
    round_trip: Duration,
    accepted: AtomicUsize,
    /// Bytes from clients.
    sent: AtomicUsize,
    stopped: AtomicBool,
}

impl Proxy {
    /// To this port of 127.0.0.1.
    pub(crate) fn start(target: u16, round_trip: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let (accepted, sent, stopped) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { target, round_trip, accepted, sent, stopped });
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if of_thread.stopped.load(Ordering::Relaxed) {
                    break;
                }
                of_thread.accepted.fetch_add(1, Ordering::Relaxed);
                let shared = Arc::clone(&of_thread);
                // A connection that fails is the client's to report.
                thread::spawn(move || shared.carry(client).ok());
            }
        });
        Ok(Self { port, shared })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Connections since the last call.
    pub(crate) fn take_accepted(&self) -> usize {
        self.shared.accepted.swap(0, Ordering::Relaxed)
    }

    /// Bytes from clients since the last call.
    pub(crate) fn take_sent(&self) -> usize {
        self.shared.sent.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the listener up.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

impl Shared {
    /// The kernel has shaken hands with the client already; over a real link that takes a round trip, so the client's
    /// first bytes are held back for it, and the server sees the connection when they would have arrived.
    fn carry(&self, client: TcpStream) -> Result<()> {
        let half = self.round_trip / 2;
        client.set_nodelay(true)?;
        thread::sleep(self.round_trip + half);
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.target))?;
        server.set_nodelay(true)?;
        let back = (server.try_clone()?, client.try_clone()?);
        let answers = thread::spawn(move || pump(back.0, back.1, half, |_| ()));
        // What the client said before is in the socket's buffer since then: it is not late twice.
        pump_after_start(client, server, half, |bytes| {
            self.sent.fetch_add(bytes, Ordering::Relaxed);
        })?;
        // A thread that panicked has nothing more to carry.
        answers.join().ok();
        Ok(())
    }
}

/// A first piece that is there already has waited while the connection was made.
fn pump_after_start(mut from: TcpStream, mut to: TcpStream, delay: Duration, count: impl Fn(usize)) -> Result<()> {
    let mut first = [0; 4096];
    let begun = Instant::now();
    let read = from.read(&mut first)?;
    if begun.elapsed() > Duration::from_millis(1) {
        thread::sleep(delay);
    }
    count(read);
    to.write_all(&first[..read])?;
    pump(from, to, delay, count);
    Ok(())
}

/// Reads at once and writes later, so that pieces overlap on their way as they do on a wire.
fn pump(mut from: TcpStream, mut to: TcpStream, delay: Duration, count: impl Fn(usize)) {
    let (sender, queue) = mpsc::channel::<(Instant, Vec<u8>)>();
    let writer = thread::spawn(move || {
        for (due, piece) in queue {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if piece.is_empty() || to.write_all(&piece).is_err() {
                break;
            }
        }
        // The other direction may still be open; what is closed already stays so.
        to.shutdown(Shutdown::Write).ok();
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        count(read);
        if sender.send((Instant::now() + delay, buffer[..read].to_vec())).is_err() {
            // Nobody takes it any more: the sender should learn of that.
            from.shutdown(Shutdown::Both).ok();
            break;
        }
    }
    // The end travels as long as everything else; a writer that is gone needs none.
    sender.send((Instant::now() + delay, Vec::new())).ok();
    drop(sender);
    writer.join().ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_takes_a_round_trip_and_the_end_arrives() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().port(), Duration::from_millis(40)).unwrap();
        let echo = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                stream.write_all(&byte).unwrap();
            }
        });
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        let mut exchange = |byte: u8| {
            let begun = Instant::now();
            stream.write_all(&[byte]).unwrap();
            let mut answer = [0];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [byte]);
            begun.elapsed()
        };
        // The first one pays for the handshake too.
        assert!(exchange(1) >= Duration::from_millis(80));
        let second = exchange(2);
        assert!(second >= Duration::from_millis(40) && second < Duration::from_millis(400), "{second:?}");
        drop(stream);
        echo.join().unwrap();
        assert_eq!(proxy.take_accepted(), 1);
        assert_eq!(proxy.take_accepted(), 0);
        assert_eq!(proxy.take_sent(), 2);
    }
}
