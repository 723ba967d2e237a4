//! A registry on this machine's loopback with one image, for pulls.

use std::sync::Arc;

use preview_core::engine::RegistryAuth;
use preview_core::secret::Secret;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const USER: &str = "user";
/// Each third of it is of bytes that the two alphabets of base64 write differently.
const PASSWORD: &str = "~~~???>>>";
/// Name and password as a request carries them, in lower case.
const BASIC: &str = "authorization: basic dxnlcjp+fn4/pz8+pj4=";

/// The credentials that the registry wants.
pub(crate) fn credentials() -> RegistryAuth {
    RegistryAuth {
        username: Some(USER.to_owned()),
        password: Some(Secret::new(PASSWORD.to_owned())),
        identity_token: None,
    }
}

struct Image {
    manifest: Vec<u8>,
    blobs: Vec<Vec<u8>>,
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn image(labels: &serde_json::Value) -> Image {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let text = b"hello";
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    layer.append_data(&mut header, "hello.txt", text.as_slice()).unwrap();
    let layer = layer.into_inner().unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config = config.to_string().into_bytes();
    let part = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": format!("application/vnd.docker.{kind}"), "size": bytes.len(), "digest": digest(bytes)});
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": part("container.image.v1+json", &config),
        "layers": [part("image.rootfs.diff.tar.gzip", &layer)],
    });
    Image { manifest: manifest.to_string().into_bytes(), blobs: vec![config, layer] }
}

/// Serves `app:1` to those who have the credentials, for as long as the runtime lives; returns the registry's name.
pub(crate) async fn serve(labels: &serde_json::Value) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let name = listener.local_addr().unwrap().to_string();
    let image = Arc::new(image(labels));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let image = Arc::clone(&image);
            // Engines try TLS first; what is not HTTP ends the connection.
            tokio::spawn(async move { answer(BufReader::new(stream), &image).await });
        }
    });
    name
}

async fn answer(mut stream: BufReader<TcpStream>, image: &Image) -> std::io::Result<()> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is_known = head.to_ascii_lowercase().contains(BASIC);
    let manifest = digest(&image.manifest);
    let (status, kind, body) = if !is_known {
        ("401 Unauthorized", "application/json", br#"{"errors":[{"code":"UNAUTHORIZED"}]}"#.to_vec())
    } else if path == "/v2/" {
        ("200 OK", "application/json", b"{}".to_vec())
    } else if path == "/v2/app/manifests/1" || path == format!("/v2/app/manifests/{manifest}") {
        ("200 OK", MANIFEST, image.manifest.clone())
    } else if let Some(blob) = image.blobs.iter().find(|blob| path == format!("/v2/app/blobs/{}", digest(blob))) {
        ("200 OK", "application/octet-stream", blob.clone())
    } else {
        ("404 Not Found", "application/json", br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#.to_vec())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\nWWW-Authenticate: Basic realm=\"test\"\r\nConnection: close\r\n\r\n",
        body.len(),
        digest(&body),
    );
    stream.write_all(head.as_bytes()).await?;
    if method != "HEAD" {
        stream.write_all(&body).await?;
    }
    stream.shutdown().await
}
