//! Answers that go on: logs, events, and the progress of a pull. Read here and not by bollard where the caller must know
//! that the engine has answered before the first item comes (bollard sends such a request only when it is polled).

use std::collections::HashMap;

use bollard::errors::Error;
use bollard::models::CreateImageInfo;
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::engine::{Chunk, PullProgress};

/// Takes what it is fed apart into items.
trait Decoder: Send + 'static {
    type Item: Send;
    fn feed(&mut self, bytes: Bytes);
    fn next(&mut self) -> Option<Result<Self::Item, Error>>;
    /// What is left when the answer has ended.
    fn rest(&mut self) -> Option<Result<Self::Item, Error>>;
}

fn decode<D: Decoder>(body: Incoming, decoder: D) -> BoxStream<'static, Result<D::Item, Error>> {
    let state = (body.into_data_stream(), decoder, false);
    stream::unfold(state, |(mut body, mut decoder, mut ended)| async move {
        loop {
            if let Some(item) = decoder.next() {
                return Some((item, (body, decoder, ended)));
            }
            if ended {
                return None;
            }
            match body.next().await {
                Some(Ok(bytes)) => decoder.feed(bytes),
                Some(Err(error)) => return Some((Err(error.into()), (body, decoder, true))),
                None => {
                    ended = true;
                    if let Some(item) = decoder.rest() {
                        return Some((item, (body, decoder, ended)));
                    }
                }
            }
        }
    })
    .boxed()
}

/// The output of a container.
pub(super) fn output(body: Incoming) -> BoxStream<'static, Result<Chunk, Error>> {
    decode(body, Frames::default())
}

/// A document a line.
pub(super) fn lines<T: serde::de::DeserializeOwned + Send + 'static>(
    body: Incoming,
) -> BoxStream<'static, Result<T, Error>> {
    decode(body, Lines { buffer: BytesMut::new(), item: std::marker::PhantomData })
}

/// Output in frames (`[stream, 0, 0, 0, length × 4]`), or as it is if the container has a terminal.
///
/// API 1.41 does not say which of them it is, but no terminal starts with a frame's header. A frame is handed on in the
/// pieces in which it arrives.
#[derive(Default)]
struct Frames {
    buffer: BytesMut,
    raw: Option<bool>,
    /// Of which stream the current frame is, and how much of it is still to come.
    frame: (u8, usize),
}

impl Decoder for Frames {
    type Item = Chunk;

    fn feed(&mut self, bytes: Bytes) {
        self.buffer.extend_from_slice(&bytes);
    }

    fn next(&mut self) -> Option<Result<Chunk, Error>> {
        loop {
            if self.buffer.is_empty() {
                return None;
            }
            if self.raw == Some(true) {
                return Some(Ok(Chunk::Stdout(self.buffer.split().freeze())));
            }
            let (stream, left) = self.frame;
            if left > 0 {
                let piece = self.buffer.split_to(left.min(self.buffer.len())).freeze();
                self.frame.1 -= piece.len();
                return Some(Ok(if stream == 2 { Chunk::Stderr(piece) } else { Chunk::Stdout(piece) }));
            }
            let known = self.buffer.len().min(4);
            let is_header = self.buffer[0] <= 2 && self.buffer[1..known].iter().all(|&byte| byte == 0);
            if self.raw.is_none() && !is_header {
                self.raw = Some(true);
                continue;
            }
            if self.buffer.len() < 8 {
                return None;
            }
            self.raw = Some(false);
            let header = self.buffer.get_u32();
            self.frame = ((header >> 24) as u8, self.buffer.get_u32() as usize);
        }
    }

    fn rest(&mut self) -> Option<Result<Chunk, Error>> {
        (!self.buffer.is_empty()).then(|| Ok(Chunk::Stdout(self.buffer.split().freeze())))
    }
}

struct Lines<T> {
    buffer: BytesMut,
    item: std::marker::PhantomData<fn() -> T>,
}

impl<T: serde::de::DeserializeOwned> Lines<T> {
    fn parse(line: &[u8]) -> Option<Result<T, Error>> {
        let line = line.trim_ascii();
        (!line.is_empty()).then(|| serde_json::from_slice(line).map_err(Error::from))
    }
}

impl<T: serde::de::DeserializeOwned + Send + 'static> Decoder for Lines<T> {
    type Item = T;

    fn feed(&mut self, bytes: Bytes) {
        self.buffer.extend_from_slice(&bytes);
    }

    fn next(&mut self) -> Option<Result<T, Error>> {
        loop {
            let end = self.buffer.iter().position(|&byte| byte == b'\n')?;
            let line = self.buffer.split_to(end + 1);
            if let Some(item) = Self::parse(&line) {
                return Some(item);
            }
        }
    }

    fn rest(&mut self) -> Option<Result<T, Error>> {
        Self::parse(&self.buffer.split())
    }
}

/// Adds up what the engine tells of each layer.
#[derive(Default)]
pub(super) struct Layers {
    known: HashMap<String, (u64, u64)>,
}

impl Layers {
    /// Takes in one message of the engine.
    pub(super) fn add(&mut self, info: CreateImageInfo) -> PullProgress {
        let status = info.status.unwrap_or_default();
        if let Some(id) = info.id {
            let detail = info.progress_detail.unwrap_or_default();
            let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
            // Extraction counts the same layer a second time, so only the download is looked at.
            if status == "Downloading" {
                let current = number(detail.current).unwrap_or(0);
                self.known.insert(id, (current, number(detail.total).unwrap_or(current)));
            } else if let "Download complete" | "Pull complete" = status.as_str()
                && let Some((current, total)) = self.known.get_mut(&id)
            {
                *current = *total;
            }
        }
        let (current, total) = self.known.values().fold((0, 0), |(a, b), (current, total)| (a + current, b + total));
        PullProgress { current, total, status }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(pieces: &[&[u8]]) -> Vec<Chunk> {
        let mut frames = Frames::default();
        let mut chunks = Vec::new();
        for piece in pieces {
            frames.feed(Bytes::copy_from_slice(piece));
            while let Some(chunk) = frames.next() {
                chunks.push(chunk.unwrap());
            }
        }
        chunks.extend(frames.rest().map(Result::unwrap));
        chunks
    }

    fn out(text: &'static str) -> Chunk {
        Chunk::Stdout(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn frames_are_taken_apart_wherever_they_are_cut() {
        let bytes = b"\x01\0\0\0\0\0\0\x03abc\x02\0\0\0\0\0\0\x02no";
        assert_eq!(chunks(&[bytes]), [out("abc"), Chunk::Stderr(Bytes::from_static(b"no"))]);
        for at in 1..bytes.len() {
            let mut texts = (String::new(), String::new());
            for chunk in chunks(&[&bytes[..at], &bytes[at..]]) {
                match chunk {
                    Chunk::Stdout(piece) => texts.0.push_str(std::str::from_utf8(&piece).unwrap()),
                    Chunk::Stderr(piece) => texts.1.push_str(std::str::from_utf8(&piece).unwrap()),
                }
            }
            assert_eq!(texts, ("abc".into(), "no".into()), "cut at {at}");
        }
    }

    #[test]
    fn a_terminal_has_no_frames() {
        assert_eq!(chunks(&[b"hello\r\n", b"\x01\0\0\0"]), [out("hello\r\n"), out("\x01\0\0\0")]);
        assert_eq!(chunks(&[b"\x01\x1b[0m"]), [out("\x01\x1b[0m")]);
    }

    #[test]
    fn documents_by_line() {
        let mut lines = Lines::<u32> { buffer: BytesMut::new(), item: std::marker::PhantomData };
        lines.feed(Bytes::from_static(b"1\n\n2"));
        assert_eq!(lines.next().unwrap().unwrap(), 1);
        assert!(lines.next().is_none());
        assert_eq!(lines.rest().unwrap().unwrap(), 2);
        lines.feed(Bytes::from_static(b"nonsense\n"));
        assert!(lines.next().unwrap().is_err());
    }

    #[test]
    fn layers_add_up() {
        let mut layers = Layers::default();
        let mut add = |json| layers.add(serde_json::from_value(json).unwrap());
        add(serde_json::json!({"id": "a", "status": "Downloading", "progressDetail": {"current": 5, "total": 10}}));
        let both =
            add(serde_json::json!({"id": "b", "status": "Downloading", "progressDetail": {"current": 1, "total": 4}}));
        assert_eq!((both.current, both.total), (6, 14));
        let done = add(serde_json::json!({"id": "a", "status": "Download complete", "progressDetail": {}}));
        assert_eq!((done.current, done.total), (11, 14));
        let extracting =
            add(serde_json::json!({"id": "a", "status": "Extracting", "progressDetail": {"current": 1, "total": 10}}));
        assert_eq!((extracting.current, extracting.total, extracting.status.as_str()), (11, 14, "Extracting"));
    }
}
